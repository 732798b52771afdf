"""From targets to measured pictures: groups by layer, batches that fit into memory, and what the network itself says of the outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models import Layer, Model, Probe
from penlight.models.memory import is_memory_error
from penlight.models.probe import undisturbed
from penlight.techniques.visualize.cone import Cone, cone
from penlight.techniques.visualize.engine import Recipe, Snapshot, Stage, optimize
from penlight.techniques.visualize.objectives import (
    Diverse,
    Energy,
    MapOf,
    Objective,
    OfLayer,
    Probability,
    Scaled,
    UnitAt,
)
from penlight.techniques.visualize.parameterization import Notes, resized
from penlight.techniques.visualize.scene import Optics, Scene, Wish, framed, placement, plan
from penlight.techniques.visualize.schedule import stream
from penlight.techniques.visualize.stem import quicken
from penlight.techniques.visualize.targets import Target

_MOST = 256  # pictures at once, however small
_FEW, _AT_LEAST = 8, 2  # large pictures at once; a batch of one runs through other kernels, which round differently
_PIXELS = 128 * 128  # small pictures are taken together until they make up one large one, and always as many
_SMALL = 64 * 64  # pixels up to which it is looked for what a position sees of every map
_BYTES = 1 << 30  # kept for the backward pass at once

Entry = tuple[Target, int]
"""one picture: what it is of, and the number of its random start"""


@dataclass(frozen=True, eq=False)
class Job:
    """Targets that are looked at in one way, and the copy of the network they are optimised on."""

    scene: Scene
    targets: tuple[Target, ...]
    network: nn.Module
    layers: dict[str, Layer]
    reading: str

    def objective(self, entries: Sequence[Entry], device: torch.device) -> Objective:
        """What each of these pictures is to do more of."""
        first = entries[0][0]
        if first.objective is not None:
            return first.objective
        units = [target.unit for target, _ in entries]
        index = torch.tensor([unit.index for unit in units if unit is not None], device=device)
        (path,) = self.layers
        if self.reading == "probability":
            return Probability(path, index)
        if self.reading == "energy" and first.unit is not None:
            return _EnergyOf(path, index)
        places = [unit.position for unit in units if unit is not None and unit.position is not None]
        if self.reading == "channel" and not places:
            return MapOf(path, index)
        return UnitAt(path, index, torch.tensor(places, dtype=torch.long, device=device) if places else None)


@dataclass(frozen=True, eq=False)
class _EnergyOf(OfLayer):
    """½ Σ a² of a unit's map, a unit a picture."""

    layer: str
    index: Tensor

    def __call__(self, outputs: dict[str, Tensor], rows: Tensor) -> Tensor:  # type: ignore[override]
        output = outputs[self.layer]
        return Energy(self.layer)({self.layer: output[torch.arange(len(rows)), self.index[rows]][:, None]}, rows)


@dataclass(frozen=True, eq=False)
class Rendered:
    """One picture, (H, W, C), and what its objective is for it as stored and for the random start."""

    picture: NDArray[np.uint8]
    activation: float
    start: float
    zero_gradient: bool
    first: NDArray[np.uint8]  # the random start, (H, W, C)
    film: NDArray[np.uint8]  # (F, H, W, C)
    transparency: NDArray[np.float32]  # (H, W): where the picture mattered, if the method says so; else (0, 0)


@dataclass(frozen=True, eq=False)
class Terms:
    """What goes for all pictures of a request. `diversity` > 0 sets the starts of a target against each other; `alone`: one at a time."""

    seeds: int
    seed: int
    minimize: bool = False
    batch: int = 0
    frames: int = 0
    diversity: float = 0.0
    relative: bool = True
    alone: bool = False


def jobs(model: Model, targets: Sequence[Target], optics: Optics, wish: Wish, reading: str) -> list[Job]:
    """One job a layer, two where some units name positions, one an expression; all with pictures of the same size."""
    groups: dict[tuple[object, ...], list[Target]] = {}
    for target in targets:
        own = () if target.unit is not None else (target.text,)
        groups.setdefault((target.layers, target.placed, *own), []).append(target)
    networks: dict[tuple[str, ...], nn.Module] = {}
    made = []
    for members in groups.values():
        first = members[0]
        if first.layers not in networks:
            networks[first.layers] = quicken(model.prepared(keep=first.layers))
        network = networks[first.layers]
        layers = {path: model.layer(path) for path in first.layers}
        asked = replace(wish, placed=wish.placed or first.placed, whole=wish.whole or first.whole)
        scene = plan(model, network, optics, layers[first.layers[-1]], asked)
        made.append(Job(scene, tuple(members), network, layers, reading))
    most = (max(job.scene.picture[0] for job in made), max(job.scene.picture[1] for job in made))
    return [replace(job, scene=framed(job.scene, most, job.network, optics)) for job in made]


def render(
    model: Model, optics: Optics, job: Job, recipe: Callable[[Sequence[Entry]], Recipe], terms: Terms,
    advance: Callable[[int], None],
) -> Iterator[Rendered]:  # fmt: skip
    """A picture for every target and start, targets first; `advance` is told after each step how many pictures were changed."""
    entries = [(target, k) for target in job.targets for k in range(terms.seeds)]
    devices = [optics.mean.device] if optics.mean.device.type == "cuda" else []
    with torch.random.fork_rng(devices), undisturbed(model.network):
        count, least = _batch(job, optics)
        count = max(terms.batch, least) if terms.batch else count
        if terms.alone:
            count = least = 1
        if terms.diversity:  # a target's starts have to meet
            count = least = max(terms.seeds, count // terms.seeds * terms.seeds)
        at, cones = 0, dict[tuple[int, ...] | None, Cone | None]()
        while at < len(entries):
            some = entries[at : at + count]
            filled = some + some[:1] * (least - len(some))
            try:
                rendered = _batch_of(
                    model, optics, job, recipe(filled), filled, terms, partial(advance, len(some)), cones
                )
            except (RuntimeError, MemoryError) as error:
                if count == 1 or terms.diversity or not is_memory_error(error):
                    raise
                count, least = max(1, count // 2), max(1, least // 2)
                continue
            yield from rendered[: len(some)]
            at += count


def _batch(job: Job, optics: Optics) -> tuple[int, int]:
    """(pictures at once, least number that a batch is filled up to with copies).

    How many pictures there are decides how a sum is rounded, and hundreds of steps make a small difference large. So that a unit's
    picture does not depend on its company, small ones are always rendered in batches of one size, which costs little.
    """
    view = job.scene.view
    # a power of two, as the numbers of channels mostly are: few batches need filling up
    together = min(_MOST, 2 ** round(math.log2(max(1.0, _PIXELS / (view[0] * view[1])))))
    count, least = (together, together) if together > _FEW // 2 else (_FEW, _AT_LEAST)
    kept = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    def read(output: Tensor) -> None:
        pass

    x = optics.mean.new_zeros((1, optics.shape[0], *view)).requires_grad_(True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        with Probe(job.network, dict.fromkeys(job.layers, read)) as probe:
            probe(optics.reshape(x))
    fits = max(1, _BYTES // max(1, kept))
    return min(count, fits), min(least, fits)


def _batch_of(
    model: Model, optics: Optics, job: Job, recipe: Recipe, entries: Sequence[Entry], terms: Terms,
    advance: Callable[[], None], cones: dict[tuple[int, ...] | None, Cone | None],
) -> list[Rendered]:  # fmt: skip
    scene, device = job.scene, optics.mean.device
    objective = wanted = job.objective(entries, device)
    if terms.minimize:
        wanted = Scaled(objective, -1.0)
    if terms.diversity:
        names = [str(target) for target, _ in entries]
        groups = torch.tensor([names.index(name) for name in names], device=device)
        wanted = Diverse(wanted, terms.diversity, groups, terms.relative)
    # one neuron before its ReLU and after it want the same picture, but only before it does one that is off show the way
    seen = None if terms.diversity else one_cone(job, optics, objective, cones)
    stage = Stage(job.network, job.layers, optics, open_last=True, cone=seen)
    size = (
        scene.picture if scene.kind != "field" else (scene.view[0] + 2 * scene.margin, scene.view[1] + 2 * scene.margin)
    )
    streams = [stream(terms.seed, target.start or target, k) for target, k in entries]
    frames: list[NDArray[np.uint8]] = []
    first = last = None
    for last in optimize(stage, recipe, wanted, size, streams, terms.seed):
        if first is None:
            first = _stored(last, scene, optics, job.network)
        else:
            advance()
        while len(frames) < terms.frames and len(frames) * last.of <= last.step * max(1, terms.frames - 1):
            frames.append(_stored(last, scene, optics, job.network))
    assert first is not None
    assert last is not None
    final = _stored(last, scene, optics, job.network)
    if frames:
        frames[-1] = final
    starts, activations = (measure(model, optics, job, entries, pictures) for pictures in (first, final))
    reached = last.reached.cpu().numpy()
    film = np.stack(frames, 1) if frames else np.zeros((len(entries), 0, *final.shape[1:]), np.uint8)
    noted = last.canvas.transparency.float().cpu().numpy() if isinstance(last.canvas, Notes) else None
    return [
        Rendered(
            _last(final[n]), float(activations[n]), float(starts[n]), not bool(reached[n]), _last(first[n]), _last(film[n]),
            np.zeros((0, 0), np.float32) if noted is None else noted[n],
        )
        for n in range(len(entries))
    ]  # fmt: skip


def one_cone(
    job: Job, optics: Optics, objective: Objective, known: dict[tuple[int, ...] | None, Cone | None]
) -> Cone | None:
    """What the one position that all pictures of a batch look at sees, for small inputs; kept in `known`."""
    height, width = job.scene.view
    if not isinstance(objective, UnitAt) or height * width > _SMALL:
        return None
    places = None if objective.position is None else {tuple(place) for place in objective.position.tolist()}
    if places is not None and len(places) > 1:
        return None
    place = None if places is None else places.pop()
    if place not in known:
        x = optics.reshape(optics.mean.new_zeros((1, optics.shape[0], height, width)))
        known[place] = cone(job.network, job.layers[objective.layer], place, x)
    return known[place]


def _last(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(…, C, H, W) → (…, H, W, C)."""
    return np.moveaxis(pictures, -3, -1)


def _stored(snapshot: Snapshot, scene: Scene, optics: Optics, network: nn.Module) -> NDArray[np.uint8]:
    """Pictures as they are kept, (N, C, H, W) uint8: margins cut off, and on a neutral ground if other layers need more room."""
    pictures = snapshot.pictures()
    if scene.kind == "field":
        m, (height, width) = scene.margin, scene.view
        pictures = resized(pictures, (height + 2 * m, width + 2 * m))[..., m : m + height, m : m + width]
        if (height, width) != scene.picture:
            ground = optics.neutral.expand(len(pictures), -1, *scene.picture).clone()
            top, left = placement(scene, network, optics)
            ground[..., top : top + height, left : left + width] = pictures
            pictures = ground
    elif tuple(pictures.shape[2:]) != scene.picture:
        pictures = _onto(pictures, scene, optics)
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _onto(pictures: Tensor, scene: Scene, optics: Optics) -> Tensor:
    """Octaves leave a picture larger or smaller than what is kept, and layers of one request need different room."""
    height, width = pictures.shape[2:]
    alike = abs(height * scene.picture[1] - width * scene.picture[0]) <= max(*scene.picture, height, width)
    if alike or (height >= scene.picture[0] and width >= scene.picture[1]):
        return resized(pictures, scene.picture)
    ground = optics.neutral.expand(len(pictures), -1, *scene.picture).clone()
    ground[..., : pictures.shape[2], : pictures.shape[3]] = pictures[..., : scene.picture[0], : scene.picture[1]]
    return ground


def measure(
    model: Model, optics: Optics, job: Job, entries: Sequence[Entry], pictures: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """What the user's own network makes of pictures (N, C, H, W), each by its own target; (N,)."""
    objective = job.objective(entries, optics.mean.device)
    found: dict[str, Tensor] = {}
    values: list[Tensor] = []

    def reader(path: str) -> Callable[[Tensor], None]:
        def read(output: Tensor) -> None:
            found[path] = job.layers[path].units_first(output).clone()

        return read

    step = max(_FEW, _PIXELS // (job.scene.picture[0] * job.scene.picture[1]))
    with torch.inference_mode(), Probe(model.network, {path: reader(path) for path in job.layers}) as probe:
        for at in range(0, len(pictures), step):
            some = torch.from_numpy(pictures[at : at + step]).to(optics.mean.device).float() / 255
            probe(optics.reshape(optics.normalize(job.scene.shown(some))))
            values.append(objective(found, torch.arange(at, at + len(some), device=some.device)))
    scores = torch.cat(values).float().cpu().numpy()
    if not np.isfinite(scores).all():
        raise CannotRun(f"layer {job.scene.layer.path!r} puts out values that are no numbers")
    return scores

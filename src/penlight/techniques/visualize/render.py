"""From units to measured pictures: groups by layer, batches that fit into memory, and what the network itself says of the outcome."""

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
from penlight.models import Model, Probe
from penlight.models.probe import undisturbed
from penlight.techniques.visualize.engine import Recipe, Snapshot, Stage, optimize
from penlight.techniques.visualize.objectives import Negative, Objective, UnitAt, centre
from penlight.techniques.visualize.scene import Optics, Scene, framed, placement, plan
from penlight.techniques.visualize.schedule import stream
from penlight.techniques.visualize.stem import quicken
from penlight.units import Unit

_MOST = 256  # pictures at once, however small
_FEW, _AT_LEAST = 8, 2  # large pictures at once; a batch of one runs through other kernels, which round differently
_PIXELS = 128 * 128  # small pictures are taken together until they make up one large one, and always as many
_BYTES = 1 << 30  # kept for the backward pass at once
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True, eq=False)
class Job:
    """Units of one layer that are looked at in one way, and the copy of the network they are optimised on."""

    scene: Scene
    units: tuple[Unit, ...]
    network: nn.Module


@dataclass(frozen=True, eq=False)
class Rendered:
    """One picture, (H, W, C), and what the unit answers to it as stored and to the random start."""

    picture: NDArray[np.uint8]
    activation: float
    start: float
    zero_gradient: bool


def jobs(model: Model, units: Sequence[Unit], optics: Optics, size: int) -> list[Job]:
    """One job a layer, two where some units name positions; all with pictures of the same size."""
    groups: dict[tuple[str, bool], list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.layer, unit.position is not None), []).append(unit)
    made = []
    for (path, placed), members in groups.items():
        network = quicken(model.prepared(keep=[path]))
        made.append(Job(plan(model, network, optics, model.layer(path), size, placed), tuple(members), network))
    most = (max(job.scene.picture[0] for job in made), max(job.scene.picture[1] for job in made))
    return [replace(job, scene=framed(job.scene, most, job.network, optics)) for job in made]


def render(
    model: Model, optics: Optics, job: Job, recipe: Recipe, seeds: int, seed: int, minimize: bool, batch: int,
    advance: Callable[[int], None],
) -> Iterator[Rendered]:  # fmt: skip
    """A picture for every unit and start, units first; `advance` is told after each step how many pictures were changed."""
    entries = [(unit, k) for unit in job.units for k in range(seeds)]
    devices = [optics.mean.device] if optics.mean.device.type == "cuda" else []
    with torch.random.fork_rng(devices), undisturbed(model.network):
        count, least = (batch, batch) if batch else _batch(job, optics)
        at = 0
        while at < len(entries):
            some = entries[at : at + count]
            filled = some + some[:1] * (least - len(some))
            try:
                rendered = _batch_of(model, optics, job, recipe, filled, seed, minimize, partial(advance, len(some)))
            except (RuntimeError, MemoryError) as error:
                if count == 1 or not _no_memory(error):
                    raise
                count, least = max(1, count // 2), max(1, least // 2)
                continue
            yield from rendered[: len(some)]
            at += count


def _no_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


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
        with Probe(job.network, {job.scene.layer.path: read}) as probe:
            probe(optics.reshape(x))
    fits = max(1, _BYTES // max(1, kept))
    return min(count, fits), min(least, fits)


def _batch_of(
    model: Model, optics: Optics, job: Job, recipe: Recipe, entries: Sequence[tuple[Unit, int]], seed: int, minimize: bool,
    advance: Callable[[], None],
) -> list[Rendered]:  # fmt: skip
    scene, device = job.scene, optics.mean.device
    index = torch.tensor([unit.index for unit, _ in entries], device=device)
    places = [scene.middle if unit.position is None else unit.position for unit, _ in entries]
    objective: Objective = UnitAt(
        index, torch.tensor(places, dtype=torch.long, device=device).reshape(len(entries), -1)
    )
    if minimize:
        objective = Negative(objective)
    # one neuron before its ReLU and after it want the same picture, but only before it does one that is off show the way
    stage = Stage(job.network, scene.layer, optics, open_last=True)
    size = (
        scene.picture if scene.kind != "field" else (scene.view[0] + 2 * scene.margin, scene.view[1] + 2 * scene.margin)
    )
    streams = [stream(seed, unit, k) for unit, k in entries]
    first = last = None
    for last in optimize(stage, recipe, objective, size, streams, seed):
        if first is None:
            first = _stored(last, scene, optics, job.network)
        else:
            advance()
    assert first is not None
    assert last is not None
    final = _stored(last, scene, optics, job.network)
    starts, activations = (measure(model, optics, scene, entries, pictures) for pictures in (first, final))
    reached = last.reached.cpu().numpy()
    return [
        Rendered(final[n].transpose(1, 2, 0), float(activations[n]), float(starts[n]), not bool(reached[n]))
        for n in range(len(entries))
    ]


def _stored(snapshot: Snapshot, scene: Scene, optics: Optics, network: nn.Module) -> NDArray[np.uint8]:
    """Pictures as they are kept, (N, C, H, W) uint8: margins cut off, and on a neutral ground if other layers need more room."""
    pictures = snapshot.pictures()
    if scene.kind == "field":
        m, (height, width) = scene.margin, scene.view
        pictures = pictures[..., m : m + height, m : m + width]
    if tuple(pictures.shape[2:]) != scene.picture:
        ground = optics.neutral.expand(len(pictures), -1, *scene.picture).clone()
        top, left = placement(scene, network, optics) if scene.kind == "field" else (0, 0)
        ground[..., top : top + pictures.shape[2], left : left + pictures.shape[3]] = pictures
        pictures = ground
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def measure(
    model: Model, optics: Optics, scene: Scene, entries: Sequence[tuple[Unit, int]], pictures: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """What the user's own network answers to pictures (N, C, H, W), each at its unit and position; (N,)."""
    found: list[Tensor] = []

    def read(output: Tensor) -> None:
        first = scene.layer.units_first(output)
        middle = centre(first.shape[2:])
        for n, (unit, _) in enumerate(entries[at : at + len(first)]):
            found.append(first[n, unit.index][unit.position if unit.position is not None else middle].float())

    step = max(_FEW, _PIXELS // (scene.picture[0] * scene.picture[1]))
    with torch.inference_mode(), Probe(model.network, {scene.layer.path: read}) as probe:
        for at in range(0, len(pictures), step):
            some = torch.from_numpy(pictures[at : at + step]).to(optics.mean.device).float() / 255
            probe(optics.reshape(optics.normalize(some)))
    values = torch.stack(found).cpu().numpy()
    if not np.isfinite(values).all():
        raise CannotRun(f"layer {scene.layer.path!r} puts out values that are no numbers")
    return values

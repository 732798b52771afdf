"""`deepdream`: more of whatever the network sees, in noise or in a picture, and a journey into it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import read_picture
from penlight.models import Layer, Model
from penlight.models.probe import undisturbed
from penlight.results import VisualizeResult
from penlight.techniques.contract import Request
from penlight.techniques.options import option
from penlight.techniques.visualize import targets as texts
from penlight.techniques.visualize.ascent import MeanNormalised
from penlight.techniques.visualize.edits import Clip
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.objectives import Energy, Guided, centre
from penlight.techniques.visualize.parameterization import Given, Normal, Plain, Uniform
from penlight.techniques.visualize.render import Entry, Job, Terms, render
from penlight.techniques.visualize.scene import Optics, Scene, Size, answers
from penlight.techniques.visualize.schedule import Constant, stream
from penlight.techniques.visualize.synthesis import Brief, Synthesis, asked, reading
from penlight.techniques.visualize.targets import Target, read_targets
from penlight.techniques.visualize.transforms import Chain, Jitter

_STEPS = 10  # an octave, as published
_PUBLISHED = 224  # pixels: the side of the pictures that the published jitter is for
_GRAIN = 2.0  # of 255: what tells a picture's further starts apart
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112
_DEEP = 2 / 3  # of the way into the network


@dataclass(frozen=True)
class DeepDream(Synthesis):
    """DeepDream: a layer's own answer made stronger, from small octaves to large ones, in noise or in a picture.

    >>> penlight.visualize(model, "layer(features.9)", method="deepdream", picture="photo.jpg").images.shape     # doctest: +SKIP
    (1, 1, 480, 640, 3)

    The target is a whole layer, `layer(NAME)`: ½ Σ a², whose gradient at the layer is the answer itself; or a unit, read in the same
    way over its map. A unit without a map (a class) is read as it is, since the square of a negative score grows by falling. Every
    octave starts from the picture at its size plus the detail that the smaller ones added, and takes steps of `rate` × g / mean|g|,
    each with the picture rolled by up to `jitter` pixels and clipped to what pictures can be. Octaves too small for the network are left
    out, and their steps go to the others; octaves shrink with smoothing, where the notebook takes every 1.4th pixel. The notebook starts
    from a picture; without one the start is the grey noise, 100 to 101 of 255, of the authors' TensorFlow edition.

    With a `guide`, every position of the layer is drawn to that position of the guide which it is most like by dot product. With `zoom`,
    every frame is dreamt, then enlarged about its middle by `zoom_scale` and dreamt again; `images` holds the first frame, `film` all.
    A picture is dreamt at its own size where the network runs on that, else at the network's input size, which a note then says.
    """

    name: ClassVar[str] = "deepdream"
    paper: ClassVar[str] = (
        "Mordvintsev, Olah & Tyka, Inceptionism: Going Deeper into Neural Networks, Google Research 2015 (dream.ipynb)"
    )
    narrow: ClassVar[bool] = False

    objective: str = reading("energy")
    steps: int = option(0, "steps of all octaves together; 0: ten for each of octave-n, as published", low=0)
    rate: float = option(1.5, "mean change of a value by one step, of 255", low=0)
    octave_n: int = option(4, "octaves, each dreamt after the one below it", low=1, high=20)
    octave_scale: float = option(1.4, "how much larger each octave is than the one below", low=1.01, high=10)
    jitter: int = option(32, "largest roll in pixels of a picture of 224; less, in proportion, for smaller ones", low=0)
    picture: str = option("", "picture file to dream on, or data:N for an input of the model's own data; noise without")
    guide: str = option("", "picture file, or data:N, whose features the dream is drawn to")
    longest: int = option(640, "longest side in pixels of a picture that is dreamt at its own size", low=16)
    zoom: int = option(0, "frames of a journey into the picture, kept as film; the published one has 100", low=0)
    zoom_scale: float = option(0.05, "share of the picture that a frame of the journey zooms in by", low=0, high=0.9)

    def run(self, request: Request) -> VisualizeResult:
        """Dream every target of the request; with `zoom` the film is the journey."""
        request, notes = self._opened(request)
        frames = max(1, self.zoom)
        first = replace(request, progress=lambda done, of: request.progress(done, of * frames))
        if self.zoom:
            first = replace(first, frames=0)
        result = super().run(first)
        if self.zoom:
            result = replace(result, film=self.journey(request, result))
        return replace(result, notes=(*result.notes, *notes))

    def recipe(self, brief: Brief) -> Recipe:
        starts = [self._start(brief, target, k) for target, k in brief.entries]
        return self._recipe(brief, [start for start in starts if start is not None])

    def _recipe(self, brief: Brief, starts: Sequence[Tensor]) -> Recipe:
        """From `starts` (C, H, W) in [0, 1], one a picture of the batch, or from noise where there are none."""
        optics, image = brief.optics, brief.optics.contract.kind == "image"
        sizes = self.octaves(brief)
        total = self.steps or _STEPS * self.octave_n
        counts = [max(1, total * (n + 1) // len(sizes) - total * n // len(sizes)) for n in range(len(sizes))]
        most = min(self.jitter, round(self.jitter * min(brief.scene.picture) / _PUBLISHED)) if image else 0
        jitter = Chain((Jitter(most),) if most else ())
        rule, clip = MeanNormalised(Constant(self.rate)), (Clip(optics.neutral),)
        phases = tuple(
            Phase(count, rule, jitter, edits=clip, size=size, detail=True)
            for count, size in zip(counts, sizes, strict=True)
        )
        noise = Uniform(100, 101) if image else Normal(1.0)
        return Recipe(Given(torch.stack(list(starts))) if starts else Plain(noise), phases, rescue=False)

    def octaves(self, brief: Brief) -> list[Size]:
        """(H, W) of every octave, small to large, where the network runs; units at named positions are dreamt at full size only."""
        full, network, layer = brief.scene.picture, brief.request.model.network, brief.scene.layer
        shape = [tuple(max(1, round(n / self.octave_scale**k)) for n in full) for k in range(self.octave_n)]
        if brief.optics.contract.kind != "image" or brief.entries[0][0].placed:
            return [full]
        with undisturbed(network):
            smaller = [(h, w) for h, w in shape[:0:-1] if answers(network, brief.optics, layer, (h, w)) is not None]
        return [*smaller, full]

    def alone(self, request: Request) -> bool:
        return "picture" in request.pictures

    def jobs(self, request: Request, targets: Sequence[Target], optics: Optics) -> list[Job]:
        made = []
        for job in super().jobs(request, targets, optics):
            if (
                self.objective == "energy"
                and job.targets[0].unit is not None
                and math.prod(job.scene.layer.positions) == 1
            ):
                job = replace(job, reading="channel")
            if "picture" in request.pictures:
                job = replace(job, scene=self._scene(request, job, optics))
            made.append(job)
        return made

    def _scene(self, request: Request, job: Job, optics: Optics) -> Scene:
        height, width = request.pictures["picture"].shape[:2]
        positions = answers(job.network, optics, job.scene.layer, (height, width))
        if positions is None:
            raise CannotRun(
                f"layer {job.scene.layer.path!r} does not run on pictures of {height}×{width}; leave out size"
            )
        return Scene(job.scene.layer, "whole", (height, width), (height, width), centre(positions))

    def _start(self, brief: Brief, target: Target, k: int) -> Tensor | None:
        """The picture that start `k` begins with, (C, H, W) in [0, 1]: the first is as given, others have faint grain of their own."""
        given = brief.request.pictures.get("picture")
        if given is None:
            return None
        values = _planes(given)
        if k == 0:
            return values
        grain = torch.rand(values.shape, generator=stream(brief.request.seed, "grain", target, k)) - 0.5
        return (values + grain * _GRAIN / 255).clamp(0, 1)

    def _opened(self, request: Request) -> tuple[Request, list[str]]:
        """The request with the picture at the size it is dreamt at and, where there is a guide, the objectives that follow it."""
        model, notes = request.model, list[str]()
        wanted = read_targets(model, asked(request), self.objective)
        guide = request.pictures.get("guide") if "guide" in request.pictures else self.guide or None
        if guide is not None:
            seen = fitted(model, guide, "guide")
            wanted = [_guided(model, target, seen) for target in wanted]
        request = replace(request, targets=wanted, units=(), layers=())
        picture = request.pictures.get("picture") if "picture" in request.pictures else self.picture or None
        if picture is None:
            return request, notes
        found, note = self._fitted(request, picture, [model.layer(path) for target in wanted for path in target.layers])
        if not isinstance(picture, str):
            notes.append("dreamt on a picture that was given as an array")
        return replace(request, pictures={"picture": found}), [*notes, *note]

    def _fitted(self, request: Request, source: Any, layers: Sequence[Layer]) -> tuple[NDArray[np.uint8], list[str]]:
        """(the picture (H, W, C) at its own size, or at the network's with a note that says why)."""
        model, optics = request.model, Optics.of(request.model)
        native: Size = optics.shape[1:]
        own = _size(source, native) if model.contract.kind == "image" else native
        scale = self.size / min(own) if self.size else min(1.0, self.longest / max(own))
        size = (max(1, round(own[0] * scale)), max(1, round(own[1] * scale)))
        placed = any(target.placed for target in request.targets)
        with undisturbed(model.network):
            runs = all(answers(model.network, optics, layer, size) is not None for layer in dict.fromkeys(layers))
        if size == native or (runs and not placed):
            return fitted(model, source, "picture", size), []
        if self.size:
            why = "positions lie in the network's own input" if placed else "the network does not run on that size"
            raise BadOption(f"the picture cannot be dreamt with its shorter side at {self.size}: {why}; leave out size")
        why = "units at positions are" if placed else "the network runs on no other size; the picture is"
        return fitted(model, source, "picture"), [f"{why} dreamt at {native[0]}×{native[1]}, cut to fit"]

    def journey(self, request: Request, result: VisualizeResult) -> NDArray[np.uint8]:
        """(units, seeds, zoom, H, W, C): the result's pictures, and each frame enlarged and dreamt on."""
        targets, optics = list(request.targets), Optics.of(request.model)
        film = [result.images]
        todo = self.jobs(request, targets, optics)
        rows = {target.text: u for u, target in enumerate(targets)}
        done = 0
        for frame in range(1, self.zoom):
            film.append(np.zeros_like(result.images))
            for job in todo:
                entries = [(target, k) for target in job.targets for k in range(self.seeds)]
                current = {(t.text, k): zoomed(_planes(film[-2][rows[t.text], k]), self.zoom_scale) for t, k in entries}

                def recipe(some: Sequence[Entry], job: Job = job, current: Mapping[Any, Tensor] = current) -> Recipe:
                    return self._recipe(Brief(job.scene, optics, some, request), [current[t.text, k] for t, k in some])

                steps = recipe(entries[:1]).steps
                total = len(targets) * self.seeds * steps

                def advance(pictures: int, frame: int = frame, total: int = total) -> None:
                    nonlocal done
                    done += pictures
                    request.progress(min(total + done, total * self.zoom), total * self.zoom)

                terms = Terms(self.seeds, request.seed + frame, self.minimize, self.batch, alone=self.alone(request))
                for (target, k), one in zip(
                    entries, render(request.model, optics, job, recipe, terms, advance), strict=True
                ):
                    film[-1][rows[target.text], k] = one.picture
        return np.stack(film, 2)


def default_layer(model: Model) -> str:
    """A layer about two thirds of the way into the network, where objects' parts are: what is dreamt if nothing is named.

    >>> default_layer(penlight.load("letters"))     # doctest: +SKIP
    'conv3'
    """
    order = list(model.layers)
    stop = order.index(model.class_layer) if model.class_layer in order else len(order)
    maps = [path for path in order[:stop] if len(model.layers[path].positions) > 1 and _is_map(model.layers[path])]
    maps = [path for path in maps if model.layers[path].alias_of is None] or order[:1]
    # the result of a block says more than the parts inside it
    blocks = [path for path in maps if any(other.startswith(f"{path}.") for other in order)]
    several = blocks if len(blocks) >= 3 else maps
    return several[min(len(several) - 1, math.floor(_DEEP * len(several)))]


def _is_map(layer: Layer) -> bool:
    return all(n > 1 for n in layer.positions)


def fitted(model: Model, source: Any, what: str, size: Size | None = None) -> NDArray[np.uint8]:
    """A picture for the network, (H, W, C): a file, `data:N`, or an array (H, W, C) uint8; at `size`, by default the network's."""
    contract = model.contract
    if isinstance(source, str) and source.startswith("data:"):
        kept = texts.as_pictures(model, texts.picture(model, source)[None])[0].cpu()
        values = (kept * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        if size is None or size == values.shape[:2]:
            return np.ascontiguousarray(values)
        source = values
    if contract.kind != "image":
        raise BadInput(f"the network takes arrays of {list(contract.shape)}; give option {what} as data:N")
    goal = contract if size is None else replace(contract, shape=(contract.channels, *size), crop=1.0)
    opened = source if isinstance(source, str) else _image(source, what)
    return np.ascontiguousarray(read_picture(opened, goal).transpose(1, 2, 0))


def _image(values: Any, what: str) -> Image.Image:
    array = np.asarray(values)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise BadInput(
            f"option {what} is an array of {array.dtype} {list(array.shape)}; give (H, W), (H, W, 3) or (H, W, 4) uint8"
        )
    return Image.fromarray(array)


def _size(source: Any, native: Size) -> Size:
    """(H, W) of a picture as it is looked at; `native` where only reading it will say what is wrong."""
    if not isinstance(source, str):
        shape = np.asarray(source).shape
        return (shape[0], shape[1]) if len(shape) > 1 else native
    if source.startswith("data:"):
        return native
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(source) as image:
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return native
    return (width, height) if turned else (height, width)


def _guided(model: Model, target: Target, guide: NDArray[np.uint8]) -> Target:
    """The same layer, drawn to the guide (H, W, C)."""
    if not isinstance(target.objective, Energy) or target.objective.index is not None:
        raise BadOption(f"a guide leads a whole layer; write layer({target.layers[-1]}) instead of {target.text!r}")
    layer = target.objective.layer
    seen = texts.features(model, layer, _as_input(model, guide))
    return replace(target, objective=Guided(layer, seen.flatten(1) if seen.ndim > 1 else seen[:, None]))


def _as_input(model: Model, picture: NDArray[np.uint8]) -> NDArray[Any]:
    """A picture (H, W, C) as the network's own input (*shape): uint8, or for an array what stands for it before normalisation."""
    if model.contract.kind == "image":
        return np.ascontiguousarray(picture.transpose(2, 0, 1))
    optics = Optics.of(model)
    mean, std = model.contract.statistics()
    seen: NDArray[np.float32] = optics.normalize(_planes(picture).to(optics.mean.device)).cpu().numpy()
    return seen.reshape(model.contract.shape) * std + mean


def _planes(picture: NDArray[Any]) -> Tensor:
    """(H, W, C) uint8 as (C, H, W) in [0, 1]."""
    return torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32) / 255)


def zoomed(picture: Tensor, scale: float) -> Tensor:
    """(C, H, W) enlarged about its middle: position y shows what was at (1 − scale) · y + scale · H / 2, bilinearly."""
    rows, columns = (torch.arange(n) * (1 - scale) + scale * n / 2 for n in picture.shape[1:])
    for axis, at in ((1, rows), (2, columns)):
        low = at.floor().clamp(0, picture.shape[axis] - 1).long()
        high = (low + 1).clamp(max=picture.shape[axis] - 1)
        share = (at - low).clamp(0, 1).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
        picture = picture.index_select(axis, low) * (1 - share) + picture.index_select(axis, high) * share
    return picture


__all__ = ["DeepDream", "default_layer", "fitted", "zoomed"]

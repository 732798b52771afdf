"""Class activation maps: the maps of one layer, each weighted by what it means for the aim, added up."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.errors import BadOption
from penlight.models import Model, Probe
from penlight.models.graph import nodes, operation
from penlight.techniques.explain import aim as aims
from penlight.techniques.explain.aim import Aim
from penlight.techniques.explain.backward import Rule, differentiate, warnings
from penlight.techniques.explain.chunks import chunk_size, in_chunks
from penlight.techniques.explain.explanation import Attribution, Explanation, Scene
from penlight.techniques.explain.fills import FILL_HELP, FILLS, filled
from penlight.techniques.explain.grid import Grid, grids
from penlight.techniques.options import option

_LAYER_HELP = "the layer whose maps are added up; none: the last one before the aim whose places reach it"
_RECTIFIED_HELP = "read a layer that goes straight into a ReLU behind that, as papers do; auto: one that is found, not one that is named"
_RELU_HELP = "keep only what speaks for the aim, as the paper does; without, the map is signed"
_CHUNK = 16  # layers that are looked at in one pass when a layer is searched
_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class _Read:
    """A layer's maps for the scene's input, (units, h, w), and the aim's gradient to them."""

    grid: Grid
    maps: Tensor
    gradient: Tensor
    rectified: bool = False  # read behind the rectifier that takes the layer's output

    def evidence(self) -> dict[str, Any]:
        """What was read, for the user."""
        found: dict[str, Any] = {"layer": self.grid.path, "map": "×".join(map(str, self.grid.shape))}
        if self.rectified:
            found["read"] = "behind its ReLU"
        if self.grid.extra:
            found["tokens that are no place"] = len(self.grid.extra)
        return found


class _OverPlaces(Explanation):
    """What needs a layer with places."""

    def accepts(self, model: Model, aim: Aim) -> str | None:
        if not model.contract.size:
            return "its input is a row of numbers, and the map needs axes in space or time"
        if not grids(model, aim.layer):
            return f"no layer before {aim.layer!r} puts out a map with more than one place"
        return None


class _Cam(_OverPlaces):
    """What all maps of this kind share; a subclass says what a channel's map weighs."""

    layer: str
    relu: bool
    rectified: str

    @abstractmethod
    def weights(self, scene: Scene, read: _Read) -> Tensor:
        """(units,): the weight of every map."""

    def attribute(self, scene: Scene) -> Attribution:
        read = _read(
            scene, _choose(scene, self.layer), self.rectified == "on" or (self.rectified == "auto" and not self.layer)
        )
        weights = self.weights(scene, read)
        summed = torch.einsum("c,c...->...", weights, read.maps)
        values = summed.clamp_min(0) if self.relu else summed
        return Attribution(values, signed=not self.relu, evidence=read.evidence(), notes=self.notes(read, summed))

    def notes(self, read: _Read, summed: Tensor) -> tuple[str, ...]:
        """What the user must know of an empty map."""
        if not bool(read.gradient.any()):
            why = f"the unit has no gradient at the places of {read.grid.path!r}"
            return (f"{why}: it takes other tokens, or what lies between is off; the map says nothing",)
        return _nothing(read, summed) if self.relu else ()


def _nothing(read: _Read, summed: Tensor) -> tuple[str, ...]:
    empty = f"nothing in {read.grid.path!r} speaks for the unit"
    return () if bool((summed > 0).any()) else (empty,)


@dataclass(frozen=True)
class GradCam(_Cam):
    """The layer's maps, weighted by the mean of the aim's gradient over their places."""

    name: ClassVar[str] = "grad-cam"
    paper: ClassVar[str] = "Selvaraju et al. 2017, Grad-CAM, arXiv:1610.02391"
    guarantee: ClassVar[str] = (
        "where the layer's maps speak for the unit, to first order; as coarse as the layer, and it shows where, not which detail"
    )

    layer: str = option("", _LAYER_HELP)
    relu: bool = option(True, _RELU_HELP)
    rectified: str = option("auto", _RECTIFIED_HELP, choices=("auto", "on", "off"))

    def weights(self, scene: Scene, read: _Read) -> Tensor:
        return read.gradient.flatten(1).mean(1)


@dataclass(frozen=True)
class GradCamPlusPlus(_Cam):
    """As Grad-CAM, with weights that give small and repeated objects their due.

    With g the gradient and A the maps, a map weighs Σ α·ReLU(g), α = g² / (2g² + ΣA·g³). The paper's factor exp(value), one for all
    places, is left out: it overflows and changes only the scale. The paper's maps come out of a ReLU; where they do not, ΣA is taken
    over what is above zero, since the fraction has poles otherwise.
    """

    name: ClassVar[str] = "grad-cam++"
    paper: ClassVar[str] = "Chattopadhay et al. 2018, Grad-CAM++, arXiv:1710.11063"
    guarantee: ClassVar[str] = (
        "where the layer's maps speak for the unit, counting every place that does; exact only if the unit is an exponential of a"
        " weighted sum of the maps"
    )

    layer: str = option("", _LAYER_HELP)
    relu: bool = option(True, _RELU_HELP)
    rectified: str = option("auto", _RECTIFIED_HELP, choices=("auto", "on", "off"))

    def weights(self, scene: Scene, read: _Read) -> Tensor:
        gradient = read.gradient.flatten(1).clamp_min(0)  # places that speak against it weigh nothing
        total = read.maps.flatten(1).clamp_min(0).sum(1, keepdim=True)
        # g² divided out of both sides of the fraction: squares of small gradients vanish in 32 bits
        return (gradient / (2 + total * gradient)).sum(1)


@dataclass(frozen=True)
class GuidedGradCam(_OverPlaces):
    """Guided backpropagation, multiplied by the Grad-CAM map."""

    name: ClassVar[str] = "guided-grad-cam"
    paper: ClassVar[str] = "Selvaraju et al. 2017, Grad-CAM, arXiv:1610.02391"
    guarantee: ClassVar[str] = (
        "edges from guided backpropagation, which hardly depend on the unit, where Grad-CAM says the unit looks; fine detail is the"
        " picture's, not the unit's"
    )

    layer: str = option("", _LAYER_HELP)
    enlarge: str = option(
        "nearest",
        "how the map is brought to the input's size; smooth is the paper's, nearest keeps to the layer's places",
        choices=("nearest", "smooth"),
    )
    rectified: str = option("auto", _RECTIFIED_HELP, choices=("auto", "on", "off"))

    def attribute(self, scene: Scene) -> Attribution:
        coarse = GradCam(self.layer, rectified=self.rectified).attribute(scene)
        assert isinstance(coarse.values, Tensor)
        rule = Rule("guided")
        fine = differentiate(scene, scene.x, rule)
        large = enlarged(coarse.values[None, None], scene.x.shape[2:], smooth=self.enlarge == "smooth")
        return replace(
            coarse,
            values=(fine.gradient * large)[0],
            signed=True,
            notes=(*coarse.notes, *warnings(rule, fine.met)),
            colour=scene.model.contract.kind == "image",
        )


@dataclass(frozen=True)
class ScoreCam(_Cam):
    """The layer's maps, each weighted by what the unit makes of the input seen through it; no gradients.

    Every map, enlarged and stretched to [0, 1], masks the input; its score is the unit's value for that, less the value for an input
    with nothing left. A class is scored by its probability after softmax, as the paper asks, any other unit by its value. The score
    is the weight, as the paper defines it; its algorithm takes the softmax over the maps, which of probabilities is nearly even, so
    that the map hardly depends on the class.
    """

    name: ClassVar[str] = "score-cam"
    paper: ClassVar[str] = "Wang et al. 2020, Score-CAM, arXiv:1910.01279"
    guarantee: ClassVar[str] = (
        "where the layer's maps lie through which the network still finds the unit; measured by passes, but masks are soft and overlap"
    )

    layer: str = option("", _LAYER_HELP)
    relu: bool = option(True, _RELU_HELP)
    channels: int = option(0, "only so many maps, those that vary most over their places; 0: all", low=0)
    score: str = option(
        "probability",
        "how a class is scored: its probability, or its value before softmax",
        choices=("probability", "value"),
    )
    weighting: str = option(
        "score",
        "what a map weighs: its score, as in the paper's definition, or the softmax of the scores over the maps, as in its algorithm",
        choices=("score", "softmax"),
    )
    fill: str = option("zeros", FILL_HELP, choices=FILLS)
    rectified: str = option("auto", _RECTIFIED_HELP, choices=("auto", "on", "off"))

    def weights(self, scene: Scene, read: _Read) -> Tensor:
        flat = read.maps.flatten(1)
        varied = torch.nonzero(flat.amax(1) > flat.amin(1)).flatten()  # an even map masks nothing
        if self.channels and len(varied) > self.channels:
            varied = varied[flat[varied].var(1).topk(self.channels).indices.sort().values]
        weights = torch.zeros(len(flat), dtype=flat.dtype, device=flat.device)
        if not len(varied):
            return weights
        scores = self._scores(scene, read.maps[varied])
        weights[varied] = scores.softmax(0) if self.weighting == "softmax" else scores
        return weights

    def notes(self, read: _Read, summed: Tensor) -> tuple[str, ...]:
        return _nothing(read, summed) if self.relu else ()

    def _scores(self, scene: Scene, maps: Tensor) -> Tensor:
        """(units,): how much more the masked inputs excite the unit than one with nothing left."""
        aim, empty, size = self._aim(scene), filled(scene, self.fill), scene.x.shape[2:]

        network = scene.packed()

        def score(start: int, stop: int) -> Tensor:
            masks = enlarged(maps[start:stop, None], size, smooth=True)
            low, high = (bound.reshape(-1, *(1,) * (masks.ndim - 1)) for bound in masks.flatten(1).aminmax(dim=1))
            masks = (masks - low) / (high - low).clamp_min(torch.finfo(masks.dtype).tiny)
            found = aims.scores(scene.model, aim, network, empty + (scene.x - empty) * masks)
            scene.progress(stop, len(maps))
            return found

        found = torch.cat(in_chunks(score, len(maps), chunk_size(scene.model)))
        return found - aims.scores(scene.model, aim, network, empty)

    def _aim(self, scene: Scene) -> Aim:
        layer = scene.model.layers[scene.aim.layer]
        of_class = scene.model.class_layer in (scene.aim.layer, layer.alias_of) and not layer.positions
        return replace(scene.aim, reading="probability") if of_class and self.score == "probability" else scene.aim


def enlarged(maps: Tensor, size: Sequence[int], *, smooth: bool) -> Tensor:
    """(N, C, *places) at another size, linearly between the middles of the places if `smooth`, else each place as a block."""
    if smooth and len(size) in _SMOOTH:
        return F.interpolate(maps, tuple(size), mode=_SMOOTH[len(size)], align_corners=False)
    return F.interpolate(maps, tuple(size), mode="nearest")


def _choose(scene: Scene, path: str) -> Grid:
    """The layer that is asked for, or the last one before the aim whose places reach it."""
    found = grids(scene.model, scene.aim.layer)
    if not path:
        return _last(scene, found)
    layer = scene.model.layer(path)
    if path in found:
        return found[path]
    order = list(scene.model.layers)
    why = f"puts out {list(layer.shape)}, in which no places of the input were found"
    if order.index(path) >= order.index(scene.aim.layer):
        why = "does not run before it"
    last = list(found)[-1]
    raise BadOption(f"layer {path!r} {why}, so it has no map for {scene.aim}; the last that has one is {last!r}")


def _last(scene: Scene, found: dict[str, Grid]) -> Grid:
    """The last layer whose places have a gradient.

    Among rows of tokens it is one as wide as the last of them and no projection, that is, what a block or its norm puts out.
    """
    layers = scene.model.layers
    own = [path for path in found if layers[path].alias_of is None] or list(found)
    wide = next((layers[path].units for path in reversed(own) if _is_row(scene, path)), 0)
    of_blocks = [p for p in own if not _is_row(scene, p) or (layers[p].units == wide and layers[p].kind != "Linear")]
    own = of_blocks or own
    reached: Grid | None = None
    for stop in range(len(own), 0, -_CHUNK):
        some = own[max(0, stop - _CHUNK) : stop]
        gradients = _gradients(scene, some)
        for path in reversed(some):
            gradient = gradients.get(path)
            if gradient is None:
                continue
            reached = reached or found[path]
            if bool(found[path].places(gradient).any()):
                return found[path]
    if reached is None:
        raise BadOption(
            f"{scene.aim} does not depend on any layer with places; name one of its own with the option layer"
        )
    return reached


def _is_row(scene: Scene, path: str) -> bool:
    """Whether a layer puts out tokens, one after the other."""
    layer = scene.model.layers[path]
    return len(layer.positions) == 1 and layer.axis == 2


def _gradients(scene: Scene, paths: Sequence[str]) -> dict[str, Tensor]:
    """The aim's gradient to some layers, (1, units, *positions), without those that do not lead to it."""
    layers, kept, value = scene.model.layers, {}, []  # type: Any, dict[str, Tensor], list[Tensor]
    readers: dict[str, Any] = {path: lambda output, path=path: kept.__setitem__(path, output) for path in paths}
    readers[scene.aim.layer] = lambda output: value.append(scene.aim.read(output, layers[scene.aim.layer]))
    with torch.enable_grad():
        with Probe(scene.network, readers) as probe:
            probe(scene.x.detach().clone().requires_grad_())
        if not value[-1].requires_grad:
            return {}
        leading = {path: output for path, output in kept.items() if output.requires_grad and len(output) == 1}
        found = torch.autograd.grad(value[-1].sum(), list(leading.values()), allow_unused=True) if leading else ()
    return {path: layers[path].units_first(g) for path, g in zip(leading, found, strict=True) if g is not None}


def _read(scene: Scene, grid: Grid, behind: bool) -> _Read:
    """One layer's maps and the aim's gradient to them; `BadOption` if the aim does not depend on the layer.

    With `behind`, a layer whose output goes straight into a ReLU is read behind that, as the papers do.
    """
    layer, kept, value = scene.model.layers[grid.path], [], []  # type: Any, list[Tensor], list[Tensor]
    entry: list[Any] = []

    def cut(output: Tensor) -> Tensor:
        kept.append(output.detach().clone().requires_grad_())
        apart = kept[-1].clone()  # what writes into its input leaves the map as it is
        entry.append(apart.grad_fn)
        return apart

    def read(output: Tensor) -> None:
        value.append(scene.aim.read(output, scene.model.layers[scene.aim.layer]))

    given: list[Tensor] = []
    with torch.enable_grad():
        with Probe(scene.network, {grid.path: cut, scene.aim.layer: read}) as probe:
            probe(scene.x)
        gradient = None
        if value[-1].requires_grad:
            gate = _gate(value[-1].grad_fn, entry[-1]) if behind else None
            if gate is not None:
                gate.register_prehook(lambda grads: given.append(grads[0]))
            gradient = torch.autograd.grad(value[-1].sum(), kept[-1], allow_unused=True)[0]
    if gradient is None:
        raise BadOption(f"{scene.aim} does not depend on layer {grid.path!r}; name a layer on the way to it")
    if len(kept[-1]) != 1:
        raise BadOption(f"layer {grid.path!r} puts out {len(kept[-1])} rows for one input; name another layer")
    found = (kept[-1].clamp_min(0), given[-1]) if given else (kept[-1], gradient)
    maps, slope = (grid.places(layer.units_first(t.detach()))[0] for t in found)
    return _Read(grid, maps, slope, bool(given))


def _gate(root: Any, entry: Any) -> Any:
    """The ReLU that alone takes what `entry` puts out; None if there is none."""
    takers = [node for node in nodes(root) if any(below is entry for below, _ in node.next_functions)]
    return takers[0] if len(takers) == 1 and operation(takers[0]) == "Relu" else None

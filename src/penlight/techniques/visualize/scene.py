"""Where a layer's units are looked at: how large a picture, which part of it the network sees at a time, which position answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from penlight.errors import BadOption, CannotRun
from penlight.inputs import InputContract
from penlight.models import Layer, Model, Probe
from penlight.techniques.visualize.objectives import centre
from penlight.techniques.visualize.parameterization import resized
from penlight.techniques.visualize.rescue import open_last
from penlight.techniques.visualize.schedule import stream

LARGE = 96  # pixels: from this side on, a network is looked at through windows
_PICTURE, _VIEW = 224 / 224, 192 / 224  # of the network's own side; measured, see docs/visualize.md
_NEAR = 128 / 224
_GRID = 32  # the stride of most networks' last layers
_SAMPLES = 4
_FAILS = (CannotRun, RuntimeError, ValueError, IndexError, TypeError, AssertionError)
Size = tuple[int, int]


@dataclass(frozen=True)
class Optics:
    """Between pictures and the network: pictures are (N, C, H, W) in [0, 1], the network takes (value − mean) / std in its own shape.

    An array has no bounds of its own: here [0, 1] stands for `SPAN` standard deviations either side of the mean.
    """

    contract: InputContract
    mean: Tensor  # (C, 1, 1)
    std: Tensor
    neutral: Tensor  # where a picture starts and what it stays near
    shape: tuple[int, int, int]  # (C, H, W) of one whole input as a picture

    SPAN = 3.0

    @classmethod
    def of(cls, model: Model) -> Optics:
        contract, device = model.contract, model.device
        shape = as_picture(contract.shape)
        if contract.kind == "array":
            half = torch.full((shape[0], 1, 1), 0.5, device=device)
            return cls(contract, half, half / cls.SPAN, half, shape)
        mean, std = (torch.from_numpy(values).to(device) for values in contract.statistics())
        inside = bool(
            ((mean > 0.05) & (mean < 0.95)).all()
        )  # a mean of 0 says that nothing is known, not that black is usual
        return cls(contract, mean, std, mean if inside else torch.full_like(mean, 0.5), shape)

    def normalize(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same as the network sees it."""
        return (pictures - self.mean) / self.std

    def reshape(self, values: Tensor) -> Tensor:
        """Normalised pictures in the shape the network takes."""
        return values if self.contract.kind == "image" else values.reshape(len(values), *self.contract.shape)


def as_picture(shape: Sequence[int]) -> tuple[int, int, int]:
    """An input's shape as (C, H, W): a vector (F,) is (1, 1, F), a series (C, L) is (C, 1, L), further axes are stacked in H."""
    if len(shape) == 1:
        return (1, 1, shape[0])
    return (shape[0], math.prod(shape[1:-1]), shape[-1])


@dataclass(frozen=True)
class Scene:
    """How the units of one layer are looked at.

    kind        "field": the receptive field of one position; "window": windows of a larger picture; "whole": the input as it is;
                "canvas": a picture of any size, which is measured as an input of the view's size
    picture     (H, W) of what is kept; `margin` pixels more on every side are optimised and moved about
    view        (H, W) the network sees at a time
    middle      of the map the network makes of the view: the position that answers
    stride      of the layer, in pixels, for a "field"
    linear      whether the units are linear in the input (before a last ReLU): then the answer is known, their weights
    """

    layer: Layer
    kind: str
    picture: Size
    view: Size
    middle: tuple[int, ...]
    margin: int = 0
    stride: Size = (1, 1)
    linear: bool = False

    def shown(self, pictures: Tensor) -> Tensor:
        """Pictures as kept, (N, C, H, W), at the size the network is shown them whole."""
        return resized(pictures, self.view) if self.kind == "canvas" else pictures


@dataclass(frozen=True)
class Wish:
    """What is wanted of a scene.

    size      > 0: the shorter side the user wants
    placed    the network's own input, where units name positions of their own
    whole     more than what one position sees
    windows   large pictures are looked at through windows
    """

    size: int = 0
    placed: bool = False
    whole: bool = False
    windows: bool = True


def plan(model: Model, network: nn.Module, optics: Optics, layer: Layer, wish: Wish) -> Scene:
    """Choose a scene for a layer."""
    scene = _choose(model, network, optics, layer, wish)
    if scene.kind != "window" and linear(scene, network, optics):
        return replace(scene, linear=True, margin=0)
    return scene


def linear(scene: Scene, network: nn.Module, optics: Optics) -> bool:
    """Whether the gradient of the layer's middle is the same at black, white and random pictures."""
    shape = (optics.shape[0], *scene.view)
    random = torch.rand((_SAMPLES, *shape), generator=stream("linear"))
    pictures = torch.cat([torch.zeros(1, *shape), torch.ones(1, *shape), random]).to(optics.mean.device)
    weights = torch.rand(scene.layer.units, generator=stream("weights")).to(optics.mean.device) + 0.5
    total: list[Tensor] = []

    def read(output: Tensor) -> None:
        open_last(output)
        at: tuple[slice | int, ...] = (slice(None), slice(None), *scene.middle)
        total.append((scene.layer.units_first(output)[at] * weights).sum())

    with torch.inference_mode(False), torch.enable_grad(), Probe(network, {scene.layer.path: read}) as probe:
        leaf = pictures.clone().requires_grad_(True)
        probe(optics.reshape(optics.normalize(leaf)))
        if not total[0].requires_grad:
            return False
        (gradient,) = torch.autograd.grad(total[0], leaf, allow_unused=True)
    if gradient is None or not gradient.any():
        return False
    return bool((gradient - gradient[0]).abs().max() <= 1e-4 * gradient.abs().max())


def _choose(model: Model, network: nn.Module, optics: Optics, layer: Layer, wish: Wish) -> Scene:
    native, size = optics.shape[1:], wish.size
    if model.contract.kind != "image":
        if size:
            raise BadOption(
                f"option size fits pictures; {model.reference} takes arrays of {list(model.contract.shape)}: leave it out"
            )
        return Scene(layer, "whole", native, native, centre(layer.positions))
    if wish.placed:
        if size:
            raise BadOption(
                "option size does not go with single positions, which lie in the network's own input; leave it out"
            )
        return Scene(layer, "whole", native, native, centre(layer.positions))
    whole = _whole(network, optics, layer, size, wish.windows)
    field = None if wish.whole else _field(model, network, optics, layer)
    # a field nearly as large as the picture is better looked at through windows than in one piece
    most = whole.view if whole.kind != "window" else tuple(int(n * _NEAR) for n in whole.picture)
    smaller = field is not None and all(f <= m for f, m in zip(field.picture, most, strict=True))
    if field is None or not smaller or (size and min(field.picture) > size):
        return whole
    return field if not size else framed(field, whole.picture, network, optics)


def _whole(network: nn.Module, optics: Optics, layer: Layer, size: int, windows: bool) -> Scene:
    native = optics.shape[1:]
    large = windows and min(native) >= LARGE
    picture = _scaled(native, size or round(min(native) * (_PICTURE if large else 1)))
    view = _view(picture) if large else picture
    seen = _both(network, optics, layer, picture, view)
    if seen is not None:
        return Scene(layer, "window" if large else "whole", picture, view, centre(seen))
    if size and picture != native:
        raise BadOption(
            f"layer {layer.path!r} does not run on pictures of {picture[0]}×{picture[1]}; leave out size or give {min(native)}"
        )
    return Scene(layer, "window" if large else "whole", native, native, centre(layer.positions))


def _both(network: nn.Module, optics: Optics, layer: Layer, picture: Size, view: Size) -> tuple[int, ...] | None:
    """The map of the view, where the layer runs on the whole picture too, on which it is measured."""
    return None if answers(network, optics, layer, picture) is None else answers(network, optics, layer, view)


def _view(picture: Size) -> Size:
    """What is seen of a large picture at a time: a whole number of the last layers' steps, so that no row is worked on in vain."""
    height, width = (max(_GRID, int(n * _VIEW / _PICTURE) // _GRID * _GRID) for n in picture)
    return height, width


def _scaled(native: Size, shorter: int) -> Size:
    low = min(native)
    return (max(1, round(native[0] * shorter / low)), max(1, round(native[1] * shorter / low)))


def _field(model: Model, network: nn.Module, optics: Optics, layer: Layer) -> Scene | None:
    """The smallest picture whose middle position sees nothing but picture; None where there is none smaller than the input."""
    found = model.lines.get(layer.path, ())
    if len(found) != 2 or len(layer.positions) != 2:
        return None
    offsets = []
    for line in found:
        size = line.size
        inner = [] if size is None else [p for p in range(len(line.first)) if line.last[p] - line.first[p] + 1 == size]
        if not inner:
            return None
        p = min(inner, key=lambda at: abs(at - len(line.first) // 2))
        offsets.append((int(line.first[p]) - line.stride * p, line.stride, int(size or 0)))
    at = [max(0, math.ceil(-offset / stride)) for offset, stride, _ in offsets]
    for _ in range(8):
        height, width = (offset + stride * p + size for p, (offset, stride, size) in zip(at, offsets, strict=True))
        picture = (height, width)
        if any(side > most for side, most in zip(picture, optics.shape[1:], strict=True)):
            return None
        shape = answers(network, optics, layer, picture)
        if shape is None:
            return None
        middle = list(centre(shape))
        if middle == at:
            margin = min(4, min(picture) // 16)
            return Scene(layer, "field", picture, picture, tuple(at), margin, (offsets[0][1], offsets[1][1]))
        at = [m if m > p else p + (m < p) for m, p in zip(middle, at, strict=True)]
    return None


def framed(scene: Scene, size: Size, network: nn.Module, optics: Optics) -> Scene:
    """The scene with `size` for its pictures, so that pictures of several layers fit into one result."""
    if scene.picture == size:
        return scene
    if scene.kind == "window" and scene.view != optics.shape[1:]:
        view = _view(size)
        seen = _both(network, optics, scene.layer, size, view)
        if seen is not None:
            return replace(scene, picture=size, view=view, middle=centre(seen))
    return replace(scene, picture=size)


def placement(scene: Scene, network: nn.Module, optics: Optics) -> Size:
    """Top left corner of the view of a "field" in a larger picture, such that the middle position of the picture sees the same."""
    if scene.picture == scene.view:
        return (0, 0)
    positions = answers(network, optics, scene.layer, scene.picture)
    if positions is None:
        raise CannotRun(
            f"layer {scene.layer.path!r} does not run on pictures of {scene.picture[0]}×{scene.picture[1]}; ask for it alone"
        )
    down, right = (stride * (b - a) for stride, a, b in zip(scene.stride, scene.middle, centre(positions), strict=True))
    return (down, right)


def answers(network: nn.Module, optics: Optics, layer: Layer, size: Size) -> tuple[int, ...] | None:
    """Sizes of the map that the layer puts out when the network looks at a picture of `size`; None where it does not run."""
    seen: list[tuple[int, ...]] = []

    def read(output: Tensor) -> None:
        if output.ndim == len(layer.shape) + 1 and layer.units_first(output).shape[1] == layer.units:
            seen.append(tuple(layer.units_first(output).shape[2:]))

    x = optics.mean.new_zeros((1, optics.shape[0], *size))
    try:
        with torch.no_grad(), Probe(network, {layer.path: read}) as probe:
            probe(optics.reshape(x))
    except _FAILS:
        return None
    return seen[0] if seen and min(seen[0], default=1) > 0 else None

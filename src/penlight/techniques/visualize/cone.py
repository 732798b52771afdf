"""A network that computes of its convolutions only what one position of a later layer sees: its cone.

The unit in the middle of a 7 × 7 map needs one of the 49 positions of its own convolution, 9 of a 3 × 3 convolution's before it, and so
on down to the picture. Which positions those are is found by probing, as receptive fields are: NaN in the rows of a convolution's output
that lie outside reaches the unit if and only if it depends on them. What is left out is zero; everything else runs as it is. The result
is held against the whole network's, outputs and gradients, before it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models import Layer, Probe
from penlight.models.probe import frozen_copy, listening
from penlight.techniques.visualize.objectives import centre
from penlight.techniques.visualize.schedule import stream

_PAYS = 0.55  # share of its map from which a convolution is left whole
_SAVES = 0.4  # share of the work that may be left; above it, cutting and padding take what is saved
_AT_ONCE = 64  # poisoned inputs in one pass
_ALIKE = 1e-4  # of the largest value: how far what comes out may be from the whole network's
_FAILS = (CannotRun, RuntimeError, ValueError, IndexError, TypeError, AssertionError)


@dataclass(frozen=True, eq=False)
class Cone:
    """A copy of a network that gives the same values at one position of one layer, for inputs of `shape` (without the batch axis)."""

    network: nn.Module
    shape: tuple[int, ...]


def cone(network: nn.Module, layer: Layer, position: Sequence[int] | None, x: Tensor) -> Cone | None:
    """The cone of a layer's `position`, None: the middle, for inputs like `x` (1, …); None where there is none, or it saves little."""
    try:
        with torch.inference_mode(False), torch.backends.cudnn.flags(enabled=False):  # cuDNN's kernels smear NaN
            sizes, work, middle = _convolutions(network, layer, x)
            position = middle if position is None else position
            boxes = _boxes(network, layer, position, x, sizes) if sizes else {}
            saved = sum(_work(*sizes[path]) * (1 - _share(box, sizes[path][1])) for path, box in boxes.items())
            if not boxes or work - saved > _SAVES * work:
                return None
            twin = frozen_copy(network, shared=network.parameters())
            for path, box in boxes.items():
                parent, _, name = path.rpartition(".")
                setattr(twin.get_submodule(parent), name, _Part(twin.get_submodule(path), box, sizes[path][1]))
            return Cone(twin, tuple(x.shape[1:])) if _alike(network, twin, layer, position, x) else None
    except _FAILS:
        return None


@dataclass(frozen=True)
class _Box:
    """Rows `top` to `bottom` and columns `left` to `right` of a map, the ends left out."""

    top: int
    bottom: int
    left: int
    right: int


def _share(box: _Box, size: tuple[int, int]) -> float:
    return (box.bottom - box.top) * (box.right - box.left) / (size[0] * size[1])


class _Part(nn.Module):
    """Puts out what `conv` puts out within a box of its map (H, W), and zeros around it."""

    def __init__(self, conv: Any, box: _Box, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.box = conv, box
        spans = ((box.top, box.bottom), (box.left, box.right))
        self.spans = [
            (first * s - p, (last - 1) * s - p + d * (k - 1) + 1)
            for (first, last), s, p, d, k in zip(
                spans, conv.stride, conv.padding, conv.dilation, conv.kernel_size, strict=True
            )
        ]
        self.around = (box.left, size[1] - box.right, box.top, size[0] - box.bottom)

    def forward(self, x: Tensor) -> Tensor:
        conv, edges = self.conv, list[int]()
        for (start, stop), length in zip(self.spans[::-1], (x.shape[3], x.shape[2]), strict=True):
            edges += [max(0, -start), max(0, stop - length)]
        (top, bottom), (left, right) = self.spans
        seen = x[..., max(0, top) : bottom, max(0, left) : right]
        seen = F.pad(seen, edges) if any(edges) else seen
        return F.pad(F.conv2d(seen, conv.weight, conv.bias, conv.stride, 0, conv.dilation, conv.groups), self.around)


Sizes = dict[str, tuple[nn.Conv2d, tuple[int, int]]]


def _work(module: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-adds of a convolution whose map is (H, W)."""
    weight = getattr(module, "weight", None)
    return weight.numel() * size[0] * size[1] if isinstance(weight, Tensor) and weight.ndim == 4 else 0


def _convolutions(network: nn.Module, layer: Layer, x: Tensor) -> tuple[Sizes, int, tuple[int, ...]]:
    """What runs on the way to the layer, and the middle of its map.

    Path → convolution and its map (H, W), for the plain ones that run once; the multiply-adds of all.
    """
    calls: dict[nn.Module, list[tuple[int, int]]] = {}
    middle: list[tuple[int, ...]] = []

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            calls.setdefault(module, []).append((output.shape[2], output.shape[3]))

    def read(output: Tensor) -> None:
        middle.append(centre(layer.units_first(output).shape[2:]))

    with torch.no_grad(), listening(network, after, lambda *_: None), Probe(network, {layer.path: read}) as probe:
        probe(x)
    found = {
        path: (module, calls[module][0])
        for path, module in network.named_modules()
        if type(module) is nn.Conv2d
        and len(calls.get(module, ())) == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    }
    return found, sum(_work(module, size) for module, sizes in calls.items() for size in sizes), middle[0]


def _boxes(network: nn.Module, layer: Layer, position: Sequence[int], x: Tensor, sizes: Sizes) -> dict[str, _Box]:
    """What the position sees of each convolution's map, where that is well below the whole.

    Found by halving: as many rows, or columns, as can be poisoned from one side before the position turns into NaN.
    """
    asked = [(path, side) for path in sizes for side in range(4)]
    spared, struck = dict.fromkeys(asked, 0), {(path, side): sizes[path][1][side // 2] for path, side in asked}
    first = True
    while open_ := [one for one in asked if struck[one] - spared[one] > 1]:
        for start in range(0, len(open_), _AT_ONCE):
            some = open_[start : start + _AT_ONCE]
            # most maps of a network are needed from end to end: one row tells
            tried = {one: 1 if first else (spared[one] + struck[one]) // 2 for one in some}
            for one, reached in zip(tried, _reached(network, layer, position, x, tried), strict=True):
                (struck if reached else spared)[one] = tried[one]
        first = False
    found = {}
    for path, (_, (height, width)) in sizes.items():
        top, bottom, left, right = (spared[path, side] for side in range(4))
        box = _Box(top, height - bottom, left, width - right)
        if box.top < box.bottom and box.left < box.right and _share(box, (height, width)) <= _PAYS:
            found[path] = box
    return found


def _reached(
    network: nn.Module, layer: Layer, position: Sequence[int], x: Tensor, tried: dict[tuple[str, int], int]
) -> list[bool]:
    """Whether the position turns into NaN with so many rows from the top, the bottom, columns from the left, the right."""
    rows: dict[str, list[tuple[int, int, int]]] = {}
    for n, ((path, side), count) in enumerate(tried.items()):
        rows.setdefault(path, []).append((n, side, count))
    kept: list[Tensor] = []

    def poison(path: str) -> Any:
        def write(output: Tensor) -> Tensor:
            changed = output.clone()
            for n, side, count in rows.get(path, ()):
                axis = 1 + side // 2
                start = 0 if side % 2 == 0 else changed.shape[axis + 1] - count
                changed[n].narrow(axis, start, count).fill_(torch.nan)
            if path == layer.path:
                read(changed)
            return changed

        return write

    def read(output: Tensor) -> None:
        kept.append(_values(layer, output, position).isnan().any(1))

    wanted = {layer.path: read, **{path: poison(path) for path in rows}}
    with torch.no_grad(), Probe(network, wanted) as probe:
        probe(x.expand(len(tried), *x.shape[1:]).contiguous())
    return [bool(one) for one in kept[-1]]


def _values(layer: Layer, output: Tensor, position: Sequence[int]) -> Tensor:
    """(N, units) at the position."""
    at: tuple[slice | int, ...] = (slice(None), slice(None), *position)
    return layer.units_first(output)[at]


def _alike(network: nn.Module, twin: nn.Module, layer: Layer, position: Sequence[int], x: Tensor) -> bool:
    """Whether both give the same values and gradients at the position, for inputs of noise."""
    noise = torch.randn((2, *x.shape[1:]), generator=stream("cone")).to(x)
    weights = torch.rand(layer.units, generator=stream("cone", "weights")).to(x) + 0.5
    found = []
    for one in (network, twin):
        kept: list[Tensor] = []

        def read(output: Tensor, kept: list[Tensor] = kept) -> None:
            kept.append(_values(layer, output, position))

        leaf = noise.clone().requires_grad_(True)
        with torch.enable_grad(), Probe(one, {layer.path: read}) as probe:
            probe(leaf)
            (gradient,) = torch.autograd.grad((kept[0] * weights).sum(), leaf, allow_unused=True)
        found.append((kept[0].detach(), torch.zeros_like(leaf) if gradient is None else gradient))
    return all(bool((a - b).abs().max() <= _ALIKE * a.abs().max()) for a, b in zip(*found, strict=True))

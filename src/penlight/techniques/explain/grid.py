"""Where the places of a layer lie: maps of any layout, and tokens whose grid nobody tells.

A transformer's layer puts out T tokens, some of which are patches, row by row, and some are not: class, distillation, registers. The
grid is known from the layer that cut the patches, and which tokens are extra from the network itself: before tokens are mixed, an
extra one is the same for every input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penlight.models import Model, Probe
from penlight.models.layers import Layer
from penlight.models.probe import LOGITS, Reader, split_call, undisturbed

_MOST_EXTRA = 32  # tokens that are no patch
_MOST_MADE = 2  # of them made from the input
_SAME = 1e-6  # of the largest value: a token that moves less does not depend on the input
_CUTTERS = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.Upsample,
    nn.PixelShuffle,
)


@dataclass(frozen=True)
class Grid:
    """The places of one layer: `shape` (h, w) as they lie in the input, and `extra`, the tokens that are no place; () for maps."""

    path: str
    shape: tuple[int, ...]
    extra: tuple[int, ...] = ()

    def places(self, units: Tensor) -> Tensor:
        """(N, units, *positions) → (N, units, *shape), without the extra tokens."""
        if not self.extra:
            return units.reshape(*units.shape[:2], *self.shape)
        kept = [n for n in range(units.shape[2]) if n not in set(self.extra)]
        return units[:, :, kept].reshape(*units.shape[:2], *self.shape)


def grids(model: Model, before: str) -> dict[str, Grid]:
    """The layers that run before the layer `before` and whose outputs have more than one place, by path, in order of execution.

    Layers that only hand an earlier one's values on are among them. A network whose input has no axes in space or time has none.
    """
    size = model.contract.size
    if not size:
        return {}
    known: list[tuple[int, ...]] = []
    rows = _rows(model, before)
    found: dict[str, Grid] = {}
    for path, layer in model.layers.items():
        if path == before:
            break
        grid = _map(model, layer, size, known)
        if grid is None and path in rows:
            grid = _tokens(layer, size, known, rows[path])
        if grid is not None and math.prod(grid.shape) > 1:
            found[path] = grid
    return found


def _map(model: Model, layer: Layer, size: Sequence[int], known: list[tuple[int, ...]]) -> Grid | None:
    """The grid of a layer whose axes are the input's own."""
    where = layer.positions
    if len(where) != len(size):
        return None
    if _cuts(model, layer):
        known.append(where)
        return Grid(layer.path, where)
    if where in known:
        return Grid(layer.path, where)
    if len(size) == 1:  # may be a signal's tokens
        return None
    inside = bool(known) and all(n <= most for n, most in zip(where, known[-1], strict=True))
    if inside and _alike(where, known[-1]):
        return Grid(layer.path, where)
    return Grid(layer.path, where) if not known and _alike(where, size) else None


def _cuts(model: Model, layer: Layer) -> bool:
    return (
        isinstance(model.network.get_submodule(split_call(layer.path)[0]), _CUTTERS) if layer.path != LOGITS else False
    )


def _alike(where: Sequence[int], size: Sequence[int]) -> bool:
    """Whether `size` shrunk by one factor on every axis is `where`, up to rounding."""
    factor = max(n / m for n, m in zip(where, size, strict=True))
    return factor <= 1 and all(abs(m * factor - n) <= 1 for n, m in zip(where, size, strict=True))


def _tokens(layer: Layer, size: Sequence[int], known: list[tuple[int, ...]], same: tuple[int, ...]) -> Grid | None:
    """The grid of a layer that puts out a row of tokens, of which those in `same` are alike for all inputs."""
    count = layer.positions[0]
    shape = _shape(count, len(same), size, known)
    if shape is None:
        return None
    if shape not in known:
        known.append(shape)
    left = count - math.prod(shape)
    return Grid(layer.path, shape, same if len(same) == left else tuple(range(left)))


def _shape(count: int, same: int, size: Sequence[int], known: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The grid in `count` tokens of which `same` are alike for all inputs: the last seen that fits, or one cut evenly from the input."""
    if same > _MOST_EXTRA:
        return None
    # an extra token that was made from the input, as the mean of all patches is, moves with it
    spare = (same,) if same else range(_MOST_MADE + 1)
    for left in spare:
        seen = next((shape for shape in reversed(known) if math.prod(shape) == count - left), None)
        if seen is not None:
            return seen
    if len(size) == 1:
        return (count - same,) if 0 < count - same <= size[0] else None
    for left in spare:
        for patch in range(2, min(size) + 1):
            shape = tuple(n // patch for n in size)
            if all(n % patch == 0 for n in size) and math.prod(shape) == count - left:
                return shape
    return None


def _rows(model: Model, before: str) -> dict[str, tuple[int, ...]]:
    """The layers that put out a row of tokens an input, and which of them the first layer with as many put out alike for two inputs.

    Later layers mix tokens. One whose first axis holds something else than inputs, as windows, is not among them.
    """
    order = list(model.layers)
    paths = [p for p in order[: order.index(before)] if len(model.layers[p].positions) == 1]
    if not paths:
        return {}
    whole: list[str] = []
    first: dict[int, Tensor] = {}

    def reader(path: str) -> Reader:
        def read(output: Tensor) -> None:
            if len(output) == 2:
                whole.append(path)
                first.setdefault(model.layers[path].positions[0], model.layers[path].units_first(output).clone())

        return read

    with undisturbed(model.network), torch.no_grad():
        with Probe(model.network, {path: reader(path) for path in paths}) as probe:
            probe(model.example(2))
    same = {count: _alike_rows(output) for count, output in first.items()}
    return {path: same[model.layers[path].positions[0]] for path in whole}


def _alike_rows(output: Tensor) -> tuple[int, ...]:
    """The tokens of (2, units, tokens) that both inputs share; () if all do, as where the layer's answer is constant."""
    moved = (output[0] - output[1]).abs().amax(0)
    still = torch.nonzero(moved <= _SAME * float(output.abs().max())).flatten().tolist()
    return tuple(still) if len(still) < len(moved) else ()

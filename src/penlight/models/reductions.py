"""Reductions over the positions of maps, at the speed at which memory is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_MANY = 4096  # positions from which a reduction runs faster in two steps
_VECTOR = 32  # a reduction over rows runs at full speed where the rows are a multiple of this many numbers


def units_last(output: Tensor, layout: str) -> Tensor:
    """`output`, laid out as `layout`, as (N, positions, units): a view of channels-last maps and tokens, a copy of others."""
    order = _order(layout, output.ndim)
    if order is None:
        return output.reshape(len(output), -1, 1) if output.ndim > 1 else output.reshape(-1, 1, 1)
    last = output.permute(order)
    return last.unsqueeze(1) if last.ndim == 2 else last.flatten(1, -2)


@lru_cache(maxsize=64)
def _order(layout: str, axes: int) -> tuple[int, ...] | None:
    """So many axes with the batch first and the units last; None where the layout names no units."""
    batch, units = layout.find("N"), layout.find("C")
    if units < 0:
        return None
    return (batch, *(axis for axis in range(axes) if axis not in (batch, units)), units)


def fold(places: int, units: int) -> int:
    """How many neighbouring positions of a map (P, C) count as one with more units, so that reductions run at full speed."""
    most = _VECTOR // math.gcd(units, _VECTOR)
    return most if most <= places else 1


def highest(flat: Tensor) -> Tensor:
    """(N, C) maxima over the positions of (N, P, C)."""
    return _reduced(torch.amax, flat)


def lowest(flat: Tensor) -> Tensor:
    """(N, C) minima over the positions of (N, P, C)."""
    return _reduced(torch.amin, flat)


def _reduced(reduce: Callable[[Tensor, int], Tensor], flat: Tensor) -> Tensor:
    batch, places, units = flat.shape
    together = fold(places, units) if flat.is_contiguous() else 1
    if together > 1:
        even = places // together * together
        folded = flat[:, :even].view(batch, -1, together * units)
        found = reduce(folded, 1).view(batch, together, units)
        flat = found if even == places else torch.cat([found, flat[:, even:]], 1)
    elif places >= _MANY and flat.is_contiguous() and (width := _width(places)) > 1:
        flat = reduce(flat.view(-1, width, units), 1).view(batch, -1, units)
    return reduce(flat, 1)


@lru_cache(maxsize=256)
def _width(places: int) -> int:
    """The divisor of `places` that is nearest to its root from below."""
    return next(n for n in range(math.isqrt(places), 0, -1) if places % n == 0)

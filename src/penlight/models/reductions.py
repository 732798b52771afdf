"""Reductions over the positions of maps, at the speed at which memory is read."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

_VECTOR = 32  # a reduction over rows runs at full speed where the rows are a multiple of this many numbers


def units_last(output: Tensor, layout: str) -> Tensor:
    """`output`, laid out as `layout`, as (N, positions, units): a view of channels-last maps and tokens, a copy of others."""
    batch, units = layout.find("N"), layout.find("C")
    if units < 0:
        return output.reshape(len(output), -1, 1) if output.ndim > 1 else output.reshape(-1, 1, 1)
    last = output.movedim((batch, units), (0, -1))
    return last.unsqueeze(1) if last.ndim == 2 else last.flatten(1, -2)


def folded(batch: int, places: int, units: int) -> tuple[int, int, int] | None:
    """The shape of a map (N, P, C) in which some neighbouring positions count as one with more units, where that is faster."""
    fold = _VECTOR // math.gcd(units, _VECTOR)
    return (batch, places // fold, fold * units) if fold > 1 and places % fold == 0 else None


def highest(flat: Tensor) -> Tensor:
    """(N, C) maxima over the positions of (N, P, C)."""
    return _reduced(torch.amax, flat)


def lowest(flat: Tensor) -> Tensor:
    """(N, C) minima over the positions of (N, P, C)."""
    return _reduced(torch.amin, flat)


def _reduced(reduce: Callable[[Tensor, int], Tensor], flat: Tensor) -> Tensor:
    shape = folded(*flat.shape) if flat.is_contiguous() else None
    if shape is not None:
        flat = reduce(flat.view(shape), 1).view(len(flat), -1, flat.shape[2])
    return reduce(flat, 1)

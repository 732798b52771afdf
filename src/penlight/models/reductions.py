"""Reductions over the positions of maps, at the speed at which memory is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MANY = 4096  # positions from which a reduction runs faster in two steps
_AT_ONCE = 2**18  # numbers compared in one go
_VECTOR = 32  # a reduction over rows runs at full speed where the rows are a multiple of this many numbers


def units_last(output: Tensor, layout: str) -> Tensor:
    """`output`, laid out as `layout`, as (N, positions, units): a view of channels-last maps and tokens, a copy of others."""
    if layout == "NCHW" and output.ndim == 4:
        batch, units, height, width = output.shape
        places = height * width
        if output.stride() == (places * units, 1, width * units, units):
            return output.as_strided((batch, places, units), (places * units, units, 1))
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


def highest(flat: Tensor, out: Tensor | None = None) -> Tensor:
    """(N, C) maxima over the positions of (N, P, C)."""
    return _reduced(torch.amax, flat, out)


def lowest(flat: Tensor) -> Tensor:
    """(N, C) minima over the positions of (N, P, C)."""
    return _reduced(torch.amin, flat, None)


def _reduced(reduce: Callable[..., Tensor], flat: Tensor, out: Tensor | None) -> Tensor:
    batch, places, units = flat.shape
    together, width = _steps(places, units)
    if together > 1 and flat.is_contiguous():
        even = places // together * together
        folded = (flat if even == places else flat[:, :even]).view(batch, -1, together * units)
        found = reduce(folded, 1).view(batch, together, units)
        flat = found if even == places else torch.cat([found, flat[:, even:]], 1)
    elif width > 1 and flat.is_contiguous():
        flat = reduce(flat.view(-1, width, units), 1).view(batch, -1, units)
    return reduce(flat, 1) if out is None else reduce(flat, 1, out=out)


@lru_cache(maxsize=1024)
def _steps(places: int, units: int) -> tuple[int, int]:
    """How many neighbouring positions of a map (P, C) are folded into one, else how many are reduced first: 1 where that does not pay."""
    together = fold(places, units)
    return together, _width(places) if together == 1 and places >= _MANY else 1


def _width(places: int) -> int:
    """The divisor of `places` that is nearest to its root from below."""
    return next(n for n in range(math.isqrt(places), 0, -1) if places % n == 0)


class Strips:
    """Maxima over the positions of maps (N, P, C) by way of the maxima of strips, from which a maximum's place is found again.

    A strip holds the positions `first`, `first` + step, … (S,), `length` of them; what is left over at the end are strips of one.
    """

    def __init__(self, places: int, units: int) -> None:
        self._places, self._units, self._step = places, units, fold(places, units)
        rows = places // self._step
        self._length = _near(rows, 2 * math.isqrt(rows))
        blocks = rows // self._length
        self._even = blocks * self._length * self._step
        self._cut = (-1, blocks, self._length, self._step * units)
        firsts = np.arange(blocks)[:, None] * (self._length * self._step) + np.arange(self._step)
        self._first = np.concatenate([firsts.reshape(-1), np.arange(self._even, places)])
        self._within = np.arange(self._length) * self._step

    def of(self, flat: Tensor) -> Tensor:
        """(N, S, C) of contiguous maps (N, P, C); the maxima of all are the maxima of these."""
        even = flat if self._even == self._places else flat[:, : self._even]
        found = torch.amax(even.view(self._cut), 2).view(len(flat), -1, self._units)
        return found if self._even == self._places else torch.cat([found, flat[:, self._even :]], 1)

    def find(
        self, flat: NDArray[Any], strips: NDArray[Any], peaks: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any]
    ) -> NDArray[np.intp]:
        """The first positions of `peaks` (n,), the maxima of the units `columns` in the maps `rows`, given what `of` made of `flat`."""
        each = max(1, _AT_ONCE // max(len(self._first), self._length))
        if len(rows) > each:
            parts = [slice(start, start + each) for start in range(0, len(rows), each)]
            return np.concatenate([self.find(flat, strips, peaks[a], rows[a], columns[a]) for a in parts])
        peak = peaks[:, None]
        hits = strips[rows, :, columns] == peak
        starts = self._first[hits.argmax(1)]
        within = starts[:, None] + self._within
        if self._even < self._places:
            np.minimum(within, self._places - 1, out=within)
        here = flat[rows[:, None], within, columns[:, None]] == peak
        found: NDArray[np.intp] = starts + self._step * here.argmax(1)
        if np.count_nonzero(hits) > len(hits):  # strips run side by side: of equal peaks the map itself knows the first
            tied = np.count_nonzero(hits, 1) > 1
            found[tied] = first(flat, peaks[tied], rows[tied], columns[tied])
        return found


def first(flat: NDArray[Any], peaks: NDArray[Any], rows: NDArray[Any], columns: NDArray[Any]) -> NDArray[np.intp]:
    """The first positions of `peaks` (n,) of the units `columns` in the maps `rows` (N, P, C)."""
    each = max(1, _AT_ONCE // flat.shape[1])
    if len(rows) <= each:
        found: NDArray[np.intp] = (flat[rows, :, columns] == peaks[:, None]).argmax(1)
        return found
    parts = [slice(start, start + each) for start in range(0, len(rows), each)]
    return np.concatenate([first(flat, peaks[part], rows[part], columns[part]) for part in parts])


def _near(rows: int, length: int) -> int:
    """The divisor of `rows` that is nearest to `length` from below, unless it is far below: then `length`."""
    divisor = next(n for n in range(length, 0, -1) if rows % n == 0)
    return divisor if divisor * 4 >= length else min(length, rows)

"""Means, covariances and how many directions values use, summed up row by row."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ROWS, _BLOCK = 1024, 96  # samples in one product, and units on its left side
_SINGLE = 8192  # samples whose products are summed in single precision
Numbers = NDArray[np.float64]


def participation(covariance: Numbers, fourth: float = 0.0, samples: int = 0, positions: int = 0) -> float:
    """(Σλ)² / Σλ² of a covariance (U, U): 1 if all units move together, U if each moves alone and as much; 0 if none moves.

    With a covariance of some `samples` of all `positions`, what it would be of all: that a sample is alike itself says nothing, so the
    mean `fourth` power of its distance from the mean counts as often as in all. Gao et al. 2017, bioRxiv 214262.
    """
    trace, square = float(np.trace(covariance)), float((covariance**2).sum())
    if positions > samples > 1:
        others = (samples * square - fourth) / (samples - 1)  # the mean over pairs of two samples
        if others > 0:
            square = others + (fourth - others) / positions
    return min(trace * trace / square, float(len(covariance))) if square > 0 else 0.0


class Rows:
    """Rows (n, U) of float32 gathered in one piece of memory, `most` of them at least.

    It is taken once: small pieces that are taken among a network's maps, and stay, scatter the memory in which the maps have to lie.
    """

    def __init__(self, most: int) -> None:
        self.count, self._most = 0, most
        self._room: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """(count, U) what was gathered since the last `clear`."""
        return torch.empty((0, 0)) if self._room is None else self._room[: self.count]

    def fits(self, more: int) -> bool:
        """Whether so many rows can be added before it is cleared."""
        return self._room is None or self.count + more <= self._room.shape[0] or not self.count

    def next(self, more: int, units: int, device: torch.device) -> Tensor:
        """(more, units) the memory of the next rows, to be written into."""
        if self._room is None or more > self._room.shape[0]:
            self._room = torch.empty((max(self._most, more), units), device=device)
        self.count += more
        return self._room[self.count - more : self.count]

    def clear(self) -> None:
        """Begin anew, in the same memory."""
        self.count = 0


class Moments:
    """Mean and covariance of U numbers, from rows (n, U) float32 that are gathered until a product of them pays.

    Also how often they reach `edge`, or come above zero if it is None, and between which `ends` they lie. `then` is called with rows the
    moment they are worked in, before they are written over.
    """

    def __init__(self, units: int, edge: float | None = None, then: Callable[[Tensor], None] | None = None) -> None:
        self._then = then
        self._waiting = Rows(_ROWS)
        self._shift: Tensor | None = None  # near the mean, so that squares do not cancel
        self._part: Tensor | None = None  # products of the last `_held` rows, where the rows are
        self._count, self._held, self._edge = 0, 0, edge  # rows worked in
        self._first, self._second = np.zeros(units), np.zeros((units, units))
        self._reached = np.zeros(units, np.int64)
        self._high, self._low = np.full(units, -np.inf), np.full(units, np.inf)
        self._fourth = 0.0

    @property
    def reached(self) -> Numbers:
        """(U,) the share of all rows that reach the edge."""
        self._flush()
        return self._reached / max(self._count, 1)

    @property
    def ends(self) -> tuple[Numbers, Numbers]:
        """(U,) each: the largest and the smallest number of all rows."""
        self._flush()
        return self._high, self._low

    def add(self, rows: Tensor, picked: Tensor | None = None) -> None:
        """Count rows (n, U), or those with the numbers `picked`; they are copied."""
        more = (rows if picked is None else picked).shape[0]
        if not self._waiting.fits(more):
            self._flush()
        to = self._waiting.next(more, rows.shape[1], rows.device)
        if picked is None:
            to.copy_(rows)
        elif rows.dtype is torch.float32:
            torch.index_select(rows, 0, picked, out=to)
        else:
            to.copy_(rows.index_select(0, picked))

    @torch.inference_mode()
    def _flush(self) -> None:
        if not self._waiting.count:
            return
        rows = self._waiting.rows
        self._waiting.clear()
        self._count += rows.shape[0]
        if self._then is not None:
            self._then(rows)
        if self._shift is None or self._part is None:
            self._shift, self._part = rows.mean(0), rows.new_zeros(self._second.shape)
        self._high = np.maximum(self._high, rows.amax(0).cpu().numpy())
        self._low = np.minimum(self._low, rows.amin(0).cpu().numpy())
        if self._edge != math.inf:
            reached = torch.empty_like(rows)  # ones and zeros: counting booleans takes five times as long
            torch.ge(rows, self._edge, out=reached) if self._edge is not None else torch.gt(rows, 0, out=reached)
            self._reached += reached.sum(0).cpu().numpy().astype(np.int64)
        rows -= self._shift
        self._first += rows.sum(0).cpu().numpy()
        self._fourth += float(torch.linalg.vector_norm(rows, dim=1).double().pow(4).sum())
        # the covariance is symmetric: the half above its diagonal will do
        for start in range(0, rows.shape[1], _BLOCK):
            part = slice(start, start + _BLOCK)
            self._part[part, start:].addmm_(rows[:, part].T, rows[:, start:])
        self._held += rows.shape[0]
        if self._held >= _SINGLE:
            self._spill()

    @torch.inference_mode()
    def _spill(self) -> None:
        """Work the products into the sums of double precision."""
        if self._part is not None:
            self._second += self._part.cpu().numpy()
            self._part.zero_()
            self._held = 0

    def done(self) -> tuple[Numbers, Numbers]:
        """(mean (U,), covariance (U, U)) of all rows."""
        self._flush()
        self._spill()
        count = max(self._count, 1)
        mean = self._first / count
        shift = 0.0 if self._shift is None else self._shift.double().cpu().numpy()
        second = np.triu(self._second)
        second += np.triu(second, 1).T
        return mean + shift, second / count - np.outer(mean, mean)

    def directions(self, covariance: Numbers, positions: int) -> float:
        """`participation` of all `positions` of which the rows, whose covariance is given, are a sample."""
        return participation(covariance, self._fourth / max(self._count, 1), self._count, positions)

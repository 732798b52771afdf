"""Everything a survey remembers: per unit a few numbers, a histogram and a short list. None of it grows with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.techniques.survey import histogram

_AT_ONCE = 65536  # numbers


@dataclass
class Tally:
    """Sums, extremes, histograms and top lists of T units, fed block by block with inputs in ascending order."""

    units: int
    top: int
    classes: int
    inputs: int = 0
    total: NDArray[np.float64] = field(init=False)  # (T,) of the sums over positions
    peaks: NDArray[np.float64] = field(init=False)  # (T,) of the maxima over positions
    maximum: NDArray[np.float32] = field(init=False)
    minimum: NDArray[np.float32] = field(init=False)
    fired: NDArray[np.int64] = field(init=False)
    counts: Tensor = field(init=False)  # (BINS, T) int32; a column sums to the number of inputs that counted
    class_peaks: NDArray[np.float64] = field(init=False)  # (K, T)
    class_count: NDArray[np.int64] = field(init=False)
    activation: NDArray[np.float32] = field(init=False)  # (T, top), descending, -inf where unfilled
    index: NDArray[np.int64] = field(init=False)
    place: NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        size = self.units
        self.total, self.peaks = np.zeros(size), np.zeros(size)
        self.maximum, self.minimum = np.full(size, -np.inf, np.float32), np.full(size, np.inf, np.float32)
        self.fired = np.zeros(size, np.int64)
        self.counts = torch.zeros((histogram.BINS, size), dtype=torch.int32)
        self.class_peaks, self.class_count = np.zeros((self.classes, size)), np.zeros(self.classes, np.int64)
        self.activation = np.full((size, self.top), -np.inf, np.float32)
        self.index = np.full((size, self.top), -1, np.int64)
        self.place = np.zeros((size, self.top), np.int32)

    @property
    def floor(self) -> NDArray[np.float32]:
        """(T,) what an activation has to exceed to enter the list; an equal one came too late."""
        return self.activation[:, -1]

    def add(
        self, peak: Tensor, total: Tensor, place: Tensor, index: Sequence[int], classes: Sequence[int | None]
    ) -> None:
        """Count a block: (n, T) CPU tensors with a row an input.

        A unit whose map is not finite for an input (NaN, or a sum that overflows) misses that input: it is left out of all its
        numbers, and of its class's mean nothing can be said.
        """
        sums, peaks = (t.sum(0, dtype=torch.float64).numpy() for t in (total, peak))
        values, weights = peak.numpy(), torch.ones(peak.shape, dtype=torch.int32)
        for row, label in enumerate(classes):
            if label is not None:
                self.class_peaks[label] += values[row]
                self.class_count[label] += 1
        low = values
        if not (np.isfinite(sums).all() and np.isfinite(peaks).all()):
            good = torch.isfinite(peak) & torch.isfinite(total)
            self._spoil(good.numpy(), classes)
            weights = good.int()
            sums, peaks = (torch.where(good, t, 0.0).sum(0, dtype=torch.float64).numpy() for t in (total, peak))
            low = torch.where(good, peak, torch.inf).numpy()
            peak = torch.where(good, peak, -torch.inf)
            values = peak.numpy()
        self.inputs += len(values)
        self.total += sums
        self.peaks += peaks
        np.maximum(self.maximum, values.max(0), out=self.maximum)
        np.minimum(self.minimum, low.min(0), out=self.minimum)
        self.fired += np.count_nonzero(values > 0, axis=0)
        self._count(peak, weights)
        self._enter(values, place.numpy(), np.asarray(index, np.int64))

    def _spoil(self, good: NDArray[np.bool_], classes: Sequence[int | None]) -> None:
        for row, label in enumerate(classes):
            if label is not None:
                self.class_peaks[label, ~good[row]] = np.nan

    def _count(self, peak: Tensor, weights: Tensor) -> None:
        """Into the histograms, a few inputs at a time to stay in the cache; neighbouring units mostly share a bin, hence (BINS, T)."""
        counts = self.counts.view(-1)
        wide = torch.int64 if counts.numel() > torch.iinfo(torch.int32).max else torch.int32
        units = torch.arange(self.units, dtype=wide)
        step = max(1, _AT_ONCE // self.units)
        for row in range(0, len(peak), step):
            where = histogram.bins(peak[row : row + step]).to(wide).mul_(self.units).add_(units)
            counts.scatter_add_(0, where.long().view(-1), weights[row : row + step].view(-1))

    def _enter(self, values: NDArray[np.float32], place: NDArray[np.int32], index: NDArray[np.int64]) -> None:
        """Insert what exceeds the floor, the first newcomer of every unit at once, then the second, …"""
        found = np.flatnonzero(values > np.ascontiguousarray(self.floor))
        rows, units = np.divmod(found, self.units)
        order = np.argsort(units, kind="stable")
        rows, units = rows[order], units[order]
        first = np.flatnonzero(np.diff(units, prepend=-1))  # where each unit's newcomers begin
        while len(first):
            self._insert(
                units[first], values[rows[first], units[first]], place[rows[first], units[first]], index[rows[first]]
            )
            following = first + 1
            inside = following < len(units)
            first = following[inside][units[following[inside]] == units[first[inside]]]

    def _insert(
        self, units: NDArray[np.intp], values: NDArray[np.float32], place: NDArray[np.int32], index: NDArray[np.int64]
    ) -> None:
        """One newcomer for each of some units; where it is not above the last one it drops out at the end again."""
        own = self.activation[units]
        rank = (own >= values[:, None]).sum(1, keepdims=True)  # behind those that are equal, which came earlier
        at = np.arange(self.top)
        source = np.where(at > rank, at - 1, at)
        here = at == rank
        for kept, new in ((self.activation, values), (self.index, index), (self.place, place)):
            kept[units] = np.where(here, new[:, None], np.take_along_axis(kept[units], source, 1))

"""Everything a survey remembers: per unit a few numbers, a histogram and a short list. None of it grows with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.techniques.survey import histogram
from penlight.techniques.survey.ranking import Ranking
from penlight.techniques.survey.scores import Scores

_AT_ONCE = 65536  # numbers


@dataclass
class Tally:
    """Sums, extremes, histograms and top lists of T units, fed block by block with inputs in ascending order."""

    units: int
    top: int
    classes: int
    bottom: int = 0
    scores: Scores | None = None
    inputs: int = 0
    total: NDArray[np.float64] = field(init=False)  # (T,) of the sums over positions
    peaks: NDArray[np.float64] = field(init=False)  # (T,) of the maxima over positions
    maximum: NDArray[np.float32] = field(init=False)
    minimum: NDArray[np.float32] = field(init=False)
    fired: NDArray[np.int64] = field(init=False)
    counts: Tensor = field(init=False)  # (BINS, T) int32; a column sums to the number of inputs that counted
    class_peaks: NDArray[np.float64] = field(init=False)  # (K, T)
    class_count: NDArray[np.int64] = field(init=False)
    best: Ranking = field(init=False)
    least: Ranking | None = field(init=False)  # of the negated activations
    entered: NDArray[np.int64] = field(init=False)  # inputs of the last block that stand in a list

    def __post_init__(self) -> None:
        size = self.units
        self.total, self.peaks = np.zeros(size), np.zeros(size)
        self.maximum, self.minimum = np.full(size, -np.inf, np.float32), np.full(size, np.inf, np.float32)
        self.fired = np.zeros(size, np.int64)
        self.counts = torch.zeros((histogram.BINS, size), dtype=torch.int32)
        self.class_peaks, self.class_count = np.zeros((self.classes, size)), np.zeros(self.classes, np.int64)
        self.best = Ranking(size, self.top)
        self.least = Ranking(size, self.bottom) if self.bottom else None
        self.entered = np.zeros(0, np.int64)

    @property
    def floor(self) -> NDArray[np.float32]:
        """(T,) what an activation has to exceed to enter the top list; an equal one came too late."""
        return self.best.floor

    @property
    def ceiling(self) -> NDArray[np.float32] | None:
        """(T,) what an activation has to be below to enter the bottom list, if there is one."""
        return None if self.least is None else -self.least.floor

    def standing(self) -> NDArray[np.int64]:
        """Inputs in any list."""
        lists = [self.best.index, *([self.least.index] if self.least is not None else [])]
        found: NDArray[np.int64] = np.unique(np.concatenate([one.reshape(-1) for one in lists]))
        return found[found >= 0]

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
        if self.scores is not None:
            self.scores.add(values, classes)
        self._enter(values, low, place.numpy(), np.asarray(index, np.int64))

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

    def _enter(
        self, values: NDArray[np.float32], low: NDArray[np.float32], place: NDArray[np.int32], index: NDArray[np.int64]
    ) -> None:
        rows = self.best.enter(values, place, index)
        if self.least is not None:
            rows = np.union1d(rows, self.least.enter(-low, place, index))
        self.entered = index[rows]

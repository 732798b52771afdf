"""How well a unit tells one class from the others: the area under the ROC curve, with the activation as the score.

The area is the share of pairs (input of the class, input of another) in which the former excites the unit more, ties counted half
(Mann & Whitney 1947). Exact, it needs every activation; where that is too much memory, histograms of each class take its place: what is
undecided is then only the pairs that share a bin, at most half of which can be counted wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.techniques.survey import histogram

EXACT, BINNED = "exact", "histogram"
_BITS = 4  # of the fraction: a bin is at most a sixteenth of its value wide
_MB = 1_000_000

Areas = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def way(inputs: int, units: int, classes: int, memory: int) -> str:
    """How classes are scored within `memory` MB: `EXACT`, `BINNED`, or in words why not."""
    if not classes:
        return "the data has no labels"
    if not memory:
        return "not asked for"
    exact, binned = 4 * inputs * units, 4 * histogram.size(_BITS) * units * classes
    if exact <= memory * _MB:
        return EXACT
    if binned <= memory * _MB:
        return BINNED
    needed = -(-min(exact, binned) // _MB)
    return f"{units:,} units and {classes:,} classes need {needed:,} MB, more than {memory:,}; survey fewer layers, or allow more"


class Scores:
    """What the areas of T units are worked out from, fed block by block."""

    def __init__(self, how: str, inputs: int, units: int, classes: int) -> None:
        self.how, self.classes, self._units = how, classes, units
        self._values = np.empty((inputs if how == EXACT else 0, units), np.float32)
        self._class = np.empty(inputs if how == EXACT else 0, np.int32)
        self._counts = torch.from_numpy(
            np.zeros((histogram.size(_BITS) if how == BINNED else 0, classes, units), np.int32)
        )
        self._filled = 0

    def add(self, values: NDArray[np.float32], classes: Sequence[int | None]) -> None:
        """Count (n, T) activations, -inf where a unit missed the input, of inputs of known class."""
        rows = [row for row, label in enumerate(classes) if label is not None]
        if not rows:
            return
        labels = np.array([classes[row] for row in rows], np.int64)
        known = values if len(rows) == len(values) else values[rows]
        if self.how == EXACT:
            part = slice(self._filled, self._filled + len(rows))
            self._values[part], self._class[part] = known, labels
            self._filled = part.stop
            return
        flat, units = self._counts.view(-1), torch.arange(self._units)
        for row, label in zip(torch.from_numpy(known), labels.tolist(), strict=True):
            where = (histogram.bins(row, _BITS).long() * self.classes + label) * self._units + units
            flat.scatter_add_(0, where, torch.isfinite(row).int())

    def evidence(self, columns: slice) -> dict[str, NDArray[Any]]:
        """`peaks` (U, n) or `class_histogram` (U, K, bins) of some units, and the inputs' classes."""
        return {
            "peaks": np.ascontiguousarray(self._values[: self._filled, columns].T),
            "class_histogram": np.ascontiguousarray(self._counts[:, :, columns].numpy().transpose(2, 1, 0)),
        }

    @property
    def peak_class(self) -> NDArray[np.int32]:
        """(n,) classes of the inputs in `peaks`."""
        return self._class[: self._filled].copy()


def areas(how: str, peaks: NDArray[Any], peak_class: NDArray[Any], counts: NDArray[Any], classes: int) -> Areas:
    """(area, most it can be off, z), each (U, K) float32, from what `Scores.evidence` gives; NaN for a class without inputs or others."""
    if how == EXACT:
        rows = [_exact(values, peak_class, classes) for values in peaks]
    else:
        rows = [_binned(table[:, table.any(0)].astype(np.int64)) for table in counts]
    if not rows:
        return tuple(np.zeros((0, classes), np.float32) for _ in range(3))  # type: ignore[return-value]
    area, error, z = (np.stack(column).astype(np.float32) for column in zip(*rows, strict=True))
    return area, error, z


def _exact(values: NDArray[Any], labels: NDArray[Any], classes: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    good = np.isfinite(values)
    if not good.all():
        values, labels = values[good], labels[good]
    order = np.argsort(values)
    risen = np.diff(values[order], prepend=-np.inf) > 0
    tied = np.diff(np.flatnonzero(risen), append=len(values))
    ranks = np.repeat(np.cumsum(tied) - (tied - 1) / 2, tied)
    number = np.bincount(labels, minlength=classes)
    area, z = _area(np.bincount(labels[order], weights=ranks, minlength=classes), number, tied)
    return area, np.where(np.isfinite(area), 0.0, np.nan), z


def _binned(counts: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    tied, number = counts.sum(0), counts.sum(1)
    area, z = _area(counts @ (np.cumsum(tied) - (tied - 1) / 2), number, tied)
    pairs = number * (tied.sum() - number)
    shared = (counts * (tied - counts)).sum(1)
    return area, np.where(pairs > 0, shared / np.maximum(pairs, 1) / 2, np.nan), z


def _area(ranks: NDArray[Any], number: NDArray[Any], tied: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(area, z) of every class from its sum of ranks, its inputs, and how many inputs share each value."""
    total, ties = int(number.sum()), tied.astype(np.float64)
    pairs = number.astype(np.float64) * (total - number)
    lost = (ties**3 - ties).sum() / max(total * (total - 1), 1)
    spread = np.sqrt(np.maximum(pairs / 12 * (total + 1 - lost), 0))
    more = ranks - number * (number + 1) / 2
    area = np.where(pairs > 0, more / np.maximum(pairs, 1), np.nan)
    z = np.divide((area - 0.5) * pairs, spread, out=np.zeros_like(area), where=spread > 0)
    return area, np.where(pairs > 0, z, np.nan)

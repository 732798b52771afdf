"""Where a local change can reach: an interval of a map's axis for every sample, and how it travels through the operators of a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


class Axis:
    """For N samples the half-open interval [low, high) of a map's axis of `length` that differs from the clean map.

    Stored are `size` cells (N,) from `start` (N,) on, a stretch that holds the interval and lies inside the map; by default the interval.
    """

    def __init__(
        self, low: Places, high: Places, length: int, start: Places | None = None, size: Places | None = None
    ) -> None:
        self.low, self.high, self.length = low, high, length
        self.start = low if start is None else start
        self.size = high - low if size is None else size

    @classmethod
    def at(cls, places: Sequence[int], windows: Sequence[int], length: int) -> Axis:
        """Windows of so many cells that begin at `places`, cut off at the end of the axis."""
        low = np.asarray(places, np.int64)
        return cls(low, np.minimum(low + np.asarray(windows, np.int64), length), length)

    def in_classes(self, most: int) -> Axis:
        """The same with at most so many sizes stored: the classes that cost least beyond the intervals are joined, step by step."""
        sizes, which, counts = np.unique(self.size, return_inverse=True, return_counts=True)
        if len(sizes) <= most:
            return self
        tops, filled = list(range(len(sizes))), [int(n) for n in counts]
        while len(tops) > most:
            costs = [filled[n] * int(sizes[tops[n + 1]] - sizes[tops[n]]) for n in range(len(tops) - 1)]
            n = costs.index(min(costs))
            filled[n : n + 2] = [filled[n] + filled[n + 1]]
            del tops[n]
        size = sizes[np.asarray(tops)[np.searchsorted(tops, which)]]
        return Axis(self.low, self.high, self.length, np.minimum(self.start, self.length - size), size)

    def through(self, kernel: int, stride: int, pad: int, dilation: int, length: int) -> Axis:
        """What an operator that looks at `kernel` cells, `dilation` apart, makes of it; its output has `length` cells."""
        if kernel == stride == 1 and not pad:
            return self
        reach = dilation * (kernel - 1)
        low = np.clip(-((reach - pad - self.low) // stride), 0, length - 1)
        high = np.clip((self.high - 1 + pad) // stride + 1, low + 1, length)
        return Axis(low, high, length)

    def whole(self, where: NDArray[np.bool_]) -> Axis:
        """The same, with all of the axis stored for some of the samples."""
        start, size = np.where(where, 0, self.start), np.where(where, self.length, self.size)
        return Axis(self.low, self.high, self.length, start, size)

    def joined(self, other: Axis) -> Axis:
        """The smallest that holds both intervals."""
        return Axis(np.minimum(self.low, other.low), np.maximum(self.high, other.high), self.length)

    def holds(self, other: Axis) -> bool:
        """Whether what is stored holds all of the other's intervals."""
        return bool((self.start <= other.low).all() and (self.start + self.size >= other.high).all())

    def moved(self, by: int, length: int) -> Axis:
        """The same cells in a longer map that has `by` new ones before them."""
        return Axis(self.low + by, self.high + by, length, self.start + by, self.size)


def alike(y: Axis, x: Axis, most: int, turn: int = 0) -> list[Places]:
    """The samples whose stored boxes have the same size together, those of one group in order, with at most so many cells a group.

    Groups are of about one length; with `turn`, cells that are computed at once, they consist of whole turns, but for the last.
    """
    key = y.size * (x.length + 1) + x.size
    order = np.argsort(key, kind="stable")
    groups: list[Places] = []
    for same in np.split(order, np.flatnonzero(np.diff(key[order])) + 1):
        cells = int(y.size[same[0]] * x.size[same[0]])
        each = max(1, most // cells)
        if turn:
            step = max(1, turn // cells)
            each = max(step, each // step * step)
            groups += np.split(same, range(each, len(same), each))
        else:
            groups += np.array_split(same, -(-len(same) // each))
    return groups


def sources_of(
    first: tuple[Places, Places], size: tuple[int, int], own: tuple[Places, Places], own_size: tuple[Places, Places],
    at: Places, width: int,
) -> NDArray[np.int32]:  # fmt: skip
    """(n, *size): for windows that begin at `first` (rows, columns), which row of a table holds every cell.

    The table begins with the ground, `width` cells a row; from row `at` on it has a sample's own box of `own_size`, which begins at
    `own` in the ground.
    """
    rows, columns = (a[:, None] + np.arange(n) for a, n in zip(first, size, strict=True))
    down, across = rows - own[0][:, None], columns - own[1][:, None]
    inner, ground = down * own_size[1][:, None] + at[:, None], rows * width
    here = (down >= 0) & (down < own_size[0][:, None]), (across >= 0) & (across < own_size[1][:, None])
    found, others = (
        cells.astype(np.int32)[:, :, None] + beyond.astype(np.int32)[:, None, :]
        for cells, beyond in ((ground, columns), (inner, across))
    )
    np.copyto(found, others, where=here[0][:, :, None] & here[1][:, None, :])
    return found

"""Where a local change can reach: intervals along one axis of a map, and how they travel through the operators of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Run:
    """Samples `first` to `last` (exclusive) of an axis whose windows lie at `start`, `start + step`, …; `into` and `from_` are the
    slices that put each sample's own values into its window."""

    first: int
    last: int
    start: int
    step: int
    into: slice
    from_: slice


@dataclass(frozen=True)
class Plan:
    """How windows of `size` are cut along one axis for an operator: `axis` is what it puts out, `size` the windows' length."""

    axis: Axis
    size: int
    runs: tuple[Run, ...]


class Axis:
    """For n samples the half-open interval [low, high) of a map's axis of `length` that differs from the clean map.

    All samples store `size` values, from `start` on, a stretch that holds the interval and lies inside the map.
    """

    def __init__(self, low: Places, high: Places, length: int, start: Places | None = None, size: int = 0) -> None:
        self.low, self.high, self.length = low, high, length
        self.size = size or int((high - low).max())
        self.start = np.minimum(low, length - self.size) if start is None else start
        self.count = len(low)
        self._made: dict[Any, Any] = {}

    @classmethod
    def at(cls, places: Sequence[int], window: int, length: int) -> Axis:
        """Windows of `window` cells that begin at `places`, cut off at the end of the axis."""
        low = np.asarray(places, dtype=np.int64)
        return cls(low, np.minimum(low + window, length), length)

    @property
    def whole(self) -> bool:
        """Whether every sample stores the whole axis."""
        return self.size == self.length

    def as_whole(self) -> Axis:
        """The same samples, with all of the axis stored."""
        made: Axis = self._once(
            "whole", lambda: self if self.whole else Axis(0 * self.low, 0 * self.low + self.length, self.length)
        )
        return made

    def through(self, kernel: int, stride: int, pad: int, dilation: int, length: int) -> Plan:
        """What an operator that looks at `kernel` cells, `dilation` apart, makes of it; its output has `length` cells."""

        def make() -> Plan:
            if kernel == stride == 1 and not pad:
                return Plan(self, self.size, self._runs(self.start, 0, self.size))
            reach = dilation * (kernel - 1)
            low = np.clip(-((reach - pad - self.low) // stride), 0, length - 1)
            high = np.clip((self.high - 1 + pad) // stride + 1, low + 1, length)
            after = Axis(low, high, length)
            size = (after.size - 1) * stride + reach + 1
            return Plan(after, size, self._runs(after.start * stride, pad, size))

        made: Plan = self._once((kernel, stride, pad, dilation, length), make)
        return made

    def through_whole(self, kernel: int, stride: int, pad: int, dilation: int, length: int) -> Plan:
        """The same, with all of the output's axis stored."""

        def make() -> Plan:
            after = self.through(kernel, stride, pad, dilation, length).axis.as_whole()
            size = (length - 1) * stride + dilation * (kernel - 1) + 1
            return Plan(after, size, self._runs(after.start * stride, pad, size))

        made: Plan = self._once(("whole", kernel, stride, pad, dilation, length), make)
        return made

    def into(self, other: Axis) -> Plan:
        """How windows at `other`'s places are filled with this axis's values."""

        def make() -> tuple[Plan, Axis]:
            return Plan(other, other.size, self._runs(other.start, 0, other.size)), other

        made: Plan = self._once(("into", id(other)), make)[0]  # the other is kept, so that its number stays its own
        return made

    def joined(self, other: Axis) -> Axis:
        """The smallest axis that holds both; one of the two itself where it does."""

        def make() -> tuple[Axis, Axis]:
            low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
            for axis in (self, other):
                if (axis.low == low).all() and (axis.high == high).all():
                    return axis, other
            return Axis(low, high, self.length), other

        made: Axis = self if other is self else self._once(("joined", id(other)), make)[0]
        return made

    def moved(self, by: int, length: int) -> Axis:
        """The same cells in a longer map that has `by` new ones before them."""
        made: Axis = self._once(
            ("moved", by, length),
            lambda: Axis(self.low + by, self.high + by, length, self.start + by, self.size),
        )
        return made

    def _runs(self, starts: Places, pad: int, size: int) -> tuple[Run, ...]:
        """Runs of samples with equal offsets of values to window, and evenly spaced windows."""
        offsets = self.start + pad - starts
        runs, first = [], 0
        while first < self.count:
            last = first + 1
            step = int(starts[last] - starts[first]) if last < self.count else 0
            while (
                step >= 0
                and last < self.count
                and offsets[last] == offsets[first]
                and starts[last] - starts[last - 1] == step
            ):
                last += 1
            offset = int(offsets[first])
            begin, end = max(offset, 0), min(offset + self.size, size)
            into, from_ = slice(begin, max(begin, end)), slice(begin - offset, max(begin, end) - offset)
            runs.append(Run(first, last, int(starts[first]), step, into, from_))
            first = last
        return tuple(runs)

    def _once(self, key: Any, make: Any) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

"""Where in texts every unit peaks: lists that are kept while the texts stream by, each peak with the values around it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]


class Peaks:
    """The `count` highest peaks of U units, with the units' values at `context` tokens on either side.

    A peak is higher than all within `spacing` tokens on either side, the first of equal ones; of one text at most `per_text` are kept.
    With `sign` -1 everything is turned over, values in and out excepted.
    """

    def __init__(self, units: int, count: int, context: int, spacing: int, per_text: int, sign: int = 1) -> None:
        self.context, self.spacing, self.per_text, self.sign = context, spacing, per_text, sign
        self._height = np.full((units, count), -np.inf, np.float32)
        self.text = np.full((units, count), -1, np.int32)
        self.place = np.full((units, count), -1, np.int64)
        self.track = np.full((units, count, 2 * context + 1), np.nan, np.float16)
        self._least = self._height.min(1, initial=np.inf)  # height that a new peak has to pass

    def look(self, text: int, start: int, values: Values, first: int, last: int) -> None:
        """Look for peaks at the places `first` to `last` (exclusive, at most `spacing` + 1 apart); `values` (t, U) begin at `start`."""
        window = values[first - start : last - start]
        heights = window.max(0) if self.sign > 0 else -window.min(0)
        units = np.flatnonzero(heights > self._least)
        if not len(units):
            return
        part = self.sign * window[:, units]
        places = part.argmax(0) + first
        heights = heights[units]
        around = self._around(values, start, places, units, self.spacing)
        s = self.spacing
        with np.errstate(invalid="ignore"):
            lower = ~((around[:, :s] >= heights[:, None]).any(1) | (around[:, s + 1 :] > heights[:, None]).any(1))
        if lower.any():
            self._enter(text, places[lower], units[lower], heights[lower], values, start)

    def _around(
        self, values: Values, start: int, places: NDArray[np.int64], units: NDArray[np.int64], wide: int
    ) -> Values:
        """(n, 2·wide + 1) of sign · values around each place; NaN beyond the ends."""
        rows = places[:, None] - start + np.arange(-wide, wide + 1)
        outside = (rows < 0) | (rows >= len(values))
        found: Values = self.sign * values[np.clip(rows, 0, len(values) - 1), units[:, None]]
        found[outside] = np.nan
        return found

    def _enter(
        self, text: int, places: NDArray[np.int64], units: NDArray[np.int64], heights: Values, values: Values, start: int
    ) -> None:  # fmt: skip
        held = self._height[units]
        same = self.text[units] == text
        full = same.sum(1) >= self.per_text
        slots = np.where(full[:, None] & ~same, np.inf, held).argmin(1)
        better = heights > held[np.arange(len(units)), slots]
        units, slots, places, heights = units[better], slots[better], places[better], heights[better]
        self._height[units, slots], self.text[units, slots], self.place[units, slots] = heights, text, places
        self.track[units, slots] = self.sign * self._around(values, start, places, units, self.context)
        self._least[units] = self._height[units].min(1)

    def ordered(self) -> tuple[NDArray[np.int32], NDArray[np.int64], Values, NDArray[np.float16]]:
        """(text, place, value, track), the highest peak first; -1 for text and place where there are fewer."""
        order = np.argsort(-self._height, axis=1, kind="stable")
        height = np.take_along_axis(self._height, order, 1)
        return (
            np.take_along_axis(self.text, order, 1),
            np.take_along_axis(self.place, order, 1),
            np.where(np.isfinite(height), self.sign * height, 0).astype(np.float32),
            np.take_along_axis(self.track, order[:, :, None], 1),
        )


@dataclass
class Lane:
    """The last values of one text that is being read, from `start` on; windows before `done` have been looked at."""

    start: int = 0
    done: int = 0
    values: Values = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def feed(self, text: int, values: Values, last: bool, lists: list[Peaks]) -> None:
        """Take the next values (t, U) and look for peaks where what lies behind has been read."""
        self.values = np.concatenate([self.values, values]) if len(self.values) else values
        end = self.start + len(self.values)
        wide = max((max(one.spacing, one.context) for one in lists), default=0)
        step = min((one.spacing for one in lists), default=0) + 1
        while self.done < end and (last or self.done + step + wide <= end):
            stop = min(self.done + step, end)
            for one in lists:
                one.look(text, self.start, self.values, self.done, stop)
            self.done = stop
        drop = max(0, self.done - wide - self.start)
        if drop:
            self.values, self.start = self.values[drop:], self.start + drop

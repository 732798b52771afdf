"""The inputs that stand highest for every unit, kept in order while the data goes by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Ranking:
    """Lists of the `length` highest values of T units with input and place; of equal values the one that came first stands higher."""

    def __init__(self, units: int, length: int) -> None:
        self.units, self.length = units, length
        self.value = np.full((units, length), -np.inf, np.float32)  # (T, length) descending, -inf where unfilled
        self.index = np.full((units, length), -1, np.int64)
        self.place = np.zeros((units, length), np.int32)

    @property
    def floor(self) -> NDArray[np.float32]:
        """(T,) what a value has to exceed to enter; an equal one came too late."""
        return self.value[:, -1]

    def enter(
        self, values: NDArray[np.float32], place: NDArray[np.int32], index: NDArray[np.int64]
    ) -> NDArray[np.intp]:
        """Insert what of (n, T) exceeds the floor, the first newcomer of every unit at once, then the second, …

        Returns the rows of which anything entered.
        """
        found = np.flatnonzero(values > np.ascontiguousarray(self.floor))
        rows, units = np.divmod(found, self.units)
        newcomers = np.flatnonzero(np.bincount(rows, minlength=1))
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
        return newcomers

    def _insert(
        self, units: NDArray[np.intp], values: NDArray[np.float32], place: NDArray[np.int32], index: NDArray[np.int64]
    ) -> None:
        """One newcomer for each of some units; where it is not above the last one it drops out at the end again."""
        own = self.value[units]
        rank = (own >= values[:, None]).sum(1, keepdims=True)  # behind those that are equal, which came earlier
        at = np.arange(self.length)
        source = np.where(at > rank, at - 1, at)
        here = at == rank
        for kept, new in ((self.value, values), (self.index, index), (self.place, place)):
            kept[units] = np.where(here, new[:, None], np.take_along_axis(kept[units], source, 1))

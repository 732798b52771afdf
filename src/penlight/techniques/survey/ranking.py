"""The inputs that stand highest for every unit, kept in order while the data goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTHS = (1, 3, 8)  # newcomers
_AT_ONCE = 2048  # units


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
        """Insert what of (n, T) exceeds the floor; returns the rows of which anything entered."""
        above = values > np.ascontiguousarray(self.floor)
        columns = np.flatnonzero(above.any(0))
        if not len(columns):
            return columns
        place_in_columns, rows = np.nonzero(np.ascontiguousarray(above[:, columns].T))
        units = columns[place_in_columns]
        count = np.bincount(units, minlength=self.units)
        turn = np.arange(len(units)) - np.repeat(np.cumsum(count) - count, count)  # a unit's newcomers are numbered
        least = 0
        for most in (
            *_WIDTHS,
            len(values),
        ):  # units with about as many newcomers at once, so that few places stay empty
            chosen = np.flatnonzero((count > least) & (count <= most))
            for start in range(0, len(chosen), _AT_ONCE):
                part = chosen[start : start + _AT_ONCE]
                line = np.full(self.units, -1)
                line[part] = np.arange(len(part))
                here = np.flatnonzero(line[units] >= 0)
                new = rows[here], units[here]
                at = line[new[1]], turn[here]
                self._merge(part, min(most, len(values)), at, (values[new], index[new[0]], place[new]))
            least = most
        return np.flatnonzero(above.any(1))

    def _merge(
        self, units: NDArray[np.intp], most: int, at: tuple[NDArray[np.intp], NDArray[np.intp]], new: Sequence[NDArray[Any]]
    ) -> None:  # fmt: skip
        """Values, indices and places of newcomers, up to `most` a unit, put behind the lists of `units` at (unit, turn); then in order."""
        kept: list[NDArray[Any]] = [self.value, self.index, self.place]
        whole = []
        for old, entering, empty in zip(kept, new, (-np.inf, -1, 0), strict=True):
            wide = np.full((len(units), self.length + most), empty, old.dtype)
            wide[:, : self.length] = old[units]
            wide[at[0], self.length + at[1]] = entering
            whole.append(wide)
        order = _descending(whole[0], self.length)
        for old, wide in zip(kept, whole, strict=True):
            old[units] = np.take_along_axis(wide, order, 1)


def _descending(values: NDArray[np.float32], length: int) -> NDArray[np.int64]:
    """(U, length) columns of the highest of (U, m) in order; of equal ones the first column stands first.

    One sort of whole numbers, value above column: as a float's bits rise with its value, but for the sign.
    """
    bits = (values + np.float32(0)).view(np.int32)  # -0 becomes 0, which is equal
    rising = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    keys = (~rising).astype(np.int64) << 32 | np.arange(values.shape[1])
    keys.sort(axis=1)
    return keys[:, :length] & 0xFFFFFFFF

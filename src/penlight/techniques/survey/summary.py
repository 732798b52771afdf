"""Statistics and lists of the rows that excite units most and least, fed block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Totals:
    """What is remembered of T units: mean, deviation, extremes, share above zero, and `top` rows at either end."""

    def __init__(self, units: int, top: int) -> None:
        self.count, self._top = 0, top
        self._shift: Floats | None = None  # the first block's means: sums of squares about them lose nothing
        self._sum, self._square, self._fired = np.zeros(units), np.zeros(units), np.zeros(units)
        self._best = _List(units, top)
        self._least = _List(units, top)

    def add(self, index: NDArray[np.int64], values: NDArray[np.float32]) -> None:
        """Count values (n, T) of the rows `index` (n,), rising."""
        wide = values.astype(np.float64)
        if self._shift is None:
            self._shift = wide.mean(0)
        away = wide - self._shift
        self.count += len(index)
        self._sum += away.sum(0)
        self._square += (away**2).sum(0)
        self._fired += (values > 0).sum(0)
        self._best.add(index, wide)
        self._least.add(index, -wide)

    def of(self, part: slice) -> dict[str, NDArray[Any]]:
        """Some units' numbers, as the result keeps them."""
        assert self._shift is not None
        mean = self._sum[part] / self.count
        return {
            "mean": self._shift[part] + mean,
            "std": np.sqrt(np.maximum(self._square[part] / self.count - mean**2, 0)),
            "maximum": self._best.value[0, part],
            "minimum": -self._least.value[0, part],
            "fires": self._fired[part] / self.count,
            "top_index": self._best.index[:, part].T.copy(),
            "top_activation": np.where(self._best.index >= 0, self._best.value, 0)[:, part].T.copy(),
            "bottom_index": self._least.index[:, part].T.copy(),
            "bottom_activation": np.where(self._least.index >= 0, -self._least.value, 0)[:, part].T.copy(),
        }


class _List:
    """The k largest values of each of T units and their rows, best first; of equal ones the earlier row."""

    def __init__(self, units: int, most: int) -> None:
        self.value = np.full((most, units), -np.inf)
        self.index = np.full((most, units), -1, np.int64)

    def add(self, index: NDArray[np.int64], values: Floats) -> None:
        most = len(self.value)
        value = np.concatenate([self.value, values])
        rows = np.concatenate([self.index, np.repeat(index[:, None], values.shape[1], 1)])
        order = np.argsort(-value, axis=0, kind="stable")[:most]
        self.value, self.index = np.take_along_axis(value, order, 0), np.take_along_axis(rows, order, 0)

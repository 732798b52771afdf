"""A row of a table perturbed among real rows: each column's value stays in its quartile or category, or moves to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput
from penlight.inputs import Data, InputContract, TableContract
from penlight.techniques.explain.background import background
from penlight.techniques.explain.explanation import Scene
from penlight.techniques.explain.features import Features, Masks

_ROWS = 10_000
_FLAT = 1e-11  # added to a bin's deviation, as lime does
Numbers = NDArray[np.float64]


class Binned(Protocol):
    """One column of the data, cut into bins: quartiles of numbers, or the values of a category."""

    @property
    def share(self) -> Numbers:
        """(bins,): how many of the rows lie in each."""

    def bin(self, value: float) -> int:
        """The bin a value lies in."""

    def value(self, bins: NDArray[np.intp], chance: Numbers) -> Numbers:
        """(k,): a value of each bin (k,), by `chance` (k,) in [0, 1)."""

    def name(self, column: str, own: int) -> str:
        """The bin in words."""


@dataclass(frozen=True, eq=False)
class Column:
    """The bins of a column of numbers, cut at its quartiles: how many rows lie in each, and the mean, deviation and bounds of those."""

    edges: Numbers
    share: Numbers
    mean: Numbers
    deviation: Numbers
    low: Numbers
    high: Numbers
    unit: str = ""

    @classmethod
    def of(cls, values: Numbers, unit: str = "") -> Column:
        edges = np.unique(np.percentile(values, [25, 50, 75]))
        where = np.searchsorted(edges, values)
        bins = [values[where == n] for n in range(len(edges) + 1)]
        return cls(
            edges,
            np.array([len(found) for found in bins]) / len(values),
            np.array([found.mean() if len(found) else 0.0 for found in bins]),
            np.array([found.std() if len(found) else 0.0 for found in bins]) + _FLAT,
            np.array([values.min(), *edges]),
            np.array([*edges, values.max()]),
            unit,
        )

    def bin(self, value: float) -> int:
        return int(np.searchsorted(self.edges, value))

    def value(self, bins: NDArray[np.intp], chance: Numbers) -> Numbers:
        """From a normal distribution cut to the bin's bounds."""
        mean, deviation, low, high = self.mean[bins], self.deviation[bins], self.low[bins], self.high[bins]
        start, end = (torch.special.ndtr(torch.from_numpy((bound - mean) / deviation)) for bound in (low, high))
        place = torch.special.ndtri(start + torch.from_numpy(chance) * (end - start)).numpy()
        values: Numbers = np.clip(mean + deviation * np.nan_to_num(place), low, high)
        return values

    def name(self, column: str, own: int) -> str:
        told = [f"{edge:.4g}" for edge in self.edges]
        unit = f" {self.unit}" if self.unit else ""
        if own == 0:
            return f"{column} <= {told[0]}{unit}"
        if own == len(told):
            return f"{column} > {told[-1]}{unit}"
        return f"{told[own - 1]} < {column} <= {told[own]}{unit}"


@dataclass(frozen=True, eq=False)
class Category:
    """A column that holds one of a few `values`, as positions among them, and how many rows have each."""

    values: tuple[str, ...]
    share: Numbers

    @classmethod
    def of(cls, found: Numbers, values: tuple[str, ...]) -> Category:
        return cls(values, np.bincount(found.astype(np.intp), minlength=len(values)) / len(found))

    def bin(self, value: float) -> int:
        return int(value)

    def value(self, bins: NDArray[np.intp], chance: Numbers) -> Numbers:
        return bins.astype(np.float64)

    def name(self, column: str, own: int) -> str:
        return f"{column} = {self.values[own]}"


def pick(share: Numbers, stays: Masks, own: int, chance: Numbers) -> NDArray[np.intp]:
    """(k,): the own bin where the part stays, else another one, by how many rows it holds and `chance` in [0, 1)."""
    others = share.copy()
    others[own] = 0
    if others.sum() <= 0:
        return np.full(len(stays), own, np.intp)
    drawn = np.searchsorted(np.cumsum(others / others.sum()), chance, side="right")
    return np.where(stays, own, np.minimum(drawn, np.flatnonzero(others)[-1]))


class Bins(Features):
    """A row as lime takes it apart, given rows like it: a part is a column, and it stays if its value stays in the row's quartile, or
    is the row's category.

    In a quartile the value is drawn anew, so that a mask does not determine the input; a quartile or a category is drawn as often as
    the data lie in it. The input with the number 0 is the row itself. Where all rows of a bin are equal, lime 0.2.0.1 puts in 0; here
    it is their value.
    """

    kind = "quartiles of the data"
    axes = 1
    exact: ClassVar[bool] = False

    def __init__(self, scene: Scene, rows: Numbers) -> None:
        contract, given = scene.model.contract, scene.input
        self._model, self._seed = scene.model, int(scene.rng("bins").integers(2**32))
        self._row = np.asarray(given / 255 if given.dtype == np.uint8 else given, np.float64)
        self.columns = _columns(contract, rows)
        self.own = [column.bin(value) for column, value in zip(self.columns, self._row, strict=True)]
        called = contract.names if isinstance(contract, TableContract) else [f"column {n}" for n in range(len(rows.T))]
        self.names = tuple(
            column.name(name, own) for name, column, own in zip(called, self.columns, self.own, strict=True)
        )

    @property
    def chance(self) -> Numbers:
        return np.array([column.share[own] for column, own in zip(self.columns, self.own, strict=True)])

    def apply(self, masks: Masks, first: int) -> Tensor:
        rows = [np.random.default_rng((self._seed, first + k)).random((2, self.count)) for k in range(len(masks))]
        drawn = np.stack(rows)  # each input has a stream of its own: how they are batched changes nothing
        made = np.empty(masks.shape)
        for n, (column, own) in enumerate(zip(self.columns, self.own, strict=True)):
            made[:, n] = column.value(pick(column.share, masks[:, n], own, drawn[:, 0, n]), drawn[:, 1, n])
        if first == 0:
            made[0] = self._row
        return self._model.tensor(made)

    def spread(self, weights: Numbers) -> NDArray[np.float32]:
        return weights.astype(np.float32)


def _columns(contract: InputContract, rows: Numbers) -> list[Binned]:
    if not isinstance(contract, TableContract):
        return [Column.of(values) for values in rows.T]
    return [
        Category.of(values, column.values) if column.categorical else Column.of(values, column.unit)
        for column, values in zip(contract.columns, rows.T, strict=True)
    ]


def binned(scene: Scene, data: Data) -> Bins:
    """The scene's row among the rows of `data`, of which up to 10,000 are read, spread evenly; `BadInput` for fewer than 4."""
    rows = background(data, scene.model.contract, _ROWS).rows
    if len(rows) < 4:
        raise BadInput(f"{data.name} has {len(rows)} rows; quartiles need 4 or more: give more data, or choose a fill")
    return Bins(scene, rows)

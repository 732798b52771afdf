"""A row of a table perturbed among real rows: each column's value stays in its quartile, or moves to another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput
from penlight.inputs import Data
from penlight.techniques.explain.explanation import Scene
from penlight.techniques.explain.features import Features, Masks

_ROWS = 10_000
_FLAT = 1e-11  # added to a bin's deviation, as lime does
Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Column:
    """The bins of one column, cut at its quartiles: how many rows lie in each, and the mean, deviation and bounds of those that do."""

    edges: Numbers
    share: Numbers
    mean: Numbers
    deviation: Numbers
    low: Numbers
    high: Numbers

    @classmethod
    def of(cls, values: Numbers) -> Column:
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
        )

    def bin(self, value: float) -> int:
        """The bin a value lies in."""
        return int(np.searchsorted(self.edges, value))

    def pick(self, stays: Masks, own: int, chance: Numbers) -> NDArray[np.intp]:
        """(k,): the own bin where the part stays, else another one, by how many rows it holds and `chance` in [0, 1)."""
        others = self.share.copy()
        others[own] = 0
        if others.sum() <= 0:
            return np.full(len(stays), own, np.intp)
        drawn = np.searchsorted(np.cumsum(others / others.sum()), chance, side="right")
        return np.where(stays, own, np.minimum(drawn, np.flatnonzero(others)[-1]))

    def value(self, bins: NDArray[np.intp], chance: Numbers) -> Numbers:
        """(k,): a value of each bin, from a normal distribution cut to the bin's bounds."""
        mean, deviation, low, high = self.mean[bins], self.deviation[bins], self.low[bins], self.high[bins]
        start, end = (torch.special.ndtr(torch.from_numpy((bound - mean) / deviation)) for bound in (low, high))
        place = torch.special.ndtri(start + torch.from_numpy(chance) * (end - start)).numpy()
        values: Numbers = np.clip(mean + deviation * np.nan_to_num(place), low, high)
        return values

    def name(self, number: int, own: int, mean: float, std: float) -> str:
        """The bin in words, in the table's own units."""
        edges = self.edges * std + mean
        if own == 0:
            return f"column {number} <= {edges[0]:.4g}"
        if own == len(edges):
            return f"column {number} > {edges[-1]:.4g}"
        return f"{edges[own - 1]:.4g} < column {number} <= {edges[own]:.4g}"


class Bins(Features):
    """A row as lime takes it apart, given rows like it: a part is a column, and it stays if its value stays in the row's quartile.

    In a bin the value is drawn anew, so that a mask does not determine the input; a quartile is drawn as often as the data lie in it.
    The input with the number 0 is the row itself. Where all rows of a bin are equal, lime 0.2.0.1 puts in 0; here it is their value.
    """

    kind = "quartiles of the data"
    axes = 1
    exact: ClassVar[bool] = False

    def __init__(self, scene: Scene, rows: Numbers) -> None:
        mean, std = scene.model.contract.statistics()
        self._x, self._seed = scene.x, int(scene.rng("bins").integers(2**32))
        self._row = scene.x[0].double().cpu().numpy()
        self.columns = [Column.of(column) for column in rows.T]
        self.own = [column.bin(value) for column, value in zip(self.columns, self._row, strict=True)]
        self.names = tuple(
            column.name(n, own, float(mean[n]), float(std[n]))
            for n, (column, own) in enumerate(zip(self.columns, self.own, strict=True))
        )

    @property
    def chance(self) -> Numbers:
        return np.array([column.share[own] for column, own in zip(self.columns, self.own, strict=True)])

    def apply(self, masks: Masks, first: int) -> Tensor:
        rows = [np.random.default_rng((self._seed, first + k)).random((2, self.count)) for k in range(len(masks))]
        drawn = np.stack(rows)  # each input has a stream of its own: how they are batched changes nothing
        made = np.empty(masks.shape)
        for n, (column, own) in enumerate(zip(self.columns, self.own, strict=True)):
            made[:, n] = column.value(column.pick(masks[:, n], own, drawn[:, 0, n]), drawn[:, 1, n])
        if first == 0:
            made[0] = self._row
        return torch.from_numpy(made).to(self._x)

    def spread(self, weights: Numbers) -> NDArray[np.float32]:
        return weights.astype(np.float32)


def binned(scene: Scene, data: Data) -> Bins:
    """The scene's row among the rows of `data`, of which up to 10,000 are read, spread evenly; `BadInput` for fewer than 4."""
    count = len(data)
    if count < 4:
        raise BadInput(f"{data.name} has {count} rows; quartiles need 4 or more: give more data, or choose a fill")
    chosen = np.unique(np.linspace(0, count - 1, min(count, _ROWS)).astype(int))
    rows = np.stack([data.read(int(n)) for n in chosen])
    scene.model.contract.check(rows)
    return Bins(scene, scene.model.tensor(rows).double().cpu().numpy())

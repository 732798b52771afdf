"""The space of rows like those of a table: each column's range, and how far a row lies from the middle of the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.inputs import Column, TableContract

Floats = NDArray[np.float64]
_COUNTS = 32  # between the least and largest of a column of whole numbers that are tried one by one


@dataclass(frozen=True, eq=False)
class Candidates:
    """B rows being made: `numbers` (B, n) of the numeric columns, normalised; `categories` (B, m), positions or whole numbers."""

    numbers: Tensor
    categories: NDArray[np.int64]

    def at(self, rows: NDArray[np.intp]) -> Candidates:
        """Some of the rows."""
        return Candidates(self.numbers[torch.from_numpy(rows).to(self.numbers.device)], self.categories[rows])

    def put(self, rows: NDArray[np.intp], others: Candidates) -> None:
        """Write others in the place of some rows."""
        self.numbers[torch.from_numpy(rows).to(self.numbers.device)] = others.numbers
        self.categories[rows] = others.categories


class Space:
    """What rows there may be, learned from real ones (N, C): each number within its least and largest value, each category that occurs.

    A column that holds but few whole numbers takes whole numbers only, and is searched as categories are.
    """

    def __init__(self, contract: TableContract, rows: Floats, device: torch.device) -> None:
        self.contract, self.rows, self._device = contract, rows, device
        inputs = contract.normalize(rows).astype(np.float64)
        self.mean, deviation = inputs.mean(0), inputs.std(0)
        self.scale = np.where(deviation > 0, deviation, 1.0)
        self.precision, self.shrinkage = precision((inputs - self.mean) / self.scale)
        self.distances = self.distance(inputs)
        self.typical = float(np.median(self.distances))
        self.choices = {
            n: found for n, column in enumerate(contract.columns) if len(found := _choices(column, rows[:, n]))
        }
        self.numeric = [n for n in range(len(contract.columns)) if n not in self.choices]
        self.low, self.high = rows.min(0), rows.max(0)
        self._slots = {n: np.flatnonzero(contract.owners == n) for n in range(len(contract.columns))}
        mean, std = contract.statistics()
        at = [int(self._slots[n][0]) for n in self.numeric]
        self._at = torch.tensor(at, dtype=torch.long, device=device)
        box = [(side[self.numeric] - mean[at]) / std[at] for side in (self.low, self.high)]
        self.lowest, self.highest = (torch.from_numpy(side).float().to(device) for side in box)
        self._whiten = [torch.from_numpy(part).float().to(device) for part in (self.mean, self.scale, self.precision)]

    def distance(self, inputs: Floats) -> Floats:
        """(B,): Mahalanobis distance of normalised rows (B, inputs) from the mean row, by the shrunk covariance."""
        away = (inputs - self.mean) / self.scale
        found: Floats = np.sqrt(np.maximum(((away @ self.precision) * away).sum(1), 0))
        return found

    def penalty(self, inputs: Tensor) -> Tensor:
        """(B,): half the squared distance over the typical one; a linear unit less this is best at the typical distance."""
        mean, scale, matrix = self._whiten
        away = (inputs - mean) / scale
        return ((away @ matrix) * away).sum(1) / (2 * max(self.typical, 1e-6))

    def percentile(self, inputs: Floats) -> Floats:
        """(B,) in [0, 1]: the share of real rows that lie nearer to the middle."""
        found: Floats = (self.distances[None] < self.distance(inputs)[:, None]).mean(1)
        return found

    def candidates(self, rows: Floats) -> Candidates:
        """Rows (B, C) in their own units as candidates."""
        numbers = torch.from_numpy(self.contract.normalize(rows)).to(self._device)[:, self._at]
        return Candidates(self.boxed(numbers), rows[:, list(self.choices)].astype(np.int64))

    def boxed(self, numbers: Tensor) -> Tensor:
        """Numbers (B, n) within the columns' ranges."""
        return torch.minimum(torch.maximum(numbers, self.lowest), self.highest)

    def fixed(self, categories: NDArray[np.int64]) -> Tensor:
        """(B, inputs) as the network takes them, the numbers still missing."""
        own = np.zeros((len(categories), len(self.contract.columns)))
        for place, n in enumerate(self.choices):
            own[:, n] = categories[:, place]
        return torch.from_numpy(self.contract.normalize(own)).to(self._device)

    def inputs(self, numbers: Tensor, fixed: Tensor) -> Tensor:
        """(B, inputs) with the numbers in their places; gradients come through to `numbers`."""
        return fixed.index_copy(1, self._at, numbers)

    def raw(self, candidates: Candidates) -> Floats:
        """(B, C) in the columns' own units, never outside their ranges."""
        found = np.empty((len(candidates.categories), len(self.contract.columns)))
        for place, n in enumerate(self.choices):
            found[:, n] = candidates.categories[:, place]
        numbers = candidates.numbers.detach().cpu().double().numpy()
        for place, n in enumerate(self.numeric):
            column = self.contract.columns[n]
            own = numbers[:, place] * column.std + column.mean
            ends = self.lowest[place].item(), self.highest[place].item()
            own = np.where(
                numbers[:, place] <= ends[0], self.low[n], np.where(numbers[:, place] >= ends[1], self.high[n], own)
            )
            found[:, n] = np.clip(own, self.low[n], self.high[n])
        return found

    def anywhere(self, count: int, rng: np.random.Generator) -> Floats:
        """`count` rows drawn evenly from the ranges, (count, C)."""
        found = rng.uniform(self.low, self.high, (count, len(self.low)))
        for n, values in self.choices.items():
            found[:, n] = rng.choice(values, count)
        return found

    def nearest(self, inputs: Floats) -> tuple[NDArray[np.int64], Floats]:
        """(index, distance) (B,) of the most alike real row, in standard deviations of the inputs."""
        real = self.contract.normalize(self.rows).astype(np.float64) / self.scale
        found = [np.sqrt((((one / self.scale) - real) ** 2).sum(1)) for one in inputs]
        index = np.array([int(d.argmin()) for d in found], np.int64)
        return index, np.array([d[i] for d, i in zip(found, index, strict=True)])


def _choices(column: Column, values: Floats) -> NDArray[np.int64]:
    """The values to choose among; none for a column that takes any number of its range."""
    if column.categorical:
        return np.unique(values).astype(np.int64)
    low, high = float(values.min()), float(values.max())
    if (values == np.round(values)).all() and high - low <= _COUNTS:
        return np.arange(int(low), int(high) + 1)
    return np.zeros(0, np.int64)


def precision(standard: Floats) -> tuple[Floats, float]:
    """(inverse, shrinkage) of the covariance of (N, p), centred, shrunk towards a multiple of the identity (Ledoit & Wolf 2004)."""
    count, width = standard.shape
    covariance = standard.T @ standard / count
    mean = float(np.trace(covariance)) / width
    off = float(((covariance - mean * np.eye(width)) ** 2).sum())
    spread = float(((standard**2).sum(1) ** 2).sum() / count - (covariance**2).sum()) / count
    share = min(spread, off) / off if off > 0 else 1.0
    shrunk = (1 - share) * covariance + share * mean * np.eye(width)
    return np.linalg.pinv(shrunk, hermitian=True), share


def standard(values: Floats) -> float:
    """Population standard deviation of (N,); 0 where values differ by rounding only."""
    spread = float(values.std())
    return spread if spread > 1e-6 * float(np.abs(values).max(initial=0)) else 0.0

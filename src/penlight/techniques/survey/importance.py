"""How much each column moves each unit: by integrated gradients, and by dealing the column's values anew among the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.inputs import TableContract
from penlight.techniques.survey.reading import Reading

Floats = NDArray[np.float64]
Values = Callable[[Floats], NDArray[np.float32]]  # rows (n, columns) → units (n, T)
RESAMPLES = 400
_BYTES = 64e6  # of the attributions of the units that are worked on at once
_STILL = 1e-12  # variance, over the square of the mean, below which a unit does not change


def resamples(rng: np.random.Generator, count: int) -> Floats:
    """(RESAMPLES, count): how often each row is drawn, over the number of rows."""
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES) / count


def interval(means: Floats) -> tuple[Floats, Floats]:
    """(low, high), 95 %, from the means of all resamples (RESAMPLES, …)."""
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return low, high


@dataclass(frozen=True)
class Path:
    """Integrated gradients of some units of a layer: `values` (B, N, C) in the units' activations.

    `gap` (B,) is the mean magnitude of what they leave unexplained, over the unit's standard deviation.
    """

    units: range
    values: NDArray[np.float32]
    gap: Floats


def integrated(reading: Reading, path: str, rows: Floats, steps: int) -> Iterator[Path]:
    """Block by block of a layer's units; the path runs from the mean of the rows, as the network sees them, to each row.

    Sundararajan et al. 2017. Gradients are taken in the middle of `steps` equal parts of the path; a category's inputs are added up.
    """
    model = reading.model
    x = model.tensor(rows)
    mean = x.mean(0)
    owners = _owners(reading)
    starts = np.flatnonzero(np.diff(owners, prepend=-1))  # a category's inputs lie side by side
    total = reading.layers[path].units
    each = max(4 * x.numel(), 8 * RESAMPLES * len(starts))
    block = int(np.clip(_BYTES / each, 1, total))
    at_once = max(1, reading.chunk // steps)
    places = ((torch.arange(steps, device=x.device) + 0.5) / steps)[:, None]
    for first in range(0, total, block):
        units = range(first, min(first + block, total))
        found = np.zeros((len(units), len(rows), len(starts)), np.float32)
        for start in range(0, len(x), at_once):
            away = x[start : start + at_once] - mean
            between = (mean + places * away[:, None]).flatten(0, 1)
            part = found[:, start : start + at_once]
            if len(starts) < len(units):  # a pass a column rather than one a unit
                tangents = (
                    torch.where(torch.from_numpy(owners == column).to(x.device), away, 0.0).repeat_interleave(steps, 0)
                    for column in range(len(starts))
                )
                for column, along in enumerate(reading.pushed(path, between, tangents, units)):
                    part[:, :, column] = along.reshape(len(away), steps, -1).mean(1).T
            else:
                slopes = reading.slopes(path, between, units).reshape(len(units), len(away), steps, -1).mean(2)
                part[:] = np.add.reduceat(slopes * away.cpu().numpy(), starts, axis=2)
        gained = reading.outputs(path, x, units) - reading.outputs(path, mean[None], units)
        gap = np.abs(found.sum(2, dtype=np.float64).T - gained).mean(0)
        spread = gained.std(0, dtype=np.float64)
        yield Path(units, found, np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0))


def _owners(reading: Reading) -> NDArray[np.intp]:
    contract = reading.model.contract
    return contract.owners if isinstance(contract, TableContract) else np.arange(contract.shape[0])


def permuted(values: Values, rows: Floats, column: int, orders: NDArray[np.intp], base: NDArray[np.float32]) -> Floats:
    """(N, T): mean squared change of every unit for every row when the column takes the values of other rows, over `orders` (K, N).

    `base` (N, T) are the units as they are. Its mean over rows over the unit's variance is 1 − R² of the permuted answers (Breiman 2001;
    Fisher et al. 2019).
    """
    change = np.zeros(base.shape)
    changed = rows.copy()
    for order in orders:
        changed[:, column] = rows[order, column]
        change += (values(changed).astype(np.float64) - base) ** 2
    return change / len(orders)


def lost(change: Floats, base: NDArray[np.float32], weights: Floats) -> tuple[Floats, Floats, Floats]:
    """(share of the variance, low, high), each (T,), from `permuted` (N, T); 0 for a unit that never changes."""
    own = base.astype(np.float64)
    centred = own - own.mean(0)
    variance = (centred**2).mean(0)
    moves = variance > _STILL * np.maximum((own**2).mean(0), 1e-30)
    share = np.divide(change.mean(0), variance, out=np.zeros_like(variance), where=moves)
    spread = np.maximum(weights @ centred**2 - (weights @ centred) ** 2, 0)
    drawn = np.divide(weights @ change, spread, out=np.zeros_like(spread), where=moves & (spread > 0))
    low, high = interval(drawn)
    return share, low, high


def following(attributions: NDArray[np.float32], rows: Floats) -> Floats:
    """(B, C): rank correlation, over the rows, of attributions (B, N, C) with the columns' values (N, C); NaN where one is constant."""
    own = _centred(ranks(rows))
    found = np.full((len(attributions), rows.shape[1]), np.nan)
    size = np.sqrt((own**2).sum(0))
    for u, values in enumerate(attributions):
        other = _centred(ranks(values.astype(np.float64)))
        norm = size * np.sqrt((other**2).sum(0))
        np.divide((own * other).sum(0), norm, out=found[u], where=norm > 0)
    return found


def ranks(values: Floats) -> Floats:
    """Ranks within each column of (N, K), equal values sharing theirs."""
    count, width = values.shape
    order = np.argsort(values, axis=0, kind="stable")
    sorted_values = np.take_along_axis(values, order, 0)
    new = np.ones((count, width), np.int64)
    new[1:] = sorted_values[1:] != sorted_values[:-1]
    group = (np.cumsum(new.T) - 1).reshape(width, count).T  # groups of equal values, numbered through all columns
    size = np.bincount(group.reshape(-1))
    place = np.repeat(np.arange(count, dtype=np.float64)[:, None], width, 1)
    shared = np.bincount(group.reshape(-1), weights=place.reshape(-1)) / np.maximum(size, 1)
    found = np.empty((count, width))
    np.put_along_axis(found, order, shared[group], 0)
    return found


def kendall(one: Floats, other: Floats) -> float:
    """Kendall's tau-b of two rows of numbers; NaN where one of them does not vary."""
    a, b = (np.sign(values[:, None] - values[None, :]) for values in (one, other))
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm else float("nan")


def _centred(values: Floats) -> Floats:
    found: Floats = values - values.mean(0)
    return found

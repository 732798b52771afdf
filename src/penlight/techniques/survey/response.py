"""How units answer as one column, or two, go through their values: partial dependence, and where two columns act together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from penlight.inputs import Column
from penlight.techniques.survey.importance import Floats, Values

Pair = tuple[int, int]


def grid(values: Floats, column: Column, points: int) -> Floats:
    """(points,) values of a column's range to try, NaN at the end where there are fewer.

    For a number the quantiles from 1 to 99 %, or its different values where these are no more; for a category those that occur.
    """
    different = np.unique(values)
    if column.categorical or len(different) <= points:
        found = different[:points]
    else:
        found = np.unique(np.quantile(values, np.linspace(0.01, 0.99, points)))
    return np.concatenate([found, np.full(points - len(found), np.nan)])


def respond(
    values: Values, rows: Floats, column: int, places: Floats, single: NDArray[np.intp]
) -> tuple[Floats, NDArray[np.float32]]:
    """(mean (G, T), of single rows (I, G, T)) as a column takes every value of `places` (G,) in all rows (Friedman 2001)."""
    changed = rows.copy()
    means, singles = [], []
    for place in places:
        changed[:, column] = place
        found = values(changed)
        means.append(found.mean(0, dtype=np.float64))
        singles.append(found[single])
    return np.stack(means), np.stack(singles, 1)


def together(
    values: Values, rows: Floats, pairs: Sequence[Pair], variance: Floats
) -> Mapping[Pair, tuple[Floats, Floats]]:
    """Friedman's H² (T,) of every pair, and the variance of what only both together explain over that of the unit, (T,).

    Friedman & Popescu 2008, eq. 44, with the rows themselves as the points: partial dependences are centred.
    """
    alone = {c: _dependence(values, rows, (c,)) for c in sorted({c for pair in pairs for c in pair})}
    found = {}
    for pair in pairs:
        both = _dependence(values, rows, pair)
        rest = ((both - alone[pair[0]] - alone[pair[1]]) ** 2).mean(0)
        whole = (both**2).mean(0)
        least = 1e-10 * np.maximum(variance, 1e-30)  # below that all is rounding
        h2 = np.divide(rest, whole, out=np.zeros_like(rest), where=whole > least)
        share = np.divide(rest, variance, out=np.zeros_like(rest), where=variance > 0)
        found[pair] = (h2, share)
    return found


def _dependence(values: Values, rows: Floats, columns: Sequence[int]) -> Floats:
    """(N, T): the mean over all rows when `columns` hold what they hold in row n, less its mean over n."""
    changed = rows.copy()
    means = []
    for row in rows:
        changed[:, columns] = row[list(columns)]
        means.append(values(changed).mean(0, dtype=np.float64))
    found: Floats = np.stack(means)
    found -= found.mean(0)
    return found


def surface(values: Values, rows: Floats, pair: Pair, first: Floats, second: Floats) -> Floats:
    """(G, H, T): the mean over rows as two columns take the values of `first` (G,) and `second` (H,)."""
    changed = rows.copy()
    found = []
    for one in first:
        changed[:, pair[0]] = one
        for other in second:
            changed[:, pair[1]] = other
            found.append(values(changed).mean(0, dtype=np.float64))
    return np.stack(found).reshape(len(first), len(second), -1)


def likely(shares: Floats, strongest: int, most: int) -> tuple[list[Pair], bool]:
    """Pairs among the `strongest` columns of each unit by `shares` (T, C), at most `most`, those of the weightiest first; and if all."""
    weight: dict[Pair, float] = {}
    for row in shares:
        order = [int(c) for c in np.argsort(-row, kind="stable")[:strongest] if row[c] > 0]
        for n, a in enumerate(order):
            for b in order[n + 1 :]:
                pair = (min(a, b), max(a, b))
                weight[pair] = max(weight.get(pair, 0.0), float(row[a] * row[b]))
    chosen = sorted(weight, key=lambda pair: (-weight[pair], pair))
    return chosen[:most], len(chosen) <= most

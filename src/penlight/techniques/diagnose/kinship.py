"""Which units of a layer say what others say already: the same, its negative, a multiple, or a sum of a few."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BEAM = 32  # best pairs from which a third is looked for
_FIRST = 256  # units tried as the first of a pair
_INDEPENDENT = 1e-6  # share of a unit's variance that others must leave for it to count as another one
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Kin:
    """How a unit is made of others: its correlation with their sum, who they are, and value = Σ factor · other + constant."""

    correlation: float
    others: tuple[int, ...]
    factors: tuple[float, ...]
    constant: float


def kin(covariance: Numbers, centre: Numbers, left_out: Collection[int], alike: float, most: int) -> dict[int, Kin]:
    """Unit → how it is made of up to `most` others, for those whose correlation with their sum is at least `alike` in magnitude.

    Units are taken in order and compared with those before them that were not found so themselves; so the first of a group of
    duplicates stays, and of units that depend on one another linearly the last one goes. `left_out` units do not take part.
    """
    deviation = np.sqrt(np.maximum(np.diag(covariance), 0.0))
    use = deviation > 0
    safe = np.where(use, deviation, 1.0)
    correlation = covariance / np.outer(safe, safe)
    found: dict[int, Kin] = {}
    kept: list[int] = []
    for unit in range(len(covariance)):
        if unit in left_out or not use[unit]:
            continue
        chosen = _explained(correlation, unit, np.array(kept, np.intp), alike, most)
        if chosen is None:
            kept.append(unit)
            continue
        factors = np.linalg.lstsq(covariance[np.ix_(chosen, chosen)], covariance[chosen, unit], rcond=None)[0]
        squared = float(factors @ covariance[chosen, unit]) / covariance[unit, unit]
        sure = float(np.sqrt(min(max(squared, 0.0), 1.0)))
        signed = float(np.clip(correlation[chosen[0], unit], -1, 1)) if len(chosen) == 1 else sure
        constant = float(centre[unit] - factors @ centre[chosen])
        found[unit] = Kin(signed, tuple(chosen), tuple(map(float, factors)), constant)
    return found


def _explained(correlation: Numbers, unit: int, kept: NDArray[np.intp], alike: float, most: int) -> list[int] | None:
    """The fewest of `kept`, at most `most`, that say what `unit` says; singles and pairs by trying all, then the best pairs and a third."""
    if not len(kept):
        return None
    with_unit = correlation[unit, kept]
    best = int(np.argmax(np.abs(with_unit)))
    if abs(with_unit[best]) >= alike:
        return [int(kept[best])]
    among = correlation[np.ix_(kept, kept)]
    goal = alike * alike
    if most < 2 or len(kept) < 2:
        return None
    first = np.argsort(-np.abs(with_unit), kind="stable")[:_FIRST]
    gained = _pairs(with_unit, among, first)
    n, j = np.unravel_index(int(np.argmax(gained)), gained.shape)
    if gained[n, j] >= goal:
        return sorted((int(kept[first[n]]), int(kept[j])))
    if most < 3 or len(kept) < 3:
        return None
    pairs = _best_pairs(gained, first)
    squared = _third(with_unit, among, pairs)
    for pair, reached in zip(pairs.tolist(), squared, strict=True):
        k = int(np.argmax(reached))
        if reached[k] >= goal:
            return sorted(int(kept[i]) for i in (*pair, k))
    return None


def _best_pairs(gained: Numbers, first: NDArray[np.intp]) -> NDArray[np.intp]:
    """(B, 2) places of the pairs that gain most, the best first."""
    flat, count = gained.ravel(), min(2 * _BEAM, gained.size)  # each pair stands there twice
    near = np.flatnonzero(flat >= np.partition(flat, -count)[-count])
    n, j = np.unravel_index(near[np.argsort(-flat[near], kind="stable")[:count]], gained.shape)
    return np.stack([first[n], j], 1)


def _pairs(with_unit: Numbers, among: Numbers, first: NDArray[np.intp]) -> Numbers:
    """(F, K): squared correlation of the unit with the best sum of unit f and unit j."""
    own = with_unit[first]
    between = among[first]
    left = 1.0 - between**2
    new = with_unit[None] - own[:, None] * between
    gained: Numbers = np.where(left > _INDEPENDENT, own[:, None] ** 2 + new**2 / np.maximum(left, _INDEPENDENT), -1.0)
    return gained


def _third(with_unit: Numbers, among: Numbers, pairs: NDArray[np.intp]) -> Numbers:
    """(B, K): squared correlation with the best sum of each pair (B, 2) and unit k."""
    inverse = np.linalg.pinv(among[pairs[:, :, None], pairs[:, None]])
    across, own = among[pairs], with_unit[pairs]
    explained = np.einsum("bij,bj->bi", inverse, own)
    left = 1.0 - np.einsum("bik,bik->bk", across, inverse @ across)
    new = with_unit - np.einsum("bi,bik->bk", explained, across)
    squared: Numbers = np.where(
        left > _INDEPENDENT, (own * explained).sum(1)[:, None] + new**2 / np.maximum(left, _INDEPENDENT), -1.0
    )
    return squared

"""How well values follow a property of text: the area under the ROC curve for a yes/no, the rank correlation for a depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BINS = 1 << 16
_WORST = 5e-4  # error of an area from bins above which a column is sorted instead
_COLUMNS = 64  # worked on at once


def follow(values: NDArray[np.floating], track: NDArray[np.floating], kind: str | None = None) -> NDArray[np.float64]:
    """Scores (U,) of how values (T, U) follow a property (T,).

    For a yes/no the AUROC: the chance that a value where the property holds is above one where it does not; 0.5 is none, below 0.5 the
    negated values follow it. For a depth Spearman's rank correlation, in [-1, 1]. Places where the property is NaN are left out; without
    `kind` ("yes/no" or "depth") a property of zeros and ones is a yes/no. NaN where the property does not change, or a value is not
    finite. Ranks are from 65,536 bins of each column's range where that is within 5e-4, else exact.
    """
    track = np.asarray(track, np.float64)
    known = np.isfinite(track)
    yes_no = is_yes_no(track[known]) if kind is None else kind == "yes/no"
    rows = np.asarray(values)[known] if not known.all() else np.asarray(values)
    if rows.shape[0] < 2 or np.ptp(track[known]) == 0:
        return np.full(rows.shape[1], np.nan)
    return scored(ranks(rows), track[known, None], [yes_no])[:, 0]


def is_yes_no(track: NDArray[np.floating]) -> bool:
    """Whether a property's values are zeros and ones only."""
    return bool(np.isin(track, (0, 1)).all())


def ranks(values: NDArray[np.floating]) -> NDArray[np.float32]:
    """Ranks within each column (T, U) as (U, T) from −0.5 to 0.5, ties sharing their mean; NaN for a column that is not finite."""
    return ranks_among(values, [np.ones(len(values), bool)])[0]


def ranks_among(values: NDArray[np.floating], masks: Sequence[NDArray[np.bool_]]) -> list[NDArray[np.float32]]:
    """For each mask (T,) the `ranks` of the rows (T, U) where it holds, among themselves; every column is sorted once for all."""
    found = [np.empty((values.shape[1], int(mask.sum())), np.float32) for mask in masks]
    numbers = [None if mask.all() else np.cumsum(mask) - 1 for mask in masks]
    for start in range(0, values.shape[1], _COLUMNS):
        # a column at a time, and in memory in a row: as it lies, every step would be a cache miss
        block = np.ascontiguousarray(values[:, start : start + _COLUMNS].T, np.float32)
        for n, column in enumerate(block, start):
            if len(column) >= 2 * _BINS or not np.isfinite(column).all():
                for part, mask in zip(found, masks, strict=True):
                    part[n] = _column_ranks(column[mask]) if mask.any() else ()
                continue
            order, ordered = _sorted(column)
            for part, mask, number in zip(found, masks, numbers, strict=True):
                if number is None:
                    part[n] = _placed(order, ordered)
                else:
                    held = mask[order]
                    part[n] = _placed(number[order[held]], ordered[held])
    return found


def scored(ranked: NDArray[np.float32], tracks: NDArray[np.floating], yes_no: list[bool]) -> NDArray[np.float64]:
    """(U, P) scores of ranks (U, T) against tracks (T, P) without gaps that do change."""
    count = ranked.shape[1]
    given = np.empty(tracks.shape, np.float32)
    for p, yes in enumerate(yes_no):
        column = np.asarray(tracks[:, p], np.float32)
        given[:, p] = column if yes else _column_ranks(column)
    products = (ranked @ given).astype(np.float64)
    scores = np.empty_like(products)
    spread = np.sqrt(np.einsum("ut,ut->u", ranked, ranked, dtype=np.float64))
    for p, yes in enumerate(yes_no):
        if yes:
            ones = float(given[:, p].sum(dtype=np.float64))
            scores[:, p] = 0.5 + products[:, p] * (count - 1) / (ones * (count - ones))
        else:
            own = float(np.sqrt(np.square(given[:, p], dtype=np.float64).sum()))
            size = spread * own
            scores[:, p] = np.divide(products[:, p], size, out=np.where(np.isnan(size), np.nan, 0.0), where=size > 0)
    return scores


def _column_ranks(column: NDArray[np.float32]) -> NDArray[np.float32]:
    count = len(column)
    low, high = float(column.min()), float(column.max())
    if not np.isfinite(high - low):
        return np.full(count, np.nan, np.float32)
    if high == low:
        return np.zeros(count, np.float32)
    if count < 2 * _BINS:
        return _sorted_ranks(column)
    bins = ((column - np.float32(low)) * np.float32((_BINS - 1) / (high - low))).astype(np.uint16)
    held = np.bincount(bins, minlength=_BINS)
    # half of the pairs that share a bin may be the other way round: the most an area of two equal groups is off
    if float(np.square(held / count).sum()) > _WORST:
        return _sorted_ranks(column)
    middle = np.cumsum(held) - (held + 1) / 2
    return ((middle / (count - 1)) - 0.5).astype(np.float32)[bins]


def _sorted_ranks(column: NDArray[np.float32]) -> NDArray[np.float32]:
    return _placed(*_sorted(column))


def _sorted(column: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(places, keys) of finite values, the lowest first; equal values have equal keys."""
    # value and place in one whole number: sorting those is faster than an argsort of the values
    bits = (column + np.float32(0)).view(np.int32)  # −0 becomes 0
    keys = (bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))).astype(np.int64) << 32 | np.arange(len(column))
    keys.sort()
    return keys & 0xFFFFFFFF, keys >> 32


def _placed(order: NDArray[np.int64], ordered: NDArray[np.int64]) -> NDArray[np.float32]:
    """Ranks of what lies at the places `order` by its keys."""
    count = len(order)
    ranked, same = _even(count), np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(same):
        ranked, apart = ranked.copy(), np.diff(same) > 1
        starts, ends = same[np.append(True, apart)], same[np.append(apart, True)] + 2
        tied = np.zeros(count, bool)
        tied[same] = tied[same + 1] = True
        ranked[tied] = np.repeat((starts + ends - 1) / 2 / (count - 1) - 0.5, ends - starts)
    found = np.empty(count, np.float32)
    found[order] = ranked
    return found


@lru_cache(maxsize=8)
def _even(count: int) -> NDArray[np.float32]:
    """Ranks of so many values that all differ, in order."""
    found = (np.arange(count) / (count - 1) - 0.5 if count > 1 else np.zeros(count)).astype(np.float32)
    found.flags.writeable = False
    return found

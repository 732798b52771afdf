"""Pictures that are nearly the same: found by a mark of a few bytes each, so that they need not be kept.

A picture is marked by the difference hash of its brightness, 64 bits, and by the mean colours of its 8 × 8 parts; a small one, with a
side below 64 pixels, by a digest of its pixels. Two large pictures are twins if at most `BITS` bits differ and their colours correlate
at `ALIKE` or more: the same picture stored again, scaled, or cut by a few per cent. Two small ones are twins if they are equal. On 80,000
pairs of different photographs of ImageNet the colours correlate at .89 at most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS, ALIKE = 16, 0.92
_SMALL, _SIDE = 64, 8
_FLAT = 2.0  # spread of colours, of 255, below which a correlation says nothing
_SAME = 2.0  # RMS difference up to which two such pictures are the same


def mark(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """The mark of (C, H, W) uint8 or in [0, 1]."""
    pixels = picture if picture.dtype == np.uint8 else np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
    if min(pixels.shape[1:]) < _SMALL:
        return np.frombuffer(hashlib.blake2b(pixels.tobytes(), digest_size=16).digest(), np.uint8)
    rows = _means(_SIDE, pixels.shape[1]) @ pixels.astype(np.float32)  # (C, 8, W)
    colours = rows @ _means(_SIDE, pixels.shape[2]).T
    grey = rows.mean(0) @ _means(_SIDE + 1, pixels.shape[2]).T
    bits = np.packbits((grey[:, 1:] > grey[:, :-1]).reshape(-1))
    return np.concatenate([bits, np.rint(colours).astype(np.uint8).reshape(-1)])


@cache
def _means(parts: int, length: int) -> NDArray[np.float32]:
    """(parts, length): takes the mean of each part of an axis."""
    edges = (np.arange(parts + 1) * length // parts).tolist()
    table = np.zeros((parts, length), np.float32)
    for n, (a, b) in enumerate(pairwise(edges)):
        table[n, a:b] = 1 / (b - a)
    return table


def pairs(marks: Mapping[int, NDArray[np.uint8]]) -> dict[int, set[int]]:
    """By index, the indices of its twins; only of pictures that have any."""
    if not marks:
        return {}
    index = np.fromiter(marks, np.int64, len(marks))
    table = np.stack(list(marks.values()))
    first, second = _equal(table) if table.shape[1] == 16 else _alike(table)
    found: dict[int, set[int]] = {}
    for a, b in zip(index[first].tolist(), index[second].tolist(), strict=True):
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set()).add(a)
    return found


def _equal(table: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    _, which = np.unique(table, axis=0, return_inverse=True)
    order = np.argsort(which.reshape(-1), kind="stable")
    starts = np.flatnonzero(np.diff(which.reshape(-1)[order], prepend=-1))
    first, second = [], []
    for group in np.split(order, starts[1:]):
        if len(group) > 1:
            a, b = np.triu_indices(len(group), 1)
            first.append(group[a])
            second.append(group[b])
    none = np.zeros(0, np.intp)
    return (np.concatenate(first), np.concatenate(second)) if first else (none, none)


def _alike(table: NDArray[np.uint8], step: int = 512) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    bits = np.unpackbits(table[:, :8], axis=1).astype(np.float32) * 2 - 1
    colours = table[:, 8:].astype(np.float32)
    centred = colours - colours.mean(1, keepdims=True)
    spread = np.sqrt((centred**2).mean(1))
    flat = spread < _FLAT
    unit = np.where(flat[:, None], 0, centred / np.maximum(spread, 1e-9)[:, None]) / np.sqrt(colours.shape[1])
    first, second = [], []
    for start in range(0, len(table), step):
        part = slice(start, start + step)
        near = (64 - bits[part] @ bits[start:].T) / 2 <= BITS
        near &= unit[part] @ unit[start:].T >= ALIKE
        both = np.flatnonzero(flat[part])
        if len(both):  # pictures of one colour each
            others = np.flatnonzero(flat[start:])
            apart = colours[part][both, None] - colours[start:][None, others]
            near[both[:, None], others] = np.sqrt((apart**2).mean(2)) <= _SAME
        a, b = np.nonzero(np.triu(near, 1))
        first.append(a + start)
        second.append(b + start)
    return np.concatenate(first), np.concatenate(second)


def choose(
    index: NDArray[np.int64], count: int, twins: Mapping[int, set[int]]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """Of candidates (U, m) in order, -1 where unfilled: the places of the first `count` of each row of which no two are twins.

    Returns (shown (U, count), rest (U, r), of (U, r)): places in the row, -1 where there is none; the rest are twins of what is shown,
    whose index is in `of`, and what only waits for a place, there -1.
    """
    units, most = index.shape
    number = np.cumsum(index >= 0, axis=1)
    shown_at = (index >= 0) & (number <= count)
    of = np.full((units, most), -1, np.int64)
    if twins:
        doubtful = np.isin(index, np.fromiter(twins, np.int64, len(twins))).sum(1) > 1
        for u in np.flatnonzero(doubtful).tolist():
            shown_at[u], of[u] = _pass_over(index[u].tolist(), count, twins)
    rest_at = (index >= 0) & ~shown_at
    rest = _places(rest_at, int(rest_at.sum(1).max(initial=0)))
    return _places(shown_at, count), rest, np.where(rest >= 0, np.take_along_axis(of, np.maximum(rest, 0), 1), -1)


def _places(chosen: NDArray[np.bool_], width: int) -> NDArray[np.intp]:
    """(U, width) places that are true in (U, m), in order, then -1."""
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :width]
    order = np.pad(order, ((0, 0), (0, width - order.shape[1])))
    return np.where(np.arange(width) < chosen.sum(1, keepdims=True), order, -1)


def _pass_over(row: list[int], count: int, twins: Mapping[int, set[int]]) -> tuple[list[bool], list[int]]:
    """Which candidates of one unit are shown, and for the others the shown one they are twins of, or -1."""
    shown: list[int] = []
    chosen, of = [False] * len(row), [-1] * len(row)
    for place, one in enumerate(row):
        own = twins.get(one, ())
        of[place] = next((other for other in shown if other in own), -1) if one >= 0 else -1
        if one >= 0 and of[place] < 0 and len(shown) < count:
            shown.append(one)
            chosen[place] = True
    return chosen, of

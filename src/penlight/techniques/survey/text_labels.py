"""Which property of the text every cell follows: chosen on one half of a sample, judged on the other.

All cells and properties are tried on the first half; on the second one property a cell and one cell a property are left to be judged. A
claim has to pass two tests there:

- Against chance. Neighbouring characters are alike, so that counting them as independent would find everything significant. The property
  is instead shifted along the text in a circle, by many random lengths, which keeps how both hang together with themselves and breaks
  only how they hang together with each other. The score of a shift is a mean over the text, near normal where the sample holds many runs
  of the property; claims by the thousand need tails that no affordable number of shifts reaches, hence the shifts' mean and deviation
  and Student's quantile for so many shifts: 5 % over all claims that are judged (Bonferroni). The pairs tried before cost nothing: they
  were tried on other text.
- Against cells that nobody trained. The state of any recurrent network holds some of the last characters, and so goes with most
  properties a little, far beyond chance. The same network with the entries of its weights put in another order is read on the same text;
  a cell has to follow the property better than the best of these cells, and than such cells do anywhere among all pairs of cell and
  property in one network of twenty, their strengths taken as normal in d′ (for a rank correlation, Fisher's z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from penlight.inputs.properties import YES_NO, Property
from penlight.results.passages import Best
from penlight.techniques.following import ranks, ranks_among, scored

CHANCE = 0.05
SHIFTS = 128
_DRAWS = 400  # of the bootstrap
_COLUMNS = 128  # units whose ranks are held at once
_RARE = 20  # places a yes/no property has to hold at, and not to hold at, in either half
_BINS = 2048  # of a value in the bootstrap
_ENOUGH = 48  # cells of a layer that tell how far such cells go
_STRONGEST = 8.0  # of a strength: what 1 is taken for
Values = NDArray[np.float32]
Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Half:
    """One half of a sample: values (T, U), a track a property (T, P), which group each token is of (T,)."""

    values: Values
    tracks: Values
    groups: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Of U units and P properties: scores (U, P) of either half, the property chosen for each unit, and whether that claim stands."""

    first: Scores
    second: Scores
    chosen: NDArray[np.int32]  # (U,) −1 where there is none
    stands: NDArray[np.bool_]  # (U,)
    limit: Scores  # (P,) strength that a cell nobody trained does not reach
    best: tuple[Best, ...]


def strength(scores: Scores, kinds: Sequence[str]) -> Scores:
    """Scores (…, P) as d′ or Fisher's z: 0 is none, the sign says whether the cell or its negation follows."""
    found = np.empty_like(scores)
    area = np.vectorize(NormalDist().inv_cdf, otypes=[float])
    for p, kind in enumerate(kinds):
        column = scores[..., p]
        if kind == YES_NO:
            found[..., p] = np.sqrt(2) * area(np.clip(np.nan_to_num(column, nan=0.5), 1e-8, 1 - 1e-8))
        else:
            found[..., p] = np.arctanh(np.clip(np.nan_to_num(column), -1 + 1e-7, 1 - 1e-7))
    return np.clip(found, -_STRONGEST, _STRONGEST)


def plain_strength(scores: Scores, kinds: Sequence[str]) -> Scores:
    """Scores (…, P) from 0, follows nothing, to 1, follows wholly; of both kinds alike, and whatever the sign."""
    yes = np.array([kind == YES_NO for kind in kinds])
    return np.abs(np.where(yes, 2 * np.nan_to_num(scores, nan=0.5) - 1, np.nan_to_num(scores)))


def usable(half: Half, properties: Sequence[Property]) -> NDArray[np.bool_]:
    """(P,): which properties change often enough in a half to be scored."""
    found = []
    for p, one in enumerate(properties):
        track = half.tracks[:, p]
        track = track[np.isfinite(track)]
        if one.kind == YES_NO:
            found.append(min((track == 1).sum(), (track == 0).sum()) >= _RARE)
        else:
            found.append(len(track) >= 2 * _RARE and (track != np.median(track)).sum() >= _RARE)
    return np.array(found, bool)


def score_all(half: Half, kinds: Sequence[str]) -> Scores:
    """(U, P) scores of every unit and property."""
    scores = np.full((half.values.shape[1], len(kinds)), np.nan)
    groups = _by_rows(half.tracks)
    tracks = [half.tracks[rows][:, members] for rows, members in groups]
    for start in range(0, len(scores), _COLUMNS):
        ranked = ranks_among(half.values[:, start : start + _COLUMNS], [rows for rows, _ in groups])
        for (_, members), own, some in zip(groups, tracks, ranked, strict=True):
            scores[start : start + _COLUMNS, members] = scored(some, own, [kinds[p] == YES_NO for p in members])
    return scores


def _by_rows(tracks: Values) -> list[tuple[NDArray[np.bool_], list[int]]]:
    """Properties that are known at the same places, together."""
    groups: dict[bytes, tuple[NDArray[np.bool_], list[int]]] = {}
    for p in range(tracks.shape[1]):
        known = np.isfinite(tracks[:, p])
        groups.setdefault(known.tobytes(), (known, []))[1].append(p)
    return list(groups.values())


def judge(
    first: Half, second: Half, properties: Sequence[Property], unlearned: Scores | None, parts: Sequence[slice],
    rng: np.random.Generator,
) -> Verdicts:  # fmt: skip
    """Choose on the first half, judge on the second.

    `unlearned` (V, P) are scores of cells nobody trained, those of a layer and copy at one of `parts` of V.
    """
    kinds = [one.kind for one in properties]
    chosen_on, judged_on = score_all(first, kinds), score_all(second, kinds)
    tested = max(1, int(np.isfinite(chosen_on).sum()))
    limit = _limit(unlearned, kinds, parts, tested)
    promising = np.abs(strength(chosen_on, kinds)) > limit
    plain = plain_strength(chosen_on, kinds)
    chosen = np.where(promising.any(1), np.where(promising, plain, -1).argmax(1), plain.argmax(1)).astype(np.int32)
    chosen[~np.isfinite(chosen_on).any(1)] = -1
    leaders = plain.argmax(0)
    pairs = {(u, int(p)) for u, p in enumerate(chosen) if p >= 0} | {(int(u), p) for p, u in enumerate(leaders)}
    above = _above_chance(second, judged_on, kinds, pairs, rng)
    beyond = np.abs(strength(judged_on, kinds)) > limit
    alike = np.sign(strength(chosen_on, kinds)) == np.sign(strength(judged_on, kinds))

    def stands(u: int, p: int) -> bool:
        return bool(above.get((u, p), False) and beyond[u, p] and alike[u, p])

    best = tuple(
        _best(
            second,
            one,
            p,
            int(leaders[p]),
            float(judged_on[leaders[p], p]),
            float(limit[p]),
            stands(int(leaders[p]), p),
            rng,
        )
        for p, one in enumerate(properties)
    )
    kept = np.array([p >= 0 and stands(u, int(p)) for u, p in enumerate(chosen)], bool)
    return Verdicts(chosen_on, judged_on, chosen, kept, limit, best)


def _limit(unlearned: Scores | None, kinds: Sequence[str], parts: Sequence[slice], tested: int) -> Scores:
    """(P,) strength that is beyond cells nobody trained; of the layers and copies with enough cells, those that go furthest."""
    if unlearned is None or not len(unlearned):
        return np.zeros(len(kinds))
    found = strength(unlearned, kinds)
    spreads = [np.sqrt(np.mean(found**2, 0))]
    spreads += [np.sqrt(np.mean(found[part] ** 2, 0)) for part in parts if part.stop - part.start >= _ENOUGH]
    quantile = NormalDist().inv_cdf(1 - CHANCE / 2 / tested)
    reached = np.minimum(
        quantile * np.max(spreads, 0), _STRONGEST - 0.5
    )  # else nothing could be claimed, however perfect
    limit: Scores = np.maximum(reached, np.abs(found).max(0))
    return limit


def _above_chance(
    half: Half, scores: Scores, kinds: Sequence[str], pairs: set[tuple[int, int]], rng: np.random.Generator
) -> dict[tuple[int, int], bool]:
    """Of each pair of unit and property whether its score is beyond those of shifted properties."""
    found: dict[tuple[int, int], bool] = {}
    quantile = _student(NormalDist().inv_cdf(1 - CHANCE / 2 / max(1, len(pairs))), SHIFTS - 1)
    for p, kind in enumerate(kinds):
        units = sorted(u for u, other in pairs if other == p)
        known = np.isfinite(half.tracks[:, p])
        track = half.tracks[known, p]
        if not units or len(track) < 4:
            continue
        shifted = np.stack([np.roll(track, int(by)) for by in rng.integers(1, len(track), SHIFTS)], 1)
        for start in range(0, len(units), _COLUMNS):
            some = units[start : start + _COLUMNS]
            null = scored(ranks(half.values[known][:, some]), shifted, [kind == YES_NO] * SHIFTS)
            spread = null.std(1, ddof=1) * np.sqrt(1 + 1 / SHIFTS)
            away = np.abs(scores[some, p] - null.mean(1))
            found |= {(u, p): bool(a > quantile * s) for u, a, s in zip(some, away, spread, strict=True)}
    return found


def _student(z: float, freedom: int) -> float:
    """Student's quantile from the normal one, to the second order in 1/freedom (Fisher & Cornish 1960)."""
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _best(
    half: Half, one: Property, p: int, unit: int, score: float, limit: float, stands: bool, rng: np.random.Generator
) -> Best:  # fmt: skip
    low, high = interval(half.values[:, unit], half.tracks[:, p], half.groups, one.kind, rng)
    reached = NormalDist().cdf(limit / np.sqrt(2)) if one.kind == YES_NO else float(np.tanh(limit))
    falls = score < (0.5 if one.kind == YES_NO else 0)
    if falls:
        score, low, high = (1 - score, 1 - high, 1 - low) if one.kind == YES_NO else (-score, -high, -low)
    return Best(one.name, one.kind, unit, score, low, high, falls, stands, reached)


def interval(
    values: Values, track: Values, groups: NDArray[np.int64], kind: str, rng: np.random.Generator
) -> tuple[float, float]:
    """95 % of a score by bootstrap over groups, texts or pieces of them; (NaN, NaN) where there is one group only."""
    known = np.isfinite(track)
    values, track, groups = values[known], track[known], np.unique(groups[known], return_inverse=True)[1]
    count = int(groups.max(initial=-1)) + 1
    if count < 2:
        return float("nan"), float("nan")
    weights = rng.multinomial(count, np.full(count, 1 / count), _DRAWS).astype(np.float64)
    if kind == YES_NO:
        bins = _quantiles(values)
        ones, zeros = (_by_group(groups[track == t], bins[track == t], count) for t in (1, 0))
        drawn = _areas(weights @ ones, weights @ zeros)
    else:
        rows = [np.flatnonzero(groups == g) for g in range(count)]
        drawn = np.array([_correlation(values, track, rows, w) for w in weights[: _DRAWS // 4].astype(int)])
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return float("nan"), float("nan")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _quantiles(values: Values) -> NDArray[np.int64]:
    """Ranks in at most 2,048 steps."""
    ranked = ranks(values[:, None])[0].astype(np.float64)
    found: NDArray[np.int64] = np.nan_to_num((ranked + 0.5) * (_BINS - 1)).astype(np.int64)
    return found


def _by_group(groups: NDArray[np.int64], bins: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    held = np.bincount(groups * _BINS + bins, minlength=count * _BINS)
    return held.reshape(count, _BINS).astype(np.float64)


def _areas(ones: NDArray[np.float64], zeros: NDArray[np.float64]) -> Scores:
    """AUROC of each row of histograms (R, bins); NaN where one is empty."""
    below = np.cumsum(zeros, 1) - zeros / 2
    pairs = ones.sum(1) * zeros.sum(1)
    found: Scores = np.divide((ones * below).sum(1), pairs, out=np.full(len(ones), np.nan), where=pairs > 0)
    return found


def _correlation(values: Values, track: Values, rows: list[NDArray[np.int64]], weights: NDArray[np.int64]) -> float:
    picked = np.concatenate([np.tile(rows[g], w) for g, w in enumerate(weights) if w])
    if np.ptp(track[picked]) == 0:
        return float("nan")
    return float(scored(ranks(values[picked, None]), track[picked, None], [False])[0, 0])

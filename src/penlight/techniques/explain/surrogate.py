"""Linear models of what the network says of masks, in closed form, and how alike two rankings are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penlight.techniques.explain.features import Masks

Numbers = NDArray[np.float64]
SELECTIONS = ("all", "highest_weights", "forward")
_CHOOSING = 0.01  # ridge of the fit whose largest weights are chosen, as in lime


@dataclass(frozen=True, eq=False)
class Fit:
    """value ≈ intercept + mask · weights; `r2` is the share of the weighted variance that this explains."""

    weights: Numbers
    intercept: float
    r2: float

    def predict(self, masks: Masks) -> Numbers:
        """(N,): what the model says of masks (N, n)."""
        said: Numbers = masks @ self.weights + self.intercept
        return said


def ridge(masks: Masks, values: Numbers, weight: Numbers, alpha: float = 1.0) -> Fit:
    """Least squares of `values` (N,) on `masks` (N, n), rows weighted, with alpha · |weights|² and a free intercept.

    The same as scikit-learn's `Ridge(alpha).fit(masks, values, sample_weight)`.
    """
    moments = _Moments.of(masks, values, weight)
    weights = moments.solve(np.arange(masks.shape[1]), alpha)
    intercept = moments.value - float(moments.mask @ weights)
    return Fit(weights, intercept, weighted_r2(values, masks @ weights + intercept, weight))


@dataclass(frozen=True, eq=False)
class _Moments:
    """Weighted means and centred second moments."""

    mask: Numbers
    value: float
    gram: Numbers
    cross: Numbers
    spread: float

    @classmethod
    def of(cls, masks: Masks, values: Numbers, weight: Numbers) -> _Moments:
        share = weight / weight.sum()
        mask, value = (masks.T @ share).astype(np.float64), float(share @ values)
        centred, off = masks - mask, values - value
        scaled = centred * weight[:, None]
        return cls(mask, value, scaled.T @ centred, scaled.T @ off, float(weight @ off**2))

    def solve(self, parts: NDArray[np.intp], alpha: float) -> Numbers:
        """Weights of some of the parts."""
        gram = self.gram[np.ix_(parts, parts)] + alpha * np.eye(len(parts))
        return _solved(gram, self.cross[parts])


def _solved(gram: Numbers, cross: Numbers) -> Numbers:
    try:
        solved: Numbers = np.asarray(np.linalg.solve(gram, cross), np.float64)
        if np.isfinite(solved).all():
            return solved
    except np.linalg.LinAlgError:
        pass
    least: Numbers = np.asarray(
        np.linalg.lstsq(gram, cross, rcond=None)[0], np.float64
    )  # parts that were always drawn together
    return least


def select(masks: Masks, values: Numbers, weight: Numbers, count: int, way: str) -> NDArray[np.intp]:
    """The `count` parts a short explanation keeps, as lime chooses them.

    "highest_weights": the largest weights of a ridge of .01 on all parts that the input has; "forward": one after the other, each time
    the part that raises R² most.
    """
    moments = _Moments.of(masks, values, weight)
    every = np.arange(masks.shape[1])
    if way == "highest_weights":
        size = np.abs(moments.solve(every, _CHOOSING) * masks[0])
        return np.argsort(-size, kind="stable")[:count]
    chosen: list[int] = []
    for _ in range(min(count, len(every))):
        gains = np.full(len(every), -np.inf)
        for part in every:
            if part not in chosen:
                some = np.array([*chosen, part])
                gains[part] = moments.cross[some] @ moments.solve(some, 0.0)
        chosen.append(int(gains.argmax()))
    return np.array(chosen)


def constrained(masks: Masks, values: Numbers, weight: Numbers, nothing: float, everything: float) -> Fit:
    """Weighted least squares with the intercept f(nothing) and weights that sum to f(everything) − f(nothing), exactly.

    The two ends are Lundberg and Lee's infinite weights; the second is kept by a Lagrange multiplier.
    """
    total, off = everything - nothing, values - nothing
    scaled = masks * weight[:, None]
    gram = scaled.T @ masks
    gram += 1e-10 * np.trace(gram) / len(gram) * np.eye(len(gram))
    solved = _solved(gram, np.stack([scaled.T @ off, np.ones(len(gram))], axis=1))
    free, one = solved.T
    weights = free - one * (free.sum() - total) / one.sum()
    weights += (total - weights.sum()) / len(weights)  # what rounding left
    return Fit(weights, nothing, weighted_r2(values, masks @ weights + nothing, weight))


def weighted_r2(values: Numbers, said: Numbers, weight: Numbers) -> float:
    """1 − Σ w (value − said)² / Σ w (value − mean)², scikit-learn's score; 0 where the values are all the same."""
    left = float(weight @ (values - said) ** 2)
    spread = float(weight @ (values - weight @ values / weight.sum()) ** 2)
    return 1 - left / spread if spread > 0 else 0.0


def kendall(one: Numbers, other: Numbers) -> float:
    """Kendall's tau-b between two rankings (n,): 1 alike, 0 unrelated, -1 reversed; 0 where one of them is all ties."""
    a, b = (np.sign(np.subtract.outer(ranks, ranks)) for ranks in (one, other))
    scale = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / scale if scale else 0.0


def lengthened(tau: float) -> float:
    """The tau to be expected from twice as many draws, by Spearman and Brown; see `sampler.stability`."""
    if tau <= 0:
        return tau
    related = math.sin(math.pi / 2 * min(tau, 1.0))
    return 2 / math.pi * math.asin(min(1.0, 2 * related / (1 + related)))

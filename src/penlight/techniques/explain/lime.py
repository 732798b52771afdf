"""LIME: a linear model of what the network says when parts of the input are taken away."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.techniques.contract import Progress
from penlight.techniques.explain.explanation import Attribution, Scene
from penlight.techniques.explain.features import Features, Masks, OfParts, read_as
from penlight.techniques.explain.sampler import (
    Drawn,
    Plan,
    Streams,
    asking,
    balanced,
    bernoulli,
    binomial,
    collect,
    every,
    mirrored,
)
from penlight.techniques.explain.surrogate import SELECTIONS, Fit, kendall, ridge, select, weighted_r2
from penlight.techniques.explain.tabular import binned
from penlight.techniques.explain.triples import Clearing
from penlight.techniques.options import option

Numbers = NDArray[np.float64]
STABLE = 0.8
_WIDTH, _WIDTH_OF_ROWS = 0.25, 0.75
_WEAK = 0.5


@dataclass(frozen=True)
class Sampled(OfParts):
    """The options that LIME and kernel SHAP share: how many draws, and how often."""

    samples: int = option(
        0, "inputs shown to the network, 10 or more; 0 goes on until the ranking of the parts is stable", low=0
    )
    stability: float = option(
        STABLE,
        "with samples 0: Kendall's tau to be expected between this ranking and that of other draws",
        low=0,
        high=0.99,
    )
    repeats: int = option(
        1, "independent repeats of it all: with 2 or more their rankings are compared, and their mean is the map", low=1
    )

    def repeated(self, scene: Scene, draw: Callable[[int, Progress], Drawn]) -> list[Drawn]:
        """`draw(turn, progress)` for every repeat."""

        def tell(turn: int, done: int, of: int) -> None:
            scene.progress(turn * of + done, self.repeats * of)

        return [draw(turn, partial(tell, turn)) for turn in range(self.repeats)]

    def agreement(self, runs: Sequence[Drawn], weights: Sequence[Numbers]) -> dict[str, Any]:
        """How stable the ranking is: expected from the draws, and measured if there were several."""
        found: dict[str, Any] = {"stability (tau)": float(np.mean([drawn.stability for drawn in runs]))}
        if len(weights) > 1:
            found["tau between repeats"] = float(np.mean([kendall(a, b) for a, b in combinations(weights, 2)]))
        return found

    def remarks(self, runs: Sequence[Drawn], scene: Scene) -> tuple[str, ...]:
        """What is to be said of the draws."""
        if all(float(np.ptp(drawn.values)) == 0 for drawn in runs):
            return (f"{scene.aim} is the same whatever is taken away",)
        if all(drawn.stable for drawn in runs):
            return ()
        least, most = min(drawn.stability for drawn in runs), max(len(drawn.masks) for drawn in runs)
        told = f"the ranking is not stable after {most} samples (tau {least:.2f}, wanted {self.stability:g})"
        return (f"{told}; give more samples or fewer parts",)


@dataclass(frozen=True)
class Kernel:
    """What a mask counts by its distance d from the whole input: √exp(−d² / width²).

    The distance is the cosine's between masks, or, for rows of a table, the Euclidean one.
    """

    width: float
    euclidean: bool

    def __call__(self, masks: Masks) -> Numbers:
        return self._of(masks.sum(1), masks.shape[1])

    def paired(self, masks: Masks) -> Numbers:
        """The same for masks with their complements: both of a pair have their mean, where they are not too unlike for that."""
        stays, count = masks.sum(1), masks.shape[1]
        own, other = self._of(stays, count), self._of(count - stays, count)
        return (own + other) / 2 if self.even(count) else own

    def even(self, count: int) -> bool:
        """Whether a typical mask of so many parts, one standard deviation from the middle, and its complement weigh less than 2 : 1."""
        typical = np.array([(count + math.sqrt(count)) / 2, (count - math.sqrt(count)) / 2])
        more, less = self._of(typical, count)
        return bool(more < 2 * less)

    def _of(self, stays: NDArray[Any], count: int) -> Numbers:
        distance = np.sqrt(count - stays) if self.euclidean else 1 - np.sqrt(stays / count)
        weight: Numbers = np.sqrt(np.exp(-(distance**2) / self.width**2))
        return weight


@dataclass(frozen=True)
class Lime(Sampled):
    """Ribeiro, Singh and Guestrin 2016, with the constants of the `lime` package and better draws.

    >>> r = penlight.explain(model, "cat.png", unit="class:tabby", method="lime")     # doctest: +SKIP
    >>> r.values.shape, r.evidence["samples"], r.evidence["r2"]                       # doctest: +SKIP

    The values are a map (h, w): every pixel has its segment's weight, in the unit of what is explained; a row of a table keeps its
    shape. `extras` hold the `segments` (h, w) and their `weights` (n,).

    `sampling="bernoulli"`, `of="probability"` and `samples=1000` are what lime 0.2.0.1 does. Left alone, three things differ. The class's
    score is explained, as by all other methods here: a linear model fits it better than the probability, which is nearly 0 for most draws.
    Draws come in pairs of a mask and its complement, balanced. Both of a pair have the mean of their kernel weights where these are less
    than 2 : 1 apart, as lime's are from 24 segments on: then what pairs of parts do together cancels, at the price of a neighbourhood that
    is centred on half of the parts instead of a little more, and what three parts do together is estimated from the draws and taken off,
    which leaves the weights that endless draws would give and brings them nearer (`triples`). And draws end when the ranking is stable.

    A table's row with data beside it is perturbed as lime's tabular explainer does it, among the quartiles of its columns and their
    categories; a text as its text explainer does it with bow=False, a part at every place of its own.
    """

    name: ClassVar[str] = "lime"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Ribeiro, Singh and Guestrin 2016"
    guarantee: ClassVar[str] = (
        "weights of a linear model of what the network says when parts are taken away; r2 tells how much of that it explains,"
        " and another fill or segmentation gives another map"
    )

    sampling: str = option(
        "paired",
        "masks with their complements, balanced, or each part by a coin as lime does it",
        choices=("paired", "bernoulli"),
    )
    kernel_width: float = option(
        0.0,
        "how fast draws count less with their distance; 0 is lime's: .25 (cosine), for tables .75·√columns (Euclidean)",
        low=0,
    )
    alpha: float = option(1.0, "ridge of the linear model", low=0)
    triples: bool = option(
        True, "take off what three parts do together, as far as balanced pairs tell it; False fits as lime does"
    )
    select: str = option(
        "all", "parts that keep a weight: all, or `top` of them, chosen as lime chooses", choices=SELECTIONS
    )
    top: int = option(10, "parts that keep a weight, unless select is all", low=1)

    def attribute(self, scene: Scene) -> Attribution:
        scene = read_as(scene, self.of)
        parts = self.parts(scene)
        runs = self.repeated(scene, partial(self._draw, scene, parts))
        fits = [self._fit(parts, drawn.masks, drawn.values) for drawn in runs]
        weights = np.mean([fit.weights for fit in fits], axis=0)
        intercept = float(np.mean([fit.intercept for fit in fits]))
        r2 = float(np.mean([fit.r2 for fit in fits]))
        evidence = {
            "samples": sum(len(drawn.masks) for drawn in runs),
            "segments": parts.count,
            "cut by": parts.kind,
            "r2": r2,
            **self.agreement(runs, [fit.weights for fit in fits]),
            "intercept": intercept,
            "linear model": intercept + float(weights.sum()),
            "network": float(runs[0].values[0]),
        }
        notes = self.remarks(runs, scene)
        if r2 < _WEAK and not notes:
            notes = (f"r2 is {r2:.2f}: no linear model of these parts says much about the network here",)
        return Attribution(
            parts.spread(weights), True, evidence, notes, {**parts.arrays(), "weights": weights}, parts=parts.names
        )

    def parts(self, scene: Scene) -> Features:
        if len(scene.model.contract.shape) == 1 and scene.data is not None and self.fill == "auto":
            return binned(scene, scene.data)
        return super().parts(scene)

    def kernel(self, parts: Features) -> Kernel:
        """The kernel of these options for so many parts."""
        if parts.axes == 1:
            return Kernel(self.kernel_width or _WIDTH_OF_ROWS * math.sqrt(parts.count), True)
        return Kernel(self.kernel_width or _WIDTH, False)

    def weigh(self, parts: Features, masks: Masks) -> Numbers:
        """(N,): what each mask counts in the fit. The whole input, which comes first, is one of lime's draws and none of the balanced."""
        kernel = self.kernel(parts)
        if not self._is_balanced(parts) or len(masks) == 2**parts.count:
            return kernel(masks)
        weight = kernel.paired(masks)
        weight[0] = 0
        return weight

    def _is_balanced(self, parts: Features) -> bool:
        return parts.exact and self.sampling == "paired"

    def _cleared(self, parts: Features, masks: Masks, values: Numbers, weight: Numbers, clear: Clearing) -> Numbers:
        """What the linear model is fitted to: the values, of balanced pairs less what three parts do together."""
        if not self.triples or not self._is_balanced(parts) or len(masks) == 2**parts.count:
            return values
        if not self.kernel(parts).even(parts.count):
            return values
        return np.concatenate([values[:1], clear(masks[1:], values[1:], weight[1::2])])

    def _draw(self, scene: Scene, parts: Features, turn: int, progress: Progress) -> Drawn:
        plan = Plan(self.samples, self.stability)

        if self._is_balanced(parts):
            if plan.takes_every(parts.count):
                return Drawn.of_all(every(parts.count), asking(scene, parts))
            streams = Streams.of(balanced, binomial(parts.count), scene, "lime", turn)
        else:
            streams = Streams.of(
                mirrored if self.sampling == "paired" else bernoulli, parts.chance, scene, "lime", turn
            )
        head, clear = np.ones((1, parts.count), bool), Clearing()

        def ranked(masks: Masks, values: Numbers) -> Numbers:
            weight = self.weigh(parts, masks)
            return ridge(masks, self._cleared(parts, masks, values, weight, clear), weight, self.alpha).weights

        return collect(asking(scene, parts), head, streams, ranked, plan, progress)

    def _fit(self, parts: Features, masks: Masks, values: Numbers) -> Fit:
        weight = self.weigh(parts, masks)
        cleared = self._cleared(parts, masks, values, weight, Clearing())
        chosen = np.arange(parts.count)
        if self.select != "all" and self.top < parts.count:
            chosen = select(masks, cleared, weight, self.top, self.select)
        short = ridge(masks[:, chosen], cleared, weight, self.alpha)
        weights = np.zeros(parts.count)
        weights[chosen] = short.weights
        return Fit(weights, short.intercept, weighted_r2(values, short.predict(masks[:, chosen]), weight))

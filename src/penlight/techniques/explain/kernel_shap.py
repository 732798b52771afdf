"""Kernel SHAP: Shapley values of the parts of an input, by weighted least squares."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.techniques.contract import Progress
from penlight.techniques.explain.explanation import Attribution, Scene
from penlight.techniques.explain.features import Features, Masks, read_as
from penlight.techniques.explain.lime import Sampled
from penlight.techniques.explain.sampler import Drawn, Plan, Streams, asking, balanced, collect, every
from penlight.techniques.explain.surrogate import Fit, constrained

Numbers = NDArray[np.float64]
_ROOM = 6  # samples a part from which all masks of one part, and of all but one, are worth taking


@dataclass(frozen=True)
class KernelShap(Sampled):
    """Lundberg and Lee 2017: how much each part adds, averaged over all orders in which parts can appear.

    >>> r = penlight.explain(model, "cat.png", unit="class:tabby", method="kernel-shap")     # doctest: +SKIP
    >>> r.extras["weights"].sum(), r.evidence["whole less nothing"]                          # doctest: +SKIP

    The weights of the parts sum to the value for the whole input less the value with all parts away, exactly; the values are a map of
    the input in which every place has its part's weight. With up to 11 parts all 2ⁿ masks are taken, and the values are the Shapley
    values themselves. Otherwise, with 6 samples a part or more, all masks of one part and of all but one are taken; further ones of k of n
    parts are drawn as often as the Shapley kernel (n − 1) / (C(n, k) k (n − k)) weighs them together, in pairs of a mask and its
    complement, balanced, and count alike.
    """

    name: ClassVar[str] = "kernel-shap"
    paper: ClassVar[str] = "Lundberg and Lee 2017"
    guarantee: ClassVar[str] = (
        "Shapley values of the parts against the fill: they sum to the value less that of the input with everything away,"
        " and another fill gives others"
    )

    def attribute(self, scene: Scene) -> Attribution:
        scene = read_as(scene, self.of)
        parts = self.parts(scene)
        runs = self.repeated(scene, partial(self._draw, scene, parts))
        fits = [shapley(drawn.masks, drawn.values, int((drawn.stream < 0).sum())) for drawn in runs]
        weights = np.mean([fit.weights for fit in fits], axis=0)
        whole, nothing = (float(value) for value in _ends(runs[0].masks, runs[0].values))
        evidence = {
            "samples": sum(len(drawn.masks) for drawn in runs),
            "segments": parts.count,
            "cut by": parts.kind,
            **self.agreement(runs, [fit.weights for fit in fits]),
            "r2": float(np.mean([fit.r2 for fit in fits])),
            "network": whole,
            "nothing there": nothing,
            "whole less nothing": whole - nothing,
            "sum less that": float(weights.sum()) - (whole - nothing),
        }
        arrays = {**parts.arrays(), "weights": weights}
        return Attribution(parts.spread(weights), True, evidence, self.remarks(runs, scene), arrays, parts=parts.names)

    def _draw(self, scene: Scene, parts: Features, turn: int, progress: Progress) -> Drawn:
        plan, count = Plan(self.samples, self.stability), parts.count
        if plan.takes_every(count):
            return Drawn.of_all(every(count), asking(scene, parts))
        share, head = sizes(count), [np.ones((1, count), bool), np.zeros((1, count), bool)]
        if not plan.samples or plan.samples >= _ROOM * count:  # sizes of which all masks are taken need no draws
            share[[1, -2]] = 0
            head += [np.eye(count, dtype=bool), ~np.eye(count, dtype=bool)]
        streams = Streams.of(balanced, share, scene, "kernel-shap", turn)

        taken = np.concatenate(head)

        def values_of(masks: Masks, values: Numbers) -> Numbers:
            return shapley(masks, values, len(taken)).weights

        return collect(asking(scene, parts), taken, streams, values_of, plan, progress)


def sizes(count: int) -> Numbers:
    """(n + 1,): the Shapley kernel of all masks of k parts together, ∝ 1 / (k (n − k)); 0 at both ends."""
    k = np.arange(1, count)
    return np.concatenate([[0.0], 1 / (k * (count - k)), [0.0]])


def shapley(masks: Masks, values: Numbers, taken: int) -> Fit:
    """Weights from masks (N, n) and values (N,), the first with everything.

    The first `taken` are all masks of their sizes, once each, the empty one among them, and count together as the Shapley kernel says;
    the others are drawn by size, and count alike.
    """
    stays, count = masks.sum(1), masks.shape[1]
    share, found = sizes(count), np.bincount(stays[:taken], minlength=count + 1)
    weight = np.full(len(masks), share[found == 0].sum() / max(1, len(masks) - taken))
    weight[:taken] = (share / np.maximum(found, 1))[stays[:taken]]
    inner = weight > 0
    whole, nothing = _ends(masks, values)
    return constrained(masks[inner], values[inner], weight[inner] / weight.max(), nothing, whole)


def _ends(masks: Masks, values: Numbers) -> tuple[float, float]:
    """The values with everything and with nothing."""
    stays = masks.sum(1)
    return float(values[stays.argmax()]), float(values[stays.argmin()])

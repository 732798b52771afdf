"""Shards of a survey put together; in any order they give what one pass over all of it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput
from penlight.results import LayerSurvey, Provenance, SurveyResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import provenance
from penlight.techniques.survey import histogram


@dataclass(frozen=True)
class Merge(Technique):
    """The surveys among `request.earlier`, made of disjoint shards of one data set, as one survey.

    Histograms can be added because their bins are fixed beforehand, as in DDSketch.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "merge"
    paper: ClassVar[str] = "Masson, Rim & Lee 2019, arXiv:1908.10693"

    def run(self, request: Request) -> SurveyResult:
        """The merged survey. `BadInput` if there is none or they do not belong together."""
        merged = merge([result for result in request.earlier if isinstance(result, SurveyResult)])
        return replace(merged, provenance=provenance(self, request))


def merge(results: Sequence[SurveyResult]) -> SurveyResult:
    """Surveys of disjoint shards → the survey of all of them.

    Top lists, counts, extremes and histograms are exactly those of one pass, means to float64's rounding, whatever the order. The
    provenance is that of a pass over the whole range.
    Raises `BadInput` for shards of different surveys, or the same one twice.
    """
    if not results:
        raise BadInput("there is no survey to merge; give the results of 'stream' for each shard")
    if not any(result.count for result in results):
        raise BadInput("not one input of the surveys to merge could be read")
    shards = sorted(results, key=lambda r: _range(r.provenance))  # sums do not depend on the order then either
    _check(shards)
    first = shards[0]
    merged = {path: _layer(shards, path) for path in first.layers}
    counts, edges = histogram.trim([layer.histogram for layer in merged.values()])
    layers = {
        path: replace(layer, histogram=count) for (path, layer), count in zip(merged.items(), counts, strict=True)
    }
    standing = {int(i) for layer in layers.values() for i in np.unique(layer.top_index)}
    return SurveyResult(
        _provenance(shards),
        layers,
        sum(shard.count for shard in shards),
        {i: name for i, name in sorted((i, n) for shard in shards for i, n in shard.names.items()) if i in standing},
        {
            i: number
            for i, number in sorted((i, n) for shard in shards for i, n in shard.truth.items())
            if i in standing
        },
        edges,
        first.classes,
        tuple(map(sum, zip(*(shard.class_count for shard in shards), strict=True))),
        tuple(entry for shard in shards for entry in shard.skipped),
    )


def _range(provenance: Provenance) -> tuple[int, float]:
    options = provenance.options
    return int(options.get("start", 0)), float(options.get("stop", 0) or np.inf)


def _provenance(shards: Sequence[SurveyResult]) -> Provenance:
    ranges = [_range(shard.provenance) for shard in shards]
    stop = max(stop for _, stop in ranges)
    options = {
        **shards[0].provenance.options,
        "start": min(start for start, _ in ranges),
        "stop": int(stop) if np.isfinite(stop) else 0,
    }
    return replace(shards[0].provenance, options=options)


def _check(shards: Sequence[SurveyResult]) -> None:
    first = shards[0]
    for a, b in pairwise(shards):
        if a.provenance.method == "stream" and a.provenance.options == b.provenance.options:
            start, stop = _range(a.provenance)
            raise BadInput(f"the shard from {start} to {stop:g} is given twice; give each one once")
    for shard in shards[1:]:
        for what, own, other in (
            ("model", shard.provenance.model_hash, first.provenance.model_hash),
            ("data", shard.provenance.data, first.provenance.data),
            ("layers", list(shard.layers), list(first.layers)),
            ("classes", shard.classes, first.classes),
            ("top", _length(shard), _length(first)),
        ):
            if own != other:
                raise BadInput(f"the surveys to merge differ in {what}: they are no shards of one survey")


def _length(result: SurveyResult) -> int:
    return int(next(iter(result.layers.values())).top_index.shape[1])


def _layer(shards: Sequence[SurveyResult], path: str) -> LayerSurvey:
    parts = [shard.layers[path] for shard in shards]
    try:
        counts = [histogram.widen(part.histogram, shard.edges) for part, shard in zip(parts, shards, strict=True)]
    except ValueError as error:
        raise BadInput(f"the surveys to merge cannot be: {error}") from error
    valid = np.stack([count.sum(1) for count in counts])  # (shards, U)
    numbers = np.array([shard.class_count for shard in shards], np.int64)[:, None]  # (shards, 1, K)
    index, activation, position, box = _top(parts)
    return LayerSurvey(
        index,
        activation,
        position,
        box,
        _mean([part.mean for part in parts], valid),
        _mean([part.mean_max for part in parts], valid),
        np.fmax.reduce([part.maximum for part in parts]),
        np.fmin.reduce([part.minimum for part in parts]),
        _fires(parts, valid),
        np.sum(counts, axis=0),
        _mean([part.class_mean for part in parts], np.broadcast_to(numbers, (len(parts), *parts[0].class_mean.shape))),
    )


def _mean(means: Sequence[NDArray[np.float64]], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of means of different weights; NaN where all weigh nothing."""
    total = np.where(weights > 0, np.stack(means) * weights, 0.0).sum(0)
    number = weights.sum(0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _fires(parts: Sequence[LayerSurvey], valid: NDArray[np.int64]) -> NDArray[np.float64]:
    """From the whole numbers that the shares stand for."""
    fired = np.rint(np.stack([part.fires for part in parts]) * valid).sum(0)
    return fired / np.maximum(valid.sum(0), 1)  # type: ignore[no-any-return]


def _top(parts: Sequence[LayerSurvey]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(index, activation, position, box) of the best of all lists; equal ones by index, unfilled places last."""
    index, activation, position, box = (
        np.concatenate([getattr(part, f"top_{name}") for part in parts], axis=1)
        for name in ("index", "activation", "position", "box")
    )
    empty = index < 0
    order = np.lexsort((index, np.where(empty, np.inf, -activation), empty), axis=1)[:, : parts[0].top_index.shape[1]]
    flat = order[:, :, None]
    return (
        np.take_along_axis(index, order, 1),
        np.take_along_axis(activation, order, 1),
        np.take_along_axis(position, flat, 1),
        np.take_along_axis(box, flat, 1),
    )

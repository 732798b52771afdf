"""Shards of a survey put together; in any order they give what one pass over all of it gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from penlight.techniques.survey.lists import RESERVE, Listing, shown, together
from penlight.techniques.survey.scores import BINNED, EXACT, areas
from penlight.techniques.survey.twins import pairs


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
    counts = {path: _counts(shards, path) for path in first.layers}
    trimmed, edges = histogram.trim([np.sum(count, axis=0) for count in counts.values()])
    whole = bool(first.size) and sum(shard.count + len(shard.skipped) for shard in shards) == first.size
    known = {i: found for shard in shards for i, found in shard.marks.items()}
    listed = {path: _lists(shards, path) for path in first.layers}
    twins = pairs({i: known[i] for i in _standing(listed.values()) if i in known})
    layers = {
        path: LayerSurvey(
            **_statistics(shards, path, counts[path]),
            histogram=count,
            **shown(*listed[path], _lengths(first), twins),
            **_scored(shards, path, whole),
        )
        for (path, count) in zip(counts, trimmed, strict=True)
    }
    standing = _standing(listed.values())
    return SurveyResult(
        _provenance(shards),
        layers,
        sum(shard.count for shard in shards),
        _gathered((shard.names for shard in shards), standing),
        _gathered((shard.truth for shard in shards), standing),
        edges,
        first.classes,
        tuple(map(sum, zip(*(shard.class_count for shard in shards), strict=True))),
        tuple(entry for shard in shards for entry in shard.skipped),
        first.size,
        first.scored,
        np.zeros(0, np.int32) if whole else np.concatenate([shard.peak_class for shard in shards]),
        {i: known[i] for i in sorted(known) if i in standing},
    )


_Lists = tuple[Listing, Listing | None]


def _lists(shards: Sequence[SurveyResult], path: str) -> _Lists:
    """A layer's candidates of all shards, as one survey would have kept them."""
    parts = [shard.layers[path] for shard in shards]
    kept = RESERVE if any(shard.marks for shard in shards) else 1
    top, bottom = (kept * length for length in _lengths(shards[0]))
    return together(parts, "top", top), together(parts, "bottom", bottom) if bottom else None


def _lengths(result: SurveyResult) -> tuple[int, int]:
    """Examples shown of the top and of the bottom."""
    first = next(iter(result.layers.values()))
    return int(first.top_index.shape[1]), int(first.bottom_index.shape[1])


def _standing(listed: Iterable[_Lists]) -> set[int]:
    return {int(i) for lists in listed for one in lists if one is not None for i in np.unique(one.index) if i >= 0}


def _gathered(tables: Iterable[Mapping[int, Any]], standing: set[int]) -> dict[int, Any]:
    found = {i: value for table in tables for i, value in table.items() if i in standing}
    return dict(sorted(found.items()))


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
    if not all(shard.size for shard in shards):
        raise BadInput("one of the surveys to merge was saved by an earlier version; survey that part again")
    for shard in shards[1:]:
        for what, own, other in (
            ("model", shard.provenance.model_hash, first.provenance.model_hash),
            ("data", shard.provenance.data, first.provenance.data),
            ("layers", list(shard.layers), list(first.layers)),
            ("classes", shard.classes, first.classes),
            ("top", _lengths(shard)[0], _lengths(first)[0]),
            ("bottom", _lengths(shard)[1], _lengths(first)[1]),
            ("how classes are scored", shard.scored, first.scored),
        ):
            if own != other:
                raise BadInput(f"the surveys to merge differ in {what}: they are no shards of one survey")


def _counts(shards: Sequence[SurveyResult], path: str) -> list[NDArray[np.int64]]:
    try:
        return [histogram.widen(shard.layers[path].histogram, shard.edges) for shard in shards]
    except ValueError as error:
        raise BadInput(f"the surveys to merge cannot be: {error}") from error


def _statistics(
    shards: Sequence[SurveyResult], path: str, counts: Sequence[NDArray[np.int64]]
) -> dict[str, NDArray[Any]]:
    parts = [shard.layers[path] for shard in shards]
    valid = np.stack([count.sum(1) for count in counts])  # (shards, U)
    numbers = np.array([shard.class_count for shard in shards], np.int64)[:, None]  # (shards, 1, K)
    return {
        "mean": _mean([part.mean for part in parts], valid),
        "mean_max": _mean([part.mean_max for part in parts], valid),
        "maximum": np.fmax.reduce([part.maximum for part in parts]),
        "minimum": np.fmin.reduce([part.minimum for part in parts]),
        "fires": _fires(parts, valid),
        "class_mean": _mean(
            [part.class_mean for part in parts], np.broadcast_to(numbers, (len(parts), *parts[0].class_mean.shape))
        ),
    }


def _scored(shards: Sequence[SurveyResult], path: str, whole: bool) -> dict[str, NDArray[Any]]:
    """Areas from what the shards kept; a part of the data keeps it on."""
    first = shards[0]
    if first.scored not in (EXACT, BINNED):
        return {}
    parts = [shard.layers[path] for shard in shards]
    peaks = np.concatenate([part.peaks for part in parts], axis=1)
    counts = sum((part.class_histogram for part in parts[1:]), parts[0].class_histogram)
    classes = np.concatenate([shard.peak_class for shard in shards])
    found = areas(first.scored, peaks, classes, counts, len(first.classes))
    kept = {} if whole else {"peaks": peaks, "class_histogram": counts}
    return {**dict(zip(("auroc", "auroc_error", "auroc_z"), found, strict=True)), **kept}


def _mean(means: Sequence[NDArray[np.float64]], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean of means of different weights; NaN where all weigh nothing."""
    total = np.where(weights > 0, np.stack(means) * weights, 0.0).sum(0)
    number = weights.sum(0)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def _fires(parts: Sequence[LayerSurvey], valid: NDArray[np.int64]) -> NDArray[np.float64]:
    """From the whole numbers that the shares stand for."""
    fired = np.rint(np.stack([part.fires for part in parts]) * valid).sum(0)
    return fired / np.maximum(valid.sum(0), 1)  # type: ignore[no-any-return]

"""`stream`: what in a data set excites every unit, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import Batch, Data
from penlight.models import Layer, Model, Probe
from penlight.results import LayerSurvey, SurveyResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.survey import histogram
from penlight.techniques.survey.lists import RESERVE, Listing, shown
from penlight.techniques.survey.ranking import Ranking
from penlight.techniques.survey.scores import BINNED, EXACT, Scores, areas, way
from penlight.techniques.survey.sweep import Sweep, chunks
from penlight.techniques.survey.tally import Tally
from penlight.techniques.survey.twins import mark, pairs

_SPARE = 4096  # inputs known before those that no list needs any more are dropped


@dataclass(frozen=True)
class Stream(Technique):
    """The inputs that excite each unit most, with positions and the pixels seen there, and its statistics over all inputs.

    One pass; what is kept does not grow with the data. An input's activation is the unit's maximum over positions. Without
    `request.layers` every layer is surveyed that is not another's alias. An input that cannot be read is named in `skipped`; a unit
    whose map is not finite (NaN, overflow) misses that input, so its histogram sums to less than `count`. Of equal activations the
    lower input index comes first, of equal positions the first in row-major order.

    The bottom examples are the inputs with the smallest activation. With `deduplicate`, a picture that is nearly the same as a better
    example of the same list is passed over (see `twins`); twice as many candidates are kept, so that the list stays full. Where the
    data has classes, each unit's area under the ROC curve is found for every class (see `scores`).

    Papers: top patches, Zeiler & Fergus 2014; surveying all units live, Yosinski et al. 2015.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "stream"
    paper: ClassVar[str] = "Zeiler & Fergus 2014, arXiv:1311.2901; Yosinski et al. 2015, arXiv:1506.06579"
    version: ClassVar[int] = 2

    top: int = option(9, "examples kept for each unit", low=1, high=1000)
    bottom: int = option(0, "examples kept of what excites each unit least", low=0, high=1000)
    deduplicate: bool = option(True, "pass over pictures nearly the same as a better example")
    score_memory: int = option(
        512,
        "MB for scoring units by class: exact if all activations fit, else from histograms; 0: no scores",
        low=0,
        high=1000000,
    )
    batch: int = option(0, "inputs in one forward pass; 0: as many as keep maps in the cache", low=0, high=4096)
    start: int = option(0, "index of the first input, for a shard", low=0)
    stop: int = option(0, "index after the last input, for a shard; 0: the end", low=0)

    def run(self, request: Request) -> SurveyResult:
        """Survey `request.layers` on `request.data`; `BadInput` if there is none or not one input can be read."""
        model, data = request.model, request.data
        if data is None:
            raise BadInput("a survey needs data: give a folder of pictures, an .npz file or a dataset")
        start, stop = self._range(len(data))
        chosen = {path: model.layer(path) for path in request.layers}
        layers = chosen or {path: layer for path, layer in model.layers.items() if layer.alias_of is None}
        network = model.prepared(keep=list(layers))
        layers = _readable(model, network, layers, strict=bool(chosen))
        pass_over = self.deduplicate and model.contract.kind == "image"
        kept = RESERVE if pass_over else 1
        units = sum(layer.units for layer in layers.values())
        how = way(len(data), units, len(data.classes), self.score_memory)
        scores = Scores(how, stop - start, units, len(data.classes)) if how in (EXACT, BINNED) else None
        sweep = Sweep(
            model, network, layers, kept * self.top, self.batch, len(data.classes), kept * self.bottom, scores
        )
        standing = _Standing(pass_over)
        skipped: list[tuple[str, str]] = []
        for batch in chunks(data, sweep.rows, start, stop):
            skipped += [(name, reason) for _, name, reason in batch.skipped]
            if batch.index:
                sweep.feed(batch.inputs, batch.index, _numbers(batch.classes, data))
                standing.note(batch, sweep.tally)
            request.progress(sweep.tally.inputs + len(skipped), stop - start)
        if not sweep.tally.inputs and stop - start == len(data):  # a shard may hold nothing but damaged inputs
            raise BadInput(
                f"not one of the {stop - start} inputs of {data.name} can be read; the first: {skipped[0][1]}"
            )
        return self._result(request, data, sweep, standing, skipped, how)

    def _result(
        self, request: Request, data: Data, sweep: Sweep, standing: _Standing, skipped: Sequence[tuple[str, str]], how: str
    ) -> SurveyResult:  # fmt: skip
        tally, columns = sweep.tally, sweep.block.columns
        counts, edges = histogram.trim([tally.counts[:, part].T.numpy() for part in columns.values()])
        known = _needed(standing.known, tally)
        twins = pairs({i: found for i, (_, _, found) in known.items() if found is not None})
        whole = tally.inputs + len(skipped) == len(data)
        layers = {}
        for (path, part), count in zip(columns.items(), counts, strict=True):
            rows = _rows(request.model, path, tally, part, count)
            lists = shown(*_candidates(request.model, path, tally, part), (self.top, self.bottom), twins)
            layers[path] = LayerSurvey(**rows, **lists, **_scored(tally.scores, part, whole))
        return SurveyResult(
            provenance(self, request),
            layers,
            tally.inputs,
            {i: name for i, (name, _, _) in known.items()},
            {i: number for i, (_, number, _) in known.items() if number is not None},
            edges,
            tuple(data.classes),
            tuple(tally.class_count.tolist()),
            tuple(skipped),
            len(data),
            how,
            np.zeros(0, np.int32) if whole or tally.scores is None else tally.scores.peak_class,
            {i: found for i, (_, _, found) in known.items() if found is not None},
        )

    def _range(self, count: int) -> tuple[int, int]:
        stop = min(self.stop or count, count)
        if self.start >= stop:
            raise BadOption(f"options start {self.start} and stop {self.stop} leave none of the {count} inputs")
        return self.start, stop


def _readable(model: Model, network: nn.Module, layers: Mapping[str, Layer], strict: bool) -> dict[str, Layer]:
    """The layers whose outputs have a row an input; with `strict`, `CannotRun` names one that has not.

    Attention inside windows, or a recurrent layer with time first, has other rows: which belong to which input is not written anywhere.
    """
    count, rows = 3, dict[str, int]()

    def note(path: str) -> object:
        return lambda output: rows.update({path: len(output)})

    with torch.inference_mode(), Probe(network, {path: note(path) for path in layers}) as probe:  # type: ignore[misc]
        probe(model.example(count))
    odd = [path for path in layers if rows[path] != count]
    if odd and (strict or len(odd) == len(layers)):
        raise CannotRun(
            f"layer {odd[0]!r} puts out {rows[odd[0]]} rows for {count} inputs, so it cannot be surveyed; leave it out"
        )
    return {path: layer for path, layer in layers.items() if path not in odd}


def _numbers(classes: Sequence[int | None], data: Data) -> list[int | None]:
    return [number if number is not None and 0 <= number < len(data.classes) else None for number in classes]


@dataclass
class _Standing:
    """Names, classes and marks of the inputs that stand in a list, and for a while of some that did."""

    marked: bool
    known: dict[int, _Known] = field(default_factory=dict)
    most: int = field(default_factory=lambda: _SPARE)

    def note(self, batch: Batch, tally: Tally) -> None:
        place = {index: n for n, index in enumerate(batch.index)}
        for index in tally.entered.tolist():
            n = place[index]
            found = mark(batch.inputs[n]) if self.marked else None
            self.known[index] = batch.names[n], batch.classes[n], found
        if len(self.known) > self.most:
            self.known = _needed(self.known, tally)
            self.most = 2 * len(self.known) + _SPARE


_Known = tuple[str, int | None, NDArray[np.uint8] | None]


def _needed(known: dict[int, _Known], tally: Tally) -> dict[int, _Known]:
    """What is known of the inputs that stand in a list."""
    return {i: known[i] for i in tally.standing().tolist()}


def _rows(model: Model, path: str, tally: Tally, columns: slice, counts: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """A layer's statistics as the result keeps them."""
    valid = counts.sum(1)
    some, divisor = valid > 0, np.maximum(valid, 1)
    size = int(np.prod(model.layers[path].positions))
    numbers = tally.class_count[:, None]
    with np.errstate(invalid="ignore"):
        class_mean = np.where(numbers > 0, tally.class_peaks[:, columns] / np.maximum(numbers, 1), np.nan)
    return {
        "mean": np.where(some, tally.total[columns] / (divisor * size), np.nan),
        "mean_max": np.where(some, tally.peaks[columns] / divisor, np.nan),
        "maximum": np.where(some, tally.maximum[columns], np.nan).astype(np.float32),
        "minimum": np.where(some, tally.minimum[columns], np.nan).astype(np.float32),
        "fires": tally.fired[columns] / divisor,
        "histogram": counts,
        "class_mean": np.ascontiguousarray(class_mean.T),
    }


def _scored(scores: Scores | None, columns: slice, whole: bool) -> dict[str, NDArray[Any]]:
    """A layer's areas, and for a shard what they come from."""
    if scores is None:
        return {}
    evidence = scores.evidence(columns)
    found = areas(scores.how, evidence["peaks"], scores.peak_class, evidence["class_histogram"], scores.classes)
    kept = {} if whole else evidence
    return {**dict(zip(("auroc", "auroc_error", "auroc_z"), found, strict=True)), **kept}


def _candidates(model: Model, path: str, tally: Tally, columns: slice) -> tuple[Listing, Listing | None]:
    """A layer's lists as they were tallied."""
    top = _listing(model, path, tally.best, columns, 1)
    return top, None if tally.least is None else _listing(model, path, tally.least, columns, -1)


def _listing(model: Model, path: str, ranking: Ranking, columns: slice, sign: int) -> Listing:
    layer, filled = model.layers[path], ranking.index[columns] >= 0
    place = np.where(filled, ranking.place[columns], 0)
    position = np.stack(np.unravel_index(place, layer.positions), 2) if layer.positions else np.zeros((*place.shape, 0))
    return Listing(
        ranking.index[columns].copy(),
        np.where(filled, sign * ranking.value[columns], 0).astype(np.float32),
        position.astype(np.int32),
        _boxes(model, layer, place, filled),
    )


def _boxes(model: Model, layer: Layer, place: NDArray[np.int32], filled: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(U, k, 4) top, left, bottom, right of what is seen at flat positions; (U, k, 0) where inputs are no pictures."""
    if model.contract.kind != "image":
        return np.zeros((*place.shape, 0), np.int32)
    (top, bottom), (left, right) = np.moveaxis(model.boxes(layer.path, place), (-2, -1), (0, 1))
    boxes = np.stack([top, left, bottom, right], -1).astype(np.int32)
    boxes[~filled] = 0
    return boxes

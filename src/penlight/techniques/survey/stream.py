"""`stream`: what in a data set excites every unit, in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import Data
from penlight.models import Layer, Model, Probe
from penlight.results import LayerSurvey, SurveyResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.survey import histogram
from penlight.techniques.survey.sweep import Sweep, chunks
from penlight.techniques.survey.tally import Tally

_SPARE = 4096  # names kept before those that no list needs any more are dropped


@dataclass(frozen=True)
class Stream(Technique):
    """The inputs that excite each unit most, with positions and the pixels seen there, and its statistics over all inputs.

    One pass; what is kept does not grow with the data. An input's activation is the unit's maximum over positions. Without
    `request.layers` every layer is surveyed that is not another's alias. An input that cannot be read is named in `skipped`; a unit
    whose map is not finite (NaN, overflow) misses that input, so its histogram sums to less than `count`. Of equal activations the
    lower input index comes first, of equal positions the first in row-major order.

    Papers: top patches, Zeiler & Fergus 2014; surveying all units live, Yosinski et al. 2015.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "stream"
    paper: ClassVar[str] = "Zeiler & Fergus 2014, arXiv:1311.2901; Yosinski et al. 2015, arXiv:1506.06579"

    top: int = option(9, "examples kept for each unit", low=1, high=1000)
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
        sweep = Sweep(model, network, layers, self.top, self.batch, len(data.classes))
        known: dict[int, tuple[str, int | None]] = {}
        most = _SPARE
        skipped: list[tuple[str, str]] = []
        for batch in chunks(data, sweep.rows, start, stop):
            skipped += [(name, reason) for _, name, reason in batch.skipped]
            if batch.index:
                sweep.feed(batch.inputs, batch.index, _numbers(batch.classes, data))
                known.update(zip(batch.index, zip(batch.names, batch.classes, strict=True), strict=True))
                if len(known) > most:
                    known = _needed(known, sweep.tally)
                    most = 2 * len(known) + _SPARE
            request.progress(sweep.tally.inputs + len(skipped), stop - start)
        if not sweep.tally.inputs and stop - start == len(data):  # a shard may hold nothing but damaged inputs
            raise BadInput(
                f"not one of the {stop - start} inputs of {data.name} can be read; the first: {skipped[0][1]}"
            )
        return self._result(request, data, sweep, _needed(known, sweep.tally), skipped)

    def _result(
        self,
        request: Request,
        data: Data,
        sweep: Sweep,
        names: Mapping[int, tuple[str, int | None]],
        skipped: Sequence[tuple[str, str]],
    ) -> SurveyResult:
        tally, columns = sweep.tally, sweep.block.columns
        counts, edges = histogram.trim([tally.counts[:, part].T.numpy() for part in columns.values()])
        return SurveyResult(
            provenance(self, request),
            {
                path: _rows(request.model, path, tally, part, count)
                for (path, part), count in zip(columns.items(), counts, strict=True)
            },
            tally.inputs,
            {i: name for i, (name, _) in names.items()},
            {i: number for i, (_, number) in names.items() if number is not None},
            edges,
            tuple(data.classes),
            tuple(tally.class_count.tolist()),
            tuple(skipped),
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


def _needed(known: dict[int, tuple[str, int | None]], tally: Tally) -> dict[int, tuple[str, int | None]]:
    """The names of the inputs that stand in a top list."""
    return {i: known[i] for i in np.unique(tally.index).tolist() if i >= 0}


def _rows(model: Model, path: str, tally: Tally, columns: slice, counts: NDArray[np.int64]) -> LayerSurvey:
    """A layer's part of the tally as the result keeps it."""
    layer = model.layers[path]
    filled = tally.index[columns] >= 0
    valid = counts.sum(1)
    some, divisor = valid > 0, np.maximum(valid, 1)
    size = int(np.prod(layer.positions))
    place = np.where(filled, tally.place[columns], 0)
    position = np.stack(np.unravel_index(place, layer.positions), 2) if layer.positions else np.zeros((*place.shape, 0))
    numbers = tally.class_count[:, None]
    with np.errstate(invalid="ignore"):
        class_mean = np.where(numbers > 0, tally.class_peaks[:, columns] / np.maximum(numbers, 1), np.nan)
    return LayerSurvey(
        tally.index[columns].copy(),
        np.where(filled, tally.activation[columns], 0).astype(np.float32),
        position.astype(np.int32),
        _boxes(model, layer, place, filled),
        np.where(some, tally.total[columns] / (divisor * size), np.nan),
        np.where(some, tally.peaks[columns] / divisor, np.nan),
        np.where(some, tally.maximum[columns], np.nan).astype(np.float32),
        np.where(some, tally.minimum[columns], np.nan).astype(np.float32),
        tally.fired[columns] / divisor,
        counts,
        np.ascontiguousarray(class_mean.T),
    )


def _boxes(model: Model, layer: Layer, place: NDArray[np.int32], filled: NDArray[np.bool_]) -> NDArray[np.int32]:
    """(U, k, 4) top, left, bottom, right of what is seen at flat positions; (U, k, 0) where inputs are no pictures."""
    if model.contract.kind != "image":
        return np.zeros((*place.shape, 0), np.int32)
    different, which = np.unique(place, return_inverse=True)
    table = np.zeros((len(different), 4), np.int32)
    for row, flat in enumerate(different.tolist()):
        position = tuple(int(p) for p in np.unravel_index(flat, layer.positions)) if layer.positions else ()
        (top, bottom), (left, right) = model.box(layer.path, position)
        table[row] = top, left, bottom, right
    boxes = table[which.reshape(place.shape)]
    boxes[~filled] = 0
    return boxes

"""Projection of one activation back to pixels, as Zeiler and Fergus show it beside a unit's top examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadInput, BadOption
from penlight.inputs import Data
from penlight.models import Model
from penlight.models.probe import undisturbed
from penlight.results import ProjectionsResult, SurveyResult
from penlight.results.explain import painted
from penlight.techniques.contract import Request, Technique
from penlight.techniques.explain.aim import Aim
from penlight.techniques.explain.backward import Rule, differentiate, warnings
from penlight.techniques.explain.chunks import chunk_size, in_chunks
from penlight.techniques.explain.explanation import Attribution, Explanation, Scene
from penlight.techniques.options import option, provenance
from penlight.units import Unit

_PAPER = "Zeiler & Fergus 2014, arXiv:1311.2901"
_LRN = "how local response normalisations go back: their true gradient, or as if they were not there"
_NO_PICTURE = "only pictures (C, H, W) are projected back to pixels; deconvnet answers for any input"


@dataclass(frozen=True)
class Projection(Explanation):
    """One activation back to pixels: all others of its layer set to zero, unpool, rectify, filter; cut to what the unit sees."""

    name: ClassVar[str] = "projection"
    paper: ClassVar[str] = _PAPER
    guarantee: ClassVar[str] = (
        "the structure in the input that a deconvnet finds behind this one activation; its pixels may be negative, and outside the unit's"
        " receptive field it is zero"
    )

    lrn: str = option("backward", _LRN, choices=("backward", "pass"))

    def accepts(self, model: Model, aim: Aim) -> str | None:
        if aim.reading != "value":
            return f"it projects the activation of one unit, not {aim}"
        return None if len(model.contract.shape) == 3 else _NO_PICTURE

    def attribute(self, scene: Scene) -> Attribution:
        rule = Rule("deconv", lrn=self.lrn)
        found = differentiate(scene, scene.x, rule, start="activation")
        box = scene.model.box(scene.aim.layer, scene.aim.position or ())
        evidence = {"rectifiers": found.met, "receptive field": " × ".join(str(b - a) for a, b in box)}
        notes = warnings(rule, found.met)
        return Attribution(found.gradient[0], evidence=evidence, notes=notes, box=box, colour=True)


@dataclass(frozen=True)
class Projections(Technique):
    """Every top example of a survey's units, projected back to pixels and cut to what the unit saw.

    The survey is taken from `request.earlier`, the inputs from `request.data`; the units are those of the request, or of its layers,
    or all that were surveyed.
    """

    verb: ClassVar[str] = "explain"
    name: ClassVar[str] = "projections"
    paper: ClassVar[str] = _PAPER
    reads_data: ClassVar[bool] = True
    reads_survey: ClassVar[bool] = True

    top: int = option(9, "examples a unit", low=1, high=1000)
    lrn: str = option("backward", _LRN, choices=("backward", "pass"))

    def run(self, request: Request) -> ProjectionsResult:
        """`BadInput` without a survey or the data that was surveyed, `BadOption` for inputs that are no pictures."""
        survey = next((found for found in request.earlier if isinstance(found, SurveyResult)), None)
        if survey is None or request.data is None:
            raise BadInput("projections are of a survey's top examples: give the survey and its data")
        if len(request.model.contract.shape) != 3:
            raise BadOption(_NO_PICTURE)
        units = _units(request, survey)
        reader = _Reader(request.model, request.data)
        rows = []
        with undisturbed(request.model.network, freeze=True), torch.no_grad():
            for n, unit in enumerate(units):
                rows.append(self._row(reader, survey, unit))
                request.progress(n + 1, len(units))
        return _gathered(self, request, units, rows, min(self.top, _most(survey)))

    def _row(self, reader: _Reader, survey: SurveyResult, unit: Unit) -> list[_One]:
        top = survey.top(str(unit))
        places = [tuple(int(p) for p in position) for position in top.positions[: self.top]]
        numbers, model = [int(i) for i in top.inputs[: self.top]], reader.model
        if not numbers:
            return []
        assert unit.index is not None
        pictures = reader.read(numbers)
        scene = Scene(model, Aim(unit.layer, unit.index), pictures[0], model.tensor(pictures[:1]), 0.0)

        def some(start: int, stop: int) -> list[_One]:
            done = differentiate(
                scene, model.tensor(pictures[start:stop]), Rule("deconv", lrn=self.lrn), start="activation",
                positions=places[start:stop],
            )  # fmt: skip
            found = []
            for k, values in enumerate(done.gradient.cpu().numpy(), start):
                (top, bottom), (left, right) = model.box(unit.layer, places[k])
                image = painted(values[:, top:bottom, left:right])
                found.append(_One(numbers[k], float(done.values[k - start]), (top, left, bottom, right), image))
            return found

        parts = in_chunks(some, len(numbers), chunk_size(model, backward=True))
        return [one for part in parts for one in part]


@dataclass(frozen=True)
class _One:
    index: int
    activation: float
    box: tuple[int, int, int, int]
    image: NDArray[np.uint8]


class _Reader:
    """Inputs of the data by number; the latest are kept, as units of a layer share theirs."""

    _KEPT = 256

    def __init__(self, model: Model, data: Data) -> None:
        self.model, self._data = model, data
        self._kept: dict[int, NDArray[Any]] = {}

    def read(self, numbers: Sequence[int]) -> NDArray[Any]:
        """(n, *shape)."""
        if numbers and max(numbers) >= len(self._data):
            raise BadInput(
                f"the survey names input {max(numbers)}, the data has {len(self._data)}; give the data that was surveyed"
            )
        for number in numbers:
            if number not in self._kept:
                if len(self._kept) >= self._KEPT:
                    self._kept.pop(next(iter(self._kept)))
                self._kept[number] = self._data.read(number)
        return np.stack([self._kept[n] if n in self._kept else self._data.read(n) for n in numbers])


def _units(request: Request, survey: SurveyResult) -> list[Unit]:
    asked = [unit for text in (*request.targets, *request.units) for unit in request.model.find(text)]
    if asked:
        return [replace(unit, position=None) for unit in dict.fromkeys(asked)]
    layers = request.layers or [path for path in survey.layers if path in request.model.layers]
    return [unit for path in layers for unit in request.model.find(f"{path}:*")]


def _most(survey: SurveyResult) -> int:
    return max((rows.top_index.shape[1] for rows in survey.layers.values()), default=1)


def _gathered(
    technique: Projections, request: Request, units: Sequence[Unit], rows: Sequence[Sequence[_One]], top: int
) -> ProjectionsResult:
    """The rows as arrays, short rows and small pictures padded."""
    sizes = [one.image.shape[:2] for row in rows for one in row] or [(1, 1)]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    index = np.full((len(rows), top), -1, np.int64)
    activations = np.zeros((len(rows), top), np.float32)
    boxes = np.zeros((len(rows), top, 4), np.int32)
    images = np.full((len(rows), top, height, width, request.model.contract.channels), 128, np.uint8)
    for u, row in enumerate(rows):
        for k, one in enumerate(row):
            index[u, k], activations[u, k], boxes[u, k] = one.index, one.activation, one.box
            images[u, k, : one.image.shape[0], : one.image.shape[1]] = one.image
    names = tuple(map(str, units))
    return ProjectionsResult(provenance(technique, request), names, index, activations, boxes, images)

"""`predictions`: what the network says of sample inputs, and of those that surveys point to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput
from penlight.inputs import Data
from penlight.models import Model
from penlight.results import PredictionsResult, SurveyResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance

_UNLABELLED = 12


@dataclass(frozen=True)
class Predictions(Technique):
    """Class probabilities of some inputs of the data set.

    The inputs are all that stand in a top list of the surveys among `request.earlier`, and the first `samples` of each class, or the
    first 12 where the data has no classes. Those that cannot be read are left out. An input's true class is given where its name in
    the data is, letter for letter, one of the model's labels.
    """

    verb: ClassVar[str] = "activations"
    name: ClassVar[str] = "predictions"
    paper: ClassVar[str] = "Yosinski et al. 2015, arXiv:1506.06579"

    samples: int = option(4, "inputs of each class", low=0, high=1000)
    batch: int = option(16, "inputs in one forward pass", low=1, high=4096)

    def run(self, request: Request) -> PredictionsResult:
        """`BadInput` without data, or where none of the inputs can be read."""
        model, data = request.model, request.data
        if data is None:
            raise BadInput("predictions need data: give a folder of pictures, an .npz file or a dataset")
        chosen = sorted(self._samples(data) | _referenced(request, len(data)))
        index: list[int] = []
        images: list[NDArray[np.uint8]] = []
        said: list[NDArray[np.float32]] = []
        for numbers, inputs in _runs(data, chosen, self.batch):
            index += numbers
            images += [_picture(one) for one in inputs]
            said.append(_padded(model, inputs, self.batch))
            request.progress(len(index), len(chosen))
        if not index:
            raise BadInput(f"none of the {len(chosen)} inputs of {data.name} that were asked for can be read")
        probabilities = np.concatenate(said)
        labels = model.labels or tuple(map(str, range(probabilities.shape[1])))
        known = [data.label(i) for i in index]
        return PredictionsResult(
            provenance(self, request),
            tuple(name for name, _ in known),
            tuple(index),
            np.stack(images),
            probabilities,
            labels,
            tuple(_truth(number, data.classes, labels) for _, number in known),
        )

    def _samples(self, data: Data) -> set[int]:
        if not data.classes:
            return set(range(min(_UNLABELLED, len(data)))) if self.samples else set()
        left = [self.samples] * len(data.classes)
        found: set[int] = set()
        for index in range(len(data)):
            if not any(left):
                break
            number = data.label(index)[1]
            if number is not None and number < len(left) and left[number]:
                left[number] -= 1
                found.add(index)
        return found


def _referenced(request: Request, count: int) -> set[int]:
    surveys = [result for result in request.earlier if isinstance(result, SurveyResult)]
    lists = [
        part for survey in surveys for layer in survey.layers.values() for part in (layer.top_index, layer.bottom_index)
    ]
    found = {int(i) for part in lists for i in np.unique(part) if i >= 0}
    if found and max(found) >= count:
        raise BadInput(f"the survey names input {max(found)}, the data has {count}; give the data that was surveyed")
    return found


def _runs(data: Data, chosen: Sequence[int], batch: int) -> Iterator[tuple[list[int], NDArray[Any]]]:
    """(indices, inputs) of those that can be read, up to `batch` at a time."""
    for start in range(0, len(chosen), batch):
        numbers: list[int] = []
        inputs: list[NDArray[Any]] = []
        for index in chosen[start : start + batch]:
            try:
                inputs.append(data.read(index))
                numbers.append(index)
            except BadInput:
                continue  # the survey has named it
        if inputs:
            yield numbers, np.stack(inputs)


def _padded(model: Model, inputs: NDArray[Any], batch: int) -> NDArray[np.float32]:
    """Probabilities of a whole batch always, so that they do not depend on which inputs stand beside them."""
    missing = batch - len(inputs)
    whole = np.concatenate([inputs, np.repeat(inputs[:1], missing, 0)]) if missing else inputs
    return model.probabilities(whole)[: len(inputs)]


def _picture(one: NDArray[Any]) -> NDArray[np.uint8]:
    """An input as (H, W, C) uint8; one without two axes after its channels as a single row or column of grey."""
    pixels = one if one.dtype == np.uint8 else np.rint(np.clip(one, 0, 1) * 255).astype(np.uint8)
    while pixels.ndim < 3:
        pixels = pixels[None]
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1)) if pixels.ndim == 3 else pixels


def _truth(number: int | None, classes: Sequence[str], labels: Sequence[str]) -> int | None:
    """The model's number of a class of the data."""
    if number is None or not 0 <= number < len(classes):
        return None
    if number < len(labels) and labels[number] == classes[number]:
        return number
    return labels.index(classes[number]) if list(labels).count(classes[number]) == 1 else None

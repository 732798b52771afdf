"""What would excite a unit: `visualize`, `sweep` and `dream`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from penlight.api.opening import as_model, find_data, open_survey, silent, technique
from penlight.errors import UsageError
from penlight.models import Model
from penlight.results import SurveyResult, SweepResult, VisualizeResult
from penlight.techniques.contract import Progress, Request, Technique, methods
from penlight.techniques.options import build
from penlight.techniques.visualize.methods.deepdream import default_layer
from penlight.techniques.visualize.objectives import Objective
from penlight.techniques.visualize.sweep import Axis, run_sweep
from penlight.techniques.visualize.targets import Target
from penlight.units import Unit


@torch.inference_mode(False)
def visualize(
    model: Model | str | Path,
    unit: Any,
    *,
    method: str | None = None,
    seed: int = 0,
    data: Any = None,
    survey: SurveyResult | str | Path | None = None,
    film: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """What excites units most, or least with `minimize=True`: pictures, as a `VisualizeResult`.

    Of a network on text they are strings, a `StringsResult`, of one on tables rows, a `RowsResult`.

    >>> r = penlight.visualize(model, "class:C", seeds=4)     # doctest: +SKIP
    >>> r.images.shape, r.activations.shape                   # doctest: +SKIP
    ((1, 4, 28, 28, 1), (1, 4))
    >>> penlight.visualize(model, ["class:C - class:D", "layer(conv2)"], method="lucid")     # doctest: +SKIP

    `unit` is an address or several ("conv2:7", "conv2:7@3,3", "conv2:*", "class:C"), an expression of units ("conv2:7 + conv2:9",
    "layer(conv2)", "direction(conv2, axis.npy)", "inversion(conv3, photo.png)", "caricature(conv3, photo.png)",
    "interaction(conv2:7, conv2:9)", "probability(class:C)"), or an `Objective`. `options` are the method's, see `penlight methods`.

    `survey` (a result, or a folder it was saved in) places the pictures among real inputs: percentile and ratio. `data` is for the
    methods that learn from data; a specimen brings its own. `film` keeps so many pictures of the way, in `r.film`. The same seed gives
    the same bytes on the same machine.
    """
    opened = as_model(model)
    asked = [unit] if isinstance(unit, str | Unit | Objective | Target) else list(unit)
    for text in asked:
        if isinstance(text, Unit):
            opened.find(text)
    made = technique("visualize", opened, method, options)
    found = open_survey(survey) if isinstance(survey, str | Path) else survey
    request = Request(opened, targets=asked, seed=seed, frames=film, progress=progress or silent)
    return _visualized(made, _supplied(made, request, data, found), found)


def _visualized(made: Technique, request: Request, survey: SurveyResult | None) -> Any:
    result = made.run(request)
    if survey is None or not isinstance(result, VisualizeResult):
        return result
    return result.with_survey(survey)


def _supplied(made: Technique, request: Request, data: Any, survey: SurveyResult | None) -> Request:
    """The request with the data and the survey that the method reads; a survey that is lacking is made."""
    if made.reads_data and (data is not None or request.model.data is not None):
        request = replace(request, data=find_data(request.model, data))
    if made.reads_survey:
        if survey is None and request.data is not None:
            layers = dict.fromkeys(
                unit.layer for text in request.targets if not isinstance(text, Objective | Target)
                for unit in _units(request.model, text)
            )  # fmt: skip
            top = min(int(getattr(made, "examples", 9)), len(request.data))
            first = build(methods["survey"]["stream"], {"top": top}).run(
                replace(request, targets=(), layers=tuple(layers), progress=silent)
            )
            assert isinstance(first, SurveyResult)
            survey = first
        request = replace(request, earlier=() if survey is None else (survey,))
    return request


def _units(model: Model, text: Any) -> list[Unit]:
    """Units of an address; none for an expression, of which the technique says itself what is wrong."""
    try:
        return model.find(text)
    except UsageError:
        if isinstance(text, str) and ("(" in text or " " in text):
            return []
        raise


@torch.inference_mode(False)
def sweep(
    model: Model | str | Path,
    unit: Any,
    axes: str | Sequence[str],
    *,
    method: str = "penlight",
    seed: int = 0,
    data: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> SweepResult:
    """The same units with one or two options going through a range of values.

    >>> r = penlight.sweep(model, "class:C", "total_variation=1e-3..10")     # doctest: +SKIP
    >>> r.images.shape, r.best                                               # doctest: +SKIP

    An axis is `option=low..high`, `low..high:COUNT`, `low..high:COUNT:log`, or `value,value,…`.
    """
    opened = as_model(model)
    asked = [unit] if isinstance(unit, str | Unit | Objective | Target) else list(unit)
    kind = methods["visualize"][method]
    parsed = [Axis.parse(text, kind) for text in ([axes] if isinstance(axes, str) else axes)]
    request = Request(opened, targets=asked, seed=seed, progress=progress or silent)
    return run_sweep(
        kind, parsed, options, _supplied(technique("visualize", opened, method, options), request, data, None)
    )


@torch.inference_mode(False)
def dream(
    model: Model | str | Path,
    picture: Any,
    target: Any = None,
    *,
    guide: Any = None,
    zoom: int = 0,
    film: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """DeepDream on a picture: more of whatever the network sees in it.

    >>> r = penlight.dream(model, "photo.jpg")                                # doctest: +SKIP
    >>> r = penlight.dream(model, "photo.jpg", "layer(features.7)", guide="flowers.jpg", zoom=50)     # doctest: +SKIP

    `picture` and `guide` are files or arrays (H, W, C) uint8; `target` a layer, "layer(NAME)" or a unit, by default a layer two thirds
    of the way into the network. `zoom` frames of a journey into the picture are in `r.film` (1, 1, zoom, H, W, C), or `film` frames of
    the dreaming itself. `options` are those of the method `deepdream`.
    """
    opened = as_model(model)
    wanted = str(target) if target is not None else default_layer(opened)
    if wanted in opened.layers:
        wanted = f"layer({wanted})"
    pictures = {}
    for name, given in (("picture", picture), ("guide", guide)):
        if isinstance(given, str | Path):
            options[name] = str(given)
        elif given is not None:
            pictures[name] = np.asarray(given)
    if zoom:
        options["zoom"] = zoom
    made = technique("visualize", opened, "deepdream", options)
    request = Request(opened, targets=[wanted], seed=seed, frames=film, pictures=pictures, progress=progress or silent)
    return _visualized(made, request, None)

"""What data do to every unit, what becomes of it without some, and what it computes: `survey`, `project`, `diagnose`, `formula`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from penlight.api.opening import as_model, find_data, open_survey, silent, technique
from penlight.errors import BadOption
from penlight.jobs.plan import chosen_layers
from penlight.models import Model
from penlight.results import (
    DiagnoseResult,
    FormulaResult,
    ProjectionsResult,
    SurveyResult,
    VisualizeResult,
    load_result,
)
from penlight.techniques.contract import Progress, Request, methods
from penlight.techniques.diagnose.pruning import checked_file, pruned
from penlight.techniques.formula.door import asked
from penlight.techniques.options import build
from penlight.techniques.survey.passages import Passages
from penlight.units import Unit


@torch.inference_mode(False)
def survey(
    model: Model | str | Path,
    data: Any = None,
    *,
    layers: str | Sequence[str] = (),
    method: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """One pass over `data`: every unit's top examples and statistics, as a `SurveyResult`.

    >>> r = penlight.survey(model, "pictures/", top=9)     # doctest: +SKIP
    >>> r.top("conv2:7").activations                     # doctest: +SKIP

    `data` is a folder of pictures, an .npz file, an array (N, *shape) in [0, 1] or uint8, or a torch dataset; a specimen brings its
    own. `layers` are paths or patterns, all by default. Another `method` gives its own kind of result: `filters` a `FiltersResult`,
    for which no data is read.
    """
    opened = as_model(model)
    patterns = [layers] if isinstance(layers, str) else layers
    paths = chosen_layers(opened, patterns) if patterns else ()  # without any the method knows which
    own = _own_properties(options)
    made = technique("survey", opened, method, options)
    found = None if data is None and opened.data is None else find_data(opened, data)
    request = Request(opened, layers=paths, data=found, seed=seed, progress=progress or silent)
    return made.run(request, own) if isinstance(made, Passages) else made.run(request)


def _own_properties(options: dict[str, Any]) -> tuple[Any, ...]:
    """Properties given as functions or in a list, taken out of a survey's options."""
    given = options.get("properties")
    if given is None or isinstance(given, str):
        return ()
    options["properties"] = "none"
    return tuple(given) if isinstance(given, list | tuple) else (given,)


@torch.inference_mode(False)
def project(
    model: Model | str | Path,
    survey: SurveyResult | str | Path,
    units: Sequence[str | Unit] | str | Unit = (),
    *,
    data: Any = None,
    progress: Progress | None = None,
    **options: Any,
) -> ProjectionsResult:
    """The top examples of a survey, projected back to pixels by a deconvnet and cut to what each unit saw.

    >>> s = penlight.survey(model, "pictures/", top=9)                             # doctest: +SKIP
    >>> r = penlight.project(model, s, "conv2:*", data="pictures/")                # doctest: +SKIP
    >>> r.of("conv2:7")[0].image                                                   # doctest: +SKIP

    `survey` is a result, or a folder it was saved in; `data` what was surveyed; `units` are addresses, all that were surveyed without.
    `options` are `top`, the examples a unit, and `lrn`.
    """
    opened = as_model(model)
    found = open_survey(survey) if isinstance(survey, str | Path) else survey
    asked = [units] if isinstance(units, str | Unit) else list(units)
    made = build(methods["explain"]["projections"], options)
    result = made.run(
        Request(opened, targets=asked, data=find_data(opened, data), earlier=(found,), progress=progress or silent)
    )
    assert isinstance(result, ProjectionsResult)
    return result


@torch.inference_mode(False)
def diagnose(
    model: Model | str | Path,
    data: Any = None,
    *,
    layers: str | Sequence[str] = (),
    method: str | None = None,
    pictures: Sequence[VisualizeResult | str | Path] | VisualizeResult | str | Path = (),
    prune: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> DiagnoseResult:
    """Which units are dead, saturated, duplicates or not needed, proved by taking them away.

    >>> r = penlight.diagnose("letters")                             # doctest: +SKIP
    >>> r.verdicts["conv1:5"], r.details["conv1:5"]                  # doctest: +SKIP
    >>> r.ablation["conv2"].shape, r.layers["conv2"].needed          # doctest: +SKIP

    `data` is as `survey` takes it; without labels the network is held against its own answers. `layers` are paths or patterns, by
    default convolutions and dense layers but for the class scores, of a network on text the hidden states. `pictures` are results of
    `visualize` with several seeds, or folders they were saved in, for the verdicts static and unstable. `prune` names a .safetensors
    file that the network without the units that can go is written to. Raises `BadInput`, `BadOption`, `BadOutput`, `CannotRun` or
    `UnknownName`.
    """
    opened = as_model(model)
    if prune is not None and opened.text is not None:
        raise BadOption(
            "prune cuts units out of networks on pictures and tables, not yet out of those on text; leave it out"
        )
    file = None if prune is None else checked_file(prune)
    patterns = [layers] if isinstance(layers, str) else layers
    paths = chosen_layers(opened, patterns) if patterns else ()  # without any the method knows which
    made = technique("diagnose", opened, method, options)
    found = find_data(opened, data)
    given = [pictures] if isinstance(pictures, VisualizeResult | str | Path) else pictures
    earlier = [load_result(one) if isinstance(one, str | Path) else one for one in given]
    request = Request(opened, layers=paths, data=found, seed=seed, earlier=earlier, progress=progress or silent)
    result = made.run(request)
    assert isinstance(result, DiagnoseResult)
    return result if file is None else pruned(opened, result, found, file)[0]


@torch.inference_mode(False)
def formula(
    model: Model | str | Path,
    at: Any = None,
    *,
    unit: Sequence[str | Unit] | str | Unit | None = None,
    method: str | None = None,
    data: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> FormulaResult:
    """The network as the expression it is, in its input's own units.

    >>> penlight.formula("biopsies").expressions[0]                       # doctest: +SKIP
    >>> r = penlight.formula("biopsies", "data:3")                        # doctest: +SKIP
    >>> r.weights, r.bias, r.margin                                       # doctest: +SKIP

    Without `at` the whole expression (`symbolic`), for networks up to a stated size. With `at`, one input as `explain` takes it, the
    affine rule that holds there for a network of ReLUs of any size (`affine`), exact, and how far every column may move before it
    changes. `unit` is what is written down, by default every class score, with `at` the class found; also sums, "class:a - class:b".
    `data` is what `at` counts in, and what the expression is checked on. Raises `BadInput`, `BadOption` or `CannotRun`.
    """
    opened = as_model(model)
    found = None if data is None and opened.data is None else find_data(opened, data)
    return asked(opened, at, unit, method, found, seed, progress or silent, options)

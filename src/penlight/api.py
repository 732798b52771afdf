"""The doors in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from penlight.errors import BadInput, UsageError
from penlight.inputs import Data, open_data
from penlight.jobs import AtlasOptions, Outcome, plan_atlas, run_plan
from penlight.jobs.plan import chosen_layers
from penlight.jobs.run import Watch
from penlight.models import Model, load_model
from penlight.models.sources import specimens
from penlight.results import SurveyResult, SweepResult, VisualizeResult, load_result
from penlight.store import Atlas
from penlight.techniques.contract import VERBS, Progress, Request, Technique, methods
from penlight.techniques.options import build, table
from penlight.techniques.visualize.methods.deepdream import default_layer
from penlight.techniques.visualize.objectives import Objective
from penlight.techniques.visualize.sweep import Axis, run_sweep
from penlight.techniques.visualize.targets import Target
from penlight.units import Unit


def load(
    reference: str | Path | nn.Module,
    *,
    example: Any = None,
    labels: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | None = None,
    trust: bool = False,
) -> Model:
    """Open a trained network.

    >>> model = penlight.load("letters")                                            # doctest: +SKIP
    >>> model = penlight.load("torchvision:squeezenet1_0")                          # doctest: +SKIP
    >>> model = penlight.load(my_module, example=torch.zeros(1, 3, 64, 64))         # doctest: +SKIP

    `reference` is a specimen's name, `torchvision:NAME`, `timm:NAME`, `module:package.mod:callable`, a model card (.toml), or a live
    module with an `example` input (N, *shape), of which only the shape is read. `mean` and `std` are what the network's inputs in
    [0, 1] are normalised by, where the reference does not say; `options` go to the network's constructor; `trust` lets pickled
    weights be read. The module is never changed, only moved if `device` ("auto", "cpu", "cuda", "mps") says so.

    Raises `UnknownName`, `BadReference`, `BadWeights` or `Untrusted` with what to do.
    """
    return load_model(
        reference, example=example, labels=labels, mean=mean, std=std, options=options, device=device, trust=trust
    )


def visualize(
    model: Model | str | Path,
    unit: Any,
    *,
    method: str = "penlight",
    seed: int = 0,
    data: Any = None,
    survey: SurveyResult | str | Path | None = None,
    film: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> VisualizeResult:
    """Pictures that excite units most, or least with `minimize=True`.

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
    opened = _model(model)
    asked = [unit] if isinstance(unit, str | Unit | Objective | Target) else list(unit)
    for text in asked:
        if isinstance(text, Unit):
            opened.find(text)
    technique = build(methods["visualize"][method], options)
    found = open_survey(survey) if isinstance(survey, str | Path) else survey
    request = Request(opened, targets=asked, seed=seed, frames=film, progress=progress or _silent)
    return _visualized(technique, _supplied(technique, request, data, found), found)


def _visualized(technique: Technique, request: Request, survey: SurveyResult | None) -> VisualizeResult:
    result = technique.run(request)
    assert isinstance(result, VisualizeResult)
    return result if survey is None else result.with_survey(survey)


def _supplied(technique: Technique, request: Request, data: Any, survey: SurveyResult | None) -> Request:
    """The request with the data and the survey that the method reads; a survey that is lacking is made."""
    if technique.reads_data and (data is not None or request.model.data is not None):
        request = replace(request, data=find_data(request.model, data))
    if technique.reads_survey:
        if survey is None and request.data is not None:
            layers = dict.fromkeys(
                unit.layer for text in request.targets if not isinstance(text, Objective | Target)
                for unit in _units(request.model, text)
            )  # fmt: skip
            top = min(int(getattr(technique, "examples", 9)), len(request.data))
            made = build(methods["survey"]["stream"], {"top": top}).run(
                replace(request, targets=(), layers=tuple(layers), progress=_silent)
            )
            assert isinstance(made, SurveyResult)
            survey = made
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


def open_survey(folder: str | Path) -> SurveyResult:
    """A survey that was saved in a folder, or the one an atlas holds; `BadInput` if there is none."""
    path = Path(folder)
    if (path / "results.json").exists():
        result = load_result(path)
        if isinstance(result, SurveyResult):
            return result
        raise BadInput(
            f"{folder} holds a result of kind {result.kind!r}, no survey; 'penlight survey --out DIR' saves one"
        )
    with Atlas.open(path) as atlas:
        keys = [key for key in atlas.plan() if atlas.has(key) and atlas.task(key)["verb"] == "survey"]
        surveys = [found for key in keys if isinstance(found := atlas.get(key), SurveyResult)]
    whole = max(surveys, key=lambda found: found.count, default=None)
    if whole is None:
        raise BadInput(
            f"the atlas {folder} holds no survey yet; 'penlight atlas MODEL --data DATA --out {folder}' goes on with it"
        )
    return whole


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
    opened = _model(model)
    asked = [unit] if isinstance(unit, str | Unit | Objective | Target) else list(unit)
    technique = methods["visualize"][method]
    parsed = [Axis.parse(text, technique) for text in ([axes] if isinstance(axes, str) else axes)]
    request = Request(opened, targets=asked, seed=seed, progress=progress or _silent)
    return run_sweep(technique, parsed, options, _supplied(build(technique, options), request, data, None))


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
) -> VisualizeResult:
    """DeepDream on a picture: more of whatever the network sees in it.

    >>> r = penlight.dream(model, "photo.jpg")                                # doctest: +SKIP
    >>> r = penlight.dream(model, "photo.jpg", "layer(features.7)", guide="flowers.jpg", zoom=50)     # doctest: +SKIP

    `picture` and `guide` are files or arrays (H, W, C) uint8; `target` a layer, "layer(NAME)" or a unit, by default a layer two thirds
    of the way into the network. `zoom` frames of a journey into the picture are in `r.film` (1, 1, zoom, H, W, C), or `film` frames of
    the dreaming itself. `options` are those of the method `deepdream`.
    """
    opened = _model(model)
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
    technique = build(methods["visualize"]["deepdream"], options)
    request = Request(opened, targets=[wanted], seed=seed, frames=film, pictures=pictures, progress=progress or _silent)
    return _visualized(technique, request, None)


def survey(
    model: Model | str | Path,
    data: Any = None,
    *,
    layers: str | Sequence[str] = (),
    method: str = "stream",
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
    opened = _model(model)
    patterns = [layers] if isinstance(layers, str) else layers
    paths = chosen_layers(opened, patterns) if patterns else ()  # without any the method knows which
    technique = build(methods["survey"][method], options)
    found = None if data is None and opened.data is None else find_data(opened, data)
    return technique.run(Request(opened, layers=paths, data=found, seed=seed, progress=progress or _silent))


@dataclass(frozen=True)
class Built:
    """An atlas that was built: its folder, the number of tasks, and what the run did."""

    folder: Path
    tasks: int
    outcome: Outcome


def build_atlas(
    model: Model | str | Path,
    data: Any,
    folder: str | Path,
    *,
    watch: Watch | None = None,
    method: str = "penlight",
    seeds: int = 3,
    top: int = 9,
    seed: int = 0,
    layers: str | Sequence[str] = (),
    **options: Any,
) -> Built:
    """Ask every question of every unit and keep the answers in `folder`; what is there already is not asked again.

    >>> penlight.build_atlas(model, "pictures/", "atlas/")     # doctest: +SKIP

    `seeds` is the number of random starts a unit, `top` of real examples; `options` go to the synthesis method. A run that is killed
    at any moment goes on where it was when called again. Raises `ModelMismatch` if the folder holds another network's atlas,
    `BadOutput` if it holds something else or cannot be written.
    """
    opened = _model(model)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    found = find_data(opened, data)
    asked = AtlasOptions(method, seeds, top, seed=seed, layers=patterns, options=options)
    tasks = plan_atlas(opened, found, asked)
    with Atlas.create(folder) as atlas:
        atlas.claim(_header(opened))
        atlas.set_meta("data", {"name": found.name, "count": len(found), "classes": found.classes})
        atlas.set_plan([task.key for task in tasks])
        outcome = run_plan(tasks, opened, found, atlas, watch)
    return Built(Path(folder), len(tasks), outcome)


def find_data(model: Model, data: Any) -> Data:
    """The data set `data` stands for; None is the one that came with a specimen, and a specimen's name is its data."""
    if data is None:
        if model.data is None:
            raise BadInput(f"{model.reference} brings no data of its own; give a folder of pictures or an .npz file")
        data = model.data
    elif isinstance(data, str) and data in specimens and not Path(data).exists():
        data = specimens[data].DATA
    return open_data(data, model.contract, model.labels)


def method_rows() -> list[dict[str, Any]]:
    """Every registered method: verb, name, paper, summary, and its options with type, default, range and help."""
    rows = []
    for verb in VERBS:
        for name in methods[verb]:
            technique = methods[verb][name]
            summary = (technique.__doc__ or "").strip().partition("\n")[0]
            rows.append(
                {
                    "verb": verb,
                    "method": name,
                    "summary": summary,
                    "paper": technique.paper,
                    "options": table(technique),
                }
            )
    return rows


def _model(model: Model | str | Path) -> Model:
    return model if isinstance(model, Model) else load_model(model)


def _silent(done: int, of: int) -> None:
    pass


def _header(model: Model) -> dict[str, Any]:
    return {
        "reference": Path(model.reference).name if "/" in model.reference else model.reference,
        "hash": model.hash,
        "name": Path(model.reference).stem if model.reference.endswith(".toml") else model.reference,
        "kind": model.contract.kind,
        "shape": list(model.contract.shape),
        "labels": None if model.labels is None else list(model.labels),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "class_layer": model.class_layer,
        "figures": model.figures,
        "layers": model.rows(),
    }

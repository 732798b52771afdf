"""The doors in Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import nn

from penlight.errors import BadInput, BadOption, UnknownName, UsageError
from penlight.inputs import Data, Inputs, open_data, read_input
from penlight.jobs import AtlasOptions, Outcome, plan_atlas, run_plan
from penlight.jobs.plan import chosen_layers
from penlight.jobs.run import Watch
from penlight.models import Model, load_model
from penlight.models.checkpoints import with_weights
from penlight.models.sources import specimens
from penlight.results import (
    ActivationsResult,
    DiagnoseResult,
    ExplainResult,
    ExplanationsResult,
    ProjectionsResult,
    SurveyResult,
    SweepResult,
    VisualizeResult,
    load_result,
)
from penlight.store import Atlas
from penlight.techniques.activations.maps import Maps, over_checkpoints
from penlight.techniques.contract import VERBS, Progress, Request, Technique, methods
from penlight.techniques.diagnose.pruning import checked_file, pruned
from penlight.techniques.explain.checks import check as check_truth
from penlight.techniques.explain.checks import verdict
from penlight.techniques.options import build, provenance, table
from penlight.techniques.visualize.methods.deepdream import default_layer
from penlight.techniques.visualize.objectives import Objective
from penlight.techniques.visualize.sweep import Axis, run_sweep
from penlight.techniques.visualize.targets import Target
from penlight.units import Unit

_CHECKED = 10  # maps that an explanation with its checks takes, about


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


def activations(
    model: Model | str | Path,
    inputs: Any,
    *,
    layers: str | Sequence[str] = (),
    checkpoints: Sequence[str | Path] = (),
    data: Any = None,
    trust: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> ActivationsResult:
    """What every unit of every layer does with an input, with several, or with one at several stages of training.

    >>> r = penlight.activations(model, "photo.png")                            # doctest: +SKIP
    >>> r["conv2"].shape, r.top("conv2", 3), r.statistics("conv2")              # doctest: +SKIP
    >>> penlight.activations(model, "photo.png", checkpoints=["a.safetensors", "b.safetensors"])     # doctest: +SKIP

    `inputs` is one input as `explain` takes it, a list of them, or a folder of pictures. `layers` are paths or patterns, all by default.
    `checkpoints` are weights files of the same network, in order; the given weights are not among the runs unless a file holds them.
    `options` are the method's: `scale`, `boost` and `gamma` colour the pictures. Raises `BadInput`, `BadWeights` or `UnknownName`.
    """
    opened = _model(model)
    technique = build(methods["activations"]["maps"], options)
    assert isinstance(technique, Maps)
    patterns = [layers] if isinstance(layers, str) else layers
    own = find_data(opened, data) if data is not None or opened.data is not None else None
    request = Request(
        opened,
        layers=chosen_layers(opened, patterns),
        data=_given_inputs(opened, inputs, own),
        progress=progress or _silent,
    )
    if not checkpoints:
        return technique.run(request)
    if len(request.data or ()) > 1:
        raise BadInput(f"checkpoints are compared on one input; {len(request.data or ())} were given")
    stages = [(Path(file).name, with_weights(opened, file, trust)) for file in checkpoints]
    return over_checkpoints(technique, request, stages)


def _given_inputs(model: Model, given: Any, own: Data | None) -> Data:
    """One input, a list of them, or a folder, as data."""
    if isinstance(given, str | Path) and Path(given).is_dir():
        return open_data(given, model.contract, model.labels)
    shape = getattr(given, "shape", None)
    several = isinstance(given, list | tuple) or (shape is not None and len(shape) == len(model.contract.shape) + 1)
    items = list(given) if several else [given]
    names = [str(item) if isinstance(item, str | Path) else f"input {n}" for n, item in enumerate(items)]
    return Inputs([(name, read_input(item, model.contract, own)) for name, item in zip(names, items, strict=True)])


@overload
def explain(
    model: Model | str | Path, picture: Any, unit: str | Unit | None = None, *, method: str = "occlusion", data: Any = None,
    check: bool = False, seed: int = 0, progress: Progress | None = None, **options: Any,
) -> ExplainResult: ...  # fmt: skip


@overload
def explain(
    model: Model | str | Path, picture: Any, unit: Sequence[str | Unit] | str | Unit | None = None, *, method: Sequence[str] | str,
    data: Any = None, check: bool = False, seed: int = 0, progress: Progress | None = None, **options: Any,
) -> ExplainResult | ExplanationsResult: ...  # fmt: skip


def explain(
    model: Model | str | Path,
    picture: Any,
    unit: Sequence[str | Unit] | str | Unit | None = None,
    *,
    method: Sequence[str] | str = "occlusion",
    data: Any = None,
    check: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> ExplainResult | ExplanationsResult:
    """What in one input caused the value of one unit.

    >>> r = penlight.explain(model, "photo.png", "class:C")                   # doctest: +SKIP
    >>> r.values.shape, float(r.target)                                       # doctest: +SKIP
    ((1, 28, 28), 9.31)
    >>> penlight.explain(model, x, "conv2:7@3,3", method="deconvnet")         # doctest: +SKIP
    >>> penlight.explain(model, x, method=["occlusion", "grad-cam", "lime"])  # doctest: +SKIP

    `picture` is one input: a file, `data:N` for input N of `data` (a specimen brings its own), or an array (*shape) in [0, 1] before
    normalisation, or uint8; where the model states no normalisation, as the network takes it. `unit` is a class, a neuron, a channel
    at a position ("conv2:7@3,3"), a channel where the input excites it most ("conv2:7"), "mean(conv2:7)" or "probability(class:C)";
    without one it is the class the network finds. `options` are the method's, see `penlight methods`; `data` is for the methods that
    learn from data.

    `check` adds whether the map is true: deletion and insertion, sensitivity to noise, and whether it changes when the network's weights
    are scrambled, in `r.checks`. Several methods or units give an `ExplanationsResult`; an option then goes to the methods that
    have it.

    Raises `BadInput`, `BadOption`, `BadUnit` or `UnknownName` with what to do.
    """
    opened = _model(model)
    names = [method] if isinstance(method, str) else list(dict.fromkeys(method))
    if "projections" in names:
        raise BadOption(
            "'projections' are of a survey's examples: penlight.project, or 'penlight survey --project'; of one input: 'projection'"
        )
    units = [unit] if unit is None or isinstance(unit, str | Unit) else list(unit)
    techniques = _built(names, options)
    own = find_data(opened, data) if data is not None or opened.data is not None else None
    given = read_input(picture, opened.contract, own)
    parts: list[ExplainResult] = []
    count = len(units) * len(techniques)
    for wanted in units:
        for technique in techniques:
            place = len(parts) * (_CHECKED if check else 1)

            def part(done: int, of: int, place: int = place, width: int = 1) -> None:
                if progress is not None:
                    steps = count * (_CHECKED if check else 1)
                    progress(place * 1000 + round(1000 * width * done / max(of, 1)), steps * 1000)

            request = Request(
                opened, targets=[] if wanted is None else [wanted], seed=seed, input=given, data=own, progress=part
            )
            result = technique.run(request)
            assert isinstance(result, ExplainResult)
            result = replace(result, source=str(picture) if isinstance(picture, str | Path) else "")
            if check:
                later = replace(request, progress=partial(part, place=place + 1, width=_CHECKED - 1))
                numbers, curves = check_truth(technique, later, result)
                result = result.with_checks(numbers, curves, verdict(numbers))
            parts.append(result)
    if isinstance(method, str) and (unit is None or isinstance(unit, str | Unit)):
        return parts[0]
    return ExplanationsResult(provenance(techniques[0], request), tuple(parts))


def _built(names: Sequence[str], options: Mapping[str, Any]) -> list[Technique]:
    """The explanations of these names; with several, an option goes to those that have it."""
    if not names:
        raise UnknownName("explain method", "", list(methods["explain"]))
    kinds = [methods["explain"][name] for name in names]
    if len(kinds) == 1:
        return [build(kinds[0], options)]
    known = [{row["name"] for row in table(kind)} for kind in kinds]
    for name in options:
        if not any(name in own for own in known):
            raise UnknownName(f"option of {', '.join(names)}", name, sorted(set().union(*known)))
    return [
        build(kind, {name: value for name, value in options.items() if name in own})
        for kind, own in zip(kinds, known, strict=True)
    ]


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


def diagnose(
    model: Model | str | Path,
    data: Any = None,
    *,
    layers: str | Sequence[str] = (),
    method: str = "health",
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
    default convolutions and dense layers but for the class scores. `pictures` are results of `visualize` with several seeds, or
    folders they were saved in, for the verdicts static and unstable. `prune` names a .safetensors file that the network without the
    units that can go is written to. Raises `BadInput`, `BadOutput`, `CannotRun` or `UnknownName`.
    """
    opened = _model(model)
    file = None if prune is None else checked_file(prune)
    patterns = [layers] if isinstance(layers, str) else layers
    paths = chosen_layers(opened, patterns) if patterns else ()  # without any the method knows which
    technique = build(methods["diagnose"][method], options)
    found = find_data(opened, data)
    given = [pictures] if isinstance(pictures, VisualizeResult | str | Path) else pictures
    earlier = [load_result(one) if isinstance(one, str | Path) else one for one in given]
    request = Request(opened, layers=paths, data=found, seed=seed, earlier=earlier, progress=progress or _silent)
    result = technique.run(request)
    assert isinstance(result, DiagnoseResult)
    return result if file is None else pruned(opened, result, found, file)[0]


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
    opened = _model(model)
    found = open_survey(survey) if isinstance(survey, str | Path) else survey
    asked = [units] if isinstance(units, str | Unit) else list(units)
    technique = build(methods["explain"]["projections"], options)
    result = technique.run(
        Request(opened, targets=asked, data=find_data(opened, data), earlier=(found,), progress=progress or _silent)
    )
    assert isinstance(result, ProjectionsResult)
    return result


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

"""What one input does to the network, and what in it did it: `activations` and `explain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch

from penlight.api.opening import as_model, find_data, silent, technique
from penlight.errors import BadInput, BadOption, UnknownName
from penlight.inputs import Data, Inputs, open_data, read_input
from penlight.inputs.text_data import read_text, texts_of
from penlight.jobs.plan import chosen_layers
from penlight.models import Model
from penlight.models.checkpoints import with_weights
from penlight.results import ExplainResult, ExplanationsResult
from penlight.techniques.activations.maps import Maps, over_checkpoints
from penlight.techniques.contract import Progress, Request, Technique, methods
from penlight.techniques.explain.checks import check as check_truth
from penlight.techniques.explain.checks import verdict
from penlight.techniques.options import provenance, table
from penlight.units import Unit

_NAMED = 80  # characters of an input that is named by itself
_CHECKED = 10  # maps that an explanation with its checks takes, about


@torch.inference_mode(False)
def activations(
    model: Model | str | Path,
    inputs: Any,
    *,
    layers: str | Sequence[str] = (),
    method: str | None = None,
    checkpoints: Sequence[str | Path] = (),
    data: Any = None,
    trust: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Any:
    """What every unit of every layer does with an input, with several, or with one at several stages of training: an `ActivationsResult`.

    Of a text it is a `TracksResult`, the value of every cell at every character.

    >>> r = penlight.activations(model, "photo.png")                            # doctest: +SKIP
    >>> r["conv2"].shape, r.top("conv2", 3), r.statistics("conv2")              # doctest: +SKIP
    >>> penlight.activations(model, "photo.png", checkpoints=["a.safetensors", "b.safetensors"])     # doctest: +SKIP

    `inputs` is one input as `explain` takes it, a list of them, or a folder of pictures. `layers` are paths or patterns, all by default.
    `checkpoints` are weights files of the same network, in order; the given weights are not among the runs unless a file holds them.
    `options` are the method's: `scale`, `boost` and `gamma` colour the pictures. Raises `BadInput`, `BadWeights` or `UnknownName`.
    """
    opened = as_model(model)
    made = technique("activations", opened, method, options)
    patterns = [layers] if isinstance(layers, str) else layers
    own = find_data(opened, data) if data is not None or opened.data is not None else None
    request = Request(
        opened,
        layers=chosen_layers(opened, patterns) if patterns or opened.text is None else (),
        data=_given_inputs(opened, inputs, own),
        progress=progress or silent,
    )
    if not checkpoints:
        return made.run(request)
    if not isinstance(made, Maps):
        raise BadOption(f"checkpoints are compared by method 'maps', which is not for {opened.contract.kind} inputs")
    if len(request.data or ()) > 1:
        raise BadInput(f"checkpoints are compared on one input; {len(request.data or ())} were given")
    stages = [(Path(file).name, with_weights(opened, file, trust)) for file in checkpoints]
    return over_checkpoints(made, request, stages)


def _given_inputs(model: Model, given: Any, own: Data | None) -> Data:
    """One input, a list of them, or a folder, as data."""
    if model.text is not None:
        items = list(given) if isinstance(given, list | tuple) else [given]
        return texts_of([read_text(item, model.text, own) for item in items], model.text)
    if isinstance(given, str | Path) and Path(given).is_dir():
        return open_data(given, model.contract, model.labels)
    shape = getattr(given, "shape", None)
    row = model.contract.kind == "table" and isinstance(given, list | tuple) and isinstance(given[0], int | float)
    several = (isinstance(given, list | tuple) and not row) or (
        shape is not None and len(shape) == len(model.contract.shape) + 1
    )
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


@torch.inference_mode(False)
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
    opened = as_model(model)
    names = [method] if isinstance(method, str) else list(dict.fromkeys(method))
    if "projections" in names:
        raise BadOption(
            "'projections' are of a survey's examples: penlight.project, or 'penlight survey --project'; of one input: 'projection'"
        )
    units = [unit] if unit is None or isinstance(unit, str | Unit) else list(unit)
    techniques = _built(opened, names, options)
    own = find_data(opened, data) if data is not None or opened.data is not None else None
    given = read_input(picture, opened.contract, own)
    source = str(picture) if isinstance(picture, str | Path) else ""
    source = source if len(source) <= _NAMED else f"{source[:_NAMED]}…"  # a text may be given as it is
    parts: list[ExplainResult] = []
    count, each = len(units) * len(techniques), _CHECKED if check else 1
    for wanted in units:
        for made in techniques:
            step = partial(_part, progress, len(parts) * each, count * each)
            request = Request(opened, targets=[] if wanted is None else [wanted], seed=seed, input=given, data=own)
            parts.append(_explained(made, request, source, check, step))
    if isinstance(method, str) and (unit is None or isinstance(unit, str | Unit)):
        return parts[0]
    return ExplanationsResult(provenance(techniques[0], request), tuple(parts))


def _part(progress: Progress | None, first: int, steps: int, offset: int, width: int, done: int, of: int) -> None:
    """Tell how far a part of the work is that takes `width` of all `steps`, from `first` + `offset` on."""
    if progress is not None:
        progress((first + offset) * 1000 + round(1000 * width * done / max(of, 1)), steps * 1000)


def _explained(made: Technique, request: Request, source: str, check: bool, step: Callable[..., None]) -> ExplainResult:
    """One explanation, with its checks where they are asked for."""
    result = made.run(replace(request, progress=partial(step, 0, 1)))
    assert isinstance(result, ExplainResult)
    result = replace(result, source=source)
    if not check:
        return result
    numbers, curves = check_truth(made, replace(request, progress=partial(step, 1, _CHECKED - 1)), result)
    return result.with_checks(numbers, curves, verdict(numbers))


def _built(model: Model, names: Sequence[str], options: Mapping[str, Any]) -> list[Technique]:
    """The explanations of these names; with several, an option goes to those that have it."""
    if not names:
        raise UnknownName("explain method", "", list(methods["explain"]))
    kinds = [methods["explain"][name] for name in names]
    if len(kinds) == 1:
        return [technique("explain", model, names[0], options)]
    known = [{row["name"] for row in table(kind)} for kind in kinds]
    for name in options:
        if not any(name in own for own in known):
            raise UnknownName(f"option of {', '.join(names)}", name, sorted(set().union(*known)))
    return [
        technique("explain", model, name, {key: value for key, value in options.items() if key in own})
        for name, own in zip(names, known, strict=True)
    ]

"""Opening models and data, and choosing the method that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penlight.errors import BadInput, BadOption
from penlight.inputs import Data, open_data
from penlight.models import Model, load_model
from penlight.models.sources import specimens
from penlight.results import SurveyResult, load_result
from penlight.store import Atlas
from penlight.techniques.contract import Technique, default_method, methods
from penlight.techniques.options import build


@torch.inference_mode(False)
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
    vocabulary: str | Sequence[str] | Mapping[str, int] | None = None,
    columns: Sequence[str | Mapping[str, Any]] | None = None,
    input: Mapping[str, Any] | None = None,
) -> Model:
    """Open a trained network.

    >>> model = penlight.load("letters")                                            # doctest: +SKIP
    >>> model = penlight.load("torchvision:squeezenet1_0")                          # doctest: +SKIP
    >>> model = penlight.load(my_module, example=torch.zeros(1, 3, 64, 64))         # doctest: +SKIP
    >>> model = penlight.load(my_lstm, vocabulary="abc…")                           # doctest: +SKIP
    >>> model = penlight.load(my_mlp, columns=["age", "income"])                    # doctest: +SKIP

    `reference` is a specimen's name, `torchvision:NAME`, `timm:NAME`, `module:package.mod:callable`, a model card (.toml), or a live
    module with an `example` input (N, *shape), of which only the shape is read. `mean` and `std` are what the network's inputs in
    [0, 1] are normalised by, where the reference does not say; `options` go to the network's constructor; `trust` lets pickled
    weights be read. A network on text is opened by its `vocabulary` (a string of characters, a list of tokens, a mapping to numbers),
    one on tables by its `columns` (names, or mappings with name, unit, mean, std, values); `input` holds whatever else a card's
    `[input]` can say, as in {"batch_first": False, "encoding": "one-hot"}. The module is never changed, only moved if `device`
    ("auto", "cpu", "cuda", "mps") says so.

    Raises `UnknownName`, `BadReference`, `BadWeights` or `Untrusted` with what to do.
    """
    return load_model(
        reference,
        example=example,
        labels=labels,
        mean=mean,
        std=std,
        options=options,
        device=device,
        trust=trust,
        vocabulary=vocabulary,
        columns=columns,
        input=input,
    )


def find_data(model: Model, data: Any) -> Data:
    """The data set `data` stands for; None is the one that came with a specimen, and a specimen's name is its data."""
    if data is None:
        if model.data is None:
            raise BadInput(f"{model.reference} brings no data of its own; give a folder of pictures or an .npz file")
        data = model.data
    elif isinstance(data, str) and data in specimens and not Path(data).exists():
        data = specimens[data].DATA
    return open_data(data, model.contract, model.labels)


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


def technique(verb: str, model: Model, method: str | None, options: Mapping[str, Any]) -> Technique:
    """The method of a verb with its options, the usual one for the model's kind of input if none is named.

    Raises `UnknownName` for a method or option that is not there, `BadOption` for a method that is for other inputs.
    """
    name = method or default_method(verb, model.contract.kind)
    made = build(methods[verb][name], options)
    if model.contract.kind not in made.kinds:
        fit = [other for other in methods[verb] if model.contract.kind in methods[verb][other].kinds]
        others = f"use {', '.join(fit)}" if fit else f"no method of {verb} is for {model.contract.kind} inputs yet"
        own, kinds = (
            f"{model.reference} takes {model.contract.kind}",
            " and ".join([", ".join(made.kinds[:-1]), made.kinds[-1]]),
        )
        raise BadOption(f"method {name!r} is for {kinds.removeprefix(' and ')} inputs, {own}: {others}")
    return made


def as_model(model: Model | str | Path) -> Model:
    return model if isinstance(model, Model) else load_model(model)


def silent(done: int, of: int) -> None:
    pass

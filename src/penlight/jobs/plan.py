"""Which tasks make an atlas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from penlight.errors import BadInput, BadOption, UnknownName
from penlight.inputs import Data
from penlight.jobs.task import Task
from penlight.models import Model
from penlight.models.tracks import token_layers
from penlight.techniques.contract import default_method, methods
from penlight.techniques.diagnose.cells import default_cells
from penlight.techniques.diagnose.examination import default_layers
from penlight.techniques.options import build

_SHARD = 512  # inputs a survey task reads at least: what a killed run loses at most
_SHARDS = 64  # survey tasks at most
_CHUNK = 32  # units a synthesis task renders
_EXAMINED = {"tested": 500, "tried": 40, "effort": 0.03, "positions": 16}  # a glance, beside what the syntheses take
_READ = {"length": 128, "tested": 32, "tried": 2, "effort": 0.03}  # the same of a network on text
_LEAST = 3  # inputs shown that excite a unit least
_STRINGS = {"width": 8, "length": 24, "real": 0}  # a glance, beside what `visualize` takes
_PAGES, _TRIED = 4000, 1000  # tokens of the text that is shown whole, about, and texts looked at for it
_WRITTEN = 1000  # parameters up to which a network is written out
_SMALL, _FEW = 128 * 128, 3  # pictures up to this many pixels have all top examples projected, larger ones so many


@dataclass(frozen=True)
class AtlasOptions:
    """What an atlas asks for. `layers` are paths or patterns (`features.*`), empty for all that hold values of their own."""

    method: str = ""  # of the syntheses; the usual one for the network's inputs if empty
    seeds: int = 3  # random starts a unit
    top: int = 9  # real examples a unit
    samples: int = 12  # inputs shown of every class
    seed: int = 0
    layers: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # more options of the method


def plan_atlas(model: Model, data: Data | None, asked: AtlasOptions) -> list[Task]:
    """All tasks in the order they are to be run: a task comes after those it needs."""
    kind = model.contract.kind
    asked = replace(asked, method=asked.method or default_method("visualize", kind))
    if kind not in methods["visualize"][asked.method].kinds:
        raise BadOption(
            f"method {asked.method!r} is not for {kind} inputs; without a method the atlas takes the usual one"
        )
    layers = chosen_layers(model, asked.layers)
    if kind == "text":
        return list(_texts(model, data, layers, asked))
    if kind == "table":
        return list(_tables(model, data, layers, asked))
    tasks: list[Task] = []
    read: dict[str, Any] = {}  # what a synthesis that learns from data is handed
    technique = methods["visualize"][asked.method]
    if data is not None:
        tasks += _surveys(model, data, layers, asked)
        if technique.reads_data:
            read["data"] = data.fingerprint()
        if technique.reads_survey:
            read["needs"] = ([task.key for task in tasks if task.verb == "survey"][-1],)
        tasks += _projections(model, layers, asked, [task for task in tasks if task.verb == "survey"][-1])
        tasks += _health(model, data, layers, asked)
    tasks += _filters(model, asked)
    tasks.append(_task(model, "survey", "weights", asked.seed, {}))
    for layer in _classes_first(model, layers):
        tasks += _syntheses(model, layer, asked, read)
    return tasks


def _texts(model: Model, data: Data | None, layers: Sequence[str], asked: AtlasOptions) -> Iterator[Task]:
    """Top passages and labels of every unit, one text coloured by all of them, and strings that drive those one can read."""
    if data is None:
        return
    read, digest = token_layers(model, layers if asked.layers else ()), data.fingerprint()
    survey = _task(
        model, "survey", "passages", asked.seed, {"top": asked.top, "bottom": min(asked.top, _LEAST)},
        layers=tuple(read), data=digest,
    )  # fmt: skip
    yield survey
    yield _task(model, "activations", "tracks", asked.seed, {}, layers=tuple(read), data=digest, inputs=(_shown(data),))
    examined = tuple(path for path in default_cells(model) if path in read)
    if examined:
        yield _task(model, "diagnose", "cells", asked.seed, _READ, layers=examined, data=digest)
    for minimize in (False, True):  # of the cells that can be read: every string takes seconds
        options = {**_STRINGS, **asked.options, "seeds": asked.seeds, "minimize": minimize}
        yield _task(model, "visualize", asked.method, asked.seed, options, data=digest, needs=(survey.key,))


def _shown(data: Data) -> int:
    """The number of the text that is shown whole: the first of those nearest to a few pages."""
    best, least = 0, math.inf
    for index in range(min(len(data), _TRIED)):
        try:
            away = abs(len(data.read(index)) - _PAGES)
        except BadInput:
            continue
        if away < least:
            best, least = index, away
    return best


def _tables(model: Model, data: Data | None, layers: Sequence[str], asked: AtlasOptions) -> Iterator[Task]:
    """The columns that move every unit, the rows that drive each most and least, and what the network computes."""
    digest = None if data is None else data.fingerprint()
    if data is not None:
        yield _task(model, "survey", "columns", asked.seed, {"top": asked.top}, layers=tuple(layers), data=digest)
        yield from _health(model, data, layers, asked)
    if sum(p.numel() for p in model.network.parameters()) <= _WRITTEN:
        yield _task(model, "formula", "symbolic", asked.seed, {}, data=digest)
    if data is not None and model.class_layer is not None:
        yield _task(model, "formula", "affine", asked.seed, {}, data=digest, inputs=(0,))
    for layer in _classes_first(model, layers):
        units = tuple(str(unit) for unit in model.find(f"{layer}:*"))
        for start in range(0, len(units), _CHUNK):
            for minimize in (False, True):
                options = {**asked.options, "seeds": asked.seeds, "minimize": minimize}
                some = units[start : start + _CHUNK]
                if digest is not None:
                    yield _task(model, "visualize", asked.method, asked.seed, options, units=some, data=digest)


def chosen_layers(model: Model, patterns: Sequence[str]) -> list[str]:
    """Paths of the layers that match, in order of execution; without patterns all that are no alias of another."""
    if not patterns:
        return [path for path, layer in model.layers.items() if layer.alias_of is None]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in model.layers):
            raise UnknownName("layer", pattern, list(model.layers), f"'penlight layers {model.reference}' lists them")
    return [path for path in model.layers if any(fnmatchcase(path, pattern) for pattern in patterns)]


def _classes_first(model: Model, layers: Sequence[str]) -> list[str]:
    """The class layer first: it is what people look at while the rest is on its way."""
    return sorted(layers, key=lambda path: path != model.class_layer)


def _task(model: Model, verb: str, method: str, seed: int, options: Mapping[str, Any], **rest: Any) -> Task:
    technique = methods[verb][method]
    return Task(verb, method, technique.version, model.hash, asdict(build(technique, options)), seed=seed, **rest)  # type: ignore[call-overload]


def _surveys(model: Model, data: Data, layers: Sequence[str], asked: AtlasOptions) -> Iterator[Task]:
    digest = data.fingerprint()
    size = max(_SHARD, math.ceil(len(data) / _SHARDS))
    shards = [
        _task(
            model,
            "survey",
            "stream",
            asked.seed,
            {"top": asked.top, "bottom": min(asked.top, _LEAST), "start": start, "stop": min(start + size, len(data))},
            layers=tuple(layers),
            data=digest,
        )
        for start in range(0, len(data), size)
    ]
    yield from shards
    whole = shards[0]
    if len(shards) > 1:
        whole = _task(model, "survey", "merge", asked.seed, {}, data=digest, needs=tuple(s.key for s in shards))
        yield whole
    if model.class_layer is not None:
        yield _task(
            model, "activations", "predictions", asked.seed, {"samples": asked.samples}, data=digest, needs=(whole.key,)
        )


def _projections(model: Model, layers: Sequence[str], asked: AtlasOptions, survey: Task) -> Iterator[Task]:
    """The top examples of every unit back to pixels, for pictures."""
    if len(model.contract.shape) != 3:
        return
    few = math.prod(model.contract.size) > _SMALL
    options = {"top": min(asked.top, _FEW) if few else asked.top}
    for layer in layers:
        units = [str(unit) for unit in model.find(f"{layer}:*")]
        for start in range(0, len(units), _CHUNK):
            yield _task(
                model, "explain", "projections", asked.seed, options, units=tuple(units[start : start + _CHUNK]),
                data=survey.data, needs=(survey.key,),
            )  # fmt: skip


def _health(model: Model, data: Data, layers: Sequence[str], asked: AtlasOptions) -> Iterator[Task]:
    """One look at all units that can be told to work or not."""
    examined = tuple(path for path in default_layers(model) if path in layers)
    if examined:
        yield _task(model, "diagnose", "health", asked.seed, _EXAMINED, layers=examined, data=data.fingerprint())


def _filters(model: Model, asked: AtlasOptions) -> Iterator[Task]:
    first = next((p for p, la in model.layers.items() if not la.inputs and la.kind.startswith("Conv")), None)
    if model.contract.kind == "image" and first is not None:
        yield _task(model, "survey", "filters", asked.seed, {}, layers=(first,))


def _syntheses(model: Model, layer: str, asked: AtlasOptions, read: Mapping[str, Any]) -> Iterator[Task]:
    technique = methods["visualize"][asked.method]
    taken = {"seeds", "minimize"} & set(asked.options)
    if taken:
        raise BadOption(f"an atlas sets {taken.pop()!r} itself; give seeds=, and it renders both directions")
    units = [str(unit) for unit in model.find(f"{layer}:*")]
    for start in range(0, len(units), _CHUNK):
        for minimize in (False, True):
            options = {**asked.options, "seeds": asked.seeds, "minimize": minimize}
            some = tuple(units[start : start + _CHUNK])
            yield _task(model, "visualize", technique.name, asked.seed, options, units=some, **read)

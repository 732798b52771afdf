"""What an atlas holds, read once, result by result, and kept without pixels: all that the pages need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from penlight.errors import BadInput
from penlight.results import (
    DiagnoseResult,
    FiltersResult,
    LayerSurvey,
    PredictionsResult,
    ProjectionsResult,
    Provenance,
    SurveyResult,
    VisualizeResult,
)
from penlight.results.diagnose import portrait_verdict
from penlight.results.labels import LabelsResult
from penlight.results.visualize import file_names
from penlight.results.weights import WeightsResult
from penlight.store import Atlas
from penlight.web.addresses import safe_names
from penlight.web.album import Album, named, shown_size


@dataclass(frozen=True)
class Layer:
    """A layer as the model's description gives it, with the name of its folder."""

    path: str
    name: str
    kind: str
    units: int
    shape: tuple[int, ...]
    field_size: tuple[int, ...] | None
    field_stride: tuple[int, ...] | None
    parameters: int | None
    alias_of: str | None
    inputs: tuple[str, ...] | None
    layout: str

    @classmethod
    def read(cls, row: Mapping[str, Any], name: str) -> Layer:
        """From one row of the atlas's `model`."""
        view = row.get("receptive_field") or {}
        return cls(
            str(row["path"]),
            name,
            str(row.get("kind", "")),
            int(row.get("units") or 0),
            tuple(row.get("shape") or ()),
            tuple(view["size"]) if view.get("size") else None,
            tuple(view["stride"]) if view.get("stride") else None,
            row.get("parameters"),
            row.get("alias_of"),
            None if row.get("inputs") is None else tuple(row["inputs"]),
            str(row.get("layout") or ""),
        )

    @property
    def page(self) -> str:
        """Address of its page, relative to the site."""
        return f"layers/{self.name}.html"

    def unit_page(self, index: int) -> str:
        """Address of a unit's page, relative to the site."""
        return f"units/{self.name}/{index}.html"


@dataclass(frozen=True)
class Start:
    """One random start's picture."""

    number: int
    file: str
    activation: float
    before: float  # what the unit answered to the random start
    reached: bool  # whether a gradient reached the picture
    jittered: float | None = None  # what it answers, on the average, to the picture moved a little
    outdone: float | None = None  # share of the real inputs that the picture outdoes
    shared: int = 0  # starts that show the same pattern, itself included; 0 if unknown
    flags: tuple[str, ...] = ()  # what a reader must know


@dataclass(frozen=True)
class Portrait:
    """A unit's preferred (or least preferred) inputs, by one method."""

    starts: tuple[Start, ...]
    size: tuple[int, int]
    thumb: str
    best: int | None  # the start that excites it most (least, for a SadMap); None: no gradient reached any
    label: str | None
    provenance: Provenance
    stability: float | None = None  # how alike the starts' pictures are to the network, -1 to 1; None for one start
    eye_stability: float | None = None  # and to the eye


@dataclass(frozen=True)
class Input:
    """One input of the data and what the network says of it."""

    index: int
    name: str
    file: str
    thumb: str
    size: tuple[int, int]
    ranked: tuple[tuple[str, float], ...]
    truth: str | None

    @property
    def right(self) -> bool | None:
        """Whether the most probable label is the true one; None if that is not known."""
        return None if self.truth is None or not self.ranked else self.ranked[0][0] == self.truth


@dataclass(frozen=True)
class Filter:
    """One first-layer filter: its picture and the picture it makes of noise."""

    file: str
    response: str
    size: tuple[int, int]
    response_size: tuple[int, int]
    steps: int
    norm: float


@dataclass(frozen=True)
class Back:
    """A unit's top examples projected back to pixels: one file, and the box (top, left, bottom, right) in it by index in the data."""

    file: str
    size: tuple[int, int]
    boxes: Mapping[int, tuple[int, int, int, int]]
    provenance: Provenance


@dataclass(frozen=True)
class Expanded:
    """A unit's filter expanded to pixels."""

    file: str
    size: tuple[int, int]


@dataclass
class Book:
    """An atlas without its pixels."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    layers: list[Layer]
    whole: bool  # every result of the plan is stored
    portraits: dict[tuple[str, str], dict[int, list[Portrait]]] = field(default_factory=dict)  # (layer, happy | sad)
    survey: SurveyResult | None = None
    inputs: dict[int, Input] = field(default_factory=dict)
    inputs_from: Provenance | None = None
    filters: dict[str, list[Filter]] = field(default_factory=dict)
    filters_from: dict[str, Provenance] = field(default_factory=dict)
    health: DiagnoseResult | None = None
    backs: dict[str, Back] = field(default_factory=dict)  # by unit
    weights: WeightsResult | None = None
    expanded: dict[str, Expanded] = field(default_factory=dict)  # by unit
    words: list[LabelsResult] = field(default_factory=list)  # labels by other measures than the data's classes

    @property
    def pages(self) -> list[Layer]:
        """The layers that have a page."""
        return [layer for layer in self.layers if layer.alias_of is None]

    @property
    def labels(self) -> list[str]:
        """Labels of the model's classes."""
        return [str(label) for label in self.model.get("labels") or ()]

    @property
    def class_layer(self) -> Layer | None:
        """The layer whose units are the classes; of two with the same values, the one that has a page."""
        found = self.layer(self.model.get("class_layer"))
        return self.layer(found.alias_of) if found is not None and found.alias_of is not None else found

    def layer(self, path: str | None) -> Layer | None:
        """The layer of that path, if the model has it."""
        return next((layer for layer in self.layers if layer.path == path), None)

    def portrait(self, path: str, way: str, index: int) -> Portrait | None:
        """A unit's first HappyMap (`way` happy) or SadMap (sad)."""
        found = self.portraits.get((path, way), {}).get(index)
        return found[0] if found else None

    def rows(self, path: str) -> LayerSurvey | None:
        """A layer's survey."""
        return None if self.survey is None else self.survey.layers.get(path)


def read_book(atlas: Atlas, album: Album) -> Book:
    """Go once through the atlas's plan; pixels go to the album, one result at a time."""
    model = atlas.meta("model")
    if not isinstance(model, Mapping):
        raise BadInput(f"{atlas.folder} does not say which model it is about; build it again with 'penlight atlas'")
    rows = model.get("layers") or []
    names = safe_names(str(row["path"]) for row in rows)
    layers = [Layer.read(row, names[str(row["path"])]) for row in rows]
    keys = atlas.plan()
    known = dict.fromkeys(("reference", "hash", "name", "kind", "shape", "parameters", "class_layer"))
    data = {"name": None, "count": None, "classes": None, **(atlas.meta("data") or {})}
    book = Book({**known, **model}, data, layers, all(atlas.has(key) for key in keys))
    for key in dict.fromkeys(keys):
        if atlas.has(key):
            _add(book, atlas, key, album, names)
    book.health = _with_pictures(book)
    return book


def _with_pictures(book: Book) -> DiagnoseResult | None:
    """The diagnosis with what the atlas's pictures add to it: units that are static or unstable."""
    health = book.health
    if health is None:
        return None
    verdicts, details = dict(health.verdicts), dict(health.details)
    unstable = float(health.provenance.options.get("unstable", 0.2))
    for path in health.layers:
        rows = book.rows(path)
        for index, portraits in book.portraits.get((path, "happy"), {}).items():
            first, unit = portraits[0], f"{path}:{index}"
            told = verdicts.get(unit, {})
            known = first.best is None or first.stability is not None
            if len(first.starts) < 2 or not known or rows is None or {"dead", "static"} & set(told):
                continue
            best = max(start.activation for start in first.starts)
            said = portrait_verdict(
                first.best is None, first.stability or 0.0, best, float(rows.maximum[index]), unstable
            )
            if said is not None:
                verdicts[unit] = {**told, said[0]: said[1]}
                details[unit] = {**details.get(unit, {}), said[0]: said[2]}
    return replace(health, verdicts=verdicts, details=details)


def _add(book: Book, atlas: Atlas, key: str, album: Album, names: Mapping[str, str]) -> None:
    result = atlas.get(key)
    if isinstance(result, VisualizeResult):
        _add_portraits(book, result, atlas, key, album, names)
    elif isinstance(result, SurveyResult):
        book.survey = result
    elif isinstance(result, PredictionsResult):
        _add_inputs(book, result, atlas, key, album)
    elif isinstance(result, DiagnoseResult):
        book.health = result
    elif isinstance(result, ProjectionsResult):
        _add_backs(book, result, atlas, key, album, names)
    elif isinstance(result, FiltersResult) and result.layer in names:
        _add_filters(book, result, atlas, key, album, names[result.layer])
    elif isinstance(result, WeightsResult):
        _add_weights(book, result, atlas, key, album, names)
    elif isinstance(result, LabelsResult):
        book.words.append(result)


def _add_portraits(
    book: Book, result: VisualizeResult, atlas: Atlas, key: str, album: Album, names: Mapping[str, str]
) -> None:
    if book.survey is not None:  # the plan asks for it first
        result = result.with_survey(book.survey)
    way = "sad" if result.minimize else "happy"
    pictures = iter(result.pictures())
    size = shown_size(result.images)
    for u, unit in enumerate(result.units):
        own = [next(pictures) for _ in range(result.images.shape[1])]
        path, _, index = unit.rpartition(":")
        if path not in names or not index.isdecimal():
            continue  # one position of a unit, or a layer the description does not have
        known = book.portraits.setdefault((path, way), {}).setdefault(int(index), [])
        stem = f"{way}-{index}" + (f".{len(known) + 1}" if known else "")
        starts = tuple(
            Start(
                s,
                album.keep(names[path], f"{stem}-{s}", atlas.path(key), picture),
                float(result.activations[u, s]),
                float(result.starts[u, s]),
                not result.zero_gradient[u, s],
                _known(result.jittered[u, s]),
                _known(result.percentile[u, s]),
                int(result.recurrence[u, s]),
                result.flags(u, s),
            )
            for s, picture in enumerate(own)
        )
        reached = [start for start in starts if start.reached]
        sign = -1 if result.minimize else 1
        best = max(reached, key=lambda start: sign * start.activation).number if reached else None
        thumb = ""
        if best is not None:
            thumb = album.thumbnail(names[path], f"{stem}-small", result.images[u, best], starts[best].file)
        alike = (_known(result.stability[u]), _known(result.eye_stability[u]))
        known.append(Portrait(starts, size, thumb, best, result.labels[u], result.provenance, *alike))


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _add_inputs(book: Book, result: PredictionsResult, atlas: Atlas, key: str, album: Album) -> None:
    book.inputs_from = result.provenance
    pictures = named(result.pictures()) if result.probabilities.shape[1] else {}
    size = shown_size(result.images)
    for n, index in enumerate(result.index):
        if index in book.inputs or f"input-{n}" not in pictures:
            continue
        truth = result.truth[n]
        file = album.keep("inputs", str(index), atlas.path(key), pictures[f"input-{n}"])
        book.inputs[index] = Input(
            index,
            result.names[n],
            file,
            album.thumbnail("inputs", f"{index}-small", result.images[n], file),
            size,
            tuple(result.ranked(n)),
            None if truth is None else result.labels[truth],
        )


def _add_filters(book: Book, result: FiltersResult, atlas: Atlas, key: str, album: Album, name: str) -> None:
    pictures = list(result.pictures())
    book.filters_from[result.layer] = result.provenance
    book.filters[result.layer] = [
        Filter(
            album.keep(name, f"filter-{u}", atlas.path(key), pictures[2 * u]),
            album.keep(name, f"response-{u}", atlas.path(key), pictures[2 * u + 1]),
            shown_size(result.filters),
            shown_size(result.responses),
            int(result.steps[u]),
            float(result.norms[u]),
        )
        for u in range(len(result.filters))
    ]


def _add_backs(
    book: Book, result: ProjectionsResult, atlas: Atlas, key: str, album: Album, names: Mapping[str, str]
) -> None:
    pictures = named(result.pictures())
    for unit, stem in zip(result.units, file_names(result.units), strict=True):
        path, _, index = unit.rpartition(":")
        if path not in names or f"{stem}-projections" not in pictures:
            continue
        strip, boxes = result.strip(unit)
        file = album.keep(names[path], f"back-{index}", atlas.path(key), pictures[f"{stem}-projections"])
        numbers = [one.index for one in result.of(unit)]
        placed = dict(zip(numbers, boxes, strict=True))
        book.backs[unit] = Back(file, shown_size(strip), placed, result.provenance)


def _add_weights(
    book: Book, result: WeightsResult, atlas: Atlas, key: str, album: Album, names: Mapping[str, str]
) -> None:
    book.weights = replace(result, expanded={})  # the pictures lie in the album
    pictures = iter(result.pictures())
    for path, found in result.expanded.items():
        for u in range(len(found)):
            picture = next(pictures)
            if path in names:
                file = album.keep(names[path], f"expanded-{u}", atlas.path(key), picture)
                book.expanded[f"{path}:{u}"] = Expanded(file, shown_size(picture.pixels))


@dataclass(frozen=True)
class Selectivity:
    """How much one class stands out for each unit of a layer, from the means per class of the survey."""

    best: list[int | None]
    index: list[float | None]

    @classmethod
    def of(cls, rows: LayerSurvey | None) -> Selectivity:
        """(best − rest) / (|best| + |rest|), where rest is the mean over the other classes (Morcos et al. 2018)."""
        if rows is None or rows.class_mean.shape[1] < 2:
            return cls([], [])
        means = np.where(np.isfinite(rows.class_mean), rows.class_mean, -np.inf)
        best = means.argmax(axis=1)
        top = means[np.arange(len(means)), best]
        finite = np.isfinite(rows.class_mean)
        total = np.where(finite, rows.class_mean, 0.0).sum(axis=1) - np.where(np.isfinite(top), top, 0.0)
        rest = total / np.maximum(finite.sum(axis=1) - 1, 1)
        weight = np.abs(top) + np.abs(rest)
        known = np.isfinite(top) & (weight > 0)
        index = np.divide(top - rest, weight, out=np.zeros_like(weight), where=known)
        return cls(
            [int(b) if k else None for b, k in zip(best, known, strict=True)],
            [float(i) if k else None for i, k in zip(index, known, strict=True)],
        )

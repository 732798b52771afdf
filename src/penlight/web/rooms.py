"""The pages of a network on text or tables: sections of HTML that the renderers make, put under the site's roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from markupsafe import Markup

from penlight.errors import BadInput
from penlight.results import (
    ColumnsResult,
    DiagnoseResult,
    FormulaResult,
    PassagesResult,
    Provenance,
    Result,
    RowsResult,
    StringsResult,
    TracksResult,
)
from penlight.results.diagnose import VERDICTS
from penlight.results.labels import Label
from penlight.store import Atlas
from penlight.web.addresses import safe_names
from penlight.web.book import Layer

TEXT_PAGE = "text.html"
KINDS = ("text", "table")
"""Kinds of input whose atlas is shown by rooms."""


@dataclass(frozen=True)
class Section:
    """A part of a page: an anchor, a heading, a line under it, and HTML."""

    id: str
    title: str
    lead: str
    html: Markup


@dataclass
class Holdings:
    """What an atlas of such a network holds."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]
    layers: list[Layer]
    whole: bool
    passages: PassagesResult | None = None
    columns: ColumnsResult | None = None
    tracks: TracksResult | None = None
    formulas: list[FormulaResult] = field(default_factory=list)
    health: DiagnoseResult | None = None
    ideals: dict[str, list[StringsResult | RowsResult]] = field(default_factory=dict)  # by unit: most, then least

    @property
    def labels(self) -> list[str]:
        """Labels of the model's classes."""
        return [str(label) for label in self.model.get("labels") or ()]

    @property
    def pages(self) -> list[Layer]:
        """The layers that have a page: those that something is known of."""
        known = {unit.rpartition(":")[0] for unit in self.ideals}
        for survey in (self.passages, self.columns):
            known |= set() if survey is None else set(survey.layers)
        return [layer for layer in self.layers if layer.alias_of is None and (layer.path in known or not self.whole)]

    def layer(self, path: str | None) -> Layer | None:
        """The layer of that path, if it has a page."""
        return next((layer for layer in self.pages if layer.path == path), None)

    def page(self, unit: str, root: str) -> str:
        """Address of a unit's page from a page `root` below the first."""
        path, _, index = unit.rpartition(":")
        layer = self.layer(path)
        return "" if layer is None else root + layer.unit_page(int(index))

    def label(self, unit: str) -> Label | None:
        """What a unit is called."""
        survey = self.passages or self.columns
        return None if survey is None or unit.rpartition(":")[0] not in survey.layers else survey.label(unit)

    def row(self, unit: str) -> Mapping[str, Any] | None:
        """A unit's statistics."""
        survey = self.passages or self.columns
        return None if survey is None or unit.rpartition(":")[0] not in survey.layers else survey.row(unit)


class Room(Protocol):
    """What one kind of input shows on every page; each function gives sections in order."""

    style: str

    def model(self, held: Holdings) -> list[Section]:
        """Of the first page."""

    def layer(self, held: Holdings, layer: Layer) -> list[Section]:
        """Of a layer's page."""

    def unit(self, held: Holdings, unit: str) -> list[Section]:
        """Of a unit's page."""

    def files(self, held: Holdings) -> dict[str, str]:
        """Whole pages of their own, by address."""


def read_holdings(atlas: Atlas) -> Holdings:
    """Everything the atlas's plan names and the store has."""
    model = atlas.meta("model")
    if not isinstance(model, Mapping):
        raise BadInput(f"{atlas.folder} does not say which model it is about; build it again with 'penlight atlas'")
    rows = model.get("layers") or []
    names = safe_names(str(row["path"]) for row in rows)
    keys = list(dict.fromkeys(atlas.plan()))
    data = {"name": None, "count": None, "classes": None, **(atlas.meta("data") or {})}
    known = dict.fromkeys(("reference", "hash", "name", "kind", "shape", "parameters", "class_layer"))
    layers = [Layer.read(row, names[str(row["path"])]) for row in rows]
    held = Holdings({**known, **model}, data, layers, all(atlas.has(key) for key in keys))
    for key in keys:
        if atlas.has(key):
            _hold(held, atlas.get(key))
    return held


def _hold(held: Holdings, result: Result) -> None:
    if isinstance(result, StringsResult | RowsResult):
        for unit in result.units:
            own = held.ideals.setdefault(unit, [])
            own.append(result)
            own.sort(key=lambda one: one.minimize)
    elif isinstance(result, PassagesResult):
        held.passages = result
    elif isinstance(result, ColumnsResult):
        held.columns = result
    elif isinstance(result, TracksResult):
        held.tracks = result
    elif isinstance(result, FormulaResult):
        held.formulas.append(result)
    elif isinstance(result, DiagnoseResult):
        held.health = result


class RoomPages:
    """The contexts of all pages."""

    def __init__(self, held: Holdings, room: Room) -> None:
        self.held, self.room = held, room
        self.missing = "not computed yet" if not held.whole else "not part of this atlas"

    def shared(self) -> dict[str, Any]:
        """What every page needs."""
        held = self.held
        extra = [("A text", TEXT_PAGE)] if held.tracks is not None else []
        return {"model": held.model, "data": held.data, "missing": self.missing, "held": held, "doors": extra}

    def model_page(self) -> dict[str, Any]:
        """The first page."""
        held = self.held
        return {
            "sections": self.room.model(held),
            "pages": [(layer, self._called(layer)) for layer in held.pages],
            "units": sum(layer.units for layer in held.pages),
            "health": held.health,
            "verdict_names": VERDICTS,
            "origins": self._origins(),
        }

    def layer_page(self, layer: Layer) -> dict[str, Any]:
        """A layer's page."""
        pages = self.held.pages
        place = pages.index(layer)
        return {
            "layer": layer,
            "sections": self.room.layer(self.held, layer),
            "units": [
                (u, self.held.label(f"{layer.path}:{u}"), self.held.row(f"{layer.path}:{u}"))
                for u in range(layer.units)
            ],
            "before": pages[place - 1] if place else None,
            "after": pages[place + 1] if place + 1 < len(pages) else None,
        }

    def unit_page(self, layer: Layer, index: int) -> dict[str, Any]:
        """All that is known of one unit."""
        unit = f"{layer.path}:{index}"
        return {
            "layer": layer,
            "index": index,
            "unit": unit,
            "stands_for": self._stands_for(layer, index),
            "named": self.held.label(unit),
            "verdicts": self._verdicts(unit),
            "sections": self.room.unit(self.held, unit),
            "before": self._step(layer, index, -1),
            "after": self._step(layer, index, 1),
        }

    def _stands_for(self, layer: Layer, index: int) -> str | None:
        labels = self.held.labels
        return labels[index] if layer.path == self.held.model.get("class_layer") and index < len(labels) else None

    def _called(self, layer: Layer) -> int:
        return sum(bool((label := self.held.label(f"{layer.path}:{u}")) and label.label) for u in range(layer.units))

    def _verdicts(self, unit: str) -> list[tuple[str, float, str]]:
        health = self.held.health
        if health is None:
            return []
        details = health.details.get(unit, {})
        return [(name, number, details.get(name, "")) for name, number in health.verdicts.get(unit, {}).items()]

    def _step(self, layer: Layer, index: int, way: int) -> tuple[str, str] | None:
        if 0 <= index + way < layer.units:
            return f"{layer.path}:{index + way}", layer.unit_page(index + way)
        place = self.held.pages.index(layer) + way
        if not 0 <= place < len(self.held.pages):
            return None
        other = self.held.pages[place]
        last = 0 if way > 0 else other.units - 1
        return f"{other.path}:{last}", other.unit_page(last)

    def _origins(self) -> Sequence[tuple[str, Provenance]]:
        held = self.held
        found = [
            ("Top passages and labels", held.passages),
            ("Columns", held.columns),
            ("The text shown", held.tracks),
            ("Verdicts", held.health),
            *(("Formula", one) for one in held.formulas),
            *(("What drives units", own[0]) for own in list(held.ideals.values())[:1]),
        ]
        return [(words, one.provenance) for words, one in found if one is not None]

"""From a book to what each template needs; no HTML here, and no disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from penlight.render.svg import Mark, bars, histogram_svg
from penlight.render.words import number, shape, share, times
from penlight.results import Example, Provenance
from penlight.results.diagnose import VERDICTS
from penlight.results.labels import Label
from penlight.results.weights import Feed
from penlight.web.book import Book, Input, Layer, Portrait, Selectivity

STRIP = 6  # thumbnails of a layer on the map
SAMPLES = 20  # predictions on the model's page
REAL = 5  # real inputs of a class
BARS = 12  # classes on a unit's page
SPARE = "can go"
SKIPPED = 40  # inputs that could not be read, by name
_ONE_SIDED = 0.3  # of a connection's sign: what is nearer to 0 excites and inhibits

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Crop:
    """What a unit saw of an input: a part of a picture file, and the words beside it."""

    example: Example
    input: Input | None
    box: Box | None
    back: Crop | None = None  # the same place projected back to pixels

    @property
    def part(self) -> bool:
        """Whether the box is smaller than the picture."""
        return self.box is not None and self.input is not None and self.box != (0, 0, *self.input.size[::-1])

    @property
    def sharp(self) -> bool:
        """Whether the part is so small that its pixels should be shown as squares."""
        if self.input is None:
            return False
        top, left, bottom, right = self.box or (0, 0, *self.input.size[::-1])
        return max(bottom - top, right - left) < 64


@dataclass(frozen=True)
class Wire:
    """A connection to another unit: what it is, the unit's page if it has one, and what it prefers."""

    feed: Feed
    page: str | None
    portrait: Portrait | None

    @property
    def words(self) -> str:
        """Whether it excites or inhibits."""
        if abs(self.feed.sign) < _ONE_SIDED:
            return "excites and inhibits"
        return "excites" if self.feed.sign > 0 else "inhibits"


class Pages:
    """The contexts of all pages of one book."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.chosen = {layer.path: Selectivity.of(book.rows(layer.path)) for layer in book.pages}
        self.missing = "not computed yet" if not book.whole else "not part of this atlas"
        tops = [] if book.survey is None else [rows.top_index.ravel() for rows in book.survey.layers.values()]
        self._in_top = set(np.concatenate(tops).tolist()) if tops else set()
        self._by_truth: dict[str, list[Input]] = {}
        for index in sorted(book.inputs, key=lambda index: (index in self._in_top, index)):
            one = book.inputs[index]
            if one.truth is not None:
                self._by_truth.setdefault(one.truth, []).append(one)

    def shared(self) -> dict[str, Any]:
        """What every page needs."""
        book = self.book
        doors = [("Classes", "classes.html")]
        return {"model": book.model, "data": book.data, "missing": self.missing, "book": book, "doors": doors}

    def model_page(self) -> dict[str, Any]:
        """The first page."""
        book = self.book
        pages, wires = book.pages, edges(book.layers)
        return {
            "facts": figures(book.model.get("figures") or {}),
            "rows": [self._map_row(layer) for layer in book.layers],
            "edges": wires,
            "longest": max((abs(end - start) for start, end in wires), default=1),
            "beam": self._beam(),
            "samples": self._samples(),
            "units": sum(layer.units for layer in pages),
            "surveyed": sum(len(rows.mean) for layer in pages if (rows := book.rows(layer.path)) is not None),
            "dead": sum(self._dead(layer) for layer in pages),
            "dark": sum(self._dark(layer) for layer in pages),
            "health": book.health,
            "whole_set": self._whole_set(),
            "verdict_names": VERDICTS,
            "maps": sum(len(found) for (_, way), found in book.portraits.items() if way == "happy"),
            "classes": [row for row in self._class_rows() if row["ideas"]][:60],
            "skipped": () if book.survey is None else book.survey.skipped[:SKIPPED],
        }

    def layer_page(self, layer: Layer) -> dict[str, Any]:
        """A layer's wall."""
        book = self.book
        rows, place = book.rows(layer.path), book.pages.index(layer)
        kinds = [
            (kind, words)
            for kind, words, there in (
                ("happy", "HappyMap", (layer.path, "happy") in book.portraits),
                ("sad", "SadMap", (layer.path, "sad") in book.portraits),
                ("top", "Top example", rows is not None and bool(book.inputs)),
                ("filter", "Filter", layer.path in book.filters),
            )
            if there
        ]
        return {
            "layer": layer,
            "cards": [self._card(layer, u, kinds[0][0] if kinds else "happy") for u in range(layer.units)],
            "columns": self._columns(layer, [kind for kind, _ in kinds]),
            "kinds": kinds,
            "rows": rows,
            "dead": self._dead(layer),
            "dark": self._dark(layer),
            "health": self._health(layer),
            "labelled": sum(self._scores(layer)[1]),
            "classes": book.survey.classes if rows is not None and book.survey else (),
            "filters": book.filters.get(layer.path, []),
            "aliases": [other for other in book.layers if other.alias_of == layer.path],
            "before": book.pages[place - 1] if place else None,
            "after": book.pages[place + 1] if place + 1 < len(book.pages) else None,
        }

    def unit_page(self, layer: Layer, index: int) -> dict[str, Any]:
        """All that is known of one unit."""
        book, unit = self.book, f"{layer.path}:{index}"
        rows = book.rows(layer.path)
        row = None if rows is None or book.survey is None else book.survey.row(unit)
        happy = book.portraits.get((layer.path, "happy"), {}).get(index, [])
        sad = book.portraits.get((layer.path, "sad"), {}).get(index, [])
        found = book.filters.get(layer.path, [])
        return {
            "layer": layer,
            "index": index,
            "unit": unit,
            "label": self.label(layer, index),
            "happy": happy,
            "sad": sad,
            "verdicts": self._verdicts(unit),
            "effect": self._effect(layer, index),
            "crops": [] if row is None else self._crops(unit),
            "least": [] if row is None or book.survey is None else self._cut(unit, book.survey.bottom(unit)),
            "twins": [] if row is None or book.survey is None else book.survey.twins(unit),
            "names": self._names(unit),
            "wires": self._wires(unit),
            "expanded": book.expanded.get(unit),
            "row": row,
            "ratio": self._ratio(happy, row),
            "percentile": self._percentile(unit, happy, row),
            "selectivity": self._chosen(layer, index),
            "histogram": self._histogram(unit, happy, sad, row),
            "classes": self._class_bars(unit, row),
            "filter": found[index] if index < len(found) else None,
            "origins": self._origins(layer, happy, sad, row),
            "before": self._step(layer, index, -1),
            "after": self._step(layer, index, 1),
        }

    def classes_page(self) -> dict[str, Any]:
        """Every class: real inputs and the network's ideas of it."""
        return {"classes": list(self._class_rows()), "class_layer": self.book.class_layer}

    def label(self, layer: Layer, index: int) -> str | None:
        """The class a unit stands for."""
        labels = self.book.labels
        if layer is self.book.class_layer and index < len(labels):
            return labels[index]
        known = self.book.portrait(layer.path, "happy", index)
        return known.label if known else None

    def never_fires(self, layer: Layer, index: int) -> bool:
        """Whether no input of the data pushed the unit above zero."""
        rows = self.book.rows(layer.path)
        return rows is not None and index < len(rows.fires) and bool(rows.fires[index] == 0)

    def _map_row(self, layer: Layer) -> dict[str, Any]:
        target = layer if layer.alias_of is None else self.book.layer(layer.alias_of)
        found = self.book.portraits.get((layer.path, "happy"), {})
        good = [index for index in sorted(found) if found[index][0].best is not None]
        alive = [index for index in good if not self.never_fires(layer, index)] or good
        step = max(1, len(alive) // STRIP)
        strip = [(index, found[index][0]) for index in alive[::step][:STRIP]]
        return {"layer": layer, "target": target, "strip": strip, "dead": self._dead(layer), "dark": self._dark(layer)}

    def _beam(self) -> list[tuple[Layer, int, Portrait]]:
        """Up to ten HappyMaps for the head of the first page: ideas of classes, or else some of every depth."""
        found: dict[str, list[tuple[Layer, int, Portrait]]] = {}
        for layer in self.book.pages:
            for index, portraits in sorted(self.book.portraits.get((layer.path, "happy"), {}).items()):
                if portraits[0].best is not None and len(found.setdefault(layer.path, [])) < 10:
                    found[layer.path].append((layer, index, portraits[0]))
        classes = self.book.class_layer
        if classes is not None and found.get(classes.path):
            return found[classes.path]
        rows = [row for row in found.values() if row]
        rows = [rows[n * len(rows) // 10] for n in range(10)] if len(rows) > 10 else rows
        each = -(-10 // max(len(rows), 1))
        return [one for row in rows for one in row[:each]][:10]

    def _dead(self, layer: Layer) -> int:
        rows = self.book.rows(layer.path)
        return 0 if rows is None or layer.alias_of else int((rows.fires == 0).sum())

    def _dark(self, layer: Layer) -> int:
        found = self.book.portraits.get((layer.path, "happy"), {})
        return sum(portraits[0].best is None for portraits in found.values())

    def _samples(self) -> list[Input]:
        if not self._by_truth:
            return [self.book.inputs[index] for index in sorted(self.book.inputs)[:SAMPLES]]
        order = {label: n for n, label in enumerate(self.book.labels)}
        labels = sorted(self._by_truth, key=lambda label: order.get(label, len(order)))
        rounds = max(1, SAMPLES // len(labels))
        return [one for n in range(rounds) for label in labels for one in self._by_truth[label][n : n + 1]][:SAMPLES]

    def _class_rows(self) -> Iterator[dict[str, Any]]:
        layer = self.book.class_layer
        survey = self.book.survey
        counts = dict(zip(survey.classes, survey.class_count, strict=False)) if survey else {}
        for index, label in enumerate(self.book.labels):
            there = layer is not None and index < layer.units
            yield {
                "label": label,
                "index": index,
                "unit": layer.unit_page(index) if there and layer else None,
                "address": f"{layer.path}:{index}" if there and layer else None,
                "ideas": self.book.portrait(layer.path, "happy", index) if there and layer else None,
                "real": self._by_truth.get(label, [])[:REAL],
                "count": counts.get(label),
            }

    def _card(self, layer: Layer, index: int, kind: str) -> dict[str, Any]:
        rows = self.book.rows(layer.path)
        known = rows is not None and index < len(rows.maximum)
        crops = self._crops(f"{layer.path}:{index}", 1) if kind == "top" and known else []
        found = self.book.filters.get(layer.path, []) if kind == "filter" else []
        return {
            "index": index,
            "href": layer.unit_page(index),
            "portrait": self.book.portrait(layer.path, kind, index),
            "crop": crops[0] if crops else None,
            "filter": found[index] if index < len(found) else None,
            "label": self.label(layer, index),
            "dead": self.never_fires(layer, index),
            "max": float(rows.maximum[index]) if rows is not None and known else None,
        }

    def _columns(self, layer: Layer, kinds: list[str]) -> dict[str, Any]:
        """Statistics and picture addresses by unit, for the wall's script."""
        rows, columns = self.book.rows(layer.path), {"n": layer.units, "path": layer.path}
        if rows is not None:
            chosen = self.chosen[layer.path]
            columns["max"] = [_short(v) for v in rows.maximum.tolist()]
            columns["mean"] = [_short(v) for v in rows.mean.tolist()]
            columns["fires"] = [_short(v) for v in rows.fires.tolist()]
            if chosen.index:
                columns["sel"], columns["best"] = [_short(v) for v in chosen.index], chosen.best
            if scores := self._scores(layer)[0]:
                columns["auroc"] = [_short(v) for v in scores]
        if health := self._health(layer):
            columns["verdict"] = health["units"]
        for way in ("happy", "sad"):
            if way in kinds:
                columns[way] = [self._wall_portrait(layer, way, u) for u in range(layer.units)]
        if "top" in kinds:
            columns["top"] = [self._wall_crop(layer, u) for u in range(layer.units)]
        if "filter" in kinds:
            columns["filter"] = [[f.file, *f.size] for f in self.book.filters[layer.path]]
        return columns

    def _health(self, layer: Layer) -> dict[str, Any] | None:
        """How many of a layer's units have each verdict, how many can go, and the verdicts unit by unit; None if it was not examined."""
        health = self.book.health
        if health is None or layer.path not in health.layers:
            return None
        own = health.layers[layer.path]
        said = [list(health.verdicts.get(f"{layer.path}:{u}", ())) for u in range(own.units)]
        for u in own.removable:
            said[u].append(SPARE)
        counts = {name: sum(name in names for names in said) for name in (*VERDICTS, SPARE)}
        return {"counts": {name: n for name, n in counts.items() if n}, "needed": own.needed, "units": said}

    def _verdicts(self, unit: str) -> list[tuple[str, float, str]]:
        """(name, number, detail) of each of a unit's verdicts."""
        health = self.book.health
        if health is None:
            return []
        details = health.details.get(unit, {})
        return [(name, number, details.get(name, "")) for name, number in health.verdicts.get(unit, {}).items()]

    def _effect(self, layer: Layer, index: int) -> tuple[float, float | None, int, bool] | None:
        """(change of loss, of accuracy, inputs, estimated) when the unit alone is silenced."""
        own = None if self.book.health is None else self.book.health.layers.get(layer.path)
        if own is None or index >= len(own.effect) or not np.isfinite(own.effect[index, 0]):
            return None
        accuracy = float(own.effect[index, 1])
        return float(own.effect[index, 0]), accuracy if np.isfinite(accuracy) else None, own.tried, own.estimated

    def _whole_set(self) -> str:
        """What all that can go at once costs, in words."""
        proofs = () if self.book.health is None else self.book.health.removals
        return next((one.text() for one in reversed(proofs) if one.why == SPARE), "")

    def _wall_portrait(self, layer: Layer, way: str, index: int) -> list[Any] | int | None:
        known = self.book.portrait(layer.path, way, index)
        if known is None:
            return None
        return 0 if known.best is None else [known.thumb, known.best, _short(known.starts[known.best].activation)]

    def _wall_crop(self, layer: Layer, index: int) -> list[Any] | None:
        rows = self.book.rows(layer.path)
        if rows is None or index >= len(rows.mean):
            return None
        crops = self._crops(f"{layer.path}:{index}", 1)
        if not crops or crops[0].input is None:
            return None
        crop, one = crops[0], crops[0].input
        box = crop.box or (0, 0, *one.size[::-1])
        return [one.file if crop.part else one.thumb, *one.size, *box, _short(crop.example.activation), one.name]

    def _names(self, unit: str) -> list[Label]:
        """What the unit is called, by the data's classes and by whatever else was asked."""
        tables = [] if self.book.survey is None else [self.book.survey.labels]
        found = [table.of(unit) for table in [*tables, *(words.labels for words in self.book.words)]]
        return [label for label in found if label is not None]

    def _scores(self, layer: Layer) -> tuple[list[float], list[bool]]:
        """(area under the ROC curve, whether it makes a label) of every unit for the class it tells best; empty where not scored."""
        survey = self.book.survey
        if survey is None or layer.path not in survey.layers or not survey.labels:
            return [], []
        found = [survey.labels.of(f"{layer.path}:{u}") for u in range(layer.units)]
        return [label.score if label else np.nan for label in found], [bool(label and label.label) for label in found]

    def _wires(self, unit: str) -> dict[str, Any] | None:
        """The units that feed it, the units it feeds, and where its layer reads."""
        weights, path = self.book.weights, unit.rpartition(":")[0]
        if weights is None or path not in weights.units or int(unit.rpartition(":")[2]) >= weights.units[path]:
            return None
        sides = {"fed": weights.fed_by(unit), "feeds": weights.feeds_into(unit)}
        return {
            "sources": weights.sources[path],
            **{name: [self._wire(one) for one in side] for name, side in sides.items()},
        }

    def _wire(self, feed: Feed) -> Wire:
        path, _, index = feed.unit.rpartition(":")
        layer = self.book.layer(path)
        if layer is None or layer.alias_of is not None or int(index) >= layer.units:
            return Wire(feed, None, None)
        return Wire(feed, layer.unit_page(int(index)), self.book.portrait(path, "happy", int(index)))

    def _crops(self, unit: str, count: int | None = None) -> list[Crop]:
        return [] if self.book.survey is None else self._cut(unit, self.book.survey.examples(unit)[:count])

    def _cut(self, unit: str, examples: list[Example]) -> list[Crop]:
        crops = []
        for example in examples:
            top, left, bottom, right = example.box or (0, 0, 0, 0)
            box = example.box if bottom > top and right > left else None
            crops.append(Crop(example, self.book.inputs.get(example.index), box, self._back(unit, example)))
        return crops

    def _back(self, unit: str, example: Example) -> Crop | None:
        back = self.book.backs.get(unit)
        if back is None or example.index not in back.boxes:
            return None
        strip = Input(example.index, f"{example.name}, back to pixels", back.file, back.file, back.size, (), None)
        return Crop(example, strip, back.boxes[example.index])

    def _ratio(self, happy: list[Portrait], row: dict[str, Any] | None) -> str | None:
        best = best_activation(happy)
        return None if best is None or row is None else times(best, row["max"])

    def _percentile(self, unit: str, happy: list[Portrait], row: dict[str, Any] | None) -> float | None:
        best = best_activation(happy)
        if best is None or row is None or self.book.survey is None or best >= row["max"]:
            return None
        return self.book.survey.percentile(unit, best)

    def _chosen(self, layer: Layer, index: int) -> tuple[str, float] | None:
        """(label, index) of the class that stands out."""
        chosen, survey = self.chosen[layer.path], self.book.survey
        if survey is None or index >= len(chosen.best) or (best := chosen.best[index]) is None:
            return None
        return survey.classes[best], chosen.index[index] or 0.0

    def _histogram(
        self, unit: str, happy: list[Portrait], sad: list[Portrait], row: dict[str, Any] | None
    ) -> Markup | None:
        if row is None or self.book.survey is None:
            return None
        marks = [Mark(row["max"], "best real example", "best")]
        for portraits, label, kind in ((happy, "HappyMap", "happy"), (sad, "SadMap", "sad")):
            best = best_activation(portraits)
            if best is not None:
                marks.append(Mark(best, label, kind))
        counts, edges_ = self.book.survey.histogram(unit)
        return Markup(histogram_svg(counts, edges_, marks, f"Responses of {unit}"))

    def _class_bars(self, unit: str, row: dict[str, Any] | None) -> Markup | None:
        means = {} if row is None else {k: v for k, v in row.get("class_mean", {}).items() if np.isfinite(v)}
        if not means or self.book.survey is None:
            return None
        many = len(means) > 2 * BARS
        order = sorted(means.items(), key=lambda item: -item[1])[:BARS] if many else list(means.items())
        note = f", the {BARS} highest of {len(means):,} classes" if many else ""
        return Markup(bars(order, f"Mean over a class’s inputs of the strongest response{note}"))

    def _origins(
        self, layer: Layer, happy: list[Portrait], sad: list[Portrait], row: dict[str, Any] | None
    ) -> list[tuple[str, Provenance]]:
        book = self.book
        found = [("HappyMap", p.provenance) for p in happy] + [("SadMap", p.provenance) for p in sad]
        if row is not None and book.survey is not None:
            found.append(("Real examples and statistics", book.survey.provenance))
        if book.health is not None and layer.path in book.health.layers:
            found.append(("Verdicts", book.health.provenance))
        unit = None if row is None else row["unit"]
        if unit in book.backs:
            found.append(("Projections back to pixels", book.backs[unit].provenance))
        if book.inputs_from is not None:
            found.append(("Predictions", book.inputs_from))
        found += [(f"Labels by {words.measure}", words.provenance) for words in book.words if layer.path in words.index]
        if book.weights is not None and layer.path in book.weights.units:
            found.append(("Connections", book.weights.provenance))
        if layer.path in book.filters_from:
            found.append(("Filter", book.filters_from[layer.path]))
        return found

    def _step(self, layer: Layer, index: int, way: int) -> tuple[str, str] | None:
        """(address, page) of the unit before or after, over the layers' borders."""
        if 0 <= index + way < layer.units:
            return f"{layer.path}:{index + way}", layer.unit_page(index + way)
        pages = [other for other in self.book.pages if other.units]
        place = pages.index(layer) + way
        if not 0 <= place < len(pages):
            return None
        other = pages[place]
        last = 0 if way > 0 else other.units - 1
        return f"{other.path}:{last}", other.unit_page(last)


def best_activation(portraits: list[Portrait]) -> float | None:
    """What the unit answers to its best picture; None if there is none that a gradient reached."""
    if not portraits or portraits[0].best is None:
        return None
    return portraits[0].starts[portraits[0].best].activation


def edges(layers: list[Layer]) -> list[tuple[int, int]]:
    """(from, to) rows of the map: what the layers say they read, or one after another where none says."""
    if all(layer.inputs is None for layer in layers):
        return [(n, n + 1) for n in range(len(layers) - 1)]
    place = {layer.path: n for n, layer in enumerate(layers)}
    return sorted({(place[path], n) for n, layer in enumerate(layers) for path in layer.inputs or () if path in place})


def arc(start: int, end: int, longest: int) -> str:
    """A line of the map, 100 wide and one high per layer: straight to the next layer, bent around others."""
    if end == start + 1:
        return f"M88 {start}.5V{end}.5"
    reach = round(84 - 80 * min(1.0, (abs(end - start) / max(longest, 1)) ** 0.7))
    bend = 0.15 * (end - start)
    return f"M88 {start}.5C{reach} {start + 0.5 + bend:.2f} {reach} {end + 0.5 - bend:.2f} 88 {end}.5"


def figures(stated: dict[str, Any]) -> list[tuple[str, str]]:
    """Stated figures in words: shares as per cent, nested ones under both names."""
    found = []
    for name, value in stated.items():
        words = str(name).replace("_", " ")
        if isinstance(value, dict):
            found += [(f"{words}, {inner}", text) for inner, text in figures(value)]
        elif isinstance(value, bool) or not isinstance(value, int | float):
            found.append((words, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
        elif isinstance(value, float) and 0 <= value <= 1:
            found.append((words, f"{100 * value:.1f}\u202f%"))
        else:
            found.append((words, number(value)))
    return found


def view_words(layer: Layer) -> str | None:
    """A receptive field in words."""
    if layer.field_size is None:
        return None
    stride = layer.field_stride
    step = "" if not stride else f", stride {number(stride[0]) if len(set(stride)) == 1 else shape(stride)}"
    return f"{shape(layer.field_size)} px{step}"


def _short(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.4g}")


FILTERS = {"num": number, "share": share, "shape": shape, "view": view_words}

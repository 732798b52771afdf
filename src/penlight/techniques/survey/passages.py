"""`passages`: what in texts excites every unit at every token, in one pass, and which property of the text it follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadInput, CannotRun
from penlight.inputs.properties import Own, Property, chosen
from penlight.inputs.text_data import TextData
from penlight.models import Layer, Model
from penlight.models.tracks import BLOCK, Stretch, token_layers, tracks
from penlight.results.passages import LayerPassages, PassagesResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.survey import histogram
from penlight.techniques.survey.peaks import Lane, Peaks
from penlight.techniques.survey.shuffled import shuffled
from penlight.techniques.survey.text_labels import Half, Verdicts, judge, score_all, usable
from penlight.techniques.survey.text_sample import Piece, Sample, tracks_of
from penlight.techniques.survey.text_tally import TextTally

_LANES, _LANE_MEMORY = 64, 256_000_000  # texts side by side, and bytes that they may keep
_NAMED = 5  # tokens named that raise a unit, and that lower it
_LEAST = 256  # cells with shuffled weights that claims are held against, at least
_COPIES = (4, 16)  # of the network, at least and at most: cells of one copy have its embedding in common
_CELLS = 64  # of a layer of each copy that are scored, at most
_MOST = 60_000.0  # what an infinite value is taken for: passages keep half precision
Tracks = NDArray[np.float32]


@dataclass(frozen=True)
class Passages(Technique):
    """The passages of text where each unit peaks, the tokens that move it, and the property of the text that it follows.

    One pass over the texts, each from its beginning to its end; what is kept does not grow with them. Without `request.layers` the
    hidden states and cells of recurrent layers are read, or, where there are none, every layer with a value a token; gates and other
    layers are read where they are named. A peak is higher than all within `spacing` tokens. Properties are judged on a sample of the
    tokens in two halves (see `text_labels`); a text the tokenizer cannot read, or a property that does not change, is told of and left out.

    Papers: cells that can be read, Karpathy, Johnson & Li 2015; stretches of text where states are on, Strobelt et al. 2018.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "passages"
    paper: ClassVar[str] = "Karpathy, Johnson & Li 2015, arXiv:1506.02078; Strobelt et al. 2018, arXiv:1606.07461"
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    reads_data: ClassVar[bool] = True

    top: int = option(9, "passages kept for each unit", low=1, high=100)
    bottom: int = option(3, "passages kept of where each unit is lowest", low=0, high=100)
    context: int = option(60, "tokens shown before and after a peak", low=0, high=1000)
    spacing: int = option(60, "tokens on either side within which a peak is the highest", low=1, high=10000)
    per_text: int = option(2, "passages kept of one text at most", low=1, high=100)
    properties: str = option(
        "all", "properties to score units by: all, none, or names divided by ';', 'name=REGEX' among them"
    )
    score_memory: int = option(256, "MB of values that the properties are judged on", low=1, high=100000)

    def run(self, request: Request, own: Sequence[Own | Property] = ()) -> PassagesResult:
        """Survey `request.layers` on `request.data`; `own` are further properties. `BadInput` if there are no texts that can be read."""
        model, data = request.model, request.data
        if model.text is None:
            raise BadInput(
                f"passages are of texts, and {model.reference} takes a {model.contract.kind}; use the method 'stream'"
            )
        if not isinstance(data, TextData):
            raise BadInput("a survey of texts needs texts: give a file, a folder, a .zip or a list of strings")
        properties = self._properties(own)
        layers = token_layers(model, request.layers)
        parts = _parts(layers)
        units = sum(layer.units for layer in layers.values())
        rng = np.random.default_rng([request.seed, 0])
        per_half = self.score_memory * 1_000_000 // (8 * units) if properties else 0
        sample = Sample.of(data, model.text, properties, per_half, rng) if properties else None
        reading = _Reading(self, model, data, units, sample)
        per_lane = 4 * units * (BLOCK + 3 * max(self.context, self.spacing))
        lanes = min(_LANES, max(1, _LANE_MEMORY // per_lane))
        for stretch in tracks(model, len(data), list(layers), read=reading.read, lanes=lanes):
            reading.take(stretch, list(layers))
            request.progress(reading.done, len(data))
        if not reading.tally.tokens and not reading.tally_waits:
            why = f"; the first: {reading.skipped[0][1]}" if reading.skipped else ""
            raise BadInput(f"not one of the {len(data)} texts of {data.name} can be read{why}")
        reading.tally.flush()
        judged = _Judged(reading, properties, parts, rng).run(model, list(layers)) if reading.sample else None
        return _result(self, request, reading, parts, judged)

    def _properties(self, own: Sequence[Own | Property]) -> list[Property]:
        asked = self.properties.strip()
        names = [part.strip() for part in asked.split(";") if part.strip()]
        if asked in ("all", ""):
            return chosen([*chosen(), *own])
        return chosen([*([] if asked == "none" else names), *own])


def _parts(layers: dict[str, Layer]) -> dict[str, slice]:
    """Columns of each layer where all stand side by side."""
    ends = np.cumsum([layer.units for layer in layers.values()]).tolist()
    return {path: slice(end - layer.units, end) for (path, layer), end in zip(layers.items(), ends, strict=True)}


@dataclass(eq=False)
class _Reading:
    """Everything that is kept while the texts stream by."""

    options: Passages
    model: Model
    data: TextData
    units: int
    sample: Sample | None
    skipped: list[tuple[str, str]] = field(default_factory=list)
    done: int = 0
    read_texts: int = 0

    def __post_init__(self) -> None:
        assert self.model.text is not None
        o = self.options
        self.tally = TextTally(self.units, len(self.model.text.vocabulary))
        kept = (o.context, o.spacing, o.per_text)
        self.lists = [Peaks(self.units, o.top, *kept), Peaks(self.units, o.bottom, *kept, sign=-1)]
        self.lanes: dict[int, Lane] = {}
        self.before: dict[int, Tracks] = {}
        self.tally_waits = False

    def read(self, number: int) -> NDArray[np.int64]:
        """One text's tokens; what cannot be read is noted."""
        try:
            return self.data.read(number)
        except BadInput as error:
            self.skipped.append((self.data.label(number)[0], str(error)))
            self.done += 1
            raise

    def take(self, stretch: Stretch, paths: Sequence[str]) -> None:
        number = stretch.text
        parts = [stretch.values[path].reshape(len(stretch.ids), -1) for path in paths]
        values = torch.cat([part.float() for part in parts], 1).cpu().numpy()
        values = np.nan_to_num(values, copy=False, nan=0.0, posinf=_MOST, neginf=-_MOST)
        self.tally.feed(stretch.ids, values, self.before.get(number))
        self.tally_waits = True
        self.before[number] = values[-1]
        self.lanes.setdefault(number, Lane()).feed(number, values, stretch.last, self.lists)
        if self.sample is not None:
            self.sample.feed(number, stretch.start, stretch.ids, values)
        if stretch.last:
            self.done += 1
            self.read_texts += 1
            del self.lanes[number], self.before[number]


@dataclass(eq=False)
class _Judged:
    """The properties that could be scored, and what was found."""

    reading: _Reading
    asked: Sequence[Property]
    parts: dict[str, slice]
    rng: np.random.Generator
    properties: list[Property] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdicts: Verdicts | None = None
    sampled: int = 0
    against: int = 0

    def run(self, model: Model, paths: Sequence[str]) -> _Judged:
        assert self.reading.sample is not None
        pieces = self.reading.sample.halves()
        self.reading.sample = None  # values of both halves are large: they are to be held once
        if not all(pieces):
            self.notes.append("the texts are too short for two halves: no property was scored")
            return self
        found = self._tracks(pieces)
        halves = [_half(some, found) for some in pieces]
        held_out = [piece.ids for piece in pieces[1]]
        del pieces
        fit = usable(halves[0], self.asked) & usable(halves[1], self.asked)
        if (~fit).any():
            names = ", ".join(one.name for one, ok in zip(self.asked, fit, strict=True) if not ok)
            self.notes.append(
                f"properties that hardly change in these texts, or cannot be said of them, were left out: {names}"
            )
        self.properties = [one for one, ok in zip(self.asked, fit, strict=True) if ok]
        if not self.properties:
            return self
        first, second = (replace(half, tracks=np.ascontiguousarray(half.tracks[:, fit])) for half in halves)
        self.sampled = len(second.values)
        unlearned, where = self._unlearned(model, paths, held_out, second)
        self.verdicts = judge(first, second, self.properties, unlearned, where, self.rng)
        return self

    def _tracks(self, pieces: Sequence[Sequence[Piece]]) -> dict[tuple[int, int], Tracks]:
        """(t, P) of each piece by text and start; texts are fetched again, one at a time."""
        data, contract = self.reading.data, self.reading.model.text
        assert contract is not None
        wanted: dict[int, list[Piece]] = {}
        for piece in (*pieces[0], *pieces[1]):
            wanted.setdefault(piece.text, []).append(piece)
        found: dict[tuple[int, int], Tracks] = {}
        for number, some in wanted.items():
            whole = tracks_of(data.text(number), contract, self.asked)
            for piece in some:
                found[number, piece.start] = whole[piece.start : piece.start + len(piece.ids)]
        return found

    def _unlearned(
        self, model: Model, paths: Sequence[str], texts: Sequence[NDArray[np.int64]], half: Half
    ) -> tuple[NDArray[np.float64] | None, list[slice]]:
        """Scores of cells of the same network with shuffled weights on the same texts, and where the layers are among them."""
        copies = int(np.clip(-(-_LEAST // half.values.shape[1]), *_COPIES))
        kinds = [one.kind for one in self.properties]
        some = [np.unique(np.linspace(part.start, part.stop - 1, _CELLS).astype(int)) for part in self.parts.values()]
        rows: list[NDArray[np.float64]] = []
        try:
            for _ in range(copies):
                values = _values(shuffled(model, self.rng), paths, texts)
                for columns in some:
                    scores = score_all(replace(half, values=np.ascontiguousarray(values[:, columns])), kinds)
                    rows.append(scores[np.isfinite(scores).all(1)])
        except CannotRun as error:
            self.notes.append(f"claims were not held against cells with shuffled weights: {error}")
            return None, []
        ends = np.cumsum([len(row) for row in rows]).tolist()
        self.against = ends[-1]
        return np.concatenate(rows), [slice(end - len(row), end) for row, end in zip(rows, ends, strict=True)]


def _half(pieces: Sequence[Piece], found: dict[tuple[int, int], Tracks]) -> Half:
    return Half(
        np.concatenate([piece.values for piece in pieces]),
        np.concatenate([found[piece.text, piece.start] for piece in pieces]),
        np.concatenate([np.full(len(piece.ids), piece.group) for piece in pieces]),
    )


def _values(model: Model, paths: Sequence[str], texts: Sequence[NDArray[np.int64]]) -> Tracks:
    """(T, U) of texts one after the other."""
    found: dict[int, list[Tracks]] = {}
    for stretch in tracks(model, texts, paths):
        parts = [stretch.values[path].reshape(len(stretch.ids), -1).float() for path in paths]
        found.setdefault(stretch.text, []).append(torch.cat(parts, 1).cpu().numpy())
    return np.concatenate([part for n in range(len(texts)) for part in found[n]])


def _result(
    options: Passages, request: Request, reading: _Reading, parts: dict[str, slice], judged: _Judged | None
) -> PassagesResult:  # fmt: skip
    tally = reading.tally
    counts, edges = histogram.trim([tally.counts.reshape(-1, histogram.BINS)[part] for part in parts.values()])
    table = _Tokens(request.model)
    lists = {name: _List(peaks, reading, table) for name, peaks in zip(("top", "bottom"), reading.lists, strict=True)}
    statistics = tally.statistics()
    named, mean, jump = tally.strongest(_NAMED)
    token = table.numbers(named)
    layers = {}
    for (path, part), held in zip(parts.items(), counts, strict=True):
        rows: dict[str, Any] = {
            **{f"{name}_{key}": value[part] for name, one in lists.items() for key, value in one.arrays.items()},
            **{name: values[part] for name, values in statistics.items()},
            **{"token": token[part], "token_mean": mean[part], "token_jump": jump[part]},
            **_scores(judged, part),
        }
        layers[path] = LayerPassages(histogram=held, **rows)
    names = {
        t: reading.data.label(t)[0] for one in lists.values() for t in np.unique(one.arrays["text"]).tolist() if t >= 0
    }
    return PassagesResult(
        provenance(options, request),
        layers,
        tally.tokens,
        reading.read_texts,
        names,
        tuple(table.tokens),
        edges,
        skipped=tuple(reading.skipped),
        **_claims(judged, parts),
    )


def _scores(judged: _Judged | None, part: slice) -> dict[str, NDArray[Any]]:
    found = judged.verdicts if judged is not None else None
    if found is None:
        units = part.stop - part.start
        none = np.zeros((units, 0), np.float32)
        return {"first": none, "second": none, "chosen": np.full(units, -1, np.int32), "stands": np.zeros(units, bool)}
    return {
        "first": found.first[part].astype(np.float32),
        "second": found.second[part].astype(np.float32),
        "chosen": found.chosen[part],
        "stands": found.stands[part],
    }


def _claims(judged: _Judged | None, parts: dict[str, slice]) -> dict[str, Any]:
    if judged is None:
        return {}
    best = judged.verdicts.best if judged.verdicts is not None else ()

    def address(column: int) -> str:
        path, part = next((path, part) for path, part in parts.items() if part.start <= column < part.stop)
        return f"{path}:{column - part.start}"

    return {
        "properties": tuple((one.name, one.kind) for one in judged.properties),
        "sampled": judged.sampled,
        "best": tuple(replace(one, unit=address(one.unit)) for one in best),
        "against": judged.against,
        "notes": tuple(judged.notes),
    }


class _Tokens:
    """The tokens that stand in a list, numbered as they come."""

    def __init__(self, model: Model) -> None:
        assert model.text is not None
        self.vocabulary = model.text.vocabulary
        self.tokens: list[str] = []
        self._number = np.full(len(self.vocabulary), -1, np.int32)

    def numbers(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Numbers of token ids of any shape; -1 stays."""
        for new in np.unique(ids[ids >= 0]).tolist():
            if self._number[new] < 0:
                self._number[new] = len(self.tokens)
                self.tokens.append(self.vocabulary[new])
        return np.where(ids >= 0, self._number[np.maximum(ids, 0)], -1).astype(np.int32)


class _List:
    """A list of peaks as the result keeps it: with lines and the tokens around, for which the texts are read again."""

    def __init__(self, peaks: Peaks, reading: _Reading, table: _Tokens) -> None:
        contract = reading.model.text
        assert contract is not None
        text, place, value, track = peaks.ordered()
        line = np.zeros_like(text)
        around = np.full(track.shape, -1, np.int64)
        steps = np.arange(-peaks.context, peaks.context + 1)
        for number in np.unique(text[text >= 0]).tolist():
            shown, ids = reading.data.text(number), reading.data.read(number)
            here = text == number
            places = place[here]
            rows = places[:, None] + steps
            around[here] = np.where((rows >= 0) & (rows < len(ids)), ids[np.clip(rows, 0, len(ids) - 1)], -1)
            starts = places
            if contract.tokens != "characters":
                starts = np.array([start for start, _ in contract.spans(shown)])[places]
            ends = np.flatnonzero(np.frombuffer(shown.encode("utf-32-le"), np.uint32) == ord("\n"))
            line[here] = np.searchsorted(ends, starts) + 1
        token = table.numbers(around)
        self.arrays: dict[str, NDArray[Any]] = {
            "text": text,
            "place": place,
            "line": line,
            "value": value,
            "track": track,
            "token": token,
        }

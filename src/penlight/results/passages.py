"""What in texts excites each unit: passages, the tokens that move it, and the property of the text that it follows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result, located
from penlight.results.labels import NEXT, Label, Labels

YES_NO = "yes/no"
MEASURES = {YES_NO: "AUROC", "depth": "rank correlation"}
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Passage:
    """One peak of a unit with what stands around it: `tokens` and the unit's `values` at them, the peak being number `at`."""

    text: int
    name: str  # of the text
    line: int  # of the peak, from 1
    place: int  # of the peak: tokens of the text before it
    activation: float
    tokens: tuple[str, ...]
    values: NDArray[np.float32]
    at: int

    @property
    def words(self) -> str:
        """The passage as text; words are put apart by blanks."""
        return ("" if all(len(t) <= 1 for t in self.tokens) else " ").join(self.tokens)


class Token(NamedTuple):
    """How a unit answers to a token: its mean value there, and how much that is above the token before, on average."""

    token: str
    mean: float
    jump: float


@dataclass(frozen=True)
class Best:
    """The cell that follows a property best, chosen on one half of the sample and scored on the other.

    `score` is an AUROC or a rank correlation with its 95 % interval over texts, of the negated cell where `falls`; `limit` is what a
    cell of the same network with its weights in another order does not reach. `unit` is an address once it is in a result.
    """

    property: str
    kind: str
    unit: Any
    score: float
    low: float
    high: float
    falls: bool
    stands: bool
    limit: float

    def __str__(self) -> str:
        sign = " (when low)" if self.falls else ""
        claim = "" if self.stands else "; no claim"
        span = f" [{self.low:.2f}, {self.high:.2f}]" if np.isfinite(self.low) else ""
        return f"{self.property}: {self.unit}{sign}, {MEASURES[self.kind]} {self.score:.3f}{span}{claim}"


@dataclass(frozen=True, eq=False)
class LayerPassages:
    """One layer's rows; U units, k peaks, b low ones, C = 2·context + 1 tokens, B bins, n tokens named, P properties."""

    top_text: NDArray[np.int32]  # (U, k), -1 where there are fewer, as in `place`
    top_place: NDArray[np.int64]
    top_line: NDArray[np.int32]
    top_value: NDArray[np.float32]
    top_track: NDArray[np.float16]  # (U, k, C), NaN beyond the text's ends
    top_token: NDArray[np.int32]  # (U, k, C) into the result's `tokens`, -1 beyond the ends
    bottom_text: NDArray[np.int32]  # (U, b) and so on
    bottom_place: NDArray[np.int64]
    bottom_line: NDArray[np.int32]
    bottom_value: NDArray[np.float32]
    bottom_track: NDArray[np.float16]
    bottom_token: NDArray[np.int32]
    mean: Floats  # (U,) over all tokens, as are the next four
    std: Floats
    maximum: Floats
    minimum: Floats
    fires: Floats  # share above zero
    histogram: NDArray[np.int64]  # (U, B)
    token: NDArray[np.int32]  # (U, n) into `tokens`: half raise the unit most, half lower it most
    token_mean: NDArray[np.float32]
    token_jump: NDArray[np.float32]
    first: NDArray[np.float32]  # (U, P) scores on the half that was chosen on
    second: NDArray[np.float32]  # (U, P) on the half that was judged on
    chosen: NDArray[np.int32]  # (U,) property, -1 where there is none
    stands: NDArray[np.bool_]  # (U,)


@dataclass(frozen=True, eq=False)
class PassagesResult(Result):
    """For every unit the passages where it peaks, the tokens that move it, and the property of the text that it follows.

    >>> r = penlight.survey("code", "src/")                      # doctest: +SKIP
    >>> r.top("lstm.cell_l1:17")[0].words                        # doctest: +SKIP
    >>> print(r.labels.of("lstm.cell_l1:17"))                    # doctest: +SKIP
    inside a string, AUROC 0.97; next: inside quotes, 0.96
    """

    kind: ClassVar[str] = "passages"

    provenance: Provenance
    layers: Mapping[str, LayerPassages]
    count: int  # tokens read
    texts: int
    names: Mapping[int, str]  # of the texts that stand in a list
    tokens: tuple[str, ...]  # that stand in a list
    edges: Floats  # (B + 1,) of all histograms
    properties: tuple[tuple[str, str], ...] = ()  # (name, kind)
    sampled: int = 0  # tokens the properties were judged on
    best: tuple[Best, ...] = ()  # a row a property
    against: int = 0  # cells with shuffled weights that claims were held against
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def top(self, unit: str) -> list[Passage]:
        """The unit's highest peaks, highest first. `UnknownName` or `BadUnit` if it was not surveyed."""
        return self._passages(unit, "top")

    def bottom(self, unit: str) -> list[Passage]:
        """Where the unit is lowest, lowest first."""
        return self._passages(unit, "bottom")

    def _passages(self, unit: str, which: str) -> list[Passage]:
        layer, u = self._find(unit)
        text, place, line, value, track, token = (
            getattr(layer, f"{which}_{name}")[u] for name in ("text", "place", "line", "value", "track", "token")
        )
        found = []
        for n in np.flatnonzero(text >= 0).tolist():
            inside = np.flatnonzero(token[n] >= 0)
            found.append(
                Passage(
                    int(text[n]),
                    self.names[int(text[n])],
                    int(line[n]),
                    int(place[n]),
                    float(value[n]),
                    tuple(self.tokens[t] for t in token[n][inside]),
                    track[n][inside].astype(np.float32),
                    token.shape[1] // 2 - int(inside[0]),
                )
            )
        return found

    def moved_by(self, unit: str) -> tuple[list[Token], list[Token]]:
        """(tokens at which the unit goes up most, at which it goes down most), among those that came five times."""
        layer, u = self._find(unit)
        rows = [
            Token(self.tokens[t], float(mean), float(jump))
            for t, mean, jump in zip(layer.token[u], layer.token_mean[u], layer.token_jump[u], strict=True)
        ]
        half = len(rows) // 2
        return [row for row in rows[:half] if row.jump > 0], [row for row in rows[half:] if row.jump < 0]

    @cached_property
    def labels(self) -> Labels:
        """A row a unit: the property of the text it follows, chosen on one half of the sample and scored on the other.

        Nothing is named unless the claim stands: beyond chance by shifting the property along the text, at 5 % over all claims, and
        beyond cells of the same network with its weights in another order. A cell that is high where the property is not is labelled
        "not …", one that falls with a depth "… (falling)".
        """
        if not self.properties:
            return Labels((), 0)
        rows = (self._label(f"{path}:{u}") for path, layer in self.layers.items() for u in range(len(layer.mean)))
        return Labels(rows, sum(int(np.isfinite(layer.first).sum()) for layer in self.layers.values()))

    def label(self, unit: str) -> Label | None:
        """The unit's row of `labels`, None where nothing was scored."""
        self._find(unit)
        return self.labels.of(unit)

    def scores(self, unit: str) -> list[tuple[str, float]]:
        """(property, score on the half that was judged on), the strongest first; the negation's where that follows."""
        layer, u = self._find(unit)
        rows = []
        for p, value in enumerate(layer.second[u].tolist()):
            if np.isfinite(value):
                name, score = self._named(p, value)
                rows.append((name, score, abs(2 * value - 1) if self.properties[p][1] == YES_NO else abs(value)))
        return [(name, score) for name, score, _ in sorted(rows, key=lambda row: -row[2])]

    def _named(self, p: int, score: float) -> tuple[str, float]:
        name, kind = self.properties[p]
        if kind == YES_NO:
            return (f"not {name}", 1 - score) if score < 0.5 else (name, score)
        return (f"{name} (falling)", -score) if score < 0 else (name, score)

    def _label(self, unit: str) -> Label:
        layer, u = self._find(unit)
        p = int(layer.chosen[u])
        if p < 0:
            return Label(unit, None, float("nan"), "nothing could be scored")
        name, score = self._named(p, float(layer.second[u, p]))
        kind = self.properties[p][1]
        how = f"{MEASURES[kind]} over {self.sampled:,} held-out tokens"
        if kind != YES_NO:
            how += ", Spearman's"
        ranked = self.scores(unit)
        if not layer.stands[u]:
            return Label(unit, None, score, how, MEASURES[kind], tuple(ranked[:NEXT]))
        return Label(unit, name, score, how, MEASURES[kind], tuple(row for row in ranked if row[0] != name)[:NEXT])

    @property
    def statistics(self) -> list[dict[str, Any]]:
        """One row a unit: `unit`, `mean`, `std`, `min`, `max` over all tokens, `fires`, the share above zero."""
        return [self.row(f"{path}:{u}") for path, layer in self.layers.items() for u in range(len(layer.mean))]

    def row(self, unit: str) -> dict[str, Any]:
        """One unit's row of `statistics`."""
        layer, u = self._find(unit)
        names = {"mean": "mean", "std": "std", "min": "minimum", "max": "maximum", "fires": "fires"}
        return {"unit": unit, **{name: float(getattr(layer, key)[u]) for name, key in names.items()}}

    def histogram(self, unit: str) -> tuple[NDArray[np.int64], Floats]:
        """(counts (B,), edges (B + 1,)) of the unit's value over all tokens, empty bins at both ends left out."""
        layer, u = self._find(unit)
        counts = layer.histogram[u]
        filled = np.flatnonzero(counts)
        if not len(filled):
            return counts[:0], self.edges[:1]
        return counts[filled[0] : filled[-1] + 1], self.edges[filled[0] : filled[-1] + 2]

    def _find(self, unit: str) -> tuple[LayerPassages, int]:
        return located(self.layers, unit)

    def summary(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "texts": self.texts,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "properties": [{"name": name, "kind": kind} for name, kind in self.properties],
            "sampled": self.sampled,
            "against": self.against,
            "tested": self.labels.tested,
            "best": [asdict(one) for one in self.best],
            "notes": self.notes,
            "units": [{**row, **self._told(row["unit"])} for row in self.statistics],
        }

    def _told(self, unit: str) -> dict[str, Any]:
        """Lists, tokens and label of a unit for `summary`."""
        label = self.label(unit)
        up, down = self.moved_by(unit)
        return {
            **({"label": label._asdict()} if label is not None else {}),
            "up": [token._asdict() for token in up],
            "down": [token._asdict() for token in down],
            "top": [_passage_told(one) for one in self.top(unit)],
            "bottom": [_passage_told(one) for one in self.bottom(unit)],
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "layers": list(self.layers),
            "names": self.names,
            "best": [asdict(one) for one in self.best],
            **{name: getattr(self, name) for name in _PLAIN},
        }
        arrays = {
            f"{n}.{f.name}": getattr(layer, f.name)
            for n, layer in enumerate(self.layers.values())
            for f in fields(LayerPassages)
        }
        return data, {"edges": self.edges, **arrays}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> PassagesResult:
        layers = {
            path: LayerPassages(**{f.name: arrays[f"{n}.{f.name}"] for f in fields(LayerPassages)})
            for n, path in enumerate(data["layers"])
        }
        pairs: dict[str, Any] = {name: tuple((a, b) for a, b in data[name]) for name in ("properties", "skipped")}
        plain = {name: data[name] for name in ("count", "texts", "sampled", "against")}
        nan = {name: float("nan") for name in ("score", "low", "high")}
        return cls(
            provenance,
            layers,
            names={int(i): name for i, name in data["names"].items()},
            tokens=tuple(data["tokens"]),
            edges=arrays["edges"],
            best=tuple(Best(**{**one, **{k: v for k, v in nan.items() if one[k] is None}}) for one in data["best"]),
            notes=tuple(data["notes"]),
            **pairs,
            **plain,
        )

    def pictures(self) -> Iterable[Picture]:
        return ()


_PLAIN = ("count", "texts", "tokens", "properties", "sampled", "against", "skipped", "notes")


def _passage_told(one: Passage) -> dict[str, Any]:
    keys = ("text", "name", "line", "place", "activation")
    return {**{key: getattr(one, key) for key in keys}, "passage": one.words, "at": one.at}

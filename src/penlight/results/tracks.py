"""What every unit does at every token of texts, and how closely it follows what is known of them."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, BadUnit, UnknownName
from penlight.results.base import Picture, Provenance, Result
from penlight.results.strips import Strip, text_picture
from penlight.results.visualize import file_name, file_names
from penlight.units import Unit

STEPS = 100  # levels of a unit's values above zero, and as many below it
FEW = 5  # stretches of a property below which a score says little
DEVIATIONS = 0.5  # from its own mean, from which on a unit is "on"
MARGIN = (8, 64)  # tokens looked at before a stretch and after it: as many as it has, within these
TOLD = 10  # cells named of every property in the summary
_PICTURES, _DRAWN = 6, 2400  # properties that are drawn, and tokens


class Known(NamedTuple):
    """A property of the texts: its name, "yes/no" or "depth", what it says, and in how many stretches of them it holds or keeps a value.

    Where these are few, a unit that merely changes slowly can seem to follow it.
    """

    name: str
    kind: str
    help: str
    stretches: int

    @property
    def measure(self) -> str:
        """How units are scored against it."""
        return "AUROC" if self.kind == "yes/no" else "rank correlation"


class Follower(NamedTuple):
    """A unit and how it follows a property: `score` is an AUROC or a rank correlation, `strength` how far it is from chance, in [0, 1].

    An AUROC below 0.5 and a correlation below 0 mean that the unit goes down where the property goes up.

    >>> str(Follower("lstm.cell_l1:42", 0.018, 0.964, "AUROC"))
    'AUROC 0.982, going down'
    """

    unit: str
    score: float
    strength: float
    measure: str

    def __str__(self) -> str:
        """How it follows, in words: what stands for a unit that goes down is the score of the negated unit."""
        down = self.score < (0.5 if self.measure == "AUROC" else 0)
        shown = (1 - self.score if self.measure == "AUROC" else -self.score) if down else self.score
        return f"{self.measure} {shown:.3f}" + (", going down" if down else "")


class On(NamedTuple):
    """A unit that is on in a stretch of text: shares of the tokens in it, around it and elsewhere at which it is.

    `score` = inside · (1 − elsewhere), times (1 − around) where the edges count. `way` is "up" where on means above the unit's mean,
    "down" where it means below.
    """

    unit: str
    score: float
    way: str
    inside: float
    around: float
    elsewhere: float


@dataclass(frozen=True, eq=False)
class Text:
    """One text of T tokens and what was read along it.

    spans        (T, 2) int32, start and end of every token in `text`
    values       by layer, (T, units) float16, or float32 where that is too small
    known        (P, T) float32, the properties; NaN where one cannot be said
    probability  (T,) float32 in [0, 1], what a language model gave to each token before it came, NaN for the first; (0,) of other networks
    whole        tokens that the text had, of which the first T were read
    """

    name: str
    text: str
    spans: NDArray[np.int32]
    values: Mapping[str, NDArray[np.floating]]
    known: NDArray[np.float32]
    probability: NDArray[np.float32]
    whole: int

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def tokens(self) -> list[str]:
        """What every token says."""
        return [self.text[a:b] for a, b in self.spans.tolist()]

    @property
    def bits(self) -> float | None:
        """Bits a token: what the language model needed, on average; None of other networks."""
        given = self.probability[np.isfinite(self.probability)].astype(np.float64)
        return float(-np.log2(np.maximum(given, 1e-30)).mean()) if len(given) else None

    def first(self, count: int) -> Text:
        """Its first `count` tokens."""
        if count >= len(self):
            return self
        spans = self.spans[:count]
        return replace(
            self,
            text=self.text[: int(spans[-1, 1])],
            spans=spans,
            values={path: values[:count] for path, values in self.values.items()},
            known=self.known[:, :count],
            probability=self.probability[:count],
        )


def levels(values: NDArray[np.floating]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(T, U) values in hundredths of the largest magnitude (U,) of each unit, and these; what is not finite is 0."""
    clean = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    top = np.abs(clean).max(0, initial=0.0)
    return np.rint(clean * (STEPS / np.where(top > 0, top, 1))).astype(np.int8), top


@dataclass(frozen=True, eq=False)
class TracksResult(Result):
    """Every unit of some layers at every token of some texts.

    >>> r = penlight.activations(model, "some.py")                             # doctest: +SKIP
    >>> r.following("inside a string", top=3), r.values("lstm.cell_l1:17")     # doctest: +SKIP
    >>> r.on(120, 140)                                                         # doctest: +SKIP

    texts   what was read, see `Text`
    layers  kinds of the layers that were read, by path
    known   the properties, of which each text has a row a token
    scores  by layer, (units, P) float32: AUROC of a yes/no property, rank correlation of a depth, over all texts; NaN where there is none
    limit   tokens of a text that a page shows
    """

    kind: ClassVar[str] = "tracks"

    provenance: Provenance
    texts: tuple[Text, ...]
    layers: Mapping[str, str]
    known: tuple[Known, ...]
    scores: Mapping[str, NDArray[np.float32]]
    limit: int = 5000
    notes: tuple[str, ...] = ()

    def values(self, unit: str, text: int = 0) -> NDArray[np.float32]:
        """(T,) a unit's values along a text; `UnknownName` for a layer that was not read, `BadUnit` for a unit it does not have."""
        path, index = self._find(unit)
        return self._text(text).values[path][:, index].astype(np.float32)

    def track(self, name: str, text: int = 0) -> NDArray[np.float32]:
        """(T,) a property along a text."""
        found: NDArray[np.float32] = self._text(text).known[self._property(name)]
        return found

    def score(self, unit: str, name: str) -> float:
        """How a unit follows a property: AUROC or rank correlation; NaN where it cannot be said."""
        path, index = self._find(unit)
        return float(self.scores[path][index, self._property(name)])

    def following(self, name: str, top: int = 10, layers: Sequence[str] = ()) -> list[Follower]:
        """The units that follow a property best, whether they go up or down with it; of `layers`, by default of all.

        The scores are of these texts alone and the best of many: whether a unit follows the property elsewhere too, with what is left
        to chance, is what the labels of a survey say.
        """
        number = self._property(name)
        known = self.known[number]
        found = [
            Follower(f"{path}:{u}", score, strength(score, known.kind), known.measure)
            for path in (layers or self.layers)
            for u, score in enumerate(self._layer(self.scores, path)[:, number].tolist())
            if np.isfinite(score)
        ]
        return sorted(found, key=lambda one: -one.strength)[:top]

    def on(
        self, start: int, stop: int, top: int = 20, text: int = 0, layers: Sequence[str] = (), edges: bool = True,
        deviations: float = DEVIATIONS,
    ) -> list[On]:  # fmt: skip
        """The units that are on from token `start` to `stop` (exclusive) and off elsewhere, best first.

        A unit is on where it is more than `deviations` standard deviations above its mean over the text, or below its mean, whichever
        sets the stretch apart better. With `edges` it must also be off around the stretch, at as many tokens before it and after it as
        it has, 8 to 64; without, units that stay on for longer are found too. Values are compared in hundredths of the unit's largest
        magnitude.
        """
        here = self._text(text)
        if not 0 <= start < stop <= len(here):
            raise BadInput(
                f"a stretch lies within tokens 0 to {len(here)} and is not empty; {start} to {stop} does not"
            )
        found = [
            one
            for path in (layers or self.layers)
            for one in _on_in(path, levels(self._layer(here.values, path))[0], start, stop, edges, deviations)
        ]
        return sorted(found, key=lambda one: -one.score)[:top]

    def statistics(self, unit: str) -> dict[str, float]:
        """Mean, standard deviation, smallest and largest value over all texts."""
        path, index = self._find(unit)
        return {name: float(values[index]) for name, values in self._statistics[path].items()}

    @cached_property
    def _statistics(self) -> dict[str, dict[str, NDArray[np.float64]]]:
        return {path: _of_texts([one.values[path] for one in self.texts]) for path in self.layers}

    @property
    def best(self) -> list[tuple[Known, Follower]]:
        """The best unit for every property that has one, strongest first; last those that the texts hold in few stretches."""
        found = [(known, rows[0]) for known in self.known if (rows := self.following(known.name, 1))]
        return sorted(found, key=lambda pair: (pair[0].stretches < FEW, -pair[1].strength))

    def shown(self) -> TracksResult:
        """The part of every text that a page shows: its first `limit` tokens; scores stay those of the whole."""
        return replace(self, texts=tuple(one.first(self.limit) for one in self.texts))

    def summary(self) -> dict[str, Any]:
        return {
            "texts": [
                {"name": one.name, "tokens": len(one), "of": one.whole, "bits_per_token": one.bits}
                for one in self.texts
            ],
            "layers": [
                {"layer": path, "kind": kind, "units": len(self.scores[path])} for path, kind in self.layers.items()
            ],
            "properties": [
                {
                    "property": known.name,
                    "kind": known.kind,
                    "measure": known.measure,
                    "stretches": known.stretches,
                    "best": [one._asdict() for one in self.following(known.name, TOLD)],
                }
                for known in self.known
            ],
            "notes": self.notes,
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "texts": [{"name": one.name, "text": one.text, "whole": one.whole} for one in self.texts],
            "layers": dict(self.layers),
            "known": [list(one) for one in self.known],
            "limit": self.limit,
            "notes": self.notes,
        }
        arrays: dict[str, NDArray[Any]] = {f"scores.{n}": part for n, part in enumerate(self.scores.values())}
        for t, one in enumerate(self.texts):
            arrays |= {f"{t}.spans": one.spans, f"{t}.known": one.known, f"{t}.probability": one.probability}
            arrays |= {f"{t}.values.{n}": one.values[path] for n, path in enumerate(self.layers)}
        return data, arrays

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> TracksResult:
        paths = list(data["layers"])
        return cls(
            provenance,
            tuple(
                Text(
                    one["name"],
                    one["text"],
                    arrays[f"{t}.spans"],
                    {path: arrays[f"{t}.values.{n}"] for n, path in enumerate(paths)},
                    arrays[f"{t}.known"],
                    arrays[f"{t}.probability"],
                    one["whole"],
                )
                for t, one in enumerate(data["texts"])
            ),
            data["layers"],
            tuple(Known(*one) for one in data["known"]),
            {path: arrays[f"scores.{n}"] for n, path in enumerate(paths)},
            data["limit"],
            tuple(data["notes"]),
        )

    def pictures(self) -> Iterable[Picture]:
        """The beginning of every text on the colours of the best unit of each of the strongest properties."""
        names = file_names([one.name for one in self.texts]) if len(self.texts) > 1 else [""]
        for t, name in enumerate(names):
            for known, one in self.best[:_PICTURES]:
                title = f"{one.unit} and {known.name}: {one}"
                part = self._text(t).first(_DRAWN)
                values = self.values(one.unit, t)[: len(part)]
                pixels = text_picture(part.tokens, [Strip(title, values)])
                yield Picture(file_name(known.name) + (f"-{name}" if name else ""), pixels, f"{title}; {part.name}")

    def _repr_html_(self) -> str:
        shown = (
            f'<figure><img alt="{html.escape(one.caption)}" style="max-width:100%" '
            f'src="data:image/png;base64,{base64.b64encode(one.png()).decode()}"></figure>'
            for _, one in zip(range(4), self.pictures(), strict=False)
        )
        return f"<div>{''.join(shown) or '<pre>' + html.escape(self.to_json(indent=1)) + '</pre>'}</div>"

    def _text(self, number: int) -> Text:
        if not 0 <= number < len(self.texts):
            raise BadInput(f"there are texts 0 to {len(self.texts) - 1}; there is no {number}")
        return self.texts[number]

    def _layer(self, parts: Mapping[str, NDArray[Any]], path: str) -> NDArray[Any]:
        if path not in self.layers:
            raise UnknownName("layer that was read", path, list(self.layers))
        return parts[path]

    def _find(self, unit: str) -> tuple[str, int]:
        asked = Unit.parse(unit)
        units = len(self._layer(self.scores, asked.layer))
        if asked.index is None or asked.position is not None or asked.index >= units:
            raise BadUnit(
                f"{unit!r} is no unit with a track; {asked.layer!r} has {asked.layer}:0 to {asked.layer}:{units - 1}"
            )
        return asked.layer, asked.index

    def _property(self, name: str) -> int:
        names = [one.name for one in self.known]
        if name not in names:
            raise UnknownName("property", name, names)
        return names.index(name)


def strength(score: float, kind: str) -> float:
    """How far a score is from chance, in [0, 1]."""
    return abs(2 * score - 1) if kind == "yes/no" else abs(score)


def _on_in(path: str, found: NDArray[np.int8], start: int, stop: int, edges: bool, deviations: float) -> list[On]:
    """The better way of every unit of a layer to be on; (T, U) levels. The page's script computes the very same."""
    count = len(found)
    sums = found.sum(0, dtype=np.int64)
    squares = np.einsum("tu,tu->u", found, found, dtype=np.int64)
    mean = sums / count
    spread = deviations * np.sqrt(np.maximum(squares / count - mean * mean, 0))
    margin = min(max(stop - start, MARGIN[0]), MARGIN[1])
    first, last = max(0, start - margin), min(count, stop + margin)
    both = []
    over, under = (
        np.clip(part, -128, 127).astype(np.int8) for part in (np.floor(mean + spread), np.ceil(mean - spread))
    )
    for on in (found > over, found < under):
        inside, near, all_on = (on[a:b].sum(0) for a, b in ((start, stop), (first, last), (0, count)))
        both.append(
            (
                inside / (stop - start),
                (near - inside) / max(last - first - (stop - start), 1),
                (all_on - near) / max(count - (last - first), 1),
            )
        )
    scores = np.stack([inside * (1 - elsewhere) * (1 - around * edges) for inside, around, elsewhere in both])
    ways = np.where(scores[1] > scores[0], 1, 0).tolist()
    return [
        On(f"{path}:{u}", float(scores[way, u]), ("up", "down")[way], *(float(part[u]) for part in both[way]))
        for u, way in enumerate(ways)
    ]


def _of_texts(parts: Sequence[NDArray[np.floating]]) -> dict[str, NDArray[np.float64]]:
    """(U,) statistics of the rows of all parts together."""
    count = sum(len(part) for part in parts)
    wide = [part.astype(np.float64) for part in parts]
    mean = sum((part.sum(0) for part in wide), np.zeros(parts[0].shape[1])) / count
    squares = sum((((part - mean) ** 2).sum(0) for part in wide), np.zeros(parts[0].shape[1]))
    return {
        "mean": mean,
        "std": np.sqrt(squares / count),
        "min": np.min([part.min(0) for part in wide], axis=0),
        "max": np.max([part.max(0) for part in wide], axis=0),
    }

"""Texts that drive units, and the evidence beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import PenlightError
from penlight.results.base import Picture, Provenance, Result
from penlight.results.heat import colours, magnitude, strength
from penlight.results.strips import INK, PAPER, SOFT, Cell, are_words, laid_out, readable
from penlight.results.visualize import file_names

_EDGE, _WIDE, _TALL = 16, 10, 21  # pixels: of the margin, a letter, a line


def _later() -> Any:
    return np.zeros(0, np.float32)  # __post_init__ knows the shape


@dataclass(frozen=True, eq=False)
class RealText:
    """A stretch of real text: its text's name, the number of its first token there, its tokens and the unit's value at each."""

    name: str
    start: int
    tokens: tuple[str, ...]
    track: NDArray[np.float32]
    value: float

    @property
    def text(self) -> str:
        """The stretch itself."""
        return joined(self.tokens)


@dataclass(frozen=True, eq=False)
class StringsResult(Result):
    """Texts that drive units up, or down, as far as was found, several a unit, and what speaks for them.

    Arrays are (units, seeds) if nothing else is said, NaN where unknown.

    ids            (units, seeds, T): token numbers, of which the first `prompt` were given
    tokens         the tokens themselves, in the same order
    values         what the unit answers: at the last token, the mean over the string, or its peak (`at`)
    tracks         (units, seeds, T): its value after every token
    bits           surprise of the found tokens in bits a token, under `prior`
    surprises      (units, seeds, T): of each of them; NaN where nothing foretells it
    written        (units, n): values of n strings of the same length drawn from `prior`, to compare with
    written_bits   what these cost, in bits a token
    flat           (units,) bool: the unit says the same whatever the text
    percentile     share, in [0, 1], of real text's values that the string outdoes; `real` is how many those are
    ratio          of the value to the best of real text, where that is beyond zero
    real_bits      bits a token of real text
    passages       the real stretch that drives each unit furthest, or None
    read           (units,): tokens that the network read in the search
    """

    kind: ClassVar[str] = "strings"

    provenance: Provenance
    units: tuple[str, ...]
    labels: tuple[str | None, ...]
    ids: NDArray[np.int32]
    tokens: tuple[tuple[tuple[str, ...], ...], ...]
    values: NDArray[np.float32]
    tracks: NDArray[np.float32]
    prompt: int = 0
    minimize: bool = False
    at: str = "last"
    prior: str = ""
    bits: NDArray[np.float32] = field(default_factory=_later)
    surprises: NDArray[np.float32] = field(default_factory=_later)
    written: NDArray[np.float32] = field(default_factory=_later)
    written_bits: float = float("nan")
    flat: NDArray[np.bool_] = field(default_factory=_later)
    percentile: NDArray[np.float32] = field(default_factory=_later)
    ratio: NDArray[np.float32] = field(default_factory=_later)
    real: int = 0
    real_bits: float = float("nan")
    passages: tuple[RealText | None, ...] = ()
    read: NDArray[np.int64] = field(default_factory=_later)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        units, seeds, steps = self.ids.shape
        unknown: dict[str, NDArray[Any]] = {
            name: np.full((units, seeds), np.nan, np.float32) for name in ("bits", "percentile", "ratio")
        }
        unknown["surprises"] = np.full((units, seeds, steps), np.nan, np.float32)
        unknown |= {"written": np.zeros((units, 0), np.float32), "read": np.zeros(units, np.int64)}
        unknown["flat"] = np.zeros(units, np.bool_)
        for name, value in unknown.items():
            if getattr(self, name).shape == (0,):
                object.__setattr__(self, name, value)
        if not self.passages:
            object.__setattr__(self, "passages", (None,) * units)

    def index(self, unit: str) -> int:
        """Row of a unit's address."""
        return self.units.index(unit)

    def strings(self, unit: str) -> list[str]:
        """What was found for a unit, prompt included, best first."""
        return [joined(tokens) for tokens in self.tokens[self.index(unit)]]

    @property
    def beyond(self) -> NDArray[np.float32]:
        """How many of the standard deviations of `written` a value lies beyond their mean; NaN where they do not differ."""
        if not self.written.shape[1]:
            return np.full_like(self.values, np.nan)
        mean, spread = self.written.mean(1, keepdims=True), self.written.std(1, keepdims=True)
        sign = -1.0 if self.minimize else 1.0
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spread > 0, sign * (self.values - mean) / spread, np.nan).astype(np.float32)

    def with_survey(self, survey: Any) -> StringsResult:
        """The result with `percentile` and `ratio` from a survey of real text, for the units it has; nothing else changes.

        `survey` has rows `statistics` with `unit`, `min` and `max`, and perhaps `percentile(unit, value)`. A value at one token is
        compared with those at every token of the data; of a mean over a string a survey knows nothing.
        """
        if self.at == "mean":
            return self
        rows = {str(row["unit"]): row for row in survey.statistics}
        percentile, ratio = self.percentile.copy(), self.ratio.copy()
        for u, unit in enumerate(self.units):
            row = rows.get(unit.partition("@")[0])
            if row is None:
                continue
            best = float(row["min"] if self.minimize else row["max"])
            ratio[u] = self.values[u] / best if (best < 0 if self.minimize else best > 0) else np.nan
            for s, value in enumerate(self.values[u].tolist()):
                percentile[u, s] = self._outdone(survey, unit, value, row)
        return replace(self, percentile=percentile, ratio=ratio)

    def _outdone(self, survey: Any, unit: str, value: float, row: Mapping[str, Any]) -> float:
        if (value < row["min"]) if self.minimize else (value > row["max"]):
            return 1.0
        if not hasattr(survey, "percentile"):
            return float("nan")
        try:
            below = float(survey.percentile(unit.partition("@")[0], value))
        except PenlightError:
            return float("nan")
        return 1.0 - below if self.minimize else below

    def summary(self) -> dict[str, Any]:
        rows = []
        for u, unit in enumerate(self.units):
            passage = self.passages[u]
            rows.append(
                {
                    "unit": unit,
                    "label": self.labels[u],
                    "strings": self.strings(unit),
                    "values": self.values[u],
                    "bits": self.bits[u],
                    "beyond": self.beyond[u],
                    "percentile": self.percentile[u],
                    "ratio": self.ratio[u],
                    "flat": bool(self.flat[u]),
                    "tracks": self.tracks[u],
                    "written": _spread(self.written[u]),
                    "read": int(self.read[u]),
                    "passage": None if passage is None else _told(passage),
                }
            )
        names = ("minimize", "at", "prior", "prompt", "written_bits", "real", "real_bits")
        return {**{name: getattr(self, name) for name in names}, "notes": self.notes, "units": rows}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        names = ("units", "labels", "tokens", "prompt", "minimize", "at", "prior", "real", "notes")
        data: dict[str, Any] = {name: getattr(self, name) for name in names}
        data |= {name: _finite(getattr(self, name)) for name in ("written_bits", "real_bits")}
        found = [None if p is None else {**_told(p), "tokens": p.tokens} for p in self.passages]
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"passage-{u}": p.track for u, p in enumerate(self.passages) if p is not None}
        return {**data, "passages": found}, arrays

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> StringsResult:
        given: dict[str, Any] = {**data, **{name: arrays[name] for name in _ARRAYS}}
        passages = tuple(
            None if row is None else RealText(row["name"], row["start"], tuple(row["tokens"]), arrays[f"passage-{u}"], row["value"])
            for u, row in enumerate(given.pop("passages"))
        )  # fmt: skip
        given |= {name: tuple(given[name]) for name in ("units", "labels", "notes")}
        given["tokens"] = tuple(tuple(tuple(one) for one in many) for many in given["tokens"])
        given |= {name: float("nan") if given[name] is None else given[name] for name in ("written_bits", "real_bits")}
        return cls(provenance, passages=passages, **given)

    def pictures(self) -> Iterable[Picture]:
        for u, name in enumerate(file_names(self.units)):
            lines = [(self.caption(u, n), tokens, self.tracks[u, n]) for n, tokens in enumerate(self.tokens[u])]
            passage = self.passages[u]
            if passage is not None:
                told = f"{passage.name}, from token {passage.start} on: value {passage.value:.3g}"
                lines.append((told, passage.tokens, passage.track))
            file = f"{name}-{'sad' if self.minimize else 'happy'}"
            yield Picture(file, _drawn(self.titled(u), lines, self.scale(u)), f"texts that drive {self.titled(u)}")

    def titled(self, u: int) -> str:
        """A unit with its label, and which way it is driven."""
        label = f" ({self.labels[u]!r})" if self.labels[u] is not None else ""
        return f"{self.units[u]}{label} {'down' if self.minimize else 'up'}"

    def caption(self, u: int, s: int) -> str:
        """What a reader of one string must know."""
        parts = [f"value {self.values[u, s]:.3g}"]
        if self.flat[u]:
            return f"{parts[0]}, the same whatever the text"
        if np.isfinite(self.percentile[u, s]):
            parts.append(f"beyond {100 * self.percentile[u, s]:.4g} % of real text")
        if np.isfinite(self.bits[u, s]):
            parts.append(f"{self.bits[u, s]:.2f} bits a token")
        return ", ".join(parts)

    def scale(self, u: int) -> float:
        """The magnitude of the strongest colour of a unit: its strings and its passage share it."""
        passage = self.passages[u]
        known = [self.tracks[u].ravel(), *([] if passage is None else [passage.track])]
        values = np.concatenate(known)
        return magnitude(values[np.isfinite(values)])


_ARRAYS = ("ids", "values", "tracks", "bits", "surprises", "written", "flat", "percentile", "ratio", "read")


def joined(tokens: Sequence[str]) -> str:
    """Tokens as a text: characters side by side, words put apart by spaces."""
    return (" " if are_words(tokens) else "").join(tokens)


def _drawn(title: str, lines: Sequence[tuple[str, Sequence[str], NDArray[np.float32]]], scale: float) -> Any:
    """(H, W, 3): texts below each other, letters on the colours of their values, each under its caption."""
    from PIL import Image, ImageDraw, ImageFont

    font, laid = ImageFont.load_default(14), [laid_out(tokens) for _, tokens, _ in lines]
    wide = max(
        [len(title), *(len(told) for told, _, _ in lines), *(c.at + len(c.text) for cells in laid for c in cells)]
    )
    tall = _TALL * (1 + sum(2 + cells[-1].line + 1 for cells in laid if cells))
    image = Image.new("RGB", (2 * _EDGE + wide * _WIDE, 2 * _EDGE + tall), PAPER)
    draw, top = ImageDraw.Draw(image), _EDGE
    draw.text((_EDGE, top), plainly(title), font=font, fill=INK)
    for (told, _, track), cells in zip(lines, laid, strict=True):
        draw.text((_EDGE, top + 1.6 * _TALL), plainly(told), font=font, fill=SOFT)
        top += round(2.6 * _TALL)
        paints = colours(strength(np.nan_to_num(track), True, scale), True)
        for cell in cells:
            _cell(draw, font, cell, paints[cell.token], _EDGE + cell.at * _WIDE, top + cell.line * _TALL)
        top += cells[-1].line * _TALL if cells else 0
    return np.asarray(image)


def _cell(draw: Any, font: Any, cell: Cell, paint: NDArray[np.uint8], x: int, y: int) -> None:
    fill = tuple(int(part) for part in paint)
    draw.rectangle([x, y, x + len(cell.text) * _WIDE - 1, y + _TALL - 2], fill=fill)
    if cell.blank:  # the end of a line, or a tab: the font has no arrows
        draw.line([x + 7, y + 6, x + 7, y + 13, x + 2, y + 13], fill=readable(paint.tolist()), width=1)
        return
    for n, letter in enumerate(cell.text):
        draw.text((x + n * _WIDE + _WIDE / 2, y + 2), letter, font=font, fill=readable(paint.tolist()), anchor="ma")


def plainly(text: str) -> str:
    """A text in letters that the drawing font has."""
    return "".join(c if " " <= c <= "~" else "?" for c in text)


def _spread(values: NDArray[np.float32]) -> dict[str, Any] | None:
    if not len(values):
        return None
    return {"count": len(values), "mean": float(values.mean()), "std": float(values.std()),
            "min": float(values.min()), "max": float(values.max())}  # fmt: skip


def _told(passage: RealText) -> dict[str, Any]:
    return {"name": passage.name, "start": passage.start, "text": passage.text, "value": passage.value}


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None

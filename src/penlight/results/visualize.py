"""Pictures that excite units, and the evidence beside them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadUnit
from penlight.results.base import Picture, Provenance, Result
from penlight.results.survey import SurveyResult
from penlight.units import Unit

NO_GRADIENT, FRAGILE, NEVER_FIRED, ONCE = "no gradient", "fragile", "never fired", "comes once"
_KEPT = 0.5  # of what a picture gained over its start; one that keeps less under small jitters is fragile
_OPAQUE = 80  # percentile of where a picture mattered from which on it is shown fully opaque
_LONGEST = 80  # characters of a file name
_WORDS = {" - ": "-minus-", " + ": "-plus-", " * ": "-times-", " / ": "-by-"}
_UNKNOWN: dict[str, tuple[float, Any]] = {  # what stands where a field was not given, and its type
    "jittered": (np.nan, np.float32),
    "recurrence": (0, np.int32),
    "percentile": (np.nan, np.float32),
    "ratio": (np.nan, np.float32),
}


def _later() -> Any:
    return np.zeros(0, np.float32)  # __post_init__ knows the shape


@dataclass(frozen=True, eq=False)
class VisualizeResult(Result):
    """Preferred (or least preferred) inputs of units, over several random starts, and what speaks for each picture.

    `images` is (units, seeds, H, W, C) uint8. All other arrays are (units, seeds) if nothing else is said, NaN where unknown.

    activations       what the unit answers to the picture as stored; `starts` what it answered to the random start
    zero_gradient     no gradient ever reached the picture: it shows the random start and says nothing about the unit
    jittered          mean answer to the picture under small jitters that it was not made with
    network_likeness  (units, seeds, seeds) in [-1, 1]: how alike the pictures are to the network itself, by its own activations
    eye_likeness      (units, seeds, seeds) in [-1, 1]: structural similarity of the aligned pictures
    recurrence        how many of the starts show this one's pattern, itself included; 0 where unknown, or no gradient arrived
    percentile        share, in [0, 1], of the real inputs of a survey that the picture outdoes (see `with_survey`)
    ratio             of the activation to that of the best real input
    never_fired       (units,) bool: no real input of the survey took the unit above zero
    film              (units, seeds, F, H, W, C) uint8, the optimisation from start to end; F = 0 if none was asked for
    transparency      (units, seeds, H, W): where the picture mattered, of methods that keep account of it; (units, seeds, 0, 0) of others
    notes             what the method has to say about the whole, in plain words
    """

    kind: ClassVar[str] = "visualize"

    provenance: Provenance
    units: tuple[str, ...]  # addresses with the index, "conv1:3", or expressions, "class:A - class:B"
    labels: tuple[str | None, ...]  # the class's label, for class units
    images: NDArray[np.uint8]
    activations: NDArray[np.float32]
    starts: NDArray[np.float32]
    zero_gradient: NDArray[np.bool_]
    minimize: bool = False
    jittered: NDArray[np.float32] = field(default_factory=_later)
    network_likeness: NDArray[np.float32] = field(default_factory=_later)
    eye_likeness: NDArray[np.float32] = field(default_factory=_later)
    recurrence: NDArray[np.int32] = field(default_factory=_later)
    percentile: NDArray[np.float32] = field(default_factory=_later)
    ratio: NDArray[np.float32] = field(default_factory=_later)
    never_fired: NDArray[np.bool_] = field(default_factory=_later)
    film: NDArray[np.uint8] = field(default_factory=_later)
    transparency: NDArray[np.float32] = field(default_factory=_later)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        units, seeds = shape = self.images.shape[:2]
        unknown = {name: np.full(shape, value, kind) for name, (value, kind) in _UNKNOWN.items()}
        unknown |= {name: np.full((*shape, seeds), np.nan, np.float32) for name in ("network_likeness", "eye_likeness")}
        unknown["never_fired"] = np.zeros(units, np.bool_)
        unknown["transparency"] = np.zeros((*shape, 0, 0), np.float32)
        unknown["film"] = np.zeros((*shape, 0, *self.images.shape[2:]), np.uint8)
        for name, value in unknown.items():
            if getattr(self, name).shape == (0,):
                object.__setattr__(self, name, value)

    def index(self, unit: str) -> int:
        """Row of a unit's address."""
        return self.units.index(unit)

    @property
    def fragile(self) -> NDArray[np.bool_]:
        """(units, seeds) bool: small jitters take away more than half of what the picture gained over its start.

        Such a picture works at one alignment only: it is adversarial noise rather than what the unit looks for.
        """
        sign = -1.0 if self.minimize else 1.0
        gained = sign * (self.activations - self.starts)
        with np.errstate(invalid="ignore"):
            kept: NDArray[np.bool_] = sign * (self.jittered - self.starts) < _KEPT * gained
            return kept & (gained > 0)

    @property
    def stability(self) -> NDArray[np.float32]:
        """(units,): mean likeness of two different starts' pictures, to the network; NaN where unknown or for one start.

        Pictures that no gradient reached do not count.
        """
        return _off_diagonal(self.network_likeness, self.zero_gradient)

    @property
    def eye_stability(self) -> NDArray[np.float32]:
        """(units,): the same to the eye."""
        return _off_diagonal(self.eye_likeness, self.zero_gradient)

    def flags(self, unit: int, seed: int) -> tuple[str, ...]:
        """What a reader of one picture must know, in words: 'no gradient', 'fragile', 'never fired', 'comes once'."""
        once = self.images.shape[1] > 1 and self.recurrence[unit, seed] == 1
        dark = bool(self.zero_gradient[unit, seed])
        said = {
            NO_GRADIENT: dark,
            FRAGILE: bool(self.fragile[unit, seed]) and not dark,
            NEVER_FIRED: bool(self.never_fired[unit]),
            ONCE: bool(once) and not dark,
        }
        return tuple(word for word, holds in said.items() if holds)

    def with_survey(self, survey: SurveyResult) -> VisualizeResult:
        """The result with `percentile`, `ratio` and `never_fired` from a survey of the same network; what it lacks stays unknown.

        A picture's activation is read at one position, a survey's is the maximum over all positions of an input, so the comparison
        is on the strict side: a single position of the picture against the best one of each real input. With `minimize` the other
        tail counts (share of the inputs the unit answers more to; ratio to the least answer, where that is below zero), and only
        for units without positions: what the least answer over positions would be, the survey does not know. A ratio to a best
        real answer that is not above zero would say nothing and stays unknown, and so does everything about expressions, and about
        units that the method read in another way than the survey (`objective`: a channel's mean, its energy, a probability).
        """
        percentile, ratio = np.full_like(self.activations, np.nan), np.full_like(self.activations, np.nan)
        never = np.zeros(len(self.units), np.bool_)
        reading = self.provenance.options.get("objective", "neuron")
        for u, text in enumerate(self.units):
            found = _surveyed(text, survey)
            if found is None:
                continue
            address, positions = found
            row = survey.row(address)
            never[u] = row["fires"] == 0
            if (self.minimize and positions) or reading not in (("neuron",) if positions else ("neuron", "channel")):
                continue
            for s, activation in enumerate(self.activations[u].tolist()):
                percentile[u, s] = _outdone(survey, address, row, activation, self.minimize)
            best = row["min"] if self.minimize else row["max"]
            if (best < 0) if self.minimize else (best > 0):
                ratio[u] = self.activations[u] / best
        return replace(self, percentile=percentile, ratio=ratio, never_fired=never)

    def summary(self) -> dict[str, Any]:
        rows = []
        for u, unit in enumerate(self.units):
            rows.append(
                {
                    "unit": unit,
                    "label": self.labels[u],
                    "activations": self.activations[u],
                    "starts": self.starts[u],
                    "jittered": self.jittered[u],
                    "zero_gradient": self.zero_gradient[u],
                    "fragile": self.fragile[u],
                    "percentile": self.percentile[u],
                    "ratio": self.ratio[u],
                    "never_fired": self.never_fired[u],
                    "recurrence": [int(count) or None for count in self.recurrence[u]],
                    "stability": self.stability[u],
                    "eye_stability": self.eye_stability[u],
                    "network_likeness": self.network_likeness[u],
                    "eye_likeness": self.eye_likeness[u],
                    "flags": [self.flags(u, s) for s in range(self.images.shape[1])],
                }
            )
        shape, frames = list(self.images.shape), self.film.shape[2]
        return {"minimize": self.minimize, "shape": shape, "frames": frames, "notes": self.notes, "units": rows}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data: dict[str, Any] = {
            "units": self.units,
            "labels": self.labels,
            "minimize": self.minimize,
            "notes": self.notes,
        }
        names = ("images", "activations", "starts", "zero_gradient", "never_fired", *_UNKNOWN)
        names += (
            "network_likeness",
            "eye_likeness",
            *(name for name in ("film", "transparency") if getattr(self, name).size),
        )
        return data, {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> VisualizeResult:
        units, labels, notes = tuple(data["units"]), tuple(data["labels"]), tuple(data.get("notes", ()))
        return cls(provenance, units, labels, minimize=data["minimize"], notes=notes, **arrays)

    def pictures(self) -> Iterable[Picture]:
        word = "least preferred" if self.minimize else "preferred"
        for u, (unit, name) in enumerate(zip(self.units, file_names(self.units), strict=True)):
            label = f" ({self.labels[u]})" if self.labels[u] else ""
            for s in range(self.images.shape[1]):
                file = f"{name}-{'sad' if self.minimize else 'happy'}-{s}"
                caption = f"{word} input of {unit}{label}, start {s}: {self._caption(u, s)}"
                yield Picture(file, self.images[u, s], caption)
        yield from self._see_through()

    def _see_through(self) -> Iterable[Picture]:
        """The pictures again, as opaque in each place as that mattered; for grey and colour pictures."""
        if not self.transparency.size or self.images.shape[4] not in (1, 3):
            return
        for u, (unit, name) in enumerate(zip(self.units, file_names(self.units), strict=True)):
            for s in range(self.images.shape[1]):
                alpha = np.minimum(
                    self.transparency[u, s] / max(np.percentile(self.transparency[u, s], _OPAQUE), 1e-30), 1
                )
                colours = np.broadcast_to(self.images[u, s], (*self.images.shape[2:4], 3))
                pixels = np.concatenate([colours, np.round(255 * alpha[..., None]).astype(np.uint8)], axis=2)
                yield Picture(f"{name}-through-{s}", pixels, f"the same of {unit}, opaque where it mattered, start {s}")

    def _caption(self, u: int, s: int) -> str:
        flags = self.flags(u, s)
        if NO_GRADIENT in flags:
            return ", ".join(flags)
        parts = [f"activation {self.activations[u, s]:.3g}"]
        if np.isfinite(self.percentile[u, s]):
            way = "below" if self.minimize else "above"
            parts.append(f"{way} {100 * self.percentile[u, s]:.3g} % of the real inputs")
        if self.recurrence[u, s] and self.images.shape[1] > 1:
            parts.append(f"{self.recurrence[u, s]} of {self.images.shape[1]} starts")
        return ", ".join([*parts, *(flag for flag in flags if flag != ONCE)])


def _off_diagonal(likeness: NDArray[np.float32], dark: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(units, K, K) → (units,): the mean over what is known outside the diagonal, `dark` (units, K) left out."""
    others = ~np.eye(likeness.shape[1], dtype=bool)
    pairs = likeness[:, others]
    known = np.isfinite(pairs) & ~(dark[:, :, None] | dark[:, None])[:, others]
    total = np.where(known, pairs, np.float32(0)).sum(1)
    count = known.sum(1)
    mean: NDArray[np.float32] = np.full(len(likeness), np.nan, np.float32)
    np.divide(total, count, out=mean, where=count > 0, casting="same_kind")
    return mean


def _surveyed(text: str, survey: SurveyResult) -> tuple[str, int] | None:
    """(address of the survey's row, number of map axes) for a unit that was surveyed, placed or not; None for all others."""
    try:
        unit = Unit.parse(text)
    except BadUnit:
        return None
    rows = survey.layers.get(unit.layer)
    if rows is None or unit.index is None or unit.index >= len(rows.mean):
        return None
    return str(Unit(unit.layer, unit.index)), rows.top_position.shape[2]


def _outdone(survey: SurveyResult, unit: str, row: Mapping[str, Any], activation: float, minimize: bool) -> float:
    """Share of the inputs on the near side of `activation`: exact past both ends and at zero, to the bin width in between."""
    if not np.isfinite(activation):
        return float("nan")
    low, high, fires = row["min"], row["max"], row["fires"]
    if activation > high or activation < low:
        return float((activation < low) == minimize)
    if minimize:
        return fires if activation == 0 else 1.0 - survey.percentile(unit, activation)
    if activation == low:
        return 0.0
    below = survey.percentile(unit, activation)
    return max(below, 1.0 - fires) if activation > 0 else below


def file_names(units: Iterable[str]) -> list[str]:
    """A file name for each, no two alike, on a file system that ignores case too."""
    names: list[str] = []
    taken: set[str] = set()
    for unit in units:
        name = file_name(unit)
        if name.lower() in taken:
            name = f"{name}-{_digest(unit)}"
        stem, count = name, 1
        while name.lower() in taken:
            count += 1
            name = f"{stem}-{count}"
        taken.add(name.lower())
        names.append(name)
    return names


def file_name(unit: str) -> str:
    """A unit's address or an expression as a file name: letters, digits, dot, dash, underscore and tilde only, 80 at most.

    >>> file_name("features.12:42@7,7")
    'features.12_42_at_7-7'
    >>> file_name("class:A - class:B")
    'class_A-minus-class_B-1aadc909'

    What is shortened or put into words ends in a digest of the text, so that different texts stay different.
    """
    text = unit
    for sign, word in _WORDS.items():
        text = text.replace(sign, word)
    text = text.replace("@", "_at_").replace(",", "-").replace(":", "_").replace("#", "_call_").replace("*", "all")
    if " " not in unit and (name := _spelled(text)) and len(name) <= _LONGEST:
        return name
    readable = re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._")
    return f"{readable[: _LONGEST - 9].rstrip('-._') or 'unit'}-{_digest(unit)}"


def _spelled(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else f"~{ord(c):x}" for c in text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]

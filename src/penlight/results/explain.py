"""What in an input caused a unit's value: a map, and the evidence beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result
from penlight.results.heat import colours, heat, strength
from penlight.results.strips import Strip, row_picture, text_picture
from penlight.results.visualize import file_name

_FAINTEST, _DIM = 0.25, 0.45  # opacity of the weakest colour over the picture; how far the picture is faded under it
_LEAST = 224  # pixels a side of a picture made from a small map


@dataclass(frozen=True)
class Explained:
    """The number that was explained: `unit` as text with its position, the class's `label`, and the `value` it had.

    >>> float(Explained("fc:2@1,1", None, 3.5))
    3.5
    """

    unit: str
    label: str | None
    value: float
    probability: float | None = None  # of the class, after softmax, where the unit is one

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return self.unit + (f" ({self.label})" if self.label and self.label not in self.unit else "")


@dataclass(frozen=True, eq=False)
class ExplainResult(Result):
    """What in one input caused the value of one unit.

    target     the unit, its label and its value
    values     float32, shaped like the input, (C, H, W) for a picture, or a map of it, (h, w), one number a place; (columns,) for a row
               of a table, (T,) for a text
    input      the input (*shape), uint8 or float32 before normalisation; float64 (columns,), int64 (T,)
    signed     whether values may be negative; if not, they are all ≥ 0
    caption    what the map is and what it is not
    evidence   numbers beside the map, by name, in order
    checks     what `check` found, by name: areas under the deletion and insertion curves, sensitivity, randomisation
    notes      warnings, in plain words
    extras     further arrays of the method, by name, and the curves of the checks
    source     what the input was read from, as text
    box        (start, end) of each input axis after the channels, of what the unit sees, where the map is to be cut to that
    tokens     names of a table's columns, or the tokens of a text; () for other inputs
    shown      the row's values in words, with their units; () for other inputs
    parts      names of the parts that were taken away, where the method does that: "worst_radius > 18.79"; `extras["weights"]` has theirs
    """

    kind: ClassVar[str] = "explain"

    provenance: Provenance
    target: Explained
    input: NDArray[Any]
    values: NDArray[np.float32]
    signed: bool = True
    caption: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    checks: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    box: tuple[tuple[int, int], ...] | None = None
    colour: bool = False  # whether the values themselves make a picture, as a deconvnet's do
    source: str = ""
    tokens: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        """The method's name."""
        return self.provenance.method

    @property
    def map(self) -> NDArray[np.float32]:
        """One number a place: channels are added up. (H, W) for a picture, (h, w) for a map, (L,) for a signal, (F,) for a table."""
        like_input = self.values.shape == self.input.shape and self.values.ndim > 1
        summed: NDArray[np.float32] = self.values.sum(0, dtype=np.float32) if like_input else self.values
        return summed

    @property
    def crop(self) -> tuple[slice, ...]:
        """What the unit sees, as slices of the input's axes after the channels; everything without a `box`."""
        return tuple(slice(a, b) for a, b in self.box) if self.box else (slice(None),) * (self.input.ndim - 1)

    def with_checks(
        self, checks: Mapping[str, float | None], curves: Mapping[str, NDArray[Any]], verdict: str = ""
    ) -> ExplainResult:
        """The result with what was found about its truth; `verdict` goes to the notes."""
        notes = (*self.notes, verdict) if verdict else self.notes
        return replace(self, checks={**self.checks, **checks}, extras={**self.extras, **curves}, notes=notes)

    def ranked(self, top: int = 10) -> list[tuple[tuple[int, ...], float]]:
        """(place, value) of the places with the largest magnitudes, largest first."""
        order = np.argsort(-np.abs(self.map), axis=None, kind="stable")[:top]
        places = np.stack(np.unravel_index(order, self.map.shape), axis=1)
        return [(tuple(int(p) for p in place), float(self.map[tuple(place)])) for place in places]

    @property
    def is_row(self) -> bool:
        """Whether the input is a row of a table."""
        return bool(self.shown)

    @property
    def is_text(self) -> bool:
        """Whether the input is a text."""
        return bool(self.tokens) and not self.shown

    @property
    def step(self) -> int | None:
        """The step of a text at which the unit was explained."""
        found = re.search(r"@(\d+)\)?$", self.target.unit) if self.is_text else None
        return None if found is None else int(found[1])

    @property
    def heading(self) -> str:
        """The unit with its value, in a line."""
        share = self.target.probability
        return f"{self.target}, value {self.target.value:.4g}" + ("" if share is None else f", probability {share:.1%}")

    @property
    def strip(self) -> Strip:
        """The map of a row or a text, to be drawn."""
        return Strip(self.method, self.map, self.signed)

    def place_name(self, place: Sequence[int]) -> str:
        """A place in words: the column and its value, the token and its step, or only the numbers."""
        told = ",".join(map(str, place))
        if self.is_row:
            return f"{self.tokens[place[0]]} = {self.shown[place[0]]}"
        return f"{self.tokens[place[0]]!r} at {told}" if self.is_text else told

    def weighed(self, top: int = 50) -> list[tuple[str, float]]:
        """(part, weight) of the parts of a row or a text with the largest weights, where the method takes parts away."""
        weights = self.extras.get("weights")
        if weights is None or len(weights) != len(self.parts) or not self.tokens:
            return []
        order = np.argsort(-np.abs(weights), kind="stable")[:top]
        return [(self.parts[n], float(weights[n])) for n in order.tolist()]

    def summary(self) -> dict[str, Any]:
        return {
            "target": {
                "unit": self.target.unit,
                "label": self.target.label,
                "value": self.target.value,
                "probability": self.target.probability,
            },
            "source": self.source,
            "shape": list(self.values.shape),
            "signed": self.signed,
            "caption": self.caption,
            "evidence": dict(self.evidence),
            "checks": dict(self.checks),
            "notes": list(self.notes),
            "sum": float(self.values.sum(dtype=np.float64)),
            "lowest": float(self.values.min()) if self.values.size else None,
            "highest": float(self.values.max()) if self.values.size else None,
            "strongest": [self._told(place, value) for place, value in self.ranked()],
            "arrays": ["values", "input", *self.extras],
            **self._named(),
        }

    def _told(self, place: tuple[int, ...], value: float) -> dict[str, Any]:
        told: dict[str, Any] = {"place": list(place), "value": value}
        if self.is_row:
            told |= {"column": self.tokens[place[0]], "shown": self.shown[place[0]]}
        elif self.is_text:
            told["token"] = self.tokens[place[0]]
        return told

    def _named(self) -> dict[str, Any]:
        """What rows and texts have besides."""
        if not self.tokens:
            return {}
        named: dict[str, Any] = {"tokens": list(self.tokens)}
        if self.is_row:
            named |= {"shown": list(self.shown), "row": self.input.tolist()}
        if weighed := self.weighed():
            named["parts"] = [{"part": part, "weight": weight} for part, weight in weighed]
        return named

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "target": vars(self.target),
            "signed": self.signed,
            "caption": self.caption,
            "evidence": dict(self.evidence),
            "checks": dict(self.checks),
            "notes": self.notes,
            "extras": list(self.extras),
            "box": self.box,
            "colour": self.colour,
            "source": self.source,
            "tokens": self.tokens,
            "shown": self.shown,
            "parts": self.parts,
        }
        return data, {"values": self.values, "input": self.input, **self.extras}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> ExplainResult:
        return cls(
            provenance,
            Explained(**data["target"]),
            arrays["input"],
            arrays["values"],
            data["signed"],
            data["caption"],
            data["evidence"],
            data["checks"],
            tuple(data["notes"]),
            {name: arrays[name] for name in data["extras"]},
            None if data["box"] is None else tuple((a, b) for a, b in data["box"]),
            data["colour"],
            data["source"],
            *(tuple(data.get(name, ())) for name in ("tokens", "shown", "parts")),  # earlier results lack them
        )

    def pictures(self) -> Iterable[Picture]:
        """The map over the input, the map alone and, where the values make one, the picture they make."""
        name = f"{self.method}-{file_name(self.target.unit)}"
        told = f"{self.method}: what in the input caused {self.target}, value {self.target.value:.4g}"
        if self.input.ndim == 3:
            yield Picture(name, self.overlay(), told)
            yield Picture(f"{name}-map", heat(_cut(self._raised(), self.crop), self.signed), f"{told}; the map alone")
            if self.colour and self.values.shape == self.input.shape:
                yield Picture(f"{name}-raw", self.painted(), f"{told}; the values as a picture, zero is grey")
            return
        if self.is_row:
            yield Picture(name, row_picture(self.tokens, self.shown, [self.strip], self.heading), told)
            return
        if self.is_text:
            yield Picture(name, text_picture(self.tokens, [self.strip], self.step, self.heading), told)
            return
        rows = np.atleast_2d(self.map) if self.map.ndim < 3 else self.map.reshape(len(self.map), -1)
        size = max(1, _LEAST // max(rows.shape))
        yield Picture(name, heat(rows, self.signed).repeat(size, 0).repeat(size, 1), told)

    def overlay(self) -> NDArray[np.uint8]:
        """(H, W, 3): the map over the grey input, cut to what the unit sees; for inputs (C, H, W)."""
        grey = shown(self.input).astype(np.float64)
        grey = np.repeat(grey.mean(2, keepdims=True) if grey.shape[2] != 1 else grey, 3, axis=2)
        shared = strength(self._raised(), self.signed)
        opacity = (
            (_FAINTEST + (1 - _FAINTEST) * np.abs(shared))[..., None]
            if not self.signed
            else np.abs(shared)[..., None] ** 0.6
        )
        faded = 255 - (255 - grey) * (1 - _DIM) if self.signed else grey
        mixed = faded * (1 - opacity) + colours(shared, self.signed).astype(np.float64) * opacity
        return _cut(np.rint(mixed).astype(np.uint8), self.crop)

    def painted(self) -> NDArray[np.uint8]:
        """(H, W, C) uint8: the values as a picture, zero at mid-grey, as DeepVis shows a deconvnet: x / max(2·max, −2·min) + 1/2."""
        values = _cut(np.moveaxis(self.values, 0, -1), self.crop)
        return painted(np.moveaxis(values, -1, 0))

    def _raised(self) -> NDArray[np.float32]:
        """The map at the input's size, from its lowest value up where none is negative: what matters there is how places differ."""
        placed = self._placed()
        return placed if self.signed else placed - placed.min()

    def _placed(self) -> NDArray[np.float32]:
        """The map at the input's size, (H, W); a coarser one is enlarged smoothly."""
        height, width = self.input.shape[1:]
        if self.map.shape == (height, width):
            return self.map
        from PIL import Image

        flat = self.map if self.map.ndim == 2 else np.atleast_2d(self.map.reshape(len(self.map), -1))
        image = Image.fromarray(np.ascontiguousarray(flat, np.float32))
        return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)


def _cut(pixels: NDArray[Any], crop: Sequence[slice]) -> NDArray[Any]:
    part = pixels[tuple(crop)] if len(crop) == 2 else pixels
    return part if part.size else pixels


def painted(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Values (C, H, W) as a picture (H, W, C) uint8, zero at mid-grey: x / max(2·max, −2·min) + 1/2."""
    reach = max(2 * float(values.max()), -2 * float(values.min())) + 1e-10 if values.size else 1.0
    return np.asarray(np.rint(np.clip(np.moveaxis(values, 0, -1) / reach + 0.5, 0, 1) * 255), np.uint8)


def shown(given: NDArray[Any]) -> NDArray[np.uint8]:
    """An input (C, H, W) as (H, W, C) uint8; floats outside [0, 1] are stretched to their own range."""
    moved = np.moveaxis(given, 0, -1)
    if moved.dtype == np.uint8:
        return np.asarray(moved, np.uint8)
    low, high = float(moved.min()), float(moved.max())
    if low < -1e-6 or high > 1 + 1e-6:
        moved = (moved - low) / (high - low)
    return np.asarray(np.rint(np.clip(moved, 0, 1) * 255), np.uint8)


@dataclass(frozen=True, eq=False)
class ExplanationsResult(Result):
    """Several explanations of one input, side by side: of some units, by some methods each.

    >>> both = penlight.explain(model, "photo.png", method=["occlusion", "grad-cam"])     # doctest: +SKIP
    >>> both["occlusion"].values.shape                                                    # doctest: +SKIP
    """

    kind: ClassVar[str] = "explanations"

    provenance: Provenance
    parts: tuple[ExplainResult, ...]

    def __iter__(self) -> Any:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, key: int | str) -> ExplainResult:
        """An explanation by number, or the first one by a method's name."""
        if isinstance(key, int):
            return self.parts[key]
        return next(part for part in self.parts if part.method == key)

    @property
    def units(self) -> tuple[str, ...]:
        """The units that were explained, each once."""
        return tuple(dict.fromkeys(part.target.unit for part in self.parts))

    def summary(self) -> dict[str, Any]:
        return {"explanations": [part.to_dict() for part in self.parts]}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        told: list[dict[str, Any]] = []
        kept: dict[str, NDArray[Any]] = {}
        for n, part in enumerate(self.parts):
            data, arrays = part.state()
            told.append({"provenance": asdict(part.provenance), "data": data, "arrays": list(arrays)})
            kept |= {f"{n}-{name}": array for name, array in arrays.items()}
        return {"parts": told}, kept

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> ExplanationsResult:
        parts = []
        for n, told in enumerate(data["parts"]):
            own = {name: arrays[f"{n}-{name}"] for name in told["arrays"]}
            parts.append(ExplainResult.from_state(Provenance(**told["provenance"]), told["data"], own))
        return cls(provenance, tuple(parts))

    def pictures(self) -> Iterable[Picture]:
        for part in self.parts:
            yield from part.pictures()

"""A sample of texts with the values of every unit, in two halves: one to choose on, one to judge on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput
from penlight.inputs import TextContract
from penlight.inputs.properties import YES_NO, Property, at_tokens
from penlight.inputs.text_data import TextData

LENGTH = 512  # tokens of a piece at most
_SHORTEST = 64  # of a piece where texts are few
_FEW = 8  # texts; with fewer the halves are parts of texts
_RUN = 4  # pieces that go to one half together where they are parts of texts; the last of them is left out, as a gap
_BLOCKS = 8  # such runs at least, where the texts are long enough
_RARE = 400  # tokens with a property in each half, for which pieces that have it are taken before others
Values = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Piece:
    """Tokens of one text from `start` on, and the values (t, U) at them; `group` is what is drawn as a whole in a bootstrap."""

    text: int
    start: int
    ids: NDArray[np.int64]
    values: Values
    group: int


@dataclass(eq=False)
class _Span:
    """A piece before it is read: how many of its tokens have each property."""

    text: int
    start: int
    length: int
    group: int
    counts: NDArray[np.int64]
    parts: list[tuple[NDArray[np.int64], Values]] = field(default_factory=list)

    def piece(self) -> Piece:
        ids, values = (np.concatenate([part[n] for part in self.parts]) for n in (0, 1))
        self.parts.clear()  # they may be large
        return Piece(self.text, self.start, ids, values, self.group)


class Sample:
    """Pieces of texts, chosen before the texts are read: of each half at most `room` tokens.

    Whole texts go to one half or the other, by lot; where there are fewer than eight, runs of pieces of them do. Texts with a rare
    property are dealt out first and evenly, and pieces that have it taken first, so that it can be scored at all: such a property's
    score is over pieces like these.
    """

    def __init__(self, spans: Sequence[_Span], room: int, rng: np.random.Generator) -> None:
        self.halves_planned = _planned(spans, room, rng)
        self._wanted: dict[int, list[_Span]] = {}
        for half in self.halves_planned:
            for span in half:
                self._wanted.setdefault(span.text, []).append(span)

    @classmethod
    def of(
        cls, data: TextData, contract: TextContract, properties: Sequence[Property], room: int, rng: np.random.Generator
    ) -> Sample:  # fmt: skip
        """Plan a sample of texts; those that cannot be read are passed over."""
        return cls(_spans(data, contract, properties), max(room, _SHORTEST), rng)

    def feed(self, text: int, start: int, ids: NDArray[np.int64], values: Values) -> None:
        """Tokens of a text from `start` on, in order."""
        for span in self._wanted.get(text, ()):
            first, last = max(span.start, start), min(span.start + span.length, start + len(ids))
            if first < last:
                span.parts.append((ids[first - start : last - start], values[first - start : last - start].copy()))

    def halves(self) -> tuple[list[Piece], list[Piece]]:
        """(to choose on, to judge on), in the order of the texts."""
        first, second = (
            [span.piece() for span in sorted(half, key=lambda s: (s.text, s.start)) if span.parts]
            for half in self.halves_planned
        )
        return first, second


def tracks_of(text: str, contract: TextContract, properties: Sequence[Property]) -> Values:
    """(T, P): every property at every token of a text."""
    spans = None if contract.tokens == "characters" else contract.spans(text)
    rows = [one.find(text) if spans is None else at_tokens(one.find(text), spans) for one in properties]
    return np.stack(rows, 1) if rows else np.zeros((0, 0), np.float32)


def _spans(data: TextData, contract: TextContract, properties: Sequence[Property]) -> list[_Span]:
    """Every piece there is, with what it has."""
    few = len(data) < _FEW
    whole = sum(_size(data, n) for n in range(len(data))) if few else 0
    length = min(LENGTH, max(_SHORTEST, whole // (_RUN * _BLOCKS))) if few else LENGTH
    yes = np.array([one.kind == YES_NO for one in properties])
    found: list[_Span] = []
    for number in range(len(data)):
        try:
            tracks = tracks_of(data.text(number), contract, properties)
        except BadInput:
            continue
        for place, start in enumerate(range(0, len(tracks), length)):
            if few and place % _RUN == _RUN - 1:
                continue
            part = tracks[start : start + length]
            counts = np.where(yes, (part == 1).sum(0), np.isfinite(part).sum(0))
            found.append(
                _Span(number, start, len(part), number if not few else number * 100_000 + place // _RUN, counts)
            )
    return found


def _size(data: TextData, number: int) -> int:
    try:
        return len(data.text(number))
    except BadInput:
        return 0


def _planned(spans: Sequence[_Span], room: int, rng: np.random.Generator) -> tuple[list[_Span], list[_Span]]:
    if not spans:
        return [], []
    groups = sorted({span.group for span in spans})
    number = {group: n for n, group in enumerate(groups)}
    counts = np.zeros((len(groups), len(spans[0].counts)), np.int64)
    sizes = np.zeros(len(groups), np.int64)
    for span in spans:
        counts[number[span.group]] += span.counts
        sizes[number[span.group]] += span.length
    half = _dealt(counts, sizes, rng)
    sides: tuple[list[_Span], list[_Span]] = ([], [])
    for span in spans:
        sides[half[number[span.group]]].append(span)
    return _taken(sides[0], room, rng), _taken(sides[1], room, rng)


def _dealt(counts: NDArray[np.int64], sizes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Which half each of G groups goes to: by lot, but evenly for each property, (G, P), the rarest first, and for the sizes."""
    half = np.full(len(sizes), -1)
    rarest = np.argsort((counts > 0).sum(0), kind="stable")
    for weights in [*(counts[:, p] for p in rarest), sizes]:
        have = [int(weights[half == side].sum()) for side in (0, 1)]
        for group in rng.permutation(len(sizes)).tolist():
            if half[group] < 0 and weights[group] > 0:
                side = int(have[1] < have[0] or (have[1] == have[0] and rng.random() < 0.5))
                half[group] = side
                have[side] += int(weights[group])
    found: NDArray[np.int64] = np.maximum(half, 0)
    return found


def _taken(spans: Sequence[_Span], room: int, rng: np.random.Generator) -> list[_Span]:
    """Pieces of one half by lot, at most `room` tokens; first, for each property, some that have it."""
    if not spans:
        return []
    order = [spans[n] for n in rng.permutation(len(spans))]
    counts = np.stack([span.counts for span in order])
    taken = np.zeros(len(order), bool)
    lengths = np.array([span.length for span in order])
    for p in np.argsort(counts.sum(0), kind="stable").tolist():
        for n in np.flatnonzero(counts[:, p] > 0).tolist():
            if counts[taken, p].sum() >= _RARE or lengths[taken].sum() >= room // 2:
                break
            taken[n] = True
    for n in range(len(order)):
        if not taken[n] and lengths[taken].sum() + lengths[n] <= room:
            taken[n] = True
    return [span for span, kept in zip(order, taken, strict=True) if kept]

"""Texts that drive a unit, token by token: every continuation of the best so far is run, and the best of those are kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import CannotRun
from penlight.models import Model, Probe
from penlight.models.layers import run, units_first
from penlight.models.probe import undisturbed
from penlight.models.recurrent import carrying
from penlight.models.tracks import OUTPUT, Reader
from penlight.techniques.visualize.likelihood import Prior

GRAM = 4  # tokens that two different strings should not share
_LANES, _TOKENS = 2048, 1 << 16  # strings, and tokens of them, that are run at once
_BEGUN = 4  # strings of the prior whose ends are searched, for each that is kept
States = list[list[tuple[Tensor, ...]]]  # a recurrent module each, a layer each


@dataclass(frozen=True)
class Wish:
    """What is wanted of a string.

    unit, scale  its index in the layer, and its standard deviation, in which values count
    sign         1, or −1 for the least value
    at, place    last, mean or peak of the unit over the string; or its value at a place, counted from the string's beginning
    likelihood   what a bit a token weighs, in standard deviations
    diversity    what it weighs if every stretch of four tokens stands in an earlier string
    taken        those stretches, as numbers
    tokens       numbers of the tokens that may be used
    """

    unit: int
    scale: float
    sign: float
    at: str
    length: int
    width: int
    likelihood: float
    diversity: float
    tokens: Tensor
    place: int | None = None
    taken: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def without(self, strings: Sequence[NDArray[np.int64]], words: int) -> Wish:
        """The same, of another string than these."""
        codes = [grams(ids[None], words)[0] for ids in strings]
        return replace(self, taken=np.unique(np.concatenate(codes)) if codes else self.taken)

    def reached(self, tracks: Tensor) -> Tensor:
        """(N, T) → (N,): the value of strings, of which only the beginning may be there."""
        if self.place is not None:
            return tracks[:, min(self.place, tracks.shape[1] - 1)]
        if self.at == "mean":
            return tracks.mean(1)
        return tracks[:, -1] if self.at == "last" else (self.sign * tracks).amax(1) * self.sign

    def score(self, tracks: Tensor, bits: Tensor, repeats: Tensor) -> Tensor:
        """(N,): of strings with values `tracks` (N, T), `bits` a token (N,) and so many `repeats` (N,) of what is taken."""
        gained = self.sign * self.reached(tracks) / self.scale
        return gained - self.likelihood * bits - self.diversity * repeats / max(1, self.length - GRAM + 1)


def grams(ids: NDArray[np.int64], words: int) -> NDArray[np.int64]:
    """(N, T) → (N, T − 3): every stretch of four tokens as a number."""
    size = ids.shape[1] - GRAM + 1
    if size < 1:
        return np.zeros((len(ids), 0), np.int64)
    code = np.zeros((len(ids), size), np.int64)
    with np.errstate(over="ignore"):
        for n in range(GRAM):
            code = code * np.int64(words) + ids[:, n : n + size]
    return code


class Stepper:
    """Reads texts from where others ended, many at once; `read` counts the tokens it ran.

    A recurrent network that only looks back goes on from its states; any other reads the texts from their beginning.
    """

    def __init__(self, model: Model, path: str, own: bool) -> None:
        self.model, self.path, self.layer = model, path, model.layer(path)
        self.words = len(model.text.vocabulary) if model.text is not None else 0
        self.placed = "L" in self.layer.layout
        paths = [*([path] if self.placed else []), *([OUTPUT] if own else [])]
        self.own = own
        self.reader = Reader(model, paths)
        self.goes_on = self.placed and self.reader.goes_on
        self.read_tokens = 0

    def go_on(self, ids: Tensor, state: States | Tensor | None) -> tuple[Tensor, Tensor | None, States | Tensor]:
        """(values (N, units) and scores (N, V) at the last of the tokens (N, T) after `state`, the new state)."""
        if not self.goes_on:
            whole = ids if state is None else torch.cat([state, ids], 1)  # type: ignore[list-item]
            try:
                values, scores = self.whole(whole)
            except CannotRun:  # some networks cannot read the first few tokens alone; whole strings were read before
                if self.own:
                    raise
                return torch.zeros(len(whole), self.layer.units, device=whole.device), None, whole
            return values[:, -1], None if scores is None else scores[:, -1], whole
        assert not isinstance(state, Tensor)
        begin: States | None = state
        parts = [self._carried(ids[rows], pick(begin, rows)) for rows in self._rows(ids)]
        scores = torch.cat([one[:, -1] for _, one, _ in parts if one is not None]) if self.own else None
        return torch.cat([one[:, -1] for one, _, _ in parts]), scores, _joined([state for _, _, state in parts])

    def whole(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values (N, T, units) and scores (N, T, V) of texts (N, T); of layers with one value a text, (N, 1, units)."""
        parts = [self._run(ids[rows]) for rows in self._rows(ids)]
        values, scores = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(scores) if self.own else None

    def tracks(self, ids: Tensor, unit: int) -> tuple[Tensor, Tensor | None]:
        """Values (N, T) of a unit after every token, and scores (N, T, V); NaN where the network cannot read so short a text."""
        if self.placed:
            values, scores = self.whole(ids)
            return values[..., unit], scores
        found = torch.full(ids.shape, float("nan"))
        for t in range(1, ids.shape[1] + 1):
            try:
                found[:, t - 1] = self.whole(ids[:, :t])[0][:, 0, unit].cpu()
            except CannotRun:
                continue
        return found, self.whole(ids)[1]

    @staticmethod
    def _rows(ids: Tensor) -> list[slice]:
        size = max(1, min(_LANES, _TOKENS // ids.shape[1]))
        return [slice(start, start + size) for start in range(0, len(ids), size)]

    def _run(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        self.read_tokens += ids.numel()
        numbers = ids.cpu().numpy()
        found = self.reader(numbers) if self.reader.paths else {}
        if self.placed:
            return found[self.path].float(), found.get(OUTPUT)
        kept: list[Tensor] = []
        readers = {self.path: lambda output: kept.append(output.clone())}
        with undisturbed(self.reader.network), torch.inference_mode(), Probe(self.reader.network, readers) as probe:
            run(probe, self.model.tensor(numbers))  # type: ignore[arg-type]
        return units_first(kept[0], self.layer.layout).flatten(1)[:, None].float(), found.get(OUTPUT)

    def _carried(self, ids: Tensor, state: States | None) -> tuple[Tensor, Tensor | None, States]:
        with carrying(self.reader.network, len(ids)) as carries:
            if state is not None:
                for carry, last in zip(carries, state, strict=True):
                    carry.anew[:], carry.last = False, last
            values, scores = self._run(ids)
            return values, scores, [carry.last for carry in carries]


Held = TypeVar("Held", States | None, States | Tensor | None)


def pick(state: Held, rows: Tensor | slice) -> Held:
    """The states of some lanes, in their order."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else state[rows]
    return [[tuple(part[rows] for part in layer) for layer in module] for module in state]


def _joined(states: Sequence[States]) -> States:
    return [
        [tuple(map(torch.cat, zip(*layers, strict=True))) for layers in zip(*modules, strict=True)]
        for modules in zip(*states, strict=True)
    ]


@dataclass
class _Beam:
    """The best strings so far, prompt included: tokens (B, t), values (B, t' ), bits and repeats (B,)."""

    ids: Tensor
    tracks: Tensor
    bits: Tensor
    repeats: Tensor
    state: States | Tensor | None
    scores: Tensor | None

    def kept(self, rows: Tensor) -> _Beam:
        """Some of them, in the order of `rows`."""
        scores = None if self.scores is None else self.scores[rows]
        return _Beam(
            self.ids[rows], self.tracks[rows], self.bits[rows], self.repeats[rows], pick(self.state, rows), scores
        )


@dataclass(frozen=True, eq=False)
class Drawn:
    """Strings that the prior wrote: tokens (n, P + length), a unit's values behind the prompt (n, length), surprises (n, P + length).

    Of a layer with one value a text, values are (n, 1).
    """

    ids: Tensor
    tracks: Tensor
    bits: Tensor


def beam(
    stepper: Stepper, prior: Prior, wish: Wish, prompt: Tensor, drawn: Drawn, told: Callable[[int], None]
) -> Tensor:
    """(B, P + length): the strings that were found, best first, prompt included.

    What a unit says now need not be what leads to more later, so the search is run over the whole string and over ever shorter ends,
    which are put behind strings that the prior wrote; those themselves are among what is found. Of one string's continuations at most
    a quarter of the width is kept, so that the best does not fill the beam.
    """
    whole = _Beam(
        drawn.ids,
        drawn.tracks,
        drawn.bits[:, len(prompt) :].sum(1),
        _repeats(stepper, wish, drawn, len(prompt), 0),
        None,
        None,
    )
    found, scores, done = [drawn.ids], [_score(wish, whole, len(prompt))], 0
    for end in ends(wish.length):
        now = _opened(stepper, prompt) if end == wish.length else _begun(stepper, wish, drawn, len(prompt), end)
        for _ in range(end):
            now = _longer(stepper, prior, wish, now, len(prompt))
            done += 1
            told(done)
        found.append(now.ids)
        scores.append(_score(wish, now, len(prompt)))
    return torch.cat(found)[torch.cat(scores).argsort(descending=True, stable=True)]


def ends(length: int) -> list[int]:
    """Tokens that are searched: all, and shorter ends down to two.

    >>> ends(40)
    [40, 15, 6, 2]
    """
    sizes = [length]
    while sizes[-1] > 2:
        sizes.append(max(2, round(sizes[-1] / 2.6)))
    return sizes


def _opened(stepper: Stepper, prompt: Tensor) -> _Beam:
    device = prompt.device
    none, zero = torch.zeros(1, 0, device=device), torch.zeros(1, device=device)
    if not len(prompt):
        return _Beam(prompt[None], none, zero, zero, None, None)
    _, scores, state = stepper.go_on(prompt[None], None)
    return _Beam(prompt[None], none, zero, zero, state, scores)


def _begun(stepper: Stepper, wish: Wish, drawn: Drawn, prompt: int, end: int) -> _Beam:
    """Strings that the prior wrote without their ends: those that score best there, and those that did with their ends."""
    stop = drawn.ids.shape[1] - end
    tracks = drawn.tracks[:, :-end] if drawn.tracks.shape[1] > 1 else drawn.tracks
    repeats = torch.from_numpy(
        np.isin(grams(drawn.ids[:, prompt:stop].cpu().numpy(), stepper.words), wish.taken).sum(1)
    )
    repeats = repeats.to(tracks)
    bits = drawn.bits[:, prompt:stop].sum(1)
    counted = max(1, stop - prompt - (0 if prompt else 1))
    orders = [wish.score(t, bits / counted, repeats).argsort(descending=True) for t in (tracks, drawn.tracks)]
    mixed = torch.stack(orders, 1).flatten().tolist()
    rows = torch.tensor(list(dict.fromkeys(mixed))[: _BEGUN * wish.width], device=tracks.device)
    _, scores, state = stepper.go_on(drawn.ids[rows, :stop], None)
    return _Beam(drawn.ids[rows, :stop], tracks[rows], bits[rows], repeats[rows], state, scores)


def _repeats(stepper: Stepper, wish: Wish, drawn: Drawn, prompt: int, end: int) -> Tensor:
    """(n,): stretches of drawn strings, without their ends, that stand in an earlier string."""
    codes = grams(drawn.ids[:, prompt : drawn.ids.shape[1] - end].cpu().numpy(), stepper.words)
    return torch.from_numpy(np.isin(codes, wish.taken).sum(1)).to(drawn.tracks)


def _score(wish: Wish, now: _Beam, prompt: int) -> Tensor:
    counted = max(1, now.ids.shape[1] - prompt - (0 if prompt else 1))
    return wish.score(now.tracks, now.bits / counted, now.repeats)


def _longer(stepper: Stepper, prior: Prior, wish: Wish, now: _Beam, prompt: int) -> _Beam:
    """Every string of the beam with every token behind it, and the best of them."""
    count, device = len(now.ids), now.ids.device
    if now.ids.shape[1]:
        likely = prior.next(now.scores, now.ids[:, -1], stepper.words)[:, wish.tokens]
    else:
        likely = torch.zeros(count, len(wish.tokens), device=device)
    most = min(len(wish.tokens), max(wish.width, _LANES // count))
    chosen = likely.topk(most, 1).indices if most < len(wish.tokens) else None
    if chosen is None:
        chosen = torch.arange(len(wish.tokens), device=device).expand(count, -1)
    parents = torch.arange(count, device=device).repeat_interleave(chosen.shape[1])
    tokens = wish.tokens[chosen].flatten()
    values, scores, state = stepper.go_on(tokens[:, None], pick(now.state, parents))
    ids = torch.cat([now.ids[parents], tokens[:, None]], 1)
    tracks = torch.cat([now.tracks[parents], values[:, wish.unit, None]], 1)
    bits = now.bits[parents] - likely.gather(1, chosen).flatten()
    repeats = now.repeats[parents] + _repeated(wish, ids[:, prompt:], stepper.words)
    grown = _Beam(ids, tracks, bits, repeats, state, scores)
    order = _score(wish, grown, prompt).argsort(descending=True, stable=True)
    return grown.kept(order[_not_too_many(parents[order], wish.width, count)])


def _repeated(wish: Wish, ids: Tensor, words: int) -> Tensor:
    """(N,): whether the last four tokens stand in an earlier string."""
    if not len(wish.taken) or ids.shape[1] < GRAM:
        return torch.zeros(len(ids), device=ids.device)
    last = grams(ids[:, -GRAM:].cpu().numpy(), words)[:, 0]
    return torch.from_numpy(np.isin(last, wish.taken).astype(np.float32)).to(ids.device)


def _not_too_many(parents: Tensor, width: int, count: int) -> Tensor:
    """Places of the first `width`, at most a quarter of them from one parent, while there are parents enough."""
    most = max(1, width // 4) if count >= 4 else width
    kept, used = list[int](), dict[int, int]()
    for place, parent in enumerate(parents.tolist()):
        if used.get(parent, 0) < most:
            used[parent] = used.get(parent, 0) + 1
            kept.append(place)
            if len(kept) == width:
                break
    return torch.tensor(kept, device=parents.device)


def written(stepper: Stepper, prior: Prior, tokens: Tensor, prompt: Tensor, count: int, length: int,
            generator: torch.Generator) -> Tensor:  # fmt: skip
    """(count, P + length): strings drawn token by token as likely as the prior says, with the prompt in front.

    The first token after no prompt is any of `tokens`, all alike.
    """
    ids = prompt.expand(count, -1)
    scores, state = None, None
    if len(prompt) and prior.own:
        _, scores, state = stepper.go_on(ids, None)
    for _ in range(length):
        if ids.shape[1]:
            likely = prior.next(scores, ids[:, -1], stepper.words)[:, tokens]
        else:
            likely = torch.zeros(count, len(tokens), device=ids.device)
        drawn = tokens[torch.multinomial(likely.exp2().cpu(), 1, generator=generator).to(ids.device)]
        ids = torch.cat([ids, drawn], 1)
        if prior.own:
            _, scores, state = stepper.go_on(drawn, state)
    return ids

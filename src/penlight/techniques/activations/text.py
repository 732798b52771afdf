"""`tracks`: what every unit does at every token of a text, and which units follow what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput
from penlight.inputs import Data, TextContract
from penlight.inputs.properties import Property, at_tokens, chosen
from penlight.models import Model
from penlight.models.language import continues, log_shares
from penlight.models.tracks import OUTPUT, token_layers, tracks
from penlight.results.tracks import Known, Text, TracksResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.following import ranks, scored
from penlight.techniques.options import option, provenance

_LARGEST = 6e4  # magnitude up to which float16 holds a value
_BYTES = 2  # of a value as it is kept


@dataclass(frozen=True)
class Tracks(Technique):
    """Every unit at every character, as Karpathy coloured text by cells and LSTMVis searched them.

    The layers are those of the request, or the hidden and cell states of every recurrent layer, or where there are none every layer
    with a value a token. Units are scored against properties of the text; of a language model it is kept what it expected.
    """

    verb: ClassVar[str] = "activations"
    name: ClassVar[str] = "tracks"
    paper: ClassVar[str] = "Karpathy et al. 2015, arXiv:1506.02078; Strobelt et al. 2018, arXiv:1606.07461"
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    reads_data: ClassVar[bool] = True

    properties: str = option(
        "", 'what units are scored against: names, "name=REGEX", "module:package.module:function", with ; between; all known by default'
    )  # fmt: skip
    count: int = option(16, "texts at most", low=1, high=1000)
    limit: int = option(5000, "tokens of a text that a page shows", low=1, high=100000)
    memory: int = option(
        256, "MiB of values that are kept; texts are cut where they would take more", low=1, high=65536
    )

    def run(self, request: Request) -> TracksResult:
        """`BadInput` without texts, or if one cannot be read; `CannotRun` for a layer without a value a token."""
        model, data = request.model, request.data
        if data is None or model.text is None:
            raise BadInput(
                "tracks are of texts: give a text file, a text with white space in it, token numbers, or data:N"
            )
        wanted, paths = _properties(self.properties), list(token_layers(model, request.layers))
        given, notes = self._given(data, model, paths)
        known = [_known(one, wanted) for one in given]
        used, left_out = _said(known)
        if left_out:
            told = ", ".join(wanted[n].name for n in left_out)
            notes.append(f"no unit was scored against what is everywhere the same or cannot be said here: {told}")
        values, probability = _read(request, paths, [one.ids for one in given])
        texts = tuple(
            Text(one.name, one.text, np.array(one.spans, np.int32), own, track[used], said, one.whole)
            for one, own, track, said in zip(given, values, known, probability, strict=True)
        )
        names = tuple(
            Known(wanted[n].name, wanted[n].kind, wanted[n].help, sum(_stretches(track[n], wanted[n].kind) for track in known))
            for n in used
        )  # fmt: skip
        scores = _scores(texts, paths, [one.kind for one in names])
        layers = {path: model.layers[path].kind for path in paths}
        return TracksResult(provenance(self, request), texts, layers, names, scores, self.limit, tuple(notes))

    def _given(self, data: Data, model: Model, paths: Sequence[str]) -> tuple[list[_Given], list[str]]:
        """The texts, as much of each as there is memory for, and what to say of the rest."""
        assert model.text is not None
        given = [_Given.of(data, n, model.text) for n in range(min(self.count, len(data)))]
        notes = [f"{len(data)} texts were given, the first {len(given)} are read"] if len(data) > len(given) else []
        room = self.memory * 2**20 // (_BYTES * sum(model.layers[path].units for path in paths))
        kept = [one.first(part) for one, part in zip(given, _shares([one.whole for one in given], room), strict=True)]
        notes += [
            f"{one.name}: the first {len(one.ids):,} of {one.whole:,} tokens are read, as many as {self.memory} MiB hold"
            for one in kept
            if len(one.ids) < one.whole
        ]
        return kept, notes


@dataclass(frozen=True, eq=False)
class _Given:
    """A text as it was given: its name, what it says, the numbers of its tokens and where they stand in it; tokens there were at first."""

    name: str
    text: str
    ids: NDArray[np.int64]
    spans: Sequence[tuple[int, int]]
    whole: int
    after: str = ""  # what was cut off

    @classmethod
    def of(cls, data: Data, index: int, contract: TextContract) -> _Given:
        ids = np.asarray(data.read(index), np.int64)
        name = data.label(index)[0]
        if hasattr(data, "text"):
            text = str(data.text(index))
            spans = contract.spans(text)
            if len(spans) == len(ids):
                return cls(name, text, ids, spans, len(ids))
        pieces = [contract.vocabulary[n] for n in ids.tolist()]
        between = "" if contract.tokens == "characters" else " "
        spans, at = [], 0
        for piece in pieces:
            spans.append((at, at + len(piece)))
            at += len(piece) + len(between)
        return cls(name, between.join(pieces), ids, spans, len(ids))

    def first(self, count: int) -> _Given:
        """Its first `count` tokens."""
        end = self.spans[count - 1][1]
        return replace(
            self, text=self.text[:end], ids=self.ids[:count], spans=self.spans[:count], after=self.text[end:]
        )


def _properties(asked: str) -> list[Property]:
    names = [name.strip() for name in asked.split(";") if name.strip()]
    return chosen(names or None)


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """How many tokens of each text are kept so that all together are at most `room`: short ones whole, long ones as many as each other."""
    kept, left = dict.fromkeys(range(len(lengths)), 0), max(room, len(lengths))
    for place, n in enumerate(sorted(kept, key=lambda n: lengths[n])):
        kept[n] = min(lengths[n], left // (len(lengths) - place))
        left -= kept[n]
    return [kept[n] for n in range(len(lengths))]


def _known(one: _Given, wanted: Sequence[Property]) -> NDArray[np.float32]:
    """(P, T) properties at the tokens, as they are in the whole text."""
    return np.stack([at_tokens(each.find(one.text + one.after), one.spans) for each in wanted])


def _said(known: Sequence[NDArray[np.float32]]) -> tuple[list[int], list[int]]:
    """Numbers of the properties that take more than one value, and of the others."""
    used: list[int] = []
    left_out: list[int] = []
    for n in range(len(known[0])):
        values = np.concatenate([track[n] for track in known])
        values = values[np.isfinite(values)]
        (used if values.size and values.min() < values.max() else left_out).append(n)
    return used, left_out


def _stretches(track: NDArray[np.float32], kind: str) -> int:
    """In how many separate stretches a property holds, or keeps one value."""
    known = track[np.isfinite(track)]
    changes = np.flatnonzero(np.diff(known, prepend=np.nan) != 0)
    return int((known[changes] == 1).sum()) if kind == "yes/no" else len(changes)


Values = dict[str, NDArray[np.floating]]


def _read(
    request: Request, paths: Sequence[str], texts: Sequence[NDArray[np.int64]]
) -> tuple[list[Values], list[NDArray[np.float32]]]:
    """By text: the values of every layer, and the probability of every token (nothing of what is no language model)."""
    model, total, done = request.model, sum(map(len, texts)), 0
    expects = continues(model)
    parts: list[dict[str, list[NDArray[np.floating]]]] = [{path: [] for path in paths} for _ in texts]
    given = [np.full(len(ids) if expects else 0, np.nan, np.float32) for ids in texts]
    for stretch in tracks(model, texts, [*paths, *([OUTPUT] if expects else [])]):
        for path in paths:
            parts[stretch.text][path].append(_small(stretch.values[path]))
        if expects:
            _fill(given[stretch.text], texts[stretch.text], stretch.start, stretch.values[OUTPUT])
        done += len(stretch.ids)
        request.progress(done, total)
    return [{path: np.concatenate(found) for path, found in one.items()} for one in parts], given


def _small(values: Tensor) -> NDArray[np.floating]:
    """As float16 where that holds them."""
    found: NDArray[np.float32] = values.float().cpu().numpy()
    return found.astype(np.float16) if np.abs(found).max(initial=0) < _LARGEST else found


def _fill(given: NDArray[np.float32], ids: NDArray[np.int64], start: int, scores: Tensor) -> None:
    """The probabilities of the tokens behind those whose scores (t, V) these are."""
    after = torch.from_numpy(ids[start + 1 : start + 1 + len(scores)]).to(scores.device)
    shares = log_shares(scores[: len(after)]).exp()
    given[start + 1 : start + 1 + len(after)] = shares.gather(1, after[:, None])[:, 0].cpu().numpy()


def _scores(texts: Sequence[Text], paths: Sequence[str], kinds: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
    """By layer, (units, P): each unit against properties of these kinds."""
    count = len(kinds)
    known = np.concatenate([one.known for one in texts], axis=1)
    said = np.isfinite(known)
    alike: dict[
        bytes, list[int]
    ] = {}  # properties that can be said at the same tokens share the ranks of the values there
    for n in range(count):
        alike.setdefault(said[n].tobytes(), []).append(n)
    found = {}
    for path in paths:
        values = np.concatenate([one.values[path] for one in texts])
        scores = np.full((values.shape[1], count), np.nan, np.float32)
        for numbers in alike.values():
            here = said[numbers[0]]
            ranked = ranks(values if here.all() else values[here])
            scores[:, numbers] = scored(ranked, known[numbers][:, here].T, [kinds[n] == "yes/no" for n in numbers])
        found[path] = scores
    return found

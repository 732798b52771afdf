"""`clip-labels`: words for units from a model that embeds pictures and texts alike; the user brings it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, BadReference, UnknownName
from penlight.inputs import Data
from penlight.results import SurveyResult
from penlight.results.labels import LabelsResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.survey.stream import Stream

SCORES = ("soft-wpmi", "mean")
_SHARP = 10.0  # what similarities are multiplied by before the softmax over words
_FIRST, _LAST = 0.998, 0.97  # how surely the first and the last example belong to the unit's concept
_TINY = 1e-7
_AT_ONCE = 32


@dataclass(frozen=True)
class ClipLabels(Technique):
    """The words that fit a unit's top examples best, by an embedding that pictures and texts share.

    `images` takes (n, H, W, C) uint8 and gives (n, d), `texts` takes a list of words and gives (w, d): two callables, or
    `module:package.mod:callable`. With "soft-wpmi", CLIP-Dissect's score: how much better the word explains the examples, the surer the
    higher they stand, than it explains those of all units of the layer; its numbers compare within a layer only.
    With "mean", the mean cosine of examples and word. Examples are a survey's among `request.earlier`, else one is made. There is no
    test of chance here: every unit gets the word that fits best, with its score, but one that answers all inputs alike gets none.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "clip-labels"
    paper: ClassVar[str] = "Oikarinen & Weng 2023, CLIP-Dissect, arXiv:2204.10965"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    reads_data: ClassVar[bool] = True

    images: Any = option("", "what embeds pictures: module:package.mod:callable, (n, H, W, C) uint8 to (n, d)")  # noqa: RUF009
    texts: Any = option("", "what embeds words: module:package.mod:callable, a list of texts to (w, d)")  # noqa: RUF009
    words: Any = option("", "a file with a word a line, or words with commas between")  # noqa: RUF009
    score: str = option("soft-wpmi", "how words are scored", choices=SCORES)
    top: int = option(50, "examples of each unit that words are compared with", low=1, high=1000)
    keep: int = option(10, "words kept of each unit", low=1, high=1000)

    def run(self, request: Request) -> LabelsResult:
        """`BadInput` without data, words or callables, `BadReference` for a callable that cannot be imported."""
        model, data = request.model, request.data
        if data is None or model.contract.kind != "image":
            raise BadInput("words are found for pictures: give a folder of pictures or an .npz file")
        embed_images, embed_texts = _callable(self.images, "images"), _callable(self.texts, "texts")
        words = _words(self.words)
        survey = self._survey(request)
        standing = sorted(
            {int(i) for rows in survey.layers.values() for i in np.unique(rows.top_index[:, : self.top]) if i >= 0}
        )
        similar = _similar(data, standing, embed_images, embed_texts(list(words)), len(words), request)
        index, score = {}, {}
        for path, rows in survey.layers.items():
            moved = (rows.maximum > rows.minimum)[:, None]  # the examples of a constant unit say nothing
            examples = np.where(moved, rows.top_index[:, : self.top], -1)
            values = _scored(examples, dict(zip(standing, similar, strict=True)), self.score)
            order = np.argsort(-values, axis=1, kind="stable")[:, : self.keep]
            index[path] = order.astype(np.int32)
            score[path] = np.take_along_axis(values, order, 1).astype(np.float32)
        named = replace(self, images=_named(self.images), texts=_named(self.texts), words=_told(self.words))
        how = f"{self.score} of up to {self.top} top examples by {named.images}"
        numbers: Mapping[str, Mapping[str, NDArray[np.float64]]] = {path: {} for path in index}
        where = provenance(named, request)
        return LabelsResult(where, words, index, score, numbers, self.score, how, None, survey.count)

    def _survey(self, request: Request) -> SurveyResult:
        given = [result for result in request.earlier if isinstance(result, SurveyResult)]
        if given:
            return given[-1]
        return Stream(top=self.top, score_memory=0).run(replace(request, progress=lambda done, of: None))


def _callable(given: Any, name: str) -> Callable[[Any], Any]:
    """A callable, or the one a `module:` reference names."""
    if callable(given):
        return given  # type: ignore[no-any-return]
    place, _, found = str(given).removeprefix("module:").partition(":")
    if not place or not found:
        raise BadReference(f"option {name} takes a callable, or module:package.mod:callable, not {given!r}")
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise BadReference(f"there is no Python module {place!r} for option {name} ({error})") from error
    if not callable(getattr(module, found, None)):
        raise UnknownName(
            f"callable in {place}", found, [n for n in dir(module) if callable(getattr(module, n)) and n[0] != "_"]
        )
    return getattr(module, found)  # type: ignore[no-any-return]


def _named(given: Any) -> str:
    if isinstance(given, str):
        return given
    return f"module:{getattr(given, '__module__', '?')}:{getattr(given, '__qualname__', type(given).__qualname__)}"


def _words(given: Any) -> tuple[str, ...]:
    if not isinstance(given, str | Path):
        found = [str(word) for word in given]
    elif Path(given).is_file():
        found = Path(given).read_text("utf-8").splitlines()
    elif Path(given).suffix in (".txt", ".csv"):
        raise BadInput(f"there are no words at {given}; give a file with a word a line")
    else:
        found = str(given).split(",")
    words = tuple(dict.fromkeys(word.strip() for word in found if word.strip()))
    if len(words) < 2:
        raise BadInput(
            "give at least two words to choose from: a file with a word a line, or words with commas between"
        )
    return words


def _told(given: Any) -> str:
    return given if isinstance(given, str) else ",".join(map(str, given))


def _similar(
    data: Data, indices: Sequence[int], embed: Callable[[Any], Any], texts: Any, words: int, request: Request
) -> NDArray[np.float64]:
    """(inputs, words) cosines."""
    meaning = _rows(texts, words, "texts")
    found = []
    for start in range(0, len(indices), _AT_ONCE):
        part = indices[start : start + _AT_ONCE]
        pictures = np.stack([_pixels(data.read(n)) for n in part])
        seen = _rows(embed(pictures), len(part), "images")
        if seen.shape[1] != meaning.shape[1]:
            raise BadInput(
                f"images are embedded in {seen.shape[1]} numbers, texts in {meaning.shape[1]}; they have to share one space"
            )
        found.append(seen @ meaning.T)
        request.progress(start + len(part), len(indices))
    return np.concatenate(found) if found else np.zeros((0, words))


def _rows(given: Any, count: int, name: str) -> NDArray[np.float64]:
    """(count, d) of length one."""
    rows = np.asarray(given.detach().cpu().numpy() if hasattr(given, "detach") else given, np.float64)
    if rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
        raise BadInput(f"{name} gave shape {list(rows.shape)} for {count}; it has to give finite numbers (n, d)")
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)  # type: ignore[no-any-return]


def _pixels(one: NDArray[Any]) -> NDArray[np.uint8]:
    scaled = one if one.dtype == np.uint8 else np.clip(one * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(scaled.transpose(1, 2, 0))


def _scored(top: NDArray[np.int64], similar: Mapping[int, NDArray[np.float64]], score: str) -> NDArray[np.float64]:
    """(U, words) from each unit's examples (U, k), -1 where there are fewer; NaN for a unit without any."""
    values = np.full((len(top), len(next(iter(similar.values())))), np.nan)
    sure = _FIRST - np.arange(top.shape[1]) / top.shape[1] * (_FIRST - _LAST)
    for u, row in enumerate(top):
        there = row >= 0
        if not there.any():
            continue
        close = np.stack([similar[int(i)] for i in row[there]])
        if score == "mean":
            values[u] = close.mean(0)
            continue
        chance = np.exp(_SHARP * (close - close.max(1, keepdims=True)))
        chance /= chance.sum(1, keepdims=True)
        values[u] = np.log(1 + sure[there][:, None] * (chance - 1) + _TINY).sum(0)
    known = np.isfinite(values).all(1)
    if score == "mean" or not known.any():
        return values
    highest = values[known].max(0)
    return values - highest - np.log(np.exp(values[known] - highest).mean(0))  # type: ignore[no-any-return]

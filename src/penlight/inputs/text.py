"""Text: the tokens a network takes, and how a text is cut into them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, BadReference, UnknownName
from penlight.inputs.contract import InputContract

TOKENS = ("characters", "words")
ENCODINGS = ("ids", "one-hot")
WORD = r"\w+|[^\w\s]"
_KEYS = ("kind", "vocabulary", "unknown", "tokens", "pattern", "lower", "encoding", "batch_first", "length")


@dataclass(frozen=True)
class TextContract(InputContract):
    """What a network on text expects.

    An input is int64 (T,), the numbers of its tokens in `vocabulary`; T is free, and `shape` = (length,) is only what the network is
    tried with. The network is given them as (N, T) whole numbers ("ids") or as (N, T, vocabulary) of zeros and ones ("one-hot"), or
    with the first two axes exchanged where `batch_first` is False. Text is cut into `tokens`, every character or every match of
    `pattern`; what is not in the vocabulary is the token number `unknown`, an error if that is None.
    """

    vocabulary: tuple[str, ...] = ()
    unknown: int | None = None
    tokens: str = "characters"
    pattern: str = WORD
    lower: bool = False
    encoding: str = "ids"
    batch_first: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.vocabulary) < 2:
            raise BadReference("a network on text needs its vocabulary: a string of characters, or a list of tokens")
        if self.shape[0] < 3:
            raise BadReference(f"length {self.shape[0]} is too short to try a network with; give 3 tokens or more")
        if self.tokens not in TOKENS:
            raise UnknownName("kind of tokens", self.tokens, TOKENS)
        if self.encoding not in ENCODINGS:
            raise UnknownName("encoding of text", self.encoding, ENCODINGS)
        if self.unknown is not None and not 0 <= self.unknown < len(self.vocabulary):
            raise BadReference(f"unknown is token {self.unknown}; the vocabulary has 0 to {len(self.vocabulary) - 1}")
        if self.tokens == "characters" and (
            long := [t for t in self.vocabulary if len(t) != 1 and t != self._unknown_token]
        ):
            raise BadReference(f'{long[0]!r} is no character; a vocabulary of words takes tokens = "words"')
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise BadReference(f"pattern {self.pattern!r} is no regular expression: {error}") from error

    @property
    def _unknown_token(self) -> str | None:
        return None if self.unknown is None else self.vocabulary[self.unknown]

    @classmethod
    def of(
        cls,
        vocabulary: str | Sequence[str] | Mapping[str, int],
        *,
        unknown: str | int | None = None,
        tokens: str | None = None,
        pattern: str = WORD,
        lower: bool = False,
        encoding: str = "ids",
        batch_first: bool = True,
        length: int = 61,
    ) -> TextContract:
        """The contract of a vocabulary: a string of characters, tokens in the order of their numbers, or a mapping to numbers.

        `unknown` is the token, or its number, that stands for what is not there; without it `<unk>` and U+FFFD are, where the
        vocabulary has one. `tokens` are "characters" where every token but that one is one character, else "words".
        """
        known = _ordered(vocabulary)
        if isinstance(unknown, str):
            if unknown not in known:
                raise UnknownName("token for what is unknown", unknown, known)
            unknown = known.index(unknown)
        if unknown is None:
            unknown = next((known.index(t) for t in ("<unk>", "<UNK>", "[UNK]", "\ufffd") if t in known), None)
        rest = [t for n, t in enumerate(known) if n != unknown]
        kind = tokens or ("characters" if all(len(t) == 1 for t in rest) else "words")
        return cls("text", (length,), vocabulary=known, unknown=unknown, tokens=kind, pattern=pattern, lower=lower,
                   encoding=encoding, batch_first=batch_first)  # fmt: skip

    @classmethod
    def from_table(cls, table: Mapping[str, Any], folder: Path) -> TextContract:
        """From a model card's `[input]`; `vocabulary` is a string, a list, or a JSON or text file in `folder`, a token a line."""
        for key in table:
            if key not in _KEYS:
                raise UnknownName("key in [input] of a text", key, _KEYS)
        given = table.get("vocabulary")
        if given is None:
            raise BadReference(
                "[input] of a text lacks 'vocabulary': a string of characters, a list of tokens, or a file"
            )
        if isinstance(given, str) and given.endswith((".json", ".txt")):
            given = _from_file(folder / given)
        try:
            return cls.of(
                given,
                unknown=table.get("unknown"),
                tokens=table.get("tokens"),
                pattern=str(table.get("pattern", WORD)),
                lower=bool(table.get("lower", False)),
                encoding=str(table.get("encoding", "ids")),
                batch_first=bool(table.get("batch_first", True)),
                length=int(table.get("length", 61)),
            )
        except (TypeError, ValueError) as error:
            raise BadReference(f"[input] cannot be read: {error}") from error

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        """Number of every token."""
        return {token: n for n, token in enumerate(self.vocabulary)}

    @property
    def plain(self) -> bool:
        return False

    @property
    def size(self) -> tuple[int, ...]:
        return self.shape

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in `text` of every token."""
        if self.tokens == "characters":
            return [(n, n + 1) for n in range(len(text))]
        return [match.span() for match in re.finditer(self.pattern, text)]

    def encode(self, text: str, where: str = "the text") -> NDArray[np.int64]:
        """Numbers of its tokens, int64 (T,); `BadInput` if it has none, or one that is not known and nothing stands for that."""
        shown = text.lower() if self.lower else text
        pieces = shown if self.tokens == "characters" else [shown[a:b] for a, b in self.spans(shown)]
        if not len(pieces):
            raise BadInput(f"{where} is empty: there are no {self.tokens} in it")
        found = np.array([self.numbers.get(piece, -1) for piece in pieces], np.int64)
        if (found < 0).any():
            if self.unknown is None:
                place = int(np.argmax(found < 0))
                raise BadInput(
                    f"{where} has {pieces[place]!r} at {place}, which the vocabulary lacks; give one with a token for what is unknown"
                )
            found[found < 0] = self.unknown
        return found

    def decode(self, ids: NDArray[Any] | Sequence[int]) -> str:
        """The text of token numbers; words are put apart by spaces."""
        return ("" if self.tokens == "characters" else " ").join(self.vocabulary[int(n)] for n in ids)

    def normalize(self, batch: NDArray[Any]) -> NDArray[Any]:
        """(N, T) token numbers → as the network takes them: int64, or float32 one-hot; time first where `batch_first` is False."""
        ids = np.ascontiguousarray(batch, np.int64)
        made: NDArray[Any] = ids if self.encoding == "ids" else np.eye(len(self.vocabulary), dtype=np.float32)[ids]
        return made if self.batch_first else np.ascontiguousarray(np.swapaxes(made, 0, 1))

    def check(self, batch: NDArray[Any]) -> None:
        """`BadInput` unless whole numbers (N, T) of the vocabulary."""
        if batch.ndim != 2 or batch.dtype.kind not in "iu":
            raise BadInput(f"a text is token numbers (N, T), not {batch.dtype} of shape {list(batch.shape)}")
        if batch.size and not (int(batch.min()) >= 0 and int(batch.max()) < len(self.vocabulary)):
            raise BadInput(
                f"token numbers run from {int(batch.min())} to {int(batch.max())}; the vocabulary has 0 to {len(self.vocabulary) - 1}"
            )


def _ordered(vocabulary: str | Sequence[str] | Mapping[str, int]) -> tuple[str, ...]:
    if isinstance(vocabulary, Mapping):
        order = sorted(vocabulary, key=lambda token: vocabulary[token])
        if [vocabulary[token] for token in order] != list(range(len(order))):
            raise BadReference("a vocabulary that maps tokens to numbers takes 0, 1, 2, … without gaps")
        return tuple(map(str, order))
    known = tuple(map(str, vocabulary))
    if len(set(known)) != len(known):
        twice = next(token for token in known if known.count(token) > 1)
        raise BadReference(f"token {twice!r} stands {known.count(twice)} times in the vocabulary")
    return known


def _from_file(file: Path) -> Any:
    try:
        text = file.read_text("utf-8")
        return json.loads(text) if file.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise BadReference(
            f"vocabulary {file} cannot be read ({error}); give a JSON list, or one token a line"
        ) from error

"""A text cut into stretches of tokens: characters, words or lines."""

from __future__ import annotations

import re
from itertools import pairwise

from penlight.errors import BadOption
from penlight.models.front import FrontContract

PIECES = ("characters", "words", "lines")
_FEW = 40  # characters that are taken one by one
_WORD = re.compile(r"\w+ ?|[^\w\s] ?|\s+")  # a word and the blank after it, a sign, an indentation
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
Span = tuple[int, int]


def auto_pieces(contract: FrontContract) -> str:
    """Words, for short texts of characters these."""
    assert contract.text is not None
    return "characters" if contract.text.tokens == "characters" and len(contract.ids) <= _FEW else "words"


def pieces(contract: FrontContract, kind: str) -> list[Span]:
    """(start, end) of every part, in tokens; they cover the text. `BadOption` for a kind the tokens do not have."""
    assert contract.text is not None
    if contract.text.tokens == "words":
        if kind == "characters":
            raise BadOption("this network's tokens are words; use words or lines")
        if kind == "words":
            return [(n, n + 1) for n in range(len(contract.ids))]
        ends = [n + 1 for n, found in enumerate(contract.tokens) if "\n" in found]
        return list(pairwise(sorted({0, *ends, len(contract.ids)})))
    if kind == "characters":
        return [(n, n + 1) for n in range(len(contract.ids))]
    text = "".join(found if len(found) == 1 else "\ufffd" for found in contract.tokens)
    return [match.span() for match in (_WORD if kind == "words" else _LINE).finditer(text)]

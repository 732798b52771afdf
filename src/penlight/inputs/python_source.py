"""Python source as its own tokenizer reads it, character by character; broken and cut-off source as far as it goes."""

from __future__ import annotations

import io
import keyword
import tokenize
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_LINES = 3  # statements that must be read before an error, or else the text is no Python
_SOFT = {*keyword.softkwlist, "print", "exec"}  # names that may stand before a name; the last two in Python 2
_BEGIN = frozenset("([{-+~*@.")  # signs a statement may begin with
_PARTS = tuple(getattr(tokenize, f"{kind}STRING_START", -1) for kind in "FT")  # strings in parts: Python 3.12 and 3.14
_PARTS_END = tuple(getattr(tokenize, f"{kind}STRING_END", -1) for kind in "FT")
_BLANK = (tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING)


@dataclass
class Source:
    """What was found in a text of `size` characters; nothing is said from `end` on, where the source is broken or was cut.

    `spans` are (start, end) by kind; `brackets` (start, depth) that hold until the next; `levels` (start, end, blocks).
    """

    size: int
    end: int = 0
    spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    brackets: list[tuple[int, int]] = field(default_factory=list)
    levels: list[tuple[int, int, int]] = field(default_factory=list)

    def values(self, name: str) -> NDArray[np.float32]:
        """A property, float32 (size,): "brackets", "indentation" or a kind of span; NaN where nothing is said."""
        values = np.full(self.size, np.nan if name == "indentation" else 0, np.float32)
        if name == "brackets":
            ends = [start for start, _ in self.brackets[1:]] + [self.size]
            for (start, depth), end in zip(self.brackets, ends, strict=False):
                values[start:end] = depth
        elif name == "indentation":
            for start, end, level in self.levels:
                values[start:end] = level
        else:
            for start, end in self.spans.get(name, ()):
                values[start:end] = 1
        values[self.end :] = np.nan
        return values

    def add(self, kind: str, start: int, end: int) -> None:
        self.spans.setdefault(kind, []).append((start, end))


@lru_cache(maxsize=4)
def read_source(text: str) -> Source:
    """The text as Python source; of a text that is none, nothing is said at all."""
    reader = _Reader(text)
    reader.read()
    return reader.source


@dataclass(frozen=True)
class _Token:
    kind: int
    text: str
    start: int
    end: int


class _Reader:
    """Goes through the tokens once and keeps where everything is."""

    def __init__(self, text: str) -> None:
        self.text, self.source = text, Source(len(text))
        self.starts = [0]
        for line in text.split("\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.statements, self.depth = 0, 0
        self.columns = [0]  # at which the open blocks begin
        self.statement: list[_Token] = []
        self.header: int | None = None  # where an open def or class began

    def read(self) -> None:
        source, broken = self.source, False
        try:
            for token in self._tokens():
                if not self._take(token):
                    broken = True
                    break
                source.end = max(source.end, token.end)
        except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
            broken = True
        if not broken:
            source.end = len(self.text)
        elif self.statements < _LINES:
            source.end = 0

    def _tokens(self) -> Iterator[_Token]:
        """Tokens with their places in the text; a string in parts as one, what stands in its braces left out."""
        inner, opened = 0, 0
        for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO(self.text).readline):
            first, last = self._place(*start), self._place(*end)
            if kind in _PARTS:
                opened = opened if inner else first
                inner += 1
            elif kind in _PARTS_END:
                inner -= 1
                if not inner:
                    yield _Token(tokenize.STRING, self.text[opened:last], opened, last)
            elif not inner:
                yield _Token(kind, text, first, last)

    def _place(self, row: int, column: int) -> int:
        return min(self.starts[min(row, len(self.starts)) - 1] + column, len(self.text))

    def _take(self, token: _Token) -> bool:
        """Note a token; False where the text goes wrong."""
        if token.kind == tokenize.ERRORTOKEN:
            return token.text.isspace()
        if token.kind == tokenize.INDENT:
            self.columns.append(len(token.text.expandtabs()))
        elif token.kind == tokenize.DEDENT:
            self.columns.pop()
        elif token.kind == tokenize.COMMENT:
            self.source.add("comment", token.start, token.end)
            if not self.statement:
                self._begins(token)
        elif token.kind == tokenize.NEWLINE:
            self._ends(token)
        elif token.kind not in _BLANK:
            if not self._fits(token):
                return False
            if not self.statement:
                self._begins(token)
            self._note(token)
            self.statement.append(token)
        return True

    def _fits(self, token: _Token) -> bool:
        """Whether a token may stand where it does: two names in a row, or a line that begins with a sign, are no Python."""
        if not self.statement:
            return token.kind != tokenize.OP or token.text[0] in _BEGIN
        before = self.statement[-1]
        if not before.kind == token.kind == tokenize.NAME:
            return True
        return keyword.iskeyword(before.text) or keyword.iskeyword(token.text) or before.text in _SOFT

    def _begins(self, token: _Token) -> None:
        """A line that is a statement or a comment of its own: the level it is on holds until the next one's white space."""
        start = self.text.rfind("\n", 0, token.start) + 1
        column = len(self.text[start : token.start].expandtabs())
        levels = self.source.levels
        if levels:
            levels[-1] = (levels[-1][0], start, levels[-1][2])
        levels.append((token.start, self.source.size, bisect_left(self.columns, column)))

    def _ends(self, newline: _Token) -> None:
        source, statement = self.source, self.statement
        if len(statement) == 1 and statement[0].kind == tokenize.STRING:
            source.add("docstring", *source.spans["string"][-1])
        if statement and statement[0].text in ("import", "from"):
            source.add("import", statement[0].start, newline.start)
        self.statements += 1
        self.statement, self.header = [], None

    def _note(self, token: _Token) -> None:
        source = self.source
        if token.kind == tokenize.STRING:
            quote = token.start + min(token.text.find(q) for q in "'\"" if q in token.text)
            source.add("string", quote, token.end - 1)
            if self.text.startswith(('"""', "'''"), quote):
                source.add("triple", quote, token.end - 1)
        elif token.kind == tokenize.NUMBER:
            source.add("number", token.start, token.end)
        elif token.kind == tokenize.NAME:
            known = keyword.iskeyword(token.text)
            source.add("keyword" if known else "name", token.start, token.end)
            if token.text in ("def", "class") and self.depth == 0:
                self.header = token.start
        elif token.kind == tokenize.OP:
            self._sign(token)

    def _sign(self, token: _Token) -> None:
        source = self.source
        source.add("operator", token.start, token.end)
        if token.text in ("(", "[", "{", ")", "]", "}"):
            self.depth = max(0, self.depth + (1 if token.text in "([{" else -1))
            source.brackets.append((token.start, self.depth))
        elif token.text == ":" and self.depth == 0 and self.header is not None:
            source.add("header", self.header, token.start)
            self.header = None

"""What can be said of a text at every character: inside a string, inside a URL, how deep in brackets.

The value at a character describes the text up to it and with it, as a reader knows it who has just read that character: an opening quote
is inside the string already, the closing one no longer is. What cannot be known yet, or cannot be said at all, is NaN.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadOption, UnknownName
from penlight.inputs.python_source import read_source

YES_NO, DEPTH = "yes/no", "depth"
_PROBE = "x = 1\n"  # what a user's function is tried on
_IN = re.compile(r"^inside (?:a|an) ")

Values = NDArray[np.float32]
Own = str | Callable[[str], Any]


@dataclass(frozen=True)
class Property:
    """One property of text.

    `find` takes a text of n characters to float32 (n,): 1 and 0 where `kind` is "yes/no", any number where it is "depth", NaN where
    it cannot be said.
    """

    name: str
    kind: str
    help: str
    find: Callable[[str], Values]


def chosen(wanted: Iterable[Own | Property] | None = None) -> list[Property]:
    """The properties that are asked for, without any all of `PROPERTIES`.

    >>> [p.name for p in chosen(["bracket depth", "todo=TODO|FIXME"])]
    ['bracket depth', 'todo']

    A name ("inside a string", or short "string"); "name=REGEX", yes for every character of a match; a function, or where it is
    ("module:package.module:function"), from a text to a value a character: bools are a yes/no, numbers a depth. Raises `UnknownName` or
    `BadOption` with what to do.
    """
    found = [_property(one) for one in (PROPERTIES.values() if wanted is None else wanted)]
    names = [one.name for one in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadOption(f"property {twice[0]!r} is given {names.count(twice[0])} times; give each its own name")
    return found


def at_tokens(values: Values, spans: Sequence[tuple[int, int]]) -> Values:
    """Values of characters as values of tokens: what stands at a token's last character, when all of it has been read."""
    ends = np.fromiter((end - 1 for _, end in spans), np.int64, len(spans))
    return values[np.maximum(ends, 0)] if len(values) else np.full(len(spans), np.nan, np.float32)


def _property(one: Own | Property) -> Property:
    if isinstance(one, Property):
        return one
    if not isinstance(one, str):
        return _from_function(one, str(getattr(one, "__name__", type(one).__name__)))
    if one in PROPERTIES:
        return PROPERTIES[one]
    short = {_IN.sub("", name): name for name in PROPERTIES}
    if one in short:
        return PROPERTIES[short[one]]
    if one.startswith("module:"):
        return _from_function(_imported(one), one.rpartition(":")[2])
    name, given, pattern = one.partition("=")
    if not given or not name.strip() or not pattern:
        raise UnknownName("property", one, PROPERTIES, 'Your own: "name=REGEX", or "module:package.module:function"')
    return _from_pattern(name.strip(), pattern)


def _from_pattern(name: str, pattern: str) -> Property:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadOption(f"property {name!r}: {pattern!r} is no regular expression: {error}") from error
    return Property(name, YES_NO, f"part of a match of {pattern}", partial(_matches, compiled))


def _from_function(function: Callable[[str], Any], name: str) -> Property:
    tried = _called(function, name, _PROBE)
    kind = YES_NO if tried.dtype == bool else DEPTH
    doc = (getattr(function, "__doc__", None) or "your own").strip().partition("\n")[0]
    return Property(name, kind, doc, lambda text: _called(function, name, text).astype(np.float32))


def _called(function: Callable[[str], Any], name: str, text: str) -> NDArray[Any]:
    try:
        found = np.asarray(function(text))
    except Exception as error:  # it is the user's: report what it raised
        raise BadOption(f"property {name!r} raised {type(error).__name__}: {error}") from error
    if found.shape != (len(text),) or found.dtype.kind not in "buif":
        raise BadOption(
            f"property {name!r} gave {found.dtype} of shape {list(found.shape)} for a text of {len(text)} characters;"
            " it gives one bool or number a character"
        )
    return found


def _imported(reference: str) -> Callable[[str], Any]:
    _, module, name = [*reference.split(":", 2), "", ""][:3]
    if not module or not name:
        raise BadOption(f"{reference!r} is no function; write module:package.module:function")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing runs the user's code
        raise BadOption(f"{reference!r} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise BadOption(f"{reference!r} is a {type(function).__name__}, no function of a text")
    return function  # type: ignore[no-any-return]


def _matches(
    pattern: re.Pattern[str], text: str, *, group: int = 0, last: bool = True, unsure: int | None = None
) -> Values:
    """1 in the `group` of every match, without its last character where `last` is False; NaN in the group `unsure`."""
    values = np.zeros(len(text), np.float32)
    for match in pattern.finditer(text):
        start, end = match.span(group)
        values[start : end if last else max(start, end - 1)] = 1
        if unsure is not None:
            values[slice(*match.span(unsure))] = np.nan
    return values


def _capitals(text: str) -> Values:
    return np.fromiter((c.isupper() for c in text), np.float32, len(text))


def _column(text: str) -> Values:
    """Characters since the line's beginning, this one counted; a newline is the last of its line."""
    return _since(text, re.compile(r"[^\n]*\n|[^\n]+\Z"))


def _word_position(text: str) -> Values:
    """Letters of the word so far; 0 outside words."""
    return _since(text, re.compile(r"\w+"))


def _since(text: str, pattern: re.Pattern[str]) -> Values:
    values = np.zeros(len(text), np.float32)
    for match in pattern.finditer(text):
        start, end = match.span()
        values[start:end] = np.arange(1, end - start + 1)
    return values


def _source(name: str) -> Callable[[str], Values]:
    """A property that Python's tokenizer finds, by its name there."""

    def find(text: str) -> Values:
        return read_source(text).values(name)

    return find


def _regex(pattern: str, **how: Any) -> Callable[[str], Values]:
    return partial(_matches, re.compile(pattern), **how)


def _table() -> Mapping[str, Property]:
    made = [
        Property("inside a string", YES_NO, "Python: from the opening quote to before the last closing one", _source("string")),
        Property("inside a docstring", YES_NO, "Python: in a string that is a statement of its own", _source("docstring")),
        Property("inside a triple-quoted string", YES_NO, "Python: in a string of three quotes", _source("triple")),
        Property("inside a comment", YES_NO, "Python: from # to the end of the line", _source("comment")),
        Property("inside a header", YES_NO, "Python: from def or class to its colon", _source("header")),
        Property("inside an import", YES_NO, "Python: in an import statement", _source("import")),
        Property("keyword", YES_NO, "Python: a character of a keyword", _source("keyword")),
        Property("name", YES_NO, "Python: a character of a name that is no keyword", _source("name")),
        Property("operator", YES_NO, "Python: an operator, bracket or other sign of the language", _source("operator")),
        Property("number", YES_NO, "Python: a character of a number", _source("number")),
        Property("bracket depth", DEPTH, "Python: round, square and curly brackets that are open", _source("brackets")),
        Property("indentation", DEPTH, "Python: blocks the line is in; not said in the white space before it", _source("indentation")),
        Property("line position", DEPTH, "characters of the line so far", _column),
        Property("word position", DEPTH, "letters of the word so far", _word_position),
        Property("inside a URL", YES_NO, "from the colon on; not said in the letters before it",
                 _regex(r"\b(https?|ftp|file)://[^\s\"'<>`\\)\]]+", unsure=1)),
        Property("inside quotes", YES_NO, "in a pair of quotes on one line, in any text",
                 _regex(r"\"[^\"\n]*\"|“[^”]*”|«[^»]*»|(?<!\w)'[^'\n]*'(?!\w)", last=False)),
        Property("inside parentheses", YES_NO, "in a pair of round brackets, in any text",
                 _regex(r"\((?:[^()]|\([^()]*\)){0,2000}\)", last=False)),
        Property("digit", YES_NO, "0 to 9", _regex(r"[0-9]")),
        Property("capital letter", YES_NO, "A to Z, and other capitals", _capitals),
        Property("white space", YES_NO, "blanks, tabs and newlines", _regex(r"\s")),
        Property("line start", YES_NO, "the first character of a line that is no white space", _regex(r"(?m)^[ \t]*(\S)", group=1)),
        Property("newline", YES_NO, "the last character of a line", _regex(r"\n")),
        Property("word start", YES_NO, "the first letter of a word", _regex(r"\b\w")),
        Property("sentence end", YES_NO, "the white space behind a full stop, question or exclamation mark", _regex(r"(?<=[.!?])\s")),
    ]  # fmt: skip
    return {one.name: one for one in made}


PROPERTIES: Mapping[str, Property] = _table()
"""The properties that are known, by name."""

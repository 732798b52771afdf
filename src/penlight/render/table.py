"""Plain text in columns, for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from penlight.render.words import NONE, number, shape


def columns(rows: Sequence[Mapping[str, Any]], keys: Sequence[str] | Mapping[str, str]) -> str:
    """Rows as aligned text under a heading; numbers to the right, nothing is cut off.

    >>> print(columns([{"layer": "conv1", "units": 16}, {"layer": "fc", "units": 1024}], ["layer", "units"]))
    layer  units
    conv1     16
    fc     1,024

    `keys` names the columns in order; as a mapping it gives each key its heading. A value that is absent or None shows
    as '–'.
    """
    heads = dict(keys) if isinstance(keys, Mapping) else {key: key for key in keys}
    right = {key: _numeric([row.get(key) for row in rows]) for key in heads}
    table = [list(heads.values()), *([cell(row.get(key)) for key in heads] for row in rows)]
    widths = [max(width(line[n]) for line in table) for n in range(len(heads))]
    lines = []
    for line in table:
        parts = []
        for text, size, to_right in zip(line, widths, right.values(), strict=True):
            space = " " * (size - width(text))
            parts.append(space + text if to_right else text + space)
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines)


def cell(value: Any) -> str:
    """One value as text on one line."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple):
        whole = value and all(isinstance(item, int) for item in value)
        return shape(value) if whole else ", ".join(cell(item) for item in value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def width(text: str) -> int:
    """Columns the text takes in a terminal: two for wide characters, none for combining ones."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _numeric(values: Sequence[Any]) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)

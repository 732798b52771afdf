"""What the commands say of results about text and tables, and the pages they save."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from penlight.render import columns, number
from penlight.render.words import THIN, share
from penlight.results import ColumnsResult, PassagesResult, Result, RowsResult, StringsResult, TracksResult

Pages = Mapping[str, Callable[[], str]]
PAGE = "index.html"
_COLUMNS, _UNITS, _WIDE = 3, 60, 48


def told(result: Result) -> tuple[str, Pages] | None:
    """(text, pages by file name) of such a result; None for any other."""
    if isinstance(result, PassagesResult):
        from penlight.render import passages

        return passages.text(result), {PAGE: lambda: passages.page(result)}
    if isinstance(result, TracksResult):
        from penlight.render import tracks

        return tracks.tracks_told(result), _of_texts(result)
    if isinstance(result, StringsResult):
        from penlight.render import strings

        return _strings(result), {PAGE: lambda: strings.strings_page(result)}
    if isinstance(result, ColumnsResult):
        from penlight.render import column_pages

        return _columns(result), {PAGE: lambda: column_pages.columns_page(result)}
    if isinstance(result, RowsResult):
        from penlight.render import column_pages

        return _rows(result), {PAGE: lambda: column_pages.rows_page(result)}
    return None


def _of_texts(result: TracksResult) -> Pages:
    """A page a text, the first one as index.html."""
    from penlight.render import tracks

    names = [PAGE, *(f"text-{n}.html" for n in range(1, len(result.texts)))]
    links = [(one.name, name) for one, name in zip(result.texts, names, strict=True)]
    return {name: partial(tracks.tracks_page, result, n, links) for n, name in enumerate(names)}


def _strings(result: StringsResult) -> str:
    rows = []
    for u, unit in enumerate(result.units):
        for s, text in enumerate(result.strings(unit)):
            bits, percentile = float(result.bits[u, s]), float(result.percentile[u, s])
            rows.append(
                {
                    "unit": unit if s == 0 else "",
                    "label": result.labels[u] if s == 0 else None,
                    "string": repr(text),
                    "value": number(float(result.values[u, s])),
                    "percentile": share(percentile).replace(THIN, "") if np.isfinite(percentile) else None,
                    "bits": f"{bits:.2f}" if np.isfinite(bits) else None,
                    "flat": "nothing moves it" if result.flat[u] else None,
                }
            )
    heads = {"unit": "unit", "label": "label", "value": "value", "percentile": f"{'below' if result.minimize else 'above'} the data",
             "bits": "bits a token", "string": "string", "flat": ""}  # fmt: skip
    heads = {name: head for name, head in heads.items() if any(row[name] for row in rows)}
    return "\n".join([columns(rows, heads), *(f"note: {note}" for note in result.notes)])


def _columns(result: ColumnsResult) -> str:
    rows: list[dict[str, Any]] = []
    for unit in result.units:
        ranked, label = result.columns(unit), result.label(unit)
        one = result.row(unit)
        rows.append(
            {
                "unit": unit,
                "label": None if label is None or not label.label else f"{label.label}, {label.score:.2f}",
                "fires": share(float(one["fires"])).replace(THIN, ""),
                "columns": "  ".join(_rank(rank) for rank in ranked[:_COLUMNS] if rank.gradients or rank.permutation)
                or "none",
                "most": result.top(unit)[0].name,
            }
        )
    strongest = "strongest columns (↑ more excites, ↓ less)"
    heads = {"unit": "unit", "label": "label", "fires": "above 0", "columns": strongest, "most": "most on"}
    if all(row["label"] is None for row in rows):
        del heads["label"]
    rest = [f"… and {len(rows) - _UNITS:,} more units"] if len(rows) > _UNITS else []
    lines = [columns(rows[:_UNITS], heads), *rest, "", f"{result.count:,} rows read, {len(result.skipped)} skipped"]
    lines += [f"  skipped {name}: {why}" for name, why in result.skipped[:20]]
    return "\n".join([*lines, *(f"note: {note}" for note in result.notes)])


def _rank(rank: Any) -> str:
    arrow = "" if not np.isfinite(rank.direction) else "↑" if rank.direction > 0 else "↓"
    return f"{rank.column}{arrow}{' ≠' if rank.disagrees else ''}"


def _rows(result: RowsResult) -> str:
    parts = []
    for u, unit in enumerate(result.units):
        ideal = result.ideal(unit)
        label = f" ({result.labels[u]})" if result.labels[u] else ""
        if result.flat[u]:
            parts.append(f"{unit}{label}: no row that was tried changes it")
            continue
        way = "least" if result.minimize else "most"
        away = share(ideal.percentile).replace(THIN, "")
        head = (
            f"{unit}{label}: {number(ideal.activation)}; the real row that drives it {way}, {ideal.best.name},"
            f" {number(ideal.best.activation)}; farther from the middle of the data than {away} of the rows"
        )
        told = [
            {
                "column": column.name,
                "value": column.text(float(ideal.values[c])),
                "nearest": column.text(float(ideal.nearest.values[c])),
                "best": column.text(float(ideal.best.values[c])),
            }
            for c, column in enumerate(result.table)
        ]
        heads = {
            "column": "column",
            "value": "this row",
            "nearest": f"nearest real, {ideal.nearest.name}",
            "best": f"{way} of the real",
        }
        parts.append(f"{head}\n\n{columns(told[:_WIDE], heads)}")
    return "\n\n".join([*parts, *(f"note: {note}" for note in result.notes)])

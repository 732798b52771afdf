"""Charts of columns as small inline SVG: bars with intervals, response curves over a column's values, and two columns' joint answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.render.svg import ticks
from penlight.render.words import number
from penlight.results.columns import Curve, Joint, TableColumn

Scale = Callable[[float], float]
WIDTH, HEIGHT = 260, 176
LEFT, RIGHT, TOP, FLOOR, CEILING = 40, 252, 10, 118, 122  # the plot; below it the histogram of the data
BASE = 150
_MARKS = {
    "ideal": "M{x} 1.5l4.5 5.5l-4.5 5.5l-4.5 -5.5z",
    "nearest": "M{x} 3.2a3.8 3.8 0 1 0 .01 0z",
    "best": "M{x} 2.5l4.4 8h-8.8z",
}


def bar(value: float, low: float, high: float, largest: float, kind: str, said: str) -> str:
    """A bar from zero with its interval as a whisker, all over `largest`."""
    scale = 120 / (largest or 1.0)
    end, a, b = (round(min(max(v, 0.0) * scale, 120), 1) for v in (value, low, high))
    return (
        f'<svg class="cc-bar" viewBox="0 0 124 16" role="img" aria-label="{escape(said, quote=True)}">'
        f'<path class="cc-{kind}" d="M0 3h{end}v10h{-end}z"/>'
        f'<path class="cc-whisker" d="M{a} 8H{b}M{a} 5v6M{b} 5v6"/></svg>'
    )


def curve_svg(curve: Curve, column: TableColumn, span: tuple[float, float]) -> str:
    """A response curve: the mean over single rows' faint ones, above where the data lies. `span` is the unit's axis."""
    low, high = span if span[1] > span[0] else (span[0] - 0.5, span[0] + 0.5)
    first, last = float(curve.grid[0]), float(curve.grid[-1])
    categorical = bool(column.values)
    room = len(column.values) if categorical else (last - first) or 1.0

    def across(value: float) -> float:
        part = (value + 0.5) / room if categorical else (value - first) / room
        return round(LEFT + part * (RIGHT - LEFT), 1)

    def up(value: float) -> float:
        return round(FLOOR - (min(max(value, low), high) - low) / (high - low) * (FLOOR - TOP), 1)

    x = [across(float(v)) for v in curve.grid]
    said = f"Mean answer over {column.name}: " + ", ".join(
        f"{column.text(float(curve.grid[i]))} {number(float(curve.mean[i]))}"
        for i in _few(len(x), 5 if not categorical else 12)
    )
    body = "".join(_singles(x, curve.individual, up, categorical))
    mean = f'<path class="cc-mean" d="{_line(x, curve.mean, up)}"/>'
    if categorical:
        mean = "".join(
            f'<circle class="cc-dot" cx="{a}" cy="{up(float(v))}" r="4"/>' for a, v in zip(x, curve.mean, strict=True)
        )
    return (
        f'<svg class="cc-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(said, quote=True)}">'
        f"{_rulers(low, high, up)}{body}{mean}"
        f"{_spread(column, across, categorical)}{_below(column, first, last, across)}</svg>"
    )


def _singles(x: Sequence[float], individual: NDArray[np.float32], up: Scale, categorical: bool) -> list[str]:
    if categorical:
        return [
            f'<circle class="cc-one" cx="{a}" cy="{up(float(v))}" r="1.6"/>'
            for row in individual
            for a, v in zip(x, row, strict=True)
        ]
    return [f'<path class="cc-single" d="{_line(x, row, up)}"/>' for row in individual]


def _line(x: Sequence[float], values: NDArray[np.floating[Any]], up: Scale) -> str:
    return "".join(f"{'L' if i else 'M'}{a} {up(float(v))}" for i, (a, v) in enumerate(zip(x, values, strict=True)))


def _rulers(low: float, high: float, up: Scale) -> str:
    marks = ticks(low, high, 3)
    lines = "".join(f'<path class="cc-rule{" cc-zero" if t == 0 else ""}" d="M{LEFT} {up(t)}H{RIGHT}"/>' for t in marks)
    return lines + "".join(
        f'<text class="cc-tick" x="{LEFT - 5}" y="{up(t) + 4}" text-anchor="end">{number(t)}</text>' for t in marks
    )


def _spread(column: TableColumn, across: Scale, categorical: bool) -> str:
    """The data's histogram, cut to the plot."""
    most = max(column.counts, default=0) or 1
    if categorical:
        wide = (RIGHT - LEFT) / len(column.values) * 0.6
        tall = [28 * count / most for count in column.counts]
        path = "".join(
            f"M{across(n) - wide / 2:.1f} {BASE}v{-t:.1f}h{wide:.1f}v{t:.1f}z" for n, t in enumerate(tall) if t
        )
    else:
        parts = []
        for n, count in enumerate(column.counts):
            a, b = (min(max(across(edge), LEFT), RIGHT) for edge in column.edges[n : n + 2])
            if count and b > a:
                parts.append(f"M{a} {BASE}v{-max(28 * count / most, 1):.1f}H{max(b - 0.5, a + 0.5):.1f}V{BASE}z")
        path = "".join(parts)
    return f'<path class="cc-data" d="{path}"/><path class="cc-axis" d="M{LEFT} {BASE}.5H{RIGHT}"/>'


def _below(column: TableColumn, first: float, last: float, across: Scale) -> str:
    if column.values:
        longest = max(3, int(36 / len(column.values)))
        names = [v if len(v) <= longest else v[: longest - 1] + "…" for v in column.values]
        return "".join(
            f'<text class="cc-tick" x="{across(n)}" y="{BASE + 15}" text-anchor="middle">{escape(v)}</text>'
            for n, v in enumerate(names)
        )
    if last <= first:
        return f'<text class="cc-tick" x="{LEFT}" y="{BASE + 15}">{number(first)}</text>'
    found = ticks(first, last, 3)
    return "".join(
        f'<path class="cc-axis" d="M{across(t)} {BASE}v4"/><text class="cc-tick" x="{across(t)}" y="{BASE + 16}" '
        f'text-anchor="{_anchor(across(t))}">{number(t)}</text>'
        for t in found
    )


def _anchor(x: float) -> str:
    return "start" if x < LEFT + 12 else "end" if x > RIGHT - 12 else "middle"


def joint_svg(joint: Joint, first: TableColumn, second: TableColumn) -> str:
    """The unit's mean answer over two columns, darker where it is higher, in steps of the data's quantiles."""
    left, top, size = 62, 8, 240
    rows, cols = joint.values.shape[1], joint.values.shape[0]
    low, high = float(joint.values.min()), float(joint.values.max())
    room = (high - low) or 1.0
    cells = []
    for i in range(cols):
        for j in range(rows):
            part = 100 * (float(joint.values[i, j]) - low) / room
            x, y = left + i * size / cols, top + (rows - 1 - j) * size / rows
            cells.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{size / cols + 0.3:.1f}" height="{size / rows + 0.3:.1f}" '
                f'style="fill:color-mix(in oklab,var(--cc-high) {part:.0f}%,var(--cc-low))"><title>'
                f"{escape(first.text(float(joint.first_grid[i])))}, {escape(second.text(float(joint.second_grid[j])))}: "
                f"{number(float(joint.values[i, j]))}</title></rect>"
            )
    bottom = "".join(
        f'<text class="cc-tick" x="{left + (i + 0.5) * size / cols:.1f}" y="{top + size + 15}" text-anchor="middle">'
        f"{escape(_short(first, float(joint.first_grid[i])))}</text>"
        for i in _few(cols, 4)
    )
    side = "".join(
        f'<text class="cc-tick" x="{left - 5}" y="{top + (rows - 0.5 - j) * size / rows + 4:.1f}" text-anchor="end">'
        f"{escape(_short(second, float(joint.second_grid[j])))}</text>"
        for j in _few(rows, 4)
    )
    said = f"Mean answer over {first.name} and {second.name}, from {number(low)} to {number(high)}"
    middle = top + size / 2
    return (
        f'<svg class="cc-joint" viewBox="0 0 {left + size + 8} {top + size + 38}" role="img" aria-label="{escape(said, quote=True)}">'
        f'{"".join(cells)}{bottom}{side}<text class="cc-name" x="{left + size / 2}" y="{top + size + 33}" text-anchor="middle">'
        f'{escape(first.name)}</text><text class="cc-name" text-anchor="middle" transform="translate(12 {middle}) rotate(-90)">'
        f"{escape(second.name)}</text></svg>"
    )


def _short(column: TableColumn, value: float) -> str:
    text = column.values[int(value)] if column.values else number(value)
    return text if len(text) <= 9 else text[:8] + "…"


def range_svg(column: TableColumn, marks: Sequence[tuple[str, float]]) -> str:
    """Where values stand in a column's range: the data's histogram with a mark for each of `marks`, (kind, value)."""
    low, high = (-0.5, len(column.values) - 0.5) if column.values else (column.low, column.high)
    room = (high - low) or 1.0
    most = max(column.counts, default=0) or 1
    edges = [n - 0.5 for n in range(len(column.values) + 1)] if column.values else list(column.edges)

    def across(value: float) -> float:
        return round(6 + 148 * min(max((value - low) / room, 0), 1), 1)

    data = "".join(
        f"M{across(edges[n])} 30v{-max(13 * count / most, 0.6):.1f}H{across(edges[n + 1])}V30z"
        for n, count in enumerate(column.counts)
        if count
    )
    shapes = "".join(f'<path class="cc-m-{kind}" d="{_MARKS[kind].format(x=across(value))}"/>' for kind, value in marks)
    said = "; ".join(f"{kind} {column.text(value)}" for kind, value in marks)
    return (
        f'<svg class="cc-range" viewBox="0 0 160 32" role="img" aria-label="{escape(said, quote=True)}">'
        f'<path class="cc-data" d="{data}"/><path class="cc-axis" d="M6 30.5H154"/>{shapes}</svg>'
    )


def mark_svg(kind: str) -> str:
    """One of the marks of `range_svg`, for a legend."""
    return f'<svg class="cc-key" viewBox="0 0 12 14" aria-hidden="true"><path class="cc-m-{kind}" d="{_MARKS[kind].format(x=6)}"/></svg>'


def span_of(curves: Sequence[Curve]) -> tuple[float, float]:
    """A common axis for several curves: all of the means, and nine tenths of the single rows."""
    means = np.concatenate([curve.mean for curve in curves])
    singles = np.concatenate([curve.individual.reshape(-1) for curve in curves]) if curves else means
    low, high = np.quantile(singles, [0.02, 0.98]) if len(singles) else (means.min(), means.max())
    a, b = min(float(low), float(means.min())), max(float(high), float(means.max()))
    air = 0.04 * (b - a)
    return (a - air, b + air) if math.isfinite(a + b) else (0.0, 1.0)


def _few(count: int, most: int) -> list[int]:
    return (
        sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(most)}) if count > most else list(range(count))
    )


STYLE = """.cc-bar{width:7.75rem;height:1rem;vertical-align:middle;overflow:visible}.cc-ig{fill:var(--bar)}.cc-perm{
fill:var(--cc-second)}.cc-whisker{stroke:var(--ink);fill:none;stroke-width:1.1}.cc-curve{width:100%;height:auto;display:block}
.cc-single{fill:none;stroke:var(--bar);stroke-width:.9;opacity:.3}.cc-one{fill:var(--bar);opacity:.35}.cc-mean{fill:none;
stroke:var(--ink);stroke-width:2.4;stroke-linejoin:round}.cc-dot{fill:var(--ink)}.cc-rule{stroke:var(--line);fill:none;
stroke-width:1}.cc-zero{stroke:var(--soft)}.cc-axis{stroke:var(--soft);fill:none}.cc-tick{fill:var(--soft);font-size:11px}
.cc-name{fill:var(--ink);font-size:12px}.cc-data{fill:var(--cc-data)}.cc-joint{width:100%;max-width:22rem;height:auto}
.cc-range{width:10rem;height:2rem;display:block}.cc-key{width:.8em;height:.95em;vertical-align:-.1em}.cc-m-ideal{
fill:var(--amber)}.cc-m-nearest{fill:none;stroke:var(--ink);stroke-width:1.8}.cc-m-best{fill:var(--cc-second)}"""

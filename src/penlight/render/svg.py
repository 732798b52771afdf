"""Charts as small HTML and SVG fragments with text alternatives; colours come from classes, with fallbacks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.render.words import number

WIDTH, HEIGHT = 360, 170
LEFT, RIGHT, TOP, FLOOR = 10, 350, 14, 140  # the plot inside the picture


@dataclass(frozen=True)
class Mark:
    """A value to be marked on a histogram's axis."""

    value: float
    label: str  # "HappyMap"
    kind: str = "happy"  # happy, sad or best: its form and colour


def histogram_svg(counts: NDArray[Any], edges: NDArray[Any], marks: Sequence[Mark] = (), title: str = "") -> str:
    """Counts (B,) in bins with `edges` (B + 1,) as an inline SVG that says in words what it shows.

    Bars are as high as the square root of their count, so that a few strong responses stay visible beside many weak
    ones. A mark far off the data stands at the rim, as an arrow.
    """
    if len(counts) == 0:
        return ""
    first, last = float(edges[0]), float(edges[-1])
    low, high = _span(first, last, [mark.value for mark in marks])
    if len(counts) == 1:  # one bar, with air around it
        low, high = low - 2 * (high - low), high + 2 * (high - low)
    scale = (RIGHT - LEFT) / (high - low)

    def at(value: float) -> float:
        return round(LEFT + (min(max(value, low), high) - low) * scale, 1)

    words = f"{int(np.sum(counts)):,} inputs by activation, from {number(first)} to {number(last)}"
    words += "".join(f"; {mark.label} at {number(mark.value)}" for mark in marks)
    said = escape(f"{title}: {words}" if title else words)
    return (
        f'<svg class="hist" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">'
        f'<path class="hist-bars" fill="currentColor" d="{_bins(counts, [at(float(edge)) for edge in edges])}"/>'
        f'<path class="hist-axis" stroke="currentColor" d="M{LEFT} {FLOOR}.5H{RIGHT}"/>'
        f"{''.join(_tick(at(t), t) for t in ticks(low, high))}"
        f"{''.join(_mark(at(m.value), m, m.value < low, m.value > high) for m in marks)}</svg>"
    )


def _bins(counts: NDArray[Any], places: Sequence[float]) -> str:
    root = np.sqrt(np.asarray(counts, dtype=np.float64))
    tall = np.maximum((FLOOR - TOP) * root / max(float(root.max()), 1.0), 1.0)
    return "".join(
        f"M{places[b]} {FLOOR}v{-tall[b]:.1f}H{max(places[b + 1], places[b] + 0.6):.1f}V{FLOOR}z"
        for b in np.flatnonzero(counts).tolist()
    )


def _span(low: float, high: float, values: Sequence[float]) -> tuple[float, float]:
    room = (high - low) or 1.0
    inside = [value for value in values if low - room <= value <= high + 1.5 * room]
    low, high = min([low, *inside]), max([high, *inside])
    off = [value for value in values if value < low or value > high]
    if any(value > high for value in off):
        high += 0.12 * room
    if any(value < low for value in off):
        low -= 0.12 * room
    return low, high if high > low else low + 1.0


def _tick(x: float, value: float) -> str:
    anchor = "start" if x < LEFT + 14 else "end" if x > RIGHT - 14 else "middle"
    return (
        f'<path class="hist-axis" stroke="currentColor" d="M{x} {FLOOR}v4"/>'
        f'<text class="hist-tick" fill="currentColor" x="{x}" y="{FLOOR + 17}" text-anchor="{anchor}" '
        f'font-size="11">{number(value)}</text>'
    )


def _mark(x: float, mark: Mark, off_left: bool, off_right: bool) -> str:
    line = f'<path class="hist-line" stroke="currentColor" stroke-dasharray="3 3" d="M{x} {TOP}V{FLOOR}"/>'
    if off_left or off_right:
        way = 1 if off_right else -1
        form = f"M{x - 9 * way} {TOP - 9}l{9 * way} 6l{-9 * way} 6z"
    else:
        form = {
            "happy": f"M{x} {TOP - 10}l6 10h-12z",
            "sad": f"M{x} {TOP}l6 -10h-12z",
        }.get(mark.kind, f"M{x} {TOP - 11}l5.5 5.5l-5.5 5.5l-5.5 -5.5z")
    return f'<g class="mark mark-{escape(mark.kind)}">{line}<path fill="currentColor" d="{form}"/></g>'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round values within [low, high]."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def bars(rows: Sequence[tuple[str, float]], caption: str, head: str = "class") -> str:
    """Labelled values as a table whose bars start at zero; negative ones reach to the left of it."""
    finite = [value for _, value in rows if math.isfinite(value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    room = (high - low) or 1.0
    body = []
    for label, value in rows:
        start, end = sorted((0.0, value if math.isfinite(value) else 0.0))
        left, wide = 100 * (start - low) / room, 100 * (end - start) / room
        sign = " minus" if value < 0 else ""
        body.append(
            f'<tr><th scope="row">{escape(label)}</th><td class="track"><i class="bar{sign}" '
            f'style="margin-left:{left:.3g}%;width:{wide:.3g}%"></i></td><td class="n">{number(value)}</td></tr>'
        )
    wide = min(max((len(label) for label, _ in rows), default=0), 18) + 2
    return (
        f'<table class="bars"><caption>{escape(caption)}</caption><colgroup>'
        f'<col style="width:{wide}ch"/><col/><col/></colgroup><thead class="vh"><tr><th scope="col">{escape(head)}</th>'
        f'<th scope="col">bar</th><th scope="col">value</th></tr></thead><tbody>{"".join(body)}</tbody></table>'
    )

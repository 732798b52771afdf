"""Explanations of one input side by side: a unit a row, a method a column."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from penlight.render.explain_rows import strips_picture
from penlight.render.sheet import AMBER, FAINT, INK, PAPER, TEXT, Cell, Row, draw_rows, enlarged
from penlight.render.words import MINUS, number
from penlight.results import ExplainResult, Picture
from penlight.results.explain import shown
from penlight.results.heat import heat

_SIDE = 224  # pixels that a picture is enlarged to about
_LETTERS = 38  # a line under a picture holds
_BAR, _BARS = 16, 24  # pixels a bar is high, bars at most
_MOST = 6  # lines of evidence under a map

CHECKED = {
    "deletion": "deletion",
    "insertion": "insertion",
    "sensitivity": "change under small noise",
    "randomisation": "alike after scrambling",
}


def explain_sheet(results: Sequence[ExplainResult]) -> Picture:
    """The input and, for every unit, the maps of all methods with their evidence, as one picture.

    >>> explain_sheet([r]).png()          # doctest: +SKIP

    Pictures get the map laid over them; rows of a table get a bar a column, texts colours behind their letters, other inputs without two
    axes of space bars.
    """
    if results[0].tokens:
        return strips_picture(results)
    units = dict.fromkeys(result.target.unit for result in results)
    rows = []
    for unit in units:
        own = [result for result in results if result.target.unit == unit]
        first = own[0]
        value = f"value {first.target.value:.4g}"
        if first.target.probability is not None:
            value += f", probability {first.target.probability:.1%}"
        cells = [Cell(_input(first), ["input", *_wrapped(first.source)]), *(_cell(result) for result in own)]
        rows.append(Row(str(first.target), cells, [value]))
    named = ", ".join(dict.fromkeys(result.method for result in results))
    return Picture("sheet-explain", draw_rows(rows, 1), f"What in the input caused {', '.join(units)}: {named}")


def told(evidence: Mapping[str, Any]) -> list[str]:
    """'name value' of each piece of evidence.

    >>> told({"steps": 50, "completeness error": 0.0123})
    ['steps 50', 'completeness error 0.0123']
    """
    return [
        f"{name} {number(v) if isinstance(v, int | float) and not isinstance(v, bool) else v}"
        for name, v in evidence.items()
    ]


def _cell(result: ExplainResult) -> Cell:
    image = enlarged(_picture(result), _scale(result)) if result.input.ndim == 3 else _bars(result)
    lines = [result.method]
    if result.box is not None:
        lines.append("cut to what the unit sees")
    lines += [line for text in told(result.evidence)[:_MOST] for line in _wrapped(text)]
    known = {CHECKED[name]: value for name, value in result.checks.items() if name in CHECKED and value is not None}
    lines += [line for text in told(known) for line in _wrapped(text)]
    return Cell(image, lines)


def _picture(result: ExplainResult) -> NDArray[np.uint8]:
    """The values themselves where they make a colour picture, else the map laid over the input."""
    coloured = result.colour and result.values.shape == result.input.shape and len(result.input) == 3
    return result.painted() if coloured else result.overlay()


def _scale(result: ExplainResult) -> int:
    return max(1, round(_SIDE / max(map(int, result.input.shape[1:]))))


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.replace(MINUS, "-").replace("×", "x"), _LETTERS)  # the font lacks both


def _input(result: ExplainResult) -> Image.Image | None:
    return enlarged(shown(result.input), _scale(result)) if result.input.ndim == 3 else None


def _bars(result: ExplainResult) -> Image.Image:
    """The strongest places as bars left and right of zero; a signal or a grid as a strip of colours."""
    if result.map.ndim > 1 or result.map.size > 4 * _BARS:
        rows = np.atleast_2d(result.map if result.map.ndim < 3 else result.map.reshape(len(result.map), -1))
        return enlarged(heat(rows, result.signed), max(1, _SIDE // max(rows.shape)))
    ranked = result.ranked(_BARS)
    font = ImageFont.load_default(TEXT - 2)
    top = max((abs(value) for _, value in ranked), default=0.0) or 1.0
    image = Image.new("RGB", (_SIDE, max(1, len(ranked)) * _BAR), PAPER)
    draw = ImageDraw.Draw(image)
    middle, reach = 120, _SIDE - 120 - 4
    for n, (place, value) in enumerate(ranked):
        y = n * _BAR
        draw.text((2, y), f"{','.join(map(str, place))}: {value:.3g}", font=font, fill=INK)
        end = middle + math.copysign(abs(value) / top * reach / 2, value) + reach / 2
        zero = middle + reach / 2
        draw.rectangle([min(zero, end), y + 3, max(zero, end), y + _BAR - 4], fill=AMBER if value >= 0 else FAINT)
    return image

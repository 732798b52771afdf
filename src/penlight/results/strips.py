"""Pictures of what rows of tables and texts got from explanations: bars a column, letters on colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.results.heat import colours, strength

PAPER, INK, SOFT, LINE = (251, 248, 241), (38, 33, 26), (116, 106, 92), (222, 213, 196)
RISE, FALL = (176, 62, 38), (40, 98, 160)  # bars of columns that raise the value, and that lower it
BARS = 30  # columns of a table that are drawn, at most
WIDE, TALL = 80, 60  # letters a line, and lines, that are drawn
_EDGE, _ROW, _TEXT, _BAR = 16, 24, 14, 190  # pixels
_CELL, _LEADING = 10, 21


@dataclass(frozen=True, eq=False)
class Strip:
    """One explanation of a row or a text: its title, a value a column or token, whether they may be negative."""

    title: str
    values: NDArray[np.float32]
    signed: bool = True


@dataclass(frozen=True)
class Cell:
    """A token where it is drawn: line, letter in the line, its text, its number, and whether it stands for a blank."""

    line: int
    at: int
    text: str
    token: int
    blank: bool = False


def strongest(strips: Sequence[Strip], most: int = BARS) -> list[int]:
    """Numbers of the places with the largest share of the magnitudes in any strip, largest first."""
    shares = [np.abs(strip.values) / max(float(np.abs(strip.values).max(initial=0)), 1e-30) for strip in strips]
    order: list[int] = np.argsort(-np.max(shares, axis=0), kind="stable")[:most].tolist()
    return order


def row_picture(
    names: Sequence[str], shown: Sequence[str], strips: Sequence[Strip], heading: str = ""
) -> NDArray[np.uint8]:
    """(H, W, 3): the columns of a table with their values, and for every strip a bar left or right of zero."""
    from PIL import Image, ImageDraw

    order, font = strongest(strips), _font(_TEXT)
    name, value = (max((font.getlength(_plain(texts[n])) for n in order), default=0) for texts in (names, shown))
    first = int(_EDGE + name + 18 + value + 22)
    number = int(max((font.getlength(_figure(s.values[n])) for s in strips for n in order), default=0)) + 10
    track = _BAR + number
    rest = len(names) - len(order)
    top = _EDGE + _ROW * bool(heading)
    height = top + _EDGE + _ROW * (1 + len(order) + (rest > 0))
    wide = max(first + len(strips) * (track + 18), int(_EDGE + font.getlength(_plain(heading)))) + _EDGE
    image = Image.new("RGB", (wide, height), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_EDGE, _EDGE), _plain(heading), font=font, fill=INK)
    for n, strip in enumerate(strips):
        left = first + n * (track + 18)
        draw.text((left, top), _plain(strip.title), font=font, fill=SOFT)
        _bars(draw, font, strip, order, left, top + _ROW)
    for n, place in enumerate(order):
        y = top + _ROW * (n + 1)
        draw.text((_EDGE, y + 3), _plain(names[place]), font=font, fill=INK)
        draw.text((first - 22, y + 3), _plain(shown[place]), font=font, fill=SOFT, anchor="ra")
    if rest > 0:
        draw.text((_EDGE, height - _EDGE - _ROW + 3), f"and {rest} columns that weigh less", font=font, fill=SOFT)
    return np.asarray(image)


def _bars(draw: Any, font: Any, strip: Strip, order: Sequence[int], left: int, top: int) -> None:
    values = strip.values[list(order)].astype(np.float64)
    low, high = min(0.0, float(values.min(initial=0))), max(0.0, float(values.max(initial=0)))
    scale = _BAR / ((high - low) or 1.0)
    zero = left - low * scale
    draw.line([zero, top, zero, top + _ROW * len(order)], fill=LINE, width=1)
    for n, value in enumerate(values):
        y, end = top + _ROW * n, zero + value * scale
        if value:
            sides = sorted((zero, end))
            draw.rectangle(
                [sides[0], y + 5, max(sides[1], sides[0] + 1), y + _ROW - 5], fill=RISE if value > 0 else FALL
            )
        draw.text((left + _BAR + 10, y + 3), _figure(value), font=font, fill=INK)


def laid_out(tokens: Sequence[str], wide: int = WIDE) -> list[Cell]:
    """Tokens in lines of up to `wide` letters; a line's end is shown as ↵, a tab as →. Words are put apart by a blank."""
    words, cells, line, at = are_words(tokens), [], 0, 0
    for number, token in enumerate(tokens):
        text, blank = shown_token(token)
        if at and at + len(text) > wide:
            line, at = line + 1, 0
        cells.append(Cell(line, at, text, number, blank))
        at += len(text) + words
        if token.endswith("\n"):
            line, at = line + 1, 0
    return cells


def are_words(tokens: Sequence[str]) -> bool:
    """Whether tokens are words rather than characters, of which one may stand for what is unknown."""
    return 3 * sum(len(token) > 1 for token in tokens) > len(tokens)


def shown_token(token: str) -> tuple[str, bool]:
    """(text, whether it stands for a blank) of a token."""
    if token == "\n":
        return "\u21b5", True
    if token == "\t":
        return "\u2192", True
    return "".join(c if c.isprintable() else "\u00b7" for c in token), False


def part_shown(strips: Sequence[Strip], count: int, step: int | None, most: int = WIDE * TALL // 2) -> tuple[int, int]:
    """(start, end) of the tokens that are drawn: those with a value, the step that is explained and a line around them."""
    places = np.flatnonzero(np.any([strip.values != 0 for strip in strips], axis=0)).tolist()
    places += [] if step is None else [step]
    start, stop = (max(0, min(places) - WIDE), min(count, max(places) + WIDE)) if places else (0, count)
    return max(start, stop - most), stop


def text_picture(
    tokens: Sequence[str], strips: Sequence[Strip], step: int | None = None, heading: str = ""
) -> NDArray[np.uint8]:
    """(H, W, 3): the text for every strip, letters on the colours of their values; a frame around the token at `step`."""
    from PIL import Image, ImageDraw

    start, stop = part_shown(strips, len(tokens), step)
    cells = laid_out(tokens[start:stop])
    lines = max((cell.line for cell in cells), default=0) + 1
    font, head = _font(_TEXT), _LEADING + 6
    wide = max([*(cell.at + len(cell.text) for cell in cells), *(len(strip.title) for strip in strips)]) * _CELL
    across = min(len(strips), max(1, 1600 // (wide + _EDGE)))
    down = -(-len(strips) // across)
    tall = head + lines * _LEADING + _EDGE
    first = _EDGE + _ROW * bool(heading)
    whole = max(across * (wide + _EDGE), int(font.getlength(_plain(heading))) + _EDGE)
    image = Image.new("RGB", (_EDGE + whole, first + down * tall), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((_EDGE, _EDGE - 2), _plain(heading), font=font, fill=INK)
    for n, strip in enumerate(strips):
        left, top = _EDGE + n % across * (wide + _EDGE), first + n // across * tall
        draw.text((left, top), _plain(strip.title), font=font, fill=SOFT)
        painted = np.where(strip.values[:, None] == 0, np.array(PAPER, np.uint8), token_colours(strip))[start:stop]
        for cell in cells:
            framed = step is not None and cell.token == step - start
            _letter(draw, font, cell, painted[cell.token], left, top + head, framed)
    return np.asarray(image)


def token_colours(strip: Strip) -> NDArray[np.uint8]:
    """(T, 3): the colours of a strip's values."""
    return colours(strength(strip.values, strip.signed), strip.signed)


def readable(colour: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = (int(part) for part in colour)
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _letter(draw: Any, font: Any, cell: Cell, colour: NDArray[np.uint8], left: int, top: int, framed: bool) -> None:
    x, y = left + cell.at * _CELL, top + cell.line * _LEADING
    box = [x, y, x + len(cell.text) * _CELL - 1, y + _LEADING - 2]
    fill = tuple(int(part) for part in colour)
    draw.rectangle(box, fill=fill)
    if framed:
        draw.rectangle([box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1], outline=INK, width=2)
    if cell.blank:
        _sign(draw, cell.text, x, y, readable(fill))
        return
    for n, letter in enumerate(cell.text):
        draw.text((x + n * _CELL + _CELL / 2, y + 2), letter, font=font, fill=readable(fill), anchor="ma")


def _sign(draw: Any, text: str, x: int, y: int, ink: tuple[int, int, int]) -> None:
    """A small corner for a line's end, a dash for a tab: the font has no arrows."""
    ink = (150, 140, 125) if ink == INK else ink
    if text == "\u21b5":
        draw.line([x + 7, y + 6, x + 7, y + 13, x + 2, y + 13], fill=ink, width=1)
    else:
        draw.line([x + 2, y + 10, x + 8, y + 10], fill=ink, width=1)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _plain(text: str) -> str:
    """A text in the letters the font has."""
    return text.replace("\u2212", "-").replace("\u00d7", "x").replace("\u202f", " ")


def _figure(value: float) -> str:
    return f"{value + 0.0:.3g}"

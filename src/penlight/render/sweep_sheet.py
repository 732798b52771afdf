"""A grid of option values as one picture: axes with their values, every cell's activation, the best one marked."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from penlight.render.sheet import AMBER, EDGE, FAINT, GAP, INK, PAPER, TEXT, enlarged, hatched
from penlight.results import Picture, Sweep, SweepResult
from penlight.results.visualize import NO_GRADIENT, file_name

BEST = "best"
_FRAME = 3  # pixels of the line around the best
_LEAST = 48


def sweep_sheet(result: SweepResult, scale: int | None = None) -> Picture:
    """All units' grids under each other: the first axis runs to the right, the second, if there is one, downwards.

    >>> sweep_sheet(result).png()                        # doctest: +SKIP

    Under each picture stands its activation, and in brackets what is left of it under small jitters; the best by that has a frame.
    `scale` is the size of one pixel (small pictures are enlarged to about 96 pixels).
    """
    height, width = result.images.shape[3:5]
    scale = scale or max(1, round(96 / max(height, width)))
    grids = [_grid(result, u, scale) for u in range(len(result.units))]
    wide = max((grid.width for grid in grids), default=64)
    canvas = Image.new("RGB", (wide + 2 * EDGE, sum(grid.height + EDGE for grid in grids) + EDGE), PAPER)
    top = EDGE
    for grid in grids:
        canvas.paste(grid, (EDGE, top))
        top += grid.height + EDGE
    names = " and ".join(axis.name for axis in result.axes)
    shown = result.units[0] if len(result.units) == 1 else f"{len(result.units)} units"
    name = f"sweep-{file_name(result.units[0]) if result.units else 'none'}"
    return Picture(name, np.asarray(canvas), f"{shown} over {names}")


def _grid(result: SweepResult, u: int, scale: int) -> Image.Image:
    font, small = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT - 2)
    across, down = result.axes[0], result.axes[1] if len(result.axes) > 1 else None
    columns, rows = result.images.shape[1:3]
    cells = {(a, b): _shown(result, u, a, b, scale) for a in range(columns) for b in range(rows)}
    notes = {at: _note(result, u, *at) for at in cells}
    heads = [across.label(a) for a in range(columns)]
    longest = max(small.getlength(text) for text in (*notes.values(), *heads))
    wide = max(_LEAST, cells[0, 0].width, math.ceil(longest)) + GAP
    tall = cells[0, 0].height + TEXT + GAP + 2
    sides = [down.label(b) for b in range(rows)] if down else [""]
    margin = (
        math.ceil(max(font.getlength(_name(down)), *(small.getlength(side) for side in sides))) + GAP if down else 0
    )
    above = 2 * TEXT + 3 * GAP + TEXT
    title = result.units[u] + (f"  {result.labels[u]}" if result.labels[u] else "")
    least = math.ceil(max(font.getlength(title), margin + font.getlength(_name(across))))
    canvas = Image.new("RGB", (max(margin + columns * wide + _FRAME, least), above + rows * tall), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((0, 0), title, font=font, fill=INK)
    draw.text((margin, TEXT + GAP), _name(across), font=font, fill=INK)
    if down:
        draw.text((0, TEXT + GAP), _name(down), font=font, fill=INK)
    for a, head in enumerate(heads):
        draw.text((margin + a * wide + _FRAME, 2 * (TEXT + GAP)), head, font=small, fill=FAINT)
    for b, side in enumerate(sides):
        draw.text((0, above + b * tall + cells[0, 0].height // 2 - TEXT // 2), side, font=small, fill=FAINT)
    for (a, b), image in cells.items():
        corner = (margin + a * wide + _FRAME, above + b * tall)
        canvas.paste(image, corner)
        best = (a, b) == tuple(result.best[u].tolist())
        if best:
            box = (corner[0] - _FRAME, corner[1] - _FRAME, corner[0] + image.width + 2, corner[1] + image.height + 2)
            draw.rectangle(box, outline=AMBER, width=_FRAME)
        below = (corner[0], corner[1] + image.height + 4)
        draw.text(below, notes[a, b], font=small, fill=AMBER if best else FAINT)
    return canvas


def _shown(result: SweepResult, u: int, a: int, b: int, scale: int) -> Image.Image:
    image = enlarged(result.images[u, a, b], scale)
    return hatched(image.size) if result.zero_gradient[u, a, b] else image


def _note(result: SweepResult, u: int, a: int, b: int) -> str:
    if result.zero_gradient[u, a, b]:
        return NO_GRADIENT
    text = f"{result.activations[u, a, b]:.3g}"
    if math.isfinite(result.jittered[u, a, b]):
        text += f" ({result.jittered[u, a, b]:.3g})"
    return f"{text} {BEST}" if (a, b) == tuple(result.best[u].tolist()) else text


def _name(axis: Sweep | None) -> str:
    """An axis' heading: the option, and how its values are spaced if that is not linear."""
    if axis is None:
        return ""
    return axis.name.replace("_", "-") + (" (log)" if axis.scale == "log" else "")

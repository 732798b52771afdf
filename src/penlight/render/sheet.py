"""Contact sheets: many small pictures with their labels as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from penlight.results import Example, Picture, SurveyResult, VisualizeResult
from penlight.results.base import displayable
from penlight.results.visualize import file_name

PAPER, INK, FAINT, AMBER = (251, 248, 241), (38, 33, 26), (116, 106, 92), (154, 88, 6)
GAP, EDGE, TEXT = 6, 16, 13
NO_GRADIENT = "no gradient"


@dataclass(frozen=True)
class _Cell:
    image: Image.Image | None  # None: nothing to show, and `note` says why
    note: str


@dataclass(frozen=True)
class _Row:
    label: str
    cells: Sequence[_Cell]


def sheet(result: VisualizeResult, columns: int | None = None, scale: int | None = None) -> Picture:
    """The pictures of some units on one sheet, each unit's starts side by side under its address.

    >>> sheet(result).png()                        # doctest: +SKIP

    `columns` is the number of units beside each other (as many as make the sheet about square), `scale` the size of one
    pixel (small pictures are enlarged to about 96 pixels). A picture that no gradient reached is hatched out.
    """
    count, seeds, height, width = result.images.shape[:4]
    scale = scale or max(1, round(96 / max(height, width)))
    rows = [_portrait_row(result, u, scale) for u in range(count)]
    wide = seeds * (width * scale * _montage(result.images.shape[4]) + GAP)
    tall = height * scale + 3 * TEXT
    columns = columns or min(count, max(1, round(math.sqrt(count * tall / wide))))
    word = "Least preferred" if result.minimize else "Preferred"
    shown = result.units[0] if count == 1 else f"{count} units"
    first = file_name(result.units[0]) if count else "none"
    name = f"sheet-{'sad' if result.minimize else 'happy'}-{first}"
    return Picture(name, _draw(rows, columns), f"{word} inputs of {shown}, {seeds} start{'s' * (seeds != 1)} each")


def survey_sheet(
    survey: SurveyResult,
    units: Sequence[str],
    inputs: Mapping[int, NDArray[np.uint8]],
    columns: int = 1,
    scale: int | None = None,
) -> Picture:
    """The top examples of some units, cut to what the unit saw; `inputs`: (H, W, C) uint8 by index in the data.

    Without `scale`, the crops of each unit are enlarged to about 80 pixels.
    """
    rows = []
    for unit in units:
        examples = survey.examples(unit)
        sides = [max(e.box[2] - e.box[0], e.box[3] - e.box[1]) for e in examples if e.box]
        own = scale or max(1, round(80 / max([1, *sides] if sides else [80])))
        rows.append(_Row(unit, [_crop(example, inputs, own) for example in examples]))
    name = f"top-{file_name(units[0]) if units else 'none'}"
    return Picture(name, _draw(rows, columns), f"Top examples of {len(units)} units")


def _montage(channels: int) -> int:
    return 1 if channels in (1, 3, 4) else channels


def _portrait_row(result: VisualizeResult, u: int, scale: int) -> _Row:
    label = result.units[u] + (f"  {result.labels[u]}" if result.labels[u] else "")
    cells = []
    for s in range(result.images.shape[1]):
        image = _enlarged(result.images[u, s], scale)
        if result.zero_gradient[u, s]:
            cells.append(_Cell(_hatched(image.size), NO_GRADIENT))
        else:
            cells.append(_Cell(image, f"{result.activations[u, s]:.3g}"))
    return _Row(label, cells)


def _crop(example: Example, inputs: Mapping[int, NDArray[np.uint8]], scale: int) -> _Cell:
    note = f"{example.activation:.3g}"
    if example.index not in inputs:
        return _Cell(None, note)
    pixels = inputs[example.index]
    top, left, bottom, right = example.box or (0, 0, *pixels.shape[:2])
    seen = pixels[max(top, 0) : bottom, max(left, 0) : right]
    return _Cell(_enlarged(seen, scale) if seen.size else None, note)


def _enlarged(pixels: NDArray[np.uint8], scale: int) -> Image.Image:
    shown = displayable(pixels)
    shown = shown[..., 0] if shown.ndim == 3 and shown.shape[2] == 1 else shown
    image = Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def _hatched(size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for x in range(-size[1], size[0], 8):
        draw.line([(x, size[1]), (x + size[1], 0)], fill=FAINT)
    draw.rectangle([0, 0, size[0] - 1, size[1] - 1], outline=FAINT)
    return image


def _draw(rows: Sequence[_Row], columns: int) -> NDArray[np.uint8]:
    font, small = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT - 2)
    images = [cell.image for row in rows for cell in row.cells if cell.image]
    wide = max([max(image.width for image in images), 44] if images else [64])
    tall = max((image.height for image in images), default=16)
    most = max((len(row.cells) for row in rows), default=1)
    label = max((font.getlength(row.label) for row in rows), default=0)
    block_w = max(most * (wide + GAP), math.ceil(label)) + EDGE
    block_h = TEXT + 6 + tall + TEXT + 4 + EDGE
    down = max(1, math.ceil(len(rows) / columns))
    canvas = Image.new("RGB", (min(columns, max(len(rows), 1)) * block_w + EDGE, down * block_h + EDGE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for n, row in enumerate(rows):
        x, y = EDGE + (n % columns) * block_w, EDGE + (n // columns) * block_h
        draw.text((x, y), row.label, font=font, fill=INK)
        for c, cell in enumerate(row.cells):
            left, top = x + c * (wide + GAP), y + TEXT + 6
            if cell.image:
                canvas.paste(cell.image, (left, top))
            else:
                canvas.paste(_hatched((wide, tall)), (left, top))
            draw.text((left, top + tall + 2), cell.note, font=small, fill=AMBER if cell.note == NO_GRADIENT else FAINT)
    return np.asarray(canvas)

"""Contact sheets: many small pictures with their labels as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from penlight.results import Example, Picture, ProjectionsResult, SurveyResult, VisualizeResult
from penlight.results.base import displayable
from penlight.results.visualize import FRAGILE, NEVER_FIRED, NO_GRADIENT, ONCE, file_name

PAPER, INK, FAINT, AMBER = (251, 248, 241), (38, 33, 26), (116, 106, 92), (154, 88, 6)
GAP, EDGE, TEXT = 6, 16, 13
_LEAST = 44  # pixels a cell is wide
_WARNINGS = {NO_GRADIENT, FRAGILE, NEVER_FIRED}


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet with the lines under it."""

    image: Image.Image | None  # None: nothing to show
    notes: Sequence[str]


@dataclass(frozen=True)
class Row:
    """Pictures side by side under one label."""

    label: str
    cells: Sequence[Cell]
    notes: Sequence[str] = ()  # beside the label


def sheet(result: VisualizeResult, columns: int | None = None, scale: int | None = None) -> Picture:
    """The pictures of some units on one sheet, each unit's starts side by side under its address.

    >>> sheet(result).png()                        # doctest: +SKIP

    `columns` is the number of units beside each other (as many as make the sheet about square), `scale` the size of one
    pixel (small pictures are enlarged to about 96 pixels). Under each picture stand the activation and, where they are known, where
    it lies among real inputs, how many starts show the same, and what is wrong with it; beside the address how alike the starts are
    to the network. A picture that no gradient reached is hatched out.
    """
    count, seeds, height, width = result.images.shape[:4]
    scale = scale or max(1, round(96 / max(height, width)))
    rows = [_portrait_row(result, u, scale) for u in range(count)]
    wide = seeds * (width * scale * _montage(result.images.shape[4]) + GAP)
    tall = height * scale + (2 + _lines(rows)) * TEXT
    columns = columns or min(count, max(1, round(math.sqrt(count * tall / wide))))
    word = "Least preferred" if result.minimize else "Preferred"
    shown = result.units[0] if count == 1 else f"{count} units"
    first = file_name(result.units[0]) if count else "none"
    name = f"sheet-{'sad' if result.minimize else 'happy'}-{first}"
    return Picture(name, draw_rows(rows, columns), f"{word} inputs of {shown}, {seeds} start{'s' * (seeds != 1)} each")


def survey_sheet(
    survey: SurveyResult,
    units: Sequence[str],
    inputs: Mapping[int, NDArray[np.uint8]],
    columns: int = 1,
    scale: int | None = None,
    projections: ProjectionsResult | None = None,
) -> Picture:
    """The top examples of some units, cut to what the unit saw; `inputs`: (H, W, C) uint8 by index in the data.

    Beside the address stands the unit's label, where the survey has one. With `projections`, those stand below, an example each; below
    them the bottom examples, if the survey kept any. Without `scale`, the crops of each unit are enlarged to about 80 pixels.
    """
    rows = []
    for unit in units:
        examples = survey.examples(unit)
        sides = [max(e.box[2] - e.box[0], e.box[3] - e.box[1]) for e in examples if e.box]
        own = scale or max(1, round(80 / max([1, *sides] if sides else [80])))
        label = survey.label(unit)
        rows.append(Row(unit, [_crop(one, inputs, own) for one in examples], [str(label)] if label else []))
        if projections is not None and unit in projections.units:
            back = [Cell(enlarged(one.image, own), []) for one in projections.of(unit)]
            rows.append(Row(f"{unit}, back to pixels", back))
        least = survey.bottom(unit)
        if least:
            rows.append(Row(f"{unit}, least", [_crop(one, inputs, own) for one in least]))
    name = f"top-{file_name(units[0]) if units else 'none'}"
    return Picture(name, draw_rows(rows, columns), f"Top examples of {len(units)} units")


def _montage(channels: int) -> int:
    return 1 if channels in (1, 3, 4) else channels


def _portrait_row(result: VisualizeResult, u: int, scale: int) -> Row:
    label = result.units[u] + (f"  {result.labels[u]}" if result.labels[u] else "")
    cells = []
    for s in range(result.images.shape[1]):
        image = enlarged(result.images[u, s], scale)
        dark = result.zero_gradient[u, s]
        cells.append(Cell(hatched(image.size) if dark else image, _evidence(result, u, s)))
    stability = float(result.stability[u])
    notes = [f"stability {stability:.2f}"] if math.isfinite(stability) else []
    return Row(label, cells, [*notes, *([NEVER_FIRED] if result.never_fired[u] else [])])


def _evidence(result: VisualizeResult, u: int, s: int) -> list[str]:
    """What stands under one picture, a line each."""
    flags, starts = result.flags(u, s), result.images.shape[1]
    if NO_GRADIENT in flags:
        return [NO_GRADIENT]
    lines = [f"{result.activations[u, s]:.3g}"]
    real = against_real(float(result.percentile[u, s]), float(result.ratio[u, s]), result.minimize)
    lines += [real] if real else []
    if starts > 1 and result.recurrence[u, s]:
        lines.append(f"{result.recurrence[u, s]} of {starts} starts")
    return [*lines, *(flag for flag in flags if flag not in (ONCE, NEVER_FIRED))]


def against_real(percentile: float, ratio: float, minimize: bool = False) -> str | None:
    """Where a picture lies among the real inputs, in a few words; None where that is not known.

    >>> against_real(0.9996, 0.8), against_real(1.0, 1.42)
    ('above 99.9 %', '1.4x best real')
    """
    if math.isfinite(ratio) and ratio >= 1:
        times = f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
        return f"{times}x {'least' if minimize else 'best'} real"
    if not math.isfinite(percentile):
        return None
    return f"{'below' if minimize else 'above'} {math.floor(1000 * percentile) / 10:g} %"


def _crop(example: Example, inputs: Mapping[int, NDArray[np.uint8]], scale: int) -> Cell:
    notes = [f"{example.activation:.3g}"]
    if example.index not in inputs:
        return Cell(None, notes)
    pixels = inputs[example.index]
    top, left, bottom, right = example.box or (0, 0, *pixels.shape[:2])
    seen = pixels[max(top, 0) : bottom, max(left, 0) : right]
    return Cell(enlarged(seen, scale) if seen.size else None, notes)


def enlarged(pixels: NDArray[np.uint8], scale: int) -> Image.Image:
    """(H, W, C) uint8 as a colour image, a pixel `scale` × `scale` large."""
    shown = displayable(pixels)
    shown = shown[..., 0] if shown.ndim == 3 and shown.shape[2] == 1 else shown
    image = Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def hatched(size: tuple[int, int]) -> Image.Image:
    """What stands in place of a picture there is none of."""
    image = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(image)
    for x in range(-size[1], size[0], 8):
        draw.line([(x, size[1]), (x + size[1], 0)], fill=FAINT)
    draw.rectangle([0, 0, size[0] - 1, size[1] - 1], outline=FAINT)
    return image


def _lines(rows: Sequence[Row]) -> int:
    """Lines of text under a picture, at most."""
    return max((len(cell.notes) for row in rows for cell in row.cells), default=1)


def draw_rows(rows: Sequence[Row], columns: int) -> NDArray[np.uint8]:
    """(H, W, 3): the rows on paper, `columns` of them beside each other."""
    font, small = ImageFont.load_default(TEXT), ImageFont.load_default(TEXT - 2)
    cells = [cell for row in rows for cell in row.cells]
    images = [cell.image for cell in cells if cell.image]
    longest = max((math.ceil(small.getlength(note)) for cell in cells for note in cell.notes), default=0)
    wide = max([max(image.width for image in images), _LEAST, longest] if images else [64, longest])
    tall = max((image.height for image in images), default=16)
    most = max((len(row.cells) for row in rows), default=1)
    label = max((font.getlength(_title(row)) for row in rows), default=0)
    block_w = max(most * (wide + GAP), math.ceil(label)) + EDGE
    block_h = TEXT + 6 + tall + _lines(rows) * TEXT + 4 + EDGE
    down = max(1, math.ceil(len(rows) / columns))
    canvas = Image.new("RGB", (min(columns, max(len(rows), 1)) * block_w + EDGE, down * block_h + EDGE), PAPER)
    draw = ImageDraw.Draw(canvas)
    for n, row in enumerate(rows):
        x, y = EDGE + (n % columns) * block_w, EDGE + (n // columns) * block_h
        draw.text((x, y), row.label, font=font, fill=INK)
        after = x + font.getlength(row.label)
        for note in row.notes:
            draw.text((after + GAP, y + 2), note, font=small, fill=AMBER if note in _WARNINGS else FAINT)
            after += GAP + small.getlength(note)
        for c, cell in enumerate(row.cells):
            left, top = x + c * (wide + GAP), y + TEXT + 6
            canvas.paste(cell.image or hatched((wide, tall)), (left, top))
            for line, note in enumerate(cell.notes):
                fill = AMBER if note in _WARNINGS or note.startswith("1 of ") else FAINT
                draw.text((left, top + tall + 2 + line * TEXT), note, font=small, fill=fill)
    return np.asarray(canvas)


def _title(row: Row) -> str:
    return "  ".join([row.label, *row.notes])

"""Occlusion: how the aim's value changes when a window of the input is covered, as a function of where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadOption
from penlight.inputs import TableContract
from penlight.models.front import FrontContract
from penlight.techniques.explain.explanation import Attribution, Explanation, Scene
from penlight.techniques.explain.fills import FILL_HELP, FILLS, TOKEN_HELP, TOKENS, filled
from penlight.techniques.explain.occlusion_grid import Grid, averaged, grids
from penlight.techniques.explain.occlusion_passes import Cover, Passes
from penlight.techniques.explain.occlusion_text import occluded_text
from penlight.techniques.explain.rows import occluded_row
from penlight.techniques.options import option

Values = NDArray[np.float64]
_NOTHING = 1e-5  # of the largest drop: rounding
_REFINED = 0.25  # share of positions, the most important ones, that are looked at more closely


@dataclass(frozen=True)
class Occlusion(Explanation):
    """Slide a window that shows nothing over the input and read the aim at every place.

    A cell's value is the mean, over the windows that cover it, of the aim's value for the input less that with the window covered:
    positive where covering lowers the aim. Only what a window can change is computed, layer by layer, where the network allows it.

    Of a table's row, a column at a time takes the values that other rows have there: its value is the mean drop, with the standard error
    of that mean in `extras`. Of a text, windows are words or a number of tokens.
    """

    name: ClassVar[str] = "occlusion"
    paper: ClassVar[str] = (
        "Zeiler & Fergus 2014, arXiv:1311.2901; incremental inference after Nakandala et al. 2019 (Krypton)"
    )
    guarantee: ClassVar[str] = (
        "Measured drops of the value when a window is covered, nothing inferred; they depend on the window's size and on what covers it."
    )

    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "table", "text")

    window: str = option(
        "",
        "size of the window in cells, as in 32, 32x16 (rows x columns) or, for several, 64,32,16; a seventh of the side. Of a text a"
        " number of tokens, or characters, words or lines; words for more than 40 characters",
    )
    stride: str = option("", "cells from one position to the next, in the same form; a quarter of the window")
    fill: str = option(
        "auto",
        f"{FILL_HELP}; auto is zeros, and for a table with data rows: the values of other rows, one after the other; {TOKEN_HELP}",
        choices=("auto", "rows", *FILLS, *TOKENS),
    )
    channels: bool = option(False, "cover one channel at a time")
    refine: int = option(0, "how often to halve window and stride where covering matters most", low=0, high=8)
    incremental: bool = option(True, "compute only what a window can change")

    def attribute(self, scene: Scene) -> Attribution:
        """The map, with the aim's value at every position."""
        contract = scene.model.contract
        if isinstance(contract, TableContract | FrontContract):
            return self._of_parts(scene, contract)
        if self.fill == "rows":
            raise BadOption(f"fill 'rows' is for rows of a table; this input is none: use {', '.join(FILLS)}")
        shape = scene.x.shape[1:]
        flat = len(shape) < 3
        size = (1, shape[-1]) if flat else (int(shape[-2]), int(shape[-1]))
        asked = grids(size, self.window, self.stride, flat)
        passes = Passes(scene, filled(scene, "zeros" if self.fill == "auto" else self.fill), self.incremental)
        channels: list[int | None] = list(range(shape[0])) if self.channels and len(shape) > 1 else [None]
        levels = [self._levels(grid) for grid in asked]
        bound = sum(len(grid.rows) * len(grid.columns) for level in levels for grid in level) * len(channels)
        done = 0

        def progress(count: int) -> None:
            nonlocal done
            done += count
            scene.progress(min(done, bound), bound)

        maps: list[Values] = []
        extras: dict[str, NDArray[Any]] = {}
        lowest = _Lowest(math.inf, "")
        for level in levels:
            tag = "" if len(levels) == 1 else f"-{level[0].name}"
            found, arrays, low = _refined(passes, level, channels, progress, flat)
            maps.append(found)
            extras |= {f"{name.replace('*', tag)}": array for name, array in arrays.items()}
            lowest = min(lowest, low, key=lambda one: one.value)
        scene.progress(bound, bound)
        values = _shaped(np.mean(maps, 0), shape)
        return Attribution(
            values.astype(np.float32),
            evidence=_evidence(passes, lowest),
            notes=_notes(passes, self.incremental),
            extras=extras,
        )

    def _of_parts(self, scene: Scene, contract: TableContract | FrontContract) -> Attribution:
        """A table by columns, a text by windows of tokens."""
        table = isinstance(contract, TableContract)
        given = {
            "window": self.window and table,
            "stride": self.stride and table,
            "channels": self.channels,
            "refine": self.refine,
        }
        wrong = [name for name, value in given.items() if value]
        if wrong:
            what = "a table is taken a column at a time" if table else "of a text whole tokens are covered"
            raise BadOption(f"option {wrong[0]} is for inputs with axes in space or time: {what}; leave it out")
        if isinstance(contract, TableContract):
            return occluded_row(scene, contract, self.fill)
        return occluded_text(scene, contract, self.window, self.stride, self.fill)

    def _levels(self, grid: Grid) -> list[Grid]:
        """The grid and its refinements."""
        levels = [grid]
        for _ in range(self.refine):
            finer = levels[-1].halved()
            if finer is None:
                break
            levels.append(finer)
        return levels


@dataclass(frozen=True)
class _Lowest:
    value: float
    place: str


def _refined(
    passes: Passes, levels: Sequence[Grid], channels: Sequence[int | None], progress: Any, flat: bool
) -> tuple[Values, dict[str, NDArray[Any]], _Lowest]:
    """(channels, rows, columns) of a grid and its refinements, finer ones in place of coarser; arrays to be kept; the lowest value."""
    first, depth = levels[0], len(channels)
    covers = first.covers(channels)
    arrays: dict[str, NDArray[Any]] = {}
    found = np.zeros((depth, *first.size))
    lowest = _Lowest(math.inf, "")
    for number, grid in enumerate(levels):
        scores = passes.values(covers, progress).numpy()
        drops = passes.value - scores.astype(np.float64)
        own, counts = averaged(grid.size, depth, covers, drops)
        found = np.where(counts > 0, own, found)
        arrays |= _kept(grid, scores, covers, depth, number, flat)
        least = int(scores.argmin())
        lowest = min(lowest, _Lowest(float(scores[least]), _named(covers[least], flat)), key=lambda one: one.value)
        if number + 1 < len(levels):
            covers = _closer(levels[number + 1], covers, drops, channels)
            if not covers:
                break
    return found, arrays, lowest


def _kept(
    grid: Grid, scores: NDArray[Any], covers: Sequence[Cover], depth: int, number: int, flat: bool
) -> dict[str, NDArray[Any]]:
    """The scores as a map over the positions; of a refinement, which has gaps, as a list."""
    if number:
        places = np.array([(cover.row, cover.column)[flat:] for cover in covers], np.int32)
        own = {"scores": scores.astype(np.float32), "offsets": places}
        if depth > 1:
            own["channels"] = np.array([cover.channel for cover in covers], np.int32)
        return {f"refined-{number}-{name}*": array for name, array in own.items()}
    rows, columns = grid.rows, grid.columns
    shape = (len(rows), len(columns))[flat:]
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    return {
        "scores*": scores.astype(np.float32).reshape((depth, *shape) if depth > 1 else shape),
        "offsets*": (places[0, :, 1] if flat else places).astype(np.int32),
    }


def _closer(finer: Grid, covers: Sequence[Cover], drops: Values, channels: Sequence[int | None]) -> list[Cover]:
    """The finer grid's windows that lie inside the windows that mattered most, none where nothing mattered."""
    count, size = math.ceil(_REFINED * len(covers)), np.abs(drops)
    chosen = [covers[n] for n in np.argsort(-size, kind="stable")[:count] if size[n] > _NOTHING * size.max()]
    inside = {channel: np.zeros(finer.size, bool) for channel in channels}
    for cover in chosen:
        rows = [row for row in finer.rows if cover.row <= row and row + finer.window[0] <= cover.row + cover.height]
        columns = [c for c in finer.columns if cover.column <= c and c + finer.window[1] <= cover.column + cover.width]
        inside[cover.channel][np.ix_(rows, columns)] = True
    return [cover for cover in finer.covers(channels) if inside[cover.channel][cover.row, cover.column]]


def _shaped(found: Values, shape: Sequence[int]) -> Values:
    """(channels, rows, columns) as one input."""
    if len(shape) == 1:
        row: Values = found[0, 0]
        return row
    if len(shape) == 2:
        return np.broadcast_to(found[:, 0], tuple(shape)).copy()
    between = (1,) * (len(shape) - 3)
    return np.broadcast_to(found.reshape(len(found), *between, *found.shape[1:]), tuple(shape)).copy()


def _named(cover: Cover, flat: bool) -> str:
    size = str(cover.width) if flat or cover.height == cover.width else f"{cover.height}x{cover.width}"
    place = f"{cover.column}" if flat else f"row {cover.row}, column {cover.column}"
    return f"{place}, window {size}" + ("" if cover.channel is None else f", channel {cover.channel}")


def _evidence(passes: Passes, lowest: _Lowest) -> dict[str, Any]:
    found: dict[str, Any] = {
        "positions": passes.positions,
        "lowest value": lowest.value,
        "lowest at": lowest.place,
        "inference": "in full" if passes.reason or not passes.incremental else "incremental",
        "share of full work": round(passes.share, 4),
    }
    if passes.incremental and not passes.reason:
        found["largest difference from a full pass, at two positions"] = passes.difference
    return found


def _notes(passes: Passes, wanted: bool) -> tuple[str, ...]:
    if wanted and passes.reason:
        return (f"all passes were run in full, without incremental inference: {passes.reason}",)
    if passes.fallbacks:
        first, *more = passes.fallbacks
        rest = f", {len(more)} other operators too" if more else ""
        return (f"{first} mixes the whole map, so from there on whole maps were computed{rest}",)
    return ()

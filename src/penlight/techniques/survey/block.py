"""Reading maps the moment they are written: maximum, sum and, where it may count, the maximum's place, of every unit.

A map is read inside the hook, while it still lies in the cache and before an in-place operation overwrites it. What is read of all
layers goes into the columns of one matrix with a row an input, so that everything that follows is done for all units at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import CannotRun
from penlight.models import Layer
from penlight.models.probe import Reader
from penlight.models.reductions import highest
from penlight.techniques.survey.sums import InputSums

_SMALL = 1024  # positions, up to which a map is looked through whole
_MANY = 4  # units of one input, from which on strips of its map are searched first
_AT_ONCE = 64  # columns gathered whole in one go


@dataclass
class Block:
    """What was read of some inputs in a row; T columns, a stretch of them a layer.

    `peak` the maximum over positions, `total` the sum over them, `place` the first flat position of the maximum. On the CPU `place` is
    only found where the peak is above `floor`, the activation a unit has to exceed to enter its list of top examples, or below
    `ceiling`, if there is a list of bottom examples too.
    """

    layers: Mapping[str, Layer]
    rows: int
    batch: int
    device: torch.device
    bottom: bool = False
    sums: Mapping[str, InputSums] = field(default_factory=dict)  # layers whose sums are read off their inputs
    columns: dict[str, slice] = field(init=False)
    peak: Tensor = field(init=False)  # (rows, T) float32
    total: Tensor = field(init=False)
    place: Tensor = field(init=False)  # (rows, T) int32
    floor: NDArray[np.float32] = field(init=False)  # (T,)
    ceiling: NDArray[np.float32] | None = field(init=False)  # (T,)
    step: int = 0  # which batch of the block is running

    def __post_init__(self) -> None:
        ends = np.cumsum([layer.units for layer in self.layers.values()]).tolist()
        starts = [0, *ends[:-1]]
        self.columns = {path: slice(a, b) for path, a, b in zip(self.layers, starts, ends, strict=True)}
        shape = (self.rows, ends[-1])
        self.peak, self.total = (torch.zeros(shape, device=self.device) for _ in range(2))
        self.place = torch.zeros(shape, dtype=torch.int32, device=self.device)
        self.floor = np.full(ends[-1], -np.inf, np.float32)
        self.ceiling = np.full(ends[-1], np.inf, np.float32) if self.bottom else None

    def readers(self) -> dict[str, Reader]:
        """A reader for every layer, to be given to a `Probe`."""
        return {path: self._reader(path, layer) for path, layer in self.layers.items()}

    def _reader(self, path: str, layer: Layer) -> Reader:
        columns, batch = self.columns[path], self.batch
        targets = [
            _Target(*(t[row : row + batch, columns] for t in (self.peak, self.total, self.place)))
            for row in range(0, self.rows, batch)
        ]
        make = _neurons if not layer.positions else _here if self.device.type == "cpu" else _there
        ceiling = None if self.ceiling is None else self.ceiling[columns]
        read = make(layer, batch, self.floor[columns], ceiling, self.sums.get(path))

        def reader(output: Tensor) -> None:
            if len(output) != batch:
                raise CannotRun(
                    f"layer {path!r} puts out {len(output)} rows for {batch} inputs, so it cannot be surveyed"
                )
            read(output if output.dtype is torch.float32 else output.float(), targets[self.step])

        return reader


class _Target:
    """Where one batch of one layer is written to: (batch, units) views into the block, as arrays too where they lie on the CPU."""

    def __init__(self, peak: Tensor, total: Tensor, place: Tensor) -> None:
        self.peak, self.total, self.place = peak, total, place
        if peak.device.type == "cpu":
            self.peaks, self.places = peak.numpy(), place.numpy()


_Read = Callable[[Tensor, _Target], None]
_Bound = NDArray[np.float32]


def _neurons(
    layer: Layer, batch: int, floor: _Bound, ceiling: _Bound | None = None, sums: InputSums | None = None
) -> _Read:
    def read(output: Tensor, target: _Target) -> None:
        values = layer.units_first(output)
        target.peak.copy_(values)
        target.total.copy_(values)

    return read


def _there(
    layer: Layer, batch: int, floor: _Bound, ceiling: _Bound | None = None, sums: InputSums | None = None
) -> _Read:
    """On an accelerator: places of everything, since asking which are needed would wait for the device."""

    def read(output: Tensor, target: _Target) -> None:
        flat = layer.units_first(output).flatten(2)
        peak, place = flat.max(2)
        target.peak.copy_(peak)
        target.place.copy_(place)
        target.total.copy_(flat.sum(2))

    return read


def _here(
    layer: Layer, batch: int, floor: _Bound, ceiling: _Bound | None = None, sums: InputSums | None = None
) -> _Read:
    """On the CPU: two passes that read at the cache's speed; places only of the peaks above `floor` or below `ceiling`.

    Whatever does not depend on the map is worked out here, once: there are many layers and the batches are small.
    """
    order = [a for a in range(len(layer.shape) + 1) if a != layer.axis] + [layer.axis]
    units, places = layer.units, math.prod(layer.positions)
    shared = len(layer.positions) > 1 and places > _SMALL
    strips = (places // layer.positions[-1], layer.positions[-1], units) if shared else None

    def read(output: Tensor, target: _Target) -> None:
        split = output.permute(order)  # units last, which is how channels-last maps lie in memory
        flat = split.flatten(1, -2)
        target.peak.copy_(highest(flat))
        if sums is None:
            torch.sum(flat, 1, out=target.total)
        else:
            sums.into(flat, target.total)
        found = target.peaks > floor
        if ceiling is not None:
            found |= target.peaks < ceiling
        if found.any():
            rows, columns = found.nonzero()
            target.places[rows, columns] = _places(flat, strips, target.peaks[rows, columns], rows, columns)

    return read


def _places(flat: Tensor, strips: tuple[int, int, int] | None, peaks: Any, rows: Any, columns: Any) -> NDArray[np.intp]:
    """First flat positions of the peaks of some (row, unit) pairs, in order of rows, in a map (N, P, C).

    `strips` is (P / B, B, C) where B strips of a large map are to share the search: where many units of an input ask, the maxima over
    each strip are found first, so that P / B + B numbers are looked at for each instead of P.
    """
    values = flat.numpy()
    if strips is None:
        return _first(values, peaks, rows, columns)
    places = np.empty(len(rows), np.intp)
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(rows)]):
        part, row = slice(start, stop), int(rows[start])
        if stop - start < _MANY:
            places[part] = _first(values, peaks[part], rows[part], columns[part])
        else:
            places[part] = _in_strips(flat[row], strips, peaks[part], columns[part])
    return places


def _in_strips(flat: Tensor, strips: tuple[int, int, int], peaks: Any, columns: Any) -> NDArray[np.intp]:
    """First flat positions of the peaks of some units in one map (P, C); where two strips hold a peak, the whole map decides."""
    height, width, units = strips
    stage = flat.reshape(height, width * units).amax(0).view(width, units).numpy()
    hits = stage[:, columns] == peaks
    strip = hits.argmax(0)
    values = flat.numpy()
    within = values.reshape(strips)[:, strip, columns] == peaks
    places: NDArray[np.intp] = within.argmax(0) * width + strip
    tied = hits.sum(0) > 1
    if tied.any():
        places[tied] = (values[:, columns[tied]] == peaks[tied]).argmax(0)
    return places


def _first(flat: Any, peaks: Any, rows: Any, columns: Any) -> NDArray[np.intp]:
    places = np.empty(len(rows), np.intp)
    step = max(1, _AT_ONCE * 4096 // math.prod(flat.shape[1:2]))
    for a in range(0, len(rows), step):
        part = slice(a, a + step)
        places[part] = (flat[rows[part], :, columns[part]] == peaks[part, None]).argmax(1)
    return places

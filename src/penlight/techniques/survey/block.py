"""Reading maps the moment they are written: maximum, sum and, where it may count, the maximum's place, of every unit.

A map is read inside the hook, while it still lies in the cache and before an in-place operation overwrites it. What is read of all
layers goes into the columns of one matrix with a row an input, so that everything that follows is done for all units at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import CannotRun
from penlight.models import Layer
from penlight.models.probe import Reader
from penlight.models.reductions import Strips, first, highest
from penlight.techniques.survey.sums import InputSums

_SMALL = 1024  # positions, up to which a map is looked through whole


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
    strips, found = Strips(places, units) if places > _SMALL else None, np.empty((batch, units), np.bool_)
    shape, strides = (batch, places, units), (places * units, units, 1)
    dense = torch.empty((batch, *(layer.shape[a - 1] for a in order[1:])), device="meta")
    lying = dense.permute(np.argsort(order).tolist()).stride()  # of a map whose units come last in memory

    def read(output: Tensor, target: _Target) -> None:
        last = output.stride() == lying
        flat = output.as_strided(shape, strides) if last else output.permute(order).flatten(1, -2)
        stage = strips.of(flat) if strips is not None and flat.is_contiguous() else None
        if stage is None:
            highest(flat, target.peak)
        else:
            torch.amax(stage, 1, out=target.peak)
        if sums is None:
            torch.sum(flat, 1, out=target.total)
        else:
            sums.into(flat, target.total)
        np.greater(target.peaks, floor, out=found)
        if ceiling is not None:
            np.logical_or(found, target.peaks < ceiling, out=found)
        if np.count_nonzero(found):
            rows, columns = np.divmod(np.flatnonzero(found), units)
            peaks, values = target.peaks[rows, columns], flat.numpy()
            if strips is None or stage is None:
                target.places[rows, columns] = first(values, peaks, rows, columns)
            else:
                target.places[rows, columns] = strips.find(values, stage.numpy(), peaks, rows, columns)

    return read

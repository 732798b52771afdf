"""Reading maps the moment they are written: maximum, sum and, where it may count, the maximum's place, of every unit.

A map is read inside the hook, while it still lies in the cache and before an in-place operation overwrites it. What is read of all
layers goes into the columns of one matrix with a row an input, so that everything that follows is done for all units at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import CannotRun
from penlight.models import Layer
from penlight.models.probe import Reader

_VECTOR = 32  # a reduction over rows runs at full speed where the rows are a multiple of this many numbers
_SMALL = 256  # positions, up to which one reduction is cheaper than two
_AT_ONCE = 64  # columns gathered whole in one go


@dataclass
class Block:
    """What was read of some inputs in a row; T columns, a stretch of them a layer.

    `peak` the maximum over positions, `total` the sum over them, `place` the first flat position of the maximum. On the CPU `place` is
    only found where the peak is above `floor`, the activation a unit has to exceed to enter its list of top examples.
    """

    layers: Mapping[str, Layer]
    rows: int
    batch: int
    device: torch.device
    columns: dict[str, slice] = field(init=False)
    peak: Tensor = field(init=False)  # (rows, T) float32
    total: Tensor = field(init=False)
    place: Tensor = field(init=False)  # (rows, T) int32
    floor: NDArray[np.float32] = field(init=False)  # (T,)
    step: int = 0  # which batch of the block is running

    def __post_init__(self) -> None:
        ends = np.cumsum([layer.units for layer in self.layers.values()]).tolist()
        starts = [0, *ends[:-1]]
        self.columns = {path: slice(a, b) for path, a, b in zip(self.layers, starts, ends, strict=True)}
        shape = (self.rows, ends[-1])
        self.peak, self.total = (torch.zeros(shape, device=self.device) for _ in range(2))
        self.place = torch.zeros(shape, dtype=torch.int32, device=self.device)
        self.floor = np.full(ends[-1], -np.inf, np.float32)

    def readers(self) -> dict[str, Reader]:
        """A reader for every layer, to be given to a `Probe`."""
        return {path: self._reader(path, layer) for path, layer in self.layers.items()}

    def _reader(self, path: str, layer: Layer) -> Reader:
        """All that does not depend on the map is made here, once: there are many layers and small batches."""
        columns, batch = self.columns[path], self.batch
        steps = range(0, self.rows, batch)
        targets = [tuple(t[r : r + batch, columns] for t in (self.peak, self.total, self.place)) for r in steps]
        read = _read_neurons if not layer.positions else _read_here if self.device.type == "cpu" else _read_there
        floor = self.floor[columns]
        arrays = [(p.numpy(), q.numpy()) for p, _, q in targets] if self.device.type == "cpu" else [(None, None)] * len(targets)

        def reader(output: Tensor) -> None:
            if output.shape[0] != batch:
                raise CannotRun(f"layer {path!r} puts out {output.shape[0]} rows for {batch} inputs, so it cannot be surveyed")
            values = output if output.dtype is torch.float32 else output.float()
            step = self.step
            read(layer, values, targets[step], arrays[step], floor)

        return reader


Targets = tuple[Tensor, ...]
Arrays = tuple[Any, Any]
_Read = Callable[[Layer, Tensor, Targets, Arrays, NDArray[np.float32]], None]


def _read_neurons(layer: Layer, output: Tensor, targets: Targets, arrays: Arrays, floor: NDArray[np.float32]) -> None:
    values = layer.units_first(output)
    targets[0].copy_(values)
    targets[1].copy_(values)


def _read_there(layer: Layer, output: Tensor, targets: Targets, arrays: Arrays, floor: NDArray[np.float32]) -> None:
    """On an accelerator: places of everything, since asking which are needed would wait for the device."""
    flat = layer.units_first(output).flatten(2)
    peak, place = flat.max(2)
    targets[0].copy_(peak)
    targets[1].copy_(flat.sum(2))
    targets[2].copy_(place)


def _read_here(layer: Layer, output: Tensor, targets: Targets, arrays: Arrays, floor: NDArray[np.float32]) -> None:
    """On the CPU: two passes that read at the cache's speed; places only of the peaks above `floor`."""
    peak, total, _ = targets
    units = layer.units_first(output)
    split = units.movedim(1, -1)
    if not split.is_contiguous():  # (N, C, positions) in memory, or something stranger
        flat = units.flatten(2)
        torch.amax(flat, 2, out=peak)
        torch.sum(flat, 2, out=total)
        flat, stage = flat.transpose(1, 2), None
    else:
        flat = split.flatten(1, -2)
        torch.sum(flat, 1, out=total)
        stage = None if split.ndim < 4 or (flat.shape[1] <= _SMALL and flat.shape[2] % _VECTOR == 0) else split.flatten(1, -3).amax(1)
        torch.amax(flat if stage is None else stage, 1, out=peak)
    found = arrays[0] > floor
    if found.any():
        rows, columns = found.nonzero()
        arrays[1][rows, columns] = _places(
            flat.numpy(), None if stage is None else stage.numpy(), arrays[0][rows, columns], rows, columns
        )


def _places(flat: Any, stage: Any, peaks: Any, rows: Any, columns: Any) -> NDArray[np.intp]:
    """First flat positions of the peaks of some (row, unit) pairs in a map (N, P, C).

    `stage` (N, B, C), the maxima over all but the last axis of the map, tells which of B strips holds the peak, so that P / B numbers
    are looked at instead of P. Where two strips hold it, the whole map decides which comes first.
    """
    if stage is None:
        return _first(flat, peaks, rows, columns)
    hits = stage[rows, :, columns] == peaks[:, None]
    strip, width = hits.argmax(1), stage.shape[1]
    strips = flat.reshape(len(flat), -1, width, flat.shape[2])
    places = (strips[rows, :, strip, columns] == peaks[:, None]).argmax(1) * width + strip
    tied = hits.sum(1) > 1
    if tied.any():
        places[tied] = _first(flat, peaks[tied], rows[tied], columns[tied])
    return places  # type: ignore[no-any-return]


def _first(flat: Any, peaks: Any, rows: Any, columns: Any) -> NDArray[np.intp]:
    places = np.empty(len(rows), np.intp)
    step = max(1, _AT_ONCE * 4096 // math.prod(flat.shape[1:2]))
    for a in range(0, len(rows), step):
        part = slice(a, a + step)
        places[part] = (flat[rows[part], :, columns[part]] == peaks[part, None]).argmax(1)
    return places

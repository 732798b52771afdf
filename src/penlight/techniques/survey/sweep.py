"""One pass of inputs through the network, read by a `Block` and remembered by a `Tally`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.inputs import Batch, Data, batches
from penlight.models import Layer, Model, Probe
from penlight.models.packing import packed
from penlight.techniques.survey.block import Block
from penlight.techniques.survey.scores import Scores
from penlight.techniques.survey.sums import input_sums
from penlight.techniques.survey.tally import Tally

ROWS = 32  # inputs between two merges
_CACHE = 20e6  # bytes of the largest map of a batch, so that it is read while it still lies in the cache
_FEWEST, _MOST = 2, 64
_ACCELERATOR = 64


class Sweep:
    """Feeds inputs to `network` and tallies what `layers` put out.

    Matrix products round a row differently in different places of a batch. Therefore the network always gets whole batches of one
    size in which an input's place is its index modulo that size; places left over repeat another input. So a top list depends on
    neither where a shard begins nor which inputs could not be read.
    """

    def __init__(
        self, model: Model, network: nn.Module, layers: Mapping[str, Layer], top: int, batch: int = 0, classes: int = 0,
        bottom: int = 0, scores: Scores | None = None,
    ) -> None:  # fmt: skip
        self.batch = batch or fitting(layers, model.device)
        self._model, self._network = model, packed(network, model.example())
        rows = -(-max(ROWS, self.batch) // self.batch) * self.batch
        with torch.inference_mode():
            sums = input_sums(self._network, layers, self.batch)
            self.block = Block(layers, rows, self.batch, model.device, bool(bottom), sums)
            self._readers, self._given = self.block.readers(), {path: one.note for path, one in sums.items()}
        self.tally = Tally(self.block.peak.shape[1], top, classes, bottom, scores)

    @property
    def rows(self) -> int:
        """Most inputs `feed` takes at once."""
        return self.block.rows

    def feed(self, inputs: NDArray[Any], index: Sequence[int], classes: Sequence[int | None]) -> None:
        """Read inputs (n, *shape), uint8 or in [0, 1], whose rising indices lie between two multiples of `rows`."""
        block = self.block
        slots = np.asarray(index) % self.rows
        with torch.inference_mode(), Probe(self._network, self._readers, given=self._given) as probe:
            for block.step in np.unique(slots // self.batch).tolist():
                here = slots // self.batch == block.step
                probe(
                    self._model.tensor(_placed(inputs[here], slots[here] % self.batch, self.batch), channels_last=True)
                )
            self.tally.add(
                _chosen(block.peak, slots), _chosen(block.total, slots), _chosen(block.place, slots), index, classes
            )
        block.floor[:] = self.tally.floor
        if block.ceiling is not None:
            block.ceiling[:] = self.tally.ceiling


def chunks(data: Data, rows: int, start: int, stop: int) -> Iterator[Batch]:
    """Batches of inputs as `Sweep.feed` takes them."""
    middle = min(stop, -(-start // rows) * rows)
    return chain(batches(data, rows, start, middle), batches(data, rows, middle, stop))


def fitting(layers: Mapping[str, Layer], device: torch.device) -> int:
    """A batch size with which maps are read from the cache; it depends on nothing but the layers."""
    if device.type != "cpu":
        return _ACCELERATOR
    largest = max(4 * int(np.prod(layer.shape)) for layer in layers.values())
    return int(2 ** np.floor(np.log2(np.clip(_CACHE / largest, _FEWEST, _MOST))))


def _placed(inputs: NDArray[Any], slots: NDArray[np.intp], batch: int) -> NDArray[Any]:
    """A batch with the inputs at `slots` and copies of the first one elsewhere."""
    if len(inputs) == batch:
        return inputs
    whole = np.repeat(inputs[:1], batch, 0)
    whole[slots] = inputs
    return whole


def _chosen(values: Tensor, slots: NDArray[np.intp]) -> Tensor:
    """Rows of a block on the CPU, without a copy where they lie side by side."""
    first, last = int(slots[0]), int(slots[-1])
    whole = values[first : last + 1]
    return (whole if len(slots) == len(whole) else whole[torch.from_numpy(slots - first)]).cpu()

"""What a windowed tensor is made of: blocks of boxes of one size, whose values are there, or are made when they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from penlight.techniques.explain.windowed_boxes import Axis, Places

_TURN = 2**19  # values that are computed at once of what waited
Positions = slice | Places  # of samples in a block
Make = Callable[[Positions, Tensor | None], Tensor]


class GiveUp(BaseException):
    """This network cannot be run incrementally; a BaseException so that no `except Exception` of the network swallows it."""


class Changed(GiveUp):
    """What was to be read later has been written into: in this network nothing may wait."""


class Block:
    """Boxes of one size (h, w) of the samples `who` of the batch, and their values (n, C, h, w), channels-last.

    `version` changes when an operator writes into the values; torch's own counter stands still below its dispatcher.
    """

    version = 0

    def __init__(self, who: Places, values: Tensor) -> None:
        self.who, self.size, self._values = who, (values.shape[2], values.shape[3]), values

    @property
    def values(self) -> Tensor:
        """All of them."""
        return self._values

    @property
    def cells(self) -> int:
        """Cells of all boxes."""
        return len(self.who) * self.size[0] * self.size[1]

    def part(self, at: Positions, into: Tensor | None = None) -> Tensor:
        """The values of some of the samples; on request in the memory of `into` (cells, C)."""
        if isinstance(at, slice):
            return self._values[at]
        last = self._values.permute(0, 2, 3, 1)  # whole rows are copied several times as fast as by indexing
        return last.index_select(0, torch.from_numpy(at)).permute(0, 3, 1, 2)

    def reader(self) -> Make:
        """`part`, to be called later; raises `Changed` if an operator writes into the values before."""
        version = self.version

        def read(at: Positions, into: Tensor | None) -> Tensor:
            if self.version != version:
                raise Changed("an operator writes into a map that is read later")
            return self.part(at, into)

        return read

    def turns(self) -> Iterable[tuple[slice, Tensor]]:
        """Stretches of the samples with their values: what is computed only now in parts that a cache holds."""
        yield slice(0, len(self.who)), self.values


class Later(Block):
    """A block of which only one operator will ask, once: what is wide for a moment never leaves the processor's cache.

    `make` makes the values of some of the samples, anew each time; best of `each` at a time, from one of every `each` on.
    """

    def __init__(self, who: Places, size: tuple[int, int], make: Make, each: int) -> None:
        self.who, self.size, self.make, self.each = who, size, make, each

    @staticmethod
    def turn(size: tuple[int, int], channels: int) -> int:
        """How many boxes of `channels` a cache holds."""
        return max(1, _TURN // (size[0] * size[1] * channels))

    @property
    def values(self) -> Tensor:
        return self.make(slice(0, len(self.who)), None)

    def part(self, at: Positions, into: Tensor | None = None) -> Tensor:
        return self.make(at, into)

    def turns(self) -> Iterable[tuple[slice, Tensor]]:
        for first in range(0, len(self.who), self.each):
            at = slice(first, min(first + self.each, len(self.who)))
            yield at, self.part(at)

    def then(self, change: Callable[[Tensor], Tensor]) -> Later:
        """The block with every cell changed; `change` may write into what it is given."""
        make = self.make
        return Later(self.who, self.size, lambda at, into: change(make(at, into)), self.each)


@dataclass
class State:
    """What a windowed tensor holds; views of the same values share it, so that an in-place operator is seen by all of them.

    `y` and `x` say where the batch's boxes lie; `call` is the number of the operator that made it; `spent` says that its only reader,
    as far as the first pass tells, has written into its values.
    """

    clean: Tensor
    y: Axis
    x: Axis
    blocks: list[Block]
    sliced: bool = False  # another tensor looks at some of the channels
    full: Tensor | None = None
    version: int = 0
    call: int = -1
    spent: bool = False

    @property
    def count(self) -> int:
        """Members of the batch."""
        return len(self.y.low)


class Reader:
    """What a map holds as things stand, to be read now or later.

    `values` reads each of its `blocks`; `block` and `position` (N,) say where every sample is.
    """

    def __init__(self, state: State) -> None:
        self.clean, self.y, self.x, self.blocks = state.clean, state.y, state.x, list(state.blocks)
        self.values = [block.reader() for block in self.blocks]
        self.block, self.position = np.empty(state.count, np.int64), np.empty(state.count, np.int64)
        for n, block in enumerate(self.blocks):
            self.block[block.who], self.position[block.who] = n, np.arange(len(block.who))

    def order(self, who: Places) -> Places:
        """What puts the samples in the order in which they lie in the blocks."""
        return np.lexsort((self.position[who], self.block[who]))

    def run(self, who: Places) -> tuple[int, int] | None:
        """(block, position of the first) if the samples are a stretch of one block."""
        block, position = self.block[who], self.position[who]
        if block[0] != block[-1] or position[-1] - position[0] != len(who) - 1:
            return None
        one = (block == block[0]).all() and (position == np.arange(position[0], position[0] + len(who))).all()
        return (int(block[0]), int(position[0])) if one else None

    def parts(self, who: Places) -> Iterable[tuple[int, Positions]]:
        """The blocks that hold samples that are in order, and where."""
        block, position = self.block[who], self.position[who]
        ends = [len(who)] if block[0] == block[-1] else [*(np.flatnonzero(np.diff(block)) + 1).tolist(), len(who)]
        for start, end in zip([0, *ends], ends, strict=False):
            first, last = int(position[start]), int(position[end - 1])
            together = last - first == end - start - 1
            yield int(block[start]), slice(first, last + 1) if together else position[start:end]


def channels_last(values: Tensor) -> Tensor:
    """(N, C, H, W) with C fastest in memory, copied only if it is not so yet."""
    last = values.permute(0, 2, 3, 1)
    return values if last.is_contiguous() else last.contiguous().permute(0, 3, 1, 2)

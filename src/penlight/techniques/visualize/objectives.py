"""What is wanted of the network: a number a picture, always to be made as large as possible.

An objective gets a layer's output as (N, units, *positions) and the rows of the batch it belongs to, and returns (N,).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], Tensor]
"""(output (N, units, *positions), rows (N,) of the whole batch that these are) -> (N,)"""


@dataclass(frozen=True, eq=False)
class UnitAt:
    """One unit at one position for every picture: what a single neuron answers.

    `index` (N,) holds the units; `position` (N, P) where in the map, in whole numbers.
    """

    index: Tensor
    position: Tensor

    def __call__(self, output: Tensor, rows: Tensor) -> Tensor:
        where = self.position[rows]
        if where.shape[1] and bool((where == where[0]).all()):
            # one position for all: a slice, whose gradient is cheaper than that of a scattered read
            at = (slice(None), slice(None), *where[0].tolist())
            return output[at].gather(1, self.index[rows, None])[:, 0]
        return output[(torch.arange(len(rows), device=output.device), self.index[rows], *where.unbind(1))]


@dataclass(frozen=True)
class Negative:
    """The least of what `objective` wants the most of."""

    objective: Objective

    def __call__(self, output: Tensor, rows: Tensor) -> Tensor:
        return -self.objective(output, rows)


def centre(positions: Sequence[int]) -> tuple[int, ...]:
    """The middle of a map; where the number is even, the later of the two, as Lucid has it."""
    return tuple(n // 2 for n in positions)

"""What a picture pays for: every penalty is ≥ 0 and is subtracted in one place, the engine.

A penalty maps pictures (N, C, H, W) in [0, 1] to (N,). The engine scales the objective's gradient to a root mean square of 1 a pixel,
so a weight means the same for every unit of every network; penalties therefore sum over pixels and do not divide by their number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Penalty = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TotalVariation:
    """`weight` × Σ |difference of neighbours|, rounded off within ±`soft` so that flat places have a gradient of zero."""

    weight: float
    soft: float = 0.02

    def __call__(self, pictures: Tensor) -> Tensor:
        total = pictures.new_zeros(len(pictures))
        for axis in (2, 3) if self.weight else ():
            if pictures.shape[axis] > 1:
                steps = pictures.diff(dim=axis)
                total = total + ((steps.square() + self.soft**2).sqrt() - self.soft).flatten(1).sum(1)
        return self.weight * total


@dataclass(frozen=True, eq=False)
class Distance:
    """`weight` × Σ (value − neutral)²: what nothing asks for stays neutral, and a linear unit's picture is proportional to its weights."""

    weight: float
    neutral: Tensor  # (C, 1, 1)

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.weight * (pictures - self.neutral).square().flatten(1).sum(1)

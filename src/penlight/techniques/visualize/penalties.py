"""What a picture pays for: every penalty is ≥ 0 and is subtracted in one place, the engine.

A penalty maps pictures (N, C, H, W) in [0, 1] to (N,). The engine scales the objective's gradient to a root mean square of 1 a pixel,
so a weight means the same for every unit of every network; penalties therefore sum over pixels and do not divide by their number.
Those of the programs that did divide (`LpNorm`, `SquaredVariation`, `AbsoluteVariation`) are as published, on their scale of 0 to 255;
they divide by `count`, or, where that is 0, by the picture's own number of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Penalty = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TotalVariation:
    """`weight` × Σ |difference of neighbours|, rounded off within ±`soft`, if that is not 0, so that flat places have a
    gradient of zero."""

    weight: float
    soft: float = 0.02

    def __call__(self, pictures: Tensor) -> Tensor:
        total = pictures.new_zeros(len(pictures))
        for axis in (2, 3) if self.weight else ():
            if pictures.shape[axis] > 1:
                steps = pictures.diff(dim=axis)
                sizes = (steps.square() + self.soft**2).sqrt() - self.soft if self.soft else steps.abs()
                total = total + sizes.flatten(1).sum(1)
        return self.weight * total


@dataclass(frozen=True, eq=False)
class Distance:
    """`weight` × Σ (value − neutral)²: what nothing asks for stays neutral, and a linear unit's picture is proportional to its weights."""

    weight: float
    neutral: Tensor  # (C, 1, 1)

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.weight * (pictures - self.neutral).square().flatten(1).sum(1)


_TINY = 1e-30


@dataclass(frozen=True)
class LpNorm:
    """`weight` × (Σ |x|^`p`)^(1/`p`) / N of the N values x = 255 · (picture − `zero`), as keras-vis has it.

    With `mean` it is divided by N^(1/`p`) instead, which makes it a mean, as in tf-keras-vis. `p` may be infinite: the largest |x|.
    """

    weight: float
    p: float = 6.0
    mean: bool = False
    zero: float = 0.0
    count: int = 0

    def __call__(self, pictures: Tensor) -> Tensor:
        values = (255 * (pictures - self.zero)).flatten(1).abs()
        count = self.count or values.shape[1]
        if math.isinf(self.p):
            return self.weight * values.amax(1) / (1 if self.mean else count)
        largest = values.detach().amax(1, keepdim=True).clamp(min=_TINY)  # keeps high powers within floats
        total = ((values / largest) ** self.p).sum(1).clamp(min=_TINY) ** (1 / self.p) * largest[:, 0]
        return self.weight * total / (count ** (1 / self.p) if self.mean else count)


@dataclass(frozen=True)
class SquaredVariation:
    """`weight` × Σ (dh² + dw²)^(`beta`/2) / N of the N values on the scale of 0 to 255 (keras-vis; Mahendran & Vedaldi 2016).

    dh and dw lead from a pixel to the next below and to the right; the last row and column, which lack one of them, are left out.
    """

    weight: float
    beta: float = 2.0
    count: int = 0

    def __call__(self, pictures: Tensor) -> Tensor:
        values = 255 * pictures
        down, right = (int(n > 1) for n in pictures.shape[2:])
        height, width = pictures.shape[2] - down, pictures.shape[3] - right
        here = values[..., :height, :width]
        squares = (values[..., down:, :width] - here).square() + (values[..., :height, right:] - here).square()
        if self.beta != 2:
            squares = squares.clamp(min=1e-8) ** (self.beta / 2)  # a flat place has no slope, not an infinite one
        return self.weight * squares.flatten(1).sum(1) / (self.count or values[0].numel())


@dataclass(frozen=True)
class AbsoluteVariation:
    """`weight` × (Σ |dh| + Σ |dw|) / N of the N values on the scale of 0 to 255, along both axes by themselves (tf-keras-vis)."""

    weight: float
    count: int = 0

    def __call__(self, pictures: Tensor) -> Tensor:
        values = 255 * pictures
        total = sum((values.diff(dim=axis).abs().flatten(1).sum(1) for axis in (2, 3)), values.new_zeros(len(values)))
        return self.weight * total / (self.count or values[0].numel())


@dataclass(frozen=True)
class Absolute:
    """`weight` × Σ |value − `toward`| (Lucid, objectives.L1)."""

    weight: float
    toward: float = 0.5

    def __call__(self, pictures: Tensor) -> Tensor:
        return self.weight * (pictures - self.toward).abs().flatten(1).sum(1)


@dataclass(frozen=True)
class Roughness:
    """`weight` × ½ Σ (value − blurred)², the blurred picture taken as given: following it by `weight` is blurring so much a step.

    The blur weighs a pixel 1 and its eight neighbours ½ each (Lucid, objectives.blur_input_each_step).
    """

    weight: float

    def __call__(self, pictures: Tensor) -> Tensor:
        channels = pictures.shape[1]
        kernel = torch.full((channels, 1, 3, 3), 0.5, device=pictures.device)
        kernel[..., 1, 1] = 1.0
        with torch.no_grad():
            weights = F.conv2d(torch.ones_like(pictures[:1]), kernel, padding=1, groups=channels)
            blurred = F.conv2d(pictures, kernel, padding=1, groups=channels) / weights
        return self.weight * 0.5 * (pictures - blurred).square().flatten(1).sum(1)

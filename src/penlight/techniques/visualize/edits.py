"""Regularizers that change the values instead of costing something: what is done to them before or after a step.

An edit maps values (N, C, H, W), 255ths around the mean as `Plain` has them, to new ones, a picture at a time; `moment` says which
step it is and what the gradient was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from penlight.techniques.visualize.schedule import Schedule


@dataclass(frozen=True, eq=False)
class Moment:
    """Step number `step` of the `of` of a phase; `gradient` as it was before the step (before it, zeros); a stream for chance."""

    step: int
    of: int
    gradient: Tensor
    stream: torch.Generator


Edit = Callable[[Tensor, Moment], Tensor]


@dataclass(frozen=True, eq=False)
class Clip:
    """Back into [0, 255] with the mean added: `mean` (C, 1, 1) in [0, 1]."""

    mean: Tensor

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        low = -255 * self.mean
        return torch.maximum(torch.minimum(values, low + 255), low)


@dataclass(frozen=True)
class Decay:
    """x ← (1 − `share`) x."""

    share: float

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        return values * (1 - self.share)


@dataclass(frozen=True)
class Blur:
    """A Gaussian of `width` pixels (a schedule over the steps) on every channel, at steps that `every` divides."""

    width: Schedule
    every: int = 1

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        return values if moment.step % self.every else gaussian(values, self.width(moment.step))


@dataclass(frozen=True)
class SmallValues:
    """Values whose size is below the picture's percentile `percent` become 0 (DeepVis, small_val)."""

    percent: float

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        return values.masked_fill(values.abs() < _percentile(values.abs(), self.percent), 0.0)


@dataclass(frozen=True)
class SmallNorm:
    """Pixels whose norm over the channels is below the picture's percentile `percent` become 0 (DeepVis, small_norm)."""

    percent: float

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        norm = values.norm(dim=1, keepdim=True)
        return values.masked_fill(norm < _percentile(norm, self.percent), 0.0)


@dataclass(frozen=True)
class SmallContribution:
    """Pixels that do little for the objective become 0: Σ_c −g·x below the percentile `percent`, by size with `absolute`.

    As in DeepVis (px_benefit, px_abs_benefit) g is the gradient before the step and x the value after it.
    """

    percent: float
    absolute: bool = True

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        benefit = (moment.gradient * -values).sum(1, keepdim=True)
        benefit = benefit.abs() if self.absolute else benefit
        return values.masked_fill(benefit < _percentile(benefit, self.percent), 0.0)


@dataclass(frozen=True)
class Roll:
    """Moved round the edges by up to `most`, a share of the side below 1 and pixels from 1 on, and left there (keras-vis' Jitter)."""

    most: float

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        sides = values.shape[2:]
        most = [int(self.most * n) if self.most < 1 else min(int(self.most), n - 1) for n in sides]
        by = [int(torch.randint(-m, m + 1, (1,), generator=moment.stream)) for m in most]
        return values.roll(by, (2, 3))


@dataclass(frozen=True)
class Turn:
    """Turned by up to `degrees` either way and left there, bilinear, mirrored at the edges (tf-keras-vis' Rotate2D)."""

    degrees: float

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        angle = math.radians(self.degrees) * (2 * float(torch.rand((), generator=moment.stream)) - 1)
        cos, sin = math.cos(angle), math.sin(angle)
        ratio = (
            values.shape[-2] / values.shape[-1]
        )  # grid_sample measures in halves of the side, along each axis by itself
        theta = torch.tensor([[[cos, -sin * ratio, 0.0], [sin / ratio, cos, 0.0]]], device=values.device)
        grid = F.affine_grid(theta, [1, 1, *values.shape[2:]], align_corners=False).expand(len(values), -1, -1, -1)
        return F.grid_sample(values, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Norm:
    """Every picture scaled to length `length` × √(its number of values), where it is not 0: Erhan et al.'s ‖x‖ = ρ."""

    length: float

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        size = values.flatten(1).square().mean(1).sqrt().reshape(-1, 1, 1, 1)
        return torch.where(size > 0, values * (self.length / size.clamp(min=1e-30)), values)


def gaussian(values: Tensor, width: float) -> Tensor:
    """(N, C, H, W) blurred with a Gaussian of standard deviation `width` pixels, mirrored at the edges as SciPy does by default."""
    if width <= 0:
        return values
    channels = values.shape[1]
    for axis in (2, 3):
        radius = min(int(4 * width + 0.5), values.shape[axis])
        at = torch.arange(-radius, radius + 1, device=values.device, dtype=values.dtype)
        kernel = torch.exp(-0.5 * (at / width) ** 2)
        shape, pad = ((-1, 1), (0, 0, radius, radius)) if axis == 2 else ((1, -1), (radius, radius, 0, 0))
        weight = (kernel / kernel.sum()).reshape(1, 1, *shape).expand(channels, -1, -1, -1)
        values = F.conv2d(_mirror(values, pad), weight, groups=channels)
    return values


def _mirror(values: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Padded by mirroring with the edge repeated (SciPy's "reflect"): torch's own leaves the edge out."""
    left, right, top, bottom = pad
    if top or bottom:
        values = torch.cat([values[:, :, :top].flip(2), values, values[:, :, values.shape[2] - bottom :].flip(2)], 2)
    if left or right:
        values = torch.cat([values[..., :left].flip(3), values, values[..., values.shape[3] - right :].flip(3)], 3)
    return values


def _percentile(sizes: Tensor, percent: float) -> Tensor:
    """(N, 1, 1, 1): each picture's percentile, interpolated as NumPy does."""
    ordered = sizes.flatten(1).sort(1).values
    at = percent / 100 * (ordered.shape[1] - 1)
    low = math.floor(at)
    high = min(low + 1, ordered.shape[1] - 1)
    found = ordered[:, low] + (ordered[:, high] - ordered[:, low]) * (at - low)
    return found.reshape(-1, 1, 1, 1)

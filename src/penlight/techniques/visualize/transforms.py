"""Robustness transforms: what is done to the pictures before each look, so that no picture relies on single pixels.

A transform takes normalised pictures (N, C, H, W), 0 being the mean, and a step's random stream, the same for the whole batch, so that
a picture does not depend on the company it is optimised in. It returns what the network is to see.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Transform = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Window:
    """A random window of the picture, resized to `size`: its side `low` to `high` of the picture's, its centre off by up to `shift`
    of the picture's side either way, turned by up to `rotation` degrees either way. Outside the picture everything is neutral."""

    size: tuple[int, int]
    low: float = 1.0
    high: float = 1.0
    shift: float = 0.0
    rotation: float = 0.0

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        side, down, right, turn = torch.rand(4, generator=stream).tolist()
        scale = self.low + (self.high - self.low) * side
        angle = math.radians(self.rotation * (2 * turn - 1))
        # grid_sample measures in halves of the picture's side, along each axis by itself
        ratio = pictures.shape[-2] / pictures.shape[-1]
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        x, y = 2 * self.shift * (2 * right - 1), 2 * self.shift * (2 * down - 1)
        theta = torch.tensor([[[cos, -sin * ratio, x], [sin / ratio, cos, y]]], device=pictures.device)
        grid = F.affine_grid(theta, [1, 1, *self.size], align_corners=False)
        return F.grid_sample(
            pictures, grid.expand(len(pictures), -1, -1, -1), padding_mode="zeros", align_corners=False
        )


@dataclass(frozen=True)
class Shift:
    """A random cut-out of `size`: the picture is larger by a margin, and the network sees it moved by whole pixels."""

    size: tuple[int, int]

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        height, width = self.size
        down, right = torch.rand(2, generator=stream).tolist()
        top = int(down * (pictures.shape[-2] - height + 1))
        left = int(right * (pictures.shape[-1] - width + 1))
        return pictures[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class Noise:
    """Gaussian noise with standard deviation `sigma`, in units of the normalised input."""

    sigma: float

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        noise = torch.randn(pictures.shape[1:], generator=stream).to(pictures.device)
        return pictures + self.sigma * noise


@dataclass(frozen=True)
class Chain:
    """One transform after the other."""

    parts: tuple[Transform, ...]

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        for part in self.parts:
            pictures = part(pictures, stream)
        return pictures

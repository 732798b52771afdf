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

from penlight.techniques.visualize.parameterization import resized

Transform = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Window:
    """A random window of the picture, resized to `size`: its side `low` to `high` of the picture's, drawn evenly on a logarithmic scale,
    its centre off by up to `shift` of the picture's side either way, turned by up to `rotation` degrees either way, and with `flip`
    mirrored every other time. Outside the picture everything is neutral."""

    size: tuple[int, int]
    low: float = 1.0
    high: float = 1.0
    shift: float = 0.0
    rotation: float = 0.0
    flip: bool = False

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        side, down, right, turn, mirror = torch.rand(5, generator=stream).tolist()
        scale = self.low * (self.high / self.low) ** side  # as often twice as large as half as large
        angle = math.radians(self.rotation * (2 * turn - 1))
        # grid_sample measures in halves of the picture's side, along each axis by itself
        ratio = pictures.shape[-2] / pictures.shape[-1]
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        x, y = 2 * self.shift * (2 * right - 1), 2 * self.shift * (2 * down - 1)
        way = -1.0 if self.flip and mirror < 0.5 else 1.0
        theta = torch.tensor([[[way * cos, -sin * ratio, x], [way * sin / ratio, cos, y]]], device=pictures.device)
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
class Jitter:
    """Moved by up to `most` whole pixels either way along each side, what leaves at one edge coming back at the other (DeepDream)."""

    most: int

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        by = torch.randint(-self.most, self.most + 1, (2,), generator=stream).tolist()
        return pictures.roll(by, (2, 3))


@dataclass(frozen=True)
class Noise:
    """Gaussian noise with standard deviation `sigma`, in units of the normalised input."""

    sigma: float

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        noise = torch.randn(pictures.shape[1:], generator=stream).to(pictures.device)
        return pictures + self.sigma * noise


@dataclass(frozen=True)
class Uniform:
    """Noise spread evenly between −`most` and `most`, in units of the normalised input."""

    most: float

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        noise = torch.rand(pictures.shape[1:], generator=stream).to(pictures.device)
        return pictures + self.most * (2 * noise - 1)


@dataclass(frozen=True, eq=False)
class Pad:
    """A border of `width` pixels all round, of the colour `value` (C, 1, 1), normalised."""

    width: int
    value: Tensor

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        return F.pad(pictures - self.value, (self.width,) * 4) + self.value


@dataclass(frozen=True)
class Trim:
    """A random cut-out whose sides are shorter by `pixels` (Lucid's jitter)."""

    pixels: int

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        spare = [min(self.pixels, n - 1) for n in pictures.shape[2:]]
        top, left = (int(torch.randint(0, n + 1, (1,), generator=stream)) for n in spare)
        height, width = (n - less for n, less in zip(pictures.shape[2:], spare, strict=True))
        return pictures[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class Rescale:
    """Larger or smaller by one of `factors`, by chance; bilinear, sizes rounded down."""

    factors: tuple[float, ...]

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        factor = self.factors[int(torch.randint(0, len(self.factors), (1,), generator=stream))]
        size = [max(1, int(factor * n)) for n in pictures.shape[2:]]
        return F.interpolate(pictures, size, mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class Turn:
    """Turned by one of `degrees`, by chance, nearest pixels; what comes in at the corners is `value` (C, 1, 1), normalised."""

    degrees: tuple[float, ...]
    value: Tensor

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        angle = math.radians(self.degrees[int(torch.randint(0, len(self.degrees), (1,), generator=stream))])
        if angle == 0:
            return pictures
        ratio = pictures.shape[-2] / pictures.shape[-1]
        rows = [[math.cos(angle), -math.sin(angle) * ratio, 0.0], [math.sin(angle) / ratio, math.cos(angle), 0.0]]
        theta = torch.tensor([rows], device=pictures.device)
        grid = F.affine_grid(theta, [1, 1, *pictures.shape[2:]], align_corners=False)
        moved = F.grid_sample(
            pictures - self.value, grid.expand(len(pictures), -1, -1, -1), mode="nearest", align_corners=False
        )
        return moved + self.value


@dataclass(frozen=True)
class Fit:
    """The whole picture at another size, for networks that take one size only."""

    size: tuple[int, int]

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        return resized(pictures, self.size)


@dataclass(frozen=True)
class Box:
    """A random box of the picture, resized to `size`; all in shares of the sides, both sides alike.

    Its side is normal around `side` with `spread`, kept within [`low`, 1]; its centre normal around the middle with `off`. Outside the
    picture is 0, the mean colour. As TensorFlow's crop_and_resize: the box's first and last pixels are sampled exactly (MACO).
    """

    size: tuple[int, int]
    side: float
    spread: float = 0.05
    off: float = 0.15
    low: float = 0.05

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        right, down, chance = torch.randn(3, generator=stream).tolist()
        side = min(max(self.side + self.spread * chance, self.low), 1.0)
        y, x = (
            torch.linspace(2 * self.off * move - side, 2 * self.off * move + side, n, device=pictures.device)
            if n > 1
            else torch.full((1,), 2 * self.off * move, device=pictures.device)
            for move, n in zip((down, right), self.size, strict=True)
        )
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)
        return F.grid_sample(pictures, grid.expand(len(pictures), -1, -1, -1), padding_mode="zeros", align_corners=True)


@dataclass(frozen=True)
class Chain:
    """One transform after the other."""

    parts: tuple[Transform, ...]

    def __call__(self, pictures: Tensor, stream: torch.Generator) -> Tensor:
        for part in self.parts:
            pictures = part(pictures, stream)
        return pictures


UNCHANGED = Chain(())

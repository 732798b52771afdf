"""Make training pictures hard: warps and typographic effects on whole batches of glyphs.

Glyphs come in at 56x56, are warped onto a 48x48 canvas, dressed (outline, shadow, box, texture ...),
cropped to their ink again and fitted into 28x28, which is what a font designer and a cropping
program between them would have done. Every function takes and gives float tensors in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CANVAS = 48
SIDE = 28


def _uniform(n: int, low: float, high: float, like: Tensor) -> Tensor:
    return torch.rand(n, device=like.device) * (high - low) + low


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _base_grid(side: int, like: Tensor) -> Tensor:
    """(1, side, side, 2) of x, y in [-1, 1], pixel centres."""
    ticks = (torch.arange(side, device=like.device, dtype=torch.float32) * 2 + 1) / side - 1
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    return torch.stack((x, y), -1).unsqueeze(0)


def smooth_noise(n: int, channels: int, cells: int, side: int, like: Tensor) -> Tensor:
    """Gaussian noise (n, channels, side, side) interpolated from cells x cells values."""
    coarse = torch.randn(n, channels, cells, cells, device=like.device)
    identity = torch.eye(cells, device=like.device).unsqueeze(0)
    spread = F.interpolate(identity, size=side, mode="linear", align_corners=False)[0]
    return spread.T @ coarse @ spread


def dilate(x: Tensor, size: int) -> Tensor:
    """Grey dilation by a size x size square, size odd; what lies outside the frame does not count."""
    for axis in (2, 3):
        length = x.shape[axis] - 1
        for _ in range(size // 2):  # maxima of shifted copies: far faster on a CPU than max-pooling
            wide = x.clone()
            low, high = wide.narrow(axis, 0, length), wide.narrow(axis, 1, length)
            torch.maximum(low, x.narrow(axis, 1, length), out=low)
            torch.maximum(high, x.narrow(axis, 0, length), out=high)
            x = wide
    return x


def erode(x: Tensor, size: int) -> Tensor:
    """Grey erosion by a size x size square, size odd; what lies outside the frame does not count."""
    return -dilate(-x, size)


def _size(*choices: int) -> int:
    return choices[int(torch.randint(len(choices), ()))]


def warp(x: Tensor) -> Tensor:
    """Random rotation, shear, unequal scale and elastic bend: (n, 1, 56, 56) -> (n, 1, 48, 48)."""
    n = len(x)
    turn = _uniform(n, -1, 1, x) ** 3 * math.radians(20)
    shear = _uniform(n, -1, 1, x) * _uniform(n, 0, 0.4, x)
    stretch = torch.exp(_uniform(n, -1, 1, x) ** 3 * 0.5)
    zoom = _uniform(n, 1.25, 1.4, x)
    cos, sin = torch.cos(turn), torch.sin(turn)
    row_x = torch.stack((zoom * stretch * cos, zoom * (shear - sin)), -1)
    row_y = torch.stack((zoom * sin, zoom / stretch * cos), -1)
    matrix = torch.stack((row_x, row_y), 1)
    grid = torch.einsum("nij,bhwj->nhwi", matrix, _base_grid(CANVAS, x).expand(1, -1, -1, -1))
    strength = _uniform(n, 0, 1, x) ** 2 * 0.09
    bend = smooth_noise(n, 2, _size(4, 5, 7), CANVAS, x) * _column(strength)
    return F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), padding_mode="zeros", align_corners=False)


def bolder(x: Tensor) -> Tensor:
    """Heavier strokes."""
    return dilate(x, _size(3, 3, 5))


def lighter(x: Tensor) -> Tensor:
    """Thinner strokes, kept as they are where they would break up."""
    thin = erode(x, _size(3, 3, 5))
    keep = thin.sum((1, 2, 3), keepdim=True) > 0.3 * x.sum((1, 2, 3), keepdim=True)
    return torch.where(keep, thin, torch.maximum(thin, x * 0.7))


def outline(x: Tensor) -> Tensor:
    """Only the rim of the strokes, sometimes over a grey filling."""
    wide = dilate(x, _size(3, 5))
    rim = wide - erode(x, _size(1, 3)) * wide
    fill = _column((_uniform(len(x), 0, 1, x) < 0.25).float() * _uniform(len(x), 0.2, 0.6, x))
    return torch.maximum(rim, x * fill).clamp(0, 1)


def inline(x: Tensor) -> Tensor:
    """A dark line inside bold strokes."""
    heavy = dilate(x, 3)
    return (heavy - (erode(heavy, 5) - erode(heavy, 7)).clamp(min=0)).clamp(0, 1)


def shadow(x: Tensor) -> Tensor:
    """A drop shadow or a solid extrusion behind the glyph, parted from it by a dark rim or not."""
    dx, dy = int(torch.randint(-3, 4, ())), int(torch.randint(1, 4, ()))
    steps = range(1, 3) if torch.rand(()) < 0.6 else (1,)
    behind = x
    for step in steps:
        behind = torch.maximum(behind, torch.roll(x, (dy * step, dx * step), (2, 3)))
    grey = _column(_uniform(len(x), 0.35, 1.0, x))
    rim = (dilate(x, 3) - x).clamp(min=0) * _column((_uniform(len(x), 0, 1, x) < 0.7).float())
    front = x * _column((_uniform(len(x), 0, 1, x) < 0.75).float())
    shade = (behind - dilate(x, 3)).clamp(min=0) * grey
    hollow = (front.amax((1, 2, 3), keepdim=True) < 0.1).float()
    return torch.maximum(torch.maximum(front, shade), rim * hollow).clamp(0, 1)


def boxed(x: Tensor) -> Tensor:
    """The glyph cut out of a white block: square, rounded or round; or white inside a frame."""
    n = len(x)
    grid = _base_grid(CANVAS, x)[0]
    power = _column(torch.tensor([2.0, 4.0, 30.0], device=x.device)[torch.randint(3, (n,), device=x.device)])
    radius = _column(_uniform(n, 0.8, 0.98, x))
    far = (grid[..., 0].abs().view(1, 1, CANVAS, CANVAS) / radius) ** power
    far = far + (grid[..., 1].abs().view(1, 1, CANVAS, CANVAS) / radius) ** power
    block = (far < 1).float()
    ring = block - (far < 0.75**power).float()
    inverted = (block - x).clamp(0, 1)
    framed = torch.maximum(ring, x * block)
    return torch.where(_column(_uniform(n, 0, 1, x)) < 0.75, inverted, framed)


def textured(x: Tensor) -> Tensor:
    """Strokes worn by blotches of noise: grunge, chalk, stone."""
    noise = smooth_noise(len(x), 1, _size(6, 10, 16, 24), CANVAS, x)
    level = _column(_uniform(len(x), -1.3, -0.3, x))
    return x * torch.sigmoid((noise - level) * _column(_uniform(len(x), 2, 12, x)))


def striped(x: Tensor) -> Tensor:
    """Strokes cut by parallel lines at any angle."""
    n = len(x)
    grid = _base_grid(CANVAS, x)
    angle, pitch = _uniform(n, 0, math.pi, x), _uniform(n, 14, 34, x)
    along = torch.cos(angle).view(n, 1, 1) * grid[..., 0] + torch.sin(angle).view(n, 1, 1) * grid[..., 1]
    wave = torch.sin(along * pitch.view(n, 1, 1) + _uniform(n, 0, 6, x).view(n, 1, 1)).unsqueeze(1)
    return x * ((wave + _column(_uniform(n, 0.1, 0.8, x))) * 3).clamp(0, 1)


def pixelated(x: Tensor) -> Tensor:
    """Through a coarse grid and back, hard edged: pixel fonts."""
    cells = _size(8, 10, 12, 16)
    coarse = F.adaptive_avg_pool2d(x, cells)
    hard = (coarse > _column(_uniform(len(x), 0.3, 0.55, x))).float()
    mixed = torch.where(_column(_uniform(len(x), 0, 1, x)) < 0.7, hard, coarse)
    return F.interpolate(mixed, size=(CANVAS, CANVAS), mode="nearest")


def blurred(x: Tensor) -> Tensor:
    """Out of focus, or worn round when the blur is cut at half height."""
    soft = F.avg_pool2d(F.avg_pool2d(x, 3, 1, 1), 5, 1, 2)
    hard = ((soft - 0.45) * 6 + 0.5).clamp(0, 1)
    return torch.where(_column(_uniform(len(x), 0, 1, x)) < 0.5, soft, hard)


def broken(x: Tensor) -> Tensor:
    """A stencil's bars or a missing patch."""
    n = len(x)
    grid = _base_grid(CANVAS, x)
    angle = torch.randint(0, 4, (n,), device=x.device) * (math.pi / 4)
    across = torch.cos(angle).view(n, 1, 1) * grid[..., 0] + torch.sin(angle).view(n, 1, 1) * grid[..., 1]
    bar = (across - _uniform(n, -0.4, 0.4, x).view(n, 1, 1)).abs() < _uniform(n, 0.03, 0.09, x).view(n, 1, 1)
    return x * (1 - bar.float().unsqueeze(1))


EFFECTS: tuple[tuple[Callable[[Tensor], Tensor], float], ...] = (
    (bolder, 0.08), (lighter, 0.08), (outline, 0.07), (inline, 0.03), (shadow, 0.08), (boxed, 0.05),
    (textured, 0.07), (striped, 0.025), (pixelated, 0.04), (blurred, 0.05), (broken, 0.03),
)  # fmt: skip


def dress(x: Tensor) -> Tensor:
    """Give shares of the batch, each sample at most once per pass, one of the effects."""
    out = x.clone()
    for _ in range(2 if torch.rand(()) < 0.25 else 1):
        order = torch.randperm(len(x), device=x.device)
        start = 0
        for effect, share in EFFECTS:
            stop = start + max(1, round(share * len(x)))
            chosen = order[start:stop]
            start = stop
            if len(chosen):
                out[chosen] = effect(out[chosen])
    legible = out.sum((1, 2, 3), keepdim=True) > 0.2 * x.sum((1, 2, 3), keepdim=True)
    return torch.where(legible, out, x)


def ink_box(x: Tensor, floor: float = 0.12) -> tuple[Tensor, Tensor]:
    """Centre and half size (n, 2) of the ink in x, y, in [-1, 1] units; the whole frame if blank."""
    side = x.shape[-1]
    spans = []
    for axis in (2, 3):
        hit = (x.amax((1, axis)) > floor).float()
        low = hit.argmax(1)
        high = side - hit.flip(1).argmax(1)
        spans.append((low.float() * 2 / side - 1, high.float() * 2 / side - 1))
    low, high = (torch.stack(ends, -1) for ends in zip(*spans, strict=True))
    return (low + high) / 2, ((high - low) / 2).clamp(min=1 / side)


def fit(x: Tensor) -> Tensor:
    """Crop to the ink and fit into 28x28, roughly: margins, stretch, shift and cropped borders vary."""
    n = len(x)
    centre, half = ink_box(x)
    longest = half.amax(1, keepdim=True)
    loose = _uniform(n, 0, 1, x)
    stretch = torch.where(loose < 0.7, torch.zeros_like(loose), _uniform(n, 0, 1, x)).unsqueeze(1)
    half = longest ** (1 - stretch) * half**stretch
    tight = _uniform(n, 0, 1, x)
    margin = torch.where(tight < 0.55, _uniform(n, 0.97, 1.04, x), _uniform(n, 0.85, 1.3, x)).unsqueeze(1)
    shift = torch.where(tight < 0.55, 0.015, 0.1).unsqueeze(1) * torch.randn(n, 2, device=x.device) * half
    scale = (half * margin).view(n, 1, 1, 2)
    grid = _base_grid(SIDE, x) * scale + (centre + shift).view(n, 1, 1, 2)
    return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)


def grade(x: Tensor) -> Tensor:
    """Tone, noise and small holes, on shares of the batch."""
    n = len(x)
    gamma = torch.exp(_uniform(n, -1, 1, x) ** 3 * 0.8)
    peak = torch.where(_uniform(n, 0, 1, x) < 0.8, 1.0, _uniform(n, 0.5, 1.0, x))
    x = _column(peak) * x.clamp(1e-4, 1) ** _column(gamma)
    level = torch.where(_uniform(n, 0, 1, x) < 0.6, 0.0, _uniform(n, 0, 0.12, x))
    x = x + torch.randn_like(x) * _column(level)
    holes = torch.where(_uniform(n, 0, 1, x) < 0.12, _uniform(n, 0.1, 0.28, x), -1.0)
    away = (_base_grid(SIDE, x) - torch.empty(n, 1, 1, 2, device=x.device).uniform_(-0.8, 0.8)).abs().amax(-1)
    return (x * (away > holes.view(n, 1, 1)).unsqueeze(1)).clamp(0, 1)


def augment(glyphs: Tensor, plain: float = 0.12) -> Tensor:
    """uint8 (n, 56, 56) -> float (n, 1, 28, 28) in [0, 1]; the first `plain` share only reduced."""
    x = glyphs.unsqueeze(1).float() / 255
    kept = int(plain * len(x))
    hard = grade(fit(dress(warp(x[kept:]))))
    return torch.cat((F.avg_pool2d(x[:kept], 2), hard))

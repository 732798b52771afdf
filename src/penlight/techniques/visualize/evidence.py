"""Does a picture still work when it is moved a little? One that does not is adversarial noise, not what the unit looks for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from penlight.techniques.visualize.schedule import stream

Measure = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""pictures (N, C, H, W) uint8 -> (N,): how much each excites its unit"""

_SHIFT, _TURN, _SCALE, _LIGHT = 0.04, 3.0, 0.03, 0.03  # of the side, degrees, of the size, of the range of values
_LEAST = 0.5  # of the largest shift: one that hardly moves the picture shows nothing
_GRAIN = 0.02  # of the range, for inputs whose neighbours mean nothing


def jittered(
    measure: Measure, pictures: NDArray[np.uint8], neutral: Tensor, *, count: int = 8, seed: int = 0, moves: bool = True,
    side: tuple[int, int] | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Mean of `measure` over `count` unseen jitters of the pictures (N, C, H, W); (N,)."""
    answers = [measure(moved) for moved in unseen(pictures, neutral, count=count, seed=seed, moves=moves, side=side)]
    return np.asarray(np.mean(answers, axis=0, dtype=np.float64), np.float32)


def unseen(
    pictures: NDArray[np.uint8], neutral: Tensor, *, count: int = 8, seed: int = 0, moves: bool = True,
    side: tuple[int, int] | None = None,
) -> list[NDArray[np.uint8]]:  # fmt: skip
    """`count` small jitters of the pictures (N, C, H, W), the same for all of them.

    Each shifts by 2 to 4 % of the side (directions spread evenly), turns by up to 3 degrees, scales by up to 3 % and lightens or
    darkens by up to 3 % of the range: the same for a picture of 7 pixels as for one of 224, and in fractions of a pixel, which no
    method is trained with literally. `side` (H, W) is that of the part that counts, where the rest is ground. Bicubic; outside lies
    `neutral`, (C, 1, 1) in [0, 1]. Without `moves`, for inputs whose neighbours mean nothing, faint noise (2 % of the range) takes
    the place of shift, turn and scale.
    """
    neutral = neutral.detach().float().cpu()
    values = torch.from_numpy(pictures).float() / 255 - neutral
    reach = [part / whole for part, whole in zip(side or values.shape[2:], values.shape[2:], strict=True)]
    with torch.inference_mode():
        start = float(torch.rand((), generator=stream("unseen", seed)))
        made = []
        for k in range(count):
            chance = stream("unseen", seed, k)
            size, turn, scale, light = torch.rand(4, generator=chance).tolist()
            if moves:
                far, way = _SHIFT * (_LEAST + (1 - _LEAST) * size), 2 * math.pi * (start + k / max(count, 1))
                shift = (far * math.sin(way) * reach[0], far * math.cos(way) * reach[1])
                moved = _moved(values, shift, _TURN * (2 * turn - 1), 1 + _SCALE * (2 * scale - 1))
            else:
                moved = values + _GRAIN * torch.randn(values.shape[1:], generator=chance)
            shown = moved + neutral + _LIGHT * (2 * light - 1)
            made.append((shown * 255).round().clamp(0, 255).to(torch.uint8).numpy())
    return made


def _moved(values: Tensor, shift: tuple[float, float], turn: float, scale: float) -> Tensor:
    """(N, C, H, W) around 0, shifted (down, right, as shares of the sides), turned (degrees) and scaled; outside is 0.

    Along an axis of one value nothing moves, and nothing turns.
    """
    height, width = values.shape[-2:]
    flat = min(height, width) == 1
    angle = 0.0 if flat else math.radians(turn)
    # grid_sample measures in halves of the picture's side, along each axis by itself
    ratio = height / width
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    down, right = (0.0 if side == 1 else -2 * part for side, part in zip((height, width), shift, strict=True))
    rows = [[cos if width > 1 else 1.0, -sin * ratio, right], [sin / ratio, cos if height > 1 else 1.0, down]]
    grid = F.affine_grid(torch.tensor([rows]), [1, 1, height, width], align_corners=False)
    return F.grid_sample(
        values, grid.expand(len(values), -1, -1, -1), mode="bicubic", padding_mode="zeros", align_corners=False
    )

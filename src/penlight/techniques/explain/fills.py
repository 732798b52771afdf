"""What stands in for what is taken away from an input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.errors import BadOption

if TYPE_CHECKING:
    from penlight.techniques.explain.explanation import Scene

FILLS = ("zeros", "mean", "blur", "noise", "black")
FILL_HELP = (
    "what stands in for what is taken away: 0 as the network sees it, the input's own mean, the input blurred, noise of its range, or 0"
    " before normalisation"
)
_BLURRED = 0.06  # sigma of the blur, of the shorter side


def filled(scene: Scene, kind: str) -> Tensor:
    """(1, *shape), normalised: the input with everything taken away.

    "mean" is the input's, a channel each; for a table row, that of the data if there is any. Raises `BadOption` for a kind that the
    input cannot have.
    """
    x = scene.x
    if kind == "zeros":
        return torch.zeros_like(x)
    if kind == "black":
        mean, std = (torch.from_numpy(part).to(x) for part in scene.model.contract.statistics())
        return (-mean / std).expand_as(x).clone()
    if x.ndim < 3:
        return _of_row(scene, kind)
    places = tuple(range(2, x.ndim))
    if kind == "mean":
        return x.mean(places, keepdim=True).expand_as(x).clone()
    if kind == "noise":
        low, high = x.amin(places, keepdim=True), x.amax(places, keepdim=True)
        drawn = torch.from_numpy(scene.rng("fill").random(tuple(x.shape), "float32")).to(x)
        return low + (high - low) * drawn
    return blurred(x, _BLURRED * min(x.shape[2:]))


def _of_row(scene: Scene, kind: str) -> Tensor:
    x, data = scene.x, scene.data
    if kind == "mean" and data is not None:
        rows = [scene.model.tensor(data.read(n)[None]) for n in range(min(len(data), 4096))]
        return torch.cat(rows).mean(0, keepdim=True)
    needs = "needs data to take it from" if kind == "mean" else "is for inputs with axes in space or time"
    raise BadOption(f"fill {kind!r} {needs}; this input is a row of {x.shape[1]} numbers: use zeros or black")


def blurred(x: Tensor, sigma: float) -> Tensor:
    """`x` (N, C, *places) under a Gaussian of `sigma` pixels on every axis of space, borders repeated."""
    radius = max(1, math.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / max(sigma, 1e-6)) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(2, x.ndim):
        moved = x.movedim(axis, -1)
        flat = moved.reshape(-1, 1, moved.shape[-1])
        wide = F.pad(flat, (radius, radius), mode="replicate")
        x = F.conv1d(wide, kernel[None, None]).reshape(moved.shape).movedim(-1, axis)
    return x

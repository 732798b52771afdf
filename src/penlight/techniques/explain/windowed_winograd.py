"""3 × 3 convolutions by Winograd's minimal filtering, F(4 × 4, 3 × 3), with a quarter of the multiplications.

Lavin & Gray 2015, arXiv:1509.09308. The interpolation points 0, 1, −1, ½, −2 and ∞ keep the rounding error where the direct
convolution has it, some 2e-6 of the largest value (Barabasz et al. 2018, arXiv:1803.10986).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE, KERNEL = 4, 3
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)
_SIDE = TILE + KERNEL - 1
_AT_ONCE = 8 * 2**20  # bytes of transformed input at once: what the last cache holds
_GAIN = 0.9  # of the direct convolution's time, estimated, from which on it is taken


@cache
def _matrices() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of output (4 × 6), filter (6 × 3) and input (6 × 6), by Toom and Cook."""
    points = np.array(_POINTS)
    powers = np.zeros((_SIDE, _SIDE))
    powers[:-1] = points[:, None] ** np.arange(_SIDE)
    powers[-1, -1] = 1.0
    evaluated = np.zeros((_SIDE, _SIDE))
    evaluated[:-1] = powers[:-1]
    output, weight = evaluated[:, :TILE].copy(), evaluated[:, :KERNEL].copy()
    output[-1, -1] = weight[-1, -1] = 1.0
    given = np.linalg.inv(powers).T.astype(np.float64)
    return output.T, weight, given


@cache
def _squares(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The output's (16 × 36) and the input's (36 × 36) matrices for both axes at once."""
    output, _, given = _matrices()
    return torch.from_numpy(np.kron(output, output)).to(dtype), torch.from_numpy(np.kron(given, given)).to(dtype)


def transformed(weight: Tensor) -> Tensor:
    """(36, C, K) of a filter (K, C, 3, 3)."""
    _, matrix, _ = _matrices()
    square = torch.from_numpy(np.kron(matrix, matrix))
    made, given = weight.shape[:2]
    out = weight.new_empty((_SIDE * _SIDE, given, made))
    for first in range(0, made, 64):  # a few at a time: in doubles all would take eight times the filter's memory
        some = weight[first : first + 64].double().permute(2, 3, 1, 0).reshape(9, -1)
        out[:, :, first : first + 64] = (square @ some).view(_SIDE * _SIDE, given, -1)
    return out


def worthwhile(count: int, height: int, width: int, given: int, made: int) -> bool:
    """Whether it is estimated to be faster for (count, given, …) → (count, made, height, width), on one CPU thread."""
    tiles = count * -(-height // TILE) * -(-width // TILE)
    direct = count * height * width * 9 * given * made * 2 / 105e9
    products = tiles * 36 * given * made * 2 / 80e9 + 36 * given * made * 4 / 10e9
    transforms = tiles * 36 * (36 * given + 16 * made) * 2 / 70e9
    moved = tiles * (36 * given * 3 + 36 * made * 2 + 16 * made * 3) * 4 / 15e9
    return products + transforms + moved < _GAIN * direct


def reach(size: int) -> int:
    """Cells of input that `size` cells of output need, in whole tiles."""
    return -(-size // TILE) * TILE + KERNEL - 1


def convolve(windows: Tensor, height: int, width: int, filter: Tensor, bias: Tensor | None) -> Tensor:
    """(n, K, height, width) of windows (n, C, reach(height), reach(width)), both channels-last."""
    count, given, made = windows.shape[0], windows.shape[1], filter.shape[2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    out = windows.new_empty((count, height, width, made))
    each = _SIDE * _SIDE * rows * columns * max(given, made) * windows.element_size()
    step = max(1, _AT_ONCE // each)
    shift = torch.zeros((), dtype=windows.dtype) if bias is None else bias
    for first in range(0, count, step):
        _some(windows[first : first + step], filter, shift, out[first : first + step], rows, columns)
    return out.permute(0, 3, 1, 2)


def _some(windows: Tensor, filter: Tensor, bias: Tensor, out: Tensor, rows: int, columns: int) -> None:
    count, given, made = windows.shape[0], windows.shape[1], filter.shape[2]
    tiles = count * rows * columns
    forth, back = _squares(windows.dtype)
    last = windows.permute(0, 2, 3, 1)
    each, down, across, _ = last.stride()
    cut = windows.new_empty((_SIDE, _SIDE, count, rows, columns, given))
    cut.copy_(last.as_strided(cut.shape, (down, across, each, TILE * down, TILE * across, 1), last.storage_offset()))
    products = torch.bmm((back @ cut.view(_SIDE * _SIDE, -1)).view(_SIDE * _SIDE, tiles, given), filter)
    found = (forth @ products.view(_SIDE * _SIDE, -1)).view(TILE, TILE, count, rows, columns, made)
    for i in range(TILE):
        for j in range(TILE):
            into = out[:, i::TILE, j::TILE]
            torch.add(found[i, j, :, : into.shape[1], : into.shape[2]], bias, out=into)

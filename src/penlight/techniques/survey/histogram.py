"""Histogram bins fixed before any data is seen, so that shards and whole passes count alike.

As in DDSketch (Masson, Rim & Lee 2019) a bin's width is a share of its value: every power of two from 2^-12 to 2^16 is cut into four
equal parts, for both signs; what is smaller falls into one bin around zero, what is larger into one bin at either end. The cuts are
where a float32's exponent and its first two fraction bits change, so a value's bin is read off its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOWEST, HIGHEST = -12, 16  # powers of two
_FRACTION_BITS = 2
_SIDE = (HIGHEST - LOWEST) * (1 << _FRACTION_BITS) + 1  # bins of one sign, the open one counted
BINS = 2 * _SIDE + 1


def size(bits: int = _FRACTION_BITS) -> int:
    """Number of bins where every power of two is cut into 2^bits parts."""
    return 2 * ((HIGHEST - LOWEST) * (1 << bits) + 1) + 1


def edges(bits: int = _FRACTION_BITS) -> NDArray[np.float64]:
    """(bins + 1,) ascending. A bin holds its edge nearer to zero and not the other one; the outermost edges are float32's largest."""
    octaves = np.exp2(np.arange(LOWEST, HIGHEST, dtype=np.float64))[:, None]
    cuts = (octaves * (1 + np.arange(1 << bits) / (1 << bits))).reshape(-1)
    side = np.concatenate([cuts, [2.0**HIGHEST, float(np.finfo(np.float32).max)]])
    return np.concatenate([-side[::-1], side])


def bins(values: Tensor, bits: int = _FRACTION_BITS) -> Tensor:
    """Bin numbers, int32, of finite float32 values."""
    pattern = values.view(torch.int32)
    parts, side = 1 << bits, size(bits) // 2
    number = (pattern & 0x7FFFFFFF) >> (23 - bits)
    number.sub_((127 + LOWEST) * parts - 1).clamp_(0, side)
    return number.mul_((pattern >> 31) | 1).add_(side)


def trim(counts: Sequence[NDArray[Any]]) -> tuple[list[NDArray[np.int64]], NDArray[np.float64]]:
    """Histograms (U, BINS) of several layers without the bins at both ends that all of them leave empty, and the edges left."""
    filled = np.flatnonzero(np.sum([layer.any(0) for layer in counts], axis=0))
    first, last = (int(filled[0]), int(filled[-1])) if len(filled) else (_SIDE, _SIDE)
    return [np.ascontiguousarray(layer[:, first : last + 1], np.int64) for layer in counts], edges()[first : last + 2]


def widen(counts: NDArray[np.int64], own: NDArray[np.float64]) -> NDArray[np.int64]:
    """The inverse of `trim` for one layer: (U, BINS) from a histogram with edges `own`; ValueError if they are no cut of ours."""
    whole = edges()
    first = int(np.searchsorted(whole, own[0]))
    if not np.array_equal(whole[first : first + len(own)], own):
        raise ValueError("the histogram has edges of its own")
    wide = np.zeros((len(counts), BINS), np.int64)
    wide[:, first : first + counts.shape[1]] = counts
    return wide

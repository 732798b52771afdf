"""Convolutions that pad as much as an input's size asks for: `padding="same"`, and timm's Conv2dSame, TensorFlow's "SAME"."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def is_same(module: nn.Module) -> bool:
    """Whether the module is such a convolution of pictures, padded with zeros, and a plain one otherwise."""
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros":
        return False
    if type(module) is nn.Conv2d:
        return module.padding == "same"
    return type(module).__name__ == "Conv2dSame" and type(module).__module__.startswith("timm.")


def same_pads(length: int, kernel: int, stride: int = 1, dilation: int = 1) -> tuple[int, int]:
    """Zeros before and after an axis of `length`, so that every `stride`-th place gets a window; an odd one stands at the end."""
    reach = dilation * (kernel - 1) + 1
    total = max((-(-length // stride) - 1) * stride + reach - length, 0)
    return total // 2, total - total // 2


def evenly(
    weight: Tensor, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]] | None:
    """The same convolution of maps of `size` (H, W) as one with as many zeros before as after them: (weight, padding).

    Where there is one more after them, the filter grows by a tap of zeros in front. None where its taps are apart and that cannot be.
    """
    grown, padding = [], []
    for length, kernel, step, apart in zip(size, weight.shape[2:], stride, dilation, strict=True):
        before, after = same_pads(length, kernel, step, apart)
        if before < after and apart > 1:
            return None
        grown.append(after - before)
        padding.append(after)
    return F.pad(weight, (grown[1], 0, grown[0], 0)), tuple(padding)

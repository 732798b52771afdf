"""Strided first convolutions in an exact form whose gradient is faster.

The gradient of a convolution with stride 2 on three channels runs at a tenth of the machine's speed. The same sums are a convolution
with stride 1 over the four interleaved quarter pictures (`pixel_unshuffle`), which runs at full speed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penlight.models.same import is_same, same_pads

_FEW = 4  # channels up to which the rewriting pays


class Unshuffled(nn.Module):
    """Puts out what `conv` puts out, up to rounding."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.kernel, self.padding = conv.kernel_size, conv.padding
        self.same = is_same(conv)
        taps = tuple((k + 1) // 2 for k in self.kernel)
        self.taps = taps
        out, channels = conv.weight.shape[:2]
        weight = F.pad(conv.weight.detach(), (0, 2 * taps[1] - self.kernel[1], 0, 2 * taps[0] - self.kernel[0]))
        weight = (
            weight.reshape(out, channels, taps[0], 2, taps[1], 2)
            .permute(0, 1, 3, 5, 2, 4)
            .reshape(out, channels * 4, *taps)
        )
        self.register_buffer("weight", weight.contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        edges: list[int] = []
        for axis in (1, 0):  # F.pad counts from the last axis
            length, kernel = x.shape[axis - 2], self.kernel[axis]
            if self.same:
                count, before = (length + 1) // 2, same_pads(length, kernel, 2)[0]
            else:
                before = self.padding[axis]
                count = (length + 2 * before - kernel) // 2 + 1
            edges += [before, 2 * (count - 1 + self.taps[axis]) - before - length]
        return F.conv2d(F.pixel_unshuffle(F.pad(x, edges), 2), self.weight, self.bias)  # type: ignore[arg-type]


def quicken(network: nn.Module) -> nn.Module:
    """Replace, in place, the convolutions of a frozen copy to which this applies; returns it."""
    for path, module in list(network.named_modules()):
        if path and _applies(module):
            parent, _, name = path.rpartition(".")
            assert isinstance(module, nn.Conv2d)
            setattr(network.get_submodule(parent), name, Unshuffled(module))
    return network


def _applies(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d) or (type(module) is not nn.Conv2d and not is_same(module)):
        return False
    plain = (
        module.stride == (2, 2) and module.dilation == (1, 1) and module.groups == 1 and module.padding_mode == "zeros"
    )
    return (
        plain
        and module.in_channels <= _FEW
        and min(module.kernel_size) >= 2
        and not isinstance(module.padding, str)
        and _bare(module)
    )


def _bare(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or module._parameters.keys() - {"weight", "bias"})

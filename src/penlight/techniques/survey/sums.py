"""The sum over a pointwise convolution's map, from the sum over its input, which is several times smaller in an expanding layer."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from penlight.models import Layer
from penlight.models.packing import pointwise

_SMALLER = 2  # times, that an input has to be for this to pay
_FEWEST = 196  # positions
_ROUNDING = 1e-4  # of the sum of magnitudes


class InputSums:
    """Σ output = weight · Σ input + positions · bias. Told the input, then asked for the sum over the output.

    What the module really put out may be something else: a hook of the user's may change it. So both ways are compared once.
    """

    def __init__(self, conv: nn.Conv2d, batch: int, places: int) -> None:
        self._weight = conv.weight.detach().flatten(1).t()
        self._bias = None if conv.bias is None else conv.bias.detach() * places
        self._given = torch.empty((batch, conv.in_channels))
        self._told = False
        self._trusted: bool | None = None  # None: not compared yet

    def note(self, given: Tensor) -> None:
        """The input (N, channels, H, W)."""
        if self._trusted is False:
            return
        self._told = given.ndim == 4 and (len(given), given.shape[1]) == self._given.shape
        if self._told:
            torch.sum(given, (2, 3), out=self._given)

    def into(self, flat: Tensor, total: Tensor) -> None:
        """The sums over the positions of the output (N, P, units) into `total` (N, units)."""
        if self._trusted is False or not self._told:
            torch.sum(flat, 1, out=total)
            return
        self._told = False
        if self._trusted is None:
            torch.sum(flat, 1, out=total)
            if bool(torch.isfinite(total).all()):
                worked_out, size = torch.empty_like(total), torch.empty_like(total)
                self._work_out(self._given, self._weight, worked_out)
                self._work_out(self._given.abs(), self._weight.abs(), size)
                self._trusted = bool(((worked_out - total).abs() <= _ROUNDING * size.abs()).all())
        if self._trusted:  # the first batch too, so that a shard that begins with another one says the same
            self._work_out(self._given, self._weight, total)

    def _work_out(self, given: Tensor, weight: Tensor, out: Tensor) -> None:
        if self._bias is None:
            torch.mm(given, weight, out=out)
        else:
            torch.addmm(self._bias, given, weight, out=out)


def input_sums(network: nn.Module, layers: Mapping[str, Layer], batch: int) -> dict[str, InputSums]:
    """For the layers among `layers` whose sums are cheaper read off their inputs."""
    modules = dict(network.named_modules(remove_duplicate=False))
    found = {}
    for path, layer in layers.items():
        conv, places = modules.get(path), math.prod(layer.positions)
        if isinstance(conv, nn.Conv2d) and pointwise(conv) and _pays(conv) and places >= _FEWEST:
            found[path] = InputSums(conv, batch, places)
    return found


def _pays(conv: nn.Conv2d) -> bool:
    plain = conv.weight.device.type == "cpu" and conv.weight.dtype is torch.float32
    return plain and conv.in_channels * _SMALLER <= conv.out_channels

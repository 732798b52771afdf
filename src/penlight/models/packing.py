"""Convolutions from packed weights: what PyTorch does with few inputs at once takes longer, of pointwise ones up to a third.

Where nobody looks in between, the rectifier after one is done by the same operator.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from penlight.models.layers import run, same_memory
from penlight.models.probe import first_tensor, frozen_copy, listening, split_call
from penlight.models.same import evenly, is_same, same_pads

_ROUNDING = 1e-5  # of the largest value: another order of the same sums
_MISSING = (AttributeError, NotImplementedError, RuntimeError, TypeError)  # the operator is PyTorch's own affair
_TOLERANCE = 1e-3  # of the network's largest output, after many of them


def packed(network: nn.Module, example: Tensor, keep: Collection[str] | None = None, *, own: bool = False) -> nn.Module:
    """A copy of a prepared network for passes without gradients, faster on a CPU; it shares the weights, which must not change.

    `example` (N, *shape) is an input as it will be given. Every convolution is compared on it with what it replaces, and left as it is
    if they differ, or if this PyTorch cannot do it. What asks for gradients gets the plain convolution.

    With `keep`, the layers whose outputs will be read, rectifiers elsewhere are joined to the convolution before them, whose own output
    is then the rectified one; None joins none. With `own`, nobody else has the network, and it is changed itself.
    """
    if example.device.type != "cpu" or example.ndim != 4 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return network
    twin = network if own else frozen_copy(network, network.parameters())
    look = _Look(twin, None if keep is None else {split_call(path)[0] for path in keep})
    example = example.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference do not tell that they were written to
        with listening(twin, look.after, look.before):
            before = first_tensor(run(twin, example.clone()))
        for module, one in look.found.items():
            module.__dict__["forward"] = one
        joined = look.joined()
        if joined:
            _join(joined)
            after = first_tensor(run(twin, example.clone()))
            if before is None or after is None or not _alike(after, before, _TOLERANCE):
                for conv, act, _ in joined:  # something else reads what lies between
                    conv.__dict__["forward"] = look.found[conv]
                    del act.__dict__["forward"]
    return twin


def _join(joined: Collection[tuple[nn.Conv2d, nn.Module, Packed]]) -> None:
    for conv, act, both in joined:
        conv.__dict__["forward"], act.__dict__["forward"] = both, _same


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(eq=False)
class _Written:
    """What a convolution put out, and the modules that put out the very same."""

    conv: nn.Conv2d
    given: Tensor
    made: Tensor
    version: int
    by: set[nn.Module] = field(default_factory=set)

    def is_in(self, tensor: Tensor | None) -> bool:
        return tensor is not None and same_memory(tensor, self.made) and tensor._version == self.version


@dataclass(eq=False)
class _Look:
    """One pass: which convolutions can be packed, and which rectifiers read exactly what one of them wrote."""

    network: nn.Module
    keep: Collection[str] | None
    found: dict[nn.Conv2d, Packed] = field(default_factory=dict)
    calls: Counter[nn.Module] = field(default_factory=Counter)
    _last: _Written | None = None
    _pairs: list[tuple[nn.Conv2d, set[nn.Module], nn.Module, Packed]] = field(default_factory=list)

    def before(self, module: nn.Module, inputs: Any) -> None:
        last, given = self._last, first_tensor(inputs)
        kind = _rectifier(module)
        if self.keep is None or kind is None or last is None or given is None or not last.is_in(given):
            return
        both = self.found[last.conv].joined(kind, last.given, kind.plain(given.clone()))
        if both is not None:
            self._pairs.append((last.conv, last.by, module, both))
        self._last = None

    def after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.calls[module] += 1
        given, made = first_tensor(inputs), first_tensor(output)
        if self._last is not None and self._last.is_in(made):
            self._last.by.add(module)
        if given is None or made is None or not (plain(module) or is_same(module)) or "forward" in vars(module):
            return
        assert isinstance(module, nn.Conv2d)
        if module not in self.found:
            one = Packed.of(module, given, made)
            if one is None:
                return
            self.found[module] = one
        self._last = _Written(module, given, made, made._version, {module})

    def joined(self) -> list[tuple[nn.Conv2d, nn.Module, Packed]]:
        """Convolutions with the rectifiers after them, both called once, nothing between them to be read."""
        names = {module: name for name, module in self.network.named_modules()}
        kept = self.keep or ()
        return [
            (conv, act, both)
            for conv, by, act, both in self._pairs
            if self.calls[conv] == self.calls[act] == 1 and not any(names[module] in kept for module in by)
        ]


@dataclass(frozen=True)
class Rectifier:
    """How the operator names it, with its numbers, and PyTorch's own."""

    name: str
    numbers: tuple[float, ...]
    plain: Callable[[Tensor], Tensor]

    @property
    def named(self) -> tuple[str, list[float], str]:
        """As the operator is told."""
        return self.name, list(self.numbers), ""


_NOTHING = Rectifier("none", (), _same)


def _rectifier(module: nn.Module) -> Rectifier | None:
    """What the operator can do of a module, None if it is no rectifier that it knows."""
    if "forward" in vars(module):
        return None
    if type(module) is nn.ReLU:
        return Rectifier("relu", (), F.relu)
    if type(module) in (nn.ReLU6, nn.Hardtanh):
        assert isinstance(module, nn.Hardtanh)
        low, high = module.min_val, module.max_val
        return Rectifier("hardtanh", (low, high), lambda x: F.hardtanh(x, low, high))
    if type(module) is nn.SiLU:
        return Rectifier("swish", (), F.silu)
    return None


def plain(module: nn.Module) -> bool:
    """Whether the module is a convolution of pictures as PyTorch has it, padded with so many zeros."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros":
        return False
    return module.padding == "valid" or not isinstance(module.padding, str) or {*module.kernel_size} == {1}


def pointwise(module: nn.Module) -> bool:
    """Whether the module is a plain convolution that looks at one position."""
    if not plain(module):
        return False
    assert isinstance(module, nn.Conv2d)
    return module.groups == 1 and {*module.kernel_size, *module.stride} == {1} and {*_padding(module)} == {0}


def _padding(conv: nn.Conv2d) -> tuple[int, ...]:
    return (0, 0) if isinstance(conv.padding, str) else conv.padding


class Packed:
    """A convolution, (N, C, H, W) → (N, units, H, W), without gradients, on request with a rectifier after it."""

    def __init__(self, conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
        self._weight, self._bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        self._size = None if plain(conv) else shape[2:]  # for which alone one is packed that pads by it
        weight, padding = self._weight, _padding(conv)
        if self._size is not None:
            even = evenly(weight, self._size, conv.stride, conv.dilation)
            if even is None:
                raise NotImplementedError("taps apart cannot be padded unevenly")
            weight, padding = even
        self._how = padding, conv.stride, conv.dilation, conv.groups
        pack: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its annotations lack arguments
        self._packed = pack(weight.contiguous().to_mkldnn(), *self._how, list(shape))
        self._operator = torch.ops.mkldnn._convolution_pointwise.default
        self._then, self._after = _NOTHING, _NOTHING.named

    @classmethod
    def of(cls, conv: nn.Conv2d, given: Tensor, made: Tensor) -> Packed | None:
        """Packed for inputs like `given` (N, C, H, W), of which the convolution made `made`; None where it cannot do the same."""
        if conv.weight.dtype is not torch.float32 or conv.weight.device.type != "cpu" or given.ndim != 4:
            return None
        try:
            one = cls(conv, tuple(given.shape))
            return one if _alike(one(given), made) else None
        except _MISSING:
            return None

    def joined(self, then: Rectifier, given: Tensor, made: Tensor) -> Packed | None:
        """The same with a rectifier after it; None where that does not make `made` of `given`."""
        both = copy.copy(self)
        both._then, both._after = then, then.named
        try:
            return both if _alike(both(given), made) else None
        except _MISSING:
            return None

    def __call__(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # a mode that watches the network would be asked about each of these
            fits = not x.requires_grad and x.ndim == 4 and x.dtype is torch.float32 and x.device.type == "cpu"
            fits = fits and self._size in (None, x.shape[2:])
        if not fits:
            return self._then.plain(self._unpacked(x))
        made: Tensor = self._operator(x, self._packed, self._bias, *self._how, *self._after)
        return made

    def _unpacked(self, x: Tensor) -> Tensor:
        padding, stride, dilation, groups = self._how
        if self._size is not None:
            axes = zip(x.shape[-2:], self._weight.shape[2:], stride, dilation, strict=True)
            (top, bottom), (left, right) = (same_pads(*axis) for axis in axes)
            x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
        return F.conv2d(x, self._weight, self._bias, stride, padding, dilation, groups)

    def __deepcopy__(self, memo: dict[int, Any]) -> Packed:
        return self  # packed memory cannot be copied, and is never written to


def _alike(one: Tensor, other: Tensor, share: float = _ROUNDING) -> bool:
    scale = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and float((one - other).abs().max()) <= share * scale + 1e-7

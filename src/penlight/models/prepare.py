"""A copy of the network made for speed: frozen, BatchNorm folded into the convolution before it, channels-last."""

from __future__ import annotations

from collections.abc import Collection
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from penlight.errors import CannotRun
from penlight.models.layers import run, same_memory
from penlight.models.probe import first_tensor, frozen_copy, listening

_TOLERANCE = 1e-3  # of the largest output: folding only rounds differently


class _Rest(nn.Module):
    """What stays of a normalisation that has an activation of its own (timm's BatchNormAct2d) once its affine part is folded."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        for name, child in norm.named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return x


class _Reshapes(TorchFunctionMode):
    """`x.view(…)` where the memory's order does not allow it: reshaped instead, as `x.reshape(…)` would be."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.view and not isinstance(args[1] if len(args) > 1 else None, torch.dtype):
            return Tensor.reshape(args[0], *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _run_reshaping(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with _Reshapes():
        return type(network).forward(network, *args, **kwargs)


def _reshaping(network: nn.Module) -> nn.Module:
    """The network with its views allowed for any order of memory: `x.view(-1, 400)` is how first networks flatten."""
    network.forward = MethodType(_run_reshaping, network)
    return network


def prepare(network: nn.Module, example: Tensor, keep: Collection[str] = ()) -> nn.Module:
    """A frozen copy of `network` in eval mode that computes the same outputs faster.

    A BatchNorm that follows a convolution is folded into it, unless the convolution is in `keep`, the layers whose own outputs will
    be read. Folding is checked on `example` (N, *shape) and left out if the output moved.
    """
    twin = _twin(network, example)
    if not any(_is_norm(module) for module in twin.modules()):
        return _tried(twin, example)
    given = _last(example)
    with torch.no_grad():
        try:
            pairs, before = _foldable(twin, given, keep)
        except CannotRun:  # it takes views of its maps; any other failure comes again
            if example.ndim != 4:
                raise
            pairs, before = _foldable(_reshaping(twin), given, keep)
        if not pairs:
            return twin
        after = first_tensor(run(_fold(twin, pairs), given.clone()))
    if before is None or after is None or not _close(before, after):
        return _tried(_twin(network, example), example)
    return twin


def _twin(network: nn.Module, example: Tensor) -> nn.Module:
    """A frozen copy, channels-last for pictures."""
    dense = [
        parameter for parameter in network.parameters() if parameter.ndim == 2
    ]  # no other order of memory helps them
    twin = frozen_copy(network, dense)
    if example.ndim == 4:
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return twin


def _tried(twin: nn.Module, example: Tensor) -> nn.Module:
    """The same; one that takes views of its maps, which have another order in memory now, learns to reshape."""
    if example.ndim != 4:
        return twin
    try:
        with torch.no_grad():
            twin(_last(example).clone())
    except RuntimeError:  # "view size is not compatible"; any other failure comes again
        return _reshaping(twin)
    return twin


def _last(example: Tensor) -> Tensor:
    return example.contiguous(memory_format=torch.channels_last) if example.ndim == 4 else example


def _close(before: Tensor, after: Tensor) -> bool:
    scale = float(before.abs().max()) if before.numel() else 0.0
    return bool(torch.isfinite(after).all()) and float((before - after).abs().max()) <= _TOLERANCE * scale + 1e-7


def _foldable(
    network: nn.Module, example: Tensor, keep: Collection[str]
) -> tuple[list[tuple[str, str]], Tensor | None]:
    """(convolution, norm) paths: the norm reads exactly what the convolution wrote, and each runs once; and the network's output."""
    names = {module: name for name, module in network.named_modules()}
    calls: dict[nn.Module, int] = {}
    written: list[tuple[Tensor, nn.Module]] = []
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def before(module: nn.Module, inputs: Any) -> None:
        given = first_tensor(inputs)
        if _is_norm(module) and given is not None:
            source = next((m for tensor, m in reversed(written) if same_memory(tensor, given)), None)
            if source is not None:
                pairs.append((source, module))

    def after(module: nn.Module, _inputs: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        tensor = first_tensor(output)
        if tensor is not None and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            written.append((tensor, module))

    with listening(network, after, before):
        output = first_tensor(run(network, example.clone()))  # a network may write into what it is given
    once = [(names[c], names[n]) for c, n in pairs if calls[c] == 1 and calls[n] == 1]
    return [(conv, norm) for conv, norm in once if conv not in keep], output


def _is_norm(module: nn.Module) -> bool:
    """Whether folding knows this norm: plain BatchNorm, or one whose children are only what follows it."""
    if not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) or module.running_mean is None:
        return False
    plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return plain or (type(module).__module__.startswith("timm.") and type(module).__name__ == "BatchNormAct2d")


def _fold(network: nn.Module, pairs: list[tuple[str, str]]) -> nn.Module:
    for conv_path, norm_path in pairs:
        conv, norm = network.get_submodule(conv_path), network.get_submodule(norm_path)
        assert isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.weight = nn.Parameter(
            weight.contiguous(memory_format=torch.channels_last) if weight.ndim == 4 else weight, False
        )
        conv.bias = nn.Parameter(bias, False)
        parent, _, name = norm_path.rpartition(".")
        setattr(network.get_submodule(parent), name, _Rest(norm))
    return network

"""Filters of deeper layers as pictures of the input: what the layers below make of their weights when nothing bends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from penlight.errors import CannotRun
from penlight.models import Layer, Model, Probe
from penlight.models.probe import frozen_copy
from penlight.techniques.contract import Progress

_AT_ONCE = 32  # units in one pass
_LINEAR = 1e-3  # of the largest value: how well doubling the input has to double the change
_LARGEST = 64  # pixels of an expanded filter's side
_MARGIN = 2  # canvas, in sizes of the receptive field

_BENT = {
    getattr(where, name)
    for where in (torch, Tensor, F)
    for name in (
        "relu", "relu_", "relu6", "leaky_relu", "leaky_relu_", "prelu", "elu", "elu_", "celu", "celu_", "selu", "selu_", "gelu",
        "silu", "mish", "hardswish", "hardsigmoid", "hardtanh", "hardtanh_", "softplus", "sigmoid", "sigmoid_", "tanh", "tanh_",
        "threshold", "threshold_", "rrelu", "rrelu_",
    )
    if hasattr(where, name)
}  # fmt: skip
_POOLS = {F.max_pool1d: F.avg_pool1d, F.max_pool2d: F.avg_pool2d, F.max_pool3d: F.avg_pool3d} | {
    getattr(torch, f"max_pool{n}d"): getattr(F, f"avg_pool{n}d") for n in (1, 2, 3)
}


class Straight(TorchFunctionMode):
    """Every activation function is left out, every maximum pool takes the mean instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _BENT:
            return args[0] if args else kwargs["input"]
        if func in _POOLS:
            given = (
                dict(zip(("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"), args, strict=False))
                | kwargs
            )
            given.pop("return_indices", None)
            if given.pop("dilation", 1) in (1, (1,), (1, 1), [1, 1]):
                return _POOLS[func](**{**given, "count_include_pad": False})
        return func(*args, **kwargs)


def expanded(
    model: Model, paths: Sequence[str], fed: Mapping[str, tuple[str, ...] | None], depth: int, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """(U, h, w, C) of every convolution of at most `depth` layers of weights, its own counted, of pictures of 1 or 3 channels."""
    if model.contract.kind != "image" or model.contract.channels not in (1, 3):
        return {}
    chosen = [path for path in paths if 2 <= _depth(path, fed) <= depth and _fits(model, model.layers[path])]
    found: dict[str, NDArray[np.float32]] = {}
    for n, path in enumerate(chosen):
        weights = _expanded(model, path)
        if weights is not None:
            found[path] = weights
        progress(n + 1, len(chosen))
    return found


def _depth(path: str, fed: Mapping[str, tuple[str, ...] | None]) -> int:
    """Layers of weights from the input to this one; 0 where not known."""
    below = fed.get(path)
    if below is None:
        return 0
    depths = [_depth(one, fed) for one in below]
    return 1 + max(depths, default=0) if all(depths) else 0


def _fits(model: Model, layer: Layer) -> bool:
    field = model.fields.get(layer.path)
    return len(layer.positions) == 2 and layer.axis == 1 and field is not None and max(field.size) <= _LARGEST


def _expanded(model: Model, path: str) -> NDArray[np.float32] | None:
    """The gradient of each unit in the middle of its map, cut to where any unit's is not zero; None where something bends."""
    network = frozen_copy(model.network)
    layer, field = model.layers[path], model.fields[path]
    assert field is not None
    tall, wide = (min(n, max(_MARGIN * max(field.size) + 8, 32)) for n in model.contract.size)
    for shape in ((tall, wide), tuple(model.contract.size)):
        try:
            rows = _gradients(network, path, (model.contract.channels, *shape), layer, model.device)
        except CannotRun:
            raise
        except (
            RuntimeError,
            ValueError,
            IndexError,
            TypeError,
            AssertionError,
        ):  # a canvas that the network does not take
            if shape == tuple(model.contract.size):
                return None
            continue
        return None if rows is None else _cut(rows)
    return None


def _gradients(
    network: nn.Module, path: str, shape: tuple[int, ...], layer: Layer, device: torch.device
) -> NDArray[np.float32] | None:
    kept: list[Tensor] = []

    def values(x: Tensor) -> Tensor:
        kept.clear()
        with Straight(), Probe(network, {path: lambda output: kept.append(output)}) as probe:
            probe(x)
        return layer.units_first(kept[0])

    with torch.no_grad():
        noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(0)).to(device)
        still, once, twice = (values(x).clone() for x in (0 * noise, noise, 2 * noise))
    if float((twice - 2 * once + still).abs().max()) > _LINEAR * float((once - still).abs().max()):
        return None
    middle = still.shape[2] // 2, still.shape[3] // 2
    rows = []
    for start in range(0, layer.units, _AT_ONCE):
        units = torch.arange(start, min(start + _AT_ONCE, layer.units), device=device)
        x = torch.zeros((len(units), *shape), device=device, requires_grad=True)
        with torch.enable_grad():
            out = values(x)[torch.arange(len(units), device=device), units, middle[0], middle[1]].sum()
            rows.append(torch.autograd.grad(out, x)[0].cpu())
    return torch.cat(rows).permute(0, 2, 3, 1).contiguous().numpy()


def _cut(rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Without the rows and columns around that are zero for all units."""
    used = np.abs(rows).max((0, 3))
    if not used.any() or not np.isfinite(used).all():
        return None
    down, across = np.flatnonzero(used.any(1)), np.flatnonzero(used.any(0))
    if math.prod((down[-1] - down[0] + 1, across[-1] - across[0] + 1)) > _LARGEST**2:
        return None
    return np.ascontiguousarray(rows[:, down[0] : down[-1] + 1, across[0] : across[-1] + 1])

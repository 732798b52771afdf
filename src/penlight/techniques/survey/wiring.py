"""Which unit each weight of a layer reads, found by trying it out.

Every layer with weights is made to put out fixed noise, so that nothing passes through it. What then changes at another layer's input,
when some units are given other noise, came from these units over ReLUs, pools, norms, concatenations and reshapings only. Units are
numbered through, and are changed in groups by the digits of their numbers, each digit once where it is 1 and once where it is 0: an input
channel that reads one unit changes in exactly one of the two for every digit, which spells the number. All layers are read at once.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models import Layer, Model, Probe
from penlight.models.probe import LOGITS, first_tensor, listening, split_call, undisturbed

INPUT, UNKNOWN = -1, -2
_ROUNDS = (1.0, 10.0, 100.0)  # sizes of the noise: a norm may move small ones to where a ReLU lets nothing pass
_EQUAL = 1e-6  # of the largest value: what is no change
Weighted = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear


def weighted(model: Model) -> dict[str, Layer]:
    """Convolutions and linear layers by path, in order of execution."""
    modules = dict(model.network.named_modules())
    return {
        path: layer
        for path, layer in model.layers.items()
        if path != LOGITS and isinstance(modules.get(split_call(path)[0]), Weighted) and len(layer.shape) <= 4
    }


def sources(model: Model, layers: Mapping[str, Layer]) -> dict[str, NDArray[np.int64]]:
    """By layer: for every input channel or feature the number of the unit it reads, `INPUT` or `UNKNOWN`.

    Units are counted through `layers` in order. A channel that mixes several units (a residual sum, a normalisation over channels) is
    unknown, as is one on which no change arrives though some other channel of the layer has one.
    """
    if not layers:
        return {}
    total = sum(layer.units for layer in layers.values())
    digits = max(1, (total - 1).bit_length())
    numbers = np.arange(total)
    groups = [numbers >> d & 1 == one for d in range(digits) for one in (1, 0)]
    changed: dict[str, NDArray[np.bool_]] = {}
    for size in _ROUNDS:
        for path, found in _round(model, layers, np.stack(groups), size).items():
            changed[path] = changed[path] | found if path in changed else found
    return {path: _spelled(found, total) for path, found in changed.items()}


def _spelled(changed: NDArray[np.bool_], total: int) -> NDArray[np.int64]:
    """Numbers of the units from (2 · digits, channels) changes."""
    ones, zeros = changed[::2], changed[1::2]
    number = (ones * (1 << np.arange(len(ones)))[:, None]).sum(0)
    single = (ones ^ zeros).all(0) & (number < total)
    none = ~(ones | zeros).any(0)
    if none.all():
        return np.full(changed.shape[1], INPUT)
    return np.where(single, number, UNKNOWN)


def _round(
    model: Model, layers: Mapping[str, Layer], groups: NDArray[np.bool_], size: float
) -> dict[str, NDArray[np.bool_]]:
    """By layer (groups, channels): whether the layer's input channel changes when the group's units do."""
    generator = torch.Generator().manual_seed(round(size))
    starts = dict(zip(layers, np.cumsum([0, *(layer.units for layer in layers.values())]).tolist(), strict=False))
    readers = {
        path: _replacing(layer, groups[:, starts[path] : starts[path] + layer.units], size, generator)
        for path, layer in layers.items()
    }
    modules = {module: name for name, module in model.network.named_modules(remove_duplicate=False)}
    calls: dict[nn.Module, int] = {}
    found: dict[str, NDArray[np.bool_]] = {}
    own = threading.get_ident()

    def before(module: nn.Module, inputs: Any) -> None:
        if threading.get_ident() != own or not isinstance(module, Weighted):
            return
        calls[module] = number = calls.get(module, 0) + 1
        path = modules[module] + (f"#{number}" if number > 1 else "")
        given = first_tensor(inputs)
        if path in layers and given is not None:
            found[path] = _moved(given, module)

    x = model.example(1).expand(len(groups) + 1, *model.contract.shape).clone()
    with undisturbed(model.network), torch.no_grad(), listening(model.network, lambda *_: None, before):
        with Probe(model.network, readers, cut=False) as probe:
            probe(x)
    return found


def _replacing(layer: Layer, groups: NDArray[np.bool_], size: float, generator: torch.Generator) -> Any:
    """A reader that puts noise in place of a layer's output: the same for every input but for the group's units."""
    shape = layer.shape
    noise = torch.randn(shape, generator=generator)
    usual = size * (noise + 0.5 * noise.sign())
    other = -1.7 * usual  # one of the two passes a ReLU
    axis = layer.axis
    table = torch.from_numpy(np.concatenate([np.zeros((1, groups.shape[1]), bool), groups]))
    wide = [len(table), *(layer.units if n == axis else 1 for n in range(1, len(shape) + 1))]
    changed = table.view(wide)

    def reader(output: Tensor) -> Tensor:
        if tuple(output.shape[1:]) != shape or len(output) != len(table):
            raise CannotRun("a layer's output has no row an input")
        given = torch.where(changed, other, usual)
        return given.to(output.device, output.dtype)

    return reader


def _moved(given: Tensor, module: nn.Module) -> NDArray[np.bool_]:
    """(inputs − 1, channels): where an input differs from the first one."""
    axis = given.ndim - 1 if isinstance(module, nn.Linear) else 1
    flat = given.movedim(axis, 1).reshape(len(given), given.shape[axis], -1).float()
    away = (flat[1:] - flat[:1]).abs().amax(2)
    return (away > _EQUAL * flat.abs().max()).cpu().numpy()

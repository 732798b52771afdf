"""Which unit each weight of a layer reads, found by trying it out.

Every layer with weights is made to put out fixed noise, so that nothing passes through it. What then changes at another layer's input,
when some units are given other noise, came from these units over ReLUs, pools, norms, concatenations and reshapings only. Units are
numbered through, and are changed in groups by the digits of their numbers, each digit once where it is 1 and once where it is 0: an input
channel that reads one unit changes in exactly one of the two for every digit, which spells the number. All layers are read at once.

A channel that reads a sum, as behind residual connections, changes in both. There the layers are changed one by one: first two halves of
each, which shows whose units reach the channel at all, then those by the digits of their own.
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

INPUT, UNKNOWN, NONE = -1, -2, -3
_ROUNDS = (1.0, 10.0, 100.0)  # sizes of the noise: a norm may move small ones to where a ReLU lets nothing pass
_EQUAL = 1e-6  # of the largest value: what is no change
_FEW, _DRAWS = 16, 4  # positions, below which a sum is looked for with several draws of noise
_AT_ONCE = 32  # groups in one pass
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
    """By layer (channels, K): for every input channel or feature the numbers of the units it reads, more than one where it is their sum.

    Units are counted through `layers` in order. A row ends with `NONE` where it has fewer than K; it is `INPUT` where the layer reads the
    network's input, and `UNKNOWN` where a channel mixes several units of one layer (a normalisation over channels, attention), or where
    no change arrives though some other channel of the layer has one.
    """
    if not layers:
        return {}
    total = sum(layer.units for layer in layers.values())
    groups = _digits(np.arange(total))
    changed: dict[str, NDArray[np.bool_]] = {}
    for size in _ROUNDS:
        _note(changed, _round(model, layers, groups, size))
    found = {path: _spelled(one, total)[:, None] for path, one in changed.items()}
    left = {path: (one == UNKNOWN).any(1) & changed[path].any(0) for path, one in found.items()}
    if any(one.any() for one in left.values()):
        for path, told in _sums(model, layers, left).items():
            found[path] = _rows(found[path][:, 0], told)
    return found


def _digits(numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(2 · digits, units): where a digit of a unit's number is 1, and where it is 0, digit by digit; -1 is in no group."""
    count = max(1, int(numbers.max(initial=0)).bit_length())
    return np.stack([(numbers >> d & 1 == one) & (numbers >= 0) for d in range(count) for one in (1, 0)])


def _note(changed: dict[str, NDArray[np.bool_]], found: Mapping[str, NDArray[np.bool_]]) -> None:
    """Add the changes of another round."""
    for path, one in found.items():
        changed[path] = changed[path] | one if path in changed else one


def _spelled(changed: NDArray[np.bool_], total: int) -> NDArray[np.int64]:
    """Numbers of the units from (2 · digits, channels) changes."""
    ones, zeros = changed[::2], changed[1::2]
    number = (ones * (1 << np.arange(len(ones)))[:, None]).sum(0)
    single = (ones ^ zeros).all(0) & (number < total)
    none = ~(ones | zeros).any(0)
    if none.all():
        return np.full(changed.shape[1], INPUT)
    return np.where(single, number, UNKNOWN)


def _sums(
    model: Model, layers: Mapping[str, Layer], left: Mapping[str, NDArray[np.bool_]]
) -> dict[str, dict[int, tuple[int, ...]]]:
    """By layer, for those of its channels `left` that read a sum: channel → the numbers of its units, one of each layer in it."""
    names, units = list(layers), [layer.units for layer in layers.values()]
    owner = np.repeat(np.arange(len(units)), units)
    own = np.concatenate([np.arange(count) for count in units])
    halves = np.stack([(owner == n) & (own % 2 == half) for n in range(len(units)) for half in (1, 0)])
    changed: dict[str, NDArray[np.bool_]] = {}
    # where maps have few positions, a ReLU may hide a change from one draw of the noise
    few = any(left[path].any() and np.prod(layers[path].positions) < _FEW for path in left)
    for draw in range(_DRAWS if few else 1):
        for size in _ROUNDS:
            _note(changed, _round(model, layers, halves, size, draw))
    reached = {path: one[::2] | one[1::2] for path, one in changed.items()}  # (layers, channels)
    mixed = {path: (one[::2] & one[1::2]).any(0) for path, one in changed.items()}
    open_channels = {path: np.flatnonzero(one & ~mixed[path]) for path, one in left.items() if path in reached}
    asked = [
        n
        for n in range(len(names))
        if units[n] > 1 and any(reached[p][n, chs].any() for p, chs in open_channels.items())
    ]
    spelled: dict[int, dict[str, NDArray[np.int64]]] = {}
    for n in asked:
        digits: dict[str, NDArray[np.bool_]] = {}
        for size in _ROUNDS:
            _note(digits, _round(model, layers, _digits(np.where(owner == n, own, -1)), size))
            spelled[n] = {path: _spelled(one, units[n]) for path, one in digits.items()}
            if all((spelled[n][p][chs[reached[p][n, chs]]] >= 0).all() for p, chs in open_channels.items()):
                break
    first = np.cumsum([0, *units]).tolist()
    found: dict[str, dict[int, tuple[int, ...]]] = {}
    for path, channels in open_channels.items():
        for channel in channels.tolist():
            feeding = np.flatnonzero(reached[path][:, channel]).tolist()
            parts = [int(spelled[n][path][channel]) if n in spelled else 0 for n in feeding]
            if feeding and min(parts) >= 0:
                found.setdefault(path, {})[channel] = tuple(first[n] + u for n, u in zip(feeding, parts, strict=True))
    return found


def _rows(single: NDArray[np.int64], sums: Mapping[int, tuple[int, ...]]) -> NDArray[np.int64]:
    """(channels, K) of numbers (channels,), those in `sums` put in."""
    rows = np.full((len(single), max(map(len, sums.values()))), NONE)
    rows[:, 0] = single
    for channel, numbers in sums.items():
        rows[channel, : len(numbers)] = numbers
    return rows


def _round(
    model: Model, layers: Mapping[str, Layer], groups: NDArray[np.bool_], size: float, draw: int = 0
) -> dict[str, NDArray[np.bool_]]:
    """By layer (groups, channels): whether the layer's input channel changes when the group's units do."""
    parts = [_pass(model, layers, groups[n : n + _AT_ONCE], size, draw) for n in range(0, len(groups), _AT_ONCE)]
    return {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}


def _pass(
    model: Model, layers: Mapping[str, Layer], groups: NDArray[np.bool_], size: float, draw: int
) -> dict[str, NDArray[np.bool_]]:
    generator = torch.Generator().manual_seed(round(size) + 1000 * draw)
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

"""One pass in which every unit of a layer is silenced in turn, each in a row of its own.

Up to the layer the network runs once for an input. From there on the silenced value of each unit rides along beside the map, through
whatever works on each unit alone; at the first convolution or dense layer one row a unit comes out, the whole sum less what that unit
adds to it. Where anything else mixes units, the rows are written out in full. Only what comes after is computed once for each unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from penlight.models.layers import units_first
from penlight.models.places import DROPS, POOLS, call_name, rectifier_names, tensors

_ALONE = (*DROPS, *POOLS, *rectifier_names(), "batch_norm")
_ASKS = ("__get__", "get", "size", "dim", "len", "is_contiguous", "stride", "numel", "data_ptr", "is_floating_point")


class Spread(TorchFunctionMode):
    """Rows (inputs · units) from rows (inputs) from the moment `start` is called in a pass.

    The calls before that are written down in the first pass; `again` readies the next one, which takes their results instead of
    computing them.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._weights = {id(one) for one in [*network.parameters(), *network.buffers()]}
        self._known: list[tuple[str, Any]] = []
        self.again()

    def again(self) -> None:
        """Ready for the next pass over the same inputs."""
        self._next, self._started, self._whole = 0, False, bool(self._known)
        self._own = False  # calls of this class itself
        self._live: dict[int, tuple[Tensor, Tensor, int]] = {}  # map, the same with silenced values, columns a unit
        self._units: list[int] = []
        self._inputs = 0

    def start(self, output: Tensor, layout: str, units: Sequence[int], values: Tensor) -> Tensor:
        """From here on: `output` with each of `units` in turn at its value of `values` (units of the layer,)."""
        self._own, self._started, self._whole = True, True, True
        self._inputs, self._units = len(output), list(units)
        base = output.clone()
        silenced = torch.empty_like(base)
        target = units_first(silenced, layout)
        target.copy_(values.view(1, -1, *[1] * (target.ndim - 2)).expand_as(target))
        if layout.find("C") == 1:
            self._live[id(base)] = (base, silenced, 1)
        else:
            base = self._written(base, silenced, layout)
        self._own = False
        return base

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._own:
            return func(*args, **kwargs)
        name = call_name(func)
        if not self._started:
            return self._before(name, func, args, kwargs)
        given = tensors([*args, *kwargs.values()])
        riders = [one for one in given if self._rides(one)]
        if riders and name not in _ASKS:
            if args and len(riders) == 1 and args[0] is riders[0]:
                found = self._ride(name, func, args, kwargs)
                if found is not None:
                    return found
            full = {id(one): self._written(*self._live[id(one)][:2], "NC") for one in riders}
            args = _mapped(args, lambda one: full.get(id(one), one))
            kwargs = {key: _mapped(value, lambda one: full.get(id(one), one)) for key, value in kwargs.items()}
            given = tensors([*args, *kwargs.values()])
        if len(given) > 1 and len(self._units) > 1 and any(self._spread(one) for one in given):
            args = _mapped(args, self._joined)
            kwargs = {key: _mapped(value, self._joined) for key, value in kwargs.items()}
        return func(*args, **kwargs)

    def _before(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        if not self._whole:
            output = func(*args, **kwargs)
            self._known.append((name, output))
            return output
        known, output = self._known[self._next]
        if known != name:
            raise RuntimeError("the network takes another way in the second pass")
        self._next += 1
        return output

    def finished(self, output: Tensor) -> Tensor:
        """What the pass put out, written out in full if units never met."""
        return self._written(*self._live[id(output)][:2], "NC") if self._rides(output) else output

    def _rides(self, one: Tensor) -> bool:
        found = self._live.get(id(one))
        return found is not None and found[0] is one

    def _spread(self, one: Tensor) -> bool:
        return one.ndim > 0 and len(one) == self._inputs * len(self._units) and id(one) not in self._weights

    def _joined(self, one: Tensor) -> Tensor:
        """A map from before the layer, once for each unit."""
        if one.ndim == 0 or len(one) != self._inputs or id(one) in self._weights:
            return one
        return one.repeat_interleave(len(self._units), 0)

    def _written(self, base: Tensor, silenced: Tensor, layout: str) -> Tensor:
        """(inputs · units, …): all rows in full. With columns a unit, `base` is (inputs, units · columns)."""
        columns = self._live[id(base)][2] if self._rides(base) else 1
        rows = torch.repeat_interleave(base, len(self._units), 0)
        whole, values = (units_first(one, layout) for one in (rows, silenced))
        for n, unit in enumerate(self._units):
            part = slice(unit * columns, (unit + 1) * columns)
            whole[n :: len(self._units), part] = values[:, part]
        return rows

    def _ride(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """What a call makes of a riding map, or None where it mixes units."""
        base, silenced, columns = self._live[id(args[0])]
        if name in _ALONE and len(tensors(args)) == 1:
            output = func(*args, **kwargs)
            other = func(silenced, *args[1:], **kwargs)
            return self._carry(output, other, columns)
        if name in ("flatten", "view", "reshape") and base.ndim > 2:
            output = func(*args, **kwargs)
            if output.shape == (len(base), base[0].numel()):
                return self._carry(output, silenced.reshape(output.shape), columns * base[0, 0].numel())
            return None
        if name == "linear" and base.ndim == 2:
            return self._dense(func(*args, **kwargs), silenced - base, args[1], columns)
        if (
            name == "conv2d"
            and columns == 1
            and (args[6] if len(args) > 6 else kwargs.get("groups", 1)) == 1
            and len(args) > 5
        ):
            return self._convolution(func(*args, **kwargs), silenced - base, args)
        return None

    def _carry(self, output: Tensor, silenced: Tensor, columns: int) -> Tensor:
        self._live[id(output)] = (output, silenced, columns)
        return output

    def _dense(self, sums: Tensor, change: Tensor, weight: Tensor, columns: int) -> Tensor:
        """(inputs · units, O): the sums with what each unit's change adds."""
        parts = change.view(len(change), -1, columns)[:, self._units]
        weights = weight.view(len(weight), -1, columns)[:, self._units]
        added = torch.matmul(weights.transpose(0, 1), parts.unsqueeze(3)).squeeze(3)
        return (sums[:, None] + added).flatten(0, 1)

    def _convolution(self, sums: Tensor, change: Tensor, args: Any) -> Any:
        """(inputs · units, O, H, W): the same for a convolution."""
        weight, stride, padding, dilation = args[1], args[3], args[4], args[5]
        if isinstance(padding, str):
            return None
        weights = weight[:, self._units].flatten(2).transpose(0, 1)  # (units, O, kernel)
        count, outs = len(change), weight.shape[0]
        place = sums.shape[2:]
        parts = change[:, self._units]
        plain = _once(weight.shape[2:], 1) and _once(stride, 1) and _once(padding, 0)
        if plain:
            flat = sums.contiguous().view(count, 1, outs, -1)
            added = torch.addcmul(
                flat, parts.flatten(2).unsqueeze(2), weights.transpose(1, 2).transpose(1, 2).unsqueeze(0)
            )
        else:
            seen = F.unfold(parts.flatten(0, 1).unsqueeze(1), weight.shape[2:], dilation, padding, stride)
            seen = seen.view(count, len(self._units), -1, place[0] * place[1])
            added = torch.matmul(weights, seen).add_(sums.contiguous().view(count, 1, outs, -1))
        return added.view(count * len(self._units), outs, *place)


def _once(sizes: Sequence[int], value: int) -> bool:
    """Whether all sizes are `value`."""
    return all(size == value for size in sizes)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change) for item in value)
    return value

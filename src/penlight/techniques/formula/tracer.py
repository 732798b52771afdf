"""Following a network operation by operation: what is known of every tensor, kept by the memory it lies in.

In-place operations and views need nothing of their own this way: a view is other places of the same memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from penlight.models.probe import first_tensor, listening


class Refused(Exception):
    """An operation that cannot be followed: what it does, and the module it stands in."""

    def __init__(self, what: str, where: str) -> None:
        self.what, self.where = what, where
        super().__init__(f"{where or 'its forward'} {what}")


@dataclass(frozen=True)
class Call:
    """One operation: `name` without namespace and in-place mark, 'relu' for aten::relu_; `where` the module that runs it."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    where: str
    writes: bool

    @property
    def plain_name(self) -> str:
        """The name for a message: 'layer norm' for native_layer_norm."""
        return self.name.removeprefix("native_").strip("_").replace("_", " ")

    def given(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by its place or name."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)


@dataclass
class _Shadow:
    memory: StorageWeakRef
    rows: Tensor | None  # (R, numbers of the memory); None where it could not be followed
    refused: Refused | None = None


@dataclass(frozen=True)
class Seat:
    """A tensor as it was at one moment: its memory and version, and its shape (1, …)."""

    memory: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Seat:
        """Where a tensor lies now."""
        memory = tensor.untyped_storage()._cdata
        return cls(memory, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor._version)


class Algebra(ABC):
    """What is followed: rows of numbers beside every tensor, and the rule of every operation.

    `count` is how many rows there are by now; with `constants` the first of them is the tensor's part that does not depend on the input.
    """

    count: int
    constants: bool = False

    @abstractmethod
    def rule(self, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor | None:
        """The rows (R, *shape) of the operation's first output; None if that is a constant. `output` is None before an in-place one.

        Raises `Refused` where there is no rule.
        """


@dataclass
class Tracer:
    """Runs beside a pass of a network.

    >>> tracer = Tracer(algebra)                             # doctest: +SKIP
    >>> tracer.plant(x, rows)                                # doctest: +SKIP
    >>> with tracer.following(network): network(x)           # doctest: +SKIP
    """

    algebra: Algebra
    producers: dict[Seat, str] = field(
        default_factory=dict
    )  # a tensor's seat → path of the module that put it out first
    _shadows: dict[int, _Shadow] = field(default_factory=dict)
    _inside: list[str] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The module that runs now; '' in the network's own forward."""
        return self._inside[-1] if self._inside else ""

    def plant(self, tensor: Tensor, rows: Tensor) -> None:
        """Begin to follow a tensor: its rows (R, *shape)."""
        self._write(tensor, rows)

    def follows(self, value: Any) -> bool:
        """Whether the value is a tensor that depends on what was planted."""
        return isinstance(value, Tensor) and self._shadow(value) is not None

    def rows(self, tensor: Tensor) -> Tensor | None:
        """(R, *shape), a view; None for a constant. Raises `Refused` where it could not be followed."""
        shadow = self._shadow(tensor)
        if shadow is None:
            return None
        if shadow.rows is None:
            assert shadow.refused is not None
            raise shadow.refused
        size = shadow.rows.shape[1]
        if len(shadow.rows) < self.algebra.count:
            shadow.rows = torch.cat([shadow.rows, shadow.rows.new_zeros(self.algebra.count - len(shadow.rows), size)])
        return shadow.rows.as_strided(
            (len(shadow.rows), *tensor.shape), (size, *tensor.stride()), tensor.storage_offset()
        )

    def _shadow(self, tensor: Tensor) -> _Shadow | None:
        return self._shadows.get(tensor.untyped_storage()._cdata)

    def _write(self, tensor: Tensor, rows: Tensor) -> None:
        memory = tensor.untyped_storage()
        shadow = self._shadows.get(memory._cdata)
        size = memory.nbytes() // tensor.element_size()
        if shadow is None or shadow.rows is None:
            shadow = _Shadow(_weak(memory), torch.zeros(len(rows), size, dtype=rows.dtype))
            if self.algebra.constants:  # an operation may write to a part of it only
                shadow.rows[0] = torch.empty(0, dtype=tensor.dtype).set_(memory, 0, (size,))  # type: ignore[index, call-overload]
            self._shadows[memory._cdata] = shadow
        assert shadow.rows is not None
        missing = len(rows) - len(shadow.rows)
        if missing > 0:
            shadow.rows = torch.cat([shadow.rows, shadow.rows.new_zeros(missing, size)])
        place = shadow.rows.as_strided((len(rows), *tensor.shape), (size, *tensor.stride()), tensor.storage_offset())
        place.copy_(rows)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """One operation of the network, with what follows from it."""
        for key in [key for key, shadow in self._shadows.items() if _gone(shadow.memory)]:
            del self._shadows[key]
        leaves = [leaf for leaf in tree_leaves((args, dict(kwargs))) if self.follows(leaf)]
        name = func._schema.name.partition("::")[2]
        if not leaves or name.endswith("_like") or name.startswith("new_"):  # the latter take shapes, not values
            return func(*args, **kwargs)
        writes = func._schema.is_mutable and (name.endswith("_") or "out" in kwargs)
        call = Call(func, name.rstrip("_") if writes else name, args, kwargs, self.where, writes)
        if writes:
            found = self._found(call, None, leaves)
            output = func(*args, **kwargs)
            self._keep(self._written(call), found)
            return output
        output = func(*args, **kwargs)
        tensor = first_tensor(output)
        if tensor is None or self._shadow(tensor) is not None:  # no tensor, or a view
            if tensor is None and name == "_local_scalar_dense":
                raise Refused("takes a path that depends on the input's values", call.where)
            return output
        self._keep(tensor, self._found(call, tensor, leaves))
        return output

    def _found(self, call: Call, output: Tensor | None, leaves: list[Tensor]) -> Tensor | Refused | None:
        try:
            for leaf in leaves:
                self.rows(leaf)
            return self.algebra.rule(self, call, output)
        except Refused as refused:
            return refused

    def _keep(self, tensor: Tensor, found: Tensor | Refused | None) -> None:
        if isinstance(found, Refused):
            memory = tensor.untyped_storage()
            self._shadows[memory._cdata] = _Shadow(_weak(memory), None, found)
        elif found is not None:
            self._write(tensor, found)

    @staticmethod
    def _written(call: Call) -> Tensor:
        if "out" in call.kwargs or not isinstance(call.args[0], Tensor):
            raise Refused(f"writes the result of {call.plain_name} to memory it names", call.where)
        return call.args[0]

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Every operation that runs inside is followed, and modules are told by their paths."""
        names = {module: name for name, module in network.named_modules() if name}
        calls: dict[nn.Module, int] = {}

        def before(module: nn.Module, inputs: Any) -> None:
            self._inside.append(names.get(module, ""))

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            self._inside.pop()
            tensor = first_tensor(output)
            if tensor is None or module not in names or tensor.ndim == 0 or not tensor.is_floating_point():
                return
            calls[module] = number = calls.get(module, 0) + 1
            self.producers.setdefault(Seat.of(tensor), names[module] + (f"#{number}" if number > 1 else ""))

        self._inside.clear()
        with listening(network, after, before), _Mode(self):
            yield


def _weak(memory: Any) -> StorageWeakRef:
    reference: StorageWeakRef = StorageWeakRef(memory)  # type: ignore[no-untyped-call]
    return reference


def _gone(reference: StorageWeakRef) -> bool:
    return bool(reference.expired())  # type: ignore[no-untyped-call]


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tracer = tracer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.tracer.run(func, args, kwargs or {})

"""Reading a network while it runs, without leaving a trace. The only module that touches hooks, modes and gradients' flags."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from penlight.errors import CannotRun, UnknownName

Reader = Callable[[Tensor], Tensor | None]
LOGITS = (
    "(logits)"  # the class scores where no module puts them out: what goes into the final softmax, or the output itself
)
_SOFTMAX = (torch.softmax, Tensor.softmax, nn.functional.softmax)
_LOG_SOFTMAX = (torch.log_softmax, Tensor.log_softmax, nn.functional.log_softmax)


class _Cut(BaseException):
    """Ends a forward pass early; a BaseException so that no `except Exception` of the network swallows it."""


class Probe:
    """Calls readers with the outputs of layers, each time the network runs inside the block.

    >>> seen = {}
    >>> with Probe(network, {"conv1": lambda out: seen.update(conv1=out)}) as probe:   # doctest: +SKIP
    ...     probe(x)                                                                    # stops right after conv1

    `wanted` maps a layer's path to a reader; a reader that returns a tensor replaces the layer's output. `path#2` is the second call
    of a module that is called several times. With `cut`, the pass stops after the last wanted layer and returns None. A layer that
    is not reached raises `CannotRun`. `LOGITS` reads the input of the softmax that makes the network's output. Passes on other
    threads are not touched. A reader that keeps a tensor must clone it: a later in-place operation writes into it.
    `given` maps paths of `wanted` to what is called with the tensor that goes into their module, just before it runs.
    """

    def __init__(
        self,
        network: nn.Module,
        wanted: Mapping[str, Reader],
        *,
        cut: bool = True,
        given: Mapping[str, Callable[[Tensor], None]] | None = None,
    ) -> None:
        self.network = unwrap(network)
        self._given = dict(given or {})
        self._wanted, self._cut = dict(wanted), cut and LOGITS not in wanted
        self._handles: list[Any] = []
        self._calls: dict[nn.Module, int] = {}
        self._left: set[str] = set()
        self._thread: int | None = None
        modules = dict(self.network.named_modules(remove_duplicate=False))
        self._by_module: dict[nn.Module, dict[int, str]] = {}
        for path in self._wanted:
            if path == LOGITS:
                continue
            name, number = split_call(path)
            if name not in modules:
                raise UnknownName("layer", path, [n for n in modules if n])
            self._by_module.setdefault(modules[name], {})[number] = path

    def __enter__(self) -> Probe:
        for module in self._by_module:
            self._handles.append(module.register_forward_hook(self._hook))
            if not self._given.keys().isdisjoint(self._by_module[module].values()):
                self._handles.append(module.register_forward_pre_hook(self._before))
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if self._thread != threading.get_ident():
            return
        path = self._by_module[module].get(self._calls.get(module, 0) + 1)
        tensor = first_tensor(inputs)
        if path in self._given and tensor is not None:
            self._given[path](tensor)

    def _hook(self, module: nn.Module, _inputs: Any, output: Any) -> Any:
        if self._thread != threading.get_ident():
            return None
        self._calls[module] = number = self._calls.get(module, 0) + 1
        path = self._by_module[module].get(number)
        if path is None:
            return None
        tensor = first_tensor(output)
        if tensor is None:
            raise CannotRun(f"layer {path!r} puts out no tensor but a {type(output).__name__}")
        changed = self._wanted[path](tensor)
        self._left.discard(path)
        if self._cut and not self._left:
            raise _Cut
        return None if changed is None else with_first_tensor(output, changed)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the network; returns its output, or None when the pass was cut."""
        self._calls.clear()
        self._left = set(self._wanted)
        self._thread = threading.get_ident()
        # a network may write into its input, which autograd forbids at a leaf
        inputs = tuple(x.clone() if x.requires_grad and x.is_leaf else x for x in inputs)
        try:
            if LOGITS in self._wanted:
                with SoftmaxWatch() as watch:
                    output = self.network(*inputs)
                logits = watch.logits(output)
                scores = first_tensor(output) if logits is None else logits
                if scores is not None:
                    self._wanted[LOGITS](scores)
                    self._left.discard(LOGITS)
            else:
                output = self.network(*inputs)
        except _Cut:
            return None
        finally:
            self._thread = None
        if self._left:
            raise CannotRun(f"layer {sorted(self._left)[0]!r} was not reached with this input")
        return output


class SoftmaxWatch(TorchFunctionMode):
    """Sees every softmax, functional or a module's, and remembers what went in and came out."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _SOFTMAX or func in _LOG_SOFTMAX:
            self._seen.append((args[0] if args else (kwargs or {})["input"], output))
        return output

    def logits(self, output: Any) -> Tensor | None:
        """The input of the softmax whose result is `output`, if one is."""
        tensor = first_tensor(output)
        for before, after in reversed(self._seen):
            if tensor is not None and (
                after is tensor or (after.shape == tensor.shape and after.data_ptr() == tensor.data_ptr())
            ):
                return before
        return None


@dataclass
class _Kept:
    """How a network was before the first of those who now run it came."""

    modes: list[tuple[nn.Module, bool]]
    flags: list[tuple[nn.Parameter, bool]] | None = None
    users: int = 0
    freezers: int = 0


_kept: dict[int, _Kept] = {}
_keeping = threading.Lock()


@contextmanager
def undisturbed(network: nn.Module, *, freeze: bool = False) -> Iterator[None]:
    """The network in eval mode, on request without gradients for its parameters; afterwards as it was, after an error too.

    Modes are kept module by module; the CPU's random state is put back as well. Blocks may be nested and run on several threads: the
    last to leave puts the network back.
    """
    random_state = torch.get_rng_state()
    _enter(network, freeze)
    try:
        yield
    finally:
        _leave(network, freeze)
        torch.set_rng_state(random_state)


def _enter(network: nn.Module, freeze: bool) -> None:
    with _keeping:
        kept = _kept.setdefault(id(network), _Kept([(module, module.training) for module in network.modules()]))
        kept.users += 1
        for module, _ in kept.modes:
            module.training = False
        if freeze:
            kept.freezers += 1
            if kept.flags is None:
                kept.flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
            for parameter, _ in kept.flags:
                parameter.requires_grad_(False)


def _leave(network: nn.Module, freeze: bool) -> None:
    with _keeping:
        kept = _kept[id(network)]
        kept.users -= 1
        kept.freezers -= freeze
        if kept.freezers == 0 and kept.flags is not None:
            for parameter, flag in kept.flags:
                parameter.requires_grad_(flag)
            kept.flags = None
        if kept.users == 0:
            for module, training in kept.modes:
                module.training = training
            del _kept[id(network)]


_CONTAINERS = (OrderedDict, dict, list, set)


def frozen_copy(network: nn.Module, shared: Iterable[nn.Parameter] = ()) -> nn.Module:
    """A copy in eval mode whose parameters take no gradients; `CannotRun` if the network cannot be copied.

    It is independent but for the values of `shared` parameters, which nobody may write to.
    """
    known: dict[int, Any] = {id(one): nn.Parameter(one.detach(), requires_grad=False) for one in shared}
    for module in network.modules():  # a module holds a dozen empty containers, whose copies took longer than all else
        known |= {id(held): type(held)() for held in vars(module).values() if type(held) in _CONTAINERS and not held}
    try:
        twin = copy.deepcopy(unwrap(network), known)
    except Exception as error:  # a module may hold anything: report what it holds
        raise CannotRun(f"the network cannot be copied ({type(error).__name__}: {error})") from error
    return twin.eval().requires_grad_(False)


@contextmanager
def listening(
    network: nn.Module, after: Callable[[nn.Module, Any, Any], None], before: Callable[[nn.Module, Any], None]
) -> Iterator[None]:
    """Call `before(module, inputs)` and `after(module, inputs, output)` around every module of `network`."""
    handles: list[Any] = []
    try:
        for module in network.modules():
            handles.append(module.register_forward_pre_hook(lambda m, i: before(m, i)))
            handles.append(module.register_forward_hook(lambda m, i, o: after(m, i, o)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def unwrap(network: nn.Module) -> nn.Module:
    """The module inside a DataParallel wrapper."""
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrap(network.module)
    return network


def split_call(path: str) -> tuple[str, int]:
    """'relu#2' → ('relu', 2); a path without a number is the first call."""
    name, mark, number = path.rpartition("#")
    return (name, int(number)) if mark and number.isdigit() else (path, 1)


def first_tensor(output: Any) -> Tensor | None:
    """The tensor of a module's output: itself, or the first in a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for item in items if (found := first_tensor(item)) is not None), None)


def with_first_tensor(output: Any, tensor: Tensor) -> Any:
    """`output` with its first tensor replaced."""
    if isinstance(output, Tensor):
        return tensor
    if isinstance(output, tuple | list):
        items = list(output)
        for n, item in enumerate(items):
            if first_tensor(item) is not None:
                items[n] = with_first_tensor(item, tensor)
                break
        return type(output)(items) if not hasattr(output, "_fields") else type(output)(*items)
    raise CannotRun(f"the output of a layer cannot be replaced inside a {type(output).__name__}")

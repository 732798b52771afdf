"""Getting a gradient past ReLUs, read off the recorded graph: whatever wrote the operation down (a module, a function, in place, one ReLU
used ten times, a traced graph), autograd has a node for it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from penlight.models.graph import Node, nodes, operation

_INFINITE = math.inf


def _bounds(low: Any, high: Any) -> tuple[float, float]:
    return (-_INFINITE if low is None else float(low), _INFINITE if high is None else float(high))


# name of the operation -> (values it was given, or its result; lowest and highest that let a gradient through)
_GATES: dict[str, Callable[[Node], tuple[Tensor, float, float]]] = {
    "Relu": lambda n: (n._saved_result, 0.0, _INFINITE),
    "Hardtanh": lambda n: (n._saved_self, float(n._saved_min_val), float(n._saved_max_val)),
    "Clamp": lambda n: (n._saved_self, *_bounds(n._saved_min, n._saved_max)),
    "ClampMin": lambda n: (n._saved_self, float(n._saved_min), _INFINITE),
    "ClampMax": lambda n: (n._saved_self, -_INFINITE, float(n._saved_max)),
    "Threshold": lambda n: (n._saved_self, float(n._saved_threshold), _INFINITE),
    "Hardswish": lambda n: (n._saved_self, -3.0, _INFINITE),
    "Hardsigmoid": lambda n: (n._saved_self, -3.0, 3.0),
}
_BENT = ("Hardswish", "Hardsigmoid")  # with a slope of their own where they are open
# operations that only move values, or average or select them: a ReLU behind these is the one whose result is being read
_CARRIERS = re.compile(
    r"(Cat|Stack|AsStrided|View|UnsafeView|Reshape|ReshapeAlias|Alias|Permute|Transpose|T|Slice|Select|Squeeze|Unsqueeze|Expand|Clone|ToCopy"
    r"|Split|UnsafeSplit|SplitWithSizes|Unbind|MaxPool\dDWithIndices|AvgPool\dD|AdaptiveAvgPool\dD|MkldnnAdaptiveAvgPool2D|Mean|Flatten)\Z"
)


def open_last(output: Tensor) -> None:
    """Let the gradient of `output` through the ReLUs whose result it is, as if they were not there.

    A unit that is read after its ReLU cannot be told from its gradient to go below zero; before the ReLU it can.
    """
    for node in nodes(output.grad_fn, lambda name: bool(_CARRIERS.match(name))):
        if operation(node) in _GATES:
            node.register_hook(lambda given, asked: (asked[0], *given[1:]))


def redirect(output: Tensor) -> None:
    """Lucid's rule for every ReLU below `output`, with gradients that point uphill: where nothing gets through for a sample, the
    gradient passes, except where it would push a value that is off further down (or one that is cut off above further up).

    Lucid, misc/redirected_relu_grad.py; ReLU6, hardtanh and clamp are treated alike.
    """
    for node in nodes(output.grad_fn):
        read = _GATES.get(operation(node))
        if read is not None:
            _redirect(node, *read(node))


def _redirect(node: Node, values: Tensor, low: float, high: float) -> None:
    below, above = values.detach() <= low, values.detach() >= high

    def pass_on(given: tuple[Tensor | None, ...], asked: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        through, wanted = given[0], asked[0]
        if through is None:
            return given
        helpful = wanted.masked_fill((below & (wanted < 0)) | (above & (wanted > 0)), 0.0)
        rows = through.reshape(len(through), -1) if through.ndim else through.reshape(1, 1)
        stuck = (rows == 0).all(1).reshape((-1,) + (1,) * (through.ndim - 1))
        return (torch.where(stuck, helpful, through), *given[1:])

    node.register_hook(pass_on)


@dataclass(frozen=True)
class Leaky:
    """ReLUs that let a little through where they are closed: in the "forward" pass, or in the "backward" pass alone."""

    slope: float
    where: str = "forward"


def leak(output: Tensor, slope: float) -> None:
    """Every closed ReLU below `output` hands `slope` of its gradient on; the forward pass stays the network's own."""
    for node in nodes(output.grad_fn):
        name = operation(node)
        if name in _BENT:
            _leak_bent(node, slope, *_GATES[name](node))
        elif name in _GATES:
            _leak(node, slope)


def _leak(node: Node, slope: float) -> None:
    def pass_on(given: tuple[Tensor | None, ...], asked: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        # a gate hands on all or nothing, so that what lies between is right for both: no mask has to be made
        return given if given[0] is None else (torch.lerp(given[0], asked[0], slope), *given[1:])

    node.register_hook(pass_on)


def _leak_bent(node: Node, slope: float, values: Tensor, low: float, high: float) -> None:
    closed = (values.detach() <= low) | (values.detach() >= high)

    def pass_on(given: tuple[Tensor | None, ...], asked: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        return given if given[0] is None else (torch.where(closed, slope * asked[0], given[0]), *given[1:])

    node.register_hook(pass_on)


@contextmanager
def leaking(leaky: Leaky | None) -> Iterator[None]:
    """While this lasts, a "forward" leak makes every ReLU and ReLU6 of the networks that run a leaky one."""
    if leaky is None or leaky.where != "forward":
        yield
        return
    with _LeakyForward(leaky.slope):
        yield


_IN_PLACE = (torch.relu_, Tensor.relu_)
_RELUS = (torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu, F.relu6)


class _LeakyForward(TorchFunctionMode):
    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        values = args[0] if args else kwargs.get("input")
        six = func is F.relu6 or (func is F.hardtanh and tuple(map(float, args[1:3])) == (0.0, 6.0))
        if func not in _RELUS and not six:
            return func(*args, **kwargs)
        place = 3 if func is F.hardtanh else 1
        in_place = func in _IN_PLACE or kwargs.get("inplace", len(args) > place and args[place])
        given = values.clone() if in_place else values  # the backward pass needs what went in
        leaked = _leaky_six(given, self.slope) if six else F.leaky_relu(given, self.slope)
        return values.copy_(leaked) if in_place else leaked


def _leaky_six(values: Tensor, slope: float) -> Tensor:
    return torch.where(values > 6, 6 + slope * (values - 6), F.leaky_relu(values, slope))

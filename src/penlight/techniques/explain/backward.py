"""Gradients with other rules at the rectifiers, read off the recorded graph.

Whatever wrote a ReLU down (a module, a function, in place, one module used ten times, a traced graph), autograd has a node for it, and
the rule is hung on that node for one backward pass. Nothing of the network is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from penlight.errors import CannotRun
from penlight.models import Probe
from penlight.models.graph import Node, nodes, operation
from penlight.techniques.explain.explanation import Scene

RULES = ("plain", "deconv", "guided")
STARTS = ("one", "activation", "map")


def _from_zero(name: str) -> Callable[[Node], bool]:
    """Whether a clamp begins at zero, as that of ReLU6 does, and no hardtanh's."""
    return lambda node: getattr(node, name) is not None and float(getattr(node, name)) == 0.0


# operations that are hard rectifiers, and those that are so smoothly or leave some of the negative side
_HARD: dict[str, Callable[[Node], bool]] = {
    "Relu": lambda node: True,
    "Hardtanh": _from_zero("_saved_min_val"),
    "Clamp": _from_zero("_saved_min"),
    "ClampMin": _from_zero("_saved_min"),
    "Threshold": _from_zero("_saved_threshold"),
}
_SMOOTH = frozenset(
    {"LeakyRelu", "PreluKernel", "RreluWithNoise", "Elu", "Celu", "Gelu", "Silu", "Mish", "Hardswish", "Softplus"}
)


@dataclass(frozen=True)
class Rule:
    """What a backward pass does at rectifiers.

    kind       "plain": the gradient. "deconv": max(g, 0), whatever the forward value was (Zeiler and Fergus). "guided": max(g · f′, 0)
               (Springenberg et al.)
    smooth     whether the rule also holds at leaky and smooth rectifiers (leaky ReLU, PReLU, ELU, GELU, SiLU, Mish, hard swish, softplus);
               if not, they pass their ordinary gradient
    lrn        "backward": the true gradient of a local response normalisation; "pass": as if it were not there, both ways
    """

    kind: str = "plain"
    smooth: bool = True
    lrn: str = "backward"


def rectifiers(root: Node | None, smooth: bool = True) -> list[Node]:
    """The operations below `root` that are rectifiers."""
    found = []
    for node in nodes(root):
        name = operation(node)
        if (name in _HARD and _HARD[name](node)) or (smooth and name in _SMOOTH):
            found.append(node)
    return found


def _deconv(asked: Sequence[Tensor | None], given: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return (given[0].clamp_min(0), *asked[1:])


def _guided(asked: Sequence[Tensor | None], given: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(None if part is None else part.clamp_min(0) for part in asked[:1]) + tuple(asked[1:])


_HOOKS = {"deconv": _deconv, "guided": _guided}


def hang(root: Node | None, rule: Rule) -> int:
    """Hang the rule on the rectifiers below `root`; returns how many there are."""
    found = rectifiers(root, rule.smooth)
    hook = _HOOKS.get(rule.kind)
    for node in found if hook is not None else ():
        node.register_hook(hook)
    return len(found)


class _SameBack(torch.autograd.Function):
    """Another value forward, the gradient unchanged backward."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None


class _ThroughNorms(TorchFunctionMode):
    """Local response normalisations whose backward pass is the identity."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.local_response_norm:
            given = args[0] if args else (kwargs or {})["input"]
            return _SameBack.apply(given, output.detach())  # type: ignore[no-untyped-call]
        return output


@contextmanager
def norms(lrn: str) -> Iterator[None]:
    """While this lasts, local response normalisations go back as `lrn` says."""
    with _ThroughNorms() if lrn == "pass" else nullcontext():
        yield


@dataclass(frozen=True, eq=False)
class Pass:
    """A backward pass that was made: the gradient at the input (N, *shape), the aim's values (N,), and how many rectifiers were met."""

    gradient: Tensor
    values: Tensor
    met: int


def differentiate(
    scene: Scene, x: Tensor, rule: Rule, *, network: nn.Module | None = None, start: str = "one",
    positions: Sequence[tuple[int, ...]] | None = None,
) -> Pass:  # fmt: skip
    """The gradient of the scene's aim at `x` (N, *shape) under a rule, every input for itself.

    `start` is what goes backwards: "one" (1 at the unit, so that the plain rule gives the gradient), "activation" (the unit's own
    value) or "map" (the whole channel with its values, as DeepVis shows it live). `positions`, one an input, stand for the aim's own.
    """
    network = scene.network if network is None else network
    with torch.enable_grad(), norms(rule.lrn):
        given = x.detach().clone().requires_grad_(True)
        values, seed = _start(scene, network, given.clone(), start, positions)  # a network may write into its input
        if not values.requires_grad:
            raise CannotRun(f"{scene.aim} does not depend on the input in a way that has a gradient")
        met = hang(values.grad_fn, rule)
        with torch.backends.cudnn.flags(enabled=False) if given.is_cuda else nullcontext():  # its RNNs refuse eval mode
            # the same as grad(values, given, seed), which imports torch's compiler
            (gradient,) = torch.autograd.grad((values * seed).sum(), given, allow_unused=True)
    found = torch.zeros_like(given) if gradient is None else gradient
    return Pass(found.detach(), values.detach(), met)


def _start(
    scene: Scene, network: nn.Module, x: Tensor, start: str, positions: Sequence[tuple[int, ...]] | None
) -> tuple[Tensor, Tensor]:
    """(values that are differentiated, what goes backwards from each)."""
    if start == "one" and positions is None:
        values = scene.scores(network, x)
        return values, torch.ones_like(values)
    layer, found = scene.model.layers[scene.aim.layer], []

    def read(output: Tensor) -> None:
        found.append(layer.units_first(output)[:, scene.aim.index].clone())

    with Probe(network, {scene.aim.layer: read}) as probe:
        probe(x)
    maps: Tensor = found[-1]
    if start == "map":
        return maps, maps.detach().clone()
    places = list(positions) if positions is not None else [scene.aim.position or ()] * len(x)
    values = torch.stack([one[place] for one, place in zip(maps, places, strict=True)]) if maps.ndim > 1 else maps
    return values, torch.ones_like(values) if start == "one" else values.detach().clone()


def rectified_gradient(scene: Scene, rule: str = "plain", x: Tensor | None = None) -> Tensor:
    """(1, *shape): the aim's gradient at `x`, or at the scene's input, with "plain", "deconv" or "guided" rectifiers."""
    return differentiate(scene, scene.x if x is None else x, Rule(rule)).gradient


NONE_MET = "no rectifier was met on the way: the map is the plain gradient"


def warnings(rule: Rule, met: int) -> tuple[str, ...]:
    """What the user must know about a pass."""
    return (NONE_MET,) if rule.kind != "plain" and met == 0 else ()

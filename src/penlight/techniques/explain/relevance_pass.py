"""Relevance through any network: a pass in which every operator writes down, in place of its gradient, how it hands relevance back.

Operators are caught as torch calls them, so a function, an in-place call and a module used ten times are all the same here.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from penlight.techniques.explain.relevance import Box, Rules, stabilised

HandBack = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor | None]]  # (inputs, relevances out) → in
Node = Any  # torch.autograd.graph.Node


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


# a step's role: its output is a share that something is multiplied by; it has weights; it mixes values, so that bounds are lost
GATE, WEIGHTS, MIXES = "gate", "weights", "mixes"

_NATIVE = names(  # in-place calls that only move or write values
    "copy_ zero_ fill_ unsqueeze_ squeeze_ t_ transpose_ swapaxes_ swapdims_ as_strided_ masked_fill_ index_fill_ index_copy_ scatter_"
    " masked_scatter_ index_put_ resize_ resize_as_ set_"
)
_UNTOUCHED = names("get set requires_grad detach register_hook retain_grad backward")

# autograd's names of operators that only move, copy or choose values: for these the gradient of relevance is the relevance
_VIEWS = names(
    "View UnsafeView ReshapeAlias Transpose Permute T Unsqueeze Squeeze Slice Select Expand Clone Split SplitWithSizes Unbind Copy ToCopy"
)
_ROUTES = _VIEWS | names(
    "Reshape Mt Movedim Swapdims Swapaxes Index IndexSelect Gather Cat Stack UnsafeSplit UnsafeSplitWithSizes UnsafeChunk Chunk Repeat"
    " RepeatInterleave Roll Flip Rot90 CopySlices AsStrided Alias Diagonal ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D"
    " ReplicationPad1D ReplicationPad2D ReplicationPad3D MaxPool2DWithIndices MaxPool3DWithIndices MkldnnMaxPool2D AdaptiveMaxPool2D"
    " AdaptiveMaxPool3D Max Min Amax Amin Aminmax Maximum Minimum Topk Sort Median Kthvalue Mode Where MaskedFill MaskedSelect"
    " MaskedScatter IndexPut IndexFill IndexCopy Scatter PixelShuffle PixelUnshuffle ChannelShuffle UpsampleNearest1D UpsampleNearest2D"
    " UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D Im2Col Unfold Fill Zero Tril Triu Take Narrow"
    " Unflatten AccumulateGrad _Step"
)


@dataclass
class Ledger:
    """Where relevance went on its way: what operators took of it (negative: added), those without a rule apart, and who they were."""

    taken: float = 0.0
    by_strangers: float = 0.0
    strangers: dict[str, int] = field(default_factory=dict)

    def note(self, stranger: str, before: Sequence[Tensor], after: Sequence[Tensor | None]) -> None:
        """A step got `before` and handed back `after`; `stranger` names it if it has no rule."""
        lost = _total(before) - _total(after)
        if not stranger:
            self.taken += lost
            return
        self.by_strangers += lost
        self.strangers[stranger] = self.strangers.get(stranger, 0) + 1


def _total(relevance: Sequence[Tensor | None]) -> float:
    return sum(float(r.double().sum()) for r in relevance if r is not None)


@dataclass(frozen=True)
class Call:
    """One call of an operator, to be made again with other tensors in the places of those that carry relevance."""

    function: Any
    leaves: tuple[Any, ...]
    layout: Any
    places: tuple[int, ...]
    in_place: bool = False

    @classmethod
    def of(cls, function: Any, args: Any, kwargs: dict[str, Any]) -> Call:
        """What is called with what."""
        leaves, layout = tree_flatten((args, kwargs))
        carry = tuple(n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad)
        name = str(getattr(function, "__name__", ""))
        marked = name.endswith("_") and not name.endswith("__")
        marked = marked or name in ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__setitem__")
        return cls(function, tuple(leaves), layout, carry, marked or kwargs.get("inplace") is True)

    @property
    def name(self) -> str:
        """The same for a function, a method, an in-place one and Python's operator."""
        return str(getattr(self.function, "__name__", type(self.function).__name__)).strip("_")

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors that carry relevance."""
        return [self.leaves[n] for n in self.places]

    def __call__(self, *inputs: Tensor) -> Any:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, inputs, strict=True):
            leaves[place] = tensor
        if self.in_place:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(leaves, self.layout)
        return self.function(*args, **kwargs)


class _Step(Function):
    """An operator whose backward pass is a rule."""

    @staticmethod
    def forward(
        ctx: Any, hand_back: HandBack, ledger: Ledger, role: str, stranger: str, call: Call, *inputs: Tensor
    ) -> Any:
        ctx.hand_back, ctx.ledger, ctx.role, ctx.stranger = hand_back, ledger, role, stranger
        # copies, not save_for_backward: a later in-place call may write into the inputs
        ctx.given = [x.detach().clone() for x in inputs]
        found = tuple(tensors(call(*(x.detach() for x in inputs))))
        ctx.mark_non_differentiable(*(t for t in found if not t.is_floating_point()))
        return found if len(found) > 1 else found[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *relevance: Tensor) -> Any:
        if not any(bool(r.any()) for r in relevance):
            return (*[None] * 5, *map(torch.zeros_like, ctx.given))
        found = ctx.hand_back(ctx.given, relevance)
        ctx.ledger.note(ctx.stranger, relevance, found)
        return (*[None] * 5, *found)


Policy = Callable[
    ["RelevancePass", Call, Any, Any], Any
]  # (pass, call, args, kwargs) → output, NotImplemented if it has no say


class RelevancePass(TorchFunctionMode):
    """While it is on, tensors that require grad carry relevance: their gradient is their relevance.

    >>> with RelevancePass(rules, POLICIES) as carrier:                    # doctest: +SKIP
    ...     value = network(carrier.enter(x, box))[0, 3]
    >>> torch.autograd.grad(value, x, value.detach())                      # doctest: +SKIP

    `ledger` tells, after the backward pass, where relevance was lost; `first` has an entry for every operator with weights that reads
    the input itself: whether its bounds are known. Other threads are not touched.
    """

    def __init__(self, rules: Rules, policies: Mapping[str, Policy]) -> None:
        super().__init__()
        self.rules, self.policies, self.ledger = rules, policies, Ledger()
        self.first: list[bool] = []
        self._boxes: dict[int, tuple[Tensor, Box | None]] = {}  # tensors that no weights have met yet, by id

    def enter(self, x: Tensor, box: Box | None) -> Tensor:
        """The input `x`, which requires grad, for the network; its values lie in `box`, if that is known."""
        with torch._C.DisableTorchFunction():
            entry = x.clone()
        self._boxes[id(entry)] = (entry, box)
        return entry

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        call = Call.of(func, args, kwargs)
        if not call.places or not torch.is_grad_enabled() or call.name in _UNTOUCHED:
            return func(*args, **kwargs)
        output = self._made(call, args, kwargs)
        if output is NotImplemented:
            with self:  # what it calls in its turn is caught
                return _opened(func)(*args, **kwargs)
        target = args[0] if call.in_place else output
        self._bound(call, output, target)
        if target is not output and isinstance(output, Tensor):
            return target.copy_(output)
        return output

    def _made(self, call: Call, args: Any, kwargs: Any) -> Any:
        """The output, with a rule behind it; NotImplemented for a function that is made of others."""
        policy = self.policies.get(call.name)
        output = NotImplemented if policy is None else policy(self, call, args, kwargs)
        if output is not NotImplemented:
            return output
        if not call.in_place or call.function.__name__ in (*_NATIVE, "__setitem__"):
            before = [get_gradient_edge(x).node for x in call.inputs]
            output = call.function(*args, **kwargs)
            if not strange(tensors(output), before):
                return output
        if _opened(call.function) is not None:
            return NotImplemented
        return self.step(call, self.by_contribution(call), stranger=call.name)

    def step(self, call: Call, hand_back: HandBack, *, role: str = "", stranger: str = "") -> Any:
        """Make the call, with `hand_back` as its way back; `stranger` is its name if that is not a rule of its own."""
        return _Step.apply(hand_back, self.ledger, role, stranger, call, *call.inputs)  # type: ignore[no-untyped-call]

    def by_contribution(self, call: Call) -> HandBack:
        """The epsilon rule for an operator that is linear, or is taken as if it were: input × gradient × relevance per output."""

        def hand_back(inputs: Sequence[Tensor], relevance: Sequence[Tensor]) -> Sequence[Tensor | None]:
            with torch.enable_grad():
                leaves = [x.clone().requires_grad_() for x in inputs]
                pairs = zip(tensors(call(*leaves)), relevance, strict=True)
                wanted = [(y, r / stabilised(y.detach(), self.rules.stabiliser)) for y, r in pairs if y.requires_grad]
                outputs, ratios = [y for y, _ in wanted], [r for _, r in wanted]
                found = torch.autograd.grad(outputs, leaves, ratios, allow_unused=True)
            return [None if g is None else x * g for x, g in zip(inputs, found, strict=True)]

        return hand_back

    def box_of(self, x: Tensor) -> tuple[bool, Box | None]:
        """Whether `x` is the input or comes from it without meeting weights, and its bounds."""
        kept, box = self._boxes.get(id(x), (None, None))
        return kept is x, box if kept is x else None

    def _bound(self, call: Call, output: Any, target: Any) -> None:
        """Note whether the output still is but the input in another form, and between what values it lies."""
        found = tensors(output)
        known = [self.box_of(x) for x in call.inputs]
        role = getattr(found[0].grad_fn, "role", "") if found else ""
        if not found or role == WEIGHTS or not all(first for first, _ in known):
            for t in [*found, *tensors(target)]:
                self._boxes.pop(id(t), None)
            return
        boxes: list[Box | None] = [None] * len(found)
        ends = [box for _, box in known if box is not None]
        if role != MIXES and len(ends) == len(known):
            with torch.no_grad():
                low, high = (tensors(call(*(box[n].clone() for box in ends))) for n in (0, 1))
            boxes = [(torch.minimum(a, b), torch.maximum(a, b)) for a, b in zip(low, high, strict=True)]
        for t, box in zip(tensors(target) if len(found) == 1 else found, boxes, strict=False):
            self._boxes[id(t)] = (t, box)


@cache
def _opened(function: Any) -> Any:
    """A function of torch written in Python, made to run its body under a mode that has caught it; None for any other."""
    if not isinstance(function, types.FunctionType) or not (function.__module__ or "").startswith("torch"):
        return None
    quiet = {name: lambda *_: False for name in function.__globals__ if name.startswith("has_torch_function")}
    code, closure = function.__code__, function.__closure__
    twin = types.FunctionType(
        code, {**function.__globals__, **quiet}, function.__name__, function.__defaults__, closure
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a value, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, tuple | list) else []


def strange(outputs: Sequence[Tensor], until: Sequence[Node] = ()) -> list[str]:
    """Autograd's names of the operators between `until` and `outputs` that neither move values only nor have a rule."""
    seen: set[Node] = set(until)
    found: list[str] = []
    waiting: list[Node] = [t.grad_fn for t in outputs]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _operation(node) not in _ROUTES:
            found.append(_operation(node))
        waiting += [below for below, _ in node.next_functions]
    return sorted(found)


def _operation(node: Node) -> str:
    return re.sub(r"Backwards?\d*\Z", "", str(node.name()).rpartition("::")[2])


def is_gate(x: Tensor) -> bool:
    """Whether `x` comes straight from a sigmoid or a softmax: a share that something is multiplied by."""
    node: Node = x.grad_fn
    while node is not None:
        if getattr(node, "role", "") == GATE:
            return True
        if _operation(node) not in _VIEWS:
            return False
        node = next((below for below, _ in node.next_functions if below is not None), None)
    return False

"""The region in which a piecewise-linear network is one affine rule: every hinge, and how far it is along directions.

A hinge is a number whose sign decides which piece holds: what goes into a ReLU, or the difference of two values of which a maximum
takes one. Inside the region all of them are affine in the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from penlight.techniques.formula.linear import is_linear, linear_rows, windows
from penlight.techniques.formula.tracer import Algebra, Call, Refused, Seat, Tracer

_FLAT = 1e-12  # of a block's largest slope: rounding, not a slope


@dataclass(eq=False)
class Block:
    """The hinges of one operation.

    `distance` (n,) how far each is from its sign's change, ≥ 0, and `sign` (n,) which side it is on. `first` and `second` are places in
    the operation's input that it is the difference of, `second` None where it is one value less a limit. `seat` is the tensor that the
    hinges lie in as units: the input of a ReLU, the output of a pooling.
    """

    kind: str
    where: str
    seat: Seat
    output: Seat | None
    distance: Tensor
    sign: Tensor
    first: Tensor
    second: Tensor | None
    number: int = 0  # of the operation, counted over the pass
    places: Tensor | None = None  # (n,) place in the output, for maxima
    squares: Tensor | None = None  # (n,) Σ slope² over the directions followed so far
    standard: Tensor | None = None  # the same in deviations of the columns


@dataclass
class Crossing:
    """The nearest hinge along one direction: after `step` of it, hinge `index` of block `block` changes its sign."""

    step: float = math.inf
    block: int = -1
    index: int = -1


@dataclass(eq=False)
class Region(Algebra):
    """Follows directions through a network; every row is how fast a tensor changes along one of them.

    Over several passes it gathers Σ slope² of every hinge, weighted by `weights` (rows,) and `standard` (rows,), and the nearest hinge
    along each direction, forwards and backwards.
    """

    count: int = 0
    blocks: list[Block] = field(default_factory=list)
    forwards: list[Crossing] = field(default_factory=list)
    backwards: list[Crossing] = field(default_factory=list)
    weights: Tensor | None = None
    standard: Tensor | None = None
    skip: frozenset[tuple[int, int]] = frozenset()
    _next: int = 0
    _calls: int = 0

    def begin(self, count: int, weights: Tensor | None, standard: Tensor | None) -> None:
        """A new pass that follows `count` directions."""
        self.count, self.weights, self.standard, self._next, self._calls = count, weights, standard, 0, 0
        self.forwards = [Crossing() for _ in range(count)]
        self.backwards = [Crossing() for _ in range(count)]

    def rule(self, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor | None:
        if is_linear(tracer, call):
            return linear_rows(tracer, call)
        self._calls += 1
        hinged = HINGED.get(call.name)
        if hinged is None or (output is None and call.name in _NEED_OUTPUT):
            raise Refused(f"computes {call.plain_name}, which is not piecewise linear", call.where)
        return hinged(self, tracer, call, output)

    def see(
        self, call: Call, value: Tensor, slopes: Tensor, seat: Tensor, output: Tensor | None = None, *,
        first: Tensor | None = None, second: Tensor | None = None, places: Tensor | None = None, at_zero: float = -1.0,
    ) -> None:  # fmt: skip
        """Hinges at `value` (n,) with `slopes` (R, n); a hinge at zero is on the side `at_zero`."""
        number, self._next = self._next, self._next + 1
        if number == len(self.blocks):
            sign = torch.where(value == 0, at_zero, value.sign())
            own = torch.arange(len(value)) if first is None else first
            self.blocks.append(
                Block(
                    call.name, call.where, Seat.of(seat), None if output is None else Seat.of(output), value.abs(), sign,
                    own, second, self._calls, places,
                )
            )  # fmt: skip
        block = self.blocks[number]
        top = float(slopes.abs().max()) if slopes.numel() else 0.0
        slopes = torch.where(slopes.abs() > _FLAT * top, slopes, 0.0)
        for name, factors in (("squares", self.weights), ("standard", self.standard)):
            if factors is not None:
                more = (factors[:, None] * slopes).square_().sum(0)
                setattr(block, name, more if getattr(block, name) is None else getattr(block, name) + more)
        self._cross(number, block, -block.sign * slopes)

    def _cross(self, number: int, block: Block, closing: Tensor) -> None:
        """`closing` (R, n): how fast each hinge comes nearer along each direction."""
        if not closing.shape[1]:
            return
        distance = block.distance
        ignored = [index for block_number, index in self.skip if block_number == number]
        if ignored:
            distance = distance.clone()
            distance[ignored] = math.inf
        for ends, speed in ((self.forwards, closing), (self.backwards, -closing)):
            steps = torch.where(speed > 0, distance / speed, math.inf)
            nearest, index = steps.min(1)
            for crossing, step, at in zip(ends, nearest.tolist(), index.tolist(), strict=True):
                if step < crossing.step:
                    crossing.step, crossing.block, crossing.index = step, number, at


Rule = Callable[[Region, Tracer, Call, Tensor | None], Tensor | None]


def _rows(tracer: Tracer, value: Any, like: Tensor) -> Tensor:
    """(R, *shape of like) of a tensor or number; zeros for a constant."""
    rows = tracer.rows(value) if isinstance(value, Tensor) else None
    if rows is None:
        return like.new_zeros(tracer.algebra.count, *like.shape)
    return rows.reshape(len(rows), *[1] * (like.ndim - value.ndim), *value.shape).expand(len(rows), *like.shape)


def _kinked(limits: Callable[[Call], Sequence[tuple[float, float, float]]]) -> Rule:
    """A function of one variable: its kinks, as (where, slope below, slope above)."""

    def rule(region: Region, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor:
        z = call.args[0].detach()
        rows = tracer.rows(call.args[0])
        assert rows is not None
        flat = rows.reshape(len(rows), -1)
        kinks = limits(call)
        slope = torch.full_like(z, kinks[0][1])
        for limit, _, above in kinks:
            region.see(call, z.reshape(-1) - limit, flat, call.args[0])
            slope = torch.where(z > limit, above, slope)
        return rows * slope

    return rule


def _prelu(region: Region, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor:
    z, slope = call.args[0].detach(), call.args[1]
    if tracer.follows(slope):
        raise Refused("computes prelu with a slope that depends on the input", call.where)
    rows = tracer.rows(call.args[0])
    assert rows is not None
    region.see(call, z.reshape(-1), rows.reshape(len(rows), -1), call.args[0])
    return rows * torch.where(z > 0, torch.ones_like(z), slope.expand_as(z))


def _clamp_kinks(call: Call) -> list[tuple[float, float, float]]:
    low, high = call.given(1, "min"), call.given(2, "max")
    if call.name == "clamp_max":
        low, high = None, call.given(1, "max")
    kinks = [] if low is None else [(float(low), 0.0, 1.0)]
    if high is not None:
        kinks.append((float(high), 1.0, 0.0))
    return kinks


def _hardtanh_kinks(call: Call) -> list[tuple[float, float, float]]:
    return [(float(call.given(1, "min_val", -1.0)), 0.0, 1.0), (float(call.given(2, "max_val", 1.0)), 1.0, 0.0)]


def _threshold_kinks(call: Call) -> list[tuple[float, float, float]]:
    if call.args[1] != call.args[2]:
        raise Refused("computes a threshold that jumps", call.where)
    return [(float(call.args[1]), 0.0, 1.0)]


def _softshrink_kinks(call: Call) -> list[tuple[float, float, float]]:
    limit = float(call.given(1, "lambd", 0.5))
    return [(-limit, 1.0, 0.0), (limit, 0.0, 1.0)]


def _elementwise_extreme(region: Region, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor:
    assert output is not None
    a, b = (one.detach().expand_as(output) for one in call.args[:2])
    ra, rb = (_rows(tracer, one, output) for one in call.args[:2])
    difference, slopes = a - b, ra - rb
    region.see(call, difference.reshape(-1), slopes.reshape(len(slopes), -1), output, output, at_zero=1.0)
    takes_first = difference >= 0 if call.name == "maximum" else difference < 0
    return torch.where(takes_first, ra, rb)


def _comparison(region: Region, tracer: Tracer, call: Call, output: Tensor | None) -> None:
    """The answer is a constant until the difference changes its sign."""
    assert output is not None
    a, b = call.args[:2]
    like = torch.zeros(output.shape, dtype=torch.float64)
    slopes = _rows(tracer, a, like) - _rows(tracer, b, like)
    difference, side = (like + a) - b, 1.0 if call.name in ("lt", "ge") else -1.0
    region.see(call, difference.reshape(-1), slopes.reshape(len(slopes), -1), output, output, at_zero=side)


def _sign(region: Region, tracer: Tracer, call: Call, output: Tensor | None) -> None:
    rows = tracer.rows(call.args[0])
    assert rows is not None
    region.see(call, call.args[0].detach().reshape(-1), rows.reshape(len(rows), -1), call.args[0])


def _largest(
    region: Region, tracer: Tracer, call: Call, output: Tensor, groups: Tensor, negative: bool = False
) -> Tensor:
    """`groups` (outputs, k): the places in the input that each output is the largest of, −1 for none."""
    given = call.args[0]
    rows = tracer.rows(given)
    assert rows is not None
    flat, slopes = given.detach().reshape(-1), rows.reshape(len(rows), -1)
    values = torch.where(groups >= 0, flat[groups.clamp(min=0)] * (-1 if negative else 1), -math.inf)
    best = values.argmax(1)
    winner = groups.gather(1, best[:, None])[:, 0]
    others = (groups >= 0) & (torch.arange(groups.shape[1]) != best[:, None])
    place, column = others.nonzero(as_tuple=True)
    loser = groups[place, column]
    first, second = (loser, winner[place]) if negative else (winner[place], loser)
    region.see(
        call, flat[first] - flat[second], slopes[:, first] - slopes[:, second], given, output,
        first=first, second=second, places=place, at_zero=1.0,
    )  # fmt: skip
    return slopes[:, winner].reshape(len(rows), *output.shape)


def _max_pool(region: Region, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor:
    assert output is not None
    shape, dims = call.args[0].shape, 3 if "3d" in call.name else 2
    own = windows(call, tuple(shape[-dims:]), tuple(output.shape[-dims:]))
    size = math.prod(shape[-dims:])
    offsets = torch.arange(math.prod(shape[:-dims]))[:, None, None] * size
    return _largest(region, tracer, call, output, torch.where(own >= 0, own + offsets, -1).flatten(0, 1))


def _extreme(region: Region, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor:
    assert output is not None
    given = call.args[0]
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        raise Refused(f"computes {call.name} of two tensors as one", call.where)
    dim = call.given(1, "dim")
    axes = list(range(given.ndim)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    axes = sorted(axis % given.ndim for axis in axes)
    kept = [axis for axis in range(given.ndim) if axis not in axes]
    order = torch.arange(given.numel()).reshape(given.shape).permute(*kept, *axes)
    groups = order.reshape(math.prod(given.shape[a] for a in kept), -1)
    return _largest(region, tracer, call, output, groups, call.name in ("amin", "min"))


HINGED: Mapping[str, Rule] = {
    "relu": _kinked(lambda call: [(0.0, 0.0, 1.0)]),
    "leaky_relu": _kinked(lambda call: [(0.0, float(call.given(1, "negative_slope", 0.01)), 1.0)]),
    "rrelu_with_noise": _kinked(
        lambda call: [(0.0, (call.given(2, "lower", 1 / 8) + call.given(3, "upper", 1 / 3)) / 2, 1.0)]
    ),
    "abs": _kinked(lambda call: [(0.0, -1.0, 1.0)]),
    "hardtanh": _kinked(_hardtanh_kinks),
    "clamp": _kinked(_clamp_kinks),
    "clamp_min": _kinked(lambda call: [(float(call.args[1]), 0.0, 1.0)]),
    "clamp_max": _kinked(lambda call: [(float(call.args[1]), 1.0, 0.0)]),
    "hardsigmoid": _kinked(lambda call: [(-3.0, 0.0, 1 / 6), (3.0, 1 / 6, 0.0)]),
    "threshold": _kinked(_threshold_kinks),
    "softshrink": _kinked(_softshrink_kinks),
    "_prelu_kernel": _prelu,
    **dict.fromkeys(("maximum", "minimum"), _elementwise_extreme),
    **dict.fromkeys(("gt", "lt", "ge", "le"), _comparison),
    "sign": _sign,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"), _max_pool),
    **dict.fromkeys(("amax", "amin", "max", "min"), _extreme),
}
"""Name → how the rows go through, which tells the region its hinges."""
_NEED_OUTPUT = frozenset(HINGED) - {
    "relu", "leaky_relu", "abs", "hardtanh", "clamp", "clamp_min", "clamp_max", "hardsigmoid", "threshold", "softshrink",
    "_prelu_kernel", "sign", "rrelu_with_noise",
}  # fmt: skip

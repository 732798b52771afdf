"""What operators make of boxes. Each handler answers for windowed tensors, or says NotImplemented and the whole batch is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.techniques.explain.windowed import Cut, Handler, Session, Unread, Windowed, name_of, swapped
from penlight.techniques.explain.windowed_blocks import Block, GiveUp, Later, Reader, State, channels_last
from penlight.techniques.explain.windowed_boxes import Axis, Places, alike

aten = torch.ops.aten
OPERATORS: dict[Any, Handler] = {}
_POINTWISE = """
    relu relu6 hardtanh clamp clamp_min clamp_max leaky_relu silu gelu sigmoid tanh hardswish hardsigmoid elu celu selu softplus mish
    hardshrink softshrink threshold log_sigmoid_forward abs neg exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos erf sign
    round floor ceil positive logical_not isnan nan_to_num _to_copy clone contiguous
"""
_TOGETHER = 8 * 2**20  # bytes of boxes computed at once: more leaves the cache
_BINARY = "add sub rsub mul div maximum minimum pow _prelu_kernel where"


def handles(*names: str) -> Callable[[Handler], Handler]:
    """Register a handler for operators of these names and their in-place forms, as far as this torch has them."""

    def register(handler: Handler) -> Handler:
        for name in names:
            for spelled in (name, name + "_"):
                packet = getattr(aten, spelled, None)
                if packet is not None:
                    OPERATORS[packet] = handler
        return handler

    return register


def clean_of(given: Windowed) -> Tensor:
    """The clean map as the network would see it."""
    clean = given.state.clean
    return clean if given.axes == "NCHW" else clean.permute(0, 2, 3, 1) if given.axes == "NHWC" else clean[:, 0]


def as_kept(values: Tensor, axes: str) -> Tensor:
    """From the network's order of axes to (N, C, H, W)."""
    return values if axes == "NCHW" else values.permute(0, 3, 1, 2) if axes == "NHWC" else values.unsqueeze(1)


def as_seen(values: Tensor, axes: str) -> Tensor:
    """From (N, C, H, W) to the network's order of axes."""
    return values if axes == "NCHW" else values.permute(0, 2, 3, 1) if axes == "NHWC" else values.squeeze(1)


def with_defaults(given: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
    """Arguments, with the defaults of those that are left out."""
    return [*given, *defaults[len(given) :]]


def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _put(
    session: Session,
    func: Any,
    given: Windowed,
    clean: Tensor,
    blocks: list[Block],
    axes: tuple[Axis, Axis] | None = None,
) -> Windowed:
    """The result of a pointwise operator: a new tensor, or for an in-place one the given tensor with new contents."""
    state = given.state
    y, x = axes or (state.y, state.x)
    if not _writes(func):
        return Windowed(session, State(clean, y, x, blocks), given.axes)
    if state.sliced:
        raise GiveUp(f"{name_of(func)} writes into a map that another tensor looks at")
    old = state.clean
    for block in state.blocks:
        block.version += 1
    state.clean, state.y, state.x, state.blocks, state.full = clean, y, x, blocks, None
    session.forget(old)
    return given


def clean_pass(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], axes: str) -> Tensor:
    """The operator's clean output (1, C, H, W), computed once a map; an in-place operator works on a copy."""

    def make() -> Tensor:
        plain = swapped(tuple(args), clean_of)
        if _writes(func):
            plain = (plain[0].clone(), *plain[1:])
        made = func(*plain, **swapped(dict(kwargs), clean_of))
        return channels_last(as_kept(made[0] if isinstance(made, tuple) else made, axes))

    made: Tensor = session.once(func, swapped((*args, *kwargs.values()), lambda one: one.state.clean), make)
    return made


def each_block(given: Windowed, apply: Callable[[Tensor], Any], later: bool = False) -> list[Block]:
    """Every block's values, (n, C, h, w), changed cell by cell; `later` those that are not there yet."""

    def change(values: Tensor) -> Tensor:
        made = apply(values)
        return channels_last(made[0] if isinstance(made, tuple) else made)

    return [
        block.then(change) if later and isinstance(block, Later) else Block(block.who, change(block.values))
        for block in given.state.blocks
    ]


def _like(
    session: Session, given: Windowed, clean: Tensor, blocks: list[Block], axes: str = "", sliced: bool = False
) -> Windowed:
    """Another map whose boxes lie where the given one's do."""
    return Windowed(session, State(clean, given.state.y, given.state.x, blocks, sliced), axes or given.axes)


@handles(*_POINTWISE.split())
def pointwise(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Every value for itself."""
    given = args[0]
    if any(isinstance(one, Tensor) and one.ndim > 0 for one in (*args[1:], *kwargs.values())):
        return NotImplemented
    clean = clean_pass(session, func, args, kwargs, given.axes)
    if clean.dtype != given.dtype and _writes(func):
        return NotImplemented
    kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}
    session.wide, others = session.is_wide(given), args[1:]  # what waits must not hold the map that it becomes part of
    blocks = each_block(given, lambda values: func(values, *others, **kwargs), session.alone)
    found = _put(session, func, given, clean, blocks)
    returns = len(func._schema.returns)
    return found if returns == 1 else (found, *(Unread(found) for _ in range(returns - 1)))


@handles("detach", "alias", "lift_fresh")
def same(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Another name for the same values."""
    return Windowed(session, args[0].state, args[0].axes)


@handles("permute")
def permute(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Channels last and back; any other order needs the whole batch."""
    given, dims = args
    axes = "".join(given.axes[d] for d in dims)
    return Windowed(session, given.state, axes) if axes in ("NCHW", "NHWC") else NotImplemented


@handles("native_dropout")
def dropout(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Nothing, outside training."""
    if args[2] is not False:
        return NotImplemented
    return Windowed(session, args[0].state, args[0].axes), Unread(args[0])


@handles(
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "_batch_norm_no_update",
    "_batch_norm_with_update", "cudnn_batch_norm", "miopen_batch_norm", "batch_norm",
)  # fmt: skip
def batch_norm(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """With stored statistics: a factor and a shift a channel."""
    given = args[0]
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
    if named.get("training") is True or named.get("running_mean") is None or given.axes != "NCHW":
        return NotImplemented
    clean = clean_pass(session, func, args, kwargs, given.axes)
    found = _like(session, given, clean, each_block(given, lambda values: func(values, *args[1:], **kwargs)))
    returns = len(func._schema.returns)
    return found if returns == 1 else (found, *(Unread(found) for _ in range(returns - 1)))


def _constant(value: Tensor, given: Windowed) -> Tensor | None:
    """A plain operand as (1, C or 1, H or 1, W or 1); None if it has a value for every member of the batch."""
    if value.ndim == 0:
        return value.reshape(1, 1, 1, 1)
    if value.ndim > given.ndim or (value.ndim == given.ndim and value.shape[0] != 1):
        return None
    wide = value.reshape((1,) * (given.ndim - value.ndim) + tuple(value.shape))
    wide = as_kept(wide, given.axes)
    fits = all(a in (1, b) for a, b in zip(wide.shape[1:], given.state.clean.shape[1:], strict=True))
    return wide if fits else None


@handles(*_BINARY.split())
def binary(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Two maps, or a map and something that is the same for every member of the batch."""
    tensors = [one for one in args if isinstance(one, Tensor)]
    maps = [one for one in tensors if isinstance(one, Windowed)]
    first = maps[0]
    if any(one.axes != first.axes or one.state.clean.shape[2:] != first.state.clean.shape[2:] for one in maps):
        return NotImplemented
    if _writes(func) and args[0] is not first:
        return NotImplemented
    widest = max(maps, key=lambda one: one.state.clean.shape[1])
    constants: dict[int, Tensor] = {}
    for one in tensors:
        if not isinstance(one, Windowed):
            constant = _constant(one, widest)
            if constant is None:
                return NotImplemented
            constants[id(one)] = constant
    clean = clean_pass(session, func, args, kwargs, first.axes)
    if clean.shape[2:] != first.state.clean.shape[2:]:
        return NotImplemented
    y, x, groups = joined(maps)
    blocks = []
    readers, spent = {id(one.state): Reader(one.state) for one in maps}, _spent(session, func, args, kwargs)
    for who in groups:
        box = _Boxes(session, readers, constants, who, y, x)
        if spent is None:
            made = channels_last(func(*(box.of(one) for one in args), **kwargs))
        else:
            made = box.of(args[spent]).add_(box.of(args[1 - spent], brief=True), **kwargs)
        blocks.append(Block(who, made))
    if spent is not None:
        args[spent].state.spent = True
    return _put(session, func, first, clean, blocks, (y, x))


def _spent(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | None:
    """Which term of a sum of two different maps, alike in shape, may be written into; None if there is none."""
    if func is not aten.add.Tensor or not all(isinstance(one, Windowed) for one in args[:2]):
        return None
    one, other = (one.state.clean for one in args[:2])
    if args[0].state is args[1].state or one.dtype != other.dtype or one.shape != other.shape:
        return None
    terms = (0,) if kwargs else (0, 1)  # a factor is the second term's
    return next((n for n in terms if session.read_once(args[n])), None)


def joined(maps: Sequence[Windowed]) -> tuple[Axis, Axis, list[Places]]:
    """Boxes that hold those of all maps, in groups of one size; where a map's own do, they stay as they are."""
    states = [one.state for one in maps]
    y, x = states[0].y, states[0].x
    if all(one.y is y and one.x is x for one in states):
        return y, x, [block.who for block in states[0].blocks]
    for one in states[1:]:
        y, x = y.joined(one.y), x.joined(one.x)
    for one in states:
        if one.y.holds(y) and one.x.holds(x):
            stored = (Axis(a.low, a.high, a.length, b.start, b.size) for a, b in ((y, one.y), (x, one.x)))
            return *stored, [block.who for block in one.blocks]  # type: ignore[return-value]
    return y, x, alike(y, x, together(states[0].clean))


def together(clean: Tensor) -> int:
    """Cells of a map that are computed at once."""
    return max(1, _TOGETHER // (clean.shape[1] * clean.element_size()))


def boxes_of(session: Session, map: Reader, who: Places, y: Axis, x: Axis, brief: bool = False) -> Tensor:
    """(n, C, h, w): the map's values in the boxes that y and x store of the samples; `brief` if they may end with the next cut."""
    size, first, run = (int(y.size[who[0]]), int(x.size[who[0]])), (y.start[who], x.start[who]), map.run(who)
    if run is not None:
        block, at = map.blocks[run[0]], run[1]
        if block.size == size and (map.y.start[who] == first[0]).all() and (map.x.start[who] == first[1]).all():
            return block.values if len(block.who) == len(who) else block.part(slice(at, at + len(who)))
    order = map.order(who)
    cut = Cut(session, map, who[order], (first[0][order], first[1][order]), size)
    found = cut(out=None if brief else map.clean.new_empty((len(who), *size, map.clean.shape[1])))
    return found if (order[1:] > order[:-1]).all() else found[torch.from_numpy(np.argsort(order))]


@dataclass(frozen=True)
class _Boxes:
    """The boxes of some samples, for operators of several maps and constants."""

    session: Session
    readers: Mapping[int, Reader]  # by the number of a state
    constants: Mapping[int, Tensor]
    who: Places
    y: Axis
    x: Axis

    def of(self, one: Any, brief: bool = False) -> Any:
        """An argument there; `brief` if it may end with the next cut."""
        if isinstance(one, Windowed):
            return boxes_of(self.session, self.readers[id(one.state)], self.who, self.y, self.x, brief)
        if not isinstance(one, Tensor):
            return one
        constant = self.constants[id(one)]
        if constant.shape[2:] == (1, 1):
            return constant
        spread = constant.expand(-1, -1, self.y.length, self.x.length).permute(0, 2, 3, 1)[0]
        return cut_boxes(spread, self.who, self.y, self.x).permute(0, 3, 1, 2)


def cut_boxes(map: Tensor, who: Places, y: Axis, x: Axis) -> Tensor:
    """(n, h, w, …): the samples' boxes, all of one size, of a map (H, W, …)."""
    rows = torch.from_numpy(y.start[who])[:, None] + torch.arange(int(y.size[who[0]]))
    columns = torch.from_numpy(x.start[who])[:, None] + torch.arange(int(x.size[who[0]]))
    return map[rows[:, :, None], columns[:, None, :]]


@handles("cat")
def cat(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Maps side by side on the channels' axis."""
    maps, dim = args[0], (args[1] if len(args) > 1 else kwargs.get("dim", 0))
    first = next(one for one in maps if isinstance(one, Windowed))
    if not all(isinstance(one, Windowed) and one.axes == first.axes for one in maps) or "C" not in first.axes:
        return NotImplemented
    if dim % first.ndim != first.axes.index("C"):
        return NotImplemented
    clean: Tensor = session.once(
        func, [one.state.clean for one in maps], lambda: channels_last(torch.cat([one.state.clean for one in maps], 1))
    )
    y, x, groups = joined(maps)
    blocks: list[Block] = []
    readers = [Reader(one.state) for one in maps]
    for who in groups:
        out = clean.new_empty((len(who), int(y.size[who[0]]), int(x.size[who[0]]), clean.shape[1])).permute(0, 3, 1, 2)
        start = 0
        for one in readers:
            stop = start + one.clean.shape[1]
            out[:, start:stop] = boxes_of(session, one, who, y, x, brief=True)
            start = stop
        blocks.append(Block(who, out))
    return Windowed(session, State(clean, y, x, blocks), first.axes)


def _channels(session: Session, func: Any, given: Windowed, start: int, stop: int, step: int, axes: str) -> Windowed:
    """Some of the channels; from now on writing into either tensor is not allowed."""
    given.state.sliced = True
    clean: Tensor = session.once(
        func, (given.state.clean, start, stop, step), lambda: channels_last(given.state.clean[:, start:stop:step])
    )
    blocks = each_block(given, lambda values: values[:, start:stop:step])
    return _like(session, given, clean, blocks, axes, sliced=True)


@handles("slice")
def slice_(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A stretch of channels, or all of an axis."""
    given = args[0]
    dim, start, stop, step = with_defaults(args[1:], (0, None, None, 1))
    dim %= given.ndim
    start, stop, step = slice(start, stop, step).indices(given.shape[dim])
    if (start, stop, step) == (0, given.shape[dim], 1):
        return Windowed(session, given.state, given.axes)
    if given.axes[dim] != "C":
        return NotImplemented
    return _channels(session, func, given, start, stop, step, given.axes)


@handles("select")
def select(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One channel as a map (N, H, W)."""
    given, dim, index = args
    if "C" not in given.axes or given.axes[dim % given.ndim] != "C":
        return session.in_full(func, args, kwargs, told="C" in given.axes)
    index %= given.shape[dim]
    return _channels(session, func, given, index, index + 1, 1, "NHW")


@handles("unsqueeze")
def unsqueeze(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """One channel's map as a map of one channel."""
    given, dim = args
    if given.axes != "NHW" or dim not in (1, -3, 3, -1):
        return NotImplemented
    return Windowed(session, given.state, "NCHW" if dim in (1, -3) else "NHWC")


@handles("split", "split_with_sizes")
def split(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Stretches of channels."""
    given, sizes = args[:2]
    dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % given.ndim
    if given.axes[dim] != "C":
        return NotImplemented
    total = given.shape[dim]
    widths = sizes if isinstance(sizes, list | tuple) else [min(sizes, total - n) for n in range(0, total, sizes)]
    found, start = [], 0
    for width in widths:
        found.append(_channels(session, func, given, start, start + width, 1, given.axes))
        start += width
    return found


@handles("constant_pad_nd")
def pad(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Cells of one value around the map."""
    given, pads = args[0], list(args[1])
    if given.axes != "NCHW" or len(pads) > 4 or min(pads) < 0:
        return NotImplemented
    left, _, top, _ = pads + [0] * (4 - len(pads))
    clean = clean_pass(session, func, args, kwargs, given.axes)
    state, (height, width) = given.state, clean.shape[2:]
    state.sliced = True  # the two share their values: neither is to be written into
    return Windowed(
        session, State(clean, state.y.moved(top, height), state.x.moved(left, width), state.blocks, sliced=True)
    )


def over_channels(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = args[0]
    clean = clean_pass(session, func, args, kwargs, given.axes)
    blocks = each_block(
        given, lambda values: as_kept(func(as_seen(values, given.axes), *args[1:], **kwargs), given.axes)
    )
    return _like(session, given, clean, blocks)


@handles("_softmax", "_log_softmax")
def softmax(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Over the channels: every cell for itself."""
    given, dim = args[0], args[1]
    return NotImplemented if given.axes[dim] != "C" else over_channels(session, func, args, kwargs)


@handles("native_layer_norm")
def layer_norm(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Over the channels where they are last: every cell for itself."""
    given, shape = args[:2]
    if given.axes != "NHWC" or len(shape) != 1:
        return NotImplemented
    clean = clean_pass(session, func, args, kwargs, "NHWC")
    blocks = each_block(given, lambda values: func(values.permute(0, 2, 3, 1), *args[1:])[0].permute(0, 3, 1, 2))
    found = _like(session, given, clean, blocks)
    return found, Unread(found), Unread(found)


def linear(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Channels last: every cell for itself."""
    given = args[0]
    if given.axes != "NHWC" or any(isinstance(one, Windowed) for one in (*args[1:], *kwargs.values())):
        return NotImplemented
    plain = (*args[1:], *kwargs.values())

    def apply(values: Tensor) -> Tensor:
        made: Tensor = func(values.permute(0, 2, 3, 1), *args[1:], **kwargs)
        return channels_last(made.permute(0, 3, 1, 2))

    clean: Tensor = session.once(func, (given.state.clean, *plain), lambda: apply(given.state.clean))
    cost = float(plain[0].numel())
    blocks = each_block(given, apply)
    session.multiplied += cost * sum(block.cells for block in blocks)
    session.asked += cost * given.state.count * clean.shape[2] * clean.shape[3]
    return _like(session, given, clean, blocks)


OPERATORS[F.linear] = linear


@handles("view", "_unsafe_view", "reshape", "flatten")
def view(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """To a row an input: the end of the maps, where the whole batch is needed anyway. To the same shape: the same."""
    given, shape = args[0], list(args[1])
    if -1 in shape:
        rest = 1
        for n in shape:
            rest *= n if n != -1 else 1
        shape[shape.index(-1)] = given.numel() // rest
    if shape == list(given.shape):
        return Windowed(session, given.state, given.axes)
    if len(shape) == 2 and shape[0] == given.shape[0]:
        full = session.whole(given)
        return full.reshape(shape)
    return NotImplemented

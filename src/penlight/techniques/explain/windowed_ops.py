"""What operators make of boxes. Each handler answers for windowed tensors, or says NotImplemented and the whole batch is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.techniques.explain.windowed import (
    Block,
    GiveUp,
    Handler,
    Job,
    Piece,
    Session,
    State,
    Unread,
    Windowed,
    channels_last,
    name_of,
    swapped,
)

aten = torch.ops.aten
OPERATORS: dict[Any, Handler] = {}
_POINTWISE = """
    relu relu6 hardtanh clamp clamp_min clamp_max leaky_relu silu gelu sigmoid tanh hardswish hardsigmoid elu celu selu softplus mish
    hardshrink softshrink threshold log_sigmoid_forward abs neg exp expm1 log log1p log2 sqrt rsqrt square reciprocal sin cos erf sign
    round floor ceil positive logical_not isnan nan_to_num _to_copy clone contiguous
"""
_TOGETHER = 8 * 2**20  # bytes of boxes computed at once: more leaves the cache, and is mapped afresh each time
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


def _put(session: Session, func: Any, given: Windowed, clean: Tensor, blocks: list[Block]) -> Windowed:
    """The result of a pointwise operator: a new tensor, or for an in-place one the given tensor with new contents."""
    if not _writes(func):
        return Windowed(session, State(clean, blocks), given.axes)
    state = given.state
    if state.sliced:
        raise GiveUp(f"{name_of(func)} writes into a map that another tensor looks at")
    old, state.clean, state.blocks, state.full = state.clean, clean, blocks, None
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


def each_block(given: Windowed, apply: Callable[[Tensor], Any]) -> list[Block]:
    """Every block's values, (n, C, h, w), changed cell by cell."""
    blocks = []
    for block in given.state.blocks:
        made = apply(block.values)
        blocks.append(Block(channels_last(made[0] if isinstance(made, tuple) else made), block.pieces))
    return blocks


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
    blocks = each_block(given, lambda values: func(values, *args[1:], **kwargs))
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
    found = Windowed(session, State(clean, each_block(given, lambda values: func(values, *args[1:], **kwargs))))
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
    blocks = []
    for pieces in joined(maps):
        given = [_operand(session, one, constants, pieces) for one in args]
        blocks.append(Block(channels_last(func(*given, **kwargs)), pieces))
    return _put(session, func, first, clean, blocks)


def joined(maps: Sequence[Windowed]) -> list[tuple[Piece, ...]]:
    """Pieces that hold the boxes of all maps, a tuple a block; the blocks of a map that holds the others' stay as they are."""
    if len(maps) == 1:
        return [block.pieces for block in maps[0].state.blocks]
    boxes: dict[int, Piece] = {}
    for one in maps:
        for block in one.state.blocks:
            for piece in block.pieces:
                before = boxes.get(piece.first)
                if before is not None and (before.y is not piece.y or before.x is not piece.x):
                    piece = Piece(piece.first, before.y.joined(piece.y), before.x.joined(piece.x))
                boxes[piece.first] = piece
    for one in maps:
        if all(_in_place(piece, boxes[piece.first]) for block in one.state.blocks for piece in block.pieces):
            return [block.pieces for block in one.state.blocks]
    return gathered(boxes.values(), lambda piece: (piece.y.size, piece.x.size), maps[0].state.clean)


def _in_place(piece: Piece, other: Piece) -> bool:
    return piece.y is other.y and piece.x is other.x


def gathered(pieces: Iterable[Any], key: Callable[[Any], tuple[int, int]], clean: Tensor) -> list[tuple[Any, ...]]:
    """Pieces (or jobs) with the same size of box together, as many as go well into memory."""
    found: dict[tuple[int, int], list[list[Any]]] = {}
    filled: dict[tuple[int, int], int] = {}
    for piece in pieces:
        size = key(piece)
        own = getattr(piece, "piece", piece).count * size[0] * size[1] * clean.shape[1] * clean.element_size()
        if size not in found or filled[size] + own > _TOGETHER:
            found.setdefault(size, []).append([])
            filled[size] = 0
        found[size][-1].append(piece)
        filled[size] += own
    return [tuple(group) for groups in found.values() for group in groups]


def boxes_of(session: Session, one: Windowed, pieces: Sequence[Piece], out: Tensor | None = None) -> Tensor:
    """(n, C, h, w): a map's values in the boxes of `pieces`, which hold its own; on request written into `out`."""
    for block in one.state.blocks:
        if out is None and len(block.pieces) == len(pieces) and all(map(_same_box, block.pieces, pieces)):
            return block.values
    own = {piece.first: (piece, values) for block in one.state.blocks for piece, values in block.split()}
    jobs = []
    for wanted in pieces:
        piece, values = own[wanted.first]
        jobs.append(Job(piece, values, piece.y.into(wanted.y), piece.x.into(wanted.x)))
    if out is None:
        clean, count = one.state.clean, sum(piece.count for piece in pieces)
        out = clean.new_empty((count, pieces[0].y.size, pieces[0].x.size, clean.shape[1])).permute(0, 3, 1, 2)
    session.fill(out.permute(0, 2, 3, 1), one.state.clean, jobs)
    return out


def _same_box(piece: Piece, other: Piece) -> bool:
    return piece.first == other.first and piece.y is other.y and piece.x is other.x


def _operand(session: Session, one: Any, constants: Mapping[int, Tensor], pieces: Sequence[Piece]) -> Any:
    if isinstance(one, Windowed):
        return boxes_of(session, one, pieces)
    if not isinstance(one, Tensor):
        return one
    constant = constants[id(one)]
    if constant.shape[2:] == (1, 1):
        return constant
    spread = constant.expand(-1, -1, pieces[0].y.length, pieces[0].x.length).permute(0, 2, 3, 1)[0]
    return torch.cat([cut_boxes(spread, piece).permute(0, 3, 1, 2) for piece in pieces])


def cut_boxes(map: Tensor, piece: Piece) -> Tensor:
    """(n, h, w, …): the piece's boxes of a map (H, W, …)."""
    rows = torch.from_numpy(piece.y.start)[:, None] + torch.arange(piece.y.size)
    columns = torch.from_numpy(piece.x.start)[:, None] + torch.arange(piece.x.size)
    return map[rows[:, None, :, None], columns[None, :, None, :]].flatten(0, 1)


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
    blocks = []
    for pieces in joined(maps):
        count, y, x = sum(piece.count for piece in pieces), pieces[0].y.size, pieces[0].x.size
        out = clean.new_empty((count, y, x, clean.shape[1])).permute(0, 3, 1, 2)
        start = 0
        for one in maps:
            stop = start + one.state.clean.shape[1]
            boxes_of(session, one, pieces, out[:, start:stop])
            start = stop
        blocks.append(Block(out, pieces))
    return Windowed(session, State(clean, blocks), first.axes)


def _channels(session: Session, func: Any, given: Windowed, start: int, stop: int, step: int, axes: str) -> Windowed:
    """Some of the channels; from now on writing into either tensor is not allowed."""
    given.state.sliced = True
    clean: Tensor = session.once(
        func, (given.state.clean, start, stop, step), lambda: channels_last(given.state.clean[:, start:stop:step])
    )
    blocks = each_block(given, lambda values: values[:, start:stop:step])
    return Windowed(session, State(clean, blocks, sliced=True), axes)


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
    height, width = clean.shape[2:]
    blocks = [
        Block(b.values, tuple(Piece(p.first, p.y.moved(top, height), p.x.moved(left, width)) for p in b.pieces))
        for b in given.state.blocks
    ]
    given.state.sliced = True  # the two share their values: neither is to be written into
    return Windowed(session, State(clean, blocks, sliced=True), given.axes)


def over_channels(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = args[0]
    clean = clean_pass(session, func, args, kwargs, given.axes)
    blocks = each_block(
        given, lambda values: as_kept(func(as_seen(values, given.axes), *args[1:], **kwargs), given.axes)
    )
    return Windowed(session, State(clean, blocks), given.axes)


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
    found = Windowed(session, State(clean, blocks), "NHWC")
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
    session.multiplied += cost * sum(block.values.numel() // clean.shape[1] for block in blocks)
    session.asked += cost * given.state.count * clean.shape[2] * clean.shape[3]
    return Windowed(session, State(clean, blocks), "NHWC")


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

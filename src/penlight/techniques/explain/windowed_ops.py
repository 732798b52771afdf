"""What operators make of boxes. Each handler answers for windowed tensors, or says NotImplemented and the whole batch is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.techniques.explain import windowed_winograd
from penlight.techniques.explain.windowed import (
    WHOLE,
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
_ALIKE = 4  # pieces that will have the same size, as a guess
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


def _back(values: Tensor, axes: str) -> Tensor:
    """From the network's order of axes to (N, C, H, W)."""
    return values if axes == "NCHW" else values.permute(0, 3, 1, 2) if axes == "NHWC" else values.unsqueeze(1)


def _there(values: Tensor, axes: str) -> Tensor:
    """From (N, C, H, W) to the network's order of axes."""
    return values if axes == "NCHW" else values.permute(0, 2, 3, 1) if axes == "NHWC" else values.squeeze(1)


def _filled(given: Sequence[Any], defaults: Sequence[Any]) -> list[Any]:
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


def _clean(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], axes: str) -> Tensor:
    """The operator's clean output (1, C, H, W), computed once a map; an in-place operator works on a copy."""

    def make() -> Tensor:
        plain = swapped(tuple(args), clean_of)
        if _writes(func):
            plain = (plain[0].clone(), *plain[1:])
        made = func(*plain, **swapped(dict(kwargs), clean_of))
        return channels_last(_back(made[0] if isinstance(made, tuple) else made, axes))

    made: Tensor = session.once(func, swapped((*args, *kwargs.values()), lambda one: one.state.clean), make)
    return made


def _each(given: Windowed, apply: Callable[[Tensor], Any]) -> list[Block]:
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
    clean = _clean(session, func, args, kwargs, given.axes)
    if clean.dtype != given.dtype and _writes(func):
        return NotImplemented
    kwargs = {name: value for name, value in kwargs.items() if name != "memory_format"}
    blocks = _each(given, lambda values: func(values, *args[1:], **kwargs))
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
    clean = _clean(session, func, args, kwargs, given.axes)
    found = Windowed(session, State(clean, _each(given, lambda values: func(values, *args[1:], **kwargs))))
    returns = len(func._schema.returns)
    return found if returns == 1 else (found, *(Unread(found) for _ in range(returns - 1)))


def _constant(value: Tensor, given: Windowed) -> Tensor | None:
    """A plain operand as (1, C or 1, H or 1, W or 1); None if it has a value for every member of the batch."""
    if value.ndim == 0:
        return value.reshape(1, 1, 1, 1)
    if value.ndim > given.ndim or (value.ndim == given.ndim and value.shape[0] != 1):
        return None
    wide = value.reshape((1,) * (given.ndim - value.ndim) + tuple(value.shape))
    wide = _back(wide, given.axes)
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
    clean = _clean(session, func, args, kwargs, first.axes)
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


def _at(session: Session, one: Windowed, pieces: Sequence[Piece], out: Tensor | None = None) -> Tensor:
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
        return _at(session, one, pieces)
    if not isinstance(one, Tensor):
        return one
    constant = constants[id(one)]
    if constant.shape[2:] == (1, 1):
        return constant
    spread = constant.expand(-1, -1, pieces[0].y.length, pieces[0].x.length).permute(0, 2, 3, 1)[0]
    return torch.cat([_boxes(spread, piece).permute(0, 3, 1, 2) for piece in pieces])


def _boxes(map: Tensor, piece: Piece) -> Tensor:
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
            _at(session, one, pieces, out[:, start:stop])
            start = stop
        blocks.append(Block(out, pieces))
    return Windowed(session, State(clean, blocks), first.axes)


def _channels(session: Session, func: Any, given: Windowed, start: int, stop: int, step: int, axes: str) -> Windowed:
    """Some of the channels; from now on writing into either tensor is not allowed."""
    given.state.sliced = True
    clean: Tensor = session.once(
        func, (given.state.clean, start, stop, step), lambda: channels_last(given.state.clean[:, start:stop:step])
    )
    blocks = _each(given, lambda values: values[:, start:stop:step])
    return Windowed(session, State(clean, blocks, sliced=True), axes)


@handles("slice")
def slice_(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A stretch of channels, or all of an axis."""
    given = args[0]
    dim, start, stop, step = _filled(args[1:], (0, None, None, 1))
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
    clean = _clean(session, func, args, kwargs, given.axes)
    height, width = clean.shape[2:]
    blocks = [
        Block(b.values, tuple(Piece(p.first, p.y.moved(top, height), p.x.moved(left, width)) for p in b.pieces))
        for b in given.state.blocks
    ]
    given.state.sliced = True  # the two share their values: neither is to be written into
    return Windowed(session, State(clean, blocks, sliced=True), given.axes)


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])


def slide(
    session: Session,
    given: Windowed,
    clean: Tensor,
    shape: Sequence[tuple[int, int]],
    outside: float,
    inside: Callable[[Tensor, Sequence[Piece]], Tensor],
    entire: Callable[[Tensor], Tensor],
    cost: float = 0.0,
    tiles: Tiles | None = None,
) -> Windowed:
    """An operator that looks at a kernel's cells: `shape` holds (kernel, stride, pad, dilation), each for both axes.

    `inside` computes it, without padding, for windows cut from the map padded with `outside`; `entire` for whole maps. `cost` is
    multiply-adds a cell put out; `tiles` another way to compute it.
    """
    kernel, stride, pad, dilation = shape
    before, (height, width) = given.state.clean, clean.shape[2:]
    reach = [
        max(0, (size - 1) * stride[a] + dilation[a] * (kernel[a] - 1) + 1 - before.shape[2 + a] - pad[a])
        for a, size in ((0, height), (1, width))
    ]
    blocks, jobs, large = [], [], []
    for block in given.state.blocks:
        for piece, values in block.split():
            y = piece.y.through(kernel[0], stride[0], pad[0], dilation[0], height)
            x = piece.x.through(kernel[1], stride[1], pad[1], dilation[1], width)
            if y.axis is piece.y and x.axis is piece.x:
                blocks.append(Block(inside(block.values, block.pieces), block.pieces))  # so it is for all of the block
                break
            if y.axis.size * x.axis.size <= WHOLE * height * width:
                jobs.append(Job(piece, values, y, x))
            elif tiles is not None and tiles.pay(piece.count * _ALIKE, height, width):
                y = piece.y.through_whole(kernel[0], stride[0], pad[0], dilation[0], height)
                x = piece.x.through_whole(kernel[1], stride[1], pad[1], dilation[1], width)
                jobs.append(Job(piece, values, y, x))
            else:
                large.append(Job(piece, values, y, x))
    more = 0 if tiles is None else windowed_winograd.TILE - 1  # cells that whole tiles may need beyond
    pads = (pad[0], reach[0] + more, pad[1], reach[1] + more)
    for group in gathered(jobs, lambda job: (job.y.size, job.x.size), before):
        pieces = tuple(Piece(job.piece.first, job.y.axis, job.x.axis) for job in group)
        if tiles is not None and tiles.pay(sum(piece.count for piece in pieces), pieces[0].y.size, pieces[0].x.size):
            blocks.append(Block(tiles(session, before, group, pads), pieces))
        else:
            windows = session.windows(before, group, pads, outside, (group[0].y.size, group[0].x.size))
            blocks.append(Block(inside(windows, pieces), pieces))
    for group in gathered(large, lambda job: (before.shape[2], before.shape[3]), before):
        blocks.append(_large(session, given, group, entire))
    for block in blocks:
        block.values = channels_last(block.values)
        session.multiplied += cost * block.values.numel() / block.values.shape[1]
    session.asked += cost * given.state.count * height * width
    return Windowed(session, State(clean, blocks))


def _large(session: Session, given: Windowed, jobs: Sequence[Job], entire: Callable[[Tensor], Tensor]) -> Block:
    """Boxes so large that the whole maps are computed."""
    before = tuple(Piece(job.piece.first, job.piece.y.as_whole(), job.piece.x.as_whole()) for job in jobs)
    after = tuple(Piece(job.piece.first, job.y.axis.as_whole(), job.x.axis.as_whole()) for job in jobs)
    return Block(entire(_at(session, given, before)), after)


@dataclass(frozen=True)
class Tiles:
    """A 3 × 3 convolution by Winograd's method."""

    weight: Tensor
    bias: Tensor | None

    def pay(self, count: int, height: int, width: int) -> bool:
        """Whether it is faster for so many boxes."""
        made, given = self.weight.shape[:2]
        return windowed_winograd.worthwhile(count, height, width, given, made)

    def __call__(self, session: Session, clean: Tensor, jobs: Sequence[Job], pads: tuple[int, int, int, int]) -> Tensor:
        height, width = jobs[0].y.axis.size, jobs[0].x.axis.size
        size = (windowed_winograd.reach(height), windowed_winograd.reach(width))
        windows = session.windows(clean, jobs, pads, 0.0, size)
        filter = session.kept(self.weight, "winograd", lambda: windowed_winograd.transformed(self.weight))
        return windowed_winograd.convolve(windows, height, width, filter, self.bias)


@handles("convolution", "_convolution", "mkldnn_convolution")
def convolution(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Any stride, padding, dilation and number of groups; not transposed."""
    if func is not aten.convolution.default or kwargs:
        return NotImplemented
    given, weight, bias, stride, pad, dilation, transposed, _, groups = args
    if not isinstance(given, Windowed) or given.axes != "NCHW" or transposed or weight.ndim != 4:
        return NotImplemented
    clean = _clean(session, func, args, kwargs, "NCHW")
    shape = (_pair(weight.shape[2:]), _pair(stride), _pair(pad), _pair(dilation))

    def inside(windows: Tensor, pieces: Sequence[Piece]) -> Tensor:
        return convolved(windows, weight, bias, stride, (0, 0), dilation, groups)

    def entire(maps: Tensor) -> Tensor:
        return convolved(maps, weight, bias, stride, pad, dilation, groups)

    plain = shape[:2] == ((3, 3), (1, 1)) and shape[3] == (1, 1) and groups == 1
    quick = plain and given.device.type == "cpu" and weight.dtype == torch.float32 == given.dtype
    tiles = Tiles(weight, bias) if quick else None
    return slide(session, given, clean, shape, 0.0, inside, entire, weight[0].numel() * weight.shape[0], tiles)


def convolved(
    maps: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, pad: Any, dilation: Any, groups: int
) -> Tensor:
    """The convolution, by oneDNN also where torch would take another way for a small batch and one thread."""
    if maps.device.type == "cpu" and maps.dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        made: Tensor = torch.mkldnn_convolution(maps, weight, bias, pad, stride, dilation, groups)
        return made
    return torch.convolution(maps, weight, bias, stride, pad, dilation, False, (0, 0), groups)


@handles("max_pool2d_with_indices", "max_pool2d")
def max_pool(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The largest cell; what lies outside the map counts as −∞."""
    given = args[0]
    kernel, stride, pad, dilation, ceil = _filled(args[1:], (0, (), 0, 1, False))
    if given.axes != "NCHW" or not given.is_floating_point():
        return NotImplemented
    clean = _clean(session, func, args, kwargs, "NCHW")
    kernel, pad, dilation = _pair(kernel), _pair(pad), _pair(dilation)
    stride = _pair(stride) if stride else kernel

    def inside(windows: Tensor, pieces: Sequence[Piece]) -> Tensor:
        return largest(windows, kernel, stride, dilation)

    def entire(maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, kernel, stride, pad, dilation, ceil)

    found = slide(session, given, clean, (kernel, stride, pad, dilation), -torch.inf, inside, entire)
    return (found, Unread(found)) if len(func._schema.returns) == 2 else found


def largest(windows: Tensor, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """Max-pool without padding: first down, then across, by comparing shifted views; writes no indices."""
    if kernel == (1, 1):
        return windows[:, :, :: stride[0], :: stride[1]].clone()
    for dim, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True), 2):
        length = (windows.shape[dim] - apart * (size - 1) - 1) // step + 1
        views = [
            windows.narrow(dim, n * apart, (length - 1) * step + 1)[(slice(None),) * dim + (slice(None, None, step),)]
            for n in range(size)
        ]
        best = torch.maximum(views[0], views[1]) if size > 1 else views[0]
        for view in views[2:]:
            torch.maximum(best, view, out=best)
        windows = best
    return windows


@handles("avg_pool2d")
def avg_pool(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The mean of the cells; by how many a sum is divided depends on the place, as padding counts or not."""
    given = args[0]
    kernel, stride, pad, ceil, padding_counts, divisor = _filled(args[1:], (0, (), 0, False, True, None))
    if given.axes != "NCHW" or kwargs:
        return NotImplemented
    clean = _clean(session, func, args, kwargs, "NCHW")
    kernel, pad = _pair(kernel), _pair(pad)
    stride = _pair(stride) if stride else kernel
    even = divisor is not None or (not ceil and (padding_counts or pad == (0, 0)))
    factors = None if even else _factors(session, func, args, kwargs, given.state.clean)

    def inside(windows: Tensor, pieces: Sequence[Piece]) -> Tensor:
        if factors is None:
            return F.avg_pool2d(windows, kernel, stride, divisor_override=divisor)
        sums = F.avg_pool2d(windows, kernel, stride, divisor_override=1)
        return sums * torch.cat([_boxes(factors, piece) for piece in pieces])[:, None]

    def entire(maps: Tensor) -> Tensor:
        made: Tensor = func(maps, *args[1:])
        return made

    return slide(session, given, clean, (kernel, stride, pad, (1, 1)), 0.0, inside, entire)


def _factors(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], clean: Tensor) -> Tensor:
    """(H, W): by what an average pool multiplies the sum of the cells inside the map."""

    def make() -> Tensor:
        ones = clean.new_ones((1, 1, *clean.shape[2:]))
        kernel, stride, pad, ceil = _filled(args[1:], (0, (), 0, False, True, None))[:4]
        counts = F.avg_pool2d(ones, kernel, stride or None, pad, ceil, divisor_override=1)
        factors: Tensor = func(ones, *args[1:]) / counts
        return factors[0, 0]

    made: Tensor = session.kept(clean, ("factors", *map(str, args[1:])), make)
    return made


@handles("mean", "sum", "amax", "amin", "var")
def reduction(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Over the map: the clean sum, less the boxes' clean sums, plus the boxes' own. Over the channels: every cell for itself."""
    given, dims = args[0], (args[1] if len(args) > 1 else None)
    keep = (args[2] if len(args) > 2 else kwargs.get("keepdim", False)) is True
    if dims is None or not isinstance(dims, list | tuple) or kwargs.get("dtype") is not None or given.axes == "NHW":
        return NotImplemented
    over = "".join(sorted(given.axes[d] for d in dims))
    if over == "C" and keep:
        return _over_channels(session, func, args, kwargs)
    if over != "HW" or name_of(func) not in ("mean", "sum"):
        return NotImplemented
    sums = totals(session, given)
    if name_of(func) == "mean":
        sums = sums / (given.state.clean.shape[2] * given.state.clean.shape[3])
    return _there(sums[:, :, None, None], given.axes) if keep else sums


def _over_channels(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    given = args[0]
    clean = _clean(session, func, args, kwargs, given.axes)
    blocks = _each(given, lambda values: _back(func(_there(values, given.axes), *args[1:], **kwargs), given.axes))
    return Windowed(session, State(clean, blocks), given.axes)


def totals(session: Session, given: Windowed) -> Tensor:
    """(N, C): the sums over the map of every member of the batch."""
    clean = given.state.clean

    def make() -> Tensor:
        sums = F.pad(clean[0].permute(1, 2, 0).double(), (0, 0, 1, 0, 1, 0))
        return sums.cumsum(0).cumsum(1)  # of all cells above and to the left

    found = clean.new_empty((given.state.count, clean.shape[1]))
    for block in given.state.blocks:
        start, own = 0, block.values.sum((2, 3))
        for piece in block.pieces:
            sums = own[start : start + piece.count]
            start += piece.count
            if not (piece.y.whole and piece.x.whole):
                corner: Tensor = session.kept(clean, "corner sums", make)
                top, left = torch.from_numpy(piece.y.start)[:, None], torch.from_numpy(piece.x.start)[None]
                bottom, right = top + piece.y.size, left + piece.x.size
                boxes = corner[bottom, right] - corner[top, right] - corner[bottom, left] + corner[top, left]
                sums = (corner[-1, -1] - boxes).flatten(0, 1) + sums
            found[piece.first : piece.first + piece.count] = sums
    return found


@handles("_adaptive_avg_pool2d", "adaptive_avg_pool2d")
def adaptive(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """To one cell: the mean of the map. To a part of its size: an average pool. To its own size: the map."""
    given, size = args
    height, width = given.state.clean.shape[2:]
    if given.axes != "NCHW":
        return NotImplemented
    if tuple(size) == (1, 1):
        return (totals(session, given) / (height * width))[:, :, None, None]
    if height % size[0] or width % size[1]:
        return NotImplemented
    kernel = [height // size[0], width // size[1]]
    return avg_pool(session, aten.avg_pool2d.default, (given, kernel, kernel), {})


@handles("_softmax", "_log_softmax")
def softmax(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Over the channels: every cell for itself."""
    given, dim = args[0], args[1]
    return NotImplemented if given.axes[dim] != "C" else _over_channels(session, func, args, kwargs)


@handles("native_layer_norm")
def layer_norm(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Over the channels where they are last: every cell for itself."""
    given, shape = args[:2]
    if given.axes != "NHWC" or len(shape) != 1:
        return NotImplemented
    clean = _clean(session, func, args, kwargs, "NHWC")
    blocks = _each(given, lambda values: func(values.permute(0, 2, 3, 1), *args[1:])[0].permute(0, 3, 1, 2))
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
    blocks = _each(given, apply)
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

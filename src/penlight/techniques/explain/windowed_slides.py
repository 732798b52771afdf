"""Operators that slide over maps, or sum them up: convolutions, pools, reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.techniques.explain import windowed_winograd
from penlight.techniques.explain.windowed import (
    WHOLE,
    Block,
    Job,
    Piece,
    Session,
    State,
    Unread,
    Windowed,
    channels_last,
    name_of,
)
from penlight.techniques.explain.windowed_ops import (
    OPERATORS,
    as_seen,
    aten,
    boxes_of,
    clean_pass,
    cut_boxes,
    gathered,
    handles,
    over_channels,
    with_defaults,
)

__all__ = ["OPERATORS"]

_ALIKE = 4  # pieces that will have the same size, as a guess


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
    return Block(entire(boxes_of(session, given, before)), after)


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
    clean = clean_pass(session, func, args, kwargs, "NCHW")
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
    kernel, stride, pad, dilation, ceil = with_defaults(args[1:], (0, (), 0, 1, False))
    if given.axes != "NCHW" or not given.is_floating_point():
        return NotImplemented
    clean = clean_pass(session, func, args, kwargs, "NCHW")
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
    kernel, stride, pad, ceil, padding_counts, divisor = with_defaults(args[1:], (0, (), 0, False, True, None))
    if given.axes != "NCHW" or kwargs:
        return NotImplemented
    clean = clean_pass(session, func, args, kwargs, "NCHW")
    kernel, pad = _pair(kernel), _pair(pad)
    stride = _pair(stride) if stride else kernel
    even = divisor is not None or (not ceil and (padding_counts or pad == (0, 0)))
    factors = None if even else _factors(session, func, args, kwargs, given.state.clean)

    def inside(windows: Tensor, pieces: Sequence[Piece]) -> Tensor:
        if factors is None:
            return F.avg_pool2d(windows, kernel, stride, divisor_override=divisor)
        sums = F.avg_pool2d(windows, kernel, stride, divisor_override=1)
        return sums * torch.cat([cut_boxes(factors, piece) for piece in pieces])[:, None]

    def entire(maps: Tensor) -> Tensor:
        made: Tensor = func(maps, *args[1:])
        return made

    return slide(session, given, clean, (kernel, stride, pad, (1, 1)), 0.0, inside, entire)


def _factors(session: Session, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], clean: Tensor) -> Tensor:
    """(H, W): by what an average pool multiplies the sum of the cells inside the map."""

    def make() -> Tensor:
        ones = clean.new_ones((1, 1, *clean.shape[2:]))
        kernel, stride, pad, ceil = with_defaults(args[1:], (0, (), 0, False, True, None))[:4]
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
        return over_channels(session, func, args, kwargs)
    if over != "HW" or name_of(func) not in ("mean", "sum"):
        return NotImplemented
    sums = totals(session, given)
    if name_of(func) == "mean":
        sums = sums / (given.state.clean.shape[2] * given.state.clean.shape[3])
    return as_seen(sums[:, :, None, None], given.axes) if keep else sums


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

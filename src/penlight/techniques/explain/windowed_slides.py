"""Operators that slide over maps, or sum them up: convolutions, pools, reductions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.techniques.explain import windowed_winograd
from penlight.techniques.explain.windowed import Cut, Session, Unread, Windowed, name_of
from penlight.techniques.explain.windowed_blocks import Block, Later, Positions, Reader, State, channels_last
from penlight.techniques.explain.windowed_boxes import Axis, Places, alike
from penlight.techniques.explain.windowed_ops import (
    OPERATORS,
    as_seen,
    aten,
    clean_pass,
    cut_boxes,
    handles,
    over_channels,
    together,
    with_defaults,
)

__all__ = ["OPERATORS"]

_CLASSES = 3  # sizes of boxes along an axis: more take less arithmetic, but every shape of a convolution is compiled
_FINER = 4  # the same for what waits, whose matrix products take any shape
_TURNS = 8  # turns in a block of what waits: its reader's output is small enough to be kept by the allocator
_WHOLE = 0.9  # from this share of a map on, boxes cost more than they save


def _pair(value: Any) -> tuple[int, int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return (numbers[0], numbers[-1])


@dataclass(frozen=True)
class Slide:
    """An operator that looks at a kernel's cells: (kernel, stride, pad, dilation), each for both axes.

    `inside` computes it, without padding, for windows (n, C, h, w) cut from the map padded with `outside` and the boxes it puts out
    (samples, y, x); `entire` for whole maps; `tiles` is another way, `cellwise` one for some samples of boxes that do not grow, into
    memory that is given. `cost` is multiply-adds a cell put out; with `later` nothing is computed before it is asked for, so many
    `channels`.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad: tuple[int, int]
    dilation: tuple[int, int]
    inside: Callable[[Tensor, Places, Axis, Axis], Tensor]
    entire: Callable[[Tensor], Tensor]
    outside: float = 0.0
    cost: float = 0.0
    tiles: Tiles | None = None
    cellwise: Callable[[Tensor, Tensor | None], Tensor] | None = None
    later: bool = False
    channels: int = 1

    def __call__(self, session: Session, given: Windowed, clean: Tensor) -> Windowed:
        """The operator's output for all boxes; `clean` is its output for the clean map."""
        state, (height, width) = given.state, clean.shape[2:]
        y, x = (
            axis.through(self.kernel[a], self.stride[a], self.pad[a], self.dilation[a], length)
            for a, (axis, length) in enumerate(((state.y, height), (state.x, width)))
        )
        if y is state.y and x is state.x:
            blocks = [self._in_place(block, y, x) for block in state.blocks]
        else:
            sizes = _FINER if self.later else _CLASSES
            y, x = y.in_classes(sizes), x.in_classes(sizes)
            large = y.size * x.size > _WHOLE * height * width
            y, x = y.whole(large), x.whole(large)
            reader, turn = Reader(state), Later.turn((1, 1), state.clean.shape[1])
            most = (_TURNS * turn, turn) if self.later else (together(state.clean),)
            blocks = [self._group(session, reader, who, y, x, (height, width)) for who in alike(y, x, *most)]
        session.multiplied += self.cost * sum(block.cells for block in blocks)
        session.asked += self.cost * state.count * height * width
        return Windowed(session, State(clean, y, x, blocks))

    def _in_place(self, block: Block, y: Axis, x: Axis) -> Block:
        """Every box computed where it is."""
        if self.cellwise is None:
            return Block(block.who, channels_last(self.inside(block.values, block.who, y, x)))
        cellwise, read = self.cellwise, block.reader()
        if not self.later:
            return Block(block.who, _in_turn(block, cellwise))
        each = Later.turn(block.size, self.channels)
        return Later(block.who, block.size, lambda at, into: cellwise(read(at, None), into), each)

    def _group(
        self, session: Session, reader: Reader, who: Places, y: Axis, x: Axis, lengths: tuple[int, int]
    ) -> Block:
        """Boxes of one size."""
        who = who[reader.order(who)]
        if not self.later:
            return Block(who, self._made(session, reader, who, y, x, lengths)(0, len(who)))
        size = (int(y.size[who[0]]), int(x.size[who[0]]))
        each = Later.turn(size, reader.clean.shape[1])
        in_turns = cache(lambda: self._made(session, reader, who, y, x, lengths, each))

        def make(at: Positions, into: Tensor | None) -> Tensor:
            if isinstance(at, slice) and at.start % each == 0 and at.stop <= at.start + each:
                return in_turns()(at.start, at.stop)
            some = who[at]
            order = reader.order(some)
            found = self._made(session, reader, some[order], y, x, lengths)(0, len(some))
            return found[torch.from_numpy(np.argsort(order))]

        return Later(who, size, make, each)  # which `make` must not know of: only the collector would free the two

    def _made(
        self, session: Session, reader: Reader, who: Places, y: Axis, x: Axis, lengths: tuple[int, int], each: int = 0
    ) -> Callable[[int, int], Tensor]:
        """What computes the boxes of samples in order, in turns of `each`."""
        size = (int(y.size[who[0]]), int(x.size[who[0]]))
        tiles = self.tiles if self.tiles is not None and self.tiles.pay(len(who), *size) else None
        run = reader.run(who)
        before = (reader.clean.shape[2], reader.clean.shape[3])
        if tiles is None and size == lengths and run is not None and reader.blocks[run[0]].size == before:
            block, at = run
            return lambda start, stop: channels_last(
                self.entire(reader.values[block](slice(at + start, at + stop), None))
            )
        reach = (
            self._seen(size) if tiles is None else (windowed_winograd.reach(size[0]), windowed_winograd.reach(size[1]))
        )
        more = 0 if self.tiles is None else windowed_winograd.TILE - 1  # cells that whole tiles may need beyond
        after = [max(0, a - b - pad) + more for a, b, pad in zip(self._seen(lengths), before, self.pad, strict=True)]
        first = (y.start[who] * self.stride[0], x.start[who] * self.stride[1])
        pads = (self.pad[0], after[0], self.pad[1], after[1])
        cut = Cut(session, reader, who, first, reach, pads, self.outside, each)

        def made(start: int, stop: int) -> Tensor:
            windows = cut(start, stop)
            if tiles is not None:
                return channels_last(tiles(session, windows, *size))
            return channels_last(self.inside(windows, who[start:stop], y, x))

        return made

    def _seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """Cells that so many cells of output look at."""
        y, x = ((size[a] - 1) * self.stride[a] + self.dilation[a] * (self.kernel[a] - 1) + 1 for a in (0, 1))
        return y, x


def _in_turn(block: Block, cellwise: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """All of a block's boxes, computed cell by cell."""
    out: Tensor | None = None
    for at, values in block.turns():
        if out is None and at.stop == len(block.who):
            return cellwise(values, None)
        if out is None:
            made = cellwise(values, None)
            out = made.new_empty((len(block.who), *block.size, made.shape[1]))
            out[at] = made.permute(0, 2, 3, 1)
        else:
            cellwise(values, out[at].view(-1, out.shape[3]))
    assert out is not None
    return out.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Tiles:
    """A 3 × 3 convolution by Winograd's method."""

    weight: Tensor
    bias: Tensor | None

    def pay(self, count: int, height: int, width: int) -> bool:
        """Whether it is faster for so many boxes."""
        made, given = self.weight.shape[:2]
        return windowed_winograd.worthwhile(count, height, width, given, made)

    def __call__(self, session: Session, windows: Tensor, height: int, width: int) -> Tensor:
        """(n, K, height, width) of windows that reach over whole tiles."""
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
    point = shape[:3] == ((1, 1), (1, 1), (0, 0)) and groups == 1

    def inside(windows: Tensor, who: Places, y: Axis, x: Axis) -> Tensor:
        return convolved(windows, weight, bias, stride, (0, 0), dilation, groups)

    def entire(maps: Tensor) -> Tensor:
        return convolved(maps, weight, bias, stride, pad, dilation, groups)

    plain = shape[:2] == ((3, 3), (1, 1)) and shape[3] == (1, 1) and groups == 1
    quick = plain and given.device.type == "cpu" and weight.dtype == torch.float32 == given.dtype
    wide = groups == weight.shape[0] > 1 or (point and weight.shape[0] > weight.shape[1])
    session.wide = wide
    made = Slide(
        *shape,
        inside,
        entire,
        cost=weight[0].numel() * weight.shape[0],
        tiles=Tiles(weight, bias) if quick else None,
        cellwise=partial(pointwise, weight, bias) if point else None,
        later=session.alone and wide,
        channels=weight.shape[0],
    )
    return made(session, given, clean)


def pointwise(weight: Tensor, bias: Tensor | None, maps: Tensor, into: Tensor | None) -> Tensor:
    """A pointwise convolution of channels-last maps as one matrix product, which has nothing to compile for every shape."""
    count, given, height, width = maps.shape
    cells, matrix = maps.permute(0, 2, 3, 1).reshape(-1, given), weight.reshape(-1, given).t()
    made = torch.mm(cells, matrix, out=into) if bias is None else torch.addmm(bias, cells, matrix, out=into)
    return made.view(count, height, width, -1).permute(0, 3, 1, 2)


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

    def inside(windows: Tensor, who: Places, y: Axis, x: Axis) -> Tensor:
        return largest(windows, kernel, stride, dilation)

    def entire(maps: Tensor) -> Tensor:
        return F.max_pool2d(maps, kernel, stride, pad, dilation, ceil)

    found = Slide(kernel, stride, pad, dilation, inside, entire, -torch.inf)(session, given, clean)
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

    def inside(windows: Tensor, who: Places, y: Axis, x: Axis) -> Tensor:
        if factors is None:
            return F.avg_pool2d(windows, kernel, stride, divisor_override=divisor)
        sums = F.avg_pool2d(windows, kernel, stride, divisor_override=1)
        return sums * cut_boxes(factors, who, y, x)[:, None]

    def entire(maps: Tensor) -> Tensor:
        made: Tensor = func(maps, *args[1:])
        return made

    return Slide(kernel, stride, pad, (1, 1), inside, entire)(session, given, clean)


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

    y, x = given.state.y, given.state.x
    found = clean.new_empty((given.state.count, clean.shape[1]), device=session.device or clean.device)
    for block in given.state.blocks:
        sums, who = torch.cat([values.sum((2, 3)) for _, values in block.turns()]), block.who
        if block.size != (y.length, x.length):
            corner: Tensor = session.kept(clean, "corner sums", make)
            top, left = torch.from_numpy(y.start[who]), torch.from_numpy(x.start[who])
            bottom, right = top + block.size[0], left + block.size[1]
            boxes = corner[bottom, right] - corner[top, right] - corner[bottom, left] + corner[top, left]
            sums = corner[-1, -1] - boxes + sums
        found[torch.from_numpy(who)] = sums.to(found.dtype)
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

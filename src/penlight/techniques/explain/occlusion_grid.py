"""Where windows stand, and what map their values make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadOption
from penlight.techniques.explain.occlusion_passes import Cover

_SIZE = re.compile(r"\s*(\d+)\s*(?:[x×]\s*(\d+)\s*)?")
_FORM = "numbers of cells as in 32, 32x16 (rows x columns) or 64,32,16"


@dataclass(frozen=True)
class Grid:
    """Windows of (height, width) every (down, across) cells of an input of `size` (rows, columns), as Captum places them.

    The first begins in the corner; the last in each direction is cut off at the border.
    """

    size: tuple[int, int]
    window: tuple[int, int]
    stride: tuple[int, int]

    @property
    def rows(self) -> list[int]:
        """First rows."""
        return _starts(self.size[0], self.window[0], self.stride[0])

    @property
    def columns(self) -> list[int]:
        """First columns."""
        return _starts(self.size[1], self.window[1], self.stride[1])

    @property
    def name(self) -> str:
        """'32' or '32x16'."""
        return (
            str(self.window[1])
            if self.size[0] == 1 or self.window[0] == self.window[1]
            else "x".join(map(str, self.window))
        )

    def covers(self, channels: Sequence[int | None] = (None,)) -> list[Cover]:
        """All windows, by channel, row and column."""
        return [Cover(r, c, *self.window, channel) for channel in channels for r in self.rows for c in self.columns]

    def halved(self) -> Grid | None:
        """Windows and strides of half the size; None when they cannot be smaller."""
        window, stride = (tuple(max(1, -(-n // 2)) for n in pair) for pair in (self.window, self.stride))
        finer = Grid(self.size, (window[0], window[1]), (min(stride[0], window[0]), min(stride[1], window[1])))
        return None if finer == self else finer


def _starts(length: int, window: int, stride: int) -> list[int]:
    return [n * stride for n in range(-(-(length - window) // stride) + 1)]


def averaged(
    size: tuple[int, int], channels: int, covers: Sequence[Cover], drops: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(channels, rows, columns): for every cell the mean of `drops` over the windows that cover it, and how many these are.

    Windows without a channel count for all; `channels` is 1 where all have none.
    """
    edges = np.zeros((2, channels, size[0] + 1, size[1] + 1))
    for cover, drop in zip(covers, drops, strict=True):
        top, left = cover.row, cover.column
        bottom, right = min(top + cover.height, size[0]), min(left + cover.width, size[1])
        for number, amount in enumerate((drop, 1.0)):
            own = edges[number, cover.channel or 0]
            own[top, left] += amount
            own[bottom, right] += amount
            own[bottom, left] -= amount
            own[top, right] -= amount
    sums, counts = edges.cumsum(2).cumsum(3)[:, :, :-1, :-1]
    counts = counts.round()
    return np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0), counts


def grids(size: tuple[int, int], window: str, stride: str, flat: bool) -> list[Grid]:
    """The grids that options ask for; `BadOption` with one line where they cannot be. `flat`: the input has one axis."""
    windows = _sizes("window", window, flat) or [_default(size, flat)]
    given = _sizes("stride", stride, flat)
    strides = given or [(max(1, h // 4), max(1, w // 4)) for h, w in windows]
    if len(strides) == 1:
        strides = strides * len(windows)
    if len(strides) != len(windows):
        raise BadOption(f"option stride has {len(strides)} sizes for {len(windows)} windows; give one, or one a window")
    found = []
    for window_, stride_ in zip(windows, strides, strict=True):
        if flat:
            window_, stride_ = (1, window_[1]), (1, stride_[1])
        one = Grid(size, window_, stride_)
        if any(w > n for w, n in zip(window_, size, strict=True)):
            shown = f"{size[1]} cells" if flat else f"{size[0]}x{size[1]}"
            raise BadOption(f"window {one.name} is larger than the input, which has {shown}; choose a smaller one")
        if any(s > w and w < n for s, w, n in zip(stride_, window_, size, strict=True)):
            raise BadOption(
                f"stride {'x'.join(map(str, stride_))} is larger than window {one.name}: cells would be left out"
            )
        found.append(one)
    if len({grid.name for grid in found}) != len(found):
        raise BadOption(f"option window names one size twice in {window!r}; name each once")
    return found


def _default(size: tuple[int, int], flat: bool) -> tuple[int, int]:
    """A seventh of the shorter side."""
    side = max(1, (size[1] if flat else min(size)) // 7)
    return side, side


def _sizes(option: str, text: str, flat: bool) -> list[tuple[int, int]]:
    if not text.strip():
        return []
    found = []
    for part in text.split(","):
        match = _SIZE.fullmatch(part)
        if match is None or (flat and match[2]) or any(int(n) < 1 for n in match.groups() if n):
            form = "numbers of cells of at least 1, as in 32 or 64,32,16" if flat else f"{_FORM}, of at least 1"
            raise BadOption(f"option {option} takes {form}, not {text!r}")
        found.append((int(match[1]), int(match[2] or match[1])))
    return found

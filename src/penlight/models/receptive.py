"""Receptive fields, found by probing: which outputs turn into NaN when one row of the input is NaN.

NaN times anything, zero weights too, is NaN, and every maximum, sum and activation passes it on; so a unit depends on a row if and only
if it turns into NaN with it. Poisoning a few neighbouring rows in the middle shows, for all layers at once, where units begin and cease
to depend: the position that ceases at row y has its field's last row there. Two such edges give the stride, one of each kind the size.
A layer whose edges do not fit one stride (uneven pooling) is asked about the whole picture, row by row where what is hit changes. A layer
that has no edges in the picture, because its field reaches past it, is probed on a longer canvas where the network takes one; what still
sees both ends there sees everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models.layers import Layer, ReceptiveField
from penlight.models.probe import LOGITS, Probe, Reader, undisturbed

_LONGER = (1, 2, 4, 8)  # canvases, in lengths of the network's own input
_THIN = (8, 32)  # pixels across the axis that is not looked at, where the network takes so few
_WINDOW = 16  # rows poisoned at first; doubled until the edges are found, at most to _WIDEST
_WIDEST = 128
_AT_ONCE = 8  # poisoned inputs in one pass

Spans = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Line:
    """Fields along one axis of the input: position i sees rows first[i] to last[i], within the picture.

    `size` and `stride` are those of a unit in the middle with nothing cut off; size None: the whole input. The arrays have one entry
    a position along this axis of the map, or one a token.
    """

    size: int | None
    stride: int
    first: NDArray[np.int64]
    last: NDArray[np.int64]


@dataclass
class _Canvas:
    """One axis of one canvas: poisons single rows and remembers which positions of which layer were hit."""

    network: nn.Module
    layers: Mapping[str, Layer]
    shape: tuple[int, ...]
    axis: int  # in `shape`, which has no batch axis
    device: torch.device
    hits: dict[str, dict[int, NDArray[np.bool_]]] = field(default_factory=dict)  # path -> row -> mask over positions

    @property
    def length(self) -> int:
        return self.shape[self.axis]

    def test(self, rows: Iterable[int], paths: Iterable[str]) -> None:
        """Poison each row that one of the layers was not asked about yet; the pass ends after the last of them."""
        layers = [self.layers[path] for path in paths]
        new = [row for row in rows if any(row not in self.hits.get(layer.path, {}) for layer in layers)]
        for start in range(0, len(new), _AT_ONCE):
            self._pass(new[start : start + _AT_ONCE], layers)

    def _pass(self, rows: Sequence[int], layers: Sequence[Layer]) -> None:
        x = torch.zeros((len(rows), *self.shape), device=self.device)
        for n, row in enumerate(rows):
            x[n].select(self.axis, row).fill_(float("nan"))
        masks: dict[str, Tensor] = {}
        with Probe(self.network, {layer.path: self._reader(layer, masks) for layer in layers}) as probe:
            # the layers that are reached answer; the others do not take this canvas
            with suppress(CannotRun, RuntimeError, ValueError, IndexError, TypeError, AssertionError):
                probe(x)
        for path, mask in masks.items():
            if len(mask) == len(rows):
                self.hits.setdefault(path, {}).update(zip(rows, mask.cpu().numpy(), strict=True))

    def _reader(self, layer: Layer, masks: dict[str, Tensor]) -> Reader:
        flat = len(layer.positions) != len(self.shape) - 1  # tokens, or a map of other axes: positions in one row

        def read(output: Tensor) -> None:
            struck = layer.units_first(output).isnan().any(1)
            others = [a for a in range(1, struck.ndim) if a != self.axis]
            masks[layer.path] = struck.flatten(1) if flat else struck.amax(others) if others else struck

        return read

    def fill(self, path: str) -> None:
        """Take it that a row between two poisoned ones, which hit the same, hits that too."""
        rows, hit = self.matrix(path)
        before = np.searchsorted(rows, np.arange(self.length), "right") - 1
        self.hits[path] = dict(enumerate(hit[before]))

    def reached(self, path: str) -> bool:
        return path in self.hits

    def matrix(self, path: str) -> tuple[list[int], NDArray[np.bool_]]:
        """(rows, hit (rows, positions)) of all rows poisoned so far, in order."""
        rows = sorted(self.hits[path])
        return rows, np.stack([self.hits[path][row] for row in rows])

    @property
    def ends(self) -> tuple[int, int]:
        """A row near either end; not the outermost, which a stride may skip."""
        return self.length // 16, self.length - 1 - self.length // 16

    def sees_all(self, path: str) -> bool:
        """Whether the middle position depends on both ends."""
        first, last = (self.hits[path][row] for row in self.ends)
        return bool(first[len(first) // 2] and last[len(last) // 2])


def lines(
    network: nn.Module, layers: Sequence[Layer], shape: tuple[int, ...], device: torch.device
) -> dict[str, tuple[Line, ...]]:
    """For every layer one `Line` an input axis after the channels; `shape` is the input's without the batch axis."""
    wanted = {layer.path: layer for layer in layers if layer.path != LOGITS and layer.alias_of is None}
    with undisturbed(network), torch.inference_mode(), _plain_kernels():
        found = [_axis(network, wanted, shape, axis, device) for axis in range(1, len(shape))]
    of = {layer.path: layer.alias_of or layer.path for layer in layers if layer.path != LOGITS}
    return {path: tuple(one[own] for one in found) for path, own in of.items()}


def summary(found: Sequence[Line]) -> ReceptiveField | None:
    """Size and stride over all axes; None where a unit sees the whole input."""
    sizes = [line.size for line in found if line.size is not None]
    if not found or len(sizes) < len(found):
        return None
    return ReceptiveField(tuple(sizes), tuple(line.stride for line in found))


def _axis(
    network: nn.Module, layers: Mapping[str, Layer], shape: tuple[int, ...], axis: int, device: torch.device
) -> dict[str, Line]:
    native: dict[str, _Canvas] = {}
    regular: dict[str, tuple[int, int, int]] = {}  # offset, stride, size
    uneven: set[str] = set()
    left = dict(layers)
    for factor in _LONGER:
        for canvas in _canvases(network, left, shape, axis, factor, device):
            canvas.test(canvas.ends, canvas.layers)
            reached = [p for p in canvas.layers if canvas.reached(p)]
            native.update({p: canvas for p in reached if factor == 1})
            candidates = [p for p in reached if not canvas.sees_all(p) and layers[p].positions]
            solved, odd = _resolve(canvas, candidates)
            regular.update(solved)
            uneven.update(odd if factor == 1 else ())
        left = {p: la for p, la in left.items() if p not in regular and p not in uneven and la.positions}
        if not left:
            break
    for canvas in {id(one): one for one in native.values()}.values():
        own = [path for path, place in native.items() if place is canvas]
        _sweep(canvas, [p for p in own if _has_to_be_swept(canvas, p, layers[p], regular.get(p))])
    return {
        path: _line(native.get(path), path, layer, regular.get(path), shape[axis]) for path, layer in layers.items()
    }


def _canvases(
    network: nn.Module,
    layers: Mapping[str, Layer],
    shape: tuple[int, ...],
    axis: int,
    factor: int,
    device: torch.device,
) -> Iterator[_Canvas]:
    """Thin canvases, where there is a second axis to save on, and one of full width, each for the layers that no thinner one reaches."""
    long = tuple(n * (factor if a == axis else 1) for a, n in enumerate(shape))
    left = dict(layers)
    for width in _THIN:
        thin = tuple(n if a in (0, axis) else min(n, width) for a, n in enumerate(long))
        maps = {p: la for p, la in left.items() if len(la.positions) == len(shape) - 1}
        if thin != long and maps:
            narrow = _Canvas(network, maps, thin, axis, device)
            narrow.test(narrow.ends, narrow.layers)
            left = {p: la for p, la in left.items() if p not in maps or not narrow.reached(p)}
            yield narrow
    if left:
        yield _Canvas(network, left, long, axis, device)


def _resolve(canvas: _Canvas, paths: Sequence[str]) -> tuple[dict[str, tuple[int, int, int]], set[str]]:
    """((offset, stride, size) by layer, layers whose edges do not lie on a regular grid)."""
    solved: dict[str, tuple[int, int, int]] = {}
    uneven: set[str] = set()
    left, window, middle = list(paths), _WINDOW, canvas.length // 2
    while left:
        rows = range(max(0, middle - window // 2), min(canvas.length, middle + (window + 1) // 2))
        if window == _WINDOW:  # most layers have an edge at every one or two of these
            canvas.test(rows, left)
        else:
            _search(canvas, rows, left)
        for path in list(left):
            answer = _edges(*canvas.matrix(path))
            if answer is not None:
                left.remove(path)
                if answer == ():
                    uneven.add(path)
                else:
                    solved[path] = answer  # type: ignore[assignment]
        if len(rows) == canvas.length or window >= _WIDEST:
            break
        window *= 2
    return solved, uneven


def _search(canvas: _Canvas, rows: range, paths: Sequence[str]) -> None:
    """Poison rows until every edge among `rows` is seen: halfway between two that differ, as what is seen moves one way only."""
    new = {*rows[::_WINDOW], rows[-1]}
    while new:
        canvas.test(sorted(new), paths)
        new = set()
        for path in paths:
            asked, hit = canvas.matrix(path)
            changed = (hit[1:] != hit[:-1]).any(1)
            pairs = [pair for pair, differs in zip(pairwise(asked), changed, strict=True) if differs]
            new |= {(a + b) // 2 for a, b in pairs if b - a > 1 and a in rows and b in rows}


def _sweep(canvas: _Canvas, paths: Sequence[str]) -> None:
    """What every row hits. Where rows are skipped, which hit nothing, it takes all of them to find the others."""
    rows = range(canvas.length)
    _search(canvas, rows, paths)
    canvas.test(rows, [path for path in paths if not canvas.matrix(path)[1].any(1).all()])
    for path in paths:
        canvas.fill(path)


def _edges(rows: list[int], hit: NDArray[np.bool_]) -> tuple[int, int, int] | tuple[()] | None:
    """(offset, stride, size) from the edges seen between neighbouring rows; () if they are irregular, None if there are too few."""
    neighbours = np.diff(rows) == 1
    rises = [(i, rows[y + 1]) for y, i in np.argwhere(~hit[:-1] & hit[1:] & neighbours[:, None])]
    falls = [(i, rows[y]) for y, i in np.argwhere(hit[:-1] & ~hit[1:] & neighbours[:, None])]
    steps = {(b[1] - a[1]) / (b[0] - a[0]) for edges in (rises, falls) for a, b in _consecutive(edges)}
    if len(steps) > 1:
        return ()
    if not steps or not rises or not falls:
        return None
    stride = steps.pop()
    if stride != int(stride) or stride < 1:
        return ()
    first = {int(y - stride * i) for i, y in rises}
    last = {int(y - stride * i) for i, y in falls}
    if len(first) > 1 or len(last) > 1:
        return ()
    offset = first.pop()
    return offset, int(stride), last.pop() - offset + 1


def _consecutive(edges: list[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    ordered = sorted(edges)
    return ((a, b) for a, b in pairwise(ordered) if a[0] != b[0])


def _grid(regular: tuple[int, int, int], count: int, length: int) -> Spans:
    """(first, last) row of each position on a regular grid, cut at the border."""
    offset, stride, size = regular
    start = offset + stride * np.arange(count, dtype=np.int64)
    return np.clip(start, 0, length - 1), np.clip(start + size - 1, 0, length - 1)


def _fits(canvas: _Canvas, path: str, regular: tuple[int, int, int]) -> bool:
    """Whether every hit seen on the network's own input lies where the grid says."""
    rows, hit = canvas.matrix(path)
    first, last = _grid(regular, hit.shape[1], canvas.length)
    at = np.asarray(rows)[:, None]
    return np.array_equal(hit, (first <= at) & (at <= last))


def _has_to_be_swept(canvas: _Canvas, path: str, layer: Layer, regular: tuple[int, int, int] | None) -> bool:
    if not layer.positions or (regular is not None and _fits(canvas, path, regular)):
        return False
    return not (canvas.sees_all(path) and bool(canvas.matrix(path)[1].all()))


def _line(canvas: _Canvas | None, path: str, layer: Layer, regular: tuple[int, int, int] | None, length: int) -> Line:
    if canvas is None or not layer.positions:
        return Line(None, length, *_whole(1, length))
    hit = canvas.matrix(path)[1]
    count = hit.shape[1]
    if regular is not None and _fits(canvas, path, regular):
        return Line(regular[2], regular[1], *_grid(regular, count, length))
    if len(hit) < length:  # not swept: every position sees both ends
        return Line(regular[2] if regular else None, regular[1] if regular else length, *_whole(count, length))
    first, last = hit.argmax(0), length - 1 - hit[::-1].argmax(0)
    middle = count // 2
    beside = np.flatnonzero(first > first[middle])
    if regular is not None:
        return Line(regular[2], regular[1], first, last)
    size = int(last[middle] - first[middle] + 1)
    stride = int(first[beside[0]] - first[middle]) if len(beside) else length
    return Line(None if size == length else size, stride, first, last)


def _whole(count: int, length: int) -> Spans:
    return np.zeros(count, np.int64), np.full(count, length - 1, np.int64)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """No cuDNN: its Winograd and Fourier kernels smear NaN over neighbours. oneDNN's direct convolutions do not."""
    with torch.backends.cudnn.flags(enabled=False):
        yield

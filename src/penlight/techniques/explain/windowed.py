"""Exact incremental inference: what an occluder can change is computed, the rest is taken from one clean pass.

A `Windowed` tensor stands for a batch (N, C, H, W) whose members differ from one clean map (1, C, H, W) only inside a box each. It goes
through the network's own forward; operators that keep the difference local work on the boxes, everything else gets the
whole batch. After Nakandala et al. 2019 ("Krypton"), with boxes that stay inside the map and shrink at its borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from penlight.techniques.explain.windowed_boxes import Axis, Plan

Handler = Callable[["Session", Any, Sequence[Any], Mapping[str, Any]], Any]
WHOLE = 0.8  # from this share of a map on, boxes cost more than they save
_NHWC = torch.channels_last


class GiveUp(BaseException):
    """This network cannot be run incrementally; a BaseException so that no `except Exception` of the network swallows it."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Samples `first`, `first` + 1, … of the batch, in rows × columns (columns fastest): where their boxes lie."""

    first: int
    y: Axis
    x: Axis

    @property
    def count(self) -> int:
        return self.y.count * self.x.count


@dataclass
class Block:
    """Pieces with boxes of one size, and their values one after the other, (n, C, h, w) channels-last."""

    values: Tensor
    pieces: tuple[Piece, ...]

    def split(self) -> Iterable[tuple[Piece, Tensor]]:
        """Every piece with its values (rows, columns, h, w, C), a view."""
        start, last = 0, self.values.permute(0, 2, 3, 1)
        for piece in self.pieces:
            yield piece, in_grid(last[start : start + piece.count], piece)
            start += piece.count


def in_grid(values: Tensor, piece: Piece) -> Tensor:
    """A piece's values (n, …) as (rows, columns, …), a view."""
    each, *rest = values.stride()
    return values.as_strided(
        (piece.y.count, piece.x.count, *values.shape[1:]), (each * piece.x.count, each, *rest), values.storage_offset()
    )


def channels_last(values: Tensor) -> Tensor:
    """(N, C, H, W) with C fastest in memory, copied only if it is not so yet."""
    last = values.permute(0, 2, 3, 1)
    return values if last.is_contiguous() else last.contiguous().permute(0, 3, 1, 2)


@dataclass
class State:
    """What a windowed tensor holds; views of the same values share it, so that an in-place operator is seen by all of them."""

    clean: Tensor
    blocks: list[Block]
    sliced: bool = False  # another tensor looks at some of the channels
    full: Tensor | None = None
    version: int = 0

    @property
    def count(self) -> int:
        """Members of the batch."""
        return sum(len(block.values) for block in self.blocks)


class Windowed(Tensor):
    """N copies of a clean map that differ from it inside boxes. `axes` names what the network sees: "NCHW", "NHWC" or "NHW"."""

    state: State
    session: Session
    axes: str

    @staticmethod
    def __new__(cls, session: Session, state: State, axes: str = "NCHW") -> Windowed:
        clean = state.clean
        sizes = dict(zip("NCHW", (state.count, *clean.shape[1:]), strict=True))
        made: Windowed = Tensor._make_wrapper_subclass(
            cls, [sizes[a] for a in axes], dtype=clean.dtype, device=state.blocks[0].values.device
        )
        made.state, made.session, made.axes = state, session, axes
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Windowed({list(self.shape)}, {len(self.state.blocks)} blocks)"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = args[0].session.operators.get(func) if args and isinstance(args[0], Windowed) else None
        if handler is not None:
            found = handler(args[0].session, func, args, kwargs or {})
            if found is not NotImplemented:
                return found
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        kwargs = kwargs or {}
        session = None
        for one in _windowed((args, kwargs)):
            session, full = one.session, one.state.full
            if full is not None and full._version != one.state.version:
                raise GiveUp("an operator writes into a view of an earlier map")
        assert session is not None
        handler = session.operators.get(func.overloadpacket)
        if handler is not None:
            found = handler(session, func, args, kwargs)
            if found is not NotImplemented:
                session.watch(found)
                return found
        return session.in_full(func, args, kwargs)


class Unread(Tensor):
    """A second output that no box can tell, such as a max-pool's indices: whoever reads it ends incremental inference."""

    @staticmethod
    def __new__(cls, like: Tensor) -> Unread:
        made: Unread = Tensor._make_wrapper_subclass(cls, like.shape, dtype=torch.int64, device=like.device)
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise GiveUp(f"{name_of(func)} reads the second output of an earlier operator")


def _windowed(value: Any) -> Iterable[Windowed]:
    if isinstance(value, Windowed):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _windowed(item)
    elif isinstance(value, dict):
        yield from _windowed(list(value.values()))


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def swapped(value: Any, change: Callable[[Windowed], Any]) -> Any:
    """Arguments with every windowed tensor changed."""
    if isinstance(value, Windowed):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(swapped(item, change) for item in value)
    return {k: swapped(v, change) for k, v in value.items()} if isinstance(value, dict) else value


def name_of(func: Any) -> str:
    """'aten.relu_.default' → 'relu'."""
    return str(getattr(func, "overloadpacket", func)).rpartition(".")[2].strip("_")


@dataclass(frozen=True, eq=False)
class Job:
    """A piece whose values (rows, columns, h, w, C) are to be laid into windows."""

    piece: Piece
    values: Tensor
    y: Plan
    x: Plan


@dataclass
class _Record:
    func: Any
    given: tuple[Any, ...]
    made: Any


@dataclass
class Session:
    """One input's clean maps, each computed once and found again by the order of calls, and what was seen on the way.

    `operators` holds, by operator (its overloads together), how it works on boxes, or returns NotImplemented. `fallbacks` names
    operators that needed the whole batch; `multiplied` and `asked` count multiply-adds of windowed convolutions, done and in full;
    `bytes` is the largest operator's memory a sample.
    """

    operators: Mapping[Any, Handler]
    fallbacks: list[str] = field(default_factory=list)
    multiplied: float = 0.0
    asked: float = 0.0
    bytes: float = 0.0
    where: list[str] = field(default_factory=list)
    _records: list[_Record] = field(default_factory=list)
    _next: int = 0
    _kept: dict[Any, tuple[Any, Any]] = field(default_factory=dict)
    _read: dict[int, Tensor] = field(
        default_factory=dict
    )  # overwritten maps that are kept, as something else has read them
    _scratch: Tensor | None = None

    def begin(self) -> None:
        """A new pass begins."""
        self._next = 0

    def once(self, func: Any, given: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What `make` makes of clean maps, from the earlier pass if this call had the same inputs there."""
        at, self._next = self._next, self._next + 1
        inputs = tuple(given)
        if at < len(self._records):
            record = self._records[at]
            if record.func is func and _same(record.given, inputs):
                return record.made
            del self._records[at:]
        if any(one.is_meta for one in _tensors(inputs)):
            raise GiveUp("it takes another way through its layers in a later pass")
        made = make()
        self._records.append(_Record(func, inputs, made))
        return made

    def forget(self, old: Tensor) -> None:
        """Let go of a clean map that an in-place operator overwrote, unless something else has read it; its shape stays."""
        if old.is_meta or id(old) in self._read:
            return
        self._read[id(old)] = old
        if not any(record.made is old for record in self._records):
            return
        readers = [record for record in self._records if any(one is old for one in _tensors(record.given))]
        if len(readers) != 1 or any(map is old for map, _ in self._kept.values()):
            return
        del self._read[id(old)]
        token = torch.empty_like(old, device="meta")
        for record in self._records:
            record.made = token if record.made is old else record.made
        readers[0].given = tuple(token if one is old else one for one in readers[0].given)

    def kept(self, map: Tensor, key: Any, make: Callable[[], Any]) -> Any:
        """Something made from a clean map, made once."""
        if map.is_meta:
            raise GiveUp("it reads a map in a later pass that it did not read in the first")
        found = self._kept.get((id(map), key))
        if found is None or found[0] is not map:
            found = self._kept[(id(map), key)] = (map, make())
        return found[1]

    def padded(self, clean: Tensor, pads: tuple[int, int, int, int], value: float) -> Tensor:
        """(H, W, C): the clean map with (top, bottom, left, right) cells of `value` around it."""

        def make() -> Tensor:
            top, bottom, left, right = pads
            _, channels, height, width = clean.shape
            if not any(pads):
                return channels_last(clean).permute(0, 2, 3, 1)[0]
            wide = clean.new_full((height + top + bottom, width + left + right, channels), value)
            wide[top : top + height, left : left + width] = clean[0].permute(1, 2, 0)
            return wide

        made: Tensor = self.kept(clean, (pads, value), make)
        return made

    def windows(
        self, clean: Tensor, jobs: Sequence[Job], pads: tuple[int, int, int, int], outside: float, size: tuple[int, int]
    ) -> Tensor:
        """(n, C, *size), channels-last, valid until the next call: `fill` in memory that is used again and again."""
        y, x = size
        shape = (sum(job.piece.count for job in jobs), y, x, clean.shape[1])
        numel = shape[0] * y * x * shape[3]
        if self._scratch is None or self._scratch.numel() < numel or self._scratch.dtype != clean.dtype:
            self._scratch = clean.new_empty(numel)
        out = self._scratch[:numel].view(shape)
        self.fill(out, clean, jobs, pads, outside)
        return out.permute(0, 3, 1, 2)

    def fill(
        self,
        out: Tensor,
        clean: Tensor,
        jobs: Sequence[Job],
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        outside: float = 0.0,
    ) -> None:
        """Into `out` (n, h, w, C): windows of the padded clean map, with the jobs' own values laid in."""
        ground, start = self.padded(clean, pads, outside), 0
        for job in jobs:
            count = job.piece.count
            into = in_grid(out[start : start + count], job.piece)
            lay(into, ground, job.values, job.y, job.x)
            start += count

    def whole(self, given: Windowed) -> Tensor:
        """The batch, as the network would have it."""
        state = given.state
        if state.full is None:
            clean = state.clean
            full = torch.empty(
                (state.count, *clean.shape[1:]),
                dtype=clean.dtype,
                device=clean.device,
                memory_format=_NHWC,
            )
            for block in state.blocks:
                for piece, values in block.split():
                    y, x = piece.y.into(piece.y.as_whole()), piece.x.into(piece.x.as_whole())
                    into = full[piece.first : piece.first + piece.count].permute(0, 2, 3, 1)
                    self.fill(into, clean, [Job(piece, values, y, x)])
            state.full, state.version = full, full._version
        elif state.full._version != state.version:
            raise GiveUp("an operator writes into a view of an earlier map")
        full = state.full
        return full if given.axes == "NCHW" else full.permute(0, 2, 3, 1) if given.axes == "NHWC" else full[:, 0]

    def in_full(self, func: Any, args: Any, kwargs: Any, *, told: bool = True) -> Any:
        """An operator on the whole batch."""
        if func._schema.is_mutable and any(
            isinstance(given, Windowed) and argument.alias_info is not None and argument.alias_info.is_write
            for given, argument in zip(args, func._schema.arguments, strict=False)
        ):
            raise GiveUp(f"{name_of(func)} writes into a map")
        if told:
            self.tell(func)
        args, kwargs = swapped(args, self.whole), swapped(kwargs, self.whole)
        return func(*args, **kwargs)

    def tell(self, func: Any) -> None:
        """Note that an operator needed the whole batch; in the first pass, where it is known which module runs."""
        if self.fallbacks and not self.where:
            return
        where = f" in {self.where[-1]}" if self.where and self.where[-1] else ""
        line = f"{name_of(func)}{where}"
        if line not in self.fallbacks:
            self.fallbacks.append(line)

    def watch(self, found: Any) -> None:
        """Keep account of memory."""
        for one in _windowed(found):
            size = sum(block.values.numel() for block in one.state.blocks) * one.state.clean.element_size()
            self.bytes = max(self.bytes, size / one.state.count)


def _same(before: Any, now: Any) -> bool:
    if isinstance(before, Tensor):
        if before is now:
            return True
        return (
            isinstance(now, Tensor)
            and before.shape == now.shape
            and before.dtype == now.dtype
            and torch.equal(before, now)
        )
    if isinstance(before, tuple | list):
        return isinstance(now, tuple | list) and len(before) == len(now) and all(map(_same, before, now))
    return bool(type(before) is type(now) and before == now)


def lay(out: Tensor, ground: Tensor, values: Tensor, y: Plan, x: Plan) -> None:
    """Into `out` (rows, columns, h, w, C): the windows of `ground` (H, W, C), and over them a piece's values where they belong."""
    down, across, _ = ground.stride()
    covered_y = all(run.into == slice(0, y.size) for run in y.runs)
    covered = covered_y and all(run.into == slice(0, x.size) for run in x.runs)
    for rows in y.runs:
        for columns in x.runs:
            target = out[rows.first : rows.last, columns.first : columns.last]
            if not covered:
                target.copy_(
                    ground.as_strided(
                        target.shape,
                        (rows.step * down, columns.step * across, down, across, 1),
                        ground.storage_offset() + rows.start * down + columns.start * across,
                    )
                )
            given = values[rows.first : rows.last, columns.first : columns.last, rows.from_, columns.from_]
            target[:, :, rows.into, columns.into] = given


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the multiply-adds of whole-batch operators and the largest tensor they put out, in bytes."""

    def __init__(self, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        from torch.utils.flop_counter import flop_registry

        self.multiplied, self.bytes, self._known, self._batch = 0.0, 0, flop_registry, batch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and not isinstance(made, Windowed) and made.shape[:1] == (self._batch,):
            self.bytes = max(self.bytes, made.numel() * made.element_size())
        count = self._known.get(func.overloadpacket)
        if count is not None and next(iter(_windowed((args, kwargs))), None) is None:
            self.multiplied += count(*args, **kwargs, out_val=made) / 2
        return made

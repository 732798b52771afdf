"""Exact incremental inference: what an occluder can change is computed, the rest is taken from one clean pass.

A `Windowed` tensor stands for a batch (N, C, H, W) whose members differ from one clean map (1, C, H, W) only inside a box each. It goes
through the network's own forward; operators that keep the difference local work on the boxes, everything else gets the
whole batch. After Nakandala et al. 2019 ("Krypton"), with boxes that stay inside the map and shrink at its borders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from penlight.techniques.explain.windowed_blocks import Changed, GiveUp, Positions, Reader, State, channels_last
from penlight.techniques.explain.windowed_boxes import Places, sources_of

_SPARE = 16 * 2**20  # bytes of memory that is used again; what is never touched takes none
Handler = Callable[["Session", Any, Sequence[Any], Mapping[str, Any]], Any]


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
            cls, [sizes[a] for a in axes], dtype=clean.dtype, device=session.device or clean.device
        )
        made.state, made.session, made.axes = state, session, axes
        return made

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"Windowed({list(self.shape)}, {len(self.state.blocks)} blocks)"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = args[0].session.operators.get(func) if args and isinstance(args[0], Windowed) else None
        if handler is not None:
            found = args[0].session.call(handler, func, args, kwargs or {})
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
            found = session.call(handler, func, args, kwargs)
            if found is not NotImplemented:
                return found
        else:
            session._count((args, kwargs))
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


@dataclass
class _Record:
    func: Any
    given: tuple[Any, ...]
    made: Any


@dataclass
class _Memory:
    """Memory (numel,), and the ground that lies at its beginning."""

    values: Tensor
    ground: Tensor | None = None


@dataclass
class Session:
    """One input's clean maps, each computed once and found again by the order of calls, and what was seen on the way.

    `operators` holds, by operator (its overloads together), how it works on boxes, or returns NotImplemented; `device` is where boxes
    are. `fallbacks` names operators that needed the whole batch; `multiplied` and `asked` count multiply-adds of windowed
    convolutions, done and in full; `waits` says whether what one operator alone reads may wait for it, which the first pass tells;
    `alone`, within an operator, whether that is so of what it makes, `wide` whether it is of a kind for which that pays.
    """

    operators: Mapping[Any, Handler]
    device: torch.device | None = None
    fallbacks: list[str] = field(default_factory=list)
    multiplied: float = 0.0
    asked: float = 0.0
    where: list[str] = field(default_factory=list)
    waits: bool = True
    alone: bool = False
    wide: bool = False
    _made: dict[int, tuple[bool, float]] = field(default_factory=dict)
    _calls: int = 0
    _first: bool = True
    _readers: dict[int, int] = field(default_factory=dict)  # of what an operator made, by its number
    _records: list[_Record] = field(default_factory=list)
    _makers: dict[int, list[_Record]] = field(default_factory=dict)  # those that made a tensor, by its number
    _given: dict[int, list[_Record]] = field(default_factory=dict)  # those that were given it
    _next: int = 0
    _kept: dict[Any, tuple[Any, Any]] = field(default_factory=dict)
    _read: dict[int, Tensor] = field(
        default_factory=dict
    )  # overwritten maps that are kept, as something else has read them
    _spare: dict[str, _Memory] = field(default_factory=dict)

    def begin(self) -> None:
        """A new pass begins."""
        self._first = self._first and not self._calls
        self._next = self._calls = 0

    def call(self, handler: Handler, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What an operator makes of its windowed arguments; NotImplemented if it needs the whole batch."""
        number, self._calls = self._calls, self._calls + 1
        self._count((args, kwargs))
        self.alone = self.waits and not self._first and self._readers.get(number) == 1
        self.wide = False
        found = handler(self, func, args, kwargs)
        self.alone = False
        for one in _windowed(found):
            one.state.call = number
            if self._first:
                cells, clean = sum(block.cells for block in one.state.blocks), one.state.clean
                self._made[number] = (self.wide, cells * clean.shape[1] * clean.element_size() / one.state.count)
        return found

    def _count(self, given: Any) -> None:
        for one in _windowed(given):
            if one.state.spent:
                raise Changed("a map has more readers than in the first pass")
            if self._first:
                self._readers[one.state.call] = self._readers.get(one.state.call, 0) + 1

    @property
    def bytes(self) -> float:
        """The largest memory a sample of what an operator makes, without what waits."""
        return max((size for n, (wide, size) in self._made.items()
                    if not (self.waits and wide and self._readers.get(n) == 1)), default=0.0)  # fmt: skip

    def is_wide(self, one: Windowed) -> bool:
        """Whether a map could wait for its reader."""
        return self._made.get(one.state.call, (False, 0.0))[0]

    def once(self, func: Any, given: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What `make` makes of clean maps, from the earlier pass if this call had the same inputs there."""
        at, self._next = self._next, self._next + 1
        inputs = tuple(given)
        if at < len(self._records):
            record = self._records[at]
            if record.func is func and _same(record.given, inputs):
                return record.made
            self._drop(self._records[at:])
            del self._records[at:]
        if any(one.is_meta for one in _tensors(inputs)):
            raise GiveUp("it takes another way through its layers in a later pass")
        made = make()
        record = _Record(func, inputs, made)
        self._records.append(record)
        for one in {id(one) for one in _tensors(inputs)}:
            self._given.setdefault(one, []).append(record)
        for made_now in _tensors(made):
            self._makers.setdefault(id(made_now), []).append(record)
        return made

    def _drop(self, records: Sequence[_Record]) -> None:
        gone = {id(record) for record in records}
        for index in (self._given, self._makers):
            for number, found in list(index.items()):
                index[number] = [record for record in found if id(record) not in gone]
                if not index[number]:
                    del index[number]

    def forget(self, old: Tensor) -> None:
        """Let go of a clean map that an in-place operator overwrote, unless something else has read it; its shape stays."""
        if old.is_meta or id(old) in self._read:
            return
        self._read[id(old)] = old
        readers = self._given.get(id(old), [])
        makers = [record for record in self._makers.get(id(old), []) if record.made is old]
        if not makers or len(readers) != 1 or any(map is old for map, _ in self._kept.values()):
            return
        del self._read[id(old)], self._makers[id(old)], self._given[id(old)]  # another tensor may get its number
        token = torch.empty_like(old, device="meta")
        for record in makers:
            record.made = token
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

    def read_once(self, one: Windowed) -> bool:
        """Whether the operator that reads a map now is the only one to."""
        return self.waits and not (self._first or one.state.sliced) and self._readers.get(one.state.call) == 1

    @contextmanager
    def lent(self, name: str, numel: int, like: Tensor) -> Iterator[_Memory]:
        """Memory that is used again and again, by one at a time."""
        memory = self._spare.pop(name, None)
        if memory is None or memory.values.numel() < numel or memory.values.dtype != like.dtype:
            memory = _Memory(like.new_empty(max(numel, _SPARE // like.element_size())))
        yield memory
        self._spare[name] = memory

    def whole(self, given: Windowed) -> Tensor:
        """The batch, as the network would have it."""
        state = given.state
        if state.full is None:
            clean, reader = state.clean, Reader(state)
            size = (clean.shape[2], clean.shape[3])
            full = clean.new_empty((state.count, *size, clean.shape[1]))
            for block in state.blocks:
                nought = np.zeros(len(block.who), np.int64)
                full[torch.from_numpy(block.who)] = Cut(self, reader, block.who, (nought, nought), size)().permute(
                    0, 2, 3, 1
                )
            state.full = full.permute(0, 3, 1, 2)
            state.version = state.full._version
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


class Cut:
    """Windows (n, C, *size) of the maps of samples in order, padded with `outside`, that begin at `first` (rows, columns)."""

    def __init__(
        self,
        session: Session,
        reader: Reader,
        who: Places,
        first: tuple[Places, Places],
        size: tuple[int, int],
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        outside: float = 0.0,
        each: int = 0,
    ) -> None:
        self.session, self.reader, self.who, self.size = session, reader, who, size
        self.ground, self.each = session.padded(reader.clean, pads, outside), each or len(who)
        self.run = reader.run(who)
        y, x = reader.y, reader.x
        self.cells = y.size[who] * x.size[who]
        ends = np.cumsum(self.cells)
        begins = ends - self.cells
        begins -= begins[np.arange(len(who)) // self.each * self.each]  # every turn fills the table anew
        own = (y.start[who] + pads[0], x.start[who] + pads[2])
        height, width, _ = self.ground.shape
        index = sources_of(first, size, own, (y.size[who], x.size[who]), begins + height * width, width)
        self.index = torch.from_numpy(index.reshape(len(who), -1)).to(self.ground.device)

    def __call__(self, start: int = 0, stop: int | None = None, out: Tensor | None = None) -> Tensor:
        """Those of one turn, channels-last; in `out` (n, *size, C), else valid until the next call."""
        stop = len(self.who) if stop is None else stop
        height, width, channels = self.ground.shape
        at, index = height * width, self.index[start:stop].view(-1)
        numel = (at + int(self.cells[start:stop].sum())) * channels
        with self.session.lent("table", numel, self.ground) as memory:
            table = memory.values[:numel].view(-1, channels)
            if memory.ground is not self.ground:
                table[:at], memory.ground = self.ground.view(-1, channels), self.ground
            for block, positions in self._parts(start, stop):
                found = self.reader.blocks[block]
                count = positions.stop - positions.start if isinstance(positions, slice) else len(positions)
                own = table[at : at + count * found.size[0] * found.size[1]]
                values = self.reader.values[block](positions, own)
                if values.data_ptr() != own.data_ptr():
                    own.view(count, *found.size, channels).copy_(values.permute(0, 2, 3, 1))
                at += len(own)
            with self.session.lent("windows", len(index) * channels, self.ground) as spare:
                into = (spare.values[: len(index) * channels] if out is None else out).view(-1, channels)
                torch.index_select(table, 0, index, out=into)
        return into.view(stop - start, *self.size, channels).permute(0, 3, 1, 2)

    def _parts(self, start: int, stop: int) -> Iterable[tuple[int, Positions]]:
        if self.run is None:
            return self.reader.parts(self.who[start:stop])
        block, position = self.run
        return [(block, slice(position + start, position + stop))]


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

"""The aim's value with a window of the input covered, for many windows: incrementally where the network allows it, else in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models.memory import free_bytes, is_memory_error
from penlight.models.probe import listening
from penlight.techniques.explain.chunks import chunk_size
from penlight.techniques.explain.explanation import Scene
from penlight.techniques.explain.windowed import Ledger, Session, Windowed
from penlight.techniques.explain.windowed_blocks import Block, Changed, GiveUp, State, channels_last
from penlight.techniques.explain.windowed_boxes import Axis, alike
from penlight.techniques.explain.windowed_ops import cut_boxes
from penlight.techniques.explain.windowed_slides import OPERATORS

Progress = Callable[[int], None]
_CAP = 128 * 2**20  # bytes a batch of boxes may take: more is no faster
_SHARE = 0.4  # of the free memory that it may take
_ALIVE = 4.0  # boxes of the largest operator's size that live at once
_MOST = 640  # positions a batch
_FEW = 8  # below so many positions, incremental inference does not pay
_TOLERANCE, _ROUNDING = 1e-4, 1e-5  # of the values' scale, and at all: incremental passes only round differently


@dataclass(frozen=True)
class Cover:
    """A window that is covered: its first row and column, its size, and the one channel, or None for all."""

    row: int
    column: int
    height: int
    width: int
    channel: int | None = None


class Passes:
    """Runs one scene's network on inputs with windows covered by `fill` (1, *shape).

    `value` is the aim's for the input itself; `reason` says why passes are run in full, once they are; `difference` is the largest
    between incremental and full passes where both were run.
    """

    def __init__(self, scene: Scene, fill: Tensor, incremental: bool = True) -> None:
        self.scene, self.fill = scene, fill
        self.network = scene.prepared()
        self.picture = scene.x.ndim == 4
        self.clean = channels_last(scene.x) if self.picture else scene.x
        self.incremental = incremental and self.picture
        self.reason = f"there are fewer than {_FEW} positions" if self.incremental else ""
        self.positions, self.difference = 0, 0.0
        self._session, self._plain, self._each = Session(OPERATORS, self.clean.device), 0.0, 0.0
        self._session.waits = (
            not torch.is_inference_mode_enabled()
        )  # there nobody can tell whether a map was written into
        self._in_full, self._in_boxes = 0, 0
        self._full = 0.0  # multiply-adds of a full pass, once they are known
        with torch.no_grad():
            self.value = float(scene.scores(self.network, self.clean.clone())[0])

    @property
    def _ready(self) -> bool:
        return self.incremental and self._each > 0

    @property
    def share(self) -> float:
        """Multiply-adds done, of those that full passes for every position take."""
        done = self._full * self._in_full + self._session.multiplied + self._plain * self._in_boxes
        asked = self._full * self.positions
        return done / asked if asked else 1.0

    @property
    def fallbacks(self) -> list[str]:
        """Operators that needed whole maps, and where."""
        return self._session.fallbacks if self.incremental else []

    def values(self, covers: Sequence[Cover], progress: Progress) -> Tensor:
        """(positions,) on the CPU: the aim's value for every cover, in their order."""
        found = torch.empty(len(covers), dtype=self.clean.dtype)
        order = sorted(range(len(covers)), key=lambda n: _place(covers[n]))
        if self.incremental and not self._each and len(order) >= _FEW:
            self._try([covers[order[0]], covers[order[len(order) // 2]]])
        self.positions += len(covers)
        done, most = 0, len(order)
        size = self._size(most, len(order))
        while done < len(order):
            chosen = order[done : done + size]
            run = self._boxes if self._ready else self._whole
            try:
                found[chosen] = run([covers[n] for n in chosen]).cpu()
            except Changed:
                self._each -= _ALIVE * self._session.bytes
                self._session.waits = False
                self._each += _ALIVE * self._session.bytes
                size = self._size(most, len(order) - done)
                continue
            except GiveUp as reason:
                self._give_up(str(reason))
                size = self._size(most, len(order) - done)
                continue
            except (MemoryError, RuntimeError, CannotRun) as error:
                if size == 1 or not is_memory_error(error):
                    raise
                size = most = max(1, min(size, len(chosen)) // 2)
                continue
            done += len(chosen)
            progress(len(chosen))
        return found

    def _size(self, most: int, left: int) -> int:
        """Positions a batch, of at most so many, where so many are left."""
        if not self._ready:
            return min(most, chunk_size(self.scene.model))
        size, free = min(most, _MOST), _SHARE * free_bytes(self.clean.device)
        if min(size, left) * self._each > min(2 * _CAP, free):  # a batch somewhat larger is faster than two
            size = min(size, int(max(2, min(_CAP, free) / self._each)))
        return -(-left // -(-left // size))  # batches of one size

    def _try(self, covers: list[Cover]) -> None:
        """Two positions, incrementally and in full: what they take, and whether they agree."""
        try:
            with self._named(), Ledger(len(covers)) as ledger:
                quick = self._boxes(covers)
        except GiveUp as reason:
            return self._give_up(str(reason))
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError) as error:
            first = str(error).strip().splitlines() or [""]
            return self._give_up(f"{type(error).__name__}: {first[0]}")
        self.reason, self._each = "", _ALIVE * self._session.bytes + 2.0 * ledger.bytes / len(covers) + 1.0
        self._plain = ledger.multiplied / len(covers)
        self._full = self._plain + self._session.asked / len(covers)
        slow = self._whole(covers)
        scale = max(float(slow.abs().max()), abs(self.value))
        self.difference = float((quick - slow).abs().max())
        if not self.difference <= _TOLERANCE * scale + _ROUNDING:
            self._give_up(f"it differs from a full pass by {self.difference:.1e}")
        return None

    def _give_up(self, reason: str) -> None:
        self.incremental, self.reason = False, reason

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Tells the session which module runs."""
        stack = self._session.where
        names = {module: name for name, module in self.network.named_modules()}

        def before(module: nn.Module, _: Any) -> None:
            stack.append(names[module])

        def after(module: nn.Module, _: Any, __: Any) -> None:
            stack.pop()

        with listening(self.network, after, before):
            yield
        stack.clear()

    def _whole(self, covers: Sequence[Cover]) -> Tensor:
        batch = self.clean.repeat((len(covers),) + (1,) * (self.clean.ndim - 1))
        if self.clean.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        for one, cover in zip(batch, covers, strict=True):
            where = _where(cover, one.ndim)
            one[where] = self.fill[0][where]
        with torch.no_grad():
            made = self.scene.scores(self.network, batch)
        self._in_full += len(covers)
        return made

    def _boxes(self, covers: Sequence[Cover]) -> Tensor:
        twice = list(covers) * 2 if len(covers) == 1 else list(covers)  # a batch of one looks like a constant
        session = self._session
        session.begin()
        given = Windowed(session, self._state(twice))
        with torch.no_grad():
            made = self.scene.scores(self.network, given)
        if isinstance(made, Windowed):
            made = session.whole(made)
        self._in_boxes += len(twice)
        return made[: len(covers)]

    def _state(self, covers: Sequence[Cover]) -> State:
        """The clean input with a window covered for every sample."""
        height, width = self.clean.shape[2:]
        y = Axis.at([cover.row for cover in covers], [cover.height for cover in covers], height)
        x = Axis.at([cover.column for cover in covers], [cover.width for cover in covers], width)
        blocks: list[Block] = []
        for who in alike(y, x, height * width):
            values = cut_boxes(self.fill[0].permute(1, 2, 0), who, y, x)
            channels = torch.tensor([-1 if covers[n].channel is None else int(covers[n].channel or 0) for n in who])
            if (channels >= 0).any():
                kept = (channels[:, None] >= 0) & (channels[:, None] != torch.arange(values.shape[-1]))
                clean = cut_boxes(self.clean[0].permute(1, 2, 0), who, y, x)
                values = torch.where(kept[:, None, None].to(values.device), clean, values)
            blocks.append(Block(who, values.permute(0, 3, 1, 2)))
        return State(self.clean, y, x, blocks)


def _place(cover: Cover) -> tuple[int, ...]:
    """Windows that lie near each other follow each other."""
    return (cover.height, cover.width, -1 if cover.channel is None else cover.channel, cover.row, cover.column)


def _where(cover: Cover, ndim: int) -> tuple[slice, ...]:
    """The covered cells of one input: a window spans the last two axes, the last where there are only channels besides."""
    rows, columns = slice(cover.row, cover.row + cover.height), slice(cover.column, cover.column + cover.width)
    channels = slice(None) if cover.channel is None else slice(cover.channel, cover.channel + 1)
    if ndim < 3:
        return (channels, columns)[2 - ndim :]
    return (channels, *(slice(None),) * (ndim - 3), rows, columns)

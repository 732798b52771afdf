"""What layers put out at every token of texts, many texts side by side, each read from its beginning to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import BadInput, CannotRun
from penlight.models.layers import Layer, run, text_layout, units_first
from penlight.models.model import Model
from penlight.models.probe import Probe, first_tensor, frozen_copy, undisturbed
from penlight.models.recurrent import Carry, carrying, is_recurrent

OUTPUT = "(output)"
"""Path that stands for what the network puts out."""
LANES, BLOCK = 64, 128  # texts side by side, and tokens of each at once
WHOLE = 20_000  # tokens of a text that is read at once, where a network cannot go on from block to block
_ROWS = "(NL)C"  # all tokens of all texts in one axis
_SAME = 1e-4  # of the largest value: how far blocks may be from the whole

Read = Callable[[int], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Stretch:
    """A part of one text: `values` (t, units) of every path, for its tokens `start` to `start` + t; `last` where the text ends with it."""

    text: int
    start: int
    ids: NDArray[np.int64]
    values: Mapping[str, Tensor]
    last: bool


def tracks(model: Model, texts: Sequence[NDArray[np.int64]] | int, paths: Sequence[str], *, read: Read | None = None,
           lanes: int = LANES, block: int = BLOCK) -> Iterator[Stretch]:  # fmt: skip
    """Every stretch of every text; the stretches of one text come in order, texts run side by side.

    `texts` are token numbers (T,), or how many there are, which `read` then fetches one by one (a `BadInput` of it passes the text over).
    `paths` are layers with a value a token, or `OUTPUT`. Recurrent networks that only look back go on from block to block; others read
    each text at once, of at most 20,000 tokens. Raises `CannotRun` where a layer has no value a token.
    """
    count = texts if isinstance(texts, int) else len(texts)
    fetch = read or (lambda n: texts[n])  # type: ignore[index]
    reader = Reader(model, paths)
    yield from reader.streamed(count, fetch, min(lanes, count), block) if reader.goes_on else reader.whole(count, fetch)


def token_layers(model: Model, named: Sequence[str] = ()) -> dict[str, Layer]:
    """Layers with a value a token: those named, else the states of recurrent ones, else all that hold values of their own.

    Raises `UnknownName` or `CannotRun` for one that has none, and `CannotRun` where there are none.
    """
    along = {path: layer for path, layer in model.layers.items() if "L" in layer.layout and layer.axis > 0}
    for path in named:
        if path not in along:
            model.layer(path)
            raise CannotRun(f"layer {path!r} has no value a token; those that have: {', '.join(along) or 'none'}")
    if named:
        return {path: along[path] for path in named}
    own = {path: layer for path, layer in along.items() if layer.alias_of is None}
    if not own:
        raise CannotRun(f"no layer of {model.reference} has a value a token; a text goes through it as a whole")
    states = {
        path: layer for path, layer in own.items()
        if layer.kind == "Track" and path.rpartition(".")[2].startswith(("hidden_l", "cell_l"))
    }  # fmt: skip
    return states or own


class Reader:
    """A frozen copy of a model's network that reads the values of `paths` at every token."""

    def __init__(self, model: Model, paths: Sequence[str]) -> None:
        if model.text is None:
            raise CannotRun(f"{model.reference} takes no text")
        self.model, self.contract, self.paths = model, model.text, tuple(paths)
        self.network: nn.Module = frozen_copy(model.network, shared=model.network.parameters())
        self._output = self._output_layout() if OUTPUT in self.paths else ""
        self.goes_on = is_recurrent(self.network) and self._goes_on()

    def __call__(self, ids: NDArray[np.int64]) -> dict[str, Tensor]:
        """(N, T) → path → (N, T, units), on the network's device."""
        found: dict[str, Tensor] = {}
        sizes = (len(ids), ids.shape[1])
        x = self.model.tensor(ids)
        layers = [path for path in self.paths if path != OUTPUT]

        def reader(path: str) -> Callable[[Tensor], Tensor | None]:
            def take(output: Tensor) -> None:
                found[path] = self.placed(path, output, sizes)

            return take

        with undisturbed(self.network), torch.inference_mode():
            if layers:
                with Probe(
                    self.network, {path: reader(path) for path in layers}, cut=OUTPUT not in self.paths
                ) as probe:
                    output = run(probe, x)  # type: ignore[arg-type]
            else:
                output = run(self.network, x)
        if OUTPUT in self.paths:
            tensor = first_tensor(output)
            if tensor is None:
                raise CannotRun(f"{self.model.reference} puts out no tensor")
            found[OUTPUT] = self.placed(OUTPUT, tensor, sizes)
        return found

    def placed(self, path: str, output: Tensor, sizes: tuple[int, int]) -> Tensor:
        """What a layer, or the network, put out for (texts, tokens), as (texts, tokens, units)."""
        batch, steps = sizes
        layout = self._output if path == OUTPUT else self.model.layer(path).layout
        if layout == _ROWS and output.ndim == 2 and len(output) == batch * steps:
            if self.contract.batch_first:
                return output.view(batch, steps, -1)
            return output.view(steps, batch, -1).transpose(0, 1)
        if "L" not in layout or len(layout) != output.ndim or output.shape[layout.index("L")] != steps:
            told = f"choose one whose layout has an L: penlight layers {self.model.reference}"
            raise CannotRun(f"layer {path!r} has no value a token; {told}")
        return units_first(output, layout).transpose(1, 2)

    def _output_layout(self) -> str:
        """How the network's output lies, told by numbers of texts, tokens and classes that all differ; "" if it has no value a token."""
        size = len(self.contract.vocabulary)
        batch, steps = next((n, t) for n in (3, 2) for t in (11, 13) if size not in (n, t, n * t))
        ids = np.zeros((batch, steps), np.int64)
        with undisturbed(self.network), torch.inference_mode():
            tensor = first_tensor(run(self.network, self.model.tensor(ids)))
        if tensor is None:
            raise CannotRun(f"{self.model.reference} puts out no tensor")
        if tensor.ndim == 2 and len(tensor) == batch * steps:
            return _ROWS
        return text_layout(tensor, (batch, steps)) or ""

    def _goes_on(self) -> bool:
        """Whether two halves of a text, one after the other, give what the whole gives."""
        ids = np.random.default_rng(0).integers(len(self.contract.vocabulary), size=(2, 12))
        try:
            whole = self(ids)
            with carrying(self.network, 2) as carries:
                first = self(ids[:, :5])
                for carry in carries:
                    carry.anew[:] = False
                second = self(ids[:, 5:])
        except CannotRun:
            return False
        return all(
            bool((torch.cat([first[p], second[p]], 1) - whole[p]).abs().max() <= _SAME * (whole[p].abs().max() + 1e-6))
            for p in whole
        )

    def streamed(self, count: int, read: Read, lanes: int, block: int) -> Iterator[Stretch]:
        """Block by block; a lane whose text has ended takes the next one."""
        waiting = _Waiting(count, read)
        going: list[_Going | None] = [waiting.next() for _ in range(lanes)]
        with carrying(self.network, lanes) as carries:
            while any(one is not None for one in going):
                if 2 * sum(one is not None for one in going) <= len(going):
                    going = _closed_up(going, carries)
                    lanes = len(going)
                length = min(block, max(one.left for one in going if one is not None))
                ids = np.zeros((lanes, length), np.int64)
                for n, one in enumerate(going):
                    if one is not None:
                        ids[n, : min(length, one.left)] = one.ids[one.at : one.at + length]
                anew = torch.tensor([one is None or one.at == 0 for one in going])
                for carry in carries:
                    carry.anew.copy_(anew)
                found = self(ids)
                for n, one in enumerate(going):
                    if one is None:
                        continue
                    size = min(length, one.left)
                    part = {path: values[n, :size] for path, values in found.items()}
                    yield Stretch(one.text, one.at, one.ids[one.at : one.at + size], part, size == one.left)
                    one.at += size
                    if not one.left:
                        going[n] = waiting.next()

    def whole(self, count: int, read: Read) -> Iterator[Stretch]:
        """Text by text."""
        waiting = _Waiting(count, read)
        while (one := waiting.next()) is not None:
            if len(one.ids) > WHOLE:
                raise BadInput(
                    f"text {one.text} has {len(one.ids)} tokens; this network reads a text at once, and {WHOLE} are the most"
                )
            found = self(one.ids[None])
            yield Stretch(one.text, 0, one.ids, {path: values[0] for path, values in found.items()}, True)


def _closed_up(going: list[_Going | None], carries: Sequence[Carry]) -> list[_Going | None]:
    """Without the lanes that have nothing left to read."""
    kept = [n for n, one in enumerate(going) if one is not None]
    for carry in carries:
        carry.anew = carry.anew[kept]
        carry.last = [tuple(part[kept] for part in parts) for parts in carry.last]
    return [going[n] for n in kept]


@dataclass
class _Going:
    """A text that is being read."""

    text: int
    ids: NDArray[np.int64]
    at: int = 0

    @property
    def left(self) -> int:
        return len(self.ids) - self.at


class _Waiting:
    """Texts that are yet to be read, fetched when their turn comes; what cannot be read is passed over."""

    def __init__(self, count: int, read: Read) -> None:
        self._count, self._read, self._at = count, read, 0

    def next(self) -> _Going | None:
        while self._at < self._count:
            number = self._at
            self._at += 1
            try:
                ids: NDArray[Any] = self._read(number)
            except BadInput:
                continue
            if len(ids):
                return _Going(number, ids)
        return None

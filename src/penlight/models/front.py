"""A network on text seen from behind its front: what it looks up for the tokens becomes its input, as numbers that can be varied.

Tokens are whole numbers, of which there is no gradient and no half. What a network makes of them first, an embedding or a one-hot row
each, is a signal of E channels and T steps; `front_view` is the same network as a function of that signal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from penlight.errors import CannotRun
from penlight.inputs import InputContract, TextContract
from penlight.models.layers import Anatomy, anatomy, run
from penlight.models.model import Model
from penlight.models.probe import frozen_copy

_KEPT = "_penlight_front"  # attribute of a twin; no network has one of that name
_LOOKUPS = (F.embedding, torch.embedding, F.one_hot, Tensor.__getitem__)


@dataclass(frozen=True)
class FrontContract(InputContract):
    """The signal (E, T) that stands for the tokens `ids` of `text`; `stand_ins` are the E numbers of single tokens, by their numbers."""

    text: TextContract | None = None
    ids: tuple[int, ...] = ()
    stand_ins: tuple[tuple[int, tuple[float, ...]], ...] = ()

    @property
    def tokens(self) -> tuple[str, ...]:
        """The T tokens."""
        assert self.text is not None
        return tuple(self.text.vocabulary[n] for n in self.ids)

    def told(self, start: int, stop: int) -> str:
        """The text of some of the tokens."""
        assert self.text is not None
        return self.text.decode(self.ids[start:stop])

    def stand_in(self, token: int) -> NDArray[np.float32]:
        """(E,): what the network looks up for a token."""
        return np.array(dict(self.stand_ins)[token], np.float32)


@dataclass(frozen=True)
class _Lookup:
    """A look-up of all tokens: its number among the network's look-ups, and its channels; `turned` if time comes first."""

    number: int
    channels: int
    turned: bool


@dataclass(frozen=True, eq=False)
class _Front:
    """What a twin needs to run on signals; `lookups` is empty where the network takes one-hot rows itself."""

    contract: TextContract
    ids: NDArray[np.int64]
    lookups: tuple[_Lookup, ...]
    forward: Callable[..., Any]


class FrontView(Model):
    """A model as a function of what its front makes of the tokens."""

    @cached_property
    def _anatomy(self) -> Anatomy:
        steps = self.contract.shape[1]
        count = _texts(steps)
        return anatomy(self.network, self.example(count), (count, steps))


def front_view(model: Model, ids: NDArray[Any]) -> tuple[Model, NDArray[np.float32]]:
    """(view, signal): a frozen copy of the model as a function of a signal (E, T), and the signal of the tokens `ids` (T,).

    The view's contract is a `FrontContract`; its layers have the paths and labels of the model's. Look-ups by `nn.Embedding`,
    `F.embedding`, `F.one_hot` and by indexing a tensor are found, and one-hot input. Raises `CannotRun` where the tokens go in otherwise.
    """
    text = model.contract
    assert isinstance(text, TextContract)
    text.check(ids[None])
    twin, ids = frozen_copy(model.network), np.ascontiguousarray(ids, np.int64)
    wanted = sorted({n for n in (text.unknown, text.numbers.get(" ")) if n is not None})
    if text.encoding == "one-hot":
        lookups, rows = (), np.eye(len(text.vocabulary), dtype=np.float32)  # type: tuple[_Lookup, ...], Any
        signal, others = rows[ids], rows[wanted]
    else:
        lookups = _lookups(model, twin, ids)
        signal = _looked_up(model, twin, ids, lookups)
        others = np.stack([_looked_up(model, twin, np.full_like(ids, n), lookups)[0] for n in (*wanted, 0)])[:-1]
    contract = FrontContract(
        "array",
        (signal.shape[1], len(ids)),
        text=text,
        ids=tuple(ids.tolist()),
        stand_ins=tuple((n, tuple(row.tolist())) for n, row in zip(wanted, others, strict=True)),
    )
    own = vars(twin).get("forward")  # a copy that was written out runs by one of its own
    twin.__dict__[_KEPT] = _Front(text, ids, lookups, getattr(own, "__func__", None) or type(twin).forward)
    twin.__dict__["forward"] = MethodType(_run_on_signal, twin)
    view = FrontView(twin, contract, model.labels, model.reference, model.figures, model.data, model.generator)
    vars(view)["hash"] = model.hash
    return view, np.ascontiguousarray(signal.T)


def _run_on_signal(network: nn.Module, signal: Tensor) -> Any:
    """The network's own pass for signals (N, E, T)."""
    front: _Front = network.__dict__[_KEPT]
    if not front.lookups:
        steps = signal.movedim(1, 2)
        return front.forward(network, steps if front.contract.batch_first else steps.transpose(0, 1))
    ids = torch.from_numpy(front.contract.normalize(np.repeat(front.ids[None], len(signal), 0)))
    with _Fed(front.lookups, signal):
        return front.forward(network, ids.to(signal.device))


class _Lookups(TorchFunctionMode):
    """Counts the look-ups of a pass: whatever takes whole numbers and gives a row for each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _LOOKUPS:
            asked = _indices(func, args, kwargs)
            if asked is not None:
                self.count += 1
                return self.looked_up(asked, lambda: func(*args, **kwargs))
        return func(*args, **kwargs)

    def looked_up(self, asked: Tensor, look: Callable[[], Tensor]) -> Any:
        """What the look-up number `count` gives."""
        raise NotImplementedError


def _indices(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """The whole numbers (two axes) that are looked up."""
    if func is Tensor.__getitem__:
        asked = args[1] if len(args) > 1 else None
    elif func is torch.embedding:
        asked = args[1] if len(args) > 1 else kwargs.get("indices")
    else:
        asked = args[0] if args else kwargs.get("input", kwargs.get("tensor"))
    whole = isinstance(asked, Tensor) and asked.ndim == 2 and asked.dtype in (torch.int64, torch.int32)
    return asked if whole else None


class _Noted(_Lookups):
    """Notes every look-up: what was asked for, and what came."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def looked_up(self, asked: Tensor, look: Callable[[], Tensor]) -> Any:
        found = look()
        self.seen.append((asked, found))
        return found


class _Fed(_Lookups):
    """Puts the channels of a signal (N, E, T) in the place of what is looked up for the tokens."""

    def __init__(self, lookups: Sequence[_Lookup], signal: Tensor) -> None:
        super().__init__()
        ends = np.cumsum([one.channels for one in lookups]).tolist()
        self._parts = {
            one.number: (one, signal[:, end - one.channels : end]) for one, end in zip(lookups, ends, strict=True)
        }

    def looked_up(self, asked: Tensor, look: Callable[[], Tensor]) -> Any:
        if self.count not in self._parts:
            return look()
        one, part = self._parts[self.count]
        return part.permute(2, 0, 1) if one.turned else part.transpose(1, 2)


def _lookups(model: Model, twin: nn.Module, ids: NDArray[np.int64]) -> tuple[_Lookup, ...]:
    """The look-ups of the tokens themselves: those that follow when the tokens are others. Positions and the like are looked up too."""
    words = len(_vocabulary(model))
    other = (ids + 1 + np.arange(len(ids)) % (words - 1)) % words
    found = [_matching(_noted(model, twin, tokens), tokens) for tokens in (ids, other)]
    both = [one for one in found[0] if one in found[1]]
    if not both:
        raise CannotRun(
            f"no embedding or one-hot front was found in {model.reference}: explanations of text need the tokens to be looked up by"
            " nn.Embedding, F.embedding, F.one_hot or an index, each by itself"
        )
    return tuple(both)


def _vocabulary(model: Model) -> tuple[str, ...]:
    assert isinstance(model.contract, TextContract)
    return model.contract.vocabulary


def _texts(steps: int) -> int:
    """Texts in a batch: another number than their steps, by which the axes are told apart."""
    return 3 if steps == 2 else 2


def _noted(model: Model, twin: nn.Module, ids: NDArray[np.int64]) -> _Noted:
    noted = _Noted()
    with torch.no_grad(), noted:
        run(twin, model.tensor(np.repeat(ids[None], _texts(len(ids)), 0)))
    return noted


def _matching(noted: _Noted, ids: NDArray[np.int64]) -> list[_Lookup]:
    """The look-ups that ask for exactly the tokens, batch first or turned, and give a row for each."""
    plain = torch.from_numpy(np.repeat(ids[None], _texts(len(ids)), 0))
    found = []
    for number, (asked, rows) in enumerate(noted.seen, 1):
        if rows.shape[:-1] != asked.shape:
            continue
        for turned, tokens in ((False, plain), (True, plain.T)):
            if asked.shape == tokens.shape and torch.equal(asked.cpu().long(), tokens):
                found.append(_Lookup(number, int(rows.shape[-1]), turned))
    return found


def _looked_up(
    model: Model, twin: nn.Module, ids: NDArray[np.int64], lookups: Sequence[_Lookup]
) -> NDArray[np.float32]:
    """(T, E): what is looked up for the tokens, the channels of several look-ups beside each other."""
    seen = _noted(model, twin, ids).seen
    parts = [seen[one.number - 1][1][:, 0] if one.turned else seen[one.number - 1][1][0] for one in lookups]
    return torch.cat([part.float() for part in parts], 1).cpu().numpy()

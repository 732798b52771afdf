"""Recurrent modules written out step by step: every step's states and gates are outputs of submodules, and so can be read as any layer.

PyTorch's LSTM, GRU and RNN put out the last layer's hidden states and nothing else. In a copy made by `written_out` the same modules, with
the same weights, carry submodules named after PyTorch's own parameters (`lstm.cell_l0`, `lstm.forget_gate_l1`, `gru.hidden_l0_reverse`),
through which the states of all steps pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import Parameter, signature
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from penlight.errors import CannotRun

GATES = {
    "LSTM": ("input_gate", "forget_gate", "candidate", "output_gate"),
    "GRU": ("reset_gate", "update_gate", "candidate"),
    "RNN_TANH": (),
    "RNN_RELU": (),
}
"""Gates of each kind, in the order of PyTorch's weights."""
_PLACED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_CACHED = 1 << 19  # numbers of gates that are worked on at once


class Track(nn.Module):
    """What one state or gate was at every step, in the layout of the module it belongs to; hands on what it is given."""

    def forward(self, values: Tensor) -> Tensor:
        return values


@dataclass
class Carry:
    """States of a module between two blocks of the same texts; `anew` (lanes,) marks those that begin."""

    anew: Tensor
    last: list[tuple[Tensor, ...]] = field(default_factory=list)  # a layer each, (lanes, H)


def is_recurrent(network: nn.Module) -> bool:
    """Whether it holds an LSTM, GRU or RNN."""
    return any(isinstance(module, nn.RNNBase) for module in network.modules())


def written_out(network: nn.Module, batch_first: bool = True) -> nn.Module:
    """A copy that shares its parameters and buffers, in which every LSTM, GRU and RNN has its tracks; `CannotRun` if it cannot be copied.

    A network without any is returned as it is. A state that its forward asks for is what its `init_hidden` makes for the number of texts,
    else None; `batch_first` says which axis of its input they are.
    """
    if not is_recurrent(network):
        return network
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        twin = copy.deepcopy(network, shared)
    except Exception as error:  # a module may hold anything: report what it holds
        raise CannotRun(f"the network cannot be copied ({type(error).__name__}: {error})") from error
    for module in twin.modules():
        if isinstance(module, nn.RNNBase) and not hasattr(module, "hidden_l0"):
            for name in track_names(module):
                module.add_module(name, Track())
            module.__dict__["carry"], module.__dict__["heard"] = None, {}
            module.__dict__["forward"] = MethodType(_forward, module)
    _begin_by_itself(twin, batch_first)
    return twin


def _begin_by_itself(network: nn.Module, batch_first: bool) -> None:
    """Let a network whose forward asks for a first state be called without one."""
    kind: Any = type(network)
    asked = [
        p for p in list(signature(kind.forward).parameters.values())[2:] if p.default is p.empty and p.kind in _PLACED
    ]
    if not asked:
        return

    def forward(self: nn.Module, given: Tensor, *rest: Any) -> Any:
        if not rest:
            rest = (_first_hidden(self, given.shape[0 if batch_first else 1]), *[None] * (len(asked) - 1))
        return kind.forward(self, given, *rest)

    # a class of its own rather than an attribute: what runs the class's forward finds this one
    network.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def _first_hidden(network: nn.Module, count: int) -> Any:
    make = getattr(network, "init_hidden", None) or getattr(network, "initHidden", None)
    if make is None:
        return None
    asks = [p for p in signature(make).parameters.values() if p.default is p.empty and p.kind in _PLACED]
    return make(count) if asks else make()


def track_names(module: nn.RNNBase) -> list[str]:
    """Names of a module's tracks, layer by layer: hidden state, cell, gates."""
    kinds = ("hidden", *(("cell",) if module.mode == "LSTM" else ()), *GATES[module.mode])
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [f"{kind}_l{n}{way}" for n in range(module.num_layers) for way in ways for kind in kinds]


@contextmanager
def carrying(network: nn.Module, lanes: int) -> Iterator[list[Carry]]:
    """Inside the block every pass goes on where the one before ended, lane by lane; set `anew` of what is given to begin texts."""
    modules = [m for m in network.modules() if isinstance(m, nn.RNNBase) and "carry" in m.__dict__]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    carries = [Carry(torch.ones(lanes, dtype=torch.bool, device=device)) for _ in modules]
    try:
        for module, carry in zip(modules, carries, strict=True):
            module.__dict__["carry"] = carry
        yield carries
    finally:
        for module in modules:
            module.__dict__["carry"] = None


@contextmanager
def unheard(module: nn.RNNBase, name: str, heard: Tensor) -> Iterator[None]:
    """Inside the block one layer's states (`l0`, `l1_reverse`) are multiplied by `heard` (lanes, H) at every step: 0 silences a unit."""
    module.__dict__["heard"][name] = heard
    try:
        yield
    finally:
        del module.__dict__["heard"][name]


def _forward(module: nn.RNNBase, given: Any, hx: Any = None) -> Any:
    """As the module's own forward: (output, state)."""
    if isinstance(given, PackedSequence):
        return _packed(module, given, hx)
    single = given.ndim == 2
    x = given.unsqueeze(int(not module.batch_first)) if single else given
    steps = x.transpose(0, 1) if module.batch_first else x
    states = _begun(module, _first_states(module, hx, single), steps)
    finals: list[tuple[Tensor, ...]] = []
    for n in range(module.num_layers):
        ways = [_way(module, n, reverse, steps, states[len(finals) + int(reverse)]) for reverse in _ways(module)]
        finals += [final for _, final in ways]
        steps = torch.cat([hidden for hidden, _ in ways], 2) if len(ways) > 1 else ways[0][0]
        if module.dropout and module.training and n < module.num_layers - 1:
            steps = F.dropout(steps, module.dropout, True)
    output = steps.transpose(0, 1) if module.batch_first else steps
    last = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    if single:
        output, last = output.squeeze(int(not module.batch_first)), tuple(part.squeeze(1) for part in last)
    return output, (last if module.mode == "LSTM" else last[0])


def _packed(module: nn.RNNBase, given: PackedSequence, hx: Any) -> Any:
    padded, lengths = pad_packed_sequence(given, batch_first=module.batch_first)
    if int(lengths.min()) != int(lengths.max()):
        return type(module).forward(module, given, hx)
    output, state = _forward(module, padded, hx)
    return pack_padded_sequence(output, lengths, batch_first=module.batch_first, enforce_sorted=False), state


def _ways(module: nn.RNNBase) -> Sequence[bool]:
    return (False, True) if module.bidirectional else (False,)


def _first_states(module: nn.RNNBase, hx: Any, single: bool) -> list[tuple[Tensor, ...]] | None:
    """States that were given, a tuple a layer and way; None if none were."""
    if hx is None:
        return None
    parts = hx if isinstance(hx, tuple | list) else (hx,)
    parts = [part.unsqueeze(1) if single and part.ndim == 2 else part for part in parts]
    return [tuple(part[n] for part in parts) for n in range(len(parts[0]))]


def _begun(module: nn.RNNBase, given: list[tuple[Tensor, ...]] | None, steps: Tensor) -> list[tuple[Tensor, ...]]:
    """The states that each layer begins with, (N, H) each."""
    count, lanes = module.num_layers * len(_ways(module)), steps.shape[1]
    if given is None:
        sizes = (module.proj_size or module.hidden_size, module.hidden_size)[: 2 if module.mode == "LSTM" else 1]
        given = [tuple(steps.new_zeros(lanes, size) for size in sizes) for _ in range(count)]
    carry: Carry | None = module.__dict__["carry"]
    if carry is None:
        return given
    previous, carry.last = carry.last, []
    anew = carry.anew[:, None]
    # a pass may have been cut before the upper layers, which then are not wanted
    for n, last in enumerate(previous):
        given[n] = tuple(torch.where(anew, new, old) for new, old in zip(given[n], last, strict=True))
    return given


def _way(
    module: nn.RNNBase, layer: int, reverse: bool, steps: Tensor, state: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer in one direction: hidden states (T, N, H) as its track hands them on, and the last states."""
    name = f"l{layer}" + ("_reverse" if reverse else "")
    weights = _Weights.of(module, name)
    forward = steps.flip(0) if reverse else steps
    run = {"LSTM": _lstm, "GRU": _gru}.get(module.mode, _plain)
    keep = any(getattr(module, f"{kind}_{name}")._forward_hooks for kind in GATES[module.mode])
    tracks, last = run(weights, forward, state, module.mode, keep)
    if module.__dict__["carry"] is not None:  # before the tracks are read: the pass may end there
        module.__dict__["carry"].last.append(tuple(part.detach() for part in last))
    for kind, track in tracks.items():
        track = track.flip(0) if reverse else track
        tap = getattr(module, f"{kind}_{name}")
        read = tap(track.transpose(0, 1) if module.batch_first else track)
        tracks[kind] = read.transpose(0, 1) if module.batch_first else read
    return tracks["hidden"], last


@dataclass(frozen=True)
class _Weights:
    """Weights of one layer in one direction, by PyTorch's names."""

    into: Tensor  # (gates·H, inputs)
    again: Tensor  # (gates·H, hidden)
    bias_into: Tensor | None
    bias_again: Tensor | None
    project: Tensor | None
    heard: Tensor | None = None  # (lanes, H): what every step's states are multiplied by

    @classmethod
    def of(cls, module: nn.RNNBase, name: str) -> _Weights:
        def find(kind: str) -> Tensor | None:
            return getattr(module, f"{kind}_{name}", None)

        into, again = find("weight_ih"), find("weight_hh")
        assert into is not None
        assert again is not None
        return cls(into, again, find("bias_ih"), find("bias_hh"), find("weight_hr"), module.__dict__["heard"].get(name))

    def for_sigmoids(self, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """(inputs, gates·H), (hidden, gates·H), the sum of the biases, and (H, hidden) of the projection, for `_lstm_in_place`.

        The gates from `start` to `stop` count twice; what multiplies a halved state does too.
        """
        scale = self.into.new_ones(len(self.into))
        scale[start:stop] = 2
        bias = None if self.bias_into is None or self.bias_again is None else (self.bias_into + self.bias_again) * scale
        again = self.again * scale[:, None] * (2 if self.project is None else 1)
        project = None if self.project is None else (self.project * 2).t().contiguous()
        return (self.into * scale[:, None]).t(), again.t().contiguous(), bias, project

    def gates(self, steps: Tensor, both: bool) -> Tensor:
        """(T, N, gates·H): the inputs' part of all steps at once; with `both`, the biases of both parts are in it."""
        bias = self.bias_into
        if both and bias is not None and self.bias_again is not None:
            bias = bias + self.bias_again
        return F.linear(steps, self.into, bias)


Ran = tuple[dict[str, Tensor], tuple[Tensor, ...]]


def _lstm(weights: _Weights, steps: Tensor, state: tuple[Tensor, ...], mode: str, keep: bool) -> Ran:
    hidden, cell = state
    if torch.is_grad_enabled() and any(t.requires_grad for t in (steps, hidden, cell, weights.into, weights.again)):
        return _lstm_differentiable(weights, weights.gates(steps, True), hidden, cell)
    return _lstm_in_place(weights, steps, hidden, cell, keep)


def _lstm_in_place(weights: _Weights, steps: Tensor, hidden: Tensor, cell: Tensor, keep: bool) -> Ran:
    """A few steps' gates at once, in memory that stays in the cache unless they are to be kept; states go straight to their place.

    tanh x is taken as 2·sigmoid(2x) − 1, within 1e-7 of it: the sigmoid is several times faster, and one call does all four gates. Inside
    the loop a cell stands for twice its value and a hidden state for half of it, which saves operations; both are set right while they
    are in the cache.
    """
    size, lanes = cell.shape[1], len(cell)
    into, across, bias, project = weights.for_sigmoids(2 * size, 3 * size)
    span = max(1, min(len(steps), _CACHED // (lanes * 4 * size)))
    gates = steps.new_empty(len(steps) if keep else span, lanes, 4 * size)
    cells, hiddens = steps.new_empty(len(steps), *cell.shape), steps.new_empty(len(steps), *hidden.shape)
    inner = hiddens if project is None else torch.empty_like(cells)
    twice, half = cell * 2, hidden if project is not None else hidden / 2
    for start in range(0, len(steps), span):
        here = steps[start : start + span]
        rows = gates[start : start + span] if keep else gates[: len(here)]
        flat, given = rows.view(-1, 4 * size), here.reshape(-1, here.shape[2])
        torch.mm(given, into, out=flat) if bias is None else torch.addmm(bias, given, into, out=flat)
        parts = zip(rows.unbind(0), *(part.unbind(0) for part in rows.chunk(4, 2)), strict=True)
        for n, (row, i, f, g, o) in enumerate(parts, start):
            row.addmm_(half, across).sigmoid_()
            twice = torch.mul(f, twice, out=cells[n]).addcmul_(i, g, value=4).sub_(i, alpha=2)
            if weights.heard is not None:
                twice.mul_(weights.heard)
            half = torch.sigmoid(twice, out=inner[n]).sub_(0.5).mul_(o)
            if project is not None:
                half = torch.mm(half, project, out=hiddens[n])
        twice, half = twice.clone(), half.clone()
        cells[start : start + span].mul_(0.5)
        if project is None:
            hiddens[start : start + span].mul_(2)
    named: dict[str, Tensor] = {}
    if keep:
        named = dict(zip(GATES["LSTM"], gates.chunk(4, 2), strict=True))
        named["candidate"].mul_(2).sub_(1)
    return {"hidden": hiddens, "cell": cells, **named}, (hiddens[-1], cells[-1])


def _lstm_differentiable(weights: _Weights, gates: Tensor, hidden: Tensor, cell: Tensor) -> Ran:
    kept: dict[str, list[Tensor]] = {name: [] for name in ("hidden", "cell", *GATES["LSTM"])}
    for here in gates.unbind(0):
        i, f, g, o = torch.addmm(here, hidden, weights.again.t()).chunk(4, 1)
        i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
        cell = f * cell + i * g
        if weights.heard is not None:
            cell = cell * weights.heard
        hidden = o * cell.tanh()
        if weights.project is not None:
            hidden = hidden @ weights.project.t()
        for name, value in zip(kept, (hidden, cell, i, f, g, o), strict=True):
            kept[name].append(value)
    return {name: torch.stack(values) for name, values in kept.items()}, (hidden, cell)


def _gru(weights: _Weights, steps: Tensor, state: tuple[Tensor, ...], mode: str, keep: bool) -> Ran:
    (hidden,) = state
    kept: dict[str, list[Tensor]] = {name: [] for name in ("hidden", *GATES["GRU"])}
    for here in weights.gates(steps, False).unbind(0):
        r, z, n = here.chunk(3, 1)
        again_r, again_z, again_n = F.linear(hidden, weights.again, weights.bias_again).chunk(3, 1)
        r, z = (r + again_r).sigmoid(), (z + again_z).sigmoid()
        n = torch.addcmul(n, r, again_n).tanh()
        hidden = torch.lerp(n, hidden, z)
        if weights.heard is not None:
            hidden = hidden * weights.heard
        for name, value in zip(kept, (hidden, r, z, n), strict=True):
            kept[name].append(value)
    return {name: torch.stack(values) for name, values in kept.items()}, (hidden,)


def _plain(weights: _Weights, steps: Tensor, state: tuple[Tensor, ...], mode: str, keep: bool) -> Ran:
    (hidden,) = state
    act = torch.relu if mode == "RNN_RELU" else torch.tanh
    kept: list[Tensor] = []
    for here in weights.gates(steps, True).unbind(0):
        hidden = act(torch.addmm(here, hidden, weights.again.t()))
        if weights.heard is not None:
            hidden = hidden * weights.heard
        kept.append(hidden)
    return {"hidden": torch.stack(kept)}, (hidden,)

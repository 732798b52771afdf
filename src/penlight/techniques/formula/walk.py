"""Following directions from one input through a network, and telling the hinges that are met."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.models import Model
from penlight.techniques.formula.linear import is_linear
from penlight.techniques.formula.regions import Block, Crossing, Region
from penlight.techniques.formula.target import Target, pick, read_layers, values
from penlight.techniques.formula.tracer import Call, Tracer
from penlight.techniques.formula.variables import Variables

_AT_ONCE = 12_000_000  # numbers of one tensor's rows
_FLIPS = {
    "relu": ("off", "on"), "leaky_relu": ("below zero", "above zero"), "_prelu_kernel": ("below zero", "above zero"),
    "abs": ("below zero", "above zero"),
}  # fmt: skip


@dataclass(eq=False)
class Walk:
    """One input `raw` (F,) of a network in double precision, the outputs asked for, and the region gathered so far."""

    model: Model
    network: nn.Module
    front: Variables
    raw: NDArray[np.float64]
    asked: Sequence[Target]
    region: Region = field(default_factory=Region)
    names: dict[Any, str] = field(default_factory=dict)  # a tensor's seat → path of its module

    @property
    def paths(self) -> tuple[str, ...]:
        """The layers that are read."""
        return tuple(dict.fromkeys(part.path for one in self.asked for part in one.parts))

    def values(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, outputs) at raw points (N, F)."""
        return values(self.model, self.network, self.asked, torch.from_numpy(self.front.seen(points)))

    def follow(
        self, directions: NDArray[np.float64], weights: NDArray[np.float64] | None = None,
        standard: NDArray[np.float64] | None = None,
    ) -> tuple[NDArray[np.float64], list[Crossing], list[Crossing]]:  # fmt: skip
        """Slopes (R, outputs) along raw directions (R, F), and the nearest hinge each way; in as many passes as memory asks for.

        `weights` and `standard` (R,) add the squares of all hinges' slopes, so weighted, to what the region has gathered.
        """
        slopes: list[NDArray[np.float64]] = []
        ahead: list[Crossing] = []
        behind: list[Crossing] = []
        most = max([math.prod(layer.shape) for layer in self.model.layers.values()] + [len(self.raw)])
        step = max(1, min(256, _AT_ONCE // most))
        for start in range(0, len(directions), step):
            part = slice(start, start + step)
            given = [None if one is None else torch.from_numpy(one[part]) for one in (weights, standard)]
            slopes.append(self._pass(directions[part], *given))
            ahead += self.region.forwards
            behind += self.region.backwards
        return np.concatenate(slopes), ahead, behind

    def _pass(
        self, directions: NDArray[np.float64], weights: Tensor | None, standard: Tensor | None
    ) -> NDArray[np.float64]:
        self.region.begin(len(directions), weights, standard)
        tracer = Tracer(self.region)
        x = torch.from_numpy(self.front.seen(self.raw[None]))
        rows = torch.from_numpy(directions / self.front.std).reshape(len(directions), *x.shape)
        found = torch.zeros(len(directions), len(self.asked), dtype=torch.float64)

        def keep(path: str, output: Tensor) -> None:
            slopes = tracer.rows(output)
            if slopes is None:
                return
            for n, one in enumerate(self.asked):
                for part in one.parts:
                    if part.path == path:
                        found[:, n] += part.factor * torch.stack([pick(self.model, part, row) for row in slopes])

        with torch.no_grad():
            tracer.plant(x, rows)
            with tracer.following(self.network):
                read_layers(self.network, self.paths, x, keep)
        self.names = self.names or dict(tracer.producers)
        return found.numpy()

    def gradients(
        self, wanted: Sequence[tuple[int, int]] = ()
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64] | None]]:
        """(outputs, F) raw gradients of what was asked, and those of hinges (block, index), backwards; None where there is no way."""
        edges = _Edges(self.region)
        tracer = Tracer(edges)
        x = torch.from_numpy(self.front.seen(self.raw[None])).requires_grad_()
        found: dict[int, Tensor] = {}

        def keep(path: str, output: Tensor) -> None:
            for n, one in enumerate(self.asked):
                for part in one.parts:
                    if part.path == path:
                        own = part.factor * pick(self.model, part, output)
                        found[n] = found[n] + own if n in found else own

        with torch.enable_grad():
            tracer.plant(x, torch.zeros(1, *x.shape, dtype=torch.float64))
            with tracer.following(self.network):
                read_layers(self.network, self.paths, x, keep)
            own = [self._back(found[n], x, None) for n in range(len(self.asked))]
            hinges = [self._hinge_gradient(edges, x, self.region.blocks[b], index) for b, index in wanted]
        return np.stack([np.zeros_like(self.raw) if one is None else one for one in own]), hinges

    def _hinge_gradient(self, edges: _Edges, x: Tensor, block: Block, index: int) -> NDArray[np.float64] | None:
        edge = edges.found.get(block.number)
        if edge is None or block.kind in _PAIRED:  # of two tensors: no one place in the graph
            return None
        chosen = torch.zeros(math.prod(edges.shapes[block.number]), dtype=torch.float64)
        chosen[block.first[index]] += 1.0
        if block.second is not None:
            chosen[block.second[index]] -= 1.0
        return self._back(edge, x, chosen.reshape(edges.shapes[block.number]))

    def _back(self, of: Any, x: Tensor, factor: Tensor | None) -> NDArray[np.float64] | None:
        if isinstance(of, Tensor) and not of.requires_grad:
            return None
        gradients: tuple[Tensor | None, ...] = torch.autograd.grad(of, x, factor, retain_graph=True, allow_unused=True)
        return None if gradients[0] is None else gradients[0].reshape(-1).numpy() / self.front.std

    def unit(self, number: int, index: int) -> str:
        """A hinge as a unit's address with what it does now: 'conv1:5@3,4 (relu, off)'."""
        block = self.region.blocks[number]
        kind = block.kind.strip("_").removesuffix("_with_indices").replace("_kernel", "")
        maximum = block.places is not None
        seat = block.output if maximum else block.seat
        path = self.names.get(seat)
        flat = int(block.places[index]) if block.places is not None else int(block.first[index])
        address = None if path is None or seat is None else self._address(path, seat.shape, flat)
        if address is None:
            shape = (block.output or block.seat).shape if maximum else block.seat.shape
            place = ",".join(str(int(n)) for n in np.unravel_index(flat, shape)[1:])
            address = f"{kind} in {block.where or 'forward'}, element {place}"
        below, above = _FLIPS.get(block.kind, ("below", "above"))
        if maximum:
            first, second = block.first[index], block.second
            assert second is not None
            places = [self._place(block.seat.shape, int(n)) for n in (first, second[index])]
            return f"{address} ({kind}, {places[0]} ahead of {places[1]})"
        return f"{address} ({kind}, {above if block.sign[index] > 0 else below})"

    def _address(self, path: str, shape: tuple[int, ...], flat: int) -> str | None:
        layer = self.model.layers.get(path)
        if layer is None or (1, *layer.shape) != shape:
            return None
        at = [int(n) for n in np.unravel_index(flat, shape)]
        unit = at[layer.axis] if layer.axis > 0 else 0
        where = [n for axis, n in enumerate(at) if axis not in (0, layer.axis)]
        return f"{path}:{unit}" + ("@" + ",".join(map(str, where)) if math.prod(layer.positions) > 1 else "")

    @staticmethod
    def _place(shape: tuple[int, ...], flat: int) -> str:
        at = [int(n) for n in np.unravel_index(flat, shape)][1:]
        return ",".join(map(str, at[1:] or at))


_PAIRED = ("maximum", "minimum", "gt", "lt", "ge", "le")


class _Edges(Region):
    """Runs beside a pass that keeps the graph, and notes where in it each hinge's operation reads."""

    def __init__(self, region: Region) -> None:
        super().__init__()
        self.begin(1, None, None)
        self.found: dict[int, Any] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}

    def rule(self, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor | None:
        if not is_linear(tracer, call):
            given = call.args[0]
            if isinstance(given, Tensor) and given.requires_grad:
                self.found[self._calls + 1] = torch.autograd.graph.get_gradient_edge(given)
                self.shapes[self._calls + 1] = tuple(given.shape)
        return super().rule(tracer, call, output)

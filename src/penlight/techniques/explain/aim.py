"""The one number that is explained, as text: a unit, and how it is read.

class:tabby               a class before softmax
probability(class:tabby)  after it
conv2:7@3,3               a channel at a position
conv2:7                   a channel at the position where this input excites it most
mean(conv2:7)             the mean of a channel's map
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from penlight.errors import BadOption, BadUnit, CannotRun, UnknownName
from penlight.models import Model, Probe
from penlight.models.layers import Layer
from penlight.models.probe import undisturbed
from penlight.units import Unit

_READINGS = {"value": "value", "neuron": "value", "mean": "mean", "channel": "mean", "probability": "probability"}


@dataclass(frozen=True)
class Aim:
    """One number of the network, read off one layer.

    `position` is the place in the layer's map, None for layers with one place only and for the mean of a map; `reading` is "value", "mean"
    or "probability".
    """

    layer: str
    index: int
    position: tuple[int, ...] | None = None
    reading: str = "value"
    label: str | None = None

    @property
    def text(self) -> str:
        """As it is written."""
        unit = str(Unit(self.layer, self.index, self.position))
        return unit if self.reading == "value" else f"{self.reading}({unit})"

    def __str__(self) -> str:
        return self.text

    def read(self, output: Tensor, layer: Layer) -> Tensor:
        """(N,): the number for every input of a batch, from the layer's output."""
        units = layer.units_first(output)
        if self.reading == "probability":
            shares = units.softmax(1) if units.shape[1] > 1 else units.sigmoid()
            return shares[:, self.index].reshape(len(units), -1)[:, 0]
        chosen = units[:, self.index]
        if self.reading == "mean":
            return chosen.flatten(1).mean(1) if chosen.ndim > 1 else chosen
        for place in self.position or (0,) * (chosen.ndim - 1):
            chosen = chosen.select(1, place)
        return chosen


def scores(model: Model, aim: Aim, network: nn.Module, x: Tensor) -> Tensor:
    """(N,): the aim's value for every input of `x` (N, *shape); the pass ends after the aim's layer, and keeps the graph if grad is on."""
    return readings(model, [aim], network, x)[0]


def readings(model: Model, aims: Sequence[Aim], network: nn.Module, x: Tensor) -> list[Tensor]:
    """(N,) of each of several aims at one layer, from one pass."""
    path, found = aims[0].layer, []  # type: str, list[list[Tensor]]
    layer = model.layers[path]

    def read(output: Tensor) -> None:
        found.append([aim.read(output, layer).clone() for aim in aims])

    with Probe(network, {path: read}) as probe:
        probe(x)
    return found[-1]


def read_aim(model: Model, wanted: str | Unit | Aim | None, x: Tensor) -> Aim:
    """The aim that is asked for, placed: None is the class the network finds most likely in `x` (1, *shape).

    A unit of a map without a position is taken where `x` excites it most. Raises `UnknownName` or `BadUnit` with what to do.
    """
    if isinstance(wanted, Aim):
        return wanted
    reading = "value"
    if isinstance(wanted, str) and (call := re.fullmatch(r"([a-z]+)\((.*)\)", wanted)) is not None:
        if call[1] not in _READINGS:
            raise UnknownName("reading of a unit", call[1], _READINGS)
        reading, wanted = _READINGS[call[1]], call[2]
    unit = _predicted(model, x) if wanted is None else _one(model, wanted)
    assert unit.index is not None
    aim = Aim(unit.layer, unit.index, unit.position, reading, model.label(unit))
    layer = model.layers[unit.layer]
    if reading == "probability" and model.class_layer not in (unit.layer, layer.alias_of):
        raise BadOption(f"{unit} is no class; probabilities after softmax are those of class:LABEL")
    if reading == "mean" and unit.position is not None:
        raise BadUnit(f"mean({unit}) asks for a map and for one position of it; drop the one or the other")
    if reading == "value" and math.prod(layer.positions) > 1 and unit.position is None:
        return replace(aim, position=_strongest(model, aim, x))
    return aim


def _one(model: Model, wanted: str | Unit) -> Unit:
    units = model.find(wanted)
    if len(units) != 1:
        raise BadUnit(f"{str(wanted)!r} names {len(units)} units; an explanation is of one: {units[0]}")
    return units[0]


def _output(model: Model, path: str, x: Tensor) -> Tensor:
    """(units, *positions) of a layer for `x`."""
    layer, found = model.layers[path], []
    with undisturbed(model.network), torch.no_grad():
        with Probe(model.network, {path: lambda output: found.append(layer.units_first(output)[0].clone())}) as probe:
            probe(x)
    output: Tensor = found[-1]
    return output


def _predicted(model: Model, x: Tensor) -> Unit:
    if model.class_layer is None:
        raise BadUnit(
            f"{model.reference} puts out no score a class; name the unit to be explained, as in --unit layer:index"
        )
    found = _output(model, model.class_layer, x).flatten()
    if not bool(torch.isfinite(found).all()):
        raise CannotRun(
            f"{model.reference} puts out values that are not finite for this input; there is nothing to explain"
        )
    return Unit(model.class_layer, int(found.argmax()))


def _strongest(model: Model, aim: Aim, x: Tensor) -> tuple[int, ...]:
    found = _output(model, aim.layer, x)[aim.index]
    place = int(torch.where(torch.isfinite(found), found, -torch.inf).flatten().argmax())
    return tuple(int(n) for n in torch.unravel_index(torch.tensor(place), found.shape))

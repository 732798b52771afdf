"""What is asked for, as text: a unit, or an expression of units, layers, directions and pictures.

conv2:7                         a unit, read as the method reads units (the middle neuron, or the whole map)
neuron(conv2:7)                 the neuron in the middle of its map; conv2:7@3,3 at a position
channel(conv2:7)                the mean of its map
probability(class:C)            a class after softmax
class:C - class:D               sums, differences, products and multiples: + - * with spaces around them, 0.5 * conv2:7
layer(conv2)                    everything the layer does: ½ Σ a²
direction(conv2, axis.npy)      a direction in the space of the layer's units
inversion(conv3, glyph.png)     the picture that the layer cannot tell from this one; data:12 is input 12 of the model's own data
caricature(conv3, glyph.png)    the picture's features, exaggerated
interaction(conv2:7, conv2:3)   five pictures from the one to the other, from the same start
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penlight.errors import BadInput, BadOption, BadUnit, UnknownName
from penlight.inputs import open_data, read_picture
from penlight.models import Model, Probe
from penlight.models.probe import undisturbed
from penlight.techniques.visualize.objectives import (
    Caricature,
    Channel,
    Direction,
    Energy,
    Inversion,
    Neuron,
    Objective,
    Probability,
    Scaled,
)
from penlight.techniques.visualize.scene import Optics
from penlight.units import Unit

_STEPS = 5  # pictures from one unit to the other
COMPETE = "after softmax the classes compete: a picture may raise one by lowering the others; of two classes each is the other's negative"


@dataclass(frozen=True, eq=False)
class Target:
    """One row of a result.

    text        how it is written, and what its pictures' random starts are named by, unless `start` says otherwise
    unit        the unit, if it is a plain one: those of a layer are rendered together
    objective   what is wanted, for everything else
    layers      paths that are read, in the network's order
    whole       needs more than what one position sees
    placed      needs the network's own input size
    """

    text: str
    layers: tuple[str, ...]
    unit: Unit | None = None
    objective: Objective | None = None
    label: str | None = None
    whole: bool = False
    placed: bool = False
    start: str = ""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def read_targets(model: Model, wanted: Sequence[str | Unit | Objective | Target], reading: str) -> list[Target]:
    """Targets for what was asked, each once, in order; `reading` is how a plain unit is meant: "neuron", "channel", "probability"…

    Raises `BadUnit`, `UnknownName`, `BadInput` with what is wrong in the text.
    """
    found: dict[str, Target] = {}
    for item in wanted:
        for target in _Reader(model, reading).targets(item):
            found.setdefault(target.text, target)
    return list(found.values())


class _Reader:
    """Reads the text of one target."""

    def __init__(self, model: Model, reading: str) -> None:
        self.model, self.reading = model, reading
        self.notes: list[str] = []
        self.whole = self.placed = False

    def targets(self, item: str | Unit | Objective | Target) -> list[Target]:
        if isinstance(item, Target):
            return [item]
        if isinstance(item, Objective):
            return [self._target(str(item), item)]
        if isinstance(item, str) and (call := _call(item)) is not None and call[0] == "interaction":
            return self._interaction(item, call[1])
        if isinstance(item, Unit) or not self._is_expression(item):
            return [self._unit(unit) for unit in self.model.find(item)]
        return [self._target(item, self.expression(item))]

    def _is_expression(self, text: str) -> bool:
        if text.startswith("class:") and self.model.labels is not None and text[len("class:") :] in self.model.labels:
            return False
        return _call(text) is not None or any(len(_split(text, mark)) > 1 for mark in (" + ", " - ", " * "))

    def _unit(self, unit: Unit) -> Target:
        notes: tuple[str, ...] = ()
        if self.reading == "probability":
            self._class_index(unit)
            notes = (COMPETE,)
        whole = self.reading != "neuron"
        label = self.model.label(unit)
        return Target(str(unit), (unit.layer,), unit, None, label, whole, unit.position is not None, str(unit), notes)

    def _target(self, text: str, objective: Objective) -> Target:
        order = list(self.model.layers)
        for layer in objective.layers:
            self.model.layer(layer)
        layers = tuple(sorted(objective.layers, key=order.index))
        whole = self.whole or len(layers) > 1
        return Target(text, layers, None, objective, None, whole, self.placed, text, tuple(dict.fromkeys(self.notes)))

    def _interaction(self, text: str, arguments: Sequence[str]) -> list[Target]:
        if len(arguments) not in (2, 3) or (len(arguments) == 3 and not arguments[2].isdigit()):
            raise BadUnit(f"{text!r}: write interaction(unit, unit) or interaction(unit, unit, pictures)")
        one, two = self.expression(arguments[0]), self.expression(arguments[1])
        steps = max(2, int(arguments[2])) if len(arguments) == 3 else _STEPS
        made = []
        for n in range(steps):
            share = n / (steps - 1)
            name = f"{1 - share:.3g} * {arguments[0]} + {share:.3g} * {arguments[1]}"
            mixed = Scaled(one, 1 - share) + Scaled(two, share)
            made.append(self._target(name, mixed))
        # one start for all, so that neighbours differ by the mixture and not by chance
        return [Target(t.text, t.layers, None, t.objective, None, t.whole, t.placed, text, t.notes) for t in made]

    def expression(self, text: str) -> Objective:
        """sum := product ((' + ' | ' - ') product)*"""
        parts = _split(text.strip(), " + ", " - ")
        total = self._product(parts[0][1])
        for mark, part in parts[1:]:
            total = total + self._product(part) if mark == " + " else total - self._product(part)
        return total

    def _product(self, text: str) -> Objective:
        factor, objective = 1.0, None
        for _, part in _split(text.strip(), " * "):
            number = _number(part)
            if number is not None:
                factor *= number
            else:
                one = self._atom(part.strip())
                objective = one if objective is None else objective * one
        if objective is None:
            raise BadUnit(f"{text!r} names no unit; write a unit, as in 0.5 * conv2:7")
        return objective if factor == 1.0 else Scaled(objective, factor)

    def _atom(self, text: str) -> Objective:
        call = _call(text)
        if call is None:
            return self._read(text, self.reading)
        name, arguments = call
        makers: dict[str, Callable[[Sequence[str]], Objective]] = {
            "neuron": lambda a: self._read(a[0], "neuron"),
            "channel": lambda a: self._read(a[0], "channel"),
            "probability": lambda a: self._read(a[0], "probability"),
            "energy": lambda a: self._read(a[0], "energy"),
            "layer": lambda a: self._wide(Energy(self.model.layer(a[0]).path)),
            "direction": lambda a: self._wide(Direction(self.model.layer(a[0]).path, self._vector(*a))),
            "inversion": lambda a: self._still(Inversion(self.model.layer(a[0]).path, self._features(*a))),
            "caricature": lambda a: self._still(Caricature(self.model.layer(a[0]).path, self._features(*a))),
        }
        if name not in makers:
            raise UnknownName("kind of target", name, [*makers, "interaction"])
        needs = 2 if name in ("direction", "inversion", "caricature") else 1
        if len(arguments) != needs:
            raise BadUnit(f"{text!r}: {name} takes {needs} argument{'s' * (needs > 1)}, not {len(arguments)}")
        return makers[name](arguments)

    def _read(self, text: str, reading: str) -> Objective:
        units = self.model.find(text)
        if len(units) != 1:
            raise BadUnit(f"{text!r} inside an expression names {len(units)} units; name one")
        unit = units[0]
        assert unit.index is not None
        self.placed |= unit.position is not None
        self.whole |= reading != "neuron"
        if reading == "probability":
            self.notes.append(COMPETE)
            return Probability(unit.layer, self._class_index(unit))
        if reading == "energy":
            return Energy(unit.layer, unit.index)
        if reading == "channel" and unit.position is None:
            return Channel(unit.layer, unit.index)
        return Neuron(unit.layer, unit.index, unit.position)

    def _class_index(self, unit: Unit) -> int:
        layer = self.model.layers[unit.layer]
        if self.model.class_layer not in (unit.layer, layer.alias_of) or unit.index is None:
            raise BadOption(f"{unit} is no class; probabilities after softmax are those of class:LABEL")
        return unit.index

    def _wide(self, objective: Objective) -> Objective:
        self.whole = True
        return objective

    def _still(self, objective: Objective) -> Objective:
        self.whole = self.placed = True
        return objective

    def _vector(self, path: str, file: str) -> Tensor:
        try:
            with Path(file).open("rb") as opened:
                vector = np.load(opened, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadInput(f"{file} holds no direction ({error}); save one number a unit with numpy.save") from error
        units = self.model.layer(path).units
        if not isinstance(vector, np.ndarray) or vector.dtype.kind not in "fiu" or not np.isfinite(vector).all():
            raise BadInput(f"{file} holds no direction; save one finite number a unit with numpy.save")
        if vector.size != units:
            raise BadInput(f"{file} holds {vector.size} numbers; layer {path!r} has {units} units")
        return torch.from_numpy(vector.reshape(-1).astype(np.float32))

    def _features(self, path: str, file: str) -> Tensor:
        return features(self.model, path, picture(self.model, file))


def picture(model: Model, source: str) -> np.ndarray[Any, Any]:
    """A picture file, or `data:N` for input N of the model's own data, as the network takes it: (*shape), uint8 or in [0, 1]."""
    kept = re.fullmatch(r"data:(\d+)", source)
    if kept is None:
        return read_picture(source, model.contract)
    if model.data is None:
        raise BadInput(f"{model.reference} brings no data of its own; name a picture file instead of {source!r}")
    data = open_data(model.data, model.contract, model.labels)
    if int(kept[1]) >= len(data):
        raise BadInput(f"the data of {model.reference} has inputs 0 to {len(data) - 1}; there is no {kept[1]}")
    return data.read(int(kept[1]))


def features(model: Model, path: str, values: np.ndarray[Any, Any]) -> Tensor:
    """What a layer answers to one input (*shape), uint8 or in [0, 1]: (units, *positions)."""
    found: list[Tensor] = []
    layer = model.layer(path)
    with undisturbed(model.network), torch.no_grad():
        with Probe(model.network, {path: lambda output: found.append(layer.units_first(output).clone())}) as probe:
            probe(model.tensor(values[None].repeat(2, 0)))
    return found[0][0]


def as_pictures(model: Model, values: np.ndarray[Any, Any]) -> Tensor:
    """Inputs (N, *shape), uint8 or in [0, 1], as pictures (N, C, H, W) in [0, 1] on the model's device."""
    optics = Optics.of(model)
    normal = model.tensor(values).reshape(len(values), *optics.shape)
    return normal * optics.std + optics.mean


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _call(text: str) -> tuple[str, list[str]] | None:
    """'name(a, b)' → ('name', ['a', 'b']); None for anything else."""
    found = re.match(r"([a-z]+)\(", text)
    if found is None or not text.endswith(")"):
        return None
    inner = text[found.end() : -1]
    depth = 0
    for c in inner:  # the last parenthesis must close the first
        depth += (c == "(") - (c == ")")
        if depth < 0:
            return None
    return found[1], [part.strip() for _, part in _split(inner, ", ")]


def _split(text: str, *marks: str) -> list[tuple[str, str]]:
    """(mark before it, part) for every part between marks that stand outside of parentheses."""
    parts, depth, start, before, at = [], 0, 0, "", 0
    while at < len(text):
        depth += (text[at] == "(") - (text[at] == ")")
        mark = next((m for m in marks if depth == 0 and text.startswith(m, at)), None)
        if mark is not None:
            parts.append((before, text[start:at]))
            before, at = mark, at + len(mark)
            start = at
        else:
            at += 1
    return [*parts, (before, text[start:])]

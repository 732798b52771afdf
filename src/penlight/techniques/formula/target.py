"""What a formula is of: a unit, several, or a sum of units such as 'class:malignant - class:benign'."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import BadInput, BadUnit, PenlightError
from penlight.models import Model, Probe
from penlight.models.layers import run
from penlight.units import Unit


@dataclass(frozen=True)
class Part:
    """One unit with its factor."""

    path: str
    index: int
    position: tuple[int, ...] | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Target:
    """A number of the network: `text` as it was asked for, `name` as it is shown."""

    text: str
    name: str
    parts: tuple[Part, ...]

    def read(self, model: Model, outputs: dict[str, Tensor]) -> Tensor:
        """Its value, a scalar, from the outputs (1, …) of the layers."""
        return sum(  # type: ignore[return-value]
            part.factor * pick(model, part, outputs[part.path]) for part in self.parts
        )


def pick(model: Model, part: Part, output: Tensor) -> Tensor:
    """One unit's element of a layer's output (1, …), a view."""
    chosen = model.layers[part.path].units_first(output)[0, part.index]
    for place in part.position or (0,) * chosen.ndim:
        chosen = chosen.select(0, place)
    return chosen


def targets(model: Model, wanted: Sequence[Any]) -> list[Target]:
    """What was asked for; a layer's '*' gives all its units. `BadUnit` or `UnknownName` with what to do."""
    found: list[Target] = []
    for one in wanted:
        units = _units(model, one)
        if units is None:
            found.append(_sum(model, str(one)))
        else:
            found += [_target(model, unit, str(one) if len(units) == 1 else str(unit)) for unit in units]
    return found


def default_targets(model: Model) -> list[Target]:
    """All class scores, or all the network puts out."""
    path = model.class_layer
    if path is None:
        path = next(p for p in reversed(list(model.layers)) if model.layers[p].alias_of is None)
    layer = model.layers[path]
    places = [tuple(p) for p in torch.cartesian_prod(*map(torch.arange, layer.positions)).reshape(-1, len(layer.positions)).tolist()] if (
        layer.positions
    ) else [None]  # fmt: skip
    return [_target(model, Unit(path, n, place), "") for n in range(layer.units) for place in places]


def _units(model: Model, wanted: Any) -> list[Unit] | None:
    """The units of an address; None where it is a sum of them."""
    if isinstance(wanted, Unit):
        return model.find(wanted)
    try:
        return model.find(str(wanted))
    except PenlightError:
        if _SIGN.search(str(wanted)) or re.match(r"\s*[+-]|\s*\d+(\.\d+)?\s*\*", str(wanted)):
            return None
        raise


_SIGN = re.compile(r"\s+([+-])\s+")
_FACTOR = re.compile(r"\s*(\d+(?:\.\d+)?)\s*\*\s*")


def _sum(model: Model, text: str) -> Target:
    """'class:a - 2*class:b'; a label may hold such signs itself, so the longest piece that is a unit is taken."""
    parts: list[Part] = []
    names: list[str] = []
    lead = re.match(r"\s*([+-])?\s*", text)
    assert lead is not None
    start, sign = lead.end(), lead[1] or "+"
    while start < len(text):
        ends = [found for found in _SIGN.finditer(text) if found.start() > start]
        factor = _FACTOR.match(text, start)
        size, begin = (float(factor[1]), factor.end()) if factor else (1.0, start)
        pieces = [text[begin : found.start()] for found in ends] + [text[begin:]]
        unit = next((u for piece in reversed(pieces) if (u := _single(model, piece.strip())) is not None), None)
        if unit is None:
            units = model.find(pieces[0].strip())  # says what is wrong
            raise BadUnit(f"{pieces[0]!r} names {len(units)} units; a sum is of single ones, as in 'class:a - class:b'")
        taken = next(n for n in reversed(range(len(pieces))) if _single(model, pieces[n].strip()) is not None)
        one = _target(model, unit, "")
        parts.append(replace(one.parts[0], factor=-size if sign == "-" else size))
        names.append(("- " if sign == "-" else "+ " if names else "") + ("" if size == 1 else f"{size:g}·") + one.name)
        start, sign = (ends[taken].end(), ends[taken][1]) if taken < len(ends) else (len(text), "+")
    return Target(text, " ".join(names), tuple(parts))


def _single(model: Model, text: str) -> Unit | None:
    try:
        units = model.find(text)
    except PenlightError:
        return None
    return units[0] if len(units) == 1 else None


def _target(model: Model, unit: Unit, text: str) -> Target:
    assert unit.index is not None
    label = model.label(unit)
    return Target(text or str(unit), label or str(unit), (Part(unit.layer, unit.index, unit.position),))


def placed(model: Model, target: Target, outputs: dict[str, Tensor] | None) -> Target:
    """With a position for every unit of a map: the strongest one, given the layers' `outputs`; `BadUnit` without them."""
    parts = []
    for part in target.parts:
        layer = model.layers[part.path]
        if math.prod(layer.positions) > 1 and part.position is None:
            size = "×".join(map(str, layer.positions))
            if outputs is None:
                raise BadUnit(
                    f"{part.path}:{part.index} is a map of {size} places; name one, as in {part.path}:{part.index}@"
                    + ",".join("0" * len(layer.positions))
                )
            flat = layer.units_first(outputs[part.path])[0, part.index]
            place = torch.unravel_index(flat.reshape(-1).argmax(), flat.shape)
            part = replace(part, position=tuple(int(n) for n in place))
        parts.append(part)
    if tuple(parts) == target.parts:
        return target
    named = str(Unit(parts[0].path, parts[0].index, parts[0].position)) if len(parts) == 1 else target.name
    return replace(target, parts=tuple(parts), name=named, text=named if len(parts) == 1 else target.text)


def read_layers(
    network: nn.Module, paths: Sequence[str], x: Tensor, keep: Callable[[str, Tensor], None] | None = None
) -> dict[str, Tensor]:
    """The outputs of layers for `x`, from one pass that ends after the last; `keep` is called with each at once."""
    found: dict[str, Tensor] = {}

    def reader(path: str) -> Any:
        def read(output: Tensor) -> None:
            found[path] = output
            if keep is not None:
                keep(path, output)

        return read

    with Probe(network, {path: reader(path) for path in paths}) as probe:
        run(probe, x)  # type: ignore[arg-type]  # a probe runs as the network does
    return found


def copied_layers(network: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """`read_layers` of a copy of `x`, the outputs as they were at their layer: later operations may write into them."""
    kept: dict[str, Tensor] = {}
    read_layers(network, paths, x.clone(), lambda path, output: kept.update({path: output.clone()}))
    return kept


def values(model: Model, network: nn.Module, asked: Sequence[Target], x: Tensor) -> NDArray[np.float64]:
    """(N, outputs): what was asked for each input of `x` (N, *shape), one at a time."""
    paths = tuple(dict.fromkeys(part.path for one in asked for part in one.parts))
    with torch.no_grad():
        kept = (copied_layers(network, paths, x[n : n + 1]) for n in range(len(x)))
        return np.array([[float(one.read(model, outputs)) for one in asked] for outputs in kept])


def predicted(model: Model, outputs: dict[str, Tensor]) -> Target:
    """The class with the highest score."""
    path = model.class_layer
    if path is None:
        raise BadUnit(f"{model.reference} puts out no score a class; name the unit, as in --unit layer:index")
    scores = outputs[path].flatten()
    if not bool(torch.isfinite(scores).all()):
        raise BadInput(f"{model.reference} puts out values that are not finite for this input; there is no rule there")
    return _target(model, Unit(path, int(scores.argmax())), "")

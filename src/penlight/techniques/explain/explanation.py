"""What all explanations have in common: one input, one aim, and how an answer is checked and kept."""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import Data, TableContract
from penlight.models import Model
from penlight.models.packing import packed
from penlight.models.probe import undisturbed
from penlight.results import ExplainResult
from penlight.results.explain import Explained
from penlight.techniques.contract import Progress, Request, Technique
from penlight.techniques.explain import aim as aims
from penlight.techniques.explain.aim import Aim
from penlight.techniques.explain.passage import explain_passage
from penlight.techniques.options import provenance


@dataclass(frozen=True, eq=False)
class Scene:
    """One input and one aim, with what every method asks for.

    `input` is (*shape), uint8 or float32, as given, float64 (columns,) for a row of a table; `x` the same (1, *shape) as the network
    takes it, normalised; `value` what the aim is for it.
    """

    model: Model
    aim: Aim
    input: NDArray[Any]
    x: Tensor
    value: float
    seed: int = 0
    data: Data | None = None
    progress: Progress = field(default=lambda done, of: None)
    writes: bool = False  # whether the network writes into its input
    probability: float | None = None  # of the class, if the aim is one

    @property
    def network(self) -> nn.Module:
        """The user's own module, in eval mode and frozen while a method runs."""
        return self.model.network

    def scores(self, network: nn.Module, x: Tensor) -> Tensor:
        """(N,): the aim's value for every input of `x` (N, *shape), by `network`, the user's own or a copy of it.

        The pass ends after the aim's layer; the graph is kept if grad is on.
        """
        return aims.scores(self.model, self.aim, network, x.clone() if self.writes else x)

    @cached_property
    def _prepared(self) -> nn.Module:
        return self.model.prepared([self.aim.layer])

    def prepared(self) -> nn.Module:
        """A frozen copy of the network made for speed, for methods of many passes; made once."""
        return self._prepared

    @cached_property
    def _packed(self) -> nn.Module:
        return packed(self.model.prepared([self.aim.layer]), self.x, [self.aim.layer], own=True)

    def packed(self) -> nn.Module:
        """The same for passes without gradients, whose operators nobody watches; made once."""
        return self._packed

    def rng(self, *names: object) -> np.random.Generator:
        """A random stream of its own for these names, from the seed."""
        digest = hashlib.sha256("\0".join(map(str, (self.seed, *names))).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


@dataclass(frozen=True, eq=False)
class Attribution:
    """A method's answer.

    `values` is shaped like one input, or a map of it; of a row of a table they are a number a column, or one for each of the network's
    inputs, and then those of one column are added up. `signed` is False where values are never negative; `evidence` numbers to be
    shown, by name, in order; `notes` warnings; `extras` arrays to be kept; `box` (start, end) an axis of what the unit sees, if the
    map is to be cut to it; `colour` whether the values make a picture; `parts` names of what was taken away, whose `weights` are
    among the extras.
    """

    values: Tensor | NDArray[Any]
    signed: bool = True
    evidence: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    extras: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    box: tuple[tuple[int, int], ...] | None = None
    colour: bool = False
    parts: tuple[str, ...] = ()


class Explanation(Technique):
    """A way to say what in an input caused a unit's value. A subclass implements `attribute`."""

    verb: ClassVar[str] = "explain"
    guarantee: ClassVar[str] = ""  # what the map is, and what it is not, in one line

    @abstractmethod
    def attribute(self, scene: Scene) -> Attribution:
        """The map; the network is in eval mode and frozen, and grad is off unless the method turns it on."""

    def accepts(self, model: Model, aim: Aim) -> str | None:
        """Why the method cannot answer for this model and aim; None if it can."""
        return None

    def run(self, request: Request) -> ExplainResult:
        """Explain `request.input` for the first of its targets, or for the class found in it.

        Raises `BadInput` for an input that does not fit, `BadOption` where the method cannot answer, `CannotRun` if the network fails
        or puts out what is no number.
        """
        kind = request.model.contract.kind
        if kind not in self.kinds:
            raise BadOption(
                f"{self.name} is for inputs of kind {', '.join(self.kinds)}; {request.model.reference} takes {kind}"
            )
        return explain_passage(self, request) if kind == "text" else self._explain(request)

    def _explain(self, request: Request) -> ExplainResult:
        scene = open_scene(request)
        reason = self.accepts(scene.model, scene.aim)
        if reason is not None:
            raise BadOption(f"{self.name} cannot explain {scene.aim} of {scene.model.reference}: {reason}")
        with undisturbed(scene.network, freeze=True), torch.no_grad():
            found = self.attribute(scene)
        values = as_array(found.values)
        if not np.isfinite(values).all():
            raise CannotRun(
                f"{self.name} gives values that are not finite for {scene.aim}; the network's numbers overflow"
            )
        contract, extras = scene.model.contract, dict(found.extras)
        tokens, shown = (), ()  # type: tuple[str, ...], tuple[str, ...]
        if isinstance(contract, TableContract):
            if len(values) != len(contract.columns):
                values, extras["inputs"] = by_column(contract, values), values
            tokens, shown = contract.names, in_words(contract, scene.input)
        return ExplainResult(
            provenance(self, request),
            Explained(scene.aim.text, scene.aim.label, scene.value, scene.probability),
            scene.input,
            values,
            found.signed,
            self.guarantee,
            {name: _plain(value) for name, value in found.evidence.items()},
            notes=found.notes if values.any() else (_nothing(scene), *found.notes),
            extras=extras,
            box=found.box,
            colour=found.colour,
            tokens=tokens,
            shown=shown,
            parts=found.parts,
        )


def open_scene(request: Request) -> Scene:
    """The scene a request asks for; `BadInput`, `BadUnit`, `UnknownName` or `CannotRun` if there is none."""
    model, given = request.model, request.input
    if given is None:
        raise BadInput("an explanation is of one input: give a picture file, an array or data:N")
    given = _checked(model, given)
    x = model.tensor(given[None])
    wanted = [*request.targets, *request.units]
    aim = aims.read_aim(model, wanted[0] if wanted else None, x.clone())
    trial = x.clone()
    both = [aim, *_as_probability(model, aim)]
    with undisturbed(model.network), torch.no_grad():
        value, *shares = (float(found[0]) for found in aims.readings(model, both, model.network, trial))
    if not np.isfinite(value):
        raise CannotRun(f"{aim} is {value} for this input; there is nothing to explain")
    return Scene(model, aim, given, x, value, request.seed, request.data, request.progress, trial._version > 0, *shares)


def _checked(model: Model, given: NDArray[Any]) -> NDArray[Any]:
    """The input, if it fits."""
    if isinstance(model.contract, TableContract):
        row = np.asarray(given, np.float64)
        model.contract.check(row[None])
        return row
    if tuple(given.shape) != model.contract.shape:
        raise BadInput(f"the input has shape {list(given.shape)}, the network takes {list(model.contract.shape)}")
    if given.dtype.kind == "f" and not np.isfinite(given).all():
        raise BadInput(
            f"the input has {int((~np.isfinite(given)).sum())} values that are not finite; explain one without"
        )
    return given


def by_column(contract: TableContract, values: NDArray[Any]) -> NDArray[np.float32]:
    """(inputs,) of the network → (columns,): what belongs to one column is added up."""
    sums = np.bincount(contract.owners, values, len(contract.columns))
    return sums.astype(np.float32)


def in_words(contract: TableContract, row: NDArray[Any]) -> tuple[str, ...]:
    """The values of a row as a reader wants them."""
    return tuple(column.text(float(value)) for column, value in zip(contract.columns, row, strict=True))


def as_array(values: Tensor | NDArray[Any]) -> NDArray[np.float32]:
    """Float32, on the CPU, apart from any graph."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.ascontiguousarray(values, np.float32)


def _as_probability(model: Model, aim: Aim) -> list[Aim]:
    """The same class read after softmax, if the aim is one."""
    layer = model.layers[aim.layer]
    if model.class_layer not in (aim.layer, layer.alias_of) or math.prod(layer.positions) > 1:
        return []
    return [Aim(aim.layer, aim.index, None, "probability")]


def _nothing(scene: Scene) -> str:
    silent = f": {scene.aim} is not active on this input" if scene.value == 0 else ""
    return f"the map is zero everywhere{silent}"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | Tensor) else value

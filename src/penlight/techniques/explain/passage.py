"""Explanations of texts: the network is taken from behind its front, where a token is a column of numbers, and methods run on that.

A long text is explained by the part of it that matters most likely: what stands before the step that is explained, up to a limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadInput, BadOption, BadUnit, CannotRun
from penlight.inputs import TextContract
from penlight.models import Model, Probe
from penlight.models.front import front_view
from penlight.models.probe import undisturbed
from penlight.results import ExplainResult
from penlight.results.explain import Explained
from penlight.techniques.contract import Request, Technique
from penlight.techniques.explain.aim import Aim, read_aim
from penlight.units import Unit

LIMIT = 500  # tokens that are explained
_LONGEST = 20_000  # tokens that are read
_SAME = 1e-5  # of a value: what rounding may change
_READING = re.compile(r"([a-z]+)\((.*)\)")


@dataclass(frozen=True, eq=False)
class Passage:
    """A text of which the tokens from `start` on are explained: `request` asks for them as a signal, of the view from behind the front.

    `aim` is what is explained, with its step counted from the text's beginning, `value` what it is after the whole text.
    """

    request: Request
    ids: NDArray[np.int64]
    start: int
    aim: Aim
    value: float
    probability: float | None
    notes: tuple[str, ...]

    @property
    def stop(self) -> int:
        """The end of what is explained."""
        return self.start + self.request.model.contract.size[0]

    def told(self, result: ExplainResult, words: tuple[str, ...]) -> ExplainResult:
        """The answer about the signal as one about the text; `words` are its tokens."""
        values = np.zeros(len(self.ids), np.float32)
        values[self.start : self.stop] = result.map
        target = Explained(self.aim.text, self.aim.label, self.value, self.probability)
        extras = {name: self._placed(name, array) for name, array in result.extras.items()}
        notes = (*self.notes, *result.notes)
        return replace(
            result, target=target, values=values, input=self.ids, notes=notes, tokens=words, extras=extras, colour=False
        )

    def _placed(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An array of the method, counted from the text's beginning."""
        if name.startswith("spans"):
            return array + self.start
        if name == "segments":
            whole = np.full(len(self.ids), -1, array.dtype)
            whole[self.start : self.stop] = array
            return whole
        return array


def explain_passage(technique: Technique, request: Request) -> ExplainResult:
    """Explain the text `request.input`, token numbers (T,), for the first of its targets.

    Without one it is the class the network finds, for a language model the token it expects after the last. A unit without a step is
    taken at the step where its value is largest in magnitude. Raises what `Explanation.run` raises.
    """
    passage = open_passage(request)
    result = technique.run(passage.request)
    assert isinstance(result, ExplainResult)
    contract = request.model.contract
    assert isinstance(contract, TextContract)
    return passage.told(result, tuple(contract.vocabulary[n] for n in passage.ids))


def open_passage(request: Request) -> Passage:
    """The part of the text that is explained, and the request that asks for it."""
    model, ids = request.model, _checked(request)
    wanted = [*request.targets, *request.units]
    aim = _aim(model, wanted[0] if wanted else None, ids)
    whole = _read(model, aim.layer, ids)
    value = _value(model, aim, whole)
    if not np.isfinite(value):
        raise CannotRun(f"{aim} is {value} for this input; there is nothing to explain")
    start, stop, notes = _extent(model, aim, value, ids)
    view, signal = front_view(model, ids[start:stop])
    inner = replace(aim, position=(aim.position[0] - start,)) if aim.position else aim
    asked = replace(request, model=view, input=signal, targets=[inner], units=(), data=None)
    return Passage(asked, ids, start, aim, value, _probability(model, aim, whole), notes)


def _checked(request: Request) -> NDArray[np.int64]:
    model, given = request.model, request.input
    if given is None:
        raise BadInput("an explanation is of one text: give a text, a text file or data:N")
    if given.ndim != 1 or not given.size:
        raise BadInput(f"a text is token numbers (T,), not an array of shape {list(given.shape)}")
    model.contract.check(given[None])
    if len(given) > _LONGEST:
        raise BadInput(f"the text has {len(given)} tokens; explain one of at most {_LONGEST}")
    return np.ascontiguousarray(given, np.int64)


def _aim(model: Model, wanted: str | Unit | Aim | None, ids: NDArray[np.int64]) -> Aim:
    """The aim that is asked for, with its step in the text."""
    if isinstance(wanted, Aim):
        return wanted
    if wanted is None:
        aim = _predicted(model, ids)
    else:
        aim = _asked(model, wanted)
        if model.layers[aim.layer].positions and aim.position is not None and aim.position[0] >= len(ids):
            raise BadUnit(f"the text has steps 0 to {len(ids) - 1}; there is no {aim.position[0]}")
        if model.layers[aim.layer].positions and aim.position is None and aim.reading == "value":
            values = _read(model, aim.layer, ids)[aim.index]
            aim = replace(aim, position=(int(np.nan_to_num(np.abs(values)).argmax()),))
    speaks = model.layers[aim.layer].positions and aim.label is not None
    return replace(aim, label=repr(aim.label)) if speaks else aim  # the label is a token, perhaps a blank


def _asked(model: Model, wanted: str | Unit) -> Aim:
    """The aim without its step, unless it was given."""
    call = _READING.fullmatch(wanted) if isinstance(wanted, str) else None
    parsed = Unit.parse(call[2] if call else wanted) if isinstance(wanted, str) else wanted
    at = re.fullmatch(r"(.+)@(\d+)", parsed.label or "", re.DOTALL)
    if at is not None and parsed.label not in (model.labels or ()):  # a token at a step, as class:e@120
        parsed = replace(model.find(Unit("class", label=at[1]))[0], position=(int(at[2]),))
        if not model.layers[parsed.layer].positions:
            raise BadUnit(f"{wanted}: the scores of {model.reference} have no steps; drop the @{at[2]}")
    if parsed.position is None or (call and call[1] not in ("value", "neuron")):
        example = model.example(1)
        aim = read_aim(model, wanted, example)
        if aim.reading == "probability" and model.layers[aim.layer].positions:
            raise BadOption(
                f"{wanted}: of a network that puts out scores at every step the score is explained, not the probability"
            )
        return replace(aim, position=None)
    (unit,) = model.find(parsed)
    assert unit.index is not None
    return Aim(unit.layer, unit.index, unit.position, "value", model.label(unit))


def _predicted(model: Model, ids: NDArray[np.int64]) -> Aim:
    path = model.class_layer
    if path is None:
        raise BadUnit(
            f"{model.reference} puts out no score a class or token; name the unit to be explained, as in --unit layer:index@step"
        )
    scores = _read(model, path, ids)
    if not np.isfinite(scores).all():
        raise CannotRun(
            f"{model.reference} puts out values that are not finite for this input; there is nothing to explain"
        )
    step = () if scores.ndim == 1 else (len(ids) - 1,)
    index = int(scores[(slice(None), *step)].argmax())
    return Aim(path, index, step or None, "value", model.label(Unit(path, index)))


def _read(model: Model, path: str, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(units,) or (units, T): what a layer puts out for a text."""
    layer, found = model.layers[path], []
    with undisturbed(model.network), torch.no_grad():
        with Probe(model.network, {path: lambda output: found.append(layer.units_first(output)[0].clone())}) as probe:
            probe(model.tensor(ids[None]))
    values: NDArray[np.float32] = found[-1].float().cpu().numpy()
    return values


def _value(model: Model, aim: Aim, output: NDArray[np.float32]) -> float:
    layer = model.layers[aim.layer]
    if output.ndim == 1:
        return float(aim.read(torch.from_numpy(output)[None], layer)[0])
    values = output[aim.index]
    return float(values.mean() if aim.position is None else values[aim.position[0]])


def _probability(model: Model, aim: Aim, output: NDArray[np.float32]) -> float | None:
    """Of the class or token, if the aim is one."""
    if model.class_layer not in (aim.layer, model.layers[aim.layer].alias_of) or aim.reading == "mean":
        return None
    scores = torch.from_numpy(output if output.ndim == 1 else output[:, (aim.position or (0,))[0]])
    shares = scores.softmax(0) if len(scores) > 1 else scores.sigmoid()
    return float(shares[aim.index])


def _extent(model: Model, aim: Aim, value: float, ids: NDArray[np.int64]) -> tuple[int, int, tuple[str, ...]]:
    """(start, end) of the tokens that are explained, and what is to be said of the others."""
    count, stop = len(ids), len(ids)
    if aim.position is not None:
        step = aim.position[0]
        if _after(model, aim, step, value, ids):
            stop = step + 1
        elif count > LIMIT:
            stop = min(count, step + 1 + LIMIT // 2)
    start = max(0, stop - LIMIT)
    later = stop < count and not (aim.position and stop == aim.position[0] + 1)
    if not start and not later:
        return start, stop, ()
    inner = replace(aim, position=(aim.position[0] - start,)) if aim.position else aim
    alone = _value(model, inner, _read(model, aim.layer, ids[start:stop]))
    told = f"only tokens {start} to {stop - 1} of {count} were taken: alone they give {aim} the value {alone:.4g}"
    return start, stop, (f"{told}, the whole text {value:.4g}",)


def _after(model: Model, aim: Aim, step: int, value: float, ids: NDArray[np.int64]) -> bool:
    """Whether the value at a step is the same without the tokens after it."""
    if step + 1 == len(ids):
        return True
    alone = _value(model, aim, _read(model, aim.layer, ids[: step + 1]))
    return abs(alone - value) <= _SAME * max(1.0, abs(value))

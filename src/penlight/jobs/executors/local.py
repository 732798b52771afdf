"""Tasks in this process."""

from __future__ import annotations

from collections.abc import Sequence

from penlight.errors import ModelMismatch
from penlight.inputs import Data, pick
from penlight.jobs.task import Task
from penlight.models import Model
from penlight.results import Result
from penlight.techniques.contract import Progress, Request, methods
from penlight.techniques.options import build
from penlight.units import Unit

_OF_ONE = ("explain", "formula")  # questions about one input


def answer(task: Task, model: Model, data: Data | None, earlier: Sequence[Result], progress: Progress) -> Result:
    """Answer one task with a model that is loaded already; `ModelMismatch` if the task is about another."""
    if task.model != model.hash:
        raise ModelMismatch(
            f"the task is about a network with weights {task.model[:12]}, {model.reference} has {model.hash[:12]}"
        )
    own = data if task.data is not None else None
    technique = build(methods[task.verb][task.method], task.options)
    asked = own.read(task.inputs[0]) if own is not None and task.verb in _OF_ONE and len(task.inputs) == 1 else None
    request = Request(
        model=model,
        units=tuple(Unit.parse(text) for text in task.units),
        layers=task.layers,
        data=pick(own, task.inputs) if own is not None and task.inputs else own,
        seed=task.seed,
        earlier=tuple(earlier),
        input=asked,
        progress=progress,
    )
    return technique.run(request)

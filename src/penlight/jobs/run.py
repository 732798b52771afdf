"""Running a plan: what the store has is skipped, what is answered is stored at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from penlight.errors import BadInput, BadOutput, PenlightError
from penlight.inputs import Data
from penlight.jobs.executors.local import answer
from penlight.jobs.task import Task
from penlight.models import Model
from penlight.store import Store

Watch = Callable[[int, int, Task, float], None]  # (task number, of, task, share of it done)


@dataclass
class Outcome:
    """What a run did: tasks found in the store, tasks answered, and what went wrong by task."""

    reused: int = 0
    computed: int = 0
    failed: list[tuple[Task, str]] = field(default_factory=list)


def run_plan(
    tasks: Sequence[Task], model: Model, data: Data | None, store: Store, watch: Watch | None = None
) -> Outcome:
    """Answer the tasks that the store does not hold, one after the other, each stored the moment it is done.

    A task that the network does not allow is noted and the others go on, but those that need its result. `BadInput` (data of
    which nothing can be read) and `BadOutput` (a store that takes nothing more) end the run.
    """
    outcome = Outcome()
    for number, task in enumerate(tasks):
        if store.has(task.key):
            outcome.reused += 1
            continue
        lacking = [key for key in task.needs if not store.has(key)]
        if lacking:
            outcome.failed.append((task, "a task it builds on failed"))
            continue

        def progress(done: int, of: int, number: int = number, task: Task = task) -> None:
            if watch is not None:
                watch(number, len(tasks), task, done / max(of, 1))

        progress(0, 1)
        try:
            result = answer(task, model, data, [store.get(key) for key in task.needs], progress)
        except (BadInput, BadOutput):
            raise
        except PenlightError as error:
            outcome.failed.append((task, str(error)))
            continue
        store.put(task.key, result, asdict(task))
        outcome.computed += 1
    return outcome

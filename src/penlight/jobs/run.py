"""Running a plan: what the store has is skipped, what is answered is stored at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from threading import Condition, Thread

from penlight.errors import BadInput, BadOutput, PenlightError
from penlight.inputs import Data
from penlight.jobs.executors.contract import Helper, Lost
from penlight.jobs.executors.local import answer
from penlight.jobs.task import Task
from penlight.models import Model
from penlight.results import Result
from penlight.store import Store
from penlight.techniques.contract import Progress

Watch = Callable[[int, int, Task, float], None]  # (tasks done, of, a task in work, share done of all that are)
_Answer = Callable[[Task, Sequence[Result], Progress], Result]


@dataclass
class Outcome:
    """What a run did: tasks found in the store, tasks answered, and what went wrong by task."""

    reused: int = 0
    computed: int = 0
    failed: list[tuple[Task, str]] = field(default_factory=list)


def run_plan(
    tasks: Sequence[Task],
    model: Model,
    data: Data | None,
    store: Store,
    watch: Watch | None = None,
    helpers: Sequence[Helper] = (),
) -> Outcome:
    """Answer the tasks that the store does not hold, here and by `helpers`, each stored the moment it is done.

    Tasks begin in their order, one as soon as those it needs are stored. One that the network does not allow is noted and the others
    go on, but those that need its result. `BadInput` (data of which nothing can be read) and `BadOutput` (a store that takes nothing
    more) end the run. The helpers are closed at the end, and in any case.
    """
    run = _Run(tasks, store, watch)
    threads = [Thread(target=run.serve, args=(helper,), daemon=True) for helper in helpers]
    for thread in threads:
        thread.start()
    try:
        run.work(lambda task, earlier, progress: answer(task, model, data, earlier, progress))
    finally:
        run.stop()
        for helper in helpers:
            helper.close()
        for thread in threads:
            thread.join()
    if run.error is not None:
        raise run.error
    run.outcome.failed.sort(key=lambda failed: tasks.index(failed[0]))
    return run.outcome


class _Run:
    """The tasks of a run, which several threads take from. Store, watch and all fields are used under the lock only."""

    def __init__(self, tasks: Sequence[Task], store: Store, watch: Watch | None) -> None:
        self.outcome = Outcome()
        self.error: BaseException | None = None
        self._all, self._store, self._watch = len(tasks), store, watch
        self._lock = Condition()
        self._stopped = False
        self._there = {task.key for task in tasks if store.has(task.key)}
        self._waiting = {task.key: task for task in tasks if task.key not in self._there}  # in order
        self._shares: dict[str, float] = {}  # of the tasks in work
        self.outcome.reused = len(tasks) - len(self._waiting)

    def serve(self, helper: Helper) -> None:
        """What the thread of a helper does."""
        if helper.ready():
            self.work(helper.answer)

    def work(self, ask: _Answer) -> None:
        """Take tasks and have them answered until none is left."""
        while (task := self._take()) is not None:
            try:
                self._keep(task, ask(task, self._earlier(task), partial(self._progress, task)))
            except Lost:
                with self._lock:
                    self._waiting = {task.key: task, **self._waiting}
                    self._drop(task)
                return
            except (BadInput, BadOutput) as error:
                self.stop(error)
            except PenlightError as error:
                with self._lock:
                    self.outcome.failed.append((task, str(error)))
                    self._drop(task)
            except BaseException as error:
                self.stop(error)

    def stop(self, error: BaseException | None = None) -> None:
        """No task is taken any more; the first error is kept."""
        with self._lock:
            self._stopped, self.error = True, self.error or error
            self._lock.notify_all()

    def _take(self) -> Task | None:
        """The next task whose needs are stored, once there is one; None if there will be none."""
        with self._lock:
            while not self._stopped and (self._waiting or self._shares):  # one in work may come back
                for task in list(self._waiting.values()):
                    lacking = [key for key in task.needs if not self._is_stored(key)]
                    if lacking and not all(key in self._waiting or key in self._shares for key in lacking):
                        self.outcome.failed.append((task, "a task it builds on failed"))
                        del self._waiting[task.key]
                    elif not lacking:
                        del self._waiting[task.key]
                        self._shares[task.key] = 0.0
                        self._tell(task)
                        return task
                if self._waiting or self._shares:
                    self._lock.wait()
            return None

    def _is_stored(self, key: str) -> bool:
        return key in self._there or self._store.has(key)

    def _earlier(self, task: Task) -> list[Result]:
        with self._lock:
            return [self._store.get(key) for key in task.needs]

    def _keep(self, task: Task, result: Result) -> None:
        with self._lock:
            self._store.put(task.key, result, asdict(task))
            self._there.add(task.key)
            self.outcome.computed += 1
            self._drop(task)

    def _drop(self, task: Task) -> None:
        """The task is in work no more."""
        self._shares.pop(task.key, None)
        self._lock.notify_all()

    def _progress(self, task: Task, done: int, of: int) -> None:
        with self._lock:
            if task.key in self._shares and not self._stopped:
                self._shares[task.key] = done / max(of, 1)
                self._tell(task)

    def _tell(self, task: Task) -> None:
        if self._watch is not None:
            gone = self._all - len(self._waiting) - len(self._shares)
            self._watch(gone, self._all, task, sum(self._shares.values()))

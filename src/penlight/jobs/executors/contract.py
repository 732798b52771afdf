"""Who answers tasks beside this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penlight.jobs.task import Task
from penlight.results import Result
from penlight.techniques.contract import Progress


class Lost(Exception):
    """The helper is gone; the task it had is to be given to another."""


class Helper(Protocol):
    """One who answers a task at a time, with a model and data of its own."""

    def ready(self) -> bool:
        """Wait until the model is open there; False if it cannot be."""

    def answer(self, task: Task, earlier: Sequence[Result], progress: Progress) -> Result:
        """The answer, given the results the task needs; raises what the technique raises, and `Lost`."""

    def close(self) -> None:
        """Stop at once, in the midst of a task too; from any thread, and more than once."""

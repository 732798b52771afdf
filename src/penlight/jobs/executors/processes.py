"""Helpers that are processes on this machine, each with the model opened anew and its share of the threads."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from penlight import errors
from penlight.errors import BadOption, PenlightError
from penlight.inputs import Data
from penlight.jobs.executors.contract import Lost
from penlight.jobs.task import Task
from penlight.models import Model
from penlight.results import Result
from penlight.techniques.contract import Progress

_MOST = 8  # processes where nobody says how many
_ROOM = 2**30  # bytes of memory that one more takes at least; twice what this process holds if that is more
_START = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from penlight.jobs.executors.serving import serve; serve()"


@contextmanager
def helpers(model: Model, data: Data | None, tasks: Sequence[Task], workers: int | None) -> Iterator[list[Process]]:
    """Processes that answer `tasks` beside this one, `workers` with it; None: as many as threads, memory and model allow.

    Torch's threads are shared out among them, and given back to this process at the end. Without `workers` a model or data that no
    other process can open just means that there are none.
    """
    if workers is not None and workers < 1:
        raise BadOption(f"workers is a whole number from 1, not {workers}; 1 computes in this process alone")
    threads = torch.get_num_threads()
    count = _usual(model, threads) if workers is None else workers
    count = max(1, min(count, len(tasks)))
    order = None if count == 1 or not sys.executable else _order(model, data, tasks, loud=workers is not None)
    if order is None:
        yield []
        return
    each = max(1, threads // count)
    crew = [Process(order, each, loud=workers is not None) for _ in range(count - 1)]
    torch.set_num_threads(each)
    try:
        yield crew
    finally:
        for process in crew:
            process.close()
        torch.set_num_threads(threads)


def _usual(model: Model, threads: int) -> int:
    """As many as there are threads for, and room in memory; one alone beside a GPU."""
    if model.device.type != "cpu":
        return 1
    free, own = _memory()
    return min(_MOST, threads, 1 + int(min(free / max(_ROOM, 2 * own), _MOST)))


def _memory() -> tuple[float, float]:
    """(bytes that can still be taken, bytes this process holds); endless and 0 where the system does not say."""
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
        held = int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, KeyError, ValueError):
        return float("inf"), 0.0
    return free, held


def _order(model: Model, data: Data | None, tasks: Sequence[Task], loud: bool) -> bytes | None:
    """What a process is to open: the model by its reference, or itself where it has none; None if that cannot be sent."""
    wanted = sorted({(task.verb, task.method, task.version) for task in tasks})
    opened: Any = dict(model.opening) if model.opening is not None else model
    try:
        return pickle.dumps((opened, str(model.device), model.hash, data, wanted))
    except Exception as error:  # pickle raises whatever an object's own methods do
        if loud:
            warnings.warn(
                f"computing in one process: the model or its data cannot be sent to another ({error})", stacklevel=3
            )
        return None


class Process:
    """A process that is started at once and is asked through its standard streams; see `Helper`."""

    def __init__(self, order: bytes, threads: int, loud: bool) -> None:
        self._order, self._loud, self._closed = order, loud, False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps([str(place) for place in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )

    def ready(self) -> bool:
        """Wait until the model is open there."""
        try:
            self._send(self._order)
            kind, told = self._receive()
        except Lost:
            return False
        if kind != "ready" and self._loud:
            warnings.warn(f"a worker process cannot help: {told}", stacklevel=2)
        return bool(kind == "ready")

    def answer(self, task: Task, earlier: Sequence[Result], progress: Progress) -> Result:
        """Have a task answered there."""
        self._send(pickle.dumps((task, list(earlier))))
        while True:
            kind, told = self._receive()
            if kind == "progress":
                progress(*told)
            elif kind == "warning":
                warnings.warn(told, stacklevel=2)
            elif kind == "error":
                raise _error(*told)
            elif kind == "broken":
                raise RuntimeError(f"a worker process failed at {task.title()}:\n{told}")
            else:
                result: Result = told
                return result

    def close(self) -> None:
        """Kill it."""
        self._closed = True
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()

    def _send(self, message: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._lost() from error

    def _receive(self) -> tuple[str, Any]:
        assert self._process.stdout is not None
        try:
            message: tuple[str, Any] = pickle.load(self._process.stdout)
        except (OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise self._lost() from error
        return message

    def _lost(self) -> Lost:
        """It is gone; said once, unless it was told to go."""
        if not self._closed:
            code = self._process.wait()
            how = f"killed by signal {-code}; out of memory?" if code < 0 else f"exit status {code}"
            warnings.warn(f"a worker process is gone ({how}); the others go on with its task", stacklevel=2)
        return Lost()


def _error(name: str, text: str) -> PenlightError:
    """One of Penlight's own errors, as it was raised there."""
    kind = getattr(errors, name, PenlightError)
    made: PenlightError = kind.__new__(kind)
    made.args = (text,)
    return made

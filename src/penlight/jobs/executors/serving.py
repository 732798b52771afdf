"""What a helping process does: open the model it is told to, then answer task after task."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock, Thread
from typing import IO, Any

from penlight.errors import ModelMismatch, PenlightError
from penlight.inputs import Data
from penlight.jobs.executors.local import answer
from penlight.jobs.task import Task
from penlight.models import Model, load_model
from penlight.results import Result
from penlight.techniques.contract import methods

_OFTEN = 0.1  # seconds between two reports of progress
_Say = Callable[[str, Any], None]


def serve() -> None:
    """Read the order and the tasks from standard input, write answers to standard output; end when the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; it ends this one
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything prints is no answer
    heard: SimpleQueue[Any] = SimpleQueue()
    Thread(target=_listen, args=(sys.stdin.buffer, heard), daemon=True).start()
    lock = Lock()

    def say(kind: str, told: Any) -> None:
        with lock:
            try:
                pickle.dump((kind, told), channel)
                channel.flush()
            except OSError:
                os._exit(1)

    opening, device, digest, data, wanted = heard.get()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it was said when the model was first opened
            model = _opened(opening, device, digest, wanted)
    except Exception as error:
        return say("refused", str(error).partition("\n")[0])
    say("ready", None)
    warnings.showwarning = lambda message, *_, **__: say("warning", str(message))
    while True:
        task, earlier = heard.get()
        say(*_answered(task, earlier, model, data, say))


def _listen(stream: IO[bytes], heard: SimpleQueue[Any]) -> None:
    """Hand on what comes; once nothing can come any more this process is of no use, whatever it is doing."""
    try:
        while True:
            heard.put(pickle.load(stream))
    except EOFError:
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def _opened(opening: Any, device: str, digest: str, wanted: list[tuple[str, str, int]]) -> Model:
    """The model; an error if it is another one here, or lacks a method that the tasks ask for."""
    model = opening if isinstance(opening, Model) else load_model(**{**opening, "device": device})
    if model.hash != digest:
        raise ModelMismatch(f"{model.reference}, opened again, has other weights")
    for verb, method, version in wanted:
        if methods[verb][method].version != version:
            raise ModelMismatch(f"method {method!r} of {verb} is another one there")
    return model


def _answered(task: Task, earlier: Sequence[Result], model: Model, data: Data | None, say: _Say) -> tuple[str, Any]:
    """(kind of message, what it says) for a task."""
    last = 0.0

    def progress(done: int, of: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _OFTEN:
            last = now
            say("progress", (done, of))

    try:
        return "result", answer(task, model, data, earlier, progress)
    except PenlightError as error:
        return "error", (type(error).__name__, str(error))
    except BaseException:
        return "broken", traceback.format_exc()

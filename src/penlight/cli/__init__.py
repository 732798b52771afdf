"""The command line: `penlight VERB MODEL …`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

# Idle OpenMP threads sleep instead of spinning: on a shared machine spinning costs more than it gives. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 the network or the machine failed, 2 the user's mistake, 130 interrupted."""
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """The exit status of `penlight ARGUMENTS`; what is wrong is one line on stderr."""
    import click

    from penlight.cli.root import penlight
    from penlight.errors import PenlightError

    signal.signal(signal.SIGTERM, _terminate)
    try:
        penlight.main(arguments, prog_name="penlight", standalone_mode=False)
    except click.ClickException as error:
        return _say(" ".join(error.format_message().split()), error.exit_code)
    except PenlightError as error:
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _say("interrupted; what was stored is whole", 130)
    except BrokenPipeError:  # the reader of a pipe has gone: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError as error:
        return _say(f"out of memory: {error}; give fewer units, seeds or a smaller batch", 1)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _say(message: str, status: int) -> int:
    print(f"penlight: {message}", file=sys.stderr)
    return status

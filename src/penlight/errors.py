"""Everything Penlight raises on purpose.

    PenlightError
    ├── UsageError              the user can put it right; the command line exits with 2
    │   ├── UnknownName         a model, layer, unit, label, method or option that does not exist
    │   ├── BadReference        a model reference that cannot be read
    │   ├── BadWeights          weights that do not fit, or a file that is cut off
    │   ├── Untrusted           a file that could run code, without --trust
    │   ├── BadUnit             a unit's text or index that cannot be
    │   ├── BadOption           an option's value
    │   ├── BadInput            data that is no data
    │   ├── BadOutput           a place that cannot be written to
    │   └── ModelMismatch       an atlas that belongs to another model
    └── CannotRun               the network itself failed or does not allow what was asked

Each message is one line: what was given, what is allowed, what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PenlightError(Exception):
    """Base of all of Penlight's own errors."""

    exit_code = 1


class UsageError(PenlightError):
    """Something the user gave; the message says what to do."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is not there.

    >>> str(UnknownName("layer", "conv", ["conv1", "fc"]))
    "there is no layer 'conv'; did you mean 'conv1'? There are 2: conv1, fc"
    """

    def __init__(self, kind: str, given: str, allowed: Iterable[str], hint: str = "") -> None:
        names = list(allowed)
        self.kind, self.given, self.allowed = kind, given, names
        near = near_names(given, names)
        text = f"there is no {kind} {given!r}"
        if near:
            text += "; did you mean " + " or ".join(repr(name) for name in near) + "?"
        if names:
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            text += f"{' There' if near else '; there'} {'is' if len(names) == 1 else 'are'} {len(names)}: {shown}"
        super().__init__(text + (f". {hint}" if hint else ""))


class BadReference(UsageError):
    """A model reference that cannot be read."""


class BadWeights(UsageError):
    """Weights that do not fit the network, or a damaged file."""


class Untrusted(UsageError):
    """A file that could run code when it is read."""


class BadUnit(UsageError):
    """A unit's address that cannot be."""


class BadOption(UsageError):
    """An option's value."""


class BadInput(UsageError):
    """A picture, folder or array that cannot be used as data."""


class BadOutput(UsageError):
    """A place that cannot be written to, or holds something else."""


class ModelMismatch(UsageError):
    """An atlas that was made from another model."""


class CannotRun(PenlightError):
    """The network raised, or does not allow what was asked of it."""


def near_names(given: str, names: Iterable[str], count: int = 3) -> list[str]:
    """Up to `count` of `names` that look like `given`, best first; never used in its place."""
    table = {name.lower(): name for name in names}
    close = get_close_matches(given.lower(), list(table), n=count, cutoff=0.6)
    starts = [low for low in table if given and low.startswith(given.lower()) and low not in close]
    return [table[low] for low in (close + starts)[:count]]

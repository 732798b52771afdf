"""A task: a plain-JSON order whose hash is its key in the store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Task:
    """What is to be asked, in JSON's types only; equal tasks have equal keys, here and on any other machine.

    `model` and `data` are digests, so that a changed network or data set is another task; `needs` are keys of tasks whose results
    this one reads; `inputs` are numbers of the data's inputs that it is about, all of them if empty; `version` is the method's, raised
    when the same options give another answer.
    """

    verb: str
    method: str
    version: int
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    units: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    data: str | None = None
    seed: int = 0
    needs: tuple[str, ...] = ()
    inputs: tuple[int, ...] = ()

    @cached_property
    def key(self) -> str:
        """Hex digest of the task's canonical text."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:32]

    def text(self) -> str:
        """Canonical JSON."""
        table = asdict(self)
        if not self.inputs:  # as it was before there were any: stored answers keep their keys
            del table["inputs"]
        return json.dumps(table, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def parse(cls, text: str) -> Task:
        """The inverse of `text`."""
        table = json.loads(text)
        for name in ("units", "layers", "needs", "inputs"):
            table[name] = tuple(table.get(name, ()))
        return cls(**table)

    def title(self) -> str:
        """A few words for a progress bar."""
        if self.units:
            return f"{self.verb} {self.units[0].rpartition(':')[0]}"
        return f"{self.verb} {self.method}"

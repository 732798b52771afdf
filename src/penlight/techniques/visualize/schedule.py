"""When and by chance: rates over the steps, and random numbers that depend on nothing but their names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Schedule = Callable[[int], float]  # step -> rate


@dataclass(frozen=True)
class Cosine:
    """`rate` at the first step, falling along half a cosine towards 0 at step `steps`."""

    rate: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Constant:
    """The same rate at every step."""

    rate: float

    def __call__(self, step: int) -> float:
        return self.rate


@dataclass(frozen=True)
class Linear:
    """From `start` at the first step to `end`, which step `steps` would have: start + (end − start) · step / steps."""

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * step / self.steps


def stream(*names: object) -> torch.Generator:
    """A random stream of its own for these names: the same names give the same numbers, whatever else was drawn.

    >>> float(torch.rand(1, generator=stream(0, "fc:2", 1))) == float(torch.rand(1, generator=stream(0, "fc:2", 1)))
    True
    """
    digest = hashlib.sha256("\0".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)

"""What a technique is: a frozen dataclass of options with one `run`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from numpy.typing import NDArray

from penlight.inputs import Data
from penlight.models import Model
from penlight.registry import Registry
from penlight.results import Result
from penlight.units import Unit

Progress = Callable[[int, int], None]  # (done, of)


@dataclass(frozen=True)
class Request:
    """What is asked: of which model, which units or layers, on which data, from which seed.

    `targets` are expressions of units, for the methods that take them; `earlier` holds results a plan hands over; `frames` is how many
    pictures of the way are to be kept; `pictures` are arrays (H, W, C) uint8 that stand for options naming a picture file; `input` is
    the one input (*shape), uint8 or float, that is to be explained.
    """

    model: Model
    units: Sequence[Unit] = ()
    layers: Sequence[str] = ()
    data: Data | None = None
    seed: int = 0
    earlier: Sequence[Result] = ()
    targets: Sequence[Any] = ()
    frames: int = 0
    pictures: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    input: NDArray[Any] | None = None
    progress: Progress = field(default=lambda done, of: None)


class Technique(ABC):
    """A way to answer a question. A subclass is a frozen dataclass; its fields, made with `option`, are its options."""

    verb: ClassVar[str]
    name: ClassVar[str]
    paper: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "table")  # of input that it is for
    version: ClassVar[int] = 1  # raised when the same options give another answer
    reads_data: ClassVar[bool] = False  # runs on `Request.data`
    reads_survey: ClassVar[bool] = False  # takes a survey of the data from `Request.earlier`

    @abstractmethod
    def run(self, request: Request) -> Result:
        """Answer; leaves the model as it was."""


VERBS = ("visualize", "activations", "explain", "survey", "diagnose", "formula")
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "visualize": {"text": "strings", "table": "row", "": "penlight"},
    "activations": {"text": "tracks", "": "maps"},
    "explain": {"": "occlusion"},
    "survey": {"text": "passages", "table": "columns", "": "stream"},
    "diagnose": {"text": "cells", "": "health"},
    "formula": {"": "symbolic"},
}
"""The method that answers where none is named: verb → kind of input → name, "" for every other kind."""
methods: Mapping[str, Registry[type[Technique]]] = {
    verb: Registry(f"{verb} method", f"penlight.{verb}") for verb in VERBS
}


def default_method(verb: str, kind: str) -> str:
    """The name of the method that answers for this kind of input where the user names none."""
    return DEFAULTS[verb].get(kind, DEFAULTS[verb][""])

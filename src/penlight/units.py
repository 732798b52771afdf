"""The address of a unit: text to value and back.

features.12:42        channel 42 of a layer
features.12:42@7,7    the same channel at one position
fc:2                  a neuron
class:tabby           a class, by label or index, before softmax
features.12:*         every unit of the layer
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from penlight.errors import BadUnit

_EXAMPLES = "write 'layer:index', 'layer:index@row,column', 'layer:*' or 'class:label'"
_POSITION = re.compile(r"\d+(,\d+)*\Z")


@dataclass(frozen=True, order=True)
class Unit:
    """One unit, or all units, of a layer.

    >>> Unit.parse("features.12:42@7,7")
    Unit(layer='features.12', index=42, position=(7, 7), label=None)
    >>> str(Unit("fc", 2))
    'fc:2'

    `index` is None for all units of the layer and for a class that is still only a `label`.
    """

    layer: str
    index: int | None = None
    position: tuple[int, ...] | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.index is not None and self.index < 0:
            raise BadUnit(f"unit index {self.index} of layer {self.layer!r} is negative; indices start at 0")

    @classmethod
    def parse(cls, text: str) -> Unit:
        """Read an address; `BadUnit` says what is wrong with it."""
        layer, colon, rest = text.rpartition(":")
        if text.startswith("class:"):
            layer, rest = "class", text[len("class:") :]
        if not colon or not layer or not rest:
            raise BadUnit(f"{text!r} is no unit; {_EXAMPLES}")
        if layer == "class":
            return cls("class", label=rest)
        index, at, position = rest.partition("@")
        if at and not _POSITION.match(position):
            raise BadUnit(f"{position!r} in {text!r} is no position; {_EXAMPLES}")
        if index != "*" and not (index.isascii() and index.isdigit()):
            raise BadUnit(f"{index!r} in {text!r} is no unit index; {_EXAMPLES}")
        if index == "*" and at:
            raise BadUnit(f"{text!r} asks for all units at one position; name one unit, or drop the '@{position}'")
        where = tuple(int(part) for part in position.split(",")) if at else None
        return cls(layer, None if index == "*" else int(index), where)

    @property
    def is_class(self) -> bool:
        """Whether this is `class:…`, still to be looked up in the model's labels."""
        return self.label is not None

    def __str__(self) -> str:
        if self.label is not None:
            return f"class:{self.label}"
        index = "*" if self.index is None else str(self.index)
        at = "" if self.position is None else "@" + ",".join(map(str, self.position))
        return f"{self.layer}:{index}{at}"

"""Pictures that excite units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result


@dataclass(frozen=True, eq=False)
class VisualizeResult(Result):
    """Preferred (or least preferred) inputs of units, over several random starts.

    `images` is (units, seeds, H, W, C) uint8, `activations` (units, seeds) what the unit answers to the picture as stored,
    `starts` (units, seeds) what it answered to the random start. `zero_gradient` (units, seeds) is true where no gradient ever
    reached the picture: such a picture shows the random start and says nothing about the unit.
    """

    kind: ClassVar[str] = "visualize"

    provenance: Provenance
    units: tuple[str, ...]  # addresses, with the index: "conv1:3"
    labels: tuple[str | None, ...]  # the class's label, for class units
    images: NDArray[np.uint8]
    activations: NDArray[np.float32]
    starts: NDArray[np.float32]
    zero_gradient: NDArray[np.bool_]
    minimize: bool = False

    def index(self, unit: str) -> int:
        """Row of a unit's address."""
        return self.units.index(unit)

    def summary(self) -> dict[str, Any]:
        return {
            "minimize": self.minimize,
            "shape": list(self.images.shape),
            "units": [
                {
                    "unit": unit,
                    "label": self.labels[u],
                    "activations": self.activations[u],
                    "starts": self.starts[u],
                    "zero_gradient": self.zero_gradient[u],
                }
                for u, unit in enumerate(self.units)
            ],
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data: dict[str, Any] = {"units": self.units, "labels": self.labels, "minimize": self.minimize}
        arrays: dict[str, NDArray[Any]] = {
            "images": self.images,
            "activations": self.activations,
            "starts": self.starts,
            "zero_gradient": self.zero_gradient,
        }
        return data, arrays

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> VisualizeResult:
        return cls(provenance, tuple(data["units"]), tuple(data["labels"]), minimize=data["minimize"], **arrays)

    def pictures(self) -> Iterable[Picture]:
        word = "least preferred" if self.minimize else "preferred"
        for u, unit in enumerate(self.units):
            for s in range(self.images.shape[1]):
                note = "no gradient" if self.zero_gradient[u, s] else f"activation {self.activations[u, s]:.3g}"
                label = f" ({self.labels[u]})" if self.labels[u] else ""
                yield Picture(
                    f"{file_name(unit)}-{'sad' if self.minimize else 'happy'}-{s}",
                    self.images[u, s],
                    f"{word} input of {unit}{label}, start {s}: {note}",
                )


def file_name(unit: str) -> str:
    """A unit's address as a file name: letters, digits, dot, dash and underscore only.

    >>> file_name("features.12:42@7,7")
    'features.12_42_at_7-7'
    """
    text = unit.replace("@", "_at_").replace(",", "-").replace(":", "_").replace("#", "_call_").replace("*", "all")
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else f"~{ord(c):x}" for c in text)

"""First-layer filters as pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result
from penlight.results.visualize import file_name


@dataclass(frozen=True, eq=False)
class FiltersResult(Result):
    """The weights of a convolution that reads the input, and what each filter makes of noise when it is applied again and again.

    `filters` (units, kh, kw, C) uint8, each scaled by its own largest magnitude with zero at 128; `weights` the same numbers as they
    are; `responses` (units, H, W, C) uint8, the pattern the repeated filter settles to; `steps` (units,) applications until it did
    (0: it had not settled at the limit); `norms` (units,) the L2 norm of the weights.
    """

    kind: ClassVar[str] = "filters"

    provenance: Provenance
    layer: str
    filters: NDArray[np.uint8]
    weights: NDArray[np.float32]
    responses: NDArray[np.uint8]
    steps: NDArray[np.int32]
    norms: NDArray[np.float32]

    def summary(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "units": [
                {"unit": f"{self.layer}:{u}", "norm": self.norms[u], "steps": self.steps[u], "weights": self.weights[u]}
                for u in range(len(self.filters))
            ],
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        names = ("filters", "weights", "responses", "steps", "norms")
        return {"layer": self.layer}, {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> FiltersResult:
        return cls(provenance, data["layer"], **arrays)

    def pictures(self) -> Iterable[Picture]:
        for u in range(len(self.filters)):
            unit = f"{self.layer}:{u}"
            yield Picture(f"{file_name(unit)}-filter", self.filters[u], f"filter of {unit}")
            yield Picture(f"{file_name(unit)}-response", self.responses[u], f"noise after {unit}, again and again")

"""Top examples projected back to pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import UnknownName
from penlight.results.base import Picture, Provenance, Result
from penlight.results.visualize import file_names

_GREY, _GAP = 128, 2


@dataclass(frozen=True)
class Projection:
    """One activation projected back: the input's index in the data, the box (top, left, bottom, right) the unit sees, the picture there."""

    index: int
    activation: float
    box: tuple[int, int, int, int]
    image: NDArray[np.uint8]  # (h, w, C), zero at mid-grey


@dataclass(frozen=True, eq=False)
class ProjectionsResult(Result):
    """The top examples of some units, each projected back to pixels by a deconvnet and cut to what the unit saw.

    >>> r = penlight.project(model, survey, "conv2:7")     # doctest: +SKIP
    >>> r.of("conv2:7")[0].image.shape                     # doctest: +SKIP

    U units, k examples each: `index` (U, k) into the data, -1 where there is none; `activations` (U, k); `boxes` (U, k, 4); `images`
    (U, k, H, W, C) uint8, each picture in the upper left corner.
    """

    kind: ClassVar[str] = "projections"

    provenance: Provenance
    units: tuple[str, ...]
    index: NDArray[np.int64]
    activations: NDArray[np.float32]
    boxes: NDArray[np.int32]
    images: NDArray[np.uint8]

    def of(self, unit: str) -> list[Projection]:
        """A unit's projections in the order of its top examples; `UnknownName` if it has none here."""
        if unit not in self.units:
            raise UnknownName("projected unit", unit, self.units)
        u = self.units.index(unit)
        found = []
        for k, index in enumerate(self.index[u].tolist()):
            if index < 0:
                continue
            top, left, bottom, right = (int(v) for v in self.boxes[u, k])
            picture = self.images[u, k, : bottom - top, : right - left]
            found.append(Projection(index, float(self.activations[u, k]), (top, left, bottom, right), picture))
        return found

    def strip(self, unit: str) -> tuple[NDArray[np.uint8], list[tuple[int, int, int, int]]]:
        """A unit's projections side by side, (H, W, C), and the box (top, left, bottom, right) of each in it; `UnknownName` for others."""
        found = [one.image for one in self.of(unit)]
        if not found:
            return np.zeros((1, 1, self.images.shape[4]), np.uint8), []
        height, width = max(map(len, found)), sum(image.shape[1] + _GAP for image in found) - _GAP
        strip = np.full((height, width, self.images.shape[4]), _GREY, np.uint8)
        boxes, left = [], 0
        for image in found:
            boxes.append((0, left, image.shape[0], left + image.shape[1]))
            strip[: image.shape[0], left : left + image.shape[1]] = image
            left += image.shape[1] + _GAP
        return strip, boxes

    def summary(self) -> dict[str, Any]:
        return {
            "units": [
                {
                    "unit": unit,
                    "projections": [
                        {"index": one.index, "activation": one.activation, "box": one.box} for one in self.of(unit)
                    ],
                }
                for unit in self.units
            ]
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        names = ("index", "activations", "boxes", "images")
        return {"units": self.units}, {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> ProjectionsResult:
        return cls(provenance, tuple(data["units"]), **arrays)

    def pictures(self) -> Iterable[Picture]:
        """A strip a unit."""
        for unit, name in zip(self.units, file_names(self.units), strict=True):
            strip, boxes = self.strip(unit)
            if boxes:
                yield Picture(f"{name}-projections", strip, f"top examples of {unit}, projected back to pixels")

"""Which units feed which, read off the weights, and filters expanded down to pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadUnit, UnknownName
from penlight.results.base import Picture, Provenance, Result
from penlight.results.visualize import file_name


class Feed(NamedTuple):
    """One connection: the unit at its other end, and how strong it is.

    `share` is the part of the squared norm of all weights of the unit that is fed, in [0, 1]; `norm` the L2 norm of the connection's
    weights; `sign` their sum over the sum of their magnitudes: 1 if all excite, -1 if all inhibit; for a single weight its sign.
    """

    unit: str
    share: float
    norm: float
    sign: float


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The connections of one layer's U units, the k strongest each; a unit at the other end is a number, -1 where there is none."""

    feed: NDArray[np.int32]  # (U, k) of units that feed it, by share
    feed_share: NDArray[np.float32]
    feed_norm: NDArray[np.float32]
    feed_sign: NDArray[np.float32]
    into: NDArray[np.int32]  # (U, k) of units that it feeds, by their shares
    into_share: NDArray[np.float32]
    into_norm: NDArray[np.float32]
    into_sign: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class WeightsResult(Result):
    """Connections between the units of layers with weights, and for the first layers each unit's filter as a picture of the input.

    >>> r = penlight.survey(model, method="weights")        # doctest: +SKIP
    >>> r.fed_by("conv3:5")[0], r.feeds_into("conv3:5")     # doctest: +SKIP

    `units` gives the number of units by layer, in order; `sources` the layers that feed each one: empty where that is the input, None
    where it could not be found out. `expanded` (U, h, w, C) is the unit's weights times those of the layers below, down to pixels.
    """

    kind: ClassVar[str] = "weights"

    provenance: Provenance
    units: Mapping[str, int]
    sources: Mapping[str, tuple[str, ...] | None]
    layers: Mapping[str, LayerWeights]
    expanded: Mapping[str, NDArray[np.float32]]
    notes: tuple[str, ...] = ()

    def fed_by(self, unit: str) -> list[Feed]:
        """The units that feed it, strongest first; none where that is not known or it reads the input."""
        return self._connections(unit, "feed")

    def feeds_into(self, unit: str) -> list[Feed]:
        """The units that it feeds, those first whose weights it makes most of."""
        return self._connections(unit, "into")

    def address(self, number: int) -> str:
        """The address of a unit by its number through all layers."""
        for path, count in self.units.items():
            if number < count:
                return f"{path}:{number}"
            number -= count
        raise BadUnit(f"there are units 0 to {sum(self.units.values()) - 1} with weights")

    def _connections(self, unit: str, which: str) -> list[Feed]:
        path, _, index = unit.rpartition(":")
        if path not in self.layers:
            raise UnknownName("layer with weights", path, list(self.layers))
        layer = self.layers[path]
        if not index.isdecimal() or int(index) >= len(layer.feed):
            raise BadUnit(f"layer {path!r} has units 0 to {len(layer.feed) - 1}; {index!r} is none of them")
        columns = (getattr(layer, which + end)[int(index)].tolist() for end in ("", "_share", "_norm", "_sign"))
        return [Feed(self.address(n), *rest) for n, *rest in zip(*columns, strict=True) if n >= 0]

    def picture(self, unit: str) -> NDArray[np.uint8] | None:
        """(h, w, C) the expanded filter, zero at 128, scaled by its largest magnitude; None where there is none."""
        path, _, index = unit.rpartition(":")
        if path not in self.expanded or not index.isdecimal() or int(index) >= len(self.expanded[path]):
            return None
        weights = self.expanded[path][int(index)]
        largest = float(np.abs(weights).max(initial=0)) or 1.0
        found: NDArray[np.uint8] = np.rint(128 + 127 * weights / largest).astype(np.uint8)
        return found

    def summary(self) -> dict[str, Any]:
        return {
            "notes": self.notes,
            "layers": [
                {"layer": path, "units": self.units[path], "fed_by": sources, "expanded": path in self.expanded}
                for path, sources in self.sources.items()
            ],
            "units": [
                {
                    "unit": unit,
                    "fed_by": [one._asdict() for one in self.fed_by(unit)],
                    "feeds_into": [one._asdict() for one in self.feeds_into(unit)],
                }
                for path, count in self.units.items()
                for unit in (f"{path}:{u}" for u in range(count))
            ],
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "units": dict(self.units),
            "sources": {path: None if found is None else list(found) for path, found in self.sources.items()},
            "expanded": list(self.expanded),
            "notes": self.notes,
        }
        arrays = {
            f"{n}.{f.name}": getattr(layer, f.name)
            for n, layer in enumerate(self.layers.values())
            for f in fields(LayerWeights)
        }
        return data, {**arrays, **{f"expanded.{n}": found for n, found in enumerate(self.expanded.values())}}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> WeightsResult:
        names = [f.name for f in fields(LayerWeights)]
        return cls(
            provenance,
            data["units"],
            {path: None if found is None else tuple(found) for path, found in data["sources"].items()},
            {
                path: LayerWeights(**{name: arrays[f"{n}.{name}"] for name in names})
                for n, path in enumerate(data["units"])
            },
            {path: arrays[f"expanded.{n}"] for n, path in enumerate(data["expanded"])},
            tuple(data["notes"]),
        )

    def pictures(self) -> Iterable[Picture]:
        """The expanded filters."""
        for path, found in self.expanded.items():
            for u in range(len(found)):
                unit = f"{path}:{u}"
                shown = self.picture(unit)
                assert shown is not None
                yield Picture(f"{file_name(unit)}-expanded", shown, f"filter of {unit}, expanded to pixels")

"""Pictures of units over a grid of option values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result
from penlight.results.visualize import NO_GRADIENT, file_names


@dataclass(frozen=True)
class Sweep:
    """One axis: the option's name, its values in order, and how they are spaced ("log", "linear" or "list")."""

    name: str
    values: tuple[Any, ...]
    scale: str = "list"

    def label(self, n: int) -> str:
        """The n-th value in readable form.

        >>> Sweep("l2", (0.0, 1e-05, 1000.0)).label(1)
        '1e-5'
        """
        return readable(self.values[n])


@dataclass(frozen=True, eq=False)
class SweepResult(Result):
    """What one or two options of a method do to the pictures of some units.

    `axes` are one or two; A and B are their numbers of values, B = 1 for one axis. `images` is (units, A, B, H, W, C) uint8, the
    first start of each; smaller pictures stand in the middle of the largest. `activations` and `jittered`, the answer under small
    jitters, are (units, A, B), the mean over the starts; `zero_gradient` is true where no gradient reached the picture shown.
    """

    kind: ClassVar[str] = "sweep"

    provenance: Provenance
    axes: tuple[Sweep, ...]
    units: tuple[str, ...]
    labels: tuple[str | None, ...]
    images: NDArray[np.uint8]
    activations: NDArray[np.float32]
    jittered: NDArray[np.float32]
    zero_gradient: NDArray[np.bool_]
    minimize: bool = False

    @property
    def scores(self) -> NDArray[np.float32]:
        """(units, A, B): `jittered`, or `activations` for a unit of which no jitters are known."""
        known = np.isfinite(self.jittered).any(axis=(1, 2), keepdims=True)
        return np.where(known, self.jittered, self.activations)

    @property
    def best(self) -> NDArray[np.int64]:
        """(units, 2): where in the grid the score is highest, or lowest with `minimize`; (-1, -1) if none is a number."""
        scores = -self.scores if self.minimize else self.scores
        flat = np.where(np.isfinite(scores), scores, -np.inf).reshape(len(self.units), -1)
        found = np.stack(np.unravel_index(flat.argmax(1), scores.shape[1:]), axis=1).astype(np.int64)
        found[~np.isfinite(flat).any(1)] = -1
        return found

    def values(self, a: int, b: int = 0) -> dict[str, Any]:
        """Option values of one cell of the grid."""
        return {axis.name: axis.values[n] for axis, n in zip(self.axes, (a, b), strict=False)}

    def summary(self) -> dict[str, Any]:
        rows = []
        for u, (unit, (a, b)) in enumerate(zip(self.units, self.best.tolist(), strict=True)):
            best = None
            if a >= 0:
                best = {
                    "index": [a, b][: len(self.axes)],
                    "values": self.values(a, b),
                    "activation": self.activations[u, a, b],
                    "jittered": self.jittered[u, a, b],
                }
            rows.append(
                {
                    "unit": unit,
                    "label": self.labels[u],
                    "activations": self.activations[u],
                    "jittered": self.jittered[u],
                    "zero_gradient": self.zero_gradient[u],
                    "best": best,
                }
            )
        axes = [asdict(axis) for axis in self.axes]
        return {"minimize": self.minimize, "shape": list(self.images.shape), "axes": axes, "units": rows}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "axes": [asdict(axis) for axis in self.axes],
            "units": self.units,
            "labels": self.labels,
            "minimize": self.minimize,
        }
        names = ("images", "activations", "jittered", "zero_gradient")
        return data, {name: getattr(self, name) for name in names}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> SweepResult:
        axes = tuple(Sweep(axis["name"], tuple(axis["values"]), axis["scale"]) for axis in data["axes"])
        return cls(provenance, axes, tuple(data["units"]), tuple(data["labels"]), minimize=data["minimize"], **arrays)

    def pictures(self) -> Iterable[Picture]:
        for u, (unit, name) in enumerate(zip(self.units, file_names(self.units), strict=True)):
            label = f" ({self.labels[u]})" if self.labels[u] else ""
            for a, b in np.ndindex(self.images.shape[1:3]):
                at = ", ".join(f"{key} {readable(value)}" for key, value in self.values(a, b).items())
                note = NO_GRADIENT if self.zero_gradient[u, a, b] else f"activation {self.activations[u, a, b]:.3g}"
                if (a, b) == tuple(self.best[u].tolist()):
                    note += ", best"
                place = f"{a}" if len(self.axes) == 1 else f"{a}-{b}"
                yield Picture(f"{name}-sweep-{place}", self.images[u, a, b], f"{unit}{label}, {at}: {note}")


def readable(value: Any) -> str:
    """An option's value as it stands on an axis: figures without padding, 'yes' and 'no', text as it is."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.4g}"
        mantissa, e, power = text.partition("e")
        return f"{mantissa}e{int(power)}" if e else text
    return str(value)

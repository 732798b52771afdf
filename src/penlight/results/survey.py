"""What in the data excites each unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadUnit, UnknownName
from penlight.results.base import Picture, Provenance, Result


@dataclass(frozen=True)
class Example:
    """One input that excites a unit: its index and name in the data, where, how much, and the pixels the unit saw there."""

    index: int
    name: str
    position: tuple[int, ...]  # in the layer's map; () for a neuron
    activation: float
    box: (
        tuple[int, int, int, int] | None
    )  # top, left, bottom, right in input pixels, ends exclusive; None: not a picture


class Top(NamedTuple):
    """A unit's strongest inputs, best first: k indices into the data, where in the layer's map, and how much."""

    inputs: NDArray[np.int64]  # (k,)
    positions: NDArray[np.int32]  # (k, map axes)
    activations: NDArray[np.float32]  # (k,)


@dataclass(frozen=True, eq=False)
class LayerSurvey:
    """One layer's rows; U units, k examples, P map axes, B histogram bins, K classes of the data.

    An input's activation is the unit's maximum over positions. The histogram counts inputs by that activation, in bins common to the
    whole survey. `fires` is the share of inputs whose activation is above zero, `mean` the mean over inputs and positions,
    `mean_max` the mean over inputs of the maximum over positions. Unfilled places in the top lists hold index -1.
    """

    top_index: NDArray[np.int64]  # (U, k)
    top_activation: NDArray[np.float32]  # (U, k), descending
    top_position: NDArray[np.int32]  # (U, k, P)
    top_box: NDArray[np.int32]  # (U, k, 4), or (U, k, 0) where inputs are no pictures
    mean: NDArray[np.float64]  # (U,)
    mean_max: NDArray[np.float64]  # (U,)
    maximum: NDArray[np.float32]  # (U,)
    minimum: NDArray[np.float32]  # (U,) least of the inputs' activations
    fires: NDArray[np.float64]  # (U,) in [0, 1]
    histogram: NDArray[np.int64]  # (U, B)
    class_mean: NDArray[
        np.float64
    ]  # (U, K) mean over the class's inputs of the maximum over positions; (U, 0) without labels


@dataclass(frozen=True, eq=False)
class SurveyResult(Result):
    """Top examples and statistics of every unit of the surveyed layers, from one pass over a data set.

    >>> r = penlight.survey(model, data, top=9)        # doctest: +SKIP
    >>> r.examples("conv2:7")[0].activation                 # doctest: +SKIP
    """

    kind: ClassVar[str] = "survey"

    provenance: Provenance
    layers: Mapping[str, LayerSurvey]
    count: int  # inputs read
    names: Mapping[int, str]  # of the inputs that stand in a top list
    truth: Mapping[int, int]  # their class in the data, where it is known
    edges: NDArray[np.float64]  # (B + 1,) of all histograms
    classes: tuple[str, ...] = ()  # labels of the data
    class_count: tuple[int, ...] = ()  # inputs of each
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason) of inputs that could not be read

    def top(self, unit: str) -> Top:
        """The unit's strongest inputs, best first, as arrays. `UnknownName` or `BadUnit` if it was not surveyed."""
        survey, u = self._find(unit)
        filled = survey.top_index[u] >= 0
        return Top(survey.top_index[u][filled], survey.top_position[u][filled], survey.top_activation[u][filled])

    def examples(self, unit: str) -> list[Example]:
        """The same with names and receptive-field boxes, one value an input."""
        survey, u = self._find(unit)
        return [
            Example(
                int(index),
                self.names[int(index)],
                tuple(int(p) for p in survey.top_position[u, i]),
                float(survey.top_activation[u, i]),
                tuple(int(v) for v in survey.top_box[u, i]) if survey.top_box.shape[2] else None,  # type: ignore[arg-type]
            )
            for i, index in enumerate(survey.top_index[u])
            if index >= 0
        ]

    @property
    def statistics(self) -> list[dict[str, Any]]:
        """One row a unit: `unit`, `mean`, `mean_max`, `max`, `min`, `fires`, and `class_mean` by label if the data has labels."""
        return [self.row(f"{path}:{u}") for path, survey in self.layers.items() for u in range(len(survey.mean))]

    def row(self, unit: str) -> dict[str, Any]:
        """One unit's row of `statistics`."""
        survey, u = self._find(unit)
        row: dict[str, Any] = {
            "unit": unit,
            "mean": float(survey.mean[u]),
            "mean_max": float(survey.mean_max[u]),
            "max": float(survey.maximum[u]),
            "min": float(survey.minimum[u]),
            "fires": float(survey.fires[u]),
        }
        if self.classes:
            row["class_mean"] = dict(zip(self.classes, survey.class_mean[u].tolist(), strict=True))
        return row

    def histogram(self, unit: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(counts (B,), edges (B + 1,)) of the unit's activation over the inputs, empty bins at both ends left out."""
        survey, u = self._find(unit)
        counts = survey.histogram[u]
        filled = np.flatnonzero(counts)
        if len(filled) == 0:
            return counts[:0], self.edges[:1]
        first, last = int(filled[0]), int(filled[-1])
        return counts[first : last + 1], self.edges[first : last + 2]

    def percentile(self, unit: str, activation: float) -> float:
        """Share, in [0, 1], of the inputs that excite the unit less than `activation`, to the histogram's bin width."""
        counts, edges = self.histogram(unit)
        below = np.clip((activation - edges[:-1]) / np.diff(edges), 0.0, 1.0)
        return float((counts * below).sum() / max(int(counts.sum()), 1))

    def _find(self, unit: str) -> tuple[LayerSurvey, int]:
        path, _, index = unit.rpartition(":")
        if path not in self.layers:
            raise UnknownName("surveyed layer", path, list(self.layers))
        survey = self.layers[path]
        if not index.isdigit() or int(index) >= len(survey.mean):
            raise BadUnit(f"layer {path!r} has units 0 to {len(survey.mean) - 1}; {index!r} is none of them")
        return survey, int(index)

    def summary(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "classes": self.classes,
            "class_count": self.class_count,
            "units": [
                {
                    **row,
                    "top": [
                        {
                            "index": e.index,
                            "name": e.name,
                            "position": e.position,
                            "activation": e.activation,
                            "box": e.box,
                        }
                        for e in self.examples(row["unit"])
                    ],
                    "histogram": dict(zip(("counts", "edges"), self.histogram(row["unit"]), strict=True)),
                }
                for row in self.statistics
            ],
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "layers": list(self.layers),
            "count": self.count,
            "names": self.names,
            "truth": self.truth,
            "classes": self.classes,
            "class_count": self.class_count,
            "skipped": self.skipped,
        }
        arrays = {
            f"{n}.{f.name}": getattr(survey, f.name)
            for n, survey in enumerate(self.layers.values())
            for f in fields(LayerSurvey)
        }
        return data, {"edges": self.edges, **arrays}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> SurveyResult:
        layers = {
            path: LayerSurvey(**{f.name: arrays[f"{n}.{f.name}"] for f in fields(LayerSurvey)})
            for n, path in enumerate(data["layers"])
        }
        return cls(
            provenance,
            layers,
            data["count"],
            {int(i): name for i, name in data["names"].items()},
            {int(i): label for i, label in data["truth"].items()},
            arrays["edges"],
            tuple(data["classes"]),
            tuple(data["class_count"]),
            tuple((name, reason) for name, reason in data["skipped"]),
        )

    def pictures(self) -> Iterable[Picture]:
        return ()

"""What in the data excites each unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result, located
from penlight.results.labels import Label, Labels, class_labels


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


class Twin(NamedTuple):
    """An input that would stand among a unit's examples, but is nearly the same picture as one that stands higher."""

    input: int
    name: str
    activation: float
    of: int  # the example that stands for it


def _none(*shape: int, kind: Any = np.float32) -> Any:
    return np.zeros(shape, kind)


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
    bottom_index: NDArray[np.int64] = field(default_factory=lambda: _none(0, 0, kind=np.int64))  # (U, b)
    bottom_activation: NDArray[np.float32] = field(default_factory=lambda: _none(0, 0))  # ascending
    bottom_position: NDArray[np.int32] = field(default_factory=lambda: _none(0, 0, 0, kind=np.int32))
    bottom_box: NDArray[np.int32] = field(default_factory=lambda: _none(0, 0, 0, kind=np.int32))
    spare: NDArray[np.int64] = field(default_factory=lambda: _none(0, 0, 3, kind=np.int64))  # (U, s, 3)
    spare_activation: NDArray[np.float32] = field(default_factory=lambda: _none(0, 0))  # (U, s)
    spare_place: NDArray[np.int32] = field(
        default_factory=lambda: _none(0, 0, 0, kind=np.int32)
    )  # (U, s, P + 4) position, box
    auroc: NDArray[np.float32] = field(
        default_factory=lambda: _none(0, 0)
    )  # (U, K) of the classes; NaN where one is empty
    auroc_error: NDArray[np.float32] = field(default_factory=lambda: _none(0, 0))  # (U, K) at most so far off
    auroc_z: NDArray[np.float32] = field(default_factory=lambda: _none(0, 0))  # (U, K) Mann and Whitney's
    peaks: NDArray[np.float32] = field(default_factory=lambda: _none(0, 0))  # (U, n)
    class_histogram: NDArray[np.int32] = field(default_factory=lambda: _none(0, 0, 0, kind=np.int32))  # (U, K, bins)


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
    size: int = 0  # inputs the data has, of which a shard reads a part
    scored: str = ""  # how the classes are scored: "exact", "histogram", or why they are not
    peak_class: NDArray[np.int32] = field(default_factory=lambda: _none(0, kind=np.int32))  # (n,) of a shard's `peaks`
    marks: Mapping[int, NDArray[np.uint8]] = field(
        default_factory=dict
    )  # by which twins are known, of what stands in a list

    def top(self, unit: str) -> Top:
        """The unit's strongest inputs, best first, as arrays. `UnknownName` or `BadUnit` if it was not surveyed."""
        survey, u = self._find(unit)
        filled = survey.top_index[u] >= 0
        return Top(survey.top_index[u][filled], survey.top_position[u][filled], survey.top_activation[u][filled])

    def examples(self, unit: str) -> list[Example]:
        """The same with names and receptive-field boxes, one value an input."""
        return self._examples(unit, "top")

    def bottom(self, unit: str) -> list[Example]:
        """The inputs that excite the unit least, least first; none where the survey kept none (option `bottom`).

        An input's activation is what it is everywhere here, the unit's maximum over positions: on these inputs nothing anywhere excites
        the unit, and the position is where it came nearest. A unit that can be negative has its most negative inputs here; one behind a
        ReLU has inputs that leave it at 0, the earliest of them.
        """
        return self._examples(unit, "bottom")

    def _examples(self, unit: str, which: str) -> list[Example]:
        survey, u = self._find(unit)
        index, position, activation, box = (
            getattr(survey, f"{which}_{name}") for name in ("index", "position", "activation", "box")
        )
        if not len(index):
            return []
        return [
            Example(
                int(index[u, i]),
                self.names[int(index[u, i])],
                tuple(int(p) for p in position[u, i]),
                float(activation[u, i]),
                tuple(int(v) for v in box[u, i]) if box.shape[2] else None,  # type: ignore[arg-type]
            )
            for i in np.flatnonzero(index[u] >= 0)
        ]

    def twins(self, unit: str) -> list[Twin]:
        """Inputs left out of the unit's top examples because they are nearly the same picture as a better one, best first."""
        survey, u = self._find(unit)
        if not survey.spare.shape[1]:
            return []
        return [
            Twin(int(index), self.names[int(index)], float(activation), int(of))
            for (which, index, of), activation in zip(survey.spare[u], survey.spare_activation[u], strict=True)
            if which == 0 and index >= 0 and of >= 0
        ]

    @cached_property
    def labels(self) -> Labels:
        """A row a unit: the class it tells best from the others, the area under the ROC curve, and how that was found.

        >>> print(r.labels.of("conv2:7"))                   # doctest: +SKIP
        C, AUROC 0.98; next: G, 0.81; not I, 0.04

        The score of an input is the unit's activation. A class is named only if the area is above chance by Mann and Whitney's test
        at 5 % over all pairs of unit and class (Bonferroni). Empty where the data has no labels or they were not scored (`scored`).
        """
        if not self.classes or self.scored not in ("exact", "histogram"):
            return Labels((), 0)
        return class_labels(
            {path: (rows.auroc, rows.auroc_error, rows.auroc_z) for path, rows in self.layers.items()},
            self.classes,
            self.count,
            self.scored,
        )

    def label(self, unit: str) -> Label | None:
        """The unit's row of `labels`, None where there is none."""
        self._find(unit)
        return self.labels.of(unit)

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
        return located(self.layers, unit)

    def summary(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "classes": self.classes,
            "class_count": self.class_count,
            "scored": self.scored,
            "tested": self.labels.tested,
            "units": [{**row, **self._told(row["unit"])} for row in self.statistics],
        }

    def _told(self, unit: str) -> dict[str, Any]:
        """Lists, label and histogram of a unit for `summary`."""
        label = self.label(unit)
        least = self.bottom(unit)
        twins = self.twins(unit)
        return {
            "top": [vars(e) for e in self.examples(unit)],
            **({"bottom": [vars(e) for e in least]} if least else {}),
            **({"twins": [twin._asdict() for twin in twins]} if twins else {}),
            **({"label": label._asdict()} if label is not None else {}),
            "histogram": dict(zip(("counts", "edges"), self.histogram(unit), strict=True)),
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
            "size": self.size,
            "scored": self.scored,
            "marked": list(self.marks),
        }
        arrays = {
            f"{n}.{f.name}": getattr(survey, f.name)
            for n, survey in enumerate(self.layers.values())
            for f in fields(LayerSurvey)
        }
        marks = np.stack(list(self.marks.values())) if self.marks else np.zeros((0, 0), np.uint8)
        return data, {"edges": self.edges, "peak_class": self.peak_class, "marks": marks, **arrays}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> SurveyResult:
        layers = {
            path: LayerSurvey(
                **{f.name: arrays[name] for f in fields(LayerSurvey) if (name := f"{n}.{f.name}") in arrays}
            )
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
            data.get("size", 0),
            data.get("scored", ""),
            arrays.get("peak_class", _none(0, kind=np.int32)),
            dict(zip(data.get("marked", ()), arrays.get("marks", ()), strict=True)),
        )

    def pictures(self) -> Iterable[Picture]:
        return ()

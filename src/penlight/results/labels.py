"""What units are called, and on what evidence."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any, ClassVar, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from penlight.errors import UnknownName
from penlight.results.base import Picture, Provenance, Result

NEXT = 3  # labels named after the best
CHANCE = 0.05  # of one false label among all pairs that were tested
_AGAINST = 0.1  # area below which a unit speaks against a class


class Label(NamedTuple):
    """One unit's row of a table of labels.

    >>> str(Label("conv2:7", "C", 0.981, "AUROC, exact", "AUROC", (("G", 0.81),), (("I", 0.04),)))
    'C, AUROC 0.98; next: G, 0.81; not I, 0.04'

    `label` is None where no score is above chance, or above the least that makes a label; `score` is then the best all the same, and
    `next` begins with it. `against` are classes that leave the unit lower than the others do.
    """

    unit: str
    label: str | None
    score: float
    how: str  # how it was scored, in words
    measure: str = "AUROC"
    next: tuple[tuple[str, float], ...] = ()
    against: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        first = f"{self.label}, {self.measure} {self.score:.2f}" if self.label is not None else "no label"
        word = "next" if self.label is not None else "best"
        scored = [one for one in self.next if not math.isnan(one[1])]  # a unit that never changes has no scores
        more = [f"{word}: {scored[0][0]}, {scored[0][1]:.2f}"] if scored else []
        return "; ".join([first, *more, *(f"not {name}, {score:.2f}" for name, score in self.against)])


class Labels(Sequence[Label]):
    """A table: a row a unit, in order. `tested` is the number of pairs of unit and label that were looked at."""

    def __init__(self, rows: Iterable[Label], tested: int) -> None:
        self._rows = tuple(rows)
        self._by_unit = {row.unit: row for row in self._rows}
        self.tested = tested

    @overload
    def __getitem__(self, place: int) -> Label: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Label]: ...

    def __getitem__(self, place: int | slice) -> Label | Sequence[Label]:
        return self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Label]:
        return iter(self._rows)

    def of(self, unit: str) -> Label | None:
        """The unit's row, None where it has none."""
        return self._by_unit.get(unit)


def class_labels(
    layers: Mapping[str, tuple[NDArray[Any], NDArray[Any], NDArray[Any]]],
    classes: Sequence[str],
    count: int,
    scored: str,
) -> Labels:
    """The table of a survey's classes from (area, its error, z), each (U, K), by layer."""
    tested = sum(int(np.isfinite(area).sum()) for area, _, _ in layers.values())
    limit = NormalDist().inv_cdf(1 - CHANCE / 2 / max(tested, 1))
    rows = (
        _class_label(f"{path}:{u}", area[u], error[u], z[u] > limit, z[u] < -limit, classes, count, scored)
        for path, (area, error, z) in layers.items()
        for u in range(len(area))
    )
    return Labels(rows, tested)


def _class_label(
    unit: str, area: NDArray[Any], error: NDArray[Any], above: NDArray[Any], below: NDArray[Any],
    classes: Sequence[str], count: int, scored: str,
) -> Label:  # fmt: skip
    order = [int(k) for k in np.argsort(-np.nan_to_num(area, nan=-1.0), kind="stable") if np.isfinite(area[k])]
    best = next((k for k in order if above[k]), None)
    how = f"AUROC over {count:,} inputs, exact"
    if scored == "histogram" and order:
        worst = max(float(error[order[0] if best is None else best]), 0.0005)
        how = f"AUROC over {count:,} inputs, from histograms, to ±{worst:.3f}"
    ranked = [(classes[k], float(area[k])) for k in order if k != best]
    against = [(classes[k], float(area[k])) for k in reversed(order) if below[k] and area[k] <= _AGAINST]
    score = float(area[best]) if best is not None else ranked[0][1] if ranked else float("nan")
    label = None if best is None else classes[best]
    return Label(unit, label, score, how, "AUROC", tuple(ranked[:NEXT]), tuple(against[:NEXT]))


@dataclass(frozen=True, eq=False)
class LabelsResult(Result):
    """Labels of units by another measure than a survey's classes: overlap with drawn concepts, or an embedding's words.

    >>> r.labels.of("conv5:3"), r.ranked("conv5:3")[:2]                 # doctest: +SKIP

    For every layer, U units and the k best of the `words` each: `index` (U, k), descending by `score` (U, k); `numbers` are further
    values of each unit by name, (U,), for dissect the threshold and the share of places above it. A unit is labelled if its best
    score is a number and at least `least`.
    """

    kind: ClassVar[str] = "labels"

    provenance: Provenance
    words: tuple[str, ...]
    index: Mapping[str, NDArray[np.int32]]
    score: Mapping[str, NDArray[np.float32]]
    numbers: Mapping[str, Mapping[str, NDArray[np.float64]]]
    measure: str
    how: str
    least: float | None  # None: any score makes a label
    count: int  # inputs looked at
    notes: tuple[str, ...] = ()

    @cached_property
    def labels(self) -> Labels:
        """The table."""
        rows = (self._label(path, u) for path, index in self.index.items() for u in range(len(index)))
        return Labels(rows, sum(len(index) for index in self.index.values()) * len(self.words))

    def ranked(self, unit: str) -> list[tuple[str, float]]:
        """(word, score) of a unit, best first; `UnknownName` for a unit that was not looked at."""
        path, _, number = unit.rpartition(":")
        if path not in self.index or not number.isdecimal() or int(number) >= len(self.index[path]):
            raise UnknownName("labelled unit", unit, [f"{p}:0" for p in self.index])
        index, score = self.index[path][int(number)], self.score[path][int(number)]
        return [(self.words[i], float(s)) for i, s in zip(index, score, strict=True)]

    def detectors(self, path: str) -> tuple[int, int]:
        """(units with a label, different labels among them) of a layer, as Network Dissection counts them."""
        found = [label for u in range(len(self.index[path])) if (label := self._label(path, u).label) is not None]
        return len(found), len(set(found))

    def _label(self, path: str, u: int) -> Label:
        ranked = self.ranked(f"{path}:{u}")
        named = bool(ranked) and bool(np.isfinite(ranked[0][1])) and ranked[0][1] >= (self.least or -np.inf)
        score = ranked[0][1] if ranked else float("nan")
        following = tuple(ranked[1 : 1 + NEXT] if named else ranked[:NEXT])
        return Label(f"{path}:{u}", ranked[0][0] if named else None, score, self.how, self.measure, following)

    def summary(self) -> dict[str, Any]:
        return {
            "measure": self.measure,
            "how": self.how,
            "least": self.least,
            "count": self.count,
            "words": len(self.words),
            "notes": self.notes,
            "layers": [
                {
                    "layer": path,
                    "units": len(index),
                    **dict(zip(("labelled", "different"), self.detectors(path), strict=True)),
                }
                for path, index in self.index.items()
            ],
            "units": [
                {**row._asdict(), **{name: values[u] for name, values in self.numbers[path].items()}}
                for path, index in self.index.items()
                for u in range(len(index))
                for row in [self._label(path, u)]
            ],
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "words": self.words,
            "layers": list(self.index),
            "measure": self.measure,
            "how": self.how,
            "least": self.least,
            "count": self.count,
            "notes": self.notes,
        }
        arrays: dict[str, NDArray[Any]] = {}
        for n, path in enumerate(self.index):
            arrays |= {f"{n}.index": self.index[path], f"{n}.score": self.score[path]}
            arrays |= {f"{n}.number.{name}": values for name, values in self.numbers[path].items()}
        return data, arrays

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> LabelsResult:
        paths = data["layers"]
        numbers = {
            path: {name.split(".", 2)[2]: found for name, found in arrays.items() if name.startswith(f"{n}.number.")}
            for n, path in enumerate(paths)
        }
        return cls(
            provenance,
            tuple(data["words"]),
            {path: arrays[f"{n}.index"] for n, path in enumerate(paths)},
            {path: arrays[f"{n}.score"] for n, path in enumerate(paths)},
            numbers,
            data["measure"],
            data["how"],
            data["least"],
            data["count"],
            tuple(data["notes"]),
        )

    def pictures(self) -> Iterable[Picture]:
        return ()

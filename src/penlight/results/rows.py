"""Rows of a table that drive units most, beside the real rows they are nearest to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.errors import UnknownName
from penlight.results.base import Picture, Provenance, Result
from penlight.results.columns import Row, TableColumn, html_table, read_column

_SHOWN = 8  # units in a notebook
Floats = NDArray[np.float64]
_ARRAYS = ("values", "activations", "scores", "distance", "percentile", "nearest", "apart", "best", "flat")


class Ideal(NamedTuple):
    """The best row that was found for a unit, and two real rows beside it."""

    values: Floats  # (C,) in the columns' own units
    activation: float
    percentile: float  # share, in [0, 1], of the real rows that lie nearer to the middle of the data
    nearest: Row  # the real row most like it
    apart: float  # its distance from that row, in standard deviations of the columns
    best: Row  # the real row that drives the unit most


@dataclass(frozen=True, eq=False)
class RowsResult(Result):
    """For every unit the row, within the range of the data, that drives it most (or least), from several starts.

    >>> r = penlight.visualize("biopsies", "class:malignant")        # doctest: +SKIP
    >>> r.ideal("class:malignant").values, r.flat                    # doctest: +SKIP

    Arrays are (units, seeds) if nothing else is said; C columns.

    values        (units, seeds, C) in the columns' own units, a category as its position
    activations   of the unit for these rows
    scores        what was made as large as possible: the activation, in the unit's standard deviations, less the penalty; with `minimize`
                  the activation counts negatively
    distance      from the middle of the data, by its covariance (Mahalanobis); `typical` is the median of the real rows
    percentile    share, in [0, 1], of the real rows that lie nearer to the middle
    nearest       index of the real row most like it, and `apart`, how far off that is in standard deviations of the columns
    best          (units,) index of the real row that drives the unit most (least)
    flat          (units,) bool: no row that was tried changes the unit; its row is then an ordinary real one
    real          values (C,) and activations of those real rows by index; `real_activation` by (unit, index)
    """

    kind: ClassVar[str] = "rows"

    provenance: Provenance
    units: tuple[str, ...]
    labels: tuple[str | None, ...]
    table: tuple[TableColumn, ...]
    values: Floats
    activations: Floats
    scores: Floats
    distance: Floats
    percentile: Floats
    nearest: NDArray[np.int64]
    apart: Floats
    best: NDArray[np.int64]
    flat: NDArray[np.bool_]
    real: Mapping[int, Floats]
    names: Mapping[int, str]
    truth: Mapping[int, str]
    real_activation: Mapping[int, Floats]  # (units,) of every real row that is named
    typical: float
    minimize: bool = False
    count: int = 0  # real rows read
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def index(self, unit: str) -> int:
        """Place of a unit, by its address or as `class:LABEL`; `UnknownName` if it is not among them."""
        named = [f"class:{label}" for label in self.labels]
        if unit in named and unit not in self.units:
            return named.index(unit)
        if unit not in self.units:
            raise UnknownName("unit", unit, self.units)
        return self.units.index(unit)

    def ideal(self, unit: str) -> Ideal:
        """The best of the unit's starts."""
        u = self.index(unit)
        s = int(np.argmax(self.scores[u]))
        return Ideal(
            self.values[u, s],
            float(self.activations[u, s]),
            float(self.percentile[u, s]),
            self.row(u, int(self.nearest[u, s])),
            float(self.apart[u, s]),
            self.row(u, int(self.best[u])),
        )

    def row(self, u: int, index: int) -> Row:
        """A real row that is named, with what it makes of unit number `u`."""
        activation = float(self.real_activation[index][u])
        return Row(index, self.names[index], activation, self.real[index], self.truth.get(index))

    def summary(self) -> dict[str, Any]:
        return {
            "minimize": self.minimize,
            "count": self.count,
            "typical": self.typical,
            "notes": self.notes,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "units": [self._told(u, unit) for u, unit in enumerate(self.units)],
        }

    def _told(self, u: int, unit: str) -> dict[str, Any]:
        ideal = self.ideal(unit)
        return {
            "unit": unit,
            "label": self.labels[u],
            "flat": self.flat[u],
            "activation": ideal.activation,
            "percentile": ideal.percentile,
            "apart": ideal.apart,
            "row": self._words(ideal.values),
            "nearest": self._row_told(ideal.nearest),
            "best": self._row_told(ideal.best),
            "starts": [
                {
                    "activation": self.activations[u, s],
                    "score": self.scores[u, s],
                    "percentile": self.percentile[u, s],
                    "row": self._words(self.values[u, s]),
                }
                for s in range(self.values.shape[1])
            ],
        }

    def _row_told(self, row: Row) -> dict[str, Any]:
        return {**vars(row), "values": self._words(row.values)}

    def _words(self, values: Floats) -> dict[str, Any]:
        return {
            column.name: column.text(value) if column.values else value
            for column, value in zip(self.table, values.tolist(), strict=True)
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "units": self.units,
            "labels": self.labels,
            "table": [vars(column) for column in self.table],
            "index": list(self.real),
            "names": self.names,
            "truth": self.truth,
            "typical": self.typical,
            "minimize": self.minimize,
            "count": self.count,
            "skipped": self.skipped,
            "notes": self.notes,
        }
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays["real"] = np.stack(list(self.real.values()))
        arrays["real_activation"] = np.stack([self.real_activation[i] for i in self.real])
        return data, arrays

    @classmethod
    def from_state(cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> RowsResult:
        index = [int(i) for i in data["index"]]
        return cls(
            provenance,
            tuple(data["units"]),
            tuple(data["labels"]),
            tuple(read_column(one) for one in data["table"]),
            **{name: arrays[name] for name in _ARRAYS},
            real=dict(zip(index, arrays["real"], strict=True)),
            names={int(i): name for i, name in data["names"].items()},
            truth={int(i): name for i, name in data["truth"].items()},
            real_activation=dict(zip(index, arrays["real_activation"], strict=True)),
            typical=data["typical"],
            minimize=data["minimize"],
            count=data["count"],
            skipped=tuple((name, reason) for name, reason in data["skipped"]),
            notes=tuple(data["notes"]),
        )

    def pictures(self) -> Iterable[Picture]:
        return ()

    def _repr_html_(self) -> str:
        shown = [self.ideal(unit) for unit in self.units[:_SHOWN]]
        rows = [
            (column.name, *(column.text(float(ideal.values[n])) for ideal in shown))
            for n, column in enumerate(self.table)
        ]
        rows.append(("activation", *(f"{ideal.activation:.4g}" for ideal in shown)))
        return html_table(("", *self.units[:_SHOWN]), rows)

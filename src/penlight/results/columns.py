"""Which columns of a table excite each unit, at which values, and in which pairs."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.errors import UnknownName
from penlight.results.base import Picture, Provenance, Result, located
from penlight.results.labels import Label, Labels, class_labels

Floats = NDArray[np.float64]
_BINS = 24
_SHOWN = 64  # units in a notebook
_SHARE, _FACTOR = (
    0.05,
    2.0,
)  # of a column that the two measures disagree on: its share in one, how much less in the other


@dataclass(frozen=True)
class TableColumn:
    """One column of the data: its name and unit, its categories, and how its values are spread.

    `counts` (B,) of the rows in bins with `edges` (B + 1,), or of each category; `low` and `high` are the least and largest value.
    """

    name: str
    unit: str = ""
    values: tuple[str, ...] = ()
    description: str = ""
    low: float = 0.0
    high: float = 0.0
    counts: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()

    @classmethod
    def measured(cls, name: str, unit: str, values: tuple[str, ...], description: str, data: Floats) -> TableColumn:
        """A column with the spread of its raw values (N,) in some data."""
        low, high = float(data.min()), float(data.max())
        if values:
            counts = np.bincount(data.astype(np.int64), minlength=len(values))
            return cls(name, unit, values, description, low, high, tuple(counts.tolist()))
        counts, edges = np.histogram(data, _BINS, (low, high) if high > low else (low - 0.5, low + 0.5))
        return cls(name, unit, (), description, low, high, tuple(counts.tolist()), tuple(edges.tolist()))

    def text(self, value: float) -> str:
        """A raw value in words: the category's name, or the number with its unit."""
        if self.values:
            return self.values[int(value)]
        text = f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
        return f"{text} {self.unit}" if self.unit else text


class ColumnRank(NamedTuple):
    """One column as it stands for one unit, by both measures.

    `gradients` is the mean magnitude of the column's integrated gradients, in the unit's activation; `permutation` the share of the unit's
    variance that is lost when the column's values are dealt anew among the rows: above 1 where that throws it farther than it ever
    goes. Intervals are (low, high), 95 %, by bootstrap over the rows. `direction` in [-1, 1] is the rank correlation of the column's
    integrated gradients with its value: 1 if more of it excites the unit, -1 if less does; NaN for categories, of which `raised_by`
    names the one that excites most. `disagrees`: in one measure the column has a share of all columns' importance at least twice
    that in the other, and chance does not explain it.
    """

    column: str
    rank: int  # by the mean of both shares, from 1
    gradients: float
    gradients_interval: tuple[float, float]
    gradients_rank: int
    permutation: float
    permutation_interval: tuple[float, float]
    permutation_rank: int
    direction: float
    raised_by: str | None
    disagrees: bool


@dataclass(frozen=True, eq=False)
class Row:
    """One row of the data as it excites a unit."""

    index: int
    name: str
    activation: float
    values: Floats  # (columns,) in their own units
    label: str | None


class Curve(NamedTuple):
    """A unit's answer as one column goes through its range, the others as they are in the data (partial dependence).

    `grid` (G,) in the column's own units, `mean` (G,) over the rows, `individual` (I, G) of single rows.
    """

    column: str
    grid: Floats
    mean: Floats
    individual: NDArray[np.float32]

    def centred(self) -> Curve:
        """The same with every curve less its value at the grid's beginning."""
        return Curve(self.column, self.grid, self.mean - self.mean[0], self.individual - self.individual[:, :1])


class Interaction(NamedTuple):
    """How far two columns act together: `h2` is Friedman's H², the share of their joint effect that is not a sum of theirs alone.

    `share` is the variance of that part over the unit's variance; an H² near 1 with a share near 0 is of no weight.
    """

    first: str
    second: str
    h2: float
    share: float


class Joint(NamedTuple):
    """A unit's mean answer over a grid of two columns: `values` (G, H) at `first_grid` (G,) and `second_grid` (H,)."""

    first: str
    second: str
    first_grid: Floats
    second_grid: Floats
    values: Floats


@dataclass(frozen=True, eq=False)
class LayerColumns:
    """One layer's numbers; U units, C columns, G grid points, I single rows, k listed rows, P pairs, J points a joint grid, K classes.

    Curves are NaN beyond the end of a column's grid; pairs and lists that are not filled hold -1.
    """

    mean: Floats  # (U,) over all rows, as are the next four
    std: Floats
    maximum: Floats
    minimum: Floats
    fires: Floats  # share above zero
    gradients: Floats  # (U, C)
    gradients_low: Floats
    gradients_high: Floats
    direction: Floats  # (U, C)
    gap: Floats  # (U,) mean magnitude of what integrated gradients leave unexplained, over the unit's deviation
    permutation: Floats  # (U, C)
    permutation_low: Floats
    permutation_high: Floats
    agreement: Floats  # (U,) Kendall's tau-b of the two rankings
    curve: NDArray[np.float32]  # (U, C, G)
    individual: NDArray[np.float32]  # (U, C, I, G)
    top_index: NDArray[np.int64]  # (U, k)
    top_activation: Floats
    bottom_index: NDArray[np.int64]
    bottom_activation: Floats
    pair: NDArray[np.int32]  # (U, P, 2)
    h2: Floats  # (U, P)
    pair_share: Floats
    joint: NDArray[np.float32]  # (U, J, J) of the first pair; (U, 0, 0) without pairs
    auroc: NDArray[np.float32]  # (U, K); (U, 0) without classes
    auroc_error: NDArray[np.float32]
    auroc_z: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class ColumnsResult(Result):
    """For every unit the columns that move it, its answer over their values, its top rows, and the pairs that act together.

    >>> r = penlight.survey("biopsies")                              # doctest: +SKIP
    >>> r.columns("hidden1:4")[0], r.curve("hidden1:4", "worst_area").grid      # doctest: +SKIP
    >>> r.top("hidden1:4")[0].name, r.statistics, r.labels           # doctest: +SKIP

    `table` describes the columns; `grid` (C, G) and `joint_grid` (C, J) are in their own units, NaN at the end; `rows` maps an index of
    the data to the values (C,) of a row that stands in a list, `names` and `truth` to its name and class. `count` rows were read, of
    which `sampled` gave importances and curves and `paired` the interactions.
    """

    kind: ClassVar[str] = "columns"

    provenance: Provenance
    table: tuple[TableColumn, ...]
    layers: Mapping[str, LayerColumns]
    grid: Floats
    joint_grid: Floats
    rows: Mapping[int, Floats]
    names: Mapping[int, str]
    truth: Mapping[int, int]
    count: int
    sampled: int
    paired: int
    classes: tuple[str, ...] = ()
    scored: str = ""  # how the classes are scored: "exact", "histogram", or why they are not
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason) of rows that could not be read
    notes: tuple[str, ...] = ()

    @property
    def units(self) -> list[str]:
        """Addresses of all units, in order."""
        return [f"{path}:{u}" for path, layer in self.layers.items() for u in range(len(layer.mean))]

    def columns(self, unit: str) -> list[ColumnRank]:
        """All columns, those first that move the unit most."""
        layer, u = self._find(unit)
        shares = [_shares(values) for values in (layer.gradients[u], np.sqrt(layer.permutation[u]))]
        order = np.argsort(-(shares[0] + shares[1]), kind="stable")
        ranks = [_ranks(values) for values in (layer.gradients[u], layer.permutation[u])]
        apart = self.disagreement(unit)
        return [
            ColumnRank(
                self.table[c].name,
                place,
                float(layer.gradients[u, c]),
                (float(layer.gradients_low[u, c]), float(layer.gradients_high[u, c])),
                int(ranks[0][c]),
                float(layer.permutation[u, c]),
                (float(layer.permutation_low[u, c]), float(layer.permutation_high[u, c])),
                int(ranks[1][c]),
                float(layer.direction[u, c]),
                self._raised_by(layer, u, c),
                bool(apart[c]),
            )
            for place, c in enumerate(order.tolist(), 1)
        ]

    def disagreement(self, unit: str) -> NDArray[np.bool_]:
        """(C,): the columns on which the two measures disagree.

        Shares are of the integrated gradients, and of the root of the variance lost: both are then in the unit's activation.
        """
        layer, u = self._find(unit)
        first, low, high = (part[u] for part in (layer.gradients, layer.gradients_low, layer.gradients_high))
        second, bottom, top = (
            np.sqrt(part[u]) for part in (layer.permutation, layer.permutation_low, layer.permutation_high)
        )
        sums = max(float(first.sum()), 1e-300), max(float(second.sum()), 1e-300)
        one, other = first / sums[0], second / sums[1]
        more = (one >= _SHARE) & (one >= _FACTOR * other) & (low / sums[0] > top / sums[1])
        less = (other >= _SHARE) & (other >= _FACTOR * one) & (bottom / sums[1] > high / sums[0])
        found: NDArray[np.bool_] = more | less
        return found

    def agreement(self, unit: str) -> float:
        """Kendall's tau-b of the rankings by integrated gradients and by permutation, in [-1, 1]; NaN where the unit never changes."""
        layer, u = self._find(unit)
        return float(layer.agreement[u])

    def curve(self, unit: str, column: str) -> Curve:
        """The unit's answer over the range of a column."""
        layer, u = self._find(unit)
        c = self.column(column)
        some = np.isfinite(self.grid[c])
        return Curve(
            column, self.grid[c][some], layer.curve[u, c][some].astype(np.float64), layer.individual[u, c][:, some]
        )

    def column(self, name: str) -> int:
        """The number of a column; `UnknownName` offers near ones."""
        names = [column.name for column in self.table]
        if name not in names:
            raise UnknownName("column", name, names)
        return names.index(name)

    def top(self, unit: str) -> list[Row]:
        """The rows that excite the unit most, best first."""
        return self._listed(unit, "top")

    def bottom(self, unit: str) -> list[Row]:
        """The rows that excite it least, least first."""
        return self._listed(unit, "bottom")

    def interactions(self, unit: str) -> list[Interaction]:
        """Pairs among the unit's strongest columns, by the variance that only both together explain; none where they were not asked for."""
        layer, u = self._find(unit)
        return [
            Interaction(self.table[i].name, self.table[j].name, float(h2), float(share))
            for (i, j), h2, share in zip(layer.pair[u].tolist(), layer.h2[u], layer.pair_share[u], strict=True)
            if i >= 0
        ]

    def joint(self, unit: str) -> Joint | None:
        """The unit's answer over the grid of its strongest pair, None where there is none."""
        layer, u = self._find(unit)
        if not layer.joint.size or layer.pair[u, 0, 0] < 0:
            return None
        i, j = layer.pair[u, 0].tolist()
        some, other = np.isfinite(self.joint_grid[i]), np.isfinite(self.joint_grid[j])
        values = layer.joint[u][np.ix_(some, other)].astype(np.float64)
        return Joint(
            self.table[i].name, self.table[j].name, self.joint_grid[i][some], self.joint_grid[j][other], values
        )

    @cached_property
    def labels(self) -> Labels:
        """A row a unit: the class it tells best from the others, by the area under the ROC curve; see `SurveyResult.labels`."""
        if not self.classes or self.scored not in ("exact", "histogram"):
            return Labels((), 0)
        areas = {path: (layer.auroc, layer.auroc_error, layer.auroc_z) for path, layer in self.layers.items()}
        return class_labels(areas, self.classes, self.count, self.scored)

    def label(self, unit: str) -> Label | None:
        """The unit's row of `labels`, None where there is none."""
        self._find(unit)
        return self.labels.of(unit)

    @property
    def statistics(self) -> list[dict[str, Any]]:
        """One row a unit: `unit`, `mean`, `std`, `max`, `min` and `fires` (share of the rows above zero)."""
        return [self.row(unit) for unit in self.units]

    def row(self, unit: str) -> dict[str, Any]:
        """One unit's row of `statistics`."""
        layer, u = self._find(unit)
        names = {"mean": "mean", "std": "std", "max": "maximum", "min": "minimum", "fires": "fires"}
        return {"unit": unit, **{name: float(getattr(layer, own)[u]) for name, own in names.items()}}

    def overview(self, path: str) -> Floats:
        """(U, C) of a layer: each column's share of the unit's importance, by both measures, with the sign of its direction."""
        if path not in self.layers:
            raise UnknownName("surveyed layer", path, list(self.layers))
        layer = self.layers[path]
        shares = [_shares(values) for values in (layer.gradients, np.sqrt(layer.permutation))]
        sign: Floats = np.where(np.nan_to_num(layer.direction) < 0, -1.0, 1.0)
        return sign * (shares[0] + shares[1]) / 2

    def _raised_by(self, layer: LayerColumns, u: int, c: int) -> str | None:
        if not self.table[c].values or not np.isfinite(self.grid[c]).any():
            return None
        return self.table[c].text(self.grid[c][int(np.nanargmax(layer.curve[u, c]))])

    def _listed(self, unit: str, which: str) -> list[Row]:
        layer, u = self._find(unit)
        index, activation = getattr(layer, f"{which}_index")[u], getattr(layer, f"{which}_activation")[u]
        return [
            Row(i, self.names[i], float(value), self.rows[i], self.classes[self.truth[i]] if i in self.truth else None)
            for i, value in zip(index.tolist(), activation, strict=True)
            if i >= 0
        ]

    def _find(self, unit: str) -> tuple[LayerColumns, int]:
        return located(self.layers, unit)

    def summary(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "sampled": self.sampled,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
            "classes": self.classes,
            "scored": self.scored,
            "tested": self.labels.tested,
            "columns": [
                {"name": c.name, "unit": c.unit, "values": c.values, "low": c.low, "high": c.high} for c in self.table
            ],
            "notes": self.notes,
            "units": [{**row, **self._told(row["unit"])} for row in self.statistics],
        }

    def _told(self, unit: str) -> dict[str, Any]:
        """Lists, ranks and label of a unit for `summary`."""
        label, joint = self.label(unit), self.joint(unit)
        layer, u = self._find(unit)
        return {
            **({"label": label._asdict()} if label is not None else {}),
            "agreement": self.agreement(unit),
            "gap": float(layer.gap[u]),
            "columns": [column._asdict() for column in self.columns(unit)],
            "interactions": [pair._asdict() for pair in self.interactions(unit)],
            **({"joint": joint._asdict()} if joint is not None else {}),
            "top": [self._row_told(row) for row in self.top(unit)],
            "bottom": [self._row_told(row) for row in self.bottom(unit)],
        }

    def _row_told(self, row: Row) -> dict[str, Any]:
        values = {
            column.name: column.text(value) if column.values else value
            for column, value in zip(self.table, row.values.tolist(), strict=True)
        }
        return {**vars(row), "values": values}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "table": [vars(column) for column in self.table],
            "layers": list(self.layers),
            "names": self.names,
            "truth": self.truth,
            "index": list(self.rows),
            **{name: getattr(self, name) for name in _PLAIN},
        }
        rows = np.stack(list(self.rows.values())) if self.rows else np.zeros((0, len(self.table)))
        arrays = {
            f"{n}.{f.name}": getattr(layer, f.name)
            for n, layer in enumerate(self.layers.values())
            for f in fields(LayerColumns)
        }
        return data, {"grid": self.grid, "joint_grid": self.joint_grid, "rows": rows, **arrays}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> ColumnsResult:
        layers = {
            path: LayerColumns(**{f.name: arrays[f"{n}.{f.name}"] for f in fields(LayerColumns)})
            for n, path in enumerate(data["layers"])
        }
        return cls(
            provenance,
            tuple(read_column(one) for one in data["table"]),
            layers,
            arrays["grid"],
            arrays["joint_grid"],
            dict(zip(map(int, data["index"]), arrays["rows"], strict=True)),
            {int(i): name for i, name in data["names"].items()},
            {int(i): label for i, label in data["truth"].items()},
            data["count"],
            data["sampled"],
            data["paired"],
            tuple(data["classes"]),
            data["scored"],
            tuple((name, reason) for name, reason in data["skipped"]),
            tuple(data["notes"]),
        )

    def pictures(self) -> Iterable[Picture]:
        return ()

    def _repr_html_(self) -> str:
        rows = []
        for unit in self.units[:_SHOWN]:
            label = self.label(unit)
            strongest = [column for column in self.columns(unit)[:3] if column.gradients or column.permutation]
            named = ", ".join(f"{'−' if column.direction < 0 else ''}{column.column}" for column in strongest)
            rows.append((unit, (label.label if label is not None else None) or "", named or "never changes"))
        return html_table(("unit", "label", "columns that move it most"), rows, len(self.units) - len(rows))


_PLAIN = ("count", "sampled", "paired", "classes", "scored", "skipped", "notes")


def read_column(told: Mapping[str, Any]) -> TableColumn:
    """The column that `vars` told of, as JSON gives it back."""
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}
    return TableColumn(**given)


def html_table(heads: Sequence[str], rows: Sequence[Sequence[str]], rest: int = 0) -> str:
    """A plain table for a notebook; each row begins with its name."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{html.escape(text)}</td>' for text in cells)}</tr>"
        for name, *cells in rows
    )
    more = f"<p>… and {rest:,} more</p>" if rest > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _shares(values: Floats) -> Floats:
    """Each value over the sum of the last axis; 0 where all are 0."""
    whole = values.sum(-1, keepdims=True)
    found: Floats = np.divide(values, whole, out=np.zeros_like(values), where=whole > 0)
    return found


def _ranks(values: Sequence[float] | Floats) -> NDArray[np.int64]:
    """1 for the largest; of equal ones the first comes first."""
    order = np.argsort(-np.asarray(values), kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks

"""`columns`: which columns of a table excite every unit, and at which values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput
from penlight.inputs import Column, Data, TableContract, batches
from penlight.models import Model
from penlight.results.columns import ColumnsResult, LayerColumns, TableColumn
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.survey.importance import (
    Floats,
    following,
    integrated,
    interval,
    kendall,
    lost,
    permuted,
    resamples,
)
from penlight.techniques.survey.reading import Reading, surveyed
from penlight.techniques.survey.response import Pair, grid, likely, respond, surface, together
from penlight.techniques.survey.scores import BINNED, EXACT, Scores, areas, way
from penlight.techniques.survey.summary import Totals

_ROWS = 4096  # read at once
_JOINT = 12  # points a side of a joint grid
_CURVES = 128e6  # bytes of single rows' curves
_PAIRS, _EFFORT = 400, 1e9  # pairs of columns tried at most; and values read for them
Table = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Columns(Technique):
    """The columns that move each unit, ranked in two ways, its answer over their values, its top rows, and pairs that act together.

    Layers are those of the request, or the dense and activation layers and the class scores; a unit of a map counts with its maximum.
    Ranked are columns by integrated gradients from the mean row (Sundararajan et al. 2017), mean magnitude over the rows, and by
    permutation: the share of the unit's variance lost when a column is dealt anew (Breiman 2001). Both have 95 % intervals by bootstrap
    over the rows. Curves are partial dependences with single rows' (Friedman 2001; Goldstein et al. 2015), over the column's range from
    the 1st to the 99th percentile. Interaction is H² (Friedman & Popescu 2008) of pairs among the unit's strongest columns. Columns that
    go together in the data are told apart by none of these: the unit is asked about rows that do not occur.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "columns"
    paper: ClassVar[str] = (
        "Sundararajan et al. 2017, arXiv:1703.01365; Breiman 2001, doi:10.1023/A:1010933404324; Friedman & Popescu 2008, arXiv:0811.1679"
    )
    kinds: ClassVar[tuple[str, ...]] = ("table",)
    reads_data: ClassVar[bool] = True

    top: int = option(9, "rows listed of what excites each unit most, and least", low=1, high=1000)
    rows: int = option(
        1000, "rows that importances and curves are worked out on, drawn with the seed; all are read for lists and statistics",
        low=2, high=1000000,
    )  # fmt: skip
    steps: int = option(64, "steps of integrated gradients", low=1, high=10000)
    repeats: int = option(10, "times each column is dealt anew", low=1, high=1000)
    grid: int = option(20, "points of a response curve", low=2, high=1000)
    curves: int = option(20, "single rows whose own curves are kept", low=0, high=1000)
    strongest: int = option(4, "columns of each unit among which pairs are tried for interaction", low=2, high=20)
    pairs: int = option(64, "rows that interaction is worked out on; 0: no interactions", low=0, high=2000)
    score_memory: int = option(512, "MB for scoring units by class; 0: no scores", low=0, high=1000000)

    def run(self, request: Request) -> ColumnsResult:
        """`BadInput` without a table or if no row can be read; `CannotRun` if a layer's values are not finite."""
        model, data = request.model, request.data
        if not isinstance(model.contract, TableContract):
            raise BadInput(
                f"method columns is for tables; {model.reference} takes inputs of kind {model.contract.kind!r}: use survey method stream"
            )
        if data is None:
            raise BadInput("a survey of columns needs rows: give a .csv or .parquet file, a data frame or an array")
        return _Work(self, request, model, data, model.contract).result()


class _Work:
    """One survey: the rows, the layers, and what is found out about each."""

    def __init__(self, options: Columns, request: Request, model: Model, data: Data, contract: TableContract) -> None:
        self.options, self.request, self.model, self.data, self.contract = options, request, model, data, contract
        self.index, self.rows, self.classes, self.names, self.skipped = _read(data)
        network = model.prepared(keep=list(model.layers))
        layers = surveyed(model, network, {path: model.layer(path) for path in request.layers})
        self.reading = Reading(model, network, layers)
        self.notes: list[str] = []
        self.steps = 2 + len(layers) + 2 * len(contract.columns) + 2
        self.done = 0
        self.sample = self.rows[self._drawn("sample", options.rows, len(self.rows))]
        self.grid = grid_of(self.sample, contract.columns, options.grid)
        self.joint_grid = grid_of(self.sample, contract.columns, _JOINT)

    def _drawn(self, what: str, count: int, of: int) -> NDArray[np.intp]:
        """`count` of `of` places, in order, all if there are no more; from the seed."""
        if of <= count:
            return np.arange(of)
        return np.sort(self._rng(what).choice(of, count, replace=False))

    def _rng(self, what: str) -> np.random.Generator:
        return np.random.default_rng([self.request.seed, *what.encode()])

    def _advance(self) -> None:
        self.done += 1
        self.request.progress(self.done, self.steps)

    def result(self) -> ColumnsResult:
        options, parts = self.options, self.reading.parts
        totals, scores, scored = self._totals()
        base = self.reading.values(self.sample)
        self._advance()
        weights = resamples(self._rng("bootstrap"), len(self.sample))
        gradients = {path: self._gradients(path, weights) for path in parts}
        permutation = self._permutation(base, weights)
        curves = self._curves()
        shares = _shares(np.concatenate([one["gradients"] for one in gradients.values()]), permutation[0])
        pairs = self._pairs(shares, base)
        layers = {}
        for path, part in parts.items():
            own = {name: values[part] for name, values in zip(_PERMUTATION, permutation, strict=True)}
            found = gradients[path] | own | {name: values[part] for name, values in (curves | pairs).items()}
            tau = [kendall(*both) for both in zip(found["gradients"], found["permutation"], strict=True)]
            layers[path] = LayerColumns(
                **totals.of(part), **found, agreement=np.array(tau), **_scored(scores, part, len(self.data.classes))
            )
        listed = sorted(
            {int(i) for one in layers.values() for i in np.concatenate([one.top_index, one.bottom_index]).flat}
        )
        place = {int(i): n for n, i in enumerate(self.index)}
        self.done = self.steps - 1
        self._advance()
        return ColumnsResult(
            provenance(options, self.request),
            tuple(
                TableColumn.measured(c.name, c.unit, c.values, c.description, self.rows[:, n])
                for n, c in enumerate(self.contract.columns)
            ),
            layers,
            self.grid,
            self.joint_grid,
            {i: self.rows[place[i]] for i in listed if i >= 0},
            {i: self.names[place[i]] for i in listed if i >= 0},
            {i: label for i in listed if i >= 0 and (label := self.classes[place[i]]) is not None},
            len(self.rows),
            len(self.sample),
            min(options.pairs, len(self.sample)),
            tuple(self.data.classes),
            scored,
            tuple(self.skipped),
            tuple(self.notes),
        )

    def _totals(self) -> tuple[Totals, Scores | None, str]:
        """Statistics, lists and class scores from one pass over all rows."""
        units, classes = self.reading.units, len(self.data.classes)
        scored = way(len(self.data), units, classes, self.options.score_memory)
        scores = Scores(scored, len(self.rows), units, classes) if scored in (EXACT, BINNED) else None
        totals = Totals(units, self.options.top)
        for start in range(0, len(self.rows), self.reading.chunk):
            part = slice(start, start + self.reading.chunk)
            values = self.reading.values(self.rows[part])
            totals.add(self.index[part], values)
            if scores is not None:
                scores.add(values, self.classes[part])
        self._advance()
        return totals, scores, scored

    def _gradients(self, path: str, weights: Floats) -> Table:
        parts: list[Table] = []
        for block in integrated(self.reading, path, self.sample, self.options.steps):
            size = np.abs(block.values)
            drawn = np.stack([weights @ one for one in size], 1)
            low, high = interval(drawn)
            parts.append(
                {
                    "gradients": size.mean(1, dtype=np.float64),
                    "gradients_low": low,
                    "gradients_high": high,
                    "direction": self._direction(block.values),
                    "gap": block.gap,
                }
            )
        self._advance()
        return {name: np.concatenate([one[name] for one in parts]) for name in parts[0]}

    def _direction(self, attributions: NDArray[np.float32]) -> Floats:
        found = following(attributions, self.sample)
        found[:, [len(c.values) > 2 for c in self.contract.columns]] = np.nan  # categories have no order
        return found

    def _permutation(self, base: NDArray[np.float32], weights: Floats) -> tuple[Floats, Floats, Floats]:
        """(share lost, low, high), each (T, C)."""
        found = []
        for n, column in enumerate(self.contract.columns):
            rng = self._rng(f"deal {column.name}")
            orders = np.stack([rng.permutation(len(self.sample)) for _ in range(self.options.repeats)])
            found.append(lost(permuted(self.reading.values, self.sample, n, orders, base), base, weights))
            self._advance()
        share, low, high = (np.stack(part, 1) for part in zip(*found, strict=True))
        return share, low, high

    def _curves(self) -> Table:
        """`curve` (T, C, G) and `individual` (T, C, I, G)."""
        options, units = self.options, self.reading.units
        count, points = self.grid.shape
        fits = int(_CURVES / (4 * units * count * points))
        if fits < options.curves:
            self.notes.append(
                f"{fits} single rows' curves are kept instead of {options.curves}: there are {units:,} units and {count:,} columns"
            )
        single = self._drawn("single", min(options.curves, fits), len(self.sample))
        curve = np.full((units, count, points), np.nan, np.float32)
        individual = np.full((units, count, len(single), points), np.nan, np.float32)
        for n in range(count):
            places = self.grid[n][np.isfinite(self.grid[n])]
            mean, rows = respond(self.reading.values, self.sample, n, places, single)
            curve[:, n, : len(places)] = mean.T
            individual[:, n, :, : len(places)] = rows.transpose(2, 0, 1)
            self._advance()
        return {"curve": curve, "individual": individual}

    def _pairs(self, shares: Floats, base: NDArray[np.float32]) -> Table:
        """Interactions of every unit, and the surface of its first pair."""
        options, units = self.options, self.reading.units
        most = options.strongest * (options.strongest - 1) // 2 if options.pairs else 0
        pair, h2 = np.full((units, most, 2), -1, np.int32), np.zeros((units, most))
        share, joint = np.zeros((units, most)), np.full((units, *[self.joint_grid.shape[1]] * 2), np.nan, np.float32)
        if not options.pairs:
            return {"pair": pair, "h2": h2, "pair_share": share, "joint": joint[:, :0, :0]}
        limit = int(np.clip(_EFFORT / (units * options.pairs**2), 4, _PAIRS))
        tried, all_of_them = likely(shares, options.strongest, limit)
        if not all_of_them:
            self.notes.append(f"interaction was tried for the {limit} pairs of the weightiest columns only")
        few = self.sample[self._drawn("pairs", options.pairs, len(self.sample))]
        found = together(self.reading.values, few, tried, base.astype(np.float64).var(0))
        self._advance()
        for u in range(units):
            own = set(np.argsort(-shares[u], kind="stable")[: options.strongest].tolist())
            mine = [p for p in tried if own.issuperset(p) and shares[u, p[0]] > 0 and shares[u, p[1]] > 0]
            mine.sort(key=lambda p: -found[p][1][u])
            for n, one in enumerate(mine[:most]):
                pair[u, n], h2[u, n], share[u, n] = one, found[one][0][u], found[one][1][u]
        self._surfaces(pair, few, joint)
        return {"pair": pair, "h2": h2, "pair_share": share, "joint": joint}

    def _surfaces(self, pair: NDArray[np.int32], rows: Floats, joint: NDArray[np.float32]) -> None:
        """Fill in each unit's mean answer over the grid of its first pair."""
        first: dict[Pair, list[int]] = {}
        for u, (i, j) in enumerate(pair[:, 0].tolist()):
            if i >= 0:
                first.setdefault((i, j), []).append(u)
        for one, units in first.items():
            places = [self.joint_grid[c][np.isfinite(self.joint_grid[c])] for c in one]
            found = surface(self.reading.values, rows, one, *places)
            joint[units, : len(places[0]), : len(places[1])] = found[:, :, units].transpose(2, 0, 1)


_PERMUTATION = ("permutation", "permutation_low", "permutation_high")


def grid_of(rows: Floats, columns: tuple[Column, ...], points: int) -> Floats:
    """(C, points) values of every column to try."""
    most = max([points, *(len(c.values) for c in columns)])
    padded = np.full((len(columns), most), np.nan)
    for n, column in enumerate(columns):
        size = max(points, len(column.values))
        padded[n, :size] = grid(rows[:, n], column, size)
    return padded


def _read(data: Data) -> tuple[NDArray[np.int64], Floats, list[int | None], list[str], list[tuple[str, str]]]:
    """Indices, rows, classes and names of what can be read, and (name, reason) of the rest; `BadInput` if that is everything."""
    index: list[int] = []
    rows: list[NDArray[Any]] = []
    classes: list[int | None] = []
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    known = range(len(data.classes))
    for batch in batches(data, _ROWS):
        index += batch.index
        rows += [batch.inputs] if batch.index else []
        classes += [number if number in known else None for number in batch.classes]
        names += batch.names
        skipped += [(name, reason) for _, name, reason in batch.skipped]
    if not rows:
        raise BadInput(f"not one of the {len(data)} rows of {data.name} can be read; the first: {skipped[0][1]}")
    return np.array(index), np.concatenate(rows).astype(np.float64), classes, names, skipped


def _shares(gradients: Floats, permutation: Floats) -> Floats:
    """(T, C): each column's share of a unit's importance, the mean of both measures."""
    both = []
    for values in (gradients, np.sqrt(permutation)):
        whole = values.sum(1, keepdims=True)
        both.append(np.divide(values, whole, out=np.zeros_like(values), where=whole > 0))
    found: Floats = (both[0] + both[1]) / 2
    return found


def _scored(scores: Scores | None, part: slice, classes: int) -> Table:
    if scores is None:
        empty = np.zeros((part.stop - part.start, 0), np.float32)
        return {"auroc": empty, "auroc_error": empty, "auroc_z": empty}
    evidence = scores.evidence(part)
    found = areas(scores.how, evidence["peaks"], scores.peak_class, evidence["class_histogram"], classes)
    return dict(zip(("auroc", "auroc_error", "auroc_z"), found, strict=True))

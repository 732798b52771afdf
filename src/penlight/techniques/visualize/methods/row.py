"""`row`: the row of a table, within the range of the data, that drives a unit most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput, CannotRun
from penlight.inputs import Data, TableContract, batches
from penlight.models import Model, Probe
from penlight.models.probe import undisturbed
from penlight.results.columns import TableColumn
from penlight.results.rows import RowsResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.visualize.likely_rows import Candidates, Space, standard
from penlight.techniques.visualize.objectives import Neuron, Objective, UnitAt
from penlight.techniques.visualize.synthesis import asked
from penlight.techniques.visualize.targets import Target, read_targets

_TRIED = 512  # rows drawn from the ranges, beside the real ones, for starts and for whether a unit moves at all
_ROUNDS = 6  # times categories and numbers take turns at most
_AT_ONCE = 4096
_ROWS = 1024  # that climb side by side
_BETAS, _TINY = (0.9, 0.99), 1e-12
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row(Technique):
    """The row that drives a unit most, every number within its column's range in the data, every category one that occurs.

    >>> penlight.visualize("biopsies", "class:malignant").ideal("class:malignant").values      # doctest: +SKIP

    What is climbed is the activation in its standard deviations less `weight` · d² / 2D: d is the row's distance from the mean row by the
    data's covariance (Mahalanobis, shrunk as by Ledoit & Wolf 2004), D the median of the real rows'. A linear unit's row lies at about
    D / `weight`; with 0 only the ranges hold it. Numbers climb by Adam, projected to their ranges; then every value of every category,
    and of columns of few whole numbers, is tried, and so on in turns. The first start is the best row known, the others real rows at
    random. The nearest real row and the one that drives the unit most stand beside it.
    """

    verb: ClassVar[str] = "visualize"
    name: ClassVar[str] = "row"
    paper: ClassVar[str] = "Erhan et al. 2009, Visualizing Higher-Layer Features of a Deep Network; Ledoit & Wolf 2004"
    kinds: ClassVar[tuple[str, ...]] = ("table",)
    reads_data: ClassVar[bool] = True
    version: ClassVar[int] = 2

    seeds: int = option(3, "starts a unit", low=1, high=1000)
    minimize: bool = option(False, "look for the row that drives the unit least")
    weight: float = option(
        0.3, "how strongly rows unlike the data count against; 0.3 is about the rim of the real rows, 0 anything in range",
        low=0.0, high=1e6,
    )  # fmt: skip
    steps: int = option(300, "steps of each ascent", low=1, high=100000)
    rate: float = option(0.05, "first step, as a share of each column's range", low=1e-6, high=1.0)

    def run(self, request: Request) -> RowsResult:
        """`BadInput` without a table or rows, `BadUnit` or `UnknownName` for what cannot be found."""
        model, data = request.model, request.data
        contract = model.contract
        if not isinstance(contract, TableContract):
            raise BadInput(f"method row is for tables; {model.reference} takes inputs of kind {contract.kind!r}")
        if data is None:
            raise BadInput(
                "a row within the range of the data needs data: give a .csv or .parquet file, a data frame or an array"
            )
        targets = read_targets(model, asked(request), "neuron")
        real = _Real.read(data)
        space = Space(contract, real.rows, model.device)
        drawn = space.anywhere(_TRIED, np.random.default_rng(request.seed))
        found: dict[int, _Found] = {}
        with undisturbed(model.network, freeze=True):
            for some in _together(targets, max(1, _ROWS // self.seeds)):
                climb = _Climb(self, model, space, [targets[n] for n in some], request.seed)
                found.update(zip(some, climb.run(drawn), strict=True))
                request.progress(len(found), len(targets))
        return self._result(request, targets, real, space, [found[n] for n in range(len(targets))])

    def _result(
        self, request: Request, targets: Sequence[Target], real: _Real, space: Space, found: Sequence[_Found]
    ) -> RowsResult:
        values = np.stack([one.rows for one in found])
        flat = values.reshape(-1, values.shape[2])
        inputs = space.contract.normalize(flat).astype(np.float64)
        shape = values.shape[:2]
        nearest, apart = space.nearest(inputs)
        best = np.array([one.best for one in found], np.int64)
        shown = sorted({*nearest.tolist(), *best.tolist()})
        return RowsResult(
            provenance(self, request),
            tuple(target.text for target in targets),
            tuple(target.label for target in targets),
            tuple(
                TableColumn.measured(c.name, c.unit, c.values, c.description, real.rows[:, n])
                for n, c in enumerate(space.contract.columns)
            ),
            values,
            np.stack([one.activations for one in found]),
            np.stack([one.scores for one in found]),
            space.distance(inputs).reshape(shape),
            space.percentile(inputs).reshape(shape),
            real.index[nearest].reshape(shape),
            apart.reshape(shape),
            real.index[best],
            np.array([one.flat for one in found]),
            {int(real.index[n]): real.rows[n] for n in shown},
            {int(real.index[n]): real.names[n] for n in shown},
            {int(real.index[n]): label for n in shown if (label := real.labels[n]) is not None},
            {int(real.index[n]): np.array([one.real[n] for one in found]) for n in shown},
            space.typical,
            self.minimize,
            len(real.rows),
            tuple(real.skipped),
            self._notes(targets, found),
        )

    def _notes(self, targets: Sequence[Target], found: Sequence[_Found]) -> tuple[str, ...]:
        still = [target.text for target, one in zip(targets, found, strict=True) if one.flat]
        told = [
            f"no row within the range of the data changes {text}: the row shown for it is an ordinary one"
            for text in still
        ]
        return tuple(dict.fromkeys([*told, *(note for target in targets for note in target.notes)]))


@dataclass(frozen=True, eq=False)
class _Real:
    """The rows that could be read: their indices in the data, values (N, C), names and classes in words; and those that could not."""

    index: NDArray[np.int64]
    rows: Floats
    names: Sequence[str]
    labels: Sequence[str | None]
    skipped: Sequence[tuple[str, str]]

    @classmethod
    def read(cls, data: Data) -> _Real:
        parts = list(batches(data, _AT_ONCE))
        skipped = [(name, reason) for part in parts for _, name, reason in part.skipped]
        rows = [part.inputs for part in parts if part.index]
        if sum(map(len, rows)) < 2:
            told = f"; the first that cannot be read: {skipped[0][1]}" if skipped else ""
            raise BadInput(
                f"{data.name} has {sum(map(len, rows))} rows that can be read; ranges take two or more{told}"
            )
        known = range(len(data.classes))
        labels = [data.classes[c] if c in known and c is not None else None for part in parts for c in part.classes]
        return cls(
            np.array([i for part in parts for i in part.index], np.int64),
            np.concatenate(rows).astype(np.float64),
            [name for part in parts for name in part.names],
            labels,
            skipped,
        )


@dataclass(frozen=True, eq=False)
class _Found:
    """What came of one target: rows (S, C), activations and scores (S,), the best real row, all real rows' activations."""

    rows: Floats
    activations: Floats
    scores: Floats
    best: int
    real: Floats
    flat: bool


class _Climb:
    """The search for the rows of several targets that are read from the same place of a network, each for itself.

    The rows of one target follow one another: row r is one of target r // seeds.
    """

    def __init__(self, options: Row, model: Model, space: Space, targets: Sequence[Target], seed: int) -> None:
        self.options, self.model, self.space, self.targets, self.seed = options, model, space, targets, seed
        self.objectives = [_objective(target) for target in targets]
        self.sign = -1.0 if options.minimize else 1.0
        self.scales = np.ones(len(targets))

    def run(self, drawn: Floats) -> list[_Found]:
        """What was found for each target; `drawn` are rows from the ranges, beside the real ones."""
        seeds = self.options.seeds
        real = self._answers(self.space.rows)
        pool, answers = np.concatenate([self.space.rows, drawn]), np.concatenate([real, self._answers(drawn)])
        usual = int(np.argmin(self.space.distances))
        starts = np.repeat(self.space.rows[usual][None], len(self.targets) * seeds, 0)
        moving: list[int] = []
        penalties = self._penalties(pool)
        for n, target in enumerate(self.targets):
            moves = standard(answers[:, n])
            if not moves:
                continue
            moving.append(n)
            self.scales[n] = standard(real[:, n]) or moves
            rng = np.random.default_rng([self.seed, *target.text.encode()])
            best = int(np.argmax(self.sign * answers[:, n] / self.scales[n] - penalties))
            chosen = [best, *rng.integers(0, len(real), seeds - 1).tolist()]
            starts[n * seeds : (n + 1) * seeds] = pool[chosen]
        rows = self._climbed(starts, moving)
        own = np.repeat(np.arange(len(self.targets)), seeds)
        activations = self._answers(rows)[np.arange(len(rows)), own]
        scores = self.sign * activations / self.scales[own] - self._penalties(rows)
        scores[~np.isin(own, moving)] = 0.0
        parts = [slice(n * seeds, (n + 1) * seeds) for n in range(len(self.targets))]
        tops = np.argmax(self.sign * real, 0).tolist()
        return [
            _Found(rows[part], activations[part], scores[part], tops[n], real[:, n], n not in moving)
            for n, part in enumerate(parts)
        ]

    def _climbed(self, rows: Floats, targets: Sequence[int]) -> Floats:
        """Rows (B, C) of which those of `targets` were climbed, numbers and categories in turns until neither got better."""
        if not targets:
            return rows
        own = np.repeat(np.arange(len(self.targets)), self.options.seeds)
        moving = np.flatnonzero(np.isin(own, targets))
        own = own[moving]
        candidates = self._better(self.space.candidates(rows[moving]), own)
        going = np.arange(len(moving))
        for _ in range(_ROUNDS):
            if not len(going):
                break
            ascended = self._ascended(candidates.at(going), own[going])
            turned = self._better(ascended, own[going])
            candidates.put(going, turned)
            changed = own[going][(turned.categories != ascended.categories).any(1)]
            going = going[np.isin(own[going], changed)]
        climbed = rows.copy()
        climbed[moving] = self.space.raw(candidates)
        return climbed

    def _ascended(self, start: Candidates, own: NDArray[np.intp]) -> Candidates:
        """Adam on the numbers, projected to their ranges, with steps that shrink to nothing; the best of the way."""
        width, fixed = self.space.highest - self.space.lowest, self.space.fixed(start.categories)
        x = start.numbers.clone()
        first, second = torch.zeros_like(x), torch.zeros_like(x)
        kept, best = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
        for step in range(self.options.steps + 1):
            leaf = x.detach().requires_grad_()
            score = self._score(leaf, fixed, own)
            better = score.detach() > best
            best = torch.where(better, score.detach(), best)
            kept[better] = x[better]
            if step == self.options.steps or not leaf.numel():
                break
            slope = torch.autograd.grad(score.sum(), leaf)[0] if score.grad_fn is not None else torch.zeros_like(leaf)
            slope = slope * width
            first = _BETAS[0] * first + (1 - _BETAS[0]) * slope
            second = _BETAS[1] * second + (1 - _BETAS[1]) * slope**2
            ahead = first / (1 - _BETAS[0] ** (step + 1)) / ((second / (1 - _BETAS[1] ** (step + 1))).sqrt() + _TINY)
            left = 0.5 * (1 + np.cos(np.pi * step / self.options.steps))
            x = self.space.boxed(x + self.options.rate * left * width * ahead)
        return Candidates(kept, start.categories)

    @torch.no_grad()
    def _better(self, candidates: Candidates, own: NDArray[np.intp]) -> Candidates:
        """Every value of every category tried in turn, the others as they are; the best is kept."""
        categories = candidates.categories.copy()

        def scores() -> Floats:
            found = self._score(candidates.numbers, self.space.fixed(categories), own)
            return found.double().cpu().numpy()

        for place, values in enumerate(self.space.choices.values()):
            before, now = categories[:, place].copy(), scores()
            tried = []
            for value in values.tolist():
                categories[:, place] = value
                tried.append(scores())
            table = np.stack(tried)
            gain = table.max(0) > now + 1e-6 * np.abs(now)  # no turning back and forth for rounding's sake
            categories[:, place] = np.where(gain, values[table.argmax(0)], before)
        return Candidates(candidates.numbers, categories)

    def _score(self, numbers: Tensor, fixed: Tensor, own: NDArray[np.intp]) -> Tensor:
        """(B,) of rows that belong to the targets `own` (B,)."""
        inputs = self.space.inputs(numbers, fixed)
        targets, scales = torch.from_numpy(own).to(inputs.device), torch.from_numpy(self.scales[own]).to(inputs)
        found = self.sign * self._read(inputs, targets) / scales
        return found - self.options.weight * self.space.penalty(inputs) if self.options.weight else found

    @torch.no_grad()
    def _penalties(self, rows: Floats) -> Floats:
        """(B,): what is taken off the scores of rows (B, C) in their own units."""
        found: Floats = self.space.penalty(self.model.tensor(rows)).double().cpu().numpy()
        return self.options.weight * found

    @torch.no_grad()
    def _answers(self, rows: Floats) -> Floats:
        """(B, targets) for rows (B, C) in their own units."""
        parts = []
        for at in range(0, len(rows), _AT_ONCE):
            outputs = self._outputs(self.model.tensor(rows[at : at + _AT_ONCE]))
            count = torch.arange(len(rows[at : at + _AT_ONCE]), device=self.model.device)
            parts.append(torch.stack([objective(outputs, count) for objective in self.objectives], 1))
        found = torch.cat(parts).double().cpu().numpy()
        wrong = np.flatnonzero(~np.isfinite(found).all(0))
        if len(wrong):
            raise CannotRun(f"{self.targets[wrong[0]].text} is not finite for rows within the range of the data")
        return found

    def _read(self, inputs: Tensor, own: Tensor) -> Tensor:
        """(B,): the target `own` (B,) of each row."""
        outputs, rows = self._outputs(inputs), torch.arange(len(inputs), device=inputs.device)
        neurons = [objective for objective in self.objectives if isinstance(objective, Neuron)]
        if not neurons:
            return self.objectives[0](outputs, rows)
        units = torch.tensor([neuron.index for neuron in neurons], device=inputs.device)[own]
        place = neurons[0].position
        where = None if place is None else torch.tensor(place, device=inputs.device).expand(len(rows), -1)
        return UnitAt(neurons[0].layer, units, where)(outputs, rows)

    def _outputs(self, inputs: Tensor) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}

        def reader(path: str) -> Callable[[Tensor], Any]:
            layer = self.model.layers[path]
            return lambda output: kept.update({path: layer.units_first(output).clone()})

        with Probe(self.model.network, {path: reader(path) for path in self.objectives[0].layers}) as probe:
            probe(inputs)
        return kept


def _together(targets: Sequence[Target], most: int) -> Iterator[list[int]]:
    """Numbers of targets that can climb side by side: units of one layer at one position, up to so many; any other by itself."""
    groups: dict[object, list[int]] = {}
    for n, target in enumerate(targets):
        objective = _objective(target)
        alike = (objective.layer, objective.position) if isinstance(objective, Neuron) else n
        groups.setdefault(alike, []).append(n)
    for some in groups.values():
        yield from (some[at : at + most] for at in range(0, len(some), most))


def _objective(target: Target) -> Objective:
    if target.objective is not None:
        return target.objective
    assert target.unit is not None
    assert target.unit.index is not None
    return Neuron(target.unit.layer, target.unit.index, target.unit.position)

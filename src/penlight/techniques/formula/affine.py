"""`affine`: the rule that a piecewise-linear network is at one input, and how far it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import TableContract
from penlight.models import Model
from penlight.render.formula import rule_line
from penlight.results.formula import FormulaResult, Output, Rule
from penlight.techniques.contract import Request, Technique
from penlight.techniques.formula.double import double_copy
from penlight.techniques.formula.forms import Book, Form
from penlight.techniques.formula.regions import Crossing
from penlight.techniques.formula.symbolic import latex_name, relative
from penlight.techniques.formula.target import Target, copied_layers, placed, predicted, targets
from penlight.techniques.formula.tracer import Refused
from penlight.techniques.formula.variables import Variables, variables
from penlight.techniques.formula.walk import Walk
from penlight.techniques.formula.writing import Latex, Python, Writer, python_function
from penlight.techniques.options import option, provenance

TOLERANCE = 1e-6  # of the output, between the rule and the network inside the region
_TRIED = 8  # random directions along which the rule is held against the network up to the boundary
_NEAR = (0.5, 0.999)  # of the way to the boundary
_FAR = 10.0  # deviations of the columns, where there is no boundary
_SKETCH = 12  # random directions from which the slopes of all hinges are estimated
_ON = 1e-12  # of the largest distance in a block: the input lies on the hinge but for rounding
_STRONGEST = 12  # columns that are followed where not all are


@dataclass(frozen=True)
class Affine(Technique):
    """The exact affine rule f(x) = w·x + b of a piecewise-linear network at one input, with the distance to its boundary.

    For ReLU, leaky and clipped ReLUs, absolute values, maxima and all that is linear, of any size; in raw units of the input.
    """

    verb: ClassVar[str] = "formula"
    name: ClassVar[str] = "affine"
    paper: ClassVar[str] = "Montúfar et al. 2014, arXiv:1402.1869"

    directions: int = option(
        4096,
        "inputs of the network up to which every one is followed, so that all margins are exact",
        low=0,
        high=1_000_000,
    )
    critical: int = option(
        32, "hinges whose own gradient is taken where not every input is followed", low=0, high=10_000
    )
    digits: int = option(
        0, "significant digits of every number; 0: as few as keep it within 1e-6 of the network", low=0, high=17
    )
    limit: int = option(
        20_000, "terms of the expression that are written out, at most; the weights are always all there", low=1
    )

    def run(self, request: Request) -> FormulaResult:
        """The rule at `request.input` for its targets, or the class the network finds.

        `BadOption` names the module that is not piecewise linear; `CannotRun` if the rule is not the network.
        """
        model, front = request.model, variables(request.model.contract)
        if request.input is None:
            raise BadInput("the rule is that of one input: give --at with a file or data:N")
        raw = front.raw(request.input)
        walk = self._open(model, front, raw, [*request.targets, *request.units])
        value = walk.values(raw[None])[0]
        if not np.isfinite(value).all():
            raise CannotRun(
                f"{model.reference} puts out values that are not finite for this input; there is no rule there"
            )
        rng = np.random.default_rng(request.seed)
        try:
            whole = len(raw) <= self.directions
            weights, margin = self._whole(walk, request) if whole else self._partly(walk, request, rng)
            bias = value - weights @ raw
            error, tried = self._check(walk, rng, weights, bias)
        except Refused as error_:
            raise BadOption(
                f"{model.reference} is not piecewise linear: {error_}; small networks have --method symbolic, others penlight explain"
            ) from None
        margin = _rounded(margin)
        rule = Rule(raw, weights, bias, value, margin, tuple(model.contract.shape), "")
        digits, outputs, python = self._written(front, walk.asked, rule)
        checks = {
            "points": tried,
            "error": error,
            "tolerance": TOLERANCE,
            "hinges": sum(len(b.distance) for b in walk.region.blocks),
        }
        checks |= {"digits": digits} if outputs[0].expression else {}
        notes = _notes(front, margin, digits, bool(outputs[0].expression), self.limit)
        return FormulaResult(provenance(self, request), front.told, outputs, python, rule, checks, tuple(notes))

    def _open(self, model: Model, front: Variables, raw: NDArray[np.float64], wanted: Sequence[Any]) -> Walk:
        asked = targets(model, wanted)
        paths = list(dict.fromkeys(part.path for one in asked for part in one.parts))
        if not asked and model.class_layer is not None:
            paths = [model.class_layer]
        network = double_copy(model)
        outputs: dict[str, torch.Tensor] = {}
        if paths:
            with torch.no_grad():
                outputs = copied_layers(network, paths, torch.from_numpy(front.seen(raw[None])))
        chosen = [placed(model, one, outputs) for one in asked or [predicted(model, outputs)]]
        return Walk(model, network, front, raw, chosen)

    def _whole(self, walk: Walk, request: Request) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Weights and margins from every direction of the input."""
        front, count = walk.front, len(walk.raw)
        free = (~front.held).astype(np.float64)
        slopes, ahead, behind = [], [], []
        step = 256
        for start in range(0, count, step):
            part = np.arange(start, min(start + step, count))
            basis = np.zeros((len(part), count))
            basis[np.arange(len(part)), part] = 1
            found = walk.follow(basis, free[part], (free * _spread(front))[part])
            slopes.append(found[0])
            ahead += found[1]
            behind += found[2]
            request.progress(int(part[-1]) + 1, count)
        weights = np.concatenate(slopes).T
        margin: dict[str, Any] = {}
        for squares, distance, unit in (
            ("squares", "distance", "unit"),
            ("standard", "standardised", "unit_standardised"),
        ):
            near = self._nearest(walk, squares)
            margin |= {distance: near.step, unit: _unit(walk, near)}
        margin["exact"] = True
        if margin["distance"] == 0:
            beyond = self._nearest(walk, "squares", beyond=True)
            margin["next"] = {"distance": beyond.step, "unit": _unit(walk, beyond)}
        margin["columns"] = {front.names[n]: [behind[n].step, ahead[n].step] for n in range(count) if not front.held[n]}
        margin["flips"] = {
            front.names[n]: [_unit(walk, behind[n]), _unit(walk, ahead[n])] for n in range(count) if not front.held[n]
        } if front.contract.kind == "table" else {}  # fmt: skip
        return weights, margin | self._steepest(walk, weights) | self._categories(walk)

    @staticmethod
    def _nearest(walk: Walk, squares: str, beyond: bool = False) -> Crossing:
        """The hinge whose hyperplane is nearest; with `beyond` of those that the input does not lie on."""
        best = Crossing()
        for number, block in enumerate(walk.region.blocks):
            total = getattr(block, squares)
            if total is None or not len(total):
                continue
            counts = (total > 0) & (block.distance > _ON * float(block.distance.max())) if beyond else total > 0
            far = torch.where(counts, block.distance / total.sqrt(), math.inf)
            index = int(far.argmin())
            if float(far[index]) < best.step:
                best = Crossing(float(far[index]), number, index)
        return best

    def _steepest(self, walk: Walk, weights: NDArray[np.float64]) -> dict[str, Any]:
        """How far along the first output's own weights, down and up."""
        own = np.where(walk.front.held, 0.0, weights[0])
        size = float(np.linalg.norm(own))
        if size == 0:
            return {}
        _, ahead, behind = walk.follow((own / size)[None])
        return {"steepest": [behind[0].step, ahead[0].step]}

    def _categories(self, walk: Walk) -> dict[str, Any]:
        """The other values of every category that keep the rule, all else being equal."""
        contract = walk.front.contract
        if not isinstance(contract, TableContract):
            return {}
        found: dict[str, list[str]] = {}
        for n, column in enumerate(contract.columns):
            if not column.values:
                continue
            own = np.flatnonzero(contract.owners == n)
            now = int(walk.raw[own].argmax()) if column.width > 1 else int(walk.raw[own[0]])
            others = [k for k in range(len(column.values)) if k != now]
            moves = np.zeros((len(others), len(walk.raw)))
            for row, k in enumerate(others):
                if column.width > 1:
                    moves[row, own[now]], moves[row, own[k]] = -1, 1
                else:
                    moves[row, own[0]] = k - now
            _, ahead, _ = walk.follow(moves)
            found[column.name] = [column.values[k] for k, one in zip(others, ahead, strict=True) if one.step >= 1]
        return {"categories": found} if found else {}

    def _partly(
        self, walk: Walk, request: Request, rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], dict[str, Any]]:
        """Weights backwards; margins along the steepest way and the strongest columns, and those of the most critical hinges."""
        front, count = walk.front, len(walk.raw)
        sketch = rng.normal(size=(_SKETCH, count)) * ~front.held
        walk.follow(sketch, np.full(_SKETCH, 1 / math.sqrt(_SKETCH)))
        request.progress(1, 3)
        hinges = self._critical(walk)
        weights, gradients = walk.gradients(hinges)
        request.progress(2, 3)
        best, best_standard = Crossing(), Crossing()
        for (block, index), gradient in zip(hinges, gradients, strict=True):
            if gradient is None:
                continue
            own = gradient * ~front.held
            distance = float(walk.region.blocks[block].distance[index])
            for size, scaled in ((np.linalg.norm(own), False), (np.linalg.norm(own * _spread(front)), True)):
                step = distance / float(size) if size > 0 else math.inf
                if not scaled and step < best.step:
                    best = Crossing(step, block, index)
                if scaled and step < best_standard.step:
                    best_standard = Crossing(step, block, index)
        strongest = np.argsort(-np.abs(weights[0] * ~front.held), kind="stable")[:_STRONGEST]
        basis = np.zeros((len(strongest), count))
        basis[np.arange(len(strongest)), strongest] = 1
        _, ahead, behind = walk.follow(basis)
        margin = {
            "distance": best.step, "unit": _unit(walk, best),
            "standardised": best_standard.step, "unit_standardised": _unit(walk, best_standard), "exact": False,
            "columns": {front.names[n]: [behind[i].step, ahead[i].step] for i, n in enumerate(strongest)},
        } | self._steepest(walk, weights)  # fmt: skip
        for one in (*ahead, *behind):
            if one.step < margin["distance"]:
                margin |= {"distance": one.step, "unit": _unit(walk, one)}
        if min(margin.get("steepest", [math.inf])) < margin["distance"]:
            margin["distance"] = min(margin["steepest"])
        request.progress(3, 3)
        return weights, margin

    def _critical(self, walk: Walk) -> list[tuple[int, int]]:
        """The hinges that seem nearest, by the estimate of their slopes."""
        found: list[tuple[float, int, int]] = []
        for number, block in enumerate(walk.region.blocks):
            if block.squares is None or not len(block.squares):
                continue
            far = torch.where(block.squares > 0, block.distance / block.squares.sqrt(), math.inf)
            values, indices = far.topk(min(self.critical, len(far)), largest=False)
            found += [(v, number, i) for v, i in zip(values.tolist(), indices.tolist(), strict=True) if v < math.inf]
        return [(number, index) for _, number, index in sorted(found)[: self.critical]]

    def _check(
        self, walk: Walk, rng: np.random.Generator, weights: NDArray[np.float64], bias: NDArray[np.float64]
    ) -> tuple[float, int]:
        """The largest error of the rule on the way to the boundary along random directions, of the output's size."""
        front = walk.front
        ways = rng.normal(size=(_TRIED, len(walk.raw))) * _spread(front) * ~front.held
        ways /= np.maximum(np.linalg.norm(ways / _spread(front), axis=1, keepdims=True), 1e-300)
        _, ahead, _ = walk.follow(ways)
        steps = np.array([min(one.step, _FAR) for one in ahead])
        points = np.concatenate([walk.raw + share * steps[:, None] * ways for share in _NEAR] + [walk.raw[None]])
        truth, told = walk.values(points), points @ weights.T + bias
        size = np.abs(truth) + np.abs(truth[-1:]) + 1e-6 * np.abs(points) @ np.abs(weights.T) + 1e-300
        error = float((np.abs(truth - told) / size).max())
        if not error <= TOLERANCE:
            raise CannotRun(
                f"the rule differs from {walk.model.reference} by {error:.2g} of its output inside the region;"
                " the network's path may depend on the input's values"
            )
        return error, len(points)

    def _written(self, front: Variables, asked: Sequence[Target], rule: Rule) -> tuple[int, tuple[Output, ...], str]:
        lines = [
            rule_line(one.name, float(rule.value[n]), rule.weights[n], float(rule.bias[n]), rule.input, front.told)
            for n, one in enumerate(asked)
        ]
        if len(front.names) > self.limit:
            return (
                0,
                tuple(Output(one.name, one.text, "", line, "", "") for one, line in zip(asked, lines, strict=True)),
                "",
            )
        book = Book()
        seen = [book.variable(n) for n in range(len(front.names))]
        numbers = [form.terms[0][0] for form in seen]
        forms = [
            Form(float(b), tuple((numbers[n], float(c)) for n, c in enumerate(w) if c))
            for w, b in zip(rule.weights, rule.bias, strict=True)
        ]
        about = np.stack([rule.input, 1.01 * rule.input, 0.99 * rule.input])
        exact = book.values(forms, about)
        for digits in [self.digits] if self.digits else [*range(4, 13), 17]:
            if relative(exact, book.values(forms, about, digits)) <= 0.1 * TOLERANCE:
                break
        told = [
            "The affine rule at one input, from the network's inputs in raw units; it holds inside its region only."
        ]
        writer, latex = (kind(book, front.names, digits) for kind in (Writer, Latex))
        python = Python(book, front.names, digits)
        outputs = tuple(
            Output(
                one.name, one.text, writer.form(form), line, f"{latex_name(one.name)} = {latex.form(form)}",
                python_function(python, [form], [f"{one.name}. {told[0]}"]),
            )
            for one, form, line in zip(asked, forms, lines, strict=True)
        )  # fmt: skip
        whole = outputs[0].python if len(forms) == 1 else python_function(
            python, forms, [f"{', '.join(one.name for one in asked)}. {told[0]}"]
        )  # fmt: skip
        return digits, outputs, whole


def _spread(front: Variables) -> NDArray[np.float64]:
    return front.std


def _unit(walk: Walk, crossing: Crossing) -> str | None:
    return None if crossing.block < 0 else walk.unit(crossing.block, crossing.index)


def _rounded(value: Any) -> Any:
    """Infinite distances as None: never."""
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _notes(front: Variables, margin: Mapping[str, Any], digits: int, expressed: bool, limit: int) -> list[str]:
    notes = []
    if margin["distance"] is None:
        notes.append(
            "nothing ever flips" + (": the rule holds everywhere" if margin["exact"] else " where it was looked")
        )
    elif margin["distance"] == 0:
        beyond = margin.get("next", {}).get("distance")
        further = "" if beyond is None else f"; the nearest boundary that it does not lie on is {beyond:.3g} away"
        notes.append(
            f"the input lies on a boundary, at {margin['unit']}: the rule holds to one side of it only{further}"
        )
    if not margin["exact"]:
        notes.append(
            "the distance is an upper bound: the nearest of the hinges that seem most critical; columns and steepest are exact"
        )
    if not expressed:
        count = f"{len(front.names):,} terms, more than {limit:,}"
        notes.append(f"the expression is not written out: it has {count}; the weights are all there")
    elif digits < 17:
        notes.append(f"the expression's numbers are rounded to {digits} significant digits; weights and bias are not")
    if front.held.any():
        notes.append("distances move the numbers only; categories stay, and those that may change are named")
    return notes

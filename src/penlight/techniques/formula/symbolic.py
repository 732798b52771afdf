"""`symbolic`: the whole network as one expression of its inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.models import Model
from penlight.models.probe import undisturbed
from penlight.results.formula import FormulaResult, Output
from penlight.techniques.contract import Request, Technique
from penlight.techniques.formula.algebra import Expressions, TooLarge, softmax
from penlight.techniques.formula.double import double_copy
from penlight.techniques.formula.forms import FUNCTIONS, Book, Form, Interval
from penlight.techniques.formula.target import Target, default_targets, pick, placed, read_layers, targets, values
from penlight.techniques.formula.tracer import Refused, Tracer
from penlight.techniques.formula.variables import Variables, variables
from penlight.techniques.formula.writing import Latex, Python, Writer, equations, latex_lines, names, python_function
from penlight.techniques.options import option, provenance

TOLERANCE = 1e-6  # of the output: what rounding and reading may cost
_SPARE = 0.1  # of the tolerance that rounding may use: inputs that were not tried stay within it too
_WRITTEN = 32  # inputs at which the written text itself is evaluated
_PARAMETERS = 50  # for each term of the limit: a network with more parameters is not read


@dataclass(frozen=True)
class Symbolic(Technique):
    """The network as one expression of its inputs in raw units, for networks up to `limit` terms, held against the network.

    The outputs are those asked for, or all class scores before softmax. The expression is for SymPy, as text, LaTeX and Python.
    """

    verb: ClassVar[str] = "formula"
    name: ClassVar[str] = "symbolic"
    paper: ClassVar[str] = "SymPy: Meurer et al. 2017, doi:10.7717/peerj-cs.103"

    limit: int = option(20_000, "terms of the whole expression written out, at most", low=1, high=10_000_000)
    of: str = option(
        "score", "class scores before softmax, or the probabilities after it", choices=("score", "probability")
    )
    digits: int = option(
        0, "significant digits of every number; 0: as few as keep it within 1e-6 of the network", low=0, high=17
    )
    ranges: str = option(
        "none",
        "leave out what never changes anything within the data's range of every column",
        choices=("none", "data"),
    )
    inputs: int = option(
        256, "random inputs, and inputs of the data, that it is held against the network on", low=2, high=100_000
    )

    def run(self, request: Request) -> FormulaResult:
        """`BadOption` if the network is too large or computes what has no formula, `CannotRun` if the formula is not the network."""
        model, front = request.model, variables(request.model.contract)
        self._check_size(model, len(front.names))
        asked = targets(model, [*request.targets, *request.units]) or default_targets(model)
        asked = [placed(model, one, None) for one in asked]
        points = self._points(request, front)
        bounds = self._bounds(request, front)
        points = np.clip(points, *np.array(bounds).T)  # beyond the ranges it is not the network
        book = Book(bounds)
        forms = self._read(model, front, book, asked)
        if self.of == "probability":
            forms, asked = self._shares(model, book, forms, asked)
        size = book.size(forms)
        if size > self.limit:
            raise self._too_large(model, f"has {size:,} terms")
        request.progress(1, 3)
        x, shares = torch.from_numpy(front.seen(points)), self.of == "probability"
        truth = network_values(model, double_copy(model), asked, shares, x)
        digits, error = self._digits(book, forms, points, truth)
        exact = relative(truth, book.values(forms, points))
        request.progress(2, 3)
        outputs, python = written(book, forms, asked, front, digits, shares)
        error = max(error, text_error(outputs, python, front, points, truth))
        exact = exact if self.digits else error
        with undisturbed(model.network):
            own = relative(truth, network_values(model, model.network, asked, shares, x.float().to(model.device)))
        if not (exact <= TOLERANCE and math.isfinite(error)):
            raise CannotRun(
                f"the formula differs from {model.reference} by {max(exact, error):.2g} of its output;"
                " its path may depend on the input's values"
            )
        request.progress(3, 3)
        checks = {
            "inputs": len(points),
            "error": error,
            "error_float32": own,
            "tolerance": TOLERANCE,
            "terms": size,
            "digits": digits,
        }
        notes = self._told(book, digits, error, front)
        return FormulaResult(provenance(self, request), front.told, outputs, python, None, checks, tuple(notes))

    def _check_size(self, model: Model, count: int) -> None:
        parameters = sum(p.numel() for p in model.network.parameters())
        if count > self.limit:
            raise self._too_large(model, f"takes {count:,} numbers")
        if parameters > _PARAMETERS * self.limit:
            raise self._too_large(model, f"has {parameters:,} parameters")

    def _too_large(self, model: Model, counted: str) -> BadOption:
        return BadOption(
            f"{model.reference} {counted}, the whole expression may have {self.limit:,} terms; ask for the rule at one input"
            " (--at), for one unit (--unit), or raise --limit"
        )

    def _points(self, request: Request, front: Variables) -> NDArray[np.float64]:
        """(N, F): inputs of the data, if there is any, and random ones."""
        rng = np.random.default_rng(request.seed)
        points = front.random(rng, self.inputs)
        if request.data is not None:
            points = np.concatenate([front.of(request.data, self.inputs), points])
        elif self.ranges == "data":
            raise BadInput("--ranges data needs data: give --data")
        return points

    def _bounds(self, request: Request, front: Variables) -> Sequence[Interval]:
        if self.ranges == "none" or request.data is None:
            return [
                (0.0, 1.0) if held and one.value else (-math.inf, math.inf)
                for held, one in zip(front.held, front.told, strict=True)
            ]
        known = front.of(request.data, 1_000_000)
        return [(float(low), float(high)) for low, high in zip(known.min(0), known.max(0), strict=True)]

    def _read(self, model: Model, front: Variables, book: Book, asked: Sequence[Target]) -> list[Form]:
        """The forms of what was asked, from one pass that is followed operation by operation."""
        paths = tuple(dict.fromkeys(part.path for one in asked for part in one.parts))
        algebra = Expressions(book, self.limit)
        tracer = Tracer(algebra)
        x = torch.from_numpy(front.seen(front.random(np.random.default_rng(0), 1)))
        seen = [book.variable(n) for n in range(len(front.names))]
        entering = [form.shifted(-m).scaled(1 / s) for form, m, s in zip(seen, front.mean, front.std, strict=True)]
        found: dict[tuple[Any, ...], Form] = {}

        def keep(path: str, output: Tensor) -> None:
            for one in asked:
                for part in one.parts:
                    if part.path == path:
                        found[(part.path, part.index, part.position)] = algebra.forms(
                            tracer, pick(model, part, output)
                        )[0]

        network = double_copy(model)
        try:
            with torch.no_grad():
                tracer.plant(x, algebra.packed(entering, x.shape, "the input"))
                with tracer.following(network):
                    read_layers(network, paths, x, keep)
        except TooLarge as error:
            raise self._too_large(model, f"needs {error.count:,} terms by {error.where or 'its forward'}") from None
        except Refused as error:
            raise BadOption(f"{model.reference} has no formula: {error}; see penlight explain") from None
        forms = []
        for one in asked:
            total = Form()
            for part in one.parts:
                total = total + found[(part.path, part.index, part.position)].scaled(part.factor)
            forms.append(total)
        return forms

    def _shares(
        self, model: Model, book: Book, forms: list[Form], asked: list[Target]
    ) -> tuple[list[Form], list[Target]]:
        """The probabilities of classes, from all scores."""
        if model.class_layer is None:
            raise BadOption(f"{model.reference} puts out no score a class, so no probabilities; drop --of probability")
        every = default_targets(model)
        index = {one.parts: n for n, one in enumerate(every)}
        if any(one.parts not in index for one in asked):
            raise BadOption(
                "probabilities are those of classes: name them as in --unit class:LABEL, or drop --of probability"
            )
        front = variables(model.contract)
        scores = forms if [one.parts for one in asked] == list(index) else self._read(model, front, book, every)
        shares = softmax(book, scores) if len(scores) > 1 else [book.function("sigmoid", scores[0])]
        return [shares[index[one.parts]] for one in asked], asked

    def _digits(
        self, book: Book, forms: Sequence[Form], points: NDArray[np.float64], truth: NDArray[np.float64]
    ) -> tuple[int, float]:
        """The fewest digits within the tolerance, or those asked for, and their error."""
        for digits in [self.digits] if self.digits else [*range(4, 13), 17]:
            error = relative(truth, book.values(forms, points, digits))
            if error <= _SPARE * TOLERANCE:
                break
        return digits, error

    def _told(self, book: Book, digits: int, error: float, front: Variables) -> list[str]:
        notes = [f"numbers are rounded to {digits} significant digits" if digits < 17 else "numbers are not rounded"]
        if self.digits and error > TOLERANCE:
            notes.append(f"with {digits} digits the formula is up to {error:.1g} of the output away from the network")
        if self.ranges == "data":
            low, high = np.array(book.bounds).T
            told = "; ".join(
                f"{name} {a:.4g} to {b:.4g}" for name, a, b in list(zip(front.names, low, high, strict=True))[:40]
            )
            notes.append(
                f"{book.settled} terms of Max and Min never decide anything within these ranges and are left out: {told}"
            )
        held = [one for one in front.told if one.value is not None]
        if held:
            notes.append(
                f"{held[0].name} is 1 where {held[0].column} is {held[0].value!r}, else 0; so for every category"
            )
        return notes


def network_values(
    model: Model, network: nn.Module, asked: Sequence[Target], shares: bool, x: Tensor
) -> NDArray[np.float64]:
    """(N, outputs) of the user's network or a copy of it, for `x` (N, *shape); with `shares` the probabilities of these classes."""
    if not shares:
        return values(model, network, asked, x)
    scores = values(model, network, default_targets(model), x)
    every = np.exp(scores - scores.max(1, keepdims=True))
    every = every / every.sum(1, keepdims=True) if scores.shape[1] > 1 else 0.5 + 0.5 * np.tanh(0.5 * scores)
    return every[:, [one.parts[0].index for one in asked]]


def relative(truth: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """The largest difference, of the output or of its usual size, whichever is larger; the usual size is the median magnitude."""
    usual = np.median(np.abs(truth), axis=0, keepdims=True)
    size = np.maximum(np.maximum(np.abs(truth), usual), 1e-12)
    with np.errstate(invalid="ignore"):
        worst = np.abs(found - truth) / size
    return math.inf if not np.isfinite(worst).all() else float(worst.max())


def written(
    book: Book, forms: Sequence[Form], asked: Sequence[Target], front: Variables, digits: int, shares: bool = False
) -> tuple[tuple[Output, ...], str]:
    """Every output in its four forms, and one Python function for all."""
    full = Writer(book, front.names, digits)
    outputs = []
    titles = [f"p({one.name})" if shares else one.name for one in asked]
    for one, form, title in zip(asked, forms, titles, strict=True):
        named = names(book, [form], front.names)
        reader = Writer(book, front.names, digits, named)
        latex = Latex(book, front.names, digits, named)
        lines = equations(latex, [(latex_name(title), form)], " &= ")
        outputs.append(
            Output(
                one.name,
                one.text,
                full.form(form),
                "\n".join(equations(reader, [(title, form)])),
                latex_lines(lines),
                python_function(Python(book, front.names, digits, named), [form], _docstring([title], front)),
            )
        )
    if len(forms) == 1:
        return tuple(outputs), outputs[0].python
    named = names(book, forms, front.names)
    whole = python_function(Python(book, front.names, digits, named), forms, _docstring(titles, front))
    return tuple(outputs), whole


def latex_name(name: str) -> str:
    """A label as upright text, with what LaTeX would read escaped."""
    escaped = "".join({"\\": r"\backslash "}.get(c, "\\" + c if c in "_%&#${}" else c) for c in name)
    return rf"\text{{{escaped}}}"


def _docstring(titles: Sequence[str], front: Variables) -> list[str]:
    told = [f"{', '.join(titles)}, from the network's inputs in raw units."]
    known = [one for one in front.told if one.unit or one.value or one.column != one.name]
    if known and front.contract.kind == "table":
        told.append("")
        for one in known:
            words = f"1 where {one.column} is {one.value}, else 0" if one.value is not None else one.column
            told.append(f"{one.name}: {words}{f' in {one.unit}' if one.unit else ''}")
    return told


def text_error(
    outputs: Sequence[Output], python: str, front: Variables, points: NDArray[np.float64], truth: NDArray[np.float64]
) -> float:
    """The error of what is written: the expressions evaluated as text, and the Python function run."""
    few = np.unique(np.linspace(0, len(points) - 1, _WRITTEN).astype(int))
    codes = [compile(one.expression, "expression", "eval") for one in outputs]
    space: dict[str, Any] = {}
    exec(compile(python, "formula.py", "exec"), space)
    worst = 0.0
    for n in few:
        row = [float(v) for v in points[n]]
        known = {**_WORDS, **dict(zip(front.names, row, strict=True))}
        try:
            answers = [eval(code, {"__builtins__": {}}, known) for code in codes]
            told = space["f"](*row)
        except OverflowError:
            continue  # an exponential beyond the largest number, at a random input far from all data
        once = np.array([answers, [told] if len(outputs) == 1 else list(told)], np.float64)
        usual = np.maximum(np.maximum(np.abs(truth[n]), np.median(np.abs(truth), axis=0)), 1e-12)
        worst = max(worst, float((np.abs(once - truth[n]) / usual).max()))
    return worst


def _first(*cases: tuple[float, bool]) -> float:
    return next(value for value, holds in cases if holds)


_WORDS: dict[str, Any] = {
    **{name: (lambda z, f=f: float(f(np.array(z)))) for name, f in FUNCTIONS.items()},
    "Max": max, "Min": min, "Abs": abs, "Piecewise": _first, "True": True,
}  # fmt: skip

"""What a network computes, exactly: an expression of its inputs, or the affine rule that holds at one of them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result, plain
from penlight.results.heat import heat

_LEAST = 224  # pixels a side of a picture of weights


@dataclass(frozen=True)
class Variable:
    """An input of the network in raw units: its `name` in formulas, the `column` it comes from, its `unit`, and the category it
    is 1 for, where it is an indicator."""

    name: str
    column: str
    unit: str = ""
    value: str | None = None


@dataclass(frozen=True)
class Output:
    """One output: its `name`, the `unit` it is, and the formula as SymPy reads it, for a reader, as LaTeX and as a Python function.

    `expression` is '' where it would have more terms than were allowed.
    """

    name: str
    unit: str
    expression: str
    text: str
    latex: str
    python: str


@dataclass(frozen=True, eq=False)
class Rule:
    """The affine rule at one input: `value` = `weights` · `input` + `bias`, exactly, as far as `margin` says.

    input      (F,) raw
    weights    (outputs, F), raw units, in the order of the network's inputs
    bias       (outputs,)
    value      (outputs,)
    margin     how far the input may move before a ReLU or a maximum flips: `distance` (L2, raw units), `standardised` (the same in
               deviations of the columns), `exact` or an upper bound, the `unit` that flips, and `columns`: name → [down, up], how far
               that column alone may move, None where nothing ever flips
    shape      of the input
    source     what it was read from
    """

    input: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    value: NDArray[np.float64]
    margin: Mapping[str, Any]
    shape: tuple[int, ...]
    source: str = ""

    @property
    def contributions(self) -> NDArray[np.float64]:
        """(outputs, F): weight times input."""
        return self.weights * self.input


@dataclass(frozen=True, eq=False)
class FormulaResult(Result):
    """The network as an expression.

    >>> r = penlight.formula("biopsies", at="data:0")         # doctest: +SKIP
    >>> r.expressions, r.weights, r.bias, r.margin            # doctest: +SKIP
    >>> print(r.python)                                       # doctest: +SKIP

    `variables` are the network's inputs in raw units; `rule` is there where the formula holds at one input. `checks` are the numbers
    by which it was held against the network.
    """

    kind: ClassVar[str] = "formula"

    provenance: Provenance
    told: tuple[Variable, ...]
    outputs: tuple[Output, ...]
    python: str
    rule: Rule | None = None
    checks: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        """The names of the variables, in the order of the network's inputs."""
        return tuple(one.name for one in self.told)

    @property
    def expressions(self) -> tuple[str, ...]:
        """One an output, as `sympy.sympify` reads it."""
        return tuple(one.expression for one in self.outputs if one.expression)

    @property
    def text(self) -> str:
        """For a reader: 'name = …', large formulas with names for their parts."""
        return "\n\n".join(one.text for one in self.outputs)

    @property
    def latex(self) -> str:
        """In LaTeX, for a display of its own each."""
        return "\n\n".join(one.latex for one in self.outputs)

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """(F,), or (outputs, F) where several were asked for; None without an input."""
        if self.rule is None:
            return None
        return self.rule.weights[0] if len(self.outputs) == 1 else self.rule.weights

    @property
    def bias(self) -> float | NDArray[np.float64] | None:
        """One number an output."""
        if self.rule is None:
            return None
        return float(self.rule.bias[0]) if len(self.outputs) == 1 else self.rule.bias

    @property
    def margin(self) -> Mapping[str, Any] | None:
        """How far the rule holds, see `Rule`."""
        return None if self.rule is None else self.rule.margin

    def sympy(self) -> list[Any]:
        """The expressions as SymPy's, with the variables as symbols."""
        from sympy import Symbol, sympify  # type: ignore[import-untyped]

        symbols = {name: Symbol(name) for name in self.variables}
        return [sympify(one, locals=symbols) for one in self.expressions]

    def summary(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "variables": list(self.variables),
            "expressions": list(self.expressions),
            "outputs": [{"name": one.name, "unit": one.unit} for one in self.outputs],
        }
        if any(one.column != one.name or one.unit or one.value for one in self.told) and len(self.told) <= 4096:
            told["columns"] = [asdict(one) for one in self.told]
        if self.rule is not None:
            told |= {
                "target": {
                    "unit": self.outputs[0].unit,
                    "name": self.outputs[0].name,
                    "value": float(self.rule.value[0]),
                },
                "at": self.rule.source,
                "input": self.rule.input,
                "value": self.rule.value if len(self.outputs) > 1 else float(self.rule.value[0]),
                "weights": self.weights,
                "bias": self.bias,
                "margin": self.rule.margin,
            }
        return told | {"checks": dict(self.checks), "notes": list(self.notes)}

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data: dict[str, Any] = {
            "variables": [list(asdict(one).values()) for one in self.told],
            "outputs": [asdict(one) for one in self.outputs],
            "python": self.python,
            "checks": dict(self.checks),
            "notes": list(self.notes),
        }
        if self.rule is None:
            return data, {}
        rule = self.rule
        data["rule"] = {"margin": plain(rule.margin), "shape": list(rule.shape), "source": rule.source}
        return data, {"input": rule.input, "weights": rule.weights, "bias": rule.bias, "value": rule.value}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> FormulaResult:
        rule = None
        if "rule" in data:
            own = data["rule"]
            rule = Rule(
                arrays["input"],
                arrays["weights"],
                arrays["bias"],
                arrays["value"],
                own["margin"],
                tuple(own["shape"]),
                own["source"],
            )
        return cls(
            provenance,
            tuple(Variable(*one) for one in data["variables"]),
            tuple(Output(**one) for one in data["outputs"]),
            data["python"],
            rule,
            data["checks"],
            tuple(data["notes"]),
        )

    def pictures(self) -> Iterable[Picture]:
        """The weights of a picture as colours: red raises the output, blue lowers it."""
        rule = self.rule
        if rule is None or len(rule.shape) != 3:
            return
        for n, one in enumerate(self.outputs):
            planes = rule.weights[n].reshape(rule.shape).sum(0)
            factor = max(1, round(_LEAST / max(planes.shape)))
            pixels = heat(np.repeat(np.repeat(planes, factor, 0), factor, 1), True)
            name = "weights" if len(self.outputs) == 1 else f"weights-{n}"
            yield Picture(name, pixels, f"weights of {one.name} in the affine rule at this picture")

    def _files(self, more: Iterable[Picture], summary: bool, pages: Mapping[str, str]) -> Iterable[tuple[str, bytes]]:
        own = {"formula.txt": self.text + "\n", "formula.tex": self.latex + "\n", "formula.py": self.python}
        return super()._files(more, summary, {**(own if self.expressions else {}), **pages})

    def _repr_html_(self) -> str:
        shown = self.text if len(self.text) < 20_000 else self.text[:20_000] + " …"
        told = "; ".join(f"{name} {value}" for name, value in self.checks.items())
        figures = super()._repr_html_() if any(True for _ in self.pictures()) else ""
        return (
            f'{figures}<pre style="white-space:pre-wrap">{html.escape(shown)}</pre>'
            f'<p style="font-size:11px">{html.escape(told)}</p>'
        )

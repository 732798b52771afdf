"""Forms as text: for SymPy, for a reader, as LaTeX and as a Python function that needs nothing but `math`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from penlight.techniques.formula.forms import Atom, Book, Form, rounded

_INLINE = 40  # terms that are written in one piece; more get names for their parts
_GROUP = 100  # terms of a sum that stand side by side; Python nests every one, and allows about a thousand
_LEAST = 3  # terms of a part that gets a name
_HELPERS = {
    "sigmoid": "def sigmoid(z):\n    return 0.5 + 0.5 * tanh(0.5 * z)\n",
    "softplus": "def softplus(z):\n    return max(0.0, z) + log1p(exp(-abs(z)))\n",
    "step": "def step(z):\n    return 1.0 if z > 0 else 0.0\n",
    "reach": "def reach(z):\n    return 1.0 if z >= 0 else 0.0\n",
}
_MATH = ("exp", "log", "log1p", "tanh", "erf", "sin", "cos")


@dataclass(eq=False)
class Writer:
    """Writes forms of a book; `named` gives atoms that stand under a name instead of being written out."""

    book: Book
    variables: Sequence[str]
    digits: int = 17
    named: Mapping[int, str] = field(default_factory=dict)
    _written: dict[int, str] = field(default_factory=dict)

    plus, minus, times = " + ", " - ", "*"

    def number(self, value: float) -> str:
        """A number to the writer's digits, as short as they allow."""
        text = repr(rounded(value, self.digits))
        return text.removesuffix(".0") if abs(value) < 1e15 else text

    def form(self, form: Form) -> str:
        """The sum, terms first, the constant last."""
        parts = [self._term(atom, c) for atom, c in form.terms]
        if form.constant or not parts:
            parts.append(("-" if form.constant < 0 else "+", self.number(abs(form.constant))))
        if len(parts) > _GROUP:
            groups = [parts[n : n + _GROUP] for n in range(0, len(parts), _GROUP)]
            return self._grouped([self._joined(group) for group in groups])
        return self._joined(parts)

    def _grouped(self, sums: Sequence[str]) -> str:
        return self.plus.join(f"({one})" for one in sums)

    def _joined(self, parts: Sequence[tuple[str, str]]) -> str:
        text = "".join((self.minus if sign == "-" else self.plus) + part for sign, part in parts)
        return text[len(self.plus) :] if parts[0][0] == "+" else "-" + text[len(self.minus) :]

    def _term(self, atom: int, coefficient: float) -> tuple[str, str]:
        sign, size = "-" if coefficient < 0 else "+", self.number(abs(coefficient))
        return sign, self.atom(atom) if size == "1" else f"{size}{self.times}{self.atom(atom)}"

    def atom(self, number: int) -> str:
        """A variable, a name, or a function written out."""
        if number in self.named:
            return self.name(self.named[number])
        atom = self.book.atoms[number]
        if atom.name == "x":
            return self.name(self.variables[atom.number])
        if number not in self._written:
            self._written[number] = self.function(atom)
        return self._written[number]

    def name(self, name: str) -> str:
        return name

    def inside(self, form: Form) -> str:
        """A form as a factor or a base."""
        text = self.form(form)
        single = len(form.terms) == 1 and not form.constant and form.terms[0][1] == 1
        plain = single and (form.terms[0][0] in self.named or self.book.atoms[form.terms[0][0]].name == "x")
        return text if plain else f"({text})"

    def function(self, atom: Atom) -> str:
        """SymPy's spelling."""
        parts = [self.form(part) for part in atom.parts]
        if atom.name in ("max", "min"):
            return f"{atom.name.capitalize()}({', '.join(parts)})"
        if atom.name == "product":
            return f"({self.inside(atom.parts[0])}*{self.inside(atom.parts[1])})"
        if atom.name == "power":
            return f"({self.inside(atom.parts[0])}**{self._exponent(atom)})"
        if atom.name == "sigmoid":
            return f"(1/(1 + exp({self.form(atom.parts[0].scaled(-1))})))"
        if atom.name == "softplus":
            return f"log(1 + exp({parts[0]}))"
        if atom.name in ("step", "reach"):
            return f"Piecewise((1, {parts[0]} {'>' if atom.name == 'step' else '>='} 0), (0, True))"
        return f"{atom.name.capitalize() if atom.name == 'abs' else atom.name}({parts[0]})"

    def _exponent(self, atom: Atom) -> str:
        text = f"{atom.exponent:.17g}"
        return f"({text})" if text.startswith("-") else text


class Python(Writer):
    """Python's spelling, with `math` only."""

    def function(self, atom: Atom) -> str:
        parts = [self.form(part) for part in atom.parts]
        if atom.name in ("max", "min"):
            return f"{atom.name}({', '.join(parts)})"
        if atom.name in ("sigmoid", "softplus", "step", "reach", "abs"):
            return f"{atom.name}({parts[0]})"
        return super().function(atom)


class Latex(Writer):
    """LaTeX's spelling."""

    times = r" \, "

    def number(self, value: float) -> str:
        text = super().number(value)
        mantissa, mark, exponent = text.partition("e")
        return rf"{mantissa} \cdot 10^{{{int(exponent)}}}" if mark else text

    def name(self, name: str) -> str:
        split = re.fullmatch(r"([A-Za-z])(\d+)", name)
        return f"{split[1]}_{{{split[2]}}}" if split else r"\mathrm{" + name.replace("_", r"\_") + "}"

    def _grouped(self, sums: Sequence[str]) -> str:
        return self.plus.join(rf"\left({one}\right)" for one in sums)

    def inside(self, form: Form) -> str:
        text = super().inside(form)
        return rf"\left({text[1:-1]}\right)" if text.startswith("(") else text

    def function(self, atom: Atom) -> str:
        parts = [self.form(part) for part in atom.parts]
        if atom.name in ("max", "min"):
            return rf"\{atom.name}\left({', '.join(parts)}\right)"
        if atom.name == "product":
            return rf"{self.inside(atom.parts[0])} {self.inside(atom.parts[1])}"
        if atom.name == "power" and atom.exponent == -1:
            return rf"\frac{{1}}{{{parts[0]}}}"
        if atom.name == "power" and atom.exponent in (0.5, -0.5):
            root = rf"\sqrt{{{parts[0]}}}"
            return root if atom.exponent > 0 else rf"\frac{{1}}{{{root}}}"
        if atom.name == "power":
            return rf"{self.inside(atom.parts[0])}^{{{atom.exponent:.17g}}}"
        if atom.name == "sigmoid":
            return rf"\frac{{1}}{{1 + e^{{{self.form(atom.parts[0].scaled(-1))}}}}}"
        if atom.name == "softplus":
            return rf"\log\left(1 + e^{{{parts[0]}}}\right)"
        if atom.name == "exp":
            return rf"e^{{{parts[0]}}}"
        if atom.name == "abs":
            return rf"\left|{parts[0]}\right|"
        if atom.name in ("step", "reach"):
            sign = ">" if atom.name == "step" else r"\ge"
            return rf"\left[{parts[0]} {sign} 0\right]"
        word = r"\operatorname{erf}" if atom.name == "erf" else rf"\{atom.name}"
        return rf"{word}\left({parts[0]}\right)"


def names(book: Book, forms: Sequence[Form], variables: Sequence[str]) -> dict[int, str]:
    """Names for the parts of large formulas: h1, h2, … in the order they are needed; none for small ones."""
    if book.size(forms) <= _INLINE:
        return {}
    letter = next(
        found for found in ("h", "g", "u", "hidden") if not any(re.fullmatch(rf"{found}\d+", v) for v in variables)
    )
    inner = [n for n in book.reachable(forms) if book.atoms[n].name != "x"]
    used = Counter(below for n in inner for part in book.atoms[n].parts for below, _ in part.terms)
    used.update(atom for form in forms for atom, _ in form.terms)
    large = [n for n in inner if used[n] > 1 or sum(len(part.terms) for part in book.atoms[n].parts) >= _LEAST]
    return {atom: f"{letter}{n}" for n, atom in enumerate(large, 1)}


def equations(writer: Writer, forms: Sequence[tuple[str, Form]], sign: str = " = ") -> list[str]:
    """'name = …' of every named part the forms need, then of the forms."""
    needed = set(writer.book.reachable([form for _, form in forms]))
    lines = [
        f"{writer.name(name)}{sign}{writer.function(writer.book.atoms[atom])}"
        for atom, name in writer.named.items() if atom in needed
    ]  # fmt: skip
    return lines + [f"{name}{sign}{writer.form(form)}" for name, form in forms]


def python_function(writer: Python, forms: Sequence[Form], told: Sequence[str]) -> str:
    """A module's text with `def f(…)`: one number, or a tuple where there are several forms; `told` are lines of its docstring."""
    needed = set(writer.book.reachable(forms))
    lines = [f"    {name} = {writer.function(writer.book.atoms[a])}" for a, name in writer.named.items() if a in needed]
    results = [writer.form(form) for form in forms]
    answer = results[0] if len(results) == 1 else "(\n        " + ",\n        ".join(results) + ",\n    )"
    body = "\n".join([*lines, f"    return {answer}"])
    helpers = "\n\n".join(text for name, text in _HELPERS.items() if re.search(rf"\b{name}\(", body))
    used = [name for name in _MATH if re.search(rf"\b{name}\(", body + helpers)]
    head = f"from math import {', '.join(used)}\n\n\n" if used else ""
    text = "\n    ".join(line.replace("\\", "\\\\").replace('"', "'") for line in told)
    return f'{head}{helpers}{chr(10) * 2 if helpers else ""}def f({", ".join(writer.variables)}):\n    """{text}\n    """\n{body}\n'


def latex_lines(lines: Sequence[str]) -> str:
    """Equations one under the other, aligned where they have an '&'."""
    if len(lines) == 1:
        return lines[0].replace(" &= ", " = ", 1)
    return "\\begin{aligned}\n" + " \\\\\n".join(lines) + "\n\\end{aligned}"

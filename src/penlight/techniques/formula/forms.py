"""Scalar expressions: sums of atoms, which are variables or functions of such sums, every one written down once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
_ANY: Interval = (-math.inf, math.inf)
_TINY = 1e-300


@dataclass(frozen=True)
class Form:
    """`constant` + Σ coefficient × atom; atoms by number, ascending, no coefficient is zero."""

    constant: float = 0.0
    terms: tuple[tuple[int, float], ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether it is a number."""
        return not self.terms

    def __add__(self, other: Form) -> Form:
        found = dict(self.terms)
        for atom, coefficient in other.terms:
            found[atom] = found.get(atom, 0.0) + coefficient
        return Form(self.constant + other.constant, tuple(sorted((a, c) for a, c in found.items() if c)))

    def scaled(self, factor: float) -> Form:
        """Every coefficient times `factor`."""
        return Form(self.constant * factor, tuple((a, c * factor) for a, c in self.terms) if factor else ())

    def __sub__(self, other: Form) -> Form:
        return self + other.scaled(-1.0)

    def shifted(self, by: float) -> Form:
        """With `by` added."""
        return Form(self.constant + by, self.terms)


@dataclass(frozen=True)
class Atom:
    """A variable ("x", its number), or a function of forms; `exponent` of a power."""

    name: str
    parts: tuple[Form, ...] = ()
    number: int = 0
    exponent: float = 1.0


@dataclass(eq=False)
class Book:
    """All atoms, each after those it is made of.

    `bounds` are the intervals the variables are known to lie in. A Max or Min whose outcome follows from them is not written down;
    `settled` counts those, `decided` where only the bounds settled it.
    """

    bounds: Sequence[Interval] = ()
    atoms: list[Atom] = field(default_factory=list)
    ranges: list[Interval] = field(default_factory=list)
    settled: int = 0
    _numbers: dict[Atom, int] = field(default_factory=dict)

    def variable(self, number: int) -> Form:
        """The variable of this number."""
        return self._write(Atom("x", number=number), self.bounds[number] if self.bounds else _ANY)

    def _write(self, atom: Atom, within: Interval) -> Form:
        known = self._numbers.get(atom)
        if known is None:
            known = self._numbers[atom] = len(self.atoms)
            self.atoms.append(atom)
            self.ranges.append(within)
        return Form(0.0, ((known, 1.0),))

    def range(self, form: Form) -> Interval:
        """An interval that the form's value lies in."""
        low = high = form.constant
        for atom, c in form.terms:
            a, b = self.ranges[atom]
            low, high = low + min(c * a, c * b), high + max(c * a, c * b)
        return (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)

    def largest(self, forms: Iterable[Form]) -> Form:
        """Max of forms; those that another one is never below are left out."""
        kept = list(dict.fromkeys(forms))
        ranges = [self.range(form) for form in kept]
        floor = max(low for low, _ in ranges)
        # of those that reach the floor the one that rises highest stays, of the others what may rise above the floor
        holder = max((n for n, (low, _) in enumerate(ranges) if low == floor), key=lambda n: ranges[n][1])
        left = [form for n, form in enumerate(kept) if n == holder or ranges[n][1] > floor]
        self.settled += len(kept) - len(left)
        if len(left) == 1:
            return left[0]
        left.sort(key=lambda form: (bool(form.terms), form.terms, form.constant))
        if all(form.fixed for form in left):
            return Form(max(form.constant for form in left))
        return self._write(Atom("max", tuple(left)), (floor, max(high for _, high in ranges)))

    def smallest(self, forms: Iterable[Form]) -> Form:
        """Min of forms."""
        kept = list(dict.fromkeys(forms))
        ranges = [self.range(form) for form in kept]
        ceiling = min(high for _, high in ranges)
        holder = min((n for n, (_, high) in enumerate(ranges) if high == ceiling), key=lambda n: ranges[n][0])
        left = [form for n, form in enumerate(kept) if n == holder or ranges[n][0] < ceiling]
        self.settled += len(kept) - len(left)
        if len(left) == 1:
            return left[0]
        left.sort(key=lambda form: (bool(form.terms), form.terms, form.constant))
        return self._write(Atom("min", tuple(left)), (min(low for low, _ in ranges), ceiling))

    def function(self, name: str, form: Form) -> Form:
        """One of `FUNCTIONS` of a form; a number where the form is one."""
        if form.fixed:
            return Form(float(FUNCTIONS[name](np.array(form.constant))))
        return self._write(Atom(name, (form,)), self._through(name, form))

    def _through(self, name: str, form: Form) -> Interval:
        low, high = self.range(form)
        if name in ("abs", "cos"):
            return (0.0, max(abs(low), abs(high))) if name == "abs" else (-1.0, 1.0)
        if name in ("step", "reach"):
            return (0.0, 1.0)
        if name == "sin":
            return (-1.0, 1.0)
        with np.errstate(all="ignore"):
            a, b = (float(FUNCTIONS[name](np.array(end))) for end in (low, high))
        return (-math.inf if math.isnan(a) else a), (math.inf if math.isnan(b) else b)

    def power(self, form: Form, exponent: float) -> Form:
        """A form to a constant power."""
        if exponent == 1:
            return form
        if form.fixed:
            return Form(form.constant**exponent)
        within = (0.0, math.inf) if exponent % 2 == 0 or exponent % 1 else _ANY
        return self._write(Atom("power", (form,), exponent=exponent), within)

    def product(self, a: Form, b: Form) -> Form:
        """The product of two forms; a multiple where one is a number."""
        if a.fixed or b.fixed:
            return a.scaled(b.constant) if b.fixed else b.scaled(a.constant)
        if a == b:
            return self.power(a, 2.0)
        if (a.terms, a.constant) > (b.terms, b.constant):
            a, b = b, a
        (p, q), (r, s) = self.range(a), self.range(b)
        ends = [0.0 if 0.0 in (x, y) else x * y for x in (p, q) for y in (r, s)]
        return self._write(Atom("product", (a, b)), (min(ends), max(ends)))

    def reachable(self, forms: Sequence[Form]) -> list[int]:
        """The atoms that the forms are made of, in order."""
        seen: set[int] = set()
        waiting = [atom for form in forms for atom, _ in form.terms]
        while waiting:
            atom = waiting.pop()
            if atom not in seen:
                seen.add(atom)
                waiting += [below for part in self.atoms[atom].parts for below, _ in part.terms]
        return sorted(seen)

    def size(self, forms: Sequence[Form]) -> int:
        """Terms and functions of the forms written out, shared parts every time they come."""
        sizes: dict[int, int] = {}
        for atom in self.reachable(forms):
            parts = self.atoms[atom].parts
            sizes[atom] = 1 + sum(1 + sum(sizes[below] for below, _ in part.terms) for part in parts)
        return sum(1 + sum(sizes[below] for below, _ in form.terms) for form in forms)

    def values(self, forms: Sequence[Form], points: NDArray[np.float64], digits: int = 17) -> NDArray[np.float64]:
        """(N, forms) float64 at points (N, variables), every number rounded to `digits` significant digits."""
        found: dict[int, NDArray[np.float64]] = {}

        def value(form: Form) -> NDArray[np.float64]:
            total = np.full(len(points), rounded(form.constant, digits))
            for atom, c in form.terms:
                total += rounded(c, digits) * found[atom]
            return total

        with np.errstate(all="ignore"):
            for number in self.reachable(forms):
                atom = self.atoms[number]
                if atom.name == "x":
                    found[number] = points[:, atom.number]
                else:
                    found[number] = _apply(atom, [value(part) for part in atom.parts])
            return np.stack([value(form) for form in forms], axis=1)


def _apply(atom: Atom, parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    if atom.name in ("max", "min"):
        stacked = np.stack(parts)
        extreme: NDArray[np.float64] = stacked.max(0) if atom.name == "max" else stacked.min(0)
        return extreme
    if atom.name == "product":
        return parts[0] * parts[1]
    if atom.name == "power":
        found: NDArray[np.float64] = parts[0] ** atom.exponent
        return found
    return FUNCTIONS[atom.name](parts[0])


def _erf(z: NDArray[np.float64]) -> NDArray[np.float64]:
    flat = np.atleast_1d(z)
    return np.array([math.erf(v) for v in flat.ravel()]).reshape(np.shape(z))


def _softplus(z: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
    return found


def _sigmoid(z: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 0.5 + 0.5 * np.tanh(0.5 * z)
    return found


FUNCTIONS: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "erf": _erf,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "step": lambda z: np.where(z > 0, 1.0, 0.0),
    "reach": lambda z: np.where(z >= 0, 1.0, 0.0),
}


def rounded(value: float, digits: int) -> float:
    """To so many significant digits; 17 are all there are."""
    return value if digits >= 17 else float(f"{value:.{digits}g}")

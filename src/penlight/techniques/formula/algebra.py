"""Operations on tensors of expressions: what each puts out, written as sums of variables and functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from penlight.techniques.formula.forms import Book, Form
from penlight.techniques.formula.linear import constant_part, is_linear, linear_rows, windows
from penlight.techniques.formula.tracer import Algebra, Call, Refused, Tracer

Forms = list[Form]
_MOST = 60_000_000  # numbers that the table of one tensor may hold


class TooLarge(Exception):
    """More terms than were allowed: how many there are by now, and where."""

    def __init__(self, count: int, where: str) -> None:
        self.count, self.where = count, where
        super().__init__(f"{count} terms by {where}")


class Expressions(Algebra):
    """Every tensor's elements as forms of a book: row 0 their constants, row 1 + n their coefficients of atom n."""

    constants = True

    def __init__(self, book: Book, limit: int) -> None:
        self.book, self.limit, self.terms = book, limit, 0
        self._counted = 0  # atoms whose terms are among them

    @property
    def count(self) -> int:  # type: ignore[override]
        """Rows by now: one for the constants, one an atom."""
        return 1 + len(self.book.atoms)

    def rule(self, tracer: Tracer, call: Call, output: Tensor | None) -> Tensor | None:
        size = call.args[0].numel() if output is None else output.numel()
        if self.count * size > _MOST:
            raise TooLarge(self.count * size, call.where)
        if is_linear(tracer, call):
            rows = linear_rows(tracer, call)
            rows[0] += constant_part(tracer, call)
            return rows
        forms, shape = self._nonlinear(tracer, call, output)
        return self.packed(forms, shape, call.where)

    def _nonlinear(self, tracer: Tracer, call: Call, output: Tensor | None) -> tuple[Forms, tuple[int, ...]]:
        if call.name in ELEMENTWISE:
            return self._elementwise(tracer, call)
        if output is not None and call.name in WHOLE:
            return WHOLE[call.name](self, tracer, call, output), tuple(output.shape)
        raise Refused(f"computes {call.plain_name}, which has no formula here", call.where)

    def forms(self, tracer: Tracer, value: Any, shape: Sequence[int] | None = None) -> Forms:
        """The elements of a tensor or a number, broadcast to `shape`, as forms in C order."""
        if not isinstance(value, Tensor):
            return [Form(float(value))] * math.prod(shape or (1,))
        rows = tracer.rows(value)
        if rows is None:
            rows = value.detach().double()[None]
        if shape is not None:
            rows = rows.reshape(len(rows), *[1] * (len(shape) - value.ndim), *value.shape).expand(len(rows), *shape)
        table = rows.reshape(len(rows), -1).numpy().T
        found = []
        for column in table:
            terms = np.flatnonzero(column[1:])
            found.append(Form(float(column[0]), tuple((int(n), float(column[1 + n])) for n in terms)))
        return found

    def packed(self, forms: Forms, shape: Sequence[int], where: str) -> Tensor:
        """Forms as rows (R, *shape)."""
        self.check(where)
        table = torch.zeros(self.count, len(forms), dtype=torch.float64)
        for n, form in enumerate(forms):
            table[0, n] = form.constant
            for atom, coefficient in form.terms:
                table[1 + atom, n] = coefficient
        return table.reshape(self.count, *shape)

    def check(self, where: str) -> None:
        """The terms of all atoms, each counted once, are fewer than those of the whole written out."""
        while self._counted < len(self.book.atoms):
            self.terms += 1 + sum(len(part.terms) for part in self.book.atoms[self._counted].parts)
            self._counted += 1
        if self.terms > self.limit:
            raise TooLarge(self.terms, where)

    def _elementwise(self, tracer: Tracer, call: Call) -> tuple[Forms, tuple[int, ...]]:
        function, tensors = ELEMENTWISE[call.name]
        given = list(call.args[:tensors])
        shape = tuple(np.broadcast_shapes(*(tuple(one.shape) for one in given if isinstance(one, Tensor))))
        columns = [self.forms(tracer, one, shape) for one in given]
        rest = call.args[tensors:]
        for one in rest:
            if tracer.follows(one):
                raise Refused(f"computes {call.name} with limits that depend on the input", call.where)
        try:
            return [function(self.book, *row, *rest, **call.kwargs) for row in zip(*columns, strict=True)], shape
        except (ValueError, ZeroDivisionError, OverflowError, TypeError) as error:
            raise Refused(f"computes {call.name}, where {error}", call.where) from error


ZERO = Form()


def relu(book: Book, z: Form) -> Form:
    return book.largest((ZERO, z))


def _least(book: Book, z: Form) -> Form:
    return book.smallest((ZERO, z))


def _leaky(book: Book, z: Form, slope: Any = 0.01) -> Form:
    factor = slope.constant if isinstance(slope, Form) else float(slope)
    if 0 <= factor <= 1:
        return book.largest((z.scaled(factor), z))
    return relu(book, z) + _least(book, z).scaled(factor)


def _clamp(book: Book, z: Form, low: Any = None, high: Any = None, **named: Any) -> Form:
    low, high = named.get("min", low), named.get("max", high)
    if low is not None:
        z = book.largest((Form(float(low)), z))
    return z if high is None else book.smallest((Form(float(high)), z))


def _hardtanh(book: Book, z: Form, low: float = -1.0, high: float = 1.0) -> Form:
    return _clamp(book, z, low, high)


def _elu(book: Book, z: Form, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Form:
    below = book.function("exp", _least(book, z).scaled(inner)).shifted(-1.0)
    return (relu(book, z) + below.scaled(alpha)).scaled(scale)


def _softplus(book: Book, z: Form, beta: float = 1.0, threshold: float = 20.0) -> Form:
    return book.function("softplus", z.scaled(beta)).scaled(1 / beta)


def _gelu(book: Book, z: Form, approximate: str = "none") -> Form:
    if approximate == "tanh":
        inner = z.scaled(math.sqrt(2 / math.pi)) + book.power(z, 3.0).scaled(0.044715 * math.sqrt(2 / math.pi))
        return book.product(z.scaled(0.5), book.function("tanh", inner).shifted(1.0))
    return book.product(z.scaled(0.5), book.function("erf", z.scaled(math.sqrt(0.5))).shifted(1.0))


def _silu(book: Book, z: Form) -> Form:
    return book.product(z, book.function("sigmoid", z))


def _mish(book: Book, z: Form) -> Form:
    return book.product(z, book.function("tanh", book.function("softplus", z)))


def _hardsigmoid(book: Book, z: Form) -> Form:
    return _clamp(book, z.scaled(1 / 6).shifted(0.5), 0, 1)


def _hardswish(book: Book, z: Form) -> Form:
    return book.product(z, _hardsigmoid(book, z))


def _softshrink(book: Book, z: Form, limit: float = 0.5) -> Form:
    return relu(book, z.shifted(-limit)) + _least(book, z.shifted(limit))


def _threshold(book: Book, z: Form, limit: float, value: float) -> Form:
    if limit == value:
        return book.largest((Form(float(limit)), z))
    return book.product(book.function("step", z.shifted(-limit)), z.shifted(-value)).shifted(value)


def _power(book: Book, z: Form, exponent: Any) -> Form:
    if isinstance(exponent, Form):
        if not exponent.fixed:
            raise ValueError("the exponent depends on the input")
        exponent = exponent.constant
    return Form(1.0) if exponent == 0 else book.power(z, float(exponent))


def _divided(book: Book, a: Form, b: Form) -> Form:
    return book.product(a, book.power(b, -1.0))


def _chosen(book: Book, condition: Form, a: Form, b: Form) -> Form:
    return b + book.product(condition, a - b)


def _filled(book: Book, z: Form, mask: Form, value: Form) -> Form:
    return z + book.product(mask, value - z)


def _named(name: str, scale: float = 1.0, shift: float = 0.0) -> Callable[..., Form]:
    return lambda book, z: book.function(name, z).scaled(scale).shifted(shift)


ELEMENTWISE: Mapping[str, tuple[Callable[..., Form], int]] = {
    "relu": (relu, 1),
    "leaky_relu": (_leaky, 1),
    "_prelu_kernel": (_leaky, 2),
    "rrelu_with_noise": (lambda book, z, noise, low=1 / 8, high=1 / 3, *_: _leaky(book, z, (low + high) / 2), 1),
    "elu": (_elu, 1),
    "celu": (lambda book, z, alpha=1.0: _elu(book, z, alpha, 1.0, 1 / alpha), 1),
    "hardtanh": (_hardtanh, 1),
    "clamp": (_clamp, 1),
    "clamp_min": (lambda book, z, low: _clamp(book, z, low), 1),
    "clamp_max": (lambda book, z, high: _clamp(book, z, None, high), 1),
    "softplus": (_softplus, 1),
    "gelu": (_gelu, 1),
    "silu": (_silu, 1),
    "mish": (_mish, 1),
    "hardsigmoid": (_hardsigmoid, 1),
    "hardswish": (_hardswish, 1),
    "softshrink": (_softshrink, 1),
    "threshold": (_threshold, 1),
    "log_sigmoid_forward": (lambda book, z: book.function("softplus", z.scaled(-1)).scaled(-1), 1),
    **{name: (_named(name), 1) for name in ("sigmoid", "tanh", "exp", "log", "erf", "abs", "sin", "cos")},
    "expm1": (_named("exp", 1.0, -1.0), 1),
    "log1p": (lambda book, z: book.function("log", z.shifted(1.0)), 1),
    "sqrt": (lambda book, z: book.power(z, 0.5), 1),
    "rsqrt": (lambda book, z: book.power(z, -0.5), 1),
    "reciprocal": (lambda book, z: book.power(z, -1.0), 1),
    "sign": (lambda book, z: book.function("step", z) - book.function("step", z.scaled(-1)), 1),
    "pow": (_power, 2),
    "mul": (lambda book, a, b: book.product(a, b), 2),
    "div": (_divided, 2),
    "maximum": (lambda book, a, b: book.largest((a, b)), 2),
    "minimum": (lambda book, a, b: book.smallest((a, b)), 2),
    "gt": (lambda book, a, b: book.function("step", a - b), 2),
    "lt": (lambda book, a, b: book.function("step", b - a), 2),
    "ge": (lambda book, a, b: book.function("reach", a - b), 2),
    "le": (lambda book, a, b: book.function("reach", b - a), 2),
    "logical_and": (lambda book, a, b: book.product(a, b), 2),
    "bitwise_and": (lambda book, a, b: book.product(a, b), 2),
    "logical_not": (lambda book, a: a.scaled(-1).shifted(1.0), 1),
    "bitwise_not": (lambda book, a: a.scaled(-1).shifted(1.0), 1),
    "where": (_chosen, 3),
    "masked_fill": (_filled, 3),
}
"""Name → the rule of one element, and how many of the arguments are tensors."""


def _max_pool(own: Expressions, tracer: Tracer, call: Call, output: Tensor) -> Forms:
    given = call.args[0]
    dims = 3 if "3d" in call.name else 2
    places = windows(call, tuple(given.shape[-dims:]), tuple(output.shape[-dims:])).tolist()
    forms, size = own.forms(tracer, given), math.prod(given.shape[-dims:])
    return [
        own.book.largest([forms[plane * size + k] for k in window if k >= 0])
        for plane in range(len(forms) // size)
        for window in places
    ]


def _groups(own: Expressions, tracer: Tracer, given: Tensor, axes: Sequence[int]) -> list[Forms]:
    """The forms of a tensor, those along `axes` together, the groups in C order."""
    axes = sorted(axis % given.ndim for axis in axes) or list(range(given.ndim))
    order = torch.arange(given.numel()).reshape(given.shape)
    kept = [axis for axis in range(given.ndim) if axis not in axes]
    table = order.permute(*kept, *axes).reshape(math.prod(given.shape[a] for a in kept), -1)
    forms = own.forms(tracer, given)
    return [[forms[n] for n in row] for row in table.tolist()]


def _axes(value: Any) -> list[int]:
    return [] if value is None else [value] if isinstance(value, int) else list(value)


def _extreme(name: str) -> Callable[[Expressions, Tracer, Call, Tensor], Forms]:
    def rule(own: Expressions, tracer: Tracer, call: Call, output: Tensor) -> Forms:
        if len(call.args) > 1 and isinstance(call.args[1], Tensor):
            raise Refused(f"computes {call.name}, which has no formula here", call.where)
        best = own.book.largest if name == "max" else own.book.smallest
        return [best(group) for group in _groups(own, tracer, call.args[0], _axes(call.given(1, "dim")))]

    return rule


def _along(own: Expressions, tracer: Tracer, call: Call, each: Callable[[Forms], Forms]) -> Forms:
    """A rule that turns all forms along one axis into as many."""
    given, axis = call.args[0], call.args[1] % max(call.args[0].ndim, 1)
    found = [form for group in _groups(own, tracer, given, [axis]) for form in each(group)]
    kept = [a for a in range(given.ndim) if a != axis]
    shape = [given.shape[a] for a in (*kept, axis)]
    order = torch.arange(given.numel()).reshape(shape).movedim(-1, axis).reshape(-1)
    return [found[n] for n in order.tolist()]


def softmax(book: Book, scores: Forms) -> Forms:
    """1 / Σ exp(other − own) of each; of two classes the sigmoid of their difference."""
    if len(scores) == 2:
        first = book.function("sigmoid", scores[0] - scores[1])
        return [first, first.scaled(-1).shifted(1.0)]
    found = []
    for own in scores:
        total = Form()
        for other in scores:
            total = total + book.function("exp", other - own)
        found.append(book.power(total, -1.0))
    return found


def _log_softmax(book: Book, scores: Forms) -> Forms:
    return [book.function("log", share) for share in softmax(book, scores)]


def _matmul(own: Expressions, tracer: Tracer, call: Call, output: Tensor) -> Forms:
    first = 1 if call.name in ("addmm", "baddbmm") else 0
    left, right = call.args[first], call.args[first + 1]
    if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("beta", 1) != 1:
        raise Refused(f"computes {call.name} with factors, which has no formula here", call.where)
    a, b = own.forms(tracer, left), own.forms(tracer, right)
    rows, inner, cols = left.shape[-2], left.shape[-1], right.shape[-1]
    found = []
    for batch in range(math.prod(left.shape[:-2])):
        for i in range(rows):
            for j in range(cols):
                total = Form()
                for k in range(inner):
                    product = own.book.product(a[(batch * rows + i) * inner + k], b[(batch * inner + k) * cols + j])
                    total = total + product
                found.append(total)
        own.check(call.where)
    if first:
        added = own.forms(tracer, call.args[0], output.shape)
        found = [one + more for one, more in zip(found, added, strict=True)]
    return found


def _standardised(book: Book, group: Forms, eps: float) -> Forms:
    mean = Form()
    for form in group:
        mean = mean + form
    centred = [form - mean.scaled(1 / len(group)) for form in group]
    variance = Form(eps)
    for form in centred:
        variance = variance + book.power(form, 2.0).scaled(1 / len(group))
    over = book.power(variance, -0.5)
    return [book.product(form, over) for form in centred]


def _layer_norm(own: Expressions, tracer: Tracer, call: Call, output: Tensor) -> Forms:
    given, shape, weight, bias, eps = call.args[:5]
    axes = list(range(given.ndim - len(shape), given.ndim))
    found = [form for group in _groups(own, tracer, given, axes) for form in _standardised(own.book, group, eps)]
    return _scaled(own, tracer, found, output.shape, weight, bias)


def _group_norm(own: Expressions, tracer: Tracer, call: Call, output: Tensor) -> Forms:
    given, weight, bias, groups, eps = (*call.args[:3], *call.args[6:8])
    forms = own.forms(tracer, given)
    size = len(forms) // (given.shape[0] * groups)
    found: Forms = []
    for start in range(0, len(forms), size):
        found += _standardised(own.book, forms[start : start + size], eps)
    wide = [None if one is None else one.reshape(-1, *[1] * (given.ndim - 2)) for one in (weight, bias)]
    return _scaled(own, tracer, found, output.shape, *wide)


def _scaled(own: Expressions, tracer: Tracer, forms: Forms, shape: Sequence[int], weight: Any, bias: Any) -> Forms:
    factors = own.forms(tracer, 1.0 if weight is None else weight, shape)
    shifts = own.forms(tracer, 0.0 if bias is None else bias, shape)
    return [own.book.product(f, w) + b for f, w, b in zip(forms, factors, shifts, strict=True)]


WHOLE: Mapping[str, Callable[[Expressions, Tracer, Call, Tensor], Forms]] = {
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d"), _max_pool),
    **dict.fromkeys(("amax", "max"), _extreme("max")),
    **dict.fromkeys(("amin", "min"), _extreme("min")),
    "_softmax": lambda own, tracer, call, output: _along(own, tracer, call, lambda f: softmax(own.book, f)),
    "_log_softmax": lambda own, tracer, call, output: _along(own, tracer, call, lambda f: _log_softmax(own.book, f)),
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), _matmul),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
}
"""Name → the rule of the whole output."""

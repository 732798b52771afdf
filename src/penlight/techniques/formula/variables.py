"""The variables of a formula: the network's inputs in raw units, with names that Python and SymPy can read."""

from __future__ import annotations

import keyword
import re
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, BadOption
from penlight.inputs import Data, InputContract, TableContract
from penlight.results.formula import Variable

_OURS = frozenset(
    (
        "f",
        "max",
        "min",
        "abs",
        "math",
        "exp",
        "log",
        "log1p",
        "tanh",
        "sigmoid",
        "softplus",
        "erf",
        "sin",
        "cos",
        "step",
        "reach",
    )
)


@dataclass(frozen=True, eq=False)
class Variables:
    """One variable an input of the network, F in all, in its order.

    The network sees (raw − mean) / std; `spread` is the column's own deviation, in which distances are measured; `held` marks the
    indicators of categories, which are 0 or 1 and no numbers to be moved a little.
    """

    contract: InputContract
    told: tuple[Variable, ...]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    held: NDArray[np.bool_]

    @property
    def names(self) -> tuple[str, ...]:
        """The names, in the order of the network's inputs."""
        return tuple(one.name for one in self.told)

    def raw(self, given: NDArray[np.generic]) -> NDArray[np.float64]:
        """(F,): an input as it was given, or a row of a table, in raw units; of uint8 pictures in [0, 1]."""
        contract = self.contract
        if isinstance(contract, TableContract):
            row = np.asarray(given, np.float64).reshape(-1)
            contract.check(row[None])
            parts = [
                (np.arange(column.width) == value).astype(np.float64) if column.width > 1 else np.array([value])
                for column, value in zip(contract.columns, row, strict=True)
            ]
            return np.concatenate(parts)
        if tuple(given.shape) != contract.shape:
            raise BadInput(f"the input has shape {list(given.shape)}, the network takes {list(contract.shape)}")
        whole = np.asarray(given, np.float64).reshape(-1)
        if not np.isfinite(whole).all():
            raise BadInput("the input has values that are not finite; there is no rule there")
        return whole / 255 if given.dtype == np.uint8 else whole

    def seen(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, *shape): raw points (N, F) as the network takes them."""
        return ((raw - self.mean) / self.std).reshape(len(raw), *self.contract.shape)

    def random(self, rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        """(count, F) plausible raw points: columns about their means, categories one at a time, pictures in [0, 1]."""
        contract = self.contract
        if isinstance(contract, TableContract):
            points = self.mean + self.std * rng.normal(0, 1.5, (count, len(self.mean)))
            for n, column in enumerate(contract.columns):
                if column.values:
                    drawn = rng.integers(0, len(column.values), count)
                    own = contract.owners == n
                    points[:, own] = np.eye(len(column.values))[drawn] if column.width > 1 else drawn[:, None]
            return points
        if contract.kind == "image" or not contract.plain:
            return rng.random((count, len(self.mean)))
        return rng.normal(0, 1.5, (count, len(self.mean)))

    def of(self, data: Data, count: int) -> NDArray[np.float64]:
        """(n, F) raw points of up to `count` inputs spread over the data; those that cannot be read are left out."""
        found = []
        for n in np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)):
            try:
                found.append(self.raw(data.read(int(n))))
            except BadInput:
                continue
        if not found:
            raise BadInput(f"none of the inputs of {data.name} can be read")
        return np.stack(found)


def variables(contract: InputContract) -> Variables:
    """The variables of a contract; text has none, its inputs are no numbers."""
    if contract.kind == "text":
        raise BadOption("a network on text has no formula: its inputs are symbols, not numbers; see penlight explain")
    count = int(np.prod(contract.shape))
    if isinstance(contract, TableContract):
        return _columns(contract)
    mean, std = (
        np.broadcast_to(np.asarray(values, np.float64).reshape(-1, *[1] * len(contract.size)), contract.shape)
        for values in (contract.mean, contract.std)
    )
    places = np.stack(np.unravel_index(np.arange(count), contract.shape), axis=1).tolist()
    told = tuple(
        Variable(f"x{n}", ",".join(map(str, place)) if len(place) > 1 else str(n)) for n, place in enumerate(places)
    )
    return Variables(contract, told, mean.reshape(-1).copy(), std.reshape(-1).copy(), np.zeros(count, bool))


def _columns(contract: TableContract) -> Variables:
    told, mean, std, held = [], [], [], []
    taken: set[str] = set()
    for column in contract.columns:
        names = [f"{column.name}_is_{value}" for value in column.values] if column.width > 1 else [column.name]
        for n, name in enumerate(names):
            value = column.values[n] if column.width > 1 else None
            told.append(Variable(identifier(name, taken), column.name, column.unit, value))
        one_hot = column.width > 1
        mean += [0.0 if one_hot else column.mean] * column.width
        std += [1.0 if one_hot else column.std] * column.width
        held += [bool(column.values)] * column.width
    return Variables(contract, tuple(told), np.array(mean), np.array(std), np.array(held))


def identifier(name: str, taken: set[str]) -> str:
    """`name` as Python and SymPy read it, not yet `taken`; joins those that are.

    >>> identifier("concave points (mean)", set()), identifier("lambda", set()), identifier("2nd", set())
    ('concave_points_mean', 'lambda_', 'x_2nd')
    """
    import sympy  # type: ignore[import-untyped]

    plain = re.sub(r"\W+", "_", unicodedata.normalize("NFKC", name)).strip("_") or "x"
    if not plain.isidentifier():
        plain = f"x_{plain}"
    if keyword.iskeyword(plain) or plain in _OURS or hasattr(sympy, plain):
        plain += "_"
    found, number = plain, 2
    while found in taken:
        found, number = f"{plain}_{number}", number + 1
    taken.add(found)
    return found

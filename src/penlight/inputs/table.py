"""Tables: the columns a network takes, in their own units, and rows of files read to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, BadReference, UnknownName
from penlight.inputs.contract import InputContract

_COLUMN_KEYS = ("name", "unit", "mean", "std", "values", "encoding", "description")
ENCODINGS = ("one-hot", "number")


@dataclass(frozen=True)
class Column:
    """One column of a table.

    A number is given to the network as (value − mean) / std. A column with `values` is categorical: a row holds the position of its
    value among them, and the network is given one input a value, 1 where it is the row's ("one-hot"), or the position itself,
    normalised as a number is ("number").
    """

    name: str
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    values: tuple[str, ...] = ()
    encoding: str = "one-hot"
    description: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise BadReference("a column without a name: every entry of [[input.columns]] takes name")
        if self.encoding not in ENCODINGS:
            raise UnknownName(f"encoding of column {self.name!r}", self.encoding, ENCODINGS)
        if not (math.isfinite(self.mean) and math.isfinite(self.std) and self.std > 0):
            raise BadReference(f"column {self.name!r} has mean {self.mean} and std {self.std}; std must be above 0")
        if len(set(self.values)) != len(self.values) or len(self.values) == 1:
            raise BadReference(f"column {self.name!r} has values {list(self.values)}; give two or more, each once")

    @property
    def categorical(self) -> bool:
        """Whether it holds one of a few values."""
        return bool(self.values)

    @property
    def width(self) -> int:
        """Inputs of the network that the column takes."""
        return len(self.values) if self.values and self.encoding == "one-hot" else 1

    def text(self, value: float) -> str:
        """A raw value in words: the category's name, or the number with its unit."""
        if self.values:
            return self.values[int(value)]
        return (f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}") + (f" {self.unit}" if self.unit else "")

    def number(self, text: str, where: str) -> float:
        """The raw value of a cell; `BadInput` says where it stands and what is allowed."""
        cell = text.strip()
        if self.values:
            if cell in self.values:
                return float(self.values.index(cell))
            raise BadInput(f"{where}: {cell!r} is no value of {self.name!r}; it takes {', '.join(self.values)}")
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise BadInput(f"{where}: {cell!r} in column {self.name!r} is no finite number")
        return value


@dataclass(frozen=True)
class TableContract(InputContract):
    """What a network on rows of a table expects.

    A row is float64 (columns,), every value in its column's own units, a category as its position among the column's values. The
    network sees `shape` = (inputs,) numbers, which are more than the columns where a category is one-hot. `target` names the column
    that holds the class, for data that has it.
    """

    columns: tuple[Column, ...] = ()
    target: str = ""

    @classmethod
    def of(cls, columns: Sequence[Column], target: str = "") -> TableContract:
        """The contract of these columns, in the order of the network's inputs."""
        if not columns:
            raise BadReference("a table needs its columns: one [[input.columns]] each, with a name")
        names = [column.name for column in columns]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadReference(
                f"column {twice[0]!r} stands {names.count(twice[0])} times; every column has a name of its own"
            )
        return cls("table", (sum(column.width for column in columns),), columns=tuple(columns), target=target)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> TableContract:
        """From a model card's `[input]`: `columns` holds names, or tables with name, unit, mean, std, values, encoding."""
        allowed = ("kind", "columns", "target")
        for key in table:
            if key not in allowed:
                raise UnknownName("key in [input] of a table", key, allowed)
        given = table.get("columns", ())
        columns = []
        for item in given:
            if isinstance(item, str):
                item = {"name": item}
            for key in item:
                if key not in _COLUMN_KEYS:
                    raise UnknownName("key in [[input.columns]]", key, _COLUMN_KEYS)
            try:
                columns.append(
                    Column(
                        str(item.get("name", "")),
                        str(item.get("unit", "")),
                        float(item.get("mean", 0.0)),
                        float(item.get("std", 1.0)),
                        tuple(map(str, item.get("values", ()))),
                        str(item.get("encoding", "one-hot")),
                        str(item.get("description", "")),
                    )
                )
            except (TypeError, ValueError) as error:
                raise BadReference(f"column {item.get('name', '')!r} cannot be read: {error}") from error
        return cls.of(columns, str(table.get("target", "")))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def categorical(self) -> bool:
        """Whether any column is."""
        return any(column.categorical for column in self.columns)

    @property
    def plain(self) -> bool:
        return False

    def column(self, name: str) -> int:
        """The number of a column; `UnknownName` offers near ones."""
        if name not in self.names:
            raise UnknownName("column", name, self.names)
        return self.names.index(name)

    @cached_property
    def owners(self) -> NDArray[np.intp]:
        """(inputs,): the column that each of the network's inputs comes from."""
        return np.repeat(np.arange(len(self.columns)), [column.width for column in self.columns])

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(mean, std), each (inputs,) float32; 0 and 1 where a category is one-hot."""
        mean, std = np.zeros(self.shape[0]), np.ones(self.shape[0])
        for n, column in enumerate(self.columns):
            if column.width == 1:
                mean[self.owners == n], std[self.owners == n] = column.mean, column.std
        return mean.astype(np.float32), std.astype(np.float32)

    def normalize(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Rows (N, columns) in their own units → float32 (N, inputs) as the network sees it."""
        parts = []
        for n, column in enumerate(self.columns):
            values = np.asarray(batch[:, n], np.float64)
            if column.width > 1:
                parts.append((values[:, None] == np.arange(column.width)).astype(np.float64))
            else:
                parts.append(((values - column.mean) / column.std)[:, None])
        return np.concatenate(parts, axis=1).astype(np.float32)

    def check(self, batch: NDArray[Any]) -> None:
        """`BadInput` unless (N, columns), finite, and every category one of its column's."""
        if batch.ndim != 2 or batch.shape[1] != len(self.columns):
            raise BadInput(
                f"rows have shape {list(batch.shape[1:])}, the network takes {len(self.columns)} columns: {_some(self.names)}"
            )
        if not np.isfinite(batch).all():
            row, place = (int(n) for n in np.argwhere(~np.isfinite(batch))[0])
            raise BadInput(f"row {row} has no finite number in column {self.names[place]!r}")
        for n, column in enumerate(self.columns):
            if column.values:
                wrong = [v for v in np.unique(batch[:, n]) if v != int(v) or not 0 <= v < len(column.values)]
                if wrong:
                    raise BadInput(
                        f"{wrong[0]:g} is no value of {column.name!r}; it takes 0 to {len(column.values) - 1}"
                    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", …" if len(names) > 6 else "")

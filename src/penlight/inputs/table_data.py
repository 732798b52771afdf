"""Tables as data: .csv, .tsv and .parquet files, data frames, mappings and arrays, read to a network's columns by name."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, near_names
from penlight.inputs.data import Data
from penlight.inputs.table import Column, TableContract
from penlight.inputs.table_cells import GIVE, TWICE, Cells, cells_of, read_cells, records

_NAMES = ("id", "name", "index")  # columns that may name the rows
_EMPTY = ("", "na", "n/a", "nan", "null", "none")


class TableData:
    """Rows of a table, each float64 (columns,) in the columns' own units.

    `rows` (N, columns) holds NaN where a cell could not be read; `read` of such a row raises `BadInput` with file, line and column.
    `truth` (N,) is the class, -1 where it is not known; None where the table has no column of classes. A row is named by its place,
    "biopsies.csv:17", which is how `read_row` finds it again, or by a column called id, name or index whose values are all different.
    """

    def __init__(
        self, name: str, contract: TableContract, rows: NDArray[np.float64], faults: Mapping[int, str] | None = None,
        truth: NDArray[np.int64] | None = None, classes: Sequence[str] = (), names: Sequence[str] | None = None,
        place: str = "{}[{}]",
    ) -> None:  # fmt: skip
        if len(rows) == 0:
            raise BadInput(f"{name} holds no rows")
        self.name, self.contract, self.rows, self.truth = name, contract, rows, truth
        self.classes = tuple(map(str, classes)) if truth is not None else ()
        self._faults, self._place = dict(faults or {}), place
        self._names = None if names is None else list(names)

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, index: int) -> tuple[str, int | None]:
        """(name, class index or None) of a row."""
        name = self._place.format(self.name, index) if self._names is None else self._names[index]
        known = self.truth is not None and self.truth[index] >= 0
        return name, int(self.truth[index]) if known and self.truth is not None else None

    def read(self, index: int) -> NDArray[np.float64]:
        """One row (columns,); `BadInput` says which cell cannot be read."""
        if index in self._faults:
            raise BadInput(self._faults[index])
        row: NDArray[np.float64] = self.rows[index]
        return row

    def fingerprint(self) -> str:
        """A digest of names, values and classes."""
        told = [self.contract.names, self.classes, self._names, sorted(self._faults.items())]
        digest = hashlib.sha256(json.dumps(told).encode())
        digest.update(np.ascontiguousarray(self.rows).tobytes())
        if self.truth is not None:
            digest.update(np.ascontiguousarray(self.truth).tobytes())
        return digest.hexdigest()


def open_table(source: Any, contract: TableContract, labels: Sequence[str] | None = None) -> Data:
    """A data set of rows from what the user has; columns are found by name, in any order, and others are left out.

    `source` is a .csv or .tsv file (a header line; comma, semicolon or tab; UTF-8), a .parquet file, a data frame, a mapping of names to
    columns, a list of mappings, or an array (N, columns) in the network's order, with categories as their positions. The contract's
    `target` column, where there is one, gives the classes: names among `labels`, or their numbers.

    Raises `BadInput` with what is wrong. A row with a cell that cannot be read is told when it is read.
    """
    if all(hasattr(source, name) for name in ("read", "label", "fingerprint", "classes")):
        return source  # type: ignore[no-any-return]
    if isinstance(source, str | Path):
        return _named(read_cells(Path(source)), contract, labels, "{}:{}")
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if isinstance(source, np.ndarray) and source.dtype.names is None:
        return _array(source, contract)
    cells = cells_of(source)
    return _array(_stacked(source), contract) if cells is None else _named(cells, contract, labels, "{}[{}]")


def read_row(source: Any, contract: TableContract, own: Data | None = None) -> NDArray[np.float64]:
    """One row, float64 (columns,) in the columns' own units.

    `source` is `data:N` for row N of the data `own`, `FILE.csv:N` for row N of a file, counted from 0, a file with one row, a mapping of
    names to values (a data frame's row too), or the values in the network's order. `BadInput` says what is wrong.
    """
    if isinstance(source, str | Path):
        return _row_of_text(str(source), contract, own)
    if not isinstance(source, Mapping) and hasattr(source, "to_dict") and not hasattr(source, "columns"):
        source = source.to_dict()  # a row of a data frame
    if isinstance(source, Mapping):
        data = _named(records("the row", [source]), contract, None, "{}", target=False)
        return data.read(0)
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if hasattr(source, "columns"):
        return _only(open_table(source, contract), "the data frame").read(0)
    if not isinstance(source, Sequence | np.ndarray):
        raise BadInput(
            f"a {type(source).__name__} is no row; give FILE.csv:N, data:N, a mapping, or the values in order"
        )
    values = list(np.asarray(source, object).reshape(-1)) if isinstance(source, np.ndarray) else list(source)
    if len(values) != len(contract.columns):
        raise BadInput(f"the row has {len(values)} values, the network takes {len(contract.columns)} columns")
    row = np.array([_value(c, v, "the row", True) for c, v in zip(contract.columns, values, strict=True)], np.float64)
    contract.check(row[None])
    return row


def _row_of_text(text: str, contract: TableContract, own: Data | None) -> NDArray[np.float64]:
    counted = re.fullmatch(r"data:(\d+)", text)
    data, number = own, int(counted[1]) if counted else 0
    if counted is None:
        placed = re.fullmatch(r"(.+):(\d+)", text)
        if placed is not None and not Path(text).exists():
            data, number = open_table(placed[1], _untold(contract)), int(placed[2])
        else:
            data = _only(open_table(text, _untold(contract)), text)
    if data is None:
        raise BadInput(
            f"there is no data for {text!r} to count in; name a file, as in FILE.csv:{number}, or give the data too"
        )
    if number >= len(data):
        raise BadInput(f"{data.name} has rows 0 to {len(data) - 1}; there is no {number}")
    row: NDArray[np.float64] = np.asarray(data.read(number), np.float64)
    return row


def _untold(contract: TableContract) -> TableContract:
    """The contract without its classes, of which a row has no need."""
    return TableContract.of(contract.columns)


def _only(data: Data, name: str) -> Data:
    if len(data) != 1:
        raise BadInput(f"{name} has {len(data)} rows; name one of them, {name}:0 to {name}:{len(data) - 1}")
    return data


def _array(array: NDArray[Any], contract: TableContract) -> TableData:
    if array.ndim == 1 and array.shape[0] == len(contract.columns):
        array = array[None]
    if array.dtype.kind not in "fiub":
        raise BadInput(f"the array holds {array.dtype} values; give numbers, or a mapping of names to columns")
    rows = array.astype(np.float64)
    whole = np.isfinite(rows).all(1) if rows.ndim == 2 else np.ones(1, bool)
    contract.check(rows[whole] if rows.ndim == 2 and whole.any() else rows)
    faults = {}
    for n in np.flatnonzero(~whole).tolist():
        column = contract.names[int(np.flatnonzero(~np.isfinite(rows[n]))[0])]
        faults[n] = f"array[{n}] has no finite number in column {column!r}"
    return TableData("array", contract, rows, faults)


def _stacked(rows: Sequence[Any]) -> NDArray[Any]:
    try:
        return np.array([[float(value) for value in row] for row in rows])
    except (TypeError, ValueError) as error:
        raise BadInput(f"the rows are no array of numbers ({error}); {GIVE}") from error


def _named(
    cells: Cells, contract: TableContract, labels: Sequence[str] | None, place: str, target: bool = True
) -> TableData:
    _check_header(cells, contract)
    faults = dict(cells.faults)
    rows = np.empty((len(cells.where), len(contract.columns)))
    for n, column in enumerate(contract.columns):
        rows[:, n], wrong = _numbers(column, cells)
        for row, reason in wrong.items():
            faults.setdefault(row, reason)
    for row in cells.faults:
        rows[row] = np.nan
    truth, classes = _truth(cells, contract.target, labels) if target else (None, ())
    return TableData(cells.name, contract, rows, faults, truth, classes, _row_names(cells, contract), place)


def _check_header(cells: Cells, contract: TableContract) -> None:
    """`BadInput` unless the table has every column, each once."""
    missing = [name for name in contract.names if name not in cells.columns]
    header = list(cells.columns)
    for name in (*contract.names, contract.target):
        if name and cells.columns.get(name) is TWICE:
            raise BadInput(f"{cells.name} has more than one column {name!r}; every column has a name of its own")
    if not missing:
        return
    if len(header) == 1 and len(contract.columns) > 1:
        raise BadInput(
            f"{cells.name} has one column, {header[0][:60]!r}; columns are to be parted by commas, semicolons or tabs"
        )
    if len(missing) == len(contract.columns) and all(_is_number(name) for name in header if name):
        raise BadInput(
            f"{cells.name} has no header line; its first line has to name the columns, as in {', '.join(contract.names[:3])}"
        )
    rest = f", nor {len(missing) - 1} more that the network takes" if len(missing) > 1 else ", which the network takes"
    near = near_names(missing[0], [name for name in header if name not in contract.names])
    meant = "; did you mean " + " or ".join(map(repr, near)) + "?" if near else ";"
    shown = ", ".join(header[:12]) + (", …" if len(header) > 12 else "")
    raise BadInput(
        f"{cells.name} has no column {missing[0]!r}{rest}{meant} {'It' if near else 'it'} has {len(header)}: {shown}"
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(column: Column, cells: Cells) -> tuple[NDArray[np.float64], dict[int, str]]:
    """(N,) raw values of a column, NaN where one cannot be read, and why."""
    given = cells.columns[column.name]
    if not column.values:
        try:
            fast = np.array(given, np.float64)
        except (TypeError, ValueError):
            pass
        else:
            if fast.shape == (len(cells.where),) and np.isfinite(fast).all():
                return fast, {}
    values, wrong = np.full(len(cells.where), np.nan), {}
    for n, cell in enumerate(given):
        if n in cells.faults:
            continue
        try:
            values[n] = _value(column, cell, cells.where[n], False)
        except BadInput as error:
            wrong[n] = str(error)
    return values, wrong


def _value(column: Column, cell: Any, where: str, positions: bool) -> float:
    """The raw value of a cell: text, a number, or with `positions` a category's place among its column's values."""
    if cell is None or (isinstance(cell, str) and cell.strip().lower() in _EMPTY and cell.strip() not in column.values):
        raise BadInput(f"{where} has no value in column {column.name!r}")
    if isinstance(cell, str):
        return column.number(cell, where)
    try:
        number = float(cell)
    except (TypeError, ValueError):
        return column.number(str(cell), where)
    if math.isnan(number):
        raise BadInput(f"{where} has no value in column {column.name!r}")
    if column.values and not positions:
        text = str(cell)
        return column.number(text if text in column.values else f"{number:g}", where)
    return number


def _truth(cells: Cells, target: str, labels: Sequence[str] | None) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Classes (N,), -1 where none is given, and their names."""
    if not target or target not in cells.columns:
        return None, ()
    texts = ["" if c is None else str(c).strip() for c in cells.columns[target]]
    known = tuple(map(str, labels)) if labels is not None else _own_classes(texts)
    numbers = {name: n for n, name in enumerate(known)}
    truth = np.full(len(texts), -1, np.int64)
    for n, text in enumerate(texts):
        if text.lower() in _EMPTY and text not in numbers:
            continue
        found = numbers.get(text, _class_number(text, len(known)))
        if found is None:
            raise BadInput(
                f"{cells.where[n]}: {text!r} in column {target!r} is no class; the model's are {', '.join(known[:12])}"
                f"{', …' if len(known) > 12 else ''}, or their numbers"
            )
        truth[n] = found
    return truth, known


def _own_classes(texts: Iterable[str]) -> tuple[str, ...]:
    """Names of classes where the model has none: numbers as they count, texts in alphabetical order."""
    found = sorted({text for text in texts if text.lower() not in _EMPTY})
    numbers = [_class_number(text, 2**31) for text in found]
    if found and all(number is not None for number in numbers):
        return tuple(str(n) for n in range(1 + max(number for number in numbers if number is not None)))
    return tuple(found)


def _class_number(text: str, classes: int) -> int | None:
    try:
        number = float(text)
    except ValueError:
        return None
    whole = math.isfinite(number) and number == int(number)
    return int(number) if whole and 0 <= number < classes else None


def _row_names(cells: Cells, contract: TableContract) -> list[str] | None:
    """What a column called id, name or index calls the rows, if all are different."""
    for name, given in cells.columns.items():
        if name.lower() in _NAMES and name not in (*contract.names, contract.target) and given is not TWICE:
            texts = ["" if cell is None else str(cell).strip() for cell in given]
            if all(texts) and len(set(texts)) == len(texts):
                return texts
    return None

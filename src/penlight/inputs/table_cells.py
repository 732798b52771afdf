"""Cells of tables as they are found in files, data frames, mappings and records, before any column is read."""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penlight.errors import BadInput

SUFFIXES = (".csv", ".tsv", ".parquet")
GIVE = "give a .csv, .tsv or .parquet file, a data frame, a mapping of columns, a list of mappings, or an array (N, columns)"
_DELIMITERS = ",;\t"


class _Several(tuple[Any, ...]):
    """Stands for the cells of columns that share a name."""


TWICE = _Several()


@dataclass(frozen=True)
class Cells:
    """A table as it was found: its columns' cells by name, how rows are named, and where each stands in words.

    `faults` holds what is wrong with rows that have too many or too few cells.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    where: Sequence[str]
    faults: Mapping[int, str]


def read_cells(path: Path) -> Cells:
    suffix = path.suffix.lower()
    if path.is_dir() or not path.exists():
        what = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise BadInput(f"{what}; {GIVE}")
    if suffix == ".parquet":
        return _parquet(path)
    if suffix not in SUFFIXES:
        raise BadInput(f"{path} is no table; {GIVE}")
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is no UTF-8 text (byte {error.start}); save it as CSV in UTF-8") from error
    if "\0" in text:
        raise BadInput(f"{path} is a binary file, no text; save it as CSV in UTF-8")
    if not text.strip():
        raise BadInput(f"{path} is empty; its first line has to name the columns")
    return _csv(path.name, text, "\t" if suffix == ".tsv" else _delimiter(text))


def _delimiter(text: str) -> str:
    """Of comma, semicolon and tab the one that the first line has most of, outside of quotes."""
    first = next(line for line in text.splitlines() if line.strip())
    counts = {mark: len(next(csv.reader([first], delimiter=mark))) for mark in _DELIMITERS}
    return max(counts, key=lambda mark: counts[mark])


def _csv(name: str, text: str, delimiter: str) -> Cells:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        before = 0
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise BadInput(f"{name}, line {reader.line_num}: {error}; save it as CSV with quoted cells") from error
    header, body = [cell.strip() for cell in rows[0]], rows[1:]
    if not body:
        raise BadInput(f"{name} has a header line and no rows")
    faults = {
        n: f"{name}, line {lines[n + 1]} has {len(row)} cells, the header {len(header)}"
        for n, row in enumerate(body)
        if len(row) != len(header)
    }
    whole = [row if len(row) == len(header) else (row + [""] * len(header))[: len(header)] for row in body]
    columns = dict(zip(header, zip(*whole, strict=True), strict=False))
    twice = sorted({cell for cell in header if header.count(cell) > 1 and cell})
    for cell in twice:  # told if it is a column that is wanted
        columns[cell] = TWICE
    return Cells(name, columns, [f"{name}, line {line}" for line in lines[1:]], faults)


def _parquet(path: Path) -> Cells:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise BadInput(f"{path} needs pyarrow to be read: pip install 'penlight[tables]', or save it as CSV") from error
    try:
        table = parquet.read_table(path)
        columns = {str(name): table.column(name).to_pylist() for name in table.column_names}
    except Exception as error:  # pyarrow has errors of its own
        raise BadInput(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error
    return _columns(path.name, columns, "{}, row {}")


def cells_of(source: Any) -> Cells | None:
    """Cells of a frame, a mapping, a structured array or records; None for nested sequences, which are an array."""
    if isinstance(source, Mapping):
        return _columns("table", {str(name): list(values) for name, values in source.items()})
    if isinstance(source, np.ndarray) and source.dtype.names:
        return _columns("table", {name: source[name].tolist() for name in source.dtype.names})
    if hasattr(source, "columns") and hasattr(source, "__getitem__"):
        names = [str(name) for name in source.columns]
        found = {str(name): TWICE if names.count(str(name)) > 1 else list(source[name]) for name in source.columns}
        return _columns("data frame", found)
    if isinstance(source, Sequence) and not isinstance(source, bytes) and len(source):
        if all(isinstance(row, Mapping) for row in source):
            return records("table", source)
        if all(isinstance(row, Sequence | np.ndarray) and not isinstance(row, str) for row in source):
            return None
    raise BadInput(f"a {type(source).__name__} is no table; {GIVE}")


def _columns(name: str, columns: Mapping[str, Sequence[Any]], where: str = "{}[{}]") -> Cells:
    lengths = {column: len(cells) for column, cells in columns.items() if cells is not TWICE}
    if len(set(lengths.values())) > 1:
        first = next(iter(lengths))
        other = next(column for column, n in lengths.items() if n != lengths[first])
        raise BadInput(
            f"{name}: column {first!r} has {lengths[first]} values, {other!r} {lengths[other]}; give as many in each"
        )
    count = next(iter(lengths.values()), 0)
    if not count:
        raise BadInput(f"{name} holds no rows")
    return Cells(name, columns, [where.format(name, n) for n in range(count)], {})


def records(name: str, records: Sequence[Mapping[Any, Any]]) -> Cells:
    keys = dict.fromkeys(str(key) for record in records for key in record)
    told = [{str(key): value for key, value in record.items()} for record in records]
    where = [f"{name}[{n}]" for n in range(len(records))] if name != "the row" else [name]
    return Cells(name, {key: [record.get(key) for record in told] for key in keys}, where, {})

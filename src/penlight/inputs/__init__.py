"""What a network takes in: the contract of its input, and data read to that contract. None of these modules imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penlight.inputs.contract import InputContract
from penlight.inputs.data import Batch, Data, batches, open_data, pick
from penlight.inputs.image import read_picture
from penlight.inputs.one import Inputs, read_input
from penlight.inputs.table import Column, TableContract
from penlight.inputs.text import TextContract


def read_contract(table: Mapping[str, Any], folder: Path) -> InputContract:
    """The contract of a model card's `[input]` table, by its kind; files it names lie in `folder`."""
    if table.get("kind") == "text":
        return TextContract.from_table(table, folder)
    if table.get("kind") == "table":
        return TableContract.from_table(table)
    return InputContract.from_mapping(dict(table))


__all__ = [
    "Batch",
    "Column",
    "Data",
    "InputContract",
    "Inputs",
    "TableContract",
    "TextContract",
    "batches",
    "open_data",
    "pick",
    "read_contract",
    "read_input",
    "read_picture",
]

"""Rows of the data that stand behind one row of a table: what its columns could as well have held."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput
from penlight.inputs import Data, InputContract

Numbers = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Background:
    """Rows (n, columns) in their own units, float64, their numbers in the data (n,), and how many could not be read."""

    rows: Numbers
    numbers: NDArray[np.int64]
    skipped: int

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of rows that are lacking."""
        return (f"{self.skipped} rows of the data cannot be read and were left out",) if self.skipped else ()


def background(data: Data, contract: InputContract, most: int, rng: np.random.Generator | None = None) -> Background:
    """Up to `most` rows of `data`: all there are, or as many drawn by `rng`, spread evenly without one.

    Rows that cannot be read are left out; `BadInput` if none can.
    """
    count = len(data)
    if count <= most:
        chosen = np.arange(count)
    elif rng is None:
        chosen = np.unique(np.linspace(0, count - 1, most).astype(np.int64))
    else:
        chosen = np.sort(rng.choice(count, most, replace=False))
    rows, kept, first = [], [], ""
    for number in chosen.tolist():
        try:
            row = data.read(number)
            contract.check(row[None])
        except BadInput as error:
            first = first or str(error)
            continue
        rows.append(row / 255 if row.dtype == np.uint8 else row)
        kept.append(number)
    if not rows:
        raise BadInput(f"no row of {data.name} can be read: {first}" if first else f"{data.name} has no rows")
    return Background(np.stack(rows).astype(np.float64), np.array(kept, np.int64), len(chosen) - len(kept))

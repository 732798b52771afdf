"""A row of a table, a column at a time: how the value changes when the column holds what other rows hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadOption, CannotRun
from penlight.inputs import TableContract
from penlight.models import Model
from penlight.models.memory import free_bytes
from penlight.techniques.explain.background import background
from penlight.techniques.explain.chunks import in_chunks
from penlight.techniques.explain.explanation import Attribution, Scene
from penlight.techniques.explain.fills import filled

MOST = 200  # rows whose values are put in
_SHARE, _AT_ONCE = 0.2, 8192  # of the free memory, and inputs, that a batch may take


def occluded_row(scene: Scene, contract: TableContract, fill: str) -> Attribution:
    """(columns,): the aim's value less its mean with the column's value taken from other rows, all of the data or up to 200 drawn.

    Everything else stays as it is (marginal resampling). With a `fill`, or without data, the column takes one value instead.
    """
    notes: tuple[str, ...] = ()
    if fill == "rows" and scene.data is None:
        raise BadOption("fill 'rows' takes values of other rows, and there is no data: give data, or fill zeros")
    if fill in ("auto", "rows") and scene.data is not None:
        found = background(scene.data, contract, MOST, scene.rng("rows"))
        others, numbers, notes = scene.model.tensor(found.rows), found.numbers, found.notes
    else:
        others, numbers = filled(scene, "zeros" if fill == "auto" else fill), None
        if fill == "auto":
            notes = (
                "without data every column is put at its mean, a category at none; with --data it takes the values of other rows",
            )
    values = _values(scene, contract, others)
    drops = scene.value - values
    extras: dict[str, NDArray[Any]] = {"scores": values.astype(np.float32)}
    evidence: dict[str, Any] = {"put in": "one value" if numbers is None else "values of other rows"}
    if numbers is not None:
        evidence["rows"] = len(others)
        extras["rows"] = numbers
    if len(others) > 1:
        error = drops.std(1, ddof=1) / np.sqrt(len(others))
        extras["standard error"] = error.astype(np.float32)
        strongest = int(np.abs(drops.mean(1)).argmax())
        evidence["standard error, of the strongest"] = float(error[strongest])
        evidence["largest standard error"] = float(error.max())
    place, row = np.unravel_index(int(values.argmin()), values.shape)
    evidence |= {"lowest value": float(values[place, row]), "lowest at": contract.names[place]}
    return Attribution(drops.mean(1).astype(np.float32), True, evidence, notes, extras)


def _values(scene: Scene, contract: TableContract, others: Tensor) -> NDArray[np.float64]:
    """(columns, k): the aim's value with each column taken from each of `others` (k, inputs)."""
    count, columns = len(others), len(contract.columns)
    owners = torch.from_numpy(contract.owners).to(scene.x.device)
    network = scene.prepared()

    def run(start: int, stop: int) -> NDArray[np.float64]:
        at = torch.arange(start, stop, device=scene.x.device)
        taken = owners[None] == (at // count)[:, None]
        answer: NDArray[np.float64] = (
            scene.scores(network, torch.where(taken, others[at % count], scene.x)).double().cpu().numpy()
        )
        scene.progress(stop, columns * count)
        return answer

    values = np.concatenate(in_chunks(run, columns * count, at_once(scene.model, _AT_ONCE)))
    if not np.isfinite(values).all():
        raise CannotRun(f"{scene.aim} is not finite for {int((~np.isfinite(values)).sum())} of {len(values)} inputs")
    return values.reshape(columns, count)


def at_once(model: Model, most: int) -> int:
    """Inputs a batch, at most `most`, by the sizes of the network's maps and the free memory."""
    each = 4 * sum(int(np.prod(layer.shape)) for layer in model.layers.values() if layer.alias_of is None)
    each += 4 * int(np.prod(model.contract.shape))
    return int(max(1, min(most, _SHARE * free_bytes(model.device) / each)))

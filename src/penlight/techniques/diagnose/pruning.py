"""The network without the units that can go: written to a file, and measured."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from penlight.errors import BadInput, BadOutput, CannotRun
from penlight.inputs import Data, batches
from penlight.models import Model
from penlight.models.places import macs
from penlight.models.surgery import prunable, prune
from penlight.results.diagnose import DiagnoseResult, Pruned
from penlight.techniques.diagnose.ablation import Bench, find_truth

_BATCH = 32


def pruned(model: Model, result: DiagnoseResult, data: Data, file: str | Path) -> tuple[DiagnoseResult, Model]:
    """Cut `result.removable` out of the weights where the architecture allows it, write them to `file`, and measure on all of `data`.

    Beside OUT.safetensors, OUT.json says which units of each layer were kept. Returns the result with `pruned`, and the smaller model.
    Raises `CannotRun` if nothing can be cut, `BadOutput` if the file cannot be written.
    """
    file = checked_file(file)
    refused = {path: reason for path, reason in prunable(model, result.removable).items() if reason}
    wanted = {path: units for path, units in result.removable.items() if path not in refused}
    if not wanted:
        why = next(iter(refused.values()), "no unit can go within the stated loss")
        raise CannotRun(f"nothing can be pruned: {why}")
    small = _cut(model, result, wanted)
    before, after = _told(model, data, model), _told(small, data, model)
    state = {key: value.detach().cpu().contiguous() for key, value in small.network.state_dict().items()}
    _write(file, model, small, wanted, state)
    told = Pruned(
        file.name,
        wanted,
        refused,
        sum(p.numel() for p in model.network.parameters()),
        sum(p.numel() for p in small.network.parameters()),
        macs(model),
        macs(small),
        before[1],
        after[1],
        before[0],
        after[0],
        tuple(state),
    )
    return replace(result, pruned=told), small


def checked_file(file: str | Path) -> Path:
    """The file's path; `BadOutput` unless it ends in .safetensors and its folder is there."""
    file = Path(file)
    if file.suffix != ".safetensors":
        raise BadOutput(f"{file} has to end in .safetensors")
    if not file.absolute().parent.is_dir():
        raise BadOutput(f"there is no folder {file.absolute().parent} to write {file.name} to")
    return file


def _cut(model: Model, result: DiagnoseResult, wanted: dict[str, tuple[int, ...]]) -> Model:
    """Pruned with the means taken over where that was measured and can be, else with zeros."""
    scaled = {path: result.scaled.get(path, {}) for path in wanted}
    if result.provenance.options.get("replace") == "mean":
        try:
            return prune(
                model, wanted, means={path: result.layers[path].mean.tolist() for path in wanted}, scaled=scaled
            )
        except CannotRun:
            pass  # a reader pads: its bias cannot stand for the mean at the rim
    return prune(model, wanted, scaled=scaled)


def _told(model: Model, data: Data, whole: Model) -> tuple[float, float]:
    """(loss, accuracy) of a model on data; without labels against what the whole one says."""
    own = Bench(whole, whole.prepared(), {}, find_truth(whole, data))
    other = own if model is whole else Bench(model, model.prepared(), {}, own.truth)
    rows = []
    for batch in batches(data, _BATCH):
        if batch.index:
            rows.append(other.judged_scores(batch.inputs, batch.classes, own))
    if not rows:
        raise BadInput(f"not one input of {data.name} can be read")
    both = np.concatenate(rows, 1)
    both = both[:, ~np.isnan(both[0])]
    return float(both[0].mean()), float(both[1].mean())


def _write(
    file: Path, model: Model, small: Model, wanted: dict[str, tuple[int, ...]], state: dict[str, object]
) -> None:
    kept = {path: [u for u in range(model.layers[path].units) if u not in units] for path, units in wanted.items()}
    about = {"model": model.reference, "hash": model.hash, "kept": kept, "pruned_hash": small.hash}
    staging, beside = file.with_name(f".{file.name}.part"), file.with_suffix(".json")
    try:
        save_file(state, staging)  # type: ignore[arg-type]
        staging.chmod(0o644)  # safetensors keeps it to the user
        os.replace(staging, file)
        beside.write_text(json.dumps(about, indent=1), "utf-8")
    except OSError as error:
        raise BadOutput(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        staging.unlink(missing_ok=True)

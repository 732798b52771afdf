"""Every question of every unit, kept in a folder, and the methods there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from penlight.api.opening import as_model, find_data
from penlight.jobs import AtlasOptions, Outcome, plan_atlas, run_plan
from penlight.jobs.executors.processes import helpers
from penlight.jobs.run import Watch
from penlight.models import Model
from penlight.store import Atlas
from penlight.techniques.contract import VERBS, methods
from penlight.techniques.options import table


@dataclass(frozen=True)
class Built:
    """An atlas that was built: its folder, the number of tasks, and what the run did."""

    folder: Path
    tasks: int
    outcome: Outcome


@torch.inference_mode(False)
def build_atlas(
    model: Model | str | Path,
    data: Any,
    folder: str | Path,
    *,
    watch: Watch | None = None,
    method: str = "",
    seeds: int = 3,
    top: int = 9,
    seed: int = 0,
    layers: str | Sequence[str] = (),
    workers: int | None = None,
    **options: Any,
) -> Built:
    """Ask every question of every unit and keep the answers in `folder`; what is there already is not asked again.

    >>> penlight.build_atlas(model, "pictures/", "atlas/")     # doctest: +SKIP

    `seeds` is the number of random starts a unit, `top` of real examples; `options` go to the synthesis method. `workers` processes
    share the tasks and torch's threads, this one among them; None: one a thread, eight at most, fewer where memory is short, and one
    alone on a GPU. The answers are the same. A run that is killed at any moment goes on where it was when called again. Raises
    `ModelMismatch` if the folder holds another network's atlas, `BadOutput` if it holds something else or cannot be written.
    """
    opened = as_model(model)
    patterns = [layers] if isinstance(layers, str) else list(layers)
    found = find_data(opened, data)
    asked = AtlasOptions(method, seeds, top, seed=seed, layers=patterns, options=options)
    tasks = plan_atlas(opened, found, asked)
    with Atlas.create(folder) as atlas:
        atlas.claim(_header(opened))
        atlas.set_meta("data", {"name": found.name, "count": len(found), "classes": found.classes})
        atlas.set_plan([task.key for task in tasks])
        left = [task for task in tasks if not atlas.has(task.key)]
        with helpers(opened, found, left, workers) as crew:
            outcome = run_plan(tasks, opened, found, atlas, watch, crew)
    return Built(Path(folder), len(tasks), outcome)


def method_rows() -> list[dict[str, Any]]:
    """Every registered method: verb, name, paper, summary, and its options with type, default, range and help."""
    rows = []
    for verb in VERBS:
        for name in methods[verb]:
            technique = methods[verb][name]
            summary = (technique.__doc__ or "").strip().partition("\n")[0]
            rows.append(
                {
                    "verb": verb,
                    "method": name,
                    "summary": summary,
                    "paper": technique.paper,
                    "options": table(technique),
                }
            )
    return rows


def _header(model: Model) -> dict[str, Any]:
    return {
        "reference": Path(model.reference).name if "/" in model.reference else model.reference,
        "hash": model.hash,
        "name": Path(model.reference).stem if model.reference.endswith(".toml") else model.reference,
        "kind": model.contract.kind,
        "shape": list(model.contract.shape),
        "labels": None if model.labels is None else list(model.labels),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "class_layer": model.class_layer,
        "figures": model.figures,
        "layers": model.rows(),
    }

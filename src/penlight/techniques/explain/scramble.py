"""Copies of a network whose weights are scrambled from the unit downwards, for the randomisation test (Adebayo et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from penlight.models import Model
from penlight.models.probe import LOGITS, frozen_copy, split_call
from penlight.techniques.explain.explanation import Scene


@dataclass(frozen=True)
class Stage:
    """One step of the way down: the lowest layer reached, the share of the layers with weights, and the names of all parameters so far."""

    layer: str
    share: float
    parameters: tuple[str, ...]


def stages(model: Model, layer: str, most: int = 5) -> list[Stage]:
    """Up to `most` steps from the layer of the unit down to the input; the first scrambles one layer, the last all there are."""
    groups = _groups(model, layer)
    if not groups:
        return []
    reached = np.unique(np.rint(np.linspace(1, len(groups), min(most, len(groups)))).astype(int))
    return [
        Stage(groups[n - 1][0], float(n / len(groups)), tuple(name for _, names in groups[:n] for name in names))
        for n in reached
    ]


def scrambled(scene: Scene, steps: Sequence[Stage]) -> Iterator[Model]:
    """A model for every step: the user's with the step's parameters each shuffled within itself; all else is as it was."""
    model = scene.model
    for step in steps:
        network = frozen_copy(model.network)
        own = dict(network.named_parameters())
        with torch.no_grad():
            for name in step.parameters:
                flat = own[name].flatten()
                order = torch.from_numpy(scene.rng("scramble", name).permutation(len(flat))).to(flat.device)
                own[name].copy_(flat[order].reshape(own[name].shape))
        copy = type(model)(
            network, model.contract, model.labels, model.reference, model.figures, model.data, model.generator
        )
        vars(copy)["hash"] = model.hash  # no result of it is kept, and digesting all weights at every step takes long
        yield copy


def _groups(model: Model, layer: str) -> list[tuple[str, list[str]]]:
    """(lowest layer, its parameters and those of the norms after it), from the unit's layer down to the input."""
    names = {id(p): name for name, p in model.network.named_parameters()}
    found: list[tuple[str, list[str]]] = []
    before: list[str] = []  # what stands before the first layer with weights
    paths = list(model.layers)
    upto = paths.index(layer) + 1
    for path in paths[:upto]:
        own = [p for p in _parameters(model, path) if id(p) in names]
        heavy, told = any(p.ndim > 1 for p in own), [names.pop(id(p)) for p in own]
        if heavy:
            found.append((path, told))
        elif found:
            found[-1][1].extend(told)
        else:
            before += told
    for path in paths[upto:]:
        if not layer.startswith(f"{path}."):  # what runs after the unit
            for p in _parameters(model, path, deep=False):
                names.pop(id(p), None)
    rest = [*before, *(names.values() if layer == LOGITS or found else ())]
    if found:
        found[0][1].extend(rest)
    elif rest:
        found.append((paths[0], rest))
    return found[::-1]


def _parameters(model: Model, path: str, deep: bool = True) -> list[nn.Parameter]:
    if path == LOGITS:
        return []
    return list(model.network.get_submodule(split_call(path)[0]).parameters(recurse=deep))

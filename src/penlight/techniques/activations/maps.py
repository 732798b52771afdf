"""`maps`: what every unit of every layer does with some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput, CannotRun
from penlight.inputs import Data
from penlight.models import Model, Probe
from penlight.models.probe import undisturbed
from penlight.results import ActivationsResult
from penlight.results.activations import SCALES, Display
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance


@dataclass(frozen=True)
class Maps(Technique):
    """All maps of all layers for some inputs, as DeepVis shows them live.

    The inputs are those of `request.data`, up to `count` of them; the layers those of the request, or all that are no alias of another.
    """

    verb: ClassVar[str] = "activations"
    name: ClassVar[str] = "maps"
    paper: ClassVar[str] = "Yosinski et al. 2015, arXiv:1506.06579"
    reads_data: ClassVar[bool] = True

    count: int = option(16, "inputs at most", low=1, high=100000)
    scale: str = option(
        "layer", "the strongest colour is the largest magnitude of the layer, or of each unit", choices=SCALES
    )
    boost: float = option(
        0.0,
        "lift weak units: 0 as they are, 1 each to the layer's strongest (DeepVis: 0, .3, .5, .8, 1)",
        low=0.0,
        high=1.0,
    )
    gamma: float = option(1.0, "lift weak values: power of the magnitudes (DeepVis: 1, .7, .5, .3)", low=0.05, high=5.0)

    def run(self, request: Request) -> ActivationsResult:
        """`BadInput` without inputs, or if one cannot be read."""
        if request.data is None:
            raise BadInput("activations are of inputs: give a picture file, an array, or data:N")
        model, data = request.model, request.data
        layers = list(request.layers) or [path for path, layer in model.layers.items() if layer.alias_of is None]
        indices = range(min(self.count, len(data)))
        inputs = np.stack([data.read(n) for n in indices])
        found: list[dict[str, NDArray[np.float32]]] = []
        for n in indices:
            found.append(read_maps(model, layers, inputs[n]))
            request.progress(n + 1, len(indices))
        return gathered(self, request, data, inputs, found)

    @property
    def display(self) -> Display:
        """How the pictures are to be coloured."""
        return Display(self.scale, self.boost, self.gamma)


def read_maps(model: Model, layers: Sequence[str], one: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
    """(units, *positions) of every layer for one input (*shape), from one pass."""
    kept: dict[str, Tensor] = {}

    def reader(path: str) -> Any:
        return lambda output: kept.update({path: model.layers[path].units_first(output)[0].float().clone()})

    with undisturbed(model.network), torch.no_grad():
        with Probe(model.network, {path: reader(path) for path in layers}) as probe:
            probe(model.tensor(one[None]))
    missing = [path for path in layers if path not in kept]
    if missing:
        raise CannotRun(f"layer {missing[0]!r} was not reached with this input")
    return {path: kept[path].cpu().numpy() for path in layers}


def gathered(
    technique: Maps, request: Request, data: Data, inputs: NDArray[Any], found: Sequence[dict[str, NDArray[np.float32]]],
    runs: Sequence[str] = (), models: Sequence[Model] = (),
) -> ActivationsResult:  # fmt: skip
    """The runs as one result; `runs` names them where they are no inputs of the data, `models` were asked where not the request's."""
    model = request.model
    layers = list(found[0])
    for path in layers:
        if len({one[path].shape for one in found}) > 1:
            raise CannotRun(f"layer {path!r} puts out maps of different sizes for these inputs; ask for one at a time")
    asked = list(models) or [model] * len(inputs)
    shares = np.zeros((len(inputs), 0), np.float32)
    if model.class_layer is not None:
        shares = np.concatenate([own.probabilities(one[None]) for own, one in zip(asked, inputs, strict=True)])
    return ActivationsResult(
        provenance(technique, request),
        tuple(runs) or tuple(data.label(n)[0] for n in range(len(inputs))),
        {path: np.stack([one[path] for one in found]) for path in layers},
        {path: model.layers[path].kind for path in layers},
        inputs,
        shares,
        model.labels,
        model.class_layer,
        technique.display,
    )


def over_checkpoints(technique: Maps, request: Request, stages: Sequence[tuple[str, Model]]) -> ActivationsResult:
    """The first input of the request's data through each of the models `stages`, which are the request's with other weights."""
    if request.data is None:
        raise BadInput("activations are of inputs: give a picture file, an array, or data:N")
    layers = list(request.layers) or [path for path, layer in request.model.layers.items() if layer.alias_of is None]
    one = request.data.read(0)
    found = []
    for n, (_, model) in enumerate(stages):
        found.append(read_maps(model, layers, one))
        request.progress(n + 1, len(stages))
    inputs = np.repeat(one[None], len(stages), 0)
    names = [name for name, _ in stages]
    return gathered(technique, request, request.data, inputs, found, names, [model for _, model in stages])

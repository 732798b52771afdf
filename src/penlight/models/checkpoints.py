"""One network at several stages of its training."""

from __future__ import annotations

import copy
from pathlib import Path

from penlight.errors import CannotRun
from penlight.models.model import Model
from penlight.models.sources.card import load_weights


def with_weights(model: Model, file: str | Path, trust: bool = False) -> Model:
    """The same model with the weights of a .safetensors file, or with `trust` of a pickle; the given one is left as it is.

    Raises `BadWeights` if they do not fit or are damaged, `Untrusted` for a pickle without `trust`.
    """
    try:
        network = copy.deepcopy(model.network)
    except Exception as error:  # a module may hold anything
        raise CannotRun(f"the network cannot be copied ({type(error).__name__}: {error})") from error
    load_weights(network, Path(file), trust)
    own = Model(network.to(model.device), model.contract, model.labels, f"{model.reference} with {Path(file).name}")
    return own

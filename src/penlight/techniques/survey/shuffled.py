"""The same network with its weights in another order: cells that nobody trained."""

from __future__ import annotations

import copy

import numpy as np
import torch

from penlight.errors import CannotRun
from penlight.models import Model


def shuffled(model: Model, rng: np.random.Generator) -> Model:
    """A copy in which the entries of every parameter are put in another order, each among its own; the given one stays as it is."""
    try:
        network = copy.deepcopy(model.network)
    except Exception as error:  # a module may hold anything: report what it holds
        raise CannotRun(f"the network cannot be copied ({type(error).__name__}: {error})") from error
    with torch.no_grad():
        for parameter in network.parameters():
            order = torch.from_numpy(rng.permutation(parameter.numel())).to(parameter.device)
            parameter.copy_(parameter.detach().reshape(-1)[order].reshape(parameter.shape))
    return Model(network, model.contract)

"""Networks that say which token comes next."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from penlight.errors import CannotRun
from penlight.models.model import Model
from penlight.models.tracks import OUTPUT, Reader

_LEAST = 1e-12  # a probability that stands for 0
_SUM = 1e-3  # how far the sum of probabilities may be from 1


def log_shares(scores: Tensor) -> Tensor:
    """Scores before softmax, or probabilities, or their logarithms (…, V) → natural logarithms of the probabilities."""
    scores = scores.float()
    if bool((scores >= 0).all()) and bool(((scores.sum(-1) - 1).abs() < _SUM).all()):
        return scores.clamp_min(_LEAST).log()
    return scores.log_softmax(-1)


def continues(model: Model) -> bool:
    """Whether the output is a score for each token of the vocabulary at every step, made without looking ahead."""
    assert model.text is not None
    words, rng = len(model.text.vocabulary), np.random.default_rng(0)
    steps = 12 if words != 12 else 13  # another number than the scores', by which axes are told apart
    ids = rng.integers(words, size=(2, steps))
    other = ids.copy()
    other[:, 6:] = (ids[:, 6:] + 1) % words
    try:
        reader = Reader(model, [OUTPUT])
        one, two = reader(ids)[OUTPUT], reader(other)[OUTPUT]
    except CannotRun:
        return False
    if one.shape[-1] != words:
        return False
    return bool(torch.allclose(one[:, :6], two[:, :6], rtol=1e-4, atol=1e-5))

"""How likely a text is: by the scores of a network that continues texts, or by the pairs of tokens of other texts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput
from penlight.inputs import Data
from penlight.models import Model
from penlight.models.language import continues, log_shares

_PAIRS = 2048  # tokens of a vocabulary up to which pairs are counted, above it single tokens
_BACK = 2.0  # how often a pair has to be met until its own count weighs as much as the single tokens'


@dataclass(frozen=True, eq=False)
class Prior:
    """How likely each token is to come next, in bits.

    source   whose likelihood it is, in words
    own      it is read off the network's output
    table    (V, V) or (1, V): log2 of the probability of the next token after each; None where it is `own` or all are alike
    """

    source: str
    own: bool = False
    table: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether anything is known of likelihood."""
        return self.own or self.table is not None

    def next(self, scores: Tensor | None, last: Tensor, words: int) -> Tensor:
        """(N, V): log2 probabilities of the token after `last` (N,), whose output was `scores` (N, V)."""
        if self.own:
            assert scores is not None
            return log2(scores)
        if self.table is None:
            return torch.full((len(last), words), -math.log2(words), device=last.device)
        return self.table[last] if len(self.table) > 1 else self.table.expand(len(last), -1)

    def bits(self, scores: Tensor | None, ids: Tensor) -> Tensor:
        """(N, T): surprise of every token in bits, 0 for the first; `scores` (N, T, V) is what was put out at each."""
        lost = torch.zeros(ids.shape, device=ids.device)
        if not self.known or ids.shape[1] < 2:
            return lost
        if self.own:
            assert scores is not None
            found = log2(scores[:, :-1]).gather(2, ids[:, 1:, None]).squeeze(2)
        else:
            assert self.table is not None
            found = self.table[ids[:, :-1] if len(self.table) > 1 else torch.zeros_like(ids[:, 1:]), ids[:, 1:]]
        lost[:, 1:] = -found
        return lost


def log2(scores: Tensor) -> Tensor:
    """`log_shares` to the base of 2: bits."""
    return log_shares(scores) / math.log(2)


def prior_of(model: Model, data: Data | None, budget: int) -> Prior:
    """The network's own likelihood where it has one, else that of the data's pairs of tokens, else none."""
    if continues(model):
        return Prior("the network itself", own=True)
    if data is None:
        return Prior("none")
    return Prior(f"pairs of tokens of {data.name}", table=pairs(model, data, budget))


def pairs(model: Model, data: Data, budget: int) -> Tensor:
    """(V, V), or (1, V) of large vocabularies: log2 probabilities of the next token, from up to `budget` tokens of the data.

    A pair's count is weighed against that of its second token alone, so that no token is impossible.
    """
    assert model.text is not None
    words = len(model.text.vocabulary)
    single, both = np.full(words, 0.5), np.zeros((words, words) if words <= _PAIRS else (1, 1))
    for ids in _texts(data, budget):
        np.add.at(single, ids, 1)
        if words <= _PAIRS:
            np.add.at(both, (ids[:-1], ids[1:]), 1)
    alone = single / single.sum()
    found = (both + _BACK * alone) / (both.sum(1, keepdims=True) + _BACK) if words <= _PAIRS else alone[None]
    return torch.from_numpy(np.log2(found)).float().to(model.device)


def _texts(data: Data, budget: int) -> list[NDArray[np.int64]]:
    """The beginnings of texts, of as many as `budget` tokens allow."""
    found, left, share = [], budget, max(200, budget // max(1, len(data)))
    for n in range(len(data)):
        try:
            ids = data.read(n)[: min(left, share)]
        except BadInput:
            continue
        found.append(np.asarray(ids, np.int64))
        left -= len(found[-1])
        if left <= 0:
            break
    if not found:
        raise BadInput(f"not one text of {data.name} can be read")
    return found

"""Rules of layer-wise relevance propagation for operators with weights: how an output's relevance is shared among its inputs.

Bach et al. 2015, doi:10.1371/journal.pone.0130140; Montavon et al. 2017, doi:10.1016/j.patcog.2016.11.008, and 2019,
doi:10.1007/978-3-030-28954-6_10; Lapuschkin et al. 2019, doi:10.1038/s41467-019-08987-4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Operator = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (input, weight, bias) → output, linear in each
Box = tuple[Tensor, Tensor]  # lowest and highest values the input can have, each shaped like it
Part = tuple[Tensor, Tensor, Tensor | None]  # input, weight, bias of one part of an output

STABILISER = 1e-6


@dataclass(frozen=True)
class Affine:
    """One call of an operator with weights, and the box its input lies in, where that is known."""

    operator: Operator
    weight: Tensor
    bias: Tensor | None
    box: Box | None = None


class Rule(ABC):
    """How one operator hands relevance back."""

    @abstractmethod
    def __call__(self, affine: Affine, x: Tensor, relevance: Tensor) -> Tensor:
        """The input's relevance, shaped like `x`, from the output's."""


def stabilised(values: Tensor, epsilon: float) -> Tensor:
    """`values`, moved away from 0 by `epsilon`; 0 counts as positive."""
    return values + torch.where(values < 0, -epsilon, epsilon).to(values)


def pulled_back(function: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    """The vector-Jacobian product of `function` at `x`."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(function(leaf), leaf, direction)
    return found


def shared(affine: Affine, parts: Sequence[Part], relevance: Tensor, epsilon: float) -> Tensor:
    """Relevance by contribution: the output is taken as the sum of `parts`, each input gets its share of every output it is in."""
    wanted = [part for part in parts if bool((part[0] != 0).any()) or part[2] is not None]
    if not wanted:
        return torch.zeros_like(parts[0][0])
    outputs = [affine.operator(*part) for part in wanted]
    ratio = relevance / stabilised(torch.stack(outputs).sum(0) if len(outputs) > 1 else outputs[0], epsilon)
    found = torch.zeros_like(parts[0][0])
    for x, weight, _ in wanted:
        found += x * _back(affine, x, weight, ratio)
    return found


def _back(affine: Affine, x: Tensor, weight: Tensor, ratio: Tensor) -> Tensor:
    return pulled_back(lambda given: affine.operator(given, weight, None), x, ratio)


def _up(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.clamp(min=0)


def _down(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.clamp(max=0)


@dataclass(frozen=True)
class Epsilon(Rule):
    """By contribution to the output, signs and all; `epsilon` is added to the output's magnitude."""

    epsilon: float = STABILISER

    def __call__(self, affine: Affine, x: Tensor, relevance: Tensor) -> Tensor:
        return shared(affine, [(x, affine.weight, affine.bias)], relevance, self.epsilon)


@dataclass(frozen=True)
class Gamma(Rule):
    """Contributions that pull an output the way it went count 1 + `gamma` times.

    Inputs of both signs are allowed (Andéol et al. 2021); `plain` is the form for inputs ≥ 0 that looks at the weights' signs alone and
    leaves biases as they are, as Captum does.
    """

    gamma: float = 0.25
    epsilon: float = STABILISER
    plain: bool = False

    def __call__(self, affine: Affine, x: Tensor, relevance: Tensor) -> Tensor:
        weight, bias, gamma = affine.weight, affine.bias, self.gamma
        more = weight + gamma * weight.clamp(min=0)
        if self.plain:
            return shared(affine, [(x, more, bias)], relevance, self.epsilon)
        less = weight + gamma * weight.clamp(max=0)
        up = None if bias is None else bias + gamma * bias.clamp(min=0)
        down = None if bias is None else bias + gamma * bias.clamp(max=0)
        above, below = x.clamp(min=0), x.clamp(max=0)
        output = affine.operator(x, weight, bias)
        found = shared(affine, [(above, more, up), (below, less, None)], relevance * (output > 0), self.epsilon)
        negative = relevance * (output < 0)
        if bool(negative.any()):
            found = found + shared(affine, [(above, less, down), (below, more, None)], negative, self.epsilon)
        return found


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """`alpha` times what pushed the output up, less `alpha` − 1 times what pushed it down.

    Alpha 1 is z⁺. `plain`, for inputs ≥ 0, looks at the weights' signs alone and leaves biases as they are, as Captum does; alpha 1 only.
    """

    alpha: float = 2.0
    epsilon: float = STABILISER
    plain: bool = False

    def __call__(self, affine: Affine, x: Tensor, relevance: Tensor) -> Tensor:
        up, down = affine.weight.clamp(min=0), affine.weight.clamp(max=0)
        if self.plain and self.alpha == 1:
            return shared(affine, [(x, up, affine.bias)], relevance, self.epsilon)
        above, below, bias = x.clamp(min=0), x.clamp(max=0), affine.bias
        found = self.alpha * shared(affine, [(above, up, _up(bias)), (below, down, None)], relevance, self.epsilon)
        if self.alpha == 1:
            return found
        pushed_down: list[Part] = [(above, down, _down(bias)), (below, up, None)]
        return found - (self.alpha - 1) * shared(affine, pushed_down, relevance, self.epsilon)


@dataclass(frozen=True)
class ZBox(Rule):
    """For inputs between two bounds, as pixels are: contributions are measured from the bound that pulls the other way.

    Without a known box the w² rule takes its place.
    """

    epsilon: float = STABILISER

    def __call__(self, affine: Affine, x: Tensor, relevance: Tensor) -> Tensor:
        if affine.box is None:
            return WSquare(self.epsilon)(affine, x, relevance)
        weight, bias, run = affine.weight, affine.bias, affine.operator
        up, down, (low, high) = weight.clamp(min=0), weight.clamp(max=0), affine.box
        output = run(x, weight, bias) - run(low, up, _up(bias)) - run(high, down, _down(bias))
        ratio = relevance / stabilised(output, self.epsilon)
        away = low * _back(affine, low, up, ratio) + high * _back(affine, high, down, ratio)
        return x * _back(affine, x, weight, ratio) - away


@dataclass(frozen=True)
class WSquare(Rule):
    """By the squares of the weights, whatever the inputs are."""

    epsilon: float = STABILISER

    def __call__(self, affine: Affine, x: Tensor, relevance: Tensor) -> Tensor:
        bias = None if affine.bias is None else affine.bias**2
        return shared(affine, [(torch.ones_like(x), affine.weight**2, bias)], relevance, self.epsilon)


@dataclass(frozen=True)
class Flat(Rule):
    """The same to every input that the output reads."""

    epsilon: float = STABILISER

    def __call__(self, affine: Affine, x: Tensor, relevance: Tensor) -> Tensor:
        return shared(affine, [(torch.ones_like(x), torch.ones_like(affine.weight), None)], relevance, self.epsilon)


@dataclass(frozen=True)
class Rules:
    """Which rule stands where: for the operators with weights that read the input itself, for convolutions, for the others.

    `bias`: biases and added constants count among the contributions and so take a share. `pass_norm`: relevance passes BatchNorm
    unchanged, instead of by contribution. `average_pool`: a max-pool hands back as if it took the mean.
    """

    first: Rule | None
    convolution: Rule
    dense: Rule
    bias: bool = True
    pass_norm: bool = False
    average_pool: bool = False
    stabiliser: float = STABILISER  # of everything without weights

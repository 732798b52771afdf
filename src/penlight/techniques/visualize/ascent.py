"""How a gradient becomes a step: plain, normalised, with a target, or with a memory.

A rule is begun once for a batch of values (N, …) and then changes them in place, uphill; every picture by its own gradient alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.nadam import nadam

from penlight.techniques.visualize.schedule import Schedule

_TINY = 1e-30


class Climber(Protocol):
    """A rule at work."""

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        """Change `values` in place by the step that `gradient`, of the same shape and pointing uphill, asks for."""


class Rule(Protocol):
    """How to climb."""

    def begin(self, values: Tensor) -> Climber:
        """A climber for these values, with no memory yet."""


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015) with torch's constants."""

    rate: Schedule

    def begin(self, values: Tensor) -> Climber:
        return _Adam(values, self.rate)


@dataclass(frozen=True)
class NAdam:
    """Adam with Nesterov's momentum (Dozat 2016), as Keras has it: decay of the momentum .004, ε 1e-7."""

    rate: Schedule

    def begin(self, values: Tensor) -> Climber:
        return _NAdam(values, self.rate)


class _Adam:
    """Torch's functional form: the first optimizer of `torch.optim`'s classes imports torch's compiler, which takes over a second."""

    def __init__(self, values: Tensor, rate: Schedule) -> None:
        self.rate, self.fused = rate, values.device.type in ("cpu", "cuda")
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.count = torch.zeros((), device=values.device if self.fused else "cpu")

    @torch.no_grad()
    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        adam(
            [values], [gradient], [self.mean], [self.square], [], [self.count], foreach=False, fused=self.fused,
            amsgrad=False, beta1=0.9, beta2=0.999, lr=self.rate(step), weight_decay=0, eps=1e-8, maximize=True,
        )  # fmt: skip


class _NAdam:
    def __init__(self, values: Tensor, rate: Schedule) -> None:
        self.rate = rate
        self.mean, self.square = torch.zeros_like(values), torch.zeros_like(values)
        self.product, self.count = torch.ones(()), torch.zeros(())

    @torch.no_grad()
    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        nadam(
            [values], [-gradient], [self.mean], [self.square], [self.product], [self.count], foreach=False,
            beta1=0.9, beta2=0.999, lr=self.rate(step), weight_decay=0, momentum_decay=4e-3, eps=1e-7,
        )  # fmt: skip


@dataclass(frozen=True)
class Steepest:
    """x ← x + rate · g."""

    rate: Schedule

    def begin(self, values: Tensor) -> Climber:
        return self

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        values.add_(gradient, alpha=self.rate(step))


@dataclass(frozen=True)
class MeanNormalised:
    """x ← x + rate · g / mean|g|: every step moves a value by `rate` on the average (DeepDream, deepdraw, DGN-AM)."""

    rate: Schedule

    def begin(self, values: Tensor) -> Climber:
        return self

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        size = _over(gradient.abs().flatten(1).mean(1), gradient)
        values.add_(gradient / size.clamp(min=_TINY), alpha=self.rate(step))


@dataclass(frozen=True)
class RootNormalised:
    """x ← x + rate · g / √mean(g²): every step of a picture is `rate` × √(its number of values) long, however large its gradient."""

    rate: Schedule

    def begin(self, values: Tensor) -> Climber:
        return self

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        size = _over(gradient.flatten(1).square().mean(1).sqrt(), gradient)
        values.add_(gradient / size.clamp(min=_TINY), alpha=self.rate(step))


@dataclass(frozen=True)
class Ridge:
    """Plain ascent on S(x) − λ‖x‖² in steps of rate/(2λ), which is x ← x + rate · (∇S/(2λ) − x): stable for any λ if `rate` < 2.

    A linear unit S = w·x ends at w/(2λ). `weight` is λ; 0 takes for each picture the λ at which a unit with the first gradient it gets
    would end at a root mean square of `contrast`, so that networks of any gain are treated alike.
    """

    rate: Schedule
    weight: float = 0.0
    contrast: float = 1.0

    def begin(self, values: Tensor) -> Climber:
        return _Ridge(self, values)


class _Ridge:
    def __init__(self, how: Ridge, values: Tensor) -> None:
        self.how, self.twice = how, values.new_full((len(values),), 2 * how.weight)  # 2λ, 0 while it is not known

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        size = gradient.flatten(1).square().mean(1).sqrt()
        self.twice = torch.where(self.twice > 0, self.twice, size / self.how.contrast)
        goal = gradient / _over(self.twice.clamp(min=_TINY), gradient)
        values.add_(goal - values, alpha=self.how.rate(step))


@dataclass(frozen=True)
class Progress:
    """x ← x + min(`most`, `desired` / ‖g‖²) · g: to first order the objective grows by `desired` each step (DeepVis, "progress")."""

    most: float
    desired: float

    def begin(self, values: Tensor) -> Climber:
        return self

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        squared = gradient.flatten(1).square().sum(1).clamp(min=_TINY)
        values.add_(gradient * _over((self.desired / squared).clamp(max=self.most), gradient))


@dataclass(frozen=True)
class RMSprop:
    """keras-vis' own: g to L2 length 1, cache ← ρ·cache + (1−ρ)·g², x ← x + rate · g / √(cache + ε)."""

    rate: Schedule
    rho: float = 0.95
    epsilon: float = 1e-8
    normalise: bool = True

    def begin(self, values: Tensor) -> Climber:
        return _RMSprop(self, values)


class _RMSprop:
    def __init__(self, how: RMSprop, values: Tensor) -> None:
        self.how, self.cache = how, torch.zeros_like(values)

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        if self.how.normalise:
            gradient = gradient / _over(gradient.flatten(1).norm(dim=1).clamp(min=_TINY), gradient)
        self.cache.mul_(self.how.rho).add_(gradient.square(), alpha=1 - self.how.rho)
        values.add_(gradient / (self.cache + self.how.epsilon).sqrt(), alpha=self.how.rate(step))


def _over(numbers: Tensor, like: Tensor) -> Tensor:
    """(N,) → (N, 1, …) to go with `like`."""
    return numbers.reshape(-1, *(1,) * (like.ndim - 1))

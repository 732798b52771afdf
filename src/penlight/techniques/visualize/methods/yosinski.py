"""`yosinski`: regularised optimisation as in the Deep Visualization Toolbox, with its four published sets of hyperparameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import Climber, Progress, Rule, Steepest
from penlight.techniques.visualize.edits import Blur, Clip, Decay, Edit, SmallContribution, SmallNorm, SmallValues
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import Normal, Plain, Start, Uniform, stretched
from penlight.techniques.visualize.schedule import Constant
from penlight.techniques.visualize.synthesis import Brief, Synthesis

_AS_SET = -1.0
_STARTS: dict[str, Start] = {"mean_plus_rand": Normal(10.0), "randu": Uniform(0.0, 255.0), "mean": Normal(0.0)}


@dataclass(frozen=True)
class _Set:
    """One row of the table in doc/running-optimize-image.md; percentiles of 0 and a width of 0 are off."""

    steps: int
    policy: str
    rate: float
    desired: float = 2.0
    decay: float = 0.0
    blur: float = 0.0
    blur_every: int = 4
    small_norm: float = 0.0
    absolute_contribution: float = 0.0


_SETS = {
    "1": _Set(500, "progress", 100.0, blur=0.5, small_norm=50.0),
    "2": _Set(750, "constant", 100.0, decay=0.3, small_norm=20.0),
    "3": _Set(1000, "constant", 100.0, decay=1e-4, blur=1.0),
    "4": _Set(1000, "progress", 1e8, blur=0.5, absolute_contribution=90.0),
}


def _share(help: str, high: float | None = None) -> float:
    value: float = option(_AS_SET, f"{help}; -1: as the setting says", low=-1, high=high)
    return value


@dataclass(frozen=True)
class Yosinski(Synthesis):
    """Gradient ascent with decay, blur and small pixels set to 0, in the order of the toolbox's program.

    >>> penlight.visualize(model, "class:goldfish", method="yosinski", setting="4").images     # doctest: +SKIP

    x is the picture less the mean colour, in 255ths. Each of n iterations clips the picture to [0, 255], looks, and, but for the last,
    changes it: x ← x + rate · g, then (1 − decay) x, then a blur in iterations that blur_every divides, then pixels below a percentile
    become 0: by value, by norm, by contribution. The picture kept is the one whose look scored best. The program ends where the
    gradient is exactly 0; here the regularizers go on, which cannot replace the best picture by a worse one.

    The picture is stored stretched around the mean to the whole range, as the program saves it, and the activation told is that of the
    picture stored; without `stretch` it is the one that scored best. The rates were chosen on CaffeNet, whose gradients are some 1e-4
    (root mean square) a 255th, which moves a value by .01 a step. On smaller pictures and in networks of another gain the blur takes
    away more than such steps add. So the rate is applied to gradients brought to `gain` by their running size; `gain=0` is the program.
    What the policy progress allows at most is its rate in the same sense; `desired` is in units of the objective, always.
    `contribution` is the program's px_benefit, which the paper does not have: it sets to 0 the pixels that do most for the unit; the
    paper's is `absolute_contribution`. The policy progress01, for units after softmax, is left out.
    """

    name: ClassVar[str] = "yosinski"
    version: ClassVar[int] = 3
    paper: ClassVar[str] = (
        "Yosinski, Clune, Nguyen, Fuchs & Lipson, Understanding Neural Networks Through Deep Visualization, ICML Deep Learning"
        " Workshop 2015 (arXiv:1506.06579); optimize/gradient_optimizer.py of the Deep Visualization Toolbox"
    )

    setting: str = option(
        "3",
        "which of the four published sets of hyperparameters; 3 made most of the paper's pictures",
        choices=tuple(_SETS),
    )
    steps: int = option(0, "iterations; 0: as the setting says (500, 750, 1000, 1000)", low=0)
    start: str = option(
        "mean_plus_rand",
        "mean_plus_rand: the mean and noise of standard deviation 10/255; randu: evenly distributed noise; mean",
        choices=tuple(_STARTS),
    )
    policy: str = option(
        "setting",
        "constant: the rate as it is; progress: so that the objective grows by `desired` an iteration, at most the rate",
        choices=("setting", "constant", "progress"),
    )
    rate: float = _share(
        "learning rate, in 255ths for a gradient of 1 a 255th; with the policy progress the largest one"
    )
    desired: float = _share("by how much the objective is to grow an iteration, with the policy progress")
    decay: float = _share("share of every value taken away each iteration", 1)
    blur: float = _share("standard deviation of the Gaussian blur in pixels, 0 for none; little happens below .3")
    blur_every: int = option(-1, "iterations from one blur to the next, 0 for none; -1: as the setting says", low=-1)
    small_value: float = option(0.0, "percentile below which values become 0", low=0, high=100)
    small_norm: float = _share("percentile of the norm over the channels below which pixels become 0", 100)
    contribution: float = option(0.0, "percentile of −gradient · value below which pixels become 0", low=0, high=100)
    absolute_contribution: float = _share("percentile of |gradient · value| below which pixels become 0", 100)
    gain: float = option(
        0.02,
        "size, root mean square per 255th, that gradients are taken to have when the rate is applied; 0: the size they have",
        low=0,
    )
    stretch: bool = option(
        True, "store the picture stretched to the whole range around the mean, as the program saves it"
    )

    def recipe(self, brief: Brief) -> Recipe:
        chosen = self._chosen()
        related = brief.optics.contract.kind == "image" or len(brief.optics.contract.shape) > 1
        before, after = (Clip(brief.optics.neutral),), self._edits(chosen, related)
        phase = Phase(chosen.steps, self._rule(chosen), before=before, edits=after)
        plain = Plain(_STARTS[self.start], stretched if self.stretch else None)
        return Recipe(plain, (phase,), keep="best", rescue=False, short=True)

    def _chosen(self) -> _Set:
        """The published set, with what the user says otherwise."""
        one = _SETS[self.setting]

        def said(mine: float, published: float) -> float:
            return published if mine < 0 else mine

        return _Set(
            self.steps or one.steps,
            one.policy if self.policy == "setting" else self.policy,
            said(self.rate, one.rate),
            said(self.desired, one.desired),
            said(self.decay, one.decay),
            said(self.blur, one.blur),
            one.blur_every if self.blur_every < 0 else self.blur_every,
            said(self.small_norm, one.small_norm),
            said(self.absolute_contribution, one.absolute_contribution),
        )

    def _rule(self, chosen: _Set) -> Rule:
        desired = chosen.desired if chosen.policy == "progress" else math.inf
        if self.gain:
            return _Measured(chosen.rate * self.gain, desired)
        return Progress(chosen.rate, desired) if chosen.policy == "progress" else Steepest(Constant(chosen.rate))

    def _edits(self, chosen: _Set, related: bool) -> tuple[Edit, ...]:
        edits: list[Edit] = []
        if chosen.decay:
            edits.append(Decay(chosen.decay))
        if related and chosen.blur and chosen.blur_every:
            edits.append(Blur(Constant(chosen.blur), chosen.blur_every))
        if self.small_value:
            edits.append(SmallValues(self.small_value))
        if chosen.small_norm:
            edits.append(SmallNorm(chosen.small_norm))
        if self.contribution:
            edits.append(SmallContribution(self.contribution, absolute=False))
        if chosen.absolute_contribution:
            edits.append(SmallContribution(chosen.absolute_contribution))
        return tuple(edits)


_MEMORY, _TINY = 0.9, 1e-30


@dataclass(frozen=True)
class _Measured:
    """x ← x + min(`pace` / the running size of g, `desired` / ‖g‖²) · g: a rate for gradients of one size, applied to those of any."""

    pace: float  # 255ths a step, root mean square
    desired: float

    def begin(self, values: Tensor) -> Climber:
        return _Measuring(self, values)


class _Measuring:
    def __init__(self, how: _Measured, values: Tensor) -> None:
        self.how = how
        self.size, self.weight = (values.new_zeros(len(values)) for _ in range(2))

    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> None:
        squared = gradient.flatten(1).square().sum(1)
        found = squared > 0
        now = (squared / gradient[0].numel()).sqrt()
        self.size = torch.where(found, _MEMORY * self.size + (1 - _MEMORY) * now, self.size)
        self.weight = torch.where(found, _MEMORY * self.weight + (1 - _MEMORY), self.weight)
        most = self.how.pace * self.weight / self.size.clamp(min=_TINY)
        rate = torch.minimum(most, self.how.desired / squared.clamp(min=_TINY))
        values.add_(gradient * rate.reshape(-1, 1, 1, 1))

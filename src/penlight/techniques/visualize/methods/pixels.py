"""Plain pixels and nothing that smooths them: `erhan`, with pictures of one length, and `simonyan`, with a price on length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import Ridge, RootNormalised
from penlight.techniques.visualize.edits import Clip, Edit, Norm
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import Normal, Plain, Uniform
from penlight.techniques.visualize.schedule import Constant, Linear
from penlight.techniques.visualize.synthesis import Brief, Synthesis

# 255ths: how far the values of photographs lie from their mean colour, as ImageNet's usual .225 says
_PHOTOGRAPHS = 58.0


@dataclass(frozen=True)
class Erhan(Synthesis):
    """The input of a given length that excites a unit most: gradient ascent on x, brought back to ‖x‖ = ρ after every step.

    >>> penlight.visualize(model, "conv2:*", method="erhan").images            # doctest: +SKIP

    x is the picture less the mean colour; it starts as evenly distributed noise of length ρ and is smoothed by nothing. `norm` is
    ρ/√(number of values), in 255ths. The paper leaves ρ, the rate and the end open: here ρ is the length of photographs, and a step's
    length is a share of ρ and not of the gradient's length, which on the sphere leads to the same points in networks of any gain; it
    falls to 0 so that the picture comes to rest. Values may leave [0, 255] on the way, as in the paper; the stored picture is clipped.
    """

    name: ClassVar[str] = "erhan"
    version: ClassVar[int] = 3
    paper: ClassVar[str] = (
        "Erhan, Bengio, Courville & Vincent, Visualizing Higher-Layer Features of a Deep Network,"
        " Université de Montréal 2009, technical report 1341"
    )

    steps: int = option(256, "steps of the optimisation", low=1)
    rate: float = option(
        0.05, "length of the first step, as a share of the picture's; falls evenly to 0", low=0, high=1
    )
    norm: float = option(
        _PHOTOGRAPHS,
        "root mean square of the picture's values, less the mean, in 255ths; 0 leaves the length free and clips to [0, 255]",
        low=0,
    )

    def recipe(self, brief: Brief) -> Recipe:
        edit: Edit = Norm(self.norm) if self.norm else Clip(brief.optics.neutral)
        rule = RootNormalised(Linear(self.rate * (self.norm or _PHOTOGRAPHS), 0.0, self.steps))
        phase = Phase(self.steps, rule, before=(edit,), edits=(edit,))
        return Recipe(Plain(Uniform()), (phase,), rescue=False)


@dataclass(frozen=True)
class Simonyan(Synthesis):
    """The picture that a class scores highest on for its length: argmax S(I) − λ‖I‖², from the mean picture (I = 0), plain gradient steps.

    >>> penlight.visualize(model, "class:goldfish", method="simonyan").images  # doctest: +SKIP

    I is the picture less the mean colour, in 255ths; classes are scored before softmax. A step is rate/(2λ) long for a gradient of
    length 1, that is I ← I + rate · (∇S/(2λ) − I), so it fits any λ, and a linear unit w·I comes to rest at w/(2λ) exactly. The paper
    does not tell λ, and a network of ten times the gain needs ten times as much: by default each picture gets the λ at which a unit
    as steep as this one is at the mean picture comes to rest at `contrast`. The stored picture is clipped to [0, 255].
    """

    name: ClassVar[str] = "simonyan"
    version: ClassVar[int] = 3
    paper: ClassVar[str] = (
        "Simonyan, Vedaldi & Zisserman, Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency"
        " Maps, ICLR Workshop 2014 (arXiv:1312.6034), section 2"
    )

    steps: int = option(256, "steps of the optimisation", low=1)
    rate: float = option(0.02, "size of a step, in units of 1/(2λ)", low=0, high=1)
    l2: float = option(
        0.0,
        "weight λ of the squared length, per squared 255th, in units of the score; 0 chooses it for each picture by its contrast",
        low=0,
    )
    contrast: float = option(
        _PHOTOGRAPHS,
        "where λ is chosen: root mean square, in 255ths, at which a linear unit's picture comes to rest",
        low=0.1,
    )

    def recipe(self, brief: Brief) -> Recipe:
        rule = Ridge(Constant(self.rate), self.l2, self.contrast)
        return Recipe(Plain(Normal(0.0)), (Phase(self.steps, rule),), rescue=False)

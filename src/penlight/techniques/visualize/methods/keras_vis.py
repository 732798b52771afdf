"""`keras-vis`: the HappyMaps and SadMaps of Keras users, as keras-vis and its successor tf-keras-vis make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import RMSprop
from penlight.techniques.visualize.edits import Edit, Roll, Turn
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import Plain, Rescaled, Start, Uniform, deprocessed
from penlight.techniques.visualize.penalties import AbsoluteVariation, LpNorm, Penalty, SquaredVariation
from penlight.techniques.visualize.schedule import Constant
from penlight.techniques.visualize.synthesis import READINGS, Brief, Synthesis

_EPSILON = 1e-7  # Keras' backend epsilon


@dataclass(frozen=True)
class _Set:
    """What the two programs do unless told otherwise; which penalties they have is in `KerasVis`."""

    lp: float
    p: float
    total_variation: float
    jitter: float
    rotation: float
    rho: float
    normalise: bool
    keep: str
    start: Start
    output: str


_SETS = {
    "keras-vis": _Set(10.0, 6.0, 10.0, 0.05, 0.0, 0.95, True, "after", Rescaled(127.5, 0.05 * 255), "deprocess"),
    "tf-keras-vis": _Set(0.3, 1.0, 1.0, 4.0, 1.0, 0.999, False, "last", Uniform(0.0, 255.0), "clip"),
}


@dataclass(frozen=True)
class KerasVis(Synthesis):
    """Activation maximisation with an Lp norm and total variation, jitter and RMSprop on the normalised gradient.

    >>> happy = penlight.visualize(model, "conv2:3", method="keras-vis")                       # doctest: +SKIP
    >>> sad = penlight.visualize(model, "conv2:3", method="keras-vis", minimize=True)          # doctest: +SKIP

    Values lie on keras-vis' scale of 0 to 255, on which the penalties are measured (those of an array, from its mean). Each step moves
    the picture round its edges by a random jitter, which is never undone, divides the gradient of everything together by its length,
    and follows RMSprop with rate 1. The picture kept is the one after the step whose look had the best loss. A unit is the mean of
    its map. The setting "tf-keras-vis" turns the picture as well, starts from noise of the whole range, has penalties of its own
    (mean |value|, absolute differences), leaves the gradient's length as it is, and keeps the last picture.

    The programs' weights were chosen for VGG16 and 224×224×3 values: they divide penalties by the number of values, the unit by nothing,
    so that a smaller picture or a unit of smaller answers leaves nothing but grey. Here the number is fixed (`values`), and the unit's
    gradient is taken to have one size (`gain`), with which there is no best loss and the last picture is kept. The programs
    themselves are `gain=0`, `values=0`. How much smoothing shows most differs all the same: `--sweep total_variation=1e-5..1e3`.

    keras-vis brings the picture to mean .5 and standard deviation .1 before it hands it out. That is the picture stored, and the
    activation told is that of the picture stored; with `output="clip"` it is the picture that was optimised, clipped to the range.
    """

    name: ClassVar[str] = "keras-vis"
    paper: ClassVar[str] = (
        "Kotikalapudi and contributors, keras-vis, github.com/raghakot/keras-vis, 2017; tf-keras-vis, Kubota and contributors, 2019;"
        " penalties after Mahendran & Vedaldi, Visualizing Deep Convolutional Neural Networks Using Natural Pre-Images, IJCV 2016"
    )

    objective: str = option(
        "channel",
        "how a plain unit is read: channel, the mean of its map, as in keras-vis; neuron, the middle of its map; energy, half the sum"
        " of its map's squares; probability, a class after softmax",
        choices=READINGS,
    )
    setting: str = option("keras-vis", "whose defaults: keras-vis or its successor tf-keras-vis", choices=tuple(_SETS))
    steps: int = option(200, "steps of the optimisation", low=1)
    rate: float = option(1.0, "step size of RMSprop, in 255ths", low=0)
    lp: float = option(-1.0, "weight of the Lp norm; -1: as the setting says (10; .3)", low=-1)
    p: float = option(-1.0, "order of the norm, from 1 to infinity; -1: as the setting says (6; 1)", low=-1)
    total_variation: float = option(-1.0, "weight of the total variation; -1: as the setting says (10; 1)", low=-1)
    jitter: float = option(
        -1.0,
        "largest move at each step, a share of the side below 1, pixels from 1 on; -1: as the setting says (.05; 4)",
        low=-1,
    )
    rotation: float = option(
        -1.0, "largest turn at each step in degrees; -1: as the setting says (0; 1)", low=-1, high=180
    )
    rho: float = option(
        -1.0, "share of RMSprop's memory kept at each step; -1: as the setting says (.95; .999)", low=-1, high=1
    )
    gain: float = option(
        0.003,
        "size, root mean square per 255th, that the unit's gradient is taken to have beside the penalties; 0: the size it has",
        low=0,
    )
    values: int = option(
        224 * 224 * 3,
        "number of values that penalties are divided by; 0: the picture's own, as in the programs, whose pictures mostly had that many",
        low=0,
    )
    output: str = option(
        "setting",
        "which picture is stored: deprocess, brought to mean .5 and standard deviation .1; clip, clipped to [0, 255]; setting, as the"
        " setting does (deprocess; clip)",
        choices=("setting", "deprocess", "clip"),
    )

    def recipe(self, brief: Brief) -> Recipe:
        chosen = _SETS[self.setting]
        rho = chosen.rho if self.rho < 0 else self.rho
        phase = Phase(
            self.steps,
            RMSprop(Constant(self.rate), rho, _EPSILON, chosen.normalise),
            penalties=self._penalties(brief, chosen),
            before=self._moves(brief, chosen),
        )
        output = chosen.output if self.output == "setting" else self.output
        plain = Plain(chosen.start, deprocessed if output == "deprocess" else None)
        # a unit's answer, unlike its gradient, cannot be brought to a size, so there is no loss to tell the best by
        keep = "last" if self.gain else chosen.keep
        return Recipe(plain, (phase,), scaled=self.gain > 0, keep=keep, rescue=False, open_last=False)

    def _penalties(self, brief: Brief, chosen: _Set) -> tuple[Penalty, ...]:
        successor = self.setting == "tf-keras-vis"
        lp = chosen.lp if self.lp < 0 else self.lp
        p = chosen.p if self.p < 0 else max(1.0, self.p)
        penalties: list[Penalty] = []
        # the engine brings gradients to 1 for a picture's whole range, which is 1/255 a 255th
        factor = 1 / (255 * self.gain) if self.gain else 1.0
        if lp:
            zero = 0.0 if brief.optics.contract.kind == "image" else 0.5
            penalties.append(LpNorm(factor * lp, p, mean=successor, zero=zero, count=self.values))
        weight = chosen.total_variation if self.total_variation < 0 else self.total_variation
        if weight and _related(brief):
            kind = AbsoluteVariation if successor else SquaredVariation
            penalties.append(kind(factor * weight, count=self.values))
        return tuple(penalties)

    def _moves(self, brief: Brief, chosen: _Set) -> tuple[Edit, ...]:
        jitter = chosen.jitter if self.jitter < 0 else self.jitter
        rotation = chosen.rotation if self.rotation < 0 else self.rotation
        moves: list[Edit] = []
        if jitter and _related(brief):
            moves.append(Roll(jitter))
        if rotation and brief.optics.contract.kind == "image":
            moves.append(Turn(rotation))
        return tuple(moves)


def _related(brief: Brief) -> bool:
    """Whether neighbouring values have to do with each other: not the columns of a table."""
    return brief.optics.contract.kind == "image" or len(brief.optics.contract.shape) > 1

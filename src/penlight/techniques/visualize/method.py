"""`penlight`, the default method: every unit's preferred and least preferred input, many at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import Adam
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import Fourier, Pixels
from penlight.techniques.visualize.penalties import Distance, Penalty, TotalVariation
from penlight.techniques.visualize.rescue import Leaky
from penlight.techniques.visualize.scene import Scene
from penlight.techniques.visualize.schedule import Cosine
from penlight.techniques.visualize.synthesis import Brief, Synthesis
from penlight.techniques.visualize.transforms import Chain, Noise, Shift, Transform, Window

# A small canvas is seen whole at every step, while windows show a large one in many ways: there noise
# has to do what windows do, and the neutral colour may pull less.
_FIELD_L2, _WHOLE_L2, _CLOSE_TV, _CLOSE_NOISE, _ARRAY_NOISE, _CLOSE_TURN = 0.5, 0.1, 0.75, 7.5, 1.25, 0.7
_START = 0.3  # standard deviation of the start before the sigmoid: faint, but enough for seeds to go different ways
_STEPS, _LONG = 320, 640  # classes of large pictures go on being better recognised by other networks
_ONE_SIZE = 0.7  # smallest window for units that answer to things of one size
_WIDEST = 1.1  # largest random window, as a share of the picture: all of it, with some ground around
_LINEAR_L2 = 5.0  # a linear unit's picture is proportional to its weights where this keeps it off black and white


@dataclass(frozen=True)
class Penlight(Synthesis):
    """Feature visualization after Lucid, made for whole layers: small canvases for units that see little, random windows for the rest.

    >>> penlight.visualize(model, "conv2:*", seeds=3).images.shape      # doctest: +SKIP
    (48, 3, 10, 10, 1)

    A unit of a map is the neuron in the middle of it, or at the position its address names. Pictures lie in [0, 1] before
    normalisation; an array (`kind = "array"`) is shown from −3 (0) to 3 (255) standard deviations around its mean.
    """

    name: ClassVar[str] = "penlight"
    version: ClassVar[int] = 3
    paper: ClassVar[str] = (
        "Olah, Mordvintsev & Schubert, Feature Visualization, Distill 2017 (doi:10.23915/distill.00007);"
        " random windows and canvases of the receptive field are ours; the leak of ReLUs after Øygard 2015 (deepdraw) and"
        " Guo, Li & Chen, Backpropagating Linearly Improves Transferability of Adversarial Examples, NeurIPS 2020"
    )

    windows: ClassVar[bool] = True
    moves: ClassVar[bool] = True

    steps: int = option(
        0, "steps of the optimisation; 0 chooses: 640 for classes of large pictures, 320 for all else", low=0
    )
    rate: float = option(0.2, "step size of Adam at the first step; falls along a cosine to 0", low=0)
    total_variation: float = option(0.4, "weight of the penalty on differences of neighbouring pixels", low=0)
    l2: float = option(0.3, "weight of the penalty on squared distance from the neutral colour", low=0)
    decay: float = option(
        1.35, "exponent by which the Fourier coefficients of a large picture fall with their frequency", low=0
    )
    noise: float = option(
        0.08, "standard deviation of the noise added at each step, in units of the normalised input", low=0
    )
    rotation: float = option(10.0, "largest turn of the picture at each step, in degrees", low=0, high=180)
    window: float = option(
        0.3, "smallest random window, as a share of the picture; at least 0.7 for units of maps", low=0.05, high=1
    )
    shift: float = option(0.15, "largest shift of the window, as a share of the picture", low=0, high=1)
    leak: float = option(
        0.05,
        "share of the gradient that closed ReLUs pass on all the same, for classes of large pictures; 0: the true gradient",
        low=0,
        high=1,
    )
    mirror: bool = option(
        True, "mirror large pictures of classes every other step; units of maps may be one of a left and right pair"
    )
    diversity: float = option(
        0.0, "how much the starts of a unit are pushed apart, as a share of what the unit answers", low=0
    )

    def diverse(self) -> tuple[float, bool]:
        return (self.diversity if self.seeds > 1 else 0.0, True)

    def recipe(self, brief: Brief) -> Recipe:
        scene, optics = brief.scene, brief.optics
        image = optics.contract.kind == "image"
        transform = self._transform(scene, image)
        steps = self.steps or (_LONG if _is_class(scene) else _STEPS)
        phase = Phase(steps, Adam(Cosine(self.rate, steps)), transform, self._penalties(brief))
        decay = self.decay if scene.kind == "window" else 1.0
        leaky = Leaky(self.leak, "backward") if self.leak and _is_class(scene) else None
        return Recipe(Fourier(_START, decay) if image else Pixels(_START), (phase,), scaled=True, leaky=leaky)

    def _penalties(self, brief: Brief) -> tuple[Penalty, ...]:
        scene = brief.scene
        l2, variation = self.l2, self.total_variation
        if scene.linear or brief.optics.contract.kind != "image":
            l2, variation = l2 * _LINEAR_L2, 0.0
        elif scene.kind != "window":
            l2, variation = l2 * (_FIELD_L2 if scene.kind == "field" else _WHOLE_L2), variation * _CLOSE_TV
        return (Distance(l2, brief.optics.neutral), TotalVariation(variation))

    def _transform(self, scene: Scene, image: bool) -> Transform:
        if scene.kind == "window":
            # a class is the same at any size and mirrored; a unit of a map has its size, and may be one of a left and right pair
            low = self.window if _is_class(scene) else max(self.window, _ONE_SIZE)
            window = Window(scene.view, low, _WIDEST, self.shift, self.rotation, self.mirror and _is_class(scene))
            return Chain((window, Noise(self.noise)))
        if scene.linear:
            return Chain(())
        if not image:
            return Noise(self.noise * _ARRAY_NOISE)
        noise = Noise(self.noise * _CLOSE_NOISE)
        if scene.kind == "field":
            return Chain((Shift(scene.view), noise))
        return Chain((Window(scene.view, 0.95, 1.05, 1.5 / max(scene.view), self.rotation * _CLOSE_TURN), noise))


def _is_class(scene: Scene) -> bool:
    """Whether a large picture is made of what is one unit, not one position of a map: a class."""
    return scene.kind == "window" and math.prod(scene.layer.positions) == 1

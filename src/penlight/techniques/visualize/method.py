"""`penlight`, the default method: every unit's preferred and least preferred input, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadUnit
from penlight.models import Model
from penlight.results import VisualizeResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.visualize.engine import Recipe
from penlight.techniques.visualize.parameterization import Fourier, Pixels
from penlight.techniques.visualize.penalties import Distance, TotalVariation
from penlight.techniques.visualize.render import jobs, render
from penlight.techniques.visualize.scene import Optics, Scene
from penlight.techniques.visualize.schedule import Cosine
from penlight.techniques.visualize.transforms import Chain, Noise, Shift, Transform, Window
from penlight.units import Unit

# A small canvas is seen whole at every step, while windows show a large one in many ways: there noise
# has to do what windows do, and the neutral colour may pull less.
_FIELD_L2, _WHOLE_L2, _CLOSE_TV, _CLOSE_NOISE, _CLOSE_TURN = 0.5, 0.1, 2.0, 3.0, 0.35
_START = 0.3  # standard deviation of the start before the sigmoid: faint, but enough for seeds to go different ways
_LINEAR_L2 = 5.0  # a linear unit's picture is proportional to its weights where this keeps it off black and white


@dataclass(frozen=True)
class Penlight(Technique):
    """Feature visualization after Lucid, made for whole layers: small canvases for units that see little, random windows for the rest.

    >>> penlight.visualize(model, "conv2:*", seeds=3).images.shape      # doctest: +SKIP
    (48, 3, 10, 10, 1)

    A unit of a map is the neuron in the middle of it, or at the position its address names. Pictures lie in [0, 1] before
    normalisation; an array (`kind = "array"`) is shown from −3 (0) to 3 (255) standard deviations around its mean.
    """

    verb: ClassVar[str] = "visualize"
    name: ClassVar[str] = "penlight"
    paper: ClassVar[str] = (
        "Olah, Mordvintsev & Schubert, Feature Visualization, Distill 2017 (doi:10.23915/distill.00007);"
        " random windows and canvases of the receptive field are ours"
    )

    steps: int = option(256, "steps of the optimisation", low=1)
    seeds: int = option(1, "random starts a unit", low=1)
    minimize: bool = option(False, "look for the least preferred input instead of the preferred one")
    size: int = option(
        0, "shorter side of the picture in pixels; 0 chooses it from the receptive field and the input", low=0
    )
    rate: float = option(0.2, "step size of Adam at the first step; falls along a cosine to 0", low=0)
    total_variation: float = option(0.15, "weight of the penalty on differences of neighbouring pixels", low=0)
    l2: float = option(0.3, "weight of the penalty on squared distance from the neutral colour", low=0)
    noise: float = option(
        0.2, "standard deviation of the noise added at each step, in units of the normalised input", low=0
    )
    rotation: float = option(20.0, "largest turn of the picture at each step, in degrees", low=0, high=180)
    window: float = option(0.45, "smallest random window, as a share of the picture", low=0.05, high=1)
    shift: float = option(0.25, "largest shift of the window, as a share of the picture", low=0, high=1)
    batch: int = option(0, "pictures optimised at once; 0 chooses it from size and memory", low=0)

    def run(self, request: Request) -> VisualizeResult:
        """Render every unit of `request.units` and of `request.layers`, each from `seeds` random starts.

        Raises `UnknownName` and `BadUnit` for units that are not there and `BadOption` for a size the layer does not take.
        """
        model = request.model
        units = asked(model, request.units, request.layers)
        optics = Optics.of(model)
        todo = jobs(model, units, optics, self.size)
        size = todo[0].scene.picture
        shape = (len(units), self.seeds, *size, optics.shape[0])
        images: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        activations, starts = (np.zeros(shape[:2], np.float32) for _ in range(2))
        zero = np.zeros(shape[:2], np.bool_)
        total, done = len(units) * self.seeds * self.steps, 0

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            request.progress(done, total)

        for job in todo:
            places = [(units.index(unit), k) for unit in job.units for k in range(self.seeds)]
            recipe = self.recipe(job.scene, optics)
            rendered = render(model, optics, job, recipe, self.seeds, request.seed, self.minimize, self.batch, advance)
            for (u, k), one in zip(places, rendered, strict=True):
                images[u, k], activations[u, k], starts[u, k], zero[u, k] = (
                    one.picture,
                    one.activation,
                    one.start,
                    one.zero_gradient,
                )
        labels = tuple(model.label(unit) for unit in units)
        return VisualizeResult(
            provenance(self, request), tuple(map(str, units)), labels, images, activations, starts, zero, self.minimize
        )

    def recipe(self, scene: Scene, optics: Optics) -> Recipe:
        """The parts for one scene."""
        steps, image = self.steps, optics.contract.kind == "image"
        l2, variation = self.l2, self.total_variation
        if scene.linear or not image:
            l2, variation = l2 * _LINEAR_L2, 0.0
        elif scene.kind != "window":
            l2, variation = l2 * (_FIELD_L2 if scene.kind == "field" else _WHOLE_L2), variation * _CLOSE_TV
        penalties = (Distance(l2, optics.neutral), TotalVariation(variation))
        parameterization = Fourier(_START) if image else Pixels(_START)
        return Recipe(parameterization, self._transform(scene, image), penalties, Cosine(self.rate, steps), steps)

    def _transform(self, scene: Scene, image: bool) -> Transform:
        if scene.kind == "window":
            return Chain((Window(scene.view, self.window, 1.0, self.shift, self.rotation), Noise(self.noise)))
        if scene.linear:
            return Chain(())
        if not image:
            return Noise(self.noise / 2)
        noise = Noise(self.noise * _CLOSE_NOISE)
        if scene.kind == "field":
            return Chain((Shift(scene.view), noise))
        return Chain((Window(scene.view, 0.95, 1.05, 1.5 / max(scene.view), self.rotation * _CLOSE_TURN), noise))


def asked(model: Model, units: Sequence[Unit], layers: Sequence[str]) -> list[Unit]:
    """The units by index, each once, in the order asked for."""
    found = [one for unit in units for one in model.find(unit)]
    found += [one for layer in layers for one in model.find(Unit(layer))]
    if not found:
        raise BadUnit(
            f"no unit is named; write 'layer:index', 'layer:*' or 'class:label' ('penlight layers {model.reference}' lists them)"
        )
    return list(dict.fromkeys(found))

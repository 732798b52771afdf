"""`lucid`: the pictures of "Feature Visualization", as Lucid's render_vis makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from penlight.errors import BadOption
from penlight.models.probe import undisturbed
from penlight.techniques.contract import Request
from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import Adam
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import LucidFourier, Pixels
from penlight.techniques.visualize.penalties import Absolute, Penalty, Roughness, TotalVariation
from penlight.techniques.visualize.render import Job, jobs
from penlight.techniques.visualize.scene import Optics, Scene, Wish, answers
from penlight.techniques.visualize.schedule import Constant
from penlight.techniques.visualize.synthesis import Brief, Synthesis, reading
from penlight.techniques.visualize.targets import Target
from penlight.techniques.visualize.transforms import Chain, Fit, Pad, Rescale, Transform, Trim, Turn

CANVAS = 128
PAD, FIRST, LAST = 12, 8, 4  # pixels, on a canvas of 128
FACTORS = tuple(1 + (i - 5) / 50 for i in range(11))  # .90, .92, … 1.10
DEGREES = (*range(-10, 11), 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class Lucid(Synthesis):
    """Fourier pictures in decorrelated colours, climbed with Adam, seen moved, scaled and turned: render_vis with its defaults.

    >>> penlight.visualize(model, "features.7:*", method="lucid").images.shape      # doctest: +SKIP
    (384, 1, 128, 128, 3)

    As lucid/optvis/render.py runs, except for one step: its threshold of 512 makes 513 updates, here it is the 512 its argument says.
    The network sees the transformed picture at whatever size that has; a network that takes one size only (or a unit at a position
    of its own) sees it resized. Pictures are 128 × 128, of smaller networks and those of one size their own; on a canvas smaller than
    128 the pixels of padding and jitter shrink with it. Inputs that are no pictures are climbed value by value, untransformed.
    """

    name: ClassVar[str] = "lucid"
    paper: ClassVar[str] = (
        "Olah, Mordvintsev & Schubert, Feature Visualization, Distill 2017 (doi:10.23915/distill.00007)"
    )
    narrow: ClassVar[bool] = False

    steps: int = option(512, "steps of the optimisation", low=1)
    rate: float = option(0.05, "step size of Adam", low=0)
    sd: float = option(0.01, "standard deviation of the Fourier coefficients at the start", low=0)
    power: float = option(1.0, "power of the frequency that the coefficients are divided by", low=0)
    robust: bool = option(True, "look at the picture padded, moved, scaled and turned by chance")
    diversity: float = option(
        0.0,
        "how much the starts of a unit are pushed apart, in units of the objective; Lucid's notebooks take 100",
        low=0,
    )
    l1: float = option(0.0, "weight of Σ |pixel − grey|; Lucid's notebook on regularization takes 0.05", low=0)
    total_variation: float = option(
        0.0, "weight of Σ |difference of neighbouring pixels|; Lucid's notebook takes 0.25", low=0
    )
    roughness: float = option(0.0, "weight of what blurring the picture would change; Lucid's notebook takes 1", low=0)
    objective: str = reading("channel")

    def jobs(self, request: Request, targets: Sequence[Target], optics: Optics) -> list[Job]:
        if not self.size and min(optics.shape[1:]) > CANVAS:
            wish = Wish(CANVAS, whole=True, windows=False)
            try:
                return jobs(request.model, targets, optics, wish, self.objective)
            except BadOption:  # a layer that runs on one size only, or positions in the network's own input
                pass
        return super().jobs(request, targets, optics)

    def diverse(self) -> tuple[float, bool]:
        # Lucid's objective is the mean over a unit's pictures, of which the diversity is taken once; here each has an objective
        return (self.diversity * self.seeds if self.seeds > 1 else 0.0, False)

    def recipe(self, brief: Brief) -> Recipe:
        image = brief.optics.contract.kind == "image"
        transform = self._transform(brief) if image and self.robust else Chain(())
        phase = Phase(self.steps, Adam(Constant(self.rate)), transform, self._penalties())
        pictures = LucidFourier(self.sd, self.power) if image else Pixels(self.sd)
        return Recipe(pictures, (phase,), open_last=False)

    def _penalties(self) -> tuple[Penalty, ...]:
        found: list[tuple[float, Penalty]] = [
            (self.l1, Absolute(self.l1)),
            (self.total_variation, TotalVariation(self.total_variation, soft=0.0)),
            (self.roughness, Roughness(self.roughness)),
        ]
        return tuple(penalty for weight, penalty in found if weight)

    def _transform(self, brief: Brief) -> Transform:
        scene, optics = brief.scene, brief.optics
        pad, first, last = scaled(scene.picture)
        parts = standard(pad, first, last, (0.5 - optics.mean) / optics.std, -optics.mean / optics.std)
        if not _any_size(brief, pad, first, last):
            parts = (*parts, Fit(scene.view))
        return Chain(parts)


def scaled(size: tuple[int, int]) -> tuple[int, int, int]:
    """Pixels of padding, first and last jitter on a canvas of `size`."""
    share = min(1.0, min(size) / CANVAS)
    return (round(PAD * share), round(FIRST * share), round(LAST * share))


def standard(pad: int, first: int, last: int, grey: Tensor, black: Tensor) -> tuple[Transform, ...]:
    """Lucid's standard_transforms; `grey` and `black` (C, 1, 1) normalised."""
    return (Pad(pad, grey), Trim(first), Rescale(FACTORS), Turn(DEGREES, black), Trim(last))


def _any_size(brief: Brief, pad: int, first: int, last: int) -> bool:
    """Whether the layer runs on the smallest and on the largest picture the transforms make, and no unit names a position."""
    if any(target.placed for target, _ in brief.entries):
        return False
    model, scene = brief.request.model, brief.scene
    with undisturbed(model.network):
        return all(_runs(brief, scene, factor, 2 * pad - first, last) for factor in (FACTORS[0], FACTORS[-1]))


def _runs(brief: Brief, scene: Scene, factor: float, wider: int, last: int) -> bool:
    height, width = (max(1, int(factor * (n + wider))) for n in scene.picture)
    size = (max(1, height - last), max(1, width - last))
    return answers(brief.request.model.network, brief.optics, scene.layer, size) is not None

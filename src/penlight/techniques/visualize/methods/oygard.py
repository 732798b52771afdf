"""`oygard`: Audun Øygard's deepdraw, octaves of normalised steps with a blur after every one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from penlight.techniques.contract import Request
from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import MeanNormalised
from penlight.techniques.visualize.edits import Blur, Clip
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import Normal, Plain
from penlight.techniques.visualize.render import Job
from penlight.techniques.visualize.rescue import Leaky
from penlight.techniques.visualize.scene import Optics, Size
from penlight.techniques.visualize.schedule import Linear
from penlight.techniques.visualize.synthesis import Brief, Synthesis
from penlight.techniques.visualize.targets import Target

PUBLISHED = 224  # pixels: side of the canvas that the published widths are for
_SPREAD = 0.3  # of the room a crop has: how far it strays from the middle


@dataclass(frozen=True)
class Octave:
    """A stretch of steps on a canvas `scale` times the one before; blur widths in pixels and step sizes of 255, both from … to …"""

    steps: int
    width: tuple[float, float]
    step: tuple[float, float]
    scale: float = 1.0


# deepdraw.ipynb, its tables for GoogLeNet
TABLES = {
    "published": (
        Octave(190, (2.5, 0.78), (11.0, 11.0)),
        Octave(150, (0.78 * 1.2, 0.78), (6.0, 6.0), 1.2),
        Octave(150, (0.78 * 1.2, 0.44), (6.0, 3.0), 1.2),
        Octave(10, (0.44, 0.304), (3.0, 3.0)),
    ),
    "coherent": (Octave(190, (2.5, 0.78), (11.0, 11.0)), Octave(450, (0.78 * 1.2, 0.40), (6.0, 3.0), 1.2)),
}


@dataclass(frozen=True)
class CentralCrop:
    """A crop of `size` (H, W) of a larger canvas; its corner is normal about the middle, `spread` of the room as standard deviation."""

    size: Size
    spread: float = _SPREAD

    def __call__(self, canvas: Size, chance: torch.Generator) -> tuple[int, int, int, int]:
        height, width = (min(n, most) for n, most in zip(self.size, canvas, strict=True))
        rooms = (canvas[0] - height, canvas[1] - width)
        far = torch.randn(2, generator=chance).tolist()
        top, left = (
            int(min(max(room / 2 + self.spread * room * z, 0), room)) for room, z in zip(rooms, far, strict=True)
        )
        return top, left, height, width


@dataclass(frozen=True)
class Oygard(Synthesis):
    """deepdraw: octaves of normalised steps, a blur that narrows after every step, one point of the activation grid.

    >>> penlight.visualize(model, "class:goldfish", method="oygard", seeds=4)     # doctest: +SKIP

    A step is g / mean|g| times 11 to 3 (of 255), then the values are clipped and blurred. From the second octave on the canvas is larger
    than what the network sees: every step takes a crop near the middle, changes and blurs that alone, and puts it back. Blur widths and
    step sizes go linearly from the octave's first to its last value. The finished canvas is shrunk to the size of the result.

    The published table reads GoogLeNet's auxiliary classifiers loss2 and loss1 in its last two octaves; networks at large have none, so
    the unit stays the same here. Octaves are enlarged bilinearly, in the notebook by cubic splines. As in his GoogLeNet, ReLUs are
    leaky in the forward pass; the activations of the result are those of the network as it is. His widths are for a canvas of 224
    pixels and would wipe out what a unit with a field of 10 looks for; with `scale_blur` they shrink with the root of the shorter side
    (in proportion to it, nothing would be blurred at 28 pixels, whose patterns are not eight times finer).
    """

    name: ClassVar[str] = "oygard"
    version: ClassVar[int] = 3
    paper: ClassVar[str] = "Øygard, Visualizing GoogLeNet Classes, 2015 (auduno/deepdraw)"

    steps: int = option(0, "steps of all octaves together, shared out as published; 0: the published number", low=0)
    octaves: str = option("published", "table of octaves: published, four; coherent, two", choices=tuple(TABLES))
    leaky: str = option(
        "forward",
        "ReLUs that let a little through where they are closed: in the forward pass, in the backward pass alone, or no",
        choices=("no", "backward", "forward"),
    )
    slope: float = option(0.01, "how much a leaky ReLU lets through where it is closed", low=0, high=1)
    scale_blur: bool = option(True, "blur widths shrink with the canvas, as published on one of 224 pixels")

    def recipe(self, brief: Brief) -> Recipe:
        scene, optics = brief.scene, brief.optics
        image = optics.contract.kind == "image"
        table = shortened(TABLES[self.octaves], self.steps)
        sizes = grown(scene.view, [octave.scale if image else 1.0 for octave in table])
        share = math.sqrt(min(1.0, min(scene.view) / PUBLISHED)) if self.scale_blur else 1.0
        phases = []
        for octave, size in zip(table, sizes, strict=True):
            width = Linear(octave.width[0] * share, octave.width[1] * share, octave.steps)
            edits = (Clip(optics.neutral), Blur(width)) if image else (Clip(optics.neutral),)
            rule = MeanNormalised(Linear(*octave.step, octave.steps))
            phases.append(Phase(octave.steps, rule, edits=edits, size=size, crop=CentralCrop(scene.view)))
        # an array has no light and dark: it starts about its mean
        start = Normal(8.0, 200.0, mean=False) if image else Normal(8.0)
        leaky = None if self.leaky == "no" else Leaky(self.slope, self.leaky)
        return Recipe(Plain(start), tuple(phases), leaky=leaky, rescue=False)

    def jobs(self, request: Request, targets: Sequence[Target], optics: Optics) -> list[Job]:
        # the crops move about; a margin to move in would be one too many
        return [replace(job, scene=replace(job.scene, margin=0)) for job in super().jobs(request, targets, optics)]


def shortened(table: Sequence[Octave], steps: int) -> list[Octave]:
    """The octaves with `steps` steps in all, shared out in proportion, at least one each; 0 leaves them as they are."""
    total = sum(octave.steps for octave in table)
    if not steps:
        return list(table)
    return [replace(octave, steps=max(1, round(steps * octave.steps / total))) for octave in table]


def grown(size: Size, scales: Sequence[float]) -> list[Size]:
    """(H, W) of every octave's canvas: each `scales` times the one before, rounded; along an axis of one value nothing grows."""
    sizes = []
    for scale in scales:
        size = (_grown(size[0], scale), _grown(size[1], scale))
        sizes.append(size)
    return sizes


def _grown(length: int, scale: float) -> int:
    return length if length == 1 else round(length * scale)

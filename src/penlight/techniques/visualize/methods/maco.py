"""`maco`: pictures whose Fourier magnitudes are those of photographs and of which only the phases are optimised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from penlight.errors import BadOption
from penlight.inputs import Data, batches
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import NAdam
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import FixedMagnitude, frequencies, resized
from penlight.techniques.visualize.render import Job, jobs
from penlight.techniques.visualize.scene import Optics, Wish
from penlight.techniques.visualize.schedule import Constant, Linear
from penlight.techniques.visualize.synthesis import Brief, Synthesis, needs_data, reading
from penlight.techniques.visualize.targets import Target, as_pictures
from penlight.techniques.visualize.transforms import Box, Chain, Noise, Transform, Uniform

CANVAS, INPUT = 512, 224  # pixels of the canvas, for a network that takes so many
COLOUR = (  # a row each for light, red to blue and green to purple: what it adds to red, green and blue (preconditioning.py)
    (0.56282854, 0.58447580, 0.58447580),
    (0.19482528, 0.0, -0.19482528),
    (0.04329450, -0.10823626, 0.06494176),
)
NATURAL = (  # amplitude, decay, across, along: photographs' spectrum in these colours, measured by benchmarks/spectrum.py
    (0.0183, 1.3539, -0.0534, 0.0848),
    (0.0016, 2.1345, -0.0341, 0.2183),
    (0.0030, 1.9379, -0.0256, 0.1719),
)
_BATCH = 32


@dataclass(frozen=True)
class Maco(Synthesis):
    """Only phases change; the network sees random crops of a large canvas, which shrink from half of it to a twentieth.

    >>> penlight.visualize(model, "class:tabby", method="maco").images.shape      # doctest: +SKIP
    (1, 1, 512, 512, 3)

    As xplique's maco.py: NAdam with rate 1, 256 steps of 32 crops, noise on each. What is not published there: the magnitudes of
    photographs are a fitted curve in place of the file it loads (`natural`), and several units and starts run side by side, on the same
    crops. For other sizes of input than 224 the canvas is in proportion. `data` takes the mean magnitudes of the data instead, at the
    canvas's size and with the neutral colour taken off. Inputs that are no pictures have no crops, and flat magnitudes for `natural`.
    """

    name: ClassVar[str] = "maco"
    paper: ClassVar[str] = (
        "Fel et al., Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization, NeurIPS 2023"
        " (arXiv:2306.06805)"
    )
    narrow: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True

    steps: int = option(256, "steps of the optimisation", low=1)
    rate: float = option(1.0, "step size of NAdam", low=0)
    crops: int = option(32, "random crops the network sees at each step", low=1)
    box: float = option(0.5, "mean side of the crops at the first step, as a share of the canvas", low=0.05, high=1)
    last_box: float = option(0.05, "the same at the last step", low=0.05, high=1)
    noise: float = option(
        0.08, "standard deviation of the noise added at each step, in units of the normalised input; half as much evenly spread"
        " noise is added as well", low=0
    )  # fmt: skip
    spectrum: str = option(
        "natural", "the magnitudes: natural, of photographs; data, the mean over the data", choices=("natural", "data")
    )
    samples: int = option(1000, "inputs of the data whose magnitudes are averaged, evenly spread over it", low=1)
    objective: str = reading("channel")

    def jobs(self, request: Request, targets: Sequence[Target], optics: Optics) -> list[Job]:
        found = jobs(request.model, targets, optics, Wish(whole=True, windows=False), self.objective)
        if optics.contract.kind != "image":
            if self.size:
                raise BadOption(f"option size fits pictures; {request.model.reference} takes arrays: leave it out")
            return found
        canvas, native = self._canvas(optics), optics.shape[1:]
        return [replace(job, scene=replace(job.scene, kind="canvas", picture=canvas, view=native)) for job in found]

    def _canvas(self, optics: Optics) -> tuple[int, int]:
        height, width = optics.shape[1:]
        if optics.contract.kind != "image":
            return (height, width)
        factor = self.size / min(height, width) if self.size else CANVAS / INPUT
        return (max(1, round(height * factor)), max(1, round(width * factor)))

    def begin(self, request: Request) -> tuple[Tensor, Tensor | None]:
        """(magnitudes (C, H, W//2 + 1), colours (C, C) or None)."""
        optics = Optics.of(request.model)
        channels, size, image = optics.shape[0], self._canvas(optics), optics.contract.kind == "image"
        colour = torch.tensor(COLOUR) if channels == 3 and image else None
        if self.spectrum == "data":
            needs_data(request, "maco with spectrum data")
            assert request.data is not None
            return measured(request.model, request.data, self.samples, size, colour), colour
        if not image:
            return torch.ones(channels, size[0], size[1] // 2 + 1), None
        found = natural(size)
        return (found if channels == 3 else found[:1].expand(channels, -1, -1)), colour

    def recipe(self, brief: Brief) -> Recipe:
        image = brief.optics.contract.kind == "image"
        phase = Phase(
            self.steps, NAdam(Constant(self.rate)), looks=self.crops if image else 1,
            varying=lambda step: self._look(brief, step) if image else self._noise(),
        )  # fmt: skip
        return Recipe(FixedMagnitude(*brief.own), (phase,), open_last=False)

    def _look(self, brief: Brief, step: int) -> Transform:
        side = Linear(self.box, self.last_box, max(1, self.steps - 1))(step)
        return Chain((Box(brief.scene.view, side), self._noise()))

    def _noise(self) -> Chain:
        return Chain((Noise(self.noise), Uniform(self.noise / 2)))


def natural(size: tuple[int, int]) -> Tensor:
    """Photographs' magnitudes in decorrelated colours, (3, H, W//2 + 1), for a picture of `size`."""
    height, width = size
    down, right = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    turn = torch.atan2(down, right.expand(height, -1))
    length = frequencies(height, width).clamp(min=1 / max(size))
    curves = [
        amplitude * length**-decay * (across * (2 * turn).cos() + along * (4 * turn).cos()).exp()
        for amplitude, decay, across, along in NATURAL
    ]
    spectrum: Tensor = torch.stack(curves) * math.sqrt(height * width)
    return spectrum


def measured(model: Model, data: Data, samples: int, size: tuple[int, int], colour: Tensor | None) -> Tensor:
    """The data's mean magnitudes, (C, H, W//2 + 1): of its pictures at `size`, less the neutral colour, in decorrelated colours."""
    optics = Optics.of(model)
    every = max(1, len(data) // samples)
    total, count = torch.zeros(optics.shape[0], size[0], size[1] // 2 + 1, dtype=torch.float64), 0
    back = None if colour is None else torch.linalg.inv(colour).to(optics.mean.device)
    for batch in batches(data, _BATCH):
        chosen = [n for n, index in enumerate(batch.index) if index % every == 0][: samples - count]
        if not chosen:
            continue
        pictures = resized(as_pictures(model, batch.inputs[chosen]) - optics.neutral, size)
        if back is not None:
            pictures = torch.einsum("cd,nchw->ndhw", back, pictures)
        total += torch.fft.rfft2(pictures).abs().double().sum(0).cpu()
        count += len(chosen)
        if count >= samples:
            break
    return (total / max(1, count)).float()

"""The one loop: a batch of pictures is changed, step by step, so that each does more of what its objective wants.

A method is a `Recipe`, a choice of parts; nothing here knows one method from another. The loop yields and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from penlight.models import Layer, Probe
from penlight.techniques.visualize.objectives import Objective
from penlight.techniques.visualize.parameterization import Canvas, Parameterization
from penlight.techniques.visualize.penalties import Penalty
from penlight.techniques.visualize.rescue import open_last, redirect
from penlight.techniques.visualize.scene import Optics, Size
from penlight.techniques.visualize.schedule import Schedule, stream
from penlight.techniques.visualize.transforms import Transform

_MEMORY = 0.9  # of the gradient's size, from step to step
_PATIENCE = 16  # steps, Lucid's number: a picture no gradient has reached by then is given up
_TINY = 1e-30
_GAUSSIAN = 1 / 0.8221784**2  # (E √|z|)² of a standard normal z, inverted


@dataclass(frozen=True)
class Recipe:
    """A method, taken apart: how a picture is written, what is done to it before each look, what it pays for, and how long it takes."""

    parameterization: Parameterization
    transform: Transform
    penalties: tuple[Penalty, ...]
    rate: Schedule
    steps: int


@dataclass(frozen=True, eq=False)
class Stage:
    """A frozen network, looked at after one layer through `optics`."""

    network: nn.Module
    layer: Layer
    optics: Optics
    open_last: bool = False  # look before the ReLU whose result the layer is, if it is one's


@dataclass(frozen=True, eq=False)
class Snapshot:
    """After `step` steps, of `of`: what each picture's objective was, and whether a gradient has ever reached it."""

    step: int
    of: int
    scores: Tensor  # (N,), on the transformed pictures, before this step's change
    reached: Tensor  # (N,) bool
    canvas: Canvas

    def pictures(self) -> Tensor:
        """The pictures now, (N, C, H, W) in [0, 1]."""
        with torch.no_grad():
            return self.canvas()


def optimize(
    stage: Stage, recipe: Recipe, objective: Objective, size: Size, streams: Sequence[torch.Generator], seed: object
) -> Iterator[Snapshot]:
    """Render a batch, a picture of `size` (H, W) for every stream. Yields once before the first step and after every step.

    `seed` names the transforms' random numbers, which the whole batch shares.
    """
    neutral = stage.optics.neutral
    with torch.inference_mode(False):
        canvas = recipe.parameterization(streams, (stage.optics.shape[0], *size), neutral)
        adam = torch.optim.Adam([canvas.values], lr=recipe.rate(0), fused=canvas.values.device.type in ("cpu", "cuda"))
        climb = _Climb(stage, recipe.transform, objective, len(streams))
        yield Snapshot(0, recipe.steps, neutral.new_full((len(streams),), math.nan), climb.reached.clone(), canvas)
        for step in range(recipe.steps):
            with torch.enable_grad():
                pictures = canvas()
                scores, gradient = climb(pictures.detach(), seed, step)
                change = gradient - _pull(recipe.penalties, pictures.detach())
                # a picture no gradient has reached stays as it started
                change = change * climb.reached.reshape(-1, 1, 1, 1)
                canvas.values.grad = None
                pictures.backward(-change)  # type: ignore[no-untyped-call]
            for group in adam.param_groups:
                group["lr"] = recipe.rate(step)
            adam.step()
            yield Snapshot(step + 1, recipe.steps, scores, climb.reached.clone(), canvas)


def _pull(penalties: Sequence[Penalty], pictures: Tensor) -> Tensor:
    """Gradient of all penalties together: the one place they are subtracted."""
    if not penalties:
        return torch.zeros_like(pictures)
    leaf = pictures.requires_grad_(True)
    total = sum((penalty(leaf).sum() for penalty in penalties), start=leaf.new_zeros(()))
    return torch.autograd.grad(total, leaf)[0]


def _size(gradient: Tensor) -> Tensor:
    """How large a picture's gradient is, (N,): its standard deviation if its values are Gaussian.

    From the mean of the roots: a few pixels with gradients far above the rest, as in the middle of a receptive field, do not make the
    rest count for nothing.
    """
    return gradient.abs().sqrt_().flatten(1).mean(1).square() * _GAUSSIAN


class _Climb:
    """The uphill direction for every picture, scaled so that units of any size of answer, and penalties, speak the same language."""

    def __init__(self, stage: Stage, transform: Transform, objective: Objective, count: int) -> None:
        self.stage, self.transform, self.objective = stage, transform, objective
        device = stage.optics.mean.device
        self.rows = torch.arange(count, device=device)
        self.reached = torch.zeros(count, dtype=torch.bool, device=device)
        self.power = torch.zeros(count, device=device)  # running size of each picture's gradient
        self.weight = torch.zeros(count, device=device)

    def __call__(self, pictures: Tensor, seed: object, step: int) -> tuple[Tensor, Tensor]:
        """(scores (N,), gradient of size 1 for each picture)."""
        scores, gradient = self._look(pictures, self.rows, stream(seed, "step", step))
        rows = self.rows[~gradient.flatten(1).any(1) & (self.reached | (step < _PATIENCE))]
        if len(rows):  # once more with the same random numbers, past the ReLUs that let nothing through
            gradient[rows] = self._look(pictures[rows], rows, stream(seed, "step", step), rescue=True)[1]
        now = _size(gradient)
        moved = now > 0
        self.reached |= moved
        self.power = torch.where(moved, _MEMORY * self.power + (1 - _MEMORY) * now, self.power)
        self.weight = torch.where(moved, _MEMORY * self.weight + (1 - _MEMORY), self.weight)
        size = (self.power / self.weight.clamp(min=_TINY)).clamp(min=_TINY)
        return scores, gradient / size.reshape(-1, 1, 1, 1)

    def _look(
        self, pictures: Tensor, rows: Tensor, chance: torch.Generator, rescue: bool = False
    ) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []

        def read(output: Tensor) -> None:
            if rescue:
                redirect(output)
            if self.stage.open_last:
                open_last(output)
            found.append(self.objective(self.stage.layer.units_first(output), rows))

        leaf = pictures.detach().requires_grad_(True)
        with Probe(self.stage.network, {self.stage.layer.path: read}) as probe:
            seen = self.transform(self.stage.optics.normalize(leaf), chance)
            probe(self.stage.optics.reshape(seen.contiguous(memory_format=torch.channels_last)))
        scores = found[0]
        if not scores.requires_grad:  # the layer does not depend on the input at all
            return scores.detach(), torch.zeros_like(pictures)
        (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
        return scores.detach(), torch.zeros_like(pictures) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)

"""The one loop: a batch of pictures is changed, step by step, so that each does more of what its objective wants.

A method is a `Recipe`, a choice of parts; nothing here knows one method from another. The loop yields and prints nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from penlight.models import Layer, Probe
from penlight.techniques.visualize.ascent import Climber, Rule
from penlight.techniques.visualize.cone import Cone
from penlight.techniques.visualize.edits import Edit, Moment
from penlight.techniques.visualize.objectives import Objective
from penlight.techniques.visualize.parameterization import Canvas, Notes, Parameterization, PlainCanvas
from penlight.techniques.visualize.penalties import Penalty
from penlight.techniques.visualize.rescue import Leaky, leak, leaking, open_last, redirect
from penlight.techniques.visualize.scene import Optics, Size
from penlight.techniques.visualize.schedule import stream
from penlight.techniques.visualize.transforms import UNCHANGED, Transform

_MEMORY = 0.9  # of the gradient's size, from step to step
_PATIENCE = 16  # steps, Lucid's number: a picture no gradient has reached by then is given up
_TINY = 1e-30
_GAUSSIAN = 1 / 0.8221784**2  # (E √|z|)² of a standard normal z, inverted

Crop = Callable[[Size, torch.Generator], tuple[int, int, int, int]]
"""(H, W) of a canvas, a step's stream -> (top, left, height, width) of the part that is worked on in this step"""


@dataclass(frozen=True)
class Phase:
    """A stretch of the climb, an octave: all that may change from one to the next.

    size        (H, W) the canvas is resized to first, None to leave it; `detail` as in `PlainCanvas.resize`
    rule        how a gradient becomes a step
    transform   what is done to the pictures before each look; `looks` differently transformed looks a step, averaged
    varying     step of the phase -> its transform, where that changes from step to step
    penalties   what the pictures pay for
    before      edits before each look, `edits` after each step
    crop        the part of the canvas that a step sees and changes; None for all of it
    wanted      makes what this phase climbs out of the objective; None climbs the objective itself
    """

    steps: int
    rule: Rule
    transform: Transform = UNCHANGED
    penalties: tuple[Penalty, ...] = ()
    before: tuple[Edit, ...] = ()
    edits: tuple[Edit, ...] = ()
    size: Size | None = None
    detail: bool = False
    crop: Crop | None = None
    looks: int = 1
    wanted: Callable[[Objective], Objective] | None = None
    varying: Callable[[int], Transform] | None = None


@dataclass(frozen=True)
class Recipe:
    """A method, taken apart.

    scaled      bring every picture's gradient to size 1 before penalties are subtracted, so that weights mean the same for all units
    keep        the picture that counts: the "last", the one the "best" score was seen on, or the one the best look's step made ("after")
    leaky       what is done to ReLUs besides
    rescue      where nothing gets through closed ReLUs, Lucid's redirection for the first steps
    short       the last step only looks, as in DeepVis, whose n iterations make n − 1 changes
    open_last   a unit that is read after its ReLU is climbed as it was before it; False for programs that read the ReLU's result
    """

    parameterization: Parameterization
    phases: tuple[Phase, ...]
    scaled: bool = False
    keep: str = "last"
    leaky: Leaky | None = None
    rescue: bool = True
    short: bool = False
    open_last: bool = True

    @property
    def steps(self) -> int:
        """Of all phases together."""
        return sum(phase.steps for phase in self.phases)


@dataclass(frozen=True, eq=False)
class Stage:
    """A frozen network, looked at after some layers through `optics`."""

    network: nn.Module
    layers: Mapping[str, Layer]  # those the objective reads
    optics: Optics
    open_last: bool = False  # look before the ReLU whose result a layer is, if it is one's
    cone: Cone | None = None  # what gives the same values for inputs of one size at less cost

    def seeing(self, x: Tensor) -> nn.Module:
        """The network that is to look at inputs like this one."""
        return self.cone.network if self.cone is not None and x.shape[1:] == self.cone.shape else self.network


@dataclass(frozen=True, eq=False)
class Snapshot:
    """After `step` steps, of `of`: what each picture's objective was, and whether a gradient has ever reached it."""

    step: int
    of: int
    scores: Tensor  # (N,), on the transformed pictures, before this step's change
    reached: Tensor  # (N,) bool
    canvas: Canvas

    def pictures(self) -> Tensor:
        """The pictures now, (N, C, H, W); within [0, 1] where the parameterization keeps them there."""
        with torch.no_grad():
            return self.canvas()


def optimize(
    stage: Stage, recipe: Recipe, objective: Objective, size: Size, streams: Sequence[torch.Generator], seed: object
) -> Iterator[Snapshot]:
    """Render a batch, a picture of `size` (H, W) for every stream. Yields once before the first step and after every step.

    `seed` names the transforms' random numbers, which the whole batch shares.
    """
    neutral, count = stage.optics.neutral, len(streams)
    with torch.inference_mode(False):
        canvas = recipe.parameterization(streams, (stage.optics.shape[0], *size), neutral)
        climb = _Climb(stage, recipe, objective, count)
        best = _Best(recipe.keep, count, neutral.device)
        yield Snapshot(0, recipe.steps, neutral.new_full((count,), math.nan), climb.reached.clone(), canvas)
        number = 0
        for phase in recipe.phases:
            if phase.size is not None:
                _plain(canvas).resize(phase.size, phase.detail)
            climb.objective = objective if phase.wanted is None else phase.wanted(objective)
            climber = phase.rule.begin(canvas.values)
            for step in range(phase.steps):
                last = number + 1 == recipe.steps
                worked = _step(canvas, climb, phase, climber, step, (seed, number), recipe.short and last)
                number += 1
                best.see(canvas, *worked)
                if last:
                    best.restore(canvas)
                yield Snapshot(number, recipe.steps, worked[0], climb.reached.clone(), canvas)


def _step(
    canvas: Canvas, climb: _Climb, phase: Phase, climber: Climber, step: int, name: tuple[object, int], only_look: bool
) -> tuple[Tensor, Tensor]:
    """One look and, unless `only_look`, one change; (scores (N,), the values that were looked at)."""
    seed, number = name
    if phase.varying is not None:
        phase = replace(phase, transform=phase.varying(step))
    chance = stream(seed, "edit", number)
    part: Tensor = canvas.values.detach()
    if phase.crop is not None:
        top, left, height, width = phase.crop((part.shape[-2], part.shape[-1]), chance)
        part = part[..., top : top + height, left : left + width]
    for edit in phase.before:
        part.copy_(edit(part, Moment(step, phase.steps, torch.zeros_like(part), chance)))
    # what was looked at is needed only where a method keeps the best of its looks
    looked = canvas.values.detach().clone() if climb.recipe.keep == "best" else canvas.values.detach()
    with torch.enable_grad():
        leaf = part.clone().requires_grad_(True) if isinstance(canvas, PlainCanvas) else canvas.values
        pictures = canvas.show(leaf) if isinstance(canvas, PlainCanvas) else canvas()
        scores, change = climb(pictures.detach(), phase, seed, number)
        # the same as grad(pictures, leaf, change), which imports torch's compiler
        (gradient,) = torch.autograd.grad((pictures * change).sum(), leaf)
    if isinstance(canvas, Notes):
        canvas.note(change)
    if only_look:
        return scores, looked
    with torch.no_grad():
        climber(part, gradient, step)
        for edit in phase.edits:
            part.copy_(edit(part, Moment(step, phase.steps, gradient, chance)))
    return scores, looked


def _plain(canvas: Canvas) -> PlainCanvas:
    if not isinstance(canvas, PlainCanvas):
        raise TypeError("only plain values can be taken from one octave to the next; use the parameterization Plain")
    return canvas


class _Best:
    """Remembers each picture as it was when its score was best."""

    def __init__(self, keep: str, count: int, device: torch.device) -> None:
        self.keep, self.values = keep, None if keep == "last" else torch.empty(0)
        self.scores = torch.full((count,), -math.inf, device=device)

    def see(self, canvas: Canvas, scores: Tensor, looked: Tensor) -> None:
        if self.keep == "last":
            return
        values = looked if self.keep == "best" else canvas.values.detach()
        if self.values is None or self.values.shape != values.shape:  # a new octave starts the comparison again
            self.values = values.clone()
            self.scores.fill_(-math.inf)
        better = scores > self.scores
        self.values[better] = values[better]
        self.scores = torch.where(better, scores, self.scores)

    def restore(self, canvas: Canvas) -> None:
        if self.values is not None:
            canvas.values.data.copy_(self.values)


def _pull(penalties: Sequence[Penalty], pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(Sum (N,), gradient) of all penalties together: the one place they are subtracted."""
    leaf = pictures.requires_grad_(True)
    total = torch.stack([penalty(leaf) for penalty in penalties]).sum(0)
    if not total.requires_grad:
        return total, torch.zeros_like(pictures)
    return total.detach(), torch.autograd.grad(total.sum(), leaf)[0]


def _size(gradient: Tensor) -> Tensor:
    """How large a picture's gradient is, (N,): its standard deviation if its values are Gaussian.

    From the mean of the roots: a few pixels with gradients far above the rest, as in the middle of a receptive field, do not make the
    rest count for nothing.
    """
    return gradient.abs().sqrt_().flatten(1).mean(1).square() * _GAUSSIAN


@dataclass
class _Power:
    """The running size of each picture's gradient."""

    value: Tensor
    weight: Tensor

    def scale(self, gradient: Tensor) -> Tensor:
        """The gradient at size 1, so that units of any size of answer, and penalties, speak the same language."""
        now = _size(gradient)
        moved = now > 0
        self.value = torch.where(moved, _MEMORY * self.value + (1 - _MEMORY) * now, self.value)
        self.weight = torch.where(moved, _MEMORY * self.weight + (1 - _MEMORY), self.weight)
        size = (self.value / self.weight.clamp(min=_TINY)).clamp(min=_TINY)
        return gradient / size.reshape(-1, 1, 1, 1)


@dataclass
class _Climb:
    """The uphill direction for every picture, penalties and all."""

    stage: Stage
    recipe: Recipe
    objective: Objective
    count: int
    rows: Tensor = field(init=False)
    reached: Tensor = field(init=False)
    power: _Power = field(init=False)

    def __post_init__(self) -> None:
        device = self.stage.optics.mean.device
        self.rows = torch.arange(self.count, device=device)
        self.reached = torch.zeros(self.count, dtype=torch.bool, device=device)
        self.power = _Power(torch.zeros(self.count, device=device), torch.zeros(self.count, device=device))

    def __call__(self, pictures: Tensor, phase: Phase, seed: object, step: int) -> tuple[Tensor, Tensor]:
        """(scores (N,), uphill gradient, like the pictures); a picture no gradient has reached stays as it started."""
        scores, gradient = self._looks(pictures, phase, self.rows, seed, step)
        if self.recipe.rescue:
            rows = self.rows[~gradient.flatten(1).any(1) & (self.reached | (step < _PATIENCE))]
            if len(rows):  # once more with the same random numbers, past the ReLUs that let nothing through
                gradient[rows] = self._looks(pictures[rows], phase, rows, seed, step, rescue=True)[1]
        self.reached |= gradient.flatten(1).any(1)
        if self.recipe.scaled:
            gradient = self.power.scale(gradient)
        if phase.penalties:
            cost, pull = _pull(phase.penalties, pictures.detach())
            scores, gradient = (scores if self.recipe.keep == "last" else scores - cost), gradient - pull
        return scores, gradient * self.reached.reshape(-1, 1, 1, 1)

    def _looks(
        self, pictures: Tensor, phase: Phase, rows: Tensor, seed: object, step: int, rescue: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The mean over the phase's looks, one after the other: memory does not grow with their number."""
        scores, gradient = self._look(pictures, phase.transform, rows, stream(seed, "step", step), rescue)
        for look in range(1, phase.looks):
            more = self._look(pictures, phase.transform, rows, stream(seed, "step", step, look), rescue)
            scores, gradient = scores + more[0], gradient + more[1]
        return (scores, gradient) if phase.looks == 1 else (scores / phase.looks, gradient / phase.looks)

    def _look(
        self, pictures: Tensor, transform: Transform, rows: Tensor, chance: torch.Generator, rescue: bool
    ) -> tuple[Tensor, Tensor]:
        found: dict[str, Tensor] = {}
        leaky = self.recipe.leaky

        def reader(path: str) -> Callable[[Tensor], None]:
            def read(output: Tensor) -> None:
                if rescue:
                    redirect(output)
                if leaky is not None and leaky.where == "backward":
                    leak(output, leaky.slope)
                if self.stage.open_last and self.recipe.open_last:
                    open_last(output)
                # with several layers, a later operation may write in place into what an earlier one put out
                kept = output if len(self.stage.layers) == 1 else output.clone()
                found[path] = self.stage.layers[path].units_first(kept)

            return read

        leaf = pictures.detach().requires_grad_(True)
        seen = transform(self.stage.optics.normalize(leaf), chance)
        x = self.stage.optics.reshape(seen.contiguous(memory_format=torch.channels_last))
        readers = {path: reader(path) for path in self.stage.layers}
        with leaking(leaky), Probe(self.stage.seeing(x), readers) as probe:
            probe(x)
        scores = self.objective(found, rows)
        if not scores.requires_grad:  # the layers do not depend on the input at all
            return scores.detach(), torch.zeros_like(pictures)
        (gradient,) = torch.autograd.grad(scores.sum(), leaf, allow_unused=True)
        return scores.detach(), torch.zeros_like(pictures) if gradient is None else gradient.nan_to_num(0.0, 0.0, 0.0)

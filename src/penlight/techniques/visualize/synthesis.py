"""What all syntheses share: which pictures are made, the loop, and the evidence. A method adds its recipe."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadOption, BadUnit
from penlight.models import Model
from penlight.models.probe import undisturbed
from penlight.results import VisualizeResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.visualize import likeness
from penlight.techniques.visualize.engine import Recipe
from penlight.techniques.visualize.evidence import jittered
from penlight.techniques.visualize.render import Entry, Job, Rendered, Terms, jobs, measure, render
from penlight.techniques.visualize.scene import Optics, Scene, Wish, placement
from penlight.techniques.visualize.targets import Target, read_targets

READINGS = ("neuron", "channel", "probability", "energy")


def reading(default: str) -> Any:
    """The option that says how a plain unit is read, with a method's own default."""
    return option(
        default,
        "how a plain unit is read: neuron, the middle of its map; channel, the mean of its map; energy, half the sum of its map's"
        " squares; probability, a class after softmax",
        choices=READINGS,
    )


@dataclass(frozen=True, eq=False)
class Brief:
    """What a method is told before it chooses its parts: where and how the pictures are looked at, and whose they are.

    `own` is what its `begin` read for the whole request.
    """

    scene: Scene
    optics: Optics
    entries: Sequence[Entry]
    request: Request
    own: Any = None


@dataclass(frozen=True)
class Synthesis(Technique):
    """Base of the methods that climb a gradient. A subclass is a frozen dataclass that says of which parts its recipe is made.

    >>> @dataclass(frozen=True)
    ... class Mine(Synthesis):
    ...     "Plain pixels, climbed with normalised steps."
    ...     name, paper = "mine", "nobody's"
    ...     def recipe(self, brief: Brief) -> Recipe:
    ...         return Recipe(Plain(Normal(10)), (Phase(100, MeanNormalised(Constant(2))),))

    `windows`: pictures of large networks are looked at through windows that move. `moves`: small ones get a margin, and the method's
    transforms cut out of it what the network sees, a `view` of the scene (`Shift`). `narrow`: a unit that sees little is given a picture
    of that size; otherwise every picture is of the network's own size.
    """

    kinds: ClassVar[tuple[str, ...]] = ("image", "array")

    verb: ClassVar[str] = "visualize"
    version: ClassVar[int] = 2  # of what all of them share; raised in a method that has changed besides
    windows: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    narrow: ClassVar[bool] = True

    seeds: int = option(1, "random starts a unit", low=1)
    minimize: bool = option(False, "look for the least preferred input instead of the preferred one")
    objective: str = reading("neuron")
    size: int = option(
        0, "shorter side of the picture in pixels; 0 chooses it from the receptive field and the input", low=0
    )
    batch: int = option(
        0,
        "large pictures optimised at once (small ones always go in batches of one size); 0 chooses it from size and memory",
        low=0,
    )

    @abstractmethod
    def recipe(self, brief: Brief) -> Recipe:
        """The method, taken apart, for the pictures of one batch."""

    def run(self, request: Request) -> VisualizeResult:
        """Render all units of the request."""
        model = request.model
        targets = read_targets(model, asked(request), self.objective)
        optics = Optics.of(model)
        todo = self.jobs(request, targets, optics)
        seeds = self.starts(request)
        terms = Terms(
            seeds, request.seed, self.minimize, self.batch, request.frames, *self.diverse(), self.alone(request)
        )
        work = _Work(model, optics, targets, terms, todo[0].scene.picture)
        own = self.begin(request)

        def recipe(job: Job, entries: Sequence[Entry]) -> Recipe:
            return self.recipe(Brief(job.scene, optics, entries, request, own))

        total = sum(len(job.targets) * seeds * recipe(job, [(job.targets[0], 0)]).steps for job in todo)
        done = 0

        def advance(pictures: int) -> None:
            nonlocal done
            done += pictures
            request.progress(min(done, total), total)

        for job in todo:
            work.add(job, list(render(model, optics, job, partial(recipe, job), terms, advance)))
        if done < total:
            request.progress(total, total)
        return work.result(self, request)

    def jobs(self, request: Request, targets: Sequence[Target], optics: Optics) -> list[Job]:
        """How the targets are looked at: how large a picture, whether through windows, and with a margin only where pictures are moved."""
        wish = Wish(self.size, whole=not self.narrow or self.objective != "neuron", windows=self.windows)
        made = jobs(request.model, targets, optics, wish, self.objective)
        return made if self.moves else [replace(job, scene=replace(job.scene, margin=0)) for job in made]

    def begin(self, request: Request) -> Any:
        """What is read once for a whole request: data, a second network. Handed to `recipe` as `brief.own`."""
        return None

    def starts(self, request: Request) -> int:
        """Pictures a unit."""
        return self.seeds

    def alone(self, request: Request) -> bool:
        """Whether pictures are rendered one at a time, as large ones had better be."""
        return False

    def diverse(self) -> tuple[float, bool]:
        """Weight of the diversity of a unit's starts, and whether it is a share of the objective."""
        return (0.0, True)

    def notes(self, request: Request) -> tuple[str, ...]:
        """What is to be said about the whole result."""
        return ()


class _Work:
    """The result, filled job by job."""

    def __init__(
        self, model: Model, optics: Optics, targets: Sequence[Target], terms: Terms, size: tuple[int, int]
    ) -> None:
        self.model, self.optics, self.targets, self.terms = model, optics, list(targets), terms
        shape = (len(targets), terms.seeds)
        self.images: NDArray[np.uint8] = np.zeros((*shape, *size, optics.shape[0]), np.uint8)
        self.film: NDArray[np.uint8] = np.zeros((*shape, terms.frames, *size, optics.shape[0]), np.uint8)
        self.activations, self.starts, self.jittered = (np.zeros(shape, np.float32) for _ in range(3))
        self.zero = np.zeros(shape, np.bool_)
        self.network, self.eye = (np.full((*shape, terms.seeds), np.nan, np.float32) for _ in range(2))
        self.recurrence = np.zeros(shape, np.int32)
        self.transparency: NDArray[np.float32] = np.zeros((*shape, 0, 0), np.float32)

    def add(self, job: Job, rendered: Sequence[Rendered]) -> None:
        entries = [(target, k) for target in job.targets for k in range(self.terms.seeds)]
        pictures = np.stack([one.picture.transpose(2, 0, 1) for one in rendered])
        with undisturbed(self.model.network):
            answers = self._jittered(job, entries, pictures)
        where = {target.text: u for u, target in enumerate(self.targets)}
        if rendered[0].transparency.size and not self.transparency.size:
            self.transparency = np.zeros(self.images.shape[:4], np.float32)
        for n, ((target, k), one) in enumerate(zip(entries, rendered, strict=True)):
            u = where[target.text]
            self.images[u, k], self.activations[u, k], self.starts[u, k] = one.picture, one.activation, one.start
            self.zero[u, k], self.jittered[u, k] = one.zero_gradient, answers[n]
            if self.terms.frames:
                self.film[u, k] = one.film
            if one.transparency.shape == self.transparency.shape[2:]:
                self.transparency[u, k] = one.transparency
        if self.terms.seeds > 1:
            self._liken(job, entries, pictures, np.stack([one.first.transpose(2, 0, 1) for one in rendered]))

    def _jittered(self, job: Job, entries: Sequence[Entry], pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        def answer(moved: NDArray[np.uint8]) -> NDArray[np.float32]:
            return measure(self.model, self.optics, job, entries, moved)

        moves = self.optics.contract.kind == "image"
        side = job.scene.view if job.scene.kind == "field" else None
        return jittered(answer, pictures, self.optics.neutral, seed=self.terms.seed, moves=moves, side=side)

    def _liken(
        self, job: Job, entries: Sequence[Entry], pictures: NDArray[np.uint8], starts: NDArray[np.uint8]
    ) -> None:
        where = {target.text: u for u, target in enumerate(self.targets)}
        groups = np.array([where[target.text] for target, _ in entries])
        layers = likeness.layers_for(self.model, job.scene.layer.path)
        pictures, starts = (_shown(job, some, self.optics) for some in (pictures, starts))
        alike = likeness.network(self.model, layers, pictures, groups, starts)
        for u, matrix in alike.items():
            self.network[u], self.recurrence[u] = matrix, likeness.recurrence(matrix, ~self.zero[u])
        for u, matrix in likeness.eye(pictures, groups).items():
            self.eye[u] = matrix

    def result(self, method: Synthesis, request: Request) -> VisualizeResult:
        notes = dict.fromkeys([*method.notes(request), *(note for target in self.targets for note in target.notes)])
        return VisualizeResult(
            provenance(method, request),
            tuple(target.text for target in self.targets),
            tuple(target.label for target in self.targets),
            self.images,
            self.activations,
            self.starts,
            self.zero,
            self.terms.minimize,
            jittered=self.jittered,
            network_likeness=self.network,
            eye_likeness=self.eye,
            recurrence=self.recurrence,
            film=self.film,
            transparency=self.transparency,
            notes=tuple(notes),
        )


def _shown(job: Job, pictures: NDArray[np.uint8], optics: Optics) -> NDArray[np.uint8]:
    """Pictures (N, C, H, W) without the ground that others' size made necessary, at a size the network is shown whole."""
    scene = job.scene
    if scene.kind == "field" and scene.picture != scene.view:
        top, left = placement(scene, job.network, optics)
        return pictures[..., top : top + scene.view[0], left : left + scene.view[1]]
    if scene.kind != "canvas":
        return pictures
    shown: NDArray[np.uint8] = scene.shown(torch.from_numpy(pictures).float()).round().to(torch.uint8).numpy()
    return shown


def asked(request: Request) -> list[Any]:
    """Everything the request names, in order; `BadUnit` if it names nothing."""
    found: list[Any] = [*request.targets, *request.units, *(f"{layer}:*" for layer in request.layers)]
    if not found:
        raise BadUnit(
            "no unit is named; write 'layer:index', 'layer:*' or 'class:label'"
            f" ('penlight layers {request.model.reference}' lists them)"
        )
    return found


def needs_data(request: Request, method: str) -> None:
    """`BadOption` where a method that learns from data gets none."""
    if request.data is None:
        raise BadOption(f"method {method} learns from data; give a folder of pictures or an .npz file with --data")

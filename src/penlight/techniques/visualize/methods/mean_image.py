"""`mean-image`: one picture for every kind of input that a unit answers to, started from the mean of that kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import Data
from penlight.models import Model
from penlight.results import SurveyResult, VisualizeResult
from penlight.techniques.contract import Request
from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import Climber, MeanNormalised, Rule
from penlight.techniques.visualize.edits import Clip, Edit, Moment
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.methods.facets import clusters, codes, deep_layer
from penlight.techniques.visualize.methods.oygard import CentralCrop, grown
from penlight.techniques.visualize.objectives import Objective, Probability, Scaled, UnitAt, centre
from penlight.techniques.visualize.parameterization import Given, Normal, Parameterization, Plain
from penlight.techniques.visualize.scene import Optics, Size
from penlight.techniques.visualize.schedule import Linear, Schedule
from penlight.techniques.visualize.synthesis import Brief, Synthesis, asked, needs_data
from penlight.techniques.visualize.targets import Target, as_pictures, read_targets

PUBLISHED = 227  # pixels: side of the pictures that the published margins and weights are for


@dataclass(frozen=True)
class Octave:
    """A stretch of steps on a canvas `scale` times the one before; step sizes of 255 and denoising weights, both from … to …

    margin      pixels at the edges of what the network sees that are left as they are
    window      how far crops stray, as a share of the room they have
    softmax     climbs the class's probability instead of its score
    """

    steps: int
    step: tuple[float, float]
    weight: tuple[float, float]
    scale: float = 1.0
    margin: int = 0
    window: float = 0.3
    softmax: bool = False


TABLES = {
    "mean": (  # act_max.tvd.mean.py
        Octave(190, (1, 2), (0.4, 0.4)),
        Octave(150, (1, 1), (0.01, 2), 1.2),
        Octave(20, (2, 2), (0.1, 2), margin=50, window=0.2),
        Octave(10, (2, 2), (0.4, 2)),
    ),
    "centre": (  # act_max.tvd.center.py
        Octave(190, (11, 11), (0.001, 0.05), softmax=True),
        Octave(150, (6, 6), (0.01, 0.08), 1.2, softmax=True),
        Octave(150, (1, 1), (0.01, 2), 1.2),
        Octave(30, (3, 3), (0.1, 2), margin=50, window=0.1),
        Octave(10, (6, 3), (0.01, 2)),
    ),
}


@dataclass(frozen=True)
class Slipped:
    """The weights that the published program computes: start − (start − end · i) / n, without the brackets that were meant."""

    start: float
    end: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.start - (self.start - self.end * step) / self.steps


@dataclass(frozen=True, eq=False)
class Denoise:
    """Total-variation denoising (split Bregman, Getreuer 2012) of every picture by itself; the smaller `weight`, the smoother."""

    weight: Schedule
    mean: Tensor  # (C, 1, 1) in [0, 1]

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        from skimage.restoration import denoise_tv_bregman

        weight = self.weight(moment.step)
        shown = (values + 255 * self.mean).permute(0, 2, 3, 1).cpu().double().numpy()
        known: dict[bytes, NDArray[np.float64]] = {}  # a batch is filled up with copies of a picture
        for one in shown:
            if one.tobytes() not in known:
                smooth = denoise_tv_bregman(one, weight, max_num_iter=100, eps=1e-3, channel_axis=-1)
                known[one.tobytes()] = smooth.reshape(one.shape)  # a single channel comes back without its axis
        smooth = np.stack([known[one.tobytes()] for one in shown])
        return torch.from_numpy(smooth).permute(0, 3, 1, 2).to(values) - 255 * self.mean


@dataclass(frozen=True)
class Inside:
    """`rule` for a gradient that is 0 within `margin` pixels of the edges."""

    rule: Rule
    margin: int

    def begin(self, values: Tensor) -> Climber:
        climber, m = self.rule.begin(values), self.margin

        def climb(values: Tensor, gradient: Tensor, step: int) -> None:
            inner = torch.zeros_like(gradient)
            inside = (..., slice(m, gradient.shape[-2] - m), slice(m, gradient.shape[-1] - m))
            inner[inside] = gradient[inside]
            climber(values, inner, step)

        return climb


@dataclass(frozen=True)
class MeanImage(Synthesis):
    """Multifaceted feature visualization: the unit's inputs fall into facets, and each facet's mean starts a picture.

    >>> r = penlight.visualize(model, "class:C", method="mean-image", data="pictures/")     # doctest: +SKIP
    >>> r.images.shape                                                                      # doctest: +SKIP
    (1, 10, 224, 224, 3)

    The inputs are those of the class where the unit is a class and the data has some, as published, and the unit's strongest otherwise.
    Their codes at the last layer before the class scores go through PCA to 50 numbers and t-SNE to 2, k-means finds `facets` of them,
    and the mean of the `nearest` inputs to each facet's centre, of its own, is where that facet's picture starts: the axis of seeds is
    that of facets, the largest first. Where the unit has a map, inputs are moved so that what excites it lies where the picture's middle
    sees. The clustering program was not published; perplexity 30 and k-means++ with ten starts are scikit-learn's.

    Every step is g / mean|g| times 1 to 3 (of 255), on a crop near the middle where the canvas is larger than what the network sees, then
    clipping and total-variation denoising. Its weights go linearly from first to last, as was meant; `quirk` computes them as the
    program does. Margins shrink and weights grow with the canvas as it gets smaller than 227 pixels. The variant "centre" starts from
    noise instead, `seeds` of it, climbs the class's probability for two octaves and its score for three, so that one object stays in the
    middle; units that are no class climb their score throughout. Octaves are enlarged bilinearly, in the program by cubic splines.
    """

    name: ClassVar[str] = "mean-image"
    paper: ClassVar[str] = (
        "Nguyen, Yosinski & Clune, Multifaceted Feature Visualization, 2016 (arXiv:1602.03616; Evolving-AI-Lab/mfv)"
    )
    reads_data: ClassVar[bool] = True
    reads_survey: ClassVar[bool] = True

    seeds: int = option(1, "random starts a unit, for the variant centre; the variant mean has facets", low=1)
    steps: int = option(0, "steps of all octaves together, shared out as published; 0: the published number", low=0)
    variant: str = option("mean", "mean, from the mean of each facet; centre, from noise", choices=tuple(TABLES))
    facets: int = option(
        10, "kinds of input that are looked for; fewer where there are fewer examples", low=1, high=100
    )
    nearest: int = option(15, "examples nearest to a facet's centre that are averaged", low=1)
    examples: int = option(
        200, "the unit's strongest inputs that are looked at, as far as the survey has them", low=1, high=1000
    )
    codes: str = option("", "layer by which examples are alike; without, the last one before the class scores")
    quirk: bool = option(False, "denoising weights as the published program computes them, with its slip")

    def run(self, request: Request) -> VisualizeResult:
        """Find the facets of every unit and render one picture each."""
        _installed()
        if self.variant == "centre":
            return super().run(request)
        needs_data(request, self.name)
        targets = read_targets(request.model, asked(request), self.objective)
        faces, notes = self._faces(request, targets)
        count = min(len(pictures) for pictures in faces.values())
        pictures = {_key(text, k): picture for text, many in faces.items() for k, picture in enumerate(many[:count])}
        result = super().run(replace(request, targets=targets, units=(), layers=(), pictures=pictures))
        return replace(result, notes=(*result.notes, *notes))

    def starts(self, request: Request) -> int:
        return max(1, self._count(request)) if self.variant == "mean" else self.seeds

    @staticmethod
    def _count(request: Request) -> int:
        first = next(iter(request.pictures), "").removeprefix("0 ")
        return sum(1 for name in request.pictures if name.partition(" ")[2] == first)

    def recipe(self, brief: Brief) -> Recipe:
        scene, optics = brief.scene, brief.optics
        image = optics.contract.kind == "image"
        table = _shortened(TABLES[self.variant], self.steps)
        sizes = grown(scene.view, [octave.scale if image else 1.0 for octave in table])
        share = min(1.0, min(scene.view) / PUBLISHED)
        wanted = _Softmax(brief.request.model.class_layer)
        phases = []
        for octave, size in zip(table, sizes, strict=True):
            schedule = Slipped if self.quirk else Linear
            weight = schedule(octave.weight[0] / share, octave.weight[1] / share, octave.steps)
            edits: tuple[Edit, ...] = (Clip(optics.neutral), *((Denoise(weight, optics.neutral),) if image else ()))
            rule: Rule = MeanNormalised(Linear(*octave.step, octave.steps))
            if octave.margin and image:
                rule = Inside(rule, round(octave.margin * share))
            crop = CentralCrop(scene.view, octave.window)
            climbs = wanted if octave.softmax else None
            phases.append(Phase(octave.steps, rule, edits=edits, size=size, crop=crop, wanted=climbs))
        return Recipe(self._start(brief), tuple(phases), rescue=False)

    def _start(self, brief: Brief) -> Parameterization:
        scene, image = brief.scene, brief.optics.contract.kind == "image"
        if self.variant == "centre":
            return Plain(Normal(8.0, 175.0, mean=False) if image else Normal(8.0))
        pictures = []
        for target, k in brief.entries:
            mean = torch.from_numpy(brief.request.pictures[_key(target.text, k)])
            if scene.kind == "field":  # the part of the input that the picture's middle sees
                native = centre(scene.layer.positions)
                at = [s * (a - b) for s, a, b in zip(scene.stride, native, scene.middle, strict=True)]
                mean = _moved(mean, (at[0], at[1]), scene.view, brief.optics.neutral.cpu())
            pictures.append(mean)
        return Given(torch.stack(pictures))

    def _faces(
        self, request: Request, targets: Sequence[Target]
    ) -> tuple[dict[str, list[NDArray[np.float32]]], list[str]]:
        """Each target's facets as mean pictures (C, H, W) in [0, 1], the largest facet first, and what is to be said of them."""
        model, data = request.model, request.data
        assert data is not None
        layer = deep_layer(model, self.codes)
        found, said = dict[str, list[NDArray[np.float32]]](), []
        for target in targets:
            index, corners, source = self._examples(request, target, data)
            kept = [row for row, i in enumerate(index.tolist()) if _readable(data, i)]
            if not kept:
                raise BadInput(f"not one of the {len(index)} examples of {target.text} can be read from {data.name}")
            index, corners = index[kept], corners[kept]
            known = codes(model, layer, [partial(data.read, i) for i in index.tolist()])
            members = clusters(known, self.facets, self.nearest, (request.seed, target.text))
            found[target.text] = [_mean(model, data, index[rows], corners[rows]) for rows in members]
            said.append(f"{target.text}: {len(members)} facets of {len(index)} {source}")
        fewest = min(len(many) for many in found.values())
        if any(len(many) > fewest for many in found.values()):
            said.append(f"every unit is shown with {fewest} facets, as many as the one with the fewest examples has")
        return found, said

    def _examples(
        self, request: Request, target: Target, data: Data
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], str]:
        """(indices into the data (n,), how far down and right of the picture's middle each one's excitement lies (n, 2), what they are)."""
        unit, model = target.unit, request.model
        if unit is None or unit.index is None:
            raise BadOption(
                f"method {self.name} looks at the inputs of units; {target.text!r} is an expression: name a unit"
            )
        own = _of_class(model, data, model.label(unit), unit.index) if _is_class(model, target) else []
        if own:
            index = np.array(own, np.int64)
            return index, np.zeros((len(index), 2), np.int64), "inputs of the class"
        address = f"{unit.layer}:{unit.index}"
        surveys = [one for one in request.earlier if isinstance(one, SurveyResult) and unit.layer in one.layers]
        if not surveys:
            raise BadInput(
                f"method {self.name} needs a survey of layer {unit.layer!r}; 'penlight survey' makes one of your data"
            )
        top = surveys[0].top(address)
        index, places = top.inputs[: self.examples], top.positions[: self.examples]
        if not len(index):
            raise CannotRun(f"no input of the survey has a finite activation of {address}; its facets cannot be found")
        if int(index.max()) >= len(data):
            raise BadInput(
                f"the survey is of other data: it names input {int(index.max())}, {data.name} has {len(data)}"
            )
        field = model.fields.get(unit.layer)
        if field is None or places.shape[1] != 2 or len(field.stride) != 2:
            return index, np.zeros((len(index), 2), np.int64), "strongest inputs"
        middle = np.array(unit.position or centre(model.layer(unit.layer).positions))
        return index, (places - middle) * np.array(field.stride), "strongest inputs"


def _key(text: str, facet: int) -> str:
    return f"{facet} {text}"


def _is_class(model: Model, target: Target) -> bool:
    layer = target.layers[0]
    return model.class_layer in (layer, model.layers[layer].alias_of) and model.class_layer is not None


def _of_class(model: Model, data: Data, label: str | None, index: int) -> list[int]:
    """The data's inputs of a class, by its label, or by its number where data or network have no labels."""
    if not data.classes:
        return []
    if label is not None and label in data.classes:
        number = data.classes.index(label)
    elif label is None and index < len(data.classes):
        number = index
    else:
        return []
    return [i for i in range(len(data)) if data.label(i)[1] == number]


def _readable(data: Data, index: int) -> bool:
    try:
        data.read(index)
    except BadInput:
        return False
    return True


def _mean(model: Model, data: Data, index: NDArray[np.int64], corners: NDArray[np.int64]) -> NDArray[np.float32]:
    """(C, H, W) in [0, 1]: the mean of some inputs, each seen from its corner on."""
    optics, total = Optics.of(model), None
    for i, (down, right) in zip(index.tolist(), corners.tolist(), strict=True):
        picture = as_pictures(model, data.read(i)[None])[0].cpu().double()
        seen = _moved(picture, (down, right), optics.shape[1:], optics.neutral.cpu().double())
        total = seen if total is None else total + seen
    assert total is not None
    mean: NDArray[np.float32] = (total / len(index)).float().numpy()
    return mean


def _moved(picture: Tensor, corner: tuple[int, int], size: Size, neutral: Tensor) -> Tensor:
    """The part of (C, H, W) of `size` whose top left pixel is `corner`; outside of the picture it is neutral."""
    ground = neutral.expand(-1, *size).clone()
    spans = []
    for start, length, most in zip(corner, size, picture.shape[1:], strict=True):
        low, high = max(start, 0), min(start + length, most)
        spans.append((slice(low, max(high, low)), slice(low - start, max(high, low) - start)))
    (rows, to_rows), (columns, to_columns) = spans
    ground[:, to_rows, to_columns] = picture[:, rows, columns]
    return ground


def _shortened(table: Sequence[Octave], steps: int) -> list[Octave]:
    total = sum(octave.steps for octave in table)
    return [replace(octave, steps=max(1, round(steps * octave.steps / total))) if steps else octave for octave in table]


@dataclass(frozen=True)
class _Softmax:
    """A class's score as its probability; what is no class stays as it is."""

    class_layer: str | None

    def __call__(self, objective: Objective) -> Objective:
        if isinstance(objective, Scaled):
            return Scaled(self(objective.objective), objective.factor)
        if isinstance(objective, UnitAt) and objective.layer == self.class_layer and objective.position is None:
            return Probability(objective.layer, objective.index)
        return objective


def _installed() -> None:
    lacking = [name for name in ("sklearn", "skimage") if find_spec(name) is None]
    if lacking:
        raise CannotRun(
            f"method mean-image needs scikit-learn and scikit-image, and there is no {' and no '.join(lacking)};"
            " pip install 'penlight[facets]'"
        )

"""An input cut into parts that are there or are not: segments of a picture, stretches of a signal, columns of a table."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import TableContract
from penlight.models.front import FrontContract
from penlight.techniques.explain.aim import Aim, scores
from penlight.techniques.explain.explanation import Explanation, Scene, in_words
from penlight.techniques.explain.fills import FILL_HELP, FILLS, TOKEN_HELP, TOKENS, filled, token
from penlight.techniques.explain.stretches import PIECES, auto_pieces, pieces
from penlight.techniques.options import option

Masks = NDArray[np.bool_]
WAYS = ("auto", "quickshift", "slic", "grid", *PIECES)
_LARGE = 64  # pixels: below this, quickshift's segments are a few pixels or all of the picture
_COUNT = 50
_FOLLOWING = (
    "quickshift",
    "slic",
)  # their segments are nearly of one colour; the mean of an even square still shows what was there


class Features(ABC):
    """What an input is made of, for methods that take parts of it away.

    `kind` says in words how the input was cut, `names` has a name a part, `chance` the probability that a part stays in a plain random
    draw. `axes` counts the input's axes, 1 for a row of a table. `exact` is False where two inputs of the same mask may differ.
    """

    kind: str
    names: tuple[str, ...]
    axes: int
    exact: ClassVar[bool] = True

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.names)

    @property
    def chance(self) -> NDArray[np.float64]:
        """(n,): how likely each part stays."""
        return np.full(self.count, 0.5)

    @abstractmethod
    def apply(self, masks: Masks, first: int) -> Tensor:
        """(k, n), True where a part stays → (k, *shape), normalised. `first` is the number of the first mask in all that are drawn."""

    @abstractmethod
    def spread(self, weights: NDArray[np.float64]) -> NDArray[np.float32]:
        """(n,) numbers, one a part → a map of the input."""

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """What the result keeps of the parts."""
        return {}


@dataclass(frozen=True, eq=False)
class Places(Features):
    """Parts that are sets of places: `labels` (*places) says which part each place of `x` (1, *shape) belongs to, from 0 on.

    A part that is away shows `fill` (1, *shape) instead.
    """

    kind: str
    names: tuple[str, ...]
    labels: NDArray[np.intp]
    x: Tensor
    fill: Tensor

    @property
    def axes(self) -> int:  # type: ignore[override]
        return self.x.ndim - 1

    @cached_property
    def _owners(self) -> Tensor:
        """Which part each number of `_last` belongs to."""
        channels = self.x.numel() // self.labels.size  # a row of a table is one channel
        return torch.from_numpy(np.repeat(self.labels.reshape(-1), channels)).to(self.x.device)

    @cached_property
    def _last(self) -> tuple[Tensor, Tensor]:
        """Input and fill with the channels last, (1, places · channels), as the prepared network's maps lie in memory."""
        return self._channels_last(self.x), self._channels_last(self.fill)

    def _channels_last(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, self.labels.size).transpose(1, 2).reshape(1, -1)

    def apply(self, masks: Masks, first: int) -> Tensor:
        seen, fill = self._last
        share = torch.from_numpy(masks).to(self.x.device, seen.dtype).index_select(1, self._owners)
        made = torch.lerp(fill, seen, share)  # exactly the one or the other, at four times the speed of `where`
        return made.view(len(masks), self.labels.size, -1).transpose(1, 2).view(len(masks), *self.x.shape[1:])

    def spread(self, weights: NDArray[np.float64]) -> NDArray[np.float32]:
        return weights.astype(np.float32)[self.labels]

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {"segments": self.labels.astype(np.int32)}


@dataclass(frozen=True, eq=False)
class Columns(Places):
    """The columns of a table: a category's inputs are taken away together, and a number a column is the map."""

    def spread(self, weights: NDArray[np.float64]) -> NDArray[np.float32]:
        return weights.astype(np.float32)

    def arrays(self) -> Mapping[str, NDArray[Any]]:
        return {}


@dataclass(frozen=True)
class OfParts(Explanation):
    """The options of methods that take parts of the input away: how it is cut, what is shown instead, and what is explained."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "table", "text")

    segments: str = option(
        "auto",
        "how a picture is cut: quickshift and slic follow its content (pip install 'penlight[segments]'), grid is even squares;"
        f" auto is quickshift from {_LARGE} pixels on, else grid. A text is cut into characters, words or lines; auto is words for more"
        " than 40 characters",
        choices=WAYS,
    )
    count: int = option(0, f"segments for slic and grid, about; 0 is {_COUNT}; a table has a part a column", low=0)
    kernel_size: float = option(4.0, "of quickshift: pixels of its Gaussian", low=0.5)
    max_dist: float = option(
        200.0, "of quickshift: the farthest two pixels of one segment may be, in colour and place", low=0
    )
    ratio: float = option(0.2, "of quickshift: weight of colour against place", low=0, high=1)
    fill: str = option(
        "auto",
        f"{FILL_HELP}, or each segment's own mean; auto is segment where segments follow the content, else mean, and zeros for a table"
        f" without data; {TOKEN_HELP}",
        choices=("auto", "segment", *FILLS, *TOKENS),
    )
    of: str = option(
        "score",
        "what is explained of a class: the score, or the probability after softmax; other units are explained as they are",
        choices=("score", "probability"),
    )

    def parts(self, scene: Scene) -> Features:
        """The input cut as the options say; `BadOption` or `BadInput` if that gives fewer than two parts."""
        return cut(scene, self)


def read_as(scene: Scene, of: str) -> Scene:
    """The scene with the class's probability as its aim, if `of` says so; `BadOption` where the aim is no class."""
    aim = scene.aim
    if of != "probability" or aim.reading == "probability":
        return scene
    if not is_class(scene):
        raise BadOption(f"of probability is for classes; {aim} has no probability: use of score")
    wanted = Aim(aim.layer, aim.index, None, "probability", aim.label)
    return replace(scene, aim=wanted, value=float(scores(scene.model, wanted, scene.network, scene.x)[0].detach()))


def is_class(scene: Scene) -> bool:
    """Whether the aim is one of the class scores."""
    layer = scene.model.layers[scene.aim.layer]
    return scene.model.class_layer in (scene.aim.layer, layer.alias_of) and math.prod(layer.positions) == 1


def cut(scene: Scene, how: OfParts) -> Places:
    """Segments of a picture (C, H, W), stretches of a signal (C, L), or the columns of a row (F,), with what stands in for them."""
    contract, shape = scene.model.contract, scene.model.contract.shape
    if isinstance(contract, FrontContract):
        return _of_text(scene, contract, how)
    if len(shape) == 3:
        if how.segments in PIECES:
            raise BadOption(f"segments {how.segments} is for text; this input is a picture: use {', '.join(WAYS[:4])}")
        kind, labels = segmented(scene.input, how)
    elif how.segments not in ("auto", "grid"):
        what = "text" if how.segments in PIECES else "pictures"
        raise BadOption(
            f"segments {how.segments} is for {what}; this input has the shape {list(shape)}: use grid or auto"
        )
    elif len(shape) == 1:
        kind, labels = "columns", contract.owners if isinstance(contract, TableContract) else np.arange(shape[0])
    else:
        kind, labels = "grid", squares(shape[1:], how.count or _COUNT)
    count = int(labels.max()) + 1
    if count < 2:
        raise BadInput(
            f"{kind} finds 1 segment in this input: there is nothing to compare; use segments grid, a larger count or a smaller max-dist"
        )
    fill = stand_in(scene, how.fill, kind, labels)
    if torch.equal(fill, scene.x):
        raise BadInput(
            "taking parts away changes nothing: the fill is the input itself; choose another fill or larger segments"
        )
    if isinstance(contract, TableContract):
        words = in_words(contract, scene.input)
        told = tuple(f"{name} = {word}" for name, word in zip(contract.names, words, strict=True))
        return Columns(kind, told, labels, scene.x, fill)
    return Places(kind, _names(labels, len(shape)), labels, scene.x, fill)


def _of_text(scene: Scene, contract: FrontContract, how: OfParts) -> Places:
    if how.segments not in ("auto", *PIECES):
        raise BadOption(f"segments {how.segments} is for pictures; this input is a text: use {', '.join(PIECES)}")
    kind = auto_pieces(contract) if how.segments == "auto" else how.segments
    spans = pieces(contract, kind)
    if len(spans) < 2:
        raise BadInput(f"the text has 1 part of kind {kind}: there is nothing to compare; use segments characters")
    if how.fill == "segment":
        raise BadOption(f"fill 'segment' is for pictures; this input is a text: use {', '.join((*TOKENS, *FILLS))}")
    fill = filled(scene, token(scene) if how.fill == "auto" else how.fill)
    if torch.equal(fill, scene.x):
        raise BadInput("taking parts away changes nothing: the fill is the text itself; choose another fill")
    labels = np.repeat(np.arange(len(spans)), [stop - start for start, stop in spans])
    return Places(kind, tuple(contract.told(*span) for span in spans), labels, scene.x, fill)


def _names(labels: NDArray[np.intp], axes: int) -> tuple[str, ...]:
    word = {1: "column", 2: "stretch"}.get(axes, "segment")
    return tuple(f"{word} {n}" for n in range(int(labels.max()) + 1))


def stand_in(scene: Scene, fill: str, kind: str, labels: NDArray[np.intp]) -> Tensor:
    """(1, *shape), normalised: what parts that are away show, for an input cut as `kind` says."""
    axes = len(scene.model.contract.shape)
    if fill == "auto":
        known = axes > 1 or scene.data is not None
        fill = "segment" if kind in _FOLLOWING else "mean" if known else "zeros"
    if fill != "segment":
        return filled(scene, fill)
    if axes == 1:
        raise BadOption(
            "fill 'segment' is the mean of a segment, and a column has one number; use zeros, mean or black"
        )
    flat = torch.from_numpy(labels.reshape(-1)).to(scene.x.device)
    values = scene.x.reshape(-1, labels.size).double()
    sums = torch.zeros(len(values), int(labels.max()) + 1, dtype=torch.float64, device=values.device)
    means = sums.index_add(1, flat, values) / torch.bincount(flat)
    return means[:, flat].reshape(scene.x.shape).to(scene.x)


def squares(size: Sequence[int], count: int) -> NDArray[np.intp]:
    """Labels (*size) of a grid of about `count` parts that are as even as can be."""
    side = (math.prod(size) / count) ** (1 / len(size))
    labels = np.zeros((1,) * len(size), np.intp)
    for axis, length in enumerate(size):
        parts = min(length, max(1, round(length / side)))
        at = np.arange(length) * parts // length
        labels = labels * parts + at.reshape([-1 if n == axis else 1 for n in range(len(size))])
    return labels


def segmented(picture: NDArray[Any], how: OfParts) -> tuple[str, NDArray[np.intp]]:
    """(way, labels (H, W) from 0 on) of a picture (C, H, W).

    The same picture always gives the same segments: seeds govern what is drawn, and weights of different seeds can be compared.
    """
    size = picture.shape[1:]
    way = how.segments
    if way == "auto":
        way = "quickshift" if min(size) >= _LARGE else "grid"
    if way == "grid":
        return way, squares(size, how.count or _COUNT)
    if find_spec("skimage") is None:
        raise CannotRun(f"segments {way} needs scikit-image: pip install 'penlight[segments]', or use segments grid")
    from skimage import segmentation

    ways: Any = segmentation  # parts of it have no types
    image = _coloured(picture)
    if way == "quickshift":
        found = ways.quickshift(image, kernel_size=how.kernel_size, max_dist=how.max_dist, ratio=how.ratio, rng=42)
    else:
        found = ways.slic(image, n_segments=how.count or _COUNT, start_label=0)
    _, labels = np.unique(found, return_inverse=True)
    return way, labels.reshape(size).astype(np.intp)


def _coloured(picture: NDArray[Any]) -> NDArray[Any]:
    """(C, H, W) of any number of channels → (H, W, 3), uint8 or in [0, 1], as the segmentations take it."""
    channels = picture if len(picture) == 3 else np.repeat(picture.mean(0, keepdims=True), 3, axis=0)
    if picture.dtype == np.uint8:
        return np.ascontiguousarray(channels.transpose(1, 2, 0).astype(np.uint8))
    low, high = float(channels.min()), float(channels.max())
    scaled = channels if low >= 0 and high <= 1 else (channels - low) / max(high - low, 1e-12)
    return np.ascontiguousarray(scaled.transpose(1, 2, 0))

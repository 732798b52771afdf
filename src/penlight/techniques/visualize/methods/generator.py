"""`generator`: the picture is what a generator network makes of a code, and the code is what is optimised (DGN-AM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from penlight.errors import BadOption, PenlightError
from penlight.models import Model
from penlight.models.probe import frozen_copy
from penlight.models.sources import open_reference
from penlight.techniques.contract import Request
from penlight.techniques.options import option
from penlight.techniques.visualize.ascent import MeanNormalised
from penlight.techniques.visualize.edits import Moment
from penlight.techniques.visualize.engine import Phase, Recipe
from penlight.techniques.visualize.parameterization import Canvas, resized
from penlight.techniques.visualize.scene import Optics
from penlight.techniques.visualize.schedule import Linear, stream
from penlight.techniques.visualize.synthesis import Brief, Synthesis

_CROPPED = (
    1.25  # times the network's side: up to here a larger picture is cut, as 256 to 227; beyond, it is made smaller
)
_STRAY = 0.1  # outside of [0, 1]: generators that end in a convolution overshoot a little
_SIGMAS = 3.0
_RATE, _RANGE = 8.0, 12.0  # as published, and what CaffeNet's fc6 ranges over with it: the mean of act_range/3x/fc6.txt
_TRIED = 4  # codes


@dataclass(frozen=True)
class FromCode(Synthesis):
    """Ascent in the space of a generator's codes: whatever is tried, the picture is one the generator can make.

    >>> penlight.visualize("letters", "class:*", method="generator", seeds=3)                                   # doctest: +SKIP
    >>> penlight.visualize(model, "class:tabby", method="generator", generator="module:mine:open_generator")    # doctest: +SKIP

    A generator is a module from codes (N, *code) to pictures (N, C, H, W) in [0, 1], with attribute `code_shape` and, if it likes,
    buffers `code_low`, `code_high`, `code_mean`, `code_std` that go with a code. A picture larger than the network's input by up to a
    quarter is cut in the middle, another one resized. As act_max.py: normalised steps, bounds, a code that shrinks by 1 % a step, and
    the picture of the last look, best or not ("there is no correlation between activation and recognizability"). Its two normalised
    steps, first of the picture, then of the code, are one here: the first only scales what the second normalises. Its rate of 8 is two
    thirds of the range of its codes, CaffeNet's fc6, so it is two thirds of the range of others.
    """

    name: ClassVar[str] = "generator"
    paper: ClassVar[str] = (
        "Nguyen, Dosovitskiy, Yosinski, Brox & Clune, Synthesizing the preferred inputs for neurons in neural networks via deep"
        " generator networks, NeurIPS 2016 (arXiv:1605.09304)"
    )
    narrow: ClassVar[bool] = False

    generator: str = option(
        "", "the generator: any model reference, as in module:package.mod:callable; empty takes the specimen's own"
    )
    code: str = option("", "shape of a code, as in 4096 or 64,4,4; empty takes what the generator says")
    steps: int = option(200, "steps of the optimisation", low=1)
    rate: float = option(
        0.0,
        "mean change of a code's values at the first step; 0: as published, 8 for codes that run from 0 to 12 and in proportion for"
        " others, 8 where bounds are none",
        low=0,
    )
    last_rate: float = option(1e-10, "the same after the last step; in between it changes linearly", low=0)
    shrink: float = option(0.99, "what the code is multiplied by after each step", low=0, high=1)
    bounds: str = option(
        "auto",
        "where codes are kept: relu, from 0 to mean + 3 standard deviations; unit, from -1 to 1; own, between the generator's code_low"
        " and code_high; none; auto takes own, else relu, else none, as far as the generator knows",
        choices=("auto", "relu", "unit", "own", "none"),
    )
    origin: str = option(
        "normal",
        "the first code: normal, from N(0, 1); mean, from around the generator's mean code",
        choices=("normal", "mean"),
    )

    def begin(self, request: Request) -> Source:
        return open_source(request.model, self.generator, self.code)

    def recipe(self, brief: Brief) -> Recipe:
        source: Source = brief.own
        codes = Codes(source, source.need("mean", "origin mean") if self.origin == "mean" else None)
        low, high = self._bounds(source)
        far = _RANGE if low is None or high is None else float((high - low).mean())
        rule = MeanNormalised(Linear(self.rate or _RATE * far / _RANGE, self.last_rate, self.steps))
        phase = Phase(self.steps, rule, edits=(Kept(low, high, self.shrink),))
        return Recipe(codes, (phase,), short=True)

    def _bounds(self, source: Source) -> tuple[Tensor | None, Tensor | None]:
        kind = self.bounds
        if kind == "auto":
            own, known = ({"low", "high"} <= source.ranges.keys(), {"mean", "std"} <= source.ranges.keys())
            kind = "own" if own else "relu" if known else "none"
        if kind == "none":
            return None, None
        if kind == "unit":
            one = torch.ones(source.shape)
            return -one, one
        if kind == "own":
            return source.need("low", "bounds own"), source.need("high", "bounds own")
        high = source.need("mean", "bounds relu") + _SIGMAS * source.need("std", "bounds relu")
        return torch.zeros_like(high), high


@dataclass(frozen=True, eq=False)
class Source:
    """An opened generator: frozen, on the model's device; `ranges` holds what it knows of its codes: low, high, mean, std."""

    network: nn.Module
    shape: tuple[int, ...]
    ranges: dict[str, Tensor]

    def need(self, name: str, wanted: str) -> Tensor:
        """One of the ranges; `BadOption` if the generator lacks it."""
        if name not in self.ranges:
            option, _, value = wanted.partition(" ")
            raise BadOption(
                f"option {option} takes {value!r} only for a generator with a buffer code_{name}; this one has none"
            )
        return self.ranges[name]


@dataclass(frozen=True, eq=False)
class Codes:
    """Pictures as codes: `source` makes them, cut or resized to what is wanted; codes start from N(0, 1), or from around `mean`."""

    source: Source
    mean: Tensor | None = None

    def __call__(self, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor) -> Canvas:
        starts = torch.stack([torch.randn(self.source.shape, generator=stream) for stream in streams]).to(
            neutral.device
        )
        if self.mean is not None:
            starts = starts * self.source.ranges.get("std", torch.ones(())).to(neutral.device) + self.mean
        return _Generated(self.source.network, starts, shape[1:])


class _Generated:
    def __init__(self, network: nn.Module, starts: Tensor, size: tuple[int, int]) -> None:
        self.network, self.size = network, size
        self.values = starts.requires_grad_(True)

    def __call__(self) -> Tensor:
        return fitted(self.network(self.values), self.size)


@dataclass(frozen=True, eq=False)
class Kept:
    """Codes within bounds, then smaller by a factor; one that no gradient reached stays as it is."""

    low: Tensor | None
    high: Tensor | None
    shrink: float

    def __call__(self, values: Tensor, moment: Moment) -> Tensor:
        changed = values if self.low is None else torch.maximum(values, self.low.to(values))
        changed = changed if self.high is None else torch.minimum(changed, self.high.to(values))
        reached = moment.gradient.flatten(1).any(1).reshape(-1, *(1,) * (values.ndim - 1))
        return torch.where(reached, changed * self.shrink, values)


def fitted(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) at another size: cut in the middle where it is a little larger, otherwise resized to cover it and then cut."""
    ratios = [have / want for have, want in zip(pictures.shape[2:], size, strict=True)]
    if not all(1 <= ratio <= _CROPPED for ratio in ratios):
        cover = 1 / min(ratios)
        height, width = (max(want, round(have * cover)) for have, want in zip(pictures.shape[2:], size, strict=True))
        pictures = resized(pictures, (height, width))
    top, left = ((have - want) // 2 for have, want in zip(pictures.shape[2:], size, strict=True))
    return pictures[..., top : top + size[0], left : left + size[1]]


def open_source(model: Model, reference: str, code: str) -> Source:
    """The generator of a reference, or the model's own, tried out; `UsageError` says what is lacking."""
    text = reference or model.generator
    if text is None:
        raise BadOption(
            f"{model.reference} brings no generator of its pictures; name one with --generator module:package.mod:callable, which"
            " returns a module from codes to pictures in [0, 1]"
        )
    opened = open_reference(text, {})
    network = frozen_copy(opened.network).to(model.device)
    said = getattr(opened.network, "code_shape", None) or (opened.contract.shape if opened.contract else None)
    shape = _shape(code) if code else None if said is None else tuple(int(n) for n in said)
    if shape is None:
        raise BadOption(
            f"generator {text} does not say how large its codes are (code_shape); say it with --code, as in 4096 or 64,4,4"
        )
    _try(network, shape, text, Optics.of(model).shape[0], model.device)
    return Source(network, shape, _ranges(network, shape, text))


def _shape(code: str) -> tuple[int, ...]:
    parts = [part.strip() for part in code.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise BadOption(f"option code takes whole numbers with commas between them, as in 4096 or 64,4,4, not {code!r}")
    return tuple(map(int, parts))


def _try(network: nn.Module, shape: tuple[int, ...], text: str, channels: int, device: torch.device) -> None:
    codes = torch.randn((_TRIED, *shape), generator=stream("generator")).to(device)
    try:
        with torch.no_grad():
            made: Any = network(codes)
    except PenlightError:
        raise
    except Exception as error:  # the user's module may raise anything
        first = (str(error).splitlines() or [""])[0]
        raise BadOption(
            f"generator {text} fails on codes {[_TRIED, *shape]}: {type(error).__name__}: {first}"
        ) from error
    if not isinstance(made, Tensor) or made.ndim != 4 or len(made) != _TRIED:
        got = list(made.shape) if isinstance(made, Tensor) else f"a {type(made).__name__}"
        raise BadOption(f"generator {text} makes {got} of {_TRIED} codes; it has to make pictures (N, C, H, W)")
    if made.shape[1] != channels:
        raise BadOption(f"generator {text} makes pictures of {made.shape[1]} channels; the network takes {channels}")
    low, high = float(made.min()), float(made.max())
    if not (low >= -_STRAY and high <= 1 + _STRAY):
        raise BadOption(
            f"generator {text} makes values from {low:.3g} to {high:.3g}; its pictures have to lie in [0, 1], before normalisation"
        )


def _ranges(network: nn.Module, shape: tuple[int, ...], text: str) -> dict[str, Tensor]:
    found = {}
    for name in ("low", "high", "mean", "std"):
        value = getattr(network, f"code_{name}", None)
        if value is None:
            continue
        try:
            found[name] = torch.as_tensor(value).detach().float().expand(shape)
        except (RuntimeError, TypeError, ValueError) as error:
            raise BadOption(
                f"generator {text} has a code_{name} that does not fit codes of {list(shape)}: {error}"
            ) from error
    return found

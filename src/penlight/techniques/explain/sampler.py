"""Which parts are taken away together: masks drawn from one seed, shown to the network until the answer is stable.

Two streams of masks are drawn, each from a generator of its own. The answer comes from both; how far the answers of the one and of the
other agree says how stable it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadOption, CannotRun
from penlight.techniques.explain.chunks import chunk_size, in_chunks
from penlight.techniques.explain.explanation import Scene
from penlight.techniques.explain.features import Features, Masks
from penlight.techniques.explain.surrogate import kendall, lengthened

Numbers = NDArray[np.float64]
EVERY = 2048  # masks: where there are no more than so many, all of them are taken
MOST = 4096  # masks that are drawn without having been asked for
_STRATA = 16  # pairs whose numbers of parts are spread evenly
_ROUND = 4 * _STRATA  # masks of both streams between two looks at the answer
_GROWTH = 1.1  # between two looks, at least
_LEAST, _AT_LEAST = 5, 200  # masks a part, and in all, before the first look
_FEWEST = 10
_CACHE = 40 << 20  # bytes of a batch's two largest maps: what a CPU's cache holds, so that larger batches are slower


def bernoulli(chance: Numbers, rng: np.random.Generator) -> Iterator[Masks]:
    """Every part stays with its own probability, by itself: lime's draws."""
    while True:
        yield rng.random(len(chance)) < chance


def mirrored(chance: Numbers, rng: np.random.Generator) -> Iterator[Masks]:
    """Pairs of `bernoulli` draws from a random number u and 1 − u a part: what stays in one tends to be away in the other."""
    while True:
        drawn = rng.random(len(chance))
        yield drawn < chance
        yield 1 - drawn < chance


def balanced(share: Numbers, rng: np.random.Generator) -> Iterator[Masks]:
    """Pairs of a mask and its complement, balanced over all that were drawn before.

    `share` (n + 1,) is how often a mask of k parts is to be drawn; k runs through it in even steps. Then parts are exchanged as long as
    that brings the correlations between any two parts over all masks nearer to 0: by greedy descent of Σ (SᵀS)² off the diagonal for
    S = ±1. What is random stays symmetric in the parts, so that every mask of k parts is as likely as any other.

    Complements cancel what pairs of parts do together, which is most of what a linear model cannot explain; balance spares the samples
    that would go into telling apart parts that happened to be drawn together.
    """
    count = len(share) - 1
    rising = np.cumsum(share / share.sum())
    together = np.zeros((count, count))
    while True:
        for at in (rng.permutation(_STRATA) + rng.random(_STRATA)) / _STRATA:
            size = min(max(int(np.searchsorted(rising, at)), 1), count - 1)
            sign = np.where(rng.permutation(count) < size, 1.0, -1.0)
            _exchange(sign, together, rng.random(count))
            together += np.outer(sign, sign)
            np.fill_diagonal(together, 0)
            yield sign > 0
            yield sign < 0


def _exchange(sign: Numbers, together: Numbers, lots: Numbers) -> None:
    """Swap a part that stays for one that does not, in place, while signᵀ · together · sign falls; `lots` in [0, 1) settle ties."""
    pull = together @ sign + lots / 4  # all other numbers here are whole
    for _ in range(len(sign)):
        out = int(np.where(sign > 0, pull, -np.inf).argmax())
        gains = np.where(sign < 0, pull - 2 * together[out], np.inf)
        into = int(gains.argmin())
        if gains[into] - pull[out] > -0.5:
            return
        sign[out], sign[into] = -1, 1
        pull += 2 * (together[into] - together[out])


def binomial(count: int) -> Numbers:
    """(n + 1,): how often k of n parts stay if each stays with probability ½."""
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(count + 1)]
    share: Numbers = np.exp(np.array(logs) - count * math.log(2))
    return share


def every(count: int) -> Masks:
    """All 2ⁿ masks, the one with everything first."""
    numbers = np.arange(2**count)[::-1, None]
    masks: Masks = (numbers >> np.arange(count)) & 1 == 1
    return masks


@dataclass(frozen=True, eq=False)
class Streams:
    """Two independent streams of masks (n,); with `unit` 2 they come in pairs, which are not parted."""

    one: Iterator[Masks]
    other: Iterator[Masks]
    unit: int = 2

    @classmethod
    def of(
        cls,
        draw: Callable[[Numbers, np.random.Generator], Iterator[Masks]],
        given: Numbers,
        scene: Scene,
        *names: object,
    ) -> Streams:
        """Two streams of `draw(given, rng)`, each with a generator of its own for these names."""
        one, other = (draw(given, scene.rng(*names, number)) for number in (0, 1))
        return cls(one, other, 1 if draw is bernoulli else 2)

    def take(self, room: int) -> tuple[Masks, NDArray[np.int64]]:
        """(masks, stream) of at most `room` draws, shared out evenly."""
        units = room // self.unit
        sizes = [self.unit * (units - units // 2), self.unit * (units // 2)]
        rows = [
            mask for stream, size in zip((self.one, self.other), sizes, strict=True) for mask in islice(stream, size)
        ]
        return np.array(rows), np.repeat([0, 1], sizes)


@dataclass(frozen=True)
class Plan:
    """How long to draw: `samples` inputs, or, if 0, until the answer's `stability` is reached."""

    samples: int
    stability: float

    def __post_init__(self) -> None:
        if 0 < self.samples < _FEWEST:
            raise BadOption(f"option samples takes 0 (until stable) or {_FEWEST} and more, not {self.samples}")

    def takes_every(self, count: int) -> bool:
        """Whether all masks of so many parts are no more than would be drawn."""
        return count < 32 and 2**count <= (self.samples or EVERY)

    def bounds(self, count: int) -> tuple[int, int]:
        """(least, most) masks for so many parts."""
        if self.samples:
            return self.samples, self.samples
        return max(_AT_LEAST, _LEAST * count), max(MOST, 2 * _LEAST * count)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Masks (N, n) and what the network said (N,); `stream` is 0 or 1, and -1 for what both share; `block` numbers the rounds.

    `stability` is the Kendall's tau to be expected between the answer and that of other draws, as many; 1 where nothing was random.
    """

    masks: Masks
    values: Numbers
    stream: NDArray[np.int64]
    block: NDArray[np.int64]
    stability: float = 1.0
    stable: bool = True

    @classmethod
    def of_all(cls, masks: Masks, evaluate: Callable[[Masks, int], Numbers]) -> Drawn:
        """Masks of which none was drawn."""
        none = np.full(len(masks), -1)
        return cls(masks, evaluate(masks, 0), none, none)

    @property
    def halves(self) -> list[NDArray[np.bool_]]:
        """Ways to tell the one half of the draws from the other, True or False a row."""
        return [self.stream == 1, (self.stream == 1) ^ (self.block % 2 == 1)]


def stability(drawn: Drawn, fit: Callable[[Masks, Numbers], Numbers]) -> float:
    """Kendall's tau between the answers of two halves, the mean over two ways to halve, corrected to the whole number of draws.

    The correction is Spearman and Brown's, r → 2r / (1 + r), with r = sin(π/2 · tau), the correlation that normal variables of this tau
    have.
    """
    taus = []
    for half in drawn.halves:
        rows = [(drawn.stream < 0) | chosen for chosen in (half, ~half)]
        taus.append(kendall(*(fit(drawn.masks[chosen], drawn.values[chosen]) for chosen in rows)))
    return lengthened(float(np.mean(taus)))


def collect(
    evaluate: Callable[[Masks, int], Numbers],
    head: Masks,
    streams: Streams,
    fit: Callable[[Masks, Numbers], Numbers],
    plan: Plan,
    progress: Callable[[int, int], None],
) -> Drawn:
    """Draw from both streams until the plan is met. `evaluate(masks, first)` asks the network, `fit` gives the answer that is to be stable.

    `head` are masks that are shown first, in any case.
    """
    least, most = plan.bounds(head.shape[1])
    most -= (most - len(head)) % streams.unit
    drawn = Drawn(head, evaluate(head, 0), np.full(len(head), -1), np.full(len(head), -1))
    look = min(least, most)
    while True:
        drawn = _extended(drawn, evaluate, streams, min(_ROUND, most - len(drawn.masks)))
        done = len(drawn.masks)
        progress(done, most)
        if done >= look:
            found = stability(drawn, fit)
            stable = found >= plan.stability
            if done >= most or (stable and not plan.samples):
                return replace(drawn, stability=found, stable=stable)
            look = min(most, max(done + _ROUND, int(done * _GROWTH)))


def _extended(drawn: Drawn, evaluate: Callable[[Masks, int], Numbers], streams: Streams, room: int) -> Drawn:
    """With one round more, of at most `room` masks."""
    masks, stream = streams.take(room)
    block = int(drawn.block[-1]) + 1
    return Drawn(
        np.concatenate([drawn.masks, masks]),
        np.concatenate([drawn.values, evaluate(masks, len(drawn.masks))]),
        np.concatenate([drawn.stream, stream]),
        np.concatenate([drawn.block, np.full(len(masks), block)]),
    )


def ask(scene: Scene, make: Callable[[int, int], Tensor], count: int) -> Numbers:
    """(count,): the aim's value for inputs that `make(start, stop)` builds, (stop − start, *shape), a batch at a time."""
    network = scene.packed()

    def run(start: int, stop: int) -> Numbers:
        with torch.inference_mode():
            inputs = make(start, stop)
            if inputs.ndim == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            answer: Numbers = scene.scores(network, inputs).double().cpu().numpy()
        return answer

    values = np.concatenate(in_chunks(run, count, batch_size(scene)))
    if not np.isfinite(values).all():
        raise CannotRun(
            f"{scene.aim} is not finite for {int((~np.isfinite(values)).sum())} of {count} inputs with parts taken away"
        )
    return values


def asking(scene: Scene, parts: Features) -> Callable[[Masks, int], Numbers]:
    """`evaluate(masks, first)` of `collect`: the aim's value for the input with these parts."""

    def evaluate(masks: Masks, first: int) -> Numbers:
        return ask(scene, lambda start, stop: parts.apply(masks[start:stop], first + start), len(masks))

    return evaluate


def batch_size(scene: Scene) -> int:
    """Inputs at once: what memory allows, and on a CPU what its cache holds."""
    model = scene.model
    largest = max((math.prod(layer.shape) for layer in model.layers.values()), default=1)
    size = chunk_size(model)
    return size if model.device.type != "cpu" else max(1, min(size, _CACHE // (8 * largest)))

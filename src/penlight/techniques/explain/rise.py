"""RISE: the mean of random soft masks, each weighted by what the network says of the input seen through it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.models import Model
from penlight.techniques.explain.aim import Aim
from penlight.techniques.explain.explanation import Attribution, Explanation, Scene
from penlight.techniques.explain.features import is_class, read_as
from penlight.techniques.explain.fills import FILL_HELP, FILLS, filled
from penlight.techniques.explain.sampler import Plan, ask
from penlight.techniques.explain.surrogate import kendall, lengthened
from penlight.techniques.options import option

Numbers = NDArray[np.float64]
_ROUND = 32  # masks of a stream between two looks
_GROWTH = 1.1
_LEAST, _MOST = (
    4,
    4000,
)  # masks a cell before the first look; masks that are drawn without having been asked for, as in the paper


@dataclass(frozen=True, eq=False)
class Cells:
    """One coarse mask: `open` (*grid), and by how many places the grid is shifted on each axis."""

    open: NDArray[np.bool_]
    shift: tuple[int, ...]


@dataclass(frozen=True)
class Rise(Explanation):
    """Petsiuk, Das and Saenko 2018.

    >>> r = penlight.explain(model, "cat.png", unit="class:tabby", method="rise")     # doctest: +SKIP

    The value of a place is Σ f(x · M) M / (N p): how large the network's answer f is, on average, when the place is seen. The masks M are
    random grids of `grid` cells a side, each open with probability p, drawn up bilinearly and shifted at random. Of a class f is the
    probability, so that no value is negative.

    `sampling="bernoulli"` and `samples=4000` are the paper's. By default masks come with their complements, so that every place is seen
    equally often, and they end when two halves of the draws rank the places alike.
    """

    name: ClassVar[str] = "rise"
    paper: ClassVar[str] = "Petsiuk, Das and Saenko 2018"
    guarantee: ClassVar[str] = (
        "the network's mean answer over random soft masks that show a place; what matters is how places differ, at the grain of the grid"
    )

    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "text")

    samples: int = option(
        0, "masks, 10 or more; the paper takes 4000; 0 goes on until the ranking of the places is stable", low=0
    )
    grid: int = option(7, "cells of a mask on each axis", low=2, high=64)
    chance: float = option(0.5, "probability of a cell to be open", low=0.01, high=0.99)
    sampling: str = option(
        "paired",
        "masks with their complements (which have the probability 1 − chance), or each by itself",
        choices=("paired", "bernoulli"),
    )
    fill: str = option("zeros", FILL_HELP, choices=FILLS)
    of: str = option(
        "probability",
        "what is asked of a class: the probability after softmax, or the score; other units are asked as they are",
        choices=("probability", "score"),
    )
    stability: float = option(
        0.8, "with samples 0: Kendall's tau to be expected of the places, a cell each, in other draws", low=0, high=0.99
    )

    def accepts(self, model: Model, aim: Aim) -> str | None:
        axes = len(model.contract.size)
        if axes not in (1, 2):
            return "its masks are for pictures and signals; use lime or kernel-shap"
        return None

    def attribute(self, scene: Scene) -> Attribution:
        if self.of == "probability" and is_class(scene):
            scene = read_as(scene, "probability")
        plan = Plan(self.samples, self.stability)
        sums = Sums(scene.model.contract.size, self.grid)
        stable = self._fill(sums, scene, plan)
        values = sums.map(self._seen)
        evidence = {
            "samples": sums.count,
            "grid": self.grid,
            "stability (tau)": sums.stability(),
            "network": scene.value,
            "mean through masks": sums.mean,
            "lowest, of the highest": float(values.min() / values.max()) if values.max() > 0 else 0.0,
        }
        notes: tuple[str, ...] = ()
        if not stable:
            told = f"the ranking is not stable after {sums.count} samples (tau {sums.stability():.2f}, wanted {self.stability:g})"
            notes = (f"{told}; give more samples or a coarser grid",)
        return Attribution(values, bool((values < 0).any()), evidence, notes)

    @property
    def _seen(self) -> float:
        """How often a place is seen, on average."""
        return 0.5 if self.sampling == "paired" else self.chance

    def _fill(self, sums: Sums, scene: Scene, plan: Plan) -> bool:
        """Ask the network until the plan is met; whether the ranking is stable."""
        size, fill = scene.model.contract.size, filled(scene, self.fill)
        streams = [draws(size, self.grid, self.chance, self.sampling == "paired", scene.rng("rise", n)) for n in (0, 1)]
        most = plan.samples or _MOST
        look = most if plan.samples else min(most, _LEAST * self.grid ** len(size))
        turn = 0
        while True:
            room = min(2 * _ROUND, most - sums.count)
            for number, some in enumerate((-(-room // 4) * 2, room // 4 * 2)):
                cells = list(islice(streams[number], min(some, most - sums.count)))
                if cells:
                    masks = drawn_up(cells, size).to(scene.x)
                    answers = ask(scene, partial(seen_through, masks, scene.x, fill), len(masks))
                    sums.add(masks, answers, number, turn % 2)
            turn += 1
            scene.progress(sums.count, most)
            if sums.count >= look:
                stable = sums.stability() >= plan.stability
                if sums.count >= most or stable:
                    return stable
                look = min(most, max(sums.count + 2 * _ROUND, int(sums.count * _GROWTH)))


class Sums:
    """Σ f M by stream and parity of the round, so that halves can be compared; nothing else is kept of the masks."""

    def __init__(self, size: tuple[int, ...], grid: int) -> None:
        self._sum = torch.zeros((2, 2, *size), dtype=torch.float64)
        self._values, self._counts = np.zeros((2, 2)), np.zeros((2, 2), int)
        self._grid = grid

    @property
    def count(self) -> int:
        """Masks so far."""
        return int(self._counts.sum())

    @property
    def mean(self) -> float:
        """The network's mean answer."""
        return float(self._values.sum() / self.count)

    def add(self, masks: Tensor, values: Numbers, stream: int, parity: int) -> None:
        """Masks (k, *size) and the network's answers (k,)."""
        weight = torch.from_numpy(values).to(masks.device)
        self._sum[stream, parity] += torch.tensordot(weight, masks.double(), 1).cpu()
        self._values[stream, parity] += values.sum()
        self._counts[stream, parity] += len(values)

    def map(self, seen: float) -> Numbers:
        """(*size): Σ f M / (N p)."""
        found: Numbers = (self._sum.sum((0, 1)) / (self.count * seen)).numpy()
        return found

    def stability(self) -> float:
        """Tau between the places of two halves, a place a cell, corrected to all draws; as `sampler.stability`."""
        halves = [(self._half(0, 0, 0, 1), self._half(1, 0, 1, 1)), (self._half(0, 0, 1, 1), self._half(1, 0, 0, 1))]
        return lengthened(float(np.mean([kendall(one, other) for one, other in halves])))

    def _half(self, stream: int, parity: int, other: int, unlike: int) -> Numbers:
        count = max(1, int(self._counts[stream, parity] + self._counts[other, unlike]))
        found = (self._sum[stream, parity] + self._sum[other, unlike]) / count
        pool = torch.nn.functional.adaptive_avg_pool1d if found.ndim == 1 else torch.nn.functional.adaptive_avg_pool2d
        coarse: Numbers = pool(found[None], self._grid).flatten().numpy()
        return coarse


def draws(size: tuple[int, ...], grid: int, chance: float, paired: bool, rng: np.random.Generator) -> Iterator[Cells]:
    """Coarse masks without end; with `paired` each is followed by its complement, shifted alike."""
    cell = [math.ceil(length / grid) for length in size]
    while True:
        opened = rng.random((grid,) * len(size)) < chance
        shift = tuple(int(rng.integers(n)) for n in cell)
        yield Cells(opened, shift)
        if paired:
            yield Cells(~opened, shift)


def drawn_up(cells: list[Cells], size: tuple[int, ...]) -> Tensor:
    """(k, *size) in [0, 1]: each grid drawn up linearly to one cell more than the input, of which the shifted part is cut out."""
    grid = cells[0].open.shape[0]
    masks = torch.from_numpy(np.stack([one.open for one in cells]).astype(np.float32))
    shifts = torch.tensor([one.shift for one in cells])
    rows = [
        _linear(grid, math.ceil(length / grid))[shifts[:, axis, None] + torch.arange(length)]  # (k, length, grid)
        for axis, length in enumerate(size)
    ]
    if len(size) == 1:
        return (rows[0] @ masks[:, :, None])[:, :, 0]
    return rows[0] @ masks @ rows[1].transpose(1, 2)


def _linear(grid: int, cell: int) -> Tensor:
    """((grid + 1) · cell, grid): weights of linear interpolation between the cells' centres, mirrored beyond the outer ones."""
    length = (grid + 1) * cell
    at = (np.arange(length) + 0.5) * grid / length - 0.5
    low = np.floor(at).astype(int)
    table = np.zeros((length, grid), np.float32)
    for place, share in ((low, low + 1 - at), (low + 1, at - low)):
        mirrored = np.abs(place)
        mirrored = np.where(mirrored >= grid, 2 * (grid - 1) - mirrored, mirrored)
        np.add.at(table, (np.arange(length), mirrored), share.astype(np.float32))
    return torch.from_numpy(table)


def seen_through(masks: Tensor, x: Tensor, fill: Tensor, start: int, stop: int) -> Tensor:
    """(stop − start, *shape): `x` where a mask (k, *size) is 1, `fill` where it is 0, and mixtures between."""
    return torch.lerp(fill, x, masks[start:stop, None])

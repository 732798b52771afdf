"""How many units the data needs: the directions their activations use, and the most that can go within a stated loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from penlight.models.places import Patch
from penlight.techniques.diagnose.ablation import Bench, Cut

_RUNG = 0.85  # of what was to go, when all of the data says it is too much
_FURTHER = 4  # times as far down the next try is, while all are too much
_KEPT = 128e6  # bytes of the whole network's answers that are kept while cuts are tried


@dataclass(frozen=True)
class Order:
    """The order in which a layer's units would go, the least missed first, and what they are replaced by."""

    units: tuple[int, ...]
    missed: NDArray[np.float64]  # (U,) what the loss gains when one alone goes
    values: NDArray[np.float64] | None = None  # of all units of the layer; zero if None
    scaled: Mapping[int, tuple[int, float]] | None = None

    def patch(self, count: int) -> Patch:
        """The first `count` of them gone."""
        gone = tuple(sorted(self.units[:count]))
        values = None if self.values is None else tuple(float(self.values[u]) for u in gone)
        return Patch(gone, values, {u: v for u, v in (self.scaled or {}).items() if u in gone})


def ordered(
    effect: NDArray[np.float64], values: NDArray[np.float64] | None, scaled: Mapping[int, tuple[int, float]]
) -> Order:
    """Units by what the loss gains when one alone goes, duplicates first; units that others are made of stay, and one unit at least."""
    kept = {other for other, _ in scaled.values()}
    rest = [u for u in np.argsort(effect[:, 0], kind="stable").tolist() if u not in kept and u not in scaled]
    units = [*sorted(scaled), *rest]
    missed = effect[:, 0].copy()
    missed[list(scaled)] = -np.inf  # these cost nothing: others take their part over
    return Order(tuple(units if len(units) < len(effect) else units[:-1]), missed, values, dict(scaled))


class Said:
    """What the whole network says of batches of inputs; kept while cuts are tried, as far as it takes little memory."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._bytes = bench, 0
        self._kept: dict[Hashable, tuple[Tensor, ...]] = {}

    def __call__(self, batch: Hashable, inputs: NDArray[Any]) -> tuple[Tensor, ...]:
        """Of `inputs`, which are the batch of that name."""
        if batch in self._kept:
            return self._kept[batch]
        said = self._bench.whole(inputs)
        size = sum(one.numel() * one.element_size() for one in said)
        if self._bytes + size <= _KEPT:
            self._kept[batch] = said
            self._bytes += size
        return said


class Sample:
    """Inputs held in memory on which cuts are tried, and what the whole network says of them."""

    def __init__(self, bench: Bench, inputs: NDArray[Any], classes: Sequence[int | None], batch: int) -> None:
        self._bench, self._inputs, self._classes, self._batch = bench, inputs, classes, batch
        self._said = Said(bench)
        self.loss, self.accuracy = self._means(None)

    def _means(self, cut: Cut | None) -> tuple[float, float]:
        parts = []
        for start in range(0, len(self._inputs), self._batch):
            part = slice(start, start + self._batch)
            cuts = [] if cut is None else [cut]
            whole = self._said(start, self._inputs[part])
            parts.append(self._bench.measure(self._inputs[part], self._classes[part], cuts, whole)[-1])
        both = np.concatenate(parts, 1)
        known = ~np.isnan(both[0])
        loss = float(both[0][known].mean()) if known.any() else float("nan")
        hits = both[1][known]
        return loss, float(hits.mean()) if hits.size else float("nan")

    def fits(self, cut: Cut, drop: float) -> bool:
        """Whether a cut costs no more accuracy than `drop`; where there are no classes, no more loss."""
        loss, accuracy = self._means(cut)
        return loss - self.loss <= drop if np.isnan(self.accuracy) else self.accuracy - accuracy <= drop + 1e-12


def most(fits: Callable[[int], bool], limit: int) -> int:
    """The largest count in 0…limit that fits, by halving; as many tries as `limit` has binary digits."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def together(sample: Sample, orders: Mapping[str, Order], counts: Mapping[str, int], drop: float) -> dict[str, int]:
    """Counts by layer that fit all at once, none above its own in `counts`: the better of two ways to choose them.

    Either all units stand in one row, the least missed first, whatever their layer; or in one row by how far down they stand in the
    order of their own layer, so that all layers are thinned alike.
    """
    rows = {"missed": list[tuple[float, str]](), "share": list[tuple[float, str]]()}
    for path, count in counts.items():
        missed = orders[path].missed[list(orders[path].units[:count])]
        rows["missed"] += [(float(one), path) for one in np.maximum.accumulate(missed)]
        rows["share"] += [((n + 1) / count, path) for n in range(count)]
    found = [_longest(sample, orders, [path for _, path in sorted(row)], drop) for row in rows.values()]
    return max(found, key=lambda one: sum(one.values()))


def _longest(sample: Sample, orders: Mapping[str, Order], row: Sequence[str], drop: float) -> dict[str, int]:
    """Units a layer in the longest beginning of `row` (the layers of units, in the order they go) that fits."""

    def fits(length: int) -> bool:
        cut = {path: orders[path].patch(count) for path, count in Counter(row[:length]).items()}
        return not cut or sample.fits(cut, drop)

    return dict(Counter(row[: len(row) if fits(len(row)) else most(fits, len(row) - 1)]))


class Ladder:
    """Fewer and fewer units that could go, from `counts` (layer → how many) down to none, and the search for the first that can.

    Tried are all, then one rung further down, 4, 16, …, and when one fits the rungs between it and the last that did not, by halving.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._rungs = [dict(counts)]
        while any(self._rungs[-1].values()):
            self._rungs.append({path: int(_RUNG * count) for path, count in self._rungs[-1].items()})
        self._at, self._failed, self._fits, self._further = 0, -1, len(self._rungs) - 1, 1

    @property
    def counts(self) -> dict[str, int]:
        """What to try next."""
        return self._rungs[self._at]

    @property
    def fitting(self) -> dict[str, int]:
        """The most that is known to fit; none before any was told to."""
        return self._rungs[self._fits]

    @property
    def ended(self) -> bool:
        """Whether nothing is left to be tried."""
        return self._fits - self._failed <= 1

    def told(self, fits: bool) -> bool:
        """Say whether `counts` fit, and go to the next; gives `fits` back."""
        if fits:
            self._fits = self._at
        else:
            self._failed = self._at
        known = self._fits < len(self._rungs) - 1
        ahead = self._failed + self._further
        if known or ahead >= self._fits:
            self._at = (self._failed + self._fits) // 2
        else:
            self._at, self._further = ahead, self._further * _FURTHER
        return fits

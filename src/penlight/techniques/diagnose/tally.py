"""One pass over the data: what every unit of some layers does, in sums that do not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.models import Model, Probe
from penlight.models.layers import run
from penlight.models.packing import packed
from penlight.models.places import Following, Place, Rectifier
from penlight.models.reductions import highest, lowest, units_last

_TABLE = 64  # different samples of positions, taken in turn
_EACH, _LEAST, _SAMPLES = 4, 2048, 8192  # samples a layer's correlations need: so many a unit, within these limits
_MOST = 64  # positions that one input's map is asked for at most
_AFTER = (
    2048  # samples after the rectifier: they only tell how many directions are used, and how often the limit is reached
)
_TOGETHER = 64  # inputs whose highest and lowest values are counted in one go
_CACHE, _LARGEST = 20e6, 64  # bytes of a batch's largest map, and inputs, of one pass
_ROWS, _BLOCK = 512, 256  # samples in one product, and units on its left side
_SINGLE = 8192  # samples whose products are summed in single precision
_NEAR = 0.01  # of the way between its limits: how near its upper limit a soft rectifier counts as saturated
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Tallied:
    """What one layer's units did; U units. `before` and `after` are the rectifier's input and output, the same where there is none.

    share      (U,) of inputs and sampled positions where `before` is above zero
    fired      (U,) share of inputs with any position above zero
    high, low  (U,) largest and smallest `before`; `own` (U,) largest value of the layer's own output
    full       (U,) share of inputs and sampled positions at the rectifier's upper limit; zero where it has none
    mean       (U,) of `after`, over inputs and positions
    spread     (U,) standard deviation of `before` over the sampled positions
    kin        (U, U) covariance of `before` there; `seen` that of `after`; `centre` (U,) mean of `before` there
    """

    inputs: int
    samples: int
    share: Numbers
    fired: Numbers
    high: Numbers
    low: Numbers
    own: Numbers
    full: Numbers
    mean: Numbers
    centre: Numbers
    spread: Numbers
    kin: Numbers
    seen: Numbers


class Tally:
    """Sums of one layer, fed batch by batch: `see` where the layer puts out something else than `before`, then `before`, then `after`.

    Of a map's positions some are sampled, drawn anew for each input by its number in the data: `places` of them, fewer of `after`.
    """

    def __init__(
        self, units: int, layout: str, rectifier: Rectifier | None, places: int, seed: tuple[int, ...]
    ) -> None:
        self._layout, self._places, self._seed = layout, places, seed
        self._fewer = max(1, places * _AFTER // samples_for(units))
        self._tables: dict[int, NDArray[np.int64]] = {}
        self._rows: dict[tuple[int, int, int, int], Tensor] = {}
        self._number = 0  # of the batch's first input
        self._counted = 0  # inputs whose highest and lowest values are worked in
        self.inputs = self.positions = self.samples = 0
        self._fired = torch.zeros(units, dtype=torch.int64)
        self._after = torch.zeros(units, dtype=torch.float64)
        self._high, self._low, self._own = (torch.full((units,), sign * torch.inf) for sign in (-1, 1, -1))
        self._peaks, self._lows, self._sums = (list[Tensor]() for _ in range(3))  # (n, U), to be counted together
        self._kin, self._seen = Moments(units), Moments(units, _edge(rectifier))

    def see(self, output: Tensor) -> None:
        """The layer's own output."""
        peak = highest(units_last(output, self._layout)).amax(0)
        self._own = torch.maximum(self._own, peak.float().cpu())

    def before(self, output: Tensor) -> None:
        """What the rest of the network sees of the next `len(output)` inputs of the data, before the rectifier."""
        flat = units_last(output, self._layout)
        self._number = self.inputs
        self._peaks.append(highest(flat))
        self._lows.append(lowest(flat))
        sampled = self._sampled(flat, self._places)
        self._kin.add(sampled)
        self.samples += len(sampled)
        self.inputs += len(flat)
        self.positions += len(flat) * flat.shape[1]
        if self.inputs - self._counted >= _TOGETHER:
            self._count()

    def after(self, output: Tensor) -> None:
        """The same inputs after the rectifier."""
        flat = units_last(output, self._layout)
        self._sums.append(flat.sum(1))
        self._seen.add(self._sampled(flat, self._fewer))

    def _count(self) -> None:
        if self._peaks:
            peaks, lows = (torch.cat(some).float().cpu() for some in (self._peaks, self._lows))
            self._fired += (peaks > 0).sum(0)
            self._high = torch.maximum(self._high, peaks.amax(0))
            self._low = torch.minimum(self._low, lows.amin(0))
        if self._sums:
            self._after += torch.cat(self._sums).cpu().double().sum(0)
        self._counted = self.inputs
        for some in (self._peaks, self._lows, self._sums):
            some.clear()

    def _sampled(self, flat: Tensor, count: int) -> Tensor:
        """(n, units) float32, a copy: the values at `count` positions of each input of (N, P, units), at all if there are no more."""
        size = flat.shape[1]
        if size <= count:
            return flat.flatten(0, 1).to(torch.float32, copy=True)
        key = (self._number % _TABLE, len(flat), size, count)
        if key not in self._rows:
            self._rows[key] = self._drawn(*key).to(flat.device)
        return flat.flatten(0, 1).index_select(0, self._rows[key]).float()

    def _drawn(self, number: int, inputs: int, size: int, count: int) -> Tensor:
        """Rows of (inputs · size): `count` of each input's, the first ones of a larger count the same."""
        if size not in self._tables:
            rng = np.random.default_rng([*self._seed, size])
            self._tables[size] = np.stack([rng.choice(size, min(size, self._places), False) for _ in range(_TABLE)])
        table = self._tables[size][:, :count]
        rows = table[(number + np.arange(inputs)) % _TABLE] + size * np.arange(inputs)[:, None]
        return torch.from_numpy(rows.reshape(-1))

    def done(self) -> Tallied:
        """The sums as shares, means and covariances."""
        self._count()
        inputs, positions = (max(n, 1) for n in (self.inputs, self.positions))
        (centre, kin), (_, seen) = self._kin.done(), self._seen.done()
        high, low, own = (one.double().numpy() for one in (self._high, self._low, self._own))
        return Tallied(
            self.inputs,
            self.samples,
            self._kin.reached,
            self._fired.numpy() / inputs,
            high,
            low,
            np.where(np.isfinite(own), own, high),
            self._seen.reached,
            self._after.numpy() / positions,
            centre,
            np.sqrt(np.maximum(np.diag(kin), 0.0)),
            kin,
            seen,
        )


class Moments:
    """Mean and covariance of U numbers, from rows (n, U) float32 that are gathered until a product of them pays.

    Also how often they reach `edge`, or come above zero if it is None.
    """

    def __init__(self, units: int, edge: float | None = None) -> None:
        self._waiting: list[Tensor] = []
        self._shift: Tensor | None = None  # near the mean, so that squares do not cancel
        self._part: Tensor | None = None  # products of the last `_held` rows, where the rows are
        self._rows, self._count, self._held, self._edge = 0, 0, 0, edge  # rows worked in, and waiting
        self._first, self._second = np.zeros(units), np.zeros((units, units))
        self._reached = np.zeros(units, np.int64)

    @property
    def reached(self) -> Numbers:
        """(U,) the share of all rows that reach the edge."""
        self._flush()
        return self._reached / max(self._rows, 1)

    def add(self, rows: Tensor) -> None:
        """Count rows, which are kept for a while."""
        self._waiting.append(rows)
        self._count += len(rows)
        if self._count >= _ROWS:
            self._flush()

    @torch.inference_mode()
    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = torch.cat(self._waiting)
        self._waiting.clear()
        self._rows, self._count = self._rows + self._count, 0
        self._reached += (rows > 0 if self._edge is None else rows >= self._edge).sum(0).cpu().numpy()
        if self._shift is None or self._part is None:
            self._shift, self._part = rows.mean(0), rows.new_zeros(self._second.shape)
        rows -= self._shift
        self._first += rows.cpu().double().sum(0).numpy()
        # the covariance is symmetric: the half above its diagonal will do
        for start in range(0, rows.shape[1], _BLOCK):
            part = slice(start, start + _BLOCK)
            self._part[part, start:].addmm_(rows[:, part].T, rows[:, start:])
        self._held += len(rows)
        if self._held >= _SINGLE:
            self._spill()

    @torch.inference_mode()
    def _spill(self) -> None:
        """Work the products into the sums of double precision."""
        if self._part is not None:
            self._second += self._part.cpu().numpy()
            self._part.zero_()
            self._held = 0

    def done(self) -> tuple[Numbers, Numbers]:
        """(mean (U,), covariance (U, U)) of all rows."""
        self._flush()
        self._spill()
        count = max(self._rows, 1)
        mean = self._first / count
        shift = 0.0 if self._shift is None else self._shift.double().cpu().numpy()
        second = np.triu(self._second)
        second += np.triu(second, 1).T
        return mean + shift, second / count - np.outer(mean, mean)


def enough(inputs: int, units: int) -> int:
    """Positions of each of so many inputs that are to be sampled for the correlations of so many units."""
    return int(np.clip(-(-samples_for(units) // max(inputs, 1)), 1, _MOST))


def samples_for(units: int) -> int:
    """Samples that the correlations of so many units need."""
    return int(np.clip(_EACH * units, _LEAST, _SAMPLES))


def fitting(model: Model, places: Mapping[str, Place]) -> int:
    """A batch size with which maps are read from the cache."""
    rooms = (max(place.room, 4.0 * float(np.prod(model.layers[path].shape))) for path, place in places.items())
    return int(np.clip(_CACHE // max(rooms), 1, _LARGEST))


def _apart(place: Place) -> bool:
    """Whether something but the rectifier lies between the layer's own output and where it is seen."""
    return len(place.steps) > (place.rectifier is not None)


def _edge(rectifier: Rectifier | None) -> float:
    """From where on a value counts as the rectifier's upper limit."""
    if rectifier is None or rectifier.high is None:
        return math.inf
    if rectifier.hard:
        return rectifier.high
    return rectifier.high - _NEAR * (rectifier.high - (rectifier.low or 0.0))


class Census:
    """The tallies of several layers, fed with batches in order.

    positions: sampled of each input's map; 0: as many as the correlations need, with so many `inputs`.
    """

    def __init__(
        self, model: Model, network: nn.Module, places: Mapping[str, Place], inputs: int, seed: int, positions: int = 0
    ) -> None:
        self._model, self._network, self._places = model, packed(network, model.example()), places
        self.tallies = {
            path: Tally(units, place.layout, place.rectifier, positions or enough(inputs, units), (seed, n))
            for n, (path, place) in enumerate(places.items())
            for units in [model.layers[path].units]
        }

    def feed(self, batches: Iterable[NDArray[Any]]) -> None:
        """Batches of inputs (n, *shape), uint8 or in [0, 1]."""

        def before(path: str, output: Tensor) -> Tensor:
            self.tallies[path].before(output)
            return output

        def after(path: str, output: Tensor) -> None:
            self.tallies[path].after(output)

        follow = Following(self._places, after, before)
        own = {path: self.tallies[path].see for path, place in self._places.items() if _apart(place)}
        readers = follow.readers(own)
        with torch.inference_mode(), Probe(self._network, readers, cut=False) as probe:
            for inputs in batches:
                x = self._model.tensor(inputs, channels_last=True)
                with follow:
                    run(probe, x)  # type: ignore[arg-type]

"""One pass over the data: what every unit of some layers does, in sums that do not grow with the data."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
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
from penlight.techniques.diagnose.moments import Moments, Rows

_TABLE = 60  # different samples of positions, taken in turn; most small batches divide it
_EACH, _LEAST, _SAMPLES = 2, 2048, 8192  # samples a layer's correlations need: so many a unit, within these limits
_MOST = 64  # positions that one input's map is asked for at most
_AFTER = 1024  # samples after a rectifier: for the directions used, and how often the limit is reached
_TOGETHER = 128  # inputs whose sums and highest values are counted in one go
_FEW = 16  # a map is read for some units only where they are less than one in so many
_CACHE, _LARGEST = 20e6, 64  # bytes of a batch's largest map, and inputs, of one pass
ROUNDING = 1e-5  # of a value: how far a constant may seem to move
_NEAR = 0.01  # of the way between its limits: how near its upper limit a soft rectifier counts as saturated
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Tallied:
    """What one layer's units did; U units. `before` and `after` are the rectifier's input and output, the same where there is none.

    share      (U,) of inputs and sampled positions where `before` is above zero
    fired      (U,) share of inputs with any position above zero
    high, low  (U,) largest and smallest `before`: over all positions for a unit that never fires, is always on or never changes, so
               that a verdict hangs on them; for others at the sampled positions and where they were read to know that
    own        (U,) largest value of the layer's own output, over all positions where that was asked for, else `high`
    full       (U,) share of inputs and sampled positions at the rectifier's upper limit; zero where it has none
    mean       (U,) of `after`, over inputs and positions
    spread     (U,) standard deviation of `before` over the sampled positions
    kin        (U, U) covariance of `before` there; `centre` (U,) its mean there
    directions the participation ratio of `after`: how many directions it uses
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
    directions: float


class Tally:
    """Sums of one layer, fed batch by batch: `see` where the layer puts out something else than `before`, then `before`, then `after`.

    Of a map's positions some are sampled, drawn anew for each input by its number in the data: `places` of them, fewer of `after`. What a
    hard rectifier makes of them is worked out from what goes into it.

    Reading a map costs as much as writing it, so it is read no more often than verdicts need. Whether a unit fired on an input is
    seen by its sum after a rectifier that leaves nothing below zero. Highest and lowest values are read of units that could still be
    dead, always on or without change, which soon are few; with `exact`, of all to the end.
    """

    def __init__(
        self,
        units: int,
        layout: str,
        rectifier: Rectifier | None,
        places: int,
        seed: tuple[int, ...],
        exact: bool = False,
    ) -> None:
        self._layout, self._places, self._seed, self._exact = layout, places, seed, exact
        self._rectifier, self._hard = rectifier, rectifier is not None and rectifier.hard
        self._open: Tensor | None = None  # units whose highest and lowest values have to be read; None: all
        self._fewer = max(1, places * _AFTER // samples_for(units))
        self._tables: dict[int, NDArray[np.int64]] = {}
        self._rows: dict[tuple[int, int, int, int], Tensor] = {}
        self._number = 0  # of the batch's first input
        self._next = 1  # inputs at which sums and highest values are worked in
        self.inputs = self.positions = self.samples = 0
        self._fired = torch.zeros(units, dtype=torch.int64)
        self._after = torch.zeros(units, dtype=torch.float64)
        self._high, self._low, self._own = (torch.full((units,), sign * torch.inf) for sign in (-1, 1, -1))
        self._sums, self._peaks = Rows(_TOGETHER), Rows(_TOGETHER)  # a row an input, to be counted together
        self._ends: tuple[Tensor, Tensor] | None = None  # lowest and highest values of `_open` since then
        self._kin = Moments(units, then=self._rectified if self._hard else None)
        self._seen = self._kin if rectifier is None else Moments(units, _edge(rectifier))
        self._each = 0  # positions sampled of an input

    def see(self, output: Tensor) -> None:
        """The layer's own output."""
        peak = highest(units_last(output, self._layout)).amax(0)
        self._own = torch.maximum(self._own, peak.float().cpu())

    def before(self, output: Tensor) -> None:
        """What the rest of the network sees of the next `len(output)` inputs of the data, before the rectifier."""
        flat = units_last(output, self._layout)
        batch, size, _ = flat.shape
        self._number = self.inputs
        if self._open is not None and self._open.numel():
            self._reach(*torch.aminmax(flat.index_select(2, self._open), dim=1))
        if self._open is None or not self._hard:
            peaks = highest(flat)
            if self._open is None:
                self._reach(lowest(flat), peaks)
            if not self._hard:
                self._next_rows(self._peaks, flat).copy_(peaks)
        self._each = min(self._places, size)
        self._kin.add(*self._sampled(flat, self._places))
        self.samples += batch * self._each
        self.inputs += batch
        self.positions += batch * size

    def after(self, output: Tensor) -> None:
        """The same inputs after the rectifier."""
        flat = units_last(output, self._layout)
        torch.sum(flat, 1, dtype=torch.float32, out=self._next_rows(self._sums, flat))
        if self._rectifier is not None and not self._hard:
            self._seen.add(*self._sampled(flat, self._fewer))
        if self.inputs >= self._next:
            self._count()

    def _next_rows(self, gathered: Rows, flat: Tensor) -> Tensor:
        if not gathered.fits(flat.shape[0]):
            self._count()
        return gathered.next(flat.shape[0], flat.shape[2], flat.device)

    def _reach(self, lows: Tensor, highs: Tensor) -> None:
        """Lowest and highest values (N, units) of some inputs, of the units in `_open`."""
        low, high = lows.amin(0), highs.amax(0)
        if self._ends is None:
            self._ends = low, high
        else:
            torch.minimum(self._ends[0], low, out=self._ends[0])
            torch.maximum(self._ends[1], high, out=self._ends[1])

    def _rectified(self, rows: Tensor) -> None:
        """The first of each input's samples, as they come out of the hard rectifier."""
        if self._each > self._fewer:
            rows = rows.view(-1, self._each, rows.shape[1])[:, : self._fewer].flatten(0, 1)
        self._seen.add(rows.clamp(self._rectifier.low, self._rectifier.high))  # type: ignore[union-attr]

    def _count(self) -> None:
        """Work in what was gathered: how often units fired, sums, highest and lowest values."""
        if self._ends is not None:
            some = slice(None) if self._open is None else self._open.cpu()
            low, high = (one.float().cpu() for one in self._ends)
            self._low[some] = torch.minimum(self._low[some], low)
            self._high[some] = torch.maximum(self._high[some], high)
        if self._peaks.count:
            peaks = self._peaks.rows.cpu()
            self._high = torch.maximum(self._high, peaks.amax(0))
            self._fired += (peaks > 0).sum(0)
        if self._sums.count:
            sums = self._sums.rows
            if self._hard:
                self._fired += (sums > 0).sum(0).cpu()
            self._after += sums.cpu().double().sum(0)
            self._look_on(sums.device)
        self._ends = None
        self._sums.clear()
        self._peaks.clear()
        self._next = min(2 * self.inputs, self.inputs + _TOGETHER)

    def _look_on(self, device: torch.device) -> None:
        """Settle whose highest and lowest values the next inputs are read for."""
        if self._exact or (self._open is not None and not self._open.numel()):
            return
        undecided = constant(self._high, self._low)
        if self._hard:
            undecided |= (self._fired == 0) | (self._low > 0)
        still = undecided.nonzero()[:, 0]
        if len(still) * _FEW < len(undecided):
            self._open = still.to(device)

    def _sampled(self, flat: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """The rows of (N, P, units), and which of them are `count` positions of each input; None for all if there are no more."""
        batch, size, _ = flat.shape
        if size <= count:
            return flat.flatten(0, 1), None
        key = (self._number % _TABLE, batch, size, count)
        if key not in self._rows:
            self._rows[key] = self._drawn(*key).to(flat.device)
        return flat.flatten(0, 1), self._rows[key]

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
        (top, bottom), own = self._kin.ends, self._own.double().numpy()
        high, low = np.maximum(self._high.double().numpy(), top), np.minimum(self._low.double().numpy(), bottom)
        return Tallied(
            self.inputs,
            self.samples,
            self._kin.reached,
            self._fired.numpy() / inputs,
            high,
            low,
            np.where(np.isfinite(own), own, high),
            np.zeros(len(centre)) if self._rectifier is None else self._seen.reached,
            self._after.numpy() / positions,
            centre,
            np.sqrt(np.maximum(np.diag(kin), 0.0)),
            kin,
            self._seen.directions(seen, self.positions),
        )


def constant(high: Tensor, low: Tensor) -> Tensor:
    """Whether values between these never change, but for rounding."""
    return ~(high - low > ROUNDING * torch.maximum(high.abs(), low.abs()))


def enough(inputs: int, units: int) -> int:
    """Positions of each of so many inputs that are sampled for the correlations of so many units."""
    return int(np.clip(round(samples_for(units) / max(inputs, 1)), 1, _MOST))


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
    exact: layers whose largest and smallest values are wanted of every unit.
    """

    def __init__(
        self,
        model: Model,
        network: nn.Module,
        places: Mapping[str, Place],
        inputs: int,
        seed: int,
        positions: int = 0,
        exact: Collection[str] = (),
    ) -> None:
        self._model, self._network, self._places = model, packed(network, model.example()), places
        self.tallies = {
            path: Tally(
                units, place.layout, place.rectifier, positions or enough(inputs, units), (seed, n), path in exact
            )
            for n, (path, place) in enumerate(places.items())
            for units in [model.layers[path].units]
        }
        self._own = {path: self.tallies[path].see for path in exact if _apart(places[path])}

    def feed(self, batches: Iterable[NDArray[Any]]) -> None:
        """Batches of inputs (n, *shape), uint8 or in [0, 1]."""

        def before(path: str, output: Tensor) -> Tensor:
            self.tallies[path].before(output)
            return output

        def after(path: str, output: Tensor) -> None:
            self.tallies[path].after(output)

        follow = Following(self._places, after, before)
        readers = follow.readers(self._own)
        with torch.inference_mode(), Probe(self._network, readers, cut=False) as probe:
            for inputs in batches:
                x = self._model.tensor(inputs, channels_last=True)
                with follow:
                    run(probe, x)  # type: ignore[arg-type]

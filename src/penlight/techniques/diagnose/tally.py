"""One pass over the data: what every unit of some layers does, in sums that do not grow with the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.models import Model
from penlight.models.layers import units_first
from penlight.models.places import Following, Place, Rectifier, pass_through

_TABLE = 64  # different samples of positions, taken in turn
_NEAR = 0.01  # of the way between its limits: how near its upper limit a soft rectifier counts as saturated
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Tallied:
    """What one layer's units did; U units. `before` and `after` are the rectifier's input and output, the same where there is none.

    share      (U,) of all inputs and positions where `before` is above zero
    fired      (U,) share of inputs with any position above zero
    high, low  (U,) largest and smallest `before`; `own` (U,) largest value of the layer's own output
    full       (U,) share of inputs and positions at the rectifier's upper limit
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
    """Sums of one layer."""

    def __init__(
        self, units: int, layout: str, rectifier: Rectifier | None, places: int, seed: tuple[int, ...]
    ) -> None:
        self._layout, self._rectifier, self._places, self._seed = layout, rectifier, places, seed
        self._table: Tensor | None = None
        self.inputs = self.positions = self.samples = 0
        self._sums = {name: np.zeros(units) for name in ("above", "fired", "full", "after")}
        self._high, self._low, self._own = (np.full(units, sign * np.inf) for sign in (-1, 1, -1))
        self._moments = {name: (np.zeros(units), np.zeros((units, units))) for name in ("before", "after")}
        self._shift: dict[str, Tensor] = {}

    def see(self, output: Tensor) -> None:
        """The layer's own output."""
        peak = (
            units_first(output, self._layout).flatten(2).amax(2)
            if output.ndim > 2
            else units_first(output, self._layout)
        )
        self._own = np.maximum(self._own, peak.amax(0).cpu().double().numpy())

    def add(self, before: Tensor, after: Tensor) -> None:
        """A batch where the rest of the network sees it, the next `len(before)` inputs of the data."""
        if before.device.type == "mps":  # which has no double precision
            before, after = before.cpu(), after.cpu()
        given, seen = (units_first(one, self._layout).reshape(len(one), one.shape[self._layout.find("C")] if "C" in self._layout else 1, -1)
                       for one in (before, after))  # fmt: skip
        positive = given > 0
        self._sums["above"] += positive.sum((0, 2)).double().cpu().numpy()
        self._sums["fired"] += positive.any(2).sum(0).double().cpu().numpy()
        self._high = np.maximum(self._high, given.amax((0, 2)).double().cpu().numpy())
        self._low = np.minimum(self._low, given.amin((0, 2)).double().cpu().numpy())
        self._sums["after"] += seen.sum((0, 2), dtype=torch.float64).cpu().numpy()
        if self._rectifier is not None and self._rectifier.high is not None:
            edge = (
                self._rectifier.high
                if self._rectifier.hard
                else self._rectifier.high - _NEAR * (self._rectifier.high - (self._rectifier.low or 0.0))
            )
            self._sums["full"] += (seen >= edge).sum((0, 2)).double().cpu().numpy()
        self._sample("before", given)
        self._sample("after", seen)
        self.samples += len(given) * min(self._places, given.shape[2])
        self.positions += len(given) * given.shape[2]
        self.inputs += len(given)

    def _sample(self, name: str, values: Tensor) -> None:
        """Adds to the second moments at positions drawn anew for each input, by its number in the data."""
        count, units, size = values.shape
        if size > self._places:
            if self._table is None or int(self._table.max()) >= size:
                rng = np.random.default_rng([*self._seed, size])
                self._table = torch.from_numpy(
                    np.stack([rng.choice(size, self._places, False) for _ in range(_TABLE)])
                ).to(values.device)
            rows = self._table[torch.arange(self.inputs, self.inputs + count, device=values.device) % _TABLE]
            values = values.gather(2, rows[:, None].expand(-1, units, -1))
        flat = values.transpose(1, 2).reshape(-1, units).double()
        shift = self._shift.setdefault(name, flat.mean(0))  # near the mean, so that squares do not cancel
        flat = flat - shift
        first, second = self._moments[name]
        first += flat.sum(0).cpu().numpy()
        second += (flat.T @ flat).cpu().numpy()

    def done(self) -> Tallied:
        """The sums as shares, means and covariances."""
        positions, samples = max(self.positions, 1), max(self.samples, 1)
        found = {}
        for name, (first, second) in self._moments.items():
            mean = first / samples
            found[name] = (mean, second / samples - np.outer(mean, mean))
        shift = self._shift["before"].cpu().numpy()
        kin = found["before"][1]
        return Tallied(
            self.inputs,
            self.samples,
            self._sums["above"] / positions,
            self._sums["fired"] / max(self.inputs, 1),
            self._high,
            self._low,
            self._own,
            self._sums["full"] / positions,
            self._sums["after"] / positions,
            found["before"][0] + shift,
            np.sqrt(np.maximum(np.diag(kin), 0.0)),
            kin,
            found["after"][1],
        )


class Census:
    """The tallies of several layers, fed with batches in order."""

    def __init__(
        self, model: Model, network: nn.Module, places: Mapping[str, Place], positions: int, seed: int
    ) -> None:
        self._model, self._network, self._places = model, network, places
        self.tallies = {
            path: Tally(model.layers[path].units, place.layout, place.rectifier, positions, (seed, n))
            for n, (path, place) in enumerate(places.items())
        }

    def feed(self, inputs: NDArray[Any]) -> None:
        """Inputs (n, *shape), uint8 or in [0, 1]."""

        def visit(path: str, before: Tensor, after: Tensor) -> None:
            self.tallies[path].add(before, after)

        follow = Following(self._places, visit)
        own = {path: tally.see for path, tally in self.tallies.items()}
        with torch.inference_mode():
            pass_through(self._network, follow, self._model.tensor(inputs), own, cut=False)

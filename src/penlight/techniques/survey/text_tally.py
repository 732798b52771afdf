"""Running sums over every token of texts: what a unit is on the whole, and which tokens make it go up."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.techniques.survey import histogram

TOKENS = 1000  # different tokens that are told apart; the first that come
_BATCH = 1024  # tokens that are summed at once
_OFTEN = 5  # times a token has to come to be named
Values = NDArray[np.float32]


class TextTally:
    """Sums of U units; a unit's `jump` at a token is how much it is above the token before."""

    def __init__(self, units: int, vocabulary: int) -> None:
        self.units = units
        self.tokens = 0
        self.total, self.squares = np.zeros(units), np.zeros(units)
        self.shift: Values | None = None  # taken off before squaring: a mean far from 0 would eat the digits
        self.maximum = np.full(units, -np.inf, np.float32)
        self.minimum = np.full(units, np.inf, np.float32)
        self.fired = np.zeros(units, np.int64)
        self.counts = np.zeros(units * histogram.BINS, np.int64)
        self.number = np.full(vocabulary, -1, np.int64)  # of a token in the tables below
        self.known: list[int] = []
        size = min(TOKENS, vocabulary)
        self.often, self.jumped = np.zeros(size), np.zeros(size)
        self.sums, self.jumps = np.zeros((size, units)), np.zeros((size, units))
        self._waiting: list[tuple[NDArray[np.int64], Values, Values]] = []
        self._count = 0
        self._offsets = (np.arange(units) * histogram.BINS).astype(np.int64)

    def feed(self, ids: NDArray[np.int64], values: Values, before: Values | None) -> None:
        """Some tokens in order and the values (t, U) at them; `before` (U,) at the token before, None where a text begins."""
        first = values[:1] if before is None else before[None]
        self._waiting.append((ids, values, np.diff(values, axis=0, prepend=first)))
        self._count += len(ids)
        if before is None:
            self._waiting[-1][2][0] = np.nan
        if self._count >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Add what waits."""
        if not self._waiting:
            return
        ids, values, jumps = (np.concatenate([one[n] for one in self._waiting]) for n in range(3))
        self._waiting, self._count = [], 0
        self._sum(values)
        self._tokens(ids, values, jumps)

    def _sum(self, values: Values) -> None:
        if self.shift is None:
            self.shift = values.mean(0)
        away = values - self.shift
        self.tokens += len(values)
        self.total += away.sum(0, dtype=np.float64)
        self.squares += np.einsum("tu,tu->u", away, away, dtype=np.float64)
        self.maximum = np.maximum(self.maximum, values.max(0))
        self.minimum = np.minimum(self.minimum, values.min(0))
        self.fired += (values > 0).sum(0)
        bins = histogram.bins(torch.from_numpy(np.ascontiguousarray(values))).numpy() + self._offsets
        self.counts += np.bincount(bins.reshape(-1), minlength=len(self.counts))

    def _tokens(self, ids: NDArray[np.int64], values: Values, jumps: Values) -> None:
        for new in np.unique(ids[self.number[ids] < 0]).tolist():
            if len(self.known) < len(self.often):
                self.number[new] = len(self.known)
                self.known.append(new)
        numbers = self.number[ids]
        kept = numbers >= 0
        here, place = np.unique(numbers[kept], return_inverse=True)
        which = np.zeros((len(here), len(ids)), np.float32)
        which[place, np.flatnonzero(kept)] = 1
        self.often[here] += which.sum(1)
        self.sums[here] += (torch.from_numpy(which) @ torch.from_numpy(values)).numpy()
        begins = np.isnan(jumps[:, 0])
        which[:, begins], jumps[begins] = 0, 0
        self.jumped[here] += which.sum(1)
        self.jumps[here] += (torch.from_numpy(which) @ torch.from_numpy(jumps)).numpy()

    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """mean, std, minimum, maximum and fires, the share above zero; (U,) each."""
        count = max(self.tokens, 1)
        mean = self.total / count
        spread = np.sqrt(np.maximum(self.squares / count - mean**2, 0))
        shift = 0 if self.shift is None else self.shift
        return {
            "mean": mean + shift,
            "std": spread,
            "minimum": self.minimum.astype(np.float64),
            "maximum": self.maximum.astype(np.float64),
            "fires": self.fired / count,
        }

    def strongest(self, most: int) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """(U, 2·most) tokens by their jump, those that raise the unit most and then those that lower it most, -1 where there are fewer;
        their mean values; their mean jumps."""
        usable = np.flatnonzero(self.jumped >= _OFTEN)
        most = min(most, len(usable) // 2)
        jumps = (self.jumps[usable] / self.jumped[usable, None]).T
        means = (self.sums[usable] / self.often[usable, None]).T
        order = np.argsort(-jumps, axis=1, kind="stable")
        order = np.concatenate([order[:, :most], order[:, ::-1][:, :most]], 1)
        known = np.array(self.known, np.int64)[usable] if len(usable) else np.zeros(0, np.int64)
        return (
            known[order],
            np.take_along_axis(means, order, 1).astype(np.float32),
            np.take_along_axis(jumps, order, 1).astype(np.float32),
        )

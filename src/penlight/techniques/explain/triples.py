"""What three parts do together, estimated from the draws and taken out of the answers that a linear model is fitted to.

Of draws in pairs of a mask and its complement a linear model sees y(s) = (f(s) − f(−s)) / 2, for s = ±1 a part: a sum over single parts,
which is wanted, and what odd numbers of parts do together, of which three are the fewest. The latter is noise to the fit, but no white
noise: parts that matter alone matter together. It is taken as a Gaussian process with

    k(s, t) = Σ over i < j < k of aᵢ² aⱼ² aₖ² · (s t)ᵢ (s t)ⱼ (s t)ₖ,    aᵢ² = |bᵢ|ᵖ,

which no linear function has a share in over all masks, so that what the fit aims at stays as it was; b are the weights of a plain fit. The
power p and the share of white noise are those of the largest restricted likelihood (Patterson and Thompson 1971), a plain fit among them.
The process' mean given the draws is taken off; weights fitted to the rest are those of generalised least squares.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.techniques.explain.features import Masks

Numbers = NDArray[np.float64]
_POWERS = (0.5, 1.0, 1.5, 2.0)
_NOISE = (0.1, 0.3, 1.0, 3.0, 10.0)  # white noise's variance, that of the process being 1
_MOST = 192  # pairs that power and noise are chosen by
_BLOCK = 384  # pairs that are taken to be related, at most
_AGAIN = 1.5  # times as many pairs, from which on power and noise are chosen anew
_SPARE = 16  # pairs more than parts, at least
_NOTHING = 1e-12  # of the variance: what is left is rounding


class Clearing:
    """Takes off what triples do, again and again as more is drawn: power and noise are chosen anew when there is half as much more."""

    def __init__(self) -> None:
        self._how: tuple[float, float] | None = None
        self._pairs = 0

    def __call__(self, masks: Masks, values: Numbers, weight: Numbers) -> Numbers:
        """`values` (2n,) of masks (2n, parts), each followed by its complement, less what three parts do together; `weight` (n,) a pair.

        They come back as they are where there are too few, where they are linear, and where nothing of three parts is to be seen in them.
        """
        try:
            with torch.inference_mode():
                return self._cleared(masks, values, weight)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # parts that were always drawn together
            return values

    def _cleared(self, masks: Masks, values: Numbers, weight: Numbers) -> Numbers:
        pairs, parts = len(masks) // 2, masks.shape[1]
        if pairs < parts + _SPARE or parts < 3 or not (weight > 0).all():
            return values
        root = torch.from_numpy(np.sqrt(weight / weight.mean()))
        sign = torch.from_numpy(np.where(masks[::2], 1.0, -1.0))
        odd = torch.from_numpy((values[::2] - values[1::2]) / 2) * root
        alone = torch.linalg.lstsq(sign * root[:, None], odd[:, None], driver="gelsd").solution[:, 0]
        left = odd - (sign @ alone) * root
        if not float(left @ left) > _NOTHING * float(odd @ odd):
            return values
        if pairs > _AGAIN * self._pairs:
            some = slice(max(_MOST, 2 * parts))
            self._how, self._pairs = _likeliest(sign[some], odd[some], root[some], alone), pairs
        if self._how is None:
            return values
        together = _together(sign, odd, root, alone.abs() ** self._how[0], self._how[1]).numpy()
        told = np.empty(len(values))
        told[::2], told[1::2] = together, -together
        less: Numbers = values - told
        return less


def without_triples(masks: Masks, values: Numbers, weight: Numbers) -> Numbers:
    """`Clearing` of one set of draws."""
    return Clearing()(masks, values, weight)


def _together(sign: Tensor, odd: Tensor, root: Tensor, share: Tensor, noise: float) -> Tensor:
    """(n,): the mean of the process given all pairs, which are related within blocks of them."""
    count = -(-len(sign) // _BLOCK)
    fits, gram, cross = [], torch.zeros(()), torch.zeros(())
    for rows in torch.arange(len(sign)).tensor_split(count):
        process = _process(sign[rows], share, root[rows])
        fits.append((rows, process, _Fit(process, torch.tensor([noise]), sign[rows] * root[rows, None], odd[rows])))
        gram, cross = gram + fits[-1][2].gram[0], cross + fits[-1][2].cross[0]
    weights = torch.linalg.solve(gram, cross)[:, 0]
    return torch.cat([process @ fit.whitened_twice(weights)[0] / root[rows] for rows, process, fit in fits])


def _process(sign: Tensor, share: Tensor, root: Tensor) -> Tensor:
    """(n, n): the covariance of what triples do, its mean over the draws 1, rows and columns scaled by `root`.

    Newton's identity gives the sum over triples from sums of powers; those of even powers are the same for all masks.
    """
    share = share / share.square().sum().sqrt()
    first = (sign * share) @ sign.T
    third = (sign * share**3) @ sign.T
    triples: Tensor = (first**3 - 3 * first + 2 * third) / 6
    triples *= root * root[:, None] / triples.diagonal().mean().clamp_min(1e-300)
    return triples


class _Fit:
    """Generalised least squares of `odd` (n,) on `sign` (n, parts) for several shares of noise at once."""

    def __init__(self, process: Tensor, noise: Tensor, sign: Tensor, odd: Tensor) -> None:
        pairs, parts = sign.shape
        self._factor = torch.linalg.cholesky(process + noise.double()[:, None, None] * torch.eye(pairs).double())
        both = torch.cat([sign, odd[:, None]], 1).expand(len(noise), -1, -1)
        white = torch.linalg.solve_triangular(self._factor, both, upper=False)
        self._sign, self._odd, self._free = white[..., :-1], white[..., -1:], pairs - parts
        self.gram, self.cross = self._sign.mT @ self._sign, self._sign.mT @ self._odd

    def likelihood(self) -> Tensor:
        """(shares of noise,) the logarithm of the restricted likelihood, up to a constant."""
        inner = torch.linalg.cholesky(self.gram)
        left = self._odd - self._sign @ torch.cholesky_solve(self.cross, inner)
        variance = left.square().sum((-2, -1)) / self._free
        logs = sum(2 * one.diagonal(dim1=-2, dim2=-1).log().sum(-1) for one in (self._factor, inner))
        found: Tensor = -0.5 * (self._free * variance.log() + logs)
        return found

    def whitened_twice(self, weights: Tensor) -> Tensor:
        """(shares of noise, n): what these weights (parts,) leave, times the inverse of its covariance."""
        left = self._odd - (self._sign @ weights)[..., None]
        found: Tensor = torch.linalg.solve_triangular(self._factor.mT, left, upper=True)[..., 0]
        return found


def _likeliest(sign: Tensor, odd: Tensor, root: Tensor, alone: Tensor) -> tuple[float, float] | None:
    """(power, noise) of the largest likelihood; None where plain noise is likelier."""
    rows = sign * root[:, None]
    best = float(_Fit(torch.zeros(len(sign), len(sign)).double(), torch.ones(1), rows, odd).likelihood()[0])
    found = None
    for power in _POWERS:
        likelihood = _Fit(_process(sign, alone.abs() ** power, root), torch.tensor(_NOISE), rows, odd).likelihood()
        if float(likelihood.max()) > best:
            best, found = float(likelihood.max()), (power, _NOISE[int(likelihood.argmax())])
    return found

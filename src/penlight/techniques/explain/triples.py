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
_MOST = 512  # pairs that power and noise are chosen by
_SPARE = 16  # pairs more than parts, at least
_NOTHING = 1e-12  # of the variance: what is left is rounding


@torch.inference_mode()
def without_triples(masks: Masks, values: Numbers, weight: Numbers) -> Numbers:
    """`values` (2n,) of masks (2n, parts), each followed by its complement, less what three parts do together; `weight` (n,) a pair.

    They come back as they are where there are too few, where they are linear, and where nothing of three parts is to be seen in them.
    """
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
    chosen = _likeliest(sign[:_MOST], odd[:_MOST], root[:_MOST], alone)
    if chosen is None:
        return values
    power, noise = chosen
    process = _process(sign, alone.abs() ** power, root)
    fit = _Fit(process, torch.tensor([noise]), sign * root[:, None], odd)
    joint = process @ fit.whitened_twice()[0] / root
    told = np.empty(len(values))
    told[::2], told[1::2] = joint.numpy(), -joint.numpy()
    less: Numbers = values - told
    return less


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
        sign, odd = white[..., :-1], white[..., -1:]
        gram = sign.mT @ sign
        inner = torch.linalg.cholesky(gram)
        self._left = odd - sign @ torch.cholesky_solve(sign.mT @ odd, inner)
        self._free = pairs - parts
        self._logs = sum(2 * one.diagonal(dim1=-2, dim2=-1).log().sum(-1) for one in (self._factor, inner))

    def likelihood(self) -> Tensor:
        """(shares of noise,) the logarithm of the restricted likelihood, up to a constant."""
        variance = self._left.square().sum((-2, -1)) / self._free
        found: Tensor = -0.5 * (self._free * variance.log() + self._logs)
        return found

    def whitened_twice(self) -> Tensor:
        """(shares of noise, n): what is left, times the inverse of its covariance."""
        found: Tensor = torch.linalg.solve_triangular(self._factor.mT, self._left, upper=True)[..., 0]
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

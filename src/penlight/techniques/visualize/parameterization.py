"""What is optimised in place of pixels: a batch of pictures as numbers in which a small step is a natural change.

A parameterization makes a `Canvas` from one random stream a picture. Its pictures are (N, C, H, W) in [0, 1], before normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# Lucid's principal axes of colour in photographs, by column (Olah et al. 2017, lucid/optvis/param/color.py).
_COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_EDGE = 0.02  # a neutral value nearer to black or white than this is moved here, where the sigmoid still has a slope


class Canvas(Protocol):
    """A batch of pictures that can be changed: `values` is the leaf that is optimised, a row a picture."""

    values: Tensor

    def __call__(self) -> Tensor:
        """The pictures, (N, C, H, W) in [0, 1]."""


Parameterization = Callable[[Sequence[torch.Generator], tuple[int, int, int], Tensor], Canvas]
"""(a stream a picture, (C, H, W), the neutral picture (C, 1, 1) in [0, 1]) -> Canvas on the neutral picture's device."""


def colour_matrix() -> Tensor:
    """(3, 3): decorrelated colours -> RGB, `t @ colour_matrix().T`; the longest column has length 1."""
    matrix = torch.tensor(_COLOUR)
    return matrix / math.sqrt(float(matrix.square().sum(0).max()))


def frequencies(height: int, width: int) -> Tensor:
    """(H, W//2 + 1): length of the spatial frequency of every coefficient of `rfft2`, in cycles a pixel."""
    return torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :])


@dataclass(frozen=True)
class Fourier:
    """Fourier coefficients scaled by 1/frequency^`decay`, for three channels in decorrelated colours, through a sigmoid.

    A spectrum of unit variance makes pictures of unit variance before the sigmoid, whatever the size: rates and starts mean the same
    on a canvas of 7 pixels and on one of 224. `start` is the standard deviation a picture starts with, before the sigmoid.
    Olah, Mordvintsev & Schubert, "Feature Visualization", Distill 2017.
    """

    start: float = 0.1
    decay: float = 1.0

    def __call__(self, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor) -> Canvas:
        return _Spectrum(self, streams, shape, neutral)


class _Spectrum:
    def __init__(
        self, how: Fourier, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor
    ) -> None:
        channels, self.height, self.width = shape
        lengths = frequencies(self.height, self.width)
        scale = lengths.clamp(min=1.0 / max(self.height, self.width)) ** -how.decay
        # an inner column of the half spectrum counts with its mirror image, of an edge column half the noise cancels out
        weight = torch.full((lengths.shape[1],), 4.0)
        weight[0] = 1.0
        if self.width % 2 == 0:
            weight[-1] = 1.0
        power = float((weight * scale.square()).sum()) / (self.height * self.width)
        self.scale = (scale / math.sqrt(power))[..., None].to(neutral.device)
        size = (channels, *lengths.shape, 2)
        starts = torch.stack([torch.randn(size, generator=stream) for stream in streams]) * how.start
        self.values = starts.to(neutral.device).requires_grad_(True)
        self.colour = colour_matrix().to(neutral.device) if channels == 3 else None
        self.base = _logit(neutral)

    def __call__(self) -> Tensor:
        spectrum = torch.view_as_complex(self.values * self.scale)
        waves = torch.fft.irfft2(spectrum, s=(self.height, self.width), norm="ortho")
        if self.colour is not None:
            waves = torch.einsum("dc,nchw->ndhw", self.colour, waves)
        return torch.sigmoid(waves + self.base)


@dataclass(frozen=True)
class Pixels:
    """The values themselves, each on its own, through a sigmoid; for inputs whose neighbours need not be alike."""

    start: float = 0.1

    def __call__(self, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor) -> Canvas:
        return _Values(self, streams, shape, neutral)


class _Values:
    def __init__(
        self, how: Pixels, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor
    ) -> None:
        starts = torch.stack([torch.randn(shape, generator=stream) for stream in streams]) * how.start
        self.values = starts.to(neutral.device).requires_grad_(True)
        self.base = _logit(neutral)

    def __call__(self) -> Tensor:
        return torch.sigmoid(self.values + self.base)


def _logit(neutral: Tensor) -> Tensor:
    return torch.logit(neutral.clamp(_EDGE, 1 - _EDGE))

"""What is optimised in place of pixels: a batch of pictures as numbers in which a small step is a natural change.

A parameterization makes a `Canvas` from one random stream a picture. Its pictures are (N, C, H, W) in [0, 1], before normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

# Lucid's principal axes of colour in photographs, by column (Olah et al. 2017, lucid/optvis/param/color.py).
_COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.00, -0.05), (0.27, -0.09, 0.03))
_EDGE = 0.02  # a neutral value nearer to black or white than this is moved here, where the sigmoid still has a slope


class Canvas(Protocol):
    """A batch of pictures that can be changed: `values` is the leaf that is optimised, a row a picture."""

    values: Tensor

    def __call__(self) -> Tensor:
        """The pictures, (N, C, H, W) in [0, 1]."""


@runtime_checkable
class Notes(Protocol):
    """A canvas that keeps account of where its pictures mattered: it is told each step's gradient of the pictures, (N, C, H, W)."""

    transparency: Tensor  # (N, H, W)

    def note(self, gradient: Tensor) -> None:
        """Add a step's gradient to the account."""


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
class LucidFourier:
    """Lucid's own picture: coefficients times √(W·H) / max(frequency, 1 / longer side)^`decay`, back by `irfft2`, a quarter of it,
    colours decorrelated if there are three, through a sigmoid; nothing is grey.

    `start` is the standard deviation of the coefficients. An odd width keeps one frequency more, and the last column is cut off.
    lucid/optvis/param/spatial.py, images.py and color.py.
    """

    start: float = 0.01
    decay: float = 1.0

    def __call__(self, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor) -> Canvas:
        return _LucidSpectrum(self, streams, shape, neutral.device)


class _LucidSpectrum:
    def __init__(
        self, how: LucidFourier, streams: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        channels, self.height, self.width = shape
        across = torch.arange(self.width // 2 + 1 + self.width % 2)
        across = torch.minimum(across, self.width - across) / self.width
        lengths = torch.hypot(torch.fft.fftfreq(self.height)[:, None], across[None, :])
        scale = math.sqrt(self.width * self.height) * lengths.clamp(min=1 / max(self.width, self.height)) ** -how.decay
        self.scale = scale[..., None].to(device)
        starts = torch.stack([torch.randn((channels, *lengths.shape, 2), generator=stream) for stream in streams])
        self.values = (starts * how.start).to(device).requires_grad_(True)
        self.colour = colour_matrix().to(device) if channels == 3 else None

    def __call__(self) -> Tensor:
        spectrum = torch.view_as_complex(self.values * self.scale)
        across = 2 * (spectrum.shape[-1] - 1)
        waves = torch.fft.irfft2(spectrum, s=(self.height, max(1, across)))[..., : self.width] / 4
        if self.colour is not None:
            waves = torch.einsum("dc,nchw->ndhw", self.colour, waves)
        return torch.sigmoid(waves)


@dataclass(frozen=True, eq=False)
class FixedMagnitude:
    """Pictures whose Fourier magnitudes are given and of which only the phases change, so that no frequency can be blown up.

    `magnitude` (C, H, W//2 + 1); the phases start from a normal distribution with standard deviation `start` and are brought to mean 0
    and standard deviation 1, a picture at a time, before they are used; so are the pictures, which then go through `colour`
    (C, C; rows: what a wave of each kind adds to the channels), if it is given, and a sigmoid.
    Fel et al., "Unlocking Feature Visualization for Deeper Networks with MAgnitude Constrained Optimization", NeurIPS 2023.
    """

    magnitude: Tensor
    colour: Tensor | None = None
    start: float = 1.0

    def __call__(self, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor) -> Canvas:
        return _Phases(self, streams, shape, neutral.device)


class _Phases:
    """Its `transparency` (N, H, W) is Σ |∂objective/∂picture| over channels and steps: where the picture mattered."""

    def __init__(
        self, how: FixedMagnitude, streams: Sequence[torch.Generator], shape: tuple[int, int, int], device: torch.device
    ) -> None:
        self.size = shape[1:]
        self.magnitude = how.magnitude.to(device)
        self.colour = None if how.colour is None else how.colour.to(device)
        starts = torch.stack([torch.randn(how.magnitude.shape, generator=stream) for stream in streams])
        self.values = (starts * how.start).to(device).requires_grad_(True)
        self.transparency = torch.zeros((len(streams), *self.size), device=device)

    def __call__(self) -> Tensor:
        spectrum = torch.polar(self.magnitude.expand(self.values.shape), _standard(self.values))
        waves = _standard(torch.fft.irfft2(spectrum, s=self.size))
        if self.colour is not None:
            waves = torch.einsum("cd,nchw->ndhw", self.colour, waves)
        return torch.sigmoid(waves)

    def note(self, gradient: Tensor) -> None:
        self.transparency += gradient.abs().sum(1)


def _standard(values: Tensor) -> Tensor:
    """Each picture's values with mean 0 and standard deviation 1."""
    spread, mean = torch.std_mean(values, dim=(1, 2, 3), correction=0, keepdim=True)
    return (values - mean) / (spread + 1e-5)


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


Start = Callable[[torch.Generator, tuple[int, int, int], Tensor], Tensor]
"""(a picture's stream, (C, H, W), the mean colour (C, 1, 1) in [0, 1]) -> values (C, H, W) as `Plain` has them."""


@dataclass(frozen=True)
class Normal:
    """Every value from a normal distribution: `centre` and `spread` in [0, 255], from 0 or, with `mean`, from the mean colour."""

    spread: float
    centre: float = 0.0
    mean: bool = True

    def __call__(self, stream: torch.Generator, shape: tuple[int, int, int], colour: Tensor) -> Tensor:
        values = torch.randn(shape, generator=stream) * self.spread + self.centre
        return values if self.mean else values - 255 * colour.cpu()


@dataclass(frozen=True)
class Uniform:
    """Every value evenly between `low` and `high`, which lie in [0, 255]."""

    low: float = 0.0
    high: float = 255.0

    def __call__(self, stream: torch.Generator, shape: tuple[int, int, int], colour: Tensor) -> Tensor:
        return torch.rand(shape, generator=stream) * (self.high - self.low) + self.low - 255 * colour.cpu()


@dataclass(frozen=True)
class Rescaled:
    """Evenly distributed noise, rescaled so that a picture's mean is `centre` and its standard deviation `spread`, in [0, 255]."""

    centre: float = 127.5
    spread: float = 12.75

    def __call__(self, stream: torch.Generator, shape: tuple[int, int, int], colour: Tensor) -> Tensor:
        noise = torch.rand(shape, generator=stream)
        noise = (noise - noise.mean()) / (noise.std(correction=0) + 1e-7)
        return noise * self.spread + self.centre - 255 * colour.cpu()


Display = Callable[[Tensor, Tensor], Tensor]
"""(values (N, C, H, W) as `Plain` has them, the mean colour (C, 1, 1)) -> the pictures that are handed out."""


def stretched(values: Tensor, colour: Tensor) -> Tensor:
    """The values enlarged, or made smaller, as far as [0, 1] around the mean colour allows (DeepVis, saveimagescc)."""
    room = torch.where(values > 0, 1 - colour, colour) / (values.abs() / 255).clamp(min=1e-10)
    return colour + values / 255 * room.flatten(1).amin(1).clamp(max=1e6).reshape(-1, 1, 1, 1)


def deprocessed(values: Tensor, colour: Tensor) -> Tensor:
    """Mean .5 and standard deviation .1, whatever the values' own (keras-vis, deprocess_input); the rest is clipped."""
    pictures = colour + values / 255
    spread, mean = torch.std_mean(pictures, dim=(1, 2, 3), correction=0, keepdim=True)
    return ((pictures - mean) / (spread + 1e-7) * 0.1 + 0.5).clamp(0, 1)


@dataclass(frozen=True)
class Plain:
    """The pictures' own values, 0 to 255 less the mean colour, as the programs of the Caffe years have them; nothing keeps them in range.

    An octave (`resize`) enlarges the values, or, with `detail`, enlarges only what was added to the start and puts it on the start at
    that size, as DeepDream does. `display` is how they are handed out, not what is optimised: programs that stretch what they save.
    """

    start: Start = Normal(0.0)
    display: Display | None = None

    def __call__(self, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor) -> Canvas:
        starts = torch.stack([self.start(stream, shape, neutral) for stream in streams])
        return PlainCanvas(starts.to(neutral.device), neutral, self.display)


@dataclass(frozen=True, eq=False)
class Given:
    """As `Plain`, started from pictures: `pictures` (N, C, H, W) in [0, 1], one a stream, brought to the canvas' size."""

    pictures: Tensor

    def __call__(self, streams: Sequence[torch.Generator], shape: tuple[int, int, int], neutral: Tensor) -> Canvas:
        pictures = resized(self.pictures.to(neutral.device), shape[1:])
        return PlainCanvas((pictures - neutral) * 255, neutral)


class PlainCanvas:
    """The canvas of `Plain` and `Given`: `show` is what is optimised, a call gives what is handed out."""

    def __init__(self, values: Tensor, colour: Tensor, display: Display | None = None) -> None:
        self.values = values.float().clone().requires_grad_(True)
        self.start, self.colour, self.display = values, colour, display

    def __call__(self) -> Tensor:
        return self.show(self.values) if self.display is None else self.display(self.values, self.colour)

    def show(self, values: Tensor) -> Tensor:
        """Values, or a window of them, as pictures."""
        return self.colour + values / 255

    def resize(self, size: tuple[int, int], detail: bool) -> None:
        """The next octave."""
        base = resized(self.start, size)
        if detail:
            added = self.values.detach() - resized(self.start, (self.values.shape[2], self.values.shape[3]))
            values = base + resized(added, size)
        else:
            values = resized(self.values.detach(), size)
        self.values = values.clone().requires_grad_(True)


def resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) at another size: bilinear, averaged where it shrinks."""
    if tuple(pictures.shape[2:]) == tuple(size):
        return pictures
    shrinks = size[0] < pictures.shape[2] or size[1] < pictures.shape[3]
    return F.interpolate(pictures, size, mode="bilinear", antialias=shrinks, align_corners=False)

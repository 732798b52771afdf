"""`filters`: what the first convolution looks for, read off its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import BadInput, CannotRun
from penlight.models import Layer, Model
from penlight.models.probe import split_call
from penlight.results import FiltersResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance


@dataclass(frozen=True)
class Filters(Technique):
    """A convolution's filters as pictures, and the pattern each of them makes of noise.

    Without `request.layers` it is the first convolution that reads the input itself. The response starts from uniform noise. One
    application correlates the picture with the filter at the same size with circular edges, all channels summed as the layer does
    it, and paints what comes out back with the same filter (the transposed convolution), which gives a picture with the input's
    channels again; it is then brought back to mean 0 in each channel and standard deviation 1 over all. Painting back keeps the
    pattern from drifting or turning its sign at each step, and keeps a coloured filter's colours. Repeated, only the spatial
    frequencies are left that the filter amplifies most; it has settled when a step moves the values by less than `tolerance` (RMS).
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "filters"
    paper: ClassVar[str] = "Krizhevsky, Sutskever & Hinton 2012 (filters as pictures)"
    kinds: ClassVar[tuple[str, ...]] = ("image", "array")

    size: int = option(64, "height and width of the noise in pixels", low=8, high=1024)
    limit: int = option(200, "most applications of a filter", low=1, high=100000)
    tolerance: float = option(
        0.01, "RMS change of a step, in standard deviations, below which the pattern has settled", low=0
    )

    def run(self, request: Request) -> FiltersResult:
        """`BadInput` if the layer named is no convolution of 1 or 3 channels; `CannotRun` if none reads the input."""
        model = request.model
        if len(request.layers) > 1:
            raise BadInput(f"filters takes one layer, not {len(request.layers)}: {', '.join(request.layers)}")
        path, module = _named(model, request.layers[0]) if request.layers else _first(model)
        weights = module.weight.detach().float().cpu()  # (U, C, kh, kw)
        responses, steps = self._respond(weights, request)
        arrays = np.ascontiguousarray(weights.permute(0, 2, 3, 1).numpy())
        scale = np.abs(arrays).max(axis=(1, 2, 3), keepdims=True)
        return FiltersResult(
            provenance(self, request),
            path,
            _grey(arrays, scale),
            arrays,
            responses,
            steps,
            weights.flatten(1).norm(dim=1).numpy(),
        )

    def _respond(self, weights: Tensor, request: Request) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """((U, size, size, C) uint8, (U,) steps until settled)."""
        noise = torch.rand(
            (weights.shape[1], self.size, self.size), generator=torch.Generator().manual_seed(request.seed)
        )
        pictures, steps = [], []
        with torch.inference_mode():
            for unit, filter in enumerate(weights):
                pattern, taken = self._settle(noise, filter)
                pictures.append(pattern.permute(1, 2, 0).numpy())
                steps.append(taken)
                request.progress(unit + 1, len(weights))
        values = np.stack(pictures)
        return _grey(values, np.abs(values).max(axis=(1, 2, 3), keepdims=True)), np.array(steps, np.int32)

    def _settle(self, noise: Tensor, filter: Tensor) -> tuple[Tensor, int]:
        """Apply (C, kh, kw) to (C, H, W) until it changes nothing; 0 steps if it still did at the limit, or nothing is left.

        Circular convolutions are products of spectra, so a step multiplies every frequency by the power the filter has there.
        """
        factors = _spectrum(filter, noise.shape[1:])
        power = factors.abs().square().sum(0)
        power[0, 0] = 0  # the mean is taken out at each step
        if not (float(power.max()) > 0 and torch.isfinite(power).all()):
            return torch.zeros_like(noise), 0
        power /= power.max()
        response = (factors * torch.fft.rfft2(noise.double())).sum(0)
        pattern = _normal(noise.double())
        for step in range(1, self.limit + 1):
            response = response if step == 1 else response * power
            following = torch.fft.irfft2(factors.conj() * response * (power > 0), s=noise.shape[1:])
            scale = following.square().mean().sqrt()
            if not float(scale) > 0:
                return torch.zeros_like(noise), 0
            following, response = following / scale, response / scale
            moved = float((following - pattern).square().mean().sqrt())
            pattern = following
            if moved <= self.tolerance:
                return pattern.float(), step
        return pattern.float(), 0


def _spectrum(filter: Tensor, size: torch.Size) -> Tensor:
    """(C, H, W // 2 + 1): what correlating with (C, kh, kw), centred, multiplies each frequency by."""
    canvas = torch.zeros((len(filter), *size), dtype=torch.float64)
    kh, kw = filter.shape[1:]
    for row in range(kh):
        for column in range(kw):
            canvas[:, (kh // 2 - row) % size[0], (kw // 2 - column) % size[1]] += filter[:, row, column]
    spectrum: Tensor = torch.fft.rfft2(canvas)
    return spectrum


def _normal(picture: Tensor) -> Tensor:
    """Mean 0 in each channel, standard deviation 1 over all."""
    centred = picture - picture.mean(dim=(1, 2), keepdim=True)
    return centred / centred.square().mean().sqrt()


def _grey(values: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Zero → 128, ±scale → 255 and 1."""
    scaled = np.divide(values, scale, out=np.zeros_like(values), where=scale > 0)
    grey: NDArray[np.uint8] = np.rint(128 + 127 * np.nan_to_num(scaled)).astype(np.uint8)
    return grey


def _named(model: Model, path: str) -> tuple[str, nn.Conv2d]:
    layer = model.layer(path)
    module = model.network.get_submodule(split_call(path)[0])
    if not isinstance(module, nn.Conv2d):
        raise BadInput(
            f"layer {path!r} is a {layer.kind}; filters shows the weights of a Conv2d that takes 1 or 3 channels"
        )
    if module.weight.shape[1] not in (1, 3):
        raise BadInput(f"layer {path!r} takes {module.weight.shape[1]} channels; only 1 or 3 make a picture")
    return path, module


def _first(model: Model) -> tuple[str, nn.Conv2d]:
    """The first convolution whose input no other module has written and has the input's channels."""
    for path, layer in model.layers.items():
        module = dict(model.network.named_modules()).get(split_call(path)[0])
        if (
            isinstance(module, nn.Conv2d)
            and _reads_input(model, layer)
            and module.in_channels == model.contract.channels
        ):
            return path, module
    raise CannotRun(f"no convolution of {model.reference} reads the input itself; name one that takes 1 or 3 channels")


def _reads_input(model: Model, layer: Layer) -> bool:
    """Nothing comes before it, or only layers that nothing comes before and that hold no weights, such as a normalisation of the input."""
    before = [model.layers[path] for path in layer.inputs if path in model.layers]
    return all(not one.parameters and _reads_input(model, one) for one in before)

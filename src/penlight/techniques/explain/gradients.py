"""The gradient and what has been made of it: times the input, averaged over noise, integrated along a path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.techniques.explain.backward import Rule, differentiate, warnings
from penlight.techniques.explain.chunks import chunk_size, in_chunks
from penlight.techniques.explain.explanation import Attribution, Explanation, Scene
from penlight.techniques.explain.fills import FILL_HELP, FILLS, filled
from penlight.techniques.options import option

_LRN = "how local response normalisations go back: their true gradient, or as if they were not there"
_SMOOTH = "rectify at leaky and smooth rectifiers (leaky ReLU, PReLU, ELU, GELU, SiLU, Mish…) as well"
_WIDE = 0.05  # of what is to be shared out: a larger error of completeness is told


@dataclass(frozen=True)
class Gradient(Explanation):
    """How the value changes with every number of the input."""

    name: ClassVar[str] = "gradient"
    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "table", "text")
    paper: ClassVar[str] = "Simonyan et al. 2013, arXiv:1312.6034"
    guarantee: ClassVar[str] = (
        "how the value changes with every number of the input; says nothing of what large changes would do"
    )

    absolute: bool = option(False, "magnitudes only, as the paper shows them")
    lrn: str = option("backward", _LRN, choices=("backward", "pass"))

    def attribute(self, scene: Scene) -> Attribution:
        found = differentiate(scene, scene.x, Rule(lrn=self.lrn)).gradient[0]
        return Attribution(found.abs() if self.absolute else found, not self.absolute, colour=True)


@dataclass(frozen=True)
class GradientInput(Explanation):
    """The gradient times the input: a first-order share of the value."""

    name: ClassVar[str] = "gradient-x-input"
    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "table", "text")
    paper: ClassVar[str] = "Shrikumar et al. 2016, arXiv:1605.01713"
    guarantee: ClassVar[str] = "adds up to the value in a network of ReLUs without biases, and in no other"

    lrn: str = option("backward", _LRN, choices=("backward", "pass"))

    def attribute(self, scene: Scene) -> Attribution:
        found = differentiate(scene, scene.x, Rule(lrn=self.lrn)).gradient[0] * scene.x[0]
        return Attribution(found, evidence={"sum": float(found.double().sum()), "value": scene.value})


def _rectified(scene: Scene, rule: Rule, start: str = "one") -> Attribution:
    found = differentiate(scene, scene.x, rule, start=start)
    notes = warnings(rule, found.met)
    return Attribution(found.gradient[0], evidence={"rectifiers": found.met}, notes=notes, colour=True)


@dataclass(frozen=True)
class Deconvnet(Explanation):
    """Zeiler and Fergus' deconvnet: back through max-pool switches and transposed filters, rectified on the way."""

    name: ClassVar[str] = "deconvnet"
    paper: ClassVar[str] = "Zeiler & Fergus 2014, arXiv:1311.2901"
    guarantee: ClassVar[str] = (
        "what a rectified backward pass draws from the switches of the max-pools: much of it is the input's own edges, and it changes"
        " little with the class; its pixels may be negative"
    )

    start: str = option(
        "one",
        "what goes back: 1 at the one unit; its activation; the whole channel's map with its activations (DeepVis live)",
        choices=("one", "activation", "map"),
    )
    smooth: bool = option(True, _SMOOTH)
    lrn: str = option("backward", _LRN, choices=("backward", "pass"))

    def attribute(self, scene: Scene) -> Attribution:
        return _rectified(scene, Rule("deconv", self.smooth, self.lrn), self.start)


@dataclass(frozen=True)
class GuidedBackprop(Explanation):
    """Guided backpropagation: only positive gradients pass a rectifier, and only where it was open."""

    name: ClassVar[str] = "guided-backprop"
    paper: ClassVar[str] = "Springenberg et al. 2014, arXiv:1412.6806"
    guarantee: ClassVar[str] = (
        "sharp, but fails the randomisation test: it stays much the same when the weights above are scrambled (Adebayo et al. 2018), so"
        " it shows the input's edges rather than the unit's reasons"
    )

    smooth: bool = option(True, _SMOOTH)
    lrn: str = option("backward", _LRN, choices=("backward", "pass"))

    def attribute(self, scene: Scene) -> Attribution:
        return _rectified(scene, Rule("guided", self.smooth, self.lrn))


@dataclass(frozen=True)
class SmoothGrad(Explanation):
    """The mean of a gradient method over noisy copies of the input."""

    name: ClassVar[str] = "smoothgrad"
    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "table", "text")
    paper: ClassVar[str] = "Smilkov et al. 2017, arXiv:1706.03825; Hooker et al. 2019, arXiv:1806.10758 (square)"
    guarantee: ClassVar[str] = (
        "the gradient around the input rather than at it; what it averages over is noise no real input has"
    )

    over: str = option(
        "gradient",
        "what is averaged",
        choices=("gradient", "gradient-x-input", "deconvnet", "guided-backprop", "integrated-gradients"),
    )
    samples: int = option(50, "noisy copies", low=1, high=100000)
    noise: float = option(
        0.15, "standard deviation of the noise, of the input's range as the network sees it", low=0.0, high=10.0
    )
    reduce: str = option(
        "mean",
        "of the samples' maps: the mean, the mean of squares, the variance",
        choices=("mean", "square", "variance"),
    )
    steps: int = option(20, "points on each path, over integrated-gradients", low=1, high=10000)

    def attribute(self, scene: Scene) -> Attribution:
        x, network = scene.x, scene.prepared()
        deviation = self.noise * float(x.max() - x.min())
        rng = scene.rng(self.name)
        total, squares, met = torch.zeros_like(x, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64), 0
        noise = [torch.from_numpy(rng.standard_normal(tuple(x.shape[1:]), np.float32)) for _ in range(self.samples)]
        rule = Rule({"deconvnet": "deconv", "guided-backprop": "guided"}.get(self.over, "plain"))

        def one(start: int, stop: int) -> None:
            nonlocal total, squares, met
            noisy = x + deviation * torch.stack(noise[start:stop]).to(x)
            if self.over == "integrated-gradients":
                found = torch.cat(
                    [integrated(scene, copy[None], torch.zeros_like(x), self.steps, network) for copy in noisy]
                )
            else:
                done = differentiate(scene, noisy, rule, network=network)
                found, met = done.gradient, done.met
                found = found * noisy if self.over == "gradient-x-input" else found
            total += found.double().sum(0, keepdim=True)
            squares += found.double().square().sum(0, keepdim=True)
            scene.progress(stop, self.samples)

        in_chunks(one, self.samples, chunk_size(scene.model, backward=True))
        mean = total / self.samples
        values = {"mean": mean, "square": squares / self.samples}.get(
            self.reduce, squares / self.samples - mean.square()
        )
        spread = (squares / self.samples - mean.square()).clamp_min(0).sqrt()
        unsure = float(spread.norm() / mean.norm().clamp_min(1e-30)) / self.samples**0.5
        return Attribution(
            (values.clamp_min(0) if self.reduce != "mean" else values)[0],
            self.reduce == "mean",
            {"samples": self.samples, "noise": deviation, "relative standard error": unsure},
            warnings(rule, met) if rule.kind != "plain" else (),
            colour=True,
        )


Points = Callable[[int], tuple[NDArray[np.float64], NDArray[np.float64]]]


def gauss_legendre(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(places in [0, 1], weights) of the quadrature that is exact for polynomials up to degree 2·steps − 1."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return (1 + places) / 2, weights / 2


def trapezoid(steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Evenly spaced places from 0 to 1, those at the ends counted half."""
    if steps == 1:
        return np.array([0.5]), np.array([1.0])
    weights = np.full(steps, 1 / (steps - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0, 1, steps), weights


_QUADRATURES: dict[str, Points] = {"gauss-legendre": gauss_legendre, "trapezoid": trapezoid}


def integrated(
    scene: Scene, x: Tensor, base: Tensor, steps: int, network: Any, quadrature: Points = gauss_legendre
) -> Tensor:
    """(1, *shape): (x − base) times the mean gradient on the straight path from `base` to `x`, both (1, *shape)."""
    places, weights = quadrature(steps)
    total = torch.zeros_like(x, dtype=torch.float64)
    rule = Rule()

    def some(start: int, stop: int) -> None:
        nonlocal total
        shape = (-1,) + (1,) * (x.ndim - 1)
        at = torch.from_numpy(places[start:stop]).to(x).reshape(shape)
        found = differentiate(scene, base + at * (x - base), rule, network=network).gradient
        total += (torch.from_numpy(weights[start:stop]).to(total).reshape(shape) * found.double()).sum(0, keepdim=True)

    in_chunks(some, steps, chunk_size(scene.model, backward=True))
    return ((x - base).double() * total).to(x)


@dataclass(frozen=True)
class IntegratedGradients(Explanation):
    """The gradient integrated from a baseline to the input: shares that add up to the change of the value."""

    name: ClassVar[str] = "integrated-gradients"
    kinds: ClassVar[tuple[str, ...]] = ("image", "array", "table", "text")
    paper: ClassVar[str] = "Sundararajan et al. 2017, arXiv:1703.01365"
    guarantee: ClassVar[str] = (
        "adds up to the value minus the baseline's; what it shows depends on the baseline, at which nothing is ever found"
    )

    baseline: str = option("zeros", "where the path begins; " + FILL_HELP, choices=FILLS)
    steps: int = option(50, "points on the path; 0: doubled until the shares add up to within 1 %", low=0, high=100000)
    quadrature: str = option("gauss-legendre", "how points are placed and weighted", choices=tuple(_QUADRATURES))

    def attribute(self, scene: Scene) -> Attribution:
        base, network = filled(scene, self.baseline), scene.prepared()
        ends = scene.scores(network, torch.cat([scene.x, base]))
        change = float(ends[0] - ends[1])
        steps = self.steps or 16
        while True:
            values = integrated(scene, scene.x, base, steps, network, _QUADRATURES[self.quadrature])
            error = float(values.double().sum()) - change
            if self.steps or abs(error) <= 0.01 * abs(change) or steps >= 2048:
                break
            steps *= 2
        share = abs(error) / max(abs(change), 1e-30)
        evidence = {
            "value": scene.value,
            "at the baseline": float(ends[1]),
            "completeness error": error,
            "steps": steps,
        }
        note = f"the shares miss the change of the value by {share:.0%}: more steps bring them nearer"
        return Attribution(values[0], evidence=evidence, notes=(note,) if share > _WIDE and abs(error) > 1e-6 else ())

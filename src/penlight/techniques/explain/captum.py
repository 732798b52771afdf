"""Captum's methods, asked through one door: any unit of any layer is the target, and the user's network is not touched.

Captum sets hooks and attributes and draws from the global random streams, so it works on a frozen copy, one call at a time, and the
streams are put back.
"""

from __future__ import annotations

import threading
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from penlight.errors import BadOption, CannotRun, PenlightError
from penlight.models.probe import frozen_copy
from penlight.techniques.explain.explanation import Attribution, Explanation, Scene
from penlight.techniques.explain.fills import FILL_HELP, FILLS, filled
from penlight.techniques.options import option

_ONE_AT_A_TIME = threading.Lock()  # Captum's warnings and random streams belong to the whole process
_AT_ONCE = 8  # inputs in one pass
_OFF = 0.05  # of the difference to be explained: what may be missing before it is told
_EXPECTED = ("Setting forward, backward hooks", "did not already require gradients")  # it does so to copies here


@dataclass(frozen=True, eq=False)
class Answer:
    """What Captum gave: values (1, *shape) or (*shape), and what is to be shown beside them."""

    values: Tensor
    evidence: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Scores(nn.Module):
    """A frozen copy of the network that puts out (N, 1): the aim's value. Captum's target is 0."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.network, self.scene = frozen_copy(scene.network), scene

    def forward(self, x: Tensor) -> Tensor:
        return self.scene.scores(self.network, x)[:, None]


class ThroughCaptum(Explanation):
    """A method of Captum's. A subclass is a frozen dataclass of its options that asks Captum:

    >>> @dataclass(frozen=True)                                                        # doctest: +SKIP
    ... class Saliency(ThroughCaptum):
    ...     name, paper, guarantee = "captum-saliency", "Simonyan et al. 2013", "the gradient's magnitude"
    ...     def ask(self, captum, network, scene):
    ...         return Answer(captum.Saliency(network).attribute(scene.x, target=0))
    """

    @abstractmethod
    def ask(self, captum: Any, network: Scores, scene: Scene) -> Answer:
        """Call `captum`, which is captum.attr, with `network`, whose one output is the aim. Grad is on, the random streams are seeded."""

    def attribute(self, scene: Scene) -> Attribution:
        captum, scene = _captum(self.name), replace(scene, x=scene.x.detach().clone())
        network = Scores(scene)
        with _contained(int(scene.rng(self.name).integers(2**31))) as warned, torch.enable_grad():
            try:
                found = self.ask(captum, network, scene)
            except PenlightError:
                raise
            except Exception as error:  # Captum raises what its checks and the network's modules happen to raise
                raise CannotRun(
                    f"Captum cannot run {self.name} on {scene.model.reference}: {_reason(error)}"
                ) from error
        values = found.values.detach().reshape(scene.x.shape[1:])
        texts = (str(one.message).strip() for one in warned)
        heard = (text.splitlines()[0] for text in texts if text and not any(known in text for known in _EXPECTED))
        return Attribution(
            values, True, found.evidence, (*found.notes, *(f"Captum warns: {line}" for line in dict.fromkeys(heard)))
        )


def _captum(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from captum import attr
    except ImportError as error:
        raise BadOption(
            f"method {name!r} needs Captum, which is not installed; pip install 'penlight[captum]'"
        ) from error
    return attr


@contextmanager
def _contained(seed: int) -> Iterator[list[warnings.WarningMessage]]:
    """The random streams seeded, and put back; warnings caught, not shown."""
    with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        kept = np.random.get_state()
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        try:
            yield warned
        finally:
            np.random.set_state(kept)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "more than once" in text or "input/output attributes" in text:
        return "it follows modules, and one is used more than once; lrp and integrated-gradients follow operators"
    return f"{type(error).__name__}: {text[:200]}"


def _account(scene: Scene, found: Tensor, reference: float) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a map that should add up to the value less that of the baseline adds up to; a note where it does not."""
    wanted, got = scene.value - reference, float(found.detach().double().sum())
    told = {"value at the baseline": reference, "sum of the map": got, "completeness error": got - wanted}
    if abs(got - wanted) <= _OFF * abs(wanted) + 1e-6:
        return told, ()
    return told, (f"the map adds up to {got:.4g}, the difference from the baseline is {wanted:.4g}",)


@dataclass(frozen=True)
class DeepLift(ThroughCaptum):
    """How much each input's difference from a baseline changed the unit, activation by activation (the rescale rule).

    >>> penlight.explain(model, "photo.png", method="deep-lift", fill="blur")    # doctest: +SKIP
    """

    name: ClassVar[str] = "deep-lift"
    paper: ClassVar[str] = "Shrikumar et al. 2017, arXiv:1704.02685; Captum's"
    guarantee: ClassVar[str] = (
        "what differences from a baseline added to the unit, by rules for each nonlinear module; another baseline gives another map"
    )

    fill: str = option("zeros", f"the baseline: {FILL_HELP}", choices=FILLS)

    def ask(self, captum: Any, network: Scores, scene: Scene) -> Answer:
        baseline = filled(scene, self.fill)
        found = captum.DeepLift(network).attribute(scene.x, baseline, target=0)
        with torch.no_grad():
            told, notes = _account(scene, found, float(network(baseline)))
        if notes:
            known = "nonlinear functions and modules it does not know for linear, and its max-pool rule is not exact"
            notes = (f"{notes[0]}: Captum takes {known}",)
        return Answer(found, told, notes)


@dataclass(frozen=True)
class GradientShap(ThroughCaptum):
    """Expected gradients: at random points between the input and baselines, times the difference.

    >>> penlight.explain(model, "photo.png", method="gradient-shap", data="pictures/")    # doctest: +SKIP

    With data the baselines are drawn from it, without it `fill` is the one.
    """

    name: ClassVar[str] = "gradient-shap"
    paper: ClassVar[str] = (
        "Lundberg & Lee 2017, arXiv:1705.07874; Erion et al. 2021, doi:10.1038/s42256-021-00343-w; Captum's"
    )
    guarantee: ClassVar[str] = (
        "an estimate from random draws of what the inputs add to the unit over baselines; it takes the inputs for independent"
    )

    samples: int = option(32, "points between input and baselines", low=1)
    fill: str = option("zeros", f"the baseline where there is no data: {FILL_HELP}", choices=FILLS)
    noise: float = option(0.0, "standard deviation of noise on the input, as the network sees it", low=0.0)
    baselines: int = option(50, "inputs drawn from the data as baselines", low=1)

    def ask(self, captum: Any, network: Scores, scene: Scene) -> Answer:
        baselines, method = self._baselines(scene), captum.GradientShap(network)
        total, done = torch.zeros_like(scene.x), 0
        while done < self.samples:
            count = min(_AT_ONCE, self.samples - done)
            total += count * method.attribute(scene.x, baselines, n_samples=count, stdevs=self.noise, target=0).detach()
            done += count
            scene.progress(done, self.samples)
        with torch.no_grad():
            reference = float(torch.cat([network(part) for part in torch.split(baselines, _AT_ONCE)]).mean())
        found = total / self.samples
        told, notes = _account(scene, found, reference)
        return Answer(
            found, {**told, "baselines": len(baselines)}, tuple(f"{note}: more samples come closer" for note in notes)
        )

    def _baselines(self, scene: Scene) -> Tensor:
        """(M, *shape), normalised."""
        if scene.data is None:
            return filled(scene, self.fill)
        count = min(self.baselines, len(scene.data))
        chosen = sorted(scene.rng(self.name, "baselines").choice(len(scene.data), count, replace=False))
        return scene.model.tensor(np.stack([scene.data.read(int(n)) for n in chosen]))

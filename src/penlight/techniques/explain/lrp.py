"""Layer-wise relevance propagation: a unit's value is handed down, operator by operator, until it lies on the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.techniques.explain import aim as aims
from penlight.techniques.explain.explanation import Attribution, Explanation, Scene
from penlight.techniques.explain.relevance import (
    STABILISER,
    AlphaBeta,
    Box,
    Epsilon,
    Flat,
    Gamma,
    Rule,
    Rules,
    WSquare,
    ZBox,
)
from penlight.techniques.explain.relevance_ops import POLICIES
from penlight.techniques.explain.relevance_pass import Ledger, RelevancePass, strange
from penlight.techniques.options import option

# (first layer, convolutions, dense layers); the names with a hyphenated list are zennit's composites
COMPOSITES: Mapping[str, tuple[str, str, str]] = {
    "epsilon": ("", "epsilon", "epsilon"),
    "gamma": ("", "gamma", "gamma"),
    "alpha-beta": ("", "alpha-beta", "alpha-beta"),
    "z-plus": ("", "z-plus", "z-plus"),
    "epsilon-plus": ("", "z-plus", "epsilon"),
    "epsilon-plus-flat": ("flat", "z-plus", "epsilon"),
    "epsilon-gamma-box": ("z-box", "gamma", "epsilon"),
    "epsilon-alpha2-beta1": ("", "alpha2-beta1", "epsilon"),
    "epsilon-alpha2-beta1-flat": ("flat", "alpha2-beta1", "epsilon"),
}
FIRST = ("composite", "same", "z-box", "w-square", "flat", "epsilon", "gamma", "alpha-beta", "z-plus")
# of the value: what may get lost, and how large magnitudes may be in all, before it is told
_MISSING, _CANCELLING = 0.1, 100.0


@dataclass(frozen=True)
class LRP(Explanation):
    """Relevance by the rules of a composite; works on any network, functional, in-place and reused modules included.

    >>> result = penlight.explain(model, "photo.png", method="lrp", composite="epsilon-plus-flat")    # doctest: +SKIP
    >>> result.evidence["at the input"]                                                                 # doctest: +SKIP
    """

    name: ClassVar[str] = "lrp"
    paper: ClassVar[str] = (
        "Bach et al. 2015, doi:10.1371/journal.pone.0130140; Montavon et al. 2019, doi:10.1007/978-3-030-28954-6_10"
    )
    guarantee: ClassVar[str] = (
        "the unit's value shared out by fixed rules; the map adds up to the value less what biases took, and is no measure of what would"
        " happen if a part were changed"
    )

    composite: str = option("epsilon-gamma-box", "which rule stands where", choices=tuple(COMPOSITES))
    epsilon: float = option(
        STABILISER, "added to outputs in the epsilon rule, in units of the layer's output", low=1e-12
    )
    gamma: float = option(0.25, "how much more helpful weights count in the gamma rule", low=0.0)
    alpha: float = option(2.0, "weight of what pushed up in the alpha-beta rule; beta is alpha − 1", low=1.0)
    first: str = option(
        "composite", "the rule of the layer that reads the input, if it is to be another one", choices=FIRST
    )
    bias: bool = option(True, "whether biases take the share they contributed")
    batch_norm: str = option(
        "merged",
        "BatchNorm: merged into its convolution, shared by contribution, or passed",
        choices=("merged", "epsilon", "pass"),
    )
    max_pool: str = option("winner", "who gets a max-pool's relevance", choices=("winner", "average"))
    convention: str = option(
        "zennit",
        "where libraries differ in gamma and z-plus: zennit splits inputs by sign and lets rules change biases, Captum does not",
        choices=("zennit", "captum"),
    )

    def attribute(self, scene: Scene) -> Attribution:
        network = scene.prepared() if self.batch_norm == "merged" else scene.network
        given, ledger, notes = self._handed_down(scene, network)
        return Attribution(
            given, True, _evidence(scene.value, given, ledger), (*notes, *_warnings(scene.value, given, ledger))
        )

    def _handed_down(self, scene: Scene, network: nn.Module) -> tuple[Tensor, Ledger, list[str]]:
        """(*shape) relevance of the input, where the rest went, and what there is to say."""
        aim, notes = scene.aim, list[str]()
        if aim.reading == "probability":
            aim = replace(aim, reading="value")
            notes.append("relevance starts as the probability, at the class's score before softmax")
        leaf = scene.x.detach().clone().requires_grad_()
        with torch.enable_grad(), RelevancePass(self.rules(), POLICIES) as carrier:
            value = aims.scores(scene.model, aim, network, carrier.enter(leaf, _box(scene)))[0]
        if not value.requires_grad:
            notes.append("no relevance arrives: the unit does not depend on the input")
            return torch.zeros_like(scene.x[0]), carrier.ledger, notes
        (found,) = torch.autograd.grad(value, leaf, torch.full_like(value, scene.value))
        if not bool(torch.isfinite(found).all()):
            raise CannotRun(
                f"relevance grows beyond all numbers with composite {self.composite} and bias {'on' if self.bias else 'off'};"
                " composite z-plus is the calmest"
            )
        if unknown := strange([value]):
            text = ", ".join(dict.fromkeys(unknown))
            notes.append(f"operators that could not be caught ({text}) handed back the ordinary gradient of relevance")
        return found[0].detach(), carrier.ledger, [*notes, *self._of_the_box(carrier)]

    def _of_the_box(self, carrier: RelevancePass) -> list[str]:
        if self._first != "z-box" or (carrier.first and all(carrier.first)):
            return []
        if carrier.first:
            return ["the input has no known bounds, so the w² rule stands in for z-box"]
        return ["no layer with weights reads the input itself, so the z-box rule was not used"]

    @property
    def _first(self) -> str:
        chosen = COMPOSITES[self.composite][0] if self.first == "composite" else self.first
        return "" if chosen == "same" else chosen

    def rules(self) -> Rules:
        """The composite, with the options in it."""
        first, (_, convolution, dense) = self._first, COMPOSITES[self.composite]
        return Rules(
            self._rule(first) if first else None,
            self._rule(convolution),
            self._rule(dense),
            self.bias,
            self.batch_norm == "pass",
            self.max_pool == "average",
            self._stabiliser,
        )

    @property
    def _stabiliser(self) -> float:
        return min(self.epsilon, STABILISER)

    def _rule(self, name: str) -> Rule:
        small, plain = self._stabiliser, self.convention == "captum"
        known: dict[str, Rule] = {
            "epsilon": Epsilon(self.epsilon),
            "gamma": Gamma(self.gamma, small, plain),
            "alpha-beta": AlphaBeta(self.alpha, small, plain),
            "alpha2-beta1": AlphaBeta(2.0, small),
            "z-plus": AlphaBeta(1.0, small, plain),
            "z-box": ZBox(small),
            "w-square": WSquare(small),
            "flat": Flat(small),
        }
        return known[name]


def _box(scene: Scene) -> Box | None:
    """What values the input can have: those of 0 and 1 before normalisation; None for an input outside of these."""
    mean, std = (torch.from_numpy(part).to(scene.x) for part in scene.model.contract.statistics())
    low, high = (-mean / std).expand_as(scene.x), ((1 - mean) / std).expand_as(scene.x)
    slack = 1e-4
    if bool((scene.x < low - slack).any() or (scene.x > high + slack).any()):
        return None
    return low.clone(), high.clone()


def _evidence(value: float, found: Tensor, ledger: Ledger) -> dict[str, Any]:
    """The account: what arrived, and where the rest went.

    What is taken on the way goes to biases, to stabilisers, and to outputs that a one-sided rule finds nothing behind.
    """
    arrived = float(found.double().sum())
    constants = value - arrived - ledger.taken - ledger.by_strangers
    told = {
        "relevance of the unit": value,
        "at the input": arrived,
        "taken on the way": ledger.taken,
        "sum of magnitudes": float(found.double().abs().sum()),
    }
    if ledger.strangers:
        told["taken by operators without a rule"] = ledger.by_strangers
    if abs(constants) > 1e-4 * max(abs(value), 1e-12):
        told["left in numbers of the network's own"] = constants
    return told


def _warnings(value: float, found: Tensor, ledger: Ledger) -> list[str]:
    arrived, size = float(found.double().sum()), float(found.double().abs().sum())
    notes = []
    if value == 0:
        return ["the unit's value is 0, so there is no relevance to hand down"]
    if abs(value - arrived) > _MISSING * abs(value):
        notes.append(
            f"not conserved: {arrived:.4g} of {value:.4g} arrived at the input; biases, stabilisers and one-sided rules took"
            f" {ledger.taken:.4g} on the way"
        )
    if size > _CANCELLING * abs(value):
        notes.append(
            f"positive and negative relevance of {size:.3g} in all cancel to {arrived:.3g}; another composite is calmer"
        )
    if ledger.strangers:
        which = ", ".join(f"{name} ({count}×)" if count > 1 else name for name, count in ledger.strangers.items())
        notes.append(f"operators without a rule were taken as linear, input × gradient: {which}")
    return notes

"""From what units did to their verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from penlight.errors import BadUnit
from penlight.models.places import Patch, Rectifier
from penlight.results import Result, VisualizeResult
from penlight.results.diagnose import portrait_verdict
from penlight.techniques.diagnose.kinship import Kin, kin
from penlight.techniques.diagnose.tally import ROUNDING, Tallied
from penlight.units import Unit

FEWEST = 64  # samples below which correlations say nothing
_HOMOGENEOUS = ("", "relu", "leaky_relu")  # a multiple before such a function is the same multiple after it
_NO_CONSTANT = 1e-3  # of the unit's spread: a constant that small is none


@dataclass(frozen=True)
class Pictured:
    """A unit's preferred inputs: how alike those of different starts are, the best answer to one, and whether no gradient ever came."""

    stability: float
    best: float
    dark: bool


@dataclass(frozen=True)
class Thresholds:
    """From where on a verdict holds; see `Health`."""

    rare: float
    full: float
    alike: float
    combine: int
    unstable: float


@dataclass(frozen=True)
class Judged:
    """One layer's verdicts: unit → name → number, unit → name → words, and how duplicates are made of others."""

    verdicts: Mapping[int, Mapping[str, float]]
    details: Mapping[int, Mapping[str, str]]
    kin: Mapping[int, Kin] = field(default_factory=dict)
    scaled: Mapping[int, tuple[int, float]] = field(
        default_factory=dict
    )  # duplicates after the rectifier too: (other, factor)

    def units(self, verdict: str) -> tuple[int, ...]:
        """Units with a verdict."""
        return tuple(u for u, told in self.verdicts.items() if verdict in told)

    def stand_in(self) -> Patch:
        """The duplicates made of the units they are duplicates of."""
        mixed = {u: (one.others, one.factors, one.constant) for u, one in self.kin.items()}
        return Patch(tuple(self.kin), mixed=mixed)


def judge(
    path: str, found: Tallied, rectifier: Rectifier | None, limits: Thresholds, pictured: Mapping[int, Pictured]
) -> Judged:
    """Verdicts on one layer's units."""
    told: dict[int, dict[str, float]] = {u: {} for u in range(len(found.share))}
    words: dict[int, dict[str, str]] = {u: {} for u in told}
    silent = set()
    for u in told:
        _activity(u, found, rectifier, limits, told[u], words[u])
        if "dead" in told[u] or _constant(found, u):
            silent.add(u)
        elif u in pictured:
            seen = pictured[u]
            said = portrait_verdict(seen.dark, seen.stability, seen.best, float(found.own[u]), limits.unstable)
            if said is not None:
                told[u][said[0]], words[u][said[0]] = said[1:]
    made: dict[int, Kin] = {}
    if found.samples >= FEWEST:
        made = kin(found.kin, found.centre, silent, limits.alike, limits.combine)
    for u, one in made.items():
        told[u]["duplicate"] = one.correlation
        words[u]["duplicate"] = _words(path, one, float(found.spread[u]))
    name = "" if rectifier is None else rectifier.name
    scaled = {
        u: (one.others[0], one.factors[0]) for u, one in made.items()
        if len(one.others) == 1 and name in _HOMOGENEOUS and (one.factors[0] > 0 or not name)
        and abs(one.constant) <= _NO_CONSTANT * found.spread[u]
    }  # fmt: skip
    order = sorted(u for u in told if told[u])
    return Judged({u: told[u] for u in order}, {u: words[u] for u in order if words[u]}, made, scaled)


def _constant(found: Tallied, u: int) -> bool:
    return bool(found.high[u] - found.low[u] <= ROUNDING * max(abs(found.high[u]), abs(found.low[u])))


def _activity(
    u: int,
    found: Tallied,
    rectifier: Rectifier | None,
    limits: Thresholds,
    told: dict[str, float],
    words: dict[str, str],
) -> None:
    hard = rectifier is not None and rectifier.hard
    if (hard and found.fired[u] == 0) or (_constant(found, u) and found.high[u] <= 0):
        told["dead"] = float(found.fired[u])
        words["dead"] = f"its largest value is {found.high[u]:.3g}"
        return
    if _constant(found, u):
        told["static"] = 0.0
        words["static"] = f"its value is always {found.high[u]:.3g}"
    if hard and 0 < found.fired[u] < limits.rare:
        told["nearly dead"] = float(found.fired[u])
        words["nearly dead"] = f"fires on {round(found.fired[u] * found.inputs)} of {found.inputs} inputs"
    if hard and found.low[u] > 0:
        told["always on"] = float(found.share[u])
        words["always on"] = f"its smallest value is {found.low[u]:.3g}"
    if rectifier is not None and rectifier.high is not None and found.full[u] >= limits.full:
        told["saturated"] = float(found.full[u])
        words["saturated"] = f"at the upper limit {rectifier.high:g} of {rectifier.name}"


def _words(path: str, one: Kin, spread: float) -> str:
    """'conv2:3', '-1 × conv2:3', '0.5 × conv2:3 + 0.2', '2 × conv2:3 - 1.5 × conv2:4'."""
    text = ""
    for other, factor in zip(one.others, one.factors, strict=True):
        size = f"{abs(factor):.3g}"
        sign = ("-" if factor < 0 else "") if not text else (" - " if factor < 0 else " + ")
        text += f"{sign}{'' if size == '1' and not (factor < 0 and not text) else size + ' × '}{path}:{other}"
    if abs(one.constant) > _NO_CONSTANT * spread:
        text += f" {'-' if one.constant < 0 else '+'} {abs(one.constant):.3g}"
    return text


def pictured(earlier: Sequence[Result], path: str, units: int) -> dict[int, Pictured]:
    """What results of `visualize` say of a layer's units; of pictures of most, not least, preferred inputs from several starts."""
    found: dict[int, Pictured] = {}
    for result in earlier:
        if not isinstance(result, VisualizeResult) or result.minimize or result.images.shape[1] < 2:
            continue
        for row, u in _rows(result.units, path):
            dark = bool(result.zero_gradient[row].all())
            alike = float(result.stability[row])
            if u < units and (dark or np.isfinite(alike)):
                found[u] = Pictured(alike, float(np.nanmax(result.activations[row])), dark)
    return found


def _rows(units: Iterable[str], path: str) -> Iterable[tuple[int, int]]:
    for row, text in enumerate(units):
        try:
            unit = Unit.parse(text)
        except BadUnit:
            continue  # an expression of several units
        if unit.layer == path and unit.index is not None:
            yield row, unit.index

"""What of a network works, what does not, and what can go without loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.errors import UnknownName
from penlight.results.base import Picture, Provenance, Result

VERDICTS = ("dead", "nearly dead", "always on", "saturated", "static", "duplicate", "unstable")
ZERO, MEAN, STAND_IN = "zero", "mean", "stand-in"
_MINUS = "\u2212"


def portrait_verdict(
    dark: bool, stability: float, best: float, real: float, unstable: float
) -> tuple[str, float, str] | None:
    """(verdict, number, words) of a unit by its preferred inputs from several starts; None if they say nothing against it.

    `dark`: no gradient ever came; `stability`: how alike the starts' pictures are; `best` and `real`: its largest answer to a picture and
    to the data. Static: pictures differ at every start, and none excites the unit more than real inputs do. Else unstable, if they differ.
    """
    if not (dark or stability < unstable):
        return None
    if dark:
        return "static", 0.0, "no gradient reaches its picture"
    if best <= real:
        return "static", stability, f"no picture of {best:.3g} at most outdoes the inputs' {real:.3g}"
    return "unstable", stability, "its pictures differ from start to start"


@dataclass(frozen=True, eq=False)
class LayerHealth:
    """What one layer's U units do, over all inputs, where the rest of the network sees them.

    share      (U,) share of inputs and sampled positions above zero, before the rectifier
    fired      (U,) share of inputs with any position above zero
    high, low  (U,) largest and smallest value before the rectifier: over everything for a unit that is dead, always on, constant or has
               pictures, so that a verdict hangs on them; for others over the sampled positions at least
    full       (U,) share of inputs and sampled positions at the rectifier's upper limit; 0 where it has none
    mean       (U,) after the rectifier
    effect     (U, 2) mean change of loss and of accuracy when the unit alone goes, on `tried` inputs; where it is `estimated`, from
               gradients, nothing is said of the accuracy (NaN)
    """

    kind: str
    rectifier: str  # name of the function that follows, "" for none
    share: NDArray[np.float64]
    fired: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    full: NDArray[np.float64]
    mean: NDArray[np.float64]
    effect: NDArray[np.float64]
    tried: int
    participation: float  # (Σλ)² / Σλ² of the activations' covariance: how many directions they use; from the samples
    removable: tuple[int, ...]  # the largest set found whose removal costs no more than the option `drop`
    estimated: bool = False

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self.share)

    @property
    def needed(self) -> int:
        """Units that stay when all that can go has gone."""
        return self.units - len(self.removable)


@dataclass(frozen=True)
class Removal:
    """Some units taken away, and what that did on `inputs` inputs, the same ones with and without.

    `low` and `high` bound the changes at 95 %, by bootstrap over the inputs. Accuracies are shares; NaN where there are no classes.
    """

    units: Mapping[str, tuple[int, ...]]  # layer → units
    of: Mapping[str, int]  # layer → how many it has
    why: str  # a verdict, or "can go"
    how: str  # ZERO, MEAN, or STAND_IN: made of the units they are duplicates of
    inputs: int
    loss_before: float
    loss: float
    loss_low: float
    loss_high: float
    accuracy_before: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float

    @property
    def count(self) -> int:
        """Number of units taken away."""
        return sum(map(len, self.units.values()))

    def text(self) -> str:
        """'23 of 64 channels of conv2 removed: accuracy 96.8 → 96.7 % (95 % CI −0.3…+0.1)'."""
        where = f"of {next(iter(self.units))}" if len(self.units) == 1 else f"of {len(self.units)} layers"
        told = f"{self.count} of {sum(self.of.values())} units {where} removed: "
        if np.isfinite(self.accuracy):
            rate = f"accuracy {100 * self.accuracy_before:.1f} → {100 * self.accuracy:.1f} %"
            return (
                f"{told}{rate} (95 % CI {_signed(100 * self.accuracy_low, 1)}…{_signed(100 * self.accuracy_high, 1)})"
            )
        rate = f"loss {self.loss_before:.3g} → {self.loss:.3g}"
        return f"{told}{rate} (95 % CI {_signed(self.loss_low, 3)}…{_signed(self.loss_high, 3)})"


def _signed(value: float, digits: int) -> str:
    rounded = f"{value:+.{digits}f}"
    return rounded[1:] if float(rounded) == 0 else rounded.replace("-", _MINUS)


@dataclass(frozen=True)
class Pruned:
    """A network without some units: how large it is and what it says, beside the whole one."""

    file: str
    layers: Mapping[str, tuple[int, ...]]  # layer → units that were cut
    refused: Mapping[str, str]  # layer → why its units could not be cut
    parameters_before: int
    parameters: int
    macs_before: float  # multiply-adds of one input
    macs: float
    accuracy_before: float
    accuracy: float
    loss_before: float
    loss: float
    keys: tuple[str, ...]  # of the file


@dataclass(frozen=True, eq=False)
class DiagnoseResult(Result):
    """Verdicts on every unit, and the proof by taking units away.

    >>> r = penlight.diagnose("letters")                 # doctest: +SKIP
    >>> r.verdicts["conv2:7"]                            # doctest: +SKIP
    {'duplicate': 0.9993}
    >>> r.ablation["conv2"].shape                        # doctest: +SKIP
    (48, 2)

    `verdicts` holds only units that have one, each with its number:

    dead         share of inputs and positions where it is above zero (0), before the rectifier
    nearly dead  share of inputs on which it is
    always on    share of inputs and positions where it is above zero (1): its rectifier does nothing
    saturated    share of inputs and positions at the rectifier's upper limit
    static       how alike its pictures from different starts are, or 0 if it never changes
    duplicate    correlation with the units named in `details`, or with their sum
    unstable     how alike its pictures from different starts are

    `removals` are the proofs; `removable` units can all go at once within the stated loss.
    """

    kind: ClassVar[str] = "diagnose"

    provenance: Provenance
    layers: Mapping[str, LayerHealth]
    verdicts: Mapping[str, Mapping[str, float]]
    details: Mapping[str, Mapping[str, str]]
    removals: tuple[Removal, ...]
    removable: Mapping[str, tuple[int, ...]]
    inputs: int  # read
    truth: str  # what loss and accuracy are held against: "labels", "own answers" or "own output"
    loss: float
    accuracy: float
    notes: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()  # (name, reason)
    pruned: Pruned | None = None
    scaled: Mapping[str, Mapping[int, tuple[int, float]]] = field(
        default_factory=dict
    )  # removable unit → the one it is a multiple of

    @property
    def ablation(self) -> Mapping[str, NDArray[np.float64]]:
        """Layer → (units, 2): mean change of loss and accuracy when each unit alone goes."""
        return {path: layer.effect for path, layer in self.layers.items()}

    def flagged(self, layer: str, verdict: str = "") -> tuple[int, ...]:
        """Units of a layer with a verdict, or with any."""
        if layer not in self.layers:
            raise UnknownName("diagnosed layer", layer, list(self.layers))
        if verdict and verdict not in VERDICTS:
            raise UnknownName("verdict", verdict, VERDICTS)
        found = (f"{layer}:{u}" for u in range(self.layers[layer].units))
        return tuple(
            int(unit.rpartition(":")[2]) for unit in found
            if unit in self.verdicts and (not verdict or verdict in self.verdicts[unit])
        )  # fmt: skip

    def removal(self, layer: str, why: str, how: str = ZERO) -> Removal:
        """The proof of one set of units."""
        for one in self.removals:
            if list(one.units) == [layer] and (one.why, one.how) == (why, how):
                return one
        raise UnknownName(
            "removal", f"{layer}, {why}, {how}", [f"{next(iter(r.units))}, {r.why}, {r.how}" for r in self.removals]
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row a layer: `layer`, `kind`, `units`, a count of each verdict, `participation`, `needed`."""
        return [
            {
                "layer": path,
                "kind": layer.kind,
                "rectifier": layer.rectifier or None,
                "units": layer.units,
                **{name: len(self.flagged(path, name)) for name in VERDICTS},
                "participation": layer.participation,
                "removable": len(layer.removable),
                "needed": layer.needed,
            }
            for path, layer in self.layers.items()
        ]

    def summary(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs,
            "truth": self.truth,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "layers": self.rows(),
            "verdicts": [
                {"unit": unit, "verdicts": dict(told), "details": dict(self.details.get(unit, {}))}
                for unit, told in self.verdicts.items()
            ],
            "removals": [{"text": one.text(), "units": one.count, **asdict(one)} for one in self.removals],
            "removable": self.removable,
            "pruned": None if self.pruned is None else asdict(self.pruned),
            "notes": self.notes,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data: dict[str, Any] = {
            "layers": [
                {
                    name: getattr(layer, name)
                    for name in ("kind", "rectifier", "tried", "participation", "removable", "estimated")
                }
                | {"path": path}
                for path, layer in self.layers.items()
            ],
            "verdicts": self.verdicts,
            "details": self.details,
            "removals": [asdict(one) for one in self.removals],
            "removable": self.removable,
            "inputs": self.inputs,
            "truth": self.truth,
            "loss": self.loss,
            "accuracy": self.accuracy,
            "notes": self.notes,
            "skipped": self.skipped,
            "pruned": None if self.pruned is None else asdict(self.pruned),
            "scaled": self.scaled,
        }
        arrays = {
            f"{n}.{name}": getattr(layer, name) for n, layer in enumerate(self.layers.values()) for name in _ARRAYS
        }
        return _without_nan(data), arrays

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> DiagnoseResult:
        layers = {
            row["path"]: LayerHealth(
                row["kind"], row["rectifier"], **{name: arrays[f"{n}.{name}"] for name in _ARRAYS},
                tried=row["tried"], participation=_number(row["participation"]), removable=tuple(row["removable"]),
                estimated=row.get("estimated", False),
            )
            for n, row in enumerate(data["layers"])
        }  # fmt: skip
        return cls(
            provenance,
            layers,
            data["verdicts"],
            data["details"],
            tuple(_rebuilt(Removal, row) for row in data["removals"]),
            _units(data["removable"]),
            data["inputs"],
            data["truth"],
            _number(data["loss"]),
            _number(data["accuracy"]),
            tuple(data["notes"]),
            tuple((name, reason) for name, reason in data["skipped"]),
            None if data["pruned"] is None else _rebuilt(Pruned, data["pruned"]),
            {path: {int(u): (int(v), float(f)) for u, (v, f) in held.items()} for path, held in data["scaled"].items()},
        )

    def pictures(self) -> Iterable[Picture]:
        return ()


_ARRAYS = tuple(f.name for f in fields(LayerHealth) if f.type == "NDArray[np.float64]")


def _units(found: Mapping[str, Iterable[int]]) -> dict[str, tuple[int, ...]]:
    return {path: tuple(units) for path, units in found.items()}


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _without_nan(value: Any) -> Any:
    """Numbers JSON does not have as None."""
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _rebuilt(kind: Any, row: Mapping[str, Any]) -> Any:
    """A Removal or Pruned from what JSON keeps of it."""
    given = dict(row)
    for f in fields(kind):
        if f.type == "float":
            given[f.name] = _number(given[f.name])
        elif "Mapping[str, tuple[int, ...]]" in str(f.type):
            given[f.name] = _units(given[f.name])
        elif "tuple" in str(f.type):
            given[f.name] = tuple(given[f.name])
    return kind(**given)

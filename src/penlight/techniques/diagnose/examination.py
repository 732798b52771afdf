"""One run of `Health`: the pass over the data, the verdicts, and the proofs by taking units away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadInput, CannotRun
from penlight.inputs import Data, batches
from penlight.models import Model, Probe
from penlight.models.places import Patch, Place, macs, places
from penlight.models.probe import LOGITS
from penlight.results.diagnose import MEAN, STAND_IN, ZERO, DiagnoseResult, LayerHealth, Removal
from penlight.techniques.contract import Request
from penlight.techniques.diagnose.ablation import Bench, Cut, find_truth
from penlight.techniques.diagnose.bootstrap import interval
from penlight.techniques.diagnose.estimate import enough, estimated
from penlight.techniques.diagnose.excess import Ladder, Order, Said, Sample, most, ordered, together
from penlight.techniques.diagnose.judging import FEWEST, Judged, Pictured, judge, pictured
from penlight.techniques.diagnose.tally import Census, Tallied, fitting
from penlight.techniques.options import provenance

if TYPE_CHECKING:
    from penlight.techniques.diagnose.health import Health

CAN_GO = "can go"
_WEIGHTED = ("Conv1d", "Conv2d", "Conv3d", "Linear", "Conv2dSame")
_WORK = 1e12  # multiply-adds of one unit of the option `effort`
_TRIES = 7  # passes a layer that the search for what can go takes, about
_PROOF, _FEWEST_TESTED = 30, 100  # work on the proofs, in times of the effort, and inputs they are measured on at least
_BACKWARD = 8  # passes that an estimate from gradients takes of an input, about
Numbers = NDArray[np.float64]


class Examination:
    """One run of `Health`, step by step."""

    _estimated: frozenset[str] = frozenset()  # layers of which it was
    _estimates = True  # whether what single units cost can be told from gradients
    fewest_tried = 20  # inputs that single units are silenced on, whatever the effort allows

    def __init__(self, health: Health, request: Request, data: Data) -> None:
        self._health, self._request, self._model, self._data = health, request, request.model, data
        layers = list(request.layers) or default_layers(self._model)
        if LOGITS in layers:
            raise CannotRun(
                f"{LOGITS} is put out by no module, so its units cannot be silenced; leave it out with --layers"
            )
        self._network = self._model.prepared(keep=layers)
        layers = _readable(self._model, self._network, layers, strict=bool(request.layers))
        self._places: dict[str, Place] = places(self._model, layers, self._network)
        self._batch = health.batch or fitting(self._model, self._places)
        self._truth = find_truth(self._model, data)
        self._bench = Bench(self._model, self._network, self._places, self._truth)
        self._skipped: list[tuple[str, str]] = []
        self._stages, self._stage = 3 * len(layers) + 3, 0
        self._notes = [self._truth.note] if self._truth.note else []

    def _step(self) -> None:
        self._stage += 1
        self._request.progress(self._stage, self._stages)

    def result(self) -> DiagnoseResult:
        found = self._census()
        judged = self._judged(found)
        inputs, classes = self._held(max(self._health.tried, self.fewest_tried))
        effects, tried = self._effects(found, inputs, classes)
        orders = {
            path: ordered(effect, self._values(found[path]), judged[path].scaled) for path, effect in effects.items()
        }
        counts, all_counts = self._search(orders, inputs, classes)
        removals, counts, all_counts, (loss, accuracy) = self._proofs(found, judged, orders, counts, all_counts)
        gone = {path: orders[path].patch(n).units for path, n in all_counts.items() if n}
        if self._bench.slow:
            self._notes.append(
                f"units of {', '.join(sorted(self._bench.slow))} were silenced one pass each: the network ties inputs together"
            )
        verdicts, details = self._named(judged)
        return DiagnoseResult(
            provenance(self._health, self._request),
            {
                path: self._layer(path, found[path], effects[path], tried, orders[path].patch(counts[path]).units)
                for path in self._places
            },
            verdicts,
            details,
            tuple(removals),
            gone,
            next(iter(found.values())).inputs,
            self._held_against(),
            loss,
            accuracy,
            tuple(self._notes),
            tuple(self._skipped),
            None,
            {path: {u: v for u, v in judged[path].scaled.items() if u in units} for path, units in gone.items()},
        )

    def _held_against(self) -> str:
        """What loss and accuracy are measured against."""
        if self._model.class_layer is None:
            return "own output"
        return "labels" if self._truth.labelled else "own answers"

    def _layer(self, path: str, found: Tallied, effect: Numbers, tried: int, removable: tuple[int, ...]) -> LayerHealth:
        rectifier = self._places[path].rectifier
        return LayerHealth(
            self._model.layers[path].kind,
            "" if rectifier is None else rectifier.name,
            found.share,
            found.fired,
            found.high,
            found.low,
            found.full,
            found.mean,
            effect,
            tried,
            found.directions,
            removable,
            path in self._estimated,
        )

    def _census(self) -> dict[str, Tallied]:
        census = Census(
            self._model,
            self._network,
            self._places,
            len(self._data),
            self._request.seed,
            self._health.positions,
            [path for path in self._places if self._portraits(path)],
        )
        read = 0

        def inputs() -> Iterator[NDArray[Any]]:
            nonlocal read
            for batch in batches(self._data, self._batch):
                self._skipped += [(name, reason) for _, name, reason in batch.skipped]
                if batch.index:
                    read += len(batch.index)
                    yield batch.inputs

        census.feed(inputs())
        if not read:
            raise BadInput(
                f"not one of the {len(self._data)} inputs of {self._data.name} can be read; the first: {self._skipped[0][1]}"
            )
        self._step()
        return {path: tally.done() for path, tally in census.tallies.items()}

    def _portraits(self, path: str) -> dict[int, Pictured]:
        return pictured(self._request.earlier, path, self._model.layers[path].units)

    def _judged(self, found: Mapping[str, Tallied]) -> dict[str, Judged]:
        judged = {}
        for path, place in self._places.items():
            judged[path] = judge(path, found[path], place.rectifier, self._health.limits, self._portraits(path))
            self._step()
        few = [path for path, one in found.items() if one.samples < FEWEST]
        if few:
            self._notes.append(f"duplicates were not looked for in {', '.join(few)}: fewer than {FEWEST} samples")
        return judged

    def _named(self, judged: Mapping[str, Judged]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
        verdicts = {f"{path}:{u}": dict(told) for path, one in judged.items() for u, told in one.verdicts.items()}
        details = {f"{path}:{u}": dict(words) for path, one in judged.items() for u, words in one.details.items()}
        return verdicts, details

    def _values(self, found: Tallied) -> Numbers | None:
        return found.mean if self._health.replace == MEAN else None

    def _drawn(self, count: int) -> NDArray[np.intp]:
        """Indices of `count` inputs, the same for the same seed, in order."""
        total = len(self._data)
        if count >= total:
            return np.arange(total)
        return np.sort(np.random.default_rng([self._request.seed, 7]).permutation(total)[:count])

    def _held(self, count: int) -> tuple[NDArray[Any], list[int | None]]:
        parts = [b for b in batches(Part(self._data, self._drawn(count)), self._batch) if b.index]
        if not parts:
            raise BadInput(f"not one of the inputs drawn from {self._data.name} can be read; give another seed")
        return np.concatenate([b.inputs for b in parts]), [c for b in parts for c in b.classes]

    def _afford(self, per_input: float, count: int) -> int:
        """How many of `count` inputs the effort allows."""
        if not self._health.effort:
            return count
        return int(min(count, max(self.fewest_tried, self._health.effort * _WORK // max(per_input, 1.0))))

    def _effects(
        self, found: Mapping[str, Tallied], inputs: NDArray[Any], classes: Sequence[int | None]
    ) -> tuple[dict[str, Numbers], int]:
        work = {path: self._model.layers[path].units * place.macs for path, place in self._places.items()}
        budget = self._health.effort * _WORK
        if budget and self._estimates and self.fewest_tried * sum(work.values()) > budget:
            return self._partly_estimated(found, inputs, classes, enough(budget, work, self.fewest_tried))
        return self._taken_away(
            found, inputs, classes, list(self._places), self._afford(sum(work.values()), len(inputs))
        )

    def _partly_estimated(
        self, found: Mapping[str, Tallied], inputs: NDArray[Any], classes: Sequence[int | None], measured: Sequence[str]
    ) -> tuple[dict[str, Numbers], int]:
        """The cheap layers measured, the others told from gradients."""
        tried = min(self.fewest_tried, len(inputs))
        effects, tried = self._taken_away(found, inputs, classes, measured, tried) if measured else ({}, 0)
        rest = [path for path in self._places if path not in effects]
        self._estimated = frozenset(rest)
        count = self._afford(_BACKWARD * macs(self._model), len(inputs))
        held = {path: self._values(found[path]) for path in rest}
        effects |= estimated(self._bench, rest, inputs[:count], classes[:count], held, self._request.seed)
        where = ", ".join(rest[:3]) + (f" and {len(rest) - 3} more layers" if len(rest) > 3 else "")
        self._notes.append(
            f"what single units of {where} cost is estimated from gradients on {count} inputs, as to take each away takes more than"
            f" the effort {self._health.effort:g}; name fewer --layers, or give --effort 0 to measure all"
        )
        for _ in rest:
            self._step()
        return effects, tried or count

    def _taken_away(
        self,
        found: Mapping[str, Tallied],
        inputs: NDArray[Any],
        classes: Sequence[int | None],
        paths: Sequence[str],
        tried: int,
    ) -> tuple[dict[str, Numbers], int]:
        inputs, classes = inputs[:tried], classes[:tried]
        base = np.concatenate(
            [
                self._bench.measure(inputs[n : n + self._batch], classes[n : n + self._batch], [])[0]
                for n in range(0, tried, self._batch)
            ],
            1,
        )
        effects = {}
        for path in paths:
            alone = self._bench.singles(path, inputs, classes, self._values(found[path]))
            effects[path] = _mean(alone - base)
            self._step()
        return effects, tried

    def _search(
        self, orders: Mapping[str, Order], inputs: NDArray[Any], classes: Sequence[int | None]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """How many units of each layer can go alone, and how many with those of all other layers."""
        whole = max(place.macs for place in self._places.values())
        count = self._afford(2 * whole * _TRIES * len(orders), len(inputs))
        sample = Sample(self._bench, inputs[:count], classes[:count], self._batch)
        counts: dict[str, int] = {}
        for path, order in orders.items():
            counts[path] = most(partial(self._fits, sample, path, order), len(order.units))
            self._step()
        shared = together(sample, orders, counts, self._health.drop)
        self._step()
        return counts, shared

    def _fits(self, sample: Sample, path: str, order: Order, count: int) -> bool:
        return sample.fits({path: order.patch(count)}, self._health.drop)

    def _proofs(
        self, found: Mapping[str, Tallied], judged: Mapping[str, Judged], orders: Mapping[str, Order],
        counts: dict[str, int], shared: dict[str, int],
    ) -> tuple[list[Removal], dict[str, int], dict[str, int], tuple[float, float]]:  # fmt: skip
        """Every set measured on the data; what turns out to cost too much there is made smaller until it does not."""
        flagged = [one for path in self._places for one in self._flagged(path, judged[path], found[path].mean)]
        counts = {path: n for path, n in counts.items() if n}
        shared = {path: n for path, n in shared.items() if n} if len(counts) > 1 else {}
        asked = [{path: n} for path, n in counts.items()] + ([shared] if shared else [])  # the last: all layers at once
        ladders, said = [Ladder(one) for one in asked], Said(self._bench)
        done, base = self._measured([*flagged, *(self._going(orders, one) for one in asked)], said)
        late: list[Removal | None] = []
        for ladder, one in zip(ladders, done[len(flagged) :], strict=True):
            late.append(one if ladder.told(self._affordable(one)) else None)
        while waiting := [n for n, ladder in enumerate(ladders) if not ladder.ended]:
            again, _ = self._measured([self._going(orders, ladders[n].counts) for n in waiting], said)
            for n, one in zip(waiting, again, strict=True):
                if ladders[n].told(self._affordable(one)):
                    late[n] = one
        asked = [ladder.fitting for ladder in ladders]
        self._step()
        alone = {path: n for one in asked[: len(counts)] for path, n in one.items()}
        removals = [one for one in [*done[: len(flagged)], *late] if one is not None and one.count]
        return removals, {path: alone.get(path, 0) for path in self._places}, asked[-1] if asked else {}, base

    def _flagged(self, path: str, judged: Judged, mean: Numbers) -> list[Proof]:
        """The sets of flagged units of one layer, each silenced in two ways; duplicates in a third, made of the others."""
        proofs = []
        for verdict in dict.fromkeys(name for told in judged.verdicts.values() for name in told):
            units = judged.units(verdict)
            proofs.append(Proof(verdict, ZERO, {path: Patch(units)}))
            proofs.append(Proof(verdict, MEAN, {path: Patch(units, tuple(float(mean[u]) for u in units))}))
            if verdict == "duplicate":
                proofs.append(Proof(verdict, STAND_IN, {path: judged.stand_in()}))
        return proofs

    def _going(self, orders: Mapping[str, Order], counts: Mapping[str, int]) -> Proof:
        return Proof(CAN_GO, self._health.replace, {path: orders[path].patch(n) for path, n in counts.items() if n})

    def _affordable(self, one: Removal) -> bool:
        cost = one.loss - one.loss_before if np.isnan(one.accuracy) else one.accuracy_before - one.accuracy
        return cost <= self._health.drop + 1e-12

    def _measured(self, proofs: Sequence[Proof], said: Said) -> tuple[list[Removal], tuple[float, float]]:
        """Each set's removal on the inputs drawn for it, and (loss, accuracy) of the whole network."""
        part = Part(self._data, self._drawn(self._tested(len(proofs))))
        cuts: list[Cut] = [one.cut for one in proofs]
        rows = [
            self._bench.measure(b.inputs, b.classes, cuts, said((len(part), *b.index), b.inputs))
            for b in batches(part, self._batch)
            if b.index
        ]
        scores = np.concatenate(rows, 2)
        known = ~np.isnan(scores[0, 0])
        if not known.any():
            raise CannotRun(
                "not one input has a label that the network knows; give data without labels, or with its own"
            )
        scores = scores[:, :, known]
        removals = [self._removal(n, one, scores[0], scores[n + 1]) for n, one in enumerate(proofs)]
        return removals, (float(scores[0, 0].mean()), float(scores[0, 1].mean()))

    def _tested(self, proofs: int) -> int:
        """Inputs that so many removals are measured on: as many as the option says, fewer where that is far beyond the effort."""
        wanted, effort = self._health.tested, self._health.effort
        if not effort:
            return wanted
        each = macs(self._model) * (proofs + 1)
        return int(min(wanted, max(_FEWEST_TESTED, _PROOF * effort * _WORK // max(each, 1.0))))

    def _removal(self, number: int, proof: Proof, base: Numbers, cut: Numbers) -> Removal:
        rng = np.random.default_rng([self._request.seed, 11, number])
        low, high = zip(
            *(interval(after - before, rng, self._health.draws) for before, after in zip(base, cut, strict=True)),
            strict=True,
        )
        return Removal(
            {path: patch.units for path, patch in proof.cut.items()},
            {path: self._model.layers[path].units for path in proof.cut},
            proof.why,
            proof.how,
            base.shape[1],
            float(base[0].mean()),
            float(cut[0].mean()),
            low[0],
            high[0],
            float(base[1].mean()),
            float(cut[1].mean()),
            low[1],
            high[1],
        )


@dataclass(frozen=True)
class Proof:
    """A set of units that is taken away: why, how, and where."""

    why: str
    how: str
    cut: Mapping[str, Patch]


def _mean(changes: Numbers) -> Numbers:
    """(U, 2, N) → (U, 2), over the inputs that have a label."""
    known = ~np.isnan(changes[0, 0])
    mean: Numbers = changes[:, :, known].mean(2) if known.any() else np.full(changes.shape[:2], np.nan)
    return mean


def default_layers(model: Model) -> list[str]:
    """The convolutions and dense layers, without the one that puts out the class scores; all other layers where there are none."""
    own = [
        path
        for path, layer in model.layers.items()
        if layer.alias_of is None and path not in (LOGITS, model.class_layer)
    ]
    weighted = [path for path in own if model.layers[path].kind in _WEIGHTED and model.layers[path].parameters]
    found = weighted or own or [path for path in model.layers if path != LOGITS]
    if not found:
        raise CannotRun("the network has no layer whose units could be judged")
    return found


def _readable(model: Model, network: Any, layers: Sequence[str], strict: bool) -> list[str]:
    """The layers with one row an input; with `strict`, or where none has, `CannotRun`: which row is whose is not written anywhere."""
    rows: dict[str, int] = {}

    def note(path: str) -> Any:
        return lambda output: rows.update({path: len(output)})

    with torch.inference_mode(), Probe(network, {path: note(path) for path in layers}) as probe:
        probe(model.example(3))
    odd = [path for path in layers if rows[path] != 3]
    if odd and (strict or len(odd) == len(layers)):
        raise CannotRun(
            f"layer {odd[0]!r} puts out {rows[odd[0]]} rows for 3 inputs, so it cannot be diagnosed; leave it out with --layers"
        )
    return [path for path in layers if path not in odd]


class Part:
    """Some inputs of a data set."""

    def __init__(self, data: Data, index: NDArray[np.intp]) -> None:
        self._data, self._index = data, index
        self.name, self.classes = data.name, data.classes

    def __len__(self) -> int:
        return len(self._index)

    def label(self, index: int) -> tuple[str, int | None]:
        return self._data.label(int(self._index[index]))

    def read(self, index: int) -> NDArray[Any]:
        return self._data.read(int(self._index[index]))

    def fingerprint(self) -> str:
        return self._data.fingerprint()

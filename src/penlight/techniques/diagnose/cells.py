"""`cells`: which units of a network on text work, which do not, and which can go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penlight.errors import BadInput
from penlight.inputs import Data, batches
from penlight.models import Model
from penlight.models.language import continues
from penlight.models.places import Place, Rectifier, places
from penlight.models.tracks import token_layers, tracks
from penlight.results.diagnose import ZERO, DiagnoseResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.diagnose.ablation import Truth, find_truth
from penlight.techniques.diagnose.examination import Examination, Part, Proof
from penlight.techniques.diagnose.judging import Judged, Thresholds
from penlight.techniques.diagnose.moments import Moments
from penlight.techniques.diagnose.tally import Tallied
from penlight.techniques.diagnose.text_bench import TextBench, state_of
from penlight.techniques.options import option

_NEAR = 0.99  # of a squashed value's limit
_EVERY = 4  # correlations are read at every so many tokens: neighbours say much the same
_LANES = 32  # stretches of text in one pass
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Cells(Technique):
    """Verdicts on every unit of recurrent and other token layers, each flagged set taken away, and how many units are needed at all.

    All texts are read once for the verdicts. Then units are silenced on stretches of them: what is written to a recurrent unit's state
    is zero from a text's beginning to its end, so that neither the next step nor the next layer hears of it. A network that says what
    comes next is held against what does; another one against the texts' classes, or its own answers. Without `request.layers` the
    hidden states of recurrent layers are judged, or all layers with a value a token where there are none.
    """

    verb: ClassVar[str] = "diagnose"
    name: ClassVar[str] = "cells"
    paper: ClassVar[str] = (
        "saturated cells: Karpathy, Johnson and Fei-Fei 2015, arXiv:1506.02078; ablation: Morcos et al. 2018, arXiv:1803.06959;"
        " bootstrap: Efron 1979"
    )
    kinds: ClassVar[tuple[str, ...]] = ("text",)
    version: ClassVar[int] = 2
    reads_data: ClassVar[bool] = True

    rare: float = option(
        0.01, "nearly dead: a rectified unit fires in less than this share of the texts", low=0.0, high=1.0
    )
    full: float = option(
        0.9, "saturated: within 1 % of the same limit at this share of the tokens or more", low=0.0, high=1.0
    )
    alike: float = option(
        0.99, "duplicate: correlation with another unit, or with a sum of a few, at least this", low=0.5, high=1.0
    )
    combine: int = option(3, "units a duplicate may be the sum of", low=1, high=3)
    drop: float = option(
        0.005,
        "accuracy that may be lost when units go, as a share; of the loss where there are no classes",
        low=0.0,
        high=1.0,
    )
    length: int = option(256, "tokens of a stretch that units are silenced on", low=2, high=65536)
    warm: int = option(32, "tokens at a stretch's beginning that are not counted, as little came before them", low=0)
    tested: int = option(100, "stretches, or texts that are classified, that removals are measured on", low=2)
    tried: int = option(16, "stretches or texts that single units are silenced on, at most", low=2)
    effort: float = option(
        1.0, "work on single units and on the search each, in 10^12 multiply-adds; 0: no limit", low=0.0
    )
    draws: int = option(2000, "draws of the bootstrap", low=100, high=100000)
    replace: ClassVar[str] = ZERO

    def run(self, request: Request) -> DiagnoseResult:
        """`BadInput` without data or if no text can be read; `CannotRun` if a layer has no value a token, or is a gate."""
        if request.data is None:
            raise BadInput("a diagnosis needs data: give a text file, a folder of texts, or strings")
        return Reading(self, request, request.data).result()

    @property
    def limits(self) -> Thresholds:
        """From where on a verdict holds; pictures have no say."""
        return Thresholds(self.rare, self.full, self.alike, self.combine, -1.0)


class Reading(Examination):
    """One run of `Cells`, step by step."""

    _estimates = False
    fewest_tried = 2

    def __init__(self, cells: Cells, request: Request, data: Data) -> None:
        self._health, self._request, self._model = cells, request, request.model  # type: ignore[assignment]
        self._texts, self._full = data, cells.full
        layers = token_layers(self._model, request.layers) if request.layers else default_cells(self._model)
        for path in layers:
            state_of(self._model.network, path)
        self._limits = {path: limit(self._model, path) for path in layers}
        self._places = {path: self._place(path, cells.length) for path in layers}
        nexts = continues(self._model)
        self._data: Data = Stretches(data, cells.length) if nexts else data
        self._batch = _LANES if nexts else 1
        self._truth = Truth(None) if nexts else find_truth(self._model, data)
        self._nexts = nexts
        warm = min(cells.warm, len(self._data.read(0)) // 2) if nexts else 0
        self._bench = TextBench(self._model, self._truth, nexts, warm)  # type: ignore[assignment]
        self._skipped: list[tuple[str, str]] = []
        self._stages, self._stage = 3 * len(layers) + 3, 0
        self._notes = [self._truth.note] if self._truth.note else []

    def _place(self, path: str, length: int) -> Place:
        """The layer as it stands, with the rectifier that it is or that follows at once; `macs` of one stretch."""
        layer = self._model.layers[path]
        macs = float(length * sum(p.numel() for p in self._model.network.parameters() if p.ndim > 1))
        written = state_of(self._model.network, path)
        if written is not None:
            rectifier = Rectifier("relu", 0.0, None, True) if written.rectified else None
            return Place(path, layer.layout, (), rectifier, macs)
        found = places(self._model, [path], self._model.network)[path]
        return Place(path, layer.layout, (), found.rectifier if len(found.steps) == 1 else None, macs)

    def _census(self) -> dict[str, Tallied]:
        tallies = {path: _Tally(self._model.layers[path].units, self._limits[path]) for path in self._places}
        read: set[int] = set()

        def fetch(number: int) -> NDArray[np.int64]:
            try:
                ids: NDArray[np.int64] = self._texts.read(number)
            except BadInput as error:
                self._skipped.append((self._texts.label(number)[0], str(error)))
                raise
            read.add(number)
            return ids

        for stretch in tracks(self._model, len(self._texts), list(tallies), read=fetch):
            for path, tally in tallies.items():
                tally.add(stretch.values[path].float(), stretch.text, stretch.last)
        if not read:
            raise BadInput(
                f"not one of the {len(self._texts)} texts of {self._texts.name} can be read; the first: {self._skipped[0][1]}"
            )
        self._step()
        return {path: tally.done() for path, tally in tallies.items()}

    def _judged(self, found: Mapping[str, Tallied]) -> dict[str, Judged]:
        """None is scaled: a unit that goes is silent, not made of others."""
        return {path: self._saturated(path, one, found[path]) for path, one in super()._judged(found).items()}

    def _saturated(self, path: str, judged: Judged, found: Tallied) -> Judged:
        verdicts = {u: dict(told) for u, told in judged.verdicts.items()}
        details = {u: dict(words) for u, words in judged.details.items()}
        for u in np.flatnonzero(found.full >= self._full).tolist():
            if {"dead", "static"} & set(verdicts.get(u, ())):
                continue
            verdicts.setdefault(u, {})["saturated"] = float(found.full[u])
            words = f"within 1 % of its limit at {found.full[u]:.1%} of the tokens"
            details.setdefault(u, {})["saturated"] = words
        order = sorted(verdicts)
        return replace(
            judged, verdicts={u: verdicts[u] for u in order}, details={u: details[u] for u in order}, scaled={}
        )

    def _held_against(self) -> str:
        return "next tokens" if self._nexts else super()._held_against()

    def _tested(self, proofs: int) -> int:
        return self._health.tested

    def _flagged(self, path: str, judged: Judged, mean: Numbers) -> list[Proof]:
        return [one for one in super()._flagged(path, judged, mean) if one.how == ZERO]

    def _held(self, count: int) -> tuple[NDArray[np.object_], list[int | None]]:
        parts = [b for b in batches(Part(self._data, self._drawn(count)), self._batch) if b.index]
        if not parts:
            raise BadInput(f"not one of the texts drawn from {self._data.name} can be read; give another seed")
        rows = [row for b in parts for row in b.inputs]
        held = np.empty(len(rows), object)  # texts that are classified differ in length
        held[:] = rows
        return held, [c for b in parts for c in b.classes]


def default_cells(model: Model) -> list[str]:
    """Hidden states of recurrent layers; without any all layers with a value a token, but for the class scores."""
    found = list(token_layers(model))
    hidden = [path for path in found if path.rpartition(".")[2].startswith("hidden_l")]
    return hidden or [path for path in found if path != model.class_layer] or found


def limit(model: Model, path: str) -> float:
    """From where on a value, or its negative, counts as a squashed one at its limit; infinite where nothing squashes it."""
    written = state_of(model.network, path)
    if written is None or written.rectified or written.projected:
        return np.inf
    cell = path.rpartition(".")[2].startswith("cell_l")
    return float(np.arctanh(_NEAR)) if cell else _NEAR


class _Tally:
    """Sums of one layer over tokens, fed stretch by stretch."""

    def __init__(self, units: int, limit: float) -> None:
        self._limit, self._tokens, self._texts = limit, 0, 0
        self._above, self._high_full, self._low_full = (torch.zeros(units, dtype=torch.int64) for _ in range(3))
        self._sum = torch.zeros(units, dtype=torch.float64)
        self._high, self._low = torch.full((units,), -torch.inf), torch.full((units,), torch.inf)
        self._firing: dict[int, Tensor] = {}  # texts that are being read → units that were above zero there
        self._fired = torch.zeros(units, dtype=torch.int64)
        self._moments = Moments(units)
        self._samples = 0

    def add(self, values: Tensor, text: int, last: bool) -> None:
        """Values (t, U) of the next tokens of a text."""
        values = values.cpu()
        above = values > 0
        self._tokens += len(values)
        self._above += above.sum(0)
        self._high_full += (values >= self._limit).sum(0)
        self._low_full += (values <= -self._limit).sum(0)
        self._sum += values.double().sum(0)
        self._high = torch.maximum(self._high, values.amax(0))
        self._low = torch.minimum(self._low, values.amin(0))
        fired = self._firing.pop(text, torch.zeros_like(above[0])) | above.any(0)
        if last:
            self._fired += fired
            self._texts += 1
        else:
            self._firing[text] = fired
        rows = values[::_EVERY]
        self._moments.add(rows)
        self._samples += len(rows)

    def done(self) -> Tallied:
        """The sums as shares, means and covariances."""
        tokens = max(self._tokens, 1)
        centre, kin = self._moments.done()
        directions = self._moments.directions(kin, self._tokens)
        high, low = self._high.double().numpy(), self._low.double().numpy()
        full = torch.maximum(self._high_full, self._low_full).numpy() / tokens
        spread = np.sqrt(np.maximum(np.diag(kin), 0.0))
        share, fired = self._above.numpy() / tokens, self._fired.numpy() / max(self._texts, 1)
        mean = self._sum.numpy() / tokens
        return Tallied(
            self._texts, self._samples, share, fired, high, low, high, full, mean, centre, spread, kin, directions
        )


class Stretches:
    """Texts cut into stretches of one length, as inputs; what is left over at a text's end is left out."""

    classes: tuple[str, ...] = ()

    def __init__(self, texts: Data, length: int) -> None:
        self.name, self._texts = texts.name, texts
        sizes = [_size(texts, n) for n in range(len(texts))]
        longest = max(sizes, default=0)
        if longest < 3:
            raise BadInput(f"{texts.name} holds no text of three tokens or more: nothing comes next there")
        self._length = min(length, longest)
        self._places = [
            (n, at) for n, size in enumerate(sizes) for at in range(0, size - self._length + 1, self._length)
        ]
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def label(self, index: int) -> tuple[str, int | None]:
        """(name, None)."""
        text, at = self._places[index]
        return f"{self._texts.label(text)[0]}, token {at}", None

    def read(self, index: int) -> NDArray[np.int64]:
        """Numbers of its tokens (length,)."""
        text, at = self._places[index]
        last = self._last
        if last is None or last[0] != text:
            last = self._last = (text, self._texts.read(text))
        return last[1][at : at + self._length]

    def fingerprint(self) -> str:
        """The texts'."""
        return self._texts.fingerprint()


def _size(texts: Data, number: int) -> int:
    try:
        return len(texts.read(number))
    except BadInput:
        return 0

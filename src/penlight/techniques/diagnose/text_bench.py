"""What a network on text loses without some units: its loss and its hits, text by text, with and without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models import Model, Probe
from penlight.models.language import log_shares
from penlight.models.layers import run, units_first
from penlight.models.probe import first_tensor, frozen_copy
from penlight.models.recurrent import unheard
from penlight.models.tracks import OUTPUT, Reader
from penlight.techniques.diagnose.ablation import Cut, Truth

_WRITES = {
    "LSTM": 2,
    "GRU": 2,
    "RNN_TANH": 0,
    "RNN_RELU": 0,
}  # which rows of PyTorch's weights say what is written to a state
_LANES = 128  # texts in one pass in which units are silenced in turn
Numbers = NDArray[np.float64]


class TextBench:
    """Measures cuts of one network on texts of one length, or on single texts.

    A unit of a recurrent module is silenced for good: what is written to its state is zero at every step, and so, as texts begin with
    a state of zero, is the state, its hidden value, and all that the next step and the next layer hear of it. A unit of any other
    layer is set to zero at every token. With `nexts` the network is held against the tokens that come next, but for the first
    `warm` of a text; else against the texts' classes, or its own answers.
    """

    def __init__(self, model: Model, truth: Truth, nexts: bool, warm: int) -> None:
        self._model, self.truth, self._nexts, self._warm = model, truth, nexts, warm
        self._network = frozen_copy(model.network)
        self._reader = Reader(model, [OUTPUT]) if nexts else None
        if self._reader is not None:
            self._reader.network = self._network
        self._edits: Mapping[str, Any] = {}  # path → what a layer's output is changed to
        self.slow: set[str] = set()

    def whole(self, inputs: NDArray[Any]) -> tuple[Tensor, ...]:
        """What the whole network says of texts, for `measure`: of all at once where they have one length."""
        return tuple(self._scores(inputs[part]) for part in _alike(inputs))

    def measure(
        self,
        inputs: NDArray[Any],
        classes: Sequence[int | None],
        cuts: Sequence[Cut],
        whole: Sequence[Tensor] | None = None,
    ) -> Numbers:
        """(1 + cuts, 2, N): loss and hit of every text, means over its tokens; of the whole network and with each cut.

        `whole` is what the method of that name gave of these texts: then every cut takes one pass, and no pass besides.
        """
        bases = self.whole(inputs) if whole is None else whole
        parts = zip(_alike(inputs), bases, strict=True)
        return np.concatenate([self._measure(inputs[p], classes[p], cuts, base) for p, base in parts], 2)

    def _measure(
        self, inputs: NDArray[Any], classes: Sequence[int | None], cuts: Sequence[Cut], base: Tensor
    ) -> Numbers:
        rows = [np.stack(self._judged(base, base, inputs, classes))]
        for cut in cuts:
            with self.silenced(cut):
                rows.append(np.stack(self._judged(self._scores(inputs), base, inputs, classes)))
        return np.stack(rows)

    def singles(self, path: str, inputs: NDArray[Any], classes: Sequence[int | None], values: object) -> Numbers:
        """(units, 2, N): loss and hit of every text with each unit of a layer silenced, one at a time."""
        return np.concatenate([self._singles(path, inputs[p], classes[p]) for p in _alike(inputs)], 2)

    def _singles(self, path: str, inputs: NDArray[Any], classes: Sequence[int | None]) -> Numbers:
        base, count = self._scores(inputs), self._model.layers[path].units
        written, together = state_of(self._network, path), max(1, _LANES // len(inputs))
        found = []
        for first in range(0, count, together):
            units = range(first, min(first + together, count))
            if written is None or written.projected:
                scores = []
                for unit in units:
                    with self._without(path, (unit,)):
                        scores.append(self._scores(inputs))
            else:
                heard = torch.ones(len(units), len(inputs), count, device=self._model.device)
                heard[range(len(units)), :, list(units)] = 0
                with unheard(written.module, written.layer, heard.flatten(0, 1)):
                    scores = list(torch.split(self._scores(np.concatenate([inputs] * len(units))), len(inputs)))
            found += [np.stack(self._judged(one, base, inputs, classes)) for one in scores]
        return np.stack(found)

    @contextmanager
    def silenced(self, cut: Cut) -> Iterator[None]:
        """Inside the block the units of a cut are silent."""
        with ExitStack() as stack:
            for path, patch in cut.items():
                stack.enter_context(self._without(path, patch.units))
            yield

    @contextmanager
    def _without(self, path: str, units: Sequence[int]) -> Iterator[None]:
        written = state_of(self._network, path)
        if written is None:
            with self._edited(path, list(units)):
                yield
            return
        rows = torch.tensor(units) + written.first
        kept = {name: getattr(written.module, name)[rows].clone() for name in written.weights}
        try:
            for name in kept:
                getattr(written.module, name).data[rows] = 0
            yield
        finally:
            for name, values in kept.items():
                getattr(written.module, name).data[rows] = values

    @contextmanager
    def _edited(self, path: str, units: list[int]) -> Iterator[None]:
        layout = self._model.layer(path).layout

        def zeroed(output: Tensor) -> Tensor:
            changed = output.clone()
            units_first(changed, layout)[:, units] = 0
            return changed

        before, self._edits = self._edits, {**self._edits, path: zeroed}
        try:
            yield
        finally:
            self._edits = before

    def _scores(self, inputs: NDArray[Any]) -> Tensor:
        """(N, T, V) logarithms of the next token's probabilities, or (N, classes) of the classes', or else what is put out."""
        ids = np.stack(list(inputs))
        x = self._model.tensor(ids)
        with torch.inference_mode():
            if self._edits:
                with Probe(self._network, self._edits, cut=False) as probe:
                    output = probe(x)
            else:
                output = run(self._network, x)
            tensor = first_tensor(output)
            if tensor is None:
                raise CannotRun(f"{self._model.reference} puts out no tensor")
            if self._reader is not None:
                return log_shares(self._reader.placed(OUTPUT, tensor, (len(ids), ids.shape[1])))
            flat = tensor.flatten(1).float()
            if self._model.class_layer is None:
                return flat
            if flat.shape[1] == 1:
                flat = torch.cat([torch.zeros_like(flat), flat], 1)
            return log_shares(flat)

    def _judged(
        self, scores: Tensor, base: Tensor, inputs: NDArray[Any], classes: Sequence[int | None]
    ) -> tuple[Numbers, Numbers]:
        """(loss (N,), hit (N,))."""
        if self._nexts:
            ids = torch.from_numpy(np.stack(list(inputs))).to(scores.device)[:, self._warm + 1 :]
            said = scores[:, self._warm : -1]
            loss = -said.gather(2, ids[..., None])[..., 0].mean(1)
            return loss.double().cpu().numpy(), (said.argmax(2) == ids).double().mean(1).cpu().numpy()
        if self._model.class_layer is None:
            power = (base**2).sum(1).clamp_min(1e-12)
            return (((scores - base) ** 2).sum(1) / power).double().cpu().numpy(), np.full(len(scores), np.nan)
        if self.truth.classes is None:
            loss = -(base.exp() * scores).sum(1)
            return loss.double().cpu().numpy(), (scores.argmax(1) == base.argmax(1)).double().cpu().numpy()
        lost, hits = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
        for n, c in enumerate(classes):
            if c is not None and 0 <= c < len(self.truth.classes):
                target = int(self.truth.classes[c])
                lost[n], hits[n] = -float(scores[n, target]), float(scores[n].argmax() == target)
        return lost, hits


def _alike(inputs: NDArray[Any]) -> list[slice]:
    """All texts at once where they have one length, else each by itself."""
    if len({len(ids) for ids in inputs}) == 1:
        return [slice(None)]
    return [slice(n, n + 1) for n in range(len(inputs))]


@dataclass(frozen=True)
class Written:
    """What writes a recurrent layer's states: the module, which layer of it, and the rows from `first` on of some of its weights."""

    module: nn.RNNBase
    layer: str  # "l0", "l1_reverse"
    weights: tuple[str, ...]
    first: int

    @property
    def projected(self) -> bool:
        """Whether the values are projected ones, which no state holds."""
        return self.weights[0].startswith("weight_hr")

    @property
    def rectified(self) -> bool:
        """Whether a ReLU makes them."""
        return bool(self.module.mode == "RNN_RELU")


def state_of(network: nn.Module, path: str) -> Written | None:
    """What writes the states that a track shows; None for any other layer. `CannotRun` for a gate: closing it is no silencing."""
    place, _, name = path.rpartition(".")
    module = network.get_submodule(place) if place else network
    kind, found, number = name.rpartition("_l")
    layer = f"l{number}"
    if not isinstance(module, nn.RNNBase) or not found or not hasattr(module, f"weight_ih_{layer}"):
        return None
    if kind not in ("hidden", "cell"):
        raise CannotRun(f"layer {path!r} is a gate; name its states, {place}.hidden_{layer}, with --layers")
    if kind == "hidden" and getattr(module, f"weight_hr_{layer}", None) is not None:
        return Written(module, layer, (f"weight_hr_{layer}",), 0)
    names = (f"{weight}_{layer}" for weight in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    held = tuple(name for name in names if getattr(module, name, None) is not None)
    return Written(module, layer, held, _WRITES[module.mode] * module.hidden_size)

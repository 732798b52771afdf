"""What the network loses without some units: its loss and its hits, input by input, with and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.inputs import Data
from penlight.models import Model
from penlight.models.layers import run
from penlight.models.places import Following, Patch, Place, pass_through, run_patched
from penlight.models.probe import Probe, first_tensor
from penlight.techniques.diagnose.spread import Spread

_ROOM = 256e6  # bytes of the largest map of a pass in which units are silenced in turn
_MOST = 512  # rows of such a pass
_EQUAL = 2e-3  # of the scores' range: how far a row may be from the same unit silenced alone
Cut = Mapping[str, Patch]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """What the scores are held against: classes of the data as numbers of the network's outputs, or the network's own answers."""

    classes: NDArray[np.int64] | None  # of the data's class numbers; None: the network's own probabilities
    note: str = ""

    @property
    def labelled(self) -> bool:
        return self.classes is not None


def find_truth(model: Model, data: Data) -> Truth:
    """The data's labels where they can be told to be the network's classes."""
    if model.class_layer is None:
        return Truth(
            None, "the network puts out no class scores: the loss is the relative squared change of its output"
        )
    if not data.classes:
        return Truth(None)
    outputs = model.layers[model.class_layer].shape[-1]
    outputs = 2 if outputs == 1 else outputs
    if model.labels is not None and set(data.classes) <= set(model.labels):
        return Truth(np.array([model.labels.index(name) for name in data.classes], np.int64))
    if len(data.classes) <= outputs:
        return Truth(np.arange(len(data.classes), dtype=np.int64))
    return Truth(
        None,
        f"the data's {len(data.classes)} classes are not the network's {outputs}: it is held against its own answers",
    )


class Bench:
    """Measures cuts of one network against the truth."""

    def __init__(self, model: Model, network: nn.Module, places: Mapping[str, Place], truth: Truth) -> None:
        self.model, self.network, self.places = model, network, places
        self._class_layer = model.class_layer  # found by a pass of its own, which must not happen in inference mode
        self.truth = truth
        self.slow: set[str] = set()  # layers whose units had to be silenced one pass each
        self._trusted: set[str] = set()  # layers whose rows were compared with passes of their own

    def scores(self, x: Tensor, cut: Cut | None = None) -> Tensor:
        """(N, classes) before softmax, or (N, outputs) where there are no classes."""
        seen: list[Tensor] = []
        path = self._class_layer
        wanted = {} if path is None else {path: lambda output: seen.append(output)}
        if cut:
            output = run_patched(self.network, self.places, cut, x, wanted)
        elif path is not None:
            with Probe(self.network, wanted, cut=False) as probe:
                output = probe(x)
        else:
            output = run(self.network, x)
        return self.flat(seen[-1].clone() if seen else output)

    def flat(self, output: Any) -> Tensor:
        """The network's output as (N, classes) or (N, outputs)."""
        tensor = first_tensor(output)
        assert tensor is not None
        flat = tensor.flatten(1).float()
        if self._class_layer is not None and flat.shape[1] == 1:
            return torch.cat([torch.zeros_like(flat), flat], 1)
        return flat

    def judged(self, scores: Tensor, base: Tensor, classes: Sequence[int | None]) -> tuple[Numbers, Numbers]:
        """(loss (N,), hit (N,) 0 or 1) of scores; `base` are the whole network's. NaN where an input has no label."""
        scores, base = scores.cpu(), base.cpu()
        if self._class_layer is None:
            power = (base**2).sum(1).clamp_min(1e-12)
            loss = ((scores - base) ** 2).sum(1) / power
            return loss.double().numpy(), np.full(len(scores), np.nan)
        logarithms = scores.double().log_softmax(1)
        if self.truth.classes is None:
            loss = -(base.double().softmax(1) * logarithms).sum(1)
            return loss.numpy(), (scores.argmax(1) == base.argmax(1)).double().numpy()
        known = [n for n, c in enumerate(classes) if c is not None and 0 <= c < len(self.truth.classes)]
        found, hits = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
        target = torch.tensor([int(self.truth.classes[classes[n]]) for n in known])
        rows = torch.tensor(known, dtype=torch.int64)
        found[known] = -logarithms[rows, target].numpy()
        hits[known] = (scores[rows].argmax(1) == target).double().numpy()
        return found, hits

    def judged_scores(self, inputs: NDArray[Any], classes: Sequence[int | None], whole: Bench) -> Numbers:
        """(2, N): loss and hit of every input, held against what `whole` says of it where there are no labels."""
        x = self.model.tensor(inputs)
        with torch.inference_mode():
            base = whole.scores(x.clone())
            return np.stack(self.judged(base if whole is self else self.scores(x.clone()), base, classes))

    def whole(self, inputs: NDArray[Any]) -> tuple[Tensor, ...]:
        """What the whole network says of inputs, for `measure`."""
        with torch.inference_mode():
            return (self.scores(self.model.tensor(inputs).clone()),)

    def measure(
        self,
        inputs: NDArray[Any],
        classes: Sequence[int | None],
        cuts: Sequence[Cut],
        whole: Sequence[Tensor] | None = None,
    ) -> Numbers:
        """(1 + cuts, 2, N): loss and hit of every input, of the whole network and with each cut.

        `whole` is what the method of that name gave of these inputs: then every cut takes one pass, and no pass besides.
        """
        (base,) = self.whole(inputs) if whole is None else whole
        rows = [np.stack(self.judged(base, base, classes))]
        with torch.inference_mode():
            x = self.model.tensor(inputs)
            for cut in cuts:
                rows.append(np.stack(self.judged(self.scores(x.clone(), cut), base, classes)))
        return np.stack(rows)

    def singles(
        self, path: str, inputs: NDArray[Any], classes: Sequence[int | None], values: NDArray[np.floating] | None
    ) -> Numbers:
        """(units, 2, N): loss and hit of every input with each unit of a layer at its value (zero if None), one unit at a time."""
        count = self.model.layers[path].units
        held = torch.zeros(count) if values is None else torch.as_tensor(np.asarray(values, np.float32))
        held = held.to(self.model.device)
        out = np.empty((count, 2, len(inputs)))
        with torch.inference_mode():
            rows = int(np.clip(_ROOM // max(self.places[path].room, 1.0), 1, _MOST))
            some = max(1, rows // count)
            for start in range(0, len(inputs), some):
                part = slice(start, start + some)
                x = self.model.tensor(inputs[part])
                base = self.scores(x.clone())
                out[:, :, part] = self._in_turn(path, x, base, classes[part], held, max(1, rows // len(x)))
        return out

    def _in_turn(
        self, path: str, x: Tensor, base: Tensor, classes: Sequence[int | None], held: Tensor, units: int
    ) -> Numbers:
        count = len(held)
        if path not in self.slow:
            try:
                scores = self._spread(path, x, held, units)
                if self._checked(path, x, base, scores, held):
                    own = base.repeat_interleave(count, 0)
                    loss, hit = self.judged(scores.flatten(0, 1), own, [c for c in classes for _ in range(count)])
                    return np.stack([one.reshape(len(x), count).T for one in (loss, hit)], 1)
            except torch.OutOfMemoryError:
                if units > 1:
                    return self._in_turn(path, x, base, classes, held, units // 2)
                raise
            except (RuntimeError, CannotRun, IndexError, TypeError, ValueError):
                pass  # a network that ties rows together: one unit at a time always works
            self.slow.add(path)
        alone = [self.judged(self.alone(path, x, u, held), base, classes) for u in range(count)]
        return np.stack([np.stack(one) for one in alone])

    def alone(self, path: str, x: Tensor, unit: int, held: Tensor) -> Tensor:
        """Scores with one unit at its value: a pass of its own."""
        return self.scores(x.clone(), {path: Patch((unit,), (float(held[unit]),))})

    def _checked(self, path: str, x: Tensor, base: Tensor, scores: Tensor, held: Tensor) -> bool:
        """Whether the first and the last unit come out as in passes of their own; asked of a layer's first inputs only."""
        if path in self._trusted:
            return True
        room = _EQUAL * max(float(base.max() - base.min()), 1e-6)
        for unit in {0, len(held) - 1}:
            if not float((scores[:, unit] - self.alone(path, x, unit, held)).abs().max()) <= room:
                return False
        self._trusted.add(path)
        return True

    def _spread(self, path: str, x: Tensor, held: Tensor, units: int) -> Tensor:
        """(N, units of the layer, classes): scores with every unit in turn at its value, `units` of them in one pass."""
        place, spread = self.places[path], Spread(self.network)
        x = x.clone()  # a network may write into its input
        parts = []
        for first in range(0, len(held), units):
            chosen = range(first, min(first + units, len(held)))
            spread.again()
            parts.append(self._pass(spread, place, x, held, chosen).view(len(x), len(chosen), -1))
        return torch.cat(parts, 1)

    def _pass(self, spread: Spread, place: Place, x: Tensor, held: Tensor, chosen: range) -> Tensor:
        """(N · chosen, classes): the chosen units in turn, in one pass."""
        seen: list[Tensor] = []

        def visit(_path: str, after: Tensor) -> Tensor:
            return spread.start(after, place.layout, chosen, held)

        wanted = {} if self._class_layer is None else {self._class_layer: seen.append}
        with spread:
            output = pass_through(self.network, Following({place.path: place}, visit), x, wanted)
        last = seen[-1] if seen else first_tensor(output)
        assert last is not None
        return self.flat(spread.finished(last)).clone()

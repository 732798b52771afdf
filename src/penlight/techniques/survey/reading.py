"""Values of every unit of some layers for rows of a table, and their gradients with respect to the network's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import CannotRun
from penlight.models import Layer, Model, Probe

Floats = NDArray[np.float64]
_BYTES = 32e6  # of the values of one forward pass
_FEWEST, _MOST = 32, 8192
_TRIAL = 3  # rows on which layers are tried


class Reading:
    """Reads `layers` of `network`, T units in all; `parts` says which of the T columns are a layer's.

    A unit of a map counts with its maximum over positions.
    """

    def __init__(self, model: Model, network: nn.Module, layers: Mapping[str, Layer]) -> None:
        self.model, self.layers, self._network = model, layers, network
        ends = np.cumsum([0, *(layer.units for layer in layers.values())]).tolist()
        self.parts = {path: slice(a, b) for path, a, b in zip(layers, ends[:-1], ends[1:], strict=True)}
        self.units = int(ends[-1])
        widest = max([self.units, *(int(np.prod(layer.shape)) for layer in model.layers.values())])
        self.chunk = int(np.clip(_BYTES / (4 * widest), _FEWEST, _MOST))

    def values(self, rows: Floats) -> NDArray[np.float32]:
        """(n, T) for rows (n, columns) in their own units; `CannotRun` if a value is not finite."""
        found = np.empty((len(rows), self.units), np.float32)
        for start in range(0, len(rows), self.chunk):
            part = found[start : start + self.chunk]

            def into(path: str, part: NDArray[np.float32] = part) -> Callable[[Tensor], None]:
                def read(output: Tensor) -> None:
                    part[:, self.parts[path]] = self._peak(path, output).float().cpu().numpy()

                return read

            with torch.inference_mode(), Probe(self._network, {path: into(path) for path in self.layers}) as probe:
                probe(self.model.tensor(rows[start : start + self.chunk]))
        if not np.isfinite(found).all():
            row, unit = (int(n) for n in np.argwhere(~np.isfinite(found))[0])
            raise CannotRun(f"{self.name(unit)} is not finite for a row of the data: {_shown(rows[row])}")
        return found

    def outputs(self, path: str, inputs: Tensor, units: range) -> NDArray[np.float32]:
        """(n, units) of a layer at inputs (n, inputs), normalised."""
        found: list[NDArray[np.float32]] = []

        def read(output: Tensor) -> None:
            found.append(self._peak(path, output)[:, units.start : units.stop].float().cpu().numpy())

        with torch.inference_mode(), Probe(self._network, {path: read}) as probe:
            for start in range(0, len(inputs), self.chunk):
                probe(inputs[start : start + self.chunk])
        return np.concatenate(found)

    def slopes(self, path: str, inputs: Tensor, units: range) -> NDArray[np.float32]:
        """(units, n, inputs): gradients of some units of a layer at inputs (n, inputs), normalised."""
        kept: list[Tensor] = []
        leaf = inputs.detach().requires_grad_()
        with torch.enable_grad():
            with Probe(self._network, {path: lambda output: kept.append(self._peak(path, output))}) as probe:
                probe(leaf)
            if kept[0].grad_fn is None:
                raise CannotRun(f"no gradient comes through from layer {path!r} to the input")
            found = [
                torch.autograd.grad(kept[0][:, u].sum(), leaf, retain_graph=True, allow_unused=True)[0] for u in units
            ]
        return np.stack([np.zeros(inputs.shape, np.float32) if g is None else g.cpu().numpy() for g in found])

    def pushed(
        self, path: str, inputs: Tensor, tangents: Iterable[Tensor], units: range
    ) -> Iterator[NDArray[np.float32]]:
        """(n, units) for each of `tangents`: how fast units of a layer change as inputs (n, inputs) move along it.

        The backward pass is linear in what is sent back, and its own gradient is what is wanted: one pass a tangent for all units.
        """
        kept: list[Tensor] = []
        leaf = inputs.detach().requires_grad_()
        with torch.enable_grad():
            with Probe(self._network, {path: lambda output: kept.append(self._peak(path, output))}) as probe:
                probe(leaf)
            value = kept[0][:, units.start : units.stop]
            if value.grad_fn is None:
                raise CannotRun(f"no gradient comes through from layer {path!r} to the input")
            sent = torch.zeros_like(value, requires_grad=True)
            (back,) = torch.autograd.grad(value, leaf, sent, create_graph=True)
        for tangent in tangents:
            (found,) = torch.autograd.grad(back, sent, tangent, retain_graph=True)
            yield found.float().cpu().numpy()

    def name(self, unit: int) -> str:
        """The address of one of the T units."""
        path = next(path for path, part in self.parts.items() if unit < part.stop)
        return f"{path}:{unit - self.parts[path].start}"

    def _peak(self, path: str, output: Tensor) -> Tensor:
        first = self.layers[path].units_first(output)
        return first if first.ndim == 2 else first.flatten(2).amax(2)


def surveyed(model: Model, network: nn.Module, asked: Mapping[str, Layer]) -> dict[str, Layer]:
    """The layers asked for, or all dense and activation layers and the class scores; `CannotRun` for one whose rows are no inputs'."""
    chosen = dict(asked) or _usual(model)
    count = dict[str, int]()

    def note(path: str) -> Callable[[Tensor], None]:
        return lambda output: count.update({path: len(output)})

    with torch.inference_mode(), Probe(network, {path: note(path) for path in chosen}) as probe:
        probe(model.example(_TRIAL))
    odd = [path for path in chosen if count[path] != _TRIAL]
    if odd and (asked or len(odd) == len(chosen)):
        raise CannotRun(f"layer {odd[0]!r} puts out {count[odd[0]]} rows for {_TRIAL} inputs, so it cannot be surveyed")
    return {path: layer for path, layer in chosen.items() if path not in odd}


def _usual(model: Model) -> dict[str, Layer]:
    own = {path: layer for path, layer in model.layers.items() if layer.alias_of is None}
    wanted = {path: layer for path, layer in own.items() if layer.kind == "Linear" or hasattr(_ACTIVATIONS, layer.kind)}
    if model.class_layer is not None:
        wanted[model.class_layer] = model.layers[model.class_layer]
    return {path: layer for path, layer in own.items() if path in wanted} or own


_ACTIVATIONS = nn.modules.activation


def _shown(row: Floats) -> str:
    return ", ".join(f"{value:.4g}" for value in row[:6]) + (", …" if len(row) > 6 else "")

"""`weights`: which units feed which, and what the first layers look for, read off the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from penlight.errors import BadInput, CannotRun
from penlight.models import Layer, Model
from penlight.models.probe import split_call
from penlight.results.weights import LayerWeights, WeightsResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.survey.expand import expanded
from penlight.techniques.survey.wiring import UNKNOWN, sources, weighted

Table = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Weights(Technique):
    """The strongest connections of every unit, and filters of deeper layers expanded to pixels.

    Layers are the convolutions and linear layers of `request.layers`, or all. A connection's strength is the L2 norm of the weights
    between two units as they stand in the network: what lies between, a norm's scale for one, is not counted in. Which unit a weight
    reads is found by trial (see `wiring`). A channel that is a sum, as behind residual connections, counts for each of the units in it;
    where units of one layer are mixed, as by a normalisation over channels, it is said not to be known. An expanded filter is
    the gradient of the unit with respect to the input, with every activation function left out and maximum pooling taken as average
    pooling, which makes the layers below linear (Voss et al.); where something else is not linear there is none.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "weights"
    version: ClassVar[int] = 2
    paper: ClassVar[str] = "Voss et al. 2021, Visualizing Weights, doi:10.23915/distill.00024.007"

    strongest: int = option(6, "connections kept of each unit, in each direction", low=1, high=1000)
    depth: int = option(
        3, "layers of weights, the unit's own counted, that are expanded down to pixels at most; 1: none", low=1, high=8
    )

    def run(self, request: Request) -> WeightsResult:
        """`BadInput` if a layer named has no weights of a known kind."""
        model = request.model
        layers = weighted(model)
        asked = _asked(request, layers)
        try:
            reads = sources(model, layers)
        except CannotRun as error:
            reads, notes = {}, [f"which units feed which is not known: {error}"]
        else:
            notes = []
        starts = dict(zip(layers, np.cumsum([0, *(layer.units for layer in layers.values())]).tolist(), strict=False))
        read = {path: _read(model, path, reads[path]) for path in layers if path in reads}
        names = list(layers)
        owners = np.repeat(np.arange(len(layers)), [layer.units for layer in layers.values()])
        told = {path: _sources(reads.get(path), owners, names) for path in layers}
        pictures = expanded(model, asked, told, self.depth, request.progress)
        chosen = {
            path: LayerWeights(
                **read.get(path, _none(layer.units)).strongest("feed", self.strongest),
                **_onward(read, starts, layers, path).strongest("into", self.strongest),
            )
            for path, layer in layers.items()
        }
        units = {path: layer.units for path, layer in layers.items()}
        return WeightsResult(provenance(self, request), units, told, chosen, pictures, tuple(notes))


def _asked(request: Request, layers: Mapping[str, Layer]) -> list[str]:
    """The layers that are to be expanded; connections are found for all at once."""
    for path in request.layers:
        layer = request.model.layer(path)
        if path not in layers and len(request.layers) == 1:
            raise BadInput(f"layer {path!r} is a {layer.kind}; connections are of convolutions and linear layers")
    return [path for path in (request.layers or layers) if path in layers]


def _sources(reads: NDArray[np.int64] | None, owners: NDArray[np.int64], names: list[str]) -> tuple[str, ...] | None:
    """The layers that feed one: () for the input, None where it is not known."""
    if reads is None or (reads[:, 0] == UNKNOWN).all():
        return None
    return tuple(names[n] for n in np.unique(owners[reads[reads >= 0]]).tolist())


@dataclass(frozen=True)
class _Connections:
    """Between U units and the S at the other end, `which` by number: the weights' share, squares, sum and magnitudes, all (U, S)."""

    which: NDArray[np.int64]
    share: NDArray[np.float64]
    square: NDArray[np.float64]
    sum: NDArray[np.float64]
    size: NDArray[np.float64]

    def turned(self, first: int, units: int, own: int) -> _Connections | None:
        """As the units from number `first` on see it, whose other ends are the units from number `own` on; None if they have no part."""
        there = (self.which >= first) & (self.which < first + units)
        if not there.any():
            return None
        rows = self.which[there] - first
        wide = []
        for values in (self.share, self.square, self.sum, self.size):
            table = np.zeros((units, len(values)))
            table[rows] = values[:, there].T
            wide.append(table)
        return _Connections(own + np.arange(len(self.share)), *wide)

    def strongest(self, name: str, most: int) -> Table:
        """The `most` largest shares of each unit as `LayerWeights` has them; -1 where there are fewer."""
        order = np.argsort(-self.share, axis=1, kind="stable")[:, :most]
        share, square, sums, size = (
            np.take_along_axis(values, order, 1) for values in (self.share, self.square, self.sum, self.size)
        )
        there = square > 0
        sign = np.divide(sums, size, out=np.zeros_like(sums), where=size > 0)
        columns = {
            name: np.where(there, self.which[order] if order.size else -1, -1).astype(np.int32),
            f"{name}_share": np.where(there, share, 0).astype(np.float32),
            f"{name}_norm": np.where(there, np.sqrt(square), 0).astype(np.float32),
            f"{name}_sign": np.where(there, sign, 0).astype(np.float32),
        }
        missing = ((0, 0), (0, most - order.shape[1]))
        return {n: np.pad(v, missing, constant_values=-1 if n == name else 0) for n, v in columns.items()}


def _none(units: int) -> _Connections:
    empty = np.zeros((units, 0))
    return _Connections(np.zeros(0, np.int64), empty, empty, empty, empty)


def _read(model: Model, path: str, reads: NDArray[np.int64]) -> _Connections:
    """What a layer's units read, from its weights; a unit that is read at several places counts once, with all of them."""
    module = model.network.get_submodule(split_call(path)[0])
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    weight = module.weight.detach().float().cpu().numpy().astype(np.float64)
    flat = weight.reshape(*weight.shape[:2], -1)  # (U, channels of a group, places)
    which = np.unique(reads[reads >= 0])
    parts = [
        _by_source(values, reads, which, getattr(module, "groups", 1))
        for values in ((flat**2).sum(2), flat.sum(2), np.abs(flat).sum(2))
    ]
    whole = np.maximum((flat**2).sum((1, 2)), 1e-30)
    return _Connections(which, parts[0] / whole[:, None], *parts)


def _by_source(
    values: NDArray[np.float64], reads: NDArray[np.int64], which: NDArray[np.int64], groups: int
) -> NDArray[np.float64]:
    """(U, S) from (U, channels of a group): channels that read the same unit added up; `reads` is (channels, K)."""
    units, channels = values.shape
    table = np.zeros((len(which), units))
    for group in range(groups):
        rows = slice(group * units // groups, (group + 1) * units // groups)
        for own in reads[group * channels : (group + 1) * channels].T:
            np.add.at(table[:, rows], np.searchsorted(which, own[own >= 0]), values[rows][:, own >= 0].T)
    return table.T


def _onward(
    read: Mapping[str, _Connections], starts: Mapping[str, int], layers: Mapping[str, Layer], path: str
) -> _Connections:
    """What a layer's units feed, in all layers that read them."""
    units = layers[path].units
    found = [
        turned
        for fed, connections in read.items()
        if (turned := connections.turned(starts[path], units, starts[fed])) is not None
    ]
    if not found:
        return _none(units)
    joined = (np.concatenate([getattr(one, n) for one in found], axis=1) for n in ("share", "square", "sum", "size"))
    return _Connections(np.concatenate([one.which for one in found]), *joined)

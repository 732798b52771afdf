"""What is wanted of the network: a number a picture, always to be made as large as possible.

An objective says which layers it reads, and maps their outputs, each (N, units, *positions), to (N,). Objectives are values: they can
be added, subtracted, multiplied, scaled and negated, which makes a new objective and changes none.

>>> mixed = Channel("conv2", 7) - 0.5 * Channel("conv2", 3)
>>> mixed.layers
('conv2',)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Outputs = Mapping[str, Tensor]
"""path of a layer -> its output for the pictures, (N, units, *positions)"""


class Objective(ABC):
    """What every picture of a batch is to do more of. `rows` (N,) says which of the whole batch the pictures are."""

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers that are read."""

    @abstractmethod
    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        """(N,): the higher the better."""

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()}({', '.join(self.layers)})"

    def __add__(self, other: Objective) -> Objective:
        return Sum((self, other))

    def __sub__(self, other: Objective) -> Objective:
        return Sum((self, -other))

    def __mul__(self, other: Objective | float) -> Objective:
        return Product((self, other)) if isinstance(other, Objective) else Scaled(self, float(other))

    def __rmul__(self, other: float) -> Objective:
        return Scaled(self, float(other))

    def __neg__(self) -> Objective:
        return Scaled(self, -1.0)


class OfLayer(Objective):
    """An objective that reads one layer."""

    layer: str

    @property
    def layers(self) -> tuple[str, ...]:
        return (self.layer,)


@dataclass(frozen=True, eq=False)
class UnitAt(OfLayer):
    """One neuron for every picture: unit `index` (N,) at `position` (N, P) of the map, or in the middle of it.

    The middle is where Lucid has it: of an even number the later of the two.
    """

    layer: str
    index: Tensor
    position: Tensor | None = None

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer]
        if self.position is None:
            where: tuple[int, ...] | None = centre(output.shape[2:])
        else:
            places = self.position[rows]
            where = tuple(places[0].tolist()) if bool((places == places[0]).all()) else None
        if where is not None:  # one position for all: a slice, whose gradient is cheaper than that of a scattered read
            return _at(output, where).gather(1, self.index[rows, None])[:, 0]
        return output[(torch.arange(len(rows), device=output.device), self.index[rows], *places.unbind(1))]


@dataclass(frozen=True, eq=False)
class MapOf(OfLayer):
    """The mean over its map of unit `index` (N,), a unit a picture: what keras-vis and Lucid call a filter or channel."""

    layer: str
    index: Tensor

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer]
        return output.flatten(2).mean(2).gather(1, self.index[rows, None])[:, 0] if output.ndim > 2 else (
            output.gather(1, self.index[rows, None])[:, 0]
        )  # fmt: skip


@dataclass(frozen=True)
class Neuron(OfLayer):
    """One unit at one position, or in the middle of its map; the same for all pictures."""

    def __str__(self) -> str:
        at = "" if self.position is None else "@" + ",".join(map(str, self.position))
        return f"neuron({self.layer}:{self.index}{at})"

    layer: str
    index: int
    position: tuple[int, ...] | None = None

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer]
        return _at(output, self.position or centre(output.shape[2:]))[:, self.index]


@dataclass(frozen=True)
class Channel(OfLayer):
    """The mean of a unit over its map; the same unit for all pictures."""

    def __str__(self) -> str:
        return f"channel({self.layer}:{self.index})"

    layer: str
    index: int

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        return outputs[self.layer][:, self.index].flatten(1).mean(1)


@dataclass(frozen=True)
class Probability(OfLayer):
    """A class after softmax: the classes compete, so that it grows as well when the others shrink."""

    layer: str
    index: Tensor | int

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        scores = outputs[self.layer].flatten(2).mean(2) if outputs[self.layer].ndim > 2 else outputs[self.layer]
        shares = scores.softmax(1)
        return shares[:, self.index] if isinstance(self.index, int) else shares.gather(1, self.index[rows, None])[:, 0]


@dataclass(frozen=True)
class Energy(OfLayer):
    """½ Σ a² over a layer, or over one unit's map: DeepDream's "more of whatever you see" (Mordvintsev, Olah & Tyka 2015)."""

    layer: str
    index: int | None = None

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer]
        return (output if self.index is None else output[:, self.index]).flatten(1).square().sum(1) / 2


@dataclass(frozen=True, eq=False)
class Guided(OfLayer):
    """Every position more like the guide's position that it is most like by dot product; `guide` (units, positions) (dream.ipynb)."""

    layer: str
    guide: Tensor

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer].flatten(2)
        guide = self.guide.to(output.device)
        nearest = torch.einsum("uq,nup->nqp", guide, output.detach()).argmax(1)  # (N, P)
        return (guide.T[nearest].transpose(1, 2) * output).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class Direction(OfLayer):
    """Along `vector` (units,) in a layer: mean over positions, or at one, of dot · max(.1, cosine)^`power` (Lucid, objectives.py)."""

    layer: str
    vector: Tensor
    power: float = 0.0
    position: tuple[int, ...] | None = None

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer]
        if self.position is not None:
            output = _at(output, self.position)
        output = output.flatten(2) if output.ndim > 2 else output[..., None]
        vector = self.vector.to(output)
        dot = torch.einsum("u,nup->np", vector, output)
        return (dot * _alike(dot, output.norm(dim=1) * vector.norm(), self.power)).mean(1)


@dataclass(frozen=True, eq=False)
class Inversion(OfLayer):
    """The picture whose features are `features` (units, *positions): −‖Φ(x) − Φ₀‖² / ‖Φ₀‖² (Mahendran & Vedaldi, CVPR 2015)."""

    layer: str
    features: Tensor

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer]
        features = _fitted(self.features.to(output), output.shape[2:])
        return -(output - features).flatten(1).square().sum(1) / features.square().sum().clamp(min=_TINY)


@dataclass(frozen=True, eq=False)
class Caricature(OfLayer):
    """A picture's features, exaggerated: dot · max(.1, dot/‖b‖)^`power` summed over positions (Lucid, recipes/caricature.py)."""

    layer: str
    features: Tensor
    power: float = 1.0

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        output = outputs[self.layer]
        features = _fitted(self.features.to(output), output.shape[2:])
        dot = (output * features).flatten(1).sum(1)
        size = output.flatten(1).norm(dim=1) * features.norm()
        return dot * _alike(dot, size, self.power)


@dataclass(frozen=True)
class Sum(Objective):
    """All parts together."""

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))

    parts: tuple[Objective, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        return _all(self.parts)

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        values = [part(outputs, rows) for part in self.parts]
        return torch.stack(values).sum(0)


@dataclass(frozen=True)
class Product(Objective):
    """Both parts at once: their product, while either is below 0 the lower one, so that two units that are off do not pass for on."""

    def __str__(self) -> str:
        return " * ".join(map(str, self.parts))

    parts: tuple[Objective, Objective]

    @property
    def layers(self) -> tuple[str, ...]:
        return _all(self.parts)

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        one, two = (part(outputs, rows) for part in self.parts)
        return torch.where((one > 0) & (two > 0), one * two, torch.minimum(one, two))


@dataclass(frozen=True)
class Scaled(Objective):
    """`factor` times an objective; a factor of −1 turns the most wanted into the least wanted."""

    def __str__(self) -> str:
        return f"{self.factor:g} * {self.objective}"

    objective: Objective
    factor: float

    @property
    def layers(self) -> tuple[str, ...]:
        return self.objective.layers

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        return self.factor * self.objective(outputs, rows)


@dataclass(frozen=True, eq=False)
class Diverse(Objective):
    """An objective less what the pictures of one group have in common: Σ_{j≠i} ⟨Gram_i, Gram_j⟩ / group size on Gram matrices of length 1.

    `weight` is a share of the objective's own size with `relative`, else a number as in Lucid, whose notebooks take 100.
    `groups` (N,) says which pictures belong together (Olah et al. 2017, "Diversity").
    """

    objective: Objective
    weight: float
    groups: Tensor
    relative: bool = True

    @property
    def layers(self) -> tuple[str, ...]:
        return self.objective.layers

    def __call__(self, outputs: Outputs, rows: Tensor) -> Tensor:
        wanted = self.objective(outputs, rows)
        flat = (
            outputs[self.layers[0]].flatten(2)
            if outputs[self.layers[0]].ndim > 2
            else outputs[self.layers[0]][..., None]
        )
        gram = torch.einsum("nup,nvp->nuv", flat, flat).flatten(1)
        gram = gram / gram.norm(dim=1, keepdim=True).clamp(min=_TINY)
        together: Tensor = (self.groups[rows, None] == self.groups[None, rows]).to(gram)
        shared = ((gram @ gram.T) * (together - torch.eye(len(rows)).to(gram))).sum(1) / together.sum(1)
        size = wanted.detach().abs() if self.relative else torch.ones_like(wanted)
        less: Tensor = self.weight * size * shared
        return wanted - less


_TINY = 1e-30
_LEAST = 0.1  # cosine below which Lucid's objectives stop telling directions apart


def _alike(dot: Tensor, size: Tensor, power: float) -> Tensor:
    if not power:
        return torch.ones_like(dot)
    cosine = (dot / size.clamp(min=_TINY)).clamp(min=_LEAST)
    return torch.pow(cosine, power)


def _fitted(features: Tensor, positions: Sequence[int]) -> Tensor:
    """Features (units, *positions) on a map of another size, by area or bilinear; unchanged where they fit."""
    if tuple(features.shape[1:]) == tuple(positions):
        return features
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(positions)]
    return torch.nn.functional.interpolate(features[None], tuple(positions), mode=mode, align_corners=False)[0]


def _at(output: Tensor, position: Sequence[int]) -> Tensor:
    """(N, units, *positions) -> (N, units) at one position."""
    at: tuple[slice | int, ...] = (slice(None), slice(None), *position)
    return output[at]


def _all(parts: Sequence[Objective]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer for part in parts for layer in part.layers))


def centre(positions: Sequence[int]) -> tuple[int, ...]:
    """The middle of a map; where the number is even, the later of the two, as Lucid has it."""
    return tuple(n // 2 for n in positions)

"""What every unit of every layer does with some inputs, or at several stages of training with one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadUnit, UnknownName
from penlight.results.base import Picture, Provenance, Result
from penlight.results.heat import colours
from penlight.results.visualize import file_name, file_names

_TILE, _WALL = 64, 1200  # pixels a small map is enlarged to about, and a wall is wide at most
_GAP, _PAPER = 2, 251
_BAR_TALL, _BAR_WIDE = 120, 24
_ENERGY = 0.9  # share of a map's energy whose places are counted
SCALES = ("layer", "unit")


@dataclass(frozen=True)
class Display:
    """How maps are turned into colours, as in DeepVis.

    `scale` "layer": the strongest colour is the layer's largest magnitude; "unit": each unit's own. `boost` in [0, 1] lifts weak units:
    a map is divided by its share of the layer's largest magnitude to that power (DeepVis has 0, .3, .5, .8, 1). `gamma` below 1 lifts
    weak values (DeepVis: 1, .7, .5, .3).
    """

    scale: str = "layer"
    boost: float = 0.0
    gamma: float = 1.0

    def strengths(self, maps: NDArray[np.floating]) -> NDArray[np.float64]:
        """Maps (U, …) as strengths in [-1, 1], zero at zero; values that are not finite count as zero."""
        clean: NDArray[np.float64] = np.nan_to_num(np.asarray(maps, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        own = np.abs(clean).reshape(len(clean), -1).max(1, initial=0.0).reshape(-1, *(1,) * (clean.ndim - 1))
        top = float(own.max(initial=0.0))
        if top == 0:
            return np.zeros_like(clean)
        power = 1.0 if self.scale == "unit" else self.boost
        share = np.where(own > 0, own / top, 1.0) ** power
        relative = clean / top / share
        return np.asarray(np.sign(relative) * np.abs(relative) ** self.gamma, np.float64)


class Strongest(NamedTuple):
    """A unit and its largest value: the unit's address with its position, its label if it is a class."""

    unit: str
    label: str | None
    value: float


@dataclass(frozen=True, eq=False)
class ActivationsResult(Result):
    """The values of all units of some layers, for N runs: N inputs, or one input at N checkpoints.

    >>> r = penlight.activations(model, "photo.png")       # doctest: +SKIP
    >>> r["conv2"].shape, r.top("conv2", 3)                # doctest: +SKIP
    ((1, 48, 14, 14), [...])

    runs           names of the inputs or checkpoints
    maps           by layer, (N, units, *positions) float32
    kinds          of the layers, by path
    inputs         (N, *shape), uint8 or float32 before normalisation
    probabilities  (N, classes) after softmax; (N, 0) where the output is not one number a class
    labels         of the classes, or None
    class_layer    the layer that holds the class scores
    display        how pictures are coloured
    """

    kind: ClassVar[str] = "activations"

    provenance: Provenance
    runs: tuple[str, ...]
    maps: Mapping[str, NDArray[np.float32]]
    kinds: Mapping[str, str]
    inputs: NDArray[Any]
    probabilities: NDArray[np.float32]
    labels: tuple[str, ...] | None = None
    class_layer: str | None = None
    display: Display = Display()

    def __getitem__(self, layer: str) -> NDArray[np.float32]:
        """(N, units, *positions) of a layer; `UnknownName` for one that was not read."""
        if layer not in self.maps:
            raise UnknownName("layer that was read", layer, list(self.maps))
        return self.maps[layer]

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths in order of execution."""
        return tuple(self.maps)

    def top(self, layer: str, count: int = 5, run: int = 0) -> list[Strongest]:
        """The layer's units with the largest values in a run, largest first."""
        maps = self[layer][self._run(run)]
        flat = np.where(np.isfinite(maps), maps, -np.inf).reshape(len(maps), -1)
        peaks, places = flat.max(1), flat.argmax(1)
        found = []
        for unit in np.argsort(-peaks, kind="stable")[:count].tolist():
            at = np.unravel_index(places[unit], maps.shape[1:]) if maps.ndim > 1 else ()
            where = "@" + ",".join(str(int(p)) for p in at) if len(at) and math.prod(maps.shape[1:]) > 1 else ""
            found.append(Strongest(f"{layer}:{unit}{where}", self._label(layer, unit), float(peaks[unit])))
        return found

    def ranked(self, run: int = 0, count: int = 5) -> list[tuple[str, float]]:
        """The most probable classes of a run, best first."""
        shares = self.probabilities[self._run(run)]
        order = np.argsort(-shares, kind="stable")[:count].tolist()
        return [(self.labels[c] if self.labels else str(c), float(shares[c])) for c in order]

    def statistics(self, layer: str, run: int = 0) -> dict[str, float | None]:
        """How a layer is used in a run.

        `active` is the share of values above zero, `units` the share of units with any such value; `sparseness` Hoyer's measure of the
        magnitudes, 0 if all are equal and 1 if one is not zero (Hoyer 2004); `places` the share of a map's places that hold 90 % of
        its energy, the mean over units, None for vectors: small where units are local. `mean`, `max` and `min` as they say.
        """
        maps = np.nan_to_num(np.asarray(self[layer][self._run(run)], np.float64))
        sizes = np.abs(maps)
        norm, n = float(np.sqrt((sizes**2).sum())), maps.size
        sparse = (math.sqrt(n) - float(sizes.sum()) / norm) / (math.sqrt(n) - 1) if norm > 0 and n > 1 else None
        return {
            "active": float((maps > 0).mean()),
            "units": float((maps.reshape(len(maps), -1) > 0).any(1).mean()),
            "sparseness": sparse,
            "places": _places(maps),
            "mean": float(maps.mean()),
            "max": float(maps.max()),
            "min": float(maps.min()),
        }

    def summary(self) -> dict[str, Any]:
        return {
            "runs": [
                {
                    "name": name,
                    "top": [{"label": label, "probability": p} for label, p in self.ranked(n)],
                    "layers": [
                        {
                            "layer": path,
                            "kind": self.kinds[path],
                            "shape": list(self.maps[path].shape[1:]),
                            **self.statistics(path, n),
                            "top": [one._asdict() for one in self.top(path, run=n)],
                        }
                        for path in self.maps
                    ],
                }
                for n, name in enumerate(self.runs)
            ]
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {
            "runs": self.runs,
            "layers": list(self.maps),
            "kinds": dict(self.kinds),
            "labels": self.labels,
            "class_layer": self.class_layer,
            "display": vars(self.display),
        }
        arrays = {f"maps-{n}": maps for n, maps in enumerate(self.maps.values())}
        return data, {"inputs": self.inputs, "probabilities": self.probabilities, **arrays}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> ActivationsResult:
        return cls(
            provenance,
            tuple(data["runs"]),
            {path: arrays[f"maps-{n}"] for n, path in enumerate(data["layers"])},
            data["kinds"],
            arrays["inputs"],
            arrays["probabilities"],
            None if data["labels"] is None else tuple(data["labels"]),
            data["class_layer"],
            Display(**data["display"]),
        )

    def pictures(self) -> Iterable[Picture]:
        """A wall of maps, or bars, for every layer and run."""
        names = file_names(self.runs) if len(self.runs) > 1 else [""]
        for n, run in enumerate(names):
            for path in self.maps:
                name = file_name(path) + (f"-{run}" if run else "")
                told = self.statistics(path, n)
                used = f"{told['active']:.0%} of the values above zero, {told['units']:.0%} of the units"
                yield Picture(name, self.wall(path, n), f"{path} of {self.runs[n]}: {used}")

    def wall(self, layer: str, run: int = 0) -> NDArray[np.uint8]:
        """(H, W, 3): all maps of a layer side by side, red above zero and blue below if any value is negative; vectors as bars."""
        maps = self[layer][self._run(run)]
        signed = bool((np.nan_to_num(maps) < 0).any())
        strengths = self.display.strengths(maps)
        if maps.ndim == 1 or math.prod(maps.shape[1:]) == 1:
            return _bars(strengths.reshape(-1), signed)
        if maps.ndim == 2:  # a signal or tokens: a row a unit
            return _enlarged(colours(strengths if signed else np.clip(strengths, 0, 1), signed), _WALL)
        flat = strengths.reshape(len(maps), -1, maps.shape[-1])  # a volume's slices stand below each other
        return _tiled(colours(flat if signed else np.clip(flat, 0, 1), signed))

    def _label(self, layer: str, unit: int) -> str | None:
        return self.labels[unit] if self.labels and layer == self.class_layer and unit < len(self.labels) else None

    def _run(self, run: int) -> int:
        if not 0 <= run < len(self.runs):
            raise BadUnit(f"there are runs 0 to {len(self.runs) - 1}; there is no {run}")
        return run


def _places(maps: NDArray[np.float64]) -> float | None:
    """Mean over the units that answer at all of the share of places that hold 90 % of the energy."""
    flat = np.sort(maps.reshape(len(maps), -1) ** 2, axis=1)[:, ::-1]
    if flat.shape[1] < 2:
        return None
    total = flat.sum(1)
    flat, total = flat[total > 0], total[total > 0]
    if not len(flat):
        return None
    needed = (np.cumsum(flat, axis=1) < _ENERGY * total[:, None]).sum(1) + 1
    return float((needed / flat.shape[1]).mean())


def _tiled(tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(U, h, w, 3) side by side on paper, small ones enlarged."""
    count, height, width = tiles.shape[:3]
    scale = max(1, _TILE // max(height, width))
    tiles = tiles.repeat(scale, 1).repeat(scale, 2)
    tall, wide = height * scale + _GAP, width * scale + _GAP
    across = max(1, min(count, round(math.sqrt(count * tall / wide * 1.6)), _WALL // wide or 1))
    down = math.ceil(count / across)
    wall = np.full((down * tall + _GAP, across * wide + _GAP, 3), _PAPER, np.uint8)
    for n, tile in enumerate(tiles):
        y, x = _GAP + n // across * tall, _GAP + n % across * wide
        wall[y : y + tall - _GAP, x : x + wide - _GAP] = tile
    return wall


def _enlarged(pixels: NDArray[np.uint8], most: int) -> NDArray[np.uint8]:
    scale = max(1, min(8, most // max(pixels.shape[:2])))
    return pixels.repeat(scale, 0).repeat(scale, 1)


def _bars(strengths: NDArray[np.float64], signed: bool) -> NDArray[np.uint8]:
    """(H, W, 3): a bar a number, from zero upwards or downwards."""
    wide = max(1, min(_BAR_WIDE, _WALL // max(len(strengths), 1)))
    zero = _BAR_TALL // 2 if signed else _BAR_TALL - 1
    reach = _BAR_TALL - 1 - zero if signed else zero
    canvas = np.full((_BAR_TALL, max(1, len(strengths)) * wide, 3), _PAPER, np.uint8)
    painted = colours(np.clip(strengths, -1 if signed else 0, 1), signed)
    for n, (strength, colour) in enumerate(zip(strengths.tolist(), painted, strict=True)):
        end = zero - round(strength * reach)
        top, bottom = sorted((zero, end))
        gap = 1 if wide > 3 else 0
        canvas[max(top, 0) : bottom + 1, n * wide : (n + 1) * wide - gap] = colour
    canvas[zero] = 116
    return canvas

"""`dissect`: which drawn concepts units pick out, as Network Dissection measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from penlight.errors import BadInput, CannotRun
from penlight.inputs import Batch, batches
from penlight.models import Layer, Model, Probe
from penlight.results.labels import LabelsResult
from penlight.techniques.contract import Request, Technique
from penlight.techniques.options import option, provenance
from penlight.techniques.survey import histogram
from penlight.techniques.survey.masks import VOID, Masks

_BITS = 7  # of the fraction: a threshold is found to 1/128 of its value
_UNITS = 32  # maps enlarged at once


@dataclass(frozen=True)
class Dissect(Technique):
    """The overlap of each unit's strongest places with concepts that somebody has drawn on the pictures.

    A unit's threshold is the value that the share `quantile` of its activations over all pictures and positions exceeds, found in a
    first pass from histograms, to 1/128 of its value. In a second pass its maps are enlarged to the picture (bilinear) and cut there;
    the score of a concept is the area that both cover over the area that either covers, summed over the data. Masks hold a number a
    pixel: 0 is nothing, 255 is left out. Without `request.layers` every layer with maps is dissected.
    """

    verb: ClassVar[str] = "survey"
    name: ClassVar[str] = "dissect"
    paper: ClassVar[str] = "Bau et al. 2017, Network Dissection, arXiv:1704.05796"
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    reads_data: ClassVar[bool] = True

    masks: str = option("", "folder of .png masks named as the pictures are, or .npz with 'masks' (N, H, W)")
    names: str = option(
        "", "names of the concepts from number 0: a JSON list or table, or a name a line; else names.* beside the masks"
    )
    quantile: float = option(0.005, "share of a unit's activations above its threshold", low=1e-6, high=0.5)
    least: float = option(0.04, "overlap from which a unit gets a label", low=0.0, high=1.0)
    batch: int = option(8, "inputs in one forward pass", low=1, high=4096)

    def run(self, request: Request) -> LabelsResult:
        """`BadInput` without data or masks, or where they do not fit; `CannotRun` if no layer has maps."""
        model, data = request.model, request.data
        if data is None or model.contract.kind != "image":
            raise BadInput("dissect needs pictures and a mask for each: give a folder of pictures or an .npz file")
        masks = Masks(self.masks, self.names, data, model.contract)
        layers = _layers(request)
        network = model.prepared(keep=list(layers))
        heights = _Heights(layers)
        total, passed, skipped = 2 * len(data), 0, 0
        for batch in batches(data, self.batch):
            skipped += len(batch.skipped)
            _read(model, network, layers, batch, heights.add)
            passed += len(batch.index) + len(batch.skipped)
            request.progress(passed, total)
        if not heights.inputs:
            raise BadInput(f"not one of the {len(data)} inputs of {data.name} can be read")
        thresholds, shares = heights.thresholds(self.quantile)
        overlap = _Overlap(layers, thresholds, model.contract.size)
        for batch in batches(data, self.batch):
            if batch.index:
                drawn = torch.from_numpy(np.stack([masks.read(n) for n in batch.index]))
                overlap.drawn(drawn)
                _read(model, network, layers, batch, lambda path, maps, drawn=drawn: overlap.add(path, maps, drawn))  # type: ignore[misc]
            passed += len(batch.index) + len(batch.skipped)
            request.progress(passed, total)
        return self._result(request, overlap, masks.names, thresholds, shares, heights.inputs, skipped)

    def _result(
        self, request: Request, overlap: _Overlap, names: list[str] | None, thresholds: Mapping[str, NDArray[np.float64]],
        shares: Mapping[str, NDArray[np.float64]], count: int, skipped: int,
    ) -> LabelsResult:  # fmt: skip
        concepts = overlap.concepts()
        if not len(concepts):
            raise BadInput("the masks name nothing: all their pixels are 0 or 255")
        words = tuple(names[n] if names is not None and n < len(names) else str(n) for n in concepts.tolist())
        index, score = {}, {}
        for path in thresholds:
            ratio = overlap.ratio(path, concepts)
            order = np.argsort(-ratio, axis=1, kind="stable")
            index[path] = order.astype(np.int32)
            score[path] = np.take_along_axis(ratio, order, 1).astype(np.float32)
        numbers = {path: {"threshold": thresholds[path], "above": shares[path]} for path in thresholds}
        how = f"IoU over {count:,} pictures of the places above each unit's {1 - self.quantile:.2%} quantile"
        notes = (f"{skipped} inputs could not be read",) if skipped else ()
        return LabelsResult(
            provenance(self, request), words, index, score, numbers, "IoU", how, self.least, count, notes
        )


def _layers(request: Request) -> dict[str, Layer]:
    model = request.model
    if request.layers:
        chosen = {path: model.layer(path) for path in request.layers}
        flat = [path for path, layer in chosen.items() if len(layer.positions) != 2]
        if flat:
            raise BadInput(
                f"layer {flat[0]!r} puts out {list(chosen[flat[0]].shape)}, no maps; dissect takes layers with maps"
            )
        return chosen
    found = {p: layer for p, layer in model.layers.items() if layer.alias_of is None and len(layer.positions) == 2}
    if not found:
        raise CannotRun(f"no layer of {model.reference} puts out maps, so there is nothing to lay over a mask")
    return found


def _read(
    model: Model, network: nn.Module, layers: Mapping[str, Layer], batch: Batch, add: Callable[[str, Tensor], None]
) -> None:
    """Hand every layer's maps (n, U, h, w) of a batch to `add`."""
    if not batch.index:
        return

    def reader(path: str, layer: Layer) -> Any:
        def read(output: Tensor) -> None:
            if len(output) != len(batch.index):
                raise CannotRun(
                    f"layer {path!r} puts out {len(output)} rows for {len(batch.index)} inputs; leave it out"
                )
            add(path, layer.units_first(output).float())

        return read

    with torch.inference_mode(), Probe(network, {path: reader(path, layer) for path, layer in layers.items()}) as probe:
        probe(model.tensor(batch.inputs))


class _Heights:
    """Histograms of every unit's activations over inputs and positions, and the thresholds they give."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._counts = {
            path: torch.zeros((layer.units, histogram.size(_BITS)), dtype=torch.int64) for path, layer in layers.items()
        }
        self._first = next(iter(layers))
        self.inputs = 0

    def add(self, path: str, maps: Tensor) -> None:
        flat = maps.cpu().transpose(0, 1).flatten(1).contiguous()  # (U, n · positions)
        counts = self._counts[path]
        good = torch.isfinite(flat)
        counts.scatter_add_(1, histogram.bins(flat, _BITS).long(), good.long())
        self.inputs += len(maps) if path == self._first else 0

    def thresholds(self, quantile: float) -> tuple[dict[str, NDArray[np.float64]], dict[str, NDArray[np.float64]]]:
        """By layer (U,): the lowest edge of a bin above which the share of values is at most `quantile`, and that share."""
        edges = histogram.edges(_BITS)
        found, shares = {}, {}
        for path, counts in self._counts.items():
            table = counts.numpy()
            total = np.maximum(table.sum(1, keepdims=True), 1)
            above = 1 - np.cumsum(table, axis=1) / total  # share in higher bins
            place = (above <= quantile + 1e-12).argmax(1)
            found[path] = edges[place + 1]
            shares[path] = np.maximum(np.take_along_axis(above, place[:, None], 1)[:, 0], 0)
        return found, shares


class _Overlap:
    """Pixels that units and concepts cover, each and together."""

    def __init__(
        self, layers: Mapping[str, Layer], thresholds: Mapping[str, NDArray[np.float64]], size: tuple[int, ...]
    ) -> None:
        # a bin above zero holds its lower edge, so values at the threshold are above it; in float32, as maps are
        lowest = {
            p: np.where(t > 0, np.nextafter(t.astype(np.float32), np.float32(-np.inf)), t).astype(np.float32)
            for p, t in thresholds.items()
        }
        self._thresholds = {path: torch.from_numpy(values) for path, values in lowest.items()}
        self._size = size
        self._both = {path: np.zeros((layer.units, 0), np.int64) for path, layer in layers.items()}
        self._unit = {path: np.zeros(layer.units, np.int64) for path, layer in layers.items()}
        self._concept = np.zeros(0, np.int64)

    def drawn(self, masks: Tensor) -> None:
        """Count the pixels of each concept in (n, H, W)."""
        most = max(len(self._concept), int(masks.max()) + 1)
        if int(masks.min()) < 0 or most > 1 << 16:
            raise BadInput(f"masks hold numbers from {int(masks.min())} to {int(masks.max())}; concepts are 0 to 65535")
        self._concept = _grown(self._concept, most) + np.bincount(masks.reshape(-1).numpy(), minlength=most)
        self._both = {path: _grown(table, most) for path, table in self._both.items()}

    def add(self, path: str, maps: Tensor, masks: Tensor) -> None:
        """Count what units of (n, U, h, w) cover of (n, H, W)."""
        most, known = len(self._concept), (masks != VOID)[:, None]
        for part in _parts(maps.shape[1]):
            wide = nn.functional.interpolate(maps[:, part], size=self._size, mode="bilinear", align_corners=False).cpu()
            on = (wide > self._thresholds[path][part][None, :, None, None]) & known
            where, units, rows, columns = on.nonzero(as_tuple=True)
            cell = units * most + masks[where, rows, columns]
            count = len(on[0])
            both = torch.bincount(cell, minlength=count * most).view(count, most).numpy()
            self._both[path][part] += both
            self._unit[path][part] += both.sum(1)

    def concepts(self) -> NDArray[np.intp]:
        """Numbers of the concepts that were drawn anywhere."""
        drawn = self._concept > 0
        drawn[[n for n in (0, VOID) if n < len(drawn)]] = False
        return np.flatnonzero(drawn)

    def ratio(self, path: str, concepts: NDArray[np.intp]) -> NDArray[np.float64]:
        """(U, concepts) intersection over union."""
        both = self._both[path][:, concepts].astype(np.float64)
        either = self._unit[path][:, None] + self._concept[concepts] - both
        return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def _parts(units: int) -> Iterator[slice]:
    yield from (slice(start, min(start + _UNITS, units)) for start in range(0, units, _UNITS))


def _grown(table: NDArray[np.int64], columns: int) -> NDArray[np.int64]:
    """The table with so many columns, new ones empty."""
    missing = [(0, 0)] * (table.ndim - 1) + [(0, columns - table.shape[-1])]
    return np.pad(table, missing)

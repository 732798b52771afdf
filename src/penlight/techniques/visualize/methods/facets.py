"""Kinds among a unit's inputs: deep codes, PCA, t-SNE, k-means."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.models import Layer, Model, Probe
from penlight.models.probe import undisturbed
from penlight.techniques.visualize.schedule import stream

_COMPONENTS, _PERPLEXITY, _STARTS = 50, 30.0, 10
_BATCH = 32
_FEW = 4  # fewer examples than this have no neighbourhoods: they are clustered by their principal components


def deep_layer(model: Model, named: str = "") -> Layer | None:
    """The layer that codes are read at: `named`, or the last one before the class scores, a vector before a map; None: the input.

    For AlexNet that is fc7 after its ReLU, as published; where only maps come before the scores, their means.
    """
    if named:
        return model.layer(named)
    order = list(model.layers)
    scores = model.class_layer
    upto = order[: order.index(scores) + 1] if scores in order else order
    # the scores come of the last layer that has weights; what is behind it is a class's, too
    last = max((n for n, path in enumerate(upto) if model.layers[path].parameters), default=len(upto) - 1)
    own = [
        model.layers[path]
        for path in upto[:last]
        if model.layers[path].alias_of is None and model.layers[path].units > 1
    ]
    # a vector that a map came after belongs to a side branch, as in squeeze and excitation
    flat = next((n for n in range(len(own), 0, -1) if not _is_vector(own[n - 1])), 0)
    vectors = own[flat:]
    return vectors[-1] if vectors else own[-1] if own else None


def _is_vector(layer: Layer) -> bool:
    return all(n == 1 for n in layer.positions)


def codes(model: Model, layer: Layer | None, inputs: Sequence[Callable[[], NDArray[Any]]]) -> NDArray[np.float64]:
    """(N, units): what the layer answers to each input (*shape), averaged over its map; the input itself without a layer.

    Inputs are read when their turn comes: a class may have more of them than fit into memory.
    """
    if layer is None:
        return np.stack([model.contract.normalize(read()[None])[0].ravel() for read in inputs]).astype(np.float64)
    found: list[NDArray[np.float64]] = []

    def see(output: torch.Tensor) -> None:
        units = layer.units_first(output).double()
        found.append((units.flatten(2).mean(2) if units.ndim > 2 else units).cpu().numpy().copy())

    with undisturbed(model.network), torch.inference_mode(), Probe(model.network, {layer.path: see}) as probe:
        for at in range(0, len(inputs), _BATCH):
            some = [model.tensor(read()[None]) for read in inputs[at : at + _BATCH]]
            # always as many, so that a code does not depend on its company
            probe(torch.cat(some + some[:1] * (_BATCH - len(some))))
            found[-1] = found[-1][: len(some)]
    return np.concatenate(found)


def clusters(
    known: NDArray[np.float64], facets: int, nearest: int, name: tuple[object, ...]
) -> list[NDArray[np.int64]]:
    """Rows of `known` (N, units) that stand for each facet, nearest to its centre first, `nearest` at most; the largest facet first.

    PCA to 50 numbers, t-SNE to 2, k-means. `name` names the random numbers.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    count = min(facets, len(known))
    if count <= 1:
        away = np.linalg.norm(known - known.mean(0), axis=1)
        return [np.argsort(away, kind="stable")[:nearest]]
    seed = int(torch.randint(2**31 - 1, (1,), generator=stream("facets", *name)))
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore")  # equal inputs make fewer clusters than were asked for, which is seen below
        plane = _plane(known, seed)
        found = KMeans(count, n_init=_STARTS, random_state=seed).fit(plane)
    members = []
    for number in range(count):
        rows = np.flatnonzero(found.labels_ == number)
        if len(rows):
            away = np.linalg.norm(plane[rows] - found.cluster_centers_[number], axis=1)
            members.append((len(rows), rows[np.argsort(away, kind="stable")][:nearest]))
    members.sort(key=lambda one: (-one[0], int(one[1][0])))
    return [rows for _, rows in members]


def _plane(known: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(N, 2): PCA, then t-SNE, exact, so that it comes out the same every time."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    components = min(_COMPONENTS, *known.shape)
    reduced: NDArray[np.float64] = PCA(components, svd_solver="full").fit_transform(known)
    if len(known) < _FEW or not np.ptp(reduced, axis=0).any():
        return reduced[:, :2]
    perplexity = min(_PERPLEXITY, (len(known) - 1) / 3)
    plane: NDArray[np.float64] = TSNE(
        2, perplexity=perplexity, init="random", method="exact", random_state=seed
    ).fit_transform(reduced)
    return plane.astype(np.float64)

"""Lists of examples: what is shown of the candidates, what is kept beside it, and the way back, for shards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.results import LayerSurvey
from penlight.techniques.survey.twins import choose

RESERVE = 2  # candidates kept for each example shown, where twins are left out
_TOP, _BOTTOM = 0, 1


@dataclass(frozen=True)
class Listing:
    """Some units' candidates in order, (U, m): inputs, -1 where unfilled, activations, positions (U, m, P), boxes (U, m, 4 or 0)."""

    index: NDArray[np.int64]
    activation: NDArray[np.float32]
    position: NDArray[np.int32]
    box: NDArray[np.int32]

    def take(self, places: NDArray[np.intp]) -> Listing:
        """The candidates at (U, w) places, unfilled where those are -1."""
        at, gone = np.maximum(places, 0), places < 0

        def taken(array: Any, unfilled: int = 0) -> Any:
            found = np.take_along_axis(array, at if array.ndim == 2 else at[:, :, None], 1)
            found[gone] = unfilled
            return found

        return Listing(taken(self.index, -1), taken(self.activation), taken(self.position), taken(self.box))


def shown(
    top: Listing, bottom: Listing | None, counts: tuple[int, int], twins: Mapping[int, set[int]]
) -> dict[str, NDArray[Any]]:
    """A `LayerSurvey`'s fields of examples: `counts` of the top and the bottom candidates, no two of them twins."""
    fields: dict[str, NDArray[Any]] = {}
    spare: list[NDArray[np.int64]] = []
    others: list[Listing] = []
    for which, listing in ((_TOP, top), (_BOTTOM, bottom)):
        if listing is None:
            continue
        first, rest, of = choose(listing.index, counts[which], twins)
        name, chosen, left = ("top", "bottom")[which], listing.take(first), listing.take(rest)
        fields |= {f"{name}_{key}": value for key, value in vars(chosen).items()}
        spare.append(np.stack([np.full_like(of, which), left.index, of], axis=2))
        others.append(left)
    places = [np.concatenate([one.position, one.box], axis=2) for one in others]
    return fields | {
        "spare": np.concatenate(spare, axis=1),
        "spare_activation": np.concatenate([one.activation for one in others], axis=1),
        "spare_place": np.concatenate(places, axis=1),
    }


def together(parts: Sequence[LayerSurvey], which: str, most: int) -> Listing:
    """The first `most` candidates of some surveys' lists, `which` of "top" and "bottom", as one survey would have kept them."""
    kept = [_candidates(part, which) for part in parts]
    index, activation, position, box = (
        np.concatenate([getattr(one, name) for one in kept], axis=1)
        for name in ("index", "activation", "position", "box")
    )
    empty = index < 0
    value = -activation if which == "top" else activation
    order = np.lexsort((index, np.where(empty, np.inf, value), empty), axis=1)[:, :most]
    order = np.pad(order, ((0, 0), (0, max(0, most - order.shape[1]))), constant_values=-1)
    return Listing(index, activation, position, box).take(order)


def _candidates(part: LayerSurvey, which: str) -> Listing:
    index, activation, position, box = (
        getattr(part, f"{which}_{name}") for name in ("index", "activation", "position", "box")
    )
    axes = position.shape[2]
    own = part.spare[:, :, 0] == (_TOP if which == "top" else _BOTTOM)
    return Listing(
        np.concatenate([index, np.where(own, part.spare[:, :, 1], -1)], axis=1),
        np.concatenate([activation, part.spare_activation], axis=1),
        np.concatenate([position, part.spare_place[:, :, :axes]], axis=1),
        np.concatenate([box, part.spare_place[:, :, axes:]], axis=1),
    )

"""What stands in for what is taken away from an input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.errors import BadOption
from penlight.models.front import FrontContract
from penlight.techniques.explain.background import background

if TYPE_CHECKING:
    from penlight.techniques.explain.explanation import Scene

FILLS = ("zeros", "mean", "blur", "noise", "black")
TOKENS = ("unknown", "space")
TOKEN_HELP = (
    "for text the token for what is unknown, or a space; auto is a space for characters, which a network has met everywhere, while the"
    " token for what is unknown may be one it has hardly ever met; for words it is the latter"
)
FILL_HELP = (
    "what stands in for what is taken away: 0 as the network sees it, the input's own mean, the input blurred, noise of its range, or 0"
    " before normalisation"
)
_ROWS = 4096  # of the data, for their mean
_BLURRED = 0.06  # sigma of the blur, of the shorter side


def filled(scene: Scene, kind: str) -> Tensor:
    """(1, *shape), normalised: the input with everything taken away.

    "mean" is the input's, a channel each; for a table row, that of the data if there is any. "unknown" and "space" are tokens of a
    text. Raises `BadOption` for a kind that the input cannot have.
    """
    x, contract = scene.x, scene.model.contract
    if kind in TOKENS:
        return _of_token(scene, kind)
    if kind == "zeros":
        return torch.zeros_like(x)
    if kind == "black":
        mean, std = (torch.from_numpy(part).to(x) for part in contract.statistics())
        return (-mean / std).expand_as(x).clone()
    if x.ndim < 3:
        return _of_row(scene, kind)
    places = tuple(range(2, x.ndim))
    if kind == "mean":
        return x.mean(places, keepdim=True).expand_as(x).clone()
    if kind == "noise":
        low, high = x.amin(places, keepdim=True), x.amax(places, keepdim=True)
        drawn = torch.from_numpy(scene.rng("fill").random(tuple(x.shape), "float32")).to(x)
        return low + (high - low) * drawn
    return blurred(x, _BLURRED * min(x.shape[2:]))


def token(scene: Scene) -> str:
    """What stands in for tokens where nobody says: "space", "unknown", or "mean" where the vocabulary has neither."""
    contract = scene.model.contract
    assert isinstance(contract, FrontContract)
    known = _stand_ins(contract)
    order = TOKENS if contract.text is not None and contract.text.tokens == "words" else TOKENS[::-1]
    return next((kind for kind in order if kind in known), "mean")


def _stand_ins(contract: FrontContract) -> dict[str, int]:
    text = contract.text
    assert text is not None
    found = {"unknown": text.unknown, "space": text.numbers.get(" ")}
    return {kind: n for kind, n in found.items() if n is not None}


def _of_token(scene: Scene, kind: str) -> Tensor:
    contract = scene.model.contract
    if not isinstance(contract, FrontContract):
        raise BadOption(f"fill {kind!r} is a token of a text; this input is none: use {', '.join(FILLS)}")
    known = _stand_ins(contract)
    if kind not in known:
        has = f"; it has {', '.join(known)}" if known else ""
        raise BadOption(f"fill {kind!r} is not in the vocabulary of {scene.model.reference}{has}: use zeros or mean")
    column = torch.from_numpy(contract.stand_in(known[kind])).to(scene.x)
    return column[None, :, None].expand_as(scene.x).clone()


def _of_row(scene: Scene, kind: str) -> Tensor:
    x, data = scene.x, scene.data
    if kind == "mean" and data is not None:
        rows = background(data, scene.model.contract, _ROWS).rows
        return scene.model.tensor(rows).mean(0, keepdim=True)
    needs = "needs data to take it from" if kind == "mean" else "is for inputs with axes in space or time"
    raise BadOption(f"fill {kind!r} {needs}; this input is a row of {x.shape[1]} numbers: use zeros or black")


def blurred(x: Tensor, sigma: float) -> Tensor:
    """`x` (N, C, *places) under a Gaussian of `sigma` pixels on every axis of space, borders repeated."""
    radius = max(1, math.ceil(3 * sigma))
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / max(sigma, 1e-6)) ** 2)
    kernel = kernel / kernel.sum()
    for axis in range(2, x.ndim):
        moved = x.movedim(axis, -1)
        flat = moved.reshape(-1, 1, moved.shape[-1])
        wide = F.pad(flat, (radius, radius), mode="replicate")
        x = F.conv1d(wide, kernel[None, None]).reshape(moved.shape).movedim(-1, axis)
    return x

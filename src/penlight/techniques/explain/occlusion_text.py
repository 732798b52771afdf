"""A text with one stretch of tokens covered at a time: how the value changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.errors import BadOption, CannotRun
from penlight.models.front import FrontContract
from penlight.techniques.explain.chunks import in_chunks
from penlight.techniques.explain.explanation import Attribution, Scene
from penlight.techniques.explain.fills import filled, token
from penlight.techniques.explain.occlusion_grid import grids
from penlight.techniques.explain.rows import at_once
from penlight.techniques.explain.stretches import PIECES, Span, auto_pieces, pieces

_AT_ONCE = 64  # texts: of a recurrent network, more are little faster


def occluded_text(scene: Scene, contract: FrontContract, window: str, stride: str, fill: str) -> Attribution:
    """(T,): the mean drop of the aim's value over the windows of tokens that cover a place."""
    if fill == "rows":
        raise BadOption("fill 'rows' is for rows of a table; this input is a text: use space, unknown, zeros or mean")
    kind = fill if fill != "auto" else token(scene)
    spans, told = _windows(contract, window, stride)
    values = _values(scene, spans, kind)
    drops, size = scene.value - values, len(contract.ids)
    sums, counts = np.zeros(size), np.zeros(size)
    for (start, stop), drop in zip(spans, drops, strict=True):
        sums[start:stop] += drop
        counts[start:stop] += 1
    least = int(values.argmin())
    evidence: dict[str, Any] = {
        "positions": len(spans),
        "window": told,
        "covered by": kind,
        "lowest value": float(values[least]),
        "lowest at": repr(contract.told(*spans[least])),
    }
    extras = {"scores": values.astype(np.float32), "spans": np.array(spans, np.int32)}
    return Attribution((sums / counts).astype(np.float32), True, evidence, (), extras)


def _windows(contract: FrontContract, window: str, stride: str) -> tuple[list[Span], str]:
    """The windows, and their size in words."""
    asked, size = window.strip() or auto_pieces(contract), len(contract.ids)
    if asked in PIECES:
        if stride.strip():
            raise BadOption(
                f"option stride is for windows of a number of tokens; with {asked} windows lie side by side"
            )
        return pieces(contract, asked), asked
    if "," in asked:
        raise BadOption("of a text one size of window is taken at a time; name one")
    (grid,) = grids((1, size), asked, stride, True)
    return [(start, min(start + grid.window[1], size)) for start in grid.columns], f"{grid.window[1]} tokens"


def _values(scene: Scene, spans: Sequence[Span], kind: str) -> NDArray[np.float64]:
    """(k,): the aim's value with each span covered."""
    network, fill = scene.prepared(), filled(scene, kind)
    places = torch.arange(scene.x.shape[2], device=scene.x.device)

    def run(start: int, stop: int) -> NDArray[np.float64]:
        ends = torch.tensor(spans[start:stop], device=scene.x.device)
        covered = (places >= ends[:, :1]) & (places < ends[:, 1:])
        with torch.inference_mode():
            answer: NDArray[np.float64] = (
                scene.scores(network, torch.where(covered[:, None], fill, scene.x)).double().cpu().numpy()
            )
        scene.progress(stop, len(spans))
        return answer

    values = np.concatenate(in_chunks(run, len(spans), at_once(scene.model, _AT_ONCE)))
    if not np.isfinite(values).all():
        raise CannotRun(f"{scene.aim} is not finite for {int((~np.isfinite(values)).sum())} of {len(values)} inputs")
    return values

"""Operations that are linear in what is followed, given that what they add is set to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from penlight.techniques.formula.tracer import Call, Refused, Tracer

LINEAR: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("add", "sub", "rsub"), (0, 1)),
    "lerp": (0, 1),
    "fill": (1,),
    **dict.fromkeys(("where", "masked_fill", "copy"), (0, 1, 2)),
    **dict.fromkeys(("cat", "stack", "addmm", "baddbmm", "addmv", "addbmm"), (0,)),
    **dict.fromkeys(("convolution", "_convolution", "constant_pad_nd"), (2,)),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"), (2, 3)),
    **dict.fromkeys(
        (
            "neg", "mul", "div", "mm", "bmm", "mv", "dot", "mean", "sum", "cumsum", "clone", "_to_copy", "_unsafe_view",
            "avg_pool1d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
            "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
            "replication_pad3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
            "upsample_linear1d", "upsample_trilinear3d", "upsample_bicubic2d", "pixel_shuffle", "pixel_unshuffle",
            "channel_shuffle", "index", "index_select", "gather", "flip", "roll", "repeat", "im2col", "col2im", "contiguous",
            "tril", "triu", "zero", "native_dropout", "slice_scatter", "select_scatter", "lift_fresh", "resolve_conj",
        ), (),
    ),
}  # fmt: skip
"""Name → the arguments that are only added; a condition or a mask among them is no number and stays."""
FACTORS: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("mul", "mm", "bmm", "mv", "dot", "convolution", "_convolution"), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), (1, 2)),
    "lerp": (0, 2),
}
"""Name → arguments of which one at most may be followed."""
_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit")
_BATCHED = frozenset(
    (
        "convolution",
        "avg_pool2d",
        "_adaptive_avg_pool2d",
        "constant_pad_nd",
        "upsample_nearest2d",
        "upsample_bilinear2d",
    )
) | frozenset(_NORMS)
_POINTWISE = frozenset(("add", "sub", "rsub", "neg", "mul", "div"))


def is_linear(tracer: Tracer, call: Call) -> bool:
    """Whether the operation is linear in what is followed; `Refused` for a norm that uses the input's own statistics."""
    if call.name not in LINEAR:
        return False
    if call.name in _NORMS:
        if call.name != "_native_batch_norm_legit_no_training" and call.args[5]:
            raise Refused("divides by the input's own deviation", call.where)
        return not any(tracer.follows(one) for one in call.args[1:5])
    if call.name == "div":
        rounds = call.kwargs.get("rounding_mode") is not None
        return not rounds and not tracer.follows(call.args[1])
    if call.name == "where":
        return len(call.args) == 3 and not tracer.follows(call.args[0])
    if call.name == "masked_fill":
        return not tracer.follows(call.args[1])
    if call.name in ("index", "gather", "index_select"):
        return tracer.follows(call.args[0])
    return sum(tracer.follows(call.args[n]) for n in FACTORS.get(call.name, ()) if n < len(call.args)) < 2


def linear_rows(tracer: Tracer, call: Call) -> Tensor:
    """(R, *shape): the operation applied to every row of what is followed, with nothing added."""
    adds = LINEAR[call.name]
    args = tuple(_silenced(tracer, call, one) if n in adds else one for n, one in enumerate(call.args))
    count = tracer.algebra.count
    for quick in (_batched, _pointwise):
        found = quick(tracer, call, args, count)
        if found is not None:
            return found
    return torch.stack([_once(tracer, call, args, lambda rows, r=r: rows[r].clone()) for r in range(count)])  # type: ignore[misc]


def constant_part(tracer: Tracer, call: Call) -> Tensor:
    """(*shape): what the operation gives where all that is followed is zero."""
    return _once(tracer, call, call.args, lambda rows: torch.zeros_like(rows[0]))


def _silenced(tracer: Tracer, call: Call, value: Any) -> Any:
    """Zero in place of a number that is added; masks, indices and what is followed stay."""

    def silence(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            number = leaf.is_floating_point() and not tracer.follows(leaf)
            return torch.zeros_like(leaf) if number else leaf
        return type(leaf)(0) if isinstance(leaf, int | float) and not isinstance(leaf, bool) else leaf

    return tree_map(silence, value)


def _once(tracer: Tracer, call: Call, args: tuple[Any, ...], pick: Callable[[Tensor], Tensor]) -> Tensor:
    def swap(leaf: Any) -> Any:
        if tracer.follows(leaf):
            rows = tracer.rows(leaf)
            assert rows is not None
            return pick(rows)
        return leaf

    swapped = tree_map(swap, args)
    if call.writes and isinstance(swapped[0], Tensor) and swapped[0] is args[0]:
        swapped = (
            swapped[0].clone(),
            *swapped[1:],
        )  # what is written to is not followed yet: not the network's own memory
    output = call.func(*swapped, **tree_map(swap, dict(call.kwargs)))
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found


def _batched(tracer: Tracer, call: Call, args: tuple[Any, ...], count: int) -> Tensor | None:
    """All rows as one batch, where the operation treats every input of a batch alike."""
    if call.writes:
        return None
    matrix = {"addmm": 1, "mm": 0}.get(call.name)
    first = args[matrix or 0]
    others = [n for n, one in enumerate(args) if n != (matrix or 0) and tracer.follows(one)]
    if (call.name not in _BATCHED and matrix is None) or others or not tracer.follows(first):
        return None
    if first.ndim < 2 or first.shape[0] != 1 or (matrix is None and first.ndim != 4 and call.name not in _NORMS):
        return None
    rows = tracer.rows(first)
    assert rows is not None
    given = [rows.squeeze(1) if n == (matrix or 0) else one for n, one in enumerate(args)]
    output = call.func(*given, **call.kwargs)
    found: Tensor = output[0] if isinstance(output, tuple | list) else output
    return found.unsqueeze(1)


def _pointwise(tracer: Tracer, call: Call, args: tuple[Any, ...], count: int) -> Tensor | None:
    """All rows at once by broadcasting."""
    if call.name not in _POINTWISE or call.writes:
        return None
    ndim = max(one.ndim for one in args if isinstance(one, Tensor))
    given = []
    for one in args:
        if tracer.follows(one):
            rows = tracer.rows(one)
            assert rows is not None
            given.append(rows.reshape(count, *[1] * (ndim - one.ndim), *one.shape))
        else:
            given.append(one)
    found: Tensor = call.func(*given, **call.kwargs)
    shape = np.broadcast_shapes(*(tuple(one.shape) for one in args if isinstance(one, Tensor)))
    return found.expand(count, *shape) if found.shape[1:] != shape else found


def windows(call: Call, shape: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
    """(places of the output map, k): for a max pooling of a map (*shape) the places each output is the largest of, −1 outside."""
    dims = len(shape)
    if call.name.startswith("adaptive_max_pool"):
        starts = [[(o * n) // m for o in range(m)] for n, m in zip(shape, out, strict=True)]
        ends = [[-((-(o + 1) * n) // m) for o in range(m)] for n, m in zip(shape, out, strict=True)]
        axes = []
        for start, end in zip(starts, ends, strict=True):
            longest = max(b - a for a, b in zip(start, end, strict=True))
            axes.append(
                torch.tensor(
                    [[a + k if a + k < b else -1 for k in range(longest)] for a, b in zip(start, end, strict=True)]
                )
            )
    else:
        kernel = _whole(call.args[1], dims)
        stride = _whole(call.given(2, "stride") or kernel, dims)
        padding, dilation = _whole(call.given(3, "padding", 0), dims), _whole(call.given(4, "dilation", 1), dims)
        axes = []
        for n, m, k, s, p, d in zip(shape, out, kernel, stride, padding, dilation, strict=True):
            places = torch.arange(m)[:, None] * s - p + torch.arange(k) * d
            axes.append(torch.where((places >= 0) & (places < n), places, -1))
    whole, outside = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, dtype=torch.bool)
    for n, axis in zip(shape, axes, strict=True):
        whole = (whole[:, None, :, None] * n + axis[None, :, None, :].clamp(min=0)).flatten(0, 1).flatten(1)
        outside = (outside[:, None, :, None] | (axis[None, :, None, :] < 0)).flatten(0, 1).flatten(1)
    assert len(whole) == math.prod(out)
    return torch.where(outside, -1, whole)


def _whole(value: Any, dims: int) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    return found * dims if len(found) == 1 else found

"""What operators do with relevance: a policy for each name torch calls them by.

Operators with weights follow a rule. Relevance passes elementwise nonlinearities unchanged. Sums, means and normalisations share it by
contribution, a norm's own standard deviation being taken as fixed. A max-pool hands it to the winner. Where two things are multiplied,
a gate or an attention weight gets nothing; two equals get half each. For what has no policy here it is input × gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from penlight.techniques.explain.relevance import Affine, Operator, pulled_back, stabilised
from penlight.techniques.explain.relevance_pass import (
    GATE,
    MIXES,
    WEIGHTS,
    Call,
    Policy,
    RelevancePass,
    is_gate,
    names,
)

Relevances = Sequence[Tensor]

CONVOLUTIONS = names("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
_PRODUCTS = names("matmul mm bmm mv dot einsum tensordot rmatmul")
_ELEMENTWISE = names(
    "relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid sigmoid tanh softplus softsign softshrink"
    " hardshrink tanhshrink logsigmoid log_sigmoid prelu rrelu threshold clamp clamp_min clamp_max clip erf exp expm1 log log1p log2 sqrt"
    " rsqrt square abs sin cos atan pow float_power softmax log_softmax softmin rms_norm expit neg negative"
)
_GATES = names("sigmoid hardsigmoid softmax expit")
_LINEAR = names(
    "mean sum avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_linear1d"
    " upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d upsample_bilinear2d_aa upsample_bicubic2d_aa fold col2im cumsum"
)
_ADDITIONS = {"add": 1.0, "radd": 1.0, "iadd": 1.0, "sub": -1.0, "subtract": -1.0, "isub": -1.0, "rsub": -1.0}
_FACTORS = names("mul multiply rmul imul")
_QUOTIENTS = names("div divide true_divide truediv itruediv idiv")
_MAX_POOLS = names(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices"
)
_PLAIN_DILATIONS = (1, (1,), (1, 1), (1, 1, 1), [1], [1, 1], [1, 1, 1])
_SIGNATURES = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias", "eps"),
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
    "instance_norm": ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    "max_pool": ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "weighted": ("input", "weight", "bias"),
}


def _arguments(signature: str, args: Any, kwargs: Any) -> dict[str, Any]:
    return {**dict(zip(_SIGNATURES[signature], args, strict=False)), **kwargs}


def _carries(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _unchanged(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """Elementwise: all of it to the first input."""

    def hand_back(inputs: Relevances, relevance: Relevances) -> Sequence[Tensor | None]:
        return [relevance[0].sum_to_size(inputs[0].shape), *[None] * (len(inputs) - 1)]

    mixes = "softmax" in call.name or call.name == "rms_norm"
    return carrier.step(call, hand_back, role=GATE if call.name in _GATES else MIXES if mixes else "")


def _dropped(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """dropout: nothing happens in eval mode; a network that drops all the same scales."""
    on = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return _unchanged(carrier, call, args, kwargs) if on else args[0]


def _linear(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    return carrier.step(call, carrier.by_contribution(call))


def _weighted(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """linear and convolutions: the rule of their place; weights that are themselves computed are taken as they are."""
    own, more, function = _arguments("weighted", args, kwargs), args[3:], call.function
    x, weight, bias = own.pop("input"), own.pop("weight"), own.pop("bias", None)
    if not _carries(x):
        return carrier.step(call, carrier.by_contribution(call), stranger=f"{call.name} of a fixed input")
    weight, bias = weight.detach(), None if bias is None else bias.detach()

    def operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found: Tensor = function(x, weight, bias, *more, **own)
        return found

    return _ruled(carrier, Call.of(function, (x, weight, bias, *more), own), operator, x, weight, bias)


def _ruled(
    carrier: RelevancePass, call: Call, operator: Operator, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Any:
    rules, (first, box) = carrier.rules, carrier.box_of(x)
    rule = rules.convolution if call.name in CONVOLUTIONS else rules.dense
    if first and rules.first is not None:
        rule = rules.first
        carrier.first.append(box is not None)
    affine = Affine(operator, weight, bias if rules.bias else None, box)
    return carrier.step(call, lambda inputs, relevance: [rule(affine, inputs[0], relevance[0])], role=WEIGHTS)


def _matrix_product(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """With fixed numbers, a dense layer. Of two that carry relevance, a softmax's output counts as fixed; else each gets half."""
    leaves = [n for n, leaf in enumerate(call.leaves) if isinstance(leaf, Tensor)]
    if len(leaves) != 2:
        return NotImplemented
    if len(call.inputs) == 1:
        (place,) = call.places
        (other,) = (n for n in leaves if n != place)
        both = Call(call.function, call.leaves, call.layout, (place, other))
        x, weight = call.leaves[place], call.leaves[other]
        return _ruled(carrier, call, lambda x, weight, bias: both(x, weight), x, weight, None)
    gates = [is_gate(x) for x in call.inputs]
    parts = (0.0, 1.0) if gates == [True, False] else (1.0, 0.0) if gates == [False, True] else (0.5, 0.5)
    whole = carrier.by_contribution(call)

    def hand_back(inputs: Relevances, relevance: Relevances) -> Sequence[Tensor | None]:
        pairs = zip(whole(inputs, relevance), parts, strict=True)
        return [None if found is None or part == 0 else found * part for found, part in pairs]

    return carrier.step(call, hand_back, role=WEIGHTS)


def _attention(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """scaled_dot_product_attention: who attends to whom is taken as fixed; relevance goes to the values alone."""
    value = args[2] if len(args) > 2 else kwargs.get("value")
    places = [n for n in call.places if call.leaves[n] is value][
        -1:
    ]  # the last, where one tensor is asked, key and value
    if not places:
        return carrier.step(call, lambda inputs, relevance: [None] * len(inputs), role=WEIGHTS)
    alone = carrier.by_contribution(Call(call.function, call.leaves, call.layout, tuple(places)))

    def hand_back(inputs: Relevances, relevance: Relevances) -> Sequence[Tensor | None]:
        (found,) = alone([inputs[call.places.index(places[0])]], relevance)
        return [found if n == places[0] else None for n in call.places]

    return carrier.step(call, hand_back, role=WEIGHTS)


def _addition(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """By contribution; what the network adds of its own counts as a bias."""
    terms = (args[0], args[1] if len(args) > 1 else kwargs["other"])
    sign = _ADDITIONS[call.name] * float(kwargs.get("alpha", args[2] if len(args) > 2 else 1))
    signs = (sign, 1.0) if call.name == "rsub" else (1.0, sign)
    factors = [sign for term, sign in zip(terms, signs, strict=True) if _carries(term)]
    fixed = [term * sign for term, sign in zip(terms, signs, strict=True) if not _carries(term)]

    def hand_back(inputs: Relevances, relevance: Relevances) -> Sequence[Tensor | None]:
        shares = [x * factor for x, factor in zip(inputs, factors, strict=True)]
        total = torch.zeros_like(relevance[0]) + sum([*shares, *(fixed if carrier.rules.bias else [])])
        ratio = relevance[0] / stabilised(total, carrier.rules.stabiliser)
        return [(share * ratio).sum_to_size(share.shape) for share in shares]

    return carrier.step(call, hand_back)


def _scaled(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """x times a fixed number, or x by anything: all of it to x. Of two factors a gate gets nothing."""
    a, b = args[0], args[1] if len(args) > 1 else kwargs["other"]
    if call.name in _QUOTIENTS:
        return _unchanged(carrier, call, args, kwargs) if _carries(a) else NotImplemented
    if _carries(a) and _carries(b):
        parts = _signal(a, b)
        return carrier.step(
            call,
            lambda inputs, r: [(r[0] * part).sum_to_size(x.shape) for x, part in zip(inputs, parts, strict=True)],
        )
    fixed = b if _carries(a) else a
    kept = (fixed != 0).clone() if isinstance(fixed, Tensor) else fixed != 0
    return carrier.step(call, lambda inputs, r: [(r[0] * kept).sum_to_size(inputs[0].shape)])


def _signal(a: Tensor, b: Tensor) -> tuple[float, float]:
    """What each of two factors gets: a gate nothing, the other all; a factor that is spread over the other is a gate too."""
    gates = is_gate(a), is_gate(b)
    if gates[0] == gates[1]:
        gates = a.numel() < b.numel(), b.numel() < a.numel()
    return (0.0, 1.0) if gates[0] else (1.0, 0.0) if gates[1] else (0.5, 0.5)


def _gated(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """glu: the half that is not the gate."""
    axis = kwargs.get("dim", args[1] if len(args) > 1 else -1)
    return carrier.step(call, lambda inputs, r: [torch.cat([r[0], torch.zeros_like(r[0])], axis)])


def _batch_norm(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """A scale and a shift a channel: by contribution, or unchanged."""
    own = _arguments("batch_norm", args, kwargs)
    if own.get("running_mean") is None or own.get("training"):
        return _from_own_statistics(carrier, call, own)
    if carrier.rules.pass_norm or not carrier.rules.bias:
        return _unchanged(carrier, call, args, kwargs)
    return _linear(carrier, call, args, kwargs)


def _centred(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """Norms by the input's own statistics: the standard deviation is taken as fixed (Ali et al. 2022, arXiv:2202.07304)."""
    own = _arguments(call.name, args, kwargs)
    if own.get("running_mean") is not None and not own.get("use_input_stats", True):
        return _linear(carrier, call, args, kwargs)
    return _from_own_statistics(carrier, call, own)


def _from_own_statistics(carrier: RelevancePass, call: Call, own: dict[str, Any]) -> Any:
    weight, bias, eps = own.get("weight"), own.get("bias"), float(own.get("eps", 1e-5))
    axes = len(own.get("normalized_shape", ()))

    def grouped(x: Tensor) -> Tensor:
        if call.name == "batch_norm":
            return x.transpose(0, 1).flatten(1)
        return x.flatten(-axes) if axes else x.reshape(len(x), own.get("num_groups", x.shape[1]), -1)

    def shaped(values: Tensor, x: Tensor) -> Tensor:
        return values if axes else values.reshape(-1, *[1] * (x.ndim - 2))

    def hand_back(inputs: Relevances, relevance: Relevances) -> Sequence[Tensor | None]:
        x = inputs[0]
        spread = (grouped(x).var(-1, correction=0, keepdim=True) + eps).sqrt()

        def scaled(x: Tensor) -> Tensor:
            flat = grouped(x)
            flat = (flat - flat.mean(-1, keepdim=True)) / spread
            turned = call.name == "batch_norm"
            found = flat.reshape(x.transpose(0, 1).shape).transpose(0, 1) if turned else flat.reshape(x.shape)
            return found if weight is None else found * shaped(weight, x)

        output = scaled(x) + shaped(bias, x) if bias is not None and carrier.rules.bias else scaled(x)
        return [x * pulled_back(scaled, x, relevance[0] / stabilised(output, carrier.rules.stabiliser))]

    return carrier.step(call, hand_back, role=MIXES)


def _max_pool(carrier: RelevancePass, call: Call, args: Any, kwargs: Any) -> Any:
    """To the winner, as the gradient does; on request as if the pool took the mean."""
    own = _arguments("max_pool", args, kwargs)
    if not carrier.rules.average_pool or own.get("dilation", 1) not in _PLAIN_DILATIONS:
        return NotImplemented
    pool: Callable[..., Tensor] = {"1": F.avg_pool1d, "2": F.avg_pool2d, "3": F.avg_pool3d}[call.name[8]]
    how = (own["kernel_size"], own.get("stride"), own.get("padding", 0), own.get("ceil_mode", False))

    def hand_back(inputs: Relevances, relevance: Relevances) -> Sequence[Tensor | None]:
        x = inputs[0]
        ratio = relevance[0] / stabilised(pool(x, *how), carrier.rules.stabiliser)
        return [x * pulled_back(lambda x: pool(x, *how), x, ratio)]

    return carrier.step(call, hand_back)


def _policies() -> Iterator[tuple[str, Policy]]:
    for known, policy in (
        (_ELEMENTWISE, _unchanged),
        (_PRODUCTS, _matrix_product),
        (CONVOLUTIONS | {"linear"}, _weighted),
        (_LINEAR, _linear),
        (_ADDITIONS, _addition),
        (_FACTORS | _QUOTIENTS, _scaled),
        (_MAX_POOLS, _max_pool),
        (names("layer_norm group_norm instance_norm"), _centred),
        (names("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout"), _dropped),
    ):
        yield from ((name, policy) for name in known)
    yield "batch_norm", _batch_norm
    yield "scaled_dot_product_attention", _attention
    yield "glu", _gated


POLICIES: dict[str, Policy] = dict(_policies())

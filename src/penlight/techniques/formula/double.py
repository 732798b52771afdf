"""A network in double precision, whatever precision its code names."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from penlight.models import Model
from penlight.models.probe import frozen_copy

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_MAKERS = ("aten::zeros", "aten::ones", "aten::empty", "aten::linspace")


def double_copy(model: Model) -> nn.Module:
    """A frozen copy on the CPU in double precision; `x.float()` and `torch.zeros(n)` in its code are double too."""
    network = frozen_copy(model.network).cpu().double()
    network.forward = MethodType(_run, network)
    return network


def _run(network: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with _Double():
        return type(network).forward(network, *args, **kwargs)


class _Double(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(kwargs or {})
        if named.get("dtype") in _FLOATS or (func._schema.name in _MAKERS and named.get("dtype") is None):
            named["dtype"] = torch.float64
        return func(*args, **named)

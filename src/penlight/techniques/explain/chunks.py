"""Batches as large as memory allows: chosen from what is free, halved and tried again when one does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from penlight.errors import CannotRun
from penlight.models import Model
from penlight.models.memory import free_bytes, is_memory_error

T = TypeVar("T")
_SHARE = 0.4  # of the free memory that a batch may take
_BEST = 16  # inputs: on CPUs larger batches are no faster, on GPUs memory decides
_BEST_GPU = 256


def chunk_size(model: Model, *, backward: bool = False) -> int:
    """Inputs a batch, from the sizes of the network's maps and the free memory."""
    each = sum(4 * _numel(layer.shape) for layer in model.layers.values() if layer.alias_of is None) or 1
    each = each * (3 if backward else 1) + 4 * _numel(model.contract.shape)
    best = _BEST if model.device.type == "cpu" else _BEST_GPU
    return int(max(1, min(best, _SHARE * free_bytes(model.device) / each)))


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def in_chunks(run: Callable[[int, int], T], count: int, size: int) -> list[T]:
    """`run(start, stop)` over `count` items in order, up to `size` at a time; a chunk that does not fit is halved and tried again."""
    done: list[T] = []
    start = 0
    while start < count:
        try:
            done.append(run(start, min(start + size, count)))
        except (MemoryError, RuntimeError, CannotRun) as error:
            if size == 1 or not is_memory_error(error):
                raise
            size = max(1, size // 2)
            continue
        start = min(start + size, count)
    return done

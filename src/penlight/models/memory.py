"""How much memory is free, and whether an error says that it did not suffice."""

from __future__ import annotations

from pathlib import Path

import torch

from penlight.errors import CannotRun

_WORDS = ("out of memory", "can't allocate", "cannot allocate", "not enough memory", "defaultcpuallocator")


def free_bytes(device: torch.device) -> int:
    """Memory that can be taken on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return 2**31  # no such file on this system: a modest guess


def is_memory_error(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | CannotRun) and any(word in str(error).lower() for word in _WORDS)

"""Layer paths as folder names: what a layer is called in links."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from penlight.results.visualize import file_name

LONGEST = 100
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def safe_names(paths: Iterable[str]) -> dict[str, str]:
    """Each path's name: ASCII, no two alike on a file system that ignores case, none that hides or is reserved.

    >>> safe_names(["conv1", "relu#2", "Conv1"])
    {'conv1': 'conv1', 'relu#2': 'relu_call_2', 'Conv1': 'Conv1-2'}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in paths:
        base = file_name(path).rstrip(".") or "model"
        if base[0] in "._-~" or base.split(".")[0].lower() in _RESERVED:
            base = f"x{base}"
        if len(base) > LONGEST:
            base = f"{base[: LONGEST - 11]}-{hashlib.sha256(path.encode()).hexdigest()[:10]}"
        name, count = base, 1
        while name.lower() in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name.lower())
        names[path] = name
    return names

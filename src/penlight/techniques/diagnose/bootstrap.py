"""How sure a mean is, by drawing the inputs again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 4_000_000  # numbers drawn at a time


def interval(
    differences: NDArray[np.floating], rng: np.random.Generator, draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """(low, high) of the mean of paired differences (N,), by the bootstrap's percentiles (Efron 1979).

    Differences of few distinct values, as those of hits, are drawn by how often each value comes, which is the same law.
    """
    values, counts = np.unique(np.asarray(differences, np.float64), return_counts=True)
    total = int(counts.sum())
    if len(values) < 2:
        only = float(values[0]) if len(values) else float("nan")
        return only, only
    if len(values) <= 16:
        means = rng.multinomial(total, counts / total, draws) @ values / total
    else:
        plain = np.asarray(differences, np.float64)
        step = max(1, _AT_ONCE // total)
        means = np.concatenate(
            [plain[rng.integers(0, total, (min(step, draws - n), total))].mean(1) for n in range(0, draws, step)]
        )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

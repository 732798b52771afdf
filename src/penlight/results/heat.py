"""Numbers as colours: a diverging map centred at zero for signed values, an even one for values that are never negative."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_CLIPPED = (
    99.9  # percentile of the magnitudes that takes the strongest colour: one stray pixel does not darken all others
)
# lightness, and the two colour axes, in Oklab: even steps there look even
_DIVERGING = ((0.38, -0.03, -0.19), (0.66, -0.05, -0.11), (0.97, 0.0, 0.0), (0.66, 0.15, 0.08), (0.38, 0.16, 0.08))
_SEQUENTIAL = (
    (0.12, 0.0, -0.02), (0.32, 0.07, -0.12), (0.52, 0.17, -0.02), (0.72, 0.12, 0.13), (0.95, -0.02, 0.13),
)  # fmt: skip


def heat(values: NDArray[np.floating], signed: bool, scale: float | None = None) -> NDArray[np.uint8]:
    """(H, W) numbers → (H, W, 3) uint8.

    Signed values: zero is white, positive red, negative blue, at the same strength for the same magnitude. Others: dark to light,
    perceptually uniform. `scale` is the magnitude of the strongest colour, by default nearly the largest there is.
    """
    return colours(strength(values, signed, scale), signed)


def strength(values: NDArray[np.floating], signed: bool, scale: float | None = None) -> NDArray[np.float64]:
    """Numbers divided by `scale` and clipped: to [-1, 1] if signed, else to [0, 1]."""
    top = magnitude(values) if scale is None else scale
    shared: NDArray[np.float64] = np.asarray(values, np.float64) / top if top > 0 else np.zeros(values.shape)
    return np.clip(shared, -1.0 if signed else 0.0, 1.0)


def magnitude(values: NDArray[np.floating]) -> float:
    """The magnitude that takes the strongest colour."""
    sizes = np.abs(values)
    if not sizes.size:
        return 0.0
    top = float(np.percentile(sizes, _CLIPPED))
    return top if top > 0 else float(sizes.max())


def colours(shared: NDArray[np.float64], signed: bool) -> NDArray[np.uint8]:
    """Strengths as `strength` gives them → (…, 3) uint8."""
    table = _table(_DIVERGING if signed else _SEQUENTIAL)
    place = (shared + 1) / 2 if signed else shared
    chosen: NDArray[np.uint8] = table[np.rint(place * (len(table) - 1)).astype(np.intp)]
    return chosen


@cache
def _table(stops: tuple[tuple[float, float, float], ...]) -> NDArray[np.uint8]:
    """513 colours along the stops, an odd number so that zero has a colour of its own."""
    at = np.linspace(0, len(stops) - 1, 513)
    lab = np.stack([np.interp(at, np.arange(len(stops)), [stop[n] for stop in stops]) for n in range(3)], axis=1)
    return _from_oklab(lab)


def _from_oklab(lab: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 3) Oklab → sRGB (Ottosson 2020)."""
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_linear.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), np.uint8)

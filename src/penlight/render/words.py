"""Numbers as a reader wants them: three figures, a true minus sign, thin spaces."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\u2212"
NONE = "\u2013"
THIN = "\u202f"


def number(value: float | int | None) -> str:
    """Three significant figures; integers in full.

    >>> number(-0.012345), number(12345), number(1234.5), number(None)
    ('−0.0123', '12,345', '1,234', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if isinstance(value, int):
        text = f"{value:,}"
    elif value != 0 and not 1e-3 <= abs(value) < 1e6:
        text = f"{value:.2e}".replace("e+0", "e").replace("e-0", "e-").replace("e+", "e")
    else:
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", MINUS)


def share(value: float | None) -> str:
    """A share in [0, 1] as per cent; never rounded to 0 or 100 when it is neither.

    >>> share(0.0), share(0.0004), share(0.0532), share(0.9999)
    ('0\u202f%', '<0.1\u202f%', '5.3\u202f%', '>99.9\u202f%')
    """
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < value < 0.001:
        text = "<0.1"
    elif 0.999 < value < 1:
        text = ">99.9"
    elif 0 < value < 0.1 or 0.99 <= value < 1:
        text = f"{100 * value:.1f}"
    else:
        text = f"{100 * value:.0f}"
    return f"{text}{THIN}%"


def times(value: float, best: float) -> str | None:
    """How many times `best` the value is, in words; None where a ratio says nothing (`best` not above zero).

    >>> times(12.0, 4.0), times(1.0, 0.0)
    ('3 times', None)
    """
    if not (math.isfinite(value) and math.isfinite(best)) or best <= 0 or value <= 0:
        return None
    ratio = value / best
    return f"{number(float(f'{ratio:.2g}'))} times"


def shape(sizes: Sequence[int]) -> str:
    """(16, 28, 28) → '16 × 28 × 28'."""
    return " × ".join(f"{size:,}" for size in sizes)

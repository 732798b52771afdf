"""One or two options of a method over a range of values: which is best for this unit?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadOption
from penlight.results import Sweep, SweepResult, VisualizeResult
from penlight.techniques.contract import Progress, Request, Technique
from penlight.techniques.options import build, provenance, table
from penlight.techniques.visualize.scene import Optics

_COUNT, _WIDE = 5, 50  # values of a range; ratio of the bounds from which on it is logarithmic
_MOST = 2  # axes
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(\d+))?(?::(lin|linear|log))?\Z")
_FORMS = "write NAME=a..b, NAME=a..b:COUNT, NAME=a..b:COUNT:log (or lin), or NAME=v1,v2,v3"
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_APART = {
    "minimize": "ask for preferred and least preferred pictures apart",
    "objective": "what is read in different ways cannot be compared; ask for each apart",
}


@dataclass(frozen=True)
class Axis:
    """One option and the values it is to take.

    >>> Axis.parse("total_variation=1e-5..1e3", Penlight).values       # doctest: +SKIP
    (1e-05, 0.001, 0.1, 10.0, 1000.0)
    """

    name: str
    values: tuple[Any, ...]
    scale: str  # "log", "linear" or "list"

    @classmethod
    def parse(cls, text: str, technique: type[Technique]) -> Axis:
        """Read an axis: `NAME=a..b`, `NAME=a..b:COUNT`, `NAME=a..b:COUNT:lin|log`, or values with commas, ranges among them.

        A range has five values, logarithmic where both bounds are above zero and one is at least 50 times the other, else linear.
        Whole-number options are rounded; a value that comes twice counts once. `UnknownName` for an option the method does not
        have, `BadOption` for what cannot be read or a value the option does not take.
        """
        name, sign, given = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        items = [item.strip() for item in given.split(",")]
        if not sign or not name or not all(items):
            raise BadOption(f"sweep {text!r} is no axis; {_FORMS}")
        if name in _APART:
            raise BadOption(f"option {name} cannot be swept; {_APART[name]}")
        kind = next((row["type"] for row in table(technique) if row["name"] == name), "")
        if not kind:
            build(technique, {name: None})  # says which names there are
        values: list[Any] = []
        scales = []
        for item in items:
            found, scale = _values(item, kind, text)
            scales.append(scale)
            values += found
        checked = [getattr(build(technique, {name: value}), name) for value in values]
        ranges = {scale for scale in scales if scale != "list"}
        return cls(name, tuple(dict.fromkeys(checked)), ranges.pop() if len(ranges) == 1 else "list")


def _values(item: str, kind: str, text: str) -> tuple[list[Any], str]:
    """The values one item of the list stands for, and their scale."""
    if ".." in item and kind in ("int", "float"):
        return _range(item, kind, text)
    if kind == "bool":
        if item.lower() not in _TRUTH:
            raise BadOption(f"sweep {text!r}: {item!r} is neither true nor false; write NAME=true,false")
        return [_TRUTH[item.lower()]], "list"
    if kind in ("int", "float"):
        if not re.fullmatch(_NUMBER, item):
            raise BadOption(f"sweep {text!r}: {item!r} is no number; {_FORMS}")
        number = float(item)
        return [int(number) if kind == "int" and number.is_integer() else number], "list"
    return [item], "list"


def _range(item: str, kind: str, text: str) -> tuple[list[Any], str]:
    match = _RANGE.match(item)
    if match is None:
        raise BadOption(f"sweep {text!r}: {item!r} is no range; {_FORMS}")
    low, high, count = float(match[1]), float(match[2]), int(match[3] or _COUNT)
    if count < 2:
        raise BadOption(f"sweep {text!r}: a range has at least 2 values, not {count}")
    positive = min(low, high) > 0
    wide = positive and max(low, high) / min(low, high) >= _WIDE
    logarithmic = match[4] == "log" or (match[4] is None and wide)
    if logarithmic and not positive:
        raise BadOption(
            f"sweep {text!r}: a logarithmic range lies above 0; put other values in front, as in NAME=0,1e-3..1e3"
        )
    spaced = np.geomspace(low, high, count) if logarithmic else np.linspace(low, high, count)
    values = [low, *(float(f"{value:.6g}") for value in spaced[1:-1].tolist()), high]
    return [round(v) for v in values] if kind == "int" else values, "log" if logarithmic else "linear"


def run_sweep(
    technique: type[Technique], axes: Sequence[Axis | str], options: Mapping[str, Any], request: Request
) -> SweepResult:
    """Run the method at every point of the grid of one or two axes, with `options` for everything else.

    Raises `BadOption` for more axes, an option on two of them, or one that `options` sets as well; nothing is run before all points
    are known to be possible.
    """
    parsed = [Axis.parse(axis, technique) if isinstance(axis, str) else axis for axis in axes]
    names = [axis.name for axis in parsed]
    if not 1 <= len(parsed) <= _MOST:
        raise BadOption(f"a sweep has one or two axes, not {len(parsed)}; leave the rest to the other options")
    if len(set(names)) < len(names):
        raise BadOption(f"option {names[0]} stands on both axes; sweep two different ones")
    for name in set(names) & set(options):
        raise BadOption(f"option {name} is swept and set to {options[name]!r}; leave one of the two out")
    grid = [dict(zip(names, point, strict=True)) for point in product(*(axis.values for axis in parsed))]
    techniques = [build(technique, {**options, **point}) for point in grid]
    work = [max(1, getattr(one, "steps", 1) * getattr(one, "seeds", 1)) for one in techniques]
    found = []
    for n, one in enumerate(techniques):
        progress = _part(request.progress, sum(work[:n]), work[n], sum(work))
        result = one.run(replace(request, progress=progress))
        if not isinstance(result, VisualizeResult):
            raise BadOption(
                f"{technique.verb} method {technique.name!r} makes no pictures to compare; sweep a synthesis"
            )
        found.append(result)
    origin = provenance(build(technique, options), request)
    swept = {axis.name: list(axis.values) for axis in parsed}
    origin = replace(origin, options={**origin.options, **swept})
    shape = (len(parsed[0].values), len(parsed[1].values) if len(parsed) > 1 else 1)
    neutral = (Optics.of(request.model).neutral.flatten().cpu().numpy() * 255 + 0.5).astype(np.uint8)
    return SweepResult(
        origin,
        tuple(Sweep(axis.name, axis.values, axis.scale) for axis in parsed),
        found[0].units,
        found[0].labels,
        _gridded([_padded(result.images[:, 0], found, neutral) for result in found], shape),
        _gridded([_mean(result.activations) for result in found], shape),
        _gridded([_mean(result.jittered) for result in found], shape),
        _gridded([result.zero_gradient[:, 0] for result in found], shape),
        found[0].minimize,
    )


def _part(progress: Progress, before: int, share: int, total: int) -> Callable[[int, int], None]:
    """Progress of one point of the grid as a part of the whole."""

    def advance(done: int, of: int) -> None:
        progress(before + share * done // max(of, 1), total)

    return advance


def _gridded(each: Sequence[NDArray[Any]], shape: tuple[int, int]) -> NDArray[Any]:
    """A·B arrays (units, …) → (units, A, B, …)."""
    stacked = np.stack(each, axis=1)
    return stacked.reshape(len(stacked), *shape, *stacked.shape[2:])


def _mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(units, seeds) → (units,), the mean over the starts that are known."""
    known = np.isfinite(values)
    total = np.where(known, values, np.float32(0)).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), np.nan).astype(np.float32)


def _padded(
    images: NDArray[np.uint8], found: Sequence[VisualizeResult], neutral: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(units, H, W, C) in the middle of the neutral colour, as large as the largest of all results."""
    height, width = (max(result.images.shape[axis] for result in found) for axis in (2, 3))
    if images.shape[1:3] == (height, width):
        return images
    ground = np.empty((len(images), height, width, images.shape[3]), np.uint8)
    ground[:] = neutral
    top, left = (height - images.shape[1]) // 2, (width - images.shape[2]) // 2
    ground[:, top : top + images.shape[1], left : left + images.shape[2]] = images
    return ground

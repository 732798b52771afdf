"""Options of techniques: declared once as dataclass fields, from which flags, docs and stored parameters are made."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_type_hints

from penlight.errors import BadOption, UnknownName
from penlight.results import Provenance
from penlight.techniques.contract import Request, Technique


def option(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: Sequence[str] = ()
) -> Any:
    """A field of a technique: its default, one line of help with the unit, and what values are allowed."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": tuple(choices)})


def build(technique: type[Technique], options: Mapping[str, Any]) -> Technique:
    """A technique with these options, checked; `UnknownName` for a name it does not have, `BadOption` for a value it does not take."""
    known = {f.name: f for f in fields(technique)}  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            raise UnknownName(f"option of {technique.verb} method {technique.name!r}", name, list(known))
    types = get_type_hints(technique)
    return technique(**{name: _checked(known[name], types[name], value) for name, value in options.items()})


def _checked(field: Field[Any], kind: Any, value: Any) -> Any:
    meta = field.metadata
    flag = field.name.replace("_", "-")
    try:
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError("true or false")
        elif kind in (int, float):
            number = kind(value)
            if isinstance(value, bool) or number != number or (kind is int and float(value) != number):
                raise ValueError("a number")
            value = number
        elif kind is str:
            value = str(value)
    except (TypeError, ValueError):
        raise BadOption(f"option {flag} takes {_allowed(kind, meta)}, not {value!r}") from None
    low, high, choices = meta.get("low"), meta.get("high"), meta.get("choices")
    if (choices and value not in choices) or (low is not None and value < low) or (high is not None and value > high):
        raise BadOption(f"option {flag} takes {_allowed(kind, meta)}, not {value!r}")
    return value


def _allowed(kind: Any, meta: Mapping[str, Any]) -> str:
    if meta.get("choices"):
        return "one of " + ", ".join(meta["choices"])
    name = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
    low, high = meta.get("low"), meta.get("high")
    if low is not None and high is not None:
        return f"{name} from {low:g} to {high:g}"
    return (
        f"{name} of at least {low:g}"
        if low is not None
        else f"{name} of at most {high:g}"
        if high is not None
        else name
    )


def table(technique: type[Technique]) -> list[dict[str, Any]]:
    """The technique's options, a row each: name, type, default, help, low, high, choices."""
    types = get_type_hints(technique)
    return [
        {
            "name": f.name,
            "type": getattr(types[f.name], "__name__", str(types[f.name])),
            "default": None if f.default is MISSING else f.default,
            **{key: f.metadata.get(key) for key in ("help", "low", "high", "choices")},
        }
        for f in fields(technique)  # type: ignore[arg-type]
    ]


def provenance(technique: Technique, request: Request) -> Provenance:
    """Where a result of this technique comes from."""
    return Provenance(
        request.model.reference,
        request.model.hash,
        technique.verb,
        technique.name,
        asdict(technique),  # type: ignore[call-overload]
        request.seed,
        None if request.data is None else request.data.name,
        versions(),
    )


@cache
def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("penlight", "torch", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found

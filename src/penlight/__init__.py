"""A pen-sized torch for looking inside a trained network.

>>> import penlight
>>> model = penlight.load("letters")                      # doctest: +SKIP
>>> penlight.visualize(model, "class:C", seeds=4)         # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penlight.api import (
        activations,
        build_atlas,
        diagnose,
        dream,
        explain,
        formula,
        load,
        project,
        survey,
        sweep,
        visualize,
    )
    from penlight.errors import PenlightError, UsageError
    from penlight.models import Model
    from penlight.units import Unit
    from penlight.web.site import build_site

__version__ = "0.1.0"

# Name → module; fetched on first use, so that a site is built, and the command line answers, without importing torch.
_PLACES = {
    "Model": "penlight.models",
    "PenlightError": "penlight.errors",
    "Unit": "penlight.units",
    "UsageError": "penlight.errors",
    "activations": "penlight.api",
    "build_atlas": "penlight.api",
    "build_site": "penlight.web.site",
    "diagnose": "penlight.api",
    "dream": "penlight.api",
    "explain": "penlight.api",
    "formula": "penlight.api",
    "load": "penlight.api",
    "project": "penlight.api",
    "survey": "penlight.api",
    "sweep": "penlight.api",
    "visualize": "penlight.api",
}

__all__ = [
    "Model",
    "PenlightError",
    "Unit",
    "UsageError",
    "activations",
    "build_atlas",
    "build_site",
    "diagnose",
    "dream",
    "explain",
    "formula",
    "load",
    "project",
    "survey",
    "sweep",
    "visualize",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'penlight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})

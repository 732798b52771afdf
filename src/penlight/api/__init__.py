"""The doors in Python. Each leaves `torch.inference_mode()` behind, in which there are neither gradients nor version counters."""

from __future__ import annotations

from penlight.api.keeping import Built, build_atlas, method_rows
from penlight.api.looking import diagnose, formula, project, survey
from penlight.api.opening import find_data, load, open_survey
from penlight.api.picturing import dream, sweep, visualize
from penlight.api.reading import activations, explain

__all__ = [
    "Built",
    "activations",
    "build_atlas",
    "diagnose",
    "dream",
    "explain",
    "find_data",
    "formula",
    "load",
    "method_rows",
    "open_survey",
    "project",
    "survey",
    "sweep",
    "visualize",
]

"""Frozen, framework-free answers; none of these modules imports torch."""

from penlight.results.base import Picture, Provenance, Result, load_result
from penlight.results.filters import FiltersResult
from penlight.results.predictions import PredictionsResult
from penlight.results.survey import Example, LayerSurvey, SurveyResult, Top
from penlight.results.sweep import Sweep, SweepResult
from penlight.results.visualize import VisualizeResult

__all__ = [
    "Example",
    "FiltersResult",
    "LayerSurvey",
    "Picture",
    "PredictionsResult",
    "Provenance",
    "Result",
    "SurveyResult",
    "Sweep",
    "SweepResult",
    "Top",
    "VisualizeResult",
    "load_result",
]

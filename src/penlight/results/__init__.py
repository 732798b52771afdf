"""Frozen, framework-free answers; none of these modules imports torch."""

from penlight.results.activations import ActivationsResult
from penlight.results.base import Picture, Provenance, Result, load_result
from penlight.results.diagnose import DiagnoseResult
from penlight.results.explain import ExplainResult, ExplanationsResult
from penlight.results.filters import FiltersResult
from penlight.results.labels import Label, Labels, LabelsResult
from penlight.results.predictions import PredictionsResult
from penlight.results.projections import ProjectionsResult
from penlight.results.survey import Example, LayerSurvey, SurveyResult, Top
from penlight.results.sweep import Sweep, SweepResult
from penlight.results.visualize import VisualizeResult
from penlight.results.weights import Feed, LayerWeights, WeightsResult

__all__ = [
    "ActivationsResult",
    "DiagnoseResult",
    "Example",
    "ExplainResult",
    "ExplanationsResult",
    "Feed",
    "FiltersResult",
    "Label",
    "Labels",
    "LabelsResult",
    "LayerSurvey",
    "LayerWeights",
    "Picture",
    "PredictionsResult",
    "ProjectionsResult",
    "Provenance",
    "Result",
    "SurveyResult",
    "Sweep",
    "SweepResult",
    "Top",
    "VisualizeResult",
    "WeightsResult",
    "load_result",
]

"""Frozen, framework-free answers; none of these modules imports torch."""

from penlight.results.activations import ActivationsResult
from penlight.results.base import Picture, Provenance, Result, load_result
from penlight.results.columns import ColumnsResult
from penlight.results.diagnose import DiagnoseResult
from penlight.results.explain import ExplainResult, ExplanationsResult
from penlight.results.filters import FiltersResult
from penlight.results.formula import FormulaResult
from penlight.results.labels import Label, Labels, LabelsResult
from penlight.results.passages import PassagesResult
from penlight.results.predictions import PredictionsResult
from penlight.results.projections import ProjectionsResult
from penlight.results.rows import RowsResult
from penlight.results.strings import StringsResult
from penlight.results.survey import Example, LayerSurvey, SurveyResult, Top
from penlight.results.sweep import Sweep, SweepResult
from penlight.results.tracks import TracksResult
from penlight.results.visualize import VisualizeResult
from penlight.results.weights import Feed, LayerWeights, WeightsResult

__all__ = [
    "ActivationsResult",
    "ColumnsResult",
    "DiagnoseResult",
    "Example",
    "ExplainResult",
    "ExplanationsResult",
    "Feed",
    "FiltersResult",
    "FormulaResult",
    "Label",
    "Labels",
    "LabelsResult",
    "LayerSurvey",
    "LayerWeights",
    "PassagesResult",
    "Picture",
    "PredictionsResult",
    "ProjectionsResult",
    "Provenance",
    "Result",
    "RowsResult",
    "StringsResult",
    "SurveyResult",
    "Sweep",
    "SweepResult",
    "Top",
    "TracksResult",
    "VisualizeResult",
    "WeightsResult",
    "load_result",
]

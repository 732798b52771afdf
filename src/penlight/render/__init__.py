"""Results → pictures, films, HTML fragments and text: pure functions that read no disk and never import torch."""

from penlight.render.explain_sheet import explain_sheet
from penlight.render.film import film
from penlight.render.sheet import sheet, survey_sheet
from penlight.render.svg import Mark, bars, histogram_svg
from penlight.render.sweep_sheet import sweep_sheet
from penlight.render.table import columns
from penlight.render.words import number, share, times

__all__ = [
    "Mark",
    "bars",
    "columns",
    "explain_sheet",
    "film",
    "histogram_svg",
    "number",
    "share",
    "sheet",
    "survey_sheet",
    "sweep_sheet",
    "times",
]

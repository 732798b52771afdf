"""Results → pictures, HTML fragments and text: pure functions that read no disk and never import torch."""

from penlight.render.sheet import sheet, survey_sheet
from penlight.render.svg import Mark, bars, histogram_svg
from penlight.render.table import columns
from penlight.render.words import number, share, times

__all__ = ["Mark", "bars", "columns", "histogram_svg", "number", "share", "sheet", "survey_sheet", "times"]

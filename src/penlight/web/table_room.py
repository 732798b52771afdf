"""What an atlas of a network on tables shows."""

from __future__ import annotations

from markupsafe import Markup

from penlight.render import column_charts
from penlight.render import column_pages as table_pages
from penlight.render import formula as formulas
from penlight.results import RowsResult
from penlight.web.book import Layer
from penlight.web.rooms import Holdings, Section


class TableRoom:
    """Columns and rows that move units, and the formula."""

    style = table_pages.STYLE + column_charts.STYLE + formulas.STYLE

    def model(self, held: Holdings) -> list[Section]:
        """What it computes, and what moves its answers."""
        found = []
        for number, one in enumerate(held.formulas):
            at = one.rule is not None
            title = "What it computes at one row" if at else "What it computes"
            lead = (
                "The exact rule that holds there, and how far every column may move before it changes."
                if at
                else "The whole network as one expression, in the columns' own units."
            )
            found.append(Section(f"formula-{number}", title, lead, Markup(formulas.fragment(one))))
        last = held.layer(held.model.get("class_layer"))
        if held.columns is not None and last is not None and last.path in held.columns.layers:
            lead = "Share of each answer's importance, per cent, by integrated gradients and permutation."
            found.insert(0, Section("columns", "Which columns move its answers", lead, self._overview(held, last, "")))
        return found

    def layer(self, held: Holdings, layer: Layer) -> list[Section]:
        """Units by columns."""
        if held.columns is None or layer.path not in held.columns.layers:
            return []
        lead = "Share of each unit's importance, per cent, by integrated gradients and permutation."
        return [Section("columns", "Which columns move its units", lead, self._overview(held, layer, "../"))]

    def unit(self, held: Holdings, unit: str) -> list[Section]:
        """Its columns, curves and rows, and the row that drives it most."""
        found = []
        for one in held.ideals.get(unit, []):
            assert isinstance(one, RowsResult)
            least = one.minimize
            title = "The row that drives it least" if least else "The row that drives it most"
            lead = "Within the range of the data and not unlike it, beside the nearest real row and the best one."
            html = Markup(table_pages.unit_row(one, unit, titled=False))
            found.append(Section(f"row-{int(least)}", title, lead, html))
        if held.columns is not None and unit.rpartition(":")[0] in held.columns.layers:
            lead = (
                "By integrated gradients and by permutation, with 95 % intervals; curves over each column's real range."
            )
            html = Markup(table_pages.unit_columns(held.columns, unit, titled=False))
            found.insert(0, Section("columns", "Which columns and values excite it", lead, html))
        return found

    def files(self, held: Holdings) -> dict[str, str]:
        """None."""
        return {}

    @staticmethod
    def _overview(held: Holdings, layer: Layer, root: str) -> Markup:
        assert held.columns is not None
        return Markup(table_pages.overview(held.columns, layer.path, lambda unit: held.page(unit, root)))

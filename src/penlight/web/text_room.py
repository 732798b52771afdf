"""What an atlas of a network on text shows."""

from __future__ import annotations

from markupsafe import Markup

from penlight.render import passages as text_pages
from penlight.render import strings as string_pages
from penlight.render.tracks import tracks_page
from penlight.results import StringsResult
from penlight.web.book import Layer
from penlight.web.rooms import TEXT_PAGE, Holdings, Section


class TextRoom:
    """Passages and strings that drive cells, what cells follow, and a text coloured by each of them."""

    style = text_pages.STYLE + string_pages.STYLE

    def model(self, held: Holdings) -> list[Section]:
        """The cells one can read."""
        if held.passages is None:
            return []
        lead = "For every property of the text the cell that follows it best, chosen on one half of the texts and scored on the other."
        return [
            Section(
                "best",
                "Cells one can read",
                lead,
                Markup(text_pages.best_table(held.passages, lambda unit: held.page(unit, ""))),
            )
        ]

    def layer(self, held: Holdings, layer: Layer) -> list[Section]:
        """Nothing beside the list of units."""
        return []

    def unit(self, held: Holdings, unit: str) -> list[Section]:
        """Its top passages, and strings that drive it up and down."""
        found = []
        if held.passages is not None and unit.rpartition(":")[0] in held.passages.layers:
            lead = "The passages of the data where it is highest, every character coloured by its value."
            found.append(Section("passages", "In the data", lead, Markup(text_pages.unit_card(held.passages, unit))))
        for one in held.ideals.get(unit, []):
            assert isinstance(one, StringsResult)
            title = "Strings that drive it down" if one.minimize else "Strings that drive it up"
            lead = "Searched for character by character, with the network's own likelihood as prior."
            html = Markup(string_pages.strings_fragment(one, [unit]))
            found.append(Section(f"strings-{int(one.minimize)}", title, lead, html))
        return found

    def files(self, held: Holdings) -> dict[str, str]:
        """The interactive page of one text."""
        return {} if held.tracks is None else {TEXT_PAGE: tracks_page(held.tracks, home=("The atlas", "index.html"))}

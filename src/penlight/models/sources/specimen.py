"""`NAME`, or `specimen:NAME`: a small trained network that ships inside the package."""

from __future__ import annotations

from dataclasses import replace

from penlight.models.sources import Opened, Order, specimens
from penlight.models.sources.card import open_card


def open_specimen(order: Order) -> Opened:
    """The specimen's card and the path of its data."""
    specimen = specimens[order.name]
    return replace(open_card(specimen.CARD, order.options, trust=True), data=str(specimen.DATA))

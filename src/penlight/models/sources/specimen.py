"""`NAME`, or `specimen:NAME`: a small trained network that ships inside the package."""

from __future__ import annotations

from dataclasses import replace

from penlight.models.sources import Opened, Order, specimens
from penlight.models.sources.card import open_card


def open_specimen(order: Order) -> Opened:
    """The specimen's card, the path of its data, and the reference of its generator if it has one."""
    specimen = specimens[order.name]
    generator = f"module:{specimen.__name__}.generator:open_generator" if hasattr(specimen, "GENERATOR") else None
    return replace(open_card(specimen.CARD, order.options, trust=True), data=str(specimen.DATA), generator=generator)

"""Where results are kept; never runs a model, never imports torch."""

from penlight.store.atlas import Atlas
from penlight.store.contract import Store

__all__ = ["Atlas", "Store"]

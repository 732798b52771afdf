"""The specimen `letters`: a five-layer network that tells the glyphs A to J apart, and a sample to try it on.

Nothing heavy is imported here. The network is `penlight.specimens.letters.network.Letters`; the
script that made the weights and the sample is `python -m penlight.specimens.letters.train`.
"""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).with_name("sample.npz")
"""Glyphs of families the network never saw: images uint8 (N, 28, 28), labels uint8 (N,) in 0..9,
families int (N,) indexing family_names."""

CARD = Path(__file__).with_name("letters.toml")
"""The machine-readable card: where the network and its weights are, how its input is made, its figures."""

__all__ = ["CARD", "DATA"]

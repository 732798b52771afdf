"""The specimen `letters`: a five-layer network that tells the glyphs A to J apart, and a sample to try it on.

Nothing heavy is imported here. The network is `penlight.specimens.letters.network.Letters`; the
script that made the weights and the sample is `python -m penlight.specimens.letters.train`. The generator,
which draws glyphs from codes, is `penlight.specimens.letters.generator.open_generator`; its weights came
from `python -m penlight.specimens.letters.train_generator`.
"""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).with_name("sample.npz")
"""Glyphs of families the network never saw: images uint8 (N, 28, 28), labels uint8 (N,) in 0..9,
families int (N,) indexing family_names."""

CARD = Path(__file__).with_name("letters.toml")
"""The machine-readable card: where the network and its weights are, how its input is made, its figures."""

GENERATOR = Path(__file__).with_name("generator.safetensors")
"""Half-precision weights of the generator, which draws glyphs from codes (N, 1152) of the network's deepest features."""

__all__ = ["CARD", "DATA", "GENERATOR"]

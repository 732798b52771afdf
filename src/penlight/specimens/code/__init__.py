"""The specimen `code`: a character LSTM that continues Python source, and source it never saw to try it on.

Nothing heavy is imported here. The network is `penlight.specimens.code.network.Code`; the script that made
the weights and the sample is `python -m penlight.specimens.code.train`.
"""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).with_name("sample.zip")
"""Modules of CPython's standard library that the network never saw, as .py files, under the licence in LICENSE-PSF.txt."""

CARD = Path(__file__).with_name("code.toml")
"""The machine-readable card: where the network and its weights are, its vocabulary, its figures."""

CORPUS = Path(__file__).with_name("corpus.txt")
"""What it was trained and measured on: a line a file, with its side, size and SHA-256."""

__all__ = ["CARD", "CORPUS", "DATA"]

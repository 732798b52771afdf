"""The specimen `biopsies`: a small ReLU network on 30 columns of a table that tells malignant from benign breast masses.

Nothing heavy is imported here. The network is `penlight.specimens.biopsies.network.Biopsies`; the script that made
the weights and the table is `python -m penlight.specimens.biopsies.train`. The data is Breast Cancer Wisconsin
(Diagnostic) by W. Wolberg, O. Mangasarian, N. Street and W. Street, UCI Machine Learning Repository 1993,
doi:10.24432/C5DW2B, licensed under CC BY 4.0; columns were renamed and rows selected. It is no medical device.
"""

from __future__ import annotations

from pathlib import Path

DATA = Path(__file__).with_name("biopsies.csv")
"""Rows that the network never saw: 30 columns of numbers, and `diagnosis`, malignant or benign."""

CARD = Path(__file__).with_name("biopsies.toml")
"""The machine-readable card: where the network and its weights are, its columns, its figures."""

__all__ = ["CARD", "DATA"]

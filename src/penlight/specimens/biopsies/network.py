"""The architecture of the specimen `biopsies`; nothing here knows of Penlight."""

from __future__ import annotations

from torch import Tensor, nn


class Biopsies(nn.Module):
    """Two hidden layers of rectified neurons on a row of 30 columns.

    Input float (N, 30): the columns less the card's means, over its standard deviations.
    Output float (N, 2): logits; `score:0` is malignant, `score:1` benign.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(30, 8)
        self.relu1 = nn.ReLU()
        self.hidden2 = nn.Linear(8, 5)
        self.relu2 = nn.ReLU()
        self.score = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.hidden1(x))
        x = self.relu2(self.hidden2(x))
        logits: Tensor = self.score(x)
        return logits

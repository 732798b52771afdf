"""The network of the specimen: five weighted layers, sixteen 5x5 filters in the first.

========  ============================  ==================  ==========
layer     weights                       output (per input)  then
========  ============================  ==================  ==========
conv1     (16, 1, 5, 5), padding 2      16 x 28 x 28        ReLU, 2x2 max-pool
conv2     (48, 16, 3, 3), padding 1     48 x 14 x 14        ReLU, 2x2 max-pool
conv3     (80, 48, 3, 3), padding 1     80 x 7 x 7          ReLU
conv4     (128, 80, 3, 3), padding 1    128 x 7 x 7         ReLU, 2x2 max-pool
fc        (10, 1152)                    10                  none: logits of A to J
========  ============================  ==================  ==========
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Letters(nn.Module):
    """Glyphs A to J.

    Input float (N, 1, 28, 28): pictures in [0, 1], less the card's mean, over its std.
    Output float (N, 10): logits; `fc:2` is C.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 48, 3, padding=1)
        self.conv3 = nn.Conv2d(48, 80, 3, padding=1)
        self.conv4 = nn.Conv2d(80, 128, 3, padding=1)
        self.fc = nn.Linear(128 * 3 * 3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.conv3(x))
        x = F.max_pool2d(F.relu(self.conv4(x)), 2)
        logits: Tensor = self.fc(x.flatten(1))
        return logits

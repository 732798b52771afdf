"""Tiny networks with hand-workable answers, one of every awkward kind."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def seeded(make, seed=0):
    """A network whose random weights are the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class Functional(nn.Module):
    """ReLU and pooling as calls in forward, as beginners write it."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.flatten(1))


class Viewing(Functional):
    """Flattens by a view, as in most tutorials: it takes maps in one order of memory only."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(x.view(-1, 8 * 4 * 4))


class WritesInput(Functional):
    """Normalises its input in place."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return super().forward(x)


class InPlace(nn.Module):
    """An in-place ReLU overwrites what the convolution and the norm put out."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(x)).flatten(1))


class Reused(nn.Module):
    """One convolution and one ReLU called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.act(self.conv(x))
        return x.mean((2, 3))


class EndsInSoftmax(nn.Module):
    """Class probabilities by a function; the scores are nobody's output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.weight = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(F.relu(self.conv(x)).mean((2, 3)) @ self.weight, 1)


class Tokens(nn.Module):
    """Patches as tokens with a class token, attention, channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, stride=4)
        self.cls = nn.Parameter(torch.zeros(1, 1, 8))
        self.norm = nn.LayerNorm(8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1)
        x = self.norm(x)
        return self.head(self.mix(x, x, x)[0][:, 0])


class Signal(nn.Module):
    """One axis: (N, C, L)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 5, 7, stride=2, padding=3)
        self.conv2 = nn.Conv1d(5, 4, 3, dilation=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean(2))


class ChannelsLast(nn.Module):
    """(N, H, W, C) inside, as in ConvNeXt and Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.norm(self.stem(x).permute(0, 2, 3, 1)))
        return self.head(F.gelu(x).mean((1, 2)))


NETWORKS = {
    "functional": (lambda: Functional(), (1, 16, 16)),
    "seven-channels": (lambda: Functional(7), (7, 16, 16)),
    "viewing": (lambda: Viewing(), (1, 16, 16)),
    "writes-input": (lambda: WritesInput(), (1, 16, 16)),
    "in-place": (lambda: InPlace(), (3, 12, 20)),
    "reused": (lambda: Reused(), (4, 11, 9)),
    "softmax": (lambda: EndsInSoftmax(), (1, 9, 9)),
    "tokens": (lambda: Tokens(), (3, 16, 16)),
    "signal": (lambda: Signal(), (2, 40)),
    "channels-last": (lambda: ChannelsLast(), (3, 12, 8)),
    "table": (lambda: nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)), (7,)),
}


class Row(nn.Module):
    """A network on rows of a table; its layers are named as those of the networks on pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))))


class Reader(nn.Module):
    """A language model on characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm, self.fc = nn.Embedding(5, 4), nn.LSTM(4, 6, 2, batch_first=True), nn.Linear(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.lstm(self.embedding(ids))[0])


TEXTS = ["ab(c)" * 20, "a b\n" * 30, "(a(b)c) " * 12, "cab" * 25]
"""Of the characters that `Reader` knows, and one that it does not."""


def see(pictures):
    """Pictures (n, H, W, C) as vectors of four numbers, as an image encoder gives them."""
    flat = pictures.reshape(len(pictures), -1) / 255
    return np.stack([flat.mean(1), flat.std(1), flat[:, 0], np.ones(len(flat))], axis=1)


def read(texts):
    """Texts as vectors of four numbers, as a text encoder gives them."""
    return np.array([[len(text) / 3, text.count("a"), text.count("b"), 1.0] for text in texts])


class Painter(nn.Module):
    """A generator: codes of six numbers to pictures of 8 × 8."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.code_shape = (6,)
        self.paint = nn.Linear(6, channels * 64)

    def forward(self, code: Tensor) -> Tensor:
        return torch.sigmoid(self.paint(code)).reshape(len(code), -1, 8, 8)


def painter1():
    return seeded(Painter)


def painter2():
    return seeded(lambda: Painter(2))


def painter3():
    return seeded(lambda: Painter(3))


def painter4():
    return seeded(lambda: Painter(4))


def painter7():
    return seeded(lambda: Painter(7))


def fixed():
    """A network with the same weights in every process, and an example of its input."""
    return seeded(Functional), torch.zeros(1, 1, 16, 16)

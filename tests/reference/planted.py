"""Networks into which dead, constant, repeated and dependent units have been written, and what a diagnosis must say of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.inputs import open_data


class Plain(nn.Module):
    """ReLU and pooling as calls."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 5, padding=2), nn.Conv2d(16, 20, 3, padding=1), nn.Linear(20 * 9, 24)
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.a(x)), 2)
        x = F.max_pool2d(F.relu(self.b(x)), 2)
        return self.out(F.relu(self.c(x.flatten(1))))


class Normed(nn.Module):
    """BatchNorm and a ReLU that writes into its input."""

    def __init__(self):
        super().__init__()
        self.a, self.na, self.b, self.nb = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 20, 3),
            nn.BatchNorm2d(20),
        )
        self.act, self.out = nn.ReLU(inplace=True), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.nb(self.b(self.act(self.na(self.a(x))))))
        return self.out(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    """Two branches that are added up."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (
            nn.Conv2d(1, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1),
        )
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.b(F.relu_(self.a(x))))
        return self.out(x.mean((2, 3)))


class Dense(nn.Sequential):
    """Vectors only."""

    def __init__(self):
        super().__init__(nn.Linear(20, 16), nn.ReLU(inplace=True), nn.Linear(16, 18), nn.ReLU(), nn.Linear(18, 4))


class Clamped(nn.Sequential):
    """ReLU6, which has an upper limit too."""

    def __init__(self):
        layers = nn.Conv2d(1, 16, 3), nn.ReLU6(), nn.Conv2d(16, 18, 3), nn.ReLU6(inplace=True)
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 5))


NETWORKS = {
    "plain": (Plain, (1, 12, 12), ("a", "b", "c")),
    "normed": (Normed, (1, 12, 12), ("a", "b")),
    "residual": (Residual, (1, 12, 12), ("stem", "a")),
    "dense": (Dense, (20,), ("0", "2")),
    "clamped": (Clamped, (1, 12, 12), ("0", "2")),
}
PLANTED = {
    2: {"dead"}, 4: {"dead"}, 5: {"static", "always on"}, 7: {"always on"}, 9: {"duplicate"}, 10: {"duplicate"}, 11: {"duplicate"},
    12: {"duplicate"}, 13: {"duplicate"}, 14: {"nearly dead"},
}  # fmt: skip


def planted(name, seed=0, count=300):
    """(model, data, unit → verdicts) of one of `NETWORKS`."""
    make, shape, layers = NETWORKS[name]
    network = zoo.seeded(make, seed).eval()
    inputs = np.random.default_rng(seed).random((count, *shape), np.float32)
    model = penlight.load(network, example=torch.zeros(1, *shape), mean=[0.5], std=[0.29])
    expected: dict[str, set[str]] = {}
    for path in layers:
        _plant(model, path, model.tensor(inputs), seed)
        for unit, verdicts in PLANTED.items():
            also = {"saturated"} if name == "clamped" and unit == 7 else set()
            expected[f"{path}:{unit}"] = verdicts | also
    model = penlight.load(network, example=torch.zeros(1, *shape), mean=[0.5], std=[0.29])
    truth = np.random.default_rng(seed + 1).integers(0, 4, count)
    return (
        model,
        open_data(list(zip(inputs, truth.tolist(), strict=True)), model.contract, list("0123")),
        expected,
    )


def _plant(model, path, x, seed):
    module = model.network.get_submodule(path)
    norm = {"a": "na", "b": "nb"}.get(path) if isinstance(model.network, Normed) else None
    after = module if norm is None else model.network.get_submodule(norm)
    with torch.no_grad():
        w = module.weight
        generator = torch.Generator().manual_seed(seed)
        w.copy_(torch.randn(w.shape, generator=generator) / w[0].numel() ** 0.5)
        if norm:
            after.weight.copy_(0.5 + torch.rand(len(w), generator=generator))
        w[9], w[10], w[11] = w[0], -w[1], 2.5 * w[3]
        w[12] = 0.7 * w[0] - 1.2 * w[6]
        w[13] = w[1] + 0.8 * w[3] - 1.1 * w[8]
        w[2] = w[5] = 0
        before = values(model, path, x) - module.bias.view(-1, *[1] * (len(module.weight.shape) - 2))
        module.bias.copy_(-before.flatten(2).mean((0, 2)) if before.ndim > 2 else -before.mean(0))
        if norm:
            spread = values(model, path, x).flatten(2).transpose(0, 1).flatten(1).std(1)
            after.running_mean.zero_()
            after.running_var.copy_(torch.where(spread > 0, spread**2, torch.ones(())))
        peaks = values(model, norm or path, x)
        peaks = peaks.flatten(2).amax(2) if peaks.ndim > 2 else peaks
        top = peaks[:, 14].sort(descending=True).values
        after.bias[14] -= (top[1] + top[0]) / 2  # one input of all excites it
        after.bias[2], after.bias[5] = -1.0, 0.7
        after.bias[4] -= 100
        least = values(model, norm or path, x)[:, 7].min()
        after.bias[7] += (6.5 if isinstance(model.network, Clamped) else 0.1) - least


def values(model, path, x):
    """What a layer puts out."""
    kept = []
    handle = model.network.get_submodule(path).register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    with torch.no_grad():
        model.network(x.clone())
    handle.remove()
    return kept[0]

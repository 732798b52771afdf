"""Connections and expanded filters against weights written by hand."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from penlight.errors import BadInput, BadUnit, UnknownName
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.results import load_result
from penlight.techniques.contract import Request
from penlight.techniques.survey.weights import Weights
from penlight.techniques.survey.wiring import INPUT, UNKNOWN, sources, weighted


def weights(network, shape, layers=(), **options):
    model = Model(network, InputContract("image" if len(shape) == 3 else "array", shape))
    return Weights(**options).run(Request(model, layers=layers))


class Branches(nn.Module):
    """Two layers side by side, joined, shuffled, normed, pooled, flattened: and all that by functions."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.left = nn.Conv2d(4, 3, 1)
        self.right = nn.Conv2d(4, 5, 3, padding=1, groups=1)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 6, 3, padding=1, groups=2)
        self.fc = nn.Linear(6 * 4 * 4, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem(x)), 2)
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1)))
        x = x[:, torch.tensor([7, 0, 1, 2, 3, 4, 5, 6])]
        x = F.avg_pool2d(F.relu(self.deep(x)), 2)
        return self.fc(x.flatten(1))


def branches():
    network = zoo.seeded(Branches)
    network.norm.running_mean.uniform_(-3, 3, generator=torch.Generator().manual_seed(0))
    network.norm.running_var.uniform_(0.1, 4, generator=torch.Generator().manual_seed(1))
    return network


def test_what_each_channel_reads_is_found_through_everything_between():
    model = Model(branches(), InputContract("image", (3, 16, 16)))
    layers = weighted(model)
    assert list(layers) == ["stem", "left", "right", "deep", "fc"]
    found = sources(model, layers)
    assert found["stem"].tolist() == [[INPUT]] * 3
    assert found["left"].tolist() == found["right"].tolist() == [[0], [1], [2], [3]]
    joined = [[n] for n in (4, 5, 6, 7, 8, 9, 10, 11)]  # left then right
    assert found["deep"].tolist() == [joined[7], *joined[:7]]
    assert found["fc"].tolist() == [[12 + n // 16] for n in range(96)]


def test_connections_are_norms_of_the_weights_between_two_units(tmp_path):
    network = branches()
    result = weights(network, (3, 16, 16), strongest=3)
    result = load_result(result.save(tmp_path / "r"))
    assert result.sources == {
        "stem": (),
        "left": ("stem",),
        "right": ("stem",),
        "deep": ("left", "right"),
        "fc": ("deep",),
    }
    assert result.fed_by("stem:0") == []
    kernel = network.right.weight.detach().numpy()[2]  # (4, 3, 3)
    norms = np.sqrt((kernel**2).sum((1, 2)))
    order = np.argsort(-norms)
    assert [one.unit for one in result.fed_by("right:2")] == [f"stem:{n}" for n in order[:3]]
    first = result.fed_by("right:2")[0]
    np.testing.assert_allclose(first.norm, norms[order[0]], rtol=1e-6)
    np.testing.assert_allclose(first.share, norms[order[0]] ** 2 / (norms**2).sum(), rtol=1e-6)
    np.testing.assert_allclose(first.sign, kernel[order[0]].sum() / np.abs(kernel[order[0]]).sum(), rtol=1e-5)
    one = network.left.weight.detach().numpy()[1, :, 0, 0]
    assert {f.unit: f.sign for f in result.fed_by("left:1")} == {
        f"stem:{n}": np.sign(one[n]) for n in np.argsort(-np.abs(one))[:3]
    }
    # deep's first three units read the first half of what was joined and turned: right:4, left:0, left:1, left:2
    assert {f.unit for f in weights(network, (3, 16, 16), strongest=9).fed_by("deep:0")} == {
        "right:4",
        "left:0",
        "left:1",
        "left:2",
    }
    dense = network.fc.weight.detach().numpy().reshape(5, 6, 16)
    shares = (dense**2).sum(2) / (dense**2).sum((1, 2))[:, None]
    assert [f.unit for f in result.fed_by("fc:3")] == [f"deep:{n}" for n in np.argsort(-shares[3])[:3]]
    onward = result.feeds_into("deep:2")
    assert [f.unit for f in onward] == [f"fc:{n}" for n in np.argsort(-shares[:, 2])[:3]]
    np.testing.assert_allclose([f.share for f in onward], np.sort(shares[:, 2])[::-1][:3], rtol=1e-5)
    assert {f.unit.split(":")[0] for f in weights(network, (3, 16, 16), strongest=9).feeds_into("stem:1")} == {
        "left",
        "right",
    }
    told = json.loads(result.to_json())
    assert told["layers"][3]["fed_by"] == ["left", "right"]
    assert len(told["units"]) == 4 + 3 + 5 + 6 + 5


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.a(x)
        return self.c(x + self.b(F.relu(x))).mean((2, 3))


def test_a_sum_counts_for_each_unit_in_it():
    network = zoo.seeded(Residual)
    model = Model(network, InputContract("image", (1, 9, 9)))
    found = sources(model, weighted(model))
    assert found["b"].tolist() == [[0], [1], [2], [3]]
    assert found["c"].tolist() == [[n, 4 + n] for n in range(4)]
    result = weights(zoo.seeded(Residual), (1, 9, 9), strongest=8)
    assert result.sources["c"] == ("a", "b")
    own = network.c.weight.detach().numpy()[0, :, 0, 0]
    fed = {one.unit: one for one in result.fed_by("c:0")}
    assert set(fed) == {f"{layer}:{n}" for layer in "ab" for n in range(4)}
    for n in range(4):
        assert fed[f"a:{n}"].share == fed[f"b:{n}"].share == pytest.approx(own[n] ** 2 / (own**2).sum(), rel=1e-5)
    assert {one.unit for one in result.feeds_into("b:2")} == {"c:0", "c:1"}


class Stages(nn.Module):
    """Blocks behind one another whose sums are rectified, one of fewer positions, a dense one, and a norm over channels at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 5, 3, padding=1)
        self.first, self.second = nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 1)
        self.short, self.down = nn.Conv2d(5, 6, 1, 2), nn.Conv2d(5, 6, 3, 2, 1)
        self.dense, self.again = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.out = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.first(x))
        x = F.relu(self.second(x).roll(1, 1) + x)
        x = F.relu(self.short(x) + self.down(x)).mean((2, 3))
        x = F.relu(x + self.dense(x))
        return self.out(self.norm(x + self.again(x)))


def test_sums_of_sums_are_followed_to_every_unit_and_a_norm_over_channels_is_not():
    model = Model(zoo.seeded(Stages), InputContract("image", (2, 8, 8)))
    layers = weighted(model)
    start = dict(zip(layers, np.cumsum([0, *(layer.units for layer in layers.values())]).tolist(), strict=False))
    found = sources(model, layers)
    assert found["first"].tolist() == [[n] for n in range(5)]
    assert [sorted(row) for row in found["second"].tolist()] == [[n, start["first"] + n] for n in range(5)]
    for path in ("short", "down"):
        assert [sorted(row) for row in found[path].tolist()] == [
            [n, start["first"] + n, start["second"] + (n - 1) % 5] for n in range(5)
        ]
    assert [sorted(row) for row in found["dense"].tolist()] == [
        [start["short"] + n, start["down"] + n] for n in range(6)
    ]
    assert [sorted(row) for row in found["again"].tolist()] == [
        sorted((start["short"] + n, start["down"] + n, start["dense"] + n)) for n in range(6)
    ]
    assert (found["out"][:, 0] == UNKNOWN).all()


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_any_network(name):
    make, shape = zoo.NETWORKS[name]
    network = zoo.seeded(make)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    result = weights(network, shape)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    known = {path: result.sources[path] for path in result.sources}
    if name in ("functional", "viewing", "writes-input", "seven-channels"):
        assert known == {"conv1": (), "conv2": ("conv1",), "fc": ("conv2",)}
        assert len(result.fed_by("fc:1")) == 6
    if name == "reused":
        assert known == {"conv": (), "conv#2": ("conv",), "conv#3": ("conv#2",)}
    if name == "table":
        assert known == {"0": (), "2": ("0",)}
    if name == "signal":
        assert known == {"conv1": (), "conv2": ("conv1",), "fc": ("conv2",)}
    if name == "channels-last":
        assert known["up"] is None  # a normalisation over the channels
        assert known["head"] == ("up",)


class Two(nn.Module):
    """conv 3 × 3 stride 2, ReLU, max-pool 2, conv 2 × 2: an expanded filter by hand."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(1, 3, 3, stride=2)
        self.act = nn.ReLU(inplace=True)
        self.two = nn.Conv2d(3, 2, 2)

    def forward(self, x):
        return self.two(F.max_pool2d(self.act(self.one(x)), 2)).mean((2, 3))


def test_an_expanded_filter_is_the_sum_over_all_ways():
    network = zoo.seeded(Two)
    result = weights(network, (1, 60, 60))
    one, two = (m.weight.detach().double().numpy() for m in (network.one, network.two))
    side = 2 * 3 + 3  # four first-layer places in each direction, two pixels apart
    expected = np.zeros((2, side, side))
    for u, c, i, j in np.ndindex(2, 3, 2, 2):
        for a, b in np.ndindex(2, 2):  # the pool as a mean
            y, x = 2 * (2 * i + a), 2 * (2 * j + b)
            expected[u, y : y + 3, x : x + 3] += two[u, c, i, j] / 4 * one[c, 0]
    assert result.expanded["two"].shape == (2, side, side, 1)
    np.testing.assert_allclose(result.expanded["two"][..., 0], expected, atol=1e-6)
    assert list(result.expanded) == ["two"]
    picture = result.picture("two:1")
    np.testing.assert_array_equal(
        picture[..., 0], np.rint(128 + 127 * result.expanded["two"][1, ..., 0] / np.abs(expected[1]).max())
    )
    assert [p.name for p in result.pictures()] == ["two_0-expanded", "two_1-expanded"]
    assert result.picture("one:0") is None
    assert not weights(network, (1, 60, 60), depth=1).expanded


class Bends(Two):
    def forward(self, x):
        return self.two(self.one(x) ** 2).mean((2, 3))


def test_what_bends_is_not_expanded():
    result = weights(zoo.seeded(Bends), (1, 20, 20))
    assert result.sources["two"] == ("one",)
    assert not result.expanded


def test_mistakes_are_said_in_a_line():
    result = weights(branches(), (3, 16, 16))
    with pytest.raises(UnknownName, match="did you mean 'left'"):
        result.fed_by("lef:0")
    with pytest.raises(BadUnit, match="units 0 to 2"):
        result.feeds_into("left:3")
    with pytest.raises(BadInput, match="'norm' is a BatchNorm2d"):
        weights(branches(), (3, 16, 16), ["norm"])

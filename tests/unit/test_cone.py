"""What one position sees of every convolution: boxes against closed forms, values and gradients against the whole network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import penlight
import zoo
from penlight.inputs import InputContract
from penlight.models import Model, Probe
from penlight.techniques.visualize import render
from penlight.techniques.visualize.cone import cone
from penlight.techniques.visualize.engine import Stage
from penlight.techniques.visualize.scene import Optics


def contract(shape):
    return InputContract("image", shape, (0.5,) * 3, (0.25,) * 3)


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), nn.ReLU6(),
        nn.Conv2d(8, 6, (5, 3), stride=(2, 1), padding=(2, 1)), nn.GELU(), nn.Conv2d(6, 5, 3, padding=1),
    )  # fmt: skip


class Branched(nn.Module):
    """A residual sum, a concatenation of branches of different reach, and in-place ReLUs."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.near, self.far = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 5, padding=2)
        self.again, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu_(self.stem(x))
        x = torch.cat([self.near(x), F.relu(self.far(x))], 1)
        return self.last(F.relu_(x + self.again(x)))


class Gated(nn.Module):
    """Every position scales with the mean of all: nothing can be left out below."""

    def __init__(self):
        super().__init__()
        self.first, self.gate, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x = self.first(x)
        return self.last(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True))))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return self.last(torch.relu(self.conv(torch.relu(self.conv(x)))))


def boxes(found):
    return {
        path: (part.box.top, part.box.bottom, part.box.left, part.box.right)
        for path, part in found.network.named_modules()
        if hasattr(part, "box")
    }


def both(network, twin, layer, position, x):
    found = []
    for one in (network, twin):
        kept, leaf = [], x.clone().requires_grad_(True)
        with Probe(one, {layer.path: lambda output, kept=kept: kept.append(output[:, :, *position])}) as probe:
            probe(leaf)
        found.append((kept[0], torch.autograd.grad(kept[0].square().sum(), leaf)[0]))
    return found


@pytest.mark.parametrize("position", [None, (0, 0), (2, 7), (5, 11)])
@pytest.mark.parametrize(("make", "path"), [(chain, "7"), (Branched, "last")])
def test_a_cone_gives_the_whole_networks_values_and_gradients(monkeypatch, make, path, position):
    monkeypatch.setattr("penlight.techniques.visualize.cone._SAVES", 0.9)  # also where it would not pay
    model = Model(zoo.seeded(make), contract((3, 24, 24) if make is chain else (3, 26, 26)))
    network, layer = model.prepared(keep=[path]), model.layer(path)
    found = cone(network, layer, position, torch.zeros(1, *model.contract.shape))
    assert found is not None
    place = position or tuple(n // 2 for n in layer.positions)
    for whole, part in zip(
        *both(network, found.network, layer, place, torch.rand(3, *model.contract.shape)), strict=True
    ):
        torch.testing.assert_close(part, whole, rtol=1e-5, atol=1e-6)
    assert boxes(found)[path] == (place[0], place[0] + 1, place[1], place[1] + 1)


def test_boxes_are_the_closed_forms():
    model = penlight.load("letters")
    found = cone(model.prepared(keep=["conv4"]), model.layer("conv4"), None, torch.zeros(1, 1, 28, 28))
    # conv4 at (3, 3) sees 3 × 3 of conv3, 5 × 5 of pool2, 10 × 10 of conv2; of conv1 it is 24 × 24, which is left whole
    assert boxes(found) == {"conv4": (3, 4, 3, 4), "conv3": (2, 5, 2, 5), "conv2": (2, 12, 2, 12)}


@pytest.mark.parametrize("make", [Gated, Twice])
def test_what_mixes_all_positions_or_runs_twice_is_left_whole(monkeypatch, make):
    model = Model(zoo.seeded(make), contract((3, 20, 20)))
    network, layer = model.prepared(keep=["last"]), model.layer("last")
    monkeypatch.setattr("penlight.techniques.visualize.cone._SAVES", 1.0)
    assert set(boxes(cone(network, layer, None, torch.zeros(1, 3, 20, 20)))) == {"last"}


def test_work_that_cannot_be_saved_counts():
    model = Model(zoo.seeded(Twice), contract((3, 20, 20)))  # the last convolution is 4 of 10 parts of the work
    assert cone(model.prepared(keep=["last"]), model.layer("last"), None, torch.zeros(1, 3, 20, 20)) is None


def test_what_saves_little_is_not_worth_it():
    model = Model(zoo.seeded(chain), contract((3, 24, 24)))
    assert cone(model.prepared(keep=["7"]), model.layer("7"), None, torch.zeros(1, 3, 24, 24)) is None


def test_a_network_whose_zeros_matter_is_used_whole(monkeypatch):
    monkeypatch.setattr("penlight.techniques.visualize.cone._SAVES", 0.9)

    class Hidden(nn.Module):
        """What is not a number counts as zero here, so that probing with it finds nothing."""

        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            x = self.first(x)
            return self.last(x + torch.nan_to_num(x).mean((2, 3), keepdim=True))

    model = Model(zoo.seeded(Hidden), contract((3, 20, 20)))
    network, layer = model.prepared(keep=["last"]), model.layer("last")
    assert cone(network, layer, None, torch.zeros(1, 3, 20, 20)) is None


def test_pictures_are_the_same_with_and_without(monkeypatch):
    found = []

    def known(*given):
        found.append(cone(*given))
        return found[-1]

    monkeypatch.setattr(render, "cone", known)
    with_cone = penlight.visualize("letters", ["conv4:3", "conv4:60"], steps=6)
    assert [one is not None for one in found] == [True]
    monkeypatch.setattr(render, "cone", lambda *_: None)
    without = penlight.visualize("letters", ["conv4:3", "conv4:60"], steps=6)
    assert abs(with_cone.images.astype(int) - without.images.astype(int)).max() <= 1


def test_inputs_of_another_size_go_to_the_whole_network():
    model = penlight.load("letters")
    network, layers = model.prepared(keep=["conv4"]), {"conv4": model.layer("conv4")}
    found = cone(network, layers["conv4"], None, torch.zeros(1, 1, 28, 28))
    stage = Stage(network, layers, Optics.of(model), cone=found)
    assert stage.seeing(torch.zeros(2, 1, 28, 28)) is found.network
    assert stage.seeing(torch.zeros(2, 1, 28, 27)) is network

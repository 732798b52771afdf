"""Receptive fields against closed forms: size = 1 + Σ (k − 1)·d·Π strides before, stride = Π strides."""

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.models import receptive
from penlight.models.layers import ReceptiveField


def closed_form(stack):
    """(size, stride) after each (kernel, stride, dilation)."""
    size, jump, out = 1, 1, []
    for kernel, stride, dilation in stack:
        size += (kernel - 1) * dilation * jump
        jump *= stride
        out.append((size, jump))
    return out


def fields(network, shape):
    return penlight.load(network, example=torch.zeros(1, *shape)).fields


STACKS = {
    "alexnet-like": [(11, 4, 1), (3, 2, 1), (5, 1, 1), (3, 2, 1), (3, 1, 1)],
    "strided": [(3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 2, 1)],
    "dilated": [(3, 1, 1), (3, 1, 2), (3, 1, 4)],
    "even": [(2, 2, 1), (4, 1, 1), (2, 1, 1)],
    "skipping": [(1, 2, 1), (3, 1, 1), (1, 3, 1)],
    "patches": [
        (8, 8, 1),
        (3, 1, 3),
        (3, 1, 1),
    ],  # fields with holes, edges farther apart than the rows that are asked first
    "coarse": [(16, 16, 1), (3, 1, 2), (3, 2, 1), (1, 1, 1)],
    "holes": [(1, 9, 1), (3, 1, 3), (3, 2, 1)],
    "sparse": [(1, 20, 1), (2, 1, 1)],  # most rows are seen by nobody
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize("padded", [False, True])
def test_convolutions_and_pools(name, padded):
    modules = []
    for n, (kernel, stride, dilation) in enumerate(STACKS[name]):
        pad = (kernel - 1) * dilation // 2 if padded else 0
        if n % 2 and dilation == 1 and kernel > 1:
            modules.append(nn.MaxPool2d(kernel, stride, min(pad, kernel // 2)))
        else:
            modules.append(nn.Conv2d(2, 2, kernel, stride, pad, dilation))
    found = fields(zoo.seeded(lambda: nn.Sequential(*modules)), (2, 160, 160))
    for n, (size, stride) in enumerate(closed_form(STACKS[name])):
        assert found[str(n)] == ReceptiveField((size, size), (stride, stride)), n


def test_height_and_width_are_told_apart():
    network = nn.Sequential(nn.Conv2d(1, 2, (3, 7), stride=(1, 2)), nn.ReLU(), nn.MaxPool2d((2, 1)))
    found = fields(network, (1, 30, 48))
    assert found["0"] == ReceptiveField((3, 7), (1, 2))
    assert found["2"] == ReceptiveField((4, 7), (2, 2))


def test_zero_weights_and_dead_relus_do_not_hide_a_dependency():
    network = nn.Sequential(nn.Conv2d(1, 1, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU6())
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].bias.fill_(-1)
    assert fields(network, (1, 32, 32))["3"] == ReceptiveField((6, 6), (2, 2))


def test_a_field_larger_than_the_picture_is_found_whole():
    network = nn.Sequential(*[nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(5)])
    assert fields(network, (1, 32, 32))["4"] == ReceptiveField((63, 63), (32, 32))


def test_global_pooling_attention_and_squeeze_see_everything(open_zoo):
    assert open_zoo("in-place").fields["pool"] is None
    assert open_zoo("in-place").fields["head"] is None
    assert open_zoo("in-place").fields["body"] == ReceptiveField((3, 3), (1, 1))
    tokens = open_zoo("tokens").fields
    assert tokens["patch"] == ReceptiveField((4, 4), (4, 4))
    assert tokens["mix"] is None

    class Squeeze(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1)
            self.out = nn.Identity()

        def forward(self, x):
            x = self.conv(x)
            return self.out(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())

    found = fields(Squeeze(), (1, 20, 20))
    assert found["conv"] == ReceptiveField((3, 3), (1, 1))
    assert found["out"] is None


def test_residual_and_parallel_branches_take_the_widest():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.out = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 7, padding=3), nn.ReLU()

        def forward(self, x):
            return self.out(torch.cat([self.a(x), self.b(x) + x], 1))

    assert fields(Branches(), (1, 24, 24))["out"] == ReceptiveField((7, 7), (1, 1))


def test_one_axis_and_reused_modules(open_zoo):
    assert open_zoo("signal").fields["conv1"] == ReceptiveField((7,), (2,))
    assert open_zoo("signal").fields["conv2"] == ReceptiveField((15,), (2,))
    reused = open_zoo("reused").fields
    assert [reused[p].size for p in ("conv", "conv#2", "conv#3")] == [(3, 3), (5, 5), (7, 7)]


def test_channels_last(open_zoo):
    found = open_zoo("channels-last").fields
    assert found["up"] == ReceptiveField((2, 2), (2, 2))


def test_upsampling_is_swept():
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Upsample(scale_factor=2, mode="nearest"))
    assert fields(network, (1, 16, 16))["1"].size == (3, 3)


@pytest.mark.parametrize("name", ["alexnet-like", "even", "skipping", "patches", "holes"])
def test_boxes_of_every_position_are_those_of_the_gradient(name):
    """An all-positive linear stack: the gradient of a position is non-zero exactly on its receptive field."""
    network = nn.Sequential(*[nn.Conv2d(1, 1, k, s, k // 2, d) for k, s, d in STACKS[name]])
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(0.1)
    model = penlight.load(network, example=torch.zeros(1, 1, 60, 44))
    path = list(model.layers)[-1]
    x = torch.zeros(1, 1, 60, 44, requires_grad=True)
    out = network(x)[0, 0]
    for place in np.ndindex(*out.shape):
        (grad,) = torch.autograd.grad(out[place], x, retain_graph=True)
        rows, columns = torch.nonzero(grad[0, 0], as_tuple=True)
        expected = ((int(rows.min()), int(rows.max()) + 1), (int(columns.min()), int(columns.max()) + 1))
        assert model.box(path, place) == expected, place


class Windows(nn.Module):
    """Attention inside windows, of which every second layer's are shifted: what is seen changes every few rows, unevenly."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.first, self.second, self.merge = nn.Conv2d(1, 2, 4, 4), *(nn.Identity() for _ in range(3))

    def forward(self, x):
        x = self.patch(x)
        x = self.first(self.attend(x))
        x = self.second(self.attend(x.roll((-2, -2), (2, 3))).roll((2, 2), (2, 3)))
        return self.merge(nn.functional.avg_pool2d(x, 2))

    def attend(self, x):
        return nn.functional.interpolate(nn.functional.avg_pool2d(x, 5), scale_factor=5) + x


UNEVEN = {
    "windows": (Windows, 80),
    "adaptive": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 5, 2, 2), nn.AdaptiveAvgPool2d(7), nn.Conv2d(2, 2, 3, padding=1)),
        90,
    ),
    "enlarged": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, 4), nn.Upsample(scale_factor=3, mode="bilinear"), nn.Conv2d(2, 2, 3)),
        70,
    ),
    "skipping": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1, 7), nn.AdaptiveMaxPool2d(4), nn.Upsample(scale_factor=2)),
        66,
    ),
    "with holes": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3, 11), nn.Conv2d(2, 2, 3, padding=2, dilation=2), nn.AdaptiveAvgPool2d(3)
        ),
        100,
    ),
}

SKIPPING = ("enlarged", "skipping", "with holes")  # rows that nobody sees: all are asked


@pytest.mark.parametrize("name", UNEVEN)
def test_what_lies_between_rows_that_hit_the_same_is_as_if_it_had_been_asked(name, monkeypatch):
    make, side = UNEVEN[name]
    rows = 0

    def told():
        model = penlight.load(zoo.seeded(make), example=torch.zeros(1, 1, side, side))
        return {
            path: [(a.size, a.stride, a.first.tolist(), a.last.tolist()) for a in one]
            for path, one in model.lines.items()
        }

    def count(self, asked, layers):
        nonlocal rows
        rows += len(asked)
        plain(self, asked, layers)

    plain = receptive._Canvas._pass
    monkeypatch.setattr(receptive._Canvas, "_pass", count)
    found, asked = told(), rows
    monkeypatch.setattr(receptive, "_search", lambda canvas, rows, paths: canvas.test(rows, paths))
    rows = 0
    assert found == told()
    assert asked < rows or (name in SKIPPING and asked == rows)

"""Convolutions from packed weights answer as the plain ones do, and stay plain where they cannot."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import warnings

import pytest
import torch
from torch import Tensor, nn

import zoo
from penlight.models import packing
from penlight.models.packing import Packed, packed, pointwise
from penlight.models.sources.vision import import_torchvision


class Doubled(nn.Conv2d):
    """A convolution with a mind of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Net(nn.Module):
    """Convolutions of every kind, and others."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 24, 1)
        self.bare = nn.Conv2d(24, 8, 1, bias=False)
        self.strided = nn.Conv2d(8, 8, 1, stride=2)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.padded = nn.Conv2d(8, 8, 1, padding=1)
        self.own = Doubled(8, 8, 1)
        self.hooked = nn.Conv2d(8, 8, 1)
        self.hooked.register_forward_hook(lambda module, inputs, output: output + 1)
        self.idle = nn.Conv2d(8, 8, 1)
        self.dilated = nn.Conv2d(8, 8, (3, 1), padding=(2, 0), dilation=(2, 1), groups=8)
        self.mirrored = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.same = nn.Conv2d(8, 8, 3, padding="same")
        self.twice = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bare(torch.relu(self.wide(torch.relu(self.first(x)))))
        x = self.padded(self.grouped(self.strided(x)))
        x = self.same(self.mirrored(self.dilated(self.hooked(self.own(x)))))
        return self.twice(torch.relu(self.twice(x)))


@pytest.fixture
def net():
    return zoo.seeded(Net).eval()


def inputs(count=3, side=10):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def chosen(network):
    return {name for name, module in network.named_modules() if isinstance(vars(module).get("forward"), Packed)}


@pytest.mark.parametrize(
    "x", [inputs(), inputs(1, 7), inputs(17, 4), inputs().contiguous(memory_format=torch.channels_last)]
)
def test_outputs_are_the_networks(net, x):
    twin = packed(net, inputs())
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), net(x), rtol=1e-5, atol=1e-6)


def test_plain_convolutions_that_run_are_packed(net):
    x = torch.zeros(1, 8, 4, 4)
    if Packed.of(net.wide, x, net.wide(x).detach()) is None:
        pytest.skip("this PyTorch has no packed convolution")
    wanted = {"first", "wide", "bare", "strided", "grouped", "padded", "dilated", "same", "twice"}
    assert chosen(packed(net, inputs())) == wanted


def test_the_network_stays_as_it_was_and_shares_its_weights(net):
    twin = packed(net, inputs())
    assert not chosen(net)
    assert twin.wide.weight.data_ptr() == net.wide.weight.data_ptr()
    assert not twin.wide.weight.requires_grad
    assert net.wide.weight.requires_grad


def test_gradients_come_through(net):
    twin, x = packed(net, inputs()), inputs().requires_grad_()
    (found,) = torch.autograd.grad(twin(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(net(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_one_input_without_its_batch_axis_and_another_precision(net):
    one = packed(net, inputs()).wide
    x = torch.randn(8, 5, 5)
    torch.testing.assert_close(one(x), net.wide(x))
    with pytest.raises(RuntimeError):
        one(x.double())


def test_copies_of_packed_networks_work(net):
    twin = copy.deepcopy(packed(net, inputs()))
    with torch.inference_mode():
        torch.testing.assert_close(twin(inputs()), net(inputs()), rtol=1e-5, atol=1e-6)


def test_nothing_is_packed_where_the_operator_is_missing(net, monkeypatch):
    def missing(self, *given):
        raise AttributeError("no such operator")

    monkeypatch.setattr(Packed, "__init__", missing)
    twin = packed(net, inputs())
    assert not chosen(twin)
    with torch.inference_mode():
        assert torch.equal(twin(inputs()), net(inputs()))


def test_an_operator_that_answers_otherwise_is_not_used(net, monkeypatch):
    plain = Packed.__call__
    monkeypatch.setattr(Packed, "__call__", lambda self, x: plain(self, x) * 1.01)
    assert not chosen(packed(net, inputs()))


def test_texts_and_tables_pass_as_they_are():
    net = nn.Linear(4, 2)
    assert packed(net, torch.zeros(2, 4)) is net


def test_pointwise_says_which():
    assert pointwise(nn.Conv2d(2, 3, 1))
    assert pointwise(nn.Conv2d(2, 3, 1, padding="same"))
    for other in (
        nn.Conv2d(2, 3, 3),
        nn.Conv2d(2, 2, 1, groups=2),
        nn.Conv2d(2, 3, 1, stride=2),
        nn.Conv1d(2, 3, 1),
        Doubled(2, 3, 1),
    ):
        assert not pointwise(other)


def same(*given, **options):
    """TensorFlow's "SAME", as timm has it."""
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()  # which timm imports, and which may not fit the installed torch
    made = importlib.import_module("timm.layers").Conv2dSame(*given, **options)
    assert type(made).__name__ == "Conv2dSame"
    return made


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("size", [(12, 12), (13, 10), (5, 4)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: same(6, 8, 3, stride=2),
        lambda: same(6, 6, 5, stride=2, groups=6, bias=False),
        lambda: same(6, 8, (2, 3), stride=(1, 2)),
        lambda: same(6, 8, 3, dilation=2),
        lambda: nn.Conv2d(6, 8, 4, padding="same"),
        lambda: nn.Conv2d(6, 8, (2, 5), padding="same", dilation=(1, 3)),
    ],
)
def test_convolutions_that_pad_by_the_size_of_their_input(make, size):
    torch.manual_seed(0)
    conv = make()
    x = torch.randn(2, 6, *size)
    one = Packed.of(conv, x, conv(x).detach())
    if one is None:
        plain = nn.Conv2d(6, 8, 3)
        assert Packed.of(plain, x, plain(x).detach()) is None, "only this convolution is not packed"
        pytest.skip("this PyTorch has no packed convolution")
    with torch.inference_mode():
        torch.testing.assert_close(one(x), conv(x), rtol=1e-5, atol=1e-6)
        for other in (x[:, :, :-1], x[:, :, :, 1:], torch.cat([x, x], 3), x[0]):  # other sizes than it is packed for
            torch.testing.assert_close(one(other), conv(other), rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad(one(x.requires_grad_()).square().sum(), x)
    (wanted,) = torch.autograd.grad(conv(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_filters_whose_taps_are_apart_cannot_begin_with_a_zero():
    conv = nn.Conv2d(6, 8, 4, padding="same", dilation=3)
    x = torch.randn(2, 6, 12, 12)
    assert Packed.of(conv, x, conv(x).detach()) is None
    network = nn.Sequential(conv, nn.ReLU()).eval()
    with torch.inference_mode():
        assert torch.equal(packed(network, x)(x), network(x))


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
def test_rectifiers_are_joined_to_them():
    network = nn.Sequential(nn.Conv2d(3, 4, 2, padding="same"), nn.ReLU6(), nn.Conv2d(4, 4, 1)).eval()
    skip_without(network, inputs())
    twin = packed(network, inputs(), [])
    assert joins(twin) == {"0"}
    with torch.inference_mode():
        for x in (inputs(), inputs(2, 7)):
            torch.testing.assert_close(twin(x), network(x), rtol=1e-5, atol=1e-6)


def test_without_onednn_the_network_is_returned(net, monkeypatch):
    monkeypatch.setattr(packing.torch.backends.mkldnn, "is_available", lambda: False)
    assert packed(net, inputs()) is net


# rectifiers joined to the convolution before them


class Rectified(nn.Module):
    """Convolutions with rectifiers after them: read by nothing else, added to on the way, read twice, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2, 2, dilation=2), nn.ReLU(), nn.Conv2d(6, 3, 3, 1, 2, 1, 3), nn.ReLU6()
        )
        self.one = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU6())
        self.two = nn.Sequential(nn.Conv2d(12, 12, 1), nn.Identity(), nn.Hardtanh(-0.2, 0.3, inplace=True))
        self.three, self.silu = nn.Conv2d(12, 12, 1), nn.SiLU()
        self.added, self.after = nn.Conv2d(12, 12, 1), nn.ReLU()
        self.again, self.relu = nn.Conv2d(12, 12, 1), nn.ReLU()
        self.last, self.gelu = nn.Conv2d(12, 12, 1), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.silu(self.three(self.two(self.one(self.zero(x)))))
        y = self.added(x)
        y += x  # in place: the rectifier reads the same memory, and other values
        y = self.after(y)
        y = self.relu(self.again(y)) + self.relu(self.again(x))
        return self.gelu(self.last(y))


class Between(nn.Module):
    """Something reads what lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 5, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        made = self.conv(x)
        return self.relu(made) - made


def joins(network):
    """Convolutions whose own output is already rectified."""
    return {
        name
        for name, module in network.named_modules()
        if isinstance(one := vars(module).get("forward"), Packed) and one._then.name != "none"
    }


@pytest.fixture
def rectified():
    return zoo.seeded(Rectified).eval()


def skip_without(net, x):
    if not joins(packed(net, x, [])):
        pytest.skip("this PyTorch has no packed convolution with rectifiers")


def test_rectifiers_that_alone_read_a_convolution_are_joined_to_it(rectified):
    x = inputs()
    skip_without(rectified, x)
    twin = packed(rectified, x, [])
    assert joins(twin) == {"zero.0", "zero.2", "one.0", "two.0", "three"}
    for given in (x, inputs(5, 7), 3 * inputs(2, 4)):
        with torch.inference_mode():
            torch.testing.assert_close(twin(given), rectified(given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("one.0", {"two.0", "three"}),
        ("one.1", {"one.0", "two.0", "three"}),
        ("two.1", {"one.0", "three"}),  # the identity puts out what the convolution did
        ("three#1", {"one.0", "two.0"}),
        ("one", {"one.0", "two.0", "three"}),
    ],
)
def test_layers_that_will_be_read_give_what_they_did(rectified, path, left):
    x = inputs()
    skip_without(rectified, x)
    twin = packed(rectified, x, [path])
    assert joins(twin) == {"zero.0", "zero.2"} | left
    read = {}
    for name, net in (("twin", twin), ("plain", rectified)):
        module = net.get_submodule(path.partition("#")[0])
        handle = module.register_forward_hook(lambda m, i, o, name=name: read.__setitem__(name, o.clone()))
        with torch.inference_mode():
            net(x)
        handle.remove()
    torch.testing.assert_close(read["twin"], read["plain"], rtol=1e-5, atol=1e-6)


def test_nothing_is_joined_unless_it_is_said_what_will_be_read(rectified):
    assert not joins(packed(rectified, inputs()))


def test_what_something_else_reads_is_left_alone():
    net = zoo.seeded(Between).eval()
    twin = packed(net, inputs(), [])
    assert not joins(twin)
    with torch.inference_mode():
        torch.testing.assert_close(twin(inputs()), net(inputs()), rtol=1e-5, atol=1e-6)


def test_gradients_come_through_joined_rectifiers(rectified):
    twin, x = packed(rectified, inputs(), []), inputs().requires_grad_()
    (found,) = torch.autograd.grad(twin(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(rectified(x).square().sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(twin)
    with torch.inference_mode():
        torch.testing.assert_close(again(inputs()), rectified(inputs()), rtol=1e-5, atol=1e-6)


def test_networks_are_packed_within_inference_too(rectified):
    with torch.inference_mode():
        twin = packed(rectified, inputs(), [])
        torch.testing.assert_close(twin(inputs()), rectified(inputs()), rtol=1e-5, atol=1e-6)
    assert joins(twin) == joins(packed(rectified, inputs(), []))

"""Incremental inference against full passes, operator by operator."""

import gc

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import zoo
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.explain import windowed_blocks
from penlight.techniques.explain import windowed_slides as slides
from penlight.techniques.explain import windowed_winograd as winograd
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.occlusion_passes import Cover, Passes
from penlight.techniques.explain.windowed_boxes import Axis, alike


def scene_of(network, shape, unit=None, seed=0):
    network = network.eval()
    generator = torch.Generator().manual_seed(9)
    for module in network.modules():  # statistics that are not 0 and 1, so that a norm does something
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.3
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    x = np.random.default_rng(seed).random(shape, dtype=np.float32)
    model = Model(network, InputContract("array", shape, (0.4,), (0.5,)))
    return open_scene(Request(model, input=x, targets=[unit] if unit else []))


def both(network, shape, unit=None, window=(5, 5), stride=(2, 3), channel=None, seed=0):
    """Scores of incremental and of full passes, and the incremental `Passes`."""
    scene = scene_of(network, shape, unit, seed)
    fill = torch.zeros_like(scene.x)
    rows, columns = range(0, shape[1] - 1, stride[0]), range(0, shape[2] - 1, stride[1])
    covers = [Cover(row, column, *window, channel) for row in rows for column in columns]
    quick, slow = Passes(scene, fill), Passes(scene, fill, incremental=False)
    got, wanted = quick.values(covers, lambda n: None), slow.values(covers, lambda n: None)
    assert torch.isfinite(wanted).all()
    assert wanted.std() > 1e-4 * wanted.abs().max()  # covering matters, so agreement says something
    return got, wanted, quick


def agree(network, shape, unit=None, fallbacks=(), **options):
    got, wanted, passes = both(network, shape, unit, **options)
    assert passes.reason == ""
    assert [line.split(" in ")[0] for line in passes.fallbacks] == list(fallbacks)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    assert fallbacks or passes.share < 1
    return passes


class Net(nn.Module):
    """Layers made by `make`, put together by `run`, then a head that depends on where things are."""

    def __init__(self, layers, run, channels, head="flat"):
        super().__init__()
        self.layers, self.run, self.head = nn.ModuleDict(layers), run, head
        self.fc = nn.LazyLinear(3) if head == "flat" else nn.Linear(channels, 3)

    def forward(self, x):
        x = self.run(self.layers, x)
        return self.fc(x.flatten(1) if self.head == "flat" else x.mean((2, 3)))


def net(layers, run, shape=(3, 22, 27), channels=0, head="flat"):
    def make():
        made = Net(layers(), run, channels, head)
        made(torch.zeros(1, *shape))
        return made

    return zoo.seeded(make)


def chain(*layers, **options):
    return lambda: net(lambda: {"a": nn.Sequential(*(make() for make in layers))}, lambda m, x: m["a"](x), **options)


def conv(*args, **kwargs):
    return lambda: nn.Conv2d(*args, **kwargs)


def squeeze(m, x):
    x = m["a"](x)
    x = x * torch.sigmoid(m["b"](x.mean((2, 3), keepdim=True)))
    return m["c"](x)


def shuffled(m, x):
    x = m["a"](x)
    n, c, h, w = x.shape
    return m["b"](x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


def as_trained(m, x):
    """Channel by channel, as torchvision's GoogLeNet takes its input apart."""
    parts = [torch.unsqueeze(x[:, n], 1) * (0.5 + n) - 0.1 * n for n in range(3)]
    return m["a"](torch.cat(parts, 1))


def last_axis(m, x):
    """As in ConvNeXt: a block with the channels last."""
    given = m["stem"](x)
    x = m["dw"](given).permute(0, 2, 3, 1)
    x = m["down"](F.gelu(m["up"](m["norm"](x))))
    return given + (x * m["scale"].weight[0]).permute(0, 3, 1, 2)


def normed(m, x):
    """Layer norm over the channels by hand, softmax over them, one map a pixel for all channels."""
    x = m["a"](x)
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1e-3).sqrt()
    return x.softmax(1) * torch.sigmoid(m["b"](x))


def placed(m, x):
    """Constants of every shape: a number, one a channel, one a place."""
    x = m["a"](2 - x) / 3
    grid = torch.linspace(-1, 1, x.shape[3])
    return x * m["b"].weight[:, :, None, None] + grid + grid.flip(0)[None, None, None]


def branches(m, x):
    parts = [m["one"](x), m["three"](x), m["five"](m["one"](x)), F.max_pool2d(x, 3, 1, 1), F.avg_pool2d(x, 3, 1, 1)]
    return m["end"](F.relu(torch.cat(parts, 1)))


def shortcut(m, x):
    a = F.relu(m["stem"](x))
    b = m["right"](a)
    b += m["left"](a)
    return m["left2"](b) + m["right2"](b)


def halves(m, x):
    a, b = m["a"](x).chunk(2, 1)
    c, d = torch.split(a, [1, a.shape[1] - 1], 1)
    return torch.cat([b, d, c, a[:, 1:3]], 1) * F.relu(b[:, :1])


def by_hand(m, x):
    """In-place functions, views of the same map, a map used twice."""
    x = m["a"](x)
    y = x.detach()
    F.relu_(y)
    y.mul_(1.5).add_(0.1).clamp_(max=1.2)
    return x + m["b"](y)


LOCAL = {
    "strides": chain(conv(3, 6, 5, stride=2, padding=1), nn.ReLU, conv(6, 8, (3, 2), stride=(1, 2), padding=(2, 0))),
    "stride above kernel": chain(conv(3, 6, 2, stride=3), nn.ReLU),
    "dilation": chain(conv(3, 6, 3, dilation=2, padding=2), nn.ReLU, conv(6, 5, 3, dilation=(1, 3))),
    "groups": chain(conv(3, 6, 3, groups=3), conv(6, 6, 3, groups=6, padding=1), nn.ReLU6, conv(6, 4, 1, groups=2)),
    "no bias": chain(conv(3, 6, 3, bias=False), nn.ReLU, conv(6, 4, 1, stride=2, bias=False)),
    "same": chain(conv(3, 5, (5, 3), padding="same"), nn.Tanh),
    "padded apart": lambda: net(
        lambda: {"a": nn.Conv2d(3, 6, 3, stride=2), "b": nn.Conv2d(6, 4, 3)},
        lambda m, x: m["b"](F.pad(F.relu(m["a"](F.pad(x, (0, 1, 2, 0)))), (2, 0, 0, 1), value=0.7)),
    ),
    "pools overlap": chain(
        conv(3, 6, 3), lambda: nn.MaxPool2d(3, 2, 1), nn.ReLU, lambda: nn.MaxPool2d(3, 2, ceil_mode=True)
    ),
    "pools dilated": chain(conv(3, 6, 3), lambda: nn.MaxPool2d((2, 3), (1, 2), (1, 1), dilation=2)),
    "pool of one": chain(conv(3, 6, 3), lambda: nn.MaxPool2d(1, 2), nn.ReLU),
    "mean pool": chain(conv(3, 6, 3), lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=True)),
    "mean pool without its padding": chain(conv(3, 6, 3), lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
    "mean pool to the end": chain(
        conv(3, 6, 3), lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), lambda: nn.AvgPool2d(2, 2, divisor_override=3)
    ),
    "adaptive": chain(conv(3, 6, 3), lambda: nn.AdaptiveAvgPool2d((5, 25)), shape=(3, 22, 27)),
    "adaptive to itself": chain(conv(3, 6, 3), nn.ReLU, lambda: nn.AdaptiveAvgPool2d((20, 25))),
    "mean of the map": chain(conv(3, 6, 3), nn.ReLU, channels=6, head="mean"),
    "norm first": chain(lambda: nn.BatchNorm2d(3), conv(3, 6, 3), nn.ReLU, lambda: nn.BatchNorm2d(6)),
    "pointwise": chain(
        conv(3, 6, 3),
        nn.Hardswish,
        nn.LeakyReLU,
        nn.SiLU,
        nn.GELU,
        lambda: nn.ELU(inplace=True),
        nn.Hardsigmoid,
        nn.Mish,
        nn.Softplus,
        lambda: nn.Dropout(0.5),
        lambda: nn.PReLU(6),
    ),
    "in place": chain(
        conv(3, 6, 3), lambda: nn.ReLU(True), conv(6, 6, 3), lambda: nn.ReLU6(True), lambda: nn.SiLU(True)
    ),
    "views in place": lambda: net(lambda: {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(6, 6, 3, padding=1)}, by_hand),
    "branches": lambda: net(
        lambda: {
            "one": nn.Conv2d(3, 4, 1),
            "three": nn.Conv2d(3, 4, 3, padding=1),
            "five": nn.Conv2d(4, 4, 5, padding=2),
            "end": nn.Conv2d(18, 5, 3),
        },
        branches,
    ),
    "residual": lambda: net(
        lambda: {
            "stem": nn.Conv2d(3, 6, 3),
            "left": nn.Conv2d(6, 6, (5, 1), padding=(2, 0)),
            "right": nn.Conv2d(6, 6, (1, 5), padding=(0, 2)),
            "left2": nn.Conv2d(6, 6, 3, 2, 1),
            "right2": nn.Conv2d(6, 6, 1, 2),
        },
        shortcut,
    ),
    "channels apart": lambda: net(lambda: {"a": nn.Conv2d(3, 6, 3)}, halves),
    "input apart": lambda: net(lambda: {"a": nn.Conv2d(3, 6, 3)}, as_trained),
    "constants": lambda: net(lambda: {"a": nn.Conv2d(3, 6, 3), "b": nn.Embedding(1, 6)}, placed),
    "over channels": lambda: net(lambda: {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(6, 1, 3, padding=1)}, normed),
    "channels last": lambda: net(
        lambda: {
            "stem": nn.Conv2d(3, 6, 2, 2),
            "dw": nn.Conv2d(6, 6, 5, padding=2, groups=6),
            "norm": nn.LayerNorm(6),
            "up": nn.Linear(6, 12),
            "down": nn.Linear(12, 6),
            "scale": nn.Embedding(1, 6),
        },
        last_axis,
    ),
}


@pytest.mark.parametrize("name", LOCAL)
def test_local_operators_give_what_full_passes_give(name):
    agree(LOCAL[name](), (3, 22, 27))


@pytest.mark.parametrize("window", [(1, 1), (3, 9), (22, 2), (22, 27)])
@pytest.mark.parametrize("name", ["branches", "pools overlap", "mean pool to the end", "padded apart"])
def test_any_window(name, window):
    agree(LOCAL[name](), (3, 22, 27), window=window, stride=(4, 5))


def test_one_channel_at_a_time():
    agree(LOCAL["residual"](), (3, 22, 27), channel=1)


def test_tiled_convolutions_take_part():
    """Channels enough for Winograd's method, maps that are no whole number of tiles."""
    layers = lambda: {"a": nn.Sequential(nn.Conv2d(3, 128, 3, 2), nn.ReLU(), nn.Conv2d(128, 128, 3, padding=1))}  # noqa: E731
    network = net(layers, lambda m, x: m["a"](x), shape=(3, 64, 70))
    called = []
    original = winograd.convolve

    def watched(*args):
        called.append(args[1:3])
        return original(*args)

    winograd.convolve = watched
    try:
        agree(network, (3, 64, 70), window=(17, 17), stride=(6, 6))
    finally:
        winograd.convolve = original
    assert any(height % 4 or width % 4 for height, width in called)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (13, 2), (1, 1)])
def test_winograd_is_the_convolution(size):
    generator = torch.Generator().manual_seed(0)
    height, width = size
    x = torch.randn(3, 16, winograd.reach(height), winograd.reach(width), generator=generator)
    weight, bias = torch.randn(8, 16, 3, 3, generator=generator), torch.randn(8, generator=generator)
    got = winograd.convolve(
        x.contiguous(memory_format=torch.channels_last), height, width, winograd.transformed(weight), bias
    )
    wanted = F.conv2d(x.double(), weight.double(), bias.double())[:, :, :height, :width]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


GLOBAL = {
    "squeeze and excitation": (
        lambda: net(lambda: {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(6, 6, 1), "c": nn.Conv2d(6, 4, 3)}, squeeze),
        ["mul"],
    ),
    "group norm": (chain(conv(3, 6, 3), lambda: nn.GroupNorm(2, 6), nn.ReLU), ["native_group_norm"]),
    "upsampling": (chain(conv(3, 4, 3), lambda: nn.Upsample(scale_factor=2), conv(4, 4, 3)), ["upsample_nearest2d"]),
    "shuffle": (lambda: net(lambda: {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(6, 4, 3)}, shuffled), ["view"]),
    "mirrored": (chain(conv(3, 4, 3, padding=1, padding_mode="reflect")), ["reflection_pad2d"]),
    "transposed": (chain(conv(3, 4, 3), lambda: nn.ConvTranspose2d(4, 4, 3, 2)), ["convolution"]),
    "uneven": (chain(conv(3, 4, 3), lambda: nn.AdaptiveAvgPool2d(7)), ["_adaptive_avg_pool2d"]),
}


@pytest.mark.parametrize("name", GLOBAL)
def test_operators_that_mix_the_map_get_the_whole_batch_and_are_told(name):
    make, told = GLOBAL[name]
    network = make()
    passes = agree(network, (3, 22, 27), fallbacks=[word.strip("_") for word in told])
    assert " in layers." in passes.fallbacks[0] or name in ("squeeze and excitation", "shuffle")


def poisoned(m, x):
    y, index = F.max_pool2d(m["a"](x), 2, return_indices=True)
    return F.max_unpool2d(y, index, 2, output_size=(20, 25))


def overwritten(m, x):
    x = m["a"](x)
    x[:, :2].relu_()
    return x


def flattened(m, x):
    """Writes into the batch that a view of it was made of."""
    x = m["a"](x)
    rows = x.transpose(2, 3)
    rows.relu_()
    return m["b"](x)


@pytest.mark.parametrize("run", [poisoned, overwritten, flattened])
def test_what_cannot_be_followed_is_run_in_full(run):
    network = net(lambda: {"a": nn.Conv2d(3, 6, 3), "b": nn.Conv2d(6, 4, 3)}, run)
    got, wanted, passes = both(network, (3, 22, 27))
    assert passes.reason
    assert not passes.fallbacks
    assert passes.share == pytest.approx(1, abs=0.1)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


class Moody(nn.Module):
    """Another way through the layers in every third pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.passes = nn.Conv2d(3, 4, 3), nn.Linear(4 * 20 * 25, 2), 0

    def forward(self, x):
        self.passes += 1
        x = self.conv(x)
        return self.fc((x + 0 if self.passes % 3 == 0 else x).relu_().flatten(1))


def test_another_way_through_the_network_in_a_later_pass():
    scene = scene_of(zoo.seeded(Moody), (3, 22, 27))
    covers = [Cover(row, column, 5, 5) for row in range(0, 18, 1) for column in range(0, 22, 2)]
    quick, slow = (Passes(scene, torch.zeros_like(scene.x), which) for which in (True, False))
    got, wanted = quick.values(covers, lambda n: None), slow.values(covers, lambda n: None)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", [n for n, (_, shape) in zoo.NETWORKS.items() if len(shape) == 3])
def test_the_zoo(name):
    make, shape = zoo.NETWORKS[name]
    got, wanted, passes = both(zoo.seeded(make), shape, window=(3, 4), stride=(2, 2))
    assert passes.reason == ""
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


def test_hidden_units_at_a_place():
    network = zoo.seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.LazyLinear(2))
    )
    network(torch.zeros(1, 3, 22, 27))
    passes = agree(network, (3, 22, 27), "2:1@4,5")
    assert passes.share < 0.9
    agree(network, (3, 22, 27), "mean(2:3)")
    agree(network, (3, 22, 27), "0:2@3,3")  # before the in-place ReLU


def test_a_place_that_the_window_never_reaches_keeps_its_value_to_the_bit():
    network = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)))
    scene = scene_of(network, (3, 30, 30), "2:1@0,0")
    passes = Passes(scene, torch.zeros_like(scene.x))
    values = passes.values([Cover(row, column, 4, 4) for row in (10, 20, 26) for column in (8, 20, 28)], lambda n: None)
    assert passes.reason == ""
    assert (values == passes.value).all()


def test_clean_maps_are_computed_once():
    network = LOCAL["in place"]()
    scene = scene_of(network, (3, 22, 27))
    passes = Passes(scene, torch.zeros_like(scene.x))
    covers = [Cover(row, column, 5, 5) for row in range(18) for column in range(22)]
    passes.values(covers[:20], lambda n: None)
    records = list(passes._session._records)
    passes.values(covers, lambda n: None)
    assert all(a is b for a, b in zip(records, passes._session._records, strict=True))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 24), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3),
    st.lists(st.tuples(st.integers(0, 23), st.integers(1, 9)), min_size=1, max_size=5),
)  # fmt: skip
def test_intervals_are_those_of_the_kernel(length, kernel, stride, pad, dilation, places):
    after = (length + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
    if after < 1:
        return
    low = np.array(sorted(p % length for p, _ in places))
    high = np.minimum(low + places[0][1], length)
    axis = Axis(low, high, length).through(kernel, stride, pad, dilation, after)
    for n in range(len(low)):
        cells = [
            o for o in range(after)
            if any(low[n] <= o * stride - pad + dilation * j < high[n] for j in range(kernel))
        ]  # fmt: skip
        if cells and dilation == 1:
            assert (axis.low[n], axis.high[n]) == (cells[0], cells[-1] + 1)
        assert not cells or (axis.low[n] <= cells[0] and cells[-1] < axis.high[n])
        assert 0 <= axis.start[n] <= axis.low[n]
        assert axis.high[n] <= axis.start[n] + axis.size[n] <= after


def test_a_pointwise_convolution_is_computed_where_the_boxes_lie():
    axis = Axis(np.array([2, 5]), np.array([6, 9]), 20)
    assert axis.through(1, 1, 0, 1, 20) is axis
    assert axis.through(1, 2, 0, 1, 10) is not axis
    assert axis.through(1, 1, 1, 1, 22).low.tolist() == [3, 6], "padding moves it"


@given(
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), min_size=1, max_size=40),
    st.lists(st.tuples(st.integers(0, 29), st.integers(1, 30)), min_size=40, max_size=40),
    st.integers(1, 4),
    st.integers(1, 200),
)
def test_boxes_in_classes_hold_their_intervals_and_are_few(rows, columns, classes, most):
    def axis(places):
        low, high = np.array([p for p, _ in places]), np.array([min(30, p + n) for p, n in places])
        return Axis(low, high, 30)

    y, x = axis(rows).in_classes(classes), axis(columns[: len(rows)]).in_classes(classes)
    for one in (y, x):
        assert len(np.unique(one.size)) <= classes
        assert (one.start >= 0).all()
        assert (one.start <= one.low).all()
        assert (one.high <= one.start + one.size).all()
        assert (one.start + one.size <= 30).all()
    groups = alike(y, x, most)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(rows)))
    for who in groups:
        cells = y.size[who] * x.size[who]
        assert len({(int(a), int(b)) for a, b in zip(y.size[who], x.size[who], strict=True)}) == 1
        assert len(who) == 1 or cells.sum() <= most


def test_classes_cost_as_little_as_they_can():
    low = np.zeros(7, int)
    axis = Axis(low, np.array([3, 3, 3, 4, 9, 9, 10]), 12)
    assert axis.in_classes(2).size.tolist() == [4, 4, 4, 4, 10, 10, 10]
    assert axis.in_classes(4) is axis


def inverted(m, x):
    """As in MobileNets: a wide map between two narrow ones that only a depthwise convolution reads, and a shortcut around it."""
    x = F.relu6(m["stem"](x))
    for n in range(2):
        wide = F.relu6(m[f"up{n}"](x), inplace=n == 0)
        wide = F.relu6(m[f"dw{n}"](wide), inplace=True)
        x = torch.add(x, m[f"down{n}"](wide), alpha=0.5) if n else m["down0"](wide) + x
    return m["head"](m["turn"](F.relu(m["smaller"](4 * x))))


def inverted_layers():
    layers = {
        "stem": nn.Conv2d(3, 4, 3, 2, 1),
        "smaller": nn.Conv2d(4, 4, 3, 2, 1, groups=4),
        "turn": nn.Conv2d(4, 4, 3, groups=4),
    }
    for n in range(2):
        wide = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=n == 0)
        layers |= {f"up{n}": nn.Conv2d(4, 12, 1, bias=n == 1), f"dw{n}": wide, f"down{n}": nn.Conv2d(12, 4, 1)}
    return layers | {"head": nn.Conv2d(4, 16, 1)}


def test_memory_is_free_without_the_collector():
    """What waits, and what it is made of, must not hold each other."""
    scene = scene_of(net(inverted_layers, inverted), (3, 22, 27))
    covers = [Cover(row, column, 5, 5) for row in range(0, 18, 2) for column in range(0, 22, 2)]
    gc.collect()
    gc.disable()
    try:
        passes = Passes(scene, torch.zeros_like(scene.x))
        passes.values(covers, lambda n: None)
        kept = [one for one in gc.get_objects() if issubclass(type(one), windowed_blocks.Block)]
    finally:
        gc.enable()
    assert passes.reason == ""
    assert not kept


def read_twice(m, x):
    """A wide map with two readers, one of which mixes the map."""
    wide = F.relu6(m["up"](m["a"](x)))
    return m["down"](m["dw"](wide) * torch.sigmoid(wide.mean((2, 3), keepdim=True)))


def squashed(m, x):
    """Squeeze and excitation of a depthwise convolution's output: read twice, too."""
    wide = F.silu(m["dw"](F.silu(m["up"](m["a"](x)))))
    return m["down"](wide) + wide.amax(1, keepdim=True)


def written_later(m, x):
    """What the wide map is made of is overwritten before the wide map is read."""
    x = m["a"](x)
    wide = m["up"](x)
    x.mul_(0.5)
    return m["down"](m["dw"](wide)) + x


def read_by_a_stranger(m, x):
    """A sum's term that an operator without boxes reads afterwards."""
    x = m["a"](x)
    y = m["b"](x)
    return F.relu(x + y) + F.group_norm(y, 2)


def wide_layers():
    return {
        "a": nn.Conv2d(3, 4, 3),
        "up": nn.Conv2d(4, 12, 1),
        "dw": nn.Conv2d(12, 12, 3, 1, 1, groups=12),
        "down": nn.Conv2d(12, 4, 1),
    }


def test_a_term_that_is_read_again_is_not_written_into():
    network = net(lambda: {"a": nn.Conv2d(3, 4, 3), "b": nn.Conv2d(4, 4, 1)}, read_by_a_stranger)
    agree(network, (3, 22, 27), fallbacks=["native_group_norm", "add"])


class Wavering(nn.Module):
    """A sum's term that has another reader in every third pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc, self.passes = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4 * 20 * 25, 2), 0

    def forward(self, x):
        self.passes += 1
        x = self.a(x)
        y = self.b(x)
        z = x + y
        return self.fc((z + y - y if self.passes % 3 == 0 else z).relu().flatten(1))


def test_a_term_that_has_another_reader_in_a_later_pass():
    scene = scene_of(zoo.seeded(Wavering), (3, 22, 27))
    covers = [Cover(row, column, 5, 5) for row in range(0, 18, 2) for column in range(0, 22, 2)]
    for started in range(3):
        quick, slow = (Passes(scene, torch.zeros_like(scene.x), which) for which in (True, False))
        quick.network.passes = started
        got, wanted = quick.values(covers, lambda n: None), slow.values(covers, lambda n: None)
        assert quick.reason == ""
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


@pytest.fixture
def in_small_turns(monkeypatch):
    """Turns of a few samples, which a small network's maps would fit in one of."""
    monkeypatch.setattr(windowed_blocks, "_TURN", 1000)


@pytest.mark.parametrize("run", [inverted, read_twice, squashed, written_later])
def test_what_waits_gives_what_full_passes_give(run, in_small_turns):
    layers = inverted_layers if run is inverted else wide_layers
    network = net(layers, run, shape=(3, 40, 37))
    told = ["mul"] if run is read_twice else []
    passes = agree(network, (3, 40, 37), fallbacks=told, window=(6, 5), stride=(3, 3))
    assert passes._session.waits == (run is not written_later)


def test_maps_that_wait_are_made_in_turns(in_small_turns, monkeypatch):
    """Never the wide map of a whole batch, and each sample's once."""
    made = []
    original = slides.pointwise

    def watched(weight, bias, maps, into):
        if weight.shape[0] == 12:
            made.append(maps.shape[0])
        return original(weight, bias, maps, into)

    monkeypatch.setattr(slides, "pointwise", watched)
    network = net(inverted_layers, inverted, shape=(3, 40, 37))
    scene = scene_of(network, (3, 40, 37))
    passes = Passes(scene, torch.zeros_like(scene.x))
    covers = [Cover(row, column, 6, 5) for row in range(0, 36, 3) for column in range(0, 33, 3)]
    passes.values(covers, lambda n: None)
    first = 2 * 2  # two positions are tried, for both wide layers
    assert sum(made) == first + 2 * len(covers)
    assert max(made) < len(covers) / 4


@st.composite
def networks(draw):
    """Chains of random convolutions, pools, activations and shortcuts."""
    layers, channels = [], 3
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "depthwise", "max", "mean", "act"]))
        kernel, stride, pad = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(0, 1))
        if kind == "conv":
            made = draw(st.integers(1, 6))
            layers.append((nn.Conv2d, (channels, made, kernel, stride, pad, draw(st.integers(1, 2)))))
            channels = made
        elif kind == "depthwise":
            layers.append((nn.Conv2d, (channels, channels, kernel, stride, pad, 1, channels)))
        elif kind == "max":
            layers.append((nn.MaxPool2d, (max(2, kernel), stride, pad, 1, False, draw(st.booleans()))))
        elif kind == "mean":
            layers.append((nn.AvgPool2d, (max(2, kernel), stride, pad, draw(st.booleans()), draw(st.booleans()))))
        else:
            layers.append((draw(st.sampled_from([nn.ReLU6, nn.SiLU])), (draw(st.booleans()),)))
    return layers


@settings(max_examples=25, deadline=None)
@given(networks(), st.tuples(st.integers(1, 8), st.integers(1, 8)), st.integers(0, 99))
def test_random_networks(layers, window, seed):
    network = zoo.seeded(
        lambda: nn.Sequential(*(kind(*args) for kind, args in layers), nn.Flatten(), nn.LazyLinear(2)), seed
    )
    try:
        network.eval()(torch.zeros(1, 3, 25, 23))
    except RuntimeError:  # a kernel is larger than what is left of the map
        assume(False)
    scene = scene_of(network, (3, 25, 23), seed=seed)
    covers = [Cover(row, column, *window) for row in range(0, 25, 6) for column in range(0, 23, 5)]
    quick, slow = (Passes(scene, torch.zeros_like(scene.x), which) for which in (True, False))
    got, wanted = quick.values(covers, lambda n: None), slow.values(covers, lambda n: None)
    assert quick.reason == ""
    assert not quick.fallbacks
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1e-2, float(wanted.abs().max())))


class Small(nn.Module):
    """Says that memory does not suffice when a batch is above `most`, as torch does."""

    def __init__(self, most):
        super().__init__()
        self.conv, self.fc, self.most, self.seen = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), most, []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory")
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.parametrize("incremental", [True, False])
def test_a_batch_that_does_not_fit_is_halved(incremental):
    scene = scene_of(zoo.seeded(lambda: Small(3)), (3, 22, 27))
    covers = [Cover(row, column, 5, 5) for row in range(0, 18, 3) for column in range(0, 22, 3)]
    passes = Passes(scene, torch.zeros_like(scene.x), incremental)
    got = passes.values(covers, lambda n: None)
    assert passes.network.seen.count(64 if incremental else 16) <= 1
    assert max(passes.network.seen) > 3
    assert passes.network.seen[-1] <= 3
    fresh = scene_of(zoo.seeded(lambda: Small(1000)), (3, 22, 27))
    wanted = Passes(fresh, torch.zeros_like(fresh.x), False).values(covers, lambda n: None)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_other_errors_are_not_taken_for_memory():
    class Broken(Small):
        def forward(self, x):
            if len(x) > 2:
                raise RuntimeError("the wheels came off")
            return super().forward(x)

    scene = scene_of(zoo.seeded(lambda: Broken(10)), (3, 22, 27))
    with pytest.raises(RuntimeError, match="wheels"):
        Passes(scene, torch.zeros_like(scene.x), False).values([Cover(n, 0, 2, 2) for n in range(9)], lambda n: None)

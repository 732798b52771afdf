"""The default method against answers that are known: linear units, planted templates, dead units, and what it promises about itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadOption, BadUnit, UnknownName
from penlight.inputs import InputContract
from penlight.models import Model, Probe
from penlight.techniques.contract import Request
from penlight.techniques.visualize import engine
from penlight.techniques.visualize.method import Penlight
from penlight.techniques.visualize.objectives import centre
from penlight.techniques.visualize.scene import Optics
from penlight.units import Unit


def opened(network, *shape, kind="image", **contract):
    return Model(network.eval(), InputContract(kind, shape, **contract))


def visualize(model, *units, layers=(), seed=0, progress=lambda done, of: None, **options):
    return Penlight(**options).run(Request(model, [Unit.parse(u) for u in units], layers, seed=seed, progress=progress))


def cosine(a, b):
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def pattern(result, row=0, seed=0):
    """A stored picture as (C, H, W), its neutral value 0."""
    return result.images[row, seed].transpose(2, 0, 1) / 255 - 0.5


def answer(model, path, pictures):
    """Independent of the method: the layer's own output, units first, for stored pictures (N, H, W, C)."""
    optics = Optics.of(model)
    values = torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy()).float() / 255
    mean, std = model.contract.statistics()
    if model.contract.kind == "image":
        values = (values - torch.from_numpy(mean)) / torch.from_numpy(std)
    else:
        values = ((values - 0.5) * 6).reshape(len(values), *model.contract.shape)
    seen = []
    with torch.no_grad(), Probe(model.network, {path: lambda out: seen.append(out.clone())}) as probe:
        probe(values)
    assert optics.shape[0] == pictures.shape[3]
    return model.layers[path].units_first(seen[0])


class TestLinearUnits:
    """The picture that a linear unit likes most at a given distance from grey is its weights."""

    @pytest.mark.parametrize("minimize", [False, True])
    @pytest.mark.parametrize(
        ("shape", "kernel"), [((1, 28, 28), 5), ((2, 24, 18), 9), ((3, 20, 24), 7), ((4, 12, 12), 3)]
    )
    def test_convolution(self, shape, kernel, minimize):
        conv = zoo.seeded(lambda: nn.Conv2d(shape[0], 3, kernel))
        r = visualize(opened(nn.Sequential(conv), *shape), "0:*", minimize=minimize)
        assert r.images.shape == (3, 1, kernel, kernel, shape[0])
        for unit in range(3):
            fit = cosine(pattern(r, unit), conv.weight[unit].detach())
            assert (-fit if minimize else fit) > 0.95

    @pytest.mark.parametrize("minimize", [False, True])
    @pytest.mark.parametrize(
        ("kind", "shape"), [("image", (1, 10, 14)), ("image", (3, 16, 16)), ("array", (20,)), ("array", (3, 30))]
    )
    def test_fully_connected(self, kind, shape, minimize):
        network = zoo.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3)))
        r = visualize(opened(network, *shape, kind=kind), "1:*", minimize=minimize)
        for unit in range(3):
            fit = cosine(pattern(r, unit), network[1].weight[unit].detach())
            assert (-fit if minimize else fit) > 0.95
        assert np.all((r.activations < r.starts) if minimize else (r.activations > r.starts))

    def test_unequal_scales_make_no_difference(self):
        conv = zoo.seeded(lambda: nn.Conv2d(1, 2, 5, bias=False))
        with torch.no_grad():
            conv.weight[1] = conv.weight[0] * 1e4
        r = visualize(opened(nn.Sequential(conv), 1, 20, 20), "0:*", steps=64)
        assert cosine(pattern(r, 0), pattern(r, 1)) > 0.98


def test_a_planted_template_is_found():
    template = -torch.ones(9, 9)
    template[1:8, 4] = template[4, 1:8] = 1.0  # a plus
    conv = nn.Conv2d(1, 2, 9, padding=4)
    with torch.no_grad():
        conv.weight[:] = torch.stack([template - template.mean(), template.mean() - template])[:, None] / 10
        conv.bias[:] = -0.5
    model = opened(nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2)), 1, 32, 32)
    r = visualize(model, "2:0")
    image, best = pattern(r)[0], 0.0
    for y in range(image.shape[0] - 8):
        for x in range(image.shape[1] - 8):
            best = max(best, cosine(image[y : y + 9, x : x + 9], conv.weight[0, 0].detach()))
    assert best > 0.9
    most = conv.weight[0].detach().abs().sum() / 2 - 0.5  # black and white where the template says so
    assert r.activations[0, 0] > 0.5 * most


class Late(nn.Module):
    """A ReLU in every way of writing it, before which everything is off for pictures near grey."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.head, self.how, self.act = (
            nn.Conv2d(1, 4, 5),
            nn.Conv2d(4, 2, 1, bias=False),
            how,
            nn.ReLU(inplace=True),
        )
        with torch.no_grad():
            self.conv.weight[:] = torch.randn(4, 1, 5, 5)
            self.conv.bias[:] = -1.5 - self.conv.weight.sum((1, 2, 3)) / 2
            self.head.weight[:] = 1.0

    def forward(self, x):
        x = self.conv(x)
        ways = {
            "functional": lambda: F.relu(x),
            "in place": lambda: x.relu_(),
            "module": lambda: self.act(x),
            "relu6": lambda: F.relu6(x),
            "clamp": lambda: x.clamp(0, 5),
            "clamp_min": lambda: torch.clamp_min(x, 0),
            "hardtanh": lambda: F.hardtanh(x, 0.0, 6.0, inplace=True),
            "reused": lambda: self.act(self.act(x) + 0.0),
        }
        return self.head(ways[self.how]())


WAYS = ["functional", "in place", "module", "relu6", "clamp", "clamp_min", "hardtanh", "reused"]


@pytest.mark.parametrize("how", WAYS)
def test_a_unit_that_starts_behind_a_closed_relu_is_woken(how):
    model = opened(zoo.seeded(lambda: Late(how)), 1, 16, 16)
    assert answer(model, "head", np.full((1, 5, 5, 1), 128, np.uint8)).abs().max() == 0
    r = visualize(model, "head:0", steps=96)
    assert not r.zero_gradient.any()
    assert r.starts[0, 0] == 0
    assert r.activations[0, 0] > 1


class TestNothingToClimb:
    def test_zero_weights_are_reported(self):
        conv = zoo.seeded(lambda: nn.Conv2d(3, 4, 5))
        with torch.no_grad():
            conv.weight[2] = 0
        r = visualize(opened(nn.Sequential(conv, nn.ReLU()), 3, 20, 20), "1:*", steps=24)
        assert r.zero_gradient[:, 0].tolist() == [False, False, True, False]
        assert r.images[2].std() > 2  # the random start, not one grey
        np.testing.assert_array_equal(r.activations[2], r.starts[2])
        assert np.isfinite(r.activations).all()

    def test_a_constant_layer_is_reported(self):
        class Constant(nn.Module):
            def __init__(self):
                super().__init__()
                self.body, self.head = nn.Flatten(), nn.Linear(3, 2)

            def forward(self, x):
                return self.head(torch.ones(len(self.body(x)), 3))

        r = visualize(opened(Constant(), 1, 8, 8), "head:*", steps=3)
        assert r.zero_gradient.all()

    def test_a_unit_that_no_picture_wakes_is_tried_and_told_by_its_numbers(self):
        conv = zoo.seeded(lambda: nn.Conv2d(1, 2, 5))
        with torch.no_grad():
            conv.bias[0] = -1000.0
        r = visualize(opened(nn.Sequential(conv, nn.ReLU()), 1, 16, 16), "1:0", steps=32)
        assert r.activations[0, 0] == 0
        assert not r.zero_gradient[0, 0]  # a gradient did reach the picture, around the ReLU
        assert cosine(pattern(r), conv.weight[0].detach()) > 0.9

    def test_least_preferred_input_goes_on_below_zero(self):
        network = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU()))
        model = opened(network, 1, 16, 16)
        r = visualize(model, "1:*", minimize=True)
        assert (r.activations == 0).all()
        for unit in range(4):
            assert cosine(pattern(r, unit), network[0].weight[unit].detach()) < -0.95
        assert r.minimize


def test_class_of_a_network_that_ends_in_softmax_is_climbed_before_it():
    class Soft(nn.Module):
        def __init__(self, end):
            super().__init__()
            self.conv, self.fc, self.end = nn.Conv2d(1, 6, 5), nn.Linear(6, 3), end

        def forward(self, x):
            x = self.fc(F.relu(self.conv(x)).mean((2, 3))) * 100
            return x.softmax(1) if self.end else x

    soft, plain = (opened(zoo.seeded(lambda end=end: Soft(end)), 1, 14, 14) for end in (True, False))
    a, b = visualize(soft, "class:1", steps=24), visualize(plain, "class:1", steps=24)
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_allclose(a.activations, b.activations, rtol=1e-5)
    functional = zoo.seeded(zoo.EndsInSoftmax)
    r = visualize(opened(functional, 1, 9, 9), "class:2", steps=24)
    assert r.units == ("(logits):2",)
    assert r.activations[0, 0] > r.starts[0, 0]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_any_number_of_channels_and_oblong_inputs(channels):
    network = zoo.seeded(
        lambda: nn.Sequential(nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 12 * 20, 2))
    )
    r = visualize(opened(network, channels, 12, 20), "3:*", seeds=2, steps=16)
    assert r.images.shape == (2, 2, 12, 20, channels)
    assert (r.activations > r.starts).all()


@pytest.mark.parametrize("name", list(zoo.NETWORKS))
def test_activations_are_those_of_the_stored_pictures(name):
    make, shape = zoo.NETWORKS[name]
    model = opened(zoo.seeded(make), *shape, kind="image" if len(shape) == 3 else "array", mean=(0.4,), std=(0.3,))
    for path, layer in model.layers.items():
        r = visualize(model, f"{path}:0", f"{path}:{layer.units - 1}", seeds=2, steps=6)
        flat = r.images.reshape(-1, *r.images.shape[2:])
        output = answer(model, path, flat)
        values = output[(slice(None), slice(None), *centre(output.shape[2:]))]
        expected = [values[0, 0], values[1, 0], values[2, -1], values[3, -1]]
        np.testing.assert_allclose(r.activations.ravel(), expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_several_layers_and_single_positions_in_one_list(open_zoo):
    model = open_zoo("functional")
    r = visualize(model, "conv1:1", "conv1:1@0,15", "conv2:3", "class:2", "conv2:3@7,1", steps=24)
    assert r.units == ("conv1:1", "conv1:1@0,15", "conv2:3", "fc:2", "conv2:3@7,1")
    assert r.images.shape == (5, 1, 16, 16, 1)
    places = [("conv1", 1, (8, 8)), ("conv1", 1, (0, 15)), ("conv2", 3, (4, 4)), ("fc", 2, ()), ("conv2", 3, (7, 1))]
    for row, (path, index, at) in enumerate(places):
        assert answer(model, path, r.images[row])[(0, index, *at)] == pytest.approx(r.activations[row, 0], rel=1e-4)
    # what a position sees is where the picture changed
    changed = np.abs(pattern(r, 1)[0]) > 0.2
    assert changed[:3, 13:].any()
    alone = visualize(model, "conv2:3", steps=24)
    assert alone.activations[0, 0] == pytest.approx(r.activations[2, 0], rel=1e-4)


class TestPromises:
    def test_company_does_not_matter(self, open_zoo):
        model = open_zoo("functional")
        for path in ("conv1", "conv2", "fc"):
            whole = visualize(model, layers=[path], seeds=2, steps=48, seed=5)
            small = visualize(model, layers=[path], seeds=2, steps=48, seed=5, batch=7)
            alone = visualize(model, f"{path}:3", seeds=2, steps=48, seed=5)
            for other, row in ((small, slice(None)), (alone, slice(3, 4))):
                np.testing.assert_allclose(other.images / 255, whole.images[row] / 255, atol=1e-4)
                np.testing.assert_allclose(other.activations, whole.activations[row], rtol=1e-4, atol=1e-4)

    def test_seeds(self, open_zoo):
        model = open_zoo("functional")
        a, b, c = (visualize(model, "conv2:*", seeds=2, steps=12, seed=s) for s in (1, 1, 2))
        assert a.images.tobytes() == b.images.tobytes()
        assert a.images.tobytes() != c.images.tobytes()
        assert (a.images[:, 0] != a.images[:, 1]).any()

    def test_no_trace(self):
        network = zoo.seeded(zoo.InPlace).train()
        network.body[0].weight.requires_grad_(False)
        model = Model(network, InputContract("image", (3, 12, 20)))
        parameters = {k: v.clone() for k, v in network.state_dict().items()}
        random = torch.get_rng_state()
        with torch.no_grad():
            visualize(model, "body.2:*", "head:1", steps=4)
        assert torch.equal(random, torch.get_rng_state())
        assert all(torch.equal(v, parameters[k]) for k, v in network.state_dict().items())
        assert all(m.training and not m._forward_hooks for m in network.modules())
        assert [p.requires_grad for p in network.parameters()] == [False, *[True] * 5]
        assert all(p.grad is None for p in network.parameters())

    def test_how_long_a_climb_is_depends_on_what_is_looked_for(self):
        def steps(side, unit, **options):
            torch.manual_seed(0)
            network = nn.Sequential(
                nn.Conv2d(1, 2, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32, 3)
            )
            told = []
            visualize(
                opened(network, 1, side, side), unit, progress=lambda done, of: told.append(of), batch=1, **options
            )
            return told[-1]

        assert steps(96, "4:0") == 640, "classes of large pictures"
        assert steps(96, "0:1@0,0") == 320, "a place in a large picture"
        assert steps(28, "4:0") == 320
        assert steps(96, "4:0", steps=7) == 7

    def test_closed_relus_leak_for_classes_of_large_pictures(self, monkeypatch):
        slopes = []
        monkeypatch.setattr(engine, "leak", lambda output, slope: slopes.append(slope))

        def leaks(side, unit, **options):
            torch.manual_seed(0)
            network = nn.Sequential(
                nn.Conv2d(1, 2, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32, 3)
            )
            slopes.clear()
            visualize(opened(network, 1, side, side), unit, steps=3, batch=1, **options)
            return list(slopes)

        assert leaks(96, "4:0") == [0.05] * 3
        assert leaks(96, "4:0", leak=0.2) == [0.2] * 3
        assert leaks(96, "4:0", leak=0.0) == []
        assert leaks(96, "0:1@0,0") == []
        assert leaks(28, "4:0") == []

    def test_progress_and_provenance(self, open_zoo):
        told = []
        r = visualize(
            open_zoo("functional"), "conv1:*", "fc:0", seeds=2, steps=5, progress=lambda *now: told.append(now)
        )
        assert told[-1] == (7 * 2 * 5, 7 * 2 * 5)
        assert told == sorted(told)
        assert r.provenance.options["steps"] == 5

    def test_memory_that_runs_out_is_asked_for_in_halves(self, open_zoo, monkeypatch):
        from penlight.techniques.visualize import render

        asked = []

        def short(stage, recipe, objective, size, streams, seed):
            asked.append(len(streams))
            if len(streams) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return original(stage, recipe, objective, size, streams, seed)

        model, original = open_zoo("functional"), render.optimize
        whole = visualize(model, "conv1:*", steps=4)
        monkeypatch.setattr(render, "optimize", short)
        np.testing.assert_array_equal(visualize(model, "conv1:*", steps=4).images, whole.images)
        assert asked == [256, 128, 64, 32, 16, 8, 4, 2, 2, 2]  # and 6 units in twos


class TestSize:
    def test_canvas_is_the_receptive_field_and_little_more(self):
        def stack():
            layers = [nn.Conv2d(3, 4, 7, stride=2, padding=3), nn.ReLU()]
            for _ in range(3):
                layers += [nn.Conv2d(4, 4, 7, padding=3), nn.ReLU()]
            return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

        model = opened(zoo.seeded(stack), 3, 224, 224)
        assert model.fields["6"].size == (43, 43)
        r = visualize(model, "6:*", steps=2)
        assert 43 <= r.images.shape[2] == r.images.shape[3] <= 49
        assert visualize(model, "0:0", steps=2).images.shape[2:4] == (8, 8)  # 7, and the pixel the stride leaves over
        assert visualize(model, "class:1", steps=2).images.shape[2:4] == (224, 224)
        assert visualize(model, "class:1", steps=2, size=96).images.shape[2:4] == (96, 96)
        assert visualize(model, "6:0", "class:1", steps=2).images.shape[2:4] == (224, 224)

    def test_a_network_that_takes_one_size_only_gets_it(self):
        network = zoo.seeded(
            lambda: nn.Sequential(nn.Conv2d(1, 2, 3, stride=8), nn.Flatten(), nn.Linear(2 * 13 * 13, 2))
        )
        model = opened(network, 1, 104, 104)
        assert visualize(model, "2:0", steps=2).images.shape[2:4] == (104, 104)
        with pytest.raises(BadOption, match="does not run on pictures of 80×80"):
            visualize(model, "2:0", steps=2, size=80)


@pytest.mark.parametrize(
    ("units", "options", "error", "words"),
    [
        ((), {}, BadUnit, "no unit is named"),
        (("nowhere:1",), {}, UnknownName, "no layer 'nowhere'"),
        (("conv1:6",), {}, BadUnit, "units 0 to 5"),
        (("conv1:0@3,16",), {}, BadUnit, "16×16 positions"),
        (("conv1:0@3,3",), {"size": 12}, BadOption, "single positions"),
        (("fc:0",), {"size": 40}, BadOption, "does not run on pictures of 40×40"),
    ],
)
def test_mistakes_are_told_in_one_line(open_zoo, units, options, error, words):
    with pytest.raises(error, match=words) as caught:
        visualize(open_zoo("functional"), *units, **options)
    assert "\n" not in str(caught.value)


class _Fire(nn.Module):
    """Units that see 11 pixels beside units that see 19, over a pool that rounds up, as SqueezeNet's first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 8, 7, 2)
        self.near, self.far = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.both = nn.Identity()

    def forward(self, x):
        x = F.max_pool2d(self.stem(x), 3, 2, ceil_mode=True)
        return self.both(torch.cat([self.near(x), self.far(x)], 1))


@pytest.mark.parametrize("method", ["erhan", "simonyan", "yosinski", "oygard", "penlight"])
def test_what_a_small_unit_is_climbed_on_is_what_is_kept(method, monkeypatch):
    model = Model(_Fire(), InputContract("image", (3, 64, 64), (0.5,) * 3, (0.25,) * 3))
    assert model.fields["both"].size == (19, 19)
    shown = set()

    class Watched(Probe):
        def __call__(self, x):
            shown.add(tuple(x.shape[2:]))
            return super().__call__(x)

    monkeypatch.setattr(engine, "Probe", Watched)
    result = penlight.visualize(model, "both:1", method=method, steps=8)
    assert result.images.shape[2:] == (19, 19, 3)
    assert shown == {(19, 19)}  # a pixel more and the map has four rows, whose middle lies elsewhere


def test_a_picture_lies_where_its_unit_looks():
    model = Model(_Fire(), InputContract("image", (3, 64, 64), (0.5,) * 3, (0.25,) * 3))
    picture = penlight.visualize(model, "both:1", method="erhan").images[0, 0].astype(float)
    changed = np.abs(picture - np.median(picture.reshape(-1, 3), 0)).sum(2)
    inside = np.zeros((19, 19), bool)
    inside[4:15, 4:15] = True
    assert changed[inside].mean() > 5 * changed[~inside].mean()

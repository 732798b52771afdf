"""`generator` against act_max.py's loop, written down again for generators that can be worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.errors import BadOption, BadReference, UnknownName
from penlight.techniques.visualize.edits import Moment
from penlight.techniques.visualize.methods.generator import FromCode, Kept, fitted, open_source
from penlight.techniques.visualize.schedule import stream

CODE = 5


class Linear(nn.Module):
    """Pictures of 6 × 6 as sums of five patterns, each with its weight."""

    def __init__(self, known=(), code_shape=(CODE,)):
        super().__init__()
        self.patterns = nn.Parameter(0.05 * (torch.rand(CODE, 1, 6, 6, generator=stream("patterns")) - 0.5))
        for name, value in known:
            self.register_buffer(f"code_{name}", value)
        if code_shape:
            self.code_shape = code_shape

    def forward(self, code):
        return 0.5 + torch.einsum("nk,kchw->nchw", code.flatten(1), self.patterns)


MEAN, STD = torch.arange(CODE) * 0.1, torch.full((CODE,), 0.3)


def linear():
    return Linear()


def ranged():
    return Linear((("mean", MEAN), ("std", STD)))


def bounded():
    return Linear(
        (("low", torch.full((CODE,), -0.4)), ("high", torch.full((CODE,), 0.7)), ("mean", MEAN), ("std", STD))
    )


def silent():
    return Linear(code_shape=None)


def ill():
    return Linear((("low", torch.zeros(3)),))


def glaring():
    return nn.Sequential(nn.Unflatten(1, (1, 1, CODE)), nn.Upsample(scale_factor=6), nn.Hardtanh(-3, 3))


def flat():
    return nn.Linear(CODE, 36)


@pytest.fixture
def unit():
    """A network with one unit that is linear in the picture, its weights, and its model."""
    network = zoo.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))
    model = penlight.load(network, example=torch.zeros(1, 1, 6, 6), mean=(0.5,), std=(0.25,))
    return model, network[1].weight.detach().double().numpy()[1].reshape(6, 6) / 0.25


def ascent(weights, code, steps, low, high, rate=8.0, last=1e-10, shrink=0.99):
    """act_max.py: a normalised step of the picture, taken back through the generator, a normalised step of the code."""
    patterns = Linear().patterns.detach().double().numpy()[:, 0]
    for i in range(steps):
        size = rate + ((last - rate) * i) / steps
        x0 = 0.5 + np.einsum("k,khw->hw", code, patterns)
        x = x0 + size / np.abs(weights).mean() * weights
        g = np.einsum("hw,khw->k", x - x0, patterns)
        code = code + size / np.abs(g).mean() * g
        if low is not None:
            code = np.minimum(np.maximum(code, low), high)
        code = code * shrink
    return x0  # of the last look


@pytest.mark.parametrize(
    ("name", "options", "low", "high"),
    [
        ("linear", {"rate": 0.3}, None, None),
        ("linear", {"rate": 0.3, "bounds": "unit"}, -1, 1),
        ("linear", {"rate": 0.2, "last_rate": 0.1, "shrink": 0.9}, None, None),
        ("linear", {}, None, None),
        ("ranged", {}, 0, (MEAN + 3 * STD).numpy()),
        ("bounded", {}, -0.4, 0.7),
        ("bounded", {"rate": 8.0}, -0.4, 0.7),
        ("bounded", {"bounds": "relu"}, 0, (MEAN + 3 * STD).numpy()),
        ("bounded", {"bounds": "none", "rate": 0.1}, None, None),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 30])
def test_the_published_loop(unit, name, options, low, high, steps):
    model, weights = unit
    reference = f"module:{__name__}:{name}"
    result = penlight.visualize(model, "1:1", method="generator", generator=reference, steps=steps, seed=3, **options)
    start = torch.randn(CODE, generator=stream(3, "1:1", 0)).double().numpy()
    far = 12 if low is None else float(np.mean(high - np.float64(low)))
    numbers = {"rate": 8 * far / 12, "last": 1e-10, "shrink": 0.99}
    numbers |= {{"last_rate": "last"}.get(k, k): v for k, v in options.items() if k != "bounds"}
    expected = ascent(weights, start, steps, low, high, **numbers)
    np.testing.assert_allclose(result.images[0, 0, :, :, 0], np.clip(expected, 0, 1) * 255, atol=0.51)
    if steps == 30:
        assert result.activations[0, 0] > result.starts[0, 0]


def test_defaults_are_the_published_ones():
    method = FromCode()
    found = (method.steps, method.last_rate, method.shrink, method.objective)
    assert found == (200, 1e-10, 0.99, "neuron")


def test_starts_around_the_mean_code(unit):
    model, _ = unit
    asked = {"method": "generator", "generator": f"module:{__name__}:ranged", "steps": 1, "origin": "mean"}
    result = penlight.visualize(model, "1:0", seeds=2, **asked)
    for k in range(2):
        code = MEAN + STD * torch.randn(CODE, generator=stream(0, "1:0", k))
        expected = 255 * ranged()(code[None])[0, 0].detach()
        np.testing.assert_allclose(result.images[0, k, :, :, 0], expected, atol=0.51)


def test_a_code_that_no_gradient_reached_stays():
    values, gradient = torch.full((2, 3), 2.0), torch.tensor([[0.0, 0, 0], [0, 1, 0]])
    kept = Kept(-torch.ones(3), torch.ones(3), 0.9)(values, Moment(0, 1, gradient, stream(0)))
    assert kept.flatten().tolist() == pytest.approx([2.0] * 3 + [0.9] * 3)


class TestSizes:
    def test_a_little_too_large_is_cut(self):
        pictures = torch.arange(256.0).expand(1, 1, 256, 256)
        seen = fitted(pictures, (227, 227))
        assert seen.shape == (1, 1, 227, 227)
        assert seen[0, 0, 0, [0, -1]].tolist() == [14.0, 240.0]  # (256 − 227) // 2

    def test_much_too_large_or_too_small_is_resized(self):
        ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
        for size in ((16, 16), (100, 100), (100, 120), (16, 90)):
            assert fitted(ramp, size).shape[2:] == size
        assert float(fitted(ramp, (16, 16))[0, 0, 3, 0]) < 0.05
        assert float(fitted(ramp, (100, 100))[0, 0, 3, -1]) == pytest.approx(1.0)

    def test_pictures_of_another_size_reach_the_network(self, open_zoo):
        model = open_zoo("functional")  # 16 × 16
        result = penlight.visualize(
            model, "fc:1", method="generator", generator="module:zoo:painter1", steps=20, rate=0.5
        )
        assert result.images.shape == (1, 1, 16, 16, 1)
        assert result.activations[0, 0] > result.starts[0, 0]


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({}, BadOption, "brings no generator"),
            ({"generator": f"module:{__name__}:silent"}, BadOption, "--code"),
            ({"generator": f"module:{__name__}:silent", "code": "two"}, BadOption, "as in 4096 or 64,4,4"),
            ({"generator": f"module:{__name__}:silent", "code": "0"}, BadOption, "as in 4096 or 64,4,4"),
            ({"generator": f"module:{__name__}:silent", "code": "7"}, BadOption, r"fails on codes \[4, 7\]"),
            ({"generator": "module:zoo:painter3"}, BadOption, "3 channels; the network takes 1"),
            ({"generator": f"module:{__name__}:glaring", "code": str(CODE)}, BadOption, r"have to lie in \[0, 1\]"),
            ({"generator": f"module:{__name__}:flat", "code": str(CODE)}, BadOption, r"makes \[4, 36\] of 4 codes"),
            ({"generator": f"module:{__name__}:linear", "bounds": "own"}, BadOption, "code_low"),
            ({"generator": f"module:{__name__}:linear", "bounds": "relu"}, BadOption, "code_mean"),
            ({"generator": f"module:{__name__}:linear", "origin": "mean"}, BadOption, "code_mean"),
            ({"generator": f"module:{__name__}:ill"}, BadOption, "does not fit codes of"),
            ({"generator": f"module:{__name__}:nowhere"}, UnknownName, "nowhere"),
            ({"generator": "module:no_such_module:x"}, BadReference, "no_such_module"),
        ],
    )
    def test_are_told(self, unit, options, error, words):
        with pytest.raises(error, match=words):
            penlight.visualize(unit[0], "1:1", method="generator", **options)


def test_a_code_of_any_shape(unit):
    source = open_source(unit[0], f"module:{__name__}:silent", "5,1,1")
    assert source.shape == (5, 1, 1)
    assert source.ranges == {}
    assert not any(p.requires_grad for p in source.network.parameters())


def test_letters_bring_their_own():
    model = penlight.load("letters")
    source = open_source(model, "", "")
    assert source.shape == (1152,)
    assert source.ranges.keys() == {"low", "high", "mean", "std"}
    result = penlight.visualize(model, "fc:*", method="generator")
    probabilities = model.predict(np.moveaxis(result.images[:, 0], -1, 1))
    assert (probabilities.argmax(1) == np.arange(10)).all()

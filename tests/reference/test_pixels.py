"""`erhan` and `simonyan` against their formulas: where a linear unit's picture comes to rest, and single steps worked in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.visualize.ascent import Ridge, RootNormalised
from penlight.techniques.visualize.methods.pixels import Erhan, Simonyan
from penlight.techniques.visualize.schedule import Constant
from penlight.units import Unit

SIDE = 12


def linear(scale=1.0):
    """A model whose two classes are linear in the picture, and the classes' weights per 255th of a value, (2, H, W)."""
    network = zoo.seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)))
    with torch.no_grad():
        network[1].weight *= scale
    contract = InputContract("image", (1, SIDE, SIDE), mean=(0.5,), std=(0.25,))
    weights = network[1].weight.detach().numpy().reshape(2, SIDE, SIDE) / 0.25 / 255
    return Model(network.eval(), contract), weights


def values(model, technique, unit="1:0", seed=0):
    """The stored picture in 255ths less the mean, (H, W); stored to whole 255ths."""
    r = technique.run(Request(model, [Unit.parse(unit)], seed=seed))
    return r.images[0, 0, ..., 0].astype(np.float64) - 127.5


class TestSimonyan:
    @pytest.mark.parametrize("scale", [1.0, 1e-3])
    def test_a_linear_unit_rests_at_its_weights_over_two_lambda(self, scale):
        model, weights = linear(scale)
        l2 = np.abs(weights[0]).max() / (2 * 90)  # so that the largest value is 90
        found = values(model, Simonyan(steps=300, rate=0.1, l2=float(l2)))
        np.testing.assert_allclose(found, weights[0] / (2 * l2), atol=0.51)

    @pytest.mark.parametrize("scale", [1.0, 1e3, 1e-4])
    def test_the_chosen_lambda_gives_the_contrast_asked_for_at_any_gain(self, scale):
        model, weights = linear(scale)
        found = values(model, Simonyan(steps=300, rate=0.1, contrast=20.0))
        np.testing.assert_allclose(found, weights[0] * 20 / np.sqrt((weights[0] ** 2).mean()), atol=0.51)

    def test_a_step_is_plain_gradient_ascent(self):
        g, x = np.random.default_rng(0).normal(size=(2, 3, 1, 4, 5)).astype(np.float32)
        g2 = g * np.float32(0.3)  # the next gradient, of another size
        weight, rate = 0.7, 0.2
        expected = x + rate / (2 * weight) * (g - 2 * weight * x)
        values = torch.from_numpy(x.copy())
        climb = Ridge(Constant(rate), weight).begin(values)
        climb(values, torch.from_numpy(g), 0)
        np.testing.assert_allclose(values.numpy(), expected, rtol=1e-5, atol=1e-6)
        # chosen at the first gradient of each picture, λ stays
        values = torch.from_numpy(x.copy())
        climb = Ridge(Constant(rate), contrast=5.0).begin(values)
        lam = np.sqrt((g**2).mean((1, 2, 3), keepdims=True)) / (2 * 5.0)
        one = x + rate / (2 * lam) * (g - 2 * lam * x)
        climb(values, torch.from_numpy(g), 0)
        np.testing.assert_allclose(values.numpy(), one, rtol=1e-4, atol=1e-5)
        climb(values, torch.from_numpy(g2), 1)
        np.testing.assert_allclose(values.numpy(), one + rate / (2 * lam) * (g2 - 2 * lam * one), rtol=1e-4, atol=1e-5)

    def test_starts_from_the_mean_picture(self):
        model, weights = linear()
        found = Simonyan(steps=1, rate=0.0).run(Request(model, [Unit.parse("1:0")]))
        assert np.all(found.images == 128)  # .5 · 255, rounded
        assert np.ptp(weights) > 0


class TestErhan:
    @pytest.mark.parametrize("scale", [1.0, 1e-5])
    @pytest.mark.parametrize("minimize", [False, True])
    def test_a_linear_unit_rests_at_its_weights_at_length_rho(self, scale, minimize):
        model, weights = linear(scale)
        found = values(model, Erhan(norm=30.0, rate=0.2, minimize=minimize))
        expected = (-1 if minimize else 1) * weights[0] * 30 / np.sqrt((weights[0] ** 2).mean())
        np.testing.assert_allclose(found, expected, atol=1.0)

    def test_a_start_is_even_noise_of_length_rho(self):
        model, _ = linear()
        found = values(model, Erhan(steps=1, rate=0.0, norm=40.0))
        assert np.sqrt((found**2).mean()) == pytest.approx(40, rel=0.01)
        assert np.abs(found).max() < 40 * np.sqrt(3) * 1.1  # even noise has no tails
        assert np.abs(found).max() > 40 * np.sqrt(3) * 0.85

    def test_one_step(self):
        model, weights = linear()
        start = values(model, Erhan(steps=1, rate=0.0, norm=40.0))
        found = values(model, Erhan(steps=1, rate=0.5, norm=40.0))
        moved = start + 0.5 * 40 * weights[0] / np.sqrt((weights[0] ** 2).mean())
        np.testing.assert_allclose(found, moved * 40 / np.sqrt((moved**2).mean()), atol=1.5)

    def test_without_a_length_every_value_goes_to_its_bound(self):
        model, weights = linear()
        found = values(model, Erhan(norm=0.0, rate=0.5))
        clear = np.abs(weights[0]) > 0.2 * np.abs(weights[0]).max()
        np.testing.assert_array_equal(found[clear], 127.5 * np.sign(weights[0][clear]))

    def test_a_normalised_step_has_the_length_asked_for(self):
        values = torch.zeros(2, 1, 3, 4)
        gradient = (
            torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0))
            * torch.tensor([1e-6, 1e6])[:, None, None, None]
        )
        RootNormalised(Constant(0.3)).begin(values)(values, gradient, 0)
        np.testing.assert_allclose(values.square().mean((1, 2, 3)).sqrt().numpy(), 0.3, rtol=1e-5)


@pytest.mark.parametrize("method", [Erhan(steps=40), Simonyan(steps=40)])
def test_a_class_that_is_off_behind_its_relu_and_pooling_is_found(method):
    """As SqueezeNet's classes: convolution, ReLU, adaptive pooling to one position."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        network[0].weight.copy_(torch.ones(2, 1, 3, 3) / 9)
        network[0].bias.fill_(-0.5)
    model = Model(network.eval(), InputContract("image", (1, SIDE, SIDE), mean=(0.5,), std=(0.25,)))
    r = method.run(Request(model, [Unit.parse("2:1")]))
    assert not r.zero_gradient.any()
    assert r.activations[0, 0] > 0

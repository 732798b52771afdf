"""Objectives on outputs that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from penlight.techniques.visualize.objectives import (
    Caricature,
    Channel,
    Direction,
    Diverse,
    Energy,
    Guided,
    Inversion,
    MapOf,
    Neuron,
    Probability,
    UnitAt,
)
from penlight.techniques.visualize.schedule import stream

OUTPUT = torch.arange(2 * 3 * 2 * 2.0).reshape(2, 3, 2, 2)  # unit u of picture n: 12 n + 4 u + (0 … 3)
VECTORS = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 4.0]])
ROWS = torch.arange(2)


def values(objective, output=OUTPUT, rows=ROWS):
    return objective({"l": output}, rows).tolist()


class TestUnits:
    def test_one_neuron_a_picture(self):
        index = torch.tensor([2, 0])
        same = UnitAt("l", index, torch.tensor([[1, 0], [1, 0]]))
        apart = UnitAt("l", index, torch.tensor([[1, 0], [0, 1]]))
        assert values(same) == [10.0, 14.0]
        assert values(apart) == [10.0, 13.0]
        assert values(apart, OUTPUT[1:], ROWS[1:]) == [13.0]
        assert values(UnitAt("l", index)) == [11.0, 15.0]  # the middle of 2 × 2 is the later of the two, (1, 1)
        assert values(UnitAt("l", index), VECTORS) == [3.0, 0.5]

    def test_maps_and_single_units(self):
        assert values(MapOf("l", torch.tensor([0, 1]))) == [1.5, 17.5]
        assert values(MapOf("l", torch.tensor([0, 1])), VECTORS) == [1.0, -1.0]
        assert values(Channel("l", 2)) == [9.5, 21.5]
        assert values(Neuron("l", 1)) == [7.0, 19.0]
        assert values(Neuron("l", 1, (0, 1))) == [5.0, 17.0]
        assert values(Neuron("l", 1), VECTORS) == [2.0, -1.0]

    def test_energy_is_half_the_sum_of_squares(self):
        assert values(Energy("l", 0))[0] == (0 + 1 + 4 + 9) / 2
        assert values(Energy("l"))[0] == sum(n * n for n in range(12)) / 2

    def test_probability_is_softmax(self):
        expected = np.exp(VECTORS.numpy())
        expected /= expected.sum(1, keepdims=True)
        assert values(Probability("l", 1), VECTORS) == pytest.approx(expected[:, 1], rel=1e-5)
        assert values(Probability("l", torch.tensor([2, 0])), VECTORS) == pytest.approx(
            [expected[0, 2], expected[1, 0]], rel=1e-5
        )

    def test_of_two_classes_each_probability_falls_as_the_other_rises(self):
        scores = torch.tensor([[0.3, -0.8]], requires_grad=True)
        gradients = []
        for index in (0, 1):
            (g,) = torch.autograd.grad(Probability("l", index)({"l": scores}, ROWS[:1]).sum(), scores)
            gradients.append(g)
        torch.testing.assert_close(gradients[0], -gradients[1])


class TestArithmetic:
    a, b = Neuron("l", 0, (0, 0)), Neuron("l", 1, (0, 0))  # 0 and 4, 12 and 16

    def test_values(self):
        assert values(self.a + self.b) == [4.0, 28.0]
        assert values(self.b - 0.5 * self.a) == [4.0, 10.0]
        assert values(self.a * self.b) == [0.0, 192.0]
        assert values(-self.b) == [-4.0, -16.0]
        assert values(self.b * 3) == [12.0, 48.0]

    def test_a_product_of_two_units_that_are_off_is_not_on(self):
        both = Neuron("l", 0) * Neuron("l", 1)
        off = torch.tensor([[-3.0, -2.0]])
        assert values(both, off, ROWS[:1]) == [-3.0]

    def test_nothing_is_changed_by_arithmetic_and_layers_are_collected(self):
        mixed = self.a + Channel("m", 1) - self.a
        assert mixed.layers == ("l", "m")
        assert values(self.a) == [0.0, 12.0]


class TestPictures:
    def test_direction_is_the_dot_product_and_its_power_prefers_alike(self):
        vector = torch.tensor([1.0, 0.0, 2.0])
        flat = OUTPUT.flatten(2).numpy()
        dots = np.einsum("u,nup->np", vector.numpy(), flat)
        assert values(Direction("l", vector)) == pytest.approx(dots.mean(1))
        cosines = dots / np.linalg.norm(flat, axis=1) / np.sqrt(5)
        assert values(Direction("l", vector, 2.0)) == pytest.approx(
            (dots * np.maximum(0.1, cosines) ** 2).mean(1), rel=1e-5
        )
        assert values(Direction("l", vector, position=(1, 1))) == pytest.approx(dots[:, 3])
        assert values(Direction("l", vector), VECTORS) == [7.0, 8.5]

    def test_inversion_is_best_at_the_picture_itself(self):
        features = OUTPUT[1]
        found = values(Inversion("l", features))
        assert found[1] == 0
        assert found[0] == pytest.approx(-12 * 144 / float(features.square().sum()))

    def test_caricature(self):
        features = torch.ones(3, 2, 2)
        dot = OUTPUT.flatten(1).sum(1).numpy()
        cosine = dot / np.linalg.norm(OUTPUT.flatten(1).numpy(), axis=1) / np.sqrt(12)
        assert values(Caricature("l", features)) == pytest.approx(dot * np.maximum(0.1, cosine), rel=1e-5)
        assert values(Caricature("l", features, 0.0)) == pytest.approx(dot)

    def test_features_are_fitted_to_a_map_of_another_size(self):
        even = torch.full((3, 4, 4), 2.0)
        assert values(Caricature("l", even, 0.0)) == pytest.approx(2 * OUTPUT.flatten(1).sum(1).numpy())

    def test_guided_takes_the_guides_nearest_position(self):
        guide = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # two positions: (1, 0) and (0, 1)
        output = torch.tensor([[[3.0, 1.0], [2.0, 5.0]]])  # (1, 2 units, 2 positions): (3, 2) and (1, 5)
        assert values(Guided("l", guide), output, ROWS[:1]) == [3.0 + 5.0]

    def test_diversity_costs_what_a_group_shares_and_nothing_between_groups(self):
        same = OUTPUT[:1].repeat(2, 1, 1, 1)
        wanted = Neuron("l", 1, (0, 0))
        together, apart = torch.tensor([0, 0]), torch.tensor([0, 1])
        assert values(Diverse(wanted, 100.0, together, relative=False), same) == pytest.approx([4 - 50.0] * 2)
        assert values(Diverse(wanted, 100.0, apart, relative=False), same) == [4.0, 4.0]
        assert values(Diverse(wanted, 0.5, together), same) == pytest.approx([4 - 0.25 * 4] * 2)
        other = torch.rand((2, 3, 2, 2), generator=stream("grams"))
        grams = [f.flatten(1) @ f.flatten(1).T for f in other]
        shared = float((grams[0] / grams[0].norm() * grams[1] / grams[1].norm()).sum()) / 2
        assert values(Diverse(Channel("l", 0), 1.0, together, relative=False), other) == pytest.approx(
            [float(other[n, 0].mean()) - shared for n in range(2)], rel=1e-5
        )

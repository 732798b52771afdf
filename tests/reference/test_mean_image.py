"""`mean-image` against the published octaves, its denoising against the problem it solves, and facets that were planted."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from skimage.restoration import denoise_tv_bregman
from torch import nn

import penlight
import zoo
from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import InputContract, open_data
from penlight.inputs.data import ArrayData
from penlight.models import Model
from penlight.techniques.contract import Request, methods
from penlight.techniques.options import build
from penlight.techniques.visualize.ascent import MeanNormalised
from penlight.techniques.visualize.edits import Moment
from penlight.techniques.visualize.methods import facets, mean_image
from penlight.techniques.visualize.methods.facets import clusters, codes, deep_layer
from penlight.techniques.visualize.methods.mean_image import Denoise, Inside, MeanImage
from penlight.techniques.visualize.objectives import Channel, Probability, Scaled, UnitAt
from penlight.techniques.visualize.scene import Optics, Scene
from penlight.techniques.visualize.schedule import Constant, stream
from penlight.techniques.visualize.synthesis import Brief
from penlight.techniques.visualize.targets import read_targets


class Wide(nn.Module):
    """Codes of four numbers, the mean of each quarter of the picture; two classes."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.flat(self.pool(x)))


def opened(side=16, labels=("one", "two")):
    return Model(zoo.seeded(Wide).eval(), InputContract("image", (1, side, side), (0.5,), (0.25,)), labels)


def surveyed(model, data, *layers, top=100):
    return build(methods["survey"]["stream"], {"top": top}).run(Request(model, layers=layers, data=data))


def run(model, *targets, data=None, seed=0, survey=None, **options):
    layers = dict.fromkeys(unit.layer for text in targets for unit in model.find(text))
    earlier = () if data is None else (survey or surveyed(model, data, *layers),)
    return MeanImage(**options).run(Request(model, targets=targets, data=data, seed=seed, earlier=earlier))


def planted(count=12, side=16, truth=None, seed=0):
    """Inputs with one bright quarter each, in turn, and a little noise."""
    noise = np.random.default_rng(seed).random((count, 1, side, side), np.float32) * 0.1
    for n in range(count):
        row, column = divmod(n % 4, 2)
        half = side // 2
        noise[n, 0, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.8
    return ArrayData("planted", InputContract("image", (1, side, side), (0.5,), (0.25,)), noise, truth, ("one", "two"))


def recipe(variant="mean", side=227, **options):
    model = opened(side)
    target = read_targets(model, ["fc:0"], "neuron")[0]
    scene = Scene(model.layer("fc"), "whole", (side, side), (side, side), ())
    start = {"0 fc:0": np.zeros((1, side, side), np.float32)}
    asked = Brief(scene, Optics.of(model), [(target, 0)], Request(model, pictures=start))
    return MeanImage(variant=variant, **options).recipe(asked)


# act_max.tvd.mean.py and .center.py: iter_n, start and end step size, start and end weight, side, margin, window, layer
MEAN = [
    (190, 1, 2, 0.4, 0.4, 227, 0, 0.3, "fc8"),
    (150, 1, 1, 0.01, 2, 272, 0, 0.3, "fc8"),
    (20, 2, 2, 0.1, 2, 272, 50, 0.2, "fc8"),
    (10, 2, 2, 0.4, 2, 272, 0, 0.3, "fc8"),
]
CENTRE = [
    (190, 11, 11, 0.001, 0.05, 227, 0, 0.3, "prob"),
    (150, 6, 6, 0.01, 0.08, 272, 0, 0.3, "prob"),
    (150, 1, 1, 0.01, 2, 326, 0, 0.3, "fc8"),
    (30, 3, 3, 0.1, 2, 326, 50, 0.1, "fc8"),
    (10, 6, 3, 0.01, 2, 326, 0, 0.3, "fc8"),
]


class TestSchedules:
    @pytest.mark.parametrize(("variant", "table"), [("mean", MEAN), ("centre", CENTRE)])
    def test_octaves_are_the_published_ones_at_227(self, variant, table):
        phases = recipe(variant).phases
        assert len(phases) == len(table)
        for phase, row in zip(phases, table, strict=True):
            count, step, last_step, weight, last_weight, side, margin, window, layer = row
            assert (phase.steps, phase.size, phase.crop.spread) == (count, (side, side), window)
            inner = phase.rule.rule if margin else phase.rule
            assert (phase.rule.margin if margin else 0) == margin
            _, denoise = phase.edits
            for i in (0, 1, count // 2, count - 1):
                assert inner.rate(i) == pytest.approx(step + (last_step - step) * i / count)
                assert denoise.weight(i) == pytest.approx(weight + (last_weight - weight) * i / count)
            assert (phase.wanted is not None) == (layer == "prob")

    def test_the_slip_of_the_program_is_an_option(self):
        """denoise_weight = start - (start - end * i) / iter_n"""
        for phase, row in zip(recipe(quirk=True).phases, MEAN, strict=True):
            count, start, end = row[0], row[3], row[4]
            for i in (0, 1, count - 1):
                assert phase.edits[1].weight(i) == pytest.approx(start - (start - end * i) / count)
        assert recipe(quirk=True).phases[0].edits[1].weight(189) == pytest.approx(0.7958, abs=1e-3)

    def test_small_pictures_have_small_margins_and_little_smoothing(self):
        _, _, third, _ = recipe(side=28).phases
        assert third.rule.margin == round(50 * 28 / 227)
        assert third.edits[1].weight(0) == pytest.approx(0.1 * 227 / 28)

    def test_fewer_steps_are_shared_out(self):
        assert [phase.steps for phase in recipe(steps=37).phases] == [19, 15, 2, 1]


class TestParts:
    def test_denoising_solves_its_problem(self):
        """A bar of height h on an endless ground loses 2 / (λ · width) with λ twice the weight (Strong & Chan 2003), and keeps its mean."""
        values = torch.full((1, 1, 24, 60), -20.0)
        values[..., 25:35] += 100
        weight, mean = 0.1, torch.tensor([[[0.5]]])
        found = Denoise(Constant(weight), mean)(values, Moment(0, 1, values, stream(0)))
        assert found.shape == values.shape
        lost = (values - found)[0, 0, 12, 27:33].mean()
        assert float(lost) == pytest.approx(2 / (2 * weight * 10), rel=0.1)
        assert float(found.mean()) == pytest.approx(float(values.mean()), abs=0.1)

    def test_denoising_is_scikit_image_s_on_values_of_255(self):
        values = torch.rand((3, 2, 9, 11), generator=stream(0)) * 200 - 100
        mean = torch.tensor([0.5, 0.4])[:, None, None]
        found = Denoise(Constant(0.3), mean)(values, Moment(0, 1, values, stream(0)))
        for one, smooth in zip(values, found, strict=True):
            for plane, seen, m in zip(one, smooth, (127.5, 102.0), strict=True):
                wanted = denoise_tv_bregman(plane.double().numpy() + m, 0.3, max_num_iter=100, eps=1e-3) - m
                np.testing.assert_allclose(seen.numpy(), wanted, atol=0.2)  # when to stop is judged over channels

    def test_a_margin_is_left_as_it_is(self):
        values, gradient = torch.zeros((1, 1, 7, 9)), torch.rand((1, 1, 7, 9), generator=stream(1)) - 0.5
        Inside(MeanNormalised(Constant(3.0)), 2).begin(values)(values, gradient, 0)
        inner = np.zeros((7, 9))
        inner[2:5, 2:7] = gradient[0, 0, 2:5, 2:7]
        # the mask comes before the mean, which counts the zeros too
        np.testing.assert_allclose(values[0, 0].numpy(), 3 * inner / np.abs(inner).mean(), rtol=1e-5)

    def test_the_softmax_octaves_climb_the_probability(self):
        wanted = recipe("centre").phases[0].wanted
        index = torch.tensor([1])
        assert isinstance(wanted(UnitAt("fc", index)), Probability)
        flipped = wanted(Scaled(UnitAt("fc", index), -1.0))
        assert isinstance(flipped, Scaled)
        assert isinstance(flipped.objective, Probability)
        other = Channel("pool", 0)
        assert wanted(other) is other


class TestFacets:
    def test_planted_clusters_are_found(self):
        centres = np.array([[0, 0, 0, 0], [9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 9]], float)
        known = np.repeat(centres, [20, 15, 12, 9], axis=0) + np.random.default_rng(0).normal(0, 0.3, (56, 4))
        found = clusters(known, 4, 5, ("name",))
        assert [len(rows) for rows in found] == [5, 5, 5, 5]
        groups = np.repeat([0, 1, 2, 3], [20, 15, 12, 9])
        assert [set(groups[rows]) for rows in found] == [{0}, {1}, {2}, {3}]  # the largest first
        for again, rows in zip(clusters(known, 4, 5, ("name",)), found, strict=True):
            np.testing.assert_array_equal(again, rows)

    def test_examples_nearest_to_the_centre_stand_for_a_facet(self, monkeypatch):
        plane = np.array([[0, 0], [4, 0], [0, 1], [1, 0], [-2, 0], [100, 0], [103, 0], [99, 0.0]])
        monkeypatch.setattr(facets, "_plane", lambda known, seed: known)
        first, second = clusters(plane, 2, 3, ("near",))
        # centres (0.6, 0.2) and (100.67, 0)
        assert (first.tolist(), second.tolist()) == ([3, 0, 2], [5, 7, 6])

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_few_examples_make_few_facets(self, count):
        known = np.random.default_rng(0).normal(size=(count, 6))
        found = clusters(known, 10, 15, ("few",))
        assert sorted(np.concatenate(found).tolist()) == list(range(count))

    def test_equal_inputs_are_one_facet(self):
        found = clusters(np.ones((9, 3)), 3, 4, ("equal",))
        assert sum(len(rows) for rows in found) <= 9
        assert len(found[0]) == 4

    def test_codes_are_those_before_the_class_scores(self):
        model = opened()
        assert deep_layer(model).path == "flat"
        assert deep_layer(model, "pool").path == "pool"
        assert deep_layer(penlight.load("letters")).path == "conv4"
        inputs = planted(40)
        known = codes(model, deep_layer(model), [lambda i=i: inputs.read(i) for i in range(40)])
        pooled = np.stack([inputs.read(i).reshape(2, 8, 2, 8).mean((1, 3)).ravel() for i in range(40)])
        np.testing.assert_allclose(known, (pooled - 0.5) / 0.25, atol=1e-5)

    def test_a_network_of_one_layer_is_known_by_its_inputs(self):
        model = Model(nn.Sequential(nn.Linear(7, 2)).eval(), InputContract("array", (7,)))
        assert deep_layer(model) is None
        assert codes(model, None, [lambda: np.ones(7, np.float32)] * 3).shape == (3, 7)


class TestStarts:
    def test_each_facet_starts_from_the_mean_of_its_own(self):
        """Of a class's four kinds of input; with a rate of change near none the picture is the mean itself."""
        truth = np.array([0] * 32 + [1] * 8)
        data = planted(40, truth=truth)
        faces, notes = MeanImage(facets=4, nearest=5)._faces(
            Request(opened(), data=data), read_targets(opened(), ["fc:0"], "neuron")
        )
        assert notes == ["fc:0: 4 facets of 32 inputs of the class"]
        (means,) = faces.values()
        quarters = sorted(int(mean.reshape(2, 8, 2, 8).mean((1, 3)).ravel().argmax()) for mean in means)
        assert quarters == [0, 1, 2, 3]
        for mean in means:
            kind = int(mean.reshape(2, 8, 2, 8).mean((1, 3)).ravel().argmax())
            own = [data.read(i) for i in range(32) if i % 4 == kind]
            assert any(np.allclose(mean, np.mean(some, 0), atol=1e-6) for some in _fives(own))

    def test_examples_are_moved_to_where_the_picture_looks(self):
        """A dot that a unit finds anywhere comes to lie in the middle of the mean."""
        network = nn.Sequential(
            nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(15 * 15, 2)
        )
        with torch.no_grad():
            network[0].weight.copy_(torch.tensor([[[[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]]]))
        model = Model(network.eval(), InputContract("image", (1, 15, 15), (0.5,), (0.25,)))
        pictures = np.full((8, 1, 15, 15), 0.2, np.float32)
        for n in range(8):
            pictures[n, 0, 2 + n, 12 - n] = 1.0
        data = open_data(pictures, model.contract)
        request = Request(model, data=data, earlier=(surveyed(model, data, "0"),))
        faces, _ = MeanImage(facets=1)._faces(request, read_targets(model, ["0:0"], "neuron"))
        (mean,) = faces["0:0"]
        assert mean[0, 7, 7] == pytest.approx(1.0)
        assert mean.sum() - 1 < 0.5 * 15 * 15
        seen = MeanImage(facets=1, steps=4).run(Request(model, targets=["0:0"], data=data, earlier=request.earlier))
        assert seen.images.shape[1] == 1
        assert seen.starts[0, 0] == pytest.approx((1 - 0.5) / 0.25, abs=0.02)


def _fives(own):
    from itertools import combinations

    return combinations(own, 5)


class TestResults:
    def test_one_picture_a_facet(self):
        model, data = opened(), planted(40)
        result = run(model, "fc:0", "fc:1", data=data, facets=3, steps=8)
        assert result.images.shape == (2, 3, 16, 16, 1)
        assert (result.activations > result.starts).all()
        assert any("3 facets of 40 strongest inputs" in note for note in result.notes)
        assert (result.images[0, 0] != result.images[0, 1]).any()

    def test_batches_do_not_matter(self):
        model, data = opened(), planted(40)
        both = run(model, "fc:0", "fc:1", data=data, facets=2, steps=8)
        alone = run(model, "fc:1", data=data, facets=2, steps=8)
        np.testing.assert_array_equal(both.images[1], alone.images[0])

    def test_facets_are_no_more_than_examples(self):
        truth = np.array([0, 0, 0] + [1] * 9)
        result = run(opened(), "fc:0", "fc:1", data=planted(truth=truth), steps=4)
        assert result.images.shape[1] == 3
        assert any("fewest examples" in note for note in result.notes)

    def test_the_centre_variant_starts_from_noise_and_reads_no_data(self):
        result = run(opened(), "fc:0", variant="centre", seeds=2, steps=10)
        assert result.images.shape[:2] == (1, 2)
        assert (result.activations > result.starts).all()

    def test_what_is_lacking_is_said(self, monkeypatch):
        model, data = opened(), planted()
        with pytest.raises(BadOption, match="--data"):
            run(model, "fc:0")
        with pytest.raises(BadInput, match="survey of layer 'flat'"):
            MeanImage().run(Request(model, targets=["flat:0"], data=data))
        with pytest.raises(BadOption, match="name a unit"):
            MeanImage().run(Request(model, targets=["fc:0 - fc:1"], data=data))
        larger = planted(30)
        with pytest.raises(BadInput, match="other data"):
            run(model, "flat:0", data=data, survey=surveyed(model, larger, "flat"))
        find = importlib.util.find_spec
        monkeypatch.setattr(mean_image, "find_spec", lambda name: None if name == "skimage" else find(name))
        with pytest.raises(CannotRun, match="no skimage; pip install 'penlight\\[facets\\]'"):
            run(model, "fc:0", data=data)

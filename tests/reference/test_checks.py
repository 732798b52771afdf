"""Is a map true: the curves, the noise and the scrambling against numbers worked by hand, and against SciPy and scikit-image."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity
from torch import nn

import penlight
import zoo
from penlight.errors import CannotRun
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.explain.aim import read_aim
from penlight.techniques.explain.cam import GradCam
from penlight.techniques.explain.checks import ALIKE, area, check, ordered, placed, spearman, structure, verdict
from penlight.techniques.explain.explanation import Attribution, Explanation, open_scene
from penlight.techniques.explain.gradients import Gradient, GradientInput, GuidedBackprop
from penlight.techniques.explain.scramble import scrambled, stages


@dataclass(frozen=True)
class Given(Explanation):
    """A map that has nothing to do with the network: some function of the input."""

    name: ClassVar[str] = "given"
    paper: ClassVar[str] = "none"
    made: object = None

    def attribute(self, scene):
        return Attribution(self.made(scene.x[0].numpy()))


def row(weights):
    """A network whose hidden unit 0:0 is a weighted sum of a row of numbers."""
    network = nn.Sequential(nn.Linear(len(weights), 1, bias=False), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([weights]))
    return Model(network.eval(), InputContract("array", (len(weights),)))


def checked(technique, request, **options):
    result = technique.run(request)
    return *check(technique, request, result, **options), result


# deletion and insertion


def test_curves_of_a_weighted_sum_are_its_sums():
    weights, x = [2.0, -1.0, 0.5, 4.0], np.array([0.5, 0.5, 1.0, 0.25], np.float32)
    parts = np.array(weights) * x  # 1, -.5, .5, 1
    request = Request(row(weights), targets=["0:0"], input=x)
    numbers, curves, result = checked(GradientInput(), request, draws=0, depth=0)
    np.testing.assert_allclose(result.values, parts, rtol=1e-6)
    falling = np.array([2.0, 1.0, 0.0, -0.5, 0.0]) / 2
    np.testing.assert_allclose(curves["deletion_curve"], falling, atol=1e-6)
    np.testing.assert_allclose(curves["insertion_curve"], 1 - falling, atol=1e-6)
    assert numbers["deletion"] == pytest.approx((0.5 + 0.5 + 0 - 0.25 + 0) / 4)
    assert numbers["insertion"] == pytest.approx(1 - 0.1875)
    assert curves["curve_share"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert sorted(curves["deletion_curve_random"])[-1] == 1


def test_classes_are_measured_by_their_probability():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    model = Model(zoo.seeded(lambda: network).eval(), InputContract("array", (1, 4, 4)))
    x = np.random.default_rng(0).random((1, 4, 4), np.float32)
    request = Request(model, targets=["class:1"], input=x)
    _, curves, result = checked(GradientInput(), request, steps=4, draws=0, depth=0)
    order = np.argsort(-result.values[0], axis=None)
    for step, curve in enumerate(curves["deletion_curve"]):
        left = x.copy().reshape(-1)
        left[order[: 4 * step]] = 0
        assert curve == pytest.approx(model.probabilities(left.reshape(1, 1, 4, 4))[0, 1], abs=1e-6)
    assert curves["insertion_curve"][-1] == pytest.approx(model.probabilities(x[None])[0, 1], abs=1e-6)


def test_the_true_order_beats_its_reverse_and_chance():
    weights = np.random.default_rng(0).normal(size=64).astype(np.float32)
    model, x = row(weights.tolist()), np.ones(64, np.float32)
    request = Request(model, targets=["0:0"], input=x)
    if open_scene(request).value < 0:
        model = row((-weights).tolist())
        request = replace(request, model=model)
    right, _, found = checked(GradientInput(), request, draws=0, depth=0)
    wrong, _, _ = checked(Given(lambda x: -found.values), request, draws=0, depth=0)
    for name, sign in (("deletion", -1), ("insertion", 1)):
        assert sign * right[name] > sign * right[f"{name}_random"] > sign * wrong[name]


def test_coarse_maps_are_enlarged_and_equal_places_stand_in_random_order():
    assert placed(np.array([[0.0, 1.0]]), (2, 4)).tolist() == [[0, 0.25, 0.75, 1]] * 2
    rng = np.random.default_rng(0)
    orders = [ordered(np.array([[0, 5, 0], [0, -1, 0]]), rng).tolist() for _ in range(20)]
    assert all(order[0] == 1 and order[-1] == 4 for order in orders)
    assert len({tuple(order) for order in orders}) > 5
    assert area(np.array([1.0, 0.5, 0.0])) == 0.5
    assert area(np.array([1.0, np.nan])) is None


# noise


def test_sensitivity_is_the_largest_relative_change():
    weights, x = [2.0, -1.0, 0.5, 4.0], np.array([0.5, 0.5, 1.0, 0.25], np.float32)
    request = Request(row(weights), targets=["0:0"], input=x, seed=3)
    scene = open_scene(request)
    noise = [scene.rng("noise", draw).uniform(-0.02, 0.02, 4) for draw in range(4)]
    moved = [np.clip(x + one, 0, 1) - x for one in noise]
    expected = max(np.linalg.norm(weights * one) for one in moved) / np.linalg.norm(weights * x)
    numbers, _, _ = checked(GradientInput(), request, depth=0)
    assert numbers["sensitivity"] == pytest.approx(expected, rel=1e-4)
    assert numbers["noise_rank"] <= 1
    steady, _, _ = checked(Gradient(), request, depth=0)  # the gradient of a sum is the same everywhere
    assert (steady["sensitivity"], steady["noise_rank"]) == (0, pytest.approx(1))


def test_bytes_and_wide_ranges_are_shaken_in_their_own_measure():
    model = Model(zoo.seeded(zoo.Functional).eval(), InputContract("image", (1, 16, 16)))
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16), np.uint8)
    seen = []
    spy = Given(lambda x: seen.append(x) or np.ones_like(x))
    checked(spy, Request(model, targets=["class:0"], input=pixels), depth=0)
    gaps = [np.abs(x - pixels / 255) for x in seen[1:]]
    assert all(0.01 < gap.max() <= 0.02 + 1e-6 for gap in gaps)
    assert len(gaps) == 4
    wide = Model(zoo.seeded(zoo.Functional).eval(), InputContract("array", (1, 16, 16)))
    seen.clear()
    values = np.random.default_rng(0).normal(size=(1, 16, 16)).astype(np.float32) * 50
    checked(spy, Request(wide, targets=["class:0"], input=values), depth=0)
    assert np.abs(seen[1] - values).max() == pytest.approx(0.02 * np.ptp(values), rel=0.1)


# randomisation


def test_rank_correlation_equals_scipys():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
        assert spearman(a, b + a) == pytest.approx(spearmanr(a, b + a).statistic)
    assert spearman(np.ones(9), np.arange(9)) == 0


def test_structural_similarity_equals_scikit_images():
    rng = np.random.default_rng(0)
    for size in ((16, 16), (9, 23)):
        a, b = rng.random(size), rng.random(size)
        b = 0.5 * a + 0.5 * b
        expected = structural_similarity(a / a.max(), b / b.max(), win_size=7, data_range=1.0)
        assert structure(a, b) == pytest.approx(expected, abs=1e-9)
    assert structure(a, 3 * a) == pytest.approx(1)
    assert np.isnan(structure(a[:2], a[:2]))
    assert np.isnan(structure(a[0], a[0]))


@pytest.fixture(scope="module")
def letters():
    model = penlight.load("letters")
    data = open_data(model.data, model.contract, model.labels)
    return model, [data.read(n) for n in range(0, 300, 60)]


def mean_of(letters, technique, name="randomisation"):
    model, pictures = letters
    found = [checked(technique, Request(model, input=picture), steps=4, draws=0)[0][name] for picture in pictures]
    return float(np.mean(found))


def test_a_map_of_the_picture_fails(letters):
    edges = Given(lambda x: np.abs(np.diff(x, axis=2, append=0)))
    numbers, curves, _ = checked(edges, Request(letters[0], input=letters[1][0]))
    assert numbers["randomisation"] == pytest.approx(1)
    assert numbers["randomisation_ssim"] == pytest.approx(1)
    np.testing.assert_allclose(curves["randomisation_signed_curve"], 1, rtol=1e-6)
    np.testing.assert_allclose(curves["randomisation_share"], [0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
    told = verdict(numbers)
    assert told.startswith("randomisation: fails: the map stays 1.00 alike")
    assert told.endswith("it shows the input, not the network")


def test_guided_backpropagation_is_known_to_fail_and_the_gradient_to_pass(letters):
    assert mean_of(letters, GuidedBackprop()) > ALIKE + 0.2
    assert mean_of(letters, Gradient()) < ALIKE - 0.2
    assert verdict({"randomisation": 0.12}).endswith("are scrambled, 0.12 alike")
    assert verdict({"deletion": 0.3}) == ""
    assert verdict({"randomisation": None}) == ""


def test_the_number_is_the_mean_over_the_upper_half(letters):
    numbers, curves, _ = checked(Gradient(), Request(letters[0], input=letters[1][0]), steps=4, draws=0)
    signed, absolute = (curves[f"randomisation_{name}_curve"][:3] for name in ("signed", "absolute"))
    assert numbers["randomisation"] == pytest.approx(np.maximum(signed, absolute).mean(), abs=1e-6)
    assert numbers["randomisation_signed"] == pytest.approx(signed.mean(), abs=1e-6)
    assert len(curves["randomisation_signed_curve"]) == 5


def scene_of(model, unit="class:0"):
    x = np.zeros(model.contract.shape, np.float32)
    return open_scene(Request(model, targets=[unit], input=x))


def test_weights_are_shuffled_from_the_unit_downwards_and_all_else_is_kept(letters):
    model = letters[0]
    steps = stages(model, "fc")
    assert [step.layer for step in steps] == ["fc", "conv4", "conv3", "conv2", "conv1"]
    assert steps[1].parameters == ("fc.weight", "fc.bias", "conv4.weight", "conv4.bias")
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    previous = {}
    for step, copy in zip(steps, scrambled(scene_of(model), steps), strict=True):
        for name, value in copy.network.state_dict().items():
            if name in step.parameters:
                assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
                assert not torch.equal(value, before[name])
                assert name not in previous or torch.equal(value, previous[name])  # the next step adds to the last
                previous[name] = value
            else:
                assert torch.equal(value, before[name])
        assert (copy.labels, copy.contract, copy.reference) == (model.labels, model.contract, model.reference)
    assert all(torch.equal(v, before[k]) for k, v in model.network.state_dict().items())


def test_what_runs_after_the_unit_is_left_alone(open_zoo):
    assert [step.parameters for step in stages(open_zoo("functional"), "conv2")] == [
        ("conv2.weight", "conv2.bias"),
        ("conv2.weight", "conv2.bias", "conv1.weight", "conv1.bias"),
    ]


def test_norms_go_with_the_layer_they_follow_and_nothing_is_forgotten(open_zoo):
    top, bottom = stages(open_zoo("in-place"), "head")
    assert top.parameters == ("head.weight", "head.bias")
    assert bottom.parameters[2:] == ("body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias")
    for name in ("tokens", "softmax", "channels-last", "reused"):
        model = open_zoo(name)
        aim = read_aim(model, "class:0" if model.class_layer else "conv:0", model.example(1))
        assert set(stages(model, aim.layer)[-1].parameters) == {n for n, _ in model.network.named_parameters()}
    many = nn.Sequential(*[layer for _ in range(21) for layer in (nn.Linear(4, 4), nn.ReLU())])
    assert len(stages(Model(many, InputContract("array", (4,))), "40")) == 5


def test_a_map_keeps_its_layer_and_its_unit_when_the_network_is_scrambled(open_zoo):
    model, asked = open_zoo("functional"), []

    @dataclass(frozen=True)
    class Spy(GradCam):
        def attribute(self, scene):
            found = super().attribute(scene)
            asked.append((self.layer, scene.aim, found.values.shape))
            return found

    x = np.random.default_rng(0).random((1, 16, 16), np.float32)
    checked(Spy(), Request(model, targets=["conv2:1"], input=x))
    assert asked[0][0] == ""
    assert {row[0] for row in asked[1:]} == {"conv1"}
    assert len({row[1:] for row in asked}) == 1
    assert len(asked) == 1 + 4 + 2


def test_a_scrambled_network_that_cannot_run_is_left_out(letters, monkeypatch):
    model = letters[0]

    @dataclass(frozen=True)
    class Fragile(Gradient):
        def attribute(self, scene):
            if scene.model is not model and torch.equal(scene.network.conv4.weight, model.network.conv4.weight):
                raise CannotRun("values that are not finite")
            return super().attribute(scene)

    numbers, curves, _ = checked(Fragile(), Request(model, input=letters[1][0]), steps=4, draws=0)
    assert np.isnan(curves["randomisation_signed_curve"]).tolist() == [True, False, False, False, False]
    assert np.isfinite(numbers["randomisation"])


# all of it


@pytest.mark.parametrize("name", ["functional", "in-place", "tokens", "signal", "table", "softmax"])
def test_any_input_and_network(open_zoo, name):
    model = open_zoo(name)
    request = Request(model, input=np.random.default_rng(0).random(model.contract.shape, np.float32), seed=2)
    for technique in [GradientInput(), *([GradCam()] if model.contract.size else [])]:
        one, two = (checked(technique, request, steps=6, draws=2, depth=3) for _ in range(2))
        assert one[0] == two[0]
        assert set(one[0]) == {
            "deletion", "deletion_random", "insertion", "insertion_random", "sensitivity", "noise_rank",
            "randomisation", "randomisation_signed", "randomisation_absolute", "randomisation_ssim",
        }  # fmt: skip
        assert one[0]["deletion"] is not None
        assert one[2].with_checks(*one[:2]).to_json()


def test_an_empty_map_has_no_sensitivity(open_zoo):
    model = open_zoo("functional")
    request = Request(model, input=np.ones((1, 16, 16), np.float32))
    numbers, _, _ = checked(Given(lambda x: 0 * x), request, steps=4, draws=1)
    assert numbers["sensitivity"] is None
    assert numbers["noise_rank"] is None
    assert numbers["randomisation"] == 0


def test_nothing_is_left_behind():
    network = zoo.seeded(zoo.Functional).train()
    model = penlight.load(network, example=torch.zeros(1, 1, 16, 16))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    checked(Gradient(), Request(model, input=np.ones((1, 16, 16), np.float32)), steps=4)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert all(m.training and not m._forward_hooks for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)

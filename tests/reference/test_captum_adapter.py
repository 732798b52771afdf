"""Captum's methods through Penlight: the same numbers as when Captum is called directly, and nothing left behind."""

from __future__ import annotations

import sys
import threading
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from captum import attr
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadOption, CannotRun
from penlight.inputs import open_data
from penlight.techniques.contract import Request
from penlight.techniques.explain.captum import Answer, DeepLift, GradientShap, ThroughCaptum
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.options import build

MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 4 * 3, 7),
        nn.ReLU(),
        nn.Linear(7, 4),
    )


def opened():
    return penlight.load(zoo.seeded(convnet), example=torch.zeros(1, 3, 13, 11), mean=MEAN, std=STD)


def picture(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def explained(technique, model, given, unit=None, **more):
    return technique.run(Request(model, input=given, targets=() if unit is None else (unit,), **more))


def directly(method, model, x, baseline, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return method.attribute(x, baseline, **more)[0].detach().numpy()


def frozen(model):
    return model.network.eval().requires_grad_(False)


@pytest.mark.parametrize("fill", ["zeros", "black"])
def test_deep_lift_is_captums(fill):
    model, given = opened(), picture(3, 13, 11)
    x = model.tensor(given[None])
    baseline = torch.zeros_like(x) if fill == "zeros" else model.tensor(np.zeros_like(given)[None])
    found = explained(DeepLift(fill), model, given, "9:2")
    network = frozen(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted, delta = attr.DeepLift(network).attribute(x, baseline, target=2, return_convergence_delta=True)
    np.testing.assert_allclose(found.values, wanted[0].detach().numpy(), atol=1e-6)
    assert found.evidence["value at the baseline"] == pytest.approx(float(network(baseline)[0, 2]), abs=1e-6)
    assert found.evidence["completeness error"] == pytest.approx(float(delta), abs=1e-5)


def test_deep_lift_of_a_hidden_unit_is_captums_of_the_network_cut_there():
    model, given = opened(), picture(3, 13, 11)
    found = explained(DeepLift(), model, given, "4:5@2,1")

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = frozen(model)[:5]

        def forward(self, x):
            return self.body(x)[:, 5, 2, 1][:, None]

    wanted = directly(attr.DeepLift(Cut()), model, model.tensor(given[None]), 0, target=0)
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(found.values, wanted, atol=1e-6)


@pytest.mark.parametrize("unit", ["2:3@5,5", "mean(2:1)", "4:1@0,2", "6:5", "8:1"])
def test_deep_lift_adds_up_for_any_aim(unit):
    """The nonlinearity that puts the unit out is followed as well."""
    parts = [part for part in zoo.seeded(convnet) if not isinstance(part, nn.MaxPool2d | nn.Linear)]
    network = nn.Sequential(*parts[:6], *zoo.seeded(lambda: (nn.Linear(8 * 11 * 9, 7), nn.ReLU(), nn.Linear(7, 4))))
    model = penlight.load(network, example=torch.zeros(1, 3, 13, 11), mean=MEAN, std=STD)
    found = explained(DeepLift("black"), model, picture(3, 13, 11), unit)
    told = found.evidence
    assert abs(told["sum of the map"]) > 1e-3
    assert told["completeness error"] == pytest.approx(0, abs=1e-4)
    assert told["sum of the map"] == pytest.approx(float(found.values.sum(dtype=np.float64)), abs=1e-5)
    assert found.notes == ()


def test_gradient_shap_is_captums_from_the_same_stream():
    model, given = opened(), picture(3, 13, 11)
    found = explained(GradientShap(samples=6, noise=0.2), model, given, "9:2", seed=5)
    scene = open_scene(Request(model, input=given, targets=("9:2",), seed=5))
    start = int(scene.rng("gradient-shap").integers(2**31))
    x = model.tensor(given[None])
    kept = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(start)
        np.random.seed(start)
        wanted = directly(
            attr.GradientShap(frozen(model)), model, x, torch.zeros_like(x), n_samples=6, stdevs=0.2, target=2
        )
    np.random.set_state(kept)
    np.testing.assert_allclose(found.values, wanted, atol=1e-6)


def test_gradient_shap_of_a_linear_unit_is_exact_and_takes_its_baselines_from_the_data():
    model = penlight.load(zoo.seeded(lambda: nn.Sequential(nn.Linear(5, 3))), example=torch.zeros(1, 5))
    given, rows = picture(5), picture(9, 5, seed=1)
    data = open_data(rows, model.contract, None)
    found = explained(GradientShap(samples=400, baselines=4), model, given, "0:1", data=data)
    weight = model.network[0].weight.detach().numpy()[1]
    drawn = (
        open_scene(Request(model, input=given, targets=("0:1",)))
        .rng("gradient-shap", "baselines")
        .choice(9, 4, replace=False)
    )
    assert found.evidence["baselines"] == 4
    assert found.evidence["value at the baseline"] == pytest.approx(
        float((rows[drawn] @ weight).mean() + model.network[0].bias[1].detach()), abs=1e-5
    )
    np.testing.assert_allclose(found.values, weight * (given - rows[drawn].mean(0)), atol=0.1)
    alone = explained(GradientShap(samples=3), model, given, "0:1")
    np.testing.assert_allclose(alone.values, weight * given, atol=1e-6)


def test_the_seed_decides():
    model, given = opened(), picture(3, 13, 11)
    one, same, other = (explained(GradientShap(samples=11), model, given, seed=seed).values for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_functional_nonlinearities_are_told():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.two(F.relu(self.one(x) - 0.3))

    model = penlight.load(zoo.seeded(Written), example=torch.zeros(1, 4))
    found = explained(DeepLift(), model, picture(4) * 8 - 4)
    assert abs(found.evidence["completeness error"]) > 0.05 * abs(
        found.target.value - found.evidence["value at the baseline"]
    )
    assert any("nonlinear functions" in note for note in found.notes)


def test_a_reused_module_is_one_clear_line(open_zoo):
    model = open_zoo("reused")
    before = {name: set(vars(module)) for name, module in model.network.named_modules()}
    with pytest.raises(CannotRun, match="used more than once; lrp and integrated-gradients") as caught:
        explained(DeepLift(), model, picture(4, 11, 9))
    assert "\n" not in str(caught.value)
    assert not hooks(model.network)
    assert before == {name: set(vars(module)) for name, module in model.network.named_modules()}


def test_captum_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(BadOption, match=r"method 'deep-lift' needs Captum.*pip install 'penlight\[captum\]'"):
        explained(DeepLift(), opened(), picture(3, 13, 11))


def test_options_that_cannot_be():
    for technique, name, value in (
        (DeepLift, "fill", "grey"),
        (GradientShap, "samples", 0),
        (GradientShap, "noise", -1),
    ):
        with pytest.raises(BadOption, match=name):
            build(technique, {name: value})
    model = penlight.load(zoo.seeded(lambda: nn.Sequential(nn.Linear(5, 3))), example=torch.zeros(1, 5))
    with pytest.raises(BadOption, match="blur"):
        explained(DeepLift("blur"), model, picture(5))


@dataclass(frozen=True)
class Saliency(ThroughCaptum):
    name: ClassVar[str] = "captum-saliency"
    paper: ClassVar[str] = "Simonyan et al. 2013"

    def ask(self, captum, network, scene):
        warnings.warn("look out", UserWarning, stacklevel=1)
        return Answer(captum.Saliency(network).attribute(scene.x, target=0))


def test_another_method_of_captums_takes_five_lines():
    model, given = opened(), picture(3, 13, 11)
    found = explained(Saliency(), model, given, "4:5@2,1")
    x = model.tensor(given[None]).requires_grad_()
    frozen(model)[:5](x)[0, 5, 2, 1].backward()
    np.testing.assert_allclose(found.values, x.grad[0].abs().numpy(), atol=1e-6)
    assert found.notes == ("Captum warns: look out",)


@dataclass(frozen=True)
class Failing(ThroughCaptum):
    name: ClassVar[str] = "failing"
    paper: ClassVar[str] = ""

    def ask(self, captum, network, scene):
        torch.rand(3)
        np.random.random(3)
        network.network[2].register_forward_hook(lambda *_: None)
        network.network[2].mark = 1
        scene.x.add_(1).requires_grad_()
        raise AssertionError("two\nlines")


def hooks(network):
    return [
        m
        for m in network.modules()
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    ]


@pytest.mark.parametrize("technique", [DeepLift(), GradientShap(samples=3, noise=0.1), Failing()])
def test_no_trace_is_left(technique):
    model, given = opened(), picture(3, 13, 11)
    network = model.network.train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    own = {name: set(vars(module)) for name, module in network.named_modules()}
    torch_state, numpy_state, filters = torch.get_rng_state(), np.random.get_state(), list(warnings.filters)
    if isinstance(technique, Failing):
        with pytest.raises(CannotRun, match="AssertionError: two lines"):
            explained(technique, model, given)
    else:
        explained(technique, model, given)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state[1], np.random.get_state()[1])
    assert numpy_state[2] == np.random.get_state()[2]
    assert warnings.filters == filters
    assert not hooks(network)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert own == {name: set(vars(module)) for name, module in network.named_modules()}


def test_what_captum_does_to_the_input_stays_with_it():
    scene = open_scene(Request(opened(), input=picture(3, 13, 11)))
    before = scene.x.clone()
    with pytest.raises(CannotRun):
        Failing().attribute(scene)
    assert torch.equal(scene.x, before)
    assert not scene.x.requires_grad


def test_two_threads_do_not_meet():
    model, given = opened(), picture(3, 13, 11)
    wanted = explained(GradientShap(samples=9), model, given, "9:1").values
    found = []

    def work():
        for _ in range(4):
            found.append(explained(GradientShap(samples=9), model, given, "9:1").values)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    for values in found:
        np.testing.assert_array_equal(values, wanted)

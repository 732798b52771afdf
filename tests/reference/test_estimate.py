"""What single units cost, estimated from gradients: against the expansion worked out by hand, and against taking them away."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import penlight
import zoo
from penlight.techniques.contract import Request
from penlight.techniques.diagnose.estimate import enough, estimated
from penlight.techniques.diagnose.examination import Examination
from penlight.techniques.diagnose.health import Health

RNG = np.random.default_rng(0)


class Small(nn.Module):
    """A dense layer of units, a rectifier, class scores."""

    def __init__(self, outputs=3):
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 5), nn.Linear(5, outputs)

    def forward(self, x):
        return self.out(self.hidden(x).relu())


class Outputs(Small):
    """The same with a map of numbers for classes."""

    def forward(self, x):
        return super().forward(x).view(-1, 3, 1, 1)


def examined(make=Small, labels=True, count=24, **options):
    net = zoo.seeded(make)
    model = penlight.load(net, example=torch.zeros(1, 4), labels=None if make is Outputs else ["a", "b", "c"])
    inputs = RNG.random((count, 4)).astype(np.float32)
    data = [(one, n % 3) for n, one in enumerate(inputs)] if labels else list(inputs)
    found = penlight.api.find_data(model, data)
    return net, Examination(Health(**options), Request(model, data=found, layers=("hidden",)), found), inputs


def expansion(net, inputs, labels, value=None):
    """(units,): −slope + ½ curvature in the factor of each unit; all of it by hand, the curvature as an expectation over all answers."""
    with torch.no_grad():
        hidden = net.hidden(torch.from_numpy(inputs)).relu().double().numpy()
        weight, bias = (p.double().numpy() for p in (net.out.weight, net.out.bias))
    scores = hidden @ weight.T + bias
    shares = np.exp(scores - scores.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    gone = hidden if value is None else hidden - value
    change = gone[:, :, None] * weight.T[None]  # what the scores lose when a unit goes: (N, units, classes)
    mean = (change * shares[:, None]).sum(2)
    curvature = ((change - mean[..., None]) ** 2 * shares[:, None]).sum(2)
    slope = 0 if labels is None else change[np.arange(len(inputs)), :, labels] - mean
    return (slope + curvature / 2).mean(0)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("held", [None, np.array([0.1, 0.2, 0.0, -0.1, 0.3])])
def test_it_is_the_second_order_expansion(monkeypatch, labels, held):
    monkeypatch.setattr("penlight.techniques.diagnose.estimate._DRAWS", 3000)
    net, run, _ = examined(labels=labels, tried=24)
    inputs, classes = run._held(24)
    found = estimated(run._bench, ["hidden"], inputs, classes, {"hidden": held}, 0)["hidden"]
    expected = expansion(net, inputs, np.array(classes) if labels else None, held)
    assert np.allclose(found[:, 0], expected, rtol=0.03, atol=2e-5)
    assert np.isnan(found[:, 1]).all()


def test_of_a_network_without_classes_it_is_the_relative_squared_change(monkeypatch):
    monkeypatch.setattr("penlight.techniques.diagnose.estimate._DRAWS", 4000)
    net, run, _ = examined(Outputs, labels=False, tried=24)
    inputs, classes = run._held(24)
    found = estimated(run._bench, ["hidden"], inputs, classes, {}, 0)["hidden"]
    with torch.no_grad():
        hidden = net.hidden(torch.from_numpy(inputs)).relu().numpy()
        base = net(torch.from_numpy(inputs)).flatten(1).numpy()
    change = hidden[:, :, None] * net.out.weight.detach().numpy().T[None]
    expected = ((change**2).sum(2) / (base**2).sum(1, keepdims=True)).mean(0)
    assert np.allclose(found[:, 0], expected, rtol=0.08)


def test_it_ranks_the_units_of_letters_as_taking_them_away_does():
    model = penlight.load("letters")
    found = penlight.api.find_data(model, None)
    run = Examination(Health(), Request(model, data=found, layers=("conv3", "conv4")), found)
    inputs, classes = run._held(60)
    real = {path: run._bench.singles(path, inputs, classes, None).mean(2) for path in ("conv3", "conv4")}
    told = estimated(run._bench, ["conv3", "conv4"], inputs, classes, {}, 0)
    for path, effect in real.items():
        assert spearmanr(effect[:, 0], told[path][:, 0])[0] > 0.85


def test_small_effort_estimates_what_it_cannot_measure_and_says_so():
    model = penlight.load("letters")
    small = penlight.diagnose(model, effort=2e-4, tested=20, tried=20)
    assert any("estimated from gradients on" in note for note in small.notes)
    measured = [path for path, layer in small.layers.items() if np.isfinite(layer.effect[:, 1]).all()]
    assert len(measured) < len(small.layers)
    assert [path for path, layer in small.layers.items() if not layer.estimated] == measured
    assert all(np.isfinite(layer.effect[:, 0]).all() for layer in small.layers.values())
    again = penlight.diagnose(model, effort=2e-4, tested=20, tried=20)
    assert again.to_json() == small.to_json()
    whole = penlight.diagnose(model, effort=0, tested=20, tried=20)
    assert not any("estimated" in note for note in whole.notes)
    for path in measured:
        assert np.isfinite(whole.layers[path].effect).all()


def test_the_removals_are_measured_on_fewer_inputs_where_the_effort_is_small():
    model = penlight.load("letters")
    assert penlight.diagnose(model, effort=1e-6, tested=500, tried=20).removals[0].inputs == 100
    assert penlight.diagnose(model, effort=0.1, tested=500, tried=20).removals[0].inputs == 500


def test_the_cheapest_layers_are_measured():
    work = {"a": 50.0, "b": 10.0, "c": 30.0}
    assert enough(20 * 39, work, 20) == ["b"]
    assert enough(20 * 40, work, 20) == ["b", "c"]
    assert enough(20 * 9, work, 20) == []


@pytest.mark.parametrize("name", sorted(zoo.NETWORKS))
def test_it_works_on_every_architecture(open_zoo, name):
    model = open_zoo(name)
    shape = model.contract.shape
    data = RNG.random((6, *shape)).astype(np.float32)
    result = penlight.diagnose(model, data, effort=1e-12, tested=4, tried=4)
    assert all(np.isfinite(layer.effect[:, 0]).all() for layer in result.layers.values())
    assert any("estimated" in note for note in result.notes)

"""`yosinski` against the program, worked again in NumPy, iteration by iteration, and its four published sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.options import build
from penlight.techniques.visualize.ascent import Progress, Steepest
from penlight.techniques.visualize.edits import Blur, Clip, Decay, SmallContribution, SmallNorm, SmallValues
from penlight.techniques.visualize.methods.yosinski import Yosinski
from penlight.techniques.visualize.parameterization import stretched
from penlight.techniques.visualize.scene import Optics
from penlight.techniques.visualize.schedule import stream
from penlight.techniques.visualize.synthesis import Brief
from penlight.units import Unit

MEAN, STD, SHAPE = (0.45, 0.5, 0.4), (0.2, 0.25, 0.3), (3, 12, 14)


def opened(gain=1.0):
    """A small curved network, and as a function of values in 255ths: (score of unit 1, its gradient)."""
    network = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 8 * 10, 3)))
    with torch.no_grad():
        network[3].weight *= gain
    model = Model(network.eval(), InputContract("image", SHAPE, mean=MEAN, std=STD))
    std = torch.tensor(STD, dtype=torch.float64)[:, None, None]
    double = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 6, 5), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 8 * 10, 3)))
    double.load_state_dict(network.state_dict())
    double = double.double()

    def look(x):
        leaf = torch.from_numpy(x).requires_grad_(True)
        score = double((leaf / 255 / std)[None])[0, 1]
        return score.item(), torch.autograd.grad(score, leaf)[0].numpy()

    return model, look


def blurred(x, sigma):
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        pads = [(0, 0)] * 3
        pads[axis] = (radius, radius)
        padded = np.pad(x, pads, mode="symmetric")
        x = sum(k * np.take(padded, np.arange(i, i + x.shape[axis]), axis) for i, k in enumerate(kernel))
    return x


def program(look, x, iterations, *, rate, decay=0.0, blur=0.0, every=4, small_value=0.0, small_norm=0.0, benefit=0.0, absolute=0.0,
            desired=None, gain=0.0):  # fmt: skip
    """gradient_optimizer.py: the best picture of `iterations`, in 255ths less the mean, and its score."""
    mean = 255 * np.array(MEAN)[:, None, None]
    best, best_x, size, weight = -np.inf, None, 0.0, 0.0
    for i in range(iterations):
        x = np.minimum(255.0, np.maximum(0.0, x + mean)) - mean
        score, g = look(x)
        if score > best:
            best, best_x = score, x.copy()
        if i == iterations - 1:
            break
        size, weight = 0.9 * size + 0.1 * np.sqrt((g**2).mean()), 0.9 * weight + 0.1
        lr = rate * gain / (size / weight) if gain else rate
        lr = lr if desired is None else min(lr, desired / (g**2).sum())
        x = (x + lr * g) * (1 - decay)
        if blur and i % every == 0:
            x = blurred(x, blur)
        if small_value:
            x = np.where(np.abs(x) < np.percentile(np.abs(x), small_value), 0, x)
        if small_norm:
            norms = np.sqrt((x**2).sum(0))
            x = np.where(norms < np.percentile(norms, small_norm), 0, x)
        if benefit:
            b = (g * -x).sum(0)
            x = np.where(b < np.percentile(b, benefit), 0, x)
        if absolute:
            b = np.abs((g * -x).sum(0))
            x = np.where(b < np.percentile(b, absolute), 0, x)
    return best_x, best


CASES = {
    "plain": ({"rate": 30.0}, {}),
    "set 1": (
        {"rate": 100.0, "blur": 0.5, "small_norm": 50.0, "desired": 0.05},
        {"setting": "1", "desired": 0.05},
    ),
    "set 2": ({"rate": 4e3, "decay": 0.3, "small_norm": 20.0}, {"setting": "2", "rate": 4e3}),
    "set 3": ({"rate": 100.0, "decay": 1e-4, "blur": 1.0}, {"setting": "3"}),
    "set 4": ({"rate": 1e8, "blur": 0.5, "absolute": 90.0, "desired": 0.05}, {"setting": "4", "desired": 0.05}),
    "small": ({"rate": 30.0, "small_value": 30.0, "benefit": 20.0}, {"small_value": 30.0, "contribution": 20.0}),
    "every": ({"rate": 30.0, "blur": 0.7, "every": 3}, {"blur": 0.7, "blur_every": 3}),
    "gain": ({"rate": 100.0, "decay": 1e-4, "blur": 1.0, "gain": 0.01}, {"setting": "3", "gain": 0.01}),
    "gain, progress": (
        {"rate": 100.0, "blur": 0.5, "small_norm": 50.0, "desired": 0.05, "gain": 0.02},
        {"setting": "1", "desired": 0.05, "gain": 0.02},
    ),
}
BARE = {"decay": 0.0, "blur": 0.0, "small_norm": 0.0, "absolute_contribution": 0.0, "policy": "constant", "gain": 0.0}


@pytest.mark.parametrize("case", CASES)
def test_as_the_program(case):
    model, look = opened()
    how, options = CASES[case]
    options = {**({} if "setting" in options else {**BARE, "rate": 30.0}), "gain": 0.0, "stretch": False, **options}
    steps = 11
    x0 = 10 * torch.randn(SHAPE, generator=stream(7, "3:1", 0)).numpy().astype(np.float64)
    expected, best = program(look, x0, steps, **how)
    r = build(Yosinski, {"steps": steps, **options}).run(Request(model, [Unit.parse("3:1")], seed=7))
    mean = 255 * np.array(MEAN)
    found = r.images[0, 0].astype(np.float64) - mean
    # stored in whole 255ths; a pixel that lies on its percentile may fall to either side
    off = np.abs(found - np.clip(expected.transpose(1, 2, 0), -mean, 255 - mean))
    assert (off < 0.51).mean() > 0.98
    assert np.abs(expected).max() > 3  # it did not stay where it started
    assert r.activations[0, 0] == pytest.approx(best, rel=0.02, abs=0.01)


def chosen(**options):
    model, _ = opened()
    method = build(Yosinski, options)
    recipe = method.recipe(Brief(None, Optics.of(model), (), None))
    (phase,) = recipe.phases
    return recipe, phase


PUBLISHED = {  # doc/running-optimize-image.md of the Deep Visualization Toolbox
    # decay, blur radius, every, small-norm, abs-benefit, iterations, policy, rate, desired
    "1": (0, 0.5, 4, 50, 0, 500, "progress", 100, 2),
    "2": (0.3, 0, 4, 20, 0, 750, "constant", 100, None),
    "3": (0.0001, 1.0, 4, 0, 0, 1000, "constant", 100, None),
    "4": (0, 0.5, 4, 0, 90, 1000, "progress", 1e8, 2),
}


@pytest.mark.parametrize("setting", PUBLISHED)
def test_the_published_sets(setting):
    decay, radius, every, norm, benefit, steps, policy, rate, desired = PUBLISHED[setting]
    recipe, phase = chosen(setting=setting, gain=0.0)
    assert phase.steps == steps
    assert (recipe.keep, recipe.short, recipe.scaled) == ("best", True, False)
    assert [type(edit) for edit in phase.before] == [Clip]
    if policy == "progress":
        assert phase.rule == Progress(rate, desired)
    else:
        assert isinstance(phase.rule, Steepest)
        assert phase.rule.rate(0) == phase.rule.rate(steps) == rate
    found = {type(edit): edit for edit in phase.edits}
    assert found.get(Decay, Decay(0)).share == decay
    assert (Blur in found) == (radius > 0)
    if radius:
        assert (found[Blur].width(0), found[Blur].every) == (radius, every)
    assert found.get(SmallNorm, SmallNorm(0)).percent == norm
    assert found.get(SmallContribution, SmallContribution(0)) == SmallContribution(benefit, absolute=True)
    assert SmallValues not in found


def test_options_override_the_set_one_by_one():
    _, phase = chosen(
        setting="3", steps=5, decay=0.0, blur_every=0, small_value=10.0, policy="progress", desired=7.0, gain=0.0
    )
    assert phase.steps == 5
    assert phase.edits == (SmallValues(10.0),)
    assert phase.rule == Progress(100.0, 7.0)


def test_gain_makes_networks_of_any_gain_alike():
    pictures = []
    for gain in (1.0, 1e-3):
        model, _ = opened(gain)
        r = Yosinski(steps=20, stretch=False).run(Request(model, [Unit.parse("3:1")], seed=7))
        pictures.append(r.images.astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    assert np.ptp(pictures[0]) > 60


def test_a_stretched_picture_reaches_the_range_and_keeps_its_proportions():
    values = (
        torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 30.0])[:, None, None, None]
    )
    colour = torch.tensor(MEAN)[:, None, None]
    shown = stretched(values, colour)
    for one, picture in zip(values.numpy(), shown.numpy(), strict=True):
        added = picture - colour.numpy()
        factor = (added * one).sum() / (one * one).sum()
        np.testing.assert_allclose(added, factor * one, atol=1e-6)
        assert min(picture.min(), 1 - picture.max()) == pytest.approx(0, abs=1e-5)
    assert torch.equal(stretched(torch.zeros(1, 3, 2, 2), colour), colour.expand(1, 3, 2, 2))

"""The one loop, part by part, against the same step worked out with NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.options import build, option
from penlight.techniques.visualize.ascent import Adam, MeanNormalised, NAdam, Progress, RMSprop, Steepest
from penlight.techniques.visualize.edits import (
    Blur,
    Clip,
    Decay,
    Moment,
    Norm,
    Roll,
    SmallContribution,
    SmallNorm,
    SmallValues,
    gaussian,
)
from penlight.techniques.visualize.engine import Phase, Recipe, Stage, optimize
from penlight.techniques.visualize.objectives import Neuron
from penlight.techniques.visualize.parameterization import Normal, Plain, PlainCanvas, Uniform, resized
from penlight.techniques.visualize.penalties import Distance
from penlight.techniques.visualize.rescue import Leaky
from penlight.techniques.visualize.scene import Optics
from penlight.techniques.visualize.schedule import Constant, Linear, stream
from penlight.techniques.visualize.synthesis import Brief, Synthesis
from penlight.techniques.visualize.transforms import Jitter

MEAN = 0.4


def linear(height=4, width=5, bias=0.0):
    """One unit that sees the whole picture: w · x + bias, x normalised by mean .4 and std .5."""
    network = nn.Sequential(nn.Conv2d(1, 1, (height, width)))
    weights = torch.randn((1, 1, height, width), generator=stream("weights"))
    network[0].weight.data.copy_(weights)
    network[0].bias.data.fill_(bias)
    model = Model(network.requires_grad_(False), InputContract("image", (1, height, width), (MEAN,), (0.5,)))
    return model, weights[0, 0].double().numpy()


def run(model, recipe, count=1, layer=None, seed=0):
    path = layer or next(iter(model.layers))
    stage = Stage(model.network, {path: model.layers[path]}, Optics.of(model))
    size = model.contract.size
    streams = [stream("test", n) for n in range(count)]
    objective = Neuron(path, 0)
    return list(optimize(stage, recipe, objective, size, streams, seed))


def values(snapshot):
    return snapshot.canvas.values.detach().double().numpy()


def start(count=1, shape=(1, 4, 5), spread=10.0):
    return np.stack([torch.randn(shape, generator=stream("test", n)).double().numpy() * spread for n in range(count)])


class TestRules:
    """x is in 255ths around the mean: the network sees x / 255 / .5, so g = w / 127.5."""

    @pytest.mark.parametrize("count", [1, 3])
    def test_steepest(self, count):
        model, w = linear()
        last = run(model, Recipe(Plain(Normal(10)), (Phase(3, Steepest(Constant(50))),)), count)[-1]
        np.testing.assert_allclose(values(last), start(count) + 3 * 50 * w / 127.5, rtol=1e-5)

    def test_mean_normalised(self):
        model, w = linear()
        last = run(model, Recipe(Plain(Normal(10)), (Phase(2, MeanNormalised(Linear(4, 2, 2))),)))[-1]
        np.testing.assert_allclose(values(last), start() + (4 + 3) * w / np.abs(w).mean(), rtol=1e-5)

    def test_progress_makes_the_objective_grow_by_what_is_wanted(self):
        model, w = linear()
        snapshots = run(model, Recipe(Plain(Normal(10)), (Phase(3, Progress(1e9, 2.0)),)))
        scores = [float(s.scores) for s in snapshots[1:]]
        assert np.diff(scores) == pytest.approx([2.0, 2.0], rel=1e-4)
        capped = run(model, Recipe(Plain(Normal(10)), (Phase(1, Progress(0.5, 2.0)),)))[-1]
        np.testing.assert_allclose(values(capped), start() + 0.5 * w / 127.5, rtol=1e-5)

    def test_rmsprop_of_keras_vis(self):
        model, w = linear()
        last = run(model, Recipe(Plain(Normal(10)), (Phase(2, RMSprop(Constant(1.0))),)))[-1]
        g, x, cache = w / np.linalg.norm(w), start()[0, 0], 0
        for _ in range(2):
            cache = 0.95 * cache + 0.05 * g * g
            x = x + g / np.sqrt(cache + 1e-8)
        np.testing.assert_allclose(values(last)[0, 0], x, rtol=1e-4)

    def test_adam_and_nadam_take_steps_of_their_rate_along_the_sign(self):
        model, w = linear()
        for rule in (Adam(Constant(0.5)), NAdam(Constant(0.5))):
            moved = values(run(model, Recipe(Plain(Normal(10)), (Phase(1, rule),)))[-1]) - start()
            assert (np.sign(moved[0, 0]) == np.sign(w)).all()
        adam = values(run(model, Recipe(Plain(Normal(10)), (Phase(1, Adam(Constant(0.5))),)))[-1]) - start()
        np.testing.assert_allclose(adam[0, 0], 0.5 * np.sign(w), rtol=1e-3)


class TestLoop:
    def test_penalties_are_subtracted_once_and_on_pictures(self):
        model, w = linear()
        phase = Phase(1, Steepest(Constant(50)), penalties=(Distance(3.0, torch.full((1, 1, 1), MEAN)),))
        last = run(model, Recipe(Plain(Normal(10)), (phase,)))[-1]
        x = start()[0, 0]
        np.testing.assert_allclose(values(last)[0, 0], x + 50 * (w / 127.5 - 2 * 3 * x / 255**2), rtol=1e-5)

    def test_edits_come_after_the_step_in_order_and_before_edits_before_the_look(self):
        model, w = linear()
        phase = Phase(
            1, Steepest(Constant(50)), before=(Clip(torch.full((1, 1, 1), MEAN)),), edits=(Decay(0.5), SmallValues(50))
        )
        last = run(model, Recipe(Plain(Normal(200)), (phase,)))[-1]
        x = np.clip(start(spread=200.0)[0, 0], -255 * MEAN, 255 * (1 - MEAN))
        x = 0.5 * (x + 50 * w / 127.5)
        x[np.abs(x) < np.percentile(np.abs(x), 50)] = 0
        np.testing.assert_allclose(values(last)[0, 0], x, rtol=1e-5, atol=1e-5)

    def test_a_short_climb_only_looks_at_last(self):
        model, w = linear()
        last = run(model, Recipe(Plain(Normal(10)), (Phase(3, Steepest(Constant(50))),), short=True))[-1]
        np.testing.assert_allclose(values(last), start() + 2 * 50 * w / 127.5, rtol=1e-5)

    def test_looks_are_averaged(self):
        model, w = linear()
        recipe = Recipe(Plain(Normal(10)), (Phase(1, Steepest(Constant(50)), Jitter(2), looks=3),))
        moved = values(run(model, recipe)[-1])[0, 0] - start()[0, 0]
        each = []
        for name in (("step", 0), ("step", 0, 1), ("step", 0, 2)):
            by = torch.randint(-2, 3, (2,), generator=stream(0, *name)).tolist()
            each.append(np.roll(w, [-b for b in by], (0, 1)))
        np.testing.assert_allclose(moved, 50 * np.mean(each, 0) / 127.5, rtol=1e-4, atol=1e-5)

    def test_a_crop_is_all_that_changes(self):
        network = nn.Sequential(nn.Conv2d(1, 1, 3))
        model = Model(network.requires_grad_(False), InputContract("image", (1, 3, 3), (MEAN,), (0.5,)))
        stage = Stage(network, {"0": model.layers["0"]}, Optics.of(model))
        phase = Phase(1, Steepest(Constant(50)), edits=(Decay(0.25),), crop=lambda size, chance: (2, 1, 3, 3))
        recipe = Recipe(Plain(Normal(10)), (phase,))
        last = list(optimize(stage, recipe, Neuron("0", 0), (6, 7), [stream("test", 0)], 0))[-1]
        x = start(shape=(1, 6, 7))[0, 0]
        g = network[0].weight[0, 0].double().numpy() / 127.5
        x[2:5, 1:4] = 0.75 * (x[2:5, 1:4] + 50 * g)
        np.testing.assert_allclose(values(last)[0, 0], x, rtol=1e-5)

    @pytest.mark.parametrize("keep", ["last", "best", "after"])
    def test_what_is_kept(self, keep):
        """Steps so long that they overshoot −(x − 20)²: the best picture is not the last."""

        class Well(nn.Module):
            def forward(self, x):
                return -((255 * 0.5 * x - 20) ** 2).flatten(1).sum(1, keepdim=True)

        model = Model(nn.Sequential(Well()), InputContract("image", (1, 1, 1), (MEAN,), (0.5,)))
        recipe = Recipe(Plain(Normal(1)), (Phase(6, Steepest(Constant(1.1))),), keep=keep)
        found = values(run(model, recipe)[-1]).item()
        x, seen = start(shape=(1, 1, 1), spread=1.0).item(), []
        for _ in range(6):
            following = x + 1.1 * -2 * (x - 20)
            seen.append((-((x - 20) ** 2), x, following))
            x = following
        best = max(seen)
        assert found == pytest.approx({"last": x, "best": best[1], "after": best[2]}[keep], rel=1e-4)

    def test_octaves_carry_detail_up(self):
        colour = torch.full((1, 1, 1), MEAN)
        base = torch.rand((1, 1, 8, 8), generator=stream("base")) * 255
        canvas = PlainCanvas(base, colour)
        canvas.resize((4, 4), True)
        torch.testing.assert_close(canvas.values, resized(base, (4, 4)))
        canvas.values.data[..., 1, 2] += 7
        canvas.resize((8, 8), True)
        added = torch.zeros(1, 1, 4, 4)
        added[..., 1, 2] = 7
        torch.testing.assert_close(canvas.values.detach(), base + resized(added, (8, 8)), rtol=1e-5, atol=1e-4)
        canvas.resize((16, 16), False)
        assert canvas.values.shape[2:] == (16, 16)


class TestEdits:
    def moment(self, gradient):
        return Moment(0, 1, gradient, stream("edit"))

    def test_gaussian_is_scipys(self):
        ndimage = pytest.importorskip("scipy.ndimage")
        x = torch.rand((2, 3, 17, 12), generator=stream("x"))
        for width in (0.3, 0.78, 2.5):
            theirs = ndimage.gaussian_filter(x.double().numpy(), (0, 0, width, width))
            np.testing.assert_allclose(gaussian(x.double(), width).numpy(), theirs, rtol=1e-6)

    def test_blur_keeps_sums_and_runs_at_its_steps(self):
        x = torch.rand((1, 1, 9, 9), generator=stream("x"))
        edit = Blur(Constant(1.0), every=4)
        assert edit(x, Moment(3, 9, x, stream(0))) is x
        assert not torch.equal(edit(x, Moment(4, 9, x, stream(0))), x)
        assert float(gaussian(x, 1.0).sum()) == pytest.approx(float(x.sum()), rel=1e-5)

    def test_small_norm_and_contribution(self):
        x = torch.tensor([[[[3.0, 0.1], [1.0, 2.0]], [[4.0, 0.1], [0.0, 0.0]]]])
        kept = SmallNorm(50)(x, self.moment(x))
        assert kept[0, 0].tolist() == [[3.0, 0.0], [0.0, 2.0]]
        g = torch.ones_like(x)
        g[0, 0, 0, 0] = -1.0  # −g·x at (0, 0): 3 − 4 = −1; elsewhere −.2, −1, −2
        absolute = SmallContribution(50)(x, self.moment(g))
        assert absolute[0, 0].tolist() == [[3.0, 0.0], [1.0, 2.0]]
        signed = SmallContribution(50, absolute=False)(x, self.moment(g))
        assert signed[0, 0].tolist() == [[3.0, pytest.approx(0.1)], [1.0, 0.0]]

    def test_roll_wraps_by_at_most_its_share(self):
        x = torch.arange(40.0).reshape(1, 1, 2, 20)
        moved = Roll(0.05)(x, self.moment(x))
        assert sorted(moved.flatten().tolist()) == sorted(x.flatten().tolist())
        assert any(torch.equal(moved, x.roll(by, 3)) for by in (-1, 0, 1))

    def test_norm(self):
        x = torch.rand((2, 1, 3, 3), generator=stream("x"))
        assert Norm(7.0)(x, self.moment(x)).square().flatten(1).mean(1).sqrt().tolist() == pytest.approx([7.0, 7.0])
        assert not Norm(7.0)(torch.zeros_like(x), self.moment(x)).any()

    def test_starts(self):
        shape, colour = (1, 50, 50), torch.full((1, 1, 1), MEAN)
        flat = Uniform(0, 255)(stream(1), shape, colour) + 255 * MEAN
        assert float(flat.min()) >= 0
        assert float(flat.max()) <= 255
        assert float((Normal(8, 200, mean=False)(stream(1), shape, colour) + 255 * MEAN).mean()) == pytest.approx(
            200, abs=1
        )


class Closed(nn.Module):
    """A ReLU that is closed for the start, written as a function, in place or as ReLU6."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)
        for layer, weight, bias in ((self.first, 2.0, -30.0), (self.last, 3.0, 0.0)):
            layer.weight.data.fill_(weight)
            layer.bias.data.fill_(bias)

    def forward(self, x):
        x = self.first(x)
        if self.kind == "function":
            x = F.relu(x)
        elif self.kind == "in place":
            F.relu(x, inplace=True)
        elif self.kind == "method":
            x = x.relu()
        else:
            x = F.relu6(x)
        return self.last(x)


@pytest.mark.parametrize("kind", ["function", "in place", "method", "six"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_leaky_relus(kind, where):
    """Through the closed ReLU comes .01 of the gradient; a forward leak also shows in the score, a backward one does not."""
    network = Closed(kind).requires_grad_(False)
    model = Model(network, InputContract("image", (1, 2, 2), (MEAN,), (0.5,)))
    recipe = Recipe(Plain(), (Phase(1, Steepest(Constant(50))),), leaky=Leaky(0.01, where), rescue=False)
    snapshots = run(model, recipe, layer="last")
    moved = values(snapshots[-1])[0, 0]
    assert moved[1, 1] == pytest.approx(50 * 0.01 * 6 / 127.5, rel=1e-4)
    assert float(snapshots[-1].scores) == pytest.approx(-0.9 if where == "forward" else 0.0, rel=1e-4)
    without = run(model, Recipe(Plain(), recipe.phases, rescue=False), layer="last")[-1]
    assert not values(without).any()
    assert not bool(without.reached)


@dataclass(frozen=True)
class Mine(Synthesis):
    """Plain pixels, climbed with normalised steps."""

    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "nobody's"
    steps: int = option(20, "steps", low=1)

    def recipe(self, brief: Brief) -> Recipe:
        return Recipe(Plain(Normal(10)), (Phase(self.steps, MeanNormalised(Constant(3))),))


def test_a_method_of_ones_own_takes_a_few_lines():
    model, w = linear()
    result = build(Mine, {"seeds": 2}).run(Request(model, targets=["0:0", "2 * 0:0"], frames=5))
    assert result.images.shape == (2, 2, 4, 5, 1)
    assert result.film.shape == (2, 2, 5, 4, 5, 1)
    np.testing.assert_array_equal(result.film[:, :, -1], result.images)
    assert (result.activations > result.starts).all()
    picture = result.images[0, 0, ..., 0] / 255 - MEAN
    assert np.corrcoef(picture.ravel(), w.ravel())[0, 1] > 0.9
    assert result.activations[1] == pytest.approx(2 * np.array([_answer(w, p) for p in result.images[1]]), rel=1e-4)
    assert np.isfinite(result.jittered).all()
    assert result.network_likeness.shape == (2, 2, 2)


def _answer(w, picture):
    return float((w * (picture[..., 0] / 255 - MEAN) / 0.5).sum())

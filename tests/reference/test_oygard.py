"""`oygard` against deepdraw's published tables and one of its steps written out in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

import zoo
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.visualize.ascent import MeanNormalised
from penlight.techniques.visualize.edits import Blur, Clip
from penlight.techniques.visualize.engine import Stage, optimize
from penlight.techniques.visualize.methods.oygard import CentralCrop, Oygard
from penlight.techniques.visualize.objectives import Neuron
from penlight.techniques.visualize.parameterization import resized
from penlight.techniques.visualize.rescue import Leaky
from penlight.techniques.visualize.scene import Optics, Scene
from penlight.techniques.visualize.schedule import stream
from penlight.techniques.visualize.synthesis import Brief
from penlight.techniques.visualize.targets import read_targets


def opened(network, *shape, kind="image", **contract):
    return Model(network.eval(), InputContract(kind, shape, **contract))


class Wide(nn.Module):
    """Runs on pictures of any size; two classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def brief(model, unit="fc:0", side=224, kind="whole"):
    targets = read_targets(model, [unit], "neuron")
    layer = model.layer(targets[0].layers[0])
    scene = Scene(layer, kind, (side, side), (side, side), ())
    return Brief(scene, Optics.of(model), [(targets[0], 0)], Request(model))


def recipe(side=224, **options):
    model = opened(zoo.seeded(Wide), 3, side, side, mean=(0.48, 0.46, 0.41), std=(0.2, 0.2, 0.2))
    return Oygard(**options).recipe(brief(model, side=side))


def blur(phase):
    (found,) = [edit for edit in phase.edits if isinstance(edit, Blur)]
    return found


# deepdraw.ipynb: iter_n, start_sigma, end_sigma, start_step_size, end_step_size, side of the canvas
GOOGLENET = [
    (190, 2.5, 0.78, 11.0, 11.0, 224),
    (150, 0.78 * 1.2, 0.78, 6.0, 6.0, 269),
    (150, 0.78 * 1.2, 0.44, 6.0, 3.0, 323),
    (10, 0.44, 0.304, 3.0, 3.0, 323),
]
COHERENT = [(190, 2.5, 0.78, 11.0, 11.0, 224), (450, 0.78 * 1.2, 0.40, 6.0, 3.0, 269)]


@pytest.mark.parametrize(("octaves", "table"), [("published", GOOGLENET), ("coherent", COHERENT)])
def test_octaves_are_the_published_ones_at_224(octaves, table):
    phases = recipe(octaves=octaves).phases
    assert len(phases) == len(table)
    for phase, (count, sigma, last_sigma, step, last_step, side) in zip(phases, table, strict=True):
        assert (phase.steps, phase.size, phase.detail) == (count, (side, side), False)
        assert isinstance(phase.rule, MeanNormalised)
        for i in (0, 1, count // 2, count - 1):
            # deepdraw: start + (end - start) * i / iter_n
            assert blur(phase).width(i) == pytest.approx(sigma + (last_sigma - sigma) * i / count)
            assert phase.rule.rate(i) == pytest.approx(step + (last_step - step) * i / count)
        assert [type(edit) for edit in phase.edits] == [Clip, Blur]
        assert phase.crop.size == (224, 224)
        assert phase.crop.spread == 0.3


def test_fewer_steps_are_shared_out_in_proportion():
    assert [phase.steps for phase in recipe(steps=50).phases] == [19, 15, 15, 1]
    assert [phase.steps for phase in recipe(steps=2).phases] == [1, 1, 1, 1]


def test_widths_shrink_with_the_root_of_the_side_unless_told_not_to():
    assert blur(recipe(56).phases[0]).width(0) == pytest.approx(2.5 / 2)
    assert blur(recipe(56, scale_blur=False).phases[0]).width(0) == 2.5
    assert blur(recipe(448).phases[0]).width(0) == 2.5  # never wider than published


@pytest.mark.parametrize(
    ("leaky", "wanted"), [("no", None), ("forward", Leaky(0.01)), ("backward", Leaky(0.01, "backward"))]
)
def test_leaky_relus(leaky, wanted):
    assert recipe(leaky=leaky).leaky == wanted
    assert recipe().leaky == Leaky(0.01, "forward")


def test_start_is_bright_noise():
    model = opened(zoo.seeded(Wide), 3, 64, 64, mean=(0.48, 0.46, 0.41), std=(0.2, 0.2, 0.2))
    asked = brief(model, side=64)
    canvas = Oygard().recipe(asked).parameterization([stream(0)], (3, 64, 64), asked.optics.neutral)
    shown = canvas().detach().numpy() * 255
    np.testing.assert_allclose(shown.mean((0, 2, 3)), 200, atol=0.5)
    np.testing.assert_allclose(shown.std((0, 2, 3)), 8, atol=0.3)


class TestCrop:
    def test_strays_about_the_middle_as_published_and_stays_inside(self):
        crop, chance = CentralCrop((224, 224)), stream("crop")
        corners = np.array([crop((323, 269), chance)[:2] for _ in range(4000)])
        assert corners.min() >= 0
        assert (corners.max(0) <= (99, 45)).all()
        for axis, room in ((0, 99), (1, 45)):
            inside = np.clip(np.random.default_rng(0).normal(room / 2, 0.3 * room, 200_000), 0, room).astype(int)
            assert abs(corners[:, axis].mean() - inside.mean()) < 0.03 * room
            assert abs(corners[:, axis].std() - inside.std()) < 0.03 * room

    def test_takes_all_of_a_canvas_that_is_no_larger(self):
        assert CentralCrop((28, 28))((28, 20), stream(0)) == (0, 0, 28, 20)


def test_one_step_is_the_published_formula():
    """clip, then blur, then the crop goes back: make_step and deepdraw of the notebook, in NumPy, on a linear unit."""
    weights = np.random.default_rng(1).normal(size=(3, 16, 16)).astype(np.float32)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 1, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(weights.reshape(1, -1)))
    model = opened(network, 3, 16, 16, mean=(0.5, 0.45, 0.4), std=(0.25, 0.2, 0.3))
    one = Oygard(steps=1, leaky="no", scale_blur=False)  # one step an octave, and one octave's worth is looked at
    frames = one.run(Request(model, targets=["1:0"], seed=4, frames=5)).film[0, 0].transpose(0, 3, 1, 2)
    start = torch.randn((3, 16, 16), generator=stream(4, "1:0", 0)).numpy() * 8 + 200
    np.testing.assert_allclose(frames[0], np.clip(np.round(start), 0, 255), atol=1)
    gradient = weights / 255 / np.array([0.25, 0.2, 0.3], np.float32)[:, None, None]
    stepped = np.clip(start + 11 * gradient / np.abs(gradient).mean(), 0, 255)
    wanted = np.stack([gaussian_filter(plane, 2.5) for plane in stepped])
    assert np.abs(wanted - start).mean() > 3
    np.testing.assert_allclose(frames[1], wanted, atol=1.01)


def test_only_the_crop_is_changed_and_blurred():
    """On a larger canvas what lies outside of a step's crop is what was there before it, not even blurred."""
    model = opened(zoo.seeded(Wide), 3, 32, 32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    asked = brief(model, side=32)
    made = Oygard().recipe(asked)
    phase = replace(made.phases[1], steps=1, size=(60, 50))
    stage = Stage(model.prepared(keep=["fc"]), {"fc": model.layer("fc")}, asked.optics)
    run = optimize(stage, replace(made, phases=(phase,)), Neuron("fc", 0), (32, 32), [stream(5)], 7)
    before = resized(next(run).canvas.values.detach(), (60, 50))
    after = next(run).canvas.values.detach()
    top, left, height, width = phase.crop((60, 50), stream(7, "edit", 0))
    assert (height, width) == (32, 32)
    changed = after != before
    assert changed[..., top : top + 32, left : left + 32].all()
    changed[..., top : top + 32, left : left + 32] = False
    assert not changed.any()


def test_classes_are_found_and_batches_do_not_matter():
    model = opened(zoo.seeded(Wide), 3, 24, 24, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    both = Oygard(steps=20).run(Request(model, targets=["fc:0", "fc:1"], seed=1))
    alone = Oygard(steps=20).run(Request(model, targets=["fc:1"], seed=1))
    assert (both.activations > both.starts + 0.05).all()
    np.testing.assert_array_equal(both.images[1], alone.images[0])
    assert both.images.shape == (2, 1, 24, 24, 3)


@pytest.mark.parametrize("leaky", ["no", "backward", "forward"])
def test_a_closed_relu_needs_the_leak(leaky):
    """A unit behind a ReLU that is closed everywhere: only a leak lets its gradient through."""

    class Closed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)
            self.fc = nn.Linear(3, 1)
            with torch.no_grad():
                self.conv.bias.fill_(-100.0)

        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    model = opened(zoo.seeded(Closed), 1, 12, 12, mean=(0.5,), std=(0.5,))
    result = Oygard(steps=4, leaky=leaky).run(Request(model, targets=["fc:0"]))
    assert bool(result.zero_gradient[0, 0]) == (leaky == "no")

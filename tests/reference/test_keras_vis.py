"""`keras-vis` against the two programs' formulas: penalties on hand-worked arrays, the start, and steps worked again in NumPy."""

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
from penlight.techniques.visualize.ascent import RMSprop
from penlight.techniques.visualize.edits import Moment, Roll, Turn
from penlight.techniques.visualize.methods.keras_vis import KerasVis
from penlight.techniques.visualize.parameterization import Rescaled, Uniform, deprocessed
from penlight.techniques.visualize.penalties import AbsoluteVariation, LpNorm, SquaredVariation
from penlight.techniques.visualize.scene import Optics
from penlight.techniques.visualize.schedule import stream
from penlight.techniques.visualize.synthesis import Brief
from penlight.units import Unit

SHAPE, STD = (1, 10, 13), 0.25
HAND = torch.tensor([[[[1.0, 3.0, 2.0], [5.0, 4.0, 9.0]]]]) / 255


class TestPenalties:
    @pytest.mark.parametrize(
        ("penalty", "value"),
        [
            (LpNorm(2.0, 1.0), 2 * 24 / 6),
            (LpNorm(1.0, 2.0), np.sqrt(1 + 9 + 4 + 25 + 16 + 81) / 6),
            (LpNorm(10.0, 6.0), 10 * (1 + 3**6 + 2**6 + 5**6 + 4**6 + 9**6) ** (1 / 6) / 6),
            (LpNorm(1.0, 2.0, mean=True), np.sqrt(136 / 6)),
            (LpNorm(0.3, 1.0, mean=True), 0.3 * 4),
            (LpNorm(1.0, float("inf")), 9 / 6),
            (LpNorm(1.0, 1.0, count=12), 2),
            (LpNorm(1.0, 1.0, zero=4 / 255), (3 + 1 + 2 + 1 + 0 + 5) / 6),
            # two pixels have both neighbours: (5-1)² + (3-1)², (4-3)² + (2-3)²
            (SquaredVariation(3.0), 3 * (16 + 4 + 1 + 1) / 6),
            (SquaredVariation(1.0, beta=1.0), (np.sqrt(20) + np.sqrt(2)) / 6),
            (SquaredVariation(1.0, count=11), 2),
            # 4 + 1 + 7 down, 2 + 1 and 1 + 5 across
            (AbsoluteVariation(2.0), 2 * (12 + 9) / 6),
            (AbsoluteVariation(1.0, count=7), 3),
        ],
    )
    def test_hand_worked(self, penalty, value):
        two = torch.cat([HAND, torch.zeros_like(HAND)])
        found = penalty(two)
        assert found.shape == (2,)
        assert found[0].item() == pytest.approx(value, rel=1e-5)
        if not getattr(penalty, "zero", 0):
            assert found[1].item() == pytest.approx(0, abs=1e-4)

    def test_a_series_has_one_neighbour(self):
        row = torch.tensor([[[[1.0, 3.0, 7.0]]]]) / 255
        assert SquaredVariation(1.0)(row).item() == pytest.approx((4 + 16) / 3, rel=1e-5)
        assert AbsoluteVariation(1.0)(row).item() == pytest.approx((2 + 4) / 3, rel=1e-5)

    @pytest.mark.parametrize(
        "penalty",
        [
            LpNorm(1.0),
            LpNorm(1.0, 1.0),
            LpNorm(1.0, float("inf")),
            SquaredVariation(1.0),
            SquaredVariation(1.0, 1.5),
            AbsoluteVariation(1.0),
        ],
    )
    def test_flat_pictures_have_a_gradient(self, penalty):
        leaf = torch.zeros(1, 3, 4, 5, requires_grad=True)
        (gradient,) = torch.autograd.grad(penalty(leaf).sum(), leaf)
        assert gradient.isfinite().all()


def test_the_seed_is_noise_of_the_mean_and_spread_asked_for():
    colour = torch.full((3, 1, 1), 0.4)
    start = Rescaled(127.5, 12.75)(stream("x"), (3, 9, 11), colour) + 255 * 0.4
    assert start.mean().item() == pytest.approx(127.5, abs=1e-3)
    assert start.std(correction=0).item() == pytest.approx(12.75, rel=1e-4)
    assert (start - 127.5).abs().max() < 12.75 * np.sqrt(3) * 1.15  # even noise has no tails


def test_deprocessing():
    values = (
        torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([2.0, 60.0])[:, None, None, None]
    )
    shown = deprocessed(values, torch.full((3, 1, 1), 0.3)).numpy()
    for one, picture in zip(values.numpy(), shown, strict=True):
        np.testing.assert_allclose(picture, np.clip((one - one.mean()) / one.std() * 0.1 + 0.5, 0, 1), atol=1e-4)


@pytest.mark.parametrize(("most", "down", "right"), [(0.05, 1, 2), (4.0, 4, 4), (30.0, 19, 39), (0.01, 0, 0)])
def test_jitter_goes_round_the_edges_and_no_further(most, down, right):
    values = torch.zeros(1, 1, 20, 40)
    values[0, 0, 0, 0] = 1
    seen = set()
    for k in range(400):
        y, x = divmod(int(Roll(most)(values, Moment(0, 1, values, stream(k))).argmax()), 40)
        seen.add(((y + 10) % 20 - 10 if down < 10 else y, (x + 20) % 40 - 20 if right < 20 else x))
    if down < 10:
        assert {y for y, _ in seen} == set(range(-down, down + 1))
        assert {x for _, x in seen} == set(range(-right, right + 1))
    else:
        assert {y for y, _ in seen} == set(range(20))


def test_turning_turns_about_the_middle_by_no_more_than_asked():
    ramp = torch.linspace(-1, 1, 41)[None, None, :, None].expand(1, 1, 41, 61).contiguous()  # its slope shows the angle
    angles = []
    for k in range(50):
        turned = Turn(10.0)(ramp, Moment(0, 1, ramp, stream(k)))[0, 0]
        assert turned[20, 30].item() == pytest.approx(0, abs=1e-5)
        down, across = (turned[25, 30] - turned[15, 30]).item(), (turned[20, 35] - turned[20, 25]).item()
        assert np.hypot(down, across) == pytest.approx(0.5, rel=1e-3)
        angles.append(np.degrees(np.arctan2(across, down)))
    assert max(np.abs(angles)) <= 10
    assert min(angles) < -7
    assert max(angles) > 7


def opened():
    """A small curved network, and as a function of values in [0, 255]: (mean of map 1, its gradient)."""

    def make():
        return nn.Sequential(nn.Conv2d(1, 3, 5), nn.Tanh(), nn.Conv2d(3, 2, 3))

    network = zoo.seeded(make)
    model = Model(network.eval(), InputContract("image", SHAPE, mean=(0.45,), std=(STD,)))
    double = zoo.seeded(make).double()

    def look(x):
        leaf = torch.from_numpy(x).requires_grad_(True)
        score = double(((leaf / 255 - 0.45) / STD)[None])[0, 1].mean()
        return score.item(), torch.autograd.grad(score, leaf)[0].numpy()

    return model, look


def rms(x, g, cache, rho):
    cache = rho * cache + (1 - rho) * g**2
    return x + g / np.sqrt(cache + 1e-7), cache


def squared(x):
    """Σ (dh² + dw²) over the pixels that have both neighbours, and its gradient."""
    down, across = x[:, 1:, :-1] - x[:, :-1, :-1], x[:, :-1, 1:] - x[:, :-1, :-1]
    g = np.zeros_like(x)
    g[:, 1:, :-1] += 2 * down
    g[:, :-1, 1:] += 2 * across
    g[:, :-1, :-1] -= 2 * (down + across)
    return (down**2 + across**2).sum(), g


def absolute(x):
    down, across = np.diff(x, axis=1), np.diff(x, axis=2)
    g = np.zeros_like(x)
    g[:, 1:] += np.sign(down)
    g[:, :-1] -= np.sign(down)
    g[:, :, 1:] += np.sign(across)
    g[:, :, :-1] -= np.sign(across)
    return np.abs(down).sum() + np.abs(across).sum(), g


def keras_vis(look, x, steps, sign, lp, tv, n):
    cache, best, best_x = np.zeros_like(x), np.inf, None
    for _ in range(steps):
        score, g = look(x)
        norm = (np.abs(x) ** 6).sum() ** (1 / 6)
        variation, pull = squared(x)
        loss = -sign * score + lp * norm / n + tv * variation / n
        g = sign * g - lp * np.sign(x) * (np.abs(x) / norm) ** 5 / n - tv * pull / n
        x, cache = rms(x, g / np.sqrt((g**2).sum()), cache, 0.95)
        if loss < best:
            best, best_x = loss, x.copy()
    return best_x


def tf_keras_vis(look, x, steps, sign, lp, tv, n):
    cache = np.zeros_like(x)
    for _ in range(steps):
        _, g = look(x)
        x, cache = rms(x, sign * g - lp * np.sign(x) / n - tv * absolute(x)[1] / n, cache, 0.999)
    return x


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("setting", "program", "start", "lp", "tv"),
    [
        ("keras-vis", keras_vis, Rescaled(127.5, 12.75), 10.0, 10.0),
        ("keras-vis", keras_vis, Rescaled(127.5, 12.75), 10.0, 1e-4),
        ("tf-keras-vis", tf_keras_vis, Uniform(), 0.3, 1.0),
        ("tf-keras-vis", tf_keras_vis, Uniform(), 0.3, 1e-3),
    ],
)
def test_as_the_programs(setting, program, start, lp, tv, sign):
    model, look = opened()
    colour = torch.tensor([0.45])[:, None, None]
    x0 = (start(stream(7, "2:1", 0), SHAPE, colour) + 255 * colour).numpy().astype(np.float64)
    expected = np.clip(program(look, x0, 9, sign, lp, tv, 130), 0, 255)
    bare = {"jitter": 0.0, "rotation": 0.0, "gain": 0.0, "values": 0, "output": "clip", "steps": 9}
    method = build(KerasVis, {"setting": setting, "total_variation": tv, "minimize": sign < 0, **bare})
    found = method.run(Request(model, [Unit.parse("2:1")], seed=7)).images[0, 0].transpose(2, 0, 1).astype(np.float64)
    assert np.abs(expected - np.clip(x0, 0, 255)).mean() > 3  # it did not stay where it started
    np.testing.assert_allclose(found, expected, atol=0.6)


def chosen(**options):
    model, _ = opened()
    recipe = build(KerasVis, options).recipe(Brief(None, Optics.of(model), (), None))
    (phase,) = recipe.phases
    return recipe, phase


def test_published_settings():
    recipe, phase = chosen(gain=0.0, values=0)
    assert (phase.steps, recipe.keep, recipe.scaled) == (200, "after", False)
    assert phase.penalties == (LpNorm(10.0, 6.0), SquaredVariation(10.0, 2.0))
    assert phase.before == (Roll(0.05),)
    assert phase.edits == ()
    assert isinstance(phase.rule, RMSprop)
    assert (phase.rule.rate(0), phase.rule.rho, phase.rule.epsilon, phase.rule.normalise) == (1.0, 0.95, 1e-7, True)
    assert recipe.parameterization.start == Rescaled(127.5, 12.75)
    assert recipe.parameterization.display is deprocessed
    recipe, phase = chosen(setting="tf-keras-vis", gain=0.0, values=0)
    assert (phase.steps, recipe.keep, recipe.scaled) == (200, "last", False)
    assert phase.penalties == (LpNorm(0.3, 1.0, mean=True), AbsoluteVariation(1.0))
    assert phase.before == (Roll(4.0), Turn(1.0))
    assert (phase.rule.rate(0), phase.rule.rho, phase.rule.normalise) == (1.0, 0.999, False)
    assert recipe.parameterization.start == Uniform(0.0, 255.0)
    assert recipe.parameterization.display is None
    assert KerasVis().objective == "channel"


def test_weights_can_be_swept_and_switched_off():
    _, phase = chosen(gain=0.0, values=0, total_variation=1e-5, lp=0.0, jitter=0.0)
    assert phase.penalties == (SquaredVariation(1e-5),)
    assert phase.before == ()


def test_gain_makes_networks_of_any_gain_alike():
    pictures = []
    for gain in (1.0, 1e-3):
        model, _ = opened()
        with torch.no_grad():
            model.network[2].weight *= gain
        r = KerasVis(steps=20).run(Request(model, [Unit.parse("2:1")], seed=7))
        pictures.append(r.images.astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_with_gain_the_unit_has_the_size_asked_for_beside_the_penalties():
    """A linear unit: where its gradient and that of the total variation are equally large, neither wins the first step."""
    model, _ = opened()
    _, plain = chosen(gain=0.0)
    _, scaled = chosen(gain=0.02)
    # objectives are brought to 1 a range, 1/255 a 255th, in place of .02: everything else is as much larger or smaller
    factor = (1 / 255) / 0.02
    picture = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for one, other in zip(plain.penalties, scaled.penalties, strict=True):
        assert other(picture).item() == pytest.approx(factor * one(picture).item(), rel=1e-5)
    assert model.contract.shape == SHAPE


def test_tables_have_no_neighbours():
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2)))
    model = Model(network.eval(), InputContract("array", (7,)))
    (phase,) = KerasVis(setting="tf-keras-vis").recipe(Brief(None, Optics.of(model), (), None)).phases
    assert phase.before == ()
    assert [type(penalty) for penalty in phase.penalties] == [LpNorm]
    assert phase.penalties[0].zero == 0.5

"""The parts methods are made of, each on arrays that can be worked out by hand."""

from __future__ import annotations

import importlib.util
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from penlight.inputs import InputContract
from penlight.models import Layer, Model
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.visualize.ascent import Adam
from penlight.techniques.visualize.engine import Phase, Recipe, Stage, optimize
from penlight.techniques.visualize.objectives import Neuron, centre
from penlight.techniques.visualize.parameterization import Fourier, Pixels, colour_matrix, frequencies
from penlight.techniques.visualize.penalties import Distance, TotalVariation
from penlight.techniques.visualize.rescue import leak, open_last, redirect
from penlight.techniques.visualize.scene import Optics, as_picture
from penlight.techniques.visualize.schedule import Constant, Cosine, stream
from penlight.techniques.visualize.stem import Unshuffled, quicken
from penlight.techniques.visualize.transforms import Chain, Noise, Shift, Window


def streams(count):
    return [stream("test", n) for n in range(count)]


def logit(x):
    return torch.log(x / (1 - x))


class TestParameterization:
    @pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 8), (5, 12), (31, 32), (64, 48), (1, 40)])
    def test_a_unit_spectrum_makes_pictures_of_unit_variance(self, height, width):
        neutral = torch.full((2, 1, 1), 0.5)
        canvas = Fourier(start=1.0)(streams(400), (2, height, width), neutral)
        waves = logit(canvas().detach().double())
        assert float(waves.square().mean()) == pytest.approx(1.0, rel=0.08)
        assert canvas().shape == (400, 2, height, width)

    def test_power_falls_with_the_square_of_the_frequency(self):
        canvas = Fourier(start=1.0)(streams(300), (1, 32, 32), torch.full((1, 1, 1), 0.5))
        power = torch.fft.rfft2(logit(canvas().detach().double())).abs().square().mean((0, 1))
        length = frequencies(32, 32)
        low = power[(length > 0.09) & (length < 0.11)].mean()
        high = power[(length > 0.38) & (length < 0.42)].mean()
        assert float(low / high) == pytest.approx(16, rel=0.25)

    def test_frequencies_are_those_of_rfft2(self):
        table = frequencies(4, 6)
        assert table.shape == (4, 4)
        assert table[0].tolist() == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
        assert float(table[1, 1]) == pytest.approx(math.hypot(1 / 4, 1 / 6))

    def test_colours(self):
        matrix = colour_matrix()
        expected = np.array([[0.26, 0.09, 0.02], [0.27, 0.0, -0.05], [0.27, -0.09, 0.03]]) / math.sqrt(
            0.26**2 + 2 * 0.27**2
        )
        np.testing.assert_allclose(matrix.numpy(), expected, rtol=1e-6)
        canvas = Fourier(start=1.0)(streams(200), (3, 16, 16), torch.full((3, 1, 1), 0.5))
        flat = logit(canvas().detach().double()).transpose(0, 1).flatten(1)
        np.testing.assert_allclose((flat @ flat.T / flat.shape[1]).numpy(), expected @ expected.T, rtol=0.15, atol=0.02)

    @pytest.mark.parametrize("how", [Fourier(start=0.0), Pixels(start=0.0)])
    def test_a_start_of_nothing_is_neutral(self, how):
        neutral = torch.tensor([0.2, 0.5, 0.7]).reshape(3, 1, 1)
        torch.testing.assert_close(how(streams(2), (3, 4, 5), neutral)().detach(), neutral.expand(2, 3, 4, 5))

    def test_pictures_depend_on_their_own_stream_only(self):
        for how in (Fourier(), Pixels()):
            many, one = (
                how(streams(3), (1, 6, 6), torch.full((1, 1, 1), 0.5)),
                how(streams(3)[2:], (1, 6, 6), torch.full((1, 1, 1), 0.5)),
            )
            torch.testing.assert_close(many()[2], one()[0])


class TestPenalties:
    picture = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]])

    def test_total_variation(self):
        # right: 1 and 0; down: 0.5 and 0.5
        assert float(TotalVariation(3.0, soft=1e-6)(self.picture)) == pytest.approx(6.0, rel=1e-4)
        assert float(TotalVariation(3.0)(torch.full((1, 2, 4, 4), 0.3))) == 0
        assert float(TotalVariation(1.0, soft=1e-6)(torch.tensor([[[[0.0, 0.5, 0.25]]]]))) == pytest.approx(
            0.75, rel=1e-4
        )

    def test_distance(self):
        assert float(Distance(2.0, torch.full((1, 1, 1), 0.5))(self.picture)) == pytest.approx(1.0)
        assert Distance(2.0, torch.zeros(1, 1, 1))(
            torch.cat([self.picture, self.picture * 2])
        ).tolist() == pytest.approx([3.0, 12.0])

    def test_none_is_negative(self):
        pictures = torch.rand(5, 3, 6, 6, generator=stream("x"))
        for penalty in (TotalVariation(1.0), Distance(1.0, torch.full((3, 1, 1), 0.5))):
            assert (penalty(pictures) >= 0).all()


class TestSchedule:
    def test_cosine(self):
        rate = Cosine(0.2, 100)
        assert [rate(0), rate(50), rate(100)] == pytest.approx([0.2, 0.1, 0.0])
        assert Constant(0.3)(7) == 0.3

    def test_streams(self):
        draw = lambda *names: torch.rand(3, generator=stream(*names)).tolist()  # noqa: E731
        assert draw(0, "fc:1", 2) == draw(0, "fc:1", 2)
        assert len({tuple(draw(*n)) for n in [(0, "fc:1", 2), (0, "fc:12"), (1, "fc:1", 2), (0, "fc:1", 3)]}) == 4


class TestMiddle:
    def test_centre(self):
        assert centre((7, 4)) == (3, 2)
        assert centre(()) == ()


class TestTransforms:
    picture = torch.rand(2, 1, 12, 16, generator=stream("picture"))

    def test_a_window_of_everything_changes_nothing(self):
        torch.testing.assert_close(Window((12, 16))(self.picture, stream(0)), self.picture)

    def test_a_half_window_is_the_middle(self):
        small = Window((6, 8), low=0.5, high=0.5)(self.picture, stream(0))
        torch.testing.assert_close(small, self.picture[..., 3:9, 4:12])

    def test_a_turn_keeps_lengths_on_oblong_pictures(self):
        point = torch.zeros(1, 1, 21, 41)
        point[..., 10, 30] = 1.0  # ten to the right of the middle
        for n in range(20):
            seen = Window((21, 41), rotation=40)(point, stream(n))[0, 0]
            y, x = (
                float((seen * at).sum() / seen.sum())
                for at in (torch.arange(21.0)[:, None] - 10, torch.arange(41.0) - 20)
            )
            assert math.hypot(y, x) == pytest.approx(10, abs=0.4)

    def test_outside_is_neutral(self):
        seen = Window((12, 16), shift=1.0)(torch.ones_like(self.picture), stream(3))
        assert float(seen.min()) == 0
        assert float(seen.max()) == 1

    def test_shift_cuts_out(self):
        found = {tuple(Shift((11, 14))(self.picture, stream(n))[0, 0, 0, :3].tolist()) for n in range(60)}
        assert found == {tuple(self.picture[0, 0, y, x : x + 3].tolist()) for y in range(2) for x in range(3)}

    def test_noise_is_shared_by_the_batch(self):
        noise = Noise(0.5)(torch.zeros(3, 1, 40, 40), stream(1))
        assert torch.equal(noise[0], noise[2])
        assert float(noise[0].std()) == pytest.approx(0.5, rel=0.1)
        assert torch.equal(Chain((Noise(0.5),))(torch.zeros(3, 1, 40, 40), stream(1)), noise)


class TestStem:
    @pytest.mark.parametrize("kernel", [2, 3, 5, 7, (3, 6)])
    @pytest.mark.parametrize("padding", [0, 1, (2, 1)])
    @pytest.mark.parametrize("size", [(16, 16), (17, 23), (9, 8)])
    def test_equal_in_value_and_gradient(self, kernel, padding, size):
        torch.manual_seed(0)
        conv = nn.Conv2d(3, 5, kernel, stride=2, padding=padding, bias=size[0] != 9)
        ours = Unshuffled(conv)
        x = torch.randn(2, 3, *size, requires_grad=True)
        a, b = conv(x), ours(x)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        seed = torch.randn_like(a)
        torch.testing.assert_close(*(torch.autograd.grad(y, x, seed)[0] for y in (a, b)), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("size", [16, 17])
    def test_tensorflows_padding(self, size):
        if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
            pytest.skip("timm is not installed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()  # which timm imports, and which may not fit the installed torch
        layers = importlib.import_module("timm.layers")
        conv = layers.create_conv2d(3, 4, 3, stride=2, padding="same")
        assert type(conv).__name__ == "Conv2dSame"
        x = torch.randn(1, 3, size, size)
        torch.testing.assert_close(Unshuffled(conv)(x), conv(x), rtol=1e-5, atol=1e-5)
        assert isinstance(quicken(nn.Sequential(conv))[0], Unshuffled)

    def test_only_where_it_is_exact(self):
        for conv in (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(8, 4, 3, stride=2),
            nn.Conv2d(3, 3, 3, stride=2, groups=3),
            nn.Conv2d(3, 4, 3, stride=2, dilation=2),
            nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.Conv2d(3, 4, 1, stride=2),
        ):
            assert quicken(nn.Sequential(conv))[0] is conv


class TestRescue:
    x = torch.tensor([[-1.0, -2.0, 3.0], [-1.0, -2.0, -3.0]])
    uphill = torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 2.0]])

    @pytest.mark.parametrize(
        "relu", [F.relu, lambda x: x.clamp_min(0), lambda x: F.hardtanh(x, 0, 9), lambda x: (x * 1).relu_()]
    )
    def test_lucids_rule(self, relu):
        x = self.x.clone().requires_grad_(True)
        y = relu(x)
        redirect(y)
        # both samples let nothing through; what would push further down stays blocked
        assert torch.autograd.grad(y, x, self.uphill)[0].tolist() == [[1.0, 0.0, 0.0], [1.0, 0.0, 2.0]]

    def test_a_sample_that_gets_through_is_left_alone(self):
        x = self.x.clone().requires_grad_(True)
        y = F.relu(x)
        redirect(y)
        assert torch.autograd.grad(y, x, torch.ones_like(x))[0].tolist() == [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]]

    def test_cut_off_above(self):
        x = torch.tensor([[7.0, 8.0]], requires_grad=True)
        y = F.relu6(x)
        redirect(y)
        assert torch.autograd.grad(y, x, torch.tensor([[1.0, -1.0]]))[0].tolist() == [[0.0, -1.0]]

    @pytest.mark.parametrize("slope", [0.05, 0.75, 1.0])
    @pytest.mark.parametrize(
        ("gate", "x", "open_"),
        [
            (F.relu, [-1.0, 0.0, 3.0], [0, 0, 1]),
            (F.relu6, [-1.0, 5.0, 7.0], [0, 1, 0]),
            (lambda x: x.clamp(max=2), [-1.0, 1.0, 3.0], [1, 1, 0]),
            (lambda x: F.threshold(x, 1, 0), [0.5, 1.0, 3.0], [0, 0, 1]),
            (lambda x: (x * 1).relu_(), [-1.0, -2.0, 3.0], [0, 0, 1]),
            (F.hardsigmoid, [-4.0, 1.0, 4.0], [0, 1 / 6, 0]),
            (F.hardswish, [-4.0, 1.5, 4.0], [0, 1, 1]),
        ],
    )
    def test_a_leak_is_a_share_of_what_a_closed_gate_keeps_back(self, gate, x, open_, slope):
        """Open gates hand on their own gradient, closed ones `slope` of what was asked, and the values are the network's."""
        x = torch.tensor(x, requires_grad=True)
        y = gate(x)
        plain = y.detach().clone()
        asked = torch.tensor([2.0, -3.0, 5.0])
        leak(y, slope)
        wanted = [a * (o if o else slope) for a, o in zip(asked.tolist(), open_, strict=True)]
        assert torch.autograd.grad(y, x, asked)[0].tolist() == pytest.approx(wanted, rel=1e-6)
        assert torch.equal(y.detach(), plain)

    @pytest.mark.parametrize(
        "carry", [lambda y: y, lambda y: torch.cat([y, y * 1], 1)[:, :3], lambda y: y.reshape(3, 2).T.reshape(2, 3)]
    )
    def test_the_last_relu_is_opened(self, carry):
        x = self.x.clone().requires_grad_(True)
        y = carry(F.relu(x))
        open_last(y)
        gradient = torch.autograd.grad(y, x, -torch.ones_like(y))[0]
        assert gradient.tolist() == [[-1.0] * 3] * 2

    def test_a_relu_behind_weights_is_not_the_last(self):
        x = self.x.clone().requires_grad_(True)
        y = F.relu(x) @ torch.ones(3, 1)
        open_last(y)
        assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_inputs_as_pictures():
    assert as_picture((7,)) == (1, 1, 7)
    assert as_picture((2, 40)) == (2, 1, 40)
    assert as_picture((3, 8, 9)) == (3, 8, 9)
    assert as_picture((3, 4, 8, 9)) == (3, 32, 9)


def test_neutral_is_the_mean_where_one_is_known():
    known = Optics.of(Model(nn.Sequential(nn.Conv2d(3, 1, 1)), InputContract("image", (3, 4, 4), (0.4, 0.5, 0.6))))
    assert known.neutral.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    unknown = Optics.of(Model(nn.Sequential(nn.Conv2d(1, 1, 1)), InputContract("image", (1, 4, 4))))
    assert unknown.neutral.flatten().tolist() == [0.5]


def test_the_loop_yields_every_step_and_subtracts_penalties():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False)).requires_grad_(False)
    network[0].weight.fill_(1.0)
    model = Model(network, InputContract("image", (1, 6, 6)))
    stage = Stage(network, {"0": Layer("0", "Conv2d", (1, 6, 6), "NCHW", 1)}, Optics.of(model))
    objective = Neuron("0", 0, (3, 3))

    def last(weight):
        penalty = Distance(weight, torch.full((1, 1, 1), 0.5))
        recipe = Recipe(Pixels(0.0), (Phase(80, Adam(Cosine(0.2, 80)), penalties=(penalty,)),), scaled=True)
        snapshots = list(optimize(stage, recipe, objective, (6, 6), streams(1), 0))
        assert [s.step for s in snapshots] == list(range(81))
        assert bool(snapshots[-1].reached.all())
        assert not bool(snapshots[0].reached.any())
        return snapshots[-1].pictures()[0, 0]

    free, dear = last(0.0), last(1e5)
    assert float(free[3, 3]) > 0.9
    assert float(free[0, 0]) == 0.5
    assert float(dear[3, 3]) < 0.6

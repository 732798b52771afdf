"""`maco` against the formulas of the paper and of xplique's maco.py, written down again."""

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.errors import BadOption
from penlight.techniques.contract import Request
from penlight.techniques.visualize.ascent import Steepest
from penlight.techniques.visualize.engine import Phase, Recipe, Stage, optimize
from penlight.techniques.visualize.methods.maco import COLOUR, NATURAL, Maco, natural
from penlight.techniques.visualize.objectives import MapOf
from penlight.techniques.visualize.parameterization import FixedMagnitude
from penlight.techniques.visualize.scene import Optics
from penlight.techniques.visualize.schedule import Constant, stream
from penlight.techniques.visualize.transforms import Box, Uniform

RECORRELATE = np.array(
    [[0.56282854, 0.58447580, 0.58447580], [0.19482528, 0, -0.19482528], [0.04329450, -0.10823626, 0.06494176]]
)


def standard(values):
    return (values - values.mean()) / (values.std() + 1e-5)


def picture(phase, magnitude, size):
    """maco_image_parametrization for (3, H, W'), in [0, 1]."""
    phase = standard(phase)
    waves = standard(np.fft.irfft2(np.cos(phase) * magnitude + 1j * np.sin(phase) * magnitude, s=size))
    return 1 / (1 + np.exp(-np.moveaxis(np.moveaxis(waves, 0, -1) @ RECORRELATE, -1, 0)))


@pytest.mark.parametrize("size", [(10, 12), (9, 7)])
def test_pictures(size):
    magnitude = torch.rand(3, size[0], size[1] // 2 + 1, generator=stream("m")) + 0.1
    canvas = FixedMagnitude(magnitude, torch.tensor(COLOUR))([stream(1), stream(2)], (3, *size), torch.zeros(3, 1, 1))
    for one, phase in zip(canvas().detach().numpy(), canvas.values.detach().double().numpy(), strict=True):
        np.testing.assert_allclose(one, picture(phase, magnitude.double().numpy(), size), atol=1e-5)


def test_magnitudes_stay():
    """Whatever the phases, what lies before the sigmoid has the same spectrum up to one factor."""
    magnitude = torch.rand(1, 12, 7, generator=stream("m")) + 0.1
    canvas = FixedMagnitude(magnitude)([stream(3)], (1, 12, 12), torch.zeros(1, 1, 1))
    waves = torch.logit(canvas().detach().double())
    ratio = (torch.fft.rfft2(waves).abs()[0] / magnitude)[
        0, 1:6, 1:6
    ]  # on the edge columns conjugate pairs have to agree
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)


class TestCrops:
    def test_sampled_as_crop_and_resize_does(self):
        pictures = torch.rand(2, 3, 9, 13, generator=stream("p")).double()
        seen = Box((5, 6), 0.6, spread=0.0, off=0.3)(pictures.float(), stream("b")).numpy()
        right, down, _ = torch.randn(3, generator=stream("b")).tolist()
        for i in range(5):
            for j in range(6):
                y = (0.5 + 0.3 * down - 0.3 + 0.6 * i / 4) * 8
                x = (0.5 + 0.3 * right - 0.3 + 0.6 * j / 5) * 12
                expected = np.zeros((2, 3))
                for row, a in ((int(np.floor(y)), 1 - y % 1), (int(np.floor(y)) + 1, y % 1)):
                    for column, b in ((int(np.floor(x)), 1 - x % 1), (int(np.floor(x)) + 1, x % 1)):
                        if 0 <= row < 9 and 0 <= column < 13:
                            expected += a * b * pictures[:, :, row, column].numpy()
                np.testing.assert_allclose(seen[:, :, i, j], expected, atol=1e-5)

    def test_distribution(self):
        ramp = torch.linspace(0, 1, 201).expand(1, 1, 201, 201)
        left, right = np.array(
            [Box((3, 3), 0.3)(ramp + 10, stream(n))[0, 0, 1, [0, 2]].tolist() for n in range(3000)]
        ).T - 10  # fmt: skip
        inside = (left > 0) & (right > left)  # outside of the picture all is 0
        side, centre = (right - left)[inside], ((left + right) / 2)[inside]
        assert side.mean() == pytest.approx(0.3, abs=0.01)
        assert side.std() == pytest.approx(0.05, rel=0.1)
        assert centre.mean() == pytest.approx(0.5, abs=0.01)
        assert centre.std() == pytest.approx(0.15, rel=0.1)

    def test_no_box_is_smaller_than_a_twentieth(self):
        ramp = torch.linspace(0, 1, 201).expand(1, 1, 201, 201)
        sides = [np.ptp(Box((3, 3), 0.05, off=0.0)(ramp, stream(n))[0, 0, 1].numpy()) for n in range(200)]
        assert min(sides) == pytest.approx(0.05, abs=1e-4)

    def test_they_shrink_linearly(self):
        method, expected = Maco(steps=256), np.linspace(0.5, 0.05, 256)
        scene = type("Scene", (), {"view": (8, 8)})()
        brief = type("Brief", (), {"scene": scene})()
        for step in (0, 1, 100, 255):
            assert method._look(brief, step).parts[0].side == pytest.approx(expected[step])

    def test_even_noise(self):
        noise = Uniform(0.04)(torch.zeros(2, 1, 50, 50), stream(0))
        assert torch.equal(noise[0], noise[1])
        assert 0.039 < float(noise.max()) <= 0.04
        assert -0.04 <= float(noise.min()) < -0.039


def gathered(pictures, side, down, right, size):
    """(1, C, H, W) → (1, C, *size): the box, by weights on all rows and columns."""
    parts = []
    for n, at, count in ((pictures.shape[2], down, size[0]), (pictures.shape[3], right, size[1])):
        where = (0.5 + 0.15 * at - side / 2 + side * torch.arange(count).double() / (count - 1)) * (n - 1)
        parts.append((1 - (where[:, None] - torch.arange(n)[None]).abs()).clamp(min=0))
    return torch.einsum("yh,nchw,xw->ncyx", parts[0], pictures, parts[1])


def test_one_step():
    """Three noisy crops, their mean gradient, and NAdam's first step."""
    make = lambda: zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))  # noqa: E731
    model = penlight.load(make(), example=torch.zeros(1, 3, 10, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    options = {"steps": 1, "crops": 3, "size": 20, "rate": 0.5}
    result = penlight.visualize(model, "2:1", method="maco", seed=4, **options)
    assert result.images.shape == (1, 1, 20, 24, 3)

    size, magnitude = (20, 24), natural((20, 24)).double()
    phase = torch.randn((3, 20, 13), generator=stream(4, "2:1", 0)).double().requires_grad_(True)
    flat = (phase - phase.mean()) / (phase.std(correction=0) + 1e-5)
    waves = torch.fft.irfft2(torch.complex(flat.cos() * magnitude, flat.sin() * magnitude), s=size)
    waves = (waves - waves.mean()) / (waves.std(correction=0) + 1e-5)
    x = torch.sigmoid(torch.einsum("chw,cd->dhw", waves, torch.from_numpy(RECORRELATE)))
    mean, std = (torch.tensor(n).double().reshape(3, 1, 1) for n in (model.contract.mean, model.contract.std))
    gain = 0.0
    for look in range(3):
        chance = stream(4, "step", 0, *([look] if look else []))
        right, down, wide = torch.randn(3, generator=chance).tolist()
        crop = gathered((x - mean)[None] / std, min(max(0.5 + 0.05 * wide, 0.05), 1), down, right, (10, 12))
        crop = crop + 0.08 * torch.randn((3, 10, 12), generator=chance)
        crop = crop + 0.08 * (torch.rand((3, 10, 12), generator=chance) - 0.5)
        gain = gain + make().double()(crop)[0, 1].mean() / 3
    (g,) = torch.autograd.grad(gain, phase)
    first, second = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in (1, 2))
    moved = g + second * 0.1 * g / (1 - first * second)
    after = phase.detach() + 0.5 * moved / (g.abs() + 1e-7)
    expected = np.moveaxis(picture(after.numpy(), magnitude.numpy(), size), 0, -1)
    np.testing.assert_allclose(
        result.images[0, 0] / 255, expected, atol=0.02
    )  # one phase near a gradient of 0 may turn
    assert np.abs(result.images[0, 0] / 255 - expected).mean() < 0.4 / 255


def test_a_large_picture_is_measured_at_the_networks_size():
    model = penlight.load(zoo.seeded(zoo.Functional), example=torch.zeros(1, 1, 16, 16))
    result = penlight.visualize(model, "fc:1", method="maco", steps=2, crops=2, seeds=2)
    assert result.images.shape == (1, 2, 37, 37, 1)  # 16 · 512 / 224
    shown = nn.functional.interpolate(
        torch.from_numpy(result.images[0]).permute(0, 3, 1, 2) / 255, (16, 16), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(model.network(shown)[:, 1].detach(), result.activations[0], rtol=1e-4, atol=1e-5)
    assert np.isfinite(result.network_likeness).all()
    assert result.transparency.shape == (1, 2, 37, 37)
    assert (result.transparency.max((2, 3)) > 0).all()


class TestSpectrum:
    def test_of_photographs(self):
        found = natural((64, 80))
        assert found.shape == (3, 64, 41)
        for n, (_, decay, across, along) in enumerate(NATURAL):
            # from left to right θ = 0, from top to bottom θ = π/2
            assert float(found[n, 0, 8] / found[n, 0, 16]) == pytest.approx(2**decay, rel=1e-3)
            turned = found[n, 8, 0] * (8 / 64) ** decay / (found[n, 0, 10] * (10 / 80) ** decay)
            assert float(turned) == pytest.approx(np.exp((-across + along) - (across + along)), rel=1e-3)
        assert float(found[0, 0, 0]) == pytest.approx(float(found[0, 0, 1]))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_of_data(self, channels):
        network = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(channels, 2, 3)))
        mean = (0.4, 0.5, 0.6)[:channels]
        model = penlight.load(network, example=torch.zeros(1, channels, 8, 8), mean=mean, std=(0.2,) * channels)
        data = np.random.default_rng(0).random((5, channels, 8, 8)).astype(np.float32)
        request = Request(model, data=penlight.inputs.open_data(data, model.contract))
        magnitude, colour = Maco(spectrum="data", size=8).begin(request)
        centred = data - np.array(mean).reshape(-1, 1, 1)
        if channels == 3:
            centred = np.moveaxis(np.moveaxis(centred, 1, -1) @ np.linalg.inv(RECORRELATE), -1, 1)
        np.testing.assert_allclose(magnitude, np.abs(np.fft.rfft2(centred)).mean(0), rtol=1e-3, atol=1e-3)
        assert (colour is None) == (channels == 1)
        halved, _ = Maco(spectrum="data", size=8, samples=2).begin(request)  # every second input, two of them
        np.testing.assert_allclose(halved, np.abs(np.fft.rfft2(centred[[0, 2]])).mean(0), rtol=1e-3, atol=1e-3)

    def test_without_data(self):
        model = penlight.load(zoo.seeded(zoo.Functional), example=torch.zeros(1, 1, 16, 16))
        with pytest.raises(BadOption, match="--data"):
            Maco(spectrum="data", steps=1).run(Request(model, model.find("fc:1")))


def test_transparency_adds_up_gradients():
    """Of a unit that is linear in the picture, every step's gradient is its weights."""
    weights = torch.rand(2, 6, 6, generator=stream("w")) - 0.5
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 1, bias=False)).requires_grad_(False)
    network[1].weight.copy_(weights.reshape(1, 72))
    model = penlight.load(network, example=torch.zeros(1, 2, 6, 6))
    stage = Stage(network, {"1": model.layer("1")}, Optics.of(model))
    recipe = Recipe(FixedMagnitude(torch.ones(2, 6, 4)), (Phase(3, Steepest(Constant(1.0))),))
    *_, last = optimize(stage, recipe, MapOf("1", torch.tensor([0, 0])), (6, 6), [stream(0), stream(1)], 0)
    np.testing.assert_allclose(last.canvas.transparency, (3 * weights.abs().sum(0)).expand(2, -1, -1), rtol=1e-5)

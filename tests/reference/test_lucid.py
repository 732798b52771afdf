"""`lucid` against Lucid's own formulas, written down again in NumPy or plain torch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import penlight
import zoo
from penlight.techniques.visualize.methods.lucid import DEGREES, FACTORS, Lucid, scaled, standard
from penlight.techniques.visualize.objectives import Diverse, MapOf
from penlight.techniques.visualize.parameterization import LucidFourier
from penlight.techniques.visualize.penalties import Absolute, Roughness, TotalVariation
from penlight.techniques.visualize.schedule import stream
from penlight.techniques.visualize.transforms import Chain, Pad, Rescale, Trim, Turn

SVD_SQRT = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
COLOUR = SVD_SQRT / np.linalg.norm(SVD_SQRT, axis=0).max()


def frequencies(h, w):
    fx = np.fft.fftfreq(w)[: w // 2 + 2] if w % 2 == 1 else np.fft.fftfreq(w)[: w // 2 + 1]
    return np.sqrt(fx**2 + np.fft.fftfreq(h)[:, None] ** 2)


def picture(values, h, w, decay=1.0):
    """Lucid's fft_image and to_valid_rgb for (C, H, W', 2), by a Fourier sum over all frequencies."""
    scale = math.sqrt(w * h) / np.maximum(frequencies(h, w), 1 / max(w, h)) ** decay
    spectrum = (values[..., 0] + 1j * values[..., 1]) * scale
    waves = np.fft.irfft2(spectrum)[..., :h, :w] / 4.0
    if len(waves) == 3:
        waves = np.moveaxis(np.moveaxis(waves, 0, -1) @ COLOUR.T, -1, 0)
    return 1 / (1 + np.exp(-waves))


class TestPictures:
    @pytest.mark.parametrize("shape", [(3, 8, 10), (3, 9, 7), (1, 12, 12), (4, 5, 11)])
    def test_are_lucids(self, shape):
        canvas = LucidFourier(start=0.2, decay=1.3)([stream("a"), stream("b")], shape, torch.zeros(shape[0], 1, 1))
        with torch.no_grad():
            found = canvas().numpy()
        assert found.shape == (2, *shape)
        for one, values in zip(found, canvas.values.detach().double().numpy(), strict=True):
            np.testing.assert_allclose(one, picture(values, *shape[1:], decay=1.3), atol=2e-6)

    def test_start_as_small_as_lucids(self):
        values = LucidFourier()([stream(n) for n in range(50)], (3, 32, 32), torch.zeros(3, 1, 1)).values
        assert float(values.detach().std()) == pytest.approx(0.01, rel=0.02)
        assert values.shape == (50, 3, 32, 17, 2)


class TestTransforms:
    grey, black = torch.tensor([1.0, 2.0]).reshape(2, 1, 1), torch.tensor([-3.0, -4.0]).reshape(2, 1, 1)

    def test_padding_is_grey(self):
        seen = Pad(3, self.grey)(torch.zeros(1, 2, 4, 5), stream(0))
        assert seen.shape == (1, 2, 10, 11)
        assert seen[0, :, 3:7, 3:8].abs().max() == 0
        assert seen[0, :, 0, 0].tolist() == [1.0, 2.0]
        assert seen[0, :, 9, 10].tolist() == [1.0, 2.0]

    def test_jitter_cuts_out_whole_pixels(self):
        rows = torch.arange(10.0).reshape(1, 1, 10, 1).expand(1, 1, 10, 12)
        tops = [Trim(4)(rows, stream(n)) for n in range(200)]
        assert {tuple(t.shape) for t in tops} == {(1, 1, 6, 8)}
        assert {float(t[0, 0, 0, 0]) for t in tops} == {0.0, 1.0, 2.0, 3.0, 4.0}

    def test_scales_and_angles_are_the_published_ones(self):
        assert pytest.approx([0.9, 0.92, 0.94, 0.96, 0.98, 1.0, 1.02, 1.04, 1.06, 1.08, 1.1]) == FACTORS
        assert sorted(DEGREES) == sorted([*range(-10, 11), 0, 0, 0, 0, 0])
        sizes = {Rescale(FACTORS)(torch.zeros(1, 1, 144, 50), stream(n)).shape[2:] for n in range(300)}
        assert sizes == {(int(f * 144), int(f * 50)) for f in FACTORS}

    def test_a_turn_moves_pixels_and_lets_black_in(self):
        picture = torch.arange(32.0).reshape(1, 2, 4, 4)
        turned = Turn((90.0,), self.black)(picture, stream(0))
        assert any(torch.equal(turned[0, 0], torch.rot90(picture[0, 0], k)) for k in (1, -1))
        corner = Turn((30.0,), self.black)(torch.zeros(1, 2, 21, 31), stream(0))
        assert corner[0, :, 0, 0].tolist() == [-3.0, -4.0]
        assert corner[0, :, 10, 15].tolist() == [0.0, 0.0]
        assert set(corner.unique().tolist()) == {-3.0, -4.0, 0.0}  # nearest pixels: no colour in between

    def test_sizes_of_the_whole_chain(self):
        chain = Chain(standard(*scaled((128, 128)), self.grey, self.black))
        sizes = {chain(torch.zeros(1, 2, 128, 128), stream(n)).shape[-1] for n in range(300)}
        assert sizes == {int(f * (128 + 24 - 8)) - 4 for f in FACTORS}

    def test_small_canvases_have_smaller_margins(self):
        assert scaled((128, 128)) == scaled((224, 300)) == (12, 8, 4)
        assert scaled((64, 80)) == (6, 4, 2)


class TestPenalties:
    picture = torch.tensor([[[[0.0, 1.0], [0.5, 0.25]]]])

    def test_l1_towards_grey(self):
        assert float(Absolute(2.0)(self.picture)) == pytest.approx(2 * (0.5 + 0.5 + 0 + 0.25))

    def test_total_variation(self):
        assert float(TotalVariation(2.0, soft=0.0)(self.picture)) == pytest.approx(2 * (1 + 0.25 + 0.5 + 0.75))

    def test_blur(self):
        # every pixel of a 2 × 2 picture sees itself once and the other three at a half
        blurred = np.array([[0 + 0.875, 1 + 0.375], [0.5 + 0.625, 0.25 + 0.75]]) / 2.5
        expected = 0.5 * np.square(np.array([[0, 1], [0.5, 0.25]]) - blurred).sum()
        leaf = self.picture.clone().requires_grad_(True)
        cost = Roughness(3.0)(leaf)
        assert float(cost.detach()) == pytest.approx(3 * expected)
        gradient = torch.autograd.grad(cost.sum(), leaf)[0][0, 0].numpy()
        np.testing.assert_allclose(gradient, 3 * (np.array([[0, 1], [0.5, 0.25]]) - blurred), rtol=1e-5)


def test_diversity_is_lucids_sum():
    pictures, weight = 3, 7.0
    features = torch.rand(pictures, 4, 5, 6, generator=stream("features")).double()
    grams = []
    for one in features.numpy():
        flat = one.reshape(4, -1).T
        gram = flat.T @ flat
        grams.append(gram / np.linalg.norm(gram))
    shared = sum((grams[i] * grams[j]).sum() for i in range(pictures) for j in range(pictures) if i != j) / pictures
    expected = features[:, 2].mean() - weight * shared

    share, relative = Lucid(seeds=pictures, diversity=weight).diverse()
    rows = torch.arange(pictures)
    objective = Diverse(
        MapOf("l", torch.full((pictures,), 2)), share, torch.zeros(pictures, dtype=torch.long), relative
    )
    found = objective({"l": features}, rows).mean()
    assert float(found) == pytest.approx(float(expected))


def steps_by_hand(network, contract, count, l1=0.0, total_variation=0.0, roughness=0.0):
    """`count` steps of Adam on the mean of the ReLU's last channel, from the start that is named so; (H, W, 3)."""
    shape = (3, 12, 13)
    values = torch.randn((3, 12, 13 // 2 + 2, 2), generator=stream(5, "1:3", 0)).numpy().astype(np.float64) * 0.3
    m = v = np.zeros_like(values)
    for t in range(1, count + 1):
        leaf = torch.from_numpy(values).requires_grad_(True)
        h, w = shape[1:]
        scale = torch.from_numpy(math.sqrt(w * h) / np.maximum(frequencies(h, w), 1 / max(w, h)))
        waves = torch.fft.irfft2(torch.complex(leaf[..., 0], leaf[..., 1]) * scale)[..., :w] / 4
        x = torch.sigmoid(torch.einsum("chw,dc->dhw", waves, torch.from_numpy(COLOUR)))
        mean, std = (torch.tensor(n).double().reshape(3, 1, 1) for n in (contract.mean, contract.std))
        gain = F.relu(network[0]((x - mean)[None] / std))[0, 3].mean()
        kernel = torch.full((3, 1, 3, 3), 0.5).double()
        kernel[..., 1, 1] = 1
        blurred = F.conv2d(x[None], kernel, padding=1, groups=3)
        blurred = (blurred / F.conv2d(torch.ones_like(x)[None], kernel, padding=1, groups=3))[0].detach()
        gain = gain - l1 * (x - 0.5).abs().sum() - roughness * 0.5 * (x - blurred).square().sum()
        gain = gain - total_variation * (x.diff(dim=1).abs().sum() + x.diff(dim=2).abs().sum())
        (g,) = torch.autograd.grad(gain, leaf)
        m, v = 0.9 * m + 0.1 * g.numpy(), 0.999 * v + 0.001 * g.numpy() ** 2
        values = values + 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return np.moveaxis(picture(values, *shape[1:]), 0, -1)


@pytest.mark.parametrize("penalties", [{}, {"l1": 0.002, "total_variation": 0.003, "roughness": 0.2}])
def test_five_steps(penalties):
    network = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)))
    model = penlight.load(network, example=torch.zeros(1, 3, 12, 13), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    result = penlight.visualize(model, "1:3", method="lucid", seed=5, steps=5, sd=0.3, robust=False, **penalties)
    same = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3))).double()
    expected = steps_by_hand(same, model.contract, 5, **penalties)
    np.testing.assert_allclose(result.images[0, 0] / 255, expected, atol=0.6 / 255)
    assert np.ptp(expected) > 0.05
    if penalties:
        assert np.abs(expected - steps_by_hand(same, model.contract, 5)).max() > 0.02


class Wide(nn.Module):
    """A convolution that takes any size, and a layer that takes 140 × 140 only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 5, stride=4)
        self.fc = nn.Linear(2 * 34 * 34, 3)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).flatten(1))


@pytest.mark.parametrize(("unit", "side"), [("conv:1", 128), ("fc:2", 140), ("conv:1@3,3", 140)])
def test_canvas(unit, side):
    model = penlight.load(zoo.seeded(Wide), example=torch.zeros(1, 3, 140, 140))
    result = penlight.visualize(model, unit, method="lucid", steps=2)
    assert result.images.shape == (1, 1, side, side, 3)
    assert not result.zero_gradient.any()

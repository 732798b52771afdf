"""How alike pictures are, against independent derivations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.techniques.visualize.likeness import SAME, aligned, eye, layers_for, network, recurrence, ssim
from penlight.techniques.visualize.schedule import stream


def noise(*shape, name="noise"):
    return torch.rand(shape, generator=stream(name)) * 255


def smooth(height, width, name="smooth"):
    """A picture of a few waves, 0…255."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    rates = torch.rand((6, 3), generator=stream(name)) * 9
    waves = sum(torch.sin(a * y * 2 + b * x * 2 + 7 * c) for a, b, c in rates)
    return 127.5 + 127.5 * waves / waves.abs().max()


def by_the_formula(a, b):
    """Wang et al. 2004, equation 13, window by window in plain loops."""
    a, b = a.double().numpy(), b.double().numpy()
    sizes = [min(11, n if n % 2 else n - 1) for n in a.shape]
    sides = []
    for size in sizes:
        sigma = 1.5 * size / 11
        side = np.array([math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)])
        sides.append(side / side.sum())
    weights = np.outer(*sides)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(a.shape[0] - sizes[0] + 1):
        for left in range(a.shape[1] - sizes[1] + 1):
            x = a[top : top + sizes[0], left : left + sizes[1]]
            y = b[top : top + sizes[0], left : left + sizes[1]]
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cov = (weights * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


class TestStructuralSimilarity:
    @pytest.mark.parametrize("shape", [(16, 20), (11, 11), (8, 30), (5, 7), (1, 24), (2, 2)])
    def test_is_the_formula(self, shape):
        a = noise(*shape)
        b = 0.6 * a + 0.4 * noise(*shape, name="other")
        assert ssim(a, b) == pytest.approx(by_the_formula(a, b), abs=1e-9)

    def test_is_scikit_images(self):
        metrics = pytest.importorskip("skimage.metrics")
        a = noise(40, 52)
        b = 0.6 * a + 0.4 * noise(40, 52, name="other")
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        _, full = metrics.structural_similarity(a.double().numpy(), b.double().numpy(), full=True, **how)
        assert ssim(a, b) == pytest.approx(full[5:-5, 5:-5].mean(), abs=1e-6)

    def test_identical_is_1_and_a_negative_is_low(self):
        a = noise(20, 20)
        assert ssim(a, a) == pytest.approx(1, abs=1e-12)
        assert ssim(a, 255 - a) < -0.5


class TestAlignment:
    @pytest.mark.parametrize("shift", [(0, 0), (3, -5), (-8, 0), (8, 8), (1, 2)])
    def test_a_shifted_copy_is_the_same(self, shift):
        large = smooth(64, 64) + noise(64, 64) / 16
        down, right = shift
        a, b = large[16:48, 16:48], large[16 + down : 48 + down, 16 + right : 48 + right]
        assert aligned(a, b) >= 0.95
        assert aligned(a, b) == pytest.approx(aligned(b, a), abs=1e-6)

    def test_without_alignment_it_is_not(self):
        large = noise(64, 64)
        a, b = large[16:48, 16:48], large[13:45, 21:53]
        assert ssim(a, b) < 0.2
        assert aligned(a, b) > 0.99

    def test_it_reaches_no_further_than_a_quarter_of_the_side(self):
        large = noise(96, 96)
        assert aligned(large[32:64, 32:64], large[44:76, 32:64]) < 0.5

    def test_a_negative_stays_low(self):
        a = torch.nn.functional.avg_pool2d(noise(1, 44, 44), 5, 1)[0]
        a = (a - a.min()) / (a.max() - a.min()) * 255
        assert aligned(a, 255 - a) < 0.2


class TestEye:
    def test_groups_stand_apart_in_order(self):
        a = smooth(24, 24).to(torch.uint8).numpy()
        b = noise(24, 24).to(torch.uint8).numpy()
        pictures = np.stack([a, b, a, a])[:, None]
        found = eye(pictures, np.array([7, 3, 7, 3]))
        assert set(found) == {7, 3}
        np.testing.assert_allclose(found[7], 1, atol=1e-6)
        assert found[3][0, 1] == found[3][1, 0] < 0.5
        assert found[3][0, 0] == 1

    def test_colours_count_by_their_luminance(self):
        grey = smooth(24, 24).to(torch.uint8).numpy()
        red, green = np.zeros((3, 24, 24), np.uint8), np.zeros((3, 24, 24), np.uint8)
        red[0], green[1] = grey, grey
        pictures = np.stack([np.stack([grey] * 3), green, red])
        matrix = eye(pictures, np.zeros(3, int))[0]
        assert matrix[0, 1] > matrix[0, 2] > 0  # 0.587 of the grey picture's contrast against 0.299

    def test_large_pictures_are_looked_at_from_afar(self):
        """Grain that no thumbnail shows does not make two pictures different."""
        base = smooth(192, 192)
        both = [base + 60 * torch.sign(noise(192, 192, name=n) - 127) for n in "ab"]
        pictures = np.stack([p.clamp(0, 255).to(torch.uint8).numpy() for p in both])[:, None]
        assert eye(pictures, np.zeros(2, int))[0][0, 1] > ssim(*both) + 0.2

    @pytest.mark.parametrize("shape", [(1, 1, 9), (7, 6, 6), (2, 1, 40)])
    def test_any_shape(self, shape):
        pictures = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
        matrix = eye(np.concatenate([pictures, pictures[:1]]), np.zeros(3, int))[0]
        assert matrix[0, 2] == pytest.approx(1, abs=1e-6)
        assert matrix[0, 1] < 0.9


class Templates(nn.Module):
    """Twelve known filters: what each answers is their product with the picture."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 5, bias=False)
        self.deep = nn.Conv2d(12, 10, 3)

    def forward(self, x):
        return self.deep(torch.relu(self.conv(x)))


@pytest.fixture
def model():
    return penlight.load(zoo.seeded(Templates), example=torch.zeros(1, 1, 24, 24))


def stamp(model, unit, row, column, scale=1.0):
    """Grey with the unit's own filter at a place, uint8 (1, 24, 24)."""
    picture = torch.full((24, 24), 127.0)
    filters = model.network.conv.weight.detach()[unit, 0]
    picture[row : row + 5, column : column + 5] += 120 * scale * filters / filters.abs().max()
    return picture.clamp(0, 255).to(torch.uint8).numpy()[None]


def starts(count=4):
    rng = np.random.default_rng(1)
    return np.clip(127 + 12 * rng.standard_normal((count, 1, 24, 24)), 0, 255).astype(np.uint8)


class TestNetwork:
    def test_it_does_not_matter_where_a_pattern_stands(self, model):
        pictures = np.stack([stamp(model, 2, 4, 4), stamp(model, 2, 13, 9), stamp(model, 7, 4, 4)])
        matrix = network(model, ["conv"], pictures, np.zeros(3, int), starts())[0]
        np.testing.assert_allclose(np.diag(matrix), 1)
        np.testing.assert_array_equal(matrix, matrix.T)
        assert matrix[0, 1] > 0.99
        assert matrix[0, 2] < SAME

    def test_is_the_formula(self, model):
        """One layer, pictures whose contrast is exactly one of the noise's: correlation of maxima less the noise's mean."""
        rng = np.random.default_rng(2)
        halves = np.array([102, 153] * 288, np.uint8)  # standard deviation 25.5, a tenth of the range
        pictures = np.stack([rng.permutation(halves).reshape(1, 24, 24) for _ in range(2)])
        base = starts()
        matrix = network(model, ["conv"], pictures, np.zeros(2, int), base)[0]

        def answers(shown):
            with torch.no_grad():
                return model.network.conv(torch.from_numpy(shown).float() / 255).amax((2, 3)).double().numpy()

        middle = base.astype(float).mean((2, 3), keepdims=True)
        spread = (base - middle).std((1, 2, 3), keepdims=True)
        raised = np.clip(middle + (base - middle) * 25.5 / spread + 0.5, 0, 255).astype(np.uint8)
        a, b = answers(pictures) - answers(raised).mean(0)
        assert matrix[0, 1] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-4)

    def test_is_the_mean_over_layers(self, model):
        pictures = np.stack([stamp(model, 2, 4, 4), stamp(model, 5, 9, 9)])
        groups, base = np.zeros(2, int), starts()
        one, two, both = (
            network(model, layers, pictures, groups, base)[0] for layers in (["conv"], ["deep"], ["conv", "deep"])
        )
        np.testing.assert_allclose(both, (one + two) / 2, atol=1e-6)

    def test_noise_is_not_alike_however_faint(self, model):
        for scale in (0.3, 1.0, 2.5):
            rng = np.random.default_rng(5)
            pictures = np.clip(127 + 25 * scale * rng.standard_normal((12, 1, 24, 24)), 0, 255).astype(np.uint8)
            matrix = network(model, ["conv", "deep"], pictures, np.zeros(12, int), starts())[0]
            assert np.median(matrix[~np.eye(12, dtype=bool)]) < 0.4

    def test_a_group_does_not_depend_on_its_company(self, model):
        pictures = np.stack([stamp(model, u, 4 + u, 6) for u in (1, 1, 8, 9)])
        groups, base = np.array([4, 4, 5, 5]), starts()
        together = network(model, ["conv", "deep"], pictures, groups, base)
        alone = network(model, ["conv", "deep"], pictures[:2], groups[:2], base)
        np.testing.assert_allclose(together[4], alone[4], atol=1e-5)
        assert list(together) == [4, 5]

    def test_leaves_no_trace(self, model):
        model.network.train()
        network(model, ["conv"], np.stack([stamp(model, 1, 4, 4)]), np.zeros(1, int), starts())
        assert all(m.training and not m._forward_hooks for m in model.network.modules())
        assert all(p.requires_grad for p in model.network.parameters())

    @pytest.mark.parametrize("name", zoo.NETWORKS)
    def test_any_network(self, open_zoo, name):
        model = open_zoo(name)
        from penlight.techniques.visualize.scene import as_picture

        shape = as_picture(model.contract.shape)
        pictures = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
        pictures[3] = pictures[0]
        for target in model.layers:
            matrix = network(model, layers_for(model, target), pictures[:4], np.zeros(4, int), pictures[4:])[0]
            assert matrix[0, 3] == pytest.approx(1, abs=1e-5)
            assert (np.abs(matrix) <= 1 + 1e-6).all()


class TestLayers:
    def test_the_nearer_half_and_the_target(self):
        model = penlight.load("letters")
        assert layers_for(model, "conv1") == ["conv1"]
        assert layers_for(model, "conv2") == ["conv1", "conv2"]
        assert layers_for(model, "fc") == ["conv3", "conv4", "fc"]

    def test_at_most_three_below_evenly_spread(self):
        body = nn.Sequential(*[nn.Conv1d(1, 1, 1) for _ in range(21)])
        model = penlight.load(body, example=torch.zeros(1, 1, 8))
        assert layers_for(model, "20") == ["11", "14", "18", "20"]

    def test_layers_with_the_same_values_count_once(self):
        model = penlight.load(zoo.seeded(zoo.InPlace), example=torch.zeros(1, 3, 12, 20))
        for target in model.layers:
            chosen = layers_for(model, target)
            assert chosen[-1] == target
            values = [model.layers[path].alias_of or path for path in chosen]
            assert len(set(values)) == len(values)


def test_recurrence_counts_the_starts_with_the_same_pattern():
    likeness = np.array([[1, 0.9, 0.1, 0.7], [0.9, 1, 0.2, 0.5], [0.1, 0.2, 1, -0.3], [0.7, 0.5, -0.3, 1]], np.float32)
    assert recurrence(likeness, threshold=0.6).tolist() == [3, 2, 1, 2]
    assert recurrence(likeness, np.array([True, False, True, True]), threshold=0.6).tolist() == [2, 0, 1, 2]
    assert recurrence(np.full((1, 1), np.nan, np.float32)).tolist() == [1]

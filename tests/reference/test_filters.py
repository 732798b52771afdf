"""Filters as pictures and what they make of noise, against figures worked out by hand."""

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.errors import BadInput, CannotRun
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.survey.filters import Filters


class Stem(nn.Module):
    def __init__(self, weight):
        super().__init__()
        weight = torch.as_tensor(weight, dtype=torch.float32)
        self.stem = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:])
        self.stem.weight.data = weight
        self.next = nn.Conv2d(weight.shape[0], 2, 1)

    def forward(self, x):
        return self.next(self.stem(x)).mean((2, 3))


def filters(weight, layers=(), seed=0, **options):
    network = Stem(weight)
    model = Model(network, InputContract("image", (network.stem.in_channels, 16, 16)))
    return Filters(**options).run(Request(model, layers=layers, seed=seed))


def grating(size, row_frequency, column_frequency, phase=0.0):
    """A cosine of so many turns over `size` pixels, less its mean."""
    rows, columns = np.mgrid[:size, :size]
    wave = np.cos(2 * np.pi * (row_frequency * rows + column_frequency * columns) / size + phase)
    return wave - wave.mean()


def strongest(picture):
    """(rows, columns) frequency with the most power, of a grey picture."""
    power = np.abs(np.fft.fft2(picture - picture.mean())) ** 2
    half = power[:, : power.shape[1] // 2 + 1]
    row, column = np.unravel_index(half.argmax(), half.shape)
    share = power[row, column] * 2 / power.sum()  # and its mirror image
    return (int(row) if row <= len(power) // 2 else int(row) - len(power), int(column)), share


def test_each_filter_is_scaled_by_its_own_largest_weight_with_zero_at_grey():
    weight = np.zeros((3, 1, 2, 3))
    weight[0, 0] = [[1, -1, 0.5], [0, 0.25, -0.5]]
    weight[1, 0, 0, 0] = -20
    result = filters(weight)
    assert result.layer == "stem"
    assert result.filters[0, :, :, 0].tolist() == [[255, 1, 192], [128, 160, 64]]
    assert result.filters[1, :, :, 0].tolist() == [[1, 128, 128], [128, 128, 128]]
    assert (result.filters[2] == 128).all()
    np.testing.assert_allclose(result.norms, [np.sqrt(2.5625), 20, 0], rtol=1e-6)
    np.testing.assert_array_equal(result.weights, weight.transpose(0, 2, 3, 1).astype(np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_one_application_is_a_circular_correlation_painted_back(channels):
    weight = np.random.default_rng(0).normal(size=(1, channels, 3, 5))
    result = filters(weight, limit=1, size=16)
    noise = torch.rand((channels, 16, 16), generator=torch.Generator().manual_seed(0)).double().numpy()
    out, back = np.zeros((16, 16)), np.zeros((channels, 16, 16))
    for c, i, j in np.ndindex(channels, 3, 5):
        out += weight[0, c, i, j] * np.roll(noise[c], (1 - i, 2 - j), (0, 1))
    for c, i, j in np.ndindex(channels, 3, 5):
        back[c] += weight[0, c, i, j] * np.roll(out, (i - 1, j - 2), (0, 1))
    back -= back.mean((1, 2), keepdims=True)
    expected = np.rint(128 + 127 * back / np.abs(back).max()).transpose(1, 2, 0)
    assert np.abs(result.responses[0].astype(int) - expected).max() <= 1
    assert result.steps.tolist() == [0]


@pytest.mark.parametrize("turns", [(0, 8), (8, 0), (6, 6), (-6, 6)])
def test_an_oriented_filter_settles_to_stripes_of_its_orientation(turns):
    result = filters(grating(32, *turns)[None, None, :9, :9], size=32, limit=20000, tolerance=1e-5)
    found, share = strongest(result.responses[0, :, :, 0].astype(float))
    mirrored = tuple(-t for t in turns)
    assert min(np.abs(np.subtract(found, t)).max() for t in (turns, mirrored)) <= 1
    assert share > 0.9
    assert result.steps[0] > 0


def test_colours_stay_together():
    stripes = grating(16, 0, 4)[:4, :4]
    weight = np.stack([np.stack([stripes] * 3), np.stack([stripes, -stripes, 0 * stripes])])
    grey, opponent = filters(weight, size=16, limit=5000).responses.astype(float) - 128
    assert np.abs(grey[..., 0] - grey[..., 2]).max() <= 1
    assert np.abs(opponent[..., 0] + opponent[..., 1]).max() <= 1
    assert (opponent[..., 2] == 0).all()


def test_a_filter_of_zeros_and_one_that_only_averages_are_flat_or_settle():
    result = filters(np.zeros((1, 3, 5, 5)))
    assert (result.responses == 128).all()
    assert result.steps.tolist() == [0]
    assert not filters(np.full((1, 1, 16, 16), 1.0), size=16).responses.std()


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others():
    weight = np.random.default_rng(0).normal(size=(2, 3, 5, 5))
    one, two, other = (filters(weight, seed=seed).responses for seed in (3, 3, 4))
    assert (one == two).all()
    assert (one != other).any()
    assert one.shape == (2, 64, 64, 3)


def test_layers_that_make_no_picture_are_refused():
    weight = np.ones((5, 3, 3, 3))
    assert filters(weight, ["stem"]).layer == "stem"
    with pytest.raises(BadInput, match="takes 5 channels; only 1 or 3"):
        filters(weight, ["next"])
    with pytest.raises(BadInput, match="one layer, not 2"):
        filters(weight, ["stem", "next"])
    table = Model(zoo.seeded(zoo.NETWORKS["table"][0]), InputContract("array", (7,)))
    with pytest.raises(CannotRun, match="no convolution"):
        Filters().run(Request(table))
    with pytest.raises(BadInput, match="is a Linear"):
        Filters().run(Request(table, layers=["0"]))

"""RISE against its formula and against the masks of the authors' program."""

import math

import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch import nn

import penlight
import zoo
from penlight.errors import BadOption
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.explain import rise
from penlight.techniques.explain.rise import Cells, Rise, drawn_up, draws


@pytest.fixture
def model():
    def make():
        return nn.Sequential(
            nn.Conv2d(3, 6, 5, padding=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(3),
            nn.Flatten(),
            nn.Linear(54, 4),
        )

    return Model(zoo.seeded(make), InputContract("image", (3, 20, 31), (0.4,), (0.3,)))


@pytest.fixture
def picture():
    return np.random.default_rng(0).random((3, 20, 31), dtype=np.float32)


def noted(monkeypatch):
    """The masks that are drawn, as they are drawn."""
    kept = []
    real = rise.drawn_up

    def remember(cells, size):
        kept.append(real(cells, size))
        return kept[-1]

    monkeypatch.setattr(rise, "drawn_up", remember)
    return kept


@pytest.mark.parametrize(("sampling", "chance"), [("paired", 0.5), ("bernoulli", 0.5), ("bernoulli", 0.3)])
def test_the_map_is_the_mean_of_the_masks_weighted_by_the_answers(monkeypatch, model, picture, sampling, chance):
    kept = noted(monkeypatch)
    method = Rise(samples=150, grid=4, sampling=sampling, chance=chance)
    result = method.run(Request(model, targets=("class:2",), input=picture))
    masks = torch.cat(kept).double().numpy()
    assert masks.shape == (150, 20, 31)
    seen = masks[:, None] * ((picture - 0.4) / 0.3)
    with torch.no_grad():
        answers = model.network.eval()(torch.from_numpy(seen.astype(np.float32))).softmax(1)[:, 2].double().numpy()
    expected = (answers[:, None, None] * masks).sum(0) / (150 * chance)
    np.testing.assert_allclose(result.values, expected, rtol=1e-5)
    assert not result.signed
    assert result.evidence["samples"] == 150
    assert result.evidence["mean through masks"] == pytest.approx(answers.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("size", "grid", "shift"), [((20, 31), 4, (3, 7)), ((28, 28), 7, (0, 2)), ((30, 45), 7, (4, 6))]
)
def test_masks_are_those_of_the_authors(size, grid, shift):
    opened = np.random.default_rng(1).random((grid, grid)) < 0.5
    cell = [math.ceil(n / grid) for n in size]
    large = resize(
        opened.astype(np.float32), [(grid + 1) * n for n in cell], order=1, mode="reflect", anti_aliasing=False
    )
    expected = large[shift[0] : shift[0] + size[0], shift[1] : shift[1] + size[1]]
    np.testing.assert_allclose(drawn_up([Cells(opened, shift)], size)[0].numpy(), expected, atol=1e-5)


def test_pairs_are_complements_and_every_shift_is_drawn():
    stream = draws((20, 31), 4, 0.3, True, np.random.default_rng(0))
    cells = [next(stream) for _ in range(800)]
    masks = drawn_up(cells, (20, 31)).numpy()
    np.testing.assert_allclose(masks[::2] + masks[1::2], 1, atol=1e-6)
    assert {one.shift[0] for one in cells} == set(range(5))
    assert {one.shift[1] for one in cells} == set(range(8))
    assert np.mean([one.open for one in cells[::2]]) == pytest.approx(0.3, abs=0.02)


def test_pairs_come_nearer_than_masks_by_themselves(model, picture):
    def errors(sampling):
        maps = [
            Rise(samples=200, grid=4, sampling=sampling)
            .run(Request(model, targets=("class:1",), input=picture, seed=n))
            .values
            for n in range(6)
        ]
        return np.var(maps, axis=0, ddof=1).mean()

    assert errors("paired") < 0.5 * errors("bernoulli")


def test_it_ends_when_the_ranking_is_stable_and_says_when_it_is_not(model, picture):
    request = Request(model, targets=("class:1",), input=picture)
    free = Rise(grid=3).run(request)
    assert free.evidence["stability (tau)"] >= 0.8
    assert 36 <= free.evidence["samples"] < 4000
    assert not free.notes
    few = Rise(samples=20).run(request)
    assert few.evidence["samples"] == 20
    assert "not stable after 20 samples" in few.notes[0]
    again, other = (
        Rise(grid=3).run(request),
        Rise(grid=3).run(Request(model, targets=("class:1",), input=picture, seed=1)),
    )
    np.testing.assert_array_equal(free.values, again.values)
    assert not np.array_equal(free.values, other.values)


def test_it_finds_where_the_network_looks():
    class Corner(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1, bias=False)
            self.conv.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)

        def forward(self, x):
            return self.conv(x[:, :, :8, :8]).mean((2, 3)) * 4

    model = Model(Corner(), InputContract("image", (1, 24, 24)))
    result = Rise(samples=400, grid=3).run(Request(model, targets=("class:0",), input=np.ones((1, 24, 24), np.float32)))
    inside, outside = result.values[:8, :8].mean(), result.values[12:, 12:].mean()
    assert inside > outside + 0.04
    place = np.unravel_index(result.values.argmax(), (24, 24))
    assert max(place) < 8


def test_signals_scores_and_units_of_maps(picture):
    signal = penlight.load(zoo.seeded(zoo.Signal), example=torch.zeros(1, 2, 40))
    x = np.random.default_rng(0).random((2, 40), dtype=np.float32)
    result = Rise(samples=64).run(Request(signal, targets=("class:1",), input=x))
    assert result.values.shape == (40,)
    scores = Rise(samples=64, of="score", fill="mean").run(Request(signal, targets=("class:2",), input=x))
    assert scores.signed == bool((scores.values < 0).any())
    unit = Rise(samples=64).run(Request(signal, targets=("conv2:1@3",), input=x))
    assert unit.target.unit == "conv2:1@3"


def test_a_row_has_no_places(model):
    row = penlight.load(zoo.seeded(zoo.NETWORKS["table"][0]), example=torch.zeros(1, 7))
    with pytest.raises(
        BadOption, match="rise cannot explain .* its masks are for pictures and signals; use lime or kernel-shap"
    ):
        Rise().run(Request(row, targets=("class:0",), input=np.ones(7, np.float32)))
    with pytest.raises(BadOption, match="samples takes 0 .* or 10 and more, not 3"):
        Rise(samples=3).run(Request(model, targets=("class:0",), input=np.ones((3, 20, 31), np.float32)))

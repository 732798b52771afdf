"""`deepdream` against the loop of the notebook written out in NumPy and SciPy, and what it does with pictures of any kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import affine_transform
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadInput, BadOption
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.visualize.methods.deepdream import DeepDream, default_layer, fitted, zoomed
from penlight.techniques.visualize.schedule import stream

MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.2, 0.3)


class Free(nn.Module):
    """Runs on pictures of at least 12 pixels; a map, and two classes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.deep = nn.Conv2d(5, 6, 9)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(F.relu(self.deep(F.relu(self.conv(x)))).mean((2, 3)))


class Fixed(nn.Module):
    """Runs on pictures of 16 × 16 alone, and says so early."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.fc = nn.Linear(5 * 14 * 14, 2)

    def forward(self, x):
        if x.shape[2:] != (16, 16):
            raise ValueError("16 × 16 only")
        return self.fc(F.relu(self.conv(x)).flatten(1))


def opened(make, side=16, **options):
    contract = InputContract("image", (3, side, side), MEAN, STD)
    return Model(zoo.seeded(make).eval(), contract, **options)


def photo(height=20, width=30, seed=0):
    """Smooth colours (H, W, 3) uint8."""
    waves = torch.rand((1, 3, 4, 5), generator=torch.Generator().manual_seed(seed))
    grown = F.interpolate(waves, (height, width), mode="bilinear")[0]
    return (grown * 255).byte().permute(1, 2, 0).numpy()


def dream(model, *targets, seed=0, frames=0, pictures=(), progress=lambda done, of: None, **options):
    asked = Request(model, targets=targets, seed=seed, frames=frames, pictures=dict(pictures), progress=progress)
    return DeepDream(**options).run(asked)


def gradient(model, path, picture, diff):
    """By plain torch: of the layer's answer along `diff(answer)`, for a picture (C, H, W) of 255, in its own units."""
    x = torch.from_numpy(picture).float()[None].requires_grad_(True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    seen = (x / 255 - mean) / std
    modules = dict(model.network.named_modules())
    h = modules["conv"](seen)
    if path == "deep":
        h = modules["deep"](F.relu(h))
    (found,) = torch.autograd.grad(h, x, diff(h.detach()))
    return found[0].numpy()


class TestTheNotebook:
    """g = ∂ ½‖a‖² / ∂x; roll, step 1.5 / mean|g| · g, roll back, clip; octaves from small to large with the detail carried up."""

    def step(self, model, path, x, number, seed, jitter, diff=lambda a: a):
        down, right = (
            torch.randint(-jitter, jitter + 1, (2,), generator=stream(seed, "step", number)).tolist()
            if jitter
            else (0, 0)
        )
        g = gradient(model, path, np.roll(x, (down, right), (1, 2)), diff)
        g = np.roll(g, (-down, -right), (1, 2))
        return np.clip(x + 1.5 / np.abs(g).mean() * g, 0, 255)

    def enlarged(self, x, size):
        shrinks = size[0] < x.shape[1]
        found = F.interpolate(
            torch.from_numpy(x)[None].float(), size, mode="bilinear", antialias=shrinks, align_corners=False
        )
        return found[0].numpy()

    def test_steps_of_one_octave(self):
        model, picture = opened(Free, 48), photo(48, 48)
        found = dream(model, "layer(deep)", seed=3, pictures={"picture": picture}, octave_n=1, steps=4)
        x = picture.transpose(2, 0, 1).astype(np.float32)
        jitter = round(32 * 48 / 224)
        assert jitter == 7
        for number in range(4):
            x = self.step(model, "deep", x, number, 3, jitter)
        assert np.abs(x - picture.transpose(2, 0, 1)).mean() > 2
        np.testing.assert_allclose(found.images[0, 0].transpose(2, 0, 1), x, atol=1.01)

    def test_octaves(self):
        model, picture = opened(Free, 48), photo(48, 40)
        found = dream(model, "layer(deep)", seed=1, pictures={"picture": picture}, octave_n=3, steps=6, jitter=0)
        base = picture.transpose(2, 0, 1).astype(np.float32)
        sizes = [(round(48 / 1.4**2), round(40 / 1.4**2)), (round(48 / 1.4), round(40 / 1.4)), (48, 40)]
        detail, number = np.zeros((3, *sizes[0]), np.float32), 0
        for size in sizes:
            octave = self.enlarged(base, size)
            x = octave + self.enlarged(detail, size)
            for _ in range(2):
                x = self.step(model, "deep", x, number, 1, 0)
                number += 1
            detail = x - octave
        np.testing.assert_allclose(found.images[0, 0].transpose(2, 0, 1), x, atol=1.01)

    def test_a_guide_leads_every_position_to_the_feature_it_is_most_like(self):
        model, picture, guide = opened(Free, 16), photo(16, 16), photo(16, 16, seed=8)
        found = dream(
            model, "layer(deep)", pictures={"picture": picture, "guide": guide}, octave_n=1, steps=1, jitter=0
        )
        mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
        modules = dict(model.network.named_modules())
        with torch.no_grad():
            seen = (torch.from_numpy(guide).permute(2, 0, 1) / 255 - mean) / std
            y = modules["deep"](F.relu(modules["conv"](seen[None])))[0].flatten(1).numpy()

        def diff(answer):  # objective_guide of the notebook
            a = answer[0].flatten(1).numpy()
            return torch.from_numpy(y[:, (a.T @ y).argmax(1)]).reshape(answer.shape)

        x = self.step(model, "deep", picture.transpose(2, 0, 1).astype(np.float32), 0, 0, 0, diff)
        np.testing.assert_allclose(found.images[0, 0].transpose(2, 0, 1), x, atol=1.01)
        plain = dream(model, "layer(deep)", pictures={"picture": picture}, octave_n=1, steps=1, jitter=0)
        assert (plain.images != found.images).any()

    def test_a_journey_zooms_in_as_published(self):
        """nd.affine_transform(frame, [1-s,1-s,1], [h*s/2,w*s/2,0], order=1)"""
        frame, s = photo(23, 31).astype(np.float64), 0.05
        h, w = frame.shape[:2]
        wanted = affine_transform(frame, [1 - s, 1 - s, 1], [h * s / 2, w * s / 2, 0], order=1)
        found = zoomed(torch.from_numpy(frame).permute(2, 0, 1), s).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_defaults_are_the_published_ones():
    how = DeepDream()
    assert (how.rate, how.octave_n, how.octave_scale, how.jitter, how.zoom_scale) == (1.5, 4, 1.4, 32, 0.05)
    seen = []
    dream(opened(Free, 48), "layer(conv)", progress=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (40, 40)


def test_journey_is_the_dream_zoomed_and_dreamt_again():
    model, picture = opened(Free), photo()
    steps = []
    result = dream(
        model, "layer(deep)", seed=2, pictures={"picture": picture}, zoom=3, steps=4, octave_n=1,
        progress=lambda done, of: steps.append((done, of)),
    )  # fmt: skip
    assert result.film.shape == (1, 1, 3, 20, 30, 3)
    np.testing.assert_array_equal(result.film[0, 0, 0], result.images[0, 0])
    for frame in (1, 2):
        before = torch.from_numpy(result.film[0, 0, frame - 1]).permute(2, 0, 1).float()
        start = zoomed(before, 0.05).round().byte().permute(1, 2, 0).numpy()
        again = dream(model, "layer(deep)", seed=2 + frame, pictures={"picture": start}, steps=4, octave_n=1)
        assert np.abs(again.images[0, 0].astype(int) - result.film[0, 0, frame]).mean() < 0.6
        assert np.abs(result.film[0, 0, frame].astype(int) - result.film[0, 0, frame - 1]).mean() > 2
    assert steps[-1] == (12, 12)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_film_of_the_dreaming_grows_with_the_octaves():
    model, picture = opened(Free), photo(40, 60)
    film = dream(model, "layer(deep)", pictures={"picture": picture}, frames=5).film[0, 0]
    assert film.shape == (5, 40, 60, 3)
    np.testing.assert_array_equal(film[0], picture)
    # an early frame is the whole small octave enlarged, not a corner of it
    assert np.abs(film[1].astype(int) - picture).mean() < 25


class TestPictures:
    def test_of_any_size_are_dreamt_at_their_own(self, tmp_path):
        Image.fromarray(photo(40, 64)).save(tmp_path / "a.png")
        result = dream(opened(Free), "layer(deep)", picture=str(tmp_path / "a.png"), steps=4)
        assert result.images.shape == (1, 1, 40, 64, 3)
        assert result.activations[0, 0] > result.starts[0, 0]
        assert not result.notes
        long = dream(opened(Free), "layer(deep)", picture=str(tmp_path / "a.png"), steps=4, longest=32)
        assert long.images.shape == (1, 1, 20, 32, 3)
        short = dream(opened(Free), "layer(deep)", picture=str(tmp_path / "a.png"), steps=4, size=30)
        assert short.images.shape == (1, 1, 30, 48, 3)

    def test_are_turned_as_they_are_looked_at(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(photo(20, 30)).save(tmp_path / "a.jpg", exif=exif)
        result = dream(opened(Free), "layer(deep)", picture=str(tmp_path / "a.jpg"), steps=1)
        assert result.images.shape == (1, 1, 30, 20, 3)

    def test_are_fitted_where_the_network_takes_one_size(self):
        result = dream(opened(Fixed), "layer(conv)", pictures={"picture": photo(40, 64)}, steps=4)
        assert result.images.shape == (1, 1, 16, 16, 3)
        assert any("16×16" in note for note in result.notes)
        with pytest.raises(BadOption, match="leave out size"):
            dream(opened(Fixed), "layer(conv)", pictures={"picture": photo(40, 64)}, size=30)

    def test_octaves_the_network_does_not_run_on_are_left_out(self):
        steps = []
        dream(opened(Fixed), "layer(conv)", progress=lambda done, of: steps.append(of))
        assert steps[-1] == 40  # all of them at the one size there is

    def test_come_from_the_model_s_own_data(self):
        model = penlight.load("letters")
        result = dream(model, "layer(conv3)", picture="data:3", steps=4)
        start = fitted(model, "data:3", "picture")
        assert result.images.shape == (1, 1, 28, 28, 1)
        assert np.abs(result.images[0, 0].astype(int) - start).mean() < 20
        with pytest.raises(BadInput, match="there is no 99999"):
            dream(model, "layer(conv3)", picture="data:99999")

    def test_that_cannot_be_are_named(self, tmp_path):
        with pytest.raises(BadInput, match="no such file"):
            dream(opened(Free), "layer(deep)", picture=str(tmp_path / "none.png"))
        with pytest.raises(BadInput, match="uint8"):
            dream(opened(Free), "layer(deep)", pictures={"picture": np.zeros((20, 20, 3))})

    def test_seeds_go_different_ways_from_one_picture(self):
        result = dream(opened(Free), "layer(deep)", pictures={"picture": photo()}, seeds=2, steps=8)
        assert (result.images[0, 0] != result.images[0, 1]).any()


def test_a_class_is_climbed_and_not_its_square():
    """A negative score: half its square would grow by falling."""
    model = opened(Free)
    with torch.no_grad():
        model.network.fc.bias.fill_(-3.0)
    result = dream(model, "fc:0", steps=20)
    assert result.starts[0, 0] < 0
    assert result.activations[0, 0] > result.starts[0, 0] + 0.01


def test_a_guide_leads_layers_only():
    with pytest.raises(BadOption, match="layer\\(fc\\)"):
        dream(opened(Free), "fc:0", pictures={"guide": photo()})


def test_batches_do_not_matter():
    model = opened(Free)
    both = dream(model, "deep:0", "deep:1", steps=8)
    np.testing.assert_array_equal(both.images[1], dream(model, "deep:1", steps=8).images[0])


def test_default_layer_is_a_map_two_thirds_in():
    assert default_layer(penlight.load("letters")) == "conv3"
    assert default_layer(opened(Free)) == "deep"
    table = Model(zoo.seeded(zoo.NETWORKS["table"][0]), InputContract("array", (7,)))
    assert default_layer(table) in table.layers

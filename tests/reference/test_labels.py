"""Scores of classes, twins, drawn concepts and words, against counts by hand."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from penlight.errors import BadInput
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.results import LayerSurvey, load_result
from penlight.results.labels import CHANCE, Labels
from penlight.techniques.contract import Request
from penlight.techniques.survey import scores, twins
from penlight.techniques.survey.merge import merge
from penlight.techniques.survey.stream import Stream


class Passes(nn.Module):
    """Neurons that answer with chosen pixels."""

    def __init__(self, units):
        super().__init__()
        self.fc = nn.Linear(16, units, bias=False)
        self.fc.weight.data = torch.eye(16)[:units]
        self.out = nn.ReLU()

    def forward(self, x):
        return self.out(self.fc(x.flatten(1)))


class Table:
    """Data of activations: input n gives unit u the value values[n, u]."""

    name = "table"

    def __init__(self, values, truth, classes):
        self.values = np.zeros((len(values), 16), np.float32)
        self.values[:, : values.shape[1]] = values
        self.truth, self.classes = truth, tuple(classes)

    def __len__(self):
        return len(self.values)

    def label(self, index):
        return f"input {index}", self.truth[index]

    def read(self, index):
        return self.values[index]

    def fingerprint(self):
        return "table"


def survey(values, truth, classes, **options):
    model = Model(Passes(values.shape[1]), InputContract("array", (16,)))
    return Stream(**options).run(Request(model, layers=["fc"], data=Table(values, truth, classes)))


def by_pairs(values, truth, number):
    """The area by counting pairs."""
    own = values[[t == number for t in truth]]
    others = values[[t is not None and t != number for t in truth]]
    return np.mean([(a > b) + 0.5 * (a == b) for a in own for b in others]) if len(own) and len(others) else np.nan


def sample(count=60, seed=0):
    rng = np.random.default_rng(seed)
    truth = [None if n % 11 == 3 else int(rng.integers(3)) for n in range(count)]
    values = rng.integers(-6, 7, (count, 4)).astype(np.float32) / 4  # many ties
    values[:, 0] += [2.0 * (t == 1) for t in truth]
    values[:, 3] = 0
    return values, truth, ["a", "b", "c", "nobody"]


def test_areas_are_counted_by_pairs_with_ties_half():
    values, truth, classes = sample()
    result = survey(values, truth, classes)
    assert result.scored == "exact"
    rows = result.layers["fc"]
    for u, k in itertools.product(range(4), range(4)):
        np.testing.assert_allclose(rows.auroc[u, k], by_pairs(values[:, u], truth, k), rtol=1e-6)
    assert (rows.auroc[3, :3] == 0.5).all()
    assert np.isnan(rows.auroc[:, 3]).all()
    assert (rows.auroc_error[:, :3] == 0).all()


def test_z_is_that_of_the_rank_test():
    stats = pytest.importorskip("scipy.stats")
    values, truth, classes = sample(200)
    rows = survey(values, truth, classes).layers["fc"]
    for u, k in itertools.product(range(3), range(3)):
        own = values[[t == k for t in truth], u]
        others = values[[t is not None and t != k for t in truth], u]
        p = stats.mannwhitneyu(own, others, method="asymptotic", use_continuity=False).pvalue
        np.testing.assert_allclose(2 * stats.norm.sf(abs(rows.auroc_z[u, k])), p, rtol=1e-4)


def test_histograms_are_as_far_off_as_they_say_at_most(monkeypatch):
    rng = np.random.default_rng(1)
    truth = rng.integers(3, size=400).tolist()
    values = (rng.normal(size=(400, 4)) + np.outer(np.equal(truth, 2), [0, 1, 3, 0.2])).astype(np.float32)
    exact = survey(values, truth, "abc").layers["fc"]
    monkeypatch.setattr(scores, "_MB", 1000)  # memory in kB
    result = survey(values, truth, "abc", score_memory=5)
    assert "more than 5" in result.scored
    assert len(result.labels) == 0
    monkeypatch.setattr(scores, "way", None)
    from penlight.techniques.survey import stream

    monkeypatch.setattr(stream, "way", lambda *_: scores.BINNED)
    result = survey(values, truth, "abc")
    rows = result.layers["fc"]
    assert result.scored == "histogram"
    assert 0 < rows.auroc_error.max() < 0.02
    assert (np.abs(rows.auroc - exact.auroc) <= rows.auroc_error + 1e-6).all()
    assert (rows.auroc != exact.auroc).any()
    assert "from histograms, to ±0.0" in result.labels[0].how


def test_the_way_of_scoring_keeps_to_the_memory():
    assert scores.way(1000, 1000, 10, 4) == "exact"
    assert scores.way(10**9, 100, 10, 4) == "histogram"
    assert scores.way(10**9, 10**6, 10, 4).startswith("1,000,000 units and 10 classes need ")
    assert scores.way(10, 10, 0, 4) == "the data has no labels"
    assert scores.way(10, 10, 3, 0) == "not asked for"


def test_labels_name_what_stands_out_and_what_does_not():
    rng = np.random.default_rng(2)
    truth = (np.arange(300) % 3).tolist()
    values = rng.normal(size=(300, 3)).astype(np.float32)
    values[:, 1] += [6 * (t == 2) for t in truth]
    values[:, 2] += [-9 * (t == 0) for t in truth]
    labels = survey(values, truth, ["C", "G", "I"]).labels
    assert isinstance(labels, Labels)
    assert labels.tested == 9
    assert [row.unit for row in labels] == ["fc:0", "fc:1", "fc:2"]
    assert labels[0].label is None
    assert labels[0].next[0][1] == labels[0].score
    assert str(labels.of("fc:1")).startswith("I, AUROC 1.00; next: ")
    assert labels.of("fc:1").how == "AUROC over 300 inputs, exact"
    assert str(labels.of("fc:2")).endswith("; not C, 0.00")
    assert labels.of("fc:9") is None


def test_of_noise_few_units_are_labelled():
    """At 5 % over all pairs: of 40 tables of pure noise some 2 hold a label."""
    found = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = survey(
            rng.normal(size=(120, 16)).astype(np.float32), rng.integers(4, size=120).tolist(), "abcd"
        ).labels
        found += any(row.label is not None or row.against for row in labels)
    assert found <= 40 * CHANCE * 3


@pytest.mark.parametrize("how", ["exact", "histogram"])
def test_shards_give_the_labels_of_the_whole(monkeypatch, tmp_path, how):
    from penlight.techniques.survey import stream

    monkeypatch.setattr(stream, "way", lambda *_: how)
    values, truth, classes = sample(90)
    whole = survey(values, truth, classes)
    cuts = [(0, 20), (20, 33), (33, 90)]
    shards = [survey(values, truth, classes, start=a, stop=b) for a, b in cuts]
    shards = [load_result(shard.save(tmp_path / str(n))) for n, shard in enumerate(shards)]
    for found in (merge(shards[::-1]), merge([merge(shards[:2]), shards[2]])):
        for name in LayerSurvey.__dataclass_fields__:
            one, other = getattr(found.layers["fc"], name), getattr(whole.layers["fc"], name)
            np.testing.assert_allclose(one, other, rtol=1e-12, err_msg=name)
        assert list(found.labels) == list(whole.labels)
        assert not len(found.peak_class)
    assert merge(shards[:2]).layers["fc"].auroc.shape == (4, 4)


def test_the_table_survives_json(tmp_path):
    values, truth, classes = sample()
    result = survey(values, truth, classes, bottom=2)
    told = json.loads(load_result(result.save(tmp_path / "r")).to_json())
    assert told["tested"] == 12
    assert told["units"][0]["label"]["label"] == "b"
    assert [e["activation"] for e in told["units"][0]["bottom"]] == sorted(values[:, 0].tolist())[:2]


# ------------------------------------------------------------------ the bottom


def test_the_bottom_is_the_left_end_of_a_sort():
    rng = np.random.default_rng(0)
    values = rng.integers(-9, 9, (70, 3)).astype(np.float32)
    result = survey(values, [None] * 70, (), bottom=5, top=4, batch=7)
    for u in range(3):
        order = sorted(range(70), key=lambda n: (values[n, u], n))[:5]
        assert [(e.index, e.activation) for e in result.bottom(f"fc:{u}")] == [(n, values[n, u]) for n in order]
        assert result.bottom(f"fc:{u}")[0].activation == result.row(f"fc:{u}")["min"]
    assert survey(values, [None] * 70, ()).bottom("fc:0") == []


class Spots(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.conv.weight.data = torch.stack([torch.ones(1, 3, 3), -torch.ones(1, 3, 3)])

    def forward(self, x):
        return self.conv(x).amax((2, 3))


def test_bottom_examples_of_maps_have_places_and_boxes_and_merge():
    rng = np.random.default_rng(3)
    inputs = rng.random((150, 1, 9, 11), np.float32)
    inputs[140:] *= 0.2  # late ones stand at the bottom
    model = Model(Spots(), InputContract("image", (1, 9, 11)))
    data = open_data(inputs, model.contract)

    def run(**options):
        return Stream(top=2, bottom=4, **options).run(Request(model, layers=["conv"], data=data))

    whole = run()
    windows = np.lib.stride_tricks.sliding_window_view(inputs[:, 0], (3, 3), (1, 2)).sum((3, 4))
    for unit, maps in (("conv:0", windows), ("conv:1", -windows)):
        peaks = maps.reshape(150, -1).max(1)
        found = whole.bottom(unit)
        assert [e.index for e in found] == np.argsort(peaks, kind="stable")[:4].tolist()
        for e in found:
            y, x = np.unravel_index(maps[e.index].argmax(), maps.shape[1:])
            assert e.position == (y, x)
            assert e.box == (y, x, y + 3, x + 3)
            assert e.activation == pytest.approx(peaks[e.index], rel=1e-5)
    parts = [run(start=a, stop=b) for a, b in ((21, 150), (0, 21))]
    for name in LayerSurvey.__dataclass_fields__:
        found, other = (getattr(r.layers["conv"], name) for r in (merge(parts), whole))
        np.testing.assert_allclose(found, other, rtol=1e-12, err_msg=name)


# ------------------------------------------------------------------ twins


def photograph(rng, side=96):
    """Something with large and small shapes, as photographs have."""
    parts = [Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)) for n in (3, 6, 12, 48)]
    layers = [np.asarray(p.resize((side, side), Image.Resampling.BICUBIC), np.float32) for p in parts]
    mixed = sum(w * one for w, one in zip((0.4, 0.3, 0.2, 0.1), layers, strict=True))
    return Image.fromarray(np.clip((mixed - 128) * 2 + 128, 0, 255).astype(np.uint8))


def stored(image, side=96):
    return np.asarray(image.convert("RGB").resize((side, side)), np.uint8).transpose(2, 0, 1)


def test_the_same_picture_stored_again_is_a_twin_and_another_is_not(tmp_path):
    rng = np.random.default_rng(0)
    originals = [photograph(rng) for _ in range(30)]
    marks, pictures = {}, []
    for n, one in enumerate(originals):
        one.save(tmp_path / "a.jpg", quality=40)
        again = [Image.open(tmp_path / "a.jpg"), one.resize((60, 60)), one.crop((1, 1, 95, 95))]
        pictures += [stored(one), *map(stored, again)]
        marks |= {4 * n + m: twins.mark(picture) for m, picture in enumerate(pictures[-4:])}
    found = twins.pairs(marks)
    groups = {n: {*range(n // 4 * 4, n // 4 * 4 + 4)} - {n} for n in range(120)}
    assert found == groups


def test_pictures_of_one_colour_are_twins_by_colour_only():
    flat = {n: twins.mark(np.full((3, 80, 80), 8 * n, np.uint8)) for n in range(9)}
    flat |= {90: twins.mark(np.full((3, 80, 80), 17, np.uint8))}
    assert twins.pairs(flat) == {2: {90}, 90: {2}}


def test_small_pictures_are_twins_only_when_equal():
    rng = np.random.default_rng(0)
    one = rng.random((1, 28, 28)).astype(np.float32)
    other = one.copy()
    other[0, 5, 5] = 1 - other[0, 5, 5]
    assert twins.pairs({3: twins.mark(one), 5: twins.mark(other), 8: twins.mark(one.copy())}) == {3: {8}, 8: {3}}
    assert twins.pairs({}) == {}


def by_hand(order, count, same):
    """Examples shown of inputs in order, where same[i] names the picture that input i shows."""
    shown = []
    for i in order:
        if same[i] not in [same[j] for j in shown] and len(shown) < count:
            shown.append(i)
    return shown


@pytest.mark.parametrize("seed", range(4))
def test_rows_stay_full_of_different_pictures_and_shards_agree(seed, tmp_path):
    rng = np.random.default_rng(seed)
    different = rng.integers(0, 256, (25, 1, 9, 11), np.uint8)
    same = rng.integers(0, 25, 70)
    model = Model(Spots(), InputContract("image", (1, 9, 11)))
    data = open_data(different[same], model.contract)

    def run(**options):
        return Stream(top=4, bottom=3, **options).run(Request(model, layers=["conv"], data=data))

    whole, plain = run(), run(deduplicate=False)
    everything = Stream(top=70, bottom=70, deduplicate=False).run(Request(model, layers=["conv"], data=data))
    for unit in ("conv:0", "conv:1"):
        order = [e.index for e in everything.examples(unit)]
        assert [e.index for e in plain.examples(unit)] == order[:4]
        assert [e.index for e in whole.examples(unit)] == by_hand(order[:8], 4, same)
        least = [e.index for e in everything.bottom(unit)]
        assert [e.index for e in whole.bottom(unit)] == by_hand(least[:6], 3, same)
        shown = [e.index for e in whole.examples(unit)]
        told = whole.twins(unit)
        assert {t.input for t in told} == {i for i in order[:8] if i not in shown and same[i] in same[shown]}
        assert all(same[t.input] == same[t.of] and t.name == whole.names[t.input] for t in told)
    cuts = [0, *sorted(rng.choice(np.arange(1, 70), 3, replace=False).tolist()), 70]
    parts = [load_result(run(start=a, stop=b).save(tmp_path / str(a))) for a, b in itertools.pairwise(cuts)]
    for found in (merge(parts[::-1]), merge([merge(parts[1:3]), parts[0], parts[3]])):
        for name in LayerSurvey.__dataclass_fields__:
            one, other = getattr(found.layers["conv"], name), getattr(whole.layers["conv"], name)
            np.testing.assert_allclose(one, other, rtol=1e-12, err_msg=name)
        assert found.names == whole.names
        assert found.marks.keys() == whole.marks.keys()


def test_old_shards_are_refused():
    from dataclasses import replace

    values, truth, classes = sample(20)
    parts = [survey(values, truth, classes, start=a, stop=b) for a, b in ((0, 9), (9, 20))]
    with pytest.raises(BadInput, match="earlier version"):
        merge([replace(parts[0], size=0), parts[1]])


# ------------------------------------------------------------------ drawn concepts


class Colours(nn.Module):
    """Units that see red, green, nothing but noise, and red at half the size."""

    def __init__(self):
        super().__init__()
        self.look = nn.Conv2d(3, 3, 1, bias=False)
        self.look.weight.data = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])[:, :, None, None]
        self.small = nn.AvgPool2d(2)

    def forward(self, x):
        return self.small(self.look(x)).mean((2, 3))


def scenes(count=12, side=32, seed=0):
    """Black pictures with a red and a green rectangle, and masks that name them 3 and 7."""
    rng = np.random.default_rng(seed)
    images, masks = rng.integers(0, 20, (count, 3, side, side), np.uint8), np.zeros((count, side, side), np.uint8)
    for image, mask in zip(images, masks, strict=True):
        for channel, number, left in ((0, 3, 0), (1, 7, side // 2)):
            y, x = rng.integers(0, side // 2 - 4, 2) // 2 * 2 + (0, left)
            image[:, y : y + 4, x : x + 4] = 0
            image[channel, y : y + 4, x : x + 4] = 250
            mask[y : y + 4, x : x + 4] = number
    return images, masks


def dissect(tmp_path, images, masks, layers=("look",), **options):
    from penlight.techniques.survey.dissect import Dissect

    model = Model(Colours(), InputContract("image", images.shape[1:]))
    np.savez(tmp_path / "masks.npz", masks=masks, **options.pop("more", {}))
    asked = {"masks": str(tmp_path / "masks.npz"), "quantile": 16 / 32**2, **options}
    return Dissect(**asked).run(Request(model, layers=layers, data=open_data(images, model.contract)))


def test_planted_detectors_are_found_with_their_overlap(tmp_path):
    images, masks = scenes()
    names = ["nothing", "x", "y", "red thing", "z", "z", "z", "green thing"]
    result = dissect(tmp_path, images, masks, ("look", "small"), more={"names": names}, batch=5)
    assert result.words == ("red thing", "green thing")
    assert str(result.labels.of("look:0")).startswith("red thing, IoU 1.00; next: green thing, 0.00")
    assert result.labels.of("look:1").label == "green thing"
    assert result.labels.of("look:2").label is None
    assert result.labels.of("small:0").label == "red thing"  # less sharply: its maps are enlarged
    assert 0.4 < result.labels.of("small:0").score < 1
    assert result.detectors("look") == (2, 2)
    assert result.labels.tested == 12
    again = load_result(result.save(tmp_path / "r"))
    assert again.to_dict() == result.to_dict()


@pytest.mark.parametrize("batch", [1, 5])
def test_overlap_is_counted_as_by_hand(tmp_path, batch):
    rng = np.random.default_rng(4)
    images, masks = rng.integers(0, 256, (7, 3, 16, 16), np.uint8), rng.integers(0, 4, (7, 16, 16), np.uint8)
    masks[:, :3] = 255
    result = dissect(tmp_path, images, masks, ("look", "small"), quantile=0.1, batch=batch)
    x = torch.from_numpy(images / 255).float()
    network = Colours()
    for path, maps in (("look", network.look(x)), ("small", network.small(network.look(x)))):
        maps = maps.detach()
        for u in range(3):
            threshold = result.numbers[path]["threshold"][u]
            lower = threshold - abs(threshold) / 64 - 2.0**-12  # the bin's other edge at most
            assert (maps[:, u].numpy() > threshold).mean() <= 0.1 < (maps[:, u].numpy() > lower).mean()
            assert result.numbers[path]["above"][u] == pytest.approx(
                float((maps[:, u] > threshold).float().mean()), abs=2e-3
            )
            on = nn.functional.interpolate(maps[:, u : u + 1], (16, 16), mode="bilinear")[:, 0].numpy() > threshold
            on &= masks != 255
            for word, score in result.ranked(f"{path}:{u}"):
                drawn = masks == int(word)
                assert score == pytest.approx((on & drawn).sum() / (on | drawn).sum(), abs=1e-4)


def test_masks_in_a_folder_are_scaled_and_cut_as_the_pictures_are(tmp_path):
    from penlight.techniques.survey.dissect import Dissect

    rng = np.random.default_rng(0)
    (tmp_path / "pictures" / "a").mkdir(parents=True)
    (tmp_path / "masks" / "a").mkdir(parents=True)
    for n in range(4):
        pixels, mask = np.zeros((60, 90, 3), np.uint8), np.zeros((60, 90), np.uint8)
        y, x = rng.integers(10, 30), rng.integers(20, 50)
        pixels[y : y + 20, x : x + 20, 0], mask[y : y + 20, x : x + 20] = 255, 2
        Image.fromarray(pixels).save(tmp_path / "pictures" / "a" / f"{n}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / "a" / f"{n}.png")
    (tmp_path / "masks" / "names.json").write_text('{"2": "patch"}')
    model = Model(Colours(), InputContract("image", (3, 32, 32)))
    data = open_data(tmp_path / "pictures", model.contract)
    options = {"masks": str(tmp_path / "masks"), "quantile": 0.14}
    result = Dissect(**options).run(Request(model, layers=["look"], data=data))
    assert result.labels.of("look:0").label == "patch"
    assert result.labels.of("look:0").score > 0.8
    (tmp_path / "masks" / "a" / "3.png").unlink()
    with pytest.raises(BadInput, match=r"a/3\.png cannot be read: No such file"):
        Dissect(**options).run(Request(model, layers=["look"], data=data))
    for bad, words in (
        ("", "needs masks"),
        (str(tmp_path / "none"), "no masks at"),
        (str(tmp_path / "x.npz"), "cannot be read as .npz"),
    ):
        with pytest.raises(BadInput, match=words):
            Dissect(masks=bad).run(Request(model, layers=["look"], data=data))
    with pytest.raises(BadInput, match="2 masks, the data 3"):
        dissect(tmp_path, rng.integers(0, 9, (3, 3, 8, 8), np.uint8), np.ones((2, 8, 8), np.uint8))
    with pytest.raises(BadInput, match="name nothing"):
        dissect(tmp_path, rng.integers(0, 9, (3, 3, 8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8))


# ------------------------------------------------------------------ words


WORDS = ["red", "green", "blue"]


def mean_colour(pictures):
    return pictures.reshape(len(pictures), -1, 3).mean(1) + 0.01


def colour_words(words):
    return torch.eye(3)[[WORDS.index(word) for word in words]]


@pytest.mark.parametrize("score", ["soft-wpmi", "mean"])
def test_words_fit_what_excites_a_unit(tmp_path, score):
    from penlight.techniques.survey.clip_labels import ClipLabels

    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (30, 3, 8, 8), np.uint8)
    for n in range(30):
        images[n, n % 3] += 200
    model = Model(Colours(), InputContract("image", (3, 8, 8)))
    asked = Request(model, layers=["look"], data=open_data(images, model.contract))
    result = ClipLabels(mean_colour, colour_words, ",".join(WORDS), score, top=8).run(asked)
    assert [result.labels.of(f"look:{u}").label for u in range(3)] == WORDS
    survey = Stream(top=8).run(asked)
    same = ClipLabels("module:test_labels:mean_colour", "test_labels:colour_words", WORDS, score, top=8)
    from dataclasses import replace

    again = load_result(same.run(replace(asked, earlier=[survey])).save(tmp_path / "r"))
    assert again.ranked("look:1") == result.ranked("look:1")
    assert result.provenance.options["images"] == f"module:{__name__}:mean_colour"
    if score == "mean":
        picture = mean_colour(images[survey.layers["look"].top_index[1]].transpose(0, 2, 3, 1))
        cosine = (picture[:, 1] / np.linalg.norm(picture, axis=1)).mean()
        assert result.labels.of("look:1").score == pytest.approx(cosine, rel=1e-5)


def test_a_constant_unit_gets_no_word():
    from penlight.techniques.survey.clip_labels import ClipLabels

    model = Model(Colours(), InputContract("image", (3, 8, 8)))
    model.network.look.weight.data[1] = 0
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), np.uint8)
    asked = Request(model, layers=["look"], data=open_data(images, model.contract))
    result = ClipLabels(mean_colour, colour_words, WORDS, top=4).run(asked)
    assert [row.label is None for row in result.labels] == [False, True, False]
    assert json.loads(result.to_json())["units"][1]["score"] is None


def test_what_words_lack_is_said():
    from penlight.errors import BadReference
    from penlight.techniques.survey.clip_labels import ClipLabels

    model = Model(Colours(), InputContract("image", (3, 8, 8)))
    asked = Request(model, layers=["look"], data=open_data(np.zeros((2, 3, 8, 8), np.uint8), model.contract))
    for technique, words in (
        (ClipLabels(mean_colour, colour_words, "red"), "at least two words"),
        (ClipLabels(lambda x: np.ones((len(x), 2)), colour_words, "red,blue"), "share one space"),
        (ClipLabels(lambda x: np.ones(3), colour_words, "red,blue"), "gave shape"),
        (ClipLabels(mean_colour, colour_words, "none.txt"), "no words at"),
    ):
        with pytest.raises(BadInput, match=words):
            technique.run(asked)
    with pytest.raises(BadReference, match="takes a callable"):
        ClipLabels("", colour_words, "red,blue").run(asked)
    with pytest.raises(BadReference, match="no Python module 'nowhere'"):
        ClipLabels("module:nowhere:f", colour_words, "red,blue").run(asked)

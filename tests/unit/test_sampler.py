"""Masks, how they are drawn and when drawing ends; cutting inputs into parts; the linear models."""

import importlib.util
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from sklearn.linear_model import Ridge

import penlight
import zoo
from penlight.errors import BadInput, BadOption, CannotRun
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.explain import features, sampler
from penlight.techniques.explain.explanation import Scene, open_scene
from penlight.techniques.explain.features import Features, cut, segmented, squares
from penlight.techniques.explain.kernel_shap import KernelShap
from penlight.techniques.explain.lime import Lime
from penlight.techniques.explain.sampler import (
    Drawn,
    Plan,
    Streams,
    ask,
    balanced,
    batch_size,
    bernoulli,
    binomial,
    collect,
    every,
    mirrored,
    stability,
)
from penlight.techniques.explain.surrogate import constrained, kendall, lengthened, ridge


def some(stream, count):
    return np.array(list(itertools.islice(stream, count)))


@pytest.fixture
def picture():
    """(3, 72, 80) uint8 with blocks of colour."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 240, (3, 3, 4), dtype=np.uint8).repeat(24, 1).repeat(20, 2)
    return blocks + rng.integers(0, 12, blocks.shape, dtype=np.uint8)


@pytest.fixture
def model():
    return Model(zoo.seeded(zoo.InPlace), InputContract("image", (3, 72, 80), (0.5,), (0.25,)))


# draws


@pytest.mark.parametrize("count", [5, 12, 37])
def test_pairs_are_complements_of_every_size_in_its_share(count):
    masks = some(balanced(binomial(count), np.random.default_rng(0)), 640)
    np.testing.assert_array_equal(masks[::2], ~masks[1::2])
    found = np.bincount(masks.sum(1), minlength=count + 1) / 640
    share = binomial(count)
    share[1] += share[0]
    share[-2] += share[-1]
    share[[0, -1]] = 0  # nothing and everything are not drawn
    np.testing.assert_allclose(found, share, atol=0.02)


def test_balance_brings_parts_apart_as_chance_does_not():
    def worst(masks):
        return np.abs(np.corrcoef(masks.T) - np.eye(30)).max()

    ours = some(balanced(binomial(30), np.random.default_rng(0)), 200)
    chance = some(bernoulli(np.full(30, 0.5), np.random.default_rng(0)), 200)
    assert worst(ours) < 0.08 < worst(chance)
    assert np.abs(ours.mean(0) - 0.5).max() == 0


def test_every_mask_of_a_size_is_as_likely_as_any_other():
    share = np.array([0.0, 0, 1, 0, 0])
    drawn = [some(balanced(share, np.random.default_rng(seed)), 6)[::2] for seed in range(700)]
    names, times = np.unique(np.packbits(np.concatenate(drawn), axis=1), return_counts=True)
    assert len(names) == 6
    np.testing.assert_allclose(times / times.sum(), 1 / 6, atol=0.03)


def test_coins_and_mirrored_coins_fall_as_often_as_their_chance():
    chance = np.array([0.1, 0.5, 0.8, 1.0])
    for draw in (bernoulli, mirrored):
        masks = some(draw(chance, np.random.default_rng(0)), 4000)
        np.testing.assert_allclose(masks.mean(0), chance, atol=0.03)
    first, second = masks[::2], masks[1::2]
    np.testing.assert_array_equal(first[:, 1], ~second[:, 1])
    assert not (first[:, 0] & second[:, 0]).any()


def test_every_mask_once_the_whole_first():
    masks = every(4)
    assert masks[0].all()
    assert not masks[-1].any()
    assert len(np.unique(masks, axis=0)) == 16


# when to stop


def noisy(noise, count=20, seed=0):
    """A linear network whose answers have noise, and the number of times it was asked."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=count)
    asked = []

    def evaluate(masks, first):
        assert first == sum(asked)
        asked.append(len(masks))
        return masks @ weights + rng.normal(0, noise, len(masks))

    return evaluate, weights, asked


def drawn_with(evaluate, plan, seed=0, count=20, seen=None):
    streams = Streams(*(balanced(binomial(count), np.random.default_rng((seed, n))) for n in (0, 1)))
    fit = lambda masks, values: ridge(masks, values, np.ones(len(masks))).weights  # noqa: E731
    progress = (lambda done, of: seen.append((done, of))) if seen is not None else (lambda done, of: None)
    return collect(evaluate, np.ones((1, count), bool), streams, fit, plan, progress)


def test_more_noise_takes_more_samples_and_noise_alone_takes_the_most():
    used = {}
    for noise in (0.01, 3.0, 6.0):
        drawn = drawn_with(noisy(noise)[0], Plan(0, 0.8))
        used[noise] = len(drawn.masks)
        assert drawn.stable
        assert drawn.stability >= 0.8
    assert 200 <= used[0.01] < 300 < used[3.0] < used[6.0] < 4096
    rng = np.random.default_rng(0)
    alone = drawn_with(lambda masks, first: rng.normal(size=len(masks)), Plan(0, 0.8))
    assert len(alone.masks) == 4095  # the whole input, and pairs
    assert not alone.stable


@pytest.mark.parametrize("noise", [2.0, 6.0])
def test_the_stability_told_is_the_one_of_other_draws(noise):
    told, rankings = [], []
    for seed in range(24):
        weights = noisy(noise)[1]
        rng = np.random.default_rng(100 + seed)
        fresh = lambda masks, first, rng=rng: masks @ weights + rng.normal(0, noise, len(masks))  # noqa: B023, E731
        drawn = drawn_with(fresh, Plan(200, 0.8), seed)
        told.append(drawn.stability)
        rankings.append(ridge(drawn.masks, drawn.values, np.ones(len(drawn.masks))).weights)
    real = np.mean([kendall(a, b) for a, b in itertools.combinations(rankings, 2)])
    assert np.mean(told) == pytest.approx(real, abs=0.06)


@pytest.mark.parametrize("samples", [10, 11, 64, 65, 131, 400])
def test_samples_that_are_asked_for_are_what_is_taken(samples):
    evaluate, _, asked = noisy(0.1)
    seen = []
    drawn = drawn_with(evaluate, Plan(samples, 0.8), seen=seen)
    assert len(drawn.masks) == sum(asked) == samples - (samples + 1) % 2
    assert seen[-1][0] == seen[-1][1] == len(drawn.masks)
    coins = Streams(*(bernoulli(np.full(20, 0.5), np.random.default_rng(n)) for n in (0, 1)), unit=1)
    evaluate, _, asked = noisy(0.1)
    fit = lambda masks, values: ridge(masks, values, np.ones(len(masks))).weights  # noqa: E731
    collect(evaluate, np.ones((1, 20), bool), coins, fit, Plan(samples, 0.8), lambda *_: None)
    assert sum(asked) == samples


def test_a_plan_takes_every_mask_where_there_are_few_and_no_fewer_than_ten():
    assert Plan(0, 0.8).takes_every(11)
    assert not Plan(0, 0.8).takes_every(12)
    assert Plan(16, 0.8).takes_every(4)
    assert not Plan(15, 0.8).takes_every(4)
    with pytest.raises(BadOption, match="samples takes 0 .until stable. or 10 and more, not 9"):
        Plan(9, 0.8)


def test_halves_share_what_was_not_drawn():
    masks = np.eye(6, dtype=bool)
    drawn = Drawn(masks, np.arange(6.0), np.array([-1, 0, 1, 0, 1, 0]), np.array([-1, 0, 0, 1, 1, 2]))
    seen = []
    stability(drawn, lambda masks, values: seen.append(values.tolist()) or values[:1].repeat(3) * np.arange(3))
    assert seen == [[0, 2, 4], [0, 1, 3, 5], [0, 2, 3], [0, 1, 4, 5]]


# asking the network


def scene_of(model, picture, **given):
    return open_scene(Request(model, targets=("class:1",), input=picture, **given))


def test_batches_that_do_not_fit_are_halved_and_nothing_changes(monkeypatch, model, picture):
    scene = scene_of(model, picture)
    parts = cut(scene, Lime(segments="grid", count=16))
    masks = every(parts.count)[:50]
    whole = sampler.asking(scene, parts)(masks, 0)
    real, sizes = Scene.scores, []

    def scarce(self, network, x):
        sizes.append(len(x))
        if len(x) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(self, network, x)

    monkeypatch.setattr(Scene, "scores", scarce)
    monkeypatch.setattr(sampler, "batch_size", lambda scene: 16)
    np.testing.assert_allclose(sampler.asking(scene, parts)(masks, 0), whole, atol=1e-6)
    assert sizes[:4] == [16, 8, 4, 2]
    assert max(sizes[4:]) == 2


def test_other_errors_and_answers_that_are_no_numbers_are_told(monkeypatch, model, picture):
    scene = scene_of(model, picture)
    monkeypatch.setattr(Scene, "scores", lambda self, network, x: torch.full((len(x),), torch.nan))
    with pytest.raises(CannotRun, match="is not finite for 3 of 3 inputs"):
        ask(scene, lambda a, b: scene.x.expand(b - a, -1, -1, -1), 3)


def test_batches_follow_the_size_of_the_maps():
    small = penlight.load(zoo.seeded(zoo.InPlace), example=torch.zeros(1, 3, 12, 20))
    large = penlight.load(zoo.seeded(zoo.InPlace), example=torch.zeros(1, 3, 900, 900))
    at = [
        batch_size(open_scene(Request(m, targets=("class:0",), input=np.zeros(m.contract.shape, np.uint8))))
        for m in (small, large)
    ]
    assert at[0] > at[1] == 1


# parts


def test_a_grid_is_even_and_has_no_empty_part():
    labels = squares((30, 50), 15)
    assert sorted(np.unique(labels)) == list(range(15))
    assert set(np.bincount(labels.ravel())) == {100}
    assert squares((4,), 50).tolist() == [0, 1, 2, 3]
    assert squares((3, 3), 100).max() == 8


@pytest.mark.parametrize("way", ["quickshift", "slic"])
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_segments_are_numbered_from_zero_for_any_number_of_channels(picture, way, channels):
    given = np.concatenate([picture] * 3)[:channels]
    kind, labels = segmented(given, Lime(segments=way, count=20))
    assert kind == way
    assert labels.shape == (72, 80)
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))
    assert labels.max() >= 4
    floats = segmented(given / np.float32(255) * 7 - 3, Lime(segments=way, count=20))[1]
    assert floats.shape == (72, 80)


def test_pictures_are_cut_by_content_if_they_are_large_enough(model, picture):
    assert segmented(picture, Lime())[0] == "quickshift"
    assert segmented(picture[:, :40, :40], Lime())[0] == "grid"


@pytest.mark.parametrize("fill", ["segment", "zeros", "mean", "black", "blur", "noise"])
def test_parts_that_are_away_show_the_fill(model, picture, fill):
    scene = scene_of(model, picture)
    parts = cut(scene, Lime(segments="slic", count=12, fill=fill))
    masks = np.random.default_rng(0).random((5, parts.count)) < 0.5
    made = parts.apply(masks, 0).numpy()
    assert made.shape == (5, 3, 72, 80)
    for mask, one in zip(masks, made, strict=True):
        stays = mask[parts.labels]
        np.testing.assert_array_equal(one[:, stays], scene.x[0].numpy()[:, stays])
        np.testing.assert_array_equal(one[:, ~stays], parts.fill[0].numpy()[:, ~stays])
    if fill == "segment":
        for n in range(parts.count):
            here = parts.labels == n
            np.testing.assert_allclose(
                parts.fill[0].numpy()[:, here].T, [scene.x[0].numpy()[:, here].mean(1)] * int(here.sum()), atol=1e-5
            )
    assert parts.spread(np.arange(parts.count, dtype=float)).tolist() == parts.labels.tolist()


def test_bad_cuts_are_refused_in_one_line(monkeypatch, model, picture):
    flat = np.full((3, 72, 80), 90, np.uint8)
    with pytest.raises(BadInput, match="quickshift finds 1 segment in this input"):
        Lime(segments="quickshift", max_dist=1e4, kernel_size=30).run(Request(model, targets=("class:0",), input=flat))
    with pytest.raises(BadInput, match="the fill is the input itself"):
        Lime(segments="grid", fill="segment").run(Request(model, targets=("class:0",), input=flat))
    with pytest.raises(BadOption, match="of probability is for classes"):
        Lime(of="probability", segments="grid").run(Request(model, targets=("body.0:1@3,3",), input=picture))
    with pytest.raises(BadOption, match="samples takes 0"):
        KernelShap(samples=5, segments="grid").run(Request(model, targets=("class:0",), input=picture))
    table = penlight.load(zoo.seeded(zoo.NETWORKS["table"][0]), example=torch.zeros(1, 7))
    row = np.linspace(0, 1, 7, dtype=np.float32)
    with pytest.raises(BadOption, match="segments slic is for pictures; this input has the shape .7."):
        Lime(segments="slic").run(Request(table, targets=("class:0",), input=row))
    with pytest.raises(BadOption, match="a column has one number"):
        Lime(fill="segment").run(Request(table, targets=("class:0",), input=row))
    few = open_data(np.zeros((3, 7), np.float32), table.contract)
    with pytest.raises(BadInput, match="quartiles need 4 or more"):
        Lime().run(Request(table, targets=("class:0",), input=row, data=few))
    find = importlib.util.find_spec
    monkeypatch.setattr(features, "find_spec", lambda name: None if name == "skimage" else find(name))
    with pytest.raises(CannotRun, match="segments quickshift needs scikit-image: pip install 'penlight.segments.'"):
        Lime().run(Request(model, targets=("class:0",), input=picture))


def test_units_of_maps_and_probabilities_are_explained_too(model, picture):
    unit = Lime(segments="grid", count=16, samples=64, alpha=0).run(
        Request(model, targets=("body.0:1@3,3",), input=picture)
    )
    far = unit.extras["weights"][unit.extras["segments"][40:, 40:]]
    assert np.abs(unit.extras["weights"]).argmax() == unit.extras["segments"][3, 3]
    assert np.abs(far).max() < 1e-3  # outside of what the unit sees
    asked = Lime(segments="grid", count=16, samples=64).run(
        Request(model, targets=("probability(class:1)",), input=picture)
    )
    chosen = Lime(segments="grid", count=16, samples=64, of="probability").run(
        Request(model, targets=("class:1",), input=picture)
    )
    np.testing.assert_array_equal(asked.values, chosen.values)
    assert 0 <= asked.evidence["network"] <= 1


def test_other_kinds_of_parts_fit_in(model, picture):
    class Rows(Features):
        """The upper and the lower rows: what a text's words could be."""

        kind, names, axes = "halves", ("upper", "lower"), 3

        def __init__(self, scene):
            self.x = scene.x

        def apply(self, masks, first):
            made = self.x.expand(len(masks), -1, -1, -1).clone()
            made[~masks[:, 0], :, :36] = 0
            made[~masks[:, 1], :, 36:] = 0
            return made

        def spread(self, weights):
            return weights.astype(np.float32)

    class Halves(Lime):
        def parts(self, scene):
            return Rows(scene)

    result = Halves(alpha=0).run(Request(model, targets=("class:1",), input=picture))
    scene = scene_of(model, picture)
    values = ask(scene, lambda a, b: Rows(scene).apply(every(2)[a:b], 0), 4)
    assert result.values.shape == (2,)
    assert result.evidence["network"] == pytest.approx(values[0], abs=1e-6)


def test_progress_runs_on_over_repeats(model, picture):
    seen = []
    request = replace(
        Request(model, targets=("class:1",), input=picture), progress=lambda done, of: seen.append((done, of))
    )
    Lime(segments="grid", count=16, samples=100, repeats=2).run(request)
    assert seen[-1] == (198, 198)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


# linear models


def test_the_ridge_is_scikit_learns():
    rng = np.random.default_rng(0)
    masks, weight = rng.random((60, 9)) < 0.5, rng.random(60) + 0.1
    values = masks @ rng.normal(size=9) + rng.normal(size=60)
    for alpha in (0.0, 1.0, 30.0):
        theirs = Ridge(alpha=alpha).fit(masks, values, weight)
        mine = ridge(masks, values, weight, alpha)
        np.testing.assert_allclose(mine.weights, theirs.coef_, atol=1e-10)
        assert mine.intercept == pytest.approx(theirs.intercept_)
        assert mine.r2 == pytest.approx(theirs.score(masks, values, weight))
        np.testing.assert_allclose(mine.predict(masks), theirs.predict(masks))


def test_parts_that_were_always_together_share_and_constants_explain_nothing():
    masks = np.random.default_rng(0).random((40, 3)) < 0.5
    masks[:, 2] = masks[:, 1]
    found = ridge(masks, masks @ np.array([1.0, 2.0, 0.0]), np.ones(40), 0.0)
    np.testing.assert_allclose(found.weights, [1, 1, 1], atol=1e-6)
    assert ridge(masks, np.full(40, 3.0), np.ones(40)).r2 == 0


def test_the_constrained_fit_is_the_best_of_those_with_its_sum():
    rng = np.random.default_rng(1)
    masks, weight = rng.random((80, 6)) < 0.5, rng.random(80)
    values = rng.normal(size=80)
    found = constrained(masks, values, weight, 0.3, 2.0)
    assert found.weights.sum() == pytest.approx(1.7, abs=1e-14)

    def loss(weights):
        return weight @ (values - 0.3 - masks @ weights) ** 2

    for _ in range(30):
        aside = rng.normal(0, 0.01, 6)
        assert loss(found.weights) <= loss(found.weights + aside - aside.mean()) + 1e-12


def test_tau_is_scipys_and_grows_with_the_draws():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(0, 6, 30).astype(float), rng.integers(0, 6, 30).astype(float)
        assert kendall(a, b) == pytest.approx(kendalltau(a, b)[0])
    assert kendall(np.zeros(4), np.arange(4.0)) == 0
    assert lengthened(1.0) == pytest.approx(1)
    assert lengthened(-0.2) == -0.2
    assert 0.5 < lengthened(0.5) < 0.7

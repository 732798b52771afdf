"""LIME against the `lime` package, kernel SHAP against Shapley's sum over subsets and Captum."""

import itertools
import math

import numpy as np
import pytest
import torch
from captum.attr import KernelShap as CaptumKernelShap
from captum.attr import ShapleyValues
from lime.lime_base import LimeBase
from lime.lime_image import LimeImageExplainer
from lime.lime_tabular import LimeTabularExplainer
from torch import nn

import penlight
import zoo
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.explain import lime as ours
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.kernel_shap import KernelShap, shapley, sizes
from penlight.techniques.explain.lime import Kernel, Lime
from penlight.techniques.explain.sampler import Drawn, asking, every
from penlight.techniques.explain.surrogate import ridge, select
from penlight.techniques.explain.tabular import Column, binned
from penlight.techniques.explain.triples import without_triples


class Small(nn.Module):
    """A network of pictures whose answer is far from linear."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 5, stride=2)
        self.conv2 = nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).amax((2, 3))) * 4


@pytest.fixture
def picture_model():
    return Model(zoo.seeded(Small), InputContract("image", (3, 64, 64), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))


@pytest.fixture
def picture():
    """(3, 64, 64) float32: patches of colour with a little noise."""
    rng = np.random.default_rng(3)
    patches = rng.random((3, 8, 8)).repeat(8, 1).repeat(8, 2)
    return np.clip(patches + rng.normal(0, 0.02, patches.shape), 0, 1).astype(np.float32)


@pytest.fixture
def row_model():
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 3)))
    with torch.no_grad():
        network[0].weight *= 4
    return Model(network, InputContract("array", (7,)))


@pytest.fixture
def rows():
    """(400, 7) float32, columns of different shape; the last has three values only."""
    rng = np.random.default_rng(5)
    made = np.stack([rng.normal(n, 1 + n / 3, 400) for n in range(6)] + [rng.integers(0, 3, 400)], axis=1)
    return made.astype(np.float32)


class Noted(LimeImageExplainer):
    """The `lime` package, which remembers what it drew."""

    def data_labels(self, *args, **kwargs):
        self.data, self.labels = super().data_labels(*args, **kwargs)
        return self.data, self.labels


def forced(monkeypatch, masks):
    """Let our coin throw these masks (N, n), after the whole input, which comes first anyway."""
    left = iter(masks[1:].astype(bool))
    monkeypatch.setattr(ours, "bernoulli", lambda chance, rng: left)
    monkeypatch.setattr(ours.Streams, "of", classmethod(lambda cls, draw, *rest: cls(left, left, 1)))


@pytest.mark.parametrize("top", [0, 5])
def test_same_segments_draws_and_kernel_give_the_coefficients_of_the_package(monkeypatch, picture_model, picture, top):
    explainer = Noted(random_state=1, feature_selection="auto" if not top else "forward_selection")

    def classifier(images):
        return picture_model.predict(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    theirs = explainer.explain_instance(
        picture.transpose(1, 2, 0), classifier, num_samples=300, num_features=top or 100_000, top_labels=1
    )
    (label,) = theirs.top_labels
    forced(monkeypatch, explainer.data)
    method = Lime(
        samples=300,
        sampling="bernoulli",
        of="probability",
        segments="quickshift",
        select="forward" if top else "all",
        top=top or 10,
    )
    result = method.run(Request(picture_model, targets=(f"class:{label}",), input=picture))

    np.testing.assert_array_equal(result.extras["segments"], theirs.segments)
    expected = np.zeros(explainer.data.shape[1])
    for part, weight in theirs.local_exp[label]:
        expected[part] = weight
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(result.extras["weights"], expected, atol=1e-4)
    np.testing.assert_allclose(result.values, expected[theirs.segments], atol=1e-4)
    assert result.evidence["samples"] == 300
    assert result.evidence["segments"] == len(expected)
    assert result.evidence["r2"] == pytest.approx(theirs.score, abs=1e-4)
    assert result.evidence["intercept"] == pytest.approx(theirs.intercept[label], abs=1e-4)
    assert result.evidence["linear model"] == pytest.approx(theirs.local_pred[0], abs=1e-4)
    assert result.evidence["network"] == pytest.approx(explainer.labels[0, label], abs=1e-5)


@pytest.mark.parametrize("way", [("highest_weights", "highest_weights"), ("forward", "forward_selection")])
def test_parts_are_chosen_as_the_package_chooses(way):
    rng = np.random.default_rng(0)
    masks = rng.random((120, 14)) < 0.5
    masks[0] = True
    values = masks @ rng.normal(size=14) + rng.normal(0, 0.3, 120)
    weight = Kernel(0.25, False)(masks)
    base = LimeBase(lambda d: d, random_state=0)
    theirs = base.feature_selection(masks.astype(int), values, weight, 6, way[1])
    assert select(masks, values, weight, 6, way[0]).tolist() == theirs.tolist()


def test_a_row_among_data_gets_the_coefficients_of_the_tabular_explainer(row_model, rows):
    explainer = LimeTabularExplainer(rows, random_state=4, discretize_continuous=True)
    noted = {}
    fit = explainer.base.explain_instance_with_data

    def remember(data, labels, distances, label, *args, **kwargs):
        noted.update(data=data, labels=labels, label=label)
        return fit(data, labels, distances, label, *args, **kwargs)

    explainer.base.explain_instance_with_data = remember
    row = rows[11]
    theirs = explainer.explain_instance(row, row_model.predict, num_features=7, top_labels=1, num_samples=800)
    label = noted["label"]
    data = open_data(rows, row_model.contract)
    scene = open_scene(Request(row_model, targets=(f"class:{label}",), input=row, data=data))
    method = Lime(sampling="bernoulli")
    parts = method.parts(scene)
    mine = method._fit(parts, noted["data"].astype(bool), noted["labels"][:, label].astype(float))
    np.testing.assert_allclose(mine.weights, [weight for _, weight in sorted(theirs.local_exp[label])], atol=1e-4)
    assert mine.r2 == pytest.approx(theirs.score, abs=1e-4)

    for n, column in enumerate(parts.columns):  # the same quartiles, and as often
        np.testing.assert_allclose(column.share[column.share > 0], explainer.feature_frequencies[n])
        np.testing.assert_allclose(column.mean, explainer.discretizer.means[n], rtol=1e-5)
        np.testing.assert_allclose(column.deviation, explainer.discretizer.stds[n], rtol=1e-4, atol=1e-10)
        np.testing.assert_allclose(column.low, explainer.discretizer.mins[n], rtol=1e-6)
        np.testing.assert_allclose(column.high, explainer.discretizer.maxs[n], rtol=1e-6)
        assert column.bin(float(row[n])) == explainer.discretizer.discretize(row)[n]


def test_values_within_a_quartile_are_spread_as_in_the_package(row_model, rows):
    explainer = LimeTabularExplainer(rows, random_state=4)
    column = Column.of(rows[:, 2].astype(float))
    chance = np.random.default_rng(0).random(4000)
    for number in range(4):
        mine = column.value(np.full(4000, number), chance)
        theirs = explainer.discretizer.get_undiscretize_values(2, np.full(4000, number))
        assert column.low[number] - 1e-6 <= mine.min()
        assert mine.max() <= column.high[number] + 1e-6
        quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
        room = 0.06 * (column.high[number] - column.low[number])
        np.testing.assert_allclose(np.quantile(mine, quantiles), np.quantile(theirs, quantiles), atol=room)


def test_a_row_stays_in_its_quartile_where_the_mask_says_so(row_model, rows):
    scene = open_scene(Request(row_model, input=rows[3], data=open_data(rows, row_model.contract)))
    parts = binned(scene, scene.data)
    masks = np.random.default_rng(0).random((500, 7)) < parts.chance
    made = parts.apply(masks, 5).double().numpy()
    for n, (column, own) in enumerate(zip(parts.columns, parts.own, strict=True)):
        if n < 6:
            np.testing.assert_array_equal([column.bin(value) == own for value in made[:, n]], masks[:, n])
    others = [np.searchsorted(parts.columns[0].edges, value) for value in made[~masks[:, 0], 0]]
    assert len(set(others)) == 3
    np.testing.assert_array_equal(parts.apply(masks[:1], 0)[0].numpy(), rows[3])  # the first is the row itself
    halves = torch.cat([parts.apply(masks[:200], 5), parts.apply(masks[200:], 205)])
    np.testing.assert_array_equal(halves.double().numpy(), made)  # however it is batched
    assert parts.names[0].count("column 0") == 1


def test_balanced_pairs_aim_at_what_endless_coins_would_give_and_come_nearer(picture_model, picture):
    request = Request(picture_model, targets=("class:1",), input=picture)
    method = Lime(segments="grid", count=12, samples=130, of="probability")
    scene = ours.read_as(open_scene(request), "probability")
    parts = method.parts(scene)
    assert parts.count == 9 or parts.count == 12
    masks = every(parts.count)
    values = asking(scene, parts)(masks, 0)
    truth = ridge(masks, values, Kernel(0.25, False)(masks), 0.0).weights

    def errors(sampling):
        few = Lime(segments="grid", count=12, samples=130, of="probability", sampling=sampling, alpha=0)
        told = [few.run(Request(picture_model, targets=("class:1",), input=picture, seed=seed)) for seed in range(6)]
        assert {r.evidence["samples"] for r in told} <= {129, 130}
        return np.array([r.extras["weights"] - truth for r in told])

    paired, coins = errors("paired"), errors("bernoulli")
    assert (paired**2).mean() < 0.8 * (coins**2).mean()
    assert np.abs(paired.mean(0)).max() < 0.15 * np.abs(truth).max()


def test_what_triples_do_is_taken_off_balanced_pairs_of_enough_parts_and_nowhere_else(picture_model, picture):
    scene = open_scene(Request(picture_model, targets=("class:1",), input=picture))

    def fits(count, sampling="paired"):
        """Weights with and without, and those of a ridge on what is left."""
        several = [Lime(segments="grid", count=count, samples=121, sampling=sampling, triples=t) for t in (True, False)]
        parts = several[0].parts(scene)
        drawn = several[0]._draw(scene, parts, 0, lambda done, of: None)
        weight = several[0].weigh(parts, drawn.masks)
        left = np.concatenate([drawn.values[:1], without_triples(drawn.masks[1:], drawn.values[1:], weight[1::2])])
        found = [one._fit(parts, drawn.masks, drawn.values).weights for one in several]
        return (*found, ridge(drawn.masks, left, weight).weights, ridge(drawn.masks, drawn.values, weight).weights)

    cleared, plain, expected, usual = fits(36)
    np.testing.assert_allclose(cleared, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(plain, usual, rtol=1e-9, atol=1e-12)
    assert np.abs(cleared - plain).max() > 0.01 * np.abs(plain).max()
    for count, sampling in ((16, "paired"), (36, "bernoulli")):
        cleared, plain, *_ = fits(count, sampling)
        np.testing.assert_array_equal(cleared, plain)


def test_a_convolution_is_explained_before_the_rectifier_that_follows_it(picture):
    """Passes in which rectifiers are joined to the convolutions before them leave the layer alone that is read."""
    net = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU()))
    model = Model(net, InputContract("image", (3, 64, 64), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    below = []
    for layer in ("0", "1", "2"):
        for unit in range(6):
            scene = open_scene(Request(model, targets=(f"mean({layer}:{unit})",), input=picture))
            with torch.inference_mode():
                found = scene.scores(scene.packed(), scene.x)
            below.append(float(found) < 0)
            assert float(found) == pytest.approx(scene.value, rel=1e-4, abs=1e-5)
    assert any(below)


# kernel SHAP


def brute_force(value, count):
    """Shapley's sum over all subsets; `value` takes a tuple of parts."""
    known = {some: value(some) for size in range(count + 1) for some in itertools.combinations(range(count), size)}
    found = np.zeros(count)
    for part in range(count):
        for some in known:
            if part not in some:
                share = math.factorial(len(some)) * math.factorial(count - len(some) - 1) / math.factorial(count)
                found[part] += share * (known[tuple(sorted((*some, part)))] - known[some])
    return found


@pytest.mark.parametrize("fill", ["zeros", "black"])
def test_with_few_parts_the_values_are_shapleys(row_model, rows, fill):
    row = rows[7]
    result = KernelShap(fill=fill).run(Request(row_model, targets=("class:2",), input=row))

    def value(parts):
        seen = np.zeros((1, 7), np.float32)
        seen[0, list(parts)] = row[list(parts)]
        with torch.no_grad():
            return float(row_model.network(torch.from_numpy(seen))[0, 2])

    np.testing.assert_allclose(result.values, brute_force(value, 7), atol=5e-5)
    assert result.evidence["samples"] == 128
    assert result.evidence["stability (tau)"] == 1
    assert result.evidence["nothing there"] == pytest.approx(value(()), abs=1e-5)


def test_segments_of_a_picture_get_what_captum_gives_them(picture_model, picture):
    result = KernelShap(segments="grid", count=4, fill="zeros").run(
        Request(picture_model, targets=("class:0",), input=picture)
    )
    mask = torch.from_numpy(result.extras["segments"].astype(np.int64))[None, None]
    x = picture_model.tensor(picture[None])
    torch.manual_seed(0)
    exact = ShapleyValues(picture_model.network).attribute(x, target=0, feature_mask=mask)
    np.testing.assert_allclose(result.values, exact[0, 0].detach().numpy(), atol=1e-4)
    drawn = CaptumKernelShap(picture_model.network).attribute(x, target=0, feature_mask=mask, n_samples=600)
    np.testing.assert_allclose(result.values, drawn[0, 0].detach().numpy(), atol=0.1 * np.abs(result.values).max())


def test_drawn_masks_come_near_shapley_and_sum_exactly(picture_model, picture):
    request = Request(picture_model, targets=("class:3",), input=picture)
    method = KernelShap(segments="grid", count=12, samples=400)
    scene = open_scene(request)
    parts = method.parts(scene)
    count = parts.count
    masks = every(count)
    known = dict(zip(map(bytes, np.packbits(masks, axis=1)), asking(scene, parts)(masks, 0), strict=True))
    stays = masks.sum(1)
    truth = np.zeros(count)
    values = np.array([known[bytes(row)] for row in np.packbits(masks, axis=1)])
    for part in range(count):
        without = ~masks[:, part]
        more = masks[without].copy()
        more[:, part] = True
        gain = np.array([known[bytes(row)] for row in np.packbits(more, axis=1)]) - values[without]
        share = np.array([1 / (count * math.comb(count - 1, int(k))) for k in stays[without]])
        truth[part] = share @ gain
    result = method.run(request)
    assert result.evidence["samples"] == 400
    weights = result.extras["weights"]
    assert np.abs(weights - truth).max() < 0.1 * np.abs(truth).max()
    whole, nothing = result.evidence["network"], result.evidence["nothing there"]
    assert weights.sum() == pytest.approx(whole - nothing, abs=1e-12)
    assert abs(result.evidence["sum less that"]) < 1e-12
    assert (whole, nothing) == (values[stays == count].item(), values[stays == 0].item())


def test_all_masks_at_once_are_weighed_by_the_kernel():
    rng = np.random.default_rng(2)
    masks = every(6)
    values = rng.normal(size=64)
    known = {tuple(np.flatnonzero(mask)): value for mask, value in zip(masks, values, strict=True)}
    np.testing.assert_allclose(shapley(masks, values, 64).weights, brute_force(known.__getitem__, 6), atol=1e-7)
    together = sizes(6)
    assert together[0] == together[6] == 0
    expected = [5 / (math.comb(6, k) * k * (6 - k)) * math.comb(6, k) for k in range(1, 6)]
    np.testing.assert_allclose(together[1:6] / together[1], np.array(expected) / expected[0])


def test_repeats_are_compared_and_averaged(picture_model, picture):
    request = Request(picture_model, targets=("class:3",), input=picture)
    once = Lime(segments="grid", count=16, samples=100).run(request)
    thrice = Lime(segments="grid", count=16, samples=100, repeats=3).run(request)
    assert "tau between repeats" not in once.evidence
    assert thrice.evidence["samples"] == 3 * once.evidence["samples"]
    assert 0 < thrice.evidence["tau between repeats"] < 1
    assert not np.array_equal(once.values, thrice.values)
    assert np.corrcoef(once.extras["weights"], thrice.extras["weights"])[0, 1] > 0.8


def test_the_network_and_torchs_random_state_are_left_alone(picture_model, picture):
    before = {name: value.clone() for name, value in picture_model.network.state_dict().items()}
    picture_model.network.train()
    state = torch.get_rng_state()
    for method in (Lime(segments="grid", count=16, samples=64), KernelShap(segments="grid", count=16, samples=64)):
        first = method.run(Request(picture_model, input=picture))
        again = method.run(Request(picture_model, input=picture))
        other = method.run(Request(picture_model, input=picture, seed=1))
        np.testing.assert_array_equal(first.values, again.values)
        assert not np.array_equal(first.values, other.values)
    assert picture_model.network.training
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in picture_model.network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in picture_model.network.parameters())


def test_nothing_happens_and_it_says_so(picture):
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 2)

        def forward(self, x):
            return self.fc(x.flatten(1)[:, :1] * 0)

    model = Model(zoo.seeded(Deaf), InputContract("image", (3, 64, 64)))
    result = Lime(segments="grid", count=16, samples=64).run(Request(model, targets=("class:0",), input=picture))
    assert np.abs(result.values).max() < 1e-12
    assert "is the same whatever is taken away" in result.notes[0]


def test_signals_and_rows_without_data():
    signal = penlight.load(zoo.seeded(zoo.Signal), example=torch.zeros(1, 2, 40))
    x = np.random.default_rng(0).random((2, 40), dtype=np.float32)
    result = Lime(count=10).run(Request(signal, targets=("class:1",), input=x))
    assert result.values.shape == (40,)
    assert len(set(result.values.tolist())) == 10
    assert result.evidence["samples"] == 1024  # all of them
    drawn: Drawn = Drawn.of_all(every(3), lambda masks, first: masks.sum(1).astype(float))
    assert drawn.stability == 1


def test_the_whole_input_is_one_of_limes_draws_and_none_of_the_balanced(picture_model, picture):
    scene = open_scene(Request(picture_model, targets=("class:1",), input=picture))
    method = Lime(segments="grid", count=30)
    parts = method.parts(scene)
    assert parts.count >= 24
    masks = np.random.default_rng(0).random((20, parts.count)) < 0.5
    masks[0] = True
    paired, coins = method.weigh(parts, masks), Lime(sampling="bernoulli").weigh(parts, masks)
    assert paired[0] == 0
    assert coins[0] == 1
    np.testing.assert_allclose(
        method.weigh(parts, np.concatenate([masks[:1], ~masks[1:]]))[1:], paired[1:]
    )  # both of a pair alike
    np.testing.assert_allclose(paired[1:], (coins + Kernel(0.25, False)(~masks))[1:] / 2)


@pytest.mark.parametrize(("samples", "times"), [(0, 1), (200, 1), (60, 0)])
def test_single_parts_are_taken_once_where_there_is_room(picture_model, picture, samples, times):
    scene = open_scene(Request(picture_model, targets=("class:1",), input=picture))
    method = KernelShap(segments="grid", count=16, samples=samples)
    drawn = method._draw(scene, method.parts(scene), 0, lambda done, of: None)
    single = drawn.masks[drawn.masks.sum(1) == 1]
    most = drawn.masks[drawn.masks.sum(1) == 15]
    if times:
        assert single.sum(0).tolist() == (~most).sum(0).tolist() == [1] * 16
    assert ((drawn.stream < 0).sum() == 34) == bool(times)
    assert drawn.masks[0].all()

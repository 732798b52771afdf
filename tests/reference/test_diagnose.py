"""`diagnose`: planted truth found and nothing else, ablation against rebuilt networks, intervals, excess, pruning."""

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from planted import NETWORKS, planted, values
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadInput, CannotRun, PenlightError, UnknownName
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.models.places import Patch, Rectifier, places
from penlight.models.surgery import fixed, open_pruned
from penlight.results import Provenance, VisualizeResult, load_result
from penlight.results.diagnose import MEAN, STAND_IN, ZERO
from penlight.techniques.contract import Request
from penlight.techniques.diagnose.ablation import Bench, Truth
from penlight.techniques.diagnose.bootstrap import interval
from penlight.techniques.diagnose.excess import Ladder, Said, Sample, most
from penlight.techniques.diagnose.health import Health
from penlight.techniques.diagnose.judging import judge
from penlight.techniques.diagnose.kinship import kin
from penlight.techniques.diagnose.moments import Moments, participation
from penlight.techniques.diagnose.pruning import pruned
from penlight.techniques.diagnose.tally import Census, Tallied, Tally
from penlight.techniques.options import build


def diagnosed(model, data, layers=(), earlier=(), seed=0, progress=lambda done, of: None, **options):
    technique = build(Health, {"draws": 200, **options})
    return technique.run(Request(model, layers=layers, data=data, earlier=earlier, seed=seed, progress=progress))


def names(result):
    return {unit: set(told) for unit, told in result.verdicts.items()}


@pytest.fixture(scope="module", params=NETWORKS)
def found(request):
    model, data, expected = planted(request.param)
    return model, data, expected, diagnosed(model, data, NETWORKS[request.param][2], tried=40, tested=300)


def test_all_that_was_planted_is_found_and_nothing_else(found):
    _, _, expected, result = found
    assert names(result) == expected


def test_duplicates_are_told_what_they_are_made_of(found):
    result = found[3]
    for path in result.layers:
        for unit, others in ((9, {0}), (10, {1}), (11, {3}), (12, {0, 6}), (13, {1, 3, 8})):
            told = result.details[f"{path}:{unit}"]["duplicate"]
            for other in range(14):
                assert (f"{path}:{other}" in told.split()) == (other in others), told
            assert result.verdicts[f"{path}:{unit}"]["duplicate"] == pytest.approx(-1 if unit == 10 else 1, abs=1e-4)
        proof = result.removal(path, "duplicate", STAND_IN)
        assert proof.loss == pytest.approx(proof.loss_before, abs=1e-3)
        assert proof.accuracy == proof.accuracy_before


def test_every_set_is_what_a_rebuilt_network_says(found):
    model, data, _, result = found
    x = model.tensor(np.stack([data.read(n) for n in range(len(data))]))
    target = torch.tensor([data.label(n)[1] for n in range(len(data))])

    def said(network):
        with torch.no_grad():
            scores = network(x.clone())
        return float(F.cross_entropy(scores, target)), float((scores.argmax(1) == target).float().mean())

    assert (result.loss, result.accuracy) == pytest.approx(said(model.network), rel=1e-4)
    checked = 0
    for one in result.removals:
        if one.how == ZERO and not any(
            set(result.scaled.get(path, ())) & set(units) for path, units in one.units.items()
        ):
            rebuilt = fixed(model, {path: dict.fromkeys(units, 0.0) for path, units in one.units.items()})
        elif one.how == MEAN and one.why != "nearly dead":
            ((path, units),) = one.units.items()
            try:
                rebuilt = fixed(model, {path: {u: float(result.layers[path].mean[u]) for u in units}})
            except CannotRun:
                continue
        else:
            continue
        assert (one.loss, one.accuracy) == pytest.approx(said(rebuilt.network), rel=1e-3, abs=1e-4), (one.why, one.how)
        checked += 1
    assert checked >= 5


def test_single_units_are_what_rebuilt_networks_say(found):
    model, data, _, result = found
    x = np.stack([data.read(n) for n in range(40)])
    target = torch.tensor([data.label(n)[1] for n in range(40)])
    path = list(result.layers)[-1]
    everything = diagnosed(
        model, open_data(list(zip(x, target.tolist(), strict=True)), model.contract, list("0123")), [path]
    )
    effect = everything.ablation[path]
    assert effect.shape == (model.layers[path].units, 2)
    with torch.no_grad():
        whole = model.network(model.tensor(x))
        for unit in range(model.layers[path].units):
            scores = fixed(model, {path: {unit: 0.0}}).network(model.tensor(x))
            change = float(F.cross_entropy(scores, target) - F.cross_entropy(whole, target))
            hits = float((scores.argmax(1) == target).float().mean() - (whole.argmax(1) == target).float().mean())
            assert effect[unit] == pytest.approx((change, hits), abs=2e-5)


def test_statistics_are_those_of_a_whole_pass(found):
    model, data, _, result = found
    x = model.tensor(np.stack([data.read(n) for n in range(len(data))]))
    path = next(iter(result.layers))
    norm = {"a": "na"}.get(path) if hasattr(model.network, "na") else None
    own = values(model, norm or path, x)
    flat = (own.flatten(2) if own.ndim > 2 else own[..., None]).numpy().astype(np.float64)
    layer = result.layers[path]
    np.testing.assert_allclose(layer.share, (flat > 0).mean((0, 2)), atol=0.03)  # of sampled positions
    np.testing.assert_allclose(layer.fired, (flat > 0).any(2).mean(0), atol=1e-12)
    np.testing.assert_allclose(layer.high, flat.max((0, 2)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.low, flat.min((0, 2)), rtol=1e-4, atol=1e-4)
    top = 6.0 if layer.rectifier == "relu6" else np.inf
    np.testing.assert_allclose(layer.mean, np.clip(flat, 0, top).mean((0, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", [5, 4096])
def test_what_a_census_counts_is_what_numpy_counts(found, positions):
    model, data, _, _ = found
    inputs = np.stack([data.read(n) for n in range(23)])
    network = model.prepared(keep=list(model.layers))
    chosen = places(model, model.layers, network)
    chosen = {
        path: one for path, one in chosen.items() if len(one.steps) == (one.rectifier is not None)
    }  # seen as put out
    census = Census(model, network, chosen, 0, 3, positions)
    census.feed([inputs[:9], inputs[9:10], inputs[10:]])
    for path, tally in census.tallies.items():
        own = values(model, path, model.tensor(inputs)).double().numpy()
        own, limits, told = own.reshape(*own.shape[:2], -1), chosen[path].rectifier, tally.done()
        seen = own if limits is None else own.clip(limits.low, limits.high)
        every = positions >= own.shape[2]
        np.testing.assert_allclose(told.mean, seen.mean((0, 2)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(told.high, own.max((0, 2)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(told.own, told.high)
        np.testing.assert_allclose(told.share, (own > 0).mean((0, 2)), atol=1e-9 if every else 0.2)
        assert told.samples == 23 * min(positions, own.shape[2])
        if every:
            rows = own.transpose(0, 2, 1).reshape(-1, own.shape[1])
            np.testing.assert_allclose(told.kin, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(told.centre, rows.mean(0), rtol=1e-4, atol=1e-5)
            after = seen.transpose(0, 2, 1).reshape(-1, own.shape[1])
            if limits is None or limits.hard:
                assert told.directions == pytest.approx(participation(np.cov(after.T, bias=True)), rel=1e-3)


def planted_maps():
    """(40, 80, 6, 6): what 80 units put out before a ReLU; the first four are special, and show it late and in one place only."""
    maps = np.random.default_rng(0).normal(size=(40, 80, 6, 6)).astype(np.float32)
    maps[:, 0] = -1 - np.abs(maps[:, 0])  # dead
    maps[:, 1] = 1 + np.abs(maps[:, 1])  # always on
    maps[:, 2] = 0.75  # constant
    maps[:, 3] = -1 - np.abs(maps[:, 3])  # fires once
    maps[38, 0, 2, 3], maps[37, 1, 5, 5], maps[39, 3, 1, 4] = -0.25, 0.125, 5.0
    return maps


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_extremes_are_those_of_all_positions_where_a_verdict_hangs_on_them(size, exact):
    maps = planted_maps()
    tally = Tally(80, "NCHW", Rectifier("relu", 0.0, None, True), 2, (0,), exact)
    for start in range(0, 40, size):
        given = torch.from_numpy(maps[start : start + size]).contiguous(memory_format=torch.channels_last)
        tally.before(given)
        tally.after(given.relu())
    told, high, low = tally.done(), maps.max((0, 2, 3)), maps.min((0, 2, 3))
    np.testing.assert_array_equal(told.fired, (maps > 0).any((2, 3)).mean(0))
    sure = slice(None) if exact else slice(0, 4)
    np.testing.assert_array_equal(told.high[sure], high[sure])
    np.testing.assert_array_equal(told.low[sure], low[sure])
    assert (told.high <= high).all()
    assert (told.low >= low).all()
    assert (told.high[4:] > 0).all()
    assert (told.low[4:] < 0).all()
    assert exact or size == 40 or (told.high[4:] < high[4:]).any()  # the others are not read to the end


def test_extremes_of_a_layer_without_a_rectifier_are_read_while_units_may_be_constant():
    maps = np.random.default_rng(1).normal(size=(30, 40, 3, 3)).astype(np.float32)
    maps[:, 5] = -2.0
    maps[29, 5, 1, 1], maps[:, 7] = -1.0, 4.0
    tally = Tally(40, "NCHW", None, 1, (0,))
    for start in range(0, 30, 3):
        given = torch.from_numpy(maps[start : start + 3])
        tally.before(given)
        tally.after(given)
    told = tally.done()
    np.testing.assert_array_equal(told.high, maps.max((0, 2, 3)))
    np.testing.assert_array_equal(told.low[[5, 7]], [-2.0, 4.0])
    np.testing.assert_allclose(told.mean, maps.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    assert not told.full.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_sums_of_other_precisions_neither_overflow_nor_vanish(dtype):
    maps = torch.full((5, 2, 64, 64), 100.0, dtype=dtype)
    maps[:, 1], maps[2, 1, 7, 7] = -1.0, 1e-7
    tally = Tally(2, "NCHW", Rectifier("relu", 0.0, None, True), 4, (0,))
    tally.before(maps)
    tally.after(maps.relu())
    told = tally.done()
    np.testing.assert_allclose(told.fired, [1.0, 0.2])
    np.testing.assert_allclose(told.mean[0], 100, rtol=1e-3)
    assert told.high[1] == pytest.approx(1e-7, rel=0.2)


def test_what_leaves_a_hard_rectifier_is_worked_out_from_what_goes_in():
    maps = np.random.default_rng(2).normal(scale=4.0, size=(23, 8, 5, 5)).astype(np.float32)
    tally = Tally(8, "NCHW", Rectifier("relu6", 0.0, 6.0, True), 25, (0,))
    given = torch.from_numpy(maps)
    tally.before(given)
    tally.after(given.clamp(0, 6))
    rows = maps.transpose(0, 2, 3, 1).reshape(-1, 8)
    told = tally.done()
    np.testing.assert_allclose(told.kin, np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(told.full, (rows >= 6).mean(0), atol=0.05)
    assert told.directions == pytest.approx(participation(np.cov(rows.clip(0, 6).T, bias=True)), rel=0.05)


def test_directions_of_a_sample_are_those_of_all_positions():
    rng = np.random.default_rng(3)
    every = (rng.normal(size=(4000, 60)) * np.linspace(0.2, 3, 60)) @ rng.normal(size=(60, 60))
    every = every.astype(np.float32)
    truth, plain, found = participation(np.cov(every.T, bias=True)), [], []
    for _ in range(20):
        moments = Moments(60)
        rows = every[rng.choice(4000, 150, False)]
        moments.add(torch.from_numpy(rows[:50]))
        moments.add(torch.from_numpy(rows), torch.arange(50, 150))
        _, covariance = moments.done()
        np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-2)
        plain.append(participation(covariance) / truth)
        found.append(moments.directions(covariance, 4000) / truth)
        assert moments.directions(covariance, 150) == participation(covariance)
    assert np.mean(plain) < 0.9
    assert np.mean(found) == pytest.approx(1, abs=0.02)


def test_a_combination_before_its_parts_costs_one_unit_of_the_group():
    rng = np.random.default_rng(0)
    free = rng.normal(size=(5000, 6))
    free[:, 1] = 0.5 * free[:, 3] - 2 * free[:, 4]
    made = kin(np.cov(free.T), free.mean(0), (), 0.99, 3)
    assert set(made) == {4}
    assert made[4].others == (1, 3)
    np.testing.assert_allclose(made[4].factors, (-0.5, 0.25), atol=1e-6)
    assert kin(np.cov(free.T), free.mean(0), (), 0.99, 1) == {}


def test_combinations_hide_among_correlated_units():
    rng = np.random.default_rng(1)
    free = rng.normal(size=(4000, 40)) + 2 * rng.normal(size=(4000, 1))
    free[:, 39] = free[:, 3] - free[:, 17] + 0.7 * free[:, 30]
    free[:, 38] = free[:, 5] - free[:, 21]
    made = kin(np.cov(free.T), free.mean(0), (), 0.99, 3)
    assert {u: one.others for u, one in made.items()} == {38: (5, 21), 39: (3, 17, 30)}


def test_participation_ratio_by_hand():
    assert participation(np.diag([1.0, 1.0, 1.0, 1.0])) == pytest.approx(4)
    assert participation(np.diag([2.0, 0.0, 0.0])) == pytest.approx(1)
    assert participation(np.ones((3, 3))) == pytest.approx(1)
    assert participation(np.diag([3.0, 1.0])) == pytest.approx(16 / 10)
    assert participation(np.zeros((2, 2))) == 0


@pytest.mark.parametrize(("limit", "answer"), [(0, 0), (1, 0), (1, 1), (10, 0), (10, 7), (10, 10), (127, 64)])
def test_search_finds_the_largest_that_fits(limit, answer):
    tries = []
    assert most(lambda n: tries.append(n) or n <= answer, limit) == answer
    assert len(tries) <= limit.bit_length()


def test_the_interval_covers_a_planted_effect():
    rng = np.random.default_rng(0)
    covered = few = 0
    for _ in range(200):
        low, high = interval(rng.normal(0.3, 1.0, 400), rng, 400)
        covered += low <= 0.3 <= high
        low, high = interval(-(rng.random(400) < 0.1).astype(float), rng, 400)
        few += low <= -0.1 <= high
    assert 180 <= covered <= 198
    assert 180 <= few <= 199
    assert interval(np.zeros(50), rng) == (0.0, 0.0)
    plain = rng.normal(size=500)
    low, high = interval(plain, np.random.default_rng(3), 4000)
    error = plain.std() / 500**0.5
    assert (low, high) == pytest.approx((plain.mean() - 1.96 * error, plain.mean() + 1.96 * error), abs=0.15 * error)


def test_a_unit_that_matters_is_seen_to_matter():
    network = zoo.seeded(lambda: torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)))
    with torch.no_grad():
        network[2].weight.zero_()
        network[0].bias[3] = -0.5 * network[0].weight[3].sum()  # fires on half of the inputs
        network[2].weight[1, 3] = 20.0
        network[2].bias.copy_(torch.tensor([0.0, -1.0]))
    model = penlight.load(network, example=torch.zeros(1, 4))
    inputs = np.random.default_rng(0).random((400, 4), np.float32)
    truth = network(torch.from_numpy(inputs)).argmax(1).tolist()
    if len(set(truth)) < 2:
        pytest.fail("the planted network has to tell two classes apart")
    data = open_data(list(zip(inputs, truth, strict=True)), model.contract, ["0", "1"])
    result = diagnosed(model, data, ["0"])
    effect = result.ablation["0"]
    share = float(np.mean(truth))
    assert effect[3, 1] == pytest.approx(-share, abs=1e-9)
    assert np.abs(np.delete(effect, 3, 0)).max() < 1e-6
    assert result.layers["0"].removable == (0, 1, 2, 4, 5)
    one = result.removal("0", "can go")
    assert (one.accuracy, one.accuracy_low, one.accuracy_high) == (1.0, 0.0, 0.0)
    assert "5 of 6 units of 0 removed: accuracy 100.0 → 100.0 % (95 % CI 0.0…0.0)" in one.text()


@pytest.mark.parametrize("name", zoo.NETWORKS)
@pytest.mark.parametrize("labelled", [True, False])
def test_any_network_gets_a_result(open_zoo, name, labelled, tmp_path):
    model = open_zoo(name)
    inputs = np.random.default_rng(0).random((9, *model.contract.shape), np.float32)
    given = [(one, n % 2) for n, one in enumerate(inputs)] if labelled else list(inputs)
    result = diagnosed(model, open_data(given, model.contract, ["0", "1"] if labelled else None))
    assert result.truth == ("labels" if labelled else "own answers")
    assert labelled or result.accuracy == 1.0
    assert not [note for note in result.notes if "tie" in note], result.notes
    for path, effect in result.ablation.items():
        assert effect.shape == (model.layers[path].units, 2)
        assert np.isfinite(effect).all()
        assert 0 < result.layers[path].needed <= model.layers[path].units
    assert json.loads(result.to_json())["layers"]
    again = load_result(result.save(tmp_path / "r"))
    assert again.to_json() == result.to_json()
    for one, other in zip(again.state()[1].values(), result.state()[1].values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_every_layer_of_any_network_agrees_with_one_unit_at_a_time(open_zoo, name):
    model = open_zoo(name)
    layers = [
        p for p, layer in model.layers.items() if layer.alias_of is None and p not in ("(logits)", model.class_layer)
    ]
    network = model.prepared(keep=layers)
    found = places(model, layers, network)
    bench = Bench(model, network, found, Truth(None))
    inputs = np.random.default_rng(0).random((5, *model.contract.shape), np.float32)
    for path in layers:
        held = np.linspace(-1, 1, model.layers[path].units)
        fast = bench.singles(path, inputs, [None] * 5, held)
        slow = [
            bench.measure(inputs, [None] * 5, [{path: Patch((u,), (float(held[u]),))}])[1] for u in range(len(held))
        ]
        np.testing.assert_allclose(fast, np.stack(slow), atol=2e-5)


def test_a_cut_that_is_tried_takes_one_pass_and_costs_what_it_does_alone():
    model, data, _ = planted("plain")
    network = model.prepared(keep=["b"])
    bench = Bench(model, network, places(model, ["b"], network), Truth(None))
    inputs = np.stack([data.read(n) for n in range(50)])
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    sample = Sample(bench, inputs, [None] * 50, 20)
    assert len(passes) == 3
    cuts = [{"b": Patch(tuple(range(n)))} for n in (1, 4, 9)]
    alone = bench.measure(inputs, [None] * 50, cuts)[:, 1].mean(1)
    assert sample.accuracy == alone[0] == 1.0
    passes.clear()
    for cut, hits in zip(cuts, alone[1:], strict=True):
        assert sample.fits(cut, 1 - hits)
        assert not sample.fits(cut, 1 - hits - 0.01), "what is tried is this cut"
    assert len(passes) == 3 * 2 * len(cuts)


def test_unlabelled_data_is_held_against_the_networks_own_answers():
    model, data, _ = planted("plain")
    inputs = np.stack([data.read(n) for n in range(60)])
    result = diagnosed(model, open_data(inputs, model.contract), ["b"])
    probabilities = model.predict(inputs)
    entropy = -(probabilities * np.log(probabilities)).sum(1).mean()
    assert result.loss == pytest.approx(entropy, rel=1e-4)
    one = result.removal("b", "duplicate")
    cut = fixed(model, {"b": dict.fromkeys(one.units["b"], 0.0)}).predict(inputs)
    assert one.accuracy == pytest.approx((cut.argmax(1) == probabilities.argmax(1)).mean())
    assert one.loss == pytest.approx(-(probabilities * np.log(cut)).sum(1).mean(), rel=1e-4)


def pictures(stability, best, zero=False):
    alike = np.full((1, 2, 2), stability, np.float32)
    return VisualizeResult(
        Provenance(), ("b:8",), (None,), np.zeros((1, 2, 4, 4, 1), np.uint8), np.full((1, 2), best, np.float32),
        np.zeros((1, 2), np.float32), np.full((1, 2), zero), network_likeness=alike,
    )  # fmt: skip


def test_static_and_unstable_come_from_pictures():
    model, data, _ = planted("plain")
    few = {"tested": 20, "tried": 20}
    assert names(diagnosed(model, data, ["b"], [pictures(0.9, 50)], **few)).get("b:8") is None
    unstable = diagnosed(model, data, ["b"], [pictures(0.05, 50)], **few)
    assert unstable.verdicts["b:8"] == {"unstable": pytest.approx(0.05)}
    assert diagnosed(model, data, ["b"], [pictures(0.05, 0.01)], **few).verdicts["b:8"] == {
        "static": pytest.approx(0.05)
    }
    assert diagnosed(model, data, ["b"], [pictures(0.0, 0.0, True)], **few).verdicts["b:8"] == {"static": 0.0}


def test_pictures_are_held_against_the_largest_of_all_positions():
    torch.manual_seed(0)
    layers = {"b": nn.Conv2d(1, 48, 3), "relu": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    model = Model(nn.Sequential(OrderedDict(layers)).append(nn.Linear(48, 3)), InputContract("image", (1, 12, 12)))
    with torch.no_grad():  # every unit has both signs in every input, so that nothing is left to decide
        layers["b"].weight -= layers["b"].weight.mean((1, 2, 3), keepdim=True)
        layers["b"].bias.zero_()
    inputs = np.random.default_rng(0).random((60, 1, 12, 12), dtype=np.float32)
    largest = float(values(model, "b", model.tensor(inputs))[:, 8].max())
    few = {"tested": 20, "tried": 20, "positions": 1, "batch": 4}
    data = open_data(inputs, model.contract)
    assert diagnosed(model, data, ["b"], **few).layers["b"].high[8] < largest  # looked at in some places only
    below, above = (
        diagnosed(model, data, ["b"], [pictures(0.05, largest * part)], **few).verdicts["b:8"]
        for part in (0.9999, 1.001)
    )
    assert (set(below), set(above)) == ({"static"}, {"unstable"})


def test_same_seed_same_bytes_and_no_trace():
    model, data, _ = planted("residual", count=80)
    network = model.network.train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    random = torch.get_rng_state()
    steps = []
    one = diagnosed(model, data, tried=30, progress=lambda done, of: steps.append((done, of)))
    two = diagnosed(model, data, tried=30)
    assert one.to_json() == two.to_json()
    for a, b in zip(one.state()[1].values(), two.state()[1].values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert steps[-1][0] == steps[-1][1] == len(steps)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_batches_do_not_change_the_answer():
    model, data, _ = planted("normed", count=70)
    one, two = (diagnosed(model, data, tried=30, batch=batch) for batch in (7, 64))
    assert names(one) == names(two)
    for path in one.layers:
        np.testing.assert_allclose(one.layers[path].share, two.layers[path].share, atol=1e-4)
        np.testing.assert_allclose(one.layers[path].participation, two.layers[path].participation, rtol=1e-3)
        np.testing.assert_allclose(one.ablation[path], two.ablation[path], atol=1e-5)


@pytest.mark.parametrize(("name", "how"), [("plain", ZERO), ("normed", ZERO), ("dense", MEAN), ("clamped", MEAN)])
def test_what_was_pruned_is_what_was_ablated(name, how, tmp_path):
    model, data, _ = planted(name)
    result = diagnosed(model, data, NETWORKS[name][2], replace=how, drop=0.02, tried=60)
    assert result.removable
    told, small = pruned(model, result, data, tmp_path / "small.safetensors")
    (joint,) = [one for one in result.removals if one.why == "can go" and dict(one.units) == dict(result.removable)]
    assert told.pruned.accuracy == pytest.approx(joint.accuracy, abs=1e-9)
    assert told.pruned.loss == pytest.approx(joint.loss, rel=1e-3)
    assert told.pruned.parameters < told.pruned.parameters_before
    assert told.pruned.macs < told.pruned.macs_before
    for path, units in result.removable.items():
        assert small.layers[path].units == model.layers[path].units - len(units)
    again = open_pruned(model, tmp_path / "small.safetensors")
    x = model.example(4)
    with torch.no_grad():
        torch.testing.assert_close(again.network(x), small.network(x))
    assert set(told.pruned.keys) == set(model.network.state_dict())
    assert load_result(told.save(tmp_path / "r")).pruned == told.pruned


def test_what_is_lacking_is_said(open_zoo):
    with pytest.raises(BadInput, match="needs data"):
        diagnosed(open_zoo("functional"), None)
    model = open_zoo("functional")
    data = open_data(np.random.default_rng(0).random((4, 1, 16, 16), np.float32), model.contract)
    result = diagnosed(model, data, ["conv1"])
    with pytest.raises(UnknownName, match="conv1"):
        result.flagged("conv3")
    with pytest.raises(UnknownName, match="saturated"):
        result.flagged("conv1", "satuated")
    with pytest.raises(PenlightError, match="logits"):
        diagnosed(
            open_zoo("softmax"),
            open_data(np.zeros((4, 1, 9, 9), np.float32), open_zoo("softmax").contract),
            ["(logits)"],
        )


def tallied(units, **given):
    """What units did that nothing is to be said of, but for what is given."""
    known = {
        "share": 0.5,
        "fired": 1.0,
        "high": 2.0,
        "low": -1.0,
        "own": 2.0,
        "full": 0.0,
        "mean": 0.5,
        "centre": 0.0,
        "spread": 1.0,
    }
    arrays = {name: np.array(given.get(name, [value] * units), np.float64) for name, value in known.items()}
    return Tallied(1000, 1000, **arrays, kin=np.eye(units), directions=float(units))


def told_of(found, rectifier):
    judged = judge("x", found, rectifier, Health().limits, {})
    return {u: dict(told) for u, told in judged.verdicts.items()}


def test_verdicts_hold_from_where_they_are_said_to():
    relu, capped = Rectifier("relu", 0.0, None, True), Rectifier("relu6", 0.0, 6.0, True)
    assert told_of(tallied(3, share=[1.0, 0.99, 1.0], low=[0.01, -0.01, 0.0]), relu) == {0: {"always on": 1.0}}
    assert told_of(tallied(3, fired=[0.009, 0.01, 0.5]), relu) == {0: {"nearly dead": 0.009}}
    assert told_of(tallied(2, share=[0.0, 0.0001], high=[-0.1, 0.1], fired=[0.0, 0.02]), relu) == {0: {"dead": 0.0}}
    assert told_of(tallied(3, full=[0.9, 0.89, 0.0]), capped) == {0: {"saturated": 0.9}}
    assert told_of(tallied(2, full=[0.95, 0.5]), Rectifier("sigmoid", 0.0, 1.0, False)) == {0: {"saturated": 0.95}}
    still = tallied(
        4, high=[-1.0, 0.5, 0.0, 2.0], low=[-1.0, 0.5, 0.0, 1.9999], share=[0.0, 1.0, 0.0, 1.0], fired=[0, 1, 0, 1]
    )
    assert told_of(still, None) == {0: {"dead": 0.0}, 1: {"static": 0.0}, 2: {"dead": 0.0}}
    assert told_of(still, Rectifier("gelu", None, None, False)) == told_of(still, None)
    assert told_of(tallied(2, share=[0.0, 1.0], high=[-0.1, 2.0], low=[-3.0, 1.0], fired=[0.0, 1.0]), None) == {}


@pytest.mark.parametrize("count", [1, 2, 40, 700])
def test_what_costs_too_much_on_all_of_the_data_shrinks_to_the_first_rung_that_fits(count):
    rungs = [count]
    while rungs[-1]:
        rungs.append(int(0.85 * rungs[-1]))
    for k, fitting in enumerate(rungs):
        ladder, tried = Ladder({"a": count, "b": 0}), []
        while not ladder.ended:
            tried.append(ladder.counts["a"])
            assert ladder.told(tried[-1] <= fitting) == (tried[-1] <= fitting)
        assert ladder.fitting == {"a": fitting, "b": 0}
        assert tried[0] == count
        assert len(set(tried)) == len(tried) <= min(2 * k + 1, 10)


def test_the_whole_network_is_asked_once_a_batch_while_sets_are_tried():
    model, data, _ = planted("plain")
    network = model.prepared(keep=["b"])
    bench = Bench(model, network, places(model, ["b"], network), Truth(None))
    said, inputs = Said(bench), np.stack([data.read(n) for n in range(6)])
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    first, second, again = said(0, inputs[:3]), said(1, inputs[3:]), said(0, inputs[:3])
    assert len(passes) == 2
    assert again is first
    assert not torch.equal(first[0], second[0])

"""`columns` against scikit-learn, against functions whose answer is known, and against itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.errors import BadInput, BadUnit, CannotRun, UnknownName
from penlight.inputs import Column, TableContract
from penlight.inputs.table_data import open_table
from penlight.models import Model
from penlight.render.column_pages import columns_page, overview, unit_columns
from penlight.results import load_result
from penlight.techniques.contract import Request
from penlight.techniques.survey.columns import Columns
from penlight.techniques.survey.importance import following, integrated, kendall, lost, permuted, ranks, resamples
from penlight.techniques.survey.reading import Reading
from penlight.techniques.survey.response import together

inspection = pytest.importorskip("sklearn.inspection")

NAMES = ("a", "b", "c", "d")
QUICK = {"repeats": 3, "steps": 64, "pairs": 16, "grid": 7, "curves": 4, "top": 5}


class Net(nn.Module):
    """Two dense layers with a rectifier between them."""

    def __init__(self, inputs=4):
        super().__init__()
        self.hidden = nn.Linear(inputs, 6)
        self.relu = nn.ReLU()
        self.score = nn.Linear(6, 2)

    def forward(self, x):
        return self.score(self.relu(self.hidden(x)))


class Known(nn.Module):
    """Five units: a sum, a product, a rectified column, one that never changes, and one column less another."""

    def __init__(self):
        super().__init__()
        self.units = nn.Identity()

    def forward(self, x):
        a, b, c, d = x.unbind(1)
        return self.units(torch.stack([a + b, a * b, 3 * torch.relu(c), 0 * a + 2, d - 2 * a], 1))


def contract(categorical=False):
    columns = [Column(name, mean=float(n), std=1.0 + n) for n, name in enumerate(NAMES)]
    if categorical:
        columns[1] = Column("b", values=("red", "green", "blue"))
    return TableContract.of(columns, "kind")


def rows(count=60, seed=0, categorical=False):
    values = np.random.default_rng(seed).normal(np.arange(4.0), 1.0 + np.arange(4), (count, 4))
    if categorical:
        values[:, 1] = np.random.default_rng(seed + 1).integers(0, 3, count)
    return values


def model(make=Net, categorical=False, labels=("cat", "dog")):
    own = contract(categorical)
    return Model(zoo.seeded(make), own, labels)


@pytest.fixture(scope="module")
def net():
    return model()


@pytest.fixture(scope="module")
def result(net):
    return survey(net)


def survey(opened, data=None, layers=(), **options):
    given = open_table(rows() if data is None else data, opened.contract, opened.labels)
    return Columns(**{**QUICK, **options}).run(Request(opened, layers=layers, data=given))


def reading(opened, layers=("hidden", "relu", "score")):
    return Reading(opened, opened.prepared(layers), {path: opened.layers[path] for path in layers})


class Estimator:
    """One unit of a network as scikit-learn takes it."""

    _estimator_type = "regressor"

    def __init__(self, read, unit):
        self.read, self.unit, self.is_fitted_ = read, unit, True

    def __sklearn_tags__(self):
        from sklearn.base import BaseEstimator, RegressorMixin

        class Plain(RegressorMixin, BaseEstimator):
            pass

        return Plain().__sklearn_tags__()

    def __sklearn_is_fitted__(self):
        return True

    def fit(self, x, y):
        return self

    def predict(self, x):
        return self.read(np.asarray(x)).astype(np.float64)[:, self.unit]


def test_response_curves_are_partial_dependences(net, result):
    read = reading(net)
    for unit, address in [(1, "hidden:1"), (8, "relu:2"), (12, "score:0")]:
        for column, name in enumerate(NAMES):
            curve = result.curve(address, name)
            theirs = inspection.partial_dependence(
                Estimator(read.values, unit), rows(), [column], kind="both", method="brute",
                custom_values={column: curve.grid},
            )  # fmt: skip
            np.testing.assert_allclose(curve.mean, theirs["average"][0], atol=1e-5)
            own = {tuple(np.round(line, 4)) for line in curve.individual.tolist()}
            assert own <= {tuple(np.round(line, 4)) for line in theirs["individual"][0].tolist()}
            np.testing.assert_array_equal(curve.centred().individual[:, 0], 0)


def test_grids_are_quantiles_of_the_data(result):
    curve = result.curve("score:0", "c")
    np.testing.assert_allclose(curve.grid, np.quantile(rows()[:, 2], np.linspace(0.01, 0.99, 7)))
    assert curve.individual.shape == (4, 7)


def test_permutation_importance_is_scikit_learns(net):
    read, table = reading(net), rows()
    base = read.values(table)
    theirs = inspection.permutation_importance(
        Estimator(read.values, 9), table, base[:, 9].astype(np.float64), scoring="r2", n_repeats=4, random_state=5
    )
    seed = np.random.RandomState(5).randint(np.iinfo(np.int32).max + 1)
    for column in range(4):
        shuffle, order, orders, composed = np.random.RandomState(seed), np.arange(60), [], np.arange(60)
        for _ in range(4):  # each repeat deals what the last one dealt
            shuffle.shuffle(order)
            composed = composed[order]
            orders.append(composed)
        change = permuted(read.values, table, column, np.stack(orders), base)
        share, low, high = lost(change, base, resamples(np.random.default_rng(0), 60))
        assert share[9] == pytest.approx(theirs["importances_mean"][column], abs=1e-6)
        assert low[9] < share[9] < high[9]


def test_permutation_in_a_survey_is_within_scikit_learns_spread(net, result):
    read = reading(net)
    theirs = inspection.permutation_importance(
        Estimator(read.values, 12), rows(), read.values(rows())[:, 12].astype(np.float64), scoring="r2", n_repeats=30,
        random_state=1,
    )  # fmt: skip
    own = result.layers["score"].permutation[0]
    spread = theirs["importances_std"] * np.sqrt(1 / 3 + 1 / 30)
    assert (np.abs(own - theirs["importances_mean"]) < 4 * spread).all()


@pytest.mark.parametrize("categorical", [False, True])
def test_integrated_gradients_add_up(categorical):
    opened = Model(
        zoo.seeded(lambda: nn.Sequential(nn.Linear(6 if categorical else 4, 8), nn.Tanh(), nn.Linear(8, 3))),
        contract(categorical),
    )
    read, table = reading(opened, ("0", "2")), rows(30, categorical=categorical)
    mean = opened.tensor(table).mean(0, keepdim=True)
    for path in ("0", "2"):
        (block,) = integrated(read, path, table, 64)
        units = range(opened.layers[path].units)
        gained = read.outputs(path, opened.tensor(table), units) - read.outputs(path, mean, units)
        assert block.values.shape == (len(units), 30, 4)
        np.testing.assert_allclose(block.values.sum(2).T, gained, atol=2e-4)
        assert block.gap.max() < 1e-3


def test_integrated_gradients_of_a_dense_unit_are_its_weights(net, result):
    weight = net.network.hidden.weight.detach().numpy().astype(np.float64)
    inputs = (rows() - np.arange(4)) / (1 + np.arange(4))
    away = np.abs(inputs - inputs.mean(0)).mean(0)
    layer = result.layers["hidden"]
    np.testing.assert_allclose(layer.gradients, np.abs(weight) * away, rtol=1e-4)
    np.testing.assert_allclose(layer.direction, np.sign(weight), atol=1e-9)
    expected = 2 * weight**2 * inputs.var(0) / (inputs @ weight.T).var(0)[:, None]
    np.testing.assert_allclose(survey(net, repeats=200).layers["hidden"].permutation, expected, rtol=0.1)
    assert (layer.gradients_low < layer.gradients).all()
    assert (layer.gradients < layer.gradients_high).all()


def test_forward_and_backward_give_the_same_integrated_gradients(monkeypatch):
    opened, table = model(lambda: Net(6), categorical=True), rows(20, categorical=True)
    read = reading(opened)
    for path in ("hidden", "relu"):  # 6 units, more than the 4 columns: forward
        (forward,) = integrated(read, path, table, 8)
        monkeypatch.setattr(read, "pushed", None)
        monkeypatch.setattr("penlight.techniques.survey.importance._BYTES", 40000.0)
        backward = list(integrated(read, path, table, 8))  # blocks of few units
        assert len(backward) > 1
        np.testing.assert_allclose(forward.values, np.concatenate([one.values for one in backward]), atol=1e-5)
        monkeypatch.undo()


def test_blocks_and_chunks_change_nothing(net, result, monkeypatch):
    monkeypatch.setattr("penlight.techniques.survey.importance._BYTES", 2000.0)
    monkeypatch.setattr("penlight.techniques.survey.reading._BYTES", 100.0)
    monkeypatch.setattr("penlight.techniques.survey.reading._FEWEST", 7)
    again = survey(net)
    for path, layer in result.layers.items():
        for name, values in vars(layer).items():
            np.testing.assert_allclose(getattr(again.layers[path], name), values, atol=1e-5, err_msg=f"{path} {name}")


def test_known_interactions_are_found():
    opened = model(Known, labels=None)
    standard = np.random.default_rng(3).normal(size=(40, 4)) * (1 + np.arange(4)) + np.arange(4)
    read = reading(opened, ("units",))
    variance = read.values(standard).astype(np.float64).var(0)
    found = together(read.values, standard, [(0, 1), (0, 3)], variance)
    h2, share = found[(0, 1)]
    x = (standard - np.arange(4)) / (1 + np.arange(4))
    a, b = x[:, 0], x[:, 1]
    parts = [a * b, a * b.mean(), b * a.mean()]
    joint, first, second = (part - part.mean() for part in parts)
    assert h2[0] == pytest.approx(0, abs=1e-9)
    assert h2[1] == pytest.approx(((joint - first - second) ** 2).sum() / (joint**2).sum(), rel=1e-4)
    assert h2[1] > 0.9
    assert share[0] < 1e-9
    assert found[(0, 3)][0][4] == pytest.approx(0, abs=1e-9)


def test_known_units_are_told_apart():
    opened = model(Known, labels=None)
    made = survey(opened, rows(200), layers=["units"], pairs=32)
    assert {c.column for c in made.columns("units:0")[:2]} == {"a", "b"}
    assert made.columns("units:2")[0].column == "c"
    assert made.columns("units:2")[1].gradients == 0
    assert [c.direction for c in made.columns("units:4")[:2]] == pytest.approx([-1, 1])
    assert made.interactions("units:1")[0][:2] == ("a", "b")
    assert made.interactions("units:1")[0].share > 0.5
    assert made.interactions("units:0")[0].share < 1e-6
    assert made.joint("units:1").values.shape == (12, 12)
    assert made.interactions("units:2") == []
    still = made.columns("units:3")
    assert all(c.gradients == c.permutation == 0 and not c.disagrees for c in still)
    assert np.isnan(made.agreement("units:3"))
    assert "No column moves this unit" in unit_columns(made, "units:3")
    assert "never changes" in overview(made, "units")


def test_the_measures_disagree_where_rows_and_chance_differ():
    class Rare(nn.Module):
        """b matters as much as a by mean magnitude, but nearly only for rare rows."""

        def __init__(self):
            super().__init__()
            self.units = nn.Identity()

        def forward(self, x):
            return self.units(torch.stack([x[:, 0] + 2.5 * torch.relu(x[:, 1] - 3.0), x[:, 0]], 1))

    table = rows(400)
    table[:, 1] = 1.0
    table[::40, 1] = 1 + 2 * 12.0  # 12 deviations out, in one row of forty
    made = survey(model(Rare, labels=None), table, layers=["units"])
    apart = {c.column: c for c in made.columns("units:0") if c.disagrees}
    assert "a" in apart  # whose share of the magnitudes is large, and of the root of the variance small
    assert apart["a"].gradients_rank == 1
    assert apart["a"].permutation_rank == 2
    assert not any(c.disagrees for c in made.columns("units:1"))
    assert 'class="cols-apart"' in unit_columns(made, "units:0")


def test_categories_have_curves_but_no_direction():
    opened = model(lambda: Net(6), categorical=True)
    made = survey(opened, rows(80, categorical=True))
    curve = made.curve("score:1", "b")
    np.testing.assert_array_equal(curve.grid, [0, 1, 2])
    record = next(c for c in made.columns("score:1") if c.column == "b")
    assert np.isnan(record.direction)
    assert record.raised_by == ("red", "green", "blue")[int(curve.mean.argmax())]
    assert sum(made.table[1].counts) == 80
    assert "green" in unit_columns(made, "score:1")


def test_lists_statistics_and_labels(net):
    table = rows()
    values = net.network(net.tensor(table)).detach().numpy()
    kinds = np.where(values[:, 0] > np.median(values[:, 0]), "cat", "dog")
    data = {**{name: table[:, n] for n, name in enumerate(NAMES)}, "kind": kinds}
    data["a"] = data["a"].tolist()
    data["a"][7] = None
    made = survey(net, data)
    assert made.count == 59
    assert made.skipped[0][0] == "table[7]"
    left = np.delete(np.arange(60), 7)
    order = left[np.argsort(-values[left, 0], kind="stable")]
    assert [row.index for row in made.top("score:0")] == order[:5].tolist()
    assert [row.index for row in made.bottom("score:0")] == order[::-1][:5].tolist()
    first = made.top("score:0")[0]
    np.testing.assert_array_equal(first.values, table[order[0]])
    assert (first.label, first.name) == ("cat", f"table[{order[0]}]")
    told = made.row("score:0")
    own = values[left, 0].astype(np.float64)
    assert [told[k] for k in ("mean", "std", "max", "min", "fires")] == pytest.approx(
        [own.mean(), own.std(), own.max(), own.min(), (own > 0).mean()], rel=1e-5
    )
    assert made.label("score:0").label == "cat"
    assert made.label("score:0").score == 1.0
    assert len(made.labels) == len(made.units) == 14


def test_the_rows_that_are_worked_on_are_drawn_with_the_seed(net):
    one, same, other = (
        Columns(**QUICK, rows=20).run(Request(net, data=open_table(rows(), net.contract), seed=seed))
        for seed in (1, 1, 2)
    )
    assert (one.count, one.sampled, one.paired) == (60, 20, 16)
    np.testing.assert_array_equal(one.layers["score"].gradients, same.layers["score"].gradients)
    assert not np.array_equal(one.layers["score"].gradients, other.layers["score"].gradients)
    assert one.top("score:0")[0].index == other.top("score:0")[0].index


def test_a_result_survives_the_disk_and_speaks_json(result, tmp_path):
    again = load_result(result.save(tmp_path / "r"))
    (data, arrays), (own, more) = again.state(), result.state()
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(own))
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, more[name])
    told = json.loads(result.to_json())
    assert told["kind"] == "columns"
    unit = told["units"][12]
    assert unit["unit"] == "score:0"
    assert unit["columns"][0]["column"] == result.columns("score:0")[0].column
    assert set(unit["top"][0]["values"]) == set(NAMES)
    assert columns_page(again) == columns_page(result)
    assert "<th>score:1</th>" in result._repr_html_()


def test_pages_escape_what_they_are_given():
    own = TableContract.of([Column("<x1>", unit="<x2>"), Column("x", values=("<x3>", "y"))])
    opened = Model(zoo.seeded(lambda: nn.Sequential(nn.Linear(3, 2))), own, ("<x4>", "t"))
    table = np.column_stack([np.arange(12.0), np.arange(12) % 2])
    page = columns_page(survey(opened, table, pairs=0))
    assert "<x" not in page
    assert all(f"&lt;x{n}&gt;" in page for n in (1, 2, 3))
    assert "http" not in page


def test_the_network_is_left_as_it_was():
    network = zoo.seeded(Net).train()
    opened = Model(network, contract(), ("cat", "dog"))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    survey(opened)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert all(m.training and not m._forward_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_progress_runs_to_its_end(net):
    steps = []
    data = open_table(rows(), net.contract)
    Columns(**QUICK).run(Request(net, data=data, progress=lambda done, of: steps.append((done, of))))
    assert steps[-1][0] == steps[-1][1]
    assert [d for d, _ in steps] == sorted(d for d, _ in steps)


def test_what_cannot_be_is_told(net, result, open_zoo):
    with pytest.raises(BadInput, match="needs rows"):
        Columns().run(Request(net))
    with pytest.raises(BadInput, match="method columns is for tables"):
        Columns().run(Request(open_zoo("functional"), data=open_table(rows(), net.contract)))
    empty = {name: ["x"] for name in NAMES}
    with pytest.raises(BadInput, match="not one of the 1 rows"):
        survey(net, empty)
    with pytest.raises(UnknownName, match="did you mean 'hidden'"):
        result.columns("hiden:0")
    with pytest.raises(BadUnit, match="units 0 to 5"):
        result.columns("hidden:6")
    with pytest.raises(UnknownName, match="column"):
        result.curve("hidden:0", "e")
    broken = zoo.seeded(Net)
    with torch.no_grad():
        broken.score.bias[0] = float("nan")
    with pytest.raises(CannotRun, match="score:0 is not finite"):
        survey(Model(broken, contract()))


def test_ranks_and_kendall_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    values = rng.integers(0, 5, (30, 3)).astype(float)
    np.testing.assert_allclose(ranks(values) + 1, stats.rankdata(values, axis=0))
    other = rng.normal(size=(30, 3)).astype(np.float32)
    expected = [stats.spearmanr(values[:, k], other[:, k]).statistic for k in range(3)]
    np.testing.assert_allclose(following(other[None], values)[0], expected, atol=1e-9)
    assert kendall(values[:, 0], other[:, 0]) == pytest.approx(
        stats.kendalltau(values[:, 0], other[:, 0]).statistic, abs=1e-9
    )

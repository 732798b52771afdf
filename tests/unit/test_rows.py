"""Rows that drive units: against vertices, random search and closed forms, and what is said of units that no row moves."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.errors import BadInput, BadUnit, UnknownName
from penlight.inputs import Column, TableContract
from penlight.inputs.table_data import open_table
from penlight.models import Model
from penlight.render.column_pages import rows_page, unit_row
from penlight.results import load_result
from penlight.techniques.contract import Request
from penlight.techniques.visualize.likely_rows import Space, precision
from penlight.techniques.visualize.methods.row import Row

COLUMNS = (
    Column("a", mean=2.0, std=3.0),
    Column("colour", values=("red", "green", "blue")),
    Column("b", mean=-1.0, std=0.5),
    Column("size", values=("s", "m", "l"), encoding="number", mean=1.0, std=0.8),
)
CONTRACT = TableContract.of(COLUMNS)


def rows(count=50):
    rng = np.random.default_rng(0)
    return np.column_stack(
        [rng.normal(2, 3, count), rng.integers(0, 2, count), rng.normal(-1, 0.5, count), rng.integers(0, 3, count)]
    )


def linear():
    return nn.Sequential(nn.Linear(6, 4))


def curved():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def ask(make, targets, seed=0, data=None, contract=CONTRACT, labels=None, **options):
    model = make if isinstance(make, Model) else Model(zoo.seeded(make), contract, labels)
    given = open_table(rows() if data is None else data, model.contract, model.labels)
    return model, Row(**options).run(Request(model, targets=targets, data=given, seed=seed))


@pytest.mark.parametrize("minimize", [False, True])
def test_a_linear_unit_is_driven_to_the_best_corner(minimize):
    model, made = ask(linear, ["0:*"], weight=0.0, minimize=minimize)
    table = rows()
    low, high = table.min(0), table.max(0)
    corners = np.array(
        list(itertools.product((low[0], high[0]), (0, 1), (low[2], high[2]), (0, 1, 2)))
    )  # blue does not occur
    with torch.no_grad():
        values = model.network(model.tensor(corners)).numpy()
    best = values.min(0) if minimize else values.max(0)
    for u in range(4):
        ideal = made.ideal(f"0:{u}")
        assert ideal.activation == pytest.approx(best[u], abs=1e-5)
        np.testing.assert_array_equal(ideal.values, corners[(values.argmin(0) if minimize else values.argmax(0))[u]])


def test_a_curved_unit_beats_random_search_and_the_real_rows():
    model, made = ask(curved, ["2:*"], weight=0.0, seeds=4)
    table, rng = rows(), np.random.default_rng(1)
    drawn = rng.uniform(table.min(0), table.max(0), (20000, 4))
    drawn[:, 1], drawn[:, 3] = rng.integers(0, 2, 20000), rng.integers(0, 3, 20000)
    with torch.no_grad():
        random, real = (model.network(model.tensor(some)).numpy().max(0) for some in (drawn, table))
    found = made.activations.max(1)
    assert (found > random).all()
    assert (found > real).all()
    inside = made.values.reshape(-1, 4)
    assert (inside >= table.min(0)).all()
    assert (inside <= table.max(0)).all()
    assert set(inside[:, 1]) <= {0.0, 1.0}
    with torch.no_grad():
        again = model.network(model.tensor(inside)).numpy().reshape(3, 4, 3)
    np.testing.assert_allclose(made.activations, np.stack([again[u, :, u] for u in range(3)]), atol=1e-6)


def test_with_a_penalty_a_linear_units_row_is_the_closed_form():
    contract = TableContract.of([Column(name) for name in "abc"])
    table = np.random.default_rng(2).normal(size=(4000, 3)) @ np.diag([1.0, 2.0, 3.0])
    model, made = ask(lambda: nn.Sequential(nn.Linear(3, 1)), ["0:0"], data=table, contract=contract, weight=2.0)
    weight = model.network[0].weight.detach().double().numpy()[0]
    inverse = precision((table - table.mean(0)) / table.std(0))[0]
    covariance = np.diag(table.std(0)) @ np.linalg.inv(inverse) @ np.diag(table.std(0))
    sigma = np.sqrt(weight @ np.cov(table.T, ddof=0) @ weight)
    expected = table.mean(0) + covariance @ weight * made.typical / (2.0 * sigma)
    np.testing.assert_allclose(made.values[0, 0], expected, atol=0.02)
    assert made.distance[0, 0] == pytest.approx(made.typical / 2, rel=0.02)
    space = Space(contract, table, torch.device("cpu"))
    assert made.percentile[0, 0] == pytest.approx((space.distances < made.distance[0, 0]).mean())


def test_more_weight_is_more_usual_and_less_active():
    found = [ask(curved, ["2:0"], weight=w)[1] for w in (0.0, 0.3, 3.0)]
    assert found[0].distance.min() > found[1].distance.min() > found[2].distance.min()
    assert found[0].activations.max() >= found[1].activations.max() > found[2].activations.max()


def test_the_shrunk_covariance_is_ledoit_and_wolfs():
    covariance = pytest.importorskip("sklearn.covariance")
    table = np.random.default_rng(0).normal(size=(20, 6))
    table -= table.mean(0)
    inverse, share = precision(table)
    expected, theirs = covariance.ledoit_wolf(table, assume_centered=True)
    assert share == pytest.approx(theirs)
    np.testing.assert_allclose(np.linalg.inv(inverse), expected)


def test_real_rows_stand_beside_it():
    model, made = ask(curved, ["2:1"])
    with torch.no_grad():
        values = model.network(model.tensor(rows())).numpy()[:, 1]
    ideal = made.ideal("2:1")
    assert ideal.best.index == values.argmax()
    assert ideal.best.activation == pytest.approx(values.max(), abs=1e-6)
    assert ideal.nearest.activation == pytest.approx(values[ideal.nearest.index], abs=1e-6)
    scale = CONTRACT.normalize(rows()).std(0)
    scale[scale == 0] = 1
    away = (CONTRACT.normalize(rows()) - CONTRACT.normalize(ideal.values[None])) / scale
    assert np.sqrt((away**2).sum(1)).argmin() == ideal.nearest.index
    assert ideal.apart == pytest.approx(np.sqrt((away**2).sum(1)).min(), rel=1e-5)
    np.testing.assert_array_equal(ideal.nearest.values, rows()[ideal.nearest.index])


def test_a_unit_that_no_row_moves_is_told_and_one_that_rare_rows_move_is_not():
    class Still(nn.Module):
        def __init__(self):
            super().__init__()
            self.units = nn.Identity()

        def forward(self, x):
            return self.units(torch.stack([0 * x[:, 0] + 3, torch.relu(x[:, 0] - 0.95 * x[:, 4] - 3)], 1))

    contract = TableContract.of([Column(f"x{n}") for n in range(5)])
    corner = np.zeros((30, 5))
    corner[0, 0], corner[1, 4] = 3.0, -3.0  # the second unit fires where both are, which no real row is
    _, made = ask(Still, ["units:0", "units:1"], data=corner, contract=contract, weight=0.0)
    assert made.flat.tolist() == [True, False]
    assert made.notes == (
        "no row within the range of the data changes units:0: the row shown for it is an ordinary one",
    )
    assert made.ideal("units:1").activation == pytest.approx(2.85, abs=1e-4)
    assert made.ideal("units:1").best.activation == 0
    assert "No row within the range" in unit_row(made, "units:0")


def test_counts_stay_whole_and_within_their_range():
    contract = TableContract.of([Column("count", mean=1.0, std=2.0), Column("x")])
    table = np.column_stack([np.arange(40) % 6 - 2, np.linspace(0, 1, 40)])
    for minimize in (False, True):
        _, made = ask(lambda: nn.Sequential(nn.Linear(2, 3)), ["0:*"], data=table, contract=contract, minimize=minimize)
        assert set(made.values[:, :, 0].ravel()) <= set(range(-2, 4))
    _, made = ask(
        lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), ["2:0"], data=table, contract=contract
    )
    best = made.values[0, :, 1][np.argmax(made.scores[0])]
    model = Model(zoo.seeded(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))), contract)
    others = np.array([[count, best] for count in range(-2, 4)], float)
    space = Space(contract, table, torch.device("cpu"))
    with torch.no_grad():
        answers = model.network(model.tensor(others))[:, 0].double().numpy()
        spread = model.network(model.tensor(table))[:, 0].double().numpy().std()
        scores = answers / spread - 0.3 * space.penalty(model.tensor(others)).double().numpy()
    assert others[scores.argmax(), 0] == made.ideal("2:0").values[0]


def test_classes_and_expressions_are_targets():
    model, made = ask(curved, ["class:cat", "class:cat - class:dog"], labels=("cat", "dog", "cow"))
    assert made.labels == ("cat", None)
    assert made.ideal("class:cat").activation == made.ideal("2:0").activation
    ideal = made.ideal("class:cat - class:dog")
    with torch.no_grad():
        out = model.network(model.tensor(ideal.values[None])).numpy()[0]
    assert ideal.activation == pytest.approx(out[0] - out[1], abs=1e-5)
    with pytest.raises(UnknownName, match="unit"):
        made.ideal("class:cow")


def test_units_that_climb_side_by_side_end_where_each_ends_alone():
    def net():
        made = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
        made[0].weight.data[3:5], made[0].bias.data[3:5] = 0, 0.5  # no row moves these
        return made

    units = [f"0:{u}" for u in range(16)] + [f"2:{u}" for u in range(5)]
    _, together = ask(net, [*units, "2:0 - 2:1"], seeds=4)
    assert np.flatnonzero(together.flat).tolist() == [3, 4]
    for n, unit in enumerate([*units, "2:0 - 2:1"]):
        _, alone = ask(net, [unit], seeds=4)
        np.testing.assert_allclose(together.values[n], alone.values[0], atol=1e-4)
        np.testing.assert_allclose(together.activations[n], alone.activations[0], atol=1e-4)
        np.testing.assert_allclose(together.scores[n], alone.scores[0], atol=1e-4)
        assert together.best[n] == alone.best[0]


def test_many_units_climb_in_one_pass_a_step():
    passes = []

    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.unit = nn.Linear(6, 40)

        def forward(self, x):
            passes.append(len(x))
            return self.unit(x)

    model = Model(zoo.seeded(Counted), CONTRACT)
    counts = {}
    for units in (["unit:0"], ["unit:*"]):
        passes.clear()
        Row(steps=50).run(Request(model, targets=units, data=open_table(rows(), CONTRACT)))
        counts[units[0]] = len(passes)
    assert counts["unit:*"] < 3 * counts["unit:0"]


def test_same_seed_same_bytes_and_another_seed_other_starts():
    one, same, other = (ask(curved, ["2:0"], seed=seed, steps=2, seeds=4)[1] for seed in (5, 5, 6))
    np.testing.assert_array_equal(one.values, same.values)
    assert not np.array_equal(one.values, other.values)


def test_a_result_survives_the_disk_and_speaks_json(tmp_path):
    _, made = ask(curved, ["2:*"])
    again = load_result(made.save(tmp_path / "r"))
    (data, arrays), (own, more) = again.state(), made.state()
    assert json.loads(json.dumps(data)) == json.loads(json.dumps(own))
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, more[name])
    told = json.loads(made.to_json())["units"][0]
    assert told["row"]["colour"] in ("red", "green")
    assert set(told["nearest"]["values"]) == set(CONTRACT.names)
    assert "<th>colour</th>" in made._repr_html_()
    page = rows_page(again)
    assert page == rows_page(made)
    assert "the real row most like it" in page


def test_the_network_is_left_as_it_was():
    network = zoo.seeded(curved).train()
    before, state = {k: v.clone() for k, v in network.state_dict().items()}, torch.get_rng_state()
    ask(Model(network, CONTRACT), ["2:0"])
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert all(m.training and not m._forward_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_is_told(open_zoo):
    model = Model(zoo.seeded(curved), CONTRACT)
    with pytest.raises(BadInput, match="needs data"):
        Row().run(Request(model, targets=["2:0"]))
    with pytest.raises(BadInput, match="method row is for tables"):
        Row().run(Request(open_zoo("functional"), targets=["fc:0"]))
    with pytest.raises(BadInput, match="has 1 rows that can be read"):
        Row().run(Request(model, targets=["2:0"], data=open_table(rows(1), CONTRACT)))
    with pytest.raises(BadUnit):
        ask(model, [])

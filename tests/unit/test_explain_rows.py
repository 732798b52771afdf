"""Explanations of rows of tables: by column, categories whole, in the table's own units."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.errors import BadInput, BadOption
from penlight.inputs import Column, Inputs, TableContract
from penlight.models import Model
from penlight.render import explain_sheet
from penlight.render.explain_rows import explain_page, row_fragment
from penlight.results import ExplainResult, load_result
from penlight.techniques.contract import Request
from penlight.techniques.explain.cam import GradCam
from penlight.techniques.explain.checks import _noisy, check
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.gradients import Gradient, GradientInput, IntegratedGradients, SmoothGrad
from penlight.techniques.explain.kernel_shap import KernelShap
from penlight.techniques.explain.lime import Lime
from penlight.techniques.explain.occlusion import Occlusion
from penlight.techniques.explain.rise import Rise

COLUMNS = (
    Column("worst_radius", "mm", 16, 5),
    Column("colour", values=("red", "green", "blue")),
    Column("texture", "", 20, 4),
    Column("grade", "", 1, 0.8, values=("low", "mid", "high"), encoding="number"),
)
CONTRACT = TableContract.of(COLUMNS)
METHODS = [
    Lime(samples=60),
    KernelShap(),
    Occlusion(),
    Gradient(),
    GradientInput(),
    SmoothGrad(samples=4),
    IntegratedGradients(),
]


def table(count, seed=0):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(16, 5, count), rng.integers(0, 3, count), rng.normal(20, 4, count), rng.integers(0, 3, count)]
    return np.stack(parts, axis=1).astype(float)


def as_data(rows):
    return Inputs([(f"row {n}", row) for n, row in enumerate(rows)])


@pytest.fixture
def model():
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)))
    return Model(network, CONTRACT, ["benign", "malignant"])


ROWS = table(120)
ROW = ROWS[3]


def ask(model, row=ROW, data=None, **rest):
    return Request(model, input=row, targets=("class:malignant",), data=data, **rest)


def value(model, rows):
    """The explained score of rows in their own units."""
    with torch.no_grad():
        return model.network(torch.from_numpy(CONTRACT.normalize(np.atleast_2d(rows))))[:, 1].double().numpy()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method_gives_a_number_a_column(model, method, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.network.train()
    result = method.run(ask(model, data=as_data(ROWS)))
    assert result.values.shape == result.map.shape == (4,)
    assert result.values.any()
    assert result.tokens == ("worst_radius", "colour", "texture", "grade")
    assert result.shown == (
        f"{ROW[0]:.4g} mm",
        COLUMNS[1].values[int(ROW[1])],
        f"{ROW[2]:.4g}",
        COLUMNS[3].values[int(ROW[3])],
    )
    assert float(result.target) == pytest.approx(value(model, ROW)[0], abs=1e-5)
    np.testing.assert_array_equal(result.input, ROW)
    again = method.run(ask(model, data=as_data(ROWS)))
    np.testing.assert_array_equal(result.values, again.values)
    assert model.network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.network.parameters())

    said = json.loads(result.to_json())
    first = int(np.abs(result.values).argmax())
    assert said["strongest"][0] == {
        "place": [first], "value": pytest.approx(float(result.values[first])), "column": result.tokens[first],
        "shown": result.shown[first],
    }  # fmt: skip
    assert said["tokens"] == list(result.tokens)
    assert said["row"] == ROW.tolist()
    loaded = load_result(result.save(tmp_path / "r"))
    assert loaded.to_dict() == result.to_dict()
    assert loaded.parts == result.parts
    np.testing.assert_array_equal(loaded.values, result.values)


def test_inputs_of_a_category_are_added_up(model):
    result = Gradient().run(ask(model))
    x = torch.from_numpy(CONTRACT.normalize(ROW[None])).requires_grad_(True)
    (gradient,) = torch.autograd.grad(model.network(x)[0, 1], x)
    expected = [gradient[0, 0], gradient[0, 1:4].sum(), gradient[0, 4], gradient[0, 5]]
    np.testing.assert_allclose(result.values, torch.stack(expected).numpy(), atol=1e-6)
    np.testing.assert_allclose(result.extras["inputs"], gradient[0].numpy(), atol=1e-6)


@pytest.mark.parametrize("baseline", ["zeros", "mean"])
def test_integrated_gradients_add_up_to_the_change(model, baseline):
    data = as_data(ROWS)
    result = IntegratedGradients(baseline=baseline, steps=100).run(ask(model, data=data))
    start = torch.zeros(1, 6)
    if baseline == "mean":
        start = torch.from_numpy(CONTRACT.normalize(ROWS)).mean(0, keepdim=True)
    with torch.no_grad():
        change = value(model, ROW)[0] - float(model.network(start)[0, 1])
    assert abs(change) > 0.01
    assert float(result.values.sum()) == pytest.approx(change, abs=1e-4)


def test_shapley_values_take_a_category_as_one_player(model):
    result = KernelShap(fill="zeros").run(ask(model))
    x = torch.from_numpy(CONTRACT.normalize(ROW[None]))

    def worth(columns):
        stays = torch.from_numpy(np.isin(CONTRACT.owners, columns))
        with torch.no_grad():
            return float(model.network(torch.where(stays, x, 0.0))[0, 1])

    expected = np.zeros(4)
    for part in range(4):
        others = [n for n in range(4) if n != part]
        for size in range(4):
            for some in itertools.combinations(others, size):
                share = math.factorial(size) * math.factorial(3 - size) / math.factorial(4)
                expected[part] += share * (worth([*some, part]) - worth(list(some)))
    np.testing.assert_allclose(result.values, expected, atol=1e-5)
    assert result.parts[1] == f"colour = {result.shown[1]}"
    assert result.weighed()[0][0] == result.parts[int(np.abs(result.values).argmax())]


def test_occlusion_puts_in_what_other_rows_hold(model):
    result = Occlusion().run(ask(model, data=as_data(ROWS)))
    for n in range(4):
        rows = np.repeat(ROW[None], len(ROWS), axis=0)
        rows[:, n] = ROWS[:, n]
        drops = value(model, ROW)[0] - value(model, rows)
        assert result.values[n] == pytest.approx(drops.mean(), abs=1e-5)
        assert result.extras["standard error"][n] == pytest.approx(drops.std(ddof=1) / math.sqrt(120), abs=1e-5)
        np.testing.assert_allclose(result.extras["scores"][n], value(model, rows), atol=1e-5)
    assert result.evidence["rows"] == 120
    strongest = int(np.abs(result.values).argmax())
    assert result.evidence["standard error, of the strongest"] == pytest.approx(
        float(result.extras["standard error"][strongest]), rel=1e-4
    )
    assert result.evidence["lowest value"] == pytest.approx(float(result.extras["scores"].min()), abs=1e-6)


def test_occlusion_draws_rows_where_there_are_many(model):
    many = table(700, seed=4)
    one, same, other = (Occlusion().run(ask(model, data=as_data(many), seed=seed)) for seed in (0, 0, 1))
    assert one.evidence["rows"] == 200 == len(set(one.extras["rows"].tolist()))
    np.testing.assert_array_equal(one.values, same.values)
    assert not np.array_equal(one.values, other.values)
    every = np.repeat(ROW[None], 700, axis=0)
    every[:, 0] = many[:, 0]
    truth = value(model, ROW)[0] - value(model, every).mean()
    assert abs(one.values[0] - truth) < 4 * one.extras["standard error"][0]


def test_occlusion_without_data_says_what_it_puts_in(model):
    result = Occlusion().run(ask(model))
    row = ROW.copy()
    row[0] = 16
    assert result.values[0] == pytest.approx(value(model, ROW)[0] - value(model, row)[0], abs=1e-5)
    assert "without data every column is put at its mean" in result.notes[0]
    with pytest.raises(BadOption, match="fill 'rows' takes values of other rows, and there is no data"):
        Occlusion(fill="rows").run(ask(model))
    assert not Occlusion(fill="zeros").run(ask(model)).notes


def test_rows_that_cannot_be_read_are_left_out(model):
    class Holed(Inputs):
        def read(self, index):
            if index % 10 == 0:
                raise BadInput(f"row {index} has a hole")
            return super().read(index)

    data = Holed([(f"row {n}", row) for n, row in enumerate(ROWS)])
    result = Occlusion().run(ask(model, data=data))
    assert result.evidence["rows"] == 108
    assert result.notes == ("12 rows of the data cannot be read and were left out",)
    assert Lime(samples=50).run(ask(model, data=data)).values.any()
    with pytest.raises(BadInput, match="no row of .* can be read: row 0 has a hole"):
        Occlusion().run(ask(model, data=Holed([("row 0", ROW)])))


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Occlusion(window="3"), "option window is for inputs with axes .* a table is taken a column at a time"),
        (Occlusion(refine=1), "option refine is for"),
        (Occlusion(fill="space"), "fill 'space' is a token of a text; this input is none"),
        (Occlusion(fill="blur"), "fill 'blur' is for inputs with axes in space or time"),
        (Lime(segments="words"), "segments words is for text"),
        (Lime(segments="slic"), "segments slic is for pictures"),
        (Rise(), "rise is for inputs of kind image, array, text; .* takes table"),
        (GradCam(), "grad-cam cannot explain"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(model, method, told):
    with pytest.raises(BadOption, match=told) as caught:
        method.run(ask(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([np.nan, 1, 2, 0], "no finite number in column 'worst_radius'"),
        ([16, 5, 2, 0], "5 is no value of 'colour'; it takes 0 to 2"),
        ([16, 1, 2], "the network takes 4 columns: worst_radius, colour, texture, grade"),
    ],
)
def test_rows_that_do_not_fit_are_refused(model, row, told):
    with pytest.raises(BadInput, match=told):
        Gradient().run(ask(model, np.array(row, float)))


@pytest.mark.parametrize("data", [None, as_data(ROWS)], ids=["alone", "with data"])
def test_checks_take_columns_away_whole(model, data):
    method = Occlusion()
    request = ask(model, data=data)
    result = method.run(request)
    numbers, curves = check(method, request, result, steps=4, draws=2)
    assert all(numbers[name] is not None for name in ("deletion", "insertion", "sensitivity", "randomisation"))
    x = torch.from_numpy(CONTRACT.normalize(ROW[None]))
    order = np.argsort(-result.values)
    for step in range(5):  # one column more at every step
        away = torch.from_numpy(np.isin(CONTRACT.owners, order[:step]))
        with torch.no_grad():
            expected = float(model.network(torch.where(away, 0.0, x)).softmax(1)[0, 1])
        assert curves["deletion_curve"][step] == pytest.approx(expected, abs=1e-5)
    scene = open_scene(request)
    noisy = np.stack([_noisy(scene, draw) for draw in range(20)])
    assert (noisy[:, [1, 3]] == ROW[[1, 3]]).all()  # categories do not tremble
    width = np.ptp(ROWS[:, 0]) if data is not None else 4 * 5
    assert 0 < np.abs(noisy[:, 0] - ROW[0]).max() <= 0.02 * width


def test_earlier_results_are_still_read(tmp_path, model):
    folder = Gradient().run(ask(model)).save(tmp_path / "r")
    file = folder / "results.json"
    stored = json.loads(file.read_text())

    def without(node):
        if isinstance(node, dict):
            return {k: without(v) for k, v in node.items() if k not in ("tokens", "shown", "parts")}
        return [without(v) for v in node] if isinstance(node, list) else node

    file.write_text(json.dumps(without(stored)))
    loaded = load_result(folder)
    assert isinstance(loaded, ExplainResult)
    assert (loaded.tokens, loaded.shown, loaded.parts) == ((), (), ())
    assert "strongest" in loaded.to_dict()


def test_pages_and_pictures_name_columns_and_values(model):
    odd = TableContract.of([Column("a <b>", "µm", 16, 5), *COLUMNS[1:]])
    named = Model(model.network, odd, ["benign", "malignant"])
    results = [method.run(ask(named, data=as_data(ROWS))) for method in (Lime(samples=60), Occlusion())]
    page = explain_page(results, "row 3")
    assert "a &lt;b&gt;" in page
    assert "<b>" not in page
    assert "http" not in page
    fragment = row_fragment(results)
    assert fragment.count("<tr>") == 5
    for n in range(4):
        assert results[0].shown[n] in fragment
    assert any(part.split(" ")[-2] in fragment for part in results[0].parts)  # lime's rules
    assert 'class="minus"' in fragment
    assert fragment.index("lime") < fragment.index("occlusion")
    pixels = {tuple(p) for p in next(iter(results[1].pictures())).pixels.reshape(-1, 3).tolist()}
    assert {(176, 62, 38), (40, 98, 160)} <= pixels  # bars to both sides
    both, one = explain_sheet(results).pixels, explain_sheet(results[:1]).pixels
    assert both.shape[1] > one.shape[1] + 150
    assert both.shape[0] == one.shape[0]

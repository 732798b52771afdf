"""Formulas against the networks they are of: everywhere for expressions, up to the boundary and no further for affine rules."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.inputs import Column, InputContract, TableContract
from penlight.models import Model, Probe
from penlight.models.probe import undisturbed
from penlight.techniques.contract import Request
from penlight.techniques.formula.affine import Affine
from penlight.techniques.formula.symbolic import Symbolic


def model_of(make, shape, kind="array", **more):
    network = zoo.seeded(make)
    for module in network.modules():  # norms that do something
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    return Model(network, InputContract(kind, shape, **more))


def scores(model, points):
    """(N, classes) in double precision, at raw points (N, *shape)."""
    mean, std = (np.asarray(v, np.float64) for v in (model.contract.mean, model.contract.std))
    wide = (-1,) + (1,) * (len(model.contract.shape) - 1)
    x = torch.from_numpy((points - mean.reshape(wide)) / std.reshape(wide))
    network = model.network.double()
    try:
        with undisturbed(network), torch.no_grad():
            output = network(x)
            return output.reshape(len(x), -1).numpy()
    finally:
        network.float()


def own_scores(model, points):
    """The same from the network as it runs."""
    with undisturbed(model.network), torch.no_grad():
        return model.network(torch.from_numpy(points).float()).numpy()


class Block(nn.Module):
    """A residual sum, a norm, a concatenation, an in-place ReLU, a view, all by functions."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(8, 2)

    def forward(self, x):
        y = self.norm(self.one(x)).relu_()
        y = F.dropout(y + x, 0.5, self.training)
        z = F.relu(self.two(y).view(-1, 2, 2)).reshape(len(x), 4)
        z *= 0.5
        return self.last(torch.cat([z, y], 1))


def picture_net():
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(3, 2, 2), nn.LeakyReLU(0.1), nn.AvgPool2d(2, 1), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip


class Writes(nn.Module):
    """Writes into a part of memory of its own, and takes maxima by hand."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 4)

    def forward(self, x):
        y = torch.ones(len(x), 6, dtype=x.dtype)
        y[:, 1:5] = self.one(x)
        y[:, 2].clamp_(-0.5, 0.5)
        best = torch.maximum(y[:, :3], y[:, 3:])
        return torch.stack([best.sum(1), y.amax(1), torch.where(y[:, 1] > 0, y[:, 2], x[:, 0])], 1)


class Attends(nn.Module):
    """Products of what depends on the input, a softmax between, and a norm."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.last = nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        t = self.up(x.reshape(-1, 2, 2))
        mixed = torch.softmax(t @ t.transpose(1, 2), -1) @ t
        return self.last(self.norm(mixed).mean(1))


class Gated(nn.Module):
    def forward(self, x):
        return torch.stack([x[:, 0] * x[:, 1] / (1 + x[:, 2].exp()), (x * x).sum(1).sqrt(), x.abs().log1p().mean(1)], 1)


def two_of(activation):
    return lambda: nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2))


ACTIVATIONS = {
    name: getattr(nn, name)
    for name in (
        "ReLU", "LeakyReLU", "PReLU", "ELU", "CELU", "SELU", "GELU", "SiLU", "Sigmoid", "Tanh", "Softplus", "Hardtanh", "ReLU6",
        "Hardswish", "Hardsigmoid", "Mish", "LogSigmoid", "Softsign", "Tanhshrink", "Softshrink", "RReLU",
    )
} | {"tanh-GELU": lambda: nn.GELU("tanh"), "Threshold": lambda: nn.Threshold(0.1, 0.1), "Softmax": lambda: nn.Softmax(1)}  # fmt: skip


class NamesPrecision(nn.Module):
    """Code that names single precision, as old code does."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 4)

    def forward(self, x):
        y = torch.zeros(len(x), 4)
        y += F.relu(self.one(x.float()))
        return y @ torch.ones(4, 2)


NETWORKS = {
    **{name: (two_of(make), (3,)) for name, make in ACTIVATIONS.items()},
    "deep": (lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), (4,)),
    "block": (Block, (4,)),
    "picture": (picture_net, (2, 5, 5)),
    "writes": (Writes, (3,)),
    "precision": (NamesPrecision, (3,)),
    "attends": (Attends, (4,)),
    "gated": (Gated, (3,)),
    "signal": (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 2)), (1, 6)),
    "groups": (lambda: nn.Sequential(nn.Conv2d(2, 4, 2, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2)), (2, 3, 3)),
}  # fmt: skip
LINEAR_IN_PIECES = [
    "ReLU", "LeakyReLU", "PReLU", "Hardtanh", "ReLU6", "Hardsigmoid", "Softshrink", "RReLU", "Threshold", "deep", "block", "picture",
    "writes", "signal", "precision",
]  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_expression_is_the_network(name):
    make, shape = NETWORKS[name]
    model = model_of(make, shape)
    result = Symbolic(inputs=40, limit=60_000).run(Request(model))
    assert result.checks["error"] < 1e-6
    points = np.random.default_rng(7).normal(0, 1, (6, *shape))
    truth = own_scores(model, points) if name == "precision" else scores(model, points)
    if name == "Softmax":
        assert len(result.outputs) == truth.shape[1]
    space = {}
    exec(result.python, space)
    assert set(re.findall(r"from (\w+) import", result.python)) <= {"math"}
    symbols = sympy.symbols(result.variables)
    found = (
        [sympy.lambdify(symbols, one, "math") for one in result.sympy()]
        if max(map(len, result.expressions)) < 30_000
        else []
    )
    for point, row in zip(points.reshape(6, -1), truth, strict=True):
        told = space["f"](*point)
        np.testing.assert_allclose(told, row, rtol=2e-6, atol=1e-6)
        for one, value in zip(found, row, strict=False):
            assert float(one(*point)) == pytest.approx(value, rel=2e-6, abs=1e-6)


def test_xor_by_hand():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight[:], network[0].bias[:] = torch.ones(2, 2), torch.tensor([0.0, -1.0])
        network[2].weight[:], network[2].bias[:] = torch.tensor([[1.0, -2.0]]), torch.zeros(1)
    result = Symbolic().run(Request(Model(network, InputContract("array", (2,)))))
    x0, x1 = sympy.symbols("x0 x1")
    (found,) = result.sympy()
    assert sympy.simplify(found - (sympy.Max(0, x0 + x1) - 2 * sympy.Max(0, x0 + x1 - 1))) == 0
    assert [float(found.subs({x0: a, x1: b})) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1))] == [0, 1, 1, 0]
    assert result.outputs[0].text == "2:0 = Max(0, x0 + x1) - 2*Max(0, x0 + x1 - 1)"
    assert (
        result.outputs[0].latex
        == r"\text{2:0} = \max\left(0, x_{0} + x_{1}\right) - 2 \, \max\left(0, x_{0} + x_{1} - 1\right)"
    )


COLUMNS = [
    Column("worst radius", "mm", 16.0, 4.8),
    Column("lambda", "", 0.5, 0.1),
    Column("colour", values=("red", "green", "blue")),
    Column("grade", values=("low", "high"), encoding="number", mean=0.5, std=0.5),
]


def table_model(seed=0):
    make = lambda: nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))  # noqa: E731
    return Model(zoo.seeded(make, seed), TableContract.of(COLUMNS), ["benign", "malignant"])


def test_a_table_in_its_own_units():
    model = table_model()
    result = Symbolic().run(Request(model))
    assert result.variables == (
        "worst_radius",
        "lambda_",
        "colour_is_red",
        "colour_is_green",
        "colour_is_blue",
        "grade",
    )
    rows = np.array([[14.0, 0.4, 1, 0], [30.0, 0.9, 2, 1], [5.0, 0.1, 0, 1]])
    space = {}
    exec(result.python, space)
    with torch.no_grad():
        truth = model.network(model.tensor(rows)).numpy()
    for row, expected in zip(rows, truth, strict=True):
        indicators = (row[2] == np.arange(3)).astype(float)
        point = [row[0], row[1], *indicators, row[3]]
        np.testing.assert_allclose(space["f"](*point), expected, rtol=1e-5, atol=1e-5)
    rule = Affine().run(Request(model, input=rows[0]))
    point = np.array([14.0, 0.4, 0, 1, 0, 0])
    named = model.labels[int(truth[0].argmax())]
    assert rule.outputs[0].name == named
    assert rule.weights @ point + rule.bias == pytest.approx(truth[0].max(), rel=1e-5)
    assert set(rule.margin["columns"]) == {"worst_radius", "lambda_"}


def test_categories_that_keep_the_rule():
    kept = total = 0
    for seed in range(6):
        model = table_model(seed)
        row = np.array([14.0, 0.4, 1, 0])
        told = Affine().run(Request(model, input=row, targets=["class:benign"])).margin["categories"]

        def pattern(row, model=model):
            with torch.no_grad():
                first = model.network[:2](model.tensor(row[None]))
                return torch.cat([first, model.network[2:4](first)], 1)[0] > 0

        for place, column in ((2, "colour"), (3, "grade")):
            for n, value in enumerate(COLUMNS[place].values):
                if n == row[place]:
                    continue
                other = row.copy()
                other[place] = n
                same = bool((pattern(other) == pattern(row)).all())
                assert (value in told[column]) == same
                kept, total = kept + same, total + 1
    assert 0 < kept < total


@pytest.mark.parametrize("name", LINEAR_IN_PIECES)
def test_the_rule_holds_on_random_walks_up_to_the_boundary_and_not_beyond(name):
    make, shape = NETWORKS[name]
    model = model_of(make, shape)
    rng = np.random.default_rng(3)
    given = rng.normal(0, 1, shape).astype(np.float32)
    result = Affine().run(Request(model, input=given, targets=["class:0"] if model.class_layer else []))
    w, b, x = result.rule.weights[0], result.rule.bias[0], given.astype(np.float64).reshape(-1)
    told, close = (own_scores, 1e-5) if name == "precision" else (scores, 1e-9)
    truth = told(model, given[None].astype(np.float64))[0, 0]
    assert w @ x + b == pytest.approx(truth, rel=close, abs=1e-9)
    radius = result.margin["distance"]
    assert result.margin["exact"]
    point = x.copy()
    for _ in range(30):  # a walk of small steps that stays in the ball
        point = point + rng.normal(0, 0.3 * radius / math.sqrt(len(x)), len(x))
        off = np.linalg.norm(point - x)
        point = x + (point - x) * min(1.0, 0.999 * radius / max(off, 1e-12))
        assert told(model, point.reshape(1, *shape))[0, 0] == pytest.approx(w @ point + b, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["ReLU", "deep", "block", "picture"])
def test_columns_move_as_far_as_bisection_on_the_network_says(name):
    """The pattern of all hinges, read off the network's gradient of everything it puts out, changes exactly there."""
    make, shape = NETWORKS[name]
    model = model_of(make, shape)
    given = np.random.default_rng(5).normal(0, 1, shape)
    margin = Affine().run(Request(model, input=given.astype(np.float32), targets=["class:0"])).margin
    given = given.astype(np.float32).astype(np.float64)
    network = model.network.double().eval()
    start = _patterns(network, given)
    for n in range(0, given.size, max(1, given.size // 6)):
        for ends, sign in zip(margin["columns"][f"x{n}"], (-1, 1), strict=True):
            reach = 20.0 if ends is None else 1.001 * ends
            low, high = 0.0, reach
            if ends is None:
                assert _patterns(network, _moved(given, n, sign * reach)) == start
                continue
            assert _patterns(network, _moved(given, n, sign * high)) != start
            for _ in range(45):
                middle = (low + high) / 2
                low, high = (
                    (middle, high) if _patterns(network, _moved(given, n, sign * middle)) == start else (low, middle)
                )
            assert high == pytest.approx(ends, rel=1e-6, abs=1e-9)
    network.float()


def test_distances_in_deviations_are_those_of_the_network_s_own_input():
    columns = [Column("a", "mm", 3.0, 2.0), Column("b", "", -1.0, 0.1), Column("c", "", 0.0, 30.0)]
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    row = np.array([4.0, -1.15, 11.0])
    raw = Affine().run(Request(Model(network, TableContract.of(columns)), input=row, targets=["2:0"]))
    seen = np.array([0.5, -1.5, 11 / 30], np.float32)
    own = Affine().run(Request(Model(network, InputContract("array", (3,))), input=seen, targets=["2:0"]))
    assert raw.margin["standardised"] == pytest.approx(own.margin["distance"], rel=1e-5)
    assert raw.margin["unit_standardised"] == own.margin["unit"]
    assert raw.margin["distance"] != pytest.approx(own.margin["distance"], rel=0.1)
    for name, ends, std in zip("abc", own.margin["columns"].values(), (2.0, 0.1, 30.0), strict=True):
        for moved, end in zip(raw.margin["columns"][name], ends, strict=True):
            assert moved == (None if end is None else pytest.approx(end * std, rel=1e-5))
    np.testing.assert_allclose(raw.weights * [2.0, 0.1, 30.0], own.weights, rtol=1e-6)


def test_the_steepest_way():
    model = model_of(NETWORKS["deep"][0], (4,))
    given = np.random.default_rng(2).normal(0, 1, 4).astype(np.float32)
    result = Affine().run(Request(model, input=given, targets=["class:1"]))
    way = result.weights / np.linalg.norm(result.weights)
    network = model.network.double().eval()
    start = _patterns(network, given.astype(np.float64))
    for sign, step in zip((-1, 1), result.margin["steepest"], strict=True):
        for share, same in ((0.999, True), (1.001, False)):
            if step is not None:
                assert (_patterns(network, given + sign * share * step * way) == start) == same
    assert any(step is not None for step in result.margin["steepest"])
    network.float()


def _moved(given, n, by):
    moved = given.copy()
    moved.reshape(-1)[n] += by
    return moved


def _patterns(network, given):
    """Which inputs of ReLUs are above zero, and which places maxima take: read by the functions themselves."""
    seen = []
    relu, relu_, pool = F.relu, torch.Tensor.relu_, F.max_pool2d

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            name = getattr(func, "__name__", "")
            if name in ("relu", "relu_", "leaky_relu"):
                seen.append((args[0] > 0).flatten().tolist())
            output = func(*args, **(kwargs or {}))
            if name == "max_pool2d" or name == "_max_pool2d":
                indices = pool(args[0].detach(), *args[1:3], ceil_mode=True, return_indices=True)[1]
                seen.append(indices.flatten().tolist())
            return output

    assert relu is F.relu
    assert relu_ is torch.Tensor.relu_
    with torch.no_grad(), Watch():
        network(torch.from_numpy(given)[None].clone())
    return seen


def test_the_named_unit_flips_at_the_boundary():
    model = model_of(NETWORKS["deep"][0], (4,))
    given = np.random.default_rng(2).normal(0, 1, 4).astype(np.float32)
    result = Affine().run(Request(model, input=given, targets=["class:1"]))
    unit = penlight.Unit.parse(result.margin["unit"].partition(" ")[0])
    x = torch.from_numpy(given.astype(np.float64)).requires_grad_()
    network = model.network.double()

    def value(x):
        seen = []
        with Probe(network, {unit.layer: lambda output: seen.append(output[0, unit.index].clone())}) as probe:
            probe(x[None])
        return seen[0]

    now = value(x)
    (slope,) = torch.autograd.grad(now, x)
    now = now.detach()
    way = -torch.sign(now) * slope / slope.norm()
    distance = result.margin["distance"]
    assert float(abs(now) / slope.norm()) == pytest.approx(distance, rel=1e-9)
    assert float((value(x + 0.999 * distance * way) * now).detach()) > 0
    assert float((value(x + 1.001 * distance * way) * now).detach()) < 0
    assert ("on" in result.margin["unit"]) == (float(now) > 0)
    network.float()


def test_without_all_directions_the_distance_is_an_upper_bound_and_nearly_exact():
    model = model_of(NETWORKS["picture"][0], (2, 5, 5))
    given = np.random.default_rng(4).normal(0, 1, (2, 5, 5)).astype(np.float32)
    whole = Affine().run(Request(model, input=given, targets=["class:0"]))
    some = Affine(directions=0).run(Request(model, input=given, targets=["class:0"]))
    np.testing.assert_allclose(some.weights, whole.weights, rtol=1e-9, atol=1e-12)
    assert some.bias == pytest.approx(whole.bias, rel=1e-9)
    assert not some.margin["exact"]
    assert some.margin["distance"] >= whole.margin["distance"] * (1 - 1e-9)
    assert some.margin["distance"] == pytest.approx(whole.margin["distance"], rel=1e-6)
    for name, ends in some.margin["columns"].items():
        assert ends == pytest.approx(whole.margin["columns"][name])


def test_a_margin_between_two_classes():
    model = table_model()
    row = np.array([14.0, 0.4, 1, 0])
    both = Affine().run(Request(model, input=row, targets=["class:malignant", "class:benign"]))
    one = Affine().run(Request(model, input=row, targets=["class:malignant - class:benign"]))
    np.testing.assert_allclose(one.weights, both.weights[0] - both.weights[1], atol=1e-12)
    assert one.bias == pytest.approx(both.bias[0] - both.bias[1])
    assert one.outputs[0].name == "malignant - benign"


def test_ranges_leave_out_what_never_decides_and_the_rest_stays_exact():
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))
    with torch.no_grad():
        network[0].weight[:2] = torch.tensor([[-0.7, -0.7], [0.7, 0.7]])
        network[0].bias[:] = torch.tensor(
            [1.5, -1.5, 0.1]
        )  # always on and never on within [0, 1], and one that decides
    model = Model(network, InputContract("array", (2,)))
    data = penlight.inputs.open_data(np.random.default_rng(0).random((50, 2), np.float32), model.contract)
    free, bound = (Symbolic(ranges=r).run(Request(model, data=data)) for r in ("none", "data"))
    assert free.expressions[0].count("Max") == 3
    assert bound.expressions[0].count("Max") == 1
    assert "2 terms" in " ".join(bound.notes)
    space = {}
    exec(bound.python, space)
    for n in range(10):
        x = data.read(n)
        np.testing.assert_allclose(space["f"](*map(float, x)), scores(model, x[None].astype(float))[0], rtol=1e-6)


def test_probabilities():
    for classes in (1, 2, 3):
        model = model_of(lambda n=classes: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, n)), (3,))
        result = Symbolic(of="probability").run(Request(model))
        x = np.random.default_rng(1).normal(size=(1, 3)).astype(np.float32)
        space = {}
        exec(result.python, space)
        found = np.atleast_1d(space["f"](*map(float, x[0])))
        np.testing.assert_allclose(found, model.predict(x)[0], rtol=1e-5)
        assert len(found) == classes


def test_the_python_form_runs_on_its_own(tmp_path):
    model = model_of(NETWORKS["GELU"][0], (3,))
    result = Symbolic().run(Request(model))
    file = tmp_path / "formula.py"
    file.write_text(result.python + "\nprint(f(0.5, -1.0, 2.0)[1])\n")
    told = subprocess.run([sys.executable, "-I", str(file)], capture_output=True, text=True, check=True).stdout
    assert float(told) == pytest.approx(scores(model, np.array([[0.5, -1.0, 2.0]]))[0, 1], rel=1e-6)


def test_pixels_are_raw():
    model = model_of(NETWORKS["picture"][0], (2, 5, 5), "image", mean=(0.4, 0.6), std=(0.2, 0.3))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5), np.uint8)
    result = Affine().run(Request(model, input=pixels, targets=["class:2"]))
    with torch.no_grad():
        truth = float(model.network.eval()(model.tensor(pixels[None]))[0, 2])
    assert result.weights @ (pixels.reshape(-1) / 255) + result.bias == pytest.approx(truth, abs=1e-5)


def test_where_hinges_are_chosen_a_maximum_counts_both_of_its_values():
    torch.manual_seed(0)
    network = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2)).eval()
    model = penlight.load(network, example=torch.zeros(1, 1, 4, 4))
    given = np.random.default_rng(3).random((1, 4, 4)).astype(np.float32)
    exact = penlight.formula(model, given).margin
    chosen = penlight.formula(model, given, directions=0, critical=64).margin
    pairs = given.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
    ordered = np.sort(pairs, axis=1)
    nearest = float((ordered[:, 3] - ordered[:, 2]).min()) / np.sqrt(2)
    assert exact["distance"] == pytest.approx(nearest, rel=1e-5)
    assert chosen["distance"] == pytest.approx(nearest, rel=1e-5)

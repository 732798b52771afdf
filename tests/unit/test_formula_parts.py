"""Formulas: names, writing, what is refused, the disk, the command line."""

import json
import re

import numpy as np
import pytest
import sympy
import torch
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadInput, BadOption, BadUnit, CannotRun, PenlightError, UnknownName
from penlight.inputs import Column, InputContract, TableContract, TextContract, open_data
from penlight.models import Model
from penlight.render.formula import page, rule_line, text
from penlight.results import load_result
from penlight.results.formula import Variable
from penlight.techniques.contract import Request
from penlight.techniques.formula.affine import Affine
from penlight.techniques.formula.forms import Book, Form
from penlight.techniques.formula.symbolic import Symbolic
from penlight.techniques.formula.variables import identifier, variables
from penlight.techniques.formula.writing import Latex, Python, Writer


def plain(make, shape=(3,), labels=None):
    return Model(zoo.seeded(make), InputContract("array", shape), labels)


def small():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def test_names_are_read_by_python_and_sympy():
    taken = set()
    given = ["worst radius", "worst-radius", "lambda", "beta", "S", "max", "2nd", "größe", "…", "x0"]
    found = [identifier(name, taken) for name in given]
    assert found[:2] == ["worst_radius", "worst_radius_2"]
    assert len(set(found)) == len(found)
    for name in found:
        assert isinstance(sympy.sympify(f"2*{name} + 1"), sympy.Add)
        assert sympy.sympify(name) == sympy.Symbol(name)


def test_a_picture_s_variables_are_its_numbers_in_order():
    front = variables(InputContract("image", (3, 2, 2), (0.1, 0.2, 0.3), (1.0, 2.0, 4.0)))
    assert front.names == tuple(f"x{n}" for n in range(12))
    assert front.told[5].column == "1,0,1"
    raw = front.raw(np.full((3, 2, 2), 255, np.uint8))
    np.testing.assert_allclose(front.seen(raw[None])[0, :, 0, 0], [0.9, 0.4, 0.175])
    with pytest.raises(BadInput, match="shape"):
        front.raw(np.zeros((3, 2, 3)))


def test_forms_know_what_never_decides():
    book = Book([(1.0, 2.0), (-3.0, 3.0)])
    a, b = book.variable(0), book.variable(1)
    assert book.largest([Form(), a]) == a
    assert book.largest([Form(), a.scaled(-1)]) == Form()
    assert book.smallest([Form(5.0), a]) == a
    assert len(book.atoms) == 2
    hinge = book.largest([Form(), b])
    assert book.atoms[hinge.terms[0][0]].name == "max"
    assert book.range(hinge) == (0.0, 3.0)
    assert book.largest([Form(), hinge]) == hinge  # a rectifier of a rectifier
    assert book.largest([Form(), b]) == hinge  # written once
    assert book.product(a, Form(2.0)) == a.scaled(2)
    assert (a - a) == Form()


def test_numbers_signs_and_long_sums():
    book = Book()
    x = [book.variable(n) for n in range(250)]
    form = x[0].scaled(-1.0) + x[1].scaled(1.23456789e-7) - x[2].shifted(2.0)
    assert Writer(book, [f"x{n}" for n in range(250)], 3).form(form) == "-x0 + 1.23e-07*x1 - x2 - 2"
    told = Latex(book, ["a_b", *(f"x{n}" for n in range(1, 250))], 3).form(form)
    assert told == r"-\mathrm{a\_b} + 1.23 \cdot 10^{-7} \, x_{1} - x_{2} - 2"
    total = Form()
    for n, one in enumerate(x):
        total = total + one.scaled(n + 1.0)
    whole = Writer(book, [f"x{n}" for n in range(250)]).form(total)
    assert eval(whole, {f"x{n}": 1.0 for n in range(250)}) == 250 * 251 / 2
    assert whole.count("(") == 3
    assert Writer(book, ["x"]).form(Form()) == "0"


@pytest.mark.parametrize("writer", [Writer, Python, Latex])
def test_every_function_can_be_written(writer):
    book = Book()
    a, b = book.variable(0), book.variable(1)
    parts = [
        book.function(name, a + b) for name in ("exp", "log", "tanh", "sigmoid", "softplus", "erf", "abs", "sin", "cos")
    ]
    parts += [book.function("step", a), book.function("reach", b), book.power(a + b, -1.0), book.power(b, 0.5)]
    parts += [book.power(a, 3.0), book.product(a + b, b), book.largest([a, b]), book.smallest([a, Form(1.0)])]
    for part in parts:
        told = writer(book, ["a", "b"]).form(part)
        assert told.count("{") == told.count("}")
        assert told.count("(") == told.count(")")
        if writer is Writer:
            found = sympy.sympify(told).subs({"a": 0.7, "b": 1.9})
            assert float(found) == pytest.approx(book.values([part], np.array([[0.7, 1.9]]))[0, 0])


def test_digits():
    model = plain(small)
    few = Symbolic(digits=3).run(Request(model))
    assert max(len(re.sub(r"\D", "", n).lstrip("0")) for n in re.findall(r"\d+\.\d+", few.expressions[0])) <= 3
    assert "3 significant digits" in few.notes[0]
    assert few.checks["error"] > 1e-6
    assert "away from the network" in " ".join(few.notes)
    own = Symbolic().run(Request(model))
    assert own.checks["error"] < 1e-6
    assert own.checks["digits"] < 17


def test_too_large_says_what_was_counted():
    with pytest.raises(BadOption, match=r"takes 150,528 numbers.*20,000 terms.*--at"):
        Symbolic().run(Request(plain(lambda: nn.Sequential(nn.Flatten(), nn.Linear(150528, 1)), (3, 224, 224))))
    with pytest.raises(BadOption, match=r"needs .* terms by 0|has .* terms"):
        Symbolic(limit=20).run(Request(plain(small)))
    wide = plain(lambda: nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 9)))
    with pytest.raises(BadOption, match=r"has \d+,\d+ terms, the whole expression may have 5,000"):
        Symbolic(limit=5000).run(Request(wide))
    assert Symbolic(limit=5000).run(Request(wide, targets=["2:1"])).checks["terms"] < 5000


class Peeks(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 2)

    def forward(self, x):
        return self.one(x) if float(x.sum()) > 0 else self.one(-x)


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, x):
        y = self.one(x)
        return self.two(y * y)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.Sigmoid(), nn.Linear(2, 2)), "1 computes sigmoid"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.GELU(), nn.Linear(2, 2)), "1 computes gelu"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)), "1 computes layer norm"),
        (lambda: nn.Sequential(nn.Linear(3, 2), nn.Softmax(1), nn.Linear(2, 2)), "1 computes softmax"),
        (Squares, "its forward computes mul"),
        (Peeks, "its forward takes a path that depends"),
    ],
)
def test_what_is_not_piecewise_linear_is_refused_by_name(make, named):
    with pytest.raises(BadOption, match=f"{named}.*symbolic.*explain"):
        Affine().run(Request(plain(make), input=np.ones(3, np.float32)))


def test_a_curve_after_what_was_asked_does_no_harm():
    model = plain(lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.Softmax(1)))
    result = Affine().run(Request(model, input=np.ones(3, np.float32)))
    assert result.outputs[0].unit.startswith("2:")
    assert Affine().run(Request(plain(small), input=np.ones(3, np.float32), targets=["0:1"])).margin["distance"] is None


def test_what_has_no_formula_is_refused():
    with pytest.raises(BadOption, match="computes sort"):
        Symbolic().run(Request(plain(type("Sorts", (Peeks,), {"forward": lambda self, x: self.one(x.sort(1)[0])}))))
    with pytest.raises(BadOption, match="depends on the input's values"):
        Symbolic().run(Request(plain(Peeks)))


def test_a_formula_that_is_not_the_network_is_never_given(monkeypatch):
    from penlight.techniques.formula import algebra

    wrong = dict(algebra.ELEMENTWISE) | {"relu": (lambda book, z: book.largest((Form(0.01), z)), 1)}
    monkeypatch.setattr(algebra, "ELEMENTWISE", wrong)
    with pytest.raises(CannotRun, match="differs from"):
        Symbolic().run(Request(plain(small)))


def test_a_rule_that_is_not_the_network_is_never_given(monkeypatch):
    from penlight.techniques.formula import regions

    wrong = dict(regions.HINGED) | {"relu": regions._kinked(lambda call: [(0.0, 0.1, 1.0)])}
    monkeypatch.setattr(regions, "HINGED", wrong)
    with pytest.raises(CannotRun, match="differs from"):
        Affine().run(Request(plain(small), input=np.ones(3, np.float32)))


def test_units_and_sums_of_them():
    model = plain(small, labels=["a - b", "c"])
    point = Request(model, input=np.ones(3, np.float32), targets=["class:a - b"])
    assert Affine().run(point).outputs[0].name == "a - b"
    found = Affine().run(
        Request(model, input=np.ones(3, np.float32), targets=["class:a - b - 2*class:c", "2:0", "2:1"])
    )
    np.testing.assert_allclose(found.weights[0], found.weights[1] - 2 * found.weights[2], atol=1e-12)
    assert len(Symbolic().run(Request(model, targets=["0:*"])).outputs) == 4
    with pytest.raises(UnknownName, match="label 'd'"):
        Affine().run(Request(model, input=np.ones(3, np.float32), targets=["class:c - class:d"]))
    picture = plain(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)), (1, 3, 3))
    with pytest.raises(BadUnit, match="a map of 2×2 places; name one, as in 0:1@0,0"):
        Symbolic().run(Request(picture, targets=["0:1"]))
    placed = Affine().run(Request(picture, input=np.eye(3, dtype=np.float32)[None], targets=["0:1"]))
    assert re.fullmatch(r"0:1@\d,\d", placed.outputs[0].unit)
    with pytest.raises(BadInput, match="--at"):
        Affine().run(Request(model))


def test_a_network_without_classes_gives_all_it_puts_out():
    model = plain(lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh()), (1, 3, 2))
    result = Symbolic().run(Request(model))
    assert [one.name for one in result.outputs] == ["1:0@0,0", "1:0@1,0", "1:1@0,0", "1:1@1,0"]
    with pytest.raises(BadOption, match="--of probability"):
        Symbolic(of="probability").run(Request(model))
    with pytest.raises(BadUnit, match="--unit"):
        Affine().run(Request(model, input=np.ones((1, 3, 2), np.float32)))


def test_text_has_no_formula():
    contract = TextContract.of(["a", "b"]) if hasattr(TextContract, "of") else None
    if contract is None:
        contract = type("Text", (), {"kind": "text"})()
    with pytest.raises(BadOption, match="text has no formula"):
        variables(contract)


def test_the_network_is_left_as_it_was():
    network = zoo.seeded(zoo.InPlace).train()
    model = Model(network, InputContract("array", (3, 12, 20)))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    Affine(directions=0).run(Request(model, input=np.ones((3, 12, 20), np.float32)))
    with pytest.raises(PenlightError):
        Symbolic().run(Request(model))
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad and p.dtype == torch.float32 for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_point_on_a_boundary_is_told():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(F.max_pool2d(x, (1, 2)).flatten(1))

    result = Affine().run(Request(plain(Flat, (1, 4, 2)), input=np.ones((1, 4, 2), np.float32), targets=["fc:0"]))
    assert result.margin["distance"] == 0
    assert "lies on a boundary" in " ".join(result.notes)


TABLE = TableContract.of(
    [Column("size <b>", "mm", 10.0, 2.0), Column("mass", "kg", 5.0, 1.0), Column("colour", values=("red", "blue"))]
)


@pytest.fixture
def ruled():
    make = lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))  # noqa: E731
    model = Model(zoo.seeded(make), TABLE, ["good & well", "bad"])
    return Affine().run(Request(model, input=np.array([11.0, 4.0, 1.0]), targets=["class:bad"]))


def test_results_survive_the_disk(tmp_path, ruled):
    for result in (ruled, Symbolic().run(Request(plain(small)))):
        again = load_result(result.save(tmp_path / result.provenance.method))
        assert again.to_json() == result.to_json()
        assert (again.text, again.latex, again.python) == (result.text, result.latex, result.python)
        folder = tmp_path / result.provenance.method
        assert (folder / "formula.tex").read_text("utf-8").strip() == result.latex
        space = {}
        exec((folder / "formula.py").read_text("utf-8"), space)
        assert callable(space["f"])
        assert result._repr_html_().startswith("<pre")


def test_json_says_what_was_promised(ruled):
    told = json.loads(ruled.to_json())
    assert told["variables"] == ["size_b", "mass", "colour_is_red", "colour_is_blue"]
    assert told["columns"][0] == {"name": "size_b", "column": "size <b>", "unit": "mm", "value": None}
    values = dict(zip(told["variables"], told["input"], strict=True))
    found = float(sympy.sympify(told["expressions"][0]).subs(values))
    assert found == pytest.approx(np.dot(told["weights"], told["input"]) + told["bias"], rel=1e-6)
    assert found == pytest.approx(told["target"]["value"], rel=1e-6)
    assert set(told["margin"]["columns"]) == {"size_b", "mass"}
    assert all(len(ends) == 2 for ends in told["margin"]["columns"].values())
    assert told["margin"]["distance"] > 0
    assert told["margin"]["exact"] is True
    assert told["margin"]["unit"].startswith("0:")


def test_the_line_and_the_page(ruled):
    line = ruled.outputs[0].text
    assert line.startswith("bad ")
    assert "·size_b" in line
    shown = text(ruled)
    assert "11 mm" in shown
    assert "may rise by" in shown
    whole = page(ruled)
    assert "<b>" not in whole.replace("size &lt;b&gt;", "")
    assert "size &lt;b&gt;" in whole
    assert "<script" not in whole
    assert "http" not in whole
    many = np.arange(1.0, 11)
    told = rule_line("y", 3.0, many, 0.0, many, [Variable(f"v{n}", f"v{n}") for n in range(10)])
    assert told == "y 3 = 10·v9 + 9·v8 + 8·v7 + 7·v6 + 6·v5 + 5·v4 + 30 (4 smaller)"


def test_latex_names_are_escaped():
    model = Model(zoo.seeded(small), InputContract("array", (3,)), ["a_b & {c}", "d"])
    told = Symbolic().run(Request(model)).outputs[0].latex
    assert r"\text{a\_b \& \{c\}}" in told
    plainly = told.replace(r"\{", "").replace(r"\}", "")
    assert plainly.count("{") == plainly.count("}")
    assert told.count(r"\left(") == told.count(r"\right)")


@pytest.fixture
def doors(monkeypatch):
    """The registry and the API as they are once the methods are registered."""
    from penlight import api
    from penlight.techniques.contract import methods
    from penlight.techniques.formula.door import asked

    added = [(n, k) for n, k in (("symbolic", Symbolic), ("affine", Affine)) if n not in methods["formula"]]
    for name, kind in added:
        methods["formula"].add(name, kind)

    def formula(model, at=None, *, unit=None, method=None, data=None, seed=0, progress=None, **options):
        found = None if data is None and model.data is None else api.find_data(model, data)
        return asked(model, at, unit, method, found, seed, progress or (lambda done, of: None), options)

    if not hasattr(api, "formula"):
        monkeypatch.setattr(api, "formula", formula, raising=False)
    yield
    for name, _ in added:
        methods["formula"].remove(name)


@pytest.mark.usefixtures("doors")
def test_the_door_in_python():
    from penlight.api import formula

    model = penlight.load(zoo.seeded(small), example=torch.zeros(1, 3))
    assert formula(model).provenance.method == "symbolic"
    at = formula(model, np.ones(3, np.float32), unit="2:0")
    assert at.provenance.method == "affine"
    assert at.bias == pytest.approx(at.rule.value[0] - at.weights.sum())
    assert formula(model, np.ones(3, np.float32), method="symbolic").rule is None
    assert formula(model, "data:1", data=np.zeros((2, 3), np.float32)).rule.source == "data:1"
    with pytest.raises(UnknownName, match="digit"):
        formula(model, digit=3)


@pytest.mark.usefixtures("doors")
def test_the_command(tmp_path, capsys):
    from click.testing import CliRunner

    from penlight.cli.formula import command

    out = tmp_path / "f"
    np.save(tmp_path / "x.npy", np.ones(7, np.float32))
    arguments = ["module:zoo:fixed_table", "--at", str(tmp_path / "x.npy"), "--out", str(out)]
    zoo.fixed_table = lambda: (zoo.seeded(zoo.NETWORKS["table"][0]), torch.zeros(1, 7))
    try:
        done = CliRunner().invoke(command, [*arguments, "--trust"], catch_exceptions=False)
        told = CliRunner().invoke(command, [*arguments[:1], "--json", "--trust"], catch_exceptions=False)
    finally:
        del zoo.fixed_table
    assert done.exit_code == 0
    assert "holds up to" in done.output
    assert {"formula.html", "formula.txt", "formula.tex", "formula.py", "results.json"} <= {
        f.name for f in out.iterdir()
    }
    found = json.loads(told.stdout)
    assert found["variables"] == [f"x{n}" for n in range(7)]
    assert len(found["expressions"]) == 2


def test_data_is_tried_too():
    model = plain(small)
    data = open_data(np.random.default_rng(0).random((9, 3), np.float32), model.contract)
    assert Symbolic(inputs=20).run(Request(model, data=data)).checks["inputs"] == 29
    with pytest.raises(BadInput, match="--data"):
        Symbolic(ranges="data").run(Request(model))

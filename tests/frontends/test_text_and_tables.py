"""Networks on text and on tables, as a user meets them: commands, doors in Python, atlas and site."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_site import check_links, html_files
from torch import nn

import penlight
import zoo
from penlight.cli import run
from penlight.results import ColumnsResult, PassagesResult, RowsResult, StringsResult, TracksResult, load_result
from penlight.web.site import build_site


def says(capsys, *arguments):
    status = run([str(a) for a in arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A card of a language model, and a folder of texts with what HTML has to escape."""
    folder = tmp_path_factory.mktemp("text")
    save_file(zoo.seeded(zoo.Reader).state_dict(), str(folder / "reader.safetensors"))
    (folder / "reader.toml").write_text(
        'source = "module:zoo:Reader"\nweights = "reader.safetensors"\n[input]\nkind = "text"\nvocabulary = "a<&(\\n"\nunknown = "a"\n'
    )
    (folder / "texts").mkdir()
    for n in range(4):
        rng = np.random.default_rng(n)
        (folder / "texts" / f"{n}<b>.txt").write_text("".join(rng.choice(list("a<&(\n"), 300 + 50 * n)))
    return folder


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A card of a network with a categorical column, and a table with a class and a broken row."""
    folder = tmp_path_factory.mktemp("table")
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)))
    save_file(network.state_dict(), str(folder / "net.safetensors"))
    (folder / "net.toml").write_text(
        'source = "module:test_text_and_tables:small"\nweights = "net.safetensors"\n[input]\nkind = "table"\ntarget = "bought"\n'
        'labels = ["no", "<yes>"]\n[[input.columns]]\nname = "age"\nunit = "years"\nmean = 40.0\nstd = 12.0\n'
        '[[input.columns]]\nname = "<income>"\nmean = 3e4\nstd = 1e4\n'
        '[[input.columns]]\nname = "colour"\nvalues = ["red", "green", "blue"]\n'
    )
    rng = np.random.default_rng(0)
    rows = [
        f"{rng.normal(40, 12):.1f},{rng.normal(3e4, 1e4):.0f},{rng.choice(['red', 'green', 'blue'])},{rng.choice(['no', '<yes>'])}"
        for _ in range(60)
    ]
    rows.insert(7, "young,1,red,no")
    (folder / "people.csv").write_text("age,<income>,colour,bought\n" + "\n".join(rows) + "\n")
    return folder


def small():
    """The network of the table's card."""
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))


def test_the_layers_of_a_recurrent_network_are_its_states_and_gates(capsys, texts):
    status, out, _ = says(capsys, "layers", texts / "reader.toml", "--trust", "--json")
    assert status == 0
    rows = {row["path"]: row for row in json.loads(out)}
    assert rows["lstm.cell_l1"]["units"] == 6
    assert rows["lstm.forget_gate_l0"]["layout"] == "NLC"
    assert rows["lstm.cell_l0"]["receptive_field"] is None


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("survey", "reader.toml", "texts", "--top", "2"), PassagesResult),
        (("activations", "reader.toml", "texts/0<b>.txt"), TracksResult),
        (("activations", "reader.toml", "a<& (a"), TracksResult),
        (("visualize", "reader.toml", "lstm.cell_l1:3", "class:<", "--data", "texts", "--length", "8"), StringsResult),
    ],
)
def test_every_question_of_a_text(capsys, monkeypatch, texts, tmp_path, arguments, kind):
    monkeypatch.chdir(texts)
    verb, model, *rest = arguments
    status, out, err = says(capsys, verb, model, "--trust", *rest, "--out", tmp_path / "out")
    assert status == 0, err
    assert isinstance(load_result(tmp_path / "out"), kind)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<b>.txt" not in page
    assert out.strip()
    again = says(capsys, verb, model, "--trust", *rest, "--json")
    assert json.loads(again[1])["kind"] == kind.kind


def test_a_text_is_explained_character_by_character(capsys, monkeypatch, texts, tmp_path):
    monkeypatch.chdir(texts)
    status, out, err = says(
        capsys, "explain", "reader.toml", "text:a<&(a<&(a<&(", "--unit", "lstm.cell_l0:2@9", "--method", "gradient,occlusion",
        "--trust", "--out", tmp_path / "why",
    )  # fmt: skip
    assert status == 0, err
    assert "lstm.cell_l0:2@9" in out
    assert (tmp_path / "why" / "index.html").exists()
    r = penlight.explain(
        penlight.load(texts / "reader.toml", trust=True), "text:a<&(a<&(a<&(", "lstm.cell_l0:2@9", method="gradient"
    )
    assert r.values.shape == (12,)
    assert r.tokens[1] == "<"
    assert np.abs(r.values[:10]).max() > 0
    assert not r.values[10:].any(), "a cell does not see what comes after"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("survey", "net.toml", "people.csv", "--top", "2"), ColumnsResult),
        (("visualize", "net.toml", "class:<yes>", "--data", "people.csv", "--steps", "40"), RowsResult),
    ],
)
def test_every_question_of_a_table(capsys, monkeypatch, table, tmp_path, arguments, kind):
    monkeypatch.chdir(table)
    verb, model, *rest = arguments
    status, out, err = says(capsys, verb, model, "--trust", *rest, "--out", tmp_path / "out")
    assert status == 0, err
    assert isinstance(load_result(tmp_path / "out"), kind)
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<yes>" not in page
    assert "<income>" not in page
    assert "colour" in out
    told = json.loads(says(capsys, verb, model, "--trust", *rest, "--json")[1])
    assert told["kind"] == kind.kind


def test_a_broken_row_is_told_and_passed_over(capsys, monkeypatch, table):
    monkeypatch.chdir(table)
    status, out, _ = says(capsys, "survey", "net.toml", "people.csv", "--trust")
    assert status == 0
    assert "60 rows read, 1 skipped" in out
    assert "line 9" in out
    assert "'young'" in out


@pytest.mark.parametrize("method", ["lime", "integrated-gradients", "occlusion", "kernel-shap", "gradient"])
def test_a_row_is_explained_by_column(capsys, monkeypatch, table, tmp_path, method):
    monkeypatch.chdir(table)
    status, out, err = says(
        capsys,
        "explain",
        "net.toml",
        "people.csv:3",
        "--data",
        "people.csv",
        "--method",
        method,
        "--trust",
        "--out",
        tmp_path / "why",
    )
    assert status == 0, err
    assert "age" in out
    told = json.loads((tmp_path / "why" / "results.json").read_text())
    assert told["shape"] == [3]


def test_the_formula_of_a_table(capsys, monkeypatch, table, tmp_path):
    monkeypatch.chdir(table)
    status, out, _ = says(capsys, "formula", "net.toml", "--trust", "--json")
    assert status == 0
    whole = json.loads(out)
    assert len(whole["expressions"]) == 2
    assert "colour_is_red" in whole["variables"]
    status, out, _ = says(
        capsys,
        "formula",
        "net.toml",
        "--at",
        "people.csv:0",
        "--data",
        "people.csv",
        "--trust",
        "--json",
        "--out",
        tmp_path / "f",
    )
    told = json.loads(out)
    assert len(told["weights"]) == len(told["variables"])
    assert set(told["margin"]) >= {"distance", "exact"}
    assert {"formula.html", "formula.py", "formula.tex", "formula.txt", "results.json"} <= {
        p.name for p in (tmp_path / "f").iterdir()
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("visualize", "net.toml", "class:no", "--method", "lucid", "--trust"),
            "method 'lucid' is for image and array inputs",
        ),
        (("survey", "net.toml", "people.csv", "--method", "passages", "--trust"), "is for text inputs"),
        (("explain", "net.toml", "people.csv:99", "--trust"), "rows 0 to 60"),
        (("survey", "net.toml", "nobody.csv", "--trust"), "nobody.csv"),
        (
            ("atlas", "net.toml", "--data", "people.csv", "--method", "lucid", "--out", "x", "--trust"),
            "'lucid' is not for table",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(capsys, monkeypatch, table, arguments, message):
    monkeypatch.chdir(table)
    status, out, err = says(capsys, *arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not out


@pytest.mark.parametrize("kind", ["texts", "table"])
def test_an_atlas_of_it_and_its_site(request, monkeypatch, tmp_path, kind):
    folder: Path = request.getfixturevalue(kind)
    card, data = ("reader.toml", "texts") if kind == "texts" else ("net.toml", "people.csv")
    model = penlight.load(folder / card, trust=True)
    options = {"length": 5, "width": 2} if kind == "texts" else {"steps": 20}
    built = penlight.build_atlas(model, folder / data, tmp_path / "atlas", seeds=1, **options)
    assert not built.outcome.failed
    again = penlight.build_atlas(model, folder / data, tmp_path / "atlas", seeds=1, **options)
    assert again.outcome.computed == 0
    site = build_site(tmp_path / "atlas", tmp_path / "site").parent
    reached = check_links(site, scripted=("text.html",))
    assert reached >= {page.resolve() for page in html_files(site)}
    for page in html_files(site):
        text = page.read_text()
        assert "<b>.txt" not in text
        assert "<yes>" not in text
        assert "<income>" not in text
    unit = site / ("units/lstm.cell_l1/3.html" if kind == "texts" else "units/0/2.html")
    assert ("In the data" if kind == "texts" else "Which columns and values excite it") in unit.read_text()
    first = (site / "index.html").read_text()
    assert ("Cells one can read" if kind == "texts" else "What it computes") in first


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["texts", "table"])
def test_its_pages_fit_a_phone_and_raise_no_error(request, browser, tmp_path, kind):
    folder: Path = request.getfixturevalue(kind)
    card, data = ("reader.toml", "texts") if kind == "texts" else ("net.toml", "people.csv")
    options = {"length": 5, "width": 2} if kind == "texts" else {"steps": 20}
    penlight.build_atlas(
        penlight.load(folder / card, trust=True), folder / data, tmp_path / "atlas", seeds=1, **options
    )
    site = build_site(tmp_path / "atlas", tmp_path / "site").parent
    errors = []
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.on("pageerror", lambda error: errors.append(str(error)))
    for file in [
        site / "index.html",
        *sorted((site / "layers").iterdir())[:2],
        *sorted((site / "units").rglob("*.html"))[:3],
    ]:
        page.goto(file.as_uri())
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, file
    page.close()
    assert not errors


def test_the_doors_in_python_for_a_live_network():
    model = penlight.load(zoo.seeded(zoo.Reader), vocabulary="ab()\n")
    r = penlight.activations(model, "(ab)\n(a(b))")
    assert r.values("lstm.cell_l0:2").shape == (11,)
    plain = zoo.seeded(zoo.Reader)
    ids = torch.tensor([["ab()\n".index(c) for c in "(ab)\n(a(b))"]])
    hidden, _ = plain.lstm(plain.embedding(ids))
    np.testing.assert_allclose(r.values("lstm.hidden_l1:4"), hidden[0, :, 4].detach().numpy(), atol=2e-3)
    found = model.predict(["(ab", "a"])
    assert found.shape == (2, 5)

"""`penlight diagnose`, as a user meets it, and its page in a browser."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import penlight
import zoo
from penlight.cli import run
from penlight.render.diagnosis import headline, page, text
from penlight.results import load_result

QUICK = ["--tried", "30", "--tested", "300", "--draws", "200"]


def says(capsys, *arguments):
    status = run([str(a) for a in arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


def faulty():
    """A dead unit, a twin, and a label that HTML has to escape."""
    network = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)))
    with torch.no_grad():
        network[0].bias[2] -= 50
        network[0].weight[4], network[0].bias[4] = network[0].weight[1], network[0].bias[1]
    return network, torch.zeros(1, 1, 8, 8)


@pytest.fixture(scope="module")
def result():
    network, example = faulty()
    model = penlight.load(network, example=example, labels=["<b>a</b>", "b & c", "d"], mean=[0.5], std=[0.29])
    inputs = np.random.default_rng(0).random((60, 1, 8, 8), np.float32)
    truth = model.predict(inputs).argmax(1).tolist()
    return penlight.diagnose(model, list(zip(inputs, truth, strict=True)), draws=200)


def test_the_door_in_python(result):
    assert {unit: set(told) for unit, told in result.verdicts.items()} == {"0:2": {"dead"}, "0:4": {"duplicate"}}
    assert result.details["0:4"]["duplicate"] == "0:1"
    assert {2, 4} <= set(result.layers["0"].removable)
    assert result.accuracy == 1.0


def test_text_names_what_matters(result):
    told = text(result)
    assert told.startswith(headline(result))
    assert "2 of 6 units have a verdict" in told
    assert re.search(
        r"dead, set to zero: 1 of 6 units of 0 removed: accuracy 100\.0 → 100\.0 % \(95 % CI 0\.0…0\.0\)", told
    )


def test_a_table_a_page_and_a_smaller_network(capsys, tmp_path, monkeypatch):
    out, file = tmp_path / "out", tmp_path / "small.safetensors"
    status, told, err = says(capsys, "diagnose", "letters", "--layers", "conv1", "--prune", file, "--out", out, *QUICK)
    assert (status, err) == (0, "")
    assert re.search(r"conv1\s+16\s", told)
    assert re.search(r"units of conv1 removed: accuracy \d+\.\d → \d+\.\d % \(95 % CI", told)
    assert "pruned to small.safetensors" in told
    state, about = load_file(file), json.loads(file.with_suffix(".json").read_text())
    assert len(state["conv1.weight"]) == len(about["kept"]["conv1"]) < 16
    assert state["conv2.weight"].shape[1] == len(about["kept"]["conv1"])
    kept = load_result(out)
    assert kept.pruned.parameters < kept.pruned.parameters_before
    assert (out / "diagnosis.html").read_text("utf-8") == page(kept)
    assert says(capsys, "diagnose", "letters", "--layers", "conv1", "--out", out, *QUICK)[0] == 0


def test_json(capsys):
    status, told, err = says(capsys, "diagnose", "letters", "--layers", "conv1", "--json", *QUICK)
    assert (status, err) == (0, "")
    row = json.loads(told)["layers"][0]
    assert (row["layer"], row["units"]) == ("conv1", 16)
    assert row["needed"] + row["removable"] == 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no data at"),
        (["--layers", "cnov*"], "conv1"),
        (["--alike", "2"], "alike"),
        (["--prune", "small.pt"], ".safetensors"),
        (["--prune", "no/where/small.safetensors"], "no folder"),
        (["--pictures", "nothing"], "no whole result"),
    ],
)
def test_mistakes_get_one_line_and_exit_2(capsys, arguments, words):
    status, out, err = says(capsys, "diagnose", "letters", *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_needs_nothing_else_and_filters_from_the_keyboard(result, browser, tmp_path, scheme):
    file = tmp_path / "diagnosis.html"
    file.write_text(page(result), "utf-8")
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=scheme)
    sheet, asked, said = context.new_page(), [], []
    sheet.on("request", lambda request: asked.append(request.url))
    sheet.on("console", lambda message: said.append(message.text))
    sheet.goto(file.as_uri())
    assert asked == [file.as_uri()]
    assert said == []
    assert sheet.evaluate("document.documentElement.scrollWidth <= innerWidth")
    bright = sheet.evaluate("getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).map(Number)[0]")
    assert (bright > 128) == (scheme == "light")
    assert sheet.locator("article .cell").count() == 6
    sheet.keyboard.press("Tab")
    assert sheet.evaluate("document.activeElement.textContent") == "Skip to the findings"
    sheet.keyboard.press("Tab")
    sheet.keyboard.press("ArrowRight")
    assert sheet.evaluate("document.activeElement.id") == "show-dead"
    shown = "[...document.querySelectorAll('tr.unit')].filter(r => r.offsetParent).map(r => r.querySelector('th').textContent)"
    assert sheet.evaluate(shown) == ["0:2"]
    sheet.keyboard.press("ArrowRight")
    assert sheet.evaluate(shown) == ["0:4"]
    context.close()


def test_names_are_escaped(result):
    from dataclasses import replace

    provenance = replace(result.provenance, model="<script>x</script>", data="<i>")
    assert "<script>" not in page(replace(result, provenance=provenance))
    assert "<i>" not in page(replace(result, provenance=provenance)).partition("</header>")[0].partition("<header>")[2]


def test_an_atlas_shows_verdicts_on_its_pages(tmp_path):
    network = zoo.seeded(zoo.Functional)
    with torch.no_grad():
        network.conv1.weight[2] = 0.0
        network.conv1.bias[2] = -1.0
    model = penlight.load(network, example=torch.zeros(1, 1, 16, 16))
    pictures = np.random.default_rng(0).random((30, 1, 16, 16), np.float32)
    penlight.build_atlas(model, pictures, tmp_path / "atlas", seeds=1, steps=2, top=3)
    penlight.build_site(tmp_path / "atlas", tmp_path / "site")
    unit = (tmp_path / "site" / "units" / "conv1" / "2.html").read_text("utf-8")
    assert '<em class="tag">dead</em>' in unit
    assert "Silenced alone" in unit
    sound = (tmp_path / "site" / "units" / "conv1" / "0.html").read_text("utf-8")
    assert '<em class="tag">dead</em>' not in sound
    layer = (tmp_path / "site" / "layers" / "conv1.html").read_text("utf-8")
    assert "1 dead" in layer
    assert 'value="is:dead"' in layer
    assert "of 6 needed" in layer
    assert "What works, and what can go" in (tmp_path / "site" / "index.html").read_text("utf-8")


def test_an_atlas_with_pictures_tells_static_and_unstable_units(result):
    from types import SimpleNamespace

    from penlight.web.book import Book, Portrait, Start, _with_pictures

    def portrait(stability, best, reached=True):
        starts = tuple(Start(n, "file", best, 0.0, reached) for n in range(2))
        return [Portrait(starts, (8, 8), "thumb", 0 if reached else None, None, result.provenance, stability)]

    survey = SimpleNamespace(layers={"0": SimpleNamespace(maximum=np.full(6, 5.0))})
    portraits = {
        0: portrait(0.1, 4.0),
        1: portrait(0.1, 9.0),
        2: portrait(0.1, 1.0),
        3: portrait(0.9, 4.0),
        5: portrait(None, 0.0, False),
    }
    found = _with_pictures(Book({}, {}, [], True, {("0", "happy"): portraits}, survey=survey, health=result))
    new = {unit: set(told) - set(result.verdicts.get(unit, {})) for unit, told in found.verdicts.items()}
    assert {unit: told for unit, told in new.items() if told} == {
        "0:0": {"static"},
        "0:1": {"unstable"},
        "0:5": {"static"},
    }
    assert found.details["0:1"]["unstable"] == "its pictures differ from start to start"
    assert found.verdicts["0:4"].keys() == result.verdicts["0:4"].keys()
    assert "unstable" not in result.verdicts.get("0:1", {}), "the stored result is as it was"

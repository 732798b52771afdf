"""The command line: what it prints, where, and what it exits with."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from penlight.cli import run
from penlight.results import load_result
from penlight.store import Atlas

FAST = ["--steps", "4", "--seeds", "1"]
TINY = ["module:zoo:fixed"]


@pytest.fixture(autouse=True)
def handlers():
    """`run` takes SIGTERM; give it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(6):
        file = tmp_path / "pictures" / "ab"[n % 2] / f"{n}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(file)
    return tmp_path / "pictures"


def says(capsys, *arguments):
    """(status, stdout, stderr)."""
    status = run([str(a) for a in arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_layers_as_a_table_and_as_json(capsys):
    status, out, err = says(capsys, "layers", *TINY)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split()[:2] == ["layer", "kind"]
    assert "5×5" in out
    status, out, err = says(capsys, "layers", *TINY, "--json")
    rows = json.loads(out)
    assert (status, err) == (0, "")
    assert rows[0] == {
        "path": "conv1",
        "kind": "Conv2d",
        "units": 6,
        "shape": [6, 16, 16],
        "layout": "NCHW",
        "receptive_field": {"size": [5, 5], "stride": [1, 1]},
        "parameters": 156,
        "alias_of": None,
        "inputs": [],
    }
    assert rows[-1]["receptive_field"] is None


def test_visualize_prints_saves_and_gives_json(capsys, tmp_path):
    status, out, err = says(capsys, "visualize", *TINY, "conv1:2", "fc:1", *FAST, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "conv1:2" in out
    assert "saved in" in out
    result = load_result(tmp_path / "out")
    assert result.units == ("conv1:2", "fc:1")
    manifest = json.loads((tmp_path / "out" / "results.json").read_text())
    for name in manifest["files"]:
        with Image.open(tmp_path / "out" / name) as image:
            image.verify()
    assert any("sheet" in name for name in manifest["files"])
    status, out, err = says(capsys, "visualize", *TINY, "conv1:2", *FAST, "--minimize", "--json")
    table = json.loads(out)
    assert (status, err) == (0, "")
    assert table["minimize"] is True
    assert table["units"][0]["unit"] == "conv1:2"
    assert table["provenance"]["options"]["steps"] == 4


def test_visualize_says_what_speaks_for_its_pictures(capsys, tmp_path, pictures):
    says(capsys, "survey", *TINY, pictures, "--out", tmp_path / "survey")
    order = ["visualize", *TINY, "conv2:3", "fc:1", "--steps", "30", "--seeds", "3", "--survey", tmp_path / "survey"]
    status, out, err = says(capsys, *order)
    assert (status, err) == (0, "")
    head = out.splitlines()[0]
    for words in ("under small jitters", "above real inputs", "of the best real", "same pattern, of 3", "stability"):
        assert words in head
    assert "\\u" not in out
    assert out.count("%") == 6
    told = json.loads(says(capsys, *order, "--json")[1])["units"]
    assert all(0 <= p <= 1 for unit in told for p in unit["percentile"])
    assert all(1 <= n <= 3 for unit in told for n in unit["recurrence"])
    assert all(len(unit["network_likeness"]) == len(unit["eye_likeness"]) == 3 for unit in told)
    assert all(len(unit["jittered"]) == len(unit["flags"]) == 3 for unit in told)


def test_visualize_says_what_is_wrong_with_its_pictures():
    from penlight.cli.visualize import _text
    from penlight.results import Provenance, VisualizeResult

    units = tuple(f"fc:{n}" for n in range(14))
    images, numbers = np.zeros((14, 2, 4, 4, 1), np.uint8), np.full((14, 2), 8, np.float32)
    dark = np.zeros((14, 2), bool)
    dark[:, 1] = True
    jitters, never = numbers.copy(), np.zeros(14, bool)
    jitters[3, 0], never[5] = 1, True
    r = VisualizeResult(
        Provenance(), units, (None,) * 14, images, numbers, numbers * 0, dark, jittered=jitters, never_fired=never,
        notes=("the classes compete",),
    )  # fmt: skip
    lines = _text(r).splitlines()[-5:]
    assert lines[0] == ""
    assert lines[1].startswith("fc:0 (start 1), fc:1 (start 1), ")
    assert "fc:11 (start 1) and 2 more: no gradient ever reached it" in lines[1]
    assert lines[2].startswith("fc:3 (start 0): fragile")
    assert lines[3].startswith("fc:5: never above zero")
    assert lines[4] == "note: the classes compete"


@pytest.mark.parametrize("kind", [[], ["webp"]])
def test_visualize_makes_films(capsys, tmp_path, kind):
    order = ["visualize", *TINY, "conv1:2", "fc:1", "--steps", "12", "--seeds", "2", "--frames", "5", "--film", *kind]
    status, _, err = says(capsys, *order, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    ending = (kind or ["gif"])[0]
    assert len(load_result(tmp_path / "out").film[0, 0]) == 5
    for name in ("conv1_2-0", "conv1_2-1", "fc_1-0", "fc_1-1"):
        with Image.open(tmp_path / "out" / f"{name}.{ending}") as film:
            assert film.n_frames > 1
            assert max(film.size) >= 256


def test_visualize_sweeps(capsys, tmp_path):
    order = ["visualize", *TINY, "conv1:2", "fc:1", *FAST, "--sweep", "total-variation=0,1e-2..1", "--sweep", "l2=0,1"]
    status, out, err = says(capsys, *order, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "best total-variation" in out
    assert "total-variation tried: 0, 0.01, 0.03162, 0.1, 0.3162, 1" in out
    result = load_result(tmp_path / "out")
    assert result.images.shape[:3] == (2, 6, 2)
    manifest = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(manifest["files"]) == 2 * 6 * 2 + 1
    assert any(name.startswith("sweep-") for name in manifest["files"])
    told = json.loads(says(capsys, *order, "--json")[1])
    assert told["kind"] == "sweep"
    assert told["units"][1]["best"]["values"].keys() == {"total_variation", "l2"}
    assert np.array_equal(np.array(told["units"][0]["activations"], np.float32), result.activations[0])


def test_survey_prints_saves_and_gives_json(capsys, tmp_path, pictures):
    (pictures / "a" / "bad.png").write_bytes(b"no")
    status, out, err = says(capsys, "survey", *TINY, pictures, "--top", "3", "--out", tmp_path / "out")
    assert status == 0, err
    assert "6 inputs read, 1 skipped" in out
    assert "skipped a/bad.png" in out
    manifest = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(manifest["files"]) >= 3
    assert manifest["units"][0]["unit"] == "conv1:0"
    assert len(manifest["units"][0]["top"]) == 3
    status, out, err = says(capsys, "survey", *TINY, pictures, "--layers", "fc", "--json")
    assert {u["unit"] for u in json.loads(out)["units"]} == {f"fc:{n}" for n in range(5)}


def test_methods_come_from_the_code(capsys):
    status, out, _ = says(capsys, "methods")
    assert status == 0
    for word in ("visualize --method penlight", "survey --method stream", "--steps", "--top"):
        assert word in out
    rows = json.loads(says(capsys, "methods", "--json")[1])
    assert all(row["paper"] and row["summary"] for row in rows)
    assert all(option["help"] for row in rows for option in row["options"])


def test_atlas_goes_on_where_it_was_and_recomputes_only_what_changed(capsys, tmp_path, pictures):
    place = tmp_path / "atlas"
    order = ["atlas", *TINY, "--data", pictures, "--out", place, *FAST, "--json"]
    first = json.loads(says(capsys, *order)[1])
    assert first["computed"] == first["tasks"] > 5
    assert first["failed"] == []
    again = json.loads(says(capsys, *order)[1])
    assert (again["computed"], again["reused"]) == (0, first["tasks"])
    steps = json.loads(says(capsys, *[*order[:-1], "--steps", "5", "--json"])[1])
    assert 0 < steps["computed"] < steps["tasks"]  # the pictures, not the survey
    top = json.loads(says(capsys, *[*order[:-1], "--top", "2", "--json"])[1])
    assert 0 < top["computed"] < first["tasks"] - top["computed"]  # the survey, not the pictures
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(pictures / "a" / "new.png")
    data = json.loads(says(capsys, *order)[1])
    assert 0 < data["computed"] < data["tasks"]


def test_another_model_is_told_and_never_mixed(capsys, tmp_path, pictures):
    place = tmp_path / "atlas"
    says(capsys, "atlas", *TINY, "--data", pictures, "--out", place, *FAST, "--layers", "fc")
    other = ["atlas", "module:zoo:InPlace", "--input-shape", "3,12,20", "--data", pictures, "--out", place]
    status, out, err = says(capsys, *other)
    assert (status, out) == (2, "")
    assert "holds the atlas of module:zoo:fixed" in err


def test_a_site_is_written_from_the_atlas(capsys, tmp_path, pictures):
    says(capsys, "atlas", *TINY, "--data", pictures, "--out", tmp_path / "atlas", *FAST)
    status, out, err = says(capsys, "site", tmp_path / "atlas", "--out", tmp_path / "site")
    assert (status, err) == (0, "")
    assert (tmp_path / "site" / "index.html").is_file()
    assert "index.html" in out


ONE_LINE = {
    "verb": (["visualise", "letters"], "did you mean 'visualize'"),
    "model": (["layers", "leters"], "did you mean 'letters'"),
    "flag": (["layers", *TINY, "--jsn"], "--json"),
    "layer": (["visualize", *TINY, "conv3:0"], "did you mean 'conv"),
    "unit": (["visualize", *TINY, "conv1"], "is no unit"),
    "index": (["visualize", *TINY, "conv1:6"], "units 0 to 5"),
    "label": (["visualize", *TINY, "class:cat"], "no labels"),
    "method": (["visualize", *TINY, "conv1:1", "--method", "lucent"], "visualize method 'lucent'"),
    "value": (["visualize", *TINY, "conv1:1", "--steps", "-1"], "steps"),
    "text": (["visualize", *TINY, "conv1:1", "--steps", "many"], "steps"),
    "shape": (["layers", "module:zoo:Functional", "--input-shape", "a,b"], "whole numbers"),
    "needs": (["layers", "module:zoo:Functional"], "example"),
    "device": (["layers", *TINY, "--device", "tpu"], "device 'tpu'"),
    "data": (["survey", *TINY, "nowhere"], "no data at nowhere"),
    "nodata": (["survey", *TINY], "a survey needs data"),
    "noout": (["atlas", *TINY], "--out"),
    "atlas": (["site", "nowhere", "--out", "x"], "is no atlas"),
    "missing": (["visualize", *TINY], "UNIT"),
    "axis": (["visualize", *TINY, "conv1:1", "--sweep", "steps"], "is no axis"),
    "axis name": (["visualize", *TINY, "conv1:1", "--sweep", "stesp=1..2"], "did you mean 'steps'"),
    "axis value": (["visualize", *TINY, "conv1:1", "--sweep", "steps=-1..2"], "option steps takes a whole number"),
    "axis twice": (["visualize", *TINY, "conv1:1", "--sweep", "steps=1,2", "--steps", "3"], "swept and set"),
    "three axes": (
        ["visualize", *TINY, "fc:1", "--sweep", "l2=1", "--sweep", "rate=1", "--sweep", "size=1"],
        "one or two axes",
    ),
    "film": (["visualize", *TINY, "conv1:1", "--film"], "--out"),
    "film format": (["visualize", *TINY, "conv1:1", "--film", "avi", "--out", "x"], "avi"),
    "film of a sweep": (
        ["visualize", *TINY, "fc:1", "--film", "gif", "--sweep", "l2=1", "--out", "x"],
        "do not go together",
    ),
    "survey of a sweep": (["visualize", *TINY, "fc:1", "--survey", "x", "--sweep", "l2=1"], "do not go together"),
    "no survey": (["visualize", *TINY, "fc:1", *FAST, "--survey", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("name", ONE_LINE)
def test_mistakes_are_one_line_and_exit_2(capsys, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, text = ONE_LINE[name]
    status, out, err = says(capsys, *arguments)
    assert (status, out) == (2, "")
    assert text in err
    assert err.startswith("penlight: ")
    assert err.count("\n") == 1


def test_places_that_cannot_be_written_are_told_before_the_work(capsys, tmp_path, pictures):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    (tmp_path / "file").write_text("x")
    for verb in (
        ["visualize", *TINY, "conv1:0", *FAST],
        ["survey", *TINY, pictures],
        ["atlas", *TINY, "--data", pictures],
    ):
        for place in ("full", "file", "file/below"):
            status, out, err = says(capsys, *verb, "--out", tmp_path / place)
            assert (status, out) == (2, ""), (verb, place)
            assert err.count("\n") == 1
    assert (tmp_path / "full" / "thesis.tex").read_text() == "precious"


def test_an_earlier_result_is_replaced(capsys, tmp_path):
    for unit in ("conv1:0", "conv1:1"):
        assert says(capsys, "visualize", *TINY, unit, *FAST, "--out", tmp_path / "out")[0] == 0
    assert load_result(tmp_path / "out").units == ("conv1:1",)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def start_atlas(place, pictures, steps):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    order = ["atlas", *TINY, "--data", str(pictures), "--out", str(place), "--steps", str(steps), "--seeds", "1"]
    return subprocess.Popen(
        [sys.executable, "-m", "penlight", *order],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stored(place):
    try:
        with sqlite3.connect(f"file:{place / 'atlas.sqlite'}?mode=ro", uri=True, timeout=10) as index:
            return index.execute("SELECT count(*) FROM results").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_at_any_moment_it_loses_nothing(capsys, tmp_path, pictures, how):
    place = tmp_path / "atlas"
    worker = start_atlas(place, pictures, 60)
    deadline = time.monotonic() + 120
    while stored(place) < 3 and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    worker.send_signal(how)
    _, err = worker.communicate(timeout=60)
    if how != signal.SIGKILL and worker.returncode:
        # CPython itself may end a process by the SIGINT it was sent
        assert worker.returncode in ((130, -how) if how == signal.SIGINT else (130,)), err
        assert "Traceback" not in err
    kept = stored(place)
    assert kept >= 3
    (place / "results" / ".half-written").mkdir()
    (place / "results" / ".half-written" / "x.png").write_bytes(b"half")
    order = ["atlas", *TINY, "--data", pictures, "--out", place, "--steps", "60", "--seeds", "1", "--json"]
    status, out, err = says(capsys, *order)
    assert status == 0, err
    assert json.loads(out)["reused"] == kept
    assert not (place / "results" / ".half-written").exists()
    with Atlas.open(place) as atlas:
        assert set(atlas.plan()) == set(atlas.keys())
        for key in list(atlas.keys()):
            atlas.get(key)


def test_two_writers_do_not_meet(capsys, tmp_path, pictures):
    with Atlas.create(tmp_path / "atlas"):
        status, _, err = says(capsys, "atlas", *TINY, "--data", pictures, "--out", tmp_path / "atlas")
    assert status == 2
    assert "another process" in err


def test_data_of_which_nothing_can_be_read_is_the_users_mistake(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "only.png").write_bytes(b"no picture")
    for order in (["atlas", *TINY, "--data"], ["survey", *TINY]):
        status, out, err = says(capsys, *order, tmp_path / "data", "--out", tmp_path / order[0])
        assert (status, out) == (2, "")
        assert "not one of the 1 inputs of data can be read" in err
        assert err.count("\n") == 1


def test_filters_are_a_survey_of_the_weights(capsys, tmp_path):
    status, out, err = says(capsys, "survey", *TINY, "--method", "filters", "--size", "24", "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert "conv1:5" in out
    assert len(list((tmp_path / "out").glob("*-response.png"))) == 6
    status, out, err = says(capsys, "survey", *TINY, "--method", "merge")
    assert (status, out) == (2, "")
    assert "no survey to merge" in err

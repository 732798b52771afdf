"""`penlight explain` and `penlight survey --project`, as a user meets them."""

import json

import numpy as np
import pytest
from PIL import Image

from penlight.cli import run
from penlight.results import ExplainResult, load_result


def says(capsys, *arguments):
    status = run([str(a) for a in arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_one_method_prints_what_it_found(capsys):
    status, out, err = says(capsys, "explain", "letters", "data:3", "--method", "gradient")
    assert (status, err) == (0, "")
    assert "fc:3 (D)" in out
    assert "how the value changes" in out
    assert "--out DIR" in out


def test_several_methods_and_units_stand_side_by_side(capsys, tmp_path):
    out_dir = tmp_path / "out"
    status, out, err = says(
        capsys, "explain", "letters", "data:3", "--unit", "class:D", "--unit", "conv2:7", "--method", "gradient,deconvnet",
        "--method", "integrated-gradients", "--steps", 8, "--start", "activation", "--out", out_dir, "--json",
    )  # fmt: skip
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert [part["provenance"]["method"] for part in told["explanations"]] == [
        "gradient",
        "deconvnet",
        "integrated-gradients",
    ] * 2
    assert told["explanations"][2]["evidence"]["steps"] == 8
    assert told["explanations"][0]["source"] == "data:3"
    assert told["explanations"][0]["target"]["probability"] > 0.5
    names = {file.name for file in out_dir.iterdir()}
    assert {"sheet-explain.png", "results.json", "arrays.npz", "gradient-fc_3.png", "deconvnet-fc_3-raw.png"} <= names
    for file in out_dir.glob("*.png"):
        with Image.open(file) as picture:
            assert np.asarray(picture).std() > 1, file.name
    with np.load(out_dir / "arrays.npz") as stored:
        assert stored["0-values"].shape == (1, 28, 28)


def test_a_picture_file_and_a_check(capsys, tmp_path):
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 8:12] = 255
    Image.fromarray(pixels).save(tmp_path / "i.png")
    status, out, err = says(
        capsys, "explain", "letters", tmp_path / "i.png", "--method", "gradient", "--check", "--out", tmp_path / "o"
    )
    assert (status, err) == (0, "")
    assert "deletion" in out
    assert "randomisation" in out
    kept = load_result(tmp_path / "o")
    assert isinstance(kept, ExplainResult)
    assert {"deletion", "insertion", "sensitivity", "randomisation"} <= set(kept.checks)


def test_projections_stand_on_the_survey_sheets(capsys, tmp_path):
    plain, both = tmp_path / "a", tmp_path / "b"
    for out, more in ((plain, []), (both, ["--project"])):
        assert says(capsys, "survey", "letters", "--layers", "conv1", "--top", 3, "--out", out, *more)[0] == 0
    heights = []
    for out in (plain, both):
        with Image.open(out / "conv1-top-00000.png") as sheet:
            heights.append(sheet.height)
    assert heights[1] > 1.8 * heights[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "no such file"),
        (["data:99999"], "there is no 99999"),
        (["data:1", "--unit", "conv9:1"], "conv2"),
        (["data:1", "--unit", "class:Q"], "label 'Q'"),
        (["data:1", "--unit", "conv2:*"], "names 48 units"),
        (["data:1", "--unit", "conv2:7@99,0"], "positions"),
        (["data:1", "--method", "oclusion"], "did you mean 'occlusion'"),
        (["data:1", "--method", ""], "explain method"),
        (["data:1", "--method", "gradient", "--steps", "3"], "option of explain method 'gradient'"),
        (["data:1", "--method", "integrated-gradients", "--steps", "-1"], "option steps"),
        (["data:1", "--method", "integrated-gradients", "--baseline", "red"], "baseline"),
        (["data:1", "--method", "projections"], "--project"),
        (["data:1", "--out", "/proc/nowhere"], "--out"),
    ],
)
def test_mistakes_get_one_line_and_exit_2(capsys, arguments, words):
    status, out, err = says(capsys, "explain", "letters", *arguments)
    assert status == 2
    assert out == ""
    assert words in err
    assert len(err.strip().splitlines()) == 1 or "Usage" in err


def test_project_without_a_place_is_refused(capsys):
    status, _, err = says(capsys, "survey", "letters", "--layers", "conv1", "--project")
    assert status == 2
    assert "--out DIR" in err


def test_a_wrong_shape_is_told(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 28, 28), np.float32))
    status, _, err = says(capsys, "explain", "letters", tmp_path / "x.npy", "--method", "gradient")
    assert status == 2
    assert "[3, 28, 28]" in err

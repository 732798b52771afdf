"""`penlight activations`, as a user meets it."""

import json

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import penlight
from penlight.cli import run


def says(capsys, *arguments):
    status = run([str(a) for a in arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_walls_of_every_layer(capsys, tmp_path):
    out = tmp_path / "out"
    status, text, err = says(
        capsys, "activations", "letters", "data:3", "--gamma", 0.5, "--scale", "unit", "--out", out
    )
    assert (status, err) == (0, "")
    assert "3 (D)" in text
    assert "D 96.4%" in text
    assert "\\u" not in text
    for path in ("conv1", "conv2", "conv3", "conv4", "fc"):
        assert path in text
        with Image.open(out / f"{path}.png") as picture:
            assert np.asarray(picture).std() > 5


def test_several_inputs_and_json(capsys, tmp_path):
    for n in range(2):
        Image.fromarray(np.random.default_rng(n).integers(0, 255, (28, 28), np.uint8)).save(tmp_path / f"{n}.png")
    for given in ([tmp_path / "0.png", tmp_path / "1.png"], [tmp_path]):
        status, text, err = says(capsys, "activations", "letters", *given, "--layers", "conv*", "--json")
        assert (status, err) == (0, "")
        told = json.loads(text)
        assert len(told["runs"]) == 2
        assert [row["layer"] for row in told["runs"][0]["layers"]] == ["conv1", "conv2", "conv3", "conv4"]
        assert told["runs"][0]["layers"][0]["top"][0]["unit"].startswith("conv1:")


def test_checkpoints(capsys, tmp_path):
    network = penlight.load("letters").network
    for n in range(2):
        save_file(
            {key: value.clone() * (n + 1) for key, value in network.state_dict().items()}, tmp_path / f"{n}.safetensors"
        )
    files = f"{tmp_path / '0.safetensors'},{tmp_path / '1.safetensors'}"
    status, text, err = says(capsys, "activations", "letters", "data:3", "--checkpoints", files)
    assert (status, err) == (0, "")
    assert "How layers change over the runs" in text
    assert "1.safetensors" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "no such file"),
        (["data:3", "--layers", "cnov*"], "conv1"),
        (["data:3", "--gamma", "0"], "gamma"),
        (["data:3", "--checkpoints", "none.safetensors"], "no weights file"),
        (["data:3", "data:4", "--checkpoints", "none.safetensors"], "one input"),
    ],
)
def test_mistakes_get_one_line_and_exit_2(capsys, arguments, words):
    status, out, err = says(capsys, "activations", "letters", *arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1

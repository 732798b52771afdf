"""`penlight dream`: what it prints and writes, and what it says when it cannot."""

import json
import signal

import numpy as np
import pytest
from PIL import Image

import penlight
from penlight.cli import run
from penlight.results import load_result

TINY, FAST = "module:zoo:fixed", ["--steps", "4"]


@pytest.fixture(autouse=True)
def handlers():
    """`run` takes SIGTERM; give it back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def photo(tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)).save(file)
    return file


def says(capsys, *arguments):
    """(status, stdout, stderr)."""
    status = run([str(a) for a in arguments])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_a_dream_is_told_and_saved(capsys, photo, tmp_path):
    status, out, err = says(capsys, "dream", TINY, photo, "--at", "conv2", *FAST, "--out", tmp_path / "r")
    assert (status, err) == (0, "")
    assert "layer(conv2)" in out
    assert "32×24" in out
    result = load_result(tmp_path / "r")
    assert result.images.shape == (1, 1, 24, 32, 1)
    assert result.provenance.options["picture"] == str(photo)
    assert list((tmp_path / "r").glob("*.png"))


def test_the_door_in_python_says_the_same(capsys, photo):
    status, out, _ = says(capsys, "dream", TINY, photo, "--at", "conv2:3", *FAST, "--seed", 5, "--json")
    assert status == 0
    import zoo

    network, example = zoo.fixed()
    with Image.open(photo) as picture:
        result = penlight.dream(
            penlight.load(network, example=example), np.asarray(picture), "conv2:3", steps=4, seed=5
        )
    told = json.loads(out)["units"][0]
    assert told["unit"] == "conv2:3"
    np.testing.assert_allclose(told["activations"], result.activations[0].tolist(), rtol=1e-5)


def test_films(capsys, photo, tmp_path):
    status, _, err = says(capsys, "dream", TINY, photo, *FAST, "--zoom", 3, "--film", "gif", "--out", tmp_path / "r")
    assert (status, err) == (0, "")
    (journey,) = (tmp_path / "r").glob("*.gif")
    with Image.open(journey) as film:
        assert film.n_frames == 3
    status, _, _ = says(
        capsys, "dream", TINY, photo, "--at", "conv1:0", *FAST, "--film", "webp", "--out", tmp_path / "s"
    )
    assert status == 0
    with Image.open(tmp_path / "s" / "conv1_0-0.webp") as film:
        assert film.n_frames > 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--at", "conv9"], "or 'conv1'"),
        (["--film", "gif"], "--out"),
        (["--zoom", "3"], "--out"),
        (["--guide", "none.png"], "none.png"),
        (["--octave-n", "0"], "octave-n"),
    ],
)
def test_mistakes(capsys, photo, arguments, said):
    status, out, err = says(capsys, "dream", TINY, photo, *arguments)
    assert (status, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1

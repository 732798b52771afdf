"""Labels and connections from the command line: concepts drawn on pictures, words that embeddings know, weights."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from penlight.cli import run
from penlight.results import LabelsResult, WeightsResult, load_result

PURE = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])[:, :, None, None]


class Colours(nn.Module):
    """Units that see red, green and blue, and what is made of them."""

    def __init__(self) -> None:
        super().__init__()
        self.look, self.mix, self.out = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(torch.relu(self.mix(self.look(x))).mean((2, 3)))


def images(pictures):
    """Pictures (n, H, W, C) uint8 by their brightest colour."""
    return pictures.max((1, 2)) / 255.0 + 1e-3


def words(texts):
    return np.array([[float(colour in text) + 1e-3 for colour in ("red", "green", "blue")] for text in texts])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A card, pictures with one red or green square each, and masks that name them 3 and 7."""
    folder, rng = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    torch.manual_seed(0)
    network = Colours()
    network.look.weight.data = PURE
    save_file(network.state_dict(), str(folder / "net.safetensors"))
    (folder / "net.toml").write_text(
        'source = "module:test_label_methods:Colours"\nweights = "net.safetensors"\n'
        '[input]\nkind = "image"\nshape = [3, 32, 32]\ncrop = 1.0\n'
    )
    for kind in ("pictures", "masks"):
        (folder / kind / "a").mkdir(parents=True)
    for n in range(16):
        pixels, mask = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        y, x = rng.integers(0, 24, 2)
        pixels[y : y + 8, x : x + 8, n % 2] = 180 + 4 * n
        mask[y : y + 8, x : x + 8] = (3, 7)[n % 2]
        Image.fromarray(pixels).save(folder / "pictures" / "a" / f"{n:02}.png")
        Image.fromarray(mask).save(folder / "masks" / "a" / f"{n:02}.png")
    (folder / "masks" / "names.json").write_text('{"3": "red <thing>", "7": "green thing"}')
    return folder


def says(capsys, *arguments):
    status = run([str(a) for a in arguments])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_concepts_drawn_on_pictures(capsys, place, tmp_path):
    asked = ("survey", place / "net.toml", place / "pictures", "--method", "dissect", "--masks", place / "masks")
    status, out, _ = says(capsys, *asked, "--quantile", "0.03", "--layers", "look", "--out", tmp_path / "d")
    assert status == 0
    assert "IoU over 16 pictures" in out
    result = load_result(tmp_path / "d")
    assert isinstance(result, LabelsResult)
    assert [result.labels.of(f"look:{u}").label for u in (0, 1)] == ["red <thing>", "green thing"]
    status, out, _ = says(capsys, *asked, "--quantile", "0.03", "--layers", "look", "--json")
    assert status == 0
    rows = {row["unit"]: row for row in json.loads(out)["units"]}
    assert rows["look:1"]["label"] == "green thing"
    assert 0.5 < rows["look:1"]["score"] <= 1


def test_words_that_embeddings_know(capsys, place, tmp_path):
    status, out, _ = says(
        capsys, "survey", place / "net.toml", place / "pictures", "--method", "clip-labels", "--layers", "look", "--top", "4",
        "--images", "module:test_label_methods:images", "--texts", "module:test_label_methods:words", "--words", "red,green,blue",
        "--out", tmp_path / "c",
    )  # fmt: skip
    assert status == 0
    assert "top examples by module:test_label_methods:images" in out
    result = load_result(tmp_path / "c")
    assert [result.ranked(f"look:{u}")[0][0] for u in (0, 1)] == ["red", "green"]


def test_a_unit_that_never_changes_is_given_no_score(capsys, place, tmp_path):
    status, out, _ = says(
        capsys, "survey", place / "net.toml", place / "pictures", "--method", "clip-labels", "--layers", "look",
        "--images", "module:test_label_methods:images", "--texts", "module:test_label_methods:words", "--words", "red,green",
    )  # fmt: skip
    assert status == 0
    assert "nan" not in out


def test_what_feeds_what(capsys, place, tmp_path):
    status, out, _ = says(capsys, "survey", place / "net.toml", "--method", "weights", "--out", tmp_path / "w")
    assert status == 0
    assert "look" in out.split("mix", 1)[1]  # what feeds it
    result = load_result(tmp_path / "w")
    assert isinstance(result, WeightsResult)
    unit, share = result.fed_by("mix:2")[0].unit, result.fed_by("mix:2")[0].share
    norms = {f"look:{u}": float(v) for u, v in enumerate(_weights(place)[2].pow(2).sum((1, 2)))}
    assert unit == max(norms, key=lambda name: norms[name])
    assert share == pytest.approx(norms[unit] / sum(norms.values()), rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "w").glob("mix_*-expanded.png")) == [
        f"mix_{u}-expanded.png" for u in range(4)
    ]


def _weights(place):
    from safetensors.torch import load_file

    return load_file(place / "net.safetensors")["mix.weight"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--method", "dissect"), ["needs masks"]),
        (("--method", "dissect", "--masks", "nowhere"), ["no masks at nowhere"]),
        (("--method", "clip-labels", "--words", "a,b"), ["option images"]),
        (("--method", "clip-labels", "--images", "module:test_label_methods:imges", "--texts", "module:test_label_methods:words",
          "--words", "a,b"), ["'imges'", "did you mean 'images'"]),
        (("--method", "clip-labels", "--images", "module:test_label_methods:images", "--texts", "module:test_label_methods:words",
          "--words", "a"), ["at least two words"]),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(capsys, place, more, told):
    status, out, err = says(capsys, "survey", place / "net.toml", place / "pictures", *more)
    assert status == 2
    assert not out
    assert err.count("\n") == 1
    assert all(word in err for word in told)

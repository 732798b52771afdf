"""The specimen `code`: its files, its figures, and the script that made them."""

import hashlib
import re
import zipfile

import numpy as np
import pytest
import torch

import penlight
from penlight.models.tracks import OUTPUT, tracks
from penlight.specimens import code
from penlight.specimens.code import corpus, train
from penlight.specimens.code.network import VOCABULARY, Code, encode


@pytest.fixture(scope="module")
def model():
    return penlight.load("code")


def listed():
    head, *lines = code.CORPUS.read_text("utf-8").splitlines()
    return head, [line.split(" ", 3) for line in lines]


def test_it_is_small():
    folder = code.CARD.parent
    assert (folder / "code.safetensors").stat().st_size < 3_000_000
    assert sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".safetensors", ".zip")) < 3_000_000


def test_the_list_is_what_its_head_says(model):
    head, rows = listed()
    lines = "".join(f"{digest} {path}\n" for _, _, digest, path in rows)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest in head
    assert model.figures["corpus_sha256"] == digest
    assert f"{len(rows)} files" in head
    for side, _, _, path in rows:
        assert (side == "held-out") == corpus.File(path, "", 0, "").held_out


def test_the_sample_is_held_out_and_unchanged(model):
    known = {path: (side, digest) for side, _, digest, path in listed()[1]}
    with zipfile.ZipFile(code.DATA) as archive:
        assert len(archive.namelist()) == model.figures["sample_files"]
        for name in archive.namelist():
            assert known[name] == ("held-out", hashlib.sha256(archive.read(name)).hexdigest())


def test_it_foretells_source_as_well_as_its_card_says(model):
    data = penlight.api.find_data(model, None)
    sizes = {n: len(data.read(n)) for n in range(len(data))}
    some = [n for n, size in sizes.items() if size < 9000][:8]
    lost, count = 0.0, 0
    for one in tracks(model, [data.read(n) for n in some], [OUTPUT], block=100_000):
        ids = torch.from_numpy(one.ids)
        lost += float(torch.nn.functional.cross_entropy(one.values[OUTPUT][:-1], ids[1:], reduction="sum"))
        count += len(ids) - 1
    assert lost / count / np.log(2) == pytest.approx(model.figures["bits_per_character_sample"], abs=0.35)
    uniform = np.log2(len(VOCABULARY))
    assert lost / count / np.log(2) < uniform / 3


def test_the_vocabulary_goes_both_ways(model):
    assert model.contract.vocabulary == tuple(VOCABULARY)
    text = 'def f(x):\n\treturn "é" + x  # {}\n'
    np.testing.assert_array_equal(model.contract.encode(text), encode(text).numpy())
    assert model.contract.decode(model.contract.encode(text)) == text.replace("é", "\ufffd")


def test_a_cell_is_on_inside_docstrings(model):
    text = (
        'import os\n\n\ndef first(value):\n    """Return the first thing of a long list of things."""\n    return value[0]\n'
        * 3
    )
    r = penlight.activations(model, text, properties="inside a docstring")
    best = r.following("inside a docstring", top=1)[0]
    assert best.strength > 0.9


def test_the_script_makes_all_files_from_a_library(tmp_path, capsys):
    library, out = tmp_path / "lib", tmp_path / "out"
    library.mkdir()
    (library / "LICENSE.txt").write_text("as you like")
    (library / "test").mkdir()
    (library / "test" / "left_out.py").write_text("x = 1\n")
    for n in range(60):
        (library / f"module{n}.py").write_text(f"def f{n}(a):\n    return a + {n}\n" * 60)
    arguments = ["--library", library, "--out", out, "--steps", "2", "--batch", "2"]
    assert train.main([str(a) for a in arguments]) == 0
    assert {p.name for p in out.iterdir()} == set(train.FILES)
    assert "left_out" not in (out / "corpus.txt").read_text()
    model = penlight.load(out / "code.toml")
    assert model.figures["training_files"] + model.figures["held_out_files"] == 60
    assert re.search(r"bits_per_character_held_out = \d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--library", "/nowhere"], "nowhere"),
        (["--steps", "0"], "above 0"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_of_the_script_are_one_line(tmp_path, capsys, arguments, message):
    assert train.main(["--out", str(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_the_state_goes_on():
    net = Code(hidden=8, embedding=4).eval()
    ids = encode("def f(x):\n    return x\n").unsqueeze(0)
    with torch.no_grad():
        whole, _ = net(ids)
        first, state = net(ids[:, :7])
        second, _ = net(ids[:, 7:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)

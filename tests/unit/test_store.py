"""The atlas' folder: whole results or none."""

import errno
import json

import numpy as np
import pytest

from penlight.errors import BadInput, BadOutput, ModelMismatch
from penlight.results import Provenance, VisualizeResult, load_result
from penlight.store import Atlas


def result(seed=0):
    rng = np.random.default_rng(seed)
    return VisualizeResult(
        Provenance("m", "abc", "visualize", "penlight", {"steps": 3}, seed),
        ("conv:0", "conv:1"),
        (None, "é<"),
        rng.integers(0, 256, (2, 3, 4, 5, 1), np.uint8),
        rng.random((2, 3), np.float32),
        np.zeros((2, 3), np.float32),
        np.array([[True, False, False]] * 2),
    )


def equal(a, b):
    assert (a.provenance, a.units, a.labels, a.minimize) == (b.provenance, b.units, b.labels, b.minimize)
    for name in ("images", "activations", "starts", "zero_gradient"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_result_survives_the_disk(tmp_path):
    one = result()
    equal(load_result(one.save(tmp_path / "r")), one)
    assert len(list((tmp_path / "r").glob("*.png"))) == 6
    table = json.loads(one.to_json())
    assert table["units"][1]["label"] == "é<"
    assert "<img" in one._repr_html_()
    assert "é&lt;" in one._repr_html_()


def test_an_incomplete_result_is_refused(tmp_path):
    folder = result().save(tmp_path / "r")
    (folder / "arrays.npz").write_bytes((folder / "arrays.npz").read_bytes()[:50])
    with pytest.raises(BadInput, match="no whole result"):
        load_result(folder)
    with pytest.raises(BadInput, match="no whole result"):
        load_result(tmp_path)


def test_put_get_and_the_order_of_keys(tmp_path):
    with Atlas.create(tmp_path / "a") as atlas:
        atlas.put("k2", result(2), {"n": 2})
        atlas.put("k1", result(1), {"n": 1})
        atlas.put("k1", result(9), {"n": 9})  # there already: nothing happens
        atlas.set_plan(["k1", "k3"])
    with Atlas.open(tmp_path / "a") as atlas:
        assert list(atlas.keys()) == ["k2", "k1"]
        assert atlas.plan() == ["k1", "k3"]
        assert atlas.task("k1") == {"n": 1}
        equal(atlas.get("k1"), result(1))
        with pytest.raises(KeyError):
            atlas.get("k3")


def test_what_a_killed_process_left_is_swept(tmp_path):
    with Atlas.create(tmp_path / "a") as atlas:
        atlas.put("whole", result(), {})
        atlas.put("damaged", result(), {})
        (atlas.path("damaged") / "arrays.npz").write_bytes(b"short")
        result().save(atlas.path("orphan"))  # renamed, but not entered
    with Atlas.create(tmp_path / "a") as atlas:
        assert list(atlas.keys()) == ["whole"]
        assert [p.name for p in (tmp_path / "a" / "results").iterdir()] == ["whole"]


def test_a_full_disk_loses_nothing_that_was_stored(tmp_path, monkeypatch):
    from pathlib import Path

    with Atlas.create(tmp_path / "a") as atlas:
        atlas.put("before", result(), {})
        real = Path.write_bytes

        def full(self, data):
            if self.suffix == ".npz":
                real(self, data[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(self, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(BadOutput, match="No space left") as error:
            atlas.put("after", result(), {})
        assert "\n" not in str(error.value)
        monkeypatch.undo()
        assert not atlas.has("after")
        assert [p.name for p in (tmp_path / "a" / "results").iterdir()] == ["before"]
        atlas.put("after", result(), {})
        assert atlas.has("after")


def test_folders_that_are_something_else(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes").write_text("mine")
    with pytest.raises(BadOutput, match="is no atlas"):
        Atlas.create(tmp_path / "x")
    with pytest.raises(BadInput, match="is no atlas"):
        Atlas.open(tmp_path / "x")
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "atlas.sqlite").write_bytes(b"not a data base" * 100)
    with pytest.raises(BadInput, match="damaged"):
        Atlas.open(tmp_path / "y")


def test_one_model_an_atlas(tmp_path):
    with Atlas.create(tmp_path / "a") as atlas:
        atlas.claim({"reference": "one", "hash": "1" * 64})
        atlas.claim({"reference": "one again", "hash": "1" * 64})
        with pytest.raises(ModelMismatch, match="not of two with weights 222222222222"):
            atlas.claim({"reference": "two", "hash": "2" * 64})
        assert atlas.meta("model")["reference"] == "one again"

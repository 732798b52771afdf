"""The specimen `biopsies`: what ships, and the parts of the script that made it."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from penlight.inputs.table_data import open_table
from penlight.models import load_model
from penlight.specimens import biopsies
from penlight.specimens.biopsies import train
from penlight.specimens.biopsies.network import Biopsies

FOLDER = Path(biopsies.__file__).parent


@pytest.fixture(scope="module")
def model():
    return load_model(biopsies.CARD, trust=True)


@pytest.fixture(scope="module")
def table(model):
    return open_table(biopsies.DATA, model.contract, model.labels)


def test_folder_is_small():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if "__pycache__" not in p.parts) < 100_000


def test_importing_the_package_is_light():
    code = "import sys, penlight.specimens.biopsies as m; assert m.CARD.exists() and m.DATA.exists()"
    code += "; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    env = {"PYTHONPATH": str(FOLDER.parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_the_network_reaches_its_card(model, table):
    figures = model.figures
    right = model.probabilities(table.rows).argmax(1) == table.truth
    assert right.mean() == pytest.approx(figures["accuracy_held_out"], abs=1e-4)
    assert (~right).sum() == figures["held_out_wrong"]
    assert figures["accuracy_held_out"] >= 0.96
    assert figures["accuracy_cross_validated"] >= 0.96
    assert len(table) == figures["held_out_rows"] == 171
    assert sum(p.numel() for p in model.network.parameters()) == figures["parameters"]
    state = load_file(FOLDER / "biopsies.safetensors")
    assert {v.dtype for v in state.values()} == {torch.float16}
    assert int((state["hidden1.weight"] != 0).sum()) == figures["first_weights_not_zero"]


def test_columns_are_those_of_the_data(model, table):
    datasets = pytest.importorskip("sklearn.datasets")
    whole = datasets.load_breast_cancer()
    names = [str(name).replace(" ", "_") for name in whole.feature_names]
    assert list(model.contract.names) == names
    assert model.labels == ("malignant", "benign")
    assert all(column.description for column in model.contract.columns)
    seen, held = train.split(whole.target, train.HELD_OUT, np.random.default_rng(0))
    np.testing.assert_array_equal(table.rows, whole.data[held])
    np.testing.assert_array_equal(table.truth, whole.target[held])
    assert not set(seen) & set(held)
    mean, std = model.contract.statistics()
    np.testing.assert_allclose(mean, whole.data[seen].mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, whole.data[seen].std(0), rtol=1e-5)


def test_splits_and_folds_keep_classes_apart_and_in_proportion():
    classes = np.repeat([0, 1], [40, 60])
    seen, held = train.split(classes, 0.3, np.random.default_rng(1))
    assert sorted([*seen, *held]) == list(range(100))
    assert np.bincount(classes[held]).tolist() == [12, 18]
    parts = train.folds(classes, 5, np.random.default_rng(1))
    assert sorted(np.concatenate([out for _, out in parts])) == list(range(100))
    assert all(np.bincount(classes[out]).tolist() == [8, 12] and not set(a) & set(out) for a, out in parts)


def test_training_learns_is_sparse_and_repeats(monkeypatch):
    monkeypatch.setattr(train, "STEPS", 60)
    monkeypatch.setattr(train, "STARTS", 1)
    rng = np.random.default_rng(0)
    values = rng.normal(5, 3, (80, 30))
    classes = (values[:, 0] > 5).astype(np.int64)
    state = torch.get_rng_state()
    net, mean, std = train.train(values, classes, 0)
    again, _, _ = train.train(values, classes, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    assert train.right(net, values, classes, mean, std).mean() > 0.9
    weight = net.hidden1.weight.detach()
    assert not ((weight != 0) & (weight.abs() < train.LEAST)).any()


def test_card_and_table_are_read_back(tmp_path):
    names = [f"{taken}_{measured}" for taken in ("mean", "worst") for measured in train.MEASURED]
    names += [f"{measured}_error" for measured in train.MEASURED]
    card = tomllib.loads(train.card_text(names, np.arange(30.0), np.ones(30), {"accuracy": 0.5, "rows": 3}))
    assert [c["name"] for c in card["input"]["columns"]] == names
    assert card["figures"] == {"accuracy": 0.5, "rows": 3}
    values = np.random.default_rng(0).normal(size=(4, 30))
    (tmp_path / "t.csv").write_text(train.csv_text(names, values, np.array([0, 1, 1, 0])))
    model = load_model(biopsies.CARD, trust=True)
    shuffled = [names.index(name) for name in model.contract.names]
    data = open_table(tmp_path / "t.csv", model.contract, model.labels)
    np.testing.assert_array_equal(data.rows, values[:, shuffled])
    assert data.truth.tolist() == [0, 1, 1, 0]


def test_the_network_is_plain():
    assert [name for name, _ in Biopsies().named_children()] == ["hidden1", "relu1", "hidden2", "relu2", "score"]

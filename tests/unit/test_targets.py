"""What can be asked for, as text, and what is said when it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import penlight
from penlight.errors import BadInput, BadOption, BadUnit, UnknownName
from penlight.techniques.visualize.objectives import Channel, Energy, Inversion, Neuron, Product, Scaled, Sum
from penlight.techniques.visualize.targets import COMPETE, read_targets
from penlight.units import Unit


@pytest.fixture(scope="module")
def letters():
    return penlight.load("letters")


def read(model, *wanted, reading="neuron"):
    return read_targets(model, wanted, reading)


def test_plain_units(letters):
    found = read(letters, "conv2:7", "class:C", Unit("conv2", 7), "conv1:*", "conv2:3@1,2")
    assert [t.text for t in found[:3]] == ["conv2:7", "fc:2", "conv1:0"]  # each once
    assert len(found) == 2 + 16 + 1
    assert found[1].label == "C"
    assert found[-1].placed
    assert not found[0].placed


def test_arithmetic(letters):
    (found,) = read(letters, "class:C - 0.5 * class:D + conv2:7")
    assert found.layers == ("conv2", "fc")
    assert found.whole
    assert isinstance(found.objective, Sum)
    outputs = {"fc": torch.arange(10.0)[None], "conv2": torch.ones(1, 48, 3, 3)}
    assert float(found.objective(outputs, torch.arange(1))) == 2 - 1.5 + 1
    (product,) = read(letters, "conv2:7 * conv2:9")
    assert isinstance(product.objective, Product)
    (negative,) = read(letters, "-1 * class:C")
    assert isinstance(negative.objective, Scaled)


def test_readings(letters):
    assert read(letters, "conv2:7 + conv2:8", reading="channel")[0].objective.parts[0] == Channel("conv2", 7)
    assert read(letters, "channel(conv2:7)")[0].objective == Channel("conv2", 7)
    assert read(letters, "neuron(conv2:7@1,1)")[0].objective == Neuron("conv2", 7, (1, 1))
    assert read(letters, "layer(conv3)")[0].objective == Energy("conv3")
    assert read(letters, "energy(conv3:2)")[0].objective == Energy("conv3", 2)
    (found,) = read(letters, "probability(class:C)")
    assert found.notes == (COMPETE,)
    assert read(letters, "class:C", reading="probability")[0].notes == (COMPETE,)


def test_a_third_partys_objective(letters):
    (found,) = read(letters, Channel("conv2", 1) - Channel("conv2", 2))
    assert found.text == "channel(conv2:1) + -1 * channel(conv2:2)"
    with pytest.raises(UnknownName, match="layer"):
        read(letters, Channel("conv9", 1))


def test_interaction_shares_one_start(letters):
    found = read(letters, "interaction(conv2:7, conv2:9, 3)")
    assert [t.text for t in found] == [
        "1 * conv2:7 + 0 * conv2:9", "0.5 * conv2:7 + 0.5 * conv2:9", "0 * conv2:7 + 1 * conv2:9",
    ]  # fmt: skip
    assert len({t.start for t in found}) == 1
    assert len(read(letters, "interaction(conv2:7, conv2:9)")) == 5
    outputs = {"conv2": torch.arange(48.0).reshape(1, 48, 1, 1)}
    assert [float(t.objective(outputs, torch.arange(1))) for t in found] == [7.0, 8.0, 9.0]


def test_pictures_and_directions(letters, tmp_path):
    (found,) = read(letters, "inversion(conv3, data:12)")
    assert found.placed
    assert isinstance(found.objective, Inversion)
    assert found.objective.features.shape == (80, 7, 7)
    pixels = np.zeros((28, 28), np.uint8)
    pixels[6:20, 10:14] = 255
    Image.fromarray(pixels).save(tmp_path / "i.png")
    (other,) = read(letters, f"caricature(conv3, {tmp_path / 'i.png'})")
    assert other.objective.features.shape == (80, 7, 7)
    np.save(tmp_path / "axis.npy", np.eye(48)[3])
    (axis,) = read(letters, f"direction(conv2, {tmp_path / 'axis.npy'})")
    outputs = {"conv2": torch.arange(48.0).reshape(1, 48, 1, 1)}
    assert float(axis.objective(outputs, torch.arange(1))) == 3.0


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("conv2:7 + conv2:99", BadUnit, "units 0 to 47"),
        ("conv2:7 + convx:9", UnknownName, "conv"),
        ("chanel(conv2:7)", UnknownName, "channel"),
        ("conv2:* + conv2:1", BadUnit, "48 units"),
        ("2 * 3", BadUnit, "names no unit"),
        ("layer(conv2, conv3)", BadUnit, "takes 1 argument"),
        ("inversion(conv3)", BadUnit, "takes 2 arguments"),
        ("inversion(conv3, data:999999)", BadInput, "0 to 2499"),
        ("inversion(conv3, nowhere.png)", BadInput, "nowhere.png"),
        ("direction(conv2, nowhere.npy)", BadInput, "nowhere.npy"),
        ("probability(conv2:7)", BadOption, "class"),
        ("interaction(conv2:7)", BadUnit, "interaction"),
        ("layer(convx)", UnknownName, "conv"),
    ],
)
def test_what_is_wrong_is_said(letters, text, error, words):
    with pytest.raises(error, match=words):
        read(letters, text)


def test_a_direction_that_is_none(letters, tmp_path):
    for name, content in (("short", np.ones(5)), ("text", np.array(["a"] * 48)), ("nan", np.full(48, np.nan))):
        np.save(tmp_path / f"{name}.npy", content)
        with pytest.raises(BadInput, match=name):
            read(letters, f"direction(conv2, {tmp_path / name}.npy)")

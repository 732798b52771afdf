"""The doors answer inside `torch.inference_mode()` as they do outside, gradients included."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.errors import BadReference

RNG = np.random.default_rng(0)
PICTURES = RNG.random((8, 3, 12, 12), np.float32)
TRUTH = np.arange(8) % 3


def network():
    return zoo.seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 3),
        )
    ).eval()


def opened():
    return penlight.load(network(), example=torch.from_numpy(PICTURES[:1]))


DOORS = {
    "layers": lambda model: [(path, layer.shape) for path, layer in model.layers.items()],
    "fields": lambda model: dict(model.fields),
    "predict": lambda model: model.predict(PICTURES),
    "prepared": lambda model: [one.is_inference() for one in model.prepared().parameters()],
    "explain by gradients": lambda model: penlight.explain(model, PICTURES[0], unit="3:1").values,
    "explain by lime": lambda model: (
        penlight.explain(model, PICTURES[0], unit="class:1", method="lime", segments="grid", count=4).values
    ),
    "explain by occlusion": lambda model: (
        penlight.explain(model, PICTURES[0], unit="class:1", method="occlusion", window=3).values
    ),
    "activations": lambda model: penlight.activations(model, PICTURES[0]).maps["3"],
    "survey": lambda model: penlight.survey(model, PICTURES, layers="3", top=2).layers["3"].top_activation,
    "project": lambda model: (
        penlight.project(model, penlight.survey(model, PICTURES, layers="3", top=2), "3:1", data=PICTURES).images
    ),
    "diagnose": lambda model: (
        penlight.diagnose(model, list(zip(PICTURES, TRUTH, strict=True)), draws=100, effort=1e-9).layers["3"].effect
    ),
    "formula": lambda model: penlight.formula(model, PICTURES[0]).margin,
    "visualize": lambda model: penlight.visualize(model, "class:1", steps=3).images,
    "sweep": lambda model: penlight.sweep(model, "class:1", "rate=0.01..0.1:2", steps=2).images,
    "dream": lambda model: (
        penlight.dream(model, (255 * PICTURES[0]).astype(np.uint8).transpose(1, 2, 0), "3", steps=2).images
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("loaded", ["inside", "outside"])
def test_what_is_found_inside_is_what_is_found_outside(door, loaded):
    wanted, model, made = DOORS[door](opened()), opened(), network()
    with torch.inference_mode():
        if loaded == "inside":
            model = penlight.load(made, example=torch.from_numpy(PICTURES[:1]))
        found = DOORS[door](model)
        assert torch.is_inference_mode_enabled()
    if isinstance(wanted, list | dict | float):
        assert found == wanted
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_weights_made_inside_are_refused():
    with torch.inference_mode():
        made = network()
    with pytest.raises(BadReference, match=r"inside torch\.inference_mode\(\).*deepcopy"):
        penlight.load(made, example=torch.from_numpy(PICTURES[:1]))
    assert penlight.load(copy.deepcopy(made), example=torch.from_numpy(PICTURES[:1])).layers

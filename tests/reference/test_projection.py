"""Projections of single activations: one by one by the definition, and those of a survey's top examples."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadInput, BadOption, UnknownName
from penlight.inputs import open_data
from penlight.results.explain import painted


@pytest.fixture(scope="module")
def model():
    return penlight.load(zoo.seeded(zoo.Functional), example=torch.zeros(1, 1, 16, 16))


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((12, 1, 16, 16), np.float32)


def by_definition(network, x, channel, place):
    """All other activations zero; filter, rectify, unpool by the switches, filter."""
    with torch.no_grad():
        rectified = F.relu(network.conv1(x))
        pooled, switches = F.max_pool2d(rectified, 2, return_indices=True)
        maps = network.conv2(pooled)
        alone = torch.zeros_like(maps)
        alone[0, channel, *place] = maps[0, channel, *place]
        back = F.conv_transpose2d(alone, network.conv2.weight, padding=1)
        unpooled = F.max_unpool2d(back, switches, 2, output_size=rectified.shape[2:])
        return F.conv_transpose2d(F.relu(unpooled), network.conv1.weight, padding=2)[0].numpy()


@pytest.mark.parametrize(("channel", "place"), [(0, (0, 0)), (3, (4, 2)), (7, (7, 7))])
def test_by_definition(model, pictures, channel, place):
    x = torch.from_numpy(pictures[:1])
    r = penlight.explain(model, pictures[0], f"conv2:{channel}@{place[0]},{place[1]}", method="projection")
    expected = by_definition(model.network, x, channel, place)
    np.testing.assert_allclose(r.values, expected, atol=1e-6)
    assert np.abs(expected).max() > 0
    outside = np.ones((16, 16), bool)
    (top, bottom), (left, right) = r.box
    outside[top:bottom, left:right] = False
    assert not r.values[0][outside].any()
    assert r.painted().shape == (bottom - top, right - left, 1)
    assert r.overlay().shape == (bottom - top, right - left, 3)


def test_a_surveys_examples(model, pictures):
    survey = penlight.survey(model, pictures, top=4)
    found = penlight.project(model, survey, ["conv2:*", "fc:1"], data=pictures, top=3)
    assert found.units == (*(f"conv2:{u}" for u in range(8)), "fc:1")
    for unit in ("conv2:2", "conv2:7", "fc:1"):
        assert len(found.of(unit)) == 3
        for one, example in zip(found.of(unit), survey.examples(unit), strict=False):
            assert (one.index, one.box) == (example.index, example.box)
            assert one.activation == pytest.approx(example.activation, abs=1e-5)
            where = f"@{example.position[0]},{example.position[1]}" if example.position else ""
            alone = penlight.explain(model, pictures[one.index], unit + where, method="projection")
            top, left, bottom, right = one.box
            # eight bits: one step where rounding falls the other way
            expected = painted(alone.values[:, top:bottom, left:right]).astype(int)
            assert np.abs(one.image.astype(int) - expected).max() <= 1
            assert len(np.unique(one.image)) > 2


def test_the_strip_holds_every_projection(model, pictures):
    found = penlight.project(model, penlight.survey(model, pictures, top=4), "conv2:*", data=pictures)
    for unit in found.units:
        strip, boxes = found.strip(unit)
        for (top, left, bottom, right), one in zip(boxes, found.of(unit), strict=True):
            np.testing.assert_array_equal(strip[top:bottom, left:right], one.image)
    with pytest.raises(UnknownName, match="conv1:0"):
        found.of("conv1:0")


def test_what_cannot_be_projected_is_said(model, pictures):
    survey = penlight.survey(model, pictures, top=4)
    with pytest.raises(BadInput, match="the data has 2"):
        penlight.project(model, survey, "conv2:1", data=pictures[:2])
    with pytest.raises(BadOption, match="activation of one unit"):
        penlight.explain(model, pictures[0], "mean(conv2:1)", method="projection")
    with pytest.raises(BadOption, match="penlight.project"):
        penlight.explain(model, pictures[0], "conv2:1", method="projections")
    table = penlight.load(torch.nn.Sequential(torch.nn.Linear(4, 3)), example=torch.zeros(1, 4))
    with pytest.raises(BadOption, match="only pictures"):
        penlight.explain(table, np.ones(4, np.float32), method="projection")
    rows = np.random.default_rng(0).random((5, 4), np.float32)
    with pytest.raises(BadOption, match="only pictures"):
        penlight.project(table, penlight.survey(table, open_data(rows, table.contract)), data=rows)


def test_an_atlas_holds_them_and_its_pages_show_them(model, pictures, tmp_path):
    penlight.build_atlas(model, pictures, tmp_path / "atlas", seeds=1, steps=2, top=3)
    penlight.build_site(tmp_path / "atlas", tmp_path / "site")
    for unit in ("conv1/0", "conv2/7", "fc/1"):
        page = (tmp_path / "site" / "units" / f"{unit}.html").read_text("utf-8")
        assert page.count('class="back"') == 3
        layer, index = unit.split("/")
        assert (tmp_path / "site" / "pictures" / layer / f"back-{index}.png").exists()

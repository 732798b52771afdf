"""Maps of all layers: against the network itself, their statistics by hand, their colours, and checkpoints."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadInput, BadUnit, BadWeights, UnknownName, Untrusted
from penlight.results import ActivationsResult, Provenance, load_result
from penlight.results.activations import Display


@pytest.fixture(scope="module")
def model():
    return penlight.load(zoo.seeded(zoo.Functional), example=torch.zeros(1, 1, 16, 16), labels=list("ABCDE"))


@pytest.fixture(scope="module")
def pictures():
    return np.random.default_rng(0).random((3, 1, 16, 16), np.float32)


def test_values_are_the_networks_own(model, pictures):
    r = penlight.activations(model, pictures)
    assert r.layers == ("conv1", "conv2", "fc")
    net, x = model.network, torch.from_numpy(pictures)
    with torch.no_grad():
        first = net.conv1(x)
        second = net.conv2(F.max_pool2d(F.relu(first), 2))
        scores = net(x)
    for path, expected in (("conv1", first), ("conv2", second), ("fc", scores)):
        np.testing.assert_allclose(r[path], expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(r.probabilities, scores.softmax(1).numpy(), atol=1e-5)
    best = int(scores[1].argmax())
    assert r.ranked(1)[0] == ("ABCDE"[best], pytest.approx(float(scores[1].softmax(0)[best]), abs=1e-5))
    top = r.top("conv2", 2, run=1)
    channel, row, column = np.unravel_index(int(second[1].argmax()), second.shape[1:])
    assert (top[0].unit, top[0].label) == (f"conv2:{channel}@{row},{column}", None)
    assert top[0].value == pytest.approx(float(second[1].max()), abs=1e-5)
    assert top[0].value >= top[1].value
    assert r.top("fc", 1, run=1)[0].label == "ABCDE"[best]


def test_an_in_place_rectifier_does_not_reach_back(open_zoo):
    model = open_zoo("in-place")
    x = np.random.default_rng(0).random((3, 12, 20), np.float32)
    r = penlight.activations(model, x)
    assert (r["body.0"] < 0).any()
    assert (r["body.1"] < 0).any()
    assert (r["body.2"] >= 0).all()


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_every_network_has_walls(open_zoo, name, tmp_path):
    model = open_zoo(name)
    x = np.random.default_rng(0).random(model.contract.shape, np.float32)
    r = penlight.activations(model, x)
    assert set(r.layers) == {path for path, layer in model.layers.items() if layer.alias_of is None}
    for path in r.layers:
        layer = model.layers[path]
        assert r[path].shape == (1, layer.units, *layer.positions)
    pictures = list(r.pictures())
    assert len(pictures) == len(r.layers)
    assert all(picture.pixels.ndim == 3 and picture.pixels.std() > 0 for picture in pictures)
    again = load_result(r.save(tmp_path / "r"))
    assert isinstance(again, ActivationsResult)
    assert again.to_dict() == r.to_dict()
    np.testing.assert_array_equal(again.wall(r.layers[0]), r.wall(r.layers[0]))


def result(maps, **rest):
    maps = np.asarray(maps, np.float32)
    return ActivationsResult(
        Provenance(), ("a",), {"x": maps[None]}, {"x": "Conv2d"}, np.zeros((1, 1)), np.zeros((1, 0), np.float32), **rest
    )


def test_statistics_by_hand():
    one = np.zeros((2, 4, 5))
    one[0, 1, 2] = 3.0
    told = result(one).statistics("x")
    assert told == {
        "active": 1 / 40,
        "units": 0.5,
        "sparseness": 1.0,
        "places": 1 / 20,
        "mean": 3 / 40,
        "max": 3.0,
        "min": 0.0,
    }
    flat = result(np.full((2, 4, 5), 2.0)).statistics("x")
    assert flat["sparseness"] == pytest.approx(0.0, abs=1e-12)
    assert flat["places"] == 18 / 20
    mixed = np.zeros((1, 1, 4))
    mixed[0, 0] = [3, -1, 0, 0]  # energy 9 and 1: nine tenths in one place
    assert result(mixed).statistics("x")["places"] == 1 / 4
    silent = result(np.zeros((2, 3, 3))).statistics("x")
    assert (silent["active"], silent["sparseness"], silent["places"]) == (0.0, None, None)
    assert result(np.arange(4.0)).statistics("x")["places"] is None


def test_display_as_in_deepvis():
    maps = np.array([[[4.0, 2.0]], [[1.0, -0.5]]])
    np.testing.assert_allclose(Display().strengths(maps), [[[1, 0.5]], [[0.25, -0.125]]])
    np.testing.assert_allclose(Display("unit").strengths(maps), [[[1, 0.5]], [[1, -0.5]]])
    np.testing.assert_allclose(Display(boost=1.0).strengths(maps), Display("unit").strengths(maps))
    np.testing.assert_allclose(Display(boost=0.5).strengths(maps)[1, 0, 0], 0.25**0.5)
    np.testing.assert_allclose(Display(gamma=0.5).strengths(maps), [[[1, 0.5**0.5]], [[0.5, -(0.125**0.5)]]])
    assert not Display().strengths(np.zeros((2, 2))).any()
    assert np.isfinite(Display().strengths(np.array([[np.nan, np.inf, 1.0]]))).all()


def test_walls_show_signs_and_places():
    maps = np.zeros((3, 8, 8))
    maps[0, 0, 0], maps[1, 7, 7] = 1.0, -1.0
    wall = result(maps).wall("x").astype(int)
    red, blue = (wall[..., 0] - wall[..., 2]) > 60, (wall[..., 2] - wall[..., 0]) > 60
    assert red.sum() == blue.sum() == (64 // 8) ** 2
    rows, columns = np.nonzero(red)
    assert rows.max() < 64
    assert columns.max() < 64
    positive = result(np.abs(maps)).wall("x")
    assert positive[10:14, 10:14].mean() < 60  # zero is dark where nothing is negative
    bars = result(np.array([1.0, 0.0, -1.0])).wall("x").astype(int)
    third = bars.shape[1] // 3
    coloured = np.abs(bars[..., 0] - bars[..., 2]) > 60
    assert coloured[:60, :third].any()
    assert not coloured[:, third : 2 * third].any()
    assert coloured[62:, 2 * third :].any()


def test_checkpoints_show_training(model, pictures, tmp_path):
    network = zoo.seeded(zoo.Functional)
    files = []
    for n, factor in enumerate((1.0, 3.0)):
        state = {key: value * factor for key, value in network.state_dict().items()}
        files.append(tmp_path / f"step{n}.safetensors")
        save_file(state, files[-1])
    before = model.hash
    r = penlight.activations(model, pictures[0], checkpoints=files)
    assert r.runs == ("step0.safetensors", "step1.safetensors")
    np.testing.assert_allclose(r["conv1"][1], 3 * r["conv1"][0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(r["conv1"][0], penlight.activations(model, pictures[0])["conv1"][0], atol=1e-6)
    assert r.probabilities[0].max() < r.probabilities[1].max()
    assert penlight.load(model.network, example=torch.zeros(1, 1, 16, 16), labels=list("ABCDE")).hash == before
    with pytest.raises(BadInput, match="on one input"):
        penlight.activations(model, pictures, checkpoints=files)
    files[0].write_bytes(files[0].read_bytes()[:100])
    with pytest.raises(BadWeights, match="cut off"):
        penlight.activations(model, pictures[0], checkpoints=files)
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with pytest.raises(Untrusted, match="--trust"):
        penlight.activations(model, pictures[0], checkpoints=[tmp_path / "a.pt"])
    assert penlight.activations(model, pictures[0], checkpoints=[tmp_path / "a.pt"], trust=True).runs == ("a.pt",)


def test_what_cannot_be_is_said(model, pictures):
    r = penlight.activations(model, pictures, layers="conv*")
    assert r.layers == ("conv1", "conv2")
    with pytest.raises(UnknownName, match="fc"):
        r["fc"]
    with pytest.raises(BadUnit, match="runs 0 to 2"):
        r.top("conv1", run=3)
    with pytest.raises(UnknownName, match="conv1"):
        penlight.activations(model, pictures, layers="con")
    with pytest.raises(BadInput, match="no inputs"):
        penlight.activations(model, [])

"""Maps as colours and pictures, aims as text, fills, one input from whatever the user has."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import penlight
import zoo
from penlight.errors import BadInput, BadOption, BadUnit, UnknownName
from penlight.inputs import InputContract, open_data, read_input
from penlight.models.memory import is_memory_error
from penlight.render import explain_sheet
from penlight.results import ExplainResult, ExplanationsResult, Provenance, load_result
from penlight.results.explain import Explained, painted, shown
from penlight.results.heat import heat, magnitude
from penlight.techniques.contract import Request
from penlight.techniques.explain.aim import Aim, read_aim
from penlight.techniques.explain.chunks import chunk_size, in_chunks
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.fills import FILLS, blurred, filled


def lightness(colours):
    linear = np.where(colours / 255 <= 0.04045, colours / 255 / 12.92, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_signed_colours_are_centred_at_zero():
    ramp = heat(np.linspace(-3, 3, 101)[None], True)[0].astype(float)
    assert ramp[50].min() > 240
    light = lightness(ramp)
    assert (np.diff(light[:51]) >= -1e-6).all()
    assert (np.diff(light[50:]) <= 1e-6).all()
    np.testing.assert_allclose(np.cbrt(light[:50]), np.cbrt(light[:50:-1]), atol=0.06)
    assert ramp[0, 2] > ramp[0, 0] + 60  # blue below
    assert ramp[-1, 0] > ramp[-1, 2] + 60  # red above
    np.testing.assert_array_equal(heat(np.full((2, 2), -5.0), True)[0, 0], heat(np.full((2, 2), -0.1), True)[0, 0])


def test_positive_colours_get_lighter_evenly():
    ramp = lightness(heat(np.linspace(0, 7, 64)[None], False)[0].astype(float))
    steps = np.diff(np.cbrt(ramp))
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.min()


@given(st.floats(0.001, 1000), st.integers(0, 100))
def test_colours_do_not_depend_on_the_scale(scale, seed):
    values = np.random.default_rng(seed).standard_normal((5, 5))
    np.testing.assert_array_equal(heat(values, True), heat(values * scale, True))


def test_zero_everywhere():
    assert (heat(np.zeros((3, 3)), True) > 240).all()
    assert magnitude(np.zeros((0, 3))) == 0.0
    lonely = np.zeros((100, 100))
    lonely[3, 3] = 2.0
    assert magnitude(lonely) == 2.0  # below every percentile, but all there is


def result(values, given, signed=True, **rest):
    return ExplainResult(Provenance(method="x"), Explained("fc:1", "C", 2.0), given, values, signed, "caption", **rest)


def test_the_overlay_shows_what_the_map_says():
    values = np.zeros((1, 8, 8), np.float32)
    values[0, 2, 3], values[0, 5, 6] = 1.0, -1.0
    pixels = result(values, np.full((1, 8, 8), 128, np.uint8)).overlay().astype(int)
    assert pixels[2, 3, 0] > pixels[2, 3, 2] + 60
    assert pixels[5, 6, 2] > pixels[5, 6, 0] + 60
    assert len({tuple(p) for p in pixels.reshape(-1, 3).tolist()}) == 3


def test_a_coarse_map_is_enlarged():
    r = result(np.array([[0, 0], [0, 4]], np.float32), np.zeros((3, 10, 14), np.uint8), signed=False)
    assert r.overlay().shape == (10, 14, 3)
    light = lightness(r.overlay().astype(float))
    assert light[-1, -1] == light.max() > light[0, 0]


def test_channels_are_added_up():
    values = np.stack([np.full((4, 4), 1.0), np.full((4, 4), -3.0)]).astype(np.float32)
    assert (result(values, np.zeros((2, 4, 4), np.uint8)).map == -2).all()
    row = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(result(row, row).map, row)
    assert result(row, row).ranked(2) == [((4,), 4.0), ((3,), 3.0)]


def test_painted_has_zero_at_grey():
    values = np.array([[[-1.0, 0.0, 2.0]]], np.float32)
    np.testing.assert_array_equal(painted(values)[0, :, 0], [64, 128, 255])
    assert (painted(np.zeros((1, 2, 2), np.float32)) == 128).all()


def test_inputs_are_shown_in_their_range():
    np.testing.assert_array_equal(shown(np.array([[[0.0, 1.0]]], np.float32))[0, :, 0], [0, 255])
    np.testing.assert_array_equal(shown(np.array([[[-3.0, 5.0]]], np.float32))[0, :, 0], [0, 255])


@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7), (7, 4, 4), (2, 30), (5,), (300,)])
def test_every_kind_of_input_has_a_sheet(shape):
    given = np.random.default_rng(0).random(shape, np.float32)
    one = result(given - 0.5, given, evidence={"steps": 3, "word": "yes"})
    picture = explain_sheet([one, one])
    assert picture.pixels.std() > 5
    assert list(one.pictures())


def test_explanations_survive_the_disk(tmp_path):
    model = penlight.load("letters")
    both = penlight.explain(model, "data:2", ["class:A", "conv2:3"], method=["gradient", "deconvnet"], start="map")
    assert isinstance(both, ExplanationsResult)
    assert len(both) == 4
    again = load_result(both.save(tmp_path / "r"))
    for one, two in zip(both, again, strict=True):
        np.testing.assert_array_equal(one.values, two.values)
        assert one.to_dict() == two.to_dict()
    assert [part.method for part in both] == ["gradient", "deconvnet"] * 2
    assert both["deconvnet"].provenance.options["start"] == "map"
    assert "start" not in both["gradient"].provenance.options
    assert both.units == ("fc:0", both[2].target.unit)
    with pytest.raises(UnknownName, match="option of gradient, deconvnet"):
        penlight.explain(model, "data:2", method=["gradient", "deconvnet"], stat="map")


def place(model, text, x):
    return read_aim(model, text, model.tensor(x[None]))


def test_aims():
    model = penlight.load(zoo.seeded(zoo.Functional), example=torch.zeros(1, 1, 16, 16))
    x = np.random.default_rng(0).random((1, 16, 16), np.float32)
    maps = model.network.conv2(torch.max_pool2d(torch.relu(model.network.conv1(torch.from_numpy(x[None]))), 2))[0]
    strongest = np.unravel_index(int(maps[5].argmax()), maps[5].shape)
    assert place(model, "conv2:5", x).position == tuple(int(n) for n in strongest)
    scores = model.network(torch.from_numpy(x[None]))[0]
    assert place(model, None, x) == Aim("fc", int(scores.argmax()))
    for text, expected in {
        "mean(conv2:5)": maps[5].mean(), "channel(conv2:5)": maps[5].mean(), "conv2:5@1,2": maps[5, 1, 2],
        "probability(class:3)": scores.softmax(0)[3], "class:3": scores[3], "neuron(conv2:5@1,2)": maps[5, 1, 2],
    }.items():  # fmt: skip
        r = penlight.explain(model, x, text, method="gradient")
        assert float(r.target) == pytest.approx(float(expected.detach()), abs=1e-5), text
    assert str(place(model, "mean(conv2:5)", x)) == "mean(conv2:5)"
    for text, error, match in (
        ("conv2:*", BadUnit, "8 units"), ("conv2:5@9,9", BadUnit, "positions"), ("conv2:99", BadUnit, "0 to 7"),
        ("conv:1", UnknownName, "conv1"), ("mena(conv2:5)", UnknownName, "mean"), ("probability(conv2:1)", BadOption, "no class"),
        ("mean(conv2:1@1,1)", BadUnit, "one position"), ("nonsense", BadUnit, "no unit"),
    ):  # fmt: skip
        with pytest.raises(error, match=match):
            place(model, text, x)


def test_a_network_without_classes_wants_a_unit():
    network = nn.Sequential(nn.Conv2d(1, 2, 3))
    model = penlight.load(network, example=torch.zeros(1, 1, 6, 6))
    with pytest.raises(BadUnit, match="--unit"):
        penlight.explain(model, np.zeros((1, 6, 6), np.float32), method="gradient")


def scene(shape=(3, 20, 30), data=None):
    model = penlight.load(
        nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 2)), example=torch.zeros(1, *shape)
    )
    return open_scene(Request(model, input=np.random.default_rng(0).random(shape, np.float32), data=data, seed=3))


def test_fills():
    own = scene()
    found = {kind: filled(own, kind) for kind in FILLS}
    assert all(fill.shape == own.x.shape for fill in found.values())
    assert not found["zeros"].any()
    np.testing.assert_allclose(found["mean"][0, :, 0, 0], own.x[0].mean((1, 2)), atol=1e-6)
    assert 0 < found["blur"].std() < 0.5 * own.x.std()
    np.testing.assert_allclose(found["blur"].mean(), own.x.mean(), atol=0.02)
    assert torch.equal(found["noise"], filled(own, "noise"))
    assert own.x.min() <= found["noise"].min() < found["noise"].max() <= own.x.max()
    row = scene((5,))
    assert not filled(row, "zeros").any()
    with pytest.raises(BadOption, match="needs data"):
        filled(row, "mean")
    with pytest.raises(BadOption, match="row of 5"):
        filled(row, "blur")
    data = open_data(np.arange(10, dtype=np.float32).reshape(2, 5), row.model.contract)
    np.testing.assert_allclose(filled(scene((5,), data), "mean")[0], [2.5, 3.5, 4.5, 5.5, 6.5])


def test_the_blur_keeps_a_flat_picture():
    np.testing.assert_allclose(blurred(torch.full((1, 2, 9, 9), 3.0), 2.0), 3.0, atol=1e-5)
    spot = torch.zeros(1, 1, 21, 21)
    spot[0, 0, 10, 10] = 1
    wide = blurred(spot, 2.0)
    assert wide[0, 0, 10, 12] / wide[0, 0, 10, 10] == pytest.approx(np.exp(-0.5), rel=1e-3)


def test_chunks_are_halved_when_memory_does_not_suffice():
    sizes = []

    def run(start, stop):
        sizes.append(stop - start)
        if stop - start > 3:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return list(range(start, stop))

    assert list(chain.from_iterable(in_chunks(run, 10, 16))) == list(range(10))
    assert sizes == [10, 8, 4, 2, 2, 2, 2, 2]

    def fails(start, stop):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        in_chunks(fails, 4, 2)
    assert is_memory_error(MemoryError())
    assert not is_memory_error(ValueError("out of memory"))
    assert 1 <= chunk_size(penlight.load("letters")) <= 256


CONTRACT = InputContract("image", (3, 8, 10), (0.5,), (0.5,))


def test_one_input_from_whatever_there_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "a.npz", one=pixels)
    wanted = pixels.transpose(2, 0, 1)
    tensor = torch.from_numpy(wanted / np.float32(255))
    for source in (
        tmp_path / "a.png", str(tmp_path / "a.npy"), tmp_path / "a.npz", Image.fromarray(pixels), pixels, wanted, wanted[None],
    ):  # fmt: skip
        np.testing.assert_array_equal(read_input(source, CONTRACT), wanted)
    np.testing.assert_allclose(read_input(tensor, CONTRACT) * 255, wanted, atol=1e-4)
    assert read_input(np.zeros((40, 30, 3), np.uint8), CONTRACT).shape == (3, 8, 10)
    own = open_data(wanted[None], CONTRACT)
    np.testing.assert_array_equal(read_input("data:0", CONTRACT, own), wanted)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda d: "data:1", "there is no data"),
        (lambda d: str(d), "is a folder"),
        (lambda d: d / "none.png", "no such file"),
        (lambda d: d / "cut.png", "no readable picture"),
        (lambda d: d / "cut.npz", "cannot be read as an array"),
        (lambda d: d / "two.npz", "2 arrays"),
        (lambda d: np.zeros((3, 8, 9), np.float32), r"\[3, 8, 9\]"),
        (lambda d: np.zeros((2, 3, 8, 10), np.float32), "2 inputs"),
        (lambda d: np.full((3, 8, 10), 7.0), "in \\[0, 1\\]"),
        (lambda d: np.full((3, 8, 10), np.nan), "not finite"),
        (lambda d: np.full((3, 8, 10), "x"), "give numbers"),
        (lambda d: {"a": 1}, "a dict is no input"),
        (lambda d: [[1], [2, 3]], "no array"),
    ],
)
def test_bad_inputs_get_one_line(tmp_path, make, match):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    with pytest.raises(BadInput, match=match) as caught:
        read_input(make(tmp_path), CONTRACT)
    assert "\n" not in str(caught.value)


def test_a_model_without_normalisation_takes_any_values():
    plain = InputContract("image", (1, 4, 4))
    values = np.full((1, 4, 4), 100.0, np.float32)
    np.testing.assert_array_equal(read_input(values, plain), values)

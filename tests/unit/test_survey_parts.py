"""The survey's parts one by one: bins, the reading of maps, the tally; and predictions, which read its results."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

import zoo
from penlight.errors import BadInput
from penlight.inputs import InputContract, open_data
from penlight.models import Layer, Model, Probe, reductions
from penlight.models.reductions import Strips, first, highest, lowest
from penlight.techniques.activations.predictions import Predictions
from penlight.techniques.contract import Request
from penlight.techniques.survey import histogram
from penlight.techniques.survey.block import Block, _neurons, _Target, _there
from penlight.techniques.survey.stream import Stream
from penlight.techniques.survey.sums import input_sums
from penlight.techniques.survey.sweep import Sweep, fitting
from penlight.techniques.survey.tally import Tally

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, derandomize=True)
@given(arrays(np.float32, st.integers(1, 20), elements=FLOATS))
def test_a_value_lies_between_its_bins_edges(values):
    edges, numbers = histogram.edges(), histogram.bins(torch.from_numpy(values)).numpy()
    assert (edges[numbers] <= values).all()
    assert (values <= edges[numbers + 1]).all()
    inner = np.abs(values) >= 2.0**histogram.LOWEST
    nearer = np.where(values > 0, edges[numbers], edges[numbers + 1])
    farther = np.where(values > 0, edges[numbers + 1], edges[numbers])
    assert (values[inner] != farther[inner]).all() or (np.abs(values) == np.finfo(np.float32).max).any()
    bounded = inner & (np.abs(values) < 2.0**histogram.HIGHEST)
    assert (np.abs(values - nearer)[bounded] <= 0.25 * np.abs(values)[bounded]).all()
    assert (numbers[~inner] == histogram.BINS // 2).all()


def test_edges_rise_and_mirror():
    edges = histogram.edges()
    assert edges.shape == (histogram.BINS + 1,)
    assert (np.diff(edges) > 0).all()
    assert np.isfinite(edges).all()
    np.testing.assert_array_equal(edges, -edges[::-1])
    assert {-1.0, -0.75, 1.0, 1.25, 1.5, 1.75, 2.0} <= set(edges.tolist())


def test_trimming_keeps_what_any_layer_needs_and_can_be_undone():
    counts = [np.zeros((2, histogram.BINS), np.int32) for _ in range(2)]
    counts[0][1, 100], counts[1][0, 120] = 3, 1
    trimmed, edges = histogram.trim(counts)
    assert [t.shape for t in trimmed] == [(2, 21), (2, 21)]
    assert edges.tolist() == histogram.edges()[100:122].tolist()
    for whole, part in zip(counts, trimmed, strict=True):
        np.testing.assert_array_equal(histogram.widen(part, edges), whole)
    with pytest.raises(ValueError, match="edges of its own"):
        histogram.widen(np.zeros((1, 2), np.int64), np.array([0.0, 0.3, 1.0]))


LAYOUTS = [("NCHW", (5, 40, 30)), ("NCHW", (64, 40, 30)), ("NCHW", (33, 8, 9)), ("NCHW", (64, 3, 4)), ("NCHW", (3, 4, 5)),
           ("NHWC", (6, 7, 5)),
           ("NLC", (9, 4)), ("NCL", (4, 9)), ("NC", (6,)), ("NCDHW", (3, 4, 5, 6)), ("N", ())]  # fmt: skip


@pytest.mark.parametrize("memory", ["plain", "last", "strided"])
@pytest.mark.parametrize(("layout", "shape"), LAYOUTS)
@pytest.mark.parametrize("levels", [3, 10_000])  # few levels: many equal maxima
def test_maps_are_read_in_every_layout_and_memory_order(layout, shape, memory, levels):
    layer = Layer("a", "Some", shape, layout, 0)
    values = torch.randint(0, levels, (4, *shape), generator=torch.Generator().manual_seed(0)).float()
    given = values
    if memory == "last" and len(shape) > 1:
        given = values.movedim(layer.axis, -1).contiguous().movedim(-1, layer.axis)
    elif memory == "strided":
        given = torch.stack([values, values], -1)[..., 0]
    block = Block({"a": layer, "b": layer}, 8, 4, torch.device("cpu"))
    block.step = 1
    block.readers()["b"](given)
    flat = (
        layer.units_first(values).flatten(2).numpy()
        if layer.positions
        else layer.units_first(values)[..., None].numpy()
    )
    columns = block.columns["b"]
    assert columns == slice(layer.units, 2 * layer.units)
    np.testing.assert_array_equal(block.peak[4:, columns], flat.max(2))
    np.testing.assert_array_equal(block.total[4:, columns], flat.sum(2))
    np.testing.assert_array_equal(block.place[4:, columns], flat.argmax(2))
    there = Block({"a": layer, "b": layer}, 8, 4, torch.device("cpu"))
    target = _Target(*(t[4:, columns] for t in (there.peak, there.total, there.place)))
    (_there if layer.positions else _neurons)(layer, 4, there.floor)(given, target)  # as an accelerator does it
    for name in ("peak", "total", "place"):
        assert torch.equal(getattr(there, name), getattr(block, name))
    assert not block.peak[:4].any()
    assert not block.peak[:, : layer.units].any()


@pytest.mark.parametrize("asked", [2, 20])  # of 40 units; a large map is searched in two ways
@pytest.mark.parametrize("size", [(12, 12), (36, 40)])
def test_places_are_looked_for_only_above_the_floor(asked, size):
    layer = Layer("a", "Some", (40, *size), "NCHW", 0)
    values = torch.rand((2, 40, *size), generator=torch.Generator().manual_seed(0)).half().float()
    block = Block({"a": layer}, 2, 2, torch.device("cpu"))
    block.place.fill_(-1)
    block.floor[:] = np.where(np.arange(40) < asked, 0, 1)
    block.readers()["a"](values)
    assert (block.place[:, asked:] == -1).all()
    assert (block.place[:, :asked] == values.flatten(2).argmax(2)[:, :asked]).all()


class _Pointwise(nn.Module):  # 16 times 16 positions
    def __init__(self, bias: bool = True, **options) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.wide = nn.Conv2d(4, 32, 1, bias=bias, **options)

    def forward(self, x):
        return self.wide(torch.relu(self.first(x))).relu_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("disturbed", [False, True])
def test_a_pointwise_convolutions_sums_come_from_its_input_unless_it_puts_out_something_else(bias, disturbed):
    torch.manual_seed(0)
    network = _Pointwise(bias).eval()
    if disturbed:
        network.wide.register_forward_hook(lambda _m, _i, output: output + 0.5)
    model = Model(network, InputContract("image", (3, 16, 16)))
    data = np.random.default_rng(0).random((8, 3, 16, 16), np.float32)
    layers = {"first": model.layers["first"], "wide": model.layers["wide"]}
    sweep = Sweep(model, network, layers, 2, 4)
    assert set(input_sums(network, layers, 4)) == {"wide"}
    sweep.feed(data, range(8), [None] * 8)
    seen = {}
    with Probe(network, {"wide": lambda output: seen.update(wide=output.clone())}) as probe, torch.no_grad():
        probe(model.tensor(data))
    total = seen["wide"].double().sum((2, 3))
    np.testing.assert_allclose(sweep.block.total[:8, sweep.block.columns["wide"]], total, rtol=2e-5, atol=1e-3)


def test_sums_are_read_off_the_input_only_where_that_is_smaller_and_says_the_same():
    def chosen(**options):
        network = _Pointwise(**options)
        model = Model(network, InputContract("image", (3, 28, 28)))
        return set(input_sums(network, dict(model.layers), 4))

    assert chosen() == {"wide"}
    assert chosen(stride=2) == chosen(padding=1) == chosen(groups=2) == set()


@pytest.mark.parametrize("places", [1, 2, 49, 729, 4096, 4099, 11881])
@pytest.mark.parametrize("units", [1, 24, 48, 96, 1000])
def test_extremes_over_positions_are_exact_however_they_are_grouped(places, units):
    flat = torch.randn((2, places, units), generator=torch.Generator().manual_seed(places))
    flat[1, places // 2, units - 1] = torch.nan
    torch.testing.assert_close(highest(flat), flat.amax(1), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(lowest(flat), flat.amin(1), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("places", [1, 2, 49, 729, 1031, 2916, 4099, 11881])
@pytest.mark.parametrize("units", [1, 24, 48, 96])
@pytest.mark.parametrize("kinds", [3, 10**6])
def test_places_of_maxima_are_found_by_strips(places, units, kinds):
    """Few kinds of values: many positions share the maximum, and the first counts."""
    rng = np.random.default_rng(places)
    flat = torch.from_numpy(rng.integers(0, kinds, (3, places, units)).astype(np.float32))
    strips = Strips(places, units)
    stage = strips.of(flat)
    assert torch.equal(stage.amax(1), flat.amax(1))
    rows, columns = rng.integers(0, 3, 40), rng.integers(0, units, 40)
    peaks = flat.amax(1).numpy()[rows, columns]
    wanted = flat.numpy().argmax(1)[rows, columns]
    np.testing.assert_array_equal(strips.find(flat.numpy(), stage.numpy(), peaks, rows, columns), wanted)
    np.testing.assert_array_equal(first(flat.numpy(), peaks, rows, columns), wanted)


def test_places_are_found_in_parts_where_there_are_many(monkeypatch):
    flat = torch.randn((4, 1100, 7), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(reductions, "_AT_ONCE", 3000)
    strips, (rows, columns) = Strips(1100, 7), np.indices((4, 7)).reshape(2, -1)
    peaks, wanted = flat.amax(1).numpy().reshape(-1), flat.numpy().argmax(1).reshape(-1)
    found = strips.find(flat.numpy(), strips.of(flat).numpy(), peaks, rows, columns)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(first(flat.numpy(), peaks, rows, columns), wanted)


def test_a_batch_size_fits_the_largest_map_and_nothing_else():
    cpu = torch.device("cpu")
    assert fitting({"a": Layer("a", "Some", (512, 112, 112), "NCHW", 0)}, cpu) == 2
    assert fitting({"a": Layer("a", "Some", (10,), "NC", 0)}, cpu) == 64


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 6),
    st.lists(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=1, max_size=7), max_size=5),
)
def test_top_lists_are_a_stable_sort(top, blocks):
    tally, rows = Tally(3, top, 0), [row for block in blocks for row in block]
    for block in blocks:
        peak = torch.tensor(block, dtype=torch.float32)
        index = range(tally.inputs, tally.inputs + len(block))
        tally.add(peak, peak, peak.int() + 10, index, [None] * len(block))
    for unit in range(3):
        best = sorted(range(len(rows)), key=lambda i: (-rows[i][unit], i))[:top]
        kept = tally.best.index[unit]
        assert kept[: len(best)].tolist() == best
        assert (kept[len(best) :] == -1).all()
        assert tally.best.place[unit, : len(best)].tolist() == [rows[i][unit] + 10 for i in best]


def letters_like(labels=("a", "b", "c", "d", "e")):
    return Model(zoo.seeded(zoo.Functional), InputContract("image", (1, 16, 16)), labels)


def test_predictions_are_of_the_survey_s_inputs_and_of_samples_of_each_class(tmp_path):
    model, pixels = letters_like(), np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels, labels=np.arange(40) // 10, classes=["c", "b", "x", "a"])
    data = open_data(tmp_path / "d.npz", model.contract)
    survey = Stream(top=1).run(Request(model, layers=["fc"], data=data))
    result = Predictions(samples=2, batch=3).run(Request(model, data=data, earlier=[survey]))
    standing = {int(i) for i in survey.layers["fc"].top_index.reshape(-1)}
    assert result.index == tuple(sorted({0, 1, 10, 11, 20, 21, 30, 31} | standing))
    np.testing.assert_array_equal(result.images[..., 0], pixels[list(result.index)])
    np.testing.assert_allclose(result.probabilities, model.predict(pixels[list(result.index)]), rtol=1e-5)
    truth = {0: 2, 1: 1, 2: None, 3: 0}
    assert result.truth == tuple(truth[i // 10] for i in result.index)
    assert result.names[0] == "d.npz[0]"
    assert set(Predictions(samples=0).run(Request(model, data=data, earlier=[survey])).index) == standing
    with pytest.raises(BadInput, match="the data has 5"):
        Predictions().run(Request(model, data=open_data(pixels[:5], model.contract), earlier=[survey]))


def test_predictions_of_unlabelled_data_and_of_a_model_without_labels():
    model = letters_like(None)
    inputs = np.random.default_rng(0).random((20, 1, 16, 16), np.float32)
    result = Predictions().run(Request(model, data=open_data(inputs, model.contract)))
    assert result.index == tuple(range(12))
    assert result.labels == ("0", "1", "2", "3", "4")
    assert result.truth == (None,) * 12
    assert result.images.dtype == np.uint8
    np.testing.assert_array_equal(result.images, np.rint(inputs[:12] * 255).astype(np.uint8).transpose(0, 2, 3, 1))


def test_predictions_leave_out_what_cannot_be_read(tmp_path):
    model = letters_like()
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(b"nothing")
    with pytest.raises(BadInput, match="none of the 3 inputs"):
        Predictions().run(Request(model, data=open_data(tmp_path, model.contract)))
    table = Model(nn.Sequential(nn.Linear(7, 5)), InputContract("array", (7,)))
    data = open_data(np.random.default_rng(0).random((3, 7), np.float32), table.contract)
    assert Predictions().run(Request(table, data=data)).images.shape == (3, 1, 7, 1)

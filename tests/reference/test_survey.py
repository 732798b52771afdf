"""The streamed survey against a plain NumPy one that holds every map of every layer."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import zoo
from penlight.errors import BadInput, BadOption, CannotRun, UnknownName
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.results import LayerSurvey
from penlight.techniques.contract import Request
from penlight.techniques.survey import stream as stream_module
from penlight.techniques.survey.merge import Merge, merge
from penlight.techniques.survey.stream import Stream

FIELDS = tuple(LayerSurvey.__dataclass_fields__)


class Exact(nn.Module):
    """Small whole-number weights: with inputs in eighths all arithmetic is exact, whatever its order."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(5, 33, 3, stride=2)
        self.fc = nn.Linear(33 * 2 * 2, 3)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            parameter.data = torch.randint(-2, 3, parameter.shape, generator=generator).float()
        self.conv.weight.data[4], self.conv.bias.data[4] = 0, -1  # dead after the ReLU

    def forward(self, x):
        x = self.pool(self.act(self.conv(x)))
        x = self.act(self.conv2(x))
        return self.fc(x.flatten(1))


def exact(count=23, seed=0, truth=None, labels=None):
    model = Model(Exact(), InputContract("image", (1, 12, 12)))
    inputs = np.random.default_rng(seed).integers(0, 9, (count, 1, 12, 12)).astype(np.float32) / 8
    data = open_data(inputs, model.contract)
    if truth is not None:
        data = Labelled(inputs, truth, labels)
    return model, data, inputs


class Labelled:
    name = "labelled"

    def __init__(self, inputs, truth, classes):
        self.inputs, self.truth, self.classes = inputs, truth, tuple(classes)

    def __len__(self):
        return len(self.inputs)

    def label(self, index):
        return f"input {index}", self.truth[index]

    def read(self, index):
        return self.inputs[index]

    def fingerprint(self):
        return "labelled"


def survey(model, data, layers=(), **options):
    return Stream(**options).run(Request(model, layers=layers, data=data))


def brute(model, inputs):
    """path -> (N, units, positions) float64, by hooks of its own on the network as it is, one input at a time."""
    found, network = {}, model.network
    names = {module: name for name, module in network.named_modules() if name}
    maps = [{} for _ in inputs]
    modes = [(m, m.training) for m in network.modules()]
    network.eval()
    for one, into in zip(inputs, maps, strict=True):
        calls = {}

        def hook(module, _given, out, into=into, calls=calls):
            out = out[0] if isinstance(out, tuple) else out
            calls[module] = calls.get(module, 0) + 1
            path = names[module] + (f"#{calls[module]}" if calls[module] > 1 else "")
            into[path] = out[0].double().numpy().copy()

        handles = [m.register_forward_hook(hook) for m in names]
        with torch.no_grad():
            network(torch.from_numpy(model.contract.normalize(one[None])))
        for handle in handles:
            handle.remove()
    for module, mode in modes:
        module.training = mode
    for path, layer in model.layers.items():
        if path in maps[0]:
            stacked = np.stack([m[path] for m in maps])
            found[path] = np.moveaxis(stacked, layer.axis, 1).reshape(len(inputs), layer.units, -1)
    return found


def check(result, model, inputs, top, tolerance):
    whole = brute(model, inputs)
    for path, rows in result.layers.items():
        if path not in whole:
            continue
        maps, layer = whole[path], model.layers[path]
        peaks, close = maps.max(2), {"rtol": tolerance, "atol": tolerance * max(1.0, float(np.abs(maps).max()))}
        n, k = len(inputs), min(top, len(inputs))
        np.testing.assert_allclose(rows.mean, maps.mean((0, 2)), **close)
        np.testing.assert_allclose(rows.mean_max, peaks.mean(0), **close)
        np.testing.assert_allclose(rows.maximum, peaks.max(0), **close)
        np.testing.assert_allclose(rows.minimum, peaks.min(0), **close)
        np.testing.assert_allclose(rows.fires, (peaks > 0).mean(0))
        np.testing.assert_allclose(rows.top_activation[:, :k], -np.sort(-peaks.T, axis=1)[:, :k], **close)
        assert (rows.top_index[:, k:] == -1).all()
        assert rows.top_position.shape == (layer.units, top, len(layer.positions))
        for u, r in itertools.product(range(layer.units), range(k)):
            position = tuple(rows.top_position[u, r])
            flat = int(np.ravel_multi_index(position, layer.positions)) if layer.positions else 0
            np.testing.assert_allclose(maps[rows.top_index[u, r], u, flat], rows.top_activation[u, r], **close)
        assert (rows.histogram.sum(1) == n).all()


@pytest.mark.parametrize("network", zoo.NETWORKS)
def test_every_layer_of_every_kind_of_network(network):
    make, shape = zoo.NETWORKS[network]
    model = Model(zoo.seeded(make), InputContract("image" if len(shape) == 3 else "array", shape))
    inputs = np.random.default_rng(0).random((37, *shape), np.float32)
    result = survey(model, open_data(inputs, model.contract), top=3, batch=4)
    assert list(result.layers) == [p for p, layer in model.layers.items() if layer.alias_of is None]
    check(result, model, inputs, 3, 2e-6)


def test_what_an_in_place_relu_overwrites_is_read_before_it_does():
    model, data, inputs = exact()
    result = survey(model, data, top=4)
    assert result.layers["conv"].minimum.min() < 0
    assert {"act", "act#2"} <= set(result.layers)
    check(result, model, inputs, 4, 1e-12)


@pytest.mark.parametrize("layers", [(), ("body.0",), ("body.1",), ("body.2", "head")])
def test_norms_folded_or_not_give_the_same(layers):
    network = zoo.seeded(zoo.InPlace)
    network.body[1].running_mean.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
    network.body[1].running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    model = Model(network.train(), InputContract("image", (3, 12, 20)))
    inputs = np.random.default_rng(2).random((9, 3, 12, 20), np.float32)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    result = survey(model, open_data(inputs, model.contract), layers, top=2)
    check(result, model, inputs, 2, 1e-5)
    assert network.training
    assert not any(m._forward_hooks for m in network.modules())
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


def same(a, b, means_exact=True):
    for name in ("count", "names", "truth", "classes", "class_count", "skipped"):
        assert getattr(a, name) == getattr(b, name)
    np.testing.assert_array_equal(a.edges, b.edges)
    assert list(a.layers) == list(b.layers)
    for path, field in itertools.product(a.layers, FIELDS):
        one, other = getattr(a.layers[path], field), getattr(b.layers[path], field)
        if means_exact or field not in ("mean", "mean_max", "class_mean"):
            np.testing.assert_array_equal(one, other, err_msg=f"{path} {field}")
        else:
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12, err_msg=f"{path} {field}")
        assert one.dtype == other.dtype


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 40])
def test_any_batch_size_gives_the_same(batch):
    model, data, _ = exact(75, truth=[n % 3 for n in range(75)], labels="abc")
    same(survey(model, data, top=5, batch=batch), survey(model, data, top=5))


@pytest.mark.parametrize("order", range(6))
def test_shards_in_any_order_give_the_whole(order):
    labels = [None if n % 5 == 0 else n % 2 for n in range(71)]
    model, data, _ = exact(71, truth=labels, labels=["even", "odd", "none"])
    cuts = [0, *sorted(np.random.default_rng(order).choice(np.arange(1, 71), 4, replace=False).tolist()), 0]
    shards = [survey(model, data, top=5, start=a, stop=b) for a, b in itertools.pairwise(cuts)]
    np.random.default_rng(order).shuffle(shards)
    whole = survey(model, data, top=5)
    merged = merge(shards)
    same(merged, whole, means_exact=False)
    assert merged.provenance.options == whole.provenance.options
    same(merge([merge(shards[:2]), *shards[2:]]), whole, means_exact=False)
    same(Merge().run(Request(model, data=data, earlier=shards)), merged)


def test_shards_of_a_network_that_rounds_give_the_whole_too():
    model = Model(zoo.seeded(zoo.Functional), InputContract("image", (1, 16, 16)))
    data = open_data(np.random.default_rng(0).random((50, 1, 16, 16), np.float32), model.contract)
    shards = [survey(model, data, top=4, start=a, stop=b) for a, b in [(19, 50), (0, 13), (13, 19)]]
    same(merge(shards), survey(model, data, top=4), means_exact=False)


def test_shards_that_do_not_belong_together_are_refused():
    model, data, _ = exact(12)
    one, two = survey(model, data, stop=6), survey(model, data, start=6)
    with pytest.raises(BadInput, match="given twice"):
        merge([one, two, survey(model, data, stop=6)])
    with pytest.raises(BadInput, match="differ in top"):
        merge([one, survey(model, data, start=6, top=3)])
    with pytest.raises(BadInput, match="differ in layers"):
        merge([one, survey(model, data, ["fc"], start=6)])
    with pytest.raises(BadInput, match="no survey to merge"):
        merge([])


class Detector(nn.Module):
    """One filter that answers to one pixel pattern."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, bias=False)
        self.conv.weight.data = torch.tensor([[[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], [[[0.0] * 3] * 3]])

    def forward(self, x):
        return self.conv(x).amax((2, 3))


def test_planted_inputs_come_first_at_their_places_with_their_boxes():
    model = Model(Detector(), InputContract("image", (1, 10, 14)))
    inputs = np.zeros((40, 1, 10, 14), np.float32)
    planted = {33: (4, 7, 1.0), 5: (0, 0, 0.75), 12: (7, 11, 0.5)}
    for index, (row, column, value) in planted.items():
        inputs[index, 0, row : row + 3, column : column + 3] = value * np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])
    top = survey(model, open_data(inputs, model.contract), ["conv"], top=3).examples("conv:0")
    assert [(e.index, e.position, e.activation) for e in top] == [
        (i, (r, c), 5 * v) for i, (r, c, v) in planted.items()
    ]
    assert [e.box for e in top] == [(r, c, r + 3, c + 3) for r, c, _ in planted.values()]


def test_of_equals_the_earlier_input_and_the_first_position_win():
    model = Model(Detector(), InputContract("image", (1, 10, 14)))
    inputs = np.zeros((70, 1, 10, 14), np.float32)
    for index in (50, 9, 61, 40):
        inputs[index, 0, 5, 3] = inputs[index, 0, 2, 9] = 1
    result = survey(model, open_data(inputs, model.contract), ["conv"], top=3, deduplicate=False)
    assert [(e.index, e.position) for e in result.examples("conv:0")] == [(i, (0, 8)) for i in (9, 40, 50)]
    assert [(e.index, e.position) for e in result.examples("conv:1")] == [(i, (0, 0)) for i in range(3)]
    assert set(result.names) == {0, 1, 2, 9, 40, 50}


def test_boxes_through_strides_and_pools_are_the_closed_form():
    model, data, _ = exact(20)
    rows = survey(model, data, ["conv2"], top=5).layers["conv2"]
    for position, box in zip(rows.top_position.reshape(-1, 2), rows.top_box.reshape(-1, 4), strict=True):
        start = (
            position * 4 - 1
        )  # conv: 3 px; pool: 4 px, step 2; conv2: 4 + 2 * 2 = 8 px, step 4, one pixel of padding
        assert box.tolist() == [*np.maximum(start, 0), *np.minimum(start + 8, 12)]
    assert (survey(model, data, ["fc"], top=2).layers["fc"].top_box == [0, 0, 12, 12]).all()


def test_more_places_than_inputs_stay_empty():
    model, data, inputs = exact(3)
    result = survey(model, data, top=8)
    check(result, model, inputs, 8, 1e-12)
    assert len(result.examples("conv2:0")) == 3
    assert (result.layers["fc"].top_box[:, 3:] == 0).all()


def test_a_dead_unit_never_fires():
    model, data, _ = exact()
    result = survey(model, data)
    assert result.row("act:4") == {"unit": "act:4", "mean": 0, "mean_max": 0, "max": 0, "min": 0, "fires": 0}
    counts, edges = result.histogram("act:4")
    assert counts.tolist() == [23]
    assert edges[0] < 0 < edges[1]


def test_class_means_are_those_of_the_maxima():
    truth = [0, 1, 1, None, 0, 1, 7]  # 7 is no class of this data
    model, data, inputs = exact(7, truth=truth, labels=["a", "b", "empty"])
    result = survey(model, data, ["conv2"], top=2)
    peaks = brute(model, inputs)["conv2"].max(2)
    np.testing.assert_allclose(result.layers["conv2"].class_mean[:, 0], peaks[[0, 4]].mean(0), rtol=1e-12)
    np.testing.assert_allclose(result.layers["conv2"].class_mean[:, 1], peaks[[1, 2, 5]].mean(0), rtol=1e-12)
    assert np.isnan(result.layers["conv2"].class_mean[:, 2]).all()
    assert result.class_count == (2, 3, 0)
    assert all(result.truth[i] == truth[i] for i in result.truth)


class Reciprocal(nn.Module):
    """Infinite, or not a number, where a pixel says so."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AvgPool2d(1)
        self.last = nn.Flatten()

    def forward(self, x):
        return self.last(self.pool(torch.where(x == 0, torch.nan, torch.where(x == 1, torch.inf, x))))


def test_what_is_not_finite_is_missing_for_that_unit_only():
    inputs = np.full((40, 2, 4, 4), 0.5, np.float32)
    inputs[3, 0, 1, 1], inputs[4, 0, 2, 2], inputs[6, 1, 3, 0] = 0, 1, 0.75
    inputs[:, 1, 0, 0] = 0.25
    model = Model(Reciprocal(), InputContract("array", (2, 4, 4)))
    data = Labelled(inputs, [0] * 5 + [1] * 35, "ab")
    rows = survey(model, data, ["pool"], top=3).layers["pool"]
    assert rows.top_index.tolist() == [[0, 1, 2], [6, 0, 1]]
    assert rows.histogram.sum(1).tolist() == [38, 40]
    np.testing.assert_allclose(rows.mean_max, [0.5, 0.5 + 0.25 / 40])
    assert rows.mean[0] == rows.maximum[0] == rows.minimum[0] == 0.5
    np.testing.assert_array_equal(np.isnan(rows.class_mean), [[True, False], [False, False]])
    shards = [survey(model, data, ["pool"], top=3, start=a, stop=b) for a, b in [(4, 40), (0, 4)]]
    same(merge(shards), survey(model, data, ["pool"], top=3), means_exact=False)
    only = survey(model, Labelled(np.zeros((2, 2, 4, 4), np.float32), [0, 1], "ab"), ["pool"])
    assert only.examples("pool:0") == []
    assert '"mean": null' in only.to_json()


def test_pictures_that_cannot_be_read_are_named_and_skipped(tmp_path):
    model = Model(zoo.seeded(zoo.InPlace), InputContract("image", (3, 12, 20)))
    rng = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        for n in range(4):
            Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / kind / f"{n}.jpg")
    (tmp_path / "cat" / "1.png").write_bytes(b"no picture at all")
    whole = (tmp_path / "dog" / "2.jpg").read_bytes()
    (tmp_path / "dog" / "2.jpg").write_bytes(whole[: len(whole) // 3])
    done = []
    data = open_data(tmp_path, model.contract)
    result = Stream(top=9).run(Request(model, data=data, progress=lambda a, b: done.append((a, b))))
    assert [name for name, _ in result.skipped] == ["cat/1.png", "dog/2.jpg"]
    assert (result.count, result.classes, result.class_count) == (7, ("cat", "dog"), (4, 3))
    assert set(result.names.values()) == {f"cat/{n}.jpg" for n in range(4)} | {f"dog/{n}.jpg" for n in (0, 1, 3)}
    assert done[-1] == (9, 9)
    same(merge([survey(model, data, start=4), survey(model, data, stop=4)]), result, means_exact=False)
    with pytest.raises(BadInput, match="not one of the 1 inputs"):
        survey(model, open_data(tmp_path / "cat" / "1.png", model.contract))


def test_npz_and_torch_datasets_are_read_alike(tmp_path):
    model, _, inputs = exact(15)
    pixels, truth = (inputs * 255).astype(np.uint8), np.arange(15) % 3
    np.savez(tmp_path / "d.npz", images=pixels, labels=truth)
    dataset = torch.utils.data.TensorDataset(torch.from_numpy(pixels), torch.from_numpy(truth))
    labels = ["x", "y", "z"]
    one, two = (survey(model, open_data(s, model.contract, labels)) for s in (tmp_path / "d.npz", dataset))
    assert one.classes == two.classes == ("x", "y", "z")
    assert one.class_count == two.class_count == (5, 5, 5)
    for path, field in itertools.product(one.layers, FIELDS):
        np.testing.assert_array_equal(getattr(one.layers[path], field), getattr(two.layers[path], field))


class Watched(Labelled):
    """Hands out a fresh array for every input and counts how many of them live at once."""

    def __init__(self, count):
        super().__init__(range(count), [None] * count, ())
        self.alive, self.most = weakref.WeakSet(), 0

    def read(self, index):
        found = np.random.default_rng(index).random((1, 12, 12), np.float32).view(Counted)
        self.alive.add(found)
        self.most = max(self.most, len(self.alive))
        return found


class Counted(np.ndarray):
    """An array that can be referred to weakly."""

    __hash__ = object.__hash__


def test_memory_does_not_grow_with_the_data(monkeypatch):
    monkeypatch.setattr(stream_module, "_SPARE", 100)
    kept = []
    needed = stream_module._needed
    monkeypatch.setattr(
        stream_module, "_needed", lambda known, tally: kept.append((len(known), tally)) or needed(known, tally)
    )
    model, _, _ = exact()
    most, sizes = {}, {}
    for count in (200, 2000):
        data = Watched(count)
        result = survey(model, data, ["conv2"], top=2)
        most[count], tally = data.most, kept[-1][1]
        kept_arrays = {**vars(tally), **vars(tally.best)}.values()
        sizes[count] = [
            array.nbytes for array in kept_arrays if hasattr(array, "nbytes") and array is not tally.entered
        ]
        rows = result.layers["conv2"]
        assert set(result.names) == {*np.unique(rows.top_index), *np.unique(rows.spare[..., 1])} - {-1}
    assert most[200] == most[2000] <= 3 * 64
    assert sizes[200] == sizes[2000]
    assert max(n for n, _ in kept) <= 2 * 132 + 100 + 64  # 33 units, 2 places and 2 in reserve each


class Windows(nn.Module):
    """The inner layer works on windows: four rows an input."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(16, 2)

    def forward(self, x):
        return self.outer(self.inner(x.reshape(-1, 4)).reshape(-1, 16))


def test_a_layer_without_a_row_an_input_is_left_out_or_refused():
    model = Model(zoo.seeded(Windows), InputContract("array", (16,)))
    data = open_data(np.random.default_rng(0).random((5, 16), np.float32), model.contract)
    assert list(survey(model, data).layers) == ["outer"]
    with pytest.raises(CannotRun, match="'inner' puts out 12 rows for 3 inputs"):
        survey(model, data, ["inner"])


def test_mistakes_are_said_in_a_line():
    model, data, _ = exact(9)
    with pytest.raises(BadInput, match="needs data"):
        survey(model, None)
    with pytest.raises(UnknownName, match="did you mean 'conv' or 'conv2'"):
        survey(model, data, ["conv3"])
    with pytest.raises(BadOption, match="leave none of the 9 inputs"):
        survey(model, data, start=9)
    with pytest.raises(BadOption, match="leave none"):
        survey(model, data, start=5, stop=5)


def test_a_shard_of_nothing_but_damaged_pictures_is_merged_as_nothing(tmp_path):
    rng = np.random.default_rng(5)
    for n in range(10):
        file = tmp_path / f"{n}.png"
        if n < 4:
            file.write_bytes(b"damaged")
        else:
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(file)
    model = Model(zoo.seeded(zoo.Functional), InputContract("image", (1, 16, 16)))
    data = open_data(tmp_path, model.contract)
    whole = Stream(top=3).run(Request(model, data=data))
    parts = [Stream(top=3, start=a, stop=b).run(Request(model, data=data)) for a, b in ((0, 4), (4, 10))]
    assert parts[0].count == 0
    merged = merge(parts)
    assert merged.count == 6
    assert [name for name, _ in merged.skipped] == [f"{n}.png" for n in range(4)]
    for path, layer in whole.layers.items():
        np.testing.assert_array_equal(merged.layers[path].top_index, layer.top_index)
        np.testing.assert_array_equal(merged.layers[path].maximum, layer.maximum)
        np.testing.assert_allclose(merged.layers[path].mean, layer.mean, rtol=1e-12)
        np.testing.assert_array_equal(merged.histogram(f"{path}:0")[0], whole.histogram(f"{path}:0")[0])
    with pytest.raises(BadInput, match="not one"):
        merge([parts[0]])

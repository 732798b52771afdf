"""Opening networks: layers, layouts, units, predictions, and leaving no trace."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.errors import BadInput, BadOption, BadReference, BadUnit, CannotRun, UnknownName
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.models.probe import LOGITS, Probe, frozen_copy


def traces(network):
    """Everything a probe could leave behind."""
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), m.training)
        for m in network.modules()
    ]
    parameters = [
        (p.requires_grad, None if p.grad is None else p.grad.clone(), p.detach().clone()) for p in network.parameters()
    ]
    return hooks, parameters, [b.clone() for b in network.buffers()], torch.get_rng_state()


def same(before, after):
    assert before[0] == after[0]
    for (flag, grad, value), (flag2, grad2, value2) in zip(before[1], after[1], strict=True):
        assert flag == flag2
        assert torch.equal(value, value2)
        assert (grad is None) == (grad2 is None)
        assert grad is None or torch.equal(grad, grad2)
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    assert torch.equal(before[3], after[3])


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_opening_reading_and_predicting_leaves_no_trace(name):
    make, shape = zoo.NETWORKS[name]
    network = zoo.seeded(make).train()
    next(network.parameters()).grad = torch.ones_like(next(network.parameters()))
    list(network.parameters())[-1].requires_grad_(False)
    before = traces(network)
    model = penlight.load(network, example=torch.zeros(1, *shape))
    _ = model.layers, model.fields, model.hash
    model.predict(np.random.default_rng(0).random((3, *shape), np.float32))
    model.prepared()
    same(before, traces(network))


def test_a_network_that_raises_is_left_as_it_was():
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            raise RuntimeError("shape of\nthings")

    network = Breaks().train()
    before = traces(network)
    with pytest.raises(CannotRun, match=r"\[2, 1, 8, 8\]: shape of; check"):
        _ = penlight.load(network, example=torch.zeros(1, 1, 8, 8)).layers
    same(before, traces(network))
    with pytest.raises(RuntimeError), Probe(network, {"conv": lambda out: None}) as probe:
        probe(torch.zeros(1, 1, 8, 8))
    same(before, traces(network))


@pytest.mark.parametrize(
    ("name", "layouts"),
    [
        ("functional", {"conv1": "NCHW", "conv2": "NCHW", "fc": "NC"}),
        ("tokens", {"patch": "NCHW", "norm": "NLC", "mix": "NLC", "head": "NC"}),
        ("signal", {"conv1": "NCL", "conv2": "NCL", "fc": "NC"}),
        ("channels-last", {"stem": "NCHW", "norm": "NHWC", "up": "NHWC", "head": "NC"}),
        ("table", {"0": "NC", "1": "NC", "2": "NC"}),
    ],
)
def test_layouts(open_zoo, name, layouts):
    assert {p: la.layout for p, la in open_zoo(name).layers.items() if p in layouts} == layouts


def test_units_and_positions_follow_the_layout(open_zoo):
    up = open_zoo("channels-last").layers["up"]
    assert (up.units, up.positions, up.shape) == (12, (6, 4), (6, 4, 12))
    assert up.units_first(torch.zeros(2, 6, 4, 12)).shape == (2, 12, 6, 4)


def test_a_module_called_again_is_a_layer_again(open_zoo):
    model = open_zoo("reused")
    assert list(model.layers)[:6] == ["conv", "act", "conv#2", "act#2", "conv#3", "act#3"]
    x, seen = model.example(), {}
    with torch.no_grad(), Probe(model.network, {"conv#3": lambda out: seen.update(out=out.clone())}) as probe:
        probe(x)
        network = model.network
        expected = network.conv(network.act(network.conv(network.act(network.conv(x)))))
    assert torch.equal(seen["out"], expected)


def test_containers_and_dropout_that_hold_the_same_values_are_told():
    network = nn.Sequential(
        nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), nn.ReLU(inplace=True), nn.Linear(3, 2), nn.Identity()
    )
    layers = penlight.load(network, example=torch.zeros(1, 4)).layers
    aliases = {path: layer.alias_of for path, layer in layers.items()}
    assert aliases == {"0.0": None, "0.1": "0.0", "0": "0.0", "1": None, "2": None, "3": "2"}


def test_parameters_of_a_container_are_counted(open_zoo):
    assert open_zoo("in-place").layers["body"].parameters == 6 * 3 * 9 + 6 + 12


def test_scores_before_a_softmax(open_zoo):
    model = open_zoo("softmax", labels=["a", "b", "c"])
    assert model.class_layer == LOGITS
    x, seen = model.example(5), {}
    with torch.no_grad(), Probe(model.network, {LOGITS: lambda out: seen.update(out=out)}) as probe:
        output = probe(x)
    torch.testing.assert_close(seen["out"].softmax(1), output)
    assert model.find("class:b")[0].index == 1
    values = np.random.default_rng(0).random((4, 1, 9, 9), np.float32)
    np.testing.assert_allclose(model.predict(values).sum(1), 1, atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(model.predict(values), model.network(torch.from_numpy(values)).numpy(), atol=1e-6)


def test_a_final_softmax_module_is_seen_through():
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)))
    model = penlight.load(network, example=torch.zeros(1, 4))
    assert model.class_layer == "0"
    log = penlight.load(zoo.seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1))), example=torch.zeros(1, 4))
    x = np.random.default_rng(1).random((2, 4), np.float32)
    np.testing.assert_allclose(model.predict(x), log.predict(x), atol=1e-6)


def test_find_units_and_say_what_is_wrong(open_zoo):
    model = open_zoo("functional", labels=["A", "B", "C", "C", "3"])
    assert [str(u) for u in model.find("conv1:*")] == [f"conv1:{n}" for n in range(6)]
    assert str(model.find("class:B")[0]) == "fc:1"
    assert str(model.find("class:3")[0]) == "fc:4"  # a label before a number
    assert str(model.find("class:0")[0]) == "fc:0"
    assert model.label(model.find("fc:1")[0]) == "B"
    assert model.label(model.find("conv1:1")[0]) is None
    for text, error, says in [
        ("conv:1", UnknownName, "did you mean 'conv"),
        ("class:b", UnknownName, "did you mean 'B'"),
        ("class:C", BadUnit, "'fc:2' or 'fc:3'"),
        ("class:17", BadUnit, "classes 0 to 4"),
        ("conv1:6", BadUnit, "units 0 to 5"),
        ("conv1:0@16,0", BadUnit, "16×16 positions"),
        ("conv1:0@1", BadUnit, "16×16 positions"),
        ("fc:0@1", BadUnit, "no positions"),
    ]:
        with pytest.raises(error, match=None) as raised:
            model.find(text)
        assert says in str(raised.value), text


def test_predict_takes_files_arrays_and_tensors(open_zoo, tmp_path):
    from PIL import Image

    model = open_zoo("functional")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16), np.uint8)
    files = []
    for n, picture in enumerate(pixels):
        files.append(tmp_path / f"{n}.png")
        Image.fromarray(picture[0]).save(files[-1])
    expected = model.predict(pixels)
    assert expected.shape == (2, 5)
    np.testing.assert_array_equal(model.predict(files), expected)
    np.testing.assert_allclose(model.predict(str(files[0])), expected[:1], atol=1e-6)
    np.testing.assert_array_equal(model.predict(tmp_path), expected)
    np.testing.assert_allclose(model.predict(pixels / np.float32(255)), expected, atol=1e-6)
    np.testing.assert_allclose(model.predict(torch.from_numpy(pixels / np.float32(255))), expected, atol=1e-6)
    with Image.open(files[1]) as image:
        np.testing.assert_allclose(model.predict(image), expected[1:], atol=1e-6)
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="no readable picture"):
        model.predict(tmp_path / "x.png")
    with pytest.raises(BadInput, match="from 0 to 255"):
        model.predict(np.linspace(0, 255, 256, dtype=np.float32).reshape(1, 1, 16, 16))
    with pytest.raises(BadInput, match="no data at"):
        model.predict(tmp_path / "missing.png")


def test_prepared_copy_computes_the_same_and_leaves_the_original(open_zoo):
    model = open_zoo("in-place")
    norm = model.network.body[1]
    with torch.no_grad():
        norm.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
        norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
        norm.weight.uniform_(-2, 2, generator=torch.Generator().manual_seed(3))
    before = copy.deepcopy(model.network.state_dict())
    fast, x = model.prepared(), model.example(3)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model.network.eval()(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[k], v) for k, v in model.network.state_dict().items())
    kept = model.prepared(keep=["body.0"])
    assert any(isinstance(m, nn.BatchNorm2d) for m in kept.modules())


def test_hash_depends_on_weights_and_contract(open_zoo):
    one, again, other = open_zoo("functional"), open_zoo("functional"), open_zoo("functional", mean=[0.5])
    assert one.hash == again.hash != other.hash
    with torch.no_grad():
        again.network.conv1.weight[0, 0, 0, 0] += 1e-3
    again.__dict__.pop("hash")
    assert again.hash != one.hash


def test_labels_have_to_fit_and_devices_to_exist(open_zoo):
    with pytest.raises(BadReference, match="5 outputs and 2 labels"):
        open_zoo("functional", labels=["a", "b"])
    with pytest.raises(UnknownName, match="device"):
        open_zoo("functional", device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadOption, match="no CUDA"):
            open_zoo("functional", device="cuda")


def test_an_example_is_needed():
    with pytest.raises(BadReference, match="give an example"):
        penlight.load(nn.Linear(3, 2))


def test_readers_on_other_threads_are_not_disturbed(open_zoo):
    import threading

    model, x, calls = open_zoo("functional"), None, []
    x = model.example()
    with Probe(model.network, {"conv1": lambda out: calls.append(1)}, cut=False) as probe:
        worker = threading.Thread(target=lambda: model.network(x))
        worker.start()
        worker.join()
        assert calls == []
        probe(x)
    assert calls == [1]


class Squeezing(nn.Module):
    """Loses the batch's axis, too, where there is one input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.norm(self.conv(x)).mean((2, 3), keepdim=True).squeeze()
        return self.fc(x.view(x.shape[0], -1))


def test_a_network_that_cannot_do_with_one_input_is_prepared_as_well():
    network = Squeezing().eval()
    model = Model(network, InputContract("array", (3, 8, 8)))
    fast, x = model.prepared(), model.example(3)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), network(x))


def test_a_network_that_flattens_by_a_view_is_prepared_as_well():
    network = zoo.seeded(zoo.Viewing)
    model = penlight.load(network, example=torch.zeros(1, 1, 16, 16))
    x = torch.rand((3, 1, 16, 16), generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    twin = model.prepared()
    with torch.no_grad():
        np.testing.assert_allclose(twin(x), network(x.contiguous()), atol=1e-6)
        assert twin.fc.weight.data_ptr() == network.fc.weight.data_ptr()  # large, and never written to
        assert twin.conv1.weight.data_ptr() != network.conv1.weight.data_ptr()
        again = copy.deepcopy(twin)
        again.fc.weight.zero_()
        np.testing.assert_allclose(again(x)[0], network.fc.bias, atol=1e-6)
    assert "forward" not in vars(network)


def test_a_network_without_modules_has_its_scores():
    class Bare(torch.nn.Module):
        def forward(self, x):
            return 1 - torch.relu(1 - x)

    model = penlight.load(Bare(), example=torch.zeros(1, 3))
    assert list(model.layers) == ["(logits)"]
    np.testing.assert_allclose(
        penlight.explain(model, np.array([0.5, 3, -1], np.float32), "class:0", method="gradient").values, [1, 0, 0]
    )


class Holding(nn.Module):
    """A module with containers of its own, one of them held twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.empty, self.full = nn.Conv2d(3, 2, 3), [], [1]
        self.again, self.names = self.empty, set()

    def forward(self, x):
        return self.conv(x)


def test_a_copy_shares_no_container_with_the_network_and_keeps_what_was_held_twice():
    network = Holding().eval()
    twin = frozen_copy(network)
    held = [
        {id(one) for module in net.modules() for one in vars(module).values() if isinstance(one, dict | list | set)}
        for net in (network, twin)
    ]
    assert not held[0] & held[1]
    assert twin.empty is twin.again
    assert (twin.empty, twin.full, twin.names) == ([], [1], set())
    twin.register_forward_hook(lambda module, inputs, output: output * 0)
    assert network(torch.ones(1, 3, 4, 4)).detach().any()


class Flattening(nn.Module):
    """As first networks do, with a norm to fold; `whole` views that go wrong with several inputs only."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.fc, self.whole = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 5), whole

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        if self.whole:
            x = x.view(len(x) * 4, 6, 6).view(len(x), 4, 6, 6)
        return self.fc(x.view(-1, 4 * 36) if not self.whole else x.reshape(-1, 4 * 36))


@pytest.mark.parametrize("whole", [False, True])
def test_networks_that_take_views_of_their_maps_are_folded_too(whole):
    network = zoo.seeded(lambda: Flattening(whole)).eval()
    model = Model(network, InputContract("array", (3, 8, 8)))
    fast, x = model.prepared(), torch.randn(4, 3, 8, 8)
    assert not isinstance(fast.norm, nn.BatchNorm2d)
    torch.testing.assert_close(fast(x.contiguous(memory_format=torch.channels_last)), network(x), rtol=1e-4, atol=1e-5)


def test_networks_that_write_into_their_input_are_folded_too():
    network = zoo.seeded(
        lambda: nn.Sequential(
            nn.ELU(inplace=True), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5)
        )
    ).eval()
    model = Model(network, InputContract("array", (3, 8, 8)))
    fast, x = model.prepared(), torch.randn(4, 3, 8, 8)
    assert not isinstance(fast[2], nn.BatchNorm2d)
    torch.testing.assert_close(fast(x.clone()), network(x.clone()), rtol=1e-4, atol=1e-5)

"""Units held, cut out and handed over: against networks written by hand, and politely refused where weights cannot say it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadUnit, BadWeights, CannotRun, ModelMismatch
from penlight.models.places import Patch, macs, places, run_patched
from penlight.models.surgery import fixed, open_pruned, prunable, prune


def opened(make, shape, **options):
    return penlight.load(zoo.seeded(make).eval(), example=torch.zeros(1, *shape), **options)


def chain():
    """Every step that units may take on their way to who reads them."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.3),
        nn.Conv2d(6, 5, 3, stride=2), nn.ReLU6(), nn.AvgPool2d(1), nn.Flatten(), nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 3),
    )  # fmt: skip


def shuffled(model):
    """BatchNorm with statistics that are not those it begins with."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(len(module.running_mean), generator=generator))
                module.running_var.copy_(0.5 + torch.rand(len(module.running_var), generator=generator))
                module.bias.copy_(torch.randn(len(module.bias), generator=generator))
    return model


def said(model, x):
    with torch.no_grad():
        return model.network(x.clone())


def test_places_are_after_what_follows(open_zoo):
    found = places(shuffled(opened(chain, (1, 10, 10))), ["0", "5", "9", "11"])
    assert [found[p].steps for p in ("0", "5", "9", "11")] == [("batch_norm", "relu"), ("hardtanh",), ("tanh",), ()]
    assert [found[p].rectifier and found[p].rectifier.name for p in ("0", "5", "9", "11")] == [
        "relu",
        "relu6",
        "tanh",
        None,
    ]
    assert (found["5"].rectifier.low, found["5"].rectifier.high, found["5"].rectifier.hard) == (0, 6, True)
    model = open_zoo("functional")
    assert places(model, ["conv1"])["conv1"].steps == ("relu",)
    assert places(open_zoo("in-place"), ["body.0"])["body.0"].steps == ("batch_norm", "relu")
    assert places(open_zoo("tokens"), ["patch"])["patch"].rectifier is None


class Branches(nn.Module):
    """A convolution that is read twice before its ReLU."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.fc((F.relu(x) + x).mean((2, 3)))


def test_a_layer_that_is_read_twice_is_seen_as_it_is():
    model = opened(Branches, (1, 6, 6))
    assert places(model, ["conv"])["conv"].steps == ()
    with pytest.raises(CannotRun, match="meet others in a call of add"):
        prune(model, {"conv": [0]})


def test_fixed_by_hand():
    model = shuffled(opened(chain, (1, 10, 10)))
    x = model.example(4)
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    held = fixed(model, {"0": {2: 0.0, 3: 0.75}})
    with torch.no_grad():
        first = model.network[:3](x)
        first[:, 2], first[:, 3] = 0, 0.75
        expected = model.network[3:](first)
    torch.testing.assert_close(said(held, x), expected)
    found = places(model, ["0"])
    with torch.no_grad():
        patched = run_patched(model.network, found, {"0": Patch((2, 3), (0.0, 0.75))}, x)
    torch.testing.assert_close(patched, expected)
    assert all(torch.equal(v, model.network.state_dict()[k]) for k, v in before.items())
    with pytest.raises(CannotRun, match="cannot be held at -1"):
        fixed(model, {"0": {2: -1.0}})
    with pytest.raises(CannotRun, match="cannot be held"):
        fixed(model, {"9": {2: 0.5}})
    with pytest.raises(BadUnit, match="0 to 5"):
        fixed(model, {"0": {6: 0.0}})


def test_pruned_is_silenced():
    model = shuffled(opened(chain, (1, 10, 10)))
    x = model.example(4)
    removed = {"0": [1, 4], "5": [0, 2], "9": [3]}
    small = prune(model, removed)
    with torch.no_grad():
        patches = {path: Patch(tuple(units)) for path, units in removed.items()}
        expected = run_patched(model.network, places(model, removed), patches, x)
    torch.testing.assert_close(said(small, x), expected, atol=1e-5, rtol=1e-4)
    shapes = {name: tuple(value.shape) for name, value in small.network.state_dict().items()}
    assert shapes["0.weight"] == (4, 1, 3, 3)
    assert shapes["1.running_var"] == (4,)
    assert shapes["5.weight"] == (3, 4, 3, 3)
    assert shapes["9.weight"] == (6, 12)
    assert shapes["11.weight"] == (3, 6)
    assert small.layers["5"].units == 3
    assert macs(small) == 4 * 9 * 100 + 3 * 4 * 9 * 4 + 12 * 6 + 6 * 3
    assert all(p.requires_grad for p in small.network.parameters())
    assert small.network[0].out_channels == 4
    assert small.network[9].in_features == 12


def test_readers_take_over_means_where_nothing_pads():
    model = shuffled(opened(chain, (1, 10, 10)))
    means = {"0": [0.3] * 6}
    x = model.example(4)
    with torch.no_grad():
        expected = run_patched(model.network, places(model, ["0"]), {"0": Patch((1, 5), (0.3, 0.3))}, x)
    torch.testing.assert_close(said(prune(model, {"0": [1, 5]}, means=means), x), expected, atol=1e-5, rtol=1e-4)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.Flatten(), nn.Linear(192, 2)]
    padded = opened(lambda: nn.Sequential(*layers), (1, 10, 10))
    with pytest.raises(CannotRun, match="pads its input"):
        prune(padded, {"0": [1]}, means={"0": [0.3] * 4})
    prune(padded, {"0": [1]})


def test_multiples_are_handed_over():
    model = opened(chain, (1, 10, 10))
    with torch.no_grad():
        for name in ("weight", "bias"):
            value = getattr(model.network[5], name)
            value[3] = 0.5 * value[1]
    model = penlight.load(model.network, example=torch.zeros(1, 1, 10, 10))
    x = model.example(4)  # nothing reaches the limit of ReLU6 here
    small = prune(model, {"5": [3]}, scaled={"5": {3: (1, 0.5)}})
    torch.testing.assert_close(said(small, x), said(model, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "path", "words"),
    [
        ("tokens", "patch", "meet others in a call of cat|cannot be told apart"),
        ("reused", "conv", "called 3 times"),
        ("channels-last", "stem", "call of permute"),
        ("softmax", "conv", "meet others in a call of matmul"),
        ("viewing", "conv2", ""),
        ("functional", "fc", "part of what the network puts out"),
        ("functional", "conv1", ""),
        ("in-place", "body.0", ""),
        ("signal", "conv1", ""),
        ("table", "0", ""),
    ],
)
def test_what_can_be_cut_and_what_not(open_zoo, name, path, words):
    model = open_zoo(name)
    told = prunable(model, [path])[path]
    assert bool(told) == bool(words), told
    if not words:
        return
    with pytest.raises(CannotRun, match=words):
        prune(model, {path: [0]})


def test_a_number_written_into_the_code_is_noticed(open_zoo):
    model = open_zoo("viewing")
    with pytest.raises(CannotRun, match="written into its code"):
        prune(model, {"conv2": [0]})
    with pytest.raises(CannotRun, match="keep at least one"):
        prune(model, {"conv2": range(8)})


def test_pruned_files_open_again(tmp_path, open_zoo):
    model = open_zoo("functional")
    file = tmp_path / "small.safetensors"
    with pytest.raises(BadWeights, match="small.json"):
        open_pruned(model, file)
    file.with_suffix(".json").write_text('{"kept": {"conv1": [0]}, "hash": "another"}')
    with pytest.raises(ModelMismatch, match="another network"):
        open_pruned(model, file)
    file.with_suffix(".json").write_text('{"kept": {"conv1": [0]}, "hash": "' + model.hash + '"}')
    with pytest.raises(BadWeights, match="no weights file"):
        open_pruned(model, file)

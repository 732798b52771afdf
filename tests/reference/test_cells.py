"""Diagnosis of networks on text: planted faults are found, and a silenced unit is silent at every step."""

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.errors import BadInput, BadOption, CannotRun, UnknownName
from penlight.models.places import Patch
from penlight.results import load_result
from penlight.techniques.contract import Request
from penlight.techniques.diagnose.ablation import Truth
from penlight.techniques.diagnose.cells import Cells, Stretches, default_cells
from penlight.techniques.diagnose.text_bench import TextBench

ABC = "abcdef"
RNG = np.random.default_rng(0)
TEXTS = ["".join(RNG.choice(list(ABC), 300)) for _ in range(6)]
FEW = {"length": 40, "warm": 8, "tested": 8, "tried": 3}


class Speaks(nn.Module):
    """A language model on six letters."""

    def __init__(self, kind=nn.LSTM, layers=2, size=7, **more):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(6, 5), kind(5, size, layers, batch_first=True, **more)
        self.head = nn.Linear(more.get("proj_size") or size, 6)

    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0])


class Judges(nn.Module):
    """Tells texts of two kinds apart by their last state."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(6, 5), nn.GRU(5, 7, batch_first=True), nn.Linear(7, 2)

    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0][:, -1])


class Convolves(nn.Module):
    """A language model without recurrence: causal convolutions with a rectifier."""

    def __init__(self):
        super().__init__()
        self.embedding, self.conv, self.head = nn.Embedding(6, 5), nn.Conv1d(5, 8, 3), nn.Linear(8, 6)

    def forward(self, ids):
        x = nn.functional.pad(self.embedding(ids).transpose(1, 2), (2, 0))
        return self.head(self.conv(x).relu().transpose(1, 2))


def opened(make=Speaks, **more):
    return penlight.load(zoo.seeded(lambda: make(**more)), vocabulary=ABC)


def by_hand(net, ids, layer, unit):
    """Scores with one unit's state and hidden value zeroed after every step, by PyTorch's own cells."""
    x, rnn = net.embedding(ids), net.rnn
    kind = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[type(rnn)]
    for n in range(rnn.num_layers):
        extra = {"nonlinearity": rnn.nonlinearity} if kind is nn.RNNCell else {}
        cell = kind(x.shape[2], rnn.hidden_size, **extra)
        cell.load_state_dict({key: getattr(rnn, f"{key}_l{n}") for key in cell.state_dict()})
        keep = torch.ones(rnn.hidden_size)
        if n == layer:
            keep[unit] = 0
        state, outs = None, []
        for step in x.unbind(1):
            state = cell(step, state)
            state = tuple(s * keep for s in state) if kind is nn.LSTMCell else state * keep
            outs.append(state[0] if kind is nn.LSTMCell else state)
        x = torch.stack(outs, 1)
    return net.head(x)


@pytest.mark.parametrize(
    "more",
    [{}, {"kind": nn.GRU}, {"kind": nn.RNN}, {"kind": nn.RNN, "nonlinearity": "relu"}, {"bias": False}],
    ids=["lstm", "gru", "rnn", "rnn-relu", "no-bias"],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_silenced_unit_is_silent_at_every_step(more, layer):
    model = opened(**more)
    if more.get("bias") is False:
        model.network.rnn.bias = False
    ids = RNG.integers(6, size=(3, 20))
    bench = TextBench(model, Truth(None), True, 4)
    whole = bench._scores(ids)
    with bench.silenced({f"rnn.hidden_l{layer}": Patch((2,))}):
        found = bench._scores(ids)
    net = zoo.seeded(lambda: Speaks(**more))
    with torch.no_grad():
        if more.get("bias") is False:
            for n in range(2):
                for name in ("bias_ih", "bias_hh"):
                    setattr(net.rnn, f"{name}_l{n}", torch.zeros(28))
        expected = by_hand(net, torch.from_numpy(ids), layer, 2).log_softmax(-1)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-4)
    assert torch.equal(bench._scores(ids), whole)  # nothing is left of it


def test_a_projected_hidden_value_and_its_cell_are_two_things():
    model = opened(size=7, proj_size=3, layers=1)
    ids = RNG.integers(6, size=(2, 9))
    bench = TextBench(model, Truth(None), True, 1)
    reader = penlight.models.tracks.Reader(model, ["rnn.hidden_l0", "rnn.cell_l0"])
    reader.network = bench._network
    for path, unit in (("rnn.hidden_l0", 2), ("rnn.cell_l0", 6)):
        with bench.silenced({path: Patch((unit,))}):
            values = reader(ids)[path]
        assert float(values[..., unit].abs().max()) == 0
        assert float(values.abs().amax((0, 1)).sort().values[1]) > 0


def test_a_unit_of_any_other_layer_is_set_to_zero():
    model, ids = opened(Convolves), RNG.integers(6, size=(3, 20))
    bench = TextBench(model, Truth(None), True, 4)
    with bench.silenced({"conv": Patch((1, 5))}):
        found = bench._scores(ids)
    net = zoo.seeded(Convolves)
    with torch.no_grad():
        net.head.weight[:, [1, 5]] = 0  # after the rectifier zero is still zero
        assert torch.allclose(found, net(torch.from_numpy(ids)).log_softmax(-1), atol=1e-6)


def planted(faults):
    """An LSTM whose layer 0 has a unit of each fault."""
    net = zoo.seeded(lambda: Speaks(layers=1, size=9))
    rnn, size = net.rnn, 9
    rows = lambda u: [g * size + u for g in range(4)]  # noqa: E731
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            weight = getattr(rnn, name)
            weight.mul_(2)
            if "dead" in faults:
                weight[rows(3)[2]] = 0
            if "duplicate" in faults:
                weight[rows(5)] = weight[rows(1)]
            if "negated" in faults:
                weight[rows(6)] = weight[rows(2)]
                weight[rows(6)[2]] = -weight[rows(2)[2]]
            if "saturated" in faults:
                weight[rows(8)] = 0
        if "saturated" in faults:
            rnn.bias_ih_l0[rows(8)] = torch.tensor(
                [20.0, 20.0, 20.0, 20.0]
            )  # writes 1 at every step and forgets nothing
    return net


@pytest.mark.parametrize("faults", [(), ("dead",), ("duplicate",), ("dead", "duplicate", "negated", "saturated")])
def test_planted_faults_are_found_and_no_others(faults):
    result = penlight.diagnose(penlight.load(planted(faults), vocabulary=ABC), TEXTS, **FEW)
    expected = {
        "dead": ("dead", 3), "duplicate": ("duplicate", 5), "negated": ("duplicate", 6), "saturated": ("saturated", 8)
    }  # fmt: skip
    wanted = {(verdict, f"rnn.hidden_l0:{u}") for verdict, u in (expected[name] for name in faults)}
    found = {(name, unit) for unit, told in result.verdicts.items() for name in told}
    assert found == wanted
    if "negated" in faults:
        assert result.details["rnn.hidden_l0:6"]["duplicate"] == "-1 × rnn.hidden_l0:2"
    if "dead" in faults:
        assert 3 in result.removable.get("rnn.hidden_l0", ())
        assert result.removal("rnn.hidden_l0", "dead").loss == pytest.approx(
            result.removal("rnn.hidden_l0", "dead").loss_before, abs=1e-6
        )


def test_a_rectified_state_is_dead_where_it_never_fires_and_always_on_where_it_always_does():
    net = zoo.seeded(lambda: Speaks(kind=nn.RNN, layers=1, nonlinearity="relu"))
    with torch.no_grad():
        net.rnn.bias_ih_l0[2], net.rnn.bias_ih_l0[4] = -50, 50
        net.rnn.weight_hh_l0.mul_(0.1)
    found = penlight.diagnose(penlight.load(net, vocabulary=ABC), TEXTS, **FEW).verdicts
    assert "dead" in found["rnn.hidden_l0:2"]
    assert "always on" in found["rnn.hidden_l0:4"]
    assert sum(bool({"dead", "always on"} & set(told)) for told in found.values()) == 2


def test_a_rectified_convolution_is_judged_at_its_rectifier():
    net = zoo.seeded(Convolves)
    with torch.no_grad():
        net.conv.bias[3] = -50
    result = penlight.diagnose(penlight.load(net, vocabulary=ABC), TEXTS, layers="conv", **FEW)
    assert result.layers["conv"].rectifier == "relu"
    assert [unit for unit, told in result.verdicts.items() if "dead" in told] == ["conv:3"]


def test_the_numbers_are_those_of_the_plain_network():
    net = zoo.seeded(Speaks)
    model = penlight.load(net, vocabulary=ABC)
    result = penlight.diagnose(model, TEXTS, layers="rnn.hidden_l1", **FEW, effort=0)
    ids = torch.tensor([[ABC.index(c) for c in text] for text in TEXTS])
    with torch.no_grad():
        hidden = net.rnn(net.embedding(ids))[0].flatten(0, 1)
    layer = result.layers["rnn.hidden_l1"]
    assert np.allclose(layer.mean, hidden.mean(0), atol=1e-5)
    assert np.allclose(layer.high, hidden.amax(0), atol=1e-5)
    assert np.allclose(layer.low, hidden.amin(0), atol=1e-5)
    assert np.allclose(layer.share, (hidden > 0).double().mean(0))
    assert result.truth == "next tokens"
    stretches = Stretches(penlight.api.find_data(model, TEXTS), 40)
    drawn = np.sort(np.random.default_rng([0, 7]).permutation(len(stretches))[:8])
    some = torch.from_numpy(np.stack([stretches.read(int(n)) for n in drawn]))
    with torch.no_grad():
        said = net(some).log_softmax(-1)[:, 8:-1]
    expected = -said.gather(2, some[:, 9:, None]).mean()
    assert result.loss == pytest.approx(float(expected), abs=1e-5)
    assert result.accuracy == pytest.approx(float((said.argmax(2) == some[:, 9:]).double().mean()))


def test_a_network_that_classifies_texts_is_held_against_their_classes():
    texts = [("a" * n + "b", n % 2) for n in range(5, 25)]
    model = penlight.load(zoo.seeded(Judges), vocabulary=ABC, labels=["even", "odd"])
    result = penlight.diagnose(model, texts, **{**FEW, "tested": 20})
    assert (result.truth, result.inputs) == ("labels", 20)
    assert result.ablation["rnn.hidden_l0"].shape == (7, 2)
    net = zoo.seeded(Judges)
    with torch.no_grad():
        hits = [int(net(torch.tensor([[ABC.index(c) for c in text]])).argmax()) == kind for text, kind in texts]
    assert result.accuracy == pytest.approx(np.mean(hits))
    assert penlight.diagnose(model, [text for text, _ in texts], **FEW).truth == "own answers"


def test_it_leaves_no_trace_and_is_the_same_again(tmp_path):
    model = opened()
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    one, two = (penlight.diagnose(model, TEXTS, **FEW, seed=3) for _ in range(2))
    assert one.to_json() == two.to_json()
    assert all(torch.equal(before[key], value) for key, value in model.network.state_dict().items())
    one.save(tmp_path / "out")
    assert load_result(tmp_path / "out").to_json() == one.to_json()


def test_what_it_takes_and_what_it_refuses(tmp_path):
    model = opened()
    assert default_cells(model) == ["rnn.hidden_l0", "rnn.hidden_l1"]
    assert default_cells(opened(Convolves)) == ["embedding", "conv"]
    with pytest.raises(CannotRun, match=r"is a gate; name its states, rnn\.hidden_l0"):
        penlight.diagnose(model, TEXTS, layers="rnn.forget_gate_l0")
    with pytest.raises(UnknownName, match="rnn"):
        penlight.diagnose(model, TEXTS, layers="rnn.hiden_l0")
    with pytest.raises(BadInput, match="needs data"):
        Cells().run(Request(model))
    with pytest.raises(BadInput, match="three tokens or more"):
        penlight.diagnose(model, ["ab"])
    with pytest.raises(BadOption, match="not yet out of those on text"):
        penlight.diagnose(model, TEXTS, prune=tmp_path / "small.safetensors")
    with pytest.raises(BadOption, match="'health' is for"):
        penlight.diagnose(model, TEXTS, method="health")
    with pytest.raises(BadOption, match="'cells' is for text"):
        penlight.diagnose("letters", method="cells")


@pytest.mark.parametrize(
    "more",
    [{}, {"kind": nn.GRU}, {"kind": nn.RNN}, {"kind": nn.RNN, "nonlinearity": "relu"}, {"proj_size": 3}, {"bidirectional": True}],
    ids=["lstm", "gru", "rnn", "rnn-relu", "projected", "both-ways"],
)  # fmt: skip
def test_units_silenced_in_turn_are_those_silenced_one_by_one(more):
    make = Speaks if "bidirectional" not in more else BothWays
    model = opened(make, **more)
    bench = TextBench(model, Truth(None), "bidirectional" not in more, 2)
    ids = RNG.integers(6, size=(3, 15))
    for path in default_cells(model):
        together = bench.singles(path, ids, [None] * 3, None)
        for unit in range(model.layers[path].units):
            alone = bench.measure(ids, [None] * 3, [{path: Patch((unit,))}])[1]
            assert np.allclose(together[unit], alone, atol=1e-5, equal_nan=True)


class BothWays(nn.Module):
    """Tells texts apart by reading them in both directions."""

    def __init__(self, bidirectional=True):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(6, 5), nn.LSTM(5, 4, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0].mean(1))

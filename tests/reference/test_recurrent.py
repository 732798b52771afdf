"""Recurrent modules written out step by step: the same as PyTorch's own, and as the formulas; and texts read through them."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from penlight.errors import BadInput, CannotRun, UnknownName
from penlight.inputs import TextContract
from penlight.models import Model, Probe
from penlight.models.recurrent import GATES, carrying, is_recurrent, track_names, written_out
from penlight.models.tracks import OUTPUT, tracks

CLOSE = 1e-6
ABC = "abcdefghijk"
KINDS = {
    "lstm": (nn.LSTM, {}),
    "lstm-projected": (nn.LSTM, {"proj_size": 4}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
}


def seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return make()


def flat(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return [tensor for part in output for tensor in flat(part)]


def pair(kind, **more):
    """(PyTorch's module, ours on the same weights)."""
    make, options = KINDS[kind]
    module = seeded(lambda: make(5, 7, **{**options, **more}).double())
    twin = written_out(nn.Sequential(module))[0]
    assert twin is not module
    return module, twin


def noise(*shape):
    return torch.from_numpy(np.random.default_rng(1).normal(size=shape))


def same(ours, theirs, within=CLOSE):
    ours, theirs = flat(ours), flat(theirs)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        a, b = a.detach().numpy(), b.detach().numpy()
        worst, size = float(np.abs(a - b).max()), float(np.abs(b).max())
        assert worst <= within * max(1.0, size)


class Tutorial(nn.Module):
    """As tutorials write it: time first, and a state that has to be given."""

    def __init__(self, makes=True):
        super().__init__()
        self.encoder, self.rnn, self.decoder = nn.Embedding(5, 4), nn.LSTM(4, 6, 2), nn.Linear(6, 5)
        if makes:
            self.init_hidden = lambda count: (torch.ones(2, count, 6), torch.zeros(2, count, 6))

    def forward(self, ids, hidden):
        found, hidden = self.rnn(self.encoder(ids), hidden)
        return self.decoder(found.view(-1, 6)), hidden


@pytest.mark.parametrize("makes", [True, False])
def test_a_state_that_has_to_be_given_is_made(makes):
    import penlight

    torch.manual_seed(0)
    network = Tutorial(makes).eval()
    ids = np.random.default_rng(0).integers(5, size=40)
    model = penlight.load(network, vocabulary="abcde", input={"batch_first": False})
    state = network.init_hidden(1) if makes else None
    with torch.no_grad():
        hidden, _ = network.rnn(network.encoder(torch.from_numpy(ids)[:, None]), state)
        scores, _ = network(torch.from_numpy(ids)[:, None], state)
    (found,) = tracks(model, [ids], ["rnn.hidden_l1", OUTPUT])
    torch.testing.assert_close(found.values["rnn.hidden_l1"], hidden[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(found.values[OUTPUT], scores, rtol=0, atol=1e-5)
    parts = list(tracks(model, [ids], ["rnn.hidden_l1"], block=7))
    assert len(parts) == 6
    torch.testing.assert_close(
        torch.cat([one.values["rnn.hidden_l1"] for one in parts]), hidden[:, 0], rtol=0, atol=1e-6
    )
    why = penlight.explain(model, "text:abcdeabcde", "rnn.cell_l0:2@7", method="gradient")
    assert np.abs(why.values[:8]).min() > 0
    assert type(network) is Tutorial


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "both", "first", "bias"), list(itertools.product((1, 3), *[(False, True)] * 3)))
def test_written_out_is_pytorchs(kind, layers, both, first, bias):
    module, twin = pair(kind, num_layers=layers, bidirectional=both, batch_first=first, bias=bias)
    x = noise(4, 6, 5)
    same(twin(x), module(x))
    with torch.no_grad():
        same(twin(x), module(x))
        same(twin(x[:1]), module(x[:1]))


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # PyTorch's own pass says so
@pytest.mark.parametrize("kind", KINDS)
def test_in_single_precision(kind):
    module, twin = pair(kind, num_layers=2)
    module, twin, x = module.float(), twin.float(), noise(9, 12, 5).float()
    for lanes in (1, 12):  # few lanes are worked on with other memory
        with torch.inference_mode():
            same(twin(x[:, :lanes]), module(x[:, :lanes]), 5e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("both", [False, True])
def test_states_that_are_given(kind, both):
    module, twin = pair(kind, num_layers=2, bidirectional=both)
    x, count = noise(6, 3, 5), 4 if both else 2
    size = module.proj_size or 7
    state = (noise(count, 3, size), noise(count, 3, 7)) if module.mode == "LSTM" else noise(count, 3, size)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            same(twin(x, state), module(x, state))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [False, True])
def test_one_text_without_a_batch_axis(kind, first):
    module, twin = pair(kind, num_layers=2, bidirectional=True, batch_first=first)
    x, size = noise(6, 5), module.proj_size or 7
    same(twin(x), module(x))
    state = (noise(4, size), noise(4, 7)) if module.mode == "LSTM" else noise(4, size)
    same(twin(x, state), module(x, state))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [[6, 6, 6], [6, 2, 4]])
def test_packed_sequences(kind, lengths):
    module, twin = pair(kind, num_layers=2, bidirectional=True)
    packed = pack_padded_sequence(noise(6, 3, 5), torch.tensor(lengths), enforce_sorted=False)
    (ours, state), (theirs, expected) = twin(packed), module(packed)
    same(pad_packed_sequence(ours)[0], pad_packed_sequence(theirs)[0])
    same(state, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    module, twin = pair(kind, num_layers=2, bidirectional=True)
    grads = []
    for one in (module, twin):
        x = noise(6, 3, 5).requires_grad_()
        weight = noise(6, 3, 2 * (module.proj_size or 7))
        output, state = one(x)
        total = (output * weight).sum() + sum(part.square().sum() for part in flat(state))
        grads.append(torch.autograd.grad(total, (x, *one.parameters())))
    same(list(grads[1]), list(grads[0]))


def test_gradients_with_only_the_weights_wanted():
    module, twin = pair("lstm")
    x = noise(6, 3, 5)
    expected = torch.autograd.grad(module(x)[0].square().sum(), module.weight_hh_l0)
    same(list(torch.autograd.grad(twin(x)[0].square().sum(), twin.weight_hh_l0)), list(expected))


def test_dropout_between_layers_when_training():
    _, twin = pair("gru", num_layers=2)
    twin.dropout = 0.5
    x = noise(6, 3, 5)
    twin.eval()
    same(twin(x), twin(x), 0)
    twin.train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        assert float((twin(x)[0] - twin(x)[0]).abs().max()) > 1e-3


# states and gates against the formulas


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def by_formula(module, x):
    """Every state and gate of a one-layer module, (T, H) each, with NumPy."""
    w = {name: p.detach().numpy() for name, p in module.named_parameters()}
    h, c, kept = np.zeros(7), np.zeros(7), {name: [] for name in track_names(module)}
    for step in x:
        into, again = w["weight_ih_l0"] @ step + w["bias_ih_l0"], w["weight_hh_l0"] @ h + w["bias_hh_l0"]
        if module.mode == "LSTM":
            i, f, g, o = np.split(into + again, 4)
            i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
            c = f * c + i * g
            h = o * np.tanh(c)
            now = {"hidden": h, "cell": c, "input_gate": i, "forget_gate": f, "candidate": g, "output_gate": o}
        else:
            (r0, z0, n0), (r1, z1, n1) = np.split(into, 3), np.split(again, 3)
            r, z = sigmoid(r0 + r1), sigmoid(z0 + z1)
            n = np.tanh(n0 + r * n1)
            h = (1 - z) * n + z * h
            now = {"hidden": h, "reset_gate": r, "update_gate": z, "candidate": n}
        for name, value in now.items():
            kept[f"{name}_l0"].append(value)
    return {name: np.array(values) for name, values in kept.items()}


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_gates_and_cells_by_the_formulas(kind, grad, first):
    module, twin = pair(kind, batch_first=first)
    x = noise(6, 5)
    expected = by_formula(module, x.numpy())
    seen = {}
    batch = x[None].repeat(3, 1, 1) if first else x[:, None].repeat(1, 3, 1)
    net = nn.Sequential(twin)
    readers = {f"0.{name}": lambda t, name=name: seen.update({name: t.detach().clone()}) for name in track_names(twin)}
    with torch.set_grad_enabled(grad), Probe(net, readers, cut=False) as probe:
        probe(batch)
    states = {"cell", "hidden"} if kind == "lstm" else {"hidden"}
    assert set(seen) == set(expected) == {f"{name}_l0" for name in states.union(GATES[module.mode])}
    for name, value in expected.items():
        ours = seen[name][1] if first else seen[name][:, 1]
        assert np.abs(ours.numpy() - value).max() <= CLOSE, name


def test_the_tracks_of_the_second_direction_lie_at_their_tokens():
    module, twin = pair("lstm", bidirectional=True, batch_first=True)
    seen, x = {}, noise(2, 6, 5)
    with Probe(nn.Sequential(twin), {"0.hidden_l0_reverse": lambda t: seen.update(h=t.clone())}) as probe:
        probe(x)
    same(seen["h"], module(x)[0][..., 7:])


def test_what_a_reader_puts_in_a_tracks_place_goes_on():
    module, twin = pair("gru", num_layers=2, batch_first=True)
    x = noise(2, 6, 5)
    with torch.no_grad(), Probe(nn.Sequential(twin), {"0.hidden_l1": torch.zeros_like}, cut=False) as probe:
        output, _ = probe(x)
    assert float(output.abs().max()) == 0
    assert float(module(x)[0].detach().abs().max()) > 0


# going on from block to block


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_make_the_whole_and_lanes_begin_anew(kind):
    module, twin = pair(kind, num_layers=2, batch_first=True)
    x = noise(3, 10, 5)
    with torch.no_grad(), carrying(twin, 3) as carries:
        first = twin(x[:, :4])[0]
        (carry,) = carries
        carry.anew[:] = torch.tensor([False, True, False])
        second = twin(x[:, 4:7])[0]
        carry.anew[:] = False
        third = twin(x[:, 7:])[0]
    whole, fresh = module(x)[0], module(x[:, 4:])[0]
    for lane, expected in enumerate((whole[0], torch.cat([whole[1, :4], fresh[1]]), whole[2])):
        same(torch.cat([first, second, third], 1)[lane], expected)
    same(twin(x), module(x))  # outside the block nothing is carried


def test_a_cut_pass_carries_what_it_reached():
    module, twin = pair("lstm", num_layers=2, batch_first=True)
    x, seen = noise(2, 8, 5), []
    net = nn.Sequential(twin)
    with torch.no_grad(), carrying(net, 2) as (carry,), Probe(net, {"0.hidden_l0": lambda t: seen.append(t.clone())}) as probe:  # fmt: skip
        for start in (0, 3):
            assert probe(x[:, start : start + (3 if not start else 5)]) is None
            carry.anew[:] = False
    one = nn.LSTM(5, 7, batch_first=True).double()
    one.load_state_dict({k: v for k, v in module.state_dict().items() if k.endswith("l0")})
    same(torch.cat(seen, 1), one(x)[0])


def test_nothing_is_carried_after_an_error():
    module, twin = pair("gru", batch_first=True)
    x = noise(2, 8, 5)

    def broken():
        with torch.no_grad(), carrying(twin, 2):
            twin(x)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    same(twin(x), module(x))


# the user's own module


class Words(nn.Module):
    """A tied reader of tokens with two kinds of recurrent modules."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(ABC), 5)
        self.inner = nn.ModuleList([nn.LSTM(5, 6, 2, batch_first=True), nn.GRU(6, 5, batch_first=True)])
        self.register_buffer("shift", torch.ones(1))
        self.head = nn.Linear(5, len(ABC))
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        h, _ = self.inner[0](self.embedding(ids))
        return self.head(self.inner[1](h)[0] + self.shift)


def test_the_users_module_is_left_alone():
    net = seeded(Words)
    before, names = copy.deepcopy(net.state_dict()), [name for name, _ in net.named_modules()]
    ids = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(0))
    expected = net(ids)
    model = Model(net, TextContract.of(ABC))
    assert "inner.0.cell_l1" in model.layers
    assert model.network is not net
    same(model.network(ids), expected)
    same(net(ids), expected, 0)
    assert [name for name, _ in net.named_modules()] == names
    assert "forward" not in vars(net.inner[0])
    assert not any(module._forward_hooks for module in net.modules())
    assert net.training
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert list(model.network.state_dict()) == list(before)


def test_weights_are_shared():
    net = seeded(Words)
    model = Model(net, TextContract.of(ABC))
    assert {p.data_ptr() for p in model.network.parameters()} == {p.data_ptr() for p in net.parameters()}
    ids = torch.arange(6)[None]
    before = model.network(ids)
    with torch.no_grad():
        net.inner[0].weight_hh_l1.mul_(3)
        net.shift.add_(1)
    after = model.network(ids)
    assert float((after - before).detach().abs().max()) > 1e-3
    same(after, net(ids))


def test_networks_without_recurrence_are_not_copied():
    net = nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 3))
    assert not is_recurrent(net)
    assert written_out(net) is net


def test_written_out_twice_is_written_out_once():
    _, twin = pair("lstm")
    again = written_out(nn.Sequential(twin))[0]
    assert track_names(again) == [name for name, _ in again.named_children()]
    same(again(noise(4, 2, 5)), twin(noise(4, 2, 5)))


def test_a_copy_of_the_copy_runs_by_itself():
    module, twin = pair("lstm")
    other = copy.deepcopy(twin)
    with torch.no_grad():
        other.weight_hh_l0.zero_()
        x = noise(4, 2, 5)
        same(twin(x), module(x))
        assert float((other(x)[0] - twin(x)[0]).abs().max()) > 1e-3


# texts read through a network


class Reads(nn.Module):
    """Tokens → scores of the next, in every way people write it."""

    def __init__(self, kind="lstm", first=True, both=False, hot=False, joined=False, turned=False):
        super().__init__()
        self.first, self.hot, self.joined, self.turned = first, hot, joined, turned
        self.embedding = nn.Embedding(len(ABC), 6)
        make, options = KINDS[kind]
        self.rnn = make(len(ABC) if hot else 6, 7, 2, batch_first=first, bidirectional=both, **options)
        self.head = nn.Linear((self.rnn.proj_size or 7) * (2 if both else 1), len(ABC))

    def forward(self, x):
        h, _ = self.rnn(x if self.hot else self.embedding(x))
        scores = self.head(h)
        return scores.flatten(0, 1) if self.joined else scores.mT if self.turned else scores


LENGTHS = (40, 3, 17, 1, 29, 8, 23)
TEXTS = [np.random.default_rng(n).integers(len(ABC), size=length) for n, length in enumerate(LENGTHS)]


def gathered(model, paths, **kwargs):
    found = {}
    for stretch in tracks(model, TEXTS, paths, **kwargs):
        parts = found.setdefault(stretch.text, [])
        assert stretch.start == sum(len(part.ids) for part in parts)
        assert not parts or not parts[-1].last
        assert {path: values.shape[0] for path, values in stretch.values.items()} == dict.fromkeys(
            paths, len(stretch.ids)
        )
        stretch = copy.copy(stretch)
        object.__setattr__(stretch, "values", {path: value.clone() for path, value in stretch.values.items()})
        parts.append(stretch)
    assert sorted(found) == list(range(len(TEXTS)))
    for n, parts in found.items():
        assert parts[-1].last
        assert np.array_equal(np.concatenate([part.ids for part in parts]), TEXTS[n])
    return {n: {path: torch.cat([part.values[path] for part in parts]) for path in paths} for n, parts in found.items()}


@pytest.mark.parametrize(
    "options",
    [
        {}, {"first": False}, {"hot": True}, {"hot": True, "first": False}, {"joined": True},
        {"joined": True, "first": False}, {"turned": True}, {"kind": "gru"}, {"kind": "tanh", "first": False}, {"kind": "lstm-projected"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("lanes", "block"), [(64, 128), (2, 5), (3, 1), (1, 4), (5, 5), (3, 11)])
def test_streamed_is_whole(options, lanes, block):
    net = seeded(lambda: Reads(**options)).eval()
    encoding, first = "one-hot" if net.hot else "ids", net.first
    model = Model(net, TextContract.of(ABC, encoding=encoding, batch_first=first))
    paths = ["rnn.hidden_l0", "rnn.hidden_l1", OUTPUT]
    found = gathered(model, paths, lanes=lanes, block=block)
    for n, ids in enumerate(TEXTS):
        x = model.tensor(ids[None])
        with torch.no_grad():
            output = net(x).mT if net.turned else net(x)
            output, last = (
                output.reshape(len(ids), -1),
                net.rnn(x if net.hot else net.embedding(x))[0].view(len(ids), -1),
            )
        same(found[n][OUTPUT], output, 2e-6)
        same(found[n]["rnn.hidden_l1"], last, 2e-6)


def test_without_the_output_the_pass_is_cut_and_says_the_same():
    model = Model(seeded(Reads).eval(), TextContract.of(ABC))
    cut = gathered(model, ["rnn.cell_l0"], lanes=2, block=5)
    whole = gathered(model, ["rnn.cell_l0", OUTPUT], lanes=3, block=7)
    for n in range(len(TEXTS)):
        same(cut[n]["rnn.cell_l0"], whole[n]["rnn.cell_l0"], 2e-6)


def test_networks_that_look_ahead_read_whole_texts():
    net = seeded(lambda: Reads(both=True)).eval()
    model = Model(net, TextContract.of(ABC))
    found = gathered(model, ["rnn.hidden_l1_reverse", OUTPUT], lanes=2, block=5)
    for n, ids in enumerate(TEXTS):
        with torch.no_grad():
            same(found[n][OUTPUT], net(torch.from_numpy(ids)[None])[0], 2e-6)
            same(
                found[n]["rnn.hidden_l1_reverse"],
                net.rnn(net.embedding(torch.from_numpy(ids)[None]))[0][0, :, 7:],
                2e-6,
            )


class Looks(nn.Module):
    """Looks one token back beside its LSTM: a block's first token lacks what the one before had."""

    def __init__(self):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(len(ABC), 6), nn.LSTM(6, 7, batch_first=True)
        self.convolution, self.head = nn.Conv1d(7, 7, 2), nn.Linear(7, 3)

    def forward(self, ids):
        h, _ = self.rnn(self.embedding(ids))
        return self.head(self.convolution(nn.functional.pad(h.mT, (1, 0))).mT)


def test_networks_that_cannot_go_on_read_whole_texts():
    net = seeded(Looks).eval()
    found = gathered(Model(net, TextContract.of(ABC)), [OUTPUT], lanes=2, block=5)
    for n, ids in enumerate(TEXTS):
        with torch.no_grad():
            same(found[n][OUTPUT], net(torch.from_numpy(ids)[None])[0], 2e-6)


def test_texts_that_cannot_be_read_are_passed_over():
    model = Model(seeded(Reads).eval(), TextContract.of(ABC))

    def read(n):
        if n == 1:
            raise BadInput("no text")
        return TEXTS[n] if n != 2 else np.zeros(0, np.int64)

    stretches = list(tracks(model, len(TEXTS), ["rnn.hidden_l0"], read=read, lanes=2))
    assert {s.text for s in stretches} == set(range(len(TEXTS))) - {1, 2}
    assert list(tracks(model, [], ["rnn.hidden_l0"])) == []


def test_memory_does_not_grow_with_the_text():
    model, fetched = Model(seeded(Reads).eval(), TextContract.of(ABC)), []

    def read(n):
        fetched.append(n)
        return TEXTS[0]

    stretches = tracks(model, 50, ["rnn.hidden_l0"], read=read, lanes=2, block=8)
    next(stretches)
    assert len(fetched) == 2


def test_refusals():
    net = seeded(Reads).eval()
    model = Model(net, TextContract.of(ABC))
    with pytest.raises(UnknownName, match="rnn.cell"):
        list(tracks(model, TEXTS, ["rnn.cells_l0"]))

    class Judges(Reads):
        def forward(self, ids):
            return self.head(self.rnn(self.embedding(ids))[0][:, -1])

    judge = Model(seeded(Judges).eval(), TextContract.of(ABC), labels=list(ABC))
    with pytest.raises(CannotRun, match="no value a token"):
        list(tracks(judge, TEXTS, ["head"]))
    with pytest.raises(CannotRun, match="no value a token"):
        list(tracks(judge, TEXTS, [OUTPUT]))
    picture = Model(nn.Linear(3, 2), __import__("penlight").inputs.InputContract("array", (3,)))
    with pytest.raises(CannotRun, match="takes no text"):
        list(tracks(picture, TEXTS, ["0"]))
    both = Model(seeded(lambda: Reads(both=True)).eval(), TextContract.of(ABC))
    with pytest.raises(BadInput, match="20000 are the most"):
        list(tracks(both, [np.zeros(20_001, np.int64)], [OUTPUT]))


def test_reading_leaves_the_network_as_it_was():
    net = seeded(Reads).train()
    model, random = Model(net, TextContract.of(ABC)), torch.get_rng_state()
    for _ in zip(range(2), tracks(model, TEXTS, ["rnn.hidden_l0"], lanes=2, block=3), strict=False):
        pass  # left in the middle
    assert net.training
    assert model.network.training
    assert model.network.rnn.__dict__["carry"] is None
    assert torch.equal(random, torch.get_rng_state())
    assert all(p.requires_grad for p in net.parameters())

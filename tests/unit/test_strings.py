"""`strings`: texts that drive units, on networks whose best text is known, and how the result is kept and shown."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from penlight.errors import BadInput, BadUnit, CannotRun
from penlight.inputs import InputContract, TextContract, open_data
from penlight.models import Model
from penlight.models.language import continues
from penlight.render.strings import strings_fragment, strings_page
from penlight.results import load_result
from penlight.results.strings import StringsResult
from penlight.techniques.contract import Request
from penlight.techniques.options import build
from penlight.techniques.visualize.beams import Stepper, ends, grams, written
from penlight.techniques.visualize.likelihood import log2, pairs, prior_of
from penlight.techniques.visualize.methods.strings import Strings

ABC = "abcdef"


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


class Counts(nn.Module):
    """One LSTM whose cell 0 goes up by 1 for every b, down by 1 for every c, and keeps; cell 1 says 0 for ever. Continues 'abab…'."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 3, batch_first=True), nn.Linear(6, 6)
        with torch.no_grad():
            for p in self.parameters():
                p.zero_()
            self.rnn.bias_ih_l0[:6] = 30.0  # gates for input and forgetting are open
            self.rnn.weight_ih_l0[6, 1], self.rnn.weight_ih_l0[6, 2] = 30.0, -30.0
            self.rnn.weight_ih_l0[8] = torch.tensor([0.1, -0.2, 0.3, -0.4, 0.5, 0.2])
            self.head.weight[1, 0] = self.head.weight[0, 1] = 3.0  # b after a, a after b

    def forward(self, ids):
        hot = nn.functional.one_hot(ids, 6).float()
        h, _ = self.rnn(hot)
        return self.head(hot) + 0 * h.sum(2, keepdim=True)


class Speaks(nn.Module):
    """A language model with random weights."""

    def __init__(self, both=False):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(6, 8), nn.LSTM(8, 10, 2, batch_first=True, bidirectional=both)
        self.head = nn.Linear(20 if both else 10, 6)
        with torch.no_grad():
            for p in self.parameters():
                p.mul_(3)

    def forward(self, ids):
        return self.head(self.rnn(self.embedding(ids))[0])


class Judges(nn.Module):
    """A classifier: how often 'a' is followed by 'd', and the share of f."""

    def __init__(self):
        super().__init__()
        self.embedding, self.pair = nn.Embedding(6, 6), nn.Conv1d(6, 2, 2, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(torch.eye(6))
            self.pair.weight.zero_()
            self.pair.weight[0, 0, 0] = self.pair.weight[0, 3, 1] = 1.0
            self.pair.weight[1, 5, 0] = 1.0

    def forward(self, ids):
        found = self.pair(self.embedding(ids).mT)
        return torch.stack([(found[:, 0] - 1).relu().sum(1), found[:, 1].mean(1)], 1)


def model_of(make, labels=None, **options):
    return Model(seeded(make), TextContract.of(ABC, **options), labels)


def run(model, units, data=None, seed=0, **options):
    request = Request(model, targets=[units] if isinstance(units, str) else units, data=data, seed=seed)
    return build(Strings, options).run(request)


def test_the_best_string_of_a_counting_cell():
    model = model_of(Counts)
    r = run(model, "rnn.cell_l0:0", length=12, seeds=1, likelihood=0.0)
    assert r.strings("rnn.cell_l0:0") == ["b" * 12]
    assert r.values[0, 0] == pytest.approx(12, abs=1e-3)
    assert np.allclose(r.tracks[0, 0], np.arange(1, 13), atol=1e-3)
    down = run(model, "rnn.cell_l0:0", length=12, seeds=1, likelihood=0.0, minimize=True)
    assert down.strings("rnn.cell_l0:0") == ["c" * 12]
    assert down.beyond[0, 0] > 2


def test_likelihood_weighs():
    model = model_of(Counts)
    free, bound = (run(model, "rnn.cell_l0:0", length=12, seeds=1, likelihood=w) for w in (0.0, 3.0))
    assert bound.prior == "the network itself"
    assert bound.bits[0, 0] < free.bits[0, 0] - 1
    assert bound.strings("rnn.cell_l0:0")[0] in ("ab" * 6, "ba" * 6, "b" + "ba" * 5 + "b")


def test_at_and_places():
    model = model_of(Counts)
    mean = run(model, "rnn.cell_l0:0", length=6, seeds=1, likelihood=0.0, at="mean")
    assert mean.values[0, 0] == pytest.approx(np.arange(1, 7).mean(), abs=1e-3)
    placed = run(model, "rnn.cell_l0:0@4", length=8, seeds=1, likelihood=0.0, start="cc")
    assert placed.strings("rnn.cell_l0:0@4")[0].startswith("ccbbb")
    assert placed.values[0, 0] == pytest.approx(1, abs=1e-3)
    peak = run(model, "rnn.cell_l0:0", length=8, seeds=1, likelihood=2.0, at="peak")
    assert peak.values[0, 0] == pytest.approx(peak.tracks[0, 0].max())
    with pytest.raises(BadUnit, match="is at token 12; the string's tokens are 2 to 9"):
        run(model, "rnn.cell_l0:0@12", length=8, start="cc")


def test_flat_units_are_told():
    r = run(model_of(Counts), ["rnn.cell_l0:1", "rnn.cell_l0:0"], length=6, seeds=2)
    assert r.flat.tolist() == [True, False]
    assert r.notes == ("rnn.cell_l0:1 says 0 whatever the text",)
    assert "the same whatever the text" in r.caption(0, 0)
    assert "nothing drives it" in strings_page(r)


def score(r, likelihood, values, bits, spread):
    sign = -1 if r.minimize else 1
    return sign * values / spread - likelihood * bits


@pytest.mark.parametrize("unit", ["rnn.cell_l1:3", "rnn.hidden_l0:2", "class:e", "rnn.forget_gate_l1:0"])
@pytest.mark.parametrize(("likelihood", "minimize"), [(0.0, False), (1.0, True)])
def test_better_than_as_many_random_strings(unit, likelihood, minimize):
    model = model_of(Speaks)
    r = run(model, unit, length=20, seeds=1, likelihood=likelihood, minimize=minimize, width=8)
    address = model.find(unit)[0]
    stepper = Stepper(model, address.layer, True)
    prior = prior_of(model, None, 0)
    generator, count = torch.Generator().manual_seed(5), int(r.read[0]) // 20
    ids = written(stepper, prior, torch.arange(6), torch.zeros(0, dtype=torch.int64), count, 20, generator)
    tracks, scores = stepper.tracks(ids, address.index)
    bits = prior.bits(scores, ids).sum(1).numpy() / 19
    spread = tracks.numpy().std()
    theirs = score(r, likelihood, tracks[:, -1].numpy(), bits, spread).max()
    assert score(r, likelihood, r.values[0, 0], r.bits[0, 0], spread) > theirs


def test_what_is_told_is_what_the_network_says():
    net, contract = seeded(Speaks), TextContract.of(ABC)
    r = run(Model(net, contract), "rnn.hidden_l1:4", length=9, seeds=3, start="ab")
    for tokens, ids, track, value, bits in zip(r.tokens[0], r.ids[0], r.tracks[0], r.values[0], r.bits[0], strict=True):
        assert "".join(tokens)[:2] == "ab"
        assert contract.encode("".join(tokens)).tolist() == ids.tolist()
        with torch.no_grad():
            hidden = net.rnn(net.embedding(torch.from_numpy(ids.astype(np.int64))[None]))[0][0]
            likely = net.head(hidden).log_softmax(1).numpy() / np.log(2)
        assert np.allclose(track, hidden[:, 4].numpy(), atol=1e-5)
        assert value == pytest.approx(track[-1])
        assert bits == pytest.approx(-np.mean([likely[t - 1, ids[t]] for t in range(2, 11)]), abs=1e-4)


def test_seeds_are_different_strings():
    r = run(model_of(Speaks), "rnn.cell_l1:3", length=16, seeds=3, width=8)
    codes = grams(r.ids[0].astype(np.int64), 6)
    for a in range(3):
        for b in range(a):
            assert np.isin(codes[a], codes[b]).mean() < 0.5


def test_the_same_seed_gives_the_same_strings():
    model = model_of(Speaks)
    one, two = (run(model, "rnn.cell_l1:3", length=10, seeds=2, width=4) for _ in range(2))
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.written, two.written)
    assert not np.array_equal(one.written, run(model, "rnn.cell_l1:3", length=10, seeds=2, width=4, seed=1).written)


@pytest.mark.parametrize("search", ["auto", "gradient", "beam"])
def test_a_classifier(search):
    r = run(model_of(Judges, ["pairs", "effs"]), "class:pairs", length=8, seeds=1, search=search)
    assert r.labels == ("pairs",)
    assert r.strings(r.units[0]) == ["ad" * 4]
    assert r.values[0, 0] == 4
    assert r.prior == "none"
    assert np.isnan(r.bits).all()
    assert "nothing is known of how likely" in r.notes[0]
    assert np.isnan(r.tracks[0, 0, 0])  # one token is too short for the network
    assert r.tracks[0, 0, -1] == 4


def test_pairs_of_the_data_are_the_prior_of_a_classifier():
    model = Model(seeded(Judges), TextContract.of(ABC, unknown="c"), ["pairs", "effs"])
    data = open_data(["adadadad adad", "adadad adad ad"], model.contract)
    r = run(model, "class:effs", data, length=8, seeds=1, likelihood=0.0)
    assert r.strings(r.units[0])[0][:7] == "f" * 7
    assert r.prior == "pairs of tokens of 2 texts"
    assert r.bits[0, 0] > 3
    assert r.percentile[0, 0] == 1.0
    assert r.passages[0].name in ("text 0", "text 1")
    table = pairs(model, data, 1000).exp2()
    assert torch.allclose(table.sum(1), torch.ones(6), atol=1e-5)
    assert float(table[0, 3]) > 0.8


def test_a_network_that_looks_ahead():
    model = model_of(lambda: Speaks(both=True))
    assert not continues(model)
    r = run(model, "rnn.hidden_l1:3", length=12, seeds=2, width=6, rounds=15)
    assert (r.values[0] > r.written[0].max() - 0.05).all()
    assert r.values[0, 0] >= r.written[0].max()


def test_gradient_search_on_a_language_model():
    model = model_of(Speaks)
    r = run(model, "rnn.cell_l1:3", length=12, seeds=1, width=6, rounds=15, search="gradient")
    assert r.beyond[0, 0] > 2
    assert np.isfinite(r.bits).all()


def test_who_continues_texts():
    assert continues(model_of(Speaks))
    assert continues(model_of(Counts))
    assert not continues(model_of(Judges, ["a", "b"]))


def test_scores_probabilities_and_their_logarithms():
    scores = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    expected = scores.softmax(1).log2()
    for given in (scores, scores.softmax(1), scores.log_softmax(1)):
        assert torch.allclose(log2(given), expected, atol=1e-5)


def test_ends():
    assert ends(40) == [40, 15, 6, 2]
    assert ends(2) == [2]


def test_beside_real_text():
    model = model_of(Counts)
    data = open_data(["abba abba".replace(" ", "d"), "acdcbbbd", "aaaaaaaa"], TextContract.of(ABC))
    r = run(model, "rnn.cell_l0:0", data, length=5, seeds=1, likelihood=0.0)
    assert r.real == 25
    passage = r.passages[0]
    assert (passage.name, passage.start, passage.text, passage.value) == ("text 0", 3, "adabb", 4.0)
    assert r.ratio[0, 0] == pytest.approx(5 / 4, abs=1e-3)
    assert r.percentile[0, 0] == 1.0
    assert np.isfinite(r.real_bits)
    assert run(model, "rnn.cell_l0:0", data, length=5, seeds=1, real=0).passages == (None,)


def test_beside_a_survey():
    r = run(model_of(Counts), "rnn.cell_l0:0", length=5, seeds=1, likelihood=0.0)
    rows = [{"unit": "rnn.cell_l0:0", "min": -3.0, "max": 10.0}]
    known = r.with_survey(SimpleNamespace(statistics=rows, percentile=lambda unit, value: 0.75))
    assert known.percentile[0, 0] == 0.75
    assert known.ratio[0, 0] == pytest.approx(0.5, abs=1e-3)
    low = r.with_survey(SimpleNamespace(statistics=[{**rows[0], "max": 2.0}]))
    assert low.percentile[0, 0] == 1.0
    assert np.isnan(r.with_survey(SimpleNamespace(statistics=[])).percentile).all()
    assert replace(r, at="mean").with_survey(SimpleNamespace(statistics=rows)).at == "mean"


def test_refusals():
    with pytest.raises(CannotRun, match="is for networks on text"):
        run(Model(nn.Linear(3, 2), InputContract("array", (3,))), "0:1")
    with pytest.raises(BadInput, match="the prompt has 'z' at 0"):
        run(model_of(Speaks), "rnn.cell_l1:3", start="z")
    with pytest.raises(BadUnit, match="no unit is named"):
        run(model_of(Speaks), [])


def test_the_network_is_left_as_it_was():
    net = seeded(Speaks).train()
    random = torch.get_rng_state()
    run(Model(net, TextContract.of(ABC)), "rnn.cell_l1:3", length=5, seeds=1, width=4)
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert torch.equal(random, torch.get_rng_state())


@pytest.fixture(scope="module")
def shown():
    model = Model(seeded(lambda: Speaks()), TextContract.of("a<\n\t&f"))
    data = open_data(["a<&f\n\ta<aa\nf&a", "fff\t<<a"], model.contract)
    return run(model, ["rnn.cell_l1:3", "class:f"], data, length=14, seeds=2, width=4, start="a<")


def test_kept_and_read_again(shown, tmp_path):
    folder = shown.save(tmp_path / "out")
    again = load_result(folder)
    assert isinstance(again, StringsResult)
    assert again.to_json() == shown.to_json()
    assert np.array_equal(again.surprises, shown.surprises, equal_nan=True)
    assert np.array_equal(again.passages[1].track, shown.passages[1].track)
    told = json.loads((folder / "results.json").read_text())
    assert told["kind"] == "strings"
    assert told["units"][0]["strings"] == shown.strings("rnn.cell_l1:3")
    assert sorted(p.name for p in folder.glob("*.png")) == ["head_5-happy.png", "rnn.cell_l1_3-happy.png"]


def test_a_page(shown):
    page = strings_page(shown)
    assert page.count("<section") == 2
    assert page.count("<li>") == 4
    assert "<<" not in page.replace("<<!", "")
    assert "&lt;" in page
    assert "http" not in page
    assert "head:5 (&#x27;f&#x27;) up" in page
    only = strings_fragment(shown, ["head:5"])
    assert only.count("<section") == 1
    assert "<u>" in only  # the prompt is marked
    assert "drawn from the likelihood of the network itself" in only


def test_pictures(shown):
    pictures = list(shown.pictures())
    assert [p.name for p in pictures] == ["rnn.cell_l1_3-happy", "head_5-happy"]
    assert all(p.pixels.dtype == np.uint8 and p.pixels.shape[2] == 3 for p in pictures)
    assert len(np.unique(pictures[0].pixels.reshape(-1, 3), axis=0)) > 20

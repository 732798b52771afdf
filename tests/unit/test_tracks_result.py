"""Cells over a text: the result's questions on planted tracks, and the method on tiny networks."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.errors import BadInput, BadOption, BadUnit, CannotRun, UnknownName
from penlight.inputs import TextContract
from penlight.inputs.text_data import open_texts
from penlight.models import Model
from penlight.results import Provenance, load_result
from penlight.results.tracks import Follower, Known, On, Text, TracksResult, levels
from penlight.techniques.activations.text import Tracks
from penlight.techniques.contract import Request
from penlight.techniques.options import build

LETTERS = "\ufffd\n \"'.,:/abcdefghijklmnopqrstuvwxyz0123456789"
COUNT = len(LETTERS)
QUOTED = 'say "one two" and 12 more.\nthen "three four" or 7, and "five six".\n'


class Reader(nn.Module):
    """A character LSTM that puts out the scores of the next character."""

    def __init__(self, classes=COUNT, way=False):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=way)
        self.head = nn.Linear(10 if way else 5, classes)

    def forward(self, ids):
        return self.head(self.lstm(self.embedding(ids))[0])


class Judge(nn.Module):
    """A class for a text as a whole, by a convolution."""

    def __init__(self, wide=7):
        super().__init__()
        self.embedding, self.conv = nn.Embedding(COUNT, 6), nn.Conv1d(6, wide, 3, padding=1)
        self.head = nn.Linear(wide, 3)

    def forward(self, ids):
        return self.head(self.conv(self.embedding(ids).transpose(1, 2)).relu().amax(2))


def model(network=Reader):
    return Model(zoo.seeded(network).eval(), TextContract.of(LETTERS))


def read(opened, source, layers=(), **options):
    options.setdefault("properties", "inside quotes;digit;white space")
    return build(Tracks, options).run(Request(opened, layers=layers, data=open_texts(source, opened.contract)))


def planted(count=300):
    """Cell 3 is high in three stretches, cell 5 low there, cell 7 high in the second alone, cell 8 never moves; the rest is noise."""
    rng = np.random.default_rng(0)
    holds = np.zeros(count, np.float32)
    for start in (40, 120, 200):
        holds[start : start + 30] = 1
    values = rng.normal(0, 1, (count, 9)).astype(np.float16)
    values[:, 3] = 50 + holds
    values[:, 5] = -3 * holds + 1
    values[:, 7] = np.where((np.arange(count) >= 120) & (np.arange(count) < 150), 2, -0.1)
    values[:, 8] = 0.25
    spans = np.stack([np.arange(count), np.arange(count) + 1], 1).astype(np.int32)
    once = (np.arange(count) < 5).astype(np.float32)
    text = Text(
        "some text", "x" * count, spans, {"cell": values}, np.stack([holds, once]), np.zeros(0, np.float32), count
    )
    scores = np.full((9, 2), 0.5, np.float32)
    scores[[3, 5, 7], 0], scores[8, 0], scores[2, 1] = (0.999, 0.01, 0.7), np.nan, 1.0
    known = (Known("held", "yes/no", "as planted", 3 * 2), Known("once", "yes/no", "the beginning", 1))
    return TracksResult(Provenance(model="net"), (text,), {"cell": "Track"}, known, {"cell": scores})


def test_the_cells_that_are_on_in_a_stretch_and_off_elsewhere_come_first():
    result = planted()
    first, *rest = result.on(120, 150, edges=False)
    assert first == On("cell:7", 1.0, "up", 1.0, 0.0, 0.0)
    assert [(one.unit, one.way) for one in rest[:2]] == [("cell:3", "up"), ("cell:5", "down")]
    assert rest[0].elsewhere == pytest.approx(60 / 210)  # the two other stretches, none of which is around this one
    assert rest[0].score == pytest.approx(1 - 60 / 210)
    assert all(one.score < 0.6 for one in rest[2:])
    assert result.on(120, 150)[0] == first
    assert next(one for one in result.on(120, 150, top=99) if one.unit == "cell:8").score == 0
    assert [one.unit for one in result.on(120, 150, top=1)] == ["cell:7"]


def test_what_is_on_around_a_stretch_counts_where_the_edges_do():
    first = planted().on(130, 140, edges=False)[0]
    assert (first.unit, first.inside, first.around) == ("cell:7", 1.0, 1.0)
    assert first.score == pytest.approx(1 - 0.0)
    strict = {one.unit: one for one in planted().on(130, 140, top=99)}
    assert strict["cell:7"] == first._replace(score=0.0)


@pytest.mark.parametrize(("start", "stop"), [(5, 5), (7, 3), (-1, 4), (290, 301)])
def test_a_stretch_lies_in_the_text(start, stop):
    with pytest.raises(BadInput, match=f"0 to 300 and is not empty; {start} to {stop} does not"):
        planted().on(start, stop)


def test_levels_are_hundredths_of_the_largest_magnitude():
    values = np.array([[0.5, -8e4, 0, np.nan], [-1, 4e4, 0, 2]], np.float32)
    found, tops = levels(values)
    np.testing.assert_array_equal(found, [[50, -100, 0, 0], [-100, 50, 0, 100]])
    np.testing.assert_array_equal(tops, [1, 8e4, 0, 2])


def test_followers_are_in_order_of_their_distance_from_chance():
    result = planted()
    best = result.following("held", 3)
    assert [one.unit for one in best] == ["cell:3", "cell:5", "cell:7"]
    assert [str(one) for one in best] == ["AUROC 0.999", "AUROC 0.990, going down", "AUROC 0.700"]
    assert "cell:8" not in {one.unit for one in result.following("held", 99)}  # it has no score
    assert str(Follower("u", -0.25, 0.25, "rank correlation")) == "rank correlation 0.250, going down"
    with pytest.raises(UnknownName, match="there is no property 'hold'; did you mean 'held'"):
        result.following("hold")


def test_a_property_of_few_stretches_comes_last():
    assert [(known.name, one.unit) for known, one in planted().best] == [("held", "cell:3"), ("once", "cell:2")]


def test_units_that_were_not_read_are_refused():
    result = planted()
    np.testing.assert_array_equal(result.values("cell:8"), np.full(300, 0.25, np.float32))
    with pytest.raises(UnknownName, match="there is no layer that was read 'sell'"):
        result.values("sell:3")
    for unit in ("cell:9", "cell:*", "cell:3@4"):
        with pytest.raises(BadUnit, match="has cell:0 to cell:8"):
            result.values(unit)
    with pytest.raises(BadInput, match="texts 0 to 0; there is no 1"):
        result.values("cell:3", text=1)


def test_statistics_are_over_all_texts():
    result = read(model(), [QUOTED, QUOTED[::-1]])
    told = result.statistics("lstm.cell_l1:2")
    both = np.concatenate([result.values("lstm.cell_l1:2", n) for n in (0, 1)]).astype(np.float64)
    assert told == pytest.approx({"mean": both.mean(), "std": both.std(), "min": both.min(), "max": both.max()})


def test_the_disk_keeps_it(tmp_path):
    result = read(model(), QUOTED)
    found = load_result(result.save(tmp_path / "r"))
    assert isinstance(found, TracksResult)
    assert json.loads(found.to_json()) == json.loads(result.to_json())
    for name, values in result.state()[1].items():
        np.testing.assert_array_equal(found.state()[1][name], values, err_msg=name)
    assert (tmp_path / "r" / "digit.png").exists()
    told = json.loads(result.to_json())
    assert told["texts"][0] == {
        "name": "text",
        "tokens": len(QUOTED),
        "of": len(QUOTED),
        "bits_per_token": result.texts[0].bits,
    }
    assert told["properties"][1]["best"][0]["unit"] == result.following("digit", 1)[0].unit
    assert "data:image/png" in result._repr_html_()


def test_values_are_pytorchs_own_and_probabilities_of_what_came():
    opened = model()
    result = read(opened, [QUOTED, "a short one."])
    assert list(result.layers) == ["lstm.hidden_l0", "lstm.cell_l0", "lstm.hidden_l1", "lstm.cell_l1"]
    plain = zoo.seeded(Reader).eval()
    for n, text in enumerate([QUOTED, "a short one."]):
        ids = torch.from_numpy(opened.text.encode(text))[None]
        with torch.no_grad():
            hidden = plain.lstm(plain.embedding(ids))[0][0].numpy()
            shares = plain(ids)[0].softmax(1)
        np.testing.assert_allclose(result.texts[n].values["lstm.hidden_l1"], hidden, atol=1e-3)
        given = result.texts[n].probability
        assert np.isnan(given[0])
        np.testing.assert_allclose(given[1:], shares[:-1].gather(1, ids[0, 1:, None])[:, 0], rtol=1e-5)
        assert result.texts[n].bits == pytest.approx(-np.log2(given[1:]).mean(), rel=1e-5)


def test_scores_are_the_share_of_pairs_in_order():
    result = read(model(), [QUOTED, "and 'one' more 4."])
    holds = np.concatenate([result.track("digit", n) for n in (0, 1)])
    values = np.concatenate([result.values("lstm.cell_l0:1", n) for n in (0, 1)])
    yes, no = values[holds == 1], values[holds == 0]
    pairs = (yes[:, None] > no).mean() + (yes[:, None] == no).mean() / 2
    assert result.score("lstm.cell_l0:1", "digit") == pytest.approx(pairs, abs=0.01)
    assert result.known[1].stretches == 3


def test_a_property_that_says_nothing_is_named():
    result = read(model(), "no such thing here", properties="digit;white space")
    assert [one.name for one in result.known] == ["white space"]
    assert result.notes == ("no unit was scored against what is everywhere the same or cannot be said here: digit",)
    with pytest.raises(UnknownName, match="no property 'digits'; did you mean 'digit'"):
        read(model(), QUOTED, properties="digits")


def test_a_property_of_ones_own():
    result = read(model(), QUOTED, properties="pair=an|tw; digit")
    assert [(one.name, one.kind) for one in result.known] == [("pair", "yes/no"), ("digit", "yes/no")]
    assert result.track("pair").sum() == 2 * (QUOTED.count("an") + QUOTED.count("tw"))


def test_what_does_not_fit_is_told():
    result = read(model(lambda: Judge(594)), [QUOTED * 40, "short one."], memory=1)
    kept, whole = [len(one) for one in result.texts], len(QUOTED) * 40
    assert kept == [2**20 // (2 * 600) - 10, 10]
    assert result.notes == (f"text 0: the first {kept[0]:,} of {whole:,} tokens are read, as many as 1 MiB hold",)
    assert result.texts[0].whole == whole
    assert len(result.texts[0].text) == kept[0]
    assert read(model(), [QUOTED] * 3, count=2).notes == ("3 texts were given, the first 2 are read",)
    with pytest.raises(BadOption, match="option memory takes a whole number from 1"):
        read(model(), QUOTED, memory=0)


def test_layers_are_those_that_were_named_and_have_a_value_a_token():
    assert list(read(model(), QUOTED, ["lstm.forget_gate_l1", "head"]).layers) == ["lstm.forget_gate_l1", "head"]
    with pytest.raises(CannotRun, match="layer 'head' has no value a token; those that have: embedding, conv"):
        read(model(Judge), QUOTED, ["head"])


def test_networks_without_recurrence_show_every_layer_along_the_text():
    result = read(model(Judge), QUOTED)
    assert list(result.layers) == ["embedding", "conv"]
    assert result.texts[0].values["conv"].shape == (len(QUOTED), 7)
    assert result.texts[0].bits is None


def test_only_what_looks_back_alone_is_taken_for_a_language_model():
    assert read(model(lambda: Reader(way=True)), QUOTED).texts[0].bits is None
    assert read(model(lambda: Reader(classes=4)), QUOTED).texts[0].bits is None


def test_large_values_are_kept_whole():
    network = Reader().eval()
    with torch.no_grad():
        network.head.bias[0] = 1e6
    result = read(Model(network, TextContract.of(LETTERS)), QUOTED, ["head", "lstm.cell_l0"])
    assert [values.dtype.name for values in result.texts[0].values.values()] == ["float32", "float16"]
    assert result.values("head:0") == pytest.approx(1e6, rel=1e-4)


class Numbers:
    """Data that is token numbers only."""

    name, classes = "numbers", ()

    def __init__(self, ids):
        self.ids = ids

    def __len__(self):
        return 1

    def label(self, index):
        return "numbers", None

    def read(self, index):
        return self.ids

    def fingerprint(self):
        return ""


def test_token_numbers_are_read_back_as_text():
    opened = model()
    asked = Request(opened, data=Numbers(opened.text.encode(QUOTED)))
    assert build(Tracks, {"properties": "digit"}).run(asked).texts[0].text == QUOTED
    words = Model(
        Reader().eval(), TextContract.of(["<unk>", "three", "words", *(f"w{n}" for n in range(len(LETTERS) - 3))])
    )
    one = (
        build(Tracks, {"properties": "digit;word start"})
        .run(Request(words, data=Numbers(np.array([1, 2, 3]))))
        .texts[0]
    )
    assert (one.text, one.tokens) == ("three words w0", ["three", "words", "w0"])
    with pytest.raises(BadInput, match="tracks are of texts"):
        Tracks().run(Request(opened))


def test_the_first_part_of_a_text_is_whole_in_itself():
    one = read(model(), QUOTED).texts[0].first(9)
    assert (len(one), one.text, one.known.shape[1], len(one.probability), one.whole) == (
        9,
        QUOTED[:9],
        9,
        9,
        len(QUOTED),
    )
    assert all(len(values) == 9 for values in one.values.values())


def test_the_network_is_left_as_it_was():
    network = Reader().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    read(Model(network, TextContract.of(LETTERS)), QUOTED)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert torch.equal(state, torch.get_rng_state())

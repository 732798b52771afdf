"""Passages of texts against plain readings of them, planted cells that must be found, and cells that must not be."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from penlight.errors import BadInput, BadUnit, CannotRun, UnknownName
from penlight.inputs import TextContract
from penlight.inputs.properties import DEPTH, YES_NO, Property, chosen
from penlight.inputs.text_data import open_texts
from penlight.models import Model
from penlight.render.passages import chosen_units, page, text, unit_card
from penlight.results import load_result
from penlight.results.passages import PassagesResult
from penlight.techniques.contract import Request
from penlight.techniques.following import follow
from penlight.techniques.survey.passages import Passages
from penlight.techniques.survey.text_labels import Half, judge

LETTERS = '\n "#()abcdefghij=+.<&'
QUOTE, HIDDEN, PLANTED = LETTERS.index('"'), 6, 3


class OneHot(nn.Module):
    """One-hot characters into a recurrent module, and scores of the next character."""

    def __init__(self, cells: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), len(LETTERS))
        self.embedding.weight.data.copy_(torch.eye(len(LETTERS)))
        self.cells = cells
        self.head = nn.Linear(HIDDEN, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.cells(self.embedding(x))[0])
        return scores


def planted(kind: str) -> Model:
    """Cell 3 turns over at every quote and else stays; the other cells are random and do not read it."""
    torch.manual_seed(0)
    made = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](len(LETTERS), HIDDEN, batch_first=True)
    gates = {"lstm": ("input", "forget", "candidate", "output"), "gru": ("reset", "update", "candidate")}[kind]
    into, again, bias, bias_again = (
        made.get_parameter(f"{n}_l0").data for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    for part in (into, again, bias, bias_again):
        part.normal_(0, 0.7)
    again[:, PLANTED] = 0
    row = {name: n * HIDDEN + PLANTED for n, name in enumerate(gates)}
    for number in row.values():
        into[number], again[number], bias[number], bias_again[number] = 0, 0, 0, 0
    again[row["candidate"], PLANTED], bias[row["candidate"]] = -6, 2  # the other side of what it was
    if kind == "lstm":
        into[row["input"], QUOTE], bias[row["input"]] = 40, -20
        into[row["forget"], QUOTE], bias[row["forget"]] = -40, 20
        bias[row["output"]] = 20
    else:
        bias[row["reset"]] = 20
        into[row["update"], QUOTE], bias[row["update"]] = -40, 20
    return Model(OneHot(made), TextContract.of(LETTERS))


def write(rng: np.random.Generator, lines: int = 30) -> str:
    """Statements of Python, in which some values are strings."""

    def word(blank: bool) -> str:
        letters = rng.choice(list("abcdefghij" + "   " * blank), rng.integers(3, 9))
        return "".join(letters).strip() or "a"

    made = []
    for _ in range(lines):
        kind = rng.random()
        value = f'"{word(True)} {word(True)}"' if kind < 0.5 else f"({word(False)} + {word(False)})"
        made.append(f"{word(False)} = {value}" + (f" # {word(True)}" if kind > 0.8 else ""))
    return "\n".join(made) + "\n"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(3)
    return [write(rng) for _ in range(16)]


def survey(model: Model, texts: list[str], layers: tuple[str, ...] = (), **options: object) -> PassagesResult:
    data = open_texts(texts, model.contract)  # type: ignore[arg-type]
    return Passages(**options).run(Request(model, layers=layers, data=data))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found(texts: list[str]) -> PassagesResult:
    return survey(planted("lstm"), texts)


def reading(model: Model, one: str, which: int = 0) -> np.ndarray:
    """The hidden states of PyTorch's own module for a whole text, (T, H)."""
    assert model.text is not None
    own = model.network.cells
    plain = type(own)(own.input_size, own.hidden_size, batch_first=True)  # type: ignore[operator]
    plain.load_state_dict(own.state_dict())  # type: ignore[arg-type]
    with torch.no_grad():
        x = model.network.embedding(torch.from_numpy(model.text.encode(one))[None])  # type: ignore[operator]
        return plain(x)[which][0].numpy()


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_planted_cell_is_the_best_for_quotes_and_no_other_is_claimed(kind: str, texts: list[str]) -> None:
    r = survey(planted(kind), texts, properties="inside a string; inside quotes; inside a comment; keyword")
    allowed = {f"cells.hidden_l0:{PLANTED}", f"cells.cell_l0:{PLANTED}"}
    claimed = {row.unit for row in r.labels if row.label is not None}
    assert claimed
    assert claimed <= allowed
    for name in ("inside a string", "inside quotes"):
        best = next(one for one in r.best if one.property == name)
        assert best.unit in allowed
        assert best.stands
        assert best.score > 0.999
        assert best.low > 0.99
    assert not [one for one in r.best if one.stands and one.unit not in allowed]
    assert any("keyword" in note for note in r.notes)  # there is none in these texts


def test_statistics_are_those_of_a_plain_reading(found: PassagesResult, texts: list[str]) -> None:
    model = planted("lstm")
    values = np.concatenate([reading(model, one) for one in texts])
    assert found.count == len(values)
    for u in range(HIDDEN):
        row = found.row(f"cells.hidden_l0:{u}")
        column = values[:, u].astype(np.float64)
        expected = [column.mean(), column.std(), column.min(), column.max(), (column > 0).mean()]
        assert [row[n] for n in ("mean", "std", "min", "max")] == pytest.approx(expected[:4], abs=1e-5)
        if u != PLANTED:  # which is a rounding error from 0 before the first quote
            assert row["fires"] == pytest.approx(expected[4], abs=1e-9)
        assert found.histogram(f"cells.hidden_l0:{u}")[0].sum() == len(values)


@pytest.mark.parametrize(("which", "sign"), [("top", 1), ("bottom", -1)])
@pytest.mark.parametrize("spacing", [7, 200])
def test_passages_are_the_highest_peaks(which: str, sign: int, spacing: int, texts: list[str]) -> None:
    model = planted("lstm")
    r = survey(model, texts, top=40, bottom=40, context=4, spacing=spacing, per_text=4, properties="none")
    tracks = [sign * reading(model, one) for one in texts]
    for u in (0, 1, 2, 4, 5):
        peaks = []
        for n, track in enumerate(tracks):
            column = track[:, u]
            own = [
                (-column[p], n, p)
                for p in range(len(column))
                if column[p] > column[max(0, p - spacing) : p].max(initial=-9)
                and column[p] >= column[p + 1 : p + spacing + 1].max(initial=-9)
            ]
            peaks += sorted(own)[:4]
        expected = sorted(peaks)[:40]
        listed = getattr(r, which)(f"cells.hidden_l0:{u}")
        assert [one.activation for one in listed] == pytest.approx([-sign * v for v, _, _ in expected], abs=1e-5)
        for one in listed:
            assert tracks[one.text][one.place, u] * sign == pytest.approx(one.activation, abs=1e-5)
            first = one.place - one.at
            assert one.words == texts[one.text][max(0, one.place - 4) : one.place + 5]
            assert one.values == pytest.approx(sign * tracks[one.text][first : first + len(one.values), u], abs=2e-3)
            assert one.line == texts[one.text][: one.place].count("\n") + 1
            assert one.name == f"text {one.text}"


def test_tokens_that_move_a_cell(texts: list[str]) -> None:
    model, unit = planted("lstm"), "cells.hidden_l0:0"
    texts = [line for one in texts for line in one.splitlines()]  # many beginnings, at which nothing goes up
    found = survey(model, texts, properties="none")
    jumps: dict[str, list[float]] = {}
    for one in texts:
        column = reading(model, one)[:, 0]
        for n in range(1, len(one)):
            jumps.setdefault(one[n], []).append(float(column[n] - column[n - 1]))
    means = {letter: np.mean(rows) for letter, rows in jumps.items() if len(rows) >= 5}
    up, down = found.moved_by(unit)
    ranked = sorted(means, key=lambda letter: -means[letter])
    assert [one.token for one in up] == ranked[: len(up)]
    assert [one.token for one in down] == ranked[::-1][: len(down)]
    assert [one.jump for one in (*up, *down)] == pytest.approx([means[one.token] for one in (*up, *down)], abs=1e-5)


class Noise(nn.Module):
    """A state that wanders on its own account: what it is depends on where it is in the text, and on nothing that stands there."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), 4)
        self.mix = nn.Linear(4, units)
        steps = np.random.default_rng(5).standard_normal((4000, units)).astype(np.float32)
        self.register_buffer("wander", torch.from_numpy(steps).cumsum(0) / 10)

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.wander, Tensor)
        mixed: Tensor = self.mix(0 * self.embedding(x)) + self.wander[: x.shape[1]]
        return mixed


def test_nothing_is_claimed_of_noise(texts: list[str]) -> None:
    r = survey(Model(nn.Sequential(Noise(40), nn.Identity()), TextContract.of(LETTERS)), texts, layers=("0",))
    assert len(r.labels) == 40
    assert [row for row in r.labels if row.label is not None] == []
    assert [one for one in r.best if one.stands] == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_claimed_of_an_untrained_network(seed: int, texts: list[str]) -> None:
    torch.manual_seed(seed)
    net = OneHot(nn.LSTM(len(LETTERS), HIDDEN * 4, num_layers=2, batch_first=True))
    net.head = nn.Linear(HIDDEN * 4, len(LETTERS))
    r = survey(Model(net, TextContract.of(LETTERS)), texts)
    assert [row for row in r.labels if row.label is not None] == []
    assert [one for one in r.best if one.stands] == []


def walk(rng: np.random.Generator, count: int, keep: float, units: int) -> np.ndarray:
    from scipy.signal import lfilter

    return lfilter([1], [1, -keep], rng.standard_normal((count, units)), axis=0).astype(np.float32)


def test_the_test_against_chance_holds_its_level_where_neighbours_are_alike() -> None:
    """Slow cells and slow properties that have nothing to do with each other, without the test against untrained cells."""
    claims, naive = 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        tracks = [np.stack([walk(rng, 4000, 0.98, 1)[:, 0] > 1, walk(rng, 4000, 0.98, 1)[:, 0]], 1) for _ in range(2)]
        halves = [
            Half(walk(rng, 4000, 0.98, 30), track.astype(np.float32), np.repeat(np.arange(10), 400)) for track in tracks
        ]
        properties = [Property("yes", YES_NO, "", len), Property("deep", DEPTH, "", len)]  # type: ignore[arg-type]
        found = judge(halves[0], halves[1], properties, None, [], rng)
        claims += bool(found.stands.any() or any(one.stands for one in found.best))
        naive += bool((np.abs(found.second[:, 1]) > 4.2 / np.sqrt(4000)).any())
    assert naive >= 10  # what counting neighbours as independent would have claimed
    assert claims <= 2


def test_a_cell_that_follows_passes_both_tests() -> None:
    rng = np.random.default_rng(1)
    properties = [Property("yes", YES_NO, "", len), Property("deep", DEPTH, "", len)]  # type: ignore[arg-type]

    def half() -> Half:
        tracks = np.stack([walk(rng, 4000, 0.95, 1)[:, 0] > 1, np.round(walk(rng, 4000, 0.95, 1)[:, 0])], 1)
        values = walk(rng, 4000, 0.95, 10)
        values[:, 4] -= 9 * tracks[:, 0]
        values[:, 7] += 5 * tracks[:, 1]
        return Half(values, tracks.astype(np.float32), np.repeat(np.arange(10), 400))

    unlearned = np.stack([rng.normal(0.5, 0.05, 200), rng.normal(0, 0.1, 200)], 1)
    first, second = half(), half()
    found = judge(first, second, properties, unlearned, [], rng)
    assert found.stands.tolist() == [n in (4, 7) for n in range(10)]
    yes, deep = found.best
    assert (yes.unit, yes.falls, yes.stands) == (4, True, True)
    assert (deep.unit, deep.falls, deep.stands) == (7, False, True)
    assert yes.score == pytest.approx(1 - follow(second.values[:, [4]], second.tracks[:, 0])[0], abs=1e-6)
    assert yes.low < yes.score < yes.high
    assert deep.low < deep.score < deep.high


def test_scores_against_scikit_learn_and_scipy() -> None:
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    for count in (500, 132_000):
        values = rng.standard_normal((count, 4)).astype(np.float32)
        values[:, 1], values[:, 2], values[:, 3] = values[:, 1] ** 9, np.round(values[:, 2]), np.tanh(9 * values[:, 3])
        yes = (rng.random(count) < 0.1).astype(np.float32)
        deep = rng.integers(0, 5, count).astype(np.float32)
        values += np.stack([yes, yes, deep, deep], 1)
        yes[:50] = deep[10:60] = np.nan
        for track, score in ((yes, roc_auc_score), (deep, lambda t, v: spearmanr(v, t).statistic)):
            known = np.isfinite(track)
            expected = [score(track[known], values[known, u]) for u in range(4)]
            assert follow(values, track) == pytest.approx(expected, abs=1e-3)
    assert np.isnan(follow(values, np.ones(count))).all()
    assert follow(np.ones((count, 1), np.float32), yes).tolist() == [0.5]


def test_it_is_kept_and_read_back(found: PassagesResult, tmp_path: Path) -> None:
    again = load_result(found.save(tmp_path / "r"))
    assert isinstance(again, PassagesResult)
    assert again.to_json() == found.to_json()
    assert again.top("cells.cell_l0:1")[0].words == found.top("cells.cell_l0:1")[0].words
    assert (again.best, again.notes) == (found.best, found.notes)
    with pytest.raises(UnknownName, match=r"cells\.cell_l0"):
        found.top("cells.cell_l1:0")
    with pytest.raises(BadUnit, match="0 to 5"):
        found.top("cells.cell_l0:6")


def test_blocks_and_lanes_do_not_matter(
    found: PassagesResult, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penlight.techniques.survey.passages._LANES", 3)
    again = survey(planted("lstm"), texts)
    for path, layer in found.layers.items():
        assert again.layers[path].top_value == pytest.approx(layer.top_value, abs=1e-5)
        assert again.layers[path].second == pytest.approx(layer.second, abs=1e-3, nan_ok=True)


def test_one_long_text_is_cut_into_halves(texts: list[str]) -> None:
    r = survey(planted("lstm"), ["".join(texts)], properties="inside a string")
    assert r.labels.of(f"cells.cell_l0:{PLANTED}").label == "inside a string"  # type: ignore[union-attr]
    assert r.sampled > 1000
    short = survey(planted("lstm"), ['a = "b"\n'])
    assert short.notes
    assert short.count == 8
    assert [row for row in short.labels if row.label is not None] == []


def test_words_and_a_network_without_recurrence(texts: list[str]) -> None:
    words = ("<unk>", *sorted(set(re.findall(r"\w+", "".join(texts)))), "(", ")", '"', "=", "+", "#")
    net = nn.Sequential(nn.Embedding(len(words), 8), nn.Linear(8, 5), nn.ReLU())
    contract = TextContract.of(words, unknown="<unk>", tokens="words")
    r = survey(Model(net, contract), texts, context=3)
    assert list(r.layers) == ["0", "1", "2"]
    one = r.top("1:2")[0]
    assert len(one.tokens) <= 7
    assert one.words == " ".join(one.tokens)
    spans = contract.spans(texts[one.text])
    assert one.line == texts[one.text][: spans[one.place][0]].count("\n") + 1


def test_the_page_holds_text_that_looks_like_html() -> None:
    r = survey(planted("lstm"), ['a = "<b&j<"\n' * 9] * 9, context=9)
    html = page(r)
    assert "<b&" not in html
    assert "&lt;" in unit_card(r, "cells.hidden_l0:0")
    assert "http" not in html.replace("http://www.w3.org", "")
    assert len(chosen_units(r, 4)) == 4
    assert "tokens in 9 texts" in text(r)


def test_what_cannot_be_surveyed(texts: list[str], tmp_path: Path) -> None:
    model = planted("lstm")
    with pytest.raises(BadInput, match="needs texts"):
        Passages().run(Request(model))
    with pytest.raises(UnknownName, match="cells"):
        survey(model, texts, layers=("cell",))
    with pytest.raises(UnknownName, match="inside a string"):
        survey(model, texts, properties="insid a string")
    with pytest.raises(BadInput, match="not one of the 1 texts"):
        survey(model, ["ZZZ ZZZ"])
    flat = Model(nn.Sequential(nn.Embedding(len(LETTERS), 2), nn.Flatten()), TextContract.of(LETTERS))
    with pytest.raises((CannotRun, UnknownName)):
        survey(flat, texts, layers=("1",))
    good = survey(model, [*texts, "ZZZ ZZZ"], properties="none")
    assert [name for name, _ in good.skipped] == ["text 16"]
    assert good.best == ()
    assert chosen(["digit"])[0].kind == YES_NO

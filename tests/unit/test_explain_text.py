"""Explanations of texts: the network from behind its front, its steps, and what stands in for tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from penlight.errors import BadInput, BadOption, BadUnit, CannotRun, UnknownName
from penlight.inputs import TextContract
from penlight.models import Model
from penlight.models.front import front_view
from penlight.render import explain_sheet
from penlight.render.explain_rows import explain_page, text_fragment
from penlight.results import load_result
from penlight.results.heat import colours
from penlight.results.strips import laid_out
from penlight.techniques.contract import Request
from penlight.techniques.explain import passage
from penlight.techniques.explain.cam import GradCam
from penlight.techniques.explain.checks import check
from penlight.techniques.explain.gradients import (
    Deconvnet,
    Gradient,
    GradientInput,
    IntegratedGradients,
    SmoothGrad,
)
from penlight.techniques.explain.kernel_shap import KernelShap
from penlight.techniques.explain.lime import Lime
from penlight.techniques.explain.occlusion import Occlusion
from penlight.techniques.explain.rise import Rise

LETTERS = "\ufffd\n abcdefgh'#"
TEXT = "abc def 'gh' #abc\n  dead beef 'cafe' # hedge\nbad a face"
LENGTH = len(TEXT)
METHODS = [
    Gradient(), GradientInput(), IntegratedGradients(), SmoothGrad(samples=3), Occlusion(), Lime(samples=60),
    KernelShap(samples=80), Rise(samples=40),
]  # fmt: skip


class Reads(nn.Module):
    """A recurrent network on characters with one of many fronts; `front` is also the name that ours might take."""

    def __init__(self, kind=nn.LSTM, first=True, front="embedding", classes=0, both=False):
        super().__init__()
        self.front, self.first, self.classes = front, first, classes
        self.embedding, self.positions = nn.Embedding(len(LETTERS), 6), nn.Embedding(2000, 6)
        wide = len(LETTERS) if front in ("one-hot", "given") else 6
        self.lstm = kind(wide, 7, 2, batch_first=first, bidirectional=both)
        self.head = nn.Linear(7 * (1 + both), classes or len(LETTERS))

    def forward(self, x):
        states, last = self.lstm(self.looked_up(x))
        if self.classes:
            return self.head(states[:, -1] if self.first else states[-1])
        return self.head(states), last

    def looked_up(self, x):
        places = torch.arange(x.shape[1 if self.first else 0])
        return {
            "embedding": lambda: self.embedding(x),
            "positions": lambda: self.embedding(x) + self.positions(places[None].repeat(len(x), 1)),
            "one-hot": lambda: F.one_hot(x, len(LETTERS)).float(),
            "index": lambda: self.embedding.weight[x],
            "turned": lambda: self.embedding(x.T.contiguous()).transpose(0, 1),
            "twice": lambda: self.embedding(x) * self.positions(x),
            "given": lambda: x,
        }[self.front]()


CASES = {
    "embedding": {}, "positions": {"front": "positions"}, "one-hot": {"front": "one-hot"}, "index": {"front": "index"},
    "turned": {"front": "turned"}, "twice": {"front": "twice"}, "given": {"front": "given"}, "time first": {"first": False},
    "given, time first": {"front": "given", "first": False}, "gru": {"kind": nn.GRU}, "both ways": {"kind": nn.RNN, "both": True},
    "classes": {"classes": 3}, "classes, time first": {"classes": 3, "first": False, "front": "one-hot"},
}  # fmt: skip


def opened(**how):
    network = zoo.seeded(lambda: Reads(**how))
    encoding = "one-hot" if how.get("front") == "given" else "ids"
    contract = TextContract.of(LETTERS, encoding=encoding, batch_first=how.get("first", True))
    return Model(network, contract, ["x", "y", "z"] if how.get("classes") else None)


@pytest.fixture
def model():
    return opened()


def encoded(text=TEXT):
    return TextContract.of(LETTERS).encode(text)


def ask(model, *units, text=TEXT, **rest):
    return Request(model, input=encoded(text), targets=units, **rest)


def scores(model, ids):
    """(steps, V) or (classes,) of the network itself."""
    with torch.no_grad():
        output = model.network(model.tensor(np.asarray(ids)[None]))
    output = output[0] if isinstance(output, tuple) else output
    if output.ndim == 3:
        output = output[0] if model.contract.batch_first else output[:, 0]
        return output.double().numpy()
    return output[0].double().numpy()


# the front


@pytest.mark.parametrize("how", CASES.values(), ids=CASES.keys())
def test_the_view_is_the_same_network_with_the_same_layers(how):
    model = opened(**how)
    view, signal = front_view(model, encoded())
    channels = {"twice": 12, "one-hot": 13, "given": 13}.get(how.get("front"), 6)
    assert signal.shape == view.contract.shape == (channels, LENGTH)
    assert list(view.layers) == list(model.layers)
    with torch.no_grad():
        output = view.network(view.tensor(signal[None]))
    output = (output[0] if isinstance(output, tuple) else output).double()
    if output.ndim == 3:
        output = output[0] if model.contract.batch_first else output[:, 0]
    np.testing.assert_allclose(
        output.reshape(scores(model, encoded()).shape).numpy(), scores(model, encoded()), atol=1e-6
    )
    assert view.class_layer == model.class_layer == "head"
    assert not hasattr(model.network, "_penlight_front")


@pytest.mark.parametrize("how", CASES.values(), ids=CASES.keys())
def test_every_front_has_its_gradient(how):
    """Against a gradient taken by hand, of what the front looks up."""
    model = opened(**how)
    result = GradientInput().run(ask(model))
    by_hand = opened(**how).network
    given = model.tensor(encoded()[None])
    held = []

    def hold(x):
        held.append(type(by_hand).looked_up(by_hand, x).detach().requires_grad_(True))
        return held[0]

    found = scores(model, encoded())
    index = int(found.argmax() if found.ndim == 1 else found[-1].argmax())
    by_hand.looked_up = hold
    output = by_hand(given)
    output = output[0] if isinstance(output, tuple) else output
    value = (
        output[0, index] if output.ndim == 2 else (output[0, -1] if how.get("first", True) else output[-1, 0])[index]
    )
    (gradient,) = torch.autograd.grad(value, held[0])
    factor = held[0].detach() * (2 if how.get("front") == "twice" else 1)  # of a product of two, both have their share
    if how.get("front") == "positions":  # these are no part of the text
        factor = by_hand.embedding(given).detach()
    expected = (gradient * factor).sum(-1)
    np.testing.assert_allclose(
        result.values, (expected[0] if how.get("first", True) else expected[:, 0]).numpy(), atol=1e-6
    )
    assert float(result.target) == pytest.approx(value.item(), abs=1e-5)


def test_positions_are_not_taken_for_tokens():
    model = opened(front="positions")
    ids = np.arange(13)  # a text that looks like its own positions
    view, signal = front_view(model, ids)
    np.testing.assert_allclose(signal.T, model.network.embedding.weight.detach().numpy(), atol=1e-6)
    assert view.contract.stand_in(2) == pytest.approx(signal[:, 2])


def test_networks_without_a_front_are_told(model):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(1, 2)

        def forward(self, x):
            return self.fc((x == 3).float().mean(1, keepdim=True))

    with pytest.raises(CannotRun, match="no embedding or one-hot front was found in Counts"):
        Gradient().run(ask(Model(Counts(), TextContract.of(LETTERS))))


# what is explained


def test_a_language_model_is_asked_for_its_next_character(model):
    result = Gradient().run(ask(model))
    last = scores(model, encoded())[-1]
    best = int(last.argmax())
    assert result.target.unit == f"head:{best}@{LENGTH - 1}"
    assert result.target.label == repr(LETTERS[best])
    assert float(result.target) == pytest.approx(last[best], abs=1e-5)
    assert result.target.probability == pytest.approx(np.exp(last - np.log(np.exp(last).sum()))[best], abs=1e-5)
    assert (result.step, result.tokens, result.shown) == (LENGTH - 1, tuple(TEXT), ())
    np.testing.assert_array_equal(result.input, encoded())


def test_a_classifier_is_asked_for_its_class():
    model = opened(classes=3)
    result = Gradient().run(ask(model))
    best = int(scores(model, encoded()).argmax())
    assert str(result.target) == f"head:{best} ({'xyz'[best]})"
    assert result.step is None
    assert Gradient().run(ask(model, "class:z")).target.label == "z"
    assert Gradient().run(ask(model, "probability(class:z)")).target.value < 1


def test_cells_are_explained_where_they_are_largest(model):
    found = []
    handle = model.network.get_submodule("lstm.cell_l1").register_forward_hook(
        lambda m, i, o: found.append(o[0].clone())
    )
    scores(model, encoded())
    handle.remove()
    lowest = 0
    for unit in range(7):
        cell = found[0][:, unit]
        result = Gradient().run(ask(model, f"lstm.cell_l1:{unit}"))
        step = int(cell.abs().argmax())
        assert result.target.unit == f"lstm.cell_l1:{unit}@{step}"
        assert float(result.target) == pytest.approx(float(cell[step]), abs=1e-5)
        lowest += cell.max() > 0 > cell[step]
    assert lowest  # one is larger below zero than above it
    cell = found[0][:, 3]
    asked = Gradient().run(ask(model, "lstm.cell_l1:3@20"))
    assert float(asked.target) == pytest.approx(float(cell[20]), abs=1e-5)
    assert asked.values[:21].any()
    assert not asked.values[21:].any()
    assert Gradient().run(ask(model, "class:e@5")).target.unit == "head:7@5"
    assert Gradient().run(ask(model, "mean(lstm.cell_l1:3)")).target.value == pytest.approx(
        float(cell.mean()), abs=1e-5
    )


@pytest.mark.parametrize(
    ("unit", "error", "told"),
    [
        ("head:3@99", BadUnit, f"the text has steps 0 to {LENGTH - 1}; there is no 99"),
        ("head:99", BadUnit, "has units 0 to 12; there is no 99"),
        ("lstm.cel_l0:3", UnknownName, "cell_l0"),
        ("lstm.cell_l0:*", BadUnit, "names 7 units"),
        ("probability(class:e)", BadOption, "the score is explained, not the probability"),
    ],
)
def test_units_that_are_not_there_are_told(model, unit, error, told):
    with pytest.raises(error, match=told):
        Gradient().run(ask(model, unit))


@pytest.mark.parametrize(
    ("given", "told"),
    [(np.zeros((2, 3), int), "a text is token numbers"), (np.array([1, 99]), "vocabulary has 0 to 12"), (np.zeros(0, int), "a text is"),
     (np.ones(20_001, int), "explain one of at most 20000"), (None, "an explanation is of one text")],
)  # fmt: skip
def test_texts_that_do_not_fit_are_told(model, given, told):
    with pytest.raises(BadInput, match=told):
        Gradient().run(Request(model, input=given))


@pytest.mark.parametrize("method", [Deconvnet(), GradCam()], ids=lambda m: m.name)
def test_methods_for_pictures_refuse_in_a_line(model, method):
    with pytest.raises(BadOption, match=f"{method.name} is for inputs of kind image, array, table; Reads takes text"):
        method.run(ask(model))


# how


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_every_method_gives_a_number_a_token(model, method, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.network.train()
    result = method.run(ask(model, "head:5@30"))
    assert result.values.shape == result.map.shape == (LENGTH,)
    assert result.values[:31].any()
    assert not result.values[31:].any()
    np.testing.assert_array_equal(result.values, method.run(ask(model, "head:5@30")).values)
    assert model.network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    said = json.loads(result.to_json())
    place = said["strongest"][0]["place"][0]
    assert said["strongest"][0]["token"] == TEXT[place]
    assert "".join(said["tokens"]) == TEXT
    assert load_result(result.save(tmp_path / "r")).to_dict() == result.to_dict()


def test_integrated_gradients_add_up(model):
    result = IntegratedGradients(steps=64).run(ask(model, "head:5@30"))
    change = result.evidence["value"] - result.evidence["at the baseline"]
    assert abs(change) > 1e-3
    assert float(result.values.sum()) == pytest.approx(change, abs=1e-5)


@pytest.mark.parametrize(("fill", "stand"), [("auto", " "), ("space", " "), ("unknown", "\ufffd")])
def test_occlusion_is_the_network_on_other_tokens(model, fill, stand):
    result = Occlusion(window="3", stride="2", fill=fill).run(ask(model, "head:5@30"))
    ids = encoded()
    whole, sums, counts = scores(model, ids)[30, 5], np.zeros(LENGTH), np.zeros(LENGTH)
    for start in range(0, 30, 2):
        other = ids.copy()
        other[start : min(start + 3, 31)] = LETTERS.index(stand)
        sums[start : min(start + 3, 31)] += whole - scores(model, other)[30, 5]
        counts[start : min(start + 3, 31)] += 1
    np.testing.assert_allclose(result.values, sums / np.maximum(counts, 1), atol=1e-5)
    assert result.evidence["positions"] == 15
    assert result.evidence["covered by"] == ("unknown" if fill == "unknown" else "space")


@pytest.mark.parametrize(
    ("window", "parts"),
    [("words", ["abc ", "def ", "'", "gh", "' ", "#", "abc", "\n  ", "dead "]), ("lines", ["abc def 'gh' #abc\n", "  dead "]),
     ("characters", list("abc def 'gh' #abc\n  dead "))],
)  # fmt: skip
def test_texts_are_cut_into_words_lines_and_characters(model, window, parts):
    text = "abc def 'gh' #abc\n  dead "
    result = Occlusion(window=window).run(ask(model, text=text))
    assert [text[start:stop] for start, stop in result.extras["spans"]] == parts
    cut = Lime(segments=window, samples=30).run(ask(model, text=text))
    assert list(cut.parts) == parts
    assert [len(set(cut.values[a:b].tolist())) for a, b in result.extras["spans"]] == [1] * len(parts)
    np.testing.assert_array_equal(np.bincount(cut.extras["segments"]), [len(part) for part in parts])
    assert {name for name, _ in cut.weighed()} == set(parts)


def test_short_texts_are_taken_character_by_character(model):
    assert Occlusion().run(ask(model, text="abc def")).evidence["positions"] == 7
    assert Lime(samples=20).run(ask(model, text="abc def")).evidence["cut by"] == "characters"
    assert Lime(samples=20).run(ask(model)).evidence["cut by"] == "words"


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (Occlusion(fill="rows"), "fill 'rows' is for rows of a table"),
        (Occlusion(window="words", stride="2"), "option stride is for windows of a number of tokens"),
        (Occlusion(window="0"), "option window takes numbers"),
        (Occlusion(window="99"), "window 99 is larger than the input"),
        (Occlusion(channels=True), "option channels is for inputs with axes"),
        (Lime(segments="quickshift"), "segments quickshift is for pictures"),
        (Lime(fill="segment"), "fill 'segment' is for pictures"),
    ],
)
def test_options_that_make_no_sense_are_told(model, method, told):
    with pytest.raises(BadOption, match=told):
        method.run(ask(model))


def test_a_text_of_one_part_is_told(model):
    with pytest.raises(BadInput, match="the text has 1 part of kind lines"):
        Lime(segments="lines").run(ask(model, text="abc"))
    assert Gradient().run(ask(model, text="a")).values.any()


def test_words_are_tokens_and_unknown_ones_stand_in():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.gru, self.head = nn.Embedding(5, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.gru(self.embedding(x))[0][:, -1])

    contract = TextContract.of(["<unk>", "one", "two", "!", "three"])
    model = Model(zoo.seeded(Words), contract, ["no", "yes"])
    ids = contract.encode("one two three! two")
    result = Occlusion().run(Request(model, input=ids, targets=("class:yes",)))
    assert result.tokens == ("one", "two", "three", "!", "two")
    for n in range(5):
        other = ids.copy()
        other[n] = 0
        assert result.values[n] == pytest.approx(scores(model, ids)[1] - scores(model, other)[1], abs=1e-5)
    with pytest.raises(BadOption, match="tokens are words; use words or lines"):
        Lime(segments="characters").run(Request(model, input=ids))
    with pytest.raises(BadOption, match="fill 'space' is not in the vocabulary of Words; it has unknown"):
        Occlusion(fill="space").run(Request(model, input=ids))
    assert "three" in text_fragment([result])


# long texts


def test_only_what_stands_before_the_step_is_taken(monkeypatch, model):
    monkeypatch.setattr(passage, "LIMIT", 20)
    short = Gradient().run(ask(model, "head:5@15"))
    assert short.notes == ()
    result = Gradient().run(ask(model, "head:5@30"))
    assert np.flatnonzero(result.values).min() == 11
    assert np.flatnonzero(result.values).max() == 30
    assert result.notes[0].startswith(
        f"only tokens 11 to 30 of {LENGTH} were taken: alone they give head:5@30 the value"
    )
    alone = Gradient().run(ask(model, "head:5@19", text=TEXT[11:31]))
    np.testing.assert_allclose(result.values[11:31], alone.values, atol=1e-6)
    assert f"{float(alone.target):.4g}" in result.notes[0]
    assert float(result.target) == pytest.approx(scores(model, encoded())[30, 5], abs=1e-5)
    cut = Occlusion(window="5").run(ask(model, "head:5@30"))
    assert cut.extras["spans"].min() == 11
    assert cut.extras["spans"].max() == 31
    lime = Lime(samples=30).run(ask(model, "head:5@30"))
    assert (np.flatnonzero(lime.extras["segments"] < 0) == [*range(11), *range(31, LENGTH)]).all()


def test_networks_that_look_ahead_keep_what_follows(monkeypatch):
    model = opened(both=True)
    result = Gradient().run(ask(model, "head:5@30"))
    assert result.values[31:].any()
    monkeypatch.setattr(passage, "LIMIT", 20)
    part = Gradient().run(ask(model, "head:5@30"))
    assert np.flatnonzero(part.values).min() == 21
    assert np.flatnonzero(part.values).max() == 40
    assert "only tokens 21 to 40" in part.notes[0]


# truth and looks


@pytest.mark.parametrize("method", [Occlusion(), GradientInput()], ids=lambda m: m.name)
def test_checks_take_tokens_away(model, method):
    request = ask(model, "head:5@30")
    result = method.run(request)
    numbers, curves = check(method, request, result, steps=31, draws=2, depth=2)
    assert all(numbers[name] is not None for name in ("deletion", "insertion", "sensitivity", "randomisation"))
    assert numbers["sensitivity"] < 1
    ids, order = encoded(), np.argsort(-result.values[:31], kind="stable")
    away = ids.copy()
    away[order[0]] = LETTERS.index(" ")
    whole = scores(model, ids)[30, 5]
    assert curves["deletion_curve"][0] == pytest.approx(np.sign(whole), abs=1e-4)
    if method.name == "gradient-x-input":  # no ties
        assert curves["deletion_curve"][1] == pytest.approx(scores(model, away)[30, 5] / abs(whole), abs=1e-4)


def test_pages_keep_lines_and_escape(model):
    odd = Model(model.network, TextContract.of("\ufffd\n abcdefg<&#"))
    results = [
        method.run(Request(odd, input=odd.text.encode("ab <c&\n de"))) for method in (Occlusion(), Lime(samples=40))
    ]
    page = explain_page(results, "a <text>")
    assert "a &lt;text&gt;" in page
    assert "&lt;</b>" in page
    assert "<c&" not in page
    assert "http" not in page
    assert page.count('<pre class="xt">') == 2
    pre = page.split("</pre>")[0]
    assert pre.count("\n") == 1 + page.split('<pre class="xt">')[0].count("\n")  # the text's own line
    assert pre.count("<u>") == 1  # the step that is explained
    assert "weighs most" in page


def test_letters_lie_in_lines():
    cells = laid_out("ab\ncdefg", 3)
    assert [(cell.line, cell.at, cell.text) for cell in cells] == [
        (0, 0, "a"), (0, 1, "b"), (0, 2, "\u21b5"), (1, 0, "c"), (1, 1, "d"), (1, 2, "e"), (2, 0, "f"), (2, 1, "g"),
    ]  # fmt: skip
    assert [cell.at for cell in laid_out(["one", "two"], 80)] == [0, 4]


def test_pictures_show_the_text_once_a_method(model):
    values = np.zeros(LENGTH, np.float32)
    values[[4, 30]] = 1.0, -1.0
    results = [replace(method.run(ask(model)), values=values) for method in (Gradient(), Occlusion())]
    (one,) = results[0].pictures()
    both = explain_sheet(results)
    assert both.pixels.shape[1] > 1.6 * one.pixels.shape[1]
    for picture, count in ((one.pixels, 1), (both.pixels, 2)):
        red, blue = (colours(np.array([share]), True)[0] for share in (1.0, -1.0))
        for colour in (red, blue):  # a cell of 10 by 20 pixels, less its letter
            assert 100 * count < (picture == colour).all(2).sum() < 210 * count

"""LIME on rows with categories, and on texts, against the `lime` package on the same draws."""

import numpy as np
import pytest
import torch
from lime.lime_tabular import LimeTabularExplainer
from lime.lime_text import LimeTextExplainer
from torch import nn

import zoo
from penlight.inputs import Column, Inputs, TableContract, TextContract
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.explain import lime as ours
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.lime import Lime
from penlight.techniques.explain.tabular import Bins, binned

COLOURS, GRADES = ("red", "green", "blue", "grey"), ("low", "mid", "high")
NUMBERS = (Column("worst_radius", "mm", 16, 5), Column("texture", "", 20, 4), Column("count", "", 1, 1))
MIXED = (
    NUMBERS[0],
    Column("colour", values=COLOURS),
    *NUMBERS[1:],
    Column("grade", "", 1, 0.8, values=GRADES, encoding="number"),
)


@pytest.fixture(params=[NUMBERS, MIXED], ids=["numbers", "with categories"])
def case(request):
    """(model, rows (500, columns), categorical columns): a network far from linear on rows in raw units."""
    columns = request.param
    contract = TableContract.of(columns)
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(contract.shape[0], 24), nn.ReLU(), nn.Linear(24, 2)), seed=1)
    with torch.no_grad():
        network[0].weight *= 3
    rng = np.random.default_rng(0)
    made = {
        "worst_radius": rng.normal(16, 5, 500), "texture": rng.gamma(6, 3, 500), "count": rng.integers(0, 3, 500),
        "colour": rng.choice(3, 500, p=[0.6, 0.3, 0.1]), "grade": rng.integers(0, 3, 500),
    }  # fmt: skip
    rows = np.stack([made[column.name] for column in columns], axis=1).astype(float)
    return Model(network, contract, ["benign", "malignant"]), rows, [n for n, c in enumerate(columns) if c.values]


class Noted(LimeTabularExplainer):
    """The package, which remembers what it drew: `drawn` (N, columns) of zeros and ones, and `shown` (N, columns), the rows."""

    def _LimeTabularExplainer__data_inverse(self, *args):
        found = super()._LimeTabularExplainer__data_inverse(*args)
        self.shown = found[1].copy()
        self.drawn = found[0].copy()
        return found


def theirs_for(model, rows, categories, row, samples):
    columns = model.contract.columns
    explainer = Noted(
        rows,
        feature_names=list(model.contract.names),
        categorical_features=categories,
        categorical_names={n: list(columns[n].values) for n in categories},
        feature_selection="none",
        random_state=3,
    )

    def classifier(given):
        return model.probabilities(given)

    return explainer, explainer.explain_instance(row, classifier, labels=(1,), num_samples=samples)


def forced(monkeypatch, explainer):
    """Let our coin throw the package's masks, and show the network the package's rows."""
    left = iter(explainer.drawn[1:] == 1)
    monkeypatch.setattr(ours.Streams, "of", classmethod(lambda cls, draw, *rest: cls(left, left, 1)))

    def apply(parts, masks, first):
        np.testing.assert_array_equal(masks, explainer.drawn[first : first + len(masks)] == 1)
        return parts._model.tensor(explainer.shown[first : first + len(masks)])

    monkeypatch.setattr(Bins, "apply", apply)


@pytest.mark.parametrize("number", [4, 17])
def test_the_same_draws_give_the_coefficients_of_the_package(monkeypatch, case, number):
    model, rows, categories = case
    row = rows[number]
    explainer, theirs = theirs_for(model, rows, categories, row, 900)
    forced(monkeypatch, explainer)
    data = Inputs([(f"row {n}", one) for n, one in enumerate(rows)])
    request = Request(model, targets=("class:malignant",), input=row, data=data)
    result = Lime(samples=900, sampling="bernoulli", of="probability").run(request)

    expected = [weight for _, weight in sorted(theirs.local_exp[1])]
    assert np.abs(expected).max() > 0.02
    np.testing.assert_allclose(result.values, expected, atol=1e-4)
    assert result.values.shape == (len(model.contract.columns),)
    assert result.evidence["r2"] == pytest.approx(theirs.score, abs=1e-4)
    assert result.evidence["intercept"] == pytest.approx(theirs.intercept[1], abs=1e-4)
    assert result.evidence["linear model"] == pytest.approx(theirs.local_pred[0], abs=1e-4)
    assert result.evidence["samples"] == 900

    told = dict(zip((n for n, _ in theirs.as_map()[1]), (name for name, _ in theirs.as_list(1)), strict=True))
    for n, part in enumerate(result.parts):  # the same rules, theirs with two decimals and without units
        assert _rule(part.removesuffix(" mm")) == pytest.approx(_rule(told[n]), abs=6e-3)


def _rule(text):
    return [float(w) if w.lstrip("-").replace(".", "").isdigit() else w for w in text.replace("=", " = ").split()]


def test_categories_are_drawn_as_often_as_in_the_package(case):
    model, rows, categories = case
    explainer, _ = theirs_for(model, rows, categories, rows[0], 5000)
    data = Inputs([(f"row {n}", one) for n, one in enumerate(rows)])
    scene = open_scene(Request(model, input=rows[0], data=data))
    parts = binned(scene, data)
    masks = np.random.default_rng(1).random((4000, parts.count)) < parts.chance
    made = parts.apply(masks, 7).double().numpy()
    contract = model.contract
    for n, column in enumerate(contract.columns):
        np.testing.assert_allclose(parts.columns[n].share[parts.columns[n].share > 0], explainer.feature_frequencies[n])
        inputs = made[:, contract.owners == n]
        values = inputs.argmax(1) if column.width > 1 else inputs[:, 0] * column.std + column.mean
        if column.width > 1:
            assert (inputs.sum(1) == 1).all()
        if n in categories:
            values = values.round()
            np.testing.assert_array_equal(values == rows[0, n], masks[:, n])
            found = [(values == v).mean() for v in range(len(column.values))]
            theirs = [(explainer.shown[:, n] == v).mean() for v in range(len(column.values))]
            np.testing.assert_allclose(found, theirs, atol=0.03)


class Reader(nn.Module):
    """Scores of a text in two classes."""

    def __init__(self, words):
        super().__init__()
        self.embedding = nn.Embedding(words, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.lstm(self.embedding(x))[0].amax(1)) * 6


CASES = {
    "characters": ("the cat sat!", TextContract.of(" !\n" + "abcehst"), " ", {"char_level": True}),
    "words": (
        "one two three two one four",
        TextContract.of(["<unk>", "one", "two", "three", "four"], pattern=r"\w+"),
        "UNKWORDZ",
        {},
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_texts_get_the_coefficients_of_the_text_explainer(monkeypatch, kind):
    text, contract, hidden, how = CASES[kind]
    model = Model(zoo.seeded(lambda: Reader(len(contract.vocabulary)), seed=2), contract, ["no", "yes"])
    explainer = LimeTextExplainer(bow=False, mask_string=hidden, feature_selection="none", random_state=5, **how)
    drawn = []
    fit = explainer.base.explain_instance_with_data
    explainer.base.explain_instance_with_data = lambda data, *rest, **more: (
        drawn.append(data) or fit(data, *rest, **more)
    )

    def classifier(texts):
        return np.concatenate([model.probabilities(contract.encode(one)[None]) for one in texts])

    theirs = explainer.explain_instance(text, classifier, labels=(1,), num_samples=200)
    left = iter(drawn[0][1:] == 1)
    monkeypatch.setattr(ours.Streams, "of", classmethod(lambda cls, draw, *rest: cls(left, left, 1)))
    monkeypatch.setattr(ours.Plan, "takes_every", lambda plan, count: False)
    method = Lime(samples=200, sampling="bernoulli", of="probability", segments=kind)
    result = method.run(Request(model, targets=("class:yes",), input=contract.encode(text)))

    expected = [weight for _, weight in sorted(theirs.local_exp[1])]
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(result.extras["weights"], expected, atol=1e-4)
    np.testing.assert_allclose(result.values, expected, atol=1e-4)
    assert result.evidence["r2"] == pytest.approx(theirs.score, abs=1e-4)
    assert result.evidence["intercept"] == pytest.approx(theirs.intercept[1], abs=1e-4)

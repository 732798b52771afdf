"""Class activation maps against Captum's and against the papers' formulas written again in NumPy."""

import warnings

import captum.attr as captum
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadOption, UnknownName
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.contract import Request
from penlight.techniques.explain.cam import GradCam, GradCamPlusPlus, GuidedGradCam, ScoreCam

TOLERANCE = 1e-5


class Small(nn.Module):
    """As Captum's toy network: convolutions, in-place ReLUs, pools, two linear layers."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.fc1, self.relu3, self.fc2 = nn.Linear(6 * 2 * 3, 8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


def sharp():
    """The same with scores far apart, so that probabilities differ by more than their rounding."""
    network = Small()
    with torch.no_grad():
        network.fc2.weight.mul_(30)
    return network


def squeezenet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_torchvision().models.squeezenet1_0(weights=None)


def opened(network, *shape):
    return Model(network.eval(), InputContract("array", shape))


def given(*shape, seed=1):
    return np.random.default_rng(seed).random(shape, np.float32)


NETWORKS = {
    "small": (lambda: opened(zoo.seeded(Small), 1, 14, 18), ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2"]),
    "squeezenet": (lambda: opened(zoo.seeded(squeezenet), 3, 64, 80), ["features.12"]),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    make, layers = NETWORKS[request.param]
    model = make()
    return model, layers, given(*model.contract.shape)


def peer(model, path, x, target, kind=captum.LayerGradCam, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explainer = kind(model.network, model.network.get_submodule(path))
        return explainer.attribute(torch.from_numpy(x)[None], target=target, **options)[0].detach().numpy()


def near(ours, theirs):
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


@pytest.mark.parametrize("relu", [True, False])
def test_grad_cam_equals_captum(network, relu):
    model, layers, x = network
    for path in layers:
        for target in (0, 2):
            theirs = peer(model, path, x, target, relu_attributions=relu)[0]
            if not theirs.any():
                continue
            result = GradCam(path, relu).run(Request(model, targets=[f"class:{target}"], input=x))
            near(result.values, theirs)
            assert result.signed is not relu
            assert relu == bool((result.values >= 0).all()) or (result.values >= 0).all()


@pytest.mark.parametrize("mode", ["nearest", "smooth"])
def test_guided_grad_cam_equals_captum(network, mode):
    model, layers, x = network
    theirs = {"nearest": "nearest", "smooth": "bilinear"}[mode]
    compared = 0
    for path in layers:
        for target in (0, 1, 2):
            expected = peer(model, path, x, target, captum.GuidedGradCam, interpolate_mode=theirs)
            if not np.abs(expected).max() > 0:
                continue
            near(GuidedGradCam(path, mode).run(Request(model, targets=[f"class:{target}"], input=x)).values, expected)
            compared += 1
    assert compared >= len(layers)


def test_a_hidden_unit_at_a_place_equals_captum():
    model, x = opened(zoo.seeded(Small), 1, 14, 18), given(1, 14, 18)
    cut = nn.Sequential(*[getattr(model.network, n) for n in ("conv1", "relu1", "pool1", "conv2")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = captum.LayerGradCam(cut, cut[2]).attribute(torch.from_numpy(x)[None], target=(3, 1, 2))
    result = GradCam("pool1", relu=False).run(Request(model, targets=["conv2:3@1,2"], input=x))
    near(result.values, expected[0, 0].detach().numpy())


# the papers' formulas, in 64 bits, with the network's own layers as plain functions of NumPy arrays


def split(model, x, path):
    """(maps, gradient) in NumPy, by running what follows `path` as a network of its own."""
    names = ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2"]
    at = names.index(path) + 1
    first, rest = ([getattr(model.network, n) for n in part] for part in (names[:at], names[at:]))
    with torch.no_grad():
        maps = nn.Sequential(*first)(torch.from_numpy(x)[None].clone())
    leaf = maps.clone().requires_grad_()

    def after(t):
        t = nn.Sequential(*rest)(t.clone()) if rest else t
        return model.network.fc2(model.network.relu3(model.network.fc1(t.flatten(1))))

    after(leaf)[0, 2].backward()
    return maps[0].numpy().astype(np.float64), leaf.grad[0].numpy().astype(np.float64)


@pytest.mark.parametrize("path", ["relu1", "pool1", "pool2", "conv1", "conv2"])
def test_grad_cam_plus_plus_is_the_papers_formula(path):
    model, x = opened(zoo.seeded(Small), 1, 14, 18), given(1, 14, 18)
    maps, g = split(model, x, path)
    score = float(model.network(torch.from_numpy(x)[None])[0, 2].detach())
    first, second, third = (np.exp(score) * g**n for n in (1, 2, 3))  # of exp(score), equation 10 ff.
    total = np.maximum(maps, 0).sum((1, 2), keepdims=True)  # the paper's maps are never below zero
    below = 2 * second + total * third
    alpha = np.divide(second, below, out=np.zeros_like(g), where=below != 0)
    weights = (alpha * np.maximum(first, 0)).sum((1, 2))
    expected = (weights[:, None, None] * maps).sum(0)
    asked = Request(model, targets=["class:2"], input=x)
    near(GradCamPlusPlus(path, relu=False).run(asked).values, expected / np.exp(score))
    kept = GradCamPlusPlus(path).run(asked)
    np.testing.assert_array_equal(kept.values, np.maximum(GradCamPlusPlus(path, relu=False).run(asked).values, 0))
    assert (maps < 0).any() == path.startswith("conv")


def bilinear(small, height, width):
    """A map enlarged between the middles of its places, borders repeated."""

    def matrix(out, inside):
        rows = np.zeros((out, inside))
        for n in range(out):
            at = min(max((n + 0.5) * inside / out - 0.5, 0), inside - 1)
            low = min(int(at), inside - 1)
            rows[n, low] += 1 - (at - low)
            rows[n, min(low + 1, inside - 1)] += at - low
        return rows

    return matrix(height, small.shape[0]) @ small @ matrix(width, small.shape[1]).T


def score_cam(model, x, path, *, of, weighting, empty=0.0):
    """Wang et al. 2020, algorithm 1, one map at a time."""
    maps, _ = split(model, x, path)

    def value(picture):
        with torch.no_grad():
            out = model.network(torch.from_numpy(picture.astype(np.float32))[None])[0].numpy().astype(np.float64)
        return np.exp(out[2]) / np.exp(out).sum() if of == "probability" else out[2]

    used, scores = [], []
    for n, one in enumerate(maps):
        large = bilinear(one, *x.shape[1:])
        if large.max() == large.min():
            continue
        mask = (large - large.min()) / (large.max() - large.min())
        used.append(n)
        scores.append(value(empty + (x - empty) * mask) - value(np.full_like(x, empty)))
    weights = np.array(scores)
    if weighting == "softmax":
        weights = np.exp(weights) / np.exp(weights).sum()
    return (weights[:, None, None] * maps[used]).sum(0)


@pytest.mark.parametrize("of", ["probability", "value"])
@pytest.mark.parametrize("weighting", ["softmax", "score"])
@pytest.mark.parametrize("path", ["pool1", "pool2"])
def test_score_cam_is_the_papers_algorithm(of, weighting, path):
    model, x = opened(zoo.seeded(sharp), 1, 14, 18), given(1, 14, 18)
    asked, expected = (
        Request(model, targets=["class:2"], input=x),
        score_cam(model, x, path, of=of, weighting=weighting),
    )
    near(ScoreCam(path, relu=False, score=of, weighting=weighting).run(asked).values, expected)
    kept = ScoreCam(path, score=of, weighting=weighting).run(asked).values
    np.testing.assert_allclose(kept, np.maximum(expected, 0), atol=TOLERANCE * np.abs(expected).max())


def test_score_cam_starts_from_what_is_asked_for():
    model, x = Model(zoo.seeded(sharp).eval(), InputContract("array", (1, 14, 18), (0.5,), (0.25,))), given(1, 14, 18)
    seen = (x - 0.5) / 0.25
    result = ScoreCam("pool1", relu=False, fill="black").run(Request(model, targets=["class:2"], input=x))
    near(result.values, score_cam(model, seen, "pool1", of="probability", weighting="score", empty=-2.0))


def test_score_cam_of_the_maps_that_vary_most():
    model, x = opened(zoo.seeded(sharp), 1, 14, 18), given(1, 14, 18)
    with torch.no_grad():
        model.network.conv2.bias.copy_(torch.arange(6.0))  # so that those that vary most are not the largest
    maps, _ = split(model, x, "pool2")
    most = sorted(np.argsort(-maps.var((1, 2)))[:2].tolist())
    assert most != sorted(np.argsort(-maps.mean((1, 2)))[:2].tolist())
    steps = []
    asked = Request(model, targets=["class:2"], input=x, progress=lambda done, of: steps.append((done, of)))
    part = ScoreCam("pool2", relu=False, channels=2, score="value").run(asked).values
    assert steps[-1] == (2, 2)
    basis = maps[most].reshape(2, -1).T  # the map is a mix of just these two
    left = part.ravel() - basis @ np.linalg.lstsq(basis, part.ravel(), rcond=None)[0]
    assert np.abs(left).max() < 1e-5 * np.abs(part).max()
    assert np.abs(part).max() > 0


# where the map is taken


def timm_model(name, size, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import timm

        return opened(zoo.seeded(lambda: timm.create_model(name, pretrained=False, **options)), 3, *size)


LAST = [
    ("vit_tiny_patch16_224", {"img_size": (64, 96)}, (64, 96), "blocks.11.norm1", (4, 6), 1),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}, (64, 64), "blocks.11.norm1", (4, 4), 2),
    ("vit_little_patch16_reg4_gap_256", {"img_size": 64}, (64, 64), "blocks.13", (4, 4), 4),
    ("swin_tiny_patch4_window7_224", {"img_size": (64, 96), "window_size": 4}, (64, 96), "norm", (2, 3), None),
    ("convnext_atto", {}, (64, 96), "stages.3.blocks.1", (2, 3), None),
]


@pytest.mark.parametrize(("name", "options", "size", "path", "shape", "extra"), LAST)
def test_the_last_layer_whose_places_reach_the_aim(name, options, size, path, shape, extra):
    model = timm_model(name, size, **options)
    asked = Request(model, targets=["class:3"], input=given(3, *size))
    for technique in (GradCam(relu=False), GradCamPlusPlus(relu=False), ScoreCam(relu=False, channels=3)):
        result = technique.run(asked)
        assert result.evidence["layer"] == path
        assert result.evidence.get("tokens that are no place") == extra
        assert result.values.shape == shape
        assert np.ptp(result.values) > 0
    assert GuidedGradCam().run(asked).values.shape == (3, *size)


def test_tokens_are_weighted_by_the_mean_gradient_of_the_places():
    model = opened(zoo.seeded(zoo.Tokens), 3, 16, 16)
    x = given(3, 16, 16)
    network = model.network
    with torch.no_grad():
        tokens = network.patch(torch.from_numpy(x)[None]).flatten(2).transpose(1, 2)
        normed = network.norm(torch.cat([network.cls, tokens], 1))
    normed.requires_grad_()
    network.head(network.mix(normed, normed, normed)[0][:, 0])[0, 1].backward()
    maps, slope = (t.detach()[0, 1:].numpy() for t in (normed, normed.grad))
    expected = (maps @ slope.mean(0)).reshape(4, 4)
    result = GradCam(relu=False).run(Request(model, targets=["class:1"], input=x))
    assert result.evidence["layer"] == "norm"
    near(result.values, expected)


class Attention(nn.Module):
    """With a projection each for queries, keys and values, as wide as the tokens."""

    def __init__(self):
        super().__init__()
        self.norm, self.query, self.key, self.value = nn.LayerNorm(8), *(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        n = self.norm(x)
        return x + (self.query(n) @ self.key(n).mT).softmax(-1) @ self.value(n)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.cut, self.token = nn.Conv2d(3, 8, 4, 4), nn.Parameter(torch.zeros(1, 1, 8))
        self.one, self.two, self.head = Attention(), Attention(), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.cut(x).flatten(2).mT], 1)
        return self.head(self.two(self.one(x))[:, 0])


def test_a_projection_is_no_token():
    model = opened(zoo.seeded(Transformer), 3, 8, 12)
    assert GradCam().run(Request(model, input=given(3, 8, 12))).evidence["layer"] == "two.norm"


def test_tokens_of_a_signal_are_rows_too():
    class Series(Transformer):
        def __init__(self):
            super().__init__()
            self.cut = nn.Conv1d(2, 8, 5, 5)

    model = opened(zoo.seeded(Series), 2, 40)
    result = GradCam(relu=False).run(Request(model, input=given(2, 40)))
    assert (result.evidence["layer"], result.values.shape) == ("two.norm", (8,))


def test_a_layer_of_which_only_the_class_token_counts_is_told():
    model = timm_model("vit_tiny_patch16_224", (32, 32), img_size=32)
    result = GradCam("blocks.11").run(Request(model, targets=["class:3"], input=given(3, 32, 32)))
    assert not result.values.any()
    assert any("no gradient at the places of 'blocks.11'" in note for note in result.notes)


def test_signals_and_volumes(open_zoo):
    model = open_zoo("signal")
    for technique in (GradCam(), GradCamPlusPlus(), ScoreCam()):
        assert technique.run(Request(model, input=given(2, 40))).values.shape == (16,)
    assert GuidedGradCam().run(Request(model, input=given(2, 40))).values.shape == (2, 40)
    body = [nn.Conv3d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)]
    volume = opened(zoo.seeded(lambda: nn.Sequential(*body)), 1, 7, 9, 11)
    for technique in (GradCam(), ScoreCam()):
        assert technique.run(Request(volume, input=given(1, 7, 9, 11))).values.shape == (3, 4, 5)


def test_the_aim_may_be_any_unit(open_zoo):
    model = open_zoo("functional")
    x = given(1, 16, 16)
    for unit in ("conv2:1@2,3", "conv2:1", "mean(conv2:1)", "probability(class:1)"):
        result = GradCam(relu=False).run(Request(model, targets=[unit], input=x))
        assert result.evidence["layer"] == ("conv2" if "class" in unit else "conv1")
        assert result.values.any()


def test_a_branch_that_does_not_lead_there_is_not_taken():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.side, self.head = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 2, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.conv(x)
            self.side(x)
            return self.head(x.mean((2, 3)))

    model = opened(zoo.seeded(Branches), 1, 8, 8)
    asked = Request(model, targets=["class:0"], input=given(1, 8, 8))
    assert GradCam().run(asked).evidence["layer"] == "conv"
    with pytest.raises(BadOption, match="head:0 does not depend on layer 'side'"):
        GradCam("side").run(asked)


def test_what_cannot_be_is_said(open_zoo):
    model, x = open_zoo("functional"), given(1, 16, 16)
    asked = Request(model, targets=["class:0"], input=x)
    with pytest.raises(UnknownName, match="conv2"):
        GradCam("conv22").run(asked)
    with pytest.raises(BadOption, match="layer 'fc' does not run before it"):
        GradCam("fc").run(asked)
    with pytest.raises(BadOption, match="layer 'conv2' does not run before it"):
        GradCam("conv2").run(Request(model, targets=["conv2:0"], input=x))
    with pytest.raises(BadOption, match="no layer before 'conv1'"):
        ScoreCam().run(Request(model, targets=["conv1:0"], input=x))
    with pytest.raises(BadOption, match=r"layer 'pool' puts out \[6, 1, 1\]"):
        GradCam("pool").run(Request(open_zoo("in-place"), input=given(3, 12, 20)))
    for technique in (GradCam(), GradCamPlusPlus(), GuidedGradCam(), ScoreCam()):
        with pytest.raises(BadOption, match="row of numbers"):
            technique.run(Request(open_zoo("table"), input=given(7)))


def test_an_empty_map_says_so():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 6 * 6, 2))
    with torch.no_grad():
        network[0].bias.fill_(1.0)
        network[3].weight.fill_(-1.0)
    model = opened(network, 1, 8, 8)
    asked = Request(model, targets=["class:0"], input=given(1, 8, 8))
    assert any("nothing in '1' speaks for the unit" in note for note in GradCam().run(asked).notes)
    against = GradCam(relu=False).run(asked)
    assert (against.values <= 0).all()
    assert against.values.any()
    assert not against.notes


@pytest.mark.parametrize("technique", [GradCam(), GradCamPlusPlus(), GuidedGradCam(), ScoreCam()])
def test_nothing_is_left_behind(technique):
    network = zoo.seeded(Small).train()
    model = penlight.load(network, example=torch.zeros(1, 1, 14, 18))
    technique.run(Request(model, input=given(1, 14, 18)))
    assert all(m.training and not m._forward_hooks for m in network.modules())
    assert all(p.requires_grad and p.grad is None for p in network.parameters())


def test_a_layer_that_is_found_is_read_behind_its_relu(open_zoo):
    """A function's ReLU is no layer, but what it puts out is what the papers weigh."""
    x = given(1, 16, 16)
    found = {}
    for name in ("functional", "viewing"):
        found[name] = GradCam().run(Request(open_zoo(name), targets=["class:1"], input=x))
        assert found[name].evidence["read"] == "behind its ReLU"
    network = open_zoo("functional").network
    with torch.enable_grad():
        maps = F.relu(network.conv2(F.max_pool2d(F.relu(network.conv1(torch.from_numpy(x[None]))), 2)))
        maps.retain_grad()
        network.fc(F.max_pool2d(maps, 2).flatten(1))[0, 1].backward()
    expected = torch.relu((maps.grad.mean((2, 3), keepdim=True) * maps).sum(1))[0].detach().numpy()
    for result in found.values():
        np.testing.assert_allclose(result.values, expected, atol=1e-6)
    named = GradCam(layer="conv2").run(Request(open_zoo("functional"), targets=["class:1"], input=x))
    assert "read" not in named.evidence
    assert np.abs(named.values - expected).max() > 1e-4
    on = GradCam(layer="conv2", rectified="on").run(Request(open_zoo("functional"), targets=["class:1"], input=x))
    np.testing.assert_allclose(on.values, expected, atol=1e-6)

"""LRP against rules worked out in NumPy, Captum's, zennit's, and what must hold whatever the network is."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadOption, CannotRun
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.contract import Request
from penlight.techniques.explain.lrp import COMPOSITES, LRP
from penlight.techniques.explain.relevance import Epsilon, Rules
from penlight.techniques.explain.relevance_ops import POLICIES
from penlight.techniques.explain.relevance_pass import RelevancePass, strange
from penlight.techniques.options import build


def explained(network, given, unit=None, *, mean=None, std=None, **options):
    model = penlight.load(network, example=torch.zeros(1, *given.shape), mean=mean, std=std)
    targets = () if unit is None else (unit,)
    return build(LRP, options).run(Request(model, input=given, targets=targets))


def picture(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def close(found, wanted, tolerance=1e-5):
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    scale = max(1.0, np.abs(wanted).max())
    assert np.isfinite(found).all()
    assert np.abs(wanted).max() > 0
    assert np.abs(found - wanted).max() <= tolerance * scale


# ---------------------------------------------------------------- by hand


W1 = np.array([[1.0, -2.0, 0.5], [-1.0, 3.0, 2.0]])
B1 = np.array([0.25, -0.5])
W2 = np.array([[2.0, -1.0], [1.0, 1.5]])
B2 = np.array([0.5, -0.25])
X = np.array([0.9, 0.2, 0.7])


def two_layers():
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        for layer, weight, bias in ((network[0], W1, B1), (network[2], W2, B2)):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return network


def by_hand(share, first=None):
    """Relevance of X for unit 0, element by element: `share(x, w, b)` gives each input's part of one output."""
    hidden = np.maximum(W1 @ X + B1, 0)
    start = (W2 @ hidden + B2)[0]
    middle = share(hidden, W2[0], B2[0]) * start
    return sum((first or share)(X, W1[j], B1[j]) * middle[j] for j in range(2))


def epsilon_share(x, w, b):
    z = x @ w + b
    return x * w / (z + 1e-6 * np.where(z < 0, -1, 1))


def gamma_share(x, w, b):
    z = x @ w + b
    sign = 1 if z > 0 else -1
    more = w + 0.25 * np.where(w * sign > 0, w, 0)
    bias = b + 0.25 * (b if b * sign > 0 else 0)
    return x * more / (x @ more + bias + sign * 1e-6) if z != 0 else 0 * x


def alpha_beta_share(x, w, b):
    up, down = np.maximum(w, 0), np.minimum(w, 0)
    above, below = x @ up + max(b, 0), x @ down + min(b, 0)
    return 2 * x * up / (above + 1e-6) - x * down / (below - 1e-6 if below < 0 else 1e-6)


def box_share(x, w, b):
    down = np.minimum(w, 0)  # the box is [0, 1]: low = 0, high = 1
    z = x @ w - np.ones(3) @ down + b - max(b, 0) - min(b, 0)
    return (x * w - down) / (z + 1e-6)


@pytest.mark.parametrize(
    ("options", "share", "first"),
    [
        ({"composite": "epsilon"}, epsilon_share, None),
        ({"composite": "gamma"}, gamma_share, None),
        ({"composite": "alpha-beta"}, alpha_beta_share, None),
        ({"composite": "epsilon", "first": "z-box"}, epsilon_share, box_share),
        ({"composite": "epsilon", "first": "w-square"}, epsilon_share, lambda x, w, b: w**2 / (w @ w + b**2 + 1e-6)),
        ({"composite": "epsilon", "first": "flat"}, epsilon_share, lambda x, w, b: np.ones(3) / (3 + 1e-6)),
    ],
)
def test_two_layers_by_hand(options, share, first):
    result = explained(two_layers(), X.astype(np.float32), "2:0", **options)
    close(result.values, by_hand(share, first))


def test_z_box_takes_the_bounds_after_normalisation():
    """(x − mean) / std written into the contract, or into the weights, is the same question."""
    mean, std, given = [0.4, 0.5, 0.6], [0.2, 0.5, 0.3], picture(3, 6, 6)
    outside = zoo.seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)))

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = outside

        def forward(self, x):
            return self.body((x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])

    one = explained(outside, given, "3:1", mean=mean, std=std, composite="epsilon-gamma-box")
    # the network's own normalisation subtracts a constant, a bias; where it is none of the relevance, the two agree
    two = explained(Inside(), given, "body.3:1", composite="epsilon-gamma-box", bias=False)
    three = explained(outside, given, "3:1", mean=mean, std=std, composite="epsilon-gamma-box", bias=False)
    close(two.values, three.values, 1e-4)
    assert not np.allclose(one.values, three.values, atol=1e-4)


# ---------------------------------------------------------------- Captum


def convnet():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(32, 7),
        nn.ReLU(),
        nn.Linear(7, 4),
    )


def stirred(network, seed=1):
    """Batch statistics and affine parameters away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low in ((module.running_mean, -0.3), (module.running_var, 0.5), (module.weight.data, 0.5)):
                values.copy_(torch.rand(values.shape, generator=generator) + low)
            module.bias.data.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return network.eval()


def by_captum(network, x, target, rule):
    from captum.attr import LRP as Theirs
    from captum.attr._utils.lrp_rules import EpsilonRule

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.rule = rule
        elif isinstance(module, nn.Flatten | nn.BatchNorm2d):
            module.rule = EpsilonRule()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Theirs(network).attribute(x, target=target)[0].detach().numpy()


def captum_rule(name):
    from captum.attr._utils import lrp_rules as rules

    return {
        "epsilon": rules.EpsilonRule(),
        "gamma": rules.GammaRule(),
        "z-plus": rules.Alpha1_Beta0_Rule(),
        "gamma without bias": rules.GammaRule(set_bias_to_zero=True),
    }[name]


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z-plus"])
def test_agrees_with_captum(rule):
    network, given = stirred(zoo.seeded(convnet)), picture(3, 13, 11) - np.float32(0.5)
    model = penlight.load(network, example=torch.zeros(1, 3, 13, 11), mean=[0.5], std=[1.0])
    technique = LRP(composite=rule, epsilon=1e-9, convention="captum", batch_norm="epsilon")
    found = technique.run(Request(model, input=given + np.float32(0.5), targets=("11:2",)))
    wanted = by_captum(network, torch.from_numpy(given)[None], 2, captum_rule(rule))
    close(found.values, wanted)


def test_agrees_with_captum_without_biases():
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5), nn.ReLU(), nn.Linear(5, 3)))
    given = picture(6)
    found = explained(network, given, "4:1", composite="gamma", convention="captum", epsilon=1e-9, bias=False)
    wanted = by_captum(network, torch.from_numpy(given)[None], 1, captum_rule("gamma without bias"))
    close(found.values, wanted)


# ---------------------------------------------------------------- SqueezeNet


class Fire(nn.Module):
    """As in torchvision: two convolutions side by side, in-place ReLUs, concatenated."""

    def __init__(self, given, squeeze, expand):
        super().__init__()
        self.squeeze, self.squeeze_activation = nn.Conv2d(given, squeeze, 1), nn.ReLU(inplace=True)
        self.expand1x1, self.expand1x1_activation = nn.Conv2d(squeeze, expand, 1), nn.ReLU(inplace=True)
        self.expand3x3, self.expand3x3_activation = nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.squeeze_activation(self.squeeze(x))
        return torch.cat(
            [self.expand1x1_activation(self.expand1x1(x)), self.expand3x3_activation(self.expand3x3(x))], 1
        )


def squeezenet():
    """SqueezeNet 1.1 with 30 classes and random weights."""
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)  # noqa: E731
    sizes = [
        (64, 16, 64),
        (128, 16, 64),
        (128, 32, 128),
        (256, 32, 128),
        (256, 48, 192),
        (384, 48, 192),
        (384, 64, 256),
        (512, 64, 256),
    ]
    fires = [Fire(*size) for size in sizes]
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.ReLU(inplace=True),
        *(pool(), *fires[:2], pool(), *fires[2:4], pool(), *fires[4:]),
        nn.Dropout(0.5),
        nn.Conv2d(512, 30, 1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )


def loud(network, gain=2.0):
    """Weights large enough that something arrives at the output."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(gain)
    return network.eval()


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z-plus"])
def test_agrees_with_captum_on_squeezenet(rule):
    network, given = loud(zoo.seeded(squeezenet)), picture(3, 63, 63)
    model = penlight.load(network, example=torch.zeros(1, 3, 63, 63), mean=[0.5], std=[0.25])
    technique = LRP(composite=rule, epsilon=1e-9, convention="captum", batch_norm="epsilon")
    found = technique.run(Request(model, input=given))
    target = int(found.target.unit.rpartition(":")[2])
    wanted = by_captum(network, model.tensor(given[None]), target, captum_rule(rule))
    close(found.values / np.abs(wanted).max(), wanted / np.abs(wanted).max())


# ---------------------------------------------------------------- zennit


@pytest.fixture
def zennit():
    """zennit imports torchvision, which needs Penlight's way around its missing operators here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()
        import zennit.composites
    return zennit


def by_zennit(network, x, target, composite):
    from zennit.attribution import Gradient

    def start(output):
        hot = torch.zeros_like(output)
        hot[:, target] = output.detach()[:, target]
        return hot

    with Gradient(network, composite) as attributor:
        return attributor(x, start)[1][0].detach().numpy()


def zennit_composites(low, high):
    from zennit import composites as z
    from zennit.rules import AlphaBeta, Epsilon, Gamma, WSquare, ZPlus
    from zennit.types import Linear

    def everywhere(rule):
        return z.LayerMapComposite([*z.layer_map_base(), (Linear, rule)])

    first = [(Linear, WSquare())]
    return {
        "epsilon": (everywhere(Epsilon()), {}),
        "epsilon 0.25": (everywhere(Epsilon(0.25)), {"composite": "epsilon", "epsilon": 0.25}),
        "epsilon without bias": (everywhere(Epsilon(zero_params="bias")), {"composite": "epsilon", "bias": False}),
        "gamma": (everywhere(Gamma(0.25)), {}),
        "gamma 2": (everywhere(Gamma(2.0)), {"composite": "gamma", "gamma": 2.0}),
        "alpha-beta": (everywhere(AlphaBeta(2, 1)), {}),
        "alpha 3": (everywhere(AlphaBeta(3, 2)), {"composite": "alpha-beta", "alpha": 3.0}),
        "z-plus": (everywhere(ZPlus()), {}),
        "w-square": (
            z.SpecialFirstLayerMapComposite([*z.layer_map_base(), (Linear, Epsilon())], first),
            {"composite": "epsilon", "first": "w-square"},
        ),
        "epsilon-plus": (z.EpsilonPlus(), {}),
        "epsilon-plus-flat": (z.EpsilonPlusFlat(), {}),
        "epsilon-gamma-box": (z.EpsilonGammaBox(low, high), {}),
        "epsilon-alpha2-beta1": (z.EpsilonAlpha2Beta1(), {}),
        "epsilon-alpha2-beta1-flat": (z.EpsilonAlpha2Beta1Flat(), {}),
    }


ZENNIT = [
    "epsilon",
    "epsilon 0.25",
    "epsilon without bias",
    "gamma",
    "gamma 2",
    "alpha-beta",
    "alpha 3",
    "z-plus",
    "w-square",
    "epsilon-plus",
    "epsilon-plus-flat",
    "epsilon-gamma-box",
    "epsilon-alpha2-beta1",
    "epsilon-alpha2-beta1-flat",
]


def against_zennit(network, given, name, unit_layer, batch_norm, canonizers=()):
    mean, std = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]
    model = penlight.load(network, example=torch.zeros(1, *given.shape), mean=mean, std=std)
    low = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[None, :, None, None]
    high = torch.tensor([(1 - m) / s for m, s in zip(mean, std, strict=True)])[None, :, None, None]
    composite, options = zennit_composites(low, high)[name]
    composite.canonizers.extend(canonizers)
    options = {"composite": name, **options, "batch_norm": batch_norm}
    found = build(LRP, options).run(Request(model, input=given, targets=() if unit_layer is None else (unit_layer,)))
    target = int(found.target.unit.rpartition(":")[2])
    wanted = by_zennit(network, model.tensor(given[None]), target, composite)
    scale = np.abs(wanted).max()
    close(found.values / scale, wanted / scale)


@pytest.mark.parametrize("name", ZENNIT)
def test_agrees_with_zennit(zennit, name):
    network = stirred(zoo.seeded(convnet))
    if name == "epsilon without bias":
        network[1] = nn.Identity()  # a norm's shift is a bias to us, and not to zennit
    against_zennit(network, picture(3, 13, 11), name, "11:2", "pass")


@pytest.mark.parametrize("name", ["epsilon", "epsilon-gamma-box", "epsilon-plus-flat"])
def test_agrees_with_zennit_where_it_merges_norms(zennit, name):
    from zennit.canonizers import SequentialMergeBatchNorm

    network = stirred(zoo.seeded(convnet))
    against_zennit(network, picture(3, 13, 11), name, "11:2", "merged", [SequentialMergeBatchNorm()])


@pytest.mark.parametrize("name", ["epsilon", "epsilon-gamma-box", "epsilon-plus-flat", "epsilon-alpha2-beta1"])
def test_agrees_with_zennit_on_squeezenet(zennit, name):
    against_zennit(loud(zoo.seeded(squeezenet)), picture(3, 63, 63), name, None, "merged")


def test_agrees_with_zennit_on_a_transposed_convolution_and_a_residual(zennit):
    from zennit.composites import EpsilonPlus
    from zennit.layer import Sum

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.up = nn.Conv2d(2, 4, 3, stride=2), nn.ConvTranspose2d(4, 4, 3, padding=1)
            self.act, self.sum, self.head = nn.GELU(), Sum(), nn.Linear(4, 3)

        def forward(self, x):
            x = self.act(self.stem(x))
            x = self.sum(torch.stack([x, self.act(self.up(x))], -1))
            return self.head(x.amax((2, 3)))

    class Written(Block):
        def forward(self, x):
            x = F.gelu(self.stem(x))
            x = x + F.gelu(self.up(x))
            return self.head(x.amax((2, 3)))

    theirs, ours = zoo.seeded(Block).eval(), zoo.seeded(Written).eval()
    given = picture(2, 9, 9)
    wanted = by_zennit(theirs, torch.from_numpy(given)[None], 1, EpsilonPlus())
    close(explained(ours, given, "head:1", composite="epsilon-plus").values, wanted)


# ---------------------------------------------------------------- what must hold


class Written(nn.Module):
    """`convnet` with everything as a function, in place where there is a place."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, x):
        conv1, norm, conv2, fc1, fc2 = (self.parts[n] for n in (0, 1, 4, 9, 11))
        x = F.conv2d(x, conv1.weight, conv1.bias, padding=1)
        x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False)
        x = torch.max_pool2d(x.relu_(), 2)
        x = F.relu(torch.conv2d(x, conv2.weight, conv2.bias), inplace=True)
        x = F.adaptive_avg_pool2d(x, 2).reshape(len(x), -1)
        x = x @ fc1.weight.T
        x += fc1.bias
        F.dropout(x.clamp_(min=0), 0.5, False, inplace=True)
        return fc2(x)


@pytest.mark.parametrize("composite", COMPOSITES)
def test_functions_and_modules_are_the_same(composite):
    parts = stirred(zoo.seeded(convnet))
    given = picture(3, 13, 11)
    options = {"composite": composite, "batch_norm": "epsilon"}
    modules = explained(parts, given, "11:2", **options)
    functions = explained(Written(parts), given, "parts.11:2", **options)
    if composite in ("epsilon", "epsilon-plus", "epsilon-plus-flat", "epsilon-gamma-box") or "alpha2" in composite:
        close(
            functions.values, modules.values
        )  # a matrix product and a sum share alike as a layer with a bias, by contribution
    assert np.isfinite(functions.values).all()
    assert not [note for note in functions.notes if "without a rule" in note or "could not be caught" in note]


@pytest.mark.parametrize("composite", COMPOSITES)
def test_a_reused_module_is_as_good_as_its_copies(composite):
    reused = zoo.seeded(zoo.Reused)

    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            self.all = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
            for conv in self.all:
                conv.load_state_dict(reused.conv.state_dict())

        def forward(self, x):
            for conv in self.all:
                x = torch.relu(conv(x))
            return x.mean((2, 3))

    given = picture(4, 11, 9)
    one = explained(reused, given, "(logits):2", composite=composite)
    two = explained(Copies(), given, "(logits):2", composite=composite)
    np.testing.assert_array_equal(one.values, two.values)


def unbiased():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.ReLU(inplace=True),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 2 * 2, 4, bias=False),
    )


@pytest.mark.parametrize("composite", ["epsilon", "gamma", "epsilon-plus", "epsilon-plus-flat", "epsilon-gamma-box"])
@pytest.mark.parametrize("unit", ["7:1", "3:5", "mean(4:4)", "4:4@1,1", "probability(class:2)"])
def test_relevance_is_conserved_without_biases(composite, unit):
    network = zoo.seeded(unbiased)
    result = explained(network, picture(3, 12, 12), unit, composite=composite, epsilon=1e-9)
    value = result.target.value
    assert abs(value) > 1e-3
    assert result.values.sum(dtype=np.float64) == pytest.approx(value, rel=1e-4)
    assert result.evidence["at the input"] == pytest.approx(value, rel=1e-4)


def test_epsilon_is_input_times_gradient_in_a_relu_net_without_biases():
    """Shrikumar et al. 2016: what LRP-0 is there."""
    network, given = zoo.seeded(unbiased), picture(3, 12, 12)
    x = torch.from_numpy(given)[None].requires_grad_()
    network(x)[0, 1].backward()
    found = explained(network, given, "7:1", composite="epsilon", epsilon=1e-9)
    close(found.values, (x.grad * x).detach()[0].numpy())


def test_what_biases_take_is_in_the_account():
    result = explained(zoo.seeded(zoo.Functional), picture(1, 16, 16), "fc:1", composite="epsilon")
    told = result.evidence
    assert told["relevance of the unit"] == pytest.approx(result.target.value)
    assert told["at the input"] == pytest.approx(float(result.values.sum(dtype=np.float64)), abs=1e-6)
    assert told["taken on the way"] == pytest.approx(result.target.value - told["at the input"], rel=1e-3)
    assert abs(told["taken on the way"]) > 0.1 * abs(result.target.value)
    assert any("not conserved" in note and "took" in note for note in result.notes)


def test_a_residual_is_shared_by_contribution():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3, bias=False)
            self.out = nn.Identity()

        def forward(self, x):
            y = self.fc(x)
            y += x
            return self.out(y)

    network, given = zoo.seeded(Residual), picture(3)
    wanted = given * (np.eye(3) + network.fc.weight.detach().numpy())[1]
    close(explained(network, given, "out:1", composite="epsilon", epsilon=1e-9).values, wanted)


class Overwriting(nn.Module):
    """Writes into tensors that were read before, and into the input's own copy."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place, self.head = in_place, nn.Linear(4, 2)
        self.a, self.b, self.c = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x):
        if self.in_place:
            h = x * 1.0
            h += self.a(h)
            y = self.b(h)
            h.relu_()
            y.cumsum_(1)
            y[:, 1:3] += self.c(h)[:, 1:3]
            out = torch.full((len(x), 4), 0.5)
            out += y
            return self.head(out)
        h = x + self.a(x)
        y = self.b(h).cumsum(1)
        c = self.c(h.relu())
        y = torch.cat([y[:, :1], y[:, 1:3] + c[:, 1:3], y[:, 3:]], 1)
        return self.head(y + 0.5)


@pytest.mark.parametrize("composite", ["epsilon", "gamma", "epsilon-gamma-box"])
def test_writing_into_a_tensor_changes_nothing(composite):
    given = picture(4)
    one, two = (
        explained(zoo.seeded(lambda way=way: Overwriting(way)), given, "head:1", composite=composite)
        for way in (True, False)
    )
    close(one.values, two.values)
    assert not [note for note in one.notes if "without a rule" in note]


def test_only_what_reads_the_input_itself_is_a_first_layer():
    leaf = torch.rand(1, 4).requires_grad_()
    for network in (zoo.seeded(lambda: Overwriting(True)), zoo.seeded(lambda: Overwriting(False))):
        network.requires_grad_(False)
        with RelevancePass(Rules(Epsilon(), Epsilon(), Epsilon()), POLICIES) as carrier:
            network(carrier.enter(leaf, (torch.zeros(1, 4), torch.ones(1, 4))))
        assert carrier.first == [True]


class Gated(nn.Module):
    """Squeeze and excitation, once with the gate on the left, once on the right."""

    def __init__(self, swapped=False):
        super().__init__()
        self.conv, self.gate, self.head = nn.Conv2d(2, 4, 3, bias=False), nn.Linear(4, 4), nn.Linear(4, 2, bias=False)
        self.swapped = swapped

    def forward(self, x):
        x = self.conv(x)
        gate = torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
        x = gate * x if self.swapped else x * gate
        return self.head(x.mean((2, 3)))


def test_a_gate_takes_nothing():
    one, two = zoo.seeded(Gated), zoo.seeded(lambda: Gated(True))
    given = picture(2, 6, 6)
    found = explained(one, given, "head:0", composite="epsilon", epsilon=1e-9)
    x = torch.from_numpy(given)[None].requires_grad_()
    with torch.no_grad():
        gate = torch.sigmoid(one.gate(one.conv(x).mean((2, 3))))[:, :, None, None]
    one.head((one.conv(x) * gate).mean((2, 3)))[0, 0].backward()
    close(found.values, (x.grad * x).detach()[0].numpy())
    np.testing.assert_array_equal(
        explained(two, given, "head:0", composite="epsilon", epsilon=1e-9).values, found.values
    )
    assert found.values.sum() == pytest.approx(found.target.value, rel=1e-4)


class Attention(nn.Module):
    """One head, by hand, by the fused function, or as the module."""

    def __init__(self, how):
        super().__init__()
        self.how, self.mix = how, nn.MultiheadAttention(6, 2, bias=False, batch_first=True)
        self.head = nn.Linear(6, 2, bias=False)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        if self.how == "module":
            x = self.mix(x, x, x, need_weights=False)[0]
        else:
            q, k, v = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in (x @ self.mix.in_proj_weight.T).chunk(3, -1))
            fused = self.how == "fused"
            x = F.scaled_dot_product_attention(q, k, v) if fused else F.softmax(q @ k.mT / 3**0.5, -1) @ v
            x = self.mix.out_proj(x.transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


def test_attention_is_taken_as_fixed_however_it_is_written():
    given = picture(6, 3, 3)
    found = {
        how: explained(zoo.seeded(lambda how=how: Attention(how)), given, "head:1", composite="epsilon", epsilon=1e-9)
        for how in ("module", "fused", "written")
    }
    for result in found.values():
        close(result.values, found["written"].values)
        assert result.values.sum() == pytest.approx(result.target.value, rel=1e-4)
        assert not result.notes
    network = zoo.seeded(lambda: Attention("written"))
    x = torch.from_numpy(given)[None].flatten(2).transpose(1, 2)
    q, k, _ = (t.unflatten(-1, (2, 3)).transpose(1, 2) for t in (x @ network.mix.in_proj_weight.T).chunk(3, -1))
    fixed = (q @ k.transpose(-1, -2) / 3**0.5).softmax(-1).detach()
    leaf = x.clone().requires_grad_()
    v = (leaf @ network.mix.in_proj_weight.T).chunk(3, -1)[2].unflatten(-1, (2, 3)).transpose(1, 2)
    network.head(network.mix.out_proj((fixed @ v).transpose(1, 2).flatten(2)).mean(1))[0, 1].backward()
    close(found["written"].values, (leaf.grad * leaf).detach()[0].T.reshape(6, 3, 3).numpy())


@pytest.mark.parametrize("norm", [nn.LayerNorm([4, 5, 5]), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)])
def test_a_norms_own_deviation_is_taken_as_fixed(norm):
    conv, head, given = (
        zoo.seeded(lambda: nn.Conv2d(2, 4, 3, bias=False)),
        zoo.seeded(lambda: nn.Linear(100, 2)),
        picture(2, 7, 7),
    )
    network = nn.Sequential(conv, norm, nn.Flatten(), head)
    found = explained(network, given, "3:0", composite="epsilon", epsilon=1e-9)
    x = torch.from_numpy(given)[None].requires_grad_()
    maps = conv(x)
    groups = maps.reshape(1, {nn.LayerNorm: 1, nn.GroupNorm: 2, nn.InstanceNorm2d: 4}[type(norm)], -1)
    spread = (groups.var(-1, correction=0, keepdim=True) + norm.eps).sqrt().detach()
    centred = ((groups - groups.mean(-1, keepdim=True)) / spread).reshape(maps.shape)
    torch.testing.assert_close(centred, norm(maps), atol=1e-5, rtol=1e-4)
    head(centred.flatten(1))[0, 0].backward()
    close(found.values, (x.grad * x).detach()[0].numpy())


def test_an_operator_without_a_rule_is_told():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.out = nn.Linear(4, 3, bias=False), nn.Identity()

        def forward(self, x):
            return self.out(torch.logcumsumexp(self.fc(x), 1))

    network, given = zoo.seeded(Odd), picture(4)
    result = explained(network, given, "out:2", composite="epsilon", epsilon=1e-9)
    assert any("logcumsumexp" in note for note in result.notes)
    x = torch.from_numpy(given)[None].requires_grad_()
    network(x)[0, 2].backward()
    close(result.values, (x.grad * x).detach()[0].numpy())
    told = result.evidence
    assert told["taken by operators without a rule"] == pytest.approx(
        told["relevance of the unit"] - told["at the input"], rel=1e-3
    )


def test_recurrent_cells_give_a_map_and_say_how():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.cell(x.mT)[0][:, -1])

    result = explained(zoo.seeded(Recurrent), picture(3, 5), "head:1", composite="epsilon")
    assert result.values.any()
    assert any("lstm" in note for note in result.notes)


def test_what_runs_beneath_torch_functions_is_told():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(Doubled.apply(x))

    result = explained(zoo.seeded(Hidden), picture(4), "fc:1")
    assert any("Doubled" in note for note in result.notes)


def test_max_pools_on_request_hand_back_as_means():
    """Averaged: every position of a window gets its share of the window's sum."""
    network = nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 2, bias=False))
    given = picture(1, 4, 4)
    weight = network[2].weight.detach().numpy()[0]
    windows = given[0].reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(4, 4)
    wanted = windows * (windows.max(1) * weight / windows.sum(1))[:, None]
    wanted = wanted.reshape(2, 2, 2, 2).transpose(0, 2, 1, 3).reshape(1, 4, 4)
    found = explained(network, given, "2:0", composite="epsilon", epsilon=1e-9, max_pool="average")
    close(found.values, wanted)
    winner = explained(network, given, "2:0", composite="epsilon", epsilon=1e-9)
    assert np.count_nonzero(winner.values) == 4


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_every_kind_of_network_gives_a_map(open_zoo, name, composite):
    model = open_zoo(name)
    result = LRP(composite=composite).run(Request(model, input=picture(*model.contract.shape)))
    assert result.values.shape == model.contract.shape
    assert np.isfinite(result.values).all()
    assert not [note for note in result.notes if "without a rule" in note or "could not be caught" in note]
    lost = result.target.value - sum(result.evidence[key] for key in ("at the input", "taken on the way"))
    assert lost == pytest.approx(result.evidence.get("left in numbers of the network's own", 0.0), abs=1e-5)


def test_an_aim_of_value_0_has_an_empty_map():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    with torch.no_grad():
        network[0].bias.fill_(-100)
    result = explained(network, picture(4), "1:0")
    assert result.target.value == 0
    assert not result.values.any()
    assert any("no relevance to hand down" in note for note in result.notes)


def test_a_unit_that_does_not_depend_on_the_input_is_told():
    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.bias = nn.Linear(4, 3), nn.Parameter(torch.ones(1, 3))
            self.out = nn.Identity()

        def forward(self, x):
            self.fc(x)
            return self.out(self.bias.expand(len(x), -1))

    result = explained(Deaf(), picture(4), "out:0")
    assert not result.values.any()
    assert any("does not depend on the input" in note for note in result.notes)


def test_relevance_that_overflows_is_one_clear_line():
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.Sigmoid(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1e36, -1e36]]))
        network[2].weight.fill_(1e36)
    with pytest.raises(CannotRun, match="grows beyond all numbers with composite epsilon"):
        explained(network, np.full(2, 0.5, np.float32), "2:0", composite="epsilon", epsilon=1e-12)


def test_an_input_outside_its_range_has_no_box():
    network = zoo.seeded(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    given = np.array([-1, 0.5, 2, 3], np.float32)
    boxed = explained(network, given, "2:0", composite="epsilon", first="z-box")
    squared = explained(network, given, "2:0", composite="epsilon", first="w-square")
    np.testing.assert_array_equal(boxed.values, squared.values)
    assert any("w² rule" in note for note in boxed.notes)


def test_no_trace_is_left():
    network = stirred(zoo.seeded(convnet)).train()
    given = picture(3, 13, 11)
    model = penlight.load(network, example=torch.zeros(1, 3, 13, 11))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for batch_norm in ("merged", "epsilon"):
        LRP(batch_norm=batch_norm).run(Request(model, input=given))
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.overrides._get_current_function_mode() is None


def test_two_threads_do_not_meet():
    network, given = stirred(zoo.seeded(convnet)), [picture(3, 13, 11, seed=n) for n in range(2)]
    wanted = [explained(network, one, "11:2").values for one in given]
    model, found = penlight.load(network, example=torch.zeros(1, 3, 13, 11)), [[], []]
    model.layers["11"]

    def work(n):
        for _ in range(5):
            found[n].append(LRP().run(Request(model, input=given[n], targets=("11:2",))).values)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(2):
        assert len(found[n]) == 5
        for values in found[n]:
            np.testing.assert_array_equal(values, wanted[n])


@pytest.mark.parametrize(
    ("name", "value"), [("composite", "epsilon-delta"), ("epsilon", 0.0), ("alpha", 0.5), ("first", "last")]
)
def test_options_that_cannot_be(name, value):
    with pytest.raises(BadOption, match=name):
        build(LRP, {name: value})


def test_the_pass_gives_every_operator_one_step():
    """The graph after the pass holds nothing that is neither a rule nor a move of values."""
    network = stirred(zoo.seeded(convnet)).requires_grad_(False)
    leaf = torch.rand(1, 3, 13, 11).requires_grad_()
    with RelevancePass(Rules(None, Epsilon(), Epsilon()), POLICIES) as carrier:
        output = network(carrier.enter(leaf, None))
    assert strange([output]) == []
    assert strange([network(leaf)]) != []

"""The backward rules against Captum's, against formulas worked by hand, and on every awkward kind of network."""

import captum.attr as captum
import numpy as np
import pytest
import torch
from captum.attr._core.guided_backprop_deconvnet import Deconvolution, GuidedBackprop
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.errors import BadInput, BadOption, CannotRun
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.explain.gradients import gauss_legendre, trapezoid

TOLERANCE = 1e-5


class Modules(nn.Module):
    """A convolutional network of modules, each used once, as Captum needs it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2)
        self.conv2, self.relu2, self.pool2 = nn.Conv2d(4, 6, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.fc1, self.relu3, self.fc2 = nn.Linear(6 * 2 * 2, 8), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool1(self.relu1(self.conv1(x)))
        x = self.pool2(self.relu2(self.conv2(x)))
        return self.fc2(self.relu3(self.fc1(x.flatten(1))))


@pytest.fixture(scope="module")
def opened():
    network = zoo.seeded(Modules)
    x = torch.rand((1, 1, 16, 16), generator=torch.Generator().manual_seed(1))
    return network.eval(), penlight.load(network, example=x), x


def close(ours, theirs, tolerance=TOLERANCE):
    theirs = theirs.detach().numpy()[0]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1.0, np.abs(theirs).max()))
    assert np.abs(theirs).max() > 0


PEERS = {
    "gradient": lambda net, x: captum.Saliency(net).attribute(x, target=2, abs=False),
    "gradient-x-input": lambda net, x: captum.InputXGradient(net).attribute(x, target=2),
    "deconvnet": lambda net, x: Deconvolution(net).attribute(x, target=2),
    "guided-backprop": lambda net, x: GuidedBackprop(net).attribute(x, target=2),
    "integrated-gradients": lambda net, x: captum.IntegratedGradients(net).attribute(x, target=2, n_steps=50),
}


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("name", PEERS)
def test_equals_captum(opened, name):
    network, model, x = opened
    close(penlight.explain(model, x, "class:2", method=name).values, PEERS[name](network, x.clone().requires_grad_()))


@pytest.mark.filterwarnings("ignore:Setting backward hooks", "ignore:torchvision's compiled operators")
@pytest.mark.parametrize("name", ["gradient", "deconvnet", "guided-backprop", "integrated-gradients"])
def test_equals_captum_on_squeezenet(name):
    models = import_torchvision().models
    network = zoo.seeded(lambda: models.squeezenet1_0(weights=None)).eval()
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # Captum's hooks do not take in-place rectifiers; ours do
    x = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(2))
    theirs = PEERS[name](network, x.clone().requires_grad_())
    inplace = zoo.seeded(lambda: models.squeezenet1_0(weights=None))
    model = penlight.load(inplace, example=x)
    close(penlight.explain(model, x, "class:2", method=name).values, theirs)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize(
    ("name", "peer"), [("deconvnet", captum.NeuronDeconvolution), ("guided-backprop", captum.NeuronGuidedBackprop)]
)
def test_a_hidden_unit_equals_captums_neuron(opened, name, peer):
    network, model, x = opened
    theirs = peer(network, network.conv2).attribute(x.clone().requires_grad_(), (3, 1, 2))
    close(penlight.explain(model, x, "conv2:3@1,2", method=name).values, theirs)


def test_deconvnet_by_hand():
    """One rectifier: what goes back is the positive part of what comes from above, whatever the forward value was."""
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    first, second = np.array([[1.0, -2.0, 0.5], [0.5, 1.0, -1.0]]), np.array([[3.0, -4.0]])
    network[0].weight.data, network[2].weight.data = torch.tensor(first).float(), torch.tensor(second).float()
    model = penlight.load(network, example=torch.zeros(1, 3))
    x = np.array([-1.0, 1.0, 1.0], np.float32)  # the first hidden unit is closed, the second at -0.5 is too
    np.testing.assert_allclose(
        penlight.explain(model, x, "class:0", method="deconvnet").values, np.maximum(second, 0)[0] @ first, atol=1e-6
    )
    assert not penlight.explain(model, x, "class:0", method="guided-backprop").values.any()
    open_x = np.array([1.0, 0.0, -1.0], np.float32)  # hidden values .5 and 1.5
    guided = penlight.explain(model, open_x, "class:0", method="guided-backprop").values
    np.testing.assert_allclose(guided, np.array([3.0, 0.0]) @ first, atol=1e-6)
    plain = penlight.explain(model, open_x, "class:0", method="gradient").values
    np.testing.assert_allclose(plain, second[0] @ first, atol=1e-6)


def test_the_three_starts(opened):
    _, model, x = opened
    values = [penlight.explain(model, x, f"relu2:{u}", method="gradient").target.value for u in range(6)]
    unit = f"relu2:{int(np.argmax(values))}"
    one = penlight.explain(model, x, unit, method="deconvnet")
    own = penlight.explain(model, x, unit, method="deconvnet", start="activation")
    assert own.target.value > 0
    np.testing.assert_allclose(own.values, one.values * own.target.value, atol=1e-6)
    whole = penlight.explain(model, x, "conv2:3@1,2", method="deconvnet", start="map").values
    maps = model.network.conv2(model.network.pool1(model.network.relu1(model.network.conv1(x))))[0, 3].detach().numpy()
    total = np.zeros_like(whole)
    for r, row in enumerate(maps):
        for c, activation in enumerate(row):
            total += activation * penlight.explain(model, x, f"conv2:3@{r},{c}", method="gradient").values
    assert np.abs(whole - total).max() > 0.01  # the rectifier below makes it more than a sum of gradients
    linear = penlight.explain(model, x, "conv1:2", method="deconvnet", start="map").values
    first = model.network.conv1(x)[:, 2:3].detach()
    expected = F.conv_transpose2d(first, model.network.conv1.weight[2:3].detach())[0].numpy()
    np.testing.assert_allclose(linear, expected, atol=1e-5)


def test_a_silent_unit_is_told(opened):
    _, model, x = opened
    found = [penlight.explain(model, x, f"relu2:{u}", method="gradient") for u in range(6)]
    silent = [r for r in found if r.target.value == 0]
    assert silent
    assert all("zero everywhere" in r.notes[0] for r in silent)
    assert all(not r.notes for r in found if r.target.value > 0)


def test_overlapping_pools_add_up():
    """One input that wins several windows gets the sum, which an unpooling that overwrites would lose."""
    network = nn.Sequential(nn.MaxPool2d(3, 1), nn.Flatten(), nn.Linear(9, 1, bias=False))
    network[2].weight.data[:] = 1.0
    model = penlight.load(network, example=torch.zeros(1, 1, 5, 5))
    x = np.zeros((1, 5, 5), np.float32)
    x[0, 2, 2] = 1.0
    assert penlight.explain(model, x, "class:0", method="deconvnet").values[0, 2, 2] == 9.0


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 6, 3), nn.LocalResponseNorm(5, alpha=1.0), nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_response_norms_both_ways():
    network = zoo.seeded(Normed)
    x = torch.rand((1, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    model = penlight.load(network, example=x)
    true = penlight.explain(model, x, "class:1", method="gradient").values
    passed = penlight.explain(model, x, "class:1", method="gradient", lrn="pass").values
    given = x.clone().requires_grad_()
    network(given)[0, 1].backward()
    np.testing.assert_allclose(true, given.grad[0].numpy(), atol=1e-6)
    z = network.conv(given := x.clone().requires_grad_())
    open_where = (network.norm(z) > 0).detach()
    (network.fc.weight[1] * (z * open_where).mean((2, 3))[0]).sum().backward()
    np.testing.assert_allclose(passed, given.grad[0].numpy(), atol=1e-6)
    assert np.abs(true - passed).max() > 1e-4


class Written(nn.Module):
    """One computation, its rectifiers written in several ways."""

    def __init__(self, how, act=None):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.how, self.act = how, act or nn.ReLU()

    def forward(self, x):
        return self.c(self.how(self, self.b(self.how(self, self.a(x)))))


WAYS = {
    "module reused": lambda net, x: net.act(x),
    "function": lambda net, x: F.relu(x),
    "torch": lambda net, x: torch.relu(x),
    "in place": lambda net, x: F.relu(x, inplace=True),
    "method": lambda net, x: x.relu_(),
    "clamp": lambda net, x: x.clamp(min=0),
    "module made inside": lambda net, x: nn.ReLU()(x),
    "six": lambda net, x: F.relu6(x),
    "threshold": lambda net, x: F.threshold(x, 0.0, 0.0),
}


@pytest.mark.parametrize("name", ["deconvnet", "guided-backprop"])
@pytest.mark.parametrize("way", WAYS)
def test_however_a_rectifier_is_written(name, way):
    x = np.random.default_rng(0).standard_normal(6).astype(np.float32)
    results = []
    for how in (WAYS["module reused"], WAYS[way]):
        model = penlight.load(zoo.seeded(lambda how=how: Written(how)), example=torch.zeros(1, 6))
        results.append(penlight.explain(model, x, "class:1", method=name))
    np.testing.assert_allclose(results[1].values, results[0].values, atol=1e-6)
    assert results[1].evidence["rectifiers"] == 2
    assert not results[1].notes


SMOOTH = [
    nn.LeakyReLU(0.2),
    nn.PReLU(),
    nn.ELU(),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Hardswish(),
    nn.Softplus(),
    nn.CELU(),
]


@pytest.mark.parametrize("act", SMOOTH, ids=lambda act: type(act).__name__)
def test_the_policy_at_smooth_rectifiers(act):
    x = np.random.default_rng(0).standard_normal(6).astype(np.float32)
    network = zoo.seeded(lambda: Written(WAYS["module reused"], act))
    model = penlight.load(network, example=torch.zeros(1, 6))
    on = penlight.explain(model, x, "class:1", method="deconvnet")
    off = penlight.explain(model, x, "class:1", method="deconvnet", smooth=False)
    a, b, c = (layer.weight.detach().numpy() for layer in (network.a, network.b, network.c))
    np.testing.assert_allclose(on.values, np.maximum(np.maximum(c[1], 0) @ b, 0) @ a, atol=1e-6)
    np.testing.assert_allclose(off.values, penlight.explain(model, x, "class:1", method="gradient").values, atol=1e-6)
    assert on.evidence["rectifiers"] == 2
    assert not on.notes
    assert off.evidence["rectifiers"] == 0
    assert "no rectifier" in off.notes[0]


def test_a_hardtanh_is_no_rectifier():
    network = nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(), nn.Tanh(), nn.Linear(4, 2))
    found = penlight.explain(
        penlight.load(network, example=torch.zeros(1, 4)), np.ones(4, np.float32), "class:0", method="deconvnet"
    )
    assert found.evidence["rectifiers"] == 0
    assert "no rectifier" in found.notes[0]


def test_integrated_gradients_are_complete(opened):
    _, model, x = opened
    for quadrature in ("gauss-legendre", "trapezoid"):
        r = penlight.explain(model, x, "class:1", method="integrated-gradients", steps=400, quadrature=quadrature)
        change = r.target.value - r.evidence["at the baseline"]
        assert r.evidence["completeness error"] == pytest.approx(r.values.sum() - change, abs=1e-4)
        assert abs(r.evidence["completeness error"]) < 0.02 * abs(change) + 1e-3
    few = penlight.explain(model, x, "class:1", method="integrated-gradients", steps=0)
    change = few.target.value - few.evidence["at the baseline"]
    assert abs(few.evidence["completeness error"]) <= 0.01 * abs(change) or few.evidence["steps"] == 2048


def test_quadratures():
    for make, degree in ((gauss_legendre, 9), (trapezoid, 1)):
        places, weights = make(5)
        assert (weights @ places**degree) == pytest.approx(1 / (degree + 1), abs=1e-12)
        assert weights.sum() == pytest.approx(1)
    assert trapezoid(1)[1].sum() == 1


def test_integrated_gradients_of_a_square():
    """f = (w·x)²: the share of input i from zero is w_i x_i (w·x), to rounding."""

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(3, 1, bias=False)

        def forward(self, x):
            return self.line(x) ** 2

    network = zoo.seeded(Square)
    w, x = network.line.weight.detach().numpy()[0], np.array([1.0, -2.0, 3.0], np.float32)
    found = penlight.explain(
        penlight.load(network, example=torch.zeros(1, 3)), x, "class:0", method="integrated-gradients", steps=3
    )
    np.testing.assert_allclose(found.values, w * x * (w @ x), atol=1e-5)


def test_smoothgrad_of_a_line_is_its_weights():
    network = nn.Linear(5, 3)
    model = penlight.load(nn.Sequential(network), example=torch.zeros(1, 5))
    x = np.linspace(0, 1, 5, dtype=np.float32)
    for over, expected in (
        ("gradient", network.weight[1].detach().numpy()),
        ("deconvnet", network.weight[1].detach().numpy()),
    ):
        r = penlight.explain(model, x, "class:1", method="smoothgrad", over=over, samples=7)
        np.testing.assert_allclose(r.values, expected, atol=1e-6)
    square = penlight.explain(model, x, "class:1", method="smoothgrad", reduce="square", samples=7)
    np.testing.assert_allclose(square.values, network.weight[1].detach().numpy() ** 2, atol=1e-6)
    assert not square.signed
    variance = penlight.explain(model, x, "class:1", method="smoothgrad", reduce="variance", samples=7)
    np.testing.assert_allclose(variance.values, 0, atol=1e-6)


def test_smoothgrad_by_its_formula(opened):
    _, model, x = opened
    r = penlight.explain(model, x, "class:1", method="smoothgrad", samples=6, noise=0.3, seed=5)
    again = penlight.explain(model, x, "class:1", method="smoothgrad", samples=6, noise=0.3, seed=5)
    other = penlight.explain(model, x, "class:1", method="smoothgrad", samples=6, noise=0.3, seed=6)
    np.testing.assert_array_equal(r.values, again.values)
    assert np.abs(r.values - other.values).max() > 0
    assert r.evidence["noise"] == pytest.approx(0.3 * float(x.max() - x.min()))
    still = penlight.explain(model, x, "class:1", method="smoothgrad", samples=3, noise=0.0)
    np.testing.assert_allclose(still.values, penlight.explain(model, x, "class:1", method="gradient").values, atol=1e-5)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("kind", zoo.NETWORKS)
def test_any_network_any_layer(open_zoo, name, kind):
    model = open_zoo(kind)
    x = np.random.default_rng(0).random(model.contract.shape, np.float32)
    for path, layer in model.layers.items():
        r = penlight.explain(model, x, f"{path}:{layer.units - 1}", method=name)
        assert r.values.shape == model.contract.shape


class FailsBack(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x.detach())


def test_what_cannot_be_differentiated_is_said():
    model = penlight.load(FailsBack(), example=torch.zeros(1, 3))
    with pytest.raises(CannotRun, match="does not depend on the input"):
        penlight.explain(model, np.ones(3, np.float32), "class:0", method="gradient")


class Overflows(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x) / 0


@pytest.mark.parametrize("unit", ["class:1", None])
def test_a_value_that_is_no_number_is_said(unit):
    model = penlight.load(Overflows(), example=torch.zeros(1, 3))
    with pytest.raises(CannotRun, match="nothing to explain"):
        penlight.explain(model, np.ones(3, np.float32), unit, method="gradient")


def test_bad_inputs_are_said(opened):
    _, model, x = opened
    with pytest.raises(BadInput, match="not finite"):
        penlight.explain(model, np.full((1, 16, 16), np.nan, np.float32), method="gradient")
    with pytest.raises(BadInput, match=r"shape \[1, 15, 16\]"):
        penlight.explain(model, np.zeros((1, 15, 16), np.float32), method="gradient")
    with pytest.raises(BadInput, match="2 inputs"):
        penlight.explain(model, torch.cat([x, x]), method="gradient")
    with pytest.raises(BadOption, match="start"):
        penlight.explain(model, x, method="deconvnet", start="all")

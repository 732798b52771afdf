"""Occlusion against Captum's, against sums worked by hand, and with its own full passes."""

from dataclasses import replace

import captum.attr as captum
import numpy as np
import pytest
import torch
from torch import nn

import zoo
from penlight.errors import BadOption
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.contract import Request
from penlight.techniques.explain.aim import read_aim
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.fills import FILLS, filled
from penlight.techniques.explain.occlusion import Occlusion
from penlight.techniques.options import build

TOLERANCE = 1e-5


class Modules(nn.Module):
    """Two convolutions with overlapping pools, then two layers of neurons."""

    def __init__(self):
        super().__init__()
        self.conv1, self.pool1 = nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(3, 2)
        self.conv2, self.pool2 = nn.Conv2d(6, 8, 3), nn.AvgPool2d(2)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 6, 8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.pool1(self.conv1(x).relu())
        x = self.pool2(self.conv2(x).relu())
        return self.fc2(self.fc1(x.flatten(1)).relu())


def opened(network, shape, seed=0):
    model = Model(network.eval(), InputContract("array", shape, (0.4,), (0.5,)))
    return model, np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def picture():
    return opened(zoo.seeded(Modules), (3, 21, 29))


def explained(model, x, unit=None, **options):
    return build(Occlusion, options).run(Request(model, input=x, targets=[unit] if unit else []))


def theirs(model, x, window, stride, target, fill="zeros"):
    """Captum's map, for the tuple of sizes and strides that it takes."""
    scene = open_scene(Request(model, input=x))
    baseline = filled(scene, fill)
    scene = replace(scene, aim=read_aim(model, f"class:{target}", scene.x))
    method = captum.Occlusion(lambda z: scene.scores(model.network, z.clone()))
    with torch.no_grad():
        found = method.attribute(scene.x, window, stride, baselines=baseline, perturbations_per_eval=8)
    return found[0].numpy()


def close(ours, wanted, tolerance=TOLERANCE):
    assert ours.shape == wanted.shape
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=tolerance)
    assert np.abs(wanted).max() > 50 * tolerance


@pytest.mark.parametrize(
    ("window", "stride"),
    [("7", "7"), ("8", "3"), ("5", "2"), ("1", "1"), ("21x4", "1x3"), ("4x29", "4x1"), ("6x9", "5x2"), ("21x29", "1")],
)
@pytest.mark.parametrize("incremental", [True, False])
def test_windows_and_strides_are_captums(picture, window, stride, incremental):
    model, x = picture
    sizes, steps = ([int(n) for n in text.split("x")] for text in (window, stride))
    wanted = theirs(model, x, (3, sizes[0], sizes[-1]), (3, steps[0], steps[-1]), 2)
    close(explained(model, x, "class:2", window=window, stride=stride, incremental=incremental).values, wanted)


@pytest.mark.parametrize("fill", FILLS)
def test_fills_are_captums_baselines(picture, fill):
    model, x = picture
    close(
        explained(model, x, "class:1", window="6", stride="4", fill=fill).values,
        theirs(model, x, (3, 6, 6), (3, 4, 4), 1, fill),
    )


def test_channel_by_channel(picture):
    model, x = picture
    result = explained(model, x, "class:1", window="6", stride="4", channels=True)
    close(result.values, theirs(model, x, (1, 6, 6), (1, 4, 4), 1))
    assert result.extras["scores"].shape == (3, 5, 7)
    assert not np.allclose(result.values[0], result.values[1])


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_the_zoo(name):
    """Captum's numbers, and the same with and without incremental passes, whatever the network and the kind of input."""
    make, shape = zoo.NETWORKS[name]
    model, x = opened(zoo.seeded(make), shape)
    window = {1: (2,), 2: (shape[0], 6), 3: (shape[0], 4, 3)}[len(shape)]
    stride = {1: (1,), 2: (shape[0], 3), 3: (shape[0], 2, 2)}[len(shape)]
    given = {"window": "x".join(map(str, window[-2:] if len(shape) == 3 else window[-1:]))}
    given["stride"] = str(stride[-1])
    wanted = theirs(model, x, window, stride, 1)
    for incremental in (True, False):
        result = explained(model, x, "class:1", **given, incremental=incremental)
        assert result.values.shape == shape
        np.testing.assert_allclose(result.values, wanted, rtol=0, atol=TOLERANCE)
        pictured = len(shape) == 3
        assert result.evidence["inference"] == ("incremental" if incremental and pictured else "in full")


@pytest.mark.filterwarnings("ignore:torchvision's compiled operators")
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v2", "resnet18"])
def test_networks_of_torchvision(name):
    network = zoo.seeded(lambda: getattr(import_torchvision().models, name)(weights=None, num_classes=10))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):  # so that what goes in still shows in what comes out
                nn.init.kaiming_normal_(module.weight, generator=torch.Generator().manual_seed(3))
    model, x = opened(network, (3, 72, 64))
    result = explained(model, x, "class:3", window="24x16", stride="16x8")
    wanted = theirs(model, x, (3, 24, 16), (3, 16, 8), 3)
    close(result.values, wanted, 1e-4 * max(1.0, np.abs(wanted).max()))
    assert result.evidence["inference"] == "incremental"
    assert result.evidence["share of full work"] < 1
    assert not result.notes


@pytest.mark.parametrize("unit", ["conv1:2@3,4", "conv2:1@0,0", "mean(conv2:1)", "probability(class:1)", "fc1:0"])
def test_any_unit(picture, unit):
    model, x = picture
    quick, slow = (explained(model, x, unit, window="5", stride="2", incremental=which) for which in (True, False))
    np.testing.assert_allclose(quick.values, slow.values, rtol=0, atol=1e-6)
    assert quick.evidence["inference"] == "incremental"
    assert np.abs(slow.values).max() > 0


def test_a_unit_is_not_touched_outside_its_field(picture):
    model, x = picture
    values = explained(model, x, "conv2:1@0,0", window="4", stride="2").values
    assert (values[:, 16:] == 0).all()
    assert (values[:, :, 16:] == 0).all()
    assert (values[:, :6, :6] != 0).any()


def test_scores_are_the_aim_by_position(picture):
    model, x = picture
    result = explained(model, x, "class:2", window="6x8", stride="5x7")
    scores, offsets = result.extras["scores"], result.extras["offsets"]
    assert scores.shape == offsets.shape[:2] == (4, 4)
    fill = -0.4 / 0.5 * 0 + 0.4  # what is 0 after normalisation
    for row, column in ((0, 0), (3, 3), (2, 1)):
        covered = x.copy()
        top, left = offsets[row, column]
        covered[:, top : top + 6, left : left + 8] = fill
        with torch.no_grad():
            wanted = float(model.network(model.tensor(covered[None]))[0, 2])
        assert scores[row, column] == pytest.approx(wanted, abs=1e-5)
    assert result.evidence["lowest value"] == pytest.approx(scores.min())
    row, column = np.unravel_index(scores.argmin(), scores.shape)
    assert (
        result.evidence["lowest at"] == f"row {offsets[row, column, 0]}, column {offsets[row, column, 1]}, window 6x8"
    )
    assert result.evidence["positions"] == 16


def test_several_windows_give_the_mean_of_their_maps(picture):
    model, x = picture
    both = explained(model, x, "class:2", window="9,4", stride="3,2")
    alone = [explained(model, x, "class:2", window=w, stride=s) for w, s in (("9", "3"), ("4", "2"))]
    np.testing.assert_allclose(both.values, (alone[0].values + alone[1].values) / 2, rtol=0, atol=1e-6)
    np.testing.assert_allclose(both.extras["scores-9"], alone[0].extras["scores"], rtol=0, atol=1e-6)
    assert set(both.extras) == {"scores-9", "offsets-9", "scores-4", "offsets-4"}
    assert both.evidence["positions"] == sum(one.evidence["positions"] for one in alone)


def test_one_stride_for_several_windows_and_the_defaults(picture):
    model, x = picture
    assert set(explained(model, x, window="9,4", stride="4").extras) >= {"scores-9", "scores-4"}
    assert explained(model, x).extras["scores"].shape == (19, 27)  # windows of 3, every cell
    assert explained(model, x, window="8").extras["scores"].shape == (8, 12)  # a quarter of the window


class Spot(nn.Module):
    """The sum of what stands in one small place."""

    def __init__(self):
        super().__init__()
        self.keep = nn.Identity()

    def forward(self, x):
        return self.keep(torch.stack([x[:, 0, 40:44, 20:24].sum((1, 2)), 0 * x[:, 0, 0, 0]], 1))


def test_refining_looks_closer_where_it_matters():
    model, _ = opened(Spot(), (1, 64, 64))
    x = np.full((1, 64, 64), 0.9, np.float32)
    coarse = explained(model, x, "class:0", window="16", stride="8")
    fine = explained(model, x, "class:0", window="16", stride="8", refine=3)
    whole = explained(model, x, "class:0", window="2", stride="1")
    near = np.zeros((64, 64), bool)
    near[36:48, 16:28] = True
    assert (coarse.values[0][~near] > 1e-3).sum() > 200
    assert (fine.values[0][~near] > 1e-3).sum() < (coarse.values[0][~near] > 1e-3).sum() / 3
    np.testing.assert_allclose(fine.values[0, 41:43, 20:24], whole.values[0, 41:43, 20:24], rtol=0, atol=1e-4)
    assert fine.evidence["positions"] < whole.evidence["positions"] / 4
    assert fine.extras["refined-3-scores"].shape == (len(fine.extras["refined-3-offsets"]),)
    assert fine.extras["refined-3-offsets"].min(0)[0] > 8
    assert "window" in fine.evidence["lowest at"]


def test_refining_ends_with_single_cells(picture):
    model, x = picture
    result = explained(model, x, window="2", stride="2", refine=8)
    assert {name for name in result.extras if name.startswith("refined")} == {"refined-1-scores", "refined-1-offsets"}


def test_a_sum_is_taken_apart_by_hand():
    network = zoo.seeded(lambda: nn.Linear(6, 2))
    wrapped = nn.Sequential(network)
    model, x = opened(wrapped, (6,))
    given = model.tensor(x[None])[0]
    for index in (0, 1):
        terms = (network.weight[index] * given).detach().numpy()
        np.testing.assert_allclose(explained(model, x, f"class:{index}", window="1").values, terms, atol=1e-6)
        pairs = [terms[:2].sum(), terms[1:3].sum(), terms[2:4].sum(), terms[3:5].sum(), terms[4:].sum()]
        means = np.convolve(pairs, [0.5, 0.5])
        means[[0, -1]] *= 2
        np.testing.assert_allclose(
            explained(model, x, f"class:{index}", window="2", stride="1").values, means, atol=1e-6
        )


def test_a_fall_back_is_told():
    class Excited(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
            self.mix = nn.GroupNorm(2, 4)

        def forward(self, x):
            x = self.conv(x)
            x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
            return self.fc(self.mix(x).relu().amax((2, 3)))

    model, x = opened(zoo.seeded(Excited), (3, 20, 20))
    result = explained(model, x, window="5", stride="4")
    assert result.notes == ("mul mixes the whole map, so from there on whole maps were computed",)
    assert result.evidence["inference"] == "incremental"
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))
    inner(torch.zeros(1, 3, 20, 20))
    result = explained(*opened(inner, (3, 20, 20)), window="5", stride="4")
    assert result.notes == ("native_group_norm in 1 mixes the whole map, so from there on whole maps were computed",)
    result = explained(*opened(inner, (3, 20, 20)), window="20")
    assert result.evidence["inference"] == "in full"
    assert result.notes == (
        "all passes were run in full, without incremental inference: there are fewer than 8 positions",
    )


def test_the_same_again_and_nothing_left_behind(picture):
    model, x = picture
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (explained(model, x, window="6", fill="noise") for _ in range(2))
    assert first.values.tobytes() == second.values.tobytes()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.network.modules())


def test_progress_reaches_its_end(picture):
    model, x = picture
    seen = []
    build(Occlusion, {"window": "8,4", "refine": 1}).run(
        Request(model, input=x, progress=lambda done, of: seen.append((done, of)))
    )
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({of for _, of in seen}) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": "30"}, "window 30 is larger than the input, which has 21x29; choose a smaller one"),
        ({"window": "4x30"}, "window 4x30 is larger than the input"),
        ({"window": "0"}, "option window takes numbers of cells as in 32, 32x16"),
        ({"window": "big"}, "not 'big'"),
        ({"window": "8,,4"}, "not '8,,4'"),
        ({"window": "8x4x2"}, "not '8x4x2'"),
        ({"window": "-3"}, "not '-3'"),
        ({"stride": "0"}, "option stride takes numbers of cells"),
        ({"window": "8,4", "stride": "1,2,3"}, "option stride has 3 sizes for 2 windows"),
        ({"window": "4", "stride": "5"}, "stride 5x5 is larger than window 4: cells would be left out"),
        ({"window": "4,4"}, "names one size twice"),
        ({"fill": "pink"}, "option fill takes one of"),
        ({"refine": -1}, "option refine takes"),
    ],
)
def test_wrong_options_are_told_in_one_line(picture, options, said):
    model, x = picture
    with pytest.raises(BadOption) as caught:
        explained(model, x, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_options_of_a_signal():
    make, shape = zoo.NETWORKS["signal"]
    model, x = opened(zoo.seeded(make), shape)
    with pytest.raises(BadOption, match="numbers of cells of at least 1"):
        explained(model, x, window="4x4")
    with pytest.raises(BadOption, match="which has 40 cells"):
        explained(model, x, window="41")
    assert explained(model, x).extras["scores"].shape == (36,)  # windows of 5, every cell

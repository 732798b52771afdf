"""Every registered method through the same checks; a third party's method can be put through them as well."""

import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import penlight
import zoo
from penlight.errors import BadOption, CannotRun, PenlightError, UnknownName, UsageError
from penlight.inputs import open_data
from penlight.results import load_result
from penlight.techniques.contract import VERBS, Request, methods
from penlight.techniques.options import build, table

ALL = [(verb, name) for verb in VERBS for name in methods[verb]]
QUICK = {"steps": 6, "seeds": 2, "top": 3, "samples": 2, "limit": 20, "pairs": 8, "length": 6, "width": 4, "rounds": 3}
QUICK_MAPS = {"segments": "grid", "window": "5", "samples": 24}


@cache
def labelling():
    """What the methods of a survey need that give names to units: masks, and two encoders with words."""
    file = Path(tempfile.mkdtemp(prefix="penlight-test-")) / "masks.npz"
    np.savez(file, masks=np.random.default_rng(0).integers(0, 3, (11, 16, 16), np.uint8))
    return {"masks": str(file), "images": "module:zoo:see", "texts": "module:zoo:read", "words": "a,ab,abb"}


def kind_of(verb, name):
    """The kind of input that a method is tried on."""
    return "table" if verb == "formula" else methods[verb][name].kinds[0]


def opened(verb, name, network=None):
    """A network on the kind of input that the method is for."""
    kind = kind_of(verb, name)
    if kind == "text":
        return penlight.load(network or zoo.seeded(zoo.Reader), vocabulary="abc()", input={"unknown": "c"})
    if kind == "table":
        return penlight.load(network or zoo.seeded(zoo.Row), columns=["a", "b", {"name": "c", "mean": 0.5}, "d"])
    return penlight.load(network or zoo.seeded(zoo.Functional), example=torch.zeros(1, 1, 16, 16))


def network_of(verb, name):
    """The network of `opened`, new."""
    return zoo.seeded({"text": zoo.Reader, "table": zoo.Row}.get(kind_of(verb, name), zoo.Functional))


def quick(verb, name, channels=1):
    technique = methods[verb][name]
    known = {f.name for f in fields(technique)}
    wanted = QUICK | {"generator": f"module:zoo:painter{channels}"}
    wanted |= labelling() if verb == "survey" else {}
    wanted |= QUICK_MAPS if verb == "explain" else {}
    wanted |= {"limit": 20_000} if verb == "formula" else {}
    return build(technique, {k: v for k, v in wanted.items() if k in known})


def request(model, verb, name, **changes):
    numbers = np.random.default_rng(0).random((11, *model.contract.shape), np.float32)
    data = open_data(zoo.TEXTS if model.text else numbers, model.contract)
    if model.text:
        units = model.find("lstm.cell_l1:3") if verb == "visualize" else ()
        return Request(model, units, (), data, **{"seed": 3, **changes})
    if model.contract.kind == "table":
        units = model.find("conv1:1") if verb == "visualize" else ()
        given = data.read(3) if name == "affine" else None
        return Request(model, units, (), data, **{"seed": 3, "input": given, **changes})
    earlier = ()
    if (verb, name) in {("survey", "merge"), ("activations", "predictions")}:
        halves = [(0, 4), (4, 11)] if name == "merge" else [(0, 0)]
        stream = methods["survey"]["stream"]
        whole = Request(model, layers=["conv1", "fc"], data=data)
        earlier = tuple(build(stream, {"top": 3, "start": a, "stop": b}).run(whole) for a, b in halves)
    elif methods[verb][name].reads_survey:
        earlier = (surveyed(model, data),)
    units = {"visualize": ("conv1:1", "conv2:3", "fc:*"), "explain": ("fc:1",)}.get(verb, ())
    units = [u for text in units for u in model.find(text)]
    if name == "projections":
        units = [*model.find("conv2:1"), *model.find("fc:*")]
    layers = {"stream": ("conv1", "fc"), "filters": ()}.get(name, ())
    given = data.read(3) if verb == "explain" else None
    return Request(model, units, layers, data, earlier=earlier, **{"seed": 3, "input": given, **changes})


def surveyed(model, data):
    """A survey of all layers, for the methods that take one."""
    return build(methods["survey"]["stream"], {"top": 20}).run(Request(model, layers=list(model.layers), data=data))


def equal(a, b):
    assert a.kind == b.kind
    (data_a, arrays_a), (data_b, arrays_b) = a.state(), b.state()
    assert json.loads(json.dumps(data_a)) == json.loads(json.dumps(data_b))
    assert arrays_a.keys() == arrays_b.keys()
    for name in arrays_a:
        np.testing.assert_array_equal(arrays_a[name], arrays_b[name], err_msg=name)


@pytest.mark.parametrize(("verb", "name"), ALL)
def test_same_seed_same_bytes(verb, name):
    one, two = (quick(verb, name).run(request(opened(verb, name), verb, name)) for _ in range(2))
    equal(one, two)


@pytest.mark.parametrize(("verb", "name"), ALL)
def test_leaves_no_trace(verb, name):
    network = network_of(verb, name).train()
    model = opened(verb, name, network)
    asked = request(model, verb, name)
    before = {k: v.clone() for k, v in network.state_dict().items()}, [m.training for m in network.modules()]
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.is_grad_enabled(), torch.get_num_threads()
    quick(verb, name).run(asked)
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before[0].items())
    assert [m.training for m in network.modules()] == before[1]
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks and not m._backward_hooks for m in network.modules())
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])
    assert (torch.is_grad_enabled(), torch.get_num_threads()) == state[2:]


class BreaksLater(nn.Module):
    """Runs while it is looked at, and raises from then on."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 8, 3)
        self.fc = nn.Linear(8, 5)
        self.broken = False

    def forward(self, x):
        x = self.conv2(self.conv1(x))
        if self.broken:
            raise RuntimeError("the network breaks")
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("verb", "name"),
    [pair for pair in ALL if pair[1] not in ("merge", "filters", "dissect") and kind_of(*pair) == "image"],
)
def test_a_network_that_breaks_is_left_whole(verb, name):
    network = zoo.seeded(BreaksLater).train()
    model = penlight.load(network, example=torch.zeros(1, 1, 16, 16))
    asked = request(model, verb, name)
    _ = model.lines, model.hash
    network.broken = True
    with pytest.raises((CannotRun, RuntimeError), match="the network breaks"):
        quick(verb, name).run(asked)
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(("verb", "name"), ALL)
def test_results_survive_the_disk_and_speak_json(tmp_path, verb, name):
    result = quick(verb, name).run(request(opened(verb, name), verb, name))
    equal(load_result(result.save(tmp_path / "r")), result)
    told = json.loads(result.to_json())
    assert told["provenance"]["method"] == name
    assert told["provenance"]["technique"] == verb
    assert told["provenance"]["options"] == json.loads(json.dumps(asdict(quick(verb, name))))
    assert told["provenance"]["versions"]["torch"]
    assert result._repr_html_()


@pytest.mark.parametrize(("verb", "name"), ALL)
def test_options_are_declared_in_full_and_checked(verb, name):
    technique = methods[verb][name]
    assert technique.verb == verb
    assert technique.name == name
    assert technique.paper
    assert technique.__doc__
    for row in table(technique):
        assert row["help"], row["name"]
        assert row["default"] is not None, row["name"]
        if row["type"] in ("int", "float"):
            for bound, step in (("low", -1), ("high", 1)):
                if row[bound] is not None:
                    with pytest.raises(BadOption, match=row["name"].replace("_", "-")):
                        build(technique, {row["name"]: row[bound] + step})
            with pytest.raises(BadOption):
                build(technique, {row["name"]: "many"})
    with pytest.raises(UnknownName, match="option"):
        build(technique, {"no_such_option": 1})


@pytest.mark.parametrize(("verb", "name"), ALL)
def test_progress_runs_to_its_end(verb, name):
    steps = []
    quick(verb, name).run(request(opened(verb, name), verb, name, progress=lambda done, of: steps.append((done, of))))
    if steps:
        assert steps[-1][0] == steps[-1][1]
        assert [d for d, _ in steps] == sorted(d for d, _ in steps)


@pytest.mark.parametrize("verb", ["visualize", "survey"])
@pytest.mark.parametrize("network", zoo.NETWORKS)
def test_any_network(open_zoo, verb, network):
    model = open_zoo(network)
    for name in methods[verb]:
        if (
            name in ("merge", "filters", "dissect", "clip-labels")
            or model.contract.kind not in methods[verb][name].kinds
        ):
            continue
        data = open_data(np.random.default_rng(0).random((5, *model.contract.shape), np.float32), model.contract)
        units = [unit for path in model.layers for unit in model.find(f"{path}:0")] if verb == "visualize" else ()
        channels = 1 if len(model.contract.shape) == 1 else model.contract.shape[0]
        earlier = (surveyed(model, data),) if methods[verb][name].reads_survey else ()
        result = quick(verb, name, channels).run(Request(model, units, data=data, earlier=earlier))
        assert result.to_json()


EXPLAINS = [name for verb, name in ALL if verb == "explain" and name != "projections"]


@pytest.mark.parametrize("name", EXPLAINS)
@pytest.mark.parametrize("network", zoo.NETWORKS)
def test_any_layer_of_any_network_is_explained_or_politely_refused(open_zoo, network, name):
    model = open_zoo(network)
    data = open_data(np.random.default_rng(0).random((5, *model.contract.shape), np.float32), model.contract)
    for path in model.layers:
        asked = Request(model, model.find(f"{path}:0"), data=data, input=data.read(0))
        technique = quick("explain", name)
        try:
            result = technique.run(asked)
        except PenlightError as error:
            told = str(error)
        else:
            told = ""
        if told:
            assert "\n" not in told
            continue
        assert np.isfinite(result.values).all()
        assert result.values.shape == model.contract.shape or result.values.ndim == max(len(model.contract.size), 1)
        assert result.signed or (result.values >= 0).all()
        assert result.caption
        assert list(result.pictures())


@pytest.mark.parametrize("name", EXPLAINS)
def test_two_threads_explain_one_network(name):
    network = zoo.seeded(zoo.Functional).train()
    model = penlight.load(network, example=torch.zeros(1, 1, 16, 16))
    _ = model.lines, model.layers
    inputs = np.random.default_rng(0).random((4, 1, 16, 16), np.float32)
    data = open_data(inputs, model.contract)

    def ask(n):
        return quick("explain", name).run(Request(model, model.find("fc:1"), data=data, input=inputs[n])).values

    alone = [ask(n) for n in range(4)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(ask, range(4)))
    for one, two in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-5 * max(1, np.abs(one).max()))
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("verb", "name"),
    [
        ("survey", "stream"),
        ("survey", "merge"),
        ("activations", "predictions"),
        ("explain", "projections"),
        ("explain", "gradient"),
    ],
)
def test_what_is_lacking_is_said(open_zoo, verb, name):
    with pytest.raises(UsageError):
        quick(verb, name).run(Request(open_zoo("functional")))

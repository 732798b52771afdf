"""Every kind of model reference, and every way it can be wrong."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import penlight
import zoo
from penlight.errors import BadReference, BadWeights, UnknownName, Untrusted

CARD = """
source = "module:zoo:Functional"
weights = "weights.safetensors"
[input]
kind = "image"
shape = [1, 16, 16]
mean = [0.5]
std = [0.25]
labels = ["a", "b", "c", "d", "e"]
"""


@pytest.fixture
def card(tmp_path):
    network = zoo.seeded(zoo.Functional)
    save_file({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "weights.safetensors")
    (tmp_path / "card.toml").write_text(CARD)
    return tmp_path / "card.toml"


def test_a_card_brings_network_weights_input_and_labels(card):
    model = penlight.load(card)
    assert model.contract.shape == (1, 16, 16)
    assert model.contract.mean == (0.5,)
    assert model.labels == ("a", "b", "c", "d", "e")
    own = zoo.seeded(zoo.Functional).half().float()
    x = np.random.default_rng(0).random((3, 1, 16, 16), np.float32)
    with torch.no_grad():
        expected = own((torch.from_numpy(x) - 0.5) / 0.25).softmax(1)
    np.testing.assert_allclose(model.predict(x), expected.numpy(), atol=1e-6)
    assert next(model.network.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("old", "new", "error", "says"),
    [
        ("source =", "sorce =", UnknownName, "did you mean 'source'"),
        ('source = "module:zoo:Functional"', "", BadReference, "lacks source"),
        ("module:zoo:Functional", "module:zoo:Functonal", UnknownName, "did you mean 'Functional'"),
        ("module:zoo:Functional", "module:no_such_module:F", BadReference, "no Python module 'no_such_module'"),
        ("module:zoo:Functional", "module:zoo", BadReference, "module:package.mod:callable"),
        ("module:zoo:Functional", "module:zoo:seeded", Untrusted, "--trust"),
        ("module:zoo:Functional", "modul:zoo:Functional", UnknownName, "did you mean 'module'"),
        ("weights.safetensors", "wights.safetensors", BadWeights, "no weights file"),
        ("shape = [1, 16, 16]", "", BadReference, "lacks 'shape'"),
        ("shape = [1, 16, 16]", "shape = [1, 16]", BadReference, "[channels, height, width]"),
        ("shape = [1, 16, 16]", "shape = [1, 0, 16]", BadReference, "above 0"),
        ("mean = [0.5]", "mean = [0.5, 0.5]", BadReference, "2 values for 1 channels"),
        ("std = [0.25]", "std = [0]", BadReference, "above 0"),
        ('kind = "image"', 'kind = "imge"', UnknownName, "did you mean 'image'"),
        ("mean =", "maen =", UnknownName, "did you mean 'mean'"),
        ('labels = ["a", "b", "c", "d", "e"]', 'labels = "labels.json"', BadReference, "labels.json"),
        ('labels = ["a", "b", "c", "d", "e"]', 'labels = ["a"]', BadReference, "one label an output"),
        ("[input]", "[input", BadReference, "is no model card"),
    ],
)
def test_what_is_wrong_with_a_card_is_one_line(card, old, new, error, says):
    text = card.read_text()
    assert old in text
    card.write_text(text.replace(old, new))
    with pytest.raises(error) as raised:
        penlight.load(card)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_weights_that_do_not_fit_name_the_keys(card):
    state = zoo.seeded(zoo.Functional).state_dict()
    state["conv9.weight"] = state.pop("conv2.weight")
    state["fc.weight"] = torch.zeros(5, 7)
    save_file(state, card.parent / "weights.safetensors")
    with pytest.raises(BadWeights) as raised:
        penlight.load(card)
    for part in ("1 missing (conv2.weight)", "conv9.weight", "fc.weight: file [5, 7], network [5, 128]"):
        assert part in str(raised.value)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_told(card, keep):
    file = card.parent / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(BadWeights, match="cut off or no safetensors"):
        penlight.load(card)


def test_pickles_need_trust(card):
    network = zoo.seeded(zoo.Functional)
    torch.save({"state_dict": network.state_dict()}, card.parent / "weights.pt")
    card.write_text(CARD.replace("weights.safetensors", "weights.pt"))
    with pytest.raises(Untrusted, match="--trust"):
        penlight.load(card)
    assert torch.equal(penlight.load(card, trust=True).network.fc.weight, network.fc.weight)
    (card.parent / "weights.pt").write_bytes(b"garbage")
    with pytest.raises(BadWeights, match="cannot be read"):
        penlight.load(card, trust=True)


def test_a_card_cannot_call_any_function(card, tmp_path):
    card.write_text(
        f'source = "module:subprocess:check_call"\n[options]\nargs = ["touch", "{tmp_path}/ran"]\n[input]\nshape = [1, 8, 8]\n'
    )
    with pytest.raises(Untrusted):
        penlight.load(card)
    assert not (tmp_path / "ran").exists()


def test_labels_from_a_file(card):
    card.write_text(CARD.replace('["a", "b", "c", "d", "e"]', '"labels.json"'))
    (card.parent / "labels.json").write_text(json.dumps({str(n): f"l{n}" for n in range(5)}))
    assert penlight.load(card).labels == ("l0", "l1", "l2", "l3", "l4")
    card.write_text(CARD.replace('["a", "b", "c", "d", "e"]', '"labels.txt"'))
    (card.parent / "labels.txt").write_text("v\nw\nx\ny\nz\n")
    assert penlight.load(card).labels == ("v", "w", "x", "y", "z")


def test_module_references():
    model = penlight.load("module:zoo:Functional", example=(1, 16, 16))
    assert model.layers["conv1"].units == 6
    assert penlight.load("module:zoo:Functional", example=(3, 16, 16), options={"channels": 3}).contract.channels == 3
    with pytest.raises(BadReference, match="give an example"):
        penlight.load("module:zoo:Functional")
    with pytest.raises(BadReference, match="failed: TypeError"):
        penlight.load("module:zoo:Functional", example=(1, 16, 16), options={"chanels": 3})
    with pytest.raises(BadReference, match="has to return a torch.nn.Module"):
        penlight.load("module:builtins:dict", example=(1,))


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("leters", UnknownName, "did you mean 'letters'"),
        ("nowhere.toml", BadReference, "no model card nowhere.toml"),
        ("weights.safetensors", BadReference, "write a model card"),
        ("model.pt", BadReference, "write a model card"),
        ("model.onnx", BadReference, "ONNX"),
        ("torchvison:alexnet", UnknownName, "did you mean 'torchvision'"),
    ],
)
def test_references_that_are_none(reference, error, says):
    with pytest.raises(error) as raised:
        penlight.load(reference)
    assert says in str(raised.value)


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def libraries():
    from penlight.models.sources.vision import import_torchvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()


def test_torchvision_without_its_operators_still_loads_and_warns_once():
    """In a process of its own: what the first import does cannot be undone."""
    pytest.importorskip("torch")
    code = (
        "import warnings, torch\n"
        "from penlight.models.sources.vision import import_torchvision, _declared\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    one = import_torchvision(); two = import_torchvision()\n"
        "assert one is two and one.models.squeezenet1_0\n"
        "fitting = not _declared\n"
        "told = [w for w in seen if 'operators do not fit' in str(w.message)]\n"
        "assert len(told) == (0 if fitting else 1), seen\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_torchvision_networks_with_weights_from_the_hubs_cache(libraries, tmp_path, monkeypatch):
    """The real loading code, with a small file where the download would have put it."""
    import torchvision

    weights = torchvision.models.SqueezeNet1_1_Weights.DEFAULT
    made = zoo.seeded(lambda: torchvision.models.squeezenet1_1(weights=None))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / weights.url.rpartition("/")[2]
    place.parent.mkdir(parents=True)
    torch.save(made.state_dict(), place)
    model = penlight.load("torchvision:squeezenet1_1")
    assert model.labels[281] == "tabby"
    assert model.contract.mean == (0.485, 0.456, 0.406)
    assert model.contract.crop == 224 / 256
    assert torch.equal(model.network.features[0].weight, made.features[0].weight)


def test_weights_that_cannot_be_had_are_told(libraries, tmp_path, monkeypatch):
    import torchvision

    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", refuse)
    with pytest.raises(BadReference, match=r"cannot be had \(no route to host\).*model card"):
        penlight.load("torchvision:squeezenet1_1")
    from penlight.models import load_model

    with pytest.warns(UserWarning, match="untrained network"):
        assert load_model("torchvision:squeezenet1_1", weights="any").layers["features.0"].units == 64
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        penlight.load("torchvision:resnt18")


def test_timm_cards(libraries, tmp_path):
    timm = pytest.importorskip("timm")
    network = zoo.seeded(lambda: timm.create_model("mobilenetv2_035", num_classes=3))
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "card.toml").write_text(
        'source = "timm:mobilenetv2_035"\nweights = "w.safetensors"\n[options]\nnum_classes = 3\n'
        "[input]\nshape = [3, 64, 64]\n"
    )
    model = penlight.load(tmp_path / "card.toml")
    assert model.class_layer == "classifier"
    folded = model.prepared()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    x = model.example()
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model.network.eval()(x), rtol=1e-3, atol=1e-4)
    with pytest.raises(UnknownName, match="mobilenetv2_100"):
        penlight.load("timm:mobilenetv2_10")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vocabulary": "abc", "mean": [0.5]}, ["tokens", "leave out mean"]),
        ({"columns": ["a", "b"], "mean": [1.0], "std": [2.0]}, ["columns", "mean and std"]),
        (
            {"input": {"kind": "image", "shape": [3, 8, 8]}, "std": [1.0, 1.0, 1.0]},
            ["stands in input", "give std there"],
        ),
    ],
)
def test_a_normalisation_that_would_count_for_nothing_is_refused(given, words):
    with pytest.raises(BadReference) as told:
        penlight.load(nn.Linear(2, 2), **given)
    assert all(word in str(told.value) for word in words)

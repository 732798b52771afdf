"""Where the places of a layer lie, in maps of every layout and in rows of tokens."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import penlight
import zoo
from penlight.inputs import InputContract
from penlight.models import Model
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.explain.grid import Grid, grids


def opened(network, *shape):
    return Model(network.eval(), InputContract("array", shape))


def every(model):
    """The grids of all layers before the class scores."""
    return grids(model, model.class_layer)


def create(name, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_torchvision()  # which timm imports, and which may not fit the installed torch
        import timm

        return zoo.seeded(lambda: timm.create_model(name, pretrained=False, **options))


# network, its options, input, a layer: its grid and the tokens that are no place
TRANSFORMERS = [
    ("vit_tiny_patch16_224", {"img_size": (64, 96)}, (64, 96), "blocks.11.norm1", (4, 6), (0,)),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64}, (64, 64), "blocks.11", (4, 4), (0, 1)),
    ("vit_little_patch16_reg4_gap_256", {"img_size": (32, 80)}, (32, 80), "norm", (2, 5), (0, 1, 2, 3)),
    ("vit_medium_patch16_reg1_gap_256", {"img_size": 64, "class_token": True}, (64, 64), "norm", (4, 4), (0, 1)),
    ("swin_tiny_patch4_window7_224", {"img_size": (64, 96), "window_size": 4}, (64, 96), "norm", (2, 3), ()),
    ("convnext_atto", {}, (64, 96), "stages.3", (2, 3), ()),
]


@pytest.mark.parametrize(("name", "options", "size", "path", "shape", "extra"), TRANSFORMERS)
def test_grids_nobody_tells(name, options, size, path, shape, extra):
    found = every(opened(create(name, **options), 3, *size))
    assert found[path] == Grid(path, shape, extra)


def test_heads_and_windows_are_no_places():
    swin = opened(create("swin_tiny_patch4_window7_224", img_size=(64, 96), window_size=4), 3, 64, 96)
    found = every(swin)
    assert "layers.0.blocks.0.attn.qkv" in swin.layers  # 24 windows of 16 tokens
    assert not [path for path in found if "attn" in path and path.startswith("layers.0")]
    assert found["layers.1.downsample.norm"].shape == (8, 12)
    square = opened(create("swin_tiny_patch4_window7_224", img_size=64, window_size=4), 3, 64, 64)
    found = every(square)
    assert "layers.0.blocks.0.attn.qkv" not in found  # 16 tokens a window, which 4 × 4 places would be as well
    assert found["layers.2.blocks.0.mlp.fc2"] == Grid("layers.2.blocks.0.mlp.fc2", (4, 4))
    vit = opened(create("vit_tiny_patch16_224", img_size=64), 3, 64, 64)
    assert len(vit.layers["blocks.0.attn.k_norm"].positions) == 2
    assert "blocks.0.attn.k_norm" not in every(vit)


def test_torchvision_names_its_layers_otherwise():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformer = import_torchvision().models.VisionTransformer
    network = zoo.seeded(lambda: transformer(32, 8, 2, 2, 16, 32, num_classes=4))
    found = every(opened(network, 3, 32, 32))
    assert found["encoder.ln"] == Grid("encoder.ln", (4, 4), (0,))


class Patches(nn.Module):
    """Patches cut by hand, `front` and `back` tokens of its own around them, then a mixing layer."""

    def __init__(self, patch=4, front=1, back=0, channels=3):
        super().__init__()
        self.patch, width = patch, 8
        self.embed = nn.Linear(channels * patch * patch, width)
        self.front, self.back = (nn.Parameter(torch.randn(1, n, width)) for n in (front, back))
        self.norm = nn.LayerNorm(width)
        self.mix = nn.MultiheadAttention(width, 2, batch_first=True)
        self.after = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2))
        x = torch.cat([self.front.expand(len(x), -1, -1), x, self.back.expand(len(x), -1, -1)], 1)
        x = self.norm(x)
        return self.head(self.after(x + self.mix(x, x, x)[0]).mean(1))


@pytest.mark.parametrize(
    ("front", "back", "extra"),
    [(0, 0, ()), (1, 0, (0,)), (0, 2, (15, 16)), (1, 4, (0, 16, 17, 18, 19)), (5, 0, tuple(range(5)))],
)
def test_extra_tokens_are_found_where_they_stand(front, back, extra):
    found = every(opened(zoo.seeded(lambda: Patches(4, front, back)), 3, 12, 20))
    assert found["after"] == Grid("after", (3, 5), extra)
    assert found["mix"].extra == extra  # where all tokens depend on the input


def test_attention_of_tokens_to_tokens_is_no_map():
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.weigh, self.head = nn.Linear(27, 8), nn.Softmax(-1), nn.Linear(8, 3)

        def forward(self, x):
            x = self.embed(F.unfold(x, 3, stride=3).transpose(1, 2))
            heads = torch.stack([x @ x.mT, x @ x.mT], 1)
            return self.head((self.weigh(heads).mean(1) @ x).mean(1))

    model = opened(zoo.seeded(Weighed), 3, 12, 12)
    assert model.layers["weigh"].positions == (16, 16)
    assert every(model) == {"embed": Grid("embed", (4, 4))}


def test_a_class_token_made_from_the_patches():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.cut(x).flatten(2).transpose(1, 2)
            return self.head(self.norm(torch.cat([x.mean(1, keepdim=True), x], 1))[:, 0])

    assert every(opened(zoo.seeded(Pooled), 3, 8, 16))["norm"] == Grid("norm", (2, 4), (0,))


def test_places_drop_the_extra_tokens_and_keep_the_order():
    units = torch.arange(2 * 8.0).reshape(1, 2, 8)
    found = Grid("x", (2, 3), (0, 7)).places(units)
    assert found.shape == (1, 2, 2, 3)
    assert found[0, 0].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert Grid("x", (2, 4)).places(units)[0, 1].tolist() == [[8, 9, 10, 11], [12, 13, 14, 15]]


def test_tokens_lie_where_their_patches_do():
    """A patch moves the token at its own place, and no other."""
    model = opened(zoo.seeded(lambda: Patches(4, 2, 1)), 3, 12, 20)
    grid, kept = every(model)["norm"], []
    x = torch.zeros(2, 3, 12, 20)
    x[1, :, 8:12, 4:8] = 1
    with torch.no_grad(), penlight.models.Probe(model.network, {"norm": lambda out: kept.append(out.clone())}) as probe:
        probe(x)
    places = grid.places(model.layers["norm"].units_first(kept[0]))
    moved = (places[1] - places[0]).abs().sum(0) > 0
    assert torch.nonzero(moved).tolist() == [[2, 1]]


def test_maps_of_one_two_and_three_axes():
    one = every(opened(zoo.seeded(zoo.Signal), 2, 40))
    assert [(path, grid.shape) for path, grid in one.items()] == [("conv1", (20,)), ("conv2", (16,))]
    volume = nn.Sequential(
        nn.Conv3d(1, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    three = every(opened(volume, 1, 7, 9, 11))
    assert {path: grid.shape for path, grid in three.items()} == {"0": (3, 4, 5), "1": (3, 4, 5)}
    last = every(opened(zoo.seeded(zoo.ChannelsLast), 3, 12, 8))
    assert last["up"].shape == (6, 4)


def test_tokens_of_a_signal():
    class Signal(nn.Module):
        def __init__(self):
            super().__init__()
            self.cut, self.token = nn.Conv1d(2, 8, 5, 5), nn.Parameter(torch.randn(1, 1, 8))
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x):
            x = self.cut(x).transpose(1, 2)
            return self.head(self.norm(torch.cat([self.token.expand(len(x), -1, -1), x], 1)).mean(1))

    assert every(opened(zoo.seeded(Signal), 2, 40))["norm"] == Grid("norm", (8,), (0,))


def test_only_layers_that_run_before_and_have_places(open_zoo):
    model = open_zoo("functional")
    assert list(grids(model, model.class_layer)) == ["conv1", "conv2"]
    assert list(grids(model, "conv2")) == ["conv1"]
    assert every(open_zoo("table")) == {}
    assert "pool" not in every(open_zoo("in-place"))  # 1 × 1

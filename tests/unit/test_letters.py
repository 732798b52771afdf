"""The specimen `letters`: what ships, and the parts of the script that made it. No fonts are needed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file

from penlight.specimens import letters  # noqa: E402
from penlight.specimens.letters import augment, render, train  # noqa: E402
from penlight.specimens.letters.network import Letters  # noqa: E402

FOLDER = Path(letters.__file__).parent


@pytest.fixture(scope="module")
def card() -> dict[str, Any]:
    return tomllib.loads(letters.CARD.read_text())


@pytest.fixture(scope="module")
def net(card: dict[str, Any]) -> Letters:
    state = load_file(FOLDER / card["weights"])
    assert {v.dtype for v in state.values()} == {torch.float16}
    net = Letters()
    net.load_state_dict({k: v.float() for k, v in state.items()}, strict=True)
    return net.eval()


@pytest.fixture(scope="module")
def sample() -> Any:
    with np.load(letters.DATA, allow_pickle=False) as data:
        return {k: data[k] for k in data.files}


@pytest.fixture(scope="module")
def inputs(sample: Any, card: dict[str, Any]) -> Any:
    x = torch.from_numpy(sample["images"]).float().unsqueeze(1) / 255
    return (x - card["input"]["mean"][0]) / card["input"]["std"][0]


def test_folder_is_small() -> None:
    assert sum(p.stat().st_size for p in FOLDER.rglob("*") if "__pycache__" not in p.parts) < 3_000_000


def test_importing_the_package_is_light() -> None:
    code = "import sys, penlight.specimens.letters as m; assert m.CARD.exists() and m.DATA.exists()"
    code += "; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    env = {"PYTHONPATH": str(FOLDER.parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_five_weighted_layers(net: Letters) -> None:
    weighted = [n for n, m in net.named_modules() if getattr(m, "weight", None) is not None]
    assert weighted == ["conv1", "conv2", "conv3", "conv4", "fc"]
    assert net.conv1.weight.shape == (16, 1, 5, 5)
    assert net.fc.out_features == 10
    assert sum(p.numel() for p in net.parameters()) <= 350_000
    assert train.multiply_adds(net) <= 9_000_000


def test_sample_is_balanced(sample: Any, card: dict[str, Any]) -> None:
    images, labels = sample["images"], sample["labels"]
    assert images.dtype == np.uint8
    assert images.shape == (len(labels), 28, 28)
    assert len(labels) >= 2000
    counts = np.bincount(labels, minlength=10)
    assert counts.min() == counts.max() >= 200
    assert (np.bincount(labels[:50], minlength=10) == 5).all(), "any prefix is balanced"
    assert sample["families"].max() == len(sample["family_names"]) - 1
    assert card["input"]["labels"] == list("ABCDEFGHIJ")


def test_weights_reach_the_card(net: Letters, inputs: Any, sample: Any, card: dict[str, Any]) -> None:
    with torch.no_grad():
        right = (net(inputs).argmax(1).numpy() == sample["labels"]).mean()
    assert right >= 0.96
    assert right == pytest.approx(card["figures"]["accuracy_sample"], abs=0.003)
    assert right == pytest.approx(card["figures"]["accuracy_unseen_families"], abs=0.015)
    assert card["figures"]["parameters"] == sum(p.numel() for p in net.parameters())
    assert card["figures"]["multiply_adds"] == train.multiply_adds(net)


def test_no_channel_is_dead(net: Letters, inputs: Any) -> None:
    shares: list[Any] = []
    hooks = [
        getattr(net, f"conv{n}").register_forward_hook(
            lambda _module, _inputs, out: shares.append((out.amax((2, 3)) > 0).float().mean(0))
        )
        for n in (1, 2, 3, 4)
    ]
    with torch.no_grad():
        net(inputs)
    for hook in hooks:
        hook.remove()
    assert len(shares) == 4
    assert min(float(s.min()) for s in shares) > 0.005


def fake_face(family: str, seed: int, kind: str = "sans", noise: float = 0.0) -> render.Face:
    """Ten random blocky shapes; the same seed draws the same shapes."""
    rng = np.random.default_rng(seed)
    glyphs = np.kron(rng.integers(0, 2, (10, 7, 7)), np.ones((8, 8))) * 255
    glyphs = np.clip(glyphs + np.random.default_rng(99).normal(0, noise, glyphs.shape), 0, 255)
    return render.Face(family, render.family_key(family), kind, glyphs.astype(np.uint8), None)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("DejaVu Sans Mono", "dejavu"),
        ("DejaVu Serif Condensed", "dejavu"),
        ("FiraSans-BoldItalic", "fira"),
        ("Noto Sans Devanagari", "noto"),
        ("Chancery", "chancery"),
        ("Sans", "sans"),
    ],
)
def test_family_key(name: str, key: str) -> None:
    assert render.family_key(name) == key


def test_distinct_drops_a_copy_and_a_near_copy() -> None:
    faces = [fake_face("Alpha", 1), fake_face("Beta", 1), fake_face("Gamma", 1, noise=6)]
    faces.append(fake_face("Delta", 2))
    assert [f.family for f in render.distinct(faces)] == ["Alpha", "Delta"]
    assert render.distinct([]) == []


def test_groups_join_families_and_look_alikes() -> None:
    faces = [fake_face("Alpha Sans", 1), fake_face("Alpha Mono", 2), fake_face("Beta", 2, noise=30)]
    faces.append(fake_face("Gamma", 3))
    group = render.groups(faces)
    assert group[0] == group[1] == group[2] != group[3]


def test_split_keeps_groups_whole() -> None:
    faces = [fake_face(f"Family {chr(97 + n // 3)}", n, "sans" if n < 45 else "serif") for n in range(78)]
    unseen, group = render.split(faces, share=0.25, seed=3)
    assert 0 < unseen.sum() < len(faces)
    assert not set(group[unseen]) & set(group[~unseen])
    assert not {f.key for f, u in zip(faces, unseen, strict=True) if u} & {
        f.key for f, u in zip(faces, unseen, strict=True) if not u
    }
    assert {f.kind for f, u in zip(faces, unseen, strict=True) if u} == {"sans", "serif"}
    again, _ = render.split(faces, share=0.25, seed=3)
    assert (again == unseen).all()
    none, _ = render.split(faces, share=0.25, seed=3, largest=2)
    assert not none.any(), "large groups stay in training"


def test_tight_crop_keeps_proportions_and_touches_the_frame() -> None:
    ink = np.zeros((200, 300), np.uint8)
    ink[30:130, 200:240] = 255
    out = render.tight_crop(ink, 56)
    assert out is not None
    assert out.shape == (56, 56)
    rows, cols = np.flatnonzero(out.any(1)), np.flatnonzero(out.any(0))
    assert (rows[0], rows[-1]) == (0, 55)
    assert len(cols) == round(56 * 0.4)
    assert abs((cols[0] + cols[-1]) / 2 - 27.5) <= 0.5
    assert out.max() == 255
    assert out[:, cols].mean() > 250
    assert render.tight_crop(np.zeros((9, 9), np.uint8)) is None
    bar = render.tight_crop(np.full((3, 400), 255, np.uint8))
    assert bar is not None
    assert bar.any()


def test_reduce_is_the_mean_of_two_by_two() -> None:
    big = np.zeros((1, 56, 56), np.uint8)
    big[0, 0, 0], big[0, 54:, 54:] = 200, 255
    small = render.reduce_pictures(big)
    assert small.shape == (1, 28, 28)
    assert small[0, 0, 0] == 50
    assert small[0, 27, 27] == 255
    assert small.sum() == 305


def test_augment_gives_pictures() -> None:
    torch.manual_seed(0)
    glyphs = torch.from_numpy(np.concatenate([fake_face("x", n).glyphs for n in range(8)]))
    out = augment.augment(glyphs)
    assert out.shape == (80, 1, 28, 28)
    assert out.dtype == torch.float32
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert bool(torch.isfinite(out).all())
    plain = torch.from_numpy(render.reduce_pictures(glyphs[:1].numpy()))[0].float()
    assert torch.allclose(out[0, 0] * 255, plain, atol=1)


def test_ink_box_and_stretch() -> None:
    picture = np.zeros((1, 56, 56), np.uint8)
    picture[0, 14:42, 21:35] = 255
    centre, half = augment.ink_box(torch.from_numpy(picture).unsqueeze(1).float() / 255)
    assert torch.allclose(centre, torch.zeros(1, 2))
    assert torch.allclose(half, torch.tensor([[0.25, 0.5]]))
    assert train.stretched(picture).min() > 100


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    trainee = train.Trainee()
    x = torch.randn(32, 1, 28, 28)
    trainee(x)
    trainee.eval()
    with torch.no_grad():
        for norm in trainee.norms:
            for parameter in norm.parameters():
                parameter.uniform_(0.5, 2)
        assert torch.allclose(trainee(x), trainee.folded()(x), atol=1e-4)


def test_drawn_sample_is_balanced_and_repeatable() -> None:
    faces = [fake_face(f"F{n}", n) for n in range(30)]
    face, label = train.draw_sample(faces, 5)
    assert (np.bincount(label) == 30).all()
    assert sorted(label[:10]) == list(range(10))
    assert len(set(zip(face.tolist(), label.tolist(), strict=True))) == len(face)
    again = train.draw_sample(faces, 5)
    assert (again[0] == face).all()
    assert (again[1] == label).all()


def test_no_fonts_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--fonts", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no font files found" in err
    assert not list(tmp_path.glob("out/*"))


def test_files_that_are_no_fonts_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    assert render.find_fonts([tmp_path]) == [tmp_path / "broken.ttf"]
    assert render.render_face(tmp_path / "broken.ttf") is None


def test_unusable_device_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--fonts", str(tmp_path), "--device", "nonsense", "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--device nonsense" in err

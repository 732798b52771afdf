"""The generator of the specimen `letters`: what ships, and the parts of the script that made it. No fonts are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
load_file = pytest.importorskip("safetensors.torch").load_file

from penlight.specimens import letters  # noqa: E402
from penlight.specimens.letters import render, train, train_generator  # noqa: E402
from penlight.specimens.letters.generator import Generator, encode, on_sphere, open_generator  # noqa: E402
from penlight.specimens.letters.network import Letters  # noqa: E402


@pytest.fixture(scope="module")
def generator() -> Generator:
    return open_generator()


@pytest.fixture(scope="module")
def net() -> Letters:
    return train_generator.load_network()


@pytest.fixture(scope="module")
def sample() -> Any:
    """Glyphs float (1000, 1, 28, 28) in [0, 1] of held-out families, and their classes."""
    with np.load(letters.DATA, allow_pickle=False) as data:
        images, labels = data["images"][:1000], data["labels"][:1000]
    return torch.from_numpy(images).float().unsqueeze(1) / 255, torch.from_numpy(labels).long()


@pytest.fixture(scope="module")
def codes(net: Letters, sample: Any) -> Any:
    with torch.no_grad():
        return encode(net, train_generator.normalised(sample[0]))


def test_weights_are_small_and_half_precision() -> None:
    assert letters.GENERATOR.stat().st_size < 700_000
    assert {value.dtype for value in load_file(letters.GENERATOR).values()} == {torch.float16}


def test_opened_ready_to_use(generator: Generator) -> None:
    assert not generator.training
    assert not any(p.requires_grad for p in generator.parameters())
    assert {v.dtype for v in generator.state_dict().values()} == {torch.float32}


def test_any_code_gives_a_picture(generator: Generator) -> None:
    draws = torch.Generator().manual_seed(0)
    normal = torch.randn(6, *generator.code_shape, generator=draws)
    ends = torch.rand(6, *generator.code_shape, generator=draws).round() * generator.code_high
    pictures = generator(torch.cat((normal, 1000 * normal, ends, torch.zeros(1, *generator.code_shape))))
    assert pictures.shape == (19, 1, 28, 28)
    assert pictures.dtype == torch.float32
    assert bool(torch.isfinite(pictures).all())
    assert float(pictures.min()) >= 0
    assert float(pictures.max()) <= 1
    assert float(pictures[0].max() - pictures[0].min()) > 0.5, "a glyph, not a grey field"


def test_each_code_is_drawn_by_itself(generator: Generator, codes: Any) -> None:
    together = generator(codes[:8])
    alone = torch.cat([generator(code.unsqueeze(0)) for code in codes[:8]])
    assert torch.allclose(together, alone, atol=1e-5)


def test_code_is_what_the_last_layer_reads(net: Letters, sample: Any, codes: Any) -> None:
    x = train_generator.normalised(sample[0][:50])
    assert codes.shape[1:] == (1152,)
    assert torch.allclose(net.fc(codes[:50]), net(x), atol=1e-4)


def test_code_range_fits_real_codes(generator: Generator, codes: Any) -> None:
    low, high = generator.code_low, generator.code_high
    assert low.shape == high.shape == generator.code_shape
    assert bool((low == 0).all()), "the code is rectified"
    assert bool((high > 0).all())
    assert torch.allclose(high, generator.code_mean + 3 * generator.code_std, rtol=2e-3, atol=1e-3)
    inside = ((codes >= low) & (codes <= high)).float().mean()
    assert 0.95 < float(inside) < 0.999
    apart = (codes.mean(0) - generator.code_mean).abs() / generator.code_std
    assert float(apart.median()) < 0.25, "held-out glyphs have codes like the training glyphs'"


def test_reconstructions_read_as_their_glyphs(generator: Generator, net: Letters, sample: Any, codes: Any) -> None:
    glyphs, labels = sample
    with torch.no_grad():
        drawn = generator(codes)
        said = net(train_generator.normalised(drawn)).argmax(1)
        own_answer = net(train_generator.normalised(glyphs)).argmax(1)
    assert float((said == labels).float().mean()) >= 0.93
    assert float((said == own_answer).float().mean()) >= 0.95
    own = (train_generator.directions(glyphs) * train_generator.directions(drawn)).sum(1)
    other = (train_generator.directions(glyphs) * train_generator.directions(drawn.roll(10, 0))).sum(1)
    assert float(own.mean()) >= 0.8
    assert float((own > other).float().mean()) >= 0.95, "drawn after the glyph itself"


def test_ascent_draws_every_class(generator: Generator, net: Letters) -> None:
    classes = torch.arange(10)
    pictures, code = train_generator.ascend(generator, net, classes, rate=0.5, seed=3, steps=60)
    with torch.no_grad():
        said = net(train_generator.normalised(pictures)).argmax(1)
    assert float((said == classes).float().mean()) >= 0.95
    assert bool((code >= generator.code_low).all())
    assert bool((code <= generator.code_high).all())


def test_on_sphere() -> None:
    out = on_sphere(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert torch.allclose(out, torch.tensor([[3.0, 4.0], [0.0, 0.0]]) / 12.5**0.5, atol=1e-4)


def test_nearest_and_likeness() -> None:
    draws = torch.Generator().manual_seed(1)
    known = torch.rand(3, 10, 28, 28, generator=draws)
    pictures, classes = known[1].unsqueeze(1), torch.arange(10)
    right, correlation = train_generator.nearest(pictures, classes, known)
    assert (right, correlation) == (1.0, pytest.approx(1.0, abs=1e-5))
    right, correlation = train_generator.nearest(pictures, classes.roll(1), known)
    assert right == 0.0
    assert abs(correlation) < 0.2
    twins = pictures.repeat(2, 1, 1, 1)
    assert train_generator.likeness(twins, classes.repeat(2)) == pytest.approx(1.0, abs=1e-5)


def test_sheet_places_pictures_in_rows() -> None:
    blocks = [torch.ones(4, 1, 28, 28), torch.zeros(3, 1, 28, 28)]
    out = train_generator.sheet(blocks, columns=2)
    assert out.shape == (2 * (2 * 30 + 4 + 2 * 30 + 4), 2 * 60)
    assert out.dtype == np.uint8
    assert out[2, 2] == 255
    assert out[2 * 64 + 2, 2] == 0
    assert 0 < out[0, 0] < 255


def fake_face(family: str, seed: int) -> render.Face:
    rng = np.random.default_rng(seed)
    glyphs = np.kron(rng.integers(0, 2, (10, 7, 7)), np.ones((8, 8))).astype(np.uint8) * 255
    return render.Face(family, render.family_key(family), "sans", glyphs, None)


def test_shipped_families_and_their_like_are_left_out() -> None:
    with np.load(letters.DATA, allow_pickle=False) as data:
        shipped = [str(name) for name in data["family_names"][::20]]
    own = {f"Family {chr(97 + n)}" for n in range(20)}
    faces = [fake_face(name, n) for n, name in enumerate(sorted(own))]
    faces += [fake_face(name, 50 + n) for n, name in enumerate(shipped)]
    faces += [fake_face(f"Copied {chr(97 + n)}", 50 + n) for n in range(len(shipped))]
    hidden, _ = render.split(faces, train_generator.SHARE, train_generator.SPLIT_SEED)
    assert not hidden[20:].all(), "the split alone would let some through"
    kept = {face.family for face in train_generator.training_faces(faces)}
    assert kept == {face.family for face, hide in zip(faces, hidden, strict=True) if not hide} & own


def test_a_few_steps_of_training(net: Letters) -> None:
    torch.manual_seed(0)
    glyphs = train.as_glyphs([fake_face(f"F{n}", n) for n in range(6)])
    args = train_generator.options(["--steps", "8", "--batch", "8"])
    trained = train_generator.fit(glyphs.upper, glyphs.weight, net, args)
    assert float(trained.code_high.max()) > 0
    x = train_generator.draw_batch(glyphs.upper, glyphs.weight, 64)
    with torch.no_grad():
        before = Generator()
        before.load_state_dict({k: v for k, v in trained.state_dict().items() if "code" in k}, strict=False)
        losses = [float(train_generator.reconstruction(g, net, x)[0]) for g in (before, trained)]
    assert losses[1] < losses[0]


def test_no_fonts_is_one_line_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_generator.main(["--fonts", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no font files found" in err

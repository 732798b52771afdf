"""Data sets of every kind, read to the contract."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from penlight.errors import BadInput
from penlight.inputs import InputContract, batches, open_data, read_picture

GREY = InputContract("image", (1, 12, 12), crop=1.0)
COLOUR = InputContract("image", (3, 16, 24))


def picture(seed, size=(12, 12), channels=1):
    shape = (size[1], size[0]) + ((channels,) if channels > 1 else ())
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path):
    for n, name in enumerate(["b/2.png", "a/1.png", "a/0.PNG", "loose.png"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(n)).save(tmp_path / name, "PNG")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    return tmp_path


def read_all(data, size=2):
    return list(batches(data, size))


def test_folders_are_read_in_order_with_their_classes(folder):
    data = open_data(folder, GREY)
    assert data.classes == ("a", "b")
    assert [data.label(i) for i in range(len(data))] == [
        ("a/0.PNG", 0),
        ("a/1.png", 0),
        ("b/2.png", 1),
        ("loose.png", None),
    ]
    np.testing.assert_array_equal(data.read(2)[0], picture(0))
    assert [b.index for b in read_all(data, 3)] == [(0, 1, 2), (3,)]


@pytest.mark.parametrize("damage", [b"", b"no picture", "cut"])
def test_a_picture_that_is_none_is_named_and_left_out(folder, damage):
    whole = (folder / "a" / "1.png").read_bytes()
    (folder / "a" / "1.png").write_bytes(whole[: len(whole) // 2] if damage == "cut" else damage)
    found = read_all(open_data(folder, GREY), 10)[0]
    assert found.index == (0, 2, 3)
    assert found.inputs.shape == (3, 1, 12, 12)
    ((index, name, reason),) = found.skipped
    assert (index, name) == (1, "a/1.png")
    assert "a/1.png is no readable picture" in reason


def test_an_empty_folder_and_a_missing_one(tmp_path):
    with pytest.raises(BadInput, match="holds no pictures"):
        open_data(tmp_path, GREY)
    with pytest.raises(BadInput, match="no data at"):
        open_data(tmp_path / "no", GREY)
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(BadInput, match="is no data set"):
        open_data(tmp_path / "x.csv", GREY)


def test_resizing_keeps_the_aspect_and_cuts_the_middle():
    tall = np.zeros((64, 32, 3), np.uint8)
    tall[24:40] = 255
    out = read_picture(Image.fromarray(tall), InputContract("image", (3, 16, 16), crop=1.0))
    assert out.shape == (3, 16, 16)
    assert out[:, 4:12].mean() > 240
    assert out[:, :3].mean() < 15
    exact = picture(3, (24, 16), 3)
    np.testing.assert_array_equal(read_picture(Image.fromarray(exact), COLOUR), exact.transpose(2, 0, 1))


def test_orientation_modes_and_depths(tmp_path):
    pixels = picture(1, (12, 12))
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png", GREY)[0], np.rot90(pixels, -1))
    deep = Image.fromarray(pixels.astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_picture(deep, GREY)[0], pixels)
    palette = Image.fromarray(picture(2, (24, 16), 3)).convert("P")
    assert read_picture(palette, COLOUR).shape == (3, 16, 24)
    with pytest.raises(BadInput, match="2 channels"):
        read_picture(palette, InputContract("image", (2, 4, 4)))


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
def test_npz(tmp_path, layout):
    images = np.stack([picture(n) for n in range(5)])
    shaped = {"NHW": images, "NHWC": images[..., None], "NCHW": images[:, None]}[layout]
    np.savez(tmp_path / "d.npz", images=shaped, labels=np.array([0, 1, 1, 0, 2]))
    data = open_data(tmp_path / "d.npz", GREY, labels=("x", "y", "z"))
    assert data.classes == ("x", "y", "z")
    assert data.label(4) == ("d.npz[4]", 2)
    np.testing.assert_array_equal(data.read(3)[0], images[3])


def test_npz_that_is_wrong(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=np.zeros((1, 12, 12)))
    with pytest.raises(BadInput, match="no array 'images'; it holds pictures"):
        open_data(tmp_path / "a.npz", GREY)
    np.savez(tmp_path / "b.npz", images=np.zeros((2, 12, 12), np.uint8), labels=np.zeros(3, int))
    with pytest.raises(BadInput, match="2 inputs and 3 labels"):
        open_data(tmp_path / "b.npz", GREY)
    whole = (tmp_path / "b.npz").read_bytes()
    (tmp_path / "c.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=r"cannot be read as \.npz"):
        open_data(tmp_path / "c.npz", GREY)
    np.savez(tmp_path / "d.npz", images=np.array([object()], dtype=object))
    with pytest.raises(BadInput, match=r"cannot be read as \.npz"):
        open_data(tmp_path / "d.npz", GREY)
    np.savez(tmp_path / "e.npz", images=np.zeros((0, 12, 12), np.uint8))
    with pytest.raises(BadInput, match="holds no inputs"):
        open_data(tmp_path / "e.npz", GREY)


def test_torch_datasets_arrays_and_tensors():
    inputs = torch.rand(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    pairs = torch.utils.data.TensorDataset(inputs, torch.tensor([2, 0, 1, 1]))
    data = open_data(pairs, GREY, labels=("a", "b", "c"))
    assert (len(data), data.classes, data.label(0)[1]) == (4, ("a", "b", "c"), 2)
    np.testing.assert_array_equal(data.read(1), inputs[1].numpy())
    np.testing.assert_array_equal(open_data(inputs, GREY).read(2), inputs[2].numpy())
    assert read_all(open_data(inputs.numpy(), GREY), 3)[0].inputs.dtype == np.float32
    with pytest.raises(BadInput, match=r"\[0, 1\]"):
        open_data(inputs * 3, GREY).read(0)
    with pytest.raises(BadInput, match="takes"):
        open_data(torch.rand(4, 1, 8, 8), GREY)
    with pytest.raises(BadInput, match="is no data set"):
        open_data(7, GREY)
    vectors = open_data(np.array([[5.0, -3.0, 1e3]], np.float32), InputContract("array", (3,)))
    np.testing.assert_array_equal(vectors.read(0), [5.0, -3.0, 1e3])
    with pytest.raises(BadInput, match="not finite"):
        open_data(np.array([[np.nan, 0, 0]], np.float32), InputContract("array", (3,))).read(0)


def test_fingerprints_change_with_the_data(folder, tmp_path):
    one = open_data(folder, GREY).fingerprint()
    assert open_data(folder, GREY).fingerprint() == one
    Image.fromarray(picture(9)).save(folder / "new.png")
    assert open_data(folder, GREY).fingerprint() != one
    array = np.zeros((2, 1, 12, 12), np.uint8)
    other = array.copy()
    other[1, 0, 3, 3] = 1
    assert open_data(array, GREY).fingerprint() != open_data(other, GREY).fingerprint()


def test_normalisation():
    contract = InputContract("image", (2, 1, 2), (0.5, 0.25), (0.5, 2.0))
    out = contract.normalize(np.array([[[[0, 255]], [[51, 102]]]], np.uint8))
    np.testing.assert_allclose(out, [[[[-1, 1]], [[(0.2 - 0.25) / 2, (0.4 - 0.25) / 2]]]], atol=1e-6)

    vector = InputContract("array", (3,), (0.5,), (0.25,))
    np.testing.assert_allclose(vector.normalize(np.array([[0, 51, 255]], np.uint8)), [[-2, -1.2, 2]], atol=1e-6)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4), dtype=np.uint8)
    coloured = InputContract("image", (3, 5, 4), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    last = coloured.normalize_last(pictures)
    np.testing.assert_array_equal(last, coloured.normalize(pictures))
    assert torch.from_numpy(last).is_contiguous(memory_format=torch.channels_last)


def test_too_large_a_picture_is_refused(monkeypatch):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(buffer, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadInput, match="too large"):
        read_picture(buffer, GREY)

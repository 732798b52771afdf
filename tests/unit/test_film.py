"""Films: what is in the file, and that it appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess

import numpy as np
import pytest
from PIL import Image

from penlight.errors import BadOption, BadOutput, CannotRun
from penlight.render import film
from penlight.render.film import check_format


def frames(count=6, height=20, width=30, channels=3):
    """Every frame one grey of its own, with a black corner."""
    made = np.empty((count, height, width, channels), np.uint8)
    made[:] = np.linspace(60, 250, count).astype(np.uint8)[:, None, None, None]
    made[:, : height // 2, : width // 2] = 0
    return made


def read(path):
    """(frames as RGB arrays, milliseconds)."""
    shown, times = [], []
    with Image.open(path) as image:
        for n in range(image.n_frames):
            image.seek(n)
            shown.append(np.asarray(image.convert("RGB")).astype(int))
            times.append(image.info["duration"])
        assert image.info["loop"] == 0
    return shown, times


@pytest.mark.parametrize(("kind", "near"), [("gif", 1), ("webp", 6)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_frame_is_there_and_the_last_stays(tmp_path, kind, near, channels):
    given = frames(channels=channels)
    if channels == 4:
        given[..., 3] = 255
    place = film(given, tmp_path / f"f.{kind}", fps=10)
    shown, times = read(place)
    assert len(shown) == 6
    assert shown[0].shape == (180, 270, 3)  # nine times: at least 256 pixels
    for one, frame in zip(shown, given, strict=True):
        assert abs(one[170, 260] - int(frame[-1, -1, 0])).max() <= near
        assert one[10, 10].max() <= near
    assert times[:-1] == [100] * 5 or times == [100] * 5 + [times[-1]]
    assert sum(times) == 5 * 100 + 1000


def test_colours_survive_a_palette(tmp_path):
    rng = np.random.default_rng(0)
    given = np.zeros((3, 64, 64, 3), np.uint8)
    given[:] = rng.integers(0, 256, (3, 4, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    shown, _ = read(film(given, tmp_path / "f.gif"))
    for one, frame in zip(shown, given, strict=True):
        assert np.abs(one[::4, ::4] - frame).max() <= 6


def test_large_pictures_stay_as_they_are_and_many_channels_stand_side_by_side(tmp_path):
    shown, _ = read(film(frames(2, 300, 280), tmp_path / "a.gif"))
    assert shown[0].shape == (300, 280, 3)
    shown, _ = read(film(frames(2, 20, 30, channels=7), tmp_path / "b.gif"))
    assert shown[0].shape == (180, 7 * 270, 3)


def test_one_frame_is_a_film(tmp_path):
    for kind in ("gif", "webp"):
        with Image.open(film(frames(1), tmp_path / f"f.{kind}")) as image:
            assert image.size == (270, 180)


@pytest.mark.parametrize(
    ("given", "name", "fps", "says"),
    [
        (frames(), "f.avi", 12, "not .avi"),
        (frames(), "film", 12, "without an ending"),
        (frames()[:0], "f.gif", 12, "at least one"),
        (frames()[0], "f.gif", 12, "frames (F, H, W, C)"),
        (frames(), "f.gif", 0, "above 0"),
        (frames(), "f.gif", float("nan"), "above 0"),
    ],
)
def test_what_is_no_film_is_told(tmp_path, given, name, fps, says):
    with pytest.raises(BadOption) as error:
        film(given, tmp_path / name, fps)
    assert says in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput, match="cannot write to"):
        film(frames(), tmp_path / "file" / "f.gif")


def test_an_earlier_film_stays_whole_when_writing_fails(tmp_path, monkeypatch):
    place = film(frames(), tmp_path / "f.gif")
    before = place.read_bytes()

    def full(self, file, *_, **__):
        file.write_bytes(b"GIF89a")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(BadOutput, match="No space left"):
        film(frames(3), place)
    assert place.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["f.gif"]


def test_mp4_without_ffmpeg_says_what_to_use_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (lambda: check_format("mp4"), lambda: film(frames(), tmp_path / "f.mp4")):
        with pytest.raises(BadOption, match="ffmpeg.*write gif or webp"):
            call()
    check_format("gif")


def stand_in(folder, script):
    """A program called ffmpeg."""
    tool = folder / "bin" / "ffmpeg"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    return f"{tool.parent}{os.pathsep}{os.environ['PATH']}"


def test_mp4_gets_raw_frames_of_even_sides_and_a_held_end(tmp_path, monkeypatch):
    script = f'echo "$@" > {tmp_path}/arguments; for last; do :; done; cat > "$last"'
    monkeypatch.setenv("PATH", stand_in(tmp_path, script))
    given = frames(4, 257, 261)
    raw = np.frombuffer(film(given, tmp_path / "f.mp4", fps=10).read_bytes(), np.uint8).reshape(-1, 258, 262, 3)
    assert len(raw) == 4 + 9  # the last for a second
    np.testing.assert_array_equal(raw[:4, :257, :261], given)
    np.testing.assert_array_equal(raw[-1, :257, :261], given[-1])
    said = (tmp_path / "arguments").read_text()
    for words in ("-s 262x258", "-r 10", "-f rawvideo -pix_fmt rgb24", "-pix_fmt yuv420p", "-f mp4"):
        assert words in said


def test_an_ffmpeg_that_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", stand_in(tmp_path, "cat > /dev/null; echo 'no encoder' >&2; exit 1"))
    with pytest.raises(CannotRun, match="no encoder; write gif or webp"):
        film(frames(), tmp_path / "f.mp4")
    assert not (tmp_path / "f.mp4").exists()


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_a_real_mp4(tmp_path):
    place = film(frames(channels=1), tmp_path / "f.mp4", fps=10)
    order = ["ffmpeg", "-loglevel", "error", "-i", str(place), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = np.frombuffer(subprocess.run(order, capture_output=True, check=True).stdout, np.uint8)
    shown = raw.reshape(-1, 180, 270, 3)
    assert len(shown) == 6 + 9
    assert abs(int(shown[-1, 170, 260, 0]) - 250) < 8

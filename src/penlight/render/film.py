"""Films: many pictures of one size, one after the other, as GIF, WebP or MP4."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penlight.errors import BadOption, BadOutput, CannotRun
from penlight.results.base import displayable

FORMATS = ("gif", "webp", "mp4")
_LEAST = 256  # pixels of the longer side; smaller pictures are enlarged by a whole number
_HELD = 1000  # milliseconds the last frame stands
_COLOURS = 256


def film(frames: NDArray[np.uint8], path: str | Path, fps: float = 12) -> Path:
    """Write frames (F, H, W, C) uint8 as a film that runs for ever and stays on its last frame for a second; returns the path.

    >>> film(result.film[0, 0], "conv1_3-0.gif")         # doctest: +SKIP

    The ending says the format: .gif, .webp, or .mp4, for which the program ffmpeg has to be there. Pictures under 256 pixels are
    enlarged without smoothing. The file appears whole or not at all. Raises `BadOption` for another ending, no frames or a missing
    ffmpeg, `BadOutput` for a place that cannot be written to.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    check_format(kind)
    if frames.ndim != 4 or not frames.size:
        raise BadOption(
            f"a film takes frames (F, H, W, C), at least one, not {list(frames.shape)}; ask for some with film=48"
        )
    if not fps > 0 or not math.isfinite(fps):
        raise BadOption(f"a film runs at a number of frames a second above 0, not {fps!r}")
    write = {"gif": _gif, "webp": _webp, "mp4": _mp4}[kind]
    _whole(path, lambda place: write(_shown(frames), place, fps))
    return path


def check_format(kind: str) -> None:
    """`BadOption` for a format that cannot be written, before hours of work rather than after."""
    if kind not in FORMATS:
        raise BadOption(f"a film is a .gif, .webp or .mp4 file, not {'.' + kind if kind else 'one without an ending'}")
    if kind == "mp4" and shutil.which("ffmpeg") is None:
        raise BadOption("an MP4 film needs the program ffmpeg, which is not on PATH; install it, or write gif or webp")


def _shown(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(F, H, W, C) → grey (F, H, W) or colour (F, H, W, 3), large enough to be seen."""
    shown = np.stack([displayable(frame) for frame in frames])
    if shown.ndim == 4:
        shown = shown[..., 0] if shown.shape[3] == 1 else shown[..., :3]
    times = math.ceil(_LEAST / max(frames.shape[1:3]))
    return shown.repeat(times, axis=1).repeat(times, axis=2) if times > 1 else shown


def _whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path` that then takes its place."""
    staging: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}-", suffix=path.suffix.lower(), dir=path.parent)
        os.close(handle)
        staging = Path(name)
        staging.chmod(0o644)
        write(staging)
        staging.replace(path)
    except OSError as error:
        raise BadOutput(f"cannot write to {path}: {error.strerror or error}") from error
    finally:
        if staging is not None:
            staging.unlink(missing_ok=True)


def _times(count: int, fps: float) -> list[int]:
    """Milliseconds each frame stands."""
    return [round(1000 / fps)] * (count - 1) + [max(_HELD, round(1000 / fps))]


def _save(images: Sequence[Image.Image], place: Path, fps: float, **options: object) -> None:
    rest, times = images[1:], _times(len(images), fps)
    images[0].save(place, save_all=True, append_images=rest, duration=times, loop=0, **options)  # type: ignore[arg-type]


def _gif(frames: NDArray[np.uint8], place: Path, fps: float) -> None:
    images = [Image.fromarray(frame) for frame in frames]
    if frames.ndim == 4:
        images = [image.quantize(_COLOURS, Image.Quantize.MEDIANCUT) for image in images]
    _save(images, place, fps, format="GIF", disposal=1, optimize=False)


def _webp(frames: NDArray[np.uint8], place: Path, fps: float) -> None:
    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    _save(images, place, fps, format="WEBP", quality=90, method=4)


def _mp4(frames: NDArray[np.uint8], place: Path, fps: float) -> None:
    colour = frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=3)
    height, width = colour.shape[1:3]
    held = max(0, round(fps * _HELD / 1000) - 1)
    film = np.concatenate([colour, colour[-1:].repeat(held, axis=0)])
    film = np.pad(film, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")  # players want even sides
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{film.shape[2]}x{film.shape[1]}", "-r", f"{fps:g}", "-i", "-", "-an"]
    command += ["-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", str(place)]
    done = subprocess.run(command, input=film.tobytes(), capture_output=True, check=False)
    if done.returncode or not place.stat().st_size:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        reason = said[-1] if said else f"status {done.returncode}"
        raise CannotRun(f"ffmpeg could not write the film: {reason}; write gif or webp instead")

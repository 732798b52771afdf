"""The site's pictures: each lies once in `pictures/`, linked or copied from the atlas."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from penlight.results import Picture
from penlight.results.base import displayable

THUMB = 144  # longest side of a thumbnail; pictures up to this size are their own


class Album:
    """Puts pictures into a site's folder and gives back their address, relative to the site."""

    def __init__(self, site: Path) -> None:
        self._site = site
        self._link = True  # until the file system refuses
        self._folders: set[str] = set()

    def keep(self, folder: str, name: str, source: Path, picture: Picture) -> str:
        """Link, copy or, if the atlas lost the file, encode one picture."""
        address = f"{self._folder(folder)}/{name}.png"
        target = self._site / address
        file = source / f"{picture.name}.png"
        if not file.is_file():
            target.write_bytes(picture.png())
            return address
        if self._link:
            try:
                os.link(file, target)
                return address
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    raise
                self._link = False
        shutil.copyfile(file, target)
        return address

    def thumbnail(self, folder: str, name: str, pixels: NDArray[np.uint8], full: str) -> str:
        """A small version of a big picture; a small picture's own address."""
        if max(pixels.shape[:2]) <= THUMB:
            return full
        shown = displayable(pixels)
        small = Pillow.fromarray(np.ascontiguousarray(shown[..., 0] if shown.shape[-1] == 1 else shown))
        small.thumbnail((THUMB, THUMB), Pillow.Resampling.BOX, reducing_gap=None)
        address = f"{self._folder(folder)}/{name}.jpg"
        small.convert("RGB").save(self._site / address, "JPEG", quality=82)
        return address

    def _folder(self, folder: str) -> str:
        path = f"pictures/{folder}"
        if path not in self._folders:
            (self._site / path).mkdir(parents=True, exist_ok=True)
            self._folders.add(path)
        return path


def named(pictures: Iterable[Picture]) -> dict[str, Picture]:
    """Pictures by name."""
    return {picture.name: picture for picture in pictures}


def shown_size(images: NDArray[np.uint8]) -> tuple[int, int]:
    """(width, height) of the files made of (…, H, W, C) pictures."""
    height, width, channels = images.shape[-3:]
    return (width if channels in (1, 3, 4) else width * channels), height

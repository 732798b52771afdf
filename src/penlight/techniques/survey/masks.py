"""Drawn concepts: for every input a mask with the number of the concept at each pixel, brought to the network's view of the picture."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from penlight.errors import BadInput
from penlight.inputs import Data, InputContract

VOID = 255  # pixels that nobody named, as in Pascal VOC: left out altogether
_NAMES = ("names.json", "names.txt", "classes.json", "classes.txt")


class Masks:
    """The masks of a data set, by index: (H, W) numbers of concepts, 0 where there is none."""

    def __init__(self, source: str, names: str, data: Data, contract: InputContract) -> None:
        self._data, self._contract, self._path = data, contract, Path(source)
        self._arrays: NDArray[Any] | None = None
        own: list[str] | None = None
        if not source:
            raise BadInput(
                "dissect needs masks: a folder of .png files named as the pictures are, or an .npz with 'masks'"
            )
        if self._path.suffix.lower() == ".npz":
            self._arrays, own = self._stored()
        elif not self._path.is_dir():
            raise BadInput(f"there are no masks at {source}; give a folder of .png files, or an .npz with 'masks'")
        else:
            names = names or next((str(self._path / n) for n in _NAMES if (self._path / n).is_file()), "")
        self.names = _names(Path(names)) if names else own  # of the numbers from 0; None: they are their own names

    def read(self, index: int) -> NDArray[np.int64]:
        """(H, W) of one input, as the network sees it. `BadInput` says which mask lacks or does not fit."""
        if self._arrays is not None:
            mask = self._arrays[index]
            if mask.shape != self._contract.size:
                mask = np.asarray(_fitted(Image.fromarray(mask.astype(np.int32)), self._contract))
            return np.asarray(mask, np.int64)
        file = (self._path / self._data.label(index)[0]).with_suffix(".png")
        try:
            with Image.open(file) as image:
                if image.mode not in ("L", "P", "I", "I;16", "1"):
                    raise BadInput(f"mask {file} has mode {image.mode}; a mask has one number a pixel (L, P or I)")
                return np.asarray(
                    _fitted(Image.fromarray(np.asarray(image).astype(np.int32)), self._contract), np.int64
                )
        except (OSError, UnidentifiedImageError) as error:
            raise BadInput(f"mask {file} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def _stored(self) -> tuple[NDArray[Any], list[str] | None]:
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise BadInput(f"{self._path} cannot be read as .npz: {error}") from error
        masks = arrays.get("masks")
        if masks is None or masks.ndim != 3 or masks.dtype.kind not in "uib":
            raise BadInput(
                f"{self._path} has no array 'masks' (N, H, W) of whole numbers; it holds {', '.join(arrays)}"
            )
        if len(masks) != len(self._data):
            raise BadInput(f"{self._path} has {len(masks)} masks, the data {len(self._data)} inputs; give one each")
        return masks, [str(n) for n in arrays["names"]] if "names" in arrays else None


def _names(file: Path) -> list[str]:
    """A JSON list, a JSON table of number to name, or a name a line; the first is of number 0."""
    try:
        text = file.read_text("utf-8")
        found = json.loads(text) if file.suffix.lower() == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise BadInput(f"names {file} cannot be read: {error}") from error
    if isinstance(found, dict):
        numbers = {int(key): str(name) for key, name in found.items() if str(key).isdecimal()}
        return [numbers.get(n, str(n)) for n in range(max(numbers, default=-1) + 1)]
    return [str(name) for name in found]


def _fitted(mask: Image.Image, contract: InputContract) -> Image.Image:
    """Scaled and cut as the picture is, each pixel with its nearest number."""
    height, width = contract.size
    if mask.size == (width, height):
        return mask
    scale = max(width / contract.crop / mask.width, height / contract.crop / mask.height)
    size = (max(width, round(mask.width * scale)), max(height, round(mask.height * scale)))
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return mask.resize(size, Image.Resampling.NEAREST).crop((left, top, left + width, top + height))

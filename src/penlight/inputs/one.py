"""One input, from whatever the user has."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from penlight.errors import BadInput
from penlight.inputs.contract import InputContract
from penlight.inputs.data import Data
from penlight.inputs.image import SUFFIXES, channels_first, fit, read_picture
from penlight.inputs.table import TableContract
from penlight.inputs.table_data import read_row
from penlight.inputs.text import TextContract
from penlight.inputs.text_data import read_text

_ARRAYS = (".npy", ".npz")


def read_input(source: Any, contract: InputContract, own: Data | None = None) -> NDArray[Any]:
    """One input (*shape), uint8 or float32 before normalisation.

    `source` is a picture file, an .npy file (or an .npz with one array), `data:N` for input N of the data `own`, a PIL image, or an
    array or tensor (*shape), (1, *shape), or for pictures (H, W) and (H, W, C). Values lie in [0, 1] where the contract normalises;
    where it does not, any will do. Raises `BadInput` with what is wrong.
    """
    if isinstance(contract, TextContract):
        name, text = read_text(source, contract, own)
        return contract.encode(text, name)
    if isinstance(contract, TableContract):
        return read_row(source, contract, own)
    if isinstance(source, str | Path):
        return _from_text(str(source), contract, own)
    if isinstance(source, Image.Image):
        return fit(source, contract)
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if not isinstance(source, np.ndarray | list | tuple):
        raise BadInput(f"a {type(source).__name__} is no input; give a picture file, an array (*shape), or data:N")
    try:
        array = np.asarray(source)
    except ValueError as error:
        raise BadInput(f"the input is no array: {error}") from error
    return _from_array(array, contract, "the input")


def _from_text(text: str, contract: InputContract, own: Data | None) -> NDArray[Any]:
    numbered = re.fullmatch(r"data:(\d+)", text)
    if numbered is not None:
        if own is None:
            raise BadInput(f"there is no data for {text!r} to count in; name a file, or give the data too")
        if int(numbered[1]) >= len(own):
            raise BadInput(f"{own.name} has inputs 0 to {len(own) - 1}; there is no {numbered[1]}")
        return own.read(int(numbered[1]))
    path = Path(text)
    if path.suffix.lower() in _ARRAYS:
        return _from_array(_stored(path), contract, text)
    if path.is_dir():
        raise BadInput(f"{text} is a folder; an explanation is of one input: name a file in it")
    if path.exists() and path.suffix.lower() not in SUFFIXES and contract.kind != "image":
        raise BadInput(f"{text} cannot be read as an input of shape {list(contract.shape)}; give an .npy file")
    return read_picture(path, contract)


def _stored(path: Path) -> NDArray[Any]:
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found
            if len(found.files) != 1:
                raise BadInput(f"{path} holds {len(found.files)} arrays; an input is one: {', '.join(found.files)}")
            return np.asarray(found[found.files[0]])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path} cannot be read as an array: {error}") from error


def _from_array(array: NDArray[Any], contract: InputContract, name: str) -> NDArray[Any]:
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{name} holds {array.dtype} values; give numbers")
    shape = contract.shape
    if array.ndim == len(shape) + 1 and len(array) == 1:
        array = array[0]
    elif array.ndim == len(shape) + 1 and array.shape[1:] == shape:
        raise BadInput(f"{name} holds {len(array)} inputs; an explanation is of one: give them one after the other")
    channels = contract.channels
    picture = (array.ndim == 2 and channels == 1) or (array.ndim == 3 and channels in (array.shape[0], array.shape[2]))
    if contract.kind == "image" and array.shape != shape and picture:
        turned = channels_first(array[None], contract, name)[0]
        if turned.shape != shape and turned.dtype == np.uint8 and turned.shape[0] in (1, 3, 4):
            pixels = turned[0] if turned.shape[0] == 1 else np.ascontiguousarray(turned.transpose(1, 2, 0))
            return fit(Image.fromarray(pixels), contract)
        array = turned
    if array.shape != shape:
        raise BadInput(f"{name} has shape {list(array.shape)}, the network takes {list(shape)}")
    value = np.ascontiguousarray(array if array.dtype == np.uint8 else array.astype(np.float32))
    if value.dtype != np.uint8 and not np.isfinite(value).all():
        raise BadInput(f"{name} has {int((~np.isfinite(value)).sum())} values that are not finite (NaN or infinite)")
    if not contract.plain:
        contract.check(value[None])
    return value


class Inputs:
    """A few inputs, read already, as data: (name, (*shape)) pairs without classes."""

    def __init__(self, pairs: Sequence[tuple[str, NDArray[Any]]]) -> None:
        if not pairs:
            raise BadInput("there are no inputs; give picture files, arrays, or data:N")
        self.name = pairs[0][0] if len(pairs) == 1 else f"{len(pairs)} inputs"
        self.classes: tuple[str, ...] = ()
        self._pairs = list(pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def label(self, index: int) -> tuple[str, int | None]:
        """(name, None)."""
        return self._pairs[index][0], None

    def read(self, index: int) -> NDArray[Any]:
        """One input (*shape)."""
        return self._pairs[index][1]

    def fingerprint(self) -> str:
        """A digest of names and values."""
        digest = hashlib.sha256()
        for name, values in self._pairs:
            digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

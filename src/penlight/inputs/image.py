"""Picture files and arrays → (C, H, W) to the contract."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from penlight.errors import BadInput
from penlight.inputs.contract import InputContract

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm"})
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_picture(source: str | Path | IO[bytes] | Image.Image, contract: InputContract) -> NDArray[np.uint8]:
    """A picture as (C, H, W) uint8 to the contract: oriented, converted, resized and cut.

    `BadInput` names the file and says why it cannot be read.
    """
    if contract.channels not in _MODES:
        raise BadInput(
            f"the network takes {contract.channels} channels; picture files have 1, 3 or 4: give arrays (.npz) instead"
        )
    if isinstance(source, Image.Image):
        return fit(source, contract)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                return fit(image, contract)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        raise BadInput(f"{source} is no readable picture: {_reason(error)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadInput(f"{source} is too large a picture: {error}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, UnidentifiedImageError):
        return "its content is no known picture format"
    return str(getattr(error, "strerror", None) or error)


def fit(image: Image.Image, contract: InputContract) -> NDArray[np.uint8]:
    """An opened picture as (C, H, W) uint8 to the contract."""
    height, width = contract.size
    if image.format == "JPEG":
        side = max(height, width) / contract.crop
        image.draft(
            _MODES[contract.channels], (int(side), int(side))
        )  # decodes at a reduced size, never below the one asked for
    turned = ImageOps.exif_transpose(image)
    if turned.mode in ("I", "I;16", "I;16B", "F"):
        turned = _eight_bit(turned)
    picture = turned.convert(_MODES[contract.channels])
    if picture.size != (width, height):
        scale = max(width / contract.crop / picture.width, height / contract.crop / picture.height)
        size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR if min(size) >= 64 else Image.Resampling.BICUBIC)
        left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture, np.uint8)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels)


def _eight_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image, np.float64)
    top = 65535.0 if image.mode.startswith("I") else 1.0
    return Image.fromarray(np.clip(values / top * 255.0 + 0.5, 0, 255).astype(np.uint8))


def channels_first(images: NDArray[Any], contract: InputContract, name: str) -> NDArray[Any]:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) → (N, C, H, W); `BadInput` where no axis has the channels."""
    channels = contract.channels
    if images.ndim == 3 and channels == 1:
        return images[:, None]
    if images.ndim == 4 and images.shape[1] == channels:
        return images
    if images.ndim == 4 and images.shape[3] == channels:
        return images.transpose(0, 3, 1, 2)
    raise BadInput(
        f"{name} has shape {list(images.shape)}; the network takes {channels} channels: (N, C, H, W) or (N, H, W, C)"
    )

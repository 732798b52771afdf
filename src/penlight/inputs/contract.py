"""Shape, range and normalisation of a network's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.errors import BadInput, BadReference, UnknownName

KINDS = ("image", "array", "text", "table")


@dataclass(frozen=True)
class InputContract:
    """What the network expects, as data; nothing here is guessed from a name.

    `shape` is one input without the batch axis: (C, H, W) for an image, any shape for an array. Values lie in [0, 1] before
    normalisation, and the network sees (value − mean) / std, channel by channel. A picture of another size is resized so that its
    shorter side is the network's divided by `crop`, and cut in the middle; one of the right size is taken as it is.
    """

    kind: str
    shape: tuple[int, ...]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop: float = 0.875

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("input kind", str(self.kind), KINDS)
        if not self.shape or any(not isinstance(n, int) or n < 1 for n in self.shape):
            raise BadReference(
                f"input shape {list(self.shape)} is none: it takes whole numbers above 0, as in [3, 224, 224]"
            )
        if self.kind == "image" and len(self.shape) != 3:
            raise BadReference(f"an image's shape is [channels, height, width], not {list(self.shape)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.shape[0]):
                raise BadReference(
                    f"input {name} has {len(values)} values for {self.shape[0]} channels; give one, or one a channel"
                )
        if any(value <= 0 for value in self.std):
            raise BadReference(f"input std {list(self.std)} must be above 0")
        if not 0 < self.crop <= 1:
            raise BadReference(f"input crop {self.crop} must lie in (0, 1]")

    @classmethod
    def from_mapping(cls, table: dict[str, Any]) -> InputContract:
        """From a model card's `[input]` table; lists become tuples, unknown keys are errors."""
        allowed = ("kind", "shape", "mean", "std", "crop")
        for key in table:
            if key not in allowed:
                raise UnknownName("key in [input]", key, allowed)
        if "shape" not in table:
            raise BadReference("[input] lacks 'shape', as in shape = [3, 224, 224]")
        try:
            return cls(
                str(table.get("kind", "image")),
                tuple(table["shape"]),
                tuple(float(v) for v in table.get("mean", (0.0,))),
                tuple(float(v) for v in table.get("std", (1.0,))),
                float(table.get("crop", 0.875)),
            )
        except (TypeError, ValueError) as error:
            raise BadReference(f"[input] cannot be read: {error}") from error

    @property
    def channels(self) -> int:
        """Number of channels, the first axis."""
        return self.shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """The axes after the channels, (H, W) for an image."""
        return self.shape[1:]

    @property
    def plain(self) -> bool:
        """Whether inputs go in as they are: no normalisation is stated."""
        return set(self.mean) == {0.0} and set(self.std) == {1.0}

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(mean, std), each (C, 1, …) float32, to broadcast over one input."""
        shape = (self.channels,) + (1,) * (len(self.shape) - 1)
        mean = np.broadcast_to(np.asarray(self.mean, np.float32), (self.channels,))
        std = np.broadcast_to(np.asarray(self.std, np.float32), (self.channels,))
        return mean.reshape(shape).copy(), std.reshape(shape).copy()

    def normalize(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """(N, *shape) in [0, 1], or uint8 in 0…255, → float32 as the network sees it."""
        if batch.dtype == np.uint8 and batch.ndim > 2:  # looked up: one pass over the pictures instead of four
            looked_up, table = np.empty(batch.shape, np.float32), self._table()
            for one, seen in zip(batch, looked_up, strict=True):
                for plane, values, out in zip(one, table, seen, strict=True):
                    np.take(values, plane, out=out, mode="clip")
            return looked_up
        scaled = batch.astype(np.float32)
        if batch.dtype == np.uint8:
            scaled /= np.float32(255.0)
        mean, std = self.statistics()
        scaled -= mean
        scaled /= std
        return scaled

    def normalize_last(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """`normalize` of pictures (N, C, H, W) uint8, with the channels last in memory."""
        count, channels, height, width = batch.shape
        found = np.empty((count, height, width * channels), np.float32)
        mean, std = (np.tile(one.reshape(-1), width) for one in self.statistics())
        last = np.empty((height, width, channels), np.uint8)
        for one, out in zip(batch, found, strict=True):  # one picture stays in the cache
            for channel, plane in enumerate(one):
                last[..., channel] = plane
            out[:] = last.reshape(out.shape)
            out /= np.float32(255.0)
            out -= mean
            out /= std
        return found.reshape(count, height, width, channels).transpose(0, 3, 1, 2)

    def _table(self) -> NDArray[np.float32]:
        """(C, 256): every value of a pixel as the network sees it."""
        mean, std = self.statistics()
        pixels = np.arange(256, dtype=np.float32) / np.float32(255.0)
        return (pixels - mean.reshape(-1, 1)) / std.reshape(-1, 1)

    def check(self, batch: NDArray[Any]) -> None:
        """`BadInput` unless (N, *shape), and in [0, 1] for an image."""
        if tuple(batch.shape[1:]) != self.shape:
            raise BadInput(f"inputs have shape {list(batch.shape[1:])}, the network takes {list(self.shape)}")
        if self.kind == "image" and batch.dtype != np.uint8 and batch.size:
            low, high = float(batch.min()), float(batch.max())
            if not (low >= -1e-6 and high <= 1 + 1e-6):
                raise BadInput(
                    f"picture values run from {low:.3g} to {high:.3g}; give them in [0, 1] before normalisation, or as uint8"
                )

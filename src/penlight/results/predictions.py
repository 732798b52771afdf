"""What the network says of some inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from penlight.results.base import Picture, Provenance, Result


@dataclass(frozen=True, eq=False)
class PredictionsResult(Result):
    """Class probabilities of sample inputs, with the inputs as the network saw them.

    `images` (N, H, W, C) uint8 before normalisation, `probabilities` (N, classes) float32, `truth` the class index in the data or
    None.
    """

    kind: ClassVar[str] = "predictions"

    provenance: Provenance
    names: tuple[str, ...]
    index: tuple[int, ...]  # in the data
    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    labels: tuple[str, ...]
    truth: tuple[int | None, ...]

    def ranked(self, n: int, top: int = 5) -> list[tuple[str, float]]:
        """The most probable labels of input `n`, best first."""
        order = np.argsort(-self.probabilities[n], kind="stable")[:top]
        return [(self.labels[int(c)], float(self.probabilities[n, c])) for c in order]

    def summary(self) -> dict[str, Any]:
        return {
            "inputs": [
                {
                    "name": name,
                    "index": self.index[n],
                    "truth": None if (t := self.truth[n]) is None else self.labels[t],
                    "top": [{"label": label, "probability": p} for label, p in self.ranked(n)],
                }
                for n, name in enumerate(self.names)
            ]
        }

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        data = {"names": self.names, "index": self.index, "labels": self.labels, "truth": self.truth}
        return data, {"images": self.images, "probabilities": self.probabilities}

    @classmethod
    def from_state(
        cls, provenance: Provenance, data: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> PredictionsResult:
        return cls(
            provenance,
            tuple(data["names"]),
            tuple(data["index"]),
            arrays["images"],
            arrays["probabilities"],
            tuple(data["labels"]),
            tuple(data["truth"]),
        )

    def pictures(self) -> Iterable[Picture]:
        for n, name in enumerate(self.names):
            label, p = self.ranked(n, 1)[0]
            yield Picture(f"input-{n}", self.images[n], f"{name}: {label} {p:.0%}")

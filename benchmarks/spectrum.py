"""The amplitude spectrum of photographs, which the method `maco` ships as a few numbers.

    python benchmarks/spectrum.py --pictures FOLDER [--quick] [--json]

From every photograph in FOLDER a square of 256 × 256 pixels is taken, its shorter side scaled to 256. Its colours are decorrelated with
MACO's matrix, its mean is taken off, and it is faded out towards its edges (Hann window), so that the cut does not put a cross into the
spectrum. The mean amplitude over all photographs is fitted, for each of the three colours, by

    amplitude · frequency^−decay · exp(across · cos 2θ + along · cos 4θ),

frequency in cycles a pixel, θ its direction (0: changes from left to right), by least squares on logarithms from 2/256 to 0.45 cycles
a pixel. `error` is what is left, as a standard deviation of the logarithm; `mean` is the amplitude at frequency 0, of the unfaded
pictures less grey, as a share of the fit's at 1/256. Without --pictures only says so: no photographs ship with the package.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from penlight.techniques.visualize.methods.maco import COLOUR, NATURAL

SIDE, QUICK = 256, 30
SUFFIXES = {".jpg", ".jpeg", ".png"}


def amplitudes(files: list[Path]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """((3, 256, 129) mean |rfft2| of the faded pictures, (3,) mean |sum of the pictures less grey|), both over pixels^(1/2)."""
    fade = np.outer(np.hanning(SIDE), np.hanning(SIDE))
    fade /= np.sqrt(np.square(fade).mean())
    waves = np.linalg.inv(np.array(COLOUR, np.float64))
    total, mean = np.zeros((3, SIDE, SIDE // 2 + 1)), np.zeros(3)
    for file in files:
        with Image.open(file) as opened:
            picture = ImageOps.fit(opened.convert("RGB"), (SIDE, SIDE), Image.Resampling.LANCZOS)
        colours = np.moveaxis((np.asarray(picture, np.float64) / 255 - 0.5) @ waves, -1, 0)
        centre = colours.mean((1, 2), keepdims=True)
        total += np.abs(np.fft.rfft2((colours - centre) * fade))
        mean += np.abs(centre[:, 0, 0]) * SIDE**2
    return total / len(files) / SIDE, mean / len(files) / SIDE


def fit(amplitude: NDArray[np.float64], mean: float) -> dict[str, float]:
    """The four numbers of one colour's spectrum, (256, 129)."""
    y, x = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :]
    length, turn = np.hypot(y, x), np.arctan2(y, x)
    within = (length >= 2 / SIDE) & (length <= 0.45)
    terms = np.stack(
        [np.ones_like(length), np.log(np.where(length > 0, length, 1)), np.cos(2 * turn), np.cos(4 * turn)], -1
    )
    solved = np.linalg.lstsq(terms[within], np.log(amplitude[within]), rcond=None)[0]
    left = np.log(amplitude[within]) - terms[within] @ solved
    lowest = float(np.exp(solved[0]) * (1 / SIDE) ** solved[1])
    names = ("amplitude", "decay", "across", "along")
    values = (float(np.exp(solved[0])), -float(solved[1]), float(solved[2]), float(solved[3]))
    return dict(zip(names, values, strict=True)) | {"error": float(left.std()), "mean": mean / lowest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of photographs")
    parser.add_argument("--quick", action="store_true", help=f"only {QUICK} photographs")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    shipped = [dict(zip(("amplitude", "decay", "across", "along"), row, strict=True)) for row in NATURAL]
    found: dict[str, Any] = {"shipped": shipped, "pictures": 0, "measured": []}
    if asked.pictures is not None:
        files = sorted(p for p in asked.pictures.rglob("*") if p.suffix.lower() in SUFFIXES)
        files = files[:: max(1, len(files) // QUICK)] if asked.quick else files
        if not files:
            parser.error(f"{asked.pictures} holds no photographs")
        spectrum, means = amplitudes(files)
        found |= {"pictures": len(files), "measured": [fit(a, float(m)) for a, m in zip(spectrum, means, strict=True)]}
    if asked.json:
        print(json.dumps(found))
        return
    print(f"{found['pictures']} photographs" if found["pictures"] else "no photographs: give --pictures FOLDER")
    for name in ("shipped", "measured"):
        for colour, row in zip(("light", "red-blue", "green-purple"), found[name], strict=False):
            print(f"{name:9} {colour:13}" + "".join(f" {key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()

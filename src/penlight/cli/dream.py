"""`penlight dream MODEL IMAGE`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from penlight.cli.shared import (
    check_out,
    give,
    given,
    model_options,
    open_model,
    progress_bar,
    result_options,
    technique_options,
)
from penlight.render import columns
from penlight.render import film as write_film
from penlight.render.film import FORMATS, check_format
from penlight.results import VisualizeResult
from penlight.results.visualize import file_names

_FRAMES = 48
_FPS = 12


@click.command("dream")
@model_options
@click.argument("image")
@click.option(
    "--at",
    metavar="LAYER",
    help="What to see more of: a layer, layer(NAME), or a unit; a layer two thirds of the way in without.",
)
@click.option(
    "--film", is_flag=False, flag_value="gif", type=click.Choice(FORMATS), metavar="[gif|webp|mp4]",
    help="Save the dreaming, or with --zoom the journey, as a film; GIF if nothing else is said; needs --out.",
)  # fmt: skip
@technique_options("visualize", skip=("picture",), only="deepdream")
@result_options
def command(
    model: str,
    image: str,
    at: str | None,
    film: str | None,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """More of whatever MODEL sees in IMAGE: DeepDream.

    IMAGE is a picture file, or data:N for an input of the model's own data.
    """
    asked = given(options)
    _check(film, asked.get("zoom", 0), out)
    from penlight.api import dream

    opened = open_model(model, input_shape, device, trust)
    if at is not None and not any(mark in at for mark in ":( "):
        opened.layer(at)
    frames = _FRAMES if film and not asked.get("zoom") else 0
    with progress_bar("dream", "step") as progress:
        result = dream(opened, image, at, film=frames, seed=seed, progress=progress, **asked)
    give(result, out, as_json, _text(result))
    if film and out is not None:
        for u, name in enumerate(file_names(result.units)):
            for s in range(result.film.shape[1]):
                write_film(result.film[u, s], out / f"{name}-{s}.{film}", fps=_FPS)


def _check(kind: str | None, zoom: int, out: Path | None) -> None:
    """What cannot go together, before the work."""
    from penlight.errors import BadOption

    check_out(out)
    if kind is not None:
        check_format(kind)
    if kind is not None and out is None:
        raise BadOption("--film writes files; say where with --out DIR")
    if zoom and out is None:
        raise BadOption("--zoom makes a film; say where it goes with --out DIR, and how it is written with --film")


def _text(result: VisualizeResult) -> str:
    rows = [
        {
            "unit": unit,
            "size": f"{result.images.shape[3]}×{result.images.shape[2]}",
            "start": f"{result.starts[u, 0]:.4g}",
            "reached": "  ".join(f"{a:.4g}" for a in result.activations[u].tolist()),
        }
        for u, unit in enumerate(result.units)
    ]
    heads = {"unit": "dreamt at", "size": "size", "start": "answer to the picture", "reached": "to the dream"}
    return "\n".join([columns(rows, heads), *(f"note: {note}" for note in result.notes)])

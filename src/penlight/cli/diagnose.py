"""`penlight diagnose MODEL DATA`."""

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

PAGE = "diagnosis.html"


@click.command("diagnose")
@model_options
@click.argument("data", required=False)
@click.option(
    "--layers",
    multiple=True,
    metavar="PATTERN",
    help="Layers to judge, as in 'features.*'; by default convolutions and dense ones, of text the recurrent ones.",
)
@click.option(
    "--pictures", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Results of 'penlight visualize' with several seeds: their units are judged static and unstable too.",
)  # fmt: skip
@click.option(
    "--prune", type=click.Path(path_type=Path), metavar="OUT.safetensors",
    help="Write the network without the units that can go, and measure it; OUT.json says which were kept.",
)  # fmt: skip
@technique_options("diagnose")
@result_options
def command(
    model: str,
    data: str | None,
    layers: tuple[str, ...],
    pictures: tuple[Path, ...],
    prune: Path | None,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Say which units of MODEL are dead, saturated, duplicates or not needed, and prove it by taking them away.

    DATA is a folder of pictures (subfolders are classes) or an .npz file, texts, or a table; a specimen brings its own. With --out,
    diagnosis.html there shows all of it on one page.
    """
    from penlight.api import diagnose
    from penlight.render.diagnosis import page, text

    check_out(out)
    opened = open_model(model, input_shape, device, trust)
    with progress_bar("diagnose", "step") as progress:
        result = diagnose(
            opened, data, layers=layers, pictures=pictures, prune=prune, seed=seed, progress=progress, **given(options)
        )
    give(result, out, as_json, text(result), pages={PAGE: lambda: page(result)})

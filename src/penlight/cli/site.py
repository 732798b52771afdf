"""`penlight site ATLAS --out DIR`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from penlight.web.site import build_site


@click.command("site")
@click.argument("atlas", type=click.Path(path_type=Path))
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The site's folder, new or written by this command.",
)
@click.option("--json", "as_json", is_flag=True, help="The place of the first page, as JSON on stdout.")
def command(atlas: Path, out: Path, as_json: bool) -> None:
    """Write an atlas as static HTML, which opens from the disk or any web host."""
    index = build_site(atlas, out)
    click.echo(json.dumps({"index": str(index)}) if as_json else f"open {index}")

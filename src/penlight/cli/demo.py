"""`penlight demo`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from penlight.cli.atlas import build
from penlight.cli.shared import open_model

_STEPS = 128  # half the usual number: on pictures of 28 pixels the rest only adds contrast


@click.command("demo")
@click.option(
    "--out", default=Path("demo"), show_default=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to."
)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute.")
def command(out: Path, device: str) -> None:
    """Open the specimen `letters`, ask everything of every unit, and write the site."""
    from penlight.web.site import build_site

    model = open_model("letters", None, device, False)
    units = sum(layer.units for layer in model.layers.values() if layer.alias_of is None)
    click.echo(f"letters: {len(model.layers)} layers, {units} units, ten classes of glyphs", err=True)
    built = build(model, None, out / "atlas", {"steps": _STEPS})
    index = build_site(out / "atlas", out / "site")
    click.echo(f"The atlas is in {out / 'atlas'}. Open {index.absolute().as_uri()} in a browser.")
    if built.outcome.failed:
        sys.exit(1)

"""`penlight layers MODEL`."""

from __future__ import annotations

import json
from typing import Any

import click

from penlight.cli.shared import model_options, open_model
from penlight.render import columns


@click.command("layers")
@model_options
@click.option("--json", "as_json", is_flag=True, help="The rows as JSON on stdout, and nothing else there.")
def command(model: str, device: str, input_shape: str | None, trust: bool, as_json: bool) -> None:
    """List every readable layer of MODEL, in order of execution.

    The receptive field is what a unit in the middle sees of the input, size and stride in pixels, found by probing; "whole" where
    it sees all of it, however large.
    """
    opened = open_model(model, input_shape, device, trust, weights="any")
    rows = opened.rows()
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    heads = {
        "path": "layer",
        "kind": "kind",
        "shape": "output",
        "layout": "layout",
        "units": "units",
        "field": "sees",
        "stride": "stride",
        "parameters": "parameters",
        "alias_of": "same values as",
    }
    click.echo(columns([_shown(row) for row in rows], heads))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    field = row["receptive_field"]
    return {
        **row,
        "shape": "×".join(map(str, row["shape"])),
        "field": "whole" if field is None else "×".join(map(str, field["size"])),
        "stride": None if field is None else "×".join(map(str, field["stride"])),
        "alias_of": row["alias_of"] or "",
    }

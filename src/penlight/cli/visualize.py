"""`penlight visualize MODEL UNIT…`."""

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
from penlight.render import columns, sheet
from penlight.results import VisualizeResult


@click.command("visualize")
@model_options
@click.argument("units", nargs=-1, required=True, metavar="UNIT…")
@click.option("--method", default="penlight", show_default=True, help="How; see 'penlight methods'.")
@technique_options("visualize")
@result_options
def command(
    model: str,
    units: tuple[str, ...],
    method: str,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make pictures that excite units of MODEL most, or with --minimize least.

    UNIT is layer:index, layer:index@row,column, layer:* or class:label; several may be given.
    """
    from penlight.api import visualize

    check_out(out)
    opened = open_model(model, input_shape, device, trust)
    with progress_bar("visualize", "step") as progress:
        result = visualize(opened, units, method=method, seed=seed, progress=progress, **given(options))
    give(result, out, as_json, _text(result), [sheet(result)] if out is not None else [])


def _text(result: VisualizeResult) -> str:
    rows = []
    for u, unit in enumerate(result.units):
        reached = [
            "no gradient" if zero else f"{a:.4g}"
            for a, zero in zip(result.activations[u], result.zero_gradient[u], strict=True)
        ]
        rows.append(
            {
                "unit": unit,
                "label": result.labels[u],
                "reached": "  ".join(reached),
                "start": f"{result.starts[u].mean():.4g}",
            }
        )
    heads = {"unit": "unit", "label": "label", "start": "at the start", "reached": "activation reached, a start each"}
    return columns(rows, heads)

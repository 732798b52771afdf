"""`penlight explain MODEL INPUT`."""

from __future__ import annotations

from collections.abc import Sequence
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
from penlight.render import columns, explain_sheet, number
from penlight.render.explain_rows import explain_page
from penlight.render.explain_sheet import told
from penlight.results import ExplainResult

_OURS = ("data", "unit", "method", "check")


@click.command("explain")
@model_options
@click.argument("input", metavar="INPUT")
@click.option(
    "--unit", "units", multiple=True, metavar="UNIT",
    help="What is explained: class:LABEL, layer:index, layer:index@row,column, mean(layer:index), probability(class:LABEL);"
    " the class the network finds without. May be given several times.",
)  # fmt: skip
@click.option(
    "--method", "names", multiple=True, default=("occlusion",), show_default=True,
    help="How; see 'penlight methods'. Given several times, or with commas, the maps stand side by side.",
)  # fmt: skip
@click.option("--data", metavar="DATA", help="Data that INPUT data:N is taken from, and that some methods learn from.")
@click.option(
    "--check", is_flag=True,
    help="Is the map true? Adds deletion and insertion curves, sensitivity to noise, and the randomisation test.",
)  # fmt: skip
@technique_options("explain", skip=_OURS)
@result_options
def command(
    model: str,
    input: str,
    units: tuple[str, ...],
    names: tuple[str, ...],
    data: str | None,
    check: bool,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what in INPUT caused a unit of MODEL to do what it does.

    INPUT is a picture file, an .npy file, or data:N for input N of the data; for a network on text a text file or the text itself, for
    one on tables FILE.csv:N for row N of a file.
    """
    from penlight.api import explain

    check_out(out)
    opened = open_model(model, input_shape, device, trust)
    wanted = [name.strip() for text in names for name in text.split(",") if name.strip()]
    asked: dict[str, Any] = {
        "method": wanted if len(wanted) > 1 else wanted[0] if wanted else "",
        "data": data,
        "check": check,
        "seed": seed,
    }
    unit: Any = list(units) if len(units) > 1 else units[0] if units else None
    with progress_bar("explain", "part") as progress:
        result = explain(opened, input, unit, progress=progress, **asked, **given(options))
    parts = [result] if isinstance(result, ExplainResult) else list(result)
    pages = {"index.html": lambda: explain_page(parts)} if parts[0].is_row or parts[0].is_text else {}
    give(result, out, as_json, _text(parts), [explain_sheet(parts)] if out is not None else [], pages)


def _text(parts: Sequence[ExplainResult]) -> str:
    rows = [
        {
            "unit": str(part.target),
            "value": number(part.target.value),
            "probability": None if part.target.probability is None else f"{part.target.probability:.1%}",
            "method": part.method,
            "sum": number(float(part.values.sum(dtype="float64"))),
            "where": _where(part),
        }
        for part in parts
    ]
    heads = {
        "unit": "unit",
        "value": "value",
        "probability": "probability",
        "method": "method",
        "sum": "sum of the map",
        "where": "strongest at",
    }
    if all(row["probability"] is None for row in rows):
        del heads["probability"]
    lines = [columns(rows, heads)]
    for part in parts:
        lines += ["", f"{part.method} of {part.target.unit}: {part.caption}"]
        lines += [f"  {text}" for text in told(part.evidence)]
        lines += [
            f"  {text}" for text in told({n.replace("_", " "): v for n, v in part.checks.items() if v is not None})
        ]
        lines += [f"  note: {note}" for note in part.notes]
    return "\n".join(lines)


def _where(part: ExplainResult) -> str:
    """The three strongest places."""
    return "  ".join(f"{part.place_name(place)}: {number(value)}" for place, value in part.ranked(3))

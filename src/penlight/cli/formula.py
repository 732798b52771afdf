"""`penlight formula MODEL [--at INPUT]`."""

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

PAGE = "formula.html"


@click.command("formula")
@model_options
@click.option(
    "--at", metavar="INPUT",
    help="The rule that holds at one input: data:N, FILE.csv:N, a picture file or an .npy file; without it the whole expression.",
)  # fmt: skip
@click.option(
    "--unit", "units", multiple=True, metavar="UNIT",
    help="What is written down: class:LABEL, layer:index, layer:index@row,column, layer:*, or a sum as in 'class:a - class:b';"
    " all class scores without, with --at the class the network finds. May be given several times.",
)  # fmt: skip
@click.option("--method", metavar="symbolic|affine", help="How; symbolic without --at, affine with it.")
@click.option(
    "--data", metavar="DATA", help="Data that --at data:N is taken from, and that the expression is checked on."
)
@technique_options("formula", skip=("data", "unit", "method", "at"))
@result_options
def command(
    model: str,
    at: str | None,
    units: tuple[str, ...],
    method: str | None,
    data: str | None,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Write MODEL down as the expression it is, in the units of its input.

    With --at, a network of ReLUs is an exact affine rule at that input: its weights, and how far every column may move before the rule
    changes. With --out, formula.txt, formula.tex, formula.py and formula.html are written there.
    """
    from penlight.api import formula
    from penlight.render.formula import page, text

    check_out(out)
    opened = open_model(model, input_shape, device, trust)
    with progress_bar("formula", "step") as progress:
        result = formula(
            opened,
            at,
            unit=list(units) or None,
            method=method,
            data=data,
            seed=seed,
            progress=progress,
            **given(options),
        )
    give(result, out, as_json, text(result), pages={PAGE: lambda: page(result)})

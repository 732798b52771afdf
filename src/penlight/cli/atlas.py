"""`penlight atlas MODEL --data DATA --out DIR`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from penlight.cli.shared import given, model_options, open_model, technique_options, workers_option

if TYPE_CHECKING:
    from penlight.api import Built
    from penlight.models import Model


@click.command("atlas")
@model_options
@click.option("--data", metavar="DATA", help="A folder of pictures or an .npz file; a specimen brings its own.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The atlas' folder, new or begun."
)
@click.option("--layers", multiple=True, metavar="PATTERN", help="Only these layers, as in 'features.*'.")
@click.option("--top", default=9, show_default=True, type=click.IntRange(1), help="Real examples kept of every unit.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Random starts of every synthesis.")
@click.option(
    "--method",
    default="",
    help="Synthesis; see 'penlight methods'. [default: penlight; strings for text, row for tables]",
)
@technique_options("visualize", skip=("seeds", "minimize"))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all random numbers.")
@workers_option
@click.option("--json", "as_json", is_flag=True, help="What was done, as JSON on stdout, and nothing else there.")
def command(
    model: str,
    device: str,
    input_shape: str | None,
    trust: bool,
    data: str | None,
    out: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Ask every question of every unit of MODEL and keep the answers in a folder.

    Killed at any moment and started again, it goes on where it was; a changed option recomputes only what it touches.
    """
    opened = open_model(model, input_shape, device, trust)
    built = build(opened, data, out, given(options))
    outcome = built.outcome
    if as_json:
        failed = [{"task": task.title(), "key": task.key, "reason": reason} for task, reason in outcome.failed]
        summary = {"atlas": str(out), "tasks": built.tasks, "computed": outcome.computed, "reused": outcome.reused}
        click.echo(json.dumps({**summary, "failed": failed}, indent=1))
    else:
        click.echo(f"{out}: {built.tasks} tasks, {outcome.computed} computed, {outcome.reused} found there already")
        click.echo(f"look at it: penlight site {out} --out {out}-site")
    if outcome.failed:
        sys.exit(1)


def build(model: Model, data: Any, out: Path, options: dict[str, Any]) -> Built:
    """Build with a bar over all tasks, and tell what failed."""
    from penlight.api import build_atlas

    with tqdm(desc="atlas", disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True, bar_format=_BAR) as bar:

        def watch(number: int, of: int, task: Any, share: float) -> None:
            bar.total = of
            bar.set_description(task.title(), refresh=False)
            bar.update(number + share - bar.n)

        built = build_atlas(model, data, out, watch=watch, **options)
    for task, reason in built.outcome.failed:
        click.echo(f"penlight: not done: {task.title()}: {reason}", err=True)
    return built


_BAR = "{desc}: {percentage:3.0f}%|{bar}| task {n:.0f} of {total} [{elapsed} gone, {remaining} to go]"

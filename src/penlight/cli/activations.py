"""`penlight activations MODEL INPUT…`."""

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
from penlight.cli.telling import told as told_otherwise
from penlight.render import columns, number
from penlight.render.words import THIN
from penlight.render.words import share as spaced
from penlight.results import ActivationsResult

_OURS = ("data", "samples", "top")


@click.command("activations")
@model_options
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT…")
@click.option("--layers", multiple=True, metavar="PATTERN", help="Layers to read, as in 'features.*'; all by default.")
@click.option("--data", metavar="DATA", help="Data that INPUT data:N is taken from; a specimen brings its own.")
@click.option(
    "--checkpoints", multiple=True, metavar="WEIGHTS",
    help="Weights files of the same network, in order: how its answers to one INPUT change as training goes on. Several with commas.",
)  # fmt: skip
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Units named of every layer.")
@click.option("--method", default=None, help="How; see 'penlight methods'. [default: maps; tracks for text]")
@technique_options("activations", skip=_OURS)
@result_options
def command(
    model: str,
    inputs: tuple[str, ...],
    layers: tuple[str, ...],
    data: str | None,
    checkpoints: tuple[str, ...],
    top: int,
    method: str | None,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Show what every unit of every layer of MODEL does with INPUT: all maps of a layer as one wall.

    INPUT is a picture file, an .npy file, a folder of pictures, or data:N for input N of the data; for a network on text a text file or
    the text itself, which --out DIR shows coloured by every cell; for one on tables FILE.csv:N for row N of a file.
    """
    from penlight.api import activations

    check_out(out)
    opened = open_model(model, input_shape, device, trust)
    files = [name.strip() for text in checkpoints for name in text.split(",") if name.strip()]
    asked: Any = inputs[0] if len(inputs) == 1 else list(inputs)
    with progress_bar("activations", "input") as progress:
        result = activations(
            opened,
            asked,
            layers=layers,
            method=method,
            checkpoints=files,
            data=data,
            trust=trust,
            progress=progress,
            **given(options),
        )
    if (other := told_otherwise(result)) is not None:
        give(result, out, as_json, other[0], pages=other[1])
        return
    give(result, out, as_json, _text(result, top))


def _text(result: ActivationsResult, top: int) -> str:
    lines = []
    for n, name in enumerate(result.runs):
        classes = "  ".join(f"{label} {p:.1%}" for label, p in result.ranked(n, 3)) if result.probabilities.size else ""
        lines += [f"{name}   {classes}".rstrip(), columns(_rows(result, n, top), _HEADS), ""]
    if len(result.runs) > 1:
        lines += ["How layers change over the runs:", columns(_changes(result), _CHANGES)]
    return "\n".join(lines).rstrip()


_HEADS = {
    "layer": "layer",
    "kind": "kind",
    "shape": "units and map",
    "active": "above zero",
    "units": "units that are",
    "sparseness": "sparseness",
    "places": "places with 90 %",
    "top": "strongest units",
}


def _rows(result: ActivationsResult, run: int, top: int) -> list[dict[str, Any]]:
    rows = []
    for path in result.layers:
        told = result.statistics(path, run)
        named = [
            f"{one.unit.rpartition(':')[2]}{_named(one.label)} {number(one.value)}"
            for one in result.top(path, top, run)
        ]
        rows.append(
            {
                "layer": path,
                "kind": result.kinds[path],
                "shape": "×".join(map(str, result[path].shape[1:])),
                "active": share(told["active"]),
                "units": share(told["units"]),
                "sparseness": number(told["sparseness"]),
                "places": share(told["places"]),
                "top": "  ".join(named),
            }
        )
    return rows


def share(value: float | None) -> str:
    """Per cent without the thin space, which not every terminal has."""
    return spaced(value).replace(THIN, "")


def _named(label: str | None) -> str:
    return f" ({label})" if label else ""


def _changes(result: ActivationsResult) -> list[dict[str, Any]]:
    """A row a layer: share above zero and places with 90 % of the energy, run by run."""
    rows = []
    for path in result.layers:
        told = [result.statistics(path, n) for n in range(len(result.runs))]
        rows.append(
            {
                "layer": path,
                "active": "  ".join(share(one["active"]) for one in told),
                "sparseness": "  ".join(number(one["sparseness"]) for one in told),
                "places": "  ".join(share(one["places"]) for one in told),
            }
        )
    return rows


_CHANGES = {
    "layer": "layer",
    "active": "above zero",
    "sparseness": "sparseness",
    "places": "places with 90 % of the energy",
}

"""`penlight visualize MODEL UNIT…`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

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
from penlight.cli.telling import told
from penlight.render import columns, sheet, sweep_sheet
from penlight.render import film as write_film
from penlight.render.film import FORMATS, check_format
from penlight.render.words import THIN, share
from penlight.results import SweepResult, VisualizeResult
from penlight.results.sweep import readable
from penlight.results.visualize import FRAGILE, NEVER_FIRED, NO_GRADIENT, ONCE, file_names

_OURS = ("data", "film", "frames", "survey", "sweep")
_NAMED = 12  # pictures a remark names
_REMARKS = {
    NO_GRADIENT: "no gradient ever reached it: the picture shows the random start and says nothing about the unit",
    FRAGILE: "fragile: works at one alignment only, small jitters take more than half of it away",
    ONCE: "the pattern came in this one start only",
    NEVER_FIRED: "never above zero on any input of the survey",
}


@click.command("visualize")
@model_options
@click.argument("units", nargs=-1, required=True, metavar="UNIT…")
@click.option(
    "--method", default=None, help="How; see 'penlight methods'. [default: penlight; strings for text, row for tables]"
)
@click.option(
    "--data", metavar="DATA", help="Pictures for the methods that learn from data; a specimen brings its own."
)
@click.option(
    "--survey", type=click.Path(path_type=Path), metavar="DIR",
    help="A saved survey, or an atlas: says where each picture lies among real inputs.",
)  # fmt: skip
@click.option(
    "--sweep", multiple=True, metavar="OPTION=a..b",
    help="Try a range of an option's values, as in total-variation=1e-3..10, steps=16..512:6:log, l2=0,0.1,1; at most two.",
)  # fmt: skip
@click.option(
    "--film", is_flag=False, flag_value="gif", type=click.Choice(FORMATS), metavar="[gif|webp|mp4]",
    help="Save the optimisation of every picture as a film too, as GIF if nothing else is said; needs --out.",
)  # fmt: skip
@click.option("--frames", default=48, show_default=True, type=click.IntRange(2), help="Pictures in a film.")
@technique_options("visualize", skip=_OURS)
@result_options
def command(
    model: str,
    units: tuple[str, ...],
    method: str | None,
    data: str | None,
    survey: Path | None,
    sweep: tuple[str, ...],
    film: str | None,
    frames: int,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Make pictures that excite units of MODEL most, or with --minimize least; strings for networks on text, rows for tables.

    UNIT is layer:index, layer:index@row,column, layer:*, class:label, or an expression in quotes: 'class:A - class:B',
    'layer(conv2)'. Several may be given.
    """
    _check(film, sweep, survey, out)
    opened = open_model(model, input_shape, device, trust)
    asked = {"seed": seed, "data": data, **({} if method is None else {"method": method}), **given(options)}
    with progress_bar("visualize", "step") as progress:
        if sweep:
            from penlight.api import sweep as run

            swept = run(opened, list(units), list(sweep), progress=progress, **asked)
        else:
            from penlight.api import visualize

            count = frames if film else 0
            result = visualize(opened, list(units), survey=survey, film=count, progress=progress, **asked)
    if sweep:
        give(swept, out, as_json, _swept(swept), [sweep_sheet(swept)] if out is not None else [])
        return
    if (other := told(result)) is not None:
        give(result, out, as_json, other[0], pages=other[1])
        return
    give(result, out, as_json, _text(result), [sheet(result)] if out is not None else [])
    if film and out is not None:
        _films(result, out, film)


def _check(kind: str | None, sweep: Sequence[str], survey: Path | None, out: Path | None) -> None:
    """What cannot go together, before the work."""
    from penlight.errors import BadOption

    check_out(out)
    if kind is not None:
        check_format(kind)
        if out is None:
            raise BadOption("--film writes files; say where with --out DIR")
        if sweep:
            raise BadOption("--film and --sweep do not go together; film the best of the sweep")
    if sweep and survey is not None:
        raise BadOption("--survey and --sweep do not go together; survey the best of the sweep")


def _films(result: VisualizeResult, out: Path, kind: str) -> None:
    """UNIT-SEED.gif and so on beside the pictures."""
    for u, name in enumerate(file_names(result.units)):
        for s in range(result.film.shape[1]):
            write_film(result.film[u, s], out / f"{name}-{s}.{kind}")


def _text(result: VisualizeResult) -> str:
    seeds = result.images.shape[1]
    rows = [_row(result, u) for u in range(len(result.units))]
    heads = {"unit": "unit", "label": "label", "start": "at the start", "reached": "activation reached, a start each"}
    if np.isfinite(result.jittered).any():
        heads["jittered"] = "under small jitters"
    if np.isfinite(result.percentile).any():
        heads["percentile"] = f"{'below' if result.minimize else 'above'} real inputs"
    if np.isfinite(result.ratio).any():
        heads["ratio"] = f"of the {'least' if result.minimize else 'best'} real"
    if seeds > 1 and result.recurrence.any():
        heads |= {"recurrence": f"same pattern, of {seeds}", "stability": "stability"}
    return "\n".join([columns(rows, heads), *_remarks(result), *(f"note: {note}" for note in result.notes)])


def _row(result: VisualizeResult, u: int) -> dict[str, Any]:
    def each(texts: Iterator[str]) -> str:
        return "  ".join(texts)

    reached = zip(result.activations[u].tolist(), result.zero_gradient[u].tolist(), strict=True)
    stability = float(result.stability[u])
    return {
        "unit": result.units[u],
        "label": result.labels[u],
        "reached": each(NO_GRADIENT if zero else f"{a:.4g}" for a, zero in reached),
        "start": f"{result.starts[u].mean():.4g}",
        "jittered": each(f"{a:.4g}" for a in result.jittered[u].tolist()),
        "percentile": each(share(p).replace(THIN, "") for p in result.percentile[u].tolist()),
        "ratio": each(f"{r:.2f}×" if np.isfinite(r) else "–" for r in result.ratio[u].tolist()),
        "recurrence": each(str(n) if n else "–" for n in result.recurrence[u].tolist()),
        "stability": f"{stability:.2f}" if np.isfinite(stability) else None,
    }


def _remarks(result: VisualizeResult) -> list[str]:
    """One line for each thing that is wrong with some of the pictures."""
    lines = []
    seeds = result.images.shape[1]
    flags = [[result.flags(u, s) for s in range(seeds)] for u in range(len(result.units))]
    for flag, words in _REMARKS.items():
        names = []
        for unit, starts in zip(result.units, flags, strict=True):
            hit = [str(s) for s, said in enumerate(starts) if flag in said]
            whole = seeds == 1 or (flag == NEVER_FIRED)
            if hit:
                names.append(unit if whole else f"{unit} (start {', '.join(hit)})")
        if names:
            rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            lines.append(f"{', '.join(names[:_NAMED])}{rest}: {words}")
    return ["", *lines] if lines else []


def _swept(result: SweepResult) -> str:
    rows = []
    for u, (unit, (a, b)) in enumerate(zip(result.units, result.best.tolist(), strict=True)):
        row: dict[str, Any] = {"unit": unit, "label": result.labels[u]}
        if a >= 0:
            row |= {name: readable(value) for name, value in result.values(a, b).items()}
            row |= {"activation": f"{result.activations[u, a, b]:.4g}", "jittered": f"{result.jittered[u, a, b]:.4g}"}
        rows.append(row)
    heads = {"unit": "unit", "label": "label"}
    heads |= {axis.name: f"best {axis.name.replace('_', '-')}" for axis in result.axes}
    heads |= {"activation": "activation there", "jittered": "under small jitters"}
    tried = [
        f"{axis.name.replace('_', '-')} tried: {', '.join(axis.label(n) for n in range(len(axis.values)))}"
        for axis in result.axes
    ]
    return "\n".join([columns(rows, heads), "", *tried])

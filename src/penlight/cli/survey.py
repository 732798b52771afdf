"""`penlight survey MODEL DATA`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from penlight.render import columns, survey_sheet
from penlight.results import FiltersResult, Picture, ProjectionsResult, Result, SurveyResult
from penlight.results.labels import LabelsResult
from penlight.results.visualize import file_name
from penlight.results.weights import WeightsResult

if TYPE_CHECKING:
    from penlight.inputs import Data
    from penlight.models import Model

_UNITS_A_SHEET = 64


@click.command("survey")
@model_options
@click.argument("data", required=False)
@click.option(
    "--layers", multiple=True, metavar="PATTERN", help="Layers to survey, as in 'features.*'; all by default."
)
@click.option(
    "--method",
    default=None,
    help="How; see 'penlight methods'. [default: stream; passages for text, columns for tables]",
)
@click.option(
    "--project", is_flag=True,
    help="Project every top example back to pixels (Zeiler and Fergus' deconvnet), on the sheets below the examples; needs --out.",
)  # fmt: skip
@technique_options("survey")
@result_options
def command(
    model: str,
    data: str | None,
    layers: tuple[str, ...],
    method: str | None,
    project: bool,
    device: str,
    input_shape: str | None,
    trust: bool,
    seed: int,
    out: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Find what in DATA excites every unit of MODEL: top examples with their receptive fields, and statistics.

    DATA is a folder of pictures (subfolders are classes) or an .npz file, for a network on text a text file, a folder or a .zip of them,
    for one on tables a .csv or .parquet file; a specimen brings its own.
    """
    from penlight.api import find_data, survey

    _check(project, method, out)
    if any(str(options.get(name) or "").startswith("module:") for name in ("images", "texts")) and "" not in sys.path:
        sys.path.insert(0, "")
    opened = open_model(model, input_shape, device, trust)
    found = None if data is None and opened.data is None else find_data(opened, data)
    with progress_bar("survey", "input") as progress:
        result = survey(opened, found, layers=layers, method=method, seed=seed, progress=progress, **given(options))
    if (other := told(result)) is not None:
        give(result, out, as_json, other[0], pages=other[1])
        return
    if not isinstance(result, SurveyResult):
        give(result, out, as_json, _other(result))
        return
    back = _projected(opened, result, found, top=int(options.get("top") or 9)) if project else None
    sheets = _sheets(result, found, back) if found is not None and opened.contract.kind == "image" else ()
    give(result, out, as_json, _text(result), sheets)


def _check(project: bool, method: str | None, out: Path | None) -> None:
    """What cannot go together, before the work."""
    from penlight.errors import BadOption

    check_out(out)
    if project and out is None:
        raise BadOption("--project makes pictures; say where they go with --out DIR")
    if project and method not in (None, "stream", "merge"):
        raise BadOption(f"--project is for the top examples of a survey; method {method!r} has none")


def _projected(model: Model, survey: SurveyResult, data: Data | None, top: int) -> ProjectionsResult:
    from penlight.api import project

    with progress_bar("project", "unit") as progress:
        return project(model, survey, data=data, top=top, progress=progress)


def _other(result: Result) -> str:
    """What the methods say that make no survey of examples."""
    if isinstance(result, FiltersResult):
        return _filters(result)
    if isinstance(result, WeightsResult):
        return _weights(result)
    assert isinstance(result, LabelsResult)
    return _labels(result)


def _weights(result: WeightsResult) -> str:
    rows = []
    for path, sources in result.sources.items():
        feeds = [
            (f"{path}:{u}", first[0]) for u in range(result.units[path]) if (first := result.fed_by(f"{path}:{u}"))
        ]
        unit, best = max(feeds, key=lambda one: one[1].share, default=(None, None))
        rows.append(
            {
                "layer": path,
                "units": result.units[path],
                "fed": "not known" if sources is None else ", ".join(sources) or "the input",
                "strongest": None if best is None else f"{best.unit} to {unit}, {best.share:.0%} of its weights",
                "expanded": path in result.expanded,
            }
        )
    heads = {
        "layer": "layer",
        "units": "units",
        "fed": "fed by",
        "strongest": "strongest connection",
        "expanded": "expanded",
    }
    return "\n".join([columns(rows, heads), *result.notes])


def _labels(result: LabelsResult) -> str:
    rows = []
    for path, index in result.index.items():
        labelled, different = result.detectors(path)
        found = [result.labels.of(f"{path}:{u}") for u in range(len(index))]
        best = max((row for row in found if row is not None), key=lambda row: row.score, default=None)
        counts = {"layer": path, "units": len(index), "labelled": labelled, "different": different}
        rows.append({**counts, "best": None if best is None else f"{best.unit}: {best}"})
    heads = {"layer": "layer", "units": "units", "labelled": "labelled", "different": "different", "best": "clearest"}
    return "\n".join([columns(rows, heads), "", result.how, *result.notes])


def _filters(result: FiltersResult) -> str:
    rows = [
        {"unit": f"{result.layer}:{u}", "norm": float(result.norms[u]), "steps": int(result.steps[u]) or "not settled"}
        for u in range(len(result.filters))
    ]
    return columns(rows, {"unit": "unit", "norm": "norm of the weights", "steps": "noise settles after"})


def _text(result: SurveyResult) -> str:
    rows = []
    for path, one in result.layers.items():
        units = len(one.mean)
        rows.append(
            {
                "layer": path,
                "units": units,
                "never": int((one.fires == 0).sum()),
                "fires": f"{float(one.fires.mean()):.0%}",
                "max": f"{float(one.maximum.max()):.4g}",
                "best": result.examples(f"{path}:{int(np.argmax(one.maximum))}")[0].name,
                **_clearest(result, path),
            }
        )
    heads = {
        "layer": "layer",
        "units": "units",
        "never": "never fire",
        "fires": "fire on, mean",
        "max": "strongest",
        "best": "on input",
    }
    if result.labels:
        heads |= {"labelled": "labelled", "clearest": "clearest label"}
    lines = [columns(rows, heads), "", f"{result.count} inputs read, {len(result.skipped)} skipped"]
    if result.labels:
        lines.append(
            f"labelled: units that tell one class from the others better than chance, at 5 % over all {result.labels.tested:,} pairs"
            " of unit and class"
        )
    elif result.classes:
        lines.append(f"classes are not scored: {result.scored}")
    left_out = len({twin.input for row in result.statistics for twin in result.twins(row["unit"])})
    if left_out:
        lines.append(
            f"{left_out} pictures nearly the same as a better example were left out of lists (--no-deduplicate keeps them)"
        )
    lines += [f"  skipped {name}: {reason}" for name, reason in result.skipped[:20]]
    return "\n".join(lines + ([f"  and {len(result.skipped) - 20} more"] if len(result.skipped) > 20 else []))


def _clearest(result: SurveyResult, path: str) -> dict[str, Any]:
    """How many units of a layer have a label, and the best of them."""
    found = [
        row for u in range(len(result.layers[path].mean)) if (row := result.labels.of(f"{path}:{u}")) and row.label
    ]
    best = max(found, key=lambda row: row.score, default=None)
    return {
        "labelled": len(found),
        "clearest": None if best is None else f"{best.unit}: {best.label}, {best.score:.2f}",
    }


def _sheets(result: SurveyResult, data: Data, back: ProjectionsResult | None) -> Iterator[Picture]:
    """The top examples of every unit, cut to what the unit saw, some units a sheet."""
    for path, one in result.layers.items():
        for start in range(0, len(one.mean), _UNITS_A_SHEET):
            units = [f"{path}:{u}" for u in range(start, min(start + _UNITS_A_SHEET, len(one.mean)))]
            wanted = sorted({e.index for unit in units for e in [*result.examples(unit), *result.bottom(unit)]})
            inputs = {index: _pixels(data.read(index)) for index in wanted}
            picture = survey_sheet(result, units, inputs, projections=back)
            yield Picture(f"{file_name(path)}-top-{start:05d}", picture.pixels, picture.caption)


def _pixels(one: Any) -> Any:
    scaled = one if one.dtype == np.uint8 else np.clip(one * 255.0 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(scaled.transpose(1, 2, 0))

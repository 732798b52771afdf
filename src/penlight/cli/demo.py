"""`penlight demo`."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penlight.cli.atlas import build
from penlight.cli.shared import open_model, workers_option

if TYPE_CHECKING:
    from penlight.models import Model

_OPTIONS: dict[str, dict[str, Any]] = {
    "letters": {"steps": 96, "rate": 0.27},  # not 320 at 0.2: on 28 x 28 pixels the rest only adds contrast
    "biopsies": {},
    "code": {"seeds": 1, "width": 4, "length": 16},
}
_TEXT = 80_000  # tokens of the texts that `code` is looked at with, of 420,000 in its sample
_SAYS = {
    "letters": "a small network on pictures, which tells the glyphs A to J apart",
    "biopsies": "a small network on a table, which tells malignant tumours from benign ones",
    "code": "a character LSTM on the source of Python's library",
}


@click.command("demo")
@click.option(
    "--out", default=Path("demo"), show_default=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to."
)
@click.option("--specimen", "names", multiple=True, type=click.Choice(list(_OPTIONS)), help="Only this one.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute.")
@workers_option
def command(out: Path, names: tuple[str, ...], device: str, workers: int | None) -> None:
    """Open the specimens, ask everything of every unit of theirs, and write the sites."""
    from penlight.web.site import build_site

    failed = False
    pages = {}
    for name in names or _OPTIONS:
        model = open_model(name, None, device, False)
        units = sum(layer.units for layer in model.layers.values() if layer.alias_of is None)
        click.echo(f"{name}: {_SAYS[name]}; {len(model.layers)} layers, {units} units", err=True)
        place = out if name == "letters" else out / name
        built = build(model, _looked_at(model), place / "atlas", {**_OPTIONS[name], "workers": workers})
        pages[name] = build_site(place / "atlas", place / "site")
        failed = failed or bool(built.outcome.failed)
    first = _first(out, pages)
    click.echo(f"The atlases are in {out}. Open {first.absolute().as_uri()} in a browser.")
    if failed:
        sys.exit(1)


def _looked_at(model: Model) -> Any:
    """The specimen's own data, None; of texts the shortest, so many tokens in all: many texts are read side by side, a long one alone."""
    if model.text is None:
        return None
    from penlight.api import find_data
    from penlight.inputs import pick

    data = find_data(model, None)
    sizes = [len(data.read(n)) for n in range(len(data))]
    numbers, room = [], _TEXT
    for n in sorted(range(len(data)), key=sizes.__getitem__):
        room -= sizes[n]
        if room < 0:
            break
        numbers.append(n)
    return pick(data, sorted(numbers))


def _first(out: Path, pages: dict[str, Path]) -> Path:
    """A page that leads to the sites, or the only one."""
    if len(pages) == 1:
        return next(iter(pages.values()))
    rows = "".join(
        f'<li><a href="{escape(page.relative_to(out).as_posix())}"><b>{escape(name)}</b></a> {escape(_SAYS[name])}</li>'
        for name, page in pages.items()
    )
    style = next(iter(pages.values())).parent.relative_to(out) / "static" / "penlight.css"
    first = out / "index.html"
    lead = "What small networks have learned; everything was asked of every unit."
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>Penlight</title><link rel="stylesheet" href="{escape(style.as_posix())}"></head>'
    )
    body = f'<body><main><section><h1>Penlight</h1><p class="lead">{lead}</p><ul class="doors">{rows}</ul></section></main></body>'
    first.write_text(f"{head}{body}</html>", "utf-8")
    return first

"""What the commands have in common: opening a model, progress, and giving results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Iterator

    from penlight.models import Model
    from penlight.results import Picture, Result


F = TypeVar("F", bound=Callable[..., Any])


def model_options(function: F) -> F:
    """MODEL and what says how it is opened."""
    for decorate in (
        click.option(
            "--trust", is_flag=True, help="Let files run code: pickled weights, functions named by a model card."
        ),
        click.option("--input-shape", metavar="C,H,W", help="The input's shape, where the reference does not say it."),
        click.option(
            "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|mps", help="Where to compute."
        ),
        click.argument("model"),
    ):
        function = decorate(function)
    return function


def result_options(function: F) -> F:
    """Where the answer goes."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="The result as JSON on stdout, and nothing else there."),
        click.option(
            "--out", type=click.Path(path_type=Path), metavar="DIR", help="Save pictures and results.json there."
        ),
        click.option(
            "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all random numbers."
        ),
    ):
        function = decorate(function)
    return function


workers_option = click.option(
    "--workers",
    type=click.IntRange(1),
    metavar="N",
    help="Processes that share the work. [default: one a core, 8 at most]",
)


def technique_options(verb: str, skip: Iterable[str] = (), only: str = "") -> Callable[[F], F]:
    """A flag for every option of every method of the verb, or of the method `only`, read from the methods themselves."""

    def decorate(function: F) -> F:
        from penlight.techniques.contract import methods
        from penlight.techniques.options import table

        rows: dict[str, dict[str, dict[str, Any]]] = {}  # option -> method -> its row
        named = [only] if only else list(methods[verb])
        for name in named:
            for row in table(methods[verb][name]):
                rows.setdefault(row["name"], {})[name] = row
        for option in reversed([name for name in rows if name not in set(skip)]):
            function = _flag(rows[option], len(named))(function)
        return function

    return decorate


def _flag(rows: dict[str, dict[str, Any]], of: int) -> Callable[[F], F]:
    """One flag for the option of some of a verb's methods, `of` in all."""
    first = next(iter(rows.values()))
    flag = "--" + first["name"].replace("_", "-")
    help = _told(rows, of)
    kinds = {row["type"] for row in rows.values()}
    if kinds == {"bool"}:
        if any(row["default"] for row in rows.values()):
            both = f"{flag}/--no-{flag.removeprefix('--')}"
            return click.option(both, first["name"], default=None, help=f"{help} [default: {_defaults(rows)}]")
        return click.option(flag, first["name"], is_flag=True, default=None, help=help)
    choices = dict.fromkeys(choice for row in rows.values() for choice in row["choices"])
    if choices and all(row["choices"] for row in rows.values()):
        kind: Any = click.Choice(list(choices))
    else:
        kind = {"int": click.INT, "float": click.FLOAT}.get(kinds.pop() if len(kinds) == 1 else "", click.STRING)
    return click.option(flag, first["name"], type=kind, default=None, help=f"{help} [default: {_defaults(rows)}]")


def _told(rows: dict[str, dict[str, Any]], of: int) -> str:
    """The option's line of help, with the methods that have it unless all have; where they say different things, all of them."""
    said: dict[str, list[str]] = {}
    for name, row in rows.items():
        said.setdefault(row["help"], []).append(name)
    if len(said) == 1 and len(rows) == of:
        return next(iter(said))
    return "; ".join(f"{help} ({', '.join(names)})" for help, names in said.items())


def _defaults(rows: dict[str, dict[str, Any]]) -> str:
    """'256', or where methods differ '256; lucid 512'."""
    words = {"True": "on", "False": "off"}  # not by value: 0 is no False here
    defaults = {name: words.get(str(row["default"]), str(row["default"])) for name, row in rows.items()}
    usual = next(iter(defaults.values()))
    return "; ".join([usual, *(f"{name} {value}" for name, value in defaults.items() if value != usual)])


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in options.items() if value is not None}


def open_model(reference: str, input_shape: str | None, device: str, trust: bool, weights: str = "own") -> Model:
    """The model of the command line; `module:` references are also looked for in the working directory."""
    from penlight.errors import BadOption
    from penlight.models import load_model

    if reference.startswith("module:") and "" not in sys.path:
        sys.path.insert(0, "")
    shape = None
    if input_shape is not None:
        parts = input_shape.replace("x", ",").split(",")
        if not all(part.strip().isdigit() for part in parts):
            raise BadOption(f"--input-shape takes whole numbers with commas, as in 3,224,224, not {input_shape!r}")
        shape = tuple(int(part) for part in parts)
    return load_model(reference, example=shape, device=device, trust=trust, weights=weights)


def check_out(out: Path | None) -> None:
    """`BadOutput` before hours of work, not after: the folder must be new, empty, or hold an earlier result."""
    from penlight.errors import BadOutput
    from penlight.results.base import may_replace

    if out is None:
        return
    may_replace(out)
    probe = next(p for p in [out, *out.absolute().parents] if p.exists())
    if not probe.is_dir():
        raise BadOutput(f"{probe} is no folder; name another place with --out")
    try:
        trial = probe / f".penlight-{id(out)}"
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise BadOutput(f"cannot write to {out}: {error.strerror or error}; name another place with --out") from error


def give(
    result: Result,
    out: Path | None,
    as_json: bool,
    text: str,
    more: Iterable[Picture] = (),
    pages: Mapping[str, Callable[[], str]] | None = None,
) -> None:
    """Save the result with its pages, and print it: as JSON, or as text with the place it was saved to."""
    if out is not None:
        result.save(out, more, pages={name: make() for name, make in (pages or {}).items()})
    if as_json:
        click.echo(result.to_json(indent=1))
    else:
        click.echo(text)
        click.echo(f"\nsaved in {out}" if out is not None else "\n--out DIR saves pictures and results.json")


@contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with an ETA on stderr, when that is a terminal; yields `progress(done, of)`."""
    with tqdm(desc=title, unit=unit, disable=not sys.stderr.isatty(), leave=False, dynamic_ncols=True) as bar:

        def progress(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        yield progress

"""An atlas as static HTML, for a browser with or without a server; never imports torch."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from penlight.errors import BadOutput
from penlight.store import Atlas
from penlight.web.album import Album
from penlight.web.book import read_book
from penlight.web.pages import FILTERS, Pages, arc, figures
from penlight.web.rooms import Room, RoomPages, read_holdings
from penlight.web.table_room import TableRoom
from penlight.web.text_room import TextRoom

MARKER = "penlight-site.json"
STATIC = ("penlight.css", "penlight.js", "icon.svg")
ROOMS: dict[str, Room] = {"text": TextRoom(), "table": TableRoom()}
"""What is shown of networks on other inputs than pictures, by kind of input."""
_LEFT_BY_SYSTEMS = {".DS_Store", "Thumbs.db", "desktop.ini"}


def build_site(atlas_folder: str | Path, out_folder: str | Path) -> Path:
    """Write the atlas as static pages; returns the path of `index.html`.

    >>> build_site("atlas/", "site/")              # doctest: +SKIP
    PosixPath('site/index.html')

    The pages work from `file://` and from any folder of any host. A site that this function wrote before is replaced,
    whole; the old one stands until the new one is ready. Results that the atlas does not hold yet are named as such.
    Raises `BadInput` if `atlas_folder` is no atlas and `BadOutput` if `out_folder` holds anything else or cannot be
    written.
    """
    out = Path(out_folder)
    with Atlas.open(atlas_folder) as atlas:
        _check(out, Path(atlas_folder))
        with _replacing(out) as staging:
            _write(atlas, staging)
    return out / "index.html"


def _write(atlas: Atlas, site: Path) -> None:
    known = atlas.meta("model")
    if isinstance(known, dict) and known.get("kind") in ROOMS:
        _write_rooms(atlas, site, ROOMS[known["kind"]])
        return
    book = read_book(atlas, Album(site))
    pages = Pages(book)
    environment = _environment(pages.shared())
    _ground(site)
    _page(environment, site, "index.html", "model.html", pages.model_page())
    _page(environment, site, "classes.html", "classes.html", pages.classes_page())
    for layer in book.pages:
        _page(environment, site, layer.page, "layer.html", pages.layer_page(layer))
        (site / "units" / layer.name).mkdir()
        for index in range(layer.units):
            _page(environment, site, layer.unit_page(index), "unit.html", pages.unit_page(layer, index))
    _close(site, book.model.get("hash"))


def _write_rooms(atlas: Atlas, site: Path, room: Room) -> None:
    """The same for a network on text or tables."""
    held = read_holdings(atlas)
    pages = RoomPages(held, room)
    environment = _environment({**pages.shared(), "figures": figures})
    _ground(site)
    (site / "static" / "room.css").write_text(room.style, "utf-8")
    _page(environment, site, "index.html", "room_model.html", pages.model_page())
    for address, text in room.files(held).items():
        (site / address).write_text(text, "utf-8", errors="replace")
    for layer in held.pages:
        _page(environment, site, layer.page, "room_layer.html", pages.layer_page(layer))
        (site / "units" / layer.name).mkdir()
        for index in range(layer.units):
            _page(environment, site, layer.unit_page(index), "room_unit.html", pages.unit_page(layer, index))
    _close(site, held.model.get("hash"))


def _ground(site: Path) -> None:
    """Folders and files that every site has."""
    for folder in ("static", "layers", "units"):
        (site / folder).mkdir()
    for name in STATIC:
        content = resources.files("penlight.web").joinpath("static", name).read_bytes()
        (site / "static" / name).write_bytes(content)


def _close(site: Path, digest: Any) -> None:
    """The marker by which a site is known as ours."""
    (site / ".nojekyll").touch()
    entries = sorted([*(entry.name for entry in site.iterdir()), MARKER])
    (site / MARKER).write_text(json.dumps({"format": 1, "model": digest, "entries": entries}), "utf-8")


def _environment(shared: dict[str, Any]) -> Environment:
    environment = Environment(
        loader=PackageLoader("penlight.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    environment.globals.update(arc=arc, **shared)
    return environment


def _page(environment: Environment, site: Path, address: str, template: str, context: dict[str, Any]) -> None:
    root = "../" * address.count("/")
    text = environment.get_template(template).render(root=root, here=address, **context)
    (site / address).write_text(text, "utf-8", errors="replace")


def _check(out: Path, atlas: Path) -> None:
    """Only an empty place or a whole site of ours may be written over."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise BadOutput(f"{out} is no folder; name another place with --out")
    try:
        there = {entry.name for entry in out.iterdir()} - _LEFT_BY_SYSTEMS
    except OSError as error:
        raise BadOutput(f"cannot read {out}: {error.strerror}; name another place with --out") from error
    if not there:
        return
    try:
        ours = set(json.loads((out / MARKER).read_text("utf-8"))["entries"])
    except (OSError, ValueError, KeyError, TypeError):
        raise BadOutput(f"{out} exists and is no Penlight site; name another place with --out, or empty it") from None
    if there - ours or atlas.resolve().is_relative_to(out.resolve()):
        found = ", ".join(sorted(there - ours)[:3]) or str(atlas)
        todo = "move them, or name another place with --out"
        raise BadOutput(f"{out} holds things that Penlight did not write there ({found}); {todo}")


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that takes its place when all went well."""
    out = out.resolve()
    staging: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        fresh = staging / "new"
        fresh.mkdir()
        yield fresh
        _swap(fresh, out, staging / "old")
    except OSError as error:
        reason = error.strerror or error
        raise BadOutput(f"cannot write to {out}: {reason}; make room or name another place with --out") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(fresh: Path, out: Path, aside: Path) -> None:
    there = out.exists()
    if there:
        out.rename(aside)
    try:
        fresh.rename(out)
    except BaseException:
        if there:
            aside.rename(out)
        raise

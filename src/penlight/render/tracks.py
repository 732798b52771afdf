"""Every cell over a text, as a page to search: a list of cells, the text coloured by one of them, which cells are on in a stretch."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from importlib import resources
from itertools import groupby
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.render.table import columns
from penlight.render.words import number
from penlight.results.heat import colours, strength
from penlight.results.strips import readable
from penlight.results.tracks import FEW, STEPS, Text, TracksResult, levels

BUDGET = 6_000_000  # values that a page holds at most
_LEAST = 1000  # tokens below which layers are left out instead
_SHADES, _STILL = 65, 6  # colours, and properties that are shown without a script


def tracks_page(
    result: TracksResult, text: int = 0, links: Sequence[tuple[str, str]] = (), home: tuple[str, str] | None = None
) -> str:
    """A whole page of one text; `links` are (name, address) of the pages of the texts, in order, `home` that of the page above.

    >>> Path("tracks.html").write_text(tracks_page(result))      # doctest: +SKIP
    """
    name = result.texts[text].name
    others = "".join(
        f'<a href="{escape(address)}"{" aria-current=page" if n == text else ""}>{escape(label)}</a>'
        for n, (label, address) in enumerate(links)
    )
    above = "" if home is None else f'<a href="{escape(home[1])}">{escape(home[0])}</a>'
    others = others if len(links) > 1 else ""
    nav = f'<nav aria-label="Pages">{above}{others}</nav>' if above or others else ""
    title = f"{escape(name)} · {escape(result.provenance.model)} · Penlight"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="generator" content="Penlight">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_file('tracks_page.css')}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(name)}</h1><p>{_lead(result, text)}</p>{nav}</header>\n<main>\n{tracks_fragment(result, text)}\n</main>\n"
        "</body>\n</html>\n"
    )


def tracks_fragment(result: TracksResult, text: int = 0) -> str:
    """The part of a page that shows one text; it brings its own style and script, and reads without the script too."""
    shown, one, notes = _fitting(result, text)
    known = [pair[0].name for pair in shown.best]
    first = known[0] if known else ""
    about = _about(shown, one, f"p:{first}" if first else "number", first, len(one) < one.whole)
    parts = [
        ("known", one.known.astype("<f4")),
        ("probability", one.probability.astype("<f4")),
        *((f"scores-{n}", shown.scores[path].astype("<f4")) for n, path in enumerate(shown.layers)),
    ]
    data = "\n".join(
        f'<script type="text/plain" data-part="{name}">{_packed(values)}</script>' for name, values in parts
    )
    data += "".join(_layer(n, one.values[path]) for n, path in enumerate(shown.layers))
    told = "".join(f"<p>{escape(note)}</p>" for note in notes)
    style, script = _file("tracks.css") + _shades(), _file("tracks.js")
    return (
        f'<div class="tracks" id="tracks-{text}">\n<style>{style}</style>\n{_app(shown, one)}{_still(shown, one)}\n'
        f'<div class="tracks-notes">{told}</div>\n<script type="application/json" class="tracks-about">{_json(about)}</script>\n'
        f"{data}\n<script>{script}</script>\n</div>"
    )


def tracks_told(result: TracksResult, top: int = 3) -> str:
    """What stands in a terminal: the texts, and for every property the units that follow it best."""
    texts = [{"text": one.name, "tokens": len(one), "of": one.whole, "bits a token": one.bits} for one in result.texts]
    said = ["text", "tokens", "of", *(["bits a token"] if any(one.bits is not None for one in result.texts) else [])]
    lines = [columns(texts, said), ""]
    rows = []
    for known, _ in result.best:
        best = [f"{one.unit} {str(one).removeprefix(known.measure + ' ')}" for one in result.following(known.name, top)]
        rows.append(
            {"property": known.name, "stretches": known.stretches, "measure": known.measure, "best": "  ".join(best)}
        )
    if rows:
        heads = {
            "property": "property",
            "stretches": "stretches",
            "measure": "measure",
            "best": "units that follow it best, here",
        }
        lines += [columns(rows, heads), ""]
    units = sum(len(scores) for scores in result.scores.values())
    lines += [f"{units:,} units of {', '.join(result.layers)}", *result.notes]
    return "\n".join(lines).rstrip()


def _fitting(result: TracksResult, text: int) -> tuple[TracksResult, Text, list[str]]:
    """What fits on a page, the text of it, and what to say of the rest."""
    whole, notes = result.texts[text], list(result.notes)
    units = {path: len(scores) for path, scores in result.scores.items()}
    count = min(result.limit, len(whole), max(_LEAST, BUDGET // max(sum(units.values()), 1)))
    kept: list[str] = []
    for path in units:
        if not kept or count * sum(units[p] for p in (*kept, path)) <= BUDGET:
            kept.append(path)
    if count < len(whole):
        notes.append(f"The page shows the first {count:,} of {len(whole):,} tokens; the result holds all of them.")
    if left := [path for path in units if path not in kept]:
        notes.append(f"{len(left)} layers do not fit on the page; name those you want with --layers: {', '.join(left)}")
    one = whole.first(count)
    layers = {path: result.layers[path] for path in kept}
    return replace(result, layers=layers, scores={path: result.scores[path] for path in kept}), one, notes


def _about(result: TracksResult, one: Text, order: str, mark: str, cut: bool) -> dict[str, Any]:
    """What the script needs besides the values."""
    tokens = one.tokens
    starts, ends = one.spans[:, 0].tolist(), [0, *one.spans[:-1, 1].tolist()]
    gaps = {n: one.text[a:b] for n, (a, b) in enumerate(zip(ends, starts, strict=True)) if b > a}
    return {
        "tokens": tokens,
        "gaps": gaps or None,
        "unit": _word(one),
        "layers": [
            {"path": path, "tops": [float(f"{top:.6g}") for top in levels(one.values[path])[1].tolist()]} for path in result.layers
        ],
        "known": [{**k._asdict(), "measure": k.measure} for k in result.known],
        "steps": STEPS,
        "few": FEW,
        "colours": [_hex(rgb) for rgb in _table().tolist()],
        "order": order,
        "mark": mark,
        "cut": cut,
    }  # fmt: skip


def _app(result: TracksResult, one: Text) -> str:
    known = [(escape(k.name), f" ({k.stretches}\u00d7 here)" if k.stretches < FEW else "") for k, _ in result.best]
    surprise = '<option value="surprise">surprise of the network</option>' if len(one.probability) else ""
    every = '<option value="">all of them</option>' if len(result.layers) > 1 else ""
    return Template(_file("tracks.html")).substitute(
        layers=every + "".join(f'<option value="{escape(path)}">{escape(path)}</option>' for path in result.layers),
        follows="".join(f'<option value="p:{name}">{name}{few}</option>' for name, few in known),
        marks="".join(f'<option value="{name}">{name}</option>' for name, _ in known) + surprise,
        gradient=",".join(_hex(rgb) for rgb in _table()[::8].tolist()),
    )


def _still(result: TracksResult, one: Text) -> str:
    """The text on the colours of the best cell of every strong property, for a browser without scripts."""
    blocks = []
    for n, (known, best) in enumerate(result.best[:_STILL]):
        path, _, unit = best.unit.rpartition(":")
        runs = "".join(_runs(one, one.values[path][:, int(unit)].astype(np.float32)))
        blocks.append(
            f"<details{' open' if n == 0 else ''}><summary><b>{escape(known.name)}</b>: <code>{escape(best.unit)}</code>, "
            f"{escape(str(best))}</summary><pre>{runs}</pre></details>"
        )
    if not blocks:
        blocks = [f"<pre>{escape(one.text)}</pre>"]
    return f'<div class="tracks-still"><p>{_legend()}</p>{"".join(blocks)}</div>'


def _legend() -> str:
    boxes = "".join(f'<i class="c{c}">&nbsp;&nbsp;</i>' for c in range(0, _SHADES, 8))
    return f"low {boxes} high. Searching the cells takes a browser that runs scripts."


def _runs(one: Text, values: NDArray[np.float32]) -> Iterator[str]:
    """Tokens in runs of one colour; what stands between tokens has none."""
    shades = np.rint((strength(values, True) + 1) / 2 * 16).astype(int) * 4
    at = 0
    for shade, places in groupby(range(len(one)), key=lambda n: int(shades[n])):
        here = list(places)
        start, end = int(one.spans[here[0], 0]), int(one.spans[here[-1], 1])
        yield escape(one.text[at:start])
        yield f'<i class="c{shade}">{escape(one.text[start:end])}</i>'
        at = end


def _lead(result: TracksResult, text: int) -> str:
    one = result.texts[text]
    units = sum(len(scores) for scores in result.scores.values())
    said = (
        f"{units:,} cells of <b>{escape(result.provenance.model or 'the network')}</b> over {len(one):,} {_word(one)}s"
    )
    if one.bits is not None:
        said += f"; the network needed {number(one.bits)} bits for each"
    return (
        said
        + ". Choose a cell to colour the text by it; select a stretch of the text for the cells that are on there and off elsewhere."
    )


def _word(one: Text) -> str:
    """What its tokens are."""
    return (
        "character"
        if bool((one.spans[:, 1] - one.spans[:, 0] == 1).all()) and one.spans[-1, 1] == len(one)
        else "token"
    )


@cache
def _table() -> NDArray[np.uint8]:
    """(65, 3): colours from the lowest value to the highest, white at zero."""
    return colours(np.linspace(-1, 1, _SHADES), True)


@cache
def _shades() -> str:
    rules = []
    for n, rgb in enumerate(_table().tolist()):
        ink = "" if sum(readable(rgb)) < 600 else ";color:#fff"
        ground = "transparent" if n == _SHADES // 2 else _hex(rgb)
        rules.append(f".tracks i.c{n}{{background-color:{ground}{ink}}}")
    return "".join(rules)


def _hex(rgb: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _packed(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()


def _layer(n: int, values: NDArray[np.floating]) -> str:
    """The levels of a layer, a unit after another; as differences from token to token where these take less room."""
    found = np.ascontiguousarray(levels(values)[0].T)
    plain, steps = _packed(found), _packed(np.diff(found, axis=1, prepend=np.int8(0)))
    short = len(steps) < len(plain)
    return (
        f'\n<script type="text/plain" data-part="layer-{n}"{" data-steps" * short}>{steps if short else plain}</script>'
    )


def _json(value: Any) -> str:
    """JSON that may stand in a page: nothing in it ends the script it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def _file(name: str) -> str:
    return resources.files("penlight.render").joinpath(name).read_text("utf-8")

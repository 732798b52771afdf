"""Units on text as HTML: their passages with letters on the colours of their values, what they follow, and who follows a property best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from html import escape
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from penlight.render.svg import histogram_svg
from penlight.render.words import NONE, number, share
from penlight.results.passages import MEASURES, Best, Passage, PassagesResult, Token

UNITS = 60  # shown on a page without a choice
_STEPS = 9  # of colour on either side
_STYLES = [f"ps-{side}{n}" for side in "pm" for n in range(_STEPS + 1)]  # p for above zero, m for below
_SIGNS = {"\n": "↵", "\t": "→"}


def unit_card(result: PassagesResult, unit: str) -> str:
    """Everything about one unit as a fragment."""
    row = result.row(unit)
    numbers = (
        f"mean {number(row['mean'])} ± {number(row['std'])}, from {number(row['min'])} to {number(row['max'])}; "
        f"above 0 at {share(row['fires'])} of the tokens"
    )
    top, bottom = result.top(unit), result.bottom(unit)
    reach = max(abs(row["min"]), abs(row["max"])) or 1.0
    lowest = (
        f'<details class="ps-low"><summary>Where it is lowest</summary>{_list(bottom, reach)}</details>'
        if bottom
        else ""
    )
    chart = histogram_svg(*result.histogram(unit), title=unit).replace(" inputs by", " tokens by")
    return (
        f'<article class="ps-unit" id="{escape(_anchor(unit), quote=True)}"><h3>{escape(unit)}</h3>{_label(result, unit)}'
        f'<p class="ps-soft">{numbers}</p>{_list(top, reach)}{lowest}'
        f'<div class="ps-pair">{_tokens(result, unit)}<figure>{chart}'
        f"<figcaption>All tokens by the unit’s value; heights are square roots of counts.</figcaption></figure></div></article>"
    )


def best_table(result: PassagesResult, link: Callable[[str], str] | None = None) -> str:
    """The cell that follows each property best, as a table; `link` gives the address of a unit's card or page."""
    if not result.best:
        return '<p class="ps-soft">No property was scored.</p>'
    rows = "".join(_best_row(one, link) for one in sorted(result.best, key=_order))
    return (
        '<div class="ps-wide" tabindex="0" role="region" aria-label="Best cells"><table class="ps-table"><thead><tr>'
        '<th scope="col">property</th><th scope="col">cell</th><th scope="col">score</th><th scope="col">95 % interval</th>'
        '<th scope="col" class="n">beyond</th><th scope="col">claim</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _order(one: Best) -> tuple[bool, float]:
    return not one.stands, -(abs(2 * one.score - 1) if one.kind == "yes/no" else abs(one.score))


def _best_row(one: Best, link: Callable[[str], str] | None) -> str:
    low, high = (number(round(v, 3)) if np.isfinite(v) else NONE for v in (one.low, one.high))
    name = f"<code>{escape(str(one.unit))}</code>"
    cell = f'<a href="{escape(link(str(one.unit)), quote=True)}">{name}</a>' if link else name
    falls = " <small>when low</small>" if one.falls else ""
    wide = 100 * max(0.0, 2 * one.score - 1 if one.kind == "yes/no" else one.score)
    bar = f'<span class="ps-bar"><i style="width:{wide:.1f}%"></i></span>'
    return (
        f'<tr{"" if one.stands else " class=ps-not"}><th scope="row">{escape(one.property)}</th><td>{cell}{falls}</td>'
        f'<td>{bar}<b>{one.score:.3f}</b> <small>{MEASURES[one.kind]}</small></td><td class="n">{low} to {high}</td>'
        f'<td class="n">{one.limit:.3f}</td><td>{"stands" if one.stands else "no claim"}</td></tr>'
    )


def _label(result: PassagesResult, unit: str) -> str:
    label = result.label(unit)
    if label is None:
        return ""
    rest = "; ".join(f"{escape(name)} {score:.2f}" for name, score in label.next)
    if label.label is None:
        return f'<p><b class="ps-none">follows nothing we looked for</b> <span class="ps-soft">{"best: " + rest if rest else ""}</span></p>'
    return (
        f'<p><b class="ps-tag">{escape(label.label)}</b> <b>{label.score:.3f}</b> '
        f'<span class="ps-soft">{escape(label.how)}{"; next: " + rest if rest else ""}</span></p>'
    )


def _list(passages: Sequence[Passage], reach: float) -> str:
    return f'<ol class="ps-list">{"".join(passage(one, reach) for one in passages)}</ol>'


def passage(one: Passage, reach: float) -> str:
    """One passage: text on the colours of the unit's value at it, ±`reach` being the strongest; the peak is framed."""
    space = " " if any(len(token) > 1 for token in one.tokens) else ""
    shown = [_escaped(token) + space for token in one.tokens]
    steps = _steps(one.values, reach)
    ends = {*(np.flatnonzero(steps[1:] != steps[:-1]) + 1).tolist(), one.at, one.at + 1}
    cuts = [0, *sorted(end for end in ends if 0 < end < len(shown)), len(shown)]
    parts = []
    for start, stop in pairwise(cuts):
        style, text = _STYLES[steps[start]], "".join(shown[start:stop])
        parts.append(
            f'<mark class="{style} ps-peak">{text}</mark>'
            if start == one.at
            else f'<span class="{style}">{text}</span>'
        )
    return (
        f'<li><p class="ps-where"><b>{number(one.activation)}</b> {escape(one.name)}, line {one.line}</p>'
        f'<p class="ps-text">{"".join(parts)}</p></li>'
    )


def _steps(values: NDArray[np.float32], reach: float) -> NDArray[np.int64]:
    """The place in `_STYLES` of each value's colour; what is not finite has none."""
    strength = np.minimum(np.abs(np.where(np.isfinite(values), values, 0.0).astype(np.float64)) / reach, 1.0)
    found: NDArray[np.int64] = np.rint(strength * _STEPS).astype(np.int64) + np.where(values >= 0, 0, _STEPS + 1)
    return found


@lru_cache(maxsize=65536)
def _escaped(token: str) -> str:
    return escape(_shown(token))


def _shown(token: str) -> str:
    return "".join(_SIGNS.get(c, c if c.isprintable() else "·") for c in token)


def _tokens(result: PassagesResult, unit: str) -> str:
    up, down = result.moved_by(unit)

    def row(one: Token) -> str:
        name = "blank" if one.token == " " else _shown(one.token)
        sign = "+" if one.jump > 0 else ""
        cells = "".join(f'<td class="n">{value}</td>' for value in (sign + number(one.jump), number(one.mean)))
        return f'<tr><th scope="row"><code>{escape(name)}</code></th>{cells}</tr>'

    if not (up or down):
        return ""
    rows = "".join(map(row, [*up, *down[::-1]]))
    return (
        '<table class="ps-table ps-tokens"><caption>Tokens that move it</caption><thead><tr><th scope="col">token</th>'
        f'<th scope="col" class="n">jump</th><th scope="col" class="n">mean after it</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _anchor(unit: str) -> str:
    return "u-" + "".join(c if c.isalnum() or c in "_-." else "-" for c in unit)


def chosen_units(result: PassagesResult, most: int = UNITS) -> list[str]:
    """The units a page shows first: the best of each property, then those with a label by score, then in order."""
    best = [str(one.unit) for one in sorted(result.best, key=_order)]
    named = sorted((row for row in result.labels if row.label is not None), key=lambda row: -row.score)
    every = [f"{path}:{u}" for path, layer in result.layers.items() for u in range(len(layer.mean))]
    return list(dict.fromkeys([*best, *(row.unit for row in named), *every]))[:most]


def page(result: PassagesResult, units: Sequence[str] = ()) -> str:
    """The survey as one HTML page that needs nothing else; without `units` those that `chosen_units` names."""
    shown = list(units) or chosen_units(result)
    total = sum(len(layer.mean) for layer in result.layers.values())
    title = f"Passages of {result.provenance.model or 'the network'}"
    data = f" of {escape(result.provenance.data)}" if result.provenance.data else ""
    labelled = sum(row.label is not None for row in result.labels)
    against = (
        f"Each was chosen on one half of a sample and scored on the other, {result.sampled:,} tokens; a claim stands where the score is "
        f"beyond chance and beyond {result.against:,} cells of the same network with its weights in another order (“beyond”)."
        if result.best
        else ""
    )
    notes = "".join(
        f"<li>{escape(note)}</li>"
        for note in (*result.notes, *(f"skipped {n}: {why}" for n, why in result.skipped[:20]))
    )
    rest = f"<p class=ps-soft>{len(shown):,} of {total:,} units are shown.</p>" if len(shown) < total else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{PAGE_STYLE}{STYLE}</style></head><body><main>'
        f"<header><h1>{escape(title)}</h1><p>{result.count:,} tokens in {result.texts:,} texts{data}; {total:,} units in "
        f"{len(result.layers)} layers, {labelled:,} of them with a label.</p></header>"
        f"<section><h2>Best cells</h2><p class=ps-soft>{against}</p>{best_table(result, lambda unit: f'#{_anchor(unit)}')}</section>"
        f"<section><h2>Units</h2>{_key()}{rest}{''.join(unit_card(result, unit) for unit in shown)}</section>"
        f"{f'<section><h2>Notes</h2><ul>{notes}</ul></section>' if notes else ''}</main></body></html>"
    )


def _key() -> str:
    cells = "".join(f'<span class="ps-m{n}">&nbsp;</span>' for n in range(_STEPS, 0, -1))
    cells += "".join(f'<span class="ps-p{n}">&nbsp;</span>' for n in range(_STEPS + 1))
    return (
        f'<p class="ps-soft">Below zero <span class="ps-text ps-keys">{cells}</span> above zero; a frame marks the peak, ↵ a line’s end. '
        "The strongest colour is the unit’s largest magnitude.</p>"
    )


def _colours() -> str:
    """A class a step; letters stay dark on light: colours go no further than can be read on."""
    rules = []
    for sign, strong in (("p", "light-dark(#f2a11d,#b06d00)"), ("m", "light-dark(#7aa7dc,#2f64a8)")):
        for n in range(1, _STEPS + 1):
            rules.append(f".ps-{sign}{n}{{background:color-mix(in srgb,{strong} {100 * n // _STEPS}%,transparent)}}")
    return "".join(rules)


STYLE = (
    ".ps-unit{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:1rem 1.2rem;margin-top:1.2rem;min-width:0}"
    ".ps-unit h3{font:600 1.15rem var(--mono);margin:0 0 .3rem}.ps-unit p{margin:.25rem 0}"
    ".ps-soft{color:var(--soft);font-size:.88rem}.ps-tag{color:var(--amber);background:var(--tint);border-radius:99px;padding:.05em .65em}"
    ".ps-none{color:var(--soft);font-weight:500}.ps-list{list-style:none;margin:.7rem 0 0;padding:0}"
    ".ps-list li{border-top:1px solid var(--line);padding:.45rem 0}.ps-unit .ps-where{font-size:.8rem;color:var(--soft);margin:0}"
    ".ps-where b{color:var(--ink)}.ps-text{font:.86rem/1.55 var(--mono);white-space:pre-wrap;overflow-wrap:anywhere}"
    ".ps-text span,.ps-text mark{color:var(--ink);border-radius:2px;padding:.12em 0}.ps-text mark{background:none}"
    ".ps-text .ps-peak{outline:2px solid var(--ink);font-weight:700}.ps-keys span{display:inline-block;width:.7em}"
    ".ps-pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(18rem,100%),1fr));gap:1rem 2rem;margin-top:.9rem;"
    "align-items:start}"
    ".ps-pair figure{margin:0}.ps-pair figcaption{color:var(--soft);font-size:.8rem}.ps-low{margin-top:.6rem}"
    ".ps-low summary{cursor:pointer;color:var(--amber)}.ps-wide{overflow-x:auto}"
    ".ps-table{border-collapse:collapse;font-size:.9rem;width:100%}.ps-table caption{text-align:left;color:var(--soft);font-size:.84rem}"
    ".ps-table th,.ps-table td{text-align:left;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line);font-weight:400;"
    "white-space:nowrap}"
    ".ps-table thead th{color:var(--soft);font-size:.8rem}.ps-table .n{text-align:right}.ps-table small{color:var(--soft)}"
    ".ps-table tbody th{font-weight:600}.ps-not,.ps-not th{color:var(--soft)}.ps-table.ps-tokens{width:auto}"
    ".ps-bar{display:inline-block;width:7rem;height:.7rem;margin-right:.6rem;background:var(--sunk);border-radius:2px;overflow:hidden}"
    ".ps-bar i{display:block;height:100%;background:var(--bar)}.ps-not .ps-bar i{background:var(--line)}" + _colours()
)
"""Rules of the fragments; they use the site's custom properties."""

PAGE_STYLE = (
    ":root{color-scheme:light dark;--paper:light-dark(#faf7ef,#12100c);--card:light-dark(#fffdf8,#1b1813);"
    "--sunk:light-dark(#f1ecdf,#0b0a07);--ink:light-dark(#241f18,#efe8da);--soft:light-dark(#645a4b,#b3a791);"
    "--line:light-dark(#e3dac8,#353025);--amber:light-dark(#8a4f00,#ffbe55);--tint:light-dark(#fdeed0,#38290d);"
    "--bar:light-dark(#d08a1d,#d8952b);--serif:ui-serif,Georgia,serif;"
    '--sans:ui-sans-serif,system-ui,"Segoe UI",Roboto,sans-serif;--mono:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}'
    "*{box-sizing:border-box}html{background:var(--paper);color:var(--ink);font:100%/1.5 var(--sans);font-variant-numeric:tabular-nums}"
    "body{margin:0 auto;max-width:72rem;padding:1rem clamp(1rem,4vw,2.5rem) 3rem}h1,h2{font-family:var(--serif);line-height:1.15;"
    "margin:0 0 .5rem;overflow-wrap:anywhere}h1{font-size:2.2rem}h2{font-size:1.4rem}section{margin-top:2.2rem}a{color:var(--amber)}"
    "code{font:.92em var(--mono);overflow-wrap:anywhere}.hist{display:block;width:100%;max-width:30rem}.hist-bars{fill:var(--bar)}"
    ".hist-axis{stroke:var(--soft)}.hist-tick{fill:var(--soft);font:11px var(--sans)}.n{text-align:right}"
)
"""What a page of its own needs beside them."""


def text(result: PassagesResult, most: int = 12) -> str:
    """The best cells and the strongest labels for a terminal."""
    total = sum(len(layer.mean) for layer in result.layers.values())
    named = sorted((row for row in result.labels if row.label is not None), key=lambda row: -row.score)
    lines = [f"{result.count:,} tokens in {result.texts:,} texts, {total:,} units; {len(named):,} with a label", ""]
    lines += [str(one) for one in sorted(result.best, key=_order)]
    if named:
        lines += ["", *(f"{row.unit}: {row}" for row in named[:most])]
        lines += [f"… and {len(named) - most} more units with a label"] if len(named) > most else []
    lines += ["", *(f"note: {note}" for note in result.notes)] if result.notes else []
    lines += [f"skipped {name}: {why}" for name, why in result.skipped[:5]]
    return "\n".join(lines).rstrip()

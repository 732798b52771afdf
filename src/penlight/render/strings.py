"""Texts that drive units as a page: letters on the colours of the unit's value, and the evidence beside them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from penlight.render.svg import Mark, histogram_svg
from penlight.render.words import NONE, number, share
from penlight.results.heat import colours, strength
from penlight.results.strings import StringsResult
from penlight.results.strips import are_words, readable, shown_token

_BINS = 48

STYLE = """
.sg{margin:0 0 2.4rem}.sg h2{margin:0 0 .3rem}.sg .sub{color:var(--soft,#645a4b);font-size:.9rem;margin:0 0 .9rem}
.sg ol{list-style:none;margin:0;padding:0}
.sg li,.sg .real{margin:0 0 1rem;padding:.7rem .9rem;background:var(--card,#fffdf8);border:1px solid var(--line,#e3dac8);
border-radius:8px}.sg .real{border-style:dashed}
.sg pre{font:.95rem/1.7 var(--mono,ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace);white-space:pre-wrap;
overflow-wrap:anywhere;margin:0;tab-size:4}.sg pre b{font-weight:400;border-radius:2px;padding:.1em 0}
.sg pre i{font-style:normal;opacity:.55}.sg pre u{text-decoration:none;border-bottom:2px dotted var(--soft,#645a4b)}
.sg .f{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;color:var(--soft,#645a4b);font-size:.84rem;margin:.45rem 0 0}
.sg .f b{color:var(--ink,#241f18);font-weight:600}.sg .two{display:grid;gap:1rem 2rem;grid-template-columns:minmax(0,1fr)}
@media(min-width:60rem){.sg .two{grid-template-columns:minmax(0,1fr) 20rem}}
.sg .ramp{display:inline-block;width:8rem;height:.7rem;border-radius:2px;vertical-align:middle;margin:0 .4rem}.sg figure{margin:0}
.sg figcaption{color:var(--soft,#645a4b);font-size:.84rem}.sg .hist{width:100%;color:var(--bar,#d08a1d)}
.sg .hist .mark{color:var(--ink,#241f18)}.sg .hist-tick{color:var(--soft,#645a4b);fill:var(--soft,#645a4b)}
.sg .flat{background:var(--tint,#fdeed0);border-left:4px solid var(--glow,#ffb52e);padding:.5rem .8rem;border-radius:4px}
""".strip()
_PAGE = """
:root{color-scheme:light;--ink:#241f18;--soft:#645a4b;--line:#e3dac8}body{background:#faf7ef;color:var(--ink);margin:0 auto;max-width:74rem;
padding:1rem clamp(1rem,4vw,2.5rem) 3rem;font:1rem/1.5 ui-sans-serif,system-ui,sans-serif}h1,h2{font-family:ui-serif,Georgia,serif;
line-height:1.2;overflow-wrap:anywhere}h1{font-size:1.7rem}h2{font-size:1.25rem}
""".strip()


def strings_page(result: StringsResult, title: str = "") -> str:
    """A page of its own, with no outside files."""
    way = "down" if result.minimize else "up"
    named = (
        title or f"Text that drives {result.units[0] if len(result.units) == 1 else f'{len(result.units)} units'} {way}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(named)}</title><style>{_PAGE}{STYLE}</style><h1>{escape(named)}</h1>{strings_fragment(result)}</html>"
    )


def strings_fragment(result: StringsResult, units: Sequence[str] | None = None) -> str:
    """A section a unit; `STYLE` is its style sheet."""
    rows = [result.index(unit) for unit in units] if units is not None else range(len(result.units))
    notes = "".join(f'<p class="sub">{escape(note)}</p>' for note in result.notes)
    return "".join(_unit(result, u) for u in rows) + (f'<div class="sg">{notes}</div>' if notes else "")


def _unit(result: StringsResult, u: int) -> str:
    strings = "".join(f"<li>{_string(result, u, s)}</li>" for s in range(result.ids.shape[1]))
    flat = '<p class="flat">It says the same whatever the text: nothing drives it.</p>' if result.flat[u] else ""
    return (
        f'<section class="sg"><h2>{escape(result.titled(u))}</h2>{_sub(result, u)}{flat}'
        f'<div class="two"><div><ol>{strings}</ol>{_real(result, u)}</div>{_written(result, u)}</div></section>'
    )


def _sub(result: StringsResult, u: int) -> str:
    at = {"last": "at the last token", "mean": "the mean over the string", "peak": "at the peak"}[result.at]
    scale = result.scale(u)
    ramp = colours(np.linspace(-1, 1, 9), True)
    stops = ",".join(_hex(paint) for paint in ramp)
    prior = "" if result.prior in ("", "none") else f" Likelihood: {escape(result.prior)}."
    return (
        f'<p class="sub">The unit\'s value {at}.{prior} Colour: the value after each token, {number(-scale)}'
        f'<span class="ramp" style="background:linear-gradient(90deg,{stops})"></span>{number(scale)}.</p>'
    )


def _string(result: StringsResult, u: int, s: int) -> str:
    surprises = result.surprises[u, s]
    text = _text(result.tokens[u][s], result.tracks[u, s], result.scale(u), result.prompt, surprises)
    facts = [f"value <b>{number(float(result.values[u, s]))}</b>"]
    if np.isfinite(result.beyond[u, s]):
        facts.append(f"{number(float(result.beyond[u, s]))} standard deviations beyond the mean of drawn strings")
    if np.isfinite(result.percentile[u, s]):
        facts.append(f"beyond {share(float(result.percentile[u, s]))} of real text")
    if np.isfinite(result.ratio[u, s]):
        facts.append(f"{number(float(result.ratio[u, s]))} of its best")
    if np.isfinite(result.bits[u, s]):
        beside = f" (real text {number(result.real_bits)})" if np.isfinite(result.real_bits) else ""
        facts.append(f"<b>{number(float(result.bits[u, s]))}</b> bits a token{beside}")
    return f'{text}<p class="f">{"".join(f"<span>{fact}</span>" for fact in facts)}</p>'


def _real(result: StringsResult, u: int) -> str:
    passage = result.passages[u]
    if passage is None:
        return ""
    text = _text(passage.tokens, passage.track, result.scale(u), 0, None)
    return (
        f'<div class="real">{text}<p class="f"><span>the furthest of real text: <b>{number(passage.value)}</b></span>'
        f"<span>{escape(passage.name)}, from token {passage.start:,} on</span></p></div>"
    )


def _written(result: StringsResult, u: int) -> str:
    """How the strings compare with what the prior writes."""
    values = result.written[u]
    if len(values) < 2 or result.flat[u]:
        return ""
    low, high = float(values.min()), float(values.max())
    counts, edges = np.histogram(values, _BINS, (low, high if high > low else low + 1))
    passage = result.passages[u]
    marks = [
        Mark(float(value), f"string {s}", "sad" if result.minimize else "happy")
        for s, value in enumerate(result.values[u])
    ]
    marks += [] if passage is None else [Mark(passage.value, "real text", "best")]
    bits = f", {number(result.written_bits)} bits a token" if np.isfinite(result.written_bits) else ""
    drawn = (
        "drawn at random" if result.prior in ("", "none") else f"drawn from the likelihood of {escape(result.prior)}"
    )
    kinds = "triangles: the strings found" + ("" if passage is None else "; diamond: the furthest of real text")
    return (
        f"<figure>{histogram_svg(counts, edges, marks, result.units[u])}<figcaption>{len(values):,} strings as long,"
        f" {drawn}{bits}; {kinds}.</figcaption></figure>"
    )


def _text(tokens: Sequence[str], track: NDArray[np.float32], scale: float, prompt: int,
          surprises: NDArray[np.float32] | None) -> str:  # fmt: skip
    paints, gap = colours(strength(np.nan_to_num(track), True, scale), True), " " if are_words(tokens) else ""
    pieces = []
    for n, token in enumerate(tokens):
        piece = _token(token, n, float(track[n]), paints[n], None if surprises is None else float(surprises[n]))
        pieces.append(f"<u>{piece}</u>" if n < prompt else piece)
        pieces.append("\n" if token.endswith("\n") else gap)
    return f"<pre>{''.join(pieces)}</pre>"


def _token(token: str, n: int, value: float, paint: NDArray[np.uint8], surprise: float | None) -> str:
    shown, blank = shown_token(token)
    text = f"<i>{escape(shown)}</i>" if blank else escape(shown)
    told = f"{token!r} at {n}: {number(value) if np.isfinite(value) else NONE}"
    if surprise is not None and np.isfinite(surprise):
        told += f", {number(surprise)} bits"
    ink = _hex(np.array(readable(paint.tolist()), np.uint8))
    return f'<b style="background:{_hex(paint)};color:{ink}" title="{escape(told)}">{text}</b>'


def _hex(paint: NDArray[np.uint8]) -> str:
    red, green, blue = (int(part) for part in paint)
    return f"#{red:02x}{green:02x}{blue:02x}"

"""Explanations of rows of tables and of texts as pages and sheets: bars a column, letters on colours, methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from penlight.render.words import number
from penlight.results import ExplainResult, Picture
from penlight.results.strips import (
    Strip,
    are_words,
    part_shown,
    readable,
    row_picture,
    shown_token,
    strongest,
    text_picture,
    token_colours,
)

_LETTERS = 20_000  # tokens of a text on a page, at most

STYLE = """
.xw{overflow-x:auto}.xr{border-collapse:collapse;font-size:.9rem;width:100%}
.xr th,.xr td{padding:.16rem .45rem;text-align:left;vertical-align:middle;line-height:1.25}
.xr thead th{color:var(--soft,#645a4b);font-weight:500;border-bottom:1px solid var(--line,#e3dac8)}
.xr tbody th{font-weight:500;white-space:nowrap;padding-left:0}.xr thead th:first-child{padding-left:0}
.xr small{display:block;color:var(--soft,#645a4b);font-weight:400;font-size:.78rem}
.xr .v{text-align:right;color:var(--soft,#645a4b);white-space:nowrap}.xr .n{white-space:nowrap;font-variant-numeric:tabular-nums}
.xr .t{min-width:4.5rem;padding:0 0 0 .6rem;height:1.9rem}
.xr .t i{display:block;height:.85rem;border-radius:1px;background:var(--rise,#b03e26)}
.xr .t i.minus{background:var(--fall,#2862a0)}
.xr .t span{display:flex;align-items:center;height:1.9rem;background-size:1px 100%;background-repeat:no-repeat;
background-image:linear-gradient(var(--line,#cfc4ae),var(--line,#cfc4ae))}
.xt{font:.88rem/1.65 var(--mono,ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace);white-space:pre-wrap;
overflow-wrap:anywhere;margin:.4rem 0 0;tab-size:4}.xt b{font-weight:400;border-radius:2px;padding:.1em 0}
.xt u{text-decoration:none;outline:2px solid var(--ink,#241f18);border-radius:2px}.xt s{text-decoration:none;opacity:.55}
.xs{display:grid;gap:1.2rem 2rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}.xs figure{margin:0;min-width:0}
.xk{color:var(--soft,#645a4b);font-size:.84rem;margin:.3rem 0 0}
.xk i{display:inline-block;width:9rem;height:.7rem;border-radius:2px;vertical-align:middle;margin:0 .4rem}
.xh{font-weight:600;margin:0}.xp{color:var(--soft,#645a4b);margin:.1rem 0 .9rem}
""".strip()
_PAGE = """
:root{color-scheme:light;--ink:#241f18;--soft:#645a4b;--line:#e3dac8}body{background:#faf7ef;color:var(--ink);margin:0 auto;max-width:68rem;
padding:1rem clamp(1rem,4vw,2.5rem) 3rem;font:1rem/1.5 ui-sans-serif,system-ui,sans-serif}h1,h2{font-family:ui-serif,Georgia,serif;
line-height:1.2;overflow-wrap:anywhere}h1{font-size:1.7rem}h2{font-size:1.2rem;margin:2rem 0 .2rem}
""".strip()


def explain_page(results: Sequence[ExplainResult], title: str = "What caused it") -> str:
    """A page of its own, with no outside files, of explanations of one row or one text."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_PAGE}{STYLE}</style><h1>{escape(title)}</h1>{explain_fragment(results)}</html>"
    )


def explain_fragment(results: Sequence[ExplainResult]) -> str:
    """Explanations of one row or one text, unit by unit, methods side by side; `STYLE` is their style sheet."""
    parts = []
    for unit in dict.fromkeys(result.target.unit for result in results):
        own = [result for result in results if result.target.unit == unit]
        body = row_fragment(own) if own[0].is_row else text_fragment(own)
        parts.append(f"<section><h2>{escape(str(own[0].target))}</h2>{_facts(own[0])}{body}{_notes(own)}</section>")
    return "".join(parts)


def row_fragment(results: Sequence[ExplainResult]) -> str:
    """A table: every column of the row with its value, and for every method a bar left or right of zero, strongest first."""
    strips, first = [result.strip for result in results], results[0]
    order = strongest(strips)
    heads = "".join(f'<th scope="col" colspan="2">{escape(strip.title)}</th>' for strip in strips)
    scales = [_scale(strip, order) for strip in strips]
    rules = next((result.parts for result in results if len(result.parts) == len(first.tokens)), ())
    body = []
    for n in order:
        rule = rules[n] if rules and rules[n] != first.place_name((n,)) else ""
        told = f"<small>{escape(rule)}</small>" if rule else ""
        bars = "".join(_bar(float(strip.values[n]), *scale) for strip, scale in zip(strips, scales, strict=True))
        body.append(
            f'<tr><th scope="row">{escape(first.tokens[n])}{told}</th><td class="v">{escape(first.shown[n])}</td>{bars}</tr>'
        )
    rest = len(first.tokens) - len(order)
    more = f'<p class="xk">and {rest} columns that weigh less</p>' if rest > 0 else ""
    return (
        f'<div class="xw"><table class="xr"><thead><tr><th scope="col">column</th><th scope="col" class="v">value</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>{more}"
    )


def _scale(strip: Strip, order: Sequence[int]) -> tuple[float, float]:
    """(lowest, highest) of the bars; zero is among them."""
    values = strip.values[list(order)]
    return min(0.0, float(values.min(initial=0))), max(0.0, float(values.max(initial=0)))


def _bar(value: float, low: float, high: float) -> str:
    room = (high - low) or 1.0
    left, wide = 100 * (min(0.0, value) - low) / room, 100 * abs(value) / room
    sign = ' class="minus"' if value < 0 else ""
    zero = 100 * -low / room
    return (
        f'<td class="t"><span style="background-position:{zero:.4g}% 0">'
        f'<i{sign} style="margin-left:{left:.4g}%;width:{wide:.4g}%"></i></span></td><td class="n">{number(value)}</td>'
    )


def text_fragment(results: Sequence[ExplainResult]) -> str:
    """The text once for every method, each token on the colour of its value, with the number when pointed at; lines stay lines."""
    blocks = "".join(
        f'<figure><p class="xh">{escape(result.method)}</p>{_text(result)}{_key(result)}</figure>' for result in results
    )
    return f'<div class="xs">{blocks}</div>'


def _text(result: ExplainResult) -> str:
    start, stop = part_shown([result.strip], len(result.tokens), result.step, _LETTERS)
    paints, gap = token_colours(result.strip), " " if are_words(result.tokens) else ""
    pieces = ["\u2026"] if start else []
    for n in range(start, stop):
        piece = _token(result, n, paints[n])
        pieces.append(f"<u>{piece}</u>" if n == result.step else piece)
        pieces.append("\n" if result.tokens[n].endswith("\n") else gap)
    pieces += ["\u2026"] if stop < len(result.tokens) else []
    return f'<pre class="xt">{"".join(pieces)}</pre>'


def _token(result: ExplainResult, n: int, paint: Sequence[int]) -> str:
    value, (shown, blank) = float(result.map[n]), shown_token(result.tokens[n])
    text = f"<s>{escape(shown)}</s>" if blank else escape(shown)
    if value == 0:
        return text
    back, ink = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (paint, readable(paint)))
    told = escape(f"{result.tokens[n]!r} at {n}: {number(value)}")
    return f'<b style="background:{back};color:{ink}" title="{told}">{text}</b>'


def _key(result: ExplainResult) -> str:
    """What the colours mean."""
    top = float(np.abs(result.map).max(initial=0))
    ramp = token_colours(Strip("", np.linspace(-1 if result.signed else 0, 1, 9, dtype=np.float32), result.signed))
    stops = ",".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in ramp)
    low = number(-top) if result.signed else "0"
    weighed = ", ".join(f"<code>{escape(repr(part))}</code> {number(weight)}" for part, weight in result.weighed(6))
    told = f'<p class="xk">{low}<i style="background:linear-gradient(90deg,{stops})"></i>{number(top)}</p>'
    return told + (f'<p class="xk">weighs most: {weighed}</p>' if weighed else "")


def _facts(result: ExplainResult) -> str:
    target = result.target
    told = f"value {number(target.value)}"
    if target.probability is not None:
        told += f", probability {100 * target.probability:.1f}\u202f%"
    if result.source:
        told += f", {escape(result.source)}"
    return f'<p class="xp">{told}</p>'


def _notes(results: Sequence[ExplainResult]) -> str:
    told = [f"{result.method}: {note}" for result in results for note in result.notes]
    return "".join(f'<p class="xk">{escape(text)}</p>' for text in dict.fromkeys(told))


def strips_picture(results: Sequence[ExplainResult]) -> Picture:
    """Methods side by side, of one row or one text, a picture for each unit below the other."""
    images = []
    for unit in dict.fromkeys(result.target.unit for result in results):
        own = [result for result in results if result.target.unit == unit]
        first, strips = own[0], [result.strip for result in own]
        drawn = (
            row_picture(first.tokens, first.shown, strips, first.heading)
            if first.is_row
            else text_picture(first.tokens, strips, first.step, first.heading)
        )
        images.append(drawn)
    wide = max(image.shape[1] for image in images)
    padded = [np.pad(i, ((0, 0), (0, wide - i.shape[1]), (0, 0)), mode="edge") for i in images]
    units = ", ".join(dict.fromkeys(str(result.target) for result in results))
    named = ", ".join(dict.fromkeys(result.method for result in results))
    return Picture("sheet-explain", np.concatenate(padded), f"What in the input caused {units}: {named}")

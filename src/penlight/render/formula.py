"""Formulas as text for a terminal, and as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penlight.render.table import columns
from penlight.render.words import MINUS, NONE, number
from penlight.results.formula import FormulaResult, Rule, Variable

_TERMS = 6  # terms of the line that says the rule
_ROWS, _LISTED = 12, 100  # columns told in a terminal, and on a page
_SHOWN = 6000  # letters of a formula in a terminal


def rule_line(
    name: str,
    value: float,
    weights: NDArray[np.float64],
    bias: float,
    given: NDArray[np.float64],
    told: Sequence[Variable],
) -> str:
    """'malignant −2.1 = −0.4·worst_radius + … + 3.2': the largest contributions first, the rest added up.

    >>> rule_line("y", -4.0, np.array([-2.0, 0.0]), 1.0, np.array([2.5, 3.0]), [Variable("a", "a"), Variable("b", "b")])
    'y −4 = −2·a + 1'
    """
    parts = weights * given
    order = [int(n) for n in np.argsort(-np.abs(parts), kind="stable") if weights[n]]
    shown, rest = order[:_TERMS], order[_TERMS:]
    terms = [(float(weights[n]), f"{number(abs(float(weights[n])))}·{told[n].name}") for n in shown]
    if rest:
        total = float(parts[rest].sum())
        terms.append((total, f"{number(abs(total))} ({len(rest):,} smaller)"))
    if bias or not terms:
        terms.append((bias, number(abs(bias))))
    first = (MINUS if terms[0][0] < 0 else "") + terms[0][1]
    return f"{name} {number(value)} = {first}" + "".join(f" {MINUS if c < 0 else '+'} {text}" for c, text in terms[1:])


def text(result: FormulaResult) -> str:
    """For a terminal."""
    lines: list[str] = []
    if result.rule is None:
        shown = result.text
        lines += [
            shown if len(shown) <= _SHOWN else shown[:_SHOWN].rpartition("\n")[0] + "\n… the whole with --out or --json"
        ]
    else:
        for n, one in enumerate(result.outputs):
            rows = _rows(result, result.rule, n)
            lines += [one.text, "", columns(rows[:_ROWS], _heads(rows))]
            lines += [f"… and {len(rows) - _ROWS:,} more columns"] if len(rows) > _ROWS else []
            lines += [""]
        lines += _margins(result.rule)
    lines += ["", checked(result)]
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def checked(result: FormulaResult) -> str:
    """How it was held against the network, in one sentence."""
    checks = result.checks
    if result.rule is not None:
        return (
            f"checked at {checks['points']} points up to the boundary: within {checks['error']:.1g} of the output;"
            f" {checks['hinges']:,} hinges in all"
        )
    return (
        f"checked at {checks['inputs']:,} inputs: within {checks['error']:.1g} of the output in double precision"
        f" (single precision, in which it runs, costs it {checks['error_float32']:.1g} itself); {checks['terms']:,} terms"
    )


def _heads(rows: Sequence[dict[str, Any]]) -> dict[str, str]:
    heads = {
        "column": "column",
        "value": "value",
        "weight": "weight",
        "contribution": "contribution",
        "down": "may fall by",
        "up": "may rise by",
    }
    return {key: head for key, head in heads.items() if any(row.get(key) is not None for row in rows)}


def _rows(result: FormulaResult, rule: Rule, n: int) -> list[dict[str, Any]]:
    """A row a variable with a weight, the largest contribution first."""
    parts, weights = rule.contributions[n], rule.weights[n]
    order = [int(v) for v in np.lexsort((-np.abs(weights), -np.abs(parts))) if weights[v]]
    alone = rule.margin.get("columns", {})
    rows = []
    for v in order:
        one = result.told[v]
        unit = f" {one.unit}" if one.unit else ""
        ends = alone.get(one.name)
        rows.append(
            {
                "column": one.name if one.value is not None or one.column == one.name else f"{one.name} ({one.column})",
                "value": number(float(rule.input[v])) + unit,
                "weight": number(float(weights[v])),
                "contribution": number(float(parts[v])),
                "down": None if ends is None else _free(ends[0], unit),
                "up": None if ends is None else _free(ends[1], unit),
            }
        )
    return rows


def _free(step: float | None, unit: str) -> str:
    return "any" if step is None else number(step) + unit


def _margins(rule: Rule) -> list[str]:
    margin = rule.margin
    if margin["distance"] is None:
        return ["the rule holds everywhere" if margin["exact"] else "no boundary was found"]
    upto = "" if margin["exact"] else "at most "
    lines = [f"holds up to {upto}{number(margin['distance'])} away (all columns together, raw units)"]
    if margin.get("unit"):
        lines[-1] += f", where {margin['unit']} flips"
    if margin.get("standardised") is not None:
        lines.append(
            f"in deviations of the columns: {upto}{number(margin['standardised'])}, where {margin['unit_standardised']} flips"
        )
    if margin.get("steepest"):
        down, up = (_free(step, "") for step in margin["steepest"])
        lines.append(f"along its own weights: down {down}, up {up}")
    for name, kept in margin.get("categories", {}).items():
        lines.append(f"{name} may change to {', '.join(kept)}" if kept else f"{name} may not change")
    return lines


def page(result: FormulaResult) -> str:
    """The formula as one HTML page: no script, no outside request, light and dark."""
    name = result.provenance.model.rpartition("/")[2] or "the network"
    title = f"Formula of {name}" if result.rule is None else f"The rule of {name} at one input"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_PAGE}{STYLE}</style></head>'
        f"<body><header><h1>{escape(title)}</h1></header><main>{fragment(result)}</main></body></html>"
    )


def fragment(result: FormulaResult) -> str:
    """The page's content, to stand in another page."""
    parts = []
    if result.rule is None:
        for one in result.outputs:
            parts.append(
                f'<section class="formula"><h2>{escape(one.name)}</h2><pre tabindex="0">{escape(one.text)}</pre></section>'
            )
    else:
        for n, one in enumerate(result.outputs):
            parts.append(_rule(result, result.rule, n, one.text))
        parts.append(_region(result, result.rule))
    notes = "".join(f"<li>{escape(note)}</li>" for note in [checked(result), *result.notes])
    python = (
        f'<details><summary>As a Python function</summary><pre tabindex="0">{escape(result.python)}</pre></details>'
    )
    if not result.python or len(result.python) > 200_000:
        python = ""
    checks = f'<section class="formula"><h2>How this was checked</h2><ul class="notes">{notes}</ul></section>'
    return f'<div class="formulas">{"".join(parts)}{python}{checks}</div>'


def _rule(result: FormulaResult, rule: Rule, n: int, line: str) -> str:
    rows = _rows(result, rule, n)
    order = [row["column"] for row in rows[:_LISTED]]
    parts = {row["column"]: row for row in rows}
    top = float(np.abs(rule.contributions[n]).max()) or 1.0
    alone = bool(rule.margin.get("columns"))
    body = []
    sizes = sorted((float(c) for c in rule.contributions[n][rule.weights[n] != 0]), key=lambda c: -abs(c))
    for name, share in zip(order, sizes, strict=False):
        row = parts[name]
        wide, sign = 50 * abs(share) / top, "minus" if share < 0 else "plus"
        left = 50 - wide if share < 0 else 50
        body.append(
            f'<tr><th scope="row">{escape(name)}</th><td class="n">{escape(row["value"])}</td><td class="n">{row["weight"]}</td>'
            f'<td class="track"><i class="{sign}" style="margin-left:{left:.2f}%;width:{wide:.2f}%"></i></td>'
            f'<td class="n">{row["contribution"]}</td>'
            + (
                f'<td class="n">{escape(row["down"] or NONE)}</td><td class="n">{escape(row["up"] or NONE)}</td>'
                if alone
                else ""
            )
            + "</tr>"
        )
    more = f"<p>… and {len(rows) - _LISTED:,} smaller ones.</p>" if len(rows) > _LISTED else ""
    heads = '<th scope="col" class="n">may fall by</th><th scope="col" class="n">may rise by</th>' if alone else ""
    return (
        f'<section class="formula"><h2>{escape(result.outputs[n].name)}</h2><p class="lead">{escape(line)}</p>{_picture(result, n)}'
        '<div class="wide" tabindex="0" role="region" aria-label="Contributions"><table><thead><tr><th scope="col">column</th>'
        '<th scope="col" class="n">value</th><th scope="col" class="n">weight</th><th scope="col">contribution</th>'
        f'<th scope="col" class="n"></th>{heads}</tr></thead><tbody>{"".join(body)}'
        f'<tr><th scope="row">constant</th><td></td><td></td><td></td><td class="n">{number(float(rule.bias[n]))}</td>'
        f"{'<td></td><td></td>' if alone else ''}</tr>"
        f'<tr class="sum"><th scope="row">{escape(result.outputs[n].name)}</th><td></td><td></td><td></td>'
        f'<td class="n">{number(float(rule.value[n]))}</td>{"<td></td><td></td>" if alone else ""}</tr></tbody></table></div>'
        f"{more}</section>"
    )


def _picture(result: FormulaResult, n: int) -> str:
    shown = list(result.pictures())
    if n >= len(shown):
        return ""
    data = base64.b64encode(shown[n].png()).decode()
    caption = escape(shown[n].caption + "; red raises it, blue lowers it")
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )


def _region(result: FormulaResult, rule: Rule) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in _margins(rule))
    return f'<section class="formula"><h2>How far it holds</h2><ul class="notes">{lines}</ul></section>'


STYLE = """.formulas{.formula{margin-top:2rem}.formula .lead{font:1.15rem/1.5
ui-serif,Georgia,serif;margin:0 0 1rem;overflow-wrap:anywhere}pre{background:var(--card);border:1px solid var(--line);
border-radius:10px;padding:.8rem 1rem;white-space:pre-wrap;overflow-wrap:anywhere;max-height:36rem;overflow-y:auto;
font:.84rem/1.5 ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}.formula table{border-collapse:collapse;width:100%}
.formula th,.formula td{text-align:left;padding:.25rem .7rem .25rem 0;border-bottom:1px solid var(--line);font-weight:400}
.formula thead th{color:var(--soft)}.formula .n{text-align:right;white-space:nowrap}.formula .track{padding:0;min-width:9rem;width:40%;
background:linear-gradient(var(--line),var(--line)) 50% 0/1px 100% no-repeat}.track i{display:block;height:.8rem;
border-radius:3px}.plus{background:var(--bar)}.minus{
background:var(--cold,light-dark(#3a6ea5,#86b4e6))}.sum th,.sum td{font-weight:650;border:0}
.wide{overflow-x:auto}.notes{margin:0;padding-left:1.1rem}.notes li{margin:.3rem 0;overflow-wrap:anywhere}
figure{margin:0 0 1rem}figure img{width:14rem;image-rendering:pixelated;border:1px solid var(--line)}figcaption{
color:var(--soft);font-size:.88rem}details{margin-top:1.5rem}summary{cursor:pointer;color:var(--amber)}}"""
"""Of the fragment, to stand in another page that has the same custom properties."""
_PAGE = """:root{color-scheme:light dark;--paper:light-dark(#faf7ef,#12100c);--card:light-dark(#fffdf8,#1b1813);
--ink:light-dark(#241f18,#efe8da);--soft:light-dark(#645a4b,#b3a791);--line:light-dark(#e3dac8,#353025);
--amber:light-dark(#8a4f00,#ffbe55);--bar:light-dark(#d08a1d,#d8952b);--cold:light-dark(#3a6ea5,#86b4e6)}
*{box-sizing:border-box}html{background:var(--paper);color:var(--ink);font:100%/1.55 ui-sans-serif,system-ui,"Segoe UI",
Roboto,"Noto Sans",sans-serif;font-variant-numeric:tabular-nums}body{margin:0 auto;max-width:68rem;
padding:1rem clamp(1rem,4vw,2.5rem) 3rem}h1,h2{font-family:ui-serif,Georgia,serif;line-height:1.15;margin:0 0 .6rem;
overflow-wrap:anywhere}h1{font-size:2.1rem}h2{font-size:1.4rem}:focus-visible{outline:3px solid var(--amber);outline-offset:2px}"""

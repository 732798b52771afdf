"""A survey of columns and rows that drive units, as HTML: fragments for a page of the site, and whole pages that need nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from penlight.render.column_charts import STYLE as CHARTS
from penlight.render.column_charts import bar, curve_svg, joint_svg, mark_svg, range_svg, span_of
from penlight.render.words import MINUS, number, share
from penlight.results.columns import ColumnRank, ColumnsResult, Interaction, Row
from penlight.results.labels import Label
from penlight.results.rows import Ideal, RowsResult

_RANKED, _CURVES, _LISTED, _LEAST = 10, 8, 5, 3  # columns shown at once, curves, rows, rows of the other end
_WIDE = 30  # columns of a layer's table
_PAGES = 60  # units in full on one page


def columns_page(result: ColumnsResult) -> str:
    """The whole survey as one page: a table of every layer, then every unit, those of the class scores first."""
    units = [unit for path in reversed(list(result.layers)) for unit in result.units if unit.rpartition(":")[0] == path]
    data = f" of {escape(result.provenance.data)}" if result.provenance.data else ""
    notes = "".join(
        f"<li>{escape(note)}</li>" for note in [*result.notes, *(f"skipped {n}: {r}" for n, r in result.skipped[:20])]
    )
    body = [
        f"<p>{result.count:,} rows{data}, {len(result.table)} columns; {_basis(result)}</p>",
        f'<ul class="cols-notes">{notes}</ul>' if notes else "",
        *(overview(result, path) for path in result.layers),
        *(unit_columns(result, unit) for unit in units[:_PAGES]),
        f"<p>… and {len(units) - _PAGES:,} more units.</p>" if len(units) > _PAGES else "",
        _legend(),
    ]
    return page(f"Columns that move the units of {_model(result.provenance.model)}", "".join(body))


def _model(reference: str) -> str:
    return reference.replace("\\", "/").rpartition("/")[2] or "the network"


def _basis(result: ColumnsResult) -> str:
    drawn = "all of them" if result.sampled == result.count else f"{result.sampled:,} of them, drawn with the seed,"
    return f"importances and curves are worked out on {drawn}."


def _legend() -> str:
    return (
        '<section class="cols-how"><h2>How to read this</h2><p><b>Integrated gradients</b>: how much of the unit\'s activation, away from '
        "its value for the mean row, comes from the column; mean magnitude over the rows. <b>Permutation</b>: the share of the unit's "
        "variance that is lost when the column's values are dealt anew among the rows. Whiskers are 95 % intervals by bootstrap over the "
        "rows. <b>↑</b>: more of the column excites the unit, <b>↓</b>: less does. <b>≠</b>: the two measures disagree, beyond chance "
        "and by a factor of two or more. Curves are partial dependences: the column is set to a value in all rows, the others stay "
        "as they are; columns that go together in the data are then set to rows that do not occur. H² is the share of two columns' "
        "joint effect that is not a sum of theirs alone.</p></section>"
    )


def overview(result: ColumnsResult, path: str, link: Callable[[str], str] | None = None) -> str:
    """A layer as a table of units by columns: each column's share of the unit's importance, by the mean of both measures.

    `link` gives the address of a unit's page; without it a unit is an anchor on this one.
    """
    shares = result.overview(path)
    order = np.argsort(-np.abs(shares).sum(0), kind="stable")[:_WIDE]
    head = "".join(f'<th scope="col"><span>{escape(result.table[c].name)}</span></th>' for c in order)
    rows = []
    for u, values in enumerate(shares):
        unit = f"{path}:{u}"
        label = result.label(unit)
        cells = "".join(_cell(unit, result.table[c].name, float(values[c])) for c in order)
        still = ' <i class="cols-soft">never changes</i>' if result.layers[path].std[u] == 0 else ""
        told = f' <i class="cols-soft">{escape(label.label)}</i>' if label is not None and label.label else ""
        address = escape(link(unit) if link else f"#{_anchor(unit)}", quote=True)
        rows.append(f'<tr><th scope="row"><a href="{address}">{escape(unit)}</a>{still or told}</th>{cells}</tr>')
    rest = len(result.table) - len(order)
    more = f"<p>{rest} more columns move these units less.</p>" if rest > 0 else ""
    return (
        f'<section class="cols-overview"><h2>{escape(path)}</h2><p>Share of each unit\'s importance, per cent: '
        '<span class="cols-up">more of the column excites</span>, <span class="cols-down">less does</span>.</p>'
        f'<div class="cols-wide" tabindex="0" role="region" aria-label="Columns of {escape(path, quote=True)}"><table class="cols-heat">'
        f'<thead><tr><th scope="col">unit</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>{more}</section>'
    )


def _cell(unit: str, column: str, value: float) -> str:
    if abs(value) < 0.005:
        return "<td></td>"
    colour = "up" if value > 0 else "down"
    words = f"{unit}, {column}: {share(abs(value))}, {'more' if value > 0 else 'less'} excites"
    shown = f"{100 * abs(value):.0f}"
    return (
        f'<td title="{escape(words, quote=True)}" style="background:color-mix(in oklab,var(--cc-{colour}) '
        f'{min(100 * math.sqrt(abs(value)), 100):.0f}%,transparent)">{shown}</td>'
    )


def unit_columns(result: ColumnsResult, unit: str, titled: bool = True) -> str:
    """One unit: its ranked columns by both measures, curves, top rows and interactions; `titled` with its name and an anchor."""
    ranked = result.columns(unit)
    label = result.label(unit)
    row = result.row(unit)
    facts = [
        f"mean {number(row['mean'])} ± {number(row['std'])}",
        f"from {number(row['min'])} to {number(row['max'])}",
        f"above zero for {share(row['fires'])} of the rows",
    ]
    head = f'{_opened(unit, "", titled)}<p class="cols-facts">{"; ".join(facts)}{_told(label)}.</p>'
    if row["std"] == 0 or not any(column.gradients for column in ranked):
        return f"{head}<p>No column moves this unit: it is the same for every row.</p></section>"
    return (
        f'{head}<div class="cols-two">{_ranks(result, unit, ranked)}{_pairs(result, unit)}</div>'
        f"{_curves(result, unit, ranked)}{_rows(result, unit, ranked)}</section>"
    )


def _told(label: Label | None) -> str:
    if label is None or label.label is None:
        return ""
    return f"; tells {escape(label.label)} from the rest ({escape(label.measure)} {label.score:.2f})"


def _ranks(result: ColumnsResult, unit: str, ranked: Sequence[ColumnRank]) -> str:
    most = (
        max((c.gradients_interval[1] for c in ranked), default=1.0),
        max((c.permutation_interval[1] for c in ranked), default=1.0),
    )
    shown = [c for n, c in enumerate(ranked) if (n < _RANKED or c.disagrees) and (c.gradients or c.permutation)]
    body = "".join(
        f'<tr><th scope="row">{escape(c.column)}</th><td class="cols-way">{_way(c)}</td>'
        f"<td>{bar(c.gradients, *c.gradients_interval, most[0], 'ig', _said(c.column, c.gradients, c.gradients_interval))}</td>"
        f'<td class="n">{number(c.gradients)}</td>'
        f"<td>{bar(c.permutation, *c.permutation_interval, most[1], 'perm', _said(c.column, c.permutation, c.permutation_interval))}</td>"
        f'<td class="n">{share(c.permutation)}</td><td>{_apart(c)}</td></tr>'
        for c in shown
    )
    agreement = result.agreement(unit)
    rest = sum(1 for c in ranked if c.gradients or c.permutation) - len(shown)
    more = f" {rest} more columns move it less." if rest > 0 else ""
    agree = f"Kendall's τ of the two rankings: {number(agreement)}." if math.isfinite(agreement) else ""
    return (
        '<div><div class="cols-wide" tabindex="0" role="region" aria-label="Ranked columns"><table class="cols-ranks"><thead><tr>'
        '<th scope="col">column</th><th scope="col"><span class="vh">direction</span></th>'
        '<th scope="col" colspan="2">integrated gradients</th>'
        '<th scope="col" colspan="2">permutation</th><th scope="col"><span class="vh">disagreement</span></th></tr></thead>'
        f"<tbody>{body}</tbody></table></div><p class='cols-soft'>{agree}{more}</p></div>"
    )


def _said(column: str, value: float, interval: tuple[float, float]) -> str:
    return f"{column} {number(value)}, between {number(interval[0])} and {number(interval[1])}"


def _way(column: ColumnRank) -> str:
    if column.raised_by is not None:
        return f'<span title="the category that excites it most">{escape(column.raised_by)}</span>'
    if not math.isfinite(column.direction) or abs(column.direction) < 0.1:
        return ""
    told = "more" if column.direction > 0 else "less"
    words = f"{told} of it excites: rank correlation {number(column.direction)}"
    return f'<b class="cols-{"up" if column.direction > 0 else "down"}" title="{words}">{"↑" if column.direction > 0 else "↓"}</b>'


def _apart(column: ColumnRank) -> str:
    if not column.disagrees:
        return ""
    return (
        f'<b class="cols-apart" title="number {column.gradients_rank} by integrated gradients, {column.permutation_rank} by permutation">'
        f"≠ {column.gradients_rank} / {column.permutation_rank}</b>"
    )


def _pairs(result: ColumnsResult, unit: str) -> str:
    joint, pairs = result.joint(unit), result.interactions(unit)
    if joint is None:
        return ""
    first, second = (result.table[result.column(name)] for name in (joint.first, joint.second))
    rows = "".join(
        f'<tr><th scope="row">{escape(p.first)} × {escape(p.second)}</th><td class="n">{_h2(p)}</td>'
        f'<td class="n">{share(p.share)}</td></tr>'
        for p in pairs[:3]
    )
    low, high = number(float(joint.values.min())), number(float(joint.values.max()))
    return (
        f'<figure class="cols-joint"><figcaption>Together: {escape(joint.first)} and {escape(joint.second)}, '
        f'from <i class="cols-low">{low}</i> to <i class="cols-high">{high}</i></figcaption>{joint_svg(joint, first, second)}'
        '<table><thead><tr><th scope="col">pair</th><th scope="col" class="n">H²</th><th scope="col" class="n">of the variance</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></figure>"
    )


def _h2(pair: Interaction) -> str:
    return number(pair.h2) if pair.share > 1e-6 else "0"


def _curves(result: ColumnsResult, unit: str, ranked: Sequence[ColumnRank]) -> str:
    shown = [c for c in ranked if c.gradients or c.permutation][:_CURVES]
    curves = [result.curve(unit, c.column) for c in shown]
    span = span_of(curves)
    cells = "".join(
        f"<li><h4>{escape(c.column)}{f' <i>{escape(column.unit)}</i>' if column.unit else ''}</h4>{curve_svg(curve, column, span)}</li>"
        for c, curve in zip(shown, curves, strict=True)
        for column in [result.table[result.column(c.column)]]
    )
    count = len(curves[0].individual) if curves else 0
    return (
        f"<h3>Its answer over their values</h3><p class='cols-soft'>Dark: mean over the rows; faint: {count} single rows; below: how the "
        f'values are spread in the data.</p><ul class="cols-curves">{cells}</ul>'
    )


def _rows(result: ColumnsResult, unit: str, ranked: Sequence[ColumnRank]) -> str:
    names = [c.column for c in ranked if c.gradients or c.permutation][:_LISTED]
    places = [result.column(name) for name in names]
    head = "".join(f'<th scope="col" class="n">{escape(name)}</th>' for name in names)
    classes = '<th scope="col">class</th>' if result.classes else ""

    def line(row: Row) -> str:
        values = "".join(f'<td class="n">{escape(_value(result, c, row))}</td>' for c in places)
        label = f"<td>{escape(row.label or '–')}</td>" if result.classes else ""
        return f'<tr><th scope="row">{escape(row.name)}</th><td class="n">{number(row.activation)}</td>{label}{values}</tr>'

    top, bottom = result.top(unit)[:_LISTED], result.bottom(unit)[:_LEAST]
    gap = f'<tr class="cols-gap"><td colspan="{2 + len(names) + bool(result.classes)}">and least</td></tr>'
    return (
        '<h3>Rows that excite it most</h3><div class="cols-wide" tabindex="0" role="region" aria-label="Top rows"><table><thead><tr>'
        f'<th scope="col">row</th><th scope="col" class="n">activation</th>{classes}{head}</tr></thead>'
        f"<tbody>{''.join(map(line, top))}{gap}{''.join(map(line, bottom))}</tbody></table></div>"
    )


def _value(result: ColumnsResult, c: int, row: Row) -> str:
    text = result.table[c].text(float(row.values[c]))
    return text if result.table[c].values else text.replace("-", MINUS)


def rows_page(result: RowsResult) -> str:
    """Rows of all units as one page."""
    way = "least" if result.minimize else "most"
    notes = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
    body = f'<ul class="cols-notes">{notes}</ul>' if notes else ""
    body += "".join(unit_row(result, unit) for unit in result.units[:_PAGES])
    rest = len(result.units) - _PAGES
    return page(
        f"Rows that drive units of {_model(result.provenance.model)} {way}",
        body + (f"<p>… and {rest:,} more units.</p>" if rest > 0 else ""),
    )


def unit_row(result: RowsResult, unit: str, titled: bool = True) -> str:
    """One unit's row beside the nearest and the best real one, a line a column, the most unusual values first; `titled` as above."""
    ideal, u = result.ideal(unit), result.index(unit)
    label = f" <i>{escape(result.labels[u] or '')}</i>" if result.labels[u] else ""
    way = "least" if result.minimize else "most"
    head = _opened(unit, label, titled)
    if result.flat[u]:
        return f"{head}<p>No row within the range of the data changes this unit: it stays at {number(ideal.activation)}.</p></section>"
    said = (
        f"This row {'lowers' if result.minimize else 'drives'} it to <b>{number(ideal.activation)}</b>; the real row that drives it {way}, "
        f"{escape(ideal.best.name)}{_class(ideal.best)}, to {number(ideal.best.activation)}; the real row most like it, "
        f"{escape(ideal.nearest.name)}{_class(ideal.nearest)}, to {number(ideal.nearest.activation)}. It lies "
        f"farther from the middle of the data than {share(ideal.percentile)} of the real rows."
    )
    order = np.argsort(-_unusual(result, ideal), kind="stable")
    body = "".join(_line(result, ideal, int(c)) for c in order)
    return (
        f"{head}<p>{said}</p><p class='cols-soft'>{mark_svg('ideal')} this row {mark_svg('nearest')} the real row most like it "
        f"{mark_svg('best')} the real row that drives it {way}</p>"
        '<div class="cols-wide" tabindex="0" role="region" aria-label="Values"><table class="cols-ideal"><thead><tr>'
        '<th scope="col">column</th><th scope="col">in the range of the data</th>'
        '<th scope="col" class="n">this row</th><th scope="col" class="n">most like it</th>'
        f'<th scope="col" class="n">{way} of the real</th></tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def _class(row: Row) -> str:
    return f" ({escape(row.label)})" if row.label else ""


def _line(result: RowsResult, ideal: Ideal, c: int) -> str:
    column = result.table[c]
    values = [float(one[c]) for one in (ideal.values, ideal.nearest.values, ideal.best.values)]
    chart = range_svg(column, list(zip(("best", "nearest", "ideal"), reversed(values), strict=True)))
    cells = "".join(f'<td class="n">{escape(column.text(v))}</td>' for v in values)
    return f'<tr><th scope="row">{escape(column.name)}</th><td>{chart}</td>{cells}</tr>'


def _unusual(result: RowsResult, ideal: Ideal) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """(C,): how far each value lies from the data's mean, in standard deviations read off the histogram; rare categories count too."""
    found = np.zeros(len(result.table))
    for n, column in enumerate(result.table):
        counts = np.array(column.counts, np.float64)
        weights = counts / max(counts.sum(), 1)
        if column.values:
            found[n] = 1 - weights[int(ideal.values[n])]
            continue
        edges = np.array(column.edges)
        middles = (edges[1:] + edges[:-1]) / 2
        mean = float((weights * middles).sum())
        spread = math.sqrt(float((weights * (middles - mean) ** 2).sum()))
        found[n] = abs(float(ideal.values[n]) - mean) / spread if spread else 0.0
    return found


def _opened(unit: str, label: str, titled: bool) -> str:
    return (
        f'<section class="cols-unit" id="{_anchor(unit)}"><h2>{escape(unit)}{label}</h2>'
        if titled
        else '<section class="cols-unit">'
    )


def _anchor(unit: str) -> str:
    return "u-" + "".join(c if c.isalnum() or c in "-_." else "-" for c in unit)


def page(title: str, body: str) -> str:
    """A whole HTML page around fragments: no script, no outside request."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{PAGE}{STYLE}</style></head><body>'
        f'<a class="skip" href="#main">Skip to the findings</a><header><h1>{escape(title)}</h1></header><main id="main">{body}</main>'
        "</body></html>"
    )


PAGE = """:root{color-scheme:light dark;--paper:light-dark(#faf7ef,#12100c);--card:light-dark(#fffdf8,#1b1813);
--ink:light-dark(#241f18,#efe8da);--soft:light-dark(#645a4b,#b3a791);--line:light-dark(#e3dac8,#353025);
--amber:light-dark(#8a4f00,#ffbe55);--bar:light-dark(#d08a1d,#d8952b);--serif:ui-serif,Georgia,serif}
*{box-sizing:border-box}html{background:var(--paper);color:var(--ink);font:100%/1.5 ui-sans-serif,system-ui,"Segoe UI",
Roboto,sans-serif;font-variant-numeric:tabular-nums}body{margin:0 auto;max-width:76rem;padding:1rem clamp(1rem,4vw,2.5rem) 3rem}
h1,h2,h3,h4{font-family:var(--serif);line-height:1.15;margin:0;overflow-wrap:anywhere}h1{font-size:2.2rem;margin-bottom:.6rem}
p{margin:.3rem 0}a{color:var(--amber)}ul{list-style:none;margin:0;padding:0}figure{margin:0}.n{text-align:right;white-space:nowrap}
.vh{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}.skip{position:absolute;left:-99rem}
.skip:focus{left:.5rem}a:focus-visible,[tabindex]:focus-visible{outline:3px solid var(--amber);outline-offset:2px}"""
STYLE = (
    """.cols-unit,.cols-overview,.cols-joint,.cols-how{--cc-second:light-dark(#1f5f99,#8cc4ff);--cc-up:light-dark(#e08a00,#d8870f);
--cc-down:light-dark(#2f7dc0,#3f86c4);--cc-data:light-dark(#d9cfba,#4a4334);--cc-low:light-dark(#fdf6e6,#1f1b14);
--cc-high:light-dark(#a85c00,#ffb94d)}.cols-unit,.cols-overview,.cols-how{margin-top:2.6rem}.cols-unit h2,.cols-overview h2,.cols-how h2{
font-size:1.5rem}.cols-unit h2 i{font-weight:400;color:var(--amber)}.cols-unit h3{font-size:1.1rem;margin:1.4rem 0 .2rem}.cols-soft,
.cols-facts{color:var(--soft);font-style:normal}.cols-soft{font-size:.88rem}.cols-overview table,.cols-unit table{border-collapse:collapse}
.cols-unit th,.cols-unit td,.cols-overview th,.cols-overview td{text-align:left;font-weight:400;padding:.22rem .55rem .22rem 0;
border-bottom:1px solid var(--line)}.cols-unit thead th{color:var(--soft);vertical-align:bottom}.cols-unit td.n,.cols-unit th.n{
text-align:right}.cols-wide{position:relative;
overflow-x:auto}.cols-two{display:grid;gap:1rem 2.5rem;margin-top:.8rem}.cols-two>*{min-width:0}
@media(min-width:66rem){.cols-two{grid-template-columns:minmax(0,1fr) 22rem}}.cols-joint table{width:100%;font-size:.88rem}.cols-joint th{
overflow-wrap:anywhere}.cols-joint figcaption{margin-bottom:.4rem}.cols-joint i{font-style:normal;padding:0 .35em;border-radius:3px}
.cols-low{background:var(--cc-low)}.cols-high{background:var(--cc-high);color:light-dark(#fff,#12100c)}.cols-up{
color:light-dark(#8a4f00,#ffbe55)}.cols-down{color:var(--cc-second)}.cols-apart{color:light-dark(#a12c1c,#ff9d89);white-space:nowrap}.cols-curves{
display:grid;grid-template-columns:repeat(auto-fill,minmax(15rem,1fr));gap:.8rem 1rem;margin-top:.6rem}.cols-curves li{
background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.6rem .7rem}.cols-curves h4{font-size:.95rem;font-weight:600}
.cols-curves h4 i{color:var(--soft);font-weight:400}.cols-unit .cols-gap td{color:var(--soft);padding-top:.6rem}.cols-overview .cols-heat{
font-size:.8rem}.cols-heat thead th{height:9.5rem;vertical-align:bottom;padding:0;border:0}.cols-heat thead th:first-child{
padding-bottom:.3rem}.cols-heat thead span{display:block;width:2rem;writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap;
padding-top:.3rem}.cols-overview .cols-heat td{width:2rem;min-width:2rem;text-align:center;padding:.2rem 0;border:1px solid var(--paper)}
.cols-overview .cols-heat tbody th{white-space:nowrap;padding-right:.8rem;border:0}.cols-notes{color:var(--soft);margin:.5rem 0}"""
    + CHARTS
)

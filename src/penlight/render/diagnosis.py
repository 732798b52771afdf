"""A diagnosis as text for a terminal, and as one HTML page that needs nothing else and is read in a minute."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from penlight.render.table import columns
from penlight.render.words import THIN, number, share
from penlight.results.diagnose import MEAN, STAND_IN, VERDICTS, DiagnoseResult, Removal

_SHOWN = 40  # flagged units in text
_LISTED = 400  # flagged units on the page
_WAYS = {"zero": "set to zero", MEAN: "set to their mean", STAND_IN: "made of the others"}
_MEANINGS = {
    "dead": "never fires on the data",
    "nearly dead": "fires on hardly an input",
    "always on": "positive everywhere: its rectifier does nothing",
    "saturated": "mostly at its rectifier's upper limit",
    "static": "nothing makes it happy: no input changes it, or its pictures are noise that excites it no more than inputs do",
    "duplicate": "says what other units say already",
    "unstable": "its pictures differ from start to start",
}
_AGAINST = {
    "labels": "against the labels",
    "next tokens": "against the tokens that come next",
    "own answers": "against the network's own answers on the whole",
    "own output": "as relative change of the output",
}


def headline(result: DiagnoseResult) -> str:
    """One sentence: how many units have a verdict, and how many can go at what price."""
    total = sum(layer.units for layer in result.layers.values())
    flagged = len(result.verdicts)
    where = f"units in {len(result.layers)} layers" if len(result.layers) > 1 else "units"
    said = (
        f"{flagged} of {total} {where} {'has' if flagged == 1 else 'have'} a verdict"
        if flagged
        else f"none of {total} {where} has a verdict"
    )
    whole = [one for one in result.removals if one.why == "can go" and dict(one.units) == dict(result.removable)]
    if not whole:
        return f"{said}; none can go within the stated loss."
    return f"{said}. {whole[-1].text()}."


def text(result: DiagnoseResult) -> str:
    """The page's content for a terminal."""
    lines = [headline(result), "", columns(_rows(result), _heads(result)), ""]
    if result.verdicts:
        rows = _units(result)[:_SHOWN]
        lines += [columns(rows, ["unit", "verdict", "number", "detail"])]
        lines += [f"… and {len(result.verdicts) - _SHOWN} more units"] if len(result.verdicts) > _SHOWN else []
        lines += [""]
    lines += [f"Taken away, on {_tested(result)}:"]
    lines += [f"  {_why(one)}: {one.text()}" for one in result.removals]
    if result.pruned is not None:
        lines += ["", _pruned(result)]
        lines += [f"  not cut: {reason}" for reason in result.pruned.refused.values()]
    lines += ["", *(f"note: {note}" for note in result.notes)] if result.notes else []
    lines += [f"skipped {name}: {reason}" for name, reason in result.skipped[:5]]
    return "\n".join(lines).rstrip()


def _heads(result: DiagnoseResult) -> dict[str, str]:
    found = {name: name for name in VERDICTS if any(name in told for told in result.verdicts.values())}
    return {
        "layer": "layer",
        "units": "units",
        **found,
        "participation": "directions used",
        "removable": "can go",
        "needed": "needed",
    }


def _rows(result: DiagnoseResult) -> list[dict[str, Any]]:
    return [row | {"participation": round(row["participation"], 1)} for row in result.rows()]


def _units(result: DiagnoseResult) -> list[dict[str, Any]]:
    return [
        {"unit": unit, "verdict": name, "number": value, "detail": result.details.get(unit, {}).get(name)}
        for unit, told in result.verdicts.items() for name, value in told.items()
    ]  # fmt: skip


def _tested(result: DiagnoseResult) -> str:
    count = result.removals[0].inputs if result.removals else 0
    what = "stretches of text" if result.truth == "next tokens" else "inputs"
    return f"{count:,} {what}, {_AGAINST[result.truth]}"


def _why(one: Removal) -> str:
    return f"{one.why}, {_WAYS[one.how]}"


def _pruned(result: DiagnoseResult) -> str:
    cut = result.pruned
    assert cut is not None
    told = f"accuracy {100 * cut.accuracy_before:.1f} → {100 * cut.accuracy:.1f} %" if math.isfinite(cut.accuracy) else (
        f"loss {number(cut.loss_before)} → {number(cut.loss)}"
    )  # fmt: skip
    units = sum(map(len, cut.layers.values()))
    return (
        f"pruned to {cut.file}: {units} units less; parameters {number(cut.parameters_before)} → {number(cut.parameters)}, "
        f"multiply-adds {number(cut.macs_before / 1e6)} → {number(cut.macs / 1e6)} million, {told}"
    )


def page(result: DiagnoseResult) -> str:
    """The diagnosis as one HTML page: no script, no outside request, light and dark, filters that work from the keyboard."""
    title = f"Diagnosis of {result.provenance.model or 'the network'}"
    data = f" on {escape(result.provenance.data)}" if result.provenance.data else ""
    accuracy = share(result.accuracy) if math.isfinite(result.accuracy) else number(result.loss)
    gone = sum(map(len, result.removable.values()))
    total = sum(layer.units for layer in result.layers.values())
    tiles = [
        (f"{total:,}", "units looked at"),
        (f"{len(result.verdicts):,}", "have a verdict"),
        (f"{gone:,}", "can go at once"),
        (accuracy, "accuracy of the whole network" if math.isfinite(result.accuracy) else "loss of the whole network"),
    ]
    body = [
        f"<header><h1>{escape(title)}</h1><p>{result.inputs:,} inputs{data}, {_AGAINST[result.truth]}.</p></header>",
        f'<main id="main"><p class="lead">{escape(headline(result))}</p>',
        '<ul class="tiles">' + "".join(f"<li><b>{value}</b> {words}</li>" for value, words in tiles) + "</ul>",
        _filters(result) + _layers(result),
        _proofs(result),
        _verdicts(result),
        _remarks(result),
        "</main>",
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}{_filter_style()}</style></head>'
        f'<body><a class="skip" href="#main">Skip to the findings</a>{"".join(body)}</body></html>'
    )


def _filters(result: DiagnoseResult) -> str:
    counts = {name: sum(name in told for told in result.verdicts.values()) for name in VERDICTS}
    choices = [("all", "all units", sum(layer.units for layer in result.layers.values()))]
    choices += [(_slug(name), name, count) for name, count in counts.items() if count]
    choices += [("go", "can go", sum(len(layer.removable) for layer in result.layers.values()))]
    checked = {"all": " checked"}
    inputs = "".join(
        f'<label><input type="radio" name="show" id="show-{slug}"{checked.get(slug, "")}>'
        f"<span>{words} <i>{count:,}</i></span></label>"
        for slug, words, count in choices
    )
    return f'<section><h2>Units</h2><fieldset class="filters"><legend>Show</legend>{inputs}</fieldset>'


def _filter_style() -> str:
    """Without script: the checked filter dims all cells that have not its class, and hides their rows in the table."""
    slugs = [*map(_slug, VERDICTS), "go"]
    dims = "".join(f"body:has(#show-{s}:checked) .cell:not(.{s}){{opacity:.15}}" for s in slugs)
    return dims + "".join(f"body:has(#show-{s}:checked) tr.unit:not(.{s}){{display:none}}" for s in slugs)


def _slug(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _layers(result: DiagnoseResult) -> str:
    cards = []
    for row in result.rows():
        path, layer = row["layer"], result.layers[row["layer"]]
        gone = set(layer.removable)
        cells = []
        for u in range(layer.units):
            told = list(result.verdicts.get(f"{path}:{u}", {}))
            classes = ["cell", *map(_slug, told), *(["go"] if u in gone else [])]
            named = ", ".join([*told, *(["can go"] if u in gone else [])]) or "no verdict"
            words = f"{path}:{u}: {named}; loss {_change(layer.effect[u, 0])} without it"
            label = escape(words, quote=True)
            link = f'href="#u-{escape(f"{path}-{u}", quote=True)}" ' if told else ""
            name = "a" if told else "span"
            cells.append(
                f'<li><{name} {link}class="{" ".join(classes)}" title="{label}"><span class="vh">{label}</span></{name}></li>'
            )
        found = ", ".join(f"{row[name]} {name}" for name in VERDICTS if row[name]) or "no verdicts"
        kind = f"{row['kind']}{' and ' + row['rectifier'] if row['rectifier'] else ''}"
        cards.append(
            f'<article class="layer"><h3>{escape(path)} <small>{escape(kind)}</small></h3>'
            f"<p>{layer.units:,} units: <b>{layer.needed:,} needed</b>, {len(gone):,} can go; {escape(found)}. "
            f"Their activations use {layer.participation:.1f} directions.</p>"
            f'<div class="meter" role="img" aria-label="{layer.needed} of {layer.units} units needed">'
            f'<i style="width:{100 * layer.needed / layer.units:.1f}%"></i></div><ul class="cells">{"".join(cells)}</ul></article>'
        )
    key = (
        '<p class="key"><span class="cell"></span> no verdict <span class="cell dead"></span> dead, nearly dead, static '
        '<span class="cell duplicate"></span> duplicate <span class="cell always-on"></span> always on, saturated, unstable '
        '<span class="cell go"></span> can go, if its layer alone is thinned</p>'
    )
    return f"{key}{''.join(cards)}</section>"


def _change(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(float(value))}"


def _proofs(result: DiagnoseResult) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(_why(one))}</th><td>{escape(one.text())}</td>'
        f'<td class="n">{_change(one.loss - one.loss_before)}</td></tr>'
        for one in result.removals
    )
    cut = f"<p>{escape(_pruned(result))}</p>" if result.pruned is not None else ""
    if not rows:
        return f"<section><h2>Proof by taking away</h2><p>Nothing was flagged and nothing can go.</p>{cut}</section>"
    return (
        f"<section><h2>Proof by taking away</h2><p>Each set was removed and the network measured again on {escape(_tested(result))}; "
        "intervals by bootstrap over the inputs, of the change in per cent points.</p>"
        f'<div class="wide" tabindex="0" role="region" aria-label="Proofs"><table><thead><tr><th scope="col">set</th>'
        f'<th scope="col">what it costs</th><th scope="col" class="n">loss</th></tr></thead><tbody>{rows}</tbody></table></div>'
        f"{cut}</section>"
    )


def _verdicts(result: DiagnoseResult) -> str:
    rows = []
    for unit, told in list(result.verdicts.items())[:_LISTED]:
        path, _, index = unit.rpartition(":")
        gone = ["go"] if int(index) in result.layers[path].removable else []
        classes = " ".join(["unit", *map(_slug, told), *gone])
        words = "<br>".join(f"{escape(name)} {number(value)}" for name, value in told.items())
        more = "<br>".join(escape(result.details.get(unit, {}).get(name, "")) for name in told)
        effect = result.layers[path].effect[int(index)]
        rows.append(
            f'<tr class="{classes}" id="u-{escape(f"{path}-{index}", quote=True)}"><th scope="row">{escape(unit)}</th><td>{words}</td>'
            f'<td>{more}</td><td class="n">{_change(effect[0])}</td></tr>'
        )
    if not rows:
        return ""
    rest = len(result.verdicts) - _LISTED
    found = [name for name in VERDICTS if any(name in told for told in result.verdicts.values())]
    meanings = "".join(f"<dt>{name}</dt><dd>{_MEANINGS[name]}</dd>" for name in found)
    return (
        f'<section><h2>Units with a verdict</h2><dl class="meanings">{meanings}</dl>'
        '<div class="wide" tabindex="0" role="region" aria-label="Units with a verdict"><table><thead><tr><th scope="col">unit</th>'
        '<th scope="col">verdict</th><th scope="col">detail</th><th scope="col" class="n">loss without it</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{f'<p>… and {rest:,} more units.</p>' if rest > 0 else ''}</section>"
    )


def _remarks(result: DiagnoseResult) -> str:
    options = result.provenance.options
    notes = [*result.notes, *(f"skipped {name}: {reason}" for name, reason in result.skipped[:20])]
    tried = max((layer.tried for layer in result.layers.values()), default=0)
    told = "".join(f"<li>{escape(note)}</li>" for note in notes)
    alone = result.provenance.method == "cells"  # on text a unit that goes is silent, and no other takes its part
    handed = "" if alone else " A unit that is a multiple of another hands its part over to that one when it goes."
    set_to = "; ".join(f"{name} {value}" for name, value in options.items())
    return (
        f'<section><h2>How this was found</h2><ul class="notes"><li>Single units were silenced on {tried:,} inputs, which gives the '
        "order in which they go; the largest set within the stated loss was looked for by halving, and every set named here was "
        f"really removed.{handed}</li>"
        "<li>Sets that can go were chosen on the data they are measured on: try them on data that the search has not seen.</li>"
        f"{told}<li>Options: {escape(set_to)}; seed {result.provenance.seed}.</li></ul></section>"
    ).replace(THIN, "&#8239;")


_STYLE = """:root{color-scheme:light dark;--paper:light-dark(#faf7ef,#12100c);--card:light-dark(#fffdf8,#1b1813);
--ink:light-dark(#241f18,#efe8da);--soft:light-dark(#645a4b,#b3a791);--line:light-dark(#d9cfba,#3d372b);
--amber:light-dark(#8a4f00,#ffbe55);--cell:light-dark(#cfc6b4,#4b4437);--dead:light-dark(#a12c1c,#ff9d89);
--twin:light-dark(#1f5f99,#8cc4ff);--odd:light-dark(#6a3d9a,#d0aaff)}*{box-sizing:border-box}html{
background:var(--paper);color:var(--ink);font:100%/1.5 ui-sans-serif,system-ui,"Segoe UI",Roboto,sans-serif;
font-variant-numeric:tabular-nums}body{margin:0 auto;max-width:68rem;padding:1rem clamp(1rem,4vw,2.5rem) 3rem}h1,h2,h3{
font-family:ui-serif,Georgia,serif;line-height:1.15;margin:0 0 .5rem;overflow-wrap:anywhere}h1{font-size:2.2rem}h2{
font-size:1.4rem}section{margin-top:2.2rem}p{margin:.3rem 0}.lead{font-size:1.2rem;margin:1rem 0}small,.key,dd{
color:var(--soft)}small{font-size:.8em;font-weight:400}ul{list-style:none;margin:0;padding:0}.notes li{margin:.3rem 0;
overflow-wrap:anywhere}.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.7rem}.tiles li,
.layer{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem .9rem}.tiles b{
display:block;font-size:1.7rem;line-height:1.2}.layer{margin-top:.7rem}.meter{height:.6rem;border-radius:9px;
background:var(--paper);border:1px solid var(--line);overflow:hidden;margin:.5rem 0}.meter i{display:block;height:100%;
background:var(--amber)}.cells{display:flex;flex-wrap:wrap;gap:3px}.cells li{line-height:0}.cell{display:inline-block;
width:15px;height:15px;border-radius:3px;background:var(--cell);border:2px solid var(--cell)}.cell.go{
background:transparent;border-color:var(--amber)}.cell.always-on,.cell.saturated,.cell.unstable{background:var(--odd);
border-color:var(--odd)}.cell.duplicate{background:var(--twin);border-color:var(--twin)}.cell.dead,.cell.nearly-dead,
.cell.static{background:var(--dead);border-color:var(--dead)}.cells .cell.go{border-color:var(--amber)}.key .cell{
margin:0 .2rem 0 .8rem;vertical-align:-2px}.key .cell:first-child{margin-left:0}.filters{border:0;margin:0 0 .7rem;
padding:0;display:flex;flex-wrap:wrap;gap:.4rem}.filters legend{position:absolute;clip-path:inset(50%)}.filters label{
cursor:pointer}.filters input{position:absolute;opacity:0}.filters span{display:block;border:1px solid var(--line);
border-radius:99px;padding:.25rem .8rem;background:var(--card)}.filters i{font-style:normal;color:var(--soft)}
.filters input:checked+span{border-color:var(--amber);box-shadow:inset 0 0 0 1px var(--amber)}
.filters input:focus-visible+span,a:focus-visible,[tabindex]:focus-visible{outline:3px solid var(--amber);
outline-offset:2px}table{border-collapse:collapse;width:100%}th,td{text-align:left;vertical-align:top;
padding:.35rem .7rem .35rem 0;border-bottom:1px solid var(--line);font-weight:400;overflow-wrap:anywhere}thead th{
color:var(--soft)}.n{text-align:right;white-space:nowrap}.wide{overflow-x:auto}tr:target{background:var(--card);
outline:2px solid var(--amber)}.meanings{display:grid;grid-template-columns:max-content 1fr;gap:.1rem .8rem;
margin:0 0 .8rem}dd{margin:0}.vh{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}.skip{
position:absolute;left:-99rem}.skip:focus{left:.5rem}@media (prefers-reduced-motion:no-preference){.cell{
transition:opacity .15s}}@media print{.filters{display:none}}"""

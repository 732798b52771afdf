"""The page of cells over a text, in a real browser: the list, the colours, stretches, the keyboard, the address, no script at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penlight.render.tracks import tracks_fragment, tracks_page, tracks_told
from penlight.results import Provenance
from penlight.results.heat import colours
from penlight.results.tracks import Known, Text, TracksResult

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>document.title='broken'</script>"
LINE = "call(\"of\", 'the'); # wild & <b> 😀\n"
CELLS = 40


def planted() -> TracksResult:
    """Two layers of 40 cells: `a:3` is high where a line is quoted, `b:7` low in the third line alone, the rest noise."""
    rng = np.random.default_rng(1)
    words = HOSTILE + "\n" + LINE * 60
    count = len(words)
    starts = [m.start() for m in re.finditer('"of"', words)]
    quoted, third = np.zeros(count, np.float32), np.zeros(count, bool)
    for start in starts:
        quoted[start : start + 3] = 1
    third[starts[2] : starts[2] + 20] = True
    values = {
        path: (0.2 * rng.normal(0, 1, (count, CELLS)).cumsum(0) % 3 - 1).astype(np.float16) for path in ("a", "b")
    }
    values["a"][:, 3], values["b"][:, 7] = 2.5 * quoted, np.where(third, -4, 0.5)
    scores = {path: rng.uniform(0.3, 0.7, (CELLS, 2)).astype(np.float32) for path in values}
    scores["a"][3, 0], scores["b"][7, 0], scores["a"][9, 0] = 1.0, 0.1, np.nan
    known = (Known("quoted", "yes/no", "in </script> <quotes>", 60), Known("depth", "depth", "how deep", 90))
    spans = np.stack([np.arange(count), np.arange(count) + 1], 1).astype(np.int32)
    depth = (np.arange(count) % 9).astype(np.float32)
    shares = np.concatenate([[np.nan], rng.uniform(0.01, 1, count - 1)]).astype(np.float32)
    text = Text(HOSTILE, words, spans, values, np.stack([quoted, depth]), shares, count)
    return TracksResult(Provenance(model="net <x>"), (text,), dict.fromkeys(values, "Track"), known, scores)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tracks") / "page.html"
    place.write_text(
        tracks_page(planted(), links=[("one & two", "page.html"), ("three", "other.html")]), encoding="utf-8"
    )
    return place


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The page, ready; a mistake in its script or a request to anywhere fails the test."""
    opened = browser.new_page(viewport={"width": 1300, "height": 850})
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("request", lambda asked: None if asked.url.startswith("file:") else wrong.append(asked.url))
    show(opened, file)
    yield opened
    opened.close()
    assert not wrong


def show(page: Any, file: Path, state: str = "") -> None:
    page.goto("about:blank")
    page.goto(file.as_uri() + state)
    page.wait_for_selector(".tracks[data-ready=yes]")


def rows(page: Any) -> list[str]:
    """Cells of the list from the top, those that exist."""
    found = page.evaluate(
        "[...document.querySelectorAll('.tracks-row')].sort((a, b) => a.dataset.at - b.dataset.at).map(r => r.dataset.unit)"
    )
    return list(found)


def state(page: Any) -> str:
    return str(page.evaluate("decodeURIComponent(location.hash)"))


def wait_for_row(page: Any, unit: str) -> None:
    page.wait_for_function("u => document.querySelector('.tracks-row[data-at=\"0\"]')?.dataset.unit === u", arg=unit)


def painted(page: Any) -> list[str]:
    return list(page.evaluate("[...document.querySelectorAll('i.t')].map(i => getComputedStyle(i).backgroundColor)"))


def drag(page: Any, start: int, stop: int) -> None:
    """Select tokens `start` to `stop` with the mouse."""
    page.evaluate("n => document.querySelectorAll('i.t')[n].scrollIntoView({block: 'center'})", start)
    box = "n => { const b = document.querySelectorAll('i.t')[n].getBoundingClientRect(); return [b.left, b.right, b.top + b.height / 2] }"
    first, last = page.evaluate(box, start), page.evaluate(box, stop - 1)
    page.mouse.move(first[0] + 1, first[2])
    page.mouse.down()
    page.mouse.move(last[1] - 1, last[2], steps=4)
    page.mouse.up()


def test_it_opens_on_the_best_cell_of_the_strongest_property(page: Any) -> None:
    result = planted()
    assert page.inner_text(".tracks-name") == "a:3"
    assert page.input_value(".tracks-order") == "p:quoted"
    assert rows(page)[:2] == [one.unit for one in result.following("quoted", 2)] == ["a:3", "b:7"]
    told = page.locator(".tracks-row span").all_inner_texts()
    assert told[:2] == ["1.000 ↑", "0.900 ↓"]
    assert page.inner_text(".tracks-told").startswith("80 cells. AUROC with “quoted”: in </script> <quotes>.")
    assert page.title() == f"{HOSTILE} · net <x> · Penlight"


def test_the_text_is_all_there_and_coloured_by_the_cell(page: Any) -> None:
    result = planted()
    assert page.evaluate("penlightTracks[0].about.tokens.join('')") == result.texts[0].text
    shown = page.evaluate("[...document.querySelectorAll('.tracks-line')].map(l => l.textContent).join('\\n')")
    assert shown == result.texts[0].text.rstrip("\n")
    found = painted(page)
    values = result.values("a:3")
    red = "rgb({}, {}, {})".format(*colours(np.ones(1), True)[0])
    assert found == [red if value > 2 else "rgba(0, 0, 0, 0)" for value in values]
    assert page.locator(".tracks-legend span").all_inner_texts() == ["−2.5", "+2.5"]
    page.click('.tracks-row[data-unit="b:7"]')
    page.wait_for_function("document.querySelector('.tracks-name').textContent === 'b:7'")
    assert page.get_attribute('.tracks-row[data-unit="b:7"]', "aria-selected") == "true"
    assert painted(page) != found


def test_the_list_goes_by_property_spread_number_and_layer(page: Any) -> None:
    result = planted()
    page.select_option(".tracks-order", "p:depth")
    wait_for_row(page, result.following("depth", 1)[0].unit)
    assert rows(page)[:8] == [one.unit for one in result.following("depth", 8)]
    page.select_option(".tracks-order", "spread")
    wait_for_row(page, max((f"{p}:{u}" for p in "ab" for u in range(CELLS)), key=lambda u: result.statistics(u)["std"]))
    page.select_option(".tracks-order", "number")
    page.select_option(".tracks-layer", "b")
    wait_for_row(page, "b:0")
    assert rows(page)[:5] == [f"b:{n}" for n in range(5)]
    assert page.inner_text(".tracks-told").startswith("40 cells.")
    page.fill(".tracks-number", "17")
    wait_for_row(page, "b:17")
    assert rows(page) == ["b:17"]


def test_only_rows_that_are_seen_exist(page: Any) -> None:
    assert len(rows(page)) < 20
    page.evaluate("document.querySelector('.tracks-list').scrollTop = 1e6")
    page.wait_for_selector('.tracks-row[data-at="79"]')
    assert len(rows(page)) < 20
    assert page.locator('.tracks-row[data-at="0"]').count() == 0


def test_a_selected_stretch_names_the_cells_that_are_on_there(page: Any) -> None:
    result = planted()
    start = result.texts[0].text.index('"of"', result.texts[0].text.index('"of"') + len(LINE) + 5)
    drag(page, start, start + 20)
    wait_for_row(page, "b:7")
    assert state(page).endswith(f"&on={start}-{start + 20}")
    asked = result.on(start, start + 20)
    assert rows(page)[:6] == [one.unit for one in asked[:6]]
    assert page.locator(".tracks-row span").first.inner_text() == "1.00 ↓"
    assert page.inner_text(".tracks-stretch code") == result.texts[0].text[start : start + 20]
    assert page.locator("i.on").count() == 20
    page.click('.tracks-row[data-unit="b:7"]')
    page.keyboard.press("Escape")
    wait_for_row(page, "a:3")
    assert page.locator("i.on").count() == 0
    assert page.input_value(".tracks-order") == "p:quoted"


def test_a_selection_that_touches_a_character_does_not_hold_it(page: Any) -> None:
    page.evaluate(
        """() => {
            const spots = document.querySelectorAll('i.t'), range = document.createRange();
            range.setStart(spots[100].firstChild, 1);
            range.setEnd(spots[110].firstChild, 0);
            getSelection().addRange(range);
            document.dispatchEvent(new Event('mouseup'));
        }"""
    )
    page.wait_for_function("location.hash.includes('on=')")
    assert state(page).endswith("&on=101-110")


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (100, 101), (300, 420), (0, 1900), (1000, 1013)])
@pytest.mark.parametrize("edges", [False, True])
def test_the_page_finds_the_cells_that_python_finds(page: Any, start: int, stop: int, edges: bool) -> None:
    found = page.evaluate(
        "([start, stop, edges]) => penlightTracks[0].on(start, stop, ['a', 'b'], edges)", [start, stop, edges]
    )
    assert [(f["unit"], f["score"], f["way"], f["inside"], f["around"], f["elsewhere"]) for f in found] == [
        tuple(one) for one in planted().on(start, stop, top=99, edges=edges)
    ]


def test_pointing_at_a_character_reads_its_value(page: Any) -> None:
    result = planted()
    n = result.texts[0].text.index('"of"')
    page.hover(f"i.t[data-n='{n}']")
    said = page.inner_text(".tracks-said")
    assert f'" character {n}, line 2, column 6' in said
    assert "value 2.5" in said
    assert f"the network gave it {100 * float(result.texts[0].probability[n]):.0f}" in said
    assert said.endswith("quoted")


def test_arrows_walk_through_the_cells(page: Any) -> None:
    order = [one.unit for one in planted().following("quoted", 30)]
    page.keyboard.press("ArrowDown")
    page.wait_for_function("u => document.querySelector('.tracks-name').textContent === u", arg=order[1])
    page.focus(".tracks-list")
    for _ in range(18):
        page.keyboard.press("ArrowDown")
    page.wait_for_function("u => document.querySelector('.tracks-name').textContent === u", arg=order[19])
    row = page.locator('.tracks-row[data-at="19"]').bounding_box()
    box = page.locator(".tracks-list").bounding_box()
    assert box["y"] <= row["y"] <= box["y"] + box["height"] - row["height"] + 1
    page.keyboard.press("Home")
    page.wait_for_function("u => document.querySelector('.tracks-name').textContent === u", arg=order[0])


def test_the_address_keeps_the_state(page: Any, file: Path) -> None:
    assert state(page) == "#a:3"
    page.select_option(".tracks-order", "p:depth")
    page.select_option(".tracks-layer", "b")
    page.select_option(".tracks-mark", "surprise")
    page.wait_for_function("location.hash.includes('mark')")
    kept = page.evaluate("location.hash")
    show(page, file, kept)
    assert page.evaluate("location.hash") == kept
    assert [page.input_value(f".tracks-{name}") for name in ("order", "layer", "mark")] == ["p:depth", "b", "surprise"]
    show(page, file, "#b:12&on=50-60")
    assert page.inner_text(".tracks-name") == "b:12"
    assert page.locator("i.on").count() == 10
    page.evaluate("location.hash = 'a:5'")
    page.wait_for_function("document.querySelector('.tracks-name').textContent === 'a:5'")
    show(page, file, "#c:99&on=9-3&by=nothing&layer=zzz&mark=%22")
    assert page.inner_text(".tracks-name") == "a:3"


def test_a_property_is_underlined(page: Any) -> None:
    marks = "[...document.querySelectorAll('i.t')].map(i => i.style.borderBottomColor !== '')"
    held = planted().track("quoted") == 1
    assert page.evaluate(marks) == held.tolist()
    page.click(".tracks-best button[aria-pressed=true]")
    assert page.input_value(".tracks-mark") == ""
    assert not any(page.evaluate(marks))


def test_without_scripts_the_text_stands_coloured(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert not page.is_visible(".tracks-app")
    assert page.locator(".tracks-still details").count() == 2
    first = page.locator(".tracks-still pre").first
    assert first.inner_text().rstrip() == planted().texts[0].text.rstrip()
    assert page.locator(".tracks-still summary").first.inner_text() == "quoted: a:3, AUROC 1.000"
    assert page.locator(".tracks-still pre").first.locator("i.c64").count() == 60
    context.close()


def test_a_page_holds_what_fits_and_says_so() -> None:
    rng = np.random.default_rng(0)
    wide = {path: rng.normal(0, 1, (2600, 2100)).astype(np.float16) for path in "abc"}
    spans = np.stack([np.arange(2600), np.arange(2600) + 1], 1).astype(np.int32)
    text = Text("t", "x" * 2600, spans, wide, np.zeros((0, 2600), np.float32), np.zeros(0, np.float32), 2600)
    scores = {path: np.zeros((2100, 0), np.float32) for path in wide}
    written = tracks_fragment(TracksResult(Provenance(), (text,), dict.fromkeys(wide, "Linear"), (), scores))
    about = json.loads(re.search(r'class="tracks-about">(.*?)</script>', written, re.S)[1])  # type: ignore[index]
    assert len(about["tokens"]) == 1000
    assert [one["path"] for one in about["layers"]] == ["a", "b"]
    assert "The page shows the first 1,000 of 2,600 tokens" in written
    assert "1 layers do not fit on the page; name those you want with --layers: c" in written


def test_what_stands_between_words_is_kept() -> None:
    words, values = "one  two,\n\tthree", np.array([[-1], [1], [1]], np.float16)
    spans = np.array([[0, 3], [5, 8], [11, 16]], np.int32)
    holds = np.array([[0, 1, 1]], np.float32)
    text = Text("t", words, spans, {"a": values}, holds, np.zeros(0, np.float32), 3)
    scores = {"a": np.ones((1, 1), np.float32)}
    known = (Known("p", "yes/no", "…", 9),)
    written = tracks_fragment(TracksResult(Provenance(), (text,), {"a": "Linear"}, known, scores))
    still = re.search(r"<pre>(.*?)</pre>", written, re.S)[1]  # type: ignore[index]
    assert still == '<i class="c0">one</i>  <i class="c64">two,\n\tthree</i>'
    about = json.loads(re.search(r'class="tracks-about">(.*?)</script>', written, re.S)[1])  # type: ignore[index]
    assert (about["tokens"], about["gaps"], about["unit"]) == (
        ["one", "two", "three"],
        {"1": "  ", "2": ",\n\t"},
        "token",
    )


def test_the_terminal_names_the_best() -> None:
    told = tracks_told(planted(), 2)
    assert re.search(r"quoted +60 +AUROC +a:3 1\.000  b:7 0\.900, going down", told)
    assert "80 units of a, b" in told

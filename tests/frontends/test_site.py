"""The static site: every link, every label, every refusal; and the pages in a real browser."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from painted import DARK, DEAD, HOSTILE, LEAST, ODD_LAYER, PATHS, PLAIN, SEEDS, description, make_atlas, survey

from penlight.errors import BadInput, BadOutput
from penlight.store import Atlas
from penlight.web.addresses import LONGEST, safe_names
from penlight.web.book import Layer
from penlight.web.pages import arc, edges, figures
from penlight.web.site import MARKER, build_site

VOID = {"meta", "link", "img", "input", "br", "col", "hr"}


class Page(HTMLParser):
    """Links, ids, pictures and text of one page; raises where tags do not close."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.heads: list[dict[str, str | None]] = []
        self.labels: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(file.read_text("utf-8"))
        self.close()
        assert not self._open, f"{file}: {self._open} left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [value for name in ("href", "src", "srcset", "action") if (value := found.get(name))]
        self.ids += [found["id"] or ""] if "id" in found else []
        self.labels += [found["aria-label"] or ""] if "aria-label" in found else []
        assert not [name for name in found if name.startswith("on")], f"{tag} has a handler"
        if tag == "img":
            self.images.append(found)
        if tag == "link":
            self.heads.append(found)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def html_files(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def check_links(site: Path, scripted: tuple[str, ...] = ()) -> set[Path]:
    """Every link of every page leads to a file (and an id) of the site; returns the files that are linked.

    What follows # in the address of a `scripted` page is for its script.
    """
    pages = {file.resolve(): Page(file) for file in html_files(site)}
    reached = set()
    for file, page in pages.items():
        assert len(set(page.ids)) == len(page.ids), f"{file}: an id twice"
        for link in page.links:
            parts = urlsplit(link)
            assert (parts.scheme, parts.netloc, parts.path[:1] == "/") == ("", "", False), f"{file}: {link}"
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            assert target.is_file(), f"{file}: {link} leads nowhere"
            assert target.is_relative_to(site.resolve()), f"{file}: {link} leads out"
            reached.add(target)
            if parts.fragment and target.name not in scripted:
                assert parts.fragment in pages[target].ids, f"{file}: {link} has no such place"
    return reached


def test_every_link_leads_somewhere_and_every_page_is_reached(site: Path) -> None:
    reached = check_links(site)
    assert {file.resolve() for file in html_files(site)} <= reached
    assert len(html_files(site)) == 2 + len(PATHS) + sum(PATHS.values())  # none for the alias


def test_nothing_outside_is_named(site: Path) -> None:
    for file in [*html_files(site), *(site / "static").iterdir()]:
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""https?://|["'(]//|@import|url\(""", text), file


def test_every_picture_has_words_and_a_size(site: Path) -> None:
    for file in html_files(site):
        for image in Page(file).images:
            assert (image["alt"] or "").strip()
            assert int(image["width"] or 0) > 0
            assert int(image["height"] or 0) > 0
            assert image["loading"] == "lazy"
            assert image["decoding"] == "async"
    alts = [image["alt"] or "" for image in Page(site / "units" / "conv1" / "7.html").images]
    assert any(re.fullmatch(r"preferred input of conv1:7, start 0, activation [\d.]+", alt) for alt in alts)


def test_untrusted_words_stay_words(site: Path) -> None:
    for file in html_files(site):
        page, text = Page(file), file.read_text("utf-8")
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "<b>/" not in text
        assert page.tags.count("script") == 1 + file.match("layers/*.html")
    classes = Page(site / "classes.html")
    assert all(label in classes.text for label in HOSTILE)
    assert ODD_LAYER in Page(site / "index.html").text
    columns = re.search(r'id="columns">(.*?)</script>', (site / "layers" / "conv1.html").read_text("utf-8"), re.S)
    assert columns
    assert json.loads(columns[1])["path"] == "conv1"


def test_unit_pages_are_light_and_say_what_matters(site: Path) -> None:
    for file in site.glob("units/*/*.html"):
        assert file.stat().st_size < 40_000, file
    page = Page(site / "units" / "fc" / "2.html")
    assert sum("start" in (image["alt"] or "") for image in page.images) == 2 * SEEDS
    for words in ("HappyMap", "SadMap", "In the data", "selectivity", "How this was made", "step_size=0.05", "c0ffee"):
        assert words in page.text
    assert any(label.startswith("Responses of fc:2: 2,500 inputs") and "HappyMap at" in label for label in page.labels)


def test_steps_lead_through_all_units(site: Path) -> None:
    file, seen = site / "units" / "conv1" / "0.html", 0
    while True:
        seen += 1
        follow = [link["href"] for link in Page(file).heads if link.get("rel") == "next"]
        if not follow:
            break
        before, file = file, (file.parent / str(follow[0])).resolve()
        back = [link["href"] for link in Page(file).heads if link.get("rel") == "prev"]
        assert (file.parent / str(back[0])).resolve() == before.resolve()
    assert seen == sum(PATHS.values())


def test_a_picture_without_gradient_is_not_shown(site: Path) -> None:
    path, index = DARK
    page = Page(site / "units" / path / f"{index}.html")
    assert page.text.count("no gradient reached the input") == 2 * SEEDS
    assert not any("preferred input" in (image["alt"] or "") for image in page.images)
    one = Page(site / "units" / "conv1" / "3.html")  # a single start, in both directions
    assert one.text.count("no gradient reached the input") == 2
    assert "1 without gradient" in Page(site / "index.html").text


def test_units_that_never_fire_are_named(site: Path) -> None:
    path, index = DEAD
    assert "Never fires on this data" in Page(site / "units" / path / f"{index}.html").text
    assert Page(site / "layers" / f"{path}.html").text.count("never fires") == 2  # the layer, the card
    assert "1 never fires" in Page(site / "index.html").text


def test_an_alias_stands_on_the_map_and_has_no_page(site: Path) -> None:
    assert "gives the same values as features.12" in " ".join(Page(site / "index.html").text.split())
    assert not (site / "layers" / "drop.html").exists()


def test_crops_show_the_box(site: Path) -> None:
    text = (site / "units" / "conv1" / "7.html").read_text("utf-8")
    top, left, bottom, right = survey(120, PLAIN, [n % 10 for n in range(120)]).examples("conv1:7")[0].box or ()
    assert (bottom - top, right - left) == (5, 5)
    part = r'class="crop" style="aspect-ratio:5/5"><img[^>]* style="width:([^%]+)%;left:([^%]+)%;top:([^%]+)%"'
    crop = re.search(part, text)
    assert crop
    assert [float(value) for value in crop.groups()] == pytest.approx([560, -20 * left, -20 * top])
    box = re.search(r'class="box" style="left:([^%]+)%;top:([^%]+)%;width:([^%]+)%', text)
    expected = [left / 0.28, top / 0.28, 5 / 0.28]
    assert box
    assert [float(value) for value in box.groups()] == pytest.approx(expected, abs=0.01)


def test_a_unit_is_called_by_its_labels_with_their_scores(site: Path) -> None:
    text = " ".join(Page(site / "units" / "conv1" / "12.html").text.split())
    assert "Called C, AUROC 0.98; next: E 0.81, " in text
    assert "; not D 0.03. AUROC over 2,500 inputs, exact." in text
    assert "No label by IoU; best: <b>stripe 0.00. IoU over 99 pictures." in text
    assert "Called <b>stripe, IoU 0.31; next: dot 0.02." in " ".join(
        Page(site / "units" / "conv1" / "0.html").text.split()
    )
    assert "No label by AUROC" in Page(site / "units" / "conv1" / "4.html").text
    assert "15 tell one class from the others" in Page(site / "layers" / "conv1.html").text
    assert 'value="auroc"' in (site / "layers" / "conv1.html").read_text("utf-8")


def test_the_least_and_the_twins_are_told(site: Path) -> None:
    found = survey(120, PLAIN, [n % 10 for n in range(120)])
    page = Page(site / "units" / "conv1" / "7.html")
    least = found.bottom("conv1:7")
    assert len(least) == LEAST
    alts = [image["alt"] or "" for image in page.images]
    assert [f"part of {e.name} that hardly excites conv1:7" in " ".join(alts) for e in least] == [True] * LEAST
    text = " ".join(page.text.split())
    assert f"1 picture nearly the same as one of these was left out: {found.twins('conv1:7')[0].name} (" in text


def test_connections_lead_to_the_units_at_their_other_ends(site: Path) -> None:
    page = Page(site / "units" / "features.12" / "7.html")
    assert page.links.count("../../units/conv1/7.html") == 1
    assert "../../units/conv1/8.html" in page.links
    assert "../../units/fc/7.html" in page.links
    assert [i["alt"] for i in page.images if "HappyMap of" in (i["alt"] or "")] == [
        "HappyMap of conv1:7", "HappyMap of conv1:8", "HappyMap of fc:7", "HappyMap of fc:8",
    ]  # fmt: skip
    text = " ".join(page.text.split())
    assert "conv1:7 40 %, excites" in text
    assert "conv1:8 12 %, inhibits" in text
    assert "drop:0 2.0 %, excites and inhibits" in text  # no page of its own: no link
    assert "filter of features.12:7, expanded to pixels" in [i["alt"] for i in page.images]
    assert "The input itself." in Page(site / "units" / "conv1" / "3.html").text
    assert "Connections" not in Page(site / "units" / "relu_call_2" / "3.html").text
    assert (site / "pictures" / "features.12" / "expanded-7.png").is_file()


@pytest.mark.parametrize(
    "missing", [("happy",), ("sad",), ("survey",), ("predictions",), ("filters",), ("weights",), ("",)]
)
def test_a_partial_atlas_makes_a_whole_site(tmp_path: Path, missing: tuple[str, ...]) -> None:
    index = build_site(make_atlas(tmp_path / "atlas", leave_out=missing), tmp_path / "site")
    check_links(index.parent)
    assert "This atlas is not finished" in Page(index).text
    if missing not in (("filters",), ("weights",)):
        assert any("not computed yet" in file.read_text("utf-8") for file in html_files(index.parent))


def test_an_atlas_that_says_little_makes_a_site(tmp_path: Path) -> None:
    with Atlas.create(tmp_path / "atlas") as atlas:
        layers = [{"path": "", "units": 2}, {"path": "a", "alias_of": ""}]
        atlas.claim({"reference": "x", "hash": "0", "layers": layers})
    index = build_site(tmp_path / "atlas", tmp_path / "site")
    check_links(index.parent)
    with Atlas.create(tmp_path / "bare"):
        pass
    with pytest.raises(BadInput, match="does not say which model"):
        build_site(tmp_path / "bare", tmp_path / "site2")
    assert not (tmp_path / "site2").exists()


def test_a_class_layer_may_be_an_alias(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas", PLAIN)
    with Atlas.open(atlas) as opened:
        model = description(PLAIN)
        twin = {**model["layers"][-1], "path": "logits", "alias_of": "fc"}
        opened.set_meta("model", {**model, "class_layer": "logits", "layers": [*model["layers"], twin]})
    site = build_site(atlas, tmp_path / "site").parent
    check_links(site)
    assert "units/fc/2.html" in Page(site / "classes.html").links


def test_a_lost_picture_file_is_made_again(tmp_path: Path) -> None:
    atlas = make_atlas(tmp_path / "atlas", PLAIN)
    (atlas / "results" / "happy-0-0" / "conv1_0-happy-0.png").unlink()
    check_links(build_site(atlas, tmp_path / "site").parent)


def test_a_site_is_written_again_and_nothing_else_is(tmp_path: Path, atlas: Path) -> None:
    out = tmp_path / "deep" / "site"
    first = build_site(atlas, out)
    (out / ".DS_Store").touch()
    (out / "units" / "conv1" / "99.html").touch()
    assert build_site(atlas, out) == first
    assert not (out / "units" / "conv1" / "99.html").exists()
    assert [entry.name for entry in out.parent.iterdir()] == ["site"]  # no staging left
    (out / "CNAME").touch()
    with pytest.raises(BadOutput, match=r"did not write there \(CNAME\)"):
        build_site(atlas, out)
    assert (out / "CNAME").exists()
    assert first.exists()


@pytest.mark.parametrize("kind", ["full", "file", "damaged", "around"])
def test_other_peoples_folders_are_refused(tmp_path: Path, atlas: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    if kind == "damaged":
        (out / MARKER).write_text("{")
    if kind == "around":
        (out / "thesis.tex").unlink()
        shutil.copytree(atlas, out / "atlas")
        (out / MARKER).write_text(json.dumps({"entries": ["atlas", MARKER]}))
        atlas = out / "atlas"
    before = sorted(out.rglob("*"))
    with pytest.raises(BadOutput) as refused:
        build_site(atlas, out)
    assert "\n" not in str(refused.value)
    assert "--out" in str(refused.value)
    assert sorted(out.rglob("*")) == before


def test_an_empty_folder_and_a_link_to_one_will_do(tmp_path: Path, atlas: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert build_site(atlas, tmp_path / "link").is_file()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "empty" / "index.html").is_file()


def test_a_full_disk_leaves_the_old_site(tmp_path: Path, atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_site(atlas, tmp_path / "site")
    old = index.stat().st_ino
    write = Path.write_text

    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        if self.name == "5.html":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BadOutput, match="No space left on device"):
        build_site(atlas, tmp_path / "site")
    assert index.stat().st_ino == old
    assert [entry.name for entry in tmp_path.iterdir()] == ["site"]


def test_a_failed_swap_puts_the_old_site_back(tmp_path: Path, atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_site(atlas, tmp_path / "site")
    old, rename = index.stat().st_ino, Path.rename

    def torn(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", torn)
    with pytest.raises(BadOutput, match="Permission denied"):
        build_site(atlas, tmp_path / "site")
    assert index.stat().st_ino == old


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path, atlas: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadOutput, match="cannot write"):
        build_site(atlas, tmp_path / "file" / "site")


def test_pictures_are_linked_where_that_works_and_copied_where_not(
    tmp_path: Path, atlas: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = atlas / "results" / "happy-0-0" / "conv1_0-happy-0.png"
    first = build_site(atlas, tmp_path / "linked").parent / "pictures" / "conv1" / "happy-0-0.png"
    assert first.stat().st_ino == stored.stat().st_ino

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "other disk")

    monkeypatch.setattr(os, "link", refuse)
    second = build_site(atlas, tmp_path / "copied").parent / "pictures" / "conv1" / "happy-0-0.png"
    assert second.stat().st_ino != stored.stat().st_ino
    assert second.read_bytes() == stored.read_bytes()


def test_layer_names_are_safe_and_never_the_same() -> None:
    paths = ["a#1", "a_call_1", "A#1", "", "..", ".hidden", "_x", "con", "nul.2", "x" * 300, "x" * 301, "é/ü", "a b"]
    names = safe_names(paths)
    assert len({name.lower() for name in names.values()}) == len(paths)
    for name in names.values():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._~-]*", name)
        assert len(name) <= LONGEST + 4
        assert name.split(".")[0].lower() not in ("con", "nul")
        assert not name.endswith(".")


def test_the_map_draws_what_layers_read() -> None:
    rows = [Layer.read(row, "n") for row in description(PLAIN)["layers"]]
    assert edges(rows) == [(0, 1), (0, 4), (1, 2), (2, 3), (3, 4), (4, 5)]
    bare = [Layer.read({"path": path}, "n") for path in "abc"]
    assert edges(bare) == [(0, 1), (1, 2)]
    assert arc(0, 1, 4) == "M88 0.5V1.5"
    assert "C" in arc(0, 4, 4)


def test_stated_figures_in_words() -> None:
    stated = {"top_1": 0.5812, "fonts": 812, "on": "unseen fonts", "by": {"A": 1.0}}
    texts = ["58.1\u202f%", "812", "unseen fonts", "100.0\u202f%"]
    assert figures(stated) == list(zip(["top 1", "fonts", "on", "by, A"], texts, strict=True))


def test_colours_can_be_read() -> None:
    from importlib import resources

    css = resources.files("penlight.web").joinpath("static", "penlight.css").read_text("utf-8")
    pairs = {name: (light, dark) for name, light, dark in re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", css)}

    def bright(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    def contrast(one: str, other: str) -> float:
        low, high = sorted([bright(one), bright(other)])
        return (high + 0.05) / (low + 0.05)

    grounds = {"ink": "paper card sunk tint", "soft": "paper card", "amber": "paper card tint"}
    grounds |= {"good": "card paper", "bad": "card paper"}
    for mode in (0, 1):
        for ink, papers in grounds.items():
            for paper in papers.split():
                assert contrast(pairs[ink][mode], pairs[paper][mode]) >= 4.5, (ink, paper, mode)
    assert contrast("#241f18", pairs["glow"][0]) >= 4.5


def test_the_site_needs_no_torch(tmp_path: Path, atlas: Path) -> None:
    code = (
        "import sys; from penlight.web.site import build_site; build_site(sys.argv[1], sys.argv[2]);"
        "sys.exit(any(name.split('.')[0] in ('torch', 'torchvision') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(atlas), str(tmp_path / "site")], check=False)
    assert done.returncode == 0


# ------------------------------------------------------------------ in a browser


SHOWN = "[...document.images].filter(i => i.checkVisibility())"


class Visit:
    """One page of the browser that writes down what goes wrong."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("console", lambda message: self.wrong.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("dialog", lambda dialog: self.wrong.append(f"dialog: {dialog.message}"))
        self.page.on("request", self._inside)

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before it came
            self.wrong.append(f"failed: {request.url}: {request.failure}")

    def _inside(self, request: Any) -> None:
        if not request.url.startswith("file:///"):
            self.wrong.append(f"outside: {request.url}")

    def open(self, site: Path, address: str = "index.html") -> Any:
        self.page.goto((site / address).resolve().as_uri())
        return self.page

    def all_pictures(self) -> int:
        """Scrolls down and counts the pictures; each must have loaded."""
        self.page.wait_for_load_state("load")
        self.page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        height = self.page.evaluate("document.documentElement.scrollHeight")
        for y in range(0, height + 600, 600):
            self.page.evaluate(f"scrollTo(0, {y})")
            self.page.wait_for_timeout(15)
        self.page.wait_for_function(f"{SHOWN}.every(i => i.complete && i.naturalWidth > 0)", timeout=10_000)
        return int(self.page.evaluate(f"{SHOWN}.length"))

    def no_wider_than_the_window(self) -> None:
        wide = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1], f"{self.page.url} is {wide[0]} wide"

    def close(self) -> None:
        self.context.close()
        assert not self.wrong


@pytest.mark.browser
def test_from_the_network_to_a_unit_and_on(site: Path, browser: Any) -> None:
    visit = Visit(browser)
    page = visit.open(site)
    assert visit.all_pictures() > 40
    page.click("ol.layers h3 a:text-is('features.12')")
    assert page.url.endswith("/layers/features.12.html")
    assert visit.all_pictures() == 23
    page.click("#wall li:nth-child(8) a")
    assert page.url.endswith("/units/features.12/7.html")
    crops, wires, filters = 2 * (9 + LEAST), 4, 1  # crops and their whole pictures
    assert visit.all_pictures() == 2 * SEEDS + crops + wires + filters
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/features.12/8.html")
    page.keyboard.press("ArrowLeft")
    page.wait_for_url("**/features.12/7.html")
    page.click("text=Classes")
    assert visit.all_pictures() == 10 * (5 + SEEDS)
    visit.close()


@pytest.mark.browser
def test_the_wall_sorts_filters_and_remembers(site: Path, browser: Any) -> None:
    visit = Visit(browser)
    page = visit.open(site, "layers/features.12.html")
    shown = "[...document.querySelectorAll('#wall li:not([hidden]) b')].map(b => parseInt(b.textContent))"
    assert page.evaluate(shown) == list(range(24))
    page.select_option("[name=sort]", "auroc")
    assert page.evaluate(shown)[-1] == 4  # the one without a label
    page.select_option("[name=sort]", "max")
    data = json.loads(page.text_content("#columns"))
    order = sorted(range(24), key=lambda u: (-data["max"][u], u))
    assert page.evaluate(shown) == order
    page.check("[name=up]")
    assert page.evaluate(shown)[0] == order[-1] == DEAD[1]
    page.select_option("[name=only]", "never")
    assert page.evaluate(shown) == [DEAD[1]]
    assert page.text_content("#count-out") == "1 of 24 units"
    page.select_option("[name=only]", "dark")
    assert page.evaluate(shown) == [DARK[1]]
    page.select_option("[name=only]", "")
    page.select_option("[name=best]", "2")
    assert sorted(page.evaluate(shown)) == [2, 12, 22]
    page.focus("[name=low]")
    page.keyboard.press("End")  # only units that fire on every input
    assert page.evaluate(shown) == []
    assert page.is_visible("#empty")
    assert "sort=max" in page.url
    assert "best=2" in page.url
    assert "low=100" in page.url
    page.focus("[name=low]")
    page.keyboard.press("Home")
    for picture in ("sad", "top", "happy", "top"):
        page.check(f"[name=pic][value={picture}]", force=True)
        assert visit.all_pictures() == 3
    page.reload()
    assert sorted(page.evaluate(shown)) == [2, 12, 22]
    assert page.is_checked("[name=pic][value=top]")
    assert page.locator("#wall .crop img").count() == 24
    page.click("button[type=reset]")
    page.wait_for_function(f"({shown}).length === 24")
    assert "#" not in page.url
    visit.close()


@pytest.mark.browser
def test_phones_have_nothing_to_scroll_sideways(site: Path, browser: Any) -> None:
    visit = Visit(browser, viewport={"width": 360, "height": 740}, is_mobile=True)
    for address in ("index.html", "classes.html", "layers/conv1.html", "units/fc/0.html", "units/fc/1.html"):
        visit.open(site, address)
        visit.no_wider_than_the_window()
    odd = next(site.glob("units/we*/0.html")).relative_to(site)
    visit.open(site, str(odd))
    visit.no_wider_than_the_window()
    visit.close()


@pytest.mark.browser
def test_dark_is_dark_and_the_choice_lasts(site: Path, browser: Any) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    visit = Visit(browser, color_scheme="dark")
    page = visit.open(site)
    dark = page.evaluate(ground)
    assert dark == "rgb(18, 16, 12)"
    assert len(page.screenshot()) > 10_000
    page.click("#theme")
    light = page.evaluate(ground)
    assert light == "rgb(250, 247, 239)"
    assert page.get_attribute("#theme", "aria-pressed") == "false"
    page.reload()
    assert page.evaluate(ground) == light
    page.click("#theme")
    assert page.evaluate(ground) == dark
    visit.close()


@pytest.mark.browser
def test_all_is_there_without_script(site: Path, browser: Any) -> None:
    visit = Visit(browser, java_script_enabled=False)
    page = visit.open(site, "layers/conv1.html")
    assert page.locator("#wall li a").count() == 16
    assert not page.is_visible("#controls")
    page.click("#wall li:nth-child(1) a")
    assert page.is_visible("text=HappyMap")
    assert not page.is_visible(".copy")
    visit.close()

"""Renderers: results in, pictures and text out."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from penlight.render import Mark, bars, columns, histogram_svg, number, share, sheet, survey_sheet, times
from penlight.render.sheet import EDGE, GAP, PAPER, TEXT
from penlight.render.svg import FLOOR, LEFT, RIGHT, TOP, ticks
from penlight.render.table import width
from penlight.results import LayerSurvey, Provenance, SurveyResult, VisualizeResult


def visualize(units: int = 3, seeds: int = 2, size: int = 8, channels: int = 1) -> VisualizeResult:
    images = np.full((units, seeds, size, size, channels), 255, np.uint8)
    images[0, 0] = 0
    dark = np.zeros((units, seeds), bool)
    dark[-1, -1] = True
    numbers = np.arange(units * seeds, dtype=np.float32).reshape(units, seeds)
    names = tuple(f"conv:{u}" for u in range(units))
    return VisualizeResult(Provenance(), names, (None,) * units, images, numbers, numbers, dark)


def pixels(picture: object) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture.png())))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (-0.012345, "−0.0123"),
        (12345, "12,345"),
        (1234.5, "1,234"),
        (1.5e7, "1.50e7"),
        (2.5e-5, "2.50e−5"),
    ],
)
def test_numbers_keep_three_figures(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.0, "100"), (0.0004, "<0.1"), (0.9999, ">99.9"), (0.0532, "5.3"), (0.5, "50"), (0.994, "99.4")],
)
def test_shares_are_never_rounded_to_none_or_all(value: float, text: str) -> None:
    assert share(value) == f"{text}\u202f%"


def test_a_ratio_to_nothing_is_no_ratio() -> None:
    assert times(12.0, 4.0) == "3 times"
    assert times(250.0, 1.0) == "250 times"
    assert times(1.0, 0.0) is None
    assert times(1.0, -2.0) is None
    assert times(float("nan"), 1.0) is None


def test_columns_align_and_cut_nothing() -> None:
    rows = [{"layer": "conv1", "units": 16}, {"layer": "漢字", "units": None}, {"layer": "a\nb\x1b[0m", "units": 1024}]
    lines = columns(rows, {"layer": "Layer", "units": "Units"}).split("\n")
    assert lines[0].split() == ["Layer", "Units"]
    assert {width(line) for line in lines} == {width(lines[0])}
    assert lines[2].endswith("–")
    assert lines[3].startswith("a\\nb\\x1b[0m")
    assert lines[3].endswith("1,024")


def test_columns_show_shapes_lists_and_truth() -> None:
    text = columns([{"a": (1, 28, 28), "b": ["x", "y"], "c": True, "d": 0.5}], ["a", "b", "c", "d"])
    assert text.split("\n")[1].split("  ") == ["1 × 28 × 28", "x, y", "yes", "0.5"]
    assert columns([], ["a", "b"]) == "a  b"


def test_sheet_holds_every_picture_where_it_belongs() -> None:
    shown = pixels(sheet(visualize(), columns=1, scale=10))
    top = EDGE + TEXT + 6
    assert (shown[top : top + 80, EDGE : EDGE + 80] == 0).all()  # unit 0, start 0 is black
    assert (shown[top : top + 80, EDGE + 80 + GAP : EDGE + 160 + GAP] == 255).all()


def test_sheet_hatches_what_no_gradient_reached() -> None:
    result = visualize(units=1, seeds=1)
    shown = pixels(sheet(result, scale=10))
    cell = shown[EDGE + TEXT + 6 :, EDGE:][:80, :80].reshape(-1, 3)
    assert (cell == PAPER).all(1).any()
    assert not (cell == 255).all(1).any()


@pytest.mark.parametrize("channels", [1, 3, 4, 2])
@pytest.mark.parametrize("wide", [None, 1, 2, 9])
def test_sheet_takes_any_picture_and_any_width(channels: int, wide: int | None) -> None:
    assert pixels(sheet(visualize(channels=channels), columns=wide)).ndim == 3


def survey() -> SurveyResult:
    one = np.zeros(1)
    layer = LayerSurvey(
        np.array([[7, 3, -1]]),
        np.array([[2.0, 1.0, 0.0]], np.float32),
        np.zeros((1, 3, 2), np.int32),
        np.array([[[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 0, 0]]], np.int32),
        one, one, one.astype(np.float32), one.astype(np.float32), one, np.ones((1, 4), np.int64), np.zeros((1, 0)),
    )  # fmt: skip
    return SurveyResult(Provenance(), {"conv": layer}, 9, {7: "a", 3: "b"}, {}, np.arange(5.0))


def test_survey_sheet_cuts_what_the_unit_saw() -> None:
    picture = np.zeros((4, 4, 1), np.uint8)
    picture[1:3, 1:3] = 200
    shown = pixels(survey_sheet(survey(), ["conv:0"], {3: picture}, scale=20))
    top, left = EDGE + TEXT + 6, EDGE + 44 + GAP  # the second example; cells are at least 44 wide
    assert (shown[top : top + 40, left : left + 40] == 200).all()


def test_histogram_marks_and_says_what_it_shows() -> None:
    text = histogram_svg(np.array([9, 0, 1]), np.array([0.0, 1, 2, 3]), [Mark(3.5, "HappyMap")], 'x"<y>:1')
    svg = ET.fromstring(text)
    assert svg.get("aria-label") == 'x"<y>:1: 10 inputs by activation, from 0 to 3; HappyMap at 3.5'
    path = svg.find("path").get("d")  # type: ignore[union-attr]
    heights = [float(h) for h in re.findall(r"v-([\d.]+)", path or "")]
    assert heights == pytest.approx([FLOOR - TOP, (FLOOR - TOP) / 3], abs=0.1)  # square roots of 9 and 1; no bar for 0
    x = float(re.search(r"M([\d.]+) ", svg.find(".//g/path").get("d")).group(1))  # type: ignore
    assert x == pytest.approx(RIGHT)  # the mark widened the axis to end at it


def test_a_mark_far_off_stands_at_the_rim() -> None:
    near = histogram_svg(np.array([1, 1]), np.array([0.0, 1, 2]))
    marks = [Mark(500.0, "HappyMap"), Mark(-500.0, "SadMap", "sad")]
    far = histogram_svg(np.array([1, 1]), np.array([0.0, 1, 2]), marks)
    ends = [max(float(x) for x in re.findall(r"H([\d.]+)V", text)) for text in (near, far)]
    assert ends[0] == RIGHT
    assert LEFT < ends[1] > RIGHT - 70
    assert f"M{float(RIGHT)} {TOP}V" in far
    assert f"M{float(LEFT)} {TOP}V" in far


def test_histogram_of_nothing_and_of_one_bin() -> None:
    assert histogram_svg(np.zeros(0), np.zeros(1)) == ""
    ET.fromstring(histogram_svg(np.array([5]), np.array([0.0, 0.25])))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.2, 14), (1e-9, 3e-9), (1e6, 1e6 + 5)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    room = (high - low) * 1e-6
    assert all(low - room <= t <= high + room for t in found)


def test_bars_start_at_zero_and_escape_their_labels() -> None:
    table = ET.fromstring(bars([("<b>&", 3.0), ("minus", -1.0)], "means"))
    rows = table.findall("tbody/tr")
    assert rows[0].find("th").text == "<b>&"  # type: ignore[union-attr]
    assert [row.find("td/i").get("style") for row in rows] == [  # type: ignore[union-attr]
        "margin-left:25%;width:75%",
        "margin-left:0%;width:25%",
    ]


def test_render_needs_no_torch() -> None:
    code = "import sys, penlight.render, penlight.results, penlight.store; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What a contact sheet says of its pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import ImageDraw

from penlight.render import sheet
from penlight.render.sheet import AMBER, FAINT, against_real
from penlight.results import Provenance, VisualizeResult


def result(**changes):
    images = np.zeros((2, 3, 8, 8, 1), np.uint8)
    numbers = np.array([[9, 8, 7], [3, 2, 1]], np.float32)
    dark = np.array([[False, False, False], [False, False, True]])
    zero = np.zeros((2, 3), np.float32)
    return VisualizeResult(Provenance(), ("fc:0", "fc:1"), ("A", None), images, numbers, zero, dark, **changes)


def full():
    likeness = np.array([[[1, 0.8, 0.1], [0.8, 1, 0.3], [0.1, 0.3, 1]]] * 2, np.float32)
    return result(
        jittered=np.array([[8, 7, 1], [3, 2, 1]], np.float32), network_likeness=likeness,
        recurrence=np.array([[2, 2, 1], [2, 2, 0]], np.int32), never_fired=np.array([False, True]),
        percentile=np.array([[1, 0.9996, 0.5], [np.nan] * 3], np.float32),
        ratio=np.array([[1.24, 0.9, 0.4], [np.nan] * 3], np.float32),
    )  # fmt: skip


@pytest.fixture
def written(monkeypatch):
    """Everything that is drawn: text → colour."""
    texts = []
    real = ImageDraw.ImageDraw.text

    def text(self, xy, text, *rest, **how):
        texts.append((xy, text, how["fill"]))
        return real(self, xy, text, *rest, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def test_under_each_picture_stands_its_evidence(written):
    sheet(full(), columns=1)
    texts = [text for _, text, _ in written]
    assert texts[:2] == ["fc:0  A", "stability 0.40"]
    assert texts[2:] == [
        "9", "1.2x best real", "2 of 3 starts",
        "8", "above 99.9 %", "2 of 3 starts",
        "7", "above 50 %", "1 of 3 starts", "fragile",
        "fc:1", "stability 0.80", "never fired",
        "3", "2 of 3 starts", "2", "2 of 3 starts", "no gradient",
    ]  # fmt: skip
    amber = {text for _, text, fill in written if fill == AMBER}
    assert amber == {"1 of 3 starts", "fragile", "never fired", "no gradient"}
    assert {fill for _, text, fill in written if text == "9"} == {FAINT}


def test_no_text_runs_into_another(written):
    from PIL import ImageFont

    for columns, scale in ((1, None), (2, None), (2, 1)):
        written.clear()
        picture = sheet(full(), columns=columns, scale=scale)
        boxes = []
        for (x, y), text, fill in written:
            size = 13 if fill not in (FAINT, AMBER) else 11
            boxes.append((x, y, x + ImageFont.load_default(size).getlength(text), y + size))
        for n, a in enumerate(boxes):
            assert a[2] <= picture.pixels.shape[1]
            assert a[3] <= picture.pixels.shape[0]
            for b in boxes[:n]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (written[n], b)


def test_what_is_not_known_is_not_said(written):
    sheet(result(), columns=1)
    assert [text for _, text, _ in written] == ["fc:0  A", "9", "8", "7", "fc:1", "3", "2", "no gradient"]


def test_one_start_recurs_with_nothing(written):
    one = full()
    one = VisualizeResult(
        Provenance(), one.units, one.labels, one.images[:, :1], one.activations[:, :1], one.starts[:, :1],
        one.zero_gradient[:, :1], recurrence=np.ones((2, 1), np.int32),
    )  # fmt: skip
    sheet(one)
    assert not [text for _, text, _ in written if "starts" in text or "stability" in text]


@pytest.mark.parametrize(
    ("percentile", "ratio", "minimize", "text"),
    [
        (float("nan"), float("nan"), False, None),
        (0.0, 0.2, False, "above 0 %"),
        (0.9999, 0.99, False, "above 99.9 %"),
        (1.0, float("nan"), False, "above 100 %"),
        (1.0, 1.04, False, "1.0x best real"),
        (1.0, 123.4, False, "123x best real"),
        (0.25, float("nan"), True, "below 25 %"),
        (1.0, 2.0, True, "2.0x least real"),
    ],
)
def test_against_real_inputs(percentile, ratio, minimize, text):
    assert against_real(percentile, ratio, minimize) == text


def test_the_least_preferred_are_called_so(written):
    sad = replace(full(), minimize=True)
    assert "1.2x least real" in [t for _, t, _ in (sheet(sad), written)[1]]

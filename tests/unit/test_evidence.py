"""Small jitters, and what a result says of its pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from penlight.results import LayerSurvey, Provenance, SurveyResult, VisualizeResult, load_result
from penlight.results.visualize import file_name, file_names
from penlight.techniques.visualize.evidence import jittered, unseen

GREY = torch.full((1, 1, 1), 0.5)


def blob(side, width=0.15):
    """A bright spot in the middle of grey, (1, 1, side, side)."""
    at = (np.arange(side) + 0.5) / side - 0.5
    spot = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * width**2))
    return np.round(128 + 120 * spot).astype(np.uint8)[None, None]


def middle(picture):
    """Centre of mass of what is brighter than grey, as shares of the sides."""
    light = np.clip(picture[0, 0].astype(float) - 140, 0, None)
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    return np.array([(light * (g + 0.5)).sum() / light.sum() / n for g, n in zip((y, x), light.shape, strict=True)])


class TestUnseen:
    def test_the_same_every_time_and_another_for_another_seed(self):
        pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 9, 12), np.uint8)
        one, two, other = (unseen(pictures, torch.rand(3, 1, 1).mul(0).add(0.4), seed=s) for s in (0, 0, 1))
        assert len(one) == 8
        assert all(m.shape == pictures.shape and m.dtype == np.uint8 for m in one)
        np.testing.assert_array_equal(one, two)
        assert all((a != b).any() for a, b in zip(one, other, strict=True))
        assert len({m.tobytes() for m in one}) == 8

    def test_a_picture_does_not_depend_on_its_company(self):
        pictures = np.random.default_rng(0).integers(0, 256, (5, 1, 9, 12), np.uint8)
        for many, alone in zip(unseen(pictures, GREY), unseen(pictures[3:4], GREY), strict=True):
            np.testing.assert_array_equal(many[3:4], alone)

    @pytest.mark.parametrize("side", [16, 64, 224])
    def test_shifts_are_shares_of_the_side(self, side):
        moves = np.array([middle(moved) - 0.5 for moved in unseen(blob(side), GREY, count=16)])
        far = np.hypot(*moves.T)
        assert (far > 0.015).all()
        assert (far < 0.045).all()
        assert np.abs(moves.mean(0)).max() < 0.01  # in all directions alike

    def test_the_same_for_a_small_picture_as_for_a_large_one(self):
        """The same jitters of the same spot move it by the same share."""
        small, large = ([middle(m) for m in unseen(blob(side), GREY)] for side in (20, 200))
        np.testing.assert_allclose(small, large, atol=0.006)

    def test_only_the_part_that_counts_is_taken_for_the_side(self):
        far = [np.hypot(*(middle(m) - 0.5)) for m in unseen(blob(80, 0.05), GREY, side=(20, 20))]
        assert max(far) < 0.045 / 4 + 0.002
        assert min(far) > 0.015 / 4 - 0.002

    def test_outside_lies_the_neutral_colour(self):
        neutral = torch.tensor([0.2, 0.6]).reshape(2, 1, 1)
        flat = np.stack([np.full((12, 12), v, np.uint8) for v in (51, 153)])[None]
        for moved in unseen(flat, neutral):
            assert (np.ptp(moved.astype(int), axis=(2, 3)) <= 1).all()  # no rim
            assert np.abs(moved.astype(int) - flat).max() <= 9  # 3 % lighter or darker
        white = np.full((1, 2, 12, 12), 255, np.uint8)
        assert min(moved.min() for moved in unseen(white, neutral)) < 200  # the rim is not stretched

    def test_rows_and_columns_of_one_pixel_stay(self):
        line = np.tile(np.linspace(60, 200, 40).astype(np.uint8), (1, 1, 1, 1)).reshape(1, 1, 1, 40)
        for picture in (line, line.reshape(1, 1, 40, 1)):
            for moved in unseen(picture, GREY):
                inner = moved.flatten()[4:-4].astype(int)
                assert np.abs(inner - picture.flatten()[4:-4]).max() < 25

    def test_without_moves_values_only_tremble(self):
        table = np.random.default_rng(0).integers(40, 200, (2, 1, 1, 50), np.uint8)
        one, other = (unseen(table, GREY, moves=False, seed=seed)[0] for seed in (0, 1))
        assert (one != other).any()
        for moved in unseen(table, GREY, moves=False):
            off = moved.astype(int) - table
            assert 2 < off.std() < 9
            assert np.abs(off).max() < 50


class TestJittered:
    def test_is_the_mean_over_the_jitters(self):
        pictures = np.random.default_rng(0).integers(0, 256, (3, 1, 8, 8), np.uint8)

        def measure(shown):
            return shown[:, 0, 3, 4].astype(np.float32)

        expected = np.mean([measure(moved) for moved in unseen(pictures, GREY, count=5, seed=2)], axis=0)
        found = jittered(measure, pictures, GREY, count=5, seed=2)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)

    def test_a_checkerboard_falls_and_a_spot_stays(self):
        """The first works at one alignment only; the second is a pattern."""
        board = (np.indices((28, 28)).sum(0) % 2 * 255).astype(np.uint8)[None, None]
        for picture, kept in ((board, (-0.5, 0.5)), (blob(28), (0.8, 1.1))):
            template = picture[0, 0].astype(np.float32) - picture.mean()

            def measure(shown, template=template):
                return (shown[:, 0] * template).sum((1, 2)).astype(np.float32)

            share = jittered(measure, picture, GREY)[0] / measure(picture)[0]
            assert kept[0] < share < kept[1]


def result(minimize=False, **changes):
    images = np.zeros((2, 3, 4, 4, 1), np.uint8)
    activations = np.array([[10, 8, 4], [0, 0, 0]], np.float32)
    starts = np.array([[2, 2, 2], [0, 0, 0]], np.float32)
    dark = np.array([[False, False, False], [True, True, True]])
    units, labels = ("fc:1", "conv:0"), ("é", None)
    return VisualizeResult(Provenance(), units, labels, images, activations, starts, dark, minimize, **changes)


def layer(values, positions):
    """A survey's layer of one-row units, from the inputs' activations."""
    values = np.asarray(values, float)
    units, zero = len(values), np.zeros((len(values), 1))
    edges = np.linspace(-4, 12, 17)
    return LayerSurvey(
        zero.astype(np.int64), zero.astype(np.float32), np.zeros((units, 1, positions), np.int32),
        np.zeros((units, 1, 0), np.int32), values.mean(1), values.mean(1), values.max(1).astype(np.float32),
        values.min(1).astype(np.float32), (values > 0).mean(1),
        np.stack([np.histogram(v, edges)[0] for v in values]), np.zeros((units, 0)),
    )  # fmt: skip


def survey():
    fc = layer([[0.0] * 4, [-3.5, -1.5, 4.5, 8.5]], 0)
    conv = layer([[0.0, 0.0, 0.0, 0.0]], 2)
    return SurveyResult(Provenance(), {"fc": fc, "conv": conv}, 4, {}, {}, np.linspace(-4, 12, 17))


class TestResult:
    def test_what_is_not_given_is_unknown(self):
        r = result()
        assert np.isnan(r.jittered).all()
        assert r.jittered.shape == r.percentile.shape == r.ratio.shape == r.recurrence.shape == (2, 3)
        assert r.network_likeness.shape == r.eye_likeness.shape == (2, 3, 3)
        assert r.film.shape == (2, 3, 0, 4, 4, 1)
        assert not r.fragile.any()
        assert not r.never_fired.any()
        assert np.isnan(r.stability).all()
        told = json.loads(r.to_json())["units"][0]
        assert told["percentile"] == [None] * 3
        assert told["recurrence"] == [None] * 3
        assert told["stability"] is None

    def test_fragile_where_jitters_take_more_than_half_of_the_gain(self):
        kept = np.array([[6.1, 4.9, 3.1], [0, 0, 0]], np.float32)  # gains of 8, 6 and 2 over 2
        assert result(jittered=kept).fragile.tolist() == [[False, True, False], [False] * 3]

    def test_fragile_upside_down(self):
        r = result(minimize=True, jittered=np.array([[-6, -3, -1], [0, 0, 0]], np.float32))
        r = replace(r, activations=-r.activations, starts=-r.starts)
        assert r.fragile.tolist() == [[False, True, True], [False] * 3]

    def test_a_picture_that_gained_nothing_is_not_fragile(self):
        r = result(jittered=np.array([[0, 0, 0], [-1, -1, -1]], np.float32))
        assert not replace(r, activations=r.starts).fragile.any()

    def test_stability_is_the_mean_outside_the_diagonal(self):
        likeness = np.full((2, 3, 3), np.nan, np.float32)
        likeness[0] = [[1, 0.9, 0.3], [0.9, 1, 0.6], [0.3, 0.6, 1]]
        likeness[1] = 0.9
        r = result(network_likeness=likeness, eye_likeness=likeness / 2)
        assert r.stability[0] == pytest.approx(0.6)
        assert r.eye_stability[0] == pytest.approx(0.3)
        assert np.isnan(r.stability[1])  # no gradient reached any of its pictures: there is nothing to be stable
        half = replace(r, zero_gradient=np.array([[False, False, True], [False] * 3]))
        assert half.stability.tolist() == pytest.approx([0.9, 0.9])

    def test_flags_in_words(self):
        kept = np.array([[9, 4, 4], [0, 0, 0]], np.float32)
        r = result(
            jittered=kept, recurrence=np.array([[2, 1, 2], [0, 0, 0]], np.int32), never_fired=np.array([False, True])
        )
        assert r.flags(0, 0) == ()
        assert r.flags(0, 1) == ("fragile", "comes once")
        assert r.flags(1, 0) == ("no gradient", "never fired")

    def test_captions_tell_what_is_known(self):
        r = result(
            jittered=np.array([[9, 4, 4], [0, 0, 0]], np.float32), recurrence=np.array([[2, 1, 2], [0, 0, 0]], np.int32)
        )
        captions = [p.caption for p in r.with_survey(survey()).pictures()]
        assert (
            captions[0]
            == "preferred input of fc:1 (é), start 0: activation 10, above 100 % of the real inputs, 2 of 3 starts"
        )
        assert captions[1].endswith("1 of 3 starts, fragile")
        assert captions[3].endswith("start 0: no gradient, never fired")

    def test_survives_the_disk_with_everything(self, tmp_path):
        rng = np.random.default_rng(0)
        full = result(
            jittered=rng.random((2, 3), np.float32), network_likeness=rng.random((2, 3, 3), np.float32),
            eye_likeness=rng.random((2, 3, 3), np.float32), recurrence=np.ones((2, 3), np.int32),
            percentile=rng.random((2, 3), np.float32), ratio=rng.random((2, 3), np.float32), never_fired=np.array([True, False]),
            film=rng.integers(0, 256, (2, 3, 5, 4, 4, 1), np.uint8), notes=("classes compete",),
        )  # fmt: skip
        back = load_result(full.save(tmp_path / "r"))
        assert back.notes == ("classes compete",)
        for name, array in full.state()[1].items():
            np.testing.assert_array_equal(getattr(back, name), array)
            assert getattr(back, name).dtype == array.dtype
        assert json.loads(full.to_json())["frames"] == 5

    def test_a_result_from_before_is_still_read(self):
        data = {"units": ["fc:1"], "labels": [None], "minimize": False}
        arrays = {"images": np.zeros((1, 2, 3, 3, 1), np.uint8), "zero_gradient": np.zeros((1, 2), bool)}
        arrays |= {name: np.ones((1, 2), np.float32) for name in ("activations", "starts")}
        r = VisualizeResult.from_state(Provenance(), data, arrays)
        assert np.isnan(r.percentile).all()
        assert r.notes == ()


class TestSurvey:
    def test_percentile_and_ratio_against_real_inputs(self):
        r = result()
        r = replace(r, activations=np.array([[10, 4.5, -5], [1, 0, -1]], np.float32)).with_survey(survey())
        # 10 is above all four; of 4.5 in a bin from 4 to 5 half lies below; −5 is below all
        assert r.percentile[0].tolist() == pytest.approx([1, 2.5 / 4, 0])
        assert r.ratio[0].tolist() == pytest.approx([10 / 8.5, 4.5 / 8.5, -5 / 8.5])
        assert r.never_fired.tolist() == [False, True]
        assert r.percentile[1].tolist() == pytest.approx([1, 0, 0])  # all real inputs are exactly 0
        assert np.isnan(r.ratio[1]).all()  # nothing to be a multiple of

    def test_just_above_zero_is_above_all_that_do_not_fire(self):
        found = SurveyResult(
            Provenance(), {"fc": layer([[0] * 4, [0, 0, 0, 8.5]], 0)}, 4, {}, {}, np.linspace(-4, 12, 17)
        )
        r = replace(result(), activations=np.full((2, 3), 0.1, np.float32)).with_survey(found)
        assert r.percentile[0, 0] == pytest.approx(0.75)

    def test_upside_down(self):
        r = replace(result(minimize=True), activations=np.array([[-7, -1.5, 10], [-3, 0, 0]], np.float32))
        r = r.with_survey(survey())
        assert r.percentile[0].tolist() == pytest.approx(
            [1, 2.5 / 4, 0]
        )  # share of the inputs the unit answers more to
        assert r.ratio[0, 0] == pytest.approx(2)  # −7 against the least real answer, −3.5
        assert np.isnan(r.percentile[1]).all()  # a map: the survey knows its maxima only
        assert r.never_fired[1]

    def test_what_was_not_surveyed_or_read_otherwise_stays_unknown(self):
        units = ("class:é - fc:1", "fc:9")
        r = replace(result(), units=units).with_survey(survey())
        assert np.isnan(r.percentile).all()
        read = replace(result(), provenance=Provenance(options={"objective": "probability"})).with_survey(survey())
        assert np.isnan(read.percentile).all()
        assert read.never_fired.tolist() == [False, True]

    def test_a_position_is_compared_with_its_unit(self):
        r = replace(result(), units=("fc:1", "conv:0@1,1"), activations=np.full((2, 3), 0.5, np.float32))
        assert r.with_survey(survey()).percentile[1].tolist() == [1, 1, 1]


class TestFileNames:
    def test_addresses_stay_as_they_were(self):
        assert file_name("features.12:42@7,7") == "features.12_42_at_7-7"
        assert file_name("relu#2:1") == "relu_call_2_1"

    @pytest.mark.parametrize(
        "text",
        ["class:A - class:B", "-0.5 * (fc:1 + fc:2)", "direction(conv, /tmp/ä b.npy)", "../../etc/passwd", "class:" + "x" * 300,
         " ", "CON - a:1", "a:1\nb:2 "],
    )  # fmt: skip
    def test_expressions_are_safe_and_short(self, text):
        name = file_name(text)
        assert 0 < len(name) <= 80
        assert name.isascii()
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._~-")
        assert "/" not in name
        assert name[0] not in "-/"

    def test_different_texts_give_different_names(self):
        texts = ["class:A - class:B", "class:A - class:b", "class:A  - class:B", "a b", "a-b ", "x" * 90, "x" * 91]
        assert len(set(map(file_name, texts))) == len(texts)

    def test_no_two_of_one_result_are_alike(self):
        units = ["a:1", "A:1", "a_1", "a:1", "a:1"]
        names = file_names(units)
        assert len({name.lower() for name in names}) == len(units)
        assert names[0] == "a_1"

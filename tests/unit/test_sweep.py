"""Sweeps: the text of an axis, the grid, and the sheet."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from penlight.errors import BadOption, UnknownName
from penlight.render import sweep_sheet
from penlight.render.sheet import AMBER
from penlight.results import Provenance, Sweep, SweepResult, VisualizeResult, load_result
from penlight.results.sweep import readable
from penlight.techniques.contract import Request, Technique, methods
from penlight.techniques.options import option, provenance
from penlight.techniques.visualize.sweep import Axis, run_sweep


@dataclass(frozen=True)
class Painter(Technique):
    """A method whose pictures and scores are known."""

    verb: ClassVar[str] = "visualize"
    name: ClassVar[str] = "painter"
    paper: ClassVar[str] = "none"

    steps: int = option(4, "steps", low=1, high=1000)
    seeds: int = option(2, "starts", low=1)
    minimize: bool = option(False, "the other way")
    size: int = option(4, "pixels", low=1)
    level: float = option(1.0, "how bright", low=0, high=1e6)
    offset: float = option(0.0, "any number")
    dark: bool = option(False, "no light")
    brush: str = option("round", "which", choices=("round", "flat"))

    def run(self, request: Request) -> VisualizeResult:
        for step in range(self.steps):
            request.progress(step + 1, self.steps)
        shape = (2, self.seeds)
        images = np.full((*shape, self.size, self.size, 1), round(10 * self.level) % 256, np.uint8)
        best = np.array([[1.0], [10.0]])  # the levels the two units like best
        activations = (-np.abs(np.log10(best / max(self.level, 1e-9))) + 0.1 * np.arange(self.seeds)).astype(np.float32)
        if self.brush == "flat":
            activations -= 1
        activations = -activations if self.minimize else activations
        origin = provenance(self, request)
        zero = np.full(shape, self.dark)
        return VisualizeResult(
            origin, ("a:0", "a:1"), ("A", None), images, activations, np.zeros(shape, np.float32), zero, self.minimize,
            jittered=activations - np.float32(0.5),
        )  # fmt: skip


class TestAxis:
    @pytest.mark.parametrize(
        ("text", "values", "scale"),
        [
            ("level=1e-5..1e3", (1e-5, 1e-3, 0.1, 10, 1000), "log"),
            ("level=1e-1..4", (0.1, 1.075, 2.05, 3.025, 4), "linear"),
            ("level=1..50:3", (1, 7.07107, 50), "log"),
            ("level=1..49:3", (1, 25, 49), "linear"),
            ("level=0..100:3", (0, 50, 100), "linear"),
            ("level=1..100:3:lin", (1, 50.5, 100), "linear"),
            ("level=1..4:3:log", (1, 2, 4), "log"),
            ("level=1e3..1e-1", (1000, 100, 10, 1, 0.1), "log"),
            ("level=0,1e-5..1e3", (0, 1e-5, 1e-3, 0.1, 10, 1000), "log"),
            ("level=0, 0.5,2", (0, 0.5, 2), "list"),
            ("level=.5", (0.5,), "list"),
            ("offset=-1..1:3", (-1, 0, 1), "linear"),
            ("steps=1..4:7", (1, 2, 3, 4), "linear"),
            ("steps=1..1000", (1, 6, 32, 178, 1000), "log"),
            ("steps=3,3,2", (3, 2), "list"),
            ("dark=yes,no", (True, False), "list"),
            ("dark=false,true,0", (False, True), "list"),
            ("brush=flat,round", ("flat", "round"), "list"),
            ("--level=2", (2.0,), "list"),
        ],
    )
    def test_forms(self, text, values, scale):
        axis = Axis.parse(text, Painter)
        assert axis.values == pytest.approx(values) if axis.name not in ("dark", "brush") else axis.values == values
        assert axis.scale == scale
        types = {"steps": int, "dark": bool, "brush": str}
        assert all(type(v) is types.get(axis.name, float) for v in axis.values)

    def test_hyphens_stand_for_underscores(self):
        technique = methods["visualize"]["penlight"]
        one, two = (Axis.parse(f"{name}=0..1", technique) for name in ("total-variation", "total_variation"))
        assert one == two
        assert one.name == "total_variation"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("level", "is no axis"),
            ("level=", "is no axis"),
            ("=1..2", "is no axis"),
            ("level=1,,2", "is no axis"),
            ("level=1..", "is no range"),
            ("level=1..2..3", "is no range"),
            ("level=1..2:x", "is no range"),
            ("level=1..2:1", "at least 2 values"),
            ("level=0..2:5:log", "lies above 0"),
            ("offset=-1..2:5:log", "lies above 0"),
            ("level=many", "is no number"),
            ("level=-1..1", "option level takes a number from 0"),
            ("level=1,1e7", "option level takes a number from 0"),
            ("steps=1.5", "option steps takes a whole number"),
            ("steps=0..8", "option steps takes a whole number from 1 to 1000"),
            ("dark=maybe", "neither true nor false"),
            ("brush=square", "option brush takes one of round, flat"),
            ("minimize=true,false", "cannot be swept"),
        ],
    )
    def test_mistakes_are_told(self, text, says):
        with pytest.raises(BadOption, match=says) as error:
            Axis.parse(text, Painter)
        assert "\n" not in str(error.value)

    def test_an_option_the_method_does_not_have(self):
        with pytest.raises(UnknownName, match="did you mean 'level'"):
            Axis.parse("levle=1..2", Painter)


@pytest.fixture
def request_(open_zoo):
    return Request(open_zoo("functional"))


class TestRun:
    def test_the_grid_and_its_best(self, request_):
        r = run_sweep(Painter, ["level=0.1,1,10,100", "brush=round,flat"], {"steps": 2}, request_)
        assert r.images.shape == (2, 4, 2, 4, 4, 1)
        assert r.units == ("a:0", "a:1")
        assert r.labels == ("A", None)
        np.testing.assert_array_equal(r.images[0, :, 0, 0, 0, 0], [1, 10, 100, 1000 % 256])
        # each score is minus the distance in powers of ten, the seeds' 0 and 0.1 averaged
        expected = np.array([[-1, 0, -1, -2], [-2, -1, 0, -1]]) + 0.05
        np.testing.assert_allclose(r.activations[..., 0], expected, atol=1e-6)
        np.testing.assert_allclose(r.activations[..., 1], expected - 1, atol=1e-6)
        np.testing.assert_allclose(r.jittered, r.activations - 0.5, atol=1e-6)
        assert r.best.tolist() == [[1, 0], [2, 0]]
        assert r.values(2, 1) == {"level": 10.0, "brush": "flat"}
        assert r.provenance.options["steps"] == 2
        assert r.provenance.options["level"] == [0.1, 1.0, 10.0, 100.0]

    def test_one_axis(self, request_):
        r = run_sweep(Painter, [Axis.parse("level=1..100:3:log", Painter)], {}, request_)
        assert r.images.shape[:3] == (2, 3, 1)
        assert r.best.tolist() == [[0, 0], [1, 0]]
        assert r.axes == (Sweep("level", (1.0, 10.0, 100.0), "log"),)

    def test_the_lowest_is_best_when_minimizing(self, request_):
        r = run_sweep(Painter, ["level=1..100:3:log"], {"minimize": True}, request_)
        assert r.minimize
        assert r.best.tolist() == [[0, 0], [1, 0]]

    def test_smaller_pictures_stand_in_the_middle(self, request_):
        r = run_sweep(Painter, ["size=2,5"], {"level": 25.0}, request_)
        assert r.images.shape == (2, 2, 1, 5, 5, 1)
        small = r.images[0, 0, 0, :, :, 0]
        assert (small[1:3, 1:3] == 250).all()
        assert (small == 250).sum() == 4
        assert set(small.flatten().tolist()) == {250, 128}  # the neutral colour of a network that says nothing

    def test_progress_is_that_of_the_whole(self, request_):
        seen = []
        asked = Request(request_.model, progress=lambda done, of: seen.append((done, of)))
        run_sweep(Painter, ["steps=1,10,3"], {"seeds": 1}, asked)
        assert seen[-1] == (14, 14)
        assert [done for done, _ in seen] == list(range(1, 15))

    @pytest.mark.parametrize(
        ("axes", "options", "says"),
        [
            ([], {}, "one or two axes, not 0"),
            (["level=1", "offset=1", "steps=1"], {}, "one or two axes, not 3"),
            (["level=1,2", "level=3"], {}, "on both axes"),
            (["level=1,2"], {"level": 3.0}, "swept and set"),
        ],
    )
    def test_axes_that_do_not_go_together(self, request_, axes, options, says):
        with pytest.raises(BadOption, match=says):
            run_sweep(Painter, axes, options, request_)

    def test_the_default_method(self, open_zoo):
        model = open_zoo("functional")
        technique = methods["visualize"]["penlight"]
        asked = Request(model, model.find("conv1:1") + model.find("fc:2"), seed=3)
        options = {"steps": 4, "seeds": 2}
        r = run_sweep(technique, ["total-variation=0,10"], options, asked)
        for n, value in enumerate((0.0, 10.0)):
            alone = technique(total_variation=value, **options).run(asked)
            np.testing.assert_array_equal(r.images[:, n, 0], alone.images[:, 0])
            np.testing.assert_allclose(r.activations[:, n, 0], alone.activations.mean(1), rtol=1e-6)
            np.testing.assert_allclose(r.jittered[:, n, 0], alone.jittered.mean(1), rtol=1e-6)


def made(a=3, b=2, **changes):
    rng = np.random.default_rng(0)
    axes = (Sweep("total_variation", tuple(10.0**n for n in range(a)), "log"), Sweep("dark", (False, True)[:b]))
    scores = rng.random((2, a, b)).astype(np.float32)
    images = rng.integers(0, 256, (2, a, b, 6, 5, 3), np.uint8)
    fields = {"jittered": scores, "zero_gradient": np.zeros((2, a, b), bool)} | changes
    return SweepResult(Provenance(), axes[: 1 + (b > 1)], ("a:0", "x - y"), ("<é>", None), images, scores, **fields)


class TestResult:
    def test_best_passes_over_what_is_no_number(self):
        scores = np.full((2, 3, 2), np.nan, np.float32)
        scores[0, 2, 1], scores[0, 1, 0] = 5, 3
        r = made(jittered=scores)
        assert r.best[0].tolist() == [2, 1]
        assert r.best[1].tolist() == list(
            np.unravel_index(r.activations[1].argmax(), (3, 2))
        )  # no jitters: activations
        assert made(jittered=scores, minimize=True).best[0].tolist() == [1, 0]

    def test_none_is_best_where_nothing_is_a_number(self):
        nothing = np.full((2, 3, 2), np.nan, np.float32)
        r = made(jittered=nothing)
        r = SweepResult(r.provenance, r.axes, r.units, r.labels, r.images, nothing, nothing, r.zero_gradient)
        assert r.best.tolist() == [[-1, -1], [-1, -1]]
        assert json.loads(r.to_json())["units"][0]["best"] is None
        assert list(r.pictures())
        assert sweep_sheet(r).pixels.size

    @pytest.mark.parametrize("b", [1, 2])
    def test_survives_the_disk_and_speaks_json(self, tmp_path, b):
        r = made(b=b)
        back = load_result(r.save(tmp_path / "r"))
        assert isinstance(back, SweepResult)
        assert (back.axes, back.units, back.labels) == (r.axes, r.units, r.labels)
        for name, array in r.state()[1].items():
            np.testing.assert_array_equal(getattr(back, name), array)
        assert len(list((tmp_path / "r").glob("*.png"))) == 2 * 3 * b
        told = json.loads(r.to_json())
        assert told["axes"][0] == {"name": "total_variation", "values": [1, 10, 100], "scale": "log"}
        best = told["units"][0]["best"]
        assert len(best["index"]) == b
        assert best["values"]["total_variation"] == 10 ** best["index"][0]
        assert best["jittered"] == pytest.approx(float(r.jittered[0].max()))

    def test_captions_tell_the_values_and_the_best(self):
        captions = [p.caption for p in made().pictures()]
        assert captions[3].startswith("a:0 (<é>), total_variation 10, dark yes: activation ")
        assert sum(caption.endswith(", best") for caption in captions) == 2

    @pytest.mark.parametrize(
        ("value", "text"),
        [(1e-5, "1e-5"), (1e6, "1e6"), (0.1, "0.1"), (10.0, "10"), (0.0, "0"), (7.07107, "7.071"), (512, "512"),
         (True, "yes"), ("flat", "flat"), (-2.5e-7, "-2.5e-7")],
    )  # fmt: skip
    def test_values_are_readable(self, value, text):
        assert readable(value) == text


class TestSheet:
    @pytest.mark.parametrize("b", [1, 2])
    def test_holds_every_picture_and_frames_the_best(self, b):
        r = made(b=b)
        r.images[0, 1, 0] = 255
        shown = np.asarray(Image.open(io.BytesIO(sweep_sheet(r, scale=8).png())))
        assert shown.ndim == 3
        rows, columns = np.where((shown == 255).all(2))
        top, left = rows.min(), columns.min()
        assert (shown[top : top + 48, left : left + 40] == 255).all()
        framed = (shown == AMBER).all(2)
        across = [row for row in framed if row.sum() >= 40]
        assert len(across) >= 2 * 2 * 3 - 2  # two units, two edges of three pixels
        u, (x, y) = 0, r.best[0]
        enlarged = r.images[u, x, y].repeat(8, 0).repeat(8, 1)
        found = [
            (i, j)
            for i, j in zip(*np.where((shown == enlarged[0, 0]).all(2)), strict=True)
            if np.array_equal(shown[i : i + 48, j : j + 40], enlarged)
        ]
        assert len(found) == 1
        i, j = found[0]
        assert framed[i - 3 : i, j : j + 40].all()
        assert framed[i : i + 48, j - 3 : j].all()

    def test_no_gradient_is_hatched(self):
        dark = np.zeros((2, 3, 2), bool)
        dark[0, 0, 0] = True
        plain, hatched = sweep_sheet(made()).pixels, sweep_sheet(made(zero_gradient=dark)).pixels
        assert not np.array_equal(plain, hatched)

    @pytest.mark.parametrize("channels", [1, 3, 4, 7])
    def test_any_channels(self, channels):
        r = made()
        images = np.zeros((2, 3, 2, 6, 5, channels), np.uint8)
        r = SweepResult(r.provenance, r.axes, r.units, r.labels, images, r.activations, r.jittered, r.zero_gradient)
        picture = sweep_sheet(r)
        assert picture.pixels.ndim == 3
        assert "total_variation and dark" in picture.caption

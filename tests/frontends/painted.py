"""A small atlas made of painted pictures: what a network of letters might give, with planted oddities."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from penlight.results import (
    FiltersResult,
    LayerSurvey,
    PredictionsResult,
    Provenance,
    Result,
    SurveyResult,
    VisualizeResult,
)
from penlight.results.labels import LabelsResult
from penlight.results.weights import LayerWeights, WeightsResult
from penlight.store import Atlas

SIDE, SEEDS, TOP, BINS, LEAST = 28, 4, 9, 48, 2
PLAIN = list("ABCDEFGHIJ")
HOSTILE = ['<script>alert("x")</script>', "K/ß \"q' & é", *PLAIN[2:]]
ODD_LAYER = 'we"ird<b>/ü:x'
PATHS = {"conv1": 16, "relu#2": 16, "features.12": 24, ODD_LAYER: 3, "fc": 10}
FIELDS = {"conv1": 5, "relu#2": 5, "features.12": 14, ODD_LAYER: 20, "fc": None}
DARK, DEAD = ("features.12", 5), ("features.12", 5)
VERSIONS = {"penlight": "0.1.0", "numpy": "2.4.6"}


def glyph(label: int, rng: np.random.Generator, blur: float = 0.0) -> np.ndarray:
    """(SIDE, SIDE) uint8: a letter, drawn with PIL's own font, slightly off."""
    image = Image.new("L", (SIDE * 4, SIDE * 4))
    size = int(rng.integers(84, 112))
    font = ImageFont.load_default(size)
    bold = int(rng.integers(0, 7))
    ImageDraw.Draw(image).text((56, 56), PLAIN[label], font=font, fill=255, anchor="mm", stroke_width=bold)
    image = image.rotate(float(rng.uniform(-9, 9))).resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(blur)) if blur else image)


def idea(label: int, rng: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE, 1) uint8: a letter as a network might dream it."""
    base = glyph(label, rng, 0.9).astype(float) - 0.6 * np.roll(glyph(label, rng, 2), 2, 0)
    return np.clip(110 + 0.6 * base + rng.normal(0, 16, base.shape), 0, 255).astype(np.uint8)[..., None]


def wave(unit: int, rng: np.random.Generator, sign: int = 1) -> np.ndarray:
    """(SIDE, SIDE, 1) uint8: a stripe pattern of some direction and width."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    angle, width = unit * 0.7, 3 + unit % 5 * 1.6
    place = x * np.cos(angle) + y * np.sin(angle) + 0.1 * rng.random()
    pattern = np.sin(2 * np.pi * width * place + 0.4 * np.sin(6 * x * (unit % 3)))
    return np.clip(128 + sign * 95 * pattern + rng.normal(0, 12, pattern.shape), 0, 255).astype(np.uint8)[..., None]


def origin(technique: str, method: str = "", **options: Any) -> Provenance:
    return Provenance("letters", "c0ffee" * 10, technique, method, options, 7, "letters sample", VERSIONS)


def portraits(path: str, first: int, last: int, minimize: bool, labels: list[str]) -> VisualizeResult:
    rng = np.random.default_rng(100 * first + minimize)
    units = range(first, last)
    sign = -1 if minimize else 1
    ideas = path == "fc" and not minimize
    images = np.stack([np.stack([idea(u, rng) if ideas else wave(u, rng, sign) for _ in range(SEEDS)]) for u in units])
    activations = rng.gamma(6, 2, (len(units), SEEDS)).astype(np.float32) * sign
    dark = np.zeros((len(units), SEEDS), bool)
    if path == DARK[0] and first <= DARK[1] < last:
        dark[DARK[1] - first] = True
    if path == "conv1" and first == 0:
        dark[3, 1] = True
    names = tuple(labels[u] if path == "fc" else None for u in units)
    return VisualizeResult(
        origin("visualize", "penlight", steps=256, step_size=0.05, regularizers=["blur", "jitter 2"]),
        tuple(f"{path}:{u}" for u in units),
        names,
        images,
        activations,
        (activations * 0.05).astype(np.float32),
        dark,
        minimize,
    )


def areas(units: int) -> dict[str, np.ndarray]:
    """Every unit tells one class well, is low for the next, and knows nothing of the others; unit 4 of nothing at all."""
    area = np.full((units, 10), 0.5)
    area[np.arange(units), np.arange(units) % 10] = 0.98
    area[np.arange(units), (np.arange(units) + 1) % 10] = 0.03
    area[np.arange(units), (np.arange(units) + 2) % 10] = 0.81
    area[4:5] = 0.5
    z = (area - 0.5) * 100
    return {
        "auroc": area.astype(np.float32),
        "auroc_error": 0 * area.astype(np.float32),
        "auroc_z": z.astype(np.float32),
    }


def survey(count: int, labels: list[str], truth: list[int]) -> SurveyResult:
    rng = np.random.default_rng(5)
    edges = np.linspace(-6, 14, BINS + 1)
    layers = {}
    for path, units in PATHS.items():
        fc = path == "fc"
        means = rng.gamma(2, 0.7, (units, 10))
        means[np.arange(units), np.arange(units) % 10] += 4
        values = rng.gamma(1.4, 1.5, (units, 2500)) - (3 if fc else 0.8)
        if not fc:
            values = np.maximum(values, 0)
            means = np.maximum(means, 0)
        if path == DEAD[0]:
            values[DEAD[1]], means[DEAD[1]] = 0, 0
        top = np.stack([rng.choice(count, TOP, replace=False) for _ in range(units)])
        if fc:
            top = np.stack([[i for i in range(count) if truth[i] == u][:TOP] for u in range(units)])
        best = -np.sort(-values, axis=1)[:, : top.shape[1]].astype(np.float32)
        if path == DEAD[0]:
            top[DEAD[1], 4:] = -1
        field = FIELDS[path]
        corner = rng.integers(0, SIDE - (field or SIDE) + 1, (*top.shape, 2))
        size = field or SIDE
        layers[path] = LayerSurvey(
            top.astype(np.int64),
            best,
            corner.astype(np.int32) if field else np.zeros((*top.shape, 0), np.int32),
            np.concatenate([corner, corner + size], axis=2).astype(np.int32),
            values.mean(1) * 0.3,
            values.mean(1),
            values.max(1).astype(np.float32),
            values.min(1).astype(np.float32),
            (values > 0).mean(1),
            np.stack([np.histogram(v, edges)[0] for v in values]).astype(np.int64),
            means,
            bottom_index=top[:, ::-1][:, :LEAST].astype(np.int64),
            bottom_activation=np.sort(values, axis=1)[:, :LEAST].astype(np.float32),
            bottom_position=corner[:, ::-1][:, :LEAST].astype(np.int32)
            if field
            else np.zeros((units, LEAST, 0), np.int32),
            bottom_box=np.concatenate([corner, corner + size], axis=2)[:, ::-1][:, :LEAST].astype(np.int32),
            spare=np.stack([np.zeros((units, 1)), top[:, :1], top[:, 1:2]], axis=2).astype(np.int64),
            spare_activation=best[:, 1:2],
            spare_place=np.zeros((units, 1, 4 + (2 if field else 0)), np.int32),
            **areas(units),
        )
    names = {i: f"{'ABCDEFGHIJ'[truth[i]]}/DejaVu Sans-{i}.png" for i in range(count)}
    names[0] = "<img src=x onerror=alert(1)>/\"ü'.png"
    skipped = (("broken <b>.png", "is cut off"),)
    kinds = (tuple(labels), (250,) * 10)
    known = (names, dict(enumerate(truth)), edges, *kinds, skipped, 2500, "exact")
    return SurveyResult(origin("survey", top=TOP), layers, 2500, *known)


def predictions(count: int, labels: list[str], truth: list[int], names: dict[int, str]) -> PredictionsResult:
    rng = np.random.default_rng(11)
    logits = rng.normal(0, 1, (count, 10))
    logits[np.arange(count), truth] += rng.uniform(1.5, 8, count)
    chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    images = np.stack([glyph(t, rng) for t in truth])[..., None]
    return PredictionsResult(
        origin("predict"),
        tuple(names.get(i, f"sample-{i}.png") for i in range(count)),
        tuple(range(count)),
        images,
        chance.astype(np.float32),
        tuple(labels),
        tuple(truth),
    )


def filters() -> FiltersResult:
    rng = np.random.default_rng(3)
    weights = np.stack([wave(u, rng)[:5, :5] for u in range(16)]).astype(np.float32) / 128 - 1
    responses = np.stack([wave(u, rng) for u in range(16)])
    shown = np.clip(128 + 127 * weights, 0, 255).astype(np.uint8)
    steps = np.arange(16, dtype=np.int32) * 3
    norms = np.linalg.norm(weights.reshape(16, -1), axis=1)
    return FiltersResult(origin("filters"), "conv1", shown, weights, responses, steps, norms)


def weights() -> WeightsResult:
    """conv1 feeds features.12, which feeds fc; unit u is fed by u, u + 1 and one whose layer has no page, and feeds u."""
    counts = {"conv1": 16, "features.12": 24, "fc": 10, "drop": 24}
    starts = {"conv1": 0, "features.12": 16, "fc": 40, "drop": 50}
    below, above = {"features.12": "conv1", "fc": "features.12"}, {"conv1": "features.12", "features.12": "fc"}
    layers = {}
    for path, units in counts.items():
        u = np.arange(units)[:, None]
        table: dict[str, np.ndarray] = {}
        for name, others in (("feed", below), ("into", above)):
            other = others.get(path)
            number = np.full((units, 3), -1)
            if other is not None:
                number = starts[other] + (u + np.arange(3)) % counts[other]
                number[:, 2] = starts["drop"] if name == "feed" else -1
            signs = np.broadcast_to([0.9, -0.8, 0.1], (units, 3))
            shares = np.broadcast_to([0.4, 0.123, 0.02], (units, 3))
            table |= {name: number.astype(np.int32), f"{name}_share": shares.astype(np.float32)}
            table |= {f"{name}_norm": shares.astype(np.float32), f"{name}_sign": signs.astype(np.float32)}
        layers[path] = LayerWeights(**table)
    sources = {"conv1": (), "features.12": ("conv1",), "fc": ("features.12",), "drop": None}
    rng = np.random.default_rng(8)
    pictures = {"features.12": np.stack([wave(u, rng)[:14, :14] for u in range(24)]).astype(np.float32) - 128}
    return WeightsResult(origin("weights"), counts, sources, layers, pictures)


def words() -> LabelsResult:
    """Overlap with drawn things: unit 0 of conv1 is a stripe, the others are nothing."""
    score = np.zeros((16, 2), np.float32)
    score[0] = 0.31, 0.02
    index = np.tile(np.arange(2, dtype=np.int32), (16, 1))
    numbers = {"conv1": {"threshold": np.ones(16), "above": np.full(16, 0.005)}}
    how = "IoU over 99 pictures"
    return LabelsResult(
        origin("dissect"), ("<b>stripe", "dot"), {"conv1": index}, {"conv1": score}, numbers, "IoU", how, 0.04, 99
    )


def description(labels: list[str]) -> dict[str, Any]:
    def layer(path: str, kind: str, shape: list[int], inputs: list[str], **more: Any) -> dict[str, Any]:
        size = FIELDS.get(path)
        view = {"size": [size, size], "stride": [1, 1]} if size else None
        base = {"path": path, "kind": kind, "units": shape[0], "shape": shape, "layout": "NCHW", "alias_of": None}
        return {**base, "receptive_field": view, "parameters": 416 if "conv" in path else 0, "inputs": inputs, **more}

    layers = [
        layer("conv1", "Conv2d", [16, 28, 28], []),
        layer("relu#2", "ReLU", [16, 28, 28], ["conv1"]),
        layer("features.12", "Conv2d", [24, 14, 14], ["relu#2"], parameters=9624),
        layer("drop", "Dropout", [24, 14, 14], ["features.12"], alias_of="features.12"),
        layer(ODD_LAYER, "Add", [3, 14, 14], ["drop", "conv1"]),
        layer("fc", "Linear", [10], [ODD_LAYER], layout="NC", parameters=23530),
    ]
    return {
        "reference": "letters",
        "hash": "c0ffee" * 10,
        "name": "letters",
        "kind": "image",
        "shape": [1, SIDE, SIDE],
        "labels": labels,
        "parameters": 33570,
        "class_layer": "fc",
        "figures": {"accuracy_on_unseen_fonts": 0.9412, "fonts": 812},
        "layers": layers,
    }


def make_atlas(folder: Path, labels: list[str] = HOSTILE, leave_out: tuple[str, ...] = ()) -> Path:
    """An atlas in `folder`; results whose key starts with one of `leave_out` are planned but not stored."""
    truth = [n % 10 for n in range(120)]
    found = survey(len(truth), labels, truth)
    results: dict[str, Result] = {"filters": filters()}
    for path, units in PATHS.items():
        for first in range(0, units, 8):
            for minimize in (False, True):
                key = f"{'sad' if minimize else 'happy'}-{list(PATHS).index(path)}-{first}"
                results[key] = portraits(path, first, min(first + 8, units), minimize, labels)
    results["survey"] = found
    results["weights"] = weights()
    results["words"] = words()
    results["predictions"] = predictions(len(truth), labels, truth, dict(found.names))
    with Atlas.create(folder) as atlas:
        atlas.claim(description(labels))
        atlas.set_meta("data", {"name": "letters sample", "count": 2500, "classes": labels})
        for key, result in results.items():
            if not key.startswith(leave_out or ("\0",)):
                atlas.put(key, result, {"technique": result.kind})
        atlas.set_plan(list(results))
    return folder

"""LIME for pictures against `lime` 0.2.0.1: the same work in less time, and the same stability in fewer samples.

    python benchmarks/lime.py [--quick] [--json] [--model NAME] [--models FOLDER --pictures FOLDER]

**Speed.** `lime` at its defaults (1,000 samples, batches of 10, one label) with a plain PyTorch classifier: pictures to a tensor,
normalised, `no_grad`, softmax. Penlight with the same segments and the very same masks, from the request to the result, copying and
folding the network included. One thread, CPU time, in turns A B A B, medians; the segmentation, which both leave to scikit-image, is
left out of both. The largest difference between their coefficients stands beside the ratio.

**Stability** (with --models and --pictures: it takes a trained network). How alike two repeats rank the segments, by Kendall's tau, for the
class the network finds, as probability, which lime explains, and as score, which Penlight explains by default. For each picture the
network answers a pool of twice lime's samples, drawn as lime draws them, once; lime's two repeats are halves of that pool, parted anew
16 times, and fitted as lime fits. Penlight draws three repeats of its own, of --most samples, by its default sampling; what it would know
after fewer is fitted from the first of them. `samples` is where the mean tau over the pictures reaches lime's, interpolated; `time` is
that of lime's samples over Penlight's at that number, both from the first part, so that setting up is in it, and drawing, fitting and
judging the stability of so many added for Penlight, measured with the network's answers at hand. `with lime's` is the tau
between a repeat of Penlight's of that many samples and one of lime's: if both rank by the same truth, it is lime's own. `stops` is the
number at which Penlight's own rule ends when it is asked for the tau that lime has, and `tau there` what tau the repeats then have.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

import penlight
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.techniques.contract import Request
from penlight.techniques.explain import lime as method
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.features import Features, Masks, cut
from penlight.techniques.explain.lime import Kernel, Lime
from penlight.techniques.explain.sampler import Drawn, Plan, Streams, balanced, batch_size, binomial, collect, stability
from penlight.techniques.explain.surrogate import kendall, ridge

SIDE, SAMPLES, REPEATS, PARTINGS = 224, 1000, 3, 16
GOAL_SPEED, GOAL_STABLE = 2.5, 8.0
READINGS = ("probability", "score")
Numbers = NDArray[np.float64]


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def open_model(name: str, folder: str | None) -> Model:
    """A card of the folder, or the network with random weights."""
    if folder is not None:
        cards = {path.stem.replace("_", ""): path for path in sorted(Path(folder).glob("*.toml"))}
        wanted = name.partition(":")[2].replace("_", "").removesuffix("100")
        found = next((card for stem, card in cards.items() if stem in (wanted, name) or wanted in stem), None)
        if found is None:
            raise SystemExit(f"no card for {name} in {folder}; there are {', '.join(cards)}")
        return penlight.load(found)
    torch.manual_seed(0)
    contract = InputContract("image", (3, SIDE, SIDE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    kind, _, what = name.partition(":")
    if kind == "timm":
        import timm

        return Model(timm.create_model(what, pretrained=False), contract, reference=name)
    from penlight.models.sources.vision import import_torchvision

    return Model(import_torchvision().models.get_model(what, weights=None), contract, reference=name)


def open_pictures(model: Model, folder: str | None, count: int) -> list[NDArray[np.float32]]:
    """(3, H, W) in [0, 1]: pictures of the folder, spread over it, or patches of colour."""
    if folder is None:
        rng = np.random.default_rng(0)
        blocks = rng.random((count, 3, 14, 14)).repeat(16, 2).repeat(16, 3)
        return list(np.clip(blocks + rng.normal(0, 0.03, blocks.shape), 0, 1).astype(np.float32))
    data = open_data(folder, model.contract)
    chosen = np.linspace(0, len(data) - 1, count + 2).astype(int)[1:-1]
    return [data.read(int(n)).astype(np.float32) / 255 for n in chosen]


def classifier(model: Model) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """What a user of `lime` writes."""
    network = model.network.eval()
    mean, std = (torch.from_numpy(part) for part in model.contract.statistics())

    def predict(images: NDArray[Any]) -> NDArray[Any]:
        batch = torch.stack([torch.from_numpy(image.transpose(2, 0, 1)).float().contiguous() for image in images])
        with torch.no_grad():
            return network((batch - mean) / std).softmax(1).numpy()

    return predict


def run_lime(model: Model, picture: NDArray[np.float32], segments: NDArray[Any], samples: int) -> tuple[Any, Any]:
    """(explainer with its masks, explanation) of the `lime` package."""
    from lime import lime_image

    class Noted(lime_image.LimeImageExplainer):
        def data_labels(self, *args: Any, **kwargs: Any) -> Any:
            self.data, self.labels = super().data_labels(*args, **kwargs)
            return self.data, self.labels

    lime_image.tqdm = lambda rows: rows
    explainer = Noted(random_state=0)
    return explainer, explainer.explain_instance(
        np.ascontiguousarray(picture.transpose(1, 2, 0)),
        classifier(model),
        num_samples=samples,
        top_labels=1,
        segmentation_fn=lambda image: segments,
    )


@contextmanager
def given(segments: NDArray[Any], masks: Masks | None) -> Iterator[None]:
    """Penlight with these segments and, if there are some, these draws."""
    from penlight.techniques.explain import features

    cutting, drawing = features.segmented, method.Streams.of
    features.segmented = lambda picture, how: ("quickshift", segments)
    if masks is not None:
        left = iter(masks[1:].astype(bool))
        method.Streams.of = classmethod(lambda cls, *rest: cls(left, left, 1))
    try:
        yield
    finally:
        features.segmented, method.Streams.of = cutting, drawing


def segments_of(model: Model, picture: NDArray[np.float32]) -> NDArray[np.intp]:
    scene = open_scene(Request(model, input=picture))
    return cut(scene, Lime(segments="quickshift")).labels


def speed(model: Model, picture: NDArray[np.float32], samples: int, rounds: int) -> dict[str, Any]:
    """Both on the same picture, segments and masks."""
    cutting, segments = seconds(lambda: segments_of(model, picture))
    run_lime(model, picture, segments, 10)
    theirs, ours, few, difference = [], [], [], 0.0
    small = max(20, samples // 10)
    for _ in range(rounds):
        spent, (explainer, told) = seconds(lambda: run_lime(model, picture, segments, samples))
        theirs.append(spent)
        (label,) = told.top_labels
        request = Request(model, targets=(f"class:{label}",), input=picture)
        with given(segments, explainer.data):
            asked = Lime(sampling="bernoulli", of="probability", samples=samples, segments="quickshift")
            spent, result = seconds(lambda asked=asked, request=request: asked.run(request))
        ours.append(spent)
        with given(segments, explainer.data):
            asked = Lime(sampling="bernoulli", of="probability", samples=small, segments="quickshift")
            few.append(seconds(lambda asked=asked, request=request: asked.run(request))[0])
        expected = np.zeros(int(segments.max()) + 1)
        for part, weight in told.local_exp[label]:
            expected[part] = weight
        difference = max(difference, float(np.abs(result.extras["weights"] - expected).max()))
    lime_s, ours_s, few_s = (statistics.median(times) for times in (theirs, ours, few))
    each = (ours_s - few_s) / (samples - small)
    return {
        "samples": samples,
        "segments": int(segments.max()) + 1,
        "segmentation_s": cutting,
        "lime_s": lime_s,
        "penlight_s": ours_s,
        "penlight_ms_per_sample": 1e3 * each,
        "penlight_fixed_s": few_s - small * each,
        "ratio": lime_s / ours_s,
        "goal": GOAL_SPEED,
        "largest_difference": difference,
        "largest_coefficient": float(np.abs(expected).max()),
    }


class Answers:
    """The network's answers to masks of one picture: probability and score of the class it finds, in one pass."""

    def __init__(self, model: Model, network: torch.nn.Module, picture: NDArray[np.float32]) -> None:
        self.scene = open_scene(Request(model, input=picture))
        self.parts: Features = cut(self.scene, Lime(segments="quickshift"))
        self._network, self._size = network, batch_size(self.scene)

    def __call__(self, masks: Masks) -> dict[str, Numbers]:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(masks), self._size):
                rows.append(self._network(self.parts.apply(masks[start : start + self._size], start)).double())
        scores = torch.cat(rows)
        index = self.scene.aim.index
        return {"probability": scores.softmax(1)[:, index].numpy(), "score": scores[:, index].numpy()}


def lime_fit(masks: Masks, values: Numbers) -> Numbers:
    return ridge(masks, values, Kernel(0.25, False)(masks)).weights


def one_picture(model: Model, network: torch.nn.Module, picture: Any, samples: int, most: int) -> dict[str, Any]:
    """Everything that is drawn for one picture, and what follows from it for both readings."""
    answers = Answers(model, network, picture)
    count = answers.parts.count
    rng = np.random.default_rng(0)
    pool = rng.random((2 * samples, count)) < 0.5
    pool[0] = True
    said = answers(pool)
    runs, heard = [], []
    for repeat in range(REPEATS):
        kept: list[dict[str, Numbers]] = []

        def evaluate(masks: Masks, first: int, kept: list[dict[str, Numbers]] = kept) -> Numbers:
            kept.append(answers(masks))
            return kept[-1]["score"]

        streams = Streams(*(balanced(binomial(count), np.random.default_rng((repeat, n))) for n in (0, 1)))
        fit = lambda masks, values: np.zeros(count)  # noqa: E731
        runs.append(collect(evaluate, np.ones((1, count), bool), streams, fit, Plan(most, 0.8), lambda *_: None))
        heard.append({name: np.concatenate([some[name] for some in kept]) for name in READINGS})
    return {"parts": answers.parts, "pool": pool, "said": said, "runs": runs, "heard": heard}


def compare(found: dict[str, Any], reading: str, samples: int, sizes: list[int]) -> dict[str, Any]:
    """Tau of lime at its samples, and of Penlight at each of `sizes`."""
    pool, values = found["pool"], found["said"][reading]
    rng = np.random.default_rng(1)
    theirs, halves = [], []
    for _ in range(PARTINGS):
        order = rng.permutation(len(pool))
        halves += [lime_fit(pool[some], values[some]) for some in (order[:samples], order[samples:])]
        theirs.append(kendall(*halves[-2:]))
    asked = Lime()

    def fit(masks: Masks, values: Numbers) -> Numbers:
        return asked._fit(found["parts"], masks, values).weights

    ours, near = [], []
    for size in sizes:
        fits = [
            fit(run.masks[:size], heard[reading][:size])
            for run, heard in zip(found["runs"], found["heard"], strict=True)
        ]
        ours.append(float(np.mean([kendall(a, b) for a, b in combinations(fits, 2)])))
        near.append(float(np.mean([kendall(one, half) for one in fits for half in halves])))
    stops, there = stopped(found, reading, float(np.mean(theirs)), sizes, fit)
    return {
        "lime": float(np.mean(theirs)),
        "ours": ours,
        "near": near,
        "stops": stops,
        "there": there,
    }


def stopped(
    found: dict[str, Any], reading: str, wanted: float, sizes: list[int], fit: Callable[[Masks, Numbers], Numbers]
) -> tuple[float, float]:
    """Where our rule ends for this tau, the mean over repeats, and the tau of the repeats there."""
    ends, fits = [], []
    for run, heard in zip(found["runs"], found["heard"], strict=True):
        for size in sizes:
            part = Drawn(run.masks[:size], heard[reading][:size], run.stream[:size], run.block[:size])
            if size == sizes[-1] or (size >= 200 and stability(part, fit) >= wanted):
                ends.append(size)
                fits.append(fit(part.masks, part.values))
                break
    return float(np.mean(ends)), float(np.mean([kendall(a, b) for a, b in combinations(fits, 2)]))


def reached(sizes: list[int], taus: Numbers, wanted: float) -> float | None:
    """The size at which `taus` reaches `wanted`, interpolated."""
    for n in range(len(sizes)):
        if taus[n] >= wanted:
            if n == 0:
                return float(sizes[0])
            share = (wanted - taus[n - 1]) / (taus[n] - taus[n - 1])
            return float(sizes[n - 1] + share * (sizes[n] - sizes[n - 1]))
    return None


def thinking(found: dict[str, Any], size: int) -> float:
    """Seconds that `size` draws take beside the network: drawing, fitting, and looking whether it is stable."""
    run, values, count = found["runs"][0], found["heard"][0]["score"], found["parts"].count
    asked = Lime(samples=size)

    def fit(masks: Masks, values: Numbers) -> Numbers:
        return asked._fit(found["parts"], masks, values).weights

    def work() -> None:
        streams = Streams(*(balanced(binomial(count), np.random.default_rng((0, n))) for n in (0, 1)))
        replay = lambda masks, first: values[first : first + len(masks)]  # noqa: E731
        drawn = collect(replay, np.ones((1, count), bool), streams, fit, Plan(size, 0.8), lambda *_: None)
        assert np.array_equal(drawn.masks[:65], run.masks[:65])
        fit(drawn.masks, drawn.values)

    return statistics.median(seconds(work)[0] for _ in range(3))


def stable(model: Model, pictures: list[Any], samples: int, most: int, cost: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a reading."""
    network = model.prepared()
    sizes = list(range(65, most + 1, 64))
    found = []
    for number, picture in enumerate(pictures):
        found.append(one_picture(model, network, picture, samples, most))
        print(
            f"picture {number + 1} of {len(pictures)}: {found[-1]['parts'].count} segments", file=sys.stderr, flush=True
        )
    rows = []
    for reading in READINGS:
        told = [compare(one, reading, samples, sizes) for one in found]
        mean = {name: np.mean([one[name] for one in told], axis=0) for name in told[0]}
        size = reached(sizes, mean["ours"], float(mean["lime"]))
        spent = beside = None
        if size is not None:
            beside = statistics.mean(thinking(one, round(size)) for one in found)
            spent = cost["penlight_fixed_s"] + size * cost["penlight_ms_per_sample"] / 1e3 + beside
        lime_s = cost["lime_s"] * samples / cost["samples"]
        rows.append(
            {
                "explains": reading,
                "pictures": len(pictures),
                "lime_samples": samples,
                "lime_tau": float(mean["lime"]),
                "penlight_samples": size,
                "tau_with_limes": None if size is None else float(np.interp(size, sizes, mean["near"])),
                "penlight_stops": float(mean["stops"]),
                "penlight_tau_there": float(mean["there"]),
                "tau_by_samples": dict(zip(map(str, sizes), map(float, mean["ours"]), strict=True)),
                "penlight_beside_s": beside,
                "time_ratio": None if spent is None else lime_s / spent,
                "goal": GOAL_STABLE,
            }
        )
    return rows


def told(report: dict[str, Any]) -> None:
    row = report["speed"]
    print(
        f"{report['network']}: {row['samples']} samples, {row['segments']} segments: lime {row['lime_s']:.1f} s, Penlight"
        f" {row['penlight_s']:.1f} s ({row['penlight_fixed_s']:.2f} s set-up, {row['penlight_ms_per_sample']:.1f} ms a sample):"
        f" {row['ratio']:.2f}× (goal {row['goal']}×)"
    )
    print(f"largest difference of coefficients {row['largest_difference']:.1e}, of {row['largest_coefficient']:.3f}")
    for row in report["stability"]:
        head = f"{row['explains']:11} lime {row['lime_samples']} samples tau {row['lime_tau']:.3f};"
        if row["penlight_samples"] is None:
            print(f"{head} not reached in {list(row['tau_by_samples'])[-1]} samples")
            continue
        print(
            f"{head} Penlight after {row['penlight_samples']:.0f} (with lime's {row['tau_with_limes']:.3f}), time {row['time_ratio']:.1f}×"
            f" (goal {row['goal']:.0f}×); stops {row['penlight_stops']:.0f}, tau there {row['penlight_tau_there']:.3f}"
        )
    if not report["stability"]:
        print("stability takes a trained network: --models FOLDER --pictures FOLDER")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="SqueezeNet, fewer samples and pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--model", default="", help="timm:NAME or torchvision:NAME, by default timm:mobilenetv2_100")
    parser.add_argument("--models", help="folder of model cards with trained weights")
    parser.add_argument("--pictures", help="folder of pictures")
    parser.add_argument("--count", type=int, default=10, help="pictures")
    parser.add_argument("--most", type=int, default=705, help="samples of each of Penlight's repeats")
    asked = parser.parse_args()
    here = Path(__file__).resolve().parent  # this file has the name of the package it imports
    sys.path = [place for place in sys.path if Path(place or ".").resolve() != here]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name = asked.model or ("torchvision:squeezenet1_0" if asked.quick else "timm:mobilenetv2_100")
    model = open_model(name, asked.models)
    model.layers  # noqa: B018 - found once a model
    trained = asked.models is not None and asked.pictures is not None
    pictures = open_pictures(model, asked.pictures, (1 if asked.quick else asked.count) if trained else 1)
    cost = speed(model, pictures[0], 60 if asked.quick else SAMPLES, 1 if asked.quick else 2)
    report: dict[str, Any] = {
        "benchmark": "lime",
        "network": name,
        "threads": 1,
        "clock": "process_time",
        "speed": cost,
    }
    samples, most = (100, 129) if asked.quick else (SAMPLES, asked.most)
    report["stability"] = stable(model, pictures, samples, most, cost) if trained else []
    if asked.json:
        print(json.dumps(report))
        return
    told(report)


if __name__ == "__main__":
    main()

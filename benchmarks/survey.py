"""What a survey costs on top of the forward passes it needs.

    python benchmarks/survey.py [--quick] [--json] [--memory] [--networks SqueezeNet,…]

For every convolution of SqueezeNet, GoogLeNet and MobileNetV2 (random weights, random pictures of 224 × 224) the survey keeps the top
9 inputs with positions and all statistics. It is fed uint8 pictures and normalises them itself. The bare pass runs the same network,
folded, channels-last, in inference mode, at its best batch size, on pictures that are normalised already. What is read is each
convolution's output as it is in that network, that is, with its BatchNorm folded in. The survey runs convolutions from packed
weights, the bare pass as PyTorch does. One thread, CPU time, in turns on the same 32 pictures: the bare pass, a survey, one with the
search for twins; medians. `start` is the share in the first blocks, when every input still enters some list; `share` the one
after `warm` pictures, when few do; `long run` the one with the same pictures once more, when none does, as far into a large data set.
`twins` is the one after `warm` pictures with the search for nearly equal pictures on, for which twice as many inputs are kept and those
that enter a list are marked; `whole` the share of a whole survey of 512 pictures as a user starts it, that search, preparing, the first
blocks and the result included, against the bare pass over the same pictures. `duplicates` is the share of the pass in which `diagnose`
reads what its verdicts need, the correlations that show duplicate units included, as for 500 and for 5,000 pictures. The goal with
either search on is .75.
With --memory, the peak that Python and NumPy allocate for 500 and for 5,000 inputs, as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import tracemalloc
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

from penlight.inputs import InputContract
from penlight.models import Model
from penlight.models.places import places
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.contract import Request
from penlight.techniques.diagnose.tally import Census, fitting
from penlight.techniques.survey.lists import RESERVE
from penlight.techniques.survey.stream import Stream
from penlight.techniques.survey.sweep import Sweep
from penlight.techniques.survey.twins import mark

SIDE, BLOCK, TOP = 224, 32, 9
CONTRACT = InputContract("image", (3, SIDE, SIDE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GOALS = {"SqueezeNet": 0.9, "GoogLeNet": 0.9, "MobileNetV2": 0.8}


def build(name: str) -> Model:
    """The network with random weights."""
    torch.manual_seed(0)
    models = import_torchvision().models
    if name == "SqueezeNet":
        return Model(models.squeezenet1_0(weights=None), CONTRACT)
    if name == "GoogLeNet":
        return Model(models.googlenet(weights=None, init_weights=False), CONTRACT)
    import timm

    return Model(timm.create_model("mobilenetv2_100", pretrained=False), CONTRACT)


def pictures(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Noise of random colour and contrast, so that inputs differ in how much they excite."""
    tint = rng.integers(0, 128, (BLOCK, 3, 1, 1), dtype=np.uint8)
    return tint + rng.integers(0, 128, (BLOCK, 3, SIDE, SIDE), dtype=np.uint8)


def bare(network: torch.nn.Module, inputs: torch.Tensor, batch: int) -> None:
    with torch.inference_mode():
        for start in range(0, len(inputs), batch):
            network(inputs[start : start + batch])


def seconds(run: Any, *given: Any) -> float:
    start = time.process_time()
    run(*given)
    return time.process_time() - start


def measure(name: str, warm: int, blocks: int) -> dict[str, Any]:
    """Shares of the bare pass's speed, and both in pictures a second of CPU time."""
    model = build(name)
    layers = {path: layer for path, layer in model.layers.items() if layer.kind in ("Conv2d", "Conv2dSame")}
    network = model.prepared()
    sweep, searching = Sweep(model, network, layers, TOP), Sweep(model, network, layers, RESERVE * TOP)
    rng = np.random.default_rng(0)
    tensor = model.tensor(pictures(rng)).contiguous(memory_format=torch.channels_last)
    trials = {batch: min(seconds(bare, network, tensor, batch) for _ in range(3)) for batch in (1, 2, 4, 8)}
    best = min(trials, key=lambda batch: trials[batch])
    times: list[tuple[float, ...]] = []

    def search(inputs: NDArray[np.uint8], index: range) -> None:
        searching.feed(inputs, index, [None] * BLOCK)
        for entered in searching.tally.entered.tolist():
            mark(inputs[entered - index.start])

    for number in range(warm // BLOCK + blocks):
        inputs = pictures(rng)
        tensor = model.tensor(inputs).contiguous(memory_format=torch.channels_last)
        index = range(number * BLOCK, (number + 1) * BLOCK)
        plain = seconds(bare, network, tensor, best), seconds(sweep.feed, inputs, index, [None] * BLOCK)
        times.append((*plain, seconds(search, inputs, index)))
    count, again = len(times), []
    for number in range(
        count, count + blocks
    ):  # the last pictures once more: nothing enters a list, as far into a large data set
        index = range(number * BLOCK, (number + 1) * BLOCK)
        again.append((seconds(bare, network, tensor, best), seconds(sweep.feed, inputs, index, [None] * BLOCK)))
    steady, start = times[-blocks:], times[: max(1, min(4, warm // BLOCK))]
    alone, surveyed = (BLOCK / statistics.median(pair[i] for pair in steady) for i in (0, 1))
    return {
        "network": name,
        "convolutions": len(layers),
        "units": sum(layer.units for layer in layers.values()),
        "batch": sweep.batch,
        "bare_batch": best,
        "warm": len(times) * BLOCK - blocks * BLOCK,
        "bare_per_s": round(alone, 1),
        "survey_per_s": round(surveyed, 1),
        "start": round(statistics.median(a / b for a, b, _ in start), 3),
        "share": round(statistics.median(a / b for a, b, _ in steady), 3),
        "long_run": round(statistics.median(a / b for a, b in again), 3),
        "goal": GOALS[name],
        "twins": round(statistics.median(a / c for a, _, c in steady), 3),
    }


def census(name: str, inputs: int, rounds: int) -> float:
    """Share of the bare pass's speed that the reading for a diagnosis of so many inputs keeps, over all turns.

    Not a median: the products of what was sampled are made once in some turns, which a median would leave out.
    """
    model, rng = Model(build(name).prepared(), CONTRACT), np.random.default_rng(2)
    network, given = model.prepared(), pictures(rng)
    paths = [path for path, layer in model.layers.items() if layer.kind in ("Conv2d", "Conv2dSame")]
    seen = places(model, paths, network)
    batch, counted = fitting(model, seen), Census(model, network, seen, inputs, 0)
    tensor = model.tensor(given).contiguous(memory_format=torch.channels_last)
    trials = {size: min(seconds(bare, network, tensor, size) for _ in range(3)) for size in (1, 2, 4, 8)}
    best = min(trials, key=lambda size: trials[size])

    def feed() -> None:
        counted.feed([given[start : start + batch] for start in range(0, BLOCK, batch)])

    feed()
    turns = [(seconds(bare, network, tensor, best), seconds(feed)) for _ in range(rounds)]
    return round(sum(alone for alone, _ in turns) / sum(counted for _, counted in turns), 3)


class Held:
    """Pictures in memory, so that reading costs nothing."""

    name, classes = "pictures", ()

    def __init__(self, inputs: NDArray[np.uint8]) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def label(self, index: int) -> tuple[str, int | None]:
        return f"picture {index}", None

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._inputs[index]

    def fingerprint(self) -> str:
        return f"held-{len(self._inputs)}"


def whole(name: str, count: int, rounds: int) -> float:
    """Share of the bare pass's speed that a whole survey with the search for twins keeps; medians of turns."""
    rng = np.random.default_rng(1)
    model = Model(
        build(name).prepared(), CONTRACT
    )  # whose convolutions put out, when surveyed too, what the bare pass computes
    inputs = np.concatenate([pictures(rng) for _ in range(count // BLOCK)])
    layers = [path for path, layer in model.layers.items() if layer.kind in ("Conv2d", "Conv2dSame")]
    network, data = model.prepared(), Held(inputs)
    tensor = model.tensor(inputs).contiguous(memory_format=torch.channels_last)
    trials = {batch: seconds(bare, network, tensor[:BLOCK], batch) for batch in (1, 2, 4, 8)}
    best = min(trials, key=lambda batch: trials[batch])
    request = Request(model, layers=layers, data=data)
    shares = []
    for _ in range(rounds):
        alone = seconds(bare, network, tensor, best)
        shares.append(alone / seconds(Stream(top=TOP).run, request))
    return round(statistics.median(shares), 3)


class Noise:
    """A data set of any length that holds nothing."""

    name, classes = "noise", ()

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def label(self, index: int) -> tuple[str, int | None]:
        return f"noise[{index}]", None

    def read(self, index: int) -> NDArray[np.uint8]:
        return np.random.default_rng(index).integers(0, 256, (3, 32, 32), dtype=np.uint8)

    def fingerprint(self) -> str:
        return f"noise-{self._count}"


def memory(counts: tuple[int, ...]) -> dict[str, float]:
    """Peak of a survey of SqueezeNet at 32 px by number of inputs, in MB that Python and NumPy allocated."""
    contract = InputContract("image", (3, 32, 32))
    model = Model(import_torchvision().models.squeezenet1_0(weights=None), contract)
    Stream(top=TOP).run(Request(model, data=Noise(8)))
    peaks = {}
    for count in counts:
        data: Any = Noise(count)
        tracemalloc.start()
        Stream(top=TOP).run(Request(model, data=data))
        peaks[str(count)] = round(tracemalloc.get_traced_memory()[1] / 1e6, 2)
        tracemalloc.stop()
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--networks", default=",".join(GOALS), help="some of SqueezeNet, GoogLeNet, MobileNetV2, with commas between"
    )
    parser.add_argument("--memory", action="store_true", help="measure the peak memory by number of inputs as well")
    given = parser.parse_args()
    names = given.networks.split(",")
    if unknown := [name for name in names if name not in GOALS]:
        parser.error(f"no network {unknown[0]!r}; give some of {', '.join(GOALS)}")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warm, blocks = (256, 5) if given.quick else (768, 9)
    report: dict[str, Any] = {"benchmark": "survey", "networks": [measure(name, warm, blocks) for name in names]}
    for row in report["networks"]:
        row["whole"] = whole(row["network"], 64 if given.quick else 512, 1 if given.quick else 3)
        row["duplicates"] = {count: census(row["network"], count, 4 if given.quick else 16) for count in (500, 5000)}
    if given.memory:
        report["peak_mb"] = memory((100, 400) if given.quick else (500, 5000))
    if given.json:
        print(json.dumps(report))
        return
    print(
        f"{'network':12} {'units':>6} {'bare/s':>8} {'survey/s':>9} {'start':>6} {'share':>6} {'long run':>8} {'goal':>5}"
        f" {'twins':>6} {'whole':>6} {'duplicates':>10}"
    )
    for row in report["networks"]:
        print(
            f"{row['network']:12} {row['units']:6} {row['bare_per_s']:8.1f} {row['survey_per_s']:9.1f}"
            f" {row['start']:6.2f} {row['share']:6.2f} {row['long_run']:8.2f} {row['goal']:5.2f} {row['twins']:6.2f} {row['whole']:6.2f}"
            f" {' '.join(f'{share:.2f}' for share in row['duplicates'].values()):>10}"
        )
    for count, peak in report.get("peak_mb", {}).items():
        print(f"peak memory with {count} inputs: {peak} MB")


if __name__ == "__main__":
    main()

"""What an occlusion map costs, against Captum's.

    python benchmarks/occlusion.py [--quick] [--json] [--whole] [--networks VGG-16,GoogLeNet]

A map of one class score of VGG-16, GoogLeNet, SqueezeNet and MobileNetV2 (random weights, one random picture of 224 × 224) with windows
of 32 every 8 pixels (625 positions) and of 16 every 4 (2,809), filled with zeros. One thread, CPU time, in turns: Captum with 1, 4 and
16 positions a pass, Penlight, Captum, …; medians. Penlight's time is that of the whole map, with what comes before each: preparing the
network, the clean pass, the comparison with full passes. What is done once when a network is opened (its layers, its hash) is not in it.

Captum runs one full pass a position, whose cost depends neither on where the window is nor on its size, so by default it is timed on
fewer positions: windows of 32 every 32 pixels, 49 positions and the pass without a window, and its time for the map is the time of
one evaluation times the number of positions. With --whole it runs all of them. `ratio` is against its default of one position a pass,
`best` against the best of 1, 4 and 16 positions a pass.

`difference` is the largest between the two maps on windows that both evaluate (32 every 32, or the whole map with --whole);
`sample` the largest between incremental and full passes of Penlight at 16 random positions; `of` the range of the values in that sample.
`work` is the share of the full passes' multiply-adds that was done, and `peak` the memory of a fresh process that loads the network and
makes such a map, in MiB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from penlight.inputs import InputContract
from penlight.models import Model
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.contract import Request
from penlight.techniques.explain.explanation import open_scene
from penlight.techniques.explain.occlusion import Occlusion
from penlight.techniques.explain.occlusion_passes import Cover, Passes

SIDE, CLASS, COARSE = 224, 3, 32
CONTRACT = InputContract("image", (3, SIDE, SIDE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GOALS = {"VGG-16": (8, 10), "GoogLeNet": (5, 5), "SqueezeNet": (5, 5), "MobileNetV2": (4, 4)}
WINDOWS = ((32, 8), (16, 4))
EACH = (1, 4, 16)  # positions that Captum evaluates at once; the first is its default


def build(name: str) -> Model:
    """The network with random weights, scaled so that the input still shows in the output."""
    torch.manual_seed(0)
    models = import_torchvision().models
    if name == "MobileNetV2":
        import timm

        network = timm.create_model("mobilenetv2_100", pretrained=False)
    elif name == "GoogLeNet":
        network = models.googlenet(weights=None, init_weights=False)
    else:
        network = {"VGG-16": models.vgg16, "SqueezeNet": models.squeezenet1_0}[name](weights=None)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    model = Model(network.eval(), CONTRACT)
    assert model.layers
    assert model.hash
    return model


def picture() -> np.ndarray[Any, Any]:
    """Blocks of random colours under noise, so that places differ."""
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.random((3, 14, 14), np.float32), np.ones((1, 16, 16), np.float32))
    return np.clip(0.8 * blocks + 0.2 * rng.random((3, SIDE, SIDE), np.float32), 0, 1).astype(np.float32)


def ours(model: Model, window: int, stride: int) -> tuple[float, Any]:
    """CPU seconds of a map, and the map."""
    method = Occlusion(window=str(window), stride=str(stride))
    start = time.process_time()
    found = method.run(Request(model, input=picture(), targets=[f"class:{CLASS}"]))
    return time.process_time() - start, found


def theirs(model: Model, window: int, stride: int, each: int) -> tuple[float, Any]:
    """CPU seconds of Captum's map, and the map."""
    from captum.attr import Occlusion as Captum

    x, method = model.tensor(picture()[None]), Captum(model.network)
    start = time.process_time()
    with torch.no_grad():
        found = method.attribute(x, (3, window, window), (3, stride, stride), target=CLASS, perturbations_per_eval=each)
    return time.process_time() - start, found[0].numpy()


def positions(window: int, stride: int) -> int:
    return (-(-(SIDE - window) // stride) + 1) ** 2


def sample(model: Model, window: int, stride: int) -> tuple[float, float]:
    """The largest difference between incremental and full passes at 16 random positions, and the values' range there."""
    scene = open_scene(Request(model, input=picture(), targets=[f"class:{CLASS}"]))
    rng = np.random.default_rng(1)
    places = rng.integers(0, (SIDE - window) // stride + 1, (16, 2)) * stride
    covers = [Cover(int(row), int(column), window, window) for row, column in places]
    quick, slow = (Passes(scene, torch.zeros_like(scene.x), which) for which in (True, False))
    with torch.no_grad():
        got, wanted = quick.values(covers, lambda count: None), slow.values(covers, lambda count: None)
    return float((got - wanted).abs().max()), float(wanted.max() - wanted.min())


def measure(name: str, window: int, stride: int, goal: float, rounds: int, whole: bool) -> dict[str, Any]:
    """One row of the table."""
    model = build(name)
    count = positions(window, stride)
    against = (window, stride) if whole else (COARSE, COARSE)
    evaluations = positions(*against) + 1
    mine: list[float] = []
    peer: dict[int, list[float]] = {each: [] for each in EACH}
    for _ in range(rounds):
        for each in EACH:
            seconds, map_ = theirs(model, *against, each)
            peer[each].append(seconds / evaluations * (count + 1))
        seconds, found = ours(model, window, stride)
        mine.append(seconds)
    difference = float(np.abs((found if whole else ours(model, *against)[1]).values - map_).max())
    apart, spread = sample(model, window, stride)
    ratios = {each: statistics.median(a / b for a, b in zip(peer[each], mine, strict=True)) for each in EACH}
    return {
        "network": name,
        "window": window,
        "stride": stride,
        "positions": count,
        "captum_ms": round(1e3 * statistics.median(peer[EACH[0]]) / (count + 1), 1),
        "penlight_ms": round(1e3 * statistics.median(mine) / count, 2),
        "ratio": round(ratios[EACH[0]], 2),
        "best": round(min(ratios.values()), 2),
        "goal": goal,
        "difference": difference,
        "sample": apart,
        "of": spread,
        "work": found.evidence["share of full work"],
        "inference": found.evidence["inference"],
        "peak_mib": peak(name, window, stride),
    }


def peak(name: str, window: int, stride: int) -> int:
    """Of a fresh process that makes one map; a coarser one, as batches are the same."""
    command = [sys.executable, __file__, "--alone", f"{name},{window},{2 * stride}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def alone(name: str, window: str, stride: str) -> None:
    ours(build(name), int(window), int(stride))
    lines = (
        Path("/proc/self/status").read_text("ascii").splitlines()
    )  # getrusage would tell the parent's if that is larger
    print(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, windows of 32 only")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--whole", action="store_true", help="Captum runs every position")
    parser.add_argument("--networks", default=",".join(GOALS), help="names, with commas between them")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if given.alone:
        return alone(*given.alone.split(","))
    rounds = 1 if given.quick else 5
    rows = [
        measure(name, window, stride, GOALS[name][number], rounds, given.whole)
        for name in given.networks.split(",")
        for number, (window, stride) in enumerate(WINDOWS[:1] if given.quick else WINDOWS)
    ]
    if given.json:
        print(json.dumps({"benchmark": "occlusion", "rows": rows}))
        return None
    print(
        f"{'network':12} {'window':>7} {'captum ms':>9} {'penlight':>8} {'ratio':>6} {'best':>6} {'goal':>4} {'difference':>10}"
        f" {'sample':>8} {'of':>8} {'work':>5} {'peak':>5}"
    )
    for row in rows:
        size = f"{row['window']}/{row['stride']}"
        print(
            f"{row['network']:12} {size:>7} {row['captum_ms']:9.1f} {row['penlight_ms']:8.2f} {row['ratio']:6.2f} {row['best']:6.2f}"
            f" {row['goal']:4} {row['difference']:10.1e} {row['sample']:8.1e} {row['of']:8.1e} {row['work']:5.2f} {row['peak_mib']:5}"
        )
    return None


if __name__ == "__main__":
    main()

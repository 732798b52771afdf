"""Whether a diagnosis is right, and what silencing every unit costs.

    python benchmarks/diagnose.py [--quick] [--json] [--model CARD.toml] [--pictures FOLDER]

planted    precision and recall of the verdicts on networks into which faulty units were written (`tests/reference/planted.py`)
singles    the effect on loss of silencing every channel of one layer alone, for 100 pictures: one fast pass against a forward hook and a
           whole pass for each channel. By default SqueezeNet's twelfth feature layer, random weights and pictures. Both sides run the same
           prepared network at their best batch size, one thread, CPU time, in turns; the loop does `--channels` of the channels, and its
           time is taken times their share. `largest difference` is of the loss, over these channels and all pictures.
estimates  what single units cost, estimated from gradients, against taking each away: Spearman's rank correlation a layer, and the ratio
           of their CPU times. On `letters` (200 inputs), against the labels and against its own answers; with --model and --pictures on
           that network's --layer too (20 pictures, against its own answers)
letters    the verdicts on the trained specimen against exhaustive ablation: every flagged unit and every other unit, on all its data
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

import penlight
from penlight.api import find_data
from penlight.inputs import InputContract, open_data
from penlight.models import Model
from penlight.models.places import places
from penlight.models.probe import first_tensor
from penlight.models.sources.vision import import_torchvision
from penlight.techniques.contract import Request
from penlight.techniques.diagnose.ablation import Bench, Truth
from penlight.techniques.diagnose.estimate import estimated
from penlight.techniques.diagnose.examination import Examination
from penlight.techniques.diagnose.health import Health
from penlight.techniques.options import build

sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "reference")]
CONTRACT = InputContract("image", (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
LAYER, BLOCK = "features.12", 10


def on_planted(seeds: int) -> list[dict[str, Any]]:
    """Verdicts found, missing and false on every planted network."""
    from planted import NETWORKS, planted

    rows = []
    for name, (_, _, layers) in NETWORKS.items():
        hits = false = missing = 0
        for seed in range(seeds):
            model, data, expected = planted(name, seed)
            health = build(Health, {"tested": 20, "tried": 20, "draws": 100})
            found = health.run(Request(model, layers=layers, data=data)).verdicts  # type: ignore[attr-defined]
            told = {(unit, verdict) for unit, verdicts in found.items() for verdict in verdicts}
            true = {(unit, verdict) for unit, verdicts in expected.items() for verdict in verdicts}
            hits, false, missing = hits + len(told & true), false + len(told - true), missing + len(true - told)
        rows.append(
            {
                "network": name,
                "planted": hits + missing,
                "precision": hits / max(hits + false, 1),
                "recall": hits / max(hits + missing, 1),
            }
        )
    return rows


def alone(network: torch.nn.Module, path: str, channel: int, x: torch.Tensor) -> torch.Tensor:
    """Scores with one channel zeroed by a forward hook."""

    def silence(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, channel] = 0
        return changed

    handle = network.get_submodule(path).register_forward_hook(silence)
    scores = first_tensor(network(x))
    handle.remove()
    assert scores is not None
    return scores


def on_singles(model: Model, path: str, pictures: NDArray[Any], channels: int) -> dict[str, Any]:
    """Both ways on blocks of pictures, in turns."""
    network = model.prepared(keep=[path])
    bench = Bench(model, network, places(model, [path], network), Truth(None))
    count = model.layers[path].units
    some = np.linspace(0, count - 1, channels).astype(int).tolist()
    with torch.inference_mode():
        batch = min(
            (1, 2, 5, 10), key=lambda n: _seconds(lambda: [network(model.tensor(pictures[:n])) for _ in range(10 // n)])
        )
    fast = slow = worst = effect = 0.0
    for start in range(0, len(pictures), BLOCK):
        block = pictures[start : start + BLOCK]
        begun = time.process_time()
        found = bench.singles(path, block, [None] * len(block), None)
        fast += time.process_time() - begun
        begun = time.process_time()
        losses = np.empty((len(some), len(block)))
        with torch.inference_mode():
            for first in range(0, len(block), batch):
                x = model.tensor(block[first : first + batch])
                whole = bench.scores(x)
                for n, channel in enumerate(some):
                    losses[n, first : first + batch] = bench.judged(alone(network, path, channel, x), whole, [])[0]
                base = bench.judged(whole, whole, [])[0]
                effect = max(effect, float(np.abs(losses[:, first : first + batch] - base).max()))
        slow += (time.process_time() - begun) * count / len(some)
        worst = max(worst, float(np.abs(found[some, 0] - losses).max()))
    return {
        "layer": path,
        "channels": count,
        "pictures": len(pictures),
        "loop_batch": batch,
        "loop_seconds": round(slow, 1),
        "pass_seconds": round(fast, 1),
        "ratio": round(slow / fast, 1),
        "largest_difference": worst,
        "largest_effect": effect,
        "one_at_a_time": sorted(bench.slow),
    }


def _seconds(run: Any) -> float:
    run()
    begun = time.process_time()
    run()
    return time.process_time() - begun


def on_letters(limit: int) -> dict[str, Any]:
    """Single units by exhaustive ablation on all data, flagged and not; and the sets that can go."""
    model = penlight.load("letters")
    data = find_data(model, None)
    if limit:
        data = open_data([(data.read(n), data.label(n)[1]) for n in range(limit)], model.contract, model.labels)
    result = build(Health, {"tried": len(data), "tested": len(data), "effort": 0.0}).run(Request(model, data=data))
    rows = []
    for path, effect in result.ablation.items():  # type: ignore[attr-defined]
        flagged = result.flagged(path)  # type: ignore[attr-defined]
        harmless = np.flatnonzero(effect[:, 1] >= -0.0005)
        rows.append(
            {
                "layer": path,
                "units": len(effect),
                "flagged": list(flagged),
                "flagged_loss": [round(float(effect[u, 0]), 5) for u in flagged],
                "flagged_accuracy": [round(float(effect[u, 1]), 5) for u in flagged],
                "median_loss": round(float(np.median(effect[:, 0])), 5),
                "harmless_alone": len(harmless),
                "can_go": len(result.layers[path].removable),  # type: ignore[attr-defined]
            }
        )
    removals = [f"{one.why}, {one.how}: {one.text()}" for one in result.removals]  # type: ignore[attr-defined]
    return {"inputs": result.inputs, "layers": rows, "removals": removals}  # type: ignore[attr-defined]


def on_estimates(model: Model, data: Any, layers: tuple[str, ...], count: int, labels: bool) -> list[dict[str, Any]]:
    """A row a layer."""
    run = Examination(Health(), Request(model, data=data, layers=layers), data)
    if not labels:
        run._bench.truth = Truth(None)
    inputs, classes = run._held(count)
    rows = []
    for path in run._places:
        begun = time.process_time()
        base = run._bench.measure(inputs, classes, [])[0]
        real = (run._bench.singles(path, inputs, classes, None) - base)[:, 0].mean(1)
        middle = time.process_time()
        told = estimated(run._bench, [path], inputs, classes, {}, 0)[path][:, 0]
        ratio = (middle - begun) / (time.process_time() - middle)
        against = "labels" if labels else "own answers"
        same = float(spearmanr(real, told)[0])
        rows.append(
            {"layer": path, "against": against, "units": len(real), "rank_correlation": same, "time_ratio": ratio}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer seeds, pictures and channels")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--model", help="reference of a trained network for the second part")
    parser.add_argument("--layer", default=LAYER, help="its layer")
    parser.add_argument("--pictures", help="folder of pictures for it")
    parser.add_argument("--channels", type=int, default=32, help="channels that the loop does")
    parser.add_argument("--parts", default="planted,singles,estimates,letters", help="what to run")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    parts, report = given.parts.split(","), dict[str, Any]()
    if "planted" in parts:
        report["planted"] = on_planted(1 if given.quick else 5)
    if "singles" in parts:
        torch.manual_seed(0)
        model = (
            penlight.load(given.model)
            if given.model
            else Model(import_torchvision().models.squeezenet1_0(weights=None), CONTRACT)
        )
        count = 10 if given.quick else 100
        if given.pictures:
            found = open_data(given.pictures, model.contract)
            pictures = np.stack([found.read(n) for n in range(min(count, len(found)))])
        else:
            pictures = np.random.default_rng(0).integers(0, 256, (count, *model.contract.shape), dtype=np.uint8)
        report["singles"] = on_singles(model, given.layer, pictures, 4 if given.quick else given.channels)
    if "estimates" in parts:
        small, count = penlight.load("letters"), 60 if given.quick else 200
        own = find_data(small, None)
        report["estimates"] = [row for labels in (True, False) for row in on_estimates(small, own, (), count, labels)]
        if given.model and given.pictures:
            trained = penlight.load(given.model)
            some = open_data(given.pictures, trained.contract)
            report["estimates"] += on_estimates(trained, some, (given.layer,), 20, False)
    if "letters" in parts:
        report["letters"] = on_letters(200 if given.quick else 0)
    if given.json:
        print(json.dumps(report))
        return
    for row in report.get("planted", []):
        print(
            f"{row['network']:10} {row['planted']:4} planted  precision {row['precision']:.3f}  recall {row['recall']:.3f}"
        )
    if "singles" in report:
        print(*(f"{key} {value}" for key, value in report["singles"].items()), sep="\n")
    for row in report.get("estimates", []):
        print(
            f"{row['layer']:24} {row['units']:4} units, against {row['against']:11}: rank correlation {row['rank_correlation']:.2f},"
            f" {row['time_ratio']:.0f}x as fast"
        )
    for row in report.get("letters", {}).get("layers", []):
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")
    print(*report.get("letters", {}).get("removals", []), sep="\n")


if __name__ == "__main__":
    main()

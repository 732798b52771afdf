"""Units rendered in an hour: Penlight's default method against Lucent 0.1.8 (`pip install torch-lucent`).

    python benchmarks/visualize.py [--quick] [--json] [--layers TEXT …]

The same network with random weights, the same layer, pictures of 128 pixels, the same number of steps (each a forward and a backward
pass), one thread, CPU time, A B A B in one process. Lucent is timed on a few steps after a warm-up and scaled: it has no cost a picture.
Penlight renders a batch of units from start to end, so setting up (copying and folding the network) and measuring the finished pictures
are included; the receptive fields, found once a model, are shown on their own. Lucent runs as published; nothing of it is patched:
on a machine with CUDA its transforms go there, so this benchmark hides CUDA. Where Penlight's input rule applies, its pictures are those
of the receptive field, not 128 pixels: that is the point of the rule, and the row says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from penlight.inputs import InputContract
from penlight.models import Model, Probe
from penlight.techniques.contract import Request
from penlight.techniques.visualize.method import Penlight
from penlight.techniques.visualize.render import jobs, one_cone
from penlight.techniques.visualize.scene import Optics, Wish
from penlight.techniques.visualize.targets import read_targets
from penlight.units import Unit

SIZE, LUCENT_STEPS = 128, 512
GOAL_LARGE, GOAL_SMALL, SMALL = 8.0, 60.0, 50
IMAGENET = InputContract("image", (3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
ROWS = (
    ("squeezenet", "features.5"),
    ("squeezenet", "features.12"),
    ("googlenet", "inception3a"),
    ("googlenet", "inception4c"),
    ("googlenet", "inception5b"),
    ("mobilenetv2", "blocks.4"),
)


def network(name: str) -> nn.Module:
    """The network with random weights; BatchNorm statistics as at the start."""
    from penlight.models.sources.vision import import_torchvision

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "mobilenetv2":
            import timm

            return timm.create_model("mobilenetv2_100", pretrained=False).eval()
        models = import_torchvision().models
        if name == "googlenet":
            return models.googlenet(weights=None, aux_logits=False, init_weights=False).eval()
        return models.squeezenet1_0(weights=None).eval()


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def lucent(net: nn.Module, layer: str, unit: int, steps: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lucent.optvis import objectives, param, render

    objective = objectives.channel(layer.replace(".", "_"), unit)
    render.render_vis(
        net, objective, lambda: param.image(SIZE), thresholds=(steps,), show_image=False, progress=False, verbose=False
    )  # fmt: skip


def matrix_rate() -> float:
    """Floating-point operations a second of a large matrix product on this thread, the best of a few."""
    a, b = torch.rand(1024, 1024), torch.rand(1024, 1024)
    torch.mm(a, b)
    return max(2 * 1024**3 * 8 / seconds(lambda: [torch.mm(a, b) for _ in range(8)]) for _ in range(3))


def operations(model: Model, layer: str, method: Penlight) -> float:
    """Floating-point operations that one step of one picture cannot do without: convolutions and matrix products, both ways.

    Counted on the network as it is optimised (folded, cut after the layer, of small inputs only what the neuron sees) at the size it
    looks at; the gradient of the pictures alone, as no weight changes.
    """
    optics = Optics.of(model)
    (job,) = jobs(
        model, read_targets(model, [f"{layer}:0"], "neuron"), optics, Wish(method.size, windows=True), "neuron"
    )
    x = torch.rand(1, 3, *job.scene.view, requires_grad=True)
    found: list[torch.Tensor] = []
    seen = one_cone(job, optics, job.objective([(job.targets[0], 0)], x.device), {})
    with FlopCounterMode(display=False) as counter:
        with Probe(job.network if seen is None else seen.network, {layer: found.append}) as probe:
            probe(x)
        found[0].sum().backward()
    return float(counter.get_total_flops())


def compare(name: str, layer: str, quick: bool) -> dict[str, Any]:
    """One row: seconds a unit at Lucent's number of steps, Penlight's share of set-up, and the ratio."""
    ours, theirs = network(name), network(name)
    model = Model(ours, IMAGENET, reference=name)
    fields = seconds(lambda: model.lines)
    field = model.fields[layer]
    small = field is not None and max(field.size) < SMALL
    units = [Unit(layer, index) for index in range(16 if quick else 32)]
    steps = (32 if small else 8) if quick else (LUCENT_STEPS if small else 64)
    few = 2 if quick else 8
    made: list[Any] = []

    def mine(count: int) -> float:
        # size 128 where the canvas is large; the rule's own canvas where it is small
        method = Penlight(steps=count, size=0 if small else SIZE)
        return seconds(lambda: made.append(method.run(Request(model, units))))

    mine(1), lucent(theirs, layer, 0, 1)  # warm-up
    their_step, fixed, total = [], [], []
    for round_ in range(2 if quick else 3):
        their_step.append(seconds(lambda round_=round_: lucent(theirs, layer, round_, few)) / few)  # type: ignore[misc]
        fixed.append(mine(1))
        total.append(mine(steps))
    step = (statistics.median(total) - statistics.median(fixed)) / (steps - 1) / len(units)
    once = (statistics.median(fixed) - step * len(units)) / len(units)
    unit = once + step * LUCENT_STEPS
    other = statistics.median(their_step) * LUCENT_STEPS
    share = operations(model, layer, Penlight(size=0 if small else SIZE)) / step / matrix_rate()
    return {
        "network": name,
        "layer": layer,
        "receptive_field": None if field is None else max(field.size),
        "picture": list(made[-1].images.shape[2:4]),
        "units_at_once": len(units),
        "steps": LUCENT_STEPS,
        "lucent_ms_per_step": 1e3 * other / LUCENT_STEPS,
        "penlight_ms_per_step": 1e3 * step,
        "penlight_fixed_s_per_unit": once,
        "receptive_fields_s_per_model": fields,
        "lucent_units_per_hour": 3600 / other,
        "penlight_units_per_hour": 3600 / unit,
        "share_of_matrix_rate": share,
        "ratio": other / unit,
        "goal": GOAL_SMALL if small else GOAL_LARGE,
        "reached": other / unit >= (GOAL_SMALL if small else GOAL_LARGE),
    }


def equal_recognition(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds a class picture that Penlight's default needs until another network recognises its pictures as often as Lucent's.

    Lucent at its defaults, 512 steps; both on the trained network of a card, judged by the other cards (`recognition.py`).
    """
    import recognition

    asked = ["--models", given.models, "--data", given.data, "--classes", str(given.classes), "--lucent-prepared"]
    asked += ["--seeds", "1", *(["--cache", given.cache] if given.cache else []), *(["--quick"] if given.quick else [])]
    bench = recognition.Bench(recognition.parse(asked))
    lucent = bench.lucent()
    return {**bench.race(lucent), "lucent_seconds": lucent.seconds, "classes": len(bench.classes), "goal": 10}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Units rendered in an hour, Penlight and Lucent.")
    parser.add_argument("--race", action="store_true", help="time to equal recognition as well; see recognition.py")
    parser.add_argument("--models", default="../shared/models", help="of --race: folder of cards")
    parser.add_argument("--data", default="../shared/data/imagenet-sample", help="of --race: folder of photographs")
    parser.add_argument("--classes", type=int, default=12, help="of --race: how many random classes")
    parser.add_argument("--cache", default="", help="of --race: keeps Lucent's pictures")
    parser.add_argument("--quick", action="store_true", help="fewer steps and units; a few minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--layers", nargs="*", default=[], help="only rows whose 'network:layer' contains one of these")
    given = parser.parse_args(arguments)
    try:
        import lucent as _  # noqa: F401
    except ImportError:
        parser.error("Lucent is not installed; pip install torch-lucent==0.1.8")
    torch.set_num_threads(1)
    rows = []
    if not given.json:
        print(
            f"{'network':12} {'layer':12} {'field':>5} {'picture':>9} {'Lucent/h':>9} {'Penlight/h':>10} {'ratio':>7}"
            f"  {'goal':>4} {'rate':>5}"
        )
    for name, layer in ROWS:
        if given.layers and not any(text in f"{name}:{layer}" for text in given.layers):
            continue
        row = compare(name, layer, given.quick)
        rows.append(row)
        if not given.json:
            size = "×".join(map(str, row["picture"]))
            print(
                f"{name:12} {layer:12} {row['receptive_field'] or 'all':>5} {size:>9} {row['lucent_units_per_hour']:9.1f}"
                f" {row['penlight_units_per_hour']:10.1f} {row['ratio']:6.1f}×"
                f"  {row['goal']:3.0f}× {row['share_of_matrix_rate']:5.2f}"
                f"  ({row['penlight_ms_per_step']:.2f} ms a step, {row['penlight_fixed_s_per_unit']:.3f} s a unit besides)",
                flush=True,
            )
    race = equal_recognition(given) if given.race else None
    if given.json:
        told = {"benchmark": "visualize", "threads": 1, "clock": "process_time", "rows": rows, "race": race}
        json.dump(told, sys.stdout, indent=1)
        print()
    elif race is not None and race["seconds"] is None:
        print(f"time to equal recognition: not reached in {race['tried'][-1]['steps']} steps")
    elif race is not None:
        print(
            f"time to equal recognition, {race['classes']} classes: Lucent {race['lucent_seconds']:.1f} s a picture,"
            f" Penlight {race['seconds']:.1f} s ({race['steps']} steps), {race['ratio']:.1f}× (goal {race['goal']}×)"
        )


if __name__ == "__main__":
    main()

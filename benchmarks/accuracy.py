"""How often a network is right on labelled pictures, class by class: `letters` on notMNIST, above all.

    python benchmarks/accuracy.py letters notMNIST_small          # the archive's own folders A to J
    python benchmarks/accuracy.py [--quick] [--json] MODEL DATA

DATA is a folder with a subfolder for each class, or an .npz with `images` and `labels`; by default what the specimen brings. Pictures
are prepared as every verb does it. `interval` is Wilson's, 95 %. Pictures that cannot be read (notMNIST has two) are counted, not judged.
--quick takes 500 of them, spread over the classes.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import penlight
from penlight.api.opening import find_data
from penlight.inputs.data import batches, pick
from penlight.techniques.diagnose.ablation import find_truth


def wilson(right: int, asked: int) -> tuple[float, float]:
    """Bounds of the share, 95 %."""
    if not asked:
        return 0.0, 1.0
    z, share = 1.959964, right / asked
    middle = share + z * z / (2 * asked)
    spread = z * ((share * (1 - share) + z * z / (4 * asked)) / asked) ** 0.5
    scale = 1 + z * z / asked
    return (middle - spread) / scale, (middle + spread) / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="letters", metavar="MODEL")
    parser.add_argument("data", nargs="?", metavar="DATA", help="a folder with a subfolder a class, or an .npz")
    parser.add_argument("--quick", action="store_true", help="500 pictures at most")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = penlight.load(given.model)
    data = find_data(model, given.data)
    if given.quick:
        data = pick(data, range(0, len(data), max(1, -(-len(data) // 500))))
    truth = find_truth(model, data)
    if truth.classes is None:
        parser.error(truth.note or f"{data.name} has no classes: give a folder with a subfolder for each")
    asked: Counter[int] = Counter()
    right: Counter[int] = Counter()
    unread = 0
    for batch in batches(data, 64):
        unread += len(batch.skipped)
        if not batch.index:
            continue
        answers = model.probabilities(batch.inputs).argmax(1).tolist()
        for kind, answer in zip(batch.classes, answers, strict=True):
            if kind is not None:
                asked[kind] += 1
                right[kind] += answer == int(truth.classes[kind])
    rows = [
        {"class": name, "pictures": asked[kind], "right": right[kind], "interval": wilson(right[kind], asked[kind])}
        for kind, name in enumerate(data.classes)
    ]
    whole = {"class": "all", "pictures": asked.total(), "right": right.total()}
    rows.append({**whole, "interval": wilson(right.total(), asked.total())})
    if given.json:
        print(json.dumps({"benchmark": "accuracy", "data": data.name, "rows": rows, "unread": unread}))
        return
    print(f"{'class':>12} {'pictures':>8} {'right':>7} {'share':>6}  interval")
    for row in rows:
        (low, high), share = row["interval"], row["right"] / max(1, row["pictures"])
        print(f"{row['class']:>12} {row['pictures']:8} {row['right']:7} {share:6.1%}  {low:.1%} to {high:.1%}")
    if unread:
        print(f"not readable: {unread}")


if __name__ == "__main__":
    main()

"""The cell of the specimen `code` that follows each property of a text best: the table in docs/text.md and on the specimen's card.

    python benchmarks/cells.py [--quick] [--json] [DATA]

What `penlight survey code` finds on the specimen's sample, or on DATA (a file, folder or .zip of texts): the hidden and cell states of
both layers are scored against every property, the best is chosen on one half of the texts and scored on the other. `untrained` is what
cells of the same network with its weights in another order reach. --quick takes the texts' first 60,000 characters.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import penlight
from penlight.api.opening import find_data
from penlight.inputs.text_data import TextData

SHOWN = {
    "inside a docstring": None,
    "inside a URL": None,
    "inside parentheses": None,
    "inside quotes": None,
    "inside a comment": 0.95,
    "inside a string": 0.95,
    "indentation": None,
    "bracket depth": None,
}  # property → the goal, if there is one


def beginning(model: penlight.Model, size: int) -> list[str]:
    """The first so many characters of the specimen's texts, text by text."""
    data = find_data(model, None)
    assert isinstance(data, TextData)
    texts: list[str] = []
    for number in range(len(data)):
        texts.append(data.text(number)[: size - sum(map(len, texts))])
        if sum(map(len, texts)) >= size:
            break
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", metavar="DATA", help="texts; by default the specimen's sample")
    parser.add_argument("--quick", action="store_true", help="60,000 characters of the sample")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = penlight.load("code")
    data: Any = asked.data or (beginning(model, 60_000) if asked.quick else None)
    result = penlight.survey(model, data)
    found = {one.property: one for one in result.best}
    rows = [
        {
            "property": name, "unit": found[name].unit, "low": found[name].falls, "kind": found[name].kind,
            "score": round(found[name].score, 3), "interval": [round(found[name].low, 3), round(found[name].high, 3)],
            "untrained": round(found[name].limit, 3), "stands": found[name].stands, "goal": goal,
        }
        for name, goal in SHOWN.items() if name in found
    ]  # fmt: skip
    if asked.json:
        print(json.dumps({"benchmark": "cells", "model": "code", "cells": rows}))
        return
    print(f"{'property':24} {'cell':22} {'score':>6} {'95 % interval':>14} {'untrained':>9} {'goal':>5}")
    for row in rows:
        cell, interval = row["unit"] + (", low" if row["low"] else ""), "{:.3f} {:.3f}".format(*row["interval"])
        goal = "" if row["goal"] is None else f"{row['goal']:.2f}"
        print(f"{row['property']:24} {cell:22} {row['score']:6.3f} {interval:>14} {row['untrained']:9.3f} {goal:>5}")


if __name__ == "__main__":
    main()

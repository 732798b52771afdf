"""Is the map true? Every registered explanation put to the same checks on the same pictures.

    python benchmarks/faithfulness.py [--model CARD] [--pictures DIR] [--count N] [--methods A,B] [--quick] [--json]

Explained is the class that the network finds in each picture. The default is the specimen `letters` and pictures of its own data, of
which the ones furthest apart in the file are taken. A method that does not accept the network is left out, and its reason printed.
Columns, means over the pictures:

deletion    area under the class's probability while places are taken away (0 as the network sees it) in the map's order; low is good
insertion   the same while they come back into the blurred picture; high is good
by chance   both, for the map's own values in random places
noise       largest relative change of the map over inputs with noise of 2 % of the range (in --quick over fewer draws); low is steady
scrambled   how alike the map stays, by rank correlation, while the weights are shuffled from the class downwards, through the upper
            half of the layers; 1: it shows the picture, not the network. From 0.5 on it fails
fails       on how many of the pictures it does
s a map     CPU seconds, one thread
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from numpy.typing import NDArray

import penlight
from penlight.errors import PenlightError
from penlight.inputs import Data, open_data
from penlight.models import Model
from penlight.results import ExplainResult
from penlight.techniques.contract import Request, Technique, methods
from penlight.techniques.explain.checks import ALIKE, check
from penlight.techniques.options import build

# What a method may cost in --quick, by the names its options have.
CHEAP = {"samples": 200, "masks": 200, "steps": 20, "channels": 32, "draws": 1}
NUMBERS = ("deletion", "deletion_random", "insertion", "insertion_random", "sensitivity", "randomisation")


def pictures(model: Model, folder: str | None, count: int) -> tuple[Data, list[NDArray[Any]]]:
    """`count` inputs, evenly spread over the data, and the data itself."""
    source = folder or model.data
    if source is None:
        raise SystemExit(f"{model.reference} has no data of its own: give --pictures DIR")
    data = open_data(source, model.contract, model.labels)
    places = np.unique(np.linspace(0, len(data) - 1, min(count, len(data))).astype(int))
    return data, [data.read(int(n)) for n in places]


def made(name: str, quick: bool) -> Technique:
    """The method as it comes, in `quick` with what costs most reduced."""
    kind = methods["explain"][name]
    known = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    smaller = {n: most for n, most in CHEAP.items() if type(known.get(n)) is int and not 0 < known[n] <= most}
    return build(kind, smaller if quick else {})


def measure(name: str, model: Model, data: Data, inputs: Sequence[NDArray[Any]], quick: bool) -> dict[str, Any]:
    """One row: means over the inputs, or why there are none."""
    found: list[Mapping[str, float | None]] = []
    seconds = 0.0
    try:
        technique = made(name, quick)
        for given in inputs:
            request = Request(model, data=data, input=given)
            start = time.process_time()
            result = technique.run(request)
            seconds += time.process_time() - start
            if not isinstance(result, ExplainResult):
                return {"method": name, "left_out": f"answers with a {type(result).__name__}, not with one map"}
            cheap = {"steps": 16, "draws": 2, "depth": 5} if quick else {}
            found.append(check(technique, request, result, **cheap)[0])
    except PenlightError as error:
        return {"method": name, "left_out": str(error).splitlines()[0]}
    alike = [row["randomisation"] for row in found]
    return {
        "method": name,
        "pictures": len(found),
        **{key: mean([row[key] for row in found]) for key in NUMBERS},
        "fails": sum(value is not None and value >= ALIKE for value in alike),
        "seconds": round(seconds / len(found), 4),
    }


def mean(values: Sequence[float | None]) -> float | None:
    """Of those that could be had."""
    kept = [value for value in values if value is not None]
    return round(float(np.mean(kept)), 3) if kept else None


def shown(row: Mapping[str, Any]) -> str:
    def number(key: str, width: int, digits: int = 2) -> str:
        return f"{'-' if row[key] is None else format(row[key], f'.{digits}f'):>{width}}"

    return (
        f"{row['method']:22}{number('deletion', 9)}{number('deletion_random', 10)}{number('insertion', 10)}"
        f"{number('insertion_random', 10)}{number('sensitivity', 7)}{number('randomisation', 10)}"
        f"{row['fails']:>4}/{row['pictures']:<3}{number('seconds', 8, 3)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="letters", metavar="CARD", help="model reference or card")
    parser.add_argument("--pictures", metavar="DIR", help="a folder of pictures; the model's own data without")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="pictures")
    parser.add_argument("--methods", metavar="A,B", help="only these")
    parser.add_argument("--quick", action="store_true", help="four pictures, and less of what costs most")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = penlight.load(given.model)
    data, inputs = pictures(model, given.pictures, min(given.count, 4) if given.quick else given.count)
    names = given.methods.split(",") if given.methods else list(methods["explain"])
    rows = []
    for name in names:
        rows.append(measure(name, model, data, inputs, given.quick))
        print(f"{name} done", file=sys.stderr, flush=True) if sys.stderr.isatty() else None
    if given.json:
        told = {"benchmark": "faithfulness", "model": given.model, "pictures": len(inputs), "quick": given.quick}
        print(json.dumps({**told, "methods": rows}))
        return
    print(f"{given.model}, {len(inputs)} pictures{', quick' if given.quick else ''}\n")
    print(
        f"{'method':22}{'deletion':>9}{'by chance':>10}{'insertion':>10}{'by chance':>10}{'noise':>7}{'scrambled':>10}"
        f"{'fails':>8}{'s a map':>8}"
    )
    for row in rows:
        if "left_out" not in row:
            print(shown(row))
    for row in rows:
        if "left_out" in row:
            print(f"\nleft out: {row['method']}: {row['left_out']}")


if __name__ == "__main__":
    main()

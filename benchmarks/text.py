"""What it costs to read a network's cells at every character of a text, against only running it.

    python benchmarks/text.py [--quick] [--json] [--lanes 64] [--block 128]

The text is the standard library's source, cut to 1,000,000 characters (quick: 100,000), file by file; the network is the specimen `code`
(a character LSTM of two layers), or its architecture with random weights where the specimen is not there. One thread, CPU time, all
sides in turns A B C A B C, medians of the rounds.

tracks     Penlight: hidden and cell state of both layers at every character, every file from its beginning to its end
side       (a) PyTorch's own forward pass, as many files side by side in blocks of the same length, the states handed on, each lane taking
           the next file when its own has ended: the same schedule, nothing read
files      (b) the forward pass file by file, as one would write it
even       (c) the same as (a) for texts of one length, as many as there are lanes: cut from the files, 2,048 characters each (quick: 512)
ratio      time of the pass over that of the tracks: 1 is no cost at all, more is faster than the pass
difference of the second layer's hidden states from those of PyTorch's LSTM, the largest over the first files
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import penlight
from penlight.errors import PenlightError
from penlight.inputs import TextContract
from penlight.models import Model
from penlight.models.tracks import tracks
from penlight.specimens.code import corpus
from penlight.specimens.code.network import VOCABULARY, Code

PATHS = ("lstm.hidden_l0", "lstm.cell_l0", "lstm.hidden_l1", "lstm.cell_l1")
GOAL = 0.8
Ids = NDArray[np.int64]


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def open_model() -> tuple[Model, nn.Module, str]:
    """(model, the plain network, what it is)."""
    try:
        model = penlight.load("code")
        told = "specimen code"
    except PenlightError:
        torch.manual_seed(0)
        model, told = Model(Code(), TextContract.of(VOCABULARY)), "the specimen's architecture with random weights"
    plain = Code()
    plain.load_state_dict(model.network.state_dict())
    return model, plain.eval(), told


def texts(contract: TextContract, size: int) -> list[Ids]:
    """Files of the standard library in the order of their digests, the last one cut, `size` characters in all."""
    found, left = list[Ids](), size
    for file in sorted(corpus.collect(corpus.library()), key=lambda file: file.digest):
        found.append(contract.encode(file.text[:left]))
        left -= len(found[-1])
        if left <= 0:
            break
    return found


def read(model: Model, given: list[Ids], lanes: int, block: int) -> float:
    """All tracks; a sum of them, so that each was there."""
    total = 0.0
    for part in tracks(model, given, PATHS, lanes=lanes, block=block):
        total += sum(float(values[-1, 0]) for values in part.values.values())
    return total


def side(net: nn.Module, given: list[Ids], lanes: int, block: int) -> None:
    """The plain pass with many files side by side; lanes that have nothing left are closed once half of them have."""
    waiting = iter(given)
    going = [[ids, 0] for _, ids in zip(range(min(lanes, len(given))), waiting, strict=False)]
    state: tuple[Tensor, Tensor] | None = None
    with torch.inference_mode():
        while going:
            left = [len(ids) - at for ids, at in going]
            kept = [n for n, rest in enumerate(left) if rest > 0]
            if not kept:
                break
            if 2 * len(kept) <= len(going) and state is not None:
                going = [going[n] for n in kept]
                state = (state[0][:, kept], state[1][:, kept])
                left = [left[n] for n in kept]
            length = min(block, max(left))
            batch = np.zeros((len(going), length), np.int64)
            for n, (ids, at) in enumerate(going):
                batch[n, : max(0, min(length, left[n]))] = ids[at : at + length]
            _, state = net(torch.from_numpy(batch), state)
            for n, one in enumerate(going):
                one[1] += min(length, max(0, left[n]))
                if one[1] >= len(one[0]) and (following := next(waiting, None)) is not None:
                    going[n] = [following, 0]
                    state[0][:, n], state[1][:, n] = 0, 0


def by_file(net: nn.Module, given: list[Ids]) -> None:
    with torch.inference_mode():
        for ids in given:
            net(torch.from_numpy(ids)[None])


def difference(model: Model, net: Code, given: list[Ids]) -> float:
    """Largest difference of the second layer's hidden states in the first files."""
    few, worst = given[:4], 0.0
    with torch.inference_mode():
        whole = [net.lstm(net.embedding(torch.from_numpy(ids)[None]))[0][0] for ids in few]
    for part in tracks(model, few, ["lstm.hidden_l1"]):
        there = whole[part.text][part.start : part.start + len(part.ids)]
        worst = max(worst, float((part.values["lstm.hidden_l1"] - there).abs().max()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100,000 characters, two rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--lanes", type=int, default=64, help="files side by side")
    parser.add_argument("--block", type=int, default=128, help="characters of each at once")
    parser.add_argument("--rounds", type=int, default=0, help="turns of every side, by default 3, quick 2")
    asked = parser.parse_args()
    here = Path(__file__).resolve().parent
    sys.path = [place for place in sys.path if Path(place or ".").resolve() != here]
    torch.set_num_threads(1)
    model, plain, told = open_model()
    assert model.text is not None
    size, rounds = (100_000, 2) if asked.quick else (1_000_000, 3)
    rounds = asked.rounds or rounds
    given = texts(model.text, size)
    even = np.concatenate(given)[: asked.lanes * (512 if asked.quick else 2048)]
    alike = np.array_split(even, asked.lanes)
    sides: dict[str, Callable[[], Any]] = {
        "tracks": lambda: read(model, given, asked.lanes, asked.block),
        "side": lambda: side(plain, given, asked.lanes, asked.block),
        "files": lambda: by_file(plain, given),
        "even tracks": lambda: read(model, alike, asked.lanes, asked.block),
        "even": lambda: side(plain, alike, asked.lanes, asked.block),
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            spent[name].append(seconds(work))
    middle = {name: statistics.median(times) for name, times in spent.items()}
    count = sum(map(len, given))
    report = {
        "benchmark": "text", "network": told, "threads": 1, "clock": "process_time", "rounds": rounds,
        "characters": count, "files": len(given), "lanes": min(asked.lanes, len(given)), "block": asked.block, "read": list(PATHS),
        "tracks_s": middle["tracks"], "side_by_side_s": middle["side"], "file_by_file_s": middle["files"],
        "characters_per_s": count / middle["tracks"],
        "ratio_side_by_side": middle["side"] / middle["tracks"], "ratio_file_by_file": middle["files"] / middle["tracks"],
        "ratio_even": middle["even"] / middle["even tracks"], "goal": GOAL, "largest_difference": difference(model, plain, given),
    }  # fmt: skip
    if asked.json:
        print(json.dumps(report))
        return
    print(
        f"{told}: {count:,} characters of {len(given)} files, {report['lanes']} side by side in blocks of {asked.block}"
    )
    print(f"tracks of {', '.join(PATHS)}: {middle['tracks']:.1f} s, {report['characters_per_s']:,.0f} characters/s")
    print(
        f"plain pass, the same files side by side: {middle['side']:.1f} s, ratio {report['ratio_side_by_side']:.2f} (goal {GOAL})"
    )
    print(f"plain pass, file by file: {middle['files']:.1f} s, ratio {report['ratio_file_by_file']:.2f} (goal {GOAL})")
    print(f"plain pass, {asked.lanes} texts of one length side by side: ratio {report['ratio_even']:.2f} (goal {GOAL})")
    print(f"largest difference of hidden states {report['largest_difference']:.1e}")


if __name__ == "__main__":
    main()

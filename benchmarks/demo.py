"""Wall time and peak memory of `penlight demo`, all its processes together.

    python benchmarks/demo.py [--quick] [--compare] [--json]

The goal is at most 120 s and 2 GiB on two cores, for all three specimens. `--quick` runs it once,
otherwise three times and the best and worst are shown. `--compare` runs it in turns with `--workers 1`, which computes in one process,
and prints the ratio. Memory is the greatest sum of the processes' proportional set sizes, looked at five times a second.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

GOAL = {"wall_s": 120, "peak_gib": 2}


def once(more: Sequence[str] = ()) -> dict[str, float]:
    """Wall seconds, CPU seconds, seconds until the letters' site is there, and peak GiB of one run in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start, letters, peak = time.perf_counter(), 0.0, 0
        run = subprocess.Popen(
            [sys.executable, "-m", "penlight", "demo", "--out", str(out), *more],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while run.poll() is None:
            peak = max(peak, held(run.pid))
            if not letters and (out / "biopsies").exists():
                letters = time.perf_counter() - start
            time.sleep(0.2)
        if run.returncode:
            raise SystemExit(f"penlight demo ended with {run.returncode}")
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "letters_s": letters, "cpu_s": cpu, "peak_gib": peak / 2**20}


def held(pid: int) -> int:
    """KiB that a process and its children hold, what they share counted once; what has just ended counts nothing."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            if line.startswith("Pss:"):
                total = int(line.split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return total
    return total + sum(held(int(child)) for child in children)


def span(runs: Sequence[dict[str, float]], name: str) -> str:
    """'108-125', or one number where both are the same."""
    values = [round(run[name]) for run in runs]
    return f"{min(values)}-{max(values)}" if min(values) < max(values) else f"{values[0]}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument("--compare", action="store_true", help="in turns with --workers 1")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    runs, alone = [], []
    for _ in range(1 if arguments.quick else 3):
        runs.append(once())
        if arguments.compare:
            alone.append(once(["--workers", "1"]))
    if arguments.json:
        print(json.dumps({"runs": runs, "one_process": alone, "goal": GOAL}))
        return
    for title, some in (("penlight demo", runs), ("  --workers 1", alone)):
        if some:
            peak = max(run["peak_gib"] for run in some)
            print(
                f"{title}: {span(some, 'wall_s')} s (goal {GOAL['wall_s']}), letters alone {span(some, 'letters_s')} s, ",
                end="",
            )
            print(f"CPU {span(some, 'cpu_s')} s, peak {peak:.2f} GiB (goal {GOAL['peak_gib']})")
    if alone:
        ratios = [one["wall_s"] / both["wall_s"] for one, both in zip(alone, runs, strict=True)]
        print(f"  one process takes {min(ratios):.2f}-{max(ratios):.2f} times as long")


if __name__ == "__main__":
    main()

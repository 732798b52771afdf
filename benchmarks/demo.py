"""Wall time and peak memory of `penlight demo`, as a whole process.

    python benchmarks/demo.py [--quick] [--json]

The goal is at most 180 s and 2 GiB on two cores, for all three specimens. `--quick` runs it once, otherwise three times and the
best and worst are shown.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def once() -> tuple[float, float, float]:
    """(wall seconds, CPU seconds, peak GiB) of one run in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "penlight", "demo", "--out", str(Path(folder) / "demo")],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, after.ru_maxrss / 2**20


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one run")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    runs = [once() for _ in range(1 if arguments.quick else 3)]
    wall, cpu, memory = (list(column) for column in zip(*runs, strict=True))
    if arguments.json:
        print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_gib": memory, "goal": {"wall_s": 180, "peak_gib": 2}}))
        return
    print(f"penlight demo: {min(wall):.0f}-{max(wall):.0f} s (goal 180), CPU {min(cpu):.0f}-{max(cpu):.0f} s, ", end="")
    print(f"peak {max(memory):.2f} GiB (goal 2)")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How long a user waits: until --help has answered, and until a first training step is done.

    python code/benchmarks/bench_start.py

--help of every program, the median of three, of which the slowest of each kind is shown; and a whole run of byol.py of
one training step on the digits.
"""

import statistics
import subprocess
import sys
import tempfile
import time

import bench

from wassersteinssl.settings import programs

if __name__ == "__main__":
    ARGS = bench.parser(__doc__).parse_args()

from tqdm import tqdm

HELP, STEP = 0.5, 5.0  # targets, seconds
KINDS = {
    "methods": [bench.CODE / path for path in programs().values()],
    "commands": sorted(bench.CODE.glob("*.py")),
    "benchmarks": sorted(bench.CODE.glob("benchmarks/bench_*.py")),
    "studies": sorted(bench.CODE.parent.glob("[DEL]*/**/*.py")),
}
ONE_STEP = (
    "--dataset digits --limit-train 128 --batch-size 128 --epochs 1 --stage pretrain --monitor-every 0 --width 16 "
    "--hidden-dim 256 --dim 64"
).split()


def seconds(command: list[str], times: int) -> float:
    took = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def main(args) -> None:
    report = bench.Report("start", args)
    rows = []
    for kind, paths in tqdm(KINDS.items(), desc="--help", disable=None):
        chosen = paths[:1] if args.quick else paths
        took = {p.name: seconds([sys.executable, str(p), "--help"], 1 if args.quick else 3) for p in chosen}
        slowest = max(took, key=lambda name: took[name])
        rows.append({"what": f"--help of {len(took)} {kind}, the slowest: {slowest}", "seconds": took[slowest]})
    report.table("Starting", rows, {"what": "", "seconds": ".2f"})
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(KINDS["methods"][0]), *ONE_STEP, "--run-dir", f"{folder}/run"]
        step = {"what": "byol.py, one step on the digits and its checkpoint", "seconds": seconds(command, 1)}
    report.table("First step", [step], {"what": "", "seconds": ".2f"})
    worst = max(row["seconds"] for row in rows)
    report.targets([("slowest --help, s", "at most", HELP, worst), ("first step, s", "at most", STEP, step["seconds"])])
    report.write()


if __name__ == "__main__":
    bench.run(main, ARGS)

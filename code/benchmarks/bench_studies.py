#!/usr/bin/env python3
"""How long the figures take at the paper's sizes: each study's script and notebook, one after the other.

    python code/benchmarks/bench_studies.py

That is what `python code/figures.py --paper` does.
"""

import os
import tempfile
import time
from pathlib import Path

import bench

if __name__ == "__main__":
    ARGS = bench.parser(__doc__).parse_args()

import figures
from tqdm import tqdm

from wassersteinssl.cli import UserError

MINUTES = 20  # target


def main(args) -> None:
    if args.device not in ("auto", "cpu"):
        raise UserError("the studies are timed on the CPU")
    args.device = "cpu"
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of the scripts and kernels
    report = bench.Report("studies", args)
    chosen = [study for study in figures.STUDIES if "LargeMeans" in str(study)] if args.quick else figures.STUDIES
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for study in tqdm(chosen, desc="studies", disable=None):
            name, start = study.relative_to(figures.REPOSITORY), time.perf_counter()
            figures.make(study, Path(folder) / name.parent, paper=not args.quick)
            rows.append({"study": str(name), "seconds": time.perf_counter() - start})
    total = sum(row["seconds"] for row in rows) / 60
    report.table("Script and notebook of each study", rows, {"study": "", "seconds": ".1f"})
    report.targets([("all of them, minutes", "at most", MINUTES, total)])
    report.write()


if __name__ == "__main__":
    bench.run(main, ARGS)

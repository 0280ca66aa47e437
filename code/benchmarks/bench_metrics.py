#!/usr/bin/env python3
"""What it costs to measure an embedding: L_U over all pairs, W2 over a stream of any length, time and peak memory.

    python code/benchmarks/bench_metrics.py [--device cuda]

L_U stands beside its published formula by torch.pdist, which holds every pair at once: at 50,000 rows that takes 10 GB,
and where memory is short it is left out. W2 reads chunks of 10,000 rows: from memory, and from a memory-mapped float16
file, as a feature extractor would leave it. Its memory must not grow with the number of rows, its time no faster. The
audit reads such a file of 1,024 features, also on the CPU where --device is another; 10 million rows are 20 GB of disk.
Each call has a process of its own, so that its peak hides behind nothing that an earlier one left.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import bench

from wassersteinssl.cli import pair_size

if __name__ == "__main__":
    PARSER = bench.parser(__doc__)
    PARSER.add_argument(
        "--audit-rows", nargs="+", type=pair_size, metavar="N", default=[100_000, 1_000_000],
        help="of 1,024 features; a million take 2 GB of disk (default: 100000 1000000)",
    )  # fmt: skip
    ARGS = PARSER.parse_args()

import numpy as np
import torch
from bench_loss import pdist_lu
from torch import Tensor
from tqdm import tqdm

from wassersteinssl import audit, audit_files
from wassersteinssl.machine import memory
from wassersteinssl.uniformity import lu_uniformity
from wassersteinssl.w2 import W2Metric

M = 256
AUDITED = 1024  # features
CPU = torch.device("cpu")
CHUNK = 10_000


def stream(chunks: Iterable[Tensor]) -> float:
    metric = W2Metric()
    for z in chunks:
        metric.update(z)
    return metric.compute()


def from_memory(n: int, device: torch.device) -> Iterator[Tensor]:
    """One chunk again and again: rows that cost nothing to make."""
    z = torch.randn(min(n, CHUNK), M, device=device)
    return (z for _ in range(n // len(z)))


def from_file(path: Path, device: torch.device) -> Iterator[Tensor]:
    rows = np.load(path, mmap_mode="r")
    for start in range(0, len(rows), CHUNK):
        yield torch.from_numpy(rows[start : start + CHUNK].copy()).to(device)  # a copy: the map is read-only


def write_rows(path: Path, n: int, m: int) -> None:
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(n, m))
    chunk = np.random.default_rng(0).standard_normal((CHUNK, m), dtype=np.float32).astype(np.float16)
    for k, start in enumerate(range(0, n, CHUNK)):  # other rows in each chunk
        rows[start : start + CHUNK] = np.roll(chunk, k, axis=1)[: n - start]


def measured(kind: str, by: str, n: int, device: str, threads: int, path: Path | None) -> dict[str, float]:
    """Seconds and peak memory of one call; for a process of its own, as what an earlier call left would hide it."""
    place = torch.device(device)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    first = torch.randn(64, 16, device=place)
    if kind == "L_U":
        function = {"ours": lu_uniformity, "torch.pdist": pdist_lu}[by]
        z = torch.randn(n, M, device=place)
        calls = [lambda: function(first).item(), lambda: function(z).item()]
    elif kind == "W2":
        calls = [lambda: stream([first]), lambda: stream(from_file(path, place) if path else from_memory(n, place))]
    else:
        assert path is not None
        calls = [lambda: audit.audit(audit_files.of_rows(first, "few")), lambda: audit.audit(audit_files.read(path))]
    with torch.no_grad():
        calls[0]()  # the first call loads what it needs
        with bench.peak_memory(place) as found:
            times = [bench.clock(calls[1], 1, place) for _ in range(3 if kind == "W2" else 1)]  # one of them is short
    return {"seconds": median(times), "peak MB": found["peak"]}


def alone(report: bench.Report, *what: Any, device: torch.device | None = None, path: Path | None = None) -> dict:
    """`measured` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        place = str(device or report.device)
        return pool.submit(measured, *what, place, torch.get_num_threads(), path).result()


def pairs(sizes: list[int], report: bench.Report, bar: tqdm) -> list[dict[str, Any]]:
    """L_U of n rows, ours and by torch.pdist."""
    rows = []
    for n in sizes:
        needed = 2 * 4 * n * (n - 1) / 2  # of the distances and of a function of them, in float32
        free = torch.cuda.mem_get_info(report.device)[0] if report.device.type == "cuda" else memory()
        for name in ("ours", "torch.pdist"):
            if name == "torch.pdist" and needed > 0.9 * free:
                print(f"no torch.pdist for {n} rows: it needs {needed / 1e9:.0f} GB", file=sys.stderr)
                continue
            bar.set_description(f"L_U of {n} rows, {name}")
            rows.append({"measure": "L_U", "rows": n, "by": name, **alone(report, "L_U", name, n)})
            bar.update(n)
    return rows


def targets(found: dict[tuple[str, str, int], dict[str, Any]]) -> list[bench.Target]:
    ours, theirs = found["L_U", "ours", 50_000], found.get(("L_U", "torch.pdist", 50_000))
    rows: list[bench.Target] = [("L_U of 50,000 rows: peak MB", "at most", 1000, ours["peak MB"])]
    if theirs:
        rows.append(
            ("L_U of 50,000 rows: torch.pdist's time / ours", "at least", 5, theirs["seconds"] / ours["seconds"])
        )
    for source in ("memory, float32", "file, float16"):
        few, many = found["W2", source, 100_000], found["W2", source, 1_000_000]
        rate = many["rows/s"] / few["rows/s"]
        rows.append((f"W2 from {source}: rows/s of 1,000,000 / of 100,000", "at least", 0.8, rate))
        rows.append((f"W2 of 1,000,000 rows from {source}: peak MB", "at most", 250, many["peak MB"]))
    return rows


def audits(sizes: list[int], m: int, path: Path, report: bench.Report) -> list[dict[str, Any]]:
    """The whole audit of n rows in a float16 file."""
    rows = []
    for n in tqdm(sizes, desc="audits", unit="file", disable=None):
        write_rows(path, n, m)
        rows.append({"rows": n, "features": m, **alone(report, "audit", "", n, device=CPU, path=path)})
    return rows


def main(args) -> None:
    report = bench.Report("metrics", args)
    pair_sizes = [500] if args.quick else [10_000, 50_000]
    stream_sizes = [10_000, 20_000] if args.quick else [10_000, 100_000, 1_000_000]
    with tqdm(desc="rows", unit=" rows", unit_scale=True, disable=None) as bar, tempfile.TemporaryDirectory() as folder:
        rows = pairs(pair_sizes, report, bar)
        path = Path(folder, "rows.npy")
        for n in stream_sizes:
            write_rows(path, n, M)
            for name, source in (("memory, float32", None), ("file, float16", path)):
                bar.set_description(f"W2 of {n} rows, {name}")
                rows.append({"measure": "W2", "rows": n, "by": name, **alone(report, "W2", name, n, path=source)})
                bar.update(n)
    for row in rows:
        row["rows/s"] = row["rows"] / row["seconds"]
    form = {"measure": "", "rows": ",", "by": "", "seconds": ".3g", "rows/s": ",.0f", "peak MB": ",.0f"}
    report.table(f"Rows of {M} features", rows, form)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.npy")
        audited = audits([300] if args.quick else args.audit_rows, 16 if args.quick else AUDITED, path, report)
    form = {"rows": ",", "features": ",", "seconds": ".3g", "peak MB": ",.0f"}
    report.table("The audit of a float16 file", audited, form)
    if not args.quick:
        asked = targets({(row["measure"], row["by"], row["rows"]): row for row in rows})
        most = audited[-1]
        asked.append((f"audit of {most['rows']:,} x {AUDITED}: peak MB", "at most", 2000, most["peak MB"]))
        report.targets(asked)
    report.write()


if __name__ == "__main__":
    bench.run(main, ARGS)

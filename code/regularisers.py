#!/usr/bin/env python3
"""Every term that can be added to a loss, with alignment alone (MSE) and with BYOL: a short search of its weight, then
a run with the best one.

    python code/regularisers.py RUNS --datasets cifar10 [--preset mini] [--parallel K] [OPTION of every run ...]
    python code/table2.py RUNS/final        the table; table2.csv there has every measure of every run

The search tries three weights of each term in the preset `search` (6 epochs of 12,800 images), in RUNS/search: about
0.3, 3 and 30 times the one at which the term pulls partly collapsed rows as hard as alignment does; of reverse_kl and
jeffreys, which are infinite in collapse, a wider range. The best kNN accuracy decides. The run is of --preset, in
RUNS/final. That is 2 x 14 x 3 short runs and 2 x 15 others a data set: days on a CPU.
The same command goes on where it stopped. Exit status: as of grid.py.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parent
sys.path.insert(0, str(CODE))  # works with and without an installation

import grid

from wassersteinssl.machine import environment_beside
from wassersteinssl.settings import PRESETS, STOPPED, Parser, count, ending_signals, home, positive, tell

BASES = {"mse": ["--methods", "align_uniform", "--uniform-weight", "0"], "byol": ["--methods", "byol"]}
WEIGHTS: dict[str, tuple[float, ...]] = {
    "w2": (0.3, 3, 30),
    "lu": (0.15, 1.5, 15),
    "lu_calibrated": (0.15, 1.5, 15),
    "koleo": (0.15, 1.5, 15),
    "mst": (0.2, 2, 20),
    "ssw": (10, 100, 1000),
    "sigreg": (0.006, 0.06, 0.6),
    "frobenius": (0.03, 0.3, 3),
    "vicreg": (0.01, 0.1, 1),
    "kl": (0.0003, 0.003, 0.03),
    "reverse_kl": (1e-6, 1e-4, 1e-2),
    "jeffreys": (1e-6, 1e-4, 1e-2),
    "bhattacharyya": (0.0005, 0.005, 0.05),
    "tcr": (0.007, 0.07, 0.7),
}


class Pair:
    """A term with a base: its search, then its run."""

    def __init__(self, base: str, term: str, options: argparse.Namespace, rest: list[str], grids: "Grids"):
        self.base, self.term, self.options, self.rest, self.grids = base, term, options, rest, grids
        self.end = time.monotonic() + 60 * options.time_budget if options.time_budget else None

    def __call__(self) -> int:
        if self.term == "none":
            return self.grid("final", self.options.preset, [])
        status = self.grid("search", self.options.search, WEIGHTS[self.term])
        weights = self.best() if status in (0, 1) else []  # 1: some weight diverged, say
        return self.grid("final", self.options.preset, weights) if weights else status

    def grid(self, stage: str, preset: str, weights: Sequence[float]) -> int:
        arguments = self.arguments(stage, preset, weights)
        if self.end is not None:
            if (left := self.end - time.monotonic()) <= grid.WORTHWHILE:
                return STOPPED
            arguments += ["--time-budget", str(left / 60)]
        status, told = self.grids.run([sys.executable, str(CODE / "grid.py"), *arguments])
        if not sys.stderr.isatty() and status in (0, STOPPED):  # where no bar is shown
            tell(f"{self.base} + {self.term}, {stage}: {told}")
        if status == 2:  # grid.py has told the mistake; every other one would repeat it
            self.grids.stop()
        elif status not in (0, STOPPED):
            print(f"{self.base} + {self.term}, {stage}: {told or f'ended with status {status}'}", flush=True)
        return status

    def arguments(self, stage: str, preset: str, weights: Sequence[float]) -> list[str]:
        """Of its grid."""
        arguments = ["run", "--preset", preset, "--terms", self.term, *BASES[self.base][:2]]
        arguments += ["--weights", *map(str, weights)] if weights else []
        return [*arguments, "--runs", str(self.options.runs / stage), *BASES[self.base][2:], *self.rest]

    def best(self) -> list[float]:
        """The weight with the best kNN accuracy, over the data sets and seeds of the search; none if no run is done.

        A weight with fewer finished runs comes last: it may have diverged on the harder data set, which lifts its mean.
        """
        found: dict[float, list[float]] = {}
        searched = self.arguments("search", self.options.search, WEIGHTS[self.term])
        for cell in grid.cells(*grid.parse(searched)):
            if (result := cell.result()) is not None:
                found.setdefault(cell.settings["alpha_max"], []).append(result["knn1"])
        return sorted(found, key=lambda weight: (-len(found[weight]), -sum(found[weight])))[:1]


class Grids:
    """The grids that run, each on that of the GPUs which the fewest of the others have. Ctrl-C, SIGTERM, a closed
    terminal ask them for checkpoints and an end; no other is begun."""

    def __init__(self, gpus: Sequence[str] = ()) -> None:
        self.gpus, self.lock = gpus, threading.Lock()
        self.running: dict[subprocess.Popen, str | None] = {}  # and their GPUs
        self.stopping = False
        for number in ending_signals():
            signal.signal(number, self.stop)

    def run(self, command: list[str]) -> tuple[int, str]:
        """Exit status and the last line of what it printed."""
        if self.stopping:
            return STOPPED, ""
        with self.lock:
            gpu = min(self.gpus, key=list(self.running.values()).count) if len(self.gpus) > 1 else None
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
                env=os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}),
            )  # fmt: skip
            self.running[started] = gpu
        if self.stopping:  # asked while it was being started
            started.terminate()
        told = started.communicate()[0]
        del self.running[started]
        return started.returncode, (told.strip().splitlines() or [""])[-1]

    def stop(self, *_: Any) -> None:
        if not self.stopping:
            for started in list(self.running):
                started.terminate()
        self.stopping = True


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("runs", type=home, metavar="RUNS", help="the folder for search/ and final/")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mini", help="of the runs (default: %(default)s)")
    parser.add_argument("--search", choices=tuple(PRESETS), default="search", help="(default: %(default)s)")
    parser.add_argument(
        "--terms",
        nargs="+",
        choices=("none", *WEIGHTS),
        default=["none", *WEIGHTS],
        metavar="TERM",
        help=f"of none, {', '.join(WEIGHTS)} (default: all)",
    )
    parser.add_argument("--bases", nargs="+", choices=tuple(BASES), default=list(BASES), help="(default: mse byol)")
    parser.add_argument(
        "--parallel", type=count, default=1, metavar="K", help="runs at a time, spread over the GPUs (default: 1)"
    )
    parser.add_argument("--time-budget", type=positive, metavar="MINUTES", help="stop, with checkpoints, within this")
    options, rest = parser.parse_known_args()
    os.environ.update(environment_beside(options.parallel))
    grids = Grids(grid.gpus_for(options.parallel, rest))
    pairs = [Pair(base, term, options, rest, grids) for term in options.terms for base in options.bases]
    from tqdm import tqdm

    with ThreadPoolExecutor(options.parallel) as pool:
        statuses = list(tqdm(pool.map(lambda pair: pair(), pairs), total=len(pairs), unit="term", disable=None))
    # A grid that was killed has another status.
    return next((status for status in (2, 1, STOPPED) if status in statuses), 1 if any(statuses) else 0)


if __name__ == "__main__":
    sys.exit(main())

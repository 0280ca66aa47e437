#!/usr/bin/env python3
"""Every term that can be added to a loss, with alignment alone (MSE) and with BYOL: a short search of its weight, then
a run with the best one.

    python code/regularisers.py RUNS --datasets cifar10 [--preset mini] [--parallel K] [OPTION of every run ...]
    python code/table2.py RUNS/final        the table; table2.csv there has every measure of every run

The search tries three weights of each term in the preset `search` (6 epochs of 12,800 images), in RUNS/search: about
0.3, 3 and 30 times the one at which the term pulls partly collapsed rows as hard as alignment does; of reverse_kl and
jeffreys, which are infinite in collapse, a wider range. The best kNN accuracy decides. The run is of --preset, in
RUNS/final. That is 2 x 14 x 3 short runs and 2 x 15 others a data set: days on a CPU. Options of every run are those of
grid.py run (--datasets, --folder, --seeds, --epochs, --gpus) and of the methods.
The same command goes on where it stopped. Exit status: as of grid.py.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

CODE = Path(__file__).resolve().parent
sys.path.insert(0, str(CODE))  # works with and without an installation

import grid

from wassersteinssl.cli import STOPPED, Parser, count, exit_status, given_path, tell
from wassersteinssl.settings import PRESETS, SEARCH_WEIGHTS

# Options of grid.py that this search sets itself, or that make no sense here.
NOT_HERE = "--runs --methods --weights --slurm --partition --account --time --cpus --index".split()
BASES = {"mse": ["--methods", "align_uniform", "--uniform-weight", "0"], "byol": ["--methods", "byol"]}


def cells(
    stage: str, base: str, term: str, weights: Sequence[float], options: argparse.Namespace, rest: list[str]
) -> list[grid.Cell]:
    """The cells of one term with one base: one for each data set, seed and weight."""
    preset = options.search if stage == "search" else options.preset
    arguments = ["run", "--preset", preset, "--terms", term, *BASES[base][:2]]
    arguments += ["--weights", *map(str, weights)] if weights else []
    return grid.cells(*grid.parse([*arguments, f"--runs={options.runs / stage}", *BASES[base][2:], *rest]))


def best(searched: list[grid.Cell]) -> list[float]:
    """The weight with the best mean kNN accuracy over the data sets and seeds of the search; none if no run is done.

    A weight with fewer finished runs comes last: it may have diverged on the harder data set, which raises its mean.
    """
    found: dict[float, list[float]] = {}
    for cell in searched:
        if (result := cell.result()) is not None:
            found.setdefault(cell.settings["alpha_max"], []).append(result["knn1"])
    return sorted(found, key=lambda weight: (-len(found[weight]), -sum(found[weight])))[:1]


def run(options: argparse.Namespace, rest: list[str]) -> int:
    end = time.monotonic() + 60 * options.time_budget if options.time_budget else None
    first, _ = grid.parse(["run", *BASES[options.bases[0]], *rest])
    gpus = grid.gpus_for(options.parallel, rest, first.gpus or 1)

    def all_of(found: list[grid.Cell]) -> tuple[int, bool]:
        """Run them. Returns the exit status, and whether the search was asked to stop, even if all are done."""
        if not found:
            return 0, False
        grid.refuse_others(found)
        left = None if end is None else (end - time.monotonic()) / 60
        tell(f"{grid.count_of(found)}, left: {grid.left(found, options.parallel)}")
        runner = grid.Runner(found, options.parallel, left, gpus=gpus)
        return runner.run(), runner.stopping

    pairs = [(base, term) for term in options.terms for base in options.bases]
    searches = {
        (base, term): cells("search", base, term, SEARCH_WEIGHTS[term], options, rest)
        for base, term in pairs
        if term != "none"
    }
    status, stopping = all_of([cell for found in searches.values() for cell in found])
    if stopping:
        status = STOPPED
    if status != STOPPED:
        final = []
        for pair in pairs:
            weights = best(searches[pair]) if pair in searches else []
            if weights or pair not in searches:  # otherwise no run of its search is done
                final += cells("final", *pair, weights, options, rest)
        status = all_of(final)[0] or status
    if status == STOPPED:
        tell("the same command goes on with what is left")
    return status


def main() -> int:
    parser = Parser(__doc__, continues=True)
    parser.add_argument("runs", type=given_path, metavar="RUNS", help="the folder for search/ and final/")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="mini", help="of the runs (default: %(default)s)")
    parser.add_argument("--search", choices=tuple(PRESETS), default="search", help="(default: %(default)s)")
    parser.add_argument(
        "--terms",
        nargs="+",
        choices=("none", *SEARCH_WEIGHTS),
        default=["none", *SEARCH_WEIGHTS],
        metavar="TERM",
        help=f"of none, {', '.join(SEARCH_WEIGHTS)} (default: all)",
    )
    parser.add_argument("--bases", nargs="+", choices=tuple(BASES), default=list(BASES), help="(default: mse byol)")
    parser.add_argument(
        "--parallel", type=count, default=1, metavar="K", help="runs at a time, spread over the GPUs (default: 1)"
    )
    parser.add_argument(
        "--time-budget", type=grid.budget, metavar="MINUTES", help="stop, with checkpoints, within this"
    )
    options, rest = parser.parse_known_args()
    for text in rest:
        if text.partition("=")[0] in NOT_HERE:
            parser.error(f"{text} is for grid.py, not for this search")
    return exit_status(run, options, rest)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Run the cells of Table 2 (methods x terms x data sets x seeds), one after the other, and go on where it stopped.

    python code/grid.py status --preset mini     what is done and left, from the first epoch on how long it may take
    python code/grid.py run --preset short --datasets cifar10 --precision bf16 --time-budget 25
    python code/grid.py run --preset mini --datasets cifar10 --folder cifar10=PATH
    python code/grid.py run-one --index 3 --preset mini       one cell, for job arrays (code/grid.sbatch)
    python code/grid.py run --slurm --partition gpu --gpus 1 --time 240 --preset paper     a Slurm array, a cell a job
    python code/table2.py runs/grid/mini                      the table of what is done

Options that the grid does not know (--precision bf16, --width 32, ...) go to every run: see those of a method file.
A finished cell is skipped, an unfinished one continued, a crashed one tried once more at the end, and one that another
process works on left alone (with nothing else to do the grid ends, with status 75). --time-budget stops all cells in
time with a checkpoint; the same command goes on later.
--slurm (it needs submitit) submits the cells that are not done; they are requeued when they are preempted or their time
is up, and status tells how far they are, from their files.

Presets: paper (500 epochs, ResNet-18), short (100 epochs), mini (width 16, 20 epochs; on a thread of a CPU one to two
hours a cell), digits (one to two minutes), search (6 epochs of 12,800 images at width 16, for --weights).
Exit status: 0 all cells done, 1 some failed, 2 a mistake in the command, 75 stopped in time and to be continued.
"""

import argparse
import contextlib
import difflib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CODE = Path(__file__).resolve().parent
sys.path.insert(0, str(CODE))  # works with and without an installation

from wassersteinssl import results, settings
from wassersteinssl.augmentation import usual
from wassersteinssl.cli import (
    STOPPED,
    Parser,
    UserError,
    count,
    ending_signals,
    exit_status,
    given_path,
    home,
    not_negative,
    plain_name,
    positive,
    printable,
    seed,
    tell,
    whole,
)
from wassersteinssl.machine import environment_beside
from wassersteinssl.settings import DATASETS, PRESETS

# The programs by the name of their file. Table 2 has three terms for four of them, and only vanilla for the others.
FILES = {Path(path).stem: path for path in settings.programs().values()}
TABLE2 = ("byol", "moco_v2", "barlow_twins", "zero_cl")
TERMS = ("none", *settings.TERMS)
RESERVE = 20  # seconds before the end of a time budget at which running cells are asked to stop
WORTHWHILE = 60  # no cell is started with fewer seconds left
TORCHRUN = 30  # more seconds of reserve under torchrun, whose process groups the grid cannot kill at the end
PATIENCE = "300"  # seconds for a checkpoint under torchrun, unless set; its default of 30 is short
SHOW = 2  # seconds between looks at the progress of the cells
FOR_SLURM: dict[str, Any] = {"partition": None, "account": None, "time": 240, "cpus": 8}  # with their defaults
# Options of a run that the runs of a grid cannot share, and the grid's option that sets each.
SET_HERE = {
    "--dataset": "--datasets", "--dataset-name": "--folder", "--seed": "--seeds", "--uniformity": "--terms",
    "--run-dir": "--runs", "--stage": "", "--resume": "",
}  # fmt: skip


@dataclass
class Cell:
    """One run of the grid."""

    method: str
    term: str
    dataset: str
    seed: int
    folder: Path
    epochs: int
    command: list[str]
    settings: dict = field(default_factory=dict)
    processes: int = 1  # several run under torchrun
    tries: int = 0
    log_start: int = 0  # where the log of the last try begins, in bytes
    finished: dict | None = field(default=None, compare=False)  # the result, once read, as it does not change

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.folder.name}"

    def progress(self) -> int:
        """About how many epochs are done, by the number of lines alone."""
        with contextlib.suppress(OSError):
            if (self.folder / "result.json").exists():
                return self.epochs
            return min(self.epochs, results.epochs(self.folder))
        return 0

    def result(self) -> dict | None:
        if self.finished is None:
            with contextlib.suppress(ValueError):
                result = results.read(self.folder)
                self.finished = None if self.other() else result
        return self.finished

    def other(self) -> str:
        """How the run that has begun in the folder differs from this cell, in words; empty if it does not."""
        with contextlib.suppress(OSError, *results.DAMAGE):
            if not results.begun(self.folder):
                return ""
            config = json.loads((self.folder / "config.json").read_text())
            found, noted = config["settings"], config.get("augmentation")
            differing = settings.differences(found, self.settings) if isinstance(found, dict) else []
            if not differing:
                differing = settings.other_augmentation(noted, usual(self.settings["dataset"]).record())
            return "; ".join(differing)
        return ""

    def busy(self) -> bool:
        """Whether a running process works on it."""
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            with open(self.folder / "lock") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError):
                    return True
        return False

    def state(self) -> str:
        if self.result() is not None:
            return "done"
        if self.other():
            return "another"
        if self.busy():
            return "running"
        try:
            if (self.folder / "failed.json").exists():
                return "failed"
            return "started" if (self.folder / "config.json").exists() else "waiting"
        except PermissionError:
            return "closed"  # another user's


def parse(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    given = sys.argv[1:] if arguments is None else arguments
    parser = Parser(__doc__, continues=True)
    parser.add_argument("action", choices=("status", "run", "run-one"))
    parser.add_argument("--preset", choices=tuple(PRESETS), default="paper", help="(default: %(default)s)")
    parser.add_argument(
        "--datasets",
        nargs="+",
        type=plain_name,
        metavar="NAME",
        help=f"of {', '.join(DATASETS)} and the names of --folder (default: cifar10 cifar100; of the preset digits, "
        "digits)",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=(*FILES, "all"),
        default=list(TABLE2),
        metavar="NAME",
        help=f"of {', '.join(FILES)}, or all (default: those of Table 2 with terms)",
    )
    parser.add_argument(
        "--terms",
        nargs="+",
        choices=(*TERMS, "all"),
        metavar="TERM",
        help=f"of {', '.join(TERMS)}, or all (default: as Table 2, none w2 lu of its four methods, none of the others)",
    )
    parser.add_argument(
        "--weights", nargs="+", type=not_negative, metavar="W", help="of each term, a cell each (default: the method's)"
    )
    parser.add_argument("--epochs", type=count, help="of every cell (default: the preset's)")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[12], metavar="SEED", help="(default: 12)")
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="read NAME, one of --datasets or a new name, from an image folder: train/<class>/*, test/<class>/*",
    )
    parser.add_argument("--runs", type=given_path, help="where runs lie (default: runs/grid/PRESET of the repository)")
    parser.add_argument(
        "--time-budget", type=budget, metavar="MINUTES", help="stop, with checkpoints, within this (above 1)"
    )
    parser.add_argument(
        "--parallel", type=count, default=1, metavar="K", help="cells at a time, spread over the GPUs (default: 1)"
    )
    parser.add_argument("--index", type=whole, help="of the cell for run-one, as status numbers them")
    parser.add_argument(
        "--gpus", type=count, metavar="N", help="of each cell; several: torchrun (default: one or none)"
    )
    parser.add_argument(
        "--slurm", action="store_true", help="submit the cells as a Slurm array; the next four are for it"
    )
    parser.add_argument("--partition", metavar="NAME", help="(default: the cluster's)")
    parser.add_argument("--account", metavar="NAME", help="(default: yours)")
    parser.add_argument("--time", type=count, metavar="MINUTES", help=f"of a job (default: {FOR_SLURM['time']})")
    parser.add_argument("--cpus", type=count, metavar="N", help=f"of a cell (default: {FOR_SLURM['cpus']})")
    options, rest = parser.parse_known_args(arguments)  # not `given`: for None Ctrl-C is told in a line from here on
    if "all" in options.methods:
        options.methods = list(FILES)
    options.runs = options.runs or CODE.parent / "runs" / "grid" / options.preset
    _check_rest(parser, options.methods, rest)
    if options.action == "run-one" and options.index is None:
        parser.error("run-one needs --index")
    if options.action != "run-one" and options.index is not None:
        parser.error("--index goes with run-one")
    if options.slurm and given[0] != "run":  # in first place, where the jobs have run-one
        parser.error("--slurm goes with run: grid.py run --slurm ...")
    if options.action != "run-one" and not options.slurm:  # a job's run-one repeats the options of its `run --slurm`
        for name in FOR_SLURM:
            if getattr(options, name) is not None:
                parser.error(f"--{name} is for --slurm, without which the cells run here")
    return options, rest


def _check_rest(parser: Parser, methods: list[str], rest: list[str]) -> None:
    """End the program unless the options that the grid does not know are options of every method's program."""
    names = []
    for name, given in _options_of(rest):
        if not name.startswith("--"):
            parser.error(f"unknown argument {given[0]}")
        if given == [name]:
            parser.error(f"{name} needs a value")
        names.append(name)
    for name in names:
        if name in SET_HERE:
            here = f", from {SET_HERE[name]}" if SET_HERE[name] else ""
            parser.error(f"{name}: the grid gives it to each run by itself{here}")
        if meant := difflib.get_close_matches(name, parser._option_string_actions, cutoff=0.85):
            parser.error(f"unknown option {name}: {meant[0]}?")
    for method in methods:
        known = {"--" + key.replace("_", "-") for key in settings.settings_of(FILES[method]).__dataclass_fields__}
        for name in names:
            if name not in known:
                parser.error(f"{name} is an option neither of the grid nor of {FILES[method]}")


def lockless(folder: Path) -> str:
    """Why files in the folder cannot be locked, as on some network file systems; empty if they can."""
    try:
        import fcntl
    except ImportError:
        return "no locks on this system"
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or str(error)
    return ""


def budget(text: str) -> float:
    """Minutes, enough for a cell to be started."""
    minutes = positive(text)
    if 60 * minutes <= WORTHWHILE:
        raise argparse.ArgumentTypeError(f"no cell is begun with less than {WORTHWHILE / 60:g} minute left")
    return minutes


def _settings(method: str, arguments: list[str]) -> dict:
    """A cell's settings, as its program understands them and its config.json holds them."""
    kind = settings.settings_of(FILES[method])
    found = settings.shared(arguments) if kind is settings.Settings else settings.parse(kind, None, arguments)
    return json.loads(json.dumps(vars(found)))


def _options_of(rest: list[str]) -> list[tuple[str, list[str]]]:
    """(name, the arguments that give it) of options for the programs, which all take one value."""
    found, arguments = [], iter(rest)
    for text in arguments:
        name, given, _ = text.partition("=")
        found.append((name, [text] if given else [text, *itertools.islice(arguments, 1)]))
    return found


def _without_weights(rest: list[str]) -> list[str]:
    """The options of every run without --alpha-max and --alpha-min, which a run without a term refuses."""
    options = _options_of(rest)
    return [text for name, given in options if name not in ("--alpha-max", "--alpha-min") for text in given]


def cells(options: argparse.Namespace, rest: list[str]) -> list[Cell]:
    """All cells in the order in which they are run. `rest`, the options that the grid does not know, go to each."""
    datasets = options.datasets or (["digits"] if options.preset == "digits" else ["cifar10", "cifar100"])
    preset = PRESETS[options.preset] | ({"epochs": options.epochs} if options.epochs else {})
    processes = options.gpus or 1
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node {processes}".split() if processes > 1 else []
    given = settings.shared(rest)
    folders = _image_folders(options.folder, datasets, given.data_dir)
    triples = _methods_terms_weights(options, given)
    chosen = [text for key, value in preset.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    found = []
    for dataset, number, (method, term, weight) in itertools.product(datasets, options.seeds, triples):
        label = method + ("" if term == "none" else f"+{term}") + ("" if weight is None else f"-{weight:g}")
        folder = options.runs / dataset / f"{label}-s{number}"
        images = ["--dataset", dataset]
        if dataset in folders:
            path = os.path.abspath(folders[dataset])
            images = ["--dataset", "folder", "--dataset-name", dataset, "--data-dir", path]
        arguments = [*chosen, *(rest if term != "none" else _without_weights(rest)), *images, "--uniformity", term]
        arguments += [] if weight is None else ["--alpha-max", str(weight)]
        arguments += ["--seed", str(number), "--run-dir", str(folder)]
        command = [sys.executable, *launcher, str(CODE / FILES[method]), *arguments]
        values = _settings(method, arguments)
        found.append(Cell(method, term, dataset, number, folder, values["epochs"], command, values, processes))
    names = [cell.name for cell in found]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"{repeated[0]} is asked for twice: give each data set, method, term, weight and seed once")
    return found


def _image_folders(entries: list[str], datasets: list[str], data_dir: str) -> dict[str, str]:
    """Name -> path of each --folder NAME=PATH. UserError unless names and --datasets fit together and all exist."""
    folders: dict[str, str] = {}
    for entry in entries:
        name, _, path = entry.partition("=")
        if not (name and path):
            raise UserError(f"--folder {entry}: needs NAME=PATH")
        if name in folders:
            raise UserError(f"--folder {name}: given twice")
        folders[name] = str(home(path))
    for name in datasets:
        if name not in (*DATASETS, *folders):
            raise UserError(f"--datasets {name}: one of {', '.join(DATASETS)}, or a name that --folder NAME=PATH gives")
    if "folder" in set(datasets) - set(folders) and not os.path.isdir(home(data_dir or " ")):
        raise UserError("--datasets folder: give --data-dir, a folder with train/<class>/* and test/<class>/*")
    if unknown := set(folders) - set(datasets):
        raise UserError(f"--folder {sorted(unknown)[0]}: not among the --datasets {', '.join(datasets)}")
    if missing := [f"{name}={path}" for name, path in folders.items() if not os.path.isdir(path)]:
        raise UserError(f"--folder {missing[0]}: there is no such folder")
    return folders


def _methods_terms_weights(
    options: argparse.Namespace, given: settings.Settings
) -> list[tuple[str, str, float | None]]:
    """(method, term, weight) of the cells of one data set and seed, in their order; weight None is the run's own."""

    def table2(method: str) -> Sequence[str]:
        return TERMS[:3] if method in TABLE2 else TERMS[:1]

    def terms(method: str) -> Sequence[str]:
        if options.terms is None:
            return table2(method)
        return TERMS if "all" in options.terms else options.terms

    def place(pair: tuple[str, str]) -> tuple:
        """Vanilla and W2 of the four methods first, then their other terms, then the further methods."""
        method, term = pair
        return method not in TABLE2, TERMS.index(term) > 1, list(FILES).index(method), TERMS.index(term)

    pairs = sorted(((method, term) for method in options.methods for term in terms(method)), key=place)
    with_term = any(term != "none" for _, term in pairs)
    if options.weights and not with_term:
        raise UserError("--weights are of a term, and no cell has one: --terms")
    if with_term and not options.weights and given.alpha_max is None:
        if given.alpha_min is not None:
            raise UserError("--alpha-min needs --alpha-max or --weights")
        for method in options.methods:
            others = set(terms(method)) - set(table2(method))
            if lacking := sorted(others - set(default_weights(method))) if others else []:
                raise UserError(f"{method} has no default weight for {', '.join(lacking)}: give --weights")
    if options.weights and given.alpha_max is not None:
        raise UserError("give --weights or --alpha-max, not both")
    weights = options.weights or [None]
    return [(method, term, weight) for method, term in pairs for weight in (weights if term != "none" else [None])]


def default_weights(method: str) -> dict:
    """The default weights of a method: those of the terms for which its file has one. Loads torch."""
    from wassersteinssl.files import load_module

    name = next(name for name, path in settings.programs().items() if Path(path).stem == method)
    return getattr(load_module(CODE / FILES[method]), name).ALPHA


def status(grid: list[Cell], parallel: int = 1) -> str:
    lines, states = [], []
    for k, cell in enumerate(grid):
        result, done = cell.result(), len(results.log(cell.folder))
        states.append(cell.state())
        note = f"acc1 {result['acc1']:.2f}  w2 {result['w2']:.3f}" if result else f"{done}/{cell.epochs} epochs"
        found = result["config"]["settings"] if result else {}
        if found.get("dataset") == "folder" and found.get("data_dir") != cell.settings["data_dir"]:
            note += printable(f"  of the images in {found.get('data_dir')}")
        if states[-1] == "another":
            note = f"the folder holds a run of other settings: {cell.other()}"
        lines.append(f"{k:3}  {states[-1]:8} {cell.name:40} {note}")
    tally = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return "\n".join([*lines, f"{count_of(grid)}: {tally}; left: {left(grid, parallel)}"])


def refuse_others(grid: list[Cell]) -> None:
    """UserError if a cell's folder holds a run of other settings."""
    if others := [f"{cell.folder}: {other}" for cell in grid if (other := cell.other())]:
        more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
        raise UserError(f"a run of other settings lies in {others[0]}{more}; choose other --runs, or the same options")


def count_of(grid: list[Cell]) -> str:
    return f"{len(grid)} cell{'s' if len(grid) != 1 else ''}"


def left(grid: list[Cell], parallel: int = 1) -> str:
    """The estimated time for what is left, from the epochs so far of the same method, else of any method."""
    seen: dict[str, list[float]] = {}
    evaluations, unfinished = [], []  # seconds; cells with the number of their epochs that are done
    for cell in grid:
        lines = results.log(cell.folder)
        seen.setdefault(cell.method, []).extend(line["seconds"] + line.get("monitor_seconds", 0) for line in lines)
        if result := cell.result():
            evaluations.append(result["evaluate_seconds"])
        else:
            unfinished.append((cell, 0 if cell.other() else min(cell.epochs, len(lines))))
    everything = [seconds for epochs in seen.values() for seconds in epochs]
    if not unfinished:
        return "nothing"
    if not everything:
        return "unknown until the first epoch is done"
    total = 0.0
    for cell, done in unfinished:
        epochs = seen[cell.method] or everything
        total += (cell.epochs - done) * sum(epochs) / len(epochs)
        total += sum(evaluations) / len(evaluations) if evaluations else 0
    minutes = total / 60 / parallel
    told = f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.1f} hours"
    told = told if minutes >= 1.5 else "about a minute"
    return told if evaluations else f"{told} and the evaluation"


class Runner:
    """Runs cells side by side until all are done, failed, or the time is up."""

    def __init__(self, grid: list[Cell], parallel: int, budget: float | None, gpus: Sequence[str] = ()):
        self.grid, self.parallel, self.gpus = grid, parallel, gpus
        self.waiting = [cell for cell in grid if cell.result() is None]
        self.running: dict[str, subprocess.Popen] = {}  # by the cell's name
        self.failed: list[Cell] = []
        self.gpu_of: dict[str, str] = {}  # by the cell's name
        self.end = time.monotonic() + 60 * budget if budget else float("inf")
        self.stopping = False
        self.reserve = RESERVE + (TORCHRUN if any(cell.processes > 1 for cell in grid) else 0)
        self.most_measuring = max(0.0, 30 * budget - self.reserve / 2) if budget else 0.0
        self.measuring = self._measuring(grid)

    def run(self) -> int:
        from tqdm import tqdm

        # Slurm sends SIGTERM before it preempts a job, and before the time is up the signal that the job asked for.
        before = {number: signal.signal(number, self._stop) for number in ending_signals()}
        total = sum(cell.epochs for cell in self.grid)
        try:
            with tqdm(total=total, desc="grid", unit="epoch", disable=None, smoothing=0) as bar:

                def write(line: str) -> None:
                    with bar.external_write_mode():
                        tell(line)

                bar.update(self._epochs())
                bar.unpause()
                shown = time.monotonic()
                while self.running or (self.waiting and not self.stopping):
                    self._start(write)
                    if not self.running and self.waiting and not self.stopping:
                        write(f"{', '.join(cell.name for cell in self.waiting)}: another process works on it")
                        break
                    self._reap(write)
                    if time.monotonic() > self.end - self.reserve - self.measuring:
                        self._stop()
                    if time.monotonic() > self.end:  # too late: their last checkpoints remain
                        for process in self.running.values():
                            with contextlib.suppress(ProcessLookupError):  # it has just ended
                                os.killpg(process.pid, signal.SIGKILL)
                    time.sleep(0.2)
                    if not self.running or time.monotonic() - shown > SHOW:
                        bar.update(self._epochs() - bar.n)
                        shown = time.monotonic()
                        if self.end < float("inf"):
                            running = [cell for cell in self.grid if cell.name in self.running]
                            self.measuring = max(self.measuring, self._measuring(running))
        finally:
            for process in self.running.values():  # some are left only after an error of the grid itself
                process.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)
        if any(cell.result() is None for cell in self.grid if cell not in self.failed):
            return STOPPED
        return 1 if self.failed else 0

    def _measuring(self, cells: list[Cell]) -> float:
        """Seconds for which a cell may not notice that it should stop, while it computes kNN and the measures of an
        epoch; at most half of the time."""
        noted = [line.get("monitor_seconds", 0) for cell in cells for line in results.log(cell.folder)]
        return min(1.5 * max(noted, default=0), self.most_measuring)

    def _environment(self, cell: Cell) -> dict[str, str]:
        """The environment of a cell. With several cells at a time and several GPUs it names the GPU, or group,
        that the fewest running cells use."""
        environment = environment_beside(self.parallel)
        for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)  # if left over in the shell, the cell would wait for other processes
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", PATIENCE)
        if len(self.gpus) > 1:
            taken = [self.gpu_of[name] for name in self.running]
            self.gpu_of[cell.name] = min(self.gpus, key=taken.count)
            environment["CUDA_VISIBLE_DEVICES"] = self.gpu_of[cell.name]
        return environment

    def _epochs(self) -> int:
        return sum(cell.progress() for cell in self.grid)

    def _start(self, write: Callable[[str], None]) -> None:
        if self.end - time.monotonic() < WORTHWHILE:
            self.stopping = self.stopping or not self.running
            return
        for cell in list(self.waiting):
            if len(self.running) >= self.parallel or self.stopping:
                return
            if cell.busy():
                continue
            self.waiting.remove(cell)
            try:
                cell.folder.parent.mkdir(parents=True, exist_ok=True)
                with open(f"{cell.folder}.log", "a") as log:
                    cell.log_start = log.tell()
                    self.running[cell.name] = subprocess.Popen(
                        cell.command, stdout=log, stderr=subprocess.STDOUT, env=self._environment(cell),
                        start_new_session=True,  # Ctrl-C reaches the grid alone, which then asks each cell once
                    )  # fmt: skip
            except OSError as error:  # the folder may be another user's
                write(f"{cell.name}: failed ({error.filename}: {error.strerror})")
                self.failed.append(cell)
                continue
            write(f"{cell.name}: begun, log in {cell.folder}.log")
            if self.stopping:  # asked while it was being started
                self.running[cell.name].terminate()

    def _reap(self, write: Callable[[str], None]) -> None:
        by_name = {cell.name: cell for cell in self.grid}
        for name, process in list(self.running.items()):
            if (code := process.poll()) is None:
                continue
            del self.running[name]
            cell = by_name[name]
            if (result := cell.result()) is not None:
                remaining = left(self.grid, self.parallel)
                write(f"{name}: done, acc1 {result['acc1']:.2f}, w2 {result['w2']:.3f}; left: {remaining}")
            elif code == STOPPED or self.stopping or cell.busy():
                write(f"{name}: stopped after {len(results.log(cell.folder))} of {cell.epochs} epochs")
                self.waiting.append(cell)
            else:
                why = self._why(cell)
                code = 2 if re.match(r"\S+\.py: error\b", why) else code  # torchrun turns it into 1
                cell.tries += 1
                if cell.tries < 2 and code != 2:
                    write(f"{name}: ended with status {code}, will be tried again ({why})")
                    self.waiting.append(cell)
                else:
                    write(f"{name}: failed with status {code} ({why})")
                    self.failed.append(cell)

    def _why(self, cell: Cell) -> str:
        """The line of the log in which the program told why (torchrun may write pages after it), else the last line."""
        with contextlib.suppress(OSError), open(f"{cell.folder}.log", errors="replace") as log:
            log.seek(cell.log_start)
            lines = log.read().strip().splitlines() or ["no output"]
            for pattern in (r"\S+\.py: (error|failed)\b", r"\S+\.py: stopped\b", ""):
                if told := [line for line in lines if re.match(pattern, line)]:
                    return told[-1]
        return "its log is gone"

    def _stop(self, *_) -> None:
        if not self.stopping:
            for process in self.running.values():
                process.terminate()
        self.stopping = True


class SlurmJob:
    """What a Slurm job does: it runs one cell by its command. If the cell was stopped in time, or another process works
    on it, the job is requeued."""

    def __init__(self, command: list[str]):
        self.command = command
        self.ended = False  # by scancel, or by a preemption, after which Slurm itself requeues it

    def __call__(self) -> None:
        signal.signal(signal.SIGTERM, self._end)  # Slurm sends it to the cell, too
        self.process = subprocess.Popen(self.command)
        self.wait()
        code = self.process.wait()
        if code == STOPPED:
            if not self.ended:
                import submitit

                subprocess.run(["scontrol", "requeue", submitit.JobEnvironment().job_id], check=True)
            time.sleep(60)  # Slurm ends this job
        elif code:
            raise RuntimeError(f"status {code}: {self.command}")

    def _end(self, *_) -> None:
        self.ended = True

    def checkpoint(self):
        """Called by submitit when the time is nearly up."""
        from submitit.helpers import DelayedSubmission

        self.process.terminate()
        self.wait()
        return DelayedSubmission(SlurmJob(self.command))

    def wait(self) -> None:
        """Wait for the process. Unlike Popen.wait this holds no lock, so that a signal handler may interrupt one wait
        by another."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)


def submit(grid: list[Cell], options: argparse.Namespace) -> int:
    """Submit the cells that are not done as one Slurm array."""
    try:
        import submitit
    except ImportError:
        raise UserError("--slurm needs submitit (pip install submitit); without it: code/grid.sbatch") from None
    waiting = [k for k, cell in enumerate(grid) if cell.result() is None and not cell.busy()]
    if not waiting:
        tell(status(grid))
        return 0
    folder = options.runs / "slurm"
    try:
        # submitit also counts a preemption within the first minutes as "timed out", so do not limit these.
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=10**6)
        minutes = options.time or FOR_SLURM["time"]
        given = {"slurm_partition": options.partition, "slurm_account": options.account, "gpus_per_node": options.gpus}
        executor.update_parameters(
            name="wassersteinssl", timeout_min=minutes, cpus_per_task=options.cpus or FOR_SLURM["cpus"],
            slurm_signal_delay_s=min(120, 20 * minutes), slurm_additional_parameters={"requeue": True},
            **{key: value for key, value in given.items() if value is not None},
        )  # fmt: skip
        with executor.batch():
            same = [argument for argument in sys.argv[2:] if argument != "--slurm"]
            command = [sys.executable, str(CODE / "grid.py"), "run-one", *same, "--index"]
            jobs = [executor.submit(SlurmJob([*command, str(k)])) for k in waiting]
        number = jobs[0].job_id.partition("_")[0]
    except Exception as error:  # of sbatch: no such partition, no time left on the account, no Slurm
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"Slurm did not take the jobs: {reason}") from None
    print(f"{len(waiting)} of {len(grid)} cells submitted as job {number}; logs in {folder} and beside each run")
    return 0


def visible_gpus(each: int) -> list[str]:
    """The GPUs that may be used, `each` of them in an entry: those of CUDA_VISIBLE_DEVICES, else all that the driver
    lists. A divided GPU (MIG) counts as its parts, of which a process can use only one."""
    if (named := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        names = [name.strip() for name in named.split(",")]
        found = list(itertools.takewhile(lambda name: name and not name.startswith("-"), names))  # -1 ends the list
    else:
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            return []
        found = []
        for k, gpu in enumerate(re.split(r"^GPU \d+:", listed, flags=re.MULTILINE)[1:]):
            found += re.findall(r"\(UUID: (MIG-[^)]+)\)", gpu) or [str(k)]
    if each > 1:
        found = [name for name in found if not name.startswith("MIG-")]
    return [",".join(found[k : k + each]) for k in range(0, len(found) - each + 1, each)]


def gpus_for(parallel: int, rest: list[str], each: int = 1) -> list[str]:
    """The GPUs over which to spread so many runs at a time; none for one run at a time, or if the runs' --device names
    one GPU, or the CPU."""
    chosen = settings.shared(rest).device not in ("auto", "cuda")
    return visible_gpus(each) if parallel > 1 and not chosen else []


def main() -> int:
    return exit_status(run, *parse())


def run(options: argparse.Namespace, rest: list[str]) -> int:
    grid = cells(options, rest)
    if options.action == "status":
        tell(status(grid, options.parallel))
        return 0
    if options.action == "run-one":
        if options.index >= len(grid):
            raise UserError(f"--index {options.index}: there are cells 0 to {len(grid) - 1}")
        grid = [grid[options.index]]
    refuse_others(grid)
    if options.slurm:
        return submit(grid, options)
    options.runs.mkdir(parents=True, exist_ok=True)
    if why := lockless(options.runs):
        tell(f"{options.runs} cannot be locked ({why}): start no second grid there", sys.stderr)
    done = sum(cell.result() is not None for cell in grid)
    tell(f"{count_of(grid)}, {done} done; left: {left(grid, options.parallel)}")
    gpus = gpus_for(options.parallel, rest, options.gpus or 1)
    runner = Runner(grid, options.parallel, options.time_budget, gpus)
    code = runner.run()
    tell(status(grid, options.parallel))
    if code == STOPPED:
        tell("the same command goes on with what is left")
    if runner.failed:
        tell(f"failed: {', '.join(cell.name for cell in runner.failed)}; each one's log lies beside its folder")
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The grid with stand-in programs that behave like runs: order, continuing, budgets, crashes, two grids at once."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest
from conftest import REPOSITORY, environment, load

from wassersteinssl import augmentation
from wassersteinssl.cli import UserError
from wassersteinssl.run import Signals
from wassersteinssl.settings import PRESETS, TERMS, Settings, option, parse, programs, shared

GRID = REPOSITORY / "code" / "grid.py"

# Takes three epochs of a tenth of a second, continues, stops on SIGTERM with status 75, holds the folder's lock.
STAND_IN = """
import fcntl, json, os, pathlib, signal, sys, time
option = lambda name: sys.argv[sys.argv.index(name) + 1]
folder = pathlib.Path(option("--run-dir"))
folder.mkdir(parents=True, exist_ok=True)
lock = open(folder / "lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
(folder / "config.json").touch()
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
with open(os.environ["STARTED"], "a") as file:
    file.write(folder.name + "\\n")
if os.environ.get("PREEMPTED") == folder.name and not (folder / "preempted").exists():
    (folder / "preempted").touch()
    sys.exit(75)
if os.environ.get("CRASH") == folder.name and (os.environ.get("ALWAYS") or not (folder / "crashed").exists()):
    (folder / "crashed").touch()
    sys.exit(os.environ.get("WHY", "it crashed"))
path = folder / "metrics.jsonl"
path.touch()
while len(list(folder.parent.glob("*/config.json"))) < int(os.environ.get("WAIT", 0)):
    time.sleep(0.05)
for epoch in range(path.read_text().count("\\n"), 3):
    time.sleep(float(os.environ.get("EPOCH", 0.1)))
    with open(path, "a") as file:
        file.write(json.dumps({"epoch": epoch, "seconds": 0.1}) + "\\n")
    if stop:
        sys.exit(75)
result = {"complete": True, "acc1": 1.0, "w2": 0.5, "evaluate_seconds": 1.0, "pretrain_seconds": 1.0, "acc5": 2.0}
result |= {"seed": int(option("--seed")), "lu": -1.0, "alignment": 0.1, "knn1": 1.0, "w2_floor": 0.1}
result |= {"n_test": 9, "dim": 2, "best_acc1": 1.0}
result |= {"method": "BYOL", "uniformity": "none", "dataset": "digits", "device": "", "config": {"settings": {}}}
(folder / "result.json").write_text(json.dumps(result))
"""


def stand_in(method: str) -> str:
    """The program, found as that of the method."""
    return f'"""\n    main({method}, a stand-in)\n"""\n{STAND_IN}'


PARTS = ("__init__", "augmentation", "cli", "settings", "machine", "results")  # all that a grid imports


@pytest.fixture(scope="module")
def grid_module():
    return load(GRID)


@pytest.fixture
def grid(tmp_path):
    """A copy of the code whose method programs are the stand-in; grid("run", ...) runs it."""
    code = tmp_path / "a folder" / "code"
    (code / "wassersteinssl").mkdir(parents=True)
    parts = (f"wassersteinssl/{part}.py" for part in PARTS)
    for name in ("grid.py", "regularisers.py", *parts):
        (code / name).write_text((REPOSITORY / "code" / name).read_text())
    for method, name in programs().items():
        (code / name).parent.mkdir()
        (code / name).write_text(stand_in(method))

    def run(*options, program="grid.py", wait=True, **variables):
        command = [sys.executable, str(code / program), *map(str, options)]
        variables = {**environment(), "STARTED": str(tmp_path / "started"), **variables}
        if not wait:
            return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)

    digits = [text for key, value in PRESETS["digits"].items() for text in (f"--{key.replace('_', '-')}", str(value))]
    run.settings = lambda *options: shared(["--dataset", "digits", *digits, *options])
    run.started = lambda: (tmp_path / "started").read_text().split()
    run.runs = code.parent / "runs" / "grid" / "digits" / "digits"
    return run


DIGITS = ("--preset", "digits", "--epochs", "3")


def test_twelve_cells_run_in_the_wanted_order_and_only_once(grid):
    done = grid("run", *DIGITS)
    assert done.returncode == 0, done.stderr
    names = ["byol", "byol+w2", "moco_v2", "moco_v2+w2", "barlow_twins", "barlow_twins+w2", "zero_cl", "zero_cl+w2"]
    names += ["byol+lu", "moco_v2+lu", "barlow_twins+lu", "zero_cl+lu"]
    assert grid.started() == [f"{name}-s12" for name in names]
    assert "12 cells: 12 done; left: nothing" in done.stdout
    assert grid("run", *DIGITS).returncode == 0
    assert len(grid.started()) == 12


def test_a_budget_stops_in_time_and_the_same_command_goes_on(grid, grid_module, tmp_path):
    code = tmp_path / "a folder" / "code" / "grid.py"
    text = code.read_text()
    assert "RESERVE = 20" in text
    assert "WORTHWHILE = 60" in text
    code.write_text(text.replace("RESERVE = 20", "RESERVE = 2").replace("WORTHWHILE = 60", "WORTHWHILE = 2.5"))
    options = ("run", *DIGITS, "--methods", "byol", "--time-budget", 4 / 60)
    start = time.monotonic()
    stopped = grid(*options, EPOCH="0.7")
    assert time.monotonic() - start < 6
    assert stopped.returncode == 75, stopped.stderr
    lines = (grid.runs / "byol-s12" / "metrics.jsonl").read_text().splitlines()
    assert 1 <= len(lines) <= 3
    finished = grid("run", *DIGITS, "--methods", "byol")
    assert finished.returncode == 0
    for cell in grid.runs.glob("byol*-s12"):  # no epoch twice
        assert [json.loads(line)["epoch"] for line in (cell / "metrics.jsonl").read_text().splitlines()] == [0, 1, 2]


def test_a_crash_is_tried_once_more_at_the_end(grid):
    done = grid("run", *DIGITS, "--methods", "byol", CRASH="byol-s12")
    assert done.returncode == 0, done.stderr
    assert grid.started() == ["byol-s12", "byol+w2-s12", "byol+lu-s12", "byol-s12"]


def test_a_start_that_was_stopped_is_no_crash(grid):
    done = grid("run", *DIGITS, "--methods", "byol", "--terms", "none", CRASH="byol-s12", PREEMPTED="byol-s12")
    assert done.returncode == 0, done.stderr
    assert grid.started() == 3 * ["byol-s12"]


def test_a_cell_that_always_crashes_is_named_and_the_others_finish(grid):
    done = grid("run", *DIGITS, "--methods", "byol", CRASH="byol-s12", ALWAYS="1")
    assert done.returncode == 1
    assert "digits/byol-s12: failed with status 1 (it crashed)" in done.stdout + done.stderr
    assert grid.started().count("byol-s12") == 2
    assert "2 done" in done.stdout


def test_what_a_program_tells_is_the_reason_whatever_comes_behind_it(grid):
    """Behind it torchrun writes pages and turns status 2 into 1: a mistake, which is not tried again."""
    mistake = "byol.py: error: --batch-size 65\nbyol.py: stopped (process 1): another process\n====\n(====)"
    options = ("run", *DIGITS, "--methods", "byol", "--terms", "none")
    done = grid(*options, CRASH="byol-s12", ALWAYS="1", WHY=mistake)
    assert "failed with status 2 (byol.py: error: --batch-size 65)" in done.stdout
    assert len(grid.started()) == 1
    done = grid(*options, CRASH="byol-s12", ALWAYS="1")  # not the mistake of the time before
    assert "failed with status 1 (it crashed)" in done.stdout


def test_settings_are_those_that_the_program_makes_of_the_command(grid_module, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grid.py", "run", "--preset", "digits", "--methods", "all", "--width", "8"])
    for cell in grid_module.cells(*grid_module.parse()):
        module = load(REPOSITORY / "code" / grid_module.FILES[cell.method])
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Settings)]
        assert cell.settings == vars(parse(max(kinds, key=lambda kind: len(kind.__mro__)), "", cell.command[2:]))


def test_a_run_of_other_options_of_the_method_is_another(grid_module, monkeypatch, tmp_path):
    def cell(*options):
        arguments = ["--preset", "digits", "--methods", "moco_v2", "--terms", "none", "--runs", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["grid.py", "run", *arguments, *options])
        return grid_module.cells(*grid_module.parse())[0]

    run = cell("--queue-size", "64")
    run.folder.mkdir(parents=True)
    (run.folder / "config.json").write_text(json.dumps({"settings": run.settings}))
    assert cell().other() == ""  # nothing to lose
    (run.folder / "metrics.jsonl").touch()
    assert cell("--queue-size=64").other() == ""
    assert cell("--queue-size=64", "--momentum", "0.5").other() == "momentum 0.99, now 0.5"
    assert cell().other() == "queue_size 64, now 4096"
    assert cell().state() == "another"


MINE = """
from dataclasses import dataclass
from wassersteinssl.cli import positive
from wassersteinssl.settings import Settings, option, parse

@dataclass(frozen=True)
class OnlyHereSettings(Settings):
    flag: bool = option(False, "flag", check=lambda text: text == "yes")
    layers: tuple = option((1, 2), "layers", check=lambda text: tuple(map(int, text.split(","))))
    smooth: float | None = option(None, "smoothing", check=positive)
    part: float = option(0.5, "percent", check=lambda text: float(text) / 100)

if __name__ == "__main__":
    SETTINGS = parse(OnlyHereSettings, __doc__)

import not_needed_for_that

class OnlyHere(BYOL):
    pass

if __name__ == "__main__":
    main(OnlyHere, SETTINGS)
"""


def test_a_method_of_ones_own_is_found_and_what_its_checks_make_is_no_other_setting(grid, tmp_path):
    folder = grid.runs.parents[3] / "code" / "OnlyHere"
    folder.mkdir()
    (folder / "only_here.py").write_text(MINE)
    part, others = ["--part", "40"], ["--flag", "yes", "--layers=3,4", "--smooth", "0.5"]
    status = ["status", *DIGITS, "--methods", "only_here"]
    command = [*status, *part, *others]
    assert "only_here-s12" in grid(*command).stdout
    run = grid.runs / "only_here-s12"
    run.mkdir(parents=True)
    settings = vars(grid.settings("--epochs", "3")) | {"flag": True, "layers": [3, 4], "smooth": 0.5, "part": 0.4}
    (run / "config.json").write_text(json.dumps({"settings": settings}))
    (run / "metrics.jsonl").write_text("{}\n")
    assert "another" not in grid(*command).stdout
    assert "smooth 0.5, now 0.25" in grid(*command[:-1], "0.25").stdout
    assert "flag True, now False" in grid(*(text.replace("yes", "no") for text in command)).stdout
    assert "part 0.4, now 0.5" in grid(*status, *others).stdout
    told = grid(*command[:-1], "-1").stderr
    assert told == "grid.py: error: argument --smooth: must be above 0, not -1 (--help lists the options)\n"
    noted = augmentation.usual("digits").record()
    for key, changed in (("flip", {"flip": 0.5}), ("", {})):
        (run / "config.json").write_text(json.dumps({"settings": settings, "augmentation": noted | changed}))
        assert ("augmentation: flip 0.5, now 0" in grid(*command).stdout) == bool(key)


@pytest.mark.parametrize(("file", "name"), [("only_here.py", "BYOL"), ("byol.py", "OnlyHere")])
def test_two_programs_of_one_name_are_told(grid, file, name):
    folder = grid.runs.parents[3] / "code" / "OnlyHere"
    folder.mkdir()
    (folder / file).write_text(stand_in(name))
    done = grid("status")
    assert done.returncode == 2
    why = f"error: code/BYOL/byol.py and code/OnlyHere/{file}: give the file and its class another name\n"
    assert done.stderr == why


@pytest.mark.parametrize("default", [True, None, ()])
def test_an_option_whose_text_has_no_meaning_is_refused(default):
    with pytest.raises(TypeError, match="needs check=, from text to a value, or choices="):
        option(default, "a flag")


def test_a_run_of_other_settings_is_not_done_and_told(grid):
    assert grid("run", *DIGITS, "--methods", "byol", "--terms", "none").returncode == 0
    config = grid.runs / "byol-s12" / "config.json"
    config.write_text(json.dumps({"settings": {**vars(grid.settings("--epochs", "2")), "seed": 12}}))
    told = grid("status", *DIGITS, "--methods", "byol", "--terms", "none").stdout
    assert "another  digits/byol-s12" in told
    assert "the folder holds a run of other settings: epochs 2, now 3" in told
    assert "0 done" not in told
    assert "1 cell: 1 another" in told
    for slurm in ((), ("--slurm",)):
        refused = grid("run", *slurm, *DIGITS, "--methods", "byol", "moco_v2", "--terms", "none")
        assert refused.returncode == 2
        told = r"a run of other settings lies in .*byol-s12: epochs 2, now 3; choose other --runs, or the same options"
        assert re.fullmatch(rf"grid\.py: error: {told}\n", refused.stderr)
    assert grid.started() == ["byol-s12"]
    config.write_text(json.dumps({"settings": {**vars(grid.settings("--epochs", "3")), "device": "cuda"}}))
    assert "1 done" in grid("status", *DIGITS, "--methods", "byol", "--terms", "none").stdout


def test_two_grids_share_the_work_and_no_cell_runs_twice(grid):
    both = [grid("run", *DIGITS, "--methods", "byol", "moco_v2", wait=False) for _ in range(2)]
    codes = [process.wait(timeout=60) for process in both]
    for process in both:
        process.communicate()
    assert sorted(codes) in ([0, 0], [0, 75])  # 75: the other one was at the last cell
    assert len(list(grid.runs.glob("*/result.json"))) == 6
    epochs = [(cell / "metrics.jsonl").read_text().count("\n") for cell in grid.runs.iterdir() if cell.is_dir()]
    assert epochs == [3] * 6


def test_a_cell_that_another_process_works_on_is_left_alone(grid):
    cell = grid.runs / "byol-s12"
    cell.mkdir(parents=True)
    with open(cell / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for options in (("run-one", "--index", 0), ("run", "--methods", "byol", "--terms", "none", "w2")):
            done = grid(*options, *DIGITS)
            assert done.returncode == 75
            assert "digits/byol-s12: another process works on it" in done.stdout + done.stderr
    assert grid.started() == ["byol+w2-s12"]


def test_cells_that_cannot_be_begun_are_told_once(grid):
    grid.runs.parent.mkdir(parents=True)
    grid.runs.write_text("no folder")
    done = grid("run", *DIGITS, "--methods", "byol", "--terms", "none")
    assert done.returncode == 1
    assert "digits/byol-s12: failed (" in done.stdout
    assert "another process" not in done.stdout


def test_cells_run_side_by_side(grid):
    """Each of them waits for the other two to have begun."""
    assert grid("run", *DIGITS, "--methods", "byol", "--parallel", "3", WAIT="3").returncode == 0
    assert len(grid.started()) == 3


@pytest.mark.parametrize(
    ("visible", "each", "found"),
    [
        ("0,1", 1, ["0", "1"]),
        ("0,-1,1", 1, ["0"]),
        ("GPU-1a,MIG-1b", 1, ["GPU-1a", "MIG-1b"]),
        ("3, 5,7", 1, ["3", "5", "7"]),
        ("0,1,2,3,4", 2, ["0,1", "2,3"]),
        ("", 1, []),
    ],
)
def test_the_gpus_are_those_that_the_user_shows(grid_module, monkeypatch, visible, each, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert grid_module.visible_gpus(each) == found


def test_the_gpus_are_those_that_the_driver_lists(grid_module, monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert grid_module.visible_gpus(1) == []
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-1)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-2)'\n")
    smi.chmod(0o755)
    assert grid_module.visible_gpus(1) == ["0", "1"]
    parts = "".join(f"  MIG 3g.20gb     Device  {k}: (UUID: MIG-{k})\n" for k in range(2))
    smi.write_text(f"#!/bin/sh\ncat << END\nGPU 0: A100 (UUID: GPU-1)\n{parts}GPU 1: A100 (UUID: GPU-2)\nEND\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert grid_module.visible_gpus(1) == ["MIG-0", "MIG-1", "1"]
    assert grid_module.visible_gpus(2) == []


def test_cells_at_a_time_are_spread_over_the_gpus(grid, tmp_path):
    """Each of the four waits for the others, so that all run at once."""
    (folder := tmp_path / "gpus").mkdir()
    note = f"open({str(folder)!r} + '/' + folder.name, 'w').write(os.environ.get('CUDA_VISIBLE_DEVICES', 'any'))\n"
    for name in ("BYOL/byol.py", "MoCov2/moco_v2.py"):
        program = tmp_path / "a folder" / "code" / name
        program.write_text(program.read_text().replace("stop = []\n", f"stop = []\n{note}"))
    options = (*DIGITS, "--methods", "byol", "moco_v2", "--terms", "none", "w2", "--parallel", "4")
    assert grid("run", *options, WAIT="4", CUDA_VISIBLE_DEVICES="4,6").returncode == 0
    assert sorted(path.read_text() for path in folder.iterdir()) == ["4", "4", "6", "6"]


def test_a_budget_leaves_time_for_the_measures_of_an_epoch(grid_module, tmp_path):
    cell = grid_module.Cell("a", "none", "digits", 12, tmp_path, 3, [])
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "seconds": 9.0, "monitor_seconds": 40.0}\n')
    assert grid_module.Runner([cell], 1, 60).measuring == 60
    assert grid_module.Runner([cell], 1, 1).measuring == 20  # of a minute, half of what is left
    assert grid_module.Runner([cell], 1, None).measuring == 0
    cell.processes = 2  # torchrun takes longer to end
    assert grid_module.Runner([cell], 1, 1).measuring == 5


def test_a_slurm_array_is_of_the_same_command(grid_module, monkeypatch, tmp_path):
    submitted = []

    class Executor:
        def __init__(self, *_, **__):
            pass

        def update_parameters(self, **_):
            pass

        def batch(self):
            return contextlib.nullcontext()

        def submit(self, job):
            submitted.append(job.command)
            return types.SimpleNamespace(job_id="7_0")

    monkeypatch.setitem(sys.modules, "submitit", types.SimpleNamespace(AutoExecutor=Executor))
    same = ["--preset", "digits", "--time", "9", "--runs", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["grid.py", "run", *same, "--slurm"])
    assert grid_module.main() == 0
    assert len(submitted) == 12
    assert submitted[-1][2:] == ["run-one", *same, "--index", "11"]
    monkeypatch.setattr(sys, "argv", submitted[-1][1:])
    options, _ = grid_module.parse()
    assert (options.action, options.index, options.runs) == ("run-one", 11, tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["grid.py", *same, "run", "--slurm"])
    with pytest.raises(SystemExit):
        grid_module.parse()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_an_interrupt_leaves_checkpoints_and_status_75(grid, number):
    process = grid("run", *DIGITS, "--methods", "byol", wait=False, EPOCH="0.5")
    while not (grid.runs / "byol-s12" / "metrics.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert len(grid.started()) == 1


def test_nohup_is_respected_and_a_closed_terminal_is_else_a_signal_to_end(grid_module):
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler in (signal.SIG_IGN, signal.SIG_DFL):
            signal.signal(signal.SIGHUP, handler)
            with Signals():
                assert (signal.getsignal(signal.SIGHUP) is handler) == (handler is signal.SIG_IGN)
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_status_tells_of_what_other_folder_the_images_were(grid, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options = (*DIGITS, "--datasets", "cifar10", "--methods", "byol", "--terms", "none", "--folder")
    assert grid("run", *options, f"cifar10={tmp_path / 'a'}").returncode == 0
    path = grid.runs.parent / "cifar10" / "byol-s12" / "result.json"
    settings = {"dataset": "folder", "data_dir": str(tmp_path / "a")}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {"settings": settings}}))
    assert "of the images" not in grid("status", *options, f"cifar10={tmp_path / 'a'}").stdout
    assert f"of the images in {tmp_path / 'a'}\n" in grid("status", *options, f"cifar10={tmp_path / 'b'}").stdout


def test_run_one_runs_the_cell_that_status_numbers(grid):
    listed = grid("status", *DIGITS).stdout.splitlines()
    assert listed[3].split()[:3] == ["3", "waiting", "digits/moco_v2+w2-s12"]
    assert grid("run-one", "--index", 3, *DIGITS).returncode == 0
    assert grid.started() == ["moco_v2+w2-s12"]
    assert grid("run-one", "--index", 12, *DIGITS).returncode == 2


def test_a_home_behind_an_equals_sign_is_one_folder_for_grid_and_runs(grid_module, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["grid.py", "run", "--preset", "digits", "--runs=~/x"])
    cell = grid_module.cells(*grid_module.parse())[0]
    assert str(cell.folder) in cell.command
    assert cell.folder == tmp_path / "x" / "digits" / "byol-s12"


def test_image_folders_stand_in_for_a_data_set(grid_module, tmp_path, monkeypatch):
    arguments = ["run", "--preset", "mini", "--datasets", "cifar10", "--folder", f"cifar10={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["grid.py", *arguments, "--precision", "bf16", "--data-dir", "of the others"])
    options, rest = grid_module.parse()
    cell = grid_module.cells(options, rest)[1]
    command = " ".join(cell.command)
    assert f"--dataset folder --dataset-name cifar10 --data-dir {tmp_path} --uniformity w2" in command
    assert "--epochs 20 --width 16 --linear-epochs 10 --precision bf16" in command
    assert cell.settings["data_dir"] == str(tmp_path)


def test_image_folders_have_any_name(grid_module, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grid.py", "run", "--datasets", "cats", "--folder", f"cats={tmp_path}"])
    cell = grid_module.cells(*grid_module.parse())[0]
    assert (cell.settings["dataset"], cell.settings["dataset_name"], cell.name) == ("folder", "cats", "cats/byol-s12")


@pytest.mark.parametrize(
    "options",
    [
        ("run", "--folder", "cifar10"),
        ("run", "--runs", ""),
        ("run", "--datasets", "cats", "--folder", "cats=/tmp", "--folder", "cats=/"),
        ("run", "--folder", "stl10=x"),
        ("run", "--datasets", "cats"),
        ("run", "--datasets", "folder"),
        ("run", "--datasets", "folder", "--data-dir", "/nowhere"),
        ("run", "--datasets", "cifar10", "--folder", "cifar10=/nowhere"),
        ("status", "--seeds", "12", "--batch-size", "1"),
        ("run-one",),
        ("run", "--preset", "tiny"),
        ("run", "--time-budget", "-1"),
        ("run", "--time-budget", "1"),
        ("run", "--parallel", "0"),
        ("run", "--slurm", "--time", "0"),
        ("status", "--slurm"),
        ("status", "--index", "3"),
        ("run", "--index", "3"),
        ("run", "--partition", "gpu"),
        ("run", "--time", "60"),
        ("status", "--cpus", "4"),
        ("dance",),
        ("run", "--seed=13"),
        ("status", "--uniformity", "w2"),
        ("run", "--stage", "pretrain"),
        ("run", "digits"),
        ("run", "--width"),
        ("run", "--seeds", "12", "12"),
        ("run", "--terms", "w2", "--weights", "10", "1e1"),
        ("run", "--terms", "w2", "--weights", "10", "--alpha-max", "1"),
        ("status", "--terms", "w2", "--alpha-min", "0"),
    ],
)
def test_a_mistake_is_told_with_status_2(grid, options):
    done = grid(*options)
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_estimate_grows_with_what_is_left(grid_module, tmp_path):
    def cell(method, epochs_done, total):
        folder = tmp_path / f"{method}{epochs_done}"
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "seconds": 60.0}) + "\n" if epochs_done else "")
        return grid_module.Cell(method, "none", "digits", 12, folder, total, [])

    assert grid_module.left([cell("a", 0, 5)]) == "unknown until the first epoch is done"
    assert grid_module.left([cell("b", 1, 11)]) == "about 10 minutes and the evaluation"
    assert grid_module.left([cell("c", 1, 13)], parallel=3) == "about 4 minutes and the evaluation"
    looking = cell("e", 1, 11)
    (looking.folder / "metrics.jsonl").write_text('{"epoch": 0, "seconds": 50.0, "monitor_seconds": 10.0}\n')
    assert grid_module.left([looking]) == "about 10 minutes and the evaluation"
    assert grid_module.left([cell("f", 1, 2)]) == "about a minute and the evaluation"
    wrong = cell("g", 1, 2)
    (wrong.folder / "metrics.jsonl").write_text('{"epoch": 0, "seconds": 50.0, "monitor_seconds": "a"}\n')
    assert grid_module.left([wrong]) == "unknown until the first epoch is done"
    another = cell("d", 0, 2)
    another.settings["epochs"] = 2
    (another.folder / "config.json").write_text(json.dumps({"settings": {"epochs": 9}}))
    lines = "".join(json.dumps({"epoch": epoch, "seconds": 60.0}) + "\n" for epoch in range(9))
    (another.folder / "metrics.jsonl").write_text(lines)
    assert grid_module.left([another]) == "about 2 minutes and the evaluation"


def test_a_signal_while_a_cell_is_being_started_reaches_it(grid_module, tmp_path, monkeypatch):
    class Signalled(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Signalled)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    begun = time.monotonic()
    runner = grid_module.Runner([grid_module.Cell("a", "none", "digits", 12, tmp_path / "a", 3, sleep)], 1, None)
    assert runner.run() == 75
    assert time.monotonic() - begun < 30


def test_without_submitit_slurm_users_are_told_what_to_do(grid, tmp_path):
    (tmp_path / "a folder" / "code" / "submitit.py").write_text("raise ImportError")
    done = grid("run", "--slurm", *DIGITS)
    assert done.returncode == 2
    assert done.stderr.startswith("grid.py: error: --slurm needs submitit")
    assert "code/grid.sbatch" in done.stderr


def test_several_gpus_are_started_by_torchrun(grid_module, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["grid.py", "run", "--preset", "paper", "--gpus", "4"])
    command = grid_module.cells(*grid_module.parse())[0].command
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    assert command[6].endswith("byol.py")


def test_torchrun_waits_for_checkpoints_unless_the_user_says_how_long(grid_module, monkeypatch, tmp_path):
    cell = grid_module.Cell("a", "none", "digits", 12, tmp_path, 3, [])
    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    monkeypatch.delenv(name, raising=False)
    assert int(grid_module.Runner([cell], 1, None)._environment(cell)[name]) >= 120
    monkeypatch.setenv(name, "7")
    assert grid_module.Runner([cell], 1, None)._environment(cell)[name] == "7"


def test_a_slurm_job_passes_the_failure_of_its_cell_on(grid_module):
    grid_module.SlurmJob([sys.executable, "-c", ""])()
    with pytest.raises(RuntimeError, match="status 3"):
        grid_module.SlurmJob([sys.executable, "-c", "raise SystemExit(3)"])()


def test_a_slip_of_the_pen_and_a_file_for_a_folder_are_told(tmp_path):
    def tell(*arguments):
        command = [sys.executable, str(GRID), *arguments]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        return done.stderr

    assert "unknown option --presett: --preset?" in tell("status", "--presett", "mini")
    assert "whole number" in tell("status", "--epochs", "\u00b2")
    (tmp_path / "file").touch()
    assert tell("run", "--preset", "digits", "--runs", str(tmp_path / "file")).startswith("grid.py: error: ")


def test_a_term_that_lacks_a_weight_is_told_before_anything_runs(grid_module, monkeypatch):
    def plan(*arguments):
        return commands(grid_module, monkeypatch, *arguments)

    with pytest.raises(UserError, match="simclr has no default weight for w2: give --weights"):
        plan("--methods", "byol", "simclr", "--terms", "none", "w2")
    assert len(plan("--methods", "byol", "moco_v2", "--terms", "none", "w2", "lu")) == 6
    for given in (["--alpha-max", "1"], ["--alpha-max=1"]):
        assert len(plan("--methods", "simclr", "--terms", "none", "w2", *given, "--alpha-min", "0")) == 2
    with pytest.raises(UserError, match="--alpha-min needs --alpha-max"):
        plan("--methods", "byol", "--terms", "none", "w2", "--alpha-min", "0")


def commands(grid_module, monkeypatch, *arguments):
    """What the grid would start: folder's name -> options."""
    monkeypatch.setattr(sys, "argv", ["grid.py", "run", "--preset", "digits", *arguments])
    return {cell.folder.name: " ".join(cell.command) for cell in grid_module.cells(*grid_module.parse())}


def test_terms_of_any_method_and_several_weights(grid_module, monkeypatch):
    found = commands(
        grid_module, monkeypatch, "--methods", "simsiam", "--terms", "none", "ssw", "--weights", "0.5", "2"
    )
    assert list(found) == ["simsiam-s12", "simsiam+ssw-0.5-s12", "simsiam+ssw-2-s12"]
    assert "--alpha-max" not in found["simsiam-s12"]
    assert "--uniformity ssw" in found["simsiam+ssw-2-s12"]
    assert "--alpha-max 2.0" in found["simsiam+ssw-2-s12"]


def test_a_weight_for_all_runs_is_not_given_to_those_without_a_term(grid_module, monkeypatch):
    for given in (["--alpha-max", "3", "--alpha-min=1"], ["--alpha-max=3", "--alpha-min", "1"]):
        found = commands(grid_module, monkeypatch, "--methods", "byol", "--terms", "none", "w2", *given, "--width", "8")
        assert "--alpha" not in found["byol-s12"]
        assert "--width 8" in found["byol-s12"]
        assert " ".join([*given, "--width 8"]) in found["byol+w2-s12"]


def test_without_terms_the_grid_is_that_of_table_2(grid_module, monkeypatch):
    found = commands(grid_module, monkeypatch, "--methods", "all")
    assert len(found) == 4 * 3 + len(programs()) - 4
    assert [name for name in found if name.startswith("simclr")] == ["simclr-s12"]
    everything = commands(grid_module, monkeypatch, "--methods", "byol", "--terms", "all", "--weights", "1")
    assert len(everything) == 1 + len(TERMS)


def test_a_cell_does_not_wait_for_processes_that_are_left_over_in_the_shell(grid_module, monkeypatch):
    left_over = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in left_over:
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("OF_THE_USER", "2")
    environment = grid_module.Runner([], 1, None)._environment(None)
    assert environment["OF_THE_USER"] == "2"
    assert not set(left_over) & set(environment)


def test_a_log_that_cannot_be_written_costs_its_cell_alone(grid):
    (grid.runs / "byol-s12.log").mkdir(parents=True)
    done = grid("run", *DIGITS, "--methods", "byol", "--terms", "none", "w2")
    assert done.returncode == 1
    assert re.search(r"byol-s12: failed \(.*byol-s12.log: Is a directory\)", done.stdout)
    assert grid.started() == ["byol+w2-s12"]
    assert "1 waiting, 1 done" in done.stdout


def test_a_folder_that_may_not_be_looked_into_is_told(grid_module, tmp_path, monkeypatch):
    (folder := tmp_path / "run").mkdir()
    cell = grid_module.Cell("byol", "none", "digits", 12, folder, 3, [])
    exists = grid_module.Path.exists

    def refused(path, **keywords):
        if path.parent == folder:
            raise PermissionError
        return exists(path, **keywords)

    monkeypatch.setattr(grid_module.Path, "exists", refused)
    assert cell.state() == "closed"
    assert "1 closed" in grid_module.status([cell])


def test_a_file_system_without_locks_is_told(grid_module, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    assert grid_module.lockless(tmp_path) == ""
    monkeypatch.setattr(fcntl, "flock", flock)
    assert grid_module.lockless(tmp_path) == "Function not implemented"
    assert list(tmp_path.iterdir()) == []


def test_each_seed_has_a_cell_that_is_given_it(grid_module, monkeypatch):
    found = commands(grid_module, monkeypatch, "--methods", "byol", "--terms", "none", "w2", "--seeds", "12", "13")
    assert list(found) == ["byol-s12", "byol+w2-s12", "byol-s13", "byol+w2-s13"]
    assert all(f"--seed {name[-2:]} " in command for name, command in found.items())


def test_the_estimate_counts_the_evaluation_of_the_cells_that_are_left(grid_module, tmp_path):
    cells = []
    for name in ("done", "left", "also left"):
        (folder := tmp_path / name).mkdir()
        cells.append(grid_module.Cell("byol", "none", "digits", 12, folder, 1, []))
    lines = json.dumps({"epoch": 0, "seconds": 60.0}) + "\n"
    (cells[0].folder / "metrics.jsonl").write_text(lines)
    cells[0].finished = {"evaluate_seconds": 240.0}
    assert grid_module.left(cells) == "about 10 minutes"  # 2 x (1 + 4)


def test_epochs_are_those_of_every_cell(tmp_path):
    command = [sys.executable, str(GRID), "status", "--preset", "digits", "--epochs=3", "--runs", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.count("0/3 epochs") == 12


@pytest.fixture
def regularisers(tmp_path, monkeypatch):
    """regularisers(*options): the cells that it runs; kNN is best at the second weight."""
    module = load(REPOSITORY / "code" / "regularisers.py")

    class Runner:
        """Notes its cells."""

        def __init__(self, cells, parallel, minutes, gpus):
            self.cells, self.stopping = cells, start.stopping
            start.asked.append((parallel, minutes, gpus))

        def run(self):
            start.ran += self.cells
            return start.status

    def result(cell):
        if not cell.folder.is_relative_to(tmp_path / "runs" / "search"):
            return None
        return {"knn1": 40 - abs(module.SEARCH_WEIGHTS[cell.term].index(cell.settings["alpha_max"]) - 1)}

    monkeypatch.setattr(module.grid, "Runner", Runner)
    monkeypatch.setattr(module.grid, "left", lambda *_: "")
    monkeypatch.setattr(module.grid.Cell, "result", result)

    def start(*options):
        start.ran, start.asked = [], []
        monkeypatch.setattr(sys, "argv", ["regularisers.py", str(tmp_path / "runs"), *options])
        start.returned = module.main()
        return start.ran

    start.weights, start.status, start.stopping, start.module = module.SEARCH_WEIGHTS, 0, False, module
    return start


def stage(cell):
    return cell.folder.parents[1].name


def test_every_term_is_searched_and_then_run_with_alignment_alone_and_with_byol(regularisers):
    ran = regularisers("--preset", "digits", "--datasets", "digits", "--seeds", "3")
    assert regularisers.returned == 0
    assert set(regularisers.weights) == set(TERMS)
    for method, own in (("align_uniform", {"uniform_weight": 0.0}), ("byol", {})):
        mine = [cell for cell in ran if cell.method == method]
        assert all(own.items() <= cell.settings.items() for cell in mine)
        assert all((cell.dataset, cell.seed) == ("digits", 3) for cell in mine)
        found = {}
        for cell in mine:
            found.setdefault((stage(cell), cell.term), []).append(cell.settings["alpha_max"])
            assert cell.epochs == (6 if stage(cell) == "search" else 30)
        assert found.pop(("final", "none")) == [None]
        for term, weights in regularisers.weights.items():
            assert found.pop(("search", term)) == list(weights)
            assert found.pop(("final", term)) == [weights[1]]
        assert not found
    assert [stage(cell) for cell in ran] == ["search"] * 6 * len(TERMS) + ["final"] * 2 * (1 + len(TERMS))


def test_a_weight_that_diverged_on_a_data_set_is_not_the_best(regularisers, monkeypatch):
    found = {("cifar10", 10): 50, ("cifar10", 1000): 40, ("cifar100", 10): 22, ("cifar100", 100): 21}

    def result(cell):
        accuracy = found.get((cell.dataset, cell.settings["alpha_max"]))
        return None if accuracy is None else {"knn1": accuracy}

    def chosen(*options):
        ran = regularisers("--terms", "ssw", "--bases", "byol", *options)
        return {cell.settings["alpha_max"] for cell in ran if stage(cell) == "final"}

    monkeypatch.setattr(regularisers.module.grid.Cell, "result", result)
    assert chosen() == {10}
    found["cifar100", 1000] = 90
    assert chosen() == {1000}
    assert chosen("--datasets", "cifar10") == {10}  # runs on another data set, of an earlier command say, have no say


def test_a_search_without_a_finished_run_has_no_final_one(regularisers, monkeypatch):
    monkeypatch.setattr(regularisers.module.grid.Cell, "result", lambda _: None)
    ran = regularisers("--terms", "none", "w2", "--bases", "mse", "--datasets", "cifar10")
    assert [(stage(cell), cell.term) for cell in ran] == [*[("search", "w2")] * 3, ("final", "none")]


@pytest.mark.parametrize("status", [1, 75])
def test_a_search_that_ends_badly_ends_badly_and_a_stopped_one_begins_nothing_more(regularisers, status):
    regularisers.status = status
    ran = regularisers("--terms", "w2", "--datasets", "cifar10")
    assert regularisers.returned == status
    assert {stage(cell) for cell in ran} == ({"search"} if status == 75 else {"search", "final"})


def test_a_search_shares_its_time_and_its_gpus_among_all_its_runs(regularisers, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    regularisers("--terms", "w2", "--parallel", "3", "--time-budget", "5")
    (parallel, minutes, gpus), (_, later, _) = regularisers.asked
    assert (parallel, gpus) == (3, ["4", "6"])
    assert 0 < later < minutes < 5


def test_a_search_gives_each_run_its_own_gpus(regularisers, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    regularisers("--terms", "w2", "--bases", "mse", "--parallel", "2", "--gpus", "2")
    assert [gpus for _, _, gpus in regularisers.asked] == [["0,1", "2,3"]] * 2


def test_a_search_that_is_asked_to_stop_in_its_last_run_begins_nothing_more(regularisers):
    regularisers.stopping = True
    ran = regularisers("--terms", "w2", "--datasets", "cifar10")
    assert regularisers.returned == 75
    assert {stage(cell) for cell in ran} == {"search"}


@pytest.mark.parametrize(
    "option", ["--slurm", "--runs=elsewhere", "--methods", "--weights", "--account=x", "--index", "--time-budget=0.5"]
)
def test_a_search_refuses_options_of_the_grid_that_would_do_something_else(regularisers, capsys, option):
    with pytest.raises(SystemExit) as ended:
        regularisers("--terms", "w2", option)
    assert ended.value.code == 2
    assert option.partition("=")[0] in capsys.readouterr().err
    assert regularisers.asked == []


def test_all_runs_of_a_search_share_the_places(grid, tmp_path):
    """Each waits until three have begun in its stage: of two at a time none would end."""
    terms = ("--datasets", "digits", "--bases", "byol", "--terms", "none", "w2", "lu")
    options = (tmp_path / "runs", "--preset", "digits", "--search", "digits", "--epochs", "3", *terms)
    done = grid(*options, "--parallel", "3", program="regularisers.py", WAIT="3")
    assert (done.returncode, done.stderr) == (0, "")
    searched = [f"byol+w2-{weight}-s12" for weight in ("0.3", "3", "30")]
    searched += [f"byol+lu-{weight}-s12" for weight in ("0.15", "1.5", "15")]
    assert sorted(grid.started()[:6]) == sorted(searched)
    assert sorted(grid.started()[6:]) == ["byol+lu-0.15-s12", "byol+w2-0.3-s12", "byol-s12"]  # of equals the first
    assert grid(*options, program="regularisers.py").returncode == 0
    assert len(grid.started()) == 9


def test_a_search_says_at_once_where_runs_of_other_settings_lie(regularisers, tmp_path, capsys):
    folder = tmp_path / "runs" / "search" / "cifar10" / "byol+w2-0.3-s12"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    (folder / "config.json").write_text(json.dumps({"settings": {"width": 3}}))
    assert regularisers("--terms", "w2", "--datasets", "cifar10") == []
    assert regularisers.returned == 2
    assert "a run of other settings lies in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parallel", "rest", "found"),
    [
        (2, ["--width", "2"], ["4", "6"]), (1, [], []), (2, ["--device=cpu"], []), (2, ["--device", "cuda:1"], []),
        (2, ["--device", "cuda"], ["4", "6"]), (2, ["--device=auto"], ["4", "6"]),
    ],
)  # fmt: skip
def test_runs_are_spread_over_gpus_unless_their_options_choose_one(grid_module, monkeypatch, parallel, rest, found):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert grid_module.gpus_for(parallel, rest) == found


@pytest.mark.parametrize("given", [["--alpha-max", "5"], ["--alpha-max=5"], ["--alpha-min", "5", "--alpha-max", "5"]])
def test_a_weight_goes_with_its_value(grid_module, given):
    assert grid_module._without_weights(["--width", "2", *given, "--dim=8"]) == ["--width", "2", "--dim=8"]


def test_the_estimate_of_a_cell_is_by_the_epochs_of_its_own_method(grid_module, tmp_path):
    def cell(method, seconds):
        folder = tmp_path / method
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "seconds": seconds}) + "\n")
        epochs = 1 if method == "slow" else 11
        return grid_module.Cell(method, "none", "digits", 12, folder, epochs, [])

    assert grid_module.left([cell("slow", 6000.0), cell("fast", 60.0)]) == "about 10 minutes and the evaluation"

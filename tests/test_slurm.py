"""The grid on a real Slurm of one node, which slurm.sh starts. Opt-in by WSSL_SLURM_TEST=1, which .ci/run sets: it
installs packages and starts daemons."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment
from test_run import assert_bitwise_equal

GRID = REPOSITORY / "code" / "grid.py"
CELLS = (
    "--preset digits --methods byol --terms none w2 --seeds 12 13 --epochs 40 --width 2 --hidden-dim 16 --dim 8 "
    "--limit-train 300 --linear-epochs 2 --monitor-every 0"
).split()


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The environment of commands that talk to it."""
    if os.environ.get("WSSL_SLURM_TEST") != "1":
        pytest.skip("WSSL_SLURM_TEST is not 1: installs packages and starts daemons")
    pytest.importorskip("submitit")
    folder = tmp_path_factory.mktemp("slurm")
    script = str(Path(__file__).with_name("slurm.sh"))
    started = subprocess.run(["bash", script, "start", folder], capture_output=True, text=True)
    try:
        if started.returncode:
            pytest.skip(f"no Slurm can be started here: {started.stderr.strip()[-300:]}")
        yield {**environment(), "SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable}
    finally:
        subprocess.run(["bash", script, "stop", folder], check=True)


def call(slurm, *command, **keywords):
    done = subprocess.run(list(map(str, command)), env=slurm, capture_output=True, text=True, **keywords)
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition, seconds=300, step=0.5):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(step)


def epochs(folder):
    path = folder / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def stopped(log):
    return log.exists() and "stopped, checkpoint written" in log.read_text()


def signal_until_stopped(slurm, log, *options):
    """Where Slurm is busy with the job it says "try again later", whether or not the signal has arrived, and scancel
    tries again every five seconds: it must end once the run has stopped, or it would hit the restarted job."""
    scancel = subprocess.Popen(["scancel", *options], env=slurm, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: stopped(log), step=0.05)
    finally:
        scancel.kill()
        scancel.wait()


def test_four_runs_as_an_array_of_which_some_are_preempted(slurm, tmp_path):
    runs = tmp_path / "my runs"
    names = ["byol-s12", "byol+w2-s12", "byol-s13", "byol+w2-s13"]
    said = call(slurm, sys.executable, GRID, "run", "--slurm", "--partition", "low", "--cpus", 1, "--gpus", 1,
                "--time", 20, *CELLS, "--runs", runs)  # fmt: skip
    assert said.startswith("4 of 4 cells submitted as job")
    wait_until(lambda: epochs(runs / "digits" / names[0]) >= 2)
    job = said.split()[7].rstrip(";")  # its time will soon be up:
    signal_until_stopped(slurm, runs / "digits" / f"{names[0]}.log", "--signal=USR2", f"{job}_0")
    wait_until(lambda: any(epochs(runs / "digits" / name) >= 2 for name in names[2:]))
    call(slurm, "sbatch", "--partition", "high", "--exclusive", "--output", tmp_path / "urgent", "--wrap", "echo done")
    wait_until(lambda: len(list(runs.glob("digits/*/result.json"))) == 4)
    preempted = [name for name in names[1:] if stopped(runs / "digits" / f"{name}.log")]
    assert preempted
    assert (tmp_path / "urgent").read_text() == "done\n"
    assert "4 done" in call(slurm, sys.executable, GRID, "status", *CELLS, "--runs", runs)

    for name in (names[0], preempted[0]):  # the same as if nothing had happened
        index = names.index(name)
        call(slurm, sys.executable, GRID, "run-one", "--index", index, *CELLS, "--runs", tmp_path / "whole")
        assert_bitwise_equal(tmp_path / "whole" / "digits" / name, runs / "digits" / name)

    call(slurm, sys.executable, REPOSITORY / "code" / "table2.py", runs)
    with open(runs / "table2.csv") as file:
        table = {row["uniformity"]: row for row in csv.DictReader(file) if row["measure"] == "acc1"}
    for term, suffix in (("none", ""), ("w2", "+w2")):
        results = [json.loads((runs / "digits" / f"byol{suffix}-s{s}" / "result.json").read_text()) for s in (12, 13)]
        assert float(table[term]["mean"]) == pytest.approx(sum(result["acc1"] for result in results) / 2)
        assert table[term]["seeds"] == "2"


def test_the_script_for_sites_without_submitit_requeues_itself(slurm, tmp_path):
    """The signal is the one that Slurm sends two minutes before the end of the time."""
    folder = tmp_path / "runs" / "digits" / "byol+w2-s12"
    options = [*CELLS, "--runs", str(tmp_path / "runs")]
    said = call(slurm, "sbatch", "--array=1", "--time=20", "--output", tmp_path / "log",
                REPOSITORY / "code" / "grid.sbatch", *options, cwd=REPOSITORY)  # fmt: skip
    wait_until(lambda: epochs(folder) >= 2)
    signal_until_stopped(slurm, Path(f"{folder}.log"), "--signal=USR1", "--batch", said.split()[-1] + "_1")
    assert epochs(folder) < 40
    wait_until((folder / "result.json").exists)
    assert epochs(folder) == 40


@pytest.mark.parametrize("script", [True, False])
def test_a_cancelled_cell_ends_with_a_checkpoint_and_stays_so(slurm, tmp_path, script):
    folder = tmp_path / "runs" / "digits" / "byol-s12"
    cell = [*CELLS[: CELLS.index("--terms")], *CELLS[CELLS.index("--epochs") :], "--terms", "none"]
    options = [*cell, "--runs", str(tmp_path / "runs")]
    if script:
        said = call(slurm, "sbatch", "--array=0", "--time=20", "--output", tmp_path / "log",
                    REPOSITORY / "code" / "grid.sbatch", *options, cwd=REPOSITORY)  # fmt: skip
        job = said.split()[-1]
    else:
        said = call(slurm, sys.executable, GRID, "run", "--slurm", "--cpus", 1, "--time", 20, *options)
        job = said.split()[7].rstrip(";")
    wait_until(lambda: epochs(folder) >= 2)
    call(slurm, "scancel", job)
    wait_until(lambda: job not in call(slurm, "squeue", "--noheader", "--format", "%A %F %i"))
    assert stopped(Path(f"{folder}.log"))
    assert epochs(folder) < 40
    assert list(folder.glob("checkpoint-*"))

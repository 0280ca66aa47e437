"""Shared by the tests: determinism, and the method programs as a user starts them."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings as hypothesis_settings
from torch.utils._python_dispatch import TorchDispatchMode

from wassersteinssl import settings
from wassersteinssl.files import load_module as load

REPOSITORY = Path(__file__).resolve().parents[1]
BYOL = REPOSITORY / "code" / "BYOL" / "byol.py"
# Settings that say where and how a run computes, not what.
ELSEWHERE = (
    "data_dir device cuda_graph checkpoint_epochs checkpoint_minutes compile tensorboard run_dir resume stage "
    "monitor_every"
).split()
PROGRAMS = {name: REPOSITORY / "code" / path for name, path in settings.programs().items()}

# The smallest run that goes through everything: seconds on one core.
TINY = (
    "--dataset digits --limit-train 200 --width 2 --hidden-dim 16 --dim 8 --batch-size 64 --epochs 3 "
    "--linear-epochs 2 --monitor-every 2 --checkpoint-epochs 1"
).split()

hypothesis_settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=30)
hypothesis_settings.load_profile("repeatable")
torch.set_num_threads(1)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, which programs respect


def environment() -> dict[str, str]:
    """That of the tests, without the path to the package: programs must find it by themselves."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {**kept, "OMP_NUM_THREADS": "1"}


def printed(code: str, *arguments) -> str:
    """What Python code prints in a process of its own, which finds the package."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    path = {"PYTHONPATH": str(REPOSITORY / "code")}
    done = subprocess.run(command, env=environment() | path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def byol(tmp_path):
    """byol("--seed", 3, folder="a") runs the program with TINY's options and more; the finished process."""

    def run(*options, folder="run", program=BYOL, timeout=180, **keywords):
        command = [sys.executable, str(program), *TINY, "--run-dir", str(tmp_path / folder), *map(str, options)]
        return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=timeout, **keywords)

    return run


class NoHostReads(TorchDispatchMode):
    """Refuses every operation for whose result a host has to wait, and counts those that compute something."""

    # lift_fresh: a tensor made of Python numbers, which a GPU gets by a copy that waits
    WAITS = (
        "_local_scalar_dense item nonzero is_nonzero masked_select _unique _unique2 unique_dim unique_consecutive "
        "equal lift_fresh _linalg_eigh _linalg_svd"
    ).split()

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns)
        self.count += not view and "empty" not in name
        return function(*args, **(kwargs or {}))


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(content: dict) -> dict:
    """A result or a metrics line without what differs from run to run: times, paths, the command."""
    changing = ("seconds", "images_per_second", "memory_mb", "config")
    return {key: value for key, value in content.items() if not key.endswith(changing)}


FIGURES = load(REPOSITORY / "code" / "figures.py")


def check_executed(notebook) -> int:
    """How many pictures an executed notebook shows; it ran from top to bottom, with nothing to complain about."""
    import nbformat  # a machine with a GPU may lack it

    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert not re.search(r"/(home|tmp|root|work|Users)/", nbformat.writes(notebook))
    return sum("image/png" in output.get("data", {}) for output in outputs)


def run_study(script: Path, folder: Path, *options) -> Path:
    """Run a study's script as a user does, with seed 5; the data file that it wrote into `folder`."""
    command = [sys.executable, str(script), "--seed", "5", "--out", str(folder), *map(str, options)]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    written = Path(done.stdout.splitlines()[-1].removeprefix("wrote "))
    assert written.parent == folder
    assert written.stem == script.stem
    return written


@pytest.fixture(scope="session")
def few_samples(tmp_path_factory):
    """few_samples(script, *options): the data file of `run_study`, made once."""
    folder = tmp_path_factory.mktemp

    @functools.cache
    def make(script, *options):
        return run_study(script, folder(script.stem), *options)

    return make

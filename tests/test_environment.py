"""The environment that the shell scripts make, with a stand-in for the installer."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from wassersteinssl import machine

pytestmark = pytest.mark.skipif(os.name != "posix", reason="shell scripts")

UV = """#!/bin/sh
if [ "$1" = venv ]; then
  for path; do :; done
  mkdir -p "$path/bin" && ln -s "$BASE" "$path/bin/python"
else
  printf '<%s>' "$@" >>"$LOG"; echo >>"$LOG"
fi
"""


@pytest.fixture
def make(tmp_path):
    """make("requirements.txt", ...) sources environment.sh in a folder with an awkward name; what was installed."""
    root, tools, log = tmp_path / "R&D of $HOME", tmp_path / "my tools", tmp_path / "log"
    root.mkdir()
    tools.mkdir()
    for name in ("pyproject.toml", "requirements.txt", "requirements-test.txt"):
        (root / name).write_text(name)
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    python = tools / "a python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    def make(*requirements):
        before = log.read_text() if log.exists() else ""
        script = f'set -euo pipefail; root=$ROOT; . "{REPOSITORY}/environment.sh"; make_environment "$@"'
        done = subprocess.run(
            ["bash", "-c", script, "bash", *requirements], capture_output=True, text=True, timeout=60,
            env={
                "PATH": f"{tools}:{os.environ['PATH']}", "ROOT": str(make.root), "LOG": str(log), "BASE": str(python),
                "PYTHON": str(python),
            },
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return (log.read_text() if log.exists() else "")[len(before) :].splitlines()

    make.root = root
    return make


def test_paths_with_blanks_and_ampersands_are_taken_as_they_are(make):
    lists, editable = make("requirements.txt", "requirements-test.txt")
    assert lists.endswith(f"<-r><{make.root}/requirements.txt><-r><{make.root}/requirements-test.txt>")
    assert editable.endswith(f"<--editable><{make.root}>")


def test_what_is_installed_is_not_installed_again(make):
    few, more = ["requirements.txt"], ["requirements.txt", "requirements-test.txt"]
    assert len(make(*few)) == len(make(*more)) == 2
    assert make(*few) == make(*more) == make(*few) == []
    (make.root / "requirements-test.txt").write_text("another")
    assert make(*few) == []
    assert len(make(*more)) == 2
    assert make(*more) == []


def test_a_renamed_repository_is_installed_from_where_it_is_now(make):
    make("requirements.txt")
    make.root = make.root.rename(make.root.with_name("renamed"))
    *_, editable = make("requirements.txt")
    assert editable.endswith(f"<--editable><{make.root}>")
    assert make("requirements.txt") == []


@pytest.mark.parametrize("given", ["nowhere", "/nowhere"])
def test_an_environment_that_is_not_there_is_told(given, tmp_path):
    script = f'set -euo pipefail; root=$ROOT; . "{REPOSITORY}/environment.sh"; make_environment requirements.txt'
    environment = {"PATH": os.environ["PATH"], "ROOT": str(tmp_path), "PYTHON_ENV": given, "CDPATH": "/"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"error: no torch in PYTHON_ENV={given}\n")


def test_an_environment_whose_making_was_interrupted_is_made_anew(tmp_path):
    """python -m venv links the interpreter first and installs pip last."""
    log, base, half = tmp_path / "log", tmp_path / "python", tmp_path / ".venv" / "bin" / "python"
    for path, pip in ((base, 0), (half, 1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/sh\n[ "$1" = -c ] || echo "$@" >>"{log}"\n[ "$2" != pip ] || exit {pip}\n')
        path.chmod(0o755)
    for name in ("pyproject.toml", "requirements.txt"):
        (tmp_path / name).write_text(name)
    for tool in ("bash", "sh", "cat", "cksum", "grep", "mv"):  # and no uv
        (tmp_path / "tools").mkdir(exist_ok=True)
        (tmp_path / "tools" / tool).symlink_to(shutil.which(tool))
    script = f'set -euo pipefail; root=$ROOT; . "{REPOSITORY}/environment.sh"; make_environment requirements.txt'
    environment = {"PATH": str(tmp_path / "tools"), "ROOT": str(tmp_path), "PYTHON": str(base)}
    subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert f"-m venv --clear {tmp_path}/.venv" in log.read_text()


@pytest.mark.parametrize(("state", "advised"), [("another", True), ("waiting", False)])
def test_a_fresh_start_is_advised_only_where_runs_are_of_another_version(state, advised, tmp_path):
    shutil.copy(REPOSITORY / "reproduce.sh", tmp_path)
    (tmp_path / "environment.sh").write_text("make_environment() { python=$root/python; }\n")
    program = f'#!/bin/sh\n[ "$2" = run ] && exit 2\necho "  0  {state}  digits/byol-s12"\n'
    (tmp_path / "python").write_text(program)
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(["bash", tmp_path / "reproduce.sh"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert ("--fresh" in done.stderr) == advised


def test_several_processes_share_the_cpus(monkeypatch):
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "cpus", lambda: 6)
    one, two, four = (machine.environment_beside(processes) for processes in (1, 2, 4))
    for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
        assert (one.get(name), two[name], four[name]) == (None, "3", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert machine.environment_beside(4)["OMP_NUM_THREADS"] == "5"


def test_help_from_another_folder():
    script = os.path.relpath(REPOSITORY / "reproduce.sh", "/")
    done = subprocess.run(["bash", script, "--help"], cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--fresh" in done.stdout

"""The benchmark programs run, on tiny sizes, and write what they say. Nothing here looks at a time."""

import json
import runpy
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment, load
from torch.utils._python_dispatch import _get_current_dispatch_mode

FOLDER = REPOSITORY / "code" / "benchmarks"
PROGRAMS = sorted(path.stem for path in FOLDER.glob("bench_*.py"))
RESULTS = REPOSITORY / "code" / "results" / "benchmarks"


def test_there_are_seven():
    assert [f"bench_{name}" for name in "augment data loss metrics start studies train".split()] == PROGRAMS


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_answers_without_torch(name):
    without_torch = f"import runpy, sys; sys.modules['torch'] = None; sys.argv = ['{name}.py', '--help']"
    command = [
        sys.executable,
        "-c",
        f"{without_torch}; sys.path[0] = {str(FOLDER)!r}; runpy.run_module('{name}', run_name='__main__')",
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs_and_writes_its_tables(name, tmp_path, monkeypatch, capsys):
    out = tmp_path / "some" / "out.json"
    options = ["--no-compile"] if name == "bench_augment" else []
    monkeypatch.setattr(
        sys, "argv", [f"{name}.py", "--quick", "--device", "cpu", "--threads", "1", "--out", str(out), *options]
    )
    monkeypatch.syspath_prepend(str(FOLDER))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert not end.value.code
    content = json.loads(out.read_text())
    assert name.removeprefix("bench_") == content["benchmark"].split("-")[0]
    assert content["hardware"]
    assert content["versions"]["torch"]
    assert content["threads"] == 1
    printed = capsys.readouterr().out
    for title, rows in content["tables"].items():
        assert title in printed
        assert rows
        times = [v for row in rows for k, v in row.items() if k in ("ms", "seconds", "step") or k.endswith("images/s")]
        assert times or title == "Targets"
        assert all(value > 0 for value in times)
    assert out.with_suffix(".md").read_text().count("**") == 2 * len(content["tables"])


def test_the_workers_of_the_usual_loader_do_nothing_but_augment(tmp_path, monkeypatch):
    """A worker that is forked inside a mode, such as a counter of operations, runs every operation through it."""

    def watched(*arguments):
        pipeline = pil_pipeline(*arguments)

        def call(image):
            assert _get_current_dispatch_mode() is None
            return pipeline(image)

        return call

    monkeypatch.syspath_prepend(str(FOLDER))
    bench = load(FOLDER / "bench.py")
    pil_pipeline = bench.pil_pipeline
    monkeypatch.setattr(bench, "pil_pipeline", watched)
    monkeypatch.setitem(sys.modules, "bench", bench)
    options = ["--quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["bench_train.py", *options])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(FOLDER / "bench_train.py"), run_name="__main__")
    assert not end.value.code


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_committed_measurements_name_their_hardware(path):
    content = json.loads(path.read_text())
    assert content["hardware"]
    assert content["versions"]["git"]
    assert content["tables"]["Targets"]
    assert path.with_suffix(".md").exists()

"""Input that nobody meant: a line and status 2, never a traceback, a write elsewhere, or a command in a name."""

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import BYOL, PROGRAMS, REPOSITORY, TINY, environment, load, metrics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_grid import grid_module, stand_in  # noqa: F401

from wassersteinssl import audit_files, checkpoint, data, results, run, run_folder, table2, table2_figures
from wassersteinssl.cli import UserError, exit_status, tell
from wassersteinssl.settings import Settings, parse

fuzz = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
DEEP = b"[" * 20_000
# What may go wrong in a file: other bytes, another structure, something that is nearly right.
BYTES = st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()) | st.just(DEEP)


def damaged(content):
    """The content with some bytes changed, lost, or added."""

    def damage(change):
        kind, place, bytes_ = change
        place = int(place * len(content))
        return content[:place] + bytes_ + content[place + (0, len(bytes_), len(content))[kind] :]

    return st.tuples(st.integers(0, 2), st.floats(0, 1), st.binary(min_size=1, max_size=8)).map(damage)


NAMES = ["--" + name.replace("_", "-") for name in Settings.__dataclass_fields__]
WORDS = st.sampled_from(
    [
        *NAMES,
        "--help",
        "--",
        "-h",
        "1",
        "0",
        "-1",
        "1e400",
        "nan",
        "9" * 5000,
        "9" * 400,
        "9" * 19,
        "1e39",
        "digits",
        "yes",
        "",
    ]
)


@fuzz
@given(st.lists(WORDS | st.text(max_size=8), max_size=6))
def test_any_command_line_gives_settings_or_one_line_and_status_2(arguments):
    errors, status = io.StringIO(), 0
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parse(Settings, "", arguments)
    except SystemExit as end:
        status = end.code
    assert status in (None, 0, 2)  # None: help
    assert status != 2 or ": error: " in errors.getvalue()


@fuzz
@given(st.data())
@pytest.mark.parametrize("name", ["z.npy", "z.npz", "z.pt", "z.safetensors", "z.csv"])
def test_damaged_bytes_are_told_or_read(tmp_path, name, data):
    rows = np.random.default_rng(0).random((20, 6), dtype=np.float32)
    path = tmp_path / name
    if not path.exists():
        write = {
            "z.npy": lambda: np.save(path, rows), "z.npz": lambda: np.savez_compressed(path, z=rows),
            "z.pt": lambda: torch.save(torch.from_numpy(rows), path),
            "z.csv": lambda: np.savetxt(path, rows, delimiter=","),
            "z.safetensors": lambda: safetensors.torch.save_file({"z": torch.from_numpy(rows)}, path),
        }  # fmt: skip
        write[name]()
    (tmp_path / "spoilt").mkdir(exist_ok=True)
    spoilt = tmp_path / "spoilt" / name
    spoilt.write_bytes(data.draw(damaged(path.read_bytes())))
    told = ""
    try:
        for chunk in audit_files.read(spoilt).chunks():
            assert chunk.is_floating_point()
    except UserError as error:
        told = str(error)
    assert "\n" not in told


@fuzz
@given(content=BYTES | st.fixed_dictionaries({"method": JSON, "settings": JSON}).map(lambda x: json.dumps(x).encode()))
def test_any_config_is_refused_by_a_line(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    folder = run_folder.RunFolder(tmp_path, "BYOL", load(BYOL).BYOLSettings())
    with pytest.raises(UserError, match=r"damaged|another configuration"), folder:
        pass


@fuzz
@given(
    lines=st.lists(BYTES | JSON.map(lambda seconds: json.dumps({"epoch": 0, "seconds": seconds}).encode()), max_size=3)
)
def test_any_metrics_are_read_by_the_grid(grid_module, tmp_path, lines):  # noqa: F811
    cell = grid_module.Cell("byol", "none", "digits", 12, tmp_path, 3, [])
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'{"epoch": 2, "sec')
    assert all(isinstance(line["seconds"], (int, float)) for line in results.log(tmp_path))
    assert grid_module.status([cell])


RESULT = json.loads(min((REPOSITORY / "code" / "results").rglob("result.json")).read_text())
ONE_WRONG = st.tuples(st.sampled_from(sorted(RESULT)), JSON).map(
    lambda item: json.dumps(RESULT | dict([item])).encode()
)


@fuzz
@given(content=BYTES | ONE_WRONG)
def test_any_result_is_read_by_the_grid_and_the_table(grid_module, tmp_path, content):  # noqa: F811
    folder = tmp_path / "digits" / "run"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "result.json").write_bytes(content)
    cell = grid_module.Cell("byol", "none", "digits", 12, folder, 3, [])
    assert grid_module.status([cell])
    assert isinstance(run_folder.RunFolder(folder, "BYOL", Settings()).finished(), bool)
    tables, unfinished = table2.collect([tmp_path])
    assert len(tables) + len(unfinished) == 1
    for table in tables:
        assert table2.markdown(table)
        assert table2.latex(table)
    assert table2.to_csv(tables)


STATE = {"step": 1, "method": {"weight": torch.ones(3)}, "probe": None}


@fuzz
@given(content=st.data(), right_name=st.booleans())
def test_any_checkpoint_is_loaded_or_refused_by_a_line(tmp_path_factory, content, right_name):
    folder = tmp_path_factory.mktemp("run")
    checkpoint.save(folder, 1, STATE)
    path = next(folder.iterdir())
    bad = content.draw(st.binary(max_size=100) | damaged(path.read_bytes()))
    if right_name:  # its writer knew how to name it: only what is in it can tell
        path.unlink()
        path = folder / f"checkpoint-000000001-{hashlib.sha256(bad).hexdigest()[:16]}.pt"
    path.write_bytes(bad)
    with contextlib.suppress(UserError):
        checkpoint.load(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("optimizer"),
        lambda state: state["method"].pop("backbone.conv1.weight"),
        lambda state: state["method"].update({"backbone.conv1.weight": torch.ones(1)}),
        lambda state: state.update(step="three"),
        lambda state: state.update(method=7),
        lambda state: state["optimizer"].update(state=[], param_groups=3),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch, spoil):
    module = load(BYOL)
    chosen = parse(module.BYOLSettings, "", [*TINY, "--stage", "pretrain", "--run-dir", str(tmp_path / "run")])
    monkeypatch.setattr(run.Signals, "stop", lambda self: True)
    assert not run.execute(module.BYOL, chosen)
    state = checkpoint.load(tmp_path / "run")
    spoil(state)
    checkpoint.save(tmp_path / "run", 2, state)
    with pytest.raises(UserError, match="does not fit"):
        run.execute(module.BYOL, chosen)


@pytest.mark.parametrize("state", [{}, {"method": {}}, {"probe": 3}, {"probe": {"history": [], "probe": 3}}])
def test_a_finished_checkpoint_of_something_else_is_refused(tmp_path, state):
    module = load(BYOL)
    chosen = parse(module.BYOLSettings, "", [*TINY, "--run-dir", str(tmp_path / "run")])
    if "probe" in state:
        state = {"method": module.BYOL(chosen).state_dict(), "pretrain_seconds": 1.0, "evaluate_seconds": 1.0, **state}
        state["device"] = "a test"
    with run_folder.RunFolder(tmp_path / "run", "BYOL", chosen) as folder:
        folder.config["alpha"] = None
        folder.save(2, {"probe": None, **state})
    with pytest.raises(UserError, match="does not fit"):
        run.execute(module.BYOL, chosen)


@pytest.mark.parametrize("stage", ["pretrain", "all"])
def test_a_checkpoint_of_another_configuration_is_refused(tmp_path, stage):
    """Whose config.json says the same: it was edited, or the checkpoint copied."""
    module = load(BYOL)

    def settings(*more):
        return parse(module.BYOLSettings, "", [*TINY, "--run-dir", str(tmp_path / "run"), *more])

    assert run.execute(module.BYOL, settings("--stage", stage))
    config = tmp_path / "run" / "config.json"
    noted = json.loads(config.read_text())
    (tmp_path / "run" / "result.json").unlink(missing_ok=True)
    for option, key, value in (("--epochs", "epochs", 5), ("--seed", "seed", 7), ("--weight-lr", "weight_lr", 0.5)):
        config.write_text(json.dumps(noted | {"settings": noted["settings"] | {key: value}}))
        with pytest.raises(UserError, match=rf"checkpoint in .* is of another configuration: {key} .*, now {value}"):
            run.execute(module.BYOL, settings(option, str(value)))
    config.write_text(json.dumps(noted))
    assert run.execute(module.BYOL, settings())


def test_a_lock_that_is_a_link_empties_no_other_file(tmp_path):
    other = tmp_path / "other"
    other.write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").symlink_to(other)
    with run_folder.RunFolder(tmp_path / "run", "BYOL", Settings()):
        pass
    assert other.read_text() == "precious"


def image_folder(path, count, shade=0):
    for split in ("train", "test"):
        for label in "ab":
            (path / split / label).mkdir(parents=True)
            for k in range(count):
                pixels = np.random.default_rng([count, shade, k]).integers(shade, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path / split / label / f"{k}.png")
    return path


def test_a_run_is_not_continued_on_other_images_but_on_the_same_elsewhere(tmp_path):
    module, folders = load(BYOL), {}
    for name, count, shade in (("first", 8, 0), ("moved", 8, 0), ("larger", 12, 0), ("brighter", 8, 60)):
        folders[name] = image_folder(tmp_path / name, count, shade)
    options = [*TINY[4:], "--batch-size", "8", "--stage", "pretrain", "--run-dir", str(tmp_path / "run")]

    def start(name):
        chosen = parse(module.BYOLSettings, "", ["--dataset", "folder", "--data-dir", str(folders[name]), *options])
        return run.execute(module.BYOL, chosen)

    assert start("first")
    assert start("moved")
    for name in ("larger", "brighter"):
        with pytest.raises(UserError, match=r"another configuration: other images \(\w+"):
            start(name)


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "..", "two\nlines", "a|b"])
def test_a_name_that_leads_elsewhere_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        parse(load(BYOL).BYOLSettings, "", ["--dataset", "folder", "--dataset-name", name])
    told = capsys.readouterr().err
    assert "is no name" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("kind", ["pipe", "terminal"])
def test_a_reader_that_has_gone_costs_no_run(kind, tmp_path):
    reader, writer = os.pipe() if kind == "pipe" else os.openpty()
    os.close(reader)
    command = [sys.executable, str(BYOL), *TINY, "--run-dir", str(tmp_path / "run")]
    error = subprocess.PIPE if kind == "pipe" else writer  # a closed terminal shows neither
    done = subprocess.run(command, env=environment(), stdout=writer, stderr=error, text=True, timeout=180)
    os.close(writer)
    assert (done.returncode, done.stderr or "") == (0, "")
    assert results.read(tmp_path / "run")["complete"]


def test_a_reader_that_has_gone_is_no_traceback():
    code = """
import sys
from wassersteinssl.cli import UserError, exit_status
def program():
    print(1)
    {}
    return 0
sys.exit(exit_status(program))
"""
    reader, writer = os.pipe()
    os.close(reader)
    for then in ("", "raise UserError('a mistake')"):
        for error in (subprocess.PIPE, writer):
            command = [sys.executable, "-c", code.format(then)]
            path = {"PYTHONPATH": str(REPOSITORY / "code")}
            done = subprocess.run(command, env=environment() | path, stdout=writer, stderr=error, text=True, timeout=60)
            assert done.returncode == 2
            assert (done.stderr or "\n").count("\n") == 1
    os.close(writer)


def test_a_line_is_told_in_one_piece():
    """Other processes of a run write to the same pipe: between the pieces of a line there may be one of theirs."""
    pieces = []

    class Pipe(io.RawIOBase):
        def writable(self):
            return True

        def write(self, piece):
            pieces.append(bytes(piece))
            return len(piece)

    tell("stopped", io.TextIOWrapper(Pipe(), write_through=True))  # as standard error is
    assert pieces == [b"stopped\n"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"acc1": "59.9"}, {"pretrain_seconds": "1"}, {"knn1": None}, {"alpha_max": "x"}, {"alpha_max": [1]},
        {"uniform_weight": None},
    ],
)  # fmt: skip
def test_a_result_with_text_for_a_number_is_left_out_or_shown(tmp_path, wrong):
    settings = RESULT["config"]["settings"] | {"align_weight": 1.0} | wrong
    content = RESULT | {"method": "AlignUniform", "config": RESULT["config"] | {"settings": settings}} | wrong
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps(content))
    (tmp_path / "metrics.jsonl").write_text(
        'null\n5\n{"epoch": 0, "seconds": 1, "monitor_seconds": "a"}\n{"epoch": 1, "seconds": 1, "w2": null}\n'
    )
    (tmp_path / "measures.json").write_text('{"kl": 1' + 400 * "0" + "}")
    tables, unfinished = table2.collect([tmp_path])
    assert len(tables) + len(unfinished) == 1
    for table in tables:
        assert table2.markdown(table)
        for measure in ("w2", "loss"):
            with pytest.raises(UserError, match=f"no run has noted {measure}"):
                table2_figures.draw_curves(table, [measure])
        (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "seconds": 1, "w2": 1.0}\n{"epoch": 1, "w2": "x"}\n')
        assert table2_figures.draw_curves(table, ["w2"])


@pytest.mark.parametrize("wrong", [{"n_test": 0}, {"n_test": 10**400}, {"alpha": [10**400, 1]}, {"epochs": 10**400}])
def test_a_result_with_a_gigantic_number_is_left_out(tmp_path, wrong):
    config = RESULT["config"] | {"settings": RESULT["config"]["settings"] | wrong} | wrong
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"config": config} | wrong))
    tables, (unfinished,) = table2.collect([tmp_path])
    assert not tables
    assert "number" in unfinished.reason or "too large" in unfinished.reason


@pytest.mark.parametrize("line", ['"epoch": 1' + 400 * "0" + ', "w2": 1.0', '"epoch": 0, "w2": 1' + 400 * "0"])
def test_a_gigantic_number_in_the_metrics_is_not_drawn(tmp_path, line):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "metrics.jsonl").write_text(f'{{"seconds": 1.0, {line}}}\n')
    (table,), _ = table2.collect([tmp_path])
    with pytest.raises(UserError, match="no run has noted w2"):
        table2_figures.draw_curves(table, ["w2"])


@pytest.mark.parametrize("values", [np.full(RESULT["dim"], 0.1, np.longdouble), np.full(RESULT["dim"], 1e308)])
def test_a_spectrum_that_no_run_has_written_is_refused(tmp_path, values):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    np.save(tmp_path / "spectrum.npy", values)
    (table,), _ = table2.collect([tmp_path])
    with pytest.raises(UserError, match="cannot read"):
        table2_figures.draw_spectra(table)


def test_a_result_without_the_place_of_its_images_is_shown_by_the_grid(grid_module, tmp_path):  # noqa: F811
    settings = {key: value for key, value in RESULT["config"]["settings"].items() if key != "data_dir"}
    content = RESULT | {"config": {"settings": settings | {"dataset": "folder"}}}
    (tmp_path / "result.json").write_text(json.dumps(content))
    cell = grid_module.Cell("byol", "none", "pets", 12, tmp_path, 3, [], {"data_dir": "here"})
    assert "of the images in None" in grid_module.status([cell])


def test_a_line_that_tells_a_mistake_steers_no_terminal(capsys):
    def fail():
        raise UserError("no array is called a\x1b[31m\nb")

    assert exit_status(fail) == 2
    assert capsys.readouterr().err.endswith(": error: no array is called a?[31m?b\n")


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(buffer, "png")
    return buffer.getvalue()


@fuzz
@given(content=st.binary(max_size=60) | damaged(png()))
def test_any_image_is_read_or_named(tmp_path, content):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / split / "cat" / "0.png").write_bytes(png())
    (tmp_path / "train" / "cat" / "1.png").write_bytes(content)
    told = f"{tmp_path}/train/cat/1.png"
    try:
        data.load("folder", tmp_path, stream=False)
    except UserError as error:
        told = str(error)
    assert f"{tmp_path}/train/cat/1.png" in told
    assert "\n" not in told


NASTY = ["a b+c", "quo'te\"", "$(touch pwned)", "`touch pwned`;touch pwned", "ünïcødé-数", "-rf", "{}*?[a]\\"]


@pytest.mark.parametrize("name", NASTY)
def test_a_name_is_only_a_name(tmp_path, monkeypatch, name):
    """Of a run, of the folder of a grid, of classes and images; by a launcher and by the grid."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / f"at {name}"
    for split in ("train", "test"):
        for label in (name, "other"):
            (home / split / label).mkdir(parents=True)
            for k in range(2):
                (home / split / label / f"{name}{k}.png").write_bytes(png())
    module = load(PROGRAMS["SimSiam"])
    options = ["--dataset", "folder", "--data-dir", str(home), f"--dataset-name={name}", "--batch-size", "2"]
    chosen = parse(module.SimSiamSettings, "", [*TINY, *options, "--limit-train", "4", f"--run-dir={home / name}"])
    assert run.execute(module.SimSiam, chosen)
    assert json.loads((home / name / "result.json").read_text())["dataset"] == name
    assert len(metrics(home / name)) == 3

    code = tmp_path / f"code {name}"
    (code / "BYOL").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "code" / "wassersteinssl", code / "wassersteinssl")
    for file in ("grid.py", "launch.sh", "BYOL/run_byol+w2.sh"):
        shutil.copy(REPOSITORY / "code" / file, code / file)
    (code / "BYOL" / "byol.py").write_text(stand_in("BYOL"))
    variables = {**environment(), "STARTED": str(tmp_path / "started"), "EPOCH": "0", "PYTHON": sys.executable}
    grid = [sys.executable, str(code / "grid.py"), "run", "--preset", "digits", "--methods", "byol", "--epochs", "3"]
    launcher = ["bash", str(code / "BYOL" / "run_byol+w2.sh"), "--dataset", "digits", "--seed", "1", "--run-dir"]
    for command in ([*grid, f"--runs={home / 'grid'}"], [*launcher, str(home / "launched")]):
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert len(list((home / "grid").rglob("result.json"))) == 3
    assert (home / "launched" / "result.json").exists()
    assert sorted(os.listdir(tmp_path)) == sorted([home.name, code.name, "started"])


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def signalled_while_torch_loads(folder, command, number):
    (folder / "torch.py").write_text(f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(9)\n")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True,
        env=environment() | {"PYTHONPATH": str(folder)}, timeout=60,
    )  # fmt: skip
    return done.returncode, done.stderr


TRAINS = ["code/BYOL/byol.py"]
LISTS = ["code/grid.py", "status", "--methods", "byol", "--terms", "kl"]


@pytest.mark.parametrize(
    "command", [TRAINS, LISTS, ["code/audit.py", "z.npy"], ["EmpiricalStudy/Dimensions/AnalysisOnDimension.py"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_ctrl_c_while_torch_loads_is_one_line(command, tmp_path):
    status, told = signalled_while_torch_loads(tmp_path, command, signal.SIGINT)
    assert (status, told.strip()) == (130, f"{os.path.basename(command[0])}: interrupted")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("command", [TRAINS, LISTS], ids=lambda command: command[0])
def test_a_signal_while_torch_loads_is_a_stop_that_the_same_command_continues(command, number, tmp_path):
    told = f"{os.path.basename(command[0])}: stopped; the same command goes on\n"
    assert signalled_while_torch_loads(tmp_path, command, number) == (75, told)


def test_ctrl_c_during_an_import_that_swallows_it_is_one_line(tmp_path):
    """As those of torch and NumPy do, which then fail in other words."""
    swallow = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    (tmp_path / "library.py").write_text(f"{swallow}raise ImportError('cannot load module')\n")
    done = written(tmp_path, "from wassersteinssl.cli import Parser", "Parser().parse_args()", "import library")
    assert (done.returncode, done.stderr) == (130, "\nprogram.py: interrupted\n")


def test_ctrl_c_that_a_library_swallows_still_shows_in_the_status(tmp_path):
    done = written(
        tmp_path,
        "import contextlib, signal, sys",
        "from wassersteinssl.cli import Parser, exit_status",
        "def main():",
        "    Parser().parse_args()",
        "    with contextlib.suppress(SystemExit):",
        "        signal.raise_signal(signal.SIGINT)",
        "    return 0",
        "sys.exit(exit_status(main))",
    )
    assert (done.returncode, done.stderr) == (130, "\nprogram.py: interrupted\n")


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_second_signal_while_python_ends_leaves_the_status_of_a_stopped_run(tmp_path):
    """As of a cluster that repeats itself."""
    done = written(
        tmp_path,
        "import atexit, signal",
        "from wassersteinssl import run",
        "run.execute = lambda *_: False",
        "atexit.register(lambda: [signal.raise_signal(number) for number in (signal.SIGTERM, signal.SIGINT)])",
        "run.main(None, None)",
    )
    assert done.returncode == 75


FAST = "--dataset digits --width 2 --epochs 1 --limit-train 64 --batch-size 32 --hidden-dim 8 --dim 4 --linear-epochs 1"


def program(*command, where, **keywords):
    """By a shell, whose redirections `command` may hold; a path is taken as it is."""
    quoted = [shlex.quote(str(part)) if isinstance(part, Path) else part for part in (Path(sys.executable), *command)]
    shared = {**environment(), "PYTHONPATH": str(REPOSITORY / "code")}
    return subprocess.run(
        ["bash", "-c", " ".join(quoted)], env=shared, cwd=where, capture_output=True, text=True, **keywords
    )


def written(folder, *lines):
    """A program of these lines, run."""
    (folder / "program.py").write_text("\n".join(lines))
    return program(folder / "program.py", where=folder)


@pytest.mark.skipif(os.name != "posix", reason="redirections of POSIX")
def test_closed_streams_cost_no_run(tmp_path):
    done = program(BYOL, FAST, "--run-dir", "run", ">&-", "2>&-", where=tmp_path)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["complete"]
    assert program(REPOSITORY / "code" / "table2.py", "run", ">&-", where=tmp_path).returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("command", [[BYOL, FAST, "--run-dir run"], [REPOSITORY / "code" / "grid.py", "status"]])
def test_a_full_disk_that_takes_no_word_still_has_its_status(command, tmp_path):
    assert program(*command, ">/dev/full", "2>&1", where=tmp_path).returncode == 2


def test_an_environment_without_torch_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-S", str(BYOL), *FAST.split()], capture_output=True, text=True, cwd=tmp_path,
        env={key: value for key, value in environment().items() if key != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"byol.py: error: {sys.executable} has no torch: activate the environment (README, Install)\n"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read")
def test_a_checkpoint_that_cannot_be_read_is_passed_over(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, {"number": 1})
    (tmp_path / "checkpoint-000000002-0123456789abcdef.pt").symlink_to("/proc/self/mem")
    assert checkpoint.load(tmp_path) == {"number": 1}
    assert "0123456789abcdef.pt is damaged (Input/output error); trying an older one" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_a_table_with_a_name_of_any_bytes_is_whole(tmp_path):
    assert program(BYOL, FAST, "--run-dir", "runs/a", where=tmp_path).returncode == 0
    (tmp_path / "runs" / "b\udce9b").mkdir()
    (tmp_path / "runs" / "b\udce9b" / "config.json").write_text((tmp_path / "runs" / "a" / "config.json").read_text())
    done = program(REPOSITORY / "code" / "table2.py", "runs", where=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| BYOL |" in (tmp_path / "runs" / "table2.md").read_text()


@pytest.mark.parametrize("option", ["weight-lr", "alpha-max"])
def test_a_number_beyond_float32_is_refused(option, capsys):
    with pytest.raises(SystemExit):
        parse(Settings, "", ["--uniformity", "w2", f"--{option}", "1e39"])
    assert "must be at most 3e+38" in capsys.readouterr().err

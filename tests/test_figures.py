"""The program that regenerates the figures, as a user starts it."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import FIGURES, REPOSITORY, check_executed, environment

from wassersteinssl import table2
from wassersteinssl.cli import UserError

PROGRAM = [sys.executable, str(REPOSITORY / "code" / "figures.py")]


def start(*arguments, cwd=None, **variables):
    command, environ = [*PROGRAM, *map(str, arguments)], {**environment(), **variables}
    return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=300)


def test_a_number_is_that_of_the_figure_in_the_paper(tmp_path):
    assert set(FIGURES.NUMBERS.values()) <= {study.name for study in FIGURES.STUDIES}
    done = start("17", "14", "--out", tmp_path, cwd=REPOSITORY, RUNS="code/results/digits")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.rglob("*.png")} == {"AlignmentCurves.png", "largemean_collapse.png"}


def test_runs_are_found_from_where_the_user_stands(tmp_path):
    done = start("AlignmentCurves", "--out", tmp_path, cwd=REPOSITORY, RUNS="code/results/digits")
    assert done.returncode == 0, done.stderr
    assert "AlignmentCurves.png" in done.stdout
    done = start("AlignmentCurves", "--out", tmp_path, RUNS=str(tmp_path / "none"))
    assert done.returncode == 2
    assert "no finished run below it" in done.stderr


def test_data_notebook_and_picture_appear_and_are_named(tmp_path):
    done = start("InstanceCloning", "--out", tmp_path / "a b", MPLBACKEND="Agg")  # as on many a cluster
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "a b" / "EmpiricalStudy" / "InstanceCloningConstraint"
    assert str(folder / "AnalysisOnICC.png") in done.stdout
    assert {path.name for path in folder.iterdir()} == {
        "AnalysisOnProperty3.csv", "AnalysisOnProperty3.ipynb", "AnalysisOnICC.png", "AnalysisOnICC.pdf"
    }  # fmt: skip
    executed = nbformat.read(folder / "AnalysisOnProperty3.ipynb", 4)
    assert check_executed(executed) == 1
    assert executed.cells[0].source == FIGURES.FEW
    again = FIGURES.execute(folder / "AnalysisOnProperty3.ipynb", folder)  # of another size now
    assert again.cells == executed.cells[1:]


@pytest.mark.parametrize("study", ["LargeMeans", "InstanceCloning"])  # a script that draws, a notebook
def test_a_backend_that_is_not_there_is_not_asked(study, tmp_path):
    done = start(study, "--out", tmp_path, MPLBACKEND="module://of_an_editor")
    assert (done.returncode, done.stderr) == (0, "")


def test_every_study_is_found_and_draws():
    assert len(FIGURES.STUDIES) >= 17
    for study in FIGURES.STUDIES:
        plots = study.with_suffix(".ipynb")
        assert "plotting.save" in (plots if plots.exists() else study.with_suffix(".py")).read_text()


@pytest.mark.parametrize("name", ["SingularSpectra", "AccuracyCurves", "UniformityCurves", "AlignmentCurves"])
def test_trained_models_are_plotted_from_any_runs(name, tmp_path, monkeypatch):
    notebook = REPOSITORY / "EmpiricalStudy" / "TrainedModels" / f"{name}.ipynb"
    assert check_executed(nbformat.read(notebook, 4)) == 1
    monkeypatch.setenv("RUNS", str(REPOSITORY / "code" / "results" / "digits"))
    executed = FIGURES.execute(notebook, tmp_path)
    assert check_executed(executed) == 1
    assert "Preset `digits`" in nbformat.writes(executed)
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_a_notebook_without_runs_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNS", "runs")  # a kernel runs in the notebook's folder
    with pytest.raises(UserError, match=f"no finished run below {tmp_path}/runs "):
        table2.largest()
    monkeypatch.setenv("RUNS", "")
    assert len(table2.largest().rows) == 16


def test_studies_side_by_side_tell_what_each_alone_would(tmp_path):
    (tmp_path / "EmpiricalStudy").mkdir()
    (tmp_path / "EmpiricalStudy" / "InstanceCloningConstraint").touch()  # a file where the folder should be
    done = start("Density", "InstanceCloning", "LargeMeans", "--parallel", "2", "--out", tmp_path)
    assert done.returncode == 1
    told = [line.rsplit("/", 1)[-1] for line in done.stdout.splitlines() if line]
    numbers = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("[")]
    assert numbers == ["[1/4]", "[2/4]", "[3/4]", "[4/4]"]
    for study, picture in (
        ("Density1DPlot", "MergedDistribution-1D.png"),
        ("Density2DPlot", "MergedDistribution-2D.png"),  # in the same folder
        ("PlotMean2D", "largemean_collapse.png"),
    ):
        assert told[told.index(study) + 1] == picture
        assert told.count(picture) == 1
    assert "figures.py: error: AnalysisOnProperty3: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("parallel", [1, 2])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_interrupted_nothing_runs_on(name, parallel, tmp_path):
    process = subprocess.Popen(
        [*PROGRAM, "Dimensions", "Flow", "--parallel", str(parallel), "--out", str(tmp_path)], env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while len(list(tmp_path.glob("EmpiricalStudy/*"))) < parallel:  # where the studies are about to write
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(getattr(signal, name))  # to it alone
    told, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.strip().splitlines()[-1]) == (130, "figures.py: interrupted")
    assert told == ("" if parallel == 2 else "[1/2] EmpiricalStudy/Dimensions/AnalysisOnDimension\n")
    with pytest.raises(ProcessLookupError):  # nobody is left in its group
        os.killpg(process.pid, 0)


def test_mistakes_are_told_and_the_other_studies_made(tmp_path):
    done = start("nonsense")
    assert done.returncode == 2
    assert "no study is called nonsense" in done.stderr.splitlines()[-1]
    done = start("18")
    assert done.returncode == 2
    assert "figure 18 of the paper" in done.stderr.splitlines()[-1]
    done = start("LargeMeans", "--out", "a" * 300)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "File name too long" in done.stderr
    (tmp_path / "result.json").write_text("{")
    done = subprocess.run([*PROGRAM, "7"], env=environment() | {"RUNS": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no finished run below it" in done.stderr
    (tmp_path / "EmpiricalStudy").mkdir()
    (tmp_path / "EmpiricalStudy" / "InstanceCloningConstraint").touch()  # a file where the folder should be
    done = start("InstanceCloning", "LargeMeans", "--out", tmp_path)
    assert done.returncode == 1
    assert "error: AnalysisOnProperty3: " in done.stderr
    assert "Traceback" not in done.stderr
    assert "largemean_collapse.png" in done.stdout


def test_a_failing_notebook_is_named(tmp_path):
    cell = nbformat.v4.new_code_cell("raise ValueError('no data')")
    notebook = tmp_path / "broken.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    with pytest.raises(RuntimeError, match=r"broken\.ipynb: ValueError: no data"):
        FIGURES.execute(notebook, tmp_path)


@pytest.mark.parametrize("study", [s for s in FIGURES.STUDIES if s.with_suffix(".py").exists()], ids=lambda s: s.name)
def test_help_answers_before_torch_loads(study):
    command = [sys.executable, "-X", "importtime", str(study.with_suffix(".py")), "--help"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0
    assert "--quick" in done.stdout
    assert not {"torch", "numpy", "matplotlib"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}

"""What the tests of every study ask for: its data file, its notebook, and its figures."""

import shutil
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import nbformat
from conftest import FIGURES, REPOSITORY, check_executed

from wassersteinssl import studies


class Study(NamedTuple):
    script: Path
    figures: tuple[str, ...]
    samples: int  # at the full size
    few: int  # samples in these tests

    @property
    def data(self) -> Path:
        """The committed data file."""
        return next(path for path in map(self.script.with_suffix, (".csv", ".npz")) if path.exists())


def study(path: str, *figures: str, samples: int, few: int) -> Study:
    return Study(REPOSITORY / f"{path}.py", figures, samples, few)


def check_data(study: Study, reduced: Path) -> None:
    """The file of few samples, by seed 5, and the committed one tell what made them, and are small."""
    for path, samples, seed in ((reduced, study.few, 5), (study.data, study.samples, 12)):
        _, settings = studies.read(path)
        assert settings["script"] == study.script.name
        assert (settings["samples"], settings["seed"], settings["device"]) == (samples, seed, "cpu")
        assert {"torch", "numpy", "python", "wassersteinssl"} <= set(settings["versions"])
        assert path.stat().st_size < 300_000


def check_committed_notebook(study: Study) -> None:
    notebook = nbformat.read(study.script.with_suffix(".ipynb"), 4)
    assert check_executed(notebook) == len(study.figures)
    check_figures(study.script.parent, study.figures)


def check_notebook_on(study: Study, reduced: Path, folder: Path) -> None:
    """The notebook, run in `folder` on the files of few samples, draws the figures."""
    shutil.copytree(reduced.parent, folder, dirs_exist_ok=True)
    assert check_executed(FIGURES.execute(study.script.with_suffix(".ipynb"), folder)) == len(study.figures)
    check_figures(folder, study.figures)


def check_figures(folder: Path, figures: tuple[str, ...]) -> None:
    for figure in figures:
        height, width, _ = plt.imread(folder / f"{figure}.png").shape
        assert height >= 720  # 300 dpi
        assert width >= 1485
        content = (folder / f"{figure}.pdf").read_bytes()
        assert content.startswith(b"%PDF")
        assert len(content) > 5_000

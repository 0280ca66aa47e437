#!/usr/bin/env python3
"""Regenerate the figures: run each study's script, then its notebook on the data that the script wrote; and the
notebooks that plot trained models (RUNS=FOLDER for other runs than code/results/mini).

    python code/figures.py [--parallel 2]           every study from few samples, into runs/figures: minutes
    python code/figures.py --paper                  at the paper's sizes: twelve minutes on two cores
    python code/figures.py 3 7 LargeMeans           figures 3 and 7 of the paper, and studies whose path contains this
    python code/figures.py --paper --out .          the committed data, notebooks and figures themselves

Prints where each figure lies. Exit status: 0 all made, 1 some failed, 2 a mistake in the command, 130 interrupted.
"""

import argparse
import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

CODE = Path(__file__).resolve().parent
sys.path.insert(0, str(CODE))  # works with and without an installation

from wassersteinssl import results
from wassersteinssl.cli import Parser, count, exit_status, given_path, tell
from wassersteinssl.files import check_writable, reason
from wassersteinssl.machine import environment_beside

REPOSITORY = CODE.parent
STUDIES = sorted(  # scripts and notebooks, without their suffix
    {
        path.with_suffix("")
        for where in ("DistributionApproximation", "EmpiricalStudy/*", "LargeMeans")
        for kind in ("py", "ipynb")
        for path in REPOSITORY.glob(f"{where}/*.{kind}")
    }
)
FEW = (
    "**Drawn from fewer samples.** The text is that of the full size (`code/figures.py --paper`): what rests on many "
    "samples can look otherwise here."
)
NUMBERS = {  # the paper's figures, by number
    2: "DistanceAgainstDimension", 3: "AnalysisOnCollapseLevel", 4: "AnalysisOnDimension", 5: "AnalysisOnProperty4",
    6: "AnalysisOnProperty5", 7: "SingularSpectra", 8: "Density1DPlot", 9: "Density2DPlot",
    10: "AnalysisOnDistributions", 11: "AnalysisOnProperty3", 12: "AnalysisOnCaseStudy", 13: "AnalysisOnCaseStudy",
    14: "PlotMean2D", 15: "AccuracyCurves", 16: "UniformityCurves", 17: "AlignmentCurves",
}  # fmt: skip


def numbered(study: Path) -> str:
    """The name of a study, with the numbers of the paper's figures that it draws."""
    numbers = [str(number) for number, name in NUMBERS.items() if name == study.name]
    return study.name + (f" ({', '.join(numbers)})" if numbers else "")


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "studies",
        nargs="*",
        metavar="NAME",
        help=f"number of a figure of the paper, or part of a path: {', '.join(map(numbered, STUDIES))} (default: all)",
    )
    parser.add_argument("--paper", action="store_true", help="the paper's number of samples")
    parser.add_argument(
        "--parallel", type=count, default=1, metavar="K", help="studies at a time, of different folders (default: 1)"
    )
    parser.add_argument(
        "--out",
        type=given_path,
        default=REPOSITORY / "runs" / "figures",
        metavar="FOLDER",
        help="where data, notebooks and figures go (default: runs/figures)",
    )
    options = parser.parse_args()
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out} is no folder")
    check_writable(options.out)
    if runs := os.environ.get("RUNS"):
        if not any(results.finished(path.parent) for path in Path(runs).rglob("result.json")):
            parser.error(f"RUNS={runs}: no finished run below it")
        os.environ["RUNS"] = os.path.abspath(runs)  # notebooks run in other folders
    names = {study: str(study.relative_to(REPOSITORY)) for study in STUDIES}
    for k, part in enumerate(options.studies):
        if part.isdecimal():
            if int(part) not in NUMBERS:
                parser.error(f"figure {part} of the paper shows no study; there are {', '.join(map(str, NUMBERS))}")
            options.studies[k] = part = NUMBERS[int(part)]
        if not any(part in name for name in names.values()):
            parser.error(f"no study is called {part}: {', '.join(study.name for study in STUDIES)}")
    chosen = [study for study in STUDIES if any(part in names[study] for part in options.studies or [""])]
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # so that the processes of a study end, too
    if options.parallel > 1:
        return side_by_side([names[study] for study in chosen], options)
    failed = 0
    for k, study in enumerate(chosen, 1):
        tell(f"[{k}/{len(chosen)}] {names[study]}")
        try:
            pictures = make(study, (options.out / names[study]).resolve().parent, paper=options.paper)
        except Exception as error:  # from a study, a notebook or a kernel; the other figures can still be made
            tell(f"figures.py: error: {study.name}: {reason(error)}", sys.stderr)
            failed += 1
            continue
        for picture in pictures:
            tell(f"    {picture}")
    return 1 if failed else 0


def side_by_side(names: list[str], options: argparse.Namespace) -> int:
    """Make the studies by processes of this program, `options.parallel` folders at a time, and print what each has said
    when its folder is done."""
    from tqdm import tqdm

    environment = environment_beside(options.parallel)
    command = [sys.executable, __file__, "--out", str(options.out), *(["--paper"] if options.paper else [])]
    waiting = [list(group) for _, group in itertools.groupby(names, os.path.dirname)]  # a group writes into one folder
    running: dict[subprocess.Popen, tuple[list[str], Any, Any]] = {}
    number, failed = itertools.count(1), False
    with contextlib.ExitStack() as files, tqdm(total=len(names), unit="study", disable=None) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < options.parallel:
                    # Files, not pipes: a full pipe would block the process that writes.
                    out, err = (files.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
                    process = subprocess.Popen([*command, *waiting[0]], env=environment, stdout=out, stderr=err)
                    running[process] = waiting.pop(0), out, err
                time.sleep(0.1)
                for process in [process for process in running if process.poll() is not None]:
                    made, out, err = running.pop(process)
                    told, errors = _content(out), _content(err)
                    bar.write(re.sub(r"^\[\d+/\d+\]", lambda _: f"[{next(number)}/{len(names)}]", told, flags=re.M))
                    if process.returncode < 0:
                        errors += f"\nfigures.py: error: {', '.join(made)}: ended by signal {-process.returncode}"
                    if errors:
                        bar.write(errors.lstrip(), sys.stderr)
                    failed |= process.returncode != 0
                    bar.update(len(made))
        finally:
            for process in running:  # some are left after Ctrl-C; each ends the processes that it has started
                process.send_signal(signal.SIGINT)
            for process in running:
                process.wait()
    return int(failed)


def _content(file: IO[str]) -> str:
    file.seek(0)
    return file.read().rstrip()


def make(study: Path, folder: Path, *, paper: bool) -> list[Path]:
    """Run a study's script and notebook in `folder`, and return the new pictures (PNG). RuntimeError if one fails."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _times(folder)
    script, notebook = study.with_suffix(".py"), study.with_suffix(".ipynb")
    if script.exists():
        command = [sys.executable, str(script), "--out", str(folder), *([] if paper else ["--quick"])]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:  # stderr is shared with this program
            raise RuntimeError("the script failed")
    if notebook.exists():
        execute(notebook, folder, "" if paper or not script.exists() else FEW)
    return sorted(path for path, time in _times(folder).items() if before.get(path) != time)


def execute(notebook: Path, folder: Path, remark: str = ""):
    """Run a notebook from top to bottom on the files in `folder`, write it there, headed by the remark if there is one,
    and return it."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from traitlets.config import Config

    content = nbformat.read(notebook, 4)
    content.cells = [cell for cell in content.cells if cell.id != "remark"]
    if remark:
        content.cells.insert(0, nbformat.v4.new_markdown_cell(remark, id="remark"))
    paths = [str(CODE), *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory() as scratch:  # for IPython's profile and the kernel's sockets
        kernel = {"connection_file": f"{scratch}/kernel.json"}
        if os.name == "posix" and len(scratch) < 80:  # a socket's path has at most 107 characters
            kernel["transport"] = "ipc"  # no open port, and no warning about one
        client = NotebookClient(
            content, timeout=600, kernel_name="python3", record_timing=False, config=Config(KernelManager=kernel),
            resources={"metadata": {"path": str(folder)}},
        )  # fmt: skip
        variables = {"PYTHONPATH": os.pathsep.join(paths), "IPYTHONDIR": scratch, "MPLBACKEND": ""}  # the kernel's own
        try:
            client.execute(env=os.environ | variables)
        except CellExecutionError as error:
            raise RuntimeError(f"{notebook.name}: {error.ename}: {error.evalue}") from None
    content.metadata = {  # the same on every machine
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(content, folder / notebook.name)
    return content


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}


if __name__ == "__main__":
    sys.exit(exit_status(main))

#!/usr/bin/env python3
"""Table 2 from finished runs, beside the paper's numbers; and their spectra.

    python code/table2.py [RUNS ...] [--out FOLDER] [--spectra] [--curves] [--best]

RUNS are run folders or folders of them (default: runs). Prints the table and writes table2.md, .csv, .tex, .png and
.pdf into --out; with --spectra and --curves also pictures of these names and of the loss. A cell is the mean over
seeds, with the standard deviation if there are several, and in parentheses the gain over the vanilla method, on the
seeds that both have. Runs of different settings get tables of their own; unfinished, failed and damaged runs are listed
below and never averaged in.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # works with and without an installation

from wassersteinssl.cli import Parser, UserError, exit_status, given_path, tell
from wassersteinssl.files import check_writable, write_atomically

REPOSITORY = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="*", type=given_path, default=[REPOSITORY / "runs"], metavar="RUNS")
    parser.add_argument(
        "--out", type=given_path, metavar="FOLDER", help="where the files go (default: the first of RUNS)"
    )
    parser.add_argument("--spectra", action="store_true", help="also draw the spectra of the embeddings")
    parser.add_argument("--curves", action="store_true", help="also draw loss, kNN, W2, L_U and A against the epoch")
    parser.add_argument("--best", action="store_true", help="of several weights of a term, show the best by kNN")
    options = parser.parse_args()
    written = build(options)
    tell("\nwrote " + ", ".join(map(str, written)))
    return 0


def build(options: argparse.Namespace) -> list[Path]:
    """Print the tables, write all files and return their paths. The CSV also has the rows that --best leaves out."""
    from wassersteinssl import table2  # torch takes seconds to load

    runs, out, best = options.runs, options.out or options.runs[0], options.best
    for folder in runs:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
    tables, unfinished = table2.collect(runs)
    if not tables:
        reasons = "; ".join(f"{run.folder}: {run.reason}" for run in unfinished)
        raise UserError(f"no finished run in {', '.join(map(str, runs))}" + (f" ({reasons})" if reasons else ""))
    complete, tables = tables, [table2.best(table) if best else table for table in tables]
    texts = [table2.markdown(table) for table in tables[:-1]] + [table2.markdown(tables[-1], unfinished)]
    if best:
        texts.append(table2.BEST)
    check_writable(out)
    out.mkdir(parents=True, exist_ok=True)
    contents = {
        "table2.md": (text := "\n\n".join(texts) + "\n"),
        "table2.csv": table2.to_csv(complete),
        "table2.tex": "\n\n".join(table2.latex(table) for table in tables),
    }
    for name, content in contents.items():
        write_atomically(out / name, content.encode("utf-8", "replace"))  # names of folders may hold any bytes
    tell(text.rstrip("\n"))
    written = [out / name for name in contents]
    from wassersteinssl import plotting, table2_figures  # matplotlib takes a second to load

    plotting.plt.rcParams["figure.max_open_warning"] = 0  # many settings make many figures

    suffixes = [f"-{k + 1}" for k in range(len(tables))] if len(tables) > 1 else [""]
    for table, suffix in zip(tables, suffixes, strict=True):
        written += table2_figures.draw_table(table, out / f"table2{suffix}")
        if options.curves:
            measures = [name for name in table2_figures.AXIS if name != "loss"]
            for name, columns in (("curves", measures), ("loss", ["loss"])):
                try:
                    written += plotting.save(table2_figures.draw_curves(table, columns), out / f"{name}{suffix}")
                except UserError as error:
                    tell(f"no {name}{suffix}: {error}", sys.stderr)
    if options.spectra:  # last: a file that cannot be read ends the program
        for table, suffix in zip(tables, suffixes, strict=True):
            written += plotting.save(table2_figures.draw_spectra(table), out / f"spectra{suffix}")
    return written


if __name__ == "__main__":
    sys.exit(exit_status(main))

#!/usr/bin/env python3
"""Finished runs as one table, and their spectra as one picture.

    python code/report.py RUN [RUN ...] [--table FILE.md] [--spectra FILE.png]

RUN is a run folder, or a folder of them. A run without a whole result.json is named on stderr and left out. Runs of
different data sets, epochs, widths and so on are never put into one table: the program says how they differ.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # works with and without an installation

TERMS = {"none": "", "lu": " + L_U", "w2": " + W2"}
# Settings that may differ between the rows of one table: what the table compares, and where a run lies.
COMPARED = {"uniformity", "alpha_max", "alpha_min", "momentum", "data_dir", "device", "run_dir", "stage", "seed"}


def main() -> int:
    arguments = parse()
    runs = [run for path in arguments.runs for run in find(path)]
    results = [result for run in runs if (result := read(run)) is not None]
    if not results:
        print("report.py: error: no finished run found", file=sys.stderr)
        return 2
    if difference := mixed(results):
        print(f"report.py: error: these runs do not belong in one table: {difference}", file=sys.stderr)
        return 2
    text = table(results)
    print(text)
    if arguments.table:
        arguments.table.write_text(text)
    if arguments.spectra:
        for written in draw_spectra(results, arguments.spectra):
            print(f"wrote {written}")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.add_argument("--spectra", type=Path, metavar="FILE", help="draw the spectra as PNG and PDF")
    return parser.parse_args()


def find(path: Path) -> list[Path]:
    """Run folders at or below a path, sorted."""
    if (path / "config.json").exists():
        return [path]
    found = sorted(config.parent for config in path.rglob("config.json"))
    if not found:
        print(f"{path}: no run folder", file=sys.stderr)
    return found


def read(run: Path) -> dict | None:
    """The run's result with its folder, or None, with the reason on stderr."""
    try:
        result = json.loads((run / "result.json").read_text())
        if result["complete"] is not True:
            raise ValueError("not complete")
        return {**result, "folder": run}
    except FileNotFoundError:
        print(f"{run}: not finished, left out", file=sys.stderr)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"{run}: result.json cannot be used ({error}), left out", file=sys.stderr)
    return None


def mixed(results: list[dict]) -> str:
    """How the settings of the runs differ where they must not; empty if they agree."""
    first = results[0]["config"]["settings"]
    for other in results[1:]:
        settings = other["config"]["settings"]
        for key in sorted(({*first} | {*settings}) - COMPARED):
            if key in first and key in settings and first[key] != settings[key]:
                return f"{key} is {first[key]} in {results[0]['folder']} and {settings[key]} in {other['folder']}"
    return ""


def name(result: dict) -> str:
    return result["method"] + TERMS.get(result["uniformity"], f" + {result['uniformity']}")


def table(results: list[dict]) -> str:
    """Markdown, a row a run. W2 stands beside its floor, what as many uniform random rows would have."""
    settings = results[0]["config"]["settings"]
    lines = [
        "| Run | Acc@1 | Acc@5 | kNN | W2 ↓ (floor) | L_U ↓ | A ↓ | minutes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in sorted(results, key=lambda r: (r["method"], list(TERMS).index(r["uniformity"]), r["seed"])):
        minutes = (r["pretrain_seconds"] + r["evaluate_seconds"]) / 60
        lines.append(
            f"| {name(r)} | {r['acc1']:.2f} | {r['acc5']:.2f} | {r['knn1']:.2f} | {r['w2']:.3f} ({r['w2_floor']:.3f}) "
            f"| {r['lu']:.3f} | {r['alignment']:.3f} | {minutes:.1f} |"
        )
    seeds = sorted({r["seed"] for r in results})
    lines.append("")
    lines.append(
        f"{results[0]['dataset']}: ResNet-18 of width {settings['width']}, {settings['epochs']} epochs, "
        f"batch {settings['batch_size']}, {settings['precision']}, seed {', '.join(map(str, seeds))}, "
        f"{settings['linear_epochs']} epochs of linear evaluation (last epoch), "
        f"{results[0]['n_test']} test images, z in R^{results[0]['dim']}; "
        f"{'; '.join(sorted({r['device'] for r in results}))}."
    )
    return "\n".join(lines) + "\n"


def draw_spectra(results: list[dict], path: Path) -> list[Path]:
    """Log spectrum of the covariance of the l2-normalised test embeddings, a curve a run."""
    import numpy as np

    from wassersteinssl.plotting import COLUMN, line_style, plt, save

    figure, axes = plt.subplots(figsize=(COLUMN, 2.4))
    for k, result in enumerate(results):
        values = np.load(result["folder"] / "spectrum.npy", allow_pickle=False)
        index = np.arange(1, len(values) + 1)
        axes.plot(index, values.clip(1e-12), label=name(result), markevery=max(1, len(values) // 8), **line_style(k))
    dim = results[0]["dim"]
    axes.axhline(1 / dim, color="0.4", linewidth=0.8)
    axes.text(dim, 1.15 / dim, "uniform, 1/m", ha="right", va="bottom", fontsize=7, color="0.3")
    axes.set(xlabel="index of the eigenvalue", ylabel="eigenvalue of the covariance of z", yscale="log")
    axes.legend(loc="lower left")
    return save(figure, path)


if __name__ == "__main__":
    sys.exit(main())

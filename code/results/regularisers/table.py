#!/usr/bin/env python3
"""Each term with alignment alone (MSE) and with BYOL, side by side: python code/results/regularisers/table.py

Writes regularisers.md and regularisers.png from the finished runs in search/ beside this file, of several weights of a
term that with the best kNN accuracy, and mini.md and mini.png from longer ones: those in mini/ with the best weights,
and of BYOL those in ../mini, with the weights of the method.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # works with and without an installation

from wassersteinssl.cli import Parser
from wassersteinssl.settings import TERMS

if __name__ == "__main__":
    Parser(__doc__).parse_args()

from wassersteinssl import plotting, results, table2, table2_figures
from wassersteinssl.uniformity import MEASURES

BASES = ("MSE", "BYOL")
# What is shown of a run -> heading, decimals, label of the axis. A is 0 where all rows are equal: no arrow.
SHOWN = {
    "knn1": ("kNN ↑", 1, "kNN accuracy (%)"),
    "acc1": ("Acc@1 ↑", 1, "linear accuracy (%)"),
    "effective_rank": ("eff. rank ↑", 0, "effective rank, of 256"),
    "w2": ("W2 ↓", 2, plotting.SYMBOLS["w2"]),
    "alignment": ("A", 2, "alignment A"),
}
NAMES = {"none": "no term"} | {term: MEASURES[term].label for term in TERMS}


def collect(*folders: str) -> tuple[str, dict[tuple[str, str], table2.Row], dict[tuple[str, str], int]]:
    """The setting in words; (base, term) -> its best runs, and how many weights were tried."""
    (table,), _ = table2.collect([HERE / folder for folder in folders])
    table.rows = [row for row in table.rows if row.method == "BYOL" or row.aligned_only]
    tried: dict[tuple[str, str], int] = {}
    for row in table.rows:
        key = BASES[row.method == "BYOL"], row.term
        tried[key] = tried.get(key, 0) + 1
    best = table2.best(table)
    about = table2.describe(table)
    if folders != ("search",):  # whose few epochs are not what measuring between them is meant for
        about = f"{about} {table2.monitoring(table)}".strip()
    return about, {(BASES[row.method == "BYOL"], row.term): row for row in best.rows}, tried


def value(row: table2.Row, name: str) -> float | None:
    return row.measure(name) if name == "effective_rank" else row.value(name)


def markdown(about: str, rows: dict[tuple[str, str], table2.Row], tried: dict[tuple[str, str], int]) -> str:
    """A line a term that was run; with a star a weight of fewer than three that `tried` counts, if it counts any."""
    head = ["Term"]
    for base in BASES:
        head += [f"{base}: weight", *(heading for heading, _, _ in SHOWN.values())]
    lines = [head]
    for term in (term for term in ("none", *TERMS) if any((base, term) in rows for base in BASES)):
        cells = [NAMES[term]]
        for base in BASES:
            row = rows.get((base, term))
            if row is None:
                cells += [""] * (1 + len(SHOWN))
                continue
            weight = row.weights[0] if row.weights else None
            cells.append("" if weight is None else f"{weight:g}" + (" *" if tried.get((base, term), 3) < 3 else ""))
            for name, (_, decimals, _) in SHOWN.items():
                found = value(row, name)
                cells.append("" if found is None else f"{found:.{decimals}f}")
        lines.append(cells)
    return about + "\n\n" + results.markdown(lines)


def draw(rows: dict[tuple[str, str], table2.Row], path: Path) -> None:
    """A line a term, a panel a measure; the vertical lines are the bases without a term."""
    found = [term for term in TERMS if any((base, term) in rows for base in BASES)]
    order = sorted(found, key=lambda term: -max(rows[b, term].value("knn1") for b in BASES if (b, term) in rows))
    shown = [name for name in SHOWN if name != "acc1"]
    figure, panels = plotting.plt.subplots(1, len(shown), figsize=(2 * plotting.COLUMN, 3.6), sharey=True)
    for k, (axes, name) in enumerate(zip(panels, shown, strict=True)):
        for i, base in enumerate(BASES):
            style = plotting.line_style(i)
            shown_terms = [(at, term) for at, term in enumerate(order) if (base, term) in rows]
            x = [value(rows[base, term], name) for _, term in shown_terms]
            y = [at + (0.15, -0.15)[i] for at, _ in shown_terms]  # beside each other where they are equal
            axes.plot(x, y, linestyle="", marker=style["marker"], color=style["color"], label=f"{base} + term")
            if (base, "none") in rows:
                plain = value(rows[base, "none"], name)
                line = {"color": style["color"], "linestyle": style["linestyle"], "linewidth": 1, "zorder": 1.5}
                axes.axvline(plain, **line, label=f"{base} alone")
        axes.set(title=plotting.symbols(f"({'abcd'[k]}) {SHOWN[name][0]}"), xlabel=SHOWN[name][2])
        if name == "w2":
            axes.axvline(next(iter(rows.values())).value("w2_floor"), **table2_figures.FLOOR)
        if name == "effective_rank":
            axes.set_xlim(-8, 256)  # else the line of BYOL alone would lie on the frame
        axes.set_yticks(range(len(order)), [plotting.symbols(NAMES[term]) for term in order])
    panels[0].invert_yaxis()
    handles = {line.get_label(): line for axes in panels for line in axes.get_legend_handles_labels()[0]}
    figure.legend(handles=handles.values(), loc="outside lower center", ncols=5)
    plotting.save(figure, path)


def main() -> None:
    about, rows, tried = collect("search")
    (HERE / "regularisers.md").write_text(markdown(about, rows, tried))
    draw(rows, HERE / "regularisers")
    about, rows, _ = collect("mini", "../mini")
    (HERE / "mini.md").write_text(markdown(about, rows, {}))
    draw(rows, HERE / "mini")


if __name__ == "__main__":
    main()

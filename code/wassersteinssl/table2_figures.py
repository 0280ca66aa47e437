"""Pictures of a Table 2: every row beside the paper's, the spectra, and the measures against the epoch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from wassersteinssl.plotting import COLORS, COLUMN, SYMBOLS, line_style, plt, save
from wassersteinssl.results import COLUMNS
from wassersteinssl.settings import MONITOR_IMAGES
from wassersteinssl.table2 import DATASETS, METHODS, TERMS, Row, Table, paper

AXIS = {  # what a run's metrics.jsonl follows
    "knn1": f"kNN top-1 (%), of at most\n{MONITOR_IMAGES:,} training images",
    **SYMBOLS,
    "alignment": r"$\mathcal{A}$",
}
FLOOR: dict[str, Any] = {"color": "0.4", "linewidth": 0.8, "linestyle": ":", "label": "floor: uniform rows"}


def draw_table(table: Table, path: Path) -> list[Path]:
    """Acc@1 and W2, a line a row, two panels a data set: ours filled (with the deviation), the paper's hollow."""
    datasets, published = table.datasets(), paper()
    rows = {dataset: [row for row in table.rows if row.dataset == dataset] for dataset in datasets}
    height = 1.1 + 0.19 * max(map(len, rows.values()))
    figure, axes = plt.subplots(
        1, 2 * len(datasets), figsize=(2 * COLUMN * len(datasets), height), squeeze=False, sharey=False
    )
    for k, (dataset, column) in enumerate((d, c) for d in datasets for c in ("acc1", "w2")):
        panel, shown = axes[0, k], rows[dataset]
        for y, row in enumerate(shown):
            color = COLORS[list(TERMS).index(row.term) if row.term in TERMS else 3]
            panel.errorbar(row.value(column), y, xerr=row.deviation(column) or 0, fmt="o", color=color, capsize=2)
            number = published.get((row.method, row.term, dataset), {}).get(column)
            if number is not None:
                panel.plot(number, y, "D", markerfacecolor="none", color=color, markersize=5)
        if column == "w2":
            panel.axvline(shown[0].value("w2_floor"), **FLOOR)
            panel.set_xlim(left=0)
        panel.set_yticks(range(len(shown)), [_symbols(row.name) for row in shown] if column == "acc1" else [])
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.set_title(_symbols(f"({_letter(k)}) {DATASETS.get(dataset, dataset)}: {COLUMNS[column][0]}"))
        panel.set_xlabel("%" if column == "acc1" else AXIS["w2"])
    handles = [plt.Line2D([], [], marker="o", linestyle="", color="0.3", label="ours")]
    if any(dataset in DATASETS for dataset in datasets):
        paper_label = "paper (width 64, 500 epochs)"
        handles.append(
            plt.Line2D([], [], marker="D", linestyle="", color="0.3", markerfacecolor="none", label=paper_label)
        )
    handles.append(plt.Line2D([], [], **FLOOR))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return save(figure, path)


def by_method(table: Table) -> dict[tuple[str, str], list[Row]]:
    """The rows of each data set and method."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in table.rows:
        groups.setdefault((row.dataset, row.method), []).append(row)
    return groups


def draw_spectra(table: Table) -> Figure:
    """Eigenvalues of the covariance of the l2-normalised test embeddings: all vanilla methods of a data set in a panel,
    then a panel a method, a curve a term (the paper's figure 7)."""
    groups = by_method(table)
    panels: list[tuple[str, list[tuple[Row, str, int]]]] = []  # title; row, label and style of each curve
    for dataset in table.datasets():
        name = DATASETS.get(dataset, dataset)
        vanilla = [row for row in table.rows if row.dataset == dataset and row.term == "none"]
        if len(vanilla) > 1:
            panels.append((f"{name}, no term", [(row, row.name, k) for k, row in enumerate(vanilla)]))
        for (where, method), rows in groups.items():
            if where == dataset and (len(rows) > 1 or len(vanilla) < 2):
                panels.append(
                    (f"{name}, {METHODS.get(method, method)}", [(row, row.name, _style(row)) for row in rows])
                )
    figure, axes = _panels(len(panels), 2)
    for k, (panel, (title, curves)) in enumerate(zip(axes, panels, strict=False)):
        for row, label, style in curves:
            values = np.load(row.runs[0]["folder"] / "spectrum.npy", allow_pickle=False).clip(1e-12)
            index = np.arange(1, len(values) + 1)
            panel.plot(index, values, label=_symbols(label), markevery=max(1, len(values) // 8), **line_style(style))
        panel.axhline(1 / curves[0][0].runs[0]["dim"], color="0.4", linewidth=0.8, label="uniform, 1/m")
        panel.set(xlabel="index", ylabel="eigenvalue of cov(z)", yscale="log", title=_title(k, len(panels), title))
        _legend_below(panel, 2)
    return figure


def draw_curves(table: Table, columns: Sequence[str]) -> Figure:
    """Measures of `AXIS` against the epoch, a panel a method and measure, a curve a term (the paper's figures 15-17).

    Mean over seeds, with a band from the least to the largest. A tick at each epoch that was measured, if they are few.
    """
    groups = by_method(table)
    wanted = [(column, *group) for column in columns for group in groups.items()]
    figure, axes = _panels(len(wanted), min(4, max(2, len(groups))))
    for k, (panel, (column, (dataset, method), rows)) in enumerate(zip(axes, wanted, strict=False)):
        measured: set[int] = set()
        for row in rows:
            epochs, values = _followed(row, column)  # (epochs,), (seeds, epochs)
            measured.update(epochs)
            style = line_style(_style(row))
            panel.plot(epochs, values.mean(0), label=_symbols(row.name), **style)
            if len(values) > 1:
                panel.fill_between(epochs, values.min(0), values.max(0), color=style["color"], alpha=0.2, linewidth=0)
        if column == "w2":
            panel.axhline(rows[0].value("w2_floor"), **FLOOR)
            panel.set_ylim(0, 2**0.5)
        title = f"{DATASETS.get(dataset, dataset)}, {METHODS.get(method, method)}"
        panel.set(xlabel="epoch", ylabel=AXIS[column], title=_title(k, len(wanted), title))
        panel.xaxis.set_major_locator(
            MaxNLocator(integer=True, steps=[1, 2, 5, 10]) if len(measured) > 8 else FixedLocator(sorted(measured))
        )
        _legend_below(panel, 1 if len(groups) > 2 else 2)
        panel.locator_params(axis="y", nbins=6)  # a number that follows the layout, which follows it, cuts labels off
    return figure


def _followed(row: Row, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs (counted from 1) at which every run of a row has noted a measure, and its values (seeds, epochs)."""
    runs = []
    for run in row.runs:
        lines = map(json.loads, (run["folder"] / "metrics.jsonl").read_text().splitlines())
        runs.append({line["epoch"] + 1: line[column] for line in lines if column in line})
    epochs = sorted(set.intersection(*map(set, runs)))
    return np.array(epochs), np.array([[run[epoch] for epoch in epochs] for run in runs])


def _legend_below(panel: Axes, columns: int) -> None:
    """Curves may be anywhere in a panel."""
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=columns)


def _style(row: Row) -> int:
    return list(TERMS).index(row.term) if row.term in TERMS else len(TERMS)


def _panels(count: int, columns: int) -> tuple[Figure, list[Axes]]:
    """`count` panels in lines of `columns`, each half a text width wide, or a quarter if there are four in a line."""
    columns = min(columns, count)
    lines = -(-count // columns)
    width, height = (COLUMN, 2.3) if columns <= 2 else (COLUMN * 0.72, 2.6)
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False)
    for panel in axes.flat[count:]:
        panel.remove()
    return figure, list(axes.flat[:count])


def _title(k: int, count: int, title: str) -> str:
    """A panel's title, with its letter if it is not the only one."""
    return f"({_letter(k)}) {title}" if count > 1 else title


def _symbols(text: str) -> str:
    """W2 and L_U as the other figures write them."""
    return text.replace("W2", SYMBOLS["w2"]).replace("L_U", SYMBOLS["lu"])


def _letter(k: int) -> str:
    """a to z, aa to zz, ... of the k-th panel."""
    return "abcdefghijklmnopqrstuvwxyz"[k % 26] * (1 + k // 26)

"""Pictures of a Table 2: every row beside the paper's, the spectra, and the measures against the epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from wassersteinssl import results
from wassersteinssl.files import reason
from wassersteinssl.plotting import COLORS, COLUMN, SYMBOLS, line_style, plt, save
from wassersteinssl.results import COLUMNS
from wassersteinssl.settings import MONITOR_IMAGES, UserError
from wassersteinssl.table2 import DATASETS, METHODS, TERMS, Row, Table

AXIS = {  # what a run's metrics.jsonl follows
    "knn1": f"kNN top-1 (%), of at most\n{MONITOR_IMAGES:,} training images",
    **SYMBOLS,
    "alignment": r"$\mathcal{A}$",
}
FLOOR: dict[str, Any] = {"color": "0.4", "linewidth": 0.8, "linestyle": ":", "label": "floor: uniform rows"}


def draw_table(table: Table, path: Path) -> list[Path]:
    """Acc@1 and W2, a line a row, two panels a data set: ours filled (with the deviation), the paper's hollow."""
    datasets = table.datasets()
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
            number = row.published.get(column)
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
    if any(row.published for row in table.rows):
        paper_label = "paper (width 64, 500 epochs)"
        handles.append(
            plt.Line2D([], [], marker="D", linestyle="", color="0.3", markerfacecolor="none", label=paper_label)
        )
    handles.append(plt.Line2D([], [], **FLOOR))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return save(figure, path)


@dataclass
class Panel:
    """Curves that belong together."""

    title: str
    rows: list[Row]
    styles: list[int]


def panels_of(table: Table) -> list[Panel]:
    """For each data set a panel of all methods without a term, if there are several, then one for each method with
    several rows (or for each, if only one has none)."""
    found = []
    for dataset in table.datasets():
        name = DATASETS.get(dataset, dataset)
        here = [row for row in table.rows if row.dataset == dataset]
        vanilla = [row for row in here if row.term == "none"]
        if len(vanilla) > 1:
            found.append(Panel(f"{name}, no term", vanilla, list(range(len(vanilla)))))
        for method in dict.fromkeys(row.method for row in here):
            rows = [row for row in here if row.method == method]
            if len(rows) > 1 or len(vanilla) < 2:
                found.append(Panel(f"{name}, {METHODS.get(method, method)}", rows, list(map(_style, rows))))
    return found


def draw_spectra(table: Table) -> Figure:
    """Eigenvalues of the covariance of the l2-normalised test embeddings, a panel for each of `panels_of` (the paper's
    figure 7). All panels have one scale."""
    panels = panels_of(table)
    figure, axes = _axes([*panels], 2)
    least, most = 1.0, 0.0
    for k, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
        for row, style in zip(panel.rows, panel.styles, strict=True):
            values = _spectrum(row.runs[0]["folder"] / "spectrum.npy")
            least, most = min(least, values.min()), max(most, values.max())
            index = np.arange(1, len(values) + 1)
            axis.plot(index, values, label=_symbols(row.name), markevery=max(1, len(values) // 8), **line_style(style))
        axis.axhline(1 / panel.rows[0].runs[0]["dim"], color="0.4", linewidth=0.8, label="uniform, 1/m")
        axis.set(xlabel="index", ylabel="eigenvalue of cov(z)", yscale="log", title=_title(k, len(panels), panel.title))
        _legend_below(axis, 2)
    for axis in axes:
        axis.set_ylim(least / 2, 2 * most)
    return figure


def _spectrum(path: Path) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
        if values.ndim != 1 or values.size == 0 or values.dtype.kind != "f":
            raise ValueError(f"{values.dtype} of shape {values.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    return values.clip(1e-12)


def draw_curves(table: Table, columns: Sequence[str]) -> Figure:
    """Measures of `AXIS` against the epoch, for each measure the panels of `panels_of` (the paper's figures 15-17).

    Mean over seeds, with a band from the least to the largest. A tick at each epoch that was measured, if they are few.
    """
    panels = panels_of(table)
    across = len(panels) if len(panels) <= 4 else 3
    blank: list[tuple[str, Panel] | None] = [None] * (-len(panels) % across)
    wanted = [entry for column in columns for entry in [*((column, panel) for panel in panels), *blank]]
    figure, axes = _axes(wanted, across)
    shown = [entry for entry in wanted if entry is not None]
    for k, (axis, (column, panel)) in enumerate(zip(axes, shown, strict=True)):
        measured: set[int] = set()
        for row, number in zip(panel.rows, panel.styles, strict=True):
            epochs, values = _followed(row, column)  # (epochs,), (seeds, epochs)
            measured.update(epochs)
            style = line_style(number)
            axis.plot(epochs, values.mean(0), label=_symbols(row.name), **style)
            if len(values) > 1:
                axis.fill_between(epochs, values.min(0), values.max(0), color=style["color"], alpha=0.2, linewidth=0)
        if column == "w2":
            axis.axhline(panel.rows[0].value("w2_floor"), **FLOOR)
            axis.set_ylim(0, 2**0.5)
        axis.set(xlabel="epoch", ylabel=AXIS[column], title=_title(k, len(shown), panel.title))
        axis.xaxis.set_major_locator(
            MaxNLocator(integer=True, steps=[1, 2, 5, 10]) if len(measured) > 8 else FixedLocator(sorted(measured))
        )
        _legend_below(axis, 1 if across > 2 and len(panel.rows) < 4 else 2)
        axis.locator_params(axis="y", nbins=6)  # a number that follows the layout, which follows it, cuts labels off
    return figure


def _followed(row: Row, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs (counted from 1) at which every run of a row has noted a measure, and its values (seeds, epochs)."""
    runs = []
    for run in row.runs:
        lines = results.log(run["folder"])
        runs.append({line["epoch"] + 1: line[column] for line in lines if isinstance(line.get(column), (int, float))})
    epochs = sorted(set.intersection(*map(set, runs)))
    return np.array(epochs), np.array([[run[epoch] for epoch in epochs] for run in runs])


def _legend_below(panel: Axes, columns: int) -> None:
    """Curves may be anywhere in a panel."""
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.26), ncols=columns)


def _style(row: Row) -> int:
    return list(TERMS).index(row.term) if row.term in TERMS else len(TERMS)


def _axes(entries: Sequence[Any], columns: int) -> tuple[Figure, list[Axes]]:
    """Axes for each entry that is not None, in lines of `columns`, each half a text width wide, or less if there are
    more than two in a line."""
    columns = min(columns, len(entries))
    lines = -(-len(entries) // columns)
    width, height = (COLUMN, 2.3) if columns <= 2 else (COLUMN * 0.72, 2.6)
    figure, axes = plt.subplots(lines, columns, figsize=(width * columns, height * lines), squeeze=False)
    wanted = [*(entry is not None for entry in entries), *[False] * (axes.size - len(entries))]
    for axis, kept in zip(axes.flat, wanted, strict=True):
        if not kept:
            axis.remove()
    return figure, [axis for axis, kept in zip(axes.flat, wanted, strict=True) if kept]


def _title(k: int, count: int, title: str) -> str:
    """A panel's title, with its letter if it is not the only one."""
    return f"({_letter(k)}) {title}" if count > 1 else title


def _symbols(text: str) -> str:
    """W2 and L_U as the other figures write them."""
    return text.replace("W2", SYMBOLS["w2"]).replace("L_U", SYMBOLS["lu"])


def _letter(k: int) -> str:
    """a to z, aa to zz, ... of the k-th panel."""
    return "abcdefghijklmnopqrstuvwxyz"[k % 26] * (1 + k // 26)

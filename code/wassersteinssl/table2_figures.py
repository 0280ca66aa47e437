"""Pictures of a Table 2: every row beside the paper's, the spectra, and the measures against the epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from wassersteinssl import results, studies
from wassersteinssl.cli import UserError
from wassersteinssl.plotting import COLORS, COLUMN, MARKERS, SYMBOLS, line_style, plt, save, symbols
from wassersteinssl.results import COLUMNS
from wassersteinssl.settings import MONITOR_IMAGES
from wassersteinssl.table2 import DATASET_LABELS, METHODS, TERM_LABELS, Row, Table, spectrum, term_label

AXIS = {  # quantities in a run's metrics.jsonl that can be drawn, with their labels
    "loss": "loss, without the term",
    "knn1": f"kNN accuracy (%) ↑\n(up to {MONITOR_IMAGES:,} training images)",
    **{name: f"{symbol} ↓" for name, symbol in SYMBOLS.items()},
    "alignment": r"alignment $\mathcal{A}$ ↓",
}
NO_TERM = "no term"
UNIFORM: dict[str, Any] = {"color": "0.4", "linewidth": 0.8, "label": "uniform rows"}
FLOOR: dict[str, Any] = {
    "color": "0.4", "linewidth": 0.8, "linestyle": ":", "label": f"{SYMBOLS['w2']} of uniform rows"
}  # fmt: skip


def draw_table(table: Table, path: Path) -> list[Path]:
    """Acc@1 and W2, a line for each row, data sets below each other: ours (with deviation), and hollow the paper's."""
    datasets = table.datasets()
    rows = {dataset: [row for row in table.rows if row.dataset == dataset] for dataset in datasets}
    compared = any(row.published for row in table.rows)
    heights = [1.1 + 0.19 * len(rows[dataset]) for dataset in datasets]
    figure, axes = plt.subplots(
        len(datasets), 2, figsize=(2 * COLUMN, sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for k, (dataset, column) in enumerate((d, c) for d in datasets for c in ("acc1", "w2")):
        panel, shown = axes.flat[k], rows[dataset]
        shift = 0.17 if any(row.published for row in shown) else 0
        for y, row in enumerate(shown):
            color, marker, deviation = COLORS[_place(row)], MARKERS[_place(row)], row.deviation(column) or 0
            panel.errorbar(row.value(column), y - shift, xerr=deviation, fmt=marker, color=color, capsize=2)
            number = row.published.get(column)
            if number is not None:
                panel.plot(number, y + shift, marker, markerfacecolor="none", color=color)
        if column == "w2":
            panel.axvline(shown[0].value("w2_floor"), **FLOOR)
            panel.set_xlim(left=0)
        panel.set_yticks(range(len(shown)), [symbols(row.name) for row in shown] if column == "acc1" else [])
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.set_title(symbols(f"({_letter(k)}) {DATASET_LABELS.get(dataset, dataset)}: {COLUMNS[column][0]}"))
        panel.set_xlabel("linear accuracy (%)" if column == "acc1" else SYMBOLS["w2"])
    several = any(row.seeds > 1 for row in table.rows)
    ours = "ours ± deviation over seeds" if several else "ours"
    handles = [plt.Line2D([], [], marker=MARKERS[0], linestyle="", color="0.3", label=ours)]
    if compared:
        hollow: dict[str, Any] = {"marker": MARKERS[0], "linestyle": "", "color": "0.3", "markerfacecolor": "none"}
        handles.append(plt.Line2D([], [], **hollow, label="paper (width 64, 500 epochs)"))
    handles.append(plt.Line2D([], [], **FLOOR))
    terms = {_place(row): _label(row.term) if row.term in TERM_LABELS else "another term" for row in table.rows}
    handles += [
        plt.Line2D([], [], marker=MARKERS[k], linestyle="", color=COLORS[k], label=terms[k]) for k in sorted(terms)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return save(figure, path)


def _place(row: Row) -> int:
    """The place of a row's term among colours and markers."""
    return list(TERM_LABELS).index(row.term) if row.term in TERM_LABELS else len(TERM_LABELS)


def _label(term: str) -> str:
    return symbols(term_label(term).strip() or NO_TERM)


@dataclass
class Panel:
    """Curves that are drawn together."""

    dataset: str
    title: str
    rows: list[Row]
    labels: list[str]  # what distinguishes the rows
    styles: list[dict]  # of each label, the same in all panels; methods and terms have different ones


def panels_of(table: Table, *, mixed: bool = True) -> list[list[Panel]]:
    """For each data set: a panel of all methods without a term, if there are several; then one for each method with
    several rows (for every method, if at most one has a row without a term). Not `mixed`: one for each method."""
    order = [*map(_label, TERM_LABELS), *METHODS.values()]  # labels in the order of their styles
    found = []
    for dataset in table.datasets():
        name = symbols(DATASET_LABELS.get(dataset, dataset))
        here = [row for row in table.rows if row.dataset == dataset]
        vanilla = [row for row in here if row.term == "none"]
        line = []
        if mixed and len(vanilla) > 1:
            labels = [symbols(row.name) for row in vanilla]
            line.append(Panel(name, NO_TERM, vanilla, labels, _styles(labels, order)))
        for key in dict.fromkeys(row.method for row in here):
            rows, method = [row for row in here if row.method == key], METHODS.get(key, key)
            if len(rows) > 1 or len(vanilla) < 2 or not mixed:
                labels = [symbols(row.name.removeprefix(method).strip()) or NO_TERM for row in rows]
                line.append(Panel(name, symbols(method), rows, labels, _styles(labels, order)))
        found.append(line)
    return found


def _styles(labels: Sequence[str], order: list[str]) -> list[dict]:
    """The style of each label, by its place in `order`; new labels are appended there."""
    order += [label for label in labels if label not in order]
    return [line_style(order.index(label)) for label in labels]


def draw_spectra(table: Table) -> Figure:
    """Eigenvalues of the covariance of the l2-normalised test embeddings (the paper's figure 7), beside those of as
    many uniform rows: a line of `panels_of` for each data set, all of one scale. For several seeds, the geometric mean
    within a band from the smallest to the largest."""
    figure, grid = _axes(panels_of(table))
    least, most = 1.0, 0.0
    for axis, panel in chain.from_iterable(grid):
        for k, (row, style) in enumerate(zip(panel.rows, panel.styles, strict=True)):
            found = [run for run in row.runs if (run["folder"] / "spectrum.npy").exists()] or row.runs[:1]
            spectra = np.stack([spectrum(run).clip(1e-12) for run in found])
            index, values = np.arange(1, spectra.shape[1] + 1), np.exp(np.log(spectra).mean(0))
            least, most = min(least, spectra.min()), max(most, spectra.max())
            axis.plot(index, values, markevery=_every(k, len(panel.rows), len(values), 6), **style)
            if len(spectra) > 1:
                axis.fill_between(index, spectra.min(0), spectra.max(0), color=style["color"], alpha=0.2, linewidth=0)
        n, m = (panel.rows[0].runs[0][key] for key in ("n_test", "dim"))
        axis.plot(np.arange(1, m + 1), studies.spectrum_theory(n, m), **UNIFORM)
        axis.set(xlabel="index", yscale="log")
    for line in grid:
        line[0][0].set(ylabel=f"{line[0][1].dataset}\neigenvalue of cov($z$)", ylim=(least / 2, 2 * most))
    _legends(figure, grid, UNIFORM)
    return figure


def draw_curves(table: Table, columns: Sequence[str]) -> Figure:
    """Quantities of `AXIS` against the epoch (the paper's figures 15-17), for each the lines of `panels_of`, all of one
    scale. For "loss", which differs from method to method, each method has a panel with a scale of its own.

    Mean over seeds, with a band from the smallest to the largest. Ticks are at the measured epochs, if these are few.
    UserError if no run has recorded any of the quantities.
    """
    if not any(len(_followed(row, column)[0]) for row in table.rows for column in columns):
        raise UserError(f"no run has noted {', '.join(columns)} between its epochs (--monitor-every)")
    shared = "loss" not in columns
    lines = panels_of(table, mixed=shared)
    figure, grid = _axes(lines * len(columns), sharey="row" if shared else False)
    for k, column in enumerate(columns):
        here = grid[k * len(lines) : (k + 1) * len(lines)]
        for axis, panel in chain.from_iterable(here):
            _draw_curves(axis, panel, column)
        limits = [line[0][0].get_ylim() for line in here]
        for line in here:
            if shared:
                line[0][0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
            line[0][0].set_ylabel(f"{line[0][1].dataset}\n{AXIS[column]}")
    _legends(figure, grid, *([FLOOR] if "w2" in columns else []))
    return figure


def _draw_curves(axis: Axes, panel: Panel, column: str) -> None:
    measured: set[int] = set()
    for k, (row, style) in enumerate(zip(panel.rows, panel.styles, strict=True)):
        epochs, values = _followed(row, column)  # (epochs,), (seeds, epochs)
        measured.update(epochs)
        axis.plot(epochs, values.mean(0), markevery=_every(k, len(panel.rows), len(epochs), 10), **style)
        if len(values) > 1:
            axis.fill_between(epochs, values.min(0), values.max(0), color=style["color"], alpha=0.2, linewidth=0)
    if column == "w2":
        axis.axhline(panel.rows[0].value("w2_floor"), **FLOOR)
        axis.set_ylim(0, 2**0.5)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(
        MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]) if len(measured) > 6 else FixedLocator(sorted(measured))
    )
    axis.locator_params(axis="y", nbins=6)  # fixed: if it depended on the layout, which depends on it, labels are cut


def _every(k: int, lines: int, points: int, marks: int) -> tuple[int, int]:
    """(start, step) of the points that carry a marker on the k-th of so many lines: about `marks` of them, and at
    different places on each line."""
    step = max(1, points // marks)
    return k * step // lines, step


def _followed(row: Row, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The epochs (from 1) at which all of a row's runs that recorded the quantity at all have recorded it, and its
    values (seeds, epochs)."""
    runs = []
    for run in row.runs:
        lines = results.log(run["folder"])
        runs.append({line["epoch"] + 1: line[column] for line in lines if isinstance(line.get(column), float)})
    runs = [run for run in runs if run] or runs
    epochs = sorted(set.intersection(*map(set, runs)))
    return np.array(epochs), np.array([[run[epoch] for epoch in epochs] for run in runs])


def _axes(lines: Sequence[list[Panel]], sharey: Any = "row") -> tuple[Figure, list[list[tuple[Axes, Panel]]]]:
    """Titled axes for the panels. Up to five fit into the width of a page."""
    columns = max(map(len, lines))
    width = min(COLUMN, 2 * COLUMN / min(columns, 5))
    size = (width * columns, (2 if columns > 2 else 2.3) * len(lines) + 0.7)
    mixed = 1.5 if columns > 2 and lines[0][0].title == NO_TERM else 1  # it holds most lines
    ratios = [mixed, *[1] * (columns - 1)]
    figure, axes = plt.subplots(len(lines), columns, figsize=size, squeeze=False, sharey=sharey, width_ratios=ratios)
    several, letters = sum(map(len, lines)) > 1, map(_letter, count())
    grid: list[list[tuple[Axes, Panel]]] = []
    for places, panels in zip(axes, lines, strict=True):
        for axis in places[len(panels) :]:
            axis.remove()
        for axis, panel in zip(places, panels, strict=False):
            axis.set_title(f"({next(letters)}) {panel.title}" if several else panel.title)
        grid.append(list(zip(places, panels, strict=False)))
    return figure, grid


def _legends(figure: Figure, grid: list[list[tuple[Axes, Panel]]], *others: dict[str, Any]) -> None:
    """Legends below the panels: methods at the left, terms at the right, each with `others` and its panels' letters."""
    panels = [panel for _, panel in chain.from_iterable(grid)]
    kinds = {
        side: [k for k, panel in enumerate(panels) if (panel.title == NO_TERM) == (side == "left")]
        for side in ("left", "right")
    }
    both = all(kinds.values())
    for side, chosen in kinds.items():
        entries = {
            label: style for k in chosen for label, style in zip(panels[k].labels, panels[k].styles, strict=True)
        }
        if entries:
            handles = [plt.Line2D([], [], label=label, **style) for label, style in entries.items()]
            handles += [plt.Line2D([], [], **style) for style in others]
            place: Any = f"outside lower {side if both else 'center'}"
            title = _letters(chosen) if both else None
            figure.legend(handles=handles, loc=place, ncols=3 if side == "left" else 2, title=title, alignment="left")


def _letters(panels: Sequence[int]) -> str:
    """Panels in ascending order as their letters: (a), (c) to (e)."""
    runs = [[k for _, k in run] for _, run in groupby(enumerate(panels), lambda pair: pair[1] - pair[0])]
    names = [[f"({_letter(k)})" for k in run] for run in runs]
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(run) for run in names)


def _letter(k: int) -> str:
    """a to z, aa to zz, ... of the k-th panel."""
    return "abcdefghijklmnopqrstuvwxyz"[k % 26] * (1 + k // 26)

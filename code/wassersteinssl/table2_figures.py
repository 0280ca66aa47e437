"""Pictures of a Table 2: accuracy and uniformity of every row beside the paper's, and the spectra."""

from pathlib import Path

import numpy as np

from wassersteinssl.plotting import COLORS, COLUMN, line_style, plt, save
from wassersteinssl.table2 import COLUMNS, DATASETS, TERMS, Row, Table, paper


def draw_table(table: Table, path: Path) -> list[Path]:
    """Acc@1 and W2, a line a row, two panels a data set: ours filled (with the deviation), the paper's hollow."""
    datasets, published = table.datasets(), paper()
    rows = {dataset: [row for row in table.rows if row.dataset == dataset] for dataset in datasets}
    height = 0.7 + 0.19 * max(map(len, rows.values()))
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
            panel.axvline(shown[0].value("w2_floor"), color="0.4", linewidth=0.8, linestyle=":")
            panel.set_xlim(left=0)
        panel.set_yticks(range(len(shown)), [row.name for row in shown] if column == "acc1" else [])
        panel.set_ylim(len(shown) - 0.5, -0.5)
        panel.set_title(f"({'abcdefgh'[k]}) {DATASETS.get(dataset, dataset)}: {COLUMNS[column][0]}")
        panel.set_xlabel("%" if column == "acc1" else "W2; dotted: floor")
    handles = [plt.Line2D([], [], marker="o", linestyle="", color="0.3", label="ours")]
    if any(dataset in DATASETS for dataset in datasets):
        paper_label = "paper (width 64, 500 epochs)"
        handles.append(
            plt.Line2D([], [], marker="D", linestyle="", color="0.3", markerfacecolor="none", label=paper_label)
        )
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return save(figure, path)


def draw_spectra(table: Table, path: Path) -> list[Path]:
    """Eigenvalues of the covariance of the l2-normalised test embeddings, one curve a row, a panel a method."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in table.rows:
        groups.setdefault((row.dataset, row.method), []).append(row)
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(COLUMN * columns, 2.3 * lines), squeeze=False)
    for panel in axes.flat[len(groups) :]:
        panel.remove()
    for k, (panel, rows) in enumerate(zip(axes.flat, groups.values(), strict=False)):
        for row in rows:
            values = np.load(row.runs[0]["folder"] / "spectrum.npy", allow_pickle=False).clip(1e-12)
            index = np.arange(1, len(values) + 1)
            style = line_style(list(TERMS).index(row.term) if row.term in TERMS else 3)
            panel.plot(index, values, label=row.name, markevery=max(1, len(values) // 8), **style)
        m = rows[0].runs[0]["dim"]
        panel.axhline(1 / m, color="0.4", linewidth=0.8)
        panel.text(m, 1.2 / m, "uniform, 1/m", ha="right", va="bottom", fontsize=7, color="0.3")
        panel.set(xlabel="index", ylabel="eigenvalue of cov(z)", yscale="log")
        panel.legend(loc="lower left")
        if len(groups) > 1:
            panel.set_title(f"({'abcdefghijklmnop'[k]}) {DATASETS.get(rows[0].dataset, rows[0].dataset)}")
    return save(figure, path)

"""One style for all figures: fonts that come with matplotlib, legible at text width, clear without colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can distinguish; markers and dashes do so in grey.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888",
    "#882255", "#999933", "#332288",  # of Tol
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">")
DASHES: tuple[Any, ...] = (
    "-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 2)), (0, (8, 2)), (0, (4, 1, 1, 1)),
    (0, (3, 1)), (0, (6, 1, 2, 1)), (0, (2, 2)),
)  # fmt: skip
SYMBOLS = {"w2": r"$\mathcal{W}_2$", "lu": r"$\mathcal{L}_{\mathcal{U}}$"}
MANY_ROWS = {"color": "black", "linewidth": 0.8, "linestyle": (0, (2, 4)), "zorder": 3}  # drawn above other lines
COLUMN = 3.3  # inches: one column of a two-column page

plt.rcParams.update(
    {
        "font.family": "DejaVu Sans",
        "font.size": 8,
        "axes.titlesize": 8,
        "legend.fontsize": 7,
        "legend.handlelength": 3.5,  # more than one period of every dash
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,  # bars and shades hide the grid
        "grid.alpha": 0.3,
        "grid.linewidth": 0.5,
        "lines.linewidth": 1.3,
        "lines.markersize": 4,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 300,
        "pdf.fonttype": 42,  # fonts embedded as text, not as shapes
    }
)


def symbols(text: str) -> str:
    """Plain text as all figures show it: W2 and L_U as symbols, -TCR with a minus, dollars unchanged."""
    text = text.replace("$", r"\$").replace("-TCR", "$-$TCR")
    return text.replace("W2", SYMBOLS["w2"]).replace("L_U", SYMBOLS["lu"])


def line_style(k: int) -> dict:
    """Colour, dash and marker of the k-th series. Series of the same colour differ in the other two."""
    turn = (k + k // len(COLORS)) % len(COLORS)
    return {"color": COLORS[k % len(COLORS)], "linestyle": DASHES[turn], "marker": MARKERS[turn]}


def compare(axes: Axes, x: Sequence, points: Sequence, theory: Sequence, k: int, label: str) -> None:
    """Draw the k-th series: measured points as hollow markers, theory as a line, with one entry in the legend."""
    style = line_style(k) | {"markerfacecolor": "none", "markeredgewidth": 0.8}
    axes.plot(x, theory, **(style | {"marker": ""}))
    axes.plot(x, points, **(style | {"linestyle": ""}))
    axes.plot([], [], **style, label=label)


def lu_and_w2(
    data: Mapping[str, np.ndarray], x: str, by: str, label: str, settings: Mapping[str, Any]
) -> tuple[Figure, list[Axes]]:
    """(a) -L_U and (b) -W2 of `studies.beside_theory` against column x, a series for each value of column `by`. The
    titles tell the number of rows in `settings`, and m if it is the same for all.

    Markers are measured. Lines are theory, for W2 that of so many rows; dashed black is W2's limit of many rows.
    """
    figure, panels = plt.subplots(1, 2, figsize=(2 * COLUMN, 2.5))
    about, dimensions = f"{settings['samples']:,} rows", set(data["m"])
    about += f" of $m$ = {dimensions.pop():.0f}" if len(dimensions) == 1 else ""
    for axes, letter, name, theory in zip(panels, "ab", ("lu", "w2"), ("lu_theory", "w2_finite"), strict=True):
        for k, value in enumerate(sorted(set(data[by]))):
            row = data[by] == value
            if name == "w2":
                axes.plot(data[x][row], -data["w2_theory"][row], **MANY_ROWS)
            compare(axes, data[x][row], -data[name][row], -data[theory][row], k, label.format(value))
        axes.set(title=f"({letter}) {about}", ylabel=f"$-${SYMBOLS[name]} (up: more uniform)")
    panels[1].plot([], [], **MANY_ROWS, label="many rows")
    return figure, list(panels)


def save(figure: Figure, path: str | Path) -> list[Path]:
    """Write PATH.png (300 dpi) and PATH.pdf, and return the paths. The same figure gives the same bytes."""
    written = [Path(path).with_suffix(suffix) for suffix in (".png", ".pdf")]
    for target in written:
        figure.savefig(target, metadata={"CreationDate": None} if target.suffix == ".pdf" else None)
    return written

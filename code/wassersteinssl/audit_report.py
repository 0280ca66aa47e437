"""An audit as one page: text for the terminal, a picture, HTML that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wassersteinssl import results
from wassersteinssl.audit import COLLAPSED, HEALTHY, Audit, counted, percent, rounded
from wassersteinssl.cli import UserError, printable
from wassersteinssl.files import write_atomically
from wassersteinssl.plotting import COLORS, COLUMN, SYMBOLS, plt

# The laws that the rows are compared with: colour, dashes, name.
LAWS = {"uniform": (COLORS[1], "--", "uniform rows"), "gaussian": (COLORS[6], ":", "Gaussian, same moments")}

HEAD = ("measure", "value", "compare with")
COMPARED = (
    "Embedding", "n x m", "verdict", "W2 (floor)", "common mean", "by W2", "by rank",
    "nearest neighbour (Gaussian)", "kNN",
)  # fmt: skip
LONGEST = 80  # characters of the name above the picture, at most


# ---- text ------------------------------------------------------------------------------------------------------------


def title(report: dict[str, Any]) -> str:
    return printable(
        f"{report['name']}: {report['n']} rows of {report['m']} features, {report['dtype']}; "
        f"pairs of rows: of {report['sample']} of them, seed {report['seed']}"
    )


def entries(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What is measured, its value, and what to compare it with."""
    w2, spectrum, beyond, m = report["w2"], report["spectrum"], report["beyond"], report["m"]
    norms, features, rows, square = report["norms"], report["features"], report["rows"], w2["w2"] ** 2
    k = rows["in_floor"]
    floor = max(0.0, w2["floor"] ** 2 - 1 / k)
    unit = "unit rows" if norms["zero_rows"] else "rows"  # zero rows are none, and lie lower
    parts = [percent(part / square) if square else "0 %" for part in (w2["mean_part"], w2["covariance_part"])]
    least = f"minimum {w2['minimum']:.4f} (no {unit} lower), {w2['collapse']:.4f} if all {unit} are equal"
    if norms["zero_rows"] == report["n"]:
        least = "1 of rows that are all zero"
    found = [
        ("W2", f"{w2['w2']:.4f}", f"floor {w2['floor']:.4f} (so many uniform rows), {least}"),
        ("W2^2, mean and covariance", f"{w2['mean_part']:.4f} + {w2['covariance_part']:.4f}",
         f"{parts[0]} of W2^2 from the common mean, {parts[1]} from the covariance; uniform rows {1 / k:.4f} + "
         f"{floor:.4f}"),
        ("common mean", percent(w2["mean_part"]), f"of the squared length; uniform rows {percent(1 / k)}"),
        ("dimensions by W2", f"{w2['dimensions']:.1f}", f"of {m}, {percent(w2['dimensions'] / m)}"),
        ("dimensions by rank", f"{spectrum['dimensions']:.1f}", f"of {m}, {percent(spectrum['dimensions'] / m)}"),
        ("effective rank", f"{spectrum['effective_rank']:.1f}",
         f"uniform rows {spectrum['uniform_effective_rank']:.1f}; 99 % of the variance "
         f"in {counted(spectrum['directions_of_99_percent'], 'direction')}"),
        ("RankMe", f"{spectrum['rankme']:.1f}", f"not centred, at most {min(report['n'], m)}"),
        ("participation ratio", f"{spectrum['participation_ratio']:.1f}",
         f"from 1 to {m}, uniform rows {spectrum['uniform_participation_ratio']:.1f}"),
        ("L_U, calibrated", f"{beyond['lu_calibrated']:.4f}", "0: uniform; " + _beside(beyond, "lu_calibrated", "lu")),
        ("nearest neighbour, median", f"{beyond['nearest']:.4f}", _beside(beyond, "nearest", "nearest")),
        ("rows with a near neighbour", percent(beyond["near"]),
         f"nearer than a third of the Gaussian median; uniform rows {percent(beyond['uniform']['near'])}; Gaussian, "
         f"same moments {percent(beyond['gaussian']['near'])}"),
        ("norms", f"{norms['mean']:.4g} ± {norms['std']:.3g}",
         f"from {norms['min']:.4g} to {norms['max']:.4g}, {counted(norms['zero_rows'], 'zero row')}"),
        ("dead features", str(features["dead"]),
         "constant over all rows" + _named(features["first_dead"], features["dead"])),
        ("repeated features", str(features["repeated"]),
         "a multiple of an earlier one"
         + _named([f"{j} of {i}" for i, j in features["first_pairs"]], features["repeated"])),
        ("repeated rows", str(rows["repeated"]), f"{rows['distinct']} are distinct"),
    ]  # fmt: skip
    if rows["dropped"]:
        found.append(("dropped rows", str(rows["dropped"]), "NaN, infinite, gigantic or vanishing"))
    if "labels" in report:
        labels = report["labels"]
        asked = f"of {labels['asked']} sampled rows, {labels['classes']} classes"
        most = f"the most frequent one {labels['most_frequent']:.1f} %"
        found.append(("kNN accuracy", f"{labels['knn1']:.1f} %", f"{asked}; {most}"))
    if "views" in report:
        views = report["views"]
        found += [
            ("alignment A", f"{views['alignment']:.4f}",
             f"0: views agree, {views['unrelated']['alignment']:.2f}: unrelated; {views['name']}"),
            ("LiDAR", f"{views['lidar']:.1f}",
             f"directions, of {m}, by how the inputs' own spread exceeds that of their views; "
             f"{views['unrelated']['lidar']:.1f}: unrelated, so read it beside A"),
        ]  # fmt: skip
    return [(name, value, printable(meaning)) for name, value, meaning in found]


def notes(report: dict[str, Any]) -> list[str]:
    draws = report["beyond"]["draws"]
    d_prime = f"d' is the distance to the mean of {draws} draws of a law, in their standard deviations"
    return [*map(printable, report["notes"]), d_prime]


def text(report: dict[str, Any]) -> str:
    """The page for a terminal."""
    verdict = report["verdict"]
    lines = [title(report), "", f"verdict: {verdict['word'].upper()}", f"  {verdict['why']}."]
    lines += [f"what to do: {verdict['advice']}.", ""]
    lines += [f"{name:26} {value:>17}   {meaning}" for name, value, meaning in (HEAD, *entries(report))]
    lines += [f"note: {note}" for note in notes(report)]
    return "\n".join(lines) + "\n"


def _beside(beyond: dict[str, Any], value: str, d_prime: str) -> str:
    parts = []
    for law, (_, _, name) in LAWS.items():
        d = beyond[law][f"{d_prime}_d_prime"]
        parts.append(f"{name} {beyond[law][value]:.4f}" + ("" if d is None else f" (d' {d:+.3g})"))
    return "; ".join(parts)


def _named(items: list, number: int) -> str:
    return ": " + ", ".join(map(str, items)) + (" ..." if number > len(items) else "") if items else ""


# ---- the picture -----------------------------------------------------------------------------------------------------


def side_by_side(folders: Sequence[Path]) -> str:
    """A Markdown table of the audits that `save` has written into these folders, which tell those of one name apart.
    UserError if one is damaged."""
    lines: list[tuple[str, ...]] = []
    for folder in folders:
        try:
            report = json.loads((folder / "audit.json").read_text("utf-8"))
            w2, rank, beyond = report["w2"], report["spectrum"], report["beyond"]
            lines.append((
                printable(report["name"]).removesuffix(".npy"),
                printable(f"{report['n']} x {report['m']}"),
                printable(report["verdict"]["word"]),
                f"{w2['w2']:.3f} ({w2['floor']:.3f})",
                percent(w2["mean_part"]),
                f"{w2['dimensions']:.1f}",
                f"{rank['dimensions']:.1f}",
                f"{beyond['nearest']:.2f} ({beyond['gaussian']['nearest']:.2f})",
                f"{report['labels']['knn1']:.1f} %" if "labels" in report else "",
            ))  # fmt: skip
        except OSError as error:
            raise UserError(f"{folder} holds no audit of --report: {error.strerror}") from None
        except (AttributeError, *results.DAMAGE) as error:
            raise UserError(f"{folder / 'audit.json'} is damaged: {error!r:.80}") from None
    names = [line[0] for line in lines]
    told = [
        name if names.count(name) == 1 else f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)
    ]
    return results.markdown([COMPARED, *((name, *line[1:]) for name, line in zip(told, lines, strict=True))])


def draw(audit: Audit) -> Figure:
    """Dimensions in use, the spectrum, nearest neighbours, norms."""
    figure, panels = plt.subplots(2, 2, figsize=(2 * COLUMN, 5.4))
    _draw_dimensions(panels[0, 0], audit.report)
    _draw_spectrum(panels[0, 1], audit.report["spectrum"])
    _draw_nearest(panels[1, 0], audit.nearest)
    wide = 0 < 100 * audit.norms.min() < audit.norms.max()
    bins = np.geomspace(audit.norms.min(), audit.norms.max(), 41).tolist() if wide else _bins(audit.norms)
    panels[1, 1].hist(audit.norms, bins=bins, color=COLORS[0])
    panels[1, 1].set(title="(d) Norms before scaling to unit length", xlabel="norm of a row", ylabel="sampled rows",
                     xscale="log" if wide else "linear")  # fmt: skip
    figure.legend(*panels[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    name, report = printable(audit.report["name"]), audit.report
    name = name if len(name) <= LONGEST else "..." + name[-LONGEST:]
    figure.suptitle(
        f"{name}\n{report['n']:,} rows of {report['m']:,} features: {report['verdict']['word']}",
        fontsize=9, parse_math=False,
    )  # fmt: skip
    return figure


def _draw_dimensions(axes: Axes, report: dict[str, Any]) -> None:
    """The two counts behind the verdict, over the verdict's three zones."""
    m, w2, spectrum = report["m"], report["w2"], report["spectrum"]
    zones = {"collapsed": (0, COLLAPSED, "0.75"), "partly": (COLLAPSED, HEALTHY, "0.88"), "healthy": (HEALTHY, 1, "1")}
    for name, (left, right, grey) in zones.items():
        axes.axvspan(100 * left, 100 * right, color=grey, linewidth=0, zorder=0)
        place = (100 * right - 1, "right") if name == "collapsed" else (50 * (left + right), "center")
        axes.text(place[0], 1.62, name, ha=place[1], va="center", rotation=90 if name == "collapsed" else 0, fontsize=7)
    rank, uniform = (f"{spectrum[k]:,.{0 if m > 999 else 1}f}" for k in ("effective_rank", "uniform_effective_rank"))
    bars = {
        f"by {SYMBOLS['w2']}": (w2["dimensions"], f"{SYMBOLS['w2']} = {w2['w2']:.3f} (floor {w2['floor']:.3f})"),
        "by rank": (spectrum["dimensions"], f"rank {rank} (uniform {uniform})"),
    }
    for y, (used, label) in zip((1, 0), bars.values(), strict=True):
        axes.barh(y, 100 * used / m, height=0.32, color=COLORS[0])
        text = f"{label}:\n{rounded(used)} of {m:,} dimensions"
        axes.text(14, y - 0.21, text, ha="left", va="top", fontsize=7, linespacing=1.3)
    axes.set_yticks((1, 0), list(bars))
    axes.set(title="(a) Dimensions in use", xlabel="% of the dimensions", xlim=(0, 100), ylim=(-0.75, 2.0))
    axes.grid(False)


def _draw_spectrum(axes: Axes, spectrum: dict[str, Any]) -> None:
    values, law = np.array(spectrum["eigenvalues"]), np.array(spectrum["marchenko_pastur"])
    index = np.arange(1, len(values) + 1)
    bottom = max(1e-12, 1e-9 * law.max())  # smaller values are rounding
    axes.plot(index, values.clip(bottom), color=COLORS[0])
    color, dashes, _ = LAWS["uniform"]  # that of Marchenko and Pastur
    axes.plot(index, np.where(law > 0, law, np.nan), color=color, linestyle=dashes)
    bottom = max(bottom, 0.5 * min(values.clip(bottom).min(), law.max()))
    axes.set(title="(b) Spectrum of the covariance", xlabel="index, largest first", ylabel="eigenvalue",
             xscale="log" if len(values) > 100 else "linear",
             yscale="log", ylim=(bottom, 2 * max(values.max(), law.max())))  # fmt: skip


def _draw_nearest(axes: Axes, nearest: dict[str, np.ndarray]) -> None:
    bins = _bins(np.concatenate(list(nearest.values())))
    axes.hist(nearest["these rows"], bins=bins, color=COLORS[0], alpha=0.6, label="these rows")
    for law, (color, dashes, name) in LAWS.items():
        weights = np.full(len(nearest[law]), len(nearest["these rows"]) / len(nearest[law]))
        style: dict[str, Any] = {"color": color, "linestyle": dashes, "linewidth": 1.3, "label": name}
        axes.hist(nearest[law], bins=bins, weights=weights, histtype="step", **style)
    axes.set(title="(c) Distance to the nearest neighbour", xlabel="distance between unit rows", ylabel="sampled rows")


def _bins(values: np.ndarray) -> list[float]:
    """40 bins over the values; over one unit around them if all are the same."""
    low, high = float(values.min()), float(values.max())
    spread = high - low > 1e-6 * max(abs(high), 1e-30)
    return np.linspace(low, high, 41).tolist() if spread else np.linspace(low - 0.5, high + 0.5, 41).tolist()


# ---- the files -------------------------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #111 }
table { border-collapse: collapse; width: 100% } th { text-align: left }
td, th { padding: .25rem .6rem; border-top: 1px solid #ccc }
td:nth-child(2), th:nth-child(2) { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
p, li, td:nth-child(3) { overflow-wrap: anywhere }
img { width: 100%; height: auto } .verdict { border-left: .4rem solid #0072B2; padding-left: 1rem }
"""


def page(report: dict[str, Any], picture: bytes) -> str:
    """HTML that needs no other file and runs no script; everything from outside is escaped."""
    verdict = report["verdict"]
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in entry) + "</tr>" for entry in entries(report)
    )
    items = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes(report))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>Audit: {html.escape(verdict["word"])}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Has this embedding collapsed?</h1>
<p>{html.escape(title(report))}</p>
<div class="verdict">
<h2>{html.escape(verdict["word"].capitalize())}</h2>
<p>{html.escape(printable(verdict["why"]))}.</p>
<p><b>What to do:</b> {html.escape(verdict["advice"])}.</p>
</div>
<img alt="Dimensions in use, spectrum, nearest neighbours and norms"
 src="data:image/png;base64,{base64.b64encode(picture).decode()}">
<table>
<thead>
<tr>{"".join(f"<th>{cell}</th>" for cell in HEAD)}</tr>
</thead>
<tbody>
{rows}
</tbody>
</table>
<ul>
{items}</ul>
<p>wassersteinssl {html.escape(report["versions"]["wassersteinssl"])}</p>
</body>
</html>
"""


def save(audit: Audit, folder: Path) -> list[Path]:
    """Write audit.json, .txt, .png and .html into `folder`, which need not exist yet, and return their paths."""
    figure, picture = draw(audit), io.BytesIO()
    figure.savefig(picture, format="png", dpi=200)
    plt.close(figure)
    contents = {
        "audit.json": (json.dumps(audit.report, indent=1, allow_nan=False) + "\n").encode(),
        "audit.txt": text(audit.report).encode(),
        "audit.png": picture.getvalue(),
        "audit.html": page(audit.report, picture.getvalue()).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]

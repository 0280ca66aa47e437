#!/usr/bin/env python3
"""The launchers and what their presets took: python code/results/launchers.py

Writes launchers.md, a row a launcher, and the line "Measured" into the head of each launcher. Minutes are those of the
finished runs beside this file, pre-training and evaluation, on the hardware that they name; what nobody has run is
empty.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # works with and without an installation

from wassersteinssl import results, table2
from wassersteinssl.cli import Parser
from wassersteinssl.settings import programs

TERMS = {"vanilla": "none", "lu": "lu", "w2": "w2"}
MEASURED = ("digits", "mini", "short")
LINE = re.compile(r"^# Measured.*\n", re.MULTILINE)


def measured(preset: str) -> tuple[dict[tuple[str, str], table2.Row], str]:
    """(method, term) -> its finished runs of the preset; and their hardware."""
    rows = [row for table in table2.collect([HERE / preset])[0] for row in table.rows]
    devices = sorted({run["device"] for row in rows for run in row.runs})
    return {(row.method, row.term): row for row in rows}, ", ".join(devices)


def minutes(row: table2.Row | None) -> str:
    return "" if row is None else f"{row.minutes:.1f}"


def launchers(method: str) -> list[tuple[str, Path]]:
    """(term, launcher) of the method, in the table's order."""
    found = {}
    for path in sorted((HERE.parent / programs()[method]).parent.glob("run_*.sh")):
        kind = re.search(r"vanilla|lu|w2", path.stem.removeprefix("run_").rpartition("+")[2])
        assert kind, path
        found[TERMS[kind[0]]] = path
    return [(term, found[term]) for term in table2.TERM_LABELS if term in found]


def headed(launcher: str, rows: dict[str, table2.Row | None]) -> str:
    """The launcher's text with its line of measurements."""
    told = [
        f"{preset} {row.value('acc1'):.2f} %{f' (mean of {row.seeds} seeds)' if row.seeds > 1 else ''} "
        f"in {minutes(row)} minutes ({row.runs[0]['device']})"
        for preset, row in rows.items()
        if row is not None
    ]
    line = f"# Measured here, by preset of grid.py: {'; '.join(told) or 'nothing yet'}.\n"
    return LINE.sub("", launcher).replace("set -euo pipefail\n", line + "set -euo pipefail\n", 1)


def build() -> tuple[str, dict[Path, str]]:
    """launchers.md, and the text that each launcher should have."""
    found = {preset: measured(preset) for preset in MEASURED}
    lines = [("Method", "Launcher", *(f"`{preset}`, minutes ({device})" for preset, (_, device) in found.items()))]
    texts = {}
    for method in programs():
        for term, path in launchers(method):
            rows = {preset: known.get((method, term)) for preset, (known, _) in found.items()}
            name = table2.METHODS.get(method, method) + table2.TERM_LABELS[term]
            lines.append((name, f"`bash ./{path.relative_to(HERE.parents[1])}`", *map(minutes, rows.values())))
            texts[path] = headed(path.read_text(), rows)
    return results.markdown(lines), texts


def main() -> None:
    Parser(__doc__).parse_args()
    table, texts = build()
    (HERE / "launchers.md").write_text(table)
    for path, text in texts.items():
        path.write_text(text)


if __name__ == "__main__":
    main()

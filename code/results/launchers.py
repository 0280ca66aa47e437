#!/usr/bin/env python3
"""The table of launchers with what their presets took: python code/results/launchers.py writes launchers.md.

Minutes are those of the finished runs beside this file, pre-training and evaluation, on the hardware that each names; a
cell of the digits or mini preset that nobody has run yet is empty.
"""

import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # works with and without an installation

from wassersteinssl import table2
from wassersteinssl.settings import PROGRAMS

TERMS = {"vanilla": "none", "lu": "lu", "w2": "w2"}
MEASURED = ("digits", "mini")


def minutes(preset: str) -> dict[tuple[str, str], float]:
    """(method, term) -> minutes of the preset's runs."""
    tables, _ = table2.collect([HERE / preset])
    rows = [row for table in tables for row in table.rows]
    return {
        (row.method, row.term): (row.value("pretrain_seconds") + row.value("evaluate_seconds")) / 60 for row in rows
    }


def launchers(method: str) -> dict[str, Path]:
    """Term -> the launcher of the method."""
    found = {}
    for path in sorted((HERE.parent / PROGRAMS[method]).parent.glob("run_*.sh")):
        kind = re.search(r"vanilla|lu|w2", path.stem.removeprefix("run_").rpartition("+")[2])
        assert kind, path
        found[TERMS[kind[0]]] = path
    return found


def main() -> None:
    took = {preset: minutes(preset) for preset in MEASURED}
    lines = [("Method", "Launcher", *(f"{preset}, minutes" for preset in MEASURED))]
    lines.append(("---",) * len(lines[0]))
    for method in PROGRAMS:
        for term, path in sorted(launchers(method).items(), key=lambda pair: list(table2.TERMS).index(pair[0])):
            known = [took[preset].get((method, term)) for preset in MEASURED]
            command = f"`bash ./{path.relative_to(HERE.parents[1])}`"
            name = table2.METHODS[method] + table2.TERMS[term]
            lines.append((name, command, *("" if value is None else f"{value:.1f}" for value in known)))
    (HERE / "launchers.md").write_text("".join("| " + " | ".join(line) + " |\n" for line in lines))


if __name__ == "__main__":
    main()

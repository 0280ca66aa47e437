#!/usr/bin/env python3
"""gpu.md from the training benchmarks on a GPU beside this file: python code/results/benchmarks/gpu.py

A line a method, plain and compiled; its milliseconds, versions and command stand in the JSON file that the line names.
"""

import json
import shlex
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # works with and without an installation

from wassersteinssl.cli import Parser
from wassersteinssl.results import markdown
from wassersteinssl.settings import programs

COLUMNS = {"images/s": ",.0f", "500 epochs, minutes": ".0f", "W2 %": ".2f", "TFLOP/s": ".0f", "% of peak": ".0f"}
# Measured before W2 and batch-norm lost a third of their operations; and, of the last, before W2 was compiled too.
OLDER = (
    "train-w64-bf16-mocov2-barlowtwins-nvidia-h200", "train-w64-bf16-zerocl-nvidia-h200",
    "train-w64-bf16-simclr-nvidia-h200", "train-w64-bf16-compiled-nvidia-h200",
)  # fmt: skip


def table() -> str:
    """Of a method that was measured again only the newer line."""
    found, heads = {}, {}
    for path in sorted(HERE.glob("train-w64-bf16-*nvidia*.json"), key=lambda path: (path.stem not in OLDER, path.stem)):
        report = json.loads(path.read_text(encoding="utf-8"))
        compiled = "--compile" in shlex.split(report["command"])
        title, rows = next(iter(report["tables"].items()))
        heads[f"{report['hardware']} ({report['cpus']} CPUs), torch {report['versions']['torch']}. {title}."] = None
        for row in rows:
            found[compiled, row["method"]] = path.stem, row | {"500 epochs, minutes": 60 * row["500 epochs, h"]}
    lines = [["method", "compiled", *COLUMNS, "code", "file"]]
    for compiled, method in sorted(found, key=lambda key: (key[0], list(programs()).index(key[1]))):
        file, row = found[compiled, method]
        numbers = [format(row[name], form) for name, form in COLUMNS.items()]
        age = "older" if file in OLDER else ""
        lines.append([method, "yes" if compiled else "", *numbers, age, f"`{file}.json`"])
    return "\n".join([*heads, "", markdown(lines)])


def main() -> None:
    Parser(__doc__).parse_args()
    (HERE / "gpu.md").write_text(table(), encoding="utf-8")


if __name__ == "__main__":
    main()

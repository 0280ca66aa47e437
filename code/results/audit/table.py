"""audits.md from the reports beside this file: python code/results/audit/table.py"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # works with and without an installation

from wassersteinssl.cli import Parser
from wassersteinssl.results import markdown

HEAD = ("Embedding", "n x m", "verdict", "W2 (floor)", "by W2", "by rank", "nearest neighbour (Gaussian)", "kNN")


def main() -> None:
    Parser(__doc__).parse_args()
    lines = [HEAD]
    for path in sorted(HERE.glob("*/audit.json")):
        report = json.loads(path.read_text())
        w2, rank, beyond = report["w2"], report["spectrum"], report["beyond"]
        lines.append((
            report["name"].removesuffix(".npy"),
            f"{report['n']} x {report['m']}",
            report["verdict"]["word"],
            f"{w2['w2']:.3f} ({w2['floor']:.3f})",
            f"{w2['dimensions']:.1f}",
            f"{rank['dimensions']:.1f}",
            f"{beyond['nearest']:.2f} ({beyond['gaussian']['nearest']:.2f})",
            f"{report['labels']['knn1']:.1f} %" if "labels" in report else "",
        ))  # fmt: skip
    (HERE / "audits.md").write_text(markdown(lines))


if __name__ == "__main__":
    main()

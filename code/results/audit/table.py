"""audits.md from the reports beside this file: python code/results/audit/table.py"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))  # works with and without an installation

from wassersteinssl.cli import Parser

if __name__ == "__main__":
    Parser(__doc__).parse_args()

from wassersteinssl import audit_report


def main() -> None:
    folders = sorted(path.parent for path in HERE.glob("*/audit.json"))
    (HERE / "audits.md").write_text(audit_report.side_by_side(folders))


if __name__ == "__main__":
    main()

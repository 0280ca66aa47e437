#!/usr/bin/env python3
"""Put the built tables into the pages that quote them: python code/results/embed.py

A page quotes a file between two comments, `<!-- FOLDER/FILE.md -->` and `<!-- end -->`; what stands between them
is replaced by the file. Prints the pages that changed.
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import Parser

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
QUOTE = re.compile(r"(<!-- ([\w/.+-]+\.md) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: str) -> str:
    """The page with what its quoted files hold now."""
    return QUOTE.sub(lambda found: f"{found[1]}{(REPOSITORY / found[2]).read_text('utf-8').strip()}\n{found[3]}", page)


def main() -> None:
    Parser(__doc__).parse_args()
    for path in PAGES:
        before = path.read_text("utf-8")
        if (after := refreshed(before)) != before:
            path.write_text(after, "utf-8")
            print(path.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()

"""What the README promises exists, and its tables are those that were built from results."""

import re

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_every_file_that_it_links_or_runs_exists():
    linked = re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"(?:bash|python3?) (?:\./)?([\w./+-]+\.(?:sh|py))", README
    )
    assert len(linked) > 10
    missing = [path for path in linked if not (REPOSITORY / path).exists()]
    assert not missing


@pytest.mark.parametrize("launcher", sorted((REPOSITORY / "code").glob("*/run_*.sh")), ids=lambda path: path.name)
def test_every_launcher_is_listed(launcher):
    assert f"bash ./{launcher.relative_to(REPOSITORY)}" in README


def test_its_result_tables_are_the_built_ones():
    blocks = re.findall(r"<!-- (code/results/[\w/.-]+\.md) -->\n(.*?)\n<!-- end -->", README, flags=re.DOTALL)
    assert blocks
    for path, text in blocks:
        built = (REPOSITORY / path).read_text(encoding="utf-8")
        assert text.strip() == built.strip(), f"README's table differs from {path}"

"""What the README promises exists, and the tables of README and docs are those that were built from results."""

import re
import shutil

import pytest
from conftest import REPOSITORY

from wassersteinssl import table2
from wassersteinssl.files import load_module

LAUNCHERS = load_module(REPOSITORY / "code" / "results" / "launchers.py")
EMBED = load_module(REPOSITORY / "code" / "results" / "embed.py")
GPU = load_module(REPOSITORY / "code" / "results" / "benchmarks" / "gpu.py")
TERMS = load_module(REPOSITORY / "code" / "results" / "regularisers" / "table.py")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", EMBED.PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_links_or_runs_exists(page):
    text = page.read_text(encoding="utf-8")
    linked = [page.parent / path for path in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)]
    run = [REPOSITORY / path for path in re.findall(r"(?:bash|python3?) (?:\./)?([\w./+-]+\.(?:sh|py))", text)]
    assert linked or run
    assert not [path for path in linked + run if not path.exists()]


@pytest.mark.parametrize("page", EMBED.PAGES, ids=lambda path: path.name)
def test_every_heading_that_a_page_links_exists(page):
    def anchors(path):
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8"))
    assert not [(path, anchor) for path, anchor in links if anchor not in anchors(page.parent / path if path else page)]


@pytest.mark.parametrize("launcher", sorted((REPOSITORY / "code").glob("*/run_*.sh")), ids=lambda path: path.name)
def test_every_launcher_is_listed(launcher):
    assert f"bash ./{launcher.relative_to(REPOSITORY)}" in README, "run code/results/launchers.py and embed.py"


@pytest.mark.parametrize("page", EMBED.PAGES, ids=lambda path: path.name)
def test_the_tables_of_a_page_are_the_built_ones(page):
    text = page.read_text(encoding="utf-8")
    assert EMBED.refreshed(text) == text, "run code/results/embed.py"
    assert len(EMBED.QUOTE.findall(text)) == text.count(".md -->")


def test_the_demo_prints_what_stands_below_it(capsys):
    program, printed = re.search(
        r"## 60-second demo\n\n```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL
    ).groups()
    exec(program, {})
    numbers = [
        [float(number) for number in re.findall(r"-?\d+\.\d+", text)] for text in (capsys.readouterr().out, printed)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-3)
    assert len(numbers[0]) == 11


def test_a_quoted_file_that_has_changed_is_put_in(tmp_path, monkeypatch):
    monkeypatch.setattr(EMBED, "REPOSITORY", tmp_path)
    (tmp_path / "code" / "results").mkdir(parents=True)
    (tmp_path / "code" / "results" / "a+b.md").write_text("new\n")
    quote = "text\n<!-- code/results/a+b.md -->\n{}\n<!-- end -->\nmore\n"
    assert EMBED.refreshed(quote.format("old\nlines")) == quote.format("new")


def test_the_launchers_tell_what_was_measured():
    table, texts = LAUNCHERS.build()
    assert (REPOSITORY / "code" / "results" / "launchers.md").read_text() == table
    assert len(texts) >= 4 * 3 + 4
    for path, text in texts.items():
        assert path.read_text() == text, "run code/results/launchers.py"


def test_the_table_of_training_on_a_gpu_is_that_of_the_files_beside_it():
    assert GPU.table() == (GPU.HERE / "gpu.md").read_text(encoding="utf-8")
    assert all((GPU.HERE / f"{name}.json").exists() for name in GPU.OLDER)
    assert {line.split("|")[1].strip() for line in GPU.table().splitlines()[4:]} == set(table2.METHODS)


def test_the_table_of_training_on_a_gpu_keeps_to_one_setting(tmp_path, monkeypatch):
    for path in GPU.HERE.glob("train-w64-bf16-*nvidia*.json"):
        shutil.copy(path, tmp_path)
    shutil.copy(path, tmp_path / "train-w64-fp32-nvidia-h200.json")
    shutil.copy(path, tmp_path / "train-w16-bf16-nvidia-h200.json")
    before = GPU.table()
    monkeypatch.setattr(GPU, "HERE", tmp_path)
    assert GPU.table() == before


def test_the_table_of_terms_is_that_of_the_runs_beside_it():
    about, rows, tried = TERMS.collect("search")
    assert TERMS.markdown(about, rows, tried) == (TERMS.HERE / "regularisers.md").read_text(encoding="utf-8")
    about, longer, _ = TERMS.collect("mini", "../mini")
    assert TERMS.markdown(about, longer, {}) == (TERMS.HERE / "mini.md").read_text(encoding="utf-8")
    ran = {term for _, term in rows} - {"none"}  # a term of one's own need not
    assert len(ran) >= 14
    assert len(rows) == len(TERMS.BASES) * (1 + len(ran))
    for term in ran:
        assert tried["MSE", term] >= 3


@pytest.mark.parametrize("page", EMBED.PAGES, ids=lambda path: path.name)
def test_no_line_of_a_paragraph_looks_like_a_list(page):
    assert not re.findall(r"^(?:[+*]|\d+[.)]) .*", page.read_text(encoding="utf-8"), re.MULTILINE)

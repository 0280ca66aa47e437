"""Table 2 from result files: averaging, separation, the paper's numbers, damage."""

import argparse
import csv
import errno
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from conftest import ELSEWHERE, REPOSITORY, environment, load
from scipy import stats

from wassersteinssl import augmentation, plotting, results, studies, table2, table2_figures
from wassersteinssl.settings import TERMS, Settings, other_images

DEFAULTS = {name: entry.default for name, entry in Settings.__dataclass_fields__.items()}


@pytest.fixture
def make(tmp_path):
    """make(method=..., acc1=...) writes a run folder with a finished result; returns the folder."""

    def make(folder=None, method="BYOL", term="none", dataset="cifar10", seed=12, spoil=None, options=(), **numbers):
        path = tmp_path / (folder or f"{method}-{term}-{dataset}-{seed}")
        path.mkdir()
        settings = {**DEFAULTS, "uniformity": term, "seed": seed, **dict(options)}
        result = {
            **{"method": method, "uniformity": term, "dataset": dataset, "seed": seed, "epochs": settings["epochs"]},
            **{"acc1": 90.0, "acc5": 99.0, "best_acc1": 91.0, "knn1": 80.0, "w2": 1.0, "w2_floor": 0.08, "lu": -3.0},
            **{"alignment": 0.5, "n_test": 10_000, "dim": 4, "pretrain_seconds": 60.0, "evaluate_seconds": 60.0},
            **{"images_per_second": 1.0, "device": "a test", "complete": True, "config": {"settings": settings}},
            **numbers,
        }
        result["config"] |= {key: result.pop(key, None) for key in ("images", "augmentation")}
        (path / "config.json").write_text(json.dumps({"settings": settings}))
        (path / "metrics.jsonl").write_text("{}\n{}\n")
        (path / "result.json").write_text(json.dumps(result) if spoil is None else spoil(result))
        np.save(path / "spectrum.npy", np.array([0.5, 0.3, 0.1, 0.0]))
        return path

    return make


def cell(text, row, column):
    """The cell of a Markdown table by the row's name and the column's heading."""
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return next(line for line in lines if line[0] == row)[lines[0].index(column)]


def test_differences_in_accuracy_are_paired_by_test_image(make, tmp_path):
    """By scipy's standard error of each image's mean over two seeds; of one seed by Wald's formula."""
    random = np.random.default_rng(0)
    hard, n = random.random(1000), 1000
    right = {}
    for term, skill in (("none", 0.5), ("lu", 0.55), ("w2", 0.6)):
        for seed in (12, 13):
            right[term, seed] = hard + 0.2 * random.normal(size=n) < skill
            acc1 = 100 * float(right[term, seed].mean())
            np.save(make(term=term, seed=seed, acc1=acc1, n_test=n) / "correct.npy", right[term, seed])
    (table,), _ = table2.collect([tmp_path])
    rows = {row.term: row for row in table.rows}
    for a, b in (("lu", "none"), ("w2", "none"), ("w2", "lu")):
        points, error = table2.difference(rows[a], rows[b])
        assert points == pytest.approx([100 * (right[a, s].mean() - right[b, s].mean()) for s in (12, 13)])
        by_image = [np.mean([float(right[a, s][i]) - float(right[b, s][i]) for s in (12, 13)]) for i in range(n)]
        assert error == pytest.approx(100 * stats.sem(by_image))
        name = f"{rows[a].name} over {rows[b].name}"
        text = table2.markdown(table)
        text = text[text.index("| Gain in Acc@1") :]
        assert cell(text, name, "points") == f"{np.mean(points):+.2f}"
        assert cell(text, name, "standard error by the test images") == f"{error:.2f}"
        assert cell(text, name, "deviation over seeds") == f"{np.std(points, ddof=1):.2f}"
    assert len(table2.differences(table, "cifar10")) == 3
    lines = list(csv.DictReader(table2.to_csv([table]).splitlines()))
    (line,) = (line for line in lines if (line["uniformity"], line["measure"]) == ("w2", "acc1"))
    assert float(line["gain_image_error"]) == pytest.approx(table2.difference(rows["w2"], rows["none"])[1])
    assert sum(bool(line["gain_image_error"]) for line in lines) == 2
    only = {term: replace(row, runs=row.runs[:1]) for term, row in rows.items()}
    (points,), error = table2.difference(only["w2"], only["lu"])
    better, worse = ((right[a, 12] & ~right[b, 12]).sum() for a, b in (("w2", "lu"), ("lu", "w2")))
    assert points == pytest.approx(100 * (better - worse) / n)
    square = (better + worse - (better - worse) ** 2 / n) / (n - 1)  # of the discordant images
    assert error == pytest.approx(100 * (square / n) ** 0.5)


@pytest.mark.parametrize("damage", ["none", "other length", "other type", "other accuracy", "half a file"])
def test_runs_without_a_fitting_record_of_right_images_have_no_paired_difference(damage, make, tmp_path):
    right = np.arange(100) < 90
    for term in ("none", "w2"):
        np.save((folder := make(term=term, n_test=100)) / "correct.npy", right)
    assert "Gain in Acc@1" in table2.markdown(table2.collect([tmp_path])[0][0])
    path = folder / "correct.npy"
    if damage == "none":
        path.unlink()
    elif damage == "half a file":
        path.write_bytes(path.read_bytes()[:150])
    else:
        np.save(path, {"other length": right[:-1], "other type": right * 1, "other accuracy": ~right}[damage])
    assert "Gain in Acc@1" not in table2.markdown(table2.collect([tmp_path])[0][0])


def test_a_cell_is_mean_and_deviation_over_seeds_with_the_gain(make, tmp_path):
    plain, with_term = [90.0, 91.0, 92.5], [92.0, 93.0, 93.7]
    for seed, (a, b) in enumerate(zip(plain, with_term, strict=True)):
        make(seed=seed, acc1=a)
        make(seed=seed, term="w2", acc1=b)
    (table,), unfinished = table2.collect([tmp_path])
    assert not unfinished
    text = table2.markdown(table)
    assert cell(text, "BYOL", "Acc@1 ↑") == f"{mean(plain):.2f} ± {stdev(plain):.2f}"
    gains = [more - less for more, less in zip(with_term, plain, strict=True)]
    gain = f"({mean(gains):+.2f} ± {stdev(gains):.2f})"
    assert cell(text, "BYOL + W2", "Acc@1 ↑") == f"{mean(with_term):.2f} ± {stdev(with_term):.2f} {gain}"
    assert cell(text, "BYOL + W2", "seeds") == "3"


def test_the_papers_numbers_stand_beside_ours(make, tmp_path):
    make(method="MoCoV2", term="w2")
    (table,), _ = table2.collect([tmp_path])
    text = table2.markdown(table)
    papers = next(line for line in text.splitlines() if line.startswith("| MoCo v2 + W2")).split("|")
    assert [papers[k].strip() for k in (3, 6, 8, 10, 12)] == ["91.41", "99.68", "0.33", "-3.84", "0.63"]


def test_every_row_of_the_papers_table_is_known():
    numbers = table2.paper()
    assert len(numbers) == 32
    assert {method for method, _, _ in numbers} == set(table2.METHODS)
    for method in ("MoCoV2", "BYOL", "BarlowTwins", "ZeroCL"):
        assert all((method, term, data) in numbers for term in table2.TERM_LABELS for data in table2.DATASET_LABELS)


def test_different_options_of_a_method_never_share_a_row(make, tmp_path):
    for folder, queue, seed in (("a", 4096, 1), ("b", 4096, 2), ("c", 1024, 1)):
        make(folder, method="MoCoV2", seed=seed, options={"queue_size": queue, "temperature": 0.2}, acc1=queue / 100)
    (table,), unfinished = table2.collect([tmp_path])
    assert not unfinished
    text = table2.markdown(table)
    assert cell(text, "MoCo v2 (queue_size 4096)", "seeds") == "2"
    assert cell(text, "MoCo v2 (queue_size 1024)", "Acc@1 ↑") == "10.24"


def test_different_settings_never_share_a_table(make, tmp_path):
    make()
    make(folder="short", seed=13, options={"epochs": 100})
    make(folder="narrow", seed=14, options={"width": 16})
    tables, _ = table2.collect([tmp_path])
    assert sorted(row.seeds for table in tables for row in table.rows) == [1, 1, 1]
    assert len(tables) == 3
    assert {table2.describe(table).split(":")[0] for table in tables} >= {"Preset `paper`", "Preset `short`"}


IMAGES = {"train": 60, "test": 20, "labels": "0a", "mean": [0.5, 0.4, 0.3]}


def test_different_images_never_share_a_row(make, tmp_path):
    for k, images in enumerate((IMAGES, IMAGES | {"mean": [0.5, 0.4, 0.3001]}, None, {})):
        make(f"same{k}", dataset="folder", seed=k, images=images, acc1=50.0)
    (table,), _ = table2.collect([tmp_path])
    assert [(row.dataset, row.seeds) for row in table.rows] == [("folder", 4)]
    for k, images in enumerate((IMAGES | {"labels": "0b"}, IMAGES | {"labels": "0c", "mean": [0.1, 0.4, 0.3]})):
        make(f"other{k}", dataset="folder", seed=k + 2, images=images, acc1=60.0)
    make("other_w2", dataset="folder", term="w2", seed=2, images=IMAGES | {"labels": "0b"}, acc1=61.0)
    (table,), unfinished = table2.collect([tmp_path])
    assert not unfinished
    found = {(row.dataset, row.term): (row.seeds, row.value("acc1")) for row in table.rows}
    assert found == {
        ("folder (labels 0a)", "none"): (2, 50.0),
        ("folder (labels 0b)", "none"): (1, 60.0),
        ("folder (labels 0b)", "w2"): (1, 61.0),
        ("folder (labels 0c)", "none"): (1, 60.0),
        ("folder (not recorded)", "none"): (2, 50.0),
    }
    text = table2.markdown(table)
    assert "**folder (labels 0b)**" in text
    assert "61.00 (+1.00)" in text


def test_an_unusual_augmentation_is_named_and_never_shares_a_row(make, tmp_path):
    def usual(dataset):
        return augmentation.FOR_DATASET.get(dataset, augmentation.Augmentation()).record()

    make("unusual", seed=1, images=IMAGES, augmentation=usual("cifar10") | {"flip": 0.0}, acc1=60.0)
    (table,), _ = table2.collect([tmp_path])
    assert [row.dataset for row in table.rows] == ["cifar10 (flip 0.0)"]
    assert not table.rows[0].published
    make("older", seed=1, images=IMAGES, acc1=50.0)  # has noted none
    make("usual", seed=2, images=IMAGES, augmentation=usual("cifar10"), acc1=52.0)
    for seed, noted in enumerate((None, usual("digits"))):
        make(f"digits{seed}", dataset="digits", seed=seed, options={"dataset": "digits"}, augmentation=noted)
    (table,), _ = table2.collect([tmp_path])
    found = {row.dataset: row.seeds for row in table.rows}
    assert found == {"cifar10": 2, "cifar10 (flip 0.0)": 1, "digits": 2}


def test_an_option_of_the_method_that_is_not_its_default_is_named(make, tmp_path):
    make(method="SimCLR", options={"temperature": 1.0})
    make(method="NNCLR", options={"temperature": 0.2, "queue_size": 512, "mine": 3})
    make(method="SimSiam", options={"momentum": 0.5})  # an option that the method does not have today
    make(method="BYOL")  # has noted none of its own
    make(method="AlignUniform", options={"align_weight": 1.0, "uniform_weight": 0.0})
    (table,), _ = table2.collect([tmp_path])
    assert sorted(row.name for row in table.rows) == [
        "BYOL",
        "MSE",
        "NNCLR (queue_size 512)",
        "SimCLR (temperature 1.0)",
        "SimSiam",
    ]


def test_another_weight_of_the_term_is_another_row(make, tmp_path):
    make(term="lu")
    make(folder="strong", term="lu", options={"alpha_max": 3.0})
    (table,), _ = table2.collect([tmp_path])
    assert [row.name for row in table.rows] == ["BYOL + L_U", "BYOL + L_U (alpha_max 3)"]


def noted(folder, alpha, *, epochs=None):
    """The weight in force, as runs note it: in result.json or, older ones, in each epoch's line."""
    path = folder / "result.json"
    result = json.loads(path.read_text())
    if epochs is None:
        result["config"]["alpha"] = alpha
    else:
        result["config"]["settings"]["epochs"] = epochs
        high, low = alpha
        lines = [{"epoch": k, "seconds": 1.0, "alpha": high - k * (high - low) / epochs} for k in range(epochs)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.write_text(json.dumps(result))


def test_runs_share_a_row_by_the_weight_in_force_however_it_came_about(make, tmp_path):
    noted(make(folder="new", term="w2", seed=1), [0.2, 0.2])
    noted(make(folder="given", term="w2", seed=2, options={"alpha_max": 0.2}), [0.2, 0.2])
    noted(make(folder="edited", term="w2", seed=3), [5.0, 0.5])
    (table,), unfinished = table2.collect([tmp_path])
    assert not unfinished
    assert {row.name: row.seeds for row in table.rows} == {
        "BYOL + W2 (weight 0.2)": 2,
        "BYOL + W2 (weight 5 to 0.5)": 1,
    }


@pytest.mark.parametrize("epochs", [7, 20, 100])
@pytest.mark.parametrize(("high", "low"), [(0.2, 0.2), (30.0, 0.0), (1.0, 3.0)])
def test_an_older_run_s_weight_is_that_of_its_epochs(make, tmp_path, high, low, epochs):
    noted(make(folder="old", term="w2", seed=1), (high, low), epochs=epochs)
    noted(make(folder="new", term="w2", seed=2, options={"epochs": epochs}), [high, low])
    (table,), _ = table2.collect([tmp_path])
    assert [(row.name, row.seeds) for row in table.rows] == [("BYOL + W2", 2)]
    noted(make(folder="other", term="w2", seed=3, options={"epochs": epochs}), [50.0, 50.0])
    (table,), _ = table2.collect([tmp_path])
    told = f"{high:g}" if high == low else f"{high:g} to {low:g}"
    assert {row.name for row in table.rows} == {f"BYOL + W2 (weight {told})", "BYOL + W2 (weight 50)"}


def test_an_older_run_without_epochs_has_the_weight_that_was_given(make, tmp_path):
    make(folder="old", term="w2", seed=1, options={"alpha_max": 5.0})
    noted(make(folder="new", term="w2", seed=2, options={"alpha_max": 5.0}), [5.0, 5.0])
    (table,), _ = table2.collect([tmp_path])
    assert [(row.name, row.seeds) for row in table.rows] == [("BYOL + W2 (alpha_max 5)", 2)]
    make(folder="unknown", term="w2", seed=3)
    (table,), _ = table2.collect([tmp_path])
    assert {row.name: row.seeds for row in table.rows} == {
        "BYOL + W2 (alpha_max 5)": 2,
        "BYOL + W2": 1,
    }


def test_a_gain_is_of_the_seeds_that_both_rows_have(make, tmp_path):
    for seed, without, with_term in ((12, 60.0, 60.5), (13, None, 70.0), (14, 10.0, None)):
        if without is not None:
            make(seed=seed, acc1=without)
        if with_term is not None:
            make(seed=seed, term="w2", acc1=with_term)
    make(seed=15, term="lu", acc1=99.0)
    (table,), _ = table2.collect([tmp_path])
    text = table2.markdown(table)
    assert cell(text, "BYOL + W2", "Acc@1 ↑").endswith("(+0.50)")
    assert cell(text, "BYOL + L_U", "Acc@1 ↑") == "99.00"


def test_spectra_are_of_the_seeds_that_have_one(make, tmp_path):
    for seed in (12, 13, 14):
        np.save(make(seed=seed) / "spectrum.npy", np.array([0.5, 0.3, 0.1, 0.1 * seed - 1.1]))
    (tmp_path / "BYOL-none-cifar10-12" / "spectrum.npy").unlink()
    (table,), _ = table2.collect([tmp_path])
    line, uniform = table2_figures.draw_spectra(table).axes[0].lines
    assert line.get_ydata()[-1] == pytest.approx((0.2 * 0.3) ** 0.5)
    assert uniform.get_ydata() == pytest.approx(studies.spectrum_theory(10_000, 4))


def test_lines_of_one_panel_are_marked_at_different_places(make, tmp_path):
    spectrum = np.linspace(1, 0.1, 60)
    for method in ("BYOL", "SimCLR", "MoCoV2"):
        np.save(make(method=method, dim=60) / "spectrum.npy", spectrum)
    (table,), _ = table2.collect([tmp_path])
    lines = table2_figures.draw_spectra(table).axes[0].lines[:3]
    assert [line.get_markevery() for line in lines] == [(0, 10), (3, 10), (6, 10)]


def test_the_effective_rank_is_recorded_or_that_of_the_spectrum(make, tmp_path):
    head, names = "eff. rank ↑", ("BYOL", "BYOL + L_U", "BYOL + W2")
    for seed, values in {12: [0.25, 0.25, 0.25, 0.25], 13: [0.3, 0.3, 0.0, -1e-19]}.items():
        np.save(make(seed=seed) / "spectrum.npy", np.array(values))
    np.save(make(term="lu") / "spectrum.npy", np.array([3.0, 1.0, 0.0, 0.0]))
    (make(term="lu", seed=13) / "measures.json").write_text('{"effective_rank": 2.5}')
    np.save(make(term="w2") / "spectrum.npy", np.zeros(4))
    text = table2.markdown(table2.collect([tmp_path])[0][0])
    of_three_and_one = np.exp(stats.entropy([3, 1]))
    assert [cell(text, name, head) for name in names[::2]] == ["3.0 ± 1.4", ""]
    ranks = [of_three_and_one, 2.5]
    assert cell(text, "BYOL + L_U", head) == f"{mean(ranks):.1f} ± {stdev(ranks):.1f}"
    for path in [*tmp_path.rglob("spectrum.npy"), *tmp_path.rglob("measures.json")]:
        path.unlink()
    assert head not in table2.markdown(table2.collect([tmp_path])[0][0])


def test_a_legend_tells_its_panels(make, tmp_path):
    for method, term in (("BYOL", "none"), ("BYOL", "w2"), ("MoCoV2", "none"), ("MoCoV2", "lu")):
        for dataset in ("cifar10", "cifar100"):
            make(method=method, term=term, dataset=dataset)
    (table,), _ = table2.collect([tmp_path])
    methods, terms = table2_figures.draw_spectra(table).legends
    assert methods.get_title().get_text() == "(a), (d)"
    assert [text.get_text() for text in methods.get_texts()] == ["MoCo v2", "BYOL", "uniform rows"]
    assert terms.get_title().get_text() == "(b), (c), (e), (f)"
    assert len(terms.get_texts()) == 4
    assert table2_figures._letters([0, 2, 3, 4, 30]) == "(a), (c) to (e), (ee)"


def test_a_search_on_part_of_the_images_is_not_drawn_beside_the_paper(make, tmp_path, monkeypatch):
    make("whole")
    make("part", options={"limit_train": 100})
    drawn = []
    monkeypatch.setattr(table2_figures, "save", lambda figure, path: drawn.append(figure) or [])
    for table in sorted(table2.collect([tmp_path])[0], key=lambda table: table.setting["limit_train"] or 0):
        table2_figures.draw_table(table, tmp_path / "x")
    names = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    faces = [[line.get_markerfacecolor() for line in figure.axes[0].get_lines()] for figure in drawn]
    assert [any("paper" in name for name in found) for found in names] == [True, False]
    assert ["none" in found for found in faces] == [True, False]


def test_curves_are_of_the_seeds_that_have_noted_them(make, tmp_path):
    for seed in (12, 13, 14):
        noted = "" if seed == 13 else f', "w2": 1.{seed}'
        (make(seed=seed) / "metrics.jsonl").write_text(f'{{"epoch": 0, "seconds": 1, "loss": 2.0{noted}}}\n')
    (table,), _ = table2.collect([tmp_path])
    line = table2_figures.draw_curves(table, ["w2"]).axes[0].lines[0]
    assert line.get_ydata() == pytest.approx([1.13])


def test_curves_that_nobody_noted_are_not_drawn(make, tmp_path):
    (make() / "metrics.jsonl").write_text('{"epoch": 0, "seconds": 1, "loss": 2.0}\n')
    done = program(tmp_path, "--out", tmp_path / "out", "--curves")
    assert done.returncode == 0
    assert done.stderr == "no curves: no run has noted knn1, w2, lu, alignment between its epochs (--monitor-every)\n"
    assert (tmp_path / "out" / "loss.png").exists()
    assert not (tmp_path / "out" / "curves.png").exists()


def test_a_setting_that_is_not_the_preset_s_is_named(make, tmp_path):
    make(options={"limit_train": 1000, "warmup_epochs": 3.0})
    make(seed=13, options={"weight_lr": 0.1})
    make(seed=14)
    told = {table2.describe(table) for table in table2.collect([tmp_path])[0]}
    assert sum("limit_train 1000; warmup_epochs 3.0; a test." in text for text in told) == 1
    assert sum("seed 13; weight_lr 0.1; a test." in text for text in told) == 1
    assert sum(text.startswith("Preset `paper`") and "seed 14; a test." in text for text in told) == 1


def test_the_same_seed_twice_is_counted_once(make, tmp_path):
    make(folder="a", acc1=50.0)
    make(folder="b", acc1=70.0)
    (table,), unfinished = table2.collect([tmp_path])
    assert table.rows[0].value("acc1") == 50.0
    assert [run.folder.name for run in unfinished] == ["b"]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda result: json.dumps({**result, "complete": False}), "not complete"),
        (lambda result: json.dumps(result)[:-20], "cannot be used"),
        (lambda result: json.dumps({**result, "w2": float("nan")}), "not finite"),
        (lambda result: json.dumps({key: value for key, value in result.items() if key != "acc5"}), "acc5"),
        (lambda result: "[]", "cannot be used"),
        (lambda result: json.dumps({**result, "config": {"settings": 3}}), "no settings"),
    ],
)
def test_a_damaged_result_is_listed_and_never_averaged_in(make, tmp_path, spoil, reason):
    make()
    make(folder="bad", seed=13, spoil=spoil)
    (table,), unfinished = table2.collect([tmp_path])
    assert table.rows[0].seeds == 1
    assert [(run.folder.name, reason in run.reason) for run in unfinished] == [("bad", True)]
    assert f"- {tmp_path.name}/bad: " in table2.markdown(table, unfinished)


def test_an_unfinished_and_a_failed_run_are_listed(make, tmp_path):
    make()
    (make(folder="half", seed=13) / "result.json").unlink()
    failed = make(folder="failed", seed=14)
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text("{}")
    _, unfinished = table2.collect([tmp_path])
    assert {run.folder.name: run.reason for run in unfinished} == {
        "half": "not finished, after epoch 2",
        "failed": "failed",
    }


def test_runs_of_an_edited_program_are_told(make, tmp_path):
    def with_versions(*digests):
        configs = [{"versions": {"program": digest}} for digest in digests]
        noted = configs[0] | ({"begun": configs[1]} if configs[1:] else {})
        return lambda result: json.dumps(result | {"config": result["config"] | noted})

    make(seed=12, spoil=with_versions("a"))
    make(seed=13, spoil=with_versions("a"))
    make(method="SimCLR", spoil=with_versions("a", "b"))
    make(method="NNCLR")
    (table,), _ = table2.collect([tmp_path])
    assert "The method's program was edited between or during the runs of SimCLR.\n" in table2.markdown(table)
    make(seed=14, spoil=with_versions("b"))
    (table,), _ = table2.collect([tmp_path])
    assert "during the runs of SimCLR, BYOL.\n" in table2.markdown(table)


def test_csv_and_latex_hold_the_same_numbers(make, tmp_path):
    make(acc1=12.346, best_acc1=13.0)
    make(term="w2", acc1=10.0, w2=0.5, lu=-3.25)
    make(term="w2", acc1=11.0, w2=0.5, lu=-3.25, seed=13)
    (table,), _ = table2.collect([tmp_path])
    lines = list(csv.DictReader(io.StringIO(table2.to_csv([table]))))
    found = {(line["uniformity"], line["measure"]): line for line in lines}
    assert float(found["none", "acc1"]["mean"]) == 12.346
    assert float(found["none", "acc1"]["paper"]) == 89.53
    assert found["none", "acc1"]["gain"] == ""
    assert float(found["w2", "acc1"]["gain"]) == pytest.approx(10.0 - 12.346)  # on the seed that both have
    assert float(found["w2", "w2"]["floor"]) == 0.08
    tex, text = table2.latex(table), table2.markdown(table)
    assert cell(text, "BYOL", "best epoch ↑") == "13.00"
    assert r"BYOL & 12.35 & 89.53 & 13.00 & 99.00 & 99.71 &" in tex
    assert r"BYOL + $\mathcal{W}_2$ & 10.50 $\pm$ 0.71 ($-$2.35) & 90.31 &" in tex
    assert r"& 0.500 $\pm$ 0.000 ($-$0.500) & 0.38 & $-$3.25 $\pm$ 0.00 & $-$3.90 &" in tex
    assert r"$\mathcal{W}_2$'s floor 0.080} \\" in tex
    assert len({line.count("&") for line in tex.splitlines() if "&" in line}) == 1
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 1


@pytest.mark.parametrize("key", ["device", "dataset", "method"])
def test_a_text_of_several_lines_stays_in_its_line(make, tmp_path, key):
    """In LaTeX it would leave the comment, or the cell, and be executed."""
    make(**{key: "a\n\\input{secret}\x1b[2J"})
    (table,), _ = table2.collect([tmp_path])
    for text in (table2.latex(table), table2.markdown(table)):
        assert "\x1b" not in text
        assert not [line for line in text.splitlines() if re.match(r"[\\/]input", line)]


def test_latex_escapes_what_is_special(make, tmp_path):
    make(term="lu_calibrated", dataset="my_data & more", options={"alpha_max": 0.5})
    make(term="lu", dataset="my_data & more", options={"alpha_max": 0.5})
    (table,), _ = table2.collect([tmp_path])
    tex = "\n".join(line for line in table2.latex(table).splitlines() if not line.startswith("%"))
    assert r"BYOL + $\mathcal{L_U}$ calibrated (alpha\_max 0.5)" in tex
    assert r"BYOL + $\mathcal{L_U}$ (alpha\_max 0.5)" in tex
    assert not re.search(r"(?<!\\)_(?!U\}|2)", tex)


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 99),
        lambda path: np.save(path, np.full(4, np.nan)),
    ],
)
def test_a_spectrum_that_cannot_be_read_is_told(make, tmp_path, spoil):
    folder = make()
    spoil(folder / "spectrum.npy")
    epoch = {"seconds": 1.0, "loss": 1.0, "knn1": 50.0, "w2": 1.0, "lu": -1.0, "alignment": 0.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"epoch": k} | epoch) + "\n" for k in range(2)))
    done = program(tmp_path, "--out", tmp_path / "out", "--spectra", "--curves")
    assert done.returncode == 2
    assert re.fullmatch(r"table2\.py: error: cannot read .*spectrum\.npy: .*\n", done.stderr)
    assert {"table2.png", "curves.png", "loss.png"} <= {path.name for path in (tmp_path / "out").iterdir()}


def test_folders_that_may_not_be_read_are_told(make, tmp_path, monkeypatch):
    """As root may read everything, the folders are closed by a stand-in."""
    make(term="w2")
    closed = make(term="lu").parent / "BYOL-lu-cifar10-12"
    scandir = os.scandir

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (table,), unfinished = table2.collect([tmp_path])
    assert [row.term for row in table.rows] == ["w2"]
    assert unfinished == [table2.Unfinished(closed, "cannot be read: Permission denied")]


@pytest.mark.parametrize(
    "name", ["digits", "lu-search", "w2-search", "mini", "mini-cpu", "short", "regularisers/search"]
)
def test_committed_tables_are_those_of_the_runs_beside_them(name):
    folder = REPOSITORY / "code" / "results" / name
    tables, _ = table2.collect([folder])
    assert (folder / "table2.csv").read_text() == table2.to_csv(tables)


def test_any_text_may_be_an_option_of_a_method(make, tmp_path):
    for note in ("v1.2.3", "a|b", "2e5.7"):
        make(f"mine-{note[0]}", method="Mine", options=[("note", note)])
    (table,), _ = table2.collect([tmp_path])
    lines = table2.markdown(table).splitlines()
    assert sum("note" in line for line in lines) == 3
    heads = next(line for line in lines if line.startswith("| Method"))
    for line in (line for line in lines if "note" in line):
        assert len(re.split(r"(?<!\\)\|", line)) == len(heads.split("|"))


def test_what_rounds_to_zero_has_no_sign_of_a_loss():
    assert table2._spread([-0.001], 2) == "0.00"
    assert table2._spread([-0.001, -0.002], 2, "+") == "+0.00 ± 0.00"
    assert table2._spread([-0.01], 2, "+") == "-0.01"


def test_the_csv_has_the_deviation_of_every_measure(make, tmp_path):
    for seed, rank in ((1, 20.0), (2, 26.0)):
        (make(seed=seed) / "measures.json").write_text(json.dumps({"effective_rank": rank, "kl": seed / 2}))
    tables, _ = table2.collect([tmp_path])
    rows = {row["measure"]: row for row in csv.DictReader(io.StringIO(table2.to_csv(tables)))}
    assert (float(rows["effective_rank"]["mean"]), float(rows["effective_rank"]["deviation"])) == (23, 18**0.5)
    assert (float(rows["kl"]["mean"]), float(rows["kl"]["deviation"])) == (0.75, pytest.approx(0.125**0.5))


def test_an_augmentation_of_ones_own_is_named_while_it_is_the_usual_one(make, tmp_path, monkeypatch):
    monkeypatch.setitem(augmentation.FOR_DATASET, "cifar10", augmentation.Augmentation(flip=0, hue=0))
    make(augmentation=augmentation.usual("cifar10").record())
    (table,), _ = table2.collect([tmp_path])
    assert table.rows[0].dataset == "cifar10 (flip 0, hue 0)"
    assert table.rows[0].published == {}  # nor does it stand beside the paper's


def test_rows_of_methods_that_the_paper_lacks_stand_together(make, tmp_path):
    for method in ("VICReg", "Mine"):
        for term in ("w2", "none"):
            make(f"{method}+{term}", method=method, term=term)
    (table,), _ = table2.collect([tmp_path])
    assert [row.name for row in table.rows] == ["Mine", "Mine + W2", "VICReg", "VICReg + W2"]


def test_a_gain_is_against_the_same_options_of_the_method(make, tmp_path):
    for weight, acc1 in ((0.0, 50.0), (1.0, 90.0)):
        make(f"plain{weight}", method="AlignUniform", options={"uniform_weight": weight}, acc1=acc1)
    make(method="AlignUniform", term="w2", options={"uniform_weight": 1.0}, acc1=91.0)
    (table,), _ = table2.collect([tmp_path])
    text = table2.markdown(table)
    assert "91.00 (+1.00)" in text
    assert cell(text, "AlignUniform (uniform_weight 1.0)", "paper") == "90.37"
    assert cell(text, "MSE (uniform_weight 0.0)", "paper") == ""  # alignment alone is no row of the paper's table


def test_the_best_of_several_weights_and_all_measures(make, tmp_path):
    for weight, knn, rank in ((1.0, 70.0, 5.0), (10.0, 75.0, None), (100.0, 60.0, 9.0)):
        options = {"alpha_max": weight, "align_weight": 1.0, "uniform_weight": 0.0}
        folder = make(str(weight), method="AlignUniform", term="ssw", options=options, knn1=knn)
        (folder / "measures.json").write_text(json.dumps({"w2": 1.0, "rankme": rank}))
    make(knn1=50.0)
    (table,), _ = table2.collect([tmp_path])
    assert len(table.rows) == 4
    assert [row.name for row in table2.best(table).rows] == ["MSE + SSW (alpha_max 10)", "BYOL"]
    assert [row.measure("rankme") for row in table.rows] == [5.0, None, 9.0, None]
    lines = list(csv.DictReader(io.StringIO(table2.to_csv([table]))))
    assert [line["mean"] for line in lines if line["measure"] == "rankme"] == ["5.0", "9.0"]
    assert sum(line["measure"] == "w2" for line in lines) == 4


@pytest.mark.parametrize("values", [(None, 2.0), (2.0, None)])
def test_a_measure_that_is_infinite_in_one_run_is_an_empty_cell(make, tmp_path, values):
    for seed, value in enumerate(values):
        (make(str(seed), seed=seed) / "measures.json").write_text(json.dumps({"kl": value}))
    (table,), _ = table2.collect([tmp_path])
    lines = list(csv.DictReader(io.StringIO(table2.to_csv([table]))))
    assert [line["mean"] for line in lines if line["measure"] == "kl"] == [""]


def test_a_weight_with_fewer_seeds_is_not_the_best(make, tmp_path):
    for weight, knns in ((10.0, (60.0, 50.0, 40.0)), (1.0, (45.0, 45.0, 45.0)), (1000.0, (55.0,))):
        for seed, knn in enumerate(knns):
            make(f"{weight:g}-{seed}", term="w2", seed=seed, options={"alpha_max": weight}, knn1=knn)
    (table,), _ = table2.collect([tmp_path])
    assert [row.name for row in table2.best(table).rows] == ["BYOL + W2 (alpha_max 10)"]


def test_one_is_told_in_the_singular(make, tmp_path):
    line = {"epoch": 0, "seconds": 60.0, "monitor_seconds": 18.0}
    (make(options={"epochs": 1, "linear_epochs": 1}) / "metrics.jsonl").write_text(json.dumps(line))
    (table,), _ = table2.collect([tmp_path])
    assert ", 1 epoch, batch" in table2.describe(table)
    assert ", 1 epoch of linear" in table2.describe(table)
    told = "kNN, W2, L_U and A during training: 30.0 % of the time of pre-training, as one run noted."
    assert table2.monitoring(table) == told
    (make(seed=13, options={"epochs": 1, "linear_epochs": 1}) / "metrics.jsonl").write_text(json.dumps(line))
    (table,), _ = table2.collect([tmp_path])
    assert table2.monitoring(table) == told.replace("one run", "2 runs")


def test_data_sets_stand_below_each_other(make, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(table2_figures, "save", lambda figure, path: figures.append(figure))
    for dataset in ("cifar10", "cifar100"):
        make(dataset, dataset=dataset)
        (table,), _ = table2.collect([tmp_path])
        table2_figures.draw_table(table, tmp_path / "table")
    one, two = figures
    assert one.get_figwidth() == two.get_figwidth() == 2 * plotting.COLUMN
    one.canvas.draw()
    two.canvas.draw()
    assert [panel.get_title(loc="left") or panel.get_title() for panel in two.axes[::2]] == [
        "(a) CIFAR-10: Acc@1 ↑", "(c) CIFAR-100: Acc@1 ↑",
    ]  # fmt: skip
    heights = [panel.get_window_extent().height for panel in two.axes]
    assert min(heights) > 0.8 * one.axes[0].get_window_extent().height


@pytest.mark.parametrize("name", ["a$^$b", "a$b", r"a\$^\$b W2", "$$_L_U"])
def test_a_name_is_no_formula(make, tmp_path, name):
    for term in ("none", "w2"):
        folder = make(f"{term}", method=name, dataset=name, term=term)
        (folder / "metrics.jsonl").write_text('{"epoch": 0, "seconds": 1, "w2": 1.0}\n')
    (table,), _ = table2.collect([tmp_path])
    table2_figures.draw_table(table, tmp_path / "table")
    table2_figures.draw_spectra(table).canvas.draw()
    figure = table2_figures.draw_curves(table, ["w2"])
    figure.canvas.draw()
    if name == "a$^$b":
        assert figure.axes[0].get_ylabel().startswith(r"a\$^\$b")


def test_figures_write_a_minus():
    assert plotting.symbols("-TCR") == "$-$TCR"


def test_no_two_curves_look_alike(make, tmp_path):
    for method in table2.METHODS:
        for term in ("none", *TERMS):
            if method == "BYOL" or term == "none":
                make(method=method, term=term, options={"alpha_max": None if term == "none" else 1.0})
    (table,), _ = table2.collect([tmp_path])
    (panels,) = table2_figures.panels_of(table)
    looks = {}
    for panel in panels:
        for label, style in zip(panel.labels, panel.styles, strict=True):
            looks.setdefault(repr(style), set()).add(label)
    assert len(looks) == len(table2.METHODS) + 1 + len(TERMS)
    assert all(len(labels) == 1 for labels in looks.values())


def program(*arguments):
    command = [sys.executable, str(REPOSITORY / "code" / "table2.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True)


def test_the_program_writes_all_files(make, tmp_path):
    for folder in (make(), make(term="w2"), make(dataset="cifar100")):
        (folder / "metrics.jsonl").write_text('{"epoch": 0, "seconds": 1, "loss": 2.0, "w2": 1.0}\n')
    done = program(tmp_path, "--out", tmp_path / "out", "--spectra", "--curves")
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"{name}.{kind}" for name in ("table2", "spectra", "curves", "loss") for kind in ("png", "pdf")}
    assert written == {f"table2.{kind}" for kind in ("md", "csv", "tex")} | pictures
    assert "CIFAR-100" in done.stdout


def test_the_program_tells_mistakes_in_one_line(tmp_path):
    for arguments in ((tmp_path / "none",), (tmp_path,)):
        done = program(*arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("table2.py: error: ")
        assert done.stderr.count("\n") == 1


def test_best_says_so_and_leaves_no_row_out_of_the_csv(make, tmp_path):
    for weight, knn in ((1.0, 70.0), (10.0, 75.0)):
        make(str(weight), term="w2", options={"alpha_max": weight}, knn1=knn)
    program = load(REPOSITORY / "code" / "table2.py")
    program.build(argparse.Namespace(runs=[tmp_path], out=tmp_path / "out", best=True, spectra=False, curves=False))
    text = (tmp_path / "out" / "table2.md").read_text()
    assert "alpha_max 10" in text
    assert "alpha_max 1)" not in text
    assert table2.BEST in text
    assert "alpha_max 1," in (tmp_path / "out" / "table2.csv").read_text()


def test_a_preset_in_bf16_is_still_the_preset(make, tmp_path):
    make(options={"precision": "bf16"})
    (table,), _ = table2.collect([tmp_path])
    assert table2.describe(table).startswith("Preset `paper`: ")


def test_a_weight_that_falls_to_nothing_ends_at_0(make, tmp_path):
    lines = [json.dumps({"epoch": k, "seconds": 1.0, "alpha": 0.3 - k * 0.3 / 4}) for k in (0, 1)]
    (make(term="w2", options={"epochs": 4}) / "metrics.jsonl").write_text("\n".join(lines))
    (table,), _ = table2.collect([tmp_path])
    assert [f"{weight:g}" for weight in table.rows[0].weights] == ["0.3", "0"]


def test_the_csv_has_the_floor_of_w2_alone_and_minutes_are_of_both_stages(make, tmp_path):
    make(pretrain_seconds=60.0, evaluate_seconds=120.0)
    (table,), _ = table2.collect([tmp_path])
    lines = csv.DictReader(io.StringIO(table2.to_csv([table])))
    assert {line["measure"]: line["floor"] for line in lines if line["floor"]} == {"w2": "0.08"}
    assert table.rows[0].minutes == 3


def test_weights_stand_in_the_order_of_numbers(make, tmp_path):
    for weight in (100.0, 2.0, 1e-6, 10.0):
        make(str(weight), term="w2", options={"alpha_max": weight})
    (table,), _ = table2.collect([tmp_path])
    assert [row.weights[0] for row in table.rows] == [1e-6, 2.0, 10.0, 100.0]


def test_a_line_whose_epoch_is_no_number_is_none(tmp_path):
    lines = [json.dumps({"epoch": epoch, "seconds": 1.0}) for epoch in (0, "1", None, 2.5)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [line["epoch"] for line in results.log(tmp_path)] == [0]


def test_the_best_weight_is_that_of_each_data_set(make, tmp_path):
    for dataset, best in (("cifar10", 1.0), ("cifar100", 2.0)):
        for weight in (1.0, 2.0):
            knn = 80.0 if weight == best else 70.0
            make(f"{dataset}-{weight}", term="w2", dataset=dataset, options={"alpha_max": weight}, knn1=knn)
    (table,), _ = table2.collect([tmp_path])
    found = {row.dataset: row.weights[0] for row in table2.best(table).rows}
    assert found == {"cifar10": 1.0, "cifar100": 2.0}


@pytest.mark.parametrize("name", results.NUMBERS)
def test_a_result_without_one_of_its_numbers_does_not_count(make, tmp_path, name):
    make(spoil=lambda result: json.dumps({key: value for key, value in result.items() if key != name}))
    tables, unfinished = table2.collect([tmp_path])
    assert not tables
    assert name in unfinished[0].reason
    assert "w2_floor" in results.NUMBERS


@pytest.mark.parametrize(("by", "differs"), [(1e-4, []), (2e-4, ["mean"])])
def test_images_are_the_same_where_a_decoder_moves_the_last_digit_of_their_mean(by, differs):
    old = {"train": 60, "mean": [0.4914, 0.4822, 0.4465]}
    assert other_images(old, old | {"mean": [0.4914 + by, 0.4822, 0.4465]}) == differs
    assert other_images(old, old | {"train": 61}) == ["train"]


def test_each_data_set_has_its_own_floor(make, tmp_path):
    make(dataset="cifar10", w2_floor=0.16)
    make(dataset="digits", w2_floor=0.22)
    (table,), _ = table2.collect([tmp_path])
    text = table2.markdown(table)
    assert "**CIFAR-10**, W2's floor 0.160" in text
    assert "**digits**, W2's floor 0.220" in text


def test_the_csv_has_the_deviation_of_the_gains_themselves(make, tmp_path):
    for seed, (a, b) in enumerate(((90.0, 91.0), (80.0, 82.0), (70.0, 75.0))):
        make(seed=seed, acc1=a)
        make(seed=seed, term="w2", acc1=b)
    tables, _ = table2.collect([tmp_path])
    rows = csv.DictReader(io.StringIO(table2.to_csv(tables)))
    (row,) = (row for row in rows if (row["uniformity"], row["measure"]) == ("w2", "acc1"))
    assert float(row["gain_deviation"]) == pytest.approx(stdev([1, 2, 5]))
    assert float(row["deviation"]) == pytest.approx(stdev([91, 82, 75]))


ROWS = ("dataset", "dataset_name", "seed", "uniformity", "alpha_max", "alpha_min")  # what rows of a table differ in


@pytest.mark.parametrize("option", sorted(set(DEFAULTS) - {*ELSEWHERE, *ROWS}))
def test_runs_that_differ_in_what_they_compute_never_share_a_table(make, tmp_path, option):
    make()
    make(folder="other", seed=13, options={option: "another"})
    assert len(table2.collect([tmp_path])[0]) == 2

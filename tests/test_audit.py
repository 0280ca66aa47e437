"""The audit of an embedding: verdicts on embeddings made to be judged, every kind of file, and what it refuses."""

import base64
import html
import json
import math
import os
import re
import subprocess
import sys
import unittest.mock
import zipfile
from dataclasses import asdict
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import safetensors.torch
import scipy.linalg
import torch
from conftest import FIGURES, REPOSITORY, check_executed, environment, load, printed
from torch import nn

from wassersteinssl import (
    audit,
    audit_encoders,
    audit_files,
    audit_report,
    augment,
    backbones,
    data,
    evaluate,
    machine,
    numerics,
    studies,
)
from wassersteinssl.cli import UserError, exit_status
from wassersteinssl.encoder import save_encoder
from wassersteinssl.settings import PRESETS, Settings
from wassersteinssl.uniformity import MEASURES
from wassersteinssl.w2 import w2_uniformity

PROGRAM = REPOSITORY / "code" / "audit.py"
N, M = 1200, 32


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(audit, "DRAWS", 4)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=studies.generator(seed), dtype=torch.float64)


def sphere(n, m, seed=0):
    return studies.sphere(n, m, studies.generator(seed)).double()


def random_basis(m):
    return torch.linalg.qr(normal(m, m, seed=1)).Q


def atoms(n=N, m=M):
    return torch.cat([torch.eye(m), -torch.eye(m)]).double()[torch.arange(n) % (2 * m)]


def report_on(z, *, sample=400, **options):
    """The report on rows in memory."""
    features = audit_files.of_rows(z, "rows", options.pop("labels", None))
    return audit.audit(features, sample=sample, **options).report


def start(*arguments, report=None):
    """The program in this process: its exit status."""
    program = load(PROGRAM)
    options = [str(argument) for argument in arguments] + ([] if report is None else ["--report", str(report)])
    with unittest.mock.patch.object(sys, "argv", ["audit.py"]):
        return exit_status(program.run, program.parse(["--sample", "64", *options]))


# ---- the verdict -----------------------------------------------------------------------------------------------------

EMBEDDINGS = {
    "uniform": (sphere(N, M), "healthy", 32),
    "half collapsed, random basis": (sphere(N, M // 2) @ random_basis(M)[: M // 2], "partly collapsed", 16),
    "two directions": (sphere(N, 2) @ random_basis(M)[:2], "collapsed", 2),
    "constant": (torch.ones(N, M, dtype=torch.float64), "collapsed", 0),
    "a common mean": (0.15 * normal(N, M) + 1, "collapsed", None),
    "atoms at +-e_i": (atoms(), "healthy in two moments, but clumped", 32),
    "atoms with noise": (atoms() + 0.02 * normal(N, M), "healthy in two moments, but clumped", 32),
    "ten points": (sphere(10, M)[torch.arange(N) % 10] + 0.01 * normal(N, M), "partly collapsed, and clumped", 9),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_verdicts(name):
    z, word, dimensions = EMBEDDINGS[name]
    report = report_on(z)
    assert report["verdict"]["word"] == word
    if dimensions is not None:
        assert report["verdict"]["dimensions"] == pytest.approx(dimensions, rel=0.12, abs=0.5)
    assert report["verdict"]["clumped"] == ("clumped" in word)
    assert ("common mean" in report["verdict"]["why"]) == (name == "a common mean")
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(("n", "rank"), [(5, 512), (3, 2), (20, 8), (512, 512)])
def test_few_rows_are_not_called_healthy(n, rank):
    z = normal(n, rank) @ normal(rank, 512, seed=1)
    verdict = audit.audit(audit_files.of_rows(z, "few")).report["verdict"]
    assert verdict["word"] == "too few rows to tell"
    assert f"{n} rows lie in fewer" in verdict["why"]


@pytest.mark.parametrize("m", [2, 3, 8, 10, 11])
def test_rows_on_a_line_are_collapsed_in_any_dimension(m):
    assert report_on(normal(400, 1) @ normal(1, m, seed=1) + 1e-3 * normal(400, m, seed=2))["verdict"]["word"] == (
        "collapsed"
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_of_parallel_rows_rounding_is_no_direction(dtype):
    lengths = torch.rand(300, 1, generator=torch.Generator().manual_seed(0))
    report = report_on((normal(1, 64) * (0.1 + lengths)).to(dtype))
    assert report["rows"]["one_direction"]
    assert report["verdict"]["why"] == "all rows point the same way"
    assert report["spectrum"]["effective_rank"] == 0


def test_few_rows_of_fewer_dimensions_are_partly_collapsed():
    assert report_on(normal(64, 10) @ normal(10, 64, seed=1))["verdict"]["word"] == "partly collapsed"


def test_few_rows_that_nearly_agree_are_collapsed():
    z = 1 + 1e-3 * normal(20, 512)
    assert audit.audit(audit_files.of_rows(z, "few")).report["verdict"]["word"] == "collapsed"


def test_numbers_are_those_of_scipy_and_numpy():
    z = (normal(N, M) * torch.linspace(0.1, 3, M)) @ random_basis(M) + 0.1
    report = report_on(z)
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    mean, covariance = unit.mean(0), np.cov(unit.T, bias=True)
    square = mean @ mean + np.trace(covariance) + 1 - 2 / M**0.5 * np.trace(scipy.linalg.sqrtm(covariance).real)
    assert report["w2"]["w2"] == pytest.approx(square**0.5, rel=1e-9)
    assert report["w2"]["mean_part"] == pytest.approx(mean @ mean, rel=1e-9)
    apart = np.linalg.norm(scipy.linalg.sqrtm(covariance).real - np.eye(M) / M**0.5)
    assert report["w2"]["covariance_part"] == pytest.approx(apart**2, rel=1e-9)
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(report["spectrum"]["eigenvalues"], eigenvalues, rtol=1e-8)
    share = eigenvalues / eigenvalues.sum()
    assert report["spectrum"]["effective_rank"] == pytest.approx(np.exp(-share @ np.log(share)), rel=1e-9)
    assert report["spectrum"]["participation_ratio"] == pytest.approx(1 / (share @ share), rel=1e-9)
    singular = np.linalg.svd(unit, compute_uv=False)
    singular /= singular.sum()
    assert report["spectrum"]["rankme"] == pytest.approx(np.exp(-singular @ np.log(singular)), rel=1e-9)
    assert report["spectrum"]["directions_of_99_percent"] == 1 + np.searchsorted(share.cumsum(), 0.99)
    norms = np.linalg.norm(z.numpy(), axis=1)
    found = report["norms"]
    expected = [norms.min(), norms.mean(), norms.std(), norms.max(), 0]
    assert list(found.values()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m", "largest"), [(200, 40, 40), (40, 200, 40), (200, 200, 200)])
def test_eigenvalues_are_computed_once_and_of_the_smaller_side(n, m, largest, monkeypatch):
    solve, sizes = torch.linalg.eigvalsh, []
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda a: sizes.append(len(a)) or solve(a))
    z = normal(n, m) * torch.linspace(0.1, 1, m) + 0.1
    report = report_on(z)
    assert len(sizes) == 2  # of the covariance and of the second moment
    assert set(sizes) == {largest}
    unit = torch.nn.functional.normalize(z)
    assert report["w2"]["w2"] == pytest.approx(float(w2_uniformity(z)), rel=1e-9)
    for name in ("effective_rank", "rankme", "participation_ratio"):
        assert report["spectrum"][name] == pytest.approx(float(MEASURES[name].function(unit)), rel=1e-9)


def test_what_takes_long_is_told_and_what_does_not_fit_refused(monkeypatch, capsys):
    monkeypatch.setattr(audit, "LONG", 8)
    report_on(normal(60, 9))
    assert capsys.readouterr().err == "eigenvalues of two matrices, 9 x 9 ...\n"
    monkeypatch.setattr(machine, "memory", lambda: 1.9 * audit.MATRICES * 8 * 9**2)
    with pytest.raises(UserError, match="9 features need 0 GiB for their covariance: more than half of the memory"):
        report_on(normal(60, 9))


@pytest.mark.parametrize(("n", "m"), [(400, 40), (80, 200), (64, 64)])
def test_uniform_rows_use_all_dimensions_whatever_their_number(n, m):
    report = report_on(sphere(n, m))
    assert report["verdict"]["word"] == ("healthy" if n > m else "too few rows to tell")
    assert report["verdict"]["share"] > 0.97
    assert report["spectrum"]["effective_rank"] == pytest.approx(report["spectrum"]["uniform_effective_rank"], rel=0.02)
    beyond = report["beyond"]
    assert abs(beyond["lu_calibrated"] / beyond["uniform"]["lu_calibrated"] - 1) < 0.1
    assert abs(beyond["nearest"] / beyond["uniform"]["nearest"] - 1) < 0.05


def test_repeating_rows_changes_neither_w2_nor_its_floor():
    z = normal(300, M)
    once, often = report_on(z), report_on(z.repeat(4, 1))
    assert often["w2"] == pytest.approx(once["w2"], rel=1e-9)
    assert often["rows"] == {
        "distinct": 300, "repeated": 900, "most": 4, "most_first": often["rows"]["most_first"], "dropped": 0,
        "one_direction": False, "first_zero": [], "in_floor": 300,
    }  # fmt: skip
    assert any("900 of 1200 rows repeat" in note for note in often["notes"])


def test_the_most_frequent_row_and_the_first_zero_ones_are_told(monkeypatch):
    monkeypatch.setattr(audit_files, "CHUNK", 50 * M)
    z = normal(1000, M)
    z[700:720] = z[130]
    z[900:903] = z[5]
    z[[2, 260, 999]] = 0
    z[1] = math.nan
    report = report_on(z, drop_bad_rows=True)
    rows = report["rows"]
    assert (rows["distinct"], rows["repeated"], rows["most"], rows["most_first"]) == (973, 23, 21, 130)
    assert rows["first_zero"] == [2, 260, 999]
    notes = " ".join(report["notes"])
    assert "3 of 999 rows are zero: they have no direction and are left out (2, 260, 999, counted from 0)" in notes
    assert "23 of 999 rows repeat an earlier one; the floor is that of 973 rows" in notes
    assert "; one row occurs 21 times, first at row 130" in notes
    pairs = report_on(torch.cat([z[10:100]] * 2))
    assert (pairs["rows"]["repeated"], pairs["rows"]["most"]) == (90, 2)
    assert not any("one row occurs" in note for note in pairs["notes"])
    equal = report_on(torch.cat([torch.ones(30, M), torch.zeros(3, M)]))["verdict"]
    assert equal["why"] == "all rows but the zero ones are equal; 3 of 33 rows are zero"


@pytest.mark.parametrize("collapsed", [False, True])
def test_zero_rows_are_counted_and_left_out(collapsed):
    z = sphere(300, M)
    z[:, 3 if collapsed else M :] = 0
    with_zeros = torch.zeros(600, M, dtype=z.dtype)
    with_zeros[::2] = z
    without, report = report_on(z, sample=600), report_on(with_zeros, sample=600)
    assert report["norms"]["zero_rows"] == 300
    assert "300 of 600 rows are zero" in " ".join(report["notes"])
    for part in ("w2", "spectrum"):
        assert report[part].keys() == without[part].keys()
        for key, value in without[part].items():
            assert report[part][key] == pytest.approx(value, rel=1e-9, abs=1e-12)
    assert report["verdict"]["word"] == ("collapsed" if collapsed else "healthy") + ", without the zero rows"
    assert report["verdict"]["why"].startswith("300 of 600 rows are zero; ")
    some = report_on(with_zeros[250:], sample=600)["verdict"]["why"]
    assert some.startswith("175 of 350 rows are zero; ")
    assert report_on(torch.cat([z, with_zeros]))["verdict"]["why"].endswith("; 300 of 900 rows are zero")


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_a_sample_is_of_rows_that_have_a_direction_however_few(bad):
    z = torch.full((20_000, 16), bad, dtype=torch.float64)
    z[::100] = normal(200, 16)
    alone = report_on(z[::100])
    report = audit.audit(audit_files.of_rows(z, "z"), drop_bad_rows=True).report
    assert report["sample"] == 200
    assert report["beyond"] == alone["beyond"]
    assert report["verdict"]["word"].removesuffix(", without the zero rows") == "healthy"


@pytest.mark.parametrize(("n", "m"), [(3, 2), (4, 2), (6, 2), (5, 4), (11, 3)])
def test_uniform_rows_fewer_than_twelve_are_too_few(n, m):
    for draw in range(20):
        assert report_on(normal(n, m, seed=draw))["verdict"]["word"] == "too few rows to tell"


@pytest.mark.parametrize(("n", "k", "m"), [(65, 32, 64), (70, 5, 64), (260, 20, 256), (512, 128, 256), (300, 250, 256)])
def test_the_dimensions_of_gaussian_rows_in_a_subspace_are_counted(n, k, m):
    """Also of hardly more rows than features, where a floor stands far from 0."""
    counts = []
    for draw in range(8):
        report = report_on(normal(n, k, seed=draw) @ random_basis(m)[:k])
        counts.append([report["w2"]["dimensions"], report["spectrum"]["dimensions"]])
    assert np.mean(counts, axis=0) == pytest.approx([k, k], rel=0.06)


def test_one_feature_that_holds_the_length_is_told():
    z = torch.nn.functional.normalize(normal(500, M))
    assert not any("squared length" in note for note in report_on(z)["notes"])
    labelled = torch.cat([z[:, :7], torch.arange(500.0, dtype=z.dtype).remainder(10)[:, None], z[:, 7:]], 1)
    assert (
        "feature 7 (counted from 0) holds 80 % of the squared length: is it a feature, or an id or an outlier "
        "dimension? Leave it out and audit again" in report_on(labelled)["notes"]
    )


@pytest.mark.parametrize(("m", "rogue", "told"), [(64, 2, "5, 6"), (400, 24, r"(\d+, ){9}\d+ \.\.\."), (39, 2, None)])
def test_the_few_features_that_hold_the_length_together_are_told(m, rogue, told):
    z = normal(1000, m)
    z[:, 5 : 5 + rogue] *= 25
    report = report_on(z)
    notes = "\n".join(note for note in report["notes"] if "squared length" in note)
    assert bool(notes) == bool(told)
    assert set(report["features"]["first_half"]) <= set(range(5, 5 + rogue))
    assert (
        re.match(rf"features {told} \(counted from 0\) together hold \d+ % of the squared length: are", notes)
        or not told
    )


def test_rows_without_length_have_no_largest_feature():
    assert report_on(torch.zeros(30, M, dtype=torch.float64))["features"]["half"] == 0


def test_many_rows_of_few_values_are_judged():
    report = report_on(normal(2, M)[torch.arange(5000) % 2])
    assert report["verdict"]["word"] == "collapsed"
    assert "; the floor is that of 5000 rows; one row occurs 2500 times, first at row " in report["notes"][-1]
    few = report_on(normal(30, M)[torch.arange(5000) % 30])["verdict"]
    assert few["word"] == "partly collapsed, and clumped"  # 30 rows do not lie evenly in 32 dimensions
    assert "only 30 of the rows differ, too few to tell if that is because inputs were repeated" in few["why"]


@pytest.mark.parametrize(
    ("n", "k", "word"), [(16, 2, "collapsed"), (100, 8, "collapsed"), (128, 30, "partly collapsed")]
)
def test_no_more_rows_than_features_are_judged_where_they_lie_in_far_fewer_dimensions(n, k, word):
    verdict = report_on(normal(n, k) @ random_basis(128)[:k])["verdict"]
    assert verdict["word"] == word
    assert verdict["dimensions"] == pytest.approx(k, rel=0.15)


@pytest.mark.parametrize(
    ("n", "m"), [(3, 128), (4, 128), (8, 128), (16, 128), (64, 128), (128, 128), (2, 4), (2, 8), (3, 4)]
)
def test_uniform_rows_that_are_no_more_than_the_features_are_too_few(n, m):
    for draw in range(5 if m > 8 else 40):
        assert report_on(normal(n, m, seed=draw))["verdict"]["word"] == "too few rows to tell"


@pytest.mark.parametrize("times", [1, 3, 10])
def test_copies_of_too_few_rows_are_too_few_as_long_as_all_are_no_more_than_the_features(times):
    assert report_on(normal(25, 256).repeat(times, 1))["verdict"]["word"].startswith("too few rows to tell")
    flat = report_on((normal(25, 4) @ normal(4, 256, seed=1)).repeat(times, 1))["verdict"]
    assert flat["word"] == "collapsed"
    assert ("only 25 of the rows differ" in flat["why"]) == (times > 1)


def test_gaussian_rows_with_one_strong_direction_or_on_a_line_are_not_clumped():
    strong = torch.ones(64, dtype=torch.float64)
    strong[0] = 100
    for z in (normal(3000, 64) * strong, normal(500, 1) @ normal(1, 32)):
        verdict = report_on(z)["verdict"]
        assert (verdict["word"], verdict["clumped"]) == ("collapsed", False)


def test_repeated_rows_are_weights_of_the_least_w2():
    """Three points on an equator, each four times, and two poles, each three times, have mean 0 and covariance I/3."""
    angles = 2 * math.pi * torch.arange(3, dtype=torch.float64) / 3
    equator = torch.stack([angles.cos(), angles.sin(), 0 * angles], dim=1)
    poles = torch.tensor([[0.0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    w2 = report_on(torch.cat([equator] * 4 + [poles] * 3))["w2"]
    assert w2["w2"] == pytest.approx(0, abs=1e-6)
    assert w2["minimum"] == 0


@pytest.mark.parametrize(("mean", "deviation"), [(1e8, 1), (1e6, 1e-3), (1, 1e-9), (0, 1)])
def test_the_deviation_of_norms_is_right_beside_a_large_mean(mean, deviation):
    lengths = mean + deviation * normal(5000, 1).abs()
    rows = torch.nn.functional.normalize(normal(5000, 4, seed=1)) * lengths
    found = report_on(rows)["norms"]
    assert found["std"] == pytest.approx(float(lengths.std(correction=0)), rel=1e-3)
    assert found["mean"] == pytest.approx(float(lengths.mean()), rel=1e-12)


def test_rows_whose_squares_vanish_are_told():
    with pytest.raises(UserError, match=r"5 of 5 rows .* vanishing values"):
        report_on(1e-200 * normal(5, 4))
    lone = torch.zeros(10, 4, dtype=torch.float64)
    lone[3] = 1
    verdict = report_on(lone)["verdict"]
    assert verdict["word"] == "collapsed"
    assert verdict["why"].startswith("all rows but one are zero")


def test_rows_without_a_label_are_told(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, np.array([0.0, np.nan, 1.0]))
    with pytest.raises(UserError, match="holds no label for 1 of 3 rows"):
        audit_files.read_labels(path, 3)
    for content in ("cat\ndog\nNaN\n", "label\ncat\n\ndog\n", "label\ncat\n\ndog\n\n", ",label\n0,cat\n\n2,dog\n"):
        path.with_suffix(".csv").write_text(content)
        with pytest.raises(UserError, match="no label for 1 of 3 rows"):
            audit_files.read_labels(path.with_suffix(".csv"), 3)


def test_pandas_numbering_of_columns_is_a_header(tmp_path):
    z = normal(40, 8).numpy()
    path = tmp_path / "z.csv"
    path.write_text(",".join(map(str, range(8))) + "\n" + "\n".join(",".join(map(repr, row)) for row in z.tolist()))
    found = audit_files.read(path)
    assert (found.n, found.m) == z.shape
    assert "the first line, 0 to 7, was taken for a header" in found.notes


def test_two_columns_of_a_code_have_no_header(tmp_path):
    (tmp_path / "z.csv").write_text("0,1\n1,0\n0,1\n1,0\n")
    found = audit_files.read(tmp_path / "z.csv")
    assert (found.n, found.m, found.notes) == (4, 2, ())


def test_labels_of_bytes_that_are_empty_are_none(tmp_path):
    np.save(tmp_path / "y.npy", np.array([b"cat", b"", b"dog"]))
    with pytest.raises(UserError, match="no label for 1 of 3 rows"):
        audit_files.read_labels(tmp_path / "y.npy", 3)


def test_rows_that_point_one_way_have_no_dimensions():
    report = report_on(normal(500, 1).abs() * normal(1, M, seed=1))
    assert report["verdict"]["word"].startswith("collapsed")
    assert report["spectrum"]["dimensions"] == report["w2"]["dimensions"] == report["spectrum"]["effective_rank"] == 0
    assert report["verdict"]["why"].startswith("all rows point the same way")


def test_labels_of_rows_outside_the_sample_cost_nothing(monkeypatch):
    asked = {}

    def knn_accuracy(*_, classes, **__):
        asked["classes"] = classes
        return 50.0

    monkeypatch.setattr(evaluate, "knn_accuracy", knn_accuracy)
    found = audit.audit(audit_files.of_rows(normal(500, 8), "z", np.arange(500) * 1000), sample=100)
    assert asked["classes"] == found.report["labels"]["classes"] == 100


def test_neighbours_know_a_label_whatever_the_order_of_rows():
    z, labels = torch.cat([sphere(100, M) + 9, sphere(100, M) - 9]), torch.arange(2).repeat_interleave(100)
    mixed = torch.arange(200).reshape(2, 100).T.flatten()  # 0 1 0 1 ...
    for order in (torch.arange(200), mixed):
        assert report_on(z[order], labels=labels[order].numpy(), sample=200)["labels"]["knn1"] == 100


def test_features_beside_a_large_mean_are_not_copies():
    z = 1 + torch.arange(M) + 1e-5 * normal(500, M)
    assert report_on(z)["features"]["repeated"] == 0
    z[:, 5] = 3 * z[:, 4]
    assert report_on(z)["features"]["first_pairs"] == [[4, 5]]


def test_views_are_read_beside_unrelated_ones():
    z, other = normal(500, M) + 3, normal(500, M, seed=1) + 3
    found = report_on(z, views=audit_files.of_rows(other, "other"), sample=500)["views"]
    assert found["alignment"] == pytest.approx(found["unrelated"]["alignment"], rel=0.05)
    assert found["alignment"] < 0.3  # a common mean alone
    told = "the views are no nearer than unrelated ones: are their rows in the same order?"
    assert told in report_on(z, views=audit_files.of_rows(other, "other"), sample=500)["notes"]
    assert told not in report_on(z, views=audit_files.of_rows(z + other, "near"), sample=500)["notes"]
    assert told not in report_on(torch.ones(50, M), views=audit_files.of_rows(torch.ones(50, M), "same"))["notes"]
    same = report_on(z, views=audit_files.of_rows(z, "same"), sample=500)["views"]
    assert same["alignment"] == pytest.approx(0, abs=1e-12)
    assert same["unrelated"]["alignment"] == pytest.approx(found["unrelated"]["alignment"], rel=0.05)


@pytest.mark.parametrize("m", [8, 300])
@pytest.mark.parametrize("kind", ["zero", "equal", "equal, with rounding"])
def test_equal_rows_have_one_page_without_contradictions(kind, m, monkeypatch):
    monkeypatch.setattr(audit_files, "CHUNK", 7 * m)
    row = {"zero": torch.zeros(m), "equal": torch.ones(m), "equal, with rounding": normal(m)}[kind]
    report = report_on(row.double().repeat(40, 1))
    w2 = report["w2"]
    assert w2["w2"] == pytest.approx(1 if kind == "zero" else 2**0.5)
    assert (w2["floor"], w2["minimum"]) == (audit.w2_floor(40, m), audit.w2_minimum(40, m))
    counts = (w2["dimensions"], *(report["spectrum"][key] for key in ("dimensions", "effective_rank")))
    assert counts == (0, 0, 0)
    assert (report["verdict"]["word"], report["verdict"]["why"]) == (
        "collapsed",
        f"all rows are {'zero' if kind == 'zero' else 'equal'}",
    )
    page = audit_report.text(report)
    assert ("39 of 40 rows repeat an earlier one; the floor is that of 40 rows" in page) == (kind != "zero")
    assert "distinct rows span" not in page
    assert "left out" not in page
    assert ("1 of rows that are all zero\n" in page) == (kind == "zero")
    assert ("1.4142 if all rows are equal\n" in page) == (kind != "zero")
    assert re.search(r"^dimensions by W2 +0\.0   of \d+, 0 %$", page, re.MULTILINE)
    named = "0, 1, 2, 3, 4, 5, 6, 7" + ("" if m == 8 else ", 8, 9 ...")
    assert f"constant over all rows: {named}\n" in page


def test_dimensions_are_counted_in_plain_numbers():
    assert [audit.rounded(n) for n in (1.004, 12.34, 123.4, 999.6, 1020.1, 16_384)] == [
        "1", "12.3", "123", "1000", "1020", "16384",
    ]  # fmt: skip


def test_fewer_than_one_dimension_is_said_in_words():
    report = report_on(1e-3 * normal(N, M) + 1)
    assert 0 < report["verdict"]["dimensions"] < 1
    assert report["verdict"]["why"].startswith(f"less than 1 of {M} dimensions is in use (")
    assert "uniform rows of less than 1 dimension," in report["verdict"]["why"]
    assert [audit.counted(k, "row") for k in (0, 1, 2, 1.0, 0.2, 1.04, 123456)] == [
        "0 rows", "1 row", "2 rows", "1 row", "less than 1 row", "1.04 rows", "123456 rows",
    ]  # fmt: skip
    assert audit.percent(1e-30) == "less than 0.01 %"
    figure = audit_report.draw(audit.audit(audit_files.of_rows(1e-3 * normal(N, M) + 1, "x"), sample=64))
    assert any("floor" in text.get_text() and "less than 1 of" in text.get_text() for text in figure.axes[0].texts)
    audit_report.plt.close(figure)


def test_the_picture_tells_whose_it_is_whatever_the_name():
    name = "/a/long/way/" * 9 + "$\\bad{\x1b.npy"
    figure = audit_report.draw(audit.audit(audit_files.of_rows(normal(N, M), name), sample=64))
    figure.canvas.draw()
    title = figure.get_suptitle()
    assert "/way/$\\bad{?.npy\n" in title
    assert len(title.split("\n")[0]) < 90
    assert title.endswith(f"{N:,} rows of {M} features: healthy")
    audit_report.plt.close(figure)


def test_companion_measures_the_distance_in_deviations():
    beyond = report_on(sphere(N, M // 2) @ random_basis(M)[: M // 2])["beyond"]
    assert beyond["uniform"]["lu_d_prime"] > 20
    assert beyond["uniform"]["nearest_d_prime"] < -20
    assert abs(beyond["gaussian"]["nearest"] / beyond["nearest"] - 1) < 0.05  # which two moments tell all about


def test_dead_and_repeated_features():
    z = normal(N, 8)
    z[:, 1], z[:, 3], z[:, 6], z[:, 7] = 2.5, z[:, 0], -3 * z[:, 2], 0
    found = report_on(z)["features"]
    length, order = torch.nn.functional.normalize(z).square().mean(dim=0).sort(descending=True)
    assert (found.pop("half"), found.pop("first_half")) == (2, sorted(order[:2].tolist()))
    assert found.pop("half_share") == pytest.approx(float(length[:2].sum() / length.sum()), rel=1e-9)
    assert found.pop("code") is None
    assert found == {"dead": 2, "first_dead": [1, 7], "repeated": 2, "first_pairs": [[0, 3], [2, 6]]}


def test_fingerprints_tell_rows_apart():
    few_bits = np.random.default_rng(0).integers(-1, 2, (3000, 7)).astype(float)  # many rows occur twice
    assert len(np.unique(audit.fingerprints(few_bits))) == len(np.unique(few_bits, axis=0))
    few_bits[few_bits == 0] = -0.0
    assert len(np.unique(audit.fingerprints(np.concatenate([few_bits, few_bits + 0.0])))) == len(
        np.unique(few_bits, axis=0)
    )
    distinct = np.arange(50_000.0)[:, None] * [1.0, 0.0] + [0.0, 1.0]
    assert len(np.unique(audit.fingerprints(np.concatenate([distinct, distinct[:, ::-1].copy()])))) == 100_000 - 1


def test_labels_and_views():
    z, classes = EMBEDDINGS["ten points"][0], torch.arange(N) % 10
    report = report_on(z, labels=classes)
    assert report["labels"]["knn1"] == 100
    assert report["labels"]["classes"] == 10
    random = torch.randint(10, (N,), generator=studies.generator(2))
    assert report_on(z, labels=random)["labels"]["knn1"] < 30
    other = z + 0.1 * normal(N, M, seed=3)
    found = report_on(z, views=audit_files.of_rows(other, "other"), sample=N)["views"]
    a, b = (x / x.norm(dim=1, keepdim=True) for x in (z, other))
    assert found["alignment"] == pytest.approx(float((a - b).square().sum(1).mean()), rel=1e-9)
    assert set(found) >= {"lidar", "mmcr", "barlow"}
    assert found["barlow"] == pytest.approx(float(MEASURES["barlow"].function(a, b)), rel=1e-9)


def test_l_u_near_collapse_is_computed_in_float64(monkeypatch):
    """Near one point two moments tell it, to more digits than float32 has."""
    found, companions = [], audit._companions
    monkeypatch.setattr(audit, "_companions", lambda z: found.append(companions(z)) or found[-1])
    assert report_on(1 + 3e-4 * normal(400, 64))["beyond"]["gaussian"]["lu_d_prime"] is None
    *draws, here = (lu for lu, _ in found)
    gaussian = draws[1::2]
    assert len(gaussian) == 4
    assert gaussian == pytest.approx([here] * 4, rel=1e-9)


@pytest.mark.parametrize("p", [0, 0.5, 1, 2])
@pytest.mark.parametrize("n", [300, 2000])
def test_gaussian_rows_are_as_near_as_their_moments_let_expect(n, p, monkeypatch):
    """Scaled to unit length, which evens a spectrum, and of moments that have an error of their own."""
    monkeypatch.setattr(audit, "DRAWS", 12)
    z = normal(n, 64) * torch.arange(1, 65) ** -float(p)
    beyond = report_on(z, sample=n)["beyond"]
    law = beyond["gaussian"]
    assert beyond["nearest"] == pytest.approx(law["nearest"], rel=0.03)
    assert beyond["lu_calibrated"] == pytest.approx(law["lu_calibrated"], rel=0.02)
    assert max(abs(law["nearest_d_prime"]), abs(law["lu_d_prime"])) < 5


@pytest.mark.parametrize(("n", "m"), [(400, 64), (30, 64), (2000, 8)])
def test_the_gaussian_draws_have_the_moments_of_the_rows(n, m):
    z = numerics.unit_rows(normal(n, m).double() * torch.arange(1, m + 1) ** -0.5 + 0.1)
    y = audit._gaussian(z, *audit._directions(z, False), studies.generator(0))()
    torch.testing.assert_close(y.norm(dim=1), torch.ones(n, dtype=torch.float64))
    directions = torch.linalg.eigh(z.T.cov()).eigenvectors.flip(1)[:, : min(m, n // audit.MATCHED)]
    wanted, got = ((rows @ directions).T.cov() for rows in (z, y))
    torch.testing.assert_close(got, wanted, rtol=0.02, atol=0.01 * float(wanted.diagonal().mean()))
    torch.testing.assert_close((y @ directions).mean(0), (z @ directions).mean(0), rtol=0, atol=2e-3)


def test_gaussian_draws_of_rows_without_a_direction_and_of_two_signs():
    rows = torch.ones(9, 4, dtype=torch.float64) / 2
    assert torch.equal(audit._gaussian(rows, *audit._directions(rows, True), studies.generator(0))(), rows)
    signs = torch.tensor([[1.0], [1], [1], [-1]], dtype=torch.float64)
    for seed in range(20):
        assert (
            audit._gaussian(signs, *audit._directions(signs, False), studies.generator(seed))().abs().unique().item()
            == 1
        )


def test_unrelated_views_are_never_the_own_ones():
    for seed in range(8):
        z = normal(2, 6)
        found = audit.audit(audit_files.of_rows(z, "z"), views=audit_files.of_rows(z + 0.01, "v"), seed=seed).report
        assert found["views"]["unrelated"]["alignment"] > 10 * found["views"]["alignment"]


def test_rows_that_repeat_but_for_rounding_are_told():
    z = normal(70, 64).repeat(10, 1)
    assert not any("but for rounding" in note for note in report_on(z)["notes"])
    assert any("but for rounding" in note for note in report_on(z * (1 + 1e-6 * normal(700, 64)))["notes"])


def test_near_repeats_of_fewer_than_half_of_the_rows_are_told():
    z, told = normal(1500, 64), "of the sampled rows have a neighbour nearer than a third of what is expected"
    unseen = "clumps of fewer than about 4 rows, near-repeats say, do not show in the sample"
    for rows in (z, normal(1500, 1) @ normal(1, 64)):  # on a line some Gaussian rows are near, too
        assert not any(told in note for note in report_on(rows, sample=1500)["notes"])
    assert unseen in report_on(z, sample=400)["notes"]
    z[1200:] = z[:300] + 1e-3 * normal(300, 64, seed=1)
    report = report_on(z, sample=1500)
    assert report["verdict"]["word"] == "healthy"
    assert (report["beyond"]["near"], report["beyond"]["gaussian"]["near"]) == (0.4, 0)
    assert f"40 % {told}: near-repeats or clumps?" in report["notes"]
    assert re.search(r"\nrows with a near neighbour +40 %   nearer than a third", audit_report.text(report))
    assert not any("do not show" in note for note in report["notes"])


def test_participation_of_uniform_rows_is_what_the_page_says():
    for n, m in ((70, 64), (128, 64), (2048, 256)):
        spectrum = report_on(normal(n, m))["spectrum"]
        assert spectrum["participation_ratio"] == pytest.approx(spectrum["uniform_participation_ratio"], rel=0.04)


# ---- files -----------------------------------------------------------------------------------------------------------


def save_csv(path, z, delimiter=",", header="a,b,c,d,e"):
    np.savetxt(path, z, delimiter=delimiter, header=header.replace(",", delimiter), comments="", fmt="%.18g")


def save_shards(path, z):
    path.mkdir()
    np.save(path / "shard-2.npy", z[:9])
    save_csv(path / "shard-10.csv", z[9:16])
    torch.save(torch.tensor(z[16:]), path / "shard-11.pt")
    (path / "README.md").touch()


WRITERS = {
    "float16.npy": lambda path, z: np.save(path, z.astype(np.float16)),
    "big-endian.npy": lambda path, z: np.save(path, z.astype(">f8")),
    "by-columns.npy": lambda path, z: np.save(path, np.asfortranarray(z)),
    "packed.npz": lambda path, z: np.savez_compressed(path, features=z, labels=np.arange(len(z))),
    "tensor.pt": lambda path, z: torch.save(torch.tensor(z, requires_grad=True), path),
    "dictionary.pth": lambda path, z: torch.save({"z": torch.tensor(z), "epoch": 3, "y": torch.arange(20)}, path),
    "one.safetensors": lambda path, z: safetensors.torch.save_file({"z": torch.tensor(z), "y": torch.ones(3)}, path),
    "bfloat16.safetensors": lambda path, z: safetensors.torch.save_file({"z": torch.tensor(z).bfloat16()}, path),
    "header.csv": save_csv,
    "header.tsv": lambda path, z: save_csv(path, z, "\t"),
    "semicolons.csv": lambda path, z: np.savetxt(path, z, delimiter=";", fmt="%.18g"),
    "mark.csv": lambda path, z: np.savetxt(path, z, delimiter=",", fmt="%.18g", encoding="utf-8-sig"),
    "pandas.csv": lambda path, z: path.write_text(
        "".join(",".join(map(str, row)) + "\n" for row in [["", *"abcde"], *([f"r{k}", *v] for k, v in enumerate(z))])
    ),
    "shards": save_shards,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_its_rows(name, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_files, "CHUNK", 15)  # three rows
    z = np.round(normal(20, 5).numpy() * 16) / 16  # exact in every type
    WRITERS[name](tmp_path / name, z)
    features = audit_files.read(tmp_path / name)
    chunks = list(features.chunks())
    assert (features.n, features.m) == (20, 5)
    assert len(chunks) > 4
    np.testing.assert_array_equal(torch.cat([chunk.double() for chunk in chunks]).numpy(), z)
    np.testing.assert_array_equal(audit_files.pick(features.chunks(), torch.tensor([1, 9, 10, 19])), z[[1, 9, 10, 19]])


def test_key_chooses_an_array(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((4, 3)), b=np.ones((5, 2)))
    assert audit_files.read(tmp_path / "two.npz", "b").n == 5
    assert audit_files.read(tmp_path / "two.npz", "b").notes == ()


def test_the_report_says_which_array_was_taken(tmp_path, capsys):
    z = normal(20, 5)
    for name in ("packed.npz", "dictionary.pth", "one.safetensors"):
        WRITERS[name](tmp_path / name, z.numpy())
        (note,) = audit_files.read(tmp_path / name).notes
        assert re.fullmatch(r"of the arrays .*, (z|features) was taken", note)
    assert start(tmp_path / "one.safetensors", "--views", tmp_path / "packed.npz") == 0
    out = capsys.readouterr().out
    assert re.search(r"^note: of the arrays (y, z|z, y), z was taken$", out, re.MULTILINE)
    assert "note: views: of the arrays features, labels, features was taken\n" in out


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool])
def test_whole_numbers_are_taken_with_a_note(dtype, tmp_path):
    z = np.random.default_rng(0).integers(0, 2 if dtype is bool else 200, (50, 4)).astype(dtype)
    np.save(tmp_path / "z.npy", z)
    features = audit_files.read(tmp_path / "z.npy")
    assert "whole numbers" in features.notes[0]
    np.testing.assert_array_equal(torch.cat(list(features.chunks())).numpy(), z)


def test_labels_are_numbers_or_lines(tmp_path):
    (tmp_path / "y.txt").write_text("cat\ndog\ncat\n")
    np.save(tmp_path / "y.npy", [7, -1, 7])
    assert audit_files.read_labels(tmp_path / "y.txt", 3).tolist() == [0, 1, 0]
    assert audit_files.read_labels(tmp_path / "y.npy", 3).tolist() == [1, 0, 1]


@pytest.mark.parametrize("header", ["image_id,a,b\n", "label,a,b\n", ""])
@pytest.mark.parametrize("start", [0, 1, 512])  # a later shard goes on counting
def test_a_column_that_counts_the_rows_is_left_out(tmp_path, header, start):
    z = normal(20, 2).numpy()
    lines = "".join(f"{start + k},{a:.17g},{b:.17g}\n" for k, (a, b) in enumerate(z.tolist()))
    (tmp_path / "z.csv").write_text(header + lines)
    found = audit_files.read(tmp_path / "z.csv")
    assert torch.cat(list(found.chunks())).numpy() == pytest.approx(z, abs=0)
    assert found.notes == ("the first column, which counts the rows, was taken for an index and left out",)


def test_columns_that_are_no_features_by_their_name_are_left_out(tmp_path):
    (tmp_path / "z.csv").write_text('a,Label,b,User_ID\n1,"x, y",2,7\n3,1,5,u\n5,0,7,\n2,1,9,0\n')
    found = audit_files.read(tmp_path / "z.csv")
    assert torch.cat(list(found.chunks())).tolist() == [[1, 2], [3, 5], [5, 7], [2, 9]]
    why = "was left out, as by its name it is no feature: rename it to keep it"
    assert found.notes == (f"column 2, 'Label', {why}", f"column 4, 'User_ID', {why}")
    (tmp_path / "z.csv").write_text("x,y,z\n1,0,2\n3,1,5\n")
    assert audit_files.read(tmp_path / "z.csv").m == 3


def test_columns_can_be_left_out_and_the_labels_always_are(tmp_path, capsys):
    z, y = normal(60, 5).numpy(), np.arange(60) % 3
    table = tmp_path / "z.csv"
    content = [",".join([f"{k}.png", *map(repr, z[k].tolist()), f"c{y[k]}"]) for k in range(60)]
    table.write_text("\n".join(["file,a,b,c,d,e,kind", *content]) + "\n")
    np.save(tmp_path / "z.npy", z)
    np.save(tmp_path / "y.npy", y)
    labels = ("--labels", table.parent / "." / ".." / table.parent.name / "z.csv", "--labels-key", "kind")
    assert start(table, *labels, "--drop-columns", "file", "b", report=tmp_path / "r") == 0
    np.save(tmp_path / "four.npy", np.delete(z, 1, axis=1))
    assert start(tmp_path / "four.npy", "--labels", tmp_path / "y.npy", report=tmp_path / "s") == 0
    found, alone = (json.loads((tmp_path / name / "audit.json").read_text()) for name in "rs")
    assert found["notes"][:3] == [f"column {k}, was left out" for k in ("1, 'file'", "3, 'b'", "7, 'kind'")]
    assert found["labels"] == alone["labels"]
    assert (found["m"], found["w2"]) == (4, alone["w2"])
    np.savetxt(tmp_path / "views.csv", z[:, 1:] + 0.1, delimiter=",")  # without these columns
    assert start(table, *labels, "--drop-columns", "file", "b", "--views", tmp_path / "views.csv") == 0
    capsys.readouterr()
    for options, pattern in (
        ((), r"column 1 of .* holds text \('0.png'\), in line 2: numbers only \(--drop-columns leaves a column out\)"),
        (("--drop-columns", "x"), "no column of .* is called x: file, a, b, c, d, e, kind"),
        (("--drop-columns", *"abcde", "file", "kind"), "holds no numbers beside the columns that are left out"),
    ):
        check_refused(start(table, *options, report=tmp_path / "report"), pattern, tmp_path, capsys)
    check_refused(start(tmp_path / "no.csv", "--drop-columns", "a"), "there is no ", tmp_path, capsys)
    status = start(tmp_path / "z.npy", "--drop-columns", "a", report=tmp_path / "report")
    check_refused(status, "no column of .* is called a: it holds none with a name", tmp_path, capsys)


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("header", ["", "a{0}b{0}c\n"])
def test_a_decimal_comma_is_told(mark, header, tmp_path, capsys):
    rows = "\n".join(mark.join(("0,5", "-1,25", "3")) for _ in range(4))
    (tmp_path / "z.csv").write_text(header.format(mark) + rows)
    line = "in line 2: numbers need a decimal point" if header else "numbers need a decimal point"
    check_refused(start(tmp_path / "z.csv"), rf"column 1 of .* holds text \('0,5'\), .*{line}", tmp_path, capsys)
    (tmp_path / "z.csv").write_text((header.format(mark) + rows).replace(",", "."))
    assert audit_files.read(tmp_path / "z.csv").m == 3


def test_a_row_that_is_too_long_is_told_where_columns_are_left_out(tmp_path, capsys):
    (tmp_path / "z.csv").write_text("a,id,b\n1,2,3\n4,5,6\n7,8,9,10\n")
    check_refused(start(tmp_path / "z.csv"), "line 4 of .* has 4 cells, the first 3", tmp_path, capsys)


@pytest.mark.parametrize("name", ["y.csv", "y.tsv"])
def test_a_header_of_labels_is_skipped_and_a_label_too_many_is_not(name, tmp_path):
    path = tmp_path / name
    for content in ("label\n3\n7\n3\n", "label\ncat\ndog\ncat\n", "cat\ndog\ncat\n", "3\n7\n3\n"):
        path.write_text(content)
        assert audit_files.read_labels(path, 3).tolist() == [0, 1, 0]
    for content in ("5\n7\n3\n7\n", "dog\ncat\ndog\ncat\n"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"labels of shape \(4,\) for 3 rows"):
            audit_files.read_labels(path, 3)


@pytest.mark.parametrize(
    "content",
    [",0\n0,3\n1,7\n2,3\n", "Unnamed: 0,label\n0,3\n1,7\n2,3\n", ";0\n0;3\n1;7\n2;3\n", '"a, b"\nc\n"a, b"\n'],
)
def test_the_index_of_labels_is_left_out(content, tmp_path):
    (tmp_path / "y.csv").write_text(content)
    assert audit_files.read_labels(tmp_path / "y.csv", 3).tolist() == [0, 1, 0]


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_page_holds_everything_and_needs_nothing(tmp_path, capsys):
    path = tmp_path / "<script>alert(1)</script>\x1b[31m.npy".replace("/", "")
    views = path.with_name(f"views {path.name}")
    for file in (path, views):
        np.save(file, normal(90, 6).numpy())
    assert start(path, "--views", views, report=tmp_path / "a" / "b") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    folder = tmp_path / "a" / "b"
    assert {file.name for file in folder.iterdir()} == {"audit.json", "audit.txt", "audit.html", "audit.png"}
    assert (folder / "audit.txt").read_text() in out
    report = json.loads((folder / "audit.json").read_text())
    page = (folder / "audit.html").read_text()
    assert "<script" not in page
    assert not re.search(r"https?:|url\(|@import|<link", page)
    assert [base64.b64decode(found) for found in re.findall(r'src="data:image/png;base64,([^"]+)"', page)] == [
        (folder / "audit.png").read_bytes()
    ]
    for shown in (
        report["verdict"]["word"].capitalize(),
        html.escape(report["verdict"]["advice"]),
        "<th>compare with</th>",
        f"{report['w2']['w2']:.4f}",
        "of 64 of them, seed 12",
        "p, li, td:nth-child(3) { overflow-wrap: anywhere }",  # long names
    ):
        assert shown in page
    before = (folder / "audit.json").read_bytes()
    assert start(path, "--views", views, report=folder) == 0
    assert (folder / "audit.json").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("uniform", "nothing beyond what the notes say; what the rows are worth"),
        ("two directions", "an encoder that stays collapsed needs a uniformity term.*, unless .* classes apart$"),
        ("half collapsed, random basis", "a task tells if the dimensions in use are enough"),
        ("atoms with noise", "look at the nearest pairs: .* may stay$"),
        ("ten points", "look at the nearest pairs: .* may stay; a task tells"),
        ("few", "audit several times as many rows"),
    ],
)
def test_every_verdict_comes_with_what_to_do(name, advice):
    report = report_on(normal(20, M) if name == "few" else EMBEDDINGS[name][0])
    assert re.match(advice, report["verdict"]["advice"])
    page = audit_report.text(report).split("\n")
    assert page[4] == f"what to do: {report['verdict']['advice']}."
    assert page[6].split() == ["measure", "value", "compare", "with"]


def test_advice_begins_with_what_makes_rows_of_a_good_encoder_look_collapsed():
    mean, outlier, two = torch.ones(M), torch.eye(M)[5] * 30, normal(1, M).sign()
    kinds = {  # what is added to uniform rows: the first words of the advice
        "nothing": (0, "nothing beyond what the notes say"),
        "a common mean": (mean * 2, "subtract the common mean, and audit again; "),
        "a feature": (normal(N, 1) * outlier, "leave out the features that a note names, and audit again; "),
        "both": (
            (1 + 0.2 * normal(N, 1)) * outlier,
            "subtract the common mean and leave out the features that a note names, and audit again; ",
        ),
        "two groups": ((torch.arange(N) % 2)[:, None] * two * 4 - two * 2, "take the two groups of rows apart, and"),
    }
    for name, (added, begins) in kinds.items():
        report = report_on(normal(N, M, seed=1) + added)
        assert report["verdict"]["advice"].startswith(begins), name
        assert (name == "two groups") == any("fall into two groups" in note for note in report["notes"]), name


def test_a_mean_that_hides_no_dimensions_is_not_to_be_subtracted():
    report = report_on(normal(N, 2) @ normal(2, M, seed=1) + 0.5)
    assert report["verdict"]["word"] == "collapsed"
    assert report["w2"]["mean_part"] > audit.MEAN
    assert report["verdict"]["advice"] == audit.ADVICE["collapsed"]


def test_the_few_features_that_are_not_dead_are_no_outliers():
    z = torch.zeros(N, 64, dtype=torch.float64)
    z[:, [3, 9, 40, 41]] = normal(N, 4)
    report = report_on(z)
    assert report["verdict"]["advice"] == audit.ADVICE["collapsed"]
    assert not any("squared length" in note for note in report["notes"])


@pytest.mark.parametrize(("part", "apart"), [(0.5, 4), (0.5, 1.5), (0.9, 2)])
def test_two_groups_are_told_with_their_share(part, apart):
    """A line through two means: its variance is p (1 - p) apart^2, beside that of the rows around them."""
    line = normal(1, M, seed=3)
    line /= line.norm()
    second = (torch.arange(N) % 10 < 10 * part)[:, None]
    z = sphere(N, M) + second * apart * line
    (note,) = (note for note in report_on(z, sample=N)["notes"] if "two groups" in note)
    unit = torch.nn.functional.normalize(z)
    values = torch.linalg.eigvalsh(torch.cov(unit.T, correction=0))
    assert f"; {audit.percent(float(values[-1] / values.sum()))} of the variance" in note


@pytest.mark.parametrize("name", ["one Gaussian direction", "skewed", "four groups", "decay", "few"])
def test_other_shapes_are_not_called_two_groups(name):
    noise, line = 0.2 * normal(N, M), torch.nn.functional.normalize(normal(1, M, seed=3))
    z = {
        "one Gaussian direction": noise + normal(N, 1, seed=4) * line,
        "skewed": noise + (normal(N, 1, seed=4).exp() - 1) * line,
        "four groups": noise + normal(4, M, seed=5)[torch.arange(N) % 4],
        "decay": normal(N, M) * torch.arange(1, M + 1) ** -1.0,
        "few": torch.cat([line, -line]).repeat(5, 1) + 0.1 * normal(10, M),
    }[name]
    assert report_on(z)["beyond"]["two_groups"] is None


def test_norms_of_many_sizes_are_drawn_on_a_logarithmic_axis():
    for sizes, scale in ((1, "linear"), (torch.logspace(0, 6, 300).unsqueeze(1), "log")):
        figure = audit_report.draw(audit.audit(audit_files.of_rows(sphere(300, M) * sizes, "x")))
        assert figure.axes[3].get_xscale() == scale
        assert max(bar.get_height() for bar in figure.axes[3].patches) < (60 if scale == "log" else 301)
        audit_report.plt.close(figure)


@pytest.mark.parametrize("name", ["constant", "uniform"])
def test_the_picture_can_be_drawn_of_extremes(name):
    found = audit.audit(audit_files.of_rows(EMBEDDINGS[name][0][:40], "x"))
    figure = audit_report.draw(found)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "% of the dimensions", "index, largest first", "distance between unit rows", "norm of a row",
    ]  # fmt: skip
    audit_report.plt.close(figure)


# ---- what it refuses -------------------------------------------------------------------------------------------------


def bad_rows(folder):
    z = np.ones((30, 4))
    z[[3, 17], [0, 2]] = np.nan, np.inf
    np.save(folder / "z.npy", z)


def truncated(folder):
    np.save(folder / "z.npy", np.ones((100, 4)))
    os.truncate(folder / "z.npy", 1000)


def differing_shards(folder):
    (folder / "z.npy").mkdir()
    np.save(folder / "z.npy" / "1.npy", np.ones((3, 4)))
    np.save(folder / "z.npy" / "2.npy", np.ones((3, 5)))


def array(values, name="z.npy"):
    return lambda folder: np.save(folder / name, values, allow_pickle=True)


def lines(content):
    return lambda folder: (folder / "z.csv").write_text(content)


def a_run(folder):
    (folder / "z.npy").mkdir()
    (folder / "z.npy" / "encoder.safetensors").touch()


REFUSED = {
    "bad rows": (
        bad_rows, "z.npy",
        r"2 of 30 rows .* NaN, infinite, gigantic or vanishing values: 3, 17, .*; --drop-bad-rows leaves them out",
    ),
    "gigantic": (array(np.full((5, 4), 1e200)), "z.npy", "5 of 5 rows .*: 0, 1, 2, 3, 4, counted from 0$"),
    "overflow": (
        array(np.full((5, 4), np.inf, np.float16)), "z.npy", "4, counted from 0; float16 overflows beyond 65504"
    ),
    "without a header": (lambda f: np.ones((30, 4)).tofile(f / "z.npy"), "z.npy", "no .npy header: save it with np.sa"),
    "one row": (array(np.ones((1, 4))), "z.npy", "holds 1 row of 4 features"),
    "one feature": (array(np.ones((4, 1))), "z.npy", "4 rows of 1 feature:"),
    "a vector": (array(np.ones(5)), "z.npy", r"shape \(5,\): features are a matrix"),
    "images": (array(np.ones((5, 3, 4, 4))), "z.npy", r"shape \(5, 3, 4, 4\)"),
    "no rows": (array(np.ones((0, 4))), "z.npy", r"shape \(0, 4\)"),
    "complex": (array(np.ones((5, 4), complex)), "z.npy", "complex128"),
    "texts": (array(np.full((5, 4), "a")), "z.npy", "features are float16"),
    "objects": (array(np.full((5, 4), None)), "z.npy", "Python objects, which could run code"),
    "objects, packed": (
        lambda folder: np.savez(folder / "z.npz", z=np.full((5, 4), None)), "z.npz", "which could run code",
    ),
    "a pickle": (lambda folder: torch.save(SimpleNamespace(), folder / "z.pt"), "z.pt", "more than tensors"),
    "no torch file": (lambda folder: (folder / "z.pt").write_text("hello"), "z.pt", "no file of torch.save"),
    "sparse": (lambda folder: torch.save(torch.eye(4).to_sparse(), folder / "z.pt"), "z.pt", "sparse"),
    "no tensor": (lambda folder: torch.save({"a": 1}, folder / "z.pt"), "z.pt", "a dict without a tensor"),
    "truncated": (truncated, "z.npy", "cannot read"),
    "not safetensors": (lambda f: (f / "z.safetensors").write_text("hello there"), "z.safetensors", "cannot read"),
    "no zip": (lambda folder: (folder / "z.npz").write_text("hello"), "z.npz", "not a zip file"),
    "two arrays": (
        lambda folder: np.savez(folder / "z.npz", a=np.eye(3), b=np.eye(3)), "z.npz", "choose one with --key: a, b",
    ),
    "ragged": (lines("1,2\n\n3,4\n5\n"), "z.csv", r"line 4 of .*z\.csv has 1 cells, the first 2"),
    "text among numbers": (lines("a,b\n1,2\n3,x\n"), "z.csv", r"column 2 of .*z\.csv holds text \('x'\), in line 3: n"),
    "names of images": (lines("file,a\nimg0,1\nimg1,2\n"), "z.csv", r"column 1 of .*z\.csv holds text \('img0'\)"),
    "no header but names": (lines("img0,1\nimg1,2\n"), "z.csv", r"column 1 of .*z\.csv holds text \('img0'\)"),
    "a first row with a gap": (lines(",1,2\n3,4,5\n6,7,8\n"), "z.csv", r"column 1 of .*z\.csv holds an empty cell"),
    "a first row with NA": (lines("1,NA\n3,4\n"), "z.csv", r"column 2 of .*z\.csv holds text \('NA'\)"),
    "a first row of gaps": (lines(",\n3,4\n"), "z.csv", r"column 1 of .*z\.csv holds an empty cell"),
    "wider than the header": (lines(",a,b\n0,1,5,2\n1,3,5,4\n"), "z.csv", "line 2 of .* has 4 cells, the first 3"),
    "an index alone": (lines(",a,b\n0,1,2\n1\n2,3,4\n"), "z.csv", "line 3 of .* has 1 cells, the first 3"),
    "a row of tabs": (lambda folder: (folder / "z.tsv").write_text("1\t2\n\t\n3\t4\n"), "z.tsv", "an empty cell"),
    "an empty cell": (lines("1,2\n3,\n"), "z.csv", r"column 2 of .*z\.csv holds an empty cell, in line 2: n"),
    "no number": (lines("a,b\n"), "z.csv", r"z\.csv holds no numbers"),
    "no line": (lines(""), "z.csv", r"z\.csv holds no numbers"),
    "unknown kind": (lambda folder: (folder / "z.xlsx").touch(), "z.xlsx", "cannot tell"),
    "missing": (lambda folder: None, "z.npy", "there is no "),
    "empty folder": (lambda folder: (folder / "z.npy").mkdir(), "z.npy", "no features in"),
    "differing shards": (differing_shards, "z.npy", r"1\.npy has 4 features, .*2\.npy 5"),
    "a run": (a_run, "z.npy", "audit it with --encoder"),
}  # fmt: skip


def check_refused(status, pattern, folder, capsys):
    """Exit status 2, one line, nothing written."""
    error = capsys.readouterr().err
    assert status == 2
    assert re.fullmatch(rf"audit\.py: error: .*{pattern}.*\n", error), error
    assert not (folder / "report").exists()


@pytest.mark.parametrize("case", REFUSED)
def test_bad_features(case, tmp_path, capsys):
    make, name, pattern = REFUSED[case]
    make(tmp_path)
    check_refused(start(tmp_path / name, report=tmp_path / "report"), pattern, tmp_path, capsys)


def test_bad_companions(tmp_path, capsys):
    for name, shape in {"z": (30, 4), "short": (29, 4), "narrow": (30, 3), "y": 30, "few": 29}.items():
        np.save(tmp_path / f"{name}.npy", np.random.default_rng(0).random(shape))
    np.save(tmp_path / "bad.npy", np.full((30, 4), np.nan))
    np.save(tmp_path / "number.npy", 3)
    for option, name, pattern in [
        ("--labels", "few", r"labels of shape \(29,\) for 30 rows"),
        ("--labels", "short", "labels of shape"),
        ("--labels", "number", r"labels of shape \(\) for 30 rows"),
        ("--labels", "absent", "there is no "),
        ("--labels", "long" * 100, "File name too long"),
        ("--labels", "absent.of.no.kind", "there is no "),
        ("--views", "short", "the views are 29 x 4, the features 30 x 4"),
        ("--views", "narrow", "the views are 30 x 3, the features 30 x 4"),
        ("--views", "bad", "30 of 30 sampled rows"),
        ("--key", "absent", r"--key names an array in a file that holds several, not in \.npy, \.csv, \.tsv"),
    ]:
        value = name if option == "--key" else tmp_path / (name if "." in name else f"{name}.npy")
        status = start(tmp_path / "z.npy", option, value, report=tmp_path / "report")
        check_refused(status, pattern, tmp_path, capsys)
    np.save(tmp_path / "column.npy", np.arange(30)[:, None] % 3)  # of one feature: what it means is clear
    assert start(tmp_path / "z.npy", "--labels", tmp_path / "column.npy") == 0
    capsys.readouterr()
    (tmp_path / "shards").mkdir()
    for name in ("²1.npy", "10.npy"):  # a digit that is no number
        np.save(tmp_path / "shards" / name, np.eye(15, 4))
    assert start(tmp_path / "shards", "--labels", tmp_path / "column.npy") == 0
    capsys.readouterr()
    np.savez(tmp_path / "labels.npz", a=np.zeros(30), b=np.zeros(30))
    status = start(tmp_path / "z.npy", "--labels", tmp_path / "labels.npz", report=tmp_path / "report")
    check_refused(status, "several arrays: choose one with --labels-key: a, b", tmp_path, capsys)
    np.savez(tmp_path / "two.npz", a=np.load(tmp_path / "z.npy"), b=np.eye(3))
    for features, views in (("two.npz", "z.npy"), ("z.npy", "two.npz")):  # one of them needs the name
        assert start(tmp_path / features, "--views", tmp_path / views, "--key", "a") == 0
    np.savez(tmp_path / "views.npz", a=np.load(tmp_path / "z.npy"), b=-np.load(tmp_path / "z.npy"))
    two = (tmp_path / "views.npz", "--views", tmp_path / "views.npz", "--key", "a")
    capsys.readouterr()
    one = (tmp_path / "z.npy", "--views", tmp_path / "z.npy")
    for same in (two, one):
        status = start(*same, report=tmp_path / "report")
        check_refused(status, "itself: give other features, or another array by --views-key", tmp_path, capsys)
    assert start(*two, "--views-key", "b") == 0
    assert re.search(r"alignment A +4\.0000", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ("z.npy --layer backbone", "--layer goes with --encoder"),
        ("--timm model --layer projector", "--layer goes with --encoder"),
        ("z.npy --split test", "--split goes with --encoder or --timm"),
        ("z.npy --dataset digits", "--dataset goes with --encoder or --timm"),
        ("z.npy --data-dir images", "--data-dir goes with --encoder or --timm"),
        ("--encoder run --key z", "--key goes with FEATURES or --views"),
        ("--encoder run --drop-columns a", "--drop-columns goes with FEATURES"),
        ("z.npy --labels-key y", "--labels-key goes with --labels"),
    ],
)
def test_options_without_effect(arguments, pattern, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    with pytest.raises(SystemExit) as end:
        start(*arguments.split())
    check_refused(end.value.code, pattern, tmp_path, capsys)


def test_labels_are_chosen_among_several(tmp_path, capsys):
    z, y = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 4
    np.save(tmp_path / "z.npy", z)
    np.savez(tmp_path / "all.npz", z=z, y=y, ids=np.arange(40))
    np.save(tmp_path / "y.npy", y)
    (tmp_path / "y.csv").write_text("file,label\n" + "".join(f"{k}.png,class {c}\n" for k, c in enumerate(y)))
    (tmp_path / "y.TXT").write_text("".join(f"class {c}\n" for c in y))
    expected = audit_files.read_labels(tmp_path / "y.npy", 40)
    for name, key in (("all.npz", "y"), ("y.csv", "label"), ("y.TXT", None)):
        assert torch.equal(audit_files.read_labels(tmp_path / name, 40, key), expected)
    assert start(tmp_path / "z.npy", "--labels", tmp_path / "y.csv", "--labels-key", "label") == 0
    capsys.readouterr()
    for name, key, pattern in (
        ("y.csv", "class", r"no column of .*y\.csv is called class: file, label"),
        ("all.npz", "x", "no array is called x: z, y, ids"),
        ("y.npy", "y", r"--labels-key names an array or a column of several, not in \.npy"),
        (".", "y", "is a folder: labels are one file"),
    ):
        status = start(tmp_path / "z.npy", "--labels", tmp_path / name, "--labels-key", key)
        check_refused(status, pattern, tmp_path, capsys)
    (tmp_path / "y.csv").write_text("file,label\n1.png\n")
    status = start(tmp_path / "z.npy", "--labels", tmp_path / "y.csv", "--labels-key", "label")
    check_refused(status, "has lines of 1 cells below a header of 2", tmp_path, capsys)
    status = start(tmp_path / "z.npy", "--labels", tmp_path / "y.csv")
    check_refused(status, "has 2 columns: choose one with --labels-key", tmp_path, capsys)


@pytest.mark.parametrize(
    ("y", "caution"),
    [
        (np.zeros(300), "the sampled rows have one label: kNN accuracy says nothing"),
        (np.arange(300), "300 different labels of 300 sampled rows: are they classes?"),
        (np.arange(300) % 7, None),
    ],
)
def test_labels_that_tell_nothing_are_noted(y, caution):
    features = audit_files.of_rows(normal(300, 8), "z", y)
    notes = audit.audit(features).report["notes"]
    assert [note for note in notes if "label" in note] == ([caution] if caution else [])


def test_bad_rows_of_the_views_are_dropped_with_their_pairs(tmp_path, capsys):
    z = np.random.default_rng(0).normal(size=(60, 4))
    views = z + 0.1
    np.save(tmp_path / "z.npy", z)
    whole = views.copy()
    views[[3, 50]] = np.nan
    np.save(tmp_path / "v.npy", views)
    both = (tmp_path / "z.npy", "--views", tmp_path / "v.npy")
    check_refused(start(*both), "2 of 60 sampled rows of .* values; --drop-bad-rows leaves them out", tmp_path, capsys)
    assert start(*both, "--drop-bad-rows", report=tmp_path / "r") == 0
    report = json.loads((tmp_path / "r" / "audit.json").read_text())
    assert (report["n"], report["views"]["rows"], report["views"]["dropped"]) == (60, 58, 2)
    assert "2 sampled rows, not finite, gigantic or vanishing in the views, are left out there" in report["notes"]
    kept = np.setdiff1d(np.arange(60), [3, 50])
    np.save(tmp_path / "z58.npy", z[kept])
    np.save(tmp_path / "v58.npy", whole[kept])
    assert start(tmp_path / "z58.npy", "--views", tmp_path / "v58.npy", report=tmp_path / "s") == 0
    alone = json.loads((tmp_path / "s" / "audit.json").read_text())
    assert report["views"]["alignment"] == pytest.approx(alone["views"]["alignment"], rel=1e-12)
    capsys.readouterr()
    np.save(tmp_path / "v.npy", np.full((60, 4), np.inf))
    check_refused(start(*both, "--drop-bad-rows"), "0 finite rows of those sampled left", tmp_path, capsys)


def test_a_mean_that_decides_is_named_below_half_of_the_length():
    """Rows behind a ReLU: every direction is in use, yet W2 says half, for a common mean."""
    z = (normal(3000, 64) + 0.5).relu()
    report = report_on(z)
    w2 = report["w2"]
    assert w2["covariance_part"] < w2["mean_part"] < 0.5
    assert w2["dimensions"] < 0.6 * 64 < report["spectrum"]["dimensions"]
    assert "of the squared length is a common mean" in report["verdict"]["why"]
    assert "common mean" not in report_on(normal(3000, 64) * (torch.arange(64) < 32))["verdict"]["why"]


@pytest.mark.parametrize(("rank", "n"), [(64, 3000), (8, 3000), (64, 40)])
def test_what_a_common_mean_hides_is_told(rank, n):
    z = normal(n, rank) @ random_basis(64)[:rank] * (1 + normal(n, 1, seed=2).abs())
    assert "centred" not in report_on(z)
    report = report_on(z + 20 * normal(1, 64, seed=3), sample=2048)
    centred = report["centred"]["dimensions"]
    assert centred == pytest.approx(report_on(z - z.mean(0), sample=2048)["verdict"]["dimensions"], rel=0.05)
    if n > 64:
        assert report["verdict"]["word"] == "collapsed"
        assert f"; minus that mean about {audit.rounded(centred)} of 64 would be in use" in report["verdict"]["why"]


def test_shares_of_w2_and_of_the_length_are_told_apart():
    report = report_on(normal(N, M) + 5)
    page, w2 = audit_report.text(report), report["w2"]
    share = audit.percent(w2["mean_part"] / w2["w2"] ** 2)
    assert f"   {share} of W2^2 from the common mean, " in page
    assert share != audit.percent(w2["mean_part"]) == "96 %"
    assert re.search(r"^common mean +96 %   of the squared length; uniform rows 0.083 %$", page, re.MULTILINE)
    assert "96 % of the squared length is a common mean" in page


def test_codes_with_a_common_mean_are_told_to_lose_it():
    random = np.random.default_rng(0)
    for z, what in (
        (random.integers(0, 2, (500, 64)), "only 0 and 1"),
        (random.integers(0, 256, (500, 64)).astype(np.uint8), "whole numbers from 0 on"),
        (random.integers(0, 256, (500, 64)) + 0.5, None),
        (random.integers(0, 2, (500, 64)) * 2 - 1, None),
        (np.ones((500, 64), np.uint8), None),
    ):
        told = [note for note in report_on(z)["notes"] if "subtract" in note]
        note = f"the sampled rows hold {what}: subtract the mean, or the zero point, and audit again"
        assert told == ([note] if what else [])


def test_rows_in_memory_are_a_matrix():
    z = normal(50, 4).requires_grad_()
    assert audit.audit(audit_files.of_rows(z, "z")).report["n"] == 50
    for bad, pattern in (
        (z[0], r"z: features are an array or tensor \(rows, features\), not one of shape \(4,\)"),
        (z[None], r"not one of shape \(1, 50, 4\)"),
        ([[1.0, 2.0]], "not one of type list"),
        (torch.empty(0, 4), r"not one of shape \(0, 4\)"),
        (z.detach().to_sparse(), "z: features are a dense tensor"),
        (z.detach().to(torch.complex64), "z holds complex64: features are float16 to float64"),
        (np.array([["a", "b"]], dtype=object), "z holds object"),
        (np.ones((3, 2), np.longdouble), "z holds (float128|longdouble)"),
        (np.ma.masked_greater(np.arange(6.0).reshape(3, 2), 4), "z: some features are masked"),
    ):
        with pytest.raises(UserError, match=pattern):
            audit_files.of_rows(bad, "z")
    other_end = z.detach().numpy().astype(">f4")
    assert audit.audit(audit_files.of_rows(other_end, "z")).report["w2"] == pytest.approx(
        audit.audit(audit_files.of_rows(z.float(), "z")).report["w2"]
    )
    with pytest.raises(UserError, match="a sample of 1: an audit needs two rows"):
        audit.audit(audit_files.of_rows(z, "z"), sample=1)


def test_labels_in_memory_are_one_a_row():
    z, y = normal(4, 3), [2, 0, 0, 7]
    for labels in (y, np.array(y)[:, None], torch.tensor(y), np.array(["c", "a", "a", "d"], dtype=object)):
        assert audit_files.of_rows(z, "z", labels).labels.tolist() == [1, 0, 0, 2]
    for bad, pattern in (
        (y[:3], r"z: the array holds labels of shape \(3,\) for 4 rows"),
        ([1.0, float("nan"), 0, 0], "holds no label for 1 of 4 rows"),
        (np.array(["a", None, "", "b"], dtype=object), "holds no label for 2 of 4 rows"),
        (np.array(["a", 1, 2, 3], dtype=object), "holds labels of several kinds"),
    ):
        with pytest.raises(UserError, match=pattern):
            audit_files.of_rows(z, "z", bad)


def test_endings_of_names_may_be_large_and_pipes_are_refused(tmp_path, capsys):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(40, 4)))
    (tmp_path / "z.npy").rename(tmp_path / "Z.NPY")
    (tmp_path / "Z.CSV").write_text("1,2\n3,4\n5,7\n")
    assert start(tmp_path / "Z.NPY") == 0
    assert start(tmp_path / "Z.CSV") == 0
    capsys.readouterr()
    os.mkfifo(tmp_path / "pipe.csv")
    check_refused(start(tmp_path / "pipe.csv"), "is a pipe or a device.*: give a file", tmp_path, capsys)


@pytest.mark.parametrize(
    "text", ["# my features\n1,2\n3,4\n5,7\n", "# a\n# of, two, lines\nx,y\n1,2\n3,4\n5,7\n", "# x,y\n1,2\n3,4\n5,7\n"]
)
def test_comments_before_a_table_are_passed_over(tmp_path, text):
    (tmp_path / "z.csv").write_text(text)
    features = audit_files.read(tmp_path / "z.csv")
    assert torch.cat(list(features.chunks())).tolist() == [[1, 2], [3, 4], [5, 7]]


def test_bad_rows_can_be_dropped(tmp_path, capsys):
    bad_rows(tmp_path)
    np.save(tmp_path / "y.npy", np.arange(30))
    assert start(tmp_path / "z.npy", "--drop-bad-rows", "--labels", tmp_path / "y.npy", report=tmp_path / "r") == 0
    report = json.loads((tmp_path / "r" / "audit.json").read_text())
    assert (report["n"], report["sample"], report["rows"]["dropped"]) == (28, 28, 2)
    assert report["verdict"]["why"] == "all rows are equal"
    np.save(tmp_path / "z.npy", np.full((5, 3), np.nan))
    check_refused(start(tmp_path / "z.npy", "--drop-bad-rows"), "0 finite rows left", tmp_path, capsys)


def test_a_report_that_cannot_be_written_is_told_before_the_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    status = start(tmp_path / "missing.npy", report=tmp_path / "file" / "r")
    check_refused(status, "cannot write into", tmp_path, capsys)


# ---- encoders --------------------------------------------------------------------------------------------------------


def trained_run(folder):
    """What a training run leaves, untrained; the network."""
    settings = Settings(**(PRESETS["digits"] | {"dataset": "digits", "width": 2, "hidden_dim": 16, "dim": 8}))
    torch.manual_seed(0)
    backbone = backbones.resnet18(2)
    networks = nn.ModuleDict({"backbone": backbone, "projector": backbones.projector(backbone.feature_dim, 16, 8)})
    images = data.load("digits", None)
    folder.mkdir()
    config = {"method": "BYOL", "settings": asdict(settings)}
    save_encoder(folder / "encoder.safetensors", networks, config, images.mean, images.std)
    return networks.eval()


def test_a_trained_run_is_audited_on_its_own_data(tmp_path):
    networks = trained_run(tmp_path / "run")
    images = data.load("digits", None)
    for layer, network in (("backbone", networks["backbone"]), ("projector", nn.Sequential(*networks.values()))):
        features = audit_encoders.of_run(tmp_path / "run", None, None, "test", layer)
        with torch.no_grad():
            expected = network(augment.normalize(images.test.images, images.mean, images.std))
        torch.testing.assert_close(torch.cat(list(features.chunks())), expected)
        assert (features.n, features.m) == expected.shape
        assert torch.equal(features.labels, images.test.labels)
        assert features.name == f"{layer} of BYOL on the 355 test images of digits"


def test_another_data_set_is_not_looked_for_beside_the_run_s_own(tmp_path, monkeypatch):
    trained_run(tmp_path / "run")
    asked, images = [], data.load("digits", None)
    monkeypatch.setattr(audit_encoders.data, "load", lambda *given, **options: asked.append(given) or images)
    encoder = audit_encoders.load_encoder(tmp_path / "run")
    encoder.config["settings"] |= {"dataset": "folder", "data_dir": "own"}
    monkeypatch.setattr(audit_encoders, "load_encoder", lambda _: encoder)
    for name, folder in ((None, None), ("folder", None), ("cifar10", None), ("cifar10", "other"), (None, "moved")):
        audit_encoders.of_run(tmp_path / "run", name, folder, "test", "projector")
    assert [given[:2] for given in asked] == [
        ("folder", "own"), ("folder", "own"), ("cifar10", None), ("cifar10", "other"), ("folder", "moved"),
    ]  # fmt: skip
    del encoder.config["settings"]["data_dir"]
    with pytest.raises(UserError, match="does not tell the data_dir of its run"):
        audit_encoders.of_run(tmp_path / "run", None, None, "test", "projector")


def test_other_images_in_the_run_s_folder_are_refused(tmp_path, monkeypatch):
    trained_run(tmp_path / "run")
    images = data.load("digits", None)
    encoder = audit_encoders.load_encoder(tmp_path / "run")
    encoder.config["images"] = images.record()
    encoder.config["settings"] |= {"dataset": "folder", "data_dir": "own", "dataset_name": "my pets"}
    monkeypatch.setattr(audit_encoders, "load_encoder", lambda _: encoder)
    monkeypatch.setattr(audit_encoders.data, "load", lambda *_, **__: images)
    name = audit_encoders.of_run(tmp_path / "run", None, None, "test", "projector").name
    assert name == "projector of BYOL on the 355 test images of my pets"
    encoder.config["images"]["test"] += 1
    with pytest.raises(UserError, match=r"^the run saw other images: test \(in the run's --data-dir own; "):
        audit_encoders.of_run(tmp_path / "run", None, None, "test", "projector")
    assert audit_encoders.of_run(tmp_path / "run", None, "there", "test", "projector").name.endswith("of digits")


@pytest.mark.parametrize("wrong", [{"uniformity": [1]}, {"data_dir": 5}, {"dataset": {}}, {"method": None}], ids=str)
def test_a_run_that_tells_no_text_is_refused(tmp_path, monkeypatch, wrong):
    trained_run(tmp_path / "run")
    encoder = audit_encoders.load_encoder(tmp_path / "run")
    encoder.config["settings"] |= wrong
    encoder.config |= wrong
    monkeypatch.setattr(audit_encoders, "load_encoder", lambda _: encoder)
    with pytest.raises(UserError, match=r"of its run that is no text$"):
        audit_encoders.of_run(tmp_path / "run", None, None, "test", "projector")


def test_a_run_s_folder_of_images_that_is_gone_is_told_with_where_it_was_looked_for(tmp_path, monkeypatch):
    trained_run(tmp_path / "run")
    encoder = audit_encoders.load_encoder(tmp_path / "run")
    encoder.config["settings"] |= {"dataset": "folder", "data_dir": "gone"}
    monkeypatch.setattr(audit_encoders, "load_encoder", lambda _: encoder)
    with pytest.raises(UserError, match=r"gone.* \(in the run's --data-dir gone; --data-dir names another\)$"):
        audit_encoders.of_run(tmp_path / "run", None, None, "test", "projector")


def npy_header(shape, version=b"\x01\x00", length=2):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return np.lib.format.MAGIC_PREFIX + version + len(header).to_bytes(length, "little") + header


@pytest.mark.parametrize("rows", [10**15, 2**62, 2**63])
@pytest.mark.parametrize("name", ["z.npy", "z.npz", "z.pt"])
def test_rows_that_a_file_only_promises_are_told_in_one_line(tmp_path, capsys, name, rows):
    if name == "z.pt":  # a view of one number
        torch.save(torch.ones(1).expand(min(rows, 2**60), 4), tmp_path / name)
    elif name == "z.npz":
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("z.npy", npy_header((rows, 4)) + bytes(64))
    else:
        (tmp_path / name).write_bytes(npy_header((rows, 4)) + bytes(64))
    assert start(tmp_path / name) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_header_that_unpacks_to_gigabytes_is_not_read(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "z.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        bomb = np.lib.format.MAGIC_PREFIX + b"\x02\x00" + (2**24).to_bytes(4, "little") + b" " * 2**24
        archive.writestr("z.npy", bomb)
        archive.writestr("y.npy", npy_header((2, 2), b"\x02\x00", 4) + bytes(16))
    assert start(tmp_path / "z.npz") == 2
    assert "the header of an array is too long" in capsys.readouterr().err


def test_no_encoder(tmp_path, capsys):
    check_refused(start("--encoder", tmp_path), "there is no trained encoder", tmp_path, capsys)
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "encoder.safetensors")
    check_refused(start("--encoder", tmp_path), "is no encoder that a run has exported", tmp_path, capsys)
    (tmp_path / "encoder.safetensors").unlink()
    trained_run(tmp_path / "run")
    status = start("--encoder", tmp_path / "run", "--dataset", "folder")
    check_refused(status, "--dataset folder needs --data-dir", tmp_path, capsys)


def test_timm_models(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    check_refused(start("--timm", "vit"), "needs the package timm: pip install timm", tmp_path, capsys)

    class Mean(nn.Module):  # of each channel, and how large the image is
        def forward(self, x):
            return torch.cat([x.mean((2, 3)), torch.full((len(x), 1), float(x.shape[2]))], 1)

    def create(name, pretrained, num_classes):
        assert (pretrained, num_classes) == (True, 0)
        if name != "known":
            raise RuntimeError(f"Unknown model ({name})")
        return Mean()

    config = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 1.0), "input_size": (3, 12, 12)}
    fake = SimpleNamespace(create_model=create, data=SimpleNamespace(resolve_model_data_config=lambda network: config))
    monkeypatch.setitem(sys.modules, "timm", fake)
    check_refused(start("--timm", "other"), r"timm cannot load other: Unknown model", tmp_path, capsys)
    features = audit_encoders.of_timm("known", "digits", None, "test")
    z = torch.cat(list(features.chunks()))
    assert z.shape == (355, 4) == (features.n, features.m)
    assert (z[:, 3] == 12).all()
    grey = data.load("digits", None).test.images.float().mean((1, 2, 3)) / 255
    torch.testing.assert_close(z[:, :3], (grey[:, None] - 0.5) / torch.tensor([0.25, 0.5, 1.0]), atol=0.02, rtol=0)


# ---- the program as it is started ------------------------------------------------------------------------------------


def test_help_and_mistakes_are_told_before_torch_loads(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    for arguments, status in ((["--help"], 0), ([], 2), (["a.npy", "--timm", "b"], 2), (["a.npy", "--sample", "1"], 2)):
        done = subprocess.run(
            [sys.executable, PROGRAM, *arguments], env=environment() | {"PYTHONPATH": str(tmp_path)},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert "usage: audit.py" in done.stdout if status == 0 else done.stderr.count("\n") == 1


MEASURE = """
import pathlib
import sys
import torch
from wassersteinssl import audit, audit_files
from wassersteinssl.device import peak_memory
small, large = (audit_files.read(pathlib.Path(name)) for name in sys.argv[1:])
peaks = []
for features in (small, large):
    report = audit.audit(features, sample=256).report
    peaks.append(peak_memory(torch.device("cpu")))
print(report["n"], report["norms"]["zero_rows"], peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files, peak memory in bytes")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    for name, n in {"small": 40_000, "large": 250_000}.items():
        header = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.float16, (n, 256))  # sparse: zeros
        header[7] = 1
    n, zero, growth = map(int, printed(MEASURE, tmp_path / "small.npy", tmp_path / "large.npy").split())
    assert (n, zero) == (250_000, 249_999)
    assert growth < 60e6  # the file has 128 MB, its numbers 512 MB in float64


KEPT = """
import torch
from wassersteinssl import audit, audit_files
from wassersteinssl.device import peak_memory
torch.set_num_threads(1)
rows = torch.randn(4096, 64).half()
for count in (10, 1500):
    chunks = lambda: (rows.clone() for _ in range(count))
    audit.audit(audit_files.Features("rows", count * len(rows), 64, "float16", chunks), sample=2048)
    print(peak_memory(torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory in bytes")
def test_rows_kept_from_many_chunks_do_not_hold_on_to_the_chunks_memory():
    few, many = map(int, printed(KEPT).split())
    assert many - few < 250e6  # 49 MB are a number for each row; small tensors in a list made it 660 MB


# ---- the notebook ----------------------------------------------------------------------------------------------------


def test_the_notebook_runs_and_its_verdicts_are_the_committed_ones(tmp_path):
    notebook = REPOSITORY / "EmpiricalStudy" / "Audit" / "IsYourEmbeddingCollapsed.ipynb"
    committed = nbformat.read(notebook, 4)
    assert check_executed(committed) == 2
    executed = FIGURES.execute(notebook, tmp_path)
    assert check_executed(executed) == 2
    assert (tmp_path / "IsYourEmbeddingCollapsed.png").stat().st_size > 20_000
    expected = [("pixels", "PARTLY COLLAPSED"), ("whitened", "HEALTHY"), ("thin", "COLLAPSED"),
                ("code", "HEALTHY IN TWO MOMENTS, BUT CLUMPED")]  # fmt: skip
    for content in (committed, executed):
        first = next(cell for cell in content.cells if cell.cell_type == "code")
        assert re.findall(r"^(\w+): ([A-Z ,]+)$", first.outputs[0].text, re.MULTILINE) == expected


def test_one_finite_row_of_the_views_is_too_few():
    z = normal(60, 4).numpy()
    views = np.full_like(z, np.nan)
    views[7] = z[7]
    features, other = (audit_files.of_rows(rows, name) for rows, name in ((z, "z"), (views, "views")))
    with pytest.raises(UserError, match="1 finite row of those sampled left"):
        audit.audit(features, views=other, drop_bad_rows=True)


def test_d_prime_needs_draws_that_vary():
    assert audit._d_prime(1.0, torch.tensor([0.5, 0.5 + 1e-12], dtype=torch.float64)) is None
    assert audit._d_prime(1.0, torch.tensor([0.4, 0.6], dtype=torch.float64)) == pytest.approx(0.5 / 0.02**0.5)


@pytest.mark.parametrize(
    ("k", "word"), [(9, "collapsed"), (12, "partly collapsed"), (55, "partly collapsed"), (66, "healthy")]
)
def test_the_verdict_turns_at_a_tenth_and_at_six_tenths_of_the_dimensions(k, word):
    z = torch.zeros(3000, 100, dtype=torch.float64)
    z[:, :k] = normal(3000, k)
    assert report_on(z)["verdict"]["word"] == word


def test_a_label_is_voted_on_by_many_neighbours():
    """Of labels that are wrong for three rows in ten a vote is right for seven; the nearest alone for 0.7^2 + 0.3^2."""
    cluster = np.arange(800) % 2
    z = sphere(800, M) + 9 * torch.from_numpy(2 * cluster[:, None] - 1)
    wrong = np.random.default_rng(0).random(800) < 0.3
    assert report_on(z, labels=cluster ^ wrong, sample=800)["labels"]["knn1"] == pytest.approx(70, abs=5)


def test_the_most_frequent_label_s_share_is_of_the_rows_that_are_asked():
    labels = np.arange(400) % 4 == 0  # three quarters are one class
    found = report_on(normal(400, 8), labels=labels.astype(int))["labels"]
    assert found["asked"] == 200
    assert found["most_frequent"] == pytest.approx(75, abs=8)


def test_audits_are_compared_side_by_side(tmp_path, capsys):
    program = load(PROGRAM)
    for name, z in (("a|b", normal(300, 8) + 3), ("after", normal(300, 16))):
        np.save(tmp_path / f"{name}.npy", z.numpy())
        assert program.run(program.parse([str(tmp_path / f"{name}.npy"), "--report", str(tmp_path / name)])) == 0
    capsys.readouterr()
    assert program.run(program.parse(["--compare", str(tmp_path / "a|b"), str(tmp_path / "after")])) == 0
    before, after = capsys.readouterr().out.splitlines()[2:]
    share = 9 / 10  # of the squared length, in the mean
    assert "/a\\|b | 300 x 8 | collapsed | " in before
    assert float(before.split(" | ")[4].removesuffix(" %")) == pytest.approx(100 * share, abs=2)
    assert "/after | 300 x 16 | healthy | " in after
    assert program.run(program.parse(["--compare", str(tmp_path / "after"), str(tmp_path / "after")])) == 0
    assert f"/after ({tmp_path / 'after'}) | 300 x 16" in capsys.readouterr().out
    with pytest.raises(UserError, match="none holds no audit of --report: No such file"):
        program.run(program.parse(["--compare", str(tmp_path / "none")]))
    (tmp_path / "after" / "audit.json").write_text('{"w2": 3}')
    with pytest.raises(UserError, match=r"audit.json is damaged"):
        program.run(program.parse(["--compare", str(tmp_path / "after")]))
    report = json.loads((tmp_path / "a|b" / "audit.json").read_text())
    for wrong in ({"name": [1]}, {"verdict": {"word": [1]}}, {"verdict": {"word": 5}}):
        (tmp_path / "after" / "audit.json").write_text(json.dumps(report | wrong))
        with pytest.raises(UserError, match=r"audit.json is damaged"):
            program.run(program.parse(["--compare", str(tmp_path / "after")]))
    capsys.readouterr()
    (tmp_path / "after" / "audit.json").write_text(json.dumps(report | {"verdict": {"word": "\x1b[2J\n"}, "n": "\n"}))
    assert program.run(program.parse(["--compare", str(tmp_path / "after")])) == 0
    assert " | ? x 8 | ?[2J? | " in capsys.readouterr().out.splitlines()[2]


def test_a_comparison_takes_nothing_else(capsys):
    program = load(PROGRAM)
    for command in (["z.npy", "--compare", "a"], ["--compare", "a", "--sample", "9"]):
        with pytest.raises(SystemExit):
            program.parse(command)
        assert "--compare" in capsys.readouterr().err

"""The studies of collapse: each script as a user starts it, its data against theory, its notebook on that data."""

import csv
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import load
from study_checks import check_committed_notebook, check_data, check_notebook_on, study

from wassersteinssl import studies
from wassersteinssl.uniformity import lu_uniformity
from wassersteinssl.w2 import w2_floor, w2_minimum

PATHS = {  # study, figure, samples at the full size and here, lines of the data file at the full size
    "level": ("DimensionalCollapseDegrees/AnalysisOnCollapseLevel", "SensitivityToCollapseLevel", 20_000, 300, 72),
    "dimension": ("Dimensions/AnalysisOnDimension", "SensitivityToDimensions", 50_000, 300, 34),
    "fcc": ("FeatureCloningConstraint/AnalysisOnProperty4", "AnalysisOnFCC", 50_000, 1500, 33),
    "fbc": ("FeatureBabyConstraint/AnalysisOnProperty5", "AnalysisOnFBC", 50_000, 1500, 33),
    "icc": ("InstanceCloningConstraint/AnalysisOnProperty3", "AnalysisOnICC", 1_000, 300, 11),
    "floor": ("FiniteSampleFloor/AnalysisOnFloor", "FiniteSampleFloor", 50_000, 100, 85),
    "batch": ("BatchSize/AnalysisOnBatchSize", "BatchSizeStability", 16_384, 600, 9),
}
STUDIES = {
    name: study(f"EmpiricalStudy/{path}", figure, samples=samples, few=few)
    for name, (path, figure, samples, few, _) in PATHS.items()
}
LINES = {name: lines for name, (*_, lines) in PATHS.items()}
WITH_THEORY = ("level", "dimension", "fcc", "fbc", "icc")
names = pytest.mark.parametrize("name", STUDIES)


@pytest.fixture(scope="module")
def reduced(few_samples):
    """reduced(name): the study's data file from few samples, by the script as a user starts it."""
    return lambda name: few_samples(STUDIES[name].script, "--samples", STUDIES[name].few)


def run(name, folder, samples, seed=12):
    """The study in this process: the data and settings that it wrote."""
    options = Namespace(samples=samples, seed=seed, device="cpu", out=folder, name="data.csv")
    return studies.read(load(STUDIES[name].script).study(options))


# ---- data ----


@names
def test_a_file_tells_what_made_it(name, reduced):
    check_data(STUDIES[name], reduced(name))


@pytest.mark.parametrize("name", WITH_THEORY)
def test_few_samples_agree_with_their_theory(name, reduced):
    data, settings = studies.read(reduced(name))
    n = settings["samples"]
    known = data["k"] > 0
    clones = 1 + data.get("clones", 0 * data["k"]) if name == "fcc" else 1 + 0 * data["k"]
    blocks = data.get("blocks", 0 * data["k"])
    for line in np.flatnonzero(known):
        m, k, c, b = (int(column[line]) for column in (data["m"], data["k"], clones, blocks))
        assert data["eta"][line] == pytest.approx(1 - k / m)
        assert data["w2_theory"][line] == pytest.approx(np.sqrt(c + 1 - 2 * np.sqrt(k / (m * (1 + b)))))
        assert data["w2_finite"][line] == studies.w2_finite(n, k, (1 + b) * m, clones=c)
        assert data["w2"][line] == pytest.approx(data["w2_finite"][line], rel=0.01)
        if name != "icc":
            assert data["lu_theory"][line] == studies.lu_theory(k, t=2 * c)
            few_pairs_count = c > 4  # exp(-2 c d^2) of a few near pairs outweighs all others
            assert data["lu"][line] == pytest.approx(data["lu_theory"][line], rel=0.06 if few_pairs_count else 0.02)
    assert known.sum() == len(known) - (3 if name == "level" else 0)


def test_the_collapse_level_has_a_named_gap_and_no_kinks(reduced):
    data, _ = studies.read(reduced("level"))
    none = data["eta"] == 1
    assert none.sum() == 3
    assert np.isnan(data["w2"][none]).all()
    assert np.isnan(data["lu"][none]).all()
    assert set(data["gap"][none]) == {"all zero: no direction"}
    assert set(data["gap"][~none]) == {""}
    for m in (200, 500, 1000):  # the eta that were asked for: m is a multiple of 100
        percent = 100 * data["eta"][data["m"] == m]
        np.testing.assert_allclose(percent, [0, 1, 2, 3, *range(5, 101, 5)], atol=1e-9)
    with reduced("level").open() as file:  # an empty cell, which any reader takes for a missing value
        file.readline()
        assert {line["w2"] for line in csv.DictReader(file) if line["eta"] == "1.0"} == {""}


def test_the_dimensions_are_the_papers_as_far_as_the_rows_go(reduced):
    data, settings = studies.read(reduced("dimension"))
    for eta in (0.25, 0.5, 0.75):
        m = data["m"][data["eta"] == eta]
        assert m.tolist() == [2**i for i in range(1 if eta == 0.5 else 2, 13) if 4 * 2**i <= settings["samples"]]
    quarter, half = ((data["eta"] == eta) & (data["k"] == 16) for eta in (0.75, 0.5))
    assert data["lu"][quarter] == data["lu"][half]  # one sample for both
    assert data["w2"][quarter] > data["w2"][half]


def test_the_constraints_are_those_of_the_paper(reduced):
    for name, x in (("fcc", "clones"), ("fbc", "blocks")):
        data, _ = studies.read(reduced(name))
        for eta in (0.25, 0.5, 0.75):
            row = data["eta"] == eta
            assert data[x][row].tolist() == list(range(11))
            assert (np.diff(data["w2"][row]) > 0).all()
            change = np.diff(data["lu"][row])
            assert (change < -0.1).all() if name == "fcc" else (change == 0).all()
    data, _ = studies.read(reduced("icc"))
    assert data["clones"].tolist() == list(range(11))
    np.testing.assert_allclose(data["w2"], data["w2"][0], rtol=1e-12)
    assert (np.diff(data["lu"]) > 0).all()
    np.testing.assert_allclose(data["lu"], data["lu_theory"], rtol=1e-6)


def test_lu_of_clones_in_one_pass_is_that_of_each_power():
    z = studies.sphere(1300, 8, studies.generator(1))  # three blocks, the last one partly filled
    cloned = load(STUDIES["fcc"].script).lu_cloned(z, 4)
    assert cloned == pytest.approx([float(lu_uniformity(z.double(), t=2.0 * c)) for c in range(1, 5)], rel=1e-6)


@pytest.mark.parametrize("copies", [1, 2, 7])
def test_lu_of_repeated_rows_follows_from_the_rows_alone(copies):
    z = studies.sphere(9, 3, studies.generator(1)).double()
    theory = load(STUDIES["icc"].script).lu_repeated(float(lu_uniformity(z)), len(z), copies)
    assert theory == pytest.approx(float(lu_uniformity(z.repeat(copies, 1))), rel=1e-9)


def test_the_floor_is_the_mean_over_draws(reduced):
    data, settings = studies.read(reduced("floor"))
    assert settings["marks"] == {}  # neither size is among so few rows
    for i, (m, n) in enumerate(zip(data["m"].astype(int), data["n"].astype(int), strict=True)):
        assert (data["floor"][i], data["minimum"][i]) == (w2_floor(n, m), w2_minimum(n, m))
        error = data["w2_std"][i] / data["draws"][i] ** 0.5
        assert data["w2"][i] == pytest.approx(
            data["floor"][i], abs=4 * error + (0.06 if m == 8 else 0.02) * data["floor"][i]
        )
        assert data["w2"][i] > data["minimum"][i] - 1e-6
    assert sorted(set(data["n"])) == [2, 4, 8, 16, 32, 64, 100]


def test_the_floor_marks_the_sizes_that_it_has(tmp_path, monkeypatch):
    module = load(STUDIES["floor"].script)
    monkeypatch.setattr(module, "DRAWS", {4: 2})
    monkeypatch.setattr(module, "MARKS", {"few": (11, 4), "many": (1000, 4)})
    data, settings = run("floor", tmp_path, 20)
    assert settings["marks"] == {"few": [11, 4]}
    assert data["n"].tolist() == [2, 4, 8, 11, 16, 20]


def test_a_batch_stands_for_the_whole_the_better_the_larger(reduced):
    data, settings = studies.read(reduced("batch"))
    assert data["batch"].tolist() == [32, 64, 128, 256, 512]
    assert (np.diff(data["w2"]) < 0).all()
    assert data["w2"][-1] > settings["whole"]["w2"] - 1e-3
    for name in ("w2", "lu"):
        assert (np.diff(data[f"{name}_cosine"]) > 0).all()
        assert 0.99 < data[f"{name}_cosine"][-1] < 1
    # exp L_U is a mean over pairs: a batch's has the whole's for its expectation
    error = data["lu_std"] / data["draws"] ** 0.5
    assert (np.abs(data["lu"] - settings["whole"]["lu"]) < 4 * error + data["lu_std"] ** 2).all()


def test_the_gradient_is_that_with_respect_to_a_linear_map():
    module = load(STUDIES["batch"].script)
    z = torch.randn(12, 3, generator=studies.generator(0), dtype=torch.float64)
    module.torch.set_default_dtype(torch.float64)
    try:
        for measure in module.COMPARED.values():
            value, gradient = module.value_and_gradient(measure, z)
            assert value == pytest.approx(float(measure(z)))
            step = 1e-5 * torch.eye(9).reshape(9, 3, 3)
            slope = [float(measure(z @ (torch.eye(3) + s)) - measure(z @ (torch.eye(3) - s))) / 2e-5 for s in step]
            assert gradient.tolist() == pytest.approx(slope, abs=1e-5)
    finally:
        module.torch.set_default_dtype(torch.float32)


@names
def test_two_samples_are_enough_and_a_seed_repeats(name, tmp_path):
    data, _ = run(name, tmp_path, 2)
    for column, values in data.items():
        if values.dtype.kind == "f" and not column.startswith(("lu", "w2_")):
            missing = np.isnan(values)
            assert missing.sum() == (3 if (name, column) == ("level", "w2") else 0), column
    assert (data["w2"][~np.isnan(data["w2"])] >= 0).all()
    if name in ("icc", "batch"):
        again, _ = run(name, tmp_path, 2)
        other, _ = run(name, tmp_path, 2, seed=13)
        np.testing.assert_array_equal(data["w2"], again["w2"])
        assert (data["w2"] != other["w2"]).any()


# ---- what is committed ----


@pytest.mark.parametrize("name", WITH_THEORY)
def test_committed_data_agree_with_theory(name):
    data, settings = studies.read(STUDIES[name].script.with_suffix(".csv"))
    assert len(data["m"]) == LINES[name]
    assert (np.abs(data["w2"] / data["w2_finite"] - 1)[data["k"] > 0] < 0.02).all()
    assert (np.abs(data["lu"] / data["lu_theory"] - 1)[data["k"] > 0] < 0.01).all()
    # many rows: also near the limit, where W2 is not near 0
    far = (data["eta"] >= 0.25) & (16 * data["k"] < settings["samples"]) & (data["k"] > 0)
    w2, finite, limit = (data[name][far] for name in ("w2", "w2_finite", "w2_theory"))
    expected = np.abs(finite / limit - 1)  # 2.5 % at m = 4096, 25 % collapsed: there finite n itself is that far
    assert (np.abs(w2 / limit - 1) < np.maximum(0.02, expected + 1e-3)).all()
    assert far.sum() > len(far) / 2


def test_committed_floor_and_batches():
    data, settings = studies.read(STUDIES["floor"].script.with_suffix(".csv"))
    assert len(data["m"]) == LINES["floor"]
    assert set(map(tuple, settings["marks"].values())) == {(512, 256), (10_000, 256)}
    bound = np.select([data["m"] >= 128, data["m"] >= 32], [0.01, 0.04], 0.12)  # the law is that of large m
    assert (np.abs(data["w2"] / data["floor"] - 1) < bound).all()
    data, settings = studies.read(STUDIES["batch"].script.with_suffix(".csv"))
    assert len(data["batch"]) == LINES["batch"]
    assert (np.diff(data["w2"]) < 0).all()


@names
def test_committed_notebooks_were_run_from_top_to_bottom(name):
    check_committed_notebook(STUDIES[name])


@names
def test_a_notebook_plots_what_its_script_wrote(name, reduced, tmp_path):
    check_notebook_on(STUDIES[name], reduced(name), tmp_path)

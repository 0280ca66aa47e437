"""What the synthetic studies share: samples, measures of collapsed rows, their theory, the data file."""

import json
import os
import sys
from argparse import Namespace
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, special

from wassersteinssl import coordinates, files, studies
from wassersteinssl.study_options import study_options
from wassersteinssl.uniformity import lu_uniformity
from wassersteinssl.w2 import w2_floor, w2_uniformity


def rows(n, k, seed=0):
    return studies.sphere(n, k, studies.generator(seed))


def embedded(z, m, clones=1):
    """z padded with zeros to m features, all of them cloned, written out."""
    padded = torch.cat([z, torch.zeros(len(z), m - z.shape[1])], dim=1)
    return torch.cat([padded] * clones, dim=1).double()


# ---- samples ----


def test_rows_of_the_sphere_have_unit_length_and_its_moments():
    z = rows(20_000, 5)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(len(z)))
    assert z.mean(dim=0).abs().max() < 0.015  # 5 standard errors
    assert (z.T @ z / len(z) - torch.eye(5) / 5).abs().max() < 0.01
    assert torch.equal(z, rows(20_000, 5))
    assert not torch.equal(z, rows(20_000, 5, seed=1))


def test_chunks_hold_all_rows_and_the_sphere_of_one_dimension_is_two_points(monkeypatch):
    monkeypatch.setattr(studies, "CHUNK", 40)
    chunks = list(studies.sphere_chunks(25, 4, studies.generator(0)))
    assert [len(chunk) for chunk in chunks] == [10, 10, 5]
    assert set(rows(50, 1).flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("m", [200, 500, 1000])
def test_living_coordinates_are_rounded_not_cut(m):
    living = [studies.alive(m, percent / 100) for percent in range(0, 101, 5)]
    assert living == [m * (100 - percent) // 100 for percent in range(0, 101, 5)]  # 55, 80, 90 % too


# ---- measures ----


@pytest.mark.parametrize("clones", [1, 3])
@pytest.mark.parametrize(("n", "k", "m"), [(50, 6, 6), (50, 6, 15), (50, 1, 2), (10, 12, 20), (2, 7, 9)])
def test_measures_are_those_of_the_rows_written_out(n, k, m, clones):
    z = rows(n, k)
    measured = studies.measures(z, m, clones=clones)
    full = embedded(z, m, clones)
    assert measured["w2"] == pytest.approx(float(w2_uniformity(full, normalize=False)), rel=1e-6)
    square = (full.unsqueeze(1) - full).square().sum(dim=2)  # (n, n)
    pairs = square[torch.triu_indices(n, n, 1).unbind()]
    assert measured["lu"] == pytest.approx(float((-2 * pairs).exp().mean().log()), rel=1e-5)


def test_a_line_of_a_data_file_is_what_its_columns_say():
    z = rows(60, 6)
    line = studies.beside_theory(studies.moments(z), -1.5, 8, 6, clones=2)
    assert (line["m"], line["k"], line["eta"], line["lu"]) == (8, 6, 0.25, -1.5)
    assert line["w2"] == studies.measures(z, 8, clones=2)["w2"]
    assert line["w2_theory"] == studies.w2_theory(0.25, clones=2)
    assert line["w2_finite"] == studies.w2_finite(60, 6, 8, clones=2)
    assert line["lu_theory"] == studies.lu_theory(6, t=4.0)
    padded = studies.beside_theory(studies.moments(z), -1.5, 8, 6, blocks=3)
    assert padded["w2"] == pytest.approx(float(w2_uniformity(embedded(z, 32), normalize=False)), rel=1e-6)
    assert padded["w2_finite"] == studies.w2_finite(60, 6, 32)
    assert padded["w2_theory"] == pytest.approx(studies.w2_theory(1 - 6 / 32))


def test_the_largest_difference_to_theory_ignores_gaps():
    columns = {
        "w2": [1.0, 1.1, np.nan],
        "w2_finite": [1.0, 1.0, np.nan],
        "lu": [-2.0, -4.0, -1],
        "lu_theory": [-2, -5, -1],
    }
    apart = studies.apart({key: np.array(value) for key, value in columns.items()})
    assert apart == pytest.approx({"w2": 0.1, "lu": 0.2})


# ---- theory ----


@pytest.mark.parametrize("t", [0.5, 2.0, 22.0])
@pytest.mark.parametrize("k", [2, 3, 8, 33])
def test_lu_is_the_integral_over_the_angle_and_the_bessel_function(k, t):
    def kernel(angle, power):  # a point at this angle from another has density sin^(k-2)
        return np.exp(-t * power * (2 - 2 * np.cos(angle))) * np.sin(angle) ** (k - 2)

    above, below = (integrate.quad(kernel, 0, np.pi, args=(power,), epsabs=0)[0] for power in (1, 0))
    assert studies.lu_theory(k, t=t) == pytest.approx(np.log(above / below), rel=1e-9)
    bessel = special.gammaln(k / 2) + (1 - k / 2) * np.log(t) + np.log(special.ive(k / 2 - 1, 2 * t))
    assert studies.lu_theory(k, t=t) == pytest.approx(bessel, rel=1e-9)


@pytest.mark.parametrize("k", [1, 256, 4096, 100_000])
def test_lu_is_right_where_the_bessel_function_underflows(k):
    with mpmath.workdps(50):
        exact = float(-4 + mpmath.log(mpmath.hyp0f1(mpmath.mpf(k) / 2, 4)))
    assert studies.lu_theory(k) == pytest.approx(exact, rel=1e-10)
    if k == 1:  # two points, at distance 0 or 2
        assert exact == pytest.approx(np.log((1 + np.exp(-8)) / 2))


@pytest.mark.parametrize("m", [2, 3, 8, 256])
def test_the_law_of_a_coordinate_has_its_density(m):
    x = np.linspace(-0.99, 0.99, 45)
    density = special.gamma(m / 2) / special.gamma((m - 1) / 2) / np.pi**0.5 * (1 - x**2) ** ((m - 3) / 2)
    np.testing.assert_allclose(coordinates.sphere_law(m).pdf(x), density, rtol=1e-9)
    assert coordinates.sphere_law(m).pdf([-1.5, 1.5]).tolist() == [0, 0]


def test_w2_of_a_collapse():
    assert studies.w2_theory(0) == 0
    assert studies.w2_theory(1) == pytest.approx(2**0.5)
    assert studies.w2_theory(0.75) == pytest.approx(1)
    assert studies.w2_theory(0.5, blocks=1) == pytest.approx(studies.w2_theory(0.75))
    # the Gaussian N(0, diag(1/k, ..., 0, ...)) cloned, from the definition: mean square + 1 - 2 tr S^(1/2) / sqrt m
    k, m, clones = 6, 8, 3
    covariance = torch.kron(torch.ones(clones, clones), torch.diag(torch.tensor([1 / k] * k + [0] * (m - k))))
    roots = torch.linalg.eigvalsh(covariance.double()).clamp(min=0).sqrt().sum()
    expected = (clones + 1 - 2 / (clones * m) ** 0.5 * float(roots)) ** 0.5
    assert studies.w2_theory(1 - k / m, clones=clones) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("n", "k", "m", "clones"), [(40, 32, 32, 1), (40, 32, 40, 1), (300, 32, 64, 2), (20, 64, 64, 1)]
)
def test_the_finite_sample_value_is_the_mean_over_samples(n, k, m, clones):
    sampled = np.mean([studies.measures(rows(n, k, seed), m, clones=clones)["w2"] for seed in range(20)])
    assert studies.w2_finite(n, k, m, clones=clones) == pytest.approx(sampled, rel=0.015)
    assert studies.w2_finite(n, k, k) == pytest.approx(w2_floor(n, k))
    assert studies.w2_finite(10**8, k, m, clones=clones) == pytest.approx(
        studies.w2_theory(1 - k / m, clones=clones), abs=1e-3
    )


@pytest.mark.parametrize(("n", "k"), [(2000, 2), (2000, 16)])
def test_lu_theory_is_what_samples_have(n, k):
    assert studies.lu_theory(k) == pytest.approx(float(lu_uniformity(rows(n, k))), rel=0.01)


# ---- the data file ----


@pytest.fixture
def options(tmp_path):
    return Namespace(samples=7, seed=3, device="cpu", out=tmp_path, name="data.csv")


def test_a_csv_comes_back_with_its_settings_and_missing_values(options):
    lines = [{"m": 2, "w2": 0.1}, {"m": 4, "w2": float("nan"), "gap": "all zero, no direction"}, {"m": 8, "w2": None}]
    path = studies.write(options, lines, draws=5)
    assert path == options.out / "data.csv"
    data, settings = studies.read(path)
    assert data["m"].tolist() == [2, 4, 8]
    np.testing.assert_array_equal(data["w2"], [0.1, np.nan, np.nan])
    assert data["gap"].tolist() == ["", "all zero, no direction", ""]
    assert {key: settings[key] for key in ("samples", "seed", "device", "draws")} == {
        "samples": 7,
        "seed": 3,
        "device": "cpu",
        "draws": 5,
    }
    assert settings["versions"]["torch"] == torch.__version__
    assert path.read_bytes() == studies.write(options, lines, draws=5).read_bytes()


def test_numbers_come_back_to_the_last_bit(options):
    values = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25)
    data, _ = studies.read(studies.write(options, [{"x": float(x)} for x in values]))
    np.testing.assert_array_equal(data["x"], values)


def test_arrays_come_back_with_their_settings(options):
    options.name = "data.npz"
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([1, 2])}
    data, settings = studies.read(studies.write_arrays(options, arrays, bins=51))
    assert sorted(data) == ["a", "b"]
    np.testing.assert_array_equal(data["a"], arrays["a"])
    assert settings["bins"] == 51


def test_a_missing_data_file_is_told_with_the_command_that_makes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as told:
        studies.read("AnalysisOnFloor.csv")
    made = f'make it with python .../AnalysisOnFloor.py --out "{tmp_path}"'
    assert str(told.value) == f"no AnalysisOnFloor.csv in {tmp_path}: {made}"


def test_a_failed_write_leaves_the_old_file(options, monkeypatch):
    path = studies.write(options, [{"m": 1}])
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        studies.write(options, [{"m": 2}])
    assert path.read_bytes() == before
    assert os.listdir(options.out) == ["data.csv"]


# ---- the command line ----


def start(monkeypatch, folder, *arguments):
    """studies.main with a study that writes its samples; the file."""
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments)])
    out = Path(folder) / "study.csv"
    options = study_options("A study.", samples=50, quick=7, out=out)
    studies.main(lambda o: studies.write(o, [{"n": o.samples}]), options)
    return Path(folder) / "study.csv"


def test_defaults_and_options(monkeypatch, tmp_path, capsys):
    _, settings = studies.read(start(monkeypatch, tmp_path))
    assert (settings["samples"], settings["seed"], settings["script"]) == (50, 12, "study.py")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'study.csv'}\n"
    start(monkeypatch, tmp_path, "--samples", 2, "--seed", 4, "--out", tmp_path / "new" / "folder")
    head = (tmp_path / "new" / "folder" / "study.csv").read_text().splitlines()[0]
    assert json.loads(head.removeprefix("# "))["seed"] == 4
    _, settings = studies.read(start(monkeypatch, tmp_path, "--quick"))
    assert settings["samples"] == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "1"], "must be at least 2"),
        (["--samples", "many"], "not a whole number"),
        (["--seed", "-1"], "must be at least 0"),
        (["--device", "nowhere"], "--device nowhere cannot be used"),
        (["--out", "{file}"], "cannot write into {file}: Not a directory"),
        (["--out", "{file}/below"], "cannot write into {file}/below: {file}: Not a directory"),
        (["--quick", "--samples", "3"], "not allowed with argument --quick"),
        (["--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(monkeypatch, tmp_path, capsys, arguments, message):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as caught:
        start(monkeypatch, tmp_path, *(argument.format(file=file) for argument in arguments))
    last = capsys.readouterr().err.splitlines()[-1]
    assert caught.value.code == 2
    assert last.startswith("study.py: error: ")
    assert message.format(file=file) in last
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_more_samples_than_memory_are_told_in_a_line(monkeypatch, tmp_path, capsys, allocate):
    monkeypatch.setattr(sys, "argv", ["study.py", "--samples", str(10**15)])
    options = study_options("A study.", samples=50, quick=7, out=tmp_path / "study.csv")
    with pytest.raises(SystemExit) as caught:
        studies.main(lambda o: allocate(o.samples), options)
    assert caught.value.code == 2
    told = "study.py: error: --samples 1000000000000000 do not fit into the memory of cpu\n"
    assert capsys.readouterr().err == told


def test_other_errors_keep_their_traceback(monkeypatch, tmp_path):
    def study(options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["study.py"])
    options = study_options("A study.", samples=50, quick=7, out=tmp_path / "study.csv")
    with pytest.raises(RuntimeError, match="a bug"):
        studies.main(study, options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_an_absent_gpu_is_told_in_a_line(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit):
        start(monkeypatch, tmp_path, "--device", "cuda")
    error = capsys.readouterr().err
    assert error.startswith("study.py: error: --device cuda cannot be used here: ")
    assert error.count("\n") == 1

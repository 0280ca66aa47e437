"""The studies of distributions: each script as a user starts it, its data against theory, its notebook on that data."""

import os
import subprocess
import sys
from argparse import Namespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import environment, load
from scipy import special, stats
from study_checks import check_committed_notebook, check_data, check_figures, check_notebook_on, study

from wassersteinssl import coordinates, studies
from wassersteinssl.w2 import W2Metric, w2_floor

STUDIES = {
    "1d": study("DistributionApproximation/Density1DPlot", "MergedDistribution-1D", samples=200_000, few=4000),
    "2d": study("DistributionApproximation/Density2DPlot", "MergedDistribution-2D", samples=2_000_000, few=150_000),
    "distance": study(
        "DistributionApproximation/DistanceAgainstDimension", "DistanceAgainstDimension", samples=200_000, few=4000
    ),
    "laws": study("EmpiricalStudy/Distributions/AnalysisOnDistributions", "Distributions", samples=50_000, few=2000),
    "padding": study(
        "EmpiricalStudy/PaddingCaseStudy/AnalysisOnCaseStudy",
        "PaddingCaseStudy",
        "PaddingSpectrum",
        samples=400,
        few=300,
    ),
    "means": study("LargeMeans/PlotMean2D", "largemean_collapse", samples=300, few=400),
}
DIMENSIONS = [2, 4, 8, 16, 32, 64, 128, 256]
names = pytest.mark.parametrize("name", STUDIES)
with_notebook = pytest.mark.parametrize("name", [name for name in STUDIES if name != "means"])


@pytest.fixture(scope="module")
def reduced(few_samples):
    """reduced(name): the study's data file from few samples, by the script as a user starts it."""
    return lambda name: few_samples(STUDIES[name].script, "--samples", STUDIES[name].few)


def run(name, folder, samples, seed=12):
    """The study in this process: the data that it wrote."""
    options = Namespace(samples=samples, seed=seed, device="cpu", out=folder, name=STUDIES[name].data.name)
    with plt.rc_context({"savefig.dpi": 30}):  # fast
        data, _ = studies.read(load(STUDIES[name].script).study(options))
    plt.close("all")
    return data


@pytest.fixture(params=["reduced", "committed"])
def read(request, reduced):
    """read(name): data and settings, once of few samples, once of those that are committed."""
    return lambda name: studies.read(reduced(name) if request.param == "reduced" else STUDIES[name].data)


# ---- data against theory ----


@names
def test_a_file_tells_what_made_it(name, reduced):
    check_data(STUDIES[name], reduced(name))


def standard_deviations(shares, masses, n):
    """(shares - masses) over the binomial standard error, of bins that expect ten samples."""
    enough = n * masses >= 10
    return (shares - masses)[enough] / np.sqrt(masses * (1 - masses) / n)[enough]


def test_samples_of_a_coordinate_fill_the_bins_as_theory_says(read):
    data, settings = read("1d")
    assert sorted(set(data["m"])) == DIMENSIONS
    for m in DIMENSIONS:
        row = data["m"] == m
        left, right = data["left"][row], data["right"][row]
        np.testing.assert_allclose([left[0], right[-1], *(right - left)], [-1, 1] + [2 / 51] * 51)
        for law in ("sphere", "gaussian"):
            z = standard_deviations(data[law][row], data[f"{law}_exact"][row], settings["samples"])
            assert abs(z).max() < 4.5
            assert 0.4 < (z**2).mean() < 2


@pytest.mark.parametrize("m", DIMENSIONS)
def test_bin_masses_integrate_the_densities(m):
    def integral(density):  # midpoint rule in t with y = sin t, which tames the ends at m = 2
        edges = np.arcsin(coordinates.EDGES)
        share = (np.arange(4000) + 0.5) / 4000
        t = edges[:-1, None] + np.diff(edges)[:, None] * share  # (bins, nodes)
        return (density(np.sin(t)) * np.cos(t)).mean(axis=1) * np.diff(edges)

    sphere = coordinates.bin_masses(coordinates.sphere_law(m))
    np.testing.assert_allclose(sphere, integral(lambda y: coordinates.sphere_law(m).pdf(y)), rtol=1e-3)
    gaussian = coordinates.bin_masses(coordinates.gaussian_law(m))
    density = lambda y: np.sqrt(m / (2 * np.pi)) * np.exp(-m * y * y / 2)  # noqa: E731
    np.testing.assert_allclose(gaussian, integral(density), rtol=1e-3)
    assert sphere.sum() == pytest.approx(1, abs=1e-12)
    assert gaussian.min() > 0


def test_samples_of_two_coordinates_fill_the_bins_as_theory_says(read):
    data, settings = read("2d")
    assert (settings["m"], data["sphere"].shape) == (32, (51, 51))
    for law in ("sphere", "gaussian"):
        exact = data[f"{law}_exact"]
        z = standard_deviations(data[law], exact, settings["samples"])
        assert abs(z).max() < 5
        assert (z**2).mean() == pytest.approx(1, abs=5 * (2 / z.size) ** 0.5)
        marginal = coordinates.bin_masses(getattr(coordinates, f"{law}_law")(32))
        np.testing.assert_allclose(exact.sum(axis=0), marginal, rtol=1e-5, atol=1e-9)


def test_distances_part_from_theory_as_expected_of_finite_samples(read):
    data, settings = read("distance")
    n = settings["samples"]
    assert data["m"].tolist() == DIMENSIONS
    for i, m in enumerate(DIMENSIONS):
        p, q = (coordinates.bin_masses(law(m)) for law in (coordinates.sphere_law, coordinates.gaussian_law))
        ratio = np.log(np.where(p > 0, p, q) / q)
        deviation = np.sqrt((p @ ratio**2 - (p @ ratio) ** 2) / n + 25 / n**2)  # the second: of a chi-square of 50
        assert abs(data["kl"][i] - data["kl_expected"][i]) < 5 * deviation
        assert data["w2_expected"][i] == pytest.approx(np.hypot(data["w2_exact"][i], data["w2_noise"][i]))
        assert 0.4 < data["w2"][i] / data["w2_expected"][i] < 2
        assert data["w2"][i] == pytest.approx(data["w2_exact"][i], abs=2.5 * data["w2_noise"][i])
    assert (np.diff(data["kl_exact"]) < 0).all()
    assert (np.diff(data["w2_exact"]) < 0).all()
    if n == STUDIES["distance"].samples:
        np.testing.assert_allclose(data["kl"][:2], data["kl_bins"][:2], rtol=0.02)  # m for which samples are enough
        np.testing.assert_allclose(data["w2"][:3], data["w2_exact"][:3], rtol=0.02)


@pytest.mark.parametrize("m", DIMENSIONS)
def test_exact_distances(m):
    module = load(STUDIES["distance"].script)
    a = (m - 1) / 2  # KL = E log p - E log q: the entropy of Beta(a, a) stretched by 2, and E Y^2 = 1/m
    entropy = special.betaln(a, a) - 2 * (a - 1) * (special.digamma(a) - special.digamma(2 * a)) + np.log(2)
    assert module.kl_exact(m) == pytest.approx(0.5 * np.log(2 * np.pi / m) + 0.5 - entropy, rel=1e-8, abs=1e-12)
    # W2^2 = int (y - G^-1(F(y)))^2 p(y) dy, over the lower half, y = sin t: the map instead of the quantiles
    t = -np.pi / 2 * (np.arange(200_000) + 0.5) / 200_000
    law, y = coordinates.sphere_law(m), np.sin(t)
    t, y = t[law.cdf(y) > 0], y[law.cdf(y) > 0]  # what underflows has no weight
    square = (y - stats.norm.ppf(law.cdf(y)) / m**0.5) ** 2 * law.pdf(y) * np.cos(t)
    assert module.w2_exact(m) == pytest.approx(np.sqrt(np.pi * square.sum() / 200_000), rel=1e-4)


def test_expected_kl_of_bins_is_the_mean_over_samples():
    module = load(STUDIES["distance"].script)
    p, q = np.array([0.001, 0.099, 0.4, 0.5, 0]), np.array([0.01, 0.1, 0.3, 0.5, 0.05])
    assert module.kl_bins(p, q) == pytest.approx(stats.entropy(p, q / q.sum()) - np.log(q.sum()))
    for n in (1, 2, 50, 5000):
        drawn = np.random.default_rng(0).multinomial(n, p, size=20_000) / n
        found = [module.kl_bins(shares, q) for shares in drawn]
        assert module.kl_bins_expected(p, q, n) == pytest.approx(np.mean(found), abs=4 * np.std(found) / 20_000**0.5)


def test_laws_lie_where_they_are_expected(read):
    data, settings = read("laws")
    n = settings["samples"]
    value = {law: i for i, law in enumerate(data["law"])}
    assert (settings["w2_floor"], settings["lu_theory"]) == (w2_floor(n, 256), studies.lu_theory(256))
    known = ~np.isnan(data["w2_expected"])
    assert (len(data["law"]), known.sum()) == (11, 8)
    np.testing.assert_allclose(data["w2"][known], data["w2_expected"][known], rtol=0.02)
    assert data["lu"][value["N(0, I)"]] == pytest.approx(studies.lu_theory(256), rel=1e-3)
    assert data["w2_expected"][value["U[0, 1]"]] == pytest.approx(1, abs=0.01 + w2_floor(n, 256) ** 2 / 2)
    for better, worse in (("N(0, I)", "32 Gaussians"), ("32 Gaussians", "8 Gaussians"), ("8 Gaussians", "2 Gaussians")):
        for measure in ("lu", "w2"):
            assert data[measure][value[better]] < data[measure][value[worse]]
    assert data["lu"][value["Cauchy"]] > data["lu"][value["N(0, I)"]] + 5e-3  # which W2 does not tell apart


def test_laws_have_the_coordinates_that_they_are_named_after():
    random = studies.generator(3)
    laws = {
        "N(0, I)": stats.norm(),
        "U[-1, 1]": stats.uniform(-1, 2),
        "Laplace": stats.laplace(),
        "Student t, 2 d.o.f.": stats.t(2),
        "Cauchy": stats.cauchy(),
        "U[0, 1]": stats.uniform(),
        "Exponential": stats.expon(),
    }
    for name, (mean_share, draw) in load(STUDIES["laws"].script).laws(random).items():
        x = draw(torch.empty(400, 256), random).double().numpy()
        if name in laws:
            assert stats.kstest(x[:50].ravel(), laws[name].cdf).pvalue > 1e-3, name
        if mean_share is not None and name not in ("Cauchy", "Student t, 2 d.o.f."):  # which have no mean square
            assert x.mean() ** 2 / (x**2).mean() == pytest.approx(mean_share, abs=0.01)


def test_padding_is_seen_by_w2_alone(read):
    data, settings = read("padding")
    n, m = settings["samples"], settings["m"]
    assert data["circle"].shape == (n, 2)
    np.testing.assert_array_equal(data["ring"], np.pad(data["circle"], ((0, 0), (0, 1))))
    np.testing.assert_allclose(np.linalg.norm(data["sphere"], axis=1), 1, rtol=1e-6)
    circle, ring, sphere = data["w2_rings"]
    assert max(circle, sphere) < 2.5 / n**0.5
    assert ring == pytest.approx(np.sqrt(2 - 2 * np.sqrt(2 / 3)), rel=0.02)
    assert data["lu_rings"][0] == pytest.approx(data["lu_rings"][1], abs=1e-6)
    np.testing.assert_allclose(data["lu_rings"], data["lu_rings_theory"], rtol=0.02)
    np.testing.assert_allclose(data["w2_padding"], data["w2_padding_theory"], rtol=0.02)
    np.testing.assert_allclose(data["lu_padding"], studies.lu_theory(m), rtol=0.01)
    mean_square = None  # W2^2 = ||mu||^2 + sum of squared gaps: ||mu||^2 is the same, whatever is appended
    for k, w2 in zip(data["zeros"], data["w2_padding"], strict=True):
        spectrum = data[f"spectrum_{k}"]
        assert len(spectrum) == m + k
        assert abs(spectrum[m:]).max(initial=0) < 1e-12
        np.testing.assert_allclose(spectrum[:m], data["spectrum_theory"], rtol=0.06)
        rest = w2**2 - ((spectrum - (m + k) ** -0.5) ** 2).sum()
        assert rest == pytest.approx(1 / n, rel=1)
        assert mean_square is None or rest == pytest.approx(mean_square, abs=1e-6)
        mean_square = rest


@pytest.mark.parametrize(("n", "m"), [(200, 100), (1000, 50), (60, 120)])
def test_the_spectrum_follows_marchenko_and_pastur(n, m):
    module = load(STUDIES["padding"].script)
    theory = studies.spectrum_theory(n, m) ** 0.5
    found = module.spectrum(studies.sphere(n, m, studies.generator(0)))
    assert len(found) == len(theory) == m
    np.testing.assert_allclose(found[: min(m, n - 1)], theory[: min(m, n - 1)], atol=0.05 * theory[0])
    assert (theory[n - 1 :] == 0).all()
    assert np.sqrt(2 - 2 / m**0.5 * theory.sum()) == pytest.approx(w2_floor(n, m), rel=5e-3)


def test_large_means_collapse_as_theory_says(read):
    data, settings = read("means")
    assert data["k"].tolist() == [0, 0.5, 1, 2, 4, 8, 16, 32]
    assert data["points"].shape == (8, settings["samples"], 2)
    np.testing.assert_allclose(np.linalg.norm(data["points"], axis=2), 1, rtol=1e-6)
    assert (np.diff(data["w2"]) > 0).all()
    np.testing.assert_allclose(data["w2"], data["w2_population"], atol=2 / settings["samples"] ** 0.5)
    np.testing.assert_allclose(data["w2"][4:], data["w2_population"][4:], rtol=0.01)


@pytest.mark.parametrize("k", [0, 0.5, 2, 32])
def test_population_w2_of_a_large_mean(k):
    rows = torch.randn(1_000_000, 2, generator=studies.generator(1)) + k
    expected = load(STUDIES["means"].script).w2_population(k)
    assert W2Metric().update(rows).compute() == pytest.approx(expected, abs=2e-3)


# ---- edge cases ----


@names
def test_two_samples_are_enough_and_a_seed_repeats(name, tmp_path):
    first, other = (run(name, tmp_path, 2, seed) for seed in (1, 2))
    again = run(name, tmp_path, 2, 1) if name in ("laws", "padding") else first
    for key, values in first.items():
        np.testing.assert_array_equal(values, again[key])
        if values.dtype.kind == "f" and key != "w2_expected":  # which some laws lack
            assert np.isfinite(values).all(), key
    assert any((values != other[key]).any() for key, values in first.items())


def test_a_script_tells_a_mistake_in_one_line(tmp_path):
    """Which mistakes there are: test_studies.py."""
    command = [sys.executable, str(STUDIES["laws"].script), "--device", "nonsense", "--out", str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("AnalysisOnDistributions.py: error: --device nonsense cannot be used")
    assert done.stderr.count("\n") == 1
    assert not os.listdir(tmp_path)


# ---- notebooks and figures ----


@with_notebook
def test_a_notebook_plots_what_its_script_wrote(name, reduced, tmp_path):
    check_notebook_on(STUDIES[name], reduced(name), tmp_path)


@with_notebook
def test_committed_notebooks_were_run_from_top_to_bottom(name):
    check_committed_notebook(STUDIES[name])


def test_large_means_are_drawn_by_the_script(reduced):
    for folder in (reduced("means").parent, STUDIES["means"].script.parent):
        check_figures(folder, STUDIES["means"].figures)


@pytest.mark.parametrize("components", [2, 8, 32])
def test_a_mixture_has_as_many_clusters_as_its_name_says(components):
    """The means of k clusters span k - 1 directions, whose variance stands above that within a cluster, 1."""
    random = studies.generator(3)
    share, draw = load(STUDIES["laws"].script).laws(random)[f"{components} Gaussians"]
    z = draw(torch.empty(4000, 256), random)
    assert share is None
    assert int((torch.linalg.eigvalsh(z.T.cov()) > 2).sum()) == components - 1

"""Our own studies of all measures: each script as a user starts it, its data, its notebook on them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import load
from study_checks import check_committed_notebook, check_data, check_notebook_on, study

from wassersteinssl import studies
from wassersteinssl.cli import UserError
from wassersteinssl.uniformity import MEASURES
from wassersteinssl.w2 import w2_uniformity

STUDIES = {
    "properties": study(
        "EmpiricalStudy/MeasureProperties/AnalysisOnMeasures", "MeasureProperties", samples=512, few=64
    ),
    "flow": study(
        "EmpiricalStudy/GradientFlow/AnalysisOnFlow", "Forces", "GradientFlow", "PointClouds", "Simplex",
        samples=32, few=16,
    ),
}  # fmt: skip
names = pytest.mark.parametrize("name", STUDIES)


@pytest.fixture(scope="module")
def reduced(few_samples):
    """reduced(name): the study's data file from few samples, by the script as a user starts it."""
    return lambda name: few_samples(STUDIES[name].script, "--quick")


@names
def test_a_file_tells_what_made_it(name, reduced):
    check_data(STUDIES[name], reduced(name))


@names
def test_committed_notebooks_were_run_from_top_to_bottom(name):
    check_committed_notebook(STUDIES[name])


@names
def test_a_notebook_plots_what_its_script_wrote(name, reduced, tmp_path):
    check_notebook_on(STUDIES[name], reduced(name), tmp_path)


# ---- measures against properties ----

# ICC, FCC, FBC as theory has them. Every measure has IPC.
EXPECTED = {
    "w2": "yes yes yes", "w2_unbiased": "no yes yes", "lu": "no reversed no", "lu_calibrated": "yes mixed yes",
    "koleo": "no reversed no", "mst": "no reversed no", "ssw": "yes yes yes", "sigreg": "no yes yes",
    "sigreg_per_row": "yes yes yes", "frobenius": "yes yes yes", "vicreg": "no mixed yes",
    "kl": "yes infinite infinite", "reverse_kl": "yes infinite infinite", "jeffreys": "yes infinite infinite",
    "bhattacharyya": "yes infinite infinite", "hellinger": "yes mixed mixed", "tcr": "yes reversed reversed",
    "rankme": "yes no no", "rankme_share": "yes yes yes", "effective_rank": "yes no no",
    "participation_ratio": "yes no no", "stable_rank": "yes no no", "alpha_req": "yes no no",
    "isoscore": "yes yes yes", "barlow": "yes yes yes", "mmcr": "no reversed no", "lidar": "yes mixed no",
}  # fmt: skip


@pytest.fixture(params=["committed"])
def properties(request, reduced):
    path = STUDIES["properties"].data if request.param == "committed" else reduced("properties")
    data, settings = studies.read(path)
    settings["how"] = request.param
    keys = zip(data["measure"], data["question"], strict=True)
    return {key: (float(v), str(w)) for key, v, w in zip(keys, data["value"], data["verdict"], strict=True)}, settings


def test_every_measure_of_rows_or_of_embeddings_is_there(properties):
    cells, settings = properties
    assert set(settings["labels"]) == set(MEASURES) - {"alignment", "align_uniform"} | {"w2_unbiased", "sigreg_per_row"}
    for name in settings["labels"]:
        for question in ("ipc", "icc", "fcc", "fbc", "rotation", "scale", "eighth", "half", "cost_n", "cost_m"):
            assert (name, question) in cells


@pytest.mark.parametrize("properties", ["committed", "reduced"], indirect=True)
def test_the_constraints_are_as_theory_has_them(properties):
    cells, settings = properties
    for name, expected in EXPECTED.items():
        for question, verdict in zip(("icc", "fcc", "fbc"), expected.split(), strict=True):
            if settings["how"] == "committed" or verdict != "mixed":  # which few samples may miss
                assert cells[name, question][1] == verdict, (name, question)
        assert cells[name, "ipc"][1] == "yes"
    turned = {name: cells[name, "rotation"][1] for name in EXPECTED}
    assert {name for name, verdict in turned.items() if verdict == "no"} == {"vicreg", "barlow"}
    assert {name for name, verdict in turned.items() if verdict == "on average"} == {"ssw", "sigreg", "sigreg_per_row"}


@pytest.mark.parametrize("properties", ["committed", "reduced"], indirect=True)
def test_what_sees_collapse_and_what_sees_more_than_two_moments(properties):
    cells, settings = properties
    few = settings["how"] == "reduced"
    for name in ("w2", "rankme", "tcr", "frobenius", "lu", "mst"):
        assert cells[name, "eighth"][0] > (1 if few else settings["seen"])
    assert cells["w2", "eighth"][0] > (3 if few else 10) * cells["lu", "eighth"][0]
    if not few:
        assert cells["w2", "eighth_few"][0] > 5  # also with fewer rows than features
    assert cells["vicreg", "half_axes"][0] > 5 * cells["vicreg", "half"][0]  # its hinge looks at the axes
    for name in EXPECTED:
        if name not in MEASURES or not MEASURES[name].of_moments or name == "alpha_req":
            continue
        for question in ("atoms", "atoms_repeated", "simplex", "clusters"):
            assert cells[name, question][1] == "blind"
        assert cells[name, "antipodal"][1] == "seen"
    for name in ("lu", "lu_calibrated", "koleo", "mst", "ssw", "sigreg"):
        assert cells[name, "atoms"][1] == "blind"  # 2 m rows at 2 m atoms: more even than chance
        for question in ("atoms_repeated", "simplex", "clusters"):
            assert cells[name, question][1] == "seen" or (few and name in ("ssw", "sigreg"))


@pytest.mark.parametrize("properties", ["committed", "reduced"], indirect=True)
def test_bias_and_cost_follow_theory(properties):
    cells, settings = properties
    assert cells["w2", "bias_n"][0] == pytest.approx(-0.5, abs=0.05)  # the floor, sqrt(m / 4n)
    for name in ("frobenius", "lu_calibrated", "ssw", "kl"):
        assert cells[name, "bias_n"][0] == pytest.approx(-1, abs=0.15)
    assert ("lu", "bias_n") not in cells  # a U-statistic
    if settings["how"] == "reduced":  # too few rows to take time
        return
    for name in ("lu", "koleo", "mst"):
        assert cells[name, "cost_n"][0] > 1.3
    for name in ("ssw", "frobenius", "kl"):
        assert cells[name, "cost_n"][0] < 1.6


def test_properties_are_computed_and_not_asserted(monkeypatch):
    """A measure that lacks every property is found out."""
    module = load(STUDIES["properties"].script)
    random = studies.generator(0)
    monkeypatch.setattr(module, "LABELS", {"none": ""})
    monkeypatch.setitem(module.FUNCTIONS, "none", lambda z, normalize: z[0, 0] * len(z))
    found = {row["question"]: row["verdict"] for row in module.properties(64, 8, random)}
    assert found == dict.fromkeys(("ipc", "icc", "fcc", "fbc", "rotation", "scale"), "no")
    assert module.verdict("icc", [0.0, 1e-3]) == "no"
    assert module.verdict("fcc", [0.1, -0.1]) == "mixed"
    assert module.verdict("fbc", [np.inf, np.inf]) == "infinite"
    assert module.d_prime([1.0, 2.0, 3.0], [3.0, 4.0, 5.0]) == pytest.approx(2)
    assert np.isnan(module.d_prime([np.inf, 1.0], [2.0, 3.0]))
    for z in list(module.arrangements(64, 4, random).values())[:4]:
        two = z.mean(dim=0).square().sum(), 4 * z.T @ z / len(z) - torch.eye(4)
        spots = len(torch.unique(z, dim=0)) == len(z) > 8  # clusters: only on average
        assert max(two[0], two[1].abs().max()) < (0.2 if spots else 1e-12)


def test_the_table_is_that_of_the_data():
    module = load(STUDIES["properties"].script)
    data, _ = studies.read(STUDIES["properties"].data)
    rows = [
        {"measure": m, "question": q, "value": float(v), "verdict": w}
        for m, q, v, w in zip(data["measure"], data["question"], data["value"], data["verdict"], strict=True)
    ]
    assert module.markdown(rows) == STUDIES["properties"].data.with_suffix(".md").read_text(encoding="utf-8")


# ---- gradient flow ----


@pytest.fixture(params=["reduced", "committed"])
def flows(request, reduced):
    """The flows' arrays and settings, once of few rows, once of those that are committed."""
    data = STUDIES["flow"].data
    return studies.read(reduced("flow") if request.param == "reduced" else data)


def test_forces_on_what_is_collapsed_have_their_exponents(flows):
    _, settings = flows
    p = settings["exponents"]
    expected = {"w2": (0, 0), "kl": (-1, -1), "bhattacharyya": (-1, -1), "frobenius": (1, 1), "lu_calibrated": (1, 1)}
    for name, pair in expected.items():
        assert (p["force_dimensions"][name], p["force_cap"][name]) == pytest.approx(pair, abs=0.1), name
    assert p["force_cap"]["mst"] == pytest.approx(0, abs=0.1)
    assert p["force_dimensions"]["ssw"] == pytest.approx(0, abs=0.2)  # fixed directions push at any size
    assert p["force_dimensions"]["sigreg"] == pytest.approx(0, abs=0.1)


def test_what_escapes_from_collapse_and_what_cannot(flows):
    _, settings = flows
    became = {name: found["verdict"] for name, found in settings["scenarios"].items()}
    for scenario in ("points", "few", "encoder"):
        assert became[scenario]["w2"].startswith("escapes")
    for name in ("w2", "frobenius", "lu_calibrated", "mst"):  # by symmetry no gradient leaves the plane
        assert became["exact"][name].startswith("stays")
    for name in ("kl", "bhattacharyya"):
        assert became["exact"][name] == became["few"][name] == "infinite"
        assert became["points"][name].startswith("escapes")
    assert became["exact"]["sigreg"].startswith("escapes")


def test_trajectories_start_collapsed_and_end_as_they_are_judged(flows):
    data, settings = flows
    for scenario, found in settings["scenarios"].items():
        for name, verdict in found["verdict"].items():
            rank, w2, _ = data[f"{scenario}_{name}"].T
            if verdict == "infinite":
                assert np.isnan(rank).all()
                continue
            assert rank[0] < 0.7 * found["goal"]
            assert (rank[-1] >= 0.9 * found["goal"] - 1e-3) == verdict.startswith("escapes")
            assert verdict.startswith("stays") or w2[-1] < w2[0]


@pytest.mark.parametrize("name", ["w2", "mst"])
def test_the_flow_of_few_rows_ends_at_the_simplex(name, flows):
    data, settings = flows
    for n, m in settings["simplices"]:
        gap = data[f"simplex_{name}_{n}_{m}"]
        assert gap[0] > 0.3
        assert gap.min() > -1e-9  # nothing reads less than the simplex
        assert gap[-1] < (0.02 if name == "mst" else 5e-3)


def test_clouds_are_on_the_sphere_and_spread(flows):
    data, settings = flows
    for place, m in (("circle", 2), ("sphere", 3)):
        start = data[f"{place}_start"]
        assert np.linalg.norm(start.mean(axis=0)) > 0.9
        for name in settings["labels"]:
            z = data[f"{place}_{name}"]
            assert z.shape[1] == m
            np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, atol=1e-5)
            assert np.linalg.norm(z.mean(axis=0)) < 0.5


def test_a_path_that_is_not_finite_is_told():
    module = load(STUDIES["flow"].script)
    start = module.flat(8, 4, 0, studies.generator(0))
    assert module.flow("kl", start, 0.1, module.points, 48) == []
    assert module.judge("kl", {0.1: []}, 2.0) == ("infinite", None)
    path = [start] * 5
    assert module.judge("kl", {0.1: [], 1.0: path}, 2.0) == ("diverges", None)


def test_of_runs_that_end_alike_the_first_to_get_there_is_kept():
    module, random = load(STUDIES["flow"].script), studies.generator(0)
    start, end = module.flat(8, 4, 0, random), studies.sphere(8, 4, random).double()
    shift = 1e-10 * studies.sphere(8, 4, random).double()
    best, worse = sorted((end + shift, end - shift), key=lambda z: float(w2_uniformity(z)))  # as rounding might
    assert w2_uniformity(best) < w2_uniformity(worse)
    paths = {0.1: [start] * module.KEPT + [best], 1.0: [start] + [worse] * module.KEPT}
    assert module.judge("w2", paths, 4.0)[1] == 1.0
    paths[1.0][-1] = start  # not alike
    assert module.judge("w2", paths, 4.0)[1] == 0.1


@names
def test_too_few_samples_are_told(name):
    module = load(STUDIES[name].script)
    for samples in (2, module.LEAST - 1):
        with pytest.raises(UserError, match=f"--samples {samples}: .* at least {module.LEAST}"):
            module.study(SimpleNamespace(samples=samples))


def test_a_number_of_samples_that_nothing_divides():
    module = load(STUDIES["properties"].script)
    for n in (67, 100, 500):
        found = module.arrangements(n, n // 16, studies.generator(0))
        assert all(0 < len(rows) <= n for rows in found.values())
    flow = load(STUDIES["flow"].script)
    start = studies.sphere(19, 4, studies.generator(0)).double()
    assert len(flow.flow("w2", start, 1e-3, flow.points, 3 * 19)) == flow.KEPT + 1

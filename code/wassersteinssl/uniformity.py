"""Measures of how uniformly features spread over the unit sphere: import them from here. MEASURES is their table.

Each formula is one function: W2 is in w2.py, what two moments determine in moments.py, what needs all pairs of rows in
pairwise.py, what random projections show in sliced.py, what needs two views of each input in views.py.

    MEASURES["effective_rank"].function(z)      # rows (n, m), a row a sample
    of_moments(metric)                          # all that a W2Metric, and so any number of rows, tells

In the formulas mu and S are the mean and the covariance (with 1/n) of the unit rows z, lambda the eigenvalues of S, H
the entropy; what else occurs, the function's own docstring defines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from wassersteinssl.moments import (
    alpha_req,
    bhattacharyya,
    effective_rank,
    frobenius,
    hellinger,
    isoscore,
    jeffreys,
    kl,
    participation_ratio,
    rankme,
    rankme_share,
    reverse_kl,
    stable_rank,
    tcr,
    vicreg,
)
from wassersteinssl.pairwise import koleo, lu_calibrated, lu_uniformity, mst_length
from wassersteinssl.sliced import sigreg, ssw
from wassersteinssl.views import align_uniform, alignment, barlow, lidar, mmcr
from wassersteinssl.w2 import W2Metric, w2_uniformity


@dataclass(frozen=True)
class Measure:
    """A row of MEASURES. `function` takes z (n, m), or two views where `needs_views`; it returns a 0-d tensor."""

    label: str  # for people
    function: Callable[..., Tensor]
    better: str  # "low", "high" or "near 1"
    formula: str
    source: str
    loss: bool = False  # usable as `--uniformity NAME`
    needs_views: bool = False
    of_moments: bool = False  # two moments determine it: see the function of that name
    directions_per_slice: int = 0  # random directions; as a loss it is given new ones in each step

    def __post_init__(self) -> None:
        if self.loss and self.better != "low":
            raise ValueError(f"{self.label}: a loss is minimised, so that its low values must be the better ones")


_moments = partial(Measure, of_moments=True)
_views = partial(Measure, needs_views=True)
MEASURES: dict[str, Measure] = {
    "w2": _moments("W2", w2_uniformity, "low",
        "sqrt(||mu||^2 + 1 + tr S - (2/sqrt m) tr S^(1/2))", "Fang et al., ICLR 2024", loss=True),
    "lu": Measure("L_U", lu_uniformity, "low",
        "log mean_{i<j} exp(-2 ||z_i - z_j||^2)", "Wang & Isola, ICML 2020", loss=True),
    "lu_calibrated": Measure("L_U calibrated", lu_calibrated, "low",
        "log mean_{i,j} exp(-2 ||z_i - z_j||^2) - log c_m", "V-statistic of Wang & Isola's", loss=True),
    "koleo": Measure("KoLeo", koleo, "low",
        "-mean_i log min_j ||z_i - z_j||", "Sablayrolles et al., ICLR 2019", loss=True),
    "mst": Measure("MST length", mst_length, "low",
        "-(1/n) length of the minimum spanning tree", "Mordacq et al., T-REGS, 2025", loss=True),
    "ssw": Measure("SSW", ssw, "low",
        "mean over great circles of W2^2(angles, uniform)", "Bonet et al., ICLR 2023", loss=True,
        directions_per_slice=2),
    "sigreg": Measure("SIGReg", sigreg, "low",
        "n mean_a int |ECF(sqrt(m) a^T z) - e^(-t^2/2)|^2 e^(-t^2/2) dt", "Balestriero & LeCun, LeJEPA, 2025",
        loss=True, directions_per_slice=1),
    "frobenius": _moments("Frobenius", frobenius, "low",
        "||m S - I||^2 / m + ||mu||^2", "distance of moments", loss=True),
    "vicreg": _moments("VICReg terms", vicreg, "low",
        "25 mean relu(1 - sqrt(C_ii + 1e-4)) + sum_{i!=j} C_ij^2 / m, C = m S n/(n-1)", "Bardes et al., ICLR 2022",
        loss=True),
    "kl": _moments("KL", kl, "low", "KL(N(mu, S) || N(0, I/m))", "Kullback & Leibler 1951", loss=True),
    "reverse_kl": _moments("reverse KL", reverse_kl, "low",
        "KL(N(0, I/m) || N(mu, S))", "Kullback & Leibler 1951", loss=True),
    "jeffreys": _moments("Jeffreys", jeffreys, "low", "KL + reverse KL", "Jeffreys 1946", loss=True),
    "bhattacharyya": _moments("Bhattacharyya", bhattacharyya, "low",
        "-log int sqrt(N(mu, S) N(0, I/m))", "Bhattacharyya 1943", loss=True),
    "hellinger": _moments("Hellinger²", hellinger, "low", "1 - exp(-Bhattacharyya)", "Hellinger 1909"),
    "tcr": _moments("-TCR", tcr, "low",
        "-logdet(I + m/(n eps) Z^T Z) / 2, eps 0.2", "Yu et al., NeurIPS 2020", loss=True),
    "rankme": _moments("RankMe", rankme, "high",
        "exp H(singular values of Z / their sum)", "Garrido et al., ICML 2023"),
    "rankme_share": _moments("RankMe / m", rankme_share, "high", "RankMe / m", "Garrido et al., ICML 2023"),
    "effective_rank": _moments("effective rank", effective_rank, "high",
        "exp H(lambda / sum lambda)", "Roy & Vetterli 2007"),
    "participation_ratio": _moments("participation ratio", participation_ratio, "high",
        "(sum lambda)^2 / sum lambda^2", "Gao et al., bioRxiv 214262, 2017"),
    "stable_rank": _moments("stable rank", stable_rank, "high", "sum lambda / lambda_1", "NESum: He & Ozay, ICML 2022"),
    "alpha_req": _moments("alpha-ReQ", alpha_req, "near 1",
        "-slope of log lambda_i against log i, weights 1/i", "Agrawal et al., NeurIPS 2022"),
    "isoscore": _moments("IsoScore", isoscore, "high",
        "(participation ratio - 1) / (m - 1)", "Rudman et al., Findings of ACL 2022"),
    "alignment": _views("A", alignment, "low", "mean_i ||a_i - b_i||^2", "Wang & Isola, ICML 2020"),
    "align_uniform": _views("A + L_U", align_uniform, "low",
        "A(a, b) + (L_U(a) + L_U(b)) / 2", "Wang & Isola, ICML 2020"),
    "barlow": _views("Barlow term", barlow, "low",
        "sum (1 - C_ii)^2 + 0.08 sum_{i!=j} C_ij^2, C = corr(a, b)", "Zbontar et al., ICML 2021"),
    "mmcr": _views("MMCR", mmcr, "low", "-nuclear norm of the views' centroids", "Yerxa et al., NeurIPS 2023"),
    "lidar": _views("LiDAR", lidar, "high",
        "exp H(eigenvalues of S_w^(-1/2) S_b S_w^(-1/2))", "Thilak et al., ICLR 2024"),
}  # fmt: skip


def of_moments(metric: W2Metric) -> dict[str, float]:
    """Every measure that two moments determine, of the rows that `metric` has seen. ValueError with fewer than two
    rows, TypeError for another class (such as that of a copied w2.py)."""
    if not isinstance(metric, W2Metric):
        kind = type(metric)
        raise TypeError(f"expected a W2Metric of wassersteinssl.w2, got {kind.__module__}.{kind.__qualname__}")
    return {name: of_metric(name, metric) for name, record in MEASURES.items() if record.of_moments}


def of_metric(name: str, metric: W2Metric) -> float:
    """One measure that two moments determine, of the rows that `metric` has seen."""
    return metric.compute() if name == "w2" else float(MEASURES[name].function(metric))

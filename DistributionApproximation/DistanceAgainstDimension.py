"""Figure 2: how far one coordinate Y_i of a uniform unit row of R^m is from its stand-in N(0, 1/m): KL and 1-d W2.

KL is that of Y_i's shares of 51 bins on [-1, 1] from the Gaussian's exact masses, so that an empty bin adds 0 and no
term is infinite. W2 is that of two sorted samples. Beside them the exact distances, by quadrature, and what finite
samples and bins make of them. DistanceAgainstDimension.ipynb draws the file that this writes.
Example: python ./DistributionApproximation/DistanceAgainstDimension.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=200_000, quick=20_000, out=DATA) if __name__ == "__main__" else None

import numpy as np
import torch
from scipy import integrate, special, stats

from wassersteinssl import coordinates, studies


def kl_bins(p: np.ndarray, q: np.ndarray) -> float:
    """sum_b p_b log(p_b / q_b) with 0 log 0 = 0."""
    return float(special.rel_entr(p, q).sum())


def kl_bins_expected(p: np.ndarray, q: np.ndarray, n: int) -> float:
    """The mean of `kl_bins` over n samples of masses p: a bin's count c is binomial, its term (c/n) log(c / (n q))."""
    reach = 10 * np.sqrt(n * p) + 20  # counts farther from their mean have negligible weight
    total = 0.0
    for p_b, q_b, reach_b in zip(p, q, reach, strict=True):
        c = np.arange(max(1, int(n * p_b - reach_b)), min(n, int(n * p_b + reach_b)) + 1)
        total += float(stats.binom.pmf(c, n, p_b) @ special.rel_entr(c / n, q_b))
    return total


def kl_exact(m: int) -> float:
    """int p log(p/q) dy, with y = sin t, which removes the infinite ends of p at m = 2."""
    p, q = coordinates.sphere_law(m), coordinates.gaussian_law(m)

    def integrand(t: float) -> float:
        y = np.sin(t)
        return special.rel_entr(p.pdf(y), q.pdf(y)) * np.cos(t)

    return 2 * integrate.quad(integrand, 0, np.pi / 2, epsabs=1e-13, limit=200)[0]


def w2_samples(x: np.ndarray, y: np.ndarray) -> float:
    """1-d W2 of two samples of one size: the i-th smallest goes to the i-th smallest."""
    return float(np.sqrt(np.mean((np.sort(x, axis=None) - np.sort(y, axis=None)) ** 2)))


def w2_noise(n: int, random: torch.Generator) -> float:
    """W2 of two samples of the one law N(0, 1), root mean square of 20 pairs."""
    pairs = ([coordinates.gaussian_samples(n, 1, random) for _ in range(2)] for _ in range(20))
    return float(np.sqrt(np.mean([w2_samples(*pair) ** 2 for pair in pairs])))


def w2_exact(m: int) -> float:
    """W2^2 = int_0^1 (F^-1(u) - G^-1(u))^2 du, with u = Phi(t): G^-1(u) = t / sqrt m. Both laws are symmetric."""
    p = coordinates.sphere_law(m)

    def integrand(t: float) -> float:
        return (p.isf(special.ndtr(-t)) - t / m**0.5) ** 2 * np.exp(-t * t / 2) / np.sqrt(2 * np.pi)

    return float(np.sqrt(2 * integrate.quad(integrand, 0, 12, epsabs=1e-14, limit=200)[0]))


def study(options: argparse.Namespace) -> Path:
    random = studies.generator(options.seed, options.device)
    noise = w2_noise(options.samples, random)
    rows = []
    for m in studies.progress(coordinates.DIMENSIONS, "m"):
        sphere = coordinates.sphere_samples(options.samples, m, random)
        gaussian = coordinates.gaussian_samples(options.samples, m, random)
        exact = w2_exact(m)
        p, q = (coordinates.bin_masses(law) for law in (coordinates.sphere_law(m), coordinates.gaussian_law(m)))
        rows.append(
            {
                "m": m,
                "kl": kl_bins(coordinates.bin_shares(sphere), q),
                "kl_expected": kl_bins_expected(p, q, options.samples),  # with so many samples, in these bins
                "kl_bins": kl_bins(p, q),  # in these bins, with infinitely many samples
                "kl_exact": kl_exact(m),
                "w2": w2_samples(sphere, gaussian),
                "w2_expected": float(np.hypot(exact, noise / m**0.5)),
                "w2_noise": noise / m**0.5,  # of two samples of N(0, 1/m)
                "w2_exact": exact,
            }
        )
    return studies.write(options, rows)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

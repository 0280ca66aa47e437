"""One coordinate of a uniform unit row of R^m, its Gaussian stand-in N(0, 1/m), and the paper's 51 bins of both."""

import numpy as np
import torch
from scipy import stats

from wassersteinssl.studies import sphere_chunks

DIMENSIONS = (2, 4, 8, 16, 32, 64, 128, 256)
EDGES = np.linspace(-1, 1, 52)  # of the 51 bins
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2


def sphere_law(m: int) -> stats.distributions.rv_frozen:
    """The law of one coordinate Y: density Gamma(m/2) / (sqrt(pi) Gamma((m-1)/2)) (1 - y^2)^((m-3)/2) on (-1, 1).

    (Y + 1) / 2 follows Beta((m-1)/2, (m-1)/2). At m = 2 it is the arcsine law, which is infinite at the ends.
    """
    return stats.beta((m - 1) / 2, (m - 1) / 2, loc=-1, scale=2)


def gaussian_law(m: int) -> stats.distributions.rv_frozen:
    """N(0, 1/m), which has the mean and the variance of `sphere_law`."""
    return stats.norm(scale=m**-0.5)


def sphere_samples(n: int, m: int, random: torch.Generator, *, columns: int = 1) -> np.ndarray:
    """The first `columns` coordinates of n uniform unit rows of R^m: (n, columns) float64."""
    rows = torch.cat([z[:, :columns].clone() for z in sphere_chunks(n, m, random)])  # a view would keep all of z
    return rows.double().cpu().numpy()


def gaussian_samples(n: int, m: int, random: torch.Generator, *, columns: int = 1) -> np.ndarray:
    """The first `columns` coordinates of n rows of N(0, I/m): (n, columns) float64."""
    return (torch.randn(n, columns, generator=random, device=random.device) / m**0.5).double().cpu().numpy()


def bin_shares(x: np.ndarray) -> np.ndarray:
    """The share of x in each bin; they add up to less than 1 where the Gaussian leaves [-1, 1]."""
    return np.histogram(x, EDGES)[0] / x.size


def bin_masses(law: stats.distributions.rv_frozen) -> np.ndarray:
    """Exact mass in each bin of a law that is symmetric about 0: computed below 0, where no digit cancels, and
    mirrored."""
    masses = np.diff(law.cdf(EDGES))
    return np.where(CENTRES < 0, masses, masses[::-1])

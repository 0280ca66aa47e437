"""Figure 9: how two coordinates (Y_i, Y_j) of a uniform unit row of R^32 and N(0, I_2/32) fill 51 x 51 bins.

Writes the share of the samples in every bin and the exact mass; Density2DPlot.ipynb draws them.
Example: python ./DistributionApproximation/Density2DPlot.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".npz")
OPTIONS = study_options(__doc__, samples=2_000_000, quick=200_000, out=DATA) if __name__ == "__main__" else None

import numpy as np

from wassersteinssl import coordinates, studies

M = 32


def sphere_masses(m: int) -> np.ndarray:
    """Mass of (Y_i, Y_j) in each bin: the density (m-2) / (2 pi) (1 - x^2 - y^2)^((m-4)/2) by Gauss-Legendre, m > 4."""
    nodes, weights = np.polynomial.legendre.leggauss(5)
    half = (coordinates.EDGES[1] - coordinates.EDGES[0]) / 2
    x = coordinates.CENTRES[:, None] + half * nodes  # (bins, nodes)
    inside = np.clip(1 - x[:, :, None, None] ** 2 - x**2, 0, None)  # (bins, nodes, bins, nodes)
    density = (m - 2) / (2 * np.pi) * inside ** ((m - 4) / 2)
    return half**2 * np.einsum("ipjq,p,q->ij", density, weights, weights)


def study(options: argparse.Namespace) -> Path:
    random = studies.generator(options.seed, options.device)
    counts = np.zeros((2, 51, 51))  # sphere, Gaussian
    rows = 2**17
    for start in studies.progress(range(0, options.samples, rows), "samples"):
        n = min(rows, options.samples - start)
        for count, draw in zip(counts, (coordinates.sphere_samples, coordinates.gaussian_samples), strict=True):
            count += np.histogram2d(*draw(n, M, random, columns=2).T, bins=(coordinates.EDGES, coordinates.EDGES))[0]
    masses = coordinates.bin_masses(coordinates.gaussian_law(M))
    arrays = {
        "edges": coordinates.EDGES,
        "sphere": counts[0] / options.samples,
        "gaussian": counts[1] / options.samples,
        "sphere_exact": sphere_masses(M),
        "gaussian_exact": np.outer(masses, masses),
    }
    return studies.write_arrays(options, arrays, m=M)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

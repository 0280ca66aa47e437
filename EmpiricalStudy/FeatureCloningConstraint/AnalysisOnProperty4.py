"""W2 and L_U when every feature is cloned 0..10 times, not renormalised: the feature cloning constraint (figure 5).

m = 32 with 25, 50, 75 % collapsed. A measure U that sees the redundancy has U(z (+) z) < U(z).
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=50_000, quick=3000, out=DATA) if __name__ == "__main__" else None

import torch

from wassersteinssl import studies

DIMENSION = 32
LEVELS = (25, 50, 75)  # percent
CLONES = 10
BLOCK = 512  # rows of a block of pairs: it stays in the processor's cache


def lu_cloned(z: torch.Tensor, most: int) -> list[float]:
    """L_U of unit rows z (n, k) with every feature there 1, 2, ..., `most` times, in one pass over the pairs.

    Clones multiply a squared distance, so c of them raise the kernel exp(-2 ||z_i - z_j||^2) = exp(4 z_i.z_j - 4) to
    the power c: `lu_uniformity(z, t=2 * c)`, exactly.
    """
    blocks = z.split(BLOCK)
    sums = torch.zeros(most, dtype=torch.float64)
    for i, u in enumerate(blocks):
        for j in range(i, len(blocks)):
            kernel = torch.exp(4 * (u @ blocks[j].T) - 4)  # (rows of u, rows of block j)
            if i == j:
                kernel = kernel.tril_(-1)  # each pair once, no row with itself
            power = torch.ones_like(kernel)
            sums += torch.stack([power.mul_(kernel).sum() for _ in range(most)]).double().cpu()
    return (sums.log() - math.log(len(z) * (len(z) - 1) / 2)).tolist()


def study(options):
    rows = []
    for z, k in studies.collapsed_spheres(options, DIMENSION, LEVELS):
        metric = studies.moments(z)
        for clones, lu in enumerate(lu_cloned(z, 1 + CLONES)):
            rows.append({"clones": clones, **studies.beside_theory(metric, lu, DIMENSION, k, clones=1 + clones)})
    return studies.write(options, rows)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

"""W2 and L_U against the dimension m = 2, 4, ..., 4096, of which 25, 50 or 75 % have collapsed (the paper's figure 4).

m = 2 has only the 50 %; with few rows m ends where they are no longer four times as many. Neither measure depends on
where the zeros are, and L_U not on how many there are: one sample with k active coordinates serves every (m, eta) that
leaves k, so that a k is sampled and measured once.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=50_000, quick=6000, out=DATA) if __name__ == "__main__" else None

from wassersteinssl import studies
from wassersteinssl.uniformity import lu_uniformity

DIMENSIONS = [2**i for i in range(1, 13)]
LEVELS = (25, 50, 75)  # percent


def study(options):
    random = studies.generator(options.seed, options.device)
    dimensions = [m for m in DIMENSIONS if 4 * m <= options.samples] or DIMENSIONS[:1]
    grid = [(m, percent) for percent, m in product(LEVELS, dimensions) if m * percent % 100 == 0]  # whole coordinates
    measured = {}
    for k in studies.progress(sorted({studies.alive(m, percent / 100) for m, percent in grid}), "dimensions"):
        z = studies.sphere(options.samples, k, random)
        measured[k] = studies.moments(z), float(lu_uniformity(z))
    living = [(m, studies.alive(m, percent / 100)) for m, percent in grid]
    return studies.write(options, [studies.beside_theory(*measured[k], m, k) for m, k in living])


if __name__ == "__main__":
    studies.main(study, OPTIONS)

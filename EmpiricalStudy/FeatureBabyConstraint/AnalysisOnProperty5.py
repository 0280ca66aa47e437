"""W2 and L_U when 0..10 blocks of m zeros are appended to every row: the feature baby constraint (figure 6).

m = 32 with 25, 50, 75 % collapsed. A measure U that sees the unused features has U(z (+) 0^k) < U(z). Zeros change no
distance and no moment: L_U is measured once, and W2 of every padding comes from the same moments.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=50_000, quick=3000, out=DATA) if __name__ == "__main__" else None

from wassersteinssl import studies
from wassersteinssl.uniformity import lu_uniformity

DIMENSION = 32
LEVELS = (25, 50, 75)  # percent
BLOCKS = range(11)


def study(options):
    spheres = studies.collapsed_spheres(options, DIMENSION, LEVELS)
    measured = [(studies.moments(z), float(lu_uniformity(z)), DIMENSION, k) for z, k in spheres]
    grid = product(measured, BLOCKS)
    return studies.write(options, [{"blocks": i, **studies.beside_theory(*known, blocks=i)} for known, i in grid])


if __name__ == "__main__":
    studies.main(study, OPTIONS)

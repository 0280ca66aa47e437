"""W2 and L_U against the collapse level eta: the share of coordinates that are zero (the paper's figure 3).

For m = 200, 500, 1000 and eta = 0, 1, 2, 3, 5, 10, 15, ..., 100 %. The number of active coordinates is rounded, and the
file holds the eta that this gives. At 100 % no row has a direction, and both measures are left out.
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=20_000, quick=2000, out=DATA) if __name__ == "__main__" else None

from wassersteinssl import studies
from wassersteinssl.uniformity import lu_uniformity

DIMENSIONS = (200, 500, 1000)
LEVELS = (0, 1, 2, 3, *range(5, 101, 5))  # percent; more where theory is steep


def study(options):
    random = studies.generator(options.seed, options.device)
    rows = []
    for m, percent in studies.progress(product(DIMENSIONS, LEVELS), "collapse levels"):
        k = studies.alive(m, percent / 100)
        if k:
            z = studies.sphere(options.samples, k, random)
            rows.append(studies.beside_theory(studies.moments(z), float(lu_uniformity(z)), m, k))
        else:
            rows.append({"m": m, "k": 0, "eta": 1.0, "gap": "all zero: no direction"})
    return studies.write(options, rows)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

"""W2 and L_U when every row is cloned 0..10 times: the instance cloning constraint (the paper's figure 11).

m = 32 with 50 % collapsed. A measure U of the distribution has U(D with every row repeated) = U(D). Both measures are
computed on the repeated rows. In theory W2 stays (its covariance divides by n), and L_U follows from the pair sum S of
the n rows alone: c copies have c^2 S + n c (c - 1) / 2 over c n (c n - 1) / 2 pairs, as pairs of copies add exp(0) = 1.
"""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=1_000, quick=500, out=DATA) if __name__ == "__main__" else None

from wassersteinssl import studies
from wassersteinssl.uniformity import lu_uniformity

DIMENSION = 32
COLLAPSE = 0.5
CLONES = range(11)


def lu_repeated(lu: float, n: int, copies: int) -> float:
    """L_U of n rows that are all there `copies` times, from their L_U alone."""
    pairs = math.exp(lu) * n * (n - 1) / 2
    pairs = copies**2 * pairs + n * copies * (copies - 1) / 2
    return math.log(pairs / (copies * n * (copies * n - 1) / 2))


def study(options):
    n, k = options.samples, studies.alive(DIMENSION, COLLAPSE)
    z = studies.sphere(n, k, studies.generator(options.seed, options.device))
    alone = float(lu_uniformity(z))
    rows = []
    for clones in studies.progress(CLONES, "clones"):
        copies = z.repeat(1 + clones, 1)
        row = studies.beside_theory(studies.moments(copies), float(lu_uniformity(copies)), DIMENSION, k)
        row["w2_finite"] = studies.w2_finite(n, k, DIMENSION)  # n rows, however often they are repeated
        rows.append({"clones": clones, **row, "lu_theory": lu_repeated(alone, n, 1 + clones)})
    return studies.write(options, rows)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

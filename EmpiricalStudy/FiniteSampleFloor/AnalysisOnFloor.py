"""W2 of n uniform rows against n, for m = 8, 32, 128, 256, 1024: how low a perfect embedding reads (not in the paper).

For n = 2, 4, 8, ..., --samples and the two sizes of MARKS: mean and deviation over independent draws, `w2_floor` (what
theory expects of random rows) and `w2_minimum` (what no rows can beat).
"""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=50_000, quick=2000, out=DATA) if __name__ == "__main__" else None

import numpy as np

from wassersteinssl import studies
from wassersteinssl.w2 import w2_floor, w2_minimum

DRAWS = {8: 20, 32: 20, 128: 20, 256: 16, 1024: 4}  # by dimension: fewer where a draw is dear
MARKS = {"batch of 512 x 256": (512, 256), "Table 2: 10,000 x 256": (10_000, 256)}  # rows, dimension


def study(options):
    random = studies.generator(options.seed, options.device)
    wanted = {2**i for i in range(1, 40)} | {n for n, _ in MARKS.values()} | {options.samples}
    sizes = sorted(n for n in wanted if n <= options.samples)
    rows = []
    for m, n in studies.progress(product(DRAWS, sizes), "sizes"):
        w2 = [studies.w2_padded(studies.moments(studies.sphere(n, m, random)), m) for _ in range(DRAWS[m])]
        row = {"m": m, "n": n, "draws": len(w2), "w2": float(np.mean(w2)), "w2_std": float(np.std(w2, ddof=1))}
        rows.append(row | {"floor": w2_floor(n, m), "minimum": w2_minimum(n, m)})
    marks = {name: size for name, size in MARKS.items() if size[0] <= options.samples}
    return studies.write(options, rows, marks=marks)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

"""Figure 8: how one coordinate Y_i of a uniform unit row of R^m and its stand-in N(0, 1/m) fill 51 bins on [-1, 1].

Writes the share of the samples in every bin and the exact mass; Density1DPlot.ipynb draws them.
Example: python ./DistributionApproximation/Density1DPlot.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=200_000, quick=20_000, out=DATA) if __name__ == "__main__" else None

from wassersteinssl import coordinates, studies


def study(options: argparse.Namespace) -> Path:
    random = studies.generator(options.seed, options.device)
    rows = []
    for m in studies.progress(coordinates.DIMENSIONS, "m"):
        columns = {
            "left": coordinates.EDGES[:-1],
            "right": coordinates.EDGES[1:],
            "sphere": coordinates.bin_shares(coordinates.sphere_samples(options.samples, m, random)),
            "gaussian": coordinates.bin_shares(coordinates.gaussian_samples(options.samples, m, random)),
            "sphere_exact": coordinates.bin_masses(coordinates.sphere_law(m)),
            "gaussian_exact": coordinates.bin_masses(coordinates.gaussian_law(m)),
        }
        rows += [{"m": m, **dict(zip(columns, values, strict=True))} for values in zip(*columns.values(), strict=True)]
    return studies.write(options, rows)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

"""Figures 12 and 13: zeros appended to uniform features collapse them, which W2 sees and L_U does not.

Figure 12: points D on a circle, the ring D (+) 0^1 in R^3, and points on the whole sphere. Figure 13: the singular
values of centred rows D (+) 0^k / sqrt n, D uniform on the sphere of R^32, beside 1/sqrt(32 + k), which W2 compares
them with: W2^2 = ||mu||^2 + sum_i (sigma_i - 1/sqrt(32 + k))^2. AnalysisOnCaseStudy.ipynb draws the file written.
Example: python ./EmpiricalStudy/PaddingCaseStudy/AnalysisOnCaseStudy.py
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".npz")
OPTIONS = study_options(__doc__, samples=400, quick=400, out=DATA) if __name__ == "__main__" else None

import numpy as np
import torch

from wassersteinssl import studies

M = 32
ZEROS = (0, M, 2 * M)
NAMES = ("circle", "ring", "sphere")  # of figure 12, in R^2, R^3 and R^3


def padded(z: torch.Tensor, zeros: int) -> torch.Tensor:
    return torch.nn.functional.pad(z, (0, zeros))


def spectrum(z: torch.Tensor) -> np.ndarray:
    """The singular values of the centred rows over sqrt n, largest first, with the zeros that n < m leaves."""
    values = torch.linalg.svdvals(z.double() - z.double().mean(dim=0)) / len(z) ** 0.5
    return np.pad(values.cpu().numpy(), (0, z.shape[1] - len(values)))


def study(options: argparse.Namespace) -> Path:
    random = studies.generator(options.seed, options.device)
    n = options.samples
    circle, sphere, features = (studies.sphere(n, m, random) for m in (2, 3, M))
    rings = dict(zip(NAMES, (circle, padded(circle, 1), sphere), strict=True))
    found = {name: studies.measures(z, z.shape[1]) for name, z in rings.items()}
    arrays = {name: z.cpu().numpy() for name, z in rings.items()}
    arrays |= {f"{measure}_rings": np.array([found[name][measure] for name in NAMES]) for measure in ("w2", "lu")}
    arrays["w2_rings_theory"] = np.array([0, studies.w2_theory(1 / 3), 0])  # of the population
    arrays["lu_rings_theory"] = np.array([studies.lu_theory(k) for k in (2, 2, 3)])
    arrays["zeros"] = np.array(ZEROS)
    for k in studies.progress(ZEROS, "zeros"):
        arrays[f"spectrum_{k}"] = spectrum(padded(features, k))
    arrays["spectrum_theory"] = studies.spectrum_theory(n, M) ** 0.5  # of singular values
    padding = [studies.measures(padded(features, k), M + k) for k in ZEROS]
    arrays |= {f"{measure}_padding": np.array([row[measure] for row in padding]) for measure in ("w2", "lu")}
    arrays["w2_padding_theory"] = np.array([studies.w2_finite(n, M, M + k) for k in ZEROS])
    return studies.write_arrays(options, arrays, m=M)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

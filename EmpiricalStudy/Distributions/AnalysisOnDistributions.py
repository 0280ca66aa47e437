"""Figure 10: W2 and L_U of rows drawn from several laws on R^256 and scaled to unit length.

Writes both measures of each law, with the expected W2 where it is known, and the deviation of W2 over samples of
uniform rows; AnalysisOnDistributions.ipynb draws them.
Example: python ./EmpiricalStudy/Distributions/AnalysisOnDistributions.py
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=50_000, quick=3000, out=DATA) if __name__ == "__main__" else None

import numpy as np
import torch
from torch import Tensor

from wassersteinssl import studies
from wassersteinssl.w2 import W2Metric, w2_floor

M = 256
DRAWS = 24  # samples of uniform rows, of which the deviation is taken
Draw = Callable[[Tensor, torch.Generator], Tensor]


def normal(z: Tensor, random: torch.Generator) -> Tensor:
    return z.normal_(generator=random)


def exponential(z: Tensor, random: torch.Generator) -> Tensor:
    return z.exponential_(generator=random)


def mixture(components: int, random: torch.Generator) -> Draw:
    """Of unit Gaussians, equally likely, around means that are themselves drawn from N(0, I)."""
    means = normal(torch.empty(components, M, device=random.device), random)

    def draw(z: Tensor, random: torch.Generator) -> Tensor:
        component = torch.randint(components, z.shape[:1], generator=random, device=z.device)
        return normal(z, random).add_(means[component])

    return draw


def laws(random: torch.Generator) -> dict[str, tuple[float | None, Draw]]:
    """Name -> the share (E x)^2 / E x^2 that the mean has in a coordinate's square, if coordinates are independent and
    identical, and the function that fills z with rows."""
    return {
        "N(0, I)": (0, normal),
        "U[-1, 1]": (0, lambda z, r: z.uniform_(-1, 1, generator=r)),
        "Laplace": (0, lambda z, r: exponential(z, r).sub_(exponential(torch.empty_like(z), r))),
        "Student t, 2 d.o.f.": (0, lambda z, r: normal(z, r).div_(exponential(torch.empty_like(z), r).sqrt_())),
        "Cauchy": (0, lambda z, r: z.cauchy_(generator=r)),
        "U[0, 1]": (3 / 4, lambda z, r: z.uniform_(generator=r)),
        "Exponential": (1 / 2, exponential),
        "Bernoulli(1/2)": (1 / 2, lambda z, r: z.bernoulli_(0.5, generator=r)),
        "2 Gaussians": (None, mixture(2, random)),
        "8 Gaussians": (None, mixture(8, random)),
        "32 Gaussians": (None, mixture(32, random)),
    }


def w2_expected(n: int, mean_share: float) -> float:
    """The common mean takes that share of each row's square: a direction of its own, without variance. The rest fills
    the other directions evenly: W2^2 = 2 - 2 sqrt(1 - mean_share) E sqrt(lambda), the floor's E; large M."""
    mean_root = 1 - w2_floor(n, M) ** 2 / 2
    return (2 - 2 * (1 - mean_share) ** 0.5 * mean_root) ** 0.5


def study(options: argparse.Namespace) -> Path:
    random = studies.generator(options.seed, options.device)
    z = torch.empty(options.samples, M, device=options.device)
    rows = []
    for name, (mean_share, draw) in studies.progress(laws(random).items(), "laws"):
        for chunk in z.split(studies.CHUNK // M):
            torch.nn.functional.normalize(draw(chunk, random), out=chunk)
        expected = None if mean_share is None else w2_expected(options.samples, mean_share)
        rows.append({"law": name, **studies.measures(z, M), "w2_expected": expected})
    uniform = []
    for _ in studies.progress(range(DRAWS), "uniform rows"):
        metric = W2Metric(normalize=False)
        for rows_of_it in studies.sphere_chunks(options.samples, M, random):
            metric.update(rows_of_it)
        uniform.append(metric.compute())
    floor, spread = w2_floor(options.samples, M), float(np.std(uniform, ddof=1))
    return studies.write(options, rows, m=M, w2_floor=floor, w2_std=spread, lu_theory=studies.lu_theory(M))


if __name__ == "__main__":
    studies.main(study, OPTIONS)

"""Barlow Twins: make the cross-correlation of two views' features the identity.

Zbontar et al., Barlow Twins: Self-Supervised Learning via Redundancy Reduction, ICML 2021.
C = BN(z_a)^T BN(z_b) / b, BN without an affine map:

    loss = sum_j (1 - C_jj)^2 + lambda sum_{j != k} C_jk^2,  lambda = 0.08.

Example: python code/BarlowTwins/barlow_twins.py --dataset cifar10 --uniformity w2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import not_negative
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class BarlowTwinsSettings(Settings):
    redundancy: float = option(0.08, "weight lambda of the off-diagonal terms", check=not_negative)


if __name__ == "__main__":
    SETTINGS = parse(BarlowTwinsSettings, __doc__)  # --help answers before torch loads

from typing import ClassVar

from torch import Tensor, nn

from wassersteinssl.method import Method
from wassersteinssl.run import main


class BarlowTwins(Method):
    # W2: the paper's, falling to 0. L_U: not published; searched (code/results/README.md).
    ALPHA: ClassVar = {"w2": (30.0, 0.0), "lu": (30.0, 0.0)}

    def __init__(self, settings: BarlowTwinsSettings):
        super().__init__(settings)
        self.redundancy = settings.redundancy
        self.standardise = nn.BatchNorm1d(settings.dim, affine=False)

    def loss(self, *, z_a: Tensor, z_b: Tensor) -> Tensor:
        c = self.standardise(z_a).T @ self.standardise(z_b) / len(z_a)  # (m, m)
        diagonal = c.diagonal()
        off_diagonal = c.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + self.redundancy * off_diagonal


if __name__ == "__main__":
    main(BarlowTwins, SETTINGS)

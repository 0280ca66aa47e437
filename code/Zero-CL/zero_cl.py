"""Zero-CL: whiten each view's features, then align the views feature by feature (and sample by sample).

Zhang et al., Zero-CL: Instance and Feature Decorrelation for Negative-Free Symmetric Contrastive Learning, ICLR 2022,
as their public code computes it. For each view with embeddings z (b, m), BN without an affine map:

    H = BN(z) S^(-1/2),  S   = 0.9 BN(z)^T BN(z) / (b-1) + 0.10001 I
    G = S_I^(-1/2) Zt,   S_I = Zt Zt^T / m + 0.01 I,  Zt: rows standardised, 1e-4 added to their variance
    feature loss  = sum_j (1 - (H_a^T H_b)_jj / b)^2
    instance loss = sum_i (1 - <G_a, G_b>_i / m)^2

No gradient goes through S^(-1/2) and S_I^(-1/2).

Their CIFAR script uses the feature loss alone (--instance-weight 0).

Example: python code/Zero-CL/zero_cl.py --dataset cifar10 --uniformity w2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import not_negative
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class ZeroCLSettings(Settings):
    instance_weight: float = option(0.0, "of the instance loss beside the feature loss", check=not_negative)


if __name__ == "__main__":
    SETTINGS = parse(ZeroCLSettings, __doc__)  # --help answers before torch loads

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from wassersteinssl.method import Method
from wassersteinssl.run import main
from wassersteinssl.w2 import polar_by_products


class ZeroCL(Method):
    # W2: the paper's. L_U: not published; searched (code/results/README.md).
    ALPHA: ClassVar = {"w2": (30.0, 30.0), "lu": (3.0, 3.0)}

    def __init__(self, settings: ZeroCLSettings):
        super().__init__(settings)
        self.instance_weight = settings.instance_weight
        self.standardise = nn.BatchNorm1d(settings.dim, affine=False)

    def loss(self, *, z_a: Tensor, z_b: Tensor) -> Tensor:
        a, b = self.whitened_features(z_a), self.whitened_features(z_b)  # (b, m)
        loss = (1 - (a * b).mean(dim=0)).square().sum()
        if self.instance_weight:
            a, b = whitened_instances(z_a), whitened_instances(z_b)
            loss = loss + self.instance_weight * (1 - (a * b).mean(dim=1)).square().sum()
        return loss

    def whitened_features(self, z: Tensor) -> Tensor:
        z = self.standardise(z)
        return z @ inverse_root(z * math.sqrt(0.9 / (len(z) - 1)), ridge=0.1 + 1e-5)


def whitened_instances(z: Tensor) -> Tensor:
    """Rows standardised over their features, then decorrelated from each other: (b, m) -> (b, m)."""
    z = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, unbiased=False, keepdim=True) + 1e-4).sqrt()
    return inverse_root(z.T / math.sqrt(z.shape[1]), ridge=0.01) @ z


@torch.no_grad()
def inverse_root(x: Tensor, ridge: float) -> Tensor:
    """(x^T x + ridge I)^(-1/2) of x (n, k), without a gradient: (k, k)."""
    return (by_eigh if x.device.type == "cpu" else by_products)(x, ridge)


def by_eigh(x: Tensor, ridge: float) -> Tensor:
    """By eigenvalues, in float64. NaN if x is not finite, where eigh would raise: the loss is for the loop to name."""
    gram = x.T.double() @ x.double()
    if not bool(gram.isfinite().all()):
        return torch.full_like(gram, torch.nan, dtype=x.dtype)
    values, vectors = torch.linalg.eigh(gram)
    return ((vectors * (values.clamp(min=0) + ridge).rsqrt()) @ vectors.T).to(x.dtype)


def by_products(x: Tensor, ridge: float) -> Tensor:
    """By matrix products alone, for which no host waits: GPUs, CUDA graphs. X = (x over sqrt(ridge) I) has the Gram
    matrix G = x^T x + ridge I and the polar factor X G^(-1/2), whose lower part is sqrt(ridge) G^(-1/2).

    In float32 the error is below 1e-4 of the result for eigenvalues of G from ridge to 1e5 ridge (a test measures it):
    the singular values of X, which the polynomials need within 3e-4 of each other, spread as their roots.
    """
    root = math.sqrt(ridge)
    stacked = torch.cat([x, root * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)])  # (n + k, k)
    return polar_by_products(stacked)[len(x) :] / root


if __name__ == "__main__":
    main(ZeroCL, SETTINGS)

"""Zero-CL: whiten each view's features, then align the views feature by feature (and sample by sample).

Zhang et al., Zero-CL: Instance and Feature Decorrelation for Negative-Free Symmetric Contrastive Learning, ICLR 2022,
as their public code computes it. For each view with embeddings z (b, m), BN without an affine map:

    H = BN(z) P,  P = S'^(-1/2),  S' = 0.9 BN(z)^T BN(z) / (b-1) + 0.1 I;  no gradient through P
    feature loss  = sum_j (1 - (H_a^T H_b)_jj / b)^2
    instance loss = sum_i (1 - <G_a, G_b>_i / m)^2,  G = S_I^(-1/2) Zt,  Zt: rows standardised,  S_I = Zt Zt^T / m

Their CIFAR script uses the feature loss alone (--instance-weight 0).

Example: python code/Zero-CL/zero_cl.py --dataset cifar10 --uniformity w2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.settings import Settings, not_negative, option, parse


@dataclass(frozen=True)
class ZeroCLSettings(Settings):
    instance_weight: float = option(0.0, "of the instance loss beside the feature loss", check=not_negative)


SETTINGS = parse(ZeroCLSettings, __doc__) if __name__ == "__main__" else None  # --help answers before torch loads

from typing import ClassVar

import torch
from torch import Tensor, nn

from wassersteinssl.method import Method
from wassersteinssl.run import main


class ZeroCL(Method):
    # W2: the paper's. L_U: the paper does not publish its weight; the same is used.
    ALPHA: ClassVar = {"w2": (30.0, 30.0), "lu": (30.0, 30.0)}

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
        with torch.no_grad():
            covariance = 0.9 * z.T @ z / (len(z) - 1) + 0.1 * torch.eye(z.shape[1], device=z.device)
            whitening = inverse_root(covariance, epsilon=1e-5)
        return z @ whitening


def whitened_instances(z: Tensor) -> Tensor:
    """Rows standardised over their features, then decorrelated from each other: (b, m) -> (b, m)."""
    z = (z - z.mean(dim=1, keepdim=True)) / (z.var(dim=1, unbiased=False, keepdim=True) + 1e-4).sqrt()
    with torch.no_grad():
        whitening = inverse_root(z @ z.T / z.shape[1], epsilon=0.01)
    return whitening @ z


def inverse_root(matrix: Tensor, epsilon: float) -> Tensor:
    """U (L + epsilon)^(-1/2) U^T of a symmetric positive semi-definite matrix U L U^T."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * (values.clamp(min=0) + epsilon).rsqrt()) @ vectors.T


if __name__ == "__main__":
    main(ZeroCL, SETTINGS)

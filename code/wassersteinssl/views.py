"""Measures of two views: a, b (n, m) features of the same n inputs, row for row.

They are scaled to unit rows inside unless `normalize=False`. ValueError unless both are floating matrices of one shape,
TypeError unless they are tensors. Non-finite rows never give a finite number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wassersteinssl.numerics import (
    cholesky,
    exp_entropy,
    moments_of,
    present_eigenvalues,
    result_dtype,
    unit_rows,
    wide_rows,
)
from wassersteinssl.pairwise import lu_uniformity
from wassersteinssl.w2 import FirstDerivative, check_matrix, polar_by_eigh, wide_dtype


def alignment(a: Tensor, b: Tensor, *, alpha: float = 2.0, normalize: bool = True) -> Tensor:
    """A = mean_i ||a_i - b_i||^alpha over positive pairs a_i, b_i, rows of two (n, m) views; lower is better.

    In [0, 2^alpha] for unit rows. Pairs that are equal have a zero gradient. Wang & Isola 2020.
    ValueError unless both are floating matrices of one shape.
    """
    _check_views(a, b)
    with torch.autocast(a.device.type, enabled=False):
        a, b = (z.to(result_dtype(z)) for z in (a, b))
        if normalize:
            a, b = (unit_rows(z) for z in (a, b))
        square = (a - b).square().sum(dim=1)
        if alpha == 2:
            return square.mean()
        equal = square == 0  # there the slope of a power below 2 has no bound or no direction
        return torch.where(equal, 0, torch.where(equal, 1, square).pow(alpha / 2)).mean()


def align_uniform(a: Tensor, b: Tensor, *, normalize: bool = True) -> Tensor:
    """A(a, b) + (L_U(a) + L_U(b)) / 2, alignment and uniformity as one number; lower is better. Wang & Isola 2020."""
    uniformity = (lu_uniformity(a, normalize=normalize) + lu_uniformity(b, normalize=normalize)) / 2
    return alignment(a, b, normalize=normalize) + uniformity


def barlow(a: Tensor, b: Tensor, *, redundancy: float = 0.08) -> Tensor:
    """sum_i (1 - C_ii)^2 + redundancy sum_{i != j} C_ij^2, C (m, m) the correlations of a's features with b's.

    Lower is better; the features are standardised, rows are not scaled. A constant feature correlates with nothing.
    Zbontar et al., Barlow Twins, ICML 2021.
    """
    _check_views(a, b, least_rows=2)
    c = _standard_features(a).T @ _standard_features(b) / len(a)
    diagonal = c.diagonal()
    off_diagonal = c.square().sum() - diagonal.square().sum()
    return ((1 - diagonal).square().sum() + redundancy * off_diagonal).to(result_dtype(a))


def mmcr(a: Tensor, b: Tensor, *, normalize: bool = True) -> Tensor:
    """-||C||_*, where row i of C (n, m) is the centroid (a_i + b_i) / 2 of an input's views; lower is better.

    From -sqrt(n min(n, m)), aligned and spread, to 0. The first derivative only.
    Yerxa et al., Learning Efficient Coding of Natural Images with Maximum Manifold Capacity Representations, 2023.
    """
    _check_views(a, b, least_rows=2)
    c = (wide_rows(a, normalize) + wide_rows(b, normalize)) / 2
    return -_NuclearNorm.apply(c, polar_by_eigh(c.detach(), None)).to(result_dtype(a))


def lidar(a: Tensor, b: Tensor, *, delta: float = 1e-4, normalize: bool = True) -> Tensor:
    """exp H of the eigenvalues of S_w^(-1/2) S_b S_w^(-1/2): how many directions tell inputs apart; higher is better.

    S_b the covariance of the centroids (a_i + b_i) / 2, S_w that of views around their centroid plus delta I. From 1
    to min(n - 1, m); 0 where all centroids are equal. Thilak et al., LiDAR, ICLR 2024.
    """
    _check_views(a, b, least_rows=2)
    dtype = result_dtype(a)
    a, b = wide_rows(a, normalize), wide_rows(b, normalize)
    with torch.autocast(a.device.type, enabled=False):
        between = moments_of((a + b) / 2, normalize=False)
        half = (a - b) / 2  # a view minus its centroid, up to the sign
        factor, infinite = cholesky(half.T @ half / between.n + delta * between.identity)
        left = torch.linalg.solve_triangular(factor, between.covariance, upper=False)
        both = torch.linalg.solve_triangular(factor, left.T, upper=False)  # similar to S_w^(-1/2) S_b S_w^(-1/2)
    return (exp_entropy(present_eigenvalues(both)) + infinite).to(dtype)


def _check_views(a: Tensor, b: Tensor, least_rows: int = 1) -> None:
    check_matrix(a, least_rows)
    check_matrix(b, least_rows)
    if a.shape != b.shape:
        raise ValueError(f"expected two matrices of one shape (n, m), got {tuple(a.shape)} and {tuple(b.shape)}")


def _standard_features(z: Tensor) -> Tensor:
    """Features (n, m) with mean 0 and mean square 1; one that is constant to rounding becomes 0."""
    z = z.to(wide_dtype(z.device))
    largest = z.detach().abs().amax(dim=0)  # divided out first, as its square may overflow or vanish
    z = z / torch.where(largest > 0, largest, 1)
    centred = z - z.mean(dim=0)
    centred = centred - centred.mean(dim=0)
    square = centred.square().mean(dim=0)
    noise = (4 * torch.finfo(z.dtype).eps) ** 2 * z.detach().square().mean(dim=0)
    constant = square <= noise
    return torch.where(constant, 0, centred / torch.where(constant, 1, square).sqrt())


class _NuclearNorm(torch.autograd.Function):
    """||C||_* = <P, C>, with the polar factor P as its gradient."""

    @staticmethod
    def forward(ctx, c: Tensor, polar: Tensor) -> Tensor:
        ctx.save_for_backward(c, polar)
        return (polar * c).sum()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        c, polar = ctx.saved_tensors
        return FirstDerivative.apply(gradient * polar, c), None

"""What the measures share: rows in float64, their moments, and linear algebra that copes with singular matrices.

z: (n, m) features, a row a sample. Nothing here adds an epsilon: what rounding left of 0 counts as 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from wassersteinssl.w2 import (
    FirstDerivative,
    W2Metric,
    check_matrix,
    eigenvalue_noise,
    scaled_to_unit,
    wide_dtype,
)


class Moments(NamedTuple):
    n: int
    mean: Tensor  # (m,)
    covariance: Tensor  # (m, m), with 1/n; exactly 0 where the rows are equal to rounding
    dtype: torch.dtype  # of the result

    @property
    def m(self) -> int:
        return self.mean.shape[0]  # torch 2.10 compiles no len here

    @property
    def identity(self) -> Tensor:
        return torch.eye(self.m, dtype=self.mean.dtype, device=self.mean.device)

    @property
    def second(self) -> Tensor:
        return self.covariance + torch.outer(self.mean, self.mean)


def wide_rows(z: Tensor, normalize: bool) -> Tensor:
    """The rows, checked, in float64 (float32 on Apple GPUs), scaled to unit length if asked; a zero row stays zero.
    If any row is not finite, all become NaN."""
    check_matrix(z, least_rows=2)
    rows = z.to(wide_dtype(z.device))
    rows = unit_rows(rows, smallest=torch.finfo(result_dtype(z)).tiny) if normalize else rows
    return rows + 0 * rows.detach().sum()  # 0, or NaN


def unit_rows(z: Tensor, *, smallest: float | None = None) -> Tensor:
    """Rows divided by their norms, differentiable once. A row shorter than `smallest` (default: the smallest normal
    number) becomes zero."""
    return _UnitRows.apply(z, torch.finfo(z.dtype).tiny if smallest is None else smallest)


class _UnitRows(torch.autograd.Function):
    """u = z / ||z||, row by row, with gradient (g - u <u, g>) / ||z||. One function, because differentiating its parts
    would pass over z a dozen times more."""

    @staticmethod
    def forward(ctx, z: Tensor, smallest: float) -> Tensor:
        u, scale = scaled_to_unit(z, smallest)
        ctx.save_for_backward(z, u, scale)
        return u

    @staticmethod
    def backward(ctx, gradient: Tensor):
        z, u, scale = ctx.saved_tensors
        with torch.no_grad():
            radial = (u * gradient).sum(dim=1, keepdim=True)
            of_rows = torch.addcmul(gradient, u, radial, value=-1).mul_(scale)
        return FirstDerivative.apply(of_rows, z, gradient), None


def result_dtype(z: Tensor) -> torch.dtype:
    """The type of a measure of z: that of z, but float32 for half precision."""
    return torch.promote_types(z.dtype, torch.float32)


def moments_of(z: Tensor | W2Metric, normalize: bool) -> Moments:
    """The moments of rows z (n, m), differentiable, or of the rows that a metric has seen (it has its own `normalize`).
    ValueError with fewer than two."""
    if isinstance(z, W2Metric):
        if z.n < 2:
            raise ValueError(f"need at least 2 rows, got {z.n}")
        n, mean, covariance, dtype, rounding = z.n, z.mean, z.covariance, z.mean.dtype, z.rounding
    else:
        rows, n, dtype = wide_rows(z, normalize), len(z), result_dtype(z)
        rounding = torch.finfo(z.dtype).eps / 2  # of the rows as given
        with torch.autocast(z.device.type, enabled=False):
            mean = rows.mean(dim=0)
            centred = rows - mean
            rest = centred.mean(dim=0)  # what rounding left
            centred = centred - rest
            mean, covariance = mean + rest, centred.T @ centred / n
    spread = covariance.detach().diagonal().sum()
    noise = max(rounding, 4 * torch.finfo(mean.dtype).eps) ** 2 * mean.detach().square().sum()
    return Moments(n, mean, torch.where((spread <= noise) & spread.isfinite(), 0, covariance), dtype)


def present_eigenvalues(symmetric: Tensor) -> Tensor:
    """Eigenvalues, ascending; what rounding left of 0 is 0."""
    if not bool(torch.isfinite(symmetric).all()):  # the solver would raise
        return symmetric[0] * torch.nan
    values = torch.linalg.eigvalsh(symmetric)
    return torch.where(values > eigenvalue_noise(values.detach()), values, 0)


def exp_entropy(values: Tensor) -> Tensor:
    """exp H(p), p = values / sum; 0 if all are 0."""
    total = values.sum()
    share = values / torch.where(total == 0, 1, total)
    share = torch.where(share == 0, 1, share)  # both have entropy 0, but at 0 its slope is infinite
    return torch.where(total == 0, 0, torch.special.entr(share).sum().exp())


def participation(covariance: Tensor) -> Tensor:
    """(tr S)^2 / ||S||_F^2; 0 if S is 0."""
    total = covariance.diagonal().sum()
    share = covariance / torch.where(total == 0, 1, total)  # squares of very large or small numbers overflow
    return torch.where(total == 0, 0, 1 / torch.where(total == 0, 1, share.square().sum()))


def cholesky(a: Tensor) -> tuple[Tensor, Tensor]:
    """(L, 0) with a = L L^T; (I, +inf) if a is singular to rounding; (I, NaN) if it is not finite. Nothing waits for
    the host."""
    with torch.no_grad():
        factor, failed = torch.linalg.cholesky_ex(a)
        identity = torch.eye(len(a), dtype=a.dtype, device=a.device)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        norms = torch.linalg.matrix_norm(inverse, 1) * torch.linalg.matrix_norm(inverse, torch.inf)
        smallest = 1 / norms  # a lower bound of the smallest eigenvalue, which no pivot need show
        noise = 4 * len(a) * torch.finfo(a.dtype).eps * a.diagonal().max()
        singular = (failed != 0) | ~(smallest > noise)
        infinite = torch.where(singular, torch.inf, 0.0) + 0 * a.sum()  # NaN if a is not finite
    return torch.linalg.cholesky_ex(torch.where(singular, identity, a))[0], infinite.to(a.dtype)


def logdet(factor: Tensor) -> Tensor:
    """log det(L L^T) of the Cholesky factor L."""
    return 2 * factor.diagonal().log().sum()

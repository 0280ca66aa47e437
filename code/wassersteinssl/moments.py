"""Measures that the first two moments determine: of rows z (n, m) or, for any number of rows, of a W2Metric.

    effective_rank(z)                                   # rows, scaled to unit length unless normalize=False
    metric = W2Metric().update(first).update(second)    # or moments, streamed in O(m^2) memory
    effective_rank(metric)                              # the metric has its own `normalize`

Legend: mu the mean and S the covariance (with 1/n) of the rows; lambda the eigenvalues of S, p = lambda / sum(lambda);
M = S + mu mu^T the second moment. "The target" is N(0, I/m), the law that W2 compares with.

Every function gives a 0-d tensor, differentiable (once) with respect to rows, computed in float64 and returned in the
rows' type (at least float32). Rows with NaN or infinity give NaN; anything but a floating matrix of n >= 2 rows raises
ValueError. What rounding left of an eigenvalue of 0 counts as 0; rows that differ by no more than the rounding of their
type have no spread. On a GPU, measures of eigenvalues wait for the host; those with a determinant (by Cholesky) and the
polynomial ones do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wassersteinssl.numerics import cholesky, exp_entropy, logdet, moments_of, participation, present_eigenvalues
from wassersteinssl.w2 import W2Metric


def frobenius(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """||m S - I||_F^2 / m + ||mu||^2, the squared distance of the moments from the target's; lower is more uniform.

    For unit rows 2 when all are equal, but m - 1 when they lie evenly on +- one axis.
    """
    x = moments_of(z, normalize)
    return ((x.m * x.covariance - x.identity).square().sum() / x.m + x.mean.square().sum()).to(x.dtype)


def vicreg(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """25 mean_j relu(1 - sqrt(C_jj + 1e-4)) + sum_{i != j} C_ij^2 / m with C = m S n/(n-1); lower is more uniform.

    VICReg's variance and covariance terms, with their weights 25 and 1, of the rows sqrt(m) z, whose features have unit
    variance under the target. The hinge looks at single features: it is not invariant to rotations.
    Bardes, Ponce, LeCun: VICReg, ICLR 2022.
    """
    x = moments_of(z, normalize)
    c = x.m * x.n / (x.n - 1) * x.covariance
    variance = c.diagonal()
    hinge = torch.relu(1 - (variance + 1e-4).sqrt()).mean()
    return (25 * hinge + (c.square().sum() - variance.square().sum()) / x.m).to(x.dtype)


# ---- divergences of the Gaussian fit N(mu, S) from the target ----


def kl(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """KL(N(mu, S) || N(0, I/m)) = (tr(m S) + m ||mu||^2 - m - logdet(m S)) / 2 in nats, lower is more uniform.

    For unit rows -logdet(m S) / 2. +inf where S is singular, as it is with n <= m rows: as a loss for full rank only.
    """
    x = moments_of(z, normalize)
    factor, infinite = cholesky(x.m * x.covariance)
    square = x.covariance.diagonal().sum() + x.mean.square().sum()
    return ((x.m * square - x.m - logdet(factor)) / 2 + infinite).to(x.dtype)


def reverse_kl(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """KL(N(0, I/m) || N(mu, S)) = (tr(A^-1) + m mu^T A^-1 mu - m + logdet A) / 2 with A = m S, in nats.

    Lower is more uniform; +inf where S is singular.
    """
    x = moments_of(z, normalize)
    factor, infinite = cholesky(x.m * x.covariance)
    columns = torch.cat([x.identity, x.m**0.5 * x.mean.unsqueeze(1)], dim=1)  # (m, m + 1)
    solved = torch.linalg.solve_triangular(factor, columns, upper=False)
    return ((solved.square().sum() - x.m + logdet(factor)) / 2 + infinite).to(x.dtype)


def jeffreys(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """KL(fit || target) + KL(target || fit), in nats; lower is more uniform. +inf where S is singular."""
    return kl(z, normalize=normalize) + reverse_kl(z, normalize=normalize)


def bhattacharyya(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """(m/8) mu^T B^-1 mu + (logdet B - logdet(m S) / 2) / 2 with B = (m S + I) / 2; lower is more uniform.

    -log of the integral of sqrt(density of the fit * density of the target). +inf where S is singular: as a loss for
    full rank only.
    """
    x = moments_of(z, normalize)
    factor, infinite = cholesky(x.m * x.covariance)
    between, _ = cholesky((x.m * x.covariance + x.identity) / 2)
    solved = torch.linalg.solve_triangular(between, x.mean.unsqueeze(1), upper=False)
    return (x.m / 8 * solved.square().sum() + (logdet(between) - logdet(factor) / 2) / 2 + infinite).to(x.dtype)


def hellinger(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """Squared Hellinger distance 1 - exp(-Bhattacharyya), in [0, 1]; lower is more uniform.

    1 where S is singular, and 1 to rounding long before that: of little use except for small m.
    """
    return -torch.expm1(-bhattacharyya(z, normalize=normalize))


def tcr(z: Tensor | W2Metric, *, eps: float = 0.2, normalize: bool = True) -> Tensor:
    """-logdet(I + (m / eps) M) / 2 with M = Z^T Z / n, minus the total coding rate in nats; lower is more uniform.

    Always finite for unit rows; +inf where rows longer than about 1e6 (normalize=False) leave a direction unused. `eps`
    is the square of the authors' epsilon. Yu et al., Learning Diverse and Discriminative Representations via the
    Principle of Maximal Coding Rate Reduction, NeurIPS 2020.
    """
    x = moments_of(z, normalize)
    factor, infinite = cholesky(x.identity + x.m / eps * x.second)
    return (-logdet(factor) / 2 + infinite).to(x.dtype)


# ---- how many directions the rows use: monitors ----


def rankme(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """exp H(s / sum(s)), s the singular values of Z, *not* centred; from 1 to min(n, m), higher uses more directions.

    s = sqrt(n lambda(M)): from moments. 0 for zero rows. It is the effective rank of Z; some packages call
    `effective_rank`, that of S, by this name.
    Garrido et al., RankMe, ICML 2023.
    """
    x = moments_of(z, normalize)
    return exp_entropy(present_eigenvalues(x.second).sqrt()).to(x.dtype)


def rankme_share(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """RankMe / m, in [0, 1]. Unlike RankMe it notices unused and repeated features."""
    return rankme(z, normalize=normalize) / (z.dim if isinstance(z, W2Metric) else z.shape[1])


def effective_rank(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """exp H(p), p the shares of the eigenvalues of S; from 1 to min(n - 1, m), 0 without spread; higher is better.

    Roy & Vetterli, The Effective Rank, EUSIPCO 2007.
    """
    x = moments_of(z, normalize)
    return exp_entropy(present_eigenvalues(x.covariance)).to(x.dtype)


def participation_ratio(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """(sum lambda)^2 / sum lambda^2 = (tr S)^2 / ||S||_F^2; from 1 to m, 0 without spread; higher is better.

    Needs no eigenvalue.
    """
    x = moments_of(z, normalize)
    return participation(x.covariance).to(x.dtype)


def stable_rank(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """sum lambda / lambda_1, from 1 to m, 0 without spread; higher is better. Also called NESum.

    He & Ozay, Exploring the Gap between Collapsed & Whitened Features in Self-Supervised Learning, ICML 2022.
    """
    x = moments_of(z, normalize)
    values = present_eigenvalues(x.covariance)
    largest = values[-1]
    return torch.where(largest == 0, 0, values.sum() / torch.where(largest == 0, 1, largest)).to(x.dtype)


def alpha_req(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """alpha of the power law lambda_i ~ i^-alpha: minus the slope of log lambda_i against log i, i = 1, 2, ... from the
    largest, by least squares with weights 1/i. 0: flat; near 1 is said to be best.

    Eigenvalues of 0 are left out, which makes it unreliable where the rank is deficient. +inf if fewer than two others
    remain: the spectrum falls at once. Agrawal et al., alpha-ReQ, NeurIPS 2022.
    """
    x = moments_of(z, normalize)
    values = present_eigenvalues(x.covariance).flip(0)
    present = ~(values == 0)  # NaN stays
    index = torch.arange(1, x.m + 1, dtype=values.dtype, device=values.device)
    weight = present / index
    weight = weight / weight.sum().clamp(min=1 / x.m)  # if no eigenvalue is present: no 0/0
    log_index, log_value = index.log(), torch.where(present, values, 1).log()
    log_index = log_index - (weight * log_index).sum()
    spread = (weight * log_index.square()).sum()
    several = present.sum() > 1
    slope = (weight * log_index * log_value).sum() / torch.where(several, spread, 1)
    return torch.where(several, -slope, torch.inf).to(x.dtype)


def isoscore(z: Tensor | W2Metric, *, normalize: bool = True) -> Tensor:
    """(participation ratio - 1) / (m - 1), from 0 (one direction) to 1; higher is better. At m = 1: 1, or 0 if equal.

    IsoScore's own steps (eigenvalues rescaled to the norm of the ones vector, distance from it, share of dimensions
    used) come to that: phi = (sum lambda)^2 / (m sum lambda^2). Rudman et al., IsoScore, ACL Findings 2022.
    """
    x = moments_of(z, normalize)
    ratio = participation(x.covariance)
    score = (ratio - 1) / (x.m - 1) if x.m > 1 else ratio
    return torch.where(score < 0, 0, score).to(x.dtype)

"""Measures on random projections of the rows: linear in n, and they see more than two moments.

z: (n, m) features, a row a sample, normalised to unit rows inside unless `normalize=False`; n >= 2. The values
are differentiable, once.

A value depends on its directions. Without `directions`, every call uses those of seed 0. Then values can be compared,
but non-uniformity between these directions goes unseen, and a network trained on them would exploit that: a loss needs
new directions in each step, drawn by `random_directions`.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from wassersteinssl.numerics import result_dtype, wide_rows

SLICES = 256  # random directions, or circles, over which is averaged
KNOTS = 17  # of SIGReg's trapezoidal rule, its authors' number
CHUNK = 2**22  # projected numbers held at once: 32 MiB in float64


def ssw(z: Tensor, *, slices: int = SLICES, directions: Tensor | None = None, normalize: bool = True) -> Tensor:
    """SSW_2^2, the squared spherical sliced Wasserstein distance to the uniform sphere; lower is more uniform.

    Mean over random great circles of W_2^2 between the rows' angles on it and the uniform circle, both measured in
    turns: with angles x_(1) <= ... <= x_(n) in [0, 1]

        W_2^2 = mean_i x_i^2 - (mean_i x_i)^2 + mean_i x_(i) (n + 1 - 2i) / n + 1/12.

    1/12 when all rows are equal. Only the directions of the rows count, so `normalize` changes nothing. A row whose
    projection is zero has angle 0 and no gradient. `directions` (2, m, slices): an orthonormal pair for each circle,
    instead of the `slices` pairs of seed 0. ValueError for m = 1, where there is no circle.
    Bonet et al., Spherical Sliced-Wasserstein, ICLR 2023.
    """
    rows = wide_rows(z, normalize)
    if z.shape[1] < 2:
        raise ValueError(f"a great circle needs m >= 2 features, got shape {tuple(z.shape)}")
    n = len(rows)
    first, second = directions = _directions(2, slices, rows, directions)  # (m, slices) each
    place = torch.arange(n - 1, -n, -2, dtype=rows.dtype, device=rows.device).unsqueeze(1) / n  # (n + 1 - 2i) / n
    total = torch.zeros((), dtype=rows.dtype, device=rows.device)
    with torch.autocast(z.device.type, enabled=False):
        for u, v in zip(_parts(first, n), _parts(second, n), strict=True):
            across, up = rows @ u, rows @ v  # (n, part)
            nowhere = (across == 0) & (up == 0)
            x = torch.atan2(-up, torch.where(nowhere, 1, -across)) / (2 * math.pi) + 0.5
            x = torch.where(nowhere, 0, x).sort(dim=0).values
            mean = x.mean(dim=0)
            total = total + ((x - mean).square().mean(dim=0) + (x * place).mean(dim=0)).sum()
    return (total / directions.shape[2] + 1 / 12).to(result_dtype(z))


def sigreg(
    z: Tensor,
    *,
    slices: int = SLICES,
    directions: Tensor | None = None,
    per_row: bool = False,
    normalize: bool = True,
) -> Tensor:
    """n * mean over random unit a of the integral of |phi(t) - e^(-t^2/2)|^2 e^(-t^2/2) dt over [-3, 3], phi the
    empirical characteristic function of a^T sqrt(m) z_i; lower is more uniform. `per_row`: without the factor n.

    By the trapezoidal rule on KNOTS points of [0, 3], doubled, as its authors do. For n rows of N(0, I/m) 1.0524 on
    average; about 1.05 n when all rows are equal to one unit vector, 0.40205 n when all are 0. `directions`
    (1, m, slices): the unit vectors a, instead of the `slices` of seed 0.
    Balestriero & LeCun, LeJEPA, arXiv 2511.08544.
    """
    rows = wide_rows(z, normalize) * z.shape[1] ** 0.5
    n = len(rows)
    t = torch.linspace(0, 3, KNOTS, dtype=rows.dtype, device=rows.device)
    normal = torch.exp(-t.square() / 2)
    weight = torch.full_like(t, 2 * 3 / (KNOTS - 1))
    weight[:: KNOTS - 1] *= 0.5  # in place: assigning a number to an element would wait for the device
    directions = _directions(1, slices, rows, directions)
    total = torch.zeros((), dtype=rows.dtype, device=rows.device)
    with torch.autocast(z.device.type, enabled=False):
        for a in _parts(directions[0], n * KNOTS):
            x = (rows @ a).unsqueeze(-1) * t  # (n, part, knots)
            apart = (x.cos().mean(dim=0) - normal).square() + x.sin().mean(dim=0).square()
            total = total + (apart * (normal * weight)).sum()
    return (total * ((1 if per_row else n) / directions.shape[2])).to(result_dtype(z))


def random_directions(
    count: int, m: int, slices: int = SLICES, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """(count, m, slices): for each slice `count` orthonormal directions of R^m, uniformly distributed, on the
    generator's device. SSW takes 2, SIGReg 1. ValueError for less than one slice or more directions than m."""
    if slices < 1:
        raise ValueError(f"a mean over slices needs at least 1, not {slices}")
    if count > m:
        raise ValueError(f"R^{m} has no {count} orthonormal directions")
    normal = torch.randn(slices, m, count, generator=generator, dtype=dtype, device=generator.device)
    q, r = torch.linalg.qr(normal)
    q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # LAPACK's choice of signs is not uniform
    return q.permute(2, 1, 0).contiguous()


def _parts(directions: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """The directions (m, slices) in parts that need at most CHUNK numbers each, `numbers` for one direction."""
    return directions.split(max(1, CHUNK // numbers), dim=1)


def _directions(count: int, slices: int, rows: Tensor, given: Tensor | None) -> Tensor:
    """Directions (count, m, slices): those given, or those of seed 0. ValueError if the shape is wrong."""
    m = rows.shape[1]
    if given is None:
        return _fixed(count, m, slices, rows.device, rows.dtype)
    if given.ndim != 3 or given.shape[:2] != (count, m) or not given.shape[2]:
        raise ValueError(f"directions of shape ({count}, {m}, slices) wanted, got {tuple(given.shape)}")
    return given.to(rows)


def _fixed(count: int, m: int, slices: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    found = _cached(count, m, slices, device, dtype)
    if type(found) is not Tensor:  # a fake tensor, made while torch.export was tracing
        _cached.cache_clear()
    return found


@functools.lru_cache(maxsize=16)
def _cached(count: int, m: int, slices: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # a later call may want a gradient
        return random_directions(count, m, slices, generator=torch.Generator().manual_seed(0), dtype=dtype).to(device)

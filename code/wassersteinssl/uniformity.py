"""Measures of how uniformly features spread over the unit sphere: one function a formula, one table of them.

z: (n, m) features, a row a sample, normalised to unit rows inside unless `normalize=False`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wassersteinssl.w2 import _FirstDerivative, _unit_rows, w2_uniformity

BLOCK = 2048  # rows of a pairwise block: its distances take 16 MiB in float32, whatever n is


def lu_uniformity(z: Tensor, *, t: float = 2.0, normalize: bool = True) -> Tensor:
    """L_U = log mean_{i<j} exp(-t ||z_i - z_j||^2), a differentiable 0-d tensor; lower is more uniform.

    Exact over all n (n-1) / 2 pairs, in blocks of rows: beside z and, in the backward pass, its gradient, memory does
    not grow with n or m. About -2 t for uniform unit rows and large m, 0 when all rows are equal. Half-precision
    input is computed in float32, unnormalised rows in float64, where near rows keep their distance far from the mean.
    A zero row stays zero. The first derivative only: a second one raises. ValueError, with the shape, for anything but
    a floating matrix of n >= 2 rows.
    Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity, ICML 2020.
    """
    if z.ndim != 2 or z.shape[0] < 2 or z.shape[1] < 1 or not z.is_floating_point():
        raise ValueError(
            f"expected a floating-point matrix of n >= 2 rows and m >= 1 features, got {z.dtype} of {tuple(z.shape)}"
        )
    with torch.autocast(z.device.type, enabled=False):
        return _LogMeanKernel.apply(z, t, normalize)


def alignment(a: Tensor, b: Tensor, *, alpha: float = 2.0, normalize: bool = True) -> Tensor:
    """A = mean_i ||a_i - b_i||^alpha over positive pairs a_i, b_i, rows of two (n, m) views; lower is better.

    In [0, 2^alpha] for unit rows. Pairs that are equal have a zero gradient. Wang & Isola 2020.
    ValueError unless both are floating matrices of one shape.
    """
    if a.shape != b.shape or a.ndim != 2 or 0 in a.shape or not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(
            f"expected two floating-point matrices of one shape (n, m), got {a.dtype} of {tuple(a.shape)} "
            f"and {b.dtype} of {tuple(b.shape)}"
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = (z.to(_at_least_float32(z.dtype)) for z in (a, b))
        if normalize:
            a, b = (_unit_rows(z, torch.finfo(z.dtype).tiny) for z in (a, b))
        square = (a - b).square().sum(dim=1)
        if alpha == 2:
            return square.mean()
        equal = square == 0  # where a power below 2 has a slope without bound or direction
        return torch.where(equal, 0, torch.where(equal, 1, square).pow(alpha / 2)).mean()


@dataclass(frozen=True)
class Measure:
    """A row of MEASURES. `function` takes z (n, m), or two views where `needs_views`; it returns a 0-d tensor."""

    function: Callable[..., Tensor]
    better: str  # "low" or "high"
    formula: str
    source: str
    loss: bool  # usable as `--uniformity NAME`
    needs_views: bool = False


MEASURES: dict[str, Measure] = {
    "w2": Measure(
        w2_uniformity,
        "low",
        "sqrt(||mu||^2 + 1 + tr S - (2/sqrt m) tr S^(1/2))",
        "Fang et al., ICLR 2024",
        loss=True,
    ),
    "lu": Measure(lu_uniformity, "low", "log mean_{i<j} exp(-2 ||z_i - z_j||^2)", "Wang & Isola, ICML 2020", loss=True),
    "alignment": Measure(
        alignment, "low", "mean_i ||a_i - b_i||^2", "Wang & Isola, ICML 2020", loss=False, needs_views=True
    ),
}


class _LogMeanKernel(torch.autograd.Function):
    """log mean_{i<j} exp(-t d_ij^2); the backward pass computes the blocks again instead of keeping n^2 weights."""

    @staticmethod
    def forward(ctx, z: Tensor, t: float, normalize: bool) -> Tensor:
        # float64 where the device has it: the sum runs over up to billions of pairs
        wide = torch.float32 if z.device.type == "mps" else torch.float64
        largest = torch.full((), -torch.inf, device=z.device, dtype=wide)
        total = torch.zeros((), device=z.device, dtype=wide)
        shift, scale = _standardise(z, normalize, wide)
        for i, j, _, _, exponent in _blocks(z, shift, scale, t, normalize):
            new = torch.maximum(largest, exponent.max().to(wide))
            part = exponent.sub_(new.to(exponent.dtype)).exp_().sum(dim=1).sum(dtype=wide)
            total = total * (largest - new).exp() + (part / 2 if i == j else part)  # i = j: each pair twice
            largest = new
        n = z.shape[0]
        log_sum = largest + total.log()
        ctx.save_for_backward(z, shift, scale, log_sum)
        ctx.t, ctx.normalize = t, normalize
        return (log_sum - math.log(n * (n - 1) / 2)).to(_at_least_float32(z.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        z, shift, scale, log_sum = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            out = torch.zeros(z.shape, dtype=_at_least_float32(z.dtype), device=z.device)
            for i, j, u, v, exponent in _blocks(z, shift, scale, ctx.t, ctx.normalize):
                p = exponent.sub_(log_sum.to(exponent.dtype)).exp_()  # each pair's share of the sum
                # d/du_i sum_j p_ij (-t ||u_i - v_j||^2) = -2 t (u_i sum_j p_ij - sum_j p_ij v_j), and likewise for v
                out[i] += torch.addmm(u * p.sum(dim=1, keepdim=True), p, v, alpha=-1)
                if i != j:
                    out[j] += torch.addmm(v * p.sum(dim=0).unsqueeze(1), p.T, u, alpha=-1)
            out *= -2 * ctx.t * gradient
            if ctx.normalize:  # through u = z / ||z||: drop the radial part, divide by the norm
                for i in _rows(len(z)):
                    u = _standard_rows(z, i, shift, scale, normalize=True)
                    out[i] = (out[i] - u * (out[i] * u).sum(dim=1, keepdim=True)) * scale[i]
        return _FirstDerivative.apply(out.to(z.dtype), z), None, None


def _standardise(z: Tensor, normalize: bool, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """(shift, scale) with u = (z - shift) * scale: unit rows, or centred ones, whose distances are the same and whose
    squared norms do not swamp them."""
    if not normalize:
        return z.mean(dim=0, dtype=wide), torch.ones(len(z), 1, dtype=wide, device=z.device)
    norms = torch.cat([torch.linalg.vector_norm(z[i], dim=1, keepdim=True, dtype=wide) for i in _rows(len(z))])
    zero = norms < torch.finfo(_at_least_float32(z.dtype)).tiny
    return torch.zeros((), dtype=wide, device=z.device), torch.where(zero, 0, 1 / norms)


def _standard_rows(z: Tensor, i: slice, shift: Tensor, scale: Tensor, normalize: bool) -> Tensor:
    rows = (z[i].to(scale.dtype) - shift) * scale[i]
    return rows.to(_at_least_float32(z.dtype)) if normalize else rows


def _blocks(
    z: Tensor, shift: Tensor, scale: Tensor, t: float, normalize: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Row slices i <= j, their standardised rows u and v, and -t ||u_i - v_j||^2, with -inf for a row with itself."""
    for i in _rows(len(z)):
        u = _standard_rows(z, i, shift, scale, normalize)
        for j in _rows(len(z)):
            if j.start < i.start or (i == j and len(u) == 1):
                continue
            v = u if i == j else _standard_rows(z, j, shift, scale, normalize)
            exponent = torch.addmm(v.square().sum(dim=1), u, v.T, alpha=-2)
            exponent.add_(u.square().sum(dim=1, keepdim=True)).clamp_(min=0).mul_(-t)
            if i == j:
                exponent.fill_diagonal_(-torch.inf)
            yield i, j, u, v, exponent


def _rows(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

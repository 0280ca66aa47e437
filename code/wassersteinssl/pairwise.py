"""Measures of pairs of rows: over all pairs, in blocks, so that memory does not grow with n^2. They are exact, except
that of several neighbours within 1e-7 of the length of the centred rows any may count as the nearest.

z: (n, m) features, a row a sample, normalised to unit rows inside unless `normalize=False`; n >= 2. These measures see
more than two moments, and are differentiable once. On a GPU none waits for the host, except `lu_calibrated` of
rows that are not normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from scipy.special import gammaln, hyp0f1, ive
from torch import Tensor

from wassersteinssl.numerics import result_dtype, wide_rows
from wassersteinssl.w2 import FirstDerivative, check_matrix, scaled_to_unit, wide_dtype

BLOCK = 2048  # rows of a pairwise block: its distances take 16 MiB in float32, whatever n is
SHED = 512  # every so many steps Prim's algorithm drops the rows that are in the tree already


def lu_uniformity(z: Tensor, *, t: float = 2.0, normalize: bool = True) -> Tensor:
    """L_U = log mean_{i<j} exp(-t ||z_i - z_j||^2), a differentiable 0-d tensor; lower is more uniform.

    Exact over all n (n-1) / 2 pairs, in blocks of rows: apart from z and, in the backward pass, its gradient, memory
    does not grow with n or m. About -2 t for uniform unit rows and large m, 0 when all rows are equal. Half-precision
    input is computed in float32, unnormalised rows in float64, so that near rows keep their distance far from the mean.
    A zero row stays zero. Only the first derivative: a second one raises. ValueError, with the shape, unless z is a
    floating matrix of n >= 2 rows.
    Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity, ICML 2020.
    """
    check_matrix(z, least_rows=2)
    with torch.autocast(z.device.type, enabled=False):
        return _LogMeanKernel.apply(z, t, normalize)


def lu_theory(m: int, *, t: float = 2.0) -> float:
    """log c_m, the L_U of the uniform unit sphere of R^m: log E exp(-t ||x - y||^2) = -2 t + log 0F1(; m/2; t^2).

    The same as log(e^(-2t) Gamma(m/2) t^(1 - m/2) I_(m/2 - 1)(2t)). The 0F1 does not underflow at large m; the Bessel
    function does not overflow at large t.
    """
    if t >= 100 and (bessel := ive(m / 2 - 1, 2 * t)) > 0:
        return float(gammaln(m / 2) + (1 - m / 2) * math.log(t) + math.log(bessel))
    return float(-2 * t + math.log(hyp0f1(m / 2, t * t)))


def lu_calibrated(z: Tensor, *, t: float = 2.0, normalize: bool = True) -> Tensor:
    """log mean_{i,j} exp(-t ||z_i - z_j||^2) - log c_m, i = j included: 0 for the uniform sphere, else above it.

    The first term follows from L_U, as log((1 + (n-1) e^L_U) / n), but it is a V-statistic: repeating every row changes
    nothing. For unit rows the measure is log(1 + MMD^2 / c_m), MMD the maximum mean discrepancy to the uniform sphere
    of R^m. For other rows (normalize=False) it is defined so, with MMD^2 = mean_{i,j} exp(-t ||z_i - z_j||^2)
    - 2 mean_i E_u exp(-t ||z_i - u||^2) + c_m. About log(1 + (1/c_m - 1) / n) for n uniform rows; -log c_m, near 2 t
    for large m, when all rows are equal. Errors and types as L_U.
    """
    pairs = lu_uniformity(z, t=t, normalize=normalize)
    n, m = z.shape
    log_c = lu_theory(m, t=t)
    own = torch.logaddexp(pairs + math.log(n - 1), torch.zeros_like(pairs)) - math.log(n)
    if normalize:
        return own - log_c
    across = _KernelToSphere.apply(torch.linalg.vector_norm(wide_rows(z, normalize=False), dim=1), m, t).mean()
    return torch.log(own.exp() / math.exp(log_c) + 2 - 2 * across / math.exp(log_c)).to(pairs.dtype)


def koleo(z: Tensor, *, eps: float = 1e-8, normalize: bool = True) -> Tensor:
    """-mean_i log(min_{j != i} ||z_i - z_j|| + eps), a differentiable 0-d tensor; lower is more uniform.

    eps is DINOv2's, for rows that are repeated exactly: each of them counts 18.4, without a gradient, instead of the
    +inf that eps = 0 gives. Neighbours are found in blocks, in float64.
    Sablayrolles et al., Spreading Vectors for Similarity Search, ICLR 2019. DINOv2 adds it with weight 0.1.
    """
    rows = wide_rows(z, normalize)
    nearest = distance(rows, rows[nearest_rows(rows.detach())])
    return -(nearest + eps).log().mean().to(result_dtype(z))


def mst_length(z: Tensor, *, normalize: bool = True) -> Tensor:
    """-(1/n) sum of the edges of the minimum spanning tree, a differentiable 0-d tensor; lower is more uniform.

    0 when all rows are equal; the simplex of n <= m + 1 rows has -((n-1)/n) sqrt(2n/(n-1)). The tree is found by
    Prim's algorithm in float64, in n steps of n distances each, and is right also where rows are repeated. That needs
    no n^2 memory, and on a GPU nothing waits for the host, but some 10 n small kernels are launched. The gradient takes
    the tree as constant: each edge pushes its ends apart with a unit vector, except an edge of length 0.
    Mordacq et al., T-REGS, arXiv 2510.23484, which also pulls the norms of free rows towards 1.
    """
    rows = wide_rows(z, normalize)
    near, far = _spanning_tree(rows.detach())
    return (0 - distance(rows[near], rows[far]).sum() / len(z)).to(result_dtype(z))  # not -0 for equal rows


def distance(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b, dim=1)


@torch.no_grad()
def nearest_rows(z: Tensor) -> Tensor:
    """(n,) the index of each row's nearest other row."""
    z = z - z.mean(dim=0)  # so that squares do not swamp the distances
    norms, nearest = z.square().sum(dim=1), []
    with torch.autocast(z.device.type, enabled=False):
        start = 0
        for part in z.split(max(1, BLOCK**2 // len(z))):
            squares = torch.addmm(norms, part, z.T, alpha=-2)  # without ||z_i||^2, which is constant within a row
            squares.diagonal(offset=start).fill_(torch.inf)
            nearest.append(squares.argmin(dim=1))
            start += len(part)
    return torch.cat(nearest)


@torch.no_grad()
def _spanning_tree(z: Tensor) -> tuple[Tensor, Tensor]:
    """(near, far), the ends of the n - 1 edges, each (n - 1,)."""
    n = len(z)
    z = z - z.mean(dim=0)  # as above
    norms = z.square().sum(dim=1)
    row = torch.arange(n, device=z.device)  # the numbers of the rows that are left
    square = torch.full((n,), torch.inf, dtype=z.dtype, device=z.device)  # squared distance of each to the tree
    parent = torch.zeros_like(row)  # the row of the tree at that distance
    inside = torch.zeros_like(square)  # inf for rows that are in the tree
    new = row[:1]  # position of the row that enters the tree
    near, far = [], []
    with torch.autocast(z.device.type, enabled=False):
        for step in range(1, n):
            inside.index_fill_(0, new, torch.inf)
            added, norm, number = z[new].squeeze(0), norms[new], row[new]
            if step % SHED == 0:  # rows in the tree need no more distances; their count is known, so nothing waits
                rest = inside.argsort(stable=True)[: n - step]
                z, norms, row, square, parent, inside = (x[rest] for x in (z, norms, row, square, parent, inside))
            to_new = norms + norm - 2 * (z @ added)
            closer = ~(to_new >= square)  # NaN too, which must stay visible
            parent = torch.where(closer, number, parent)
            square = torch.where(closer, to_new, square)
            new = (square + inside).argmin(dim=0, keepdim=True)
            near.append(parent[new])
            far.append(row[new])
    return torch.cat(near), torch.cat(far)


class _KernelToSphere(torch.autograd.Function):
    """E_u exp(-t ||z - u||^2) over the uniform unit sphere of R^m, for rows of norms r: by scipy, on the host.

    exp(-t (1 + r^2)) 0F1(; m/2; (t r)^2); 0 where it is below 1e-300."""

    @staticmethod
    def forward(ctx, r: Tensor, m: int, t: float) -> Tensor:
        far = t * (r - 1).square() > 700
        near = torch.where(far, 1, r)
        kernel, slope = (
            torch.from_numpy(hyp0f1(half, (t * near.cpu().numpy()) ** 2)).to(r) for half in (m / 2, m / 2 + 1)
        )
        if not bool(((kernel.isfinite() & (kernel > 0)) | r.isnan()).all()):
            raise ValueError(f"t = {t:g} is too large for rows that are not scaled to unit length")
        decay = torch.where(far, 0, torch.exp(-t * (1 + near.square())))
        ctx.save_for_backward(decay * (2 * t**2 * near * slope * 2 / m - 2 * t * near * kernel))
        return torch.where(r.isnan(), r, decay * kernel)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient * ctx.saved_tensors[0], None, None


class _LogMeanKernel(torch.autograd.Function):
    """log mean_{i<j} exp(-t d_ij^2); the backward pass computes the blocks again instead of keeping n^2 weights."""

    @staticmethod
    def forward(ctx, z: Tensor, t: float, normalize: bool) -> Tensor:
        wide = wide_dtype(z.device)  # the sum runs over up to billions of pairs
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
        return (log_sum - math.log(n * (n - 1) / 2)).to(result_dtype(z))

    @staticmethod
    def backward(ctx, gradient: Tensor):
        z, shift, scale, log_sum = ctx.saved_tensors
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            out = _slope(z, shift, scale, log_sum, ctx.t, ctx.normalize).mul_(gradient)
        return FirstDerivative.apply(out.to(z.dtype), z, gradient), None, None


def _slope(z: Tensor, shift: Tensor, scale: Tensor, log_sum: Tensor, t: float, normalize: bool) -> Tensor:
    """The gradient of log sum_{i<j} exp(-t d_ij^2). A separate function, as torch 2.14 cannot compile such a loop
    inside a `with` block under Python 3.13."""
    out = torch.zeros(z.shape, dtype=result_dtype(z), device=z.device)
    for i, j, u, v, exponent in _blocks(z, shift, scale, t, normalize):
        p = exponent.sub_(log_sum.to(exponent.dtype)).exp_()  # each pair's share of the sum
        # d/du_i sum_j p_ij (-t ||u_i - v_j||^2) = -2 t (u_i sum_j p_ij - sum_j p_ij v_j), and likewise for v
        out[i] += torch.addmm(u * p.sum(dim=1, keepdim=True), p, v, alpha=-1)
        if i != j:
            out[j] += torch.addmm(v * p.sum(dim=0).unsqueeze(1), p.T, u, alpha=-1)
    out *= -2 * t
    if normalize:  # through u = z / ||z||: drop the radial part, divide by the norm
        for i in _rows(z):
            u = _standard_rows(z, i, shift, scale, normalize=True)
            out[i] = (out[i] - u * (out[i] * u).sum(dim=1, keepdim=True)) * scale[i]
    return out


def _standardise(z: Tensor, normalize: bool, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """(shift, scale) with u = (z - shift) * scale: unit rows, or centred ones, whose distances are the same and whose
    squared norms do not swamp them."""
    if not normalize:
        return z.mean(dim=0, dtype=wide), torch.ones(len(z), 1, dtype=wide, device=z.device)
    smallest = torch.finfo(result_dtype(z)).tiny
    scale = torch.cat([scaled_to_unit(z[i].to(wide), smallest, widened=z.dtype != wide)[1] for i in _rows(z)])
    return torch.zeros((), dtype=wide, device=z.device), scale


def _standard_rows(z: Tensor, i: slice, shift: Tensor, scale: Tensor, normalize: bool) -> Tensor:
    rows = (z[i].to(scale.dtype) - shift) * scale[i]
    return rows.to(result_dtype(z)) if normalize else rows


def _blocks(
    z: Tensor, shift: Tensor, scale: Tensor, t: float, normalize: bool
) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
    """Row slices i <= j, their standardised rows u and v, and -t ||u_i - v_j||^2, with -inf for a row with itself."""
    for i in _rows(z):
        u = _standard_rows(z, i, shift, scale, normalize)
        for j in _rows(z):
            if j.start < i.start or (i == j and len(u) == 1):
                continue
            v = u if i == j else _standard_rows(z, j, shift, scale, normalize)
            exponent = torch.addmm(v.square().sum(dim=1), u, v.T, alpha=-2)
            exponent.add_(u.square().sum(dim=1, keepdim=True)).clamp_(min=0).mul_(-t)
            if i == j:
                exponent.fill_diagonal_(-torch.inf)
            yield i, j, u, v, exponent


def _rows(z: Tensor) -> list[slice]:
    """Slices of at most BLOCK rows of z; fewer if they are long, as a block would otherwise be as large as z."""
    n, m = z.shape
    block = min(BLOCK, max(256, 2**21 // m))
    return [slice(start, min(start + block, n)) for start in range(0, n, block)]

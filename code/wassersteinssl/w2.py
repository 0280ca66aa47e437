"""The Wasserstein uniformity loss: one file to copy. It needs torch, 2.10 or later, and nothing else of this
repository. SPDX-License-Identifier: MIT. Copyright (c) 2026 The WassersteinSSL maintainers.

    from w2 import W2Loss
    loss = method_loss + 0.2 * W2Loss()(z_a, z_b)          # z_a, z_b: (batch, features), any scale, float16 to float64

For n rows z_i in R^m with mean mu and covariance S (with 1/n), the 2-Wasserstein distance between N(mu, S) and
N(0, I/m) is (Fang, Li, Sun, Wang: Rethinking the Uniformity Metric in Self-Supervised Learning, ICLR 2024)

    W2^2 = ||mu||^2 + tr(S) + 1 - (2 / sqrt m) tr(S^(1/2)).

Two identities make it cheap and stable. With Z_c the centred (n, m) matrix and ||.||_* the nuclear norm,

    ||mu||^2 + tr(S) = mean_i ||z_i||^2   (1 for unit rows)      and      tr(S^(1/2)) = ||Z_c||_* / sqrt n,

and the gradient of ||Z_c||_* is the polar factor P = U V^T of Z_c = U diag(s) V^T, so that no eigenvector is ever
differentiated and nothing divides by gaps between eigenvalues. Since ||Z_c||_* = <P, Z_c>, one P gives both.

For unit rows W2 lies in [0, sqrt 2]: sqrt 2 when all rows are equal, 0 for a perfectly isotropic, centred batch. How
low n rows can come depends on n: read a value beside `w2_floor(n, m)`, what n random directions reach on average,
and `w2_minimum(n, m)`, what no n rows can beat. W2 sees two moments only: 2 m atoms at +-e_i also give 0.
"""

from __future__ import annotations

import copy
import math
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["W2Loss", "W2Metric", "w2_floor", "w2_minimum", "w2_uniformity"]


def w2_uniformity(
    z: Tensor,
    *,
    normalize: bool = True,
    squared: bool = False,
    solver: str = "auto",
    group: Any = None,
) -> Tensor:
    """W2 = sqrt(mean_i ||z_i||^2 + 1 - 2 ||Z_c||_* / sqrt(m n)), a differentiable 0-d tensor; lower is more uniform.

    z          (n, m) features, n >= 2 rows; float16 and bfloat16 are computed in float32 or more, also under autocast.
    normalize  scale the rows to unit length first (a zero row stays zero). False: the general formula.
    squared    return W2^2, which has no infinite slope at 0.
    solver     "eigh"   float64 eigenvalues of the smaller-side Gram matrix. The gradient is right to 1e-5 down to
                        singular values of 2e-5 of the largest; below 3e-8 sqrt(min(n, m)) they count as zero.
               "eigh32" the same in float32 (float64 for float64 z), 1.5 to 2.2 times as fast on a CPU. Singular values
                        below 7e-4 sqrt(min(n, m)) of the largest count as zero: directions that have collapsed get
                        no gradient. For batches far from collapse only.
               "polar"  matrix products in float32 (float64 for float64 z), no eigendecomposition and no host
                        synchronisation: for GPUs, CUDA graphs, torch.compile. Directions near collapse are pushed up
                        too weakly. Relative error of the gradient, by the smallest over the largest singular value,
                        for m to 800 (it grows with m):
                                                  5e-4    1e-4    2e-5
                            geometric spectrum    1e-3    2e-2    0.2
                            sudden drop           2e-3    0.5     0.9
                        W2 itself comes out too large there, by up to 1e-4. Float32 rounding adds up to 1e-4 / W2 near
                        0, and near collapse 1e-7 ||Z|| / ||Z_c||.
                        Products must be those of float32, torch's default: where set_float32_matmul_precision
                        allows TF32, the gradient of Gaussian rows is 5 % off at 512 x 256 and a third at 4096 x 256
                        (emulated).
               "auto"   "eigh" on a CPU, "polar" elsewhere. torch.compile(fullgraph=True) needs "polar" on a CPU, too:
                        the others break the graph.
    group      a torch.distributed process group: n rows, of one type, are those of all its ranks together; each rank
               gets the same value. If all multiply it by the same factor, the gradient is that of the sum of their
               losses, as with torch.distributed.nn, so that the averaging of DistributedDataParallel leaves that of
               the one global loss; a factor that differs by rank weighs the gradient of that rank's rows. A rank may
               have a single row, but not zero rows: the others would wait for it.

    Only the first derivative: differentiating the gradient raises RuntimeError, even with respect to a factor before
    the term (a learned weight), and so do the transforms of torch.func. Where W2 is 0 to rounding, its gradient is 0.
    Without normalisation, rows longer than 1e150 overflow (W2^2 in float32: longer than 1e19). Rows that are equal to
    rounding give a finite value, and no gradient from the covariance; if all rows are zero, W2 is 1. Non-finite z gives
    NaN. Raises ValueError, with the shape, unless z is a floating (n >= 2, m >= 1) matrix, for an unknown solver, and
    for a group that this process does not belong to; TypeError if z is not a tensor.
    """
    ranks = 1 if group is None else dist.get_world_size(group)
    if ranks < 1:
        raise ValueError("this process is no member of the group")
    check_matrix(z, least_rows=2 if ranks == 1 else 1)
    _check_solver(solver)
    if solver == "auto":
        solver = "eigh" if z.device.type == "cpu" else "polar"
    with _without_autocast(z):
        return _Distance.apply(z, normalize, squared, solver, group)


class W2Loss(nn.Module):
    """`w2_uniformity` of the rows of all views together: W2Loss()(z_a, z_b) with z_a, z_b of (n, m); the options are
    those of the function."""

    def __init__(self, *, normalize: bool = True, squared: bool = False, solver: str = "auto", group: Any = None):
        super().__init__()
        _check_solver(solver)
        self.normalize, self.squared, self.solver, self.group = normalize, squared, solver, group

    def forward(self, *views: Tensor) -> Tensor:
        """Views (n_k, m) of one m; ValueError if there is none or they differ."""
        for view in views:
            check_matrix(view, least_rows=1)
        if len({view.shape[1] for view in views}) != 1:
            raise ValueError(f"expected views of the same features, got shapes {[tuple(view.shape) for view in views]}")
        with _without_autocast(views[0]):  # which refuses to join views of the half precision that it does not use
            z = torch.cat(views) if len(views) != 1 else views[0]
        return w2_uniformity(z, normalize=self.normalize, squared=self.squared, solver=self.solver, group=self.group)

    def __deepcopy__(self, memo: dict[int, Any]) -> W2Loss:
        """A process group cannot be copied: a copy, as of a method that keeps a moving average of itself, shares it."""
        memo[id(self.group)] = self.group
        memo[id(self)] = new = type(self).__new__(type(self))
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def extra_repr(self) -> str:
        return f"normalize={self.normalize}, squared={self.squared}, solver={self.solver!r}"


class W2Metric:
    """W2 of any number of rows, in O(m^2) memory: exact float64 moments, updated with chunks or single rows and merged
    in any order (the pairwise update of Chan, Golub and LeVeque).

        metric = W2Metric()
        for z in chunks: metric.update(z)                 # (rows, m), floating, finite
        metric.compute(), w2_floor(metric.n, metric.dim)

    normalize=True scales each row to unit length first. `n` counts rows, `dim` features; `mean` (m,) and `covariance`
    (m, m), with 1/n, are float64 (float32 on Apple GPUs); `rounding` is the relative rounding error of the coarsest
    type of any row so far.
    """

    def __init__(self, *, normalize: bool = True):
        self.normalize = normalize
        self.n = 0
        self.rounding = 0.0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None  # sum of (z - mean)(z - mean)^T

    @property
    def dim(self) -> int:
        return self._moments()[0].shape[0]

    @property
    def mean(self) -> Tensor:
        return self._moments()[0].clone()

    @property
    def covariance(self) -> Tensor:
        return self._moments()[1] / self.n

    @torch.no_grad()
    def update(self, z: Tensor) -> W2Metric:
        """Add rows z (k, m), k >= 1. Adds nothing and raises ValueError, with the count of bad rows, if any is not
        finite; ValueError, with the shapes, if z is not a floating matrix or has another m; TypeError if z is not a
        tensor."""
        check_matrix(z, least_rows=1)
        m = z.shape[1]
        chunks = z.split(max(m, min(4096, 2**21 // m)))  # bounds a float64 copy to 16 MiB, or to that of (m, m)
        suspect = [chunk for chunk in chunks if not bool(torch.isfinite(chunk.sum()))]  # one pass over the rest
        bad = sum(int((~torch.isfinite(chunk)).any(dim=1).sum()) for chunk in suspect)
        if bad:
            raise ValueError(f"{bad} of {len(z)} rows hold NaN or infinite values")
        if self.n and m != self.dim:
            raise ValueError(f"rows of {m} features after rows of {self.dim}")
        self.rounding = max(self.rounding, torch.finfo(z.dtype).eps / 2)
        for chunk in chunks:
            rows = chunk.to(wide_dtype(z.device))
            if self.normalize:
                smallest = torch.finfo(torch.promote_types(z.dtype, torch.float32)).tiny
                rows, _ = scaled_to_unit(rows, smallest, widened=rows.dtype != z.dtype)
            mean = rows.mean(dim=0)
            rows = rows - mean
            rest = rows.mean(dim=0)
            rows -= rest
            scatter = _lower_gram(rows).tril_()
            self._add(len(rows), mean + rest, scatter + scatter.tril(-1).T)
        return self

    def merge(self, other: W2Metric) -> W2Metric:
        """Add the rows that `other` has seen; `other` is left as it is."""
        if other.normalize != self.normalize:
            raise ValueError("one metric normalises its rows, the other does not")
        if other.n:
            mean, scatter = other._moments()
            if self.n and self.dim != len(mean):
                raise ValueError(f"a metric of {len(mean)} features after rows of {self.dim}")
            self._add(other.n, mean, scatter)
            self.rounding = max(self.rounding, other.rounding)
        return self

    def compute(self, *, squared: bool = False) -> float:
        """W2 of all rows so far, or W2^2 if `squared`; ValueError with fewer than two, or if their squares overflow."""
        if self.n < 2:
            raise ValueError(f"W2 needs at least 2 rows, got {self.n}")
        mean, covariance = self.mean, self.covariance
        if not bool(torch.isfinite(covariance).all()):  # rows that are not normalised
            raise ValueError("rows of this size have no finite covariance")
        eigenvalues = torch.linalg.eigvalsh(covariance.cpu())
        roots = torch.where(eigenvalues > eigenvalue_noise(eigenvalues), eigenvalues, 0).sqrt().sum()
        trace = covariance.diagonal().sum().cpu()
        value = float(mean.square().sum().cpu() + trace + 1 - 2 / math.sqrt(len(mean)) * roots)
        if value == math.inf:
            raise ValueError("rows of this size have no finite W2")
        return max(value, 0.0) if squared else math.sqrt(max(value, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers: what torch.load(weights_only=True) accepts."""
        moments = {"mean": self._mean, "scatter": self._scatter}
        return {"normalize": self.normalize, "n": self.n, "rounding": self.rounding, **moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        mean, scatter = (None if state[name] is None else state[name].clone() for name in ("mean", "scatter"))
        self.normalize, self.n, self.rounding = bool(state["normalize"]), int(state["n"]), state.get("rounding", 0.0)
        self._mean, self._scatter = mean, scatter

    def _moments(self) -> tuple[Tensor, Tensor]:
        if self._mean is None or self._scatter is None:
            raise ValueError("no rows so far: call update first")
        return self._mean, self._scatter

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if self._mean is None or self._scatter is None:
            self.n, self._mean, self._scatter = n, mean.clone(), scatter.clone()
            return
        mean, scatter = mean.to(self._mean.device), scatter.to(self._mean.device)
        total = self.n + n
        step = mean - self._mean
        # not in place, so that an earlier state_dict keeps its numbers
        self._scatter = self._scatter + scatter + torch.outer(step, step) * (self.n * n / total)
        self._mean = self._mean + step * (n / total)
        self.n = total


def w2_floor(n: int, m: int) -> float:
    """What n independent uniform directions in R^m reach on average, by the Marchenko-Pastur law:

        W2^2 = 2 - 2 sqrt((n-1)/n) E sqrt(lambda),  lambda ~ MP(gamma),  gamma = m/(n-1);  E over all m eigenvalues.

    About sqrt((m + 4) / 4n) for n much larger than m; of unit rows, whose length does not vary, sqrt((m + 3) / 4n).
    Within 2 % of the sampled mean for m >= 32 (a test samples it); the law is that of m to infinity and overstates
    small ones, for n much larger than m by 5 to 6 % at m = 8, 18 % at m = 2, 40 % at m = 1.
    ValueError unless n >= 2, m >= 1.
    """
    _check_size(n, m)
    gamma = m / (n - 1)
    # With x = 1 + gamma + 2 sqrt(gamma) cos(t), E sqrt(lambda) = (2/pi) int_0^pi sin(t)^2 / sqrt(x) dt, smooth in t:
    # the midpoint rule converges exponentially. n - 1 < m: x -> gamma x' with the mass of the zeros left out.
    nodes = 4096
    total = 0.0
    for k in range(nodes):
        t = math.pi * (k + 0.5) / nodes
        x = (1 - math.sqrt(gamma)) ** 2 + 4 * math.sqrt(gamma) * math.cos(t / 2) ** 2
        total += math.sin(t) ** 2 / math.sqrt(x)
    mean_root = 2 / nodes * total
    return math.sqrt(max(0.0, 2 - 2 * math.sqrt((n - 1) / n) * mean_root))


def w2_minimum(n: int, m: int) -> float:
    """The least W2 that any n unit rows in R^m can reach. ValueError unless n >= 2, m >= 1.

    n <= m + 1: the regular simplex, sqrt(2 - 2 sqrt((n-1)/m)). More rows: 0, by a spherical 2-design (a centred
    unit-norm tight frame), which exists (Mimura 1990) unless m is odd and n = m + 2, where two orthogonal simplices
    of (n-1)/2 and (n+1)/2 points do best (found by optimisation, a test repeats it; not proven), or m = 1 and n is
    odd, where the mean is at least 1/n.
    """
    _check_size(n, m)
    if n <= m + 1:
        reached = math.sqrt((n - 1) / m)
    elif m == 1 and n % 2:
        reached = math.sqrt(1 - 1 / n**2)
    elif m % 2 and n == m + 2:
        small, large = (n - 1) // 2, (n + 1) // 2
        reached = (math.sqrt(small * (small - 1)) + math.sqrt(large * (large - 1))) / math.sqrt(m * n)
    else:
        reached = 1.0
    return math.sqrt(max(0.0, 2 - 2 * reached))


class _Distance(torch.autograd.Function):
    """W2, or W2^2, with its gradient as one function: differentiating its parts would pass over z two dozen times more.
    On a GPU each operation is a launch: there are few of them, and none for a number that the host knows.

    With unit rows u_i = s_i z_i and P the polar factor of their centred matrix, whose columns sum to zero,
    ||Z_c||_* = sum_i <u_i, P_i>, and the gradient of W2^2 is -2 / sqrt(m n) s_i (P_i - u_i <u_i, P_i>).
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, normalize: bool, squared: bool, solver: str, group: Any) -> Tensor:
        wide, result_type = wide_dtype(z.device), torch.promote_types(z.dtype, torch.float32)
        x, scale = z.to(wide if solver == "eigh" else result_type), None
        if normalize:
            x, scale = scaled_to_unit(x, torch.finfo(result_type).tiny, widened=x.dtype != result_type)
        n = x.shape[0] if group is None else _all_reduce(torch.full((), len(x), dtype=wide, device=x.device), group)
        centred = x - _mean(x, n, group)
        centred -= _mean(centred, n, group)  # the second pass removes what rounding left
        # Converting all of x costs as much as a matrix product, so only where squares could overflow or cancel later.
        size = _norm(centred, None if normalize else wide, group)
        norm = _norm(x, wide, group)
        # that of the computation, or of rows given in float32; that of half precision would hide a real spread
        rounding = max(4 * torch.finfo(x.dtype).eps, torch.finfo(result_type).eps / 2) * norm
        centred *= torch.where(size > rounding, 1 / size, 0)  # 0: equal rows, no direction to push to
        polar = (polar_by_products if solver == "polar" else polar_by_eigh)(centred, group)
        polar -= _mean(polar, n, group)  # exactly centred too: rounding along that direction was amplified
        along = torch.linalg.vecdot(x, polar).unsqueeze(1)  # (rows, 1)
        weight = 2 / (x.shape[1] * n) ** 0.5
        value = 1 + norm.square() / n - weight * _all_reduce(along.sum(dtype=wide), group)
        value = value.clamp(min=0)  # a NaN stays visible
        slope: float | Tensor = 1.0
        if not squared:
            # Where the value is 0 to rounding, the infinite slope of the root becomes 0.
            root = value.sqrt()
            slope = torch.where(value <= 64 * torch.finfo(x.dtype).eps, 0, 0.5 / root)
            value = root
        if ctx.needs_input_grad[0]:
            ranks = 1 if group is None else dist.get_world_size(group)  # the value on each of them depends on z
            if scale is not None:
                gradient = polar.addcmul_(x, along, value=-1).mul_(-ranks * weight * slope * scale)
            else:
                gradient = polar.mul_(-ranks * weight * slope).add_(x * (2 * ranks * slope / n))
            ctx.save_for_backward(gradient.to(result_type), z)
        return value.to(result_type)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        of_value, z = ctx.saved_tensors
        # To half precision last: loss scaling exists to save small gradients from underflow there.
        gradient = (gradient * of_value).to(z.dtype)
        return FirstDerivative.apply(gradient, z), None, None, None, None


class FirstDerivative(torch.autograd.Function):
    """Passes `gradient` on; differentiating it, through z or the incoming gradient on which it depends, raises.

    PyTorch's once_differentiable stays silent, and wrong, where the incoming gradient is a constant. With
    `forward(ctx, gradient, *dependencies)` torch.compile would silently return one of the dependencies."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, z: Tensor, incoming: Tensor | None = None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> NoReturn:
        raise RuntimeError("no second derivative: this gradient cannot be differentiated twice")


def polar_by_eigh(x: Tensor, group: Any) -> Tensor:
    """U V^T of x = U diag(s) V^T (rows, m), by eigenvalues of the smaller-side Gram matrix (with a group: of x^T x)."""
    tall = group is not None or x.shape[0] >= x.shape[1]
    gram = _all_reduce(_lower_gram(x if tall else x.T), group)  # eigh reads the lower triangle
    if not bool(torch.isfinite(gram.diagonal().sum())):  # eigh would raise; a NaN loss is for the training loop to name
        return torch.full_like(x, torch.nan)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    present = eigenvalues > eigenvalue_noise(eigenvalues)
    roots = torch.where(present, eigenvalues, 1).rsqrt() * present
    inverse_root: Tensor = (vectors * roots) @ vectors.T
    return x @ inverse_root if tall else inverse_root @ x


def _lower_gram(x: Tensor) -> Tensor:
    """x^T x of x (rows, m), at least its lower triangle: on a CPU, blocks above it stay 0, which saves a third."""
    if x.device.type != "cpu":
        return x.T @ x
    m = x.shape[1]
    gram, width = x.new_zeros(m, m), max(64, m // 8)
    for start in range(0, m, width):
        stop = min(start + width, m)
        torch.mm(x[:, start:stop].T, x[:, :stop], out=gram[start:stop, :stop])
    return gram


def polar_by_products(x: Tensor, group: Any = None) -> Tensor:
    """U V^T of x = U diag(s) V^T (rows, m), by odd polynomials in x, each of which brings all singular values nearer
    to 1 at the cost of three matrix products (Amsel, Persson, Musco, Gower: The Polar Express, 2025)."""
    tall = group is not None or x.shape[0] >= x.shape[1]
    x = x if tall else x.T
    gram = _all_reduce(x.T @ x, group)
    # sqrt ||x^T x||_F bounds the largest singular value, 1.01 times it also with the rounding of TF32.
    bound = 1.01**2 * torch.linalg.matrix_norm(gram)
    shrink = 1 / bound.clamp(min=torch.finfo(x.dtype).tiny)
    x, gram = x * shrink.sqrt(), gram * shrink
    for k, (a, b, c) in enumerate(_POLYNOMIALS):
        if k:
            gram = _all_reduce(x.T @ x, group)
        x = torch.addmm(x, x, torch.addmm(gram, gram, gram, beta=b, alpha=c), beta=a)
    return x if tall else x.T


# (a, b, c) of a x + b x^3 + c x^5. Each polynomial is the best approximation of 1 on the interval to which the earlier
# ones map [3e-4, 1], widened by 2 % of the error for the rounding of TF32. A test computes them again.
_POLYNOMIALS = (
    (8.501064483255625, -25.22946421375777, 18.72584941183836),
    (4.192916964916596, -3.052452874860475, 0.5564049831057125),
    (4.123831427663248, -3.005945264945089, 0.5513457718401801),
    (3.8617557343499263, -2.827552330325147, 0.5319720806178134),
    (3.117766354281796, -2.2992084505239245, 0.47512591879757227),
    (2.1619711223800415, -1.5290440065225548, 0.39655095261180145),
    (1.879934074082514, -1.2541753118806003, 0.3742669105438842),
    (1.8749946084321656, -1.2499891351066847, 0.3749945266750012),
    (1.875, -1.25, 0.375),
)


def scaled_to_unit(z: Tensor, smallest: float, *, widened: bool = False) -> tuple[Tensor, Tensor]:
    """Unit rows u = s z, and s (rows, 1), which is 0 for rows shorter than `smallest`. `widened`: z is a copy from a
    narrower type; it is overwritten."""
    wide = wide_dtype(z.device)
    if widened or z.dtype != wide:  # no square overflows or vanishes
        norm = torch.linalg.vector_norm(z, dim=1, keepdim=True, dtype=wide)
        scale = torch.where(norm < smallest, 0, 1 / norm).to(z.dtype)
        return z.mul_(scale) if widened else z * scale, scale
    # Each row is first divided by its largest entry, so that no square overflows or vanishes.
    largest = z.abs().amax(dim=1, keepdim=True)
    zero = largest < smallest
    scale = torch.where(zero, 0, 1 / largest)
    u = z * scale
    rest = torch.where(zero, 0, 1 / torch.linalg.vector_norm(u, dim=1, keepdim=True))
    return u.mul_(rest), scale.mul_(rest)


def _mean(z: Tensor, n: int | Tensor, group: Any) -> Tensor:
    if not isinstance(n, Tensor):
        return z.mean(dim=0)
    return (_all_reduce(z.sum(dim=0).to(n.dtype), group) / n).to(z.dtype)


def _norm(z: Tensor, dtype: torch.dtype | None, group: Any) -> Tensor:
    norm = torch.linalg.vector_norm(z, dtype=dtype)
    return norm if group is None else _all_reduce(norm.square(), group).sqrt()


def eigenvalue_noise(eigenvalues: Tensor) -> Tensor:
    """What rounding leaves of a zero eigenvalue of a Gram matrix (ascending eigenvalues)."""
    return 4 * len(eigenvalues) * torch.finfo(eigenvalues.dtype).eps * eigenvalues[-1]


def _all_reduce(x: Tensor, group: Any) -> Tensor:
    """The sum over the ranks of `group`; x itself without one. Not differentiated."""
    if group is None:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, group=group)
    return x


def _without_autocast(z: Tensor) -> torch.autocast:
    return torch.autocast("cpu" if z.device.type == "meta" else z.device.type, enabled=False)  # "meta" has none


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating type of a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # Apple GPUs have no float64


def _check_solver(solver: str) -> None:
    if solver not in ("auto", "eigh", "eigh32", "polar"):
        raise ValueError(f'solver must be "auto", "eigh", "eigh32" or "polar", not {solver!r}')


def check_matrix(z: Tensor, least_rows: int) -> None:
    """TypeError unless z is a tensor; ValueError, with its type and shape, unless it is a dense floating (n, m) matrix
    of n >= least_rows."""
    if not isinstance(z, Tensor):
        kind = f"{type(z).__module__}.{type(z).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"expected a torch tensor, got {kind}")
    dense = z.layout == torch.strided and not z.is_nested
    numbers = z.is_floating_point() and z.dtype.itemsize > 1
    if not dense or not numbers or z.ndim != 2 or z.shape[0] < least_rows or z.shape[1] < 1:
        raise ValueError(
            f"expected a dense matrix of float16 or wider, of n >= {least_rows} rows and m >= 1 features, "
            f"got {z.dtype} of shape {'nested' if z.is_nested else tuple(z.shape)}"
        )


def _check_size(n: int, m: int) -> None:
    if n < 2 or m < 1:
        raise ValueError(f"need n >= 2 rows of m >= 1 features, got n = {n}, m = {m}")

"""The W2 loss, metric, floor and minimum against POT, scipy's matrix square root, singular values and closed forms."""

import ast
import copy
import math
import os
import shutil
import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.optimize
import torch
import torch._inductor.metrics
import torch.distributed as dist
from conftest import NoHostReads, printed
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from wassersteinssl import w2
from wassersteinssl.w2 import W2Loss, W2Metric, w2_floor, w2_minimum, w2_uniformity

SOLVERS = ["eigh", "polar"]
CODE = Path(__file__).resolve().parents[1] / "code"
both_solvers = pytest.mark.parametrize("solver", SOLVERS)
both_scalings = pytest.mark.parametrize("normalize", [True, False])
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


def with_singular_values(n, m, values, seed=0):
    """A centred (n, m) float64 matrix of known singular values (at most n - 1 of them)."""
    values = torch.as_tensor(values, dtype=torch.float64)
    left = randn(n, len(values), seed=seed, dtype=torch.float64)
    left = torch.linalg.qr(left - left.mean(dim=0))[0]
    right = torch.linalg.qr(randn(m, len(values), seed=seed + 1, dtype=torch.float64))[0]
    return left * values @ right.T


def geometric(count, last):
    return torch.logspace(0, math.log10(last), count, dtype=torch.float64)


def cliff(count, last, small):
    return torch.cat([torch.ones(count - small), torch.full((small,), last)]).double()


def moments(z, normalize):
    z = z.detach().double().numpy()
    z = z / np.linalg.norm(z, axis=1, keepdims=True) if normalize else z
    return z.mean(axis=0), np.atleast_2d(np.cov(z.T, bias=True))


def pot_w2(z, normalize):
    import ot  # here: the processes of the group tests do without it

    mean, covariance = moments(z, normalize)
    m = len(mean)
    return float(ot.gaussian.bures_wasserstein_distance(mean, np.zeros(m), covariance, np.eye(m) / m))


def sqrtm_w2(z, normalize):
    mean, covariance = moments(z, normalize)
    root = scipy.linalg.sqrtm(covariance)
    square = mean @ mean + 1 + np.trace(covariance) - 2 / math.sqrt(len(mean)) * np.trace(root).real
    return math.sqrt(max(square, 0))


def svd_w2(z, normalize=True, squared=False):
    """(value, gradient) in float64, by automatic differentiation of the singular values."""
    z = z.detach().double().requires_grad_()
    n, m = z.shape
    rows = unit(z) if normalize else z
    root = torch.linalg.svdvals(rows - rows.mean(dim=0)).sum() / math.sqrt(n)
    value = rows.square().sum() / n + 1 - 2 / math.sqrt(m) * root
    value = value if squared else value.sqrt()
    return value.item(), torch.autograd.grad(value, z)[0]


def value_and_gradient(z, **options):
    z = z.detach().clone().requires_grad_()
    value = w2_uniformity(z, **options)
    return value.item(), torch.autograd.grad(value, z)[0]


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def atoms(m, dtype=torch.float32):
    """+-e_i: W2 = 0 by closed form."""
    return torch.cat([torch.eye(m), -torch.eye(m)]).to(dtype)


def simplex(n, m):
    """n unit rows in R^m, n <= m + 1, every two at the same angle."""
    corners = np.eye(n) - 1 / n
    basis = np.linalg.svd(corners)[2][: n - 1]
    z = corners @ basis.T
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return torch.from_numpy(np.pad(z, ((0, 0), (0, m - n + 1))))


def harmonic_frame(n, m):
    """n rows in R^m, m even, n > m: cosines and sines of m / 2 frequencies; a spherical 2-design."""
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(1, m // 2 + 1)) / n
    return torch.from_numpy(np.concatenate([np.cos(angle), np.sin(angle)], axis=1) * math.sqrt(2 / m))


# ---- value -----------------------------------------------------------------------------------------------------


@both_solvers
@both_scalings
@pytest.mark.parametrize(("n", "m"), [(40, 7), (300, 32), (257, 64), (20, 1), (4096, 256)])
def test_the_value_is_the_bures_wasserstein_distance_of_pot(n, m, normalize, solver):
    z = randn(n, m, seed=n) * torch.linspace(0.5, 2, m) + 0.3
    assert w2_uniformity(z, normalize=normalize, solver=solver).item() == pytest.approx(pot_w2(z, normalize), rel=1e-5)


@both_solvers
@both_scalings
@pytest.mark.parametrize(("n", "m"), [(30, 5), (500, 48)])
def test_the_value_is_the_formula_with_scipy_s_matrix_root(n, m, normalize, solver):
    z = randn(n, m, seed=m, dtype=torch.float64) + 0.1
    assert w2_uniformity(z, normalize=normalize, solver=solver).item() == pytest.approx(
        sqrtm_w2(z, normalize), rel=1e-9
    )


@both_solvers
@pytest.mark.parametrize(
    "values",
    [
        [3.0],
        [2.0, 1.0, 1.0],
        1 / torch.arange(1, 101),
        geometric(60, 5e-4),
        geometric(100, 2e-5),
        cliff(50, 1e-4, 8),
        torch.ones(150),
    ],
    ids=["rank 1", "rank 3", "1/k", "geometric 5e-4", "geometric 2e-5", "cliff", "flat"],
)
def test_known_singular_values_and_mean_give_the_closed_form(values, solver):
    n, m, mean = 200, 150, 0.25
    values = torch.as_tensor(values, dtype=torch.float64)
    z = with_singular_values(n, m, values) + mean
    square = m * mean**2 + values.square().sum() / n + 1 - 2 / math.sqrt(m * n) * values.sum()
    got = w2_uniformity(z.float(), normalize=False, squared=True, solver=solver)
    assert got.item() == pytest.approx(square.item(), rel=3e-5)
    assert w2_uniformity(z, normalize=False, squared=True, solver="eigh").item() == pytest.approx(
        square.item(), rel=1e-9
    )


@both_solvers
@both_scalings
@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 3), (2, 256), (5, 9), (50, 120)])
def test_fewer_rows_than_features_give_the_value_of_the_singular_values(n, m, normalize, solver):
    z = randn(n, m, seed=n + m)
    expected, _ = svd_w2(z, normalize, squared=True)
    got = w2_uniformity(z, normalize=normalize, squared=True, solver=solver).item()
    assert got == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert w2_uniformity(z, normalize=normalize, solver=solver).item() == pytest.approx(math.sqrt(got), rel=1e-6)


@both_solvers
def test_512_rows_of_2048_features_match_singular_values_and_their_gradient(solver):
    z = randn(512, 2048)
    reference, gradient = wide_reference()
    value, got = value_and_gradient(z, solver=solver)
    assert value == pytest.approx(reference, rel=1e-6)
    assert relative(got, gradient) < {"eigh": 1e-6, "polar": 1e-3}[solver]


@cache
def wide_reference():
    return svd_w2(randn(512, 2048))


@both_solvers
def test_repeated_rows_leave_the_value(solver):
    z = randn(12, 30)
    once = w2_uniformity(z, solver=solver).item()
    assert w2_uniformity(z.repeat(5, 1), solver=solver).item() == pytest.approx(once, rel=1e-5)


@both_solvers
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e30, 1e37])
def test_unit_rows_do_not_depend_on_the_scale_of_the_features(scale, solver):
    z = randn(64, 16)
    value, gradient = value_and_gradient(z, solver=solver)
    scaled_value, scaled_gradient = value_and_gradient(z * scale, solver=solver)
    assert scaled_value == pytest.approx(value, rel=1e-6)
    assert torch.isfinite(scaled_gradient).all()
    if scale <= 1e30:  # beyond, the gradient leaves float32's normal numbers
        assert relative(scaled_gradient.double() * scale, gradient.double()) < 1e-4


@both_solvers
def test_huge_and_tiny_features_do_not_overflow_without_normalisation(solver):
    for scale in (1e30, 1e-30):
        z = randn(64, 16) * scale
        expected, expected_gradient = svd_w2(z, normalize=False)
        value, gradient = value_and_gradient(z, normalize=False, solver=solver)
        assert value == pytest.approx(expected, rel=1e-5)
        assert relative(gradient, expected_gradient) < 1e-4


@both_solvers
def test_a_permuted_feature_axis_in_memory_changes_nothing(solver):
    z = randn(16, 40)
    assert w2_uniformity(z.T.contiguous().T, solver=solver).item() == pytest.approx(
        w2_uniformity(z, solver=solver).item(), rel=1e-6
    )


@pytest.mark.parametrize("solver", ["eigh", "eigh32", "polar"])
def test_the_square_is_never_negative(solver):
    for seed in range(5):
        basis = torch.linalg.qr(randn(16, 16, seed=seed))[0]
        value = w2_uniformity(torch.cat([basis, -basis]), squared=True, solver=solver)
        assert 0 <= float(value) < 1e-5


@both_scalings
@pytest.mark.parametrize("size", [(512, 64), (40, 200)])
def test_eigh32_is_as_good_as_float32_far_from_collapse(size, normalize):
    z = randn(*size)
    expected, expected_gradient = svd_w2(z, normalize=normalize)
    value, gradient = value_and_gradient(z, normalize=normalize, solver="eigh32")
    assert value == pytest.approx(expected, rel=1e-5)
    assert relative(gradient, expected_gradient) < 1e-4


def test_eigh32_gives_collapsed_directions_no_gradient():
    left, right = (torch.linalg.qr(randn(size, 32))[0] for size in (400, 32))
    singular_values = torch.ones(32)
    singular_values[-1] = 1e-3  # below 7e-4 sqrt(32) = 4e-3
    z = left * singular_values @ right.T
    direction = right[:, -1]
    _, whole = value_and_gradient(z, normalize=False, solver="eigh")
    _, gradient = value_and_gradient(z, normalize=False, solver="eigh32")
    assert torch.isfinite(gradient).all()
    assert (gradient @ direction).norm() < 0.1 * (whole @ direction).norm()


def test_auto_is_eigh_on_a_cpu_and_accepts_nothing_unknown():
    z = randn(50, 8)
    assert torch.equal(w2_uniformity(z), w2_uniformity(z, solver="eigh"))
    with pytest.raises(ValueError, match=r"solver must be .*'svd'"):
        w2_uniformity(z, solver="svd")
    with pytest.raises(ValueError, match=r'^solver must be "auto", "eigh", "eigh32" or "polar", not \'foo\'$'):
        W2Loss(solver="foo")


# ---- gradient --------------------------------------------------------------------------------------------------


@both_solvers
@both_scalings
@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize(("n", "m"), [(9, 4), (4, 9), (6, 6), (2, 3)])
def test_gradients_agree_with_finite_differences(n, m, squared, normalize, solver):
    z = randn(n, m, seed=5, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: w2_uniformity(z, normalize=normalize, squared=squared, solver=solver), z)


@both_solvers
@both_scalings
@pytest.mark.parametrize(("n", "m"), [(512, 256), (128, 256), (4096, 256)])
def test_float32_gradients_of_random_batches_agree_with_the_singular_values(n, m, normalize, solver):
    z = randn(n, m, seed=1)
    _, gradient = svd_w2(z, normalize)
    got = value_and_gradient(z, normalize=normalize, solver=solver)[1]
    assert relative(got, gradient) < {"eigh": 1e-6, "polar": 1e-3}[solver]


@pytest.mark.parametrize(
    ("solver", "last", "geometric_error", "cliff_error"),
    [
        ("eigh", 5e-4, 1e-5, 1e-5),
        ("eigh", 2e-5, 1e-5, 1e-5),
        ("polar", 5e-4, 1e-3, 1e-3),
        ("polar", 1e-4, 2e-2, 0.3),
        ("polar", 2e-5, 0.3, 0.8),
    ],
)
@pytest.mark.parametrize("n", [512, 128])
def test_small_singular_values_cost_the_documented_gradient_error(n, solver, last, geometric_error, cliff_error):
    count = min(n - 1, 256)
    spectra = {"geometric": geometric(count, last), "few": cliff(count, last, 8), "most": cliff(count, last, count - 8)}
    for name, values in spectra.items():
        z = with_singular_values(n, 256, values).float()
        _, gradient = svd_w2(z, normalize=False)
        error = relative(value_and_gradient(z, normalize=False, solver=solver)[1], gradient)
        assert error < (geometric_error if name == "geometric" else cliff_error), (name, error)


def test_the_polar_solver_never_pushes_a_small_direction_the_wrong_way_or_too_far():
    x = with_singular_values(300, 64, geometric(64, 1e-6)).float()
    left, _, right = torch.linalg.svd(x.double(), full_matrices=False)
    gains = (left.T @ w2.polar_by_products(x / x.norm(), None).double() @ right.T).diagonal()
    assert gains.min() > 0
    assert gains.max() < 1 + 1e-3


def test_the_eigh_solver_counts_directions_below_its_documented_limit_as_absent():
    limit = 3e-8 * math.sqrt(64)
    for factor, gain in ((0.7, 0.0), (30.0, 1.0)):
        x = with_singular_values(300, 64, cliff(64, factor * limit, 1))
        left, _, right = torch.linalg.svd(x, full_matrices=False)
        got = left[:, -1] @ w2.polar_by_eigh(x, None) @ right[-1]
        assert got.item() == pytest.approx(gain, abs=0.05)


@both_solvers
def test_a_rank_deficient_batch_has_the_gradient_of_its_own_directions(solver):
    z = with_singular_values(60, 20, [3.0, 2.0, 1.0, 0.5])
    left, _, right = torch.linalg.svd(z, full_matrices=False)
    expected = 2 * z / 60 - 2 / math.sqrt(60 * 20) * left[:, :4] @ right[:4]
    got = value_and_gradient(z.float(), normalize=False, squared=True, solver=solver)[1]
    assert relative(got, expected) < {"eigh": 1e-4, "polar": 5e-3}[solver]  # what rounding left of z is pushed up too


@both_solvers
@pytest.mark.parametrize("spread", [1e-3, 1e-4, 1e-5])
def test_near_collapse_the_gradient_error_is_rounding_over_the_spread(spread, solver):
    z = randn(1, 64) + spread * randn(128, 64, seed=1)
    _, gradient = svd_w2(z)
    error = relative(value_and_gradient(z, solver=solver)[1], gradient)
    assert error < (1e-6 if solver == "eigh" else 2e-7 / spread)


@both_solvers
@pytest.mark.parametrize("spread", [1e-4, 1e-5, 1e-6])
def test_what_rounding_leaves_of_a_common_mean_is_removed(spread, solver):
    z = randn(1, 64) + spread * randn(128, 64, seed=1)  # exact as it is: no division rounds it
    _, gradient = svd_w2(z, normalize=False)
    assert relative(value_and_gradient(z, normalize=False, solver=solver)[1], gradient) < 1e-5


@both_solvers
@pytest.mark.parametrize(("n", "m"), [(40, 64), (128, 256), (300, 7)])
def test_the_covariance_pushes_nothing_along_the_mean(n, m, solver):
    for z in (randn(n, m), randn(n, 2) @ randn(2, m, seed=1)):
        z = z - z.double().mean(dim=0).float()
        gradient = value_and_gradient(z, normalize=False, squared=True, solver=solver)[1].double()
        along = gradient.sum(dim=0) - 2 * z.double().mean(dim=0)
        assert along.norm() < 2e-7 * math.sqrt(n) * gradient.norm()


@both_solvers
def test_near_zero_the_gradient_is_right(solver):
    z = atoms(64).repeat(4, 1) + 3e-3 * randn(512, 64)
    value, gradient = svd_w2(z)
    assert value < 0.05
    got_value, got = value_and_gradient(z, solver=solver)
    assert got_value == pytest.approx(value, rel=1e-3)
    assert relative(got, gradient) < 1e-4 / value


# ---- degenerate batches ----------------------------------------------------------------------------------------


@both_solvers
@pytest.mark.parametrize("n", [2, 300])
@pytest.mark.parametrize("m", [1, 7, 256])
def test_equal_rows_give_sqrt_2_and_a_zero_gradient(n, m, solver):
    z = (randn(1, m, seed=m) + 0.1).repeat(n, 1)
    value, gradient = value_and_gradient(z, solver=solver)
    assert value == pytest.approx(math.sqrt(2), rel=1e-6)
    assert gradient.abs().max() < 1e-7


@both_solvers
def test_equal_rows_without_normalisation_are_pulled_to_the_origin_only(solver):
    row = randn(1, 7)
    value, gradient = value_and_gradient(row.repeat(300, 1), normalize=False, solver=solver)
    assert value == pytest.approx(math.sqrt(row.square().sum() + 1), rel=1e-6)
    torch.testing.assert_close(gradient, (row / (300 * value)).repeat(300, 1), rtol=1e-5, atol=0)


@both_solvers
@both_scalings
def test_zero_rows_stay_zero_and_have_no_nan(normalize, solver):
    z = randn(20, 6)
    z[3] = z[11] = 0
    rows = (z / z.norm(dim=1, keepdim=True).clamp(min=1e-30)) if normalize else z
    value, gradient = value_and_gradient(z, normalize=normalize, solver=solver)
    assert value == pytest.approx(svd_w2(rows, normalize=False)[0], rel=1e-5)
    assert torch.isfinite(gradient).all()
    assert not normalize or not gradient[[3, 11]].any()
    value, gradient = value_and_gradient(torch.zeros(5, 6), normalize=normalize, solver=solver)
    assert value == 1
    assert not gradient.any()


@both_solvers
@both_scalings
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_features_give_nan_and_no_exception(bad, normalize, solver):
    for shape in ((8, 4), (4, 8)):
        z = randn(*shape)
        z[2, 1] = bad
        value, gradient = value_and_gradient(z, normalize=normalize, solver=solver)
        assert math.isnan(value)
        assert torch.isnan(gradient).any()


@both_solvers
def test_training_through_zero_stays_finite(solver):
    for noise in (0.0, 1e-6, 1e-3, 0.1):
        z = (atoms(8) + noise * randn(16, 8)).requires_grad_()
        optimizer = torch.optim.SGD([z], lr=1.0)
        for _ in range(40):
            optimizer.zero_grad()
            value = w2_uniformity(z, solver=solver)
            value.backward()
            optimizer.step()
            assert torch.isfinite(value)
            assert torch.isfinite(z).all()
            assert z.grad.abs().max() < 1


@both_solvers
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exact_zero_has_a_zero_gradient(dtype, solver):
    for z in (torch.tensor([[1.0], [-1.0]]), torch.tensor([[2.0], [-3.0], [-0.5], [1.0]]), atoms(4), atoms(64)):
        value, gradient = value_and_gradient(z.to(dtype), solver=solver)
        assert value == pytest.approx(0, abs=1e-3 if (dtype, solver) == (torch.float32, "polar") else 1e-7)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().max() < 1e-6


@both_solvers
def test_descent_reaches_zero_from_a_collapsed_batch(solver):
    z = (randn(1, 8) + 0.01 * randn(40, 8, seed=1)).requires_grad_()
    optimizer = torch.optim.SGD([z], lr=3.0)
    for _ in range(300):
        optimizer.zero_grad()
        w2_uniformity(z, squared=True, solver=solver).backward()
        optimizer.step()
    assert w2_uniformity(z).item() < 0.1


def test_errors_name_the_shape():
    for z, shape in (
        (torch.ones(4), r"\(4,\)"),
        (torch.ones(2, 3, 4), r"\(2, 3, 4\)"),
        (torch.ones(4, 3, dtype=torch.int64), r"int64 of shape \(4, 3\)"),
        (torch.ones(4, 3, dtype=torch.complex64), r"complex64 of shape \(4, 3\)"),
        (torch.ones(4, 3, dtype=torch.bool), r"bool of shape \(4, 3\)"),
        (torch.ones(1, 3), r"\(1, 3\)"),
        (torch.ones(4, 0), r"\(4, 0\)"),
        (torch.ones(0, 3), r"\(0, 3\)"),
        (torch.ones(0, 0), r"\(0, 0\)"),
        (torch.tensor(1.0), r"\(\)"),
    ):
        with pytest.raises(ValueError, match=shape):
            w2_uniformity(z)
        with pytest.raises(ValueError, match=shape):
            W2Loss()(z)


def test_views_that_do_not_fit_together_are_told_with_their_shapes():
    with pytest.raises(ValueError, match=r"\(9, 4\), \(9, 3\)"):
        W2Loss()(randn(9, 4), randn(9, 3))
    with pytest.raises(ValueError, match="views"):
        W2Loss()()


def test_tensors_that_are_sparse_nested_or_of_one_byte_are_refused():
    nested = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)])
    for z in (torch.eye(4).to_sparse(), torch.eye(4).to(torch.float8_e4m3fn), nested):
        with pytest.raises(ValueError, match=r"expected a dense matrix of float16 or wider"):
            w2_uniformity(z)


def test_what_is_no_tensor_is_told_by_its_type():
    metric = W2Metric()
    for z, kind in ((np.ones((4, 3)), r"numpy\.ndarray"), ([[1.0, 2.0]], "list"), (None, "NoneType")):
        for call in (w2_uniformity, W2Loss(), metric.update):
            with pytest.raises(TypeError, match=rf"^expected a torch tensor, got {kind}$"):
                call(z)
    assert metric.n == 0


# ---- types, autocast, graphs -----------------------------------------------------------------------------------


@both_solvers
@both_scalings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_as_the_same_numbers_in_float64(dtype, normalize, solver):
    z = randn(200, 24).to(dtype)
    expected, expected_gradient = svd_w2(z, normalize)
    x = z.clone().requires_grad_()
    value = w2_uniformity(x, normalize=normalize, solver=solver)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5)
    assert x.grad.dtype == dtype
    assert relative(x.grad, expected_gradient) < 4 * torch.finfo(dtype).eps


@both_solvers
def test_a_scaled_loss_saves_the_small_gradients_of_half_precision(solver):
    z = randn(4096, 64, seed=3).mul(100).half()  # gradients of about 1e-8, below the smallest float16
    leaf = z.clone().requires_grad_()
    (2**16 * w2_uniformity(leaf, solver=solver)).backward()
    _, gradient = value_and_gradient(z.double())
    assert gradient.abs().max() < torch.finfo(torch.float16).smallest_normal
    assert relative(leaf.grad.double() / 2**16, gradient) < 1e-2


@both_solvers
def test_large_half_precision_features_do_not_overflow(solver):
    z = (3e4 * randn(64, 8).clamp(-2, 2)).half()
    value, gradient = value_and_gradient(z, solver=solver)
    assert value == pytest.approx(svd_w2(z)[0], rel=1e-5)
    assert torch.isfinite(gradient).all()


@both_solvers
def test_autocast_changes_no_bit(solver):
    z = randn(64, 32)
    value, gradient = value_and_gradient(z, solver=solver)
    with torch.autocast("cpu", torch.bfloat16):
        cast_value, cast_gradient = value_and_gradient(z, solver=solver)
        linear = nn.Linear(32, 32)(z)
        assert linear.dtype == torch.bfloat16
        assert w2_uniformity(linear, solver=solver).dtype == torch.float32
    assert cast_value == value
    assert torch.equal(cast_gradient, gradient)


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "types", [(torch.float16, torch.float16), (torch.bfloat16, torch.float64), (torch.float16, torch.bfloat16)]
)
def test_autocast_joins_views_of_any_types(cast, types):
    views = [randn(20, 8, seed=k).to(dtype) for k, dtype in enumerate(types)]
    expected = W2Loss()(*views)
    with torch.autocast("cpu", cast):
        assert torch.equal(W2Loss()(*views), expected)


def test_float64_comes_out_as_float64():
    assert w2_uniformity(randn(9, 4, dtype=torch.float64), solver="polar").dtype == torch.float64


@both_solvers
def test_two_uses_in_one_graph_add_their_gradients(solver):
    z = randn(40, 6).requires_grad_()
    loss = w2_uniformity(z[:25], solver=solver) + 2 * w2_uniformity(z[10:], solver=solver)
    loss.backward(retain_graph=True)
    expected = torch.zeros_like(z)
    expected[:25] += value_and_gradient(z[:25], solver=solver)[1]
    expected[10:] += 2 * value_and_gradient(z[10:], solver=solver)[1]
    torch.testing.assert_close(z.grad, expected)
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * expected)


@both_solvers
@both_scalings
@pytest.mark.parametrize("squared", [False, True])
def test_a_second_derivative_raises_also_beside_a_first_one(squared, normalize, solver):
    z = randn(9, 4).requires_grad_()
    value = w2_uniformity(z, normalize=normalize, squared=squared, solver=solver)
    (gradient,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        (value + gradient.square().sum()).backward()


@both_scalings
def test_the_polar_solver_never_waits_for_the_device(normalize):
    with NoHostReads():
        value_and_gradient_on_device(randn(20, 6), normalize=normalize, solver="polar")
        value_and_gradient_on_device(randn(6, 20), normalize=normalize, solver="polar")
        with pytest.raises(AssertionError, match="waits"):  # the guard itself works
            w2_uniformity(randn(20, 6), solver="eigh")


def value_and_gradient_on_device(z, **options):
    z = z.detach().requires_grad_()
    value = w2_uniformity(z, **options)
    return value, torch.autograd.grad(value, z)[0]


def test_the_polar_solver_makes_no_tensor_on_another_device():
    class OneDevice(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            assert not isinstance(result, torch.Tensor) or result.device.type == "meta", func
            return result

    z = torch.empty(20, 6, device="meta")  # which stands for an accelerator here
    with OneDevice():
        value, gradient = value_and_gradient_on_device(z, solver="polar")
    assert value.shape == ()
    assert gradient.shape == z.shape


def test_make_fx_traces_the_polar_solver_with_its_gradient():
    def step(z):
        return value_and_gradient_on_device(z, solver="polar")

    traced = make_fx(step)(randn(32, 8))
    for seed in (1, 2):
        z = randn(32, 8, seed=seed)
        for got, expected in zip(traced(z), step(z), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("strict", [True, False])
def test_the_value_behind_a_trained_layer_can_be_exported_for_any_number_of_rows(strict):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.uniformity = nn.Linear(8, 8), W2Loss(solver="polar")

        def forward(self, x, y):
            return self.uniformity(self.layer(x), self.layer(y))

    n = torch.export.Dim("n", min=8)
    model, shapes = Model(), {"x": {0: n}, "y": {0: n}}
    exported = torch.export.export(model, (randn(32, 8), randn(32, 8)), strict=strict, dynamic_shapes=shapes).module()
    for rows in (32, 11):
        views = randn(rows, 8, seed=1), randn(rows, 8, seed=2)
        assert exported(*views).item() == pytest.approx(model(*views).item(), rel=1e-6)


def check_compiled(backend, device="cpu"):
    torch._dynamo.reset()
    compiled = torch.compile(lambda z: w2_uniformity(z, solver="polar"), fullgraph=True, backend=backend)
    z = randn(64, 16).to(device).requires_grad_()
    value = compiled(z)
    (gradient,) = torch.autograd.grad(value, z)
    expected, expected_gradient = value_and_gradient(z.cpu(), solver="polar")
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert relative(gradient.cpu(), expected_gradient.double()) < 1e-4


def test_the_polar_solver_compiles_to_one_graph():
    check_compiled("aot_eager")


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="inductor needs a compiler")
def test_the_polar_solver_compiles_with_inductor():
    torch._inductor.metrics.reset()
    with torch.compiler.config.patch(force_disable_caches=True):  # else nothing is generated, or counted
        check_compiled("inductor")
    assert 0 < torch._inductor.metrics.generated_kernel_count <= 20  # beside the matrix products


@needs_cuda
def test_the_polar_solver_compiles_on_a_gpu():
    check_compiled("inductor", "cuda")


@needs_cuda
@both_solvers
def test_a_gpu_gives_the_gradient_of_the_cpu(solver):
    z = randn(512, 256)
    expected, gradient = svd_w2(z)
    value, got = value_and_gradient(z.cuda(), solver=solver)
    assert value == pytest.approx(expected, rel=1e-5)
    assert relative(got.cpu(), gradient) < 1e-3
    assert w2_uniformity(z.cuda()).item() == w2_uniformity(z.cuda(), solver="polar").item()


@needs_cuda
def test_a_cuda_graph_replays_the_polar_solver_and_nothing_synchronises():
    static = randn(512, 256).cuda().requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            value_and_gradient_on_device(static, solver="polar")
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            value_and_gradient_on_device(static, solver="polar")
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = w2_uniformity(static, solver="polar")
        (gradient,) = torch.autograd.grad(value, static)
    for seed in (3, 4):
        z = randn(512, 256, seed=seed)
        with torch.no_grad():
            static.copy_(z)
        graph.replay()
        expected, expected_gradient = svd_w2(z)
        assert value.item() == pytest.approx(expected, rel=1e-5)
        assert relative(gradient.cpu(), expected_gradient) < 1e-3


# ---- module, one file ------------------------------------------------------------------------------------------


@both_scalings
def test_the_module_is_the_function_of_all_views_rows(normalize):
    a, b, c = (randn(n, 6, seed=n) for n in (10, 20, 5))
    for options in ({}, {"squared": True}, {"solver": "polar"}):
        loss = W2Loss(normalize=normalize, **options)
        expected = w2_uniformity(torch.cat([a, b, c]), normalize=normalize, **options)
        assert torch.equal(loss(a, b, c), expected)
        assert torch.equal(loss(a), w2_uniformity(a, normalize=normalize, **options))
    assert not list(W2Loss().parameters())


def test_the_module_shows_its_options():
    assert repr(W2Loss()) == "W2Loss(normalize=True, squared=False, solver='auto')"
    assert "squared=True, solver='polar'" in repr(W2Loss(squared=True, solver="polar"))


def test_the_file_alone_is_enough(tmp_path):
    shutil.copy(CODE / "wassersteinssl" / "w2.py", tmp_path / "w2.py")
    tree = ast.parse((tmp_path / "w2.py").read_text())
    imported = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
    assert {name.split(".")[0] for name in imported} <= {"torch"} | sys.stdlib_module_names
    assert not any(node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    script = """
import sys; sys.path.insert(0, sys.argv[1])
import w2, torch
z = torch.randn(20, 4, requires_grad=True)
w2.W2Loss()(z[:10], z[10:]).backward()
w2.W2Loss(solver="polar")(z).backward()
w2.W2Metric().update(z).compute(), w2.w2_floor(20, 4), w2.w2_minimum(20, 4)
print("wassersteinssl" in sys.modules, torch.isfinite(z.grad).all().item(), w2.__file__)
"""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "True", str(tmp_path / "w2.py")]


# ---- several processes -----------------------------------------------------------------------------------------

GROUP_CASES = [
    # rows of rank 0 and rank 1, features, normalize, squared
    (8, 8, 5, True, False),
    (11, 3, 6, True, True),
    (13, 1, 6, False, False),
    (4, 5, 16, True, False),
    (2, 6, 4, False, True),
]


def group_batch(case):
    first, second, m, _, _ = GROUP_CASES[case]
    return randn(first + second, m, seed=case), first


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for solver in SOLVERS:
        for case, (_, _, _, normalize, squared) in enumerate(GROUP_CASES):
            z, first = group_batch(case)
            rows = (z[:first] if rank == 0 else z[first:]).clone().requires_grad_()
            loss = W2Loss(normalize=normalize, squared=squared, solver=solver, group=dist.group.WORLD)(rows)
            loss.backward()
            results[solver, case] = loss.detach(), rows.grad
        z = randn(6, 4)
        z[rank, 0] = math.nan if rank else 0.0
        results[solver, "nan on rank 1"] = w2_uniformity(z, solver=solver, group=dist.group.WORLD)
        z = torch.ones(3, 4, requires_grad=True)
        loss = w2_uniformity(z, solver=solver, group=dist.group.WORLD)
        loss.backward()
        results[solver, "equal rows"] = loss.detach(), z.grad
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(5, 5))
    z, first = group_batch(0)
    w2_uniformity(model(z[:first] if rank == 0 else z[first:]), group=dist.group.WORLD).backward()
    results["ddp"] = [p.grad for p in model.parameters()]
    one_process = [dist.new_group([k]) for k in range(2)][rank]
    try:
        w2_uniformity(torch.ones(1, 3), group=one_process)
    except ValueError as error:
        results["one row"] = str(error)
    other = dist.new_group([0])  # a call of all processes, also of those that it leaves out
    try:
        w2_uniformity(torch.ones(2, 3), group=other)
    except ValueError as error:
        results["no member"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    del model  # outliving the group it could wait for gloo's thread for ever
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("torch without gloo")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@both_solvers
@pytest.mark.parametrize("case", range(len(GROUP_CASES)))
def test_a_group_has_the_value_of_all_rows_and_gradients_whose_mean_is_the_global_one(ranks, case, solver):
    z, first = group_batch(case)
    *_, normalize, squared = GROUP_CASES[case]
    value, gradient = svd_w2(z, normalize, squared)
    for result, rows in zip(ranks, (gradient[:first], gradient[first:]), strict=True):
        assert result[solver, case][0].item() == pytest.approx(value, rel=1e-5)
        torch.testing.assert_close(result[solver, case][1].double(), 2 * rows, rtol=1e-3, atol=1e-4 * gradient.norm())
    assert torch.equal(ranks[0][solver, case][0], ranks[1][solver, case][0])


@both_solvers
def test_every_rank_of_a_group_sees_nan_and_equal_rows_of_all(ranks, solver):
    for result in ranks:
        assert torch.isnan(result[solver, "nan on rank 1"])
        value, gradient = result[solver, "equal rows"]
        assert value.item() == pytest.approx(math.sqrt(2), rel=1e-6)
        assert gradient.abs().max() < 1e-7


def test_data_parallel_training_has_the_gradient_of_one_process(ranks):
    torch.manual_seed(0)
    model = nn.Linear(5, 5)
    w2_uniformity(model(group_batch(0)[0])).backward()
    for result in ranks:
        for got, p in zip(result["ddp"], model.parameters(), strict=True):
            torch.testing.assert_close(got, p.grad, rtol=1e-4, atol=1e-6)


def test_a_group_of_one_process_needs_two_rows_too(ranks):
    assert all("(1, 3)" in result["one row"] for result in ranks)


def test_a_state_that_lacks_something_changes_nothing():
    metric = W2Metric().update(randn(9, 4))
    before = metric.compute()
    for name in ("mean", "scatter", "n", "normalize"):
        state = W2Metric(normalize=False).update(randn(5, 3)).state_dict()
        del state[name]
        with pytest.raises(KeyError):
            metric.load_state_dict(state)
        assert (metric.n, metric.dim, metric.normalize, metric.compute()) == (9, 4, True, before)


def test_a_process_outside_the_group_is_told(ranks):
    assert ["no member" in result for result in ranks] == [False, True]


# ---- metric ----------------------------------------------------------------------------------------------------


@both_scalings
@pytest.mark.parametrize("m", [12, 64, 203])  # of 64 columns in one block of the product, in one exactly, in four
def test_the_metric_has_numpy_s_moments_and_the_loss_s_value(normalize, m):
    z = randn(500, m, dtype=torch.float64) * torch.linspace(0.1, 3, m) + 0.5
    metric = W2Metric(normalize=normalize)
    for rows in z.split(77):
        metric.update(rows)
    mean, covariance = moments(z, normalize)
    assert (metric.n, metric.dim) == (500, m)
    np.testing.assert_allclose(metric.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(metric.covariance, covariance, rtol=1e-11, atol=1e-14)
    assert metric.compute() == pytest.approx(w2_uniformity(z, normalize=normalize).item(), rel=1e-12)
    assert metric.compute(squared=True) == pytest.approx(metric.compute() ** 2, rel=1e-12)
    assert metric.compute() == pytest.approx(pot_w2(z, normalize), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@both_scalings
def test_an_update_of_many_rows_goes_by_chunks_and_leaves_them_as_they_are(normalize, dtype):
    z = randn(9001, 7, dtype=dtype)
    before = z.clone()
    metric = W2Metric(normalize=normalize).update(z)
    assert torch.equal(z, before)
    mean, covariance = moments(z.double(), normalize)
    np.testing.assert_allclose(metric.mean, mean, rtol=0, atol=1e-14)
    np.testing.assert_allclose(metric.covariance, covariance, rtol=0, atol=1e-14)


def test_a_large_common_offset_does_not_cost_the_covariance():
    z = randn(4000, 5, dtype=torch.float64)
    metric = W2Metric(normalize=False)
    for rows in (z + 1e6).split(300):
        metric.update(rows)
    np.testing.assert_allclose(metric.covariance, np.cov(z.T, bias=True), rtol=0, atol=1e-9)
    single = (z + 1e6).float()  # float32 input: exact moments of the numbers that arrive
    np.testing.assert_allclose(
        W2Metric(normalize=False).update(single).covariance, np.cov(single.double().T, bias=True), atol=1e-9
    )


def test_non_finite_rows_are_counted_and_nothing_is_added():
    metric = W2Metric().update(randn(10, 4))
    before = metric.compute()
    z = randn(30, 4, seed=1)
    z[3, 0], z[3, 1], z[9, 2], z[20, 3] = math.nan, math.inf, -math.inf, math.nan
    with pytest.raises(ValueError, match="3 of 30 rows"):
        metric.update(z)
    assert (metric.n, metric.compute()) == (10, before)


@pytest.mark.parametrize(("dtype", "large"), [(torch.float16, 6e4), (torch.float32, 3e38), (torch.float64, 1e308)])
def test_finite_rows_whose_sum_overflows_are_taken(dtype, large):
    z = large * randn(50, 4).sign().to(dtype)
    z[:, 0] = large
    assert not torch.isfinite(z.sum())
    assert W2Metric().update(z).compute() == pytest.approx(svd_w2(z.double() / large)[0], rel=1e-12)


def test_the_metric_names_wrong_shapes_and_adds_nothing():
    metric = W2Metric()
    with pytest.raises(ValueError, match="no rows"):
        _ = metric.mean
    with pytest.raises(ValueError, match="2 rows, got 0"):
        metric.compute()
    for z, shape in ((torch.ones(4), r"\(4,\)"), (torch.ones(0, 4), r"\(0, 4\)"), (torch.ones(4, 0), r"\(4, 0\)")):
        with pytest.raises(ValueError, match=shape):
            metric.update(z)
    with pytest.raises(ValueError, match="int64"):
        metric.update(torch.ones(4, 3, dtype=torch.int64))
    metric.update(torch.ones(1, 4))
    with pytest.raises(ValueError, match="2 rows, got 1"):
        metric.compute()
    with pytest.raises(ValueError, match="5 features after rows of 4"):
        metric.update(torch.ones(2, 5))
    with pytest.raises(ValueError, match="5 features after rows of 4"):
        metric.merge(W2Metric().update(torch.ones(2, 5)))
    with pytest.raises(ValueError, match="normalises"):
        metric.merge(W2Metric(normalize=False))
    assert metric.n == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_metric_takes_half_precision_without_further_loss(dtype):
    z = randn(100, 6).to(dtype).requires_grad_()
    assert W2Metric().update(z).compute() == pytest.approx(w2_uniformity(z.detach().double()).item(), rel=1e-12)


def test_the_metric_survives_a_file_and_a_kept_state_does_not_move(tmp_path):
    first, second = randn(40, 5), randn(30, 5, seed=1)
    metric = W2Metric(normalize=False).update(first)
    kept = metric.state_dict()
    torch.save(kept, tmp_path / "state.pt")
    metric.update(second)
    for state in (torch.load(tmp_path / "state.pt", weights_only=True), kept):
        again = W2Metric()
        again.load_state_dict(state)
        assert again.n == 40
        again.update(second)
        assert again.compute() == metric.compute()
        assert torch.equal(again.covariance, metric.covariance)
    empty = W2Metric()
    empty.load_state_dict(W2Metric(normalize=False).state_dict())
    assert (empty.n, empty.normalize) == (0, False)


def test_collapsed_and_isotropic_features_give_the_ends_of_the_range():
    assert W2Metric().update(torch.ones(50, 9)).compute() == pytest.approx(math.sqrt(2), abs=1e-7)
    assert W2Metric().update(atoms(9)).compute() == pytest.approx(0, abs=1e-7)


PEAK = """
import resource, sys, torch
from wassersteinssl.w2 import W2Metric
torch.set_num_threads(1)
metric = W2Metric().update(torch.randn(1000, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = torch.randn(1, 64).expand(1_000_000, 64)  # 256 MB of float32, were it not a view of one row
metric.update(rows)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_the_metric_s_memory_does_not_grow_with_the_rows():
    assert int(printed(PEAK)) < 250e6


# ---- floor and minimum -----------------------------------------------------------------------------------------


def sampled_w2(n, m, draws):
    """Mean W2 of n normalised Gaussian rows, from eigenvalues of the smaller-side Gram matrix."""
    z = randn(draws, n, m, dtype=torch.float64)
    z = z / z.norm(dim=2, keepdim=True)
    z = z - z.mean(dim=1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(z.mT @ z if n >= m else z @ z.mT)
    nuclear = eigenvalues.clamp(min=0).sqrt().sum(dim=1)
    return (2 - 2 / math.sqrt(m * n) * nuclear).sqrt().mean().item()


@pytest.mark.parametrize(
    ("n", "m", "draws", "tolerance"),
    [
        (512, 256, 3, 0.015),
        (128, 256, 5, 0.015),
        (2, 256, 100, 0.015),
        (1000, 32, 150, 0.02),  # the documented 0.015, and the spread of 150 draws
        (2000, 64, 15, 0.015),
        (32, 32, 100, 0.015),
        (5, 32, 100, 0.015),
    ],
)
def test_the_floor_is_what_random_directions_reach(n, m, draws, tolerance):
    assert w2_floor(n, m) == pytest.approx(sampled_w2(n, m, draws), rel=tolerance)


@pytest.mark.parametrize(("m", "excess", "draws"), [(8, 0.05, 1000), (2, 0.2, 10_000)])
def test_the_floor_overstates_few_features_as_documented(m, excess, draws):
    assert w2_floor(200, m) / sampled_w2(200, m, draws) == pytest.approx(1 + excess, abs=0.015)


@pytest.mark.parametrize(
    ("n", "published"), [(512, (0.367, 0.370)), (10_000, (0.080, 0.081)), (50_000, (0.036,)), (128, (0.825, 0.831))]
)
def test_the_floor_agrees_with_the_numbers_known_for_256_features(n, published):
    for value in published:
        assert w2_floor(n, 256) == pytest.approx(value, rel=0.015)


@pytest.mark.parametrize(
    ("n", "m"),
    [(2, 1), (2, 256), (17, 16), (16, 16), (10, 3), (128, 256), (257, 256), (512, 256), (10**6, 8), (3, 10**5)],
)
def test_the_floor_is_the_integral_over_marchenko_and_pastur_s_density(n, m):
    ratio = m / (n - 1)
    low, high = abs(1 - math.sqrt(ratio)), 1 + math.sqrt(ratio)
    # E sqrt(x) of the density sqrt((high^2 - x)(x - low^2)) / (2 pi ratio x), with x = s^2
    integral, _ = scipy.integrate.quad(
        lambda s: math.sqrt(max(0.0, (high**2 - s * s) * (s * s - low**2))) / (math.pi * ratio),
        low,
        high,
        epsabs=0,
        epsrel=1e-11,
        limit=500,
    )
    expected = math.sqrt(2 - 2 * math.sqrt((n - 1) / n) * integral)
    assert w2_floor(n, m) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("m", [32, 256, 2048])
def test_the_floor_is_sqrt_of_m_over_4n_for_many_rows(m):
    assert w2_floor(10**6 * m, m) == pytest.approx(math.sqrt(m / (4 * 10**6 * m)), rel=2 / m + 1e-3)


def test_the_floor_and_the_minimum_refuse_sizes_without_meaning():
    for function in (w2_floor, w2_minimum):
        for n, m in ((1, 4), (0, 4), (4, 0), (-3, 2)):
            with pytest.raises(ValueError, match=f"n = {n}, m = {m}"):
                function(n, m)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 7), (3, 2), (5, 4), (6, 9), (33, 32), (20, 64)])
def test_up_to_m_plus_1_rows_the_simplex_attains_the_minimum(n, m):
    assert w2_uniformity(simplex(n, m), squared=True).item() == pytest.approx(w2_minimum(n, m) ** 2, abs=1e-12)
    rivals = [w2_uniformity(randn(n, m, seed=k, dtype=torch.float64)).item() for k in range(20)]
    assert min(rivals) >= w2_minimum(n, m) - 1e-7


@pytest.mark.parametrize(
    ("z", "name"),
    [(atoms(m, torch.float64), f"atoms {m}") for m in (1, 2, 5, 16)]
    + [(harmonic_frame(n, m), f"harmonic {n} {m}") for n, m in ((3, 2), (4, 2), (7, 4), (9, 6), (40, 8))]
    + [(simplex(m + 1, m), f"simplex {m}") for m in (1, 2, 5, 16)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spherical_2_designs_reach_zero(z, name):
    assert w2_minimum(*z.shape) == 0
    assert w2_uniformity(z, squared=True).item() == pytest.approx(0, abs=1e-12)


def test_the_minimum_falls_with_rows_and_rises_with_features():
    for m in (1, 2, 5, 16):
        falling = [w2_minimum(n, m) for n in range(2, m + 2)]
        assert falling == sorted(falling, reverse=True)
        assert falling[-1] == 0
        assert all(w2_minimum(n, m) == 0 for n in range(m + 3, m + 40) if m > 1)
    for n in (2, 5, 40):
        rising = [w2_minimum(n, m) for m in range(n - 1, 3 * n)]
        assert rising == sorted(rising)
    for n in (2, 3, 10, 33, 34, 100):
        for m in (8, 31, 32, 256):
            assert w2_minimum(n, m) < w2_floor(n, m)


@pytest.mark.parametrize("n", range(2, 10))
def test_on_a_line_the_minimum_is_the_best_of_all_signs(n):
    best = min(
        w2_uniformity(torch.tensor([[1.0]] * k + [[-1.0]] * (n - k), dtype=torch.float64)).item() for k in range(n + 1)
    )
    assert w2_minimum(n, 1) == pytest.approx(best, abs=1e-7)


def optimise(n, m, starts):
    """The least W2^2 that L-BFGS finds from random starts, with the singular values' own gradient."""

    def objective(flat):
        value, gradient = svd_w2(torch.from_numpy(flat).reshape(n, m), squared=True)
        return value, gradient.flatten().numpy()

    found = []
    for seed in range(starts):
        start = randn(n, m, seed=seed, dtype=torch.float64).flatten().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the nuclear norm has kinks; the line search may say so
            done = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 400})
        found.append(done.fun)
    return np.array(found)


@pytest.mark.parametrize(("n", "m"), [(5, 3), (7, 5)])
def test_two_rows_more_than_an_odd_number_of_features_cannot_reach_zero(n, m):
    found = optimise(n, m, starts=10)
    expected = w2_minimum(n, m) ** 2
    assert expected > 5e-4
    assert found.min() > expected - 1e-9
    assert found.min() < expected + 1e-6


@pytest.mark.parametrize(("n", "m"), [(4, 2), (6, 3), (6, 4), (8, 5)])
def test_other_numbers_of_rows_above_m_reach_zero(n, m):
    assert w2_minimum(n, m) == 0
    assert optimise(n, m, starts=4).min() < 1e-6


def test_optimised_small_batches_reach_the_simplex_and_no_less():
    for n, m in ((3, 4), (4, 3), (5, 6)):
        found = optimise(n, m, starts=3)
        assert found.min() == pytest.approx(w2_minimum(n, m) ** 2, abs=1e-6)
        assert found.min() > w2_minimum(n, m) ** 2 - 1e-9


def minimax_polynomials(lower, count):
    """Coefficients (a, b, c) of p_k(x) = a x + b x^3 + c x^5, each the best approximation of 1 on the interval that
    the one before maps [lower, 1] to: the error takes the values +E, -E, +E, -E at the ends and at two points q < r
    between, the zeros of p', found by exchange (Remez). Each interval ends 2 % of E later than that, for the
    rounding of TF32: beyond its interval a polynomial grows steeply."""
    upper, polynomials = 1.0, []
    for _ in range(count):
        q, r = (3 * lower + upper) / 4, (lower + 3 * upper) / 4
        for _ in range(40):
            x = torch.tensor([lower, q, r, upper], dtype=torch.float64, device="cpu")
            signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64, device="cpu")
            a, b, c, error = torch.linalg.solve(torch.stack([x, x**3, x**5, signs], 1), torch.ones_like(x)).tolist()
            discriminant = math.sqrt(max(0.0, 9 * b * b - 20 * a * c))
            q, r = (math.sqrt((-3 * b + sign * discriminant) / (10 * c)) for sign in (-1, 1))
        polynomials.append((a, b, c))
        lower, upper = 1 - abs(error), 1 + 1.02 * abs(error)
        if upper - lower < 1e-4:  # the limit of the sequence; the exchange is ill-conditioned on a tiny interval
            polynomials += [(15 / 8, -10 / 8, 3 / 8)] * (count - len(polynomials))
            break
    return polynomials


def test_the_polynomials_are_the_best_ones():
    np.testing.assert_allclose(w2._POLYNOMIALS, minimax_polynomials(3e-4, 9), rtol=1e-6)


class TF32(TorchDispatchMode):
    """Matrix products as a GPU computes them where TF32 is allowed: of factors with ten bits behind the leading one."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            *rest, a, b = arguments
            arguments = (*rest, self.rounded(a), self.rounded(b))
        return function(*arguments, **(options or {}))

    @staticmethod
    def rounded(x):
        return ((x.view(torch.int32) + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32)


@pytest.mark.parametrize(("n", "error"), [(512, 0.05), (4096, 0.33)])
def test_tf32_costs_the_polar_solver_the_documented_gradient_error(n, error):
    z = randn(n, 256)
    with TF32():
        _, rough = value_and_gradient(z, solver="polar")
    _, exact = value_and_gradient(z.double(), solver="eigh")
    assert relative(rough, exact) == pytest.approx(error, rel=0.25)


def test_the_polynomials_forgive_the_rounding_of_tf32():
    s = torch.logspace(-3.5, 0, 2000, dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    for a, b, c in w2._POLYNOMIALS:
        s = a * s + b * s**3 + c * s**5
        s = s * (1 + 0.002 * (2 * torch.rand(s.shape, generator=random, dtype=s.dtype) - 1))  # 10 bits, and some
    assert float((s - 1).abs().max()) < 0.01


def test_rows_too_large_for_their_square_have_no_metric():
    metric = W2Metric(normalize=False).update(torch.full((5, 3), 1e200, dtype=torch.float64))
    with pytest.raises(ValueError, match="no finite W2"):
        metric.compute()


def test_a_loss_with_a_process_group_is_copied_as_for_a_moving_average(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        loss = W2Loss(squared=True, group=dist.group.WORLD).eval()
        new = copy.deepcopy(nn.Sequential(nn.Linear(3, 3), loss))[1]
        assert new is not loss
        assert new.group is loss.group
        assert (new.squared, new.training) == (True, False)
        z = randn(8, 3)
        assert torch.equal(new(z), loss(z))
    finally:
        dist.destroy_process_group()


def test_the_coarsest_type_of_any_rows_tells_what_is_rounding():
    fine, coarse = (W2Metric().update(randn(9, 4).to(dtype)) for dtype in (torch.float64, torch.bfloat16))
    again = W2Metric()
    again.load_state_dict(coarse.state_dict())
    both = W2Metric().update(randn(9, 4).bfloat16()).update(randn(9, 4))
    for metric in (again, both, fine.merge(coarse)):
        assert metric.rounding == torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-40), (torch.float64, 1e-310)])
@both_solvers
def test_a_row_without_a_normal_number_counts_as_zero(dtype, tiny, solver):
    z = randn(9, 4).to(dtype)
    zero, short = z.index_fill(0, torch.tensor(3), 0), z.index_fill(0, torch.tensor(3), tiny)
    assert w2_uniformity(short, solver=solver) == w2_uniformity(zero, solver=solver)
    assert W2Metric().update(short).compute() == W2Metric().update(zero).compute()


@pytest.mark.parametrize("m", [6, 8, 64])
def test_a_value_of_rounding_has_a_zero_gradient(m):
    frames = (torch.linalg.qr(randn(m, m, seed=seed, dtype=torch.float64)).Q for seed in range(40))
    found = [value_and_gradient(torch.cat([q, -q]), solver="eigh") for q in frames]
    rounding = [gradient for value, gradient in found if value > 0]
    assert rounding
    assert not any(gradient.any() for gradient in rounding)


def test_parallel_rows_of_float32_have_a_zero_gradient_by_every_solver():
    lengths = 0.5 + torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    z = randn(1, 256).float() * lengths
    for solver in ("eigh", "eigh32", "polar"):
        value, gradient = value_and_gradient(z, solver=solver)
        assert value == pytest.approx(2**0.5)
        assert not gradient.any(), solver


@pytest.mark.parametrize("ratio", [1e-4, 3e-5])
def test_the_polar_solver_reads_too_large_near_collapse_by_at_most_1e_4(ratio):
    deviations = torch.where(torch.arange(256) < 16, 1.0, ratio)
    z = (randn(512, 256, dtype=torch.float64) * deviations).float()
    error = w2_uniformity(z, solver="polar").item() - W2Metric().update(z).compute()
    assert 1e-5 < error < 1e-4
    assert abs(w2_uniformity(z, solver="eigh").item() - W2Metric().update(z).compute()) < 1e-6

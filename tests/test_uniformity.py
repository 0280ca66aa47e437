"""L_U against torch.pdist and scipy, alignment against plain loops, and what the table of measures promises."""

import math
import sys

import numpy as np
import pytest
import torch
from conftest import printed
from scipy.spatial.distance import pdist
from scipy.special import logsumexp
from torch import nn

from wassersteinssl import pairwise
from wassersteinssl.uniformity import MEASURES, alignment, lu_uniformity

BLOCK_SIZES = [1, 2, 7, 4096]  # blocks of 7: n = 8, 15, 22 leave one row over
both_scalings = pytest.mark.parametrize("normalize", [True, False])


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scipy_lu(z, t=2.0, normalize=True):
    """From scipy's pairwise distances, in float64; a zero row stays zero."""
    z = z.detach().double().numpy()
    if normalize:
        length = np.linalg.norm(z, axis=1, keepdims=True)
        z = z / np.where(length > 0, length, 1)
    squares = pdist(z, "sqeuclidean")
    return logsumexp(-t * squares) - math.log(len(squares))


def pdist_lu(z, t=2.0, normalize=True):
    """(value, gradient) by automatic differentiation of torch.pdist in float64, as Wang & Isola compute it."""
    z = z.detach().double().requires_grad_()
    rows = z / z.norm(dim=1, keepdim=True) if normalize else z
    value = torch.pdist(rows).square().mul(-t).exp().mean().log()
    return value.item(), torch.autograd.grad(value, z)[0]


def value_and_gradient(function, *tensors, **options):
    tensors = [z.detach().clone().requires_grad_() for z in tensors]
    value = function(*tensors, **options)
    return value.item(), *torch.autograd.grad(value, tensors)


def relative(a, b):
    return ((a.double() - b).norm() / b.norm()).item()


def plain_alignment(a, b, alpha, normalize=True):
    """The formula, one number at a time."""
    total = 0.0
    for x, y in zip(a.double().tolist(), b.double().tolist(), strict=True):
        if normalize:
            x_norm, y_norm = math.hypot(*x), math.hypot(*y)
            x, y = [v / x_norm for v in x], [v / y_norm for v in y]
        total += math.dist(x, y) ** alpha
    return total / len(a)


# ---- L_U: value and gradient -----------------------------------------------------------------------------------


@both_scalings
@pytest.mark.parametrize("block", BLOCK_SIZES)
@pytest.mark.parametrize("n", [2, 3, 6, 7, 8, 13, 14, 15, 22])
def test_blocks_of_any_size_give_the_value_and_gradient_of_all_pairs(n, block, normalize, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    for t in (2.0, 0.5):
        z = randn(n, 5, seed=n, dtype=torch.float64)
        expected, expected_gradient = pdist_lu(z, t, normalize)
        value, gradient = value_and_gradient(lu_uniformity, z, t=t, normalize=normalize)
        assert value == pytest.approx(expected, rel=1e-12)
        assert value == pytest.approx(scipy_lu(z, t, normalize), rel=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("n", [2047, 2048, 2049])
def test_the_real_block_size_is_no_seam(n):
    z = randn(n, 4)
    value, gradient = value_and_gradient(lu_uniformity, z)
    expected, expected_gradient = pdist_lu(z)
    assert value == pytest.approx(expected, rel=1e-5)
    assert relative(gradient, expected_gradient) < 1e-4


@pytest.mark.parametrize(("n", "m"), [(512, 256), (50, 2), (100, 1), (2, 1000)])
def test_float32_batches_agree_with_float64(n, m):
    z = randn(n, m)
    value, gradient = value_and_gradient(lu_uniformity, z)
    expected, expected_gradient = pdist_lu(z)
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert ((gradient.double() - expected_gradient).norm() / expected_gradient.norm().clamp(min=1e-12)).item() < (
        1e-4 if m > 1 else math.inf  # on a line the gradient is zero
    )


@both_scalings
@pytest.mark.parametrize(("n", "m", "block"), [(9, 3, 4), (3, 9, 4), (2, 2, 2048)])
def test_gradients_agree_with_finite_differences(n, m, block, normalize, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    z = randn(n, m, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: lu_uniformity(z, normalize=normalize), z)


def test_uniform_directions_in_many_dimensions_give_minus_2t():
    for t in (1.0, 2.0):
        assert lu_uniformity(randn(500, 4096), t=t).item() == pytest.approx(-2 * t, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [7, 2048])
def test_far_apart_rows_underflow_nothing(dtype, block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    for scale in (30.0, 1e4, 1e15):
        z = (scale * randn(50, 8)).to(dtype)
        value, gradient = value_and_gradient(lu_uniformity, z, normalize=False)
        assert value == pytest.approx(scipy_lu(z, normalize=False), rel=1e-6)
        assert value < -700  # exp of it is 0, even in float64
        assert torch.isfinite(gradient).all()
        assert gradient.any()


@pytest.mark.parametrize("block", [7, 2048])
def test_near_rows_keep_their_distance_far_from_the_others(block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    z = 0.1 * randn(60, 32) + 1e3 * (torch.arange(60) % 2).float().unsqueeze(1)
    value, gradient = value_and_gradient(lu_uniformity, z, normalize=False)
    expected, expected_gradient = pdist_lu(z, normalize=False)
    assert value == pytest.approx(expected, rel=1e-6)
    assert relative(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_a_common_offset_costs_nothing_beyond_the_input_s_own_rounding(offset):
    z = randn(60, 8) + offset
    assert lu_uniformity(z, normalize=False).item() == pytest.approx(scipy_lu(z, normalize=False), rel=1e-6)
    z = z.double() + randn(60, 8, seed=1, dtype=torch.float64)  # whose squares do not fit float64
    assert lu_uniformity(z, normalize=False).item() == pytest.approx(scipy_lu(z, normalize=False), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-20, 1e20, 1e30, 1e37])
def test_unit_rows_do_not_depend_on_the_scale_of_the_features(scale):
    z = randn(40, 8)
    value, gradient = value_and_gradient(lu_uniformity, z)
    scaled_value, scaled_gradient = value_and_gradient(lu_uniformity, z * scale)
    assert scaled_value == pytest.approx(value, rel=1e-5)
    assert torch.isfinite(scaled_gradient).all()
    if scale < 1e37:
        assert relative(scaled_gradient.double() * scale, gradient.double()) < 1e-4


# ---- L_U: degenerate batches and types -------------------------------------------------------------------------


@both_scalings
@pytest.mark.parametrize("n", [2, 9, 300])
def test_equal_rows_give_zero_and_a_zero_gradient(n, normalize):
    value, gradient = value_and_gradient(lu_uniformity, randn(1, 16).repeat(n, 1), normalize=normalize)
    assert value == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-6


def test_repeated_rows_are_pairs_like_any_other():
    z = randn(10, 6).repeat(3, 1)
    value, gradient = value_and_gradient(lu_uniformity, z)
    assert value == pytest.approx(scipy_lu(z), abs=1e-6)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient[:10], gradient[20:], rtol=1e-4, atol=1e-7)


def test_zero_rows_stay_zero_and_have_a_zero_gradient():
    z = randn(50, 8)
    z[3] = z[7] = 0
    value, gradient = value_and_gradient(lu_uniformity, z)
    assert value == pytest.approx(scipy_lu(z), rel=1e-6)
    assert torch.isfinite(gradient).all()
    assert not gradient[[3, 7]].any()
    assert lu_uniformity(torch.zeros(5, 3)).item() == 0


@both_scalings
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_features_give_nan(bad, normalize):
    z = randn(12, 4)
    z[5, 2] = bad
    assert math.isnan(lu_uniformity(z, normalize=normalize).item())


@both_scalings
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_as_the_same_numbers_in_float64(dtype, normalize):
    z = (0.5 * randn(100, 12)).to(dtype)
    expected, expected_gradient = pdist_lu(z, normalize=normalize)
    x = z.clone().requires_grad_()
    value = lu_uniformity(x, normalize=normalize)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-6)
    assert x.grad.dtype == dtype
    assert relative(x.grad, expected_gradient) < 4 * torch.finfo(dtype).eps


def test_autocast_changes_no_bit_forward_or_backward():
    z = randn(64, 32)
    value, gradient = value_and_gradient(lu_uniformity, z)
    with torch.autocast("cpu", torch.bfloat16):
        cast_value, cast_gradient = value_and_gradient(lu_uniformity, z)
        assert lu_uniformity(nn.Linear(32, 32)(z)).dtype == torch.float32
    assert cast_value == value
    assert torch.equal(cast_gradient, gradient)


def test_two_uses_in_one_graph_add_their_gradients():
    z = randn(40, 6).requires_grad_()
    loss = lu_uniformity(z[:25]) + 2 * lu_uniformity(z[10:])
    loss.backward(retain_graph=True)
    expected = torch.zeros_like(z)
    expected[:25] += value_and_gradient(lu_uniformity, z[:25])[1]
    expected[10:] += 2 * value_and_gradient(lu_uniformity, z[10:])[1]
    torch.testing.assert_close(z.grad, expected)
    loss.backward()
    torch.testing.assert_close(z.grad, 2 * expected)


@pytest.mark.parametrize("name", ["w2", "lu", "koleo", "tcr", "kl", "ssw"])
def test_a_second_derivative_through_a_learned_weight_raises(name):
    """It asks for the gradient of what came in, which is not differentiated either."""
    z, weight = randn(40, 8).requires_grad_(), torch.tensor(0.7, requires_grad=True)
    loss = weight * (MEASURES[name].function(z) + z.square().mean())
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        torch.autograd.grad(gradient.norm(), weight)


def test_a_second_derivative_raises():
    z = randn(9, 4).requires_grad_()
    value = lu_uniformity(z)
    (gradient,) = torch.autograd.grad(value, z, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        (value + gradient.square().sum()).backward()


def test_errors_name_the_shape():
    for z, shape in (
        (torch.ones(4), r"\(4,\)"),
        (torch.ones(2, 3, 4), r"\(2, 3, 4\)"),
        (torch.ones(4, 3, dtype=torch.int64), r"int64 of shape \(4, 3\)"),
        (torch.ones(1, 3), r"\(1, 3\)"),
        (torch.ones(4, 0), r"\(4, 0\)"),
        (torch.ones(0, 3), r"\(0, 3\)"),
    ):
        with pytest.raises(ValueError, match=shape):
            lu_uniformity(z)


PEAK = """
import resource, sys, torch
from wassersteinssl.uniformity import lu_uniformity
torch.set_num_threads(1)
lu_uniformity(torch.randn(64, 8, requires_grad=True)).backward()
z = torch.randn(12_000, 256, requires_grad=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
lu_uniformity(z).backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_memory_does_not_grow_with_the_pairs():
    assert int(printed(PEAK)) < 200e6  # all distances at once: 576 MB, and as much again for the gradient


# ---- alignment -------------------------------------------------------------------------------------------------


@both_scalings
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 3.0])
def test_alignment_is_the_formula_one_pair_at_a_time(alpha, normalize):
    a, b = randn(20, 7), randn(20, 7, seed=1)
    got = alignment(a, b, alpha=alpha, normalize=normalize)
    assert got.item() == pytest.approx(plain_alignment(a, b, alpha, normalize), rel=1e-6)


@both_scalings
@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_alignment_s_gradients_agree_with_finite_differences(alpha, normalize):
    a, b = (randn(6, 4, seed=k, dtype=torch.float64).requires_grad_() for k in range(2))
    assert torch.autograd.gradcheck(lambda a, b: alignment(a, b, alpha=alpha, normalize=normalize), (a, b))


@both_scalings
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_equal_pairs_have_no_distance_and_a_zero_gradient(alpha, normalize):
    a, b = randn(8, 5), randn(8, 5, seed=1)
    b[:4] = a[:4]
    value, gradient_a, gradient_b = value_and_gradient(alignment, a, b, alpha=alpha, normalize=normalize)
    assert value > 0
    for gradient in (gradient_a, gradient_b):
        assert not gradient[:4].any()
        assert torch.isfinite(gradient).all()
        assert gradient[4:].any()
    assert alignment(a, a, alpha=alpha, normalize=normalize).item() == 0


def test_opposite_pairs_are_at_2_to_the_alpha_at_any_scale():
    for scale in (1e-37, 1e-30, 1.0, 1e30, 1e37):
        a = randn(8, 5) * scale
        for alpha in (1.0, 2.0, 3.0):
            assert alignment(a, -a, alpha=alpha).item() == pytest.approx(2**alpha, rel=1e-6)


def test_alignment_with_zero_rows_is_finite():
    a, b = randn(4, 3), randn(4, 3, seed=1)
    a[0] = a[1] = b[1] = 0
    for alpha in (1.0, 2.0):
        value, gradient_a, gradient_b = value_and_gradient(alignment, a, b, alpha=alpha)
        assert math.isfinite(value)
        assert torch.isfinite(gradient_a).all()
        assert torch.isfinite(gradient_b).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_alignment_of_half_precision_is_computed_in_float32(dtype):
    a, b = randn(50, 12).to(dtype), randn(50, 12, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = alignment(a, b)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(plain_alignment(a, b, 2), rel=1e-5)


def test_alignment_needs_two_floating_matrices_of_one_shape():
    good = torch.ones(4, 3)
    for a, b, message in (
        (good, torch.ones(5, 3), r"\(4, 3\).*\(5, 3\)"),
        (good, torch.ones(4, 2), r"\(4, 3\).*\(4, 2\)"),
        (good[0], good[0], r"\(3,\)"),
        (torch.ones(0, 3), torch.ones(0, 3), r"\(0, 3\)"),
        (torch.ones(3, 0), torch.ones(3, 0), r"\(3, 0\)"),
        (good, good.long(), "int64"),
    ):
        with pytest.raises(ValueError, match=message):
            alignment(a, b)


# ---- the table -------------------------------------------------------------------------------------------------


def arguments(record, z, noise=0.3):
    return (z, z + noise * randn(*z.shape, seed=9)) if record.needs_views else (z,)


def test_the_table_holds_the_paper_s_three_measures():
    assert {"w2", "lu", "alignment"} <= set(MEASURES)
    assert MEASURES["lu"].function is lu_uniformity
    assert MEASURES["alignment"].needs_views
    assert not MEASURES["alignment"].loss


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_a_function_to_one_finite_number_with_its_formula_and_source(name):
    record = MEASURES[name]
    value = record.function(*arguments(record, randn(64, 16)))
    assert value.shape == ()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert record.better in {"low", "high", "near 1"}
    assert record.formula.strip()
    assert record.source.strip()


@pytest.mark.parametrize("name", [name for name, record in MEASURES.items() if record.loss])
def test_a_measure_marked_as_a_loss_has_a_gradient_that_improves_it(name):
    record = MEASURES[name]
    z = (randn(64, 16) + 0.5).requires_grad_()
    value = record.function(*arguments(record, z))
    (gradient,) = torch.autograd.grad(value, z)
    assert torch.isfinite(gradient).all()
    assert gradient.any()
    step = (-1 if record.better == "low" else 1) * 0.1 * gradient / gradient.norm()
    after = record.function(*arguments(record, z.detach() + step)).item()
    assert (after < value.item()) == (record.better == "low")


@pytest.mark.parametrize("name", [name for name, record in MEASURES.items() if not record.needs_views])
def test_the_better_direction_tells_spread_from_collapse(name):
    record = MEASURES[name]
    spread, line = randn(64, 16), randn(64, 1) * randn(1, 16, seed=1) + 0.01 * randn(64, 16, seed=2)
    at_spread, at_line = record.function(spread), record.function(line)
    if record.better == "near 1":
        assert abs(at_spread - 1) < abs(at_line - 1)
    else:
        assert (at_spread < at_line).item() == (record.better == "low")

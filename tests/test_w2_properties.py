"""What must hold for every batch: the paper's four constraints, invariances, the range, and the streaming metric."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wassersteinssl.w2 import W2Metric, w2_floor, w2_minimum, w2_uniformity

SOLVERS = ["eigh", "polar"]
TOLERANCE = {"eigh": 1e-6, "polar": 3e-4}  # of W2^2, float64 features: the polar solver leaves small directions out
both_solvers = pytest.mark.parametrize("solver", SOLVERS)
deterministic = settings(
    derandomize=True, max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def batches(draw, least_rows=2, least_features=1, most_rows=40, most_features=24):
    """(n, m) float64 features of many kinds: full and low rank, clustered, with an offset, with very unlike axes."""
    n = draw(st.integers(least_rows, most_rows))
    m = draw(st.integers(least_features, most_features))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    z = generator.standard_normal((n, m))
    kind = draw(st.sampled_from(["full", "low rank", "clusters", "offset", "axes"]))
    if kind == "low rank":
        rank = draw(st.integers(1, max(1, m // 2)))
        z = generator.standard_normal((n, rank)) @ generator.standard_normal((rank, m))
    elif kind == "clusters":
        centres = generator.standard_normal((3, m))
        z = centres[generator.integers(0, 3, n)] + 0.01 * z
    elif kind == "offset":
        z = z + draw(st.floats(-5, 5))
    elif kind == "axes":
        z = z * np.logspace(0, -3, m)
    return torch.from_numpy(z)


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


def square(z, solver, normalize=True):
    return w2_uniformity(z, normalize=normalize, squared=True, solver=solver).item()


def spread(z):
    """How far the rows are from being all equal: the norm of the centred batch, an entry of it on average."""
    return (z - z.mean(dim=0)).norm().item() / math.sqrt(z.numel())


@both_solvers
@deterministic
@given(z=batches(), data=st.data())
def test_instance_permutation_does_not_matter(solver, z, data):
    order = data.draw(st.permutations(range(len(z))))
    assert square(z[order], solver) == pytest.approx(square(z, solver), abs=1e-9 if solver == "eigh" else 1e-4)


@both_solvers
@deterministic
@given(z=batches(), copies=st.integers(2, 5))
def test_instance_cloning_does_not_matter(solver, z, copies):
    expected = square(z, solver)
    for cloned in (z.repeat(copies, 1), z.repeat_interleave(copies, dim=0)):
        assert square(cloned, solver) == pytest.approx(expected, abs=TOLERANCE[solver])


@both_solvers
@deterministic
@given(z=batches(least_features=2), copies=st.integers(2, 5))
def test_feature_cloning_is_strictly_worse(solver, z, copies):
    rows = unit(z)
    once, cloned = square(rows, solver, normalize=False), square(rows.repeat(1, copies), solver, normalize=False)
    assert cloned > once
    assert cloned - once == pytest.approx(
        copies - 1, abs=TOLERANCE[solver]
    )  # tr S grows, tr S^(1/2) / sqrt(m) does not


@both_solvers
@deterministic
@given(z=batches(), zeros=st.integers(1, 30))
def test_feature_baby_constraint_zero_features_are_strictly_worse(solver, z, zeros):
    once = square(z, solver)
    padded = square(torch.nn.functional.pad(z, (0, zeros)), solver)
    if spread(unit(z)) > 1e-3:  # equal rows have nothing to lose: sqrt 2 before and after
        assert padded > once
    share = math.sqrt(z.shape[1] / (z.shape[1] + zeros))
    assert 2 - padded == pytest.approx((2 - once) * share, abs=TOLERANCE[solver])


@both_solvers
@deterministic
@given(z=batches(), seed=st.integers(0, 1000))
def test_rotations_do_not_matter(solver, z, seed):
    m = z.shape[1]
    rotation = torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed).standard_normal((m, m))))[0]
    for normalize in (True, False):
        rotated, plain = square(z @ rotation, solver, normalize), square(z, solver, normalize)
        assert rotated == pytest.approx(plain, rel=TOLERANCE[solver], abs=TOLERANCE[solver])


@both_solvers
@deterministic
@given(z=batches(), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_unit_rows_stay_between_the_minimum_and_sqrt_2(solver, z, dtype):
    value = w2_uniformity(z.to(dtype), solver=solver).item()
    slack = 2e-3 if solver == "polar" else 1e-6
    assert w2_minimum(*z.shape) - slack <= value <= math.sqrt(2) * (1 + 1e-6)


@both_solvers
@deterministic
@given(z=batches(), exponents=st.lists(st.floats(-30, 30), min_size=40, max_size=40))
def test_the_length_of_a_row_does_not_matter(solver, z, exponents):
    lengths = torch.tensor([10.0**e for e in exponents[: len(z)]], dtype=torch.float64).unsqueeze(1)
    assert square(unit(z) * lengths, solver) == pytest.approx(square(z, solver), abs=1e-9)


@both_solvers
@deterministic
@given(z=batches())
def test_gradients_are_orthogonal_to_unit_rows_and_finite(solver, z):
    z = z.requires_grad_()
    (gradient,) = torch.autograd.grad(w2_uniformity(z, solver=solver), z)
    assert torch.isfinite(gradient).all()
    radial = (gradient * z.detach()).sum(dim=1)
    assert radial.abs().max() <= 1e-6 * (1 + (gradient.norm(dim=1) * z.detach().norm(dim=1)).max())


@both_solvers
@deterministic
@given(z=batches(least_rows=3))
def test_a_small_step_down_the_gradient_does_not_raise_the_loss(solver, z):
    z = unit(z).requires_grad_()
    value = w2_uniformity(z, squared=True, solver=solver)
    (gradient,) = torch.autograd.grad(value, z)
    after = w2_uniformity(z.detach() - 1e-3 * gradient, squared=True, solver=solver)
    assert after.item() <= value.item() + 1e-9


@deterministic
@given(z=batches(least_rows=2), normalize=st.booleans(), data=st.data())
def test_any_chunks_give_the_moments_of_one_pass(z, normalize, data):
    cuts = sorted(data.draw(st.sets(st.integers(1, len(z) - 1), max_size=6)))
    chunked = W2Metric(normalize=normalize)
    for rows in torch.tensor_split(z, cuts):
        chunked.update(rows)
    whole = W2Metric(normalize=normalize).update(z)
    assert chunked.n == whole.n == len(z)
    scale = max(1.0, z.abs().max().item()) ** 2
    np.testing.assert_allclose(chunked.mean, whole.mean, rtol=0, atol=1e-14 * scale)
    np.testing.assert_allclose(chunked.covariance, whole.covariance, rtol=0, atol=1e-13 * scale)
    assert chunked.compute(squared=True) == pytest.approx(whole.compute(squared=True), rel=1e-6, abs=1e-6)


@deterministic
@given(z=batches(least_rows=6), data=st.data())
def test_parts_merge_in_any_order(z, data):
    parts = [W2Metric().update(rows) for rows in torch.tensor_split(z, 5)] + [W2Metric()]
    order = data.draw(st.permutations(range(6)))
    merged = W2Metric()
    for k in order:
        merged.merge(parts[k])
    left = W2Metric().merge(parts[order[0]]).merge(parts[order[1]])
    right = W2Metric().merge(parts[order[2]])
    for k in order[3:]:
        right.merge(parts[k])
    tree = left.merge(right)
    whole = W2Metric().update(z)
    for metric in (merged, tree):
        assert metric.n == len(z)
        np.testing.assert_allclose(metric.mean, whole.mean, rtol=0, atol=1e-14)
        np.testing.assert_allclose(metric.covariance, whole.covariance, rtol=0, atol=1e-13)
    assert [part.n for part in parts] == [len(rows) for rows in torch.tensor_split(z, 5)] + [0]


def test_merging_a_metric_with_itself_counts_its_rows_twice():
    metric = W2Metric().update(torch.from_numpy(np.random.default_rng(0).standard_normal((20, 4))))
    value, covariance = metric.compute(), metric.covariance
    metric.merge(metric)
    assert metric.n == 40
    assert metric.compute() == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(metric.covariance, covariance, rtol=1e-12)


@deterministic
@given(z=batches(), normalize=st.booleans())
def test_the_metric_is_the_loss_in_float64(z, normalize):
    metric = W2Metric(normalize=normalize).update(z)
    expected = square(z, "eigh", normalize)
    assert metric.compute(squared=True) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@deterministic
@given(z=batches(least_rows=3), data=st.data())
def test_the_metric_counts_exactly_the_rows_that_are_not_finite(z, data):
    bad = data.draw(st.dictionaries(st.integers(0, len(z) - 1), st.sampled_from([math.nan, math.inf, -math.inf])))
    broken = z.clone()
    for row, value in bad.items():
        broken[row, data.draw(st.integers(0, z.shape[1] - 1))] = value
    metric = W2Metric().update(z)
    if bad:
        with pytest.raises(ValueError, match=f"^{len(bad)} of {len(z)} rows"):
            metric.update(broken)
        assert metric.n == len(z)
    else:
        assert metric.update(broken).n == 2 * len(z)


@deterministic
@given(n=st.integers(2, 10**6), m=st.integers(1, 10**4))
def test_floor_and_minimum_are_in_the_range(n, m):
    assert 0 <= w2_minimum(n, m) <= math.sqrt(2)
    assert 0 < w2_floor(n, m) < math.sqrt(2)
    assert w2_floor(n + 1, m) < w2_floor(n, m)

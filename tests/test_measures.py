"""Every measure beside W2 and L_U against another implementation or a closed form, on batches of every kind."""

import math

import mpmath
import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.integrate
import scipy.linalg
import torch
from conftest import PROGRAMS, NoHostReads, load
from scipy.spatial.distance import cdist
from scipy.special import gammaln, ive
from scipy.stats import entropy, multivariate_normal
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from wassersteinssl import pairwise, sliced
from wassersteinssl.moments import alpha_req, effective_rank, frobenius, kl, rankme, reverse_kl, tcr, vicreg
from wassersteinssl.pairwise import koleo, lu_calibrated, lu_theory, mst_length
from wassersteinssl.pretrain import uniformity_term
from wassersteinssl.settings import TERMS
from wassersteinssl.sliced import random_directions, sigreg, ssw
from wassersteinssl.step import SlicedTerm
from wassersteinssl.uniformity import MEASURES, Measure, of_moments
from wassersteinssl.views import lidar
from wassersteinssl.w2 import W2Metric

LOSSES = [name for name, record in MEASURES.items() if record.loss]
# The command line knows them before torch loads.
assert list(TERMS) == LOSSES, "SEARCH_WEIGHTS of settings.py lists the measures with loss=True, in their order"
OF_MOMENTS = [name for name, record in MEASURES.items() if record.of_moments]
VIEWS = [name for name, record in MEASURES.items() if record.needs_views]
NEW = [name for name in MEASURES if name not in ("w2", "lu", "alignment")]  # which have tests of their own
both_scalings = pytest.mark.parametrize("normalize", [True, False])


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(z):
    return z / z.norm(dim=1, keepdim=True)


def simplex(n, m):
    """n <= m + 1 unit rows in R^m of equal distances."""
    centred = torch.eye(n, dtype=torch.float64) - 1 / n
    rows = unit(centred @ torch.linalg.eigh(centred @ centred.T).eigenvectors[:, 1:])
    return torch.nn.functional.pad(rows, (0, m - n + 1))


def value(name, z, b=None, **options):
    """The measure of rows, or of two views: the second is `b`, or z with noise."""
    record = MEASURES[name]
    if record.needs_views:
        return record.function(z, z + 0.3 * randn(*z.shape, seed=9).to(z) if b is None else b, **options)
    return record.function(z, **options)


# ---- each value against another implementation ----


def gaussian(z):
    z = z.numpy()
    return z.mean(axis=0), np.atleast_2d(np.cov(z.T, bias=True))


def torch_normal(mean, covariance):
    return torch.distributions.MultivariateNormal(torch.as_tensor(mean), torch.as_tensor(covariance))


def kl_of(z, reverse=False):
    m = z.shape[1]
    fit, target = torch_normal(*gaussian(z)), torch_normal(np.zeros(m), np.eye(m) / m)
    pair = (target, fit) if reverse else (fit, target)
    return torch.distributions.kl_divergence(*pair).item()


def affinity(z):
    """The integral of sqrt(fit * target), by the trapezoidal rule, which is exact here beyond float64 (m = 2)."""
    axis = np.linspace(-12, 12, 1201)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1)
    mean, covariance = gaussian(z)
    roots = [multivariate_normal(*law).pdf(grid) for law in ((mean, covariance), (np.zeros(2), np.eye(2) / 2))]
    return np.sqrt(roots[0] * roots[1]).sum() * (axis[1] - axis[0]) ** 2


def spectrum(z):
    """The shares of the eigenvalues of the covariance, largest first."""
    return PCA().fit(z.numpy()).explained_variance_ratio_


def isoscore_of(z):
    """The steps of the paper."""
    m = z.shape[1]
    variances = PCA().fit(z.numpy()).explained_variance_
    normalised = variances * math.sqrt(m) / np.linalg.norm(variances)
    defect = np.linalg.norm(normalised - 1) / math.sqrt(2 * (m - math.sqrt(m)))
    share = (m - defect**2 * (m - math.sqrt(m))) ** 2 / m**2
    return (m * share - 1) / (m - 1)


def vicreg_of(z):
    c = np.cov(math.sqrt(z.shape[1]) * z.numpy().T)
    hinge = np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).mean()
    return 25 * hinge + (c**2).sum() / len(c) - (np.diag(c) ** 2).sum() / len(c)


def log_c(m, t):
    return gammaln(m / 2) + (1 - m / 2) * math.log(t) + math.log(ive(m / 2 - 1, 2 * t))


def lu_calibrated_of(z, t=2.0):
    """log(1 + MMD^2 / c_m); the kernel's mean to the sphere by quadrature over the cosine of the angle."""
    m = z.shape[1]
    cosines = np.cos((np.arange(4000) + 0.5) * np.pi / 4000)
    weights = (1 - cosines**2) ** ((m - 2) / 2)  # density of the cosine, times d(cosine)/d(angle)
    squares = 1 + (z**2).sum(dim=1).numpy()[:, None] - 2 * z.norm(dim=1).numpy()[:, None] * cosines
    across = (np.exp(-t * squares) @ weights / weights.sum()).mean()
    c = math.exp(log_c(m, t))
    return math.log((np.exp(-t * cdist(z, z) ** 2).mean() - 2 * across + 2 * c) / c)


def koleo_of(z):
    return -np.log(NearestNeighbors(n_neighbors=2).fit(z).kneighbors(z)[0][:, 1] + 1e-8).mean()


def mst_of(z):
    """Single-linkage clustering merges along the edges of the minimum spanning tree, those of length 0 too."""
    return -scipy.cluster.hierarchy.linkage(z.numpy(), "single")[:, 2].sum() / len(z)


def ssw_of(z):
    import ot

    planes = sliced._fixed(2, z.shape[1], 256, torch.device("cpu"), torch.float64).permute(2, 1, 0)  # (slices, m, 2)
    rows = unit(z).numpy()  # all that POT takes
    return ot.sliced_wasserstein_sphere_unif(rows, n_projections=256, projections=planes.numpy()) ** 2


def sigreg_of(z):
    (lines,) = sliced._fixed(1, z.shape[1], 256, torch.device("cpu"), torch.float64)
    x = math.sqrt(z.shape[1]) * (z @ lines).numpy()  # (n, slices)
    t = np.linspace(-3, 3, 33)
    apart = np.abs(np.exp(1j * x[..., None] * t).mean(axis=0) - np.exp(-(t**2) / 2)) ** 2
    return len(z) * scipy.integrate.trapezoid(apart * np.exp(-(t**2) / 2), t).mean()


def lidar_of(a, b):
    centroids = ((a + b) / 2).numpy()
    n, m = centroids.shape
    within = sum(np.outer(v - c, v - c) for view in (a, b) for v, c in zip(view.numpy(), centroids, strict=True))
    between = np.cov(centroids.T, bias=True)
    values = scipy.linalg.eigh(between, within / (2 * n) + 1e-4 * np.eye(m), eigvals_only=True)
    return math.exp(entropy(values.clip(0)))


def barlow_of(a, b):
    m = a.shape[1]
    c = np.corrcoef(a.numpy().T, b.numpy().T)[:m, m:]
    return ((1 - np.diag(c)) ** 2).sum() + 0.08 * (c**2 - np.diag(np.diag(c)) ** 2).sum()


# Of rows as they are; m = 2 where a grid is integrated over.
ORACLES = {
    "lu_calibrated": lu_calibrated_of,
    "koleo": koleo_of,
    "mst": mst_of,
    "ssw": ssw_of,
    "sigreg": sigreg_of,
    "frobenius": lambda z: (
        np.linalg.norm(z.shape[1] * gaussian(z)[1] - np.eye(z.shape[1])) ** 2 / z.shape[1]
        + np.linalg.norm(gaussian(z)[0]) ** 2
    ),
    "vicreg": vicreg_of,
    "kl": kl_of,
    "reverse_kl": lambda z: kl_of(z, reverse=True),
    "jeffreys": lambda z: kl_of(z) + kl_of(z, reverse=True),
    "bhattacharyya": lambda z: -math.log(affinity(z)),
    "hellinger": lambda z: 1 - affinity(z),
    # on the other side of Sylvester's identity
    "tcr": lambda z: -np.linalg.slogdet(np.eye(len(z)) + z.shape[1] / (len(z) * 0.2) * (z @ z.T).numpy())[1] / 2,
    "rankme": lambda z: math.exp(entropy(scipy.linalg.svdvals(z.numpy()))),
    "rankme_share": lambda z: math.exp(entropy(scipy.linalg.svdvals(z.numpy()))) / z.shape[1],
    "effective_rank": lambda z: math.exp(entropy(spectrum(z))),
    "participation_ratio": lambda z: 1 / (spectrum(z) ** 2).sum(),
    "stable_rank": lambda z: 1 / spectrum(z).max(),
    "alpha_req": lambda z: (
        -np.polyfit(
            np.log(np.arange(1, z.shape[1] + 1)), np.log(spectrum(z)), 1, w=np.arange(1.0, z.shape[1] + 1) ** -0.5
        )[0]
    ),
    "isoscore": isoscore_of,
    "align_uniform": lambda a, b: (
        MEASURES["alignment"].function(a, b, normalize=False).item()
        + math.log(np.exp(-2 * scipy.spatial.distance.pdist(a) ** 2).mean()) / 2
        + math.log(np.exp(-2 * scipy.spatial.distance.pdist(b) ** 2).mean()) / 2
    ),
    "barlow": barlow_of,
    "mmcr": lambda a, b: -np.linalg.norm((a + b).numpy() / 2, "nuc"),
    "lidar": lidar_of,
}


def test_a_measure_whose_high_values_are_better_is_no_loss():
    with pytest.raises(ValueError, match="mine: a loss is minimised"):
        Measure("mine", effective_rank, "high", "", "", loss=True)


def test_every_measure_has_an_oracle():
    assert set(ORACLES) == set(NEW)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("n", [12, 60])
def test_values_are_those_of_another_implementation(name, n):
    m = 2 if name in ("bhattacharyya", "hellinger") else 7
    z = randn(n, m) * torch.linspace(0.5, 2, m, dtype=torch.float64) / m**0.5 + 0.2
    views = (z, z + 0.3 * randn(n, m, seed=9)) if MEASURES[name].needs_views else (z,)
    options = {} if name == "barlow" else {"normalize": False}
    assert value(name, *views, **options).item() == pytest.approx(ORACLES[name](*views), rel=1e-9)
    if name != "barlow":  # unit rows
        rows = tuple(map(unit, views))
        assert value(name, *views).item() == pytest.approx(ORACLES[name](*rows), rel=1e-9)


@pytest.mark.parametrize("block", [1, 7, 2048])
def test_pairs_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(pairwise, "BLOCK", block)
    for n in (2, 7, 8, 22):
        z = unit(randn(n, 5, seed=n))
        for measure, oracle in ((koleo, koleo_of), (lu_calibrated, lu_calibrated_of)):
            assert measure(z).item() == pytest.approx(oracle(z), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1.0, 2.0, 1e3])
def test_calibrated_uniformity_of_rows_of_any_length(scale):
    z = (scale * unit(randn(50, 6))).requires_grad_()
    assert lu_calibrated(z, normalize=False).item() == pytest.approx(lu_calibrated_of(z.detach()), rel=1e-7)
    assert torch.autograd.gradcheck(lambda z: lu_calibrated(z, normalize=False), z)
    if scale == 1:
        assert lu_calibrated(z, normalize=False).item() == pytest.approx(lu_calibrated(z).item(), rel=1e-9)


def test_slices_in_parts_of_any_size(monkeypatch):
    z = unit(randn(30, 5))
    for measure, oracle in ((ssw, ssw_of), (sigreg, sigreg_of)):
        for chunk in (1, 17 * 30 * 100, 2**22):
            monkeypatch.setattr(sliced, "CHUNK", chunk)
            assert measure(z).item() == pytest.approx(oracle(z), rel=1e-9)


# ---- closed forms ----


@pytest.mark.parametrize("name", ["frobenius", "kl", "reverse_kl", "jeffreys", "bhattacharyya", "hellinger"])
def test_atoms_on_the_axes_are_perfect_to_two_moments(name):
    atoms = torch.cat([torch.eye(8), -torch.eye(8)])
    assert value(name, atoms).item() == pytest.approx(0, abs=1e-6)
    assert value(name, 1.2 * atoms, normalize=False).item() > 0.01


def test_ranks_of_atoms_and_of_flat_subspaces():
    for k in (1, 3, 8):
        z = torch.zeros(2 * k, 8, dtype=torch.float64)
        z[:k, :k], z[k:, :k] = torch.eye(k), -torch.eye(k)
        z = z @ torch.linalg.qr(randn(8, 8)).Q
        for name in ("rankme", "effective_rank", "participation_ratio", "stable_rank"):
            assert value(name, z).item() == pytest.approx(k)
        assert value("rankme_share", z).item() == pytest.approx(k / 8)
        assert value("isoscore", z).item() == pytest.approx((k - 1) / 7)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
def test_a_planted_power_law_is_found(alpha):
    q = torch.linalg.qr(randn(200, 40) - randn(200, 40).mean(dim=0)).Q
    q = q - q.mean(dim=0)
    q = torch.linalg.qr(q).Q  # centred, orthonormal
    z = q * torch.arange(1, 41, dtype=torch.float64) ** (-alpha / 2)
    assert alpha_req(z, normalize=False).item() == pytest.approx(alpha, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 5), (6, 5), (4, 9)])
def test_the_simplex_has_its_spanning_tree(n, m):
    assert mst_length(simplex(n, m)).item() == pytest.approx(-(n - 1) / n * math.sqrt(2 * n / (n - 1)))
    assert koleo(simplex(n, m)).item() == pytest.approx(-math.log(2 * n / (n - 1)) / 2, abs=1e-7)


@pytest.mark.parametrize("copies", [2, 5])
def test_repeated_rows_are_edges_of_length_zero(copies):
    z = unit(randn(20, 4))
    repeated = z.repeat(copies, 1)[torch.randperm(20 * copies, generator=torch.Generator().manual_seed(1))]
    assert mst_length(repeated).item() == pytest.approx(mst_length(z).item() / copies)
    assert mst_length(repeated).item() == pytest.approx(mst_of(repeated))


@pytest.mark.parametrize("n", [16, 17, 40, 41])
def test_a_tree_that_sheds_its_rows_is_the_same(monkeypatch, n):
    z = unit(randn(n, 4))
    repeated = torch.cat([z, z[: n // 2]])

    def found():
        leaf = z.clone().requires_grad_()
        return (*torch.autograd.grad(mst_length(leaf), leaf), mst_length(z), mst_length(repeated))

    whole = found()
    monkeypatch.setattr(pairwise, "SHED", 8)
    for shed, kept in zip(found(), whole, strict=True):
        torch.testing.assert_close(shed, kept, rtol=1e-12, atol=1e-12)
    assert found()[-1].item() == pytest.approx(mst_of(repeated))


def test_the_tree_keeps_near_rows_apart_far_from_the_others():
    near = 1e-5 * randn(15, 3)
    z = torch.cat([near, near + 1e3])
    assert mst_length(z, normalize=False).item() == pytest.approx(mst_of(z), rel=1e-6)
    z = torch.cat([near, near + 1e-2]) + 1e3  # an offset that squares would not survive
    assert mst_length(z, normalize=False).item() == pytest.approx(mst_of(z), rel=1e-6)
    assert koleo(z, normalize=False).item() == pytest.approx(koleo_of(z.numpy()), rel=1e-6)


def test_equal_rows_on_the_sphere_have_known_values():
    z = unit(randn(1, 16)).repeat(40, 1)
    assert ssw(z).item() == pytest.approx(1 / 12)
    assert lu_calibrated(z).item() == pytest.approx(-lu_theory(16))
    assert frobenius(z).item() == pytest.approx(2)
    assert vicreg(z).item() == pytest.approx(25 * 0.99)
    assert mst_length(z).item() == 0
    assert koleo(z).item() == pytest.approx(-math.log(1e-8))
    assert koleo(z, eps=0).item() == math.inf
    assert rankme(z).item() == pytest.approx(1)
    assert effective_rank(z).item() == 0
    assert tcr(z).item() == pytest.approx(-math.log(1 + 16 / 0.2) / 2)
    assert kl(z).item() == reverse_kl(z).item() == math.inf
    assert value("hellinger", z).item() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("normalize", [True, False])
def test_rows_that_differ_by_the_rounding_of_their_type_have_no_spread(dtype, normalize):
    """Parallel ones, if they are normalised; beside the rounding of a copy in float64, a real spread is kept."""
    row = randn(1, 64)
    lengths = 0.1 + torch.rand(300, 1, generator=torch.Generator().manual_seed(0)) if normalize else torch.ones(300, 1)
    rounding = torch.finfo(dtype).eps / 4 * (2 * torch.rand(300, 64, generator=torch.Generator().manual_seed(1)) - 1)
    flat = (row * lengths * (1 + rounding)).to(dtype)
    metric = W2Metric(normalize=normalize).update(flat[:100])
    metric.merge(W2Metric(normalize=normalize).update(flat[100:]))
    for found in (effective_rank(flat, normalize=normalize), effective_rank(metric)):
        assert found.item() == 0
    spread = row * lengths * (1 + 8 * torch.finfo(dtype).eps * randn(300, 64, seed=2))
    assert effective_rank(spread.to(dtype), normalize=normalize) > 20


def test_sigreg_at_the_normal_law_and_at_collapse():
    values = [sigreg(randn(100, 16, seed=k) / 4, normalize=False).item() for k in range(40)]
    assert np.mean(values) == pytest.approx(1.0524, abs=0.03)
    assert sigreg(torch.zeros(50, 16)).item() == pytest.approx(0.40205 * 50, rel=1e-4)
    one = unit(randn(1, 64)).repeat(50, 1)  # a^T sqrt(m) z is standard normal, but the same for all rows
    assert sigreg(one, slices=20_000).item() == pytest.approx(1.0524 * 50, rel=0.03)
    assert sigreg(one, per_row=True).item() == pytest.approx(sigreg(one).item() / 50)


def test_lidar_of_identical_views_is_the_effective_rank():
    z = randn(40, 6)
    assert lidar(z, z).item() == pytest.approx(effective_rank(z).item())


def test_barlow_s_measure_is_the_method_s_loss():
    program = load(PROGRAMS["BarlowTwins"])
    method = program.BarlowTwins(program.BarlowTwinsSettings(width=2, hidden_dim=8, dim=6))
    a, b = randn(30, 6, dtype=torch.float32), randn(30, 6, seed=1, dtype=torch.float32)
    assert value("barlow", a, b).item() == pytest.approx(method.loss(z_a=a, z_b=b).item(), rel=1e-4)


def test_directions_come_from_the_generator():
    z = randn(30, 5)
    for measure in (ssw, sigreg):
        count = MEASURES[measure.__name__].directions_per_slice
        draws = [measure(z, directions=random_directions(count, 5, generator=seeded(k))).item() for k in (3, 3, 4)]
        assert draws[0] == draws[1] != draws[2]
        assert measure(z).item() == measure(z).item()
        assert measure(z).item() == measure(z, directions=random_directions(count, 5, generator=seeded(0))).item()
        for wrong in ((3 - count, 5, 9), (count, 4, 9), (count, 5, 0), (count, 5)):
            with pytest.raises(ValueError, match=f"shape .{count}, 5, slices"):
                measure(z, directions=torch.ones(wrong))
        with pytest.raises(ValueError, match="at least 1"):
            measure(z, slices=0)
    directions = random_directions(2, 5, 300, generator=seeded(3))
    gram = torch.einsum("ams,bms->sab", directions, directions)
    torch.testing.assert_close(gram, torch.eye(2, dtype=z.dtype).expand(300, 2, 2))
    assert directions.mean(dim=2).abs().max() < 0.15  # uniform: no side is preferred
    with pytest.raises(ValueError, match="has no 2 orthonormal"):
        random_directions(2, 1, generator=seeded(0))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_directions_of_a_term_are_replaced_where_they_lie():
    z = randn(30, 5)
    term = SlicedTerm(ssw, 2, 5, z.device)
    place, values = term.directions.data_ptr(), []
    assert term(z).isnan()  # before the first draw
    for k in (3, 4):
        term.draw(seeded(k))
        values.append(term(z).item())
        assert values[-1] == ssw(z, directions=random_directions(2, 5, generator=seeded(k))).item()
    assert values[0] != values[1]
    assert term.directions.data_ptr() == place


def test_a_value_without_a_gradient_leaves_fixed_directions_that_can_have_one():
    sliced._cached.cache_clear()
    with torch.inference_mode():
        ssw(randn(9, 6))
    ssw(randn(9, 6).requires_grad_()).backward()


@pytest.mark.skipif(torch.__version__.startswith("2.10."), reason="torch 2.10 exports no random generator")
@pytest.mark.parametrize("function", [ssw, sigreg])
def test_fixed_directions_of_a_trace_do_not_stay(function):
    class Module(torch.nn.Module):
        def forward(self, z):
            return function(z)

    sliced._cached.cache_clear()
    z = randn(9, 6)
    torch.export.export(Module(), (z,))
    after = function(z)
    assert type(after) is torch.Tensor
    sliced._cached.cache_clear()
    assert after.item() == function(z).item()


# ---- moments of any number of rows ----


@pytest.mark.parametrize("name", OF_MOMENTS)
@both_scalings
def test_streamed_moments_give_the_value_of_the_rows(name, normalize):
    z = randn(70, 6) + 0.3
    metric = W2Metric(normalize=normalize)
    for chunk in z.split(13):
        metric.update(chunk)
    expected = value(name, z, normalize=normalize).item()
    assert of_moments(metric)[name] == pytest.approx(expected, rel=1e-9)
    if name != "w2":
        assert value(name, metric).item() == pytest.approx(expected, rel=1e-9)


def test_moments_need_two_rows():
    assert set(of_moments(W2Metric().update(randn(2, 3)))) == set(OF_MOMENTS)
    with pytest.raises(ValueError, match="at least 2 rows"):
        kl(W2Metric().update(randn(1, 3)))
    with pytest.raises(ValueError, match="at least 2 rows"):
        of_moments(W2Metric().update(randn(1, 3)))


# ---- gradients ----


@pytest.mark.parametrize("name", MEASURES)
@both_scalings
def test_gradients_agree_with_finite_differences(name, normalize):
    options = {} if name == "barlow" else {"normalize": normalize}  # Barlow's takes rows as they are
    views = [randn(9, 4, seed=3 + k).div(2).requires_grad_() for k in range(1 + MEASURES[name].needs_views)]
    assert torch.autograd.gradcheck(lambda *z: MEASURES[name].function(*z, **options), views)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_never_waits_for_the_device(name):
    z = randn(40, 16, dtype=torch.float32).requires_grad_()
    options = {"solver": "polar"} if name == "w2" else {}  # a GPU's
    MEASURES[name].function(z, **options)  # the fixed directions are made once
    with NoHostReads():
        MEASURES[name].function(z, **options).backward()
        with pytest.raises(AssertionError, match="waits"):  # the guard itself works
            effective_rank(z)


# ---- batches of every kind ----


def batches():
    z = randn(24, 8, dtype=torch.float32)
    yield "equal", z[:1].repeat(24, 1)
    yield "zero", torch.zeros(24, 8)
    yield "one line", randn(24, 1, dtype=torch.float32) * z[:1]
    yield "rank 2", randn(24, 2, dtype=torch.float32) @ z[:2]
    yield "fewer rows than features", z[:5]
    yield "two rows", z[:2]
    yield "two equal rows", z[:1].repeat(2, 1)
    yield "two opposite rows", torch.cat([z[:1], -z[:1]])
    yield "every row twice", z.repeat(2, 1)
    yield "a zero row", torch.cat([z, torch.zeros(1, 8)])
    yield "a dead feature", z * torch.tensor([0.0, *7 * [1]])
    yield "atoms", torch.cat([torch.eye(8), -torch.eye(8)])
    yield "large mean", z + 1e4
    yield "tiny", 1e-37 * z
    yield "huge", 1e37 * z


# What is infinite by its definition, and where; everything else is finite.
SINGULAR = {
    "equal", "zero", "one line", "rank 2", "fewer rows than features", "two rows", "two equal rows",
    "two opposite rows", "a dead feature",
}  # fmt: skip
INFINITE = {
    **dict.fromkeys(("kl", "reverse_kl", "jeffreys", "bhattacharyya"), SINGULAR),
    "alpha_req": {"equal", "zero", "one line", "two rows", "two equal rows", "two opposite rows"},
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("kind", "z"), list(batches()), ids=[kind for kind, _ in batches()])
def test_degenerate_batches_give_a_number_and_a_finite_gradient(name, kind, z):
    record = MEASURES[name]
    z = z.clone().requires_grad_()
    got = record.function(z, z.detach().roll(1, dims=0)) if record.needs_views else record.function(z)
    assert got.item() == math.inf if kind in INFINITE.get(name, ()) else math.isfinite(got.item())
    (gradient,) = torch.autograd.grad(got, z)
    assert kind == "tiny" or torch.isfinite(gradient).all()  # the gradient of tiny rows is beyond float32
    assert not gradient.isnan().any()


@pytest.mark.parametrize("name", NEW)
def test_unit_rows_do_not_depend_on_the_scale_of_the_features(name):
    z, b = randn(30, 6, dtype=torch.float32), randn(30, 6, seed=1, dtype=torch.float32)
    expected = value(name, z, b).item()
    for scale in (1e-30, 1e30):
        assert value(name, z * scale, b * scale).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["lu", *NEW])
def test_unit_rows_do_not_depend_on_scales_whose_squares_have_no_float64(name):
    z, b = randn(30, 6), randn(30, 6, seed=1)
    expected = value(name, z, b).item()
    for scale in (1e-200, 1e160):
        assert value(name, z * scale, b * scale).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jeffreys", "bhattacharyya"])
@pytest.mark.parametrize(("m", "draws"), [(3, 200), (16, 40), (64, 8)])
def test_divergences_of_singular_covariances_are_infinite_whatever_the_basis(name, m, draws):
    for seed in range(draws):
        flat = randn(4 * m, m - 1, seed=seed) @ torch.linalg.qr(randn(m, m, seed=seed + 1)).Q[1:]
        for z in (randn(m, m, seed=seed), flat):
            assert value(name, z).item() == math.inf
        assert math.isfinite(value(name, randn(2 * m, m, seed=seed)).item())


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_features_give_nan(name, bad):
    for normalize in (True, False):
        z, b = randn(12, 4), randn(12, 4, seed=1)
        z[5, 2] = bad
        options = {} if name == "barlow" else {"normalize": normalize}
        assert math.isnan(value(name, z, b, **options).item())
        if name in VIEWS:
            assert math.isnan(MEASURES[name].function(b, z, **options).item())


@pytest.mark.parametrize("name", [name for name in [*NEW, "lu", "alignment"] if name in LOSSES + VIEWS])
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_the_compiled_gradient_is_the_plain_one(name):
    torch.compiler.reset()
    z, b = (randn(12, 6, seed=k).float().requires_grad_() for k in (0, 1))
    wanted = torch.autograd.grad(value(name, z, b), z)[0]
    got = torch.autograd.grad(torch.compile(lambda z, b: value(name, z, b), backend="eager")(z, b), z)[0]
    assert wanted.norm() > 0
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_as_the_same_numbers_in_float64(name, dtype):
    z, b = randn(40, 6).to(dtype), randn(40, 6, seed=1).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        got = value(name, z, b)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(value(name, z.double(), b.double()).item(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", NEW)
def test_errors_name_the_shape(name):
    for z, shape in (
        (torch.ones(4), r"\(4,\)"),
        (torch.ones(4, 3, dtype=torch.int64), r"int64 of shape \(4, 3\)"),
        (torch.ones(4, 0), r"\(4, 0\)"),
        (torch.ones(0, 3), r"\(0, 3\)"),
    ):
        with pytest.raises(ValueError, match=shape):
            value(name, z, z)
    if name not in VIEWS:
        with pytest.raises(ValueError, match=r"\(1, 3\)"):
            value(name, torch.ones(1, 3))
    else:
        with pytest.raises(ValueError, match=r"\(4, 3\).*\(4, 2\)"):
            value(name, torch.ones(4, 3), torch.ones(4, 2))


@pytest.mark.parametrize("name", list(MEASURES))
def test_what_is_no_tensor_of_wider_floats_is_told(name):
    with pytest.raises(TypeError, match="expected a torch tensor, got list"):
        value(name, [[1.0, 2.0]], [[1.0, 2.0]])
    for z in (torch.ones(4, 3).to_sparse(), torch.ones(4, 3).to(torch.float8_e4m3fn)):
        with pytest.raises(ValueError, match="dense matrix of float16 or wider"):
            value(name, z, z)


def test_moments_of_another_class_are_told():
    for other in (torch.ones(4, 3), {}):
        with pytest.raises(TypeError, match=r"expected a W2Metric of wassersteinssl\.w2, got "):
            of_moments(other)


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "alignment"])
def test_two_rows_are_asked_for_where_one_is_too_few(name):
    for rows in (torch.ones(1, 3), torch.ones(1, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"n >= 2 .* \(1, 3\)"):
            MEASURES[name].function(rows, rows)


def test_a_great_circle_needs_two_features():
    with pytest.raises(ValueError, match=r"\(5, 1\)"):
        ssw(torch.ones(5, 1))


@pytest.mark.parametrize("name", [name for name in NEW if name != "ssw"])
def test_one_feature_is_enough(name):
    z = torch.tensor([[1.0], [1.0], [-1.0], [2.0]])
    assert not math.isnan(value(name, z, z.flip(0)).item())


# ---- as a term of training ----


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_loss_is_a_term_for_every_method(program):
    module = load(PROGRAMS[program])
    settings = next(kind for kind in vars(module).values() if getattr(kind, "__name__", "") == f"{program}Settings")
    small = {"width": 2, "hidden_dim": 8, "dim": 4}
    method = getattr(module, program)(settings(**small))
    view_a, view_b = (randn(12, 3, 8, 8, seed=k, dtype=torch.float32) for k in range(2))
    for name in LOSSES:
        term, start, end = uniformity_term(method, settings(**small, uniformity=name, alpha_max=0.1))
        embeddings = method(view_a, view_b)
        method.zero_grad()
        got = term(torch.cat([embeddings["z_a"], embeddings["z_b"]]).float())
        (0.1 * got + method.loss(**{key: e.float() for key, e in embeddings.items()})).backward()
        assert (start, end) == (0.1, 0.1)
        assert math.isfinite(got.item()), name
        gradients = [p.grad for p in method.backbone.parameters()]
        assert all(g.isfinite().all() for g in gradients), name


@pytest.mark.filterwarnings("ignore:Exception ignored")  # scipy's, where its hyp0f1 gives 0
@pytest.mark.parametrize("m", [2, 20, 300])
def test_calibration_does_not_overflow_at_large_t(m):
    ts = [100.0, 200.0, 300.0, 400.0, 1000.0]
    values = [lu_theory(m, t=t) for t in ts]
    assert all(math.isfinite(value) for value in values)
    assert values == sorted(values, reverse=True)
    with mpmath.workdps(60):
        for t, value in zip(ts, values, strict=True):
            assert value == pytest.approx(float(-2 * t + mpmath.log(mpmath.hyp0f1(mpmath.mpf(m) / 2, t * t))), rel=1e-9)
    with pytest.raises(ValueError, match="t = 1000 is too large"):
        lu_calibrated(torch.randn(5, m, generator=torch.Generator().manual_seed(0)), t=1000.0, normalize=False)


def test_a_spectral_measure_of_bad_rows_is_nan_and_can_be_differentiated():
    z = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    z[2, 1] = math.nan
    for name in ("effective_rank", "rankme", "rankme_share", "stable_rank", "alpha_req"):
        rows = z.clone().requires_grad_()
        value = MEASURES[name].function(rows)
        assert value.isnan()
        value.backward()
        assert rows.grad is not None


@pytest.mark.parametrize("name", [name for name in NEW if name != "barlow"])  # which scales no rows
def test_a_row_without_a_normal_number_counts_as_zero(name):
    z = randn(40, 4, dtype=torch.float32)
    zero, short = z.index_fill(0, torch.tensor(3), 0), z.index_fill(0, torch.tensor(3), 1e-40)
    assert value(name, short, z).item() == value(name, zero, z).item()


def test_alpha_req_leaves_absent_directions_out():
    z = randn(60, 6) * torch.arange(1.0, 7.0) ** -1.0
    padded = torch.nn.functional.pad(z, (0, 5))
    expected = value("alpha_req", z, normalize=False).item()
    assert value("alpha_req", padded, normalize=False).item() == pytest.approx(expected)

"""Every method: its loss against the formula, stopped gradients, what follows a step. Whole programs: test_kill.py."""

import contextlib
import copy
import math

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
from conftest import PROGRAMS, NoHostReads, load
from sklearn.neighbors import NearestNeighbors

from wassersteinssl import optim, table2
from wassersteinssl.cli import UserError
from wassersteinssl.pretrain import uniformity_term
from wassersteinssl.settings import Settings
from wassersteinssl.uniformity import MEASURES

every_method = pytest.mark.parametrize("name", PROGRAMS)  # one's own, too
every_method_of_the_paper = pytest.mark.parametrize("name", table2.METHODS)

# The paper's weights of W2 at the start and the end; the other methods have none.
PAPER_ALPHA = {"MoCoV2": (1.0, 1.0), "BYOL": (0.2, 0.2), "BarlowTwins": (30.0, 0.0), "ZeroCL": (30.0, 30.0)}


def settings_of(name):
    return getattr(load(PROGRAMS[name]), name + "Settings")


def build(name, **options):
    """A method with small networks and random weights, always the same."""
    torch.manual_seed(0)
    if name in ("MoCoV2", "NNCLR"):
        options = {"queue_size": 40, **options}
    small = {"width": 2, "hidden_dim": 16, "dim": 8, "batch_size": 12}
    return getattr(load(PROGRAMS[name]), name)(settings_of(name)(**{**small, **options}))


def views(seed=0, n=12):
    return torch.randn(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def unit(z):
    """Rows over their norms, as numpy."""
    z = z.detach().double().numpy()
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def standardised(z, axis, epsilon):
    z = z.detach().double().numpy()
    return (z - z.mean(axis, keepdims=True)) / np.sqrt(z.var(axis, keepdims=True) + epsilon)


def surprise(logits, own):
    """-log of the share of logit `own` in the softmax."""
    return scipy.special.logsumexp(logits) - logits[own]


def cosine(u, v):
    return float(u @ v / np.sqrt((u @ u) * (v @ v)))


# ---- losses against their formulas ----


def test_simclr_tells_the_other_view_from_all_other_rows():
    a, b = randn(5, 8), randn(5, 8, seed=1)
    z = np.concatenate([unit(a), unit(b)])
    expected = np.mean([surprise(np.delete(z @ z[i] / 0.3, i), (i + 5) % 10 - (i < 5)) for i in range(10)])
    assert build("SimCLR", temperature=0.3).loss(z_a=a, z_b=b).item() == pytest.approx(expected)


def test_moco_tells_each_query_s_key_of_the_other_view_from_the_queue():
    method = build("MoCoV2", temperature=0.3)
    z = {key: randn(5, 8, seed=k) for k, key in enumerate(("z_a", "z_b", "k_a", "k_b"))}
    queue, expected = method.queue.rows.double().numpy(), 0.0
    method.queue.double()
    for query, key in (("z_a", "k_b"), ("z_b", "k_a")):
        for q, k in zip(unit(z[query]), unit(z[key]), strict=True):
            expected += surprise(np.array([q @ k, *(q @ n for n in queue)]) / 0.3, 0) / 5
    assert method.loss(**z).item() == pytest.approx(expected)


def test_nnclr_s_positive_is_the_nearest_row_of_the_queue_to_the_other_view():
    method = build("NNCLR", temperature=0.3)
    method.queue.double()
    z = {key: randn(5, 8, seed=k) for k, key in enumerate(("z_a", "z_b", "p_a", "p_b"))}
    queue, expected = method.queue.rows.numpy(), 0.0
    search = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(queue)
    for embedding, prediction in (("z_a", "p_b"), ("z_b", "p_a")):
        neighbours = queue[search.kneighbors(unit(z[embedding]), return_distance=False)[:, 0]]
        for i, neighbour in enumerate(neighbours):
            expected += surprise(unit(z[prediction]) @ neighbour / 0.3, i) / 10
    assert method.loss(**z).item() == pytest.approx(expected)


def test_simsiam_is_the_mean_negative_cosine_of_predictions_and_other_views():
    z = {key: randn(5, 8, seed=k) for k, key in enumerate(("z_a", "z_b", "p_a", "p_b"))}
    n = {key: value.numpy() for key, value in z.items()}
    pairs = [*zip(n["p_a"], n["z_b"], strict=True), *zip(n["p_b"], n["z_a"], strict=True)]
    expected = -sum(cosine(p, other) for p, other in pairs) / 10
    assert build("SimSiam").loss(**z).item() == pytest.approx(expected)


def test_alignuniform_is_the_alignment_and_each_view_s_uniformity():
    a, b = randn(6, 8), randn(6, 8, seed=1)
    expected = 3 * np.mean(((unit(a) - unit(b)) ** 2).sum(1))
    for z in (unit(a), unit(b)):
        kernel = [np.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i in range(6) for j in range(i)]
        expected += 0.7 * np.log(np.mean(kernel)) / 2
    loss = build("AlignUniform", align_weight=3.0, uniform_weight=0.7).loss(z_a=a, z_b=b)
    assert loss.item() == pytest.approx(expected)


def test_byol_s_distance_is_the_mean_squared_distance_of_unit_rows():
    p, t = randn(5, 7), randn(5, 7, seed=1)
    distance = load(PROGRAMS["BYOL"]).distance(p, t)
    assert distance.item() == pytest.approx(((unit(p) - unit(t)) ** 2).sum(1).mean())


def test_byol_pairs_each_prediction_with_the_target_of_the_other_view():
    method = build("BYOL")
    reference = copy.deepcopy(method)  # batch-norm statistics move in a forward pass
    embeddings = method(*views())
    z = [reference.projector(reference.backbone(x)) for x in views()]
    p = [unit(reference.predictor(x)) for x in z]
    t = [unit(reference.target(x)) for x in views()]
    pairs = [*zip(p[0], t[1], strict=True), *zip(p[1], t[0], strict=True)]
    expected = sum(2 * (1 - cosine(u, v)) for u, v in pairs) / 12
    assert method.loss(**embeddings).item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(embeddings["z_a"], z[0])
    torch.testing.assert_close(embeddings["z_b"], z[1])


def test_barlow_twins_sums_over_the_cross_correlation_s_entries():
    a, b = randn(9, 8), randn(9, 8, seed=1)
    u, v, expected = standardised(a, 0, 1e-5), standardised(b, 0, 1e-5), 0.0
    for j in range(8):
        for k in range(8):
            c = sum(u[i, j] * v[i, k] for i in range(9)) / 9
            assert c == pytest.approx(np.corrcoef(a[:, j], b[:, k])[0, 1], abs=1e-4)
            expected += (1 - c) ** 2 if j == k else 0.08 * c**2
    assert build("BarlowTwins").double().loss(z_a=a, z_b=b).item() == pytest.approx(expected)


def zero_cl_feature_loss(a, b):
    whitened = []
    for h in (standardised(a, 0, 1e-5), standardised(b, 0, 1e-5)):
        covariance = 0.9 * h.T @ h / (len(h) - 1) + (0.1 + 1e-5) * np.eye(h.shape[1])
        whitened.append(h @ scipy.linalg.inv(scipy.linalg.sqrtm(covariance).real))
    c = whitened[0].T @ whitened[1] / len(a)
    return sum((1 - c[j, j]) ** 2 for j in range(len(c)))


def zero_cl_instance_loss(a, b):
    whitened, m = [], a.shape[1]
    for h in (standardised(a, 1, 1e-4), standardised(b, 1, 1e-4)):
        similarity = h @ h.T / m + 0.01 * np.eye(len(h))
        whitened.append(scipy.linalg.inv(scipy.linalg.sqrtm(similarity).real) @ h)
    return sum((1 - u @ v / m) ** 2 for u, v in zip(*whitened, strict=True))


@pytest.mark.parametrize("n", [5, 30])  # fewer rows than features: a singular covariance
def test_zero_cl_aligns_whitened_features_and_whitened_rows(n):
    a = randn(n, 8)
    b = a + 0.3 * randn(n, 8, seed=1)
    feature, instance = zero_cl_feature_loss(a, b), zero_cl_instance_loss(a, b)
    assert build("ZeroCL").double().loss(z_a=a, z_b=b).item() == pytest.approx(feature)
    both = build("ZeroCL", instance_weight=0.4).double().loss(z_a=a, z_b=b)
    assert both.item() == pytest.approx(feature + 0.4 * instance)


def test_defaults_are_the_paper_s():
    expected = {
        "SimCLR": {"temperature": 0.2},
        "NNCLR": {"temperature": 0.2, "queue_size": 4096},
        "MoCoV2": {"temperature": 0.2, "queue_size": 4096, "momentum": 0.99, "momentum_end": 0.999},
        "BYOL": {"momentum": 0.99},
        "BarlowTwins": {"redundancy": 0.08},
        "ZeroCL": {"instance_weight": 0.0},
        "AlignUniform": {"align_weight": 1.0, "uniform_weight": 1.0},
    }
    for name, values in expected.items():
        settings = settings_of(name)()
        assert {key: getattr(settings, key) for key in values} == values


@pytest.mark.parametrize("name", ["BarlowTwins", "ZeroCL", "SimCLR", "AlignUniform"])
def test_a_loss_has_no_weights_of_its_own(name):
    assert {key.split(".")[0] for key, _ in build(name).named_parameters()} == {"backbone", "projector"}


@every_method_of_the_paper
def test_the_weight_of_w2_is_the_paper_s_or_has_to_be_given(name):
    method = build(name)
    if name in PAPER_ALPHA:
        assert uniformity_term(method, settings_of(name)(uniformity="w2"))[1:] == PAPER_ALPHA[name]
        assert "lu" in method.ALPHA
    else:
        with pytest.raises(UserError, match="give --alpha-max"):
            uniformity_term(method, settings_of(name)(uniformity="w2"))
        assert uniformity_term(method, settings_of(name)(uniformity="w2", alpha_max=2.0))[1:] == (2.0, 2.0)


# ---- gradients ----


def moving(name, loss_names, n=5, **options):
    """The loss in float64 as a function of those embeddings that learn, and these; batch-norm in float64 too."""
    method = build(name, **options).double()
    fixed = {key: randn(n, 8, seed=k) for k, key in enumerate(loss_names) if key.startswith("-")}
    fixed = {key.removeprefix("-"): value for key, value in fixed.items()}
    learning = [key for key in loss_names if not key.startswith("-")]
    inputs = [randn(n, 8, seed=10 + k).requires_grad_() for k in range(len(learning))]
    return lambda *values: method.loss(**fixed, **dict(zip(learning, values, strict=True))), inputs


@pytest.mark.parametrize(
    ("name", "embeddings"),
    [
        ("SimCLR", "z_a z_b"),
        ("MoCoV2", "z_a z_b -k_a -k_b"),
        ("NNCLR", "-z_a -z_b p_a p_b"),
        ("SimSiam", "-z_a -z_b p_a p_b"),
        ("AlignUniform", "z_a z_b"),
        ("BarlowTwins", "z_a z_b"),
        ("BYOL", "p_a p_b -t_a -t_b"),
    ],
)
def test_gradients_are_those_of_finite_differences(name, embeddings):
    loss, inputs = moving(name, embeddings.split())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", ["NNCLR", "SimSiam"])
def test_the_gradient_passes_through_the_predictions_only(name):
    z = {key: randn(5, 8, seed=k, dtype=torch.float32).requires_grad_() for k, key in enumerate(("z_a", "z_b"))}
    p = {key: randn(5, 8, seed=k + 2, dtype=torch.float32).requires_grad_() for k, key in enumerate(("p_a", "p_b"))}
    build(name).loss(**z, **p).backward()
    assert all(value.grad is None or not value.grad.any() for value in z.values())
    assert all(value.grad.abs().sum() > 0 for value in p.values())


def test_zero_cl_s_gradient_takes_the_whitenings_as_constants():
    a, b = (randn(20, 8, seed=seed).requires_grad_() for seed in (0, 1))
    method = build("ZeroCL", instance_weight=0.4).double()
    ours = torch.autograd.grad(method.loss(z_a=a, z_b=b), (a, b))
    constants = []
    for z in (a, b):
        h = standardised(z, 0, 1e-5)
        constants.append(scipy.linalg.inv(scipy.linalg.sqrtm(0.9 * h.T @ h / 19 + (0.1 + 1e-5) * np.eye(8)).real))
    for z in (a, b):
        h = standardised(z, 1, 1e-4)
        constants.append(scipy.linalg.inv(scipy.linalg.sqrtm(h @ h.T / 8 + 0.01 * np.eye(20)).real))
    p_a, p_b, q_a, q_b = map(torch.from_numpy, constants)

    def rows(z, axis, epsilon):
        return (z - z.mean(axis, keepdim=True)) / (z.var(axis, unbiased=False, keepdim=True) + epsilon).sqrt()

    def with_constants(a, b):
        features = (rows(a, 0, 1e-5) @ p_a * (rows(b, 0, 1e-5) @ p_b)).sum(0) / 20
        instances = (q_a @ rows(a, 1, 1e-4) * (q_b @ rows(b, 1, 1e-4))).sum(1) / 8
        return ((1 - features) ** 2).sum() + 0.4 * ((1 - instances) ** 2).sum()

    assert torch.autograd.gradcheck(with_constants, (a, b))
    for mine, theirs in zip(ours, torch.autograd.grad(with_constants(a, b), (a, b)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


# ---- Zero-CL's whitening ----

EMBEDDINGS = {
    "spread": lambda b, m: randn(b, m),
    "power law": lambda b, m: randn(b, m) * torch.arange(1.0, m + 1) ** -1.5 @ torch.linalg.qr(randn(m, m, seed=1))[0],
    "rank 8": lambda b, m: randn(b, 8) @ randn(8, m, seed=1),
    "one direction": lambda b, m: randn(b, 1) @ randn(1, m, seed=1) + 1e-3 * randn(b, m, seed=2),
    "large mean": lambda b, m: 0.01 * randn(b, m) + 10 * randn(1, m, seed=1),
    "all equal": lambda b, m: randn(1, m).expand(b, m),
}


def whitening_inputs(kind, b, m):
    """What the feature and the instance whitening are computed of, in float32."""
    z = EMBEDDINGS[kind](b, m)
    feature = torch.from_numpy(standardised(z, 0, 1e-5)) * math.sqrt(0.9 / (b - 1))
    instance = torch.from_numpy(standardised(z, 1, 1e-4)).T / math.sqrt(m)
    return (feature.float(), 0.1 + 1e-5), (instance.float(), 0.01)


@pytest.mark.parametrize("kind", EMBEDDINGS)
@pytest.mark.parametrize(("b", "m"), [(256, 256), (512, 64)])
def test_both_whitenings_are_the_inverse_root(kind, b, m):
    module = load(PROGRAMS["ZeroCL"])
    for x, ridge in whitening_inputs(kind, b, m):
        values, vectors = np.linalg.eigh(x.double().numpy().T @ x.double().numpy())
        expected = (vectors / np.sqrt(values.clip(0) + ridge)) @ vectors.T
        whitened = x.double().numpy() @ expected
        # p is exact relative to its own norm; where whitening shrinks most it is so much smaller than that
        shrinking = torch.finfo(torch.float32).eps * (values[-1] / ridge + 1)
        for solver, tolerance, of_whitened in (
            (module.by_eigh, 1e-6, 1e-6 + shrinking),
            (module.by_products, 1e-4, 1e-4 + 4 * shrinking),
        ):
            p = solver(x, ridge)
            assert p.dtype == torch.float32
            error = p.double().numpy() - expected
            assert np.linalg.norm(error) < tolerance * np.linalg.norm(expected), (solver.__name__, ridge)
            change = np.linalg.norm(x.double().numpy() @ error)
            assert change <= of_whitened * np.linalg.norm(whitened) + 1e-6, (solver.__name__, ridge)


def test_the_whitening_is_chosen_by_the_device_and_has_no_gradient():
    module = load(PROGRAMS["ZeroCL"])
    x = randn(12, 8, dtype=torch.float32).requires_grad_()
    p = module.inverse_root(x, 0.1)
    assert torch.equal(p, module.by_eigh(x, 0.1))
    assert not p.requires_grad
    with NoHostReads():
        module.inverse_root(x.detach().to("meta"), 0.1)


def test_a_non_finite_batch_makes_zero_cl_s_loss_nan_instead_of_an_error_of_the_solver():
    a, b = randn(12, 8, dtype=torch.float32), randn(12, 8, seed=1, dtype=torch.float32)
    a[3, 2] = torch.nan
    assert build("ZeroCL", instance_weight=1.0).loss(z_a=a, z_b=b).isnan()


# ---- what every method keeps to ----


def step(method, view_a, view_b, term=None, bf16=False):
    """Forward and backward as in training; the loss and the embeddings."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        embeddings = method(view_a, view_b)
    embeddings = {key: value.float() for key, value in embeddings.items()}
    loss = method.loss(**embeddings)
    if term is not None:
        loss = loss + 0.5 * MEASURES[term].function(torch.cat([embeddings["z_a"], embeddings["z_b"]]))
    loss.backward()
    return loss, embeddings


@every_method
@pytest.mark.parametrize(("term", "bf16"), [(None, False), ("w2", True), ("lu", True)])
def test_every_weight_gets_a_finite_gradient(name, term, bf16):
    method = build(name)
    loss, embeddings = step(method, *views(), term, bf16)
    assert embeddings["z_a"].shape == embeddings["z_b"].shape == (12, 8)
    assert loss.ndim == 0
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    trainable = {key: p for key, p in method.named_parameters() if p.requires_grad}
    assert [key for key, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    for part in {key.split(".")[0] for key in trainable}:
        assert sum(p.grad.abs().sum() for key, p in trainable.items() if key.startswith(part)) > 0


@every_method_of_the_paper
def test_target_and_key_network_alone_are_frozen(name):
    frozen = {key.split(".")[0] for key, p in build(name).named_parameters() if not p.requires_grad}
    assert frozen == {"BYOL": {"target"}, "MoCoV2": {"key"}}.get(name, set())


@every_method
def test_networks_in_bf16_give_nearly_the_same_loss(name):
    method = build(name)
    exact, _ = step(copy.deepcopy(method), *views())
    half, _ = step(method, *views(), bf16=True)
    assert half.item() == pytest.approx(exact.item(), rel=0.05, abs=0.05)


@every_method
def test_a_collapsed_batch_gives_a_finite_loss_and_gradient(name):
    method = build(name, **({"instance_weight": 1.0} if name == "ZeroCL" else {}))
    image = views()[0, :1].expand(12, -1, -1, -1)
    loss, _ = step(method, image, image)
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)


@every_method
def test_a_saved_method_goes_on_where_it_was(name):
    method, other = build(name), build(name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1)
    step(method, *views())
    method.after_step(0.3)
    other.load_state_dict(method.state_dict(), strict=True)
    losses = [step(m, *views(1))[0].item() for m in (method, other)]
    assert losses[0] == losses[1]
    for m in (method, other):
        m.after_step(0.6)
    state, again = method.state_dict(), other.state_dict()
    assert all(torch.equal(state[key], again[key]) for key in state)
    kept = {"MoCoV2": {"key", "queue"}, "NNCLR": {"predictor", "queue"}, "BYOL": {"predictor", "target"}}.get(
        name, set()
    )
    assert {"backbone", "projector", *kept} <= {key.split(".")[0] for key in state}


@every_method
def test_no_step_waits_for_a_device(name, monkeypatch):
    """On the meta device tensors have no values: reading one, or choosing by one, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it does not know that device
    method = build(name, **({"instance_weight": 1.0} if name == "ZeroCL" else {})).to("meta")
    pair = views().to("meta")
    with NoHostReads():
        step(method, *pair, "w2")
        method.after_step(0.5)


# ---- the slow copy of BYOL and MoCo v2, and the queue of MoCo v2 and NNCLR: what follows a step ----

with_a_slow_copy = pytest.mark.parametrize(("name", "copied"), [("BYOL", "target"), ("MoCoV2", "key")])


@with_a_slow_copy
def test_the_slow_copy_starts_as_the_network_and_shares_nothing(name, copied):
    method = build(name)
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    for p, slow in zip(online, getattr(method, copied).parameters(), strict=True):
        assert torch.equal(p, slow)
        assert p.data_ptr() != slow.data_ptr()


@pytest.mark.parametrize(
    ("name", "copied", "progress", "momentum"),
    [
        ("BYOL", "target", 0.5, 0.9),
        ("MoCoV2", "key", 1e-9, 0.9),
        ("MoCoV2", "key", 0.25, 0.98 - 0.08 * (1 + math.cos(math.pi / 4)) / 2),  # half a cosine
        ("MoCoV2", "key", 0.5, 0.94),
        ("MoCoV2", "key", 1.0, 0.98),
    ],
)
def test_after_a_step_the_slow_copy_has_moved_by_one_minus_momentum(name, copied, progress, momentum):
    method = build(name, momentum=0.9, **({"momentum_end": 0.98} if name == "MoCoV2" else {}))
    step(method, *views())
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for p in online:
            p += torch.randn_like(p)
    before = [slow.clone() for slow in getattr(method, copied).parameters()]
    method.after_step(progress)
    for slow, old, p in zip(getattr(method, copied).parameters(), before, online, strict=True):
        torch.testing.assert_close(slow, momentum * old + (1 - momentum) * p)


@with_a_slow_copy
def test_the_slow_copy_gathers_batch_norm_statistics_of_its_own(name, copied):
    method = build(name)
    step(method, *views())
    statistics = {key: value.clone() for key, value in getattr(method, copied).named_buffers()}
    assert any(value.abs().sum() > 0 for key, value in statistics.items() if "running_mean" in key)
    with torch.no_grad():
        for value in [*method.backbone.buffers(), *method.projector.buffers()]:
            value.add_(7)
    method.after_step(0.5)
    assert all(torch.equal(value, statistics[key]) for key, value in getattr(method, copied).named_buffers())


def test_moco_s_keys_enter_the_queue_after_the_step_first_those_of_view_a():
    method = build("MoCoV2", queue_size=30)
    before = method.queue.rows.clone()
    _, embeddings = step(method, *views())
    assert torch.equal(method.queue.rows, before)
    assert int(method.queue.next) == 0
    method.after_step(0.5)
    keys = np.concatenate([unit(embeddings["k_a"]), unit(embeddings["k_b"])])
    np.testing.assert_allclose(method.queue.rows[:24], keys, atol=1e-6)
    assert torch.equal(method.queue.rows[24:], before[24:])
    _, embeddings = step(method, *views(1))
    method.after_step(0.6)
    keys = np.concatenate([unit(embeddings["k_a"]), unit(embeddings["k_b"])])
    np.testing.assert_allclose(method.queue.rows[(24 + np.arange(24)) % 30], keys, atol=1e-6)


def test_nnclr_s_queue_takes_view_a_after_the_step():
    method = build("NNCLR")
    before = method.queue.rows.clone()
    _, embeddings = step(method, *views())
    assert torch.equal(method.queue.rows, before)
    method.after_step(0.5)
    np.testing.assert_allclose(method.queue.rows[:12], unit(embeddings["z_a"]), atol=1e-6)
    assert torch.equal(method.queue.rows[12:], before[12:])


@pytest.mark.parametrize(("name", "least"), [("MoCoV2", 24), ("NNCLR", 12)])
def test_a_queue_shorter_than_a_step_s_rows_is_refused_before_training(name, least):
    build(name, queue_size=least)
    with pytest.raises(UserError, match=f"--queue-size {least - 1} is less than the {least} rows"):
        build(name, queue_size=least - 1)


@pytest.mark.parametrize("name", ["MoCoV2", "NNCLR"])
def test_several_steps_train_with_a_queue_that_the_rows_do_not_divide(name):
    method = build(name, queue_size=29)
    optimizer = optim.LARS(optim.param_groups(method, batch_size=12), lr=0.1)
    for k in range(4):
        optimizer.zero_grad()
        loss, _ = step(method, *views(k))
        optimizer.step()
        method.after_step((k + 1) / 4)
        assert loss.isfinite()
    assert int(method.queue.next) == 4 * (24 if name == "MoCoV2" else 12) % 29
    torch.testing.assert_close(method.queue.rows.norm(dim=1), torch.ones(29))


def test_predictors_are_of_the_sizes_asked_for():
    for name, option in (("BYOL", "hidden_dim"), ("NNCLR", "hidden_dim"), ("SimSiam", "bottleneck")):
        assert build(name, **{option: 24}).predictor[0].out_features == 24, name


def test_weights_of_l_u_are_those_of_the_search():
    expected = {"BYOL": (0.2, 0.2), "MoCoV2": (1.0, 1.0), "BarlowTwins": (30.0, 0.0), "ZeroCL": (3.0, 3.0)}
    assert {name: build(name).ALPHA["lu"] for name in expected} == expected


def test_shared_defaults_are_the_paper_s():
    paper = {
        "epochs": 500, "batch_size": 256, "weight_lr": 0.2, "vector_lr": 0.005, "warmup": 10, "width": 64,
        "hidden_dim": 2048, "dim": 256, "linear_epochs": 100, "monitor_every": 5, "precision": "fp32",
    }  # fmt: skip
    assert {key: getattr(Settings(), key) for key in paper} == paper
    assert [Settings(epochs=epochs).warmup for epochs in (20, 100, 150, 1000)] == [2, 10, 10, 10]

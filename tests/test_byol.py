"""BYOL's networks and loss, against slow loops written from the formula."""

import copy

import pytest
import torch
from conftest import BYOL as PROGRAM
from conftest import load


@pytest.fixture(scope="module")
def module():
    return load(PROGRAM)


@pytest.fixture
def method(module):
    torch.manual_seed(0)
    return module.BYOL(module.BYOLSettings(width=2, hidden_dim=8, dim=4, momentum=0.9))


def views(seed=0, n=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, 3, 8, 8, generator=generator)


def test_distance_is_the_mean_squared_distance_of_unit_vectors(module):
    p, t = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    expected = sum((a / a.norm() - b / b.norm()).square().sum() for a, b in zip(p, t, strict=True)) / 5
    torch.testing.assert_close(module.distance(p, t).double(), expected, rtol=1e-5, atol=1e-6)


def test_the_loss_pairs_each_prediction_with_the_target_of_the_other_view(method):
    a, b = views()
    reference = copy.deepcopy(method)  # batch-norm statistics move in a forward pass
    embeddings = method(a, b)
    loss = method.loss(**embeddings)
    z = [reference.projector(reference.backbone(x)) for x in (a, b)]
    p = [reference.predictor(x) for x in z]
    t = [reference.target(x) for x in (a, b)]
    expected = 0.0
    for prediction, target in ((p[0], t[1]), (p[1], t[0])):
        for u, v in zip(prediction, target, strict=True):
            expected += 2 * (1 - float((u @ v / (u.norm() * v.norm())).detach())) / len(a)
    assert float(loss) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(embeddings["z_a"], z[0])
    torch.testing.assert_close(embeddings["z_b"], z[1])


def test_no_gradient_reaches_the_target_and_all_else_learns(method):
    method.loss(**method(*views())).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())
    online = [*method.backbone.parameters(), *method.projector.parameters(), *method.predictor.parameters()]
    assert all(p.grad is not None for p in online)
    assert sum(float(p.grad.abs().sum()) for p in online) > 0


def test_the_target_starts_as_a_copy_that_shares_nothing(method):
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    for p, t in zip(online, method.target.parameters(), strict=True):
        assert torch.equal(p, t)
        assert p.data_ptr() != t.data_ptr()


def test_after_a_step_the_target_has_moved_by_one_minus_momentum(method):
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    with torch.no_grad():
        for p in online:
            p += torch.randn_like(p)
    before = [t.clone() for t in method.target.parameters()]
    method.after_step(0.5)
    for t, old, p in zip(method.target.parameters(), before, online, strict=True):
        torch.testing.assert_close(t, 0.9 * old + 0.1 * p)


def test_the_target_gathers_batch_norm_statistics_of_its_own(method):
    a, b = views()
    method(a, b)
    moved = [name for name, value in method.target.named_buffers() if "running_mean" in name and value.abs().sum() > 0]
    assert moved
    statistics = {name: value.clone() for name, value in method.target.named_buffers()}
    method.after_step(0.5)
    assert all(torch.equal(value, statistics[name]) for name, value in method.target.named_buffers())


def test_with_bf16_networks_the_loss_is_close(method):
    a, b = views(n=32)
    exact = method.loss(**copy.deepcopy(method)(a, b))
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = method(a, b)
    loss = method.loss(**{name: e.float() for name, e in embeddings.items()})
    assert float(loss) == pytest.approx(float(exact), abs=0.1)

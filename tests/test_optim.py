"""LARS, the schedules and the moving average against plain loops written from their formulas, and against SGD."""

import copy
import io
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wassersteinssl.backbones import projector
from wassersteinssl.optim import LARS, cosine_momentum, ema_update, param_groups, set_lr, warmup_cosine

SHAPES = [(5, 3), (4, 3, 3, 3), (7,), (1, 1), (2, 6), (1,), ()]


def make_params(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]
    params[4].zero_()  # a weight of norm zero is not adapted
    return [p.requires_grad_() for p in params]


def make_gradients(dtype, steps, seed=1):
    """One list of gradients a step; the first weight's are zero throughout, the second's at times."""
    generator = torch.Generator().manual_seed(seed)
    steps_of = [
        [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in SHAPES] for _ in range(steps)
    ]
    for i, gradients in enumerate(steps_of):
        gradients[0].zero_()
        if i % 3 == 0:
            gradients[1].zero_()
    return steps_of


def plain_lars(params, steps_of_gradients, lrs, momentum, weight_decay, trust):
    """The rule in Python numbers, one parameter and one entry at a time, in double precision."""
    values = [p.detach().double().flatten().tolist() for p in params]
    velocities = [[0.0] * len(v) for v in values]
    for gradients, lr in zip(steps_of_gradients, lrs, strict=True):
        for i, gradient in enumerate(gradients):
            w, d = values[i], gradient.double().flatten().tolist()
            if gradient.dim() > 1:
                d = [g + weight_decay * x for g, x in zip(d, w, strict=True)]
                w_norm, d_norm = math.sqrt(math.fsum(x * x for x in w)), math.sqrt(math.fsum(x * x for x in d))
                if w_norm > 0 and d_norm > 0:
                    d = [trust * w_norm / d_norm * x for x in d]
            velocities[i] = [momentum * v + x for v, x in zip(velocities[i], d, strict=True)]
            values[i] = [x - lr * v for x, v in zip(w, velocities[i], strict=True)]
    return [torch.tensor(v, dtype=torch.float64).reshape(p.shape) for v, p in zip(values, params, strict=True)]


def run(optimizer, params, steps_of_gradients, lrs):
    for gradients, lr in zip(steps_of_gradients, lrs, strict=True):
        for group in optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        for p, gradient in zip(params, gradients, strict=True):
            p.grad = gradient.clone()
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("weight_decay", [0.0, 1e-4, 0.1])
def test_lars_matches_a_plain_loop(dtype, tolerance, weight_decay):
    params, gradients = make_params(dtype), make_gradients(dtype, 20)
    lrs = [0.2 * (1 + math.cos(i)) for i in range(20)]
    expected = plain_lars(params, gradients, lrs, 0.9, weight_decay, 0.02)
    run(LARS(params, lr=0.2, weight_decay=weight_decay), params, gradients, lrs)
    for p, value in zip(params, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), value, rtol=tolerance, atol=tolerance)


def test_weight_with_zero_gradient_and_no_decay_stays():
    params = make_params(torch.float32)
    before = params[0].detach().clone()
    run(LARS(params, lr=1.0, weight_decay=0.0), params, make_gradients(torch.float32, 3), [1.0] * 3)
    assert torch.equal(params[0], before)
    assert all(torch.isfinite(p).all() for p in params)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_vectors_follow_sgd_bitwise(dtype):
    """One-dimensional parameters are neither decayed nor adapted: torch's SGD without decay."""
    ours = [p for p in make_params(dtype) if p.ndim <= 1]
    theirs = [p.detach().clone().requires_grad_() for p in ours]
    gradients = [[g for g in step if g.ndim <= 1] for step in make_gradients(dtype, 20)]
    run(LARS(ours, lr=0.3, weight_decay=0.1), ours, gradients, [0.3] * 20)
    run(torch.optim.SGD(theirs, lr=0.3, momentum=0.9), theirs, gradients, [0.3] * 20)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_without_trust_ratio_it_is_sgd():
    """With trust ||d|| / ||w|| every step is SGD's; the first step of a weight of norm zero is SGD's as it stands."""
    torch.manual_seed(0)
    ours = torch.randn(6, 4, dtype=torch.float64).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    lars = LARS([ours], lr=0.3, weight_decay=0.01)
    sgd = torch.optim.SGD([theirs], lr=0.3, momentum=0.9, weight_decay=0.01)
    for _ in range(20):
        ours.grad = torch.randn_like(ours)
        theirs.grad = ours.grad.clone()
        direction = ours.grad + 0.01 * ours.detach()
        lars.param_groups[0]["trust"] = (direction.norm() / ours.detach().norm()).item()
        lars.step()
        sgd.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    zero = torch.zeros(3, 2, requires_grad=True)
    zero.grad = torch.randn(3, 2)
    LARS([zero], lr=0.5).step()
    assert torch.equal(zero, -0.5 * zero.grad)


def test_learning_rate_as_a_tensor_gives_the_same():
    """But for the rounding of lr * v, which a number spares."""
    as_float, as_tensor = make_params(torch.float32), make_params(torch.float32)
    gradients, lrs = make_gradients(torch.float32, 5), [0.5, 0.25, 0.125, 0.5, 1.0]
    run(LARS(as_float, lr=0.5), as_float, gradients, lrs)
    run(LARS(as_tensor, lr=torch.tensor(0.5)), as_tensor, gradients, lrs)
    for a, b in zip(as_float, as_tensor, strict=True):
        torch.testing.assert_close(a, b)


def test_bfloat16_weights_keep_float32_norms():
    """Norms rounded to bfloat16 would scale the step by as much as 1 %."""
    torch.manual_seed(0)
    weight = torch.randn(64, 64).bfloat16().requires_grad_()
    weight.grad = torch.randn(64, 64).bfloat16()
    lars = LARS([weight], lr=0.0, weight_decay=0.0)
    scale = 0.02 * weight.detach().double().norm() / weight.grad.double().norm()
    lars.step()
    expected = (weight.grad * scale.bfloat16()).double()
    torch.testing.assert_close(lars.state[weight]["momentum_buffer"].double(), expected, rtol=2**-8, atol=0)


def test_parameters_without_gradient_are_left_alone():
    used, unused = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    used.grad = torch.ones(2, 2)
    optimizer = LARS([used, unused], lr=1.0)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2))
    assert unused not in optimizer.state


def test_no_graph_is_kept_and_gradients_are_not_touched():
    model = projector(6, 8, 4)
    optimizer = LARS(param_groups(model), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 6)).square().mean().backward()
        gradients = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            assert torch.equal(p.grad, gradient)
    for state in optimizer.state.values():
        assert state["momentum_buffer"].grad_fn is None
        assert not state["momentum_buffer"].requires_grad
    for p in model.parameters():
        assert p.is_leaf
        assert p.requires_grad


def test_closure_is_called_with_gradients_enabled():
    weight = torch.ones(2, 2, requires_grad=True)

    def closure():
        loss = weight.sum()
        loss.backward()
        return loss

    assert LARS([weight], lr=0.1).step(closure) == 4


@pytest.mark.parametrize("as_tensor", [False, True])
def test_state_dict_round_trip_is_bitwise(as_tensor):
    """Through a file; then both optimisers go on alike."""

    def lr():
        return torch.tensor(0.1) if as_tensor else 0.1

    params, gradients = make_params(torch.float32), make_gradients(torch.float32, 10)
    first = LARS(params, lr=lr())
    run(first, params, gradients[:5], [0.1] * 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    copies = [p.detach().clone().requires_grad_() for p in params]
    second = LARS(copies, lr=lr())
    second.load_state_dict(torch.load(file, weights_only=True))
    for a, b in zip(params, copies, strict=True):
        assert torch.equal(first.state[a]["momentum_buffer"], second.state[b]["momentum_buffer"])
    run(first, params, gradients[5:], [0.1] * 5)
    run(second, copies, gradients[5:], [0.1] * 5)
    for a, b in zip(params, copies, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "trust"])
def test_negative_and_nan_options_are_refused(name):
    for value in (-1.0, math.nan):
        with pytest.raises(ValueError, match=name):
            LARS([torch.zeros(1)], **{"lr": 0.1, name: value})


def test_param_groups_part_weights_from_vectors():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    weights, vectors = param_groups([model, model[0]], batch_size=512)  # a module named twice is taken once
    assert [tuple(p.shape) for p in weights["params"]] == [(4, 3, 3, 3), (2, 4)]
    assert [tuple(p.shape) for p in vectors["params"]] == [(4,)] * 3
    assert weights["lr"] == weights["base_lr"] == pytest.approx(0.4)
    assert vectors["lr"] == vectors["base_lr"] == pytest.approx(0.01)
    assert [group["lr"] for group in param_groups(model, 1.0, 2.0)] == [1.0, 2.0]
    assert len(param_groups(nn.Linear(2, 2, bias=False))) == 1


def test_set_lr_multiplies_the_base_rate():
    model = nn.Linear(2, 2)
    optimizer = LARS(param_groups(model), lr=1.0)
    for multiplier in (0.5, 0.1, 1.0):
        set_lr(optimizer, multiplier)
        assert [g["lr"] for g in optimizer.param_groups] == [0.2 * multiplier, 0.005 * multiplier]


def test_set_lr_writes_into_a_tensor_and_finds_the_base_of_any_optimiser():
    rate = torch.tensor(0.5)
    for optimizer in (LARS([torch.zeros(1)], lr=rate), torch.optim.SGD([torch.zeros(1)], lr=0.5)):
        set_lr(optimizer, 0.5)
        set_lr(optimizer, 0.25)
        assert float(optimizer.param_groups[0]["lr"]) == 0.125
    assert rate == 0.125  # the same tensor, as a captured graph needs


def test_warmup_cosine_at_its_ends():
    total, warmup = 1000, 100
    assert warmup_cosine(0, total, warmup) == 0
    assert warmup_cosine(50, total, warmup) == 0.5
    assert warmup_cosine(100, total, warmup) == 1
    assert warmup_cosine(550, total, warmup) == pytest.approx((1 + 0.001) / 2)
    assert warmup_cosine(1000, total, warmup) == pytest.approx(0.001)
    assert warmup_cosine(2000, total, warmup) == 0.001
    assert warmup_cosine(0, total, 0) == 1
    assert warmup_cosine(999, total, warmup, final=0) < 1e-5


@given(total=st.integers(0, 60), warmup=st.integers(0, 60), final=st.floats(0, 1))
def test_warmup_cosine_rises_then_falls(total, warmup, final):
    values = [warmup_cosine(step, total, warmup, final) for step in range(max(total, warmup) + 3)]
    assert all(0 <= v <= 1 for v in values)
    assert values[-1] == final
    assert all(a < b for a, b in itertools.pairwise(values[:warmup]))
    falling = values[warmup:]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falling))


def test_warmup_cosine_matches_torchs_schedulers():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0.001)
    for step in range(40):
        assert warmup_cosine(10 + step, 50, 10) == pytest.approx(cosine.get_last_lr()[0])
        optimizer.step()
        cosine.step()


def test_cosine_momentum():
    assert cosine_momentum(0, 0.99, 0.999) == pytest.approx(0.99)
    assert cosine_momentum(0.25, 0.99, 0.999) == pytest.approx(0.999 - 0.009 * (1 + 0.5**0.5) / 2)
    assert cosine_momentum(0.5, 0.99, 0.999) == pytest.approx(0.9945)
    assert cosine_momentum(1, 0.99, 0.999) == cosine_momentum(1.1, 0.99, 0.999) == 0.999
    assert cosine_momentum(0.07, 0.99, 0.99) == 0.99


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99, 1.0])
def test_ema_matches_a_loop(momentum):
    torch.manual_seed(0)
    online, target = projector(6, 8, 4), projector(6, 8, 4)
    before = copy.deepcopy(target)
    online(torch.randn(5, 6))  # moves the online network's batch-norm statistics
    ema_update(target, online, momentum)
    ema_update([target], [online], momentum)
    m = momentum
    for t, o, b in zip(target.parameters(), online.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(t, m * (m * b + (1 - m) * o) + (1 - m) * o, rtol=1e-5, atol=1e-7)
        assert t.grad_fn is None
    for t, b in zip(target.buffers(), before.buffers(), strict=True):
        assert torch.equal(t, b)


def test_ema_refuses_different_networks():
    with pytest.raises(ValueError, match="same parameters"):
        ema_update(nn.Linear(2, 3), nn.Linear(2, 4), 0.9)

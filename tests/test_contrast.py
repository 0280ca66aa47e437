"""InfoNCE, NT-Xent and the queue, against torch's cross-entropy on logits put together one by one."""

import pytest
import torch
import torch.nn.functional as F

from wassersteinssl.cli import UserError
from wassersteinssl.contrast import Queue, info_nce, nt_xent


def unit(n, m, seed=0, dtype=torch.float64):
    return F.normalize(torch.randn(n, m, dtype=dtype, generator=torch.Generator().manual_seed(seed)))


def info_nce_by_cross_entropy(query, positive, negatives, temperature):
    """Row i: its own positive's logit first, then those of all negatives; the class is 0."""
    logits = [torch.stack([q @ p, *(q @ n for n in negatives)]) for q, p in zip(query, positive, strict=True)]
    return F.cross_entropy(torch.stack(logits) / temperature, torch.zeros(len(query), dtype=torch.long))


def nt_xent_by_cross_entropy(a, b, temperature):
    """Row by row: the other view's logit first, then those of all rows but itself and its other view."""
    z, n = [*a, *b], len(a)
    logits = []
    for i in range(2 * n):
        other = (i + n) % (2 * n)
        rest = [j for j in range(2 * n) if j not in (i, other)]
        logits.append(torch.stack([z[i] @ z[j] for j in (other, *rest)]) / temperature)
    return F.cross_entropy(torch.stack(logits), torch.zeros(2 * n, dtype=torch.long))


# ---- InfoNCE ----


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_info_nce_is_the_cross_entropy_of_the_positive_among_the_negatives(temperature):
    query, positive, negatives = unit(5, 7, 1), unit(5, 7, 2), unit(9, 7, 3)
    expected = info_nce_by_cross_entropy(query, positive, negatives, temperature)
    torch.testing.assert_close(info_nce(query, positive, negatives, temperature), expected)


def test_nt_xent_is_the_cross_entropy_of_the_other_view_among_all_other_rows():
    a, b = unit(6, 5, 1), unit(6, 5, 2)
    torch.testing.assert_close(nt_xent(a, b, 0.2), nt_xent_by_cross_entropy(a, b, 0.2))


def test_nt_xent_treats_the_views_alike():
    a, b = unit(6, 5, 1), unit(6, 5, 2)
    torch.testing.assert_close(nt_xent(a, b, 0.2), nt_xent(b, a, 0.2))


@pytest.mark.parametrize("temperature", [1e-2, 1e-3])
def test_large_logits_overflow_neither_loss_nor_gradient(temperature):
    """At temperature 0.001 the logits reach 1000, e^1000 is infinite in any float."""
    rows = [unit(4, 3, seed).requires_grad_() for seed in (1, 2, 3)]
    single = [row.detach().float().requires_grad_() for row in rows]
    for loss, slow, count in ((info_nce, info_nce_by_cross_entropy, 3), (nt_xent, nt_xent_by_cross_entropy, 2)):
        expected = slow(*rows[:count], temperature)
        value = loss(*single[:count], temperature)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        for ours, theirs in zip(
            torch.autograd.grad(value, single[:count]), torch.autograd.grad(expected, rows[:count]), strict=True
        ):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3 / temperature)


def test_equal_rows_cost_the_logarithm_of_the_number_of_choices():
    row = unit(1, 7).float()
    assert float(info_nce(row.expand(5, 7), row.expand(5, 7), row.expand(9, 7), 0.2)) == pytest.approx(
        torch.tensor(10.0).log().item()
    )
    assert float(nt_xent(row.expand(5, 7), row.expand(5, 7), 0.2)) == pytest.approx(torch.tensor(9.0).log().item())


def test_the_gradients_are_those_of_finite_differences():
    query, positive, negatives = (unit(n, 3, n).requires_grad_() for n in (4, 4, 6))
    positive = positive.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *rows: info_nce(*rows, 0.2), (query, positive, negatives))
    assert torch.autograd.gradcheck(lambda *rows: nt_xent(*rows, 0.2), (query, unit(4, 3, 8).requires_grad_()))


# ---- the queue ----


def numbered(first, count):
    """Rows (first, first), (first + 1, first + 1), ..., to be told apart."""
    return torch.arange(first, first + count, dtype=torch.float32).unsqueeze(1).expand(count, 2)


def test_a_queue_starts_with_unit_rows_of_different_directions():
    queue = Queue(20, 6)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(20))
    assert (queue.rows @ queue.rows.T - torch.eye(20)).max() < 0.999


@pytest.mark.parametrize(("size", "counts"), [(6, [2] * 7), (7, [3] * 10), (5, [5, 5]), (7, [4, 1, 7, 6, 2]), (4, [0])])
def test_the_oldest_rows_are_overwritten_first_and_a_put_goes_on_at_the_start(size, counts):
    queue = Queue(size, 2)
    model = [*queue.rows.clone()]  # a list whose oldest row comes first
    first = 10
    for count in counts:
        queue.put(numbered(first, count))
        model = [*model, *numbered(first, count)][count:]
        first += count
        oldest = int(queue.next)
        assert torch.equal(torch.roll(queue.rows, -oldest, 0), torch.stack(model))


def test_more_rows_than_the_queue_holds_are_refused_and_nothing_is_put_in():
    queue = Queue(4, 2)
    before = queue.rows.clone()
    with pytest.raises(ValueError, match="a queue of 4 rows cannot take 5"):
        queue.put(numbered(0, 5))
    assert torch.equal(queue.rows, before)
    assert int(queue.next) == 0


def test_a_queue_shorter_than_a_step_is_refused_at_once():
    with pytest.raises(UserError, match="--queue-size 4 is less than the 5 rows"):
        Queue(4, 2, step=5)
    Queue(5, 2, step=5)


def test_a_saved_queue_goes_on_where_it_was():
    queue, other = Queue(5, 2), Queue(5, 2)
    queue.put(numbered(0, 3))
    other.load_state_dict(queue.state_dict())
    for q in (queue, other):
        q.put(numbered(10, 4))
    assert torch.equal(queue.rows, other.rows)
    assert torch.equal(queue.next, other.next)


def test_a_queue_is_no_parameter_and_keeps_no_graph():
    queue = Queue(5, 2)
    queue.put(torch.ones(2, 2, requires_grad=True) * 2)
    assert not list(queue.parameters())
    assert not queue.rows.requires_grad
    assert set(queue.state_dict()) == {"rows", "next"}


def test_half_precision_rows_are_kept_in_float32():
    queue = Queue(3, 2)
    queue.put(numbered(1, 2).bfloat16())
    assert queue.rows.dtype == torch.float32
    assert torch.equal(queue.rows[:2], numbered(1, 2))

"""Evaluation against scikit-learn, scipy and numpy on the same features, and the probe's promise to resume."""

import copy
import io
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from scipy.spatial.distance import pdist
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from wassersteinssl import evaluate
from wassersteinssl.augmentation import CROP_AND_FLIP, Augmentation, usual
from wassersteinssl.backbones import projector, resnet18
from wassersteinssl.cli import UserError
from wassersteinssl.data import ImageSet, Split
from wassersteinssl.evaluate import (
    LinearProbe,
    every_measure,
    extract,
    frozen,
    knn_accuracy,
    knn_predict,
    linear_probe,
    measure,
    representation_metrics,
    spectrum,
    topk_accuracy,
)
from wassersteinssl.files import load_module
from wassersteinssl.uniformity import MEASURES, Measure
from wassersteinssl.w2 import w2_uniformity

CROP = CROP_AND_FLIP
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def clusters(n, classes, dim, *, noise=1.0, seed=0):
    """Features around one centre a class, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (n,), generator=generator)
    return centres[labels] + noise * torch.randn(n, dim, generator=generator), labels


def image_set(n_train=70, n_test=30, classes=3, size=8):
    """Images whose colour tells their class, under noise: something a linear layer on features can learn."""
    generator = torch.Generator().manual_seed(5)
    colours = torch.randint(60, 200, (classes, 3, 1, 1), generator=generator)

    def split(n):
        labels = torch.arange(n) % classes
        noise = torch.randint(-55, 56, (n, 3, size, size), generator=generator)
        return Split(labels, (size, size), (colours[labels] + noise).to(torch.uint8))

    return ImageSet("colours", tuple(map(str, range(classes))), split(n_train), split(n_test), MEAN, STD)


@pytest.fixture(scope="module")
def data():
    return image_set()


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    model = resnet18(2)
    model(torch.randn(16, 3, 8, 8))  # batch-norm statistics other than the initial ones
    return model.train()


# ---- features ----


def test_extract_gives_all_images_in_order_normalised_and_in_evaluation_mode(data, backbone):
    features, labels = extract(backbone, data.test, MEAN, STD, batch_size=7, device="cpu", precision="fp32")
    images = data.test.images.double() / 255
    images = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    backbone.eval()
    with torch.no_grad():
        expected = backbone(images.float())
    backbone.train()
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(labels, data.test.labels)


def test_extract_leaves_the_network_as_it_was(data, backbone):
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    backbone.layer1.eval()  # a mixture of modes is restored, too
    extract(backbone, data.test, MEAN, STD, device="cpu", precision="bf16")
    assert backbone.training
    assert backbone.layer2.training
    assert not backbone.layer1.training
    backbone.train()
    for name, t in backbone.state_dict().items():
        assert torch.equal(t, before[name]), name


def test_extract_takes_a_function_and_bfloat16(data, backbone):
    features, _ = extract(lambda x: x.flatten(1), data.test, MEAN, STD, device="cpu", precision="fp32")
    assert features.shape == (30, 3 * 8 * 8)
    full, _ = extract(backbone, data.test, MEAN, STD, device="cpu", precision="fp32")
    half, _ = extract(backbone, data.test, MEAN, STD, device="cpu", precision="bf16")
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


def test_extract_of_nothing_is_told():
    empty = Split(torch.zeros(0, dtype=torch.int64), (8, 8), torch.zeros(0, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(UserError, match="no images"):
        extract(nn.Identity(), empty, MEAN, STD, device="cpu", precision="fp32")


def test_frozen_restores_the_mode_after_an_error():
    model = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match="expected 2D"), frozen(model):
        model(torch.zeros(()))
    assert model[0].training
    assert torch.is_grad_enabled()


# ---- nearest neighbours ----


@pytest.mark.parametrize("k", [1, 5, 50])
def test_knn_matches_scikit_learn(k):
    train_h, train_y = clusters(400, 7, 12, noise=2.0, seed=0)
    test_h, test_y = clusters(300, 7, 12, noise=2.0, seed=1)
    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(1 - d))
    oracle.fit(train_h.double().numpy(), train_y.numpy())
    expected = oracle.predict(test_h.double().numpy())
    np.testing.assert_array_equal(knn_predict(train_h, train_y, test_h, k=k, classes=7).numpy(), expected)
    accuracy = knn_accuracy(train_h, train_y, test_h, test_y, k=k, classes=7)
    assert accuracy == pytest.approx(100 * (expected == test_y.numpy()).mean())


def test_knn_in_chunks_is_the_same(monkeypatch):
    train_h, train_y = clusters(100, 4, 6, seed=0)
    test_h, _ = clusters(50, 4, 6, seed=1)
    whole = knn_predict(train_h, train_y, test_h, k=10, classes=4)
    for elements in (1, 730):  # one row at a time; seven rows at a time
        monkeypatch.setattr(evaluate, "CHUNK_ELEMENTS", elements)
        assert torch.equal(knn_predict(train_h, train_y, test_h, k=10, classes=4), whole)


def test_knn_with_k_beyond_the_training_set_lets_all_vote():
    train_h, train_y = clusters(30, 3, 5, seed=0)
    test_h, _ = clusters(40, 3, 5, seed=1)
    similarity = nn.functional.normalize(test_h.double()) @ nn.functional.normalize(train_h.double()).T
    votes = similarity.exp() @ nn.functional.one_hot(train_y, 3).double()
    assert torch.equal(knn_predict(train_h, train_y, test_h, k=200, classes=3), votes.argmax(1))


def test_knn_does_not_care_for_lengths_and_survives_zero_rows():
    train_h, train_y = clusters(60, 3, 5, seed=0)
    test_h, _ = clusters(20, 3, 5, seed=1)
    base = knn_predict(train_h, train_y, test_h, k=9, classes=3)
    assert torch.equal(knn_predict(8 * train_h, train_y, test_h / 4, k=9, classes=3), base)
    assert knn_predict(0 * train_h, train_y, test_h, k=60, classes=3).eq(train_y.bincount().argmax()).all()


# ---- top-k ----


@pytest.mark.parametrize("classes", [3, 5, 20])
def test_topk_matches_scikit_learn(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(200, classes, generator=generator)
    labels = torch.randint(classes, (200,), generator=generator)
    top1, top5 = topk_accuracy(logits, labels)
    for k, ours in ((1, top1), (5, top5)):
        if k < classes:
            oracle = 100 * top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=np.arange(classes))
        else:
            oracle = 100.0  # more guesses than classes
        assert ours == pytest.approx(oracle)
    assert topk_accuracy(logits, labels, (2,)) <= topk_accuracy(logits, labels, (3,))


# ---- the linear probe ----


def test_probe_starts_as_the_paper_says():
    probe = LinearProbe(512, 100, total_steps=10, seed=3)
    assert probe.linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not probe.linear.bias.any()
    assert torch.equal(probe.linear.weight, LinearProbe(512, 100, total_steps=10, seed=3).linear.weight)
    assert not torch.equal(probe.linear.weight, LinearProbe(512, 100, total_steps=10, seed=4).linear.weight)


def numpy_sgd(weight, bias, h, y, lrs, momentum, weight_decay):
    """Softmax regression by hand, one step a learning rate, on the whole batch; the weights and each step's loss."""
    velocity = [np.zeros_like(weight), np.zeros_like(bias)]
    losses = []
    for lr in lrs:
        logits = h @ weight.T + bias
        probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        losses.append(-np.log(probability[np.arange(len(y)), y]).sum())
        error = (probability - np.eye(len(bias))[y]) / len(y)
        velocity[0] = momentum * velocity[0] + error.T @ h + weight_decay * weight
        velocity[1] = momentum * velocity[1] + error.sum(0) + weight_decay * bias
        weight, bias = weight - lr * velocity[0], bias - lr * velocity[1]
    return weight, bias, losses


def test_probe_steps_match_numpy():
    """Three steps, so that momentum and the falling learning rate both count."""
    h, y = clusters(64, 5, 8)
    probe = LinearProbe(8, 5, total_steps=4, batch_size=64, weight_decay=0.01)
    start = [p.detach().double().numpy() for p in (probe.linear.weight, probe.linear.bias)]
    lrs = [0.3, 0.3 * (1 + math.sqrt(0.5)) / 2, 0.15]
    weight, bias, losses = numpy_sgd(*start, h.double().numpy(), y.numpy(), lrs, 0.9, 0.01)
    for loss in losses:
        assert probe.learn(h, y).item() == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(probe.linear.weight.detach().numpy(), weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(probe.linear.bias.detach().numpy(), bias, rtol=1e-4, atol=1e-6)


def test_probe_learns_in_batches_with_a_smaller_last_one():
    h, y = clusters(70, 3, 4)
    together, apart = (LinearProbe(4, 3, total_steps=3, batch_size=32) for _ in range(2))
    loss = together.learn(h, y)
    losses = [apart.learn(h[rows], y[rows]) for rows in (slice(0, 32), slice(32, 64), slice(64, 70))]
    assert together.step == apart.step == 3
    assert torch.equal(together.linear.weight, apart.linear.weight)
    assert loss.item() == pytest.approx(sum(losses).item())


def test_probe_reaches_scikit_learns_optimum():
    train_h, train_y = clusters(1500, 6, 16, noise=1.8, seed=0)
    test_h, test_y = clusters(1000, 6, 16, noise=1.8, seed=1)
    oracle = LogisticRegression(C=1e4, max_iter=2000).fit(train_h.numpy(), train_y.numpy())
    expected = 100 * oracle.score(test_h.numpy(), test_y.numpy())
    probe = LinearProbe(16, 6, total_steps=30 * 6)
    for epoch in range(30):
        order = torch.randperm(1500, generator=torch.Generator().manual_seed(epoch))
        loss = probe.learn(train_h[order], train_y[order]) / 1500
    assert 60 < expected < 99
    assert probe.accuracy(test_h, test_y)[0] == pytest.approx(expected, abs=1.5)
    optimum = -np.log(oracle.predict_proba(train_h.numpy())[np.arange(1500), train_y.numpy()]).mean()
    assert loss.item() == pytest.approx(optimum, rel=0.05)


def same(a, b):
    """Equal in structure and, tensors, in every bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


PROBE = {"epochs": 4, "batch_size": 16, "forward_batch": 32, "device": "cpu", "precision": "fp32"}


def test_linear_probe_learns(data):
    """The mean colour tells the class, under any crop."""
    mean_colour = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = linear_probe(mean_colour, data, **{**PROBE, "epochs": 20})
    assert result["acc1"] > 90
    assert result["history"][-1]["loss"] < result["history"][0]["loss"] / 2


def test_linear_probe_reports_the_last_epoch_and_leaves_the_backbone_alone(data, backbone):
    before = {name: t.clone() for name, t in backbone.state_dict().items()}
    result = linear_probe(backbone, data, **PROBE)
    assert result["complete"]
    assert [line["epoch"] for line in result["history"]] == [0, 1, 2, 3]
    assert result["acc1"] == result["history"][-1]["acc1"]
    assert result["best_acc1"] == max(line["acc1"] for line in result["history"])
    assert result["history"][result["best_epoch"]]["acc1"] == result["best_acc1"]
    assert result["acc5"] == 100  # three classes
    assert backbone.training
    for name, t in backbone.state_dict().items():  # above all the batch-norm statistics
        assert torch.equal(t, before[name]), name


def test_linear_probe_tells_which_test_images_it_gets_right(data, backbone):
    states = []
    result = linear_probe(backbone, data, **PROBE, on_epoch=states.append)
    last = states[-1]["probe"]["linear"]
    h, y = extract(backbone, data.test, data.mean, data.std, device="cpu")
    right = (h @ last["weight"].T + last["bias"]).argmax(1) == y
    assert 0 < right.sum() < len(y)
    assert torch.equal(result["correct"], right)
    assert result["acc1"] == pytest.approx(100 * float(right.double().mean()))


def test_the_papers_linear_evaluation_is_ours_but_for_batch_norm(data, backbone):
    program = load_module(REPOSITORY / "code" / "results" / "mini-cpu" / "paper_evaluation.py")
    common = {"crop": CROP, "settings": {"seed": 3, "precision": "fp32", "linear_epochs": 4}}
    mean_colour = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # has no batch-norm
    mean_colour.feature_dim = 3
    ours = linear_probe(mean_colour, data, epochs=4, seed=3)
    theirs = program.drifting(SimpleNamespace(backbone=mean_colour), data, **common)
    assert theirs == [line["acc1"] for line in ours["history"]]
    moving = copy.deepcopy(backbone)
    program.drifting(SimpleNamespace(backbone=moving), data, **common)
    assert not torch.equal(moving.bn1.running_mean, backbone.bn1.running_mean)
    assert torch.equal(moving.conv1.weight, backbone.conv1.weight)


def test_linear_probe_resumes_bitwise_from_every_epoch(data, backbone):
    states = []
    whole = linear_probe(backbone, data, **PROBE, on_epoch=states.append)
    assert len(states) == 4
    for state in map(through_a_file, states):
        again = []
        assert same(linear_probe(backbone, data, **PROBE, state=state, on_epoch=again.append), whole)
        assert same(again, states[len(state["history"]) :])


def test_linear_probe_stops_when_asked_and_forgets_the_unfinished_epoch(data, backbone):
    """Three forward batches an epoch: the eighth question comes within the third epoch."""
    questions, states = [], []

    def should_stop(_so_far):
        questions.append(None)
        return len(questions) == 8

    result = linear_probe(backbone, data, **PROBE, on_epoch=states.append, should_stop=should_stop)
    assert not result["complete"]
    assert len(result["history"]) == len(states) == 2
    whole = linear_probe(backbone, data, **PROBE)
    assert same(linear_probe(backbone, data, **PROBE, state=through_a_file(states[-1])), whole)
    nothing = linear_probe(backbone, data, **PROBE, should_stop=lambda _: True)
    assert nothing["acc1"] is nothing["correct"] is None
    assert not nothing["complete"]


def test_linear_probe_resumes_bitwise_from_within_an_epoch(data, backbone):
    """Stopped after every forward batch, as by a time budget that is shorter than an epoch."""
    whole_states: list[dict] = []
    whole = linear_probe(backbone, data, **PROBE, on_epoch=whole_states.append)
    kept, epochs, result = [None], [], {"complete": False}

    def should_stop(so_far):
        kept.append(so_far())
        return kept[-1]["probe"]["step"] > (kept[-2]["probe"]["step"] if kept[-2] else 0)

    while not result["complete"]:
        assert len(kept) < 40
        state = through_a_file(kept[-1])
        result = linear_probe(backbone, data, **PROBE, state=state, on_epoch=epochs.append, should_stop=should_stop)
    assert same(result, whole)
    assert same(epochs, whole_states)
    assert len({state["probe"]["step"] for state in kept[1:]}) > 8  # not only whole epochs


def test_forward_batch_is_a_matter_of_speed_alone(data, backbone):
    results = [linear_probe(backbone, data, **{**PROBE, "forward_batch": size}) for size in (1, 16, 64, None)]
    for result in results[1:]:
        for ours, reference in zip(result["history"], results[0]["history"], strict=True):
            assert ours == pytest.approx(reference, rel=1e-4)


def test_no_more_images_at_once_go_through_the_network_than_was_asked_for(data):
    sizes = []

    def network(images):
        sizes.append(len(images))
        return images.flatten(1)

    features = [h for h, _ in evaluate._probe_epoch(network, data, CROP, 0, 0, 16, 5, "cpu", "fp32")]
    assert sum(sizes) == len(data.train)
    assert max(sizes) == 5
    whole = [h for h, _ in evaluate._probe_epoch(nn.Flatten(), data, CROP, 0, 0, 16, 64, "cpu", "fp32")]
    assert torch.equal(torch.cat(features), torch.cat(whole))


@pytest.mark.parametrize("augmentation", [CROP, usual("cifar10")], ids=["crop", "all"])
def test_batches_that_are_augmented_together_look_as_alone(data, augmentation, monkeypatch):
    calls = []

    def counted(images, *arguments):
        calls.append(len(images))
        return apply(images, *arguments)

    def images_of(forward_batch):
        epoch = evaluate._probe_epoch(nn.Flatten(), data, augmentation, 0, 0, 16, forward_batch, "cpu", "fp32")
        return torch.cat([h for h, _ in epoch])

    apply = evaluate.augment.apply
    monkeypatch.setattr(evaluate.augment, "apply", counted)
    alone = images_of(16)
    assert set(calls) == {16, 6}  # of 70 images
    calls.clear()
    assert torch.equal(images_of(48), alone)
    assert 48 in calls


def test_monitoring_looks_at_fewer_pairs_and_else_says_the_same(data, backbone):
    method = SimpleNamespace(backbone=backbone, projector=nn.Linear(16, 8))
    options = {"train_limit": None, "seed": 1, "device": "cpu"}
    whole, z = evaluate.measure(method, data, CROP, pairs_limit=None, **options)
    some, few = evaluate.measure(method, data, CROP, pairs_limit=6, **options)
    assert [len(x) for x in z] == 3 * [len(data.test)]
    assert [len(x) for x in few] == [len(data.test), 6, 6]
    assert {name: some[name] for name in some if name != "alignment"} == {
        name: whole[name] for name in whole if name != "alignment"
    }
    assert some["alignment"] == pytest.approx(evaluate.alignment(*few[1:]).item())
    _, one_each = evaluate.measure(method, data, CROP, pairs_limit=1, **options)  # there are more classes
    assert len(one_each[1]) == len(data.test.labels.unique()) > 1


def test_order_and_crops_change_with_seed_and_epoch(data, backbone):
    def first_features(seed, epoch):
        return next(evaluate._probe_epoch(backbone, data, CROP, seed, epoch, 16, 32, "cpu", "fp32"))

    h, y = first_features(1, 0)
    assert h.shape == (32, 16)
    assert all(map(torch.equal, (h, y), first_features(1, 0)))
    assert not torch.equal(h, first_features(1, 1)[0])
    assert not torch.equal(h, first_features(2, 0)[0])


def test_order_changes_with_the_epoch_and_crops_with_step_epoch_and_seed(data):
    """Of one image repeated, labelled with its place."""
    image = torch.arange(192, dtype=torch.uint8).view(1, 3, 8, 8).expand(32, -1, -1, -1).contiguous()
    repeated = replace(data, train=Split(torch.arange(32), (8, 8), image))
    views, order = next(evaluate._probe_epoch(nn.Flatten(), repeated, CROP, 0, 0, 16, 32, "cpu", "fp32"))
    assert not torch.equal(views[:16], views[16:])
    assert not torch.equal(order, torch.arange(32))
    next_views, next_order = next(evaluate._probe_epoch(nn.Flatten(), repeated, CROP, 0, 1, 16, 32, "cpu", "fp32"))
    assert not torch.equal(order, next_order)
    other_views, _ = next(evaluate._probe_epoch(nn.Flatten(), repeated, CROP, 1, 0, 16, 32, "cpu", "fp32"))
    assert not torch.equal(views, next_views)
    assert not torch.equal(views, other_views)


def test_every_training_image_is_seen_once_an_epoch(data):
    seen = [y for _, y in evaluate._probe_epoch(nn.Flatten(), data, CROP, 0, 0, 16, 32, "cpu", "fp32")]
    assert torch.equal(torch.cat(seen).sort().values, data.train.labels.sort().values)


def test_state_of_another_setting_is_refused(data, backbone):
    states = []
    linear_probe(backbone, data, **{**PROBE, "epochs": 1}, on_epoch=states.append)
    with pytest.raises(UserError, match="begun with epochs 1, not 4"):
        linear_probe(backbone, data, **PROBE, state=states[0])
    with pytest.raises(UserError, match="begun with crop"):
        linear_probe(backbone, data, **{**PROBE, "epochs": 1}, crop=replace(CROP, flip=0), state=states[0])
    with pytest.raises(UserError, match="at least 1 epoch"):
        linear_probe(backbone, data, **{**PROBE, "epochs": 0})


def test_a_loss_that_is_not_finite_stops_the_probe(data):
    with pytest.raises(FloatingPointError, match="epoch 0"):
        linear_probe(nn.Sequential(nn.Flatten(), nn.Threshold(1e9, math.nan)), data, **PROBE)


# ---- measures ----


def test_spectrum_matches_numpy():
    z = torch.randn(300, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8) + 5
    expected = np.linalg.eigvalsh(np.cov(z.double().numpy(), rowvar=False, bias=True))[::-1]
    values = spectrum(z)
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-9)


def test_spectrum_of_a_collapsed_embedding_has_zeros_and_nothing_below():
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) @ torch.randn(2, 6)
    values = spectrum(z)
    assert (values >= 0).all()
    assert (values[2:] < 1e-6 * values[0]).all()
    assert spectrum(torch.ones(4, 3)).abs().max() < 1e-12
    assert spectrum(torch.randn(3, 8)).shape == (8,)  # fewer rows than features


def test_representation_metrics_match_numpy():
    """On rows that are not unit yet: each measure normalises them."""
    generator = torch.Generator().manual_seed(0)
    z, a = (3 * torch.randn(200, 6, generator=generator) + 1 for _ in range(2))
    b = a + 0.3 * torch.randn(200, 6, generator=generator)
    unit, unit_a, unit_b = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1)[:, None] for x in (z, a, b))
    mean, root = unit.mean(0), np.sqrt(np.linalg.eigvalsh(np.cov(unit, rowvar=False, bias=True)))
    w2 = np.sqrt(mean @ mean + 1 + (root**2).sum() - 2 / np.sqrt(6) * root.sum())
    measures = representation_metrics(z, a, b)
    assert list(measures) == ["w2", "w2_floor", "lu", "alignment"]
    assert all(isinstance(value, float) for value in measures.values())
    assert measures["w2"] == pytest.approx(w2, rel=1e-6)
    assert measures["lu"] == pytest.approx(np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean()), rel=1e-5)
    assert measures["alignment"] == pytest.approx(((unit_a - unit_b) ** 2).sum(1).mean(), rel=1e-5)
    assert 0 < measures["w2_floor"] < measures["w2"]


@pytest.fixture(scope="module")
def method(backbone):
    torch.manual_seed(1)
    return SimpleNamespace(backbone=backbone, projector=projector(16, 12, 6).train())


def test_a_measure_that_raises_costs_no_result(monkeypatch, capsys):
    def refused(z):
        raise ValueError("needs more rows")

    monkeypatch.setitem(MEASURES, "mine", Measure("mine", refused, "low", "", ""))
    z = torch.randn(20, 4)
    found = every_measure(z, z, z)
    assert found["mine"] is None
    assert found["w2"] == pytest.approx(w2_uniformity(z).item(), rel=1e-6)
    assert capsys.readouterr().err == "no mine: needs more rows\n"


def test_measures_of_moments_are_of_all_rows_and_of_pairs_of_ten_thousand(monkeypatch):
    seen = []
    measures = {"w2": MEASURES["w2"], "mine": Measure("mine", lambda z: seen.append(len(z)) or z.sum(), "low", "", "")}
    monkeypatch.setattr(evaluate, "MEASURES", measures)
    z = torch.randn(15_000, 3)
    assert every_measure(z, z, z)["w2"] == representation_metrics(z, z, z)["w2"]
    assert seen == [7_500]


def test_measure_gathers_what_the_parts_give(data, method):
    augmentation = Augmentation()
    options = {"device": "cpu", "precision": "fp32"}
    measures, (z, z_a, z_b) = measure(method, data, augmentation, train_limit=None, seed=1, **options)
    train_h, train_y = extract(method.backbone, data.train, MEAN, STD, **options)
    test_h, test_y = extract(method.backbone, data.test, MEAN, STD, **options)
    with frozen(method.projector):
        torch.testing.assert_close(z, method.projector(test_h))
    assert measures["knn1"] == knn_accuracy(train_h, train_y, test_h, test_y, classes=3)
    assert measures["w2"] == representation_metrics(z, z, z)["w2"]
    assert list(measures) == ["knn1", "w2", "w2_floor", "lu", "alignment"]
    every = every_measure(z, z_a, z_b)
    assert list(every) == list(MEASURES)
    for name in ("w2", "lu", "alignment"):
        assert every[name] == pytest.approx(measures[name], rel=1e-5)
    eigenvalues = spectrum(nn.functional.normalize(z))
    share = float(eigenvalues.sum() ** 2 / eigenvalues.square().sum())
    assert every["participation_ratio"] == pytest.approx(share, rel=1e-4)


def test_measure_repeats_itself_and_changes_nothing(data, method):
    """Of two different views, drawn anew for another seed; at most `train_limit` images vote."""
    options = {"train_limit": 3, "device": "cpu"}
    before = [t.clone() for m in (method.backbone, method.projector) for t in m.state_dict().values()]
    measures, (z, *_) = measure(method, data, Augmentation(), seed=1, **options)
    again, (z_again, *_) = measure(method, data, Augmentation(), seed=1, **options)
    other, _ = measure(method, data, Augmentation(), seed=2, **options)
    assert measures == again
    assert torch.equal(z, z_again)
    assert 0 < measures["alignment"] != other["alignment"]
    assert measures["w2"] == other["w2"]
    assert method.backbone.training
    assert method.projector.training
    after = [t for m in (method.backbone, method.projector) for t in m.state_dict().values()]
    assert all(map(torch.equal, before, after))


def test_normalised_images_are_what_the_network_sees(data):
    """The probe's views are cropped and flipped copies, not the images themselves, and un-jittered."""
    assert (CROP.jitter, CROP.gray, CROP.blur, CROP.solarize) == (0, 0, 0, 0)
    views, labels = next(evaluate._probe_epoch(nn.Flatten(), data, CROP, 0, 0, 16, 32, "cpu", "fp32"))
    plain, _ = extract(nn.Flatten(), data.train, MEAN, STD, device="cpu", precision="fp32")
    for label in range(3):  # the colour, and with it the class, survives
        ours = views[labels == label].view(-1, 3, 64).mean((0, 2))
        theirs = plain[data.train.labels == label].view(-1, 3, 64).mean((0, 2))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0.25)

"""How good a representation is: features, nearest neighbours, the linear probe, Table 2's measures, the spectrum.

Everything runs on the device of its inputs, in chunks of bounded memory, and reads numbers back only at the end.
Accuracies are percentages. Legend of shapes: n rows, d features h of the backbone, m features z of the projector,
C classes.
"""

import copy
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wassersteinssl import augment, checkpoint
from wassersteinssl.augmentation import CROP_AND_FLIP, Augmentation
from wassersteinssl.cli import UserError, tell
from wassersteinssl.data import ImageSet, Split
from wassersteinssl.files import reason
from wassersteinssl.uniformity import MEASURES, alignment, lu_uniformity, of_metric
from wassersteinssl.w2 import W2Metric, w2_floor

CHUNK_ELEMENTS = 2**25  # size of the largest temporary matrix: 128 MiB of float32


# ---- features --------------------------------------------------------------------------------------------------------


@contextmanager
def frozen(module: Any) -> Iterator[None]:
    """No gradients, and evaluation mode for a network: batch-norm uses its running statistics and leaves them alone.

    Afterwards the mode of every submodule is restored. `module` may also be a plain function.
    """
    modes = [(m, m.training) for m in module.modules()] if isinstance(module, nn.Module) else []
    try:
        for m, _ in modes:
            m.training = False
        with torch.no_grad():
            yield
    finally:
        for m, mode in modes:
            m.training = mode


def _encode(encoder_fn: Callable[[Tensor], Tensor], images: Tensor, precision: str) -> Tensor:
    """(b, 3, H, W) -> float32 (b, d); only the forward pass may run in bfloat16."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return encoder_fn(images).float()


def extract(
    encoder_fn: Callable[[Tensor], Tensor],
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    batch_size: int | None = None,
    device: torch.device | str,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Features (n, d) in float32 and labels (n,) of a split's images, un-augmented, in the split's order.

    A network runs in evaluation mode. The default batch_size suits the image size and the device.
    """
    if len(split) == 0:
        raise UserError("no images to extract features from")
    batch_size = batch_size or forward_batch_size(split.size, device)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    with frozen(encoder_fn):
        for images, y in split.batches(torch.arange(len(split)).split(batch_size), device):
            features.append(_encode(encoder_fn, augment.normalize(images, mean, std), precision))
            labels.append(y)
    return torch.cat(features), torch.cat(labels)


# ---- nearest neighbours and top-k ------------------------------------------------------------------------------------


@torch.no_grad()
def knn_predict(train_h: Tensor, train_y: Tensor, test_h: Tensor, *, k: int = 200, classes: int) -> Tensor:
    """The class (n',) that wins the weighted vote of the k nearest training rows (of all, if k > n).

    vote(c) = sum over the k largest s_i with y_i = c of exp(s_i), s_i the cosine similarity (Wu et al., arXiv
    1805.01978, at temperature 1, as the paper has it). train_h (n, d), test_h (n', d), rows of a length of 1e-12 to
    1e18; labels in 0..classes-1.
    """
    bank = F.normalize(train_h.float()).T  # (d, n)
    predictions = []
    for h in test_h.split(max(1, CHUNK_ELEMENTS // len(train_h))):
        similarity, neighbour = (F.normalize(h.float()) @ bank).topk(min(k, len(train_h)))  # (rows, n) -> (rows, k)
        votes = similarity.new_zeros(len(h), classes)
        predictions.append(votes.scatter_add_(1, train_y[neighbour], similarity.exp()).argmax(1))
    return torch.cat(predictions)


def knn_accuracy(
    train_h: Tensor, train_y: Tensor, test_h: Tensor, test_y: Tensor, *, k: int = 200, classes: int
) -> float:
    """Percent of test rows that `knn_predict` gets right."""
    correct = knn_predict(train_h, train_y, test_h, k=k, classes=classes) == test_y
    return 100 * correct.sum().item() / len(test_y)


@torch.no_grad()
def topk_accuracy(logits: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> tuple[float, ...]:
    """Percent of rows whose label is among the k largest of (n, C) logits, for each k (of all C, if k > C)."""
    hits = _hits(logits, labels, max(ks)).sum(0).cumsum(0).tolist()  # hits[k-1]: rows whose label is among the first k
    return tuple(100 * hits[min(k, len(hits)) - 1] / len(labels) for k in ks)


def _hits(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """Whether a row's label is its first, second, ... choice, bool (n, k)."""
    return logits.topk(min(k, logits.shape[1])).indices == labels[:, None]


# ---- the linear probe ------------------------------------------------------------------------------------------------


class LinearProbe:
    """Softmax regression on frozen features, by the paper's recipe.

    logits = W h + b, W (C, d) drawn from N(0, 0.01^2), b = 0; mean cross-entropy in float32; SGD with momentum. The
    learning rate falls along half a cosine, step by step: lr_t = lr (1 + cos(pi t / T)) / 2, T = epochs * batches.
    `state_dict` is complete: a probe that loads it continues bitwise as if it had never stopped.
    """

    def __init__(
        self,
        dim: int,
        classes: int,
        *,
        total_steps: int,
        batch_size: int = 256,
        lr: float = 0.3,
        weight_decay: float = 1e-6,
        seed: int = 12,
        device: torch.device | str = "cpu",
    ):
        self.total_steps, self.batch_size, self.lr, self.step = total_steps, batch_size, lr, 0
        self.linear = nn.Linear(dim, classes)
        nn.init.normal_(self.linear.weight, std=0.01, generator=augment.generator(seed, 0, 0, "probe weights"))
        nn.init.zeros_(self.linear.bias)
        self.linear.to(device)
        self.optimizer = torch.optim.SGD(self.linear.parameters(), lr, momentum=0.9, weight_decay=weight_decay)

    def learn(self, h: Tensor, y: Tensor) -> Tensor:
        """SGD over the rows of h (n, d) in order, batch by batch. Returns the sum of their losses, on the device."""
        loss_sum = torch.zeros((), device=h.device)
        for h_batch, y_batch in zip(h.split(self.batch_size), y.split(self.batch_size), strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * (1 + math.cos(math.pi * self.step / self.total_steps)) / 2
            loss = F.cross_entropy(self.linear(h_batch), y_batch)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach() * len(y_batch)
            self.step += 1
        return loss_sum

    @torch.no_grad()
    def accuracy(self, h: Tensor, y: Tensor) -> tuple[float, ...]:
        """Top-1 and top-5 accuracy in percent."""
        return topk_accuracy(self.linear(h), y)

    @torch.no_grad()
    def correct(self, h: Tensor, y: Tensor) -> Tensor:
        """Which rows count for the top-1 accuracy, bool (n,)."""
        return _hits(self.linear(h), y, 5)[:, 0]  # of as many choices as `accuracy`: of equal logits the same is first

    def state_dict(self) -> dict:
        state = {"step": self.step, "linear": self.linear.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]
        self.linear.load_state_dict(state["linear"])
        self.optimizer.load_state_dict(state["optimizer"])


def linear_probe(
    backbone: nn.Module,
    data: ImageSet,
    *,
    crop: Augmentation = CROP_AND_FLIP,
    epochs: int = 100,
    batch_size: int = 256,
    seed: int = 12,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    forward_batch: int | None = None,
    state: dict | None = None,
    on_epoch: Callable[[dict], None] | None = None,
    should_stop: Callable[[Callable[[], dict]], bool] | None = None,
) -> dict:
    """Linear evaluation of a frozen backbone on an ImageSet: {"acc1", "acc5", "best_acc1", "best_epoch", "history",
    "complete", "correct"}. Accuracies are percentages of the last epoch; `best_*` is the best of all epochs, which
    flatters, as it is chosen on the test set. "correct" tells of each test image if the last epoch's classifier is
    right, bool (n',); None unless complete.

    Training images are cropped and flipped anew every epoch, as `crop` says; test images are encoded once, unchanged.
    The backbone is frozen, with its batch-norm statistics. Therefore the number of images that go through it at once,
    `forward_batch`, affects speed alone: order and crops are functions of (seed, epoch, step).

    on_epoch(state) is called after every epoch with all that a continuation needs, loadable with weights_only=True.
    Continuing from `state` ends bitwise equal on a CPU. should_stop(f), where f() returns such a state, is called
    before each forward batch is learned; if it returns true, the result so far is returned, with "complete" False.
    """
    if epochs < 1:
        raise UserError(f"the linear evaluation needs at least 1 epoch, not {epochs}")
    test_h, test_y = extract(backbone, data.test, data.mean, data.std, device=device, precision=precision)
    n, dim, classes = len(data.train), test_h.shape[1], len(data.classes)
    batches = math.ceil(n / batch_size)
    settings = {
        "batch_size": batch_size, "seed": seed, "epochs": epochs, "crop": asdict(crop), "dim": dim, "classes": classes,
        "n_train": n,
    }  # fmt: skip
    probe = LinearProbe(dim, classes, total_steps=epochs * batches, batch_size=batch_size, seed=seed, device=device)
    history: list[dict] = []
    loss_sum = torch.zeros((), device=device)
    if state is not None:
        with checkpoint.fitting():
            _check_same(state["settings"], settings)
            probe.load_state_dict(state["probe"])
            history = copy.deepcopy(state["history"])
            loss_sum += state["loss_sum"]

    def so_far() -> dict:
        return {
            "settings": settings, "probe": probe.state_dict(), "history": copy.deepcopy(history),
            "loss_sum": loss_sum.item(),
        }  # fmt: skip

    for epoch in range(len(history), epochs):
        begun = probe.step - epoch * batches
        for h, y in _probe_epoch(
            backbone, data, crop, seed, epoch, batch_size, forward_batch, device, precision, begun
        ):
            if should_stop is not None and should_stop(so_far):
                return _result(history, epochs)
            loss_sum += probe.learn(h, y)
        loss = loss_sum.item() / n
        if not math.isfinite(loss):
            raise FloatingPointError(f"linear evaluation: the loss of epoch {epoch} is {loss}")
        acc1, acc5 = probe.accuracy(test_h, test_y)
        history.append({"epoch": epoch, "loss": loss, "acc1": acc1, "acc5": acc5})
        loss_sum.zero_()
        if on_epoch is not None:
            on_epoch(so_far())
    return _result(history, epochs, probe.correct(test_h, test_y))


def _probe_epoch(
    backbone: nn.Module,
    data: ImageSet,
    crop: Augmentation,
    seed: int,
    epoch: int,
    batch_size: int,
    forward_batch: int | None,
    device: torch.device | str,
    precision: str,
    begun: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch of cropped and flipped training images in a new order, without its first `begun` batches."""
    order = torch.randperm(len(data.train), generator=augment.generator(seed, epoch, 0, "probe order"))
    crops = (augment.generator(seed, epoch, step, "probe crop") for step in itertools.count(begun))
    return _augmented_features(
        backbone, data.train, data, crop, order[begun * batch_size :], crops,
        batch_size=batch_size, forward_batch=forward_batch, device=device, precision=precision,
    )  # fmt: skip


def _augmented_features(
    backbone: nn.Module,
    split: Split,
    data: ImageSet,
    augmentation: Augmentation,
    order: Tensor,
    generators: Iterator[torch.Generator],
    *,
    batch_size: int = 256,
    forward_batch: int | None = None,
    device: torch.device | str,
    precision: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(features, labels) of augmented images of a split, several batches at a time. The i-th of `generators` draws the
    augmentation of the i-th batch. `forward_batch` images go through the network at once, which affects only speed and
    memory."""
    forward_batch = forward_batch or forward_batch_size(split.size, device)
    batches_at_once = max(1, forward_batch // batch_size)
    for images, y in split.batches(order.split(batches_at_once * batch_size), device):
        batches = images.split(batch_size)
        drawn = [augment.draw(augmentation, len(batch), split.size, next(generators)) for batch in batches]
        if len(images) % batch_size == 0:
            drawn = augment.joined(drawn)  # where it can: one call for all of them, with fewer launches on a GPU
        views = [
            augment.apply(batch, parameters.to(images.device), augmentation, data.mean, data.std)
            for batch, parameters in zip(batches if len(drawn) > 1 else [images], drawn, strict=True)
        ]
        with frozen(backbone):
            h = torch.cat([_encode(backbone, part, precision) for part in torch.cat(views).split(forward_batch)])
        yield h, y


def forward_batch_size(size: tuple[int, int], device: torch.device | str) -> int:
    """Images in a forward pass of the frozen backbone: many, to fill a GPU; few, to stay in a CPU's caches."""
    at_32 = 512 if torch.device(device).type == "cpu" else 2048
    return max(1, at_32 * 32 * 32 // (size[0] * size[1]))


def _check_same(then: dict, now: dict) -> None:
    for name, value in now.items():
        if then.get(name) != value:
            raise UserError(f"this linear evaluation was begun with {name} {then.get(name)}, not {value}")


def _result(history: list[dict], epochs: int, correct: Tensor | None = None) -> dict:
    result: dict = {"acc1": None, "acc5": None, "best_acc1": None, "best_epoch": None}
    if history:
        best = max(history, key=lambda line: line["acc1"])
        result = {"acc1": history[-1]["acc1"], "acc5": history[-1]["acc5"]}
        result |= {"best_acc1": best["acc1"], "best_epoch": best["epoch"]}
    return {**result, "history": history, "complete": len(history) == epochs, "correct": correct}


# ---- measures of the representation ----------------------------------------------------------------------------------


@torch.no_grad()
def spectrum(z: Tensor) -> Tensor:
    """Singular values of the covariance of the rows of z (n, m), descending, float64 (m,): the paper's figure 7.

    S = (1/n) sum_i (z_i - mu)(z_i - mu)^T is positive semi-definite, so its singular values are its eigenvalues; any
    that rounding made negative become 0. The rows are taken as they are: normalise them first if they should be unit.
    """
    covariance = W2Metric(normalize=False).update(z).covariance.cpu()  # Apple GPUs compute no eigenvalues
    return torch.linalg.eigvalsh(covariance).clamp(min=0).flip(0)


@torch.no_grad()
def representation_metrics(z_test: Tensor, z_view_a: Tensor, z_view_b: Tensor) -> dict[str, float]:
    """Table 2's measures of projector outputs (n, m), whose rows each measure scales to unit length.

    w2 and lu are those of the un-augmented test images, alignment that of two augmented views of each. w2_floor is the
    w2 of n uniform rows, without which w2 means little. ValueError if a row is not finite.
    """
    return {
        "w2": W2Metric().update(z_test).compute(),
        "w2_floor": w2_floor(*z_test.shape),
        "lu": lu_uniformity(z_test).item(),
        "alignment": alignment(z_view_a, z_view_b).item(),
    }


@torch.no_grad()
def every_measure(
    z_test: Tensor, z_view_a: Tensor, z_view_b: Tensor, *, on_measure: Callable[[], Any] = lambda: None
) -> dict[str, float | None]:
    """All of MEASURES, of projector outputs as in `representation_metrics`; None where a measure is not finite, or
    raises ValueError, which is told. Measures of two moments use all rows; the others at most 10,000, evenly spaced, as
    trees and neighbours take quadratic time. `on_measure` is called after each."""
    if z_test.device.type == "mps":  # Apple GPUs have neither eigenvalues nor float64
        z_test, z_view_a, z_view_b = (z.cpu() for z in (z_test, z_view_a, z_view_b))
    metric, found = W2Metric().update(z_test), {}
    every = -(-len(z_test) // 10_000)
    z_test, z_view_a, z_view_b = (z[::every] for z in (z_test, z_view_a, z_view_b))
    for name, record in MEASURES.items():
        try:
            if record.of_moments:
                value = of_metric(name, metric)
            else:
                value = float(record.function(z_view_a, z_view_b) if record.needs_views else record.function(z_test))
        except ValueError as error:  # a single measure must not cost a run its result
            tell(f"no {name}: {reason(error)}", sys.stderr)
            value = math.nan
        found[name] = value if math.isfinite(value) else None
        on_measure()
    return found


def measure(
    method: Any,
    data: ImageSet,
    augmentation: Augmentation,
    *,
    train_limit: int | None = None,
    pairs_limit: int | None = None,
    seed: int,
    device: torch.device | str,
    precision: str = "fp32",
) -> tuple[dict[str, float], tuple[Tensor, Tensor, Tensor]]:
    """Table 2's measures and kNN accuracy of a method with `backbone` and `projector`, and three z (n, m): of the test
    images, and of two augmented views of them.

    knn1 classifies test images by their neighbours among the training images (at most `train_limit`, balanced over the
    classes). w2 and lu are those of the un-augmented test images; alignment is that of the two views, which are of all
    test images or of at most `pairs_limit`, and the same at every call.
    """

    def features(split: Split) -> tuple[Tensor, Tensor]:
        return extract(method.backbone, split, data.mean, data.std, device=device, precision=precision)

    def of_view(name: str) -> Tensor:
        found = _augmented_features(
            method.backbone, pairs, data, augmentation, torch.arange(len(pairs)),
            (augment.generator(seed, 0, step, name) for step in itertools.count()), device=device, precision=precision,
        )  # fmt: skip
        return torch.cat([h for h, _ in found])

    def at_most(split: Split, limit: int | None) -> Split:
        if limit is not None:
            limit = max(limit, len(split.labels.unique()))  # at least one of each class
        return split if limit is None or limit >= len(split) else split.take(limit)

    train, pairs = at_most(data.train, train_limit), at_most(data.test, pairs_limit)
    (train_h, train_y), (test_h, test_y) = features(train), features(data.test)
    knn1 = knn_accuracy(train_h, train_y, test_h, test_y, classes=len(data.classes))
    with frozen(method.projector):
        z = method.projector(test_h)
        z_a, z_b = (method.projector(of_view(name)) for name in ("alignment a", "alignment b"))
    return {"knn1": knn1, **representation_metrics(z, z_a, z_b)}, (z, z_a, z_b)

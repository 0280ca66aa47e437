"""One training step: augment two views, forward, loss, backward, update. On a GPU it is captured as a CUDA graph.

A step of a ResNet-18 on small images is thousands of launches of a few microseconds: a GPU waits for the host. After a
few ordinary steps the whole step is recorded once and then replayed with new images in the same memory. Nothing in it
waits for the device: learning rate and weight of the term are tensors, loss terms are summed on the device.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wassersteinssl import augment
from wassersteinssl.data import ImageSet
from wassersteinssl.method import Method
from wassersteinssl.settings import Settings

NAMES = ("loss", "uniformity")  # of the terms: the method's own and the added one
EAGER = 3  # ordinary steps before the capture, in which libraries choose their kernels and buffers get their memory


class NonFiniteLoss(FloatingPointError):
    """The loss is NaN or infinite; told before the weights are touched on a CPU, after the epoch elsewhere."""


class TrainingStep:
    """step(images, parameters) trains on a batch of uint8 images; `parameters` of each view as `augment.draw` gave.

    `sums` adds up the terms on the device; `alpha` is the weight of the uniformity term. The method's
    `after_step` is left to the caller.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        term: Callable[[Tensor], Tensor] | None,
        data: ImageSet,
        augmentation: augment.Augmentation,
        settings: Settings,
        device: torch.device,
    ):
        self.method, self.optimizer, self.term = method, optimizer, term
        self.augmentation, self.mean, self.std = augmentation, data.mean, data.std
        self.device, self.bf16 = device, settings.precision == "bf16"
        self.alpha = torch.zeros((), device=device)
        wide = torch.float32 if device.type == "mps" else torch.float64  # Apple GPUs have no float64
        self.sums = torch.zeros(len(NAMES), dtype=wide, device=device)
        self.check = device.type == "cpu"  # elsewhere looking at the loss would wait for it
        self.record = _record if device.type == "cuda" and settings.cuda_graph else None
        self._replay: Callable[[], Any] | None = None
        self._steps = 0
        if device.type == "cuda":
            torch.set_float32_matmul_precision("highest")  # no TF32: W2's solver and the paper's fp32 need the digits
            torch.backends.cudnn.benchmark = True
            place_lr(optimizer, device)

    def __call__(self, images: Tensor, parameters: Sequence[augment.Parameters]) -> None:
        self._steps += 1
        if self._replay is None and self.record is not None and self._steps > EAGER:
            self._capture(images, parameters)
        if self._replay is None:
            self._run(images, [p.to(self.device, non_blocking=True) for p in parameters])
            return
        self._images.copy_(images)
        for mine, new in zip(self._parameters, parameters, strict=True):
            pinned = new.table.pin_memory() if self.device.type == "cuda" else new.table
            mine.table.copy_(pinned, non_blocking=True)
        self._replay()

    def _run(self, images: Tensor, parameters: Sequence[augment.Parameters]) -> None:
        view_a, view_b = (
            augment.apply(images, p, self.augmentation, self.mean, self.std).contiguous(
                memory_format=torch.channels_last
            )
            for p in parameters
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeddings = self.method(view_a, view_b)
        embeddings = {name: e.float() for name, e in embeddings.items()}
        loss = self.method.loss(**embeddings)
        terms = [loss.detach()]
        if self.term is not None:
            uniformity = self.term(torch.cat([embeddings["z_a"], embeddings["z_b"]]))
            loss = loss + self.alpha * uniformity
            terms.append(uniformity.detach())
        if self.check and not loss.isfinite():
            raise NonFiniteLoss(", ".join(f"{name} {v.item():g}" for name, v in zip(NAMES, terms, strict=False)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.sums[: len(terms)] += torch.stack(terms)

    def _capture(self, images: Tensor, parameters: Sequence[augment.Parameters]) -> None:
        """Record the step on memory of its own; if that fails, say so and go on without."""
        assert self.record is not None
        self._images = images.clone()
        self._parameters = [augment.Parameters(p.table.to(self.device, copy=True)) for p in parameters]
        self.optimizer.zero_grad()  # the gradients must lie in the graph's memory
        try:
            self._replay = self.record(lambda: self._run(self._images, self._parameters))
        except RuntimeError as error:
            print(f"no CUDA graph ({str(error).splitlines()[0]}); training goes on without", file=sys.stderr)
        self.record = None


def place_lr(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Learning rates as tensors on a GPU, where a captured step reads them, as numbers elsewhere."""
    for group in optimizer.param_groups:
        lr = float(group["lr"])
        group["lr"] = torch.tensor(lr, device=device) if device.type == "cuda" else lr


def _record(run: Callable[[], None]) -> Callable[[], Any]:
    """A function that replays what `run` did on the GPU. Recording computes nothing."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay

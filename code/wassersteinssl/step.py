"""One training step: augment two views, forward, loss, backward, update. On a GPU it is captured as a CUDA graph.

A step of a ResNet-18 on small images is thousands of launches of a few microseconds each, so that a GPU would wait for
the host. Therefore the whole step is recorded once, after a few ordinary ones, and then replayed with new images in the
same memory. Nothing in it waits for the device: the learning rate and the weight of the term are tensors, loss terms
are summed on the device, and a number that is not finite stops the updates there until the host looks.
"""

import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

from wassersteinssl import augment, distributed
from wassersteinssl.augmentation import Augmentation
from wassersteinssl.cli import UserError, tell
from wassersteinssl.data import ImageSet
from wassersteinssl.device import move_into
from wassersteinssl.files import reason
from wassersteinssl.method import Method
from wassersteinssl.settings import Settings
from wassersteinssl.sliced import SLICES, random_directions
from wassersteinssl.w2 import w2_uniformity, wide_dtype

NAMES = ("loss", "uniformity")  # the terms: the method's own loss and the added one
EAGER = 3  # ordinary steps before the capture, for libraries to choose kernels and for buffers to get their memory


class NonFiniteLoss(FloatingPointError):
    """A loss or a gradient is NaN or infinite; no weight has been updated with it. Raised at once on a CPU, elsewhere
    at the end of the epoch or before the next checkpoint."""


class TrainingStep:
    """step(images, parameters) trains on a batch of uint8 images; `augment.draw` gives the `parameters` of each view.

    `sums` adds up the terms on the device; `finite_steps` counts the steps before the first with a number that is not
    finite; `batch` holds the last embeddings; `alpha` is the weight of the uniformity term. The caller calls the
    method's `after_step`, outside the graph: its momentum is a number that changes with each step, and its few
    operations are launched while the graph runs. With several processes, `images` are this one's share and the terms
    are those of the whole batch.
    """

    def __init__(
        self,
        method: Method,
        optimizer: torch.optim.Optimizer,
        term: Callable[[Tensor], Tensor] | None,
        data: ImageSet,
        augmentation: Augmentation,
        settings: Settings,
        device: torch.device,
    ):
        self.method, self.optimizer, self.term = method, optimizer, term
        self.network: Callable[..., Any] = distributed.network(method)
        self.augmentation, self.mean, self.std = augmentation, data.mean, data.std
        self.device, self.bf16 = device, settings.precision == "bf16"
        self.alpha = torch.zeros((), device=device)
        wide = wide_dtype(device)
        self.sums = torch.zeros(len(NAMES), dtype=wide, device=device)
        self.numbers = torch.zeros(len(NAMES) + 1, dtype=wide, device=device)  # the terms and the largest gradient
        self.finite = torch.ones((), dtype=torch.bool, device=device)  # whether all were finite in every step so far
        self.finite_steps = torch.zeros((), dtype=torch.long, device=device)
        self.check_every_step = device.type == "cpu"  # elsewhere to look at the numbers is to wait for them
        self.augment = augment.apply
        self.join = True  # both views in one call, which halves the launches
        if settings.compile != "no" and distributed.size() == 1:
            self.augment = compiled(augment.apply, "augmentation")
            self.join = device.type != "cpu"  # on a CPU two compiled calls of half the size are faster
        elif settings.compile != "no" and distributed.first():  # each one's share of a batch would compile anew
            tell("augmentation not compiled: there are several processes", sys.stderr)
        if settings.compile == "all":
            self.network = compiled(self.network, "networks")
            self.term = with_w2_compiled(term, device)
        self.record = _record if device.type == "cuda" and settings.cuda_graph == "auto" else None
        if self.record is not None and distributed.size() > 1:
            self.record = None
            if distributed.first():
                tell("no CUDA graph: with several processes every step is launched anew", sys.stderr)
        self._replay: Callable[[], Any] | None = None
        self._steps = 0
        place_lr(optimizer, device)

    def __call__(self, images: Tensor, parameters: Sequence[augment.Parameters]) -> None:
        self._steps += 1
        if self.join:
            parameters = augment.joined(parameters)
        if self._replay is None and self.record is not None and self._steps > EAGER:
            self._capture(images, parameters)
        if self._replay is None:
            self._run(images, [p.to(self.device) for p in parameters])
            return
        self._images.copy_(images)
        for mine, new in zip(self._parameters, parameters, strict=True):
            move_into(mine.table, new.table)
        self._replay()

    def _run(self, images: Tensor, parameters: Sequence[augment.Parameters]) -> None:
        repeated = images if len(parameters) == 2 else images.repeat(2, 1, 1, 1)
        views = [self.augment(repeated, p, self.augmentation, self.mean, self.std) for p in parameters]
        self.learn(*(views[0].chunk(2) if len(views) == 1 else views))

    def learn(self, view_a: Tensor, view_b: Tensor) -> None:
        """The rest of the step, on augmented and normalised views (b, 3, H, W)."""
        layout = self.method.backbone.layout  # converted once, for all networks that see the view
        view_a, view_b = (view.contiguous(memory_format=layout) for view in (view_a, view_b))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            embeddings = self.network(view_a, view_b)
        if not isinstance(embeddings, dict) or not {"z_a", "z_b"} <= embeddings.keys():
            raise UserError(
                f"{type(self.method).__name__}.forward must return a dict of embeddings, z_a and z_b among them"
            )
        embeddings = {name: distributed.gather(e.float()) for name, e in embeddings.items()}
        loss = self.method.loss(**embeddings)
        if not isinstance(loss, Tensor) or loss.ndim:
            raise UserError(f"{type(self.method).__name__}.loss must return a 0-d tensor")
        terms = [loss.detach()]
        z = torch.cat([embeddings["z_a"], embeddings["z_b"]])
        self.batch = z.detach()
        if self.term is not None:
            uniformity = self.term(z)
            loss = loss + self.alpha * uniformity
            terms.append(uniformity.detach())
        self.optimizer.zero_grad()
        loss.backward()
        self._guard(terms)
        self.optimizer.step()
        self.sums[: len(terms)] += torch.stack(terms)

    @torch.no_grad()
    def _guard(self, terms: list[Tensor]) -> None:
        """Prevent updates from the first step on whose terms or gradient are not finite."""
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        numbers = self.numbers.new_zeros(len(self.numbers))
        numbers[: len(terms)] = torch.stack(terms)
        numbers[-1] = torch.stack(torch._foreach_norm(gradients, torch.inf)).max()
        # Once a number is not finite, all are kept, to be reported.
        self.numbers.copy_(torch.where(self.finite, numbers, self.numbers))
        self.finite &= numbers.isfinite().all()
        self.finite_steps += self.finite
        if self.check_every_step:
            self.raise_if_not_finite()
            return
        # As integers, because NaN times zero is NaN, but its bits times zero are zero.
        torch._foreach_mul_([gradient.view(torch.int32) for gradient in gradients], self.finite.int())
        for group in self.optimizer.param_groups:
            group["lr"].mul_(self.finite)

    def state_dict(self) -> dict[str, Any]:
        """What a continuation needs besides the method's own state."""
        return {"optimizer": self.optimizer.state_dict(), "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a run was at step `state["step"]`."""
        self.optimizer.load_state_dict(state["optimizer"])
        place_lr(self.optimizer, self.device)
        self.sums.copy_(state["sums"])
        self.finite_steps.fill_(state["step"])

    def raise_if_not_finite(self) -> None:
        """NonFiniteLoss with the step, counted from 0 at the start of the run, if a number is not finite. Waits."""
        numbers = self.numbers.tolist()
        if not all(map(math.isfinite, numbers)):
            named = dict(zip((*NAMES, "gradient"), numbers, strict=True))
            if self.term is None:
                del named[NAMES[1]]
            told = ", ".join(f"{name} {value:g}" for name, value in named.items())
            raise NonFiniteLoss(f"not finite at step {int(self.finite_steps)}: {told}")

    def _capture(self, images: Tensor, parameters: Sequence[augment.Parameters]) -> None:
        """Record the step, on memory of its own. If that fails, say so and train without."""
        assert self.record is not None
        self._images = images.clone()
        self._parameters = [augment.Parameters(p.table.to(self.device, copy=True)) for p in parameters]
        self.optimizer.zero_grad()  # the gradients must lie in the graph's memory
        try:
            self._replay = self.record(lambda: self._run(self._images, self._parameters))
        except RuntimeError as error:  # its context is the first error; ending the capture raised another
            why = reason(error.__context__ or error)[:200]
            tell(f"no CUDA graph ({why}); training goes on without", sys.stderr)
        self.record = None


class SlicedTerm:
    """A measure on random directions as a term. `draw` writes new directions to where a recorded step finds them.
    Before the first `draw` they are NaN, which would stop the training."""

    def __init__(self, measure: Callable[..., Tensor], per_slice: int, m: int, device: torch.device):
        self.measure = measure
        self.directions = torch.full((per_slice, m, SLICES), torch.nan, dtype=wide_dtype(device), device=device)

    def draw(self, generator: torch.Generator) -> None:
        """Replace the directions, by a generator on the CPU."""
        move_into(
            self.directions,
            random_directions(*self.directions.shape, generator=generator, dtype=self.directions.dtype),
        )

    def __call__(self, z: Tensor) -> Tensor:
        return self.measure(z, directions=self.directions)


def compiled(function: Callable, name: str) -> Callable:
    """`function` through torch.compile. The first call compiles, and tells how long that took; if it fails, for want of
    a compiler say, it tells so and `function` is called as it is."""
    chosen: Callable | None = None

    def call(*arguments: Any) -> Any:
        nonlocal chosen
        if chosen is not None:
            return chosen(*arguments)
        chosen, start = torch.compile(function, dynamic=False), time.perf_counter()
        # Compile the backward pass now, too, where torch can: a failure later, in `backward`, would end the training.
        at_once = "force_non_lazy_backward_lowering"
        options = {at_once: True} if hasattr(functorch_config, at_once) else {}
        try:
            with warnings.catch_warnings(), functorch_config.patch(options):
                # the advice to use TF32 for matrix products, which must not
                warnings.filterwarnings("ignore", "TensorFloat32 tensor cores", UserWarning)
                result = chosen(*arguments)
        except Exception as error:
            tell(f"{name} not compiled ({reason(error)[:200]}); training goes on without", sys.stderr)
            chosen = function
            return function(*arguments)
        tell(f"{name} compiled in {time.perf_counter() - start:.1f} s", sys.stderr)
        return result

    return call


def with_w2_compiled(term: Callable | None, device: torch.device) -> Callable | None:
    """The term, compiled if it is W2 on a GPU, where it is many small operations (on a CPU it is LAPACK's work)."""
    return compiled(term, "W2") if term is w2_uniformity and device.type != "cpu" else term


def place_lr(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make learning rates numbers on a CPU, and tensors elsewhere, which the step reads without the host."""
    for group in optimizer.param_groups:
        lr = float(group["lr"])
        group["lr"] = lr if device.type == "cpu" else torch.tensor(lr, device=device)


def _record(run: Callable[[], None]) -> Callable[[], Any]:
    """A function that replays what `run` did on the GPU. Recording computes nothing."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # "thread_local", because a DataLoader's thread may pin memory meanwhile
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    finally:
        torch.cuda.set_stream(stream)  # also if ending the capture failed
    return graph.replay

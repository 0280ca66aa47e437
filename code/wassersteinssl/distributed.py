"""Several processes train one run, one a GPU (or a share of a CPU's cores):

    torchrun --nproc-per-node 4 code/BYOL/byol.py --batch-size 256

--batch-size is that of all processes together. Each takes its share of every batch, with the order and the augmentation
that a single process would use. The networks' batch-norm is synchronised and embeddings are gathered, so that every
process computes the losses of the whole batch and no method needs to know how many processes there are. Up to rounding
the weights are those of a single process. Only process 0 writes, prints and evaluates.
"""

import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wassersteinssl.cli import UserError, ending_signals, tell
from wassersteinssl.machine import environment_number

T = TypeVar("T")

PATIENCE = 20  # seconds for all processes to meet, before one says that it still waits
PREPARATION = timedelta(hours=12)  # how long the others wait while process 0 downloads and decodes
_patient: Any = None  # the group with this timeout; for everything else torch's default of minutes is right


def size() -> int:
    """The number of processes of this run, as torchrun started them."""
    return max(1, environment_number("WORLD_SIZE", 1))


def rank() -> int:
    return environment_number("RANK", 0) if size() > 1 else 0


def first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """The rank among this machine's processes, which tells the GPU to take."""
    return environment_number("LOCAL_RANK", 0)


def join() -> None:
    """Meet the other processes. They can communicate from here until `leave`, which all call together."""
    global _patient
    if os.environ.get("WORLD_SIZE") and not environment_number("WORLD_SIZE", 0):
        raise UserError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']!r}: start several processes with torchrun")
    if size() > 1:
        if rank() >= size():  # all would wait for each other
            raise UserError(f"RANK is {rank()}, WORLD_SIZE {size()}: start several processes with torchrun")
        missing = threading.Timer(PATIENCE, _tell_waiting)
        missing.daemon = True
        missing.start()
        # Python's handlers would not run while torch waits.
        before = {number: signal.signal(number, signal.SIG_DFL) for number in ending_signals()}
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        except (ValueError, dist.DistError) as error:  # RANK or MASTER_ADDR is missing or no number, the port taken
            raise UserError(f"WORLD_SIZE is {size()}, but {error}: start several processes with torchrun") from None
        finally:
            missing.cancel()
            for number, handler in before.items():
                signal.signal(number, handler)
        _patient = dist.new_group(backend="gloo", timeout=PREPARATION)


def _tell_waiting() -> None:
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    why = f"WORLD_SIZE is {size()}; without torchrun unset it"
    tell(f"process {rank()} still waits for the others at {where} ({why})", sys.stderr)


def leave() -> None:
    if size() > 1 and dist.is_initialized():
        gc.collect()  # a DistributedDataParallel that outlives its group may wait for gloo's thread for ever
        dist.destroy_process_group()


def lost(error: Exception) -> bool:
    """Whether the error says that another process has ended or cannot be reached; there is no class for that."""
    words = "connection|broken pipe|remote process|timed? ?out|peer"
    return size() > 1 and re.search(words, str(error), re.IGNORECASE) is not None


@contextmanager
def first_alone() -> Iterator[None]:
    """The block runs in process 0 first, then in the others. An error in process 0 ends all, told once. Each leaves
    then: Python would abort if it ended while a thread of torch is busy."""
    done = [False]
    if first():
        try:
            yield
            done = [True]
        finally:
            if size() > 1:
                dist.broadcast_object_list(done, group=_patient)
                if not done[0]:
                    leave()
        return
    dist.broadcast_object_list(done, group=_patient)
    if not done[0]:
        leave()
        sys.exit(2)
    yield


def from_first(make: Callable[[], T]) -> T:
    """Call `make` in process 0 and return its result in every process."""
    made: list[Any] = [None]
    with first_alone():
        if first():
            made = [make()]
    if size() > 1:
        dist.broadcast_object_list(made)
    return made[0]


def any_of(flag: bool) -> bool:
    """Whether `flag` is true in any process; all get the same answer. Waits for the other hosts, never for a GPU."""
    if size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def share(rows: Tensor) -> Tensor:
    """This process's rows of a batch whose length `size()` divides: (b, ...) -> (b / size, ...)."""
    return rows.chunk(size())[rank()]


def gather(rows: Tensor) -> Tensor:
    """The rows of all processes in the order of their ranks: (b / size, ...) -> (b, ...).

    Every process then computes the same loss. The backward pass multiplies the gradient by size(), which
    DistributedDataParallel's averaging over the processes undoes: the parameters get the gradient of that one loss.
    """
    return _Gather.apply(rows) if size() > 1 else rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return size() * share(gradient)


class _Sum(torch.autograd.Function):
    """The sum over the processes; in the backward pass the sum of their gradients."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return _Sum.apply(gradient)


def network(method: nn.Module) -> nn.Module:
    """What computes the method's embeddings: the method itself or, with several processes, a wrapper that averages the
    gradients; the networks' batch-norm is then synchronised. Parameters and their names in the state dict stay."""
    if size() == 1:
        return method
    device = next(method.parameters()).device
    for name, child in method.named_children():
        if not isinstance(child, _BatchNorm):  # a batch-norm of the method itself is in its loss, of the whole batch
            setattr(method, name, _synchronised(child, device))
    # Each forward pass also copies the buffers of the first process, such as a queue, to all others.
    return nn.parallel.DistributedDataParallel(method, device_ids=[device] if device.type == "cuda" else None)


def _synchronised(module: nn.Module, device: torch.device) -> nn.Module:
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = _SyncBatchNorm
    return module


class _SyncBatchNorm(_BatchNorm):
    """nn.SyncBatchNorm for CPUs: batch-norm with the moments of all processes' rows."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over = [0, *range(2, x.ndim)]  # x (b, channels, ...)
        n = x.numel() // x.shape[1] * size()

        def per_channel(values: Tensor) -> Tensor:
            return values.view(1, -1, *[1] * (x.ndim - 2))

        mine = torch.stack([x.float().mean(over), x.float().var(over, unbiased=False)])  # (2, channels)
        zeros = torch.zeros_like(mine)
        means, variances = _Sum.apply(torch.stack([mine if k == rank() else zeros for k in range(size())])).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        out = (x - per_channel(mean)) * per_channel((variance + self.eps).rsqrt())
        if self.affine:
            out = torch.addcmul(per_channel(self.bias), out, per_channel(self.weight))
        return out.to(x.dtype)

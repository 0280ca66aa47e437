"""What moves the weights: LARS, its schedule, and the moving average of a target network.

Everything here works on lists of tensors (torch._foreach_*) and never waits for the device, so that a training step
needs few launches and can be captured in a CUDA graph.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888) as the paper uses it.

    Of a weight w (two dimensions or more) with gradient g:

        d = g + weight_decay * w
        d = d * trust * ||w|| / ||d||      where both norms are > 0, else d is left as it is
        v = momentum * v + d
        w = w - lr * v

    Parameters of one dimension (biases, batch-norm) skip the first two lines: no decay, no adaptation. Norms are taken
    in float32 or more. A group's `lr` is a float, or a 0-d tensor on the device, into which `set_lr` writes so that a
    captured CUDA graph follows the schedule. Loading a state dict replaces that tensor: load first, then capture.
    """

    def __init__(
        self, params, lr: float | Tensor, *, momentum: float = 0.9, weight_decay: float = 1e-4, trust: float = 0.02
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust}
        for name, value in defaults.items():
            if not isinstance(value, Tensor) and not value >= 0:
                raise ValueError(f"LARS: {name} must be >= 0, not {value}")
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            self._step_weights([p for p in params if p.ndim > 1], group)
            self._step_vectors([p for p in params if p.ndim <= 1], group)
        return loss

    def _step_weights(self, weights: list[Tensor], group: dict) -> None:
        if not weights:
            return
        directions = list(torch._foreach_add(_gradients(weights), weights, alpha=group["weight_decay"]))
        w_norm, d_norm = _norms(weights), _norms(directions)  # (number of weights,)
        ratio = torch.where((w_norm > 0) & (d_norm > 0), group["trust"] * w_norm / d_norm, 1.0)
        velocities = self._velocities(weights)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcmul_(velocities, directions, list(ratio.to(directions[0].dtype).unbind()))
        _descend(weights, velocities, group["lr"])

    def _step_vectors(self, vectors: list[Tensor], group: dict) -> None:
        if not vectors:
            return
        velocities = self._velocities(vectors)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, _gradients(vectors))
        _descend(vectors, velocities, group["lr"])

    def _velocities(self, params: list[Tensor]) -> list[Tensor]:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return [self.state[p]["momentum_buffer"] for p in params]


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in params if p.grad is not None]


def _norms(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor, in float32 or more: bfloat16 would keep two digits."""
    half = tensors[0].dtype in (torch.float16, torch.bfloat16)
    return torch.stack(torch._foreach_norm(tensors, 2, dtype=torch.float32 if half else None))


def _descend(params: list[Tensor], velocities: list[Tensor], lr: float | Tensor) -> None:
    """w = w - lr * v. A learning rate on the device must not become a number, for which the host would wait."""
    if isinstance(lr, Tensor):
        torch._foreach_sub_(params, list(torch._foreach_mul(velocities, lr)))
    else:
        torch._foreach_add_(params, velocities, alpha=-lr)


def param_groups(
    modules: nn.Module | Iterable[nn.Module],
    weight_lr: float = 0.2,
    vector_lr: float = 0.005,
    *,
    batch_size: int = 256,
) -> list[dict]:
    """Two groups: weights, and parameters of one dimension (biases, batch-norm), which learn at a rate of their own.

    Both rates are for a batch of 256 and grow with the batch: lr * batch_size / 256. `base_lr` keeps the rate that the
    schedule multiplies. A parameter that two modules share is taken once, a frozen one not at all.
    """
    params = [p for p in _parameters(modules) if p.requires_grad]
    chosen = [([p for p in params if p.ndim > 1], weight_lr), ([p for p in params if p.ndim <= 1], vector_lr)]
    scaled = [(group, lr * batch_size / 256) for group, lr in chosen]
    return [{"params": group, "lr": lr, "base_lr": lr} for group, lr in scaled if group]


def _parameters(modules: nn.Module | Iterable[nn.Module]) -> list[Tensor]:
    """All parameters in order, each once."""
    modules = [modules] if isinstance(modules, nn.Module) else modules
    return list(dict.fromkeys(p for module in modules for p in module.parameters()))


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, final: float = 0.001) -> float:
    """Multiplier of the learning rate: step / warmup_steps up to warmup_steps, then a half cosine from 1 to `final`.

    q = (1 + cos(pi (step - warmup) / (total - warmup))) / 2,  multiplier = q + (1 - q) * final  (Barlow Twins' code).
    From total_steps on it stays at `final`. A run shorter than its warm-up never leaves the ramp.
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return final
    q = (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2
    return q + (1 - q) * final


def cosine_momentum(progress: float, start: float, end: float) -> float:
    """Momentum of a key or target network: half a cosine from `start` at progress 0 to `end` at 1 (BYOL)."""
    return end - (end - start) * (1 + math.cos(math.pi * min(progress, 1))) / 2


def set_lr(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """lr = base_lr * multiplier in every group; written in place where lr is a tensor."""
    for group in optimizer.param_groups:
        if "base_lr" not in group:  # read once, as reading a tensor waits for its device
            group["base_lr"] = float(group["lr"])
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(group["base_lr"] * multiplier)
        else:
            group["lr"] = group["base_lr"] * multiplier


@torch.no_grad()
def ema_update(
    target_modules: nn.Module | Iterable[nn.Module],
    online_modules: nn.Module | Iterable[nn.Module],
    momentum: float,
) -> None:
    """target = momentum * target + (1 - momentum) * online, for all parameters.

    Batch-norm's running statistics are not averaged: the target runs in training mode and gathers its own.
    """
    target, online = _parameters(target_modules), _parameters(online_modules)
    if [p.shape for p in target] != [p.shape for p in online]:
        raise ValueError("ema_update: target and online modules must have the same parameters in the same order")
    torch._foreach_lerp_(target, online, 1 - momentum)

"""Pre-training: the loop, on one screen."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wassersteinssl import augment
from wassersteinssl.data import ImageSet
from wassersteinssl.machine import peak_memory
from wassersteinssl.method import Method
from wassersteinssl.optim import LARS, param_groups, set_lr, warmup_cosine
from wassersteinssl.settings import Settings, UserError
from wassersteinssl.step import NAMES, NonFiniteLoss, TrainingStep, place_lr
from wassersteinssl.uniformity import MEASURES


def pretrain(
    method: Method,
    data: ImageSet,
    augmentation: augment.Augmentation,
    settings: Settings,
    device: torch.device,
    *,
    state: dict | None,
    save: Callable[[int, dict], Any],
    log: Callable[[dict], None],
    monitor: Callable[[], dict],
    stop: Callable[[], bool],
) -> float | None:
    """Train for settings.epochs; the seconds it took, over all continuations, or None if `stop()` asked for an end.

    `state` continues a run, bitwise on a CPU: order and augmentation are functions of (seed, epoch, step). `save(step,
    state)` is called after every epoch and before an end, `log(line)` with the means of every epoch.
    """
    split = (data.unlabeled or data.train).to(device)
    n, batch_size, seed = len(split), settings.batch_size, settings.seed
    steps = n // batch_size  # an epoch's; what is left of the order is dropped
    optimizer = LARS(
        param_groups(method, settings.weight_lr, settings.vector_lr, batch_size=batch_size), lr=settings.weight_lr
    )
    total, warmup_steps = settings.epochs * steps, round(settings.warmup * steps)
    term, alpha_max, alpha_min = uniformity_term(method, settings)
    train = TrainingStep(method, optimizer, term, data, augmentation, settings, device)
    done, seconds = 0, 0.0  # steps and time so far
    if state is not None:
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
        place_lr(optimizer, device)
        train.sums.copy_(state["sums"])
        done, seconds = state["step"], state["seconds"]

    def snapshot() -> dict:
        return {
            "method": method.state_dict(),
            "optimizer": optimizer.state_dict(),
            "sums": train.sums,  # of the terms in this epoch
            "step": done,
            "logged": done // steps,  # lines of metrics.jsonl
            "seconds": seconds + time.perf_counter() - start,
        }

    method.train()
    start = time.perf_counter()
    bar = tqdm(
        total=total * batch_size, initial=done * batch_size, desc="pretrain", unit=" images", unit_scale=True,
        smoothing=0.05, disable=None,
    )  # fmt: skip
    for epoch in range(done // steps, settings.epochs):
        began, first = time.perf_counter(), done % steps
        alpha = alpha_max - epoch * (alpha_max - alpha_min) / settings.epochs
        train.alpha.fill_(alpha)
        order = torch.randperm(n, generator=augment.generator(seed, epoch, 0, "order")).split(batch_size)[first:steps]
        for step, (images, _) in enumerate(split.batches(order, device), first):
            set_lr(optimizer, warmup_cosine(done, total, warmup_steps))
            views = [
                augment.draw(augmentation, len(images), split.size, augment.generator(seed, epoch, step, view))
                for view in "ab"
            ]
            try:
                train(images, views)
            except NonFiniteLoss as error:
                raise NonFiniteLoss(f"not finite in epoch {epoch}, step {step}: {error}") from None
            done += 1
            method.after_step(done / total)
            bar.update(batch_size)
            if device.type == "cpu" and not bar.disable:  # elsewhere once an epoch: reading the loss would stall
                bar.set_postfix(_shown(epoch, train.sums / (step + 1), term), refresh=False)
            if stop() and done % steps:
                save(done, snapshot())
                bar.close()
                return None
        means = (train.sums / steps).tolist()
        if not all(map(math.isfinite, means)):
            raise NonFiniteLoss(f"not finite in epoch {epoch}: {_shown(epoch, means, term)}")
        took = time.perf_counter() - began
        line = {"epoch": epoch, "loss": means[0], "lr": warmup_cosine(done - 1, total, warmup_steps)}
        if term is not None:
            line |= {"loss_uniformity": means[1], "alpha": alpha}
        line |= {"seconds": took, "images_per_second": (steps - first) * batch_size / took}
        line |= {"peak_memory_mb": round(peak_memory(device) / 2**20)}
        if settings.monitor_every and ((epoch + 1) % settings.monitor_every == 0 or epoch + 1 == settings.epochs):
            line |= monitor()
        bar.set_postfix(_shown(epoch, means, term))
        if bar.disable:
            left = (total - done) / steps * took / 60
            print("  ".join(f"{k} {v:.5g}" for k, v in line.items()) + f"  left {left:.1f} min", flush=True)
        train.sums.zero_()
        log(line)
        save(done, snapshot())
        if stop() and done < total:
            bar.close()
            return None
    bar.close()
    return seconds + time.perf_counter() - start


def uniformity_term(method: Method, settings: Settings) -> tuple[Callable[[Tensor], Tensor] | None, float, float]:
    """The term to add and its weight at the start and the end. UserError if there is no such term or weight."""
    name = settings.uniformity
    if name == "none":
        return None, 0.0, 0.0
    usable = [key for key, measure in MEASURES.items() if measure.loss]
    if name not in usable:
        raise UserError(f"unknown --uniformity {name!r}: choose from none, {', '.join(usable)}")
    alpha_max, alpha_min = settings.alpha_max, settings.alpha_min
    if alpha_max is None:
        if name not in method.ALPHA:
            raise UserError(f"no default weight for --uniformity {name} with this method: give --alpha-max")
        alpha_max, default_min = method.ALPHA[name]
        alpha_min = default_min if alpha_min is None else alpha_min
    return MEASURES[name].function, alpha_max, alpha_max if alpha_min is None else alpha_min


def _shown(epoch: int, terms: Any, term: Any) -> dict[str, str]:
    """The mean terms of an epoch, for the progress bar."""
    names = NAMES if term is not None else NAMES[:1]
    return {"epoch": str(epoch), **{name: f"{float(v):.3f}" for name, v in zip(names, terms, strict=False)}}

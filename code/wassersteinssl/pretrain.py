"""Pre-training: the loop."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from wassersteinssl import augment, checkpoint, distributed
from wassersteinssl.augmentation import Augmentation
from wassersteinssl.cli import UserError, tell
from wassersteinssl.data import ImageSet
from wassersteinssl.device import fits, peak_memory
from wassersteinssl.method import Method
from wassersteinssl.optim import LARS, param_groups, set_lr, warmup_cosine
from wassersteinssl.settings import TERMS, Settings
from wassersteinssl.step import NAMES, SlicedTerm, TrainingStep
from wassersteinssl.uniformity import MEASURES
from wassersteinssl.w2 import w2_uniformity

FULL_RANK = ("kl", "reverse_kl", "jeffreys", "bhattacharyya")  # terms with a determinant or an inverse
COLLAPSED = 0.99 * math.sqrt(2)  # a batch whose W2 exceeds this has nearly equal rows
TELL_SECONDS = 300.0  # between progress lines within an epoch, where no bar is shown


def pretrain(
    method: Method,
    data: ImageSet,
    augmentation: Augmentation,
    settings: Settings,
    device: torch.device,
    *,
    state: dict | None,
    save: Callable[[int, dict], Any],
    log: Callable[[dict], None],
    monitor: Callable[[], dict],
    stop: Callable[[], bool],
) -> float | None:
    """Train for settings.epochs. Returns the seconds spent, over all continuations, or None if `stop()` became true.

    `state` continues an earlier run, bitwise on a CPU: everything random is a function of (seed, epoch, step).
    `save(step, state)` is called as often as the settings say and before stopping, `log(line)` after every epoch with
    its means. With several processes, each calls this with the same arguments; only the first one uses `save`, `log`
    and `monitor`.
    """
    split = data.unlabeled or data.train
    if split.images is not None and fits(split.images.nbytes, device):  # otherwise they move batch by batch
        split = split.to(device)
    n, batch_size, seed = len(split), settings.batch_size, settings.seed
    steps = n // batch_size  # per epoch; the last, incomplete batch is dropped
    optimizer = LARS(
        param_groups(method, settings.weight_lr, settings.vector_lr, batch_size=batch_size), lr=settings.weight_lr
    )
    total, warmup_steps = settings.epochs * steps, round(settings.warmup * steps)
    term, alpha_max, alpha_min = uniformity_term(method, settings)
    if term is not None and (per_slice := MEASURES[settings.uniformity].directions_per_slice):
        term = SlicedTerm(term, per_slice, settings.dim, device)
    train = TrainingStep(method, optimizer, term, data, augmentation, settings, device)
    done, seconds, epoch_seconds = 0, 0.0, 0.0  # steps, time and time of this epoch, before this start
    collapsed = 0  # consecutive epochs whose last batch had collapsed
    if state is not None:
        with checkpoint.fitting():
            method.load_state_dict(state["method"])
            train.load_state_dict(state)
            done, seconds, epoch_seconds = state["step"], state["seconds"], state["epoch_seconds"]
            collapsed = state["collapsed"]
    first_process, pace = distributed.first(), checkpoint.Pace(settings.checkpoint_epochs, settings.checkpoint_minutes)

    def save_checkpoint() -> None:
        train.raise_if_not_finite()  # bad numbers are never kept
        with pace.writing():
            if first_process:
                now = time.perf_counter()
                save(done, {
                    "method": method.state_dict(), **train.state_dict(), "step": done, "logged": done // steps,
                    "seconds": seconds + now - start, "collapsed": collapsed,
                    "epoch_seconds": epoch_seconds + now - epoch_start if done % steps else 0.0,
                })  # fmt: skip

    method.train()
    resumed_at = done
    start = told = time.perf_counter()
    with _bar(total * batch_size, done * batch_size, first_process) as bar:
        for epoch in range(done // steps, settings.epochs):
            epoch_start, first_step = time.perf_counter(), done % steps
            alpha = alpha_max - epoch * (alpha_max - alpha_min) / settings.epochs
            train.alpha.fill_(alpha)
            order = torch.randperm(n, generator=augment.generator(seed, epoch, 0, "order")).split(batch_size)
            batches = [distributed.share(batch) for batch in order[first_step:steps]]
            for step, (images, _) in enumerate(split.batches(batches, device), first_step):
                set_lr(optimizer, warmup_cosine(done, total, warmup_steps))
                views = [
                    augment.draw(augmentation, batch_size, split.size, augment.generator(seed, epoch, step, view))
                    for view in "ab"
                ]
                if isinstance(term, SlicedTerm):
                    term.draw(augment.generator(seed, epoch, step, "directions"))
                train(images, [view.share(distributed.rank(), distributed.size()) for view in views])
                done += 1
                method.after_step(done / total)
                bar.update(batch_size)
                if device.type == "cpu" and not bar.disable:  # on a GPU once an epoch: reading the loss would stall it
                    bar.set_postfix(_shown(epoch, train.sums / (step + 1), term, collapsed), refresh=False)
                if bar.disable and first_process and (now := time.perf_counter()) - told >= TELL_SECONDS:
                    told, left = now, (now - start) / (done - resumed_at) * (total - done)
                    tell(f"epoch {epoch}, {step + 1} of {steps} steps  left of pre-training {left / 60:.1f} min")
                stopping = stop()
                # Every process has its own clock; the first one decides, as it alone writes and reports bad numbers.
                if done % steps and (stopping or (first_process and pace.overdue())):
                    save_checkpoint()
                    if stopping:
                        return None
            train.raise_if_not_finite()
            last, nth = epoch + 1 == settings.epochs, epoch + 1
            if first_process:
                means, took = (train.sums / steps).tolist(), time.perf_counter() - epoch_start
                w2_batch = w2_uniformity(train.batch).item()  # of the last batch
                collapsed = collapsed + 1 if w2_batch > COLLAPSED else 0
                line = {
                    "epoch": epoch, "loss": means[0],
                    "lr": optimizer.param_groups[0]["base_lr"] * warmup_cosine(done - 1, total, warmup_steps),
                    **({} if term is None else {"loss_uniformity": means[1], "alpha": alpha}),
                    "seconds": epoch_seconds + took, "images_per_second": (steps - first_step) * batch_size / took,
                    "peak_memory_mb": round(peak_memory(device) / 2**20), "w2_batch": w2_batch,
                    **({"collapsed_epochs": collapsed} if collapsed > 1 else {}),
                }  # fmt: skip
                if settings.monitor_every and (nth % settings.monitor_every == 0 or last):
                    line |= _timed(monitor)
                bar.set_postfix(_shown(epoch, means, term, collapsed))
                told = time.perf_counter()
                _tell_epoch(bar, line, minutes_left=(total - done) * batch_size / line["images_per_second"] / 60)
                log(line)
            train.sums.zero_()
            epoch_seconds, stopping = 0.0, stop()
            if last:  # the caller saves the trained network, which needs nothing else
                break
            if stopping or pace.after_epoch(nth):
                save_checkpoint()
            if stopping:
                return None
    optimizer.zero_grad()  # on a GPU the gradients keep the memory of the recorded step alive
    return seconds + time.perf_counter() - start


def _timed(monitor: Callable[[], dict]) -> dict:
    start = time.perf_counter()
    return monitor() | {"monitor_seconds": time.perf_counter() - start}


def _tell_epoch(bar: tqdm, line: dict[str, float], minutes_left: float) -> None:
    """Print an epoch's line where no bar is shown, and warn once of a collapse."""
    if line.get("collapsed_epochs") == 2:
        with bar.external_write_mode(file=sys.stderr):
            tell("collapse: since two epochs W2 of a batch is within 1 % of sqrt 2", sys.stderr)
    if bar.disable:
        tell("  ".join(f"{k} {v:.5g}" for k, v in line.items()) + f"  left of pre-training {minutes_left:.1f} min")


def _bar(total: int, initial: int, shown: bool) -> tqdm:
    return tqdm(
        total=total, initial=initial, desc="pretrain", unit=" images", unit_scale=True, smoothing=0.05,
        disable=None if shown else True,
    )  # fmt: skip


def uniformity_term(method: Method, settings: Settings) -> tuple[Callable[[Tensor], Tensor] | None, float, float]:
    """The term to add to the loss, with its weight at the start and at the end. UserError if either is unknown."""
    name = settings.uniformity
    if name == "none":
        return None, 0.0, 0.0
    if name not in TERMS:
        raise UserError(f"unknown --uniformity {name!r}: choose from none, {', '.join(TERMS)}")
    if name in FULL_RANK and 2 * settings.batch_size <= settings.dim:
        raise UserError(
            f"--uniformity {name} is infinite where the {2 * settings.batch_size} rows of a batch's views do not span "
            f"the {settings.dim} dimensions: raise --batch-size or lower --dim"
        )
    if name in FULL_RANK and settings.hidden_dim + 1 < settings.dim:  # the last layer adds a bias
        raise UserError(
            f"--uniformity {name} is infinite where {settings.hidden_dim} hidden features do not span the "
            f"{settings.dim} dimensions: raise --hidden-dim or lower --dim"
        )
    alpha_max, alpha_min = settings.alpha_max, settings.alpha_min
    if alpha_max is None:
        if name not in method.ALPHA:
            raise UserError(
                f"no default weight for --uniformity {name} with this method: give --alpha-max (a grid: --weights)"
            )
        alpha_max, default_min = method.ALPHA[name]
        alpha_min = default_min if alpha_min is None else alpha_min
    return MEASURES[name].function, alpha_max, alpha_max if alpha_min is None else alpha_min


def _shown(epoch: int, terms: Any, term: Any, collapsed: int) -> dict[str, str]:
    """What the progress bar shows: the epoch's mean terms, and whether the embeddings have collapsed."""
    names = NAMES if term is not None else NAMES[:1]
    warning = {"COLLAPSED": f"{collapsed} epochs"} if collapsed > 1 else {}
    return {"epoch": str(epoch), **{name: f"{float(v):.3f}" for name, v in zip(names, terms, strict=False)}, **warning}

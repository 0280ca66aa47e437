"""A run: pre-training, then evaluation, inside a folder. The same command continues an unfinished run.

Exit status: 0 done; 2 a user's mistake or a full disk; 3 a loss or gradient is not finite; 75 stopped, to be continued,
by a signal or because another process was lost; 130 stopped at once by a second Ctrl-C.
"""

import contextlib
import dataclasses
import errno
import inspect
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from wassersteinssl import checkpoint, data, distributed, evaluate, results
from wassersteinssl.augmentation import Augmentation, crop_only, usual
from wassersteinssl.cli import STOPPED, UserError, ending_signals, last_words, tell
from wassersteinssl.device import find_device, hardware, out_of_memory
from wassersteinssl.encoder import readable, save_encoder
from wassersteinssl.files import reason
from wassersteinssl.method import Method
from wassersteinssl.pretrain import pretrain, uniformity_term
from wassersteinssl.run_folder import RunFolder, run_path
from wassersteinssl.settings import MONITOR_IMAGES, MONITOR_PAIRS, Settings
from wassersteinssl.uniformity import MEASURES

TELL_SECONDS = 60.0  # between progress lines of the linear evaluation, where no bar is shown


def main(method_class: type[Method], settings: Settings) -> NoReturn:
    """Do what the settings ask for and exit with the status of this module's docstring."""
    try:
        _main(method_class, settings)
    except RuntimeError as error:  # raised wherever the main thread is, even while it tells another error
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        _decoder_died(error)


def _main(method_class: type[Method], settings: Settings) -> NoReturn:
    try:
        finished = execute(method_class, settings)
    except UserError as error:
        _exit(2, "error", error)
    except FloatingPointError as error:
        _exit(3, "failed", error, everywhere=False)
    except (ConnectionResetError, EOFError) as error:  # a worker was killed while it handed over images
        _decoder_died(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            where = "" if error.filename is None else f"{error.filename}: "
            _exit(2, "error", f"{where}{reason(error)}")
        _exit(2, "stopped", "the disk is full; make room, and the same command continues from the last checkpoint")
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            _exit(2, "error", f"out of memory: {reason(error)[:200]}; try a smaller --batch-size or --width")
        if not distributed.lost(error):
            raise
        why = f"another process of the run has ended ({reason(error)[:200]})"
        _exit(STOPPED, "stopped", f"{why}; the same command continues the run")
    except KeyboardInterrupt:
        _exit(130, "stopped", "at the second Ctrl-C; the last checkpoint is kept", everywhere=False)
    if not finished:
        _heed_no_signal()
    sys.exit(0 if finished else STOPPED)


def _heed_no_signal() -> None:
    """Python takes seconds to end. Another signal then, as torchrun's once one process has ended, would change the
    status and say something else."""
    for number in ending_signals():
        signal.signal(number, signal.SIG_IGN)


def _decoder_died(error: Exception) -> NoReturn:
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise the error again
    _exit(2, "error", f"a process that decodes images has died, for want of memory? ({reason(error)[:200]})")


def _exit(status: int, kind: str, why: Any, *, everywhere: bool = True) -> NoReturn:
    """Say why in one line and exit. `everywhere` False: all processes raise this error, and only process 0 tells it."""
    if callable(signal.getsignal(signal.SIGTERM)):  # a program's own; a notebook goes on and needs its signals
        _heed_no_signal()
    if everywhere or distributed.first():
        where = "" if distributed.first() else f" (process {distributed.rank()})"
        last_words(f"{Path(sys.argv[0]).name}: {kind}{where}: {why}")
    sys.exit(status)


def execute(method_class: type[Method], settings: Settings) -> bool:
    """Pre-train and evaluate in the run's folder. Returns whether all that was asked for is done."""
    name = method_class.__name__
    distributed.join()
    with contextlib.ExitStack() as stack:
        with distributed.first_alone():  # a user's mistake is told once, before the others begin
            job = _prepare(method_class, settings)
            if distributed.first():
                if job.folder.finished():  # nothing will be written
                    job.folder.compare()
                else:
                    stack.enter_context(job.folder)
        if distributed.from_first(job.folder.finished):
            if distributed.first():
                result = json.loads(job.folder.result.read_text())
                tell(f"done already: {_told(job.folder.path, result)}")
                job.folder.tell_if_edited(result["config"])
            distributed.leave()
            return True
        signals = stack.enter_context(Signals())
        job.stop = lambda: distributed.any_of(signals.stop())
        job.state = distributed.from_first(job.restored)
        if distributed.first():
            images = f"{len(job.images.unlabeled or job.images.train)} training and {len(job.images.test)} test images"
            tell(
                f"{name}, uniformity {settings.uniformity}: {images} of {settings.dataset_name or settings.dataset}, "
                f"epochs: {settings.epochs}, {hardware(job.device)}; run folder {job.folder.path}"
            )
        try:
            finished = job.pretrain()
            distributed.leave()
            job.stop = signals.stop
            if not distributed.first():
                return finished
            finished = finished and (settings.stage == "pretrain" or job.evaluate())
        except (MemoryError, RuntimeError) as error:
            if not (out_of_memory(error) and job.state is not None and "probe" in job.state):
                raise
            advice = "" if job.device.type == "cpu" else ": the same command with --device cpu"
            why = f"out of memory in the evaluation: {reason(error)[:200]}"
            raise UserError(f"{why}; the training is kept, try where there is more{advice}") from None
        except FloatingPointError as error:
            if distributed.first():
                last = job.folder.fail(str(error))
                error.args = (f"{error}; last good checkpoint: {last or 'none yet'} in {job.folder.path}",)
            raise
        if not finished:
            if not job.folder.saved:
                raise UserError(
                    f"{job.folder.path}: stopped without a new checkpoint; make room, then the same command"
                )
            tell(f"{job.folder.path}: stopped, checkpoint written; the same command continues it", sys.stderr)
        return finished


def _prepare(method_class: type[Method], settings: Settings) -> "Job":
    """Images, networks and folder of a run. UserError for every mistake that shows before anything is written."""
    device, name = find_device(settings.device), method_class.__name__
    folder = RunFolder(run_path(name, settings), name, settings, _program(method_class))
    if settings.stage == "evaluate" and not (folder.path.is_dir() and results.begun(folder.path)):
        raise UserError(f"{folder.path} holds no finished pre-training to evaluate")
    folder.compare()
    if settings.batch_size % distributed.size():
        raise UserError(f"--batch-size {settings.batch_size} is of all {distributed.size()} processes: not divisible")
    images = data.load(
        settings.dataset, settings.data_dir, limit_train=settings.limit_train, normalization=settings.normalization
    )  # fmt: skip
    n = len(images.unlabeled or images.train)
    if settings.batch_size > n:
        raise UserError(f"--batch-size {settings.batch_size} exceeds the {n} training images")
    if len(images.test) < 2:
        raise UserError(f"one test image in {settings.data_dir}: the measures need at least 2")
    share = float(images.test.labels.bincount().max()) / len(images.test)
    if len(images.classes) < 2 and distributed.first():
        tell("one class: accuracies will say nothing", sys.stderr)
    elif share > 1.5 / len(images.classes) and distributed.first():
        tell(f"{100 * share:.1f} % of the test images are of one class: read accuracies beside this", sys.stderr)
    torch.manual_seed(settings.seed)
    method = method_class(settings)
    if distributed.first() and not readable(method, dataclasses.asdict(settings)):
        why = "backbone or projector are not those of --width, --hidden-dim and --dim"
        tell(f"{why}: load_encoder and audits will not read this run", sys.stderr)
    term, *alpha = uniformity_term(method, settings)
    method.place(device)
    augmentation = usual(settings.dataset)
    folder.describe(images.record(), None if term is None else (alpha[0], alpha[1]), augmentation)
    return Job(method, images, augmentation, settings, device, folder)


def _program(method_class: type[Method]) -> Path | None:
    """The method's file; None if it has none, as in a notebook."""
    try:
        path = Path(inspect.getfile(method_class))
    except (TypeError, OSError):
        return None
    return path if path.is_file() else None


@dataclasses.dataclass
class Job:
    """The two stages of a run. `state` is its last checkpoint, which holds "probe" once pre-training is done. Every
    process has a job and pre-trains; only the first one opens and writes the folder, and evaluates."""

    method: Method
    images: data.ImageSet
    augmentation: Augmentation
    settings: Settings
    device: torch.device
    folder: RunFolder
    state: dict | None = None
    stop: Callable[[], bool] = lambda: False

    def restored(self) -> dict | None:
        """The last checkpoint."""
        state = self.folder.restored()
        if self.settings.stage == "evaluate" and (state is None or "probe" not in state):
            raise UserError(f"{self.folder.path} holds no finished pre-training to evaluate")
        return state

    def pretrain(self) -> bool:
        """Train, or take the trained network from the checkpoint; False if stopped."""
        if self.state is not None and "probe" in self.state:
            with checkpoint.fitting():
                self.method.load_state_dict(self.state["method"])
                wanted = ("method", "probe", "pretrain_seconds", "evaluate_seconds", "device")
                self.state = {key: self.state[key] for key in wanted}
            return True
        if distributed.first():
            self.folder.truncate_metrics(self.state["logged"] if self.state else 0)
        earlier = self.state["devices"] if self.state else []
        devices = list(dict.fromkeys([*earlier, hardware(self.device)]))  # all on which the run has trained
        seconds = pretrain(
            self.method, self.images, self.augmentation, self.settings, self.device, state=self.state,
            save=lambda step, state: self.folder.save(step, state | {"devices": devices}), log=self.folder.log,
            monitor=lambda: self.measure(MONITOR_IMAGES, MONITOR_PAIRS)[0], stop=self.stop,
        )  # fmt: skip
        if seconds is None:
            return False
        if not distributed.first():
            return True
        encoder = self.folder.path / "encoder.safetensors"
        save_encoder(encoder, self.method, self.folder.config, self.images.mean, self.images.std)
        self.state = {
            "method": self.method.state_dict(),
            "probe": None,
            "pretrain_seconds": seconds,
            "evaluate_seconds": 0.0,
            "device": " and ".join(devices),
        }
        self.folder.save(self.settings.epochs * self.steps() + 1, self.state)
        return True

    def evaluate(self) -> bool:
        """Linear evaluation, kNN and Table 2's measures, written to result.json; False if stopped."""
        assert self.state is not None
        since = time.perf_counter() - self.state["evaluate_seconds"]  # earlier parts count, too
        probe = self._linear_probe(self.state, since)
        if not probe["complete"]:
            return False
        with tqdm(total=1 + len(MEASURES), desc="measures", disable=None) as bar:
            measures, embeddings = self.measure()
            bar.update()
            self.folder.save_correct(probe["correct"])
            self.folder.save_spectrum(embeddings[0])
            self.folder.save_measures(evaluate.every_measure(*embeddings, on_measure=bar.update))
        result = self._result(self.state, probe, measures, time.perf_counter() - since)
        self.folder.finish(result)
        tell(_told(self.folder.path, result))
        return True

    def _linear_probe(self, state: dict, since: float) -> dict:
        """The linear evaluation, continued from `state`, with checkpoints, and a progress bar or lines."""
        settings, start = self.settings, time.perf_counter()
        with checkpoint.fitting():
            done_before = len(state["probe"]["history"]) if state["probe"] else 0
        bar = tqdm(total=settings.linear_epochs, initial=done_before, desc="linear evaluation", unit="epoch",
                   disable=None)  # fmt: skip
        if bar.disable:
            tell(f"linear evaluation, {settings.linear_epochs - done_before} epochs, then kNN and all measures")
        pace = checkpoint.Pace(settings.checkpoint_epochs, settings.checkpoint_minutes)
        told = start

        def save(probe: dict) -> None:
            with pace.writing():
                step = settings.epochs * self.steps() + 1 + probe["probe"]["step"]
                self.folder.save(step, {**state, "probe": probe, "evaluate_seconds": time.perf_counter() - since})

        def on_epoch(probe: dict) -> None:
            nonlocal told
            done, acc1, now = len(probe["history"]), probe["history"][-1]["acc1"], time.perf_counter()
            if done == settings.linear_epochs or pace.after_epoch(done):
                save(probe)
            bar.set_postfix(acc1=f"{acc1:.2f}")
            bar.update()
            if bar.disable and now - told >= TELL_SECONDS:
                told, left = now, (now - start) / (done - done_before) * (settings.linear_epochs - done)
                tell(f"linear evaluation, epoch {done - 1}  acc1 {acc1:.2f}  left of it {left / 60:.1f} min")

        def should_stop(so_far: Callable[[], dict]) -> bool:
            stopping = self.stop()
            if stopping or pace.overdue():
                save(so_far())
            return stopping

        with bar:
            return evaluate.linear_probe(
                self.method.backbone, self.images, crop=crop_only(self.augmentation),
                epochs=settings.linear_epochs, seed=settings.seed, device=self.device, precision=settings.precision,
                state=state["probe"], on_epoch=on_epoch, should_stop=should_stop,
            )  # fmt: skip

    def _result(self, state: dict, probe: dict, measures: dict[str, float], evaluate_seconds: float) -> dict:
        """The content of result.json."""
        settings, here = self.settings, hardware(self.device)
        return {
            "method": type(self.method).__name__,
            "uniformity": settings.uniformity,
            "dataset": settings.dataset_name or settings.dataset,
            "seed": settings.seed,
            "epochs": settings.epochs,
            **{key: probe[key] for key in ("acc1", "acc5", "best_acc1")},
            **measures,
            "n_test": len(self.images.test),
            "dim": settings.dim,
            "pretrain_seconds": state["pretrain_seconds"],
            "evaluate_seconds": evaluate_seconds,
            "images_per_second": (  # an image counts once, though two views of it are trained on
                self.steps() * settings.batch_size * settings.epochs / state["pretrain_seconds"]
            ),
            "device": state["device"],  # of pre-training
            **({"evaluate_device": here} if here != state["device"] else {}),
            "complete": True,
            "config": self.folder.config,
        }

    def measure(
        self, train_limit: int | None = None, pairs_limit: int | None = None
    ) -> tuple[dict[str, float], tuple[torch.Tensor, ...]]:
        try:
            return evaluate.measure(
                self.method, self.images, self.augmentation, train_limit=train_limit,
                pairs_limit=pairs_limit, seed=self.settings.seed, device=self.device, precision=self.settings.precision,
            )  # fmt: skip
        except ValueError as error:  # rows that are not finite
            raise FloatingPointError(f"embeddings of the test images: {error}") from None

    def steps(self) -> int:
        """Steps of an epoch of pre-training."""
        return len(self.images.unlabeled or self.images.train) // self.settings.batch_size


class Signals:
    """Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2, SIGHUP ask for a checkpoint and an end; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in ending_signals():
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def stop(self) -> bool:
        return self._asked


def _told(path: Path, result: dict) -> str:
    """The result in a line."""
    shown = ("acc1", "acc5", "best_acc1", "knn1", "w2", "w2_floor", "lu", "alignment")
    return f"{path}: " + "  ".join(f"{key} {result[key]:.4g}" for key in shown if isinstance(result.get(key), float))

"""A run: its folder, and pre-training then evaluation inside it.

A run folder holds config.json (settings, versions, command), metrics.jsonl (a line an epoch), checkpoints,
encoder.safetensors, spectrum.npy and, when all is done, result.json. The same command continues an unfinished run.

Exit status: 0 done, 2 a user's mistake, 3 the loss stopped being finite, 75 stopped by a signal and to be continued.
"""

import dataclasses
import json
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch

from wassersteinssl import __version__, augment, checkpoint, data, evaluate
from wassersteinssl.files import write_atomically
from wassersteinssl.method import Method
from wassersteinssl.pretrain import NonFiniteLoss, pretrain, uniformity_term
from wassersteinssl.settings import Settings, UserError
from wassersteinssl.vision import torchvision

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

REPOSITORY = Path(__file__).resolve().parents[2]
STOPPED = 75  # "temporary failure": a scheduler may start the same command again


def main(method_class: type[Method], settings: Settings) -> NoReturn:
    """Do what the settings ask for and exit with the status of this module's docstring."""
    program = Path(sys.argv[0]).name
    try:
        finished = execute(method_class, settings)
    except UserError as error:
        sys.exit(_last_word(program, "error", error, 2))
    except NonFiniteLoss as error:
        sys.exit(_last_word(program, "failed", error, 3))
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        sys.exit(_last_word(program, "error", f"out of memory: {reason}; try a smaller --batch-size", 2))
    sys.exit(0 if finished else STOPPED)


def execute(method_class: type[Method], settings: Settings) -> bool:
    """Pre-train and evaluate in the run's folder; whether all of it is done."""
    name = method_class.__name__
    device = _device(settings.device)
    if settings.dataset == "folder" and not settings.data_dir:
        raise UserError("--dataset folder needs --data-dir, the folder that holds train/<class>/* and test/<class>/*")
    images = data.load(
        settings.dataset, settings.data_dir or REPOSITORY / "data",
        limit_train=settings.limit_train, normalization=settings.normalization,
    )  # fmt: skip
    if settings.batch_size > len(images.train):
        raise UserError(f"--batch-size {settings.batch_size} exceeds the {len(images.train)} training images")
    augmentation = augment.FOR_DATASET.get(settings.dataset, augment.Augmentation())
    torch.manual_seed(settings.seed)
    method = method_class(settings)
    uniformity_term(method, settings)  # complains before anything is written
    method.to(device, memory_format=torch.channels_last)
    with RunFolder(_run_path(name, settings), name, settings) as folder, _Signals() as signals:
        if folder.result.exists():
            print(f"{folder.path}: done already")
            return True
        state = checkpoint.load(folder.path)

        def measures(train_limit: int | None) -> tuple[dict[str, float], torch.Tensor]:
            return evaluate.measure(
                method, images, augmentation, train_limit=train_limit, seed=settings.seed, device=device,
                precision=settings.precision,
            )  # fmt: skip

        if state is None or "probe" not in state:
            if settings.stage == "evaluate":
                raise UserError(f"{folder.path} holds no finished pre-training to evaluate")
            folder.truncate_metrics(state)
            seconds = pretrain(
                method, images, augmentation, settings, device,
                state=state, save=folder.save, log=folder.log, monitor=lambda: measures(MONITOR_BANK)[0],
                stop=signals.stop,
            )  # fmt: skip
            if seconds is None:
                print(f"{folder.path}: stopped, checkpoint written; the same command continues it", file=sys.stderr)
                return False
            folder.save_encoder(method)
            state = {"method": method.state_dict(), "seconds": seconds, "probe": None, "evaluate_seconds": 0.0}
            state["step"] = settings.epochs * (len(images.unlabeled or images.train) // settings.batch_size)
            folder.save(state["step"] + 1, state)
        else:
            method.load_state_dict(state["method"])
        if settings.stage == "pretrain":
            return True

        start, before = time.perf_counter(), state["evaluate_seconds"]

        def save_probe(probe: dict) -> None:
            spent = before + time.perf_counter() - start
            assert state is not None
            folder.save(
                state["step"] + 2 + len(probe["history"]), {**state, "probe": probe, "evaluate_seconds": spent}
            )

        probe = evaluate.linear_probe(
            method.backbone, images, crop=augment.crop_only(augmentation), epochs=settings.linear_epochs,
            seed=settings.seed, device=device, precision=settings.precision, state=state["probe"],
            on_epoch=save_probe, should_stop=signals.stop,
        )  # fmt: skip
        if not probe["complete"]:
            print(f"{folder.path}: stopped, checkpoint written; the same command continues it", file=sys.stderr)
            return False
        table, z = measures(None)
        folder.save_spectrum(z)
        trained = (len(images.unlabeled or images.train) // settings.batch_size) * settings.batch_size * settings.epochs
        result = {
            "method": name,
            **{key: getattr(settings, key) for key in ("uniformity", "dataset", "seed", "epochs")},
            **{key: probe[key] for key in ("acc1", "acc5", "best_acc1")},
            **table,
            "n_test": len(images.test),
            "dim": settings.dim,
            "pretrain_seconds": state["seconds"],
            "evaluate_seconds": before + time.perf_counter() - start,
            "images_per_second": trained / state["seconds"],
            "device": hardware(device),
            "complete": True,
            "config": folder.config,
        }
        folder.finish(result)
        shown = ("acc1", "acc5", "best_acc1", "knn1", "w2", "w2_floor", "lu", "alignment")
        print(f"{folder.path}: " + "  ".join(f"{key} {result[key]:.4g}" for key in shown))
    return True


MONITOR_BANK = 10_000  # training images that the kNN of the monitor looks at; the final one uses all


class RunFolder:
    """The files of one run. Refuses a folder of another configuration, and a second writer."""

    def __init__(self, path: Path, method: str, settings: Settings):
        self.path, self.result = path, path / "result.json"
        self.config = {
            "method": method,
            "settings": dataclasses.asdict(settings),
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "versions": {
                "wassersteinssl": __version__,
                "git": _git_commit(),
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "numpy": np.__version__,
            },
        }

    def __enter__(self) -> "RunFolder":
        config = self.path / "config.json"
        try:
            if config.exists():
                self._check_same(config)
            elif self.path.exists() and any(self.path.iterdir()):
                raise UserError(f"{self.path} is not empty and no run's folder: choose another --run-dir")
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            if not config.exists():
                write_atomically(config, _json(self.config))
        except OSError as error:
            raise UserError(f"cannot use the run folder {self.path}: {error.strerror}") from None
        return self

    def __exit__(self, *_: Any) -> None:
        self._lock_file.close()

    def _check_same(self, config: Path) -> None:
        try:
            before = json.loads(config.read_text())
            old = {"method": before["method"], **before["settings"]}
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{config} is damaged: remove {self.path} or choose another --run-dir") from None
        new = {"method": self.config["method"], **self.config["settings"]}  # type: ignore[dict-item]
        differing = [
            f"{key} {old.get(key)!r}, now {new.get(key)!r}"
            for key in {**old, **new}
            if key not in Settings.PLACE and old.get(key) != new.get(key)
        ]
        if differing:
            raise UserError(f"{self.path} belongs to another configuration: {'; '.join(differing)}")

    def _lock(self) -> None:
        """Held by the open file, so that a dead process leaves no lock behind."""
        self._lock_file = open(self.path / "lock", "w")  # noqa: SIM115
        if fcntl is not None:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another process is working in {self.path}") from None

    def save(self, step: int, state: dict) -> None:
        checkpoint.save(self.path, step, state)

    def log(self, line: dict) -> None:
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")

    def truncate_metrics(self, state: dict | None) -> None:
        """Drop the lines of epochs that will be trained again, and half a line that a kill left."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        logged = state["logged"] if state else 0
        lines = path.read_text(errors="replace").splitlines(keepends=True)[:logged]
        write_atomically(path, "".join(lines).encode())

    def save_encoder(self, method: Method) -> None:
        tensors = {
            key: value.contiguous()
            for key, value in method.state_dict().items()
            if key.startswith(("backbone.", "projector."))
        }
        metadata = {"config": json.dumps(self.config)}
        write_atomically(self.path / "encoder.safetensors", safetensors.torch.save(tensors, metadata))

    def save_spectrum(self, z: torch.Tensor) -> None:
        """Eigenvalues of the covariance of the l2-normalised test embeddings, descending."""
        values = evaluate.spectrum(torch.nn.functional.normalize(z)).cpu().numpy()
        with open(self.path / "spectrum.npy", "wb") as file:
            np.save(file, values)

    def finish(self, result: dict) -> None:
        write_atomically(self.result, _json(result))


class _Signals:
    """Ctrl-C, SIGTERM and SIGUSR1 ask for a checkpoint and an end; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            number = getattr(signal, name, None)
            if number is not None:
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


def hardware(device: torch.device) -> str:
    """The device in words, for results: a number without its hardware means little."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    except OSError:
        pass
    return f"{cpu}, {torch.get_num_threads()} threads" + ("" if device.type == "cpu" else f", {device.type}")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def _run_path(method: str, settings: Settings) -> Path:
    if settings.run_dir:
        return Path(settings.run_dir)
    s = settings
    run = f"{method.lower()}+{s.uniformity}-w{s.width}-e{s.epochs}-s{s.seed}"
    return REPOSITORY / "runs" / s.dataset / run.replace("+none", "")


def _git_commit() -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=5, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def _last_word(program: str, kind: str, error: Any, status: int) -> int:
    print(f"{program}: {kind}: {error}", file=sys.stderr)
    return status

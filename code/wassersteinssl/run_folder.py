"""The folder of a run: config.json (settings, versions, command), metrics.jsonl (a line an epoch), checkpoints,
encoder.safetensors, correct.npy, spectrum.npy, measures.json and, when all is done, result.json; failed.json if a
number was not finite; tensorboard/, if asked for; lock, which is held while a process works in the folder."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wassersteinssl import __version__, checkpoint, distributed, evaluate, results
from wassersteinssl.augmentation import Augmentation, usual
from wassersteinssl.cli import UserError, home, tell
from wassersteinssl.files import write_atomically
from wassersteinssl.settings import Settings, differences, other_augmentation, other_images
from wassersteinssl.vision import torchvision

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

REPOSITORY = Path(__file__).resolve().parents[2]
_LOCKS: set[Any] = set()  # open files that hold a lock
if hasattr(os, "register_at_fork"):  # a child that outlives its parent must not keep holding them
    os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _LOCKS])


class RunFolder:
    """The files of one run. Refuses a folder in which another configuration has begun, and a second writer. `program`
    is the method's file."""

    def __init__(self, path: Path, method: str, settings: Settings, program: Path | None = None):
        self.path, self.result, self.program = path, path / "result.json", program
        self.saved = True  # whether the last checkpoint could be written
        self._open_board: Callable[..., Any] | None = None
        self._board: Any = None  # of TensorBoard
        self.config: dict[str, Any] = {
            "method": method,
            "settings": dataclasses.asdict(settings),
            "processes": distributed.size(),
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "versions": versions(program),
        }

    def describe(self, images: dict, alpha: tuple[float, float] | None, augmentation: Augmentation) -> None:
        """Add to the configuration, which is compared and written: the images (ImageSet.record), the weight of the term
        at the start and the end, and the augmentation."""
        self.config["images"] = images
        self.config["alpha"] = None if alpha is None else list(alpha)
        self.config["augmentation"] = augmentation.record()

    def compare(self) -> None:
        """UserError if the folder is not this run's: it holds something else, or another configuration has begun there
        (as far as the configuration is known by now)."""
        config = self.path / "config.json"
        try:
            if config.exists():
                if self.config["settings"]["resume"] == "never" and results.begun(self.path):
                    raise UserError(f"{self.path} holds a run; --resume auto continues it")
                self._same(config)
            elif self.path.exists() and self._foreign() and not config.exists():  # another process may have begun
                raise UserError(f"{self.path} is not empty and no run's folder: choose another --run-dir")
        except OSError as error:
            raise UserError(f"cannot use the run folder {self.path}: {error.strerror}") from None

    def __enter__(self) -> "RunFolder":
        if self.config["settings"]["tensorboard"] == "yes":
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError("--tensorboard needs the package: pip install tensorboard") from None
            self._open_board = SummaryWriter
        self.compare()
        config = self.path / "config.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            try:
                (self.path / "failed.json").unlink(missing_ok=True)
                before = self._same(config) if config.exists() else None  # again: another process may have begun
                if before is not None:
                    self._note_begin(before)
                else:
                    write_atomically(config, _json(self.config))
            except BaseException:
                self._unlock()
                raise
        except OSError as error:
            raise UserError(f"cannot use the run folder {self.path}: {error.strerror}") from None
        return self

    def __exit__(self, *_: Any) -> None:
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
        self._unlock()

    def fail(self, why: str) -> str | None:
        """Mark the run as failed, and return the name of its last checkpoint. The next start of the same command
        removes the mark and tries again."""
        newest = checkpoint.newest(self.path)
        name = newest.name if newest else None
        with contextlib.suppress(OSError):  # a full disk must not hide the reason
            write_atomically(self.path / "failed.json", _json({"reason": why, "last_checkpoint": name}))
        return name

    def _note_begin(self, before: dict) -> None:
        """Note how the run was begun, where that differs from now: the result names command and versions of its end."""
        self.tell_if_edited(before)
        begun = {key: before[key] for key in ("command", "versions", "processes") if key in before}
        if other := {key: value for key, value in begun.items() if value != self.config[key]}:
            self.config["begun"] = other

    def tell_if_edited(self, before: dict) -> None:
        """A line on stderr if the method's file is not the one with which the run began."""
        if self.program and results.program_digests(before) - {self.config["versions"]["program"]}:
            tell(f"{self.program.name} has changed since {self.path} began; another --run-dir begins anew", sys.stderr)

    def _same(self, config: Path) -> dict | None:
        """What config.json holds if it is of this configuration, else None. UserError if another run has begun."""
        try:
            before = json.loads(config.read_text())
            old = {"method": before["method"], **before["settings"]}
            others = other_images(before.get("images"), self.config.get("images"))  # the data may have moved
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(f"{config} is damaged: remove {self.path} or choose another --run-dir") from None
        new = {"method": self.config["method"], **self.config["settings"]}
        differing = differences(old, {**dict.fromkeys(old), **new})
        alpha, weight = before.get("alpha"), self.config.get("alpha")  # older runs did not note it
        if not differing and alpha is not None and "alpha" in self.config and alpha != weight:
            differing.append(f"weight of the term {alpha}, now {weight}")
        noted = before.get("augmentation")
        if not isinstance(noted, dict):  # older runs did not note it
            noted = usual(str(old.get("dataset"))).record()
        if not differing and "augmentation" in self.config:
            differing += other_augmentation(noted, self.config["augmentation"])
        if others:
            differing.append(f"other images ({', '.join(others)})")
        # A run of this method that has not begun may be replaced, as nothing is lost; what no run has written may not.
        ours = old["method"] == new["method"] and "versions" in before
        if differing and (results.begun(self.path) or not ours):
            advice = "; choose another --run-dir"
            if others and new["dataset"] == "folder" and not new["run_dir"]:  # the folder is named after the images
                advice += " or --dataset-name"
            if new["stage"] == "evaluate":  # another folder would hold nothing to evaluate
                advice = ""
            raise UserError(f"{self.path} belongs to another configuration: {'; '.join(differing)}{advice}")
        return None if differing else before

    def _foreign(self) -> bool:
        return any(not _early(path.name) for path in self.path.iterdir())

    def _lock(self) -> None:
        """Lock the folder by an open file, so that a process that dies leaves no lock behind."""
        # Not emptied: in a folder from elsewhere it may be a link to another file.
        self._lock_file = open(self.path / "lock", "a")  # noqa: SIM115
        _LOCKS.add(self._lock_file)
        if fcntl is None:
            return
        for attempt in range(5):
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):  # the latter where flock is emulated by byte-range locks
                if attempt == 4:
                    self._unlock()
                    raise UserError(f"another process is working in {self.path}") from None
            except OSError as error:
                tell(f"{self.path} cannot be locked ({error.strerror}): start no second run there", sys.stderr)
                return
            time.sleep(0.05)  # a grid that only looks holds the lock for a moment

    def _unlock(self) -> None:
        _LOCKS.discard(self._lock_file)
        self._lock_file.close()

    def save(self, step: int, state: dict) -> None:
        self.saved = checkpoint.save(self.path, step, {**state, "of": self._identity()})

    def restored(self) -> dict | None:
        """The last checkpoint. UserError if it is of another configuration (config.json may have been edited, or the
        checkpoint copied)."""
        state = checkpoint.load(self.path)
        if state is not None:
            with checkpoint.fitting():
                differing = differences(state.pop("of"), self._identity())
            if differing:
                raise UserError(f"the checkpoint in {self.path} is of another configuration: {'; '.join(differing)}")
        return state

    def _identity(self) -> dict:
        return {"method": self.config["method"], "alpha": self.config["alpha"], **self.config["settings"]}

    def log(self, line: dict) -> None:
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())  # before a checkpoint counts this line
        if self._open_board is not None and shutil.disk_usage(self.path).free > 2**20:
            self._show(line)

    def _show(self, line: dict) -> None:
        """Show an epoch in TensorBoard. The first time, show all earlier epochs again, in place of what an earlier
        process has shown."""
        lines = [line]
        try:
            if self._board is None:
                self._board = self._open_board(self.path / "tensorboard", purge_step=1)  # type: ignore[misc]
                lines = results.log(self.path)
            for shown in lines:
                for name, value in shown.items():
                    if name != "epoch":
                        self._board.add_scalar(name, value, shown["epoch"] + 1)
            self._board.flush()
        except OSError as error:
            tell(f"TensorBoard is shown no more: {error.strerror}", sys.stderr)
            self._open_board = None

    def truncate_metrics(self, logged: int) -> None:
        """Keep the lines of the first `logged` epochs. Later epochs will be trained again; half a line is dropped."""
        path = self.path / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if _epoch(line) < logged]
        if len(kept) < logged:
            tell(f"{path} lacks {logged - len(kept)} of the {logged} epochs so far", sys.stderr)
        if lines:
            write_atomically(path, b"".join(kept))

    def save_spectrum(self, z: torch.Tensor) -> None:
        """Eigenvalues of the covariance of the l2-normalised test embeddings, descending."""
        self._save("spectrum.npy", evaluate.spectrum(torch.nn.functional.normalize(z)).numpy())

    def save_correct(self, correct: torch.Tensor) -> None:
        """Which test images the linear classifier gets right, bool (n,)."""
        self._save("correct.npy", correct.cpu().numpy())

    def _save(self, name: str, values: np.ndarray) -> None:
        content = io.BytesIO()  # not to the file itself: NumPy does not tell that the disk is full
        np.save(content, values, allow_pickle=False)
        write_atomically(self.path / name, content.getvalue())

    def save_measures(self, measures: dict) -> None:
        """Write all of MEASURES of the test embeddings; null where one is not finite."""
        write_atomically(self.path / "measures.json", _json(measures))

    def finished(self) -> bool:
        return results.finished(self.path)  # a run whose result is damaged is evaluated again

    def finish(self, result: dict) -> None:
        write_atomically(self.result, _json(result))


def _early(name: str) -> bool:
    """Whether this may be a file of a run that was killed before it wrote config.json."""
    return name == "lock" or (name.startswith(".") and name.endswith(".part"))


def _epoch(line: bytes) -> float:
    """The epoch of a line of metrics.jsonl; infinity if the line is damaged."""
    try:
        return float(json.loads(line)["epoch"])
    except results.DAMAGE:
        return float("inf")


def run_path(method: str, settings: Settings) -> Path:
    """The folder of a run: --run-dir, or one that is named after the settings."""
    if settings.run_dir:
        return home(settings.run_dir)
    s = settings
    run = f"{method.lower()}+{s.uniformity}-w{s.width}-e{s.epochs}-s{s.seed}"
    return REPOSITORY / "runs" / (s.dataset_name or s.dataset) / run.replace("+none", "")


def versions(program: Path | None = None) -> dict[str, str | None]:
    """Versions of this code, with the digest of the method's file, and of the libraries that compute."""
    return {
        "wassersteinssl": __version__,
        "git": _git_commit(),
        "program": program and hashlib.sha256(program.read_bytes()).hexdigest()[:16],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def _git_commit() -> str | None:
    try:
        here = ["-C", str(REPOSITORY), "-c", f"safe.directory={REPOSITORY}"]  # it may be another user's
        # Of this repository, not of one around it, nor of one that a shell or a hook names.
        named = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
        variables = {key: value for key, value in os.environ.items() if key not in named}
        answer = subprocess.run(
            ["git", *here, "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=5, check=True,
            env=variables | {"GIT_CEILING_DIRECTORIES": str(REPOSITORY.parent)},
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()

"""Checkpoints that survive a kill, a full disk and a flipped bit.

A checkpoint is `checkpoint-STEP-DIGEST.pt`: written under a temporary name, flushed to the disk, then renamed; DIGEST
is the start of its SHA-256, checked on loading (torch loads a damaged file without a word). The two newest are kept.
"""

import errno
import hashlib
import io
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from wassersteinssl.cli import UserError, tell
from wassersteinssl.device import out_of_memory
from wassersteinssl.files import reason, sweep, write_atomically

KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)-([0-9a-f]{16})\.pt")


def save(folder: Path, step: int, state: dict[str, Any]) -> bool:
    """Write a checkpoint and drop all but the newest two. If the disk is full, tell so on stderr, keep the earlier ones
    and return False."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"checkpoint-{step:09d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    try:
        write_atomically(path, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(folder).free if error.errno == errno.ENOSPC else 0  # what a quota leaves is not known
        tell(
            f"no checkpoint written: the disk of {folder} is full, {max(0, len(content) - free) / 2**20:.1f} MiB more "
            f"are needed; {'an earlier checkpoint is kept' if _found(folder) else 'there is no earlier one'}",
            sys.stderr,
        )
        return False
    for _, old in _found(folder)[KEPT:]:
        old.unlink()
    return True


class Pace:
    """How often a run writes checkpoints: every so many epochs (None: as often as costs at most SHARE of the time), and
    in any case after so many minutes (0: never)."""

    SHARE = 0.02

    def __init__(self, epochs: int | None, minutes: float):
        self.epochs, self.seconds = epochs, 60 * minutes
        self.last, self.cost = time.monotonic(), 0.0  # when the last one was written, and how long that took

    @contextmanager
    def writing(self) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.last = time.monotonic()
        self.cost = self.last - start

    def overdue(self) -> bool:
        return 0 < self.seconds <= time.monotonic() - self.last

    def after_epoch(self, number: int) -> bool:
        """Whether to write one after the epoch of this number, counted from 1."""
        if self.epochs is not None:
            return number % self.epochs == 0 or self.overdue()
        return self.SHARE * (time.monotonic() - self.last) >= self.cost or self.overdue()


@contextmanager
def fitting() -> Iterator[None]:
    """UserError if the state that the block loads does not fit: it is another program's or another run's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise UserError(f"the checkpoint does not fit this run: {reason(error)[:200]}") from None


def load(folder: Path) -> dict[str, Any] | None:
    """The newest undamaged checkpoint, on the CPU; None without any checkpoint. Damaged ones are named on stderr, and
    renamed to NAME.damaged if an older one is whole; UserError if none is. Removes what a killed writer left."""
    sweep(folder)
    found = _found(folder)
    damaged: list[Path] = []
    for digest, path in found:
        content, why = b"", "its SHA-256 differs from its name"
        try:
            content = path.read_bytes()
        except PermissionError:  # the user can put that right
            raise
        except OSError as error:  # a bad sector, say
            why = reason(error)
        if hashlib.sha256(content).hexdigest().startswith(digest):
            try:
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except Exception as error:  # undamaged, but not written by a run
                raise UserError(f"{path} is no checkpoint: {reason(error)[:200]}") from None
            for other in damaged:  # else they would count among the newest
                other.rename(f"{other}.damaged")
            return state
        damaged.append(path)
        tell(f"{path} is damaged ({why}); trying an older one", sys.stderr)
    if found:
        raise UserError(f"every checkpoint in {folder} is damaged: remove them to start anew")
    return None


def newest(folder: Path) -> Path | None:
    """The checkpoint that `load` tries first."""
    return next((path for _, path in _found(folder)), None)


def _found(folder: Path) -> list[tuple[str, Path]]:
    """(digest, path), newest first. A run that is stopped twice within a step has two checkpoints of the same step."""
    matches = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    matches.sort(key=lambda found: (int(found[0][1]), found[1].stat().st_mtime_ns), reverse=True)
    return [(match[2], path) for match, path in matches]

"""The cache of decoded images, `<data_dir>/.wassersteinssl`, and the lock on the folder of a data set.

NAME-SPLIT-images.npy and NAME-SPLIT-labels.npy hold the arrays. NAME.json, written last, makes them valid: it holds
what they were made from and the SHA-256 of each.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np

from wassersteinssl.cli import tell
from wassersteinssl.files import reason, sweep, write_atomically

CACHE = ".wassersteinssl"

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split name -> images (n, 3, H, W) uint8, labels (n,) int64


def cached(
    folder: Path, name: str, source: Callable[[], dict], build: Callable[[], tuple[list[str], Arrays]]
) -> tuple[list[str], Arrays]:
    """Classes and arrays: from the cache if it was made from the same source, else built and then cached.

    `source` is asked again after building, which may have downloaded it.
    """
    found = _read(folder, name, source())
    if found is None:
        with alone(folder) as waited:
            if waited:  # the other one was probably making the same cache
                found = _read(folder, name, source())
            if found is None:
                found = build()
                _write(folder, name, source(), *found)
    return found


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Of several runs started together one prepares the folder while the others wait. Yields whether this one waited.

    The lock is on the folder itself: it leaves no file behind and works where nothing can be written. Where locking is
    impossible, each run prepares the folder by itself; all writes are atomic.
    """
    handle, waited = None, False
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        import fcntl

        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            tell(f"waiting for another run that is preparing {folder}", sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    try:
        yield waited
    finally:
        if handle is not None:
            os.close(handle)
        for path in made:  # removed again if it is still empty
            with suppress(OSError):
                path.rmdir()


def _sha256(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read(folder: Path, name: str, source: dict) -> tuple[list[str], Arrays] | None:
    """The cached arrays, with verified checksums; None if there are none, or they are damaged or of another source."""
    path = folder / CACHE / f"{name}.json"
    try:
        if not path.exists():
            return None
        record = json.loads(path.read_text())
        if record["version"] != 1 or not source.items() <= record["source"].items():
            return None
        arrays = {}
        for split, digests in record["sha256"].items():
            pair = []
            for part in ("images", "labels"):
                path = folder / CACHE / f"{name}-{split}-{part}.npy"
                pair.append(np.load(path, allow_pickle=False))
                if _sha256(pair[-1]) != digests[part]:
                    raise ValueError("wrong checksum")
            arrays[split] = (pair[0], pair[1])
        if not arrays.keys() >= {"train", "test"}:
            raise ValueError("a split is missing")
        return list(record["classes"]), arrays
    except PermissionError:
        tell(f"{path} of another user cannot be read; decoding again", sys.stderr)
        return None
    except Exception as error:  # damaged bytes can fail anywhere in numpy and json
        tell(f"the cache file {path} is damaged ({reason(error)}); decoding again", sys.stderr)
        return None


def _write(folder: Path, name: str, source: dict, classes: list[str], arrays: Arrays) -> None:
    """Write the arrays and then the record. If the folder cannot be written to, tell so and go on."""
    cache = folder / CACHE
    record: dict = {"version": 1, "source": source, "classes": classes, "sha256": {}}
    try:
        cache.mkdir(exist_ok=True)
        sweep(cache)
        for split, pair in arrays.items():
            record["sha256"][split] = {}
            for part, array in zip(("images", "labels"), pair, strict=True):
                write_atomically(cache / f"{name}-{split}-{part}.npy", partial(np.save, arr=array, allow_pickle=False))
                record["sha256"][split][part] = _sha256(array)
        write_atomically(cache / f"{name}.json", json.dumps(record, indent=1).encode())
    except OSError as error:
        tell(f"the decoded images are not kept, {cache} cannot be written: {reason(error)}", sys.stderr)

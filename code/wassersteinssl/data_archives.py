"""Published archives: CIFAR-10, CIFAR-100 and STL-10 are downloaded, checked by SHA-256 and read by torchvision."""

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from wassersteinssl.cli import UserError
from wassersteinssl.data_cache import Arrays, alone, cached
from wassersteinssl.files import reason, write_atomically
from wassersteinssl.machine import fills_memory

# torchvision's class for the set, and the SHA-256 of the official archive: Keras pins those of both CIFAR archives
# (keras/src/datasets/cifar10.py, cifar100.py), TensorFlow Datasets the one of STL-10
# (tensorflow_datasets/datasets/stl10/checksums.tsv).
ARCHIVES = {
    "cifar10": ("CIFAR10", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    "cifar100": ("CIFAR100", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
    "stl10": ("STL10", "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"),
}


# ---- CIFAR ----


def read_cifar(name: str, folder: Path) -> tuple[list[str], Arrays]:
    """CIFAR-10 and CIFAR-100, from the archive, or from torchvision's unpacked folder where there is no archive."""
    published = _published(name)

    def build() -> tuple[list[str], Arrays]:
        archive, unpacked = folder / published.filename, folder / published.base_folder
        if not archive.exists() and unpacked.is_dir():
            return read(folder, download=False)
        archive = _archive(name, folder)
        # Unpacked to a temporary place: the folder may be read-only, and the cache makes the files superfluous.
        with tempfile.TemporaryDirectory(prefix="wassersteinssl-") as scratch:
            os.symlink(archive.resolve(), Path(scratch, archive.name))
            return read(Path(scratch), download=True)

    def read(root: Path, download: bool) -> tuple[list[str], Arrays]:
        sets = {
            "train": _read_published(name, root, train=True, download=download),
            "test": _read_published(name, root, train=False),
        }
        arrays = {
            split: (np.ascontiguousarray(found.data.transpose(0, 3, 1, 2)), np.asarray(found.targets, np.int64))
            for split, found in sets.items()
        }
        return list(sets["train"].classes), arrays

    return cached(folder, name, partial(_source, name, folder), build)


def _source(name: str, folder: Path) -> dict:
    """What the cache was made from. If the archive has been deleted since, its SHA-256 has to do."""
    archive, source = folder / _published(name).filename, {"archive_sha256": ARCHIVES[name][1]}
    if not archive.exists():
        return source
    stat = archive.stat()
    return source | {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


# ---- STL-10 ----


class Stl10Rows(Dataset):
    """The images of one of STL-10's binary files, opened only when read (a worker must not copy gigabytes)."""

    size = (96, 96)

    def __init__(self, file: Path) -> None:
        self.file = file

    def images(self) -> np.ndarray:
        """(n, 3, 96, 96), not loaded; the file stores columns first."""
        return np.memmap(self.file, np.uint8, "r").reshape(-1, 3, *self.size).transpose(0, 1, 3, 2)

    def __getitems__(self, rows: list[int]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images()[rows]))


def read_stl10(
    folder: Path, stream: bool | None
) -> tuple[list[str], Mapping[str, tuple[np.ndarray | Stl10Rows, np.ndarray]]]:
    """STL-10: 5,000 training, 8,000 test and 100,000 unlabelled images. Its own files are uint8 and need no cache."""
    published = _published("stl10")
    base = folder / published.base_folder
    has_archive = (folder / published.filename).exists() or not base.is_dir()
    with alone(folder):
        if has_archive:
            _archive("stl10", folder)
        checked = _read_published("stl10", folder, split="test", download=has_archive)
    readers = {split: Stl10Rows(base / f"{split}_X.bin") for split in ("train", "test", "unlabeled")}
    if stream is None:
        stream = fills_memory(sum(reader.file.stat().st_size for reader in readers.values()))
    splits = {}
    for split, reader in readers.items():
        labels = np.full(len(reader.images()), -1, np.int64)
        if split != "unlabeled":
            labels += np.fromfile(base / f"{split}_y.bin", np.uint8)  # the file counts classes from 1
        splits[split] = (reader if stream else np.ascontiguousarray(reader.images()), labels)
    return list(checked.classes), splits


# ---- the archive of a set ----


def _published(name: str) -> Any:
    """torchvision's class for the set, which knows where its archive is and how to unpack and read it."""
    from wassersteinssl.vision import torchvision

    return getattr(torchvision.datasets, ARCHIVES[name][0])


def _read_published(name: str, root: Path, **options: Any) -> Any:
    """The set in `root` as torchvision reads it, which checks the MD5 of every unpacked file first."""
    published = _published(name)
    try:
        return published(root, **options)
    except RuntimeError:
        raise UserError(f"{root / published.base_folder} is damaged or incomplete: delete it and run again") from None
    except Exception as error:  # tarfile's and zlib's errors, OSError for a full disk
        raise UserError(f"cannot unpack {published.filename} into {root}: {reason(error)}") from None


def _archive(name: str, folder: Path) -> Path:
    """The set's archive in `folder`, downloaded if missing; its SHA-256 is checked before anything reads it."""
    published, expected = _published(name), ARCHIVES[name][1]
    archive = folder / published.filename
    if archive.exists():
        with archive.open("rb") as file:
            _verify(archive, hashlib.file_digest(file, "sha256"), expected, "delete it and run again")
        return archive
    try:
        _download(published.url, archive, expected)
        return archive
    except UserError:
        raise
    except Exception as error:  # urllib raises OSError, http.client.HTTPException, ValueError
        problem = f"cannot download {published.url}: {reason(getattr(error, 'reason', None) or error)}"
    raise UserError(
        f"there is no {archive} ({problem}): put the archive into the folder that --data-dir names, "
        "or use your own images (--dataset folder) or the embedded ones (--dataset digits)"
    )


def _download(url: str, archive: Path, expected: str) -> None:
    """Download and verify; only then does the archive get its name."""

    def receive(file: BinaryIO) -> None:
        digest = hashlib.sha256()
        with tqdm(total=size, desc=archive.name, unit="B", unit_scale=True) as bar:
            while block := response.read(1 << 20):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
        _verify(archive, digest, expected, "the download failed; run again")

    with urllib.request.urlopen(url, timeout=60) as response:
        size = int(response.headers.get("Content-Length") or 0) or None
        archive.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(archive, receive)


def _verify(archive: Path, digest: Any, expected: str, remedy: str) -> None:
    if digest.hexdigest() != expected:
        raise UserError(f"{archive} is damaged: its SHA-256 is {digest.hexdigest()}, not {expected}; {remedy}")

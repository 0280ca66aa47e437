"""Image sets as uint8 tensors: from the published archives, from an image-folder tree, or embedded (digits).

    images = load("cifar10", "data")
    for pixels, labels in images.train.batches(index_batches, device): ...

Every set is decoded once. Decoded images are kept beside the data, in `<data_dir>/.wassersteinssl`, with checksums, and
read from there afterwards (that folder may be deleted at any time). A set that is too large for the memory is streamed
from its files by worker processes instead: the same images in the same order. The order never depends on the machine.

This module is what the training loop sees. The images come from data_files.py (folders), data_archives.py (CIFAR,
STL-10) and data_cache.py (decoded images that were kept).

Shapes: n images, b of them in a batch, H x W pixels, channels r, g, b first.
"""

import hashlib
import importlib.util
import math
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert

from wassersteinssl import data_archives, data_files
from wassersteinssl.cli import UserError, ending_signals, home
from wassersteinssl.data_cache import Arrays
from wassersteinssl.device import moved
from wassersteinssl.machine import cpus, local_processes
from wassersteinssl.settings import DATASETS

# Mean and standard deviation of the training pixels, in 0..1. The paper used those of CIFAR-10 for all its data sets.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}
SHARED = Path("/dev/shm")  # memory that processes share; 64 MB in a container without --shm-size
MEASURED = 50_000  # images, at most, from which statistics are measured

Channels = tuple[float, ...]  # one value for each of r, g, b
Images = np.ndarray | data_files.Files | data_archives.Stl10Rows  # decoded (n, 3, H, W) uint8, or to be streamed


@dataclass(frozen=True, eq=False)
class Split:
    """One split: labels (n,) int64 and images (n, 3, H, W) uint8; `images` is None if they stream from files."""

    labels: Tensor
    size: tuple[int, int]  # (H, W)
    images: Tensor | None = None
    reader: Dataset | None = None  # decodes rows of a streaming split
    rows: Tensor | None = None  # (n,) int64: the reader's rows that belong to this split

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The split with images and labels on `device`; a streaming split stays as it is."""
        if self.images is None:
            return self
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def batches(self, index_batches: Sequence[Tensor], device: torch.device | str) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (b, 3, H, W) uint8 and labels (b,) on `device`, a pair for each index tensor (b,) int64, in order.

        UserError if a streamed file cannot be read.
        """
        if len(index_batches) == 0:
            return
        device = torch.device(device)
        indices = torch.cat(list(index_batches)).to(self.labels.device).split([len(index) for index in index_batches])
        if self.images is None:
            batches = self._stream(indices, device)
        else:
            batches = (self.images.index_select(0, index) for index in indices)
        for index, images in zip(indices, batches, strict=True):
            yield moved(images, device), moved(self.labels[index], device)

    def take(self, n: int) -> "Split":
        """The split reduced to n images, evenly over the classes: always the same ones, in their order.

        UserError if n is larger than the split or smaller than its number of classes.
        """
        _, labels = self.labels.cpu().unique(return_inverse=True)
        classes = int(labels.max()) + 1
        if isinstance(n, bool) or not isinstance(n, int) or not classes <= n <= len(self):
            raise UserError(f"--limit-train {n}: choose from {classes} (one image a class) to {len(self)} (all)")
        chosen = torch.argsort(_rank_in_class(labels) * classes + labels)[:n].sort().values
        if self.images is None:
            return replace(self, labels=self.labels[chosen], rows=self.rows[chosen])  # type: ignore[index]
        chosen = chosen.to(self.labels.device)
        return replace(self, labels=self.labels[chosen], images=self.images[chosen])

    def _stream(self, indices: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Decode each batch of rows in worker processes, a few batches ahead."""
        assert self.reader is not None
        assert self.rows is not None
        batch = 3 * math.prod(self.size) * max(map(len, indices))  # bytes that a worker hands over in shared memory
        processes = local_processes()
        shared = shutil.disk_usage(SHARED).free // processes if SHARED.is_dir() else sys.maxsize
        loader = DataLoader(
            self.reader,
            batch_sampler=[self.rows[index].tolist() for index in indices],
            num_workers=min(cpus() // processes, 8, len(indices), shared // (3 * batch)),  # each two batches ahead
            worker_init_fn=_heed_the_parent,
            collate_fn=default_convert,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else each epoch would draw a number from the global generator
        )
        for images in _begin(loader):  # the iterator gets no name: it ends its processes when it is dropped
            if isinstance(images, UserError):
                raise images
            yield images


def _begin(loader: DataLoader) -> Iterator:
    """iter(loader), with the signals that ask a run to end blocked in its processes. One that arrives meanwhile reaches
    this process afterwards."""
    if not hasattr(signal, "sigwaitinfo"):  # Windows, macOS
        return iter(loader)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ending_signals())
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _heed_the_parent(_worker: int) -> None:
    """Let only the parent end this worker. Ctrl-C reaches all processes of a terminal, and SIGTERM may reach those of a
    group or a job; PyTorch's workers would die of it, whoever sends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        threading.Thread(target=_await_the_parent, daemon=True).start()


def _await_the_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


@dataclass(frozen=True)
class ImageSet:
    """A named set. Pre-training uses `unlabeled` (STL-10 only; every label -1) instead of `train`, if given."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: Channels  # of training pixels in 0..1
    std: Channels
    unlabeled: Split | None = None

    def record(self) -> dict[str, Any]:
        """What distinguishes these images from others, wherever they lie: counts, classes, labels, statistics."""
        splits = {"train": self.train, "test": self.test} | ({"unlabeled": self.unlabeled} if self.unlabeled else {})
        labels = hashlib.sha256(b"".join(split.labels.numpy().tobytes() for split in splits.values())).hexdigest()[:16]
        return {
            **{name: len(split) for name, split in splits.items()},
            "size": list(self.train.size), "classes": len(self.classes), "labels": labels,
            "mean": [round(x, 4) for x in self.mean], "std": [round(x, 4) for x in self.std],
        }  # fmt: skip


DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "data"


def load(
    name: str,
    data_dir: str | Path | None,
    *,
    limit_train: int | None = None,
    normalization: str = "dataset",
    stream: bool | None = None,
) -> ImageSet:
    """Load an image set by name. `data_dir` holds its archive, its official folder, or train/ and test/ ("folder"); the
    default is data/ of the repository.

    `limit_train` keeps that many training images, evenly over the classes (STL-10: it limits the unlabelled images,
    and the labelled ones too if it is smaller than their number). `normalization`: "dataset" gives the set's own mean
    and standard deviation (for "folder" and "digits" measured on every k-th training image: k = 1 up to 50,000 of them,
    2 up to 100,000, ...), "cifar10" the paper's. `stream`: None streams what would fill more than half of the available
    memory; True or False decides for "folder", "tinyimagenet" and "stl10" (the others are small and stay in memory).
    UserError, one line, for everything that a user can put right.
    """
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}: choose from {', '.join(DATASETS)}")
    if normalization not in ("dataset", "cifar10"):
        raise UserError(f"unknown normalization {normalization!r}: choose from dataset, cifar10")
    if not data_dir and name == "folder":
        raise UserError("--dataset folder needs --data-dir, the folder that holds train/<class>/* and test/<class>/*")
    try:
        classes, splits = _read(name, home(data_dir or DEFAULT_FOLDER), stream)
    except OSError as error:  # no permission, a link to nowhere, a broken disk
        raise UserError(f"cannot read the data set {name}: {error}") from None
    mean, std = STATISTICS.get(name if normalization == "dataset" else "cifar10") or _statistics(splits["train"])
    if limit_train is not None:
        if "unlabeled" in splits:
            splits["unlabeled"] = splits["unlabeled"].take(limit_train)
            limit_train = min(limit_train, len(splits["train"]))
        splits["train"] = splits["train"].take(limit_train)
    return ImageSet(name=name, classes=tuple(classes), mean=mean, std=std, **splits)


def _read(name: str, folder: Path, stream: bool | None) -> tuple[list[str], dict[str, Split]]:
    """The classes, in the order of their labels, and the splits."""
    splits: Mapping[str, tuple[Images, np.ndarray]]
    if name == "digits":
        classes, splits = _digits()
    elif name == "stl10":
        classes, splits = data_archives.read_stl10(folder, stream)
    elif name in data_archives.ARCHIVES:
        classes, splits = data_archives.read_cifar(name, folder)
    else:
        classes, splits = data_files.read(name, folder, stream)
    return classes, {split: _split(images, labels) for split, (images, labels) in splits.items()}


def _split(images: Images, labels: np.ndarray) -> Split:
    """A split in memory for an array (n, 3, H, W), a streaming one for a reader."""
    if isinstance(images, np.ndarray):
        return Split(torch.from_numpy(labels), (images.shape[2], images.shape[3]), torch.from_numpy(images))
    return Split(torch.from_numpy(labels), images.size, reader=images, rows=torch.arange(len(labels)))


def _digits() -> tuple[list[str], Arrays]:
    """scikit-learn's 1,797 digits, 8 x 8, three equal channels; every fifth image of each class is a test image."""
    # Read from its file, as importing scikit-learn takes a second; if the file is not found, scikit-learn loads it.
    package = importlib.util.find_spec("sklearn")
    path = Path(package.origin or "").parent / "datasets/data/digits.csv.gz" if package else None
    if path and path.exists():
        table = np.loadtxt(path, delimiter=",")
        pixels, target = table[:, :-1], table[:, -1]
    else:
        from sklearn.datasets import load_digits

        pixels, target = load_digits(return_X_y=True)
    grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)  # the published values are 0..16
    images = np.repeat(grey[:, None], 3, axis=1)
    labels = target.astype(np.int64)
    test = _rank_in_class(torch.from_numpy(labels)).numpy() % 5 == 4
    arrays = {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
    return [str(name) for name in range(10)], arrays


def _statistics(split: Split) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, from exact counts of its 256 levels; std is never 0.

    From every k-th image, k = ceil(n / 50,000): the same images, and so the same numbers, in memory and streaming.
    """
    rows = torch.arange(0, len(split), -(-len(split) // MEASURED))
    counts, levels = np.zeros((3, 256), np.int64), np.arange(256) / 255
    for images, _ in split.batches(rows.split(256), "cpu"):
        for channel in range(3):
            counts[channel] += np.bincount(images[:, channel].numpy().ravel(), minlength=256)
    share = counts / counts[0].sum()
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)).clip(1 / 255)  # at least one level
    return tuple(mean.tolist()), tuple(std.tolist())


def _rank_in_class(labels: Tensor) -> Tensor:
    """For each of labels (n,), how many equal labels precede it."""
    order = torch.argsort(labels, stable=True)
    _, counts = labels[order].unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(labels)) - starts)

"""Image sets as uint8 tensors: from the published archives, from an image-folder tree, or embedded (digits).

    images = load("cifar10", "data")
    for pixels, labels in images.train.batches(index_batches, device): ...

Every set is decoded once. Decoded images are kept beside the data, in `<data_dir>/.wassersteinssl`, with checksums, and
read from there afterwards (delete that folder at any time). A set too large for the memory is streamed from its files
by worker processes instead: the same images in the same order. Order never depends on the machine.

Shapes: n images, b of them in a batch, H x W pixels, channels r, g, b first.
"""

import hashlib
import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_convert
from tqdm import tqdm

from wassersteinssl.settings import UserError

IMAGE_SETS = ("cifar10", "cifar100", "stl10", "tinyimagenet", "digits", "folder")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CACHE = ".wassersteinssl"

# SHA-256 of the official archives: Keras pins both CIFAR archives (keras/src/datasets/cifar10.py, cifar100.py),
# TensorFlow Datasets the one of STL-10 (tensorflow_datasets/datasets/stl10/checksums.tsv).
ARCHIVES = {
    "cifar10": ("CIFAR10", "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
    "cifar100": ("CIFAR100", "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
    "stl10": ("STL10", "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"),
}

# Mean and standard deviation of the training pixels, in 0..1. CIFAR-10's are the paper's, which used them everywhere.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "stl10": ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}

Channels = tuple[float, ...]  # one value for each of r, g, b
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # split name -> images (n, 3, H, W) uint8, labels (n,) int64


# ---- what the training loop sees ----


@dataclass(frozen=True, eq=False)
class Split:
    """One split: labels (n,) int64 and images (n, 3, H, W) uint8, or `images` None when they stream from files."""

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
        """Images (b, 3, H, W) uint8 and labels (b,) on `device`, one pair for each index tensor (b,) int64, in order.

        Raises UserError when a streamed file cannot be read.
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
            yield _moved(images, device), _moved(self.labels[index], device)

    def take(self, n: int) -> "Split":
        """The split cut to n images, spread evenly over the classes: always the same ones, in their old order.

        Raises UserError when n is larger than the split or smaller than its number of classes.
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
        loader = DataLoader(
            self.reader,
            batch_sampler=[self.rows[index].tolist() for index in indices],
            num_workers=min(_cpus(), 8, len(indices)),
            collate_fn=default_convert,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # else each epoch would draw a number from the global generator
        )
        for images in loader:
            if isinstance(images, UserError):
                raise images
            yield images


@dataclass(frozen=True)
class ImageSet:
    """A named set. `unlabeled` (STL-10 only; every label -1) is what pre-training uses instead of `train`."""

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    mean: Channels  # of training pixels in 0..1
    std: Channels
    unlabeled: Split | None = None


def load(
    name: str,
    data_dir: str | Path | None,
    *,
    limit_train: int | None = None,
    normalization: str = "dataset",
    stream: bool | None = None,
    allow_download: bool = True,
) -> ImageSet:
    """Load an image set by name; `data_dir` holds its archive, its official folder, or train/ and test/ ("folder").

    `limit_train` keeps that many training images, evenly over the classes (STL-10: it limits the unlabelled images,
    and the labelled ones where it is smaller). `normalization`: "dataset" gives the set's own mean and standard
    deviation (for "folder" and "digits" measured on all training images, or on 10,000 of them when they stream),
    "cifar10" the paper's. `stream`: None streams what would fill more than half of the available memory; True and
    False decide for "folder", "tinyimagenet" and "stl10" (the others are small and stay in memory).
    Raises UserError, one line, for everything that a user can put right.
    """
    if name not in IMAGE_SETS:
        raise UserError(f"unknown data set {name!r}: choose from {', '.join(IMAGE_SETS)}")
    if normalization not in ("dataset", "cifar10"):
        raise UserError(f"unknown normalization {normalization!r}: choose from dataset, cifar10")
    if data_dir is None and name != "digits":
        raise UserError(f"--dataset {name} needs --data-dir, the folder of its images")
    try:
        classes, splits = _read(name, Path(data_dir or ".").expanduser(), stream, allow_download)
    except OSError as error:  # a folder without permission, a link to nowhere, a broken disk
        raise UserError(f"cannot read the data set {name}: {error}") from None
    mean, std = STATISTICS.get(name if normalization == "dataset" else "cifar10") or _statistics(splits["train"])
    if limit_train is not None:
        if "unlabeled" in splits:
            splits["unlabeled"] = splits["unlabeled"].take(limit_train)
            limit_train = min(limit_train, len(splits["train"]))
        splits["train"] = splits["train"].take(limit_train)
    return ImageSet(name=name, classes=tuple(classes), mean=mean, std=std, **splits)


def _read(name: str, folder: Path, stream: bool | None, allow_download: bool) -> tuple[list[str], dict[str, Split]]:
    """The classes, in the order of the labels, and the splits."""
    if name == "digits":
        return _digits()
    if name == "stl10":
        return _stl10(folder, stream, allow_download)
    if name in ARCHIVES:
        return _cifar(name, folder, allow_download)
    listings = _list_tinyimagenet(folder) if name == "tinyimagenet" else _list_folder(folder)
    return _from_files(name, folder, *listings, stream)


# ---- small helpers ----


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _cpus() -> int:
    """CPUs that this process may use: fewer than the machine's under Slurm and in containers."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; on the way to a GPU through pinned memory, so that the host does not wait."""
    to_gpu = device.type == "cuda"
    if to_gpu and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=to_gpu)


def _rank_in_class(labels: Tensor) -> Tensor:
    """For each of labels (n,), how many equal labels stand before it."""
    order = torch.argsort(labels, stable=True)
    _, counts = labels[order].unique_consecutive(return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(labels)) - starts)


def _memory() -> float:
    """Bytes that this process may fill: the machine's available memory, or less where a control group limits it."""
    limits = [float("inf")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        group = Path(Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/"), "memory.max")
        for parent in group.parents:  # Slurm sets its limit some levels up
            maximum = Path("/sys/fs/cgroup", parent, group.name)
            limits += [float(maximum.read_text().replace("max", "inf"))] if maximum.exists() else []
    except (OSError, ValueError):
        pass  # not Linux
    return min(limits)


def _statistics(split: Split) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel, from exact counts of its grey levels; std is never 0.

    All images, or when they stream every k-th, up to 10,000.
    """
    if split.images is not None:
        batches: Iterable[Tensor] = split.images.split(1024)
    else:
        rows = torch.arange(0, len(split), -(-len(split) // 10_000))
        batches = (images for images, _ in split.batches(rows.split(256), "cpu"))
    counts, levels = np.zeros((3, 256), np.int64), np.arange(256) / 255
    for images in batches:
        for channel in range(3):
            counts[channel] += np.bincount(images[:, channel].numpy().ravel(), minlength=256)
    share = counts / counts[0].sum()
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)).clip(1 / 255)  # at least one grey level
    return tuple(mean.tolist()), tuple(std.tolist())


def _splits(arrays: Arrays) -> dict[str, Split]:
    return {
        split: Split(torch.from_numpy(labels), (images.shape[2], images.shape[3]), torch.from_numpy(images))
        for split, (images, labels) in arrays.items()
    }


# ---- image files ----


class Listing(NamedTuple):
    """The files of one split, in order, and the label of each."""

    files: list[str]
    labels: list[int]


def _scan(folder: Path, expected: str, wanted: Callable[[os.DirEntry], bool]) -> list[str]:
    """Names of the wanted entries of a folder, hidden ones left out, sorted; at least one."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and wanted(entry))
    if not names:
        raise UserError(f"the folder {folder} holds no {expected}")
    return names


def _classes(folder: Path) -> list[str]:
    return _scan(folder, "class folders", lambda entry: entry.is_dir())


def _listing(folders: Sequence[Path]) -> Listing:
    """The images of one folder a class; a folder's place is its label."""
    expected = f"images ({', '.join(EXTENSIONS)})"
    files, labels = [], []
    for label, folder in enumerate(folders):
        names = _scan(folder, expected, lambda entry: entry.name.lower().endswith(EXTENSIONS) and not entry.is_dir())
        files += [os.path.join(folder, name) for name in names]
        labels += [label] * len(names)
    return Listing(files, labels)


def _list_folder(folder: Path) -> tuple[list[str], dict[str, Listing]]:
    """Classes and files of an image-folder tree: train/<class>/* and test/<class>/*."""
    for needed in (folder, folder / "train", folder / "test"):
        if not needed.is_dir():
            raise UserError(f"there is no folder {needed}: --data-dir must hold train/<class>/* and test/<class>/*")
    classes = {split: _classes(folder / split) for split in ("train", "test")}
    for split, other in (("train", "test"), ("test", "train")):
        if missing := sorted(set(classes[split]) - set(classes[other])):
            names = ", ".join(missing[:5]) + ("" if len(missing) <= 5 else f" and {len(missing) - 5} more")
            raise UserError(f"{folder}: in {split}/ but not in {other}/: class {names}")
    return classes["train"], {
        split: _listing([folder / split / name for name in names]) for split, names in classes.items()
    }


def _list_tinyimagenet(folder: Path) -> tuple[list[str], dict[str, Listing]]:
    """Classes and files of the official tiny-imagenet-200 folder; its validation images are the test split."""
    root = folder / "tiny-imagenet-200" if (folder / "tiny-imagenet-200").is_dir() else folder
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file() or not (root / "train").is_dir():
        raise UserError(f"{root} is not the unpacked tiny-imagenet-200 (no train/ or no val/val_annotations.txt)")
    classes = _classes(root / "train")
    train = _listing([root / "train" / name / "images" for name in classes])
    label_of = {name: label for label, name in enumerate(classes)}
    test = _listing([root / "val" / "images"]).files
    try:
        class_of = dict(line.split("\t")[:2] for line in annotations.read_text().splitlines())
        labels = [label_of[class_of[Path(file).name]] for file in test]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{annotations} does not fit the images: {_reason(error)}") from None
    return classes, {"train": train, "test": Listing(test, labels)}


@contextmanager
def _opened(file: str) -> Iterator[Image.Image]:
    """An opened image; whatever goes wrong with it is told as a UserError that names the file."""
    try:
        with Image.open(file) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UserError(f"cannot read the image {file}: {_reason(error)}") from None


class Files(Dataset):
    """Image files, which must all have the size (H, W) of `first`, the first training image."""

    def __init__(self, files: Sequence[str], size: tuple[int, int], first: str) -> None:
        self.files, self.size, self.first = files, size, first

    def __getitems__(self, rows: list[int]) -> Tensor | UserError:
        """Rows (b,) -> (b, 3, H, W). Returns the error: raised in a worker it would come back as a long traceback."""
        try:
            return torch.from_numpy(np.stack([self._decode(row) for row in rows]))
        except UserError as error:
            return error

    def decode(self, title: str) -> np.ndarray:
        """All images (n, 3, H, W), decoded by threads (PIL lets the others run while it decodes)."""
        images = np.empty((len(self.files), 3, *self.size), np.uint8)

        def fill(row: int) -> None:
            images[row] = self._decode(row)

        self._each(fill, f"decoding {title}")
        return images

    def check(self, title: str) -> None:
        """Read every header, so that a wrong size is told before the training and not within it."""

        def look(row: int) -> None:
            with self._checked(row):
                pass

        self._each(look, f"checking {title}")

    @contextmanager
    def _checked(self, row: int) -> Iterator[Image.Image]:
        file, (height, width) = self.files[row], self.size
        with _opened(file) as image:
            if (image.height, image.width) != self.size:
                raise UserError(
                    f"{file} is {image.width} x {image.height} pixels but {self.first} is {width} x {height}: "
                    "all images of a set must have one size"
                )
            if image.mode.startswith(("I", "F")):  # as RGB these would be clipped to white
                raise UserError(f"{file} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")
            yield image

    def _decode(self, row: int) -> np.ndarray:
        """One image (3, H, W) uint8; grey, palette and transparent images become plain RGB."""
        with self._checked(row) as image:
            opaque = image.convert("RGBA") if image.mode == "P" else image  # PIL warns about transparent palettes
            return np.asarray(opaque.convert("RGB")).transpose(2, 0, 1)

    def _each(self, work: Callable[[int], None], title: str) -> None:
        """Do `work` for every row, in threads; the first error in the order of the rows is raised."""

        def chunk(rows: range) -> int:
            for row in rows:
                work(row)
            return len(rows)

        rows = range(len(self.files))
        with ThreadPoolExecutor(_cpus()) as pool, tqdm(total=len(rows), desc=title, disable=None) as bar:
            for done in pool.map(chunk, [rows[start : start + 256] for start in rows[::256]]):
                bar.update(done)


def _from_files(
    name: str, folder: Path, classes: list[str], listings: dict[str, Listing], stream: bool | None
) -> tuple[list[str], dict[str, Split]]:
    """The splits of listed image files: decoded and cached, or streaming."""
    first = listings["train"].files[0]
    with _opened(first) as image:
        size = (image.height, image.width)
    readers = {split: Files(listing.files, size, first) for split, listing in listings.items()}
    labels = {split: np.asarray(listing.labels, np.int64) for split, listing in listings.items()}
    if _too_large(sum(map(len, labels.values())) * 3 * size[0] * size[1], stream):
        for split, reader in readers.items():
            reader.check(f"{name} {split}")
        return classes, {split: _streaming(reader, labels[split], size) for split, reader in readers.items()}

    def build() -> tuple[list[str], Arrays]:
        return classes, {split: (reader.decode(f"{name} {split}"), labels[split]) for split, reader in readers.items()}

    source = _fingerprint(folder, classes, listings)
    classes, arrays = _cached(folder, name, lambda: source, build)
    return classes, _splits(arrays)


def _too_large(total: int, stream: bool | None) -> bool:
    return total > _memory() / 2 if stream is None else stream


def _streaming(reader: Dataset, labels: np.ndarray, size: tuple[int, int]) -> Split:
    return Split(torch.from_numpy(labels), size, reader=reader, rows=torch.arange(len(labels)))


def _fingerprint(folder: Path, classes: list[str], listings: dict[str, Listing]) -> dict:
    """What tells that a tree has changed: the name, label, size and modification time of every file."""
    digest, count, size, newest = hashlib.sha256(json.dumps(classes).encode()), 0, 0, 0
    for split, listing in listings.items():
        for file, label in zip(listing.files, listing.labels, strict=True):
            stat = os.stat(file)
            digest.update(os.fsencode(f"{split}/{label}/{file.removeprefix(str(folder)).lstrip(os.sep)}"))
            digest.update(f"\0{stat.st_size}/{stat.st_mtime_ns}\0".encode())
            count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime_ns)
    return {"files": count, "bytes": size, "newest_mtime_ns": newest, "sha256": digest.hexdigest()}


# ---- published archives ----


def _published(name: str) -> Any:
    """torchvision's class for the set: where its archive lies, and how to unpack and read it."""
    from wassersteinssl.vision import torchvision

    return getattr(torchvision.datasets, ARCHIVES[name][0])


def _verify(archive: Path, expected: str, remedy: str) -> None:
    """Refuse an archive whose SHA-256 is not the published one, before anything reads it."""
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise UserError(f"{archive} is damaged: its SHA-256 is {found}, not {expected}; {remedy}")


def _download(url: str, archive: Path, expected: str) -> None:
    """Download to a temporary name, verify, and only then give the archive its name."""
    part = archive.with_name(f".{archive.name}.{os.getpid()}.part")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            archive.parent.mkdir(parents=True, exist_ok=True)
            size = int(response.headers.get("Content-Length") or 0) or None
            with part.open("wb") as file, tqdm(total=size, desc=archive.name, unit="B", unit_scale=True) as bar:
                while block := response.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        _verify(part, expected, "the download failed; run again")
        os.replace(part, archive)
    finally:
        part.unlink(missing_ok=True)


def _archive(name: str, folder: Path, allow_download: bool) -> Path:
    """The set's archive in `folder`, downloaded where it is missing, its SHA-256 checked."""
    published, expected = _published(name), ARCHIVES[name][1]
    archive = folder / published.filename
    if archive.exists():
        _verify(archive, expected, "delete it and run again")
        return archive
    problem = "downloads are off"
    if allow_download:
        try:
            _download(published.url, archive, expected)
            return archive
        except UserError:
            raise
        except Exception as error:  # urllib raises OSError, http.client.HTTPException, ValueError
            problem = f"cannot download {published.url}: {_reason(getattr(error, 'reason', None) or error)}"
    raise UserError(
        f"there is no {archive} ({problem}): put the archive into the folder that --data-dir names, "
        "or use your own images (--dataset folder) or the embedded ones (--dataset digits)"
    )


def _read_published(name: str, root: Path, **options: Any) -> Any:
    """torchvision's reading of the set in `root`; it checks the MD5 of every unpacked file before reading."""
    published = _published(name)
    try:
        return published(root, **options)
    except RuntimeError:
        raise UserError(f"{root / published.base_folder} is damaged or incomplete: delete it and run again") from None
    except Exception as error:  # tarfile's and zlib's errors, OSError for a full disk
        raise UserError(f"cannot unpack {published.filename} into {root}: {_reason(error)}") from None


def _archive_source(name: str, folder: Path) -> dict:
    """What the cache was made from. With the archive deleted since, the SHA-256 alone vouches for the cache."""
    archive, source = folder / _published(name).filename, {"archive_sha256": ARCHIVES[name][1]}
    if not archive.exists():
        return source
    stat = archive.stat()
    return source | {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _cifar(name: str, folder: Path, allow_download: bool) -> tuple[list[str], dict[str, Split]]:
    """CIFAR-10 and CIFAR-100, from the archive, or from torchvision's unpacked folder where there is no archive."""
    published = _published(name)

    def build() -> tuple[list[str], Arrays]:
        archive, unpacked = folder / published.filename, folder / published.base_folder
        if not archive.exists() and unpacked.is_dir():
            return read(folder, download=False)
        archive = _archive(name, folder, allow_download)
        # Unpacked elsewhere for the moment: the folder may be read-only, and the cache makes the files superfluous.
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

    classes, arrays = _cached(folder, name, partial(_archive_source, name, folder), build)
    return classes, _splits(arrays)


class Stl10Rows(Dataset):
    """The images of one of STL-10's binary files, opened where they are read (a worker must not copy gigabytes)."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def rows(self) -> np.ndarray:
        """(n, 3, 96, 96), not loaded; the file stores columns first."""
        return np.memmap(self.file, np.uint8, "r").reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)

    def __getitems__(self, rows: list[int]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.rows()[rows]))


def _stl10(folder: Path, stream: bool | None, allow_download: bool) -> tuple[list[str], dict[str, Split]]:
    """STL-10: 5,000 training, 8,000 test and 100,000 unlabelled images. Its own files are uint8: no cache is made."""
    published = _published("stl10")
    base = folder / published.base_folder
    has_archive = (folder / published.filename).exists() or not base.is_dir()
    if has_archive:
        _archive("stl10", folder, allow_download)
    with _alone(folder):
        checked = _read_published("stl10", folder, split="test", download=has_archive)
    readers = {split: Stl10Rows(base / f"{split}_X.bin") for split in ("train", "test", "unlabeled")}
    streaming = _too_large(sum(reader.file.stat().st_size for reader in readers.values()), stream)
    splits = {}
    for split, reader in readers.items():
        images = reader.rows()
        labels = np.full(len(images), -1, np.int64)
        if split != "unlabeled":
            labels += np.fromfile(base / f"{split}_y.bin", np.uint8)  # the file counts classes from 1
        size = (images.shape[2], images.shape[3])
        if streaming:
            splits[split] = _streaming(reader, labels, size)
        else:
            splits[split] = Split(torch.from_numpy(labels), size, torch.from_numpy(np.ascontiguousarray(images)))
    return list(checked.classes), splits


def _digits() -> tuple[list[str], dict[str, Split]]:
    """scikit-learn's 1,797 digits, 8 x 8, three equal channels; every fifth image of each class is a test image."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.rint(found.images * (255 / 16)).astype(np.uint8)  # the published values are 0..16
    images = np.repeat(grey[:, None], 3, axis=1)
    labels = found.target.astype(np.int64)
    test = _rank_in_class(torch.from_numpy(labels)).numpy() % 5 == 4
    arrays = {"train": (images[~test], labels[~test]), "test": (images[test], labels[test])}
    return [str(name) for name in found.target_names], _splits(arrays)


# ---- the cache of decoded images ----


def _cached(
    folder: Path, name: str, source: Callable[[], dict], build: Callable[[], tuple[list[str], Arrays]]
) -> tuple[list[str], Arrays]:
    """Classes and arrays from the cache where it was made from the same source, else built and then cached."""
    found = _read_cache(folder, name, source())
    if found is None:
        with _alone(folder) as waited:
            if waited:  # the other one was probably making the same cache
                found = _read_cache(folder, name, source())
            if found is None:
                found = build()
                _write_cache(folder, name, source(), *found)
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Of several runs started together one prepares the folder, the others wait; yields whether this one waited.

    The lock is on the folder itself: it leaves no file and works where nothing can be written. Where locking is not
    possible everyone prepares for himself; all writes are atomic.
    """
    handle, waited = None, False
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            _note(f"waiting for another run that is preparing {folder}")
            fcntl.flock(handle, fcntl.LOCK_EX)
    except (ImportError, OSError):
        pass
    try:
        yield waited
    finally:
        if handle is not None:
            os.close(handle)


def _sha256(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _read_cache(folder: Path, name: str, source: dict) -> tuple[list[str], Arrays] | None:
    """The cached arrays, their checksums verified; None when there are none, or of another source, or damaged."""
    path = folder / CACHE / f"{name}.json"
    if not path.exists():
        return None
    try:
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
        return list(record["classes"]), arrays
    except Exception as error:  # damaged bytes can fail anywhere in numpy and json
        _note(f"the cache file {path} is damaged ({_reason(error)}); decoding again")
        return None


def _write_cache(folder: Path, name: str, source: dict, classes: list[str], arrays: Arrays) -> None:
    """Write the arrays and then the record that makes them valid. A folder that cannot be written costs only a note."""
    cache = folder / CACHE
    record: dict = {"version": 1, "source": source, "classes": classes, "sha256": {}, "shapes": {}}
    try:
        cache.mkdir(exist_ok=True)
        for orphan in cache.glob(".*.tmp"):  # left by a run that was killed while writing
            orphan.unlink()
        for split, pair in arrays.items():
            for part, array in zip(("images", "labels"), pair, strict=True):
                _write(cache / f"{name}-{split}-{part}.npy", array)
            record["sha256"][split] = {"images": _sha256(pair[0]), "labels": _sha256(pair[1])}
            record["shapes"][split] = pair[0].shape
        _write(cache / f"{name}.json", json.dumps(record, indent=1).encode())
    except OSError as error:
        _note(f"the decoded images are not kept, {cache} cannot be written: {_reason(error)}")


def _write(path: Path, content: np.ndarray | bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                np.save(file, content, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

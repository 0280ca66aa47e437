"""Image sets that are files in folders: image-folder trees and Tiny ImageNet.

Images are in the sorted order of their names, on every machine; a class's label is its place among the sorted classes.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from wassersteinssl.cli import UserError, tell
from wassersteinssl.data_cache import Arrays, cached
from wassersteinssl.files import reason
from wassersteinssl.machine import cpus, fills_memory

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# What PIL may find behind them, as files are misnamed; not EPS, a program that it would hand to Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


class Listing(NamedTuple):
    """The files of one split, in order, and the label of each."""

    files: list[str]
    labels: list[int]


def read(
    name: str, folder: Path, stream: bool | None
) -> tuple[list[str], Mapping[str, tuple["np.ndarray | Files", np.ndarray]]]:
    """The classes, and for each split the images (n, 3, H, W), decoded or to be streamed, and the labels (n,) int64."""
    classes, listings = _list_tinyimagenet(folder) if name == "tinyimagenet" else _list_folder(folder)
    first = listings["train"].files[0]
    with _opened(first) as image:
        size = _size(image)
    readers = {split: Files(listing.files, size, first) for split, listing in listings.items()}
    labels = {split: np.asarray(listing.labels, np.int64) for split, listing in listings.items()}
    total = sum(map(len, labels.values())) * 3 * size[0] * size[1]
    if fills_memory(total) if stream is None else stream:
        for split, reader in readers.items():
            reader.check(f"{name} {split}")
        return classes, {split: (reader, labels[split]) for split, reader in readers.items()}

    def build() -> tuple[list[str], Arrays]:
        return classes, {split: (reader.decode(f"{name} {split}"), labels[split]) for split, reader in readers.items()}

    source = _fingerprint(folder, classes, listings)
    return cached(folder, name, lambda: source, build)


# ---- listing ----


def _scan(folder: Path, expected: str, wanted: Callable[[os.DirEntry], bool]) -> list[str]:
    """Names of the wanted entries of a folder, without hidden ones, sorted. UserError if there is none."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and wanted(entry))
    if not names:
        raise UserError(f"the folder {folder} holds no {expected}")
    return names


def _classes(folder: Path) -> list[str]:
    return _scan(folder, "class folders", lambda entry: entry.is_dir())


def _listing(folders: Sequence[Path]) -> Listing:
    """The images in one folder for each class; the label is the folder's place in the list."""
    expected = f"images ({', '.join(EXTENSIONS)})"
    files: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()  # by extension

    def image(entry: os.DirEntry) -> bool:
        known = entry.name.lower().endswith(EXTENSIONS)
        if known and not (entry.is_file() or entry.is_dir()) and os.path.exists(entry):  # opening it may block
            raise UserError(f"{entry.path} is a pipe or a device, no file")
        if entry.is_dir():
            others["folder(s)"] += 1
        elif not known:
            others[os.path.splitext(entry.name)[1].lower() or "without an extension"] += 1
        return known and not entry.is_dir()

    for label, folder in enumerate(folders):
        names = _scan(folder, expected, image)
        files += [os.path.join(folder, name) for name in names]
        labels += [label] * len(names)
    if others:
        told = ", ".join(f"{number} {kind}" for kind, number in others.most_common(5))
        tell(f"{folders[0].parent}: what is no {expected} is left out: {told}", sys.stderr)
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
        raise UserError(f"{annotations} does not fit the images: {reason(error)}") from None
    return classes, {"train": train, "test": Listing(test, labels)}


def _fingerprint(folder: Path, classes: list[str], listings: dict[str, Listing]) -> dict:
    """What shows whether a tree has changed: the name, label, size and modification time of every file."""
    digest, count, size, newest = hashlib.sha256(json.dumps(classes).encode()), 0, 0, 0
    for split, listing in listings.items():
        for file, label in zip(listing.files, listing.labels, strict=True):
            stat = os.stat(file)
            digest.update(os.fsencode(f"{split}/{label}/{file.removeprefix(str(folder)).lstrip(os.sep)}"))
            digest.update(f"\0{stat.st_size}/{stat.st_mtime_ns}\0".encode())
            count, size, newest = count + 1, size + stat.st_size, max(newest, stat.st_mtime_ns)
    seen = {"files": count, "bytes": size, "newest_mtime_ns": newest, "sha256": digest.hexdigest()}
    return seen | {"upright": True}  # arrays kept by older versions are not turned as EXIF asks


# ---- decoding ----


@contextmanager
def _opened(file: str) -> Iterator[Image.Image]:
    """An opened image; whatever goes wrong with it becomes a UserError that names the file."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            yield image
    except UserError:
        raise
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error and more
        raise UserError(f"cannot read the image {file}: {reason(error)}") from None


def _orientation(image: Image.Image) -> int:
    """How the image lies, by the tag in which cameras note it: 1 upright, from 5 on with width and height exchanged."""
    with suppress(Exception):  # damaged EXIF data
        if "exif" in image.info:  # else a PNG file would be decoded to look for it
            return image.getexif().get(ExifTags.Base.Orientation, 1)
    return 1


def _size(image: Image.Image) -> tuple[int, int]:
    """(H, W) of the image as it is shown."""
    height, width = image.height, image.width
    return (width, height) if _orientation(image) in (5, 6, 7, 8) else (height, width)


class Files(Dataset):
    """Image files that must all have the size (H, W) of `first`, the first training image."""

    def __init__(self, files: Sequence[str], size: tuple[int, int], first: str) -> None:
        self.files, self.size, self.first = files, size, first

    def __getitems__(self, rows: list[int]) -> Tensor | UserError:
        """Rows (b,) -> (b, 3, H, W). An error is returned: raised in a worker it would arrive as a long traceback."""
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
        """Read every header, so that a wrong size is told before the training and not during it."""

        def look(row: int) -> None:
            with self._checked(row):
                pass

        self._each(look, f"checking {title}")

    @contextmanager
    def _checked(self, row: int) -> Iterator[Image.Image]:
        file, (height, width) = self.files[row], self.size
        with _opened(file) as image:
            if (found := _size(image)) != self.size:
                raise UserError(
                    f"{file} is {found[1]} x {found[0]} pixels but {self.first} is {width} x {height}: "
                    "all images of a set must have one size"
                )
            if image.mode.startswith(("I", "F")):  # as RGB these would be clipped to white
                raise UserError(f"{file} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits")
            yield image

    def _decode(self, row: int) -> np.ndarray:
        """One image (3, H, W) uint8, upright; grey, palette and transparent images become plain RGB."""
        with self._checked(row) as image:
            if _orientation(image) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            opaque = image.convert("RGBA") if image.mode == "P" else image  # PIL warns about transparent palettes
            return np.asarray(opaque.convert("RGB")).transpose(2, 0, 1)

    def _each(self, work: Callable[[int], None], title: str) -> None:
        """Do `work` for every row, in threads. Of several errors that of the first row is raised."""

        def chunk(rows: range) -> int:
            for row in rows:
                work(row)
            return len(rows)

        rows = range(len(self.files))
        with ThreadPoolExecutor(cpus()) as pool, tqdm(total=len(rows), desc=title, disable=None) as bar:
            if bar.disable and len(rows) >= 10_000:  # takes seconds
                tell(f"{title}: {len(rows)} images", sys.stderr)
            for done in pool.map(chunk, [rows[start : start + 256] for start in rows[::256]]):
                bar.update(done)

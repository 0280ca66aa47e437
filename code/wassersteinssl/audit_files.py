"""Features to audit, read chunk by chunk from files of many kinds.

Memory does not grow with the number of rows: a mapped file (.npy, .pt, .safetensors) is opened anew for every chunk, so
that its pages are given back, and others are read as a stream. No file can run code: pickles and object arrays are
refused.
"""

from __future__ import annotations

import csv
import itertools
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from torch import Tensor

from wassersteinssl.cli import UserError
from wassersteinssl.files import reason

CHUNK = 2**21  # numbers read at once: 16 MiB in float64
TEXT = "utf-8-sig"  # spreadsheets put a byte-order mark before the first number
TABLES = (".csv", ".tsv")
INDEX = ("", "Unnamed: 0")  # heads of the index column that pandas writes by default
NO_FEATURES = ("label", "labels", "class", "target", "y", "id", "index", "image_id", "split", "epoch")
COUNTED = 1000  # lines of a table that are searched for an index
CODE = "which could run code when read: save a plain array"


@dataclass(frozen=True)
class Features:
    """n rows of m features. `chunks()` yields them in order, as floating (k, m) tensors; it may raise UserError."""

    name: str
    n: int
    m: int
    dtype: str
    chunks: Callable[[], Iterator[Tensor]]
    labels: Tensor | None = None  # (n,) int64, where the source has them
    notes: tuple[str, ...] = ()


class Stored(NamedTuple):
    """An array in a file."""

    shape: tuple[int, ...]
    dtype: str
    chunks: Callable[[], Iterator[Any]]  # of rows, NumPy arrays or tensors
    notes: tuple[str, ...] = ()


def of_rows(rows: np.ndarray | Tensor, name: str, labels: Any = None) -> Features:
    """Features in memory: (n, m), a row for each sample, and n labels if given. UserError for anything else."""
    if not isinstance(rows, np.ndarray | Tensor) or rows.ndim != 2 or 0 in rows.shape:
        what = f"shape {tuple(rows.shape)}" if isinstance(rows, np.ndarray | Tensor) else f"type {type(rows).__name__}"
        raise UserError(f"{name}: features are an array or tensor (rows, features), not one of {what}")
    if isinstance(rows, Tensor) and rows.layout != torch.strided:
        raise UserError(f"{name}: features are a dense tensor, not a sparse one")
    if np.ma.is_masked(rows):
        raise UserError(f"{name}: some features are masked")
    _check_type(rows.dtype.name if isinstance(rows, np.ndarray) else str(rows.dtype).removeprefix("torch."), name)
    z = _floating(rows.detach().cpu() if isinstance(rows, Tensor) else rows)
    n, m = z.shape
    classes = None
    if labels is not None:
        values = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
        classes = _classes(values, n, f"{name}: the array")
    dtype = str(z.dtype).removeprefix("torch.")
    return Features(name, n, m, dtype, lambda: map(z.__getitem__, _parts((n, m))), classes)


def pick(chunks: Iterable[Tensor], index: Tensor) -> Tensor:
    """Rows `index` (ascending) of all chunks together, in float64. They are copied into one block of memory, as small
    blocks, kept from many chunks, would prevent the allocator from reusing the chunks' memory."""
    found, start = torch.empty(0), 0
    for chunk in chunks:
        if not start:
            found = torch.empty(len(index), chunk.shape[1], dtype=torch.float64)
        here = within(index, start, len(chunk))
        found[here] = chunk[index[here] - start].double()
        start += len(chunk)
    return found


def within(index: Tensor, start: int, rows: int) -> slice:
    """The part of the ascending `index` that falls into so many rows from `start` on."""
    return slice(*torch.searchsorted(index, torch.tensor([start, start + rows])).tolist())


def with_labels(features: Features, path: Path | None, key: str | None = None) -> Features:
    return features if path is None else replace(features, labels=read_labels(path, features.n, key))


# ---- files -----------------------------------------------------------------------------------------------------------


def read(path: Path, key: str | None = None, drop: Collection[str] = ()) -> Features:
    """The features in a file, or in the files of a folder, one after another in natural order (2 before 10).

    `key` names the array in a file that holds several. `drop` names columns of a table to leave out, if they exist.
    UserError, one line, for anything but a matrix of numbers.
    """
    _check_there(path)
    if not path.is_dir():
        return _read_file(path, key, drop)
    if (path / "encoder.safetensors").exists():
        raise UserError(f"{path} is the folder of a run: audit it with --encoder")
    files = sorted((file for file in path.iterdir() if _kind(file) in KNOWN and file.name[0] != "."), key=_natural)
    if not files:
        raise UserError(f"no features in {path}: it holds none of {', '.join(KNOWN)}")
    shards = [_read_file(file, key, drop) for file in files]
    for shard in shards:
        if shard.m != shards[0].m:
            raise UserError(f"shards differ: {shards[0].name} has {shards[0].m} features, {shard.name} {shard.m}")
    return Features(
        name=str(path),
        n=sum(shard.n for shard in shards),
        m=shards[0].m,
        dtype=", ".join(sorted({shard.dtype for shard in shards})),
        chunks=lambda: itertools.chain.from_iterable(shard.chunks() for shard in shards),
        notes=(f"{len(shards)} shards", *dict.fromkeys(note for shard in shards for note in shard.notes)),
    )


def read_labels(path: Path, n: int, key: str | None = None) -> Tensor:
    """Classes 0, 1, ... of n rows, (n,) int64, from n numbers or, in .csv, .tsv and .txt, n lines of text. `key` names
    one of several arrays, or the column of a table with a header. If a table of one column has one line too many, the
    first is a header, unless it is a number or one of the classes. An index column written by pandas is left out."""
    _check_there(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: labels are one file")
    if key is not None and _kind(path) in (".npy", ".txt"):
        raise UserError(f"--labels-key names an array or a column of several, not in {_kind(path)}")
    with _reading(path):
        if _kind(path) in (*TABLES, ".txt"):
            lines = path.read_text(encoding=TEXT).splitlines()
            values = np.array(lines if _kind(path) == ".txt" else _column(path, lines, n, key))
        else:
            stored = _format(path)(path, key, 1)
            _check_labels(stored.shape, n, str(path))  # before they are read
            values = np.concatenate([np.asarray(chunk) for chunk in stored.chunks()])
    return _classes(values, n, str(path))


def _check_labels(shape: tuple[int, ...], n: int, source: str) -> None:
    if shape not in ((n,), (n, 1)):
        raise UserError(f"{source} holds labels of shape {shape} for {n} rows of features")


def _classes(values: np.ndarray, n: int, source: str) -> Tensor:
    """n labels as classes 0, 1, ..., (n,) int64. UserError if some are missing."""
    _check_labels(values.shape, n, source)
    values, empty = values.reshape(-1), 0
    if values.dtype.kind == "f":
        empty = int(np.isnan(values).sum())
    elif values.dtype.kind in "US":
        empty = int(np.isin(values, np.array(["", "nan", "NaN"], values.dtype.kind)).sum())
    elif values.dtype.kind == "O":  # as pandas has them
        empty = sum(value is None or value != value or value == "" for value in values)
    if empty:
        raise UserError(f"{source} holds no label for {empty} of {n} rows")
    try:
        return torch.from_numpy(np.unique(values, return_inverse=True)[1].astype(np.int64))
    except TypeError:  # cannot be put in order
        raise UserError(f"{source} holds labels of several kinds") from None


def _column(path: Path, lines: list[str], n: int, key: str | None) -> list[str]:
    """The n cells of the column called `key`, or of a table's only column without its header and its index."""
    rows = list(csv.reader(lines, delimiter=_delimiter("".join(lines[:1]))))
    while rows and not rows[-1]:  # an empty line at the end
        rows.pop()
    if key is not None:
        rows = [row for row in rows if row]
        names = [name.strip() for name in rows[0]] if rows else []
        if key not in names:
            raise UserError(f"no column of {path} is called {key}: {', '.join(names) or 'it holds none'}")
        if wrong := [row for row in rows if len(row) != len(names)]:
            raise UserError(f"{path} has lines of {len(wrong[0])} cells below a header of {len(names)}")
        return [row[names.index(key)] for row in rows[1:]]
    indexed = bool(rows) and len(rows[0]) > 1 and rows[0][0] in INDEX
    cells = [(row[1:] if indexed else row) or [""] for row in rows]  # an empty line is a label that is missing
    if wrong := [row for row in cells if len(row) != 1]:
        raise UserError(f"{path} has {len(wrong[0])} columns: choose one with --labels-key, by its name in the header")
    found = [cell for (cell,) in cells]
    header = len(found) == n + 1 and (indexed or not (_is_number(found[0]) or found[0] in found[1:]))
    return found[1:] if header else found


def check_key(paths: Iterable[Path]) -> None:
    """UserError if a key has nothing to choose from, because every file holds one array without a name."""
    files = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
    if all(_kind(file) in UNNAMED for file in files if _kind(file) in KNOWN):
        raise UserError(f"--key names an array in a file that holds several, not in {', '.join(UNNAMED)}")


def check_columns(path: Path, names: Collection[str]) -> None:
    """UserError if no table at `path` has a column of one of these names."""
    if not names:
        return
    _check_there(path)
    files = [file for file in (path.iterdir() if path.is_dir() else [path]) if _kind(file) in TABLES]
    with _reading(path):
        found = list(dict.fromkeys(name for file in files for name in _head(file).header))
    for name in names:
        if name not in found:
            raise UserError(f"no column of {path} is called {name}: {', '.join(found) or 'it holds none with a name'}")


def _read_file(path: Path, key: str | None, drop: Collection[str]) -> Features:
    with _reading(path):
        stored = _table(path, drop) if _kind(path) in TABLES else _format(path)(path, key, 2)
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise UserError(f"{path} holds an array of shape {stored.shape}: features are a matrix (rows, features)")
    n, m = stored.shape
    _check_type(stored.dtype, str(path))

    def chunks() -> Iterator[Tensor]:
        with _reading(path):
            yield from map(_floating, stored.chunks())

    notes = () if stored.dtype in FLOATS else (f"whole numbers ({stored.dtype}), taken as they are",)
    return Features(str(path), n, m, stored.dtype, chunks, notes=stored.notes + notes)


def _check_type(dtype: str, source: str) -> None:
    if dtype not in FLOATS and not re.fullmatch(r"u?int\d+|bool", dtype):
        raise UserError(f"{source} holds {dtype}: features are float16 to float64, or whole numbers")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong with a file into a UserError of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged bytes can fail anywhere in numpy, torch and zlib
        if isinstance(error, pickle.UnpicklingError):
            raise UserError(f"cannot read {path}: it holds more than tensors, {CODE}") from None
        if "pickle" in str(error) or "Python objects" in str(error):
            raise UserError(f"cannot read {path}: it holds no array, or Python objects, {CODE}") from None
        raise UserError(f"cannot read {path}: {reason(error)[:300]}") from None


def _npy(path: Path, key: str | None, ndim: int) -> Stored:
    def rows(part: slice) -> np.ndarray:
        return np.load(path, mmap_mode="r", allow_pickle=False)[part]

    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
            raise ValueError("no .npy header: save it with np.save")
    with np.errstate(over="ignore"):  # a size beyond all numbers is an error by itself
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return Stored(array.shape, array.dtype.name, _slices(rows, array.shape))


def _torch(path: Path, key: str | None, ndim: int) -> Stored:
    if not zipfile.is_zipfile(path):
        raise ValueError("no file of torch.save, or one from before torch 1.6")

    def tensors() -> dict[str, Tensor]:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        arrays = content if isinstance(content, dict) else {"the tensor": content}
        found = {str(name): value.detach() for name, value in arrays.items() if isinstance(value, Tensor)}
        if not found:
            raise ValueError(f"a {type(content).__name__} without a tensor at its top: save a tensor or a dict of some")
        return found

    found = tensors()
    name, notes = _choose({name: value.ndim for name, value in found.items()}, key, ndim)
    array = found[name]
    if array.layout != torch.strided or array.is_quantized or array.is_meta:
        raise ValueError("the tensor is sparse, quantised or without its numbers")
    shape = tuple(array.shape)
    rows = _slices(lambda part: tensors()[name][part], shape)
    return Stored(shape, str(array.dtype).removeprefix("torch."), rows, notes)


def _safetensors(path: Path, key: str | None, ndim: int) -> Stored:
    with safetensors.safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    name, notes = _choose({name: len(shape) for name, shape in shapes.items()}, key, ndim)

    def rows(part: slice) -> Tensor:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.get_slice(name)[part]

    shape = tuple(shapes[name])
    if not shape:
        raise ValueError("it holds a single number")
    return Stored(shape, str(rows(slice(0, 1)).dtype).removeprefix("torch."), _slices(rows, shape), notes)


def _npz(path: Path, key: str | None, ndim: int) -> Stored:
    """Unpacked while it is read, as a compressed array can only be read from its beginning."""

    def header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
        version = np.lib.format.read_magic(file)
        if version > (1, 0) and int.from_bytes(file.peek(4)[:4], "little") >= 2**16:  # zipped, it could be gigabytes
            raise ValueError("the header of an array is too long")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)

    with zipfile.ZipFile(path) as archive:
        headers = {}
        for member in archive.namelist():
            with archive.open(member) as file:
                headers[member.removesuffix(".npy")] = header(file)
    name, notes = _choose({name: len(shape) for name, (shape, _, _) in headers.items()}, key, ndim)
    shape, by_columns, dtype = headers[name]
    if dtype.hasobject:
        raise UserError(f"cannot read {path}: {name} holds Python objects, {CODE}")
    if by_columns and min(shape) > 1:
        raise UserError(f"cannot read {path}: {name} is stored column by column; save np.ascontiguousarray of it")

    def chunks() -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(name + ".npy") as file:
            header(file)
            for part in _parts(shape):
                k = part.stop - part.start
                numbers = k * int(np.prod(shape[1:]))
                yield np.frombuffer(file.read(numbers * dtype.itemsize), dtype, numbers).reshape(k, *shape[1:])

    return Stored(shape, dtype.name, chunks, notes)


class _Head(NamedTuple):
    """How a table begins."""

    delimiter: str
    columns: int
    header: list[str]  # names of the columns; none without a header
    numbered: bool  # the names are 0, 1, 2, ...
    lines: int  # before the numbers begin


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1, without empty ones. A line of tabs is not empty: it separates missing cells."""
    with path.open(encoding=TEXT) as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if line.strip(" \r\n"))


def _head(path: Path) -> _Head:
    """The head of a table. Its first line is a header if it has no number, or if it counts 0, 1, 2, ... (further than
    0,1, which may be a code), perhaps after a name. Lines before it are comments if they begin with # and have another
    number of cells than the next line."""
    head = [line for _, line in itertools.islice(_numbered_lines(path), COUNTED)]
    comments = 0
    for line, following in itertools.pairwise(head):
        delimiter = _delimiter(following)
        if not line.startswith("#") or line.count(delimiter) == following.count(delimiter):
            break
        comments += 1
    first = head[comments].removeprefix("#") if head else ""
    delimiter = _delimiter(first)
    names = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    numbered = len(names) > 2 and names == _count(len(names))  # as pandas names columns
    counted = len(names) > 1 and (names[0] in INDEX or len(names) > 3) and names[1:] == _count(len(names) - 1)
    header = numbered or counted or (any(names) and not any(map(_is_number, names)))
    return _Head(delimiter, len(names), names if header else [], numbered, comments + header)


def _table(path: Path, drop: Collection[str]) -> Stored:
    """Numbers separated by comma, semicolon or tab, a line for each row. Left out are a first column that has no name
    or counts the rows (an index), the columns that `drop` names, and those whose name says that they are not features.
    """
    delimiter, columns, names, numbered, before = _head(path)

    def numbered_rows() -> Iterator[tuple[int, str]]:
        """The lines below the header."""
        return itertools.islice(_numbered_lines(path), before, None)

    def lines() -> Iterator[str]:
        return (line for _, line in numbered_rows())

    firsts = [line.partition(delimiter)[0].strip() for line in itertools.islice(lines(), COUNTED)]
    counting = len(firsts) > 3 and columns > 1 and firsts[0].isdecimal() and len(firsts[0]) < 19
    counting = counting and firsts == [str(int(firsts[0]) + k) for k in range(len(firsts))]
    index = int(counting or (bool(names) and names[0] in INDEX))
    out = {k: "" for k, name in enumerate(names) if k >= index and name in drop}
    by_name = {k for k, name in enumerate(names) if k >= index and _is_no_feature(name, names)} - out.keys()
    out |= dict.fromkeys(by_name, ", as by its name it is no feature: rename it to keep it")
    kept = [k for k in range(index, columns) if k not in out]

    def cells_of(line: str) -> list[str]:
        return next(csv.reader([line], delimiter=delimiter))

    def check(number: int, line: str) -> None:
        cells = cells_of(line)
        for column, cell in enumerate(cells):
            if column >= index and column not in out and not _is_number(cell):
                what = f"text ({cell.strip()[:40]!r})" if cell.strip() else "an empty cell"
                why = "numbers only" + (" (--drop-columns leaves a column out)" if names else "")
                if DECIMAL_COMMA.fullmatch(cell):
                    why = "numbers need a decimal point"
                raise UserError(f"column {column + 1} of {path} holds {what}, in line {number}: {why}")
        if len(cells) != columns:
            raise UserError(f"line {number} of {path} has {len(cells)} cells, the first {columns}")

    shape = (sum(1 for _ in lines()), len(kept))
    if 0 in shape:
        raise UserError(f"{path} holds no numbers" + (" beside the columns that are left out" if out else ""))
    check(*next(numbered_rows()))

    def chunks() -> Iterator[np.ndarray]:
        remaining = lines()
        for part in _parts(shape, share=4):  # numbers take more room as text
            text = list(itertools.islice(remaining, part.stop - part.start))
            whole = all(line.count(delimiter) == columns - 1 or len(cells_of(line)) == columns for line in text)
            try:
                rows = np.loadtxt(text, delimiter=delimiter, ndmin=2, comments=None, usecols=kept, quotechar='"')
            except ValueError:
                rows = np.empty((0, 0))
            if not whole or rows.shape != (len(text), shape[1]):
                for number, line in numbered_rows():
                    check(number, line)
                raise ValueError(f"its lines are not all {shape[1]} numbers")
            yield rows

    why = "counts the rows" if counting else "has no name"
    notes = [f"the first column, which {why}, was taken for an index and left out"] if index else []
    notes += [f"column {k + 1}, {names[k]!r}, was left out{why}" for k, why in sorted(out.items())]
    if numbered:
        notes.append(f"the first line, 0 to {columns - 1}, was taken for a header")
    return Stored(shape, "float64", chunks, tuple(notes))


FORMATS: dict[str, Callable[[Path, str | None, int], Stored]] = {
    ".npy": _npy, ".npz": _npz, ".pt": _torch, ".pth": _torch, ".safetensors": _safetensors,
}  # fmt: skip
KNOWN = (*FORMATS, *TABLES)
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+(,\d+)?(e[+-]?\d+)?\s*", re.IGNORECASE)
UNNAMED = (".npy", *TABLES)  # hold one array, without a name
FLOATS = ("float16", "bfloat16", "float32", "float64")


def _kind(path: Path) -> str:
    return path.suffix.lower()


def _check_there(path: Path) -> None:
    if not path.exists():
        raise UserError(f"there is no {path}")
    if not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is a pipe or a device, which cannot be read twice: give a file")


def _format(path: Path) -> Callable[[Path, str | None, int], Stored]:
    if _kind(path) not in FORMATS:
        raise UserError(f"cannot tell what {path} holds: known are {', '.join(KNOWN)}")
    return FORMATS[_kind(path)]


def _choose(dimensions: dict[str, int], key: str | None, ndim: int) -> tuple[str, tuple[str, ...]]:
    """The name of the array that `key` asks for, or of the only one with `ndim` dimensions; a note if others remain."""
    found = [name for name, number in dimensions.items() if number == ndim]
    if key is not None:
        if key not in dimensions:
            raise ValueError(f"no array is called {key}: {', '.join(dimensions) or 'it holds none'}")
        return key, ()
    if len(found) > 1:
        option = "--key" if ndim == 2 else "--labels-key"
        raise ValueError(f"several arrays: choose one with {option}: {', '.join(found)}")
    if not dimensions:
        raise ValueError("it holds no array")
    name = found[0] if found else next(iter(dimensions))  # its shape is wrong, which the caller will tell
    return name, (f"of the arrays {', '.join(dimensions)}, {name} was taken",) if len(dimensions) > 1 else ()


def _parts(shape: tuple[int, ...], share: int = 1) -> Iterator[slice]:
    """Slices of rows that hold CHUNK / share numbers each."""
    rows = max(1, CHUNK // share // max(1, int(np.prod(shape[1:]))))
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def _slices(rows: Callable[[slice], Any], shape: tuple[int, ...]) -> Callable[[], Iterator[Any]]:
    return lambda: map(rows, _parts(shape))


def _floating(rows: np.ndarray | Tensor) -> Tensor:
    """Rows in memory, in their own floating type; whole numbers in a floating type that can hold them."""
    if isinstance(rows, np.ndarray):
        small = rows.dtype.kind in "iub" and rows.dtype.itemsize <= 2
        native = np.float32 if small else np.float64 if rows.dtype.kind in "iub" else rows.dtype.newbyteorder("=")
        rows = torch.from_numpy(rows.astype(native))  # a copy, as a memory map must not be written to
    return rows if rows.is_floating_point() else rows.to(torch.float32 if rows.itemsize <= 2 else torch.float64)


def _delimiter(line: str) -> str:
    for mark in ";\t":
        if mark in line and all(map(DECIMAL_COMMA.fullmatch, line.split(mark))):
            return mark
    return max(",;\t", key=line.count)


def _is_no_feature(name: str, names: list[str]) -> bool:
    name = name.casefold()
    return name.endswith("_id") or (name in NO_FEATURES and not (name == "y" and "x" in map(str.casefold, names)))


def _count(n: int) -> list[str]:
    return [str(k) for k in range(n)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _natural(path: Path) -> list:
    """A key that sorts shard-2 before shard-10. Labels and views must be in the same order."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]

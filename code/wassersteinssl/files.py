"""Files written whole or not at all, what went wrong with one, in a line, and programs as modules."""

import errno
import importlib.util
import os
import secrets
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from wassersteinssl.cli import UserError


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], None]) -> None:
    """All of the content under `path`, or what was there before. `content` may be a function that writes it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # two containers may have one process id
    try:
        with open(temporary, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None:
            error.filename, error.filename2 = str(path), None  # not the temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # makes the rename itself survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a network file system that does not offer it
                raise
        finally:
            os.close(folder)


def check_writable(folder: Path) -> None:
    """UserError now, not after minutes of work, if no file can be written into `folder`, be it still to be made;
    nothing stays there."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # permissions do not tell of a file system like /proc
    except OSError as error:
        where = folder if existing == folder.absolute() else f"{folder}: {existing}"
        raise UserError(f"cannot write into {where}: {error.strerror}") from None


def sweep(folder: Path) -> None:
    """Remove what a writer that was killed has left. Only while nobody else writes into the folder."""
    for orphan in folder.glob(".*.part"):
        orphan.unlink()


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def load_module(path: Path) -> ModuleType:
    """A program's file as a module, once; its name is of the whole path, as a file may be called like a package."""
    name = f"{path.stem}_{zlib.crc32(os.fsencode(path.resolve())):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

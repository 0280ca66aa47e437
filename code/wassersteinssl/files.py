"""Files: written whole or not at all; an error in a line; a program's file as a module."""

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
    """Replace the file by the content, or leave it as it was. `content` may be a function that writes it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # process ids repeat between containers
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
            error.filename, error.filename2 = str(path), None  # not the temporary name
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # so that the rename survives a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems cannot
                raise
        finally:
            os.close(folder)


def check_writable(folder: Path) -> None:
    """UserError now, not after minutes of work, if no file can be written into `folder`, which need not exist yet.
    Leaves nothing there."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()  # permissions would not tell, for instance in /proc
    except OSError as error:
        where = folder if existing == folder.absolute() else f"{folder}: {existing}"
        raise UserError(f"cannot write into {where}: {error.strerror}") from None


def sweep(folder: Path) -> None:
    """Remove what a killed writer has left. Only while nobody else writes into the folder."""
    for orphan in folder.glob(".*.part"):
        orphan.unlink()


def reason(error: BaseException) -> str:
    """One line that says what went wrong."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


def load_module(path: Path) -> ModuleType:
    """A program's file as a module, loaded once. The module's name depends on the whole path, as the file may be named
    like a package."""
    name = f"{path.stem}_{zlib.crc32(os.fsencode(path.resolve())):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)  # where dataclasses look for it
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]

"""What every program's command line needs: the parser, checks of numbers, mistakes told in one line.

Imports nothing heavy: --help and a wrong option are answered before torch is loaded.
"""

import argparse
import errno
import importlib.util
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

STOPPED = 75  # exit status "temporary failure": a scheduler may start the same command again
LARGEST, LARGEST_FLOAT = 2**53, 3e38  # whole numbers of a float64, numbers of a float32


class UserError(Exception):
    """A user's mistake, told in one line; the program then exits with status 2."""


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a line in one piece, as other processes may write to the same pipe or terminal. If the reader has gone, the
    line is lost, but the program goes on."""
    stream = stream or sys.stdout
    try:
        stream.write(f"{text}\n")  # print would write the end of the line separately
        stream.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        _silence(stream)


def _silence(stream: TextIO) -> None:
    """Discard what is still to be written; Python would try again to write it when it ends."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def printable(text: str) -> str:
    """The text without control characters, which could steer a terminal or end a line: names of files may hold any."""
    return "".join(character if character.isprintable() else "?" for character in text)


def exit_status(function: Callable[..., int], *arguments: Any) -> int:
    """Call a program's function and return its exit status. A mistake, or a file that cannot be used, is told in one
    line, with status 2."""
    try:
        status = function(*arguments)
        sys.stdout.flush()  # now, as a reader that has gone is an error that can still be handled
        return 130 if Parser.interrupted else status
    except UserError as error:
        why = str(error)
    except BrokenPipeError as error:
        _silence(sys.stdout)
        why = str(error.strerror)
    except OSError as error:  # no right to look at it, say, or a name that is too long
        why = ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
    last_words(f"{Path(sys.argv[0]).name}: error: {why}")
    return 2


def last_words(text: str) -> None:
    """Tell on stderr why a program ends. If nothing can be written (a full disk), the exit status has to do."""
    try:
        tell(printable(text), sys.stderr)
    except OSError:
        _silence(sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _silence(sys.stdout)


class Parser(argparse.ArgumentParser):
    """A program's command line. --help shows the description as it stands; a mistake is told in one line. From parsing
    on so is Ctrl-C, unless the program handles it otherwise. If the same command `continues` the program, so are the
    other signals that ask it to stop, with status STOPPED."""

    interrupted = False  # remembered, as a library may swallow Ctrl-C, for instance in a callback

    def __init__(self, description: str | None = None, *, continues: bool = False):
        self.continues = continues
        super().__init__(
            prog=Path(sys.argv[0]).name,
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:  # some daemons close it
                setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):  # tables contain arrows, which not every terminal can show
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")

    def parse_known_args(self, args=None, namespace=None):  # parse_args calls it, too
        if args is None:  # programs only write figures; a backend left in the environment may not be there
            os.environ["MPLBACKEND"] = "agg"
        if args is None and threading.current_thread() is threading.main_thread():
            for number in ending_signals() if self.continues else [signal.SIGINT]:
                signal.signal(number, self._interrupted)
            if hasattr(signal, "SIGQUIT"):  # what a script starts in the background ignores it
                signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        found = super().parse_known_args(args, namespace)
        if args is None and importlib.util.find_spec("torch") is None:  # --help has answered
            why = f"{sys.executable} has no torch: activate the environment (README, Install)"
            self.exit(2, f"{self.prog}: error: {why}\n")
        return found

    def _interrupted(self, number: int, frame: FrameType | None) -> NoReturn:
        status, told = STOPPED, f"{self.prog}: stopped; the same command goes on\n"
        if number == signal.SIGINT or not self.continues:
            status, told = 130, f"\n{self.prog}: interrupted\n"
            Parser.interrupted = True
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):  # NumPy and torch catch SystemExit there
                sys.stderr.write(told)
                sys.stderr.flush()
                os._exit(status)
            frame = frame.f_back
        self.exit(status, told)

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def ending_signals() -> list[int]:
    """Signals that ask a program to write a checkpoint and end; without SIGHUP (a closed terminal) under nohup."""
    names = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
    found = {name: getattr(signal, name) for name in names if hasattr(signal, name)}  # on Windows two of them
    return [number for name, number in found.items() if (name, signal.getsignal(number)) != ("SIGHUP", signal.SIG_IGN)]


def _number(text: str, kind: type, least: float, above: bool, most: float | None = None) -> Any:
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number") from None
    if value != value or value < least or (above and value == least):
        raise argparse.ArgumentTypeError(f"must be {'above' if above else 'at least'} {least:g}, not {text}")
    if value > (most := most or (LARGEST if kind is int else LARGEST_FLOAT)):
        raise argparse.ArgumentTypeError(
            f"must be at most {most:g}, not {text if len(text) < 40 else text[:20] + '...'}"
        )
    return value


def count(text: str) -> int:
    """A whole number, at least 1."""
    return _number(text, int, 1, above=False)


def whole(text: str) -> int:
    """A whole number, at least 0."""
    return _number(text, int, 0, above=False)


def seed(text: str) -> int:
    """A whole number that a random generator accepts."""
    return _number(text, int, 0, above=False, most=2**63 - 1)


def pair_size(text: str) -> int:
    """A whole number, at least 2: batch-norm and W2 need two rows, SSW two dimensions."""
    return _number(text, int, 2, above=False)


def positive(text: str) -> float:
    return _number(text, float, 0, above=True)


def not_negative(text: str) -> float:
    return _number(text, float, 0, above=False)


def share(text: str) -> float:
    """A number from 0 to 1."""
    return _number(text, float, 0, above=False, most=1)


def plain_name(text: str) -> str:
    """A name that can be part of a path, without leading elsewhere, and of a table."""
    if text in (".", "..") or not text.isprintable() or any(mark in text for mark in ("/", "|", os.sep)):
        raise argparse.ArgumentTypeError(f"{text!r} is no name: no slashes, bars or line breaks")
    return text


def given_path(text: str) -> Path:
    """A path of the command line, its ~ resolved."""
    if not text:  # as an unset shell variable leaves it; it would stand for the current folder
        raise argparse.ArgumentTypeError("an empty path")
    return home(text)


def home(text: str | Path) -> Path:
    """A path, its ~ resolved, which not every shell does behind an equals sign."""
    return Path(os.path.expanduser(text))

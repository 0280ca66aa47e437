"""What the files of a run tell: how far it is, and its result, if that is complete and valid. Loads no torch."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wassersteinssl.cli import LARGEST

# result.json's name of a measure -> heading, decimals
COLUMNS = {
    "acc1": ("Acc@1 ↑", 2),
    "best_acc1": ("best epoch ↑", 2),  # chosen on the test images, which flatters
    "acc5": ("Acc@5 ↑", 2),
    "w2": ("W2 ↓", 3),
    "lu": ("L_U ↓", 2),
    "alignment": ("A ↓", 2),
    "knn1": ("kNN ↑", 2),
}
DAMAGE = (ValueError, KeyError, TypeError, OverflowError, RecursionError)  # what JSON that no run has written raises
NUMBERS = (*COLUMNS, "w2_floor", "pretrain_seconds", "evaluate_seconds")


def read(folder: Path) -> dict:
    """The result of the run in this folder; ValueError, with the reason, if it is unfinished or damaged."""
    try:
        if not (path := folder / "result.json").exists():
            why = "failed" if (folder / "failed.json").exists() else f"not finished, after epoch {epochs(folder)}"
            raise ValueError(why)
    except OSError as error:  # no right to look
        raise ValueError(f"cannot be read: {error.strerror}") from None
    try:
        result = json.loads(path.read_text())
        if result["complete"] is not True:
            raise ValueError("not complete")
        if not all(_finite(result[name]) for name in NUMBERS):
            raise ValueError("a number that is not finite")
        if not result["pretrain_seconds"] > 0:
            raise ValueError("no time of pre-training")
        if not isinstance(settings := result["config"]["settings"], dict):
            raise ValueError("no settings")
        if not all(settings.get(name) is None or _finite(settings[name]) for name in ("alpha_max", "alpha_min")):
            raise ValueError("a weight that is no number")
        if isinstance(length := settings.get("epochs"), int) and not _finite(length):
            raise ValueError("no number of epochs")
        if isinstance(weights := result["config"].get("alpha"), list) and not all(map(_finite, weights)):
            raise ValueError("a weight that is no number")
        if not all(isinstance(result[key], str) for key in ("method", "uniformity", "dataset", "device")):
            raise ValueError("a name that is no text")
        if not all(isinstance(result[key], int) for key in ("seed", "n_test", "dim")):
            raise ValueError("a count that is no whole number")
        if not 0 < result["n_test"] <= LARGEST:
            raise ValueError("no number of test images")
    except (OSError, *DAMAGE) as error:
        raise ValueError(f"result.json cannot be used: {error}") from None
    return result


def finished(folder: Path) -> bool:
    """Whether the run has a valid result."""
    try:
        return bool(read(folder))
    except ValueError:
        return False


def begun(folder: Path) -> bool:
    """Whether the run there has anything to lose. OSError without permission to look."""
    kept = ("metrics.jsonl", "result.json", "encoder.safetensors")
    return any(path.name in kept or path.name.startswith("checkpoint-") for path in folder.iterdir())


def program_digests(config: Any) -> set[str]:
    """Digests of the method's file, as it was at the beginning and the end of the run with this config.json; none for
    older runs."""
    found = set()
    for part in (config, config.get("begun")):
        noted = part.get("versions") if isinstance(part, dict) else None
        if isinstance(noted, dict) and isinstance(digest := noted.get("program"), str):
            found.add(digest)
    return found


def _finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and abs(float(number)) < float("inf")


def log(folder: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl, one for each finished epoch; half-written and damaged ones are left out."""
    lines = []
    with contextlib.suppress(OSError):
        for line in (folder / "metrics.jsonl").read_text(errors="replace").splitlines():
            with contextlib.suppress(*DAMAGE):
                epoch = json.loads(line)
                times = epoch["seconds"], epoch.get("monitor_seconds", 0)
                if all(map(_finite, times)) and isinstance(epoch["epoch"], int) and 0 <= epoch["epoch"] < LARGEST:
                    lines.append(epoch)
    return lines


def epochs(folder: Path) -> int:
    """How many lines metrics.jsonl has, without parsing them: about how many epochs are done. OSError without
    permission to read it."""
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, whose first row is the head, ended by a line break. Bars in cells are escaped."""
    lines = ([cell.replace("|", r"\|") for cell in row] for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)

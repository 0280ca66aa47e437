"""The settings of a run and their command line. Loads no torch.

A method file adds its own settings by subclassing `Settings`. Each field is an option of the same name, with dashes.
"""

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from wassersteinssl.cli import (
    Parser,
    UserError,
    count,
    last_words,
    not_negative,
    pair_size,
    plain_name,
    positive,
    seed,
    whole,
)

CODE = Path(__file__).resolve().parents[1]
# Images used during pre-training, at most: training images for kNN, test images for A. In the end both use all.
MONITOR_IMAGES, MONITOR_PAIRS = 10_000, 5_000
COMPILE = ("no", "augmentation", "all")
DATASETS = ("cifar10", "cifar100", "stl10", "tinyimagenet", "digits", "folder")
# The measures of uniformity.py that can be added to a loss, the paper's two first, with the weights that
# code/regularisers.py tries.
SEARCH_WEIGHTS: dict[str, tuple[float, ...]] = {
    "w2": (0.3, 3, 30),
    "lu": (0.15, 1.5, 15),
    "lu_calibrated": (0.15, 1.5, 15),
    "koleo": (0.15, 1.5, 15),
    "mst": (0.2, 2, 20),
    "ssw": (10, 100, 1000),
    "sigreg": (0.006, 0.06, 0.6),
    "frobenius": (0.03, 0.3, 3),
    "vicreg": (0.01, 0.1, 1),
    "kl": (0.0003, 0.003, 0.03),
    "reverse_kl": (1e-6, 1e-4, 1e-2),
    "jeffreys": (1e-6, 1e-4, 1e-2),
    "bhattacharyya": (0.0005, 0.005, 0.05),
    "tcr": (0.007, 0.07, 0.7),
}
TERMS = tuple(SEARCH_WEIGHTS)


def option(default: Any, help: str, *, check: Callable[[str], Any] | None = None, choices: tuple = ()) -> Any:
    """A dataclass field that is also a command-line option. `check` turns its text into a value or complains; without
    it the text becomes a value of the default's type. TypeError if there are neither check nor choices and the default
    is neither text nor a number."""
    if not (check or choices or isinstance(default, (str, float)) or type(default) is int):
        raise TypeError(f"an option whose default is {default!r} needs check=, from text to a value, or choices=")
    return field(default=default, metadata={"help": help, "check": check or type(default), "choices": choices})


@dataclass(frozen=True)
class Settings:
    """What every method shares. The defaults are the paper's, for CIFAR-10."""

    dataset: str = option(
        "cifar10",
        "the images; digits: tiny, no download (--width 16 --epochs 20: minutes); folder: --data-dir has train/CLASS/* "
        "and test/CLASS/*",
        choices=DATASETS,
    )
    dataset_name: str = option(
        "", "what results call the images of --dataset folder (default: folder)", check=plain_name
    )
    data_dir: str = option("", "where data sets lie or are downloaded to (default: data/ of the repository)")
    limit_train: int | None = option(None, "train on this many images only, balanced over classes", check=count)
    normalization: str = option(
        "dataset", "subtract each data set's own mean or, as the paper, CIFAR-10's", choices=("dataset", "cifar10")
    )

    uniformity: str = option(
        "none", "the term to add to the loss; formulas: code/wassersteinssl/uniformity.py", choices=("none", *TERMS)
    )
    alpha_max: float | None = option(
        None,
        "its weight at the start (default: ALPHA in the method's file, for w2 and lu with MoCo v2, BYOL, Barlow Twins, "
        "Zero-CL; else needed, values to try: SEARCH_WEIGHTS in code/wassersteinssl/settings.py)",
        check=not_negative,
    )
    alpha_min: float | None = option(
        None,
        "its weight after the last epoch; linear in between (default: --alpha-max, or the method's)",
        check=not_negative,
    )

    epochs: int = option(500, "epochs of pre-training", check=count)
    batch_size: int = option(256, "images a step, two views each", check=pair_size)
    weight_lr: float = option(0.2, "learning rate of weights, for a batch of 256", check=positive)
    vector_lr: float = option(0.005, "learning rate of biases and batch-norm, for a batch of 256", check=positive)
    warmup_epochs: float | None = option(
        None, "of linear warm-up (default: 10, and at most a tenth of --epochs)", check=not_negative
    )
    width: int = option(64, "channels of the ResNet-18's first stage; 16 trains on a CPU", check=count)
    hidden_dim: int = option(2048, "width of the projector's hidden layers", check=count)
    dim: int = option(256, "dimensions of the projector's output z", check=pair_size)

    linear_epochs: int = option(100, "epochs of linear evaluation", check=count)
    monitor_every: int = option(5, "epochs between kNN, W2, L_U, A of the test images; 0: never", check=whole)

    seed: int = option(12, "of weights, order and augmentation", check=seed)
    precision: str = option("fp32", "bf16: mixed precision", choices=("fp32", "bf16"))
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    cuda_graph: str = option(
        "auto", "replay the training step as one CUDA graph, where there is a GPU", choices=("auto", "no")
    )
    checkpoint_epochs: int | None = option(
        None, "epochs between checkpoints (default: 1, or more where they would take over 2 % of the time)", check=count
    )
    checkpoint_minutes: float = option(10.0, "a checkpoint after so many minutes too, also within an epoch; 0: never",
                                       check=not_negative)  # fmt: skip
    compile: str = option(
        "no",
        "torch.compile: the augmentation (half a minute at the start), or the networks and, on a GPU, W2 too (minutes)",
        choices=COMPILE,
    )
    tensorboard: str = option(
        "no",
        "yes: epochs of pre-training also as events for TensorBoard (pip install tensorboard)",
        choices=("no", "yes"),
    )
    run_dir: str = option("", "the run's folder (default: runs/DATASET/METHOD+TERM-wWIDTH-eEPOCHS-sSEED)")
    resume: str = option(
        "auto", "auto: continue the run that the folder holds; never: refuse it", choices=("auto", "never")
    )
    stage: str = option("all", "do both stages or one of them", choices=("all", "pretrain", "evaluate"))

    @property
    def warmup(self) -> float:
        """Epochs of warm-up: the paper's 10, but at most a tenth of a shorter run."""
        return min(10, self.epochs / 10) if self.warmup_epochs is None else self.warmup_epochs

    # Settings that may differ when a run is continued: where it runs and what it records, not what it computes.
    PLACE = (
        "data_dir", "device", "cuda_graph", "checkpoint_epochs", "checkpoint_minutes", "compile", "tensorboard",
        "run_dir", "resume", "stage", "monitor_every",
    )  # fmt: skip


@functools.cache
def programs() -> dict[str, str]:
    """The method programs below code/, by the name of their class: every code/Folder/file.py whose folder begins with
    a capital and that ends with `main(Class, ...)`. First those of Table 2, in the order in which their results are
    wanted, then any others. Ends the program with a line if two have the same name."""
    found: dict[str, str] = {}
    for path in sorted(CODE.glob("[A-Z]*/*.py")):
        for name in re.findall(r"^ +main\((\w+),", path.read_text(encoding="utf-8"), re.MULTILINE):
            program = path.relative_to(CODE).as_posix()
            for other, file in found.items():
                if program != file and (name == other or path.name == Path(file).name):
                    last_words(f"error: code/{file} and code/{program}: give the file and its class another name")
                    sys.exit(2)
            found[name] = program
    first = "BYOL MoCoV2 BarlowTwins ZeroCL SimCLR NNCLR SimSiam AlignUniform".split()
    return {name: found[name] for name in [*first, *found] if name in found}


@functools.cache
def settings_of(program: str) -> type[Settings]:
    """The class of a method's settings. Executes only the part of its file (a value of `programs()`) that answers
    --help before torch loads; `Settings` if the file has no such part. UserError if that part fails."""
    path = CODE / program
    head, main, _ = path.read_text(encoding="utf-8").partition("\nif __name__ ==")
    if not main or not re.search(r"^class \w+Settings\(", head, re.MULTILINE):
        return Settings
    module = ModuleType(f"options_of_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for it
    try:
        exec(compile(head, str(path), "exec"), module.__dict__)
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from None
    own = [value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__]
    return next((value for value in own if isinstance(value, type) and issubclass(value, Settings)), Settings)


def own_defaults(program: str) -> dict[str, Any]:
    """Name -> default, as in JSON, of the options that a method's file adds to the shared ones."""
    shared_ones = Settings.__dataclass_fields__
    own = {entry.name: entry.default for entry in fields(settings_of(program)) if entry.name not in shared_ones}
    return json.loads(json.dumps(own))


# What a preset changes; the rest is the paper's.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "short": {"epochs": 100},
    "mini": {"epochs": 20, "width": 16, "linear_epochs": 10},
    "search": {"epochs": 6, "width": 16, "limit_train": 12800, "linear_epochs": 2, "monitor_every": 3},
    "digits": {
        "epochs": 30, "width": 16, "hidden_dim": 256, "dim": 64, "batch_size": 128, "linear_epochs": 30,
        "monitor_every": 15,
    },
}  # fmt: skip


Any_Settings = TypeVar("Any_Settings", bound=Settings)
EPILOG = """The same command continues an interrupted run and skips a finished one. Ctrl-C or SIGTERM: checkpoint.
Exit status: 0 done, 2 a mistake or a full disk, 3 a loss or gradient is not finite, 75 stopped and to be continued, 130
stopped by a second Ctrl-C."""


def parse(kind: type[Any_Settings], description: str | None, arguments: list[str] | None = None) -> Any_Settings:
    """The settings that the command line asks for. Ends the program with status 2 and a line if they make no sense."""
    parser = Parser(description, continues=True)
    parser.epilog = EPILOG
    _add(parser, kind)
    settings = kind(**vars(parser.parse_args(arguments)))
    if settings.alpha_min is not None and settings.alpha_max is None:
        parser.error("--alpha-min needs --alpha-max")
    if settings.alpha_max is not None and settings.uniformity == "none":
        parser.error("--alpha-max needs --uniformity")
    if settings.dataset_name and settings.dataset != "folder":
        parser.error("--dataset-name goes with --dataset folder")
    return settings


def shared(arguments: list[str]) -> Settings:
    """The settings that all methods share, from the command line of any method, whose own options are ignored. Ends the
    program as `parse` does."""
    parser = Parser()
    _add(parser, Settings)
    return Settings(**vars(parser.parse_known_args(arguments)[0]))


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A phrase for each setting in `new` that differs in `old`; settings of PLACE do not count."""
    return [
        f"{key} {old.get(key)!r}, now {value!r}"
        for key, value in new.items()
        if key not in Settings.PLACE and old.get(key) != value
    ]


def other_augmentation(old: Any, new: dict[str, Any]) -> list[str]:
    """A phrase for each value in which two records of an augmentation differ; none if an older run has no record."""
    return [f"augmentation: {told}" for told in differences(old, new)] if isinstance(old, dict) else []


def other_images(old: Any, new: Any) -> list[str]:
    """The keys in which two ImageSet.record differ. Another decoder may move the last digit of the statistics, which
    does not count."""
    if not isinstance(old, dict) or new is None:
        return []

    def near(a: Any, b: Any) -> bool:
        if not all(isinstance(x, list) and all(isinstance(y, float) for y in x) for x in (a, b)):
            return False
        return len(a) == len(b) and all(abs(x - y) < 1.5e-4 for x, y in zip(a, b, strict=True))

    return [
        key
        for key, value in new.items()
        if old.get(key) != value and not (key in ("mean", "std") and near(old.get(key), value))
    ]


def _add(parser: argparse.ArgumentParser, kind: type[Settings]) -> None:
    for entry in fields(kind):
        parser.add_argument("--" + entry.name.replace("_", "-"), **_argument(entry))


def _argument(entry: Field) -> dict[str, Any]:
    if entry.default is MISSING or not entry.metadata:
        raise TypeError(f"settings field {entry.name} must be declared with option(...)")
    default = "" if entry.default in (None, "") else f" (default: {entry.default})"
    argument = {"default": entry.default, "help": (entry.metadata["help"] + default).replace("%", "%%")}
    if entry.metadata["choices"]:
        return {**argument, "choices": entry.metadata["choices"]}
    metavar = "N" if entry.metadata["check"] in (count, whole, seed, pair_size) else "X"
    return {
        **argument,
        "type": entry.metadata["check"],
        "metavar": "TEXT" if entry.metadata["check"] in (str, plain_name) else metavar,
    }

#!/usr/bin/env python3
"""How fast training is, and where a step's time goes.

    python code/benchmarks/bench_train.py --width 16 [--precision bf16] [--device cuda] [--folder PATH]

Every method is trained by the training loop itself, with its W2 term, and in turns with it by the usual way: the same
step on the same device, fed by a DataLoader with a worker for each CPU, which apply the paper's PIL transforms.
images/s counts an image once, though two views of it are trained on; "spread" is the slowest round's time over the
fastest's. The parts of a step are timed where nothing runs ahead, on a GPU therefore without CUDA graph and compiler;
"draw" chooses the augmentations, on the CPU, "rest" is the loss itself and what lies between. W2's share of a step is
that of its value and gradient, timed alone.
"""

import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import bench

from wassersteinssl.cli import count, pair_size
from wassersteinssl.settings import COMPILE, programs

if __name__ == "__main__":
    PARSER = bench.parser(__doc__)
    PARSER.add_argument("--methods", nargs="+", choices=programs(), default=list(programs()))
    PARSER.add_argument("--width", type=count, default=16, help="of the ResNet-18 (default: 16)")
    PARSER.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    PARSER.add_argument("--batch-size", type=pair_size, default=256)
    PARSER.add_argument("--steps", type=count, default=4, help="a round (default: 4; a GPU wants 50)")
    PARSER.add_argument("--rounds", type=count, default=3, help="after the first, which only warms up (default: 3)")
    PARSER.add_argument("--workers", type=count, help="of the DataLoader (default: as many as --threads)")
    PARSER.add_argument("--compile", choices=COMPILE, default="no", help="as in training (default: no)")
    PARSER.add_argument(
        "--folder", type=bench.given_path, help="an image folder, as --dataset folder has it (default: noise)"
    )
    PARSER.add_argument("--no-usual", action="store_true", help="leave out the usual way, half of the time")
    PARSER.add_argument("--profile", action="store_true", help="also the operations of the first method's step")
    ARGS = PARSER.parse_args()

import torch
from bench_augment import TwoViews
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from wassersteinssl import augment, data
from wassersteinssl.augmentation import Augmentation
from wassersteinssl.device import moved
from wassersteinssl.files import load_module
from wassersteinssl.method import Method
from wassersteinssl.optim import LARS, param_groups
from wassersteinssl.pretrain import pretrain
from wassersteinssl.settings import Settings
from wassersteinssl.step import TrainingStep, with_w2_compiled
from wassersteinssl.uniformity import MEASURES
from wassersteinssl.vision import torchvision
from wassersteinssl.w2 import w2_uniformity

PARTS = ("draw", "augmentation", "forward", "W2", "backward", "optimiser", "momentum update")
CIFAR10 = 50_000  # training images
PAPER_EPOCHS = 500


class Stopwatch:
    """Seconds that went into the parts of a step, by wrapping the functions that do them."""

    def __init__(self, method: Method, device: torch.device):
        self.method, self.device, self.seconds = method, device, dict.fromkeys(("step", *PARTS), 0.0)
        self.undo = contextlib.ExitStack()

    def __enter__(self) -> "Stopwatch":
        self.watch(TrainingStep, "__call__", "step")
        self.watch(augment, "draw", "draw")
        self.watch(augment, "apply", "augmentation")
        self.watch(self.method, "forward", "forward")
        self.watch(Tensor, "backward", "backward")
        self.watch(LARS, "step", "optimiser")
        self.watch(self.method, "after_step", "momentum update")
        w2 = MEASURES["w2"]
        MEASURES["w2"] = dataclasses.replace(w2, function=self.timed(w2.function, "W2"))
        self.undo.callback(MEASURES.update, w2=w2)
        return self

    def __exit__(self, *_: Any) -> None:
        self.undo.close()

    def watch(self, owner: Any, name: str, part: str) -> None:
        function = getattr(owner, name)
        setattr(owner, name, self.timed(function, part))
        self.undo.callback(setattr, owner, name, function)

    def timed(self, function: Callable, part: str) -> Callable:
        def call(*arguments: Any, **keywords: Any) -> Any:
            bench.synchronize(self.device)
            start = time.perf_counter()
            result = function(*arguments, **keywords)
            bench.synchronize(self.device)
            self.seconds[part] += time.perf_counter() - start
            return result

        return call


class Usual:
    """The usual way: the same step, fed by worker processes that augment PIL images one at a time."""

    def __init__(self, method: Method, images: data.ImageSet, settings: Settings, device: torch.device, workers: int):
        self.method, self.device = method, device
        optimizer = LARS(param_groups(method, batch_size=settings.batch_size), lr=settings.weight_lr)
        self.step = TrainingStep(method, optimizer, w2_uniformity, images, Augmentation(), settings, device)
        self.step.alpha.fill_(settings.alpha_max)
        pil = [torchvision.transforms.functional.to_pil_image(image) for image in images.train.images]
        self.loader = DataLoader(
            TwoViews(pil, bench.pil_pipeline(images.train.size[0], images.mean, images.std)), settings.batch_size,
            num_workers=workers, persistent_workers=True, pin_memory=device.type == "cuda", shuffle=True,
        )  # fmt: skip

    def epoch(self) -> float:
        """Seconds of an epoch. Workers begin with it and have nothing left to do at its end."""
        start = time.perf_counter()
        for views in self.loader:
            self.step.learn(*(moved(view, self.device) for view in views))
            self.method.after_step(0.5)
        bench.synchronize(self.device)
        return time.perf_counter() - start


def build(name: str, options: dict[str, Any], device: torch.device) -> tuple[Method, Settings]:
    program = load_module(bench.CODE / programs()[name])
    settings = getattr(program, name + "Settings")(**options)
    torch.manual_seed(0)
    return getattr(program, name)(settings).place(device), settings


def train(
    method: Method, images: data.ImageSet, settings: Settings, device: torch.device, after_epoch: Callable[[], Any]
) -> list[float]:
    """Seconds of each epoch of the training loop; `after_epoch` is called between them and not counted."""
    seconds: list[float] = []

    def log(line: dict) -> None:
        seconds.append(line["seconds"])
        after_epoch()

    with contextlib.redirect_stdout(sys.stderr):
        pretrain(
            method, images, Augmentation(), settings, device, state=None, save=lambda *_: None, log=log,
            monitor=dict, stop=lambda: False,
        )  # fmt: skip
    return seconds


def measure(
    name: str, options: dict, images: data.ImageSet, device: torch.device, workers: int, with_usual: bool = True
) -> dict[str, Any]:
    """A row of the tables: rates, parts of a step in milliseconds, floating-point operations."""
    method, settings = build(name, options, device)
    plain = dataclasses.replace(settings, compile="no")
    usual = Usual(build(name, options, device)[0], images, plain, device, workers)
    steps = len(images.train) // settings.batch_size
    usual_seconds: list[float] = []
    with FlopCounterMode(display=False) as flops:  # without the loader, whose workers would inherit the counter
        usual.step.learn(*torch.randn(2, settings.batch_size, 3, *images.train.size, device=device))
    if with_usual:
        usual.epoch()
    after = (lambda: usual_seconds.append(usual.epoch())) if with_usual else (lambda: None)
    seconds = train(method, images, settings, device, after)
    seconds, usual_seconds = seconds[1:], usual_seconds[1:]
    with Stopwatch(method, device) as watch:
        plain = dataclasses.replace(settings, epochs=1, cuda_graph="no", compile="no")
        train(method, images, plain, device, lambda: None)
    step_seconds = statistics.median(seconds) / steps
    rate = settings.batch_size / step_seconds
    z = torch.randn(2 * settings.batch_size, settings.dim, device=device, requires_grad=True)
    function = with_w2_compiled(w2_uniformity, device) if settings.compile == "all" else w2_uniformity
    term = bench.as_in_a_step(lambda: torch.autograd.grad(function(z), z), device)
    w2 = bench.in_turns({"W2": term}, device, seconds=0.5)["W2"]
    return {
        "method": name,
        "images/s": rate,
        "spread": max(seconds) / min(seconds),
        "usual": settings.batch_size * steps / statistics.median(usual_seconds) if with_usual else None,
        "x usual": statistics.median(u / s for u, s in zip(usual_seconds, seconds, strict=True))
        if with_usual
        else None,
        "500 epochs, h": PAPER_EPOCHS * CIFAR10 / rate / 3600,
        "W2 %": 100 * w2 / step_seconds,
        "TFLOP/s": flops.get_total_flops() / step_seconds / 1e12,
        **{part: 1000 * total / steps for part, total in watch.seconds.items()},
    }


def profile(name: str, options: dict, images: data.ImageSet, device: torch.device) -> list[dict[str, Any]]:
    """The operations that a plain step spends most of its time in, in milliseconds a step."""
    method, settings = build(name, {**options, "epochs": 1, "cuda_graph": "no", "compile": "no"}, device)
    train(method, images, settings, device, lambda: None)
    with torch.profiler.profile() as found:
        train(method, images, settings, device, lambda: None)
    steps = len(images.train) // settings.batch_size
    kind = "cpu" if device.type == "cpu" else "device"
    rows = [
        {"operation": event.key[:80], "calls": event.count / steps, "ms": time / steps / 1000}
        for event in found.key_averages()
        if (time := getattr(event, f"self_{kind}_time_total")) > 0
    ]
    return sorted(rows, key=lambda row: -row["ms"])[:25]


def matmul_peak(device: torch.device, precision: str) -> float:
    """TFLOP/s of one large matrix product in this precision: what the step could reach at best."""
    n = 8192
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * n**3 / bench.in_turns({"": lambda: a @ a}, device, seconds=1)[""] / 1e12


def noise(n: int, size: int) -> data.ImageSet:
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)
    split = data.Split(torch.zeros(n, dtype=torch.int64), (size, size), pixels)
    mean, std = data.STATISTICS["cifar10"]
    return data.ImageSet("noise", ("noise",), split, split, mean, std)


def targets(rows: list[dict], device: str, width: int) -> list[bench.Target]:
    """What is asked for at this width on this device."""
    asked: list[bench.Target] = []
    if device == "cpu" and width == 16 and rows[0]["x usual"] is not None:
        worst = min(rows, key=lambda row: row["x usual"])
        asked.append((f"images/s / the usual way's, {worst['method']}", "at least", 1.5, worst["x usual"]))
    if width == 64:
        limits = {} if device == "cpu" else {"BYOL": 23, "MoCoV2": 23, "BarlowTwins": 18, "SimCLR": 18}
        for row in (row for row in rows if row["method"] in limits):
            name, minutes = row["method"], 60 * row["500 epochs, h"]
            asked.append((f"minutes of 500 epochs, {name}", "at most", limits[name], minutes))
        share, heaviest = 1 if device == "cpu" else 3, max(rows, key=lambda row: row["W2 %"])
        asked.append((f"W2's share of a step in %, {heaviest['method']}", "at most", share, heaviest["W2 %"]))
    return asked


def main(args) -> None:
    report = bench.Report(f"train-w{args.width}-{args.precision}", args)
    device = report.device
    batch_size, steps, rounds = (8, 1, 1) if args.quick else (args.batch_size, args.steps, args.rounds)
    options: dict[str, Any] = {
        "width": 2 if args.quick else args.width, "batch_size": batch_size, "epochs": 1 + rounds, "warmup_epochs": 0.0,
        "precision": args.precision, "compile": args.compile, "uniformity": "w2", "alpha_max": 0.2, "monitor_every": 0,
    }  # fmt: skip
    if args.quick:
        options |= {"hidden_dim": 8, "dim": 4}
    n = steps * batch_size
    images = data.load("folder", args.folder, limit_train=n) if args.folder else noise(n, 32)
    rows = []
    for name in tqdm(args.methods[: 1 if args.quick else None], desc="methods", disable=None):
        rows.append(measure(name, options, images, device, args.workers or torch.get_num_threads(), not args.no_usual))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # what a session that ends too soon has found
    if device.type != "cpu":  # where others share the cores, one moment's peak says nothing about another's
        report.content["matmul peak, TFLOP/s"] = peak = matmul_peak(device, args.precision)
        for row in rows:
            row["% of peak"] = 100 * row["TFLOP/s"] / peak
    for row in rows:
        # drawing augmentations and the momentum update are not done by the step object
        row["rest"] = row["step"] + row["draw"] + row["momentum update"] - sum(row[part] for part in PARTS)
    form = {"method": "", "images/s": ",.0f", "spread": ".2f", "usual": ",.0f", "x usual": ".2f"}
    form |= {"500 epochs, h": ".3g", "W2 %": ".2f"}
    title = f"ResNet-18 of width {options['width']}, batch {batch_size}, {args.precision}, with W2"
    report.table(title, rows, form | {"TFLOP/s": ".3g"} | ({"% of peak": ".0f"} if device.type != "cpu" else {}))
    report.table("Milliseconds of a step", rows, {"method": "", "step": ".4g"} | dict.fromkeys((*PARTS, "rest"), ".3g"))
    if args.profile:
        rows_of_profile = profile(args.methods[0], options, images, device)
        report.table(
            f"Operations of {args.methods[0]}", rows_of_profile, {"operation": "", "calls": ".0f", "ms": ".3g"}
        )
    if asked := [] if args.quick else targets(rows, device.type, args.width):
        report.targets(asked)
    report.write()


if __name__ == "__main__":
    bench.run(main, ARGS)

"""What the benchmark programs share: options, timing in turns, memory, and tables with a JSON file beside them.

Times depend on the machine and on who else uses it. Therefore what is compared takes turns in one process, and only
ratios within one table mean much.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

CODE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CODE))  # works with and without an installation

from wassersteinssl.cli import Parser, UserError, count, exit_status, given_path
from wassersteinssl.files import check_writable
from wassersteinssl.results import markdown

# This file and the programs import torch inside functions only, so that --help answers at once.


def parser(description: str | None) -> argparse.ArgumentParser:
    parser = Parser(description)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--threads", type=count, help="of a CPU (default: all that this process may use)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it work? Writes only with --out")
    parser.add_argument(
        "--out",
        type=given_path,
        metavar="FILE",
        help="(default: code/results/benchmarks/NAME-DEVICE.json); and a .md of it",
    )
    parser.add_argument("--note", default="", help="on the circumstances, kept in the file")
    return parser


def run(main: Callable[..., Any], args: argparse.Namespace) -> NoReturn:
    """Run the program. A mistake, or a file that cannot be written, is told in one line, with status 2."""
    sys.exit(exit_status(main, args))


Target = tuple[str, Literal["at least", "at most"], float, float]  # what, kind of bound, bound, measured value


class Report:
    """The tables of one benchmark on one device: printed as they come, written to files at the end."""

    def __init__(self, name: str, args: argparse.Namespace):
        import torch

        from wassersteinssl import device, machine, run_folder

        self.device = device.find_device(args.device)
        torch.set_num_threads(args.threads or machine.cpus())
        on_gpu = self.device.type == "cuda"
        place = torch.cuda.get_device_name(self.device) if on_gpu else self.device.type
        self.path = args.out
        if self.path is None and not args.quick:
            self.path = CODE / "results" / "benchmarks" / f"{name}-{re.sub('[^a-z0-9]+', '-', place.lower())}.json"
        if self.path is not None:
            if self.path.is_dir():
                raise UserError(f"--out {self.path} is a folder")
            check_writable(self.path.parent)
        self.content: dict[str, Any] = {
            "benchmark": name,
            "command": shlex.join(["python", *sys.argv]),
            "hardware": device.hardware(self.device),
            "cpus": machine.cpus(),
            "threads": torch.get_num_threads(),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
            "versions": {**run_folder.versions(), "cuda": torch.version.cuda if on_gpu else None},
            "load_average_before": _load(),
            "note": args.note,
            "tables": {},
        }
        self.text = ""

    def table(self, title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
        """Print rows as Markdown. `columns` names the entries to show, with the format of each."""
        self.content["tables"][title] = rows
        cells = [[format(row[k], f) if row.get(k) is not None else "" for k, f in columns.items()] for row in rows]
        lines = [f"**{title}**", "", *markdown([list(columns), *cells]).splitlines()]
        self.text += "\n".join(lines) + "\n\n"
        print("\n" + "\n".join(lines), flush=True)

    def targets(self, rows: Sequence[Target]) -> None:
        """Print the targets, and whether they are met."""
        table = []
        for what, bound, limit, value in rows:
            met = value >= limit if bound == "at least" else value <= limit
            aim = f"{bound} {limit:g}"
            table.append({"target": what, "aim": aim, "measured": value, "met": "yes" if met else "no"})
        self.table("Targets", table, {"target": "", "aim": "", "measured": ".3g", "met": ""})

    def write(self) -> None:
        self.content["load_average_after"] = _load()
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        content, versions = self.content, self.content["versions"]
        head = f"{content['hardware']} ({content['cpus']} CPUs), torch {versions['torch']}. {content['note']}".strip()
        text = f"{head}\n\n{self.text.strip()}\n"
        self.path.with_suffix(".md").write_text(text, encoding="utf-8")
        print(f"\nwrote {self.path}")


def in_turns(calls: Mapping[str, Callable[[], Any]], device: Any, *, seconds: float) -> dict[str, float]:
    """Median seconds of one call of each. They take turns for about `seconds`, and at least three times."""
    from tqdm import tqdm

    repeat = {}
    for name, call in calls.items():
        call()  # the first call chooses kernels and gets memory
        repeat[name] = max(1, round(0.01 / clock(call, 1, device)))  # short calls are timed several at once
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    done = 0
    with tqdm(desc="turns", unit=" turns", leave=False, disable=None) as bar:
        while done < 3 or time.perf_counter() < end:
            for name, call in calls.items():
                times[name].append(clock(call, repeat[name], device))
            done += 1
            bar.update()
    return {name: statistics.median(values) for name, values in times.items()}


def as_in_a_step(call: Callable[[], Any], device: Any) -> Callable[[], Any]:
    """The call as in training: on a GPU it is replayed from a CUDA graph instead of being launched piece by piece."""
    import torch

    if device.type != "cuda":
        return call
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a DataLoader's thread may pin memory meanwhile
        call()
    return graph.replay


def clock(call: Callable[[], Any], repeat: int, device: Any) -> float:
    """Seconds of one call, averaged over so many."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeat


def two_views(images: Any, step: int, apply: Callable, *, join: bool = True) -> list[Any]:
    """Augment a batch as a training step does: random numbers are drawn on the CPU, then both views are computed on the
    images' device, in one call if they are to be joined. `apply` is `augment.apply`, compiled or not."""
    from wassersteinssl import augment, data
    from wassersteinssl.augmentation import Augmentation

    settings, (mean, std) = Augmentation(), data.STATISTICS["cifar10"]
    drawn = [augment.draw(settings, len(images), images.shape[2:], augment.generator(0, 0, step, v)) for v in "ab"]
    together = augment.joined(drawn) if join else drawn
    repeated = images.repeat(2 // len(together), 1, 1, 1)
    return [apply(repeated, p.to(images.device), settings, mean, std) for p in together]


def synchronize(device: Any) -> None:
    import torch

    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def peak_memory(device: Any) -> Iterator[dict[str, float]]:
    """{"peak": MB above the start}: of tensors on a GPU, else of the process without the files that it maps."""
    import torch

    found = {"peak": float("nan")}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield found
        found["peak"] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
        return
    before = highest = _anonymous()
    stop = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not stop.wait(0.002):
            highest = max(highest, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        stop.set()
        watcher.join()
    found["peak"] = (max(highest, _anonymous()) - before) / 1e6


def _anonymous() -> float:
    """Bytes of this process's own memory; NaN where the system does not tell (not Linux)."""
    with suppress(OSError):
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        if found:
            return 1024.0 * int(found[1])
    return float("nan")


def _load() -> float | None:
    """Processes that wanted a CPU in the last minute, this one included."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def pil_pipeline(size: int, mean: Sequence[float], std: Sequence[float]) -> Callable[[Any], Any]:
    """The paper's augmentation in the usual way: torchvision's transforms of one PIL image at a time."""
    from PIL import Image

    from wassersteinssl.vision import torchvision

    T = torchvision.transforms
    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=Image.Resampling.BICUBIC),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([_PilBlur()], p=0.5),
            T.RandomSolarize(128, p=0.2),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )


class _PilBlur:
    """PIL's Gaussian blur with sigma from U(0.1, 2); a class, so that it can be sent to worker processes."""

    def __call__(self, image: Any) -> Any:
        import random

        from PIL import ImageFilter

        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))

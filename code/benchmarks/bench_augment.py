#!/usr/bin/env python3
"""How many images a second are augmented, two views each, beside the usual pipelines.

    python code/benchmarks/bench_augment.py [--device cuda] [--folder PATH]

All start from decoded images and end with normalised float32 tensors of 32 x 32. Ours works on a whole batch on the
device; the others work image by image on the CPU, kornia's on a batch. kornia and lightly take part where they are
installed. The compiled variant needs a C++ compiler (or Triton, on a GPU); what compiling costs is told.
"""

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import bench

if __name__ == "__main__":
    PARSER = bench.parser(__doc__)
    PARSER.add_argument(
        "--folder", type=bench.given_path, help="an image folder, as --dataset folder has it (default: noise)"
    )
    PARSER.add_argument("--no-compile", action="store_true", help="leave out the compiled variant")
    ARGS = PARSER.parse_args()

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from wassersteinssl import augment, data
from wassersteinssl.files import reason
from wassersteinssl.vision import torchvision

MEAN, STD = data.STATISTICS["cifar10"]


class TwoViews(Dataset):
    """Two augmented views of each image, as a DataLoader wants them."""

    def __init__(self, images: list, transform: Callable):
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.transform(self.images[index]), self.transform(self.images[index])


def ours(images: Tensor, apply: Callable) -> Callable[[], Any]:
    """A training step's augmentation."""
    steps = itertools.count()
    join = apply is augment.apply or images.device.type != "cpu"  # as in TrainingStep
    return lambda: bench.two_views(images, next(steps), apply, join=join)


def one_by_one(images: list, transform: Callable) -> Callable[[], Any]:
    return lambda: [torch.stack([transform(image) for image in images]) for _ in "ab"]


def by_workers(images: list, transform: Callable, workers: int) -> Callable[[], Any]:
    """All images once, by worker processes that stay; each takes an equal share of the batch."""
    loader = DataLoader(
        TwoViews(images, transform), batch_size=-(-len(images) // workers), num_workers=workers,
        persistent_workers=True,
    )  # fmt: skip
    return lambda: list(loader)


def torchvision_v2(size: int) -> Callable[[Tensor], Tensor]:
    import torchvision.transforms.v2 as T

    return T.Compose(
        [
            T.RandomResizedCrop(size, scale=(0.08, 1.0), interpolation=T.InterpolationMode.BICUBIC, antialias=True),
            T.RandomHorizontalFlip(),
            T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            T.RandomGrayscale(0.2),
            T.RandomApply([T.GaussianBlur(15, (0.1, 2.0))], p=0.5),
            T.RandomSolarize(128, p=0.2),
            T.ToDtype(torch.float32, scale=True),
            T.Normalize(MEAN, STD),
        ]
    )


def kornia(images: Tensor) -> Callable[[], Any] | None:
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    transform = torch.nn.Sequential(
        K.RandomResizedCrop(tuple(images.shape[2:]), scale=(0.08, 1.0), resample="bicubic"),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((15, 15), (0.1, 2.0), p=0.5),
        K.RandomSolarize(thresholds=0.0, additions=0.0, p=0.2),  # kornia's threshold is 0.5 plus this
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    return lambda: [transform(images.float() / 255) for _ in "ab"]


def lightly(images: list, size: int) -> Callable[[], Any] | None:
    try:
        from lightly.transforms import BYOLTransform
        from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
    except ImportError:
        return None
    both = BYOLTransform(BYOLView1Transform(input_size=size), BYOLView2Transform(input_size=size))
    return lambda: [torch.stack(view) for view in zip(*(both(image) for image in images), strict=True)]


def compile_cold(images: Tensor) -> tuple[Callable | None, float]:
    """The compiled augmentation and the seconds that its first call took, without what earlier compilations left."""
    import torch._inductor.config

    torch._inductor.config.force_disable_caches = True
    compiled = torch.compile(augment.apply, dynamic=False)
    start = time.perf_counter()
    try:
        ours(images, compiled)()
    except Exception as error:  # no compiler
        print(f"no compiled variant: {reason(error)[:200]}", file=sys.stderr)
        return None, float("nan")
    bench.synchronize(images.device)
    return compiled, time.perf_counter() - start


def main(args) -> None:
    report = bench.Report("augment", args)
    device, threads = report.device, torch.get_num_threads()
    n = 16 if args.quick else 256
    if args.folder:
        pixels = data.load("folder", args.folder).train.images[:n]
    else:
        pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    size, on_device = pixels.shape[3], pixels.to(device)
    pil = [torchvision.transforms.functional.to_pil_image(image) for image in pixels]
    calls = {
        "ours": ours(on_device, augment.apply),
        "the paper's, PIL": one_by_one(pil, bench.pil_pipeline(size, MEAN, STD)),
        f"the paper's, PIL, DataLoader of {threads} workers": by_workers(
            pil, bench.pil_pipeline(size, MEAN, STD), threads
        ),
        "torchvision v2, tensors": one_by_one(list(pixels), torchvision_v2(size)),
        "kornia, batched": kornia(on_device),
        "lightly BYOL, PIL": lightly(pil, size),
    }
    compiling = float("nan")
    if not args.no_compile:
        compiled, compiling = compile_cold(on_device)
        calls["ours, compiled"] = compiled and ours(on_device, compiled)
    calls = {name: call for name, call in calls.items() if call is not None}
    times = bench.in_turns(calls, device, seconds=0.1 if args.quick else 30)
    slowest = times["the paper's, PIL"]
    rows = [
        {"pipeline": name, "two-view images/s": n / t, "x PIL": slowest / t, "compiling, s": None}
        for name, t in sorted(times.items(), key=lambda item: -item[1])
    ]
    for row in rows:
        if row["pipeline"] == "ours, compiled":
            row["compiling, s"] = compiling
    form = {"pipeline": "", "two-view images/s": ",.0f", "x PIL": ".2f", "compiling, s": ".1f"}
    report.table(f"Two views of {n} images", rows, form)
    if not args.quick:
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        targets: list[bench.Target] = [(f"ours / PIL, {label}", "at least", 4, slowest / times["ours"])]
        if "ours, compiled" in times:
            targets.append(("ours, compiled / ours", "at least", 1, times["ours"] / times["ours, compiled"]))
        report.targets(targets)
    report.write()


if __name__ == "__main__":
    bench.run(main, ARGS)

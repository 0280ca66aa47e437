#!/usr/bin/env python3
"""What feeding a network costs, and that it does not depend on the number of images: two augmented views of each image
of a batch, from few, more and many images that are in memory.

    python code/benchmarks/bench_data.py [--device cuda]

An epoch's order is drawn, its batches are taken from the images on the device, and both views augmented as in training;
the times are those of an epoch divided by its batches, of the first 20 at most.
"""

import itertools
import sys

import bench

if __name__ == "__main__":
    ARGS = bench.parser(__doc__).parse_args()

import torch
from tqdm import tqdm

from wassersteinssl import augment, data

BATCH, SIZE, MOST = 256, 32, 20
STEADY = 0.95  # target: images/s of many images as a share of those of few
MEAN, STD = data.STATISTICS["cifar10"]


def epoch(n: int, device: torch.device) -> tuple[int, list]:
    """The batches of an epoch of n images, and a list of one function that passes over them."""
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = data.Split(torch.zeros(n, dtype=torch.int64), (SIZE, SIZE), pixels).to(device)
    settings, batches = augment.Augmentation(), min(MOST, n // BATCH)

    def call() -> None:
        order = torch.randperm(n, generator=augment.generator(0, 0, 0, "order")).split(BATCH)
        for step, (images, _) in enumerate(split.batches(list(itertools.islice(order, batches)), device)):
            drawn = [augment.draw(settings, BATCH, split.size, augment.generator(0, 0, step, view)) for view in "ab"]
            for parameters in augment.joined(drawn):
                augment.apply(images.repeat(2, 1, 1, 1), parameters.to(device, non_blocking=True), settings, MEAN, STD)

    return batches, [call]


def main(args) -> None:
    report = bench.Report("data", args)
    sizes = (BATCH, 2 * BATCH) if args.quick else (5_000, 50_000, 500_000)
    batches, calls = {}, {}
    for n in sizes:
        batches[n], (calls[n],) = epoch(n, report.device)
    with tqdm(desc="passes", disable=None, unit=" passes") as bar:
        counted = {f"{n:,}": (lambda call=call: (call(), bar.update())) for n, call in calls.items()}
        times = bench.in_turns(counted, report.device, seconds=0.1 if args.quick else 60)
    rows = [
        {"images": n, "ms a batch": 1000 * (t := times[f"{n:,}"] / batches[n]), "two-view images/s": BATCH / t}
        for n in sizes
    ]
    report.table(
        f"Two views of {BATCH} images, from so many",
        rows,
        {"images": ",", "ms a batch": ".4g", "two-view images/s": ",.0f"},
    )
    share = rows[-1]["two-view images/s"] / rows[0]["two-view images/s"]
    report.targets([(f"images/s of {sizes[-1]:,} images / of {sizes[0]:,}", "at least", STEADY, share)])
    report.write()


if __name__ == "__main__":
    sys.exit(main(ARGS))

#!/usr/bin/env python3
"""What feeding a network costs, and that it does not depend on the number of images: two augmented views of each image
of a batch, from few, more and many images that are in memory.

    python code/benchmarks/bench_data.py [--device cuda]

Batches are taken in an epoch's order from the images on the device, and both views augmented as in training. To draw
the order, once an epoch, takes nanoseconds an image and is not counted.
"""

from collections.abc import Callable

import bench

if __name__ == "__main__":
    ARGS = bench.parser(__doc__).parse_args()

import torch

from wassersteinssl import augment, data

BATCH, SIZE, MOST = 256, 32, 20
STEADY = 0.95  # target: images/s of many images as a share of those of few


def passing(n: int, device: torch.device) -> tuple[int, Callable[[], None]]:
    """How many batches of n images a call passes over, and the call."""
    pixels = torch.randint(0, 256, (n, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = data.Split(torch.zeros(n, dtype=torch.int64), (SIZE, SIZE), pixels).to(device)
    number = min(MOST, n // BATCH)
    order = torch.randperm(n, generator=augment.generator(0, 0, 0, "order")).split(BATCH)[:number]

    def call() -> None:
        for step, (images, _) in enumerate(split.batches(order, device)):
            bench.two_views(images, step, augment.apply)

    return number, call


def main(args) -> None:
    report = bench.Report("data", args)
    sizes = (BATCH, 2 * BATCH) if args.quick else (5_000, 50_000, 500_000)
    passes = {n: passing(n, report.device) for n in sizes}
    times = bench.in_turns(
        {f"{n:,}": call for n, (_, call) in passes.items()}, report.device, seconds=0.1 if args.quick else 30
    )
    rows = [
        {"images": n, "ms a batch": 1000 * (t := times[f"{n:,}"] / passes[n][0]), "two-view images/s": BATCH / t}
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
    bench.run(main, ARGS)

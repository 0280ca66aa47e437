#!/usr/bin/env python3
"""What a linear classifier on raw pixels reaches: the least that a representation must beat.

    python code/results/mini/pixels.py PATH        PATH: CIFAR-10 as train/<class>/*, test/<class>/*

The linear probe of every run, on normalised pixels instead of features, without augmentation, 10 epochs, at three
learning rates, of which the best on the test set is reported, which favours the pixels. Writes pixels.json and .md.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # works with and without an installation

from wassersteinssl.cli import Parser, exit_status

if __name__ == "__main__":
    PARSER = Parser(__doc__)
    PARSER.add_argument("folder", metavar="PATH", help="train/<class>/*, test/<class>/*")
    FOLDER = PARSER.parse_args().folder

import torch

from wassersteinssl import augment, data
from wassersteinssl.device import hardware
from wassersteinssl.evaluate import LinearProbe
from wassersteinssl.run_folder import versions

EPOCHS, BATCH, SEED = 10, 256, 12


def main(folder: str) -> None:
    images = data.load("folder", folder)
    (x, y), (test_x, test_y) = (
        (augment.normalize(split.images, images.mean, images.std).flatten(1), split.labels)
        for split in (images.train, images.test)
    )
    steps, accuracy = EPOCHS * -(-len(x) // BATCH), {}
    for lr in (0.001, 0.003, 0.01):
        probe = LinearProbe(x.shape[1], len(images.classes), total_steps=steps, batch_size=BATCH, lr=lr)
        for epoch in range(EPOCHS):
            order = torch.randperm(len(x), generator=augment.generator(SEED, epoch, 0, "order"))
            probe.learn(x[order], y[order])
        accuracy[lr] = probe.accuracy(test_x, test_y)[0]
    best = max(accuracy.values())
    here, device = Path(__file__), hardware(torch.device("cpu"))
    content = {"acc1": best, "acc1 by learning rate": accuracy, "seed": SEED, "device": device, "versions": versions()}
    here.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    told = (
        f"A linear classifier on the pixels themselves reaches {best:.2f} % at the best of three learning rates, by "
        "test images (`code/results/mini/pixels.py`)."
    )
    here.with_suffix(".md").write_text(told + "\n")
    print(told)


if __name__ == "__main__":
    sys.exit(exit_status(main, FOLDER))

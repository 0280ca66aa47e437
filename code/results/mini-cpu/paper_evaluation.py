#!/usr/bin/env python3
"""What linear evaluation as in the paper's code would have told of trained runs.

    python code/results/mini-cpu/paper_evaluation.py PATH RUN...     PATH: CIFAR-10 as train/<class>/*, test/<class>/*

Each RUN is a finished run with its encoder. Its linear evaluation is repeated twice, of the same crops: "bilinear"
resizes them bilinearly, as the paper's code does, not bicubically; "drifting" has the backbone's batch-norm in training
mode as well, as in the paper's code, so that its statistics become those of crops; W2, L_U and A are measured after it.
Adds what it finds to paper_evaluation.json, by the names of the runs, and writes paper_evaluation.md.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[2]))  # works with and without an installation

from wassersteinssl.cli import Parser, UserError, exit_status

if __name__ == "__main__":
    PARSER = Parser(__doc__)
    PARSER.add_argument("folder", metavar="PATH", help="train/<class>/*, test/<class>/*")
    PARSER.add_argument("runs", metavar="RUN", nargs="*", help="a run's folder; without any only the table is written")
    ARGUMENTS = PARSER.parse_args()

import statistics
from argparse import Namespace
from unittest.mock import patch

import torch
from torch import Tensor
from tqdm import tqdm

from wassersteinssl import augment, augmentation, data, evaluate, results
from wassersteinssl.encoder import Encoder, load_encoder
from wassersteinssl.run_folder import versions

MEASURES = {"w2": ("W2", 3), "lu": ("L_U", 2), "alignment": ("A", 2)}


def bilinear(start: Tensor, length: Tensor, mirrored: Tensor | None, inside: int, outside: int) -> Tensor:
    """`augment._resize_matrix` with PIL's bilinear kernel, k(t) = max(1 - |t|, 0), instead of the cubic one."""
    pixel, along = torch.arange(inside) + 0.5, (torch.arange(outside) + 0.5) / outside
    start, length = start[:, None], length[:, None]  # (n, 1)
    along = along if mirrored is None else torch.where(mirrored[:, None] > 0, 1 - along, along)  # (n, outside)
    scale = (length / outside).clamp(min=1)
    distance = (pixel - (start + along * length)[:, :, None]).abs() / scale[:, :, None]  # (n, outside, inside)
    within = (pixel >= start) & (pixel <= start + length)  # (n, inside)
    weights = (1 - distance).clamp(min=0) * within[:, None, :]
    return weights / weights.sum(-1, keepdim=True)


def drifting(encoder: Encoder, images: data.ImageSet, crop: augmentation.Augmentation, settings: dict) -> list[float]:
    """Accuracy after each epoch of a linear evaluation whose backbone keeps its batch-norm in training mode."""
    backbone, seed, precision, size = encoder.backbone, settings["seed"], settings["precision"], images.train.size
    n, epochs, batch = len(images.train), settings["linear_epochs"], 256
    probe = evaluate.LinearProbe(
        backbone.feature_dim, len(images.classes), total_steps=epochs * -(-n // batch), batch_size=batch, seed=seed
    )
    accuracy = []
    for epoch in tqdm(range(epochs), desc="drifting", unit="epoch", disable=None):
        order = torch.randperm(n, generator=augment.generator(seed, epoch, 0, "probe order"))
        backbone.train()
        for step, (pixels, y) in enumerate(images.train.batches(order.split(batch), "cpu")):
            drawn = augment.draw(crop, len(pixels), size, augment.generator(seed, epoch, step, "probe crop"))
            x = augment.apply(pixels, drawn, crop, images.mean, images.std)
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                h = backbone(x)
            probe.learn(h.float(), y)
        backbone.eval()
        h, y = evaluate.extract(backbone, images.test, images.mean, images.std, device="cpu", precision=precision)
        accuracy.append(probe.accuracy(h, y)[0])
    return accuracy


def evaluated(run: Path, images: data.ImageSet) -> dict:
    """What the run's result has, and what the two linear evaluations give instead."""
    try:
        encoder, ours = load_encoder(run), results.read(run)
    except ValueError as error:
        raise UserError(f"{run}: {error}") from None
    settings = encoder.config["settings"]
    crop = augmentation.crop_only(augmentation.usual(settings["dataset"]))
    common = {"seed": settings["seed"], "precision": settings["precision"]}
    with patch.object(augment, "_resize_matrix", bilinear):
        frozen = evaluate.linear_probe(encoder.backbone, images, crop=crop, epochs=settings["linear_epochs"], **common)
        history = drifting(encoder, images, crop, settings)
    # A's views are those of training: bicubic. kNN, of few images, is not used.
    after, _ = evaluate.measure(encoder, images, augmentation.usual("folder"), train_limit=10, device="cpu", **common)
    return {
        "ours": {name: ours[name] for name in ("acc1", "best_acc1", *MEASURES)},
        "bilinear": {name: frozen[name] for name in ("acc1", "best_acc1")},
        "drifting": {"acc1": history[-1], "best_acc1": max(history)} | {name: after[name] for name in MEASURES},
        "versions": versions(),
    }


def table(found: dict[str, dict]) -> str:
    """A line a run, and the mean change over all of them."""
    heading = ["Run", "Acc@1", "bilinear", "and drifting", "best epoch so"]
    lines = [heading + [f"{label}{after}" for label, _ in MEASURES.values() for after in ("", " so")]]
    for name, line in sorted(found.items()):
        ours, after = line["ours"], line["drifting"]
        numbers = [ours["acc1"], line["bilinear"]["acc1"], after["acc1"], after["best_acc1"]]
        cells = [name, *(f"{number:.2f}" for number in numbers)]
        for measure, (_, decimals) in MEASURES.items():
            cells += [f"{ours[measure]:.{decimals}f}", f"{after[measure]:.{decimals}f}"]
        lines.append(cells)

    def change(evaluation: str, name: str, decimals: int, ours: str = "") -> str:
        by = [line[evaluation][name] - line["ours"][ours or name] for line in found.values()]
        return f"{statistics.mean(by):+.{decimals}f}"

    last = ["mean change", "", change("bilinear", "acc1", 2), change("drifting", "acc1", 2)]
    last.append(change("drifting", "best_acc1", 2, "acc1"))
    for measure, (_, decimals) in MEASURES.items():
        last += ["", change("drifting", measure, decimals)]
    return results.markdown([*lines, last])


def main(arguments: Namespace) -> None:
    noted = HERE.with_suffix(".json")
    found = json.loads(noted.read_text()) if noted.exists() else {}
    images = data.load("folder", arguments.folder) if arguments.runs else None
    for run in map(Path, arguments.runs):
        found[run.name] = evaluated(run, images)
        noted.write_text(json.dumps(found, indent=1) + "\n")
    HERE.with_suffix(".md").write_text(table(found) + "\n")
    print(table(found))


if __name__ == "__main__":
    sys.exit(exit_status(main, ARGUMENTS))

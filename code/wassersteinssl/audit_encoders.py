"""Features to audit, computed from images by the encoder of a trained run or by a pretrained model of timm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wassersteinssl import data, evaluate
from wassersteinssl.audit_files import Features
from wassersteinssl.cli import UserError
from wassersteinssl.encoder import load_encoder
from wassersteinssl.files import reason
from wassersteinssl.settings import other_images
from wassersteinssl.table2 import term_label


def of_run(folder: Path, dataset: str | None, data_dir: str | None, split: str, layer: str) -> Features:
    """Features of a split's images, not augmented, by the encoder of a finished run. The images are those of the data
    set that it was trained on, unless another is named, and all of them, whatever its --limit-train was. UserError if
    its --data-dir holds other images now.

    `layer`: "projector" for z, whose uniformity is trained, or "backbone" for h, which tasks use.
    """
    file = folder / "encoder.safetensors" if folder.is_dir() else folder
    if not file.exists() and not (folder / "config.json").exists():
        raise UserError(f"there is no trained encoder {file}")
    try:
        encoder = load_encoder(folder)
        settings, method = encoder.config["settings"], encoder.config["method"]
        told = method, *(settings.get(key, "") for key in ("uniformity", "dataset", "data_dir"))
        if not all(isinstance(text, str) for text in told):
            raise UserError(f"{file} tells a method, uniformity, dataset or data_dir of its run that is no text")
        name = method + term_label(settings["uniformity"])
        if dataset in (None, settings["dataset"]) and data_dir is None:
            images, called = _own_images(encoder.config, split)
        else:
            images = data.load(dataset or settings["dataset"], data_dir)
            called = images.name
    except ValueError as error:
        raise UserError(str(error)) from None
    except KeyError as error:
        raise UserError(f"{file} does not tell the {error.args[0]} of its run") from None
    part = _part(images, split)
    return Features(
        name=f"{layer} of {name} on the {len(part)} {split} images of {called}",
        n=len(part), m=settings["dim"] if layer == "projector" else encoder.backbone.feature_dim, dtype="float32",
        labels=part.labels.cpu(),
        chunks=lambda: _encoded(
            encoder, encoder.embed if layer == "projector" else encoder, part,
            evaluate.forward_batch_size(part.size, "cpu"),
        ),
    )  # fmt: skip


def of_timm(model: str, dataset: str | None, data_dir: str | None, split: str) -> Features:
    """Features of images, resized to its input size, by a pretrained model of the package timm without classifier."""
    try:
        import timm
    except ImportError:
        raise UserError("--timm needs the package timm: pip install timm") from None
    try:
        network = timm.create_model(model, pretrained=True, num_classes=0)
        config = timm.data.resolve_model_data_config(network)
    except Exception as error:  # from many libraries: unknown name, no network, full disk
        raise UserError(f"timm cannot load {model}: {reason(error)[:300]}") from None
    images = data.load(dataset or "folder", data_dir)
    part = _part(images, split)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    size = tuple(config["input_size"][1:])

    def encode(batch: Tensor) -> Tensor:
        batch = F.interpolate(batch.float() / 255, size, mode="bicubic", antialias=True, align_corners=False)
        return network((batch - mean) / std).float()

    with evaluate.frozen(network):
        m = encode(next(part.batches([torch.tensor([0])], "cpu"))[0]).shape[1]
    return Features(
        name=f"{model} of timm on the {len(part)} {split} images of {images.name}",
        n=len(part), m=m, dtype="float32", labels=part.labels.cpu(),
        chunks=lambda: _encoded(network, encode, part, evaluate.forward_batch_size(size, "cpu")),
        notes=(f"images resized to {size[0]} x {size[1]} without a crop",),
    )  # fmt: skip


def _own_images(config: dict, split: str) -> tuple[data.ImageSet, str]:
    """The images on which a run was trained, and what it called them."""
    settings = config["settings"]
    dataset, folder = settings["dataset"], settings["data_dir"]
    limit, normalization = settings["limit_train"], settings["normalization"]
    place = f" (in the run's --data-dir {folder}; --data-dir names another)" if folder else ""
    try:
        images = data.load(dataset, folder, limit_train=limit, normalization=normalization)
    except UserError as error:
        raise UserError(f"{error}{place}") from None
    if others := other_images(config.get("images"), images.record()):
        raise UserError(f"the run saw other images: {', '.join(others)}{place}")
    if limit is not None and split == "train":
        images = data.load(dataset, folder)
    return images, settings.get("dataset_name") or images.name


def _part(images: data.ImageSet, split: str) -> data.Split:
    return images.train if split == "train" else images.test


def _encoded(network: nn.Module, encode: Callable[[Tensor], Tensor], split: Any, batch: int) -> Iterator[Tensor]:
    with evaluate.frozen(network):
        for images, _ in split.batches(torch.arange(len(split)).split(batch), "cpu"):
            yield encode(images)

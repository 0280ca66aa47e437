"""A trained encoder as a run exports it: encoder.safetensors, with the run's config and the images' statistics.

    encoder = load_encoder("runs/digits/byol")  # or the file in it
    h, z = encoder(images), encoder.embed(images)

The same by torch.hub: torch.hub.load("path/to/this/repository", "encoder", PATH, source="local").
"""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wassersteinssl import augment
from wassersteinssl.backbones import projector, resnet18
from wassersteinssl.cli import home
from wassersteinssl.files import reason, write_atomically

SAVED = ("backbone.", "projector.")  # the networks of a method that are saved


class Encoder(nn.Module):
    """images (n, 3, H, W), uint8 or floats from 0 to 1, not normalised -> features h (n, 8 width); `embed`: z (n, dim).
    Both are in the type of the weights.

    ValueError, with the shape or the type, for other images, and for floats outside 0..1 (not checked on a GPU, which
    would have to wait, nor in torch.export); TypeError for anything but a tensor. `config` is that of the run: method,
    settings, versions, command.
    """

    def __init__(self, config: dict, mean: list[float], std: list[float]):
        super().__init__()
        settings = config["settings"]
        self.config, self.mean, self.std = config, mean, std
        self.backbone = resnet18(settings["width"])
        self.projector = projector(self.backbone.feature_dim, settings["hidden_dim"], settings["dim"])

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise TypeError(f"expected a torch tensor of images, got {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ValueError(f"expected images of shape (n, 3, H, W), got {tuple(images.shape)}")
        looked_at = images.device.type == "cpu" and images.numel() and not torch.compiler.is_compiling()
        if images.is_floating_point() and looked_at:
            least, most = images.min(), images.max()
            if not (least >= 0 and most <= 1):  # nor NaN
                raise ValueError(f"expected uint8 images or floats from 0 to 1, got floats from {least:g} to {most:g}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"expected uint8 images or floats from 0 to 1, got {images.dtype}")
        pixels = images if images.dtype == torch.uint8 else 255 * images.float()
        weights = next(self.backbone.parameters())
        return self.backbone(augment.normalize(pixels, self.mean, self.std).to(weights.dtype))

    def embed(self, images: Tensor) -> Tensor:
        return self.projector(self(images))


def readable(method: nn.Module, settings: dict) -> bool:
    """Whether `load_encoder` can read what `save_encoder` writes of this method."""

    def shapes(module: nn.Module) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in module.state_dict().items() if key.startswith(SAVED)}

    with torch.device("meta"):
        expected = Encoder({"settings": settings}, [], [])
    return shapes(method) == shapes(expected)


def save_encoder(path: Path, method: nn.Module, config: dict, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Write a method's backbone and projector."""
    tensors = {key: value.contiguous() for key, value in method.state_dict().items() if key.startswith(SAVED)}
    metadata = {"config": json.dumps(config), "mean": json.dumps(mean), "std": json.dumps(std)}
    write_atomically(path, safetensors.torch.save(tensors, metadata))


def load_encoder(path: str | Path, device: torch.device | str = "cpu") -> Encoder:
    """The encoder that a finished pre-training has exported, from the run's folder or the file in it. It is in
    evaluation mode and without gradients (`requires_grad_()` brings them back). ValueError, one line, if there is none.
    Nothing in the file is executed."""
    path = home(path)
    if path.is_dir():
        if (path / "config.json").exists() and not (path / "encoder.safetensors").exists():
            raise ValueError(f"the run in {path} has not finished its pre-training")
        path /= "encoder.safetensors"
    try:
        open(path, "rb").close()  # its error tells that a file is unreadable; that of safetensors does not
        with safetensors.safe_open(path, framework="pt") as file:
            stored = file.metadata() or {}
            metadata = {key: json.loads(stored[key]) for key in ("config", "mean", "std")}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, the file is no dict
        with torch.device("meta"):  # fails before weights that the file does not hold take memory
            Encoder(metadata["config"], [], []).load_state_dict(tensors, assign=True)
        for key in ("mean", "std"):
            numbers = torch.tensor(metadata[key], dtype=torch.float64)
            if numbers.shape != (3,) or not numbers.isfinite().all() or (key == "std" and not numbers.min() > 0):
                raise ValueError(f"its {key} is not that of three channels")
        encoder = Encoder(metadata["config"], metadata["mean"], metadata["std"])
        encoder.load_state_dict(tensors)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {reason(error)}") from None
    except KeyError as error:
        raise ValueError(f"{path} is no encoder that a run has exported: it holds no {error.args[0]}") from None
    except Exception as error:  # damaged bytes can fail anywhere
        raise ValueError(f"{path} is no encoder that a run has exported: {reason(error)}") from None
    return encoder.to(device).eval().requires_grad_(False)

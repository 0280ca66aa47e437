"""The contract of a method: its networks, a loss on what they compute, and what follows each optimiser step."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from wassersteinssl.backbones import projector, resnet18
from wassersteinssl.settings import Settings


class Method(nn.Module, ABC):
    """Backbone (b, 3, H, W) -> h (b, 8 width) and projector h -> z (b, dim). A method adds what it needs.

    A training step computes `loss(**{name: e.float() for name, e in forward(view_a, view_b).items()})`: the networks
    under autocast, the loss in float32. A uniformity term works on "z_a" and "z_b". With several processes, `forward`
    sees this process's share of the batch, and `loss` the embeddings of the whole batch.
    """

    # Default weights (alpha_max, alpha_min) of the uniformity terms.
    ALPHA: ClassVar[dict[str, tuple[float, float]]] = {}

    def __init__(self, settings: Settings):
        super().__init__()
        self.backbone = resnet18(settings.width)
        self.projector = projector(self.backbone.feature_dim, settings.hidden_dim, settings.dim)

    def place(self, device: torch.device) -> Self:
        """Move all networks to the device, in the memory format that suits it."""
        self.to(device)
        return self.to(memory_format=self.backbone.layout)  # type: ignore[call-overload]

    def embed(self, view: Tensor) -> Tensor:
        return self.projector(self.backbone(view))

    def forward(self, view_a: Tensor, view_b: Tensor) -> dict[str, Tensor]:
        """Embeddings by name, "z_a" and "z_b" (b, dim) among them: the projector's output of either view."""
        return {"z_a": self.embed(view_a), "z_b": self.embed(view_b)}

    @abstractmethod
    def loss(self, *arguments: Any, **embeddings: Any) -> Tensor:
        """The method's loss, 0-d, of the float32 embeddings, by the names that `forward` gave them."""

    def after_step(self, progress: float) -> None:
        """Called after each update; progress is the share of training done, in (0, 1]."""

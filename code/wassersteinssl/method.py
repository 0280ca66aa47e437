"""The contract of a method: networks, a loss over two views, and what follows a step of the optimiser."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from wassersteinssl.backbones import projector, resnet18
from wassersteinssl.settings import Settings


class Output(NamedTuple):
    loss: Tensor  # 0-d: the method's own loss
    z_a: Tensor  # (b, dim): the projector's output of either view, which a uniformity term works on
    z_b: Tensor


class Method(nn.Module):
    """Backbone (b, 3, H, W) -> h (b, 8 width) and projector h -> z (b, dim). A method adds what it needs."""

    # Default weights (alpha_max, alpha_min) of the uniformity terms.
    ALPHA: ClassVar[dict[str, tuple[float, float]]] = {}

    def __init__(self, settings: Settings):
        super().__init__()
        self.backbone = resnet18(settings.width)
        self.projector = projector(self.backbone.feature_dim, settings.hidden_dim, settings.dim)

    def embed(self, view: Tensor) -> Tensor:
        return self.projector(self.backbone(view))

    def forward(self, view_a: Tensor, view_b: Tensor) -> Output:
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Called after each update; progress is the share of training done, in (0, 1]."""

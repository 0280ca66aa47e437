"""BYOL: predict one view's embedding by a slow copy of the network from the other view, without negatives.

Grill et al., Bootstrap Your Own Latent, NeurIPS 2020. Two views a, b; online network p(z(.)) with backbone and
projector z and predictor p, target network t(.), a moving average of z:

    loss = 2 (1 - cos(p(z_a), t_b)) + 2 (1 - cos(p(z_b), t_a)),  averaged over the batch; no gradient through t.

Example: python code/BYOL/byol.py --dataset cifar10 --uniformity w2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import share
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class BYOLSettings(Settings):
    momentum: float = option(0.99, "of the moving average that is the target", check=share)


if __name__ == "__main__":
    SETTINGS = parse(BYOLSettings, __doc__)  # --help answers before torch loads

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from wassersteinssl.backbones import predictor
from wassersteinssl.method import Method
from wassersteinssl.optim import ema_update
from wassersteinssl.run import main


class BYOL(Method):
    # W2: the paper's. L_U: not published; searched (code/results/README.md).
    ALPHA: ClassVar = {"w2": (0.2, 0.2), "lu": (0.2, 0.2)}

    def __init__(self, settings: BYOLSettings):
        super().__init__(settings)
        self.momentum = settings.momentum
        self.predictor = predictor(settings.dim, settings.hidden_dim)
        self.target = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)

    def forward(self, view_a: Tensor, view_b: Tensor) -> dict[str, Tensor]:
        z_a, z_b = self.embed(view_a), self.embed(view_b)
        with torch.no_grad():  # in training mode: the target normalises by its own batch statistics
            t_a, t_b = self.target(view_a), self.target(view_b)
        return {"z_a": z_a, "z_b": z_b, "p_a": self.predictor(z_a), "p_b": self.predictor(z_b), "t_a": t_a, "t_b": t_b}

    def loss(self, *, p_a: Tensor, p_b: Tensor, t_a: Tensor, t_b: Tensor, **_: Tensor) -> Tensor:
        return distance(p_a, t_b) + distance(p_b, t_a)

    def after_step(self, progress: float) -> None:
        ema_update(self.target, [self.backbone, self.projector], self.momentum)


def distance(p: Tensor, t: Tensor) -> Tensor:
    """mean_i 2 (1 - cos(p_i, t_i)) = mean_i || p_i/||p_i|| - t_i/||t_i|| ||^2."""
    return 2 - 2 * cosine_similarity(p, t).mean()


if __name__ == "__main__":
    main(BYOL, SETTINGS)

"""MoCo v2: tell the other view's key from a queue of past keys, computed by a slow copy of the network.

He et al., Momentum Contrast, CVPR 2020; Chen et al., arXiv 2003.04297. Views a, b; queries q = z(.) of the network,
keys k of its moving average, all of unit rows; one queue takes both views' keys after the step:

    loss = InfoNCE(q_a, k_b, queue) + InfoNCE(q_b, k_a, queue),  temperature 0.2, key momentum 0.99 -> 0.999 (cosine).

Example: python code/MoCov2/moco_v2.py --dataset cifar10 --uniformity w2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import count, positive, share
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class MoCoV2Settings(Settings):
    temperature: float = option(0.2, "of InfoNCE", check=positive)
    queue_size: int = option(4096, "past keys that serve as negatives", check=count)
    momentum: float = option(0.99, "of the key network at the start", check=share)
    momentum_end: float = option(0.999, "of the key network at the end", check=share)


if __name__ == "__main__":
    SETTINGS = parse(MoCoV2Settings, __doc__)  # --help answers before torch loads

import copy
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from wassersteinssl.contrast import Queue, info_nce
from wassersteinssl.method import Method
from wassersteinssl.optim import cosine_momentum, ema_update
from wassersteinssl.run import main


class MoCoV2(Method):
    # W2: the paper's. L_U: not published; searched (code/results/README.md).
    ALPHA: ClassVar = {"w2": (1.0, 1.0), "lu": (1.0, 1.0)}

    def __init__(self, settings: MoCoV2Settings):
        super().__init__(settings)
        self.settings = settings
        self.key = copy.deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)
        self.queue = Queue(settings.queue_size, settings.dim, step=2 * settings.batch_size)

    def forward(self, view_a: Tensor, view_b: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():  # in training mode: the key network normalises by its own batch statistics
            k_a, k_b = self.key(view_a), self.key(view_b)
        return {"z_a": self.embed(view_a), "z_b": self.embed(view_b), "k_a": k_a, "k_b": k_b}

    def loss(self, *, z_a: Tensor, z_b: Tensor, k_a: Tensor, k_b: Tensor) -> Tensor:
        q_a, q_b, k_a, k_b = (normalize(e) for e in (z_a, z_b, k_a, k_b))
        self.keys = torch.cat([k_a, k_b])
        negatives, temperature = self.queue.rows, self.settings.temperature
        return info_nce(q_a, k_b, negatives, temperature) + info_nce(q_b, k_a, negatives, temperature)

    def after_step(self, progress: float) -> None:
        momentum = cosine_momentum(progress, self.settings.momentum, self.settings.momentum_end)
        ema_update(self.key, [self.backbone, self.projector], momentum)
        self.queue.put(self.keys)


if __name__ == "__main__":
    main(MoCoV2, SETTINGS)

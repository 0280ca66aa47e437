"""NNCLR: the positive of a view is the nearest neighbour, in a queue of past embeddings, of the other view.

Dwibedi et al., With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of Visual Representations,
ICCV 2021. p = predictor(z), all of unit rows, nn(z_i) the queue's row most similar to z_i, no gradient through it:

    loss = mean of CE(nn(z_a) p_b^T / T, i) and CE(nn(z_b) p_a^T / T, i),  temperature 0.2; the queue takes z_a.

Example: python code/NNCLR/nnclr.py --dataset cifar10
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import count, positive
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class NNCLRSettings(Settings):
    temperature: float = option(0.2, "of the contrastive loss", check=positive)
    queue_size: int = option(4096, "past embeddings to look for neighbours in", check=count)


if __name__ == "__main__":
    SETTINGS = parse(NNCLRSettings, __doc__)  # --help answers before torch loads

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from wassersteinssl.backbones import predictor
from wassersteinssl.contrast import Queue
from wassersteinssl.method import Method
from wassersteinssl.run import main


class NNCLR(Method):
    def __init__(self, settings: NNCLRSettings):
        super().__init__(settings)
        self.temperature = settings.temperature
        self.predictor = predictor(settings.dim, settings.hidden_dim)
        self.queue = Queue(settings.queue_size, settings.dim, step=settings.batch_size)

    def forward(self, view_a: Tensor, view_b: Tensor) -> dict[str, Tensor]:
        z_a, z_b = self.embed(view_a), self.embed(view_b)
        return {"z_a": z_a, "z_b": z_b, "p_a": self.predictor(z_a), "p_b": self.predictor(z_b)}

    def loss(self, *, z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
        z_a, z_b, p_a, p_b = (normalize(e) for e in (z_a, z_b, p_a, p_b))
        self.entering = z_a.detach()
        own = torch.arange(len(z_a), device=z_a.device)
        losses = [cross_entropy(self.neighbours(z) @ p.T / self.temperature, own) for z, p in ((z_a, p_b), (z_b, p_a))]
        return (losses[0] + losses[1]) / 2

    @torch.no_grad()
    def neighbours(self, z: Tensor) -> Tensor:
        """The queue's nearest row for each unit row of z."""
        return self.queue.rows[(z @ self.queue.rows.T).argmax(dim=1)]

    def after_step(self, progress: float) -> None:
        self.queue.put(self.entering)


if __name__ == "__main__":
    main(NNCLR, SETTINGS)

"""SimSiam: predict one view's embedding from the other, with a stopped gradient in place of a target network.

Chen & He, Exploring Simple Siamese Representation Learning, CVPR 2021. p = predictor(z):

    loss = -(cos(p_a, stop(z_b)) + cos(p_b, stop(z_a))) / 2,  averaged over the batch.

Example: python code/SimSiam/simsiam.py --dataset cifar10
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import count
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class SimSiamSettings(Settings):
    bottleneck: int = option(512, "hidden dimension of the predictor", check=count)


if __name__ == "__main__":
    SETTINGS = parse(SimSiamSettings, __doc__)  # --help answers before torch loads

from torch import Tensor
from torch.nn.functional import cosine_similarity

from wassersteinssl.backbones import predictor
from wassersteinssl.method import Method
from wassersteinssl.run import main


class SimSiam(Method):
    def __init__(self, settings: SimSiamSettings):
        super().__init__(settings)
        self.predictor = predictor(settings.dim, settings.bottleneck)

    def forward(self, view_a: Tensor, view_b: Tensor) -> dict[str, Tensor]:
        z_a, z_b = self.embed(view_a), self.embed(view_b)
        return {"z_a": z_a, "z_b": z_b, "p_a": self.predictor(z_a), "p_b": self.predictor(z_b)}

    def loss(self, *, z_a: Tensor, z_b: Tensor, p_a: Tensor, p_b: Tensor) -> Tensor:
        similarity = cosine_similarity(p_a, z_b.detach()) + cosine_similarity(p_b, z_a.detach())  # (b,)
        return -similarity.mean() / 2


if __name__ == "__main__":
    main(SimSiam, SETTINGS)

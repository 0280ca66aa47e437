"""SimCLR: tell the other view of an image from all other images of the batch.

Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020. NT-Xent over the 2b unit
rows of both views, temperature 0.2.

Example: python code/SimCLR/simclr.py --dataset cifar10
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import positive
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class SimCLRSettings(Settings):
    temperature: float = option(0.2, "of NT-Xent", check=positive)


if __name__ == "__main__":
    SETTINGS = parse(SimCLRSettings, __doc__)  # --help answers before torch loads

from torch import Tensor
from torch.nn.functional import normalize

from wassersteinssl.contrast import nt_xent
from wassersteinssl.method import Method
from wassersteinssl.run import main


class SimCLR(Method):
    def __init__(self, settings: SimCLRSettings):
        super().__init__(settings)
        self.temperature = settings.temperature

    def loss(self, *, z_a: Tensor, z_b: Tensor) -> Tensor:
        return nt_xent(normalize(z_a), normalize(z_b), self.temperature)


if __name__ == "__main__":
    main(SimCLR, SETTINGS)

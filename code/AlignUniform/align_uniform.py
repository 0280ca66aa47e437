"""AlignUniform: alignment of the views and the uniformity of each, directly.

Wang & Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity, ICML 2020:

    loss = w_A A(z_a, z_b) + w_U (L_U(z_a) + L_U(z_b)) / 2,  unit rows, alpha = 2, t = 2.

Example: python code/AlignUniform/align_uniform.py --dataset cifar10
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works with and without an installation

from wassersteinssl.cli import not_negative
from wassersteinssl.settings import Settings, option, parse


@dataclass(frozen=True)
class AlignUniformSettings(Settings):
    align_weight: float = option(1.0, "of the alignment A", check=not_negative)
    uniform_weight: float = option(1.0, "of L_U", check=not_negative)


if __name__ == "__main__":
    SETTINGS = parse(AlignUniformSettings, __doc__)  # --help answers before torch loads

from torch import Tensor

from wassersteinssl.method import Method
from wassersteinssl.run import main
from wassersteinssl.uniformity import alignment, lu_uniformity


class AlignUniform(Method):
    def __init__(self, settings: AlignUniformSettings):
        super().__init__(settings)
        self.align_weight, self.uniform_weight = settings.align_weight, settings.uniform_weight

    def loss(self, *, z_a: Tensor, z_b: Tensor) -> Tensor:
        aligned = self.align_weight * alignment(z_a, z_b)
        if self.uniform_weight == 0:
            return aligned
        return aligned + self.uniform_weight * (lu_uniformity(z_a) + lu_uniformity(z_b)) / 2


if __name__ == "__main__":
    main(AlignUniform, SETTINGS)

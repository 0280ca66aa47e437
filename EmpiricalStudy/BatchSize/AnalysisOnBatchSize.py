"""How much W2, L_U and their gradients depend on the batch size (not in the paper).

A fixed, partly collapsed population of 16,384 rows in R^256: Gaussian, the j-th coordinate of deviation 1/j. From it
random batches of 32, 64, ..., 8192 rows without replacement, as in an epoch. Gradients are those of the measure of the
normalised rows of z A with respect to the linear map A, at A = I: one space for batches of every size. Their cosine is
that with the gradient of the whole population.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=16_384, quick=4096, out=DATA) if __name__ == "__main__" else None

import torch

from wassersteinssl import studies
from wassersteinssl.uniformity import lu_uniformity
from wassersteinssl.w2 import w2_floor, w2_uniformity

DIMENSION = 256
SIZES = [2**i for i in range(5, 14)]
DRAWS = 16
EXAMPLE = 512  # rows of two views of 256 images: what the paper trains with, told in the notebook
COMPARED = {"w2": w2_uniformity, "lu": lu_uniformity}


def value_and_gradient(measure, z):
    """measure(z A) and its gradient with respect to A, at A = I."""
    a = torch.eye(z.shape[1], device=z.device, requires_grad=True)
    value = measure(z @ a)
    value.backward()
    return value.item(), a.grad.flatten().double()


def study(options):
    random = studies.generator(options.seed, options.device)
    population = torch.randn(options.samples, DIMENSION, generator=random, device=options.device)
    population /= torch.arange(1, DIMENSION + 1, device=options.device)
    whole = {name: value_and_gradient(measure, population) for name, measure in COMPARED.items()}
    rows = []
    for size in studies.progress([n for n in SIZES if n <= options.samples] or [options.samples], "batch sizes"):
        row = {"batch": size, "draws": DRAWS, "floor": w2_floor(size, DIMENSION)}
        drawn = {name: [] for name in COMPARED}
        for _ in range(DRAWS):
            batch = population[torch.randperm(options.samples, generator=random, device=options.device)[:size]]
            for name, measure in COMPARED.items():
                value, gradient = value_and_gradient(measure, batch)
                drawn[name].append((value, float(torch.cosine_similarity(gradient, whole[name][1], dim=0))))
        for name, pairs in drawn.items():
            for kind, sample in zip((name, f"{name}_cosine"), torch.tensor(pairs, dtype=torch.float64).T, strict=True):
                row |= {kind: float(sample.mean()), f"{kind}_std": float(sample.std())}
        rows.append(row)
    values = {name: value for name, (value, _) in whole.items()}
    return studies.write(options, rows, dimension=DIMENSION, whole=values, example=EXAMPLE)


if __name__ == "__main__":
    studies.main(study, OPTIONS)

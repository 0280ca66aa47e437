#!/usr/bin/env python3
"""What a uniformity term costs: value and gradient of the losses, and how exact they are.

    python code/benchmarks/bench_loss.py [--device cuda] [--threads 1]

n rows of m features, both views together (a loss of two views takes half of them each). Beside the W2 of this
repository stand the published algorithm (square root of the covariance by eigenvectors, differentiated) and other
losses; "floor" is the least that any W2 needs, one smaller-side Gram matrix and one product with it. Errors are against
float64 (W2: by singular values): of the value, and of the gradient as ||g - g*|| / ||g*||, on random rows and on rows
near collapse, whose singular values fall geometrically to 1e-4 of the largest.
"""

import functools
import math
from collections.abc import Callable

import bench

ARGS = bench.parser(__doc__).parse_args() if __name__ == "__main__" else None

import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize
from tqdm import tqdm

from wassersteinssl.contrast import nt_xent
from wassersteinssl.files import load_module
from wassersteinssl.settings import programs
from wassersteinssl.uniformity import lu_uniformity
from wassersteinssl.w2 import w2_uniformity

SIZES = ((512, 256), (512, 2048), (4096, 256))
Loss = Callable[[Tensor], Tensor]


def published_w2(z: Tensor) -> Tensor:
    """The formula as it stands: the covariance's square root from its eigenvectors, all of it differentiated."""
    z = normalize(z)
    mean = z.mean(dim=0)
    covariance = (z - mean).T @ (z - mean) / len(z)
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root = vectors @ torch.diag(eigenvalues.clamp(min=1e-12).sqrt()) @ vectors.T  # the clamp keeps the gradient finite
    square = mean.square().sum() + 1 + covariance.trace() - 2 / math.sqrt(z.shape[1]) * root.trace()
    return square.clamp(min=1e-12).sqrt()


def svd_w2(z: Tensor) -> Tensor:
    """By the singular values of the centred rows; in float64 the reference."""
    n, m = z.shape
    z = normalize(z)
    nuclear = torch.linalg.svdvals(z - z.mean(dim=0)).sum()
    return (z.square().sum() / n + 1 - 2 / math.sqrt(n * m) * nuclear).sqrt()


def pdist_lu(z: Tensor) -> Tensor:
    """L_U as its authors publish it."""
    return torch.pdist(normalize(z)).square().mul(-2).exp().mean().log()


def vicreg(z: Tensor) -> Tensor:
    """Bardes, Ponce, LeCun, ICLR 2022: 25 invariance + 25 variance + 1 covariance."""
    loss = 25 * mse_loss(*z.chunk(2))
    for view in z.chunk(2):
        view = view - view.mean(dim=0)
        covariance = view.T @ view / (len(view) - 1)  # (m, m)
        variance = covariance.diagonal()
        loss = loss + 25 * (1 - (variance + 1e-4).sqrt()).relu().mean() / 2
        loss = loss + (covariance.square().sum() - variance.square().sum()) / z.shape[1]
    return loss


def losses(m: int, device: torch.device) -> dict[str, tuple[Loss, Loss | None]]:
    """Name -> the loss, and its float64 reference."""
    program = load_module(bench.CODE / programs()["BarlowTwins"])
    barlow = program.BarlowTwins(program.BarlowTwinsSettings(width=1, hidden_dim=1, dim=m)).to(device)
    return {
        "W2, eigh (default on a CPU)": (lambda z: w2_uniformity(z, solver="eigh"), svd_w2),
        "W2, eigh32": (lambda z: w2_uniformity(z, solver="eigh32"), svd_w2),
        "W2, polar (default on a GPU)": (lambda z: w2_uniformity(z, solver="polar"), svd_w2),
        "W2, published": (published_w2, svd_w2),
        "W2, svdvals": (svd_w2, svd_w2),
        "L_U": (lu_uniformity, pdist_lu),
        "L_U, torch.pdist": (pdist_lu, pdist_lu),
        "Barlow Twins": (lambda z: barlow.loss(z_a=z.chunk(2)[0], z_b=z.chunk(2)[1]), None),
        "VICReg": (vicreg, None),
        "NT-Xent": (lambda z: nt_xent(*normalize(z).chunk(2), 0.2), None),
    }


def near_collapse(n: int, m: int) -> Tensor:
    """Rows whose singular values fall geometrically to 1e-4 of the largest."""
    k = min(n, m)
    left, right = (torch.linalg.qr(torch.randn(size, k, dtype=torch.float64))[0] for size in (n, m))
    return (left * torch.logspace(0, -4, k, dtype=torch.float64)) @ right.T


def value_and_gradient(loss: Loss, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = loss(z)
    return value.detach(), torch.autograd.grad(value, z)[0]


@functools.cache
def truth(reference: Loss, z: Tensor) -> tuple[Tensor, Tensor]:
    """The float64 value and gradient; of a tensor, not of its numbers, so that each is computed once."""
    return value_and_gradient(reference, z.float().double())


def errors(loss: Loss, reference: Loss, z: Tensor, device: torch.device) -> tuple[float, float]:
    """Of the value, and of the gradient relative to its norm, for the float32 numbers that the loss gets."""
    value, gradient = (x.double().cpu() for x in value_and_gradient(loss, z.float().to(device)))
    true_value, true_gradient = truth(reference, z)
    return abs(value - true_value).item(), ((gradient - true_gradient).norm() / true_gradient.norm()).item()


def floor(z: Tensor) -> Tensor:
    tall = z.shape[0] >= z.shape[1]
    gram = z.T @ z if tall else z @ z.T
    return z @ gram if tall else gram @ z


def main(args) -> None:
    report = bench.Report("loss", args)
    device = report.device
    sizes = ((32, 16), (16, 32)) if args.quick else SIZES
    rows, milliseconds = [], {}
    for n, m in tqdm(sizes, desc="sizes", disable=None):
        torch.manual_seed(0)
        z = torch.randn(n, m, device=device)
        candidates = losses(m, device)
        calls = {name: (lambda f=loss, z=z: value_and_gradient(f, z)) for name, (loss, _) in candidates.items()}
        calls = {"floor": lambda z=z: floor(z), **calls}
        times = bench.in_turns(calls, device, seconds=0.1 if args.quick else 10)
        milliseconds[n, m] = {name: 1000 * t for name, t in times.items()}
        collapsed, given = near_collapse(n, m), z.double().cpu()
        for name, t in times.items():
            row = {"n x m": f"{n} x {m}", "loss": name, "ms": 1000 * t, "x floor": t / times["floor"]}
            loss, reference = candidates.get(name, (None, None))
            if loss is not None and reference is not None:
                row["value error"], row["gradient error"] = errors(loss, reference, given, device)
                row["near collapse"] = errors(loss, reference, collapsed, device)[1]
            rows.append(row)
    form = {"n x m": "", "loss": "", "ms": ".3g", "x floor": ".3g"}
    report.table("Losses", rows, form | dict.fromkeys(("value error", "gradient error", "near collapse"), ".0e"))
    if not args.quick:
        default = "W2, eigh (default on a CPU)" if device.type == "cpu" else "W2, polar (default on a GPU)"
        small, wide = milliseconds[512, 256], milliseconds[512, 2048]
        report.targets(
            [
                ("512 x 256: published / default W2", "at least", 1, small["W2, published"] / small[default]),
                ("512 x 2048: published / default W2", "at least", 20, wide["W2, published"] / wide[default]),
                ("512 x 256: published / W2, eigh32", "at least", 1.5, small["W2, published"] / small["W2, eigh32"]),
                ("512 x 256: W2, eigh32 / floor", "at most", 3.5, small["W2, eigh32"] / small["floor"]),
            ]
        )
    report.write()


if __name__ == "__main__":
    bench.run(main, ARGS)

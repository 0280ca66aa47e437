"""What the synthetic studies share: how they run, collapsed spheres, measures on them, theory, and the data file.

A study is a script that writes CSV or NPZ beside itself, and a notebook that plots it. Legend: n rows in R^m with
k = round((1 - eta) m) active coordinates: uniform unit rows of R^k, followed by m - k zeros.
"""

import argparse
import csv
import io
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor
from tqdm import tqdm

from wassersteinssl import __version__
from wassersteinssl.cli import UserError, exit_status
from wassersteinssl.device import find_device, out_of_memory
from wassersteinssl.files import check_writable, write_atomically
from wassersteinssl.pairwise import lu_theory, lu_uniformity
from wassersteinssl.sliced import random_directions
from wassersteinssl.w2 import W2Metric, w2_floor

CHUNK = 2**24  # numbers in a chunk of samples: 64 MiB in float32


# ---- running ----


def main(study: Callable[[argparse.Namespace], Path], options: argparse.Namespace) -> None:
    """Run `study(options)`, which returns the file that it wrote; `study_options` gives the options. A mistake, or too
    little memory, is told in one line, with status 2."""
    if status := exit_status(_run, study, options):
        sys.exit(status)


def _run(study: Callable[[argparse.Namespace], Path], options: argparse.Namespace) -> int:
    device = find_device(options.device)
    if device.type == "mps":
        raise UserError(f"--device {options.device} has no float64, which studies need: give cpu or cuda")
    options.device = str(device)
    check_writable(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        print(f"wrote {study(options)}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(f"--samples {options.samples} do not fit into the memory of {options.device}") from None
    return 0


def progress(items: Iterable, description: str) -> Iterator:
    return iter(tqdm(list(items), desc=description, disable=None))


# ---- samples ----


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def sphere(n: int, m: int, random: torch.Generator) -> Tensor:
    """n uniform unit rows in R^m, (n, m) float32, on the generator's device: normalised Gaussian rows."""
    z = torch.randn(n, m, generator=random, device=random.device)
    return z.div_(torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_(min=torch.finfo(z.dtype).tiny))


def alive(m: int, eta: float) -> int:
    """The number k of coordinates that a collapse of share eta leaves, rounded: the exact share is then 1 - k/m."""
    return round((1 - eta) * m)


def collapsed_spheres(options: argparse.Namespace, m: int, percents: Sequence[int]) -> Iterator[tuple[Tensor, int]]:
    """z (n, k), and the number k of coordinates that are left, for each level of collapse of the sphere of R^m."""
    random = generator(options.seed, options.device)
    for percent in progress(percents, "collapse levels"):
        k = alive(m, percent / 100)
        yield sphere(options.samples, k, random), k


def sphere_chunks(n: int, m: int, random: torch.Generator) -> Iterator[Tensor]:
    """`sphere` in chunks of bounded memory."""
    rows = max(1, CHUNK // m)
    for start in range(0, n, rows):
        yield sphere(min(rows, n - start), m, random)


# ---- measures on collapsed samples ----


def moments(z: Tensor) -> W2Metric:
    """The moments of unit rows z (n, k). If there are fewer rows than coordinates they are first rotated into R^n,
    which changes no measure, so that the work is that of the smaller side."""
    if len(z) < z.shape[1]:
        z = torch.linalg.qr(z.T, mode="r").R.T.contiguous()
    return W2Metric(normalize=False).update(z)


def w2_padded(metric: W2Metric, m: int, *, clones: int = 1) -> float:
    """W2 in R^m of rows whose active coordinates `metric` has seen, zero elsewhere, all features cloned.

    With every feature present `clones` times (not renormalised) the mean square is `clones` times as large and the
    nuclear norm sqrt(clones) times, in clones * m dimensions: W2^2 = clones q + 1 - 2 ||Z_c||_* / sqrt(m n).
    """
    k = metric.dim
    q = float(metric.mean.square().sum() + metric.covariance.diagonal().sum())
    root_trace = (q + 1 - metric.compute(squared=True)) * k**0.5 / 2  # tr S^(1/2), from the value in R^k
    return float(np.sqrt(max(0.0, clones * q + 1 - 2 / m**0.5 * root_trace)))


def measures(z: Tensor, m: int, *, clones: int = 1) -> dict[str, float]:
    """W2 and L_U of unit rows z (n, k) as rows of R^m, zero in the other coordinates, with every feature cloned.

    Zeros change no distance and clones multiply squared distances, so L_U is that of z with t = 2 clones.
    """
    return {"w2": w2_padded(moments(z), m, clones=clones), "lu": float(lu_uniformity(z, t=2.0 * clones))}


# ---- theory ----


def w2_theory(eta: float, *, clones: int = 1, blocks: int = 0) -> float:
    """Population W2 of a collapse of share eta: sqrt(2 - 2 sqrt((1 - eta) / (1 + blocks)) + clones - 1), for every m.

    `blocks`: zeros appended, in multiples of m; `clones`: how often every feature is there.
    """
    return float(np.sqrt(2 - 2 * np.sqrt((1 - eta) / (1 + blocks)) + clones - 1))


def w2_finite(n: int, k: int, m: int, *, clones: int = 1) -> float:
    """Expected W2 of n uniform rows of R^k padded to R^m: the floor's E sqrt(lambda), shared by k of m directions."""
    mean_root = 1 - w2_floor(n, k) ** 2 / 2
    return float(np.sqrt(2 - 2 * np.sqrt(k / m) * mean_root + clones - 1))


def spectrum_theory(n: int, m: int) -> np.ndarray:
    """(m,) eigenvalues that the covariance of n uniform rows in R^m is expected to have, largest first: the quantiles
    (i - 1/2) / m of the Marchenko-Pastur law of ratio gamma = m / (n-1), times (n-1) / (n m).

    With x = 1 + gamma + 2 sqrt(gamma) cos t its density times dx is 2 sin^2 t / (pi x).
    """
    gamma = m / (n - 1)
    t = (np.arange(20_000) + 0.5) * np.pi / 20_000
    x = 1 + gamma + 2 * gamma**0.5 * np.cos(t)  # falls
    above = np.cumsum(np.sin(t) ** 2 / x) * 2 / 20_000  # mass above x; what is missing to 1 at the end lies at 0
    share = (np.arange(m) + 0.5) / m
    return np.interp(share, above, x, right=0.0) * (n - 1) / n / m


def beside_theory(metric: W2Metric, lu: float, m: int, k: int, *, clones: int = 1, blocks: int = 0) -> dict[str, float]:
    """A line of a data file: W2 in R^((1 + blocks) m) of rows with k active coordinates, whose moments `metric` holds,
    and their L_U, beside their theory. `eta` is the exact share of zeros."""
    return {
        "m": m,
        "k": k,
        "eta": (m - k) / m,
        "w2": w2_padded(metric, (1 + blocks) * m, clones=clones),
        "w2_finite": w2_finite(metric.n, k, (1 + blocks) * m, clones=clones),
        "w2_theory": w2_theory(1 - k / m, clones=clones, blocks=blocks),
        "lu": lu,
        "lu_theory": lu_theory(k, t=2.0 * clones),
    }


def apart(data: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest relative difference from theory in the columns of `beside_theory`, for either measure."""
    pairs = {"w2": "w2_finite", "lu": "lu_theory"}
    return {name: float(np.nanmax(np.abs(data[name] / data[theory] - 1))) for name, theory in pairs.items()}


# ---- the data file ----


def settings(options: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What a data file says about itself."""
    return {
        "script": Path(sys.argv[0]).name,
        "samples": options.samples,
        "seed": options.seed,
        "device": options.device,
        **more,
        "versions": {
            "wassersteinssl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }


def rotation(m: int, random: torch.Generator) -> Tensor:
    """Uniform over the orthogonal matrices of R^m: (m, m), float64, on the generator's device."""
    return random_directions(m, m, 1, generator=random)[:, :, 0].T


def write(options: argparse.Namespace, rows: list[dict[str, Any]], **more: Any) -> Path:
    """CSV: a first line `# {settings as JSON}`, the header, a line for each row; an empty cell is a missing value."""
    columns = list(dict.fromkeys(key for row in rows for key in row))

    def content(file: Any) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        text.write(f"# {json.dumps(settings(options, **more))}\n")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: "" if _missing(value) else value for key, value in row.items()} for row in rows)
        text.flush()
        text.detach()

    return _save(options, content)


def write_arrays(options: argparse.Namespace, arrays: dict[str, np.ndarray], **more: Any) -> Path:
    """NPZ: the arrays, and the settings as JSON under "settings"."""
    described = np.array(json.dumps(settings(options, **more)))
    return _save(options, lambda file: np.savez_compressed(file, settings=described, allow_pickle=False, **arrays))


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Columns (of numbers, NaN if missing; of text if a cell is not a number) or arrays, and the settings."""
    path = Path(path)
    if not path.exists():
        folder = path.absolute().parent
        raise FileNotFoundError(f'no {path.name} in {folder}: make it with python .../{path.stem}.py --out "{folder}"')
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return arrays, json.loads(str(arrays.pop("settings")))
    with path.open(encoding="utf-8", newline="") as file:
        head = json.loads(file.readline().removeprefix("# "))
        rows = list(csv.DictReader(file))
    return {key: _column([row[key] for row in rows]) for key in (rows[0] if rows else {})}, head


def _column(cells: list[str]) -> np.ndarray:
    try:
        return np.array([float(cell) if cell else np.nan for cell in cells])
    except ValueError:
        return np.array(cells)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and np.isnan(value))


def _save(options: argparse.Namespace, content: Callable[[Any], Any]) -> Path:
    path = options.out / options.name
    write_atomically(path, content)
    return path

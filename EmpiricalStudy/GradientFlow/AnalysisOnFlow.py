"""Which distance to the uniform law leads out of collapse? The paper's open question, by gradient flow.

Rows on the sphere, or a linear encoder's outputs, follow the gradient of W2, KL, Bhattacharyya, Frobenius, calibrated
L_U, SSW, SIGReg or MST: Euler steps, the rows scaled to unit length after each, the rate falling linearly to 0. A rate
suits one measure and not the next: each runs at all of RATES, and the run that ends lowest by its own measure is kept,
of several that end there (to ALIKE) the one that is lowest on the way.
With n = --samples, at its default 32, 3n steps and m = n/4:

- points: n rows of two dimensions and a hundredth of the others;  exact: nothing of the others;
- few: n/2 rows in R^n, of two dimensions and a hundredth;
- encoder: 2n rows x A, x of an uneven spectrum in R^(2m), A (2m, m) of rank 1 and a hundredth.

A run escapes if it ends with at least 90 % of the effective rank of as many uniform rows, stays if with at most 1.1
times that of its start, and is out partly in between.

Also: the force on collapsed directions of size sigma, against sigma; clouds on circle and sphere from a cap, at the
rate of "points"; the way to the simplex of n <= m + 1 rows. Writes arrays (NPZ) and a Markdown table;
AnalysisOnFlow.ipynb draws them.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".npz")
OPTIONS = study_options(__doc__, samples=32, quick=16, out=DATA) if __name__ == "__main__" else None

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from wassersteinssl import results, studies
from wassersteinssl.cli import UserError
from wassersteinssl.files import write_atomically
from wassersteinssl.uniformity import MEASURES, effective_rank, lu_uniformity
from wassersteinssl.w2 import w2_minimum, w2_uniformity

SHOWN = ("w2", "kl", "bhattacharyya", "frobenius", "lu_calibrated", "ssw", "sigreg", "mst")
LABELS = {name: MEASURES[name].label for name in SHOWN}
RATES = [10.0**k for k in range(-5, 3)]  # a row's step is the rate times n times its gradient
LEAST = 16  # rows
KEPT = 48  # points of a trajectory, besides its start
ALIKE = 1e-6  # ends that differ by less are equal: rounding would choose between the runs
FAINT = 1e-2  # size of the collapsed directions
ESCAPED = 0.9  # of the effective rank of as many uniform rows
STAYS = 1.1  # times that of the start
SIGMAS = np.logspace(-5, 0, 11)
SIMPLICES = ((3, 2), (5, 4), (9, 8), (6, 20))  # n, m


# ---- the flow ----


def flow(name: str, start: Tensor, rate: float, encode: Callable[[Tensor], Tensor], steps: int) -> list[Tensor]:
    """The rows at the start and KEPT times on the way. Rows are encode(parameter) scaled to unit length; the list ends
    early where the measure or its gradient is not finite."""
    parameter, path, kept = start, [], {k * steps // KEPT for k in range(KEPT + 1)}
    for step in range(steps + 1):
        parameter = parameter.detach().requires_grad_()
        rows = normalize(encode(parameter))
        value = MEASURES[name].function(rows)
        (gradient,) = torch.autograd.grad(value, parameter)
        if not (value.isfinite() and gradient.isfinite().all()):
            break
        if step in kept:
            path.append(rows.detach())
        with torch.no_grad():
            parameter = parameter - rate * (1 - step / steps) * len(rows) * gradient
            if encode is points:
                parameter = normalize(parameter)
    return path


def points(z: Tensor) -> Tensor:
    """Free points: the parameter is the rows themselves."""
    return z


def followed(path: list[Tensor]) -> np.ndarray:
    """(effective rank, W2, L_U) along a path, (KEPT + 1, 3); NaN after its end."""
    lines = [[float(effective_rank(z)), float(w2_uniformity(z)), float(lu_uniformity(z))] for z in path]
    return np.array(lines + [[np.nan] * 3] * (KEPT + 1 - len(lines)))


def judge(name: str, paths: dict[float, list[Tensor]], goal: float) -> tuple[str, float | None]:
    """What became of the collapse, and the rate whose path ended lowest by its own measure (among equal ends, the one
    that was lowest on the way); None if no path reached its end."""
    ended = {rate: path for rate, path in paths.items() if len(path) > KEPT}
    if not ended:
        return ("diverges" if any(paths.values()) else "infinite"), None
    measure = MEASURES[name].function
    ends = {rate: float(measure(path[-1])) for rate, path in ended.items()}
    lowest = [rate for rate, end in ends.items() if end <= min(ends.values()) + ALIKE]
    best = min(lowest, key=lambda rate: sum(float(measure(z)) for z in ended[rate]))
    ranks = {rate: float(effective_rank(path[-1])) for rate, path in ended.items()}
    begin = float(effective_rank(ended[best][0]))
    word = "escapes" if ranks[best] >= ESCAPED * goal else "stays" if ranks[best] <= STAYS * begin else "partly"
    return f"{word} ({sum(rank >= ESCAPED * goal for rank in ranks.values())} of {len(paths)} rates)", best


# ---- collapsed starts ----


def flat(n: int, m: int, faint: float, random: torch.Generator) -> Tensor:
    """n unit rows of two dimensions in R^m, with the others scaled by `faint`; in a random basis unless that is 0."""
    sizes = torch.cat([torch.ones(2), torch.full((m - 2,), faint)]).double().to(random.device)
    rows = normalize(studies.sphere(n, m, random).double() * sizes)
    return rows @ studies.rotation(m, random) if faint else rows


def cap(n: int, m: int, size: float, random: torch.Generator) -> Tensor:
    """n unit rows around one direction, at distances of about `size`."""
    first = torch.nn.functional.pad(torch.ones(1, 1), (0, m - 1)).to(random.device)
    return normalize(first + size * studies.sphere(n, m, random)).double()


def scenarios(n: int, random: torch.Generator) -> dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]:
    """Name -> the parameter at the start and what encodes it."""
    m = n // 4
    x = studies.sphere(2 * n, 2 * m, random).double() * torch.arange(1, 2 * m + 1, device=random.device) ** -0.5
    a, b = (studies.sphere(1, k, random).double() for k in (2 * m, m))
    faint = FAINT * torch.randn(2 * m, m, generator=random, device=random.device, dtype=torch.float64)
    return {
        "points": (flat(n, m, FAINT, random), points),
        "exact": (flat(n, m, 0, random), points),
        "few": (flat(n // 2, n, FAINT, random), points),
        "encoder": (a.T @ b + faint / m**0.5, lambda weight: x @ weight),
    }


def trajectories(n: int, random: torch.Generator) -> tuple[dict[str, np.ndarray], dict[str, dict]]:
    arrays, found = {}, {}
    for scenario, (start, encode) in scenarios(n, random).items():
        rows = normalize(encode(start))
        goal = float(effective_rank(studies.sphere(*rows.shape, random)))
        found[scenario] = {"rows": list(rows.shape), "goal": goal, "rate": {}, "verdict": {}}
        for name in studies.progress(LABELS, scenario):
            paths = {rate: flow(name, start, rate, encode, 3 * n) for rate in RATES}
            found[scenario]["verdict"][name], best = judge(name, paths, goal)
            found[scenario]["rate"][name] = best
            arrays[f"{scenario}_{name}"] = followed(paths[RATES[0] if best is None else best]).astype(np.float32)
    return arrays, found


# ---- forces ----


def force(name: str, z: Tensor, directions: Tensor) -> float:
    """The root mean square over rows of -n gradient along `directions` (m, k), without what moves all rows alike."""
    z = z.requires_grad_()
    value = MEASURES[name].function(z)
    (gradient,) = torch.autograd.grad(value, z)
    across = (gradient - gradient.mean(dim=0)) @ directions
    return float(len(z) ** 0.5 * across.norm()) if value.isfinite() else np.nan


def forces(n: int, random: torch.Generator) -> dict[str, np.ndarray]:
    """(measures, SIGMAS): the force on half of the dimensions, of size sigma ("dimensions"), and on rows that all lie
    within sigma ("cap")."""
    m = n // 4
    z = studies.sphere(n, m, random).double()
    basis, scatter = studies.rotation(m, random), studies.sphere(n, m, random)
    found: dict[str, list] = {"dimensions": [], "cap": []}
    for name in studies.progress(LABELS, "forces"):
        half = [torch.cat([torch.ones(m // 2), torch.full((m - m // 2,), float(s))]).to(z) for s in SIGMAS]
        first = torch.nn.functional.pad(torch.ones(1, 1), (0, m - 1)).to(z)
        found["dimensions"].append([force(name, normalize(z * sizes) @ basis, basis[m // 2 :].T) for sizes in half])
        found["cap"].append([force(name, normalize(first + s * scatter), torch.eye(m).to(z)) for s in SIGMAS])
    return {f"force_{kind}": np.array(values) for kind, values in found.items()}


def exponent(values: np.ndarray) -> float:
    """p of force ~ sigma^p, from the small sigma; NaN where there is no force."""
    small = SIGMAS <= 1e-2
    if not (np.isfinite(values[small]).all() and (values[small] > 0).all()):
        return np.nan
    return float(np.polyfit(np.log(SIGMAS[small]), np.log(values[small]), 1)[0])


# ---- pictures and simplices ----


def clouds(n: int, rates: dict[str, float], random: torch.Generator) -> dict[str, np.ndarray]:
    arrays = {}
    for place, rows, m in (("circle", n // 2, 2), ("sphere", 2 * n, 3)):
        start = cap(rows, m, 0.3, random)
        arrays[f"{place}_start"] = start.numpy(force=True)
        for name in studies.progress(LABELS, place):
            arrays[f"{place}_{name}"] = flow(name, start, rates[name], points, 6 * n)[-1].numpy(force=True)
    return {name: rows.astype(np.float32) for name, rows in arrays.items()}


def simplex_value(name: str, n: int, m: int) -> float:
    """The value of the simplex, the least that n <= m + 1 rows can have."""
    return w2_minimum(n, m) if name == "w2" else -(n - 1) / n * math.sqrt(2 * n / (n - 1))


def simplices(steps: int, random: torch.Generator) -> dict[str, np.ndarray]:
    """The measure minus the simplex's value along the flow from a cap, at a rate of 0.3."""
    arrays = {}
    for n, m in studies.progress(SIMPLICES, "simplices"):
        start = cap(n, m, 0.1, random)
        for name in ("w2", "mst"):
            path = flow(name, start, 0.3, points, steps)
            values = [MEASURES[name].function(z).item() - simplex_value(name, n, m) for z in path]
            arrays[f"simplex_{name}_{n}_{m}"] = np.array(values)
    return arrays


# ---- the files ----


def markdown(found: dict[str, dict], exponents: dict[str, dict[str, float]]) -> str:
    heads = {
        "points": "{} points in R^{}", "exact": "exactly flat", "few": "{} points in R^{}", "encoder": "linear encoder"
    }  # fmt: skip
    titles = [text.format(*found[scenario]["rows"]) for scenario, text in heads.items()]
    titles += ["force on a flat cloud ~ sigma^", "on a small one ~ sigma^"]
    lines = [["measure", *titles]]
    for name, label in LABELS.items():
        cells = [found[scenario]["verdict"][name] for scenario in heads]
        cells += [
            "-" if np.isnan(p[name]) else f"{p[name] + 0.0:.1f}".replace("-0.0", "0.0") for p in exponents.values()
        ]
        lines.append([label, *cells])
    return results.markdown(lines)


def study(options):
    if options.samples < LEAST:
        raise UserError(f"--samples {options.samples}: collapsed rows in R^(n/4) need at least {LEAST}")
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    random = studies.generator(options.seed, options.device)
    arrays, found = trajectories(options.samples, random)
    pushed = forces(options.samples, random)
    exponents = {
        kind: {name: exponent(values) for name, values in zip(LABELS, pushed[kind], strict=True)} for kind in pushed
    }
    arrays |= pushed | clouds(options.samples, found["points"]["rate"], random)
    arrays |= simplices(12 * options.samples, random) | {"sigmas": SIGMAS}
    path = studies.write_arrays(
        options, arrays, labels=LABELS, scenarios=found, exponents=exponents, simplices=SIMPLICES, escaped=ESCAPED
    )
    write_atomically(path.with_suffix(".md"), markdown(found, exponents).encode())
    return path


if __name__ == "__main__":
    studies.main(study, OPTIONS)

"""Every measure against every property: what each one sees, and what it costs (beyond the paper's Table 1).

With n = --samples, at its default 512. Nothing is asserted; each cell is measured:

- IPC, ICC, FCC, FBC, rotation, scale: on six samples of three laws (uniform, half collapsed, uneven with a mean) of n
  rows in R^(n/16), rows as they are; the measure's largest relative change and the verdict that follows.
- sensitivity d' = mean shift / pooled deviation when 1/8 or 1/2 of the dimensions collapse in a random basis, over 12
  draws of n uniform rows in R^(n/2); also along the axes, and of n/4 rows.
- blind spots: how many deviations of uniform rows (12 draws) arrangements read worse that are far from uniform.
- cost: the time of one thread for n rows in R^(n/2), and its exponents in n and m; it depends on the machine.
- bias: how far uniform rows read from the uniform law itself, and how that falls with n.

Writes a CSV (a line a measure and question) and a Markdown table of it; AnalysisOnMeasures.ipynb draws the heat map.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".csv")
OPTIONS = study_options(__doc__, samples=512, quick=64, out=DATA) if __name__ == "__main__" else None

import numpy as np
import torch
from scipy.special import hyp0f1
from torch import Tensor

from wassersteinssl import results, studies
from wassersteinssl.cli import UserError
from wassersteinssl.files import write_atomically
from wassersteinssl.sliced import random_directions
from wassersteinssl.uniformity import MEASURES, of_metric, sigreg
from wassersteinssl.w2 import W2Metric

DRAWS = 12
LEAST = 64  # samples
SAME = 1e-6  # relative change that counts as none
SEEN = 3  # an arrangement counts as seen if it reads worse than uniform rows by more of their deviations
PROPERTIES = {"ipc": "IPC", "icc": "ICC", "fcc": "FCC", "fbc": "FBC", "rotation": "rotation", "scale": "scale"}
SENSITIVITY = {"eighth": "d' 1/8", "half": "d' 1/2", "half_axes": "d' 1/2, axes", "eighth_few": "d' 1/8, n < m"}
BLIND_SPOTS = {
    "atoms": "±e_i, once each", "atoms_repeated": "±e_i, repeated", "clusters": "clusters at ±e_i",
    "simplex": "simplex, repeated", "antipodal": "two points", "mixture": "4 clusters",
}  # fmt: skip
COST = {
    "milliseconds": "ms", "cost_n": "time ~ n^", "cost_m": "time ~ m^", "bias": "bias", "bias_n": "bias ~ n^"
}  # fmt: skip
TABLES = ({**PROPERTIES, **SENSITIVITY}, {**BLIND_SPOTS, **COST})


def w2_unbiased(z: Tensor, *, normalize: bool = True) -> Tensor:
    """W2 with the covariance over n - 1 instead of n."""
    metric = W2Metric(normalize=normalize).update(z)
    state = metric.state_dict() | {"scatter": metric.covariance * metric.n * metric.n / (metric.n - 1)}
    metric.load_state_dict(state)
    return torch.tensor(metric.compute(), dtype=torch.float64)


VARIANTS = {  # measure -> name, label and function of a variant of it
    "w2": ("w2_unbiased", "W2, 1/(n-1)", w2_unbiased),
    "sigreg": ("sigreg_per_row", "SIGReg / n", partial(sigreg, per_row=True)),
}
SLICED = {name: record.directions_per_slice for name, record in MEASURES.items() if record.directions_per_slice}
SLICED["sigreg_per_row"] = SLICED["sigreg"]
FUNCTIONS = {name: record.function for name, record in MEASURES.items()} | {
    name: function for name, _, function in VARIANTS.values()
}


def _labels() -> dict[str, str]:
    """The labels of all that is studied: every measure except the two of a pair's agreement."""
    found = {}
    for name, record in MEASURES.items():
        if name not in ("alignment", "align_uniform"):
            found[name] = record.label + (" (2 views)" if record.needs_views else "")
        if name in VARIANTS:
            found[VARIANTS[name][0]] = VARIANTS[name][1]
    return found


LABELS = _labels()


class Sample:
    """Rows (n, m) in float64, and a second view of them in the same subspace: each row mixed with some of another."""

    def __init__(self, z: Tensor, b: Tensor | None = None):
        self.z = z.double()
        self.b = torch.nn.functional.normalize(self.z + 0.3 * self.z.roll(1, dims=0)) if b is None else b

    def map(self, change: Callable[[Tensor], Tensor]) -> "Sample":
        return Sample(change(self.z), change(self.b))


def badness(name: str, sample: Sample, **options) -> float:
    """The measure, turned so that higher is worse."""
    views = (sample.z, sample.b) if name in MEASURES and MEASURES[name].needs_views else (sample.z,)
    with torch.no_grad():
        return oriented(name, float(FUNCTIONS[name](*views, **options)))


def oriented(name: str, value: float) -> float:
    """The value of a measure, turned so that higher is worse."""
    better = MEASURES[name].better if name in MEASURES else "low"
    return {"low": value, "high": -value, "near 1": abs(value - 1)}[better]


def collapsed(n: int, m: int, eta: float, random: torch.Generator, *, axes: bool = False) -> Tensor:
    """n uniform rows in a random subspace (or that of the first axes) of round((1 - eta) m) dimensions."""
    k = studies.alive(m, eta)
    rows = torch.nn.functional.pad(studies.sphere(n, k, random).double(), (0, m - k))
    return rows if axes else rows @ studies.rotation(m, random)


# ---- properties ----


def property_samples(n: int, m: int, random: torch.Generator) -> list[Sample]:
    uneven = torch.arange(1, m + 1, device=random.device) ** -0.5
    laws = [
        lambda: studies.sphere(n, m, random),
        lambda: collapsed(n, m, 0.5, random),
        lambda: torch.nn.functional.normalize(studies.sphere(n, m, random) * uneven + 0.3 * uneven.flip(0)),
    ]
    return [Sample(law()) for law in laws for _ in range(2)]


def changes(m: int, n: int, random: torch.Generator) -> dict[str, Callable[[Tensor], Tensor]]:
    order, turn = torch.randperm(n, generator=random, device=random.device), studies.rotation(m, random)
    return {
        "ipc": lambda z: z[order],
        "icc": lambda z: z.repeat(2, 1),
        "fcc": lambda z: torch.cat([z, z], dim=1),
        "fbc": lambda z: torch.nn.functional.pad(z, (0, m)),
        "rotation": lambda z: z @ turn,
        "scale": lambda z: 2 * z,
    }


def properties(n: int, m: int, random: torch.Generator) -> Iterator[dict]:
    samples, every = property_samples(n, m, random), changes(m, n, random)
    for name in studies.progress(LABELS, "properties"):
        options = {} if name == "barlow" else {"normalize": False}
        before = [badness(name, sample, **options) for sample in samples]
        for question, change in every.items():
            after = [badness(name, sample.map(change), **options) for sample in samples]
            shifts = [relative(old, new) for old, new in zip(before, after, strict=True) if np.isfinite(old)]
            worst = min(shifts) if question in ("fcc", "fbc") else max(shifts, key=abs)
            found = verdict(question, shifts)
            if found == "no" and question == "rotation" and name in SLICED:  # and on average?
                turned = samples[0].map(change)
                draw = partial(random_directions, SLICED[name], m, generator=random)
                old, new = ([badness(name, s, directions=draw()) for _ in range(DRAWS)] for s in (samples[0], turned))
                found = "on average" if abs(d_prime(old, new)) * (DRAWS / 2) ** 0.5 < SEEN else "no"
            yield {"measure": name, "question": question, "value": worst, "verdict": found}


def relative(old: float, new: float) -> float:
    return (new - old) / abs(old) if old else (new - old)


def verdict(question: str, shifts: list[float]) -> str:
    """Of an invariance: "yes" or "no". Of cloned or zero features: "yes" if all samples became worse, "infinite" if
    infinitely so, "no" if all stayed, "reversed" if all became better."""
    if question not in ("fcc", "fbc"):
        return "yes" if max(map(abs, shifts)) < SAME else "no"
    if min(shifts) == np.inf:
        return "infinite"
    kinds = {"yes" if shift > SAME else "reversed" if shift < -SAME else "no" for shift in shifts}
    return kinds.pop() if len(kinds) == 1 else "mixed"


# ---- sensitivity and blind spots ----


def d_prime(healthy: list[float], sick: list[float]) -> float:
    """Mean shift over pooled deviation: above 0 if the sick read worse, infinite if infinitely so. NaN where healthy
    ones are infinite."""
    if not np.isfinite(healthy).all():
        return np.nan
    if not np.isfinite(sick).all():
        return np.inf
    shift, pooled = np.mean(sick) - np.mean(healthy), np.sqrt((np.var(healthy, ddof=1) + np.var(sick, ddof=1)) / 2)
    return ratio(shift, pooled)


def ratio(shift: float, deviation: float) -> float:
    return float(shift / deviation) if deviation else float(np.sign(shift) * np.inf) if shift else 0.0


def sensitivity(n: int, m: int, random: torch.Generator) -> Iterator[dict]:
    cases = {
        "healthy": (n, 0, False),
        "eighth": (n, 1 / 8, False),
        "half": (n, 1 / 2, False),
        "half_axes": (n, 1 / 2, True),
        "healthy_few": (n // 4, 0, False),
        "eighth_few": (n // 4, 1 / 8, False),
    }
    read: dict[str, dict[str, list[float]]] = {}
    for question, (rows, eta, axes) in studies.progress(cases.items(), "sensitivity"):
        samples = [Sample(collapsed(rows, m, eta, random, axes=axes)) for _ in range(DRAWS)]
        read[question] = {name: [badness(name, sample) for sample in samples] for name in LABELS}
    for question in ("eighth", "half", "half_axes", "eighth_few"):
        healthy = read["healthy_few" if question == "eighth_few" else "healthy"]
        for name in LABELS:
            yield {"measure": name, "question": question, "value": d_prime(healthy[name], read[question][name])}


def arrangements(n: int, m: int, random: torch.Generator) -> dict[str, Tensor]:
    """Rows that are far from uniform; "clusters" and those above them have the uniform law's two moments, as has the
    simplex."""
    axes = torch.eye(m, dtype=torch.float64, device=random.device)
    atoms = torch.cat([axes, -axes])
    edges = torch.nn.functional.normalize(torch.eye(m + 1, dtype=torch.float64) - 1 / (m + 1))
    simplex = (edges @ torch.linalg.eigh(edges @ edges.T).eigenvectors[:, 1:]).to(random.device)  # (m + 1, m)
    repeated = atoms.repeat(n // len(atoms), 1)
    spots = torch.nn.functional.normalize(repeated + 0.2 * studies.sphere(len(repeated), m, random))
    middles = studies.sphere(4, m, random).repeat(n // 4, 1)
    return {
        "atoms": atoms,
        "atoms_repeated": repeated,
        "simplex": simplex.repeat(n // len(simplex), 1),
        "clusters": spots,
        "antipodal": atoms[[0, m]].repeat(n // 2, 1),
        "mixture": torch.nn.functional.normalize(middles + 0.5 * studies.sphere(len(middles), m, random)),
    }


def blind_spots(n: int, m: int, random: torch.Generator) -> Iterator[dict]:
    uniform: dict[int, dict[str, list[float]]] = {}
    for question, z in studies.progress(arrangements(n, m, random).items(), "blind spots"):
        if len(z) not in uniform:
            samples = [Sample(studies.sphere(len(z), m, random)) for _ in range(DRAWS)]
            uniform[len(z)] = {name: [badness(name, sample) for sample in samples] for name in LABELS}
        for name in LABELS:
            if name in ("barlow", "mmcr", "lidar"):
                continue  # they judge pairs of views, which an arrangement does not have
            read = uniform[len(z)][name]
            score = ratio(badness(name, Sample(z)) - np.mean(read), np.std(read, ddof=1))
            yield {
                "measure": name, "question": question, "value": score, "verdict": "seen" if score > SEEN else "blind"
            }  # fmt: skip


# ---- cost and bias ----


def seconds(name: str, sample: Sample) -> float:
    """The best of three times; on a CPU processor time, which other programs disturb less."""
    clock = time.process_time if sample.z.device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(3):
        start = clock()
        badness(name, sample)
        times.append(clock() - start)
    return min(times)


def cost(n: int, random: torch.Generator) -> Iterator[dict]:
    sizes = {"cost_n": [(n * 2**k, n // 8) for k in (1, 2, 3)], "cost_m": [(n, n // 4 * 2**k) for k in (0, 1, 2)]}
    samples = {size: Sample(studies.sphere(*size, random)) for both in sizes.values() for size in both}
    for name in studies.progress(LABELS, "cost"):
        for question, three in sizes.items():
            for size in three:
                badness(name, samples[size])  # makes what is made only once: fixed directions
            times = [seconds(name, samples[size]) for size in three]
            yield {"measure": name, "question": question, "value": slope([1, 2, 4], times)}
        yield {"measure": name, "question": "milliseconds", "value": 1e3 * times[1]}  # at n rows in R^(n/2)


def slope(sizes: list[int], values: list[float]) -> float:
    """The exponent of the power law."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def population(name: str, m: int) -> float | None:
    """The value of the uniform law itself, as `badness` has it; None if there is no limit of many rows."""
    if name == "lu":
        return studies.lu_theory(m)
    if name in ("lu_calibrated", "ssw", "w2_unbiased"):
        return 0.0
    if name == "sigreg_per_row":  # E cos(t sqrt(m) x) of a coordinate x of the sphere is 0F1(; m/2; -t^2 m/4)
        t = np.linspace(0, 3, 17)
        normal = np.exp(-(t**2) / 2)
        return float(2 * np.trapezoid((hyp0f1(m / 2, -(t**2) * m / 4) - normal) ** 2 * normal, t))
    if name not in MEASURES or not MEASURES[name].of_moments:
        return None
    rows = 10**15
    many = W2Metric()
    moments = {"mean": torch.zeros(m, dtype=torch.float64), "scatter": torch.eye(m, dtype=torch.float64) * rows / m}
    many.load_state_dict({"normalize": True, "n": rows, **moments})
    return oriented(name, of_metric(name, many))


def bias(n: int, m: int, random: torch.Generator) -> Iterator[dict]:
    sizes = [n // 4, n, 4 * n]
    samples = {size: [Sample(studies.sphere(size, m, random)) for _ in range(DRAWS)] for size in sizes}
    for name in studies.progress([name for name in LABELS if population(name, m) is not None], "bias"):
        limit = population(name, m)
        apart = [np.mean([badness(name, sample) for sample in samples[size]]) - limit for size in sizes]
        yield {"measure": name, "question": "bias", "value": float(apart[1]), "population": limit}
        noise = np.std([badness(name, sample) for sample in samples[sizes[-1]]], ddof=1) / DRAWS**0.5
        if min(np.abs(apart)) > SEEN * noise:  # otherwise the bias may be chance
            yield {"measure": name, "question": "bias_n", "value": slope(sizes, np.abs(apart))}


# ---- the files ----


def markdown(rows: list[dict]) -> str:
    """Two tables: a line a measure, a column a question."""
    cells = {(row["measure"], row["question"]): row for row in rows}
    tables = []
    for headers in TABLES:
        lines = [["measure", *headers.values()]]
        for name, label in LABELS.items():
            line = [shown(question, cells.get((name, question))) for question in headers]
            if set(line) != {"-"}:
                lines.append([label, *line])
        tables.append(results.markdown(lines))
    return "\n".join(tables)


def shown(question: str, row: dict | None) -> str:
    if row is None or np.isnan(row["value"]):
        return "-"
    if question in PROPERTIES:
        return row["verdict"]
    size = abs(row["value"])
    text = f"{row['value']:.0f}".replace("inf", "∞") if size >= 10 else f"{row['value']:.2g}"
    return f"{row['verdict']} ({text})" if question in BLIND_SPOTS else text


def study(options):
    if options.samples < LEAST:
        raise UserError(f"--samples {options.samples}: rows in R^(n/16) need at least {LEAST}")
    torch.set_num_threads(1)  # so that times can be compared
    random, n = studies.generator(options.seed, options.device), options.samples
    rows = [
        *properties(n, n // 16, random),
        *sensitivity(n, n // 2, random),
        *blind_spots(n, n // 16, random),
        *cost(n, random),
        *bias(n, n // 16, random),
    ]
    path = studies.write(options, rows, draws=DRAWS, seen=SEEN, labels=LABELS, tables=TABLES)
    write_atomically(path.with_suffix(".md"), markdown(rows).encode())
    return path


if __name__ == "__main__":
    studies.main(study, OPTIONS)

"""Figure 14: a large mean collapses unit rows. Rows of N(k 1, I_2), scaled to unit length, for k from 0 to 32.

Writes the points with their W2 and its population value, and draws them as largemean_collapse.png and .pdf.
Example: python ./LargeMeans/PlotMean2D.py
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "code"))  # works with and without an installation

from wassersteinssl.study_options import study_options

DATA = Path(__file__).resolve().with_suffix(".npz")
OPTIONS = study_options(__doc__, samples=300, quick=300, out=DATA) if __name__ == "__main__" else None

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy import integrate, stats

from wassersteinssl import plotting, studies
from wassersteinssl.w2 import W2Metric

MEANS = (0, 0.5, 1, 2, 4, 8, 16, 32)


def w2_population(k: float) -> float:
    """W2 of the projected normal law: at an angle t from its mean direction, with r = k sqrt 2 and c = r cos t, the
    density is phi(r) / sqrt(2 pi) + c phi(r sin t) Phi(c), phi and Phi those of N(0, 1)."""
    r, phi = k * 2**0.5, stats.norm.pdf

    def moment(f: Callable[[float], float]) -> float:
        def integrand(t: float) -> float:
            c = r * np.cos(t)
            return f(t) * (phi(r) * phi(0) + c * phi(r * np.sin(t)) * stats.norm.cdf(c))

        return 2 * integrate.quad(integrand, 0, np.pi, points=[min(3, 8 / (r + 1))], epsabs=1e-13)[0]

    across = moment(lambda t: np.sin(t) ** 2)  # variance of sin t, then of cos t, as that of 1 - cos t = 2 sin^2(t/2)
    along = moment(lambda t: 4 * np.sin(t / 2) ** 4) - moment(lambda t: 2 * np.sin(t / 2) ** 2) ** 2
    return float(np.sqrt(max(0.0, 2 - 2**0.5 * (along**0.5 + across**0.5))))


def draw(arrays: dict[str, np.ndarray]) -> plt.Figure:
    figure, panels = plt.subplots(2, 4, figsize=(2 * plotting.COLUMN, 1.2 * plotting.COLUMN))
    angles = np.linspace(0, 2 * np.pi, 200)
    for panel, label, *values in zip(panels.flat, "abcdefgh", *arrays.values(), strict=True):
        points, k, w2, population = values
        panel.plot(np.cos(angles), np.sin(angles), color="0.6", linewidth=0.8, zorder=0)
        panel.scatter(*points.T, s=5, color=plotting.COLORS[0], alpha=0.4, linewidths=0, rasterized=True)
        panel.set_title(f"({label}) $k$ = {k:g}\n$\\mathcal{{W}}_2$ = {w2:.3f} ($\\infty$: {population:.3f})")
        panel.set(aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), xticks=(-1, 0, 1), yticks=(-1, 0, 1))
    for panel in panels[:, 0]:
        panel.set_ylabel("$z_2$")
    for panel in panels[1]:
        panel.set_xlabel("$z_1$")
    return figure


def study(options: argparse.Namespace) -> Path:
    random = studies.generator(options.seed, options.device)
    points = []
    for k in studies.progress(MEANS, "k"):
        z = torch.randn(options.samples, 2, generator=random, device=options.device) + k
        points.append(torch.nn.functional.normalize(z))
    arrays = {
        "points": torch.stack(points).cpu().numpy(),  # (k, samples, 2)
        "k": np.array(MEANS),
        "w2": np.array([W2Metric().update(z).compute() for z in points]),
        "w2_population": np.array([w2_population(k) for k in MEANS]),
    }
    path = studies.write_arrays(options, arrays)
    for picture in plotting.save(draw(arrays), path.with_name("largemean_collapse")):
        print(f"wrote {picture}")
    return path


if __name__ == "__main__":
    studies.main(study, OPTIONS)

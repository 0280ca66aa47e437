"""Has this embedding collapsed? Computes everything that the report of code/audit.py says.

One pass over any number of rows gathers moments, norms, the range of each feature and a fingerprint of each row. What
needs pairs of rows is measured on a random sample. Legend: n rows, m features, unit rows z; lambda the eigenvalues of
their covariance.

The verdict counts the dimensions in use, in two ways; the smaller count decides.

    by W2    the number k for which n uniform rows in R^k, padded to R^m, would have the same W2:
             2 - W2^2 = sqrt(k/m) (2 - floor(n, k)^2). This also sees a common mean.
    by rank  the number k for which n uniform rows in R^k would have the same effective rank. This sees the shape of
             the spectrum.

    collapsed  under 10 % of m, or a single one; with many rows, W2 above 1.17
    partly     in between; with half of the dimensions lost, W2 is 0.77
    healthy    60 % or more; W2 below 0.67

At most m rows cannot fill m dimensions. If they use at least a third as many dimensions as there are different rows,
the verdict is "too few rows to tell" (uniform rows always do, except for one draw in forty of four rows, and fewer of
five); otherwise they are collapsed, or partly. Fewer than twelve rows of still fewer features are too few, too.
Zero rows have no direction: they are counted and left out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wassersteinssl import __version__, studies
from wassersteinssl.audit_files import Features, pick, within
from wassersteinssl.cli import UserError, tell
from wassersteinssl.machine import fills_memory
from wassersteinssl.numerics import exp_entropy, moments_of, participation, present_eigenvalues, unit_rows
from wassersteinssl.pairwise import distance, lu_calibrated, nearest_rows
from wassersteinssl.uniformity import MEASURES
from wassersteinssl.w2 import W2Metric, eigenvalue_noise, w2_floor, w2_minimum

COLLAPSED, HEALTHY = 0.1, 0.6  # collapsed below, healthy from this share of the dimensions on
ONE = 1.1  # fewer dimensions in use than this are one dimension and noise
FEWEST = 12  # with two to four features, fewer uniform rows than this would often be called collapsed
FEW = 3  # at most m rows may be uniform if they use at least 1/FEW as many dimensions as there are distinct rows
CLUMPED = 1 / 3  # rows are clumped if neighbours are nearer than this share of what their two moments let expect
NEAR = 0.05  # noted: more rows with such a near neighbour than the two moments let expect, by this share
DRAWS = 12  # of each law that the sample is compared with
MATCHED, ROUNDS = 4, 8  # Gaussian draws: sampled rows for each direction whose moments are matched; rounds of matching
NEAREST = 20  # neighbours that vote on a label
MEAN = 0.1  # a common mean with a larger share of the squared length may be worth subtracting
WORTH = 0.05  # and is if without it at least this share of the dimensions more would be in use
ROGUE = 20  # "few features hold half of the squared length": at most 1/ROGUE of those that are not dead
GROUPS = 0.75  # bimodality from which rows fall into two groups: two points have 1, a uniform law 5/9, a Gaussian 1/3
APART = 4  # the variance along the line through two groups is at least so many times that of any other direction
SINGULAR = "1", "less than 1"
UNRELATED = 0.95  # views are unrelated if their A is at least this share of the A of shuffled views
MATRICES = 9  # m x m matrices that are in memory at once
LONG = 4096  # with more features than this the eigenvalues take a minute
LENGTH_LIMIT = 1e150  # the square of a longer row has no float64
NAMED = 10  # at most so many rows or features are named
COPY = 1e-10  # 1 - |cosine| of two features that are multiples of each other
ADVICE = {
    "collapsed": "an encoder that stays collapsed needs a uniformity term in its loss, or more weight on it, unless it "
    "is only to tell a few classes apart",
    "partly collapsed": "a task tells if the dimensions in use are enough (--labels); if not, a uniformity term in the "
    "loss spreads them",
    "too few rows to tell": "audit several times as many rows as there are features",
    "healthy": "nothing beyond what the notes say; what the rows are worth, a task tells (--labels)",
}
ADVICE_CLUMPED = "look at the nearest pairs: leave out repeated inputs; clumps that are classes (--labels) may stay"


@dataclass
class Audit:
    """What the page shows. `report` holds plain numbers and text, ready for JSON; the arrays are drawn."""

    report: dict[str, Any]
    norms: np.ndarray  # of the sampled rows
    nearest: dict[str, np.ndarray]  # distances to the nearest neighbour: "these rows", and two laws


def audit(
    features: Features,
    *,
    views: Features | None = None,
    sample: int = 2048,
    seed: int = 12,
    drop_bad_rows: bool = False,
) -> Audit:
    """The report on an embedding. `views` are features of the same inputs, seen differently, row for row.

    UserError, one line, for rows that are not finite (unless they are to be dropped), and for fewer than two rows or
    features.
    """
    m = features.m
    _check_sizes(features, views, sample)
    rows = _Pass(features, sample, np.random.default_rng(seed))
    _check_rows(features, rows, drop_bad_rows)
    z = rows.sample / torch.where(rows.norms == 0, 1, rows.norms).unsqueeze(1)  # unit rows (s, m); zero ones if all are

    report: dict[str, Any] = {
        "name": features.name, "n": rows.n, "m": m, "dtype": features.dtype, "seed": seed, "sample": len(z),
        "notes": [*features.notes, *(f"views: {note}" for note in (views.notes if views else ()))],
    }  # fmt: skip
    repeats, directed = rows.repeats(), rows.n - rows.zero
    distinct = repeats["distinct"]
    flat = distinct <= 1 or not bool(moments_of(rows.metric, normalize=False).covariance.any())
    if flat:  # what rounding may have left in the covariance is no direction
        moments = rows.metric.state_dict()
        rows.metric.load_state_dict(moments | {"scatter": torch.zeros_like(moments["scatter"])})
    report["rows"] = repeats | {"dropped": rows.bad, "one_direction": flat, "first_zero": rows.first_zero}
    report["norms"] = rows.norm_statistics()
    report["features"] = rows.feature_statistics() | {"code": _code(rows.sample)}
    # Repeated rows count once, except where many rows take few values: there the repetition is the collapse.
    n = distinct if not flat and (distinct > m or directed <= m) else rows.metric.n
    report["rows"]["in_floor"] = n
    present, second = _eigenvalues(rows.metric, z)
    report["w2"] = _w2(rows.metric, present, n)
    if flat:
        report["w2"]["dimensions"] = 0.0
    report["spectrum"] = _spectrum(rows.metric, present, second, n)
    if report["w2"]["mean_part"] > MEAN and not flat:
        report["centred"] = {"dimensions": _centred(rows.sample, n)}
    report["beyond"], nearest = _beyond(z, flat, seed)
    report["verdict"] = _verdict(report)
    if features.labels is not None:
        report["labels"] = _labels(z, features.labels[rows.index], seed)
    if views is not None:
        report["views"] = _views(z, pick(views.chunks(), rows.index), views.name, seed, drop_bad_rows)
    report["notes"] += _cautions(report)
    report["versions"] = {"wassersteinssl": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return Audit(report, rows.norms.numpy(), nearest)


def _check_sizes(features: Features, views: Features | None, sample: int) -> None:
    n, m = features.n, features.m
    if sample < 2:
        raise UserError(f"a sample of {sample}: an audit needs two rows")
    if n < 2 or m < 2:
        rows = f"{counted(n, 'row')} of {counted(m, 'feature')}"
        raise UserError(f"{features.name} holds {rows}: an audit needs two of each")
    if fills_memory(size := MATRICES * 8 * m * m):
        raise UserError(f"{m} features need {size / 2**30:.0f} GiB for their covariance: more than half of the memory")
    if fills_memory(size := 9 * n):  # a fingerprint and a mark for each
        raise UserError(f"{n} rows need {size / 2**30:.0f} GiB to be told apart: more than half of the memory")
    if features.labels is not None and len(features.labels) != n:
        raise UserError(f"{len(features.labels)} labels for {n} rows of features")
    if views is not None and (views.n, views.m) != (n, m):
        raise UserError(f"the views are {views.n} x {views.m}, the features {n} x {m}")


def _check_rows(features: Features, rows: _Pass, drop_bad_rows: bool) -> None:
    if rows.bad and not drop_bad_rows:
        raise UserError(
            f"{rows.bad} of {features.n} rows of {features.name} hold NaN, infinite, gigantic or vanishing values: "
            f"{_first(rows.first_bad, rows.bad)}"
            + ("; float16 overflows beyond 65504" if features.dtype == "float16" else "")
            + ("; --drop-bad-rows leaves them out" if rows.n > 1 else "")
        )
    if rows.n < 2 or len(rows.sample) < 2:
        raise UserError(f"{features.name}: {counted(rows.n, 'finite row')} left; an audit needs two")


# ---- one pass over the rows ------------------------------------------------------------------------------------------


class _Pass:
    """What one pass over all rows gathers. Rows that are not finite are counted and otherwise left out."""

    def __init__(self, features: Features, size: int, random: np.random.Generator):
        index = _draw(features.n, size, random)
        self.metric = W2Metric()  # of the rows that have a direction
        self.n = 0  # with the zero rows
        self.bad, self.first_bad, self.first_zero = 0, list[int](), list[int]()
        self.low, self.high = torch.full((2, features.m), torch.inf, dtype=torch.float64) * torch.tensor([[1], [-1]])
        self.zero, self.shortest, self.longest = 0, math.inf, 0.0
        self.mean_norm, self.square = 0.0, 0.0  # mean of the norms, and the sum of their squared distances to it
        self.fingerprints = np.empty(features.n, np.uint64)
        self.directed = torch.zeros(features.n, dtype=torch.bool)
        sample = torch.empty(len(index), features.m, dtype=torch.float64)
        kept, start = torch.empty(len(index), dtype=torch.bool), 0
        with tqdm(total=features.n, desc="reading", unit="row", unit_scale=True, delay=2, disable=None) as bar:
            for chunk in features.chunks():
                self.metric.rounding = max(self.metric.rounding, torch.finfo(chunk.dtype).eps / 2)
                rows = chunk.double()
                norms = torch.linalg.vector_norm(rows, dim=1)
                good = _usable(rows, norms)
                self.directed[start : start + len(rows)] = good & (norms > 0)
                self.fingerprints[start : start + len(rows)] = fingerprints(rows.numpy())
                self.bad += int((~good).sum())
                for first, those in ((self.first_bad, ~good), (self.first_zero, good & (norms == 0))):
                    first += (start + those.nonzero().flatten()[: NAMED - len(first)]).tolist()
                here = within(index, start, len(rows))
                sample[here], kept[here] = rows[index[here] - start], good[index[here] - start]
                start += len(rows)
                if bool(good.any()):
                    everything = bool(good.all())
                    self._look(rows if everything else rows[good], norms if everything else norms[good])
                bar.update(len(rows))
        self.sample, self.index = sample[kept], index[kept]  # (s, m) as they are, (s,)
        self.norms = torch.linalg.vector_norm(self.sample, dim=1)
        if self.n - self.zero < 2 and self.zero:  # (nearly) all are zero: treated as equal rows
            self.metric.update(torch.zeros(1, features.m, dtype=torch.float64).expand(self.zero, -1))
            return
        present = self.norms > 0
        if 2 * int(present.sum()) <= min(size, int(self.directed.sum())):  # most drawn rows are zero: draw again
            among = self.directed.nonzero().flatten()
            self.index = among[_draw(len(among), size, random)]
            self.sample = pick(features.chunks(), self.index)
            self.norms = torch.linalg.vector_norm(self.sample, dim=1)
        else:
            self.sample, self.index, self.norms = (x[present] for x in (self.sample, self.index, self.norms))

    def _look(self, rows: Tensor, norms: Tensor) -> None:
        self.n += len(rows)
        directed = norms > 0
        if bool(directed.any()):
            self.metric.update(rows if bool(directed.all()) else rows[directed])
        self.low = torch.minimum(self.low, rows.amin(dim=0))
        self.high = torch.maximum(self.high, rows.amax(dim=0))
        self.zero += int((norms == 0).sum())
        self.shortest = min(self.shortest, float(norms.min()))
        self.longest = max(self.longest, float(norms.max()))
        mean = float(norms.mean())
        step, share = mean - self.mean_norm, len(norms) / self.n  # of Chan, Golub & LeVeque 1983
        self.square += float((norms - mean).square().sum()) + step**2 * share * (self.n - len(norms))
        self.mean_norm += step * share

    def repeats(self) -> dict[str, int]:
        """How many distinct rows there are, zero ones apart, and how many repeat an earlier one; how often the most
        frequent one occurs, and where first. Rows that differ in their length only are distinct."""
        directed = self.directed.numpy()
        found = self.fingerprints[directed]
        found.sort()
        same = found[1:] == found[:-1]
        repeated = int(same.sum())
        counts = {"distinct": len(found) - repeated, "repeated": repeated}
        if not repeated:
            return counts
        begin, end = np.flatnonzero(np.diff(same, prepend=False, append=False)).reshape(-1, 2).T
        longest = int((end - begin).argmax())
        first = int(((self.fingerprints == found[begin[longest]]) & directed).argmax())
        return counts | {"most": int(end[longest] - begin[longest]) + 1, "most_first": first}

    def norm_statistics(self) -> dict[str, float]:
        deviation = math.sqrt(self.square / self.n)
        return {
            "min": self.shortest, "mean": self.mean_norm, "std": deviation, "max": self.longest, "zero_rows": self.zero
        }  # fmt: skip

    def feature_statistics(self) -> dict[str, Any]:
        """Features that are constant; features that are multiples of an earlier one; and the fewest features that
        together hold more than half of the squared length.

        A multiple must be one both with the mean and without it: features that hardly vary beside their mean all look
        alike with it."""
        dead = self.low == self.high
        covariance = self.metric.covariance
        second = covariance + torch.outer(self.metric.mean, self.metric.mean)
        copies = _cosines(second, dead) > 1 - COPY
        variance = covariance.diagonal()
        blur = 64 * torch.finfo(variance.dtype).eps * second.diagonal() / torch.where(variance > 0, variance, 1)
        copies &= _cosines(covariance, dead) > 1 - COPY - blur - blur.unsqueeze(1)
        copies = copies.tril(-1)
        repeated = copies.any(dim=1)
        pairs = [[int(copies[j].to(torch.uint8).argmax()), int(j)] for j in repeated.nonzero()[:NAMED]]
        length, order = second.diagonal().sort(descending=True)
        shares = (length / length.sum().clamp(min=1e-300)).cumsum(0)
        most = int((shares <= 0.5).sum()) + 1 if bool(length.any()) else 0
        return {
            "half": most, "first_half": order[:most].sort().values[:NAMED].tolist(),
            "half_share": float(shares[most - 1]) if most else 0.0,
            "dead": int(dead.sum()), "first_dead": dead.nonzero().flatten()[:NAMED].tolist(),
            "repeated": int(repeated.sum()), "first_pairs": pairs,
        }  # fmt: skip


def _draw(n: int, size: int, random: np.random.Generator) -> Tensor:
    """Ascending indices of `size` rows of n, or of all."""
    return torch.from_numpy(np.sort(random.choice(n, min(n, size), replace=False)))


def _usable(rows: Tensor, norms: Tensor) -> Tensor:
    """Rows that are finite, not gigantic, and either zero or long enough that their squares do not vanish."""
    good = norms < LENGTH_LIMIT  # false for NaN
    short = norms < 1 / LENGTH_LIMIT
    return good & ~(short & rows.any(dim=1)) if bool(short.any()) else good


def _cosines(gram: Tensor, dead: Tensor) -> Tensor:
    """|cosine| of any two features; 0 for dead ones."""
    scale = gram.diagonal().clamp(min=0).sqrt()
    scale = torch.where(dead | (scale == 0), torch.inf, scale)
    return (gram / scale / scale.unsqueeze(1)).abs()


def fingerprints(rows: np.ndarray) -> np.ndarray:
    """A 64-bit number (k,) for each row of (k, m) float64. Equal rows have equal numbers; two different rows share one
    with a probability of about 2^-64. Vectorised: a cryptographic hash of ten million rows would take longer than the
    rest of the audit."""
    factors = np.random.default_rng(0).integers(0, 2**63, rows.shape[1], dtype=np.uint64) * 2 + 1
    found = np.empty(len(rows), np.uint64)
    step = max(1, 2**16 // rows.shape[1])  # numbers that stay in the cache
    for start in range(0, len(rows), step):
        words = (rows[start : start + step] + 0.0).view(np.uint64)  # -0 becomes 0
        words ^= words >> 32
        words *= factors  # modulo 2^64
        words ^= words >> 29
        words *= np.uint64(0xBF58476D1CE4E5B9)  # of the generator splitmix64
        words ^= words >> 32
        found[start : start + step] = words.sum(axis=1)
    return found


# ---- the parts of the report -----------------------------------------------------------------------------------------


def _eigenvalues(metric: W2Metric, z: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of the covariance and of the second moment, descending; what rounding left of 0 is 0. With fewer
    unit rows than features, all of them in z, the smaller Gram matrices have the same eigenvalues, zeros apart."""
    x = moments_of(metric, normalize=False)
    grams = [x.covariance, x.second]
    if len(z) == x.n < x.m and bool(x.covariance.any()):
        centred = z - z.mean(dim=0)
        centred -= centred.mean(dim=0)  # what rounding left
        grams = [rows @ rows.T / x.n for rows in (centred, z)]
    if len(grams[0]) > LONG:
        tell(f"eigenvalues of two matrices, {x.m} x {x.m} ...", sys.stderr)
    of_covariance, of_second = (_of_gram(gram, x.m) for gram in grams)
    return of_covariance, of_second


def _of_gram(gram: Tensor, m: int) -> Tensor:
    values = present_eigenvalues(gram).flip(0)
    return torch.cat([values, values.new_zeros(m - len(values))])


def _w2(metric: W2Metric, values: Tensor, n: int) -> dict[str, float]:
    """W2^2 = ||mu||^2 + ||S^(1/2) - I / sqrt m||_F^2, and the parts that the mean and the covariance, with these
    eigenvalues, contribute. The floor is that of the n distinct rows, as repeating all rows does not change W2. The
    minimum is that of all rows, as repeated rows act as weights."""
    m, mean = metric.dim, float(metric.mean.square().sum())
    covariance = _covariance_part(values)
    square, floor = mean + covariance, w2_floor(n, m)
    return {
        "w2": math.sqrt(square), "floor": floor, "minimum": w2_minimum(metric.n, m), "collapse": math.sqrt(2),
        "mean_part": mean, "covariance_part": covariance,
        "dimensions": _dimensions_by_w2(square, n, m),
    }  # fmt: skip


def _covariance_part(eigenvalues: Tensor) -> float:
    return float((eigenvalues.sqrt() - 1 / math.sqrt(len(eigenvalues))).square().sum())


def _dimensions_by_w2(square: float, n: int, m: int) -> float:
    """`_dimensions` by W2; squared, because that grows about linearly with k."""
    return _dimensions((2 - square) ** 2, lambda k: k / m * (2 - w2_floor(n, k) ** 2) ** 2, m)


def _dimensions_by_rank(rank: float, n: int, m: int) -> float:
    return _dimensions(rank, lambda k: _uniform_rank(n, k), m)


def _centred(sample: Tensor, n: int) -> float:
    """Dimensions in use once the mean is subtracted from the sampled rows: what an audit of the rest would say."""
    z = unit_rows(sample - sample.mean(dim=0))
    n, m = min(n, len(z)), z.shape[1]
    mean = z.mean(dim=0)
    centred = z - mean
    values = _of_gram((centred @ centred.T if len(z) < m else centred.T @ centred) / len(z), m)
    square = float(mean.square().sum()) + _covariance_part(values)
    return min(_dimensions_by_w2(square, n, m), _dimensions_by_rank(float(exp_entropy(values)), n, m))


def _code(sample: Tensor) -> str | None:
    """What the rows hold, if that is a code: two values only, or whole numbers that are never negative."""
    low, high = sample.min(), sample.max()
    if bool(((sample == low) | (sample == high)).all()):
        return f"only {low:g} and {high:g}"
    return "whole numbers from 0 on" if low >= 0 and torch.equal(sample, sample.round()) else None


def _spectrum(metric: W2Metric, values: Tensor, second: Tensor, n: int) -> dict[str, Any]:
    """`values` and `second` are the eigenvalues of the covariance and of the second moment, descending."""
    m = metric.dim
    rank = float(exp_entropy(values))  # the effective rank, without decomposing the covariance again
    below = values.cumsum(0) < 0.99 * values.sum()
    return {
        "effective_rank": rank,
        "rankme": float(exp_entropy(second.sqrt())),
        "participation_ratio": float(participation(metric.covariance)),
        "uniform_effective_rank": _uniform_rank(n, m),
        "uniform_participation_ratio": (n - 1) * m / (n - 1 + m),
        "dimensions": _dimensions_by_rank(rank, n, m),
        "directions_of_99_percent": int(below.sum()) + 1 if float(values.sum()) > 0 else 0,
        "eigenvalues": values.tolist(),
        "marchenko_pastur": studies.spectrum_theory(n, m).tolist(),
    }


def _uniform_rank(n: int, m: int) -> float:
    """The effective rank of n uniform rows in R^m, by Page's entropy: to first order that of n - 1 centred Gaussian
    rows is log(small) - small / (2 large), where small and large are the two of n - 1 and m."""
    small, large = sorted((n - 1, m))
    return max(1.0, small * math.exp(-small / (2 * large)))


def _dimensions(value: float, expected: Callable[[int], float], m: int) -> float:
    """The k in [0, m] with expected(k) = value, for a function that grows from 0 at k = 0; linear between integers."""
    least, most, below, above = 0, m, 0.0, expected(m)
    if value >= above:
        return float(m)
    while most - least > 1:
        middle = (least + most) // 2
        found = expected(middle)
        if found <= value:
            least, below = middle, found
        else:
            most, above = middle, found
    return least + max(0.0, value - below) / (above - below)


def _verdict(report: dict[str, Any]) -> dict[str, Any]:
    """The verdict in a word, and the sentence that says why; see the head of this file."""
    m, w2, spectrum, beyond = report["m"], report["w2"], report["spectrum"], report["beyond"]
    directed, zeros = report["n"] - report["norms"]["zero_rows"], report["norms"]["zero_rows"] / report["n"]
    used = min(w2["dimensions"], spectrum["dimensions"])
    word = "collapsed" if used < max(COLLAPSED * m, ONE) else "partly collapsed" if used < HEALTHY * m else "healthy"
    different = report["rows"]["distinct"]
    few = m < directed < FEWEST
    if report["rows"]["one_direction"]:
        why = "all rows but one are zero" if directed == 1 else "all rows point the same way"
        if directed == 0:
            why = "all rows are zero"
        elif different == 1 < directed:
            why = "all rows are equal" if zeros == 0 else "all rows but the zero ones are equal"
    elif directed <= m and (different <= FEW or used >= different / FEW):
        word = "too few rows to tell"
        why = (
            f"{directed} rows lie in fewer of the {m} dimensions whatever they are; W2 and effective rank are those of "
            f"as many uniform rows of {counted(used, 'dimension')}: take several times {m} rows"
        )
    elif few:
        word = "too few rows to tell"
        why = f"{directed} uniform rows of {m} features can look collapsed: take several times as many"
    else:
        verb = "is" if rounded(used) in SINGULAR else "are"
        why = (
            f"{rounded(used)} of {m} dimensions {verb} in use ({percent(used / m)}): W2 is that of uniform rows of "
            f"{counted(w2['dimensions'], 'dimension')}, the effective rank that of {rounded(spectrum['dimensions'])}"
        )
        w2_decides = w2["dimensions"] < min(spectrum["dimensions"], HEALTHY * m)
        if w2["mean_part"] > 0.5 or (w2_decides and w2["mean_part"] > w2["covariance_part"]):  # of unit rows' 1
            why += (
                f"; {percent(w2['mean_part'])} of the squared length is a common mean: the rows point one way; minus "
                f"that mean about {rounded(report['centred']['dimensions'])} of {m} would be in use"
            )
        if different <= m and different < directed:
            why += f"; only {different} of the rows differ, too few to tell if that is because inputs were repeated"
    advice = ADVICE[word]
    if word in ("collapsed", "partly collapsed") and (first := _to_try_first(report, used)):
        advice = f"{' and '.join(first)}, and audit again; {advice}"
    clumped = beyond["clumped"] and word != "collapsed" and not few  # clumps mean nothing in a few directions
    if clumped:
        advice = ADVICE_CLUMPED if word == "healthy" else f"{ADVICE_CLUMPED}; {advice}"
        word += " in two moments, but clumped" if word == "healthy" else ", and clumped"
        why += (
            "; W2 cannot see that rows lie in clumps or on a surface, nearest neighbours "
            f"{beyond['nearest']:.2g} apart instead of the {beyond['gaussian']['nearest']:.2g} of Gaussian rows with "
            "their mean and covariance: right if they are classes, or inputs of few degrees of freedom, wrong if they "
            "are repeated inputs or a code of few values"
        )
    if 0.01 < zeros < 1 and directed > 1:
        word += ", without the zero rows"
        told = f"{report['norms']['zero_rows']} of {report['n']} rows are zero"
        why = f"{told}; {why}" if zeros >= 0.5 else f"{why}; {told}"
    return {
        "word": word, "why": why, "advice": advice, "dimensions": used, "share": used / m, "clumped": clumped
    }  # fmt: skip


def _to_try_first(report: dict[str, Any], used: float) -> list[str]:
    """Against what makes rows of a good encoder look collapsed."""
    steps = []
    if "centred" in report and report["centred"]["dimensions"] >= used + WORTH * report["m"]:
        steps.append("subtract the common mean")
    if _strong_features(report):
        steps.append("leave out the features that a note names")
    elif report["beyond"]["two_groups"] is not None:
        steps.append("take the two groups of rows apart")
    return steps


def _strong_features(report: dict[str, Any]) -> bool:
    """Do a few of the features that live hold half of the squared length, which may be ids or outlier dimensions?"""
    features = report["features"]
    live = report["m"] - features["dead"]
    return live > 2 and 1 <= features["half"] <= max(1, live // ROGUE)


def _beyond(z: Tensor, flat: bool, seed: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What two moments cannot see, on the sampled rows z (s, m): calibrated L_U, and distances to nearest neighbours.

    They are compared with draws of as many rows from two laws: i.i.d. uniform rows, and Gaussian rows with the mean and
    covariance of z, scaled to unit length like z. d' is (value - mean over the draws) / deviation of the draws; `near`
    is the share of rows with a neighbour nearer than CLUMPED times the Gaussian median."""
    random = studies.generator(seed)
    values, directions = _directions(z, flat)
    laws: dict[str, Callable[[], Tensor]] = {
        "uniform": lambda: studies.sphere(len(z), z.shape[1], random).double(),
        "gaussian": _gaussian(z, values, directions, random),
    }
    drawn: dict[str, list[tuple[float, Tensor]]] = {law: [] for law in laws}
    for law in tqdm([*laws] * DRAWS, desc="comparing", unit="draw", delay=2, disable=None):
        drawn[law].append(_companions(laws[law]()))
    lu, nearest = _companions(z)
    median = float(nearest.median())
    limit = CLUMPED * float(torch.stack([near.median() for _, near in drawn["gaussian"]]).mean())
    near = float((nearest < limit).double().mean())
    beyond: dict[str, Any] = {
        "lu_calibrated": lu, "nearest": median, "near": near, "draws": DRAWS,
        "two_groups": _two_groups(z, values, directions),
    }  # fmt: skip
    for law, pairs in drawn.items():
        lus = torch.tensor([lu for lu, _ in pairs], dtype=torch.float64)
        medians = torch.stack([nearest.median() for _, nearest in pairs])
        beyond[law] = {
            "lu_calibrated": float(lus.mean()), "lu_d_prime": _d_prime(lu, lus),
            "nearest": float(medians.mean()), "nearest_d_prime": _d_prime(median, medians),
            "near": float(torch.cat([near < limit for _, near in pairs]).double().mean()),
        }  # fmt: skip
    beyond["clumped"] = median < limit
    shown = {"these rows": nearest} | {law: torch.cat([near for _, near in pairs]) for law, pairs in drawn.items()}
    return beyond, {name: distances.numpy() for name, distances in shown.items()}


def _directions(z: Tensor, flat: bool) -> tuple[Tensor, Tensor]:
    """The eigenvalues (k,) of the rows' scatter that are not rounding, descending, and their directions (m, k)."""
    centred = torch.zeros_like(z) if flat else z - z.mean(dim=0)  # what rounding left there is no direction
    tall = len(z) >= z.shape[1]
    values, vectors = torch.linalg.eigh(centred.T @ centred if tall else centred @ centred.T)
    order = (values > eigenvalue_noise(values)).nonzero().flatten().flip(0)
    values, vectors = values[order], vectors[:, order]
    return values, vectors if tall else centred.T @ (vectors / values.sqrt())


def _two_groups(z: Tensor, values: Tensor, directions: Tensor) -> float | None:
    """The share of the variance along the line through two groups, if the rows lie in two: if one direction stands out
    and the rows' places on it have a high bimodality coefficient of Sarle, (skewness^2 + 1) / kurtosis. Else None."""
    if len(z) < FEWEST or len(values) < 2 or values[0] < APART * values[1]:
        return None
    places = z @ directions[:, 0]
    places = (places - places.mean()) / places.std(correction=0)
    bimodality = (float(places.pow(3).mean()) ** 2 + 1) / float(places.pow(4).mean())
    return float(values[0] / values.sum()) if bimodality > GROUPS else None


def _gaussian(z: Tensor, values: Tensor, directions: Tensor, random: torch.Generator) -> Callable[[], Tensor]:
    """A function that draws Gaussian rows, scaled to unit length, with the mean and covariance of the unit rows z
    (s, m) in the s / MATCHED strongest of their `_directions`.

    A plain draw of N(mean, covariance) would have noise of its own in these moments, and scaling its rows would flatten
    its spectrum. Therefore matching the moments and scaling the rows alternate, for some rounds."""
    mean, s = z.mean(dim=0), len(z)
    sizes = (values / s).sqrt()
    k = min(len(values), s // MATCHED)
    from_g, to_g = (directions * sizes).T, (directions / sizes)[:, :k]  # g: coordinates of mean 0 and covariance I
    identity = torch.eye(k, dtype=z.dtype)

    def draw() -> Tensor:
        g = torch.randn(s, len(values), generator=random, dtype=z.dtype)
        strongest, y = g[:, :k].clone(), z
        for _ in range(ROUNDS):
            strongest -= strongest.mean(dim=0)
            covariance = strongest.T @ strongest / s
            factor, failed = torch.linalg.cholesky_ex(covariance)
            if failed or (y is not z and bool(((covariance - identity).abs() < 1e-3).all())):
                break  # failed: a few rows, scaled to unit length, may all be alike
            g[:, :k] = torch.linalg.solve_triangular(factor.T, strongest, upper=True, left=False)
            y = unit_rows(mean + g @ from_g)
            strongest = (y - y.mean(dim=0)) @ to_g
        return y

    return draw


def _companions(z: Tensor) -> tuple[float, Tensor]:
    """Calibrated L_U, and each row's distance to its nearest neighbour."""
    return float(lu_calibrated(z)), distance(z, z[nearest_rows(z)])


def _d_prime(value: float, draws: Tensor) -> float | None:
    """None where the draws do not vary beyond rounding."""
    deviation = float(draws.std())
    return (value - float(draws.mean())) / deviation if deviation > 1e-9 else None


def _labels(z: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """Do neighbours share the label? A random half of the sampled rows is asked, the other half votes."""
    from wassersteinssl.evaluate import knn_accuracy

    order = torch.randperm(len(z), generator=studies.generator(seed))
    found, labels = labels[order].unique(return_inverse=True)  # the sample's own labels only
    z, classes, asked = z[order], len(found), labels[1::2]
    accuracy = knn_accuracy(z[::2], labels[::2], z[1::2], asked, k=NEAREST, classes=classes)
    return {
        "classes": classes, "asked": len(asked), "knn1": accuracy,
        "most_frequent": 100 * float(asked.bincount().max()) / len(asked),
    }  # fmt: skip


def _views(z: Tensor, other: Tensor, name: str, seed: int, drop_bad_rows: bool) -> dict[str, Any]:
    """Every measure of two views, on the sampled rows; and as `unrelated` the same with the second view shuffled."""
    norms = torch.linalg.vector_norm(other, dim=1)
    good = _usable(other, norms)
    bad = int((~good).sum())
    if bad and not drop_bad_rows:
        raise UserError(
            f"{bad} of {len(other)} sampled rows of {name} hold NaN, infinite, gigantic or vanishing values; "
            "--drop-bad-rows leaves them out"
        )
    if bad > len(other) - 2:
        raise UserError(f"{name}: {counted(len(other) - bad, 'finite row')} of those sampled left; an audit needs two")
    z, other, norms = z[good], other[good], norms[good]
    other = other / torch.where(norms == 0, 1, norms).unsqueeze(1)  # like z, as not every measure scales its rows
    functions = {key: record.function for key, record in MEASURES.items() if record.needs_views}
    order = torch.randperm(len(other), generator=studies.generator(seed))
    shuffled = torch.empty_like(other)
    shuffled[order] = other[order.roll(1)]  # no row in its own place
    found, unrelated = ({key: float(f(z, o)) for key, f in functions.items()} for o in (other, shuffled))
    return {"name": name, "rows": len(z), "dropped": bad, **found, "unrelated": unrelated}


def _cautions(report: dict[str, Any]) -> Iterator[str]:
    """What a reader of these numbers has to keep in mind."""
    n, m, rows = report["n"], report["m"], report["rows"]
    if report["norms"]["max"] - report["norms"]["min"] > 1e-3 * report["norms"]["max"]:
        yield (
            "rows differ in length; norms, dead features and repeats are of the rows as they are, all else of rows "
            "scaled to unit length"
        )
    if 0 < (zeros := report["norms"]["zero_rows"]) < n:
        yield (
            f"{zeros} of {n} rows are zero: they have no direction and are left out"
            f" ({_first(rows['first_zero'], zeros)})"
        )
    if 1 < rows["distinct"] <= m:
        yield f"{rows['distinct']} distinct rows span at most as many of the {m} dimensions: read W2 beside its floor"
    if m < 32:
        yield "the floor is the law of many dimensions and overstates small ones: by 5 % at 8, 18 % at 2"
    features = report["features"]
    most, share = features["half"], percent(features["half_share"])
    if _strong_features(report):
        which = ", ".join(map(str, features["first_half"])) + (" ..." if most > NAMED else "")
        if most == 1:
            yield (
                f"feature {which} (counted from 0) holds {share} of the squared length: is it a feature, or an id or "
                "an outlier dimension? Leave it out and audit again"
            )
        else:
            yield (
                f"features {which} (counted from 0) together hold {share} of the squared length: are they features, or "
                "ids or outlier dimensions? Leave them out and audit again"
            )
    elif (groups := report["beyond"]["two_groups"]) is not None:
        yield (
            f"the sampled rows fall into two groups; {percent(groups)} of the variance lies along the line through "
            "them: are they two kinds of rows, such as images and texts? Audit each alone"
        )
    if (code := features["code"]) and "centred" in report:
        yield f"the sampled rows hold {code}: subtract the mean, or the zero point, and audit again"
    if "labels" in report:
        classes, sample = report["labels"]["classes"], report["sample"]
        if classes == 1:
            yield "the sampled rows have one label: kNN accuracy says nothing"
        elif 2 * classes > sample:
            yield f"{classes} different labels of {sample} sampled rows: are they classes?"
    if "views" in report:
        views = report["views"]
        if views["dropped"]:
            yield f"{views['dropped']} sampled rows, not finite, gigantic or vanishing in the views, are left out there"
        if views["alignment"] >= UNRELATED * views["unrelated"]["alignment"] > 0:
            yield "the views are no nearer than unrelated ones: are their rows in the same order?"
        if report["sample"] < n:
            yield f"views are compared on {views['rows']} sampled rows; the others were not looked at"
    beyond = report["beyond"]
    if not report["verdict"]["clumped"]:
        if beyond["near"] > NEAR + beyond["gaussian"]["near"]:
            yield (
                f"{percent(beyond['near'])} of the sampled rows have a neighbour nearer than a third of what is "
                "expected: near-repeats or clumps?"
            )
        elif n >= 2 * report["sample"] and not rows["one_direction"]:
            fewest = f"{n / report['sample']:.0f} rows"
            yield f"clumps of fewer than about {fewest}, near-repeats say, do not show in the sample"
    if not rows["repeated"] and 0 < beyond["nearest"] < 1e-3 * beyond["gaussian"]["nearest"]:
        yield "rows repeat but for rounding: floor and dimensions in use count them as different ones"
    if rows["repeated"]:
        yield (
            f"{rows['repeated']} of {n} rows repeat an earlier one; the floor is that of {rows['in_floor']} rows"
            + (f"; one row occurs {rows['most']} times, first at row {rows['most_first']}" if rows["most"] > 2 else "")
        )


def _first(rows: list[int], number: int) -> str:
    return f"{', '.join(map(str, rows))}{', ...' if number > len(rows) else ''}, counted from 0"


def rounded(dimensions: float) -> str:
    """A number of dimensions in three digits."""
    if dimensions >= 100:
        return f"{dimensions:.0f}"  # not 1.02e+03
    return f"{dimensions:.3g}" if dimensions >= 1 else "less than 1"


def counted(number: float, what: str) -> str:
    """A number with its noun: 2.5 dimensions, 1 row, less than 1 dimension."""
    told = str(number) if isinstance(number, int) else rounded(number)
    return f"{told} {what}" + ("" if told in SINGULAR else "s")


def percent(share: float) -> str:
    if 0 < share < 1e-4:
        return "less than 0.01 %"
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"

"""Table 2 from finished runs, beside the paper's numbers: which runs are averaged, and how the table is written.

A row is a method with a term; a cell is the mean and standard deviation over seeds. Runs of different settings are
never in one table; partial and failed runs are in none.
"""

import csv
import functools
import io
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch

from wassersteinssl import results
from wassersteinssl.augmentation import unusual
from wassersteinssl.cli import LARGEST_FLOAT, UserError, printable
from wassersteinssl.files import reason
from wassersteinssl.numerics import exp_entropy
from wassersteinssl.results import COLUMNS
from wassersteinssl.settings import PRESETS, Settings, other_images, own_defaults, programs
from wassersteinssl.uniformity import MEASURES

RESULTS = Path(__file__).resolve().parents[1] / "results"

# Class name of a method -> its name in the paper, in the table's order.
METHODS = {
    "SimCLR": "SimCLR",
    "NNCLR": "NNCLR",
    "SimSiam": "SimSiam",
    "AlignUniform": "AlignUniform",
    "MoCoV2": "MoCo v2",
    "BYOL": "BYOL",
    "BarlowTwins": "Barlow Twins",
    "ZeroCL": "Zero-CL",
}
TERM_LABELS = {"none": "", "lu": " + L_U", "w2": " + W2"}
DATASET_LABELS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
GAINS = ("acc1", "w2", "alignment")  # shown against vanilla, as in the paper

# What may differ between the rows of a table, or never matters (PLACE).
_FREE = {"dataset", "dataset_name", "seed", "uniformity", "alpha_max", "alpha_min", *Settings.PLACE}
_SHARED = {entry.name for entry in fields(Settings)}  # the rest of a run's settings is the method's own
_COMMON = _SHARED - _FREE


def term_label(term: str) -> str:
    """What follows a method's name for a run with this term."""
    return TERM_LABELS.get(term, f" + {MEASURES[term].label if term in MEASURES else term}")


@dataclass
class Row:
    """The finished runs of one method, term and data set under one setting, which differ only in their seeds."""

    method: str
    term: str
    dataset: str
    variant: str  # the part of its name that distinguishes it: weights of the term, options of the method
    own: dict  # all options of the method itself
    weights: tuple  # of the term, as used at the start and the end
    runs: list[dict] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.method, self.term, self.dataset, self.variant

    @property
    def aligned_only(self) -> bool:
        """Whether the loss is alignment alone, a method that is not in the paper's table."""
        return self.method == "AlignUniform" and self.own.get("uniform_weight") == 0

    @property
    def name(self) -> str:
        method = "MSE" if self.aligned_only else METHODS.get(self.method, self.method)
        return printable(method + term_label(self.term) + (f" ({self.variant})" if self.variant else ""))

    @property
    def published(self) -> dict[str, float]:
        """The paper's numbers; none if it has no such row, or if only a part of the images was trained on."""
        part = self.runs[0]["config"]["settings"].get("limit_train") is not None
        return {} if self.aligned_only or part else paper().get((self.method, self.term, self.dataset), {})

    @property
    def seeds(self) -> int:
        return len(self.runs)

    @property
    def minutes(self) -> float:
        """The mean time of pre-training and evaluation."""
        return (self.value("pretrain_seconds") + self.value("evaluate_seconds")) / 60

    def value(self, column: str) -> float:
        return mean(run[column] for run in self.runs)

    def measured(self, name: str) -> list[float]:
        """One of MEASURES, for each run; empty if a run has not recorded it or it was not finite."""
        values = [run["measures"].get(name) for run in self.runs]
        return [] if None in values else values

    def measure(self, name: str) -> float | None:
        """Its mean over the runs."""
        values = self.measured(name)
        return mean(values) if values else None

    def deviation(self, column: str) -> float | None:
        """Sample standard deviation over seeds; None for one seed."""
        return stdev(run[column] for run in self.runs) if self.seeds > 1 else None


@dataclass
class Table:
    """Rows of one setting."""

    setting: dict
    rows: list[Row]

    def datasets(self) -> list[str]:
        return list(dict.fromkeys(row.dataset for row in self.rows))

    def vanilla(self, row: Row) -> Row | None:
        """The row without a term of a row with one."""
        wanted = (row.method, row.dataset, row.own, "none")
        vanilla = (o for o in self.rows if (o.method, o.dataset, o.own, o.term) == wanted)
        return None if row.term == "none" else next(vanilla, None)

    def gains(self, row: Row, column: str) -> list[float]:
        """The gains over the row without a term, one for each seed that both rows have."""
        vanilla = self.vanilla(row)
        return [] if vanilla is None else [run[column] - other[column] for run, other in _same_seeds(row, vanilla)]

    def pairs(self, dataset: str) -> list[tuple[Row, Row]]:
        """Rows whose accuracies a reader compares: one with a term with that without, and W2 with each other term."""
        rows = [row for row in self.rows if row.dataset == dataset and row.term != "none"]
        found = [(row, vanilla) for row in rows if (vanilla := self.vanilla(row))]
        same = ((a, b) for a in rows for b in rows if (a.method, a.own) == (b.method, b.own))
        return found + [(a, b) for a, b in same if a.term == "w2" != b.term]


def _same_seeds(row: Row, other: Row) -> list[tuple[dict, dict]]:
    """The runs of two rows, seed by seed, of the seeds that both have."""
    runs, others = ({run["seed"]: run for run in r.runs} for r in (row, other))
    return [(runs[seed], others[seed]) for seed in sorted(runs.keys() & others.keys())]


@dataclass
class Unfinished:
    folder: Path
    reason: str


def collect(folders: Iterable[Path]) -> tuple[list[Table], list[Unfinished]]:
    """All runs at or below the folders: a table for each setting of the finished ones, and why others are left out."""
    tables: dict[str, Table] = {}
    finished: list[dict] = []
    closed: list[OSError] = []
    below = [_run_folders(top, closed) for top in folders]
    unfinished = [Unfinished(Path(error.filename), f"cannot be read: {error.strerror}") for error in closed]
    for folder in dict.fromkeys(chain.from_iterable(below)):
        try:
            run = results.read(folder) | {"folder": folder}
            finished.append(run | {"measures": _rank(run) | _measures(folder / "measures.json")})
        except ValueError as error:
            unfinished.append(Unfinished(folder, str(error)))
    _name_images(finished)
    for result in finished:
        folder, settings, setting = result["folder"], result["config"]["settings"], _setting(result)
        table = tables.setdefault(json.dumps(setting), Table(setting, []))
        variant, weights = _variant(settings), _weights(result)
        own = {key: value for key, value in settings.items() if key not in _SHARED}
        new = Row(result["method"], result["uniformity"], result["dataset"], variant, own, weights)
        same = [r for r in table.rows if (*r.key[:3], r.own, r.weights) == (*new.key[:3], own, weights)]
        if same:
            row = same[0]
            row.variant = row.variant and variant  # a weight that is some run's default need not be named
        else:
            table.rows.append(row := new)
        if result["seed"] in (run["seed"] for run in row.runs):
            unfinished.append(Unfinished(folder, f"a second run of seed {result['seed']}, not counted"))
        else:
            row.runs.append(result)
    for table in tables.values():
        _tell_apart(table.rows)
        table.rows.sort(key=_order)
    return list(tables.values()), unfinished


def largest() -> Table:
    """What notebooks show: the table of most rows of the runs at or below the folder that the variable RUNS names, or
    of code/results/mini."""
    folder = Path(os.environ.get("RUNS") or RESULTS / "mini").absolute()
    tables, _ = collect([folder])
    if not tables:
        raise UserError(f"no finished run below {folder} (RUNS=/path/to/runs chooses others)")
    return max(tables, key=lambda table: len(table.rows))


def _run_folders(top: Path, closed: list[OSError]) -> list[Path]:
    """The folders with a config.json at or below this one. Of those that may not be read the error joins `closed`."""
    found = [Path(at, "config.json") for at, _, files in os.walk(top, onerror=closed.append) if "config.json" in files]
    return [path.parent for path in sorted(found)]


def _setting(result: dict) -> dict:
    """What all rows of a table share."""
    return {key: result["config"]["settings"].get(key) for key in sorted(_COMMON)}


def _images(result: dict) -> dict:
    """The run's ImageSet.record; empty for older runs."""
    record = result["config"].get("images")
    return record if isinstance(record, dict) else {}


def _name_images(runs: list[dict]) -> None:
    """Give each set of images its own name: an unusual augmentation becomes part of the data set's name, and so does
    what distinguishes different images of the same name."""
    for run in runs:
        if own := unusual(run["config"].get("augmentation"), run["config"]["settings"].get("dataset")):
            run["dataset"] += f" ({', '.join(f'{key} {value}' for key, value in own.items())})"
    named: dict[str, list[dict]] = {}
    for run in runs:
        named.setdefault(json.dumps([_setting(run), run["dataset"]]), []).append(run)
    for group in named.values():
        sets: list[list[dict]] = []  # the runs on the same images
        for run in sorted(group, key=lambda run: -len(_images(run))):  # last those without a record, which may be any
            same = [s for s in sets if not other_images(_images(s[0]), _images(run))]
            if len(same) == 1:
                same[0].append(run)
            else:
                sets.append([run])
        if len(sets) < 2:
            continue
        records = [_images(s[0]) for s in sets]
        values = {key: [repr(r[key]) for r in records if key in r] for key in dict.fromkeys(chain(*records))}
        keys = [key for key, found in values.items() if len(set(found)) > 1]
        keys = next(([key] for key in keys if len(set(values[key])) == len(values[key])), keys)  # one is enough
        for record, members in zip(records, sets, strict=True):
            told = ", ".join(f"{key} {record[key]}" for key in keys if key in record) or "not recorded"
            for run in members:
                run["dataset"] += f" ({told})"


def _measures(path: Path) -> dict[str, float]:
    """The measures in the file, without those that are not finite; none if there is no such file."""
    try:
        return {name: float(value) for name, value in json.loads(path.read_text()).items() if value is not None}
    except (OSError, AttributeError, *results.DAMAGE):
        return {}


def spectrum(run: dict) -> np.ndarray:
    """Eigenvalues (dim,), descending, of the covariance of a run's l2-normalised test embeddings. UserError if they
    cannot be read."""
    path = run["folder"] / "spectrum.npy"
    try:
        values = np.load(path, allow_pickle=False)
        if values.shape != (run["dim"],) or values.dtype not in (np.float32, np.float64):
            raise ValueError(f"{values.dtype} of shape {values.shape}")
        if not (np.abs(values) < LARGEST_FLOAT).all():
            raise ValueError("numbers that are not finite")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from None
    return values


def _correct(run: dict) -> np.ndarray | None:
    """Which test images the run's linear classifier got right, bool (n_test,); None if the run has not recorded it, or
    the record does not fit its accuracy."""
    try:
        values = np.load(run["folder"] / "correct.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = values.shape == (run["n_test"],) and values.dtype == bool and len(values) > 1
    return values if fits and abs(100 * values.mean() - run["acc1"]) < 1e-6 else None


def _rank(run: dict) -> dict[str, float]:
    """The effective rank of the test embeddings, which older runs did not record; nothing if the spectrum is 0 or
    cannot be read."""
    try:
        values = spectrum(run)
    except UserError:
        return {}
    rank = float(exp_entropy(torch.from_numpy(values.clip(0))))
    return {"effective_rank": float(f"{rank:.8g}")} if rank else {}  # further digits depend on the processor


BEST = "Of several weights of a term: the one with the best kNN accuracy on the test images, which flatters it a bit."


def best(table: Table) -> Table:
    """Of rows that differ only in the weight of the term, keep the one with the best kNN accuracy, among those with the
    most seeds: the mean of a weight that diverges for some seeds is over the others only."""
    rows: dict[str, Row] = {}
    for row in table.rows:
        key = repr((row.method, row.own, row.term, row.dataset))
        rows[key] = max(rows.get(key, row), row, key=lambda row: (row.seeds, row.value("knn1")))
    return Table(table.setting, list(rows.values()))


@functools.cache
def paper() -> dict[tuple[str, str, str], dict[str, float]]:
    """The paper's Table 2: (method, term, data set) -> its numbers."""
    with (RESULTS / "paper_table2.csv").open(newline="") as file:
        return {
            (row["method"], row["uniformity"], row["dataset"]): {key: float(row[key]) for key in COLUMNS if key in row}
            for row in csv.DictReader(file)
        }


# ---- output ----


_SHOWN = ("width", "epochs", "batch_size", "precision", "linear_epochs", "dim")


def describe(table: Table) -> str:
    """The setting in a sentence, with the hardware, and with the name of the preset if it is one."""
    s, runs = table.setting, [run for row in table.rows for run in row.runs]
    usual = {entry.name: entry.default for entry in fields(Settings)}
    compared = _COMMON - {"precision"}
    fitting = (name for name, options in PRESETS.items() if all(s[key] == (usual | options)[key] for key in compared))
    preset = next(fitting, None)
    usual |= PRESETS[preset] if preset else {}
    unusual = [key for key in sorted(_COMMON - set(_SHOWN)) if s[key] not in (None, usual[key])]
    devices = ", ".join(sorted({run["device"] for run in runs}))
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    epochs, probe = (f"{s[key]} epoch{'' if s[key] == 1 else 's'}" for key in ("epochs", "linear_epochs"))
    tests = ", ".join(f"{n} test images" for n in sorted({run["n_test"] for run in runs}))
    return printable(
        (f"Preset `{preset}`: " if preset else "")
        + f"ResNet-18 of width {s['width']}, {epochs}, batch {s['batch_size']}, {s['precision']}, "
        f"{probe} of linear evaluation (last epoch), z in R^{s['dim']}, {tests}, seed {seeds}; "
        + "".join(f"{key} {s[key]}; " for key in unusual)
        + f"{devices}."
    )


def markdown(table: Table, unfinished: Iterable[Unfinished] = ()) -> str:
    """A table for each data set: ours (mean ± deviation, with the gain over vanilla, seed by seed) beside the paper's.
    W2 has its floor beside it. Below, differences in accuracy, where the runs allow to compare them image by image."""
    lines = [describe(table), ""]
    for dataset in table.datasets():
        title, heads, rows = _texts(table, dataset)
        lines += [f"**{title[0]}**, {title[1]}", ""]
        lines += [results.markdown([heads, *rows])]
        if compared := differences(table, dataset):
            lines += [results.markdown([DIFFERENCES, *compared])]
    if edited := [row.name for row in table.rows if len(_program_digests(row)) > 1]:
        lines += [f"The method's program was edited between or during the runs of {', '.join(edited)}.", ""]
    if shares := monitoring(table):
        lines += [shares, ""]
    if unfinished := list(unfinished):
        told = [printable(f"- {'/'.join(run.folder.parts[-2:])}: {run.reason}") for run in unfinished]
        lines += ["Not in the table:", "", *told, ""]
    return "\n".join(lines)


DIFFERENCES = ["Gain in Acc@1", "points", "standard error by the test images", "deviation over seeds", "seeds"]


def differences(table: Table, dataset: str) -> list[list[str]]:
    """The cells below DIFFERENCES, of the `Table.pairs` whose runs recorded which test images they got right."""
    rows = []
    for row, other in table.pairs(dataset):
        if found := difference(row, other):
            points, error = found
            deviation = f"{stdev(points):.2f}" if len(points) > 1 else ""
            told = [f"{mean(points):+.2f}", f"{error:.2f}", deviation, str(len(points))]
            rows.append([f"{row.name} over {other.name}", *told])
    return rows


def difference(row: Row, other: Row) -> tuple[list[float], float] | None:
    """By how many points Acc@1 of a row exceeds another's, for each seed that both recorded, and the standard error of
    the mean that stems from the choice of the test images; None if they recorded none.

    d_i = the mean over seeds of (right by the row) - (right by the other) for test image i; the error is
    100 std(d) / sqrt(n). Both rows see the same images: the error of a paired comparison, smaller than that of two
    accuracies on images of their own. The chance of the seeds comes on top.
    """
    runs = [(_correct(run), _correct(base)) for run, base in _same_seeds(row, other)]
    by_seed = [right.astype(float) - base for right, base in runs if right is not None and base is not None]
    if not by_seed or len({len(d) for d in by_seed}) > 1:
        return None
    error = np.mean(by_seed, axis=0).std(ddof=1) / len(by_seed[0]) ** 0.5
    return [100 * float(d.mean()) for d in by_seed], 100 * float(error)


def _program_digests(row: Row) -> set[str]:
    return set().union(*(results.program_digests(run["config"]) for run in row.runs))


def _texts(table: Table, dataset: str) -> tuple[tuple[str, str], list[str], list[list[str]]]:
    """For Markdown and LaTeX alike: a data set's name and floor, the heads of its columns, and its rows."""
    rows = [row for row in table.rows if row.dataset == dataset]
    compared = {column for row in rows for column in row.published}
    ranks = [row.measured("effective_rank") for row in rows]
    last = ["eff. rank ↑"] if any(ranks) else []
    heads = ["Method"]
    for column, (heading, _) in COLUMNS.items():
        heads += [heading] + (["paper"] if column in compared else [])
    cells = []
    for row, rank in zip(rows, ranks, strict=True):
        cells.append([row.name])
        for column in COLUMNS:
            cells[-1].append(_cell(table, row, column))
            if column in compared:
                number = row.published.get(column)
                cells[-1].append("" if number is None else f"{number:.2f}")
        cells[-1] += [_spread(rank, 1) if rank else ""] * len(last)
        cells[-1] += [str(row.seeds), f"{row.minutes:.1f}"]
    floor = f"W2's floor {rows[0].value('w2_floor'):.3f}"
    return (printable(DATASET_LABELS.get(dataset, dataset)), floor), [*heads, *last, "seeds", "minutes"], cells


def to_csv(tables: Iterable[Table]) -> str:
    """In long form: a line for each row and measure, with the paper's number, and the setting as JSON. The measures are
    those of the table, followed by all others that the runs have recorded."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heads = "method uniformity variant dataset measure mean deviation seeds gain gain_deviation gain_image_error"
    heads += " floor paper setting"
    writer.writerow(heads.split())
    for table in tables:
        setting = json.dumps(table.setting)
        for row in table.rows:
            key = [row.method, row.term, row.variant, row.dataset]
            for column in COLUMNS:
                ours = [*_mean_and_deviation([run[column] for run in row.runs]), row.seeds]
                floor, number = row.value("w2_floor") if column == "w2" else "", row.published.get(column, "")
                gain, vanilla = _mean_and_deviation(table.gains(row, column)), table.vanilla(row)
                paired = difference(row, vanilla) if column == "acc1" and vanilla else None
                writer.writerow([*key, column, *ours, *gain, paired[1] if paired else "", floor, number, setting])
            recorded = dict.fromkeys(chain.from_iterable(run["measures"] for run in row.runs))
            for name in (name for name in recorded if name not in COLUMNS):
                ours = [*_mean_and_deviation(row.measured(name)), row.seeds]
                writer.writerow([*key, name, *ours, *[""] * 5, setting])
    return out.getvalue()


def _mean_and_deviation(values: list[float]) -> list[float | str]:
    """The cells of the CSV; empty where there are too few values."""
    return [mean(values) if values else "", stdev(values) if len(values) > 1 else ""]


def latex(table: Table) -> str:
    """What `markdown` shows, as a booktabs tabular for each data set."""
    parts = []
    for dataset in table.datasets():
        title, heads, rows = _texts(table, dataset)
        about = rf"\multicolumn{{{len(heads)}}}{{l}}{{{_tex(', '.join(title))}}}"
        head, *body = (" & ".join(map(_tex, line)) for line in (heads, *rows))
        ruled = [
            r"\toprule",
            rf"{about} \\",
            r"\midrule",
            rf"{head} \\",
            r"\midrule",
            *(rf"{line} \\" for line in body),
        ]
        begin, end = rf"\begin{{tabular}}{{l{'c' * (len(heads) - 1)}}}", r"\end{tabular}"
        parts.append("\n".join([f"% {describe(table)}", begin, *ruled, r"\bottomrule", end]))
    return "\n\n".join(parts) + "\n"


def monitoring(table: Table) -> str:
    """The share of pre-training that the measures between epochs took, if the runs have recorded it."""
    shares = []
    for run in (run for row in table.rows for run in row.runs):
        noted = [line.get("monitor_seconds") for line in results.log(run["folder"])]
        if seconds := [s for s in noted if isinstance(s, float)]:
            shares.append(100 * sum(seconds) / run["pretrain_seconds"])
    if not shares:
        return ""
    span = " to ".join(dict.fromkeys(f"{share:.1f}" for share in (min(shares), max(shares))))
    runs = "one run" if len(shares) == 1 else f"{len(shares)} runs"
    return f"kNN, W2, L_U and A during training: {span} % of the time of pre-training, as {runs} noted."


def _cell(table: Table, row: Row, column: str) -> str:
    decimals, gains = COLUMNS[column][1], table.gains(row, column) if column in GAINS else []
    text = _spread([run[column] for run in row.runs], decimals)
    return f"{text} ({_spread(gains, decimals, '+')})" if gains else text


def _spread(values: list[float], decimals: int, sign: str = "") -> str:
    """The mean, with the deviation if there are several values."""
    text = f"{round(mean(values), decimals) + 0.0:{sign}.{decimals}f}"  # not -0.00
    return f"{text} ± {stdev(values):.{decimals}f}" if len(values) > 1 else text


def _tex(text: str) -> str:
    """Text as LaTeX: special characters escaped, measures as symbols."""
    text = re.sub(r"[&#$_{}%]", r"\\\g<0>", text.replace("\\", "/")).replace(r"L\_U", "L_U")
    text = text.replace("^", r"\^{}").replace("~", r"\~{}")
    for plain, tex in (("L_U", r"$\mathcal{L_U}$"), ("W2", r"$\mathcal{W}_2$"), ("↑", r"$\uparrow$")):
        text = text.replace(plain, tex)
    text = re.sub(r"(?<![\w.])-(?=\d)", "$-$", text)
    return text.replace("↓", r"$\downarrow$").replace("±", r"$\pm$")


def _order(row: Row) -> tuple:
    methods, terms, datasets = list(METHODS), list(TERM_LABELS), list(DATASET_LABELS)
    return (
        datasets.index(row.dataset) if row.dataset in datasets else len(datasets),
        row.dataset,
        methods.index(row.method) if row.method in methods else len(methods),
        row.method,
        terms.index(row.term) if row.term in terms else len(terms),
        row.term,
        [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?", row.variant)],
        row.variant,
    )


def _variant(settings: dict) -> str:
    """The weight of the term, if given on the command line; and that at the end, if it differs."""
    given = {key: settings[key] for key in ("alpha_max", "alpha_min") if settings.get(key) is not None}
    if given.get("alpha_min") == given.get("alpha_max"):
        given.pop("alpha_min", None)
    return ", ".join(f"{key} {weight:g}" for key, weight in given.items())


def _weights(result: dict) -> tuple:
    """The weights of the term at the start and the end, as the run recorded them; for an older run those of its epochs
    or, failing that, as they were given."""
    noted = result["config"].get("alpha")
    if isinstance(noted, list) and all(isinstance(weight, (int, float)) for weight in noted):
        return tuple(noted)
    if result["uniformity"] == "none":
        return ()
    settings, epochs = result["config"]["settings"], {line["epoch"]: line for line in results.log(result["folder"])}
    first, second = (epochs.get(k, {}).get("alpha") for k in (0, 1))
    if not (isinstance(first, float) and isinstance(second, float) and isinstance(settings.get("epochs"), int)):
        first, last = (settings.get(key) for key in ("alpha_max", "alpha_min"))
        return first, first if last is None else last
    return first, round(first - (first - second) * settings["epochs"], 9) + 0.0  # not -0


def _tell_apart(rows: list[Row]) -> None:
    """Add to the names of rows: the weights, if rows of the same name differ in them, and options of the method that
    differ between such rows or are not the default."""
    alike: dict[tuple, list[Row]] = {}
    for row in rows:
        alike.setdefault(row.key, []).append(row)
    for group in alike.values():
        if len({row.weights for row in group}) > 1:
            for row in group:
                told = " to ".join(dict.fromkeys(f"{weight:g}" for weight in row.weights if weight is not None))
                row.variant = ", ".join(filter(None, [row.variant, f"weight {told or 'not noted'}"]))
        defaults = own_defaults(programs()[group[0].method]) if group[0].method in programs() else {}
        options = sorted(set().union(*(row.own for row in group)))
        for option in options:
            differ = len({repr(row.own.get(option)) for row in group}) > 1
            for row in group:
                given = option in defaults and row.own.get(option, defaults[option]) != defaults[option]
                if differ or (given and not (row.aligned_only and option == "uniform_weight")):  # MSE, by its name
                    told = f"{option} {row.own[option]}" if option in row.own else f"no {option}"
                    row.variant = ", ".join(filter(None, [row.variant, told]))

#!/usr/bin/env python3
"""Has this embedding collapsed? A verdict in words, and one page of measures behind it.

    python code/audit.py FEATURES                                       a table of features, a row a sample
    python code/audit.py FEATURES --labels L --views F2 --report DIR    and the page as HTML, PNG, JSON and text in DIR
    python code/audit.py --encoder RUN                                  a trained run, on the test images of its data
    python code/audit.py --timm MODEL --data-dir IMAGES                 a pretrained model (needs the package timm)
    python code/audit.py --compare DIR1 DIR2 ...                        of several --report a line each, side by side

FEATURES is a .npy, .npz, .pt, .safetensors, .csv or .tsv file, or a folder of such shards, of float16 to float64
(whole numbers are taken as they are). It is read in chunks: ten million rows of 1,024 features need less than 2 GB.
Rows of any length will do: they are scaled to unit length. Moments, norms and repeated rows are those of all rows; what
needs pairs of rows is measured on --sample of them. Everything runs on the CPU.

collapsed: less than 10 % of the dimensions are in use; partly collapsed: less than 60 %; else healthy.
Dimensions are counted by W2 against its floor and by the effective rank; the smaller count decides.

Exit status: 0 the audit is done, whatever it says; 2 a mistake in the command or the data; 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # works with and without an installation

from wassersteinssl.cli import Parser, UserError, exit_status, given_path, pair_size, seed
from wassersteinssl.files import check_writable
from wassersteinssl.settings import DATASETS


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("features", nargs="?", type=given_path, metavar="FEATURES")
    parser.add_argument("--encoder", type=given_path, metavar="RUN", help="instead: the folder of a finished run")
    parser.add_argument("--timm", metavar="MODEL", help="instead: a pretrained model of the package timm")
    parser.add_argument("--compare", nargs="+", type=given_path, metavar="DIR", help="instead: folders of --report")
    parser.add_argument("--key", metavar="NAME", help="of the array, in a file that holds several")
    parser.add_argument(
        "--labels",
        type=given_path,
        metavar="FILE",
        help="a class a row, numbers or, in .csv, .tsv and .txt, names: does its neighbourhood know it?",
    )
    parser.add_argument("--labels-key", metavar="NAME", help="of their array, or column, in a file that holds several")
    parser.add_argument(
        "--views", type=given_path, metavar="FEATURES2", help="features of the same inputs, seen differently"
    )
    parser.add_argument("--views-key", metavar="NAME", help="of their array (default: as --key)")
    parser.add_argument(
        "--drop-columns", nargs="+", metavar="NAME", default=[], help="of a table: no features (numbers or text)"
    )
    parser.add_argument("--report", type=given_path, metavar="DIR", help="write audit.html, .png, .json and .txt there")
    parser.add_argument("--sample", type=pair_size, default=2048, help="rows for pairs (default: %(default)s)")
    parser.add_argument("--seed", type=seed, default=12, help="of that sample and of the draws (default: %(default)s)")
    parser.add_argument(
        "--drop-bad-rows", action="store_true", help="leave out rows with NaN, infinite, gigantic or vanishing values"
    )
    encoder = parser.add_argument_group("with --encoder and --timm")
    encoder.add_argument("--dataset", choices=DATASETS, help="default: the run's own; with --timm folder")
    encoder.add_argument("--data-dir", help="of the images")
    encoder.add_argument("--split", choices=("test", "train"), help="default: test")
    encoder.add_argument("--layer", choices=("projector", "backbone"), help="of a run (default: projector)")
    options = parser.parse_args(arguments)
    if sum(x is not None for x in (options.features, options.encoder, options.timm, options.compare)) != 1:
        parser.error("give FEATURES or --encoder RUN or --timm MODEL or --compare DIR ...")
    if options.compare is not None and any(
        value != parser.get_default(name) for name, value in vars(options).items() if name != "compare"
    ):
        parser.error("--compare goes with no other option")
    encoded = options.features is None
    for name, value, used, partners in (
        ("--dataset", options.dataset, encoded, "--encoder or --timm"),
        ("--data-dir", options.data_dir, encoded, "--encoder or --timm"),
        ("--split", options.split, encoded, "--encoder or --timm"),
        ("--layer", options.layer, options.encoder is not None, "--encoder"),
        ("--key", options.key, not encoded or options.views is not None, "FEATURES or --views"),
        ("--labels-key", options.labels_key, options.labels is not None, "--labels"),
        ("--views-key", options.views_key, options.views is not None, "--views"),
        ("--drop-columns", options.drop_columns or None, not encoded, "FEATURES"),
    ):
        if value is not None and not used:
            parser.error(f"{name} goes with {partners}")
    options.split, options.layer = options.split or "test", options.layer or "projector"
    return options


def run(options: argparse.Namespace) -> int:
    if options.report is not None:
        check_writable(options.report)
    from wassersteinssl import audit, audit_files, audit_report  # torch and matplotlib take seconds

    if options.compare is not None:
        print(audit_report.side_by_side(options.compare), end="")
        return 0
    same = options.labels and options.features and options.labels.resolve() == options.features.resolve()
    drop = [*options.drop_columns, *([options.labels_key] if same else [])]
    images = options.dataset, options.data_dir, options.split
    if options.features is not None:
        audit_files.check_columns(options.features, options.drop_columns)
        features = audit_files.read(options.features, options.key, drop)
    else:
        from wassersteinssl import audit_encoders  # and torchvision

        if options.encoder is not None:
            features = audit_encoders.of_run(options.encoder, *images, options.layer)
        else:
            features = audit_encoders.of_timm(options.timm, *images)
    features = audit_files.with_labels(features, options.labels, options.labels_key)
    views_key = options.views_key or options.key
    if options.views is not None and (options.views, views_key) == (options.features, options.key):
        raise UserError(f"--views is {options.views} itself: give other features, or another array by --views-key")
    views = options.views and audit_files.read(options.views, views_key, drop)
    if options.views_key is not None:
        audit_files.check_key([options.views])
    if options.key is not None:
        audit_files.check_key([path for path in (options.features, options.views) if path is not None])
    found = audit.audit(
        features, views=views, sample=options.sample, seed=options.seed, drop_bad_rows=options.drop_bad_rows
    )
    written = []
    if options.report is not None:
        written = audit_report.save(found, options.report)
    print(audit_report.text(found.report), end="")
    if written:
        print("wrote " + ", ".join(map(str, written)))
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(run, parse()))

"""The command line of a synthetic study; it answers --help before torch loads."""

import argparse
from pathlib import Path

from wassersteinssl.cli import Parser, given_path, pair_size, seed

REPOSITORY = Path(__file__).resolve().parents[2]


def study_options(description: str | None, *, samples: int, quick: int, out: Path) -> argparse.Namespace:
    """--samples, --seed, --device and --out as given, and `name`, that of the data file.

    `samples` is the default, `quick` the number of --quick, and `out` the data file of all rows if --out is not given.
    """
    parser = Parser(description)
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--samples", type=pair_size, default=samples, help="rows (default: all %(default)s)")
    rows.add_argument("--quick", dest="samples", action="store_const", const=quick, help=f"{quick} rows: in seconds")
    parser.add_argument("--seed", type=seed, default=12, help="of the samples (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=given_path,
        help="folder of the data file (default: the script's; of fewer rows: runs/figures/...)",
    )
    options = parser.parse_args()
    if options.out is None:
        options.out = out.parent
        if options.samples != samples and out.is_relative_to(REPOSITORY):  # the committed data is that of all rows
            options.out = REPOSITORY / "runs" / "figures" / out.parent.relative_to(REPOSITORY)
    options.name = out.name
    return options

"""The command line of a synthetic study; it answers --help before torch loads."""

import argparse
from pathlib import Path

from wassersteinssl.settings import Parser, pair_size, seed


def study_options(description: str | None, *, samples: int, quick: int, out: Path) -> argparse.Namespace:
    """--samples, --seed, --device and --out as given; `name`, of the data file.

    `samples` is the default, `quick` the few of --quick, `out` the data file where no --out is given.
    """
    parser = Parser(description)
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument("--samples", type=pair_size, default=samples, help="rows (default: all %(default)s)")
    rows.add_argument("--quick", dest="samples", action="store_const", const=quick, help=f"{quick} rows: in seconds")
    parser.add_argument("--seed", type=seed, default=12, help="of the samples (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=out.parent, help="folder of the data file (default: the script's)")
    options = parser.parse_args()
    options.name = out.name
    return options

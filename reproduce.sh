#!/usr/bin/env bash
# One command: makes the environment, then shows dimensional collapse and its cure, with no download and no GPU.
#   1. Table 2 in small: four methods x three uniformity terms on the embedded digits -> runs/reproduce/
#   2. every figure of the paper, from these runs and from few samples                -> runs/figures/
# 5 to 10.5 minutes on two cores, the environment not counted. Run again, it continues or shows what is done.
#   ./reproduce.sh --paper    the figures from the paper's number of samples: minutes more
#   ./reproduce.sh --fresh    forget what was done and start anew
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
runs=$root/runs/reproduce
paper=() fresh=
for option; do
  case $option in
    --paper) paper=(--paper) ;;
    --fresh) fresh=yes ;;
    -h | --help) sed -n '2,7s/^# //p' "$root/reproduce.sh"; exit ;;
    *) echo "error: unknown option $option (--paper, --fresh, --help)" >&2; exit 2 ;;
  esac
done
. ./environment.sh
make_environment requirements.txt
[ -z "$fresh" ] || rm -rf "$runs"

"$python" code/grid.py run --preset digits --parallel 2 --runs "$runs" || {
  status=$?
  if [[ $("$python" code/grid.py status --preset digits --runs "$runs" 2> /dev/null) == *' another '* ]]; then
    echo "these runs are of another version: ./reproduce.sh --fresh removes them and starts anew" >&2
  fi
  exit "$status"
}
echo
"$python" code/table2.py "$runs" --spectra --curves
echo
RUNS=$runs "$python" code/figures.py --parallel 2 ${paper[@]+"${paper[@]}"}

#!/usr/bin/env bash
# Every term that can be added to a loss, at three weights, with alignment alone (MSE) and with BYOL.
#   bash code/regularisers.sh RUNS [--preset digits] [options of every run]
# A grid of 2 x (1 + 14 x 3) runs in RUNS, which continues where it stopped. What it shows:
# python code/table2.py RUNS --best; table2.csv there has every measure of every run.
# A term's weights: about 0.3, 3 and 30 times the one at which it pulls partly collapsed rows as hard as alignment does.
set -euo pipefail
code=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
[ $# -gt 0 ] || { echo "error: the folder of the runs is missing" >&2; exit 2; }
runs=$1
shift
grid() { # term, weights, options
  "${PYTHON:-python}" "$code/grid.py" run --terms "$1" --weights $2 --runs "$runs" "${@:3}" </dev/null
}
while read -r term weights; do
  grid "$term" "$weights" --methods align_uniform "$@" --uniform-weight 0
  grid "$term" "$weights" --methods byol "$@"
done <<'WEIGHTS'
none          1
w2            0.3 3 30
lu            0.15 1.5 15
lu_calibrated 0.15 1.5 15
koleo         0.15 1.5 15
mst           0.2 2 20
ssw           10 100 1000
sigreg        0.006 0.06 0.6
frobenius     0.03 0.3 3
vicreg        0.01 0.1 1
kl            0.0003 0.003 0.03
reverse_kl    1e-6 1e-4 1e-2
jeffreys      1e-6 1e-4 1e-2
bhattacharyya 0.0005 0.005 0.05
tcr           0.007 0.07 0.7
WEIGHTS

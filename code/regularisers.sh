#!/usr/bin/env bash
# Every term that can be added to a loss, at three weights, with alignment alone (MSE) and with BYOL.
#   bash code/regularisers.sh RUNS [--preset digits] [options of every run]
# A grid of 2 x (1 + 14 x 3) runs in RUNS, which continues where it stopped. What it shows:
# python EmpiricalStudy/Regularisers/AnalysisOnRegularisers.py --runs RUNS
# The weights are around the one at which the term pulls partly collapsed rows as hard as alignment does.
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
w2            0.2 1 5
lu            0.1 0.5 2.5
lu_calibrated 0.1 0.5 2.5
koleo         0.1 0.5 2.5
mst           0.1 0.5 2.5
ssw           5 25 125
sigreg        0.004 0.02 0.1
frobenius     0.02 0.1 0.5
vicreg        0.01 0.05 0.25
kl            0.0002 0.001 0.005
reverse_kl    1e-6 1e-4 1e-2
jeffreys      1e-6 1e-4 1e-2
bhattacharyya 0.0004 0.002 0.01
tcr           0.004 0.02 0.1
WEIGHTS

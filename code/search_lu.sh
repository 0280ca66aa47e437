#!/usr/bin/env bash
# The weight of + L_U, which the paper does not publish: three values for each method of Table 2, by kNN accuracy.
#   bash code/search_lu.sh RUNS [options of every run: --dataset folder --data-dir PATH --dataset-name cifar10 ...]
# Short runs: width 16, 12,800 images, 6 epochs. Some six minutes of a core each; it continues where it stopped. Then
# python code/table2.py RUNS shows all of them.
set -euo pipefail
code=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
[ $# -gt 0 ] || { echo "error: the folder of the runs is missing" >&2; exit 2; }
runs=$1
shift
while read -r program last weights; do
  for weight in $weights; do
    [ "$last" = same ] && least=$weight || least=$last
    name=$(basename "$program" .py)+lu-$weight
    "${PYTHON:-python}" "$code/$program" --uniformity lu --alpha-max "$weight" --alpha-min "$least" --limit-train 12800 \
      --epochs 6 --width 16 --linear-epochs 2 --monitor-every 3 --run-dir "$runs/$name" "$@" </dev/null
  done
done <<'WEIGHTS'
MoCov2/moco_v2.py             same 0.25 1 4
BYOL/byol.py                  same 0.05 0.2 0.8
BarlowTwins/barlow_twins.py   0    3 10 30
Zero-CL/zero_cl.py            same 3 10 30
WEIGHTS

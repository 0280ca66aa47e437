#!/usr/bin/env bash
# What every launcher does: run METHOD.py with its options, on CIFAR-10 and then CIFAR-100 unless --dataset is given.
#   launch.sh METHOD.py [OPTION ...]
# The Python is $PYTHON, else the repository's .venv, else python3. A finished run is skipped, an unfinished continued.
set -euo pipefail
code=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-$code/../.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3

for argument in "$@"; do
  case $argument in
    --dataset | --dataset=* | -h | --help) exec "$python" "$@" ;;
  esac
done
for dataset in cifar10 cifar100; do
  "$python" "$@" --dataset "$dataset"
done

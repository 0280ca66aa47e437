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
for argument in "$@"; do
  case $argument in
    --run-dir | --run-dir=* | --dataset-name | --dataset-name=*)
      echo "${1##*/}: error: ${argument%%=*} goes with --dataset: without it there are two runs" >&2
      exit 2
      ;;
  esac
done
for dataset in cifar10 cifar100; do
  "$python" "$@" --dataset "$dataset" &
  run=$!
  trap 'asked=yes; kill -TERM "$run"' TERM USR1 USR2 # it writes a checkpoint
  trap 'asked=yes' INT                               # a terminal's Ctrl-C has reached the run by itself
  asked=yes status=0
  while [ -n "$asked" ]; do # a signal has ended the wait, not the run
    asked=""
    wait "$run" && status=0 || status=$?
  done
  [ "$status" = 0 ] || exit "$status"
done

#!/usr/bin/env bash
# One command: makes the environment, then shows dimensional collapse and its cure. It trains BYOL without and with the
# W2 term on the embedded digits (no download, no GPU) and prints one table and one picture. About 5 minutes on two
# cores, the environment not counted. Run again, it continues or shows what is done; ./reproduce.sh --fresh starts anew.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cd "$root"
runs=$root/runs/reproduce
case ${1:-} in
  '') ;;
  --fresh) rm -rf "$runs" ;;
  -h | --help) sed -n '2,4s/^# //p' "$0"; exit ;;
  *) echo "error: unknown option $1 (--fresh, --help)" >&2; exit 2 ;;
esac
. ./environment.sh
make_environment requirements.txt

for term in none w2; do
  echo "BYOL, uniformity term: $term"
  "$python" code/BYOL/byol.py --dataset digits --width 16 --hidden-dim 256 --dim 64 --batch-size 128 --epochs 60 \
    --linear-epochs 30 --monitor-every 20 --uniformity "$term" --run-dir "$runs/byol-$term"
done
echo
"$python" code/table2.py "$runs" --spectra

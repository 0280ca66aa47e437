#!/usr/bin/env bash
# What concerns a GPU, what matters most first: tests, loss, training (550 s at most); augmentation, data, metrics (320).
#   bash code/benchmarks/gpu_session.sh [OUT [PART ...]]     OUT: folder for results and logs (default: runs/gpu)
# PARTs (default: all) by their names below, for machines that are lent for less.
# Beside OUT grows OUT.tar.gz with all of it, after each part, to be taken along if the time runs out.
# PYTHON=python3.12 chooses the Python; it needs torch with CUDA, torchvision, numpy, scipy, scikit-learn, safetensors,
# tqdm, pytest and hypothesis. Nothing is downloaded. Each part has its time limit, and a part that fails stops no other.
set -uo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
out=$(mkdir -p "${1:-$root/runs/gpu}" && CDPATH='' cd -- "${1:-$root/runs/gpu}" && pwd)
wanted=" ${*:2} "
cd "$root"
python=${PYTHON:-python3}
export PYTHONPATH=$root/code PYTHONUNBUFFERED=1

part() { # seconds, name, command...
  local limit=$1 name=$2
  shift 2
  [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
  echo "== $name ($(date +%T), at most $limit s)"
  timeout -k 10 "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n 60
  echo "== $name: exit status ${PIPESTATUS[0]}"
  tar -C "$out" -czf "$out.tar.gz" .
}

bench() { # seconds, name, program, options...
  local limit=$1 name=$2 program=$3
  shift 3
  part "$limit" "$name" "$python" "code/benchmarks/$program.py" --device cuda --out "$out/$name-gpu.json" "$@"
}

for name in ${*:2}; do
  grep -Eq "^(part|bench) [0-9]+ $name " "$0" || { echo "error: no part $name (see the last lines of $0)" >&2; exit 2; }
done
nvidia-smi || { echo "error: no GPU" >&2; exit 2; }
"$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_name())' || exit 2
all=(--width 64 --steps 30 --rounds 2 --no-usual)
part 90 gpu-tests "$python" -m pytest -q tests/test_{step,w2,run,data}.py -k "gpu or cuda"
bench 70 loss bench_loss
bench 60 train-w64-bf16 bench_train --precision bf16 "${all[@]}" --methods BYOL
bench 70 train-w64-bf16-barlow bench_train --precision bf16 "${all[@]}" --methods BarlowTwins --profile
bench 110 train-w64-bf16-compiled bench_train --precision bf16 "${all[@]}" --methods BYOL --compile all
bench 60 train-w64-fp32 bench_train --precision fp32 "${all[@]}" --methods BYOL
bench 90 train-w64-bf16-rest bench_train --precision bf16 "${all[@]}" --methods MoCoV2 ZeroCL SimCLR
bench 110 augment bench_augment
bench 60 data bench_data
bench 150 metrics bench_metrics --audit-rows 1000

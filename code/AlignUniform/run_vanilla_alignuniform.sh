#!/usr/bin/env bash
# AlignUniform as in the paper's Table 2: ResNet-18, 500 epochs, batch 256, on CIFAR-10 and then CIFAR-100.
#   bash ./code/AlignUniform/run_vanilla_alignuniform.sh [--dataset NAME] [OPTION ...]     (--help lists the options)
# Paper, linear accuracy: 90.37 % on CIFAR-10, 65.08 % on CIFAR-100. On a CPU try: --dataset digits --width 16 --epochs 20
# Measured here, by preset of grid.py: digits 91.77 % (mean of 5 seeds) in 1.5 minutes (Intel(R) Xeon(R) Processor, 1 thread); mini 58.00 % in 2.2 minutes (NVIDIA H200).
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
exec bash "$here/../launch.sh" "$here/align_uniform.py" --uniformity none "$@"

#!/usr/bin/env bash
# BYOL as in the paper's Table 2: ResNet-18, 500 epochs, batch 256, on CIFAR-10 and then CIFAR-100.
#   bash ./code/BYOL/run_vanilla_byol.sh [--dataset NAME] [OPTION ...]     (--help lists the options)
# Paper, linear accuracy: 89.53 % on CIFAR-10, 63.66 % on CIFAR-100. On a CPU try: --dataset digits --width 16 --epochs 20
# Measured here, by preset of grid.py: digits 51.32 % (mean of 5 seeds) in 1.5 minutes (Intel(R) Xeon(R) Processor, 1 thread); mini 48.08 % in 2.8 minutes (NVIDIA H200); short 77.83 % in 8.5 minutes (NVIDIA H200).
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
exec bash "$here/../launch.sh" "$here/byol.py" --uniformity none "$@"

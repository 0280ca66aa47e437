#!/usr/bin/env bash
# Barlow Twins as in the paper's Table 2: ResNet-18, 500 epochs, batch 256, on CIFAR-10 and then CIFAR-100.
#   bash ./code/BarlowTwins/run_vanilla_barlowtwins.sh [--dataset NAME] [OPTION ...]     (--help lists the options)
# Paper, linear accuracy: 91.16 % on CIFAR-10, 68.19 % on CIFAR-100. On a CPU try: --dataset digits --width 16 --epochs 20
# Measured here, by preset of grid.py: digits 95.27 % (mean of 5 seeds) in 1.2 minutes (Intel(R) Xeon(R) Processor, 1 thread); mini 57.63 % in 2.3 minutes (NVIDIA H200); short 85.91 % in 9.4 minutes (NVIDIA H200).
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
exec bash "$here/../launch.sh" "$here/barlow_twins.py" --uniformity none "$@"

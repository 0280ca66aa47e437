"""What this process may use of the machine, often less than the machine has (Slurm, containers), and what it used.

Loads torch in functions only: the grid asks for the CPUs without it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> float:
    """Bytes that this process may fill: the machine's available memory, or less where a control group limits it."""
    limits = [float("inf")]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        group = Path(Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip().lstrip("/"), "memory.max")
        for parent in group.parents:  # Slurm sets its limit some levels up
            maximum = Path("/sys/fs/cgroup", parent, group.name)
            limits += [float(maximum.read_text().replace("max", "inf"))] if maximum.exists() else []
    except (OSError, ValueError):
        pass  # not Linux
    return min(limits)


def fills_memory(size: int) -> bool:
    """Whether `size` bytes are too many to be kept in memory: more than half of it."""
    return size > memory() / 2


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may be kept on the device: at most half of a GPU's free memory."""
    import torch

    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] / 2


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: of tensors on a GPU, else of the whole process; 0 where the system does not tell."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU, where torch has no class for it."""
    import torch

    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)

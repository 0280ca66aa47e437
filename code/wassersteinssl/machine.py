"""What this process may use of the machine, often less than the machine has (Slurm, containers). Without torch."""

import os
from pathlib import Path


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment_beside(processes: int) -> dict[str, str]:
    """The environment for one of so many processes at a time; else each starts as many threads as there are CPUs."""
    environment = dict(os.environ)
    if processes > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cpus() // processes)))
    return environment


def environment_number(name: str, default: int) -> int:
    """The whole number in an environment variable; the default where there is none."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def local_processes() -> int:
    """Those that torchrun has started on this machine, with this one."""
    return max(1, environment_number("LOCAL_WORLD_SIZE", 1))


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
    """Whether `size` bytes are too many to be kept in memory by each process that torchrun started here: more than
    half of it."""
    return size * local_processes() > memory() / 2

"""What this process may use of the machine, often less than the machine has (Slurm, containers). Without torch."""

import contextlib
import math
import os
from pathlib import Path

GROUP_OF_PROCESS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def cpus() -> int:
    """How many CPUs this process may use: those it may run on, or fewer where a control group limits their time."""
    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(ValueError, ZeroDivisionError):
        for limit in _control_group("cpu.max"):  # "microseconds period"
            time, period = limit.split()
            if time != "max":
                most = min(most, max(1, math.ceil(int(time) / int(period))))
    return most


def environment_beside(processes: int) -> dict[str, str]:
    """The environment for one of so many processes at a time. Without it each would start a thread, and torch.compile a
    process, for every CPU."""
    environment = dict(os.environ)
    if processes > 1:
        for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
            environment.setdefault(name, str(max(1, cpus() // processes)))
    return environment


def environment_number(name: str, default: int) -> int:
    """The whole number in an environment variable; the default where there is none."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def local_processes() -> int:
    """The processes that torchrun has started on this machine, this one included."""
    return max(1, environment_number("LOCAL_WORLD_SIZE", 1))


def memory() -> float:
    """Bytes that this process may fill: the machine's available memory (on other systems than Linux all its memory), or
    less where a control group limits it."""
    limits = [float("inf")]
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows
        limits.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    with contextlib.suppress(OSError, ValueError):  # not Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")]
        limits += [float(limit.replace("max", "inf")) for limit in _control_group("memory.max")]
    return min(limits)


def _control_group(name: str) -> list[str]:
    """The contents of the files of this name in the process's control group (version 2) and in those above it, where
    Slurm sets limits; nothing on other systems."""
    try:
        group = Path(GROUP_OF_PROCESS.read_text().rpartition("0::")[2].strip().lstrip("/"), name)
        files = [GROUPS / parent / name for parent in group.parents]
        return [file.read_text() for file in files if file.exists()]
    except OSError:
        return []


def fills_memory(size: int) -> bool:
    """Whether `size` bytes, kept by each process that torchrun has started here, would take more than half of the
    memory."""
    return size * local_processes() > memory() / 2

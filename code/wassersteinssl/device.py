"""The device that computes: how to find and name it, what fits into its memory, and how much was used."""

import platform
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from wassersteinssl import distributed
from wassersteinssl.cli import UserError
from wassersteinssl.files import reason

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def find_device(name: str) -> torch.device:
    """The device of this name, ready for use; "auto" is the best there is. UserError if it cannot be used."""
    several = distributed.size() > 1
    if name == "auto":
        mps = torch.backends.mps.is_available() and not several
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if several and name == "cuda":
        name = f"cuda:{distributed.local_rank()}"
    elif several and name != "cpu":
        raise UserError(f"--device {name} with several processes: give cuda, of which each takes its own, or cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it is no cpu, cuda or mps")
        device = torch.zeros(1, device=device).device  # with its number, which torch.cuda.set_device wants
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used here: {reason(error)[:200]}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)  # CUDA graphs, NCCL and DistributedDataParallel use the current device
        # No TF32, which convolutions use by default: W2's solver and the paper's fp32 need all digits.
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
    return device


def hardware(device: torch.device) -> str:
    """The device in words, for results: a time without its hardware means little."""
    processes = f"{distributed.size()} processes, each " if distributed.size() > 1 else ""
    if device.type == "cuda":
        return processes + torch.cuda.get_device_name(device)
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1] if found else cpu
    except OSError:
        pass
    threads = torch.get_num_threads()
    other = "" if device.type == "cpu" else f", {device.type}"
    return f"{processes}{cpu}, {threads} thread{'s' if threads > 1 else ''}{other}"


def moved(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`. A copy to a CUDA GPU goes through pinned memory, and the host does not wait for it. Other
    copies are waited for, as the tensor might be freed before an asynchronous copy has read it."""
    device = torch.device(device)
    return _pinned(tensor, device).to(device, non_blocking=device.type == "cuda")


def move_into(target: Tensor, tensor: Tensor) -> None:
    """Overwrite `target` with the tensor, waiting only where `moved` does."""
    target.copy_(_pinned(tensor, target.device), non_blocking=target.is_cuda)


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    to_gpu = device.type == "cuda" and tensor.device.type == "cpu"
    return tensor.pin_memory() if to_gpu and not tensor.is_pinned() else tensor


def fits(size: int, device: torch.device) -> bool:
    """Whether `size` bytes may be kept on the device: at most half of a GPU's free memory."""
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] / 2


def peak_memory(device: torch.device) -> int:
    """The peak memory so far in bytes: of tensors on a GPU, else of the process; 0 where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU, for which torch has no exception class."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        words in str(error)
        for words in ("allocate memory", "Storage size calculation overflowed", "out of memory", "ALLOC_FAILED")
    )

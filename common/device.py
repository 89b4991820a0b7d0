"""Device, number format, threads and random streams of a computation."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from common import cores
from common.errors import RunError

Precision = Literal["auto", "float32", "bfloat16"]


def set_up(device: str, threads: int | None = None, *, huge_pages: bool = False) -> torch.device:
    """Returns the device that `auto`, `cpu` or `cuda` means on this machine, and sets torch to its fast mode.

    Without `threads`, a computation on a CPU takes one thread for each core, fewer if other processes keep cores busy.
    It is repeatable with the same number of threads; on CUDA cuDNN chooses its kernels by timing them, and float32
    products are TensorFloat32.

    `huge_pages` puts tensors of 2 MB and more on pages of 2 MB where Linux offers them: a step that streams through
    many such tensors looks up fewer addresses. It saves 7 to 13 % of a step in SAC with ten agents, and costs 2 to 5 %
    in the small VAEs and the convolutions. torch reads the setting once: call this before the process makes a tensor.

    Raises:
        RunError: `cuda` was asked for and this machine has none.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RunError("--device cuda: no usable CUDA GPU on this machine; use --device cpu or --device auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if threads is None and device == "cpu":
        threads = free_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    if huge_pages:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    _keep_freed_memory()
    # "medium": float32 products by oneDNN on a CPU, twice as fast as MKL on AMD, and TensorFloat32 on CUDA. Where a CPU
    # has AMX it would round them to bfloat16 as well.
    rounds = device == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    torch.set_float32_matmul_precision("highest" if rounds else "medium")
    torch.backends.cudnn.benchmark = True
    return torch.device(device)


def free_threads() -> int | None:
    """Returns how many threads to take where other processes keep cores busy, and says so; None if they do not.

    With the variable OMP_NUM_THREADS the user has chosen.
    """
    most, free = torch.get_num_threads(), cores.free()
    if free is None or "OMP_NUM_THREADS" in os.environ or (count := max(1, round(free))) >= most:
        return None
    of = f"{count} of {most} CPU threads, since other processes keep {len(cores.allowed()) - free:.1f} cores busy"
    print(f"{of}; --threads {most} takes all, --threads {count} repeats this", file=sys.stderr)
    return count


def _keep_freed_memory() -> None:
    """Makes glibc, where it is the C library, keep freed memory for the next allocation.

    By default it returns megabyte-sized blocks to the system, and every step faults them in again, page by page: 5 to
    10 % of a training step on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter, value in ((-3, 1 << 30), (-1, (1 << 31) - 1)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, value)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block on one CPU thread: more threads sum in another order, and training gives another result."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def resolve_precision(precision: Precision, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Returns the number format that `auto` means on `device`: bfloat16 where the hardware multiplies it natively."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return "bfloat16" if native else "float32"


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """Runs the block with matrix products in `precision`; parameters stay float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bfloat16"):
        yield


def stream_seed(seed: int, purpose: str) -> int:
    """Returns the seed of an independent random stream, so that a stage draws the same numbers whatever ran before."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0])


def random_stream(seed: int, purpose: str, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a generator on `device` for one purpose of one run, see `stream_seed`."""
    return torch.Generator(device).manual_seed(stream_seed(seed, purpose))


def synchronize(device: torch.device) -> None:
    """Waits for the device, so that a clock read afterwards counts all work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """Returns what metrics.json calls the device: cpu, or cuda with the name of the GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else "cpu"


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory so far in bytes: of the tensors on a GPU, or of this whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes if sys.platform == "darwin" else 1024 * kibibytes  # macOS counts in bytes

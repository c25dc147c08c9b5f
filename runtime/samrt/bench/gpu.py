"""GPU memory of this process, by the driver's own count. Nothing here is asked, or known, on a machine without a GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from importlib import import_module


def process_vram_bytes() -> int | None:
    """GPU memory of this process on all NVIDIA GPUs, contexts included, as NVML counts it.

    None where NVML (the package nvidia-ml-py) is not installed or does not answer, and where it does not know this
    process: in some containers it knows processes by other numbers.
    """
    try:
        nvml = import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return None
    try:
        used = [
            process.usedGpuMemory
            for index in range(nvml.nvmlDeviceGetCount())
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(index))
            if process.pid == os.getpid()
        ]
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()
    known = [count for count in used if count is not None]
    return sum(known) if known else None


def open_context(index: int = 0) -> bool:
    """Create a GPU's primary CUDA context, which libraries then share, so that its memory can be told from theirs."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    return bool(
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), index) == 0
        and driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    )

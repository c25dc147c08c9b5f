"""What this machine can run graphs on: which backends are installed, what they offer, and what to install."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from samrt_engines.errors import MissingExtraError, pip_line

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

# onnxruntime and onnxruntime-gpu install the same module over each other: both have to go before one comes.
GET_CPU_PROVIDER = f"pip uninstall -y onnxruntime onnxruntime-gpu && {pip_line('cpu')}"
GET_CUDA_PROVIDER = f"pip uninstall -y onnxruntime onnxruntime-gpu && {pip_line('gpu')}"


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """What is known about one backend on this machine."""

    name: str
    """As `open_executor` takes it."""
    version: str | None
    """None when the backend cannot be imported."""
    providers: tuple[str, ...] = ()
    """What it offers to run on, by the backend's own names. Offered is not yet working: opening an executor tells."""
    problem: str | None = None
    fix: str | None = None
    """The command that mends `problem`."""


def available_backends() -> tuple[BackendInfo, ...]:
    """Look at every backend samrt knows, by importing it. Never raises for one that is missing or broken."""
    return (_look_at_onnxruntime(), _look_at_tensorrt())


def import_onnxruntime() -> ModuleType:
    """The package onnxruntime. Raises MissingExtraError."""
    purpose = "to run graphs on ONNX Runtime"
    package = _import("onnxruntime", extra="cpu", purpose=purpose)
    if not hasattr(package, "InferenceSession"):  # a folder without code is left when one of its two builds is removed
        raise MissingExtraError.for_package(
            "onnxruntime", extra="cpu", purpose=purpose, got="remains of an uninstalled build", fix=GET_CPU_PROVIDER
        )
    return package


def cuda_device_count() -> int:
    """How many NVIDIA GPUs the driver answers for, 0 without a driver. No CUDA package is needed to ask."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    answered = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if answered else 0


def _look_at_onnxruntime() -> BackendInfo:
    try:
        package = import_onnxruntime()
    except MissingExtraError as error:
        return BackendInfo("onnxruntime", None, problem=error.got, fix=error.fix)
    providers = tuple(package.get_available_providers())
    if CUDA_PROVIDER not in providers and cuda_device_count() > 0:
        problem = f"there is a GPU, but this ONNX Runtime has no {CUDA_PROVIDER}"
        return BackendInfo("onnxruntime", package.__version__, providers, problem, GET_CUDA_PROVIDER)
    return BackendInfo("onnxruntime", package.__version__, providers)


def _look_at_tensorrt() -> BackendInfo:
    try:
        package = _import("tensorrt", extra="tensorrt", purpose="to build and run TensorRT plans")
    except MissingExtraError as error:
        return BackendInfo("tensorrt", None, problem=error.got, fix=error.fix)
    if cuda_device_count() == 0:
        return BackendInfo("tensorrt", package.__version__, problem="no NVIDIA driver or no GPU answers")
    return BackendInfo("tensorrt", package.__version__, ("TensorRT",))


def _import(package: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a package that comes with an extra. One whose own libraries are missing counts as missing too."""
    try:
        return import_module(package)
    except (ImportError, OSError) as error:
        raise MissingExtraError.for_package(package, extra=extra, purpose=purpose, got=str(error)) from error

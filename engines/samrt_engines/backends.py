"""What this machine can run graphs on: which backends are installed, what they offer, and what to install."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from samrt_engines.errors import BackendError, MissingExtraError, pip_line

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

# onnxruntime and onnxruntime-gpu install the same module over each other: both have to go before one comes.
GET_CPU_PROVIDER = f"pip uninstall -y onnxruntime onnxruntime-gpu && {pip_line('cpu')}"
GET_CUDA_PROVIDER = f"pip uninstall -y onnxruntime onnxruntime-gpu && {pip_line('gpu')}"

_FOR_OPENVINO = "to run graphs on OpenVINO"


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
    return (_look_at_onnxruntime(), _look_at_openvino(), _look_at_tensorrt())


def look_at_backend(name: str) -> BackendInfo:
    """Look at one backend alone, which imports no other. Never raises for one that is missing or broken."""
    return {"onnxruntime": _look_at_onnxruntime, "openvino": _look_at_openvino, "tensorrt": _look_at_tensorrt}[name]()


def import_onnxruntime() -> ModuleType:
    """The package onnxruntime. Raises MissingExtraError."""
    purpose = "to run graphs on ONNX Runtime"
    package = _import("onnxruntime", extra="cpu", purpose=purpose)
    if not hasattr(package, "InferenceSession"):  # a folder without code is left when one of its two builds is removed
        raise MissingExtraError.for_package(
            "onnxruntime", extra="cpu", purpose=purpose, got="remains of an uninstalled build", fix=GET_CPU_PROVIDER
        )
    return package


def import_openvino() -> ModuleType:
    """The package openvino. Raises MissingExtraError.

    Importing it (2026.4) reports the import to its makers over the network if the package openvino_telemetry, which
    comes with it, can be imported. Here it cannot: samrt calls nobody.
    """
    if "openvino" in sys.modules:
        return _import("openvino", extra="openvino", purpose=_FOR_OPENVINO)
    with _hidden("openvino_telemetry"):
        return _import("openvino", extra="openvino", purpose=_FOR_OPENVINO)


def cuda_device_count() -> int:
    """How many NVIDIA GPUs the driver answers for, 0 without a driver. No CUDA package is needed to ask."""
    driver = load_cuda_driver()
    if driver is None:
        return 0
    count = ctypes.c_int(0)
    answered = driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if answered else 0


def load_cuda_driver() -> ctypes.CDLL | None:
    """The driver's own library, None where there is none."""
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


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


def _look_at_openvino() -> BackendInfo:
    try:
        package = import_openvino()
    except MissingExtraError as error:
        return BackendInfo("openvino", None, problem=error.got, fix=error.fix)
    version = package.__version__.partition("-")[0]
    return BackendInfo("openvino", version, ("OpenVINO CPU",))


def _look_at_tensorrt() -> BackendInfo:
    from samrt_engines.tensorrt.libraries import TITLES, load_tensorrt  # here: its package imports this module

    try:
        found = load_tensorrt()
    except BackendError as error:
        return BackendInfo("tensorrt", None, problem=error.got, fix=error.fix)
    if cuda_device_count() == 0:
        problem = "no NVIDIA driver or no GPU answers"
        if found.builds_for_capability:
            problem += "; `samrt build --check` works without"
        return BackendInfo("tensorrt", found.version, problem=problem)
    return BackendInfo("tensorrt", found.version, (TITLES[found.flavour],))


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Make a package look as if it were not installed, unless it is loaded already."""
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # type: ignore[assignment]  # the import system's own mark for "do not import"
    try:
        yield
    finally:
        sys.modules.pop(package, None)


def _import(package: str, *, extra: str, purpose: str) -> ModuleType:
    """Import a package that comes with an extra. One whose own libraries are missing counts as missing too."""
    try:
        return import_module(package)
    except (ImportError, OSError) as error:
        raise MissingExtraError.for_package(package, extra=extra, purpose=purpose, got=str(error)) from error

"""What `samrt doctor` knows: which backends are here, what they offer, and what to install."""

import sys
from types import ModuleType
from typing import Any

import onnxruntime
import pytest

from samrt_engines import backends
from samrt_engines.backends import BackendInfo, available_backends, cuda_device_count


def test_what_is_here_is_listed() -> None:
    info = available_backends()[0]
    assert (info.name, info.version) == ("onnxruntime", onnxruntime.__version__)
    assert "CPUExecutionProvider" in info.providers


def test_onnxruntime_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert available_backends()[0] == BackendInfo(
        "onnxruntime",
        None,
        problem="import of onnxruntime halted; None in sys.modules",
        fix='pip install "samrt[cpu]"',
    )


def test_the_remains_of_an_uninstalled_onnxruntime_count_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    assert available_backends()[0] == BackendInfo(
        "onnxruntime",
        None,
        problem="remains of an uninstalled build",
        fix='pip uninstall -y onnxruntime onnxruntime-gpu && pip install "samrt[cpu]"',
    )


def test_a_gpu_that_onnxruntime_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(backends, "cuda_device_count", lambda: 1)
    info = available_backends()[0]
    assert info.problem == "there is a GPU, but this ONNX Runtime has no CUDAExecutionProvider"
    assert info.fix == 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "samrt[gpu]"'


def test_tensorrt_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    info = available_backends()[1]
    assert (info.name, info.version, info.providers) == ("tensorrt", None, ())
    assert info.fix == 'pip install "samrt[tensorrt]"'


@pytest.mark.parametrize("gpus", [0, 2])
def test_tensorrt_needs_a_gpu_that_answers(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("tensorrt")
    package.__dict__["__version__"] = "11.4.0"
    monkeypatch.setitem(sys.modules, "tensorrt", package)
    monkeypatch.setattr(backends, "cuda_device_count", lambda: gpus)
    info = available_backends()[1]
    assert info.version == "11.4.0"
    assert (info.providers, info.problem) == (
        (("TensorRT",), None) if gpus else ((), "no NVIDIA driver or no GPU answers")
    )


@pytest.mark.parametrize(
    ("init", "count", "expected"),
    [(0, 3, 3), (100, 3, 0)],  # 100 is CUDA_ERROR_NO_DEVICE
)
def test_gpus_are_counted_by_the_driver(init: int, count: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuInit(self, flags: int) -> int:
            return init

        def cuDeviceGetCount(self, pointer: Any) -> int:
            pointer._obj.value = count
            return 0

    monkeypatch.setattr(backends.ctypes, "CDLL", lambda name: Driver())
    assert cuda_device_count() == expected


def test_no_driver_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(backends.ctypes, "CDLL", missing)
    assert cuda_device_count() == 0

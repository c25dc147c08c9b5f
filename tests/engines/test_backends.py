"""What `samrt doctor` knows: which backends are here, what they offer, and what to install."""

import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import onnxruntime
import pytest

from samrt_engines import backends
from samrt_engines.backends import BackendInfo, available_backends, cuda_device_count, look_at_backend
from samrt_engines.tensorrt import Flavour, TensorRT, libraries


def test_what_is_here_is_listed() -> None:
    info = available_backends()[0]
    assert (info.name, info.version) == ("onnxruntime", onnxruntime.__version__)
    assert "CPUExecutionProvider" in info.providers


def test_all_are_looked_at() -> None:
    assert [info.name for info in available_backends()] == ["onnxruntime", "openvino", "tensorrt"]


def test_openvino_is_listed() -> None:
    info = look_at_backend("openvino")
    assert (info.providers, info.problem) == (("OpenVINO CPU",), None)
    assert info.version == metadata.version("openvino")


def test_openvino_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert look_at_backend("openvino") == BackendInfo(
        "openvino",
        None,
        problem="import of openvino halted; None in sys.modules",
        fix='pip install "samrt[openvino]"',
    )


def test_looking_at_one_imports_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = []
    real = backends.import_module
    monkeypatch.setattr(backends, "import_module", lambda name: imported.append(name) or real(name))
    look_at_backend("onnxruntime")
    assert imported == ["onnxruntime"]


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
    for module in ("tensorrt", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    libraries._load.cache_clear()
    info = look_at_backend("tensorrt")
    libraries._load.cache_clear()
    assert (info.name, info.version, info.providers) == ("tensorrt", None, ())
    assert info.fix == 'pip install "samrt[tensorrt]", or pip install "samrt[rtx]"'


@pytest.mark.parametrize(
    ("flavour", "gpus", "providers", "problem"),
    [
        (Flavour.TENSORRT, 2, ("TensorRT",), None),
        (Flavour.RTX, 1, ("TensorRT for RTX",), None),
        (Flavour.TENSORRT, 0, (), "no NVIDIA driver or no GPU answers"),
        (Flavour.RTX, 0, (), "no NVIDIA driver or no GPU answers; `samrt build --check` works without"),
    ],
)
def test_tensorrt_needs_a_gpu_that_answers(
    flavour: Flavour, gpus: int, providers: tuple[str, ...], problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libraries, "load_tensorrt", lambda: TensorRT(ModuleType("tensorrt"), flavour, "11.4.0"))
    monkeypatch.setattr(backends, "cuda_device_count", lambda: gpus)
    assert look_at_backend("tensorrt") == BackendInfo("tensorrt", "11.4.0", providers, problem)


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

"""The OpenVINO executor: the precision that really runs, threads, what it refuses, and its silence."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest

from samrt.machine import usable_cores
from samrt_engines import openvino as executor_module
from samrt_engines.errors import BackendError, MissingExtraError, ProviderError
from samrt_engines.executor import open_executor
from samrt_engines.openvino import OpenVinoExecutor, computes_bf16
from samrt_engines.sessions import folded_graph

from .tiny_graphs import linear, model_bytes, square

needs_bf16 = pytest.mark.skipif(not computes_bf16(openvino), reason="this CPU has no bf16 instructions")

X = np.random.default_rng(1).normal(size=(16, 64)).astype(np.float32)


def exactly(message: str) -> str:
    return f"^{re.escape(message)}$"


def reference() -> np.ndarray[Any, Any]:
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    return np.maximum(X, 0).astype(np.float64) @ weight.astype(np.float64)


def relative_error(result: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(result - reference()) / np.linalg.norm(reference()))


# Precision


def test_fp32_unless_asked_even_where_openvino_would_take_bf16() -> None:
    with OpenVinoExecutor(square()) as executor:
        assert executor.precision == "fp32"
        assert relative_error(executor.run({"x": X})["y"]) < 1e-6


@needs_bf16
def test_bf16_when_asked() -> None:
    """The error is bf16's, not fp32's: 8 bits of mantissa."""
    with open_executor(square(), backend="openvino", precision="bf16") as executor:
        assert executor.precision == "bf16"
        result = executor.run({"x": X})["y"]
    assert result.dtype == np.float32
    assert 1e-4 < relative_error(result) < 1e-2


def test_bf16_without_instructions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"OPTIMIZATION_CAPABILITIES": ["INT8", "FP32"], "FULL_DEVICE_NAME": "Old CPU"})
    message = (
        "mask_decoder: this CPU has no instructions for bf16 | got: Old CPU: FP32, INT8 | "
        "expected: BF16 (AVX-512 BF16 or AMX) | fix: precision='fp32'"
    )
    with pytest.raises(ProviderError, match=exactly(message)):
        OpenVinoExecutor(square(), precision="bf16", name="mask_decoder")
    OpenVinoExecutor(square()).close()


def test_a_precision_openvino_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are read back: here they run in bf16 though fp32 was asked for, and the other way round."""
    real = executor_module._settings
    swapped = {"fp32": "bf16", "bf16": "fp32"}
    monkeypatch.setattr(executor_module, "_settings", lambda threads, wanted: real(threads, swapped[wanted]))
    message = (
        "graph: OpenVINO compiled the model in another precision | got: f32, with matrix products in f32 | expected: bf16 | "
        "fix: precision='fp32'"
    )
    if computes_bf16(openvino):
        with pytest.raises(ProviderError, match=exactly(message)):
            OpenVinoExecutor(square(), precision="bf16")
        message = r"got: bf16, with matrix products in bf16 \| expected: f32$"
        with pytest.raises(ProviderError, match=message):
            OpenVinoExecutor(square())


def test_a_precision_it_does_not_have() -> None:
    message = "graph: unknown precision | got: 'fp16' | expected: fp32 or bf16"
    with pytest.raises(BackendError, match=exactly(message)):
        open_executor(square(), backend="openvino", precision="fp16")


# Threads and devices


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set_and_read_back(threads: int) -> None:
    """OpenVINO takes no more of them than the process has cores."""
    with OpenVinoExecutor(linear(), threads=threads) as executor:
        assert executor.threads == min(threads, usable_cores())


def test_threads_are_not_tied_to_cores() -> None:
    with OpenVinoExecutor(linear(), threads=1) as executor:
        assert executor._compiled.get_property("ENABLE_CPU_PINNING") is False
        assert executor._compiled.get_property("PERFORMANCE_HINT") == "LATENCY"


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "gpu", ""])
def test_no_device_but_the_cpu(device: str) -> None:
    message = (
        f"graph: samrt runs OpenVINO on the CPU only | got: device={device!r} | expected: auto or cpu | "
        "fix: device='cpu', or backend='onnxruntime' for this device"
    )
    with pytest.raises(ProviderError, match=exactly(message)):
        open_executor(linear(), backend="openvino", device=device)


# Folding


def test_the_graph_is_folded_and_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two constants become one; large weights lie beside the file; only standard operators; the folder goes."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with folded_graph(chain(), "chain") as graph:
        model = onnx_model(graph.path)
        assert [node.op_type for node in model.graph.node] == ["Add"]
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        assert {file.name for file in graph.path.parent.iterdir()} == {"graph.onnx", "graph.data"}
    assert list(tmp_path.iterdir()) == []
    with OpenVinoExecutor(chain()) as executor:
        assert list(tmp_path.iterdir()) == []
        x = np.ones((1, 1000), np.float32)
        np.testing.assert_array_equal(executor.run({"x": x})["y"], 1 + np.arange(1000, dtype=np.float32)[None] * 3)


def test_nothing_stays_behind_when_compilation_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(core: Any, *arguments: Any) -> Any:
        raise RuntimeError("Exception from core.cpp:117:\nno kernel\n")

    monkeypatch.setattr(openvino.Core, "compile_model", fail)
    message = "graph: OpenVINO cannot compile the model | got: Exception from core.cpp:117: no kernel"
    with pytest.raises(BackendError, match=exactly(message)):
        OpenVinoExecutor(linear())
    assert list(tmp_path.iterdir()) == []


def test_no_room_to_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(BackendError, match=r"^graph: no temporary folder to fold the graph in \| got: .*No such file"):
        OpenVinoExecutor(linear())


# Its silence, and what is missing


def test_importing_it_reports_to_nobody(tmp_path: Path) -> None:
    """OpenVINO's import sends an event over the network when openvino_telemetry can be imported. Ours hides it."""
    spy = tmp_path / "openvino_telemetry"
    spy.mkdir()
    (spy / "__init__.py").write_text("raise SystemExit('telemetry was imported')")
    program = """
        import sys
        from samrt_engines.backends import import_openvino
        package = import_openvino()
        package.Core()
        assert "openvino_telemetry" not in sys.modules
        assert not {"torch", "onnx"} & set(sys.modules)
        try:
            import openvino_telemetry  # others may still have it
        except SystemExit:
            print("hidden from openvino alone")
    """
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("hidden from openvino alone\n", "")


def test_without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = (
        "the package openvino is needed to run graphs on OpenVINO | "
        'got: import of openvino halted; None in sys.modules | fix: pip install "samrt[openvino]"'
    )
    with pytest.raises(MissingExtraError, match=exactly(message)):
        open_executor(linear(), backend="openvino")


def test_without_onnxruntime_to_fold_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        MissingExtraError, match=r"^the package onnxruntime is needed .* fix: pip install \"samrt\[cpu\]\"$"
    ):
        open_executor(linear(), backend="openvino")


def chain() -> bytes:
    """y = x + (a + b), where a and b are constants of 1000 elements."""
    from onnx import TensorProto, helper

    steps = np.arange(1000, dtype=np.float32)[None]
    return model_bytes(
        [helper.make_node("Add", ["a", "b"], ["both"]), helper.make_node("Add", ["x", "both"], ["y"])],
        [("x", TensorProto.FLOAT, ["rows", 1000])],
        [("y", TensorProto.FLOAT, ["rows", 1000])],
        a=steps,
        b=steps * 2,
    )


def onnx_model(path: Path) -> Any:
    import onnx

    return onnx.load(path)


def pretend(monkeypatch: pytest.MonkeyPatch, properties: dict[str, Any]) -> None:
    """Let OpenVINO say something else about the CPU."""
    real = openvino.Core.get_property

    def get_property(core: Any, device: str, name: str) -> Any:
        return properties[name] if name in properties else real(core, device, name)

    monkeypatch.setattr(openvino.Core, "get_property", get_property)

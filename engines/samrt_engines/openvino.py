"""Graphs on OpenVINO: the CPU, in fp32 or bf16.

OpenVINO chooses a precision of its own where nobody sets one: bf16 on every CPU that has it, without a word. Here it is
always set, and what the kernels really run in is read back from the compiled graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from samrt_engines.backends import import_openvino
from samrt_engines.closing import ClosesItself
from samrt_engines.errors import BackendError, ProviderError
from samrt_engines.sessions import folded_graph, one_line
from samrt_engines.signal_stack import own_signal_stack
from samrt_engines.tensors import Array, TensorSpec, agree, check_feeds, pick_outputs

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""What an `OpenVinoExecutor` can compute in, and OpenVINO's name of it."""

_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError)  # OpenVINO's bindings have no class of their own
_PRODUCTS = {"FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention", "MHA"}


class OpenVinoExecutor(ClosesItself):
    """An `Executor` on OpenVINO's CPU plugin. Arguments and errors: see `open_executor`.

    precision: "fp32", or "bf16" where the CPU has instructions for it. Matrix products then lose 16 of fp32's 24 bits;
        inputs and outputs keep their dtypes.

    A run answers as fast as one can: all threads work on it, and runs from several threads queue. Threads are not tied
    to cores, since two processes that tie theirs would take the same ones.
    """

    @own_signal_stack()
    def __init__(
        self,
        model: Path | bytes,
        *,
        device: str = "auto",
        threads: int | None = None,
        precision: str = "fp32",
        inputs: Sequence[TensorSpec] | None = None,
        outputs: Sequence[TensorSpec] | None = None,
        ranges: Mapping[str, tuple[int, int]] | None = None,
        name: str = "graph",
    ) -> None:
        openvino = import_openvino()
        _check_arguments(device, threads, precision, name)
        core = openvino.Core()
        _check_precision(core, precision, name)
        self._name = name
        self._ranges = dict(ranges or {})
        with folded_graph(model, name) as graph:
            self.inputs = agree(graph.inputs, inputs, f"{name}: the model's inputs")
            self.outputs = agree(graph.outputs, outputs, f"{name}: the model's outputs")
            try:
                compiled = core.compile_model(core.read_model(graph.path), "CPU", _settings(threads, precision))
            except _ERRORS as error:
                raise BackendError(f"{name}: OpenVINO cannot compile the model", got=one_line(error)) from error
        self.precision = _checked_kernels(compiled, precision, name)
        self.provider = f"OpenVINO {', '.join(compiled.get_property('EXECUTION_DEVICES'))}"
        self.threads: int = compiled.get_property("INFERENCE_NUM_THREADS")
        """CPU threads one run uses, as OpenVINO reports them."""
        self._tensor: Any = openvino.Tensor
        self._compiled: Any = compiled

    @property
    def device(self) -> str:
        """Where features lie: "cpu"."""
        return "cpu"

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        compiled = self._compiled  # held here, a model that another thread closes lives until this run is done
        if compiled is None:
            raise BackendError(f"{self._name}: the executor is closed", fix="open another one: open_executor(...)")
        check_feeds(feeds, self.inputs, ranges=self._ranges, graph=self._name)
        names = pick_outputs(outputs, self.outputs, graph=self._name)
        arrays = {name: np.asarray(array, order="C") for name, array in feeds.items()}
        try:
            # Made anew for every run, which costs microseconds, a request needs no lock and holds on to no one's feeds.
            request = compiled.create_infer_request()
            for name, array in arrays.items():
                request.set_tensor(name, self._tensor(_writable(array), shared_memory=True))
            # With one thread, OpenVINO's infer() (2026.4) loses an error and then ends the process; this does not.
            request.start_async()
            request.wait()
            return {name: np.array(request.get_tensor(name).data) for name in names}
        except _ERRORS as error:
            raise BackendError(f"{self._name}: OpenVINO failed on {self.provider}", got=one_line(error)) from error

    def close(self) -> None:
        self._compiled = None


@own_signal_stack()
def computes_bf16(openvino: ModuleType) -> bool:
    """Whether this CPU has instructions for bf16, as OpenVINO reads the processor."""
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _settings(threads: int | None, precision: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    return settings if threads is None else {**settings, "INFERENCE_NUM_THREADS": threads}


def _check_arguments(device: str, threads: int | None, precision: str, name: str) -> None:
    if device not in ("auto", "cpu"):
        raise ProviderError(
            f"{name}: samrt runs OpenVINO on the CPU only",
            got=f"device={device!r}",
            expected="auto or cpu",
            fix="device='cpu', or backend='onnxruntime' for this device",
        )
    if threads is not None and threads < 1:
        raise BackendError(f"{name}: not a number of threads", got=str(threads), expected="1 or more, or None")
    if precision not in PRECISIONS:
        raise BackendError(f"{name}: unknown precision", got=repr(precision), expected=" or ".join(PRECISIONS))


def _check_precision(core: Any, precision: str, name: str) -> None:
    """Refuse bf16 on a CPU without instructions for it: OpenVINO (2026.4) would emulate it there, or fail."""
    known = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in known:
        raise ProviderError(
            f"{name}: this CPU has no instructions for bf16",
            got=f"{core.get_property('CPU', 'FULL_DEVICE_NAME')}: {', '.join(sorted(known))}",
            expected="BF16 (AVX-512 BF16 or AMX)",
            fix="precision='fp32'",
        )


def _checked_kernels(compiled: Any, wanted: str, name: str) -> str:
    """The precision the compiled graph's matrix products run in, once it is the wanted one."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    nodes = (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    products = {str(info["runtimePrecision"].value) for info in nodes if info["layerType"].value in _PRODUCTS}
    # In bf16, OpenVINO may keep a product in fp32; in fp32, nothing may run in less.
    alien = products - {"f32", PRECISIONS[wanted]}
    if hint != PRECISIONS[wanted] or alien or (products and PRECISIONS[wanted] not in products):
        raise ProviderError(
            f"{name}: OpenVINO compiled the model in another precision",
            got=f"{hint}, with matrix products in {', '.join(sorted(products)) or 'none'}",
            expected=PRECISIONS[wanted],
            fix="precision='fp32'" if wanted != "fp32" else None,
        )
    return wanted


def _writable(array: Array) -> Array:
    """The same memory, which the array has to outlive: OpenVINO (2026.4) shares only what it could write to.

    It does not write to inputs. Features are read-only on purpose, and copying them would cost a tenth of a click.
    """
    if array.flags.writeable:
        return array
    if array.size == 0:
        return np.empty_like(array)
    memory = memoryview((ctypes.c_byte * array.nbytes).from_address(array.ctypes.data))
    return np.ndarray(array.shape, array.dtype, memory)

"""Graphs on ONNX Runtime: the CPU, and NVIDIA GPUs where the CUDA provider is installed."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from samrt_engines.backends import CPU_PROVIDER, CUDA_PROVIDER, GET_CUDA_PROVIDER, cuda_device_count, import_onnxruntime
from samrt_engines.errors import BackendError, ProviderError
from samrt_engines.tensors import Array, TensorSpec, check_feeds, pick_outputs, spec_differences

_DTYPE_FROM_ORT = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_LOG_ERRORS = 3  # of ONNX Runtime's 0 (verbose) to 4 (fatal): the reason a provider was dropped is only ever logged


@dataclass(frozen=True, slots=True)
class OnnxRuntimeOptions:
    """What a session trades between memory and speed. The defaults are ONNX Runtime's own: the fastest."""

    arena: bool = True
    """Keep freed CPU memory for the next run. Off, memory goes back after each run, and each run asks for it anew."""
    prepack: bool = True
    """Copy weights into the layout the CPU kernels like. Off, a session starts quicker and holds its weights once."""
    spin: bool = True
    """Let idle threads wait busily for work. Off, runs start later, and several sessions share the cores in peace."""


class OnnxRuntimeExecutor:
    """An `Executor` on ONNX Runtime. Arguments and errors: see `open_executor`.

    A session runs wherever ONNX Runtime reports it to run, and that is checked: a session without the provider that was
    chosen is refused, and ONNX Runtime's own way of retrying on another provider is off.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        device: str = "auto",
        threads: int | None = None,
        inputs: Sequence[TensorSpec] | None = None,
        outputs: Sequence[TensorSpec] | None = None,
        ranges: Mapping[str, tuple[int, int]] | None = None,
        name: str = "graph",
        options: OnnxRuntimeOptions | None = None,
    ) -> None:
        ort = import_onnxruntime()
        self._name = name
        self._ranges = dict(ranges or {})
        self._errors = _error_types(ort)
        providers = _choose_providers(ort, device, name)
        settings = _session_settings(ort, threads, options or OnnxRuntimeOptions(), name)
        if isinstance(model, bytes):
            # ONNX Runtime (1.31) looks for the external data of bytes in the working directory: files nobody checked.
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        try:
            session = ort.InferenceSession(
                model if isinstance(model, bytes) else str(model),
                settings,
                providers=providers,
                enable_fallback=0,
            )
        except self._errors as error:
            raise BackendError(
                f"{name}: ONNX Runtime cannot load the model",
                got=_one_line(error),
                fix="pass the path: this model has external data" if os.devnull in str(error) else None,
            ) from error
        self.provider = _checked_provider(session, providers[0][0], name)
        self.inputs = _checked_specs(session.get_inputs(), inputs, f"{name}: the model's inputs")
        self.outputs = _checked_specs(session.get_outputs(), outputs, f"{name}: the model's outputs")
        self._session: Any = session

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        session = self._session  # held here, a session that another thread closes lives until this run is done
        if session is None:
            raise BackendError(f"{self._name}: the executor is closed", fix="open another one: open_executor(...)")
        check_feeds(feeds, self.inputs, ranges=self._ranges, graph=self._name)
        names = pick_outputs(outputs, self.outputs, graph=self._name)
        try:
            arrays = session.run(names, dict(feeds))
        except self._errors as error:
            raise BackendError(f"{self._name}: ONNX Runtime failed on {self.provider}", got=_one_line(error)) from error
        return dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _choose_providers(ort: ModuleType, device: str, name: str) -> list[tuple[str, dict[str, str]]]:
    """Providers and their options for a device, the wanted one first. Loads the CUDA libraries of the gpu extra."""
    offered = ort.get_available_providers()
    if device == "auto":
        device = "cuda" if CUDA_PROVIDER in offered and cuda_device_count() > 0 else "cpu"
    if device == "cpu":
        return [(CPU_PROVIDER, {})]
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise BackendError(f"{name}: unknown device", got=repr(device), expected="auto, cpu, cuda or cuda:N")
    if CUDA_PROVIDER not in offered:
        raise ProviderError(
            f"{name}: this ONNX Runtime has no CUDA provider",
            got=", ".join(offered),
            expected=CUDA_PROVIDER,
            fix=f"{GET_CUDA_PROVIDER}, or device='cpu'",
        )
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it does not find; stdout belongs to the caller
        ort.preload_dlls()
    return [(CUDA_PROVIDER, {"device_id": match[1] or "0"}), (CPU_PROVIDER, {})]


def _session_settings(ort: ModuleType, threads: int | None, options: OnnxRuntimeOptions, name: str) -> Any:
    """An onnxruntime.SessionOptions."""
    settings = ort.SessionOptions()
    settings.log_severity_level = _LOG_ERRORS
    if threads is not None:
        if threads < 1:
            raise BackendError(f"{name}: not a number of threads", got=str(threads), expected="1 or more, or None")
        settings.intra_op_num_threads = threads
    settings.enable_cpu_mem_arena = options.arena
    settings.add_session_config_entry("session.disable_prepacking", "0" if options.prepack else "1")
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings


def _checked_provider(session: Any, wanted: str, name: str) -> str:
    """The provider a session runs on, once it is the wanted one."""
    running = session.get_providers()
    if running[:1] != [wanted]:
        raise ProviderError(
            f"{name}: ONNX Runtime dropped {wanted} while loading the model",
            got=", ".join(running),
            expected=wanted,
            fix="the reason is in ONNX Runtime's log above, most often a CUDA or cuDNN library that is missing or of "
            "another version; device='cpu' runs without",
        )
    return wanted


def _checked_specs(nodes: Sequence[Any], promised: Sequence[TensorSpec] | None, what: str) -> tuple[TensorSpec, ...]:
    """The promised specs, once the model's own agree with them; without a promise, the model's own."""
    declared = tuple(_spec_from_node(node, what) for node in nodes)
    if promised is None:
        return declared
    differences = spec_differences(declared, promised)
    if differences:
        raise BackendError(
            f"{what} are not what the manifest says",
            got="; ".join(differences),
            expected="; ".join(map(str, promised)),
            fix="export the model again: samrt export",
        )
    return tuple(promised)


def _spec_from_node(node: Any, what: str) -> TensorSpec:
    """What ONNX Runtime knows about an input or output. A dimension without size or name gets a name of its own."""
    if node.type not in _DTYPE_FROM_ORT:
        raise BackendError(
            f"{what}: '{node.name}' is of a type samrt does not use",
            got=node.type,
            expected=", ".join(_DTYPE_FROM_ORT),
        )
    shape = (size if isinstance(size, int | str) else f"{node.name}.{axis}" for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, _DTYPE_FROM_ORT[node.type], tuple(shape))


def _error_types(ort: ModuleType) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own classes, which have no common base (1.31), and what its bindings add."""
    kinds = vars(ort.capi.onnxruntime_pybind11_state).values()
    own = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

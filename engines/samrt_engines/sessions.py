"""ONNX Runtime sessions: made from a model, described by specs, and used to fold a graph for another backend."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from samrt_engines.backends import CPU_PROVIDER, import_onnxruntime
from samrt_engines.errors import BackendError
from samrt_engines.tensors import TensorSpec, agree

DTYPE_FROM_ORT = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's names of the dtypes that samrt uses."""

LOG_ERRORS = 3  # of ONNX Runtime's 0 (verbose) to 4 (fatal): the reason a provider was dropped is only ever logged


def load_session(
    ort: ModuleType, model: Path | bytes, settings: Any, *, providers: Sequence[tuple[str, dict[str, str]]], name: str
) -> Any:
    """Make an onnxruntime.InferenceSession; ONNX Runtime's own way of retrying on another provider is off.

    settings: onnxruntime.SessionOptions
    providers: providers and their options; empty when the settings name devices of a plugin
    name: what messages call the graph
    Raises BackendError.
    """
    if isinstance(model, bytes):
        # ONNX Runtime (1.31) looks for the external data of bytes in the working directory: files nobody checked.
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else str(model), settings, providers=list(providers), enable_fallback=0
        )
    except error_types(ort) as error:
        raise BackendError(
            f"{name}: ONNX Runtime cannot load the model",
            got=one_line(error),
            fix="pass the path: this model has external data" if os.devnull in str(error) else None,
        ) from error
    session._model_bytes = None  # ONNX Runtime (1.31) keeps the whole file for the retry that is off here
    return session


@dataclass(frozen=True, slots=True)
class FoldedGraph:
    """A graph after ONNX Runtime's basic optimiser: constants folded, standard operators only."""

    path: Path
    """The ONNX file; large weights lie beside it."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@contextmanager
def folded_graph(model: Path | bytes, name: str) -> Iterator[FoldedGraph]:
    """Fold a graph into a temporary folder, which is gone when the context ends.

    An exporter leaves thousands of nodes that compute shapes and constants. ONNX Runtime folds them in a fraction of a
    second; OpenVINO (2026.4) took 82 seconds to compile a raw SAM 2 graph and 0.84 once it was folded.
    Raises BackendError when the model cannot be loaded or the folder not be written, MissingExtraError.
    """
    ort = import_onnxruntime()
    try:
        folder = TemporaryDirectory(prefix="samrt-", ignore_cleanup_errors=True)  # Windows keeps files that are mapped
    except OSError as error:
        raise BackendError(f"{name}: no temporary folder to fold the graph in", got=one_line(error)) from error
    with folder:
        path = Path(folder.name, "graph.onnx")
        settings = ort.SessionOptions()
        settings.log_severity_level = LOG_ERRORS
        settings.intra_op_num_threads = 1  # nothing runs here but constants
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # more adds its own operators
        settings.optimized_model_filepath = str(path)
        for key, value in {
            "session.disable_prepacking": "1",
            # Weights in a file of their own are mapped by the reader, not copied.
            "session.optimized_model_external_initializers_file_name": "graph.data",
            "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
        }.items():
            settings.add_session_config_entry(key, value)
        session = load_session(ort, model, settings, providers=[(CPU_PROVIDER, {})], name=name)
        inputs, outputs = checked_specs(session, None, None, name)
        del session  # its copy of the weights goes before the next one comes
        yield FoldedGraph(path, inputs, outputs)


def checked_specs(
    session: Any, inputs: Sequence[TensorSpec] | None, outputs: Sequence[TensorSpec] | None, name: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs as promised, once the model's own agree with them; without a promise, the model's own.

    Raises BackendError.
    """
    return (
        _checked(session.get_inputs(), inputs, f"{name}: the model's inputs"),
        _checked(session.get_outputs(), outputs, f"{name}: the model's outputs"),
    )


def error_types(ort: ModuleType) -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: its own classes, which have no common base (1.31), and what its bindings add."""
    kinds = vars(ort.capi.onnxruntime_pybind11_state).values()
    own = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)


def one_line(error: Exception) -> str:
    """An error's text without line breaks; its kind when it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def _checked(nodes: Sequence[Any], promised: Sequence[TensorSpec] | None, what: str) -> tuple[TensorSpec, ...]:
    return agree([_spec_from_node(node, what) for node in nodes], promised, what)


def _spec_from_node(node: Any, what: str) -> TensorSpec:
    """What ONNX Runtime knows about an input or output. A dimension without size or name gets a name of its own."""
    if node.type not in DTYPE_FROM_ORT:
        raise BackendError(
            f"{what}: '{node.name}' is of a type samrt does not use",
            got=node.type,
            expected=", ".join(DTYPE_FROM_ORT),
        )
    shape = (size if isinstance(size, int | str) else f"{node.name}.{axis}" for axis, size in enumerate(node.shape))
    return TensorSpec(node.name, DTYPE_FROM_ORT[node.type], tuple(shape))

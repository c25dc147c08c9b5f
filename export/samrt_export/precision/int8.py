"""Signed per-channel int8 weights for the matrix products of an encoder, activations quantised as they come: for CPUs.

Signed weights are 2.3 times as fast as ONNX Runtime's default unsigned ones on VNNI. ``reduce_range`` stays off: on x86 CPUs
without VNNI the products of full-range weights may saturate, and parity is measured where the export runs.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import onnx

from samrt_engines.errors import ExportError, ParityError
from samrt_engines.executor import open_executor
from samrt_export.external import data_files, is_external, load_graph, openable
from samrt_export.parity import ReferenceRun
from samrt_export.precision.divergence import error_by_node
from samrt_export.precision.elements import FLOAT, node_key
from samrt_export.precision.tolerance import NARROW_TOLERANCE, worst_output
from samrt_export.registry import GraphSpec

GRAPHS = ("image_encoder",)
"""Graphs worth it. The decoder's products are small, and its cross attention is where quantisation breaks first (SAQ-SAM)."""
TARGETS = ("onnxruntime-cpu",)


@dataclass(frozen=True)
class Quantised:
    """An int8 graph; kept: products that stay fp32, with the reason; error: the largest relative error of an output."""

    model: onnx.ModelProto
    kept: dict[str, str]
    products: int
    error: float

    def to_json(self) -> list[dict[str, Any]]:
        """The manifest's ``kept_fp32``."""
        reasons: dict[str, list[str]] = {}
        for node, reason in self.kept.items():
            reasons.setdefault(reason, []).append(node)
        return [
            {"op": "MatMul", "reason": reason, "count": len(nodes), "nodes": nodes} for reason, nodes in reasons.items()
        ]


def quantise(model: onnx.ModelProto, spec: GraphSpec, runs: tuple[ReferenceRun, ...]) -> Quantised:
    """Quantise every product with constant weights, and give the worst ones back, doubled each time, until it holds.

    Raises ExportError for a graph without such products, ParityError when too few are left to be worth it.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    products = [node_key(n) for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in constants]
    if not products:
        raise ExportError(f"{spec.name}: nothing to quantise", got="no MatMul with constant weights")
    bar = NARROW_TOLERANCE["int8"]
    narrow = quantised_graph(model, ())
    worst: list[str] = []
    count = 0
    while True:
        kept = worst[:count]
        if count:
            narrow = quantised_graph(model, kept)
        with (
            openable(narrow) as content,
            open_executor(content, device="cpu", inputs=spec.inputs, outputs=spec.outputs, name=spec.name) as executor,
        ):
            ours = [executor.run(run.feeds[0]) for run in runs]
        error = worst_output(ours, spec, runs)
        if error <= bar:
            reason = "adds more error than its share"
            return Quantised(narrow, {key: reason for key in products if key in kept}, len(products), error)
        if not worst:
            added = error_by_node(model, narrow, runs[0].feeds[0])
            worst = sorted(products, key=lambda key: -added.get(key, 0.0))
        count = max(1, 2 * count)
        if count > len(products) // 2:
            raise ParityError(
                f"{spec.name}: int8 is out of tolerance with half of its products in fp32",
                got=f"relative error {error:.1e}",
                expected=f"at most {bar:.1e}",
                fix="--precision fp32",
            )


def quantised_graph(model: onnx.ModelProto, keep_fp32: Sequence[str]) -> onnx.ModelProto:
    """ONNX Runtime's dynamic quantisation of ``MatMul`` with signed per-channel weights."""
    quantised = _quantised_in_files(model, keep_fp32) if is_external(model) else _quantised(model, keep_fp32)
    quantised.producer_name, quantised.producer_version = model.producer_name, ""
    del quantised.metadata_props[:], quantised.graph.value_info[:]
    quantised.graph.name = model.graph.name
    return quantised


def _quantised(model: onnx.ModelProto, keep_fp32: Sequence[str]) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        _quantise_to(path, model, keep_fp32)
        return onnx.load(path)


def _quantised_in_files(model: onnx.ModelProto, keep_fp32: Sequence[str]) -> onnx.ModelProto:
    """The same of a large graph; its new constants are files near the old ones."""
    near = data_files(model)[0].parent
    folder = Path(tempfile.mkdtemp(prefix="int8.", dir=near))
    path = folder / "int8.onnx"
    with openable(model) as source:
        _quantise_to(path, source, keep_fp32)
    return load_graph(path)


def _quantise_to(path: Path, model: onnx.ModelProto | bytes | Path, keep_fp32: Sequence[str]) -> None:
    quantization = import_module("onnxruntime.quantization")
    with _quiet_quantiser():
        quantization.quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(keep_fp32),
            use_external_data_format=isinstance(model, Path),
            # The type of what ONNX Runtime's fused operators give, which its quantiser does not know.
            extra_options={"MatMulConstBOnly": True, "DefaultTensorType": FLOAT},
        )


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """ONNX Runtime's quantiser advises on the root logger to preprocess the model; the exporter has."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

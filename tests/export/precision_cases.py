"""Graphs for the precision tests: small ones by hand, and nano's with trained and with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from samrt_engines.executor import open_executor
from samrt_export.families.sam2 import FAMILY, graphs
from samrt_export.onnx_graph import onnx_from_spec
from samrt_export.parity import ReferenceRun, reference_runs
from samrt_export.registry import Feeds, GraphSpec
from samrt_export.source import load_weights

OVERFLOWING = 2e4
"""Times what the first convolution of nano's prompt encoder gives, fp16 overflows; its constants still fit."""


@dataclass(frozen=True)
class Case:
    """A graph's description, its fp32 form for any target, and its module's answers."""

    spec: GraphSpec
    model: onnx.ModelProto
    runs: tuple[ReferenceRun, ...]

    def copy(self) -> onnx.ModelProto:
        """The form, to be broken."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return model


@cache
def nano_specs(seed: int | None = None) -> dict[str, GraphSpec]:
    """nano's graphs, trained or with random weights."""
    module = load_weights(FAMILY, "nano", random_seed=seed).module
    return {spec.name: spec for spec in graphs(module, "nano")}


def trained_case(bundle: Path, graph: str) -> Case:
    """A graph of the shipped nano, as exported."""
    spec = nano_specs()[graph]
    return Case(spec, onnx.load(bundle / f"{graph}.onnx"), reference_runs(spec))


def random_case(graph: str, seed: int = 0) -> Case:
    """A graph of nano with live random weights."""
    spec = nano_specs(seed)[graph]
    (form,) = (form for form in spec.forms if not form.targets)
    return Case(spec, onnx_from_spec(spec, form.module), reference_runs(spec))


def hand_made(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, NDArray[Any]],
    inputs: dict[str, Sequence[int | str]],
    outputs: dict[str, Sequence[int | str]],
) -> onnx.ModelProto:
    """An opset 23 graph of float32 tensors; nodes without a name take their output's."""
    for node in nodes:
        node.name = node.name or f"node_{node.output[0]}"
    graph = helper.make_graph(
        nodes,
        "hand_made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, feeds: Feeds) -> Feeds:
    """On ONNX Runtime's CPU."""
    with open_executor(model.SerializeToString(), device="cpu") as executor:
        return executor.run(feeds)


def constant(model: onnx.ModelProto, name: str) -> TensorProto:
    """A constant by name."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor


def replace_constant(model: onnx.ModelProto, name: str, values: NDArray[Any]) -> None:
    """Give a constant another value."""
    constant(model, name).CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))

"""Runs a graph on the CPU and lets every float tensor inside be looked at, a stretch of nodes at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from samrt_engines.backends import import_onnxruntime
from samrt_export.external import openable
from samrt_export.precision.elements import ELEMENT, FLOAT, element_types
from samrt_export.registry import Feeds

STRETCH = 24
"""Nodes that run at once: few enough that their results fit into memory together."""


def observe(
    model: onnx.ModelProto, feeds: Feeds, only: Collection[str] | None = None
) -> Iterator[tuple[onnx.NodeProto, str, NDArray[Any]]]:
    """Run an fp32 graph without optimisation; yield (node, tensor name, value), in order, for every float32 tensor that a
    node makes, or for those in ``only``.

    The graph runs in stretches, each fed with what the ones before left: it runs once, and at no time are all its tensors in
    memory. Constants that nodes make (``Constant``) are not yielded.
    """
    types = element_types(model)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    stretches = list(_stretches(model, types))
    last_use: dict[str, int] = {}
    for index, nodes in enumerate(stretches):
        last_use.update((name, index) for node in nodes for name in node.input)
    live: dict[str, NDArray[Any]] = dict(feeds)
    for index, nodes in enumerate(stretches):
        made = {name: node for node in nodes for name in node.output if name}
        needed = {name for node in nodes for name in node.input if name} - made.keys()
        if only is None:
            shown = [name for name in made if types[name] == FLOAT and made[name].op_type != "Constant"]
        else:
            shown = [name for name in made if name in only]
        wanted = [
            name for name in made if name in shown or last_use.get(name, -1) > index
        ]  # later stretches take these
        feeding = [name for name in sorted(needed) if name not in initializers]
        graph = helper.make_graph(
            nodes,
            f"{model.graph.name}_{index}",
            [helper.make_tensor_value_info(name, types[name], None) for name in feeding],
            [helper.make_tensor_value_info(name, types[name], None) for name in wanted],
            [initializers[name] for name in sorted(needed) if name in initializers],
        )
        values = _run(graph, model, {name: live[name] for name in feeding}, wanted)
        for name in shown:
            yield made[name], name, values[name]
        live |= values
        live = {name: value for name, value in live.items() if last_use.get(name, -1) > index}


def _stretches(model: onnx.ModelProto, types: dict[str, int]) -> Iterator[list[onnx.NodeProto]]:
    """Runs of about STRETCH nodes; none ends between the two Casts of a rounding, since numpy has no bfloat16."""
    stretch: list[onnx.NodeProto] = []
    for node in model.graph.node:
        pending = bool(stretch) and types[stretch[-1].output[0]] in ELEMENT.values()
        if len(stretch) >= STRETCH and not pending:
            yield stretch
            stretch = []
        stretch.append(node)
    yield stretch


def _run(
    graph: onnx.GraphProto, model: onnx.ModelProto, feeds: dict[str, NDArray[Any]], wanted: list[str]
) -> dict[str, NDArray[Any]]:
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_cpu_mem_arena = False  # it would double what a large encoder takes
    options.log_severity_level = 3
    part = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    if not wanted:
        return {}
    with openable(part) as content:
        session = ort.InferenceSession(
            content if isinstance(content, bytes) else str(content), options, providers=["CPUExecutionProvider"]
        )
        return dict(zip(wanted, session.run(wanted, feeds), strict=True))

"""How much memory one run of a graph needs, from the graph alone: nothing is run and no weight is read.

A run holds the weights, the inputs and outputs, and the intermediate tensors that are still to be read. What is counted of the
latter is what a plain executor keeps that runs the nodes in the order in which they stand in the file:

- A tensor lives from the node that makes it to the last one that reads it; both its inputs and its outputs live at a node.
- `VIEWS` change a shape and move nothing: source and result are one piece of memory, which lives as long as any of them.
  A transpose is counted as a copy. So is an Expand, and the parts of a Split.
- Nothing is done in place, and no neighbours are fused. Executors do both, and then take less.
- ``Attention`` and ``MultiHeadAttention`` are counted as fused: their inputs and result, no matrix of scores. An executor that
  builds scores (ONNX Runtime's CPU provider for ``Attention``) takes more.
- Workspaces of kernels, alignment, and a GPU's context (some hundred megabytes) are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import helper

from samrt_engines.errors import ExportError
from samrt_export.external import load_graph, place_of
from samrt_export.flops import Shape, infer_shapes
from samrt_export.precision.elements import element_types, node_key

VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity"})
"""Operators whose first output is their first input under another shape."""


@dataclass(frozen=True, slots=True)
class GraphBudget:
    """What one run holds. Inputs and outputs belong to the caller and last as long as the run; activations are the most
    that intermediate tensors take together at any node, and ``peak_node`` is the first such node (empty: no intermediates).
    """

    weights_bytes: int
    inputs_bytes: int
    outputs_bytes: int
    activations_bytes: int
    peak_node: str = ""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.inputs_bytes + self.outputs_bytes + self.activations_bytes


def budget(model: bytes | Path | onnx.ModelProto, sizes: Mapping[str, int]) -> GraphBudget:
    """Count what a run of a graph holds.

    model: a graph, its file's content, or the path of one that has its constants in another file
    sizes: symbol of the inputs' shapes -> size; more of them are left out
    Raises ExportError for a symbol without a size, and for a tensor whose shape or type does not follow from the inputs.
    """
    graph = model if isinstance(model, onnx.ModelProto) else load_graph(model)
    constants = {tensor.name for tensor in graph.graph.initializer}
    inputs = {value.name: _shape(graph, value, sizes) for value in graph.graph.input if value.name not in constants}
    tensors = _tensor_bytes(graph, inputs)
    outputs = {value.name for value in graph.graph.output}
    activations, peak_node = _peak(graph, tensors, outputs)
    return GraphBudget(
        weights_bytes=sum(map(_constant_bytes, graph.graph.initializer)),
        inputs_bytes=sum(tensors[name] for name in inputs),
        outputs_bytes=sum(tensors[name] for name in outputs),
        activations_bytes=activations,
        peak_node=peak_node,
    )


def _shape(model: onnx.ModelProto, value: onnx.ValueInfoProto, sizes: Mapping[str, int]) -> Shape:
    """An input's shape, with a size for every symbol."""
    shape = []
    for dim in value.type.tensor_type.shape.dim:
        if not dim.HasField("dim_value") and dim.dim_param not in sizes:
            raise ExportError(
                f"{model.graph.name}: the memory of a run cannot be counted",
                got=f"no size for '{dim.dim_param}' of input '{value.name}'; sizes for {', '.join(sizes) or 'nothing'}",
                expected="a size for every symbol of the inputs",
            )
        shape.append(dim.dim_value if dim.HasField("dim_value") else sizes[dim.dim_param])
    return tuple(shape)


def _tensor_bytes(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> dict[str, int]:
    """Every tensor's size in bytes, by name."""
    shapes, types = infer_shapes(model, inputs), element_types(model)
    unknown = [name for node in model.graph.node for name in node.output if name and name not in shapes]
    if unknown:
        raise ExportError(
            f"{model.graph.name}: the memory of a run cannot be counted",
            got=f"no shape for {', '.join(unknown[:5])}",
            expected="shapes that follow from those of the inputs",
        )
    return {name: math.prod(shape) * _element_bytes(types[name]) for name, shape in shapes.items() if name in types}


def _element_bytes(data_type: int) -> int:
    return int(helper.tensor_dtype_to_np_dtype(data_type).itemsize)


def _constant_bytes(tensor: onnx.TensorProto) -> int:
    """Of one in another file the record says it."""
    place = place_of(tensor)
    return math.prod(tensor.dims) * _element_bytes(tensor.data_type) if place is None else place.length


def _peak(model: onnx.ModelProto, tensors: Mapping[str, int], outputs: set[str]) -> tuple[int, str]:
    """The most that intermediate tensors take together, and the first node where they do."""
    nodes = list(model.graph.node)
    owner = _owners(nodes, outputs)
    made = {name: index for index, node in enumerate(nodes) for name in node.output if owner.get(name) == name}
    last = dict(made)  # what nobody reads is there at its own node all the same
    for index, node in enumerate(nodes):
        for name in (*node.input, *node.output):
            if owner.get(name) in last:
                last[owner[name]] = index
    change = [0] * (len(nodes) + 1)
    for name, index in made.items():
        change[index] += tensors[name]
        change[last[name] + 1] -= tensors[name]
    live, most, where = 0, 0, ""
    for node, difference in zip(nodes, change, strict=False):
        live += difference
        if live > most:
            most, where = live, node_key(node)
    return most, where


def _owners(nodes: list[onnx.NodeProto], outputs: set[str]) -> dict[str, str]:
    """Intermediate tensor -> the tensor whose memory it is, itself unless it is a view. What is in the memory of a graph's
    input or constant maps to that one's name. A graph's outputs are in memory of the caller's, never views, and not here.
    """
    owner: dict[str, str] = {}
    for node in nodes:
        for position, name in enumerate(node.output):
            if name and name not in outputs:
                view = position == 0 and node.op_type in VIEWS
                owner[name] = owner.get(node.input[0], node.input[0]) if view else name
    return owner

"""How much work a graph is: floating-point operations of one run, from the shapes its operators meet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from samrt_engines.errors import ExportError
from samrt_export.precision.elements import inferable

Shape = tuple[int, ...]

COUNTED = ("MatMul", "Gemm", "Conv", "ConvTranspose", "Attention", "MultiHeadAttention")
_FUSED = "com.microsoft"
_MOST_ELEMENTS = 64
"""Of tensors that may be sizes, and whose values therefore matter here."""


def count_flops(model: bytes | onnx.ModelProto, inputs: Mapping[str, NDArray[Any] | Shape]) -> float:
    """Two for each multiply-accumulate of `COUNTED` operators; what they leave out is a few per cent in these models.

    inputs: of the graph, or their shapes alone: nothing is run, and the constants' values are not looked at
    Raises ExportError for an operator whose shapes do not follow from those of the inputs.
    """
    graph = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
    nodes = [node for node in graph.graph.node if node.op_type in COUNTED]
    if not nodes:
        return 0.0
    shapes = infer_shapes(graph, {name: tuple(getattr(one, "shape", one)) for name, one in inputs.items()})
    for node in nodes:
        unknown = [name for name in (*node.input[:3], node.output[0]) if name and name not in shapes]
        if unknown:
            raise ExportError(
                f"{graph.graph.name}: the work of '{node.name or node.output[0]}' ({node.op_type}) cannot be counted",
                got=f"no shape for {', '.join(unknown)}",
                expected="shapes that follow from those of the inputs",
            )
    return sum(
        _flops(node, [shapes[name] for name in node.input[:3] if name], shapes[node.output[0]]) for node in nodes
    )


def infer_shapes(model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> dict[str, Shape]:
    """Tensor -> shape, for given shapes of the inputs; tensors whose shape does not follow from them are left out."""
    return _Shapes(model, inputs).run()


class _Shapes:
    """Finds the shape of every tensor for given input shapes.

    ONNX's own inference (1.23) stops at the first Reshape whose sizes are calculated in a way it does not follow. So what is
    calculated of known sizes is calculated here, put into the graph as a constant, and inference goes on from there.
    """

    def __init__(self, model: onnx.ModelProto, inputs: Mapping[str, Shape]) -> None:
        self.model = model
        self.shapes: dict[str, Shape] = dict(inputs)
        self.values: dict[str, NDArray[Any]] = {}
        self.surface = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
        for tensor in model.graph.initializer:
            self.surface[tensor.name] = tensor.data_type
            self.shapes[tensor.name] = tuple(tensor.dims)
            if math.prod(tensor.dims) <= _MOST_ELEMENTS:
                self.values[tensor.name] = numpy_helper.to_array(tensor)

    def run(self) -> dict[str, Shape]:
        """Tensor -> shape, where it is known."""
        known = -1
        while known < len(self.shapes) + len(self.values):
            known = len(self.shapes) + len(self.values)
            self._infer()
            for node in self.model.graph.node:
                self._evaluate(node)
        return self.shapes

    def _infer(self) -> None:
        """One pass of ONNX's inference over the nodes whose values are not known yet."""
        skeleton = onnx.ModelProto(ir_version=self.model.ir_version)
        skeleton.opset_import.extend(self.model.opset_import)
        graph = skeleton.graph
        graph.name = self.model.graph.name
        made = {name for node in self.model.graph.node for name in node.output}
        for name, value in self.values.items():
            if name in self.surface or name in made:
                graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        for name, element in self.surface.items():
            if name not in self.values:
                graph.input.append(helper.make_tensor_value_info(name, element, self.shapes.get(name)))
        for node in self.model.graph.node:
            if all(name in self.values or name in self.surface for name in node.output if name):
                continue
            if node.domain == _FUSED:
                self._infer_fused(node, graph)
            else:
                graph.node.append(inferable(node))
        graph.output.extend(value for value in self.model.graph.output if value.name not in self.values)
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
        for info in (*inferred.value_info, *inferred.output):
            dims = info.type.tensor_type.shape.dim
            if info.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
                self.shapes.setdefault(info.name, tuple(dim.dim_value for dim in dims))

    def _infer_fused(self, node: onnx.NodeProto, graph: onnx.GraphProto) -> None:
        """ONNX Runtime's own operators, of which our forms have one."""
        name = node.output[0]
        query, value = self.shapes.get(node.input[0]), self.shapes.get(node.input[2])
        if node.op_type == "MultiHeadAttention" and query and value:
            self.shapes[name] = (*query[:2], value[2])
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes.get(name)))

    def _evaluate(self, node: onnx.NodeProto) -> None:
        """The value of a node that calculates sizes, once what it takes is known."""
        if all(name in self.values or name in self.surface for name in node.output if name) or node.domain not in (
            "",
            "ai.onnx",
        ):
            return
        if node.op_type == "Shape" and node.input[0] in self.shapes:
            facts = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            sizes = self.shapes[node.input[0]][facts.get("start", 0) : facts.get("end")]
            self._keep(node.output[0], np.array(sizes, np.int64))
            return
        known = all(name in self.values for name in node.input if name)
        if node.op_type == "Range" and known:  # may be long: its size is enough, and ONNX does not see it
            start, limit, delta = (self.values[name].item() for name in node.input)
            name, data_type = node.output[0], helper.np_dtype_to_tensor_dtype(self.values[node.input[0]].dtype)
            self.surface[name], self.shapes[name] = data_type, (max(0, math.ceil((limit - start) / delta)),)
            return
        small = all(math.prod(self.shapes.get(name, (1 << 40,))) <= _MOST_ELEMENTS for name in node.output if name)
        if small and known:
            opsets = list(self.model.opset_import)
            made = ReferenceEvaluator(node, opsets={one.domain: one.version for one in opsets}).run(
                None, {name: self.values[name] for name in node.input if name}
            )
            for name, value in zip(node.output, made, strict=True):
                self._keep(name, np.asarray(value))

    def _keep(self, name: str, value: NDArray[Any]) -> None:
        self.values[name] = value
        self.shapes[name] = value.shape


def _flops(node: onnx.NodeProto, inputs: Sequence[Shape], output: Shape) -> float:
    """The work of one node, whose first inputs and output have these shapes."""
    first, second = inputs[:2]
    attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "MatMul":
        return 2.0 * math.prod(output) * first[-1]
    if node.op_type == "Gemm":
        return 2.0 * math.prod(output) * first[0 if attributes.get("transA") else 1]
    if node.op_type == "Conv":
        return 2.0 * math.prod(output) * math.prod(second[1:])  # weight (out, in / groups, *kernel)
    if node.op_type == "ConvTranspose":
        return 2.0 * math.prod(first) * math.prod(second[1:])  # weight (in, out / groups, *kernel)
    return _attention_flops(first, second, inputs[2], attributes)


def _attention_flops(query: Shape, key: Shape, value: Shape, attributes: Mapping[str, int]) -> float:
    """Two matrix products for each query head. Tensors are (B, heads, L, D), or (B, L, heads * D) with counts of heads."""
    if len(query) == 4:
        batch, heads, length, dim = query
        keys, value_dim = key[2], value[3]
    else:
        heads = attributes.get("q_num_heads") or attributes["num_heads"]  # the latter is ONNX Runtime's own operator
        batch, length, dim = query[0], query[1], query[2] // heads
        keys, value_dim = key[1], value[2] // attributes.get("kv_num_heads", heads)
    return 2.0 * batch * heads * length * keys * (dim + value_dim)
